"""Who is inside a network namespace, and what keeps one alive, on the whole machine.

A process is a member if any of its threads is: setns(2) moves one thread, and a program may
send its workers into another namespace than its leader's. `ip netns pids` and lsns(8) look at
leaders only.

The kernel keeps a namespace as long as a task is in it, a descriptor of its nsfs file, of a
socket, a tun device or a file of /proc/net in it is open, a socket in it is mapped, or its nsfs
file is bind-mounted, in any mount namespace. lsns(8) looks at leaders, descriptors, sockets
(from util-linux 2.41 on) and its own mounts; here it is all of them.

Not found are descriptors that are in flight in a unix socket or registered in an io_uring,
mounts of a mount namespace that no task is in, those that no task of theirs can see below its
root, and what belongs to processes that the kernel does not let us look at. The daemon's own
descriptors are left out: it keeps none. So are the spares of any netnsfs: nobody has made them
yet.

A process may swap its descriptors while they are looked at. So nothing is opened that has not
been seen, through an O_PATH descriptor, to be a namespace's file; all else is for a child
process (`linux.pidfd_files`). What a caller does not hold open may end, and its inode number be
given to another namespace.
"""

import errno
import logging
import os
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns import nsfs
from netnsfs.netns.bpf_scanner import BpfScanner
from netnsfs.netns.mount_holders import find_mounts
from netnsfs.netns.proc_scanner import ProcScanner, load, numbers_in
from netnsfs.netns.scanner import MAPPING, NAMESPACE_FILE, Descriptor, Omitted, Scanner

# PID_MAX_LIMIT is 4,194,304 (linux/threads.h).
_PID_DIGITS = 7
_TASKS_AHEAD = 512
# In the order in which they are listed: first what most likely stays (see `holders_of`).
_KINDS = (b"task", b"thread", b"fd", b"mount", b"socket", b"tun", b"file", MAPPING)

log = logging.getLogger(__name__)


class _Chosen:
    """The scanner: it is found out once, which may take 100 ms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scanner: Scanner | None = None

    def scanner(self) -> Scanner:
        may_block()
        with self._lock:
            if self._scanner is None:
                self._scanner = _best()
            return self._scanner


_chosen = _Chosen()


def _best() -> Scanner:
    try:
        return BpfScanner()
    except OSError as error:
        message = (
            "members and holders are looked for in /proc, which takes longer, "
            "and poll(2) tells nothing of members: %s"
        )
        log.info(message, error.strerror)
        return ProcScanner()


def prepare() -> None:
    """Find out now how to look for members and holders: loading programs takes a while."""
    _chosen.scanner()


def is_cheap() -> bool:
    """Whether `pids` and `tids` take so little that they may be asked for their length only.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    return isinstance(_chosen.scanner(), BpfScanner)


def pids(inode: int) -> list[int]:
    """The processes with at least one thread in a namespace, ascending.

    Args:
        inode: number of the namespace.

    Raises:
        OSError: ENODATA if there are none to be seen, but some may be out of sight.
        WouldBlock: on the event loop's thread.
    """
    return sorted(threads_inside(inode))


def threads_inside(inode: int) -> dict[int, set[int]]:
    """The threads in a namespace, by process. Arguments and errors as for `pids`."""
    found: dict[int, set[int]] = defaultdict(set)
    for pid, tid, _ in _chosen.scanner().members(inode):
        found[pid].add(tid)
    if not found and not linux.in_initial_pid_namespace():
        message = "members may be outside of the daemon's PID namespace"
        raise OSError(errno.ENODATA, message)
    return found


def tids(inode: int) -> list[int]:
    """The threads in a namespace, ascending. Arguments and errors as for `pids`."""
    return sorted(set().union(*threads_inside(inode).values()))


def is_busy(inode: int) -> bool:
    """Whether somebody is in a namespace, or may be, for all that can be seen.

    Raises:
        OSError: the machine is short of something.
        WouldBlock: on the event loop's thread.
    """
    try:
        return bool(pids(inode))
    except OSError as error:
        # Members may be out of sight. What cannot be seen is not taken for absent.
        if error.errno != errno.ENODATA:
            raise
        return True


def members_by_namespace() -> dict[int, set[int]]:
    """The processes with at least one thread in each namespace, by inode number.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    inside: dict[int, set[int]] = defaultdict(set)
    for pid, _, inode in _chosen.scanner().members():
        inside[inode].add(pid)
    return inside


def counts() -> Counter[int]:
    """How many processes that are. Errors as above."""
    return Counter({inode: len(pids) for inode, pids in members_by_namespace().items()})


def namespace_of_socket(number: int) -> int | None:
    """The inode number of the namespace that an open socket belongs to.

    Args:
        number: inode number of the socket, as the link in /proc/PID/fd shows it.

    Returns:
        None if no process that can be seen has it open.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    return _chosen.scanner().namespace_of_socket(number) or None


def is_initial(inode: int) -> bool:
    """Whether a namespace is the one that the machine, or this process, started with."""
    return inode in (initial_namespace(), namespace_of_task(b"self"))


def initial_namespace() -> int | None:
    """The inode number of the initial network namespace.

    Returns:
        None if the kernel does not let us see. In a PID namespace of the daemon's own: the one
        of its first process.
    """
    # In a container, process 1 may be closed to us. Process 2 is the kernel's own, and in the
    # namespace that the kernel has started with.
    candidates = (b"1", b"2") if linux.in_initial_pid_namespace() else (b"1",)
    return next(filter(None, map(namespace_of_task, candidates)), None)


