"""A namespace's directory.

NAMESPACE is the table of its files. A new file is one row here and one function where its
knowledge lives.
"""

import errno
import stat
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns import nsid, tasks
from netnsfs.netns.nsfs import Namespace
from netnsfs.node import (
    Attributes,
    Caller,
    Directory,
    File,
    Handle,
    Link,
    Node,
    Snapshot,
    opened_for_writing,
)
from netnsfs.permissions import Owner, Permissions
from netnsfs.tree import views
from netnsfs.tree.callers import (
    CAP_DAC_READ_SEARCH,
    CAP_NET_ADMIN,
    CAP_SYS_PTRACE,
    Viewer,
    refuse_without,
)
from netnsfs.tree.homes import Home
from netnsfs.tree.links import LINKS, LinksDirectory, Shared
from netnsfs.tree.open_files import OpenFiles

Show = Callable[[Namespace, int], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """A control file.

    Attributes:
        name: of the file.
        mode: permission bits.
        fixed: content that never changes, for a namespace.
        live: content that does, for a namespace and a descriptor of it.
        tasks: content that is a list of tasks, of which not everyone may know.
        bound: for live content, an upper bound of its length; without one, stat(2) makes
            the content to tell its length.
        write: carries out a command, for a descriptor of the namespace.
        guarded: it tells what only the daemon can see.
    """

    name: bytes
    mode: int = 0o444
    fixed: Callable[[Namespace], bytes] | None = None
    live: Show | None = None
    tasks: Callable[[int], list[int]] | None = None
    bound: Callable[[], int] | None = None
    write: Callable[[int, bytes], None] | None = None
    guarded: bool = False


NAMESPACE = {
    row.name: row
    for row in (
        Row(b"inode", fixed=lambda ns: b"%d\n" % ns.inode),
        Row(b"id", fixed=lambda ns: b"%d\n" % ns.id),
        Row(b"pids", tasks=tasks.pids, bound=tasks.listing_size),
        Row(b"tids", tasks=tasks.tids, bound=tasks.listing_size),
        Row(
            b"holders",
            mode=0o400,
            live=lambda ns, fd: tasks.listing(ns.inode),
            bound=tasks.holders_size,
            guarded=True,
        ),
        Row(
            b"nsid", mode=0o644, live=lambda ns, fd: nsid.read_nsid(fd), write=nsid.assign_nsid
        ),
    )
}


_LINK = b"ns"
# Values of `place` that are not names, and cannot be any.
FIRST = b""
NO_NAME = b"/"


VIEWS = {b"net": b"/proc/thread-self/net", b"sysctl": b"/proc/sys/net"}
"""Directories of procfs that show the namespace of the thread that looks."""


_WRITABLE_VIEW = b"sysctl"


# In /proc/sys/net/ipv4, what has directories by interface is conf and neigh; in /proc/net,
# several of the directories have files by interface.
_STEADY_LEVELS = {b"net": 1, b"sysctl": 2}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all namespaces of a mount.

    Attributes:
        views: names and paths of the views that each directory has.
        permissions: to whom it belongs unless it was given to somebody.
        opened: the open files of all views and `links`.
        links: what all `links` have in common; None if there are none.
    """

    views: Mapping[bytes, bytes]
    permissions: Permissions
    opened: OpenFiles
    links: Shared | None = None


# The kernel lets nobody into a directory again that was removed while somebody had it open. So
# a namespace that gets another name needs a node that differs at least in this.
_generations = count(1)


class NamespaceDirectory(Directory):
    """The directory of a live namespace.

    Attributes:
        namespace: which.
        home: where it was last found.
        place: tells the directories of one namespace apart.
    """

    lasting = True

    def __init__(
        self,
        namespace: Namespace,
        home: Home,
        settings: Settings,
        place: bytes,
    ) -> None:
        self.namespace = namespace
        self.home = home
        self._settings = settings
        self.place = place
        # A number is that of one node. The other directories of the namespace get any.
        self.number = namespace.inode if place == FIRST else 0
        self.generation = next(_generations)
        self.key = (namespace.id, self.generation)

    @property
    def stamp(self) -> Hashable:
        return self.home.stamp()

    def current_owner(self) -> Owner:
        """To whom the namespace belongs."""
        return self.home.owner() or self._settings.permissions.default_owner()

    def attributes(self) -> Attributes:
        ns, owner = self.namespace, self.current_owner()
        # A directory has a link for itself, one for its name, and one for each directory in it.
        below = len(self._settings.views) + bool(self._settings.links)
        mode, links = stat.S_IFDIR | owner.mode, 2 + below
        times = ns.atime_ns, ns.mtime_ns, ns.ctime_ns
        # For a second only: a user whose current directory this is makes no lookup, and so
        # would not hear of a new owner.
        return Attributes(mode, 0, links, *times, 1, owner.uid, owner.gid)

    @property
    def label(self) -> bytes:
        return self.home.name

    def setattr(
        self, mode: int | None, uid: int | None, gid: int | None, caller: Caller
    ) -> None:
        if mode is not None and mode & ~0o777:
            raise PermissionError(errno.EPERM, "only the bits of mode 0777 can be kept")

        def decide(before: Owner | None) -> Owner:
            permissions = self._settings.permissions
            owner = before or permissions.default_owner()
            return permissions.owner_when_given(owner, mode, uid, gid, caller)

        self.home.change_owner(decide)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        self.ensure_present()
        if name in NAMESPACE:
            return ControlFile(self, NAMESPACE[name])
        if name == _LINK:
            return NamespaceLink(self)
        if name == LINKS and self._settings.links:
            return LinksDirectory(self, self._settings.links)
        if name in self._settings.views:
            return self._make_view(name).find_node(self._settings.views[name])
        return super().lookup(name, caller)

    def _make_view(self, name: bytes) -> views.View:
        closed = self._settings.permissions.dmask
        writable, steady = name == _WRITABLE_VIEW, _STEADY_LEVELS[name]
        return views.View(
            self.key,
            self.enter_namespace,
            self.file_attributes,
            self._settings.opened,
            self.is_shown,
            self.refuse_opener,
            closed,
            writable,
            steady,
        )

    def refuse_opener(self, caller: Caller, writes: bool) -> None:
        """Refuse whoever may not open a file of a namespace that nobody has given a name.

        It may be the machine's own, which user ID 0 alone does not make writable. And not
        everybody who is here has come through `unnamed`: a file handle (open_by_handle_at(2))
        or a current directory that was handed on leads here too.

        Args:
            caller: who.
            writes: what is opened is to be written.

        Raises:
            OSError: EACCES.
        """
        if self.home.public:
            return
        may_block()
        refuse_without(caller, CAP_DAC_READ_SEARCH, self.label)
        if writes:
            refuse_without(caller, CAP_NET_ADMIN, self.label)

    def file_attributes(self, mode: int) -> tuple[int, int, int]:
        """Permission bits, user and group ID that a file shows whose own bits are `mode`."""
        return self._settings.permissions.file_attributes(mode, self.current_owner())

    def list_names(self) -> list[bytes]:
        self.ensure_present()
        links = [LINKS] if self._settings.links else []
        return [*NAMESPACE, _LINK, *self._settings.views, *links]

    def ensure_present(self) -> None:
        self.home.ensure_present(self.namespace)

    def is_shown(self) -> bool:
        """Whether the namespace is still to be seen where it was found, or under a name.

        Raises:
            OSError: that cannot be told.
        """
        return self.home.is_shown(self.namespace)

    def show_content(self, row: Row) -> bytes:
        """The content of one of the files.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        if row.fixed:
            self.ensure_present()
            return row.fixed(self.namespace)
        assert row.live
        may_block()
        # While it is held, its inode number cannot become another's.
        with self.held_open() as fd:
            return row.live(self.namespace, fd)

    def list_tasks(self, row: Row, viewer: Viewer) -> bytes:
        """The tasks of one of the files that somebody may know of, one a line.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        assert row.tasks
        may_block()
        with self.held_open():
            found = row.tasks(self.namespace.inode)
        return b"".join(b"%d\n" % task for task in found if viewer.may_see(task))

    def enter_namespace(self) -> None:
        """Move the calling thread, inside `visit()`, into the namespace.

        Raises:
            OSError: ENOENT if it cannot be found any more.
        """
        with self.held_open() as fd:
            linux.setns(fd, linux.CLONE_NEWNET)

    def run_command(self, row: Row, data: bytes) -> None:
        """Carry out what was written to one of the files."""
        assert row.write
        may_block()
        with self.held_open() as fd:
            row.write(fd, data)

    def held_open(self) -> linux.closing:
        """A descriptor of the namespace, until the block ends.

        Raises:
            OSError: ENOENT if it cannot be found any more.
        """
        return linux.closing(self.home.open_namespace(self.namespace))


class ControlFile(File):
    """A file of the table, for one namespace."""

    def __init__(self, directory: NamespaceDirectory, row: Row) -> None:
        self._directory = directory
        self._row = row
        self.key = (directory.key, row.name)
        self.label = row.name
        self.writable = row.write is not None

    def attributes(self) -> Attributes:
        mode, uid, gid = self._directory.file_attributes(self._row.mode)
        mode |= stat.S_IFREG
        if self._row.fixed:
            return Attributes(mode, len(self._row.fixed(self._directory.namespace)))
        bound = self._row.bound or (lambda: len(self._directory.show_content(self._row)))
        return Attributes(mode, self.size_to_show(bound), seconds=0, uid=uid, gid=gid)

    def exact_attributes(self) -> Attributes:
        shown, listing = self.attributes(), self._row.tasks
        if not listing or not tasks.is_cheap():
            return shown
        # Of all tasks, whoever asks: the kernel keeps one size of a file for all users.
        inode = self._directory.namespace.inode
        size = self.size_to_show(lambda: sum(len(b"%d\n" % task) for task in listing(inode)))
        return shown._replace(size=size)

    def open(self, flags: int, caller: Caller) -> Handle:
        directory = self._directory
        if self._row.guarded:
            refuse_without(caller, CAP_SYS_PTRACE, self.label)
        directory.refuse_opener(caller, self.writable and opened_for_writing(flags))
        take = partial(directory.show_content, self._row)
        if self._row.tasks:
            may_block()
            take = partial(directory.list_tasks, self._row, Viewer(caller))
        run = partial(directory.run_command, self._row) if self.writable else None
        return Snapshot(flags, take, directory.ensure_present, run)


class NamespaceLink(Link):
    """`ns`: leads to the namespace file, for nsenter(1) and setns(2)."""

    def __init__(self, directory: NamespaceDirectory) -> None:
        self._directory = directory
        self.key = (directory.key, _LINK)

    def target_text(self) -> bytes:
        self._directory.ensure_present()
        return self._directory.home.path_for_setns()

    def target_for(self, caller: Caller) -> bytes:
        # The path tells of a process and its files, which not everyone may know.
        if not self._directory.home.public:
            refuse_without(caller, CAP_SYS_PTRACE, _LINK)
        return self.target_text()
