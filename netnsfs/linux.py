"""The Linux system calls that Python's os module does not have, and /proc/self/mountinfo.

Everything here is a thin, blocking call that raises OSError with the kernel's errno
and the path concerned. Nothing here knows what netnsfs is.
"""

import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import sys
import time
import weakref
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import NamedTuple

CLONE_NEWNET = 0x40000000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20

FIRST_UNIQUE_MOUNT = 1 << 31
"""Mount IDs from here on are never given again (Linux 6.8, fs/namespace.c), and ascend."""

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""What a call fails with that tells of this process or the machine, not of its object."""

# Where a call that may wait can tell more: EAGAIN above all; in some containers there is no
# openat2(2).
_NOT_AT_HAND = SHORTAGE | {errno.ENOSYS, errno.EPERM}

CAP_SYSLOG = 34
IN_MODIFY = 2
IN_ATTRIB = 4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_MASK_ADD = 1 << 29
_CAPABILITY_VERSION_3 = 0x20080522

TMPFS_MAGIC = 0x01021994
_PROC_SUPER_MAGIC = 0x9FA0
_MAX_LINKS = 40
_STEP = os.O_PATH | os.O_CLOEXEC
_RESOLVE_CACHED = 0x20
# struct open_how: flags, mode, resolve.
_CACHED = struct.pack("=QQQ", _STEP | os.O_NOFOLLOW, 0, _RESOLVE_CACHED)
_CACHED_TARGET = struct.pack("=QQQ", _STEP, 0, _RESOLVE_CACHED)

# linux/nsfs.h
_NS_GET_NSTYPE = 0xB703
_NS_GET_ID = 0x8008B70D
# asm-generic/socket.h
_SO_NETNS_COOKIE = 71
# linux/sockios.h
_SIOCGSKNS = 0x894C
# The same numbers on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSCONFIG = 431
_SYS_FSPICK = 433
_SYS_OPENAT2 = 437
_SYS_PIDFD_GETFD = 438
_SYS_MOUNT_SETATTR = 442
_RENAME_NOREPLACE = 1

# FSPICK_CLOEXEC | FSPICK_SYMLINK_NOFOLLOW | FSPICK_NO_AUTOMOUNT
_FSPICK_FLAGS = 1 | 2 | 4
_FSCONFIG_CMD_RECONFIGURE = 7

_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
# MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
_MOVE_MOUNT_FLAGS = 4 | 0x40
# struct mount_attr: set, clear, propagation, user namespace.
_MAKE_PRIVATE = struct.pack("=QQQQ", 0, 0, MS_PRIVATE, 0)

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
FOLLOW = 0
# AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_DONT_SYNC
_STATX_FLAGS = 0x800 | 0x1000 | 0x4000
# STATX_BASIC_STATS | STATX_MNT_ID | STATX_MNT_ID_UNIQUE
_STATX_MASK = 0x7FF | 0x1000 | 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)

# Once or more in each request: without argtypes, whose checks take as long as the call. PyDLL
# keeps the interpreter lock, for what waits for nothing: statx of an open file takes a
# microsecond, and giving the lock away and fetching it back takes as long again.
_quick = ctypes.PyDLL(None, use_errno=True)
_statx = _libc.statx
_statx_open = _quick.statx
_getxattr = _libc.getxattr
# Not every C library has it.
_malloc_trim = getattr(_libc, "malloc_trim", None)
_read = _quick.read
_poll = _quick.poll
_quick_syscall = _quick.syscall

# Of struct statx: mode, ino, ctime, device (major, minor), mount ID.
_STATX = struct.Struct("=28xH2xQ56xqI28xIIQ")
_StatxBuffer = ctypes.c_char * 256
# struct inotify_event: watch, mask, cookie, length of the name.
_EVENT = struct.Struct("=iIII")
# With a name of 255 bytes, padded.
_LONGEST_EVENT = _EVENT.size + 256
_WATCH_BUFFER = 65536
# struct pollfd: descriptor, events, what there is.
_POLLFD = struct.Struct("=ihh")
_AttributeBuffer = ctypes.c_char * 64


def _error(path: bytes | None = None) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)


def mount(source: bytes | None, target: bytes, flags: int) -> None:
    """mount(2) of a bind mount or a change of propagation."""
    if _libc.mount(source, target, b"none", flags, None):
        raise _error(target)


def bind_mount(source: int) -> int:
    """A bind mount of an open file, yet to be mounted anywhere (open_tree(2), Linux 5.2).

    Args:
        source: a descriptor of the file.

    Returns:
        A descriptor of the mount, which ends with it if `move_mount` has not been called.
    """
    flags = _AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _syscall(None, _SYS_OPEN_TREE, source, b"", flags)


def make_private(mount: int) -> None:
    """Make an open mount that is mounted nowhere nobody's peer (mount_setattr(2), Linux 5.12).

    What is made of a shared mount is its peer: whatever is mounted on the one later is mounted
    on the other too.
    """
    private = _MAKE_PRIVATE, len(_MAKE_PRIVATE)
    _syscall(None, _SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, *private)


def move_mount(mount: int, target: int) -> None:
    """Mount an open mount on an open file: no path is walked (move_mount(2), Linux 5.2)."""
    _syscall(None, _SYS_MOVE_MOUNT, mount, b"", target, b"", _MOVE_MOUNT_FLAGS)


def _syscall(path: bytes | None, number: int, *arguments: int | bytes | None) -> int:
    # The C library cannot know their types; those that are of 64 bits must be all there.
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result: int = _libc.syscall(number, *words)
    if result < 0:
        raise _error(path)
    return result


def umount(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(target, flags):
        raise _error(target)


def forget_unused(target: bytes) -> None:
    """Have the kernel forget what it keeps of a mounted file system and nobody uses.

    What a reconfiguration does besides, and this one changes nothing (fs/super.c,
    reconfigure_super).
    """
    picked = _syscall(target, _SYS_FSPICK, _AT_FDCWD, target, _FSPICK_FLAGS)
    try:
        _syscall(target, _SYS_FSCONFIG, picked, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    finally:
        os.close(picked)


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread alone."""
    if _libc.unshare(flags):
        raise _error()


