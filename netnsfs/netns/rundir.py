"""The run directory: which names stand in it, what lies below their mounts, what has changed.

**Has it changed?** `RunDirectory.change_cookie` is the one answer: the same object for as
long as no name, no mount and no attribute in the directory has changed. It asks no file system:
inotify(7) reports names and attributes, and /proc/self/mountinfo, which can be polled
(proc_pid_mountinfo(5)), reports mounts. One poll(2) asks for both. The kernel queues each event
before the system call that caused it returns, so a caller that knows of a change finds it here.

**Why not just look?** To look for a name that is not there, the kernel takes the directory's
lock. A user who lists the directory holds that lock too, for any time: the list may be
written to memory that a file is mapped to, and that file may be one of ours. So the event loop
looks at nothing but what the kernel has in its cache (openat2(2), RESOLVE_CACHED), learns from
inotify which names do not stand, and leaves everything else to a worker.

Of a directory on a local file system all is heard: there, nothing comes in but through this
kernel. On any other, another machine or a server may change names unheard. There, each lookup
looks at its name, once: mounts and owners change through this kernel alone.

**What is below.** A namespace's file covers the placeholder that it is mounted on. A private
clone of the directory's mount without the mounts in it (open_tree(2)) shows the placeholders.
While somebody holds a placeholder open, its inode number is not given to another file. So it
distinguishes a name from the same name made again, on every kernel; mount IDs do so from Linux
6.8 on.
"""

import errno
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TypeVar

from netnsfs import linux
from netnsfs.jobs import may_block, on_event_loop
from netnsfs.limits import LOCK_SECONDS
from netnsfs.netns.nsfs import is_of_nsfs, number_in
from netnsfs.permissions import Owner

T = TypeVar("T")

_WATCH_AGAIN_SECONDS = 1.0
_MAX_CLONES = 10

_CREATED = linux.IN_CREATE | linux.IN_MOVED_TO
_DELETED = linux.IN_DELETE
# Two names that are exchanged, or what a rename leaves behind, are not reported as such.
_RENAMED = linux.IN_MOVED_FROM
_CHANGED = linux.IN_ATTRIB
_MOVED = linux.IN_MOVE_SELF | linux.IN_DELETE_SELF | linux.IN_MASK_ADD
_WATCHED = _CREATED | _DELETED | _RENAMED | _CHANGED | _MOVED

# Somebody who makes and removes names all the time must not hold the reader up.
_MAX_EVENTS = 20_000

_OPATH_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_mounts(owner: object) -> int:
    """A descriptor that is ready (POLLPRI) once after each change of the mounts.

    Args:
        owner: what it is open for. It is closed when nobody refers to that any more.
    """
    mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    weakref.finalize(owner, os.close, mounts)
    return mounts


