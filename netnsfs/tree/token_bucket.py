"""A rate limit for each user, in seconds of work.

Work that takes long in the kernel (thousands of addresses in one write) keeps others waiting
for what it locks there, root among them.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from netnsfs.limits import WRITE_BURST, WRITE_RATE

P = ParamSpec("P")
T = TypeVar("T")


class TokenBucket:
    """A token bucket for each user, in seconds of work. For any thread.

    Args:
        burst: seconds of work that a full bucket allows. A user with any left may begin, and
            so use more.
        rate: seconds of work that are refilled in a second.
    """

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._lock = threading.Lock()
        # When each user will have all of it again.
        self._full_at: dict[int, float] = {}

    @contextmanager
    def charge(self, user: int) -> Iterator[None]:
        """Count what a block takes.

        Raises:
            OSError: EAGAIN if the user has no time left.
        """
        began = time.monotonic()
        with self._lock:
            full_at = self._full_at.get(user, began)
        if full_at - began >= self._burst / self._rate:
            message = "this user's time for this is used up: try again later"
            raise BlockingIOError(errno.EAGAIN, message)
        try:
            yield
        finally:
            self._count(user, began)

    def _count(self, user: int, began: float) -> None:
        now = time.monotonic()
        with self._lock:
            others = {of: at for of, at in self._full_at.items() if at > now}
            full_at = others.get(user, now) + (now - began) / self._rate
            self._full_at = {**others, user: full_at}


_writing = TokenBucket(WRITE_BURST, WRITE_RATE)


def charged(user: int, write: Callable[P, T]) -> Callable[P, T]:
    """What carries out a command, at the cost of a user's time for writes.

    Args:
        user: who writes. Root has no limit.
        write: carries out the command.
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if user == 0:
            return write(*args, **kwargs)
        with _writing.charge(user):
            return write(*args, **kwargs)

    return run
