"""What the mount shows.

NAMESPACE is the table of the files in a namespace's directory. A new file is one row here
and one function where its knowledge lives.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from netnsfs import linux, members, tree
from netnsfs.netns import Names, Namespace
from netnsfs.workers import may_block

RESERVED = b".netnsfs"

_DIRECTORY = stat.S_IFDIR | 0o755


@dataclass(frozen=True, slots=True)
class Row:
    """A read-only control file.

    Attributes:
        name: of the file.
        show: its content for a namespace.
        bound: for a file whose length changes, an upper bound in bytes.
    """

    name: bytes
    show: Callable[[Namespace], bytes]
    bound: Callable[[], int] | None = None


def _lines(numbers: list[int]) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


NAMESPACE = {
    row.name: row
    for row in (
        Row(b"inode", lambda ns: b"%d\n" % ns.inode),
        Row(b"id", lambda ns: b"%d\n" % ns.id),
        Row(b"pids", lambda ns: _lines(members.pids(ns.link)), members.listing_size),
        Row(b"tids", lambda ns: _lines(members.tids(ns.link)), members.listing_size),
    )
}

_LINK = b"ns"


class NamespaceDirectory(tree.Directory):
    """The directory of a live namespace under one of its names.

    The first name that is looked up gets the namespace's inode number as node ID; a second
    name of the same namespace is a directory of its own.
    """

    lasting = True

    def __init__(self, names: Names, name: bytes, namespace: Namespace, first: bool) -> None:
        self._names = names
        self.name = name
        self.namespace = namespace
        self.mark: linux.Stat | None = None
        self.key = (namespace.id,) if first else (namespace.id, name)
        self.number = namespace.inode if first else 0
        self.generation = namespace.id

    def attributes(self) -> tree.Attributes:
        ns = self.namespace
        return tree.Attributes(_DIRECTORY, 0, 2, ns.atime_ns, ns.mtime_ns, ns.ctime_ns)

    def lookup(self, name: bytes) -> tree.Node:
        self.check()
        if name in NAMESPACE:
            return ControlFile(self, NAMESPACE[name])
        if name == _LINK:
            return NamespaceLink(self)
        return super().lookup(name)

    def list(self) -> list[bytes]:
        self.check()
        return [*NAMESPACE, _LINK]

    def check(self) -> None:
        """Make sure that the name still stands for this namespace.

        Raises:
            OSError: ENOENT.
        """
        entry = self._names.entry(self.name)
        if entry.kind == "mount" and entry.mark == self.mark:
            return
        found = self._names.identify(self.name)
        if found is None or found.id != self.namespace.id:
            raise FileNotFoundError(errno.ENOENT, "the namespace has no such name", self.name)

    def show(self, row: Row) -> bytes:
        """The content of one of the files, with the namespace held while it is made.

        Raises:
            OSError: ENOENT if the name does not stand for the namespace any more.
        """
        if row.bound is None:
            self.check()
            return row.show(self.namespace)
        may_block()
        # Held, the namespace's inode number cannot become another's during the scan.
        held = self._names.open(self.name)
        try:
            self.check()
            return row.show(self.namespace)
        finally:
            os.close(held)

    def target(self) -> bytes:
        """The path of the namespace file."""
        return self._names.file(self.name)


class ControlFile(tree.File):
    """A file of the table, for one namespace."""

    def __init__(self, directory: NamespaceDirectory, row: Row) -> None:
        self._directory = directory
        self._row = row
        self._snapshots = tree.Snapshots()
        self.key = (directory.key, row.name)

    def attributes(self) -> tree.Attributes:
        if self._row.bound is None:
            size = len(self._row.show(self._directory.namespace))
            return tree.Attributes(stat.S_IFREG | 0o444, size)
        size = self._snapshots.size(self._row.bound)
        return tree.Attributes(stat.S_IFREG | 0o444, size, seconds=0)

    def open(self, flags: int) -> tree.Handle:
        tree.refuse_writing(flags)
        directory = self._directory
        snapshot = tree.Snapshot(lambda: directory.show(self._row), directory.check)
        self._snapshots.add(snapshot)
        return snapshot


class NamespaceLink(tree.Link):
    """`ns`: leads to the namespace file, for nsenter(1) and setns(2)."""

    def __init__(self, directory: NamespaceDirectory) -> None:
        self._directory = directory
        self.key = (directory.key, _LINK)

    def target(self) -> bytes:
        return self._directory.target()


class StaleDirectory(tree.Directory):
    """A name that stands for no network namespace: empty, and closed by its mode."""

    def __init__(self, name: bytes, mark: linux.Stat) -> None:
        self.key = (name, mark)

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFDIR, links=2)


class Corner(tree.Directory):
    """`.netnsfs`: the file system's own corner."""

    key = RESERVED
    lasting = True

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFDIR | 0o555)


class Root(tree.Directory):
    """The mount point: one directory for each name.

    Directories are remembered only while the adapter, and so the kernel, knows them.
    """

    key = b"/"

    def __init__(self, names: Names) -> None:
        self._names = names
        self._corner = Corner()
        self._by_name: WeakValueDictionary[bytes, NamespaceDirectory] = WeakValueDictionary()
        self._by_key: WeakValueDictionary[object, NamespaceDirectory] = WeakValueDictionary()
        # Looked up on the event loop, and on workers where a name is a link or new.
        self._lock = threading.Lock()

    def attributes(self) -> tree.Attributes:
        with suppress(FileNotFoundError):
            run = os.stat(self._names.path)
            times = run.st_atime_ns, run.st_mtime_ns, run.st_ctime_ns
            return tree.Attributes(_DIRECTORY, 0, 1, *times, seconds=1)
        return tree.Attributes(_DIRECTORY, seconds=1)

    def list(self) -> list[bytes]:
        return [RESERVED, *(name for name in self._names.list() if name != RESERVED)]

    def lookup(self, name: bytes) -> tree.Node:
        if name == RESERVED:
            return self._corner
        entry = self._names.entry(name)
        known = self._by_name.get(name)
        if known is not None and known.mark == entry.mark and entry.kind == "mount":
            return known
        namespace = self._names.identify(name)
        if namespace is None:
            return StaleDirectory(name, entry.mark)
        return self._directory(name, namespace, entry.mark)

    def mkdir(self, name: bytes) -> tree.Node:
        if name == RESERVED:
            raise FileExistsError(errno.EEXIST, "the name is netnsfs's own", name)
        namespace = self._names.create(name)
        return self._directory(name, namespace, self._names.entry(name).mark)

    def rmdir(self, name: bytes) -> None:
        if name == RESERVED:
            raise PermissionError(errno.EPERM, "the name is netnsfs's own", name)
        self._names.remove(name)

    def _directory(
        self, name: bytes, namespace: Namespace, mark: linux.Stat
    ) -> NamespaceDirectory:
        with self._lock:
            node = self._by_key.get((namespace.id,))
            if node is None:
                node = NamespaceDirectory(self._names, name, namespace, first=True)
            elif node.name != name:
                if self._stands(node):
                    node = self._by_key.get((namespace.id, name)) or NamespaceDirectory(
                        self._names, name, namespace, first=False
                    )
                else:
                    node.name = name
            node.mark = mark
            self._by_key[node.key] = self._by_name[name] = node
            return node

    def _stands(self, node: NamespaceDirectory) -> bool:
        try:
            return self._names.entry(node.name).mark == node.mark
        except FileNotFoundError:
            return False
