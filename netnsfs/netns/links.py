"""Network interfaces of a namespace: seen, changed, moved and joined by rtnetlink(7).

Every function takes a descriptor of the namespace. Its socket is opened there, by a thread that
goes in for that moment, and closed with the operation, for it keeps the namespace alive.

Interfaces come, go, move and change their names at any moment, and an index or a name that is
free is another's next. Three rules keep a change from hitting an interface that was not meant:

1. What a request can say by name alone, it says by name: the kernel finds the interface and
   changes it under one lock.
2. Addresses are changed by index. The name is looked up before and after; if it is another's
   by then, the change is taken back.
3. A move that gives another name is by index too. The kernel tells under which name the
   interface has left; if that was not the one meant, it goes back.
"""

import errno
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import commit, may_block, on_own_thread, restoring_namespace
from netnsfs.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    RouteSocket,
    attribute,
    attributes,
)
from netnsfs.netns import tasks

NAME_MAX = 15
"""Longest name of an interface, in bytes: IFNAMSIZ with the closing NUL (linux/if.h)."""

# linux/rtnetlink.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTMGRP_LINK = 1
_RTEXT_FILTER_SKIP_STATS = 8
_RT_SCOPE_HOST = 254
# linux/if_link.h
_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_STATS64 = 23
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_IFLA_CARRIER = 33
_IFLA_LINK_NETNSID = 37
_IFLA_NEW_NETNSID = 45
_IFLA_TARGET_NETNSID = 46
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_OF_INTERFACE = frozenset(
    {
        _IFLA_ADDRESS,
        _IFLA_IFNAME,
        _IFLA_LINK,
        _IFLA_MASTER,
        _IFLA_LINKINFO,
        _IFLA_LINK_NETNSID,
    }
)
_OF_STATE = frozenset({_IFLA_IFNAME, _IFLA_STATS64, _IFLA_CARRIER})
_OF_INFORMATION = frozenset({_IFLA_INFO_KIND})
# linux/veth.h
_VETH_INFO_PEER = 1
# linux/if_addr.h
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_OF_ADDRESS = frozenset({_IFA_ADDRESS, _IFA_LOCAL})
# linux/if.h, linux/if_arp.h
_IFF_UP = 1
_ARPHRD_LOOPBACK = 772
# struct ifinfomsg: family, type, index, flags, change.
_LINK = struct.Struct("=BxHiII")
# struct ifaddrmsg: family, length of the prefix, flags, scope, index.
_ADDRESS = struct.Struct("=BBBBI")
# struct rtnl_link_stats64: packets, bytes, errors and drops, each received and sent, and what
# was missed.
_COUNTERS = struct.Struct("=8Q56xQ")
_NUMBER = struct.Struct("=i")
_LENGTHS = {socket.AF_INET: 32, socket.AF_INET6: 128}
# Without it, each answer has the interface's counters in it.
_MASK = attribute(_IFLA_EXT_MASK, _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS))
_COUNTERS_QUESTION = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
_LINK_QUESTION = _COUNTERS_QUESTION + _MASK

_EXPECTED = "expected +ADDRESS/LENGTH or -ADDRESS/LENGTH, several with blanks between"


class Interface(NamedTuple):
    """An interface at one moment.

    Attributes:
        ifindex: its number, which another may have once it is gone or has moved.
        name: its name.
        kind: "loopback", "veth", "bridge" and so on, "physical" for hardware.
        up: it is set up (IFF_UP).
        link: the index of what it is tied to, of a veth's other end; 0 if there is none.
        link_nsid: the nsid, as this namespace has it, of where that is; None for here.
        master: the index of the bridge that it is a port of, or the like; 0 if there is none.
        address: of the link layer.
    """

    ifindex: int
    name: bytes
    kind: bytes
    up: bool
    link: int
    link_nsid: int | None
    master: int
    address: bytes

    @property
    def born_elsewhere(self) -> bool:
        """Whether it was moved here, so that its owner would lose it if this namespace ended.

        That is hardware, and what stands on an interface that is in another namespace. The
        kernel does not tell where others were made.
        """
        hangs_over = self.kind != b"veth" and self.link_nsid is not None
        return self.kind == b"physical" or hangs_over


