"""Listing, and what the daemon needs to remember, by number of namespaces."""

import os
from contextlib import suppress
from pathlib import Path

from benchmarks.mounts import MNT, RUN, netnsfs
from benchmarks.namespaces import growing
from benchmarks.programs import command, tool
from benchmarks.race import Race, Side, race, repeat
from benchmarks.report import heading, table, targets, with_size
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    rows, memory, figures = [], [], []
    with netnsfs() as daemon:
        for size in growing(scale.sizes):
            result = _list(size, scale.listings)
            _, long, bare, program = result.seconds
            rows += result.rows(program, bare)
            figures.append((long, result.ratio(long, program), 2.0, "of ip netns list"))
            _use_everything()
            memory.append((size, *_memory(daemon)))
    heading(
        "Listing",
        "Commands that are run anew each time. The kernel keeps no name, so `ls -l` is more "
        "than one LOOKUP for each (see Requests).",
    )
    table(["operation", "median", "to ip netns list", "to ls -l /run/netns"], rows)
    table(
        ["the daemon's memory, everything used once", "RSS", "PSS"],
        [
            [f"{size:,} namespaces", f"{rss:.1f} MiB", f"{pss:.1f} MiB"]
            for size, rss, pss in memory
        ],
    )
    size, rss, _ = memory[-1]
    targets(figures[1], (f"RSS with {size:,} namespaces", rss, 45, "MiB"))


def _use_everything() -> None:
    """Make and remove a name, and read each file, so that all modules are in memory."""
    used = MNT / "used"
    used.mkdir()
    used.rename(MNT / "used-again")
    used.symlink_to("used-again")
    for file in ("nsid", "pids", "tids", "holders", "net/dev", "sysctl/ipv4/ip_forward"):
        (used / file).read_bytes()
    for file in ("links/lo/addresses", "links/lo/mtu"):
        (used / file).read_bytes()
    (used / "nsid").write_bytes(b"auto")
    for file in ("metrics", "topology.dot", "last_error"):
        (MNT / ".netnsfs" / file).read_bytes()
    for directory in ("unnamed", "pid"):
        os.listdir(MNT / ".netnsfs" / directory)
    used.rmdir()
    (MNT / "used-again").rmdir()


def _list(size: int, rounds: int) -> Race:
    count = max(1, 100 // size)
    words = {
        "netnsfs: ls": [tool("ls"), str(MNT)],
        "netnsfs: ls -l": [tool("ls"), "-l", str(MNT)],
        "ls -l /run/netns": [tool("ls"), "-l", str(RUN)],
        "ip netns list": [tool("ip"), "netns", "list"],
    }
    sides = [
        Side(with_size(what, size), repeat(command, *w), count) for what, w in words.items()
    ]
    return race(sides, rounds)


def _memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process, in MiB; not a number where the kernel does not tell."""
    return _field(pid, "status", "VmRSS:"), _field(pid, "smaps_rollup", "Pss:")


def _field(pid: int, file: str, field: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return float("nan")
