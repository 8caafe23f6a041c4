"""What a pass over all tasks, or over all open files, of the machine gives.

There are two ways to make one, with the same answers: `bpf_scanner` and, where the kernel does
not allow that, `proc_scanner`. `tasks` chooses.
"""

import os
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple, Protocol

from netnsfs import linux
from netnsfs.netns.nsfs import number_in

NAMESPACE_FILE = b"fd"
SOCKET = b"socket"
TUN = b"tun"
PROC_FILE = b"file"

Task = tuple[int, int, int]
"""Process, thread, and the inode number of its network namespace."""


def daemon_namespace() -> int:
    """The network namespace of our first thread, which never visits another one: its number."""
    return number_in(os.readlink(b"/proc/self/ns/net"))


def without_visitors(tasks: Iterable[Task], original: int) -> Iterator[Task]:
    """All tasks but our own threads that visit a namespace.

    Args:
        tasks: of the machine, or of one namespace.
        original: see `daemon_namespace`.
    """
    own = os.getpid()
    return (task for task in tasks if task[0] != own or task[2] == original)


class Descriptor(NamedTuple):
    """An open file that holds a network namespace.

    Attributes:
        kind: NAMESPACE_FILE, SOCKET, TUN or PROC_FILE (an open file of /proc/net).
        task: whose it is: a process, or a thread with a descriptor table of its own.
        fd: its number.
        inode: of the namespace.
        id: of the namespace, or 0 if this pass does not tell.
    """

    kind: bytes
    task: int
    fd: int
    inode: int
    id: int = 0

    @property
    def path(self) -> bytes:
        """Its place in /proc."""
        return b"/proc/%d/fd/%d" % (self.task, self.fd)

    def open_namespace(self) -> int:
        """Open the namespace of what is no file of the namespace itself.

        Raises:
            OSError: it is not held in this way any more, or that cannot be had.
        """
        if self.id:
            try:
                return linux.open_namespace_by_id(self.id, self.inode)
            except OSError:
                # Newer kernels open only namespaces that are active: those with a task, an open
                # namespace file or a mount. A socket is not enough.
                if self.kind == PROC_FILE:
                    raise
        return linux.namespace_of_file(self.task, self.fd)


class Scanner(Protocol):
    """A way to look at all tasks and open files.

    Missing are those that end meanwhile, and those that the kernel does not let us see. The
    descriptors of this process are left out, and so are spares.
    """

    def tasks(self, inode: int = 0) -> Iterable[Task]:
        """The threads in a network namespace, or in any."""

    def members(self, inode: int = 0) -> Iterable[Task]:
        """`tasks` without those about to end and, where that can be known, our own threads."""

    def mount_namespaces(self) -> Iterable[tuple[int, int]]:
        """Tasks, and the inode number of the mount namespace that each is in."""

    def descriptors(self, inode: int = 0, without: Container[int] = ()) -> Iterable[Descriptor]:
        """The open files that hold a network namespace, or any but those in `without`.

        That may grow meanwhile.
        """
