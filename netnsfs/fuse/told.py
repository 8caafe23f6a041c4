"""What the watchers of the mount (inotify(7)) have been told, and the one that has them told.

The kernel tells watchers of each change that is made through the mount. Of a change that others
make it knows nothing. So a process of our own, the teller, makes the same change in the mount
once more: mkdir(2) of a name that has come, rmdir(2) of one that has gone. The adapter knows
its requests by their process ID and answers them without doing anything, and the kernel then
tells the watchers as of any other change. (Invalidations of the kernel's cache tell nobody.)

What is told once is not told again, because the answer is decided here, between two changes:
the kernel locks the directory from before the lookup of a name until its watchers have been
told. That is also why the names are told in the order of these answers. What is told is
reported to the teller, so that it seldom asks in vain.

- A name that was told of is there for the teller, so that mkdir(2) fails (EEXIST). If it has
  gone, or stands for something else by now, the teller finds a directory that is made for this
  one removal: the kernel lets nobody into a removed directory again.
- Any other name is absent for the teller, so that rmdir(2) fails (ENOENT). The directory that
  mkdir(2) then seems to make is the real one. Where somebody has looked it up already, the
  kernel puts the new entry in the place of theirs (d_splice_alias(), fs/dcache.c).
"""

import errno
import os
import secrets
import socket
import stat
import threading
from collections.abc import Hashable, Iterable
from contextlib import suppress

from netnsfs.node import Attributes, Directory, Node

_NOBODY = -1


class _Gone(Directory):
    """What a name was that has gone, for one rmdir(2)."""

    def __init__(self) -> None:
        self.key = self

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR, attr_timeout=0)


class Told:
    """The names that watchers know to stand. On the event loop's thread, but for the teller's.

    Args:
        names: those that stand when the mount is made.

    Attributes:
        teller: the process ID of the teller, as the daemon's PID namespace has it.
        password: a name that is there for the teller alone, which so knows that it is known.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._subjects: dict[bytes, Hashable] = dict.fromkeys(names)
        self._going = b""
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self.teller = _NOBODY
        self.password = secrets.token_hex().encode()

    # Of the teller's, on any thread

    def report_to(self, channel: socket.socket | None) -> list[bytes]:
        """Report what watchers are told from now on: a sign, + or -, and the name.

        Args:
            channel: where to; it never blocks. None to end it.

        Returns:
            The names that watchers know to stand. Of some, it may be reported once more.
        """
        with self._lock:
            self._channel = channel
        # One call in C, so no other thread comes in between.
        return list(self._subjects)

    def admit_teller(self, process: int) -> None:
        """Answer a process as the teller from now on."""
        self.teller = process

    def dismiss_teller(self) -> None:
        """Answer nobody as the teller."""
        self.teller = _NOBODY

    # Told by the kernel

    def note_made(self, name: bytes, subject: Hashable) -> None:
        """Take note that the kernel is about to tell of a new name."""
        self._subjects[name] = subject
        self._report(b"+" + name)

    def note_removed(self, name: bytes) -> Hashable:
        """Take note that the kernel is about to tell that a name has gone."""
        subject = self._subjects.pop(name, None)
        self._report(b"-" + name)
        return subject

    def _report(self, message: bytes) -> None:
        with self._lock:
            if self._channel:
                try:
                    self._channel.send(message)
                except OSError:
                    # It does not listen in time. The next teller begins anew.
                    with suppress(OSError):
                        self._channel.shutdown(socket.SHUT_RDWR)

    # Asked by the teller

    def find(self, name: bytes, found: Node | None) -> Node:
        """What the teller finds under a name.

        Args:
            name: the name.
            found: what everybody else finds there.

        Raises:
            OSError: ENOENT.
        """
        self._going = b""
        if name == self.password:
            return _Gone()
        if name not in self._subjects:
            raise _error(errno.ENOENT)
        if found is not None and not self._is_replaced(name, found):
            return found
        self._going = name
        return _Gone()

    def refuse_told(self, name: bytes) -> None:
        """Refuse to have watchers told of a name once more.

        Raises:
            OSError: EEXIST.
        """
        if name in self._subjects:
            raise _error(errno.EEXIST)

    def refuse_standing(self, name: bytes) -> None:
        """Refuse to have watchers told that a name has gone, if it had not at its lookup.

        Raises:
            OSError: EBUSY.
        """
        if name != self._going:
            raise _error(errno.EBUSY)

    def _is_replaced(self, name: bytes, found: Node) -> bool:
        before = self._subjects[name]
        return None not in (before, found.represents) and before != found.represents


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
