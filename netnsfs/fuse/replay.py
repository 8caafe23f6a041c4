"""The replay of changes that others make to the names, for watchers of the mount (inotify(7)).

The kernel reports to them each change that is made through the mount. It knows nothing of a
change that others make. So a process of our own, the *replayer*, makes the same change in the
mount once more: mkdir(2) of a name that was created, rmdir(2) of one that was deleted. Its
requests are known by its process ID. `Replay` answers them and does nothing, and the kernel
then reports the change as any other. (Invalidations of the kernel's cache are not reported.)

No change is reported twice, because the answer is decided here, between two changes: the
kernel locks the directory from before the lookup of a name until the change is reported. For
the same reason, names are reported in the order of these answers. The replayer is sent what
was reported, so that it seldom asks in vain. What its socket has no room for waits here, by
name: the thread that started the replayer sends it when there is room.

- For the replayer, a name that was reported exists, so that mkdir(2) fails (EEXIST). If it was
  deleted, or stands for something else by now, the replayer finds a directory that is made for
  this one removal: the kernel lets nobody into a removed directory again.
- Any other name is absent for the replayer, so that rmdir(2) fails (ENOENT). The directory that
  mkdir(2) then seems to make is the real one. Where somebody has looked it up already, the
  kernel puts the new entry in the place of theirs (d_splice_alias(), fs/dcache.c).
"""

import errno
import itertools
import os
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext

from netnsfs.fuse.nodes import NodeEntry
from netnsfs.fuse.operations import Operations, _translate_errors
from netnsfs.fuse.replayer_child import MAX_MESSAGE
from netnsfs.node import Attributes, Directory, Node

MAX_UNSENT = 65_536
"""Names of which a report may wait for the replayer. With more, it is stopped, not slow."""

# With a sign and a NUL each (linux/limits.h).
_MAX_IN_MESSAGE = MAX_MESSAGE // (1 + 255 + 1)
_NOBODY = -1


class _Deleted(Directory):
    """What a name stood for that was deleted, for one rmdir(2)."""

    def __init__(self) -> None:
        self.key = self

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR, attr_timeout=0)


