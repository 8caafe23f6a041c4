"""The vocabulary of the mounted tree: directories, files, links, open files.

What the tree holds is defined in `tree`; how the kernel asks for it, in `fuse`. Between
the two stand these classes, and they know neither FUSE nor namespaces.

Methods are plain calls that raise OSError. The adapter makes those that change something on a
worker thread, all others on the event loop; one that can take long raises WouldBlock there
(see `jobs.may_block`), and the adapter makes the same call again on a worker thread.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, runtime_checkable

# For what has no time of its own.
MOUNTED_NS = time.time_ns()

ENTRY_TIMEOUT = 3600.0
"""How many seconds the kernel may keep a name that never stands for anything else."""

USUAL_SIZE = 4096
"""What sysfs says of files whose size it does not know."""


# A tuple, because each request makes one, and a tuple is made quickly.
class Attributes(NamedTuple):
    """What stat(2) shows of a node.

    Attributes:
        mode: type and permission bits.
        size: in bytes.
        links: number of hard links; 1 for a directory whose subdirectories nobody counts.
        atime_ns, mtime_ns, ctime_ns: nanoseconds since the epoch.
        attr_timeout: how many seconds the kernel may keep these attributes.
        uid, gid: owner.
    """

    mode: int
    size: int = 0
    # find(1) may take a larger number for that of the subdirectories, and look for no more.
    links: int = 1
    atime_ns: int = MOUNTED_NS
    mtime_ns: int = MOUNTED_NS
    ctime_ns: int = MOUNTED_NS
    attr_timeout: float = 3600.0
    uid: int = 0
    gid: int = 0


class Caller(Protocol):
    """Who asks: a thread, as the daemon's PID and user namespaces have it."""

    @property
    def pid(self) -> int:
        """Thread ID; 0 if the caller is not in the daemon's PID namespace."""

    @property
    def uid(self) -> int:
        """User ID."""

    @property
    def umask(self) -> int:
        """File mode creation mask."""


class Node:
    """Anything with a name.

    Attributes:
        key: equal for two objects that are the same node.
        number: the node ID and st_ino that it should have, 0 for any.
        generation: tells two nodes with one number apart.
        change_cookie: changes when the attributes do that the kernel may keep.
        represents: what it shows, if another thing can have the same name: equal for all
            nodes of one thing.
        label: what to call it in a message.
        at_birth: what it was made with, for the answer to its mkdir alone, so that nothing is
            read back. Others may have changed it since: valid for no time.
    """

    key: Hashable
    number = 0
    generation = 0
    represents: Hashable = None
    at_birth: Attributes | None = None

    @property
    def change_cookie(self) -> Hashable:
        return None

    @property
    def label(self) -> bytes:
        return b""

    def getattr_cached(self) -> Attributes:
        """What stat(2) shows.

        Raises:
            OSError: it cannot be found out.
        """
        raise NotImplementedError

    def getattr(self) -> Attributes:
        """What stat(2) shows. `getattr_cached`, for a lookup, may tell a longer size.

        Raises:
            OSError: it cannot be found out.
        """
        return self.getattr_cached()

    def setattr(
        self, mode: int | None, uid: int | None, gid: int | None, caller: Caller
    ) -> None:
        """Change mode and owner, as chmod(2) and chown(2) do.

        Args:
            mode: permission bits; None, as for the others, to leave them as they are.
            uid: user ID.
            gid: group ID.
            caller: who asks.

        Raises:
            OSError: EPERM if they cannot be kept.
        """
        raise PermissionError(errno.EPERM, "its mode and owner cannot be changed")


