"""Links from a number of a namespace to its directory: `inode`, `id`, `nsid`, and `init`.

As those in `pid`, they lead to the first name, or below `unnamed`. A namespace without a name
is found only by users who may search `unnamed`: IDs are consecutive, and a user who tries them
all would learn of every namespace of the machine. Listed are those that have a name: to find
the others takes a look at all tasks, open files and mounts. A user who may not search a
namespace learns neither its ID nor its nsid.
"""

import os
import stat
from collections.abc import Callable, Collection

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns import nsid, tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import namespace_of
from netnsfs.node import Attributes, Caller, Directory, FixedLink, Link, Node
from netnsfs.permissions import Permissions
from netnsfs.tree.callers import CAP_DAC_READ_SEARCH, has_capability, may_search
from netnsfs.tree.ctldir import LARGEST_INODE, absent_error, path_from_ctldir
from netnsfs.tree.refs import RESERVED

INIT = b"init"
# Of 64 bits.
_MAX_DIGITS = 20


class NumberDirectory(Directory):
    """A directory of links by one kind of number.

    Args:
        key: its name.
        names: the run directory.
        permissions: to whom a namespace belongs unless it was given to somebody.
        number_of: the number of the namespace of a descriptor; None if it has none.

    Attributes:
        most: the largest number there can be.
    """

    key: bytes
    most = 2**64 - 1

    def __init__(
        self,
        key: bytes,
        names: NamedNamespaces,
        permissions: Permissions,
        number_of: Callable[[int], int | None],
    ) -> None:
        self.key = key
        self._names = names
        self._permissions = permissions
        self._number_of = number_of
        self._listed: dict[bytes, tuple[bytes, bytes]] = {}

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o555)

    def readdir(self) -> list[bytes]:
        may_block()
        named = self._names.names_by_inode(without=RESERVED)
        found = {}
        for inode, name in named.items():
            number = self._number_under(name)
            if number is not None:
                found[b"%d" % number] = name, path_from_ctldir(inode, named, b"../")
        self._listed = found
        return [*found]

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        if name not in self._listed:
            return self.lookup(name, caller)
        may_block()
        first, text = self._listed[name]
        if not self._may_tell(first, caller):
            raise absent_error(name, "there is no such namespace")
        return FixedLink((self.key, name, text), text)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        may_block()
        number = int(name) if name.isdigit() and len(name) <= _MAX_DIGITS else 0
        # Any other way to write it would be a second name.
        if name != b"%d" % number or number > self.most:
            raise absent_error(name, "there is no such namespace")
        named = self._names.names_by_inode(without=RESERVED)
        inode = self._find(number, named, caller)
        if inode is None:
            raise absent_error(name, "there is no such namespace")
        text = path_from_ctldir(inode, named, b"../")
        return FixedLink((self.key, name, text), text)

    def _find(self, number: int, named: dict[int, bytes], caller: Caller) -> int | None:
        """The inode number of the namespace, if the caller may know of it."""
        inode = self._find_named(number, named)
        if inode is None and has_capability(caller, CAP_DAC_READ_SEARCH):
            return self._find_unnamed(number, named)
        may_know = inode is not None and self._may_tell(named[inode], caller)
        return inode if may_know else None

    def _may_tell(self, name: bytes, caller: Caller) -> bool:
        """Whether somebody may know the number of the namespace under a name."""
        owner = self._names.owners.owner_of(name)
        return may_search(owner or self._permissions.default_owner(), caller)

    def _number_under(self, name: bytes) -> int | None:
        try:
            with linux.closing_fd(self._names.open_namespace(name)) as fd:
                return self._number_of(fd)
        except OSError as error:
            linux.reraise_if_resource(error)
            return None

    def _find_named(self, number: int, named: dict[int, bytes]) -> int | None:
        for inode, name in named.items():
            if self._number_under(name) == number:
                return inode
        return None

    def _find_unnamed(self, number: int, named: Collection[int]) -> int | None:
        seen = set(named)
        for holder in tasks.iter_holders(without=seen):
            try:
                with linux.closing_fd(holder.open(self._names.links.avoid)) as fd:
                    seen.add(holder.inode)
                    if self._number_of(fd) == number:
                        return os.fstat(fd).st_ino
            except OSError as error:
                linux.reraise_if_resource(error)
        return None


class InodeDirectory(NumberDirectory):
    """`.netnsfs/inode`: the number by which all else is found, and which stat(2) tells."""

    most = LARGEST_INODE

    def __init__(self, names: NamedNamespaces, permissions: Permissions) -> None:
        super().__init__(b"inode", names, permissions, lambda fd: os.fstat(fd).st_ino)

    def _may_tell(self, name: bytes, caller: Caller) -> bool:
        return True

    def _find_named(self, number: int, named: dict[int, bytes]) -> int | None:
        return number if number in named else None

    def _find_unnamed(self, number: int, named: Collection[int]) -> int | None:
        # No namespace has the number 0. To a scan, it means any.
        return next((holder.inode for holder in tasks.iter_holders(number) if number), None)


def by_number(names: NamedNamespaces, permissions: Permissions) -> list[NumberDirectory]:
    """The directories of links by number."""
    return [
        InodeDirectory(names, permissions),
        NumberDirectory(b"id", names, permissions, lambda fd: namespace_of(fd).id),
        NumberDirectory(b"nsid", names, permissions, nsid.nsid_of),
    ]


class InitLink(Link):
    """`.netnsfs/init`: leads to the initial network namespace.

    Everyone may know its number.
    """

    key = label = INIT

    def __init__(self, names: NamedNamespaces) -> None:
        self._names = names

    def target_path(self) -> bytes:
        may_block()
        inode = tasks.initial_namespace()
        if inode is None:
            raise absent_error(INIT, "the kernel does not let the daemon see which it is")
        return path_from_ctldir(inode, self._names.names_by_inode(without=RESERVED), b"")