class Address(NamedTuple):
    """An address of an interface.

    Attributes:
        family: AF_INET or AF_INET6.
        packed: the address, as on the wire.
        length: of the prefix, in bits.
        ifindex: of the interface.
        message: as the kernel tells it, which makes the same address again; empty for one that
            is not there yet.
    """

    family: int
    packed: bytes
    length: int
    ifindex: int = 0
    message: bytes = b""

    @property
    def text(self) -> bytes:
        """ADDRESS/LENGTH."""
        return f"{socket.inet_ntop(self.family, self.packed)}/{self.length}".encode()

    @property
    def network(self) -> tuple[int, int, int]:
        """Equal for two addresses of one network."""
        bits = 8 * len(self.packed) - self.length
        return self.family, self.length, int.from_bytes(self.packed) >> bits


class State(NamedTuple):
    """How an interface is, and what it has done.

    Attributes:
        name: its name.
        up: it is set up (IFF_UP).
        connected: it is up, and there is somebody at the other end.
        counters: bytes, packets, errors and drops, received and then sent: the columns of
            /proc/net/dev, proc_pid_net(5).
        addresses: how many it has.
        speed: in bytes per second; None if it is not connected or has none.
    """

    name: bytes
    up: bool
    connected: bool
    counters: tuple[int, ...]
    addresses: int
    speed: int | None


class Peer(NamedTuple):
    """The other end of a veth.

    Attributes:
        name: of the interface; empty if it cannot be asked there.
        nsid: of its namespace, as this one has it; None for this one.
    """

    name: bytes
    nsid: int | None


def require_valid_interface_name(name: bytes) -> None:
    """Refuse what the kernel takes for no name, or for a pattern of names.

    Raises:
        OSError: ENAMETOOLONG, EINVAL.
    """
    if len(name) > NAME_MAX:
        message = f"an interface's name has at most {NAME_MAX} bytes"
        raise OSError(errno.ENAMETOOLONG, message, name)
    # dev_valid_name (net/core/dev.c), whose isspace() takes 0xa0 for a blank. "%d" would be
    # replaced by a number.
    if name in (b"", b".", b"..") or any(byte in b"/:%\xa0 \t\n\v\f\r" for byte in name):
        message = "an interface's name has no blank, colon, slash or percent sign"
        raise OSError(errno.EINVAL, message, name)


@contextmanager
def rtnetlink(fd: int, groups: int = 0) -> Iterator[RouteSocket]:
    """A socket in the namespace of `fd`, until the block ends."""
    may_block()
    with on_own_thread(_open_inside, fd, groups) as route:
        yield route


def _open_inside(fd: int, groups: int) -> RouteSocket:
    with restoring_namespace():
        linux.setns(fd, linux.CLONE_NEWNET)
        return RouteSocket(groups)


# Questions


def interfaces(route: RouteSocket) -> list[Interface]:
    """All interfaces of the socket's namespace, by index."""
    return sorted(route.dump(_RTM_GETLINK, _LINK_QUESTION, _interface))


def interface(route: RouteSocket, name: bytes) -> Interface:
    """The interface with a name.

    Raises:
        OSError: ENODEV if there is none.
    """
    found = _interface(route.ask(_RTM_GETLINK, _LINK_QUESTION + _named(name)))
    # The kernel knows interfaces by alternative names too.
    if found.name != name:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
    return found


def addresses(route: RouteSocket, index: int = 0) -> list[Address]:
    """The addresses of an interface, or of all, as ip-address(8) shows them.

    Raises:
        OSError: ENODEV if there is no such interface.
    """
    question = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, index)
    found = route.dump(_RTM_GETADDR, question, _address)
    return [address for address in found if address.family in _LENGTHS]


def born_elsewhere(fd: int) -> list[bytes]:
    """The interfaces of a namespace that were moved there, as far as that can be told.

    Hardware was born in the initial network namespace.
    """
    if tasks.is_initial(os.fstat(fd).st_ino):
        return []
    with rtnetlink(fd) as route:
        return [link.name for link in interfaces(route) if link.born_elsewhere]


def states(route: RouteSocket) -> list[State]:
    """All interfaces, with what `State` tells of each."""
    question = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    told = route.dump(_RTM_GETADDR, question, _ADDRESS.unpack_from)
    count = Counter(index for family, _, _, _, index in told if family in _LENGTHS)
    seen = sorted(route.dump(_RTM_GETLINK, _COUNTERS_QUESTION, _indexed))
    return [_state(route, body, count[index]) for index, body in seen]


def _indexed(body: bytes) -> tuple[int, bytes]:
    return _LINK.unpack_from(body)[2], body


