"""strace(1) at one thread of a running daemon: what it calls; calls that fail, or kill it."""

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from conftest import Mounted, error_of

LOG = Path("/run/strace")


class Call(NamedTuple):
    """A system call: its name, the how-manieth of that name it is, and how strace shows it."""

    name: str
    number: int
    shown: str

    def inject(self, what: str) -> str:
        """What makes strace do something to this call."""
        return f"inject={self.name}:{what}:when={self.number}"


def workers(mounted: Mounted) -> dict[str, int]:
    """The threads of a daemon that has not been asked yet, as long as there are no more.

    That is, as long as there is never more than one request at a time: the one that makes the
    changes ("worker"), the one that finds names ("finder"), and the one that looks ("looker").
    """
    finder = _started(mounted, (mounted / ".netnsfs/unnamed/1").lstat)
    looker = _started(mounted, (mounted / ".netnsfs/init").readlink)
    # A change that is refused, and touches nothing.
    worker = _started(mounted, (mounted / "x").symlink_to, "/nowhere")
    return {"worker": worker, "finder": finder, "looker": looker}


def _started(mounted: Mounted, action: Callable[..., object], *args: object) -> int:
    before = threads(mounted)
    assert error_of(action, *args) in ("", "ENOENT")
    [new] = threads(mounted) - before
    return new


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
