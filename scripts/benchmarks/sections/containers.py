"""Namespaces without a name: the counters of all, and which one has an address."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.mounts import MNT, netnsfs
from benchmarks.namespaces import cat, fill
from benchmarks.programs import command, for_each, run, tool
from benchmarks.race import Race, Side, race, repeat
from benchmarks.report import heading, table, targets, with_size
from benchmarks.scale import Scale
from netnsfs import linux

ADDRESS = "198.51.100.7"
# After that, all namespaces are asked again for an address.
FORGOTTEN_SECONDS = 1.1


def measure(scale: Scale) -> None:
    with netnsfs():
        scraped = _scrape(scale)
        fill(scale.scraped)
        found = _find(scale)
    whole, loop = scraped.seconds
    by_address, by_ip = found.seconds
    heading(
        "Containers",
        "Each has a process in a network namespace without a name. The loops run a program for "
        "each namespace: nsenter that shows /proc/net/dev alone, and ip.",
    )
    table(["operation", "median", "to the loop"], scraped.rows(loop) + found.rows(by_ip))
    targets(
        ("metrics_all", scraped.ratio(whole, loop), 0.2, "of the loop of nsenter"),
        ("address/ADDR", found.ratio(by_address, by_ip), 0.1, "of the loop of ip"),
    )


def _scrape(scale: Scale) -> Race:
    nsenter = tool("nsenter")
    with _having_unnamed(scale.contained) as pids:

        def loop(_: int) -> None:
            for pid in pids:
                command(nsenter, "-t", str(pid), "-n", "cat", "/proc/net/dev")

        whole = with_size("netnsfs: cat .netnsfs/metrics_all", scale.contained)
        sides = [
            Side(whole, repeat(cat, MNT / ".netnsfs/metrics_all"), 1),
            Side(with_size("nsenter ... cat /proc/net/dev", scale.contained), loop, 1),
        ]
        return race(sides, scale.listings)


@contextmanager
def _having_unnamed(count: int) -> Iterator[list[int]]:
    """Keep processes that have a namespace each."""
    pids = [_fork_inside() for _ in range(count)]
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork_inside() -> int:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        linux.unshare(linux.CLONE_NEWNET)
        os.close(writer)
        while True:
            signal.pause()
    os.close(writer)
    # The end of the pipe says that it is inside.
    os.read(reader, 1)
    os.close(reader)
    return pid


def _find(scale: Scale) -> Race:
    ip, size = tool("ip"), scale.scraped
    run(ip, "-n", f"{size // 2:04d}", "address", "add", ADDRESS, "dev", "lo")
    directory = str(MNT / ".netnsfs/address" / ADDRESS)
    sides = [
        Side(with_size("ls .netnsfs/address/ADDR", size), repeat(command, "ls", directory), 1),
        Side(
            with_size("ip -n NAME -br addr for each", size),
            repeat(for_each, size, ip, "-n", "NAME", "-br", "addr"),
            1,
        ),
    ]
    return race(sides, scale.listings, pause=FORGOTTEN_SECONDS)
