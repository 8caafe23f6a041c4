"""`.netnsfs/socket`: links from a socket to the directory of its namespace.

A socket has the inode number that the link in /proc/PID/fd shows, and `ss -e` as `ino`. It is
looked for among all open files of the machine, in one pass. As with the other numbers, only a
user who may search `unnamed` finds a namespace without a name, and only one who may search its
directory finds one with a name: /proc/net there has the numbers of its sockets.
"""

from contextlib import nullcontext

from netnsfs.jobs import may_block
from netnsfs.netns import tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.node import Caller
from netnsfs.permissions import Permissions
from netnsfs.tree.callers import CAP_DAC_READ_SEARCH, has_capability
from netnsfs.tree.ctldir import LARGEST_INODE
from netnsfs.tree.numbers import NumberDirectory
from netnsfs.tree.token_bucket import TokenBucket

SOCKET = b"socket"
SEARCH_BURST = 1.0
SEARCH_RATE = 0.1
"""Seconds of search for each user but root: at once, and refilled in a second."""


class SocketDirectory(NumberDirectory):
    """`.netnsfs/socket`. It lists nothing: a machine has many sockets.

    Args:
        names: the run directory.
        permissions: to whom a namespace belongs unless it was given to somebody.
    """

    most = LARGEST_INODE

    def __init__(self, names: NamedNamespaces, permissions: Permissions) -> None:
        super().__init__(SOCKET, names, permissions, lambda fd: None)
        # The kernel may keep this directory locked during a lookup: everybody waits for it.
        self._bucket = TokenBucket(SEARCH_BURST, SEARCH_RATE)

    def readdir(self) -> list[bytes]:
        return []

    def _find(self, number: int, named: dict[int, bytes], caller: Caller) -> int | None:
        may_block()
        sees_all = has_capability(caller, CAP_DAC_READ_SEARCH)
        with nullcontext() if sees_all else self._bucket.charge(caller.uid):
            inode = tasks.namespace_of_socket(number) if number else None
        if inode is None or sees_all:
            return inode
        return inode if inode in named and self._may_tell(named[inode], caller) else None
