"""The main routing table of a namespace: read and changed by rtnetlink(7).

Lines are those of ip-route(8) (`route_text`, `route_words`). A command changes all that it says
or nothing:

1. What the kernel is known to refuse is refused before anything is changed.
2. Routes are added before others are removed, for additions are more likely to fail; but where
   an addition takes the place of a removal, it has to wait for that. The kernel takes only a
   gateway that it finds on a link: what leads there is added first.
3. When the kernel refuses one, those before it are taken back.

An interface is meant by its name, and the kernel takes its index. So the names are looked up
before and after; if one is another's by then, all is taken back.
"""

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from netnsfs.jobs import commit
from netnsfs.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, RouteSocket, attribute
from netnsfs.linux.rtnetlink import (
    ADDRESS_BITS,
    RT_TABLE_MAIN,
    RTA_TABLE,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
    RTN_UNICAST,
    RTPROT_KERNEL,
    U32,
)
from netnsfs.netns.interfaces import list_interfaces, require_same, rtnetlink
from netnsfs.netns.route_text import Listed, listed
from netnsfs.netns.route_words import (
    EXPECTED,
    Asked,
    Route,
    parse,
)

_NLM_F_APPEND = 0x800
_ALONE = NLM_F_CREATE | NLM_F_EXCL
_BESIDE_OTHERS = NLM_F_CREATE | _NLM_F_APPEND


class _Step(NamedTuple):
    adds: bool
    route: Route
    flags: int = _ALONE


def show(fd: int) -> bytes:
    """The main table, IPv4 and then IPv6, as ip-route(8) prints it.

    Args:
        fd: a descriptor of the namespace.
    """
    with rtnetlink(fd) as route:
        return b"".join(line.text for line in _table(route, _devices(route)))


def change(fd: int, command: bytes) -> None:
    """Add and remove routes: all that is said, or nothing.

    Args:
        fd: a descriptor of the namespace.
        command: +ROUTE or -ROUTE, one a line.

    Raises:
        OSError: EINVAL for what is no such command, EEXIST or ESRCH for a route that is there
            or not there, EOPNOTSUPP for one that has more than these words tell, ENODEV for an
            interface that is not there, else the kernel's answer.
    """
    asked = [parse(line) for line in command.split(b"\n") if line.strip()]
    if not asked:
        raise OSError(errno.EINVAL, EXPECTED)
    with rtnetlink(fd) as route:
        devices = _devices(route)
        indexes = {name: index for index, name in devices.items()}
        todo = _ordered(*_outcome([*_table(route, devices)], asked))
        for step in todo:
            _require_way(step.route, indexes)
        commit()
        _carry_out(route, todo, indexes)


def _devices(route: RouteSocket) -> dict[int, bytes]:
    return {link.ifindex: link.name for link in list_interfaces(route)}


def _table(route: RouteSocket, devices: Mapping[int, bytes]) -> Iterator[Listed]:
    for family in ADDRESS_BITS:
        for body in _messages(route, family):
            # Where there is no IPv6, the kernel tells of the families that there are.
            if body[0] == family:
                yield listed(body, devices)


def _messages(route: RouteSocket, family: int) -> list[bytes]:
    header = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    question = header + attribute(RTA_TABLE, U32.pack(RT_TABLE_MAIN))
    try:
        return route.dump(RTM_GETROUTE, question, bytes)
    except FileNotFoundError:
        # The kernel makes the table when it gets its first route.
        return []


def _outcome(
    before: Sequence[Listed], asked: Sequence[Asked]
) -> tuple[list[Route], list[Route]]:
    """What is to be added and what removed in the end."""
    there = {line.route: None for line in before if line.complete}
    after = _by_prefix(there)
    others = _by_prefix(line.route for line in before if not line.complete)
    for line in asked:
        prefix = line.route.prefix
        if not line.adds:
            after[prefix].remove(_find(line, after[prefix], others[prefix]))
        elif not _is_there(line.route, after[prefix]):
            after[prefix].append(line.route)
    left = {route: None for routes in after.values() for route in routes}
    added = [route for route in left if route not in there]
    return added, [route for route in there if route not in left]


