"""Interfaces: the other end of one, its addresses, and what connects all namespaces."""

import os

from benchmarks.mounts import MNT, netnsfs
from benchmarks.namespaces import cat, fill
from benchmarks.programs import command, for_each, tool
from benchmarks.race import Side, race, repeat
from benchmarks.report import heading, table, targets, with_size
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    ip, topology = tool("ip"), MNT / ".netnsfs/topology.dot"
    with netnsfs():
        fill(scale.scraped)
        _join(scale.scraped)
        link = MNT / "0000/links/to1"
        (link / "addresses").write_text("+10.0.0.1/24")
        words = [ip, "-n", "0000", "-j", "addr"]
        one = race(
            [
                Side("readlink peer", repeat(command, "readlink", str(link / "peer")), 20),
                Side("cat addresses", repeat(command, "cat", str(link / "addresses")), 20),
                Side("ip -n NAME -j addr", repeat(command, *words), 20),
                Side("netnsfs: readlink(2) of peer", repeat(os.readlink, link / "peer"), 100),
                Side("netnsfs: a read of addresses", repeat(cat, link / "addresses"), 100),
            ],
            scale.rounds,
        )
        drawn = with_size("netnsfs: cat .netnsfs/topology.dot", scale.scraped)
        asked = with_size("ip -n NAME -d -j addr for each", scale.scraped)
        programs = repeat(for_each, scale.scraped, ip, "-n", "NAME", "-d", "-j", "addr")
        whole = race(
            [Side(drawn, repeat(cat, topology), 1), Side(asked, programs, 1)],
            scale.listings,
        )
    heading(
        "Interfaces",
        "In each namespace are the ends of four veth pairs. The first three lines are "
        "programs, run anew each time.",
    )
    table(["operation", "median", "to ip"], one.rows("ip -n NAME -j addr") + whole.rows(asked))
    targets(
        ("readlink peer", one.ratio("readlink peer", "ip -n NAME -j addr"), 0.2, "of ip"),
        ("cat addresses", one.ratio("cat addresses", "ip -n NAME -j addr"), 0.2, "of ip"),
        ("topology.dot", whole.ratio(drawn, asked), 0.05, "of the loop"),
    )


def _join(size: int) -> None:
    """Join each namespace with the next two."""
    for number in range(size):
        for step in (1, 2):
            other = (number + step) % size
            target = MNT / f"{other:04d}/links/from{step}"
            (MNT / f"{number:04d}/links/to{step}").symlink_to(target)
