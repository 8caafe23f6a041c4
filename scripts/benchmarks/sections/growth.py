"""Single operations beside the system calls that they stand for, by number of namespaces."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.mounts import MNT, RUN, netnsfs
from benchmarks.namespaces import bare_make, bare_remove, below, growing, read_once
from benchmarks.processors import one_processor
from benchmarks.race import Curves, Race, Side, race, repeat
from benchmarks.report import duration, heading, table, targets
from benchmarks.scale import Scale

CALLS, MOUNT = "system calls alone", "netnsfs"


def measure(scale: Scale) -> Curves:
    curves: Curves = {}
    rows = []
    with one_processor(), netnsfs():
        for size in growing(scale.growth):
            for what, result in _operations(scale).items():
                ratio = result.ratio(MOUNT, CALLS)
                curves.setdefault(what, {})[size] = ratio
                times = [duration(result.median(side)) for side in (CALLS, MOUNT)]
                rows.append([f"{what}, {size:,} namespaces", *times, f"{ratio:.2f}"])
    heading(
        "Growth",
        "Single operations by number of namespaces, client and daemon on one processor, beside "
        "the system calls that they stand for; for `cat inode` that is a stat.",
    )
    table(["operation", CALLS, MOUNT, "ratio"], rows)
    small, large = scale.growth[0], scale.growth[-1]
    targets(
        *(
            (f"{what}, {large:,} namespaces", ratios[large] / ratios[small], 1.2, f"of {small}")
            for what, ratios in curves.items()
        )
    )
    return curves


def _operations(scale: Scale) -> dict[str, Race]:
    found = _made_and_removed(scale)
    for what, bare, call, count in (
        ("stat", partial(os.stat, RUN / "0000"), partial(os.stat, MNT / "0000"), 200),
        ("ls", partial(os.listdir, RUN), partial(os.listdir, MNT), 2),
        (
            "cat inode",
            partial(os.stat, RUN / "0000"),
            partial(read_once, MNT / "0000/inode"),
            200,
        ),
    ):
        sides = [Side(CALLS, repeat(bare), count), Side(MOUNT, repeat(call), count)]
        found[what] = race(sides, scale.listings)
    return found


def _made_and_removed(scale: Scale) -> dict[str, Race]:
    """Mkdir and rmdir apart: in each round, each side makes some and then removes them."""
    names = [b"x%d" % number for number in range(scale.pairs)]
    steps: dict[str, dict[str, Callable[[bytes], object]]] = {
        CALLS: {"mkdir": bare_make, "rmdir": bare_remove},
        MOUNT: {"mkdir": below(os.mkdir, MNT), "rmdir": below(os.rmdir, MNT)},
    }
    seconds: dict[str, dict[str, list[float]]] = {
        what: {CALLS: [], MOUNT: []} for what in ("mkdir", "rmdir")
    }
    with ThreadPoolExecutor(1) as thread:
        for number in range(scale.listings + 1):
            for side in (CALLS, MOUNT) if number % 2 else (MOUNT, CALLS):
                held: list[int] = []
                for what, step in steps[side].items():
                    began = time.perf_counter()
                    thread.submit(lambda call: [call(name) for name in names], step).result()
                    if number:
                        spent = (time.perf_counter() - began) / len(names)
                        seconds[what][side].append(spent)
                    # Removed, they stay until nobody looks: what the kernel then has to do
                    # would hit who is slower.
                    held = held or [
                        os.open(bytes(RUN) + b"/" + name, os.O_RDONLY) for name in names
                    ]
                for fd in held:
                    os.close(fd)
                time.sleep(0.3)
    return {what: Race(sides) for what, sides in seconds.items()}
