"""Which namespaces there are, which interfaces they have, and what connects them.

Each namespace is visited once, for its interfaces and addresses. In which namespace the other
end of a veth is, is guessed and then asked (`nsid.ask_nsid`): each end tells the other's index,
and the kernel tells the other's name and address. What has no such end, as a macvlan whose
lower interface is elsewhere, is looked for in all namespaces in the end.

`graphviz` draws it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns.addresses import Address, list_addresses
from netnsfs.netns.interfaces import Interface, link_peer, list_interfaces, rtnetlink
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsid import ask_nsid
from netnsfs.netns.sources import Source, each_source
from netnsfs.tree.coverage import Coverage


class SurveyedNamespace(NamedTuple):
    """What was seen in a namespace."""

    source: Source
    links: dict[int, Interface]
    addresses: dict[int, list[Address]]


class End(NamedTuple):
    """An interface, and the position of its namespace."""

    number: int
    link: Interface


class TopologyBuilder:
    """What was seen in all namespaces, and which of them know which by what number.

    Attributes:
        coverage: the visits to all namespaces.
        namespaces: in the order in which they were seen.
        by_nsid: from the position of a namespace and a number (nsid) to the position of the
            one that has that number there.
    """

    def __init__(self) -> None:
        self.coverage = Coverage()
        self.namespaces: list[SurveyedNamespace] = []
        self.by_nsid: dict[tuple[int, int], int] = {}
        # The namespaces that were told of such an other end: its index, the index that it is
        # tied to, its name and its address.
        self._ends: dict[tuple[int, int, bytes, bytes], list[int]] = defaultdict(list)

    def visit(self, source: Source) -> None:
        """Look into a namespace.

        Raises:
            OSError: it has ended, cannot be looked into, or takes too long.
        """
        with linux.closing_fd(source.open()) as fd, rtnetlink(fd) as route:
            route.until = self.coverage.until
            self._survey(source, route)

    def _survey(self, source: Source, route: RouteSocket) -> None:
        found = {link.ifindex: link for link in list_interfaces(route)}
        addresses: dict[int, list[Address]] = defaultdict(list)
        for address in list_addresses(route):
            addresses[address.ifindex].append(address)
        self.namespaces.append(SurveyedNamespace(source, found, addresses))
        number = len(self.namespaces) - 1
        for link in found.values():
            if link.link_nsid is not None:
                self._match_end(route, number, link, link.link_nsid)

    def _match_end(self, route: RouteSocket, number: int, link: Interface, nsid: int) -> None:
        if (number, nsid) in self.by_nsid:
            return
        # Names and addresses can be alike in many namesurveyeds, but this costs nothing. The
        # kernel is asked last, with an open namesurveyed (`_has_number`).
        for other in self._ends.get((link.ifindex, link.link, link.name, link.address), ()):
            if self._has_number(route, other, nsid):
                # What the other end calls this namesurveyed is known with that, and need not be
                # asked.
                back = self.namespaces[other].links[link.link].link_nsid
                self.by_nsid[number, nsid] = other
                if back is not None:
                    self.by_nsid[other, back] = number
                return
        # Its other end is still to be seen, if it is seen at all.
        far = link_peer(route, link)
        if far:
            self._ends[far.ifindex, link.ifindex, far.name, far.address].append(number)

    def _is_there(self, number: int, far: Interface | None) -> bool:
        """Whether a namesurveyed has an interface that looks like that one."""
        found = self.namespaces[number].links.get(far.ifindex) if far else None
        if far is None or found is None:
            return False
        return (found.name, found.address) == (far.name, far.address)

    def _has_number(self, route: RouteSocket, other: int, nsid: int) -> bool:
        try:
            with linux.closing_fd(self.namespaces[other].source.open()) as fd:
                return ask_nsid(route, fd) == nsid
        except OSError as error:
            linux.reraise_if_resource(error)
            return False

    def ask_about_the_rest(self) -> None:
        """Find the namesurveyeds of the numbers that are still unknown."""
        for number, surveyed in enumerate(self.namespaces):
            missing = {
                link.link_nsid: link
                for link in surveyed.links.values()
                if link.link_nsid is not None and (number, link.link_nsid) not in self.by_nsid
            }
            if not missing or self.coverage.is_over():
                continue
            try:
                with linux.closing_fd(surveyed.source.open()) as fd, rtnetlink(fd) as route:
                    self._ask(route, number, missing)
            except OSError as error:
                linux.reraise_if_resource(error)

    def _ask(self, route: RouteSocket, number: int, missing: dict[int, Interface]) -> None:
        for nsid, link in missing.items():
            far = link_peer(route, link)
            for other in range(len(self.namespaces)):
                if self._is_there(other, far) and self._has_number(route, other, nsid):
                    self.by_nsid[number, nsid] = other
                    break

    def tied_to(self, number: int, link: Interface) -> End | None:
        """What an interface is tied to, if that was seen."""
        if not link.link:
            return None
        other = number if link.link_nsid is None else self.by_nsid.get((number, link.link_nsid))
        found = None if other is None else self.namespaces[other].links.get(link.link)
        return None if other is None or found is None else End(other, found)


class Edge(NamedTuple):
    """Two interfaces that are tied together.

    Attributes:
        one: an end of a veth pair, or what stands on another interface.
        other: the other end, or that interface.
    """

    one: End
    other: End

    @property
    def numbers(self) -> tuple[int, int]:
        """The positions of their namespaces."""
        return self.one.number, self.other.number


class Topology:
    """What is drawn.

    Args:
        builder: what was seen.

    Attributes:
        namespaces: what was seen, in order.
        edges: what connects them.
        omitted: how many namespaces could not be looked into in time.
    """

    def __init__(self, builder: TopologyBuilder) -> None:
        self.namespaces = builder.namespaces
        self.omitted = builder.coverage.omitted
        self.edges = [*_edges(builder)]

    def select(self, around: int | None = None) -> set[int]:
        """The positions of the namespaces to draw: those with a name, and what these lead to.

        A machine has many without a name, of services and containers. Only one that something
        named is tied to is drawn.

        Args:
            around: inode number of a namespace; only what is connected with that is drawn.
        """
        pairs = [edge.numbers for edge in self.edges]
        first = {
            number
            for number, surveyed in enumerate(self.namespaces)
            if surveyed.source.name is not None or surveyed.source.inode == around
        }
        drawn = first | {end for pair in pairs if first.intersection(pair) for end in pair}
        if around is None:
            return drawn
        start = {number for number in drawn if self.namespaces[number].source.inode == around}
        return _connected(start, [pair for pair in pairs if drawn.issuperset(pair)])


def _connected(start: set[int], pairs: Iterable[tuple[int, int]]) -> set[int]:
    neighbours: dict[int, set[int]] = defaultdict(set)
    for one, other in pairs:
        neighbours[one].add(other)
        neighbours[other].add(one)
    found, left = set(start), [*start]
    while left:
        new = neighbours[left.pop()] - found
        found |= new
        left += new
    return found


def _edges(builder: TopologyBuilder) -> Iterator[Edge]:
    known: set[frozenset[tuple[int, int]]] = set()
    for number, surveyed in enumerate(builder.namespaces):
        for link in surveyed.links.values():
            other = builder.tied_to(number, link)
            if other is None:
                continue
            # Each end of a veth tells of the same edge.
            ends = frozenset({(number, link.ifindex), (other.number, other.link.ifindex)})
            if ends not in known:
                known.add(ends)
                yield Edge(End(number, link), other)


def survey(
    names: NamedNamespaces, reserved: bytes, shown: Callable[[bytes], bool] | None
) -> Topology:
    """Look into all namespaces.

    Args:
        names: the run directory.
        reserved: a name that is none.
        shown: whether a name is; None for all, and for namespaces without a name too.

    Raises:
        OSError: the machine lacks what it takes to look.
    """
    may_block()
    builder = TopologyBuilder()
    builder.coverage.visit_each(builder.visit, each_source(names, reserved, shown))
    builder.ask_about_the_rest()
    return Topology(builder)
