"""The vocabulary of the mounted tree: directories, files, links, open files.

What the tree holds is defined in `files`; how the kernel asks for it, in `fuse`. Between
the two stand these classes, and they know neither FUSE nor namespaces.

Methods are plain calls that raise OSError. The adapter makes them on the event loop; one
that can take long raises WouldBlock there (see `workers.may_block`), and the adapter makes
the same call again on a worker thread.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

MOUNTED_NS = time.time_ns()


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows of a node.

    Attributes:
        mode: type and permission bits.
        size: in bytes.
        links: number of hard links; 1 for a directory whose subdirectories nobody counts.
        atime_ns, mtime_ns, ctime_ns: nanoseconds since the epoch.
        seconds: how long the kernel may keep these attributes.
    """

    mode: int
    size: int = 0
    links: int = 1
    atime_ns: int = MOUNTED_NS
    mtime_ns: int = MOUNTED_NS
    ctime_ns: int = MOUNTED_NS
    seconds: float = 3600.0


class Node:
    """Anything with a name.

    Attributes:
        key: equal for two objects that are the same node.
        number: the node ID and st_ino that it should have, 0 for any.
        generation: tells two nodes with one number apart.
    """

    key: Hashable
    number = 0
    generation = 0

    def attributes(self) -> Attributes:
        """What stat(2) shows."""
        raise NotImplementedError


class Handle(Protocol):
    """An open file."""

    def read(self, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only at the end."""

    def close(self) -> None:
        """Called once, at the last close(2)."""


class Directory(Node):
    """A directory in which nothing can be made.

    Attributes:
        lasting: what a name below stands for never changes, so the kernel may keep it.
    """

    lasting = False

    def lookup(self, name: bytes) -> Node:
        """The node under a name.

        Raises:
            OSError: ENOENT.
        """
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def list(self) -> list[bytes]:
        """All names, without "." and ".."."""
        return []

    def mkdir(self, name: bytes) -> Node:
        """Make a directory and return it."""
        raise _not_permitted(name)

    def rmdir(self, name: bytes) -> None:
        """Remove a directory."""
        raise _not_permitted(name)


class Link(Node):
    """A symbolic link."""

    def target(self) -> bytes:
        """What it points to."""
        raise NotImplementedError

    def attributes(self) -> Attributes:
        # The size can change: the target of a link may follow a rename. A link is followed
        # without its attributes, so that not keeping them costs nothing.
        return Attributes(stat.S_IFLNK | 0o777, len(self.target()), seconds=0)


class File(Node):
    """A file."""

    def open(self, flags: int) -> Handle:
        """Open it; `flags` as in open(2).

        Raises:
            OSError: EACCES for writing to a file that cannot be written.
        """
        raise NotImplementedError


def refuse_writing(flags: int) -> None:
    """For files that are read-only to root too, whom mode bits do not bind.

    Raises:
        OSError: EACCES.
    """
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        raise PermissionError(errno.EACCES, "the file is read-only")


class Snapshot:
    """An open file whose content was fixed at open.

    As in procfs, going back to offset 0 fixes it anew.

    Args:
        take: makes the content.
        check: raises FileNotFoundError if what the file tells of is gone.

    Raises:
        OSError: what `take` raises.
    """

    def __init__(self, take: Callable[[], bytes], check: Callable[[], None]) -> None:
        self._take = take
        self._check = check
        self._unread = True
        self.content = take()

    def read(self, size: int, offset: int) -> bytes:
        """Part of the content.

        Raises:
            OSError: ENODEV at offset 0 if what the file tells of is gone.
        """
        if offset == 0:
            try:
                if self._unread:
                    self._check()
                else:
                    self.content = self._take()
            except FileNotFoundError as error:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error
            self._unread = False
        return self.content[offset : offset + size]

    def close(self) -> None:
        """Nothing is held."""


class Snapshots:
    """The open snapshots of one file, and with them the size that stat(2) should show.

    sendfile(2) and splice(2) stop at the size that the kernel last heard, so it must never
    be too small. tar and rsync take the size from fstat(2) after open(2) and fail if less
    comes, so then it must be the right one. Hence: an upper bound while the file is not
    open, and the length of the longest open snapshot while it is.
    """

    def __init__(self) -> None:
        self._open: WeakSet[Snapshot] = WeakSet()

    def add(self, snapshot: Snapshot) -> None:
        """Count an open snapshot for as long as somebody refers to it."""
        self._open.add(snapshot)

    def size(self, bound: Callable[[], int]) -> int:
        """The size to show, in bytes; `bound` is asked if nothing is open."""
        lengths = [len(snapshot.content) for snapshot in self._open]
        return max(lengths) if lengths else bound()


def _not_permitted(name: bytes) -> OSError:
    return PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
