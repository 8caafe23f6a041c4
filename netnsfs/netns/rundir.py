"""Which names stand in a directory, and whether anything has changed there, without looking.

To look for a name that is not there, the kernel takes the lock of the directory. Whoever lists
the directory holds that lock too, for as long as they like: the list may be written to memory
that a file is mapped to, and that file may be one of ours. So the event loop must not look.

inotify(7) tells it of names instead. The kernel queues each event while it still has the lock
of the directory, so a name that somebody has been told of is known here. It tells of changed
attributes before the one who changes them goes on. Of mounts, /proc/self/mountinfo tells, which
can be polled (proc_pid_mountinfo(5)): a mount that somebody was told of has been counted. One
call asks for both.

Only a directory in memory is watched: nothing comes into it but through this kernel.
"""

import errno
import os
import select
import weakref

from netnsfs import linux

_CAME = linux.IN_CREATE | linux.IN_MOVED_TO
_WENT = linux.IN_DELETE
# Two names that are exchanged, or what a rename leaves behind, are not told of as such.
_RENAMED = linux.IN_MOVED_FROM
_CHANGED = linux.IN_ATTRIB
_MOVED = linux.IN_MOVE_SELF | linux.IN_DELETE_SELF | linux.IN_MASK_ADD
_WATCHED = _CAME | _WENT | _RENAMED | _CHANGED | _MOVED

# Who keeps making and removing names must not keep the reader.
_MOST_EVENTS = 20_000


class Presence:
    """The names in a directory.

    Args:
        path: the directory, without links on the way.

    Raises:
        OSError: EOPNOTSUPP if it cannot be watched, EAGAIN if not now; else as open(2),
            inotify_init1(2).

    Attributes:
        lost: it is not known any more.
        attributes: another object after each change of the directory's attributes that has been
            heard of.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self.lost = False
        self.attributes = object()
        self._state = object()
        self._checked = True
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            in_memory = linux.filesystem_magic(directory) == linux.TMPFS_MAGIC
            if not in_memory or os.path.realpath(path) != path:
                raise OSError(errno.EOPNOTSUPP, "the directory cannot be watched", path)
            found = linux.statx(b"", directory)
            self._directory = found.dev, found.ino, found.mount
            self._watch = linux.Watch()
            self._watch.add(b"/proc/self/fd/%d" % directory, _WATCHED)
            while (path := os.path.dirname(path)) != b"/":
                self._watch.add(path, _MOVED)
            mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, mounts)
            self._poll = linux.Poll(
                (self._watch.fileno(), select.POLLIN), (mounts, select.POLLPRI)
            )
            self._names = {os.fsencode(name) for name in os.listdir(directory)}
        finally:
            os.close(directory)
        if not self._is_there():
            raise OSError(errno.EAGAIN, "the directory is another now", self._path)

    # At once, and for one thread alone:

    def state(self) -> object:
        """What stays the same for as long as no name and no mount changes."""
        if self._poll.ready():
            self._catch_up()
            self._checked = False
        if not self._checked:
            # What is mounted may hide the directory, or show it elsewhere.
            self._checked = self._is_there()
            self._state = object()
        return self._state

    def lacks(self, name: bytes) -> bool:
        """Whether a name is known not to stand."""
        self.state()
        return self._checked and not self.lost and name not in self._names

    def _catch_up(self) -> None:
        for number, (mask, changed) in enumerate(self._watch.events()):
            self._state = object()
            if number == _MOST_EVENTS:
                self.lost = True
                break
            if mask & _CAME:
                self._names.add(changed)
            elif mask & _WENT:
                self._names.discard(changed)
            elif mask & _CHANGED:
                self.attributes = object()
            else:
                # Events are lost, or names were renamed, or the directory is not where it was.
                self.lost = True

    def _is_there(self) -> bool:
        try:
            packed = linux.statx_cached(self._path)
        except OSError:
            return False
        if packed is None:
            return False
        found = linux.Stat._make(linux.unpack_statx(packed))
        self.lost |= (found.dev, found.ino, found.mount) != self._directory
        return not self.lost