class ReportedNames:
    """The names that exist as far as watchers know.

    On the event loop's thread, but for what the thread that starts the replayer does.

    Args:
        names: those that exist when the mount is made.

    Attributes:
        replayer: the process ID of the replayer, as the daemon's PID namespace has it.
        password: a name that exists for the replayer alone. So it knows that it is known.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._subjects: dict[bytes, Hashable] = dict.fromkeys(names)
        self._deleted = b""
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._on_full: Callable[[], object] = bool
        # Those of which was reported what is not sent yet.
        self._unsent: dict[bytes, None] = {}
        self.replayer = _NOBODY
        self.password = secrets.token_hex().encode()

    # For the thread that starts the replayer

    def start_sending(
        self, channel: socket.socket, on_full: Callable[[], object]
    ) -> list[bytes]:
        """Send what is reported to watchers from now on: + or -, the name, and a NUL.

        Of a name that is reported again before it could be sent, the last report counts.

        Args:
            channel: where to; nothing waits until it has room.
            on_full: called when it has no room. From then on, it is for `send_unsent` to send.

        Returns:
            The names that watchers know. Some of them may be sent once more.
        """
        with self._lock:
            self._channel, self._on_full = channel, on_full
            self._unsent.clear()
        # One call in C, so no other thread comes in between.
        return list(self._subjects)

    def send_unsent(self) -> bool:
        """Send what the channel had no room for. Returns whether it had room for all of it."""
        with self._lock:
            while self._unsent:
                if not self._send_some():
                    return False
            return True

    def stop_sending(self) -> None:
        """Send no longer."""
        with self._lock:
            self._channel = None

    def admit_replayer(self, process: int) -> None:
        """Answer a process as the replayer from now on."""
        self.replayer = process

    def dismiss_replayer(self) -> None:
        """Answer nobody as the replayer."""
        self.replayer = _NOBODY

    # What the kernel reports

    def note_created(self, name: bytes, subject: Hashable) -> None:
        """Take note that the kernel is about to report a new name."""
        self._subjects[name] = subject
        self._send(name)

    def note_deleted(self, name: bytes) -> Hashable:
        """Take note that the kernel is about to report that a name was deleted."""
        subject = self._subjects.pop(name, None)
        self._send(name)
        return subject

    def _send(self, name: bytes) -> None:
        with self._lock:
            if self._channel is None:
                return
            self._unsent[name] = None
            if len(self._unsent) == 1 and not self._send_some():
                self._on_full()
            elif len(self._unsent) > MAX_UNSENT:
                self._give_up(self._channel)

    def _send_some(self) -> bool:
        names = list(itertools.islice(self._unsent, _MAX_IN_MESSAGE))
        signs = (b"+" if name in self._subjects else b"-" for name in names)
        message = b"".join(b"%b%b\0" % report for report in zip(signs, names, strict=True))
        try:
            if self._channel:
                self._channel.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            # The replayer has ended. The next one begins anew.
            self._unsent.clear()
            return True
        for name in names:
            del self._unsent[name]
        return True

    def _give_up(self, channel: socket.socket) -> None:
        """End a replayer that reads nothing: the next one begins anew."""
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
        self._channel = None
        self._unsent.clear()

    # What the replayer asks

    def find(self, name: bytes, found: Node | None) -> Node:
        """What the replayer finds under a name.

        Args:
            name: the name.
            found: what everybody else finds there.

        Raises:
            OSError: ENOENT.
        """
        self._deleted = b""
        if name == self.password:
            return _Deleted()
        if name not in self._subjects:
            raise _error(errno.ENOENT)
        if found is not None and not self._is_replaced(name, found):
            return found
        self._deleted = name
        return _Deleted()

    def require_unreported(self, name: bytes) -> None:
        """Refuse to have a name reported once more.

        Raises:
            OSError: EEXIST.
        """
        if name in self._subjects:
            raise _error(errno.EEXIST)

    def require_deleted(self, name: bytes) -> None:
        """Refuse to have a name reported as deleted that was not at its lookup.

        Raises:
            OSError: EBUSY.
        """
        if name != self._deleted:
            raise _error(errno.EBUSY)

    def _is_replaced(self, name: bytes, found: Node) -> bool:
        before = self._subjects[name]
        return None not in (before, found.represents) and before != found.represents


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Replay:
    """Answers the replayer's requests. None of them changes a namespace.

    Args:
        operations: answers everybody else's.
        root: the directory whose watchers are meant.
        reported: the names that watchers know.
    """

    def __init__(
        self, operations: Operations, root: Directory, reported: ReportedNames
    ) -> None:
        self.stats = operations.stats
        self.to_fuse_error = operations.to_fuse_error
        self._operations = operations
        self._root = root
        self._reported = reported
        self._kept: NodeEntry | None = None

    @_translate_errors
    async def lookup(self, name: bytes, ctx: RequestContext) -> EntryAttributes:
        with self._releasing_kept():
            found = None
            with suppress(FileNotFoundError):
                found = await self._operations.find_node(self._root, name, ctx)
            self._keep(found)
            answer = self._reported.find(name, found)
            return await self._operations.introduce(self._root, answer, ctx)

    @_translate_errors
    async def mkdir(self, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._reported.require_unreported(name)
        with self._releasing_kept():
            found = await self._operations.find_node(self._root, name, ctx)
            entry = await self._operations.introduce(self._root, found, ctx)
        self._reported.note_created(name, found.represents)
        return entry

    @_translate_errors
    async def rmdir(self, name: bytes) -> None:
        self._reported.require_deleted(name)
        self._reported.note_deleted(name)

    def _keep(self, node: Node | None) -> None:
        """Keep the number of a node until the next request.

        If others have looked a name up that is absent for the replayer, the kernel forgets its
        node until mkdir(2) shows it again a moment later. By then it must have the same number,
        for those who are in that directory.
        """
        nodes = self._operations.nodes
        if node is not None and (known := nodes.by_key.get(node.key)):
            known.lookup_count += 1
            self._kept = known

    @contextmanager
    def _releasing_kept(self) -> Iterator[None]:
        """What is kept so far is kept until the block ends."""
        kept, self._kept = self._kept, None
        try:
            yield
        finally:
            if kept:
                self._operations.nodes.forget([(kept.number, 1)])


class OperationsWithReplay(Operations):
    """The adapter, with the replayer's requests answered apart, and others' changes noted.

    Args:
        root, *others: as for `Operations`.
        reported: the names in `root` that watchers know.
    """

    def __init__(self, root: Directory, *others: Any, reported: ReportedNames) -> None:
        super().__init__(root, *others)
        self._replay = Replay(self, root, reported)
        self._reported = reported

    # Most requests are lookups: no coroutine of its own, and no object of super().
    def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> Coroutine[Any, Any, EntryAttributes]:
        if ctx.pid == self._reported.replayer and parent_inode == pyfuse3.ROOT_INODE:
            return self._replay.lookup(name, ctx)
        return Operations.lookup(self, parent_inode, name, ctx)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        if self._is_replay(parent_inode, ctx):
            return await self._replay.mkdir(name, ctx)
        entry = await super().mkdir(parent_inode, name, mode, ctx)
        self._note_created(parent_inode, name, entry)
        return entry

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if self._is_replay(parent_inode, ctx):
            await self._replay.rmdir(name)
        else:
            await super().rmdir(parent_inode, name, ctx)
            if parent_inode == pyfuse3.ROOT_INODE:
                self._reported.note_deleted(name)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        entry = await super().symlink(parent_inode, name, target, ctx)
        self._note_created(parent_inode, name, entry)
        return entry

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await super().rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)
        subject = None
        if parent_inode_old == pyfuse3.ROOT_INODE:
            subject = self._reported.note_deleted(name_old)
        if parent_inode_new == pyfuse3.ROOT_INODE:
            self._reported.note_created(name_new, subject)

    def _is_replay(self, parent_inode: int, ctx: RequestContext) -> bool:
        return ctx.pid == self._reported.replayer and parent_inode == pyfuse3.ROOT_INODE

    def _note_created(self, parent_inode: int, name: bytes, entry: EntryAttributes) -> None:
        if parent_inode == pyfuse3.ROOT_INODE:
            node = self.nodes.by_number[entry.st_ino].node
            self._reported.note_created(name, node.represents)
