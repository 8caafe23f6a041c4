"""What the replayer is answered, without a mount."""

import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from threading import Event

import pytest
from conftest import error_of

from netnsfs.fuse.replay import MAX_UNSENT, ReportedNames
from netnsfs.fuse.replayer_child import MAX_MESSAGE
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


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        yield ours, theirs


Channel = tuple[socket.socket, socket.socket]


def received(channel: socket.socket) -> list[bytes]:
    """The reports in the messages that are there."""
    found: list[bytes] = []
    with suppress(BlockingIOError):
        while message := channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT):
            found += message.split(b"\0")[:-1]
    return found


def test_what_is_reported_is_sent(reported: ReportedNames, channel: Channel) -> None:
    ours, theirs = channel
    full = Event()
    assert sorted(reported.start_sending(ours, full.set)) == [b"blue", b"old"]
    reported.note_created(b"red", 1)
    assert reported.note_deleted(b"red") == 1
    assert received(theirs) == [b"+red", b"-red"]
    reported.stop_sending()
    reported.note_created(b"green", 1)
    assert received(theirs) == []
    assert not full.is_set()


def test_what_cannot_be_sent_is_sent_later(reported: ReportedNames, channel: Channel) -> None:
    ours, theirs = channel
    full = Event()
    reported.start_sending(ours, full.set)
    names = [b"%0255d" % number for number in range(5000)]
    for name in names:
        reported.note_created(name, 1)
    assert full.is_set()
    assert not reported.send_unsent()
    # Of each name, only the last report is still to be sent.
    reported.note_deleted(names[-1])
    reported.note_deleted(names[-2])
    reported.note_created(names[-2], 2)
    first = received(theirs)
    assert first == [b"+" + name for name in names[: len(first)]]
    rest: list[bytes] = []
    while not reported.send_unsent():
        rest += received(theirs)
    rest += received(theirs)
    assert first + rest == [b"+" + name for name in names[:-1]] + [b"-" + names[-1]]
    reported.note_created(b"red", 1)
    assert received(theirs) == [b"+red"]


def test_a_replayer_that_reads_nothing_is_given_up(
    reported: ReportedNames, channel: Channel
) -> None:
    ours, theirs = channel
    reported.start_sending(ours, bool)
    for number in range(MAX_UNSENT + 10_000):
        reported.note_created(b"%0255d" % number, 1)
    assert len(received(theirs)) < MAX_UNSENT
    assert theirs.recv(MAX_MESSAGE) == b""
    assert reported.send_unsent()


def test_what_a_replayer_that_has_ended_would_be_sent(
    reported: ReportedNames, channel: Channel
) -> None:
    ours, theirs = channel
    reported.start_sending(ours, bool)
    theirs.close()
    reported.note_created(b"red", 1)
    assert reported.send_unsent()
