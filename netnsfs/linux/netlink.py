"""rtnetlink(7): requests to the kernel about interfaces and addresses, and its answers.

Why not pyroute2: importing any module of it runs the package's own `__init__`, which imports
230 modules (0.1 s of processor time, 11 MiB), and its codecs need 160 to 190 microseconds for
one interface, so that 10,000 interfaces take 1.8 s. What is needed here is two structures and
one loop. Constants are those of linux/netlink.h and linux/rtnetlink.h.
"""

import errno
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, Self, TypeVar

T = TypeVar("T")

NLM_F_CREATE = 0x400
NLM_F_EXCL = 0x200
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4
_NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
# Kind and byte order flags of an attribute are not part of its number.
_NLA_TYPE_MASK = 0x3FFF
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
# struct nlmsghdr: length, type, flags, sequence number, port.
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# What tells of interfaces has a few dozen layouts; who makes more gets them without a shortcut.
_MAX_LAYOUTS = 256
_TIMEVAL = struct.Struct("@ll")
_ANSWER_SECONDS = 5
_SO_RCVBUFFORCE = 33
_HEARING_BUFFER = 1 << 22
_LARGEST_DATAGRAM = 1 << 17
# How often a dump is made anew because something has changed meanwhile.
_MAX_DUMPS = 20


class Message(NamedTuple):
    """A message of the kernel, without its header."""

    kind: int
    flags: int
    sequence: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute of a message, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


class _Layout(NamedTuple):
    """Where the attributes of a message are.

    Attributes:
        headers: unpacks the headers of all of them.
        expected: what it makes of a message that has this layout.
        places: the number of each that is wanted, and where its value is.
    """

    headers: struct.Struct
    expected: tuple[int, ...]
    places: list[tuple[int, slice]]


def attributes(
    body: bytes, start: int = 0, wanted: frozenset[int] | None = None
) -> dict[int, bytes]:
    """The attributes of a message, or of an attribute.

    An interface has forty, and to go from one to the next takes 15 microseconds. But most
    interfaces have the same at the same places. So all headers are compared at once with those
    of the first message of that length, which takes one.

    Args:
        body: of the message.
        start: where they begin.
        wanted: their numbers; None for all.
    """
    key = len(body), start, wanted
    layout = _layouts.get(key)
    if layout and layout.headers.unpack_from(body, start) == layout.expected:
        places = layout.places
    else:
        starts, places = _walk(body, start, wanted)
        if layout is None and len(_layouts) < _MAX_LAYOUTS:
            gaps = zip(starts, [*starts[1:], len(body)], strict=False)
            form = "".join(f"HH{end - at - _ATTRIBUTE.size}x" for at, end in gaps)
            headers = struct.Struct("=" + form)
            _layouts[key] = _Layout(headers, headers.unpack_from(body, start), places)
    return {kind: body[place] for kind, place in places}


_layouts: dict[tuple[int, int, frozenset[int] | None], _Layout] = {}


def _walk(
    body: bytes, start: int, wanted: frozenset[int] | None
) -> tuple[list[int], list[tuple[int, slice]]]:
    """Where all attributes begin, and the places of a layout."""
    starts, places, end = [], [], len(body) - _ATTRIBUTE.size
    while start <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        kind &= _NLA_TYPE_MASK
        starts.append(start)
        if wanted is None or kind in wanted:
            places.append((kind, slice(start + _ATTRIBUTE.size, start + length)))
        # A length of 0 would never end. Attributes start at multiples of 4.
        start += length + 3 & ~3 or 4
    return starts, places


class RouteSocket:
    """A socket of rtnetlink, in the network namespace of the thread that opens it.

    It keeps that namespace alive: use it as a context manager, and for one operation.

    Args:
        groups: bit mask of the groups whose notifications it receives.

    Attributes:
        until: when a dump must end (time.monotonic).
    """

    def __init__(self, groups: int = 0) -> None:
        self.until = math.inf
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            # The kernel's answer does not repeat the request, but says in words what is wrong.
            # A dump heeds what is asked for, such as one interface, instead of giving all there
            # is.
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            # The kernel does not answer a request that is too short: the limit ends the wait.
            timeout = _TIMEVAL.pack(_ANSWER_SECONDS, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            if groups:
                # If notifications overflow the buffer, the kernel's answer is lost too
                # (ENOBUFS). Where the right to a larger one is missing, this one must do.
                with suppress(PermissionError):
                    self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _HEARING_BUFFER)
                self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def ask(self, kind: int, body: bytes) -> bytes:
        """One question with one answer.

        Returns:
            The answer's body.

        Raises:
            OSError: the kernel's answer.
        """
        self._send(kind, 0, body)
        return next(self._answers()).body

    def change(
        self, kind: int, body: bytes, flags: int = 0, heard: list[Message] | None = None
    ) -> None:
        """Change something.

        Args:
            kind: of the request.
            body: of the request.
            flags: more than NLM_F_REQUEST and NLM_F_ACK.
            heard: takes the notifications that come before the kernel's answer.

        Raises:
            OSError: the kernel's answer.
        """
        self._send(kind, flags | _NLM_F_ACK, body)
        for message in self._answers(heard):
            # On some kernels, what tells of a deletion bears the number of its request.
            if heard is not None:
                heard.append(message)

    def dump(self, kind: int, body: bytes, take: Callable[[bytes], T]) -> list[T]:
        """All there is of something, as it was at one moment.

        Args:
            kind: of the request.
            body: of the request.
            take: makes of a message's body what is wanted.

        Raises:
            OSError: the kernel's answer; EAGAIN if it keeps changing; ETIMEDOUT if it takes
                longer than `until`.
        """
        for _ in range(_MAX_DUMPS):
            self._send(kind, _NLM_F_DUMP, body)
            interrupted, found = 0, []
            for message in self._answers():
                # The kernel sets it if what it lists has changed between two datagrams.
                interrupted |= message.flags & _NLM_F_DUMP_INTR
                if time.monotonic() > self.until:
                    raise TimeoutError(errno.ETIMEDOUT, "there is too much to list")
                if message.kind != _NLMSG_DONE:
                    found.append(take(message.body))
            if not interrupted:
                return found
        raise OSError(errno.EAGAIN, "it changes while it is read")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)

    def _answers(self, heard: list[Message] | None = None) -> Iterator[Message]:
        """What the kernel answers to the last request."""
        while True:
            for message in _messages(self._socket.recv(_LARGEST_DATAGRAM)):
                # A notification, or what is left of an answer that was not read to its end.
                if message.sequence != self._sequence:
                    if heard is not None:
                        heard.append(message)
                    continue
                if message.kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise(message)
                    yield from [message] if message.kind == _NLMSG_DONE else []
                    return
                yield message


def _messages(datagram: bytes) -> Iterator[Message]:
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, at)
        yield Message(kind, flags, sequence, datagram[at + _HEADER.size : at + length])
        at += length + 3 & ~3 or _HEADER.size


def _raise(message: Message) -> None:
    """Raise the error that an answer ends with, in the kernel's own words if it has any."""
    code = -int.from_bytes(message.body[:4], sys.byteorder, signed=True)
    if not code:
        return
    text = b""
    if message.flags & _NLM_F_ACK_TLVS:
        # Before the words comes the number, and then, unless a dump ends, the request's header.
        start = 4 + (_HEADER.size if message.kind == _NLMSG_ERROR else 0)
        parsed = attributes(message.body, start)
        text = parsed.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0")
    raise OSError(code, text.decode(errors="replace") or os.strerror(code))
