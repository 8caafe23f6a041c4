"""`links`: the interfaces of a namespace, a directory for each.

FILES is the table of what is there beside what sysfs shows (`sysfs`). A directory is that of
one interface, whose identity sysfs tells: when the name is another's, what was held of the
first answers ENOENT or ENODEV.

Moving, renaming, joining and deleting interfaces is `rename`, `symlink` and `rmdir` of `links`.
The kernel has then decided by mode and owner of the two directories (`permissions`); what it
cannot know is decided here: a link's target is a text to it, nobody but root takes anything out
of the initial network namespace, and a namespace without a name is for CAP_NET_ADMIN.
"""

import errno
import os
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, Protocol, TypeVar

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import links, tasks
from netnsfs.netns.links import Interface, rtnetlink
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import Namespace
from netnsfs.netns.nsid import ask_nsid
from netnsfs.node import (
    USUAL_SIZE,
    Attributes,
    Caller,
    Directory,
    File,
    FixedLink,
    Handle,
    Node,
    OneTimeLink,
    Snapshot,
    opened_for_writing,
)
from netnsfs.permissions import Owner
from netnsfs.stats import Stats
from netnsfs.tree.callers import CAP_NET_ADMIN, has_capability, may_write, require_writer
from netnsfs.tree.open_files import OpenFiles
from netnsfs.tree.refs import RESERVED, UNNAMED, NamespaceRef
from netnsfs.tree.sysfs import SysfsMount, SysfsMounts, SysfsView

T = TypeVar("T")

LINKS = b"links"
_PEER = b"peer"
# An interface may move all the time. After so many looks, the last one is the answer.
_MAX_LOOKS = 10
# A namespace that has ended stays in the table: now and then it is emptied.
_MAX_NEIGHBOURS = 4096


class Parent(Protocol):
    """A namespace's directory."""

    key: Hashable
    namespace: Namespace
    ref: NamespaceRef

    @property
    def change_cookie(self) -> Hashable:
        """See `Node.change_cookie`."""

    def require_present(self) -> None:
        """Make sure that it is still there.

        Raises:
            OSError: ENOENT.
        """

    def is_reachable(self) -> bool:
        """See `NamespaceRef.is_reachable`."""

    def enter_namespace(self) -> None:
        """Move the calling thread, inside `restoring_namespace()`, into the namespace."""

    def held_open(self) -> AbstractContextManager[int]:
        """A descriptor of the namespace, until the block ends."""

    def current_owner(self) -> Owner:
        """The owner of the namespace."""

    def require_may_open(self, caller: Caller, writes: bool) -> None:
        """Refuse whoever may not open a file of it, whatever its mode says."""

    def file_attributes(self, mode: int) -> tuple[int, int, int]:
        """Permission bits, user and group ID that a file shows whose own bits are `mode`."""


@dataclass(frozen=True, slots=True)
class Row:
    """A file beside what sysfs shows.

    Attributes:
        name: of the file.
        show: its content, but for the end of the line.
        mode: permission bits.
        write: carries out a command, for a descriptor of the namespace, and the name and index
            of the interface.
    """

    name: bytes
    show: Callable[[RouteSocket, Interface], bytes]
    mode: int = 0o444
    write: Callable[[int, bytes, int, bytes], None] | None = None


def _addresses(route: RouteSocket, interface: Interface) -> bytes:
    found = links.addresses(route, interface.ifindex)
    return b"".join(address.text + b"\n" for address in found)


def _set_up(fd: int, name: bytes, index: int, command: bytes) -> None:
    wanted = command.strip()
    if wanted not in (b"0", b"1"):
        raise OSError(errno.EINVAL, "expected 0 or 1")
    links.set_up(fd, name, index, wanted == b"1")


FILES = {
    row.name: row
    for row in (
        Row(b"kind", lambda _, interface: interface.kind + b"\n"),
        Row(b"up", lambda _, interface: b"%d\n" % interface.up, 0o644, _set_up),
        Row(b"addresses", _addresses, 0o644, links.change_addresses),
    )
}


