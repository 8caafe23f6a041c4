"""Where a namespace is found: under a name, or by what holds it."""

import errno
import os
from collections.abc import Hashable
from typing import Protocol

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns import tasks
from netnsfs.netns.names import Names
from netnsfs.netns.nsfs import Namespace, namespace_of, nsfs_device
from netnsfs.permissions import ROOT, Owner


class Home(Protocol):
    """Where a namespace can be found."""

    def check(self, namespace: Namespace) -> None:
        """Make sure that it is still there.

        Raises:
            OSError: ENOENT.
        """

    def open(self, namespace: Namespace) -> int:
        """A descriptor of it.

        Raises:
            OSError: ENOENT.
        """

    def path(self) -> bytes:
        """A path that setns(2) can use."""

    @property
    def public(self) -> bool:
        """Whether everyone may know that path."""

    @property
    def name(self) -> bytes:
        """What to call it in a message."""

    def stamp(self) -> Hashable:
        """What changes with what `owner` says."""

    def owner(self) -> Owner | None:
        """To whom the namespace was given."""

    def give(self, owner: Owner) -> None:
        """Give it to somebody.

        Raises:
            OSError: EPERM if that cannot be kept, ENOENT if it is not there any more.
        """


class Name:
    """A name in the run directory.

    Args:
        names: the directory.
        name: the name.
        mark: what stood under it when the namespace was found there.
    """

    public = True

    def __init__(self, names: Names, name: bytes, mark: linux.Stat) -> None:
        self._names = names
        self._path = names.file(name)
        self._mounted = mark.dev == nsfs_device()
        self.name = name
        self.mark = mark
        self._packed = b""
        self._state: object = None

    def unchanged(self) -> bool:
        """Whether the same namespace file is still mounted there.

        Raises:
            OSError: ENOENT.
        """
        state = self._names.state()
        if state is not None and state is self._state:
            return True
        packed = self._names.packed(self.name)
        if packed != self._packed:
            if linux.unpack_statx(packed) != self.mark or not self._mounted:
                return False
            self._packed = packed
        self._state = state
        return True

    def check(self, namespace: Namespace) -> None:
        """See `Home.check`."""
        if not self.unchanged():
            os.close(self.open(namespace))

    def open(self, namespace: Namespace) -> int:
        """See `Home.open`."""
        try:
            return _same(self._names.open(self.name), namespace)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ELOOP, errno.ETIMEDOUT):
                raise
            raise _gone() from None

    def path(self) -> bytes:
        """See `Home.path`."""
        return self._path

    def stamp(self) -> Hashable:
        """See `Home.stamp`. Another name of the namespace may have another owner."""
        return self._names.stamp(), self.mark

    def owner(self) -> Owner | None:
        """See `Home.owner`."""
        return self._names.owner(self.name, self.mark)

    def give(self, owner: Owner) -> None:
        """See `Home.give`. There is nothing below a symbolic link to keep it on."""
        may_block()
        if not self._mounted:
            raise PermissionError(errno.EPERM, "a link has no owner of its own", self.name)
        self._names.delegations.change(self.name, self.mark, owner)


class Unnamed:
    """Held by something else than a name.

    Args:
        names: for `Names.avoid`.
        holder: one thing that holds it. Another takes its place when it lets go.
    """

    public = False

    def __init__(self, names: Names, holder: tasks.Holder) -> None:
        self._names = names
        self._holder = holder
        self.name = b"%d" % holder.inode

    def check(self, namespace: Namespace) -> None:
        """See `Home.check`."""
        os.close(self.open(namespace))

    def open(self, namespace: Namespace) -> int:
        """See `Home.open`."""
        may_block()
        try:
            return _same(self._holder.open(self._names.avoid), namespace)
        except OSError:
            return self._open_another(namespace)

    def _open_another(self, namespace: Namespace) -> int:
        for holder in tasks.scan(namespace.inode):
            try:
                fd = _same(holder.open(self._names.avoid), namespace)
            except OSError:
                continue
            self._holder = holder
            return fd
        raise _gone()

    def path(self) -> bytes:
        """See `Home.path`. A namespace that only sockets hold has none that works."""
        return self._holder.path

    def stamp(self) -> Hashable:
        """See `Home.stamp`."""
        return None

    def owner(self) -> Owner | None:
        """See `Home.owner`."""
        return ROOT

    def give(self, owner: Owner) -> None:
        """See `Home.give`."""
        raise PermissionError(errno.EPERM, "give the namespace a name first")


def _same(fd: int, namespace: Namespace) -> int:
    try:
        if namespace_of(fd).id != namespace.id:
            raise _gone()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _gone() -> OSError:
    return FileNotFoundError(errno.ENOENT, "the namespace is not there any more")
