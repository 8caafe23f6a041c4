"""Many at once: clients, and what is there in numbers while something else is measured.

`serve_sleepers` and `serve_crowd` are programs of their own, which `scripts/bench` starts for
itself.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NoReturn

from benchmarks.mounts import CLONE_NEWNS, OURSELVES, RUN
from benchmarks.race import repeat
from netnsfs import linux


def share_out(count: int, call: Callable[[str], object], calls: int) -> None:
    """Processes that share out the calls."""
    started = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            status = 1
            with suppress(OSError, SystemExit):
                repeat(call, f"client{number}")(calls // count)
                status = 0
            os._exit(status)
        started.append(pid)
    failed = [pid for pid in started if os.waitpid(pid, 0)[1]]
    if failed:
        sys.exit("bench: a client has failed")


@contextmanager
def _serving(*words: str) -> Iterator[None]:
    """Keep a program of ours, from when it is ready until its input ends."""
    program = subprocess.Popen(
        [*OURSELVES, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    with program, program.stdin, program.stdout:
        if program.stdout.readline() != b"ready\n":
            sys.exit(f"bench: {' '.join(words)} does not start")
        yield


def having(what: str, count: int) -> AbstractContextManager[None]:
    """Keep many of something: `CROWDS` says what there is."""
    return _serving("--crowd", what, "--sleepers", str(count))


def sleepers(count: int, inside: int) -> AbstractContextManager[None]:
    """Keep processes, the last of them in the namespace `foo`; none outlives this one."""
    return _serving("--sleepers", str(count), "--inside", str(inside))


def serve_crowd(what: str, count: int) -> NoReturn:
    """Have many of something, until the input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    step = {"threads": 100, "mounts": count}.get(what, min(count, most - 50))
    reader, writer = os.pipe()
    children = 2 if what == "mounts" else -(-count // step)
    for _ in range(children):
        if not os.fork():
            kept = [*map(CROWDS[what], range(step))]
            os.write(writer, b"x")
            # Not before this line: what is kept ends with the process.
            signal.pause() if kept else None
    for _ in range(children):
        os.read(reader, 1)
    print("ready", flush=True)
    sys.stdin.read()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    sys.exit(0)


def _sleeping_thread(number: int) -> object:
    thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)
    thread.start()
    return thread


def _duplicate(number: int) -> object:
    return os.dup(_shared_socket.fileno())


def _mount_once_more(number: int) -> object:
    if number == 0:
        linux.unshare(CLONE_NEWNS)
        os.makedirs("/mnt/crowd", exist_ok=True)
    target = f"/mnt/crowd/{'x' * 200}{number}"
    os.makedirs(target, exist_ok=True)
    linux.mount(target.encode(), target.encode(), linux.MS_BIND)
    return number


_shared_socket = socket.socket()
CROWDS: dict[str, Callable[[int], object]] = {
    "threads": _sleeping_thread,
    "sockets": lambda number: socket.socket(),
    "duplicates": _duplicate,
    "mounts": _mount_once_more,
}


def serve_sleepers(count: int, inside: int) -> NoReturn:
    """Fork processes that wait for this one, which waits for the end of its input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting, never = os.pipe()
    for number in range(count):
        if number == count - inside:
            with open(RUN / "foo", "rb") as namespace:
                linux.setns(namespace.fileno(), linux.CLONE_NEWNET)
        if not os.fork():
            os.close(never)
            os.read(waiting, 1)
            os._exit(0)
    print("ready", flush=True)
    sys.stdin.read()
    os.close(never)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    sys.exit(0)