class _Found(NamedTuple):
    """A namespace that another knows by a number: its path from the mount point on."""

    path: bytes
    inode: int
    named: bool
    open: Callable[[], int]


class Neighbours:
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
                if len(self._known) >= _MAX_NEIGHBOURS:
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


@dataclass(frozen=True, slots=True)
class Shared:
    """What all `links` of a mount have in common.

    Attributes:
        mount_point: where the file system is mounted.
        neighbours: finds the other ends.
        mounts: of sysfs.
        resolve: from a path below the mount point to a namespace's directory.
        stats: where it is told why a link leads nowhere.
        opened: where open files are kept.
        dmask: permission bits that directories lack.
    """

    mount_point: bytes
    neighbours: Neighbours
    mounts: SysfsMounts
    resolve: Callable[[Sequence[bytes], Caller], Parent]
    stats: Stats
    opened: OpenFiles
    dmask: int


class LinksDirectory(Directory):
    """`links`.

    Args:
        parent: the namespace's directory.
        shared: what is the same in all.
    """

    writable = True

    def __init__(self, parent: Parent, shared: Shared) -> None:
        self.parent = parent
        self.shared = shared
        self.key = (parent.key, LINKS)
        self._listed: dict[bytes, int] = {}
        self._shown: tuple[Hashable, Attributes] | None = None

    @property
    def change_cookie(self) -> Hashable:
        return self.parent.change_cookie

    def getattr_cached(self) -> Attributes:
        owner = self.parent.current_owner()
        # Who may make namespaces (dmask=) may not yet change what is in them (fmask=).
        mode = stat.S_IFDIR | owner.mode & ~0o222 | owner.write
        return Attributes(mode, attr_timeout=0, uid=owner.uid, gid=owner.gid)

    def interface_attributes(self) -> Attributes:
        """What the directory of each interface shows: who moves it must be able to write it."""
        # A listing asks for each interface, of which there may be thousands. The answer is the
        # same for all.
        change_cookie, known = self.change_cookie, self._shown
        if known is None or known[0] is not change_cookie:
            self._shown = known = change_cookie, self.getattr_cached()._replace(attr_timeout=1)
        return known[1]

    def sysfs_mount(self) -> SysfsMount:
        """The sysfs of the namespace.

        Raises:
            OSError: ENOENT if that is not there any more.
        """
        self.parent.require_present()
        return self.shared.mounts.find_or_mount(
            self.parent.namespace.id, self.parent.enter_namespace
        )

    def readdir(self) -> list[bytes]:
        may_block()
        self._listed = self.sysfs_mount().identities()
        return [*self._listed]

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        known = self._listed.get(name)
        return InterfaceDirectory(self, name, known) if known else self.lookup(name, caller)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        may_block()
        return InterfaceDirectory(self, name, self.sysfs_mount().identity(name))

    def require_privileged(self, caller: Caller) -> None:
        """Refuse a change to a caller who may not make it.

        Raises:
            OSError: EACCES, EPERM.
        """
        if self.parent.ref.public:
            require_writer(self.parent.current_owner(), caller, self.parent.ref.name)
        elif not has_capability(caller, CAP_NET_ADMIN):
            raise PermissionError(errno.EPERM, "that takes CAP_NET_ADMIN", self.parent.ref.name)

    def mkdir(self, name: bytes, mode: int, caller: Caller) -> Node:
        message = "ln -s makes veth pairs; other kinds are made by ip -n"
        raise PermissionError(errno.EPERM, message, name)

    def rmdir(self, name: bytes, caller: Caller) -> None:
        self.require_privileged(caller)
        with _absent_is_enoent(), self.parent.held_open() as fd:
            links.remove(fd, name)

    def rename(
        self, name: bytes, directory: Directory, new_name: bytes, caller: Caller
    ) -> None:
        may_block()
        if not isinstance(directory, LinksDirectory):
            return super().rename(name, directory, new_name, caller)
        self.require_privileged(caller)
        directory.require_privileged(caller)
        with _absent_is_enoent(), self.parent.held_open() as fd:
            # Two directories may be of one namespace, by two names.
            if directory.parent.namespace.id == self.parent.namespace.id:
                return links.rename(fd, name, new_name)
            self._require_may_leave(name, caller)
            with directory.parent.held_open() as target:
                return links.move(fd, name, target, new_name)

    def _require_may_leave(self, name: bytes, caller: Caller) -> None:
        if not tasks.is_initial(self.parent.namespace.inode):
            return
        if caller.uid != 0 or not has_capability(caller, CAP_NET_ADMIN):
            message = "only root takes an interface out of the initial network namespace"
            raise PermissionError(errno.EPERM, message, name)

    def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        may_block()
        path, other_name = self._parse_target(target)
        other = self.shared.resolve(path, caller)
        # The kernel has checked the directory of the link. To it, the target is a text.
        if not may_write(other.current_owner(), caller):
            message = "the other end would be in a namespace that is not the caller's"
            raise PermissionError(errno.EACCES, message, target)
        for end in (self, LinksDirectory(other, self.shared)):
            end.require_privileged(caller)
        with self.parent.held_open() as fd, other.held_open() as other_fd:
            links.join(fd, name, other_fd, other_name)
        return OneTimeLink(target)

    def _parse_target(self, target: bytes) -> tuple[Sequence[bytes], bytes]:
        """The namespace that a path leads to, below the mount point, and an interface's name.

        No path is walked: it may lead to nothing, or where its maker may not go.

        Raises:
            OSError: EINVAL if it is no path of an interface below the mount point.
        """
        # `ln -s blue/links/b red/links/a`, typed at the mount point, means a path from there.
        # Only a path that goes up is meant from the link, as those of symbolic links are.
        here = self.shared.mount_point
        if target.startswith(b".."):
            here = os.path.join(here, own_path(self.parent), LINKS)
        path = os.path.relpath(
            os.path.normpath(os.path.join(here, target)), self.shared.mount_point
        )
        parts = path.split(b"/")
        # NAME/links/INTERFACE, .netnsfs/init/links/INTERFACE, or
        # .netnsfs/unnamed/INODE/links/INTERFACE.
        if len(parts) not in (3, 4, 5) or parts[-2] != LINKS or parts[0] == b"..":
            message = "expected NAME/links/INTERFACE, from the mount point on"
            raise OSError(errno.EINVAL, message, target)
        return parts[:-2], parts[-1]


