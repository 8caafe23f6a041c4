"""What has happened, without waiting: inotify(7) and poll(2)."""

import ctypes
import os
import struct
import weakref
from collections.abc import Iterator

from netnsfs.linux.library import error_of_call, libc, quick_libc

IN_MODIFY = 2
IN_ATTRIB = 4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_MASK_ADD = 1 << 29
# struct inotify_event: watch, mask, cookie, length of the name.
_EVENT = struct.Struct("=iIII")
# With a name of 255 bytes, padded.
_LONGEST_EVENT = _EVENT.size + 256
_WATCH_BUFFER = 65536
# struct pollfd: descriptor, events, what there is.
_POLLFD = struct.Struct("=ihh")
# Both are for what never waits (O_NONBLOCK, a timeout of 0), so they keep the interpreter lock.
_read = quick_libc.read
_poll = quick_libc.poll


class Inotify:
    """Notices changes of files (inotify(7)).

    Attributes:
        close: call it to watch no longer.
    """

    def __init__(self) -> None:
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise error_of_call()
        self._buffer = (ctypes.c_char * _WATCH_BUFFER)()
        self.close = weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        """The descriptor, which can be read when something has happened."""
        return self._fd

    def watch_file(self, path: bytes, events: int) -> None:
        """Watch one more file, for events as in inotify_add_watch(2)."""
        if libc.inotify_add_watch(self._fd, path, events) < 0:
            raise error_of_call(path)

    def has_events(self) -> bool:
        """Whether something has happened since the last call. For one thread at a time."""
        # What happened is of no interest here. The rest, if it did not fit, is for the next
        # call.
        return bool(_read(self._fd, self._buffer, _WATCH_BUFFER) > 0)

    def read_events(self) -> Iterator[tuple[int, bytes]]:
        """What has happened since the last call: each event's mask and name.

        For one thread at a time.
        """
        end = _WATCH_BUFFER
        # If one more would have fitted, there is no more in the queue.
        while end > _WATCH_BUFFER - _LONGEST_EVENT:
            end = _read(self._fd, self._buffer, _WATCH_BUFFER)
            # A copy of what was read only, not of the whole buffer. -1 stands for no event
            # (EAGAIN).
            data, at = ctypes.string_at(self._buffer, max(0, end)), 0
            while at < end:
                _, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length]
                # Names are padded with zeros (inotify(7)). An event of the directory itself has
                # no name.
                yield mask, name.rstrip(b"\0")
                at += _EVENT.size + length


class Poll:
    """Tells at once whether any of some open files is ready (poll(2)).

    Args:
        files: their descriptors, and for what.
    """

    def __init__(self, *files: tuple[int, int]) -> None:
        # Made once for all calls. What poll(2) writes into it is never looked at.
        packed = b"".join(_POLLFD.pack(fd, events, 0) for fd, events in files)
        self._files = ctypes.create_string_buffer(packed, len(packed))
        self._count = len(files)

    def any_ready(self) -> bool:
        """Whether one is, or that cannot be told."""
        # An error is -1, and so counts as ready: the caller then looks for itself.
        return bool(_poll(self._files, self._count, 0))
