"""What the kernel must have, found out by calls that change nothing."""

import errno
import os
from collections.abc import Callable

from netnsfs.linux.library import AT_EMPTY_PATH, closing_fd, syscall
from netnsfs.linux.mounts import _SYS_MOUNT_SETATTR, _SYS_MOVE_MOUNT, _SYS_OPEN_TREE
from netnsfs.linux.namespaces import namespace_id, netns_cookie

# ENOPROTOOPT: of getsockopt(2). All other errors come from a call that is there.
_UNKNOWN = (errno.ENOSYS, errno.ENOPROTOOPT)
_NO_FILE = -1
_ATTRIBUTES_SIZE = 32


def _ask_for_id() -> None:
    with closing_fd(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        if namespace_id(fd) is None:
            netns_cookie()


def _ask_for_attributes() -> None:
    attributes = bytes(_ATTRIBUTES_SIZE), _ATTRIBUTES_SIZE
    syscall(None, _SYS_MOUNT_SETATTR, _NO_FILE, b"", AT_EMPTY_PATH, *attributes)


def _ask_for_moves() -> None:
    syscall(None, _SYS_MOVE_MOUNT, _NO_FILE, b"", _NO_FILE, b"", 0)


def _ask_for_clones() -> None:
    syscall(None, _SYS_OPEN_TREE, _NO_FILE, b"", AT_EMPTY_PATH)


# Newest first: what has the first of them has all.
_NEEDED: tuple[tuple[str, str, Callable[[], None]], ...] = (
    ("SO_NETNS_COOKIE of socket(7)", "5.14", _ask_for_id),
    ("mount_setattr(2)", "5.12", _ask_for_attributes),
    ("move_mount(2)", "5.2", _ask_for_moves),
    ("open_tree(2)", "5.2", _ask_for_clones),
)


def find_missing_call() -> tuple[str, str] | None:
    """The newest needed call that this kernel, or a filter of system calls, does not know.

    Returns:
        The call, and the first version of Linux that has it. None if nothing is missing.
    """
    for call, version, ask in _NEEDED:
        try:
            ask()
        except OSError as error:
            if error.errno in _UNKNOWN:
                return call, version
    return None