def own_path(parent: Parent) -> bytes:
    """The path of a namespace's directory, from the mount point on."""
    name = parent.ref.name
    return name if parent.ref.public else b"/".join((RESERVED, UNNAMED, name))


@contextmanager
def _absent_is_enoent() -> Iterator[None]:
    """What rtnetlink calls no device is no file here."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise FileNotFoundError(errno.ENOENT, error.strerror) from None


class InterfaceDirectory(Directory):
    """An interface.

    Args:
        directory: `links`.
        name: of the interface.
        identity: of the interface, as sysfs has it.
    """

    def __init__(self, directory: LinksDirectory, name: bytes, identity: int) -> None:
        # The identity too: another interface of that name is another node.
        self.key = (directory.key, name, identity)
        self._directory = directory
        self._name = name
        self._identity = identity

    @cached_property
    def _sysfs(self) -> SysfsView:
        # Not at once: a listing has thousands.
        parent = self._directory.parent
        return SysfsView(
            self.key,
            self._name,
            self._identity,
            self._directory.sysfs_mount,
            parent.key,
            parent.is_reachable,
            self._directory.shared.opened,
            parent.file_attributes,
            self._directory.shared.dmask,
            self.require_may_open,
        )

    def require_may_open(self, caller: Caller, writes: bool) -> None:
        """See `NamespaceDirectory.require_may_open`.

        Raises:
            OSError: EACCES, EPERM.
        """
        self._directory.parent.require_may_open(caller, False)
        if writes:
            self._directory.require_privileged(caller)

    @property
    def change_cookie(self) -> Hashable:
        return self._directory.change_cookie

    @property
    def label(self) -> bytes:
        return self._name

    def getattr_cached(self) -> Attributes:
        return self._directory.interface_attributes()

    def readdir(self) -> list[bytes]:
        names = [*FILES, *self._sysfs.readdir()]
        is_veth = self.inspect_interface(lambda _, found: found.kind == b"veth")
        return [*names, _PEER] if is_veth else names

    def lookup(self, name: bytes, caller: Caller) -> Node:
        if name in FILES:
            self.require_present()
            return InterfaceFile(self, FILES[name])
        if name == _PEER:
            # To the other end of a veth.
            text = self.inspect_interface(self._peer_text)
            return FixedLink((self.key, _PEER, text), text)
        return self._sysfs.find_node(name)

    def require_present(self) -> None:
        self._sysfs.current_mount()

    def inspect_interface(self, show: Callable[[RouteSocket, Interface], T]) -> T:
        """What is to be seen of the interface.

        Raises:
            OSError: ENOENT if it is not there any more.
        """
        may_block()
        parent = self._directory.parent
        with _absent_is_enoent(), parent.held_open() as fd, rtnetlink(fd) as route:
            found = links.interface(route, self._name)
            if found.ifindex != self._index():
                raise FileNotFoundError(errno.ENOENT, "it is another interface by now")
            return show(route, found)

    def _index(self) -> int:
        """The index of the interface, if the name is still its own.

        Raises:
            OSError: ENOENT if it is not.
        """
        # The identity is looked at before and after. So the index is not that of another
        # interface which has the name for a moment.
        index = self._sysfs.current_mount().index(self._name)
        self.require_present()
        return index

    def run_command(self, row: Row, command: bytes) -> None:
        """Carry out what was written to one of the files."""
        assert row.write
        may_block()
        with self._directory.parent.held_open() as fd:
            row.write(fd, self._name, self._index(), command)

    def file_attributes(self, mode: int, size: int) -> Attributes:
        """What a file with those permission bits shows."""
        mode, uid, gid = self._directory.parent.file_attributes(mode)
        return Attributes(stat.S_IFREG | mode, size, attr_timeout=0, uid=uid, gid=gid)

    def require_privileged(self, caller: Caller) -> None:
        """See `LinksDirectory.require_privileged`."""
        self._directory.require_privileged(caller)

    def _peer_text(self, route: RouteSocket, found: Interface) -> bytes:
        """The text of `peer`."""
        for _ in range(_MAX_LOOKS):
            peer = links.peer(route, self._name)
            path = self._namespace_path(route, peer)
            # The other end may have moved while its namespace was looked for.
            if links.peer(route, self._name) == peer:
                break
        if path is None:
            path = b"/".join((RESERVED, UNNAMED, b"unknown"))
            error = OSError(errno.ENOENT, "the daemon cannot see the other end's namespace")
            self._directory.shared.stats.remember_refusal("readlink", self._name, error)
        own = own_path(self._directory.parent)
        name = peer.name or b"unknown"
        # Up from the interface, from `links`, and from each part of the namespace's path.
        return b"../" * (own.count(b"/") + 3) + b"/".join((path, LINKS, name))

    def _namespace_path(self, route: RouteSocket, peer: links.Peer) -> bytes | None:
        parent = self._directory.parent
        if peer.nsid is None:
            return own_path(parent)
        neighbours = self._directory.shared.neighbours
        return neighbours.find_path(parent.namespace.id, route, peer.nsid)


class InterfaceFile(File):
    """A file of the table, for one interface."""

    def __init__(self, directory: InterfaceDirectory, row: Row) -> None:
        self._directory = directory
        self._row = row
        self.key = (directory.key, row.name)
        self.label = row.name
        self.writable = row.write is not None

    def getattr_cached(self) -> Attributes:
        size = USUAL_SIZE
        return self._directory.file_attributes(self._row.mode, size)

    def open(self, flags: int, caller: Caller) -> Handle:
        may_block()
        writes = self.writable and opened_for_writing(flags)
        self._directory.require_may_open(caller, writes)
        take = partial(self._directory.inspect_interface, self._row.show)
        run = partial(self._directory.run_command, self._row) if self.writable else None
        return Snapshot(flags, take, self._directory.require_present, run)
