"""Routes as ip-route(8) prints them: from the kernel's message to a line.

What the words of `Route` do not tell, such as several next hops or encapsulation, is in the
text alone. It is that of ip/iproute.c and ip/iproute_lwtunnel.c of iproute2, with single
blanks.
"""

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from netnsfs.linux.netlink import attributes
from netnsfs.linux.rtnetlink import (
    ADDRESS_BITS,
    RT_SCOPE_UNIVERSE,
    RTA_CACHE,
    RTA_CACHEINFO,
    RTA_DST,
    RTA_ENCAP,
    RTA_ENCAP_TYPE,
    RTA_FLOW,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_NEWDST,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_SRC,
    RTA_TABLE,
    RTA_TTL_PROPAGATE,
    RTA_VIA,
    RTMSG,
    RTN_UNICAST,
    RTNEXTHOP,
    RTNH_F_ONLINK,
    RTNH_F_PERVASIVE,
    RTPROT_BOOT,
)
from netnsfs.netns.route_words import (
    FAMILIES,
    FLAGS,
    PREFERENCES,
    TYPES,
    WRITTEN_TYPES,
    Gateway,
    Route,
    name_in,
    name_of,
    number_of,
)

# What `Route` says of a route, or what says nothing that a route was given.
_IN_ROUTE = {RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE, RTA_VIA}
_IN_ROUTE |= {RTA_PREF, RTA_CACHEINFO}
_TICKS = os.sysconf("SC_CLK_TCK")
_FAMILY_NAMES = {family: name for name, family in FAMILIES.items()}


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


class _Header(NamedTuple):
    """struct rtmsg."""

    family: int
    length: int
    source_length: int
    tos: int
    table: int
    protocol: int
    scope: int
    kind: int
    flags: int


def listed(body: bytes, devices: Mapping[int, bytes]) -> Listed:
    """What a message of the kernel tells of a route.

    Args:
        body: of the message.
        devices: names of the interfaces, by index.
    """
    header = _Header(*RTMSG.unpack_from(body))
    parsed = attributes(body, RTMSG.size)
    route = _route(header, parsed, devices)
    beyond = [*_words_beyond(header, parsed)]
    expires, error = RTA_CACHE.unpack_from(parsed.get(RTA_CACHEINFO, bytes(RTA_CACHE.size)))[2:]
    words = [
        *_destination_words(header, parsed),
        *beyond,
        *_next_hop_words(header.family, parsed),
        *_route_words(route, RTA_PRIORITY in parsed),
        *_flag_words(header.flags),
        *(_realms(parsed[RTA_FLOW]) if RTA_FLOW in parsed else []),
        *([b"expires", b"%dsec" % (expires / _TICKS)] if expires else []),
        *([b"error", b"%d" % error] if error else []),
        *_metric_words(parsed.get(RTA_METRICS, b"")),
        *([b"pref", name_in(PREFERENCES, parsed[RTA_PREF][0])] if RTA_PREF in parsed else []),
        *_propagation_words(parsed),
    ]
    text = b" ".join(words) + b"\n"
    for hop in _next_hops(parsed.get(RTA_MULTIPATH, b"")):
        text += b"\tnexthop " + b" ".join(_hop_words(header.family, hop, devices)) + b"\n"
    ordinary = header.kind in WRITTEN_TYPES.values() and not header.flags & RTNH_F_PERVASIVE
    complete = ordinary and not beyond and not expires and parsed.keys() <= _IN_ROUTE
    return Listed(route, text, complete)


