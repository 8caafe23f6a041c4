"""Symbolic links in the run directory: names of namespaces that are mounted elsewhere.

People link to /proc/PID/ns/net, or to where a container runtime keeps its namespaces. A link
may lead into a file system that hangs, or into our own mount. So it is followed on a thread of
its own, for a second, and never into file systems that must be avoided.
"""

import errno
import os
import threading
from collections.abc import Collection

from netnsfs import linux
from netnsfs.jobs import Job, commit, may_block, start_thread
from netnsfs.netns.nsfs import reopen

FOLLOW_SECONDS = 1.0


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

    def follow(self, link: int, identity: linux.Stat) -> int:
        """Open the namespace file that a link leads to.

        Args:
            link: an O_PATH descriptor of the link.
            identity: what distinguishes it from other links.

        Raises:
            OSError: EINVAL if it leads to anything else, ETIMEDOUT if into a file system that
                does not answer, else as open(2).
        """
        may_block()
        path = os.path.join(self._directory, os.readlink(b"", dir_fd=link))
        return self._follow_bounded(path, identity)

    def _follow_bounded(self, path: bytes, identity: linux.Stat) -> int:
        hanging = self._hanging.get(identity)
        # One thread hangs for each such link, not one for each look.
        if hanging and hanging.is_alive():
            raise OSError(errno.ETIMEDOUT, "the link leads to what does not answer")
        job = Job(self._open, path)
        thread = start_thread(job.run, "netnsfs-link")
        thread.join(FOLLOW_SECONDS)
        if thread.is_alive() and job.abandon():
            self._hanging = {link: old for link, old in self._hanging.items() if old.is_alive()}
            self._hanging[identity] = thread
            # As for every later look while the thread hangs: ETIMEDOUT.
            return self._follow_bounded(path, identity)
        # It has ended, or has committed and is about to.
        thread.join()
        return job.result()

    def _open(self, path: bytes) -> int:
        with linux.closing_fd(linux.open_no_xdev(path, self.avoid, os.getpid())) as target:
            # If nobody waits any more, nobody would close the descriptor.
            commit()
            return reopen(target)
