"""What is known of a directory without looking."""

import ctypes
import errno
import os
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import RUN, ip

from netnsfs import linux
from netnsfs.netns.rundir import (
    ChangeWaiter,
    DirectoryWatcher,
    MountedNames,
    RunDirectory,
    UnderlyingDirectory,
)

BASE = Path("/run/base")
ABOVE = BASE / "above"
DIRECTORY = ABOVE / "names"
LAYERS = Path("/run/layers")
OVERLAY = "lowerdir=/run/layers/low,upperdir=/run/layers/up,workdir=/run/layers/work"


@pytest.fixture(params=["tmpfs", "ramfs", "overlay", "overlay of an image"])
def local(request: pytest.FixtureRequest) -> Iterator[None]:
    """The directory is on a file system that nobody changes but through this kernel."""
    kind, _, image = request.param.partition(" of an ")
    for layer in ("low/above/names" if image else "low", "up", "work"):
        (LAYERS / layer).mkdir(parents=True)
    with mounted(kind, OVERLAY if kind == "overlay" else "mode=755"):
        yield
    subprocess.run(["rm", "-rf", LAYERS], check=True)


@contextmanager
def mounted(kind: str, options: str) -> Iterator[None]:
    BASE.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, BASE], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", BASE], check=True)
        BASE.rmdir()


@pytest.fixture
def watcher(local: None) -> Iterator[DirectoryWatcher]:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    (DIRECTORY / "old").touch()
    # What pytest keeps must not keep the descriptors.
    made = [DirectoryWatcher(bytes(DIRECTORY))]
    yield weakref.proxy(made[0])
    made.clear()


