"""The processors: whether others leave them alone, and how many are used."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_BUSY = 0.1
"""Quota of the processors that others may use before a section."""
QUIET_SECONDS = 120.0


def wait_for_quiet() -> float:
    """Wait for a while until others leave the processors alone.

    Returns:
        The share of the processors that they use, also if that is too much.
    """
    end = time.monotonic() + QUIET_SECONDS
    while (share := _busy_share()) > MAX_BUSY and time.monotonic() < end:
        pass
    return share


def _busy_share() -> float:
    before = _processor_times()
    time.sleep(0.5)
    idle, total = (
        after - start for after, start in zip(_processor_times(), before, strict=True)
    )
    return 1 - idle / total


def _processor_times() -> tuple[int, int]:
    """Of all processors: idle, and in all (proc_stat(5))."""
    with open("/proc/stat") as lines:
        times = [int(word) for word in next(lines).split()[1:9]]
    return times[3] + times[4], sum(times)


@contextmanager
def one_processor() -> Iterator[None]:
    """Keep us, and what we start, on one processor.

    On two, half of the time of a request is the waking of the other one, and whether two
    processes share a processor is the scheduler's mood, which lasts for many rounds.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
