"""Routes in the words of ip-route(8) that are written: from a line to the kernel's request.

`Route` is what a line can say: prefix, gateway, interface, source address, metric, and what a
route is otherwise (`proto`, `scope`, `onlink`, `pref`). `route_text` makes the lines, and knows
what a route can have beyond these.
"""

import errno
import functools
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from netnsfs.linux.netlink import attribute
from netnsfs.linux.rtnetlink import (
    ADDRESS_BITS,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PREF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_VIA,
    RTMSG,
    RTN_BLACKHOLE,
    RTN_PROHIBIT,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
    RTNH_F_PERVASIVE,
    RTPROT_BOOT,
    RTPROT_KERNEL,
)

# The metric of a route of IPv6 that was given none (net/ipv6/route.c).
_USER_METRIC = 1024
TYPES = (
    b"none unicast local broadcast anycast multicast blackhole unreachable prohibit throw nat"
    b" xresolve"
).split()
WRITTEN_TYPES = {
    TYPES[kind]: kind for kind in (RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT)
}
PREFERENCES = {0: b"medium", 1: b"high", 3: b"low"}
FLAGS = {
    1: b"dead",
    RTNH_F_ONLINK: b"onlink",
    RTNH_F_PERVASIVE: b"pervasive",
    8: b"offload",
    64: b"trap",
    0x100: b"notify",
    16: b"linkdown",
    32: b"unresolved",
    0x4000: b"rt_offload",
    0x8000: b"rt_trap",
    0x20000000: b"rt_offload_failed",
}
# How a route is at the moment, which nobody can write.
_STATES = {*FLAGS.values()} - {b"onlink", b"pervasive"}
FAMILIES: dict[bytes, int] = {b"inet": socket.AF_INET, b"inet6": socket.AF_INET6}
_PROTOCOLS = {
    0: b"unspec",
    1: b"redirect",
    RTPROT_KERNEL: b"kernel",
    RTPROT_BOOT: b"boot",
    4: b"static",
    8: b"gated",
    9: b"ra",
    10: b"mrt",
    11: b"zebra",
    12: b"bird",
    13: b"dnrouted",
    14: b"xorp",
    15: b"ntk",
    16: b"dhcp",
    18: b"keepalived",
    42: b"babel",
    186: b"bgp",
    187: b"isis",
    188: b"ospf",
    189: b"rip",
    192: b"eigrp",
}
_SCOPES = {0: b"global", 200: b"site", RT_SCOPE_LINK: b"link", 254: b"host", 255: b"nowhere"}

EXPECTED = (
    "expected +ROUTE or -ROUTE, one a line: [blackhole|unreachable|prohibit] PREFIX"
    " [via GATEWAY] [dev IFACE] [src ADDRESS] [metric N]"
)


class Gateway(NamedTuple):
    """The next router; of another family than the route's, too."""

    family: int
    packed: bytes


class Route(NamedTuple):
    """What a line can say of a route.

    Attributes:
        family: AF_INET or AF_INET6.
        packed: the prefix, as on the wire.
        length: of the prefix, in bits.
        kind: RTN_UNICAST, or that it is blackhole, unreachable or prohibit.
        gateway: None if the destinations are on the link.
        device: name of the interface; empty for none.
        source: the preferred source address; empty for none.
        metric: the lower, the sooner it is taken.
        protocol: who made it.
        scope: how far the destinations are.
        onlink: the gateway need not be on a network of the interface.
        preference: of a router that advertises itself (RFC 4191).
    """

    family: int
    packed: bytes
    length: int
    kind: int = RTN_UNICAST
    gateway: Gateway | None = None
    device: bytes = b""
    source: bytes = b""
    metric: int = 0
    protocol: int = RTPROT_BOOT
    scope: int = RT_SCOPE_UNIVERSE
    onlink: bool = False
    preference: int = 0

    @property
    def prefix(self) -> str:
        """ADDRESS/LENGTH."""
        return f"{socket.inet_ntop(self.family, self.packed)}/{self.length}"

    def message(self, index: int) -> bytes:
        """What makes it, or removes it.

        Args:
            index: of the interface; 0 for none.
        """
        flags = RTNH_F_ONLINK if self.onlink else 0
        header = RTMSG.pack(
            *(self.family, self.length, 0, 0, RT_TABLE_MAIN),
            *(self.protocol, self.scope, self.kind, flags),
        )
        parsed: dict[int, bytes] = {RTA_DST: self.packed}
        if self.gateway and self.gateway.family == self.family:
            parsed[RTA_GATEWAY] = self.gateway.packed
        elif self.gateway:
            parsed[RTA_VIA] = (
                self.gateway.family.to_bytes(2, sys.byteorder) + self.gateway.packed
            )
        if index:
            parsed[RTA_OIF] = _packed_number(index)
        if self.source:
            parsed[RTA_PREFSRC] = self.source
        if self.metric:
            parsed[RTA_PRIORITY] = _packed_number(self.metric)
        if self.preference:
            parsed[RTA_PREF] = bytes([self.preference])
        return header + b"".join(attribute(kind, value) for kind, value in parsed.items())


