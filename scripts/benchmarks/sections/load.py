"""Stats from eight clients at once."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.crowds import share_out
from benchmarks.floor import SERVERS, floors
from benchmarks.race import Side, race
from benchmarks.report import heading, table
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    count = 8 * scale.stats
    with floors():
        sides = [
            Side(server, partial(share_out, 8, _stat_in(at)), count)
            for server, at in SERVERS.items()
        ]
        result = race(sides, scale.listings)
    heading("Eight clients that stat at once")
    rows = result.rows("the pyfuse3 floor", "the C floor")
    for row in rows:
        row[1] = f"{1 / result.median(row[0]):,.0f}"
    table(["server", "stats a second", "time to the pyfuse3 floor", "to the C floor"], rows)


def _stat_in(at: Path) -> Callable[[str], object]:
    path = at / "foo"
    return lambda _: os.stat(path)
