"""The same where there is much of something on the machine."""

import os
from contextlib import suppress
from pathlib import Path

from benchmarks.crowds import having
from benchmarks.mounts import BY_PROC, MNT, both_ways
from benchmarks.namespaces import cat
from benchmarks.race import Side, race, repeat
from benchmarks.report import duration, heading, table
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    rows: list[list[str]] = []
    with both_ways():
        (MNT / "foo").mkdir()
        for what, holder, file in (
            (f"{scale.threads:,} threads", "threads", "foo/pids"),
            (f"{scale.sockets:,} sockets", "sockets", "foo/holders"),
            (f"{scale.duplicates:,} descriptors of one socket", "duplicates", "foo/holders"),
            (f"{scale.mounts:,} mounts, twice", "mounts", "foo/holders"),
        ):
            with having(holder, getattr(scale, holder)):
                sides = [Side("netnsfs", repeat(cat, MNT / file), 1)]
                sides.append(Side("through /proc", repeat(_cat_in_time, BY_PROC / file), 1))
                if holder == "threads":
                    sides.append(Side("readlink for each", repeat(_read_all_links), 1))
                result = race(sides, scale.listings // 2)
            for label in result.seconds:
                shown = f"{result.ratio(label, sides[-1].label):.2f}"
                rows.append(
                    [what, f"{label}: cat {file}", duration(result.median(label)), shown]
                )
    heading("Much of something")
    table(["on the machine", "operation", "median", "to the last of the kind"], rows)


def _cat_in_time(path: Path) -> None:
    # After ten seconds netnsfs gives up.
    with suppress(TimeoutError):
        cat(path)


def _read_all_links() -> None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for tid in os.listdir(f"/proc/{pid}/task"):
                os.readlink(f"/proc/{pid}/task/{tid}/ns/net")
