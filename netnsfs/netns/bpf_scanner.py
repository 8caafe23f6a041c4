"""Passes in the kernel, by BPF: data/tasks.bpf.c, holders.bpf.c and mounts.bpf.c.

The numbers of tasks that they tell are those of the initial PID namespace. Each object has a
lock of its own: a reader of members does not wait for a pass over millions of descriptors.
"""

import errno
import os
import struct
import threading
from collections.abc import Collection, Iterable, Iterator
from itertools import count

from netnsfs import bpf_objects, linux
from netnsfs.jobs import Job, start_thread
from netnsfs.netns.scanner import (
    MAPPING,
    NAMESPACE_FILE,
    PROC_FILE,
    SOCKET,
    TUN,
    Descriptor,
    MountRecord,
    Omitted,
    Task,
    daemon_namespace,
    without_visitors,
)
from netnsfs.netns.spares import is_spare

# As in data/tasks.bpf.c.
_QUESTION = struct.Struct("=II")
# Process, thread and network namespace; thread and mount namespace.
_TASK = struct.Struct("=III4x")
_MOUNTS = struct.Struct("=4xI4xI")
# As in data/holders.bpf.c. The rest of its variables begins with zeros.
_HOLDERS_QUESTION = struct.Struct("=IIII24x")
_HOLDER = struct.Struct("=IIIIQQQI4x")
_KEY = struct.Struct("=I")
_HOLDERS_COUNT = struct.Struct("=II4x")
_KINDS = (NAMESPACE_FILE, SOCKET, TUN, PROC_FILE, MAPPING)
_LEFT_OUT = len(_KINDS)
# As in data/mounts.bpf.c.
_MOUNTS_QUESTION = struct.Struct("=IIII")
_MOUNTS_COUNT = struct.Struct("=II")
_MOUNT = struct.Struct("=QII")
MAX_OF_ONE = 1 << 16
"""So many descriptors of one namespace are listed."""
# Where a namespace is only to be found, a few are enough: one of them can be opened.
_MAX_OF_EACH = 8
_MAPPINGS_SECONDS = 0.5
# Of one namespace: as many as the program can list.
_MAX_MOUNTS = 8192
# The list of mounts may change during a walk.
_MAX_WALKS = 5


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
        self._iterators = linux.Iterators(bpf_objects.TASKS, ("tasks",), "list_tasks")
        self._holders = linux.Iterators(bpf_objects.HOLDERS, ("descriptors",), table="counts")
        self._mappings = _Mappings()
        self._sockets = _Sockets()
        self._mounts = _load_mounts()
        self._runs = count(1)

    def close(self) -> None:
        """Unload the programs."""
        every = self._iterators, self._holders, self._mounts, self._mappings, self._sockets
        for loaded in every:
            if loaded:
                loaded.close()

    def tasks(self, inode: int = 0) -> Iterable[Task]:
        """See `Scanner.tasks`."""
        return _TASK.iter_unpack(self._ask_tasks(inode))

    def members(self, inode: int = 0) -> Iterable[Task]:
        """See `Scanner.members`."""
        records = self._ask_tasks(inode, members=True)
        return without_visitors(_TASK.iter_unpack(records), self._daemon_namespace)

    def mount_namespaces(self) -> Iterable[tuple[int, int]]:
        """See `Scanner.mount_namespaces`."""
        return _MOUNTS.iter_unpack(self._ask_tasks())

    def _ask_tasks(self, inode: int = 0, members: bool = False) -> bytes:
        question = _QUESTION.pack(inode, members)
        listed = self._iterators.run_open_coded(question)
        return self._iterators.run("tasks", question) if listed is None else listed

    def namespace_mounts(
        self, inode: int = 0, without: Collection[int] = ()
    ) -> list[MountRecord] | None:
        """See `Scanner.namespace_mounts`."""
        if self._mounts is None:
            return None
        run, most = self._next_run(), _MAX_MOUNTS if inode else _MAX_OF_EACH
        table = [_KEY.pack(known) for known in without], _MOUNTS_COUNT.pack(run, most)
        with linux.closing_fd(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as fd:
            question = _MOUNTS_QUESTION.pack(inode, most, run, fd)
            for _ in range(_MAX_WALKS):
                listed = self._mounts.run_open_coded(question, *table)
                if listed is not None:
                    return list(_MOUNT.iter_unpack(listed))
        return None

    def descriptors(
        self, inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
    ) -> Iterator[Descriptor]:
        """See `Scanner.descriptors`."""
        records = self._holders.run("descriptors", *self._question(inode, without))
        # If the first thread has ended, the kernel shows the table of the process once for
        # each of the others.
        seen: set[tuple[int, int, int]] = set()
        for found, kind, pid, tid, fd, table, number, flags in _HOLDER.iter_unpack(records):
            if kind == _LEFT_OUT:
                _note(omitted, b"descriptors", fd)
                continue
            if found in without:
                continue
            if tid != pid or seen:
                if (pid, table, fd) in seen:
                    continue
                seen.add((pid, table, fd))
            if _KINDS[kind] != NAMESPACE_FILE or not is_spare(flags):
                yield Descriptor(_KINDS[kind], tid, fd, found, number)

    def _question(
        self, inode: int, without: Collection[int]
    ) -> tuple[bytes, list[bytes], bytes]:
        """The variables, and what the table of known namespaces has before the run."""
        run = self._next_run()
        most = MAX_OF_ONE if inode else _MAX_OF_EACH
        variables = _HOLDERS_QUESTION.pack(inode, os.getpid(), most, run)
        return (
            variables,
            [_KEY.pack(known) for known in without],
            _HOLDERS_COUNT.pack(run, most),
        )

    def _next_run(self) -> int:
        return next(self._runs) & 0xFFFFFFFF

    def mappings(
        self, inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
    ) -> Iterator[Descriptor]:
        """See `Scanner.mappings`."""
        try:
            records = self._mappings.run(*self._question(inode, without))
        except OSError as error:
            # It takes too long, or the kernel does not have it.
            linux.reraise_if_resource(error)
            _note(omitted, b"mappings", 1)
            return
        # The kernel shows the memory of a process again for a thread with a table of its own.
        seen: set[tuple[int, int]] = set()
        for found, kind, pid, _, address, _, number, _ in _HOLDER.iter_unpack(records):
            if kind == _LEFT_OUT:
                _note(omitted, b"mappings", address)
            elif found not in without and (pid, address) not in seen:
                seen.add((pid, address))
                yield Descriptor(MAPPING, pid, address, found, number)

    def namespace_of_socket(self, number: int) -> int:
        """See `Scanner.namespace_of_socket`."""
        return self._sockets.namespace_of(number)


def _load_mounts() -> linux.Iterators | None:
    """The program that lists mounts; None if the kernel is too old for it (Linux 6.2)."""
    try:
        return linux.Iterators(bpf_objects.MOUNTS, (), "list_mounts", "counts")
    except OSError as error:
        linux.reraise_if_resource(error)
        return None


def _note(omitted: Omitted | None, what: bytes, number: int) -> None:
    if omitted is not None and number:
        omitted[what] += number


class _Sockets:
    """The iterator that finds one socket, loaded at the first use: most never ask for it."""

    def __init__(self) -> None:
        self._iterators: linux.Iterators | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Unload it."""
        if self._iterators:
            self._iterators.close()

    def namespace_of(self, number: int) -> int:
        """See `Scanner.namespace_of_socket`."""
        with self._lock:
            if self._iterators is None:
                self._iterators = linux.Iterators(bpf_objects.HOLDERS, ("sockets",))
        records = self._iterators.run("sockets", _HOLDERS_QUESTION.pack(number, 0, 0, 0))
        # Several processes may have it open.
        return next((found for (found,) in _KEY.iter_unpack(records)), 0)


class _Mappings:
    """The iterator over mappings, for which the kernel locks the memory of each process.

    A process can keep that locked for as long as it likes. So a thread of its own waits, and
    none is started until it has ended.
    """

    def __init__(self) -> None:
        self._iterators: linux.Iterators | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Unload it."""
        if self._iterators:
            self._iterators.close()

    def run(self, variables: bytes, keys: list[bytes], value: bytes) -> bytes:
        """Run it.

        Raises:
            TimeoutError: somebody makes it take too long.
        """
        with self._lock:
            if self._thread and self._thread.is_alive():
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if self._iterators is None:
                # Only now: it takes some milliseconds, and most never ask for it.
                names = ("mappings",)
                self._iterators = linux.Iterators(bpf_objects.HOLDERS, names, table="counts")
            job = Job(self._iterators.run, "mappings", variables, keys, value)
            self._thread = start_thread(job.run, "netnsfs-maps")
            self._thread.join(_MAPPINGS_SECONDS)
            if self._thread.is_alive():
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            return job.result()
