"""Workers, and the pool that lends them to the event loop."""

import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
import trio.testing
from conftest import others_run, wait_for

from netnsfs import jobs as workers
from netnsfs import linux
from netnsfs.fuse import loop as loop_module
from netnsfs.fuse.loop import LoopWaiter
from netnsfs.fuse.pool import Pool
from netnsfs.fuse.quotas import ROOT


def own() -> str:
    return os.readlink("/proc/thread-self/ns/net")


@pytest.fixture
def asking() -> Iterator[tuple[int, int]]:
    """A descriptor that requests come by, and one to make a request."""
    pipe = os.pipe()
    yield pipe
    for end in pipe:
        os.close(end)


@pytest.fixture(params=["loop", "in place"])
def loop(request: pytest.FixtureRequest, asking: tuple[int, int]) -> Iterator[LoopWaiter]:
    loop = LoopWaiter()
    if request.param == "in place":
        loop.watch_requests(asking[0])
    yield loop
    loop.close()


@pytest.fixture
async def pool(loop: LoopWaiter) -> AsyncIterator[Pool]:
    pool = Pool("test", limit=2, seconds=20, queue_seconds=40, loop=loop)
    yield pool
    pool.close()


@pytest.fixture
async def hasty(loop: LoopWaiter) -> AsyncIterator[Pool]:
    """A pool for jobs that take too long."""
    pool = Pool("test", limit=2, seconds=1, queue_seconds=3, loop=loop)
    yield pool
    pool.close()


def travel() -> str:
    with workers.restoring_namespace():
        linux.unshare(linux.CLONE_NEWNET)
        return own()


async def test_results_and_errors_come_back(pool: Pool) -> None:
    assert await pool.run(os.path.join, "a", "b") == "a/b"
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 1, 0)


async def test_a_visitor_comes_home(pool: Pool) -> None:
    for _ in range(20):
        assert await pool.run(travel) != own()
        assert await pool.run(own) == own()


async def test_a_stranded_thread_is_replaced(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, nstype: int) -> None:
        raise PermissionError(errno.EPERM, "")

    with monkeypatch.context() as patch:
        patch.setattr(linux, "setns", fail)
        for _ in range(5):
            assert await pool.run(travel) != own()
    for _ in range(5):
        assert await pool.run(own) == own()


async def test_jobs_queued_behind_a_stranded_thread_are_done(
    loop: LoopWaiter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool("test", limit=1, seconds=5, queue_seconds=5, loop=loop)

    def fail(fd: int, nstype: int) -> None:
        time.sleep(0.05)
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(linux, "setns", fail)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(pool.run, travel)
    pool.close()


def test_only_an_expendable_thread_may_visit() -> None:
    with pytest.raises(RuntimeError, match="disposable"), workers.restoring_namespace():
        pass


async def test_at_most_limit_at_a_time(pool: Pool) -> None:
    running: list[int] = []
    peak = 0

    def work() -> None:
        nonlocal peak
        running.append(1)
        peak = max(peak, len(running))
        time.sleep(0.01)
        running.pop()

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(pool.run, work)
    assert peak == 2


async def test_only_root_waits_for_a_worker_where_nobody_else_may(loop: LoopWaiter) -> None:
    pool = Pool("test", limit=3, seconds=20, queue_seconds=0, loop=loop)
    release = threading.Event()
    ended: list[int] = []

    async def work(user: int) -> None:
        await pool.run_for(user, release.wait)
        ended.append(user)

    async def is_refused(user: int) -> bool:
        try:
            await pool.run_for(user, release.wait, 0)
        except BlockingIOError:
            return True
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert await is_refused(1)
        assert not await is_refused(2)
        for user in (ROOT, ROOT, ROOT):
            nursery.start_soon(work, user)
        await trio.testing.wait_all_tasks_blocked()
        # All workers are root's, or for root.
        assert await is_refused(2)
        release.set()
    assert sorted(ended) == [ROOT, ROOT, ROOT, 1]
    pool.close()


async def test_a_slow_job_times_out_and_costs_no_place(hasty: Pool) -> None:
    release = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_expect_timeout, hasty, release)
    assert await hasty.run(own) == own()
    release.set()
    wait_for(lambda: threading.active_count() < 6)


