"""What procfs (`views`) and sysfs (`sysfs`) have in common where a namespace shows them.

Directories, links and files are those of the kernel, with the owner of the namespace, and the
kernel reads and writes them. How a path is looked up and opened differs, and so does what an
open file does.
"""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from netnsfs.node import (
    USUAL_SIZE,
    Attributes,
    Caller,
    Directory,
    File,
    Handle,
    Link,
    Node,
    opened_for_writing,
    require_read_only,
)
from netnsfs.tree.access import NamespaceAccess
from netnsfs.tree.open_files import ClosableRevocable


class OpenKernelFile(Handle, ClosableRevocable, Protocol):
    """An open file of either."""


@dataclass(frozen=True, slots=True)
class KernelTree(ABC):
    """A part of procfs or sysfs, as it is for one namespace.

    Attributes:
        key: with a path, it distinguishes a node from all others.
        access: to the namespace.
    """

    key: Hashable
    access: NamespaceAccess

    @abstractmethod
    def find_node(self, path: bytes) -> Node:
        """A directory, file or link.

        Raises:
            OSError: ENOENT if the kernel has none.
        """

    @abstractmethod
    def readdir(self, path: bytes) -> list[bytes]:
        """What is in a directory."""

    @abstractmethod
    def readlink(self, path: bytes) -> bytes:
        """What a link points to."""

    @abstractmethod
    def is_writable(self, mode: int) -> bool:
        """Whether a file that has that mode in the kernel's tree can be written here."""

    @abstractmethod
    def is_delegated(self, path: bytes) -> bool:
        """Whether an owner of the namespace may write a file: see `delegation`."""

    @abstractmethod
    def open(self, path: bytes, flags: int, caller: Caller) -> OpenKernelFile:
        """Open a file."""


class KernelDirectory(Directory):
    """A directory of the kernel's."""

    no_new_file = "the kernel has no such file"

    def __init__(self, tree: KernelTree, path: bytes, mode: int) -> None:
        self.key = (tree.key, path)
        self._tree = tree
        self._path = path
        self._mode = mode

    def getattr_cached(self) -> Attributes:
        return Attributes(self._mode & ~0o222 & ~self._tree.access.permissions.dmask)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._tree.find_node(self._path + b"/" + name)

    def readdir(self) -> list[bytes]:
        return self._tree.readdir(self._path)


class KernelLink(Link):
    """A symbolic link of the kernel's."""

    def __init__(self, tree: KernelTree, path: bytes) -> None:
        self.key = (tree.key, path)
        self._tree = tree
        self._path = path

    def target_path(self) -> bytes:
        return self._tree.readlink(self._path)


class KernelFile(File):
    """A file of the kernel's."""

    def __init__(self, tree: KernelTree, path: bytes, mode: int) -> None:
        self.key = (tree.key, path)
        self.label = os.path.basename(path)
        self.writable = tree.is_writable(mode)
        self._tree = tree
        self._path = path
        self._mode = mode

    def getattr_cached(self) -> Attributes:
        bits = stat.S_IMODE(self._mode) & (0o777 if self.writable else 0o555)
        delegated = self._tree.is_delegated(self._path)
        mode, uid, gid = self._tree.access.file_attributes(bits, delegated)
        return Attributes(stat.S_IFREG | mode, USUAL_SIZE, attr_timeout=0, uid=uid, gid=gid)

    def open(self, flags: int, caller: Caller) -> Handle:
        if not self.writable:
            require_read_only(flags)
        access = self._tree.access
        access.require_may_open(caller, opened_for_writing(flags))
        since = access.opened.rounds
        handle = self._tree.open(self._path, flags, caller)
        access.opened.add(handle, since)
        return handle
