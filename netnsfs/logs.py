"""The log: one line for each event, to the terminal until the mount answers, then to syslog."""

import errno
import logging
import os
import socket
from collections import Counter
from contextlib import suppress
from time import monotonic

from netnsfs import linux
from netnsfs.config import one_line

SYSLOG = "/dev/log"
# LOG_DAEMON and the severities of syslog(3).
_LOG_DAEMON = 3 << 3
_SEVERITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class OneLineFormatter(logging.Formatter):
    """One line for each event, whatever is in a name or a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class SyslogHandler(logging.Handler):
    """Loses a line rather than stop the event loop, unlike the standard library's handler."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        priority = _LOG_DAEMON | _SEVERITY[record.levelno]
        with suppress(OSError):
            # By address each time, so that a syslogd may be started anew.
            self._socket.sendto(f"<{priority}>{self.format(record)}".encode(), SYSLOG)


class LostReplies(logging.Filter):
    """Makes no error of a reply that nobody waits for any more, but a line for -d.

    The kernel knows nothing of the request by then (ENOENT): its client was killed, or the
    connection was aborted, as umount -f does.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        # The text with which pyfuse3 logs a reply that has failed (handlers.pxi).
        if "fuse_reply_* failed" not in str(record.msg) or record.args not in _NOBODY_WAITS:
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger().isEnabledFor(logging.DEBUG)


class RateLimitFilter(logging.Filter):
    """Lets one line of a kind pass in a second: what users cause must not fill the disk.

    A kind is a message before names and numbers are put into it. What root has asked for
    (`ASKED_FOR`) always passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int, str], float] = {}
        self._held_back: Counter[tuple[str, int, str]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        # These are there only if somebody wants them all (-d).
        if record.levelno <= logging.DEBUG or hasattr(record, "asked_for"):
            return True
        kind = record.name, record.levelno, str(record.msg)
        now = monotonic()
        if now - self._last.get(kind, -_SECOND) < _SECOND:
            self._held_back[kind] += 1
            return False
        self._last[kind] = now
        if held_back := self._held_back.pop(kind, 0):
            record.msg = f"{record.msg} (and {held_back} more like this before)"
        return True


ASKED_FOR = {"asked_for": True}
"""The `extra` of such a line."""

_SECOND = 1.0

_NOBODY_WAITS = [(os.strerror(code),) for code in (errno.ENOENT, errno.ENODEV)]


def log_to_terminal(debug: bool) -> None:
    """Log to standard error from now on.

    Args:
        debug: log everything.
    """
    _log_to(logging.StreamHandler(), debug)


def leave_terminal(debug: bool) -> None:
    """Log to syslog from now on, and keep nothing of the terminal or the current directory."""
    _log_to(SyslogHandler(), debug)
    # A current directory keeps its file system from being unmounted.
    os.chdir("/")
    with linux.closing_fd(os.open(os.devnull, os.O_RDWR)) as null:
        for fd in (0, 1, 2):
            os.dup2(null, fd)


def _log_to(handler: logging.Handler, debug: bool) -> None:
    handler.addFilter(LostReplies())
    handler.addFilter(RateLimitFilter())
    handler.setFormatter(OneLineFormatter("netnsfs: %(levelname)s: %(message)s"))
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
