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
        self.avoid: Collection[int] = ()

    def peek(self, name: bytes) -> int | None:
        """The inode number of the namespace that a link leads to, without waiting for anything.

        Of a link of procfs the kernel tells the number, and follows it only where it may wait.
        So the namespace of that number may be another than before.

        Args:
            name: the link's name in the run directory.

        Returns:
            None if it is no link, or all of its way is not in the kernel's cache.

        Raises:
            OSError: as open(2) does.
        """
        path = os.path.join(self._directory, name)
        for step in range(_MAX_STEPS):
            fd = linux.open_cached(path)
            if fd is None:
                return None
            with linux.closing_fd(fd):
                found = linux.statx(b"", fd)
                if not stat.S_ISLNK(found.mode):
                    return found.ino if step and found.dev == nsfs_device() else None
                magic = linux.filesystem_magic(fd)
                if magic not in linux.LOCAL_FILESYSTEMS | {linux.PROC_SUPER_MAGIC}:
                    return None
                text = os.readlink(b"", dir_fd=fd)
            if text.startswith(_NAMESPACE):
                return number_in(text) if magic == linux.PROC_SUPER_MAGIC else None
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
