"""Counters and sysctls of namespaces, from one long-lived process."""

from pathlib import Path

from benchmarks.mounts import MNT, netnsfs
from benchmarks.namespaces import cat, fill, read_once
from benchmarks.programs import command, for_each, tool
from benchmarks.race import Race, Side, race, repeat
from benchmarks.report import heading, table, targets, with_size
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    with netnsfs():
        fill(scale.scraped)
        reads = race(_counter_readers(MNT / "0000/net/dev"), scale.rounds)
        writes = race(_sysctl_writers(MNT / "0000/sysctl/ipv4/ip_forward"), scale.rounds)
        scrapes = race(_scrapers(scale.scraped), scale.listings)
    heading(
        "The network stack of a namespace",
        "Counters and sysctls, from one long-lived process.",
    )
    rows = []
    for result in (reads, writes, scrapes):
        *_, program = result.seconds
        rows += result.rows(program)
    table(["operation", "median", "to ip netns exec"], rows)
    targets(
        ("a read of net/dev", _inverse(reads), 1 / 5, "of ip netns exec cat"),
        ("a scrape", _inverse(scrapes), 0.04, "of the loop"),
    )


METRICS = MNT / ".netnsfs/metrics"


def _inverse(result: Race) -> float:
    """The first side in units of the last."""
    first, *_, last = result.seconds
    return result.ratio(first, last)


def _counter_readers(path: Path) -> list[Side]:
    from pyroute2 import NetNS

    def pyroute2() -> None:
        with NetNS("0000") as namespace:
            namespace.get_links()

    words = [tool("ip"), "netns", "exec", "0000", tool("cat"), "/proc/net/dev"]
    return [
        Side("netnsfs: read of net/dev", repeat(read_once, path), 50),
        Side("pyroute2: NetNS, get_links", repeat(pyroute2), 2),
        Side("ip netns exec cat /proc/net/dev", repeat(command, *words), 5),
    ]


def _sysctl_writers(path: Path) -> list[Side]:
    from pyroute2 import netns

    def pyroute2() -> None:
        netns.pushns("0000")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        netns.popns()

    words = [
        tool("ip"),
        "netns",
        "exec",
        "0000",
        tool("sysctl"),
        "-qw",
        "net.ipv4.ip_forward=1",
    ]
    return [
        Side("netnsfs: echo 1 > sysctl/ipv4/ip_forward", repeat(path.write_text, "1"), 50),
        Side("pyroute2: pushns, write, popns", repeat(pyroute2), 50),
        Side("ip netns exec sysctl -w", repeat(command, *words), 5),
    ]


def _scrapers(size: int) -> list[Side]:
    names = [f"{number:04d}" for number in range(size)]
    words = (tool("ip"), "netns", "exec", "NAME", tool("cat"), "/proc/net/dev")

    def cat_each() -> None:
        for name in names:
            cat(MNT / name / "net/dev")

    return [
        Side(with_size("netnsfs: cat .netnsfs/metrics", size), repeat(cat, METRICS), 1),
        Side(with_size("netnsfs: cat */net/dev", size), repeat(cat_each), 1),
        Side(
            with_size("ip netns exec cat /proc/net/dev for each", size),
            repeat(for_each, size, *words),
            1,
        ),
    ]
