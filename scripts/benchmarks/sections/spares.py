"""Mkdir alone, in bursts: with spares and without, beside unshare and bind mount.

And beside the same three requests to servers that only note the name, or make the system
calls and note the name.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

from benchmarks.mounts import CALLING, FLOOR, MNT, OURSELVES, SPARED, alone, serving
from benchmarks.namespaces import bare_make, bare_remove, below, own_namespace, prepare_run
from benchmarks.processors import one_processor
from benchmarks.race import take_turns, timed
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale
from netnsfs import linux


def measure(scale: Scale) -> None:
    prepare_run()
    places = {
        "netnsfs: mkdir": MNT,
        "netnsfs -o spare=64: mkdir": SPARED,
        "the floor: mkdir": FLOOR,
        "the floor, and the system calls: mkdir": CALLING,
    }
    calls, plain, spared, *_ = "system calls alone: unshare + bind mount", *places
    sides = {calls: partial(_burst, bare_make, bare_remove)}
    for label, at in places.items():
        sides[label] = partial(_burst, below(os.mkdir, at), below(os.rmdir, at))
    with (
        one_processor(),
        alone(MNT),
        alone(SPARED, "-o", "spare=64"),
        serving(FLOOR, *OURSELVES, "--floor"),
        serving(CALLING, *OURSELVES, "--floor-with-calls"),
    ):
        result = take_turns(sides, scale.bursts)
    heading(
        f"mkdir in bursts of {BURST}, client and daemon on one processor",
        '"The floor" is the smallest pyfuse3 file system that answers the same requests from '
        'constants. "The floor, and the system calls" also makes them, at once, and checks and '
        "undoes nothing. They take longer when requests are answered between them. netnsfs "
        "does more than that: it goes to a worker thread and back, because a change of the "
        "run directory may have to wait, and it looks at what it has made. With a spare "
        "namespace there is no unshare.",
    )
    table(["operation", "median", "to system calls alone"], result.rows(calls))
    targets(
        ("mkdir", result.ratio(plain, calls), 1.6, "of system calls alone"),
        ("mkdir with spares", result.ratio(spared, calls), 0.5, "of system calls alone"),
    )


BURST = 50


def _burst(make: Callable[[bytes], None], remove: Callable[[bytes], None]) -> float:
    """The median of a burst."""
    names = [b"burst%d" % number for number in range(BURST)]

    def burst(home: int) -> float:
        times = [timed(partial(make, name)) for name in names]
        linux.setns(home, linux.CLONE_NEWNET)
        return median(times)

    with own_namespace() as home, ThreadPoolExecutor(1) as thread:
        took = thread.submit(burst, home).result()
    for name in names:
        remove(name)
    # For what is left to the kernel, and for new spares.
    time.sleep(1)
    return took
