"""How long each user may keep others waiting."""

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Allowance:
    """Time that each user may take at once, and how quickly it comes back. For any thread.

    Args:
        seconds: at once. Who has any of it left may begin, and so take more.
        rate: how many seconds come back in a second.
    """

    def __init__(self, seconds: float, rate: float) -> None:
        self._seconds = seconds
        self._rate = rate
        self._lock = threading.Lock()
        # When each user will have all of it again.
        self._full_at: dict[int, float] = {}

    @contextmanager
    def spent_by(self, user: int) -> Iterator[None]:
        """Count what a block takes.

        Raises:
            OSError: EAGAIN if the user has no time left.
        """
        began = time.monotonic()
        with self._lock:
            full_at = self._full_at.get(user, began)
        if full_at - began >= self._seconds / self._rate:
            message = "earlier ones of this user took too long: try again later"
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
