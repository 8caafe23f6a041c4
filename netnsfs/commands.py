"""Files whose writes are commands, which may come in pieces.

A program writes a long text in pieces: a shell's printf cuts it at 4,096 bytes, wherever that
is. Half a word could be another command: `+10.1.1.87/2` of `+10.1.1.87/24`. So what is written
waits until it is known to be whole:

1. It ends with white space, or with what else a command of the file ends with.
2. Nothing that could follow would make another command of it: `1` in `up`.
3. The next write is not for the place behind it, or the file is read from its start again.
4. A process closes the file (flush). Only then it is known of `+10.1.1.1/2`, written without a
   newline, that no `4` follows. Any process that has the file open counts: FUSE does not tell
   which one it is.

The words before the last one wait with it: of several to a write, all are carried out or none.
An error is the answer to the write(2), or the close(2), that made the command whole. Shells do
not look at that of close(2).
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from netnsfs.jobs import may_block
from netnsfs.limits import MAX_COMMAND
from netnsfs.node import Snapshot, gone_error

WHITE_SPACE = (b" ", b"\n", b"\t", b"\r", b"\v", b"\f")
NEWLINE = (b"\n",)


class Syntax(NamedTuple):
    """When a command is whole.

    Attributes:
        ends: what it may end with.
        is_unfinished: whether more can follow a text that does not end so.
    """

    ends: tuple[bytes, ...] = WHITE_SPACE
    is_unfinished: Callable[[bytes], bool] = lambda text: True


ANY_WORDS = Syntax()


class CommandSnapshot(Snapshot):
    """An open file whose writes are commands.

    Args:
        flags: as for `Snapshot`, and so are `take` and `check`.
        take: makes the content.
        check: raises FileNotFoundError if what the file tells of is gone.
        run: carries out a command.
        syntax: tells when one is whole.
    """

    def __init__(
        self,
        flags: int,
        take: Callable[[], bytes],
        check: Callable[[], None],
        run: Callable[[bytes], None],
        syntax: Syntax,
    ) -> None:
        super().__init__(flags, take, check, run)
        # To append means to write behind what was written, whatever the offset is.
        self._appends = bool(flags & os.O_APPEND)
        self._syntax = syntax
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._expected_offset = 0
        self._lacks_end = False

    @property
    def length(self) -> int:
        """See `Handle.length`. What waits is kept too."""
        return len(self.content) + len(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether something waits for its end."""
        return bool(self._pending)

    def read(self, size: int, offset: int) -> bytes:
        """See `Snapshot.read`."""
        if offset == 0 and self._pending:
            may_block()
            self.flush()
            self._unread = False
        return super().read(size, offset)

    def write(self, data: bytes, offset: int) -> int:
        """Take a command, or a part of one.

        Raises:
            OSError: ENODEV if what the file tells of is gone, E2BIG if the command is too long,
                else what the command says.
        """
        with self._lock:
            commands = self._collect(data, offset)
        for command in commands:
            super().write(command, 0)
        if self._pending:
            self._require_present()
        return len(data)

    def _collect(self, data: bytes, offset: int) -> list[bytes]:
        """The commands that are whole with a write; the rest is kept."""
        commands = []
        if offset != self._expected_offset and not self._appends:
            commands += self._take_pending()
            self._lacks_end = False
        self._expected_offset = offset + len(data)
        # The white space behind a command that was whole without it.
        if self._lacks_end and data.isspace():
            return commands
        self._pending += data
        if len(self._pending) > MAX_COMMAND:
            self._pending.clear()
            raise OSError(errno.E2BIG, f"a command has at most {MAX_COMMAND} bytes")
        text = bytes(self._pending)
        ended = text.endswith(self._syntax.ends)
        if ended or not self._syntax.is_unfinished(text):
            self._lacks_end = not ended
            commands += self._take_pending()
        return commands

    def _take_pending(self) -> list[bytes]:
        taken = bytes(self._pending)
        self._pending.clear()
        return [taken] if taken else []

    def _require_present(self) -> None:
        try:
            self._check()
        except FileNotFoundError as error:
            self._pending.clear()
            raise gone_error() from error

    def flush(self) -> None:
        """Carry out what waits: nothing can follow any more.

        Raises:
            OSError: as `write`.
        """
        with self._lock:
            commands = self._take_pending()
        for command in commands:
            super().write(command, 0)
