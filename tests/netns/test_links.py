"""Interfaces by rtnetlink, with ip-link(8) and ip-address(8) as the other side."""

import errno
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import RUN, error_of, ip, wait_for

from netnsfs import linux
from netnsfs.jobs import on_own_thread, restoring_namespace
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import links
from netnsfs.netns.links import rtnetlink
from netnsfs.netns.nsid import ask_nsid


@pytest.fixture
def spaces() -> Iterator[tuple[int, int]]:
    """Descriptors of the namespaces a and b."""
    with ExitStack() as stack:
        fds = []
        for name in ("a", "b"):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            fd = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
            fds.append(stack.enter_context(linux.closing_fd(fd)))
        yield fds[0], fds[1]


def shown(name: str, *arguments: str) -> list[dict[str, Any]]:
    """What ip -j tells of a namespace."""
    told: list[dict[str, Any]] = json.loads(ip("-n", name, "-d", "-j", *arguments).stdout)
    return told


def names_in(name: str) -> set[object]:
    return {link["ifname"] for link in shown(name, "link")}


def texts(fd: int, name: bytes) -> list[bytes]:
    with rtnetlink(fd) as route:
        index = links.interface(route, name).ifindex
        return [address.text for address in links.addresses(route, index)]


def index_of(fd: int, name: bytes) -> int:
    with rtnetlink(fd) as route:
        return links.interface(route, name).ifindex


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
        links.join(fd, b"inner", spaces[0], b"outer")
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
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    ip("-n", "a", "link", "add", "br0", "type", "bridge")
    ip("-n", "a", "link", "set", "v0", "master", "br0", "up")
    ip("-n", "b", "link", "set", "v1", "up")
    with rtnetlink(spaces[0]) as route:
        found = {link.name.decode(): link for link in links.interfaces(route)}
        assert [link.ifindex for link in found.values()] == sorted(
            link.ifindex for link in found.values()
        )
        for told in shown("a", "link"):
            link = found.pop(str(told["ifname"]))
            assert links.interface(route, link.name) == link
            kind = told.get("linkinfo", {}).get("info_kind", told["link_type"])
            assert link.kind.decode() == kind
            assert link.ifindex == told["ifindex"]
            assert link.up == ("UP" in told["flags"])
            assert link.address.hex(":") == told["address"]
        assert found == {}
        assert links.interface(route, b"v0").master == links.interface(route, b"br0").ifindex
        assert error_of(links.interface, route, b"nothere") == "ENODEV"


def test_an_alternative_name_is_no_name(spaces: tuple[int, int]) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    ip("-n", "a", "link", "property", "add", "dev", "v0", "altname", "other")
    with rtnetlink(spaces[0]) as route:
        assert error_of(links.interface, route, b"other") == "ENODEV"
    assert error_of(links.remove, spaces[0], b"other") == "ENODEV"
    assert error_of(links.rename, spaces[0], b"other", b"x") == "ENODEV"
    assert error_of(links.move, spaces[0], b"other", spaces[1], b"x") == "ENODEV"
    assert "v0" in names_in("a")


def test_up_and_down(spaces: tuple[int, int]) -> None:
    links.set_up(spaces[0], b"lo", 1, True)
    assert "UP" in shown("a", "link", "show", "lo")[0]["flags"]
    links.set_up(spaces[0], b"lo", 1, False)
    assert "UP" not in shown("a", "link", "show", "lo")[0]["flags"]
    assert error_of(links.set_up, spaces[0], b"lo", 7, True) == "ENODEV"


def test_addresses_come_and_go(spaces: tuple[int, int]) -> None:
    change = links.change_addresses
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
    assert error_of(links.change_addresses, spaces[0], b"lo", 1, command) == code
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
    put = links._put

    def refuse(route: RouteSocket, index: int, adds: bool, address: links.Address) -> None:
        if address.text == b"10.0.0.3/24":
            assert texts(spaces[0], b"lo") == ([b"10.0.0.2/24"] if promotes else [])
            raise OSError(errno.ENOBUFS, "no room")
        put(route, index, adds, address)

    monkeypatch.setattr(links, "_put", refuse)
    command = b"-10.0.0.1/24 +10.0.0.3/24"
    assert error_of(links.change_addresses, spaces[0], b"lo", 1, command) == "ENOBUFS"
    assert shown("a", "addr") == before


