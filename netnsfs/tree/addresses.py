"""`.netnsfs/address`: which interfaces have an address, in whatever namespace.

One thread goes from namespace to namespace and asks for the addresses there. `ls -l` looks the
same address up once for each line that it prints. So for a second after that, only those
namespaces are asked again in which it was found: if it has gone there, all are. What can be
seen a second late is a further interface with the same address.

As with the links by number, a namespace without a name is found by those who may look into
`unnamed`, and one with a name by those who may search its directory.
"""

import errno
import socket
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from functools import partial
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns.addresses import list_addresses
from netnsfs.netns.interfaces import list_interfaces, rtnetlink
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.sources import Source, each_source
from netnsfs.node import Attributes, Caller, Directory, FixedLink, Node
from netnsfs.permissions import Permissions
from netnsfs.tree.callers import CAP_DAC_READ_SEARCH, has_capability, may_search
from netnsfs.tree.coverage import Coverage
from netnsfs.tree.ctldir import absent_error, path_from_ctldir
from netnsfs.tree.interfaces import LINKS
from netnsfs.tree.refs import RESERVED
from netnsfs.tree.token_bucket import TokenBucket

ADDRESS = b"address"
# No user has this ID.
_SEES_ALL = -1
_RECENT_SECONDS = 1.0

SEARCH_BURST = 1.0
SEARCH_RATE = 0.1
"""Seconds of search for each user but root: at once, and refilled in a second."""


class Found(NamedTuple):
    """An address at an interface.

    Attributes:
        source: how to open the namespace again.
        name: the namespace's first name; None if it has none.
        interface: the interface's name.
    """

    source: Source
    name: bytes | None
    interface: bytes

    @property
    def inode(self) -> int:
        """The number of the namespace."""
        return self.source.inode

    def is_known(self, may_know: Callable[[bytes], bool]) -> bool:
        """Whether somebody may know of it who may know of some names."""
        return self.name is not None and may_know(self.name)

    @property
    def link(self) -> tuple[bytes, bytes]:
        """The name of a link to the interface, and where it leads from a directory below
        `address`.
        """
        named = {} if self.name is None else {self.inode: self.name}
        directory = path_from_ctldir(self.inode, named, b"../../")
        return (
            b"%d:%b" % (self.inode, self.interface),
            b"%b/%b/%b" % (directory, LINKS, self.interface),
        )


class _Recent(NamedTuple):
    """In which namespaces an address was found, and when."""

    searched_at: float
    sources: list[Source]


class AddressSearch:
    """Finds the interfaces that have an address. For any thread.

    Args:
        names: the run directory.
        permissions: to whom a namespace belongs unless it was given to somebody.
    """

    def __init__(self, names: NamedNamespaces, permissions: Permissions) -> None:
        self._names = names
        self._permissions = permissions
        self._recent: dict[tuple[bytes, int], _Recent] = {}
        # The kernel may keep the directory locked during a lookup: everybody waits for it.
        self._bucket = TokenBucket(SEARCH_BURST, SEARCH_RATE)

    def find(self, packed: bytes, caller: Caller) -> list[Found]:
        """The interfaces that have an address, in the order of their namespaces.

        Args:
            packed: the address, as on the wire.
            caller: who asks, waiting for an answer: what they may not know is left out.

        Raises:
            OSError: EAGAIN if this user searches too much; the machine lacks what it takes.
        """
        may_block()
        sees_all = has_capability(caller, CAP_DAC_READ_SEARCH)
        with nullcontext() if sees_all else self._bucket.charge(caller.uid):
            may_know = None if sees_all else partial(self._may_know, caller)
            key = packed, _SEES_ALL if sees_all else caller.uid
            return self._find_again(key, may_know) or self._find_anew(key, may_know)

    def _find_again(
        self, key: tuple[bytes, int], may_know: Callable[[bytes], bool] | None
    ) -> list[Found]:
        """What was found a moment ago, if it is still there; else nothing."""
        recent = self._recent.get(key)
        if recent is None or time.monotonic() - recent.searched_at > _RECENT_SECONDS:
            return []
        found = self._search(recent.sources, key[0], may_know)
        return found if len({item.inode for item in found}) == len(recent.sources) else []

    def _find_anew(
        self, key: tuple[bytes, int], may_know: Callable[[bytes], bool] | None
    ) -> list[Found]:
        began = time.monotonic()
        # Which of those with a name they may know is asked only where the address is found.
        shown = None if may_know is None else lambda name: True
        found = self._search(each_source(self._names, RESERVED, shown), key[0], may_know)
        self._remember(key, began, found)
        return found

    def _remember(self, key: tuple[bytes, int], began: float, found: list[Found]) -> None:
        oldest = began - _RECENT_SECONDS
        kept = {
            known: recent
            for known, recent in self._recent.items()
            if recent.searched_at > oldest and known != key
        }
        # What is nowhere may be anywhere a moment later.
        if found:
            sources = {item.inode: item.source for item in found}
            kept[key] = _Recent(began, list(sources.values()))
        self._recent = kept

    def _search(
        self,
        sources: Iterable[Source],
        packed: bytes,
        may_know: Callable[[bytes], bool] | None,
    ) -> list[Found]:
        coverage = Coverage()

        def visit(source: Source) -> list[tuple[Source, bytes]]:
            with linux.closing_fd(source.open()) as fd:
                names = interfaces_with(fd, packed, coverage.until)
            return [(source, name) for name in names]

        seen = [pair for pairs in coverage.visit_each(visit, sources) for pair in pairs]
        if not seen and coverage.is_over():
            raise TimeoutError(errno.ETIMEDOUT, "to ask all namespaces takes too long")
        # By now: a name may be another than it was when the namespace was opened.
        named = self._names.names_by_inode(without=RESERVED) if seen else {}
        found = [Found(source, named.get(source.inode), link) for source, link in seen]
        return [item for item in found if may_know is None or item.is_known(may_know)]

    def _may_know(self, caller: Caller, name: bytes) -> bool:
        owner = self._names.owners.owner_of(name)
        return may_search(owner or self._permissions.default_owner(), caller)


