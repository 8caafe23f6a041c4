"""To whom each name was given: kept by the kernel, on the placeholder below the name's mount.

A namespace's file takes neither owner nor mode (nsfs). The empty file that it is mounted on
does, and ends with the name. So an extended attribute of that file holds user ID, group ID and
modes, in one piece. Placeholders of other tools do not have it.

The placeholder is covered by the mount. A clone of the directory's mount without the mounts
below it (open_tree(2)) shows it.

An attribute of the directory itself, the generation, changes with every delegation. Only when
somebody else has changed it is the directory cloned, and are all placeholders looked at. What
cannot be looked at is an error: a namespace that was closed to others must not open because the
daemon is short of something.

Whoever delegates holds the lock of the directory, which `ip netns add` takes too.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.permissions import Owner

LOCK_SECONDS = 5.0

# There is none, the file system has none, or the name is gone.
_NOT_GIVEN = (errno.ENODATA, errno.ENOTSUP, errno.ENOENT)


class _Given(NamedTuple):
    """A delegation, and what stood under the name when it was found."""

    mark: linux.Stat
    owner: Owner


class _Local(threading.local):
    locked = False


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
        # A stamp, and what was found and was true then.
        self._checked: tuple[object, object] = (None, None)
        self._local = _Local()

    def generation(self) -> bytes | None:
        """What changes with every delegation; None before the first.

        Raises:
            WouldBlock: on the event loop's thread, if the kernel has to look for it.
        """
        name = self._attribute.encode()
        try:
            directory = linux.open_cached(self._path, follow=True)
        except FileNotFoundError:
            return None
        if directory is None:
            may_block()
            return linux.get_attribute(self._path, name)
        try:
            # What is open stays in the kernel's cache.
            return linux.get_attribute(self._path, name)
        finally:
            os.close(directory)

    def of(self, name: bytes, mark: linux.Stat, stamp: object = None) -> Owner | None:
        """To whom a name was given.

        Args:
            name: the name.
            mark: what stands under it.
            stamp: the same object for as long as there have been no new delegations, if that
                is known.

        Raises:
            WouldBlock: on the event loop's thread, if there have been new ones.
            OSError: it cannot be looked at.
        """
        found = self._found
        given = found[1].get(name)
        # With another mark: removed and made anew, or seen before it was mounted.
        other = given is not None and given.mark != mark
        before, checked = self._checked
        if other or stamp is None or stamp is not before or found is not checked:
            generation = self.generation()
            if other or generation != found[0]:
                may_block()
                found = self._found = generation, self._scan()
                given = found[1].get(name)
            self._checked = stamp, found
        return given.owner if given and given.mark == mark else None

    def _scan(self) -> dict[bytes, _Given]:
        found = {}
        with self._uncovered() as directory:
            for name in os.listdir(_below(directory, b"")):
                try:
                    # In this order: what is made anew meanwhile is not taken for the old.
                    mark = linux.statx(b"%b/%b" % (self._path, name))
                    value = os.getxattr(_below(directory, name), self._attribute)
                except OSError as error:
                    if error.errno not in _NOT_GIVEN:
                        raise
                    continue
                found[name] = _Given(mark, _decoded(value))
        return found

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Keep delegations, if there are any, from changing until the block ends."""
        if self.generation() is None:
            yield
        else:
            with self._locked():
                yield

    @contextmanager
    def giving(
        self, name: bytes, mark: linux.Stat, placeholder: int, owner: Owner
    ) -> Iterator[None]:
        """Give a name to somebody; the block mounts the namespace on its placeholder.

        Nobody sees the namespace under that name before it is known to whom it belongs.

        Args:
            name: the name.
            mark: what will stand under it.
            placeholder: a descriptor of its placeholder.
            owner: to whom.

        Raises:
            OSError: EPERM if it cannot be kept.
        """
        with self._locked():
            try:
                self._give(name, mark, placeholder, owner)
                yield
            except BaseException:
                self._found[1].pop(name, None)
                raise

    def change(self, name: bytes, mark: linux.Stat, owner: Owner) -> None:
        """Give a name to somebody.

        Args:
            name: the name.
            mark: what stands under it.
            owner: to whom.

        Raises:
            OSError: ENOENT if something else stands there; EPERM if it cannot be kept.
        """
        with self._locked(), self._placeholder(name) as placeholder:
            # Under a mount, a placeholder cannot be replaced: this is the one of the mark.
            if linux.statx(b"%b/%b" % (self._path, name)) != mark:
                raise FileNotFoundError(errno.ENOENT, "it is another now", name)
            if self.generation() is None:
                # Killed after the first mark, nobody would look for it.
                self._announce()
            self._give(name, mark, placeholder, owner)

    def refresh(self) -> None:
        """Have everyone look again: who was killed may have marked what nobody has heard of.

        Raises:
            OSError: that cannot be told.
        """
        if self.generation() is not None:
            with self._locked():
                self._announce()

    def _give(self, name: bytes, mark: linux.Stat, placeholder: int, owner: Owner) -> None:
        value = b"%d:%d:%o:%o" % owner
        try:
            os.setxattr(b"/proc/thread-self/fd/%d" % placeholder, self._attribute, value)
        except OSError as error:
            raise _not_kept(error) from error
        self._found[1][name] = _Given(mark, owner)
        self._announce()

    def _announce(self) -> None:
        before = self.generation()
        after = b"%d" % time.time_ns()
        try:
            os.setxattr(self._path, self._attribute, after)
        except OSError as error:
            raise _not_kept(error) from error
        known, found = self._found
        if known == before:
            self._found = after, found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._local.locked:
            yield
            return
        with linux.locked(self._path, LOCK_SECONDS):
            self._local.locked = True
            try:
                yield
            finally:
                self._local.locked = False

    @contextmanager
    def _placeholder(self, name: bytes) -> Iterator[int]:
        with self._uncovered() as directory:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            placeholder = os.open(_below(directory, name), flags)
        try:
            yield placeholder
        finally:
            os.close(placeholder)

    @contextmanager
    def _uncovered(self) -> Iterator[int]:
        directory = linux.open_tree(self._path)
        try:
            yield directory
        finally:
            os.close(directory)


def _below(directory: int, name: bytes) -> bytes:
    return b"/proc/thread-self/fd/%d/%b" % (directory, name)


def _decoded(value: bytes) -> Owner:
    uid, gid, mode, write = value.split(b":")
    return Owner(int(uid), int(gid), int(mode, 8), int(write, 8))


def _not_kept(error: OSError) -> OSError:
    if error.errno in linux.SHORTAGE:
        return error
    return PermissionError(errno.EPERM, "the run directory cannot keep mode and owner")
