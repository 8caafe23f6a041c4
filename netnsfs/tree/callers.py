"""What a caller may see and do that mode bits do not say, asked while they wait.

See `permissions`, rules 4 and 5.
"""

import errno
import os
import select
import threading
import time
from collections.abc import Callable

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.node import Caller
from netnsfs.permissions import Owner

_OPTIONS_SECONDS = 1.0

_CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_KILL = 5
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
_NAMES = {
    CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    CAP_NET_ADMIN: "CAP_NET_ADMIN",
    CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
}
# hidepid=1 is not among them: it closes the directories of processes, but shows that they are
# there (proc(5)).
_HIDING = {b"hidepid=" + kind for kind in (b"invisible", b"ptraceable", b"2", b"4")}


def has_capability(caller: Caller, capability: int) -> bool:
    """Whether a caller, who waits for an answer, has a capability that the daemon has.

    Args:
        caller: who.
        capability: its number (capabilities(7)).

    Raises:
        OSError: that cannot be found out.
    """
    # A user who lists /proc can keep it locked for any time.
    may_block()
    try:
        # Root of another user namespace has all capabilities, but they are for that namespace.
        if os.readlink(f"/proc/{caller.pid}/ns/user") != os.readlink("/proc/self/ns/user"):
            return False
        held = linux.effective_capabilities(caller.pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return bool(held >> capability & 1)


def require_capability(caller: Caller, capability: int, label: bytes) -> None:
    """Refuse an open or a look to a caller without a capability that the daemon has.

    Mode bits alone would let user ID 0 in without any capability.

    Args:
        caller: who, waiting for an answer.
        capability: one of those named here.
        label: what it is about, for the message.

    Raises:
        OSError: EACCES.
    """
    if not has_capability(caller, capability):
        message = f"that takes {_NAMES[capability]}, as the daemon has it"
        raise PermissionError(errno.EACCES, message, label)


def may_write(owner: Owner, caller: Caller) -> bool:
    """Whether a caller, who waits for an answer, may write what is in a namespace.

    For a namespace that the request does not name to the kernel, so that it has not checked it.

    Raises:
        OSError: that cannot be found out.
    """
    if caller.uid in (0, owner.uid):
        return caller.uid == 0 or bool(owner.write & 0o200)
    bit = 0o020 if owner.gid in _groups_of(caller) else 0o002
    return bool(owner.write & bit)


def require_writer(owner: Owner, caller: Caller, label: bytes) -> None:
    """Refuse a write, or a change, to a caller who may not make it any more.

    The kernel decides by attributes that it has asked for before. If another caller asked
    before a chown(2) and hears after it, the kernel drops the later answer, and decides for
    both by the earlier one (fuse_change_attributes_common(), fs/fuse/inode.c).

    Args:
        owner: of the namespace, as it is now.
        caller: who, waiting for an answer.
        label: what it is about, for the message.

    Raises:
        OSError: EACCES.
    """
    if caller.uid == 0 or may_write(owner, caller):
        return
    if not has_capability(caller, _CAP_DAC_OVERRIDE):
        raise PermissionError(errno.EACCES, "it belongs to somebody else by now", label)


def may_search(owner: Owner, caller: Caller) -> bool:
    """Whether a caller, who waits for an answer, may look into a namespace. Errors as above."""
    if has_capability(caller, CAP_DAC_READ_SEARCH):
        return True
    if caller.uid == owner.uid:
        return bool(owner.mode & 0o100)
    return bool(owner.mode & (0o010 if owner.gid in _groups_of(caller) else 0o001))


def _groups_of(caller: Caller) -> set[int]:
    may_block()
    # A name of a program need not be UTF-8.
    with open(f"/proc/{caller.pid}/status", "rb") as lines:
        fields = {
            key: value.split() for key, _, value in (line.partition(b":") for line in lines)
        }
    # Of four, the last one is for file systems (credentials(7)).
    return {int(group) for group in [*fields[b"Groups"], fields[b"Gid"][3]]}


def require_may_attach(caller: Caller, name: bytes) -> None:
    """Refuse a caller who may not let the daemon open a namespace by a path.

    Raises:
        OSError: EPERM.
    """
    if caller.uid != 0 or not has_capability(caller, CAP_SYS_ADMIN):
        message = "only root, with CAP_SYS_ADMIN as the daemon has it, may attach"
        raise PermissionError(errno.EPERM, message, name)


def signal_rule(caller: Caller) -> Callable[[int], bool] | None:
    """Which processes a caller, who waits for an answer, may send a signal to.

    Returns:
        None if all (CAP_KILL); else what tells it of a process, as kill(2) would, now and when
        the caller is gone. It raises ENOENT or ESRCH if there is no such process.

    Raises:
        OSError: that cannot be found out.
    """
    if has_capability(caller, CAP_KILL):
        return None
    uid = caller.uid
    # Root of a container has the user ID that root's processes have outside of it.
    return lambda pid: uid != 0 and uid in _users_of(pid)


def _users_of(pid: int) -> set[int]:
    """The real and the saved user ID of a process."""
    with open(f"/proc/{pid}/status", "rb") as lines:
        found = next(line for line in lines if line.startswith(b"Uid:"))
    real, _, saved, _ = map(int, found.split()[1:])
    return {real, saved}


class Viewer:
    """A caller, and what they may learn of processes, now and when they are gone.

    Args:
        caller: who, waiting for an answer.

    Attributes:
        sees_all: they may know of every process.
    """

    def __init__(self, caller: Caller) -> None:
        self.pid, self.uid, self.umask = caller.pid, caller.uid, caller.umask
        # Now: when a listing is read, the caller may be gone, and its number another's.
        self.sees_all = not proc_hides_tasks() or has_capability(caller, CAP_SYS_PTRACE)

    def may_see(self, pid: int) -> bool:
        """Whether it is a process (or thread) that they may know of."""
        if self.sees_all:
            return True
        may_block()
        return _owner_of_task(pid) == self.uid


class _ProcOptions:
    """Whether /proc shows users only their own processes. For any thread.

    A crowd asks again and again, and there is a line in mountinfo for each name. Another mount
    namespace can change the options unheard: they are read once a second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poll: linux.Poll | None = None
        self._known: tuple[float, bool] = -_OPTIONS_SECONDS, False

    def hide_tasks(self) -> bool:
        """Whether it does."""
        may_block()
        with self._lock:
            if self._poll is None:
                mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                self._poll = linux.Poll((mounts, select.POLLPRI))
            now, (read_at, hidden) = time.monotonic(), self._known
            # Asked first: what changes from here on is heard the next time.
            if self._poll.any_ready() or now - read_at >= _OPTIONS_SECONDS:
                hidden = _read_hidepid()
                self._known = now, hidden
            return hidden


_proc_options = _ProcOptions()


def proc_hides_tasks() -> bool:
    """Whether /proc shows users only their own processes (hidepid, proc(5))."""
    return _proc_options.hide_tasks()


def _read_hidepid() -> bool:
    at_proc = [mount for mount in linux.mounts() if mount.target == b"/proc"]
    # The last one covers the others.
    return bool(at_proc) and not _HIDING.isdisjoint(at_proc[-1].options.split(b","))


def _owner_of_task(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
