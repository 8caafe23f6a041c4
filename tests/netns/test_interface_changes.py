"""Changes of interfaces by rtnetlink, with ip-link(8) as the other side."""

import errno
import random
import threading
import time
from functools import partial
from typing import Any

import pytest
from conftest import error_of, ip, wait_for
from ip_link import index_of, names_in, shown, texts

from netnsfs.netns import interface_changes
from netnsfs.netns.addresses import change_addresses
from netnsfs.netns.interface_changes import (
    create_bridge,
    create_veth_pair,
    delete,
    leave_master,
    move,
    rename,
    set_address,
    set_master,
    set_up,
)
from netnsfs.netns.interfaces import find_interface, rtnetlink


def test_an_alternative_name_is_no_name(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    ip("-n", "a", "link", "property", "add", "dev", "v0", "altname", "other")
    with rtnetlink(spaces[0]) as route:
        assert error_of(find_interface, route, b"other") == "ENODEV"
    assert error_of(delete, spaces[0], b"other") == "ENODEV"
    assert error_of(rename, spaces[0], b"other", b"x") == "ENODEV"
    assert error_of(move, spaces[0], b"other", spaces[1], b"x") == "ENODEV"
    assert "v0" in names_in("a")


def test_up_and_down(spaces: tuple[int, int]) -> None:
    set_up(spaces[0], b"lo", 1, True)
    assert "UP" in shown("a", "link", "show", "lo")[0]["flags"]
    set_up(spaces[0], b"lo", 1, False)
    assert "UP" not in shown("a", "link", "show", "lo")[0]["flags"]
    assert error_of(set_up, spaces[0], b"lo", 7, True) == "ENODEV"


@pytest.mark.parametrize(("mine", "theirs"), [("v0", "new"), ("new", "v1"), ("w0", "w0")])
def test_a_pair_replaces_nothing(spaces: tuple[int, int], mine: str, theirs: str) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    target = spaces[0] if mine == theirs else spaces[1]
    code = error_of(create_veth_pair, spaces[0], mine.encode(), target, theirs.encode())
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
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    assert error_of(create_veth_pair, spaces[0], name, spaces[1], b"x") == code
    assert error_of(create_veth_pair, spaces[0], b"x", spaces[1], name) == code
    assert error_of(rename, spaces[0], b"v0", name) == code
    assert error_of(move, spaces[0], b"v0", spaces[1], name) == code
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", "v1"}


def test_rename(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    rename(spaces[0], b"v0", b"fifteen-bytes-a")
    assert names_in("a") == {"lo", "fifteen-bytes-a"}
    assert error_of(rename, spaces[0], b"fifteen-bytes-a", b"lo") == "EEXIST"
    assert error_of(rename, spaces[0], b"v0", b"v2") == "ENODEV"


@pytest.mark.parametrize("new", [b"v0", b"other"])
def test_move(spaces: tuple[int, int], new: bytes) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[0], b"w0")
    move(spaces[0], b"v0", spaces[1], new)
    assert names_in("a") == {"lo", "w0"}
    assert names_in("b") == {"lo", new.decode()}
    move(spaces[1], new, spaces[0], b"v0")
    assert names_in("a") == {"lo", "v0", "w0"}
    assert error_of(move, spaces[0], b"gone", spaces[1], new) == "ENODEV"


@pytest.mark.parametrize("new", [b"lo", b"moved"])
def test_a_loopback_stays(spaces: tuple[int, int], new: bytes) -> None:
    assert error_of(move, spaces[0], b"lo", spaces[1], new) == "EINVAL"
    assert error_of(delete, spaces[0], b"lo") == "ENOTSUP"
    assert names_in("a") == names_in("b") == {"lo"}


@pytest.mark.parametrize("new", [b"v0", b"taken"])
def test_a_move_replaces_nothing(spaces: tuple[int, int], new: bytes) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], new)
    assert error_of(move, spaces[0], b"v0", spaces[1], new) == "EEXIST"
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", new.decode()}


@pytest.mark.parametrize("new", [b"v0", b"taken", b"an-alternative"])
def test_a_refused_move_changes_nothing(spaces: tuple[int, int], new: bytes) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v0" if new == b"v0" else b"taken")
    if new == b"an-alternative":
        ip("-n", "b", "link", "property", "add", "dev", "taken", "altname", new)
    index = index_of(spaces[0], b"v0")
    set_up(spaces[0], b"v0", index, True)
    change_addresses(spaces[0], b"v0", index, b"+10.0.0.1/24")
    ip("-n", "a", "route", "add", "10.9.0.0/16", "via", "10.0.0.2")
    # The kernel tells so within a second.
    wait_for(lambda: "NO-CARRIER" in shown("a", "link", "show", "v0")[0]["flags"])
    before = shown("a", "link"), shown("a", "route")
    assert error_of(move, spaces[0], b"v0", spaces[1], new) == "EEXIST"
    assert (shown("a", "link"), shown("a", "route")) == before
    assert texts(spaces[0], b"v0") == [b"10.0.0.1/24"]


