"""A daemon that many ask without a pause, and one that nobody asks."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Mounted, ip

CLIENTS = 8
IDLE_SECONDS = 5
WAKE_UPS_A_SECOND = 2

FLOOD = """
import os, sys
for _ in range(int(sys.argv[2]) - 1):
    if not os.fork():
        break
try:
    while True:
        os.stat(sys.argv[1])
except OSError:
    pass
"""


@contextmanager
def flood(path: Path) -> Iterator[None]:
    command = [sys.executable, "-c", FLOOD, str(path), str(CLIENTS)]
    clients = subprocess.Popen(command, start_new_session=True)
    try:
        time.sleep(0.5)
        yield
    finally:
        os.killpg(clients.pid, signal.SIGKILL)
        clients.wait()


def median(count: int, action: Callable[[], object]) -> float:
    """How many seconds it takes."""

    def once() -> float:
        began = time.monotonic()
        action()
        return time.monotonic() - began

    return statistics.median(once() for _ in range(count))


@pytest.fixture
def flooded(mnt: Mounted, foo: Path) -> Iterator[Mounted]:
    with flood(foo):
        yield mnt


def test_signals_are_heeded_under_a_flood(flooded: Mounted) -> None:
    def ask() -> None:
        told = flooded.messages().count("open files")
        flooded.process.send_signal(signal.SIGUSR1)
        while flooded.messages().count("open files") == told:
            time.sleep(0.001)

    assert median(20, ask) < 0.2


def test_results_are_heeded_under_a_flood(flooded: Mounted) -> None:
    def change() -> None:
        (flooded / "x").mkdir()
        (flooded / "x").rmdir()

    assert median(20, change) < 0.5
    assert median(20, (flooded / "foo/pids").read_bytes) < 0.5


def test_the_end_is_heeded_under_a_flood(mnt: Mounted) -> None:
    ip("netns", "add", "foo")
    with flood(mnt / "foo"):
        mnt.process.send_signal(signal.SIGTERM)
        assert mnt.process.wait(10) == 0
    ip("netns", "del", "foo")


def test_a_daemon_that_nobody_asks_sleeps(mnt: Mounted, foo: Path) -> None:
    for _ in range(1000):
        foo.stat()
    (foo / "pids").read_bytes()
    time.sleep(1)
    before = wake_ups(mnt)
    time.sleep(IDLE_SECONDS)
    # The heartbeat's, and what bounds the memory.
    assert wake_ups(mnt) - before <= IDLE_SECONDS * WAKE_UPS_A_SECOND + 5


def wake_ups(mounted: Mounted) -> int:
    """How often its threads have gone to sleep so far."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{mounted.process.pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary")
    )
