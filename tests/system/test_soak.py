"""A crowd of clients at everything at once, and many namespaces at once: nothing grows.

For two minutes; with NETNSFS_LONG for half an hour, beside three hostile users, and with ten
thousand namespaces. The figures are printed.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import LONG, MNT, RUN, Mounted, agree, ip, nsfs_mounts, settled, wait_for
from hostile import INTERFACES
from usage import MAX_THREADS, Usage, descriptors

from netnsfs.tree.sysfs import MAX_MOUNTS

CROWD = Path(__file__).parent.parent / "crowd.py"
HOSTILE = CROWD.with_name("hostile.py")
CLIENTS = 16
USERS = (4711, 4712, 65534)
# With each, how long before the first look at what the daemon uses, and how long after it.
FORMS = {
    "alone": ((), 60, 60),
    **({"beside hostile users": (USERS, 60, 1740)} if LONG else {}),
}
NAMESPACES = 10_000 if LONG else 500

# What may come and go with the allocator and the interpreter, in KiB.
SLACK = 2048
# Of 300 threads at once, more.
HOSTILE_SLACK = 8192
# The long form is for a machine that has nothing else to do.
SLOW_SECONDS = 1 if LONG else 30
# They have threads enough to keep the processors from a crowd of root's.
HOSTILE_SLOW_SECONDS = 10


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


@contextmanager
def hostile_users(users: Sequence[int], seconds: float) -> Iterator[None]:
    """Some users who do their worst until the block ends."""
    if users:
        (RUN / "link").symlink_to("/proc/1/ns/net")
    for user in users:
        give_namespaces(user)
    command = [sys.executable, str(HOSTILE)]
    processes = [
        subprocess.Popen([*command, str(user), str(seconds)], stdout=subprocess.PIPE, text=True)
        for user in users
    ]
    try:
        yield
    finally:
        told = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
        (RUN / "link").unlink(missing_ok=True)
    for user in told:
        print(f"a hostile user: {user['done']}")
        assert user["unexpected"] == {}


def give_namespaces(user: int) -> None:
    mine, yours = f"mine-{user}", f"yours-{user}"
    for name in (mine, yours):
        (MNT / name).mkdir()
        os.chown(MNT / name, user, user)
    for interface in ("moving", *(f"long{number}" for number in range(INTERFACES))):
        command = ["link", "add", interface, "type", "veth", "peer", f"{interface}-peer"]
        ip("-n", mine, *command)


def remove_all() -> None:
    for name in os.listdir(RUN):
        (MNT / name).rmdir()
    assert nsfs_mounts() == []


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("users", "first_seconds", "seconds"), FORMS.values(), ids=FORMS)
def test_a_crowd_at_everything(
    mnt: Mounted,
    users: Sequence[int],
    first_seconds: float,
    seconds: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with hostile_users(users, first_seconds):
        first = Crowd(first_seconds)
    agree()
    remove_all()
    settled(partial(descriptors, mnt))
    before = Usage(mnt)
    with hostile_users(users, seconds), capsys.disabled():
        crowd = Crowd(seconds)
    agree()
    remove_all()
    # What was not looked at before may be by now.
    wait_for(lambda: descriptors(mnt) <= before.descriptors + MAX_MOUNTS)
    after = Usage(mnt)
    with capsys.disabled():
        print(f"\n{crowd.done.total()} operations of {CLIENTS} clients in {seconds} s")
        print(f"after {first_seconds} s: {before}; at the end: {after}")
        for action, longest in sorted(crowd.longest.items()):
            print(f"{action}: {crowd.done[action]}, at most {longest:.2f} s")
    assert first.unexpected + crowd.unexpected == {}
    assert after.homes < after.threads <= MAX_THREADS
    assert after.memory - before.memory < (HOSTILE_SLACK if users else SLACK)
    # The time of an `ip` is mostly that of its start.
    asked = {act: longest for act, longest in crowd.longest.items() if act[:3] != "ip_"}
    assert max(asked.values()) < (HOSTILE_SLOW_SECONDS if users else SLOW_SECONDS)


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
    assert after.homes < after.threads <= MAX_THREADS
