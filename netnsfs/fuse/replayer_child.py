"""The program of the process that `replayer` starts: the replayer.

It hears of names in the run directory (inotify(7)), and of mounts (POLLPRI of
/proc/self/mountinfo), and makes in the mount what has become true: mkdir(2) of a name that
exists, rmdir(2) of one that was deleted. It may come too late to know that a change was
reported already: then the call fails, and that is all.

A bare file is a name too, but `ip netns add` makes one just before it mounts the namespace. So
a file is replayed when a namespace is mounted on it, or when it has been a file for some time.

Whenever it cannot be sure that it has heard of everything, it compares the run directory with
what watchers know. That is in a file, its standard output, and from then on the daemon sends
it over a socket, its standard input. When the daemon has ended, so does this.
"""

import errno
import itertools
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import NamedTuple

from netnsfs import linux

UNKNOWN = 2
"""Exit status: the mount does not know this process as its replayer."""

SETTLE_SECONDS = 5.0
"""After this time, a file that is still no namespace is replayed all the same."""

# What follows within this time is replayed together. `ip netns add` has mounted by then.
_TOGETHER_SECONDS = 0.0005
# The same while changes follow each other: then this process is not to take a processor from
# those who make them.
_BUSY_TOGETHER_SECONDS = 0.004
_BUSY_SECONDS = 0.01
_AGAIN_SECONDS = 0.02

# Names that are replayed before events are read again: their queue has an end.
_MAX_TOGETHER = 500

_CREATED = linux.IN_CREATE | linux.IN_MOVED_TO
_DELETED = linux.IN_DELETE | linux.IN_MOVED_FROM
_MOVED = linux.IN_DELETE_SELF | linux.IN_MOVE_SELF

DAEMON = 0
NAMES = 1
BEGIN = b"!"
"""What the daemon sends when it knows this process by its process ID."""


MAX_MESSAGE = 65_536
"""Bytes in a message of the daemon's."""

MISSED = b"?"
"""What this process sends when it may have missed a name that came and went."""


class _UnsureError(Exception):
    """Something may have been missed."""


