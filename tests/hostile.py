"""A user who does all that everyone may do, a thousand times at once, beside others who work.

    python hostile.py UID SECONDS

There are two namespaces of their own, mine-UID and yours-UID, with interfaces in the first.
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
INTERFACES = 4

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


def make() -> None:
    """The kernel locks a directory, and looks the name up, before it asks who may."""
    somewhere = random.choice((MNT / "link", name(), MNT / "absent", name() / "links/x"))
    os.mkdir(somewhere)


def move_interfaces() -> None:
    """Between two namespaces, which takes a lock that the whole mount has once."""
    path = own("mine") / "links/moving"
    path.rename(own("yours") / "links/moving")
    (own("yours") / "links/moving").rename(path)


def move_what_is_not_theirs() -> None:
    (name() / "links/x").rename(name() / "links/y")


def write_addresses() -> None:
    """Thousands at once: the kernel takes its time."""
    interface = own("mine") / f"links/long{random.randrange(INTERFACES)}"
    number = random.randrange(200)
    words = (f"+20.{number}.{n >> 8}.{n & 255}/32" for n in range(3000))
    fd = os.open(interface / "addresses", os.O_WRONLY)
    try:
        os.write(fd, " ".join(words).encode())
    finally:
        os.close(fd)


def send_signals() -> None:
    fd = os.open(own("mine") / "kill", os.O_WRONLY)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def send_files() -> None:
    """As a web server does, by length."""
    file = random.choice((name() / "pids", CORNER / "metrics", name() / "net/dev"))
    fd, to = os.open(file, os.O_RDONLY), os.memfd_create("to")
    try:
        size = os.fstat(fd).st_size
        while count := os.sendfile(to, fd, None, size):
            size -= count
        if size:
            unexpected[f"{file.name}: cut by {size} bytes"] += 1
    finally:
        os.close(fd)
        os.close(to)


def own(which: str) -> Path:
    return MNT / f"{which}-{os.getuid()}"


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
    actions = [read] * THREADS + [make] * THREADS
    actions += [move_interfaces, write_addresses] * 5
    actions += [
        move_what_is_not_theirs,
        send_signals,
        send_files,
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
