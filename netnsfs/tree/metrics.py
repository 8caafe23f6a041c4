"""Counters of every named namespace, in the Prometheus text format.

One pass over the processes of the machine counts the members of all namespaces, and one
thread goes from namespace to namespace and reads a few small files in each.
prometheus_client writes the text; it is imported at the first use, because it is big.

Label values are text and names need not be: a byte that is not UTF-8 is written as \\xNN, and
a backslash of a name is doubled, so that no two names look the same.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block, on_own_thread, visit
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import links, tasks
from netnsfs.netns.names import Names
from netnsfs.netns.spares import Spares
from netnsfs.stats import Stats

# /proc/net is that of the first thread, which never leaves the daemon's namespace.
_OWN_NET = b"/proc/thread-self/net/"
_CONNECTIONS = b"/proc/sys/net/netfilter/nf_conntrack_count"

# Columns of /proc/net/dev, proc_pid_net(5).
_DEVICE_COUNTERS = (
    (0, "receive_bytes", "Bytes received by an interface."),
    (1, "receive_packets", "Packets received by an interface."),
    (2, "receive_errors", "Errors of an interface in receiving."),
    (3, "receive_drops", "Packets that an interface has received and dropped."),
    (8, "transmit_bytes", "Bytes sent by an interface."),
    (9, "transmit_packets", "Packets sent by an interface."),
    (10, "transmit_errors", "Errors of an interface in sending."),
    (11, "transmit_drops", "Packets that an interface was to send and has dropped."),
)

_DEVICE_GAUGES: tuple[tuple[str, str, Callable[[links.State], float | None]], ...] = (
    ("up", "Whether an interface is set up.", lambda state: state.interface.up),
    ("carrier", "Whether an interface is up and connected.", lambda state: state.connected),
    ("speed_bytes", "Speed of an interface in bytes per second.", lambda state: state.speed),
    ("addresses", "Addresses of an interface.", lambda state: state.addresses),
)

# FRAG counts fragments, and UDPLITE is a protocol that nobody uses.
_NO_SOCKETS = ("FRAG", "UDPLITE")

_Sample = tuple[Sequence[str], float]


class Family(NamedTuple):
    """A metric.

    Attributes:
        kind: "counter" or "gauge".
        name: without the suffix that the format asks for.
        help: a sentence.
        labels: their names.
        samples: the labels' values, and the value.
    """

    kind: str
    name: str
    help: str
    labels: Sequence[str]
    samples: Sequence[_Sample]


class Reading(NamedTuple):
    """What one look into a namespace tells.

    Attributes:
        label: its name.
        inode: number of the namespace.
        devices: the columns of /proc/net/dev, by interface.
        sockets: open sockets of all kinds.
        protocols: sockets in use, by protocol; those of IPv6 count as those of IPv4.
        states: the state of each interface, by its label.
        overflows: how often a queue of connections to be accepted was full.
        connections: tracked connections; None where none are tracked.
    """

    label: str
    inode: int
    devices: dict[str, list[int]]
    sockets: int
    protocols: dict[str, int]
    states: dict[str, links.State]
    overflows: int
    connections: int | None


def render(names: Names, stats: Stats, shown: Callable[[bytes], bool] | None) -> bytes:
    """The counters of all namespaces, and of the file system itself.

    Args:
        names: the run directory.
        stats: the file system's own counts.
        shown: whether a namespace is; None for all.

    Raises:
        OSError: the machine lacks what it takes to look.
    """
    may_block()
    from prometheus_client import Metric, generate_latest
    from prometheus_client.openmetrics.exposition import ALLOWUTF8
    from prometheus_client.registry import Collector

    class Pass(Collector):
        def collect(self) -> Iterator[Metric]:
            for family in _all_families(names, stats, shown):
                metric = Metric(family.name, family.help, family.kind)
                # The format wants the suffix in the sample, and not in the name of the metric.
                sample = family.name + ("_total" if family.kind == "counter" else "")
                for values, value in family.samples:
                    metric.add_sample(
                        sample, dict(zip(family.labels, values, strict=True)), value
                    )
                yield metric

    # No name needs any escaping, and this is the quickest kind.
    return generate_latest(Pass(), escaping=ALLOWUTF8)


def _all_families(
    names: Names, stats: Stats, shown: Callable[[bytes], bool] | None
) -> Iterator[Family]:
    yield from _own_families(stats)
    listed = names.list_names()
    seen = listed if shown is None else filter(partial(_is_shown, shown), listed)
    readings = [
        reading for name in seen if (reading := on_own_thread(_read_namespace, names, name))
    ]
    yield Family("gauge", "netnsfs_names", "Names.", (), [((), len(listed))])
    yield from _spare_families(names.spares)
    inside = tasks.counts()
    yield Family(
        "gauge",
        "netnsfs_member_processes",
        "Processes with at least one thread in the namespace.",
        ["namespace"],
        [([reading.label], inside[reading.inode]) for reading in readings],
    )
    yield Family(
        "gauge",
        "netnsfs_sockets_used",
        "Open sockets of all kinds.",
        ["namespace"],
        [([reading.label], reading.sockets) for reading in readings],
    )
    yield Family(
        "gauge",
        "netnsfs_sockets_in_use",
        "Sockets in use, by protocol, IPv6 and IPv4 together.",
        ["namespace", "protocol"],
        [
            ([reading.label, protocol], number)
            for reading in readings
            for protocol, number in reading.protocols.items()
        ],
    )
    yield Family(
        "counter",
        "netnsfs_tcp_listen_overflows",
        "Connections that were refused because a queue to be accepted was full.",
        ["namespace"],
        [([reading.label], reading.overflows) for reading in readings],
    )
    yield Family(
        "gauge",
        "netnsfs_conntrack_entries",
        "Connections that are tracked.",
        ["namespace"],
        [
            ([reading.label], reading.connections)
            for reading in readings
            if reading.connections is not None
        ],
    )
    yield from _device_families(readings)


def _device_families(readings: Sequence[Reading]) -> Iterator[Family]:
    for column, counter, meaning in _DEVICE_COUNTERS:
        yield Family(
            "counter",
            f"netnsfs_network_{counter}",
            meaning,
            ["namespace", "device"],
            [
                ([reading.label, device], columns[column])
                for reading in readings
                for device, columns in reading.devices.items()
            ],
        )
    for gauge, meaning, value in _DEVICE_GAUGES:
        yield Family(
            "gauge",
            f"netnsfs_network_{gauge}",
            meaning,
            ["namespace", "device"],
            [
                ([reading.label, device], number)
                for reading in readings
                for device, state in reading.states.items()
                if (number := value(state)) is not None
            ],
        )


def _own_families(stats: Stats) -> Iterator[Family]:
    build = [([version("netnsfs")], 1)]
    yield Family("gauge", "netnsfs_build_info", "The version.", ["version"], build)
    yield Family(
        "gauge",
        "netnsfs_start_time_seconds",
        "When the file system was started, seconds since the epoch.",
        (),
        [((), stats.began)],
    )
    # Copies, because the event loop goes on counting.
    yield Family(
        "counter",
        "netnsfs_requests",
        "Requests of the kernel to the file system.",
        ["operation"],
        [([operation], count) for operation, count in sorted(stats.requests.copy().items())],
    )
    yield Family(
        "counter",
        "netnsfs_request_errors",
        "Requests that were refused.",
        ["operation", "errno"],
        sorted(stats.errors.copy().items()),
    )


def _is_shown(shown: Callable[[bytes], bool], name: bytes) -> bool:
    try:
        return shown(name)
    except FileNotFoundError:
        return False


def _spare_families(spares: Spares) -> Iterator[Family]:
    held = [((), len(spares))]
    yield Family("gauge", "netnsfs_spares", "Namespaces made ahead.", (), held)
    taken = [(["hit"], spares.hits), (["miss"], spares.misses)]
    yield Family(
        "counter", "netnsfs_spares_taken", "Namespaces wanted of them.", ["result"], taken
    )


def _read_namespace(names: Names, name: bytes) -> Reading | None:
    """What is in a namespace; None for a stale name, or one that was removed meanwhile."""
    try:
        return names.look_inside(name, partial(_read_inside, name))[1]
    except FileNotFoundError:
        return None


def _read_inside(name: bytes, fd: int) -> Reading:
    # Entered only now: the thread that follows a link starts in the namespace of this one.
    with visit():
        linux.setns(fd, linux.CLONE_NEWNET)
        devices = _read_file(b"dev")
        sockets = _read_file(b"sockstat") + _read_file(b"sockstat6")
        overflows = _parse_overflows(_read_file(b"netstat"))
        connections = _read_file(_CONNECTIONS)
        # The socket stays in the namespace when the thread has left it.
        route = RouteSocket()
    with route:
        states = {_label_text(state.interface.name): state for state in links.states(route)}
    used, protocols = _parse_sockets(sockets)
    return Reading(
        label=_label_text(name),
        inode=os.fstat(fd).st_ino,
        devices=_parse_devices(devices),
        sockets=used,
        protocols=protocols,
        states=states,
        overflows=overflows,
        connections=int(connections) if connections else None,
    )


def _read_file(name: bytes) -> bytes:
    # A kernel without IPv6 has no sockstat6, one that tracks no connections no count of them.
    try:
        fd = os.open(os.path.join(_OWN_NET, name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    finally:
        os.close(fd)


def _parse_devices(table: bytes) -> dict[str, list[int]]:
    """The columns of each interface, from /proc/net/dev."""
    found = {}
    for line in table.split(b"\n")[2:-1]:
        # No name has a colon or white space in it (dev_valid_name, net/core/dev.c).
        device, _, columns = line.partition(b":")
        found[_label_text(device.lstrip(b" "))] = [int(column) for column in columns.split()]
    return found


def _parse_sockets(tables: bytes) -> tuple[int, dict[str, int]]:
    """All sockets, and those in use by protocol, from /proc/net/sockstat and sockstat6."""
    used, protocols = 0, dict[str, int]()
    for line in tables.splitlines():
        protocol, what, count, *_ = line.decode().split()
        if what == "used":
            used = int(count)
        elif not protocol.startswith(_NO_SOCKETS):
            kind = protocol.removesuffix(":").removesuffix("6")
            protocols[kind] = protocols.get(kind, 0) + int(count)
    return used, protocols


def _parse_overflows(tables: bytes) -> int:
    """ListenOverflows of /proc/net/netstat: a line of names, then one of numbers."""
    lines = [line.split() for line in tables.splitlines() if line.startswith(b"TcpExt:")]
    return int(dict(zip(*lines, strict=True)).get(b"ListenOverflows", 0)) if lines else 0


def _label_text(name: bytes) -> str:
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
