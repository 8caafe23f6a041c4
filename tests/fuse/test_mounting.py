"""The mount point when several want it. Mounts here have a descriptor, but no daemon."""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from conftest import MNT, fuse_mounts, type_at

from netnsfs import linux
from netnsfs.config import Failure
from netnsfs.fuse import mounting

PLACE = bytes(MNT)


class Mounts:
    """Makes mounts as a start does, and keeps their descriptors."""

    def __init__(self) -> None:
        self._devices: list[int] = []

    def make(self) -> int:
        """A mount that is mounted nowhere yet."""
        self._devices.append(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        numbers = {b"fd": self._devices[-1], b"user_id": 0, b"group_id": 0}
        options: dict[bytes, bytes | None] = {
            name: b"%d" % number for name, number in numbers.items()
        }
        options |= {b"rootmode": b"40000", b"subtype": b"netnsfs"}
        return linux.new_mount(b"fuse", options, linux.MOUNT_ATTR_NODEV)

    def attach(self) -> mounting.Identity | None:
        with linux.closing_fd(self.make()) as mount:
            return mounting.attach(mount, PLACE)

    def kill(self) -> None:
        """All daemons."""
        while self._devices:
            os.close(self._devices.pop())


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    mounts = Mounts()
    yield mounts
    mounts.kill()
    while type_at(MNT) == mounting.FS_TYPE:
        linux.umount(PLACE, linux.MNT_DETACH)


def top() -> mounting.Identity:
    with linux.closing_fd(mounting.open_mount_point(PLACE)) as fd:
        return mounting.identity_of(fd)


def test_the_second_withdraws(mounts: Mounts) -> None:
    first = mounts.attach()
    assert first == top()
    for _ in range(3):
        assert mounts.attach() is None
    assert first == top()
    assert fuse_mounts() == [PLACE]


def test_who_withdraws_leaves_nothing_though_another_is_on_top(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_too(mount: int) -> bool:
        monkeypatch.undo()
        with (
            linux.closing_fd(mounts.make()) as other,
            linux.closing_fd(mounting.open_mount_point(PLACE)) as target,
        ):
            linux.move_mount(other, target)
        assert len(fuse_mounts()) == 3
        return False

    first = mounts.attach()
    monkeypatch.setattr(mounting, "_is_lowest", another_too)
    assert mounts.attach() is None
    assert first == top()
    assert fuse_mounts() == [PLACE]


def test_a_mount_that_is_gone_is_not_the_first(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unmounted(move: Callable[[int, int], None], mount: int, target: int) -> None:
        move(mount, target)
        linux.umount(PLACE, linux.MNT_DETACH)

    move = linux.move_mount
    monkeypatch.setattr(linux, "move_mount", lambda *fds: unmounted(move, *fds))
    assert mounts.attach() is None


def test_a_mount_of_another_kind_below_is_not_another_start(mounts: Mounts) -> None:
    linux.mount(PLACE, PLACE, linux.MS_BIND)
    try:
        assert mounts.attach() == top()
        linux.umount(PLACE, linux.MNT_DETACH)
    finally:
        linux.umount(PLACE, linux.MNT_DETACH)


def test_a_dead_one_is_detached(mounts: Mounts) -> None:
    mounts.attach()
    mounts.kill()
    assert mounting.clear(PLACE) == PLACE
    assert fuse_mounts() == []


def test_what_has_replaced_a_dead_one_is_not_detached(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(top: linux.Mount, fd: int) -> None:
        monkeypatch.undo()
        refuse_alive(top, fd)
        linux.umount(PLACE, linux.MNT_DETACH)
        alive.append(mounts.attach())

    alive: list[mounting.Identity | None] = []
    refuse_alive = mounting._require_dead
    mounts.attach()
    mounts.kill()
    monkeypatch.setattr(mounting, "_require_dead", replace)
    with pytest.raises(Failure, match="a netnsfs is already mounted at /mnt/netnsfs"):
        mounting.clear(PLACE)
    assert alive == [top()]
    assert fuse_mounts() == [PLACE]


def test_what_has_the_numbers_of_a_dead_mount_is_another(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As before Linux 6.8.
    monkeypatch.setattr(linux, "FIRST_UNIQUE_MOUNT", 1 << 64)
    ours = mounts.attach()
    assert ours
    with linux.closing_fd(mounting.open_mount_point(PLACE)) as fd:
        assert mounting.is_still(fd, ours, connected=True)
        # A netnsfs that does not answer is one that is alive.
        assert not mounting.is_still(fd, ours, connected=False)
        mounts.kill()
        assert mounting.is_still(fd, ours, connected=False)
    linux.umount(PLACE, linux.MNT_DETACH)
    subprocess.run(["mount", "-t", "tmpfs", "theirs", MNT], check=True)
    try:
        with linux.closing_fd(mounting.open_mount_point(PLACE)) as fd:
            assert not mounting.is_still(fd, mounting.identity_of(fd), connected=False)
    finally:
        linux.umount(PLACE, 0)
