"""What watchers of the mount hear (inotify(7)) of changes, whoever makes them."""

import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import (
    LONG,
    MNT,
    RUN,
    USER_MODE_LINUX,
    Mounted,
    Start,
    agree,
    error_of,
    ip,
    settled,
    type_at,
    unmount_idle,
    wait_for,
)

from netnsfs import linux
from netnsfs.fuse import replayer_child
from netnsfs.netns.names import NamedNamespaces

KINDS = {
    linux.IN_CREATE: "+",
    linux.IN_DELETE: "-",
    linux.IN_MOVED_FROM: "-",
    linux.IN_MOVED_TO: "+",
}
ISDIR = 0x40000000
MISSED = "watchers of the mount may have missed names"
BURST = 1000 if USER_MODE_LINUX else 5000
LEAST = 1 if USER_MODE_LINUX else 2
"""How much of what could be reported or looked at is: less on a machine that is slow."""


class Watcher:
    """Hears what is reported to a watcher of a directory.

    Attributes:
        heard: signs and names, in the order in which they came.
    """

    def __init__(
        self, path: Path = MNT, note: Callable[[str, str], None] | None = None
    ) -> None:
        self.heard: list[str] = []
        self._note = note
        self._watch = linux.Inotify()
        self._watch.watch_file(bytes(path), sum(KINDS))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._hear)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()
        self._watch.close()

    def _hear(self) -> None:
        while not self._ended.wait(0.0002):
            for mask, name in self._watch.read_events():
                # A queue that is full would be another kind.
                if mask & 0x8000:
                    continue
                sign, text = KINDS[mask & ~ISDIR], os.fsdecode(name)
                if self._note:
                    self._note(sign, text)
                self.heard.append(sign + text)

    def reported(self, *but: str) -> list[str]:
        """What was heard up to now, but of some names."""
        return [line for line in self.heard if line[1:] not in but]

    def is_reported(self, *expected: str) -> bool:
        return self.reported() == list(expected)

    def has_heard(self) -> bool:
        return len(self.heard) > 20

    def expect(self, *expected: str) -> None:
        """What is reported, and nothing else."""
        wait_for(lambda: len(self.reported()) >= len(expected))
        assert settled(self.reported) == list(expected)


@pytest.fixture
def watcher(mnt: Mounted) -> Iterator[Watcher]:
    wait_for(lambda: replayers(mnt))
    with Watcher() as found:
        yield found


def replayers(mounted: Mounted) -> list[int]:
    tasks = Path(f"/proc/{mounted.process.pid}/task").glob("*/children")
    return [int(pid) for path in tasks for pid in path.read_text().split()]


def has_ended(process: int) -> bool:
    return not os.path.exists(f"/proc/{process}")


def test_what_ip_netns_does_is_reported_once_and_after_it_is_true(mnt: Mounted) -> None:
    found: list[str] = []

    def look(sign: str, name: str) -> None:
        path = mnt / name / "inode"
        found.append(sign + path.read_text() if sign == "+" else sign + error_of(os.stat, path))

    with Watcher(note=look) as watcher:
        ip("netns", "add", "blue")
        inode = os.stat(RUN / "blue").st_ino
        wait_for(lambda: watcher.is_reported("+blue"))
        ip("netns", "del", "blue")
        watcher.expect("+blue", "-blue")
    assert found == [f"+{inode}\n", "-ENOENT"]


def test_what_is_done_through_the_mount_is_reported_once(
    mnt: Mounted, watcher: Watcher
) -> None:
    (mnt / "red").mkdir()
    (mnt / "red").rename(mnt / "green")
    (mnt / "two").symlink_to("green")
    (mnt / "two").rmdir()
    (mnt / "green").rmdir()
    expected = ["+red", "-red", "+green", "+two", "-two", "-green"]
    for _ in range(20):
        (mnt / "again").mkdir()
        (mnt / "again").rmdir()
        expected += ["+again", "-again"]
    watcher.expect(*expected)


def test_another_mount_of_the_same_names_is_reported(
    start: Start, mnt: Mounted, watcher: Watcher
) -> None:
    other = start(at=Path("/mnt/other"))
    wait_for(lambda: replayers(other))
    with Watcher(other.path) as there:
        (other / "blue").mkdir()
        wait_for(lambda: watcher.is_reported("+blue"))
        (other / "blue").rename(other / "red")
        wait_for(lambda: len(watcher.heard) == 3)
        (mnt / "red").rmdir()
        there.expect("+blue", "-blue", "+red", "-red")
    assert sorted(settled(watcher.reported)) == ["+blue", "+red", "-blue", "-red"]


