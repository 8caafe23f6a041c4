"""A topology as a graph in the language of graphviz, for dot(1), neato(1), fdp(1) and sfdp(1).

A namespace is one node: a table with its interfaces as rows, so that every program keeps them
together. A row has a port, where the edges of the interface end, and stands below that of its
master. What would only fill the picture is left out: loopback devices and link-local addresses
that nobody has set, and devices that are there because their module is loaded.

dot(1) puts what an edge leads to right of where it comes from. So an edge comes from the
namespace that has more neighbours. But of the namespaces that have this one neighbour, every
other one stands left of it, which halves the height of fifty namespaces on one bridge.

Everything is sorted by names, so that two graphs can be compared. Names are written as in
`metrics`; what cannot be printed is written as in Python.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote_from_bytes

from netnsfs.config import one_line
from netnsfs.netns import tasks
from netnsfs.netns.addresses import Address
from netnsfs.netns.interfaces import Interface
from netnsfs.tree.topology import Edge, End, SurveyedNamespace, Topology

# Of the devices that the kernel makes when their module is loaded, in each namespace or in the
# initial one: tunl0, sit0, ifb0 and so on.
_MADE_BY_MODULES = frozenset(
    b"ipip sit gre gretap erspan vti vti6 ip6tnl ip6gre ip6gretap ifb dummy bond".split()
)
_PAIRS = (b"veth", b"netkit")
_LOOPBACK_ADDRESSES = (b"127.0.0.1/8", b"::1/128")
_LINK_LOCAL = bytes.fromhex("fe80000000000000")
# What people choose is shorter than what is made of a hardware address, or at random.
_MAX_CHOSEN = 0xFFFF

_HEADER = """graph netnsfs {
    rankdir=LR; ranksep=1; nodesep=0.15; splines=true;
    overlap=false; repulsiveforce=3; sep="+12"; esep="+4";
    node [shape=plain fontname="Helvetica,sans-serif" fontsize=11];
"""
_TABLE = '<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="2" COLOR="gray50">'
_SPACE = "&#160;"

_Path = tuple[End, End]


def draw(topology: Topology, around: int | None = None) -> bytes:
    """The graph.

    Args:
        topology: what was seen.
        around: inode number of a namespace: only what is connected with that. None for all.
    """
    return "".join(_lines(topology, topology.select(around))).encode()


def _lines(topology: Topology, numbers: set[int]) -> Iterator[str]:
    namespaces, inside = topology.namespaces, tasks.counts()
    order = sorted(numbers, key=lambda number: _sort_key(namespaces[number]))
    edges = [edge for edge in topology.edges if numbers.issuperset(edge.numbers)]
    tied: dict[int, set[int]] = defaultdict(set)
    for number, link in (end for edge in edges for end in edge):
        tied[number].add(link.ifindex)
    yield _HEADER
    for number in order:
        surveyed = namespaces[number]
        yield _node(surveyed, tied[number], inside[surveyed.source.inode])
    for one, other in _directed([edge for edge in edges if _is_drawn(edge)], order):
        names = [f"{_id(namespaces[end.number])}:{_port(end.link)}" for end in (one, other)]
        style = "" if _is_pair(one, other) else " [style=dotted]"
        yield f"    {' -- '.join(names)}{style};\n"
    if topology.omitted:
        yield f'    label="namespaces left out: {topology.omitted}";\n'
    yield "}\n"


def _sort_key(surveyed: SurveyedNamespace) -> tuple[bool, list[tuple[int, str]]]:
    return surveyed.source.name is None, _natural(_title(surveyed))


def _natural(text: str) -> list[tuple[int, str]]:
    """For sorting: numbers as numbers."""
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


# Edges


def _is_drawn(edge: Edge) -> bool:
    """Whether it is, rather than told in a row: what an interface of this namespace is on."""
    return edge.one.number != edge.other.number or _is_pair(*edge)


def _is_pair(one: End, other: End) -> bool:
    """Whether they are the ends of a pair, rather than one on the other."""
    return one.link.kind == other.link.kind and one.link.kind in _PAIRS


def _directed(edges: Sequence[Edge], order: Sequence[int]) -> list[_Path]:
    """Each from left to right, sorted."""
    rank = {number: position for position, number in enumerate(order)}
    neighbours: dict[int, set[int]] = defaultdict(set)
    for one, other in (edge.numbers for edge in edges):
        neighbours[one] |= {other} - {one}
        neighbours[other] |= {one} - {other}

    def key(end: End) -> tuple[int, int, list[tuple[int, str]]]:
        name = _natural(text_of(end.link.name))
        return -len(neighbours[end.number]), rank[end.number], name

    paths = [(min(edge, key=key), max(edge, key=key)) for edge in edges]
    paths.sort(key=lambda path: (key(path[0]), key(path[1])))
    left = _to_the_left(paths, neighbours)
    return [(other, one) if other.number in left else (one, other) for one, other in paths]


def _to_the_left(paths: Sequence[_Path], neighbours: Mapping[int, set[int]]) -> set[int]:
    """Every other one of the namespaces whose only neighbour has several."""
    only: dict[int, list[int]] = defaultdict(list)
    for one, other in ((path[0].number, path[1].number) for path in paths):
        if len(neighbours[one]) > 1 and len(neighbours[other]) == 1:
            only[one] += [] if other in only[one] else [other]
    return {number for numbers in only.values() for number in numbers[::2]}


# Nodes


def _node(surveyed: SurveyedNamespace, tied: set[int], count: int) -> str:
    members = f"{count} member" if count == 1 else f"{count} members"
    note = _quoted(f"inode {surveyed.source.inode}, {members}")
    title = f"<B>{_html(_title(surveyed))}</B>"
    if count:
        title += f'{_SPACE * 2}<FONT COLOR="gray40">{members}</FONT>'
    header = f'<TR><TD BGCOLOR="#e3ecf7" ALIGN="LEFT">{title}</TD></TR>'
    rows = "".join(_row(surveyed, link, depth) for depth, link in _shown(surveyed, tied))
    return f"    {_id(surveyed)} [label=<{_TABLE}{header}{rows}</TABLE>> tooltip={note}];\n"


def _shown(surveyed: SurveyedNamespace, tied: set[int]) -> list[tuple[int, Interface]]:
    """The interfaces to draw, each with the number of masters that it is below."""
    masters = {link.master for link in surveyed.links.values()}
    below: dict[int, list[Interface]] = defaultdict(list)
    for link in sorted(surveyed.links.values(), key=lambda link: _natural(text_of(link.name))):
        is_used = link.ifindex in tied | masters or _addresses(surveyed, link)
        if is_used or not _is_unused(link):
            below[link.master if link.master in surveyed.links else 0].append(link)

    def walk(master: int, depth: int) -> Iterator[tuple[int, Interface]]:
        for link in below.pop(master, ()):
            yield depth, link
            yield from walk(link.ifindex, depth + 1)

    return [*walk(0, 0)]


def _is_unused(link: Interface) -> bool:
    """Whether it is a device that nobody has made, or nobody uses."""
    return link.kind == b"loopback" or (link.kind in _MADE_BY_MODULES and not link.up)


def _addresses(surveyed: SurveyedNamespace, link: Interface) -> list[str]:
    found = surveyed.addresses.get(link.ifindex, ())
    return [address.text.decode() for address in found if not _is_made_by_the_kernel(address)]


def _is_made_by_the_kernel(address: Address) -> bool:
    if address.packed.startswith(_LINK_LOCAL):
        return int.from_bytes(address.packed[8:]) > _MAX_CHOSEN
    return address.text in _LOOPBACK_ADDRESSES


def _row(surveyed: SurveyedNamespace, link: Interface, depth: int) -> str:
    notes = " ".join(_notes(surveyed, link))
    text = _SPACE * 4 * depth + _html(text_of(link.name))
    text += f'{_SPACE}<FONT COLOR="gray40">{notes}</FONT>' if notes else ""
    lines = f"<BR/>{_SPACE * 4}".join(_addresses(surveyed, link))
    text += f"{_SPACE * 2}{lines}" if lines else ""
    if not link.up:
        text = f'<FONT COLOR="gray40">{text}</FONT>'
    return f'<TR><TD PORT={_port(link)} ALIGN="LEFT" BALIGN="LEFT">{text}</TD></TR>'


def _notes(surveyed: SurveyedNamespace, link: Interface) -> Iterator[str]:
    if link.kind not in (b"veth", b"physical", b"loopback"):
        yield _html(text_of(link.kind))
    lower = surveyed.links.get(link.link) if link.link_nsid is None else None
    if lower and link.kind not in _PAIRS:
        yield f"on {_html(text_of(lower.name))}"
    if not link.up:
        yield "down"


# Texts


def text_of(name: bytes) -> str:
    """A name as text, such that no two are the same."""
    text = name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else one_line(text)


def _title(surveyed: SurveyedNamespace) -> str:
    """The path of the namespace's directory, from the mount point on."""
    inode, name, _ = surveyed.source
    if name is not None:
        return text_of(name)
    if inode == tasks.initial_namespace():
        return ".netnsfs/init"
    return f".netnsfs/unnamed/{inode}"


def _id(surveyed: SurveyedNamespace) -> str:
    return _quoted(_title(surveyed))


def _port(link: Interface) -> str:
    # In quotes, a colon would end it, and in a label an ampersand would begin a character.
    return f'"{quote_from_bytes(link.name, safe="")}"'


def _quoted(text: str) -> str:
    """A string of the language, in which a backslash and an ampersand begin an escape."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return f'"{text}"'


# In a label, a backslash begins an escape too, and one blank is made of several.
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\\": "\\\\", " ": _SPACE}
_ESCAPED = str.maketrans(_ESCAPES)


def _html(text: str) -> str:
    """A text in a label that looks like HTML."""
    return text.translate(_ESCAPED)
