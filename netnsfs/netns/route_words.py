"""Routes in the words of ip-route(8): from the kernel's message to a line, and back.

`Route` is what a line can say in the words that are written too: prefix, gateway, interface,
source address, metric, and what a route is otherwise (`proto`, `scope`, `onlink`, `pref`). What
a route has beyond these, such as several next hops, is in its text alone, which is what
ip-route(8) prints (ip/iproute.c of iproute2), with single blanks.

Constants are those of linux/rtnetlink.h.
"""

import errno
import functools
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from netnsfs.linux.netlink import attribute, attributes

LENGTHS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}
"""The length of a host's prefix, by address family."""

UNICAST, BLACKHOLE, UNREACHABLE, PROHIBIT = 1, 6, 7, 8
BOOT, KERNEL = 3, 2
_UNIVERSE, _LINK_SCOPE = 0, 253
MAIN_TABLE = 254
# The metric of a route of IPv6 that was given none (net/ipv6/route.c).
_USER_METRIC = 1024
_ONLINK = 4
# struct rtmsg: family, length of the prefix and of the source prefix, type of service, table,
# protocol, scope, type, flags.
MESSAGE = struct.Struct("=8BI")
# struct rtnexthop: length, flags, hops, index.
_NEXT_HOP = struct.Struct("=HBBi")
# struct rta_cacheinfo up to rta_error: the third number is the time left, the fourth an error.
_CACHE = struct.Struct("=IIiI")
_TICKS = os.sysconf("SC_CLK_TCK")

_DST, _SRC, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH = 1, 2, 4, 5, 6, 7, 8, 9
_FLOW, _CACHEINFO, TABLE, _VIA, _NEWDST, _PREF = 11, 12, 15, 18, 19, 20
_ENCAP_TYPE, _ENCAP, _TTL_PROPAGATE, _NH_ID = 21, 22, 26, 30
# What `Route` says of a route, or what says nothing that a route was given.
_IN_ROUTE = {_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, TABLE, _VIA, _PREF, _CACHEINFO}

