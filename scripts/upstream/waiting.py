"""How much of a small request is the wait for the next one. Run as root.

It measures stat(2) in the smallest pyfuse3 file system, as it is, and with a stand-in for two
objects of trio that pyfuse3 waits with: a lock that makes no pass of the scheduler while it is
free, and a wait that is a poll(2) in place while trio has had its turn in the last two
milliseconds. Client and server share one processor.
"""

import os
import select
import time
from statistics import median
from types import SimpleNamespace

import pyfuse3
import trio
from smallest import mounted

CALLS = 2000
ROUNDS = 20
TURN_SECONDS = 0.002


class UnfairLock:
    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        self._held = False
        self._waiting.unpark()


class WaitInPlace:
    def __init__(self) -> None:
        self._last_turn = 0.0

    async def wait_readable(self, fd: int) -> None:
        if time.monotonic() - self._last_turn < TURN_SECONDS:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(TURN_SECONDS * 1000):
                return
        await trio.lowlevel.wait_readable(fd)
        self._last_turn = time.monotonic()


def put_stand_in() -> None:
    lowlevel = {**vars(trio.lowlevel), "wait_readable": WaitInPlace().wait_readable}
    stand_in = {**vars(trio), "Lock": UnfairLock, "lowlevel": SimpleNamespace(**lowlevel)}
    vars(pyfuse3)["trio"] = SimpleNamespace(**stand_in)


def processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def measure(label: str) -> None:
    with mounted() as (mount_point, pid):
        path = os.path.join(mount_point, "foo")
        means = []
        before = processor_seconds(pid)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(CALLS):
                os.stat(path)
            means.append((time.perf_counter() - began) / CALLS)
        used = (processor_seconds(pid) - before) / CALLS / ROUNDS
    print(
        f"{label}: {median(means) * 1e6:.1f} µs a stat (least {min(means) * 1e6:.1f}), "
        f"of which the server runs for {used * 1e6:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measure("as it is")
    put_stand_in()
    measure("with the stand-in")
