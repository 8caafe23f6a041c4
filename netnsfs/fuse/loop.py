"""How the event loop's thread waits: the one place that decides it.

trio waits for a descriptor with epoll_ctl(2), two calls of epoll_wait(2) and a pass of its
scheduler. pyfuse3 does so for each request, under a lock that gives way to another task each
time. That is half of the time that a small request takes. So where nothing is lost by it, the
thread waits in place, in a plain poll(2), and trio does not notice:

1. For the next request, while no handler waits for a job. It gives way to trio, as before, if
   trio has had no turn for a moment, or if no request comes for a moment. Signals, limits of
   time and other tasks are late by that moment at most. A daemon without requests sleeps in
   trio. While handlers wait for jobs, it takes requests that are there already in the same
   way, for a shorter moment, but waits for the next one in trio, where the end of a job wakes
   it. It does not unlock the interpreter for them: busy workers would keep it for a
   millisecond each time.
2. For the end of a job, while only one handler waits for one. A job usually takes less time
   than two passes of the event loop, one to leave a handler and one to come back to it. The
   next request wakes the thread just the same; then the handler waits as any other does.

Between two processors a sleep costs more than a small request. So where the last requests
followed each other quickly, the thread looks for the next one for a moment before it sleeps.
It does not while it has a single processor, nor while others want the one that it runs on.

pyfuse3 looks `trio` up among its own globals at each use, as its module `asyncio` has it. What
is put there is trio but for the two objects that the waiting is made of.
"""

import errno
import logging
import os
import resource
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import SimpleNamespace

import pyfuse3
import trio

from netnsfs import linux
from netnsfs.fuse.quotas import Quota
from netnsfs.limits import WAITING_PER_USER, WAITING_TOTAL

# Signals, limits of time and other tasks can be late by twice this.
_TURN_MS = 2
_TURN_SECONDS = _TURN_MS / 1000
_TURN_SECONDS_BESIDE_JOBS = 0.0005

_SPIN_SECONDS = 30e-6
_QUICK_SECONDS = 150e-6
"""A request that came after less, sleep included, might have been looked for."""

_QUICK_ENOUGH = 4
_SPINS_BEFORE_CHECK = 256
_MAX_PENALTY = 256
_WANTED_PENALTY = 1000
_MAX_PREEMPTIONS = 100
"""A second: who gets more shares its processor with somebody who has much to do."""

log = logging.getLogger(__name__)