def test_a_move_goes_back_if_its_name_is_taken_at_the_last_moment(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"taken")
    monkeypatch.setattr(interface_changes, "_require_free", lambda route, name: None)
    assert error_of(move, spaces[0], b"v0", spaces[1], b"taken") == "EEXIST"
    assert names_in("a") == {"lo", "v0"}
    assert names_in("b") == {"lo", "taken"}


def test_a_move_goes_back_if_it_hit_another(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question for the index and the move, another interface got it."""
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")

    def too_late(route: object, name: bytes) -> None:
        ip("-n", "a", "link", "set", "v0", "name", "innocent")

    monkeypatch.setattr(interface_changes, "_require_free", too_late)
    assert error_of(move, spaces[0], b"v0", spaces[1], b"new") == "ENODEV"
    assert names_in("a") == {"lo", "innocent"}
    assert names_in("b") == {"lo", "v1"}


def test_a_storm_of_moves_loses_nothing(spaces: tuple[int, int]) -> None:
    """Against `ip link set netns` and renames of both ends: each interface is in one place."""
    for number in range(4):
        create_veth_pair(spaces[0], b"v%d" % number, spaces[0], b"w%d" % number)
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
                move(here, choice.choice([name, new]), there, choice.choice([name, new]))
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


def masters(name: str) -> dict[object, object]:
    return {link["ifname"]: link.get("master") for link in shown(name, "link")}


def test_ports_of_bridges(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    for bridge in (b"br0", b"br1"):
        create_bridge(spaces[0], bridge)
        assert error_of(create_bridge, spaces[0], bridge) == "EEXIST"
    index = index_of(spaces[0], b"v0")
    assert error_of(leave_master, spaces[0], b"v0", index) == "ENOENT"
    set_master(spaces[0], b"v0", index, b"br0")
    assert error_of(set_master, spaces[0], b"v0", index, b"br1") == "EEXIST"
    assert masters("a")["v0"] == "br0"
    for function in (partial(set_master, master=b"br1"), leave_master):
        assert error_of(function, spaces[0], b"v0", index + 100) == "ENODEV"
        assert error_of(function, spaces[0], b"other", index) == "ENODEV"
    leave_master(spaces[0], b"v0", index)
    assert masters("a")["v0"] is None
    assert error_of(set_master, spaces[0], b"v0", index, b"lo") == "ENOTSUP"
    assert error_of(set_master, spaces[0], b"v0", index, b"nothere") == "ENOENT"


@pytest.mark.parametrize("renamed", ["v0", "br0"])
def test_a_port_goes_back_if_another_was_hit(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch, renamed: str
) -> None:
    """At the last moment, the port or the bridge got another name."""
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    create_bridge(spaces[0], b"br0")
    index = index_of(spaces[0], b"v0")
    change = interface_changes._change_master

    def too_late(*arguments: Any) -> None:
        if arguments[2]:
            ip("-n", "a", "link", "set", renamed, "name", "innocent")
        change(*arguments)

    monkeypatch.setattr(interface_changes, "_change_master", too_late)
    assert error_of(set_master, spaces[0], b"v0", index, b"br0") == "ENODEV"
    assert set(masters("a").values()) == {None}


def test_a_hardware_address(spaces: tuple[int, int]) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    index = index_of(spaces[0], b"v0")
    set_address(spaces[0], b"v0", index, b"02:00:00:00:00:0a\n")
    assert shown("a", "link", "show", "v0")[0]["address"] == "02:00:00:00:00:0a"
    for text in (b"02:00:00:00:00", b"02:00:00:00:00:0b:0c", b"0200:00:00:00:0b", b""):
        assert error_of(set_address, spaces[0], b"v0", index, text) == "EINVAL"
    assert error_of(set_address, spaces[0], b"v0", index + 9, b"02:00:00:00:00:0b") == "ENODEV"
    assert shown("a", "link", "show", "v0")[0]["address"] == "02:00:00:00:00:0a"


@pytest.mark.parametrize("made_again", [False, True])
def test_a_bridge_that_goes_at_the_last_moment_is_absent(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    create_veth_pair(spaces[0], b"v0", spaces[1], b"v1")
    create_bridge(spaces[0], b"br0")
    index = index_of(spaces[0], b"v0")
    change = interface_changes._change_master

    def too_late(*arguments: Any) -> None:
        ip("-n", "a", "link", "del", "br0")
        if made_again:
            create_bridge(spaces[0], b"br0")
        change(*arguments)

    monkeypatch.setattr(interface_changes, "_change_master", too_late)
    assert error_of(set_master, spaces[0], b"v0", index, b"br0") == "ENOENT"
    assert masters("a")["v0"] is None
