"""Counters of every namespace, or of every one with a name, in the Prometheus text format.

The label `netns` is the name of a namespace, or the path of its directory if it has none.
(Kubernetes has a label `namespace` of its own.) `netnsfs_namespace_info` tells which namespace
that is, and the control group that its members have in common, to join on.

One pass over the processes of the machine counts the members of all namespaces, and one
thread goes from namespace to namespace, asks for its interfaces and reads a few small files.

Why not prometheus_client, which the tests read and compare the text with: it looks at each
label of each sample again, and so needs as long to write as all the rest takes, for a format
of three kinds of lines.

Label values are text and names need not be: a byte that is not UTF-8 is written as \\xNN, and
a backslash of a name is doubled, so that no two names look the same.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block, restoring_namespace
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import control_groups, interfaces, tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import namespace_of
from netnsfs.netns.sources import Source, each_source
from netnsfs.netns.spares import Spares
from netnsfs.stats import Stats
from netnsfs.tree.coverage import Coverage
from netnsfs.tree.refs import RESERVED, UNNAMED

# /proc/net is that of the first thread, which never leaves the daemon's namespace.
_SOCKETS = b"/proc/thread-self/net/sockstat"
_SOCKETS6 = b"/proc/thread-self/net/sockstat6"
_STATISTICS = b"/proc/thread-self/net/netstat"
_CONNECTIONS = b"/proc/thread-self/net/stat/nf_conntrack"
_CONNECTIONS_COUNT = b"/proc/sys/net/netfilter/nf_conntrack_count"

# In the order of `interfaces.State.counters`.
_DEVICE_COUNTERS = (
    ("receive_bytes", "Bytes received by an interface."),
    ("receive_packets", "Packets received by an interface."),
    ("receive_errors", "Errors of an interface in receiving."),
    ("receive_drops", "Packets that an interface has received and dropped."),
    ("transmit_bytes", "Bytes sent by an interface."),
    ("transmit_packets", "Packets sent by an interface."),
    ("transmit_errors", "Errors of an interface in sending."),
    ("transmit_drops", "Packets that an interface was to send and has dropped."),
)

_DEVICE_GAUGES: tuple[tuple[str, str, Callable[[interfaces.State], float | None]], ...] = (
    ("up", "Whether an interface is set up.", lambda state: state.up),
    ("carrier", "Whether an interface is up and connected.", lambda state: state.connected),
    ("speed_bytes", "Speed of an interface in bytes per second.", lambda state: state.speed),
    ("addresses", "Addresses of an interface.", lambda state: state.addresses),
)

# FRAG counts fragments, and UDPLITE is a protocol that nobody uses.
_IN_USE = re.compile(rb"^(TCP|UDP|RAW)6?: inuse (\d+)", re.MULTILINE)

# The labels as they are written, and the value.
_Sample = tuple[str, float]


class Family(NamedTuple):
    """A metric.

    Attributes:
        kind: "counter" or "gauge".
        name: without the suffix that the format asks for.
        help: a sentence, without a backslash.
        samples: labels and values.
    """

    kind: str
    name: str
    help: str
    samples: Sequence[_Sample]


class Reading(NamedTuple):
    """What one look into a namespace tells.

    Attributes:
        label: its name, as a label.
        inode: number of the namespace.
        id: its ID.
        sockets: open sockets of all kinds.
        protocols: sockets in use, by protocol; those of IPv6 count as those of IPv4.
        states: the labels of each interface, and its state.
        overflows: how often a queue of connections to be accepted was full.
        connections: tracked connections; None where none are tracked.
    """

    label: str
    inode: int
    id: int
    sockets: int
    protocols: dict[str, int]
    states: list[tuple[str, interfaces.State]]
    overflows: int
    connections: int | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What is in a text of counters.

    Attributes:
        shown: whether a name is; None for all.
        unnamed: whether namespaces without a name are.
        processes: whether what the reader may not see of processes is: their control groups.
    """

    shown: Callable[[bytes], bool] | None = None
    unnamed: bool = False
    processes: bool = True


def render(names: NamedNamespaces, stats: Stats, scope: Scope) -> bytes:
    """The counters of namespaces, and of the file system itself.

    Args:
        names: the run directory.
        stats: the file system's own counts.
        scope: which namespaces.

    Raises:
        OSError: the machine lacks what it takes to look.
    """
    may_block()
    # The text of thousands of namespaces takes megabytes: it is there once, and not in pieces
    # besides.
    text = BytesIO()
    for family in _all_families(names, stats, scope):
        text.write("".join(_lines(family)).encode())
    return text.getvalue()


