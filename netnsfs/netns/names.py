"""Named network namespaces, as ip-netns(8) keeps them.

A name is a file in the run directory (/run/netns) that a namespace's nsfs file is
bind-mounted on. The mount keeps the namespace alive when no process is in it. Whatever
else stands in the directory is a name too, a stale one: a placeholder whose mount was
never made or is gone, somebody's file, a namespace of another kind. A symbolic link names
the namespace that it leads to.

    names = Names(b"/run/netns")
    names.create(b"blue")           # ip netns add blue
    names.list()                    # [b"blue"]
    names.identify(b"blue")         # Namespace(inode=4026532268, id=4711, ...)
    names.remove(b"blue")           # ip netns del blue

All calls are plain and blocking, and safe against other processes that do the same at the
same moment, with or without netnsfs: nothing is remembered but which mount of the
directory is known to be shared, which links hang, and what `presence` has been told of.

`entry`, `packed` and `times`, which most requests need, answer on the event loop's thread too.
There they look at nothing but what the kernel has in its cache, and leave the rest to a worker.

How `create` differs from `ip netns add`, and why:

1. The namespace and its mount are made before the file, so that others see the bare
   placeholder for microseconds instead of for the whole unshare(2).
2. The mount is moved to the descriptor of the placeholder, not to its path. If
   somebody removes the name in between and makes it anew, the mount fails with ENOENT
   instead of stacking on theirs.
3. Roll-back removes the name only while it is still our placeholder.
4. The directory is made private before it is made shared (iproute2 82c8b9fe): otherwise it
   stays in the peer group of /run, and every namespace is mounted twice.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple, TypeVar

from netnsfs import linux
from netnsfs.jobs import (
    Job,
    WouldBlock,
    commit,
    may_block,
    on_event_loop,
    on_own_thread,
    start_thread,
    visit,
)
from netnsfs.netns.nsfs import Namespace, namespace_of, nsfs_device, open_own, reopen
from netnsfs.netns.owners import LOCK_SECONDS, Delegations
from netnsfs.netns.rundir import Presence
from netnsfs.netns.spares import Spares
from netnsfs.permissions import Owner

T = TypeVar("T")

NAME_MAX = 255
LINK_SECONDS = 1.0
_LEARN_SECONDS = 1.0

_MOST_STACKED = 1000

# How long to wait for somebody who is between placeholder and mount, or between detach and
# unlink.
_PAUSES = (0.01, 0.05)


class Entry(NamedTuple):
    """What stands under a name, as seen without following links.

    Attributes:
        kind: "mount" for a namespace file of any kind, "link" for a symbolic link, "other".
        mark: equal for two looks at the same thing. A namespace's inode number alone would
            not do, nor with the mount's ID on kernels that reuse it; together with the
            time at which the inode was made they do.
    """

    kind: str
    mark: linux.Stat


def check_name(name: bytes) -> None:
    """Refuse what `ip netns` refuses (iproute2, lib/namespace.c) and open(2) cannot take.

    Raises:
        OSError: ENAMETOOLONG for more than 255 bytes, EINVAL for anything else.
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name has at most 255 bytes", name)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name for a namespace", name)


def _reach(path: bytes) -> int:
    """An O_PATH descriptor, on the event loop's thread only of what the kernel has at hand."""
    fd = linux.open_cached(path)
    if fd is not None:
        return fd
    may_block()
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


