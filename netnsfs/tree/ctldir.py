"""The file system's control directory, `.netnsfs`."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from weakref import WeakSet

from netnsfs import linux
from netnsfs.jobs import FreshCache, may_block
from netnsfs.limits import SHARED_TEXTS_PER_USER
from netnsfs.netns import tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import Namespace, namespace_of
from netnsfs.node import (
    ENTRY_TIMEOUT,
    USUAL_SIZE,
    Attributes,
    Caller,
    Directory,
    File,
    FixedLink,
    Handle,
    Node,
    Snapshot,
    require_read_only,
)
from netnsfs.permissions import ROOT, Permissions
from netnsfs.stats import Stats
from netnsfs.tree import graphviz, metrics, topology
from netnsfs.tree.callers import (
    CAP_DAC_READ_SEARCH,
    CAP_SYS_PTRACE,
    Viewer,
    has_capability,
    proc_hides_tasks,
    require_capability,
    require_may_attach,
)
from netnsfs.tree.directories import Directories
from netnsfs.tree.refs import RESERVED, UNNAMED, HolderRef

PID = b"pid"
LARGEST_INODE = 2**32 - 1
"""The largest inode number that nsfs gives."""


def absent_error(name: bytes, why: str = "there is no such name") -> OSError:
    return FileNotFoundError(errno.ENOENT, why, name)


def path_from_ctldir(inode: int, named: dict[int, bytes], up: bytes) -> bytes:
    """The path of a namespace's directory, for the text of a link.

    Args:
        inode: number of the namespace.
        named: the first name of each namespace that has one.
        up: the path from where the link is to the control directory.
    """
    return up + (b"../" + named[inode] if inode in named else b"%b/%d" % (UNNAMED, inode))


def _parse_inode(name: bytes) -> int:
    """An inode number, written as the kernel writes it."""
    # Any other way to write it would be a second name. int() refuses a text that is too long.
    # No namespace has the number 0; to a scan, it means any.
    number = int(name[:20]) if name.isdigit() else 0
    if name != b"%d" % number or not 0 < number <= LARGEST_INODE:
        raise absent_error(name, "there is no such namespace")
    return number


class NamesDirectory(Directory):
    """The directory of all names, in which a namespace can be given one."""

    def attach(self, name: bytes, fd: int) -> None:
        """Give the namespace of `fd` a name.

        Raises:
            OSError: as `NamedNamespaces.attach`.
        """
        raise NotImplementedError


class UnnamedDirectory(Directory):
    """`.netnsfs/unnamed`: the live namespaces that have no name, by inode number.

    Only users who may read everything see it: the users of a namespace without a name were not
    been asked, and one whose name was closed may be among these.
    """

    key = UNNAMED

    def __init__(
        self, names: NamedNamespaces, directories: Directories, root: NamesDirectory
    ) -> None:
        self._names = names
        self._directories = directories
        self._root = root
        self._listed: dict[int, tasks.Holder] = {}

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o700)

    def listing_caller(self, caller: Caller) -> Caller:
        require_capability(caller, CAP_DAC_READ_SEARCH, UNNAMED)
        return caller

    def readdir(self) -> list[bytes]:
        may_block()
        # The control directory hides a namespace that another tool named `.netnsfs`. So that
        # namespace is listed here.
        named = self._names.names_by_inode(without=RESERVED)
        self._listed = found = {holder.inode: holder for holder in tasks.one_of_each(named)}
        return [b"%d" % inode for inode in sorted(found)]

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        may_block()
        holder = self._listed.get(int(name))
        if holder is None:
            raise absent_error(name)
        with suppress(OSError):
            return self._directory_of(holder)
        # Another may hold it still: this one may be a mount that another mount covers.
        return self._find(name)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        may_block()
        require_capability(caller, CAP_DAC_READ_SEARCH, UNNAMED)
        return self._find(name)

    def _find(self, name: bytes) -> Node:
        inode = _parse_inode(name)
        if inode in self._names.names_by_inode(without=RESERVED):
            raise absent_error(name, "the namespace has a name")
        for holder in self._likely_holders(inode):
            with suppress(OSError):
                return self._directory_of(holder)
        raise absent_error(name, "there is no such namespace")

    def _likely_holders(self, inode: int) -> Iterator[tasks.Holder]:
        """First the one that was seen last, then, at the cost of a scan, all."""
        if inode in self._listed:
            yield self._listed[inode]
        for holder in tasks.iter_holders(inode):
            self._listed[inode] = holder
            yield holder

    def _directory_of(self, holder: tasks.Holder) -> Node:
        ref = HolderRef(self._names, holder, self._is_named)
        fd, namespace = self._open_holder(holder)
        with linux.closing_fd(fd):
            # A name may have been given, or changed, while all names were looked at.
            ref.require_present(namespace)
        return self._directories.get_unnamed(namespace, ref)

    def _is_named(self, inode: int) -> bool:
        names = self._names.directory.mounted.names_of(inode)
        return any(name != RESERVED for name in names)

    def _open_holder(self, holder: tasks.Holder) -> tuple[int, Namespace]:
        fd = holder.open(self._names.links.avoid)
        try:
            namespace = namespace_of(fd)
            # Between the scan and this moment, a task may have moved and a descriptor been
            # replaced.
            if namespace.inode != holder.inode:
                raise absent_error(holder.line, "it holds another namespace now")
        except BaseException:
            os.close(fd)
            raise
        return fd, namespace

    def open_namespace(self, name: bytes) -> int:
        """A descriptor of the namespace with an inode number.

        Raises:
            OSError: ENOENT.
        """
        for holder in self._likely_holders(_parse_inode(name)):
            with suppress(OSError):
                return self._open_holder(holder)[0]
        raise absent_error(name, "there is no such namespace")

    def rename(
        self, name: bytes, directory: Directory, new_name: bytes, caller: Caller
    ) -> None:
        may_block()
        if directory is not self._root:
            return super().rename(name, directory, new_name, caller)
        require_may_attach(caller, new_name)
        with linux.closing_fd(self.open_namespace(name)) as fd:
            return self._root.attach(new_name, fd)


class PidDirectory(Directory):
    """`.netnsfs/pid`: a link for each process; threads are found by lookup, as in /proc."""

    key = PID

    def __init__(self, names: NamedNamespaces) -> None:
        self._names = names
        # The first name of each namespace, and the namespace of each process.
        self._listed: tuple[dict[int, bytes], dict[bytes, int | None]] = {}, {}

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o555)

    def readdir(self) -> list[bytes]:
        may_block()
        named = self._names.names_by_inode(without=RESERVED)
        inodes = {
            pid: tasks.namespace_of_task(pid) for pid in os.listdir(b"/proc") if pid.isdigit()
        }
        self._listed = named, inodes
        return [b"self", *inodes]

    def listing_caller(self, caller: Caller) -> Caller:
        return Viewer(caller)

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        named, inodes = self._listed
        pid = _pid_of(name, caller)
        # A thread is not listed.
        if pid not in inodes:
            return self.lookup(name, caller)
        return _link_to_task(name, inodes[pid], _as_viewer(caller), named)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        may_block()
        pid = _pid_of(name, caller)
        inode = tasks.namespace_of_task(pid) if pid.isdigit() else None
        named = self._names.names_by_inode(without=RESERVED)
        return _link_to_task(name, inode, _as_viewer(caller), named)


def _pid_of(name: bytes, caller: Caller) -> bytes:
    return b"%d" % caller.pid if name == b"self" else name


def _as_viewer(caller: Caller) -> Viewer:
    return caller if isinstance(caller, Viewer) else Viewer(caller)


def _link_to_task(
    name: bytes, inode: int | None, viewer: Viewer, named: dict[int, bytes]
) -> Node:
    if inode is None or not viewer.may_see(int(_pid_of(name, viewer))):
        raise absent_error(name, "there is no such process, or its namespace is not to be seen")
    text = path_from_ctldir(inode, named, b"../")
    return FixedLink((PID, name, text), text)


class LastError(File):
    """`.netnsfs/last_error`: why the last refused change failed.

    Everyone may read it. It tells operations, names and limits, which everyone may see; it does
    not tell the paths that root's links lead to.
    """

    key = label = b"last_error"
    keeps_name = False

    def __init__(self, stats: Stats, permissions: Permissions) -> None:
        self._stats = stats
        self._mode = stat.S_IFREG | permissions.file_attributes(0o444, ROOT)[0]

    def getattr_cached(self) -> Attributes:
        return Attributes(self._mode, len(self._stats.last), attr_timeout=0)

    def open(self, flags: int, caller: Caller) -> Handle:
        return Snapshot(flags, lambda: self._stats.last)


class SharedText(File):
    """A text about all namespaces, which takes long to make and is the same for many.

    So a text is shared. Each open file keeps its text, which can be long: nobody but root may
    have more than a few.
    """

    slow = True
    keeps_name = False
    links = 1
    mode = 0o444

    def __init__(self, names: NamedNamespaces, permissions: Permissions) -> None:
        self._names = names
        self._permissions = permissions
        # With and without what is closed to some.
        self._texts: dict[bool, FreshCache[bytes]] = {
            sees_all: FreshCache() for sees_all in (True, False)
        }
        self._open: dict[int, WeakSet[Snapshot]] = {}

    def getattr_cached(self) -> Attributes:
        mode, _, _ = self._permissions.file_attributes(self.mode, ROOT)
        size, now = USUAL_SIZE, time.time_ns()
        return Attributes(stat.S_IFREG | mode, size, self.links, now, now, now, attr_timeout=0)

    def open(self, flags: int, caller: Caller) -> Handle:
        require_read_only(flags)
        may_block()
        # Two texts, and not one for each user.
        sees_all = has_capability(caller, CAP_DAC_READ_SEARCH)
        # Weak: what is closed, or never got to its user, counts no longer.
        mine = self._open.setdefault(caller.uid, WeakSet())
        if caller.uid and len(mine) >= SHARED_TEXTS_PER_USER:
            raise OSError(errno.EMFILE, "close some of those that are open")
        snapshot = Snapshot(flags, partial(self._current_text, sees_all))
        mine.add(snapshot)
        return snapshot

    def _current_text(self, sees_all: bool) -> bytes:
        may_block()
        shown = None if sees_all else self._is_open_to_all
        return self._texts[sees_all].get_since_asked(partial(self.render, shown))

    def render(self, shown: Callable[[bytes], bool] | None) -> bytes:
        """The text.

        Args:
            shown: whether a name is included; None for all.
        """
        raise NotImplementedError

    def _is_open_to_all(self, name: bytes) -> bool:
        """Whether everyone may look into a namespace."""
        owner = self._names.owners.owner_of(name)
        # The right to search its directory: that is what opens everything below.
        return bool((owner or self._permissions.default_owner()).mode & 0o001)


class Metrics(SharedText):
    """`.netnsfs/metrics`: also under a name that node_exporter's textfile collector takes."""

    key = label = b"metrics"
    # The collector takes only files that end in .prom, so the file has two names.
    links = 2

    def __init__(self, names: NamedNamespaces, stats: Stats, permissions: Permissions) -> None:
        super().__init__(names, permissions)
        self._stats = stats

    def render(self, shown: Callable[[bytes], bool] | None) -> bytes:
        # Whoever reads it: what /proc hides from some is told to none.
        scope = metrics.Scope(shown, processes=not proc_hides_tasks())
        return metrics.render(self._names, self._stats, scope)


