"""Every test runs as root, in a mount namespace of the test run's own with an empty /run and
/mnt, against this kernel, and must leave nothing behind.

The lowest folder comes first: linux, netns, node, fuse, mount, system. With `-p randomly`, the
order within a folder is random. Each test begins with the run directory as the first
`ip netns add` after a boot leaves it.
Others use the machine too: no test may assume the value of a sysctl, that an nsid is free, or
that no other process starts or ends meanwhile.
"""

import errno
import fcntl
import gc
import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis.configuration import set_hypothesis_home_dir

from netnsfs import linux
from netnsfs.netns import tasks
from netnsfs.netns.bpf_scanner import BpfScanner
from netnsfs.tree import callers

# pytest loads this file by a name of its own; what tests import is to be the same module.
sys.modules["conftest"] = sys.modules[__name__]

CHECKOUT = Path(__file__).parents[1]
RUN = Path("/run/netns")
MNT = Path("/mnt/netnsfs")
# What the package keeps open, once it was asked for.
KEPT_OPEN = ("/proc/loadavg", "/proc/sys/fs/file-nr")

T = TypeVar("T")

LONG = bool(os.environ.get("NETNSFS_LONG"))
"""Tests that can go on for longer, or search at random, do (scripts/test --long)."""

USER_MODE_LINUX = "User Mode Linux" in Path("/proc/cpuinfo").read_text()
"""Where this kernel is a program (scripts/guest): a fork takes milliseconds."""

needs_btf = pytest.mark.skipif(
    not os.path.exists("/sys/kernel/btf/vmlinux"), reason="this kernel has no BTF"
)
"""For what is done in the kernel, by BPF. User-mode Linux has no BTF."""

kills_forks = pytest.mark.skipif(
    USER_MODE_LINUX and os.uname().release.startswith("6.12."),
    reason="user-mode Linux 6.12 panics where a fork is killed",
)
"""For what kills processes while they fork."""

IN_KERNEL = pytest.param(BpfScanner, marks=needs_btf)

HOLD_THREAD = """
import ctypes, os, sys, threading, time
def enter():
    fd = os.open(sys.argv[1], os.O_RDONLY)
    ctypes.CDLL(None).setns(fd, 0)
    os.close(fd)
    print(threading.get_native_id(), flush=True)
    time.sleep(100)
threading.Thread(target=enter).start()
"""

CLONE_NEWNS = 0x20000

nsids = itertools.count(10**6 + os.getpid() % 10**5 * 10**4)
"""Numbers that no other namespace of the machine has, nor one that is just ending."""


def pytest_configure() -> None:
    missing = [tool for tool in ("ip", "nsenter", "lsns", "unshare") if not shutil.which(tool)]
    if os.geteuid() != 0 or missing or not os.path.exists("/dev/fuse"):
        pytest.exit(f"the tests need root, /dev/fuse and iproute2 (missing: {missing})", 3)
    # What the shell of whoever runs this brings along.
    os.umask(0o022)
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ.pop("NOTIFY_SOCKET", None)
    linux.unshare(CLONE_NEWNS)
    linux.mount(None, b"/", linux.MS_REC | linux.MS_PRIVATE)
    _take_away_what_is_mounted()
    in_memory = ["-t", "tmpfs", "-o", "mode=755", "tmpfs"]
    # On an odd machine it is on a disk (odd_machine.sh).
    run = ["--bind", os.environ["NETNSFS_RUN"]] if "NETNSFS_RUN" in os.environ else in_memory
    subprocess.run(["mount", *run, "/run"], check=True)
    subprocess.run(["mount", *in_memory, "/mnt"], check=True)
    MNT.mkdir()
    # What it keeps open is not a test's.
    tasks.counts()
    list(tasks.one_of_each(()))
    callers.proc_hides_tasks()
    # Gone with the mount namespace.
    set_hypothesis_home_dir("/run/hypothesis")


def _take_away_what_is_mounted() -> None:
    """Let no name and no netnsfs of the machine be in this mount namespace."""
    places = (b"/run/", b"/mnt/")
    for mount in reversed([*linux.mounts()]):
        if mount.fs_type in (b"nsfs", b"fuse.netnsfs") or mount.target.startswith(places):
            # Those of a user namespace's parent are locked, mount_namespaces(7).
            with suppress(OSError):
                linux.umount(mount.target, linux.MNT_DETACH)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folders = [config.rootpath / folder for folder in config.getini("testpaths")]
    items.sort(key=lambda item: folders.index(item.path.parent))


def ip(*arguments: str | bytes, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=60)


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """A bind mount, until the block ends; what still uses it may go on."""
    linux.mount(bytes(source), bytes(target), linux.MS_BIND)
    try:
        yield
    finally:
        linux.umount(bytes(target), linux.MNT_DETACH)


@pytest.fixture
def checkout() -> Iterator[Path]:
    """The checkout where everybody can reach it, wherever it is."""
    path = Path("/run/checkout")
    path.mkdir()
    with bound(CHECKOUT, path):
        yield path
    path.rmdir()