class DirectoryWatcher:
    """Hears what happens in a directory. For one thread at a time.

    Args:
        path: the directory, without links on the way.

    Attributes:
        identity: device and inode number of the directory.
        is_local: nothing changes there but through this kernel, so all changes are reported.
        overflowed_or_moved: an event was missed, or the directory is another one now:
            nothing is known.
        owners: what the caller has found of names; an entry is dropped when its name changes.

    Raises:
        OSError: EOPNOTSUPP if it cannot be watched, EAGAIN if not now; else as open(2),
            inotify_init1(2).
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self.overflowed_or_moved = False
        self.owners: dict[bytes, Owner | None] = {}
        self._change_cookie = object()
        self._checked = True
        with linux.closing_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            self.is_local = linux.filesystem_magic(fd) in linux.LOCAL_FILESYSTEMS
            if os.path.realpath(path) != path:
                raise OSError(errno.EOPNOTSUPP, "the directory cannot be watched", path)
            found = linux.statx(b"", fd)
            self.identity, self._mount = (found.dev, found.ino), found.mount
            self._watch = linux.Inotify()
            self._watch.watch_file(b"/proc/self/fd/%d" % fd, _WATCHED)
            # If one above is moved, the path leads elsewhere. IN_MASK_ADD: one of them may be
            # the run directory too, by a bind mount, and its watch must not lose the other
            # events.
            while (path := os.path.dirname(path)) != b"/":
                self._watch.watch_file(path, _MOVED)
            self._poll = linux.Poll(
                (self._watch.fileno(), select.POLLIN), (_open_mounts(self), select.POLLPRI)
            )
            # After the watch has begun: what comes while the list is read comes as an event.
            self._names = {os.fsencode(name) for name in os.listdir(fd)}
        if not self._is_there():
            raise OSError(errno.EAGAIN, "the directory is another now", self._path)

    def change_cookie(self) -> object:
        """What stays the same for as long as no name, mount or attribute changes."""
        if self._poll.any_ready():
            self._catch_up()
            self._checked = False
        if not self._checked:
            # A new mount may hide the directory, or a part of the path to it.
            self._checked = self._is_there()
            self._change_cookie = object()
        return self._change_cookie

    def lacks_name(self, name: bytes) -> bool:
        """Whether a name is known not to stand."""
        self.change_cookie()
        known = self.is_local and self._checked and not self.overflowed_or_moved
        return known and name not in self._names

    def _catch_up(self) -> None:
        for number, (mask, name) in enumerate(self._watch.read_events()):
            self.owners.pop(name, None)
            if number == _MAX_EVENTS:
                self.overflowed_or_moved = True
                break
            if mask & _CREATED:
                self._names.add(name)
            elif mask & _DELETED:
                self._names.discard(name)
            elif not mask & _CHANGED:
                # Events are lost, or names were renamed, or the directory is not where it was.
                self.overflowed_or_moved = True

    def _is_there(self) -> bool:
        try:
            packed = linux.statx_cached(self._path)
        except OSError:
            return False
        # It is not in the kernel's cache, and the event loop must not wait for more. The next
        # call asks again.
        if packed is None:
            return False
        found = linux.Stat._make(linux.unpack_statx(packed))
        self.overflowed_or_moved |= ((found.dev, found.ino), found.mount) != (
            self.identity,
            self._mount,
        )
        return not self.overflowed_or_moved


def _is_overmounted(placeholder: int) -> bool:
    try:
        return is_of_nsfs(placeholder)
    except OSError:
        # What fails on the event loop may still work on a worker.
        may_block()
        raise


class UnderlyingDirectory:
    """A directory as it is below the mounts in it, for as long as this object lives.

    Args:
        path: the directory.

    Attributes:
        fd: a descriptor of the clone.
        identity: device and inode number of the directory.

    Raises:
        OSError: as open_tree(2): EINVAL where a more privileged user namespace has mounted.
    """

    def __init__(self, path: bytes) -> None:
        self.fd = linux.open_tree(path)
        weakref.finalize(self, os.close, self.fd)
        # What is mounted in the directory from now on is not mounted here too.
        linux.make_private(self.fd)
        # A clone of a read-only mount stays read-only. Whether the directory is, is looked at
        # with each change. Where a more privileged user namespace has set the flag, it stays.
        with suppress(OSError):
            linux.make_writable(self.fd)
        found = linux.statx(b"", self.fd)
        self.identity = found.dev, found.ino


class ChangeWaiter:
    """Waits for changes of the mounts, and of the names in a directory. For one thread.

    Args:
        path: the directory. It need not exist.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._watch = linux.Inotify()
        self._poll = select.poll()
        self._poll.register(_open_mounts(self), select.POLLPRI)
        self._poll.register(self._watch.fileno(), select.POLLIN)
        self._watch_names()

    def wait(self) -> None:
        """Wait until something has changed since the last call, or since this was made."""
        self._poll.poll()
        while self._watch.has_events():
            pass
        self._watch_names()

    def _watch_names(self) -> None:
        # Mounts tell of all names but links. The directory may be another now, or be missing.
        with suppress(OSError):
            self._watch.watch_file(self._path, _DELETED | _RENAMED)