@pytest.fixture(autouse=True)
def no_directory() -> Iterator[None]:
    yield
    for path in (DIRECTORY, ABOVE):
        subprocess.run(["umount", path], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", ABOVE], check=True)
    with suppress(FileNotFoundError):
        BASE.rmdir()


def test_names_come_and_go(watcher: DirectoryWatcher) -> None:
    assert not watcher.lacks_name(b"old")
    assert watcher.lacks_name(b"new")
    (DIRECTORY / "new").touch()
    assert not watcher.lacks_name(b"new")
    (DIRECTORY / "new").unlink()
    (DIRECTORY / "directory").mkdir()
    (DIRECTORY / "link").symlink_to("nowhere")
    assert [watcher.lacks_name(name) for name in (b"new", b"directory", b"link")] == [
        True,
        False,
        False,
    ]
    (ABOVE / "elsewhere").touch()
    (ABOVE / "elsewhere").rename(DIRECTORY / b"\xff\n".decode("utf-8", "surrogateescape"))
    assert not watcher.lacks_name(b"\xff\n")


def exchange() -> None:
    (DIRECTORY / "new").touch()
    paths = bytes(DIRECTORY / "old"), bytes(DIRECTORY / "new")
    # RENAME_EXCHANGE
    assert ctypes.CDLL(None).renameat2(-100, paths[0], -100, paths[1], 2) == 0


def rename() -> None:
    (DIRECTORY / "old").rename(DIRECTORY / "new")


@pytest.mark.parametrize("change", [exchange, rename])
def test_after_a_rename_nothing_is_known(
    watcher: DirectoryWatcher, change: Callable[[], None]
) -> None:
    before = watcher.change_cookie()
    change()
    assert not any(watcher.lacks_name(name) for name in (b"old", b"new", b"absent"))
    assert watcher.overflowed_or_moved
    assert watcher.change_cookie() is not before


def bind() -> None:
    linux.mount(bytes(DIRECTORY / "old"), bytes(DIRECTORY / "old"), linux.MS_BIND)


def unmount() -> None:
    linux.umount(bytes(DIRECTORY / "old"), linux.MNT_DETACH)


def test_the_stamp_is_another_after_each_change(watcher: DirectoryWatcher) -> None:
    changes: list[Callable[[], None]] = [
        (DIRECTORY / "new").touch,
        (DIRECTORY / "new").unlink,
        bind,
        unmount,
        bind,
        lambda: linux.umount(bytes(DIRECTORY / "old"), 0),
    ]
    for change in changes:
        before = watcher.change_cookie()
        assert watcher.change_cookie() is before
        change()
        after = watcher.change_cookie()
        assert after is not before
        assert watcher.change_cookie() is after


def test_what_one_question_has_heard_the_other_knows(watcher: DirectoryWatcher) -> None:
    before = watcher.change_cookie()
    (DIRECTORY / "new").touch()
    assert not watcher.lacks_name(b"new")
    assert watcher.change_cookie() is not before


def test_changed_attributes_are_told(watcher: DirectoryWatcher) -> None:
    (DIRECTORY / "other").touch()
    watcher.change_cookie()
    watcher.owners.update({b"old": None, b"other": None})
    before = watcher.change_cookie()
    bind()
    assert watcher.change_cookie() is not before
    assert set(watcher.owners) == {b"old", b"other"}
    below = UnderlyingDirectory(bytes(DIRECTORY))
    before = watcher.change_cookie()
    change_attribute(f"/proc/self/fd/{below.fd}/old")
    assert watcher.change_cookie() is not before
    assert set(watcher.owners) == {b"other"}
    assert not watcher.overflowed_or_moved
    unmount()


def change_attribute(path: str) -> None:
    try:
        os.setxattr(path, "trusted.netnsfs-test", b"1")
    except OSError as error:
        # A ramfs keeps none.
        if error.errno != errno.ENOTSUP:
            raise
        os.chmod(path, 0o600)


def cover() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", DIRECTORY], check=True)


def move() -> None:
    DIRECTORY.rename(ABOVE / "other")


def rename_above() -> None:
    ABOVE.rename(BASE / "other")
    ABOVE.mkdir()
    (BASE / "other").rename(ABOVE / "other")


def cover_above() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", ABOVE], check=True)
    DIRECTORY.mkdir()


def remove() -> None:
    (DIRECTORY / "old").unlink()
    DIRECTORY.rmdir()


@pytest.mark.parametrize(
    "change",
    [
        move,
        rename_above,
        remove,
        cover,
        cover_above,
    ],
)
def test_a_directory_that_is_another_is_noticed(
    watcher: DirectoryWatcher, change: Callable[[], object]
) -> None:
    before = watcher.change_cookie()
    try:
        change()
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        pytest.skip("overlayfs does not rename what comes from an image")
    assert watcher.change_cookie() is not before
    assert watcher.overflowed_or_moved or not watcher.lacks_name(b"new")
    assert watcher.overflowed_or_moved


def test_too_many_events_are_noticed(watcher: DirectoryWatcher) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(most // 2 + 1):
        (DIRECTORY / "new").touch()
        (DIRECTORY / "new").unlink()
    assert not watcher.lacks_name(b"new")
    assert watcher.overflowed_or_moved


@pytest.mark.skipif(
    "hugetlbfs" not in Path("/proc/filesystems").read_text(), reason="there is no such one"
)
def test_of_a_file_system_that_is_not_known_to_be_local_not_all_is_heard() -> None:
    with mounted("hugetlbfs", "mode=755"):
        DIRECTORY.mkdir(parents=True)
        watcher = DirectoryWatcher(bytes(DIRECTORY))
        assert not watcher.is_local
        # Another machine may just have made it.
        assert not watcher.lacks_name(b"new")
        before = watcher.change_cookie()
        (DIRECTORY / "new").touch()
        assert watcher.change_cookie() is not before
        assert not watcher.overflowed_or_moved
        del watcher


def test_a_directory_below_a_link_is_not_watched() -> None:
    DIRECTORY.mkdir(parents=True)
    (ABOVE / "link").symlink_to("names")
    for path in (ABOVE / "link", ABOVE / "absent"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=r"watched|No such"):
            DirectoryWatcher(bytes(path))
        assert len(os.listdir("/proc/self/fd")) == before


# What is below the mounts


def test_mounted_names() -> None:
    mounted = MountedNames(bytes(RUN))
    ip("netns", "add", "first name")
    # What is mounted on one of several peers is mounted on all of them.
    subprocess.run(["mount", "--make-private", RUN / "first name"], check=True)
    inode = os.stat(RUN / "first name").st_ino
    assert mounted.names_of(inode) == [b"first name"]
    for name in ("second", "third"):
        (RUN / name).touch()
        subprocess.run(["mount", "--bind", RUN / "first name", RUN / name], check=True)
    assert sorted(mounted.names_of(inode)) == [b"first name", b"second", b"third"]
    (RUN / "link").symlink_to(RUN / "second")
    subprocess.run(["mount", "--bind", "/proc/self/ns/uts", RUN / "second"], check=True)
    subprocess.run(["umount", RUN / "third"], check=True)
    assert mounted.names_of(inode) == [b"first name"]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", RUN], check=True)
    assert mounted.names_of(inode) == []
    subprocess.run(["umount", RUN], check=True)
    assert mounted.names_of(inode) == [b"first name"]
    for name in ("second", "second", "first name"):
        subprocess.run(["umount", RUN / name], check=True)
    assert mounted.names_of(inode) == []
    for name in ("first name", "second", "third", "link"):
        (RUN / name).unlink()


def test_mounted_names_of_a_directory_that_is_missing(no_directory: None) -> None:
    assert MountedNames(bytes(RUN)).names_of(1) == []


def test_changes_are_waited_for(tmp_path: Path) -> None:
    changes = ChangeWaiter(bytes(RUN))
    heard = threading.Semaphore(0)

    def listen() -> None:
        for _ in range(3):
            changes.wait()
            heard.release()

    listener = threading.Thread(target=listen)
    listener.start()
    (RUN / "link").symlink_to("/proc/self/ns/net")
    assert not heard.acquire(timeout=0.2)
    (RUN / "link").unlink()
    assert heard.acquire(timeout=20)
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    assert heard.acquire(timeout=20)
    subprocess.run(["umount", tmp_path], check=True)
    assert heard.acquire(timeout=20)
    listener.join()


def test_placeholders_are_seen_below_their_mounts() -> None:
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "old").touch()
    placeholder = (DIRECTORY / "old").stat().st_ino
    linux.mount(b"/proc/self/ns/net", bytes(DIRECTORY / "old"), linux.MS_BIND)
    directory = RunDirectory(bytes(DIRECTORY))
    with linux.closing_fd(directory.open_placeholder_opath(b"old")) as fd:
        assert os.fstat(fd).st_ino == placeholder
        assert directory.is_placeholder(b"old", fd)
        unmount()
        assert directory.is_placeholder(b"old", fd)
        (DIRECTORY / "old").unlink()
        assert not directory.is_placeholder(b"old", fd)
        (DIRECTORY / "old").touch()
        assert not directory.is_placeholder(b"old", fd)


def test_what_is_mounted_before_the_clone_is_private_covers_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    DIRECTORY.mkdir(parents=True)
    bound = bytes(DIRECTORY)
    linux.mount(bound, bound, linux.MS_BIND)
    linux.mount(None, bound, linux.MS_SHARED)
    (DIRECTORY / "old").touch()
    placeholder = (DIRECTORY / "old").stat().st_ino
    directory = RunDirectory(bound)
    make_private = linux.make_private

    def late(mount: int) -> None:
        monkeypatch.setattr(linux, "make_private", make_private)
        linux.mount(b"/proc/self/ns/net", bytes(DIRECTORY / "old"), linux.MS_BIND)
        # As a kernel does that mounts in the clone too.
        target = b"/proc/self/fd/%d/old" % mount
        with suppress(OSError):
            linux.mount(b"/proc/self/ns/net", target, linux.MS_BIND)
        make_private(mount)

    monkeypatch.setattr(linux, "make_private", late)
    with linux.closing_fd(directory.open_placeholder_opath(b"old")) as fd:
        assert os.fstat(fd).st_ino == placeholder
    unmount()


def test_a_directory_made_anew_has_other_placeholders() -> None:
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "old").touch()
    directory = RunDirectory(bytes(DIRECTORY))
    with linux.closing_fd(directory.open_placeholder_opath(b"old")) as fd:
        remove()
        DIRECTORY.mkdir()
        (DIRECTORY / "old").touch()
        assert not directory.is_placeholder(b"old", fd)


def test_a_look_below_mounts_outlives_the_clone_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "old").touch()
    directory = RunDirectory(bytes(DIRECTORY))
    statx = linux.statx

    def replace_clone(path: bytes, *where: int) -> linux.Stat:
        if path == b"old":
            # As another thread does.
            directory._uncovered = None
        return statx(path, *where)

    with linux.closing_fd(directory.open_placeholder_opath(b"old")) as fd:
        monkeypatch.setattr(linux, "statx", replace_clone)
        assert directory.is_placeholder(b"old", fd)