def setns(fd: int, nstype: int) -> None:
    """setns(2), for the calling thread alone."""
    if _libc.setns(fd, nstype):
        raise _error()


def open_tree(path: bytes) -> int:
    """Clone the mount at a path, without what is mounted below (open_tree(2), Linux 5.2).

    Returns:
        A descriptor of the clone, which lives as long as it is open.
    """
    return _syscall(path, _SYS_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)


def attribute(path: bytes, name: bytes) -> bytes | None:
    """A short extended attribute (xattr(7)), or None if there is none to be had."""
    buffer = _AttributeBuffer()
    length = _getxattr(path, name, buffer, 64)
    return buffer.raw[:length] if length >= 0 else None


def in_initial_user_namespace() -> bool:
    """Whether this process is in the user namespace that the machine started with."""
    with open("/proc/self/uid_map") as lines:
        return lines.read().split() == ["0", "0", "4294967295"]


def lock(fd: int, seconds: float) -> None:
    """flock(2), exclusive, with a time limit.

    Raises:
        TimeoutError: somebody else has kept it all the time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
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


class Watch:
    """Notices changes of files (inotify(7)).

    Attributes:
        close: call it to watch no longer.
    """

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _error()
        self._buffer = (ctypes.c_char * _WATCH_BUFFER)()
        self.close = weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        """The descriptor, which can be read when something has happened."""
        return self._fd

    def add(self, path: bytes, events: int) -> None:
        """Watch one more file, for events as in inotify_add_watch(2)."""
        if _libc.inotify_add_watch(self._fd, path, events) < 0:
            raise _error(path)

    def touched(self) -> bool:
        """Whether something has happened since the last call. For one thread at a time."""
        return bool(_read(self._fd, self._buffer, _WATCH_BUFFER) > 0)

    def events(self) -> Iterator[tuple[int, bytes]]:
        """What has happened since the last call: each event's mask, and the name it is of.

        For one thread at a time.
        """
        end = _WATCH_BUFFER
        # There was no room for one more, or there is no more.
        while end > _WATCH_BUFFER - _LONGEST_EVENT:
            end = _read(self._fd, self._buffer, _WATCH_BUFFER)
            told, at = ctypes.string_at(self._buffer, max(0, end)), 0
            while at < end:
                _, mask, _, length = _EVENT.unpack_from(told, at)
                name = told[at + _EVENT.size : at + _EVENT.size + length]
                yield mask, name.rstrip(b"\0")
                at += _EVENT.size + length


class Poll:
    """Tells at once whether any of some open files is ready (poll(2)).

    Args:
        files: their descriptors, and for what.
    """

    def __init__(self, *files: tuple[int, int]) -> None:
        packed = b"".join(_POLLFD.pack(fd, events, 0) for fd, events in files)
        self._files = ctypes.create_string_buffer(packed, len(packed))
        self._count = len(files)

    def ready(self) -> bool:
        """Whether one is, or that cannot be told."""
        return bool(_poll(self._files, self._count, 0))


def give_memory_back() -> None:
    """Give free memory of this process back to the kernel (malloc_trim(3))."""
    if _malloc_trim:
        _malloc_trim(0)


def drop_capability(number: int) -> None:
    """Give up a capability (capset(2)), for this thread and those that it starts."""
    # struct __user_cap_header_struct, and twice __user_cap_data_struct: effective, permitted,
    # inheritable.
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data):
        raise _error()
    held = struct.unpack("=6I", data.raw)
    first, bit = number // 32 * 3, 1 << number % 32
    kept = [word & ~bit if first <= i < first + 3 else word for i, word in enumerate(held)]
    if kept != list(held) and _libc.capset(header, struct.pack("=6I", *kept)):
        raise _error()


def rename_noreplace(old: bytes, new: bytes) -> None:
    """renameat2(2) with RENAME_NOREPLACE."""
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE):
        raise _error(old)


def socket_namespace(pid: int, fd: int) -> int:
    """Open the network namespace of a socket in another process (SIOCGSKNS, Linux 4.9).

    Args:
        pid: the process.
        fd: its descriptor of the socket.

    Returns:
        A descriptor of the namespace that the caller closes.

    Raises:
        OSError: as pidfd_open(2), pidfd_getfd(2); ENOTTY if it is not a socket.
    """
    process = os.pidfd_open(pid)
    try:
        copy = _syscall(None, _SYS_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    try:
        return fcntl.ioctl(copy, _SIOCGSKNS)
    finally:
        os.close(copy)


def fs_type(fd: int) -> int:
    """The magic number of the file system that `fd` (which may be O_PATH) is on."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        raise _error()
    return int.from_bytes(buffer.raw[:8], "little")


