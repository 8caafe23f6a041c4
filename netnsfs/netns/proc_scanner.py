"""Passes through /proc, for where the kernel does not let us make them in it.

The text of the link /proc/PID/ns/net ("net:[4026532268]") is compared, not the file behind
it: to look at that, the kernel would have to make an inode.

A task may end at any moment (ENOENT, ESRCH) or be closed to us (EACCES), and a zombie has no
namespaces any more (ENOENT). None of them is counted as a member.

An open file of /proc/net does not tell its namespace here, so none is found.
"""

import errno
import logging
import os
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress

from netnsfs import linux
from netnsfs.jobs import may_block, on_own_thread, restoring_namespace
from netnsfs.netns.nsfs import nsfs_device, number_in, reopen
from netnsfs.netns.scanner import (
    MAPPING,
    NAMESPACE_FILE,
    SOCKET,
    TUN,
    Descriptor,
    Omitted,
    Task,
    daemon_namespace,
    without_visitors,
)
from netnsfs.netns.spares import is_spare

# A directory of threads has one link for each, beside the two that every directory has.
_ONE_THREAD = 3
# On a busy machine: a listing takes a sixth of the time that a look at each process takes.
_MAX_LISTINGS = 3
_TUN_DEVICE = 10, 200
# How the links of open files begin that hold none (fs/pipe.c, fs/anon_inodes.c).
_WITHOUT_NAMESPACE = (b"pipe:[", b"anon_inode:")

# Of sockets that can be mapped: the table, and which field is the inode number. None of AF_XDP.
_SOCKET_TABLES = {b"packet": 8, b"tcp": 9, b"tcp6": 9}

_Shared = dict[bytes, list[Descriptor]]

log = logging.getLogger(__name__)


