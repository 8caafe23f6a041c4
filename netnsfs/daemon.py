"""From the command to the running daemon.

The fork comes first, before anything that a fork would split (threads, the FUSE session,
the event loop). The parent waits for the child's word, one byte with the exit status, and
so ends when the mount answers or with the reason why it never will.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from netnsfs import linux, running
from netnsfs.config import EXIT_SYSTEM, EXIT_USAGE, Config, Failure, one_line
from netnsfs.fuse import session, takeover
from netnsfs.netns import spares
from netnsfs.netns.names import Names
from netnsfs.netns.spares import Spares
from netnsfs.stats import Stats
from netnsfs.tree.root import Root

log = logging.getLogger(__name__)

SYSLOG = "/dev/log"
_LOG_DAEMON = 3 << 3
_SEVERITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def run(config: Config) -> int:
    """Serve a mount, in front or in the background.

    Returns:
        The exit status of the command: in front when the mount has ended, in the
        background when it answers.
    """
    if config.foreground:
        _log_to(logging.StreamHandler(), config)
        return _serve(config, lambda: None)
    # What a shell has left open (a lock, a pipe) is not ours to keep.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        # A child that dies without a word closes the pipe.
        return (os.read(reader, 1) or bytes([EXIT_SYSTEM]))[0]
    os.close(reader)
    os.setsid()
    _log_to(logging.StreamHandler(), config)

    def report(status: int) -> None:
        with suppress(BrokenPipeError):
            os.write(writer, bytes([status]))

    def ready() -> None:
        _leave_terminal(config)
        report(0)

    status = _serve(config, ready)
    report(status)
    return status


def _serve(config: Config, ready: Callable[[], None]) -> int:
    names = Names(config.run_dir, Spares(config.spare))
    # No child process may speak for us.
    tell = partial(_tell_manager, os.environ.pop("NOTIFY_SOCKET", ""))

    try:
        takeover.check_machine()
        # With it, the kernel would show its addresses in net/ to those whom it would not.
        linux.drop_capability(linux.CAP_SYSLOG)
        with takeover.only_one_start(config.mount_point) as unlock:
            config = replace(config, mount_point=takeover.clear(config.mount_point))
            _refuse_inside(config)
            _warn_if_unseen()
            _warn_if_closed(config)
            _refuse_spares(config)
            stats = Stats()
            root = Root(names, stats, config)

            def mounted(device: int) -> None:
                names.links.avoid = {device}
                unlock()

            def answers() -> None:
                ready()
                names.spares.start()
                tell("READY=1")

            session.serve(root, stats, config, mounted, answers)
            tell("STOPPING=1")
    except Failure as failure:
        already = isinstance(failure, takeover.AlreadyMounted)
        if already and config.repeatable and running.serves(config):
            return 0
        print(f"netnsfs: {failure}", file=sys.stderr)
        return failure.status
    except Exception:
        log.exception("netnsfs ends")
        return EXIT_SYSTEM
    return 0


def _refuse_spares(config: Config) -> None:
    if config.spare and not spares.spares_possible():
        message = "spare= needs the machine's initial network namespace: leave it out"
        raise Failure(message, EXIT_USAGE)


def _tell_manager(address: str, state: str) -> None:
    """As sd_notify(3), but that it never waits: the event loop does not stop for it."""
    if not address:
        return
    path = os.fsencode(address)
    if path.startswith(b"@"):
        path = b"\0" + path[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(state.encode(), path)
    except OSError as error:
        log.warning("cannot tell %s to the service manager: %s", state, error.strerror)


def _refuse_inside(config: Config) -> None:
    """The daemon may not look for names below its own mount: it would wait for itself."""
    if os.path.commonpath([config.mount_point, config.run_dir]) == config.mount_point:
        shown = os.fsdecode(config.run_dir)
        message = f"the directory of names, {shown}, may not lie in the mount point"
        raise Failure(message, EXIT_USAGE)


def _warn_if_unseen() -> None:
    with suppress(OSError):
        if os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt"):
            log.warning(
                "this is not the machine's mount namespace: namespaces made here may not be "
                "seen outside of it"
            )


def _warn_if_closed(config: Config) -> None:
    directory = config.run_dir
    while not os.path.exists(directory):
        directory = os.path.dirname(directory)
    if not config.read_only and not os.access(directory, os.W_OK):
        shown = os.fsdecode(config.run_dir)
        log.warning("no name can be made in %s: give another directory with -o rundir=", shown)


class _Line(logging.Formatter):
    """One line for each event, whatever is in a name or a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class _Syslog(logging.Handler):
    """Rather loses a line than stops the event loop, unlike the standard library's handler."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        priority = _LOG_DAEMON | _SEVERITY[record.levelno]
        with suppress(OSError):
            # By address each time, so that a syslogd may be started anew.
            self._socket.sendto(f"<{priority}>{self.format(record)}".encode(), SYSLOG)


def _log_to(handler: logging.Handler, config: Config) -> None:
    handler.setFormatter(_Line("netnsfs: %(levelname)s: %(message)s"))
    level = logging.DEBUG if config.debug else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _leave_terminal(config: Config) -> None:
    _log_to(_Syslog(), config)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
