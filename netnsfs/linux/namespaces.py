"""Namespaces: to enter them, and to distinguish them (namespaces(7), ioctl_nsfs(2))."""

import errno
import fcntl
import os
import socket
import struct
import sys

from netnsfs.linux.library import error_of_call, libc

CLONE_NEWNET = 0x40000000
# linux/nsfs.h
_NS_GET_USERNS = 0xB701
_NS_GET_NSTYPE = 0xB703
_NS_GET_ID = 0x8008B70D
# asm-generic/socket.h
_SO_NETNS_COOKIE = 71
# PROC_PID_INIT_INO, linux/proc_ns.h
_INITIAL_PID_NAMESPACE = f"pid:[{0xEFFFFFFC}]"
# struct file_handle, with struct nsfs_file_handle (linux/nsfs.h) in it.
_HANDLE = struct.Struct("=IiQII")
_NSFS_HANDLE_SIZE = 16
_FILEID_NSFS = 0xF1
# linux/fcntl.h
_FD_NSFS_ROOT = -10003


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread alone."""
    if libc.unshare(flags):
        raise error_of_call()


def setns(fd: int, nstype: int) -> None:
    """setns(2), for the calling thread alone."""
    if libc.setns(fd, nstype):
        raise error_of_call()


def is_net_namespace(fd: int) -> bool:
    """Whether `fd`, a descriptor of an nsfs file, is of a network namespace (ioctl_nsfs(2))."""
    return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET


def is_owned_here(fd: int) -> bool:
    """Whether a namespace belongs to this process's user namespace, or to one below it.

    Args:
        fd: a descriptor of its nsfs file (ioctl_nsfs(2), NS_GET_USERNS).
    """
    try:
        os.close(fcntl.ioctl(fd, _NS_GET_USERNS))
    except PermissionError:
        return False
    return True


def namespace_id(fd: int) -> int | None:
    """The 64-bit ID of the namespace that `fd` designates, or None before Linux 6.18."""
    result = bytearray(8)
    try:
        fcntl.ioctl(fd, _NS_GET_ID, result)
    except OSError as error:
        # An older kernel does not know this ioctl(2).
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


def open_namespace_by_id(number: int, inode: int) -> int:
    """Open a network namespace by its 64-bit ID and its inode number (Linux 6.18).

    Returns:
        A descriptor that the caller closes.

    Raises:
        OSError: as open_by_handle_at(2), which does it for nsfs (fs/nsfs.c).
    """
    handle = _HANDLE.pack(_NSFS_HANDLE_SIZE, _FILEID_NSFS, number, CLONE_NEWNET, inode)
    fd: int = libc.open_by_handle_at(_FD_NSFS_ROOT, handle, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise error_of_call()
    return fd


def in_initial_user_namespace() -> bool:
    """Whether this process is in the user namespace that the machine started with."""
    with open("/proc/self/uid_map", "rb") as lines:
        # The one mapping of the initial namespace: every ID to itself (user_namespaces(7)).
        return lines.read().split() == [b"0", b"0", b"4294967295"]


def in_initial_pid_namespace() -> bool:
    """Whether this process is in the PID namespace that the machine started with."""
    return os.readlink("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE
