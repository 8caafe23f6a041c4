"""Stat and read beside the floors and a file of sysfs."""

import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.floor import SERVERS, floors
from benchmarks.namespaces import read_once
from benchmarks.processors import one_processor
from benchmarks.race import Curves, Race, Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> Curves:
    with one_processor(), floors():
        pinned = _small_requests(scale)
    with floors():
        free = _small_requests(scale)
    heading(
        "Small requests",
        '"The pyfuse3 floor" is the smallest pyfuse3 file system that answers the same '
        'requests from constants; "the C floor" is the same with libfuse alone. All have one '
        "thread for requests.",
    )
    for where, results in (
        ("client and servers on one processor", pinned),
        ("nothing pinned", free),
    ):
        rows = [
            row
            for what, result in results.items()
            for row in result.rows(f"the pyfuse3 floor: {what}", f"the C floor: {what}")
        ]
        table(["operation, " + where, "median", "to the pyfuse3 floor", "to the C floor"], rows)
    targets(
        *_small_targets(pinned, "pyfuse3", "one processor", (0.6, 0.55)),
        *_small_targets(pinned, "C", "one processor", (1.5, 1.5)),
        *_small_targets(free, "C", "nothing pinned", (0.65, 0.65)),
    )
    return {
        label: {1: pinned[what].median(label)}
        for what in pinned
        for label in pinned[what].seconds
    }


def _small_targets(
    results: dict[str, Race], floor: str, where: str, limits: tuple[float, float]
) -> Iterator[tuple[str, float, float, str]]:
    for (what, result), limit in zip(results.items(), limits, strict=True):
        reached = result.ratio(f"netnsfs: {what}", f"the {floor} floor: {what}")
        yield f"{what}, {where}", reached, limit, f"of the {floor} floor"


def _small_requests(scale: Scale) -> dict[str, Race]:
    return {
        what: race(
            [
                Side(f"{where}: {what}", repeat(call, path), scale.calls)
                for where, path in (
                    *((server, at / name) for server, at in SERVERS.items()),
                    ("sysfs", SYSFS_FILE),
                )
            ],
            scale.rounds,
        )
        for what, call, name in (
            ("stat", os.stat, "foo"),
            ("open + read + close", read_once, "foo/inode"),
        )
    }


SYSFS_FILE = Path("/sys/kernel/uevent_seqnum")
