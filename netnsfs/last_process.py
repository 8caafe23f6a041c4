"""Who else is in the mount namespace of a daemon.

In a mount namespace of a user's own (unshare -Urnm), a mount is seen by the processes in it.
When the last of them has ended, nobody can unmount it any more, and daemon and namespaces would
stay until the machine is shut down.

The kernel reports no process that leaves a mount namespace. So the daemon waits for one of them
(pidfd_open(2)), and then another, until there is none. What leaves without ending is noticed by
looking again now and then.
"""

import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress

from netnsfs import instances, linux

_POLL_SECONDS = 60.0
_RETRY_SECONDS = 1.0


def other_processes() -> Iterator[int]:
    """The other processes in this mount namespace, by PID, but those that serve a netnsfs.

    If two daemons waited for each other, or for each other's children, both would stay.
    """
    here = os.readlink("/proc/self/ns/mnt")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            there = os.readlink(f"/proc/{pid}/ns/mnt") == here
            if there and int(pid) != os.getpid() and not _serves(pid):
                yield int(pid)


def _serves(pid: str) -> bool:
    if instances.is_daemon(pid):
        return True
    # A parent that is outside may not be looked at, and is no daemon of this mount namespace.
    with suppress(OSError):
        return instances.is_daemon(_parent_of(pid))
    return False


def _parent_of(pid: str) -> str:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # After the name, which may have any byte in it (proc_pid_stat(5)).
        return file.read().rpartition(b")")[2].split()[1].decode()


def wait_until_last() -> None:
    """Wait until no other process is in this mount namespace."""
    while True:
        try:
            pid = next(other_processes(), None)
            if pid is None:
                return
            with linux.closing_fd(os.pidfd_open(pid)) as process:
                end = select.poll()
                end.register(process, select.POLLIN)
                end.poll(_POLL_SECONDS * 1000)
        except OSError:
            # It has just ended, or /proc is that of another PID namespace, or the machine is
            # short of something.
            time.sleep(_RETRY_SECONDS)
