"""A rate limit for each user, in seconds of work."""

import time
from contextlib import suppress

import pytest

from netnsfs.tree.token_bucket import TokenBucket

ALICE, BOB = 1001, 1002


def spend(allowance: TokenBucket, user: int, seconds: float) -> None:
    with allowance.charge(user):
        time.sleep(seconds)


def test_who_has_taken_all_is_refused() -> None:
    allowance = TokenBucket(0.05, 0.0001)
    spend(allowance, ALICE, 0.03)
    spend(allowance, ALICE, 0.03)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            spend(allowance, ALICE, 0)
    spend(allowance, BOB, 0)


def test_what_fails_counts_as_well() -> None:
    allowance = TokenBucket(0.01, 0.0001)
    with suppress(KeyError), allowance.charge(ALICE):
        time.sleep(0.02)
        raise KeyError
    with pytest.raises(BlockingIOError):
        spend(allowance, ALICE, 0)


def test_it_comes_back() -> None:
    allowance = TokenBucket(0.01, 1)
    spend(allowance, ALICE, 0.02)
    time.sleep(0.05)
    spend(allowance, ALICE, 0)
