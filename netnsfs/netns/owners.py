"""The owner of each name: kept by the kernel, on the placeholder below the name's mount.

A namespace's file takes neither owner nor mode (nsfs). The empty file that it is mounted on
does, and ends with the name. So an extended attribute of that file holds user ID, group ID and
modes, in one piece. Placeholders of other tools do not have it, and mean nothing.

What the placeholder says counts, and nothing that is remembered: a name that was removed and
made anew has a new placeholder, which says nothing. The event loop keeps what it has read until
`RunDirectory` hears that something about the name has changed.

Who changes an owner holds the lock (flock(2)) of that placeholder: two changes, or a change and
a rename, come one after the other, also from two daemons. Nobody but root can open the
placeholder, whose mode is 0, so nobody can keep that lock.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netnsfs import linux
from netnsfs.jobs import commit, may_block
from netnsfs.limits import LOCK_SECONDS
from netnsfs.netns.rundir import RunDirectory
from netnsfs.permissions import CLOSED, Owner

# There is none, or the file system has none.
_NOT_GIVEN = (errno.ENODATA, errno.ENOTSUP)
# A more privileged user namespace has mounted here, and its placeholders cannot be seen.
_NOT_OURS = (errno.EINVAL, errno.EPERM)

# User ID, group ID, and two sets of permission bits, the second of bits for writing.
_OWNER = re.compile(rb"(\d{1,10}):(\d{1,10}):([0-7]{1,3}):([0-7]{1,3})")
_MAX_ID = (1 << 32) - 2


class Owners:
    """The owners of the names in one run directory.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        # trusted.* is for the initial user namespace only (xattr(7)).
        kind = "trusted" if linux.in_initial_user_namespace() else "user"
        self._attribute = f"{kind}.netnsfs"

    def owner_of(self, name: bytes) -> Owner | None:
        """The owner of a name; None if it was given to nobody, or does not exist.

        Raises:
            WouldBlock: on the event loop's thread, if it is not in the kernel's cache.
            OSError: it cannot be looked at. That is never taken for "nobody": a namespace
                that was closed must not open because the daemon is short of something.
        """
        known = self._directory.known_owners()
        # None is an answer too: it was given to nobody.
        if known is not None and name in known:
            return known[name]
        try:
            placeholder = self._directory.open_placeholder_opath(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NOT_OURS:
                return None
            raise
        with linux.closing_fd(placeholder):
            owner = self.read_owner(placeholder)
            if known is not None and _has_one_name(placeholder):
                known[name] = owner
        return owner

    def read_owner(self, placeholder: int) -> Owner | None:
        """The owner that an open placeholder tells; None if its name was given to nobody.

        Args:
            placeholder: a descriptor of it; O_PATH is enough.
        """
        try:
            value = os.getxattr(_path_of(placeholder), self._attribute)
        except OSError as error:
            if error.errno in _NOT_GIVEN:
                return None
            raise
        found = _OWNER.fullmatch(value)
        if not found or max(int(found[1]), int(found[2])) > _MAX_ID:
            # Written by somebody else, or by another version: closed until root says whose.
            return CLOSED
        return Owner(int(found[1]), int(found[2]), int(found[3], 8), int(found[4], 8))

    def write_owner(self, placeholder: int, owner: Owner) -> None:
        """Give the name of an open placeholder to somebody.

        Raises:
            OSError: EPERM if that cannot be kept.
        """
        try:
            os.setxattr(_path_of(placeholder), self._attribute, b"%d:%d:%o:%o" % owner)
        except OSError as error:
            # That may pass. Any other error is the run directory's, and stays.
            linux.reraise_if_resource(error)
            message = "the run directory cannot keep mode and owner"
            raise PermissionError(errno.EPERM, message) from error

    def change_owner(
        self, name: bytes, identity: linux.Stat, decide: Callable[[Owner | None], Owner]
    ) -> None:
        """Give a name to somebody.

        Args:
            name: the name.
            identity: what must stand under it.
            decide: from the owner as it is now to what it shall be; raises what refuses it.

        Raises:
            OSError: ENOENT if something else stands there; EPERM if it cannot be kept;
                ETIMEDOUT if another daemon does not end its change.
        """
        # Only here: the clone by which the placeholder is reached is writable in any case.
        if os.statvfs(self._directory.path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)
        with self.owner_locked(name) as placeholder:
            # Under a mount, a placeholder cannot be replaced: this is the one of the identity.
            if linux.statx(self._directory.path_of(name)) != identity:
                raise FileNotFoundError(errno.ENOENT, "it is another now", name)
            owner = decide(self.read_owner(placeholder))
            commit()
            self.write_owner(placeholder, owner)

    @contextmanager
    def owner_locked(self, name: bytes) -> Iterator[int]:
        """Keep the owner of a name from changing until the block ends.

        Yields:
            A descriptor of its placeholder.

        Raises:
            OSError: ENOENT if the name is gone by then; else as `change_owner`.
        """
        may_block()
        with linux.closing_fd(self._open_placeholder(name)) as placeholder:
            linux.lock(placeholder, LOCK_SECONDS)
            if not self._directory.is_placeholder(name, placeholder):
                raise FileNotFoundError(errno.ENOENT, "somebody else was first", name)
            yield placeholder

    def _open_placeholder(self, name: bytes) -> int:
        with linux.closing_fd(self._directory.open_placeholder_opath(name)) as found:
            # Opening anything else could have effects, or never end.
            mode = os.fstat(found).st_mode
            if not stat.S_ISREG(mode):
                raise PermissionError(errno.EPERM, "it has no owner of its own", name)
            # Those of other tools may be open to everyone, who could then lock them.
            if stat.S_IMODE(mode):
                commit()
                os.chmod(_path_of(found), 0)
            return os.open(_path_of(found), os.O_RDONLY | os.O_CLOEXEC)


def _has_one_name(placeholder: int) -> bool:
    # What happens to a file under another name of it is not heard of.
    try:
        return os.fstat(placeholder).st_nlink == 1
    except OSError:
        return False


def _path_of(fd: int) -> bytes:
    # fgetxattr(2) and fchmod(2) refuse an O_PATH descriptor. Its path in /proc does the same.
    return b"/proc/thread-self/fd/%d" % fd
