"""inotify(7) and poll(2)."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import error_of

from netnsfs import linux

IN_Q_OVERFLOW = 0x4000
MOST = Path("/proc/sys/fs/inotify/max_queued_events")


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[linux.Inotify]:
    """Of what comes and goes in a directory."""
    watch = linux.Inotify()
    watch.watch_file(bytes(tmp_path), linux.IN_CREATE | linux.IN_DELETE | linux.IN_ATTRIB)
    yield watch
    watch.close()


@pytest.mark.parametrize("name", ["x", "x" * 15, "x" * 16, "x" * 255, "a\nb", "\udcff"])
def test_each_event_has_its_name(watch: linux.Inotify, tmp_path: Path, name: str) -> None:
    assert [*watch.read_events()] == []
    (tmp_path / name).touch()
    (tmp_path / "other").touch()
    (tmp_path / name).chmod(0o600)
    (tmp_path / name).unlink()
    told = [event for event in watch.read_events() if event[1] != b"other"]
    shown = os.fsencode(name)
    attributes, removed = (linux.IN_ATTRIB, shown), (linux.IN_DELETE, shown)
    assert told[0] == (linux.IN_CREATE, shown)
    assert told[-1] == removed
    assert attributes in told[1:-1]
    assert [*watch.read_events()] == []


def test_more_than_one_read_holds(watch: linux.Inotify, tmp_path: Path) -> None:
    names = [f"{number:0255}" for number in range(600)]
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT))
    told = [name.decode() for mask, name in watch.read_events() if mask == linux.IN_CREATE]
    assert told == names


def test_too_many_are_told_of_as_such(watch: linux.Inotify, tmp_path: Path) -> None:
    file = tmp_path / "file"
    for _ in range(int(MOST.read_text()) // 2 + 1):
        file.touch()
        file.unlink()
    told = [*watch.read_events()]
    assert told[-1] == (IN_Q_OVERFLOW, b"")
    file.touch()
    assert (linux.IN_CREATE, b"file") in watch.read_events()


def test_whether_anything_has_happened(watch: linux.Inotify, tmp_path: Path) -> None:
    assert not watch.has_events()
    (tmp_path / "x").touch()
    assert select.select([watch], [], [], 0)[0]
    assert watch.has_events()
    assert not watch.has_events()


def test_a_watch_that_is_forgotten_is_closed(tmp_path: Path) -> None:
    fd = linux.Inotify().fileno()
    assert error_of(os.fstat, fd) == "EBADF"


def test_what_is_not_there_cannot_be_watched(watch: linux.Inotify, tmp_path: Path) -> None:
    assert error_of(watch.watch_file, bytes(tmp_path / "absent"), linux.IN_MODIFY) == "ENOENT"


def test_one_of_several_files_is_ready() -> None:
    with open("/proc/self/mountinfo", "rb") as mountinfo:
        first, second = os.pipe(), os.pipe()
        poll = linux.Poll(
            (first[0], select.POLLIN),
            (second[0], select.POLLIN),
            (mountinfo.fileno(), select.POLLPRI),
        )
        assert not poll.any_ready()
        os.write(second[1], b"x")
        assert poll.any_ready()
        os.read(second[0], 1)
        assert not poll.any_ready()
        linux.mount(b"/proc", b"/mnt", linux.MS_BIND)
        linux.umount(b"/mnt", linux.MNT_DETACH)
        assert poll.any_ready()
        for fd in (*first, *second):
            os.close(fd)
