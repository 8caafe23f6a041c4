"""A namespace's directory.

NAMESPACE is the table of its files. A new file is one row here and one function where its
knowledge lives.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

from netnsfs import holders, linux, members, nsid, tree, views
from netnsfs.netns import Names
from netnsfs.nsfs import Namespace, namespace_of, nsfs_device
from netnsfs.permissions import CAP_SYS_PTRACE, ROOT, Owner, Permissions, Viewer, has
from netnsfs.workers import may_block

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
    tasks: Callable[[bytes], list[int]] | None = None
    bound: Callable[[], int] | None = None
    write: Callable[[int, bytes], None] | None = None
    guarded: bool = False


NAMESPACE = {
    row.name: row
    for row in (
        Row(b"inode", fixed=lambda ns: b"%d\n" % ns.inode),
        Row(b"id", fixed=lambda ns: b"%d\n" % ns.id),
        Row(b"pids", tasks=members.pids, bound=members.listing_size),
        Row(b"tids", tasks=members.tids, bound=members.listing_size),
        Row(
            b"holders",
            mode=0o400,
            live=lambda ns, fd: holders.listing(ns.inode),
            bound=holders.listing_size,
            guarded=True,
        ),
        Row(b"nsid", mode=0o644, live=lambda ns, fd: nsid.show(fd), write=nsid.assign),
    )
}

_LINK = b"ns"
# Where a directory is, if not under its own name: no names.
_FIRST = b""
_NO_NAME = b"/"

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
    """

    views: Mapping[bytes, bytes]
    permissions: Permissions


class Home(Protocol):
    """Where a namespace can be found."""

    def check(self, namespace: Namespace) -> None:
        """Make sure that it is still there.

        Raises:
            OSError: ENOENT.
        """

    def open(self, namespace: Namespace) -> int:
        """A descriptor of it.

        Raises:
            OSError: ENOENT.
        """

    def path(self) -> bytes:
        """A path that setns(2) can use."""

    @property
    def public(self) -> bool:
        """Whether everyone may know that path."""

    @property
    def name(self) -> bytes:
        """What to call it in a message."""

    def stamp(self) -> Hashable:
        """What changes with what `owner` says."""

    def owner(self) -> Owner | None:
        """To whom the namespace was given."""

    def give(self, owner: Owner) -> None:
        """Give it to somebody.

        Raises:
            OSError: EPERM if that cannot be kept, ENOENT if it is not there any more.
        """


class Name:
    """A name in the run directory.

    Args:
        names: the directory.
        name: the name.
        mark: what stood under it when the namespace was found there.
    """

    public = True

    def __init__(self, names: Names, name: bytes, mark: linux.Stat) -> None:
        self._names = names
        self._path = names.file(name)
        self._mounted = mark.dev == nsfs_device()
        self.name = name
        self.mark = mark
        self._packed = b""
        self._state: object = None

    def unchanged(self) -> bool:
        """Whether the same namespace file is still mounted there.

        Raises:
            OSError: ENOENT.
        """
        state = self._names.state()
        if state is not None and state is self._state:
            return True
        packed = self._names.packed(self.name)
        if packed != self._packed:
            if linux.unpacked(packed) != self.mark or not self._mounted:
                return False
            self._packed = packed
        self._state = state
        return True

    def check(self, namespace: Namespace) -> None:
        """See `Home.check`."""
        if not self.unchanged():
            os.close(self.open(namespace))

    def open(self, namespace: Namespace) -> int:
        """See `Home.open`."""
        try:
            return _same(self._names.open(self.name), namespace)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ELOOP, errno.ETIMEDOUT):
                raise
            raise _gone() from None

    def path(self) -> bytes:
        """See `Home.path`."""
        return self._path

    def stamp(self) -> Hashable:
        """See `Home.stamp`. Another name of the namespace may have another owner."""
        return self._names.stamp(), self.mark

    def owner(self) -> Owner | None:
        """See `Home.owner`."""
        return self._names.owner(self.name, self.mark)

    def give(self, owner: Owner) -> None:
        """See `Home.give`. There is nothing below a symbolic link to keep it on."""
        may_block()
        if not self._mounted:
            raise PermissionError(errno.EPERM, "a link has no owner of its own", self.name)
        self._names.delegations.change(self.name, self.mark, owner)


