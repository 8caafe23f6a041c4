"""Open files of other processes whose namespace only a copy can tell: sockets and tun.

pidfd_getfd(2) copies what is there at that moment, and its owner may have put another file in
its place: one of a file system of their own that does not answer, or a socket that lingers.
close(2) of the copy then takes as long as they like, and not even SIGKILL ends the process that
waits for it. So a child process makes the copies. It has nothing that anyone could miss, it
tells what it has learnt before it closes anything, and if it hangs it is left alone. It also
reads what processes have mapped, which they can make take as long.
"""

import array
import errno
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from netnsfs.linux import pidfd_files_child
from netnsfs.linux.files import filesystem_magic
from netnsfs.linux.library import closing_fd
from netnsfs.linux.namespaces import is_net_namespace
from netnsfs.linux.pidfd_files_child import HEAD, MAPPING, RECORD

_NSFS_MAGIC = 0x6E736673
# A child starts within 50 ms on a quiet machine, and looks at a file in some microseconds.
_START_SECONDS = 2.0
_STEP_SECONDS = 0.3
_PASS_SECONDS = 3.0
_KILL_SECONDS = 0.1
# So many hang only if somebody makes them: no other is started until one of them has ended.
_MAX_HUNG = 8
# -I and -S: no site packages, and nothing from the environment, so that it starts quickly and
# runs that one file alone.
_CHILD = [sys.executable, "-I", "-S", os.path.abspath(pidfd_files_child.__file__)]
_NULL = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (1, 2)]

_lock = threading.Lock()
# Children that were killed and have not ended.
_hung: set[int] = set()


def namespaces_of_files(files: Sequence[tuple[int, int]]) -> list[int | None]:
    """The inode numbers of the network namespaces that sockets and tun devices are of.

    Args:
        files: task and descriptor of each, those of a task one after another.

    Returns:
        For each: 0 if there is no such file any more, or it is of another kind; None if it
        cannot be found out, because another process makes that take too long.

    Raises:
        OSError: the machine is short of something.
    """
    size = HEAD.size + len(files) * RECORD.size
    # In shared memory: what a child has found is there even if it is killed, and the
    # next one goes on from there.
    fd = os.memfd_create("files", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            HEAD.pack_into(memory, 0, len(files), 0)
            for number, (task, file) in enumerate(files):
                RECORD.pack_into(memory, HEAD.size + number * RECORD.size, task, file, 0)
            unknown = _have_told(fd, memory, len(files))
            found = [inode for _, _, inode in RECORD.iter_unpack(memory[HEAD.size :])]
    finally:
        os.close(fd)
    return [None if number in unknown else inode for number, inode in enumerate(found)]


def _have_told(fd: int, memory: mmap.mmap, count: int) -> set[int]:
    """Have children look at all files. Returns the numbers of those that none could tell of."""
    deadline = time.monotonic() + _PASS_SECONDS
    unknown: set[int] = set()
    done = 0
    while done < count and time.monotonic() < deadline:
        try:
            with _child("tell", fd) as child:
                _watch(child, memory, deadline)
        except TimeoutError:
            break
        before, (_, done) = done, HEAD.unpack_from(memory)
        # A child that got nowhere hangs at its first file. That one is left out. After any
        # other, the next child starts with the file at which it stopped.
        if done == before:
            unknown.add(done)
            done += 1
            HEAD.pack_into(memory, 0, count, done)
    return unknown | set(range(done, count))


def _watch(child: int, memory: mmap.mmap, deadline: float) -> None:
    """Wait for a child until it ends, or gets no further."""
    done, patience = HEAD.unpack_from(memory)[1], _START_SECONDS
    while not _ready(child, min(_STEP_SECONDS, patience)) and time.monotonic() < deadline:
        before, (_, done) = done, HEAD.unpack_from(memory)
        # The long patience is for the start of the interpreter only.
        patience = _STEP_SECONDS if done != before else patience - _STEP_SECONDS
        if patience <= 0:
            return


def namespace_of_file(task: int, fd: int) -> int:
    """Open the network namespace of a socket or tun device in another process (SIOCGSKNS).

    Args:
        task: a process, or a thread with a descriptor table of its own.
        fd: its descriptor of the file.

    Returns:
        A descriptor of the namespace that the caller closes.

    Raises:
        OSError: ENOENT if there is no such file; ETIMEDOUT if somebody makes it take too long.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        with theirs, _child("fetch", theirs.fileno(), str(task), str(fd)) as child:
            if not _ready(child, _START_SECONDS, ours.fileno()):
                raise TimeoutError(errno.ETIMEDOUT, "another process makes it take too long")
        return _received(ours)


def _received(channel: socket.socket) -> int:
    # Not socket.recv_fds(), which forgets its flags (Python 3.11).
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    fds = array.array("i")
    with suppress(BlockingIOError):
        _, rights, _, _ = channel.recvmsg(1, socket.CMSG_LEN(fds.itemsize), flags)
        for _, _, packed in rights:
            fds.frombytes(packed)
    for fd in fds:
        # The child sends nothing but what the kernel gave it for a socket or a tun device.
        if filesystem_magic(fd) == _NSFS_MAGIC and is_net_namespace(fd):
            return fd
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "there is no such socket any more")


def mapped_sockets() -> tuple[list[tuple[int, int, int]], bool]:
    """The sockets that processes have mapped.

    Returns:
        Process, address, and the inode number of the socket of each; and whether it is all:
        somebody may make it take too long.

    Raises:
        OSError: the machine is short of something.
    """
    fd = os.memfd_create("mapped", os.MFD_CLOEXEC)
    with closing_fd(fd):
        complete = False
        with suppress(TimeoutError), _child("maps", fd) as child:
            complete = _ready(child, _START_SECONDS)
        found = os.pread(fd, os.fstat(fd).st_size, 0)
    whole = len(found) - len(found) % MAPPING.size
    return list(MAPPING.iter_unpack(found[:whole])), complete


@contextmanager
def _child(what: str, channel: int, *arguments: str) -> Iterator[int]:
    """A pidfd of a child that has one descriptor of ours. When the block ends, it is killed."""
    with _lock:
        _forget_ended()
        if len(_hung) >= _MAX_HUNG:
            raise TimeoutError(errno.ETIMEDOUT, "other processes have made others hang")
    # Without setsigmask, the child would inherit the signals that the calling thread blocks.
    pid = os.posix_spawn(
        sys.executable,
        [*_CHILD, what, *arguments],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, channel, 0), *_NULL],
        setsigmask=(),
    )
    child = -1
    try:
        child = os.pidfd_open(pid)
        yield child
    finally:
        os.kill(pid, signal.SIGKILL)
        # There may have been no descriptor for it.
        if child >= 0:
            _ready(child, _KILL_SECONDS)
            os.close(child)
        with _lock:
            _hung.add(pid)
            _forget_ended()


def _forget_ended() -> None:
    for pid in list(_hung):
        # Not without a limit: what hangs in close(2) does not end, killed or not.
        if os.waitpid(pid, os.WNOHANG)[0]:
            _hung.remove(pid)


def _ready(child: int, seconds: float, *others: int) -> bool:
    """Whether a child ends in that time, or one of other descriptors can be read."""
    poll = select.poll()
    for fd in (child, *others):
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