class Handle(Protocol):
    """An open file."""

    @property
    def length(self) -> int:
        """The length of its content, or an upper bound."""

    def read(self, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only at the end."""

    def write(self, data: bytes, offset: int) -> int:
        """Take `data`; the number of bytes taken."""

    def close(self) -> None:
        """Called once, at the last close(2)."""


@runtime_checkable
class Pollable(Protocol):
    """An open file that can be waited for."""

    def poll(self, wake: Callable[[], None]) -> bool:
        """Whether what was read is no longer true (POLLPRI in poll(2)).

        Args:
            wake: called, on any thread, when that may have changed since. The same at each
                call, until the file is closed.
        """


class Directory(Node):
    """A directory in which nothing can be made.

    Attributes:
        writable: mkdir(2), rmdir(2), rename(2) and symlink(2) are welcome.
        no_new_file: why no file can be made here.
        entry_timeout: how many seconds the kernel may keep the names below: 0 where what they
            stand for can change.
    """

    writable = False
    entry_timeout = 0.0
    no_new_file = "no file can be made here: mkdir makes a namespace, at the top"

    def lookup(self, name: bytes, caller: Caller) -> Node:
        """The node under a name.

        Raises:
            OSError: ENOENT.
        """
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def readdir(self) -> list[bytes]:
        """All names, without "." and ".."."""
        return []

    def listing_caller(self, caller: Caller) -> Caller:
        """The caller to keep for a listing, with all that must be asked while they wait."""
        return caller

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        """`lookup` of a name that `readdir` has just returned."""
        return self.lookup(name, caller)

    def mkdir(self, name: bytes, mode: int, caller: Caller) -> Node:
        """Make a directory, and return it. The caller's umask is taken off the mode already."""
        message = "namespaces are made at the top, and bridges in links"
        raise PermissionError(errno.EPERM, message, name)

    def rmdir(self, name: bytes, caller: Caller) -> None:
        """Remove a directory."""
        message = "only namespaces at the top and interfaces in links are removed"
        raise PermissionError(errno.EPERM, message, name)

    def unlink(self, name: bytes, caller: Caller) -> None:
        """Remove a file or link."""
        message = "no file is removed: rmdir removes the whole namespace or interface"
        raise PermissionError(errno.EPERM, message, name)

    def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        """Make what symlink(2) makes here, and return it as a link."""
        message = "links are made at the top, in links and as links/IFACE/master"
        raise PermissionError(errno.EPERM, message, name)

    def rename(
        self, name: bytes, directory: "Directory", new_name: bytes, caller: Caller
    ) -> None:
        """Give a node another name, in this or another directory. Nothing is replaced."""
        message = "only names at the top and interfaces in links are moved"
        raise PermissionError(errno.EPERM, message, name)


class Link(Node):
    """A symbolic link."""

    def target_path(self) -> bytes:
        """What it points to."""
        raise NotImplementedError

    def readlink(self, caller: Caller) -> bytes:
        """What it points to, for one who asks.

        Raises:
            OSError: EACCES if that is not for everyone.
        """
        return self.target_path()

    def getattr_cached(self) -> Attributes:
        # The size can change: the target of a link may follow a rename. A link is followed
        # without its attributes, so that not keeping them costs nothing.
        return Attributes(stat.S_IFLNK | 0o777, len(self.target_path()), attr_timeout=0)


class FixedLink(Link):
    """A link whose text is what was true when its name was looked up.

    Args:
        key: what distinguishes it from other nodes, the text included.
        text: what it points to.
    """

    def __init__(self, key: Hashable, text: bytes) -> None:
        self.key = key
        self._text = text

    def target_path(self) -> bytes:
        return self._text


class OneTimeLink(FixedLink):
    """The answer to symlink(2). The next lookup of the name finds a directory."""

    def __init__(self, text: bytes) -> None:
        # A node of its own, so that the kernel takes nothing that it finds later for this one.
        super().__init__(self, text)


class File(Node):
    """A file.

    What stat(2) should show as the size of changing content cannot be known before open. But
    sendfile(2) and splice(2) stop at the size that the kernel heard last, so it must not be
    too small; and tar and rsync take the size from fstat(2) after open(2) and fail if less
    comes, so then it must be the right one. A request for attributes does not tell which of
    the two it is for. Hence: while it is open the length of what was opened, and an upper
    bound, or what is usual, at any other time. Open files with different content are different
    nodes to the kernel.

    Attributes:
        constant: its content never changes.
        keeps_name: where the directory allows it, the kernel may keep its name. If not, each
            lookup finds a node that nobody has open, and so stat(2) tells what is true now.
        writable: truncate(2) to 0 is welcome.
        slow: its content takes long to make, and is the same for many; or a write takes long.
    """

    label = b""
    constant = False
    keeps_name = True
    writable = False
    slow = False

    def open(self, flags: int, caller: Caller) -> Handle:
        """Open it; `flags` as in open(2).

        Raises:
            OSError: EACCES for writing to a file that cannot be written.
        """
        raise NotImplementedError


def opened_for_writing(flags: int) -> bool:
    """Whether a file is changed by an open(2) with some flags, or can be after it."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def require_read_only(flags: int) -> None:
    """For files that are read-only to root too, whom mode bits do not bind.

    Raises:
        OSError: EACCES.
    """
    if opened_for_writing(flags):
        raise PermissionError(errno.EACCES, "the file is read-only")


class Snapshot:
    """An open file whose content was fixed at open, and whose writes are commands.

    As in procfs, going back to offset 0 fixes the content anew.

    Args:
        flags: as in open(2); a file opened only for writing has no content.
        take: makes the content.
        check: raises FileNotFoundError if what the file tells of is gone.
        run: carries out what one write(2) says; None for a read-only file.

    Raises:
        OSError: what `take` raises.
    """

    def __init__(
        self,
        flags: int,
        take: Callable[[], bytes],
        check: Callable[[], None] = lambda: None,
        run: Callable[[bytes], None] | None = None,
    ) -> None:
        if run is None:
            require_read_only(flags)
        self._take = take
        self._check = check
        self._run = run
        self._unread = True
        self.content = b"" if flags & os.O_ACCMODE == os.O_WRONLY else take()

    @property
    def length(self) -> int:
        """See `Handle.length`."""
        return len(self.content)

    def read(self, size: int, offset: int) -> bytes:
        """Part of the content.

        Raises:
            OSError: ENODEV at offset 0 if what the file tells of is gone.
        """
        if offset == 0:
            try:
                # The first read gets what open(2) has fixed. A later one that starts again gets
                # what is true by then.
                if self._unread:
                    self._check()
                else:
                    self.content = self._take()
            except FileNotFoundError as error:
                raise gone_error() from error
            self._unread = False
        return self.content[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int:
        """Carry out a command; the offset means nothing.

        Raises:
            OSError: ENODEV if what the file tells of is gone, else what the command says.
        """
        if self._run is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            self._run(data)
        except FileNotFoundError as error:
            raise gone_error() from error
        return len(data)

    def close(self) -> None:
        """Nothing is held."""


def gone_error() -> OSError:
    """What an open file answers when what it tells of is gone: ENODEV."""
    return OSError(errno.ENODEV, "it is gone")
