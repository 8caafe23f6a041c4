"""Has watchers of a mount told of the names that others make and remove: the teller.

The teller is a process that hears of changes in the run directory and makes the same ones in
the mount (see `events_child`); the one that serves the mount answers it without doing anything,
and the kernel tells the watchers.

It is a process, not a thread: what waits for an answer from a FUSE server does not end before
that, killed or not. A thread that waits for its own process would keep that alive, with
/dev/fuse open, after a SIGKILL: neither would ever end. A process that waits for another gets
its answer from the kernel as soon as that has ended.

It works alone. Nobody waits for it, and what it misses it finds out when it is started again.
"""

import logging
import os
import socket
import sys
import time
from contextlib import suppress
from typing import NamedTuple, Protocol

import netnsfs
from netnsfs import linux
from netnsfs.netns import events_child

# No site packages, and nothing from the environment, so that it starts quickly.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    f"from {events_child.__name__} import main; main(*sys.argv[2:])"
)
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(netnsfs.__file__)))
_NULL = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0)]
# Before another is started, and the most where each one fails.
_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 60.0

log = logging.getLogger(__name__)


class Told(Protocol):
    """What watchers have been told of, on the side of the mount: see `fuse.told`."""

    password: bytes

    def report_to(self, channel: socket.socket | None) -> list[bytes]:
        """Report from now on, and return the names that watchers know to stand."""

    def admit_teller(self, process: int) -> None:
        """Answer a process as the teller from now on."""

    def dismiss_teller(self) -> None:
        """Answer nobody as the teller."""


class Place(NamedTuple):
    """Where names are, and where they are told of.

    Attributes:
        run_dir: the run directory.
        mount_point: where the mount is that has watchers.
        dev, mount: what tells that mount from any other (statx(2)).
        reserved: a name that is not told of.
    """

    run_dir: bytes
    mount_point: bytes
    dev: int
    mount: int
    reserved: bytes


def keep_telling(place: Place, told: Told) -> None:
    """Have a teller at work. Returns if there can be none.

    Args:
        place: where.
        told: what watchers have been told.
    """
    pause = _PAUSE_SECONDS
    while True:
        started = time.monotonic()
        try:
            if _tell(place, told) == events_child.UNKNOWN:
                log.warning("the kernel tells no watcher of the mount what others do")
                return
        except OSError as error:
            # The machine is short of something (processes, descriptors, memory), for now.
            log.warning("watchers of the mount are told late: %s", error.strerror)
        lasted = time.monotonic() - started > _MAX_PAUSE_SECONDS
        pause = _PAUSE_SECONDS if lasted else min(2 * pause, _MAX_PAUSE_SECONDS)
        time.sleep(pause)


def _tell(place: Place, told: Told) -> int:
    """Start a teller and wait for its end. Returns its exit status."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)
        try:
            with theirs, linux.closing_fd(_written(told.report_to(ours))) as names:
                process = _start(place, told.password, theirs.fileno(), names)
            return _serve(process, ours, told)
        finally:
            told.report_to(None)


def _written(names: list[bytes]) -> int:
    """A file in memory with names, each followed by a NUL."""
    fd = os.memfd_create("names", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.writelines(name + b"\0" for name in names)
    return fd


def _serve(process: int, channel: socket.socket, told: Told) -> int:
    told.admit_teller(process)
    try:
        with suppress(OSError):
            channel.send(events_child.BEGIN)
        # Its process ID is given to another only after waitpid(2).
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    finally:
        told.dismiss_teller()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _start(place: Place, password: bytes, channel: int, names: int) -> int:
    where = [part if isinstance(part, bytes) else b"%d" % part for part in place]
    options: list[str | bytes] = ["-I", "-S", "-c", _PROGRAM, _PACKAGES, password]
    # Without setsigmask, it would inherit the signals that the calling thread blocks.
    return os.posix_spawn(
        sys.executable,
        [*map(os.fsencode, (sys.executable, *options)), *where],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, channel, events_child.DAEMON),
            (os.POSIX_SPAWN_DUP2, names, events_child.NAMES),
            *_NULL,
        ],
        setsigmask=(),
    )
