"""Symbolic links in the run directory: names of namespaces that are mounted elsewhere.

People link to /proc/PID/ns/net, or to where a container runtime keeps its namespaces. A link
may lead into a file system that hangs, or into our own mount. So it is followed on a thread of
its own, for a second, and never into file systems that must be avoided.
"""

import errno
import os
import re
import stat
import threading
from collections.abc import Collection

from netnsfs import linux
from netnsfs.jobs import Job, commit, may_block, start_thread
from netnsfs.limits import FOLLOW_SECONDS
from netnsfs.netns.nsfs import nsfs_device, number_in, reopen

_MAX_STEPS = 8
_NAMESPACE = b"net:["
_TASK = re.compile(rb"/proc/([1-9]\d{0,9})/.*")


def _require_task(path: bytes) -> None:
    """A task that is gone is in no cache.

    Raises:
        OSError: ENOENT if a path of procfs is of one.
    """
    task = _TASK.fullmatch(path)
    if not task or not _proc_is_ours():
        return
    try:
        os.kill(int(task[1]), 0)
    except (ProcessLookupError, OverflowError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except PermissionError:
        pass


def _proc_is_ours() -> bool:
    """Whether /proc shows the tasks that kill(2) knows."""
    fd = linux.open_cached(b"/proc/self")
    if fd is None:
        return False
    with linux.closing_fd(fd):
        return os.readlink(b"", dir_fd=fd) == b"%d" % os.getpid()


class SymlinkFollower:
    """Follows the links of one run directory.

    Args:
        directory: where relative links start.

    Attributes:
        avoid: device numbers of file systems that a link is never followed into.
    """

    def __init__(self, directory: bytes) -> None:
        self._directory = directory
        self._hanging: dict[linux.Stat, threading.Thread] = {}
        # Of the run directory, and of /proc.
        self._device = self._proc_device = -1
        self.avoid: Collection[int] = ()

    def read_cached(self, name: bytes) -> bytes | None:
        """The path that a link in the run directory leads to, without waiting for anything.

        Args:
            name: of the link. The run directory must be local.

        Returns:
            None if it is no link, or not in the kernel's cache.

        Raises:
            OSError: as open(2) does.
        """
        fd = linux.open_cached(os.path.join(self._directory, name))
        if fd is None:
            return None
        with linux.closing_fd(fd):
            found = linux.statx(b"", fd)
            self._device = found.dev
            if not stat.S_ISLNK(found.mode):
                return None
            return os.path.join(self._directory, os.readlink(b"", dir_fd=fd))

    def peek(self, path: bytes) -> int | None:
        """The inode number of the namespace at a path, without waiting for anything.

        Of a link of procfs the kernel tells the number, and follows it only where it may wait.
        So the namespace of that number may be another than before.

        Returns:
            None if there is no namespace, or all of the way is not in the kernel's cache, or a
            link on the way may be on a server.

        Raises:
            OSError: as open(2) does.
        """
        for _ in range(_MAX_STEPS):
            fd = linux.open_cached(path)
            if fd is None:
                return None
            with linux.closing_fd(fd):
                found = linux.statx(b"", fd)
                if not stat.S_ISLNK(found.mode):
                    return found.ino if found.dev == nsfs_device() else None
                if found.dev not in (self._proc_device, self._device):
                    return None
                text = os.readlink(b"", dir_fd=fd)
            if found.dev == self._proc_device:
                return number_in(text) if text.startswith(_NAMESPACE) else None
            path = os.path.join(os.path.dirname(path), text)
        return None

    def follow(self, link: int, identity: linux.Stat) -> int:
        """Open the namespace file that a link leads to.

        Args:
            link: an O_PATH descriptor of the link.
            identity: what distinguishes it from other links.

        Raises:
            OSError: EINVAL if it leads to anything else, ETIMEDOUT if into a file system that
                does not answer, else as open(2).
        """
        self._require_answering(identity)
        path = os.path.join(self._directory, os.readlink(b"", dir_fd=link))
        _require_task(path)
        may_block()
        self._proc_device = linux.statx(b"/proc").dev
        return self._follow_bounded(path, identity)

    def _follow_bounded(self, path: bytes, identity: linux.Stat) -> int:
        job = Job(self._open, path)
        thread = start_thread(job.run, "netnsfs-link")
        thread.join(FOLLOW_SECONDS)
        if thread.is_alive() and job.abandon():
            self._hanging = {link: old for link, old in self._hanging.items() if old.is_alive()}
            self._hanging[identity] = thread
            self._require_answering(identity)
        # It has ended, or has committed and is about to.
        thread.join()
        return job.result()

    def _require_answering(self, identity: linux.Stat) -> None:
        hanging = self._hanging.get(identity)
        # One thread hangs for each such link, not one for each look.
        if hanging and hanging.is_alive():
            raise OSError(errno.ETIMEDOUT, "the link leads to what does not answer")

    def _open(self, path: bytes) -> int:
        with linux.closing_fd(linux.open_no_xdev(path, self.avoid, os.getpid())) as target:
            # If nobody waits any more, nobody would close the descriptor.
            commit()
            return reopen(target)