def interfaces_with(fd: int, packed: bytes, until: float) -> list[bytes]:
    """The names of the interfaces of a namespace that have an address, by index.

    Args:
        fd: a descriptor of the namespace.
        packed: the address, as on the wire.
        until: when the kernel must have told all (time.monotonic).

    Raises:
        OSError: the kernel's answer.
    """
    with rtnetlink(fd) as route:
        route.until = until
        having = {found.ifindex for found in list_addresses(route) if found.packed == packed}
        if not having:
            return []
        return [link.name for link in list_interfaces(route) if link.ifindex in having]


class AddressesDirectory(Directory):
    """`.netnsfs/address`: a directory for each address, found by lookup and not listed.

    Args:
        names: the run directory.
        permissions: to whom a namespace belongs unless it was given to somebody.
    """

    key = ADDRESS

    def __init__(self, names: NamedNamespaces, permissions: Permissions) -> None:
        self._search = AddressSearch(names, permissions)

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o555)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        may_block()
        packed, text = _parse_address(name)
        # The same address in other words leads to it.
        if text != name:
            return FixedLink((ADDRESS, name), text)
        found = self._search.find(packed, caller)
        if not found:
            raise absent_error(name, "no interface has this address")
        return AddressDirectory(name, dict(item.link for item in found))


def _parse_address(name: bytes) -> tuple[bytes, bytes]:
    """An address, as on the wire and as the kernel writes it.

    Raises:
        OSError: ENOENT for anything else.
    """
    with suppress(OSError, ValueError):
        family = socket.AF_INET6 if b":" in name else socket.AF_INET
        packed = socket.inet_pton(family, name.decode("ascii"))
        return packed, socket.inet_ntop(family, packed).encode()
    raise absent_error(name, "not an address")


class AddressDirectory(Directory):
    """`.netnsfs/address/ADDR`: links to the interfaces, as they were when it was looked up.

    Two interfaces can have the same name and two names the same namespace. So a link is called
    by the inode number of the namespace and the name of the interface, which has no colon.

    Args:
        address: the address.
        targets: of each link.
    """

    def __init__(self, address: bytes, targets: dict[bytes, bytes]) -> None:
        # Another finding is another directory.
        self.key = (ADDRESS, address, tuple(targets.items()))
        self._targets = targets

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o555)

    def readdir(self) -> list[bytes]:
        return list(self._targets)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        if name not in self._targets:
            raise absent_error(name, "no interface has this address there")
        text = self._targets[name]
        return FixedLink((self.key, name), text)
