"""The mount point: what is there already, and being the only netnsfs there.

A mount on top of another succeeds silently, so the mount point is looked at first. A netnsfs
whose daemon is dead is detached, one that is alive is refused. What else is there, a file
system or files, is hidden for as long as the mount stands, with a warning if it is not empty.

Several starts may look at the same moment. No lock keeps them apart, because a user who may
open a file may lock it, and so could stop every start. Instead:

1. A start knows its mount before anybody else can see it, and so can tell it from any other.
2. After mounting it looks at the mount below its own. If that is a netnsfs at the same path,
   another start was first: this one detaches its own and looks at the mount point again. Only
   the lowest one serves.
3. A dead netnsfs is detached through a descriptor of that very mount. If another start was
   first, that call fails, and the mount that has taken its place is not touched.
"""

import errno
import logging
import os
import stat
from contextlib import ExitStack, suppress
from typing import NamedTuple

from netnsfs import linux
from netnsfs.config import EXIT_MOUNT, EXIT_SYSTEM, EXIT_USAGE, Failure
from netnsfs.jobs import start_thread

FS_TYPE = b"fuse.netnsfs"
PROBE_SECONDS = 2.0
CHECK_SECONDS = 10.0
_MAX_LINKS = 40
_MAX_SHOWN = 5
# Of a start, where others withdraw from the same mount point.
_MAX_TRIES = 10
_HINTS = {
    errno.EPERM: ": give the container CAP_SYS_ADMIN, or a user namespace a mount namespace of "
    "its own (unshare -m)",
    # What a security module says.
    errno.EACCES: ": AppArmor or SELinux refuses it: run the container with "
    "--security-opt=apparmor=unconfined",
}

log = logging.getLogger(__name__)


class AlreadyMounted(Failure):
    """A netnsfs that is alive is mounted there."""


class Identity(NamedTuple):
    """What distinguishes a mount from any other: device numbers alone are reused at once.

    Before Linux 6.8, the ID of a mount is reused as well: see `is_still`.
    """

    dev: int
    mount: int


def require_fuse() -> None:
    """Check that this machine, and this user, can mount netnsfs at all.

    Raises:
        Failure: it says why not.
    """
    if os.geteuid() != 0:
        raise Failure(
            "only root can mount netnsfs: use sudo, or netnsfs --rootless", EXIT_USAGE
        )
    if not os.path.exists("/proc/self"):
        raise Failure("there is no /proc: mount -t proc proc /proc", EXIT_SYSTEM)
    if not os.path.exists("/proc/self/ns/net"):
        raise Failure("this kernel has no network namespaces (CONFIG_NET_NS)", EXIT_SYSTEM)
    _require_calls()
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise Failure(
                "there is no /dev/fuse: load the module (modprobe fuse), or give the "
                "container the device",
                EXIT_SYSTEM,
            ) from None
        # EPERM is what the device rules of a container say.
        hint = "give the container the device" if error.errno == errno.EPERM else "see its mode"
        message = f"cannot open /dev/fuse: {error.strerror}: {hint}"
        raise Failure(message, EXIT_USAGE) from None


def _require_calls() -> None:
    missing = linux.find_missing_call()
    if missing:
        call, version = missing
        message = f"the kernel does not know {call}, which Linux {version} and newer have"
        raise Failure(message, EXIT_SYSTEM)


def require_served(mount_point: bytes) -> None:
    """Check that a netnsfs is mounted, and answers.

    Raises:
        Failure: it says what is there instead.
    """
    shown = os.fsdecode(mount_point)
    try:
        mount_point = _follow_links(mount_point)
        with linux.closing_fd(open_mount_point(mount_point)) as fd:
            top = _mount_of(fd)
            if top is None or top.target != mount_point or top.fs_type != FS_TYPE:
                raise Failure(f"no netnsfs is mounted at {shown}", EXIT_MOUNT)
            alive = _ask(fd, CHECK_SECONDS)
    except FileNotFoundError:
        raise Failure(
            f"no netnsfs is mounted at {shown}: it does not exist", EXIT_MOUNT
        ) from None
    except OSError as error:
        raise Failure(f"cannot look at {shown}: {error.strerror}", EXIT_MOUNT) from None
    if alive is None:
        raise Failure(f"the netnsfs at {shown} does not answer", EXIT_MOUNT)
    if not alive:
        message = f"the daemon of the netnsfs at {shown} has ended: start it again"
        raise Failure(message, EXIT_MOUNT)


def clear(mount_point: bytes) -> bytes:
    """Make the mount point if it is missing, and take a dead netnsfs away from it.

    Returns:
        Its path without symbolic links.

    Raises:
        Failure: a netnsfs that is alive, or what is no directory, is in the way.
    """
    shown = os.fsdecode(mount_point)
    try:
        mount_point = _follow_links(mount_point)
        while _detach_dead(mount_point):
            pass
        _ensure_directory(mount_point)
    except FileExistsError:
        raise Failure(f"{shown} is not a directory", EXIT_MOUNT) from None
    except OSError as error:
        raise Failure(f"cannot use {shown}: {error.strerror}", EXIT_MOUNT) from None
    _warn_of_hidden(mount_point)
    return mount_point


def _ensure_directory(mount_point: bytes) -> None:
    try:
        fd = open_mount_point(mount_point)
    except FileNotFoundError:
        os.makedirs(mount_point, exist_ok=True)
        return
    with linux.closing_fd(fd):
        if not stat.S_ISDIR(linux.statx(b"", fd).mode):
            raise FileExistsError


