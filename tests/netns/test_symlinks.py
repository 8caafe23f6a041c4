"""SymlinkFollower in the run directory: followed to where they lead, and never for long."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RUN, apart, bound, error_of

from netnsfs import linux
from netnsfs.jobs import never_block
from netnsfs.netns import symlinks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.symlinks import SymlinkFollower


@pytest.fixture(autouse=True)
def run_directory() -> None:
    RUN.mkdir(exist_ok=True)


def test_a_link_is_never_followed_into_our_own_mount() -> None:
    names = NamedNamespaces(bytes(RUN))
    target = Path("/mnt/own")
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "own", target], check=True)
    try:
        (target / "x").touch()
        subprocess.run(["mount", "--bind", "/proc/self/ns/net", target / "x"], check=True)
        os.symlink(target / "x", RUN / "lnk")
        assert names.identify(b"lnk") is not None
        names.links.avoid = {linux.statx(bytes(target)).dev}
        assert names.identify(b"lnk") is None
        assert error_of(names.open_namespace, b"lnk") == "ELOOP"
        names.remove(b"lnk")
    finally:
        subprocess.run(["umount", target / "x"], check=True)
        subprocess.run(["umount", target], check=True)
        target.rmdir()


def follow(links: SymlinkFollower, path: Path) -> int:
    with linux.closing_fd(os.open(path, os.O_PATH | os.O_NOFOLLOW)) as fd:
        mark = linux.statx(b"", fd)
        # Another link in its place is not the one that is followed.
        path.unlink()
        path.symlink_to("elsewhere")
        return links.follow(fd, mark)


def test_what_is_followed_is_the_link_that_was_seen() -> None:
    links, path = SymlinkFollower(bytes(RUN)), RUN / "lnk"
    path.symlink_to("../../proc/self/ns/net")
    with linux.closing_fd(follow(links, path)) as fd:
        assert os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino
    assert error_of(follow, links, path) == "ENOENT"
    path.unlink()


def test_a_link_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    links, path, go_on = SymlinkFollower(bytes(RUN)), RUN / "lnk", threading.Event()
    path.symlink_to("/proc/self/ns/net")
    open_no_xdev = linux.open_no_xdev

    def hang(path: bytes, avoid: object, pid: int) -> int:
        go_on.wait(30)
        return open_no_xdev(path, (), pid)

    monkeypatch.setattr(linux, "open_no_xdev", hang)
    monkeypatch.setattr(symlinks, "FOLLOW_SECONDS", 0.2)
    with linux.closing_fd(os.open(path, os.O_PATH | os.O_NOFOLLOW)) as fd:
        mark = linux.statx(b"", fd)
        started = time.monotonic()
        assert error_of(links.follow, fd, mark) == "ETIMEDOUT"
        assert time.monotonic() >= started + 0.2
        threads = threading.active_count()
        assert error_of(links.follow, fd, mark) == "ETIMEDOUT"
        assert threading.active_count() == threads
        go_on.set()
    path.unlink()


def test_where_a_link_leads_is_told_by_what_is_in_the_cache(mnt_bound: Path) -> None:
    links, own = SymlinkFollower(bytes(RUN)), os.stat("/proc/self/ns/net").st_ino

    def peek(target: str | Path) -> int | None:
        (RUN / "lnk").unlink(missing_ok=True)
        (RUN / "lnk").symlink_to(target)
        # A walk that may wait brings it there.
        if os.path.exists(RUN / "lnk"):
            os.close(follow_by_name(links))
        path = links.read_cached(b"lnk")
        assert path == os.path.join(RUN, target).encode()
        return links.peek(path)

    def follow_by_name(links: SymlinkFollower) -> int:
        with linux.closing_fd(os.open(RUN / "lnk", os.O_PATH | os.O_NOFOLLOW)) as fd:
            try:
                return links.follow(fd, linux.statx(b"", fd))
            except OSError:
                return os.open("/", os.O_PATH)

    assert peek("/proc/self/ns/net") == own
    assert peek("../../proc/self/ns/net") == own
    assert peek(mnt_bound) == own
    (RUN / "other").symlink_to(mnt_bound)
    assert peek("other") == own
    assert peek("/proc/self/ns/pid") is None
    assert peek("/proc/self/exe") is None
    assert error_of(peek, "/nowhere") in ("", "ENOENT")
    assert peek("lnk") is None
    (RUN / "lnk").unlink()
    (RUN / "lnk").touch()
    assert links.read_cached(b"lnk") is None
    (RUN / "lnk").unlink()
    (RUN / "other").unlink()


@pytest.fixture
def mnt_bound() -> Iterator[Path]:
    """The own namespace's file, mounted elsewhere."""
    path = Path("/mnt/bound")
    path.touch()
    with bound(Path("/proc/self/ns/net"), path):
        yield path
    path.unlink()


def test_a_task_that_is_gone_is_known_to_be_gone() -> None:
    names = NamedNamespaces(bytes(RUN))
    process = subprocess.Popen(["sleep", "60"])
    (RUN / "lnk").symlink_to(f"/proc/{process.pid}/ns/net")
    assert names.identify(b"lnk") is not None
    process.kill()
    process.wait()

    def identify() -> object:
        # Without a worker, which this thread would have to ask.
        never_block()
        return names.identify(b"lnk")

    assert apart(identify) is None
    (RUN / "lnk").unlink()
