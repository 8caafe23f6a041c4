"""Many that make and remove namespaces at once, by commands that are run anew."""

from functools import partial

from benchmarks.crowds import share_out
from benchmarks.mounts import MNT, netnsfs
from benchmarks.programs import run, tool
from benchmarks.race import Curves, Side, race
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> Curves:
    ip, mkdir, rmdir = tool("ip"), tool("mkdir"), tool("rmdir")

    def programs(name: str) -> None:
        run(ip, "netns", "add", name)
        run(ip, "netns", "del", name)

    def directories(name: str) -> None:
        run(mkdir, str(MNT / name))
        run(rmdir, str(MNT / name))

    curves: Curves = {}
    rows, figures = [], []
    with netnsfs():
        for count in scale.clients:
            calls = max(2 * count, 16)
            sides = [
                Side("/bin/mkdir + /bin/rmdir", partial(share_out, count, directories), calls),
                Side("ip netns add + del", partial(share_out, count, programs), calls),
            ]
            result = race(sides, scale.rounds, pause=0.05)
            mount, program = result.seconds
            for label, shown, each in result.rows(program):
                curves.setdefault(label, {})[count] = result.median(label)
                rows.append([f"{label}, clients: {count}", shown, each])
            reached = result.ratio(mount, program)
            figures.append((f"clients: {count}", reached, 1.0, "of as many ip netns"))
    heading(
        "Clients at once, time for each namespace",
        "Each client makes a namespace and removes it, by commands that are run anew.",
    )
    table(["operation", "median", "to ip netns"], rows)
    targets(*figures)
    return curves
