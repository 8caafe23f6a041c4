"""Files: looked at, opened and renamed without waiting, or without entering a file system."""

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from netnsfs.linux.library import (
    AT_FDCWD,
    RESOURCE_ERRNOS,
    closing_fd,
    error_of_call,
    libc,
    quick_libc,
)

LOCAL_FILESYSTEMS = {
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0xF2F52010,  # f2fs
    0xCA451A4E,  # bcachefs
    0x794C7630,  # overlay
}
"""File systems in which nothing changes but through this kernel (linux/magic.h).

On one that comes from another machine or from a server, others change files unheard. What is
done to the layers below an overlay, while that is mounted, is undefined
(Documentation/filesystems/overlayfs.rst).
"""
_PROC_SUPER_MAGIC = 0x9FA0
# On these, make a call that may wait instead. EAGAIN: it is not in the cache. ENOSYS
# and EPERM: what filters of system calls in containers answer to an openat2(2) unknown to them.
_NOT_AT_HAND = RESOURCE_ERRNOS | {errno.ENOSYS, errno.EPERM}
# As many as the kernel follows (MAXSYMLINKS, linux/namei.h).
_MAX_LINKS = 40
_OPATH_NOFOLLOW = os.O_PATH | os.O_CLOEXEC
_SYS_OPENAT2 = 437
_RESOLVE_CACHED = 0x20
# struct open_how: flags, mode, resolve.
_CACHED = struct.pack("=QQQ", _OPATH_NOFOLLOW | os.O_NOFOLLOW, 0, _RESOLVE_CACHED)
_CACHED_TARGET = struct.pack("=QQQ", _OPATH_NOFOLLOW, 0, _RESOLVE_CACHED)
_RENAME_NOREPLACE = 1
_AT_SYMLINK_NOFOLLOW = 0x100
FOLLOW = 0
# AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_DONT_SYNC: nothing is mounted, and no server is
# asked. It may be one that does not answer, or this process.
_STATX_FLAGS = 0x800 | 0x1000 | 0x4000
# STATX_BASIC_STATS | STATX_MNT_ID | STATX_MNT_ID_UNIQUE
_STATX_MASK = 0x7FF | 0x1000 | 0x4000
# Of struct statx: mode, ino, ctime, device (major, minor), mount ID.
_STATX = struct.Struct("=28xH2xQ56xqI28xIIQ")
_STATX_DEVICE = struct.Struct("=II")
_StatxBuffer = ctypes.c_char * 256
_statx = libc.statx
_statx_open = quick_libc.statx
_quick_syscall = quick_libc.syscall


class Stat(NamedTuple):
    """What one statx(2) tells of a file and of the mount that it was reached by.

    `mount` is the mount's ID: unique until reboot from Linux 6.8 on; before, it may be reused
    once the mount is gone.
    """

    mode: int
    ino: int
    ctime_s: int
    ctime_ns: int
    major: int
    minor: int
    mount: int

    @property
    def dev(self) -> int:
        """The device: its major number shifted by 32, plus the minor; as `Mount.dev`."""
        return self.major << 32 | self.minor


def statx(path: bytes, dir_fd: int = AT_FDCWD, flags: int = _AT_SYMLINK_NOFOLLOW) -> Stat:
    """statx(2), links not followed, remote and FUSE servers not asked.

    Args:
        path: the file; empty for `dir_fd` itself.
        dir_fd: what a relative `path` starts from.
        flags: FOLLOW, to follow a link.

    Raises:
        OSError: as statx(2) does.
    """
    return Stat._make(statx_raw(path, dir_fd, flags))


def statx_raw(
    path: bytes, dir_fd: int = AT_FDCWD, flags: int = _AT_SYMLINK_NOFOLLOW
) -> tuple[int, ...]:
    """`statx` as a bare tuple, equal to the `Stat`: for callers that make thousands."""
    return unpack_statx(statx_packed(path, dir_fd, flags))


def statx_packed(
    path: bytes, dir_fd: int = AT_FDCWD, flags: int = _AT_SYMLINK_NOFOLLOW
) -> bytes:
    """The raw answer of statx(2), to be compared with another one."""
    buffer = _StatxBuffer()
    # Of an open file it waits for nothing. A path may wait: there the interpreter lock is given
    # away.
    call = _statx if path else _statx_open
    if call(dir_fd, path, flags | _STATX_FLAGS, _STATX_MASK, buffer):
        raise error_of_call(path)
    return buffer.raw


def statx_cached(path: bytes) -> bytes | None:
    """`statx_packed` without waiting for anything. Otherwise as `open_cached`."""
    fd = open_cached(path)
    if fd is None:
        return None
    with closing_fd(fd):
        try:
            return statx_packed(b"", fd)
        except OSError:
            # A call that may wait can still tell.
            return None


def unpack_statx(packed: bytes) -> tuple[int, ...]:
    """The values of a `Stat`, from what `statx_packed` has returned."""
    return _STATX.unpack_from(packed)