def _state(route: RouteSocket, body: bytes, count: int) -> State:
    up = bool(_LINK.unpack_from(body)[3] & _IFF_UP)
    told = attributes(body, _LINK.size, _OF_STATE)
    name = told[_IFLA_IFNAME].rstrip(b"\0")
    connected = up and told.get(_IFLA_CARRIER) == b"\1"
    speed = linux.interface_speed(route.fileno(), name) if connected else None
    # What was missed counts as dropped in /proc/net/dev (net/core/net-procfs.c).
    packets, sent, size, sent_size, errors, sent_errors, drops, sent_drops, missed = (
        _COUNTERS.unpack_from(told[_IFLA_STATS64])
    )
    return State(
        name=name,
        up=up,
        connected=connected,
        counters=(
            size,
            packets,
            errors,
            drops + missed,
            sent_size,
            sent,
            sent_errors,
            sent_drops,
        ),
        addresses=count,
        # From Mbit/s.
        speed=None if speed is None else speed * 125_000,
    )


def peer(route: RouteSocket, name: bytes) -> Peer:
    """The other end of a veth.

    Raises:
        OSError: ENOENT if the interface is none, ENODEV if there is no such interface.
    """
    found = interface(route, name)
    if found.kind != b"veth" or not found.link:
        raise FileNotFoundError(errno.ENOENT, "only a veth has a peer", name)
    other = far_end(route, found)
    return Peer(other.name if other else b"", found.link_nsid)


def far_end(route: RouteSocket, found: Interface) -> Interface | None:
    """What an interface is tied to, as its own namespace has it; None if it cannot be asked."""
    question = _LINK.pack(socket.AF_UNSPEC, 0, found.link, 0, 0) + _MASK
    if found.link_nsid is not None:
        # The kernel looks into the other namespace by its nsid: no descriptor of it is needed.
        question += attribute(_IFLA_TARGET_NETNSID, _NUMBER.pack(found.link_nsid))
    try:
        return _interface(route.ask(_RTM_GETLINK, question))
    except OSError as error:
        linux.reraise_if_resource(error)
        return None


def _interface(body: bytes) -> Interface:
    _, kind, index, flags, _ = _LINK.unpack_from(body)
    told = attributes(body, _LINK.size, _OF_INTERFACE)
    return Interface(
        ifindex=index,
        name=told[_IFLA_IFNAME].rstrip(b"\0"),
        kind=_kind(kind, told.get(_IFLA_LINKINFO, b"")),
        up=bool(flags & _IFF_UP),
        link=_number(told, _IFLA_LINK) or 0,
        link_nsid=_number(told, _IFLA_LINK_NETNSID),
        master=_number(told, _IFLA_MASTER) or 0,
        address=told.get(_IFLA_ADDRESS, b""),
    )


def _kind(hardware: int, information: bytes) -> bytes:
    kind = attributes(information, 0, _OF_INFORMATION).get(_IFLA_INFO_KIND)
    if kind is not None:
        return kind.rstrip(b"\0")
    # What rtnetlink can make tells its kind. Loopback and hardware tell none.
    return b"loopback" if hardware == _ARPHRD_LOOPBACK else b"physical"


def _number(told: dict[int, bytes], kind: int) -> int | None:
    value = told.get(kind)
    return None if value is None else int.from_bytes(value, sys.byteorder, signed=True)


def _address(body: bytes) -> Address:
    family, length, _, _, index = _ADDRESS.unpack_from(body)
    told = attributes(body, _ADDRESS.size, _OF_ADDRESS)
    # Of a point-to-point connection, IFA_ADDRESS is the other end.
    packed = told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS, b"")
    return Address(family, packed, length, index, body)


def _named(name: bytes) -> bytes:
    return attribute(_IFLA_IFNAME, name + b"\0")


# Changes


def set_up(fd: int, name: bytes, index: int, up: bool) -> None:
    """Set an interface up or down.

    Raises:
        OSError: ENODEV if the interface of that index has not that name any more.
    """
    with rtnetlink(fd) as route:
        _require_same(route, name, index)
        commit()
        # The last number says which flags are meant, so that the others stay as they are.
        header = _LINK.pack(socket.AF_UNSPEC, 0, 0, _IFF_UP if up else 0, _IFF_UP)
        route.change(_RTM_SETLINK, header + _named(name))


