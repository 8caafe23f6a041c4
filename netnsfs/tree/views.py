"""/proc/net and /proc/sys/net of a namespace, as directories.

What procfs shows there depends on the thread that looks: /proc/thread-self/net on the
namespace that it is in (/proc/net on that of the process's first thread), /proc/sys/net
likewise. So names and files are looked up and opened by a worker that is in the namespace
for that moment. An open file of /proc/net keeps its namespace, one of /proc/sys/net does not;
both are read and written from anywhere.

Only what users have open is kept open: any other descriptor would keep a removed namespace
alive. Once the last name of a namespace is removed, what users have open is cut (`OpenFiles`):
it answers ENODEV, and its descriptor leads to /dev/null. Otherwise whoever keeps a file open
would keep the namespace, and read on in what nobody sees any more.

Content up to HEAD bytes is read at open, so that it is one snapshot. What is longer streams
through the descriptor and is never in memory as a whole; it is read once at open to know its
length, without which sendfile(2) does not find its end.
"""

import errno
import io
import os
import stat
import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import WeakSet

from netnsfs.jobs import may_block, on_own_thread, visit
from netnsfs.node import (
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
    refuse_writing,
)

T = TypeVar("T")

HEAD = 1 << 16

_CHUNK = 1 << 20


class OpenFile(Protocol):
    """An open file that answers ENODEV when its namespace is not to be seen any more."""

    @property
    def key(self) -> Hashable:
        """Of the namespace's directory."""

    def is_shown(self) -> bool:
        """Whether the namespace is still to be seen where it was opened.

        Raises:
            OSError: that cannot be told.
        """

    def cut(self, null: int) -> None:
        """Take note that it is not.

        Args:
            null: a descriptor of /dev/null, to take the place of the file's.
        """


