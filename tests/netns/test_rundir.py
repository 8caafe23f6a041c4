"""What is known of a directory without looking."""

import ctypes
import os
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netnsfs import linux
from netnsfs.netns.rundir import Presence

ABOVE = Path("/run/above")
DIRECTORY = ABOVE / "names"


@pytest.fixture
def presence() -> Iterator[Presence]:
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "old").touch()
    # What pytest keeps must not keep the descriptors.
    made = [Presence(bytes(DIRECTORY))]
    yield weakref.proxy(made[0])
    made.clear()


@pytest.fixture(autouse=True)
def no_directory() -> Iterator[None]:
    yield
    for path in (DIRECTORY, ABOVE):
        subprocess.run(["umount", path], check=False, capture_output=True)
    subprocess.run(["rm", "-r", ABOVE], check=True)


def test_names_come_and_go(presence: Presence) -> None:
    assert not presence.lacks(b"old")
    assert presence.lacks(b"new")
    (DIRECTORY / "new").touch()
    assert not presence.lacks(b"new")
    (DIRECTORY / "new").unlink()
    (DIRECTORY / "directory").mkdir()
    (DIRECTORY / "link").symlink_to("nowhere")
    assert [presence.lacks(name) for name in (b"new", b"directory", b"link")] == [
        True,
        False,
        False,
    ]
    (ABOVE / "elsewhere").touch()
    (ABOVE / "elsewhere").rename(DIRECTORY / b"\xff\n".decode("utf-8", "surrogateescape"))
    assert not presence.lacks(b"\xff\n")


def exchange() -> None:
    (DIRECTORY / "new").touch()
    paths = bytes(DIRECTORY / "old"), bytes(DIRECTORY / "new")
    # RENAME_EXCHANGE
    assert ctypes.CDLL(None).renameat2(-100, paths[0], -100, paths[1], 2) == 0


def rename() -> None:
    (DIRECTORY / "old").rename(DIRECTORY / "new")


@pytest.mark.parametrize("change", [exchange, rename])
def test_after_a_rename_nothing_is_known(
    presence: Presence, change: Callable[[], None]
) -> None:
    before = presence.state()
    change()
    assert not any(presence.lacks(name) for name in (b"old", b"new", b"absent"))
    assert presence.lost
    assert presence.state() is not before


def bind() -> None:
    linux.mount(bytes(DIRECTORY / "old"), bytes(DIRECTORY / "old"), linux.MS_BIND)


def unmount() -> None:
    linux.umount(bytes(DIRECTORY / "old"), linux.MNT_DETACH)


def test_the_state_is_another_after_each_change(presence: Presence) -> None:
    changes: list[Callable[[], None]] = [
        (DIRECTORY / "new").touch,
        (DIRECTORY / "new").unlink,
        bind,
        unmount,
        bind,
        lambda: linux.umount(bytes(DIRECTORY / "old"), 0),
    ]
    for change in changes:
        before = presence.state()
        assert presence.state() is before
        change()
        after = presence.state()
        assert after is not before
        assert presence.state() is after


def test_what_one_question_has_heard_the_other_knows(presence: Presence) -> None:
    before = presence.state()
    (DIRECTORY / "new").touch()
    assert not presence.lacks(b"new")
    assert presence.state() is not before


def test_changed_attributes_of_the_directory_are_told(presence: Presence) -> None:
    before = presence.attributes
    (DIRECTORY / "new").mkdir()
    bind()
    presence.state()
    assert presence.attributes is before
    os.setxattr(DIRECTORY, "trusted.netnsfs-test", b"1")
    presence.state()
    assert presence.attributes is not before
    assert not presence.lost
    linux.umount(bytes(DIRECTORY / "old"), linux.MNT_DETACH)


def cover() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", DIRECTORY], check=True)


def move() -> None:
    DIRECTORY.rename(ABOVE / "other")


def rename_above() -> None:
    ABOVE.rename("/run/other")
    ABOVE.mkdir()
    Path("/run/other").rename(ABOVE / "other")


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
    presence: Presence, change: Callable[[], object]
) -> None:
    before = presence.state()
    change()
    assert presence.state() is not before
    assert presence.lost or not presence.lacks(b"new")
    assert presence.lost


def test_too_many_events_are_noticed(presence: Presence) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(most // 2 + 1):
        (DIRECTORY / "new").touch()
        (DIRECTORY / "new").unlink()
    assert not presence.lacks(b"new")
    assert presence.lost


def test_only_a_directory_in_memory_is_watched() -> None:
    DIRECTORY.mkdir(parents=True)
    (ABOVE / "link").symlink_to("names")
    for path in (Path("/proc/self"), ABOVE / "link", ABOVE / "absent"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=r"watched|No such"):
            Presence(bytes(path))
        assert len(os.listdir("/proc/self/fd")) == before
