"""What the replayer is answered, without a mount."""

import socket
from contextlib import closing

import pytest
from conftest import error_of

from netnsfs.fuse.replay import ReportedNames
from netnsfs.node import Directory


class Namespace(Directory):
    def __init__(self, subject: int) -> None:
        self.key = self.represents = subject


FIRST, SECOND = Namespace(1), Namespace(2)


@pytest.fixture
def reported() -> ReportedNames:
    found = ReportedNames([b"old"])
    found.note_created(b"blue", 1)
    return found


def test_a_name_that_was_reported_and_exists_is_found(reported: ReportedNames) -> None:
    assert reported.find(b"blue", FIRST) is FIRST
    assert error_of(reported.require_unreported, b"blue") == "EEXIST"
    assert error_of(reported.require_deleted, b"blue") == "EBUSY"


@pytest.mark.parametrize("found", [None, SECOND])
def test_one_that_has_gone_or_is_another_can_be_removed(
    reported: ReportedNames, found: Directory | None
) -> None:
    gone = reported.find(b"blue", found)
    # The kernel lets nobody into a removed directory again.
    assert gone.key not in {FIRST.key, SECOND.key, reported.find(b"blue", found).key}
    assert error_of(reported.require_deleted, b"blue") == ""
    assert error_of(reported.require_deleted, b"old") == "EBUSY"
    reported.note_deleted(b"blue")
    assert error_of(reported.find, b"blue", SECOND) == "ENOENT"


def test_what_was_not_reported_is_absent_and_can_be_made(reported: ReportedNames) -> None:
    assert error_of(reported.find, b"red", FIRST) == "ENOENT"
    assert error_of(reported.require_unreported, b"red") == ""
    reported.note_created(b"red", 1)
    assert reported.find(b"red", FIRST) is FIRST


def test_of_what_existed_before_it_is_not_known_what_it_was(reported: ReportedNames) -> None:
    assert reported.find(b"old", FIRST) is FIRST
    assert reported.find(b"old", None) is not FIRST


def test_only_the_replayer_finds_the_password(reported: ReportedNames) -> None:
    process = 1234
    assert reported.replayer != 0
    reported.admit_replayer(process)
    assert reported.replayer == process
    assert reported.find(reported.password, None)
    reported.dismiss_replayer()
    # Callers outside of the PID namespace have the process ID 0.
    assert reported.replayer not in (0, process)


def test_what_is_reported_is_sent(reported: ReportedNames) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        assert sorted(reported.send_to(ours)) == [b"blue", b"old"]
        reported.note_created(b"red", 1)
        assert reported.note_deleted(b"red") == 1
        assert [theirs.recv(256), theirs.recv(256)] == [b"+red", b"-red"]
        reported.send_to(None)
        reported.note_created(b"green", 1)
        assert error_of(theirs.recv, 256, socket.MSG_DONTWAIT) == "EAGAIN"


def test_a_replayer_that_does_not_listen_is_given_up(reported: ReportedNames) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        reported.send_to(ours)
        for _ in range(10_000):
            reported.note_created(b"x" * 255, 1)
        assert len(list(iter(lambda: theirs.recv(256), b""))) < 10_000