def test_a_pair_has_an_end_here_and_one_there(spaces: tuple[int, int]) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    links.join(spaces[0], b"w0", spaces[0], b"w1")
    for name, ends in (("a", {"v0", "w0", "w1"}), ("b", {"v1"})):
        assert names_in(name) == ends | {"lo"}
        assert not any("UP" in link["flags"] for link in shown(name, "link"))
    with rtnetlink(spaces[0]) as a, rtnetlink(spaces[1]) as b:
        assert links.peer(a, b"w0") == (b"w1", None)
        assert links.peer(a, b"w1") == (b"w0", None)
        assert links.peer(a, b"v0") == (b"v1", ask_nsid(a, spaces[1]))
        assert links.peer(b, b"v1") == (b"v0", ask_nsid(b, spaces[0]))
        assert error_of(links.peer, a, b"lo") == "ENOENT"
    links.remove(spaces[1], b"v1")
    assert names_in("a") == {"lo", "w0", "w1"}


@pytest.mark.parametrize(("mine", "theirs"), [("v0", "new"), ("new", "v1"), ("w0", "w0")])
def test_a_pair_replaces_nothing(spaces: tuple[int, int], mine: str, theirs: str) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    target = spaces[0] if mine == theirs else spaces[1]
    code = error_of(links.join, spaces[0], mine.encode(), target, theirs.encode())
    assert code == "EEXIST"
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", "v1"}


BAD_NAMES = [
    (b"sixteen-bytes-ab", "ENAMETOOLONG"),
    (b"a/b", "EINVAL"),
    (b"a b", "EINVAL"),
    (b"a\xa0b", "EINVAL"),
    (b"a\nb", "EINVAL"),
    (b"a:b", "EINVAL"),
    (b".", "EINVAL"),
    (b"..", "EINVAL"),
    (b"", "EINVAL"),
    (b"%d", "EINVAL"),
    (b"eth%d", "EINVAL"),
    (b"100%", "EINVAL"),
]


@pytest.mark.parametrize(("name", "code"), BAD_NAMES)
def test_what_is_no_name(spaces: tuple[int, int], name: bytes, code: str) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    assert error_of(links.join, spaces[0], name, spaces[1], b"x") == code
    assert error_of(links.join, spaces[0], b"x", spaces[1], name) == code
    assert error_of(links.rename, spaces[0], b"v0", name) == code
    assert error_of(links.move, spaces[0], b"v0", spaces[1], name) == code
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", "v1"}


def test_a_name_is_refused_that_the_kernel_refuses(spaces: tuple[int, int]) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    names = [bytes([byte]) for byte in range(1, 256)]
    name = b"v0"
    with rtnetlink(spaces[0]) as route:
        for new in names:
            refused = error_of(links.require_valid_interface_name, new)
            told = error_of(linux.rename_interface, route.fileno(), name, new)
            assert refused == told, new
            name = name if told else new


def test_rename(spaces: tuple[int, int]) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    links.rename(spaces[0], b"v0", b"fifteen-bytes-a")
    assert names_in("a") == {"lo", "fifteen-bytes-a"}
    assert error_of(links.rename, spaces[0], b"fifteen-bytes-a", b"lo") == "EEXIST"
    assert error_of(links.rename, spaces[0], b"v0", b"v2") == "ENODEV"


@pytest.mark.parametrize("new", [b"v0", b"other"])
def test_move(spaces: tuple[int, int], new: bytes) -> None:
    links.join(spaces[0], b"v0", spaces[0], b"w0")
    links.move(spaces[0], b"v0", spaces[1], new)
    assert names_in("a") == {"lo", "w0"}
    assert names_in("b") == {"lo", new.decode()}
    links.move(spaces[1], new, spaces[0], b"v0")
    assert names_in("a") == {"lo", "v0", "w0"}
    assert error_of(links.move, spaces[0], b"gone", spaces[1], new) == "ENODEV"


@pytest.mark.parametrize("new", [b"lo", b"moved"])
def test_a_loopback_stays(spaces: tuple[int, int], new: bytes) -> None:
    assert error_of(links.move, spaces[0], b"lo", spaces[1], new) == "EINVAL"
    assert error_of(links.remove, spaces[0], b"lo") == "ENOTSUP"
    assert names_in("a") == names_in("b") == {"lo"}


@pytest.mark.parametrize("new", [b"v0", b"taken"])
def test_a_move_replaces_nothing(spaces: tuple[int, int], new: bytes) -> None:
    links.join(spaces[0], b"v0", spaces[1], new)
    assert error_of(links.move, spaces[0], b"v0", spaces[1], new) == "EEXIST"
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", new.decode()}