class UnfairLock:
    """A lock that is taken at once if it is free, also by the task that has just left it.

    trio's own makes a pass of the scheduler for each, and hands itself to the task that waits
    longest.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        self._held = False
        if self._waiting:
            self._waiting.unpark()


class Completion:
    """The end of one job, and how the event loop's thread learns of it.

    A lock decides which was first, the end of the job or the end of the wait in place. So the
    job is either taken in place or handed over, never both and never neither.
    """

    __slots__ = ("_in_place", "_lock", "_loop", "_seen")

    def __init__(self, loop: "LoopWaiter", in_place: bool) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._in_place = in_place
        self._seen = False

    def complete(self) -> bool:
        """On a worker: wake the loop's thread if it waits in place.

        Returns:
            Whether it does. If not, trio must be told.
        """
        with self._lock:
            self._seen = self._in_place
            if self._seen:
                self._loop.wake()
            return self._seen

    def wait(self) -> bool:
        """On the loop's thread: wait in place, if that is possible.

        Returns:
            Whether the job has ended. If not, it will be handed over.
        """
        if not self._in_place:
            return False
        self._loop.wait_for_job()
        with self._lock:
            self._in_place = False
        if self._seen:
            self._loop.drain()
        return self._seen


class LoopWaiter:
    """Decides how the event loop's thread waits. There is one of it.

    Attributes:
        jobs: how many handlers wait for a job.
        waiting: the same by user. Each keeps a task of pyfuse3's.
    """

    def __init__(self) -> None:
        self._job_ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._requests = -1
        self._poll_requests = select.poll()
        self._ready_poll = linux.Poll()
        self._poll_both = select.poll()
        self._poll_both.register(self._job_ended, select.POLLIN)
        self._busy_poll = BusyPoll(self._poll_requests, self._ready_poll)
        self._last_turn = 0.0
        self.jobs = 0
        self.waiting = Quota(errno.EAGAIN, WAITING_PER_USER, WAITING_TOTAL)

    def watch_requests(self, requests: int) -> None:
        """Wait in place from now on.

        Args:
            requests: a descriptor that can be read when a request is there.
        """
        self._requests = requests
        self._poll_requests.register(requests, select.POLLIN)
        self._ready_poll = linux.Poll((requests, select.POLLIN))
        self._busy_poll = BusyPoll(self._poll_requests, self._ready_poll)
        self._poll_both.register(requests, select.POLLIN)

    def close(self) -> None:
        """When nobody waits any more."""
        os.close(self._job_ended)

    @contextmanager
    def serving_pyfuse3(self) -> Iterator[None]:
        """Have pyfuse3 wait as this object says, until the block ends."""
        if vars(pyfuse3).get("trio") is not trio:
            log.warning("this release of pyfuse3 cannot be made to wait in place: it is slower")
            yield
            return
        lowlevel = {**vars(trio.lowlevel), "wait_readable": self.wait_readable}
        changed = {"Lock": UnfairLock, "lowlevel": SimpleNamespace(**lowlevel)}
        vars(pyfuse3)["trio"] = SimpleNamespace(**{**vars(trio), **changed})
        try:
            yield
        finally:
            vars(pyfuse3)["trio"] = trio

    # Requests

    async def wait_readable(self, fd: int) -> None:
        """As trio.lowlevel.wait_readable, but for requests in place if that is possible."""
        if fd == self._requests and self._finds_request(monotonic()):
            return
        await trio.lowlevel.wait_readable(fd)
        self._last_turn = monotonic()

    def _finds_request(self, now: float) -> bool:
        if self.jobs:
            beside = now - self._last_turn < _TURN_SECONDS_BESIDE_JOBS
            return beside and self._ready_poll.any_ready()
        return now - self._last_turn < _TURN_SECONDS and self._busy_poll.finds_request(now)

    # Jobs

    def expect_job(self) -> Completion:
        """For a job that is about to start, and is counted in `jobs` already."""
        return Completion(self, self.jobs == 1 and self._requests >= 0)

    def wait_for_job(self) -> None:
        """Until a job, which was expected in place, ends or something else happens."""
        self._poll_both.poll(_TURN_MS)

    def wake(self) -> None:
        """On a worker: end `wait_for_job`."""
        os.eventfd_write(self._job_ended, 1)

    def drain(self) -> None:
        """Take back what `wake` has left."""
        os.eventfd_read(self._job_ended)


class BusyPoll:
    """Waits for a request in place, and decides how: asleep, or looking for it first.

    Attributes:
        _quick: how many requests in a row came quickly; below zero, how many have to before
            they count, because looking has not paid.
        _penalty: what it is set to when looking fails the next time.
    """

    def __init__(self, poll: select.poll, ready_poll: linux.Poll) -> None:
        self._poll = poll
        self._ready_poll = ready_poll
        self._quick = 0
        self._penalty = _QUICK_ENOUGH
        self._spins = 0
        self._preemptions = 0
        self._checked = 0.0

    def finds_request(self, now: float) -> bool:
        """Wait for a moment. Whether a request is there."""
        if self._quick >= _QUICK_ENOUGH and self._spin(now):
            return True
        found = bool(self._poll.poll(_TURN_MS))
        quick = found and monotonic() - now < _QUICK_SECONDS
        self._quick = self._quick + 1 if quick else min(self._quick, 0)
        return found

    def _spin(self, now: float) -> bool:
        if not self._spins % _SPINS_BEFORE_CHECK and self._is_processor_wanted(now):
            self._quick = -_WANTED_PENALTY
            return False
        self._spins += 1
        end = now + _SPIN_SECONDS
        while not self._ready_poll.any_ready():
            if monotonic() > end:
                self._quick = -self._penalty
                self._penalty = min(2 * self._penalty, _MAX_PENALTY)
                return False
        self._penalty = _QUICK_ENOUGH
        return True

    def _is_processor_wanted(self, now: float) -> bool:
        """Whether this thread has one processor only, or was driven from it lately."""
        preemptions = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        lately, seconds = preemptions - self._preemptions, now - self._checked
        self._preemptions, self._checked = preemptions, now
        return lately > _MAX_PREEMPTIONS * seconds or len(os.sched_getaffinity(0)) < 2
