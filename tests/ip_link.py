"""Interfaces of a namespace, as ip(8) and as the package has them."""

import json
from typing import Any

from conftest import ip

from netnsfs.netns.addresses import list_addresses
from netnsfs.netns.interfaces import find_interface, rtnetlink


def shown(name: str, *arguments: str) -> list[dict[str, Any]]:
    """What ip -j tells of a namespace."""
    told: list[dict[str, Any]] = json.loads(ip("-n", name, "-d", "-j", *arguments).stdout)
    return told


def names_in(name: str) -> set[object]:
    return {link["ifname"] for link in shown(name, "link")}


def texts(fd: int, name: bytes) -> list[bytes]:
    with rtnetlink(fd) as route:
        index = find_interface(route, name).ifindex
        return [address.text for address in list_addresses(route, index)]


def index_of(fd: int, name: bytes) -> int:
    with rtnetlink(fd) as route:
        return find_interface(route, name).ifindex