@pytest.mark.parametrize("new", [b"v0", b"taken", b"an-alternative"])
def test_a_refused_move_changes_nothing(spaces: tuple[int, int], new: bytes) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v0" if new == b"v0" else b"taken")
    if new == b"an-alternative":
        ip("-n", "b", "link", "property", "add", "dev", "taken", "altname", new)
    index = index_of(spaces[0], b"v0")
    links.set_up(spaces[0], b"v0", index, True)
    links.change_addresses(spaces[0], b"v0", index, b"+10.0.0.1/24")
    ip("-n", "a", "route", "add", "10.9.0.0/16", "via", "10.0.0.2")
    # The kernel tells so within a second.
    wait_for(lambda: "NO-CARRIER" in shown("a", "link", "show", "v0")[0]["flags"])
    before = shown("a", "link"), shown("a", "route")
    assert error_of(links.move, spaces[0], b"v0", spaces[1], new) == "EEXIST"
    assert (shown("a", "link"), shown("a", "route")) == before
    assert texts(spaces[0], b"v0") == [b"10.0.0.1/24"]


def test_a_move_goes_back_if_its_name_is_taken_at_the_last_moment(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"taken")
    monkeypatch.setattr(links, "_require_free", lambda route, name: None)
    assert error_of(links.move, spaces[0], b"v0", spaces[1], b"taken") == "EEXIST"
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", "taken"}


def test_a_move_goes_back_if_it_hit_another(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question for the index and the move, another interface got it."""
    links.join(spaces[0], b"v0", spaces[1], b"v1")

    def too_late(route: object, name: bytes) -> None:
        ip("-n", "a", "link", "set", "v0", "name", "innocent")

    monkeypatch.setattr(links, "_require_free", too_late)
    assert error_of(links.move, spaces[0], b"v0", spaces[1], b"new") == "ENODEV"
    assert names_in("a") == {"lo", "innocent"}
    assert names_in("b") == {"lo", "v1"}


def test_addresses_of_another_interface_are_taken_back(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    index = index_of(spaces[0], b"v0")
    ip("-n", "a", "addr", "add", "fd00::1/64", "dev", "v0")
    outcome = links._outcome

    def too_late(*arguments: Any) -> Any:
        ip("-n", "a", "link", "set", "v0", "name", "innocent")
        return outcome(*arguments)

    monkeypatch.setattr(links, "_outcome", too_late)
    command = b"+10.0.1.1/24 -fd00::1/64"
    code = error_of(links.change_addresses, spaces[0], b"v0", index, command)
    assert code == "ENODEV"
    assert texts(spaces[0], b"innocent") == [b"fd00::1/64"]


def test_what_was_born_elsewhere(spaces: tuple[int, int]) -> None:
    links.join(spaces[0], b"v0", spaces[1], b"v1")
    ip("-n", "a", "link", "add", "link", "v0", "name", "m0", "type", "macvlan")
    links.move(spaces[0], b"m0", spaces[1], b"m1")
    with rtnetlink(spaces[1]) as route:
        strangers = [link.name for link in links.interfaces(route) if link.born_elsewhere]
    assert strangers == [b"m1"]


def test_a_storm_of_moves_loses_nothing(spaces: tuple[int, int]) -> None:
    """Against `ip link set netns` and renames of both ends: each interface is in one place."""
    for number in range(4):
        links.join(spaces[0], b"v%d" % number, spaces[0], b"w%d" % number)
    macs = {str(link["address"]) for link in shown("a", "link")}
    end = time.monotonic() + 4
    errors: list[BaseException] = []
    done = [0]

    def ours(seed: int) -> None:
        choice = random.Random(seed)
        while time.monotonic() < end:
            here, there = choice.sample(spaces, 2)
            name = b"%c%d" % (choice.choice(b"vw"), choice.randrange(4))
            new = choice.choice([name, b"n%d" % choice.randrange(4)])
            try:
                links.move(here, choice.choice([name, new]), there, choice.choice([name, new]))
                done[0] += 1
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.EEXIST):
                    errors.append(error)
            except BaseException as error:
                errors.append(error)

    def theirs(seed: int) -> None:
        choice = random.Random(seed)
        while time.monotonic() < end:
            here, there = choice.sample(["a", "b"], 2)
            name = f"{choice.choice('vwn')}{choice.randrange(4)}"
            ip("-n", here, "link", "set", name, "netns", there, check=False)

    threads = [threading.Thread(target=ours, args=(seed,)) for seed in range(2)]
    threads += [threading.Thread(target=theirs, args=(seed,)) for seed in range(2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert done[0] > 10
    found = [str(link["address"]) for name in ("a", "b") for link in shown(name, "link")]
    assert sorted(found) == sorted([*macs, "00:00:00:00:00:00"])
