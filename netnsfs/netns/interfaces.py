"""Network interfaces of a namespace, as rtnetlink(7) tells of them.

Every function takes a descriptor of the namespace, or a socket that `rtnetlink` has opened
there. The socket keeps the namespace alive: it is closed with the operation. Changes are in
`interface_changes`, addresses in `addresses`.
"""

import errno
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block, on_own_thread, restoring_namespace
from netnsfs.linux.netlink import RouteSocket, attribute, attributes
from netnsfs.linux.rtnetlink import (
    ADDRESS_BITS,
    ARPHRD_LOOPBACK,
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
    IFLA_ADDRESS,
    IFLA_CARRIER,
    IFLA_EXT_MASK,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_STATS64,
    IFLA_TARGET_NETNSID,
    LINK_STATS64,
    RTEXT_FILTER_SKIP_STATS,
    RTM_GETADDR,
    RTM_GETLINK,
    S32,
    named,
)
from netnsfs.netns import tasks

NAME_MAX = 15
"""Longest name of an interface, in bytes: IFNAMSIZ with the closing NUL (linux/if.h)."""

_OF_INTERFACE = frozenset(
    {
        IFLA_ADDRESS,
        IFLA_IFNAME,
        IFLA_LINK,
        IFLA_MASTER,
        IFLA_LINKINFO,
        IFLA_LINK_NETNSID,
    }
)
_OF_STATE = frozenset({IFLA_IFNAME, IFLA_STATS64, IFLA_CARRIER})
_OF_INFORMATION = frozenset({IFLA_INFO_KIND})
# Without it, each answer has the interface's counters in it.
_MASK = attribute(IFLA_EXT_MASK, S32.pack(RTEXT_FILTER_SKIP_STATS))
_COUNTERS_QUESTION = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
LINK_QUESTION = _COUNTERS_QUESTION + _MASK


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
    def moved_in(self) -> bool:
        """Whether it was moved here, so that its owner would lose it if this namespace ended.

        That is hardware, and what stands on an interface that is in another namespace. The
        kernel does not tell where others were made.
        """
        hangs_over = self.kind != b"veth" and self.link_nsid is not None
        return self.kind == b"physical" or hangs_over


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


def require_interface_name(name: bytes) -> None:
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


def list_interfaces(route: RouteSocket) -> list[Interface]:
    """All interfaces of the socket's namespace, by index."""
    return sorted(route.dump(RTM_GETLINK, LINK_QUESTION, _interface))


def find_interface(route: RouteSocket, name: bytes) -> Interface:
    """The interface with a name.

    Raises:
        OSError: ENODEV if there is none.
    """
    found = _interface(route.ask(RTM_GETLINK, LINK_QUESTION + named(name)))
    # The kernel knows interfaces by alternative names too.
    if found.name != name:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
    return found


def require_same(route: RouteSocket, name: bytes, index: int) -> Interface:
    """The interface with a name, if it is still the one with an index.

    Raises:
        OSError: ENODEV.
    """
    found = find_interface(route, name)
    if found.ifindex != index:
        raise OSError(errno.ENODEV, "it is another interface by now", name)
    return found


def moved_in(fd: int) -> list[bytes]:
    """The interfaces of a namespace that were moved there, as far as that can be told.

    Hardware starts in the initial network namespace.
    """
    if tasks.is_initial(os.fstat(fd).st_ino):
        return []
    with rtnetlink(fd) as route:
        return [link.name for link in list_interfaces(route) if link.moved_in]


def states(route: RouteSocket) -> list[State]:
    """All interfaces, with what `State` tells of each."""
    question = IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    parsed = route.dump(RTM_GETADDR, question, IFADDRMSG.unpack_from)
    count = Counter(index for family, _, _, _, index in parsed if family in ADDRESS_BITS)
    seen = sorted(route.dump(RTM_GETLINK, _COUNTERS_QUESTION, _indexed))
    return [_state(route, body, count[index]) for index, body in seen]


def _indexed(body: bytes) -> tuple[int, bytes]:
    return IFINFOMSG.unpack_from(body)[2], body


def _state(route: RouteSocket, body: bytes, count: int) -> State:
    up = bool(IFINFOMSG.unpack_from(body)[3] & IFF_UP)
    parsed = attributes(body, IFINFOMSG.size, _OF_STATE)
    name = parsed[IFLA_IFNAME].rstrip(b"\0")
    connected = up and parsed.get(IFLA_CARRIER) == b"\1"
    speed = linux.interface_speed(route.fileno(), name) if connected else None
    # What was missed counts as dropped in /proc/net/dev (net/core/net-procfs.c).
    packets, sent, size, sent_size, errors, sent_errors, drops, sent_drops, missed = (
        LINK_STATS64.unpack_from(parsed[IFLA_STATS64])
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


def find_peer(route: RouteSocket, name: bytes) -> Peer:
    """The other end of a veth.

    Raises:
        OSError: ENOENT if the interface is none, ENODEV if there is no such interface.
    """
    found = find_interface(route, name)
    if found.kind != b"veth" or not found.link:
        raise FileNotFoundError(errno.ENOENT, "only a veth has a peer", name)
    other = link_peer(route, found)
    return Peer(other.name if other else b"", found.link_nsid)


def link_peer(route: RouteSocket, found: Interface) -> Interface | None:
    """What an interface is tied to, as its own namespace has it; None if it cannot be asked."""
    question = IFINFOMSG.pack(socket.AF_UNSPEC, 0, found.link, 0, 0) + _MASK
    if found.link_nsid is not None:
        # The kernel looks into the other namespace by its nsid: no descriptor of it is needed.
        question += attribute(IFLA_TARGET_NETNSID, S32.pack(found.link_nsid))
    try:
        return _interface(route.ask(RTM_GETLINK, question))
    except OSError as error:
        linux.reraise_if_resource(error)
        return None


def _interface(body: bytes) -> Interface:
    _, kind, index, flags, _ = IFINFOMSG.unpack_from(body)
    parsed = attributes(body, IFINFOMSG.size, _OF_INTERFACE)
    return Interface(
        ifindex=index,
        name=parsed[IFLA_IFNAME].rstrip(b"\0"),
        kind=_kind(kind, parsed.get(IFLA_LINKINFO, b"")),
        up=bool(flags & IFF_UP),
        link=_number(parsed, IFLA_LINK) or 0,
        link_nsid=_number(parsed, IFLA_LINK_NETNSID),
        master=_number(parsed, IFLA_MASTER) or 0,
        address=parsed.get(IFLA_ADDRESS, b""),
    )


def _kind(hardware: int, information: bytes) -> bytes:
    kind = attributes(information, 0, _OF_INFORMATION).get(IFLA_INFO_KIND)
    if kind is not None:
        return kind.rstrip(b"\0")
    # What rtnetlink can make tells its kind. Loopback and hardware tell none.
    return b"loopback" if hardware == ARPHRD_LOOPBACK else b"physical"


def _number(parsed: dict[int, bytes], kind: int) -> int | None:
    value = parsed.get(kind)
    return None if value is None else int.from_bytes(value, sys.byteorder, signed=True)
