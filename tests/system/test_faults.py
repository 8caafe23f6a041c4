"""Each system call of each operation failing in turn, in a daemon that lives on.

The calls of the thread that does the work, and those of the event loop, are recorded with
strace. Then strace makes one of them fail, and then the next, with one errno after the other;
without NETNSFS_LONG, with two of the errnos, and of many calls only some.
"""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import tracing
from conftest import HOLD_THREAD, KEPT_OPEN, LONG, MNT, RUN, Mounted, error_of, ip, wait_for
from usage import MAX_THREADS

OLD, NEW = MNT / "old", MNT / "new"

ERRORS = ("ENOMEM", "ENOSPC", "EMFILE", "EPERM", "EINTR")
MAX_CALLS = 1_000_000 if LONG else 20

FAILING = {
    *("unshare", "setns", "mount", "umount2", "openat", "unlink", "flock", "renameat2"),
    *("open_tree", "mount_setattr", "move_mount"),
    *("statx", "newfstatat", "readlink", "readlinkat", "socket", "sendto", "recvfrom"),
}


def written(file: str, text: bytes) -> None:
    fd = os.open(OLD / file, os.O_WRONLY)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


OPERATIONS: dict[str, tuple[Callable[[], object], set[str]]] = {
    "mkdir": (NEW.mkdir, {"old", "new"}),
    "rmdir": (OLD.rmdir, set()),
    "mv": (lambda: OLD.rename(NEW), {"new"}),
    "ln -s": (lambda: NEW.symlink_to("old"), {"old", "new"}),
    "echo auto > nsid": (lambda: written("nsid", b"auto"), {"old"}),
    "echo 1 > sysctl": (lambda: written("sysctl/ipv4/ip_forward", b"1"), {"old"}),
    "ls": (lambda: sorted(os.listdir(MNT)), {"old"}),
    "cat inode": ((OLD / "inode").read_text, {"old"}),
    "cat pids": ((OLD / "pids").read_text, {"old"}),
    "cat nsid": ((OLD / "nsid").read_text, {"old"}),
    "cat net/dev": ((OLD / "net/dev").read_text, {"old"}),
}
"""What is done, and the names that there are then; "old" is what there is before."""


@pytest.fixture(params=["loop", *tracing.WORK])
def thread(mnt: Mounted, request: pytest.FixtureRequest) -> int:
    return tracing.workers(mnt).get(request.param, mnt.process.pid)


@pytest.mark.parametrize("label", OPERATIONS)
def test_each_call_fails(mnt: Mounted, thread: int, label: str) -> None:
    operation, names = OPERATIONS[label]
    name = tracing.name_of(mnt, thread)
    # The first time, modules are imported.
    for _ in range(2):
        prepare()
        calls = tracing.calls(thread, operation)
    # Files are closed after close(2) has returned.
    wait_for(
        lambda: not any(re.match("/proc/.*(?<!/mountinfo)$", target) for target in used(mnt))
    )
    before = used(mnt)
    for call, error in faults(calls):
        prepare()
        case = f"{call.shown}: {error}"
        with tracing.attached(thread, call.inject(f"error={error}")):
            code = error_of(operation)
        assert code in ("", error), case
        late = "umount2" in {earlier.name for earlier in calls[: calls.index(call)]}
        assert state() in outcomes(names, code, late), case
        wait_for(lambda: len(homes(mnt)) == 1)
        prepare()
        assert error_of(operation) == "", case
        wait_for(lambda: used(mnt) == before and len(tracing.threads(mnt)) <= MAX_THREADS)
        if thread not in tracing.threads(mnt):
            thread = tracing.thread_named(mnt, name)
    prepare()
    OLD.rmdir()


def faults(calls: list[tracing.Call]) -> Iterator[tuple[tracing.Call, str]]:
    """What to make fail, and how."""
    for number, call in enumerate(some(calls)):
        for error in ERRORS if LONG else (ERRORS[number % 5], ERRORS[(number + 2) % 5]):
            yield call, error


def some(calls: list[tracing.Call]) -> list[tracing.Call]:
    # What the event loop is woken by cannot fail to give what is in it.
    can = [
        call
        for call in calls
        if call.name in FAILING
        and not (call.name in {"recvfrom", "sendto"} and "UNIX" in call.shown)
    ]
    return can[:: len(can) // MAX_CALLS + 1]


@pytest.mark.parametrize("shown", [".", "a/pids", "a/tids", "a/holders"])
def test_nothing_is_left_out_for_want_of_memory(
    mnt: Mounted, spawn: Callable[..., subprocess.Popen[bytes]], shown: str
) -> None:
    thread = tracing.workers(mnt)["read"]
    for name in "abc":
        (mnt / name).mkdir()
    spawn(sys.executable, "-c", HOLD_THREAD, str(RUN / "a"), stdout=subprocess.DEVNULL)
    wait_for((mnt / "a/tids").read_bytes)
    path = mnt / shown
    show: Callable[[], object] = path.read_bytes
    if shown == ".":
        thread, show = mnt.process.pid, partial(os.listdir, path)
    whole = show()
    for call in some(tracing.calls(thread, show)):
        for error in ("ENOMEM", "EMFILE"):
            if thread not in tracing.threads(mnt):
                thread = tracing.workers(mnt)["read"]
            with tracing.attached(thread, call.inject(f"error={error}")):
                found = shown_or_error(show)
            assert found in (whole, error), call.shown
            wait_for(partial(is_home_or_gone, mnt, thread))
    for name in "abc":
        (mnt / name).rmdir()


def is_home_or_gone(mounted: Mounted, thread: int) -> bool:
    """A worker that cannot come home from a namespace ends after its job."""
    proc = Path(f"/proc/{mounted.process.pid}")
    with suppress(OSError):
        return os.readlink(proc / f"task/{thread}/ns/net") == os.readlink(proc / "ns/net")
    return thread not in tracing.threads(mounted)


def shown_or_error(show: Callable[[], object]) -> object:
    try:
        return show()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def prepare() -> None:
    for name in os.listdir(RUN) if RUN.exists() else []:
        (MNT / name).rmdir()
    ip("netns", "add", "old")


def state() -> dict[str, bool]:
    """The names, and which of them live."""
    return {name: bool(os.stat(MNT / name).st_mode & 0o777) for name in os.listdir(MNT)}


def outcomes(names: set[str], code: str, late: bool) -> list[dict[str, bool]]:
    """What there may be after an operation, by the errno that it gave."""
    if not code:
        return [dict.fromkeys(names, True)]
    # Once the mount is gone, only its placeholder can be left over.
    half = {**dict.fromkeys(names, True), "old": False}
    return [{"old": True}, half] if late else [{"old": True}]


def used(mounted: Mounted) -> list[str]:
    """The daemon's descriptors, but for what it opens at its first use and keeps.

    The replayer ends when a call that it asks for fails, and may take a minute to be started
    again. So its channel does not count.
    """
    found = []
    for fd in Path(f"/proc/{mounted.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(fd))
    return sorted({*found} - channels() - {*KEPT_OPEN})


def channels() -> set[str]:
    """The machine's unix sockets of the type SOCK_SEQPACKET, as links of /proc/PID/fd."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {f"socket:[{fields[6]}]" for fields in sockets if fields[4] == "0005"}


def homes(mounted: Mounted) -> set[str]:
    """The namespaces that the daemon's threads are in."""
    found = set()
    for task in Path(f"/proc/{mounted.process.pid}/task").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(task / "ns/net"))
    return found
