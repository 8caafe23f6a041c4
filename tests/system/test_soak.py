"""A crowd of clients at everything at once, and many namespaces at once: nothing grows.

For two minutes; with NETNSFS_LONG for half an hour, and with ten thousand namespaces. The
figures are printed.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from conftest import LONG, MNT, RUN, Mounted, agree, ip, nsfs_mounts, settled, wait_for
from usage import MOST_THREADS, Usage, descriptors

CROWD = Path(__file__).parent.parent / "crowd.py"
CLIENTS = 16
FIRST_SECONDS, SECONDS = 60, 1740 if LONG else 60
NAMESPACES = 10_000 if LONG else 500

# What may come and go with the allocator and the interpreter, in KiB.
SLACK = 2048
# The long form is for a machine that has nothing else to do.
SLOW_SECONDS = 1 if LONG else 30


class Crowd:
    """What a crowd has done: how often, the longest of each, and what it did not expect."""

    def __init__(self, seconds: float) -> None:
        self.done: Counter[str] = Counter()
        self.longest: dict[str, float] = {}
        self.unexpected: Counter[str] = Counter()
        command = [sys.executable, str(CROWD)]
        clients = [
            subprocess.Popen([*command, str(i), str(seconds)], stdout=subprocess.PIPE)
            for i in range(CLIENTS)
        ]
        for client in clients:
            self._add(json.loads(client.communicate(timeout=seconds + 100)[0]))

    def _add(self, told: dict[str, dict[str, float]]) -> None:
        self.done.update({action: int(count) for action, count in told["done"].items()})
        self.unexpected.update({what: int(n) for what, n in told["unexpected"].items()})
        for action, seconds in told["longest"].items():
            self.longest[action] = max(self.longest.get(action, 0), seconds)


def remove_all() -> None:
    for name in os.listdir(RUN):
        (MNT / name).rmdir()
    assert nsfs_mounts() == []


@pytest.mark.timeout(FIRST_SECONDS + SECONDS + 300)
def test_a_crowd_at_everything(mnt: Mounted, capsys: pytest.CaptureFixture[str]) -> None:
    first = Crowd(FIRST_SECONDS)
    agree()
    remove_all()
    settled(partial(descriptors, mnt))
    before = Usage(mnt)
    crowd = Crowd(SECONDS)
    agree()
    remove_all()
    wait_for(lambda: descriptors(mnt) <= before.descriptors)
    after = Usage(mnt)
    with capsys.disabled():
        print(f"\n{crowd.done.total()} operations of {CLIENTS} clients in {SECONDS} s")
        print(f"after {FIRST_SECONDS} s: {before}; at the end: {after}")
        for action, seconds in sorted(crowd.longest.items()):
            print(f"{action}: {crowd.done[action]}, at most {seconds:.2f} s")
    assert first.unexpected + crowd.unexpected == {}
    assert after.homes < after.threads <= MOST_THREADS
    assert after.memory - before.memory < SLACK
    # The time of an `ip` is mostly that of its start.
    asked = {act: seconds for act, seconds in crowd.longest.items() if act[:3] != "ip_"}
    assert max(asked.values()) < SLOW_SECONDS


def test_many_namespaces_at_once(mnt: Mounted, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"n{i}" for i in range(NAMESPACES)]
    # A thread that changes and one that looks.
    (mnt / "first").mkdir()
    (mnt / "first/pids").read_bytes()
    (mnt / "first").rmdir()
    settled(partial(descriptors, mnt))
    before = Usage(mnt)
    began = time.monotonic()
    for name in names:
        (mnt / name).mkdir()
    made = time.monotonic()
    inodes = {entry.name: entry.stat().st_ino for entry in os.scandir(mnt.path)}
    listed = time.monotonic()
    assert sorted(inodes) == sorted(names)
    assert len(set(inodes.values())) == NAMESPACES
    assert len(ip("netns", "list").stdout.split()) == len(nsfs_mounts()) == NAMESPACES
    full = Usage(mnt)
    removing = time.monotonic()
    for name in names:
        (mnt / name).rmdir()
    removed = time.monotonic()
    assert os.listdir(RUN) == []
    assert nsfs_mounts() == []
    wait_for(lambda: descriptors(mnt) == before.descriptors)
    after = Usage(mnt)
    with capsys.disabled():
        print(f"\n{NAMESPACES}: mkdir {made - began:.1f} s, ls -l {listed - made:.1f} s,")
        print(f"rmdir {removed - removing:.1f} s; {before}; then {full}; then {after}")
    assert after.homes < after.threads <= MOST_THREADS
