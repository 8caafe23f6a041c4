"""A directory made and removed, beside the other ways to make and remove a namespace."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from benchmarks.mounts import MNT, SPARED, alone
from benchmarks.namespaces import (
    bare_make,
    bare_remove,
    mkdir_rmdir,
    own_namespace,
    prepare_run,
)
from benchmarks.programs import command, ip_netns, tool
from benchmarks.race import Curves, Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale
from netnsfs import linux


def measure(scale: Scale) -> Curves:
    from pyroute2 import netns

    def forked() -> None:
        netns.create("pyroute2")
        netns.remove("pyroute2")

    def ip_batch(count: int) -> None:
        command(tool("ip"), "-batch", "-", text="netns add batch\nnetns del batch\n" * count)

    with alone(MNT), alone(SPARED, "-o", "spare=64"), _bare() as bare:
        sides = [
            Side("system calls alone", bare, scale.pairs),
            Side("netnsfs: mkdir + rmdir", repeat(mkdir_rmdir, MNT / "foo"), scale.pairs),
            Side(
                "netnsfs -o spare=64: the same",
                repeat(mkdir_rmdir, SPARED / "spared"),
                scale.pairs,
            ),
            Side("pyroute2: create + remove", repeat(forked), scale.commands),
            Side("ip -batch: add + del", ip_batch, scale.pairs),
            Side("ip netns add + ip netns del", repeat(ip_netns, "ip"), scale.commands),
        ]
        result = race(sides, scale.rounds, pause=0.05)
    calls, mount, spared, _, batch, _ = result.seconds
    heading(
        "Making and removing a namespace, in a loop",
        'One after another, from one process. "System calls alone" are unshare, bind mount, '
        "umount and unlink in a loop, without a file system in front. `ip -batch` is one "
        "process too.",
    )
    table(
        ["operation", "median", "to system calls alone", "to ip -batch"],
        result.rows(calls, batch),
    )
    targets(
        ("mkdir + rmdir", result.ratio(mount, calls), 2.0, "of system calls alone"),
        ("mkdir + rmdir, spare=64", result.ratio(spared, batch), 0.9, "of ip -batch"),
    )
    return result.curves()


@contextmanager
def _bare() -> Iterator[Callable[[int], None]]:
    """The system calls that there is no way around, in a loop on a thread of its own."""

    def pair(home: int) -> None:
        bare_make(b"bare")
        linux.setns(home, linux.CLONE_NEWNET)
        bare_remove(b"bare")

    prepare_run()
    with own_namespace() as home, ThreadPoolExecutor(1) as thread:
        yield lambda count: thread.submit(repeat(pair, home), count).result()
