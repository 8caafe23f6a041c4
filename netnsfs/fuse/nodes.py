"""The nodes that the kernel knows, by number and by key.

The kernel knows a node by its number, and counts how often it was told of it (lookup, mkdir,
an entry of a listing). With forget it gives counts back, and a node whose count is zero is
dropped here.

A node of the tree may ask for a number. If that number belongs to a node with another
generation, the new node takes it over together with the count: the kernel retires its old
inode, which answers EIO from then on, and the old inode's share of the count comes back with
forgets for the same number.

Nothing here waits, and all of it runs on the event loop's thread, so that no other request
comes between reading and changing the table.
"""

import errno
import itertools
import os
from collections.abc import Hashable, Iterable

import pyfuse3
from pyfuse3 import EntryAttributes

from netnsfs.node import Attributes, Directory, Node

# Inode numbers of namespaces, which nodes may ask for, have 32 bits.
_FIRST_NUMBER = 1 << 32


class KnownNode:
    """A node that the kernel knows.

    Attributes:
        node: the node of the tree.
        number: the kernel's number for it.
        lookups: how often the kernel was told of it and has not forgotten it.
        stamp: the node's stamp when its attributes were last taken.
        attributes: the attributes in the form of pyfuse3.
    """

    __slots__ = ("attributes", "lookups", "node", "number", "stamp")

    def __init__(self, node: Node, number: int, lookups: int, name_seconds: float) -> None:
        self.node = node
        self.number = number
        self.lookups = lookups
        self.stamp: Hashable = None
        self.attributes = EntryAttributes()
        self.attributes.st_ino = number
        self.attributes.generation = node.generation
        self.attributes.entry_timeout = name_seconds

    def take_attributes(self, taken: Attributes, stamp: Hashable) -> None:
        """Replace the attributes, and the stamp that they belong to."""
        self.stamp = stamp
        entry = self.attributes
        entry.attr_timeout = taken.seconds
        entry.st_mode = taken.mode
        entry.st_nlink = taken.links
        entry.st_size = taken.size
        entry.st_uid = taken.uid
        entry.st_gid = taken.gid
        entry.st_atime_ns = taken.atime_ns
        entry.st_mtime_ns = taken.mtime_ns
        entry.st_ctime_ns = taken.ctime_ns


class _ByNumber(dict[int, KnownNode]):
    # A subscript, with no call of a function, is what most requests begin with.
    def __missing__(self, number: int) -> KnownNode:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class NodeTable:
    """All nodes that the kernel knows.

    Args:
        root: the node of the mount point, which is never dropped.

    Attributes:
        root: its entry.
        by_number: the entries by the kernel's number. A number that is not there raises
            OSError, ESTALE. To be changed by the methods only.
        by_key: the entries by the key of their node; likewise.
    """

    def __init__(self, root: Directory) -> None:
        self._unused_numbers = itertools.count(_FIRST_NUMBER)
        self.root = KnownNode(root, pyfuse3.ROOT_INODE, 1, 0)
        self.root.take_attributes(root.attributes(), root.stamp)
        self.by_number = _ByNumber({self.root.number: self.root})
        self.by_key: dict[Hashable, KnownNode] = {root.key: self.root}

    def admit(self, node: Node, name_seconds: float) -> KnownNode:
        """Enter a node, under the number that it asks for or a new one.

        The caller counts the lookup.

        Args:
            node: a node whose key is not in the table.
            name_seconds: how long the kernel may keep its name.
        """
        number = node.number or next(self._unused_numbers)
        # The kernel gives back the lookups of both by the one number.
        before = self.by_number.get(number)
        known = KnownNode(node, number, before.lookups if before else 0, name_seconds)
        if before:
            del self.by_key[before.node.key]
        self.by_number[number] = self.by_key[node.key] = known
        return known

    def drop_unused(self, known: KnownNode) -> None:
        """Drop a node unless the kernel knows it."""
        # A listing that is still open may be of a directory that was dropped before.
        if known.lookups <= 0 and self.by_number.get(known.number) is known:
            del self.by_number[known.number]
            del self.by_key[known.node.key]

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take lookups back: numbers, and how many of each."""
        for number, count in counts:
            known = self.by_number.get(number)
            if known is None or known is self.root:
                continue
            known.lookups -= count
            self.drop_unused(known)
