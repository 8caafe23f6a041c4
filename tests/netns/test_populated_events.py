"""Who is told that members of a namespace come and go, and how long the probes stay."""

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from conftest import RUN, ip, needs_btf, wait_for

from netnsfs import linux
from netnsfs.netns.populated_events import PopulatedEvents

pytestmark = [
    pytest.mark.skipif(
        not linux.in_initial_user_namespace(), reason="probes are not for a user namespace"
    ),
    needs_btf,
]

Spawn = Callable[..., subprocess.Popen[bytes]]


def is_at_work() -> bool:
    return any(thread.name == "netnsfs-members" for thread in threading.enumerate())


@pytest.fixture
def inode() -> Iterator[int]:
    ip("netns", "add", "a")
    yield os.stat(RUN / "a").st_ino
    ip("netns", "del", "a")
    wait_for(lambda: not is_at_work())


def test_each_watch_is_told_once_until_it_is_renewed(inode: int) -> None:
    populated_events, told = PopulatedEvents(), queue.SimpleQueue[str]()
    watches = [populated_events.watch(inode, partial(told.put, name)) for name in "ab"]
    for watch in watches:
        assert watch
        watch.renew()
    for _ in range(3):
        ip("netns", "exec", "a", "true")
    assert {told.get(timeout=20), told.get(timeout=20)} == {"a", "b"}
    assert told.empty()
    for watch in watches:
        assert watch
        watch.renew()
        watch.renew()
    ip("netns", "exec", "a", "true")
    assert {told.get(timeout=20), told.get(timeout=20)} == {"a", "b"}
    for watch in watches:
        assert watch
        watch.close()


def test_one_that_is_closed_is_told_nothing(inode: int) -> None:
    populated_events, told = PopulatedEvents(), queue.SimpleQueue[str]()
    left, kept = (populated_events.watch(inode, partial(told.put, name)) for name in "ab")
    assert left
    assert kept
    left.renew()
    left.close()
    # Once more does no harm.
    left.close()
    for _ in range(2):
        kept.renew()
        ip("netns", "exec", "a", "true")
        assert told.get(timeout=20) == "b"
    kept.close()


def test_it_works_again_after_a_rest(inode: int) -> None:
    populated_events = PopulatedEvents()
    for _ in range(3):
        told = threading.Event()
        watch = populated_events.watch(inode, told.set)
        assert watch
        assert is_at_work()
        watch.renew()
        ip("netns", "exec", "a", "true")
        assert told.wait(20)
        watch.close()
        wait_for(lambda: not is_at_work())


def test_one_that_is_renewed_after_it_is_closed_hides_no_later_one(inode: int) -> None:
    populated_events, told = PopulatedEvents(), threading.Event()
    late = populated_events.watch(inode, told.set)
    other = populated_events.watch(os.stat("/proc/self/ns/net").st_ino, told.set)
    assert late
    assert other
    late.close()
    wait_for(lambda: inode not in populated_events._watches)
    late.renew()
    other.close()
    wait_for(lambda: not is_at_work())
    watch = populated_events.watch(inode, told.set)
    assert watch
    watch.renew()
    ip("netns", "exec", "a", "true")
    assert told.wait(20)
    watch.close()


def test_our_own_visits_are_not_told(inode: int) -> None:
    populated_events, told = PopulatedEvents(), threading.Event()
    watch = populated_events.watch(inode, told.set)
    assert watch
    watch.renew()

    def visit() -> None:
        with linux.closing_fd(os.open(RUN / "a", os.O_RDONLY)) as fd:
            linux.setns(fd, linux.CLONE_NEWNET)

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    assert not told.wait(0.3)
    ip("netns", "exec", "a", "true")
    assert told.wait(20)
    watch.close()
