"""What the teller is answered, without a mount."""

import socket
from contextlib import closing

import pytest
from conftest import error_of

from netnsfs.fuse.told import Told
from netnsfs.node import Directory


class Namespace(Directory):
    def __init__(self, subject: int) -> None:
        self.key = self.represents = subject


FIRST, SECOND = Namespace(1), Namespace(2)


@pytest.fixture
def told() -> Told:
    found = Told([b"old"])
    found.note_made(b"blue", 1)
    return found


def test_a_name_that_was_told_of_and_stands_is_found(told: Told) -> None:
    assert told.find(b"blue", FIRST) is FIRST
    assert error_of(told.refuse_told, b"blue") == "EEXIST"
    assert error_of(told.refuse_standing, b"blue") == "EBUSY"


@pytest.mark.parametrize("found", [None, SECOND])
def test_one_that_has_gone_or_is_another_can_be_removed(
    told: Told, found: Directory | None
) -> None:
    gone = told.find(b"blue", found)
    # The kernel lets nobody into a removed directory again.
    assert gone.key not in {FIRST.key, SECOND.key, told.find(b"blue", found).key}
    assert error_of(told.refuse_standing, b"blue") == ""
    assert error_of(told.refuse_standing, b"old") == "EBUSY"
    told.note_removed(b"blue")
    assert error_of(told.find, b"blue", SECOND) == "ENOENT"


def test_what_nobody_was_told_of_is_absent_and_can_be_made(told: Told) -> None:
    assert error_of(told.find, b"red", FIRST) == "ENOENT"
    assert error_of(told.refuse_told, b"red") == ""
    told.note_made(b"red", 1)
    assert told.find(b"red", FIRST) is FIRST


def test_of_what_stood_before_it_is_not_known_what_it_was(told: Told) -> None:
    assert told.find(b"old", FIRST) is FIRST
    assert told.find(b"old", None) is not FIRST


def test_only_the_teller_finds_the_password(told: Told) -> None:
    process = 1234
    assert told.teller != 0
    told.admit_teller(process)
    assert told.teller == process
    assert told.find(told.password, None)
    told.dismiss_teller()
    # Callers outside of the PID namespace have the process ID 0.
    assert told.teller not in (0, process)


def test_what_is_told_is_reported(told: Told) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        assert sorted(told.report_to(ours)) == [b"blue", b"old"]
        told.note_made(b"red", 1)
        assert told.note_removed(b"red") == 1
        assert [theirs.recv(256), theirs.recv(256)] == [b"+red", b"-red"]
        told.report_to(None)
        told.note_made(b"green", 1)
        assert error_of(theirs.recv, 256, socket.MSG_DONTWAIT) == "EAGAIN"


def test_a_teller_that_does_not_listen_is_given_up(told: Told) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        told.report_to(ours)
        for _ in range(10_000):
            told.note_made(b"x" * 255, 1)
        assert len(list(iter(lambda: theirs.recv(256), b""))) < 10_000
