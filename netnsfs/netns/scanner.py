"""What a pass over all tasks, or over all open files, of the machine gives.

There are two ways to make one, with the same answers: `bpf_scanner` and, where the kernel does
not allow that, `proc_scanner`. `tasks` chooses.
"""

import errno
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Protocol

from netnsfs import linux
from netnsfs.netns.nsfs import number_in

NAMESPACE_FILE = b"fd"
SOCKET = b"socket"
TUN = b"tun"
PROC_FILE = b"file"
MAPPING = b"map"

Task = tuple[int, int, int]
"""Process, thread, and the inode number of its network namespace."""

MountRecord = tuple[int, int, int]
"""A mount: its ID, or 0; the inode numbers of the namespace mounted and its mount namespace."""

Omitted = Counter[bytes]
"""How much of what there is was left out, by its kind."""


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
    """An open or mapped file that holds a network namespace.

    Attributes:
        kind: NAMESPACE_FILE, SOCKET, TUN, PROC_FILE (an open file of /proc/net) or MAPPING.
        task: whose it is: a process, or a thread with a descriptor table of its own.
        fd: its number, or the address of the mapping.
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
        """Its place in /proc, which a mapping has none of that could be opened."""
        if self.kind == MAPPING:
            return b""
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
                if self.kind in (PROC_FILE, MAPPING):
                    raise
        if self.kind == MAPPING:
            raise OSError(errno.EOPNOTSUPP, "this kernel opens no namespace by its ID")
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

    def namespace_mounts(
        self, inode: int = 0, without: Collection[int] = ()
    ) -> list[MountRecord] | None:
        """The mounts of files of a network namespace, or a few of each but of some.

        Returns:
            None if this pass cannot tell.
        """

    def mount_namespaces(self) -> Iterable[tuple[int, int]]:
        """Tasks, and the inode number of the mount namespace that each is in."""

    def descriptors(
        self, inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
    ) -> Iterable[Descriptor]:
        """The open files that hold a network namespace, or any but those in `without`.

        That may grow meanwhile. Of one namespace it is all, but for descriptors of one file
        that follow each other in a process: of these, the first. Of any, a few of each are
        enough.

        Args:
            inode: number of the namespace, or 0 for any.
            without: numbers of those that are not asked for.
            omitted: where it is noted how many there were too many to list.
        """

    def mappings(
        self, inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
    ) -> Iterable[Descriptor]:
        """The mapped sockets that hold a network namespace. Arguments as for `descriptors`."""

    def namespace_of_socket(self, number: int) -> int:
        """The inode number of the network namespace of an open socket.

        Args:
            number: inode number of the socket.

        Returns:
            0 if no process that can be seen has it open.
        """
