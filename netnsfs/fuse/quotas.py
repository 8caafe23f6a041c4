"""Quotas by user: how much of a resource every user may have.

Every user but root has a limit. All of them also share one, because one person may have many
user IDs (newuidmap(1)). Root has no limit: what the others may not have is left for root.
"""

import os
from collections import defaultdict

ROOT = 0


class Quota:
    """Something that is limited, and how much of it every user has.

    Args:
        code: the errno for a user who wants more.
        per_user: how much one user may have.
        total: how much all users but root may have.
    """

    def __init__(self, code: int, per_user: int, total: int) -> None:
        self._code = code
        self._per_user = per_user
        self._total = total
        self._taken: defaultdict[int, int] = defaultdict(int)
        self._all = 0

    def charge(self, user: int, amount: int = 1) -> None:
        """Let a user have more.

        Raises:
            OSError: that would be too much.
        """
        if user == ROOT:
            return
        had = self._taken.get(user, 0)
        if had + amount > self._per_user or self._all + amount > self._total:
            raise OSError(self._code, os.strerror(self._code))
        self._change(user, amount)

    def uncharge(self, user: int, amount: int = 1) -> None:
        """Let a user have less."""
        if user != ROOT:
            self._change(user, -amount)

    def recharge(self, user: int, before: int, now: int) -> None:
        """Count more or less for a user than before, whatever the limit is."""
        if user != ROOT:
            self._change(user, now - before)

    def _change(self, user: int, amount: int) -> None:
        self._all += amount
        self._taken[user] += amount
        if not self._taken[user]:
            del self._taken[user]