def python_in(checkout: Path) -> str:
    """The Python that runs this, by way of a checkout that is bound elsewhere."""
    path = Path(sys.executable)
    inside = path.is_relative_to(CHECKOUT)
    return str(checkout / path.relative_to(CHECKOUT) if inside else path)


@contextmanager
def no_more_mounts() -> Iterator[int]:
    """The limit of mounts is reached in this mount namespace until the block ends.

    It is the limit of every mount namespace of the machine. So there are many mounts in this
    one first, for others to have room left.

    Yields:
        The limit.
    """
    path = "/proc/sys/fs/mount-max"
    with _many_mounts(1000), linux.closing_fd(os.open(path, os.O_RDWR)) as fd:
        # Two test runs must not take each other's limit for the machine's.
        fcntl.flock(fd, fcntl.LOCK_EX)
        before, limit = os.pread(fd, 99, 0), len([*linux.mounts()])
        os.pwrite(fd, b"%d" % limit, 0)
        try:
            yield limit
        finally:
            os.pwrite(fd, before, 0)


@contextmanager
def _many_mounts(count: int) -> Iterator[None]:
    place = Path("/mnt/many")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    (place / "x").mkdir()
    for _ in range(count):
        linux.mount(b"/proc", bytes(place / "x"), linux.MS_BIND)
    try:
        yield
    finally:
        linux.umount(bytes(place), linux.MNT_DETACH)
        place.rmdir()


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds * (6 if USER_MODE_LINUX else 1)
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def unmount_idle(target: Path) -> None:
    """umount(8) of what a daemon, or its replayer, may be looking at just now."""
    wait_for(lambda: not subprocess.run(["umount", "-q", target], check=False).returncode)


def settled(measure: Callable[[], T]) -> T:
    """What is measured when it has not changed for half a second.

    For a baseline: what a daemon has just done may still be ending, such as a close(2).
    """
    found, since = measure(), time.monotonic()
    deadline = since + 20
    while time.monotonic() < since + 0.5:
        time.sleep(0.01)
        again = measure()
        if again != found:
            found, since = again, time.monotonic()
            assert since < deadline, "it does not settle"
    return found


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """Let this process open so many descriptors, and no more, until the block ends."""
    opened = [os.open("/", os.O_PATH) for _ in range(count + 1)]
    for fd in opened:
        os.close(fd)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def apart(function: Callable[[], T]) -> T:
    """Call it on a thread of its own."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


async def others_run(job: Awaitable[object]) -> bool:
    """Whether another task had its turn meanwhile."""
    turns: list[int] = []

    async def other() -> None:
        turns.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await job
        return bool(turns)


def error_of(function: Callable[..., object], *args: object) -> str:
    """The name of the errno that a call fails with, or "" if it works."""
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def shortage_gives(function: Callable[[], object]) -> set[str]:
    """What a call fails with, with ever more descriptors until it works."""
    outcomes: list[str] = []
    while "" not in outcomes:
        with few_descriptors(len(outcomes)):
            outcomes.append(error_of(function))
    return set(outcomes)


def type_at(path: Path) -> bytes:
    """The type of the file system mounted at a path, or nothing."""
    try:
        top = linux.mount_at(bytes(path))
    except FileNotFoundError:
        return b""
    return top.fs_type if top else b""


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError


def agree() -> None:
    """The mount, ip-netns(8), the directory and mountinfo must tell the same."""
    shown = set(os.listdir(MNT))
    listed = {line.split()[0].decode() for line in ip("netns", "list").stdout.splitlines()}
    live = {name for name in shown if os.stat(MNT / name).st_mode & 0o777}
    assert shown == listed == set(os.listdir(RUN))
    assert live == {os.path.basename(path).decode() for path in nsfs_mounts()}


def _answers(path: Path) -> bool:
    # Not while a dead mount is still there, nor when it has just been taken away.
    return not error_of(os.statvfs, path) and type_at(path).startswith(b"fuse")


def fuse_mounts() -> list[bytes]:
    return [mount.target for mount in mounts(b"fuse.netnsfs")]


def nsfs_mounts() -> list[bytes]:
    return [mount.target for mount in mounts(b"nsfs")]


def mounts(fs_type: bytes) -> list[linux.Mount]:
    return [mount for mount in linux.mounts() if mount.fs_type == fs_type]


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    kept = ("/fd", *KEPT_OPEN)
    return {fd: target for fd, target in found.items() if not target.endswith(kept)}


def new_run_directory() -> None:
    """RUN as the first `ip netns add` leaves it: empty, and a shared mount of its own."""
    no_run_directory()
    RUN.mkdir()
    path = bytes(RUN)
    linux.mount(path, path, linux.MS_BIND)
    linux.mount(None, path, linux.MS_PRIVATE)
    linux.mount(None, path, linux.MS_SHARED)


def no_run_directory() -> None:
    """As after a boot."""
    with suppress(OSError):
        while True:
            linux.umount(bytes(RUN), linux.MNT_DETACH)
    if RUN.exists():
        shutil.rmtree(RUN)


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail a test that leaves a name, a mount, a process, a thread or a descriptor."""
    new_run_directory()
    before = _descriptors()
    threads = threading.active_count()
    home = os.readlink("/proc/thread-self/ns/net")
    yield
    gc.collect()
    names, mounts = (os.listdir(RUN) if RUN.exists() else []), nsfs_mounts()
    for target in [*fuse_mounts(), *mounts]:
        with suppress(OSError):
            linux.umount(target, linux.MNT_DETACH)
    assert names == []
    assert mounts == []
    assert fuse_mounts() == []
    assert os.readlink("/proc/thread-self/ns/net") == home
    # A worker closes its way home as it ends.
    wait_for(lambda: threading.active_count() <= threads)
    assert _descriptors() == before
    assert _children() == set()


