"""Processes that do not hold still, in and outside of a namespace: forkers.py FILE KIND N...

Kinds, each with a number: `forking` processes fork and end, and the child goes on; `breeding`
ones ignore SIGTERM and fork children that end soon; `moving` ones enter one after another;
`outside` ones do as `forking` ones do, stay outside and write a line if they get a signal. So
does this process itself.

Prints a line when all have been started. All end, if they were not killed, when the input ends.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PR_SET_CHILD_SUBREAPER = 36

libc = ctypes.CDLL(None, use_errno=True)
beginning, begin = os.pipe()


def enter() -> None:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    assert libc.setns(fd, 0) == 0
    os.close(fd)


def go_on(seconds: float) -> bool:
    """Whether the input has not ended, after a pause."""
    return not select.select([0], [], [], seconds)[0]


def child(*steps: Callable[[], object]) -> None:
    if os.fork() == 0:
        for step in steps:
            step()
        os._exit(0)


def child_inside(step: Callable[[], object]) -> None:
    """The same, and wait until it has entered. It begins when all have."""
    reader, writer = os.pipe()

    def wait() -> None:
        os.close(begin)
        os.write(writer, b".")
        os.close(writer)
        os.read(beginning, 1)

    child(enter, wait, step)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)


def fork_and_end(pause: float = 0) -> None:
    while go_on(pause) and not os.fork():
        pass


def forking() -> None:
    child_inside(fork_and_end)


def breed() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while go_on(0):
        child(lambda: go_on(0.01))


def breeding() -> None:
    child_inside(breed)


def moving() -> None:
    child(lambda: heed_signals(signal.SIG_DFL), enter, lambda: go_on(1000))
    time.sleep(0.005)


def tell(number: int, _: object) -> None:
    os.write(1, b"got signal %d\n" % number)


def heed_signals(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, handler)


def outside() -> None:
    child(lambda: os.close(begin), lambda: heed_signals(tell), lambda: fork_and_end(0.01))


KINDS = {function.__name__: function for function in (forking, breeding, moving, outside)}


if __name__ == "__main__":
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Nobody is left as a zombie, whosever child.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    started: list[Callable[[], None]] = []
    for kind, count in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        started += [KINDS[kind]] * int(count)
    # Those that move come when the others are there.
    for start in started:
        if start is not moving:
            start()
    heed_signals(tell)
    os.close(begin)
    os.write(1, b"ready\n")
    for start in started:
        if start is moving:
            start()
    while go_on(1000):
        pass
