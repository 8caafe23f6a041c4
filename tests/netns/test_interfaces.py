"""Interfaces by rtnetlink, with ip-link(8) as the other side."""

import os

from conftest import RUN, error_of, ip, wait_for
from ip_link import names_in, shown

from netnsfs import linux
from netnsfs.jobs import on_own_thread, restoring_namespace
from netnsfs.netns import interfaces
from netnsfs.netns.interface_changes import create_veth_pair, delete, move
from netnsfs.netns.interfaces import find_interface, find_peer, list_interfaces, rtnetlink
from netnsfs.netns.nsid import ask_nsid


def sysfs_of(fd: int) -> int:
    def inside() -> int:
        with restoring_namespace():
            linux.setns(fd, linux.CLONE_NEWNET)
            return linux.new_mount(b"sysfs", {}, 0)

    return on_own_thread(inside)


def test_sysfs_shows_a_namespace_and_does_not_keep_it(spaces: tuple[int, int]) -> None:
    ip("netns", "add", "c")
    fd = os.open(RUN / "c", os.O_RDONLY)
    with linux.closing_fd(fd):
        mount = sysfs_of(fd)
        create_veth_pair(fd, b"inner", spaces[0], b"outer")
    with linux.closing_fd(mount):
        assert sorted(os.listdir(f"/proc/self/fd/{mount}/class/net")) == ["inner", "lo"]
        held = os.open(f"/proc/self/fd/{mount}/class/net/inner/mtu", os.O_RDONLY)
        with linux.closing_fd(held):
            assert os.read(held, 100) == b"1500\n"
            ip("netns", "del", "c")
            # The veth ends with its other end, and so with the namespace of that.
            wait_for(lambda: "outer" not in names_in("a"))
            assert os.listdir(f"/proc/self/fd/{mount}/class/net") == []
            assert error_of(os.pread, held, 100, 0) == "ENODEV"


def test_an_interface_is_what_ip_tells(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    ip("-n", "a", "link", "add", "br0", "type", "bridge")
    ip("-n", "a", "link", "set", "v0", "master", "br0", "up")
    ip("-n", "b", "link", "set", "v1", "up")
    with rtnetlink(spaces[0]) as route:
        found = {link.name.decode(): link for link in list_interfaces(route)}
        assert [link.ifindex for link in found.values()] == sorted(
            link.ifindex for link in found.values()
        )
        for told in shown("a", "link"):
            link = found.pop(str(told["ifname"]))
            assert find_interface(route, link.name) == link
            kind = told.get("linkinfo", {}).get("info_kind", told["link_type"])
            assert link.kind.decode() == kind
            assert link.ifindex == told["ifindex"]
            assert link.up == ("UP" in told["flags"])
            assert link.address.hex(":") == told["address"]
        assert found == {}
        assert find_interface(route, b"v0").master == find_interface(route, b"br0").ifindex
        assert error_of(find_interface, route, b"nothere") == "ENODEV"


def test_a_pair_has_an_end_here_and_one_there(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    create_veth_pair(spaces[0], b"w0", spaces[0], b"w1")
    for name, ends in (("a", {"v0", "w0", "w1"}), ("b", {"v1"})):
        assert names_in(name) == ends | {"lo"}
        assert not any("UP" in link["flags"] for link in shown(name, "link"))
    with rtnetlink(spaces[0]) as a, rtnetlink(spaces[1]) as b:
        assert find_peer(a, b"w0") == (b"w1", None)
        assert find_peer(a, b"w1") == (b"w0", None)
        assert find_peer(a, b"v0") == (b"v1", ask_nsid(a, spaces[1]))
        assert find_peer(b, b"v1") == (b"v0", ask_nsid(b, spaces[0]))
        assert error_of(find_peer, a, b"lo") == "ENOENT"
    delete(spaces[1], b"v1")
    assert names_in("a") == {"lo", "w0", "w1"}


def test_a_name_is_refused_that_the_kernel_refuses(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    names = [bytes([byte]) for byte in range(1, 256)]
    name = b"v0"
    with rtnetlink(spaces[0]) as route:
        for new in names:
            refused = error_of(interfaces.require_interface_name, new)
            told = error_of(linux.rename_interface, route.fileno(), name, new)
            assert refused == told, new
            name = name if told else new


def test_what_was_moved_in(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    ip("-n", "a", "link", "add", "link", "v0", "name", "m0", "type", "macvlan")
    move(spaces[0], b"m0", spaces[1], b"m1")
    with rtnetlink(spaces[1]) as route:
        strangers = [link.name for link in list_interfaces(route) if link.moved_in]
    assert strangers == [b"m1"]
