"""Members, with ip-netns(8) and lsns(8) as the other side."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import RUN, ip, wait_for

from netnsfs.netns import holders, members
from netnsfs.netns.names import Names

Spawn = Callable[..., subprocess.Popen[bytes]]

THREAD_INSIDE = """
import os, sys, threading, time
sys.path[:0] = sys.argv[2:]
from netnsfs import linux
def enter():
    linux.setns(os.open(sys.argv[1], os.O_RDONLY), linux.CLONE_NEWNET)
    print(threading.get_native_id(), flush=True)
    time.sleep(100)
threading.Thread(target=enter).start()
"""


def link(name: str) -> bytes:
    return b"net:[%d]" % os.stat(RUN / name).st_ino


def test_members_of_a_new_namespace() -> None:
    names = Names(bytes(RUN))
    made, _ = names.create(b"a")
    assert members.pids(made.link) == members.tids(made.link) == []
    names.remove(b"a")


def test_processes(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    inside = {spawn("ip", "netns", "exec", "a", "sleep", "60").pid for _ in range(3)}
    wait_for(lambda: set(members.pids(link("a"))) == inside)
    assert members.pids(link("a")) == sorted(inside)
    assert set(map(int, ip("netns", "pids", "a").stdout.split())) == inside
    assert members.tids(link("a")) == sorted(inside)
    ip("netns", "del", "a")


def test_a_thread_inside_makes_its_process_a_member(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    process = spawn(
        sys.executable, "-c", THREAD_INSIDE, str(RUN / "a"), *sys.path, stdout=subprocess.PIPE
    )
    assert process.stdout
    tid = int(process.stdout.readline())
    assert tid != process.pid
    assert members.pids(link("a")) == [process.pid]
    assert members.tids(link("a")) == [tid]
    assert ip("netns", "pids", "a").stdout == b""
    ip("netns", "del", "a")


def test_zombies_are_no_members(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    zombie = spawn("ip", "netns", "exec", "a", "true")
    wait_for(
        lambda: f"{zombie.pid} (ip) Z" in status(zombie.pid) or "(true) Z" in status(zombie.pid)
    )
    assert members.pids(link("a")) == members.tids(link("a")) == []
    ip("netns", "del", "a")


def status(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read()


@pytest.mark.machine
def test_the_initial_namespace_has_kernel_threads_and_us() -> None:
    own = os.fsencode(os.readlink("/proc/self/ns/net"))
    assert {2, os.getpid()} <= set(members.pids(own))
    leaders = {
        int(pid)
        for pid in subprocess.check_output(
            ["lsns", "-t", "net", "-n", "-o", "PID", "--task", str(os.getpid())]
        ).split()
    }
    assert leaders <= set(members.pids(own))


def test_listing_size_is_an_upper_bound() -> None:
    tasks = [tid for pid in os.listdir("/proc") if pid.isdigit() for tid in threads(pid)]
    assert members.listing_size() >= sum(len(tid) + 1 for tid in tasks)


def threads(pid: str) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


@pytest.mark.parametrize("scan", [members.pids, lambda link: [*holders.of(int(link[5:-1]))]])
def test_threads_that_start_during_a_scan_hide_no_others(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, scan: Callable[[bytes], list[object]]
) -> None:
    ip("netns", "add", "a")
    # Its PID is higher than ours: it is looked at later.
    process = spawn(
        sys.executable, "-c", THREAD_INSIDE, str(RUN / "a"), *sys.path, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    expected = scan(link("a"))
    processes, stop = members.processes, threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(300)]

    def slow() -> Any:
        found = processes()
        for thread in threads:
            thread.start()
        return found

    monkeypatch.setattr(members, "processes", slow)
    assert scan(link("a")) == expected
    stop.set()
    for thread in threads:
        thread.join()
    ip("netns", "del", "a")
