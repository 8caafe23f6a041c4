"""Open directories, and who pays for their names."""

import errno
from typing import cast

import pytest

from netnsfs.fuse import listings as module
from netnsfs.fuse.listings import Listing, Listings
from netnsfs.fuse.nodes import NodeEntry
from netnsfs.fuse.quotas import ROOT, Quota
from netnsfs.node import Caller, Directory

NAMES = [b"%d" % number for number in range(10)]
# With "." and "..".
COST = 64 * (len(NAMES) + 2)


@pytest.fixture
def texts() -> Quota:
    return Quota(errno.EMFILE, per_user=2 * COST, total=10 * COST)


@pytest.fixture
def listings(texts: Quota) -> Listings:
    return Listings(texts)


class Some(Directory):
    key = "some"


def opened(listings: Listings, fh: int, user: int) -> Listing:
    listing = Listing(cast(NodeEntry, None), Some(), cast(Caller, None), user)
    listings.add(fh, listing)
    return listing


def test_who_lists_the_same_shares_one_list(listings: Listings) -> None:
    several = [opened(listings, fh, 1) for fh in range(100)]
    for listing in several:
        assert listing.names == []
        listings.fill(listing, [*NAMES])
    assert several[0].names == [b".", b"..", *NAMES]
    assert len({id(listing.names) for listing in several}) == 1
    for fh in range(100):
        listings.remove(fh)


def test_each_user_pays_once_for_each_list(listings: Listings, texts: Quota) -> None:
    several = [opened(listings, fh, user) for fh, user in enumerate([1, 1, 2, ROOT, ROOT])]
    for listing in several:
        listings.fill(listing, NAMES)
    texts.charge(1, COST)
    for listing in several[2:]:
        listings.fill(listing, NAMES[1:])
    # The old list is kept by the first user only, who has no room for another one.
    with pytest.raises(OSError, match="Too many open files"):
        listings.fill(several[0], NAMES[1:])
    assert several[0].names[2:] == NAMES
    texts.uncharge(1, COST)
    for fh in range(5):
        listings.remove(fh)
    for user in (1, 2):
        texts.charge(user, 2 * COST)


def test_a_user_has_so_many(listings: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTINGS_PER_USER", 2)
    listings = Listings(Quota(errno.EMFILE, 0, 0))
    for fh in range(2):
        opened(listings, fh, 1)
    with pytest.raises(OSError, match="Too many open files"):
        opened(listings, 2, 1)
    opened(listings, 2, ROOT)
    listings.remove(0)
    opened(listings, 0, 1)