def _lines(family: Family) -> Iterator[str]:
    name = family.name + ("_total" if family.kind == "counter" else "")
    yield f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"
    for labels, value in family.samples:
        shown = f"{{{labels}}}" if labels else ""
        yield f"{name}{shown} {_number_text(value)}\n"


def _number_text(value: float) -> str:
    """A number as Go writes it: with an exponent from a million on."""
    # Most are 0.
    if not value:
        return "0.0"
    text = repr(float(value))
    whole, _, fraction = text.partition(".")
    if len(whole) <= 6:
        return text
    mantissa = f"{whole[0]}.{whole[1:]}{fraction}".rstrip("0.")
    return f"{mantissa}e+{len(whole) - 1:02}"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


def _all_families(names: NamedNamespaces, stats: Stats, scope: Scope) -> Iterator[Family]:
    yield from _own_families(stats)
    listed = names.list_names()
    coverage = Coverage()
    readings = _all_readings(names, listed, scope, coverage)
    yield Family("gauge", "netnsfs_names", "Names.", [("", len(listed))])
    yield Family(
        "gauge",
        "netnsfs_namespaces_omitted",
        "Namespaces that could not be read, or not in time.",
        [("", coverage.omitted)],
    )
    yield from _spare_families(names.spares)
    yield from _member_families(readings, scope)
    yield Family(
        "gauge",
        "netnsfs_sockets_used",
        "Open sockets of all kinds.",
        [(reading.label, reading.sockets) for reading in readings],
    )
    yield Family(
        "gauge",
        "netnsfs_sockets_in_use",
        "Sockets in use, by protocol, IPv6 and IPv4 together.",
        [
            (f'{reading.label},protocol="{protocol}"', number)
            for reading in readings
            for protocol, number in reading.protocols.items()
        ],
    )
    yield Family(
        "counter",
        "netnsfs_tcp_listen_overflows",
        "Connections that were refused because a queue to be accepted was full.",
        [(reading.label, reading.overflows) for reading in readings],
    )
    yield Family(
        "gauge",
        "netnsfs_conntrack_entries",
        "Connections that are tracked.",
        [
            (reading.label, reading.connections)
            for reading in readings
            if reading.connections is not None
        ],
    )
    yield from _device_families(readings)


def _all_readings(
    names: NamedNamespaces, listed: Sequence[bytes], scope: Scope, coverage: Coverage
) -> list[Reading]:
    seen = listed if scope.shown is None else filter(scope.shown, listed)
    readings = coverage.visit_each(partial(_read_namespace, names, coverage), seen)
    if not scope.unnamed:
        return readings
    named = {reading.inode for reading in readings}
    others = (
        source
        for source in each_source(names, RESERVED)
        if source.name is None and source.inode not in named
    )
    return [*readings, *coverage.visit_each(partial(_read_unnamed, coverage), others)]


def _member_families(readings: Sequence[Reading], scope: Scope) -> Iterator[Family]:
    inside = tasks.members_by_namespace()
    yield Family(
        "gauge",
        "netnsfs_namespace_info",
        "A namespace: its inode number, its ID, the control group of all members.",
        [(_info(reading, inside, scope), 1) for reading in readings],
    )
    yield Family(
        "gauge",
        "netnsfs_member_processes",
        "Processes with at least one thread in the namespace.",
        [(reading.label, len(inside.get(reading.inode, ()))) for reading in readings],
    )
    # Elsewhere, members may be out of sight.
    if linux.in_initial_pid_namespace():
        empty = {reading.inode for reading in readings} - inside.keys()
        yield Family(
            "gauge",
            "netnsfs_namespaces_without_members",
            "Namespaces that no process is in.",
            [("", len(empty))],
        )


def _info(reading: Reading, inside: Mapping[int, set[int]], scope: Scope) -> str:
    members = sorted(inside.get(reading.inode, ())) if scope.processes else []
    labels = {
        "cgroup": _label_text(control_groups.common(members)),
        "id": str(reading.id),
        "inode": str(reading.inode),
    }
    shown = ",".join(_label(name, value) for name, value in labels.items())
    return f"{shown},{reading.label}"


def _device_families(readings: Sequence[Reading]) -> Iterator[Family]:
    states = [state for reading in readings for state in reading.states]
    for column, (counter, meaning) in enumerate(_DEVICE_COUNTERS):
        yield Family(
            "counter",
            f"netnsfs_network_{counter}",
            meaning,
            [(labels, state.counters[column]) for labels, state in states],
        )
    for gauge, meaning, value in _DEVICE_GAUGES:
        yield Family(
            "gauge",
            f"netnsfs_network_{gauge}",
            meaning,
            [
                (labels, number)
                for labels, state in states
                if (number := value(state)) is not None
            ],
        )


