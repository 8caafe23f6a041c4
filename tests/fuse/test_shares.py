"""What each user has of what there is for all."""

import errno

import pytest
from conftest import error_of

from netnsfs.fuse.shares import ROOT, Share


@pytest.fixture
def share() -> Share:
    return Share(errno.EMFILE, each=3, together=5)


def taken(share: Share, user: int) -> int:
    """How much a user can still take, and takes."""
    taken = 0
    while not error_of(share.take, user):
        taken += 1
    assert error_of(share.take, user) == "EMFILE"
    return taken


def test_each_has_a_limit_and_all_have_one(share: Share) -> None:
    assert [taken(share, user) for user in (1, 2, 3)] == [3, 2, 0]


def test_what_is_given_back_can_be_taken(share: Share) -> None:
    share.take(1, 3)
    share.give_back(1, 2)
    assert taken(share, 1) == 2
    share.give_back(1, 3)
    assert taken(share, 2) == 3


def test_root_has_no_limit_and_takes_nothing_from_others(share: Share) -> None:
    share.take(ROOT, 1000)
    share.correct(ROOT, 0, 1000)
    assert taken(share, 1) == 3
    share.give_back(ROOT, 1000)
    assert taken(share, 2) == 2


def test_what_turned_out_to_be_more_is_never_refused(share: Share) -> None:
    share.take(1, 2)
    share.correct(1, 2, 9)
    assert taken(share, 1) == 0
    share.give_back(1, 9)
    assert taken(share, 1) == 3
