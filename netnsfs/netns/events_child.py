"""The program of the process that `events` starts: the teller.

It hears of names in the run directory (inotify(7)), and of mounts (POLLPRI of
/proc/self/mountinfo), and makes in the mount what has become true: mkdir(2) of a name that
stands, rmdir(2) of one that has gone. It may come too late to know that watchers were told of
it already: then the call fails, and that is all.

A bare file is a name too, but `ip netns add` makes one just before it mounts the namespace. So
a file is told of when a namespace is mounted on it, or when it has been a file for some time.

Whenever it cannot be sure that it has heard of everything, it compares the run directory with
what watchers know. That is in a file, its standard output, and from then on the daemon reports
it on a socket, its standard input. When the daemon has ended, so does this.
"""

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial

from netnsfs import linux

UNKNOWN = 2
"""Exit status: the mount does not know this process as its teller."""

SETTLE_SECONDS = 5.0
"""After this time, a file that is still no namespace is told of all the same."""

# What follows within this time is told together. `ip netns add` has mounted by then.
_TOGETHER_SECONDS = 0.0005
# The same while changes follow each other: then this process is not to take a processor from
# those who make them.
_BUSY_TOGETHER_SECONDS = 0.004
_BUSY_SECONDS = 0.01
_AGAIN_SECONDS = 0.02

# A sign, and a name (linux/limits.h).
_LONGEST_REPORT = 1 + 255

_CREATED = linux.IN_CREATE | linux.IN_MOVED_TO
_DELETED = linux.IN_DELETE | linux.IN_MOVED_FROM
_MOVED = linux.IN_DELETE_SELF | linux.IN_MOVE_SELF

DAEMON = 0
NAMES = 1
BEGIN = b"!"
"""What the daemon says when it will know this process by its process ID."""


class _UnsureError(Exception):
    """Something may have been missed."""


class _Names:
    """The names in the run directory, and what becomes of them.

    Args:
        path: the directory. It need not exist.
        reserved: a name that does not count.
    """

    def __init__(self, path: bytes, reserved: bytes) -> None:
        self._path = path
        self._reserved = reserved
        self._nsfs = linux.statx(b"/proc/self/ns/net", flags=linux.FOLLOW).dev
        # Names that are files as yet, and since when.
        self._pending: dict[bytes, float] = {}
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

    def compare(self, told: Collection[bytes]) -> dict[bytes, bool]:
        """What differs from the names that were told of, as `wait` has it."""
        try:
            listed = {*os.listdir(self._path)} - {self._reserved}
        except FileNotFoundError:
            listed = set()
        return {name: name not in listed for name in listed.symmetric_difference(told)}

    def wait(self) -> dict[bytes, bool]:
        """Wait for changes.

        Returns:
            The names that have changed, and whether each has gone at least once.

        Raises:
            _UnsureError: the directory is another now, or events were lost.
        """
        self._poll.poll(self._milliseconds())
        busy = time.monotonic() < self._waited + _BUSY_SECONDS
        time.sleep(_BUSY_TOGETHER_SECONDS if busy else _TOGETHER_SECONDS)
        self._waited = time.monotonic()
        # A change of mounts that comes after this look is told of once more.
        changed = dict.fromkeys(self._pending, False) | self._again
        self._again = {}
        for mask, name in self._watch.read_events():
            if not mask & (_CREATED | _DELETED):
                raise _UnsureError
            changed[name] = changed.get(name, False) or bool(mask & _DELETED)
        if self._identity() != self._directory:
            raise _UnsureError
        changed.pop(self._reserved, None)
        return changed

    def stands(self, name: bytes, stood: bool) -> bool:
        """Whether a name stands, and is not about to become a namespace.

        Args:
            name: the name.
            stood: watchers know it, and it has not gone since: a file is not waited for.
        """
        try:
            found = linux.statx(b"%b/%b" % (self._path, name))
        except FileNotFoundError:
            self._pending.pop(name, None)
            return False
        now = time.monotonic()
        since = self._pending.setdefault(name, now)
        bare = found.dev != self._nsfs and not stat.S_ISLNK(found.mode)
        if bare and not stood and now < since + SETTLE_SECONDS:
            return False
        del self._pending[name]
        return True

    def look_again(self, name: bytes, went: bool) -> None:
        """Return a name from `wait` once more, in a moment."""
        self._again[name] = went

    def _milliseconds(self) -> float | None:
        """How long to wait at most."""
        if self._again:
            return _AGAIN_SECONDS * 1000
        if not self._pending:
            return None
        settled = min(self._pending.values()) + SETTLE_SECONDS
        return max(0, settled - time.monotonic()) * 1000 + 1

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = linux.statx(self._path, flags=linux.FOLLOW)
        except FileNotFoundError:
            return None
        return found.dev, found.ino


