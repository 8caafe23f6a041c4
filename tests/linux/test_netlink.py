"""Messages of rtnetlink, to the kernel and back."""

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest
from conftest import apart, error_of
from hypothesis import given
from hypothesis import strategies as st

from netnsfs import linux
from netnsfs.linux import netlink
from netnsfs.linux.netlink import Message, RouteSocket, attribute, attributes

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
IFLA_IFNAME = 3
LINK = struct.Struct("=BxHiII")
ANY = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


@pytest.fixture
def routes() -> Iterator[tuple[RouteSocket, RouteSocket]]:
    """Two sockets in a namespace of their own; the second hears of interfaces."""

    def make() -> tuple[RouteSocket, RouteSocket]:
        linux.unshare(linux.CLONE_NEWNET)
        subprocess.run(["ip", "link", "add", "v0", "type", "veth", "peer", "v1"], check=True)
        return RouteSocket(), RouteSocket(groups=1)

    first, second = apart(make)
    with first, second:
        yield first, second


def name_in(body: bytes) -> bytes:
    return attributes(body, LINK.size)[IFLA_IFNAME].rstrip(b"\0")


def named(name: bytes) -> bytes:
    return attribute(IFLA_IFNAME, name + b"\0")


def test_attributes_are_padded_and_read_back() -> None:
    values = {kind: os.urandom(kind) for kind in range(10)}
    packed = b"".join(attribute(kind, value) for kind, value in values.items())
    assert len(packed) % 4 == 0
    assert attributes(packed) == values
    assert attributes(b"head" + packed, 4) == values
    # NLA_F_NESTED is no part of the number.
    assert attributes(attribute(0x8000 | 7, b"x")) == {7: b"x"}


@pytest.mark.parametrize("broken", [b"", b"\0", b"\0\0\0\0", b"\xff\xff\0\0", b"\3\0\1\0" * 3])
def test_broken_attributes_end(broken: bytes) -> None:
    attributes(broken)


# Few kinds and short values, so that many are of one length and not of one layout.
ATTRIBUTES = st.lists(
    st.tuples(st.sampled_from([1, 2, 0x8003]), st.binary(max_size=9)), max_size=4
)


@given(st.lists(ATTRIBUTES, max_size=9), st.binary(max_size=3), st.integers(0, 8))
def test_messages_of_one_length_are_told_apart(
    messages: list[list[tuple[int, bytes]]], rest: bytes, start: int
) -> None:
    # The second time, their layouts are known.
    for told in messages * 2:
        body = bytes(start) + b"".join(attribute(*each) for each in told) + rest
        values = {kind & 0xFF: value for kind, value in told}
        assert attributes(body, start) == values
        wanted = {kind: value for kind, value in values.items() if kind != 2}
        assert attributes(body, start, frozenset({1, 3})) == wanted


def test_a_question_has_an_answer(routes: tuple[RouteSocket, RouteSocket]) -> None:
    route, _ = routes
    assert name_in(route.ask(RTM_GETLINK, ANY + named(b"lo"))) == b"lo"
    assert error_of(route.ask, RTM_GETLINK, ANY + named(b"gone")) == "ENODEV"
    # What was refused leaves nothing behind that the next answer could be taken for.
    assert name_in(route.ask(RTM_GETLINK, ANY + named(b"v1"))) == b"v1"


def test_a_dump_tells_all(routes: tuple[RouteSocket, RouteSocket]) -> None:
    route, _ = routes
    assert sorted(route.dump(RTM_GETLINK, ANY, name_in)) == [b"lo", b"v0", b"v1"]


def test_a_request_without_an_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_ANSWER_SECONDS", 1)
    with RouteSocket() as route:
        assert error_of(route.dump, RTM_GETLINK, b"", name_in) == "EAGAIN"


def test_a_refusal_is_in_the_kernels_words(routes: tuple[RouteSocket, RouteSocket]) -> None:
    route, _ = routes
    unfit = LINK.pack(socket.AF_UNSPEC, 1, 0, 0, 0)
    with pytest.raises(OSError, match=r"[Ii]nvalid.*header") as told:
        route.ask(RTM_GETLINK, unfit)
    assert told.value.errno == errno.EINVAL


def test_a_change_hears_what_it_does(routes: tuple[RouteSocket, RouteSocket]) -> None:
    _, hearing = routes
    heard: list[Message] = []
    up = LINK.pack(socket.AF_UNSPEC, 0, 0, 1, 1)
    hearing.change(RTM_SETLINK, up + named(b"v0"), heard=heard)
    assert [name_in(message.body) for message in heard if message.kind == RTM_NEWLINK] == [
        b"v0"
    ]
    heard.clear()
    hearing.change(RTM_DELLINK, ANY + named(b"v0"), heard=heard)
    gone = {name_in(message.body) for message in heard if message.kind == RTM_DELLINK}
    assert gone == {b"v0", b"v1"}
    assert error_of(hearing.change, RTM_DELLINK, ANY + named(b"v0")) == "ENODEV"
