"""A namespace's directory.

NAMESPACE is the table of its files. A new file is one row here and one function where its
knowledge lives.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

from netnsfs import holders, linux, members, nsid, tree, views
from netnsfs.netns import Names, Namespace, namespace_of, nsfs_device
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
        bound: for live content, an upper bound of its length; without one, stat(2) makes
            the content to tell its length.
        write: carries out a command, for a descriptor of the namespace.
    """

    name: bytes
    mode: int = 0o444
    fixed: Callable[[Namespace], bytes] | None = None
    live: Show | None = None
    bound: Callable[[], int] | None = None
    write: Callable[[int, bytes], None] | None = None


def _lines(numbers: list[int]) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


NAMESPACE = {
    row.name: row
    for row in (
        Row(b"inode", fixed=lambda ns: b"%d\n" % ns.inode),
        Row(b"id", fixed=lambda ns: b"%d\n" % ns.id),
        Row(
            b"pids",
            live=lambda ns, fd: _lines(members.pids(ns.link)),
            bound=members.listing_size,
        ),
        Row(
            b"tids",
            live=lambda ns, fd: _lines(members.tids(ns.link)),
            bound=members.listing_size,
        ),
        Row(
            b"holders",
            mode=0o400,
            live=lambda ns, fd: holders.listing(ns.inode),
            bound=holders.listing_size,
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


class Name:
    """A name in the run directory.

    Args:
        names: the directory.
        name: the name.
        mark: what stood under it when the namespace was found there.
    """

    def __init__(self, names: Names, name: bytes, mark: linux.Stat) -> None:
        self._names = names
        self._path = names.file(name)
        self._mounted = mark.dev == nsfs_device()
        self.name = name
        self.mark = mark

    def unchanged(self) -> bool:
        """Whether the same namespace file is still mounted there.

        Raises:
            OSError: ENOENT.
        """
        return linux.raw_stat(self._path) == self.mark and self._mounted

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


class Unnamed:
    """Held by something else than a name.

    Args:
        names: for `Names.avoid`.
        holder: one thing that holds it. Another takes its place when it lets go.
    """

    def __init__(self, names: Names, holder: holders.Holder) -> None:
        self._names = names
        self._holder = holder

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
        shown: Mapping[bytes, bytes],
        place: bytes,
    ) -> None:
        self.namespace = namespace
        self.home = home
        self._views = shown
        self.place = place
        self.number = namespace.inode if place == _FIRST else 0
        self.generation = next(_generations)
        self.key = (namespace.id, self.generation)

    def attributes(self) -> tree.Attributes:
        ns = self.namespace
        mode, links = stat.S_IFDIR | 0o755, 2 + len(self._views)
        return tree.Attributes(mode, 0, links, ns.atime_ns, ns.mtime_ns, ns.ctime_ns)

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        self.check()
        if name in NAMESPACE:
            return ControlFile(self, NAMESPACE[name])
        if name == _LINK:
            return NamespaceLink(self)
        if name in self._views:
            return views.view(self.key, self._views[name], self.enter)
        return super().lookup(name, caller)

    def list(self) -> list[bytes]:
        self.check()
        return [*NAMESPACE, _LINK, *self._views]

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
        mode = stat.S_IFREG | self._row.mode
        if self._row.fixed:
            return tree.Attributes(mode, len(self._row.fixed(self._directory.namespace)))
        bound = self._row.bound or (lambda: len(self._directory.show(self._row)))
        return tree.Attributes(mode, self.size(bound), seconds=0)

    def open(self, flags: int) -> tree.Handle:
        directory = self._directory
        take = partial(directory.show, self._row)
        run = partial(directory.write, self._row) if self.writable else None
        return tree.Snapshot(flags, take, directory.check, run)


class NamespaceLink(tree.Link):
    """`ns`: leads to the namespace file, for nsenter(1) and setns(2)."""

    def __init__(self, directory: NamespaceDirectory) -> None:
        self._directory = directory
        self.key = (directory.key, _LINK)

    def target(self) -> bytes:
        self._directory.check()
        return self._directory.home.path()


class Directories:
    """The directories of the namespaces that the adapter, and so the kernel, knows.

    The first name under which a namespace is found has the namespace's inode number as node
    ID. A second name of it, while the first stands, is a directory of its own, and so is the
    one below `unnamed`: a directory that the kernel knows in one place and finds in another is
    ESTALE there during a rename(2) from the one to the other.

    Args:
        shown: names and paths of the views that each directory has.
    """

    def __init__(self, shown: Mapping[bytes, bytes]) -> None:
        self._views = shown
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
        with self._lock:
            node = self._node(namespace, home, _FIRST)
            other = isinstance(node.home, Name) and node.home.name != home.name
            if other and _stands(node):
                node = self._node(namespace, home, home.name)
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
            node = self._by_key[key] = NamespaceDirectory(namespace, home, self._views, place)
        return node


def _stands(node: NamespaceDirectory) -> bool:
    try:
        node.check()
    except OSError:
        return False
    return True