class Unnamed:
    """Held by something else than a name.

    Args:
        names: for `Names.avoid`.
        holder: one thing that holds it. Another takes its place when it lets go.
    """

    public = False

    def __init__(self, names: Names, holder: holders.Holder) -> None:
        self._names = names
        self._holder = holder
        self.name = b"%d" % holder.inode

    def check(self, namespace: Namespace) -> None:
        """See `Home.check`."""
        os.close(self.open(namespace))

    def open(self, namespace: Namespace) -> int:
        """See `Home.open`."""
        may_block()
        try:
            return _same(self._holder.open(self._names.avoid), namespace)
        except OSError:
            return self._open_another(namespace)

    def _open_another(self, namespace: Namespace) -> int:
        for holder in holders.of(namespace.inode):
            try:
                fd = _same(holder.open(self._names.avoid), namespace)
            except OSError:
                continue
            self._holder = holder
            return fd
        raise _gone()

    def path(self) -> bytes:
        """See `Home.path`. A namespace that only sockets hold has none that works."""
        return self._holder.path

    def stamp(self) -> Hashable:
        """See `Home.stamp`."""
        return None

    def owner(self) -> Owner | None:
        """See `Home.owner`."""
        return ROOT

    def give(self, owner: Owner) -> None:
        """See `Home.give`."""
        raise PermissionError(errno.EPERM, "give the namespace a name first")


def _same(fd: int, namespace: Namespace) -> int:
    try:
        if namespace_of(fd).id != namespace.id:
            raise _gone()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _gone() -> OSError:
    return FileNotFoundError(errno.ENOENT, "the namespace is not there any more")


_generations = count(1)


