"""Where a namespace is found: under a name, or by what holds it.

A reference answers for the namespace that was found there first, and for no other: when
something else stands there, the namespace is gone (ENOENT).
"""

import errno
import os
from collections.abc import Callable, Hashable
from typing import Protocol

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns import tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import Namespace, namespace_of, nsfs_device
from netnsfs.permissions import CLOSED, ROOT, Owner

RESERVED = b".netnsfs"
"""The control directory: the one name that no namespace has in the mount."""

UNNAMED = b"unnamed"
"""The directory in it of the namespaces without a name."""


class NamespaceRef(Protocol):
    """Where a namespace can be found."""

    def require_present(self, namespace: Namespace) -> None:
        """Make sure that it is still there.

        Raises:
            OSError: ENOENT.
        """

    def open_namespace(self, namespace: Namespace) -> int:
        """A descriptor of it.

        Raises:
            OSError: ENOENT.
        """

    def is_reachable(self, namespace: Namespace) -> bool:
        """Whether what was opened of it may stay open.

        Raises:
            OSError: that cannot be found out.
        """

    def path_for_setns(self) -> bytes:
        """A path that setns(2) can use."""

    @property
    def public(self) -> bool:
        """Whether everyone may know that path."""

    @property
    def name(self) -> bytes:
        """What to call it in a message."""

    def change_cookie(self) -> Hashable:
        """Another object after each change of what `owner` returns."""

    def owner(self) -> Owner | None:
        """The owner of the namespace; None if it was given to nobody."""

    def change_owner(self, decide: Callable[[Owner | None], Owner]) -> None:
        """Give it to somebody.

        Args:
            decide: from the owner as it is now to what it shall be; raises what refuses it.

        Raises:
            OSError: EPERM if that cannot be kept, ENOENT if it is not there any more.
        """


class NameRef:
    """A name in the run directory.

    Args:
        names: the names.
        name: the name.
        identity: what stood under it when the namespace was found there.
    """

    public = True

    def __init__(self, names: NamedNamespaces, name: bytes, identity: linux.Stat) -> None:
        self._names = names
        self._directory = names.directory
        self._path = names.path_of(name)
        self._mounted = identity.dev == nsfs_device()
        self.name = name
        self.identity = identity
        self._packed = b""
        self._change_cookie: object = None
        # Of a link: what it leads to, and since when that is known.
        self._target: bytes | None = None
        self._target_cookie: object = None

    def is_unchanged(self) -> bool:
        """Whether the same namespace file is still mounted there.

        Raises:
            OSError: ENOENT.
        """
        # Taken first: a change that comes in between makes another cookie, and is seen the next
        # time.
        change_cookie = self._directory.change_cookie()
        if (
            change_cookie is not None
            and change_cookie is self._change_cookie
            and self._directory.is_local
        ):
            return True
        packed = self._directory.statx_packed(self.name)
        # The same bytes need not be taken apart: this is done at each lookup.
        if packed != self._packed:
            # What a link leads to can change without any change of the link.
            if linux.unpack_statx(packed) != self.identity or not self._mounted:
                return False
            self._packed = packed
        self._change_cookie = change_cookie
        return True

    def leads_to(self, namespace: Namespace) -> bool:
        """Whether a lookup finds a namespace there, as far as this can be told without a look.

        A link is looked at by what the kernel has at hand: it holds the directory's lock
        meanwhile. Whatever is asked of the namespace then follows it.

        Raises:
            OSError: ENOENT.
        """
        if self._mounted:
            return self.is_unchanged()
        try:
            target = self._link_target()
            return target is not None and self._names.links.peek(target) == namespace.inode
        except OSError as error:
            linux.reraise_if_resource(error)
            # It is there, and leads to nothing, or it is not there.
            return False

    def _link_target(self) -> bytes | None:
        """Where the link leads, if that is at hand."""
        # Taken first, as in `is_unchanged`. Without one, the run directory may be on a server.
        change_cookie = self._directory.change_cookie()
        if change_cookie is None:
            return None
        if change_cookie is not self._target_cookie:
            self._target = self._names.links.read_cached(self.name)
            self._target_cookie = change_cookie
        return self._target

    def require_present(self, namespace: Namespace) -> None:
        """See `NamespaceRef.require_present`."""
        if not self.is_unchanged():
            os.close(self.open_namespace(namespace))

    def open_namespace(self, namespace: Namespace) -> int:
        """See `NamespaceRef.open_namespace`."""
        try:
            return _require_same(self._names.open_namespace(self.name), namespace)
        except OSError as error:
            # The name is stale by now, or a link leads elsewhere. Here, the namespace is gone.
            if error.errno not in (errno.EINVAL, errno.ELOOP, errno.ETIMEDOUT):
                raise
            raise _absent_error() from None

    def is_reachable(self, namespace: Namespace) -> bool:
        """See `NamespaceRef.is_reachable`: until its last name is removed."""
        try:
            self.require_present(namespace)
        except FileNotFoundError:
            return self._names.is_named(namespace)
        return True

    def path_for_setns(self) -> bytes:
        """See `NamespaceRef.path_for_setns`."""
        return self._path

    def change_cookie(self) -> Hashable:
        """See `NamespaceRef.change_cookie`: when it was last seen to be unchanged."""
        # Without a change cookie, nothing is known to be unchanged: no object equals this one.
        return self._change_cookie or object()

    def owner(self) -> Owner | None:
        """See `NamespaceRef.owner`. If another thing stands there, it is closed to all."""
        if not self._mounted:
            return None
        try:
            return self._names.owners.owner_of(self.name) if self._stands() else CLOSED
        except FileNotFoundError:
            return CLOSED

    def _stands(self) -> bool:
        """`is_unchanged`, for what changes through this kernel alone, as mounts do."""
        change_cookie = self._directory.change_cookie()
        return (
            change_cookie is not None and change_cookie is self._change_cookie
        ) or self.is_unchanged()

    def change_owner(self, decide: Callable[[Owner | None], Owner]) -> None:
        """See `NamespaceRef.change_owner`. A symbolic link covers nothing to keep it on."""
        may_block()
        if not self._mounted:
            raise PermissionError(errno.EPERM, "a link has no owner of its own", self.name)
        self._names.owners.change_owner(self.name, self.identity, decide)


