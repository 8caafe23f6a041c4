"""/proc/net and /proc/sys/net of a namespace, as directories.

What procfs shows there depends on the thread that looks: /proc/thread-self/net on the
namespace that it is in (/proc/net on that of the process's first thread), /proc/sys/net
likewise. So names and files are looked up and opened by a worker that is in the namespace
for that moment. An open file of /proc/net keeps its namespace, one of /proc/sys/net does not;
both are read and written from anywhere.

Content up to HEAD bytes is read at open, so that it is one snapshot. What is longer streams
through the descriptor and is never in memory as a whole; it is read once at open to know its
length, without which sendfile(2) does not find its end.
"""

import errno
import io
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from netnsfs.jobs import may_block, on_own_thread, restoring_namespace
from netnsfs.node import ENTRY_TIMEOUT, Caller, Node, gone_error
from netnsfs.tree.delegation import check_sysctl_value, is_sysctl_delegated
from netnsfs.tree.kernel_tree import (
    KernelDirectory,
    KernelFile,
    KernelLink,
    KernelTree,
    OpenKernelFile,
)
from netnsfs.tree.open_files import OpenFile, open_file

T = TypeVar("T")

HEAD = 1 << 16

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class View(KernelTree):
    """A directory of procfs, as a thread inside of the namespace sees it.

    Attributes:
        writable: whether files that are writable in procfs are so here.
        fixed_levels: how many levels have names that come and go with kernel modules only,
            and not with interfaces. The kernel may keep those names. One that is gone is
            noticed when its file is opened.
    """

    writable: bool
    fixed_levels: int

    def find_node(self, path: bytes, level: int = 0) -> Node:
        """See `KernelTree.find_node`."""
        return self.make_node(path, self.call_inside(os.lstat, path).st_mode, level)

    def make_node(self, path: bytes, mode: int, level: int) -> Node:
        """What has a mode."""
        if stat.S_ISDIR(mode):
            return _ProcDirectory(self, path, mode, level)
        if stat.S_ISLNK(mode):
            return KernelLink(self, path)
        return KernelFile(self, path, mode)

    def readdir(self, path: bytes) -> list[bytes]:
        """See `KernelTree.readdir`."""
        return [*self.modes_in(path)]

    def modes_in(self, path: bytes) -> dict[bytes, int]:
        """What is in a directory, and with which modes: each would take a visit of its own."""
        return self.call_inside(_modes_in, path)

    def readlink(self, path: bytes) -> bytes:
        """See `KernelTree.readlink`."""
        text: bytes = self.call_inside(os.readlink, path)
        return text

    def is_writable(self, mode: int) -> bool:
        """See `KernelTree.is_writable`."""
        return self.writable and bool(mode & 0o222)

    def is_delegated(self, path: bytes) -> bool:
        """See `KernelTree.is_delegated`."""
        return is_sysctl_delegated(path)

    def open(self, path: bytes, flags: int, caller: Caller) -> OpenKernelFile:
        """See `KernelTree.open`."""
        checked_path = path if caller.uid else None
        try:
            file = self.call_inside(open_file, path, flags & (os.O_ACCMODE | os.O_TRUNC))
            return _OpenProcFile(self, file, flags, checked_path)
        except FileNotFoundError:
            # The kernel may have kept the name. At ESTALE it looks it up again, without its
            # cache (fs/namei.c, LOOKUP_REVAL).
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def call_inside(self, function: Callable[..., T], *args: object) -> T:
        """Call something on a thread that is in the namespace."""

        def run() -> T:
            with restoring_namespace():
                self.access.enter_namespace()
                return function(*args)

        may_block()
        return on_own_thread(run)


def _modes_in(path: bytes) -> dict[bytes, int]:
    modes = {}
    with os.scandir(path) as entries:
        for entry in entries:
            # It may be gone, as an interface is.
            with suppress(FileNotFoundError):
                modes[entry.name] = entry.stat(follow_symlinks=False).st_mode
    return modes


class _ProcDirectory(KernelDirectory):
    _tree: View

    def __init__(self, view: View, path: bytes, mode: int, level: int) -> None:
        super().__init__(view, path, mode)
        self.entry_timeout = ENTRY_TIMEOUT if level < view.fixed_levels else 0
        self._level = level
        self._listed: dict[bytes, int] = {}

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._tree.find_node(self._path + b"/" + name, self._level + 1)

    def readdir(self) -> list[bytes]:
        self._listed = self._tree.modes_in(self._path)
        return [*self._listed]

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        mode = self._listed.get(name)
        if mode is None:
            return self.lookup(name, caller)
        return self._tree.make_node(self._path + b"/" + name, mode, self._level + 1)


class _OpenProcFile(OpenFile):
    """A file of procfs that a user has open.

    Args:
        view: where it was found.
        file: the file.
        flags: of the open(2).
        checked_path: its path, if what is written is checked (`delegation`); None for root.
    """

    def __init__(
        self, view: View, file: io.FileIO, flags: int, checked_path: bytes | None
    ) -> None:
        super().__init__(view.access.key, view.access.is_reachable, file)
        self._checked_path = checked_path
        self._append = bool(flags & os.O_APPEND)
        self._unread = True
        self._head = b""
        self.length = 0
        if file.readable():
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        self._head = self._read_fully(HEAD, 0)
        self.length = len(self._head)
        while self.length >= HEAD and (chunk := self._read_fully(_CHUNK, self.length)):
            self.length += len(chunk)

    def read(self, size: int, offset: int) -> bytes:
        """See `Handle.read`."""
        self.require_not_revoked()
        if offset == 0 and not self._unread:
            may_block()
            self._take_snapshot()
        streams = self.length >= HEAD and offset + size > HEAD
        if streams:
            may_block()
        self._unread &= offset != 0
        if streams:
            return self._read_fully(size, offset)
        return self._head[offset : offset + size]

    def _read_fully(self, size: int, offset: int) -> bytes:
        # One read of procfs gives about a page. For the kernel's FUSE, less than it has asked
        # for is the end of the file.
        parts = []
        try:
            while size and (part := os.pread(self.file.fileno(), size, offset)):
                parts.append(part)
                size -= len(part)
                offset += len(part)
        except FileNotFoundError as error:
            # An open sysctl whose namespace or interface is gone. Not so for a write, where
            # ENOENT may be about the value (a congestion control that does not exist).
            raise gone_error() from error
        self.require_not_revoked()
        return b"".join(parts)

    def write(self, data: bytes, offset: int) -> int:
        """See `Handle.write`. The kernel decides, as on procfs."""
        may_block()
        if not self.file.writable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # The end of a file of procfs, whose size is 0, is its start.
        offset = 0 if self._append else offset
        if self._checked_path:
            check_sysctl_value(self._checked_path, data, offset)
        written = os.pwrite(self.file.fileno(), data, offset)
        self.require_not_revoked()
        return written
