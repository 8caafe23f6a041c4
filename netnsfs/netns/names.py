"""Named network namespaces, as ip-netns(8) keeps them.

A name is a file in the run directory (/run/netns) that a namespace's nsfs file is
bind-mounted on. The mount keeps the namespace alive when no process is in it. Whatever
else stands in the directory is a name too, a stale one: a placeholder whose mount was
never made or is gone, somebody's file, a namespace of another kind. A symbolic link names
the namespace that it leads to.

    names = NamedNamespaces(b"/run/netns")
    names.create(b"blue")           # ip netns add blue
    names.list_names()              # [b"blue"]
    names.identify(b"blue")         # Namespace(inode=4026532268, id=4711, ...)
    names.remove(b"blue")           # ip netns del blue

All calls are plain and blocking, and safe against other processes that do the same at the
same moment, with or without netnsfs. `inspect` answers on the event loop's thread too, of
what the kernel has in its cache.

How `create` differs from `ip netns add`, and why:

1. The namespace and its mount are made before the file, so that others see the bare
   placeholder for microseconds instead of for the whole unshare(2).
2. The mount is moved to the descriptor of the placeholder, not to its path. If
   somebody removes the name in between and makes it anew, the mount fails with ENOENT
   instead of stacking on theirs.
3. Roll-back removes the name only while it is still our placeholder.
4. The directory is made private before it is made shared (see `rundir`).

How `rename` and `remove` leave alone what others make at the same moment: a mount is detached
through a descriptor of that very mount, and a name is taken away only while the placeholder is
the one that was there at the start.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple, TypeVar

from netnsfs import linux
from netnsfs.jobs import commit, may_block, on_own_thread, restoring_namespace
from netnsfs.netns.nsfs import (
    Namespace,
    is_of_nsfs,
    namespace_of,
    nsfs_device,
    open_own_namespace,
    reopen,
)
from netnsfs.netns.owners import Owners
from netnsfs.netns.rundir import RunDirectory
from netnsfs.netns.spares import Spares
from netnsfs.netns.symlinks import SymlinkFollower
from netnsfs.permissions import Owner

T = TypeVar("T")

# Of a file name (linux/limits.h), and so of iproute2.
NAME_MAX = 255

# Somebody may mount on the name again and again: a limit, so that a removal ends.
_MAX_STACKED = 1000

# How long to wait for somebody who is between placeholder and mount, or between detach and
# unlink.
_RETRY_DELAYS = (0.01, 0.05)


class Entry(NamedTuple):
    """What stands under a name, as seen without following links.

    Attributes:
        kind: "mount" for a namespace file of any kind, "link" for a symbolic link, "other".
        identity: equal for two looks at the same thing. A namespace's inode number alone would
            not do, nor with the mount's ID on kernels that reuse it; together with the
            time at which the inode was made they do.
    """

    kind: str
    identity: linux.Stat


def require_valid_name(name: bytes) -> None:
    """Refuse what `ip netns` refuses (iproute2, lib/namespace.c) and open(2) cannot take.

    Raises:
        OSError: ENAMETOOLONG for more than 255 bytes, EINVAL for anything else.
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name has at most 255 bytes", name)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name for a namespace", name)


