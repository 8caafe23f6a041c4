"""Worker threads for the event loop.

Every handler that cannot answer at once waits here, and only here, so this is where it is
bounded in time: a client that waits for a FUSE request cannot be killed, not even by
SIGKILL.

trio.to_thread was considered: its threads go back to a cache that the whole process
shares, and one that is tainted in a namespace (see `jobs`) could not be taken out.

The counts of jobs and threads are kept by the event loop's thread alone, and so need no lock.
A worker hands a finished job over with `run_sync_soon`. A job that hangs (a dead NFS server
behind a link, say) costs its thread, not its place: the pool puts another thread there, until
MAX_HUNG of them hang.

How the loop's thread waits for the end of a job, `loop` decides.
"""

import errno
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import trio

from netnsfs.fuse.fair_queue import FairQueue, QueueItem
from netnsfs.fuse.loop import Completion, LoopWaiter
from netnsfs.fuse.quotas import ROOT
from netnsfs.jobs import Job, disposable, start_thread
from netnsfs.limits import MAX_HUNG

T = TypeVar("T")

log = logging.getLogger(__name__)


class Pools(NamedTuple):
    """The workers, by what they do, so that nobody waits for work of another kind.

    Attributes:
        locked: requests during which the kernel holds the lock of a directory that can be
            changed: it holds all that others want there until the answer comes.
        read_only: other requests that change nothing.
        mutating: changes of directories, during which the kernel holds their locks. Those of
            anyone but root start at once or not at all.
        writing: writes to files. The kernel holds the file's lock alone.
        slow: files that take long to make, or to write.
    """

    locked: "Pool"
    read_only: "Pool"
    mutating: "Pool"
    writing: "Pool"
    slow: "Pool"


def _wake() -> None:
    """What the event loop is woken for, if there is nothing else."""


class _QueuedJob(QueueItem):
    """A job in a pool.

    Attributes:
        job: the job.
        end: how the event loop's thread learns that it has ended.
        done: set when trio knows it; None while nobody waits in this way.
        hung: nobody waits for it any more, and it keeps a thread.
    """

    __slots__ = ("done", "end", "hung", "job")

    def __init__(self, user: int, job: Job[Any], end: Completion) -> None:
        super().__init__(user, job.target)
        self.job = job
        self.end = end
        self.done: trio.Event | None = None
        self.hung = False


class Pool:
    """Runs at most `limit` jobs at a time. Users take turns (see `fair_queue`).

    Args:
        name: of its threads.
        limit: threads at work.
        seconds: how long `run` waits for a job that has started.
        queue_seconds: how long it waits for the start. With 0, only root's jobs wait: a job of
            anyone else that cannot start at once fails.
        loop: shared by all pools of an event loop.
    """

    def __init__(
        self, name: str, limit: int, seconds: float, queue_seconds: float, loop: LoopWaiter
    ) -> None:
        self._name = name
        self._limit = limit
        self._seconds = seconds
        self._queue_seconds = queue_seconds
        self._loop = loop
        self._token = trio.lowlevel.current_trio_token()
        self._queue: FairQueue[_QueuedJob] = FairQueue(non_root_limit=max(1, limit - 1))
        self._jobs = 0
        self._threads = 0
        self._hung = 0

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """`run_for` of the daemon's own."""
        return await self.run_for(ROOT, function, *args)

    async def run_for(self, user: int, function: Callable[..., T], *args: object) -> T:
        """Call `function` on a worker thread.

        Args:
            user: who waits for it.
            function: what to call.
            args: its arguments.

        Returns:
            What it returns.

        Raises:
            OSError: ETIMEDOUT if it takes too long. It then fails at its next `commit()`.
                One that has committed gets the same time again. EAGAIN if the machine has
                no thread for it, the user waits for too many, or the job may not wait and
                cannot start.
            Exception: what the function raises.
        """
        job = Job(function, *args)
        if not self._queue_seconds and user != ROOT:
            self._require_free_worker(user)
        self._loop.waiting.charge(user)
        self._loop.jobs += 1
        try:
            self._start_threads(self._jobs + 1)
            self._jobs += 1
            queued = _QueuedJob(user, job, self._loop.expect_job())
            self._queue.put(queued)
            if queued.end.wait():
                self._complete(queued)
            else:
                queued.done = trio.Event()
                await self._wait_for(queued, queued.done)
        finally:
            self._loop.jobs -= 1
            self._loop.waiting.uncharge(user)
        return job.result()

    def _require_free_worker(self, user: int) -> None:
        if self._jobs >= self._thread_limit() or not self._queue.starts_at_once(user):
            message = "too much is being changed at the same time: try again"
            raise BlockingIOError(errno.EAGAIN, message)

    async def _wait_for(self, queued: _QueuedJob, done: trio.Event) -> None:
        job = queued.job
        try:
            with trio.move_on_after(self._seconds):
                await done.wait()
            if not done.is_set():
                await self._wait_longer(job, done)
        finally:
            if not done.is_set():
                job.abandon()
                queued.hung = job.started
                self._hung += queued.hung
                if queued.hung:
                    self._queue.finish(queued)
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
            self._queue.put_stop()

    def _start_threads(self, jobs: int) -> None:
        """Have threads for that many jobs, up to the limit."""
        limit = self._thread_limit()
        while self._threads < min(jobs, limit):
            try:
                start_thread(self._work, self._name)
            except OSError:
                if self._threads:
                    break
                raise
            self._threads += 1
        if self._threads > limit:
            self._threads -= 1
            self._queue.put_stop()

    def _thread_limit(self) -> int:
        return self._limit + min(self._hung, MAX_HUNG)

    def _work(self) -> None:
        with disposable():
            while (queued := self._queue.get()) is not None:
                job = queued.job
                if not job.abandoned:
                    job.run()
                self._queue.finish(queued)
                if not queued.end.complete() and not self._deliver(queued):
                    return
                if job.tainted:
                    return
                # What a job holds ends with it, not with the next one.
                del queued, job

    def _deliver(self, queued: _QueuedJob) -> bool:
        """Tell the event loop of a job that has ended. False if there is no loop any more."""
        try:
            self._token.run_sync_soon(self._complete, queued)
        except trio.RunFinishedError:
            return False
        except OSError as error:
            # Handed over all the same: only waking the loop has failed. What is short for a
            # moment (memory) may be there again.
            log.warning("the event loop may wake late: %s", error.strerror)
            with suppress(OSError, trio.RunFinishedError):
                self._token.run_sync_soon(_wake)
        return True

    def _complete(self, queued: _QueuedJob) -> None:
        job = queued.job
        self._jobs -= 1
        self._hung -= queued.hung
        self._threads -= job.tainted
        if queued.done is not None:
            queued.done.set()
        # What waits in the queue has been refused already if there is no thread at all.
        with suppress(OSError):
            self._start_threads(self._jobs)
