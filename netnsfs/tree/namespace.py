"""A namespace's directory.

NAMESPACE is the table of its files. A new file is one row here and one function where its
knowledge lives.
"""

import errno
import stat
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from netnsfs.commands import ANY_WORDS, NEWLINE, CommandSnapshot, Syntax
from netnsfs.jobs import FreshCache, may_block
from netnsfs.limits import SIGNAL_RATE, SIGNAL_SECONDS
from netnsfs.netns import control_groups, nsid, routes, signals, tasks
from netnsfs.netns.nsfs import Namespace
from netnsfs.netns.populated_events import MembershipWatch, PopulatedEvents
from netnsfs.node import (
    ENTRY_TIMEOUT,
    USUAL_SIZE,
    Attributes,
    Caller,
    Directory,
    File,
    FixedLink,
    Handle,
    Link,
    Node,
    Snapshot,
    opened_for_writing,
)
from netnsfs.permissions import Owner, Permissions
from netnsfs.tree import views
from netnsfs.tree.access import NamespaceAccess
from netnsfs.tree.callers import (
    CAP_SYS_PTRACE,
    Viewer,
    require_capability,
    signal_rule,
)
from netnsfs.tree.interfaces import LINKS, LinksContext, LinksDirectory
from netnsfs.tree.open_files import OpenFiles, Revocable
from netnsfs.tree.refs import NamespaceRef
from netnsfs.tree.token_bucket import TokenBucket, charged

Show = Callable[[Namespace, int], bytes]
Command = Callable[[int, bytes], None]
# From the name and the inode number of a namespace.
ShowAround = Callable[[bytes, int], bytes]


def _one_a_line(numbers: list[int]) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


# The kernel keeps a file locked while it is written. So root waits for another writer.
_signalling = TokenBucket(SIGNAL_SECONDS, SIGNAL_RATE)


def _sender(caller: Caller) -> Command:
    may_block()
    rule, user = signal_rule(caller), caller.uid

    def send(fd: int, text: bytes) -> None:
        with _signalling.charge(user) if rule else nullcontext():
            signals.send(fd, text, rule)

    return send


@dataclass(frozen=True, slots=True)
class NamespaceFileSpec:
    """A file of a namespace's directory.

    One of `fixed`, `live`, `tasks` and `around` makes its content.

    Attributes:
        name: of the file.
        mode: permission bits.
        fixed: content that never changes, from the namespace.
        live: content that does, from the namespace and a descriptor of it. On a worker.
        tasks: the tasks that the content is about, from the namespace's inode number. On a
            worker.
        format: the content, from those of these tasks that the reader may see.
        around: what the mount tells of the namespace and others, from what is the same for all
            and the caller who opens the file.
        bound: an upper bound of the length, for stat(2). Without one, stat(2) makes the content
            to know its length.
        store: from the caller who opens the file, a function that carries out a command: it
            gets a descriptor of the namespace, and what was written.
        needs_ptrace: only a caller with CAP_SYS_PTRACE may open it, whatever the mode says.
        delegated: whether an owner to whom root gave the namespace may write it.
        syntax: when a command is whole.
        slow: see `File.slow`.
    """

    name: bytes
    mode: int = 0o444
    fixed: Callable[[Namespace], bytes] | None = None
    live: Show | None = None
    tasks: Callable[[int], list[int]] | None = None
    format: Callable[[list[int]], bytes] = _one_a_line
    around: Callable[["MountContext", Caller], ShowAround] | None = None
    bound: Callable[[], int] | None = None
    store: Callable[[Caller], Command] | None = None
    syntax: Syntax = ANY_WORDS
    needs_ptrace: bool = False
    delegated: bool = True
    slow: bool = False


