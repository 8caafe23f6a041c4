"""Readers of one file at the same time: each reads what was true when it was opened.

sendfile(2), splice(2) and mmap(2) take what the kernel has in its pages, up to the size that it
knows, and both belong to the node, not to the open file.
"""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import LONG, Mounted, wait_for

ROUNDS = 400 if LONG else 60

CHURN = """
import os, sys, time
path, number = sys.argv[1], 0
while True:
    number += 1
    os.mkdir(f"{path}/{'x' * (number % 90 + 1)}")
    time.sleep(0.002)
    os.rmdir(f"{path}/{'x' * (number % 90 + 1)}")
"""

FORKS = """
import os, subprocess, time
while True:
    them = [subprocess.Popen(["sleep", "60"]) for _ in range(7)]
    time.sleep(0.01)
    for one in them:
        one.kill(), one.wait()
"""

Spawn = Callable[..., subprocess.Popen[bytes]]


def by_sendfile(fd: int) -> bytes:
    """What sendfile(2) delivers of an open file, as busybox copies it."""
    to = os.memfd_create("to")
    try:
        while os.sendfile(to, fd, None, 1 << 20):
            pass
        return os.pread(to, 1 << 20, 0)
    finally:
        os.close(to)


def by_splice(fd: int) -> bytes:
    found = b""
    end, to = os.pipe()
    try:
        while count := os.splice(fd, to, 1 << 15):
            found += os.read(end, count)
        return found
    finally:
        os.close(end)
        os.close(to)


def by_mmap(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if not size:
        return b""
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ) as found:
        return found[:]


def by_length(fd: int) -> bytes:
    """As what sends a length before it sends the content."""
    return by_sendfile(fd).ljust(os.fstat(fd).st_size, b"\0")


WAYS = (by_sendfile, by_splice, by_mmap, by_length)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def inside(foo: Path, spawn: Spawn) -> Callable[[], None]:
    """Let one more process be inside of foo."""

    def enter() -> None:
        before = (foo / "pids").read_bytes()
        spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
        wait_for(lambda: len((foo / "pids").read_bytes()) > len(before))

    return enter


@pytest.mark.parametrize("way", WAYS)
def test_open_files_of_one_name_have_each_their_content(
    foo: Path, inside: Callable[[], None], way: Callable[[int], bytes]
) -> None:
    with opened(foo / "pids") as empty:
        inside()
        with opened(foo / "pids") as one:
            expected = os.pread(one, 99, 1), (foo / "pids").read_bytes()
            inside()
            with opened(foo / "pids") as two:
                told = os.read(two, 99)
                assert len(told) > len(expected[1]) > 0
                os.lseek(two, 0, os.SEEK_SET)
                assert way(one) == expected[1]
                assert way(empty) == b""
                assert way(two) == told


def test_a_file_that_is_kept_open_is_not_what_stat_tells_of(
    foo: Path, inside: Callable[[], None]
) -> None:
    with opened(foo / "pids") as empty:
        number = os.fstat(empty).st_ino
        inside()
        now = (foo / "pids").read_bytes()
        assert os.fstat(empty).st_size == 0
        if (foo / "pids").stat().st_size != 4096:
            assert (foo / "pids").stat().st_size == len(now)
        assert os.fstat(empty).st_size == 0
        # What follows a name (tail -F) takes another number for another file.
        assert (foo / "pids").stat().st_ino == number == os.fstat(empty).st_ino
        with opened(foo / "pids") as other:
            assert os.fstat(other).st_ino == number


def test_a_file_that_is_opened_again_by_its_descriptor(
    foo: Path, inside: Callable[[], None]
) -> None:
    with opened(foo / "pids") as empty:
        inside()
        with opened(Path(f"/proc/self/fd/{empty}")) as again:
            assert os.read(again, 99) == (foo / "pids").read_bytes()
            assert os.read(empty, 99) == b""


def test_whoever_writes_spoils_no_reader(mnt: Mounted, foo: Path) -> None:
    (foo / "links/lo/addresses").write_text("+10.1.2.3/32\n")
    for path in (foo / "sysctl/ipv4/ip_local_port_range", foo / "links/lo/addresses"):
        with opened(path) as fd:
            size = os.fstat(fd).st_size
            expected = path.read_bytes()
            with opened(path, os.O_WRONLY | os.O_TRUNC) as writer:
                os.write(writer, b"1024 1025" if "sysctl" in str(path) else b"-10.1.2.3/32")
                assert os.fstat(fd).st_size == size
                assert by_sendfile(fd) == expected


def read_beside(
    mnt: Mounted, path: Path, other: tuple[str, str], whole: Callable[[bytes], bool]
) -> int:
    """How many of many readers got less or more than what was there at open."""
    reader = f"while :; do busybox cat {path}; done > /dev/null"
    loops = [
        subprocess.Popen(["sh", "-c", reader], start_new_session=True),
        subprocess.Popen([sys.executable, "-c", *other], start_new_session=True),
    ]
    try:
        wrong = 0
        for _ in range(ROUNDS):
            done = subprocess.run(
                ["busybox", "cat", str(path)], check=True, capture_output=True, timeout=60
            )
            wrong += not whole(done.stdout)
            with opened(path) as fd:
                wrong += not whole(by_mmap(fd))
        return wrong
    finally:
        for loop in loops:
            with suppress(ProcessLookupError):
                os.killpg(loop.pid, 9)
            loop.wait()
        for name in os.listdir(mnt.path):
            if set(name) == {"x"}:
                (mnt / name).rmdir()


def test_counters_are_never_cut(mnt: Mounted, foo: Path) -> None:
    path = mnt / ".netnsfs/metrics"
    metrics = path.read_bytes().count(b"# HELP ")

    def whole(text: bytes) -> bool:
        ends = text.endswith(b"\n") and b"\0" not in text
        return ends and text.count(b"# HELP ") == metrics

    assert read_beside(mnt, path, (CHURN, str(mnt.path)), whole) == 0


def test_lists_are_never_cut(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    spawn("nsenter", f"--net={foo}/ns", sys.executable, "-c", FORKS)

    def whole(text: bytes) -> bool:
        lines = text.split(b"\n")
        return lines[-1] == b"" and all(line.isdigit() for line in lines[:-1])

    idle = "import time; time.sleep(1000)"
    assert read_beside(mnt, foo / "pids", (idle, ""), whole) == 0
