"""Addresses by rtnetlink, with ip-address(8) as the other side."""

import errno
from typing import Any

import pytest
from conftest import error_of, ip
from ip_link import index_of, shown, texts

from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import addresses
from netnsfs.netns.addresses import change_addresses
from netnsfs.netns.interface_changes import create_veth_pair


def test_addresses_come_and_go(spaces: tuple[int, int]) -> None:
    change = change_addresses
    change(spaces[0], b"lo", 1, b"+10.0.0.1/24 +fd00:0:0::1/64\n+127.0.0.1/8")
    told = {
        f"{address['local']}/{address['prefixlen']}": address["scope"]
        for address in shown("a", "addr", "show", "lo")[0]["addr_info"]
    }
    assert told == {"10.0.0.1/24": "global", "127.0.0.1/8": "host", "fd00::1/64": "global"}
    assert sorted(texts(spaces[0], b"lo")) == sorted(text.encode() for text in told)
    change(spaces[0], b"lo", 1, b"-10.0.0.1/24 +10.0.0.2/24 -fd00::1/64")
    assert texts(spaces[0], b"lo") == [b"127.0.0.1/8", b"10.0.0.2/24"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"", "EINVAL"),
        (b"10.0.0.9/24", "EINVAL"),
        (b"+10.0.0.9", "EINVAL"),
        (b"+10.0.0/24", "EINVAL"),
        (b"+10.0.0.9/33", "EINVAL"),
        (b"+10.0.0.9/-1", "EINVAL"),
        (b"+10.0.0.9/24/24", "EINVAL"),
        (b"+10.0.0.9/2\xb2", "EINVAL"),
        (b"+fe80::1%lo/64", "EINVAL"),
        (b"+::1\0/64", "EINVAL"),
        (b"+::/129", "EINVAL"),
        (b"+\xff/8", "EINVAL"),
        (b"+ 10.0.0.9/24", "EINVAL"),
        (b"+10.0.0.9/24 nonsense", "EINVAL"),
        (b"+10.0.0.9/24 +10.0.0.1/24", "EEXIST"),
        (b"+10.0.0.9/24 +10.0.0.9/24", "EEXIST"),
        (b"-10.0.0.1/24 -10.0.0.9/24", "EADDRNOTAVAIL"),
        (b"-10.0.0.1/24 -10.0.0.1/24", "EADDRNOTAVAIL"),
        (b"-10.0.0.1/25", "EADDRNOTAVAIL"),
        # What only the kernel finds out: a multicast address.
        (b"+10.0.0.9/24 +ff02::1/64", "EADDRNOTAVAIL"),
        (b"-10.0.0.1/24 +10.0.0.9/24 +ff02::1/64", "EADDRNOTAVAIL"),
        (b"-10.0.0.1/24 +10.0.0.9/24 -fd00::1/64 +ff02::1/64", "EADDRNOTAVAIL"),
    ],
)
def test_a_write_that_fails_changes_nothing(
    spaces: tuple[int, int], command: bytes, code: str
) -> None:
    ip("-n", "a", "link", "set", "lo", "up")
    ip("-n", "a", "addr", "add", "10.0.0.1/24", "dev", "lo", "label", "lo:one")
    ip("-n", "a", "addr", "add", "10.0.0.2/24", "dev", "lo")
    ip("-n", "a", "addr", "add", "fd00::1/64", "dev", "lo", "nodad")
    ip("-n", "a", "route", "add", "10.9.0.0/16", "via", "10.0.0.77", "src", "10.0.0.1")
    before = shown("a", "addr"), shown("a", "route")
    assert error_of(change_addresses, spaces[0], b"lo", 1, command) == code
    assert (shown("a", "addr"), shown("a", "route")) == before


@pytest.mark.parametrize("promotes", [False, True])
def test_what_is_refused_after_a_removal_is_taken_back(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch, promotes: bool
) -> None:
    """The kernel has then removed the secondary address too, or made it the first."""
    for name in ("all", "lo"):
        setting = f"net.ipv4.conf.{name}.promote_secondaries={promotes:d}"
        ip("netns", "exec", "a", "sysctl", "-q", setting)
    ip("-n", "a", "addr", "add", "10.0.0.1/24", "dev", "lo", "label", "lo:one")
    ip("-n", "a", "addr", "add", "10.0.0.2/24", "dev", "lo", "label", "lo:two")
    before = shown("a", "addr")
    put = addresses._put

    def refuse(route: RouteSocket, index: int, adds: bool, address: addresses.Address) -> None:
        if address.text == b"10.0.0.3/24":
            assert texts(spaces[0], b"lo") == ([b"10.0.0.2/24"] if promotes else [])
            raise OSError(errno.ENOBUFS, "no room")
        put(route, index, adds, address)

    monkeypatch.setattr(addresses, "_put", refuse)
    command = b"-10.0.0.1/24 +10.0.0.3/24"
    assert error_of(change_addresses, spaces[0], b"lo", 1, command) == "ENOBUFS"
    assert shown("a", "addr") == before


def test_addresses_of_another_interface_are_taken_back(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    index = index_of(spaces[0], b"v0")
    ip("-n", "a", "addr", "add", "fd00::1/64", "dev", "v0")
    outcome = addresses._outcome

    def too_late(*arguments: Any) -> Any:
        ip("-n", "a", "link", "set", "v0", "name", "innocent")
        return outcome(*arguments)

    monkeypatch.setattr(addresses, "_outcome", too_late)
    command = b"+10.0.1.1/24 -fd00::1/64"
    code = error_of(change_addresses, spaces[0], b"v0", index, command)
    assert code == "ENODEV"
    assert texts(spaces[0], b"innocent") == [b"fd00::1/64"]
