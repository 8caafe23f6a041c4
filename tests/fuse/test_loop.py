"""How the event loop's thread waits. A pipe stands for the device that requests come by."""

import os
import resource
import signal
import statistics
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pyfuse3
import pytest
import trio
from conftest import others_run

from netnsfs.fuse import loop as loop_module
from netnsfs.fuse.loop import LoopWaiter, UnfairLock
from netnsfs.fuse.pool import Pool

NEVER_MS = 10_000


@pytest.fixture
def requests() -> Iterator[tuple[int, int]]:
    """A descriptor that requests come by, and one to make a request."""
    pipe = os.pipe()
    yield pipe
    for end in pipe:
        os.close(end)


@pytest.fixture
def loop(requests: tuple[int, int]) -> Iterator[LoopWaiter]:
    loop = LoopWaiter()
    loop.watch_requests(requests[0])
    yield loop
    loop.close()


@pytest.fixture
async def flood(loop: LoopWaiter, requests: tuple[int, int]) -> AsyncIterator[list[float]]:
    """Requests without end, and the times at which they were answered."""
    answered: list[float] = []

    async def serve() -> None:
        while True:
            await loop.wait_readable(requests[0])
            answered.append(time.monotonic())

    os.write(requests[1], b"request")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield answered
        nursery.cancel_scope.cancel()


async def gives_way(loop: LoopWaiter, fd: int) -> bool:
    """Whether other tasks have their turn while a request that is there is waited for."""
    # Of two tasks that can go on, trio takes one at random first.
    return any([await others_run(loop.wait_readable(fd)) for _ in range(30)])


async def take_turn(loop: LoopWaiter, requests: tuple[int, int]) -> None:
    """Serve a request by way of trio, as the first one is."""
    os.write(requests[1], b"request")
    await loop.wait_readable(requests[0])


# In place


