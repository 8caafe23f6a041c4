"""`links`: the interfaces of a namespace, a directory for each.

FILES is the table of what is there beside what sysfs shows (`sysfs`). A directory is that of
one interface, whose identity sysfs tells: when the name is another's, what was held of the
first answers ENOENT or ENODEV.

Interfaces are moved and renamed by `rename` of `links`, deleted by `rmdir`, and made by
`symlink` (a veth pair) and `mkdir` (a bridge). A port is put into a bridge by `symlink` of the
interface's directory, and taken out by `unlink`.
The kernel has then decided by mode and owner of the two directories (`permissions`); what it
cannot know is decided here: a link's target is a text to it, nobody but root takes anything out
of the initial network namespace, and a namespace without a name is for CAP_NET_ADMIN.
"""

import errno
import os
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from netnsfs.commands import ANY_WORDS, CommandSnapshot, Syntax
from netnsfs.jobs import may_block
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import addresses, interface_changes, tasks
from netnsfs.netns.addresses import change_addresses, list_addresses
from netnsfs.netns.interfaces import Interface, Peer, find_interface, find_peer, rtnetlink
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
from netnsfs.stats import Stats
from netnsfs.tree.access import NamespaceAccess
from netnsfs.tree.callers import (
    CAP_DAC_READ_SEARCH,
    CAP_NET_ADMIN,
    has_capability,
    may_search,
    may_write,
    require_writer,
)
from netnsfs.tree.nsid_resolver import NsidResolver
from netnsfs.tree.refs import RESERVED, UNNAMED
from netnsfs.tree.sysfs import SysfsMount, SysfsMounts, SysfsView
from netnsfs.tree.token_bucket import charged

T = TypeVar("T")

LINKS = b"links"
_PEER = b"peer"
_MASTER = b"master"
# An interface may move all the time. After so many tries, the last answer counts.
_MAX_TRIES = 10


class _Anybody(NamedTuple):
    """A caller of whom nothing is known, and who has no right of their own."""

    pid: int = 0
    uid: int = -1
    umask: int = 0


_ANYBODY = _Anybody()


@dataclass(frozen=True, slots=True)
class InterfaceFileSpec:
    """A file beside what sysfs shows.

    Attributes:
        name: of the file.
        show: its content, but for the end of the line.
        mode: permission bits.
        store: carries out a command, for a descriptor of the namespace, and the name and index
            of the interface.
        syntax: when a command is whole.
    """

    name: bytes
    show: Callable[[RouteSocket, Interface], bytes]
    mode: int = 0o444
    store: Callable[[int, bytes, int, bytes], None] | None = None
    syntax: Syntax = ANY_WORDS


def _addresses(route: RouteSocket, interface: Interface) -> bytes:
    found = list_addresses(route, interface.ifindex)
    return b"".join(address.line + b"\n" for address in found)


def _set_up(fd: int, name: bytes, index: int, command: bytes) -> None:
    wanted = command.strip()
    if wanted not in (b"0", b"1"):
        raise OSError(errno.EINVAL, "expected 0 or 1")
    interface_changes.set_up(fd, name, index, wanted == b"1")


_ONE_DIGIT = Syntax(is_unfinished=lambda text: not text.strip())
_ADDRESSES = Syntax(is_unfinished=addresses.is_unfinished)

FILES = {
    spec.name: spec
    for spec in (
        InterfaceFileSpec(b"kind", lambda _, interface: interface.kind + b"\n"),
        InterfaceFileSpec(
            b"up", lambda _, interface: b"%d\n" % interface.up, 0o644, _set_up, _ONE_DIGIT
        ),
        InterfaceFileSpec(
            b"address",
            lambda _, interface: interface.address.hex(":").encode() + b"\n",
            0o644,
            interface_changes.set_address,
            Syntax(is_unfinished=interface_changes.is_unfinished_address),
        ),
        InterfaceFileSpec(b"addresses", _addresses, 0o644, change_addresses, _ADDRESSES),
    )
}