_TYPES = (
    b"none unicast local broadcast anycast multicast blackhole unreachable prohibit throw nat"
    b" xresolve"
).split()
_WRITTEN_TYPES = {_TYPES[kind]: kind for kind in (UNICAST, BLACKHOLE, UNREACHABLE, PROHIBIT)}
_PREFERENCES = {0: b"medium", 1: b"high", 3: b"low"}
_FLAGS = {
    1: b"dead",
    _ONLINK: b"onlink",
    2: b"pervasive",
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
_STATES = {*_FLAGS.values()} - {b"onlink", b"pervasive"}
_FAMILIES: dict[bytes, int] = {b"inet": socket.AF_INET, b"inet6": socket.AF_INET6}
_FAMILY_NAMES = {family: name for name, family in _FAMILIES.items()}
_PROTOCOLS = {
    0: b"unspec",
    1: b"redirect",
    KERNEL: b"kernel",
    BOOT: b"boot",
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
_SCOPES = {0: b"global", 200: b"site", _LINK_SCOPE: b"link", 254: b"host", 255: b"nowhere"}

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
    kind: int = UNICAST
    gateway: Gateway | None = None
    device: bytes = b""
    source: bytes = b""
    metric: int = 0
    protocol: int = BOOT
    scope: int = _UNIVERSE
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
        flags = _ONLINK if self.onlink else 0
        header = MESSAGE.pack(
            *(self.family, self.length, 0, 0, MAIN_TABLE),
            *(self.protocol, self.scope, self.kind, flags),
        )
        told: dict[int, bytes] = {_DST: self.packed}
        if self.gateway and self.gateway.family == self.family:
            told[_GATEWAY] = self.gateway.packed
        elif self.gateway:
            told[_VIA] = self.gateway.family.to_bytes(2, sys.byteorder) + self.gateway.packed
        if index:
            told[_OIF] = _packed_number(index)
        if self.source:
            told[_PREFSRC] = self.source
        if self.metric:
            told[_PRIORITY] = _packed_number(self.metric)
        if self.preference:
            told[_PREF] = bytes([self.preference])
        return header + b"".join(attribute(kind, value) for kind, value in told.items())


class Listed(NamedTuple):
    """A route of a table.

    Attributes:
        route: what these words say of it.
        text: a line as ip-route(8) prints it, or several if there are several next hops.
        complete: the words of `Route` say all there is to say.
    """

    route: Route
    text: bytes
    complete: bool


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


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


# From the kernel's message to a line


def listed(body: bytes, devices: Mapping[int, bytes]) -> Listed:
    """What a message of the kernel tells of a route.

    Args:
        body: of the message.
        devices: names of the interfaces, by index.
    """
    family, length, source_length, tos, _, protocol, scope, kind, flags = MESSAGE.unpack_from(
        body
    )
    told = attributes(body, MESSAGE.size)
    route = Route(
        family=family,
        packed=told.get(_DST, bytes(LENGTHS[family] // 8)),
        length=length,
        kind=kind,
        gateway=_gateway(family, told),
        device=_device(told, devices),
        source=told.get(_PREFSRC, b""),
        metric=_number(told.get(_PRIORITY, b"")),
        protocol=protocol,
        scope=scope,
        onlink=bool(flags & _ONLINK),
        preference=_number(told.get(_PREF, b"")),
    )
    beyond = [*_words_beyond(family, source_length, tos, told)]
    expires, error = _CACHE.unpack_from(told.get(_CACHEINFO, bytes(_CACHE.size)))[2:]
    words = [
        *([] if kind == UNICAST else [_named(_TYPES, kind)]),
        *([_prefix(family, told[_DST], length)] if _DST in told else [b"default"]),
        *beyond,
        *_next_hop_words(family, told),
        *([b"dev", route.device] if route.device else []),
        *([] if protocol == BOOT else [b"proto", _find_name("rt_protos", protocol)]),
        *([] if scope == _UNIVERSE else [b"scope", _find_name("rt_scopes", scope)]),
        *([b"src", _address(family, route.source)] if route.source else []),
        *([b"metric", b"%d" % route.metric] if _PRIORITY in told else []),
        *_flag_words(flags),
        *(_realms(told[_FLOW]) if _FLOW in told else []),
        *([b"expires", b"%dsec" % (expires / _TICKS)] if expires else []),
        *([b"error", b"%d" % error] if error else []),
        *_metric_words(told.get(_METRICS, b"")),
        *([b"pref", _named(_PREFERENCES, told[_PREF][0])] if _PREF in told else []),
        *_propagation_words(told),
    ]
    text = b" ".join(words) + b"\n"
    for hop in _next_hops(told.get(_MULTIPATH, b"")):
        text += b"\tnexthop " + b" ".join(_hop_words(family, hop, devices)) + b"\n"
    ordinary = kind in _WRITTEN_TYPES.values() and not flags & 2
    complete = ordinary and not beyond and not expires and set(told) <= _IN_ROUTE
    return Listed(route, text, complete)


def _gateway(family: int, told: Mapping[int, bytes]) -> Gateway | None:
    if _VIA in told:
        return Gateway(_number(told[_VIA][:2]), told[_VIA][2:])
    return Gateway(family, told[_GATEWAY]) if _GATEWAY in told else None


def _device(told: Mapping[int, bytes], devices: Mapping[int, bytes]) -> bytes:
    if _OIF not in told:
        return b""
    index = _number(told[_OIF])
    # It came after the names were asked for. This is what if_indextoname() of ip-route(8) is
    # left with too.
    return devices.get(index, b"if%d" % index)


def _address(family: int, packed: bytes) -> bytes:
    return socket.inet_ntop(family, packed).encode()


def _prefix(family: int, packed: bytes, length: int) -> bytes:
    text = _address(family, packed)
    return text if length == LENGTHS[family] else b"%b/%d" % (text, length)


def _words_beyond(
    family: int, source_length: int, tos: int, told: Mapping[int, bytes]
) -> Iterator[bytes]:
    """What comes between the prefix and the gateway, and cannot be written."""
    if _SRC in told or source_length:
        source = told.get(_SRC, bytes(LENGTHS[family] // 8))
        yield from (b"from", _prefix(family, source, source_length))
    if _NH_ID in told:
        yield from (b"nhid", b"%d" % _number(told[_NH_ID]))
    if _NEWDST in told:
        yield from (b"as", b"to", _address(family, told[_NEWDST]))
    if _ENCAP_TYPE in told:
        yield from _encapsulation_words(_number(told[_ENCAP_TYPE]), told.get(_ENCAP, b""))
    if tos:
        yield from (b"tos", _find_name("rt_dsfield", tos))


def _next_hop_words(family: int, told: Mapping[int, bytes]) -> Iterator[bytes]:
    if _GATEWAY in told:
        yield from (b"via", _address(family, told[_GATEWAY]))
    if _VIA in told:
        other = _number(told[_VIA][:2])
        yield from (b"via", _named(_FAMILY_NAMES, other), _address(other, told[_VIA][2:]))


def _flag_words(flags: int) -> list[bytes]:
    return [word for bit, word in _FLAGS.items() if flags & bit]


def _realms(value: bytes) -> list[bytes]:
    source, target = divmod(_number(value), 1 << 16)
    name = _find_name("rt_realms", target)
    if not source:
        return [b"realm", name]
    return [b"realms", _find_name("rt_realms", source) + b"/" + name]


def _propagation_words(told: Mapping[int, bytes]) -> list[bytes]:
    if _TTL_PROPAGATE not in told:
        return []
    # So it is spelled there.
    return [b"ttl-propogate", b"enabled" if told[_TTL_PROPAGATE][0] else b"disabled"]


_METRIC_NAMES = (
    b"unspec lock mtu window rtt rttvar ssthresh cwnd advmss reordering hoplimit initcwnd"
    b" features rto_min initrwnd quickack congctl fastopen_no_cookie"
).split()
_LOCK = 1
# Round-trip times are kept in eighths and quarters of a millisecond.
_PARTS = {b"rtt": 8, b"rttvar": 4, b"rto_min": 1}


def _metric_words(value: bytes) -> Iterator[bytes]:
    told = attributes(value)
    locked = _number(told.get(_LOCK, b""))
    for kind in range(_LOCK + 1, max([*told, locked.bit_length() - 1, _LOCK]) + 1):
        if kind not in told and not locked >> kind & 1:
            continue
        name = _named(_METRIC_NAMES, kind)
        yield name
        if locked >> kind & 1:
            yield b"lock"
        yield _metric_text(name, told.get(kind, b""))


def _metric_text(name: bytes, value: bytes) -> bytes:
    if name == b"congctl":
        return value.rstrip(b"\0")
    number = _number(value)
    if name in _PARTS:
        milliseconds = number // _PARTS[name]
        seconds = f"{milliseconds / 1000:g}s".encode()
        return seconds if milliseconds >= 1000 else b"%dms" % milliseconds
    if name == b"features":
        return b"ecn" if number == 1 else b"%#x" % number
    return b"%d" % number


def _next_hops(value: bytes) -> Iterator[tuple[int, int, int, dict[int, bytes]]]:
    """Flags, weight, index and attributes of each."""
    at = 0
    while at + _NEXT_HOP.size <= len(value):
        length, flags, hops, index = _NEXT_HOP.unpack_from(value, at)
        told = attributes(value[at + _NEXT_HOP.size : at + length])
        yield flags, hops + 1, index, told
        at += length + 3 & ~3 or _NEXT_HOP.size


def _hop_words(
    family: int,
    hop: tuple[int, int, int, dict[int, bytes]],
    devices: Mapping[int, bytes],
) -> Iterator[bytes]:
    flags, weight, index, told = hop
    if _ENCAP_TYPE in told:
        yield from _encapsulation_words(_number(told[_ENCAP_TYPE]), told.get(_ENCAP, b""))
    yield from _next_hop_words(family, told)
    if _FLOW in told:
        yield from _realms(told[_FLOW])
    yield from (b"dev", devices.get(index, b"if%d" % index), b"weight", b"%d" % weight)
    yield from _flag_words(flags)


# linux/lwtunnel.h, linux/seg6_iptunnel.h, linux/mpls_iptunnel.h
_ENCAPSULATIONS = b"none mpls ip ila ip6 seg6 bpf seg6local rpl ioam6 xfrm".split()
_SEGMENT_MODES = b"inline encap l2encap encap.red l2encap.red".split()
_TUNNEL_FLAGS = {0x4: b"key", 0x1: b"csum", 0x8: b"seq"}
_SEGMENTS_START = 12


def _encapsulation_words(kind: int, value: bytes) -> Iterator[bytes]:
    """What packets are wrapped in. Of the rarer kinds, the name alone is told."""
    name = _named(_ENCAPSULATIONS, kind)
    yield from (b"encap", name)
    told = attributes(value)
    if name in (b"ip", b"ip6"):
        yield from _tunnel_words(socket.AF_INET if name == b"ip" else socket.AF_INET6, told)
    if name == b"mpls":
        stack = [entry for (entry,) in struct.iter_unpack("!I", told[1])]
        yield b"/".join(b"%d" % (entry >> 12) for entry in stack)
        yield from [b"ttl", b"%d" % told[2][0]] if 2 in told else []
    if name == b"seg6":
        yield from _segment_words(told[1])


def _tunnel_words(family: int, told: Mapping[int, bytes]) -> Iterator[bytes]:
    of_ip = family == socket.AF_INET
    # The numbers of the attributes are those of linux/lwtunnel.h, where destination comes
    # before source.
    if 1 in told:
        yield from (b"id", b"%d" % int.from_bytes(told[1]))
    for kind, word in ((3, b"src"), (2, b"dst")):
        if kind in told:
            yield from (word, _address(family, told[kind]))
    for kind, word in ((4, b"ttl" if of_ip else b"hoplimit"), (5, b"tos" if of_ip else b"tc")):
        if kind in told:
            yield from (word, b"%d" % told[kind][0])
    flags = int.from_bytes(told.get(6, b""))
    yield from (word for bit, word in _TUNNEL_FLAGS.items() if flags & bit)


def _segment_words(value: bytes) -> Iterator[bytes]:
    # struct seg6_iptunnel_encap: the mode, then the header of RFC 8754 with the segments
    # backwards.
    count = value[8] + 1
    segments = [
        value[at : at + 16] for at in range(_SEGMENTS_START, _SEGMENTS_START + 16 * count, 16)
    ]
    yield from (b"mode", _named(_SEGMENT_MODES, _number(value[:4])))
    yield from (b"segs", b"%d" % count, b"[")
    yield from (_address(socket.AF_INET6, segment) for segment in reversed(segments))
    yield b"]"


def _named(names: Mapping[int, bytes] | list[bytes], number: int) -> bytes:
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


def _find_name(file: str, number: int) -> bytes:
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
    kind = _WRITTEN_TYPES[words.pop(0)] if words[0] in _WRITTEN_TYPES else UNICAST
    prefix, told = words.pop(0), _take_words(words)
    family = _family(prefix, told)
    fields: dict[str, Any] = {"kind": kind}
    if b"via" in told:
        fields["gateway"] = _parse_gateway(told[b"via"])
    if b"src" in told:
        fields["source"] = socket.inet_pton(family, told[b"src"].decode("ascii"))
    if told.get(b"dev"):
        fields["device"] = told[b"dev"]
    for word, (name, read) in _NUMBERS.items():
        if word in told:
            fields[name] = read(told[word])
    if b"onlink" in told:
        fields["onlink"] = True
    given = frozenset({"family", "packed", "length", *fields})
    packed, length = _parse_prefix(family, prefix)
    asked = Route(family, packed, length)._replace(**fields, **_usual(family, fields))
    return Asked(sign == b"+", asked, given)


def _take_words(words: list[bytes]) -> dict[bytes, bytes]:
    """What is said by words with a value, each once, and by words that have none."""
    told: dict[bytes, bytes] = {}
    rest = iter(words)
    for word in rest:
        if word in told:
            raise ValueError(word)
        if word in _STATES or word == b"onlink":
            told[word] = b""
        elif word in _WITH_VALUE:
            value = next(rest, b"")
            if word == b"via" and value in _FAMILIES:
                value += b" " + next(rest, b"")
            if not value:
                raise ValueError(word)
            told[word] = value
        else:
            raise ValueError(word)
    return told


def _family(prefix: bytes, told: Mapping[bytes, bytes]) -> int:
    if prefix != b"default":
        return socket.AF_INET6 if b":" in prefix else socket.AF_INET
    # Only lines about IPv6 tell `pref`. A gateway of the other family is told with its own.
    gateway = told.get(b"via", b"")
    of_six = b":" in gateway + told.get(b"src", b"") and b" " not in gateway
    return socket.AF_INET6 if of_six or b"pref" in told else socket.AF_INET


def _parse_prefix(family: int, text: bytes) -> tuple[bytes, int]:
    most = LENGTHS[family]
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
    if blank and _FAMILIES[name] != family:
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
    return {name: number for number, name in _PREFERENCES.items()}[text]


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
    on_link = fields["kind"] == UNICAST and "gateway" not in fields
    return {"scope": _LINK_SCOPE} if on_link and "scope" not in fields else {}
