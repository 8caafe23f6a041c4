"""Small requests with the run directory on a disk, and on an overlay as in a container."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.mounts import FLOOR, OURSELVES, netnsfs, serving
from benchmarks.namespaces import read_once
from benchmarks.processors import one_processor
from benchmarks.programs import command
from benchmarks.race import Race, Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale

LAYERS = Path("/run/layers")
FLOOR_LABEL = "the pyfuse3 floor"


def measure(scale: Scale) -> None:
    with one_processor(), ExitStack() as stack:
        stack.enter_context(serving(FLOOR, *OURSELVES, "--floor"))
        places = {FLOOR_LABEL: FLOOR, "tmpfs": stack.enter_context(_mounted("tmpfs", "/run"))}
        disk = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        kind = command("stat", "-f", "-c", "%T", disk).strip()
        places[kind.replace("ext2/ext3", "ext4")] = stack.enter_context(_mounted(kind, disk))
        overlay = stack.enter_context(_overlay())
        places["overlay"] = stack.enter_context(_mounted("overlay", overlay))
        results = {
            "stat": _race(places, "stat", scale),
            "open + read + close": _race(places, "open + read + close", scale),
        }
    heading(
        "The run directory",
        "The floor is that of the small requests; client and servers are on one processor.",
    )
    rows = [
        row for what, result in results.items() for row in result.rows(f"{FLOOR_LABEL}: {what}")
    ]
    table(["operation, by file system", "median", "to the pyfuse3 floor"], rows)
    first = results["stat"]
    targets(
        *(
            (label, first.ratio(label, f"{FLOOR_LABEL}: stat"), 0.6, "of the floor")
            for label in first.seconds
            if not label.startswith(FLOOR_LABEL)
        )
    )


@contextmanager
def _mounted(kind: str, place: str) -> Iterator[Path]:
    """Keep netnsfs mounted with a run directory in a place."""
    at, names = Path("/mnt") / f"on-{kind.replace('/', '-')}", Path(place) / "names"
    at.mkdir()
    with netnsfs(at, run_directory=names):
        (at / "foo").mkdir()
        yield at
    subprocess.run(["umount", "-l", names], check=True)
    names.rmdir()


@contextmanager
def _overlay() -> Iterator[str]:
    for name in ("low", "up", "work", "all"):
        (LAYERS / name).mkdir(parents=True)
    layers = f"lowerdir={LAYERS}/low,upperdir={LAYERS}/up,workdir={LAYERS}/work"
    command("mount", "-t", "overlay", "overlay", "-o", layers, str(LAYERS / "all"))
    yield str(LAYERS / "all")
    command("umount", "-l", str(LAYERS / "all"))


def _race(places: dict[str, Path], what: str, scale: Scale) -> Race:
    call, name = (os.stat, "foo") if what == "stat" else (read_once, "foo/inode")
    sides = [
        Side(f"{label}: {what}", repeat(call, at / name), scale.calls)
        for label, at in places.items()
    ]
    return race(sides, scale.rounds)