class NamespaceDirectory(tree.Directory):
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
        self.number = namespace.inode if place == _FIRST else 0
        self.generation = next(_generations)
        self.key = (namespace.id, self.generation)

    @property
    def stamp(self) -> Hashable:
        return self.home.stamp()

    def owner(self) -> Owner:
        """To whom the namespace belongs."""
        return self.home.owner() or self._settings.permissions.owner()

    def attributes(self) -> tree.Attributes:
        ns, owner = self.namespace, self.owner()
        mode, links = stat.S_IFDIR | owner.mode, 2 + len(self._settings.views)
        times = ns.atime_ns, ns.mtime_ns, ns.ctime_ns
        # A user who stands in the directory looks nothing up that would tell of a new owner.
        return tree.Attributes(mode, 0, links, *times, 1, owner.uid, owner.gid)

    @property
    def label(self) -> bytes:
        return self.home.name

    def setattr(self, mode: int, uid: int, gid: int, caller: tree.Caller) -> None:
        if mode & ~0o777:
            raise PermissionError(errno.EPERM, "only the bits of mode 0777 can be kept")
        owner = self._settings.permissions.given(uid, gid, mode, self.owner(), caller)
        self.home.give(owner)

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        self.check()
        if name in NAMESPACE:
            return ControlFile(self, NAMESPACE[name])
        if name == _LINK:
            return NamespaceLink(self)
        if name in self._settings.views:
            return self._view(name).node(self._settings.views[name])
        return super().lookup(name, caller)

    def _view(self, name: bytes) -> views.View:
        closed = self._settings.permissions.dmask
        writable, steady = name == _WRITABLE_VIEW, _STEADY_LEVELS[name]
        return views.View(self.key, self.enter, self.of_file, closed, writable, steady)

    def of_file(self, mode: int) -> tuple[int, int, int]:
        """Permission bits, user and group ID that a file shows whose own bits are `mode`."""
        return self._settings.permissions.of_file(mode, self.owner())

    def list(self) -> list[bytes]:
        self.check()
        return [*NAMESPACE, _LINK, *self._settings.views]

    def check(self) -> None:
        self.home.check(self.namespace)

    def show(self, row: Row) -> bytes:
        """The content of one of the files.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        if row.fixed:
            self.check()
            return row.fixed(self.namespace)
        assert row.live
        may_block()
        # While it is held, its inode number cannot become another's.
        with self._held() as fd:
            return row.live(self.namespace, fd)

    def list_tasks(self, row: Row, viewer: Viewer) -> bytes:
        """The tasks of one of the files that somebody may know of, one a line.

        Raises:
            OSError: ENOENT if the namespace cannot be found any more.
        """
        assert row.tasks
        may_block()
        with self._held():
            found = row.tasks(self.namespace.link)
        return b"".join(b"%d\n" % task for task in found if viewer.sees(task))

    def enter(self) -> None:
        """Move the calling thread, inside `visit()`, into the namespace.

        Raises:
            OSError: ENOENT if it cannot be found any more.
        """
        with self._held() as fd:
            linux.setns(fd, linux.CLONE_NEWNET)

    def write(self, row: Row, data: bytes) -> None:
        """Carry out what was written to one of the files."""
        assert row.write
        may_block()
        with self._held() as fd:
            row.write(fd, data)

    @contextmanager
    def _held(self) -> Iterator[int]:
        fd = self.home.open(self.namespace)
        try:
            yield fd
        finally:
            os.close(fd)


class ControlFile(tree.File):
    """A file of the table, for one namespace."""

    def __init__(self, directory: NamespaceDirectory, row: Row) -> None:
        self._directory = directory
        self._row = row
        self.key = (directory.key, row.name)
        self.label = row.name
        self.writable = row.write is not None

    def attributes(self) -> tree.Attributes:
        mode, uid, gid = self._directory.of_file(self._row.mode)
        mode |= stat.S_IFREG
        if self._row.fixed:
            return tree.Attributes(mode, len(self._row.fixed(self._directory.namespace)))
        bound = self._row.bound or (lambda: len(self._directory.show(self._row)))
        return tree.Attributes(mode, self.size(bound), seconds=0, uid=uid, gid=gid)

    def open(self, flags: int, caller: tree.Caller) -> tree.Handle:
        directory = self._directory
        if self._row.guarded and not has(caller, CAP_SYS_PTRACE):
            raise PermissionError(errno.EACCES, "that takes CAP_SYS_PTRACE", self.label)
        take = partial(directory.show, self._row)
        if self._row.tasks:
            may_block()
            take = partial(directory.list_tasks, self._row, Viewer(caller))
        run = partial(directory.write, self._row) if self.writable else None
        return tree.Snapshot(flags, take, directory.check, run)


class NamespaceLink(tree.Link):
    """`ns`: leads to the namespace file, for nsenter(1) and setns(2)."""

    def __init__(self, directory: NamespaceDirectory) -> None:
        self._directory = directory
        self.key = (directory.key, _LINK)

    def text(self) -> bytes:
        self._directory.check()
        return self._directory.home.path()

    def target(self, caller: tree.Caller) -> bytes:
        if not self._directory.home.public and not has(caller, CAP_SYS_PTRACE):
            raise PermissionError(errno.EACCES, "that takes CAP_SYS_PTRACE", _LINK)
        return self.text()


class Directories:
    """The directories of the namespaces that the adapter, and so the kernel, knows.

    The first name under which a namespace is found has the namespace's inode number as node
    ID. A second name of it, while the first stands, is a directory of its own, and so is the
    one below `unnamed`: a directory that the kernel knows in one place and finds in another is
    ESTALE there during a rename(2) from the one to the other.

    Args:
        settings: what is the same in each.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_key: WeakValueDictionary[object, NamespaceDirectory] = WeakValueDictionary()
        self._by_name: WeakValueDictionary[bytes, NamespaceDirectory] = WeakValueDictionary()
        # Used by the event loop, and by workers.
        self._lock = threading.Lock()

    def named(self, name: bytes) -> NamespaceDirectory | None:
        """The directory under a name, if what stands there has not changed.

        Raises:
            OSError: ENOENT.
        """
        known = self._by_name.get(name)
        if known is None or not isinstance(known.home, Name) or known.home.name != name:
            return None
        return known if known.home.unchanged() else None

    def under_name(self, namespace: Namespace, home: Name) -> NamespaceDirectory:
        """The directory of a namespace that was found under a name."""
        gone = None
        while True:
            with self._lock:
                node = self._node(namespace, home, _FIRST)
                first = node.home
                if not isinstance(first, Name) or first.name == home.name or first is gone:
                    return self._found(node, home)
            # Not with the lock: it may be a link, which takes long to follow.
            if _stands(first, namespace):
                with self._lock:
                    return self._found(self._node(namespace, home, home.name), home)
            gone = first

    def _found(self, node: NamespaceDirectory, home: Name) -> NamespaceDirectory:
        node.home = home
        self._by_name[home.name] = node
        return node

    def unnamed(self, namespace: Namespace, home: Unnamed) -> NamespaceDirectory:
        """The directory of a namespace that was found to have no name."""
        with self._lock:
            node = self._node(namespace, home, _NO_NAME)
            node.home = home
            return node

    def moved(self, old: bytes, home: Name) -> None:
        """Take note that a name is another now, for those who have its directory open."""
        with self._lock:
            node = self._by_name.get(old)
            if node and isinstance(node.home, Name) and node.home.name == old:
                node.home = home
                self._by_name[home.name] = node

    def removed(self, name: bytes) -> None:
        """Take note that the kernel has removed the directory under a name.

        It lets nobody into that again. If the namespace is alive and is found elsewhere, and
        somebody has the old directory open, it needs a new one.
        """
        with self._lock:
            node = self._by_name.get(name)
            if node and isinstance(node.home, Name) and node.home.name == name:
                self._by_name.pop(name)
                self._by_key.pop((node.namespace.id, node.place), None)

    def _node(self, namespace: Namespace, home: Home, place: bytes) -> NamespaceDirectory:
        key = namespace.id, place
        node = self._by_key.get(key)
        if node is None:
            node = self._by_key[key] = NamespaceDirectory(
                namespace, home, self._settings, place
            )
        return node


def _stands(home: Home, namespace: Namespace) -> bool:
    try:
        home.check(namespace)
    except OSError:
        return False
    return True
