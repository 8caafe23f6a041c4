"""poll(2) on open lists of members: told when the first comes, and when the last one goes."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import (
    CHECKOUT,
    RUN,
    Mounted,
    Start,
    error_of,
    ip,
    needs_btf,
    python_in,
    wait_for,
)

from netnsfs import linux
from netnsfs.netns.populated_events import LINGER_SECONDS

Spawn = Callable[..., subprocess.Popen[bytes]]

CHANGED = select.POLLPRI | select.POLLERR
READY = select.POLLIN | select.POLLOUT
MOMENT_MS = 300

needs_probes = [
    pytest.mark.skipif(
        not linux.in_initial_user_namespace(), reason="probes are not for a user namespace"
    ),
    needs_btf,
]

THREAD_GOES_IN_AND_OUT = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
def move():
    home, inside = (os.open(path, os.O_RDONLY) for path in ("/proc/self/ns/net", sys.argv[1]))
    for fd in (inside, home, inside):
        print(sys.stdin.readline(), flush=True)
        assert libc.setns(fd, 0) == 0
    print(sys.stdin.readline(), flush=True)
    assert libc.unshare(0x40000000) == 0
    print(sys.stdin.readline(), flush=True)
thread = threading.Thread(target=move)
thread.start()
thread.join()
"""

MOVE_ABOUT = """
import ctypes, os, random, sys, threading, time
libc = ctypes.CDLL(None)
CLONE_NEWNET = 0x40000000
home, inside = (os.open(path, os.O_RDONLY) for path in ("/proc/self/ns/net", sys.argv[1]))
def move():
    for _ in range(random.randrange(6)):
        assert libc.setns(inside, 0) == 0
        time.sleep(random.random() / 1000)
        new = random.random() < 0.1
        assert (libc.unshare(CLONE_NEWNET) if new else libc.setns(home, 0)) == 0
        time.sleep(random.random() / 1000)
    if random.random() < 0.3:
        assert libc.setns(inside, 0) == 0
        stays.append(True)
    arrived.wait()
    ends.wait()
while sys.stdin.readline():
    stays, arrived, ends = [], threading.Barrier(4), threading.Event()
    threads = [threading.Thread(target=move) for _ in range(3)]
    for thread in threads:
        thread.start()
    arrived.wait()
    print(bool(stays), flush=True)
    sys.stdin.readline()
    ends.set()
    for thread in threads:
        thread.join()
    print(flush=True)
"""

LEADER_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(100,)).start()
print(flush=True)
ctypes.CDLL(None).syscall(60 if __import__("os").uname().machine == "x86_64" else 93, 0)
"""

POLLER = """
import os, select, sys
poll, names = select.poll(), {}
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    names[fd] = path
    poll.register(fd, select.POLLPRI)
print("ready", flush=True)
while True:
    for fd, events in poll.poll():
        assert events == select.POLLPRI | select.POLLERR, events
        print(names[fd], len(os.pread(fd, 1 << 16, 0)) > 0, flush=True)
"""


class Open:
    """An open file that is waited for as cgroup.events is."""

    def __init__(self, path: Path, events: int = select.POLLPRI) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self._poll = select.poll()
        self._poll.register(self.fd, events)
        self.read()

    def read(self) -> list[int]:
        return [int(line) for line in os.pread(self.fd, 1 << 16, 0).split()]

    def wait(self, milliseconds: int = 20000) -> int:
        found = self._poll.poll(milliseconds)
        return found[0][1] if found else 0


@contextmanager
def opened(path: Path, events: int = select.POLLPRI) -> Iterator[Open]:
    file = Open(path, events)
    try:
        yield file
    finally:
        os.close(file.fd)


@pytest.fixture
def pids(foo: Path) -> Iterator[Open]:
    with opened(foo / "pids") as file:
        yield file


def enter(spawn: Spawn, *command: str, name: str = "foo") -> subprocess.Popen[bytes]:
    return spawn("nsenter", f"--net={RUN / name}", *(command or ("sleep", "100")))


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def links_of(pid: int) -> int:
    """How many BPF programs of a process's are attached."""
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:bpf_link"
    return found


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep, and so were woken."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary")
    )


