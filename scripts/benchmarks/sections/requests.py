"""What common commands ask the file system, in a mount with ten namespaces."""

from dataclasses import dataclass

from benchmarks.mounts import MNT, netnsfs
from benchmarks.namespaces import counted, fill
from benchmarks.programs import command
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale


@dataclass(frozen=True, slots=True)
class Step:
    """A command whose requests are counted.

    Attributes:
        words: the command.
        least: the requests that it cannot do without.
        because: why those, and why there is one more if there is.
        before: what makes it possible.
        after: what makes it undone.
    """

    words: list[str]
    least: int
    because: str
    before: list[str] | None = None
    after: list[str] | None = None


_ROOT = "; GETATTR of the mount point, whose attributes the kernel drops with each change in it"


def measure(scale: Scale) -> None:
    foo, old, new = (str(MNT / name) for name in ("0000", "old", "new"))
    steps = [
        Step(["stat", foo], 1, "LOOKUP: no name is kept by the kernel"),
        Step(["ls", str(MNT)], 4, "OPENDIR, READDIR, READDIR of the end, RELEASEDIR"),
        Step(
            ["ls", "-l", str(MNT)],
            34,
            "as ls, and three LOOKUPs of each of ten names, because ls asks by path for the "
            "attributes and two extended attributes; GETATTR of the mount point, at most once "
            "a second",
        ),
        Step(["cat", f"{foo}/inode"], 5, "LOOKUP, OPEN, READ, READ of the end, RELEASE"),
        Step(
            ["cat", f"{foo}/nsid"],
            6,
            "as inode, and GETATTR, because the owner may change; fstat(2) after open asks for "
            "the length of what was opened",
        ),
        Step(["mkdir", new], 2, "LOOKUP, MKDIR" + _ROOT, after=["rmdir", new]),
        Step(["rmdir", old], 2, "LOOKUP, RMDIR" + _ROOT, before=["mkdir", old]),
        Step(
            ["mv", old, new],
            3,
            "LOOKUP of both names, RENAME" + _ROOT,
            before=["mkdir", old],
            after=["rmdir", new],
        ),
    ]
    rows, figures = [], []
    with netnsfs():
        fill(10)
        for step in steps:
            reached = min(_requests_of(step) for _ in range(scale.listings))
            shown = " ".join(step.words).replace(f"{MNT}/0000", "NAME").replace(f"{MNT}/", "")
            rows.append([f"`{shown}`", str(reached), str(step.least), step.because])
            figures.append((f"{shown}", reached - step.least, 1, "above the least"))
    heading(
        "Requests",
        "How many requests a command makes when it is run for the second time, in a mount with "
        "ten namespaces, and how many it needs at least.",
    )
    table(["command", "requests", "least", "which"], rows)
    targets(*figures)


def _requests_of(step: Step) -> int:
    """The requests that a command makes when it is run for the second time."""
    counts = []
    for _ in range(2):
        if step.before:
            command(*step.before)
        _requested()
        before, again = _requested(), _requested()
        command(*step.words)
        counts.append(_requested() - again - (again - before))
        if step.after:
            command(*step.after)
    return counts[-1]


def _requested() -> int:
    return int(counted(MNT, "netnsfs_requests_total"))
