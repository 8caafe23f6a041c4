"""What kills, freezes or orphans a daemon built on pyfuse3 3.5, each with its cure."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MNT, Mounted, Start, error_of, type_at, wait_for
from tracing import calls

Spawn = Callable[..., subprocess.Popen[bytes]]
SLOWFS = Path(__file__).parent.parent / "slowfs.py"


@pytest.fixture
def slowfs(start: Start) -> Mounted:
    return start(program=[sys.executable, str(SLOWFS), str(MNT)])


@pytest.fixture
def fusectl() -> Iterator[Path]:
    path = Path("/run/connections")
    path.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


def test_an_unexpected_exception_is_eio_with_a_traceback_and_no_end(slowfs: Mounted) -> None:
    slowfs.expected_errors += ["open failed", "Traceback"]
    assert error_of(os.open, slowfs / "bug", os.O_RDONLY) == "EIO"
    assert "ZeroDivisionError: a bug" in slowfs.messages()
    assert (slowfs / "ok").read_text() == "ok\n"


def test_a_slow_handler_keeps_nobody_else_waiting(slowfs: Mounted, spawn: Spawn) -> None:
    clients = [waiting(spawn, slowfs / "hang") for _ in range(12)]
    assert (slowfs / "ok").read_text() == "ok\n"
    assert {client.poll() for client in clients} == {None}
    # None of them can be killed before it has its answer.
    slowfs.kill()


def test_every_handler_is_bounded(slowfs: Mounted, spawn: Spawn) -> None:
    # A client that is killed waits for its answer like any other.
    victim = waiting(spawn, slowfs / "hang")
    victim.kill()
    assert error_of(os.open, slowfs / "hang", os.O_RDONLY) == "ETIMEDOUT"
    assert victim.wait(5) == -signal.SIGKILL


def waiting(spawn: Spawn, path: Path, at: str = "fuse_open") -> subprocess.Popen[bytes]:
    """A client that waits for the answer to a request."""
    client = spawn("cat", str(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack = Path(f"/proc/{client.pid}/stack")
    wait_for(lambda: at in stack.read_text())
    return client


def test_a_client_that_a_stopped_daemon_has_not_heard_can_be_killed(
    mnt: Mounted, spawn: Spawn
) -> None:
    mnt.process.send_signal(signal.SIGSTOP)
    client = waiting(spawn, mnt / "absent", "request_wait_answer")
    client.kill()
    assert client.wait(5) == -signal.SIGKILL
    mnt.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("way", ["goes on", "is killed"])
def test_a_client_that_a_stopped_daemon_has_heard_waits_for_it(
    slowfs: Mounted, spawn: Spawn, way: str
) -> None:
    client = waiting(spawn, slowfs / "hang")
    # Whatever comes later is taken later.
    assert (slowfs / "ok").read_text() == "ok\n"
    slowfs.process.send_signal(signal.SIGSTOP)
    client.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(1.5)
    slowfs.process.send_signal(signal.SIGCONT if way == "goes on" else signal.SIGKILL)
    assert client.wait(20) == -signal.SIGKILL
    if way == "is killed":
        slowfs.process.wait()


@pytest.mark.machine
def test_killed_clients_do_not_freeze_the_daemon(start: Start) -> None:
    slowfs = start(program=[sys.executable, str(SLOWFS), str(MNT), "busy"])
    random.seed(1)
    for _ in range(150):
        victim = subprocess.Popen(["stat", slowfs / "absent"], stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, 0.045))
        victim.kill()
        victim.wait()
        # Nothing else asks anything now: if the main thread has fallen into a blocking read
        # of the device, only the daemon itself can get it out again.
        wait_for(lambda: "fuse_dev_do_read" not in _stack(slowfs), 3)


def _stack(mounted: Mounted) -> str:
    return Path(f"/proc/{mounted.process.pid}/stack").read_text()


def test_sigterm_with_a_handler_in_flight(slowfs: Mounted, spawn: Spawn) -> None:
    client = waiting(spawn, slowfs / "hang")
    slowfs.process.send_signal(signal.SIGTERM)
    assert slowfs.process.wait(6) == 0
    assert client.wait(5) == 1
    assert type_at(MNT) == b""


def test_sigterm_lets_a_handler_finish_that_can(slowfs: Mounted, spawn: Spawn) -> None:
    client = waiting(spawn, slowfs / "slow")
    slowfs.process.send_signal(signal.SIGTERM)
    assert slowfs.process.wait(6) == 0
    assert client.wait(5) in (0, 1)
    assert "dropped" not in slowfs.messages()


LISTER = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
directory, file = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDONLY)
end = time.monotonic() + 4
while time.monotonic() < end:
    at = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, file, 0)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(directory, 0, 0)
    assert libc.getdents64(directory, at, 4096) > 0
    libc.munmap(at, 4096)
"""
WRITER = """
import contextlib, os, sys, time
end = time.monotonic() + 4
while time.monotonic() < end:
    # In /proc and /sys nothing can be made, but to be refused takes the lock as well.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.close(os.open(sys.argv[1] + "/other", os.O_CREAT | os.O_EXCL, 0))
        os.unlink(sys.argv[1] + "/other")
"""
CLIENT = """
import os, sys, time
end = time.monotonic() + 4
while time.monotonic() < end:
    assert not os.path.lexists(sys.argv[1] + "/absent")
    assert "foo" in os.listdir(sys.argv[1])
    os.mkdir(sys.argv[1] + "/new")
    os.rmdir(sys.argv[1] + "/new")
    # A process that is new is in no cache.
    corner = [sys.argv[1] + "/.netnsfs/" + each for each in ("pid", "init/links")]
    os.waitpid(os.posix_spawn("/bin/ls", ["ls", *corner], {}), 0)
"""