def daemon() -> int:
    """The PID of the daemon in the background: the one netnsfs of this mount namespace.

    One that was refused may still be on its way out when its command has ended.
    """
    wait_for(lambda: len(_daemons()) == 1)
    return _daemons()[0]


def _daemons() -> list[int]:
    own = os.readlink("/proc/self/ns/mnt")
    return [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if b"\0netnsfs\0" in command_of(pid) and mount_namespace(pid) == own
    ]


def command_of(pid: int) -> bytes:
    """A process's command line, nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def complaints(text: str) -> list[str]:
    """What the program said beyond that this is not the machine's mount namespace."""
    return [line for line in text.splitlines() if "machine's mount namespace" not in line]


def mount_namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def unmount() -> None:
    """Unmount /mnt/netnsfs, which is served in the background, and wait for its daemon."""
    pid = daemon()
    subprocess.run(["umount", MNT], check=True)
    wait_for(lambda: not command_of(pid))


@contextmanager
def sshfs(source: Path, target: Path, *options: str) -> Iterator[None]:
    """A directory seen over SFTP, without a network or an sshd in between."""
    server = shutil.which("sftp-server") or "/usr/lib/openssh/sftp-server"
    target.mkdir(parents=True)
    left, right = socket.socketpair()
    with left, right:
        sftp = subprocess.Popen([server], stdin=left.fileno(), stdout=left.fileno())
        command = ["sshfs", "-f", "-o", ",".join(["passive", *options])]
        client = subprocess.Popen(
            [*command, f"host:{source}", str(target)],
            stdin=right.fileno(),
            stdout=right.fileno(),
        )
    try:
        wait_for(lambda: type_at(target) == b"fuse.sshfs")
        yield
    finally:
        subprocess.run(["umount", target], check=True)
        client.wait(10)
        sftp.wait(10)
        target.rmdir()


@dataclass
class Mounted:
    """A netnsfs in the foreground, with its log in a file."""

    path: Path
    process: subprocess.Popen[bytes]
    log: Path
    expected_errors: list[str] = field(default_factory=list)

    def __truediv__(self, name: str | bytes) -> Path:
        return self.path / os.fsdecode(name)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def messages(self) -> str:
        return self.log.read_text(errors="replace")


Start = Callable[..., Mounted]


_before_program: list[str] = []


@pytest.fixture
def refused_bpf() -> Iterator[None]:
    """The daemon may not use bpf(2)."""
    _before_program[:] = [sys.executable, str(Path(__file__).with_name("without_bpf.py"))]
    yield
    _before_program.clear()


@pytest.fixture(params=[pytest.param("in the kernel", marks=needs_btf), "through /proc"])
def both_ways(request: pytest.FixtureRequest) -> None:
    """The test is made twice: with a daemon that may use bpf(2), and with one that may not."""
    if request.param == "through /proc":
        request.getfixturevalue("refused_bpf")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start netnsfs in the foreground: start("-o", "...", at=PATH, program=[...])."""
    started: list[Mounted] = []

    def run(*arguments: str, at: Path = MNT, program: list[str] | None = None) -> Mounted:
        log = tmp_path / f"log{len(started)}"
        command = program or [sys.executable, "-m", "netnsfs", "-f", *arguments, str(at)]
        command = [*_before_program, *command]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL)
        mounted = Mounted(at, process, log)
        started.append(mounted)
        wait_for(lambda: process.poll() is not None or _answers(at))
        assert process.poll() is None, mounted.messages()
        return mounted

    yield run
    for mounted in reversed(started):
        if mounted.process.poll() is None:
            mounted.process.send_signal(signal.SIGTERM)
        try:
            mounted.process.wait(20)
        except subprocess.TimeoutExpired:
            mounted.kill()
            pytest.fail("the daemon does not end on SIGTERM")
    for mounted in started:
        errors = [
            line
            for line in mounted.messages().splitlines()
            if ("ERROR" in line or "Traceback" in line)
            and not any(expected in line for expected in mounted.expected_errors)
        ]
        assert errors == [], mounted.messages()


@pytest.fixture
def mnt(start: Start) -> Mounted:
    """A netnsfs at /mnt/netnsfs."""
    return start()


@pytest.fixture
def foo(mnt: Mounted) -> Iterator[Path]:
    """A namespace called foo."""
    (mnt / "foo").mkdir()
    yield mnt / "foo"
    if (RUN / "foo").exists():
        (mnt / "foo").rmdir()


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that lives until the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, **options: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield run
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
