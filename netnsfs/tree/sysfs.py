"""/sys/class/net of a namespace, as directories.

What sysfs shows there depends on the namespace that it was mounted in, not on the thread that
looks. So it is mounted in the namespace, attached nowhere, and then read from anywhere. The
mount does not keep the namespace alive: its superblock holds the memory of `struct net`, not
what is in it (fs/sysfs/mount.c, kobj_ns_grab_current). Nor does an open file, which moves along
with its interface and answers ENODEV when that is gone. A few mounts are kept, because making
one takes as long as ten looks.

Links of sysfs that lead to an interface of the same namespace do so here too; all others lead
to the same place below /sys.
"""

import errno
import io
import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass

from netnsfs import linux
from netnsfs.jobs import may_block, on_own_thread, restoring_namespace
from netnsfs.node import (
    USUAL_SIZE,
    Attributes,
    Caller,
    Directory,
    File,
    Handle,
    Link,
    Node,
    Snapshot,
    opened_for_writing,
    require_read_only,
)
from netnsfs.tree.open_files import OpenFile, OpenFiles, open_file

_CLASS = b"class/net/"
MAX_MOUNTS = 32
_MOUNT_ATTRIBUTES = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC
_CHUNK = 1 << 16


class SysfsMount:
    """A sysfs that is mounted nowhere, until nobody refers to it.

    Args:
        fd: a descriptor of it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def path(self, inner: bytes) -> bytes:
        """The path of something in /sys/class/net, for as long as this object is held."""
        return b"/proc/self/fd/%d/" % self._fd + _CLASS + inner

    def identity(self, name: bytes) -> int:
        """What no other interface ever has: the inode number of its link in /sys/class/net.

        An interface keeps it under another name and in another namespace. On 64-bit machines
        the kernel never gives it again (kernfs_ino, linux/kernfs.h).

        Raises:
            OSError: ENOENT if there is no interface of that name.
        """
        try:
            found = os.lstat(self.path(name))
        except OSError as error:
            linux.reraise_if_resource(error)
            found = None
        # A file such as bonding_masters is no link, and no interface.
        if found is None or not stat.S_ISLNK(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "there is no such interface", name)
        return found.st_ino

    def identities(self) -> dict[bytes, int]:
        """The identity of each interface, by name."""
        with os.scandir(self.path(b"")) as entries:
            return {entry.name: entry.inode() for entry in entries if entry.is_symlink()}

    def index(self, name: bytes) -> int:
        """The index of an interface.

        Raises:
            OSError: ENOENT if there is no interface of that name.
        """
        with linux.closing_fd(os.open(self.path(name + b"/ifindex"), os.O_RDONLY)) as fd:
            return int(os.read(fd, 32))


class SysfsMounts:
    """The mounts that were used last, by ID of the namespace."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, SysfsMount] = OrderedDict()

    def find_or_mount(self, namespace: int, enter: Callable[[], None]) -> SysfsMount:
        """The mount of a namespace.

        Args:
            namespace: its ID.
            enter: moves the calling thread into it.

        Raises:
            WouldBlock: on the event loop's thread.
        """
        # A user who lists a directory of the same sysfs can keep it locked for any time.
        may_block()
        with self._lock:
            found = self._kept.get(namespace)
            if found is not None:
                self._kept.move_to_end(namespace)
                return found
        found = SysfsMount(on_own_thread(_mount_inside, enter))
        with self._lock:
            self._kept[namespace] = found
            surplus = len(self._kept) - MAX_MOUNTS
            # Closed without the lock, because the end of a mount waits for all processors.
            dropped = [self._kept.popitem(last=False) for _ in range(surplus)]
        del dropped
        return found


def _mount_inside(enter: Callable[[], None]) -> int:
    with restoring_namespace():
        enter()
        return linux.new_mount(b"sysfs", {}, _MOUNT_ATTRIBUTES)


@dataclass(frozen=True, slots=True)
class SysfsView:
    """Where an interface's part of sysfs is looked at from.

    Attributes:
        key: of the interface's directory.
        name: of the interface.
        identity: of the interface: another one with that name is not looked at.
        mount: the sysfs of its namespace.
        namespace_key: of the namespace's directory.
        is_reachable: whether the namespace is still to be seen where the view was found.
        opened: where its open files are kept.
        file_attributes: from the kernel's permission bits of a file to those that it has here,
            and the user and group ID of its owner.
        dmask: permission bits that directories lack.
        require_may_open: raises OSError for a caller who may not open (and write) a file
            whatever the bits say.
    """

    key: Hashable
    name: bytes
    identity: int
    mount: Callable[[], SysfsMount]
    namespace_key: Hashable
    is_reachable: Callable[[], bool]
    opened: OpenFiles
    file_attributes: Callable[[int], tuple[int, int, int]]
    dmask: int
    require_may_open: Callable[[Caller, bool], None]

    def find_node(self, path: bytes) -> Node:
        """A directory, file or link of sysfs; `path` starts at the interface's directory.

        Raises:
            OSError: ENOENT if the kernel has none.
        """
        mount = self.current_mount()
        found = os.lstat(mount.path(self.name + b"/" + path))
        if stat.S_ISDIR(found.st_mode):
            return _Directory(self, path, found.st_mode)
        if stat.S_ISLNK(found.st_mode):
            return _Link(self, path)
        return _File(self, path, found.st_mode)

    def readdir(self, path: bytes = b"") -> list[bytes]:
        """What is in a directory of sysfs."""
        mount = self.current_mount()
        return os.listdir(mount.path(self.name + b"/" + path))

    def current_mount(self) -> SysfsMount:
        """The mount, if the name is that interface's.

        Raises:
            OSError: ENOENT if it is not.
        """
        mount = self.mount()
        if mount.identity(self.name) != self.identity:
            raise FileNotFoundError(errno.ENOENT, "it is another interface by now", self.name)
        return mount


