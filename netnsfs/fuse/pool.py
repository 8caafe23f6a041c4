"""Worker threads for the event loop.

Every handler that cannot answer at once waits here, and only here, so this is where it is
bounded in time: a client that waits for a FUSE request cannot be killed, not even by
SIGKILL.

trio.to_thread was considered: its threads go back to a cache that the whole process
shares, and one that is stranded in a namespace (see `workers`) could not be taken out.

All bookkeeping happens on the event loop's thread, so it needs no locks: a worker hands
its finished job over with `run_sync_soon`. A job that hangs (a dead NFS server behind a
link, say) costs its thread, not its place: the pool puts another thread there, until
MAX_LOST of them hang.

What a worker does takes mostly less time than two passes of the event loop, one to go on
and one to come back. So while nobody else waits for anything, the loop's thread waits for the
job where it stands (`Lull`), as it would in epoll_wait(2): the next request wakes it just the
same, and then it goes on as a loop. Which of the two it is when a job ends, a lock decides.
"""

import errno
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import trio

from netnsfs.jobs import Job, expendable, start_thread

T = TypeVar("T")

MAX_LOST = 64

# Signals and limits of time are heeded that much later, for each job of a request.
_LULL_MS = 2

log = logging.getLogger(__name__)


class _Turn:
    """A job in a pool.

    Attributes:
        job: the job.
        done: set when the event loop's thread knows that it has ended, if somebody waits for
            that otherwise than in place.
        lock: held to look at the following two.
        in_place: the event loop's thread waits for nothing but it and requests.
        ended: it was waited for in place when it ended.
    """

    __slots__ = ("done", "ended", "in_place", "job", "lock")

    def __init__(self, job: Job[Any], in_place: bool) -> None:
        self.job = job
        self.done: trio.Event | None = None
        self.lock = threading.Lock()
        self.in_place = in_place
        self.ended = False


class Lull:
    """What to wait for while nobody but one caller waits for a job; of all pools of a loop.

    Attributes:
        waiting: how many callers wait.
    """

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll: select.poll | None = None
        self.waiting = 0

    def heed(self, requests: int) -> None:
        """Wait in place from now on.

        Args:
            requests: a descriptor that can be read when somebody asks for something.
        """
        self._poll = select.poll()
        for fd in (self._bell, requests):
            self._poll.register(fd, select.POLLIN)

    def close(self) -> None:
        """When no pool is in use any more."""
        os.close(self._bell)

    def turn(self, job: Job[Any]) -> _Turn:
        """A turn for one more caller, who waits already."""
        return _Turn(job, in_place=self.waiting == 1 and self._poll is not None)

    def ring(self, turn: _Turn) -> bool:
        """On a worker, at the end of a job: whether it was waited for in place."""
        with turn.lock:
            turn.ended = turn.in_place
            if turn.ended:
                os.eventfd_write(self._bell, 1)
            return turn.ended

    def wait(self, turn: _Turn) -> bool:
        """On the event loop's thread: whether the job ended before anything else came."""
        assert self._poll
        self._poll.poll(_LULL_MS)
        with turn.lock:
            turn.in_place = False
        if turn.ended:
            os.eventfd_read(self._bell)
        return turn.ended


class Pool:
    """Runs at most `limit` jobs at a time, in the order in which they come.

    Args:
        limit: threads at work.
        seconds: how long `run` waits for a job that has started.
        queue_seconds: how long it waits for the start.
        lull: shared by all pools of an event loop.
    """

    def __init__(self, limit: int, seconds: float, queue_seconds: float, lull: Lull) -> None:
        self._limit = limit
        self._seconds = seconds
        self._queue_seconds = queue_seconds
        self._lull = lull
        self._token = trio.lowlevel.current_trio_token()
        self._queue: queue.SimpleQueue[_Turn | None] = queue.SimpleQueue()
        self._jobs = 0
        self._threads = 0
        self._lost = 0

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function` on a worker thread.

        Returns:
            What it returns.

        Raises:
            OSError: ETIMEDOUT if it takes too long. It then fails at its next `commit()`.
                One that has committed gets the same time again. EAGAIN if the machine has
                no thread for it.
            Exception: what the function raises.
        """
        job = Job(function, *args)
        self._staff(self._jobs + 1)
        self._jobs += 1
        self._lull.waiting += 1
        try:
            turn = self._lull.turn(job)
            self._queue.put(turn)
            if turn.in_place and self._lull.wait(turn):
                self._finished(turn)
            else:
                turn.done = trio.Event()
                await self._wait(job, turn.done)
        finally:
            self._lull.waiting -= 1
        return job.result()

    async def _wait(self, job: Job[Any], done: trio.Event) -> None:
        try:
            with trio.move_on_after(self._seconds):
                await done.wait()
            if not done.is_set():
                await self._wait_longer(job, done)
        finally:
            if not done.is_set():
                job.abandoned = True
                self._lost += job.started
        if not done.is_set():
            raise OSError(errno.ETIMEDOUT, "it takes too long")

    async def _wait_longer(self, job: Job[Any], done: trio.Event) -> None:
        """For a job that has not started yet, and for the end of one that has committed."""
        with trio.move_on_after(max(0, self._queue_seconds - self._seconds)):
            while not job.started and not done.is_set():
                with trio.move_on_after(self._seconds):
                    await done.wait()
        if job.started:
            with trio.move_on_after(max(0, job.began + self._seconds - time.monotonic())):
                await done.wait()
        if not done.is_set() and not job.abandon():
            with trio.move_on_after(self._seconds):
                await done.wait()

    def close(self) -> None:
        """Let the threads end, each after the job that it is at."""
        for _ in range(self._threads):
            self._queue.put(None)

    def _staff(self, jobs: int) -> None:
        """Have threads for that many jobs, up to the limit."""
        limit = self._limit + min(self._lost, MAX_LOST)
        while self._threads < min(jobs, limit):
            try:
                start_thread(self._work, "netnsfs-worker")
            except OSError:
                if self._threads:
                    break
                raise
            self._threads += 1
        if self._threads > limit:
            self._threads -= 1
            self._queue.put(None)

    def _work(self) -> None:
        with expendable():
            while (turn := self._queue.get()) is not None:
                job = turn.job
                if not job.abandoned:
                    job.run()
                if not self._lull.ring(turn):
                    try:
                        self._token.run_sync_soon(self._finished, turn)
                    except trio.RunFinishedError:
                        return
                    except OSError as error:
                        # Handed over all the same: only waking the loop has failed.
                        log.warning("the event loop wakes late: %s", error.strerror)
                if job.stranded:
                    return
                del turn, job

    def _finished(self, turn: _Turn) -> None:
        job = turn.job
        self._jobs -= 1
        self._lost -= job.abandoned and job.started
        self._threads -= job.stranded
        if turn.done is not None:
            turn.done.set()
        # What waits in the queue has been refused already if there is no thread at all.
        with suppress(OSError):
            self._staff(self._jobs)