def _by_prefix(routes: Iterable[Route]) -> defaultdict[str, list[Route]]:
    found = defaultdict(list)
    for route in routes:
        found[route.prefix].append(route)
    return found


def _find(line: Asked, routes: Sequence[Route], others: Sequence[Route]) -> Route:
    """The route that a line removes: what says the same, or else the only one that it fits."""
    meant = [route for route in routes if line.means(route)]
    if line.route in meant:
        return line.route
    unclear = [route for route in others if line.means(route)]
    if len(meant) + len(unclear) > 1:
        message = f"{line.route.prefix}: several routes are like that; say more of it"
        raise OSError(errno.EINVAL, message)
    if unclear:
        message = "its route has more than these words tell; use ip -n NAME route"
        raise OSError(errno.EOPNOTSUPP, f"{line.route.prefix}: {message}")
    if not meant:
        raise ProcessLookupError(errno.ESRCH, f"{line.route.prefix}: there is no such route")
    return meant[0]


def _is_there(route: Route, routes: Sequence[Route]) -> bool:
    """Whether the kernel has made a route already.

    It makes those of its own (`proto kernel`) with addresses, several with one metric too.

    Raises:
        OSError: EEXIST for any other route that is there.
    """
    if route.protocol == RTPROT_KERNEL:
        return route in routes
    if any(other.metric == route.metric for other in routes):
        message = "there is a route with this prefix and metric"
        raise FileExistsError(errno.EEXIST, f"{route.prefix}: {message}")
    return False


def _ordered(added: Sequence[Route], removed: Sequence[Route]) -> list[_Step]:
    leaving = {(route.prefix, route.metric) for route in removed}
    late = {route for route in added if (route.prefix, route.metric) in leaving}
    # What leads to a gateway may be among those that have to wait.
    if any(_rank(route) == 0 for route in late):
        late.update(route for route in added if _rank(route))
    added, removed = sorted(added, key=_rank), sorted(removed, key=_rank)
    return [
        *(_addition(route) for route in added if route not in late),
        *(_Step(False, route) for route in reversed(removed)),
        *(_addition(route) for route in added if route in late),
    ]


def _rank(route: Route) -> int:
    """What leads to gateways comes first; what could lead away from them, last."""
    if route.kind != RTN_UNICAST:
        return 2
    return 1 if route.gateway else 0


def _addition(route: Route) -> _Step:
    return _Step(True, route, _BESIDE_OTHERS if route.protocol == RTPROT_KERNEL else _ALONE)


def _require_way(route: Route, indexes: Mapping[bytes, int]) -> None:
    if route.device and route.device not in indexes:
        raise OSError(errno.ENODEV, "there is no such interface", route.device)
    if route.kind == RTN_UNICAST and not route.device and not route.gateway:
        raise OSError(errno.EINVAL, f"{route.prefix}: neither via nor dev is given")


def _carry_out(route: RouteSocket, todo: Sequence[_Step], indexes: Mapping[bytes, int]) -> None:
    done: list[_Step] = []
    try:
        for step in todo:
            _put(route, step, indexes)
            done.append(step)
        for name in {step.route.device for step in todo} - {b""}:
            require_same(route, name, indexes[name])
    except OSError:
        for step in reversed(done):
            with suppress(OSError):
                _put(route, _Step(not step.adds, step.route, _BESIDE_OTHERS), indexes)
        raise


def _put(route: RouteSocket, step: _Step, indexes: Mapping[bytes, int]) -> None:
    message = step.route.message(indexes.get(step.route.device, 0))
    if step.adds:
        route.change(RTM_NEWROUTE, message, step.flags)
    else:
        route.change(RTM_DELROUTE, message)