@pytest.mark.machine
@pytest.mark.parametrize("listed", ["/run/netns", "/proc", "/sys/class/net"])
def test_who_lists_a_directory_into_a_file_of_ours_stops_nobody(
    start: Start, spawn: Spawn, fusectl: Path, listed: str
) -> None:
    mounted = start("-o", "spare=8")
    (mounted / "foo").mkdir()
    at, device = str(mounted.path), os.stat(mounted.path).st_dev
    scripts = (LISTER, listed, f"{at}/foo/inode"), (WRITER, listed), (CLIENT, at)
    running = [
        spawn(sys.executable, "-c", *script, stdout=subprocess.DEVNULL) for script in scripts
    ]
    try:
        assert [process.wait(20) for process in running] == [0, 0, 0]
    except subprocess.TimeoutExpired:
        # Nothing else ends it, not even SIGKILL.
        (fusectl / str(os.minor(device)) / "abort").write_text("1")
        raise
    (mounted / "foo").rmdir()


LOOK_AT_ALL = """
for each in . a a/net a/sysctl a/links a/links/lo .netnsfs .netnsfs/*/; do
    ls -l $each
done
cat a/* a/net/dev a/sysctl/ipv4/ip_forward a/links/lo/* .netnsfs/*
readlink a/ns a/links/*/* .netnsfs/init .netnsfs/pid/1 .netnsfs/id/1
mkdir b && mv b c && chmod 700 c && ln -s c/links/x a/links/x && mv a/links/x c/links/y
echo 0 > c/sysctl/ipv4/ip_forward
rmdir c/links/y c
ls -l .netnsfs/init/ .netnsfs/init/links/ .netnsfs/init/links/lo/
true
"""


def test_the_event_loop_walks_no_path_that_may_wait(mnt: Mounted) -> None:
    (mnt / "a").mkdir()

    def look_at_all() -> None:
        for user in (0, 65534):
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            shell = [*command, "sh", "-c", LOOK_AT_ALL]
            done = subprocess.run(shell, check=True, cwd=mnt.path, capture_output=True)
            assert b"lo:" in done.stdout

    # What stays open is opened.
    look_at_all()
    # With "", it is about an open file.
    walks = [
        call.shown
        for call in calls(mnt.process.pid, look_at_all, "trace=%file,getdents64")
        if "RESOLVE_CACHED" not in call.shown and '""' not in call.shown
    ]
    assert walks == []
    (mnt / "a").rmdir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_and_exit_0(mnt: Mounted, number: signal.Signals) -> None:
    mnt.process.send_signal(number)
    assert mnt.process.wait(5) == 0
    assert type_at(MNT) == b""


