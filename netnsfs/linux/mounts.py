"""Mounts: made, moved, detached, and read from mountinfo (mount(2), proc_pid_mountinfo(5))."""

import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping
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


def namespace_mounts(task: bytes) -> Iterator[tuple[int, bytes]]:
    """The mounts of network namespace files: inode number and path of each.

    There may be tens of thousands of other mounts.

    Args:
        task: whose mount namespace and root it is about, as in /proc.

    Raises:
        OSError: there is no such task, or the kernel does not let us see.
    """
    with open(b"/proc/%b/mountinfo" % task, "rb") as lines:
        for line in lines:
            # No field has a blank in it, so this can be nothing but the type. Most lines need
            # no further look.
            if b" - nsfs " in line:
                fields = line.split(b" ", 5)
                found = _NET_ROOT.fullmatch(fields[3])
                if found:
                    yield int(found[1]), _unescape(fields[4])


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