NAMESPACE = {
    row.name: row
    for row in (
        NamespaceFileSpec(b"inode", fixed=lambda ns: b"%d\n" % ns.inode),
        NamespaceFileSpec(b"id", fixed=lambda ns: b"%d\n" % ns.id),
        NamespaceFileSpec(b"pids", tasks=tasks.pids, bound=tasks.listing_size),
        NamespaceFileSpec(b"tids", tasks=tasks.tids, bound=tasks.listing_size),
        NamespaceFileSpec(
            b"cgroups",
            tasks=tasks.pids,
            format=control_groups.listing,
            bound=lambda: USUAL_SIZE,
        ),
        NamespaceFileSpec(
            b"holders",
            mode=0o400,
            live=lambda ns, fd: tasks.listing(ns.inode),
            bound=tasks.holders_size,
            needs_ptrace=True,
        ),
        NamespaceFileSpec(
            b"nsid",
            mode=0o644,
            live=lambda ns, fd: nsid.read_nsid(fd),
            store=lambda caller: nsid.assign_nsid,
            # It changes the mounting namespace, which is not the owner's.
            delegated=False,
            syntax=Syntax(is_unfinished=nsid.is_unfinished),
        ),
        NamespaceFileSpec(
            b"routes",
            mode=0o644,
            live=lambda ns, fd: routes.show(fd),
            bound=lambda: USUAL_SIZE,
            store=lambda caller: charged(caller.uid, routes.change),
            syntax=Syntax(NEWLINE),
            slow=True,
        ),
        NamespaceFileSpec(
            b"topology.dot",
            around=lambda context, caller: context.draw_around(caller),
            bound=lambda: USUAL_SIZE,
            slow=True,
        ),
        NamespaceFileSpec(
            b"kill",
            mode=0o200,
            live=lambda ns, fd: b"",
            bound=lambda: 0,
            store=_sender,
            syntax=Syntax(is_unfinished=signals.is_unfinished),
            slow=True,
        ),
    )
}


_LINK = b"ns"
EXEC = b"exec"
"""A link to the program that runs others in the namespace (netnsfs/data/netns-exec.c)."""

# Values of `name_key` that are not names, and cannot be any.
FIRST = b""
NO_NAME = b"/"


VIEWS = {b"net": b"/proc/thread-self/net", b"sysctl": b"/proc/sys/net"}
"""Directories of procfs that show the namespace of the thread that looks."""


_WRITABLE_VIEW = b"sysctl"


# In /proc/sys/net/ipv4, what has directories by interface is conf and neigh; in /proc/net,
# several of the directories have files by interface.
_FIXED_LEVELS = {b"net": 1, b"sysctl": 2}


@dataclass(frozen=True, slots=True)
class MountContext:
    """What is the same for all namespaces of a mount.

    Attributes:
        views: names and paths of the views that each directory has.
        permissions: to whom it belongs unless it was given to somebody.
        opened: the open files of all views and `links`, and lists that somebody waits for.
        draw_around: from a caller, what draws for them what is connected with a namespace.
        links: what all `links` have in common; None if there are none.
        populated_events: tells when members come and go.
        program: the path that `exec` leads to; empty if there is none.
    """

    views: Mapping[bytes, bytes]
    permissions: Permissions
    opened: OpenFiles
    draw_around: Callable[[Caller], ShowAround]
    links: LinksContext | None = None
    populated_events: PopulatedEvents = field(default_factory=PopulatedEvents)
    program: bytes = b""


# The kernel lets nobody into a directory again that was removed while somebody had it open. So
# a namespace that gets another name needs a node that differs at least in this.
_generations = count(1)