@dataclass(frozen=True, slots=True)
class LinksContext:
    """What all `links` of a mount have in common.

    Attributes:
        mount_point: where the file system is mounted.
        resolver: finds the namespaces of the other ends.
        mounts: of sysfs.
        resolve: from a path below the mount point to a namespace's directory.
        stats: where it is told why a link leads nowhere.
    """

    mount_point: bytes
    resolver: NsidResolver
    mounts: SysfsMounts
    resolve: Callable[[Sequence[bytes], Caller], NamespaceAccess]
    stats: Stats


class LinksDirectory(Directory):
    """`links`.

    Args:
        access: to the namespace.
        context: what is the same in all.
    """

    writable = True

    def __init__(self, access: NamespaceAccess, context: LinksContext) -> None:
        self.access = access
        self.context = context
        self.key = (access.key, LINKS)
        self._listed: dict[bytes, int] = {}
        self._shown: tuple[Hashable, Attributes] | None = None

    @property
    def change_cookie(self) -> Hashable:
        return self.access.change_cookie

    def getattr_cached(self) -> Attributes:
        owner = self.access.current_owner()
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
        self.access.require_present()
        return self.context.mounts.find_or_mount(
            self.access.namespace.id, self.access.enter_namespace
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

    def require_may_change(self, caller: Caller) -> None:
        """Refuse a change to a caller who may not make it.

        Raises:
            OSError: EACCES, EPERM.
        """
        ref = self.access.ref
        if ref.public:
            require_writer(self.access.current_owner(), caller, ref.name)
        elif not has_capability(caller, CAP_NET_ADMIN):
            raise PermissionError(errno.EPERM, "that takes CAP_NET_ADMIN", ref.name)

    def mkdir(self, name: bytes, mode: int, caller: Caller) -> Node:
        self.require_may_change(caller)
        with self.access.held_open() as fd:
            interface_changes.create_bridge(fd, name)
        return self.lookup(name, caller)

    def rmdir(self, name: bytes, caller: Caller) -> None:
        self.require_may_change(caller)
        with _absent_is_enoent(), self.access.held_open() as fd:
            interface_changes.delete(fd, name)

    def rename(
        self, name: bytes, directory: Directory, new_name: bytes, caller: Caller
    ) -> None:
        may_block()
        if not isinstance(directory, LinksDirectory):
            # `mv a/links/x b/links/x`, where that exists, means b/links/x/x.
            message = "an interface is moved to a new name in links, not into it: see mv -T"
            raise PermissionError(errno.EPERM, message, name)
        self.require_may_change(caller)
        directory.require_may_change(caller)
        with _absent_is_enoent(), self.access.held_open() as fd:
            # Two directories may be of one namespace, by two names.
            if directory.access.namespace.id == self.access.namespace.id:
                return interface_changes.rename(fd, name, new_name)
            self._require_may_leave(name, caller)
            with directory.access.held_open() as target:
                return interface_changes.move(fd, name, target, new_name)

    def _require_may_leave(self, name: bytes, caller: Caller) -> None:
        if not tasks.is_initial(self.access.namespace.inode):
            return
        if caller.uid != 0 or not has_capability(caller, CAP_NET_ADMIN):
            message = "only root takes an interface out of the initial network namespace"
            raise PermissionError(errno.EPERM, message, name)

    def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        may_block()
        path, other_name = self.parse_target(target)
        other = self.context.resolve(path, caller)
        # The kernel has checked the directory of the link. To it, the target is a text.
        if not may_write(other.current_owner(), caller):
            message = "the other end would be in a namespace that is not the caller's"
            raise PermissionError(errno.EACCES, message, target)
        for end in (self, LinksDirectory(other, self.context)):
            end.require_may_change(caller)
        with self.access.held_open() as fd, other.held_open() as other_fd:
            interface_changes.create_veth_pair(fd, name, other_fd, other_name)
        return OneTimeLink(target)

    def parse_target(self, target: bytes, below: bytes = b"") -> tuple[Sequence[bytes], bytes]:
        """The namespace that a path leads to, below the mount point, and an interface's name.

        No path is walked: it may lead to nothing, or where its maker may not go.

        Args:
            target: the path, as the text of a link.
            below: the directory here that the link is in.

        Raises:
            OSError: EINVAL if it is no path of an interface below the mount point.
        """
        # `ln -s blue/links/b red/links/a`, typed at the mount point, means a path from there.
        # Only a path that goes up is meant from the link, as those of symbolic links are.
        here = self.context.mount_point
        if target.startswith(b".."):
            here = os.path.join(here, own_path(self.access), LINKS, below)
        path = os.path.relpath(
            os.path.normpath(os.path.join(here, target)), self.context.mount_point
        )
        parts = path.split(b"/")
        # NAME/links/INTERFACE, .netnsfs/init/links/INTERFACE, or
        # .netnsfs/unnamed/INODE/links/INTERFACE.
        if len(parts) not in (3, 4, 5) or parts[-2] != LINKS or parts[0] == b"..":
            message = "expected NAME/links/INTERFACE, from the mount point on"
            raise OSError(errno.EINVAL, message, target)
        return parts[:-2], parts[-1]


def own_path(access: NamespaceAccess) -> bytes:
    """The path of a namespace's directory, from the mount point on."""
    name = access.ref.name
    return name if access.ref.public else b"/".join((RESERVED, UNNAMED, name))


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
        self.access = directory.access
        self._name = name
        self._identity = identity

    @cached_property
    def _sysfs(self) -> SysfsView:
        # Not at once: a listing has thousands.
        return SysfsView(
            self.key,
            self.access,
            self._name,
            self._identity,
            self._directory.sysfs_mount,
        )

    @property
    def change_cookie(self) -> Hashable:
        return self._directory.change_cookie

    @property
    def label(self) -> bytes:
        return self._name

    def getattr_cached(self) -> Attributes:
        return self._directory.interface_attributes()

    def readdir(self) -> list[bytes]:
        # Some of the files take the place of what sysfs has.
        names = [*dict.fromkeys([*FILES, *self._sysfs.readdir()])]
        is_veth = self.inspect_interface(lambda _, found: found.kind == b"veth")
        return [*names, _PEER] if is_veth else names

    def lookup(self, name: bytes, caller: Caller) -> Node:
        if name in FILES:
            self.require_present()
            return InterfaceFile(self, FILES[name])
        if name == _PEER:
            # To the other end of a veth.
            return self._make_peer_link(caller)
        return self._sysfs.find_node(name)

    def lookup_listed(self, name: bytes, caller: Caller) -> Node:
        # By now the caller may be gone, and its process ID another's.
        return self._make_peer_link(_ANYBODY) if name == _PEER else self.lookup(name, caller)

    def _make_peer_link(self, caller: Caller) -> Node:
        text = self.inspect_interface(partial(self._peer_text, caller))
        # The text tells one node from another: not everybody gets the same.
        return FixedLink((self.key, _PEER, text), text)

    def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        if name != _MASTER:
            return super().symlink(name, target, caller)
        may_block()
        self._directory.require_may_change(caller)
        master = self._master_of_target(target, caller)
        with _absent_is_enoent(), self.access.held_open() as fd:
            interface_changes.set_master(fd, self._name, self._index(), master)
        return OneTimeLink(target)

    def _master_of_target(self, target: bytes, caller: Caller) -> bytes:
        # `ln -s br0 links/p1/master` means the one beside p1.
        if b"/" not in target:
            return target
        path, name = self._directory.parse_target(target, self._name)
        other = self._directory.context.resolve(path, caller)
        if other.namespace.id != self.access.namespace.id:
            message = "a master is in the namespace of its ports"
            raise OSError(errno.EINVAL, message, target)
        return name

    def unlink(self, name: bytes, caller: Caller) -> None:
        if name != _MASTER:
            return super().unlink(name, caller)
        may_block()
        self._directory.require_may_change(caller)
        with _absent_is_enoent(), self.access.held_open() as fd:
            interface_changes.leave_master(fd, self._name, self._index())
        return None

    def require_present(self) -> None:
        self._sysfs.current_mount()

    def inspect_interface(self, show: Callable[[RouteSocket, Interface], T]) -> T:
        """What is to be seen of the interface.

        Raises:
            OSError: ENOENT if it is not there any more.
        """
        may_block()
        with _absent_is_enoent(), self.access.held_open() as fd, rtnetlink(fd) as route:
            found = find_interface(route, self._name)
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

    def run_command(self, spec: InterfaceFileSpec, command: bytes) -> None:
        """Carry out what was written to one of the files."""
        assert spec.store
        may_block()
        with self.access.held_open() as fd:
            spec.store(fd, self._name, self._index(), command)

    def file_attributes(self, mode: int, size: int) -> Attributes:
        """What a file with those permission bits shows."""
        mode, uid, gid = self.access.file_attributes(mode)
        return Attributes(stat.S_IFREG | mode, size, attr_timeout=0, uid=uid, gid=gid)

    def _peer_text(self, caller: Caller, route: RouteSocket, found: Interface) -> bytes:
        """The text of `peer`, for somebody."""
        for _ in range(_MAX_TRIES):
            peer = find_peer(route, self._name)
            path = self._namespace_path(route, peer)
            # The other end may have moved while its namespace was looked for.
            if find_peer(route, self._name) == peer:
                break
        if path is None:
            path = b"/".join((RESERVED, UNNAMED, b"unknown"))
            error = OSError(errno.ENOENT, "the daemon cannot see the other end's namespace")
            self._directory.context.stats.remember_refusal("readlink", self._name, error)
        own = own_path(self.access)
        # What is in a namespace that is closed to the caller is nothing to be told of.
        name = peer.name if path == own or self._may_look_into(path, caller) else b""
        name = name or b"unknown"
        # Up from the interface, from `links`, and from each part of the namespace's path.
        return b"../" * (own.count(b"/") + 3) + b"/".join((path, LINKS, name))

    def _may_look_into(self, path: bytes, caller: Caller) -> bool:
        parts = path.split(b"/")
        if parts[0] == RESERVED:
            return has_capability(caller, CAP_DAC_READ_SEARCH)
        try:
            owner = self._directory.context.resolve(parts, caller).current_owner()
            return owner.mode & 0o111 == 0o111 or may_search(owner, caller)
        except FileNotFoundError:
            return False

    def _namespace_path(self, route: RouteSocket, peer: Peer) -> bytes | None:
        if peer.nsid is None:
            return own_path(self.access)
        resolver = self._directory.context.resolver
        return resolver.find_path(self.access.namespace.id, route, peer.nsid)


class InterfaceFile(File):
    """A file of the table, for one interface."""

    def __init__(self, directory: InterfaceDirectory, spec: InterfaceFileSpec) -> None:
        self._directory = directory
        self._spec = spec
        self.key = (directory.key, spec.name)
        self.label = spec.name
        self.writable = spec.store is not None

    def getattr_cached(self) -> Attributes:
        return self._directory.file_attributes(self._spec.mode, USUAL_SIZE)

    def open(self, flags: int, caller: Caller) -> Handle:
        may_block()
        writes = self.writable and opened_for_writing(flags)
        self._directory.access.require_may_open(caller, writes)
        take = partial(self._directory.inspect_interface, self._spec.show)
        if not writes:
            return Snapshot(flags, take, self._directory.require_present)
        run = charged(caller.uid, partial(self._directory.run_command, self._spec))
        check = self._directory.require_present
        return CommandSnapshot(flags, take, check, run, self._spec.syntax)