def change_addresses(fd: int, name: bytes, index: int, command: bytes) -> None:
    """Add and remove addresses of an interface: all that is said, or nothing.

    What the kernel is known to refuse is refused before anything is changed. Additions, which
    are more likely to fail, come before removals, which cannot be undone completely: a removal
    takes routes along.

    Args:
        fd: a descriptor of the namespace.
        name: of the interface.
        index: of the interface.
        command: +ADDRESS/LENGTH or -ADDRESS/LENGTH, several with blanks between.

    Raises:
        OSError: EINVAL for what is no such command, EEXIST or EADDRNOTAVAIL for an address
            that is there or not there, ENODEV if the interface of that index has not that
            name any more, else the kernel's answer.
    """
    wanted = [_asked(word) for word in command.split()]
    if not wanted:
        raise OSError(errno.EINVAL, _EXPECTED)
    with rtnetlink(fd) as route:
        _require_same(route, name, index)
        before = addresses(route, index)
        todo = _ordered(*_outcome(before, wanted))
        commit()
        done: list[tuple[bool, Address]] = []
        try:
            for adds, address in todo:
                _put(route, index, adds, address)
                done.append((adds, address))
            _require_same(route, name, index)
        except OSError:
            # By index, so that the right interface is meant even if its name is another's by
            # now.
            _take_back(route, index, done)
            with suppress(OSError):
                _require_same(route, name, index)
                _complete(route, index, before)
            raise


def _asked(word: bytes) -> tuple[bool, Address]:
    """Whether a word of a command adds or removes, and what."""
    text, _, length = word[1:].partition(b"/")
    family = socket.AF_INET6 if b":" in text else socket.AF_INET
    most = _LENGTHS[family]
    try:
        packed = socket.inet_pton(family, text.decode("ascii"))
    except (OSError, ValueError):
        packed = b""
    digits = length.isdigit() and len(length) <= 3
    if word[:1] not in (b"+", b"-") or not packed or not digits or int(length) > most:
        shown = word.decode("ascii", "backslashreplace")
        raise OSError(errno.EINVAL, f"{_EXPECTED}, not {shown[:60]}")
    return word[:1] == b"+", Address(family, packed, int(length))


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
    kind = _RTM_NEWADDR if adds else _RTM_DELADDR
    message = address.message or _new_address(index, address)
    route.change(kind, message, NLM_F_CREATE | NLM_F_EXCL if adds else 0)


def _new_address(index: int, address: Address) -> bytes:
    # As ip-address(8) does: 127.0.0.0/8 is for this host alone.
    loopback = address.family == socket.AF_INET and address.packed[0] == 127
    scope = _RT_SCOPE_HOST if loopback else 0
    header = _ADDRESS.pack(address.family, address.length, 0, scope, index)
    value = address.packed
    return header + attribute(_IFA_LOCAL, value) + attribute(_IFA_ADDRESS, value)


def _take_back(route: RouteSocket, index: int, done: list[tuple[bool, Address]]) -> None:
    for adds, address in reversed(done):
        with suppress(OSError):
            _put(route, index, not adds, address)


def _complete(route: RouteSocket, index: int, before: list[Address]) -> None:
    """Add what is missing of what was there, in the same order.

    Along with the first address of a network, the kernel removes the secondary ones, or makes
    the next of them the first (promote_secondaries). That one makes room again.
    """
    there, firsts = addresses(route, index), _firsts(before)
    promoted = {
        network for network, text in _firsts(there).items() if firsts.get(network, text) != text
    }
    known = {address.text for address in before}
    # Backwards: the first comes last, when there is nothing left to promote.
    for address in reversed(there):
        if address.network in promoted and address.text in known:
            with suppress(OSError):
                _put(route, index, False, address)
    left = {address.text for address in addresses(route, index)}
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


def _require_same(route: RouteSocket, name: bytes, index: int) -> None:
    if interface(route, name).ifindex != index:
        raise OSError(errno.ENODEV, "it is another interface by now", name)


def rename(fd: int, name: bytes, new_name: bytes) -> None:
    """Give an interface another name.

    Raises:
        OSError: EEXIST, ENODEV, and as `require_valid_interface_name`.
    """
    require_valid_interface_name(new_name)
    with rtnetlink(fd) as route:
        # This refuses an alternative name, by which the kernel would find the interface.
        # Whether the new name is taken, alternative names included, the kernel finds out
        # itself.
        interface(route, name)
        commit()
        # By ioctl(2), which takes both names. rtnetlink takes an index and the new name.
        linux.rename_interface(route.fileno(), name, new_name)


