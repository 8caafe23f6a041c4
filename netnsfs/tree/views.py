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
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from netnsfs.jobs import may_block, on_own_thread, restoring_namespace
from netnsfs.node import (
    ENTRY_TIMEOUT,
    USUAL_SIZE,
    Attributes,
    Caller,
    Directory,
    File,
    Handle,
    Link,
    Node,
    gone_error,
    opened_for_writing,
    require_read_only,
)
from netnsfs.tree.open_files import OpenFile, OpenFiles, open_file

T = TypeVar("T")

HEAD = 1 << 16

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class View:
    """Where a view is looked at from.

    Attributes:
        key: of the namespace's directory.
        enter: moves the calling thread into the namespace.
        file_attributes: from the kernel's permission bits of a file to those that it has here,
            and the user and group ID of its owner.
        opened: where its open files are kept.
        is_reachable: whether the namespace is still to be seen where the view was found.
        require_may_open: refuses a caller who may not open (and write) a file here, whatever
            its mode says.
        dmask: permission bits that directories lack.
        writable: whether files that are writable in procfs are so here.
        fixed_levels: how many levels have names that come and go with kernel modules only,
            and not with interfaces. The kernel may keep those names. One that is gone is
            noticed when its file is opened.
    """

    key: Hashable
    enter: Callable[[], None]
    file_attributes: Callable[[int], tuple[int, int, int]]
    opened: OpenFiles
    is_reachable: Callable[[], bool]
    require_may_open: Callable[[Caller, bool], None]
    dmask: int
    writable: bool
    fixed_levels: int

    def find_node(self, path: bytes, level: int = 0) -> Node:
        """A directory, file or link of procfs, as seen in the namespace.

        Raises:
            OSError: ENOENT if the kernel has none.
        """
        return self.make_node(path, self.call_inside(os.lstat, path).st_mode, level)

    def make_node(self, path: bytes, mode: int, level: int) -> Node:
        """What has a mode."""
        if stat.S_ISDIR(mode):
            return _Directory(self, path, mode, level)
        if stat.S_ISLNK(mode):
            return _Link(self, path)
        return _File(self, path, mode)

    def call_inside(self, function: Callable[..., T], *args: object) -> T:
        """Call something on a thread that is in the namespace."""

        def run() -> T:
            with restoring_namespace():
                self.enter()
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


class _Directory(Directory):
    def __init__(self, view: View, path: bytes, mode: int, level: int) -> None:
        self.key = (view.key, path)
        self.entry_timeout = ENTRY_TIMEOUT if level < view.fixed_levels else 0
        self._view = view
        self._path = path
        self._mode = mode
        self._level = level
        self._listed: dict[bytes, int] = {}

    def getattr_cached(self) -> Attributes:
        return Attributes(self._mode & ~0o222 & ~self._view.dmask)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._view.find_node(self._path + b"/" + name, self._level + 1)

    def readdir(self) -> list[bytes]:
        # With their modes, or each would take a visit of its own.
        self._listed = self._view.call_inside(_modes_in, self._path)
        return [*self._listed]

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        mode = self._listed.get(name)
        if mode is None:
            return self.lookup(name, caller)
        return self._view.make_node(self._path + b"/" + name, mode, self._level + 1)


class _Link(Link):
    def __init__(self, view: View, path: bytes) -> None:
        self.key = (view.key, path)
        self._view = view
        self._path = path

    def target_path(self) -> bytes:
        text: bytes = self._view.call_inside(os.readlink, self._path)
        return text


class _File(File):
    def __init__(self, view: View, path: bytes, mode: int) -> None:
        self.key = (view.key, path)
        self.label = os.path.basename(path)
        self.writable = view.writable and bool(mode & 0o222)
        self._view = view
        self._path = path
        self._mode = mode

    def getattr_cached(self) -> Attributes:
        size = USUAL_SIZE
        bits = stat.S_IMODE(self._mode) & (0o777 if self.writable else 0o555)
        mode, uid, gid = self._view.file_attributes(bits)
        return Attributes(stat.S_IFREG | mode, size, attr_timeout=0, uid=uid, gid=gid)

    def open(self, flags: int, caller: Caller) -> Handle:
        if not self.writable:
            require_read_only(flags)
        self._view.require_may_open(caller, opened_for_writing(flags))
        accepted = os.O_ACCMODE | os.O_TRUNC
        opened = self._view.opened
        since = opened.rounds
        try:
            file = self._view.call_inside(open_file, self._path, flags & accepted)
            handle = _Open(self._view, file, flags)
        except FileNotFoundError:
            # The kernel may have kept the name. At ESTALE it looks it up again, without its
            # cache (fs/namei.c, LOOKUP_REVAL).
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        opened.add(handle, since)
        return handle


class _Open(OpenFile):
    """A file of procfs that a user has open."""

    def __init__(self, view: View, file: io.FileIO, flags: int) -> None:
        super().__init__(view.key, view.is_reachable, file)
        self._append = bool(flags & os.O_APPEND)
        self._unread = True
        self._head = b""
        self.length = 0
        self.content: bytes | None = b""
        if file.readable():
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        self._head = self._read_fully(HEAD, 0)
        self.length = len(self._head)
        while self.length >= HEAD and (chunk := self._read_fully(_CHUNK, self.length)):
            self.length += len(chunk)
        self.content = self._head if self.length < HEAD else None

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
        written = os.pwrite(self.file.fileno(), data, 0 if self._append else offset)
        self.require_not_revoked()
        return written
