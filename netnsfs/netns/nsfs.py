"""Namespace files: what the file system nsfs shows of network namespaces (namespaces(7)).

Such a file is met at /proc/PID/ns/net and where one is bind-mounted. Opening it opens the
namespace; while it is open, its inode number is not given again.
"""

import errno
import os
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import on_own_thread, restoring_namespace

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_OWN = b"/proc/thread-self/ns/net"


class Namespace(NamedTuple):
    """A network namespace at one moment.

    Attributes:
        inode: number of its nsfs inode, which the kernel gives to the next namespace as
            soon as this one is gone.
        id: its 64-bit ID, never given again until reboot.
        atime_ns, mtime_ns, ctime_ns: times of the nsfs inode, nanoseconds since the epoch.
    """

    inode: int
    id: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


def namespace_of(fd: int) -> Namespace:
    """The network namespace that a descriptor of its nsfs file designates.

    Raises:
        OSError: EINVAL if it is not of a network namespace.
    """
    # The device first: to anything else, that ioctl(2) could mean something.
    if not is_of_nsfs(fd) or not linux.is_net_namespace(fd):
        raise OSError(errno.EINVAL, "not a network namespace")
    return _describe(fd)


def open_own_namespace() -> tuple[int, Namespace]:
    """The network namespace that the calling thread is in.

    Returns:
        A descriptor of it that the caller closes, and what it is.
    """
    fd = os.open(_OWN, _OPEN)
    try:
        return fd, _describe(fd)
    except BaseException:
        os.close(fd)
        raise


def _describe(fd: int) -> Namespace:
    found = os.fstat(fd)
    ns_id = linux.namespace_id(fd)
    # Before Linux 6.18, only a socket inside tells it (SO_NETNS_COOKIE).
    if ns_id is None:
        ns_id = on_own_thread(_cookie_of, fd)
    return Namespace(
        found.st_ino, ns_id, found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
    )


def _cookie_of(fd: int) -> int:
    with restoring_namespace():
        linux.setns(fd, linux.CLONE_NEWNET)
        return linux.netns_cookie()


def nsfs_device() -> int:
    """The device number that all namespace files have."""
    # All are on one file system, which the kernel mounts at boot: asked once.
    global _nsfs_device
    if not _nsfs_device:
        fd = os.open(_OWN, os.O_PATH | os.O_CLOEXEC)
        _nsfs_device = linux.statx(b"", fd).dev
        os.close(fd)
    return _nsfs_device


_nsfs_device = 0


def is_of_nsfs(fd: int) -> bool:
    """Whether a descriptor, which may be O_PATH, is of a namespace's file."""
    return linux.statx(b"", fd).dev == nsfs_device()


def number_in(link: bytes) -> int:
    """The inode number in the text of a link in /proc/PID/ns (namespaces(7)).

    Args:
        link: such as `net:[4026532268]` or `mnt:[4026531832]`. mountinfo shows the same text as
            the root of a mount of a namespace file.
    """
    return int(link[len(b"net:[") : -1])


def reopen(path_fd: int) -> int:
    """Open for reading what an O_PATH descriptor designates, if it is a namespace's file.

    Opening anything else could have effects, or never end.

    Raises:
        OSError: EINVAL if it is not on nsfs.
    """
    if not is_of_nsfs(path_fd):
        raise OSError(errno.EINVAL, "not a network namespace")
    # An O_PATH descriptor cannot be read, nor be given to setns(2). This opens the very file
    # that it designates: no path is walked, so it cannot be another by now.
    return os.open(f"/proc/self/fd/{path_fd}", _OPEN)
