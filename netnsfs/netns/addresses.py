"""Addresses of an interface: asked for and changed by rtnetlink(7).

Addresses are changed by index, which may be another interface's a moment later. So the name is
looked up before and after; if it is another's by then, the change is taken back.
"""

import errno
import re
import socket
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from netnsfs.jobs import commit
from netnsfs.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, RouteSocket, attribute, attributes
from netnsfs.linux.rtnetlink import (
    ADDRESS_BITS,
    IFA_ADDRESS,
    IFA_F_DADFAILED,
    IFA_F_OPTIMISTIC,
    IFA_F_TENTATIVE,
    IFA_LOCAL,
    IFADDRMSG,
    RT_SCOPE_HOST,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
)
from netnsfs.netns.interfaces import require_same, rtnetlink

_OF_ADDRESS = frozenset({IFA_ADDRESS, IFA_LOCAL})
_SIGNS = (b"+", b"-")
_TENTATIVE, _DADFAILED = _STATES = (b"tentative", b"dadfailed")
_PREFIX_OF_WORD = re.compile(rb"[+-]([0-9A-Fa-f:.]*)(?:/([0-9]{0,3}))?")
_EXPECTED = "expected +ADDRESS/LENGTH or -ADDRESS/LENGTH, several with blanks between"


class Address(NamedTuple):
    """An address of an interface.

    Attributes:
        family: AF_INET or AF_INET6.
        packed: the address, as on the wire.
        length: of the prefix, in bits.
        ifindex: of the interface.
        message: as the kernel tells it, which makes the same address again; empty for one that
            is not there yet.
        flags: IFA_F_*, see linux/if_addr.h.
    """

    family: int
    packed: bytes
    length: int
    ifindex: int = 0
    message: bytes = b""
    flags: int = 0

    @property
    def text(self) -> bytes:
        """ADDRESS/LENGTH."""
        return f"{socket.inet_ntop(self.family, self.packed)}/{self.length}".encode()

    @property
    def state(self) -> bytes:
        """Why nobody can bind to it: a word of ip-address(8); nothing if that is possible.

        An address of IPv6 is tentative until no other host has answered for it (duplicate
        address detection, RFC 4862).
        """
        if self.flags & IFA_F_DADFAILED:
            return _DADFAILED
        if self.flags & (IFA_F_TENTATIVE | IFA_F_OPTIMISTIC) == IFA_F_TENTATIVE:
            return _TENTATIVE
        return b""

    @property
    def line(self) -> bytes:
        """ADDRESS/LENGTH, and its state if there is something to say."""
        return b" ".join([self.text, self.state]).rstrip()

    @property
    def network(self) -> tuple[int, int, int]:
        """Equal for two addresses of one network."""
        bits = 8 * len(self.packed) - self.length
        return self.family, self.length, int.from_bytes(self.packed) >> bits


def list_addresses(route: RouteSocket, index: int = 0) -> list[Address]:
    """The addresses of an interface, or of all, as ip-address(8) shows them.

    Raises:
        OSError: ENODEV if there is no such interface.
    """
    question = IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, index)
    found = route.dump(RTM_GETADDR, question, _address)
    return [address for address in found if address.family in ADDRESS_BITS]


def _address(body: bytes) -> Address:
    family, length, flags, _, index = IFADDRMSG.unpack_from(body)
    parsed = attributes(body, IFADDRMSG.size, _OF_ADDRESS)
    # Of a point-to-point connection, IFA_ADDRESS is the other end.
    packed = parsed.get(IFA_LOCAL) or parsed.get(IFA_ADDRESS, b"")
    return Address(family, packed, length, index, body, flags)


def change_addresses(fd: int, name: bytes, index: int, command: bytes) -> None:
    """Add and remove addresses of an interface: all that is said, or nothing.

    What the kernel is known to refuse is refused before anything is changed. Additions, which
    are more likely to fail, come before removals, which cannot be undone completely: a removal
    takes routes along.

    Args:
        fd: a descriptor of the namespace.
        name: of the interface.
        index: of the interface.
        command: +ADDRESS/LENGTH or -ADDRESS/LENGTH, several with blanks between. A state
            behind one, as it is shown, means nothing.

    Raises:
        OSError: EINVAL for what is no such command, EEXIST or EADDRNOTAVAIL for an address
            that is there or not there, ENODEV if the interface of that index has not that
            name any more, else the kernel's answer.
    """
    words = command.split()
    wanted = [
        _asked(word)
        for before, word in pairwise([b"", *words])
        if before[:1] not in _SIGNS or word not in _STATES
    ]
    if not wanted:
        raise OSError(errno.EINVAL, _EXPECTED)
    with rtnetlink(fd) as route:
        require_same(route, name, index)
        before = list_addresses(route, index)
        todo = _ordered(*_outcome(before, wanted))
        commit()
        done: list[tuple[bool, Address]] = []
        try:
            for adds, address in todo:
                _put(route, index, adds, address)
                done.append((adds, address))
            require_same(route, name, index)
        except OSError:
            # By index, so that the right interface is meant even if its name is another's by
            # now.
            _take_back(route, index, done)
            with suppress(OSError):
                require_same(route, name, index)
                _complete(route, index, before)
            raise


