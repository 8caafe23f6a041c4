"""Limits for each user of what all users share, so that no user takes all of it.

Each user has a limit, and all but root have one together, because one person may have many user
IDs (newuidmap(1)). Root has no limit: what the others may not take is left for root.
"""

import os
from collections import defaultdict

ROOT = 0


class Share:
    """Something that is limited, and how much of it each user has.

    Args:
        code: the errno for a user who wants more.
        each: how much one user may have.
        together: how much all users but root may have.
    """

    def __init__(self, code: int, each: int, together: int) -> None:
        self._code = code
        self._each = each
        self._together = together
        self._taken: defaultdict[int, int] = defaultdict(int)
        self._all = 0

    def take(self, user: int, amount: int = 1) -> None:
        """Let a user have more.

        Raises:
            OSError: that would be too much.
        """
        if user == ROOT:
            return
        had = self._taken.get(user, 0)
        if had + amount > self._each or self._all + amount > self._together:
            raise OSError(self._code, os.strerror(self._code))
        self._change(user, amount)

    def give_back(self, user: int, amount: int = 1) -> None:
        """Let a user have less."""
        if user != ROOT:
            self._change(user, -amount)

    def correct(self, user: int, before: int, now: int) -> None:
        """Count more or less for a user than before, whatever the limit is."""
        if user != ROOT:
            self._change(user, now - before)

    def _change(self, user: int, amount: int) -> None:
        self._all += amount
        self._taken[user] += amount
        if not self._taken[user]:
            del self._taken[user]
