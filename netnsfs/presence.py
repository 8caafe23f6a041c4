"""Which names stand in a directory, known without looking.

To look for a name that is not there, the kernel takes the lock of the directory. Whoever lists
the directory holds that lock too, for as long as they like: the list may be written to memory
that a file is mapped to, and that file may be one of ours. So the event loop must not look.

inotify(7) tells it instead. The kernel queues each event while it still has the lock of the
directory, so a name that somebody has been told of is known here. Only a directory in memory is
watched: nothing comes into it but through this kernel.
"""

import errno
import os

from netnsfs import linux

_CAME = linux.IN_CREATE | linux.IN_MOVED_TO
_WENT = linux.IN_DELETE | linux.IN_MOVED_FROM


class Presence:
    """The names in a directory.

    Args:
        path: the directory.

    Raises:
        OSError: EOPNOTSUPP if it is not in memory; else as open(2), inotify_init1(2).

    Attributes:
        lost: it is not known any more.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self.lost = False
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if linux.fs_type(directory) != linux.TMPFS_MAGIC:
                raise OSError(errno.EOPNOTSUPP, "the directory is not in memory", path)
            found = linux.stat(b"", directory)
            self._directory = found.dev, found.ino
            self._watch = linux.Watch(_CAME | _WENT)
            self._watch.add(b"/proc/self/fd/%d" % directory)
            self._names = {os.fsencode(name) for name in os.listdir(directory)}
        finally:
            os.close(directory)

    def lacks(self, name: bytes) -> bool:
        """Whether a name is known not to stand. At once; for one thread alone."""
        for mask, changed in self._watch.events():
            if mask & _CAME:
                self._names.add(changed)
            elif mask & _WENT:
                self._names.discard(changed)
            else:
                # Too many events, or the directory is gone.
                self.lost = True
        return not self.lost and name not in self._names and self._is_there()

    def _is_there(self) -> bool:
        try:
            directory = linux.open_cached(self._path, follow=True)
        except OSError:
            return False
        try:
            found = linux.stat(b"", directory)
        finally:
            os.close(directory)
        self.lost = (found.dev, found.ino) != self._directory
        return not self.lost
