"""Namespaces, interfaces and what connects them, as a graph in the language of graphviz.

Each namespace is visited once, for its interfaces and addresses. In which namespace the other
end of a veth is, is guessed and then asked (`nsid.ask_nsid`): each end tells the other's index,
and the kernel tells the other's name and address. What has no such end, as a macvlan whose
lower interface is elsewhere, is looked for in all namespaces in the end.

Everything is sorted by names, so that two graphs can be compared. Names are written as in
`metrics`; what cannot be printed is written as in Python.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from netnsfs import linux
from netnsfs.config import one_line
from netnsfs.jobs import each_on_own_thread, may_block
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import tasks
from netnsfs.netns.addresses import list_addresses
from netnsfs.netns.interfaces import Interface, link_peer, list_interfaces, rtnetlink
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsid import ask_nsid
from netnsfs.netns.sources import Source, each_source


class Space(NamedTuple):
    """What was seen in a namespace."""

    source: Source
    links: dict[int, Interface]
    addresses: dict[int, list[str]]


class Survey:
    """What was seen in all namespaces, and which of them know which by what number.

    Attributes:
        spaces: in the order in which they were seen.
        neighbours: from the position of a namespace and a number (nsid) to the position of the
            one that has that number there.
    """

    def __init__(self) -> None:
        self.spaces: list[Space] = []
        self.neighbours: dict[tuple[int, int], int] = {}
        # The namespaces that were told of such an other end: its index, the index that it is
        # tied to, its name and its address.
        self._ends: dict[tuple[int, int, bytes, bytes], list[int]] = defaultdict(list)

    def visit(self, source: Source) -> None:
        """Look into a namespace, unless it has ended meanwhile: then it is not in the picture.

        Raises:
            OSError: the machine lacks what it takes to look.
        """
        try:
            with linux.closing_fd(source.open()) as fd, rtnetlink(fd) as route:
                self._look(source, route)
        except OSError as error:
            linux.reraise_if_resource(error)

    def _look(self, source: Source, route: RouteSocket) -> None:
        found = {link.ifindex: link for link in list_interfaces(route)}
        addresses: dict[int, list[str]] = defaultdict(list)
        for address in list_addresses(route):
            addresses[address.ifindex].append(address.text.decode())
        self.spaces.append(Space(source, found, addresses))
        number = len(self.spaces) - 1
        for link in found.values():
            if link.link_nsid is not None:
                self._match_end(route, number, link, link.link_nsid)

    def _match_end(self, route: RouteSocket, number: int, link: Interface, nsid: int) -> None:
        if (number, nsid) in self.neighbours:
            return
        # Names and addresses can be alike in many namespaces, but this costs nothing. The
        # kernel is asked last, with an open namespace (`_has_number`).
        for other in self._ends.get((link.ifindex, link.link, link.name, link.address), ()):
            if self._has_number(route, other, nsid):
                # What the other end calls this namespace is known with that, and need not be
                # asked.
                back = self.spaces[other].links[link.link].link_nsid
                self.neighbours[number, nsid] = other
                if back is not None:
                    self.neighbours[other, back] = number
                return
        # Its other end is still to be seen, if it is seen at all.
        far = link_peer(route, link)
        if far:
            self._ends[far.ifindex, link.ifindex, far.name, far.address].append(number)

    def _is_there(self, number: int, far: Interface | None) -> bool:
        """Whether a namespace has an interface that looks like that one."""
        found = self.spaces[number].links.get(far.ifindex) if far else None
        if far is None or found is None:
            return False
        return (found.name, found.address) == (far.name, far.address)

    def _has_number(self, route: RouteSocket, other: int, nsid: int) -> bool:
        try:
            with linux.closing_fd(self.spaces[other].source.open()) as fd:
                return ask_nsid(route, fd) == nsid
        except OSError as error:
            linux.reraise_if_resource(error)
            return False

    def ask_about_the_rest(self) -> None:
        """Find the namespaces of the numbers that are still unknown."""
        for number, space in enumerate(self.spaces):
            missing = {
                link.link_nsid: link
                for link in space.links.values()
                if link.link_nsid is not None
                and (number, link.link_nsid) not in self.neighbours
            }
            if not missing:
                continue
            try:
                with linux.closing_fd(space.source.open()) as fd, rtnetlink(fd) as route:
                    self._ask(route, number, missing)
            except OSError as error:
                linux.reraise_if_resource(error)

    def _ask(self, route: RouteSocket, number: int, missing: dict[int, Interface]) -> None:
        for nsid, link in missing.items():
            far = link_peer(route, link)
            for other in range(len(self.spaces)):
                if self._is_there(other, far) and self._has_number(route, other, nsid):
                    self.neighbours[number, nsid] = other
                    break

    def tied_to(self, number: int, link: Interface) -> tuple[int, Interface] | None:
        """The namespace and the interface that an interface is tied to, if it was seen."""
        if link.link_nsid is None:
            other: int | None = number
        else:
            other = self.neighbours.get((number, link.link_nsid))
        found = None if other is None else self.spaces[other].links.get(link.link)
        return None if other is None or found is None else (other, found)


def render(
    names: NamedNamespaces, reserved: bytes, shown: Callable[[bytes], bool] | None
) -> bytes:
    """The graph.

    Args:
        names: the run directory.
        reserved: a name that is none.
        shown: whether a name is; None for all, and for namespaces without a name too.

    Raises:
        OSError: the machine lacks what it takes to look.
    """
    may_block()
    survey = Survey()
    each_on_own_thread(survey.visit, each_source(names, reserved, shown))
    survey.ask_about_the_rest()
    return "".join(_graph(survey)).encode()


def _title(source: Source) -> str:
    if source.name is None:
        return f".netnsfs/unnamed/{source.inode}"
    return text_of(source.name)


def text_of(name: bytes) -> str:
    """A name as text, such that no two are the same."""
    text = name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else one_line(text)


def _quoted(text: str) -> str:
    """A string of the language, in which a backslash and an ampersand begin an escape."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return '"' + text.replace("\n", "\\n") + '"'