def _warn_of_hidden(mount_point: bytes) -> None:
    found: list[bytes] = []

    def look() -> None:
        with suppress(OSError), linux.closing_fd(open_mount_point(mount_point)) as fd:
            top = _mount_of(fd)
            # A look at what mounts on demand would mount it.
            if top is None or top.fs_type != b"autofs":
                found.extend(sorted(os.listdir(mount_point)))

    # It may be a file system that does not answer.
    start_thread(look, "netnsfs-probe").join(PROBE_SECONDS)
    if found:
        shown = ", ".join(os.fsdecode(name) for name in found[:_MAX_SHOWN])
        more = ", ..." if len(found) > _MAX_SHOWN else ""
        place = os.fsdecode(mount_point)
        log.warning("%s is not empty: the mount hides %s%s", place, shown, more)


def _follow_links(path: bytes) -> bytes:
    # Only the last component, by readlink(2): it asks no FUSE server, dead or alive.
    for _ in range(_MAX_LINKS):
        try:
            target = os.readlink(path)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return path
            raise
        path = os.path.join(os.path.realpath(os.path.dirname(path)), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _detach_dead(mount_point: bytes) -> bool:
    """Detach a netnsfs without a daemon. One that is alive is a Failure.

    Returns:
        Whether to look again.
    """
    try:
        fd = open_mount_point(mount_point)
    except (FileNotFoundError, NotADirectoryError):
        return False
    with linux.closing_fd(fd):
        top = _mount_of(fd)
        if top is None or top.target != mount_point or top.fs_type != FS_TYPE:
            return False
        _require_dead(top, fd)
        if linux.detach(fd):
            shown = os.fsdecode(mount_point)
            log.warning("detaching the netnsfs at %s, whose daemon is dead", shown)
        elif _mount_of(fd):
            # A mount from outside of this user namespace may not be detached alone.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return True


def _mount_of(fd: int) -> linux.Mount | None:
    """The mount that a file is on, None if it has been detached."""
    return linux.mount_with_id(linux.mount_number(fd))


def _require_dead(top: linux.Mount, fd: int) -> None:
    if _answers(fd):
        shown = os.fsdecode(top.target)
        raise AlreadyMounted(f"a netnsfs is already mounted at {shown}", EXIT_MOUNT)


def _answers(fd: int) -> bool:
    """Whether a daemon serves the mount. One that is too slow to answer does."""
    return _ask(fd, PROBE_SECONDS) is not False


def _ask(fd: int, seconds: float) -> bool | None:
    """Whether a daemon serves the mount; None if there is no answer in time."""
    answer = None

    def probe() -> None:
        nonlocal answer
        try:
            # Unlike stat(2), never answered from the kernel's cache.
            os.fstatvfs(fd)
        except OSError as error:
            answer = error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
        else:
            answer = True

    start_thread(probe, "netnsfs-probe").join(seconds)
    return answer


def open_mount_point(mount_point: bytes) -> int:
    """An O_PATH descriptor of what is mounted there now. Asks no file system.

    Raises:
        OSError: as open(2) does.
    """
    return os.open(mount_point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def identity_of(fd: int) -> Identity:
    """The identity of the mount that an open file is on."""
    found = linux.statx(b"", fd)
    return Identity(found.dev, found.mount)


def is_still(fd: int, ours: Identity, connected: bool) -> bool:
    """Whether the mount that an open file is on is ours.

    Args:
        fd: a descriptor of the mount's root, opened with O_PATH.
        ours: what our mount was.
        connected: whether our connection to the kernel stands. As long as it does, so does our
            file system, and nothing else has its device number.
    """
    if identity_of(fd) != ours:
        return False
    if connected or ours.mount >= linux.FIRST_UNIQUE_MOUNT:
        return True
    # Ours is dead. Whatever has followed it may have got its numbers.
    top = _mount_of(fd)
    return top is not None and top.fs_type == FS_TYPE and not _answers(fd)


def attach(mount: int, mount_point: bytes) -> Identity | None:
    """Mount an open mount that is mounted nowhere.

    Returns:
        Its identity, or None if another start was first and it is detached again.

    Raises:
        Failure: it cannot be mounted there.
    """
    ours = identity_of(mount)
    with ExitStack() as undo:
        # Harmless if it is mounted nowhere: then there is nothing to detach.
        undo.callback(linux.detach, mount)
        _move_to(mount, mount_point)
        if not _is_lowest(mount):
            return None
        undo.pop_all()
    return ours


def _move_to(mount: int, mount_point: bytes) -> None:
    for tries_left in reversed(range(_MAX_TRIES)):
        try:
            with linux.closing_fd(open_mount_point(mount_point)) as target:
                linux.move_mount(mount, target)
            return
        except OSError as error:
            # ENOENT: what another start had mounted there may be gone by now.
            if error.errno != errno.ENOENT or not tries_left:
                raise cannot_mount(error) from None


def cannot_mount(error: OSError) -> Failure:
    """The end of a start whose mount is refused by the kernel."""
    hint = _HINTS.get(error.errno or 0, "")
    return Failure(f"cannot mount: {error.strerror}{hint}", EXIT_MOUNT)


def _is_lowest(mount: int) -> bool:
    """Whether an open mount is mounted, and not on another netnsfs at the same path."""
    by_number = {found.id: found for found in linux.mounts()}
    ours = by_number.get(linux.mount_number(mount))
    # Detached together with a lower one that has withdrawn, or by somebody's umount(8).
    if ours is None:
        return False
    below = by_number.get(ours.parent)
    return below is None or below.fs_type != FS_TYPE or below.target != ours.target
