"""The command line of scripts/bench, and the sections in their order."""

import argparse
import importlib
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.crowds import serve_crowd, serve_sleepers
from benchmarks.floor import Floor, FloorWithCalls, serve_floor
from benchmarks.mounts import enter_own_mounts
from benchmarks.plot import draw
from benchmarks.processors import MAX_BUSY, wait_for_quiet
from benchmarks.race import Curves
from benchmarks.report import machine, write_report
from benchmarks.scale import QUICK, Scale

SECTIONS = (
    "cold",
    "create",
    "spares",
    "replay",
    "read",
    "rundirs",
    "load",
    "requests",
    "members",
    "crowd",
    "locks",
    "stack",
    "links",
    "labs",
    "exec",
    "containers",
    "threads",
    "list",
    "idle",
    "growth",
    "clients",
)
"""Modules of `benchmarks.sections`, in the order of the report.

Each has a function `measure`, which is told how much, prints its tables, and returns what the
plot needs of it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure netnsfs.")
    parser.add_argument("--quick", action="store_true", help="little of everything, in seconds")
    parser.add_argument("--section", choices=SECTIONS, help="only this one")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw what was measured")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="write the tables there too"
    )
    # The programs that a run starts for itself.
    parser.add_argument("--floor", help=argparse.SUPPRESS)
    parser.add_argument("--floor-with-calls", help=argparse.SUPPRESS)
    parser.add_argument("--sleepers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report and given.quick:
        parser.error("a report is of everything at full length")
    if given.section and (given.report or given.plot):
        parser.error("reports and plots are of all sections")
    if given.floor:
        serve_floor(Floor(), given.floor)
    if given.floor_with_calls:
        serve_floor(FloorWithCalls(), given.floor_with_calls)
    if given.crowd:
        serve_crowd(given.crowd, given.sleepers)
    if given.sleepers:
        serve_sleepers(given.sleepers, given.inside)
    if os.geteuid() != 0:
        sys.exit("bench: only root can mount file systems and make namespaces: use sudo")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    # A process that pyroute2 forks and ends must not clean up in our stead.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    load_average, _, _ = os.getloadavg()
    enter_own_mounts()
    print(machine(), flush=True)
    found, busy = measure(given.section, QUICK if given.quick else Scale(), bool(given.report))
    if given.plot:
        draw(given.plot, found)
    if given.report:
        write_report(given.report, load_average, busy, given.plot)


def measure(only: str | None, scale: Scale, written: bool) -> tuple[dict[str, Curves], float]:
    """Run the sections.

    Args:
        only: a section, or None for all.
        scale: how much.
        written: whether the figures are for a report: then others must leave the machine alone.

    Returns:
        What is for the plot, and the largest share of the processors that others used.
    """
    found: dict[str, Curves] = {}
    busiest = 0.0
    for name in SECTIONS:
        if only not in (None, name):
            continue
        busy = wait_for_quiet() if written else 0.0
        if busy > MAX_BUSY:
            sys.exit(f"bench: others use {busy:.0%} of the processors: no figures are written")
        busiest = max(busiest, busy)
        began = time.monotonic()
        section = importlib.import_module(f"benchmarks.sections.{name}")
        found[name] = section.measure(scale) or {}
        print(f"\n({name}: {time.monotonic() - began:.0f} s)", flush=True)
    return found, busiest
