"""To whom each name was given: kept by the kernel, on the placeholder below the name's mount.

A namespace's file takes neither owner nor mode (nsfs). The empty file that it is mounted on
does, and ends with the name. So an extended attribute of that file holds user ID, group ID and
mode, in one piece. Placeholders of other tools do not have it.

The placeholder is covered by the mount. A clone of the directory's mount without the mounts
below it (open_tree(2)) shows it.

An attribute of the directory itself changes with every delegation. To look at it takes one
system call; only when it has changed is the directory cloned, and all placeholders looked at.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from netnsfs import linux
from netnsfs.permissions import Owner, delegate
from netnsfs.workers import may_block


class _Given(NamedTuple):
    """A delegation, and what stood under the name when it was found."""

    mark: linux.Stat
    owner: Owner


class Delegations:
    """The delegations of one run directory.

    Args:
        path: the directory.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        # trusted.* is for the initial user namespace only (xattr(7)).
        kind = "trusted" if linux.in_initial_user_namespace() else "user"
        self._attribute = f"{kind}.netnsfs"
        self._found: tuple[bytes | None, dict[bytes, _Given]] = (None, {})

    def generation(self) -> bytes | None:
        """What changes with every delegation; None before the first."""
        return linux.attribute(self._path, self._attribute.encode())

    def of(self, name: bytes, mark: linux.Stat) -> Owner | None:
        """To whom a name was given.

        Args:
            name: the name.
            mark: what stands under it.

        Raises:
            WouldBlock: on the event loop's thread, if there have been new ones.
        """
        generation = self.generation()
        if generation != self._found[0]:
            may_block()
            self._found = generation, self._scan()
        given = self._found[1].get(name)
        if given and given.mark != mark:
            # Removed and made anew, or seen before it was mounted.
            may_block()
            self._found = generation, self._scan()
            given = self._found[1].get(name)
        return given.owner if given and given.mark == mark else None

    def _scan(self) -> dict[bytes, _Given]:
        found = {}
        with suppress(OSError), self._uncovered() as directory:
            for name in os.listdir(_below(directory, b"")):
                with suppress(OSError, ValueError):
                    value = os.getxattr(_below(directory, name), self._attribute)
                    mark = linux.stat(b"%b/%b" % (self._path, name))
                    found[name] = _Given(mark, _decoded(value))
        return found

    def mark(self, placeholder: int, owner: Owner) -> None:
        """Give a name to somebody before anything is mounted on its placeholder.

        Args:
            placeholder: a descriptor of it.
            owner: to whom. To be announced.

        Raises:
            OSError: EPERM if it cannot be kept.
        """
        value = b"%d:%d:%o" % (owner.uid, owner.gid, owner.mode)
        try:
            os.setxattr(b"/proc/thread-self/fd/%d" % placeholder, self._attribute, value)
        except OSError as error:
            raise _not_kept() from error

    def announce(self) -> None:
        """Make it known that there are new delegations."""
        os.setxattr(self._path, self._attribute, b"%d" % time.time_ns())

    def change(self, name: bytes, mark: linux.Stat, owner: Owner) -> None:
        """Give a name to somebody.

        Args:
            name: the name.
            mark: what stands under it.
            owner: to whom.

        Raises:
            OSError: ENOENT if something else stands there; EPERM if it cannot be kept.
        """
        with self._uncovered() as directory:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            placeholder = os.open(_below(directory, name), flags)
        try:
            # Under a mount, a placeholder cannot be replaced: this is the one of the mark.
            if linux.stat(b"%b/%b" % (self._path, name)) != mark:
                raise FileNotFoundError(errno.ENOENT, "it is another now", name)
            self.mark(placeholder, owner)
        finally:
            os.close(placeholder)
        self.announce()

    @contextmanager
    def _uncovered(self) -> Iterator[int]:
        try:
            directory = linux.open_tree(self._path)
        except OSError as error:
            raise _not_kept() from error
        try:
            yield directory
        finally:
            os.close(directory)


def _below(directory: int, name: bytes) -> bytes:
    return b"/proc/thread-self/fd/%d/%b" % (directory, name)


def _decoded(value: bytes) -> Owner:
    uid, gid, mode = value.split(b":")
    return delegate(int(uid), int(gid), int(mode, 8))


def _not_kept() -> OSError:
    return PermissionError(errno.EPERM, "the run directory cannot keep mode and owner")