def namespace_of_task(task: bytes) -> int | None:
    """The inode number of the namespace that a task is in.

    Args:
        task: its directory below /proc: PID, TID, or PID/task/TID.

    Returns:
        None if there is no such task, or the kernel does not let us see.
    """
    try:
        return nsfs.number_in(os.readlink(b"/proc/%b/ns/net" % task))
    except OSError as error:
        linux.reraise_if_resource(error)
        return None


class Holder(NamedTuple):
    """One thing that holds a namespace.

    Attributes:
        inode: of the namespace.
        line: as shown to the user: `task PID`, `thread PID TID`, `fd PID N`, `socket PID N`,
            `tun PID N`, `file PID N` (an open file of /proc/net), `map PID ADDRESS` (a mapped
            socket), `mount PATH`. PID is a TID where a thread has a descriptor table of its
            own. A mount of another mount namespace is shown by a path below /proc/PID/root.
        path: opening it gives the namespace, but for a socket, tun, file or mapping.
        descriptor: what it is, if it is an open or mapped file.
    """

    inode: int
    line: bytes
    path: bytes
    descriptor: Descriptor | None = None

    def open(self, avoid: Collection[int]) -> int:
        """A descriptor of the namespace, as long as it is held in this way.

        Args:
            avoid: as for `linux.open_no_xdev`.

        Raises:
            OSError: it is not.
        """
        if self.descriptor and self.descriptor.kind != NAMESPACE_FILE:
            return self.descriptor.open_namespace()
        if self.line.startswith(b"mount"):
            # The path of a mount may lead through file systems of others, or through our own.
            target = linux.open_no_xdev(self.path, avoid, os.getpid())
        else:
            # Looked at before it is opened: another file may have taken its place by now.
            target = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        with linux.closing_fd(target):
            return nsfs.reopen(target)


def one_of_each(without: Iterable[int]) -> Iterator[Holder]:
    """One holder of each network namespace, but of some.

    Args:
        without: the inode numbers of those.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    seen = set(without)
    for holder in iter_holders(without=seen):
        seen.add(holder.inode)
        yield holder


def iter_holders(
    inode: int = 0, without: Collection[int] = (), omitted: Omitted | None = None
) -> Iterator[Holder]:
    """The holders of a network namespace, or a few of any: what is found soonest comes first.

    Args:
        inode: the number of the one, or 0.
        without: the numbers of namespaces whose holders are left out; it may grow meanwhile.
        omitted: where it is noted what was too much to look at.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    scanner = _chosen.scanner()
    omitted = Omitted() if omitted is None else omitted
    yield from _tasks(scanner, inode, without)
    for number, path in find_mounts(scanner, inode, without, omitted):
        yield Holder(number, b"mount " + _escaped(path), path)
    for found in scanner.descriptors(inode, without, omitted):
        line = b"%b %d %d" % (found.kind, found.task, found.fd)
        yield Holder(found.inode, line, found.path, found)
    for found in scanner.mappings(inode, without, omitted):
        line = b"%b %d %x" % (found.kind, found.task, found.fd)
        yield Holder(found.inode, line, found.path, found)


def _tasks(scanner: Scanner, inode: int, without: Container[int]) -> Iterator[Holder]:
    inside = list(scanner.tasks(inode))
    leaders: dict[int, int] = {}
    for pid, tid, found in inside:
        if found in without:
            continue
        if pid == tid:
            yield Holder(found, b"task %d" % pid, b"/proc/%d/ns/net" % pid)
            continue
        # Made only where a thread is met that counts. A thread may stand before its leader.
        leaders = leaders or {task[0]: task[2] for task in inside if task[0] == task[1]}
        # The line of a process stands for all threads that are in its first thread's namespace.
        if leaders.get(pid) != found:
            path = b"/proc/%d/task/%d/ns/net" % (pid, tid)
            yield Holder(found, b"thread %d %d" % (pid, tid), path)


def _escaped(path: bytes) -> bytes:
    """A path as /proc/PID/mountinfo writes it: one word, and never a second line."""
    return re.sub(rb"[\s\\#]", lambda found: b"\\%03o" % found[0][0], path)


def holders_of(inode: int, omitted: Omitted | None = None) -> list[Holder]:
    """The holders of one namespace: those that most likely stay and can be opened first."""
    # A namespace may be mounted several times at one place.
    return sorted(set(iter_holders(inode, omitted=omitted)), key=_order)


def _order(holder: Holder) -> tuple[object, ...]:
    kind, _, rest = holder.line.partition(b" ")
    base = 16 if kind == MAPPING else 10
    numbers = [] if kind == b"mount" else [int(number, base) for number in rest.split()]
    return _KINDS.index(kind), numbers, rest


def listing(inode: int) -> bytes:
    """The holders of one namespace, one a line, and how much could not be looked at."""
    omitted = Omitted()
    lines = [holder.line + b"\n" for holder in holders_of(inode, omitted)]
    return b"".join(lines + [b"omitted %b %d\n" % item for item in sorted(omitted.items())])


def listing_size() -> int:
    """An upper bound, in bytes, of a listing of all tasks of the machine, one a line.

    It leaves room for tasks that start between this call and the listing.
    """
    return (load()[0] + _TASKS_AHEAD) * (_PID_DIGITS + 1)


def holders_size() -> int:
    """An upper bound, in bytes, of the listing of one namespace's holders.

    Tasks, open files and mounts, with room for files that are shared by several processes.
    """
    files = int(numbers_in(b"/proc/sys/fs/file-nr")[0])
    return listing_size() * 4 + files * 64