def _route(header: _Header, parsed: Mapping[int, bytes], devices: Mapping[int, bytes]) -> Route:
    return Route(
        family=header.family,
        packed=parsed.get(RTA_DST, bytes(ADDRESS_BITS[header.family] // 8)),
        length=header.length,
        kind=header.kind,
        gateway=_gateway(header.family, parsed),
        device=_device(parsed, devices),
        source=parsed.get(RTA_PREFSRC, b""),
        metric=number_of(parsed.get(RTA_PRIORITY, b"")),
        protocol=header.protocol,
        scope=header.scope,
        onlink=bool(header.flags & RTNH_F_ONLINK),
        preference=number_of(parsed.get(RTA_PREF, b"")),
    )


def _gateway(family: int, parsed: Mapping[int, bytes]) -> Gateway | None:
    if RTA_VIA in parsed:
        return Gateway(number_of(parsed[RTA_VIA][:2]), parsed[RTA_VIA][2:])
    return Gateway(family, parsed[RTA_GATEWAY]) if RTA_GATEWAY in parsed else None


def _device(parsed: Mapping[int, bytes], devices: Mapping[int, bytes]) -> bytes:
    if RTA_OIF not in parsed:
        return b""
    index = number_of(parsed[RTA_OIF])
    # It came after the names were asked for. This is what if_indextoname() of ip-route(8) is
    # left with too.
    return devices.get(index, b"if%d" % index)


def _address(family: int, packed: bytes) -> bytes:
    return socket.inet_ntop(family, packed).encode()


def _prefix(family: int, packed: bytes, length: int) -> bytes:
    text = _address(family, packed)
    return text if length == ADDRESS_BITS[family] else b"%b/%d" % (text, length)


def _destination_words(header: _Header, parsed: Mapping[int, bytes]) -> Iterator[bytes]:
    if header.kind != RTN_UNICAST:
        yield name_in(TYPES, header.kind)
    if RTA_DST in parsed:
        yield _prefix(header.family, parsed[RTA_DST], header.length)
    else:
        yield b"default"


def _words_beyond(header: _Header, parsed: Mapping[int, bytes]) -> Iterator[bytes]:
    """What comes between the prefix and the gateway, and cannot be written."""
    family = header.family
    if RTA_SRC in parsed or header.source_length:
        source = parsed.get(RTA_SRC, bytes(ADDRESS_BITS[family] // 8))
        yield from (b"from", _prefix(family, source, header.source_length))
    if RTA_NH_ID in parsed:
        yield from (b"nhid", b"%d" % number_of(parsed[RTA_NH_ID]))
    if RTA_NEWDST in parsed:
        yield from (b"as", b"to", _address(family, parsed[RTA_NEWDST]))
    if RTA_ENCAP_TYPE in parsed:
        yield from _encapsulation_words(
            number_of(parsed[RTA_ENCAP_TYPE]), parsed.get(RTA_ENCAP, b"")
        )
    if header.tos:
        yield from (b"tos", name_of("rt_dsfield", header.tos))


def _route_words(route: Route, with_metric: bool) -> Iterator[bytes]:
    if route.device:
        yield from (b"dev", route.device)
    if route.protocol != RTPROT_BOOT:
        yield from (b"proto", name_of("rt_protos", route.protocol))
    if route.scope != RT_SCOPE_UNIVERSE:
        yield from (b"scope", name_of("rt_scopes", route.scope))
    if route.source:
        yield from (b"src", _address(route.family, route.source))
    if with_metric:
        yield from (b"metric", b"%d" % route.metric)


def _next_hop_words(family: int, parsed: Mapping[int, bytes]) -> Iterator[bytes]:
    if RTA_GATEWAY in parsed:
        yield from (b"via", _address(family, parsed[RTA_GATEWAY]))
    if RTA_VIA in parsed:
        other = number_of(parsed[RTA_VIA][:2])
        yield from (b"via", name_in(_FAMILY_NAMES, other), _address(other, parsed[RTA_VIA][2:]))


def _flag_words(flags: int) -> list[bytes]:
    return [word for bit, word in FLAGS.items() if flags & bit]


def _realms(value: bytes) -> list[bytes]:
    source, target = divmod(number_of(value), 1 << 16)
    name = name_of("rt_realms", target)
    if not source:
        return [b"realm", name]
    return [b"realms", name_of("rt_realms", source) + b"/" + name]


def _propagation_words(parsed: Mapping[int, bytes]) -> list[bytes]:
    if RTA_TTL_PROPAGATE not in parsed:
        return []
    # So it is spelled there.
    return [b"ttl-propogate", b"enabled" if parsed[RTA_TTL_PROPAGATE][0] else b"disabled"]


_METRIC_NAMES = (
    b"unspec lock mtu window rtt rttvar ssthresh cwnd advmss reordering hoplimit initcwnd"
    b" features rto_min initrwnd quickack congctl fastopen_no_cookie"
).split()
_LOCK = 1
# Round-trip times are kept in eighths and quarters of a millisecond.
_PARTS = {b"rtt": 8, b"rttvar": 4, b"rto_min": 1}


def _metric_words(value: bytes) -> Iterator[bytes]:
    parsed = attributes(value)
    locked = number_of(parsed.get(_LOCK, b""))
    for kind in range(_LOCK + 1, max([*parsed, locked.bit_length() - 1, _LOCK]) + 1):
        if kind not in parsed and not locked >> kind & 1:
            continue
        name = name_in(_METRIC_NAMES, kind)
        yield name
        if locked >> kind & 1:
            yield b"lock"
        yield _metric_text(name, parsed.get(kind, b""))


def _metric_text(name: bytes, value: bytes) -> bytes:
    if name == b"congctl":
        return value.rstrip(b"\0")
    number = number_of(value)
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
    while at + RTNEXTHOP.size <= len(value):
        length, flags, hops, index = RTNEXTHOP.unpack_from(value, at)
        parsed = attributes(value[at + RTNEXTHOP.size : at + length])
        yield flags, hops + 1, index, parsed
        at += length + 3 & ~3 or RTNEXTHOP.size


def _hop_words(
    family: int,
    hop: tuple[int, int, int, dict[int, bytes]],
    devices: Mapping[int, bytes],
) -> Iterator[bytes]:
    flags, weight, index, parsed = hop
    if RTA_ENCAP_TYPE in parsed:
        yield from _encapsulation_words(
            number_of(parsed[RTA_ENCAP_TYPE]), parsed.get(RTA_ENCAP, b"")
        )
    yield from _next_hop_words(family, parsed)
    if RTA_FLOW in parsed:
        yield from _realms(parsed[RTA_FLOW])
    yield from (b"dev", devices.get(index, b"if%d" % index), b"weight", b"%d" % weight)
    yield from _flag_words(flags)


# linux/lwtunnel.h, linux/seg6_iptunnel.h, linux/mpls_iptunnel.h
_ENCAPSULATIONS = b"none mpls ip ila ip6 seg6 bpf seg6local rpl ioam6 xfrm".split()
_SEGMENT_MODES = b"inline encap l2encap encap.red l2encap.red".split()
_TUNNEL_FLAGS = {0x4: b"key", 0x1: b"csum", 0x8: b"seq"}
_SEGMENTS_START = 12


def _encapsulation_words(kind: int, value: bytes) -> Iterator[bytes]:
    """What packets are wrapped in. Of the rarer kinds, the name alone is told."""
    name = name_in(_ENCAPSULATIONS, kind)
    yield from (b"encap", name)
    parsed = attributes(value)
    if name in (b"ip", b"ip6"):
        yield from _tunnel_words(socket.AF_INET if name == b"ip" else socket.AF_INET6, parsed)
    if name == b"mpls":
        stack = [entry for (entry,) in struct.iter_unpack("!I", parsed[1])]
        yield b"/".join(b"%d" % (entry >> 12) for entry in stack)
        yield from [b"ttl", b"%d" % parsed[2][0]] if 2 in parsed else []
    if name == b"seg6":
        yield from _segment_words(parsed[1])


def _tunnel_words(family: int, parsed: Mapping[int, bytes]) -> Iterator[bytes]:
    of_ip = family == socket.AF_INET
    # The numbers of the attributes are those of linux/lwtunnel.h, where destination comes
    # before source.
    if 1 in parsed:
        yield from (b"id", b"%d" % int.from_bytes(parsed[1]))
    for kind, word in ((3, b"src"), (2, b"dst")):
        if kind in parsed:
            yield from (word, _address(family, parsed[kind]))
    for kind, word in ((4, b"ttl" if of_ip else b"hoplimit"), (5, b"tos" if of_ip else b"tc")):
        if kind in parsed:
            yield from (word, b"%d" % parsed[kind][0])
    flags = int.from_bytes(parsed.get(6, b""))
    yield from (word for bit, word in _TUNNEL_FLAGS.items() if flags & bit)


def _segment_words(value: bytes) -> Iterator[bytes]:
    # struct seg6_iptunnel_encap: the mode, then the header of RFC 8754 with the segments
    # backwards.
    count = value[8] + 1
    segments = [
        value[at : at + 16] for at in range(_SEGMENTS_START, _SEGMENTS_START + 16 * count, 16)
    ]
    yield from (b"mode", name_in(_SEGMENT_MODES, number_of(value[:4])))
    yield from (b"segs", b"%d" % count, b"[")
    yield from (_address(socket.AF_INET6, segment) for segment in reversed(segments))
    yield b"]"
