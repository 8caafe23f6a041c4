"""A user who does all that everyone may do, a thousand times at once, beside others who work.

    python hostile.py UID SECONDS

At the end it prints, as JSON, how often it did what, and errors that nobody could expect.
"""

import ctypes
import errno
import json
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

MNT = Path("/mnt/netnsfs")
CORNER = MNT / ".netnsfs"
NAMES = 24
THREADS = 100

# It is refused, or has too much already; or what it asks for is gone by now.
EXPECTED = {errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EMFILE, errno.EEXIST, errno.EINVAL}
EXPECTED |= {errno.ENOENT, errno.ENODEV, errno.ESTALE, errno.EIO, errno.ENAMETOOLONG}
# A request waits at most so long.
EXPECTED.add(errno.ETIMEDOUT)

libc = ctypes.CDLL(None)
end = 0.0
done: Counter[str] = Counter()
unexpected: Counter[str] = Counter()


def name() -> Path:
    return MNT / f"n{random.randrange(NAMES)}"


def read() -> None:
    """Above all what takes the daemon long."""
    files = ("tids", "tids", "pids", "holders", "net/tcp", "net/dev", "sysctl/ipv4/tcp_mem")
    (name() / random.choice(files)).read_bytes()


def read_corner() -> None:
    file = random.choice(
        ("metrics", "topology.dot", "last_error", "unnamed", f"pid/{os.getpid()}")
    )
    (CORNER / file).read_bytes()


def walk() -> None:
    for entry in os.scandir(name() / random.choice(("links/lo", "net", "sysctl/ipv4"))):
        entry.stat()


def change() -> None:
    tried = random.choice((os.mkdir, os.rmdir, os.unlink, os.chdir, _chmod, _rename, _link))
    tried(name())


def _chmod(path: Path) -> None:
    path.chmod(0o777)


def _rename(path: Path) -> None:
    path.rename(name())


def _link(path: Path) -> None:
    path.symlink_to("/proc/self/ns/net")


def look_for() -> None:
    os.stat(MNT / ("x" * random.randrange(1, 300)))


def hold_files() -> None:
    _hold(lambda: os.open(name() / "net/dev", os.O_RDONLY))


def hold_listings() -> None:
    def open_and_list() -> int:
        fd = os.open(MNT, os.O_RDONLY)
        libc.getdents64(fd, ctypes.create_string_buffer(4096), 4096)
        return fd

    _hold(open_and_list)


def _hold(open_one: Callable[[], int]) -> None:
    """Keep as many open as there may be, for a moment."""
    held = []
    try:
        while time.monotonic() < end:
            held.append(open_one())
    finally:
        time.sleep(0.1)
        for fd in held:
            os.close(fd)


def keep_at(action: Callable[[], None]) -> None:
    while time.monotonic() < end:
        try:
            action()
        except OSError as error:
            if error.errno not in EXPECTED:
                unexpected[f"{action.__name__}: {error}"] += 1
            if error.errno == errno.EAGAIN:
                time.sleep(0.01)
        done[action.__name__] += 1


def main(user: int, seconds: float) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    global end
    end = time.monotonic() + seconds
    actions = [read] * THREADS + [
        read_corner,
        walk,
        change,
        look_for,
        hold_files,
        hold_listings,
    ]
    threads = [threading.Thread(target=keep_at, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"done": done, "unexpected": unexpected}))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
