"""Who is inside a network namespace, from /proc.

A process is a member if any of its threads is: setns(2) moves one thread, and a program
may send its workers into another namespace than its leader's. `ip netns pids` and lsns(8)
look at leaders only.

The text of the link /proc/PID/ns/net ("net:[4026532268]") is compared, not the file behind
it: that would make an inode of it. A caller who does not hold the namespace open
must expect its number to be given to another namespace during the scan.

A task may end at any moment (ENOENT, ESRCH) or be none of our business (EACCES), and a
zombie has no namespaces any more (ENOENT). None of them is a member.
"""

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator

from netnsfs import linux
from netnsfs.jobs import may_block

# A directory of threads has one link for each, beside the two that every directory has.
ONE_THREAD = 3

_PID_DIGITS = 7
_TASKS_AHEAD = 512


def pids(link: bytes) -> list[int]:
    """The processes with at least one thread in a namespace, ascending.

    Args:
        link: what readlink(2) of /proc/PID/ns/net gives for a member.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    may_block()
    return sorted(int(pid) for pid, links in _memberships() if link in links)


def counts() -> Counter[bytes]:
    """The number of processes with at least one thread in each namespace, by its link.

    Raises:
        WouldBlock: on the event loop's thread.
    """
    may_block()
    return Counter(link for _, links in _memberships() for link in links)


def _memberships() -> Iterator[tuple[bytes, Collection[bytes]]]:
    """Each process, and the links of the namespaces that its threads are in."""
    processes_found, extra, last_pid = processes()
    # No helper functions, and no more path than needed: a scan is one or two system calls for
    # each process, and what is around them tells.
    proc = os.open(b"/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        for pid in processes_found:
            links: Collection[bytes]
            threads = 0
            try:
                links = (os.readlink(pid + b"/ns/net", dir_fd=proc),)
            except OSError as error:
                # The first thread of a process may have ended before the others.
                pass_over(error)
                links = ()
            if extra > 0:
                try:
                    threads = os.stat(pid + b"/task", dir_fd=proc).st_nlink - ONE_THREAD
                except OSError as error:
                    pass_over(error)
                    continue
            if threads > 0:
                extra = rest(pid, extra, threads, last_pid)
                links = {*links, *_links_of_threads(pid).values()}
            yield pid, links
    finally:
        os.close(proc)


def _links_of_threads(pid: bytes) -> dict[bytes, bytes]:
    try:
        threads = os.listdir(b"/proc/%b/task" % pid)
    except OSError as error:
        pass_over(error)
        return {}
    found = {}
    for tid in threads:
        try:
            found[tid] = os.readlink(b"/proc/%b/task/%b/ns/net" % (pid, tid))
        except OSError as error:
            pass_over(error)
    return found


def processes() -> tuple[list[bytes], int, int]:
    """The processes, an upper bound of the number of threads beyond one for each, the last PID.

    If no task was born while the processes were listed, the number of tasks before that
    counts all threads of all that are listed.

    First come those that had several threads when they were last looked at: the sooner all
    threads are found, the fewer processes need a look.
    """
    tasks, last_pid = _load()
    found = [name for name in os.listdir(b"/proc") if name.isdigit()]
    unchanged = _load()[1] == last_pid
    _threaded.intersection_update(found)
    found.sort(key=lambda pid: pid not in _threaded)
    return found, tasks - len(found) if unchanged else sys.maxsize, last_pid


_threaded: set[bytes] = set()


def rest(pid: bytes, extra: int, threads: int, last_pid: int) -> int:
    """What is left of the upper bound when some of those threads have been found.

    Once nothing is: no bound, if a task was born since. It may be one of those that were
    found in the place of one that was counted.
    """
    _threaded.add(pid)
    extra -= threads
    return extra if extra > 0 or _load()[1] == last_pid else sys.maxsize


def _load() -> tuple[int, int]:
    """The number of tasks on the machine, and the last PID given (proc_loadavg(5))."""
    with open("/proc/loadavg", "rb") as file:
        fields = file.read().split()
    return int(fields[3].partition(b"/")[2]), int(fields[4])


def tids(link: bytes) -> list[int]:
    """The threads in a namespace, ascending. Arguments and errors as for `pids`."""
    may_block()
    return sorted(
        int(tid)
        for pid in processes()[0]
        for tid, found in _links_of_threads(pid).items()
        if found == link
    )


def pass_over(error: OSError) -> None:
    """Leave a task out that cannot be looked at, unless that is not the task's fault.

    Raises:
        OSError: the error, if this process or the machine is short of something.
    """
    if error.errno in linux.SHORTAGE:
        raise error


def listing_size() -> int:
    """An upper bound, in bytes, of a listing of all tasks of the machine, one a line.

    It leaves room for tasks that start between this call and the listing.
    """
    return (_load()[0] + _TASKS_AHEAD) * (_PID_DIGITS + 1)


def namespace_of_task(task: bytes) -> int | None:
    """The inode number of the namespace that a task is in.

    Args:
        task: its directory below /proc: PID, TID, or PID/task/TID.

    Returns:
        None if there is no such task, or the kernel does not let us see.
    """
    try:
        return int(os.readlink(b"/proc/%b/ns/net" % task)[len(b"net:[") : -1])
    except OSError as error:
        pass_over(error)
        return None
