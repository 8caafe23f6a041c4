"""Passes in the kernel, by the BPF iterators of data/tasks.bpf.c.

The numbers of tasks that they tell are those of the initial PID namespace.
"""

import errno
import os
import struct
from collections.abc import Container, Iterable

from netnsfs import bpf_objects, linux
from netnsfs.netns.scanner import (
    NAMESPACE_FILE,
    PROC_FILE,
    SOCKET,
    TUN,
    Descriptor,
    Task,
    daemon_namespace,
    without_visitors,
)
from netnsfs.netns.spares import is_spare

# As in data/tasks.bpf.c.
_QUESTION = struct.Struct("=III")
# Process, thread and network namespace; thread and mount namespace.
_TASK = struct.Struct("=III4x")
_MOUNTS = struct.Struct("=4xI4xI")
_DESCRIPTOR = struct.Struct("=IIIIIIQQ")
_KINDS = (NAMESPACE_FILE, SOCKET, TUN, PROC_FILE)


class BpfScanner:
    """See `Scanner`.

    Raises:
        OSError: the kernel does not allow it or lacks something, or part of this program does.
    """

    def __init__(self) -> None:
        if not linux.in_initial_pid_namespace():
            message = "the daemon is in a PID namespace of its own"
            raise OSError(errno.EOPNOTSUPP, message)
        self._daemon_namespace = daemon_namespace()
        self._iterators = linux.Iterators(
            bpf_objects.TASKS, ("tasks", "descriptors"), "list_tasks"
        )

    def tasks(self, inode: int = 0) -> Iterable[Task]:
        """See `Scanner.tasks`."""
        return _TASK.iter_unpack(self._ask_tasks(inode))

    def members(self, inode: int = 0) -> Iterable[Task]:
        """See `Scanner.members`."""
        told = self._ask_tasks(inode, members=True)
        return without_visitors(_TASK.iter_unpack(told), self._daemon_namespace)

    def mount_namespaces(self) -> Iterable[tuple[int, int]]:
        """See `Scanner.mount_namespaces`."""
        return _MOUNTS.iter_unpack(self._ask_tasks())

    def _ask_tasks(self, inode: int = 0, members: bool = False) -> bytes:
        question = _QUESTION.pack(inode, 0, members)
        listed = self._iterators.run_open_coded(question)
        return self._iterators.run("tasks", question) if listed is None else listed

    def descriptors(self, inode: int = 0, without: Container[int] = ()) -> Iterable[Descriptor]:
        """See `Scanner.descriptors`."""
        told = self._iterators.run("descriptors", _QUESTION.pack(inode, os.getpid(), False))
        # If the first thread has ended, the kernel shows the table of the process once for
        # each of the others.
        seen: set[tuple[int, int, int]] = set()
        for found, kind, pid, tid, fd, flags, table, number in _DESCRIPTOR.iter_unpack(told):
            if found in without:
                continue
            if tid != pid or seen:
                if (pid, table, fd) in seen:
                    continue
                seen.add((pid, table, fd))
            if _KINDS[kind] != NAMESPACE_FILE or not is_spare(flags):
                yield Descriptor(_KINDS[kind], tid, fd, found, number)