CLEAN_END = re.search(
    r"^End the processes in a namespace, wait.*?-offset indent\n(.*?)\.Ed",
    (CHECKOUT / "netnsfs/data/netnsfs.8").read_text(),
    re.M | re.S,
)


class TestTold:
    pytestmark = needs_probes

    def test_a_clean_end(self, mnt: Mounted, spawn: Spawn) -> None:
        red = mnt / "red"
        red.mkdir()
        # It takes a moment to end.
        slow = ["sh", "-c", "trap 'sleep 0.5; exit' TERM; echo; while :; do sleep 0.1; done"]
        command = ["ip", "netns", "exec", "red", *slow]
        inside = spawn(*command, stdout=subprocess.PIPE)
        assert inside.stdout
        assert inside.stdout.readline()
        assert CLEAN_END
        lines = [line.partition("# ")[2] for line in CLEAN_END[1].splitlines()]
        assert len(lines) == 3
        subprocess.run(["sh", "-euc", "\n".join(lines)], check=True, timeout=60)
        assert not red.exists()
        assert inside.wait(20) is not None

    def test_the_first_comes_and_the_last_goes(self, pids: Open, spawn: Spawn) -> None:
        assert pids.wait(MOMENT_MS) == 0
        process = enter(spawn)
        assert pids.wait() == CHANGED
        # Until it is read again.
        assert pids.wait() == CHANGED
        assert pids.read() == [process.pid]
        assert pids.wait(MOMENT_MS) == 0
        end(process)
        assert pids.wait() == CHANGED
        assert pids.read() == []
        assert pids.wait(MOMENT_MS) == 0

    def test_what_is_told_while_one_waits(self, pids: Open, spawn: Spawn) -> None:
        for _ in range(10):
            told: list[int] = []
            waiting = threading.Thread(target=lambda: told.append(pids.wait()))  # noqa: B023
            waiting.start()
            process = enter(spawn)
            waiting.join()
            assert told == [CHANGED]
            assert pids.read() == [process.pid]
            waiting = threading.Thread(target=lambda: told.append(pids.wait()))  # noqa: B023
            waiting.start()
            end(process)
            waiting.join()
            assert told == [CHANGED] * 2
            assert pids.read() == []

    def test_others_that_come_and_go(self, pids: Open, spawn: Spawn) -> None:
        first = enter(spawn)
        assert pids.wait() == CHANGED
        assert pids.read() == [first.pid]
        second = enter(spawn)
        wait_for(lambda: len(pids.read()) == 2)
        assert pids.wait(MOMENT_MS) == 0
        end(first)
        assert pids.wait(MOMENT_MS) == 0
        end(second)
        assert pids.wait() == CHANGED

    def test_control_groups(self, foo: Path, spawn: Spawn) -> None:
        with open(foo / "cgroups", "rb", buffering=0) as file:
            assert file.read() == b""
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            process = enter(spawn)
            assert poll.poll(20000) == [(file.fileno(), CHANGED)]
            assert os.pread(file.fileno(), 1 << 16, 0)
            assert poll.poll(MOMENT_MS) == []
            end(process)
            assert poll.poll(20000) == [(file.fileno(), CHANGED)]

    def test_a_thread_that_moves(self, foo: Path, pids: Open, spawn: Spawn) -> None:
        command = [sys.executable, "-c", THREAD_GOES_IN_AND_OUT, str(RUN / "foo")]
        process = spawn(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin
        with opened(foo / "tids") as tids:
            for inside in (True, False, True, False):
                process.stdin.write(b"\n")
                for file in (pids, tids):
                    assert file.wait() == CHANGED
                    assert bool(file.read()) == inside
        end(process)
        assert pids.wait(MOMENT_MS) == 0

    def test_a_leader_that_ends_before_its_threads(self, pids: Open, spawn: Spawn) -> None:
        process = enter(
            spawn,
            sys.executable,
            "-c",
            LEADER_ENDS,
        )
        assert pids.wait() == CHANGED
        status = Path(f"/proc/{process.pid}/status")
        wait_for(lambda: "State:\tZ" in status.read_text())
        assert pids.read() == [process.pid]
        assert pids.wait(MOMENT_MS) == 0
        end(process)
        assert pids.wait() == CHANGED
        assert pids.read() == []

    def test_a_zombie(self, pids: Open, spawn: Spawn) -> None:
        process = enter(spawn)
        assert pids.wait() == CHANGED
        assert pids.read() == [process.pid]
        process.send_signal(signal.SIGKILL)
        # Nobody has waited for it.
        assert pids.wait() == CHANGED
        assert pids.read() == []

    def test_what_happens_before_anybody_waits(self, foo: Path, spawn: Spawn) -> None:
        with opened(foo / "pids") as never_read, opened(foo / "pids") as file:
            process = enter(spawn)
            wait_for((foo / "pids").read_bytes)
            assert file.wait() == never_read.wait() == CHANGED
            assert file.read() == [process.pid]

    def test_whatever_is_true_in_the_end_is_told(self, pids: Open, spawn: Spawn) -> None:
        command = [sys.executable, "-c", MOVE_ABOUT, str(RUN / "foo")]
        process = spawn(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin
        assert process.stdout
        for _ in range(150):
            process.stdin.write(b"\n")
            seen = pids.read()
            while not select.select([process.stdout], [], [], 0)[0]:
                if pids.wait(1):
                    seen = pids.read()
            stays = process.stdout.readline() == b"True\n"
            while bool(seen) != stays:
                assert pids.wait() == CHANGED
                seen = pids.read()
            process.stdin.write(b"\n")
            while seen:
                assert pids.wait() == CHANGED
                seen = pids.read()
            process.stdout.readline()

    def test_select_and_epoll(self, pids: Open, spawn: Spawn) -> None:
        with select.epoll() as epoll:
            epoll.register(pids.fd, select.EPOLLPRI | select.EPOLLET)
            assert epoll.poll(MOMENT_MS / 1000) == []
            process = enter(spawn)
            assert epoll.poll(20) == [(pids.fd, select.EPOLLPRI | select.EPOLLERR)]
            assert pids.read() == [process.pid]
            end(process)
            assert epoll.poll(20) == [(pids.fd, select.EPOLLPRI | select.EPOLLERR)]
        assert select.select([], [], [pids.fd], 20)[2] == [pids.fd]

    def test_a_name_that_is_removed(self, mnt: Mounted, spawn: Spawn) -> None:
        removals: list[Callable[[], object]] = [
            (mnt / "a").rmdir,
            lambda: ip("netns", "del", "a"),
        ]
        for remove in removals:
            for inside in (False, True):
                ip("netns", "add", "a")
                process = enter(spawn, name="a") if inside else None
                wait_for(lambda: not inside or (mnt / "a/pids").read_bytes())  # noqa: B023
                with opened(mnt / "a/pids") as file:
                    assert file.wait(MOMENT_MS) == 0
                    remove()
                    assert file.wait() == CHANGED
                    assert error_of(file.read) in ("ENODEV", "ESTALE")
                if process:
                    end(process)

    def test_a_namespace_without_a_name(self, mnt: Mounted, spawn: Spawn) -> None:
        process = spawn("unshare", "-n", "sleep", "100")
        own = os.stat("/proc/self/ns/net").st_ino
        namespace = Path(f"/proc/{process.pid}/ns/net")
        wait_for(lambda: namespace.stat().st_ino != own)
        with opened(mnt / f".netnsfs/unnamed/{namespace.stat().st_ino}/pids") as file:
            assert file.read() == [process.pid]
            assert file.wait(MOMENT_MS) == 0
            end(process)
            assert file.wait() == CHANGED

    def test_many_users_and_names(self, mnt: Mounted, spawn: Spawn, checkout: Path) -> None:
        names = [f"n{i}" for i in range(20)]
        for name in names:
            (mnt / name).mkdir()
        paths = [str(mnt / name / "pids") for name in names]
        command = [python_in(checkout), "-c", POLLER, *paths]
        pollers = [
            spawn(*command, stdout=subprocess.PIPE, user=user, group=user)
            for user in (0, 0, 12345, 12345, 12346)
        ]
        lines = [poller.stdout for poller in pollers if poller.stdout]
        for line in lines:
            assert line.readline() == b"ready\n"
        processes = [enter(spawn, name=name) for name in names]
        everyone = {f"{path} True\n".encode() for path in paths}
        for line in lines:
            assert {line.readline() for _ in names} == everyone
        for process in processes:
            end(process)
        for line in lines:
            assert {line.readline() for _ in names} == {
                f"{path} False\n".encode() for path in paths
            }
        for name in names:
            (mnt / name).rmdir()

    def test_nothing_is_left(self, mnt: Mounted, foo: Path, spawn: Spawn) -> None:
        (foo / "pids").read_bytes()
        pid = mnt.process.pid
        before = links_of(pid)
        poller = spawn(sys.executable, "-c", POLLER, foo / "pids", stdout=subprocess.PIPE)
        assert poller.stdout
        assert poller.stdout.readline() == b"ready\n"
        wait_for(lambda: links_of(pid) == before + 3)
        assert "netnsfs-members" in threads_of(pid)
        end(poller)
        wait_for(lambda: links_of(pid) == before)
        wait_for(lambda: "netnsfs-members" not in threads_of(pid))

    def test_the_daemon_sleeps(self, mnt: Mounted, foo: Path, spawn: Spawn) -> None:
        (mnt / "bar").mkdir()
        poller = spawn(sys.executable, "-c", POLLER, foo / "pids", stdout=subprocess.PIPE)
        assert poller.stdout
        assert poller.stdout.readline() == b"ready\n"
        pid = mnt.process.pid
        time.sleep(1 + LINGER_SECONDS)
        before = switches(pid)
        storm = "for i in $(seq 500); do /bin/true; done"
        for where in ([], ["ip", "netns", "exec", "bar"]):
            subprocess.run([*where, "sh", "-c", storm], check=True)
        # The heartbeat wakes it, and ip-netns(8) changes a mount; none of the thousand
        # processes does.
        assert switches(pid) - before < 500
        (mnt / "bar").rmdir()

    def test_a_storm_inside(self, foo: Path, pids: Open, spawn: Spawn) -> None:
        process = enter(spawn, "sh", "-c", "while :; do /bin/true; done")
        assert pids.wait() == CHANGED
        assert pids.read()
        assert pids.wait(2000) == 0
        end(process)
        assert pids.wait() == CHANGED
        wait_for(lambda: not pids.read())

    def test_the_end_of_the_daemon(self, start: Start, spawn: Spawn) -> None:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            mounted = start()
            with suppress(FileExistsError):
                (mounted / "foo").mkdir()
            poller = spawn(
                sys.executable, "-c", POLLER, mounted / "foo/pids",
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert poller.stdout
            assert poller.stdout.readline() == b"ready\n"
            mounted.process.send_signal(stop)
            mounted.process.wait(20)
            # Woken, and the file is none any more.
            assert poller.wait(20) == 1
        ip("netns", "del", "foo")


def threads_of(pid: int) -> set[str]:
    return {(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()}


def test_other_files_are_ready_and_never_change(foo: Path) -> None:
    for name in ("inode", "nsid", "sysctl/ipv4/ip_forward"):
        fd = os.open(foo / name, os.O_RDONLY)
        poll = select.poll()
        poll.register(fd, READY | select.POLLPRI)
        assert poll.poll(20000) == [(fd, READY)]
        poll.modify(fd, select.POLLPRI)
        assert poll.poll(MOMENT_MS) == []
        os.close(fd)


@pytest.mark.usefixtures("refused_bpf")
def test_where_it_cannot_be_told(mnt: Mounted, spawn: Spawn) -> None:
    (mnt / "foo").mkdir()
    with opened(mnt / "foo/pids") as only, opened(mnt / "foo/pids", READY) as any_of_them:
        process = enter(spawn)
        wait_for((mnt / "foo/pids").read_bytes)
        assert only.wait(MOMENT_MS) == 0
        assert any_of_them.wait() == READY
        end(process)
    (mnt / "foo").rmdir()
    assert mnt.messages().count("poll(2)") <= 1
