"""What a caller may see and do that mode bits do not say, read from /proc while they wait.

See `permissions`, rules 4 and 5.
"""

import errno
import os

from netnsfs import linux
from netnsfs.node import Caller

CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
_HIDING = {b"hidepid=" + kind for kind in (b"invisible", b"ptraceable", b"2", b"4")}


def has_capability(caller: Caller, capability: int) -> bool:
    """Whether a caller, who waits for an answer, has a capability that the daemon has.

    Args:
        caller: who.
        capability: its number (capabilities(7)).

    Raises:
        OSError: that cannot be told.
    """
    task = f"/proc/{caller.pid}"
    try:
        if os.readlink(f"{task}/ns/user") != os.readlink("/proc/self/ns/user"):
            return False
        with open(f"{task}/status") as lines:
            held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return bool(held >> capability & 1)


def refuse_attaching(caller: Caller, name: bytes) -> None:
    """Refuse whoever may not make the daemon open a namespace that they name.

    Raises:
        OSError: EPERM.
    """
    if caller.uid != 0 or not has_capability(caller, CAP_SYS_ADMIN):
        message = "only root, with CAP_SYS_ADMIN as the daemon has it, may attach"
        raise PermissionError(errno.EPERM, message, name)


class Viewer:
    """A caller, and what they may learn of processes, now and when they are gone.

    Args:
        caller: who, waiting for an answer.
    """

    def __init__(self, caller: Caller) -> None:
        self.pid, self.uid, self.umask = caller.pid, caller.uid, caller.umask
        self._sees_all = has_capability(caller, CAP_SYS_PTRACE) or not _proc_hides_tasks()

    def may_see(self, pid: int) -> bool:
        """Whether it is a process (or thread) that they may know of."""
        return self._sees_all or _owner_of_task(pid) == self.uid


def _proc_hides_tasks() -> bool:
    at_proc = [mount for mount in linux.mounts() if mount.target == b"/proc"]
    return bool(at_proc) and not _HIDING.isdisjoint(at_proc[-1].options.split(b","))


def _owner_of_task(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
