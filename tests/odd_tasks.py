"""Tasks and descriptors of all kinds, in and of a namespace: odd_tasks.py FILE KIND...

Prints a line when all are there, and keeps them until its input ends.
"""

import ctypes
import mmap
import os
import platform
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SYS_EXIT = 60 if platform.machine() == "x86_64" else 93
CLONE_FILES = 0x400
SOL_PACKET = 263
PACKET_RX_RING = 5
CLONE_FS_AND_NEWNS = 0x200 | 0x20000

libc = ctypes.CDLL(None, use_errno=True)
kept: list[object] = []
ready: list[threading.Event] = []


def enter() -> None:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    assert libc.setns(fd, 0) == 0
    os.close(fd)


@contextmanager
def inside() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter()
    try:
        yield
    finally:
        libc.setns(home, 0)
        os.close(home)


def on_thread(*steps: Callable[[], object]) -> None:
    event = threading.Event()

    def run() -> None:
        for step in steps:
            step()
        event.set()
        time.sleep(1000)

    threading.Thread(target=run, daemon=True).start()
    assert event.wait(10)


def thread_inside() -> None:
    on_thread(enter)


def threads_elsewhere() -> None:
    for _ in range(3):
        on_thread(lambda: None)


def open_both() -> None:
    kept.append(os.open(sys.argv[1], os.O_RDONLY))
    with inside():
        kept.append(socket.socket())


def table_of_a_thread() -> None:
    on_thread(lambda: libc.unshare(CLONE_FILES), open_both)


def mounts_of_a_thread() -> None:
    on_thread(lambda: libc.unshare(CLONE_FS_AND_NEWNS))


def descriptor() -> None:
    kept.append(os.dup(os.open(sys.argv[1], os.O_RDONLY)))


def sockets() -> None:
    with inside():
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
            kept.append(socket.socket(family, socket.SOCK_DGRAM))
    kept.append(os.dup(kept[-1].fileno()))  # type: ignore[attr-defined]


def tun() -> None:
    with inside():
        kept.append(os.open("/dev/net/tun", os.O_RDWR))


def copies() -> None:
    """Many descriptors of one socket, and many of one namespace file."""
    with inside():
        kept.append(first := socket.socket())
    file = os.open(sys.argv[1], os.O_RDONLY)
    for fd in (first.fileno(), file):
        for _ in range(400):
            os.dup(fd)


def mapped() -> None:
    """A packet ring that stays mapped when its socket is closed (packet_mmap.rst)."""
    with inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        ring = struct.pack("=4I", 4096, 1, 2048, 2)
        packets.setsockopt(SOL_PACKET, PACKET_RX_RING, ring)
        # Not mmap.mmap(), which keeps a descriptor of its own.
        length, offset = ctypes.c_size_t(4096), ctypes.c_long(0)
        libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, packets.fileno(), offset)


def in_flight() -> None:
    left, right = socket.socketpair()
    with inside(), socket.socket() as sent:
        socket.send_fds(left, [b"x"], [sent.fileno()])
    kept.extend((left, right))


def passed_on() -> None:
    left, right = socket.socketpair()
    with inside(), socket.socket() as sent:
        socket.send_fds(left, [b"x"], [sent.fileno()])
    if child(lambda: kept.append(socket.recv_fds(right, 1, 1))):
        left.close()
        right.close()


def child(*steps: Callable[[], object]) -> int:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for step in steps:
            step()
        os.close(writer)
        time.sleep(1000)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    children.append(pid)
    return pid


children: list[int] = []


def process_inside() -> None:
    child(enter)


def zombie() -> None:
    pid = child(enter, open_both, lambda: os._exit(0))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def ended_leader() -> None:
    """The first thread of a process ends; the others have two tables between them."""
    pid = os.fork()
    if pid == 0:
        open_both()
        thread_inside()
        threads_elsewhere()
        table_of_a_thread()
        libc.syscall(SYS_EXIT, 0)
    children.append(pid)
    while open(f"/proc/{pid}/stat", "rb").read().rpartition(b") ")[2][:1] != b"Z":
        time.sleep(0.01)


def vfork_child() -> None:
    """A child that shares the memory of its parent until it has started a program."""
    fifo = tempfile.mkdtemp(dir="/run") + "/fifo"
    os.mkfifo(fifo)
    fifos.append(fifo)

    def start() -> None:
        enter()
        # Not os.posix_spawn(), which keeps the interpreter locked.
        actions, pid = ctypes.create_string_buffer(256), ctypes.c_int()
        arguments = (ctypes.c_char_p * 3)(b"sleep", b"0", None)
        libc.posix_spawn_file_actions_init(actions)
        libc.posix_spawn_file_actions_addopen(actions, 9, fifo.encode(), os.O_RDONLY, 0)
        libc.posix_spawn(ctypes.byref(pid), b"/bin/sleep", actions, None, arguments, None)

    # It is not back before the program has started.
    threading.Thread(target=start, daemon=True).start()
    time.sleep(0.1)


fifos: list[str] = []
KINDS = {
    function.__name__: function
    for function in (
        *(thread_inside, threads_elsewhere, table_of_a_thread, mounts_of_a_thread, descriptor),
        *(sockets, tun, in_flight, passed_on, process_inside, zombie, ended_leader),
        *(vfork_child, copies, mapped),
    )
}


if __name__ == "__main__":
    for kind in sys.argv[2:]:
        KINDS[kind]()
    print(*children, flush=True)
    sys.stdin.read()
    for fifo in fifos:
        os.close(os.open(fifo, os.O_WRONLY))
        os.unlink(fifo)
        os.rmdir(os.path.dirname(fifo))
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    os._exit(0)
