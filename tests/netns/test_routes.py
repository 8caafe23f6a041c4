"""The main routing table, with ip-route(8) as the other side."""

import errno
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import RUN, error_of, ip

from netnsfs import linux
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import routes
from netnsfs.netns.interfaces import rtnetlink
from netnsfs.netns.route_words import parse

Batch = list[str]
FAMILIES = ("-4", "-6")


@pytest.fixture
def spaces() -> Iterator[tuple[int, int]]:
    """Descriptors of the namespaces a and b, each with three interfaces that have addresses."""
    with ExitStack() as stack:
        fds = []
        for name in ("a", "b"):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            fd = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
            fds.append(stack.enter_context(linux.closing_fd(fd)))
            batch(name, _interfaces())
        yield fds[0], fds[1]


def _interfaces() -> Batch:
    lines = ["link set lo up"]
    for number in range(3):
        lines += [
            f"link add e{number} type veth peer p{number}",
            f"link set p{number} up",
            f"link set e{number} up",
            f"addr add 10.0.{number}.1/24 dev e{number}",
            f"addr add fd00:{number}::1/64 dev e{number} nodad",
        ]
    return lines


def batch(name: str, lines: Batch, *options: str) -> None:
    subprocess.run(
        ["ip", "-n", name, *options, "-batch", "-"],
        input="\n".join([*lines, ""]).encode(),
        check="-force" not in options,
        capture_output=True,
    )


def plain(text: bytes) -> list[bytes]:
    """Lines with single blanks. Some interfaces have no carrier yet, which is told later."""
    lines = (b" ".join(line.split()) for line in text.splitlines())
    return sorted(line.replace(b" linkdown", b"") for line in lines if line)


def told_by_ip(name: str) -> list[bytes]:
    return plain(b"".join(ip("-n", name, way, "route").stdout for way in FAMILIES))


def flush(name: str) -> None:
    for way in FAMILIES:
        ip("-n", name, way, "route", "flush", "table", "main")


def with_sign(sign: bytes, text: bytes) -> bytes:
    return b"".join(sign + line + b"\n" for line in text.splitlines())


