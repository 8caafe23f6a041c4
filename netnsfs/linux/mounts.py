"""Mounts: made, moved, detached, and read from mountinfo (mount(2), proc_pid_mountinfo(5))."""

import ctypes
import errno
import fcntl
import math
import os
import re
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from netnsfs.linux.files import _OPATH_NOFOLLOW
from netnsfs.linux.library import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    closing_fd,
    error_of_call,
    libc,
    syscall,
)

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
FIRST_UNIQUE_MOUNT = 1 << 31
"""Mount IDs from here on are never given again (Linux 6.8, fs/namespace.c), and ascend."""
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
MOUNT_ATTR_NOATIME = 0x10
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# The same numbers on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_FSPICK = 433
_SYS_MOUNT_SETATTR = 442
# FSPICK_CLOEXEC | FSPICK_SYMLINK_NOFOLLOW | FSPICK_NO_AUTOMOUNT
_FSPICK_FLAGS = 1 | 2 | 4
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_OPEN_TREE_CLONE = 1
# MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
_MOVE_MOUNT_FLAGS = 4 | 0x40
# Of a detachment, where others detach what is on top.
_MAX_TRIES = 20
_MOUNTINFO_READ = 1 << 18
# linux/nsfs.h
_NS_GET_MNTNS_ID = 0x8008B705
# linux/mount.h: struct mnt_id_req, and what is used of struct statmount.
_SYS_STATMOUNT = 457
_SYS_LISTMOUNT = 458
_MOUNT_REQUEST = struct.Struct("=I4xQQQ")
_LSMT_ROOT = 2**64 - 1
_MOUNTS_AT_ONCE = 1024
_STATMOUNT_SB_BASIC = 1
_STATMOUNT_MNT_ROOT = 8
_STATMOUNT_MNT_POINT = 0x10
_STATMOUNT_MAGIC = struct.Struct("=Q")
_STATMOUNT_MAGIC_AT = 24
_STATMOUNT_NAMES = struct.Struct("=II")
_STATMOUNT_NAMES_AT = 104
_STATMOUNT_TEXTS = 512
# With two paths of PATH_MAX.
_STATMOUNT_SIZE = _STATMOUNT_TEXTS + 2 * 4096
_STATMOUNT_LENGTH = ctypes.c_size_t(_STATMOUNT_SIZE)
_NO_FLAGS = ctypes.c_uint(0)
_NSFS_MAGIC = 0x6E736673
# What mountinfo shows as the root of a mount of a namespace's file.
_NET_ROOT = re.compile(rb"net:\[(\d+)\]")
# struct mount_attr: set, clear, propagation, user namespace.
_MAKE_PRIVATE = struct.pack("=QQQQ", 0, 0, MS_PRIVATE, 0)
_MAKE_WRITABLE = struct.pack("=QQQQ", 0, MOUNT_ATTR_RDONLY, 0, 0)


def mount(source: bytes | None, target: bytes, flags: int) -> None:
    """mount(2) of a bind mount or a change of propagation."""
    if libc.mount(source, target, b"none", flags, None):
        raise error_of_call(target)