def test_a_second_signal_does_no_harm(mnt: Mounted) -> None:
    while mnt.process.poll() is None:
        mnt.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert mnt.process.returncode == 0
    assert type_at(MNT) == b""


def test_signal_while_somebody_is_inside(mnt: Mounted) -> None:
    directory = os.open(mnt.path, os.O_RDONLY)
    mnt.process.send_signal(signal.SIGTERM)
    assert mnt.process.wait(5) == 0
    assert type_at(MNT) == b""
    assert error_of(os.listdir, directory) in ("ENOTCONN", "ECONNABORTED")
    os.close(directory)


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_unmounting_ends_the_daemon(mnt: Mounted, command: list[str]) -> None:
    subprocess.run([*command, mnt.path], check=True)
    assert mnt.process.wait(5) == 0


def test_unmounting_while_busy(mnt: Mounted) -> None:
    directory = os.open(mnt.path, os.O_RDONLY)
    done = subprocess.run(["umount", mnt.path], check=False, capture_output=True)
    assert b"busy" in done.stderr
    assert mnt.process.poll() is None
    subprocess.run(["umount", "-l", mnt.path], check=True)
    assert os.listdir(directory) == []
    assert os.stat(".netnsfs", dir_fd=directory).st_mode == stat.S_IFDIR | 0o555
    os.close(directory)
    assert mnt.process.wait(5) == 0


def test_forced_unmount_leaves_no_dead_mount(mnt: Mounted) -> None:
    directory = os.open(mnt.path, os.O_RDONLY)
    subprocess.run(["umount", "-f", mnt.path], check=False, capture_output=True)
    assert mnt.process.wait(5) == 0
    assert type_at(MNT) == b""
    os.close(directory)


@pytest.mark.machine
def test_abort_leaves_no_dead_mount(mnt: Mounted, fusectl: Path) -> None:
    device = os.stat(mnt.path).st_dev
    (fusectl / str(os.minor(device)) / "abort").write_text("1")
    assert mnt.process.wait(5) == 0
    assert type_at(MNT) == b""


def test_somebody_elses_mount_is_not_taken_away(mnt: Mounted) -> None:
    # After ours is gone, and before the daemon has noticed.
    mnt.process.send_signal(signal.SIGSTOP)
    subprocess.run(["umount", "-l", mnt.path], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "theirs", mnt.path], check=True)
    mnt.process.send_signal(signal.SIGTERM)
    mnt.process.send_signal(signal.SIGCONT)
    assert mnt.process.wait(5) == 0
    assert type_at(MNT) == b"tmpfs"
    subprocess.run(["umount", mnt.path], check=True)


def test_a_dead_mount_is_replaced(mnt: Mounted, start: Start) -> None:
    (mnt / "foo").mkdir()
    mnt.kill()
    assert error_of(os.listdir, mnt.path) == "ENOTCONN"
    again = start()
    assert type_at(MNT) == b"fuse.netnsfs"
    assert (again / "foo/pids").read_text() == ""
    (again / "foo").rmdir()
    again.process.terminate()
    assert again.process.wait(5) == 0
    assert type_at(MNT) == b""


def test_names_are_not_cached_for_pyfuse3s_300_seconds(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    first = os.stat(mnt / "foo")
    subprocess.run(["ip", "netns", "del", "foo"], check=True)
    assert error_of(os.stat, mnt / "foo") == "ENOENT"
    # By one tick of the coarsest clock that the kernel may give times from.
    time.sleep(0.02)
    subprocess.run(["ip", "netns", "add", "foo"], check=True)
    assert os.stat(mnt / "foo").st_mtime_ns != first.st_mtime_ns
    (mnt / "foo").rmdir()
