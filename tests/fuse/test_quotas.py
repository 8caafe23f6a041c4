"""What each user has of what there is for all."""

import errno

import pytest
from conftest import error_of

from netnsfs.fuse.quotas import ROOT, Quota


@pytest.fixture
def quota() -> Quota:
    return Quota(errno.EMFILE, per_user=3, total=5)


def taken(quota: Quota, user: int) -> int:
    """How much a user can still take, and takes."""
    taken = 0
    while not error_of(quota.charge, user):
        taken += 1
    assert error_of(quota.charge, user) == "EMFILE"
    return taken


def test_each_has_a_limit_and_all_have_one(quota: Quota) -> None:
    assert [taken(quota, user) for user in (1, 2, 3)] == [3, 2, 0]


def test_what_is_given_back_can_be_taken(quota: Quota) -> None:
    quota.charge(1, 3)
    quota.uncharge(1, 2)
    assert taken(quota, 1) == 2
    quota.uncharge(1, 3)
    assert taken(quota, 2) == 3


def test_root_has_no_limit_and_takes_nothing_from_others(quota: Quota) -> None:
    quota.charge(ROOT, 1000)
    quota.recharge(ROOT, 0, 1000)
    assert taken(quota, 1) == 3
    quota.uncharge(ROOT, 1000)
    assert taken(quota, 2) == 2


def test_what_turned_out_to_be_more_is_never_refused(quota: Quota) -> None:
    quota.charge(1, 2)
    quota.recharge(1, 2, 9)
    assert taken(quota, 1) == 0
    quota.uncharge(1, 9)
    assert taken(quota, 1) == 3