class Stat(NamedTuple):
    """What one statx(2) tells of a file and of the mount that it was reached by.

    `mount` is the mount's ID: from Linux 6.8 on one that is unique until reboot, before
    that one that the kernel gives again when the mount is gone.
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


def stat(path: bytes, dir_fd: int = _AT_FDCWD, flags: int = _AT_SYMLINK_NOFOLLOW) -> Stat:
    """statx(2), links not followed, remote and FUSE servers not asked.

    Args:
        path: the file; empty for `dir_fd` itself.
        dir_fd: what a relative `path` starts from.
        flags: FOLLOW, to follow a link.

    Raises:
        OSError: as statx(2) does.
    """
    return Stat._make(raw_stat(path, dir_fd, flags))


def raw_stat(
    path: bytes, dir_fd: int = _AT_FDCWD, flags: int = _AT_SYMLINK_NOFOLLOW
) -> tuple[int, ...]:
    """`stat` as a bare tuple, which equals the `Stat`: for where it is made by the thousand."""
    return unpacked(packed_stat(path, dir_fd, flags))


def packed_stat(
    path: bytes, dir_fd: int = _AT_FDCWD, flags: int = _AT_SYMLINK_NOFOLLOW
) -> bytes:
    """All that statx(2) tells, as it tells it: for where it only matters if it is the same."""
    buffer = _StatxBuffer()
    statx = _statx if path else _statx_open
    if statx(dir_fd, path, flags | _STATX_FLAGS, _STATX_MASK, buffer):
        raise _error(path)
    return buffer.raw


def open_cached(path: bytes, follow: bool = False) -> int | None:
    """An O_PATH descriptor of a file, without waiting for anything.

    What the kernel does not have in its cache it would look for in the directory, with the
    lock of that.

    Args:
        path: the file.
        follow: whether it is meant to be what a link leads to.

    Returns:
        None if that is not to be had (openat2(2), RESOLVE_CACHED).

    Raises:
        OSError: as open(2) does.
    """
    how = _CACHED_TARGET if follow else _CACHED
    fd: int = _quick_syscall(_SYS_OPENAT2, _AT_FDCWD, path, how, len(how))
    if fd >= 0:
        return fd
    _pass_over(_error(path))
    return None


def _pass_over(error: OSError) -> None:
    if error.errno not in _NOT_AT_HAND:
        raise error


def packed_stat_cached(path: bytes) -> bytes | None:
    """`packed_stat` without waiting for anything. Otherwise as `open_cached`."""
    fd = open_cached(path)
    if fd is None:
        return None
    try:
        return packed_stat(b"", fd)
    except OSError as error:
        _pass_over(error)
        return None
    finally:
        os.close(fd)


def unpacked(packed: bytes) -> tuple[int, ...]:
    """What `raw_stat` makes of it."""
    return _STATX.unpack_from(packed)


class EnteredError(OSError):
    """A path leads into a file system that must not be entered.

    Attributes:
        ino: inode number of where it is entered: not always the root of it.
        rest: the components that are left.
    """

    def __init__(self, path: bytes, ino: int, rest: list[bytes]) -> None:
        super().__init__(errno.ELOOP, "the path leads into netnsfs itself", path)
        self.ino = ino
        self.rest = rest


def open_path(path: bytes, avoid: Container[int], pid: int) -> int:
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
        EnteredError: the path leads into `avoid`.
        OSError: ELOOP for a path with more than 40 links, else as open(2).
    """
    rest = path.split(b"/")[::-1]
    links = 0
    at = os.open(b"/", _STEP)
    try:
        while rest:
            name = rest.pop()
            if name in (b"", b"."):
                continue
            target = _link_target(name, at)
            if target is None:
                step = os.open(name, _STEP | os.O_NOFOLLOW, dir_fd=at)
            elif fs_type(at) == _PROC_SUPER_MAGIC:
                own = name in (b"self", b"thread-self")
                step = os.open(b"%d" % pid if own else name, _STEP, dir_fd=at)
            else:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                rest.extend(target.split(b"/")[::-1])
                if not target.startswith(b"/"):
                    continue
                step = os.open(b"/", _STEP)
            os.close(at)
            at = step
            found = stat(b"", at)
            if found.dev in avoid:
                left = [name for name in rest[::-1] if name not in (b"", b".")]
                raise EnteredError(path, found.ino, left)
    except BaseException:
        os.close(at)
        raise
    return at


