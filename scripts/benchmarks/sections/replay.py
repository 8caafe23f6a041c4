"""The cost of replaying others' changes for watchers: with a replayer, and with it stopped."""

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
        replayer = _replayer_of(daemon)

        def stopped(run: Callable[[int], None], count: int) -> None:
            os.kill(replayer, signal.SIGSTOP)
            try:
                run(count)
            finally:
                os.kill(replayer, signal.SIGCONT)

        programs, made = repeat(ip_netns, "replay"), repeat(mkdir_rmdir, MNT / "foo")
        sides = [
            Side(
                "ip netns add + del, not replayed", partial(stopped, programs), scale.commands
            ),
            Side("ip netns add + del", programs, scale.commands),
            Side("mkdir + rmdir, not replayed", partial(stopped, made), count),
            Side("mkdir + rmdir", made, count),
        ]
        # The replayer catches up in the pause.
        result = race(sides, scale.rounds, pause=0.1)
    without, replayed, alone, beside = result.seconds
    heading(
        "Replay",
        "The cost of replaying in the mount what others do, for its watchers, while nobody "
        'watches. "Not replayed" is with the replayer stopped, the process that does it.',
    )
    table(["operation", "median", "to ip, not replayed"], result.rows(without))
    targets(
        (
            "ip netns add + del",
            result.ratio(replayed, without),
            1.1,
            "of the same, not replayed",
        ),
        ("mkdir + rmdir", result.ratio(beside, alone), 1.2, "of the same, not replayed"),
    )


# What is done through the mount is reported to the replayer. Stopped, its queue fills.
_MAX_UNHEARD = 50


def _replayer_of(daemon: int) -> int:
    children: list[str] = []
    while not children:
        time.sleep(0.01)
        tasks = Path(f"/proc/{daemon}/task").glob("*/children")
        children = "".join(path.read_text() for path in tasks).split()
    return int(children[0])