class _Directory(Directory):
    def __init__(self, view: SysfsView, path: bytes, mode: int) -> None:
        self.key = (view.key, path)
        self._view = view
        self._path = path
        self._mode = mode

    def getattr_cached(self) -> Attributes:
        return Attributes(self._mode & ~0o222 & ~self._view.dmask)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._view.find_node(self._path + b"/" + name)

    def readdir(self) -> list[bytes]:
        return self._view.readdir(self._path)


class _Link(Link):
    def __init__(self, view: SysfsView, path: bytes) -> None:
        self.key = (view.key, path)
        self._view = view
        self._path = path

    def target_path(self) -> bytes:
        mount, inner = self._view.current_mount(), self._view.name + b"/" + self._path
        device = _device(mount, self._view.name)
        beside = os.path.dirname(os.path.join(device, self._path))
        target = os.path.normpath(os.path.join(beside, os.readlink(mount.path(inner))))
        # Where an interface's directory is depends on its hardware: .../net/NAME in any case.
        _, _, rest = target.rpartition(b"/net/")
        name, _, below = rest.partition(b"/")
        if name and target == os.path.join(_device(mount, name), below).rstrip(b"/"):
            return b"../" * inner.count(b"/") + rest
        # What is no interface of this namespace is not shown here, but it is in the machine's
        # /sys.
        return b"/sys/" + target


def _device(mount: SysfsMount, name: bytes) -> bytes:
    """Where an interface's directory is in sysfs; nothing for what is no interface."""
    try:
        target = os.readlink(mount.path(name))
    except OSError:
        return b""
    return os.path.normpath(os.path.join(_CLASS, target))


class _File(File):
    def __init__(self, view: SysfsView, path: bytes, mode: int) -> None:
        self.key = (view.key, path)
        self.label = os.path.basename(path)
        self.writable = bool(mode & 0o222)
        self._view = view
        self._path = path
        self._mode = mode

    def getattr_cached(self) -> Attributes:
        mode, uid, gid = self._view.file_attributes(stat.S_IMODE(self._mode) & 0o777)
        size = USUAL_SIZE
        return Attributes(stat.S_IFREG | mode, size, attr_timeout=0, uid=uid, gid=gid)

    def open(self, flags: int, caller: Caller) -> Handle:
        may_block()
        if not self.writable:
            require_read_only(flags)
        self._view.require_may_open(caller, opened_for_writing(flags))
        opened = self._view.opened
        since = opened.rounds
        mount = self._view.current_mount()
        path = mount.path(self._view.name + b"/" + self._path)
        with ExitStack() as undo:
            file = undo.enter_context(open_file(path, flags & os.O_ACCMODE))
            # The name may have become another interface's meanwhile.
            self._view.current_mount()
            handle = _Open(self._view, file, flags)
            undo.pop_all()
        opened.add(handle, since)
        return handle


class _Open(OpenFile, Snapshot):
    """An open file of sysfs.

    What sysfs refuses at the first read (the speed of what is down) is refused then.
    """

    def __init__(self, view: SysfsView, file: io.FileIO, flags: int) -> None:
        OpenFile.__init__(self, view.namespace_key, view.is_reachable, file)
        self._refusal: OSError | None = None
        Snapshot.__init__(self, flags, self._content, run=self._command)

    def _content(self) -> bytes:
        may_block()
        content = b""
        try:
            while part := os.pread(self.file.fileno(), _CHUNK, len(content)):
                content += part
        except OSError as error:
            self._refusal = error
            # Of an empty file the kernel would read nothing, and the refusal would be lost.
            return bytes(USUAL_SIZE)
        self._refusal = None
        self.require_not_revoked()
        return content

    def read(self, size: int, offset: int) -> bytes:
        """See `Handle.read`."""
        self.require_not_revoked()
        content = super().read(size, offset)
        if self._refusal:
            raise OSError(self._refusal.errno, self._refusal.strerror)
        return content

    def _command(self, data: bytes) -> None:
        may_block()
        os.pwrite(self.file.fileno(), data, 0)
        self.require_not_revoked()