def test_a_name_goes_with_its_file(watcher: Watcher) -> None:
    ip("netns", "add", "blue")
    wait_for(lambda: watcher.is_reported("+blue"))
    linux.umount(bytes(RUN / "blue"), 0)
    # It still stands, as a stale one.
    watcher.expect("+blue")
    (RUN / "blue").unlink()
    watcher.expect("+blue", "-blue")


def test_a_file_is_reported_when_it_has_settled(mnt: Mounted, watcher: Watcher) -> None:
    (RUN / "short").touch()
    (RUN / "stale").touch()
    (RUN / "link").symlink_to("/nowhere")
    wait_for(lambda: watcher.is_reported("+link"))
    (RUN / "short").unlink()
    made = time.monotonic()
    wait_for(lambda: watcher.is_reported("+link", "+stale"))
    assert time.monotonic() > made + replayer_child.SETTLE_SECONDS / 2
    settled(watcher.reported)
    # What is reported is not taken for gone.
    assert 'errno="EBUSY"' not in (mnt / ".netnsfs/metrics").read_text()
    (RUN / "stale").unlink()
    (RUN / "link").unlink()
    watcher.expect("+link", "+stale", "-stale", "-link")


def test_a_name_that_stands_for_another_namespace_has_gone_and_come(
    watcher: Watcher,
) -> None:
    for _ in range(5):
        ip("netns", "add", "blue")
        before = settled(watcher.reported)
        assert before[-1] == "+blue"
        names = NamedNamespaces(bytes(RUN))
        names.remove(b"blue")
        names.create(b"blue")
        watcher.expect(*before, "-blue", "+blue")
        names.remove(b"blue")
        watcher.expect(*before, "-blue", "+blue", "-blue")


def test_nobody_else_notices_that_a_name_is_reported(mnt: Mounted, watcher: Watcher) -> None:
    names = NamedNamespaces(bytes(RUN))
    (mnt / "steady").mkdir()
    ended = threading.Event()
    failed: list[str] = []

    def look_at_steady() -> None:
        while not ended.is_set():
            failed.extend(filter(None, [error_of(os.stat, mnt / "steady")]))

    thread = threading.Thread(target=look_at_steady)
    thread.start()
    try:
        looks = 0
        for number in range(1000 if LONG else 200):
            name = f"blue{number % 7}"
            names.create(name.encode())
            until = time.monotonic() + 0.004
            while time.monotonic() < until:
                failed.extend(filter(None, [error_of(os.stat, mnt / name / "inode")]))
                looks += 1
            names.remove(name.encode())
            failed.extend([name] if not error_of(os.stat, mnt / name) else [])
        assert looks > number * LEAST
    finally:
        ended.set()
        thread.join()
    assert failed == []
    assert len(watcher.reported()) > 20
    (mnt / "steady").rmdir()


def test_who_is_in_a_directory_when_it_is_reported_stays_there(
    mnt: Mounted, watcher: Watcher
) -> None:
    names = NamedNamespaces(bytes(RUN))
    program = "import os, sys; os.chdir(sys.argv[1]); input(); print(os.getcwd())"
    for replayer in replayers(mnt):
        os.kill(replayer, signal.SIGSTOP)
    names.create(b"blue")
    inside = subprocess.Popen(
        [sys.executable, "-c", program, mnt / "blue"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: os.readlink(f"/proc/{inside.pid}/cwd") == str(mnt / "blue"))
    for replayer in replayers(mnt):
        os.kill(replayer, signal.SIGCONT)
    wait_for(lambda: watcher.is_reported("+blue"))
    assert inside.communicate(b"\n")[0] == f"{mnt / 'blue'}\n".encode()
    names.remove(b"blue")
    watcher.expect("+blue", "-blue")


def test_a_mount_that_is_covered_is_reported_when_it_is_not(
    mnt: Mounted, watcher: Watcher
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", MNT], check=True)
    ip("netns", "add", "blue")
    ip("netns", "add", "red")
    ip("netns", "del", "red")
    watcher.expect()
    subprocess.run(["umount", MNT], check=True)
    watcher.expect("+blue")
    ip("netns", "del", "blue")
    watcher.expect("+blue", "-blue")


def test_another_run_directory_is_compared(start: Start) -> None:
    subprocess.run(["umount", RUN], check=True)
    RUN.rmdir()
    mounted = start()
    with Watcher() as watcher:
        (mounted / "blue").mkdir()
        ip("netns", "add", "red")
        wait_for(lambda: watcher.is_reported("+blue", "+red"))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", RUN], check=True)
        wait_for(lambda: sorted(watcher.reported()[2:]) == ["-blue", "-red"])
        unmount_idle(RUN)
        wait_for(lambda: sorted(watcher.reported()[4:]) == ["+blue", "+red"])
        for name in ("blue", "red"):
            (mounted / name).rmdir()


def test_a_read_only_mount_has_no_replayer(start: Start) -> None:
    mounted = start("-o", "ro")
    with Watcher() as watcher:
        ip("netns", "add", "blue")
        assert (mounted / "blue/inode").read_text()
        watcher.expect()
        assert replayers(mounted) == []
        ip("netns", "del", "blue")


def test_a_daemon_in_another_pid_namespace_replays(start: Start) -> None:
    serve = [sys.executable, "-m", "netnsfs", "-f", str(MNT)]
    start(program=["unshare", "--pid", "--fork", "--kill-child=TERM", *serve])
    with Watcher() as watcher:
        ip("netns", "add", "blue")
        wait_for(lambda: watcher.is_reported("+blue"))
        ip("netns", "del", "blue")
        watcher.expect("+blue", "-blue")
    subprocess.run(["umount", MNT], check=True)


def test_a_replayer_that_is_killed_is_followed_by_another(
    mnt: Mounted, watcher: Watcher
) -> None:
    [replayer] = replayers(mnt)
    ip("netns", "add", "old")
    wait_for(lambda: watcher.is_reported("+old"))
    os.kill(replayer, signal.SIGSTOP)
    ip("netns", "add", "blue")
    ip("netns", "del", "old")
    os.kill(replayer, signal.SIGKILL)
    wait_for(lambda: len(watcher.heard) == 3)
    assert sorted(settled(watcher.reported)) == ["+blue", "+old", "-old"]
    ip("netns", "del", "blue")
    wait_for(lambda: len(watcher.heard) == 4)
    assert replayers(mnt) != [replayer]


def test_a_replayer_is_started_once_there_is_what_it_takes(
    mnt: Mounted, watcher: Watcher
) -> None:
    [replayer] = replayers(mnt)
    pid = mnt.process.pid
    # Those that are open stay so.
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, before[1]))
    os.kill(replayer, signal.SIGKILL)
    wait_for(lambda: "hear of changes late" in mnt.messages())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    ip("netns", "add", "blue")
    wait_for(lambda: watcher.is_reported("+blue"))
    ip("netns", "del", "blue")
    watcher.expect("+blue", "-blue")


