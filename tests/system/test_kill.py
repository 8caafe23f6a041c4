"""The daemon killed at each step of each change, and started again.

The steps are the system calls of the thread that makes the change, and those of the event
loop: they are recorded once, and then strace kills the daemon as it enters one of them, and
then the next, until none is left. Without NETNSFS_LONG, it is killed only before and after
the calls that change something, and where the event loop answers.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tracing
from conftest import LONG, MNT, RUN, Mounted, Start, ip, wait_for

from netnsfs import linux

Spawn = Callable[..., subprocess.Popen[bytes]]

OLD, NEW = MNT / "old", MNT / "new"
UNNAMED = MNT / ".netnsfs/unnamed"

CHANGES = {
    *("unshare", "setns", "mount", "umount2", "unlink", "unlinkat", "renameat2", "mkdir"),
    *("open_tree", "mount_setattr", "move_mount"),
    *("chmod", "fchmod", "setxattr", "fsetxattr", "flock", "clone3", "writev"),
}


def points(calls: list[tracing.Call]) -> Iterator[tracing.Call]:
    """Where to kill."""
    changed = False
    # Threads wait for each other, and look at the clock, by chance.
    for call in (call for call in calls if call.name not in ("futex", "clock_gettime")):
        changes = call.name in CHANGES or "O_CREAT" in call.shown
        if LONG or changes or changed:
            yield call
        changed = changes


def state() -> tuple[dict[str, str], list[str]]:
    """The IDs of the live names, and the stale names."""
    live, stale = {}, []
    for name in os.listdir(MNT):
        if os.stat(MNT / name).st_mode & 0o777:
            live[name] = (MNT / name / "id").read_text()
        else:
            stale.append(name)
    return live, stale


class Change:
    """One of the changes, in surroundings made anew for each run of it.

    Attributes:
        id: of the namespace that must not be lost.
    """

    def __init__(self, spawn: Spawn) -> None:
        self.id = ""

    def prepare(self) -> None:
        """Make what the change needs: a namespace called old."""
        ip("netns", "add", "old")
        self.id = (OLD / "id").read_text()

    def run(self) -> None:
        """Make it."""
        raise NotImplementedError

    def check(self, live: dict[str, str]) -> None:
        """Look at what is there after a kill."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Undo what would meet other tests."""


class Mkdir(Change):
    def run(self) -> None:
        NEW.mkdir()

    def check(self, live: dict[str, str]) -> None:
        assert live["old"] == self.id


class FirstMkdir(Change):
    """In a run directory that is yet to be made, and to be made a mount.

    What is mounted below /run propagates, as on most machines.
    """

    def prepare(self) -> None:
        while not subprocess.run(["umount", "-q", RUN], check=False).returncode:
            pass
        with suppress(FileNotFoundError):
            RUN.rmdir()
        subprocess.run(["mount", "--make-shared", "/run"], check=True)

    def run(self) -> None:
        NEW.mkdir()

    def check(self, live: dict[str, str]) -> None:
        (MNT / "next").mkdir()
        top = linux.mount_at(bytes(RUN))
        assert top
        assert top.peers
        assert targets().count(bytes(RUN / "next")) == 1
        (MNT / "next").rmdir()

    def clean_up(self) -> None:
        subprocess.run(["mount", "--make-private", "/run"], check=True)


class Rmdir(Change):
    def run(self) -> None:
        OLD.rmdir()

    def check(self, live: dict[str, str]) -> None:
        assert live in ({}, {"old": self.id})


class Mv(Change):
    def run(self) -> None:
        OLD.rename(NEW)

    def check(self, live: dict[str, str]) -> None:
        assert set(live.values()) == {self.id}


class LnS(Change):
    def run(self) -> None:
        NEW.symlink_to("old")

    def check(self, live: dict[str, str]) -> None:
        assert live["old"] == self.id
        assert live.get("new", self.id) == self.id


class MvUnnamed(Change):
    """Of the namespace of a process."""

    def __init__(self, spawn: Spawn) -> None:
        super().__init__(spawn)
        own = os.readlink("/proc/self/ns/net")
        path = Path(f"/proc/{spawn('unshare', '-n', 'sleep', '1000').pid}/ns/net")
        wait_for(lambda: os.readlink(path) != own)
        self._inode = str(path.stat().st_ino)

    def prepare(self) -> None:
        self.id = (UNNAMED / self._inode / "id").read_text()

    def run(self) -> None:
        (UNNAMED / self._inode).rename(NEW)

    def check(self, live: dict[str, str]) -> None:
        if not live:
            assert (UNNAMED / self._inode / "id").read_text() == self.id
        assert live in ({}, {"new": self.id})


@pytest.fixture(params=[Mkdir, FirstMkdir, Rmdir, Mv, LnS, MvUnnamed])
def change(request: pytest.FixtureRequest, spawn: Spawn) -> Iterator[Change]:
    kind: type[Change] = request.param
    change = kind(spawn)
    yield change
    change.clean_up()


@pytest.mark.parametrize("of_worker", [True, False], ids=["worker", "loop"])
def test_killed_at_each_step(start: Start, change: Change, of_worker: bool) -> None:
    mounted, thread = begin(start, of_worker)
    change.prepare()
    calls = tracing.calls(thread, change.run)
    remove_all()
    before = targets()
    for call in points(calls):
        mounted.kill()
        mounted, thread = begin(start, of_worker)
        change.prepare()
        killed = kill_at(call, thread, mounted, change, of_worker)
        assert killed or not of_worker or only_wakes(call), call
        mounted = start()
        live, stale = state()
        assert set(live) | set(stale) <= {"old", "new"}, call
        assert len(stale) <= 1, call
        change.check(live)
        remove_all()
        assert targets() == before, call


def only_wakes(call: tracing.Call) -> bool:
    """Whether it tells the event loop that a job has ended: there are two ways, by chance."""
    return call.name == "sendto" or (call.name == "write" and "eventfd" in call.shown)


def begin(start: Start, of_worker: bool) -> tuple[Mounted, int]:
    """A daemon, and the thread of it to look at."""
    mounted = start()
    worker = tracing.workers(mounted)["mutate"]
    return mounted, worker if of_worker else mounted.process.pid


def kill_at(
    call: tracing.Call, thread: int, mounted: Mounted, change: Change, of_worker: bool
) -> bool:
    """Whether it met its end there, and not at our hands afterwards."""
    with tracing.attached(thread, call.inject("signal=SIGKILL")), suppress(OSError):
        change.run()
    tracing.LOG.unlink()
    # Of the event loop's calls, not every one is made again.
    with suppress(subprocess.TimeoutExpired):
        mounted.process.wait(5 if of_worker else 0.1)
    ended = mounted.process.returncode is not None
    mounted.kill()
    return ended


def remove_all() -> None:
    """Nothing but names may be left over, and rmdir removes them."""
    for name in os.listdir(RUN):
        (MNT / name).rmdir()
    assert os.listdir(RUN) == []


def targets() -> list[bytes]:
    return sorted(mount.target for mount in linux.mounts())
