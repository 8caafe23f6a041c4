"""Files of procfs and sysfs that users have open, and how they end with their namespace.

Only what users have open is kept open: any other descriptor would keep a removed namespace
alive. When the last name of a namespace is removed, the open files of users are revoked
(`OpenFiles`): each answers ENODEV, and its descriptor leads to /dev/null. Otherwise a user with
an open file would keep the namespace alive, and read on where nobody else can look.
"""

import errno
import io
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Protocol
from weakref import WeakSet

from netnsfs.node import gone_error


class Revocable(Protocol):
    """What is open, and is to learn that its namespace is not to be seen any more.

    Attributes:
        key: of the namespace's directory.
    """

    key: Hashable

    def is_reachable(self) -> bool:
        """Whether the namespace is still to be seen where it was opened.

        Raises:
            OSError: that cannot be found out.
        """

    def revoke(self, null: int) -> None:
        """Take note that it is not.

        Args:
            null: a descriptor of /dev/null, to take the place of the file's.
        """


class ClosableRevocable(Revocable, Protocol):
    """What is to be closed too if it cannot stay open."""

    def close(self) -> None:
        """See `Handle.close`."""


class OpenFiles:
    """All of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: WeakSet[Revocable] = WeakSet()
        self._any = threading.Event()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._null)
        self.rounds = 0

    def add(self, file: ClosableRevocable, since: int) -> None:
        """Take an open file in.

        Args:
            file: the file.
            since: how many `rounds` there had been before it was opened.

        Raises:
            OSError: ESTALE if it should have been revoked meanwhile.
        """
        # A round of cutting after the open has missed a file that was not in the table yet.
        if self.keep(file) != since and not file.is_reachable():
            file.revoke(self._null)
            file.close()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def keep(self, file: Revocable) -> int:
        """Take in what needs no look.

        Returns:
            How many `rounds` there have been.
        """
        with self._lock:
            self._files.add(file)
            self._any.set()
            return self.rounds

    def wait_for_any(self) -> None:
        """Wait until there are some, or may be."""
        self._any.wait()

    def revoke_unreachable(self) -> bool:
        """Revoke those whose namespace is no longer reachable where they were opened.

        Returns:
            False if that could not be found out for all.
        """
        with self._lock:
            self.rounds += 1
            files = list(self._files)
            if not files:
                self._any.clear()
        shown: dict[Hashable, bool] = {}
        done = True
        for file in files:
            key = file.key
            try:
                if key not in shown:
                    shown[key] = file.is_reachable()
                if not shown[key]:
                    file.revoke(self._null)
            except OSError:
                done = False
        return done


class OpenFile:
    """A file that a user has open. Closed at the latest when nobody refers to it.

    Args:
        key: of the namespace's directory.
        is_reachable: whether the namespace is still to be seen where the file was opened.
        file: the file.
    """

    def __init__(
        self, key: Hashable, is_reachable: Callable[[], bool], file: io.FileIO
    ) -> None:
        self.key = key
        self.is_reachable = is_reachable
        self.file = file
        self._closing = threading.Lock()
        self._revoked = False

    def require_not_revoked(self) -> None:
        """Say so if it was revoked.

        Raises:
            OSError: ENODEV.
        """
        if self._revoked:
            raise gone_error()

    def revoke(self, null: int) -> None:
        """See `Revocable.revoke`. The file answers ENODEV from now on, to any read."""
        # First this: a read that goes on meanwhile then finds it set, and does not return what
        # it got.
        self._revoked = True
        # With a close(2) in between, the number would be another file's.
        with self._closing:
            if not self.file.closed:
                os.dup2(null, self.file.fileno(), inheritable=False)

    def close(self) -> None:
        """See `Handle.close`."""
        with self._closing:
            self.file.close()


def open_file(path: bytes, flags: int) -> io.FileIO:
    mode = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "r+"}.get(flags & os.O_ACCMODE)
    if mode is None:
        raise OSError(errno.EINVAL, "neither for reading nor for writing")

    def opener(path: str, _: int) -> int:
        # O_NONBLOCK, because nothing may wait in read(2) without a limit.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)

    return io.FileIO(os.fsdecode(path), mode, opener=opener)