class Names:
    """The names in one run directory.

    Args:
        path: the directory, absolute. It need not exist before the first `create`.
        spares: where `create` may take a namespace from.

    Attributes:
        avoid: device numbers of file systems that a link is never followed into.
        delegations: to whom each name was given.
    """

    def __init__(self, path: bytes, spares: Spares | None = None) -> None:
        self.path = path
        self.spares = Spares(0) if spares is None else spares
        self.avoid: Collection[int] = ()
        self.delegations = Delegations(path)
        self._presence: Presence | None = None
        self._unsure = False
        self._learn_at = 0.0
        self._hanging: dict[linux.Stat, threading.Thread] = {}
        self._prepared_mount = 0

    def file(self, name: bytes) -> bytes:
        """The path of a name's file."""
        return b"%b/%b" % (self.path, name)

    def list(self) -> list[bytes]:
        """All names, as `ip netns list` shows them; none if the directory is missing."""
        may_block()
        self._learn()
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    def entry(self, name: bytes) -> Entry:
        """What stands under a name. Quick: never leaves the run directory.

        Raises:
            OSError: ENOENT, ENAMETOOLONG.
        """
        found = linux.Stat._make(linux.unpack_statx(self.packed(name)))
        if found.dev == nsfs_device():
            kind = "mount"
        else:
            kind = "link" if stat.S_ISLNK(found.mode) else "other"
        return Entry(kind, found)

    def packed(self, name: bytes) -> bytes:
        """What `linux.statx_packed` gives for a name. Errors as for `entry`."""
        if on_event_loop() and (presence := self._known()) and presence.lacks(name):
            raise FileNotFoundError(errno.ENOENT, "there is no such name", name)
        path = self.file(name)
        packed = linux.statx_cached(path)
        if packed is not None:
            return packed
        may_block()
        try:
            return linux.statx_packed(path)
        except FileNotFoundError:
            self._learn()
            raise

    def state(self) -> object:
        """What stays the same for as long as no name and no mount changes.

        Returns:
            None if that is not known here.
        """
        if not on_event_loop() or not (presence := self._known()):
            return None
        return presence.state()

    def stamp(self) -> object:
        """What changes with every delegation. For the event loop's thread alone."""
        heard = self._heard()
        if heard is not None:
            return heard
        try:
            return self.delegations.generation()
        except WouldBlock:
            return object()

    def owner(self, name: bytes, mark: linux.Stat) -> Owner | None:
        """To whom a name was given. Arguments and errors as for `Delegations.of`."""
        return self.delegations.of(name, mark, self._heard() if on_event_loop() else None)

    def _heard(self) -> object:
        """The same object for as long as no delegation is heard of, or None."""
        presence = self._known()
        if presence:
            presence.state()
            if not presence.lost:
                return presence.attributes
        return None

    def _known(self) -> Presence | None:
        """For the event loop's thread; if there is nothing, a worker will learn it."""
        presence = self._presence
        if presence and not presence.lost:
            return presence
        self._unsure = True
        return None

    def _learn(self) -> None:
        if self._unsure and time.monotonic() >= self._learn_at:
            try:
                self._presence = Presence(self.path)
                self._unsure = False
            except FileNotFoundError:
                pass
            except OSError:
                # To give inotify(7) back takes the kernel a while.
                self._learn_at = time.monotonic() + _LEARN_SECONDS

    def times(self) -> tuple[int, int, int]:
        """Times of the directory (access, modification, change), nanoseconds since the epoch.

        Raises:
            OSError: ENOENT.
        """
        fd = linux.open_cached(self.path, follow=True)
        if fd is None:
            may_block()
            found = os.stat(self.path)
        else:
            try:
                found = os.fstat(fd)
            finally:
                os.close(fd)
        return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns

    def identify(self, name: bytes) -> Namespace | None:
        """The namespace that a name stands for. Result and errors as for `look`."""
        return self.look(name, namespace_of)

    def look(self, name: bytes, see: Callable[[int], T]) -> T | None:
        """What is to be seen by a descriptor of a name's file, through links if need be.

        Args:
            name: the name.
            see: what looks; raises EINVAL for what is not of a network namespace.

        Returns:
            None for a stale name.

        Raises:
            OSError: ENOENT, ENAMETOOLONG.
        """
        try:
            fd = self.open(name)
        except OSError as error:
            if error.errno in linux.SHORTAGE:
                raise
            # What is mounted can be opened, and is then seen not to be of a network namespace.
            if self.entry(name).kind == "mount" and error.errno != errno.EINVAL:
                raise
            return None
        try:
            return see(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return None
        finally:
            os.close(fd)

    def open(self, name: bytes) -> int:
        """A descriptor of a name's namespace file (or of whatever else is mounted there).

        Raises:
            OSError: EINVAL for a name that no nsfs file is mounted on, ETIMEDOUT for a link
                into a file system that does not answer, else as open(2).
        """
        entry = self.entry(name)
        if entry.kind == "mount":
            found = _reach(self.file(name))
            try:
                return reopen(found)
            finally:
                os.close(found)
        if entry.kind == "other":
            raise OSError(errno.EINVAL, "stale: no namespace is mounted there", name)
        may_block()
        return self._open_link(name, entry.mark)

    def open_settled(self, name: bytes) -> int:
        """`open`, but a name that somebody is just making or removing is looked at again.

        Raises:
            OSError: as `open`.
        """
        may_block()
        for pause in _PAUSES:
            try:
                return self.open(name)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            time.sleep(pause)
        return self.open(name)

    def _open_link(self, name: bytes, mark: linux.Stat) -> int:
        """Follow a link, which may lead into a file system that hangs, on a thread apart."""
        hanging = self._hanging.get(mark)
        if hanging and hanging.is_alive():
            raise OSError(errno.ETIMEDOUT, "the link leads to what does not answer", name)
        job = Job(self._follow, name)
        thread = start_thread(job.run, "netnsfs-link")
        thread.join(LINK_SECONDS)
        if thread.is_alive() and job.abandon():
            self._hanging = {link: old for link, old in self._hanging.items() if old.is_alive()}
            self._hanging[mark] = thread
            return self._open_link(name, mark)
        thread.join()
        return job.result()

    def _follow(self, name: bytes) -> int:
        target = linux.open_avoiding(self.file(name), self.avoid, os.getpid())
        try:
            commit()
            return reopen(target)
        finally:
            os.close(target)

    def by_inode(self, without: bytes = b"") -> dict[int, bytes]:
        """The first name, in byte order, of each namespace that has one.

        Args:
            without: a name that does not count.
        """
        found: dict[int, bytes] = {}
        for name in sorted(self.list()):
            if name == without:
                continue
            with suppress(OSError):
                entry = self.entry(name)
                if entry.kind == "mount":
                    found.setdefault(entry.mark.ino, name)
                elif entry.kind == "link" and (target := self.identify(name)):
                    found.setdefault(target.inode, name)
        return found

    def create(self, name: bytes, owner: Owner | None = None) -> tuple[Namespace, linux.Stat]:
        """Make a network namespace and bind it to a name, as `ip netns add` does.

        Args:
            name: the name.
            owner: to whom the name is given.

        Returns:
            The namespace, and the mark of its entry.

        Raises:
            OSError: EEXIST if the name stands, live or stale; ENOSPC if
                user.max_net_namespaces, user.max_mnt_namespaces (a mount that is mounted
                nowhere yet counts there) or fs.mount-max is reached or the directory is
                full; else as unshare(2), open(2), open_tree(2), move_mount(2). Nothing is
                left behind.
        """
        self._check_new(name)
        spare = self.spares.take()
        if spare is None:
            return on_own_thread(self._create, name, owner)
        return self._name_new(*spare, name, owner)

    def _create(self, name: bytes, owner: Owner | None) -> tuple[Namespace, linux.Stat]:
        with visit():
            try:
                linux.unshare(linux.CLONE_NEWNET)
            except OSError as error:
                raise _explained(error, "user.max_net_namespaces") from None
            return self._name_new(*open_own(), name, owner)

    def _name_new(
        self, fd: int, made: Namespace, name: bytes, owner: Owner | None
    ) -> tuple[Namespace, linux.Stat]:
        # Open until the end: an nsfs inode keeps number and times while it is in use.
        try:
            commit()
            return made, self._bind(fd, name, owner, apart=False)
        finally:
            os.close(fd)

    def attach(self, name: bytes, fd: int, owner: Owner | None = None) -> Namespace:
        """Bind an existing namespace to a name, as `ip netns attach` does.

        Args:
            name: the new name.
            fd: a descriptor of the namespace's nsfs file.
            owner: to whom the name is given.

        Raises:
            OSError: EINVAL if `fd` is not of a network namespace, else as `create`.
        """
        self._check_new(name)
        namespace = namespace_of(fd)
        commit()
        # `fd` may have been opened by another name, whose mount would be a peer of this one's.
        self._bind(fd, name, owner, apart=True)
        return namespace

    def rename(self, old: bytes, new: bytes) -> None:
        """Give a namespace a new name instead of an old one; nothing is replaced.

        The new name stands before the old one goes, so that a kill in between leaves both.
        A symbolic link is renamed as what it is. To whom the old name was given, the new one
        is.

        Raises:
            OSError: ENOENT, also if somebody else removes or renames the old name at the
                same moment and is first; EEXIST; EINVAL for a stale name; else as `create`.
        """
        self._check_new(new)
        if self.entry(old).kind == "link":
            commit()
            return linux.rename_noreplace(self.file(old), self.file(new))
        top = self._open_mount(old)
        try:
            with self.delegations.steady():
                self._rename_mount(top, old, new)
        finally:
            os.close(top)

    def _open_mount(self, name: bytes) -> int:
        """An O_PATH descriptor of the namespace file that is mounted on a name."""
        for pause in (*_PAUSES, None):
            top = os.open(self.file(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if linux.statx(b"", top).dev == nsfs_device():
                    return os.dup(top)
            finally:
                os.close(top)
            if pause:
                time.sleep(pause)
        raise OSError(errno.EINVAL, "the name is stale: rmdir removes it", name)

    def _rename_mount(self, top: int, old: bytes, new: bytes) -> None:
        mark = linux.statx(b"", top)
        fd = reopen(top)
        try:
            self.attach(new, fd, self.delegations.of(old, mark))
            try:
                self._detach(top, old)
            except OSError:
                # Whoever was first has removed the namespace, or given it another name.
                if linux.statx(self.file(new)).ino == os.fstat(fd).st_ino:
                    self.remove(new)
                raise
            self._remove_rest(old, mark.mount)
        finally:
            os.close(fd)

    def remove(self, name: bytes) -> None:
        """Take a name away, as `ip netns del` does; processes inside are not asked.

        A namespace goes with its last name if nothing else holds it. Of a symbolic link
        only the link is removed. A stale name goes if it is an empty file.

        Raises:
            OSError: ENOENT; EPERM for a directory, a file with content or a foreign
                mount; else as umount2(2), unlink(2).
        """
        may_block()
        top = os.open(self.file(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = linux.statx(b"", top)
            mounted = found.dev == nsfs_device()
            commit()
            if mounted:
                self._detach(top, name)
        finally:
            os.close(top)
        if mounted:
            self._remove_rest(name, found.mount)
        else:
            self._unlink(name)

    def _detach(self, top: int, name: bytes) -> None:
        """Detach the very mount that `top` was opened on.

        Raises:
            OSError: ENOENT if it is already.
        """
        try:
            # Through the descriptor: whatever is mounted at the path by now is not meant.
            linux.umount(b"/proc/thread-self/fd/%d" % top, linux.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise FileNotFoundError(errno.ENOENT, "somebody else was first", name) from None

    def _remove_rest(self, name: bytes, detached: int) -> None:
        """After a detach: take away the mounts below (`ip netns del` fails there) and the file.

        A mount that is newer than the one detached is somebody else's, who has removed the
        name and made it anew in the meantime.
        """
        path = self.file(name)
        with suppress(FileNotFoundError):
            for _ in range(_MOST_STACKED):
                entry = self.entry(name)
                try:
                    if entry.kind != "mount":
                        return os.unlink(path)
                    if entry.mark.mount > max(detached, linux.FIRST_UNIQUE_MOUNT):
                        return None
                    linux.umount(path, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
                except OSError as error:
                    # Somebody was there between the look and the call: look again.
                    if error.errno not in (errno.EINVAL, errno.EBUSY):
                        raise
            raise OSError(errno.EBUSY, "others keep mounting on the name", name)

    def _unlink(self, name: bytes) -> None:
        found = os.lstat(self.file(name))
        empty_file = stat.S_ISREG(found.st_mode) and found.st_size == 0
        if not (empty_file or stat.S_ISLNK(found.st_mode)):
            raise PermissionError(errno.EPERM, "it is not a namespace: see what it is", name)
        try:
            os.unlink(self.file(name))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if self.entry(name).kind == "mount":
                # Somebody who was making it has just mounted it.
                return self.remove(name)
            raise PermissionError(
                errno.EPERM, "something else is mounted there", name
            ) from None

    def _check_new(self, name: bytes) -> None:
        may_block()
        check_name(name)
        self._prepare()
        self._learn()
        if os.path.lexists(self.file(name)):
            raise FileExistsError(errno.EEXIST, "the name exists already", name)

    def _bind(self, fd: int, name: bytes, owner: Owner | None, apart: bool) -> linux.Stat:
        try:
            mount = linux.bind_mount(fd)
        except OSError as error:
            raise _explained(error, "user.max_mnt_namespaces") from None
        try:
            if apart:
                linux.make_private(mount)
            mark = linux.statx(b"", mount)
            self._put(mount, name, mark, owner)
        finally:
            os.close(mount)
        return mark

    def _put(self, mount: int, name: bytes, mark: linux.Stat, owner: Owner | None) -> None:
        path = self.file(name)
        try:
            placeholder = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
        except OSError as error:
            raise _explained(error, "the run directory") from None
        try:
            if owner:
                with self.delegations.giving(name, mark, placeholder, owner):
                    linux.move_mount(mount, placeholder)
            else:
                linux.move_mount(mount, placeholder)
        except OSError as error:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(placeholder), os.lstat(path)):
                    os.unlink(path)
            raise _explained(error, "fs.mount-max") from None
        finally:
            os.close(placeholder)

    def _prepare(self) -> None:
        """Make the run directory, and make it a shared mount, once per mount of it.

        Mounts of a shared mount propagate, and so do their removals: without that, a
        namespace would live on in every mount namespace made while its name stood.
        """
        try:
            found = linux.statx(self.path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(self.path, 0o755)
                os.chmod(self.path, 0o755)
            found = linux.statx(self.path)
        if found.mount == self._prepared_mount:
            return
        # The lock that `ip netns add` takes for the same purpose (iproute2 975c4944).
        with linux.locked(self.path, LOCK_SECONDS):
            self._share()
        self._prepared_mount = linux.statx(self.path).mount

    def _share(self) -> None:
        # Looked at, not tried as ip netns does: with MS_REC, a change of propagation walks
        # the mounts of all names.
        top = linux.mount_at(self.path)
        if top is None:
            linux.mount(self.path, self.path, linux.MS_BIND | linux.MS_REC)
        elif top.peers and not self._left_bound(top):
            return
        if top is None or top.peers:
            linux.mount(None, self.path, linux.MS_PRIVATE | linux.MS_REC)
        linux.mount(None, self.path, linux.MS_SHARED | linux.MS_REC)

    def _left_bound(self, top: linux.Mount) -> bool:
        """Whether somebody was killed after the bind: still a peer of the mount it lies in.

        If names are mounted already, then in both, and each removal must reach both.
        """
        others = list(linux.mounts())
        return any(m.id == top.parent and m.peers == top.peers for m in others) and not any(
            m.target.startswith(self.path + b"/") for m in others
        )


def _explained(error: OSError, limit: str) -> OSError:
    """Say in ENOSPC, which looks like a full disk, what is full."""
    if error.errno != errno.ENOSPC:
        return error
    try:
        with open("/proc/sys/" + limit.replace(".", "/")) as file:
            text = f"{limit} is {file.read().strip()} and reached: raise it with sysctl -w"
    except OSError:
        text = f"{limit} is full"
    return OSError(errno.ENOSPC, f"{text}, or remove a namespace", error.filename)