class HolderRef:
    """Held by something else than a name.

    Args:
        names: for what a path is not followed into.
        holder: one thing that holds it. Another takes its place when it lets go.
        is_named: whether the namespace with an inode number has a name. Then it is found there
            and no more here: to close a name is to close the namespace.
    """

    public = False

    def __init__(
        self, names: NamedNamespaces, holder: tasks.Holder, is_named: Callable[[int], bool]
    ) -> None:
        self._names = names
        self._holder = holder
        self._is_named = is_named
        self.name = b"%d" % holder.inode

    def require_present(self, namespace: Namespace) -> None:
        """See `NamespaceRef.require_present`."""
        os.close(self.open_namespace(namespace))

    def open_namespace(self, namespace: Namespace) -> int:
        """See `NamespaceRef.open_namespace`."""
        may_block()
        fd = self._open_held(namespace)
        try:
            # After the open: while it is held, its inode number cannot become another's.
            if self._is_named(namespace.inode):
                raise FileNotFoundError(errno.ENOENT, "the namespace has a name")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_held(self, namespace: Namespace) -> int:
        try:
            return _require_same(self._holder.open(self._names.links.avoid), namespace)
        except OSError as error:
            linux.reraise_if_resource(error)
            return self._open_another(namespace)

    def _open_another(self, namespace: Namespace) -> int:
        for holder in tasks.iter_holders(namespace.inode):
            try:
                fd = _require_same(holder.open(self._names.links.avoid), namespace)
            except OSError as error:
                linux.reraise_if_resource(error)
                continue
            self._holder = holder
            return fd
        raise _absent_error()

    def is_reachable(self, namespace: Namespace) -> bool:
        """See `NamespaceRef.is_reachable`: until it gets a name."""
        return not self._is_named(namespace.inode)

    def path_for_setns(self) -> bytes:
        """See `NamespaceRef.path_for_setns`. If only sockets hold the namespace, none works."""
        return self._holder.path

    def change_cookie(self) -> Hashable:
        """See `NamespaceRef.change_cookie`."""
        return None

    def owner(self) -> Owner | None:
        """See `NamespaceRef.owner`."""
        return ROOT

    def change_owner(self, decide: Callable[[Owner | None], Owner]) -> None:
        """See `NamespaceRef.change_owner`."""
        raise PermissionError(errno.EPERM, "give the namespace a name first")


def _require_same(fd: int, namespace: Namespace) -> int:
    try:
        # By ID: the inode number may be another namespace's by now.
        if namespace_of(fd).id != namespace.id:
            raise _absent_error()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _absent_error() -> OSError:
    return FileNotFoundError(errno.ENOENT, "the namespace is not there any more")
