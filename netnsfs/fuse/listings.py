"""Open directories, and the names that they show.

An open directory shows the names as they were when it was last read from the start. A
thousand that show the same have one list between them, which each user pays for once.
"""

import errno
from collections import Counter
from collections.abc import Hashable
from weakref import WeakValueDictionary

from netnsfs.fuse.nodes import NodeEntry
from netnsfs.fuse.quotas import ROOT, Quota
from netnsfs.limits import LISTINGS_PER_USER, LISTINGS_TOTAL
from netnsfs.node import Caller, Directory

_DOTS = [b".", b".."]
# What CPython needs for a short name and its place in a list.
_NAME_BYTES = 64


class SharedListing:
    __slots__ = ("__weakref__", "cost", "names", "users")

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.cost = _NAME_BYTES * len(names)
        self.users: Counter[int] = Counter()


class Listing:
    """An open directory.

    Attributes:
        known: the directory's node.
        directory: what it lists.
        caller: for whom.
        user: who has opened it, and pays for it.
    """

    __slots__ = ("_shown", "caller", "directory", "known", "user")

    def __init__(
        self, known: NodeEntry, directory: Directory, caller: Caller, user: int
    ) -> None:
        self.known = known
        self.directory = directory
        self.caller = caller
        self.user = user
        self._shown: SharedListing | None = None

    @property
    def names(self) -> list[bytes]:
        """All names, with "." and ".." first; none before it was read from the start."""
        return self._shown.names if self._shown else []


class Listings:
    """All open directories.

    Args:
        texts: how many bytes each user makes the daemon keep.
    """

    def __init__(self, texts: Quota) -> None:
        self._texts = texts
        self._opened = Quota(errno.EMFILE, LISTINGS_PER_USER, LISTINGS_TOTAL)
        self._last: WeakValueDictionary[Hashable, SharedListing] = WeakValueDictionary()
        self._by_number: dict[int, Listing] = {}

    def __getitem__(self, fh: int) -> Listing:
        return self._by_number[fh]

    def add(self, fh: int, listing: Listing) -> None:
        """Keep a directory that was opened.

        Raises:
            OSError: EMFILE if its user has too many.
        """
        self._opened.charge(listing.user)
        self._by_number[fh] = listing

    def remove(self, fh: int) -> None:
        """Forget one that was closed."""
        listing = self._by_number.pop(fh)
        self._opened.uncharge(listing.user)
        self._show(listing, None)

    def fill(self, listing: Listing, names: list[bytes]) -> None:
        """Let an open directory show other names from now on.

        Raises:
            OSError: EMFILE if its user keeps too many.
        """
        key = listing.directory.key
        last = self._last.get(key)
        if last is None or last.names[2:] != names:
            last = SharedListing(_DOTS + names)
        self._show(listing, last)
        self._last[key] = last

    def _show(self, listing: Listing, shown: SharedListing | None) -> None:
        user, before = listing.user, listing._shown
        if shown and user != ROOT and not shown.users[user]:
            self._texts.charge(user, shown.cost)
        listing._shown = shown
        if user == ROOT:
            return
        if shown:
            shown.users[user] += 1
        if before:
            before.users[user] -= 1
            if not before.users[user]:
                del before.users[user]
                self._texts.uncharge(user, before.cost)
