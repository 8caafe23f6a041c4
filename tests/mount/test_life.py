"""The life of a daemon: what it logs, what it tells, what it survives."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import MNT, Mounted, Start, daemon, error_of, type_at, unmount, wait_for

from netnsfs import linux

Spawn = Callable[..., subprocess.Popen[bytes]]


def lines_of(mounted: Mounted) -> list[str]:
    """What it logged but for what it says of its mount namespace and of missing BTF."""
    lines = mounted.messages().split("\n")
    assert lines.pop() == ""
    others = ("machine's mount namespace", "members and holders are looked for in /proc")
    return [line for line in lines if not any(text in line for text in others)]


# The log


def test_a_rename_tells_of_the_files_that_it_leaves(mnt: Mounted, foo: Path) -> None:
    files = Path("/etc/netns/foo")
    files.parent.mkdir(exist_ok=True)
    linux.mount(b"/mnt", b"/etc/netns", linux.MS_BIND)
    files.mkdir()
    try:
        (mnt / "bar").mkdir()
        (mnt / "bar").rename(mnt / "baz")
        foo.rename(mnt / "bar")
        wait_for(lambda: len(lines_of(mnt)) > 0)
        assert lines_of(mnt) == [
            "netnsfs: INFO: /etc/netns/foo is not renamed along with the name"
        ]
        assert files.is_dir()
    finally:
        files.rmdir()
        linux.umount(b"/etc/netns", linux.MNT_DETACH)
        with suppress(OSError):
            files.parent.rmdir()
        (mnt / "bar").rename(foo)
        (mnt / "baz").rmdir()


def test_replies_that_nobody_waits_for_are_no_errors(start: Start) -> None:
    told = "DEBUG: fuse_lookup(): fuse_reply_* failed with No such file"
    # Whether a request is in flight just then is a matter of chance.
    assert any(told in end_while_asked(start("-d")) for _ in range(10))


def end_while_asked(mounted: Mounted) -> str:
    """Unmount by force while there are requests. What the daemon has told."""
    busy = [
        threading.Thread(target=error_of, args=(os.stat, mounted / f".netnsfs/unnamed/{n}"))
        for n in range(1, 41)
    ]
    for thread in busy:
        thread.start()
    wait_for(lambda: " lookup" in mounted.messages())
    while mounted.process.poll() is None:
        subprocess.run(["umount", "-f", mounted.path], check=False, capture_output=True)
    for thread in busy:
        thread.join()
    # The fixture looks for errors.
    return mounted.messages()


class Syslog:
    """A syslogd."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.start()

    def start(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)
        self._socket.bind(str(self._path))

    def next(self) -> str:
        return self._socket.recv(1 << 16).decode()

    def fill(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            while not error_of(client.sendto, b"full", str(self._path)):
                pass

    def close(self) -> None:
        self._socket.close()
        self._path.unlink()


@pytest.fixture
def dev() -> Iterator[Path]:
    """A /dev of our own."""
    path = Path("/run/dev")
    path.mkdir()
    for name in ("fuse", "null", "urandom"):
        os.mknod(path / name, 0o020666, os.stat(f"/dev/{name}").st_rdev)
    subprocess.run(["mount", "--bind", path, "/dev"], check=True)
    yield path
    subprocess.run(["umount", "-l", "/dev"], check=True)  # a daemon may be on its way out
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


@pytest.fixture
def background(dev: Path) -> Iterator[tuple[int, Syslog]]:
    """A daemon in the background, and the syslogd that it logs to."""
    syslog = Syslog(dev / "log")
    subprocess.run([sys.executable, "-m", "netnsfs"], check=True, stderr=subprocess.DEVNULL)
    yield daemon(), syslog
    unmount()
    syslog.close()


def test_in_the_background_it_logs_to_syslog(background: tuple[int, Syslog]) -> None:
    pid, syslog = background
    for _ in range(2):
        os.kill(pid, signal.SIGUSR1)
        assert syslog.next().startswith("<30>netnsfs: INFO: version ")
        syslog.close()
        syslog.start()


def test_a_syslogd_that_hangs_does_not_stop_it(background: tuple[int, Syslog]) -> None:
    pid, syslog = background
    syslog.fill()
    os.kill(pid, signal.SIGUSR1)
    subprocess.run(["ls", MNT], check=True, timeout=10)
    os.kill(pid, signal.SIGUSR1)
    subprocess.run(["ls", MNT], check=True, timeout=10)


def test_one_line_for_each_event(start: Start) -> None:
    place = Path("/mnt/a\nb\x1b[1m")
    start(at=place).kill()
    again = start(at=place)
    shown = "/mnt/a\\nb\\x1b[1m"
    detaching = f"netnsfs: WARNING: detaching the netnsfs at {shown}, whose daemon is dead"
    assert lines_of(again) == [detaching]
    command = [sys.executable, "-m", "netnsfs", str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stderr.split("\n")[-2:] == [
        f"netnsfs: a netnsfs is already mounted at {shown}",
        "",
    ]


def test_debug_logs_each_request(start: Start) -> None:
    mounted = start("-d")
    (mounted / "a\nb").mkdir()
    (mounted / "a\nb/pids").read_text()
    assert error_of(os.stat, mounted / "absent") == "ENOENT"
    (mounted / "a\nb").rmdir()
    caller = f"uid=0 pid={os.getpid()}"
    for request in (
        rf"mkdir 1 'a\\nb' \d+ {caller}: node \d+",
        rf"lookup \d+ 'pids' {caller}: node \d+",
        rf"open \d+ \d+ {caller}: file \d+",
        r"read \d+ 0 \d+: ''",
        rf"lookup 1 'absent' {caller}: ENOENT",
        rf"rmdir 1 'a\\nb' {caller}: ok",
    ):
        found = partial(logged, mounted, rf"netnsfs: DEBUG: {request}, \d+ us")
        wait_for(found)
        assert len(found()) == 1


def logged(mounted: Mounted, pattern: str) -> list[str]:
    return [line for line in lines_of(mounted) if re.fullmatch(pattern, line)]


def test_without_debug_it_logs_nothing(mnt: Mounted, foo: Path) -> None:
    (foo / "pids").read_text()
    assert lines_of(mnt) == []


def test_sigusr1_tells_version_and_counts(mnt: Mounted, foo: Path) -> None:
    with (foo / "pids").open():
        mnt.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: lines_of(mnt))
    line = r"netnsfs: INFO: version [\d.]+, up \d+ s, \d+ nodes, 1 open files"
    assert re.fullmatch(line, lines_of(mnt)[0])
    assert mnt.process.poll() is None


# Shortages


def use(mounted: Mounted) -> list[str]:
    """Make, look at, rename, and remove a namespace: what each step says."""
    steps: list[Callable[[], object]] = [
        (mounted / "x").mkdir,
        (mounted / "x/inode").read_text,
        (mounted / "x/pids").read_text,
        lambda: os.listdir(mounted / ".netnsfs/unnamed"),
        (mounted / "x/net/dev").read_text,
        lambda: (mounted / "x").rename(mounted / "y"),
        (mounted / "y").rmdir,
    ]
    return [error_of(step) for step in steps]


WELL = [""] * 7


def test_no_descriptors(mnt: Mounted, foo: Path) -> None:
    # From then on the run directory is watched: a lookup of a new name needs no descriptor.
    assert not (mnt / "x").exists()
    limit = ["prlimit", "--pid", str(mnt.process.pid)]
    subprocess.run([*limit, "--nofile=5:4096"], check=True)
    assert error_of(os.mkdir, mnt / "x") == "EMFILE"
    told = "mkdir x: Too many open files (EMFILE), PID "
    assert (mnt / ".netnsfs/last_error").read_text().startswith(told)
    assert error_of((foo / "pids").read_text) == "EMFILE"
    assert error_of(os.listdir, mnt / ".netnsfs/unnamed") == "EMFILE"
    subprocess.run([*limit, "--nofile=1024:4096"], check=True)
    assert use(mnt) == WELL


@contextmanager
def over_proc(*mount: str) -> Iterator[None]:
    subprocess.run(["mount", *mount, "/proc"], check=True)
    try:
        yield
    finally:
        linux.umount(b"/proc", linux.MNT_DETACH)


HIDEPID = ("-t", "proc", "-o", "hidepid=2", "proc")


def test_hidepid_hides_nothing_from_root(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    with over_proc(*HIDEPID):
        inside = spawn("nsenter", f"--net={foo}/ns", "setpriv", "--reuid=65534", "sleep", "60")
        wait_for((foo / "pids").read_text)
        assert (foo / "pids").read_text() == f"{inside.pid}\n"
        assert use(mnt) == WELL


def test_hidepid_and_no_capability_to_look(start: Start) -> None:
    limited = ["setpriv", "--bounding-set=-sys_ptrace"]
    mounted = start(program=[*limited, sys.executable, "-m", "netnsfs", "-f", str(MNT)])
    # Whose capabilities it cannot see has none, so nobody may look below `unnamed`.
    closed = [*WELL[:3], "EACCES", *WELL[4:]]
    with over_proc(*HIDEPID):
        assert use(mounted) == closed
    assert use(mounted) == closed


def test_procfs_gone_for_a_while(mnt: Mounted, foo: Path) -> None:
    with over_proc("-t", "tmpfs", "none"):
        assert error_of(os.mkdir, mnt / "x") == "ENOENT"
        assert error_of((foo / "pids").read_text) == "ENOENT"
        assert (foo / "inode").read_text()
    assert type_at(MNT) == b"fuse.netnsfs"
    assert use(mnt) == WELL