class _Told:
    """What watchers know.

    Attributes:
        names: those that stand, as far as they know.
    """

    def __init__(self) -> None:
        with open(NAMES, "rb") as file:
            file.seek(0)
            self.names = {*file.read().split(b"\0")[:-1]}
        while (report := os.read(DAEMON, _LONGEST_REPORT)) not in (BEGIN, b""):
            self._take(report)
        os.set_blocking(DAEMON, False)

    def catch_up(self) -> list[bytes]:
        """Take note of what was reported meanwhile. Returns the names.

        Raises:
            SystemExit: the daemon has ended.
        """
        found = []
        with suppress(BlockingIOError):
            while report := os.read(DAEMON, _LONGEST_REPORT):
                found.append(self._take(report))
            sys.exit()
        return found

    def _take(self, report: bytes) -> bytes:
        name = report[1:]
        if report.startswith(b"+"):
            self.names.add(name)
        else:
            self.names.discard(name)
        return name


class _Target:
    """The mount whose watchers are told.

    Args:
        path: where it is mounted.
        identity: device and mount ID.
        password: a name that is there if this process is known as the teller.
    """

    def __init__(self, path: bytes, identity: tuple[int, int], password: bytes) -> None:
        self._path = path
        self._identity = identity
        self._password = password

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """A descriptor of its root, None while it is not to be reached."""
        clone = self._clone()
        if clone is None:
            yield None
        else:
            with linux.closing_fd(clone):
                self._refuse_unknown(clone)
                yield clone

    def is_there(self) -> bool:
        """Whether it is to be reached."""
        with self.opened() as root:
            return root is not None

    def _refuse_unknown(self, root: int) -> None:
        if self._password:
            try:
                os.stat(self._password, dir_fd=root)
            except FileNotFoundError:
                # What this process asks for would be done.
                sys.exit(UNKNOWN)
            self._password = b""

    def _clone(self) -> int | None:
        """A mount of our own of what is mounted there: umount(8) does not find ours busy."""
        try:
            fd = os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with linux.closing_fd(fd):
            found = linux.statx(b"", fd)
            if (found.dev, found.mount) != self._identity:
                return None
            return linux.bind_mount(fd)


def main(password: str, *place: str) -> None:
    """Tell watchers until the daemon ends.

    Args:
        password: a name in the mount that only the teller finds.
        place: as `events.Place` has it.
    """
    # Nothing that somebody may want to unmount.
    os.chdir("/")
    run_dir, mount_point, dev, mount, reserved = map(os.fsencode, place)
    told = _Told()
    target = _Target(mount_point, (int(dev), int(mount)), os.fsencode(password))
    while True:
        with closing(_Names(run_dir, reserved)) as names, suppress(_UnsureError):
            _tell_all(names, target, told)


def _tell_all(names: _Names, target: _Target, told: _Told) -> None:
    """Tell of changes, until something may have been missed."""
    told.catch_up()
    changed = names.compare(told.names)
    while _tell(names, target, told.names, changed):
        changed = names.wait()
        for name in told.catch_up():
            changed.setdefault(name, False)
    while not target.is_there():
        names.wait()
        told.catch_up()


def _tell(
    names: _Names, target: _Target, told: set[bytes], changed: Mapping[bytes, bool]
) -> bool:
    """Tell of changes. False if the mount is not to be reached."""
    news = []
    for name, went in changed.items():
        stands = names.stands(name, stood=name in told and not went)
        # What has gone and stands may be another thing by now: then both are told.
        goes = name in told and (went or not stands)
        comes = stands and (went or name not in told)
        if goes or comes:
            news.append((name, goes, comes))
    if not news:
        return True
    with target.opened() as root:
        if root is None:
            return False
        for name, goes, comes in news:
            # One of the two may have heard of a change before the other.
            if goes and _fails(os.rmdir, name, root) == errno.EBUSY and not comes:
                names.look_again(name, went=True)
            if comes and _fails(os.mkdir, name, root) == errno.ENOENT:
                names.look_again(name, went=False)
    return True


def _fails(change: Callable[..., None], name: bytes, root: int) -> int:
    """Make a change. Returns the error of one that watchers need not be told of, or not yet."""
    try:
        change(name, dir_fd=root)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST, errno.EBUSY):
            raise
        return error.errno
    return 0