def new_mount(kind: bytes, options: Mapping[bytes, bytes | None], attributes: int) -> int:
    """A mount of a new file system, yet to be mounted anywhere (fsopen(2), Linux 5.2).

    Args:
        kind: type of the file system.
        options: of the file system; None for an option without a value.
        attributes: of the mount, MOUNT_ATTR_* (fsmount(2)).

    Returns:
        A descriptor of the mount, which ends with it if `move_mount` has not been called.
    """
    with closing_fd(syscall(None, _SYS_FSOPEN, kind, _FSOPEN_CLOEXEC)) as context:
        for name, value in options.items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            syscall(None, _SYS_FSCONFIG, context, command, name, value, 0)
        syscall(None, _SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(None, _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)


def bind_mount(source: int) -> int:
    """A bind mount of an open file, yet to be mounted anywhere (open_tree(2), Linux 5.2).

    Args:
        source: a descriptor of the file.

    Returns:
        A descriptor of the mount, which ends with it if `move_mount` has not been called.
    """
    flags = AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC
    return syscall(None, _SYS_OPEN_TREE, source, b"", flags)


def open_tree(path: bytes) -> int:
    """Clone the mount at a path, without what is mounted below (open_tree(2), Linux 5.2).

    Returns:
        A descriptor of the clone, which lives as long as it is open.
    """
    return syscall(path, _SYS_OPEN_TREE, AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)


def make_private(mount: int) -> None:
    """Make an open mount, which is mounted nowhere, private (mount_setattr(2), Linux 5.12).

    A clone of a shared mount is its peer: whatever is mounted on the one later is mounted on
    the other too.
    """
    private = _MAKE_PRIVATE, len(_MAKE_PRIVATE)
    syscall(None, _SYS_MOUNT_SETATTR, mount, b"", AT_EMPTY_PATH, *private)


def make_writable(mount: int) -> None:
    """Take the read-only flag from an open mount that is mounted nowhere."""
    writable = _MAKE_WRITABLE, len(_MAKE_WRITABLE)
    syscall(None, _SYS_MOUNT_SETATTR, mount, b"", AT_EMPTY_PATH, *writable)


def move_mount(mount: int, target: int) -> None:
    """Mount an open mount on an open file: no path is walked (move_mount(2), Linux 5.2)."""
    syscall(None, _SYS_MOVE_MOUNT, mount, b"", target, b"", _MOVE_MOUNT_FLAGS)


def umount(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if libc.umount2(target, flags):
        raise error_of_call(target)


def detach(fd: int) -> bool:
    """Detach the mount whose root is open, with everything that is mounted on it.

    Returns:
        False if it was detached already, or may not be (umount2(2), EINVAL).
    """
    detached = False
    tries_left = _MAX_TRIES
    # The path leads to what is mounted on top, if anything is: the first calls take that.
    while True:
        try:
            # Without MNT_DETACH, one open file of the mount makes it EBUSY. With
            # UMOUNT_NOFOLLOW, the link in /proc would be EINVAL.
            umount(b"/proc/self/fd/%d" % fd, MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # EINVAL is also what was on top if somebody else has just detached it.
            if not tries_left or mount_with_id(mount_number(fd)) is None:
                return detached
            tries_left -= 1
        else:
            detached = True


def forget_unused(target: bytes) -> None:
    """Have the kernel forget what it keeps of a mounted file system and nobody uses.

    Any reconfiguration does it first, and this one changes nothing (reconfigure_super(),
    fs/super.c).
    """
    picked = syscall(target, _SYS_FSPICK, AT_FDCWD, target, _FSPICK_FLAGS)
    try:
        syscall(target, _SYS_FSCONFIG, picked, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    finally:
        os.close(picked)


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
        OSError: there is no such process, or the kernel does not let us see.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as lines:
        yield from map(_mount_of_line, lines)


def mount_with_id(number: int) -> Mount | None:
    """The mount with an ID of mountinfo, or None if this mount namespace has none such."""
    start = b"%d " % number
    with open("/proc/self/mountinfo", "rb") as lines:
        return next((_mount_of_line(line) for line in lines if line.startswith(start)), None)


def _mount_of_line(line: bytes) -> Mount:
    # A path may have any byte but these escaped ones: blank, tab, newline, backslash, #
    # (fs/proc_namespace.c). So a split at all white space would be wrong.
    fields = line.rstrip(b"\n").split(b" ")
    # Any number of optional fields ends with this mark.
    dash = fields.index(b"-", 6)
    major, _, minor = fields[2].partition(b":")
    return Mount(
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


def namespace_mounts(task: bytes, deadline: float = math.inf) -> Iterator[tuple[int, bytes]]:
    """The mounts of network namespace files: inode number and path of each, from mountinfo.

    There may be tens of thousands of other mounts.

    Args:
        task: whose mount namespace and root it is about, as in /proc.
        deadline: when to stop (time.monotonic).

    Raises:
        OSError: there is no such task, or the kernel does not let us see; TimeoutError at the
            deadline.
    """
    rest = b""
    path = b"/proc/%b/mountinfo" % task
    with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        while part := os.read(fd, _MOUNTINFO_READ):
            # No field has a blank in it, so this can be nothing but the type. Most parts need
            # no further look.
            lines, _, rest = (rest + part).rpartition(b"\n")
            if b" - nsfs " in lines:
                yield from _namespaces_in(lines)
            check_deadline(deadline)


def _namespaces_in(lines: bytes) -> Iterator[tuple[int, bytes]]:
    for line in lines.split(b"\n"):
        if b" - nsfs " in line:
            fields = line.split(b" ", 5)
            found = _NET_ROOT.fullmatch(fields[3])
            if found:
                yield int(found[1]), _unescape(fields[4])


def check_deadline(deadline: float) -> None:
    """Stop a look at mounts in time.

    Args:
        deadline: when (time.monotonic).

    Raises:
        TimeoutError: now.
    """
    if time.monotonic() > deadline:
        raise TimeoutError(errno.ETIMEDOUT, "there are too many mounts")


def mount_namespace_id(task: int) -> int:
    """The 64-bit ID of the mount namespace that a task is in (ioctl_nsfs(2), Linux 6.11).

    Raises:
        OSError: there is no such task, the kernel does not let us see, or is older: ENOTTY.
    """
    path = b"/proc/%d/ns/mnt" % task
    with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        number = fcntl.ioctl(fd, _NS_GET_MNTNS_ID, bytes(8))
    return int.from_bytes(number, sys.byteorder)


def namespace_mounts_in(
    mount_namespace: int, numbers: Iterable[int] = (), deadline: float = math.inf
) -> Iterator[tuple[int, bytes]]:
    """As `namespace_mounts`, without a text of each mount (listmount(2), statmount(2)).

    Args:
        mount_namespace: its ID. Paths begin at its root.
        numbers: the IDs of the mounts that are looked at; none for all.
        deadline: when to stop (time.monotonic).

    Raises:
        OSError: the kernel does not let us see, or is older than Linux 6.11: ENOSYS, EINVAL;
            TimeoutError at the deadline.
    """
    buffer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
    for number in numbers or _list_mounts(mount_namespace):
        check_deadline(deadline)
        # Most have no path or root to be made, which may be long.
        magic = _statmount(mount_namespace, number, _STATMOUNT_SB_BASIC, buffer)
        if magic == _NSFS_MAGIC:
            wanted = _STATMOUNT_MNT_ROOT | _STATMOUNT_MNT_POINT
            if _statmount(mount_namespace, number, wanted, buffer) is not None:
                yield from _namespace_at(buffer.raw)


def _list_mounts(mount_namespace: int) -> Iterator[int]:
    numbers = (ctypes.c_uint64 * _MOUNTS_AT_ONCE)()
    last = 0
    while True:
        request = _MOUNT_REQUEST.pack(_MOUNT_REQUEST.size, _LSMT_ROOT, last, mount_namespace)
        count = syscall(
            None, _SYS_LISTMOUNT, request, ctypes.addressof(numbers), len(numbers), 0
        )
        yield from numbers[:count]
        if count < len(numbers):
            return
        last = numbers[count - 1]


def _statmount(
    mount_namespace: int, number: int, wanted: int, buffer: ctypes.Array[ctypes.c_char]
) -> int | None:
    """Ask about a mount. Returns the magic number, or None if it is not there any more."""
    request = _MOUNT_REQUEST.pack(_MOUNT_REQUEST.size, number, wanted, mount_namespace)
    if libc.syscall(_SYS_STATMOUNT, request, buffer, _STATMOUNT_LENGTH, _NO_FLAGS):
        error = error_of_call()
        # Gone, or with a path that is longer than any that could be opened.
        if error.errno in (errno.ENOENT, errno.EOVERFLOW):
            return None
        raise error
    magic: int = _STATMOUNT_MAGIC.unpack_from(buffer, _STATMOUNT_MAGIC_AT)[0]
    return magic


def _namespace_at(answer: bytes) -> Iterator[tuple[int, bytes]]:
    root, target = (
        answer[_STATMOUNT_TEXTS + start :].partition(b"\0")[0]
        for start in _STATMOUNT_NAMES.unpack_from(answer, _STATMOUNT_NAMES_AT)
    )
    found = _NET_ROOT.fullmatch(root)
    if found:
        yield int(found[1]), target


def mount_at(path: bytes) -> Mount | None:
    """The topmost mount at a path, or None if the path is not a mount point.

    mountinfo lists hidden mounts too, so the path alone does not tell which one is on top. No
    FUSE server is asked.

    Raises:
        OSError: the path cannot be opened.
    """
    with closing_fd(os.open(path, _OPATH_NOFOLLOW | os.O_NOFOLLOW)) as fd:
        # The ID of statx(2) may be the unique one, which mountinfo does not show.
        found = mount_with_id(mount_number(fd))
    return found if found and found.target == path else None


def mount_number(fd: int) -> int:
    """The ID in mountinfo of the mount that an open file is on (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id"))


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)
