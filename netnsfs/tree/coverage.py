"""How much a text about many namespaces covers.

Somebody's namespace may change all the time, have so many interfaces that they take seconds to
list, or be closed to the daemon. It is left out, and counted, instead of failing the whole
text. Each namespace gets its share of the time, and what others do not need of theirs.
"""

import errno
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from netnsfs.jobs import each_on_own_thread

A = TypeVar("A")
T = TypeVar("T")

SECONDS = 6.0
"""So long a text may be made. It is less than the limit of a request."""
# So that no namespace of usual size is left out, however many there are and however busy the
# machine is.
_MIN_SHARE = 0.5
# The process or the machine lacks something. EAGAIN is not among them: the kernel says so of a
# namespace that keeps changing.
_FATAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Coverage:
    """The visits to the namespaces that a text is about.

    Attributes:
        omitted: how many namespaces were left out. One that has ended is not counted.
        until: when the visit must end that is being made (time.monotonic).
    """

    def __init__(self) -> None:
        self.omitted = 0
        self.until = self._deadline = time.monotonic() + SECONDS

    def visit_each(self, visit: Callable[[A], T | None], places: Iterable[A]) -> list[T]:
        """What the visits give, of those that can be made.

        Args:
            visit: of one; None for what is not there any more. It may enter namespaces.
            places: where.

        Raises:
            OSError: the machine lacks what it takes to look.
        """
        left = list(places)
        left.reverse()

        def run(place: A) -> T | None:
            now = time.monotonic()
            self.until = now + max((self._deadline - now) / len(left), _MIN_SHARE)
            left.pop()
            return self._try_visit(visit, place)

        found = each_on_own_thread(run, left[::-1])
        return [result for result in found if result is not None]

    def is_over(self) -> bool:
        """Whether there is no more time."""
        return time.monotonic() > self._deadline

    def _try_visit(self, visit: Callable[[A], T | None], place: A) -> T | None:
        try:
            if not self.is_over():
                return visit(place)
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError as error:
            if error.errno in _FATAL:
                raise
        self.omitted += 1
        return None
