"""What it costs that watchers are told what others do: with a teller, and with it stopped."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.mounts import MNT, netnsfs
from benchmarks.namespaces import mkdir_rmdir
from benchmarks.programs import ip_netns
from benchmarks.race import Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    count = min(scale.pairs, _MAX_UNHEARD)
    with netnsfs() as daemon:
        teller = _teller_of(daemon)

        def stopped(run: Callable[[int], None], count: int) -> None:
            os.kill(teller, signal.SIGSTOP)
            try:
                run(count)
            finally:
                os.kill(teller, signal.SIGCONT)

        programs, made = repeat(ip_netns, "events"), repeat(mkdir_rmdir, MNT / "foo")
        sides = [
            Side("ip netns add + del, not told", partial(stopped, programs), scale.commands),
            Side("ip netns add + del", programs, scale.commands),
            Side("mkdir + rmdir, not told", partial(stopped, made), count),
            Side("mkdir + rmdir", made, count),
        ]
        # The teller catches up in the pause.
        result = race(sides, scale.rounds, pause=0.1)
    untold, told, alone, beside = result.seconds
    heading(
        "Events",
        "What it costs that watchers of the mount are told what others do, while nobody "
        'watches. "Not told" is with the teller stopped, the process that has the kernel tell.',
    )
    table(["operation", "median", "to ip, not told"], result.rows(untold))
    targets(
        ("ip netns add + del", result.ratio(told, untold), 1.1, "of the same, not told"),
        ("mkdir + rmdir", result.ratio(beside, alone), 1.2, "of the same, not told"),
    )


# What is done through the mount is reported to the teller. Stopped, its queue fills.
_MAX_UNHEARD = 50


def _teller_of(daemon: int) -> int:
    children: list[str] = []
    while not children:
        time.sleep(0.01)
        tasks = Path(f"/proc/{daemon}/task").glob("*/children")
        children = "".join(path.read_text() for path in tasks).split()
    return int(children[0])