async def test_a_request_is_waited_for_in_place(
    loop: LoopWaiter, requests: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_SECONDS", 60)
    await take_turn(loop, requests)
    # Nothing else is done between the wait and the read: see session, 2.
    assert not await gives_way(loop, requests[0])


async def test_a_request_that_does_not_come_is_left_to_trio(
    loop: LoopWaiter, requests: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_SECONDS", 60)
    await take_turn(loop, requests)
    os.read(requests[0], 99)
    with trio.move_on_after(0.1) as limit:
        await loop.wait_readable(requests[0])
    assert limit.cancelled_caught


async def test_trio_has_its_turn(
    loop: LoopWaiter, requests: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_SECONDS", 0)
    await take_turn(loop, requests)
    assert await gives_way(loop, requests[0])


async def test_no_request_is_waited_for_in_place_while_a_handler_waits(
    loop: LoopWaiter, requests: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_SECONDS_BESIDE_JOBS", 0)
    await take_turn(loop, requests)
    loop.jobs = 1
    assert await gives_way(loop, requests[0])
    monkeypatch.setattr(loop_module, "_TURN_SECONDS_BESIDE_JOBS", 60)
    # But what is there already is taken at once.
    assert not await gives_way(loop, requests[0])
    os.read(requests[0], 99)
    with trio.move_on_after(0.1) as limit:
        assert await others_run(loop.wait_readable(requests[0]))
    assert limit.cancelled_caught


async def test_other_descriptors_are_left_to_trio(
    loop: LoopWaiter, requests: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_SECONDS", 60)
    await take_turn(loop, requests)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    assert await gives_way(loop, reader)
    os.close(reader)
    os.close(writer)


# Under a flood


async def test_limits_of_time_are_heeded_under_a_flood(flood: list[float]) -> None:
    late = []
    for _ in range(50):
        began = time.monotonic()
        with trio.move_on_after(0.01):
            await trio.sleep_forever()
        late.append(time.monotonic() - began - 0.01)
    assert len(flood) > 100
    assert statistics.median(late) < 0.02


async def test_signals_are_heeded_under_a_flood(flood: list[float]) -> None:
    late = []
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        for _ in range(20):
            began = time.monotonic()
            os.kill(os.getpid(), signal.SIGUSR1)
            await anext(signals)
            late.append(time.monotonic() - began)
    assert statistics.median(late) < 0.02


async def test_results_are_heeded_under_a_flood(flood: list[float], loop: LoopWaiter) -> None:
    pool = Pool("test", limit=2, seconds=20, queue_seconds=40, loop=loop)
    late = []
    for _ in range(20):
        ended = await pool.run(slept)
        late.append(time.monotonic() - ended)
    pool.close()
    assert statistics.median(late) < 0.02


def slept() -> float:
    """When a sleep ended that is longer than a wait in place."""
    time.sleep(0.01)
    return time.monotonic()


# Without requests


async def test_who_waits_in_vain_sleeps(loop: LoopWaiter, requests: tuple[int, int]) -> None:
    await take_turn(loop, requests)
    os.read(requests[0], 99)

    def switches() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

    before = switches()
    with trio.move_on_after(0.5):
        await loop.wait_readable(requests[0])
    assert switches() - before < 5


# Looking for requests before sleeping


class Asker:
    """Answers its own requests: the next one comes so and so long after the last."""

    def __init__(self, loop: LoopWaiter, requests: tuple[int, int]) -> None:
        self.loop = loop
        self.requests = requests
        self.lookout = loop._busy_poll

    async def ask(self, count: int, pause: float) -> None:
        asking = threading.Thread(target=self._ask, args=(count, pause))
        asking.start()
        for _ in range(count):
            await self.loop.wait_readable(self.requests[0])
            os.read(self.requests[0], 1)
        asking.join()

    def _ask(self, count: int, pause: float) -> None:
        for _ in range(count):
            time.sleep(pause)
            os.write(self.requests[1], b".")


@pytest.fixture
def asker(loop: LoopWaiter, requests: tuple[int, int]) -> Asker:
    return Asker(loop, requests)


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


async def test_a_slow_drip_is_not_looked_for(asker: Asker, two_processors: None) -> None:
    await asker.ask(50, 0.003)
    assert asker.lookout._spins == 0


async def test_what_follows_quickly_is_looked_for(
    flood: list[float], loop: LoopWaiter, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_MAX_PREEMPTIONS", 1e9)
    while loop._busy_poll._spins < 1000:
        await trio.sleep(0.01)


async def test_it_is_not_looked_for_on_one_processor(
    flood: list[float], loop: LoopWaiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1})
    while len(flood) < 5000:
        await trio.sleep(0.01)
    assert loop._busy_poll._spins == 0


async def test_it_is_not_looked_for_while_others_want_the_processor(
    flood: list[float], loop: LoopWaiter, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_MAX_PREEMPTIONS", -1)
    while len(flood) < 5000:
        await trio.sleep(0.01)
    assert loop._busy_poll._spins == 0


def test_looking_in_vain_becomes_rare(
    loop: LoopWaiter, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_MAX_PREEMPTIONS", 1e12)
    lookout = loop._busy_poll
    for _ in range(2000):
        # As if the last one had come quickly, and the next does not come.
        lookout._quick += 1
        if lookout._quick >= loop_module._QUICK_ENOUGH:
            assert not lookout._spin(time.monotonic())
    assert 5 < lookout._spins < 30


# The lock


async def test_a_free_lock_is_taken_without_a_turn_of_others() -> None:
    lock = UnfairLock()

    async def take() -> None:
        for _ in range(10):
            async with lock:
                pass

    assert not await others_run(take())


async def test_one_holds_the_lock_and_nobody_is_forgotten() -> None:
    lock, holding, most = UnfairLock(), 0, 0

    async def take() -> None:
        nonlocal holding, most
        for _ in range(10):
            async with lock:
                holding += 1
                most = max(most, holding)
                await trio.lowlevel.checkpoint()
                holding -= 1

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(take)
    assert most == 1


async def test_a_cancelled_holder_lets_go() -> None:
    lock = UnfairLock()

    async def hold() -> None:
        async with lock:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(20):
        async with lock:
            pass


# pyfuse3


def test_pyfuse3_waits_as_told_and_only_then(loop: LoopWaiter) -> None:
    def used() -> object:
        return vars(pyfuse3)["trio"]

    with loop.serving_pyfuse3():
        stand_in = used()
        assert stand_in.Lock is UnfairLock  # type: ignore[attr-defined]
        assert stand_in.lowlevel.wait_readable == loop.wait_readable  # type: ignore[attr-defined]
        assert stand_in.open_nursery is trio.open_nursery  # type: ignore[attr-defined]
    assert used() is trio


def test_a_pyfuse3_that_cannot_be_told(
    loop: LoopWaiter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(vars(pyfuse3), "trio")
    with loop.serving_pyfuse3():
        assert "trio" not in vars(pyfuse3)
    assert "cannot be made to wait in place" in caplog.text
    assert len(caplog.records) == 1
