"""Threads that may enter a network namespace, and jobs that may lose their caller.

unshare(2) and setns(2) change one thread. A thread that comes back to a pool in the wrong
namespace poisons whatever runs on it next, and a thread that it starts is born in that
namespace too. Hence three rules:

1. A thread enters a namespace only inside `restoring_namespace()`, and only if it is
   disposable. When the block ends, the thread is back in its original namespace, or it is
   marked as tainted.
2. A tainted thread ends after its job, and starts no other thread.
3. A job whose caller has stopped waiting learns it at `commit()`, the point before anything
   that others can see. One of the two wins: either the caller learns that the job went
   through, or the job undoes what it has begun.

The rest of netnsfs is written as plain calls. Those that can take long begin with
`may_block()`, so that none of them can run on the event loop by mistake.

Nothing here knows trio: `pool` runs jobs for the event loop, `on_own_thread` for everyone
else.
"""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from netnsfs import linux

A = TypeVar("A")
T = TypeVar("T")


class WouldBlock(Exception):
    """Raised on the event loop's thread by a call that must be made on a worker."""


class Abandoned(Exception):
    """Raised by `commit()`: nobody waits for this job any more. It must undo its work."""


class Job(Generic[T]):
    """One call, made on a disposable thread and awaited elsewhere.

    Args:
        function: what to call.
        args: its arguments.

    Attributes:
        target: another number for each object whose method it calls.
        asked: when it was asked for (time.monotonic).
        started: a thread is at it, or was.
        began: when (time.monotonic).
        abandoned: nobody waits for it any more.
        tainted: it left its thread in a foreign namespace.
    """

    def __init__(self, function: Callable[..., T], *args: object) -> None:
        self._function = function
        self._args = args
        self._lock = threading.Lock()
        self._committed = False
        self._value: T
        self._error: BaseException | None = None
        self.target = id(getattr(function, "__self__", function))
        self.asked = time.monotonic()
        self.started = False
        self.began = 0.0
        self.abandoned = False
        self.tainted = False

    def run(self) -> None:
        """Make the call on this thread and keep what comes of it."""
        self.began = time.monotonic()
        self.started = True
        _local.job = self
        try:
            self._value = self._function(*self._args)
        # Of any kind: it is raised again where the result is awaited.
        except BaseException as error:
            self._error = error
        finally:
            _local.job = None
            self.tainted = _local.tainted

    def result(self) -> T:
        """What the call returned, or raise what it raised."""
        # Not kept: the traceback of the error leads back to this job, and such a circle, with
        # all that its frames hold, stays until the next garbage collection.
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._value

    def commit(self) -> None:
        """Go through with it; from here on the caller cannot give up.

        Raises:
            Abandoned: the caller was first.
        """
        with self._lock:
            if self.abandoned:
                raise Abandoned
            self._committed = True

    def abandon(self) -> bool:
        """Stop waiting. False if the job has committed and will go through."""
        with self._lock:
            self.abandoned = not self._committed
            return self.abandoned


class _Local(threading.local):
    never_blocks = False
    disposable = False
    tainted = False
    original_ns: int | None = None
    job: Job[Any] | None = None


_local = _Local()


def never_block() -> None:
    """Declare the calling thread the event loop's: from now on `may_block` raises here."""
    _local.never_blocks = True


def on_event_loop() -> bool:
    """Whether the calling thread is the event loop's."""
    return _local.never_blocks


def may_block() -> None:
    """Stands at the top of every call that can take long.

    Raises:
        WouldBlock: on the event loop's thread, before anything is done. The loop then
            makes the same call on a worker.
    """
    if _local.never_blocks:
        raise WouldBlock


def asked_at() -> float:
    """When the job was asked for that this thread runs (time.monotonic); else now."""
    return _local.job.asked if _local.job else time.monotonic()


class FreshCache(Generic[T]):
    """An expensive result, shared by all who asked before it was begun.

    So many who ask at the same time cost as much as two. (What was begun earlier may lack what
    has changed before somebody asked.) For any thread; nobody waits for another.
    """

    def __init__(self) -> None:
        self._latest: tuple[float, Hashable, T] | None = None

    def get_since_asked(self, make: Callable[[], T], key: Hashable = None) -> T:
        """The latest result, if it is recent enough, or a new one.

        Args:
            make: makes it.
            key: with another one, it is another result. Only the latest is kept.
        """
        latest = self._latest
        if latest and latest[0] >= asked_at() and latest[1] == key:
            return latest[2]
        began = time.monotonic()
        made = make()
        self._latest = began, key, made
        return made


def commit() -> None:
    """`Job.commit` of the job that this thread runs, if it runs one."""
    if _local.job is not None:
        _local.job.commit()


@contextlib.contextmanager
def disposable() -> Iterator[None]:
    """Let the calling thread use `restoring_namespace()`. It must end after the block."""
    # Signals belong to the main thread: it is the one whose blocked read they must end,
    # and here they would make system calls fail with EINTR.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _local.disposable = True
    try:
        yield
    finally:
        if _local.original_ns is not None:
            os.close(_local.original_ns)


@contextlib.contextmanager
def restoring_namespace() -> Iterator[None]:
    """Let the calling, disposable thread change its network namespace until the block ends."""
    if not _local.disposable:
        raise RuntimeError("only a disposable thread may leave its network namespace")
    if _local.original_ns is None:
        # /proc/self would be the process's first thread.
        _local.original_ns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            linux.setns(_local.original_ns, linux.CLONE_NEWNET)
        except OSError:
            # In a user namespace, the way back to a namespace of the outer one is closed
            # (EPERM). The work is done all the same, so this is no error of the job.
            _local.tainted = True


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that does not keep the process from ending.

    Args:
        target: what it runs.
        name: what it is called; its first 15 bytes are shown by ps(1).

    Raises:
        OSError: EAGAIN if the machine has no thread for it.
    """

    def run() -> None:
        linux.name_thread(name)
        target()

    # A thread may be stuck in the kernel. The interpreter would wait for it at its end.
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "the machine has no thread for it") from None
    return thread


def on_own_thread(function: Callable[..., T], *args: object) -> T:
    """Call `function` where it may use `restoring_namespace()`.

    That is here, or on a thread made for this one call.
    """
    may_block()
    if _local.disposable:
        return function(*args)
    job = Job(function, *args)

    def run() -> None:
        with disposable():
            job.run()

    start_thread(run, "netnsfs-enter").join()
    return job.result()


def each_on_own_thread(function: Callable[[A], T], arguments: Iterable[A]) -> list[T]:
    """`on_own_thread` for each argument, on one thread as long as that comes home.

    To start a thread takes as long as a visit.
    """
    results = []
    left = iter(arguments)

    def call_until_tainted() -> bool:
        for argument in left:
            results.append(function(argument))
            if _local.tainted:
                return True
        return False

    while on_own_thread(call_until_tainted):
        pass
    return results
