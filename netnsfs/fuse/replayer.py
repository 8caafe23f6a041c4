"""Starts the replayer, and starts it again if it ends.

The replayer is a process that hears of changes in the run directory and makes the same ones in
the mount (see `replayer_child`). `replay` answers it, and the kernel reports the changes to the
watchers of the mount.

It is a process, not a thread: what waits for an answer from a FUSE server does not end before
that, killed or not. A thread that waits for its own process would keep that alive, with
/dev/fuse open, after a SIGKILL: neither would ever end. A process that waits for another gets
its answer from the kernel as soon as that has ended.

It works alone. Nobody waits for it, and what it misses it finds out when it is started again.
"""

import logging
import os
import select
import socket
import sys
import time
from contextlib import suppress
from functools import partial

import netnsfs
from netnsfs import linux
from netnsfs.fuse import replayer_child
from netnsfs.fuse.replay import ReportedNames
from netnsfs.fuse.replayer_child import ReplayTarget

# No site packages, and nothing from the environment, so that it starts quickly.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    f"from {replayer_child.__name__} import main; main(*sys.argv[2:])"
)
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(netnsfs.__file__)))
_NULL = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0)]
# Before another is started, and the most where each one fails. No replayer ends because many
# names change: what it has no time to read waits for it.
_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 60.0

_MISSED = "watchers of the mount may have missed names that were created and deleted again"

log = logging.getLogger(__name__)


def keep_replaying(target: ReplayTarget, reported: ReportedNames) -> None:
    """Keep a replayer running. Returns if there can be none.

    Args:
        target: what it replays, and where.
        reported: the names that watchers know.
    """
    pause = _PAUSE_SECONDS
    while True:
        started = time.monotonic()
        try:
            if _run_replayer(target, reported) == replayer_child.UNKNOWN:
                log.warning("the kernel reports to no watcher of the mount what others do")
                return
        except OSError as error:
            # The machine is short of something (processes, descriptors, memory), for now.
            log.warning("watchers of the mount hear of changes late: %s", error.strerror)
        if time.monotonic() - started > _MAX_PAUSE_SECONDS:
            pause = _PAUSE_SECONDS
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        log.warning("%s while its replayer was restarted", _MISSED)


def _run_replayer(target: ReplayTarget, reported: ReportedNames) -> int:
    """Start a replayer and wait for its end. Returns its exit status."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    full = os.eventfd(0, os.EFD_CLOEXEC)
    with ours, linux.closing_fd(full):
        known = reported.start_sending(ours, partial(os.eventfd_write, full, 1))
        try:
            with theirs, linux.closing_fd(_written(known)) as names:
                process = _start(target, reported.password, theirs.fileno(), names)
            return _serve(process, ours, full, reported)
        finally:
            reported.stop_sending()


def _written(names: list[bytes]) -> int:
    """A file in memory with names, each followed by a NUL."""
    fd = os.memfd_create("names", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.writelines(name + b"\0" for name in names)
    return fd


def _serve(process: int, channel: socket.socket, full: int, reported: ReportedNames) -> int:
    reported.admit_replayer(process)
    try:
        with suppress(OSError):
            channel.send(replayer_child.BEGIN)
            _serve_channel(channel, full, reported)
        # Its process ID is given to another only after waitpid(2).
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    finally:
        reported.dismiss_replayer()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _serve_channel(channel: socket.socket, full: int, reported: ReportedNames) -> None:
    """Send what the channel had no room for, when it has, until the replayer has ended."""
    poll = select.poll()
    poll.register(full, select.POLLIN)
    while True:
        poll.register(channel, select.POLLIN | select.POLLOUT * (not reported.send_unsent()))
        ready = dict(poll.poll())
        events = ready.get(channel.fileno(), 0)
        if events & select.POLLHUP:
            return
        if events & select.POLLIN and channel.recv(1) == replayer_child.MISSED:
            log.warning("%s when too many changed at once", _MISSED)
        if full in ready:
            os.eventfd_read(full)


def _start(target: ReplayTarget, password: bytes, channel: int, names: int) -> int:
    options: list[str | bytes] = ["-I", "-S", "-c", _PROGRAM, _PACKAGES, password]
    # Without setsigmask, it would inherit the signals that the calling thread blocks.
    return os.posix_spawn(
        sys.executable,
        [*map(os.fsencode, (sys.executable, *options)), *target.to_arguments()],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, channel, replayer_child.DAEMON),
            (os.POSIX_SPAWN_DUP2, names, replayer_child.NAMES),
            *_NULL,
        ],
        setsigmask=(),
    )
