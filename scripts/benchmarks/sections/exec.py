"""A program run in a namespace, beside the other ways to do that."""

from benchmarks.mounts import MNT, RUN, netnsfs
from benchmarks.programs import run, tool
from benchmarks.race import Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    program = tool("true")
    ways = {
        "ip netns exec blue true": (tool("ip"), "netns", "exec", "blue", program),
        "netnsfs: blue/exec true": (str(MNT / "blue/exec"), program),
        "nsenter --net=": (tool("nsenter"), f"--net={RUN}/blue", program),
        "true": (program,),
    }
    with netnsfs():
        (MNT / "blue").mkdir()
        sides = [Side(label, repeat(run, *words), scale.pairs) for label, words in ways.items()]
        result = race(sides, scale.rounds)
    theirs, ours, *_ = ways
    heading(
        "Running a program in a namespace",
        "From the start of the one program to the end of the other. nsenter mounts no /sys, "
        "and binds no files over those in /etc. The last line is the program alone.",
    )
    table(["way", "median", "to ip netns exec"], result.rows(theirs))
    targets(("exec", result.ratio(ours, theirs), 0.75, "of ip netns exec"))