def _graph(survey: Survey) -> Iterator[str]:
    inside = tasks.counts()
    yield "graph netnsfs {\n    node [shape=box];\n"
    for space in survey.spaces:
        yield from _cluster(space, inside[space.source.inode])
    # Each end of a veth tells of the same edge.
    yield from sorted(set(_edges(survey)))
    yield "}\n"


def _cluster(space: Space, count: int) -> Iterator[str]:
    title = _title(space.source)
    members_inside = f"{count} member" if count == 1 else f"{count} members"
    label = f"{title}\ninode {space.source.inode}, {members_inside}"
    yield f"    subgraph {_quoted('cluster_' + title)} {{\n        label={_quoted(label)};\n"
    for link in sorted(space.links.values(), key=lambda link: link.name):
        state = f"{link.kind.decode()}, {'up' if link.up else 'down'}"
        lines = [text_of(link.name), state, *space.addresses.get(link.ifindex, ())]
        label = _quoted("\n".join(lines))
        color = "" if link.up else " color=gray"
        yield f"        {_node(space, link)} [label={label}{color}];\n"
    yield "    }\n"


def _node(space: Space, link: Interface) -> str:
    return _quoted(f"{_title(space.source)}/{text_of(link.name)}")


def _edges(survey: Survey) -> Iterator[str]:
    for number, space in enumerate(survey.spaces):
        for link in space.links.values():
            here = _node(space, link)
            master = space.links.get(link.master)
            if master:
                yield f'    {here} -- {_node(space, master)} [style=dashed label="master"];\n'
            tied = survey.tied_to(number, link) if link.link else None
            if not tied:
                continue
            there = _node(survey.spaces[tied[0]], tied[1])
            if link.kind == b"veth":
                first, second = sorted((here, there))
                yield f"    {first} -- {second};\n"
            else:
                yield f'    {here} -- {there} [style=dotted label="lower"];\n'