class NamespaceDirectory(NamespaceAccess, Directory):
    """The directory of a live namespace.

    Attributes:
        context: what is the same for all namespaces of the mount.
        name_key: tells the directories of one namespace apart.
    """

    entry_timeout = ENTRY_TIMEOUT

    def __init__(
        self,
        namespace: Namespace,
        ref: NamespaceRef,
        context: MountContext,
        name_key: bytes,
    ) -> None:
        self.context = context
        self.name_key = name_key
        # A number is that of one node. The other directories of the namespace get any.
        self.number = namespace.inode if name_key == FIRST else 0
        self.generation = next(_generations)
        key = (namespace.id, self.generation)
        super().__init__(key, namespace, ref, context.permissions, context.opened)
        self.represents = namespace.id
        self._lists: defaultdict[bytes, FreshCache[tuple[bytes, bool]]]
        self._lists = defaultdict(FreshCache)

    def getattr_cached(self) -> Attributes:
        return self.attributes_of(self.current_owner(), 1)

    def attributes_of(self, owner: Owner, attr_timeout: int) -> Attributes:
        """What stat(2) shows if an owner has it."""
        ns = self.namespace
        # A directory has a link for itself, one for its name, and one for each directory in it.
        below = len(self.context.views) + bool(self.context.links)
        mode, links = stat.S_IFDIR | owner.mode, 2 + below
        times = ns.atime_ns, ns.mtime_ns, ns.ctime_ns
        # For a second only: a user whose current directory this is makes no lookup, and so
        # would not hear of a new owner.
        return Attributes(mode, 0, links, *times, attr_timeout, owner.uid, owner.gid)

    @property
    def label(self) -> bytes:
        return self.ref.name

    def setattr(
        self, mode: int | None, uid: int | None, gid: int | None, caller: Caller
    ) -> None:
        if mode is not None and mode & ~0o777:
            raise PermissionError(errno.EPERM, "only the bits of mode 0777 can be kept")

        def decide(before: Owner | None) -> Owner:
            permissions = self.permissions
            owner = before or permissions.default_owner()
            return permissions.owner_when_given(owner, mode, uid, gid, caller)

        self.ref.change_owner(decide)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        self.require_present()
        if name in NAMESPACE:
            return NamespaceFile(self, NAMESPACE[name])
        if name == _LINK:
            return NamespaceLink(self)
        if name == EXEC and self.context.program:
            return FixedLink((self.key, EXEC), self.context.program)
        if name == LINKS and self.context.links:
            return LinksDirectory(self, self.context.links)
        if name in self.context.views:
            return self._make_view(name).find_node(self.context.views[name])
        return super().lookup(name, caller)

    def _make_view(self, name: bytes) -> views.View:
        return views.View(self.key, self, name == _WRITABLE_VIEW, _FIXED_LEVELS[name])

    def readdir(self) -> list[bytes]:
        self.require_present()
        links = [LINKS] if self.context.links else []
        program = [EXEC] if self.context.program else []
        return [*NAMESPACE, _LINK, *program, *self.context.views, *links]

    def show_content(self, row: NamespaceFileSpec) -> bytes:
        """The content of one of the files.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        if row.fixed:
            self.require_present()
            return row.fixed(self.namespace)
        assert row.live
        may_block()
        # While it is held, its inode number cannot become another's.
        with self.held_open() as fd:
            return row.live(self.namespace, fd)

    def show_around(self, show: ShowAround) -> bytes:
        """What the mount tells of the namespace and others.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        may_block()
        with self.held_open():
            return show(self.ref.name, self.namespace.inode)

    def list_tasks(self, row: NamespaceFileSpec, viewer: Viewer) -> tuple[bytes, bool]:
        """The content of one of the files that tell of tasks, for somebody.

        Returns:
            The list, and whether there are any at all, visible to the viewer or not.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        may_block()
        with self.held_open():
            return self._make_list(row, viewer)

    def length_of_tasks(self, row: NamespaceFileSpec) -> int:
        """The length of such a list, for somebody who may know of all tasks."""
        return len(self._make_list(row, None)[0])

    def _make_list(self, row: NamespaceFileSpec, viewer: Viewer | None) -> tuple[bytes, bool]:
        visible_to = None if viewer is None or viewer.sees_all else viewer.uid
        return self._lists[row.name].get_since_asked(
            partial(self._inspect_tasks, row, viewer), visible_to
        )

    def _inspect_tasks(
        self, row: NamespaceFileSpec, viewer: Viewer | None
    ) -> tuple[bytes, bool]:
        assert row.tasks
        found = row.tasks(self.namespace.inode)
        shown = [task for task in found if viewer is None or viewer.may_see(task)]
        return row.format(shown), bool(found)

    def is_populated(self) -> bool:
        """Whether a process is inside, visible to the viewer or not.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        may_block()
        with self.held_open():
            return bool(tasks.tids(self.namespace.inode))

    def watch(self, file: Revocable, wake: Callable[[], None]) -> MembershipWatch | None:
        """Wake an open file when its namespace may be populated no longer, or again, or gone.

        Returns:
            None if this machine cannot tell.
        """
        watch = self.context.populated_events.watch(self.namespace.inode, wake)
        if watch:
            self.opened.keep(file)
        return watch

    def run_command(self, command: Command, data: bytes) -> None:
        """Carry out what was written to one of the files."""
        may_block()
        with self.held_open() as fd:
            command(fd, data)


