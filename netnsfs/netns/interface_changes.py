"""Interfaces are set up, renamed, made, moved and deleted, by rtnetlink(7).

Every function takes a descriptor of the namespace. Interfaces come, go, move and change their
names at any moment, and an index or a name that is free is another's next. Three rules keep a
change from hitting an interface that was not meant:

1. What a request can say by name alone, it says by name: the kernel finds the interface and
   changes it under one lock.
2. What goes by index compares the name before and after; if it is another's by then, the
   change is taken back (`addresses`, `set_master`).
3. A move that gives another name is by index too. The kernel tells under which name the
   interface has left; if that was not the one meant, it goes back.
"""

import errno
import re
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
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
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

_ADDRESS = re.compile(rb"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})*")
_PREFIX_OF_ADDRESS = re.compile(rb"[0-9A-Fa-f:]*")


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


def set_address(fd: int, name: bytes, index: int, text: bytes) -> None:
    """Give an interface another hardware address.

    Args:
        fd: a descriptor of the namespace.
        name: of the interface.
        index: of the interface.
        text: two hexadecimal digits for each byte, with colons between.

    Raises:
        OSError: EINVAL for an address of another kind, ENODEV if the interface of that index
            has not that name any more, else the kernel's answer.
    """
    with rtnetlink(fd) as route:
        length = len(require_same(route, name, index).address)
        address = _parse_address(text, length)
        commit()
        header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        route.change(RTM_SETLINK, header + named(name) + attribute(IFLA_ADDRESS, address))


def _parse_address(text: bytes, length: int) -> bytes:
    # Of a longer address, the kernel would take the beginning.
    if _ADDRESS.fullmatch(text.strip()):
        address = bytes.fromhex(text.decode().replace(":", ""))
        if len(address) == length:
            return address
    raise OSError(errno.EINVAL, f"expected a hardware address of {length} bytes")


def is_unfinished_address(text: bytes) -> bool:
    """Whether more can follow what was written to `address`."""
    # Ethernet's are the shortest ones that are written in practice.
    word = text.lstrip()
    return len(word) < len("00:00:00:00:00:00") and bool(_PREFIX_OF_ADDRESS.fullmatch(word))


def set_master(fd: int, name: bytes, index: int, master: bytes) -> None:
    """Put an interface into a bridge, or whatever else has ports.

    Args:
        fd: a descriptor of the namespace.
        name: of the interface.
        index: of the interface.
        master: name of the bridge.

    Raises:
        OSError: EEXIST if it is in one, ENOENT if there is no such bridge, ENODEV if the
            interface of that index has not that name any more, else the kernel's answer.
    """
    with rtnetlink(fd) as route:
        if require_same(route, name, index).master:
            raise FileExistsError(errno.EEXIST, "it has a master already", name)
        wanted = _find_master(route, master)
        commit()
        _enter_master(route, index, master, wanted)
        try:
            require_same(route, name, index)
            require_same(route, master, wanted)
        except OSError:
            with suppress(OSError):
                _change_master(route, index, 0)
            raise


def _enter_master(route: RouteSocket, index: int, master: bytes, wanted: int) -> None:
    try:
        _change_master(route, index, wanted)
    except OSError as error:
        # The answer for a master that has gone meanwhile too (do_set_master(),
        # net/core/rtnetlink.c).
        if error.errno == errno.EINVAL and _find_master(route, master) != wanted:
            raise FileNotFoundError(errno.ENOENT, "it is gone", master) from None
        raise


def _find_master(route: RouteSocket, name: bytes) -> int:
    try:
        return find_interface(route, name).ifindex
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise FileNotFoundError(errno.ENOENT, "there is no such interface", name) from None


def leave_master(fd: int, name: bytes, index: int) -> None:
    """Take an interface out of its bridge.

    Raises:
        OSError: ENOENT if it is in none, ENODEV if the interface of that index has not that
            name any more, else the kernel's answer.
    """
    with rtnetlink(fd) as route:
        master = require_same(route, name, index).master
        if not master:
            raise FileNotFoundError(errno.ENOENT, "it has no master", name)
        commit()
        _change_master(route, index, 0)
        try:
            require_same(route, name, index)
        except OSError:
            with suppress(OSError):
                _change_master(route, index, master)
            raise


def _change_master(route: RouteSocket, index: int, master: int) -> None:
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    route.change(RTM_SETLINK, header + attribute(IFLA_MASTER, S32.pack(master)))


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
        try:
            route.change(RTM_DELLINK, header + named(name))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            shown = name.decode(errors="backslashreplace")
            raise OSError(error.errno, f"{shown} cannot be deleted", name) from None


def create_bridge(fd: int, name: bytes) -> None:
    """Make a bridge, down and without ports.

    Raises:
        OSError: EEXIST, and as `require_interface_name`.
    """
    require_interface_name(name)
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    kind = attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"bridge"))
    with rtnetlink(fd) as route:
        commit()
        route.change(RTM_NEWLINK, header + named(name) + kind, NLM_F_CREATE | NLM_F_EXCL)


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
    source, target = namespaces
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
                _send_to(there, 0, left, source)
        raise
    left = _name_when_left(heard, found.ifindex)
    # By then the interface of that index had another name. It was not meant, and goes back.
    if left not in (b"", found.name):
        with suppress(OSError):
            _send_to(there, find_interface(there, new_name).ifindex, left, source)
        raise OSError(errno.ENODEV, "it is another interface by now", found.name)


def _name_when_left(heard: Sequence[Message], index: int) -> bytes:
    """The name that an interface had when it moved away; empty if it did not."""
    for message in heard:
        if message.kind == RTM_DELLINK and IFINFOMSG.unpack_from(message.body)[2] == index:
            parsed = attributes(message.body, IFINFOMSG.size)
            # Without it, the interface was deleted.
            if IFLA_NEW_NETNSID in parsed:
                return parsed[IFLA_IFNAME].rstrip(b"\0")
    return b""
