"""/proc/net and /proc/sys/net of a namespace, as directories.

What procfs shows there depends on the thread that looks: /proc/thread-self/net on the
namespace that it is in (/proc/net on that of the process's first thread), /proc/sys/net
likewise. So names and files are looked up and opened by a worker that is in the namespace
for that moment. An open file of /proc/net keeps its namespace, one of /proc/sys/net does not;
both are read and written from anywhere.

Nothing is kept open but for a user who has the same file open: a descriptor more, and a
removed namespace would live on.

Content up to HEAD bytes is read at open, so that it is one snapshot. What is longer streams
through the descriptor and is never in memory as a whole; it is read once at open to know its
length, without which sendfile(2) does not find its end.
"""

import errno
import io
import os
import stat
from collections.abc import Callable, Hashable
from typing import TypeVar

from netnsfs import tree
from netnsfs.workers import may_block, on_own_thread, visit

T = TypeVar("T")

HEAD = 1 << 16

# What sysfs says of files whose size it does not know.
_USUAL_SIZE = 4096
_CHUNK = 1 << 20

Enter = Callable[[], None]


def view(key: Hashable, path: bytes, enter: Enter) -> tree.Node:
    """A directory of procfs as seen in a namespace.

    Args:
        key: of the namespace's directory.
        path: of the directory.
        enter: moves the calling thread into the namespace.

    Raises:
        OSError: ENOENT if the kernel has no such directory.
    """
    return _node(key, path, enter)


def _inside(enter: Enter, function: Callable[..., T], *args: object) -> T:
    def run() -> T:
        with visit():
            enter()
            return function(*args)

    may_block()
    return on_own_thread(run)


def _node(key: Hashable, path: bytes, enter: Enter) -> tree.Node:
    found = _inside(enter, os.lstat, path)
    if stat.S_ISDIR(found.st_mode):
        return _Directory(key, path, enter, found)
    if stat.S_ISLNK(found.st_mode):
        return _Link(key, path, enter)
    return _File(key, path, enter, found)


class _Directory(tree.Directory):
    def __init__(self, key: Hashable, path: bytes, enter: Enter, found: os.stat_result) -> None:
        self.key = (key, path)
        self._parent_key = key
        self._path = path
        self._enter = enter
        self._found = found

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(self._found.st_mode & ~0o222)

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        return _node(self._parent_key, self._path + b"/" + name, self._enter)

    def list(self) -> list[bytes]:
        return _inside(self._enter, os.listdir, self._path)


class _Link(tree.Link):
    def __init__(self, key: Hashable, path: bytes, enter: Enter) -> None:
        self.key = (key, path)
        self._path = path
        self._enter = enter

    def target(self) -> bytes:
        target: bytes = _inside(self._enter, os.readlink, self._path)
        return target


class _File(tree.File):
    def __init__(self, key: Hashable, path: bytes, enter: Enter, found: os.stat_result) -> None:
        self.key = (key, path)
        self.label = os.path.basename(path)
        self.writable = bool(found.st_mode & 0o222)
        self._path = path
        self._enter = enter
        self._mode = found.st_mode

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(self._mode, self.size(lambda: _USUAL_SIZE), seconds=0)

    def open(self, flags: int) -> tree.Handle:
        if not self.writable:
            tree.refuse_writing(flags)
        accepted = os.O_ACCMODE | os.O_TRUNC
        return _Open(_inside(self._enter, _open, self._path, flags & accepted), flags)


def _open(path: bytes, flags: int) -> io.FileIO:
    mode = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "r+"}.get(flags & os.O_ACCMODE)
    if mode is None:
        raise OSError(errno.EINVAL, "neither for reading nor for writing")

    def opener(path: str, _: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)

    return io.FileIO(os.fsdecode(path), mode, opener=opener)


class _Open:
    """A file of procfs that a user has open. Closed at the latest when nobody refers to it."""

    def __init__(self, file: io.FileIO, flags: int) -> None:
        self._file = file
        self._append = bool(flags & os.O_APPEND)
        self._unread = True
        self._head = b""
        self.length = 0
        if file.readable():
            self._take()

    def _take(self) -> None:
        self._head = self._pread(HEAD, 0)
        self.length = len(self._head)
        while self.length >= HEAD and (chunk := self._pread(_CHUNK, self.length)):
            self.length += len(chunk)

    def read(self, size: int, offset: int) -> bytes:
        """See `tree.Handle.read`."""
        if offset == 0:
            if not self._unread:
                may_block()
                self._take()
            self._unread = False
        if self.length < HEAD or offset + size <= HEAD:
            return self._head[offset : offset + size]
        may_block()
        return self._pread(size, offset)

    def _pread(self, size: int, offset: int) -> bytes:
        # procfs gives what fits a page; to FUSE, less than asked for is the end.
        parts = []
        try:
            while size and (part := os.pread(self._file.fileno(), size, offset)):
                parts.append(part)
                size -= len(part)
                offset += len(part)
        except FileNotFoundError as error:
            # An open sysctl, whose namespace or interface is gone. A write that gets it may
            # have asked for what there is not.
            raise tree.gone() from error
        return b"".join(parts)

    def write(self, data: bytes, offset: int) -> int:
        """See `tree.Handle.write`. The kernel decides, as on procfs."""
        may_block()
        if not self._file.writable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # The end of a file of procfs, whose size is 0, is its start.
        return os.pwrite(self._file.fileno(), data, 0 if self._append else offset)

    def close(self) -> None:
        """See `tree.Handle.close`."""
        self._file.close()
