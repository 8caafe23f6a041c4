"""Jobs that wait for a worker: their users take turns.

First come, first served would let one user with a thousand jobs keep all others waiting. So
there is a queue for each user, and workers take from one after the other. One worker is kept
for root: however long the jobs of others take, root's do not wait for them. One more is kept
from each user, if there are so many: a single user's long jobs keep no other user waiting.

The kernel keeps a page or a directory locked while a user's job for it waits, and root may want
the same. So the files that a user asks for take turns too: many jobs for one of them keep a job
for another waiting no longer than one does.
"""

import queue
import threading
from collections import Counter, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from netnsfs.fuse.quotas import ROOT


class QueueItem:
    """What waits for its turn: a base class.

    Attributes:
        user: whose it is.
        target: what it asks: equal for all that ask the same file or directory.
        executing: a worker is kept by it.
    """

    __slots__ = ("executing", "target", "user")

    def __init__(self, user: int, target: Hashable) -> None:
        self.user = user
        self.target = target
        self.executing = False


W = TypeVar("W", bound=QueueItem)


class FairQueue(Generic[W]):
    """A queue in which users take turns.

    Args:
        non_root_limit: how many workers users other than root may keep.
    """

    def __init__(self, non_root_limit: int) -> None:
        self._non_root_limit = non_root_limit
        self._user_limit = max(1, non_root_limit - 1)
        self._lock = threading.Lock()
        # By target: the first in the dictionary is the next.
        self._by_user: dict[int, dict[Hashable, deque[W]]] = {}
        self._order: deque[int] = deque()
        # How many workers each user keeps, but for root.
        self._executing: Counter[int] = Counter()
        # True for each item that can be taken, False to end a worker. What is in the queue but
        # may not be taken yet has no token, and is counted instead.
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._deferred = 0

    def put(self, item: W) -> None:
        """Let an item wait for its turn."""
        with self._lock:
            by_target = self._by_user.get(item.user)
            if by_target is None:
                by_target = self._by_user[item.user] = {}
                self._order.append(item.user)
            by_target.setdefault(item.target, deque()).append(item)
        self._tokens.put(True)

    def starts_at_once(self, user: int) -> bool:
        """Whether an item of a user would not wait for other items, if a worker is free."""
        with self._lock:
            if user == ROOT:
                return True
            waiting = Counter(
                {of: sum(map(len, items.values())) for of, items in self._by_user.items()}
            )
            del waiting[ROOT]
            taken = self._executing + waiting
            return taken[user] < self._user_limit and taken.total() < self._non_root_limit

    def put_stop(self) -> None:
        """Let one worker end."""
        self._tokens.put(False)

    def get(self) -> W | None:
        """Wait for an item whose turn it is; None if the worker is to end."""
        while self._tokens.get():
            with self._lock:
                item = self._take()
                if item is not None:
                    return item
                self._deferred += 1
        return None

    def finish(self, item: W) -> None:
        """Mark the item's worker as free. A second call changes nothing."""
        with self._lock:
            if item.executing:
                item.executing = False
                if item.user != ROOT:
                    self._executing -= Counter({item.user: 1})
                if self._deferred:
                    self._deferred -= 1
                    self._tokens.put(True)

    def _take(self) -> W | None:
        for _ in range(len(self._order)):
            user = self._order[0]
            self._order.rotate(-1)
            if user == ROOT or self._may_keep_one_more(user):
                return self._take_of(user)
        return None

    def _may_keep_one_more(self, user: int) -> bool:
        return self._executing[user] < self._user_limit and (
            self._executing.total() < self._non_root_limit
        )

    def _take_of(self, user: int) -> W:
        by_target = self._by_user[user]
        target = next(iter(by_target))
        items = by_target.pop(target)
        item = items.popleft()
        if items:
            by_target[target] = items
        elif not by_target:
            del self._by_user[user]
            # It was the first, and is the last by now.
            self._order.pop()
        item.executing = True
        if user != ROOT:
            self._executing[user] += 1
        return item