class Asked(NamedTuple):
    """A line of a command.

    Attributes:
        adds: whether the route is to be added, or to be removed.
        route: with what is usual where the line says nothing.
        given: the fields of the route that the line tells of.
    """

    adds: bool
    route: Route
    given: frozenset[str]

    def means(self, route: Route) -> bool:
        """Whether that may be the route to remove."""
        return all(getattr(self.route, name) == getattr(route, name) for name in self.given)


def _packed_number(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def number_of(value: bytes) -> int:
    """The number in an attribute; 0 for an empty one."""
    return int.from_bytes(value, sys.byteorder)


# Names of numbers


def name_in(names: Mapping[int, bytes] | Sequence[bytes], number: int) -> bytes:
    """The name of a number, or the number where it has none."""
    try:
        return names[number]
    except LookupError:
        return b"%d" % number


_BUILT_IN = {"rt_protos": _PROTOCOLS, "rt_scopes": _SCOPES}


@functools.cache
def _names(file: str) -> dict[int, bytes]:
    """The names that ip-route(8) has for numbers: its own, and those of one of its files."""
    names = dict(_BUILT_IN.get(file, {}))
    for directory in ("/etc/iproute2", "/usr/share/iproute2"):
        try:
            with open(f"{directory}/{file}", "rb") as lines:
                names |= dict(_name_lines(lines.read()))
                break
        except FileNotFoundError:
            continue
    return names


def _name_lines(text: bytes) -> Iterator[tuple[int, bytes]]:
    for line in text.splitlines():
        words = line.partition(b"#")[0].split()
        if len(words) == 2:
            yield int(words[0], 0), words[1]


def name_of(file: str, number: int) -> bytes:
    """The name that ip-route(8) has for a number.

    Args:
        file: which of the files in its directory tells.
        number: of a protocol, scope or the like.
    """
    plain = b"0x%02x" % number if file == "rt_dsfield" else b"%d" % number
    return _names(file).get(number, plain)


# From a line to a route


def parse(line: bytes) -> Asked:
    """A line of a command.

    Raises:
        OSError: EINVAL if it is none.
    """
    try:
        return _parse(line[:1], line[1:].split())
    except (ValueError, LookupError, OSError):
        shown = line.decode("ascii", "backslashreplace")
        raise OSError(errno.EINVAL, f"{EXPECTED}; not {shown[:80]!r}") from None


def _parse(sign: bytes, words: list[bytes]) -> Asked:
    if sign not in (b"+", b"-"):
        raise ValueError(sign)
    kind = WRITTEN_TYPES[words.pop(0)] if words[0] in WRITTEN_TYPES else RTN_UNICAST
    prefix, parsed = words.pop(0), _take_words(words)
    family = _family(prefix, parsed)
    fields: dict[str, Any] = {"kind": kind}
    if b"via" in parsed:
        fields["gateway"] = _parse_gateway(parsed[b"via"])
    if b"src" in parsed:
        fields["source"] = socket.inet_pton(family, parsed[b"src"].decode("ascii"))
    if parsed.get(b"dev"):
        fields["device"] = parsed[b"dev"]
    for word, (name, read) in _NUMBERS.items():
        if word in parsed:
            fields[name] = read(parsed[word])
    if b"onlink" in parsed:
        fields["onlink"] = True
    given = frozenset({"family", "packed", "length", *fields})
    packed, length = _parse_prefix(family, prefix)
    asked = Route(family, packed, length)._replace(**fields, **_usual(family, fields))
    return Asked(sign == b"+", asked, given)


def _take_words(words: list[bytes]) -> dict[bytes, bytes]:
    """What is said by words with a value, each once, and by words that have none."""
    parsed: dict[bytes, bytes] = {}
    rest = iter(words)
    for word in rest:
        if word in parsed:
            raise ValueError(word)
        if word in _STATES or word == b"onlink":
            parsed[word] = b""
        elif word in _WITH_VALUE:
            value = next(rest, b"")
            if word == b"via" and value in FAMILIES:
                value += b" " + next(rest, b"")
            if not value:
                raise ValueError(word)
            parsed[word] = value
        else:
            raise ValueError(word)
    return parsed


def _family(prefix: bytes, parsed: Mapping[bytes, bytes]) -> int:
    if prefix != b"default":
        return socket.AF_INET6 if b":" in prefix else socket.AF_INET
    # Only lines about IPv6 tell `pref`. A gateway of the other family is told with its own.
    gateway = parsed.get(b"via", b"")
    of_six = b":" in gateway + parsed.get(b"src", b"") and b" " not in gateway
    return socket.AF_INET6 if of_six or b"pref" in parsed else socket.AF_INET


def _parse_prefix(family: int, text: bytes) -> tuple[bytes, int]:
    most = ADDRESS_BITS[family]
    if text == b"default":
        return bytes(most // 8), 0
    address, slash, digits = text.partition(b"/")
    packed = socket.inet_pton(family, address.decode("ascii"))
    length = _parse_number(digits, most) if slash else most
    network = int.from_bytes(packed) >> most - length << most - length
    masked = network.to_bytes(most // 8)
    # The kernel refuses it for IPv4. For IPv6 it takes the rest for zeros.
    if masked != packed and family == socket.AF_INET:
        raise ValueError(text)
    return masked, length


def _parse_gateway(text: bytes) -> Gateway:
    name, blank, address = text.rpartition(b" ")
    family = socket.AF_INET6 if b":" in address else socket.AF_INET
    if blank and FAMILIES[name] != family:
        raise ValueError(text)
    return Gateway(family, socket.inet_pton(family, address.decode("ascii")))


def _parse_number(text: bytes, most: int) -> int:
    if not text.isdigit() or len(text) > 10 or int(text) > most:
        raise ValueError(text)
    return int(text)


def _parse_name(file: str, text: bytes) -> int:
    for number, name in _names(file).items():
        if name == text:
            return number
    return _parse_number(text, 255)


def _parse_preference(text: bytes) -> int:
    return {name: number for number, name in PREFERENCES.items()}[text]


_NUMBERS: dict[bytes, tuple[str, Callable[[bytes], int]]] = {
    b"metric": ("metric", lambda text: _parse_number(text, 2**32 - 1)),
    b"proto": ("protocol", functools.partial(_parse_name, "rt_protos")),
    b"scope": ("scope", functools.partial(_parse_name, "rt_scopes")),
    b"pref": ("preference", _parse_preference),
}
# `error` tells what those get who send there, which follows from the kind of the route.
_WITH_VALUE = {b"via", b"dev", b"src", b"error", *_NUMBERS}


def _usual(family: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What ip-route(8), or the kernel, takes where a line says nothing."""
    if family == socket.AF_INET6:
        return {} if "metric" in fields else {"metric": _USER_METRIC}
    on_link = fields["kind"] == RTN_UNICAST and "gateway" not in fields
    return {"scope": RT_SCOPE_LINK} if on_link and "scope" not in fields else {}
