"""From the number by which one namespace knows another (nsid) to that other's directory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from netnsfs import linux
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsid import ask_nsid
from netnsfs.tree.refs import RESERVED, UNNAMED

# A namespace that has ended stays in the table: now and then it is emptied.
_MAX_KNOWN = 4096


class _Found(NamedTuple):
    """A namespace that another knows by a number: its path from the mount point on."""

    path: bytes
    inode: int
    named: bool
    open: Callable[[], int]


class NsidResolver:
    """Finds the namespace that another knows by a number.

    The kernel tells the number (nsid) of a namespace, and no namespace of a number. So each is
    asked for its number. A namespace keeps it as long as it lives: what was found is asked
    first the next time.

    Args:
        names: the run directory.
    """

    def __init__(self, names: NamedNamespaces) -> None:
        self._names = names
        self._known: dict[tuple[int, int], _Found] = {}

    def find_path(self, namespace: int, route: RouteSocket, nsid: int) -> bytes | None:
        """The path of a namespace's directory, from the mount point on.

        Args:
            namespace: ID of the one that has the number.
            route: a socket in it.
            nsid: the number.

        Returns:
            None if there is none that the daemon can see.
        """
        key = namespace, nsid
        known = self._known.get(key)
        # What had no name may have one by now. `_candidates` looks at that.
        if known and known.named and _is_known_by(route, nsid, known):
            return known.path
        for found in self._candidates(known):
            if _is_known_by(route, nsid, found):
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[key] = found
                return found.path
        return None

    def _candidates(self, known: _Found | None) -> Iterator[_Found]:
        named = self._names.names_by_inode(without=RESERVED)
        if known and known.inode not in named:
            yield known
        for inode, name in named.items():
            yield _Found(name, inode, True, partial(self._names.open_namespace, name))
        seen = set(named)
        for holder in tasks.iter_holders():
            if holder.inode not in seen:
                path = b"/".join((RESERVED, UNNAMED, b"%d" % holder.inode))
                opened = partial(holder.open, self._names.links.avoid)
                yield _Found(path, holder.inode, False, opened)


def _is_known_by(route: RouteSocket, nsid: int, found: _Found) -> bool:
    try:
        with linux.closing_fd(found.open()) as fd:
            return ask_nsid(route, fd) == nsid
    except OSError as error:
        linux.reraise_if_resource(error)
        return False
