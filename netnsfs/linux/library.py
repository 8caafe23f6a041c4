"""How system calls are made that Python's os module does not have.

Every call here and in the modules beside it is thin and blocking, and raises OSError with the
kernel's errno and the path concerned.
"""

import ctypes
import errno
import os

RESOURCE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Errors that say nothing of a call's object: this process or the machine lacks something."""
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
libc.unshare.argtypes = (ctypes.c_int,)
libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
# Once or more in each request: without argtypes, whose checks take as long as the call. PyDLL
# keeps the interpreter lock, for what waits for nothing: statx of an open file takes a
# microsecond, and giving the lock away and fetching it back takes as long again.
quick_libc = ctypes.PyDLL(None, use_errno=True)


def reraise_if_resource(error: OSError) -> None:
    """Leave out what cannot be looked at, unless that is not its own fault.

    Raises:
        OSError: the error, if this process or the machine is short of something.
    """
    if error.errno in RESOURCE_ERRNOS:
        raise error


def error_of_call(path: bytes | None = None) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)


def syscall(path: bytes | None, number: int, *arguments: int | bytes | None) -> int:
    # The C library cannot know their types; those that are of 64 bits must be all there.
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result: int = libc.syscall(number, *words)
    if result < 0:
        raise error_of_call(path)
    return result


class closing_fd:
    """Close a descriptor when the block ends.

    Args:
        fd: the descriptor, which the block gets.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *failure: object) -> None:
        os.close(self._fd)
