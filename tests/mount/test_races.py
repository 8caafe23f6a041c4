"""Many at once, and the daemon killed among them."""

import os
import subprocess
import sys
import time
from functools import partial

from conftest import (
    MNT,
    RUN,
    Mounted,
    Start,
    agree,
    error_of,
    nsfs_mounts,
    resident,
    settled,
    wait_for,
)
from usage import MAX_THREADS, Usage, descriptors

STORM = """
import os, random, subprocess, sys
random.seed(int(sys.argv[1]))
bad = set()
for _ in range(150):
    name = f"n{random.randrange(20)}"
    action = random.randrange(4)
    try:
        if action == 0:
            os.mkdir(f"/mnt/netnsfs/{name}")
        elif action == 1:
            os.rmdir(f"/mnt/netnsfs/{name}")
        elif action == 2:
            subprocess.run(["ip", "netns", "add", name], stderr=subprocess.DEVNULL)
        else:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
    except OSError as error:
        if error.errno not in (2, 17):
            bad.add((action, error.errno))
print(bad or "")
"""


def test_eight_processes_make_and_remove_the_same_names(mnt: Mounted) -> None:
    clients = [
        subprocess.Popen([sys.executable, "-c", STORM, str(i)], stdout=subprocess.PIPE)
        for i in range(8)
    ]
    assert [client.communicate(timeout=100)[0] for client in clients] == [b"\n"] * 8
    agree()
    assert len(nsfs_mounts()) == len(set(nsfs_mounts()))
    for name in os.listdir(RUN):
        (mnt / name).rmdir()
    assert nsfs_mounts() == []


MKDIR_STORM = """
import itertools, os, sys
try:
    for i in itertools.count():
        os.mkdir(f"/mnt/netnsfs/{sys.argv[1]}-{i}")
except OSError:
    pass
"""


def test_sigkill_during_a_storm_of_mkdir(start: Start) -> None:
    for delay in (0.05, 0.11, 0.17):
        mounted = start()
        clients = [
            subprocess.Popen([sys.executable, "-c", MKDIR_STORM, str(i)]) for i in range(4)
        ]
        time.sleep(delay + 0.1)
        mounted.kill()
        for client in clients:
            client.wait(10)
        held = nsfs_mounts()
        again = start()
        assert nsfs_mounts() == held
        agree()
        stale = [name for name in os.listdir(RUN) if os.fsencode(RUN / name) not in held]
        assert len(stale) <= 4
        for name in os.listdir(RUN):
            (again / name).rmdir()
        assert nsfs_mounts() == []
        subprocess.run(["umount", MNT], check=True)
        again.process.wait(5)


def test_memory_and_descriptors_do_not_grow(mnt: Mounted) -> None:
    def pairs(count: int) -> None:
        for i in range(count):
            os.mkdir(mnt / f"x{i}")
            (mnt / f"x{i}/inode").read_text()
            os.rmdir(mnt / f"x{i}")

    pid = mnt.process.pid
    pairs(1500)
    before = settled(partial(descriptors, mnt))
    memory = resident(pid)
    pairs(3000)
    assert resident(pid) - memory < 500
    wait_for(lambda: descriptors(mnt) == before)
    assert Usage(mnt).threads <= MAX_THREADS


def test_hundreds_of_clients_at_once(mnt: Mounted) -> None:
    for i in range(5):
        (mnt / f"n{i}").mkdir()
    clients = [
        subprocess.Popen(["cat", *(mnt / f"n{i}/pids" for i in range(5))]) for _ in range(100)
    ]
    assert {client.wait(60) for client in clients} == {0}
    for i in range(5):
        (mnt / f"n{i}").rmdir()
    assert error_of(os.stat, mnt / "n0") == "ENOENT"
