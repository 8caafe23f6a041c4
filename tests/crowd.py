"""A client that does everything that there is to do, at random, beside others that do too.

    python crowd.py SEED SECONDS

The names are few, so that clients meet. At the end it prints, as JSON, how often it did what,
the longest that each took (of a listing, each of its calls), and errors that nobody could
expect.
"""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MNT = Path("/mnt/netnsfs")
CORNER = MNT / ".netnsfs"
NAMES = 24
MAX_HELD = 8

# Somebody was first, or has it made anew or removed since.
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENODEV, errno.ESTALE}
# The kernel's own answer, when a number on the way is just given to another namespace. One of
# the daemon's would be in its log.
EXPECTED.add(errno.EIO)
# A name that somebody is at is stale for a moment.
BESIDES = {"mv": errno.EINVAL, "ln": errno.EINVAL}

held: list[int] = []
done: Counter[str] = Counter()
longest: dict[str, float] = {}


def took(label: str, began: float) -> None:
    done[label] += 1
    longest[label] = max(longest.get(label, 0), time.monotonic() - began)


def name() -> Path:
    return MNT / f"n{random.randrange(NAMES)}"


def mkdir() -> None:
    name().mkdir()


def rmdir() -> None:
    name().rmdir()


def mv() -> None:
    name().rename(name())


def ln() -> None:
    name().symlink_to(name().name)


def unnamed() -> None:
    name = random.choice(os.listdir(CORNER / "unnamed"))
    (CORNER / "unnamed" / name / "id").read_bytes()


def read() -> None:
    file = random.choice(("inode", "id", "pids", "tids", "cgroups", "nsid"))
    (name() / file).read_bytes()


def holders() -> None:
    (name() / "holders").read_bytes()


def view() -> None:
    file = random.choice(("net/dev", "net/tcp", "net/snmp", "sysctl/ipv4/ip_forward"))
    (name() / file).read_bytes()


def sysctl() -> None:
    write("sysctl/ipv4/ip_forward", b"%d" % random.randrange(2))


def nsid() -> None:
    write("nsid", b"auto")


def write(file: str, data: bytes) -> None:
    # What is not there must not be made: that is EPERM.
    fd = os.open(name() / file, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def ls() -> None:
    directory = random.choice((MNT, name(), name() / "net", CORNER, CORNER / "pid"))
    began = time.monotonic()
    entries = list(os.scandir(directory))
    took("ls", began)
    for entry in entries:
        began = time.monotonic()
        with suppress(FileNotFoundError):
            entry.stat()
        took("stat", began)


def pid() -> None:
    os.readlink(CORNER / f"pid/{os.getpid()}")
    kind = random.choice(("inode", "id"))
    os.readlink(CORNER / kind / (name() / kind).read_text().strip())


def hold() -> None:
    """Keep a descriptor, whatever becomes of the namespace; read one that is kept."""
    kind = random.choice(("id", "pids", "net/dev", "."))
    held.append(os.open(name() / kind, os.O_RDONLY))
    if len(held) > MAX_HELD:
        os.close(held.pop(random.randrange(MAX_HELD)))
    with suppress(IsADirectoryError):
        os.pread(random.choice(held), 4096, 0)


def ip_add() -> None:
    ip("add")


def ip_del() -> None:
    ip("del")


def ip(what: str) -> None:
    subprocess.run(["ip", "netns", what, name().name], check=False, stderr=subprocess.DEVNULL)


ACTIONS: dict[Callable[[], None], int] = {
    **{mkdir: 12, rmdir: 12, mv: 6, ln: 6, read: 24, view: 12, sysctl: 4, nsid: 2, ls: 8},
    **{pid: 2, hold: 6, ip_add: 2, ip_del: 2, holders: 1, unnamed: 1},
}


def main(seed: int, seconds: float) -> None:
    random.seed(seed)
    unexpected: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        [action] = random.choices([*ACTIONS], [*ACTIONS.values()])
        label = action.__name__
        try:
            action()
        except OSError as error:
            if error.errno not in EXPECTED | {BESIDES.get(label)}:
                unexpected[f"{label}: {error} {(CORNER / 'last_error').read_text()}"] += 1
        if action is not ls:
            took(label, began)
    print(json.dumps({"done": done, "longest": longest, "unexpected": unexpected}))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