def remove(fd: int, name: bytes) -> None:
    """Delete an interface, and a veth's other end with it.

    Raises:
        OSError: ENODEV; EOPNOTSUPP for hardware.
    """
    with rtnetlink(fd) as route:
        # This refuses an alternative name, by which the kernel would find the interface.
        interface(route, name)
        commit()
        header = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        route.change(_RTM_DELLINK, header + _named(name))


def join(fd: int, name: bytes, peer_fd: int, peer_name: bytes) -> None:
    """Make a pair of veth interfaces, both down.

    Args:
        fd: a descriptor of the namespace of the one end.
        name: of that end.
        peer_fd: a descriptor of the namespace of the other.
        peer_name: of that end.

    Raises:
        OSError: EEXIST, and as `require_valid_interface_name`.
    """
    require_valid_interface_name(name)
    require_valid_interface_name(peer_name)
    header = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    peer = header + _named(peer_name) + attribute(_IFLA_NET_NS_FD, _NUMBER.pack(peer_fd))
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    kind = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth") + data)
    with rtnetlink(fd) as route:
        commit()
        route.change(_RTM_NEWLINK, header + _named(name) + kind, NLM_F_CREATE | NLM_F_EXCL)


def move(fd: int, name: bytes, target: int, new_name: bytes) -> None:
    """Move an interface to another namespace, with the same name or another.

    Args:
        fd: a descriptor of the namespace that it is in.
        name: its name.
        target: a descriptor of the namespace that it is to be in.
        new_name: its name there.

    Raises:
        OSError: EEXIST if that has such an interface; EINVAL for what the kernel does not let
            go; ENODEV if there is no such interface; and as `require_valid_interface_name`.
    """
    require_valid_interface_name(new_name)
    with rtnetlink(fd, _RTMGRP_LINK) as route, rtnetlink(target) as there:
        found = interface(route, name)
        # One request by name does it, and the kernel refuses a name that is taken (EEXIST).
        if name == new_name:
            commit()
            return _send(route, 0, name, target)
        # The kernel decides, but only after the move, which takes the interface down and its
        # addresses away.
        _require_free(there, new_name)
        commit()
        _move_and_rename(route, there, found, (fd, target), new_name)
    return None


def _require_free(route: RouteSocket, name: bytes) -> None:
    try:
        # By alternative names too: the kernel takes those for taken.
        route.ask(_RTM_GETLINK, _LINK_QUESTION + _named(name))
    except OSError:
        return
    raise FileExistsError(errno.EEXIST, "there is such an interface already", name)


def _send(
    route: RouteSocket,
    index: int,
    name: bytes,
    target: int,
    heard: list[Message] | None = None,
) -> None:
    """Send an interface to a namespace: by name, or by index and with that name."""
    header = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    to = attribute(_IFLA_NET_NS_FD, _NUMBER.pack(target))
    route.change(_RTM_SETLINK, header + _named(name) + to, heard=heard)


def _move_and_rename(
    route: RouteSocket,
    there: RouteSocket,
    found: Interface,
    namespaces: tuple[int, int],
    new_name: bytes,
) -> None:
    home, target = namespaces
    heard: list[Message] = []
    try:
        _send(route, found.ifindex, new_name, target, heard)
    except OSError:
        # The kernel moves it first, and may then find that the new name is taken (do_setlink(),
        # net/core/rtnetlink.c).
        left = _name_when_left(heard, found.ifindex)
        # If another has its old name by now, it cannot go back, and stays where it is.
        with suppress(OSError):
            if left:
                _send(there, 0, left, home)
        raise
    left = _name_when_left(heard, found.ifindex)
    # By then the interface of that index had another name. It was not meant, and goes back.
    if left not in (b"", found.name):
        with suppress(OSError):
            _send(there, interface(there, new_name).ifindex, left, home)
        raise OSError(errno.ENODEV, "it is another interface by now", found.name)


def _name_when_left(heard: Sequence[Message], index: int) -> bytes:
    """The name that an interface had when it moved away; empty if it did not."""
    for message in heard:
        if message.kind == _RTM_DELLINK and _LINK.unpack_from(message.body)[2] == index:
            told = attributes(message.body, _LINK.size)
            # Without it, the interface was deleted.
            if _IFLA_NEW_NETNSID in told:
                return told[_IFLA_IFNAME].rstrip(b"\0")
    return b""