def _own_families(stats: Stats) -> Iterator[Family]:
    build = [(_label("version", version("netnsfs")), 1)]
    yield Family("gauge", "netnsfs_build_info", "The version.", build)
    yield Family(
        "gauge",
        "netnsfs_start_time_seconds",
        "When the file system was started, seconds since the epoch.",
        [("", stats.began)],
    )
    # Copies, because the event loop goes on counting.
    yield Family(
        "counter",
        "netnsfs_requests",
        "Requests of the kernel to the file system.",
        [
            (_label("operation", operation), count)
            for operation, count in sorted(stats.requests.copy().items())
        ],
    )
    yield Family(
        "counter",
        "netnsfs_request_errors",
        "Requests that were refused.",
        [
            (f"{_label('errno', code)},{_label('operation', operation)}", count)
            for (operation, code), count in sorted(stats.errors.copy().items())
        ],
    )


def _spare_families(spares: Spares) -> Iterator[Family]:
    held = [("", len(spares))]
    yield Family("gauge", "netnsfs_spares", "Namespaces made ahead.", held)
    taken = [(_label("result", "hit"), spares.hits), (_label("result", "miss"), spares.misses)]
    yield Family("counter", "netnsfs_spares_taken", "Namespaces wanted of them.", taken)


def _read_namespace(names: NamedNamespaces, coverage: Coverage, name: bytes) -> Reading | None:
    """What is in a namespace; None for a stale name."""
    return names.inspect(name, partial(_read_inside, name, coverage))[1]


def _read_unnamed(coverage: Coverage, source: Source) -> Reading:
    with linux.closing_fd(source.open()) as fd:
        path = b"%b/%b/%d" % (RESERVED, UNNAMED, source.inode)
        return _read_inside(path, coverage, fd)


def _read_inside(name: bytes, coverage: Coverage, fd: int) -> Reading:
    namespace = namespace_of(fd)
    # Entered only now: the thread that follows a link starts in the namespace of this one.
    with restoring_namespace():
        linux.setns(fd, linux.CLONE_NEWNET)
        sockets = _read_file(_SOCKETS) + _read_file(_SOCKETS6)
        overflows = _parse_overflows(_read_file(_STATISTICS))
        connections = _count_connections()
        # The socket stays in the namespace when the thread has left it.
        route = RouteSocket()
    label = _label("netns", _label_text(name))
    route.until = coverage.until
    with route:
        states = [
            (f"{_label('device', _label_text(state.name))},{label}", state)
            for state in interfaces.states(route)
        ]
    used, protocols = _parse_sockets(sockets)
    return Reading(
        label=label,
        inode=namespace.inode,
        id=namespace.id,
        sockets=used,
        protocols=protocols,
        states=states,
        overflows=overflows,
        connections=connections,
    )


def _read_file(path: bytes) -> bytes:
    # A kernel without IPv6 has no sockstat6, and one that tracks no connections tells of none.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        # One read gets the first record whole (fs/seq_file.c), and what is wanted is there.
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _count_connections() -> int | None:
    # A lookup in /proc/sys takes the longer the more namespaces there are, for what is below
    # /proc/sys/net is in one hash chain for all of them. But not all kernels have the other.
    _, _, numbers = _read_file(_CONNECTIONS).partition(b"\n")
    if numbers:
        return int(numbers.split(b" ", 1)[0], 16)
    count = _read_file(_CONNECTIONS_COUNT)
    return int(count) if count else None


def _parse_sockets(tables: bytes) -> tuple[int, dict[str, int]]:
    """All sockets, and those in use by protocol, from /proc/net/sockstat and sockstat6."""
    protocols = dict[str, int]()
    for protocol, count in _IN_USE.findall(tables):
        kind = protocol.decode()
        protocols[kind] = protocols.get(kind, 0) + int(count)
    # "sockets: used 4"
    return int(tables.split(None, 3)[2]), protocols


def _parse_overflows(tables: bytes) -> int:
    """ListenOverflows of /proc/net/netstat: a line of names, then one of numbers."""
    names, _, numbers = tables.partition(b"\n")
    before, found, _ = names.partition(b" ListenOverflows ")
    column = before.count(b" ") + 1
    return int(numbers.split(b" ", column + 1)[column]) if found else 0


def _label_text(name: bytes) -> str:
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