class RandomTable:
    """Routes as ip-route(8) takes them.

    Args:
        seed: the same makes the same table.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        # Of the main table, after a flush.
        self.lines = [
            line
            for number in range(3)
            for line in (
                f"route add 10.0.{number}.0/24 dev e{number} proto kernel scope link"
                f" src 10.0.{number}.1",
                f"route add fd00:{number}::/64 dev e{number} proto kernel metric 256",
            )
        ]
        self.lines += [self._line() for _ in range(self._random.randrange(1, 30))]
        # More than the words of `routes` can tell.
        self.others = [self._other() for _ in range(self._random.randrange(4))]

    def _some(self, *words: str) -> str:
        return self._random.choice(words)

    def _prefix(self, six: bool) -> str:
        if self._random.random() < 0.1:
            return "::/0" if six else "0.0.0.0/0"
        most = 128 if six else 32
        length = self._random.randrange(8, most + 1)
        bits = self._random.getrandbits(most) & ~(0xFF << most - 8)
        # Nothing that leads to a gateway.
        bits |= (0xFC if six else self._random.randrange(20, 90)) << most - 8
        packed = (bits >> most - length << most - length).to_bytes(most // 8)
        family = socket.AF_INET6 if six else socket.AF_INET
        text = socket.inet_ntop(family, packed)
        return text if length == most else f"{text}/{length}"

    def _scanner(self, six: bool) -> str:
        number = self._random.randrange(3)
        host = self._random.randrange(2, 250)
        gateway = f"fd00:{number}::{host:x}" if six else f"10.0.{number}.{host}"
        other = f"inet6 fd00:{number}::{host:x}"
        ways = [f"dev e{number}", f"via {gateway}", f"via {gateway} dev e{number}"]
        ways += [f"via {gateway} dev e{number} onlink"]
        ways += [] if six else [f"via {other} dev e{number}", f"dev e{number} scope host"]
        return self._random.choice(ways)

    def _line(self) -> str:
        six = self._random.random() < 0.5
        metric = f"metric {self._random.choice([1, 7, 100, 1024, 2**32 - 1])}"
        words = ["route add"]
        if self._random.random() < 0.2:
            kind = self._some("blackhole", "unreachable", "prohibit")
            words += [kind, self._prefix(six), self._some("", metric)]
        else:
            source = f"fd00:{self._random.randrange(3)}::1"
            source = source if six else f"10.0.{self._random.randrange(3)}.1"
            words += [self._prefix(six), self._scanner(six), self._some("", f"src {source}")]
            words += [self._some("", metric)]
            words += [self._some("", "pref high", "pref low") if six else ""]
        protocol = self._random.randrange(3, 256)
        return " ".join([*words, self._some("", f"proto {protocol}", "proto static")])

    def _other(self) -> str:
        prefix = f"99.{self._random.randrange(256)}.0.0/16"
        six = f"fd99:{self._random.randrange(9999)}::/32"
        hops = "nexthop via 10.0.0.9 weight 3 nexthop via 10.0.1.9 onlink dev e1"
        return self._some(
            f"route add {prefix} {hops}",
            f"route add {six} nexthop via fd00:0::9 nexthop via fd00:1::9 weight 7",
            f"route add {prefix} dev e0 tos 0x10",
            f"route add {prefix} dev e0 realm 4",
            f"route add {prefix} via 10.0.0.9 mtu lock 1400 rtt 50ms rto_min 2s",
            f"route add {prefix} dev e0 features ecn congctl reno initcwnd 10 hoplimit 3",
            f"route add throw {prefix}",
            f"route add broadcast {prefix} dev e0",
            f"route add multicast {prefix} dev e0",
            f"route add {six} via fd00:0::9 expires 10000",
            f"route add {six} from fd00::/16 dev e0",
            f"route add {prefix} encap ip id 5 dst 192.0.2.1 dev e0",
            f"route add {prefix} encap ip6 id 5 dst fd00::9 hoplimit 7 dev e0",
            f"route add {six} encap seg6 mode encap segs fd00::5,fd00::6 dev e0",
        )


def test_two_hundred_random_tables(spaces: tuple[int, int]) -> None:
    """What is read is what ip-route(8) prints, and makes the same table where there is none."""
    a, b = spaces
    for seed in range(200):
        table = RandomTable(seed)
        for name in ("a", "b"):
            flush(name)
        batch("a", table.lines, "-force")
        text = routes.show(a)
        assert plain(text) == told_by_ip("a"), seed
        assert len(text.splitlines()) > 6
        routes.change(b, with_sign(b"+", text))
        assert plain(routes.show(b)) == plain(text) == told_by_ip("b"), seed
        batch("a", table.others, "-force")
        # It counts down.
        more = [line.partition(b" expires")[0] for line in plain(routes.show(a))]
        assert more == [line.partition(b" expires")[0] for line in told_by_ip("a")], seed
        routes.change(b, with_sign(b"-", text))
        assert told_by_ip("b") == []


def test_a_table_beside_the_kernels_own_routes(spaces: tuple[int, int]) -> None:
    """The kernel makes routes with the addresses: these are there already."""
    a, b = spaces
    ip("-n", "a", "route", "add", "default", "via", "10.0.1.254")
    text = routes.show(a)
    assert b"10.0.0.0/24 dev e0 proto kernel scope link src 10.0.0.1" in plain(text)
    routes.change(b, with_sign(b"+", text))
    assert plain(routes.show(b)) == plain(text)


def test_several_networks_with_one_prefix(spaces: tuple[int, int]) -> None:
    """As the kernel makes them: of each interface, fe80::/64."""
    a, b = spaces
    flush("b")
    text = routes.show(a)
    assert text.count(b"fe80::/64") == 6
    routes.change(b, with_sign(b"+", text))
    assert plain(routes.show(b)) == plain(text)
    assert error_of(routes.change, b, b"-fe80::/64") == "EINVAL"
    routes.change(b, b"-fe80::/64 dev e1")
    assert routes.show(b).count(b"fe80::/64") == 5


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"", "EINVAL"),
        (b" \n", "EINVAL"),
        (b"+", "EINVAL"),
        (b"20.1.0.0/16 dev e0", "EINVAL"),
        (b"+20.1.0.0/16", "EINVAL"),
        (b"+20.1.0.0/16 dev", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 dev e1", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 via", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 via inet6", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 via inet6 10.0.0.2", "EINVAL"),
        (b"+20.1.0.0/16 via 10.0.0.2/24", "EINVAL"),
        (b"+20.1.0.1/16 dev e0", "EINVAL"),
        (b"+20.1/16 dev e0", "EINVAL"),
        (b"+20.1.0.0/33 dev e0", "EINVAL"),
        (b"+20.1.0.0/ dev e0", "EINVAL"),
        (b"+20.1.0.0/-1 dev e0", "EINVAL"),
        (b"+20.1.0.0/1\xb2 dev e0", "EINVAL"),
        (b"+fd09::/129 dev e0", "EINVAL"),
        (b"+\xff dev e0", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 metric", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 metric x", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 metric 4294967296", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 proto 256", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 proto nobody", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 scope nowhere-else", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 src fd00::1", "EINVAL"),
        (b"+fd09::/16 dev e0 src 10.0.0.1", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 nonsense", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 mtu 1400", "EINVAL"),
        (b"+20.1.0.0/16 dev e0 table 7", "EINVAL"),
        (b"+throw 20.1.0.0/16", "EINVAL"),
        (b"+local 20.1.0.0/16 dev e0", "EINVAL"),
        (b"+20.1.0.0/16 nexthop via 10.0.0.2 nexthop via 10.0.0.3", "EINVAL"),
        (b"+20.1.0.0/16 encap mpls 100 via 10.0.0.2", "EINVAL"),
        (b"+20.2.0.0/16 dev e0\n+20.1.0.0/16 nhid 7", "EINVAL"),
        (b"+20.2.0.0/16 dev e0\n+20.1.0.0/16 dev gone", "ENODEV"),
        (b"+20.2.0.0/16 dev e0 +20.3.0.0/16 dev e0", "EINVAL"),
        (b"+20.2.0.0/16 dev e0\n+20.2.0.0/16 dev e1", "EEXIST"),
        (b"+20.2.0.0/16 dev e0\n+default via 10.0.1.7", "EEXIST"),
        (b"+20.2.0.0/16 dev e0\n+unreachable default", "EEXIST"),
        (b"+20.2.0.0/16 dev e0\n-20.3.0.0/16", "ESRCH"),
        (b"-default\n-default", "ESRCH"),
        (b"-default via 10.0.0.3", "ESRCH"),
        (b"-default dev e1", "ESRCH"),
        (b"-default metric 5", "ESRCH"),
        (b"-blackhole default", "ESRCH"),
        (b"-30.0.0.0/8", "EINVAL"),
        (b"-40.0.0.0/8", "ENOTSUP"),
        (b"-default\n-41.0.0.0/8", "ENOTSUP"),
        # What only the kernel finds out.
        (b"+20.2.0.0/16 dev e0\n+20.3.0.0/16 via 192.0.2.1", "ENETUNREACH"),
        (b"-default\n+20.2.0.0/16 dev e0\n+20.3.0.0/16 via 192.0.2.1 dev e0", "ENETUNREACH"),
        (b"-default\n+default via 192.0.2.1 dev e0", "ENETUNREACH"),
        (b"-default\n-30.0.0.0/8 via 10.0.0.2\n+default via 10.0.0.3 src 1.1.1.1", "EINVAL"),
        (b"+fd09::/16 dev e0\n+fd08::/16 via 2001:db8::1", "EHOSTUNREACH"),
        (b"+20.1.0.0/16 dev off", "ENETDOWN"),
        (b"+blackhole 20.1.0.0/16 dev e0", "EINVAL"),
    ],
)
def test_a_write_that_fails_changes_nothing(
    spaces: tuple[int, int], command: bytes, code: str
) -> None:
    lines = ["default via 10.0.0.2", "30.0.0.0/8 via 10.0.0.2", "30.0.0.0/8 dev e1 metric 5"]
    lines += ["40.0.0.0/8 via 10.0.0.2 mtu 1400", "30.1.0.0/16 via 10.0.0.9 proto static"]
    lines += ["41.0.0.0/8 nexthop via 10.0.0.2 nexthop via 10.0.0.3"]
    batch("a", ["link add off type veth peer other", *(f"route add {line}" for line in lines)])
    before = told_by_ip("a")
    assert error_of(routes.change, spaces[0], command) == code
    assert told_by_ip("a") == before


def test_a_refusal_is_in_words(spaces: tuple[int, int]) -> None:
    """Where the kernel gives no reason of its own, the daemon does."""
    for command, words in (
        (b"+20.3.0.0/16 via 192.0.2.1", "Nexthop has invalid gateway"),
        (b"+20.3.0.0/16 nhid 7", "not '+20.3.0.0/16 nhid 7'"),
        (b"-20.3.0.0/16", "20.3.0.0/16: there is no such route"),
        (b"+20.3.0.0/16", "20.3.0.0/16: neither via nor dev is given"),
    ):
        with pytest.raises(OSError, match=words.replace("+", r"\+")):
            routes.change(spaces[0], command)


def test_ways_to_say_it(spaces: tuple[int, int]) -> None:
    a, _ = spaces
    flush("a")
    routes.change(a, b"+10.0.0.0/24 dev e0\n+fd00:0::/64 dev e0 metric 0\n")
    for command, told in {
        b"+default via 10.0.0.2": b"default via 10.0.0.2 dev e0",
        b"+0.0.0.0/0 dev e1 metric 9": b"default dev e1 scope link metric 9",
        b"+default via fd00::2": b"default via fd00::2 dev e0 metric 1024 pref medium",
        b"+::/0 dev e0 metric 9": b"default dev e0 metric 9 pref medium",
        b"+20.0.0.1 dev e0": b"20.0.0.1 dev e0 scope link",
        b"+\t20.0.0.2/32  dev e0 ": b"20.0.0.2 dev e0 scope link",
        b"+fd09::1:2/16 dev e0": b"fd09::/16 dev e0 metric 1024 pref medium",
        b"+30.0.0.0/8 via 1.2.3.4 dev e0 onlink": b"30.0.0.0/8 via 1.2.3.4 dev e0 onlink",
        b"+31.0.0.0/8 dev e0 linkdown dead": b"31.0.0.0/8 dev e0 scope link",
        b"+blackhole 20.0.0.0/8": b"blackhole 20.0.0.0/8",
        b"+unreachable fd08::/16": b"unreachable fd08::/16 dev lo metric 1024 pref medium",
        b"+prohibit default metric 7": b"prohibit default metric 7",
        b"+99.0.0.0/8 via inet6 fd00::2 dev e0": b"99.0.0.0/8 via inet6 fd00::2 dev e0",
    }.items():
        routes.change(a, command)
        assert told in plain(routes.show(a))
    routes.change(a, with_sign(b"-", routes.show(a)))
    assert routes.show(a) == b""
    assert told_by_ip("a") == []


def test_a_few_words_remove_the_only_one_that_fits(spaces: tuple[int, int]) -> None:
    a, _ = spaces
    command = b"+20.0.0.0/8 via 10.0.0.2\n+20.0.0.0/8 via 10.0.0.2 metric 5\n"
    for words in (b"20.0.0.0/8", b"20.0.0.0/8 via 10.0.0.2 dev e0"):
        routes.change(a, command)
        # What the line says is one of them, to the word; the other has a metric too.
        routes.change(a, b"-20.0.0.0/8 via 10.0.0.2 dev e0")
        assert b"20.0.0.0/8 via 10.0.0.2 dev e0 metric 5" in plain(routes.show(a))
        routes.change(a, b"-" + words)
        assert b"20.0.0.0/8" not in routes.show(a)


def test_one_takes_the_place_of_another(spaces: tuple[int, int]) -> None:
    a, _ = spaces
    routes.change(a, b"+default via 10.0.0.2\n+20.0.0.0/8 dev e0")
    command = b"-default\n+default via 20.0.0.2 dev e1\n-20.0.0.0/8\n+20.0.0.0/8 dev e1"
    routes.change(a, command)
    told = plain(routes.show(a))
    assert b"default via 20.0.0.2 dev e1" in told
    assert b"20.0.0.0/8 dev e1 scope link" in told
    assert sum(line.startswith(b"default") for line in told) == 1


def test_what_cancels_out_changes_nothing(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = spaces
    routes.change(a, b"+default via 10.0.0.2 dev e0")
    changes: list[object] = []
    monkeypatch.setattr(routes, "_put", lambda *arguments: changes.append(arguments))
    routes.change(a, b"+20.0.0.0/8 dev e0\n-20.0.0.0/8\n-default\n+default via 10.0.0.2 dev e0")
    assert changes == []


def test_routes_of_another_interface_are_taken_back(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ip("-n", "a", "route", "add", "30.0.0.0/8", "dev", "e1")
    outcome = routes._outcome

    def too_late(*arguments: Any) -> Any:
        ip("-n", "a", "link", "set", "e0", "name", "innocent")
        return outcome(*arguments)

    monkeypatch.setattr(routes, "_outcome", too_late)
    assert error_of(routes.change, spaces[0], b"+20.0.0.0/8 dev e0\n-30.0.0.0/8") == "ENODEV"
    told = told_by_ip("a")
    assert b"30.0.0.0/8 dev e1 scope link" in told
    assert not any(line.startswith(b"20.") for line in told)


def test_what_is_refused_after_a_removal_is_taken_back(
    spaces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    routes.change(
        spaces[0], b"+20.0.0.0/8 dev e0\n+30.0.0.0/8 via 20.0.0.1 dev e0 src 10.0.1.1"
    )
    before = told_by_ip("a")
    put = routes._put

    def refuse(route: RouteSocket, step: Any, indexes: dict[bytes, int]) -> None:
        if b"\x14\0\0\2" in (step.route.gateway or ()):
            raise OSError(errno.ENOMEM, "no room")
        put(route, step, indexes)

    monkeypatch.setattr(routes, "_put", refuse)
    command = b"-20.0.0.0/8\n-30.0.0.0/8\n+30.0.0.0/8 via 20.0.0.2 dev e0\n+20.0.0.0/8 dev e1"
    assert error_of(routes.change, spaces[0], command) == "ENOMEM"
    assert told_by_ip("a") == before


def test_a_namespace_without_routes() -> None:
    ip("netns", "add", "c")
    with linux.closing_fd(os.open(RUN / "c", os.O_RDONLY)) as fd:
        assert routes.show(fd) == b""
        assert error_of(routes.change, fd, b"-default") == "ESRCH"
        # Nothing but the kernel refuses what goes through an interface that is down.
        assert error_of(routes.change, fd, b"+10.0.0.0/8 dev lo") == "ENETDOWN"
        assert routes.show(fd) == b""
    ip("netns", "del", "c")


def test_next_hops_that_are_objects(spaces: tuple[int, int]) -> None:
    lines = [f"nexthop add id {number} via 10.0.0.{number} dev e0" for number in (7, 8)]
    lines += ["nexthop add id 9 group 7,3/8,2", "route add 20.0.0.0/8 nhid 7"]
    batch("a", [*lines, "route add 21.0.0.0/8 nhid 9"])
    text = routes.show(spaces[0])
    assert b"20.0.0.0/8 nhid 7 via 10.0.0.7 dev e0\n" in text
    assert plain(text) == told_by_ip("a")
    assert error_of(routes.change, spaces[0], b"-20.0.0.0/8") == "ENOTSUP"
    assert error_of(routes.change, spaces[0], b"-20.0.0.0/8 nhid 7") == "EINVAL"


def test_lines_of_any_bytes() -> None:
    """Each is taken, or refused with EINVAL."""
    choice = random.Random(1)
    words = b"+ - default via dev src metric blackhole 10.0.0.0/8 fd00::/8 e0 7 inet6".split()
    for _ in range(20_000):
        line = choice.choice([b"+", b"-", b""]) + b" ".join(
            choice.choice(words) for _ in range(choice.randrange(7))
        )
        if choice.random() < 0.3:
            at = choice.randrange(len(line) + 1)
            line = line[:at] + choice.randbytes(1) + line[at:]
        code = error_of(parse, line)
        assert code in ("", "EINVAL"), line


def test_an_interface_whose_name_is_a_word(spaces: tuple[int, int]) -> None:
    a, _ = spaces
    with rtnetlink(a) as route:
        linux.rename_interface(route.fileno(), b"e2", b"via")
    routes.change(a, b"+20.0.0.0/8 via 10.0.2.2 dev via")
    assert b"20.0.0.0/8 via 10.0.2.2 dev via" in plain(routes.show(a))
    routes.change(a, b"-20.0.0.0/8 dev via")