class ReplayTarget(NamedTuple):
    """Where names are, and in which mount their changes are replayed.

    Attributes:
        run_dir: the run directory.
        mount_point: where the mount is that has watchers.
        dev, mount: what tells that mount from any other (statx(2)).
        reserved: a name that is not replayed.
    """

    run_dir: bytes
    mount_point: bytes
    dev: int
    mount: int
    reserved: bytes

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "ReplayTarget":
        """What `to_arguments` gave to this process."""
        run_dir, mount_point, dev, mount, reserved = map(os.fsencode, arguments)
        return cls(run_dir, mount_point, int(dev), int(mount), reserved)

    def to_arguments(self) -> list[bytes]:
        """The same as arguments of a program."""
        return [part if isinstance(part, bytes) else b"%d" % part for part in self]

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """A descriptor of the mount's root, None while it cannot be reached."""
        clone = self._clone()
        if clone is None:
            yield None
        else:
            with linux.closing_fd(clone):
                yield clone

    def is_there(self) -> bool:
        """Whether the mount can be reached."""
        with self.opened() as root:
            return root is not None

    def _clone(self) -> int | None:
        """A mount of our own of what is mounted there: umount(8) does not find ours busy."""
        try:
            fd = os.open(self.mount_point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with linux.closing_fd(fd):
            found = linux.statx(b"", fd)
            if (found.dev, found.mount) != (self.dev, self.mount):
                return None
            return linux.bind_mount(fd)


class _PendingNames:
    """The names in the run directory that may have changed since they were looked at.

    Args:
        path: the directory. It need not exist.
        reserved: a name that does not count.
    """

    def __init__(self, path: bytes, reserved: bytes) -> None:
        self._path = path
        self._reserved = reserved
        self._nsfs = linux.statx(b"/proc/self/ns/net", flags=linux.FOLLOW).dev
        # Whether each was deleted at least once.
        self._changed: dict[bytes, bool] = {}
        # Names that are files as yet, and since when.
        self._bare: dict[bytes, float] = {}
        self._again: dict[bytes, bool] = {}
        self._waited = 0.0
        self._watch = linux.Inotify()
        mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._close_mounts = partial(os.close, mounts)
        self._poll = select.poll()
        self._poll.register(self._watch.fileno(), select.POLLIN)
        self._poll.register(mounts, select.POLLPRI)
        self._poll.register(DAEMON, select.POLLIN)
        with suppress(FileNotFoundError):
            self._watch.watch_file(path, _CREATED | _DELETED | _MOVED)
        self._directory = self._identity()

    def close(self) -> None:
        """Hear no longer."""
        self._watch.close()
        self._close_mounts()

    def add(self, names: Iterable[bytes]) -> None:
        """Look at some names once more."""
        for name in names:
            self._changed.setdefault(name, False)

    def compare(self, reported: Collection[bytes]) -> None:
        """Look at whatever differs from the names that were reported."""
        try:
            listed = {*os.listdir(self._path)} - {self._reserved}
        except FileNotFoundError:
            listed = set()
        for name in listed.symmetric_difference(reported):
            self._changed[name] = name not in listed

    def wait(self) -> None:
        """Wait for changes, unless there are some.

        Raises:
            _UnsureError: the directory is another now, or events were lost.
        """
        if not self._changed:
            self._poll.poll(self._milliseconds())
            busy = time.monotonic() < self._waited + _BUSY_SECONDS
            time.sleep(_BUSY_TOGETHER_SECONDS if busy else _TOGETHER_SECONDS)
            self._waited = time.monotonic()
            # A change of mounts that comes after this look is heard of once more.
            self._changed = dict.fromkeys(self._bare, False) | self._again
            self._again = {}
        self._read_events()
        if self._identity() != self._directory:
            raise _UnsureError

    def take(self) -> dict[bytes, bool]:
        """Some of the names, and whether each was deleted at least once."""
        names = list(itertools.islice(self._changed, _MAX_TOGETHER))
        return {name: self._changed.pop(name) for name in names}

    def _read_events(self) -> None:
        for mask, name in self._watch.read_events():
            if mask & linux.IN_Q_OVERFLOW:
                with suppress(OSError):
                    os.write(DAEMON, MISSED)
            if not mask & (_CREATED | _DELETED):
                raise _UnsureError
            self._changed[name] = self._changed.get(name, False) or bool(mask & _DELETED)
        self._changed.pop(self._reserved, None)

    def exists(self, name: bytes, existed: bool) -> bool:
        """Whether a name exists, and is not about to become a namespace.

        Args:
            name: the name.
            existed: watchers know it, and it was not deleted since: a file is not waited for.
        """
        try:
            found = linux.statx(b"%b/%b" % (self._path, name))
        except FileNotFoundError:
            self._bare.pop(name, None)
            return False
        now = time.monotonic()
        since = self._bare.setdefault(name, now)
        bare = found.dev != self._nsfs and not stat.S_ISLNK(found.mode)
        if bare and not existed and now < since + SETTLE_SECONDS:
            return False
        del self._bare[name]
        return True

    def look_again(self, name: bytes, deleted: bool) -> None:
        """Look at a name once more, in a moment."""
        self._again[name] = deleted

    def _milliseconds(self) -> float | None:
        """How long to wait at most."""
        if self._again:
            return _AGAIN_SECONDS * 1000
        if not self._bare:
            return None
        settled = min(self._bare.values()) + SETTLE_SECONDS
        return max(0, settled - time.monotonic()) * 1000 + 1

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = linux.statx(self._path, flags=linux.FOLLOW)
        except FileNotFoundError:
            return None
        return found.dev, found.ino


class _ReportedNames:
    """What watchers know.

    Attributes:
        names: those that exist, as far as they know.
    """

    def __init__(self) -> None:
        with open(NAMES, "rb") as file:
            file.seek(0)
            self.names = {*file.read().split(b"\0")[:-1]}
        while (message := os.read(DAEMON, MAX_MESSAGE)) not in (BEGIN, b""):
            self._take(message)
        os.set_blocking(DAEMON, False)

    def catch_up(self) -> list[bytes]:
        """Take note of what was reported meanwhile. Returns the names.

        Raises:
            SystemExit: the daemon has ended.
        """
        found = []
        with suppress(BlockingIOError):
            while message := os.read(DAEMON, MAX_MESSAGE):
                found += self._take(message)
            sys.exit()
        return found

    def _take(self, message: bytes) -> list[bytes]:
        reports = message.split(b"\0")[:-1]
        for report in reports:
            if report.startswith(b"+"):
                self.names.add(report[1:])
            else:
                self.names.discard(report[1:])
        return [report[1:] for report in reports]


def main(password: str, *target: str) -> None:
    """Replay changes until the daemon ends.

    Args:
        password: a name in the mount that only the replayer finds.
        target: a `ReplayTarget`.
    """
    # Nothing that somebody may want to unmount.
    os.chdir("/")
    _Replayer(ReplayTarget.from_arguments([*target]), os.fsencode(password)).run()


class _Replayer:
    """Makes changes in the mount.

    Args:
        target: the mount.
        password: a name that exists there if this process is known as its replayer.
    """

    def __init__(self, target: ReplayTarget, password: bytes) -> None:
        self._target = target
        self._password = password
        self._reported = _ReportedNames()

    def run(self) -> None:
        """Replay changes until the daemon ends."""
        while True:
            pending = _PendingNames(self._target.run_dir, self._target.reserved)
            with closing(pending), suppress(_UnsureError):
                self._replay_all(pending)

    def _replay_all(self, pending: _PendingNames) -> None:
        """Replay changes, until one may have been missed."""
        self._reported.catch_up()
        pending.compare(self._reported.names)
        while self._replay(pending):
            pending.wait()
            pending.add(self._reported.catch_up())
        while not self._target.is_there():
            pending.wait()
            pending.take()
            self._reported.catch_up()

    def _replay(self, pending: _PendingNames) -> bool:
        """Replay some changes. False if the mount cannot be reached."""
        changes = list(self._unreported(pending))
        if not changes:
            return True
        with self._target.opened() as root:
            if root is None:
                return False
            self._require_known(root)
            for name, goes, comes in changes:
                # One of the two may have heard of a change before the other.
                if goes and _fails(os.rmdir, name, root) == errno.EBUSY and not comes:
                    pending.look_again(name, deleted=True)
                if comes and _fails(os.mkdir, name, root) == errno.ENOENT:
                    pending.look_again(name, deleted=False)
                # At once, so that the daemon has no more to send than its channel has room for.
                pending.add({*self._reported.catch_up()} - {name})
        return True

    def _unreported(self, pending: _PendingNames) -> Iterator[tuple[bytes, bool, bool]]:
        """Names of which it was not reported that they have gone, or that they have come."""
        for name, deleted in pending.take().items():
            reported = name in self._reported.names
            exists = pending.exists(name, existed=reported and not deleted)
            # What was deleted and exists may be another thing by now: then both are replayed.
            goes = reported and (deleted or not exists)
            comes = exists and (deleted or not reported)
            if goes or comes:
                yield name, goes, comes

    def _require_known(self, root: int) -> None:
        if self._password:
            try:
                os.stat(self._password, dir_fd=root)
            except FileNotFoundError:
                # What this process asks for would be done.
                sys.exit(UNKNOWN)
            self._password = b""


def _fails(change: Callable[..., None], name: bytes, root: int) -> int:
    """Make a change. Returns the error of one that is not to be reported, or not yet."""
    try:
        change(name, dir_fd=root)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST, errno.EBUSY):
            raise
        return error.errno
    return 0
