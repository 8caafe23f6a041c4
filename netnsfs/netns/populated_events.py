"""When the first member of a network namespace comes, and when the last one goes.

The probes of data/populated_events.bpf.c report that a task came or left. The receiver of the
report finds out what is true then (`tasks.tids`). A namespace is reported once. So the receiver
first renews its watch (`MembershipWatch.renew`), then looks: what happens after that is
reported.

The probes are attached while something is watched, and for a moment longer. They make each
system call of the machine longer by less than 0.1 us.
"""

import itertools
import logging
import os
import select
import struct
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from netnsfs import bpf_objects, linux
from netnsfs.jobs import may_block, start_thread
from netnsfs.netns import tasks

PROBES = ("ends", "begins_call", "ends_call")

LINGER_SECONDS = 1.0
"""How long the probes stay when nothing is watched any more."""

# Between two rounds of telling. Whoever has processes come and go all the time has them looked
# for no more often.
_PAUSE_SECONDS = 0.01

# What is told when it cannot be known which one a task has left.
_ANY = 0

_NUMBER = struct.Struct("=I")

log = logging.getLogger(__name__)


class MembershipWatch:
    """A namespace that somebody wants to be told of.

    Args:
        populated_events: what tells.
        inode: number of the namespace. Once that is gone, it may be another's.
        wake: called, on a thread of its own, when a task has come or left. It never waits.
    """

    def __init__(
        self, populated_events: "PopulatedEvents", inode: int, wake: Callable[[], None]
    ) -> None:
        self._population = populated_events
        self.inode = inode
        self.wake = wake

    def renew(self) -> None:
        """Be told of what happens from now on.

        Raises:
            OSError: E2BIG if too many namespaces are watched.
            WouldBlock: on the event loop's thread.
        """
        self._population.renew(self.inode)

    def close(self) -> None:
        """Be told of nothing any more. It never waits."""
        self._population.give_up(self)


class PopulatedEvents:
    """Tells when tasks come and go. For any thread; its own is `netnsfs-members`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[int, set[MembershipWatch]] = {}
        self._renewed: set[int] = set()
        self._probes: linux.Probes | None = None
        self._impossible = False
        self._given_up: SimpleQueue[MembershipWatch] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Not when the interpreter ends: the thread may be at work until then.
        weakref.finalize(self, os.close, self._wake).atexit = False

    def watch(self, inode: int, wake: Callable[[], None]) -> MembershipWatch | None:
        """Watch a namespace. Arguments as for `MembershipWatch`.

        Returns:
            None if this machine cannot tell.

        Raises:
            OSError: the machine is short of something.
            WouldBlock: on the event loop's thread.
        """
        may_block()
        if self._impossible or not tasks.is_cheap():
            return None
        with self._lock:
            if not self._probes and not self._start():
                return None
            watch = MembershipWatch(self, inode, wake)
            self._watches.setdefault(inode, set()).add(watch)
            return watch

    def _start(self) -> bool:
        try:
            probes = linux.Probes(
                bpf_objects.POPULATED_EVENTS, PROBES, _NUMBER.pack(os.getpid())
            )
        except OSError as error:
            linux.reraise_if_resource(error)
            log.info("poll(2) tells nothing of members: %s", error.strerror)
            self._impossible = True
            return False
        try:
            start_thread(lambda: self._run(probes), "netnsfs-members")
        except OSError:
            probes.close()
            raise
        self._probes = probes
        return True

    def renew(self, inode: int) -> None:
        """See `MembershipWatch.renew`."""
        may_block()
        with self._lock:
            # Whoever asks may have given it up meanwhile.
            wanted = inode in self._watches and inode not in self._renewed
            if self._probes and wanted:
                self._probes.watch(_NUMBER.pack(inode))
                self._renewed.add(inode)

    def give_up(self, watch: MembershipWatch) -> None:
        """See `MembershipWatch.close`."""
        # The lock may be held by who loads the programs.
        self._given_up.put(watch)
        os.eventfd_write(self._wake, 1)

    def _run(self, probes: linux.Probes) -> None:
        """Tell, until nothing is watched any more."""
        ready = select.poll()
        ready.register(probes, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        while True:
            idle = not self._watches
            found = dict(ready.poll(LINGER_SECONDS * 1000 if idle else None))
            if self._wake in found:
                os.eventfd_read(self._wake)
            with self._lock:
                self._forget_given_up(probes)
                if idle and not found and not self._watches:
                    self._probes = None
                    break
                woken = self._take_records(probes)
            for watch in woken:
                watch.wake()
            time.sleep(_PAUSE_SECONDS)
        probes.close()

    def _forget_given_up(self, probes: linux.Probes) -> None:
        while not self._given_up.empty():
            watch = self._given_up.get()
            others = self._watches.get(watch.inode, set())
            others.discard(watch)
            if not others and self._watches.pop(watch.inode, None) is not None:
                self._renewed.discard(watch.inode)
                probes.ignore(_NUMBER.pack(watch.inode))

    def _take_records(self, probes: linux.Probes) -> list[MembershipWatch]:
        woken: list[MembershipWatch] = []
        for record in probes.read_records():
            (inode,) = _NUMBER.unpack(record)
            self._renewed.discard(inode)
            if inode == _ANY:
                woken += itertools.chain(*self._watches.values())
            else:
                woken += self._watches.get(inode, ())
        return woken
