"""Signals to all members of a network namespace.

A process that forks must not escape, and no process outside may get a signal. Five rules:

1. A process is identified by its ID and the time of its start: IDs are reused, soon where
   pid_max is small. The signal goes to a pidfd (pidfd_send_signal(2)), opened before the
   process is looked at once more. If it has ended by then, the signal reaches nobody.
2. A process is sent the signal once. Passes over all tasks follow each other until one finds
   nobody new. A process that forks and ends may be missed by a pass, and so may its child. So
   all that are born meanwhile are looked at too: IDs are given in order, and /proc/loadavg
   tells the last one.
3. Children that a handled signal leaves free to fork again are new each time: it ends after
   `SIGNAL_SECONDS`, whatever comes.
4. A process whose first thread is elsewhere may be a visitor, as daemons that manage namespaces
   are, this one among them. It is sent the signal if one of its threads stays inside for
   `_VISIT_SECONDS`. This process itself is never sent anything.
5. Nobody is signalled in the namespace that the machine or this process started with, nor in
   one that belongs to a user namespace outside of this process's: that may be the machine's.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import commit, may_block
from netnsfs.limits import SIGNAL_SECONDS
from netnsfs.netns import tasks
from netnsfs.netns.proc_scanner import load

_VISIT_SECONDS = 0.5
# A process has its ID for a moment before it is there. So many may have had theirs then.
_UNBORN = 128
# Of setpriority(2).
_HIGHEST = -20
# Of /proc/PID/stat, behind the name (proc_pid_stat(5), starttime).
_START = 19


class _Process(NamedTuple):
    pid: int
    start: int


_Visits = dict[tuple[_Process, int], float]


def parse_signal(text: bytes) -> int:
    """The number of a signal, from a name with or without SIG, or a number.

    Raises:
        OSError: EINVAL if it is none.
    """
    word = text.strip().upper().decode("ascii", "replace")
    if word.isdecimal() and len(word) < 4 and int(word) < signal.NSIG:
        return int(word)
    found = signal.Signals.__members__.get("SIG" + word.removeprefix("SIG"))
    if found is None:
        raise OSError(errno.EINVAL, "neither the name nor the number of a signal")
    return found


def is_unfinished(text: bytes) -> bool:
    """Whether more can follow what was written to `kill`."""
    word = text.lstrip().upper().decode("ascii", "replace")
    if word.isdecimal():
        return len(word) < 3 and int(word + "0") < signal.NSIG
    names = [*signal.Signals.__members__]
    names += [name.removeprefix("SIG") for name in names]
    return any(name != word and name.startswith(word) for name in names)


def send(fd: int, text: bytes, may_signal: Callable[[int], bool] | None) -> None:
    """Send a signal to all members of a namespace; success if there are none.

    Args:
        fd: a descriptor of the namespace.
        text: as for `parse_signal`. Signal 0 reaches nobody, but all else is the same.
        may_signal: whether a process may be sent it, others are left out; None if all may, and
            all other work of the machine may be kept waiting for it.

    Raises:
        OSError: EINVAL if it is no signal; EPERM for the initial network namespace, or if it
            could be sent to none of the members; ETIMEDOUT if new ones keep coming; ENODATA if
            there are none to be seen, but some may be out of sight.
    """
    may_block()
    number, inode = parse_signal(text), os.fstat(fd).st_ino
    if tasks.is_initial(inode) or not linux.is_owned_here(fd):
        message = "nobody is signalled in the initial network namespace"
        raise PermissionError(errno.EPERM, message)
    commit()
    sending = _Sending(inode, number, may_signal or (lambda pid: True))
    with nullcontext() if may_signal else _ahead_of_others():
        sending.run()
    if sending.handled and not any(sending.handled.values()):
        raise PermissionError(errno.EPERM, "the caller may signal none of the member processes")


@contextmanager
def _ahead_of_others() -> Iterator[None]:
    """At the highest priority: a crowd that forks leaves others little time, and is gone before
    it can be sent anything (seen: 200 processes on two processors, 5 s and not 0.3 s).
    """
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    # Not in a user namespace.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, thread, _HIGHEST)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, before)


class _Sending:
    """One signal on its way to the members of a namespace.

    Attributes:
        handled: the processes that were found, and whether each was sent it.
    """

    def __init__(self, inode: int, number: int, may_signal: Callable[[int], bool]) -> None:
        self._inode = inode
        self._number = number
        self._may_signal = may_signal
        # Of processes whose first thread is elsewhere: when they were first seen, and since
        # when each thread has been inside in all passes.
        self._visitors: dict[_Process, float] = {}
        self._visits: _Visits = {}
        self._end = time.monotonic() + SIGNAL_SECONDS
        self.handled: dict[_Process, bool] = {}

    def run(self) -> None:
        """Send it until nobody new is found. Raises as `send`."""
        new = True
        while new:
            _, last_pid = load()
            new = self._make_pass()
            new |= self._signal_new_pids(max(0, last_pid - _UNBORN))
            if new:
                self._require_time_left()

    def _make_pass(self) -> bool:
        """Send it to all members that have not had it. Whether there were, or may be, any."""
        before, self._visits = self._visits, {}
        found = tasks.threads_inside(self._inode)
        found.pop(os.getpid(), None)
        new = False
        for pid, threads in found.items():
            try:
                new |= self._handle(pid, threads, before)
            except OSError as error:
                # It has ended. Another pass finds what it may have left.
                linux.reraise_if_resource(error)
                new = True
        if self._visits:
            time.sleep(_VISIT_SECONDS / 20)
        return new

    def _signal_new_pids(self, last_pid: int) -> bool:
        """The same for those with a later ID than `last_pid`."""
        new = False
        while (last := load()[1]) != last_pid:
            self._require_time_left()
            # In order: a child that is not there yet has a parent that is.
            for pid in range(last_pid + 1, last + 1):
                if tasks.namespace_of_task(b"%d" % pid) != self._inode:
                    continue
                try:
                    new |= self._handle(pid, {pid}, {})
                except OSError as error:
                    # It has ended, or it is not the first thread of a process.
                    linux.reraise_if_resource(error)
            # IDs begin anew after the largest. What was born before that takes another pass.
            new |= last < last_pid
            last_pid = last
        return new

    def _require_time_left(self) -> None:
        if time.monotonic() > self._end:
            count = sum(self.handled.values())
            message = f"new processes keep coming; {count} were sent the signal"
            raise TimeoutError(errno.ETIMEDOUT, message)

    def _handle(self, pid: int, threads: set[int], before: _Visits) -> bool:
        """Send it to a process that has not had it. Whether there may be more to do."""
        with linux.closing_fd(os.pidfd_open(pid)) as pidfd:
            process = _Process(pid, _start_of(pid))
            if process in self.handled:
                return False
            if pid not in threads:
                threads = self._staying(process, threads, before)
                if not threads:
                    return time.monotonic() - self._visitors[process] < 2 * _VISIT_SECONDS
            if self._is_inside(pid, threads):
                self._signal(process, pidfd)
            return True

    def _staying(self, process: _Process, threads: set[int], before: _Visits) -> set[int]:
        """Those of a process's threads that have been inside for long enough."""
        now = time.monotonic()
        self._visitors.setdefault(process, now)
        since = {tid: before.get((process, tid), now) for tid in threads}
        self._visits.update({(process, tid): at for tid, at in since.items()})
        return {tid for tid, at in since.items() if now - at > _VISIT_SECONDS}

    def _is_inside(self, pid: int, threads: set[int]) -> bool:
        tids = {pid} & threads or threads
        paths = (b"%d/task/%d" % (pid, tid) for tid in tids)
        return any(tasks.namespace_of_task(path) == self._inode for path in paths)

    def _signal(self, process: _Process, pidfd: int) -> None:
        try:
            allowed = self._may_signal(process.pid)
            if allowed:
                signal.pidfd_send_signal(pidfd, self._number)
        except PermissionError:
            # The daemon itself may not, in a user namespace.
            allowed = False
        self.handled[process] = allowed


def _start_of(pid: int) -> int:
    with open(b"/proc/%d/stat" % pid, "rb") as file:
        # A name may have blanks and parentheses in it.
        return int(file.read().rpartition(b") ")[2].split()[_START])
