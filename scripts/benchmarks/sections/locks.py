"""What root waits for while a crowd of strangers keeps a directory locked, beside a tmpfs.

mkdir(2) and rename(2) lock the directory, and look the name up, before it is asked who may. So
strangers who may do nothing there can still keep others waiting, on every file system.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mounts import MNT, RUN, netnsfs
from benchmarks.programs import command
from benchmarks.report import duration, heading, table
from benchmarks.scale import Scale

TMPFS = Path("/mnt/tmpfs")

STRANGERS = """
import os, sys, threading
call, paths, count = getattr(os, sys.argv[1]), sys.argv[3:], int(sys.argv[2])
os.setgroups([]), os.setgid(65534), os.setuid(65534)
def work():
    while True:
        try:
            call(*paths)
        except OSError:
            pass
for _ in range(count):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""

# What the crowd calls, and with which paths.
CROWDS = {
    "mkdir of a name that exists": ("mkdir", "foo"),
    "mkdir of a name that does not": ("mkdir", "absent"),
    "mkdir of a name that is a link": ("mkdir", "link"),
    "mkdir of a link that leads nowhere": ("mkdir", "dangling"),
    "mkdir in links": ("mkdir", "foo/links/x"),
    "rename between links": ("rename", "foo/links/x", "bar/links/x"),
    "rename of a name": ("rename", "foo", "new"),
    "rmdir of a name": ("rmdir", "foo"),
}


def measure(scale: Scale) -> None:
    TMPFS.mkdir()
    command("mount", "-t", "tmpfs", "tmpfs", str(TMPFS))
    with netnsfs(MNT):
        for name in ("foo", "bar"):
            (MNT / name).mkdir()
            (TMPFS / name / "links").mkdir(parents=True)
        (RUN / "link").symlink_to("/proc/self/ns/net")
        (RUN / "dangling").symlink_to("/run/nowhere")
        for name in ("link", "dangling"):
            (TMPFS / name).mkdir()
        rows = [
            [what, side, *map(duration, _slowest(base, asked, scale).values())]
            for what, asked in CROWDS.items()
            for side, base in (("netnsfs", MNT), ("tmpfs", TMPFS))
        ]
    heading(
        "Strangers in a crowd",
        f"The slowest of root's calls in {scale.storm:.0f} s, while {scale.strangers:,} "
        "threads of a user who may do nothing there make one call again and again.",
    )
    table(["a crowd at", "on", *_actions(MNT)], rows)


def _slowest(base: Path, asked: tuple[str, ...], scale: Scale) -> dict[str, float]:
    """The slowest of each of root's calls beside a crowd."""
    slowest = dict.fromkeys(_actions(base), 0.0)
    with _crowd(base, asked, scale.strangers):
        end = time.monotonic() + scale.storm
        while time.monotonic() < end or not all(slowest.values()):
            for label, action in _actions(base).items():
                began = time.monotonic()
                action()
                slowest[label] = max(slowest[label], time.monotonic() - began)
    return slowest


def _actions(base: Path) -> dict[str, Callable[[], object]]:
    return {
        "ls": lambda: os.listdir(base),
        "ls links": lambda: os.listdir(base / "foo/links"),
        "stat": (base / "bar").stat,
        "mkdir": (base / "mine").mkdir,
        "mv": lambda: (base / "mine").rename(base / "ours"),
        "rmdir": (base / "ours").rmdir,
    }


@contextmanager
def _crowd(base: Path, asked: tuple[str, ...], count: int) -> Iterator[None]:
    call, *names = asked
    words = [sys.executable, "-c", STRANGERS, call, str(count), *(str(base / n) for n in names)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout
        if crowd.stdout.readline() != b"ready\n":
            sys.exit("bench: the crowd does not start")
        try:
            yield
        finally:
            crowd.send_signal(signal.SIGKILL)
