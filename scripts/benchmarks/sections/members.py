"""The members of a namespace, among many processes that are none."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.crowds import sleepers
from benchmarks.mounts import BY_PROC, MNT, both_ways
from benchmarks.namespaces import cat
from benchmarks.programs import command, tool
from benchmarks.race import Race, Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    names = ["foo", *(f"{number:04d}" for number in range(1, scale.asked))]
    with both_ways():
        for name in names:
            (MNT / name).mkdir()
        with sleepers(scale.sleepers, scale.members):
            one, many = _looks_at_one(scale), _looks_at_each(names, scale)
    heading(f"Members, {scale.members:,} of {scale.sleepers:,} sleeping processes")
    table(["operation", "median", "to ip netns pids"], one.rows("ip netns pids"))
    table(
        [f"operation on {scale.asked} namespaces", "median", "to ip netns pids for each"],
        many.rows("ip netns pids for each"),
    )
    _member_targets(one, many)


def _ip_netns_pids(name: str) -> str:
    return command(tool("ip"), "netns", "pids", name)


def _looks_at_one(scale: Scale) -> Race:
    ps = partial(command, tool("ps"), "-o", "cgroup=", "-p")
    # It fails if a process ends while it looks.
    lsns = partial(command, tool("lsns"), "-t", "net", check=False)
    groups = repeat(lambda: ps(",".join(_ip_netns_pids("foo").split())))
    return race(
        [
            *_sides("cat pids", lambda at: cat(at / "foo/pids"), scale),
            Side("ip netns pids", repeat(_ip_netns_pids, "foo"), scale.commands),
            *_sides("cat cgroups", lambda at: cat(at / "foo/cgroups"), scale),
            Side("ps -o cgroup of ip netns pids", groups, scale.commands),
            *_sides("ls unnamed", lambda at: os.listdir(at / ".netnsfs/unnamed"), scale),
            *_sides("cat holders", lambda at: cat(at / "foo/holders"), scale),
            Side("lsns -t net", repeat(lsns), scale.commands),
        ],
        scale.rounds,
    )


def _looks_at_each(names: list[str], scale: Scale) -> Race:
    each = repeat(lambda: [*map(_ip_netns_pids, names)])
    return race(
        [
            *_sides("cat */pids", lambda at: [cat(at / n / "pids") for n in names], scale),
            Side("ip netns pids for each", each, 1),
        ],
        scale.listings,
    )


def _member_targets(one: Race, many: Race) -> None:
    targets(
        ("cat pids", one.ratio("netnsfs: cat pids", "ip netns pids"), 0.1, "of ip netns pids"),
        (
            "cat pids, through /proc",
            one.ratio("through /proc: cat pids", "ip netns pids"),
            1.0,
            "of ip netns pids",
        ),
        (
            "cat */pids",
            many.ratio("netnsfs: cat */pids", "ip netns pids for each"),
            0.1,
            "of ip netns pids for each",
        ),
        (
            "cat cgroups",
            one.ratio("netnsfs: cat cgroups", "ps -o cgroup of ip netns pids"),
            0.2,
            "of ps -o cgroup of ip netns pids",
        ),
        ("ls unnamed", one.ratio("netnsfs: ls unnamed", "lsns -t net"), 0.15, "of lsns -t net"),
        (
            "cat holders",
            one.ratio("netnsfs: cat holders", "lsns -t net"),
            0.15,
            "of lsns -t net",
        ),
    )


def _sides(label: str, function: Callable[[Path], object], scale: Scale) -> list[Side]:
    return [
        Side(f"netnsfs: {label}", repeat(function, MNT), scale.commands),
        Side(f"through /proc: {label}", repeat(function, BY_PROC), scale.commands),
    ]