@pytest.mark.parametrize("through", ["the mount", "the directory"])
def test_what_a_replayer_cannot_follow_is_made_up_for(
    mnt: Mounted, watcher: Watcher, through: str
) -> None:
    [replayer] = replayers(mnt)
    # By then it watches.
    ip("netns", "add", "old")
    wait_for(lambda: watcher.is_reported("+old"))
    os.kill(replayer, signal.SIGSTOP)
    ip("netns", "add", "blue")
    for _ in range(1000 if through == "the mount" else 20_000):
        if through == "the mount":
            (mnt / "red").mkdir()
            (mnt / "red").rmdir()
        else:
            (RUN / "red").touch()
            (RUN / "red").unlink()
    ip("netns", "add", "green")
    os.kill(replayer, signal.SIGCONT)
    wait_for(lambda: sorted(watcher.reported("red")) == ["+blue", "+green", "+old"])
    for name in ("blue", "green", "old"):
        ip("netns", "del", name)
    wait_for(lambda: len(watcher.reported("red")) == 6)
    red = watcher.reported("blue", "green", "old")
    assert red == ["+red", "-red"] * (1000 if through == "the mount" else 0)
    assert replayers(mnt) == [replayer]
    assert mnt.messages().count(MISSED) == (through == "the directory")


@pytest.fixture
def own_namespace() -> Iterator[int]:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield fd
    os.close(fd)


def bind(namespace: int, name: str) -> None:
    """As ip-netns(8) does it, but with no program for each name."""
    placeholder = os.open(RUN / name, os.O_RDONLY | os.O_CREAT | os.O_EXCL)
    with linux.closing_fd(placeholder), linux.closing_fd(linux.bind_mount(namespace)) as mount:
        linux.move_mount(mount, placeholder)


def unbind(name: str) -> None:
    linux.umount(bytes(RUN / name), linux.MNT_DETACH)
    (RUN / name).unlink()


def test_a_burst_is_reported_by_one_replayer(
    mnt: Mounted, watcher: Watcher, own_namespace: int
) -> None:
    started = replayers(mnt)
    names = [f"blue{number}" for number in range(BURST)]
    for name in names:
        bind(own_namespace, name)
    created = [f"+{name}" for name in names]
    wait_for(lambda: sorted(watcher.reported()) == sorted(created), 60)
    for name in names:
        unbind(name)
    deleted = [f"-{name}" for name in names]
    wait_for(lambda: sorted(watcher.reported()) == sorted(created + deleted), 60)
    # None has been overrun.
    assert replayers(mnt) == started
    assert MISSED not in mnt.messages()


