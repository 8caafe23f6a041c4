"""The nodes that the kernel knows, by number and by key.

The kernel knows a node by its number, and counts how often it learnt of it (lookup, mkdir,
an entry of a listing). With forget it gives counts back, and a node whose count is zero is
dropped here.

A node of the tree may ask for a number: that of its namespace, which stat(2) is to show. As
long as somebody has the directory of a namespace open that has ended, another node may have
that number. Requests for the two could not be distinguished, and a user who has the old one
open would look into the new one. So the new one gets any number. Its attributes may not be
kept, so the kernel asks for them each time, and learns then which st_ino it should have.

A node can have several entries. The kernel keeps one size and one set of pages for each number,
shared by all who have opened it, and sendfile(2), splice(2) and mmap(2) go by these. So each
open file of what changes needs a number that nobody else has open, or has just looked up. A
lookup finds one. Where the kernel keeps the name, and so makes no lookup, open(2) is ESTALE:
then it looks the name up again. stat(2) shows the same st_ino for all.

Nothing here waits, and all of it runs on the event loop's thread, so that no other request
comes between reading and changing the table.
"""

import errno
import itertools
import os
import time
from collections.abc import Hashable, Iterable

import pyfuse3
from pyfuse3 import EntryAttributes

from netnsfs.node import Attributes, Directory, File, Node

# Inode numbers of namespaces, which nodes may ask for, have 32 bits.
_FIRST_NUMBER = 1 << 32

# How long an answer may take until the kernel has taken note of it: the thread that asked does
# that, when it gets a processor.
_ANSWER_SECONDS = 5.0

# The kernel asks for the size before each open(2). For lists of tasks, that takes as long as
# the open itself.
_LENGTH_SECONDS = 1.0


class NodeEntry:
    """A node that the kernel knows.

    Attributes:
        node: the node of the tree.
        number: the kernel's number for it.
        lookup_count: how often the kernel has learnt of it, less what it has forgotten.
        change_cookie: the node's change_cookie when its attributes were last taken.
        taken: the attributes that were last taken.
        attributes: these attributes in the form of pyfuse3, with the number.
        shown: the same for getattr, with the st_ino that stat(2) is to show.
        exclusive: it is a file whose content changes, so that each open file needs an entry.
        opened: how many open files have it: one, but for files that are opened by what is open
            already (/proc/self/fd).
    """

    __slots__ = (
        "_asked_at",
        "_asked_by",
        "_contended_until",
        "_least",
        "_least_until",
        "_length",
        "_length_until",
        "attributes",
        "change_cookie",
        "exclusive",
        "lookup_count",
        "node",
        "number",
        "opened",
        "shown",
    )

    def __init__(
        self, node: Node, number: int, entry_timeout: float, shown_number: int = 0
    ) -> None:
        self.node = node
        self.number = number
        self.lookup_count = 0
        self.exclusive = isinstance(node, File) and not node.constant
        self.opened = 0
        self._asked_by: int | None = None
        self._asked_at = self._contended_until = 0.0
        # The least size that was told lately, and until when that counts.
        self._least, self._least_until = 0, 0.0
        self._length: int | None = None
        self._length_until = 0.0
        self.change_cookie: Hashable = None
        self.attributes = self.shown = EntryAttributes()
        self.attributes.st_ino = number
        self.attributes.generation = node.generation
        self.attributes.entry_timeout = entry_timeout
        shown_number = shown_number or node.number
        if shown_number not in (0, number):
            self.shown = EntryAttributes()
            self.shown.st_ino = shown_number

    def take_attributes(self, taken: Attributes, change_cookie: Hashable) -> None:
        """Replace the attributes, and the change_cookie that they belong to."""
        self.change_cookie = change_cookie
        if self.exclusive:
            if (length := self.length) is not None:
                taken = taken._replace(size=length)
            self._note_told(taken.size)
        _fill(self.attributes, taken)
        if self.shown is not self.attributes:
            self.attributes.attr_timeout = 0
            _fill(self.shown, taken)

    @property
    def length(self) -> int | None:
        """The length of what is open, or was a moment ago; None if that is not known."""
        return self._length if self.opened or time.monotonic() < self._length_until else None

    def _note_told(self, size: int) -> None:
        now = time.monotonic()
        if size <= self._least or now >= self._least_until:
            self._least, self._least_until = size, now + _ANSWER_SECONDS

    def note_asked(self, caller: int) -> None:
        """Note who, by thread ID, is about to be told the attributes of an exclusive entry."""
        now = time.monotonic()
        if self._asked_by not in (None, caller):
            self._contended_until = self._asked_at + _ANSWER_SECONDS
        # All callers outside of the daemon's PID namespace are 0.
        if not caller:
            self._contended_until = now + _ANSWER_SECONDS
        self._asked_by, self._asked_at = caller, now

    def is_for(self, caller: int) -> bool:
        """Whether nobody has the entry open, and only a caller was told of it lately."""
        return not self.opened and not self._others_were_told(caller)

    def _others_were_told(self, caller: int) -> bool:
        until = self._contended_until
        if self._asked_by not in (None, caller):
            until = self._asked_at + _ANSWER_SECONDS
        return time.monotonic() < until

    def has_room(self, length: int, caller: int) -> bool:
        """Whether no answer to others can make the kernel take the content for shorter.

        What they were told may be on its way to them still. When it comes there, it becomes the
        size (fuse_change_attributes(), fs/fuse/inode.c). A size that is too large does no harm:
        what is read then is short, and the kernel takes note of that.
        """
        return length <= self._least or not self._others_were_told(caller)

    def note_opened(self) -> None:
        """Count an open file."""
        self.opened += 1
        self._length = None

    def note_content(self, length: int) -> None:
        """Note how long the content of an open file is, the size to show meanwhile."""
        self._length = length

    def note_closed(self) -> None:
        """Count one less."""
        self.opened -= 1
        # By a name that the kernel keeps, others come to this entry without a lookup. So the
        # size that they are told is no less than the usual one.
        keeps_name = isinstance(self.node, File) and self.node.keeps_name
        self._length_until = 0.0 if keeps_name else time.monotonic() + _LENGTH_SECONDS