def _link_target(name: bytes, dir_fd: int) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def is_net_namespace(fd: int) -> bool:
    """Whether `fd`, a descriptor of an nsfs file, is of a network namespace (ioctl_nsfs(2))."""
    return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET


def namespace_id(fd: int) -> int | None:
    """The 64-bit ID of the namespace that `fd` designates, or None before Linux 6.18."""
    result = bytearray(8)
    try:
        fcntl.ioctl(fd, _NS_GET_ID, result)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        raise
    return int.from_bytes(result, sys.byteorder)


def netns_cookie() -> int:
    """The unique 64-bit ID of the calling thread's network namespace (Linux 5.14).

    From Linux 6.18 on it is the number that `namespace_id` gives too.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(cookie, sys.byteorder)


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo, proc_pid_mountinfo(5).

    `peers` is the peer group that a shared mount is in, or nothing; `options` are those of the
    superblock.
    """

    id: int
    parent: int
    dev: int
    root: bytes
    target: bytes
    peers: bytes
    fs_type: bytes
    source: bytes
    options: bytes


def mounts(pid: str = "self") -> Iterator[Mount]:
    """The mounts of a process's mount namespace, in the order of its mountinfo.

    Raises:
        OSError: there is no such process, or it is none of ours.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as lines:
        # A name may contain any other line end.
        for line in lines.read().split(b"\n")[:-1]:
            fields = line.split(b" ")
            dash = fields.index(b"-", 6)
            major, _, minor = fields[2].partition(b":")
            yield Mount(
                id=int(fields[0]),
                parent=int(fields[1]),
                dev=int(major) << 32 | int(minor),
                root=_unescape(fields[3]),
                target=_unescape(fields[4]),
                peers=next((f for f in fields[6:dash] if f.startswith(b"shared:")), b""),
                fs_type=fields[dash + 1],
                source=_unescape(fields[dash + 2]),
                options=fields[dash + 3],
            )


def mount_at(path: bytes) -> Mount | None:
    """The mount that one meets at a path, or None if the path is not a mount point.

    The path alone would not tell: mountinfo lists what other mounts hide too. Asks no FUSE
    server.

    Raises:
        OSError: the path cannot be opened.
    """
    fd = os.open(path, _STEP | os.O_NOFOLLOW)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            number = next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id"))
    finally:
        os.close(fd)
    return next((m for m in mounts() if m.id == number and m.target == path), None)


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)