def device_of(packed: bytes) -> tuple[int, int]:
    """The major and minor number of a device file, from what `statx_packed` tells of it."""
    major, minor = _STATX_DEVICE.unpack_from(packed, 128)
    return major, minor


def open_cached(path: bytes, follow: bool = False, dir_fd: int = AT_FDCWD) -> int | None:
    """An O_PATH descriptor of a file, without waiting for anything.

    For a name that is not in its cache, the kernel would search the directory, and wait for the
    directory's lock.

    Args:
        path: the file.
        follow: whether it is meant to be what a link leads to.
        dir_fd: what a relative `path` starts from.

    Returns:
        None if a call that may wait is needed (openat2(2), RESOLVE_CACHED).

    Raises:
        OSError: as open(2) does.
    """
    how = _CACHED_TARGET if follow else _CACHED
    fd: int = _quick_syscall(_SYS_OPENAT2, dir_fd, path, how, len(how))
    if fd >= 0:
        return fd
    error = error_of_call(path)
    if error.errno not in _NOT_AT_HAND:
        raise error
    return None


def filesystem_magic(fd: int) -> int:
    """The magic number of the file system that `fd` (which may be O_PATH) is on."""
    # struct statfs begins with f_type, and is shorter than this.
    buffer = ctypes.create_string_buffer(256)
    if libc.fstatfs(fd, buffer):
        raise error_of_call()
    return int.from_bytes(buffer.raw[:8], "little")


def rename_noreplace(old: bytes, new: bytes) -> None:
    """renameat2(2) with RENAME_NOREPLACE."""
    if libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, _RENAME_NOREPLACE):
        raise error_of_call(old)


def lock(fd: int, seconds: float) -> None:
    """flock(2), exclusive, with a time limit.

    Raises:
        TimeoutError: somebody else has kept it until then.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            # flock(2) has no time limit. So it is asked again and again without waiting.
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock") from None
            time.sleep(0.01)


@contextmanager
def locked(directory: bytes, seconds: float) -> Iterator[None]:
    """Hold a directory's lock, as `lock` gets it, until the block ends."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(fd, seconds)
        yield
    finally:
        os.close(fd)


class CrossedMountError(OSError):
    """A path leads into a file system that must not be entered.

    Attributes:
        ino: inode number of where it is entered: not always the root of it.
        rest: the components that are left.
    """

    def __init__(self, path: bytes, ino: int, rest: list[bytes]) -> None:
        super().__init__(errno.ELOOP, "the path leads into netnsfs itself", path)
        self.ino = ino
        self.rest = rest


def open_no_xdev(path: bytes, avoid: Container[int], pid: int) -> int:
    """Open what an absolute path leads to as O_PATH, without entering some file systems.

    The kernel would walk the whole path in one call, through any mount on its way. Here
    each component is one step, looked at before the next. A link of procfs
    (/proc/PID/ns/net, /proc/PID/root) is a jump that only the kernel can make; it walks
    no path, and what it leads to is looked at like any step.

    Args:
        path: an absolute path.
        avoid: the device numbers of the file systems that must not be entered.
        pid: the task that /proc/self and /proc/thread-self mean.

    Returns:
        A descriptor that the caller closes.

    Raises:
        CrossedMountError: the path leads into `avoid`.
        OSError: ELOOP for a path with more than 40 links, else as open(2).
    """
    rest, links = _components(path), 0
    at = os.open(b"/", _OPATH_NOFOLLOW)
    try:
        while rest:
            name = rest.pop()
            target = _link_target(name, at)
            if target is None:
                step = os.open(name, _OPATH_NOFOLLOW | os.O_NOFOLLOW, dir_fd=at)
            elif filesystem_magic(at) == _PROC_SUPER_MAGIC:
                # It adds no components, so it need not be counted.
                step = _jump(name, at, pid)
            else:
                # The target is walked by the same steps: the kernel would walk it in one call.
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                rest += _components(target)
                if not target.startswith(b"/"):
                    continue
                step = os.open(b"/", _OPATH_NOFOLLOW)
            os.close(at)
            at = step
            found = statx(b"", at)
            if found.dev in avoid:
                raise CrossedMountError(path, found.ino, rest[::-1])
    except BaseException:
        os.close(at)
        raise
    return at


def _components(path: bytes) -> list[bytes]:
    """The components of a path, backwards: the next one is taken from the end."""
    return [name for name in path.split(b"/")[::-1] if name not in (b"", b".")]


def _jump(name: bytes, dir_fd: int, pid: int) -> int:
    """Open what a link of procfs leads to."""
    # These two would lead to this thread, and not to the task that is meant.
    own = name in (b"self", b"thread-self")
    return os.open(b"%d" % pid if own else name, _OPATH_NOFOLLOW, dir_fd=dir_fd)


def _link_target(name: bytes, dir_fd: int) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError as error:
        # readlink(2) of anything that is no link is EINVAL.
        if error.errno != errno.EINVAL:
            raise
        return None