async def _expect_timeout(pool: Pool, release: threading.Event) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        await pool.run(release.wait)
    assert caught.value.errno == errno.ETIMEDOUT


async def _commits_late(pool: Pool, first: Callable[[], None]) -> bool:
    """Whether a job can still commit when nobody waits for it any more."""
    late, done = threading.Event(), threading.Event()
    committed = []

    def work() -> None:
        try:
            first()
            late.wait()
            workers.commit()
            committed.append(1)
        finally:
            done.set()

    with pytest.raises(OSError, match="too long"):
        await pool.run(work)
    late.set()
    assert done.wait(20)
    return bool(committed)


async def test_a_late_job_does_not_commit(hasty: Pool) -> None:
    assert not await _commits_late(hasty, lambda: None)


async def test_a_job_that_has_committed_is_waited_for(hasty: Pool) -> None:
    def work() -> str:
        workers.commit()
        time.sleep(1.2)
        return "done"

    assert await hasty.run(work) == "done"


async def test_a_job_that_has_committed_ends_what_it_has_begun(hasty: Pool) -> None:
    # As a rename that fails in its second half removes the new name.
    assert await _commits_late(hasty, workers.commit)


async def test_a_job_has_its_time_from_when_it_starts(loop: LoopWaiter) -> None:
    pool = Pool("test", limit=1, seconds=1.5, queue_seconds=10, loop=loop)
    async with trio.open_nursery() as nursery:
        # The second waits for so long before it starts.
        nursery.start_soon(pool.run, time.sleep, 0.8)
        nursery.start_soon(pool.run, time.sleep, 0.8)
    pool.close()


async def test_a_job_is_waited_for_in_place_while_nobody_else_waits(
    pool: Pool, loop: LoopWaiter, asking: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_MS", 10_000)
    loop.watch_requests(asking[0])
    assert not await others_run(pool.run(time.sleep, 0.01))
    os.write(asking[1], b"request")
    assert await others_run(pool.run(time.sleep, 0.5))


async def test_a_request_ends_the_wait_in_place(
    pool: Pool, asking: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_MS", 10_000)
    answered = threading.Event()

    async def serve() -> None:
        await trio.lowlevel.wait_readable(asking[0])
        answered.set()

    def work() -> bool:
        os.write(asking[1], b"request")
        return answered.wait(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert await pool.run(work)


async def test_who_waits_already_is_not_kept_waiting(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_MS", 20)
    release = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, release.wait)
        await trio.sleep(0.05)
        assert await others_run(pool.run(time.sleep, 0.05))
        release.set()


async def test_no_end_of_a_job_is_missed(pool: Pool, asking: tuple[int, int]) -> None:
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            os.write(asking[1], b".")
            os.read(asking[0], 1)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        with trio.fail_after(100):
            for number in range(2000):
                assert await pool.run(divmod, number, 7) == divmod(number, 7)
    finally:
        over.set()
        asker.join()


async def test_a_cancelled_job_does_not_commit(pool: Pool) -> None:
    outcome: list[str] = []
    started, cancelled, done = (threading.Event() for _ in range(3))

    def work() -> None:
        started.set()
        cancelled.wait()
        try:
            workers.commit()
        except workers.Abandoned:
            outcome.append("abandoned")
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, work)
        while not started.is_set():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    cancelled.set()
    assert done.wait(20)
    assert outcome == ["abandoned"]


def test_may_block_only_off_the_event_loop() -> None:
    def loop() -> list[str]:
        workers.never_block()
        try:
            workers.may_block()
        except workers.WouldBlock:
            return ["would block"]
        return []

    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(loop()))
    thread.start()
    thread.join()
    assert seen == ["would block"]
    workers.may_block()