class MountedNames:
    """Which namespaces are mounted in a directory, under which names, from mountinfo alone.

    A caller that asks for one name after another can miss a namespace that is renamed
    meanwhile. In mountinfo, the mount of the new name comes after that of the old one, and is
    there before that goes: one pass sees at least one of them.

    Args:
        path: the directory, without links on the way. It need not exist.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._by_inode: dict[int, list[bytes]] | None = None
        self._poll = linux.Poll((_open_mounts(self), select.POLLPRI))

    def names_of(self, inode: int) -> list[bytes]:
        """The names of the namespace with an inode number.

        Raises:
            OSError: it cannot be found out.
        """
        may_block()
        with self._lock:
            if self._poll.any_ready():
                self._by_inode = None
            if self._by_inode is None:
                self._by_inode = self._read()
            return self._by_inode.get(inode, [])

    def _read(self) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = {}
        for mount in self._seen_mounts():
            if mount.fs_type == b"nsfs" and mount.root.startswith(b"net:["):
                names = found.setdefault(number_in(mount.root), [])
                names.append(os.path.basename(mount.target))
        return found

    def _seen_mounts(self) -> Iterator[linux.Mount]:
        """What is mounted on names, and is not covered by something else."""
        try:
            with linux.closing_fd(os.open(self._path, os.O_PATH | os.O_CLOEXEC)) as fd:
                seen_directory = linux.mount_number(fd)
        except FileNotFoundError:
            return
        here = {m.id: m for m in linux.mounts() if os.path.dirname(m.target) == self._path}
        covered = {m.parent for m in here.values()}
        for number in here.keys() - covered:
            lowest = here[number]
            while lowest.parent in here:
                lowest = here[lowest.parent]
            if lowest.parent == seen_directory:
                yield here[number]


class RunDirectory:
    """The run directory.

    Args:
        path: absolute, without links on the way. It need not exist before `prepare`.

    Attributes:
        mounted: which namespaces are mounted in it.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.mounted = MountedNames(path)
        self._watcher: DirectoryWatcher | None = None
        self._watcher_wanted = False
        self._watch_again_at = 0.0
        self._uncovered: UnderlyingDirectory | None = None
        self._prepared_mount = 0

    def path_of(self, name: bytes) -> bytes:
        """The path of a name's file."""
        return b"%b/%b" % (self.path, name)

    # What is heard, without looking. On the event loop's thread alone.

    def change_cookie(self) -> object:
        """What stays the same for as long as no name, mount or attribute changes.

        Returns:
            None if this thread does not know.
        """
        watcher = self._live_watcher()
        return watcher.change_cookie() if watcher else None

    @property
    def is_local(self) -> bool:
        """Whether a change cookie tells of all changes, not only of those by this kernel."""
        return self._watcher is not None and self._watcher.is_local

    def known_owners(self) -> dict[bytes, Owner | None] | None:
        """The owners found so far, to be added to. An entry is dropped when its name changes.

        Returns:
            None if this thread does not hear of changes.
        """
        watcher = self._live_watcher()
        if watcher is None:
            return None
        watcher.change_cookie()
        return None if watcher.overflowed_or_moved else watcher.owners

    def _live_watcher(self) -> DirectoryWatcher | None:
        if not on_event_loop():
            return None
        watcher = self._watcher
        if watcher and not watcher.overflowed_or_moved:
            return watcher
        # To start watching takes system calls that may wait: a worker does it.
        self._watcher_wanted = True
        return None

    def _start_watching(self) -> None:
        if self._watcher_wanted and time.monotonic() >= self._watch_again_at:
            try:
                self._watcher = DirectoryWatcher(self.path)
                self._watcher_wanted = False
            except FileNotFoundError:
                pass
            except OSError:
                # The kernel counts a closed inotify(7) a while longer (max_user_instances).
                self._watch_again_at = time.monotonic() + _WATCH_AGAIN_SECONDS

    # Looks

    def list_names(self) -> list[bytes]:
        """All names, as `ip netns list` shows them; none if the directory is missing."""
        may_block()
        self._start_watching()
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    def open_opath(self, name: bytes) -> int:
        """An O_PATH descriptor of what stands under a name, links not followed.

        Raises:
            WouldBlock: on the event loop's thread, if it is not in the kernel's cache.
            OSError: ENOENT, ENAMETOOLONG.
        """
        self._require_present(name)
        path = self.path_of(name)
        fd = linux.open_cached(path)
        if fd is not None:
            return fd
        return self._call_blocking(partial(os.open, flags=_OPATH_NOFOLLOW), path)

    def statx_packed(self, name: bytes) -> bytes:
        """All that statx(2) tells of what stands under a name. Errors as for `open_opath`."""
        self._require_present(name)
        path = self.path_of(name)
        packed = linux.statx_cached(path)
        if packed is not None:
            return packed
        return self._call_blocking(linux.statx_packed, path)

    def _call_blocking(self, look: Callable[[bytes], T], path: bytes) -> T:
        may_block()
        try:
            return look(path)
        except FileNotFoundError:
            # A watched directory answers this without a worker.
            self._start_watching()
            raise

    def _require_present(self, name: bytes) -> None:
        watcher = self._live_watcher()
        if watcher and watcher.lacks_name(name):
            raise FileNotFoundError(errno.ENOENT, "there is no such name", name)

    def read_times(self) -> tuple[int, int, int]:
        """Times of the directory (access, modification, change), nanoseconds since the epoch.

        Raises:
            OSError: ENOENT.
        """
        fd = linux.open_cached(self.path, follow=True)
        if fd is None:
            may_block()
            fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        with linux.closing_fd(fd):
            found = os.fstat(fd)
        return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns

    # Placeholders

    def open_placeholder_opath(self, name: bytes) -> int:
        """An O_PATH descriptor of the file that a name's namespace is mounted on.

        Raises:
            WouldBlock: on the event loop's thread, if it is not in the kernel's cache.
            OSError: ENOENT; else as open_tree(2).
        """
        for _ in range(_MAX_CLONES):
            directory = self._below_mounts()
            fd = linux.open_cached(name, dir_fd=directory.fd)
            if fd is None:
                may_block()
                fd = os.open(name, _OPATH_NOFOLLOW, dir_fd=directory.fd)
            try:
                covered = _is_overmounted(fd)
            except BaseException:
                os.close(fd)
                raise
            if not covered:
                return fd
            os.close(fd)
            # It was mounted after the directory was cloned and before the clone was private.
            self._uncovered = None
        raise OSError(errno.EBUSY, "its placeholder cannot be seen", name)

    def is_placeholder(self, name: bytes, placeholder: int) -> bool:
        """Whether an open file is still the one that stands under a name.

        Args:
            name: the name.
            placeholder: a descriptor of the file.
        """
        may_block()
        before = linux.statx(b"", placeholder)
        # Held until the look ends: another thread may replace it, which closes its descriptor.
        directory = self._below_mounts()
        try:
            found = linux.statx(name, directory.fd)
        except FileNotFoundError:
            return False
        return (found.dev, found.ino) == (before.dev, before.ino)

    def _below_mounts(self) -> UnderlyingDirectory:
        uncovered = self._uncovered
        if uncovered and uncovered.identity == self._identity():
            return uncovered
        may_block()
        self._start_watching()
        uncovered = self._uncovered = UnderlyingDirectory(self.path)
        return uncovered

    def _identity(self) -> tuple[int, int]:
        watcher = self._live_watcher()
        if watcher:
            return watcher.identity
        packed = linux.statx_cached(self.path) if on_event_loop() else None
        if packed is None:
            may_block()
            packed = linux.statx_packed(self.path)
        found = linux.Stat._make(linux.unpack_statx(packed))
        return found.dev, found.ino

    # Made, and shared

    def prepare(self) -> None:
        """Make the directory, and make it a shared mount, once per mount of it.

        Mounts of a shared mount propagate, and so do their removals: without that, a
        namespace would live on in every mount namespace made while its name stood.

        Raises:
            OSError: ETIMEDOUT if another process holds the directory's lock; else as mkdir(2),
                mount(2).
        """
        self._start_watching()
        try:
            found = linux.statx(self.path)
        except FileNotFoundError:
            self._make_directory()
            found = linux.statx(self.path)
        if found.mount == self._prepared_mount:
            return
        # Anybody can take the directory's lock and keep it. So it is taken only if needed.
        if not self._is_shared():
            # The lock that `ip netns add` takes for the same purpose (iproute2 975c4944).
            with linux.locked(self.path, LOCK_SECONDS):
                self._make_shared()
        prepared = linux.statx(self.path).mount
        # A lower ID may be given to the next mount. Then this is looked at each time: the
        # directory's line of mountinfo comes before those of its names.
        if prepared >= linux.FIRST_UNIQUE_MOUNT:
            self._prepared_mount = prepared

    def _make_directory(self) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            os.mkdir(self.path, 0o755)
            # mkdir(2) applies the umask that the daemon was started with.
            os.chmod(self.path, 0o755)
        except FileExistsError:
            pass

    def _is_shared(self) -> bool:
        # Looked at, not tried as ip netns does: with MS_REC, a change of propagation walks
        # the mounts of all names.
        top = linux.mount_at(self.path)
        return top is not None and bool(top.peers) and not self._is_left_bound(top)

    def _make_shared(self) -> None:
        # The previous holder of the lock may have done it.
        if self._is_shared():
            return
        top = linux.mount_at(self.path)
        if top is None:
            linux.mount(self.path, self.path, linux.MS_BIND | linux.MS_REC)
        # Private first (iproute2 82c8b9fe): otherwise the directory stays in the peer group of
        # /run, and every namespace is mounted twice.
        if top is None or top.peers:
            linux.mount(None, self.path, linux.MS_PRIVATE | linux.MS_REC)
        linux.mount(None, self.path, linux.MS_SHARED | linux.MS_REC)

    def _is_left_bound(self, top: linux.Mount) -> bool:
        """Whether somebody was killed after the bind: still a peer of the mount it lies in.

        If names are mounted already, then in both, and each removal must reach both.
        """
        parent = linux.mount_with_id(top.parent)
        if parent is None or parent.peers != top.peers:
            return False
        return not any(m.target.startswith(self.path + b"/") for m in linux.mounts())
