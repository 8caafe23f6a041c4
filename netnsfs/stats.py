"""What the file system remembers of itself: counts of requests, and the last refusal."""

import errno
import time
from collections import Counter


class Stats:
    """Kept by the adapter, shown by `last_error` and `metrics`.

    Attributes:
        began: when the file system was started, seconds since the epoch.
        requests: how many of each kind the kernel has made.
        errors: how many were refused, by kind of request and name of the errno.
        last: why the last refused change failed, one line.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.requests: Counter[str] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.last = b"ok\n"

    def count_error(self, request: str, code: int) -> None:
        """Count a request that got an error.

        Args:
            request: its kind.
            code: the errno.
        """
        self.errors[request, errno.errorcode.get(code, "EIO")] += 1

    def remember_refusal(
        self, operation: str, name: bytes, error: OSError, pid: int = 0
    ) -> None:
        """Remember why a change was refused.

        Args:
            operation: what was to be done.
            name: to what.
            error: the reason.
            pid: who asked; 0 if that is not known.
        """
        code = errno.errorcode.get(error.errno or 0, "EIO")
        # Without b'': a name may have any byte, and this stays one line of ASCII.
        shown = repr(name)[2:-1]
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        reason = f"{operation} {shown}: {error.strerror} ({code})"
        self.last = f"{reason}, PID {pid}, {when}\n".encode()
