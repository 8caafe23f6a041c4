"""A directory made and removed by commands that are run anew, and from fresh processes."""

import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.mounts import MNT, SPARED, alone
from benchmarks.namespaces import counted
from benchmarks.programs import run, tool
from benchmarks.race import Curves, Side, race, repeat, timed
from benchmarks.report import duration, heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> Curves:
    with alone(MNT), alone(SPARED, "-o", "spare=16"):
        result = race(_command_pairs(scale), scale.rounds, pause=0.05)
        rows, ratios = [], []
        for label, at in (("netnsfs", MNT), ("netnsfs -o spare=16", SPARED)):
            for row, ratio in _hot_and_fresh(label, at, scale.paced):
                rows.append(row)
                ratios.append((f"{row[0]}, fresh process", ratio, 1.5, "of the hot loop"))
    programs, plain, spared, _ = result.seconds
    heading(
        "Making and removing a namespace, as a shell does",
        "Commands that are run anew each time. Most of it is the start of two processes.",
    )
    table(["operation", "median", "to ip netns"], result.rows(programs))
    heading(
        "One change from a fresh process",
        "From a loop in bursts of 16, and from a process that is forked for each call, with 5 "
        "ms before each. Only the call counts. Nothing is in the processor's caches then.",
    )
    table(["operation", "hot loop", "fresh process", "to the loop", "had a spare"], rows)
    targets(
        ("/bin/mkdir + /bin/rmdir", result.ratio(plain, programs), 1.0, "of ip netns"),
        ("the same, spare=16", result.ratio(spared, programs), 0.92, "of ip netns"),
        *ratios[2:],
    )
    return result.curves()


def _command_pairs(scale: Scale) -> list[Side]:
    ip, mkdir, rmdir, true = map(tool, ("ip", "mkdir", "rmdir", "true"))
    foo, spared = str(MNT / "foo"), str(SPARED / "spared")
    pairs: dict[str, tuple[list[str], list[str]]] = {
        "ip netns add + ip netns del": ([ip, "netns", "add", "ip"], [ip, "netns", "del", "ip"]),
        "netnsfs: /bin/mkdir + /bin/rmdir": ([mkdir, foo], [rmdir, foo]),
        "netnsfs -o spare=16: the same": ([mkdir, spared], [rmdir, spared]),
        "/bin/true twice": ([true], [true]),
    }
    return [Side(label, repeat(_run_each, both), 10) for label, both in pairs.items()]


def _run_each(commands: Sequence[Sequence[str]]) -> None:
    for words in commands:
        run(*words)


def _hot_and_fresh(label: str, at: Path, count: int) -> Iterator[tuple[list[str], float]]:
    """The lines of the table, and their ratios."""
    hot, _ = _times_of_changes(at, count, in_loop=True)
    fresh, hits = _times_of_changes(at, count, in_loop=False)
    for what, spares in (("mkdir", f"{hits / count:.0%}"), ("rmdir", "")):
        loop, process = median(hot[what]), median(fresh[what])
        shown = f"{process / loop:.2f}"
        row = [f"{label}: {what}", duration(loop), duration(process), shown, spares]
        yield row, process / loop


def _times_of_changes(
    at: Path, count: int, in_loop: bool
) -> tuple[dict[str, list[float]], float]:
    """How long mkdir and rmdir took, and how many spares were given out."""
    times: dict[str, list[float]] = {"mkdir": [], "rmdir": []}
    calls = {"mkdir": os.mkdir, "rmdir": os.rmdir}
    time.sleep(0.5)
    before = counted(at, 'netnsfs_spares_taken_total{result="hit"}')
    for number in range(count):
        if in_loop and number % 16 == 0:
            time.sleep(0.3)
        for what, call in calls.items():
            if not in_loop:
                time.sleep(0.005)
            measured = partial(timed, partial(call, at / "foo"))
            times[what].append(measured() if in_loop else _in_child(measured))
    return times, counted(at, 'netnsfs_spares_taken_total{result="hit"}') - before


def _in_child(call: Callable[[], float]) -> float:
    """What a call returns in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with suppress(OSError):
            os.write(writer, struct.pack("=d", call()))
        os._exit(0)
    os.close(writer)
    told = os.read(reader, 8)
    os.close(reader)
    os.waitpid(pid, 0)
    if not told:
        sys.exit("bench: a client has failed")
    took: float = struct.unpack("=d", told)[0]
    return took