def _fill(entry: EntryAttributes, taken: Attributes) -> None:
    entry.attr_timeout = taken.attr_timeout
    entry.st_mode = taken.mode
    entry.st_nlink = taken.links
    entry.st_size = taken.size
    entry.st_uid = taken.uid
    entry.st_gid = taken.gid
    entry.st_atime_ns = taken.atime_ns
    entry.st_mtime_ns = taken.mtime_ns
    entry.st_ctime_ns = taken.ctime_ns


class _ByNumber(dict[int, NodeEntry]):
    # A subscript, with no call of a function, is what most requests begin with.
    def __missing__(self, number: int) -> NodeEntry:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class NodeTable:
    """All nodes that the kernel knows.

    Args:
        root: the node of the mount point, which is never dropped.

    Attributes:
        root: its entry.
        by_number: the entries by the kernel's number. A number that is not there raises
            OSError, ESTALE. To be changed by the methods only.
        by_key: the latest entry of each key of a node; likewise.
    """

    def __init__(self, root: Directory) -> None:
        self._unused_numbers = itertools.count(_FIRST_NUMBER)
        self.root = NodeEntry(root, pyfuse3.ROOT_INODE, 0)
        self.root.lookup_count = 1
        self.root.take_attributes(root.getattr_cached(), root.change_cookie)
        self.by_number = _ByNumber({self.root.number: self.root})
        self.by_key: dict[Hashable, NodeEntry] = {root.key: self.root}

    def insert(self, node: Node, entry_timeout: float) -> NodeEntry:
        """Enter a node, under the number that it asks for if that is free.

        The caller counts the lookup.

        Args:
            node: the node. If its key is in the table, it shows the same st_ino.
            entry_timeout: how long the kernel may keep its name.
        """
        number = node.number
        if not number or number in self.by_number:
            number = next(self._unused_numbers)
        before = self.by_key.get(node.key)
        shown_number = before.shown.st_ino if before else 0
        known = NodeEntry(node, number, entry_timeout, shown_number)
        self.by_number[number] = self.by_key[node.key] = known
        return known

    def is_known(self, known: NodeEntry) -> bool:
        """Whether an entry is still in the table."""
        return self.by_number.get(known.number) is known

    def drop_unused(self, known: NodeEntry) -> None:
        """Drop a node unless the kernel knows it."""
        # A listing that is still open may be of a directory that was dropped before.
        if known.lookup_count <= 0 and self.is_known(known):
            del self.by_number[known.number]
            if self.by_key.get(known.node.key) is known:
                del self.by_key[known.node.key]

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take back lookups: numbers, and how many of each."""
        for number, count in counts:
            known = self.by_number.get(number)
            if known is None or known is self.root:
                continue
            known.lookup_count -= count
            self.drop_unused(known)
