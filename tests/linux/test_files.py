"""Looks at files that never wait, and paths that never enter a file system."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import error_of

from netnsfs import linux


@pytest.fixture
def place() -> Iterator[Path]:
    """A file system of its own."""
    path = Path("/mnt/place")
    path.mkdir()
    # To write the access time of a link may take longer than to follow it.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noatime", "place", path], check=True)
    yield path
    linux.umount(bytes(path), linux.MNT_DETACH)
    path.rmdir()


# statx


def test_statx_tells_what_stat_does(place: Path) -> None:
    file = place / "file"
    file.touch(mode=0o640)
    (place / "link").symlink_to("file")
    shown, found = os.stat(file), linux.statx(bytes(file))
    assert (found.mode, found.ino) == (shown.st_mode, shown.st_ino)
    assert found.ctime_s * 10**9 + found.ctime_ns == shown.st_ctime_ns
    assert (found.major, found.minor) == (os.major(shown.st_dev), os.minor(shown.st_dev))
    assert linux.statx(bytes(place / "link")).ino == os.lstat(place / "link").st_ino
    assert linux.statx(bytes(place / "link"), flags=linux.FOLLOW) == found
    with linux.closing_fd(os.open(file, os.O_PATH)) as fd:
        assert linux.statx(b"", fd) == linux.statx_raw(b"", fd) == found
    with linux.closing_fd(os.open(place, os.O_PATH)) as fd:
        assert linux.statx(b"file", fd) == found
    assert error_of(linux.statx, bytes(place / "absent")) == "ENOENT"


def test_a_mount_that_follows_another_at_the_same_place_is_another(place: Path) -> None:
    target = bytes(place / "file")
    Path(os.fsdecode(target)).touch()
    seen = set()
    for _ in range(3):
        linux.mount(target, target, linux.MS_BIND)
        seen.add(linux.statx(target).mount)
        if max(seen) < linux.FIRST_UNIQUE_MOUNT:
            pytest.skip("this kernel gives the IDs of mounts again")
        linux.umount(target, 0)
    assert len(seen) == 3


def test_what_is_in_the_cache_is_told_at_once(place: Path) -> None:
    path = bytes(place / "file")
    Path(os.fsdecode(path)).touch()
    assert linux.statx_cached(path) == linux.statx_packed(path)
    (place / "link").symlink_to("file")
    for follow, same in ((False, "link"), (True, "file")):
        fd = linux.open_cached(bytes(place / "link"), follow)
        assert fd is not None
        with linux.closing_fd(fd):
            assert os.fstat(fd).st_ino == os.lstat(place / same).st_ino


def test_what_the_kernel_would_have_to_look_for_is_left_to_others(place: Path) -> None:
    for path in (place / "absent", Path(f"/proc/{os.getpid()}/task/absent/stat")):
        assert linux.statx_cached(bytes(path)) is None
        assert linux.open_cached(bytes(path)) is None


def test_file_systems_are_told_by_their_magic(place: Path) -> None:
    with linux.closing_fd(os.open(place, os.O_PATH)) as fd:
        assert linux.filesystem_magic(fd) in linux.LOCAL_FILESYSTEMS
    with linux.closing_fd(os.open("/proc", os.O_PATH)) as fd:
        assert linux.filesystem_magic(fd) not in linux.LOCAL_FILESYSTEMS


def test_a_rename_replaces_nothing(place: Path) -> None:
    for name in ("old", "there"):
        (place / name).write_text(name)
    old, there, new = (bytes(place / name) for name in ("old", "there", "new"))
    assert error_of(linux.rename_noreplace, old, there) == "EEXIST"
    assert (place / "there").read_text() == "there"
    linux.rename_noreplace(old, new)
    assert (place / "new").read_text() == "old"
    assert error_of(linux.rename_noreplace, old, new) == "ENOENT"


# Locks


def test_a_lock_is_waited_for_as_long_as_asked(place: Path) -> None:
    with linux.locked(bytes(place), 0):
        other = os.open(place, os.O_RDONLY)
        assert error_of(linux.lock, other, 0.05) == "ETIMEDOUT"
    linux.lock(other, 0)
    os.close(other)


def test_a_lock_that_becomes_free_is_had(place: Path) -> None:
    holder = os.open(place, os.O_RDONLY)
    linux.lock(holder, 0)
    timer = threading.Timer(0.1, os.close, [holder])
    timer.start()
    with linux.locked(bytes(place), 60):
        timer.join()


# Paths that never enter a file system


def ino(path: Path, *avoid: int, pid: int = 0) -> int:
    """The inode number of what `open_no_xdev` opens."""
    with linux.closing_fd(linux.open_no_xdev(bytes(path), avoid, pid or os.getpid())) as fd:
        return os.fstat(fd).st_ino


@pytest.fixture
def inside(place: Path) -> Iterator[Path]:
    """A directory, mounted where it is not to be entered."""
    (place / "fs").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inside", place / "fs"], check=True)
    (place / "fs/a/b").mkdir(parents=True)
    yield place / "fs"
    linux.umount(bytes(place / "fs"), linux.MNT_DETACH)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("link", "file"),
        ("link", "./directory/../file"),
        ("link", "{place}/file"),
        ("link", "//{place}//directory/./../file"),
        ("link", "other"),
        ("directory/link", "../file"),
        ("directory/link", "../other"),
    ],
)
def test_a_path_leads_where_the_kernel_says(place: Path, link: str, target: str) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    (place / "other").symlink_to("directory/../file")
    (place / link).symlink_to(target.format(place=place))
    assert ino(place / link) == os.stat(place / link).st_ino == os.stat(place / "file").st_ino


def test_errors_of_a_path_are_the_kernels(place: Path) -> None:
    (place / "file").touch()
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere")
    for name in ("loop", "dangling", "absent", "file/x"):
        assert error_of(ino, place / name) == error_of(os.stat, place / name) != ""


def test_as_many_links_as_the_kernel_follows(place: Path) -> None:
    (place / "0").touch()
    for number in range(45):
        (place / str(number + 1)).symlink_to(str(number))
    for number in (39, 40, 41, 45):
        path = place / str(number)
        assert error_of(ino, path) == error_of(os.stat, path)


def test_a_path_stops_before_what_is_not_to_be_entered(inside: Path) -> None:
    device = linux.statx(bytes(inside)).dev
    (inside.parent / "link").symlink_to("fs/./a//b")
    with pytest.raises(linux.CrossedMountError) as caught:
        ino(inside.parent / "link", device)
    assert caught.value.ino == os.stat(inside).st_ino
    assert caught.value.rest == [b"a", b"b"]
    assert ino(inside.parent / "link") == os.stat(inside / "a/b").st_ino


def test_it_may_be_entered_below_its_root(inside: Path) -> None:
    device = linux.statx(bytes(inside)).dev
    elsewhere = inside.parent / "elsewhere"
    elsewhere.mkdir()
    linux.mount(bytes(inside / "a"), bytes(elsewhere), linux.MS_BIND)
    with pytest.raises(linux.CrossedMountError) as caught:
        ino(elsewhere / "b", device)
    linux.umount(bytes(elsewhere), 0)
    assert caught.value.ino == os.stat(inside / "a").st_ino
    assert caught.value.rest == [b"b"]


def test_self_is_the_task_that_is_meant() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        for path in ("/proc/self/fd", "/proc/thread-self/fd", f"/proc/{other.pid}/fd"):
            assert ino(Path(path), pid=other.pid) == os.stat(f"/proc/{other.pid}/fd").st_ino
        other.kill()


def test_a_jump_of_procfs_is_made(place: Path) -> None:
    with open(place / "file", "w") as file:
        (place / "file").unlink()
        shown = ino(Path(f"/proc/self/fd/{file.fileno()}"))
        assert shown == os.fstat(file.fileno()).st_ino
        device = linux.statx(bytes(place)).dev
        assert error_of(ino, Path(f"/proc/self/fd/{file.fileno()}"), device) == "ELOOP"
