"""What a running daemon uses."""

import os
from pathlib import Path

from conftest import Mounted, resident

from netnsfs.limits import WORKERS

MAX_THREADS = sum(WORKERS.values()) + 1 + 1 + 1
"""All workers, the event loop's, the one that hears of what others remove, the replayer's."""


class Usage:
    """What the daemon uses: memory in KiB, threads, the ways home that they have, descriptors.

    A worker is started when so many jobs are to be done at once for the first time, and opens
    its way home when it enters a namespace for the first time: both may come after any
    baseline, and MAX_THREADS bounds them.
    """

    def __init__(self, mounted: Mounted) -> None:
        proc = Path(f"/proc/{mounted.process.pid}")
        self.memory = resident(mounted.process.pid)
        self.threads = len(os.listdir(proc / "task"))
        home = os.readlink(proc / "ns/net")
        opened = [_target(proc / "fd" / fd) for fd in os.listdir(proc / "fd")]
        self.homes = opened.count(home)
        self.descriptors = len(opened) - self.homes

    def __str__(self) -> str:
        return (
            f"{self.memory} KiB, {self.threads} threads, {self.homes} ways home, "
            f"{self.descriptors} other descriptors"
        )


def descriptors(mounted: Mounted) -> int:
    """How many it has open beside the ways home."""
    return Usage(mounted).descriptors


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""