class ProcScanner:
    """See `Scanner`."""

    def __init__(self) -> None:
        self._daemon_namespace = daemon_namespace()
        self._threaded: set[bytes] = set()

    def tasks(self, inode: int = 0) -> Iterator[Task]:
        """See `Scanner.tasks`."""
        wanted = b"net:[%d]" % inode if inode else b""
        # No helper functions, and short paths: a pass makes one or two system calls for each
        # process, and what stands around them takes as long.
        with linux.closing_fd(os.open(b"/proc", os.O_PATH | os.O_CLOEXEC)) as proc:
            for pid, threads in self._processes(proc):
                try:
                    link = os.readlink(pid + b"/ns/net", dir_fd=proc)
                    if not wanted or link == wanted:
                        yield int(pid), int(pid), number_in(link)
                except OSError as error:
                    # The first thread of a process may have ended before the others.
                    linux.reraise_if_resource(error)
                for tid in threads:
                    try:
                        link = os.readlink(b"%b/task/%b/ns/net" % (pid, tid), dir_fd=proc)
                        if not wanted or link == wanted:
                            yield int(pid), int(tid), number_in(link)
                    except OSError as error:
                        linux.reraise_if_resource(error)

    def _processes(self, proc: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Each process, and its threads but the first, whose number is the process's.

        If no task was born while the processes were listed, the number of tasks before that
        counts all threads of all that are listed. So once that many have been seen, no process
        needs to be looked at for more. First come those that had several when they were last
        looked at: the sooner all are found, the better.
        """
        for _ in range(_MAX_LISTINGS):
            tasks, last_pid = load()
            found = [name for name in os.listdir(b"/proc") if name.isdigit()]
            unchanged = load()[1] == last_pid
            if unchanged:
                break
        self._threaded.intersection_update(found)
        found.sort(key=lambda pid: pid not in self._threaded)
        # How many threads there can be besides the first of each process.
        extra = tasks - len(found) if unchanged else sys.maxsize
        for pid in found:
            threads: list[bytes] = []
            if extra > 0:
                threads = _threads(pid, proc)
            if threads:
                self._threaded.add(pid)
                extra -= len(threads)
                # What was found may have been born since, in the place of one that was counted.
                if extra <= 0 and load()[1] != last_pid:
                    extra = sys.maxsize
            yield pid, threads

    def members(self, inode: int = 0) -> Iterator[Task]:
        """See `Scanner.members`."""
        return without_visitors(self.tasks(inode), self._daemon_namespace)

    def mount_namespaces(self) -> Iterator[tuple[int, int]]:
        """See `Scanner.mount_namespaces`."""
        with linux.closing_fd(os.open(b"/proc", os.O_PATH | os.O_CLOEXEC)) as proc:
            for pid, threads in self._processes(proc):
                for tid in (pid, *threads):
                    try:
                        link = os.readlink(tid + b"/ns/mnt", dir_fd=proc)
                    except OSError as error:
                        linux.reraise_if_resource(error)
                    else:
                        yield int(tid), number_in(link)

    def namespace_mounts(self, inode: int = 0, without: Collection[int] = ()) -> None:
        """See `Scanner.namespace_mounts`: it cannot tell."""

    def descriptors(
        self, inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
    ) -> Iterator[Descriptor]:
        """See `Scanner.descriptors`. What a child process has to look at comes last."""
        # Who has which socket: a socket with a thousand descriptors is looked at once.
        shared: _Shared = {}
        with linux.closing_fd(os.open(b"/proc", os.O_PATH | os.O_CLOEXEC)) as proc:
            for pid, threads in self._processes(proc):
                if int(pid) == os.getpid():
                    continue
                for task in _tables(int(pid), threads):
                    try:
                        for found in _open_files(task, inode, shared):
                            if found.inode not in without:
                                yield found
                    except OSError as error:
                        linux.reraise_if_resource(error)
        for found in _sockets(list(shared.values()), inode):
            if found.inode not in without:
                yield found

    def mappings(
        self, inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
    ) -> Iterator[Descriptor]:
        """See `Scanner.mappings`.

        /proc tells the socket but not its namespace. So a namespace is asked for its sockets,
        and none is found by them.
        """
        if not inode:
            return
        mapped, complete = linux.mapped_sockets()
        if not complete and omitted is not None:
            omitted[b"mappings"] += 1
        inside = self._sockets_inside(inode) if mapped else set()
        last = None
        for pid, address, number in mapped:
            if number in inside and (pid, number) != last:
                yield Descriptor(MAPPING, pid, address, inode)
            last = pid, number

    def namespace_of_socket(self, number: int) -> int:
        """See `Scanner.namespace_of_socket`. A child process looks at it (`pidfd_files`)."""
        wanted = b"socket:[%d]" % number
        with linux.closing_fd(os.open(b"/proc", os.O_PATH | os.O_CLOEXEC)) as proc:
            for pid, threads in self._processes(proc):
                for task in _tables(int(pid), threads):
                    for fd in _descriptors_with_link(task, wanted):
                        [found] = linux.namespaces_of_files([(task, fd)])
                        if found:
                            return found
        return 0

    def _sockets_inside(self, inode: int) -> set[int]:
        """The inode numbers of those sockets of a namespace that can be mapped and listed."""
        for _, tid, _ in self.tasks(inode):
            with suppress(FileNotFoundError, ProcessLookupError):
                return _listed_sockets(b"/proc/%d/net/" % tid)
        for found, path in linux.namespace_mounts(b"self"):
            if found == inode:
                return on_own_thread(_sockets_at, path)
        return set()


def _threads(pid: bytes, proc: int) -> list[bytes]:
    try:
        if os.stat(pid + b"/task", dir_fd=proc).st_nlink < _ONE_THREAD + 1:
            return []
        return [tid for tid in os.listdir(b"/proc/%b/task" % pid) if tid != pid]
    except OSError as error:
        linux.reraise_if_resource(error)
        return []


def _tables(pid: int, threads: list[bytes]) -> Iterator[int]:
    """A task for each descriptor table of a process."""
    tables = [pid]
    yield pid
    for tid in sorted(map(int, threads)):
        if not any(linux.share_descriptors(tid, other) for other in tables):
            tables.append(tid)
            yield tid


def _open_files(task: int, inode: int, shared: _Shared) -> Iterator[Descriptor]:
    """The namespace files that a task has open. What else may hold one is noted in `shared`."""
    path = b"/proc/%d/fd" % task
    last = b"", 0
    with linux.closing_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as directory:
        for number in os.listdir(path):
            try:
                link = _link_of(number, directory)
                (before, fd), last = last, (link, int(number))
                if link == before and _is_repeated(task, fd, int(number), link):
                    continue
                if link.startswith(b"socket:["):
                    held = Descriptor(SOCKET, task, int(number), 0)
                    shared.setdefault(link, []).append(held)
                elif not link.startswith(_WITHOUT_NAMESPACE):
                    yield from _named_file(task, number, directory, inode, shared)
            except OSError as error:
                linux.reraise_if_resource(error)


def _is_repeated(task: int, fd: int, other: int, link: bytes) -> bool:
    """Whether two descriptors with one link are of one open file. A socket has no other."""
    if link.startswith(b"socket:["):
        return True
    return not link.startswith(_WITHOUT_NAMESPACE) and linux.are_one_file(task, fd, other)


def _sockets_at(path: bytes) -> set[int]:
    with (
        linux.closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd,
        restoring_namespace(),
    ):
        linux.setns(fd, linux.CLONE_NEWNET)
        return _listed_sockets(b"/proc/thread-self/net/")


def _listed_sockets(directory: bytes) -> set[int]:
    found: set[int] = set()
    for table, column in _SOCKET_TABLES.items():
        # Not every kernel has each.
        with suppress(FileNotFoundError), open(directory + table, "rb") as lines:
            next(lines)
            found.update(int(line.split()[column]) for line in lines)
    return found


def _descriptors_with_link(task: int, wanted: bytes) -> Iterator[int]:
    path = b"/proc/%d/fd" % task
    try:
        with linux.closing_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as directory:
            for number in os.listdir(path):
                with suppress(FileNotFoundError):
                    if _link_of(number, directory) == wanted:
                        yield int(number)
    except OSError as error:
        linux.reraise_if_resource(error)


def _link_of(number: bytes, directory: int) -> bytes:
    """What the link of an open file tells: a path, or its kind; nothing if that is too long.

    It takes half the time of a look at the file. That of a namespace's file may be a path too.
    """
    try:
        return os.readlink(number, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return b""


def _named_file(
    task: int, number: bytes, directory: int, inode: int, shared: _Shared
) -> Iterator[Descriptor]:
    # Asks no server: the file may be of a file system that does not answer.
    packed = linux.statx_packed(number, directory, linux.FOLLOW)
    mode, ino, _, _, major, minor, _ = linux.unpack_statx(packed)
    if major << 32 | minor == nsfs_device():
        if ino == (inode or ino):
            yield from _namespace_file(task, number)
    elif stat.S_ISCHR(mode) and linux.device_of(packed) == _TUN_DEVICE:
        # All of them have one inode: that of the device file.
        key = b"%d/%b" % (task, number)
        shared[key] = [Descriptor(TUN, task, int(number), 0)]


def _namespace_file(task: int, number: bytes) -> Iterator[Descriptor]:
    if is_spare(_flags(task, number)):
        return
    target = os.open(b"/proc/%d/fd/%b" % (task, number), os.O_PATH | os.O_CLOEXEC)
    with linux.closing_fd(target), linux.closing_fd(reopen(target)) as fd:
        if linux.is_net_namespace(fd):
            inode = os.fstat(fd).st_ino
            yield Descriptor(NAMESPACE_FILE, task, int(number), inode)


def _flags(task: int, fd: bytes) -> int:
    with open(b"/proc/%d/fdinfo/%b" % (task, fd), "rb") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith(b"flags"))


def _sockets(sockets: list[list[Descriptor]], inode: int) -> Iterator[Descriptor]:
    inodes = linux.namespaces_of_files([(held[0].task, held[0].fd) for held in sockets])
    unknown = inodes.count(None)
    if unknown:
        log.warning("somebody keeps the namespaces of %d sockets from being seen", unknown)
    for held, found in zip(sockets, inodes, strict=True):
        if found and found == (inode or found):
            yield from (descriptor._replace(inode=found) for descriptor in held)


def load() -> tuple[int, int]:
    """The number of tasks on the machine, and the last PID given (proc_loadavg(5))."""
    fields = numbers_in(b"/proc/loadavg")
    return int(fields[3].partition(b"/")[2]), int(fields[4])


def numbers_in(path: bytes) -> list[bytes]:
    """The fields of a short file of procfs, which stays open: reading it waits for nothing."""
    return os.pread(_keep_open(path), 256, 0).split()


def _keep_open(path: bytes) -> int:
    kept = _kept_open.get(path)
    if kept is None:
        # A user who lists a directory can keep it locked for any time.
        may_block()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        kept = _kept_open.setdefault(path, fd)
        if kept != fd:
            os.close(fd)
    return kept


_kept_open: dict[bytes, int] = {}
