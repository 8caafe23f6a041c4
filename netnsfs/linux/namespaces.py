"""Namespaces: entered, and told apart (namespaces(7), ioctl_nsfs(2))."""

import errno
import fcntl
import os
import socket
import sys

from netnsfs.linux.library import error_of_call, libc, syscall

CLONE_NEWNET = 0x40000000
# linux/nsfs.h
_NS_GET_NSTYPE = 0xB703
_NS_GET_ID = 0x8008B70D
# asm-generic/socket.h
_SO_NETNS_COOKIE = 71
# linux/sockios.h
_SIOCGSKNS = 0x894C
_SYS_PIDFD_GETFD = 438


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
        copy = syscall(None, _SYS_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    try:
        return fcntl.ioctl(copy, _SIOCGSKNS)
    finally:
        os.close(copy)


def in_initial_user_namespace() -> bool:
    """Whether this process is in the user namespace that the machine started with."""
    with open("/proc/self/uid_map") as lines:
        return lines.read().split() == ["0", "0", "4294967295"]