def test_a_replayer_that_is_killed_in_a_burst(
    mnt: Mounted, watcher: Watcher, own_namespace: int
) -> None:
    [replayer] = replayers(mnt)
    names = [f"blue{number}" for number in range(BURST)]
    for number, name in enumerate(names):
        bind(own_namespace, name)
        if number == BURST // 2:
            os.kill(replayer, signal.SIGKILL)
    created = [f"+{name}" for name in names]
    wait_for(lambda: sorted(watcher.reported()) == sorted(created), 60)
    for name in names:
        unbind(name)
    deleted = [f"-{name}" for name in names]
    wait_for(lambda: sorted(watcher.reported()) == sorted(created + deleted), 60)
    assert mnt.messages().count(MISSED) == 1


@contextmanager
def storm() -> Iterator[None]:
    """Names come and go until the block ends."""
    ended = threading.Event()

    def make(number: int) -> None:
        names = NamedNamespaces(bytes(RUN))
        for turn in itertools.cycle(range(5)):
            if ended.wait(0.002):
                return
            name = b"storm%d.%d" % (number, turn)
            names.create(name)
            ended.wait(0.005)
            names.remove(name)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_umount_in_a_storm(start: Start) -> None:
    with storm():
        for _ in range(5):
            mounted = start()
            with Watcher() as watcher:
                wait_for(watcher.has_heard)
            subprocess.run(["umount", MNT], check=True)
            assert mounted.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_in_a_storm(start: Start, number: signal.Signals) -> None:
    with storm():
        for _ in range(10):
            mounted = start()
            with Watcher() as watcher:
                wait_for(watcher.has_heard)
            [replayer] = replayers(mounted)
            time.sleep(random.random() / 50)
            mounted.process.send_signal(number)
            mounted.process.wait(10)
            wait_for(partial(has_ended, replayer))
    if number == signal.SIGKILL:
        subprocess.run(["umount", MNT], check=True)
    assert type_at(MNT) == b""


class Maker:
    """Makes and removes names of its own, and keeps a log.

    Attributes:
        log: signs and names.
    """

    def __init__(
        self, mark: str, make: Callable[[str], object], remove: Callable[[str], object]
    ) -> None:
        self.log: list[str] = []
        self._mark = mark
        self._make = make
        self._remove = remove

    def work(self, until: float) -> None:
        chance = random.Random(self._mark)
        while time.monotonic() < until:
            name = f"{self._mark}{chance.randrange(4)}"
            self._make(name)
            self.log.append(f"+{name}")
            time.sleep(chance.random() / 10)
            self._remove(name)
            self.log.append(f"-{name}")
            time.sleep(chance.random() / 20)


def makers(mounted: Mounted, other: Mounted) -> list[Maker]:
    names = NamedNamespaces(bytes(RUN))
    ways: dict[str, tuple[Callable[[str], object], Callable[[str], object]]] = {
        "mount": (lambda n: (mounted / n).mkdir(), lambda n: (mounted / n).rmdir()),
        "ip": (lambda n: ip("netns", "add", n), lambda n: ip("netns", "del", n)),
        "other": (lambda n: (other / n).mkdir(), lambda n: (other / n).rmdir()),
        "call": (lambda n: names.create(n.encode()), lambda n: names.remove(n.encode())),
    }
    return [
        Maker(f"{mark}{number}.", *way) for mark, way in ways.items() for number in range(2)
    ]


def test_a_watcher_beside_many_makers(start: Start, mnt: Mounted) -> None:
    other = start(at=Path("/mnt/other"))
    wait_for(lambda: replayers(mnt) and replayers(other))
    contradicted: set[int] = set()
    heard: list[str] = []

    def look(sign: str, name: str) -> None:
        if (sign == "+") != os.path.lexists(mnt / name):
            contradicted.add(len(heard))

    until = time.monotonic() + (300 if LONG else 20)
    at_work = makers(mnt, other)
    with Watcher(note=look) as hearing:
        heard = hearing.heard
        threads = [threading.Thread(target=maker.work, args=(until,)) for maker in at_work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reported = settled(hearing.reported)
    agree()
    changes = Counter(line for maker in at_work for line in maker.log)
    assert set(reported) <= set(changes)
    last: dict[str, str] = {}
    for line in reported:
        assert last.get(line[1:], "-") != line[0], line
        last[line[1:]] = line[0]
    assert set(last.values()) == {"-"}
    # What has changed once more by the time of the look is reported too, unless it has changed
    # back before that.
    for number in contradicted:
        line, later = reported[number], reported[number + 1 :]
        assert (
            any(other[1:] == line[1:] for other in later)
            or reported.count(line) < changes[line]
        )
    for maker in at_work:
        of_maker = [line for line in reported if line in set(maker.log)]
        if maker.log[0].startswith("+mount"):
            assert of_maker == maker.log
        # What has gone again is not reported.
        assert len(maker.log) * LEAST / 4 < len(of_maker) <= len(maker.log)
