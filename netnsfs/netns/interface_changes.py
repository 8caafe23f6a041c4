"""Interfaces are set up, renamed, made, moved and deleted, by rtnetlink(7).

Every function takes a descriptor of the namespace. Interfaces come, go, move and change their
names at any moment, and an index or a name that is free is another's next. Three rules keep a
change from hitting an interface that was not meant:

1. What a request can say by name alone, it says by name: the kernel finds the interface and
   changes it under one lock.
2. What goes by index compares the name before and after; if it is another's by then, the
   change is taken back (`addresses`).
3. A move that gives another name is by index too. The kernel tells under which name the
   interface has left; if that was not the one meant, it goes back.
"""

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress

from netnsfs import linux
from netnsfs.jobs import commit
from netnsfs.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    RouteSocket,
    attribute,
    attributes,
)
from netnsfs.linux.rtnetlink import (
    IFF_UP,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_NET_NS_FD,
    IFLA_NEW_NETNSID,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
    RTMGRP_LINK,
    S32,
    VETH_INFO_PEER,
    named,
)
from netnsfs.netns.interfaces import (
    LINK_QUESTION,
    Interface,
    find_interface,
    require_interface_name,
    require_same,
    rtnetlink,
)


def set_up(fd: int, name: bytes, index: int, up: bool) -> None:
    """Set an interface up or down.

    Raises:
        OSError: ENODEV if the interface of that index has not that name any more.
    """
    with rtnetlink(fd) as route:
        require_same(route, name, index)
        commit()
        # The last number says which flags are meant, so that the others stay as they are.
        header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, IFF_UP if up else 0, IFF_UP)
        route.change(RTM_SETLINK, header + named(name))


def rename(fd: int, name: bytes, new_name: bytes) -> None:
    """Give an interface another name.

    Raises:
        OSError: EEXIST, ENODEV, and as `require_interface_name`.
    """
    require_interface_name(new_name)
    with rtnetlink(fd) as route:
        # This refuses an alternative name, by which the kernel would find the interface.
        # Whether the new name is taken, alternative names included, the kernel finds out
        # itself.
        find_interface(route, name)
        commit()
        # By ioctl(2), which takes both names. rtnetlink takes an index and the new name.
        linux.rename_interface(route.fileno(), name, new_name)


def delete(fd: int, name: bytes) -> None:
    """Delete an interface, and a veth's other end with it.

    Raises:
        OSError: ENODEV; EOPNOTSUPP for hardware.
    """
    with rtnetlink(fd) as route:
        # This refuses an alternative name, by which the kernel would find the interface.
        find_interface(route, name)
        commit()
        header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        route.change(RTM_DELLINK, header + named(name))


def create_veth_pair(fd: int, name: bytes, peer_fd: int, peer_name: bytes) -> None:
    """Make a pair of veth interfaces, both down.

    Args:
        fd: a descriptor of the namespace of the one end.
        name: of that end.
        peer_fd: a descriptor of the namespace of the other.
        peer_name: of that end.

    Raises:
        OSError: EEXIST, and as `require_interface_name`.
    """
    require_interface_name(name)
    require_interface_name(peer_name)
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    peer = header + named(peer_name) + attribute(IFLA_NET_NS_FD, S32.pack(peer_fd))
    data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    kind = attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"veth") + data)
    with rtnetlink(fd) as route:
        commit()
        route.change(RTM_NEWLINK, header + named(name) + kind, NLM_F_CREATE | NLM_F_EXCL)


def move(fd: int, name: bytes, target: int, new_name: bytes) -> None:
    """Move an interface to another namespace, with the same name or another.

    Args:
        fd: a descriptor of the namespace that it is in.
        name: its name.
        target: a descriptor of the namespace that it is to be in.
        new_name: its name there.

    Raises:
        OSError: EEXIST if that has such an interface; EINVAL for what the kernel does not let
            go; ENODEV if there is no such interface; and as `require_interface_name`.
    """
    require_interface_name(new_name)
    with rtnetlink(fd, RTMGRP_LINK) as route, rtnetlink(target) as there:
        found = find_interface(route, name)
        # One request by name does it, and the kernel refuses a name that is taken (EEXIST).
        if name == new_name:
            commit()
            return _send_to(route, 0, name, target)
        # The kernel decides, but only after the move, which takes the interface down and its
        # addresses away.
        _require_free(there, new_name)
        commit()
        _move_and_rename(route, there, found, (fd, target), new_name)
    return None


def _require_free(route: RouteSocket, name: bytes) -> None:
    try:
        # By alternative names too: the kernel takes those for taken.
        route.ask(RTM_GETLINK, LINK_QUESTION + named(name))
    except OSError:
        return
    raise FileExistsError(errno.EEXIST, "there is such an interface already", name)


def _send_to(
    route: RouteSocket,
    index: int,
    name: bytes,
    target: int,
    heard: list[Message] | None = None,
) -> None:
    """Send an interface to a namespace: by name, or by index and with that name."""
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    to = attribute(IFLA_NET_NS_FD, S32.pack(target))
    route.change(RTM_SETLINK, header + named(name) + to, heard=heard)


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
        _send_to(route, found.ifindex, new_name, target, heard)
    except OSError:
        # The kernel moves it first, and may then find that the new name is taken (do_setlink(),
        # net/core/rtnetlink.c).
        left = _name_when_left(heard, found.ifindex)
        # If another has its old name by now, it cannot go back, and stays where it is.
        with suppress(OSError):
            if left:
                _send_to(there, 0, left, home)
        raise
    left = _name_when_left(heard, found.ifindex)
    # By then the interface of that index had another name. It was not meant, and goes back.
    if left not in (b"", found.name):
        with suppress(OSError):
            _send_to(there, find_interface(there, new_name).ifindex, left, home)
        raise OSError(errno.ENODEV, "it is another interface by now", found.name)


def _name_when_left(heard: Sequence[Message], index: int) -> bytes:
    """The name that an interface had when it moved away; empty if it did not."""
    for message in heard:
        if message.kind == RTM_DELLINK and IFINFOMSG.unpack_from(message.body)[2] == index:
            told = attributes(message.body, IFINFOMSG.size)
            # Without it, the interface was deleted.
            if IFLA_NEW_NETNSID in told:
                return told[IFLA_IFNAME].rstrip(b"\0")
    return b""
