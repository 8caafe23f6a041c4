"""strace(1) at one thread of a running daemon: what it calls; calls that fail, or kill it."""

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from conftest import Mounted, error_of

LOG = Path("/run/strace")
WORK = ("locked", "read", "mutate", "write")


class Call(NamedTuple):
    """A system call: its name, the how-manieth of that name it is, and how strace shows it."""

    name: str
    number: int
    shown: str

    def inject(self, what: str) -> str:
        """What makes strace do something to this call."""
        return f"inject={self.name}:{what}:when={self.number}"


def workers(mounted: Mounted) -> dict[str, int]:
    """The worker of each pool, as long as there is never more than one request at a time.

    That is, the one that makes the changes ("mutate"), the one that finds names ("locked"), the
    one that reads ("read"), and the one that writes to files ("write").
    """

    def write_nonsense() -> None:
        with open(mounted / ".netnsfs/init/nsid", "wb", buffering=0) as file:
            file.write(b"x")

    # One that finds nothing, and changes that are refused and touch nothing.
    actions = (
        (mounted / ".netnsfs/init/links/none").lstat,
        partial((mounted / "x").symlink_to, "/-"),
        write_nonsense,
    )
    for action in (*actions, (mounted / ".netnsfs/init").readlink):
        assert error_of(action) in ("", "ENOENT", "EINVAL")
    return {work: thread_named(mounted, f"netnsfs-{work}") for work in WORK}


def thread_named(mounted: Mounted, name: str) -> int:
    [tid] = (tid for tid in threads(mounted) if name_of(mounted, tid) == name)
    return tid


def name_of(mounted: Mounted, tid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{mounted.process.pid}/task/{tid}/comm").read_text().strip()
    return ""


def threads(mounted: Mounted) -> set[int]:
    return {int(tid.name) for tid in Path(f"/proc/{mounted.process.pid}/task").iterdir()}


@contextmanager
def attached(tid: int, *expressions: str) -> Iterator[None]:
    """Let strace follow a thread until the block, or the process, ends."""
    options = [word for expression in expressions for word in ("-e", expression)]
    command = ["strace", "-yy", "-s", "0", "-o", str(LOG), *options, "-p", str(tid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"attached" in process.stderr.readline()
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)


def calls(tid: int, operation: Callable[[], object], *expressions: str) -> list[Call]:
    """What a thread calls during an operation."""
    with attached(tid, *expressions):
        operation()
    found = re.findall(r"^(\w+)(\(.*)$", LOG.read_text(), re.MULTILINE)
    LOG.unlink()
    count: Counter[str] = Counter()
    made = []
    for name, rest in found:
        count[name] += 1
        made.append(Call(name, count[name], name + rest))
    return made