class NamedNamespaces:
    """The names in one run directory.

    Args:
        path: the directory, absolute. It need not exist before the first `create`.
        spares: where `create` may take a namespace from.

    Attributes:
        directory: the run directory.
        owners: to whom each name was given.
        links: follows symbolic links.
    """

    def __init__(self, path: bytes, spares: Spares | None = None) -> None:
        self.directory = RunDirectory(path)
        self.owners = Owners(self.directory)
        self.links = SymlinkFollower(path)
        self.spares = Spares(0) if spares is None else spares

    def path_of(self, name: bytes) -> bytes:
        """The path of a name's file."""
        return self.directory.path_of(name)

    def list_names(self) -> list[bytes]:
        """All names, as `ip netns list` shows them; none if the directory is missing."""
        return self.directory.list_names()

    # Looks

    def entry_at(self, name: bytes) -> Entry:
        """What stands under a name.

        Raises:
            WouldBlock: on the event loop's thread, if it is not in the kernel's cache.
            OSError: ENOENT, ENAMETOOLONG.
        """
        with linux.closing_fd(self.directory.open_opath(name)) as fd:
            return _entry_of(fd)

    def inspect(self, name: bytes, function: Callable[[int], T]) -> tuple[Entry, T | None]:
        """What stands under a name, and what a function finds in its namespace, in one step.

        Args:
            name: the name.
            function: looks at a descriptor of the namespace file, which a link leads to; raises
                EINVAL for what is not of a network namespace.

        Returns:
            The entry, and what `function` returned; None for a stale name.

        Raises:
            WouldBlock: on the event loop's thread, for a link, or if it is not in the
                kernel's cache.
            OSError: ENOENT, ENAMETOOLONG.
        """
        with linux.closing_fd(self.directory.open_opath(name)) as fd:
            entry = _entry_of(fd)
            try:
                with linux.closing_fd(self._open_entry(fd, entry)) as namespace:
                    return entry, function(namespace)
            except OSError as error:
                # What is mounted can be opened, and is then seen not to be of a network
                # namespace. A link may lead anywhere.
                mounted = entry.kind == "mount" and error.errno != errno.EINVAL
                if mounted or error.errno in linux.RESOURCE_ERRNOS:
                    raise
                return entry, None

    def identify(self, name: bytes) -> Namespace | None:
        """The namespace that a name stands for. Errors as for `inspect`."""
        return self.inspect(name, namespace_of)[1]

    def is_named(self, namespace: Namespace) -> bool:
        """Whether a namespace is mounted under any name; those of links do not count.

        Raises:
            OSError: it cannot be found out.
        """
        for name in self.directory.mounted.names_of(namespace.inode):
            try:
                found = self.identify(name)
            except FileNotFoundError:
                continue
            if found and found.id == namespace.id:
                return True
        return False

    def open_namespace(self, name: bytes) -> int:
        """A descriptor of a name's namespace file (or of whatever else is mounted there).

        Raises:
            OSError: EINVAL for a name that no nsfs file is mounted on, ETIMEDOUT for a link
                into a file system that does not answer, else as open(2).
        """
        with linux.closing_fd(self.directory.open_opath(name)) as fd:
            return self._open_entry(fd, _entry_of(fd))

    def open_with_retry(self, name: bytes) -> int:
        """`open_namespace`, but a name that somebody is just making or removing is looked at
        again.

        Raises:
            OSError: as `open_namespace`.
        """
        may_block()
        for pause in _RETRY_DELAYS:
            try:
                return self.open_namespace(name)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            time.sleep(pause)
        return self.open_namespace(name)

    def _open_entry(self, fd: int, entry: Entry) -> int:
        if entry.kind == "mount":
            return reopen(fd)
        if entry.kind == "link":
            return self.links.follow(fd, entry.identity)
        raise OSError(errno.EINVAL, "stale: no namespace is mounted there")

    def names_by_inode(self, without: bytes = b"") -> dict[int, bytes]:
        """The first name, in byte order, of each namespace that has one.

        Args:
            without: a name that does not count.
        """
        found: dict[int, bytes] = {}
        for name in sorted(self.list_names()):
            if name == without:
                continue
            try:
                entry = self.entry_at(name)
                if entry.kind == "mount":
                    # A namespace's file has one inode number wherever it is mounted: it need
                    # not be opened.
                    found.setdefault(entry.identity.ino, name)
                elif entry.kind == "link" and (target := self.identify(name)):
                    found.setdefault(target.inode, name)
            except OSError as error:
                linux.reraise_if_resource(error)
        return found

    # Made

    def create(self, name: bytes, owner: Owner | None = None) -> tuple[Namespace, linux.Stat]:
        """Make a network namespace and bind it to a name, as `ip netns add` does.

        Args:
            name: the name.
            owner: to whom the name is given.

        Returns:
            The namespace, and the identity of its entry.

        Raises:
            OSError: EEXIST if the name stands, live or stale; ENOSPC if
                user.max_net_namespaces, user.max_mnt_namespaces (a mount that is mounted
                nowhere yet counts there) or fs.mount-max is reached or the directory is
                full; else as unshare(2), open(2), open_tree(2), move_mount(2). Nothing is
                left behind.
        """
        # First, so that a name which exists costs no spare.
        self._require_new(name)
        spare = self.spares.take_spare()
        if spare:
            return self._create(_spare_namespace(*spare), name, owner)
        return on_own_thread(self._create, _new_namespace(), name, owner)

    def _create(
        self,
        source: AbstractContextManager[tuple[int, Namespace]],
        name: bytes,
        owner: Owner | None,
    ) -> tuple[Namespace, linux.Stat]:
        # The namespace stays open until the end: an nsfs inode in use keeps number and times.
        with (
            source as (namespace, made),
            _detached_mount(namespace) as mount,
            _placeholder(self.path_of(name)) as file,
        ):
            commit()
            # The identity stays as it is: the mount keeps its ID when it is moved.
            identity = linux.statx(b"", mount)
            self._mount_on(file, mount, owner)
            return made, identity

    def attach(self, name: bytes, fd: int, owner: Owner | None = None) -> Namespace:
        """Bind an existing namespace to a name, as `ip netns attach` does.

        Args:
            name: the new name.
            fd: a descriptor of the namespace's nsfs file.
            owner: to whom the name is given.

        Raises:
            OSError: EINVAL if `fd` is not of a network namespace, else as `create`.
        """
        self._require_new(name)
        namespace = namespace_of(fd)
        with (
            linux.closing_fd(on_own_thread(_open_inside, fd)) as source,
            _detached_mount(source) as mount,
            _placeholder(self.path_of(name)) as file,
        ):
            # A clone of a shared mount is its peer. Where `_open_inside` could only copy `fd`,
            # what is mounted on one name later would be mounted on the other too.
            linux.make_private(mount)
            commit()
            self._mount_on(file, mount, owner)
        return namespace

    def _mount_on(self, placeholder: int, mount: int, owner: Owner | None) -> None:
        # First the owner: nobody sees the namespace before it is known to whom it belongs.
        if owner:
            self.owners.write_owner(placeholder, owner)
        with _explaining_enospc("fs.mount-max"):
            linux.move_mount(mount, placeholder)

    def _require_new(self, name: bytes) -> None:
        may_block()
        require_valid_name(name)
        self.directory.prepare()
        # Only so that nothing is made in vain. O_EXCL decides (`_placeholder`).
        if os.path.lexists(self.path_of(name)):
            raise FileExistsError(errno.EEXIST, "the name exists already", name)

    # Renamed

    def rename(self, old: bytes, new: bytes, may_retry: bool = True) -> None:
        """Give a namespace a new name instead of an old one; nothing is replaced.

        The new name stands before the old one goes, so that a kill in between leaves both.
        A symbolic link is renamed as what it is. The new name belongs to the owner of the old.

        Args:
            old: the name that goes.
            new: the name that comes.
            may_retry: wait for somebody who is making or removing the old name just then.

        Raises:
            OSError: ENOENT, also if somebody else removes or renames the old name at the
                same moment and is first; EEXIST; EINVAL for a stale name; EROFS, EPERM if the
                old name cannot be taken away; else as `create`. Then nothing has changed.
        """
        self._require_new(new)
        if self.entry_at(old).kind == "link":
            commit()
            linux.rename_noreplace(self.path_of(old), self.path_of(new))
        else:
            # The kernel renames no file that is mounted on (EBUSY), and moves no mount away
            # from a shared one (EINVAL). So the new name is bound, and then the old one
            # detached.
            with (
                linux.closing_fd(self._open_mount_opath(old, may_retry)) as top,
                self.owners.owner_locked(old) as placeholder,
            ):
                self._rename_mount(top, placeholder, old, new)

    def _open_mount_opath(self, name: bytes, may_retry: bool) -> int:
        """An O_PATH descriptor of the namespace file that is mounted on a name."""
        for pause in (*_RETRY_DELAYS, None) if may_retry else (None,):
            with linux.closing_fd(self.directory.open_opath(name)) as top:
                if is_of_nsfs(top):
                    return os.dup(top)
            if pause:
                time.sleep(pause)
        raise OSError(errno.EINVAL, "the name is stale: rmdir removes it", name)

    def _rename_mount(self, top: int, placeholder: int, old: bytes, new: bytes) -> None:
        self._probe_unlink(old)
        with linux.closing_fd(reopen(top)) as fd:
            self.attach(new, fd, self.owners.read_owner(placeholder))
            try:
                self._detach(top, old)
            except OSError:
                # Another caller has removed the namespace first, or given it another name.
                # Unless the new name was removed meanwhile too, and made anew for another
                # namespace.
                if linux.statx(self.path_of(new)).ino == os.fstat(fd).st_ino:
                    self.remove(new)
                raise
        self._remove_rest(old, placeholder)

    # Removed

    def remove(self, name: bytes) -> None:
        """Take a name away, as `ip netns del` does, also while processes are inside.

        A namespace goes with its last name if nothing else holds it. Of a symbolic link
        only the link is removed. A stale name goes if it is an empty file.

        Raises:
            OSError: ENOENT; EPERM for a directory, a file with content or a foreign
                mount; EROFS, EPERM if its file cannot be taken away, and then its mount still
                stands; else as umount2(2), unlink(2).
        """
        may_block()
        with linux.closing_fd(self.directory.open_opath(name)) as top:
            if is_of_nsfs(top):
                self._remove_mount(name, top)
            else:
                commit()
                self._remove_stale(name)

    def _remove_mount(self, name: bytes, top: int) -> None:
        # Opened before the detach. From then on others can make the name anew, and only this
        # file tells their placeholder from ours.
        with linux.closing_fd(self.directory.open_placeholder_opath(name)) as placeholder:
            commit()
            self._probe_unlink(name)
            self._detach(top, name)
            self._remove_rest(name, placeholder)

    def _probe_unlink(self, name: bytes) -> None:
        """Make sure that the file of a name can be taken away, before its mount is.

        rmdir(2) is asked, which takes no file away, whosever it is by now. It answers ENOTDIR,
        after all that could be in the way of unlink(2) too (fs/namei.c, may_delete).

        Raises:
            OSError: EROFS if the run directory is read-only, EPERM if it or the file is
                immutable; ENOENT if somebody else has removed it.
        """
        with suppress(NotADirectoryError):
            os.rmdir(self.path_of(name))

    def _detach(self, top: int, name: bytes) -> None:
        """Detach the very mount that `top` was opened on.

        Raises:
            OSError: ENOENT if it is already.
        """
        try:
            # Through the descriptor: whatever is mounted at the path by now is not meant.
            # UMOUNT_NOFOLLOW would refuse such a path. Without MNT_DETACH, one open file of the
            # mount makes it EBUSY.
            linux.umount(b"/proc/thread-self/fd/%d" % top, linux.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise FileNotFoundError(errno.ENOENT, "somebody else was first", name) from None

    def _remove_rest(self, name: bytes, placeholder: int) -> None:
        """After a detach: take away the mounts below (`ip netns del` fails there) and the file.

        With another placeholder, the name is somebody else's, who has removed it and made it
        anew in the meantime.
        """
        with suppress(FileNotFoundError):
            for _ in range(_MAX_STACKED):
                if not self.directory.is_placeholder(name, placeholder):
                    return None
                try:
                    # This also detaches what is mounted on the file in mount namespaces that
                    # are no peers of ours (Linux 3.18).
                    return os.unlink(self.path_of(name))
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                self._detach_top(name)
            raise OSError(errno.EBUSY, "others keep mounting on the name", name)

    def _detach_top(self, name: bytes) -> None:
        with linux.closing_fd(self.directory.open_opath(name)) as top:
            if is_of_nsfs(top):
                # What somebody else has detached meanwhile is what is wanted too.
                with suppress(FileNotFoundError):
                    self._detach(top, name)

    def _remove_stale(self, name: bytes) -> None:
        found = os.lstat(self.path_of(name))
        empty_file = stat.S_ISREG(found.st_mode) and found.st_size == 0
        if not (empty_file or stat.S_ISLNK(found.st_mode)):
            raise PermissionError(errno.EPERM, "it is not a namespace: see what it is", name)
        try:
            os.unlink(self.path_of(name))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if self.entry_at(name).kind == "mount":
                # Somebody who was making it has just mounted it.
                return self.remove(name)
            raise PermissionError(
                errno.EPERM, "something else is mounted there", name
            ) from None


def _entry_of(fd: int) -> Entry:
    found = linux.statx(b"", fd)
    if found.dev == nsfs_device():
        return Entry("mount", found)
    return Entry("link" if stat.S_ISLNK(found.mode) else "other", found)


@contextmanager
def _new_namespace() -> Iterator[tuple[int, Namespace]]:
    with restoring_namespace():
        with _explaining_enospc("user.max_net_namespaces"):
            linux.unshare(linux.CLONE_NEWNET)
        fd, made = open_own_namespace()
        with linux.closing_fd(fd):
            yield fd, made


def _open_inside(fd: int) -> int:
    """A descriptor of a namespace that belongs to no mount of its file.

    `fd` was opened by way of a mount, of a name or of one that is gone. What is cloned from
    that has its propagation and its fate: of a clone of a detached mount, the removal reaches
    no other place where the run directory is mounted (fs/namespace.c).
    """
    try:
        with restoring_namespace():
            linux.setns(fd, linux.CLONE_NEWNET)
            return open_own_namespace()[0]
    except PermissionError:
        # It belongs to a more privileged user namespace, and setns(2) does not let us in.
        return os.dup(fd)


@contextmanager
def _spare_namespace(fd: int, made: Namespace) -> Iterator[tuple[int, Namespace]]:
    with linux.closing_fd(fd):
        yield fd, made


@contextmanager
def _detached_mount(fd: int) -> Iterator[int]:
    """A bind mount of an open file, which ends with the block if it was not moved."""
    with _explaining_enospc("user.max_mnt_namespaces"):
        mount = linux.bind_mount(fd)
    with linux.closing_fd(mount):
        yield mount


@contextmanager
def _placeholder(path: bytes) -> Iterator[int]:
    """A new, empty file, which is removed again if the block fails."""
    with _explaining_enospc("the run directory"):
        # Mode 0, as ip-netns(8) makes it. So only root can open it, and lock it (see `owners`).
        file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
    with linux.closing_fd(file):
        try:
            yield file
        except BaseException:
            with suppress(FileNotFoundError):
                # Somebody else may have removed it, and made the name anew.
                if os.path.samestat(os.fstat(file), os.lstat(path)):
                    os.unlink(path)
            raise


@contextmanager
def _explaining_enospc(limit: str) -> Iterator[None]:
    """Say in ENOSPC, which looks like a full disk, what is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, _limit_reached(limit), error.filename) from None


def _limit_reached(limit: str) -> str:
    try:
        with open("/proc/sys/" + limit.replace(".", "/")) as file:
            text = f"{limit} is {file.read().strip()} and reached: raise it with sysctl -w"
    except OSError:
        text = f"{limit} is full"
    return f"{text}, or remove a namespace"