class TaskList(Snapshot):
    """An open list of tasks. poll(2) tells when it is no longer empty, or has become so.

    Arguments as for `NamespaceDirectory.list_tasks`.
    """

    def __init__(
        self, flags: int, directory: NamespaceDirectory, row: NamespaceFileSpec, viewer: Viewer
    ) -> None:
        self.key = directory.key
        self.is_reachable = directory.is_reachable
        self._directory = directory
        self._list = partial(directory.list_tasks, row, viewer)
        self._populated = False
        self._changed = False
        self._closed = False
        self._lock = threading.Lock()
        self._watch: MembershipWatch | None = None
        self._wake: Callable[[], None] | None = None
        super().__init__(flags, self._take_list, directory.require_present)

    def _take_list(self) -> bytes:
        content, self._populated = self._list()
        self._changed = False
        # A look made meanwhile has compared with what was read before.
        self._tell()
        return content

    def poll(self, wake: Callable[[], None]) -> bool:
        """See `Pollable.poll`. As in kernfs, it is so until it is read again."""
        if not self._changed:
            may_block()
            watch = self._find_watch(wake)
            self._changed = watch is not None and self._has_changed(watch)
        return self._changed

    def _find_watch(self, wake: Callable[[], None]) -> MembershipWatch | None:
        with self._lock:
            self._wake = wake
            if self._watch is None:
                self._watch = self._directory.watch(self, wake)
        # A job that nobody waits for any more may get here.
        if self._closed:
            self.close()
        return self._watch

    def _has_changed(self, watch: MembershipWatch) -> bool:
        # Before the look: whatever comes after it is told.
        watch.renew()
        try:
            return self._directory.is_populated() != self._populated
        except FileNotFoundError:
            return True

    def revoke(self, null: int) -> None:
        """See `Revocable.revoke`."""
        self._tell()

    def _tell(self) -> None:
        if self._wake:
            self._wake()

    def close(self) -> None:
        """See `Handle.close`."""
        self._closed = True
        if self._watch:
            self._watch.close()


class NamespaceFile(File):
    """A file of the table, for one namespace."""

    def __init__(self, directory: NamespaceDirectory, row: NamespaceFileSpec) -> None:
        self._directory = directory
        self._row = row
        self.key = (directory.key, row.name)
        self.label = row.name
        self.writable = row.store is not None
        self.slow = row.slow
        self.constant = self.keeps_name = row.fixed is not None

    def getattr_cached(self) -> Attributes:
        mode, uid, gid = self._directory.file_attributes(self._row.mode, self._row.delegated)
        mode |= stat.S_IFREG
        if self._row.fixed:
            return Attributes(mode, len(self._row.fixed(self._directory.namespace)))
        size = self._row.bound() if self._row.bound else USUAL_SIZE
        return Attributes(mode, size, attr_timeout=0, uid=uid, gid=gid)

    def getattr(self) -> Attributes:
        shown = self.getattr_cached()
        if self._row.tasks:
            return shown._replace(size=self._exact_size(shown.size))
        if self._row.live and not self._row.bound:
            return shown._replace(size=len(self._directory.show_content(self._row)))
        return shown

    def _exact_size(self, bound: int) -> int:
        """The length of a list of tasks if that takes one cheap pass, or else a bound of it."""
        if not tasks.is_cheap():
            return bound
        # Of all tasks, for any caller: the kernel keeps one size of a file for all users.
        return self._directory.length_of_tasks(self._row)

    def open(self, flags: int, caller: Caller) -> Handle:
        directory = self._directory
        if self._row.needs_ptrace:
            require_capability(caller, CAP_SYS_PTRACE, self.label)
        writes = self.writable and opened_for_writing(flags)
        directory.require_may_open(caller, writes)
        if self._row.tasks:
            may_block()
            return TaskList(flags, directory, self._row, Viewer(caller))
        if self._row.around:
            show = self._row.around(directory.context, caller)
            take = partial(directory.show_around, show)
            return Snapshot(flags, take, directory.require_present)
        take = partial(directory.show_content, self._row)
        if not self._row.store or not writes:
            return Snapshot(flags, take, directory.require_present)
        run = partial(directory.run_command, self._row.store(caller))
        return CommandSnapshot(flags, take, directory.require_present, run, self._row.syntax)


class NamespaceLink(Link):
    """`ns`: leads to the namespace file, for nsenter(1) and setns(2)."""

    def __init__(self, directory: NamespaceDirectory) -> None:
        self._directory = directory
        self.key = (directory.key, _LINK)

    def target_path(self) -> bytes:
        self._directory.require_present()
        return self._directory.ref.path_for_setns()

    def readlink(self, caller: Caller) -> bytes:
        # The path tells of a process and its files, which not everyone may know.
        if not self._directory.ref.public:
            require_capability(caller, CAP_SYS_PTRACE, _LINK)
        return self.target_path()
