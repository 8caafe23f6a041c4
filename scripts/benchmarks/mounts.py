"""Mounts of our own: where everything is, and the file systems that are measured."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from benchmarks.programs import command
from netnsfs import linux
from netnsfs.netns.names import NamedNamespaces

CHECKOUT = Path(__file__).resolve().parents[2]

OURSELVES = sys.executable, str(CHECKOUT / "scripts/bench")
"""For the programs that a run starts for itself."""

RUN = Path("/run/netns")
MNT = Path("/mnt/netnsfs")
SPARED = Path("/mnt/spared")
FLOOR = Path("/mnt/floor")
C_FLOOR = Path("/mnt/c-floor")
CALLING = Path("/mnt/calling")
BY_PROC = Path("/mnt/proc")

CLONE_NEWNS = 0x20000
START_SECONDS = 20.0
STOP_SECONDS = 20.0


def enter_own_mounts() -> None:
    """Leave the machine's mounts for our own, where /run and /mnt are empty."""
    linux.unshare(CLONE_NEWNS)
    linux.mount(None, b"/", linux.MS_REC | linux.MS_PRIVATE)
    for directory in ("/run", "/mnt"):
        command("mount", "-t", "tmpfs", "tmpfs", directory)
    # Where ip and pyroute2 look for names.
    if os.path.realpath("/var/run/netns") != str(RUN):
        sys.exit("bench: /var/run does not lead to /run: the machine's own names would be used")
    for path in (MNT, SPARED, FLOOR, C_FLOOR, CALLING, BY_PROC):
        path.mkdir()


@contextmanager
def serving(at: Path, *words: str) -> Iterator[int]:
    """Keep a file system mounted; gives the process ID of its server."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*words, str(at)], stderr=log, cwd=CHECKOUT)
        try:
            if not _mounted(at, process):
                log.seek(0)
                sys.exit(f"bench: no mount at {at}\n{log.read().decode(errors='replace')}")
            yield process.pid
        finally:
            _end(process)
            with suppress(OSError):
                linux.umount(bytes(at), linux.MNT_DETACH)


def _mounted(at: Path, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        top = linux.mount_at(bytes(at))
        if top is not None and top.fs_type.startswith(b"fuse"):
            os.stat(at)
            return True
        time.sleep(0.01)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def netnsfs(at: Path = MNT, *options: str, run_directory: Path = RUN) -> Iterator[int]:
    """Keep netnsfs mounted, and remove all names afterwards."""
    options += ("-o", f"rundir={run_directory}")
    with serving(at, sys.executable, "-m", "netnsfs", "-f", *options) as pid:
        try:
            yield pid
        finally:
            names = NamedNamespaces(bytes(run_directory))
            for name in names.list_names():
                names.remove(name)


def alone(at: Path, *options: str) -> AbstractContextManager[int]:
    """Netnsfs with names of its own: it has no watchers told of what the other sides do."""
    return netnsfs(at, *options, run_directory=Path("/run") / at.name)


@contextmanager
def both_ways() -> Iterator[None]:
    """Serve netnsfs at /mnt/netnsfs, and beside it one that may not look in the kernel."""
    refused = str(CHECKOUT / "tests/without_bpf.py")
    without = sys.executable, refused, sys.executable, "-m", "netnsfs", "-f"
    with netnsfs(), serving(BY_PROC, *without):
        yield
