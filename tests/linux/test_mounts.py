"""Mounts: made, moved, detached, and read from mountinfo."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import error_of

from netnsfs import linux


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path("/mnt/place")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "place", path], check=True)
    yield path
    linux.umount(bytes(path), linux.MNT_DETACH)
    path.rmdir()


def mounted_below(path: Path) -> list[bytes]:
    return [m.target for m in linux.mounts() if m.target.startswith(bytes(path) + b"/")]


@pytest.mark.parametrize(
    "name",
    [b"a b", b"new\nline", b"tab\t", b"back\\slash", b"\\040", b"#", b"\xff\r\x85", b"-"],
)
def test_any_name_is_read_from_mountinfo(place: Path, name: bytes) -> None:
    path = bytes(place) + b"/" + name
    os.mkdir(path)
    subprocess.run(["mount", "-t", "tmpfs", name, path], check=True)
    found = linux.mount_at(path)
    assert found
    assert (found.target, found.source, found.root) == (path, name, b"/")
    assert found.fs_type == b"tmpfs"
    assert found.dev == linux.statx(path).dev


def test_a_bind_mount_shows_what_it_is_of(place: Path) -> None:
    for name in ("a directory", "target"):
        (place / name).mkdir()
    linux.mount(bytes(place / "a directory"), bytes(place / "target"), linux.MS_BIND)
    found, whole = linux.mount_at(bytes(place / "target")), linux.mount_at(bytes(place))
    assert found
    assert whole
    assert (found.root, found.parent, found.dev) == (b"/a directory", whole.id, whole.dev)


def test_the_mount_at_a_path_is_the_uppermost(place: Path) -> None:
    target = place / "target"
    target.mkdir()
    assert linux.mount_at(bytes(target)) is None
    for name in ("lower", "upper"):
        subprocess.run(["mount", "-t", "tmpfs", name, target], check=True)
        top = linux.mount_at(bytes(target))
        assert top
        assert top.source == name.encode()
    (target / "below").mkdir()
    assert linux.mount_at(bytes(target / "below")) is None
    assert error_of(linux.mount_at, bytes(target / "absent")) == "ENOENT"
    linux.umount(bytes(target), linux.UMOUNT_NOFOLLOW)
    top = linux.mount_at(bytes(target))
    assert top
    assert top.source == b"lower"


def test_peers_are_shown(place: Path) -> None:
    def peers() -> bytes:
        found = linux.mount_at(bytes(place))
        assert found
        return found.peers

    assert peers() == b""
    linux.mount(None, bytes(place), linux.MS_SHARED)
    assert peers().startswith(b"shared:")
    linux.mount(None, bytes(place), linux.MS_PRIVATE)
    assert peers() == b""


def test_a_mount_namespace_of_another_process_is_read(place: Path) -> None:
    script = f"mount -t tmpfs theirs {place} && echo && exec sleep 60"
    command = ["unshare", "-m", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert b"theirs" in [mount.source for mount in linux.mounts(str(process.pid))]
        assert b"theirs" not in [mount.source for mount in linux.mounts()]
        process.kill()
    assert error_of(list, linux.mounts(str(process.pid))) == "ENOENT"


def test_an_open_mount_is_moved_to_an_open_file(place: Path) -> None:
    (place / "file").write_text("content")
    (place / "target").touch()
    with (
        linux.closing_fd(os.open(place / "file", os.O_RDONLY)) as file,
        linux.closing_fd(linux.bind_mount(file)) as mount,
        linux.closing_fd(os.open(place / "target", os.O_PATH)) as target,
    ):
        assert mounted_below(place) == []
        linux.move_mount(mount, target)
    assert mounted_below(place) == [bytes(place / "target")]
    assert (place / "target").read_text() == "content"


def test_an_open_mount_that_is_moved_nowhere_ends(place: Path) -> None:
    (place / "file").touch()
    with linux.closing_fd(os.open(place / "file", os.O_RDONLY)) as file:
        os.close(linux.bind_mount(file))
    linux.umount(bytes(place), 0)
    subprocess.run(["mount", "-t", "tmpfs", "place", place], check=True)


def test_a_mount_is_not_moved_to_what_is_removed(place: Path) -> None:
    (place / "target").touch()
    with (
        linux.closing_fd(os.open("/proc/self/ns/net", os.O_RDONLY)) as file,
        linux.closing_fd(linux.bind_mount(file)) as mount,
        linux.closing_fd(os.open(place / "target", os.O_PATH)) as target,
    ):
        (place / "target").unlink()
        assert error_of(linux.move_mount, mount, target) == "ENOENT"


@pytest.mark.parametrize("private", [False, True])
def test_what_is_made_of_a_shared_mount_is_its_peer(place: Path, private: bool) -> None:
    linux.mount(None, bytes(place), linux.MS_SHARED)
    for name in ("file", "target"):
        (place / name).touch()
    with (
        linux.closing_fd(os.open(place / "file", os.O_RDONLY)) as file,
        linux.closing_fd(linux.bind_mount(file)) as mount,
        linux.closing_fd(os.open(place / "target", os.O_PATH)) as target,
    ):
        if private:
            linux.make_private(mount)
        whole = linux.mount_at(bytes(place))
        linux.move_mount(mount, target)
    found = linux.mount_at(bytes(place / "target"))
    assert found
    assert whole
    assert (found.peers == whole.peers) is not private
    linux.umount(bytes(place / "target"), linux.MNT_DETACH)


def test_a_clone_lacks_what_is_mounted_below(place: Path) -> None:
    (place / "x").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", place / "x"], check=True)
    (place / "x/covering").touch()
    with linux.closing_fd(linux.open_tree(bytes(place))) as clone:
        assert os.listdir(f"/proc/self/fd/{clone}/x") == []


def test_a_mount_is_detached_although_what_is_on_top_goes_meanwhile(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = place / "target"
    target.mkdir()
    umount = linux.umount

    def umount_while_another_does(path: bytes, flags: int) -> None:
        monkeypatch.undo()
        # What umount2(2) does, and between its two steps another process detaches the same.
        with linux.closing_fd(os.open(target, os.O_PATH)) as top:
            umount(path, flags)
            umount(b"/proc/self/fd/%d" % top, flags)

    with linux.closing_fd(linux.new_mount(b"tmpfs", {}, 0)) as mount:
        with linux.closing_fd(os.open(target, os.O_PATH)) as top:
            linux.move_mount(mount, top)
        subprocess.run(["mount", "-t", "tmpfs", "upper", target], check=True)
        monkeypatch.setitem(linux.detach.__globals__, "umount", umount_while_another_does)
        assert linux.detach(mount)
        assert linux.mount_with_id(linux.mount_number(mount)) is None
    assert mounted_below(place) == []
