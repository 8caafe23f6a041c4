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
"""

import errno
import logging
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import trio

from netnsfs.workers import Job, expendable, start_thread

T = TypeVar("T")

MAX_LOST = 64

log = logging.getLogger(__name__)


class Pool:
    """Runs at most `limit` jobs at a time, in the order in which they come.

    Args:
        limit: threads at work.
        seconds: how long `run` waits for a job that has started.
        queue_seconds: how long it waits for the start.
    """

    def __init__(self, limit: int, seconds: float, queue_seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._queue_seconds = queue_seconds
        self._token = trio.lowlevel.current_trio_token()
        self._queue: queue.SimpleQueue[tuple[Job[Any], trio.Event] | None] = queue.SimpleQueue()
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
        done = trio.Event()
        self._staff(self._jobs + 1)
        self._jobs += 1
        self._queue.put((job, done))
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
        return job.result()

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
            while (item := self._queue.get()) is not None:
                job, done = item
                if not job.abandoned:
                    job.run()
                try:
                    self._token.run_sync_soon(self._finished, job, done)
                except trio.RunFinishedError:
                    return
                except OSError as error:
                    # Handed over all the same: only waking the loop has failed.
                    log.warning("the event loop wakes late: %s", error.strerror)
                if job.stranded:
                    return
                del item, job, done

    def _finished(self, job: Job[Any], done: trio.Event) -> None:
        self._jobs -= 1
        self._lost -= job.abandoned and job.started
        self._threads -= job.stranded
        done.set()
        # What waits in the queue has been refused already if there is no thread at all.
        with suppress(OSError):
            self._staff(self._jobs)