def _asked(word: bytes) -> tuple[bool, Address]:
    """Whether a word of a command adds or removes, and what."""
    text, _, length = word[1:].partition(b"/")
    family = socket.AF_INET6 if b":" in text else socket.AF_INET
    most = ADDRESS_BITS[family]
    try:
        packed = socket.inet_pton(family, text.decode("ascii"))
    except (OSError, ValueError):
        packed = b""
    digits = length.isdigit() and len(length) <= 3
    if word[:1] not in _SIGNS or not packed or not digits or int(length) > most:
        shown = word.decode("ascii", "backslashreplace")
        raise OSError(errno.EINVAL, f"{_EXPECTED}, not {shown[:60]}")
    return word[:1] == b"+", Address(family, packed, int(length))


def is_unfinished(text: bytes) -> bool:
    """Whether more can follow what was written to `addresses`."""
    words = text.split()
    if len(words) > 1 and any(state.startswith(words[-1]) for state in _STATES):
        return words[-1] not in _STATES
    found = _PREFIX_OF_WORD.fullmatch(words[-1]) if words else None
    if found is None:
        return not words
    address, length = found.groups()
    most = ADDRESS_BITS[socket.AF_INET6 if b":" in address else socket.AF_INET]
    return not length or (len(length) < 3 and int(length) * 10 <= most)


def _outcome(
    before: list[Address], wanted: list[tuple[bool, Address]]
) -> tuple[list[Address], list[Address]]:
    """What is to be added and what removed in the end."""
    # Backwards, so that of two addresses with one text (and two peers) the first is meant.
    there = {address.text: address for address in reversed(before)}
    after = dict(there)
    for adds, address in wanted:
        text = address.text
        if adds == (text in after):
            code = errno.EEXIST if adds else errno.EADDRNOTAVAIL
            what = "there already" if adds else "not there"
            raise OSError(code, f"{text.decode()} is {what}")
        if adds:
            after[text] = there.get(text, address)
        else:
            del after[text]
    added = [address for text, address in after.items() if text not in there]
    removed = [address for text, address in there.items() if text not in after]
    return added, removed


def _ordered(added: list[Address], removed: list[Address]) -> list[tuple[bool, Address]]:
    """Additions first, but in the network of a removed address.

    There, a second address is a secondary one, which the kernel removes along with the first
    (net/ipv4/devinet.c, unless promote_secondaries is set).
    """
    leaving = {address.network for address in removed}
    early = [(True, address) for address in added if address.network not in leaving]
    late = [(True, address) for address in added if address.network in leaving]
    return early + [(False, address) for address in removed] + late


def _put(route: RouteSocket, index: int, adds: bool, address: Address) -> None:
    kind = RTM_NEWADDR if adds else RTM_DELADDR
    message = address.message or _new_address(index, address)
    route.change(kind, message, NLM_F_CREATE | NLM_F_EXCL if adds else 0)


def _new_address(index: int, address: Address) -> bytes:
    # As ip-address(8) does: 127.0.0.0/8 is for this host alone.
    loopback = address.family == socket.AF_INET and address.packed[0] == 127
    scope = RT_SCOPE_HOST if loopback else 0
    header = IFADDRMSG.pack(address.family, address.length, 0, scope, index)
    value = address.packed
    return header + attribute(IFA_LOCAL, value) + attribute(IFA_ADDRESS, value)


def _take_back(route: RouteSocket, index: int, done: list[tuple[bool, Address]]) -> None:
    for adds, address in reversed(done):
        with suppress(OSError):
            _put(route, index, not adds, address)


def _complete(route: RouteSocket, index: int, before: list[Address]) -> None:
    """Add what is missing of what was there, in the same order.

    Along with the first address of a network, the kernel removes the secondary ones, or makes
    the next of them the first (promote_secondaries). That one makes room again.
    """
    there, firsts = list_addresses(route, index), _firsts(before)
    promoted = {
        network for network, text in _firsts(there).items() if firsts.get(network, text) != text
    }
    known = {address.text for address in before}
    # Backwards: the first comes last, when there is nothing left to promote.
    for address in reversed(there):
        if address.network in promoted and address.text in known:
            with suppress(OSError):
                _put(route, index, False, address)
    left = {address.text for address in list_addresses(route, index)}
    for address in before:
        if address.text not in left:
            with suppress(OSError):
                _put(route, index, True, address)


def _firsts(found: list[Address]) -> dict[tuple[int, int, int], bytes]:
    """The first address of each network of IPv4: the others are secondary ones."""
    return {
        address.network: address.text
        for address in reversed(found)
        if address.family == socket.AF_INET
    }
