"""What more threads in foreign namespaces bring, without a file system in front."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.mounts import RUN
from benchmarks.namespaces import cat
from benchmarks.race import Side, race, repeat
from benchmarks.report import heading, table
from benchmarks.scale import Scale
from netnsfs import linux
from netnsfs.jobs import disposable, restoring_namespace, start_thread
from netnsfs.netns.names import NamedNamespaces


def measure(scale: Scale) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"foo")
    foo = names.open_namespace(b"foo")

    def make(name: bytes) -> None:
        names.create(name)
        names.remove(name)

    def look(_: bytes) -> None:
        with restoring_namespace():
            linux.setns(foo, linux.CLONE_NEWNET)
            cat(Path("/proc/thread-self/net/dev"))

    heading(
        "Threads in foreign namespaces, without a file system in front",
        "The kernel makes namespaces one after another, and all threads share one interpreter. "
        "So the daemon uses at most four threads for changes, eight for looks, and two for "
        "what takes long. Most are there for when one has to wait.",
    )
    for what, job in (("create + remove", make), ("read of net/dev", look)):
        sides = [
            Side(f"{what}, threads: {count}", partial(_in_threads, count, job), scale.pairs * 4)
            for count in (1, 2, 4, 8, 16)
        ]
        result = race(sides, scale.rounds, pause=0.05)
        table(["operation", "median", "to one thread"], result.rows(sides[0].label))
    os.close(foo)
    names.remove(b"foo")


def _in_threads(count: int, job: Callable[[bytes], None], calls: int) -> None:
    def work(number: int) -> None:
        with disposable():
            repeat(job, b"thread%d" % number)(calls // count)

    started = [start_thread(partial(work, number), "bench") for number in range(count)]
    for thread in started:
        thread.join()