class AllMetrics(Metrics):
    """`.netnsfs/metrics_all`: the same of every namespace, for those who may see all."""

    key = label = b"metrics_all"
    mode = 0o400

    def open(self, flags: int, caller: Caller) -> Handle:
        require_capability(caller, CAP_DAC_READ_SEARCH, self.label)
        if proc_hides_tasks():
            require_capability(caller, CAP_SYS_PTRACE, self.label)
        return super().open(flags, caller)

    def render(self, shown: Callable[[bytes], bool] | None) -> bytes:
        scope = metrics.Scope(unnamed=True)
        return metrics.render(self._names, self._stats, scope)


class Topology(SharedText):
    """`.netnsfs/topology.dot`, and what is connected with one namespace."""

    key = label = b"topology.dot"

    def __init__(self, names: NamedNamespaces, permissions: Permissions) -> None:
        super().__init__(names, permissions)
        self._surveys: dict[bool, FreshCache[topology.Topology]] = {
            sees_all: FreshCache() for sees_all in (True, False)
        }

    def render(self, shown: Callable[[bytes], bool] | None) -> bytes:
        return graphviz.draw(self._survey(shown))

    def _survey(self, shown: Callable[[bytes], bool] | None) -> topology.Topology:
        survey = partial(topology.survey, self._names, RESERVED, shown)
        return self._surveys[shown is None].get_since_asked(survey)

    def draw_around(self, caller: Caller) -> Callable[[bytes, int], bytes]:
        """What draws what is connected with a namespace.

        Args:
            caller: who may look into that namespace, and sees only others that are open to
                all, unless they may look into anything.

        Returns:
            It takes the name and the inode number of the namespace.
        """
        may_block()
        sees_all = has_capability(caller, CAP_DAC_READ_SEARCH)
        return partial(self._draw_around, sees_all)

    def _draw_around(self, sees_all: bool, name: bytes, inode: int) -> bytes:
        if sees_all:
            seen = self._survey(None)
        elif self._is_open_to_all(name):
            seen = self._survey(self._is_open_to_all)
        else:
            seen = topology.survey(
                self._names,
                RESERVED,
                lambda other: other == name or self._is_open_to_all(other),
            )
        return graphviz.draw(seen, inode)


class ControlDirectory(Directory):
    """`.netnsfs`: the file system's control directory."""

    key = RESERVED
    # The nodes are made once, with the file system.
    entry_timeout = ENTRY_TIMEOUT

    def __init__(self, nodes: dict[bytes, Node]) -> None:
        self._nodes = nodes

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o555)

    def readdir(self) -> list[bytes]:
        return [*self._nodes]

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._nodes.get(name) or super().lookup(name, caller)
