"""What is at the mount point already: nothing, a dead netnsfs, or what must not be covered."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netnsfs import linux
from netnsfs.config import EXIT_MOUNT, EXIT_SYSTEM, EXIT_USAGE, Failure
from netnsfs.jobs import start_thread

FS_TYPE = b"fuse.netnsfs"
PROBE_SECONDS = 2.0
LOCK_SECONDS = 10.0
_MOST_LINKS = 40
log = logging.getLogger(__name__)


class AlreadyMounted(Failure):
    """A netnsfs that is alive is mounted there."""


def check_machine() -> None:
    """Check that this machine, and this user, can mount netnsfs at all.

    Raises:
        Failure: it says why not.
    """
    if os.geteuid() != 0:
        raise Failure(
            "only root can mount netnsfs: use sudo, or unshare -Urnm and -o rundir=", EXIT_USAGE
        )
    if not os.path.exists("/proc/self/ns/net"):
        raise Failure("this kernel has no network namespaces (CONFIG_NET_NS)", EXIT_SYSTEM)
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise Failure(
                "there is no /dev/fuse: load the module (modprobe fuse), or give the "
                "container the device",
                EXIT_SYSTEM,
            ) from None
        raise Failure(f"cannot open /dev/fuse: {error.strerror}", EXIT_USAGE) from None


def clear(mount_point: bytes) -> bytes:
    """Make the mount point if it is missing, and take a dead netnsfs away from it.

    Returns:
        Its path without symbolic links.

    Raises:
        Failure: something else is in the way.
    """
    shown = os.fsdecode(mount_point)
    try:
        mount_point = _resolved(mount_point)
        while _is_dead(mount_point):
            log.warning("detaching the netnsfs at %s, whose daemon is dead", shown)
            linux.umount(mount_point, linux.MNT_DETACH)
        os.makedirs(mount_point, exist_ok=True)
    except FileExistsError:
        raise Failure(f"{shown} is not a directory", EXIT_MOUNT) from None
    except OSError as error:
        raise Failure(f"cannot use {shown}: {error.strerror}", EXIT_MOUNT) from None
    return mount_point


def _resolved(path: bytes) -> bytes:
    # Only the last component, by readlink(2): it asks no FUSE server, dead or alive.
    for _ in range(_MOST_LINKS):
        try:
            target = os.readlink(path)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return path
            raise
        path = os.path.join(os.path.realpath(os.path.dirname(path)), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_dead(mount_point: bytes) -> bool:
    """Whether a netnsfs without a daemon is mounted there. Anything alive is a Failure."""
    top = mounted_at(mount_point)
    # What mounts on demand is what we are to be mounted on.
    if top is None or top.fs_type == b"autofs":
        return False
    shown = os.fsdecode(mount_point)
    if top.fs_type != FS_TYPE:
        kind = os.fsdecode(top.fs_type)
        message = f"{shown} is busy: a file system of type {kind} is mounted there"
        raise Failure(message, EXIT_MOUNT)
    if _answers(mount_point):
        raise AlreadyMounted(f"a netnsfs is already mounted at {shown}", EXIT_MOUNT)
    return True


@contextmanager
def only_one_start(mount_point: bytes) -> Iterator[Callable[[], None]]:
    """Keep others from mounting at the same place at the same moment.

    Yields:
        What ends it before the block does.

    Raises:
        Failure: somebody keeps it locked.
    """
    fd = _existing_parent(mount_point)
    try:
        try:
            linux.lock(fd, LOCK_SECONDS)
        except TimeoutError:
            message = f"another start at {os.fsdecode(mount_point)} does not end"
            raise Failure(message, EXIT_MOUNT) from None
        yield lambda: fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _existing_parent(path: bytes) -> int:
    while True:
        path = os.path.dirname(path)
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            if path == b"/":
                raise


def mounted_at(mount_point: bytes) -> linux.Mount | None:
    try:
        return linux.mount_at(mount_point)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _answers(mount_point: bytes) -> bool:
    """Whether a daemon serves the mount. One that is too slow to tell does."""
    dead = False

    def probe() -> None:
        nonlocal dead
        try:
            # Unlike stat(2), never answered from the kernel's cache.
            os.statvfs(mount_point)
        except OSError as error:
            dead = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)

    start_thread(probe, "netnsfs-probe").join(PROBE_SECONDS)
    return not dead