class OpenFiles:
    """The open files of all views, and others that are to learn of the end of a namespace."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: WeakSet[OpenFile] = WeakSet()
        self._any = threading.Event()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._null)
        self.rounds = 0

    def add(self, file: "_Open", since: int) -> None:
        """Take an open file in.

        Args:
            file: the file.
            since: how many `rounds` there had been before it was opened.

        Raises:
            OSError: ESTALE if it should have been cut meanwhile.
        """
        # A round of cutting after the open has missed a file that was not in the table yet.
        if self.keep(file) != since and not file.is_shown():
            file.cut(self._null)
            file.close()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def keep(self, file: OpenFile) -> int:
        """Take an open file in that needs no look. How many `rounds` there have been."""
        with self._lock:
            self._files.add(file)
            self._any.set()
            return self.rounds

    def wait_for_any(self) -> None:
        """Wait until there are some, or may be."""
        self._any.wait()

    def cut_hidden(self) -> bool:
        """Cut those whose namespace is not to be seen any more where they were opened.

        Returns:
            False if that could not be told of all.
        """
        with self._lock:
            self.rounds += 1
            files = list(self._files)
            if not files:
                self._any.clear()
        shown: dict[Hashable, bool] = {}
        told = True
        for file in files:
            try:
                if file.key not in shown:
                    shown[file.key] = file.is_shown()
                if not shown[file.key]:
                    file.cut(self._null)
            except OSError:
                told = False
        return told


@dataclass(frozen=True, slots=True)
class View:
    """Where a view is looked at from.

    Attributes:
        key: of the namespace's directory.
        enter: moves the calling thread into the namespace.
        show: from the kernel's permission bits of a file to those that it has here, and the
            user and group ID of its owner.
        opened: where its open files are kept.
        is_shown: whether the namespace is still to be seen where the view was found.
        refuse_opener: refuses a caller who may not open (and write) a file here, whatever its
            mode says.
        closed: permission bits that directories lack.
        writable: whether files that are writable in procfs are so here.
        steady: how many levels have names that come and go with kernel modules only, and not
            with interfaces. The kernel may keep those names. One that is gone is noticed when
            its file is opened.
    """

    key: Hashable
    enter: Callable[[], None]
    show: Callable[[int], tuple[int, int, int]]
    opened: OpenFiles
    is_shown: Callable[[], bool]
    refuse_opener: Callable[[Caller, bool], None]
    closed: int
    writable: bool
    steady: int

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
            with visit():
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
        self.lasting = level < view.steady
        self._view = view
        self._path = path
        self._mode = mode
        self._level = level
        self._listed: dict[bytes, int] = {}

    def attributes(self) -> Attributes:
        return Attributes(self._mode & ~0o222 & ~self._view.closed)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._view.find_node(self._path + b"/" + name, self._level + 1)

    def list_names(self) -> list[bytes]:
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

    def target_text(self) -> bytes:
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

    def attributes(self) -> Attributes:
        size = self.size_to_show(lambda: USUAL_SIZE)
        bits = stat.S_IMODE(self._mode) & (0o777 if self.writable else 0o555)
        mode, uid, gid = self._view.show(bits)
        return Attributes(stat.S_IFREG | mode, size, seconds=0, uid=uid, gid=gid)

    def open(self, flags: int, caller: Caller) -> Handle:
        if not self.writable:
            refuse_writing(flags)
        self._view.refuse_opener(caller, opened_for_writing(flags))
        accepted = os.O_ACCMODE | os.O_TRUNC
        opened = self._view.opened
        since = opened.rounds
        try:
            file = self._view.call_inside(_open_file, self._path, flags & accepted)
            handle = _Open(self._view, file, flags)
        except FileNotFoundError:
            # The kernel may have kept the name. At ESTALE it looks it up again, without its
            # cache (fs/namei.c, LOOKUP_REVAL).
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        opened.add(handle, since)
        return handle


def _open_file(path: bytes, flags: int) -> io.FileIO:
    mode = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "r+"}.get(flags & os.O_ACCMODE)
    if mode is None:
        raise OSError(errno.EINVAL, "neither for reading nor for writing")

    def opener(path: str, _: int) -> int:
        # O_NONBLOCK, because nothing may wait in read(2) without a limit.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)

    return io.FileIO(os.fsdecode(path), mode, opener=opener)


class _Open:
    """A file of procfs that a user has open. Closed at the latest when nobody refers to it."""

    def __init__(self, view: View, file: io.FileIO, flags: int) -> None:
        self.key = view.key
        self.is_shown = view.is_shown
        self._file = file
        self._closing = threading.Lock()
        self._is_cut = False
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
        self._refuse_if_cut()
        if offset == 0:
            if not self._unread:
                may_block()
                self._take_snapshot()
            self._unread = False
        if self.length < HEAD or offset + size <= HEAD:
            return self._head[offset : offset + size]
        may_block()
        return self._read_fully(size, offset)

    def _read_fully(self, size: int, offset: int) -> bytes:
        # One read of procfs gives about a page. For the kernel's FUSE, less than it has asked
        # for is the end of the file.
        parts = []
        try:
            while size and (part := os.pread(self._file.fileno(), size, offset)):
                parts.append(part)
                size -= len(part)
                offset += len(part)
        except FileNotFoundError as error:
            # An open sysctl whose namespace or interface is gone. Not so for a write, where
            # ENOENT may be about the value (a congestion control that does not exist).
            raise gone_error() from error
        self._refuse_if_cut()
        return b"".join(parts)

    def _refuse_if_cut(self) -> None:
        if self._is_cut:
            raise gone_error()

    def write(self, data: bytes, offset: int) -> int:
        """See `Handle.write`. The kernel decides, as on procfs."""
        may_block()
        if not self._file.writable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # The end of a file of procfs, whose size is 0, is its start.
        written = os.pwrite(self._file.fileno(), data, 0 if self._append else offset)
        self._refuse_if_cut()
        return written

    def cut(self, null: int) -> None:
        """Let go of the file, also while somebody reads it. It answers ENODEV from now on.

        Args:
            null: what its descriptor designates instead, so that nothing else takes its number.
        """
        # First this: a read that goes on meanwhile then finds it set, and does not return what
        # it got.
        self._is_cut = True
        # With a close(2) in between, the number would be another file's.
        with self._closing:
            if not self._file.closed:
                os.dup2(null, self._file.fileno(), inheritable=False)

    def close(self) -> None:
        """See `Handle.close`."""
        with self._closing:
            self._file.close()
