"""/sys/class/net of a namespace, as directories.

What sysfs shows there depends on the namespace that it was mounted in, not on the thread that
looks. So it is mounted in the namespace, attached nowhere, and then read from anywhere. The
mount does not keep the namespace alive: its superblock holds the memory of `struct net`, not
what is in it (fs/sysfs/mount.c, kobj_ns_grab_current). Nor does an open file, which moves along
with its interface and answers ENODEV when that is gone. A few mounts are kept, because making
one takes as long as ten looks.

Links of sysfs that lead to an interface of the same namespace do so here too. Of all others,
only `device` is here, which leads into the reader's /sys: it alone tells which hardware an
interface is. `subsystem`, which every interface has, would lead whatever follows links (du -L,
find -L) out of the mount and round in circles, and tells nothing. Control groups have no such
link either.
"""

import errno
import io
import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from netnsfs import linux
from netnsfs.jobs import may_block, on_own_thread, restoring_namespace
from netnsfs.node import USUAL_SIZE, Caller, Node, Snapshot
from netnsfs.tree.delegation import is_interface_file_delegated
from netnsfs.tree.kernel_tree import (
    KernelDirectory,
    KernelFile,
    KernelLink,
    KernelTree,
    OpenKernelFile,
)
from netnsfs.tree.open_files import OpenFile, open_file

_CLASS = b"class/net/"
_DEVICE = b"device"
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
            try:
                return int(os.read(fd, 32))
            except OSError as error:
                # It is being made, or deleted (dev_isalive, net/core/net-sysfs.c).
                if error.errno not in (errno.EINVAL, errno.ENODEV):
                    raise
                raise FileNotFoundError(errno.ENOENT, "it is there no more", name) from None


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
class SysfsView(KernelTree):
    """An interface's part of sysfs. Paths start at the interface's directory.

    Attributes:
        name: of the interface.
        identity: of the interface: another one with that name is not looked at.
        mount: the sysfs of its namespace.
    """

    name: bytes
    identity: int
    mount: Callable[[], SysfsMount]

    def find_node(self, path: bytes) -> Node:
        """See `KernelTree.find_node`."""
        mount = self.current_mount()
        mode = os.lstat(self._path(mount, path)).st_mode
        if stat.S_ISDIR(mode):
            return KernelDirectory(self, path, mode)
        if stat.S_ISLNK(mode):
            if not self._shows_link(mount, path):
                raise FileNotFoundError(errno.ENOENT, "it leads to no interface", path)
            return KernelLink(self, path)
        return KernelFile(self, path, mode)

    def readdir(self, path: bytes = b"") -> list[bytes]:
        """See `KernelTree.readdir`."""
        mount = self.current_mount()
        with os.scandir(self._path(mount, path)) as entries:
            found = [(entry.name, entry.is_symlink()) for entry in entries]
        return [
            name
            for name, is_link in found
            if not is_link or self._shows_link(mount, os.path.join(path, name))
        ]

    def is_writable(self, mode: int) -> bool:
        """See `KernelTree.is_writable`."""
        return bool(mode & 0o222)

    def is_delegated(self, path: bytes) -> bool:
        """See `KernelTree.is_delegated`."""
        return is_interface_file_delegated(path)

    def open(self, path: bytes, flags: int, caller: Caller) -> OpenKernelFile:
        """See `KernelTree.open`."""
        mount = self.current_mount()
        with ExitStack() as undo:
            file = undo.enter_context(open_file(self._path(mount, path), flags & os.O_ACCMODE))
            # The name may have become another interface's meanwhile.
            self.current_mount()
            handle = _OpenSysfsFile(self, file, flags)
            undo.pop_all()
        return handle

    def readlink(self, path: bytes) -> bytes:
        """See `KernelTree.readlink`."""
        mount = self.current_mount()
        target = self._target(mount, path)
        inside = self._path_between_interfaces(mount, path, target)
        return inside or b"/sys/" + target

    def _shows_link(self, mount: SysfsMount, path: bytes) -> bool:
        if path == _DEVICE:
            return True
        try:
            target = self._target(mount, path)
        except OSError as error:
            linux.reraise_if_resource(error)
            return False
        return self._path_between_interfaces(mount, path, target) is not None

    def _target(self, mount: SysfsMount, path: bytes) -> bytes:
        """What a link of sysfs leads to, as a path below /sys."""
        beside = os.path.dirname(os.path.join(_device(mount, self.name), path))
        text = os.readlink(self._path(mount, path))
        return os.path.normpath(os.path.join(beside, text))

    def _path_between_interfaces(
        self, mount: SysfsMount, path: bytes, target: bytes
    ) -> bytes | None:
        """The text of a link to an interface of the same namespace, None for any other."""
        # Where an interface's directory is depends on its hardware: .../net/NAME in any case.
        _, _, rest = target.rpartition(b"/net/")
        name, _, below = rest.partition(b"/")
        if name and target == os.path.join(_device(mount, name), below).rstrip(b"/"):
            # Up to the interface's directory, and from there to the others.
            return b"../" * (path.count(b"/") + 1) + rest
        return None

    def _path(self, mount: SysfsMount, path: bytes) -> bytes:
        return mount.path(self.name + b"/" + path)

    def current_mount(self) -> SysfsMount:
        """The mount, if the name is that interface's.

        Raises:
            OSError: ENOENT if it is not.
        """
        mount = self.mount()
        if mount.identity(self.name) != self.identity:
            raise FileNotFoundError(errno.ENOENT, "it is another interface by now", self.name)
        return mount


def _device(mount: SysfsMount, name: bytes) -> bytes:
    """Where an interface's directory is in sysfs; nothing for what is no interface."""
    try:
        target = os.readlink(mount.path(name))
    except OSError:
        return b""
    return os.path.normpath(os.path.join(_CLASS, target))


class _OpenSysfsFile(OpenFile, Snapshot):
    """An open file of sysfs.

    What sysfs refuses at the first read (the speed of what is down) is refused then.
    """

    def __init__(self, view: SysfsView, file: io.FileIO, flags: int) -> None:
        OpenFile.__init__(self, view.access.key, view.access.is_reachable, file)
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
