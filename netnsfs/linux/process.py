"""Capabilities (capabilities(7)), and the memory and signals of this process."""

import ctypes
import errno
import os
import struct

from netnsfs.linux.library import error_of_call, libc, quick_libc

CAP_SYSLOG = 34
_CAPABILITY_VERSION_3 = 0x20080522
# struct __user_cap_header_struct, and twice __user_cap_data_struct: effective, permitted,
# inheritable; first of the capabilities 0 to 31, then of the others.
_CAPABILITY_HEADER = struct.Struct("=Ii")
_CAPABILITIES = struct.Struct("=6I")
# kcmp(2) has another number on each architecture. Without one, the tables count as shared.
_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_KCMP_FILE = 0
_KCMP_FILES = 2
_PR_SET_NAME = 15
# Not every C library has it.
_malloc_trim = getattr(libc, "malloc_trim", None)
libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)


def effective_capabilities(task: int) -> int:
    """The effective capabilities of a task, in its own user namespace, a bit for each.

    Args:
        task: as this PID namespace has it.

    Raises:
        OSError: ESRCH if there is no such task.
    """
    # To capget(2), 0 is the caller itself.
    if not task:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    first, _, _, rest, _, _ = _capabilities(task)
    return rest << 32 | first


def drop_capability(number: int) -> None:
    """Give up a capability (capset(2)), for this thread and those that it starts."""
    held = _capabilities(0)
    first, bit = number // 32 * 3, 1 << number % 32
    kept = tuple(word & ~bit if first <= i < first + 3 else word for i, word in enumerate(held))
    header = _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0)
    # What is not held needs no call: a filter of system calls may refuse it.
    if kept != held and libc.capset(header, _CAPABILITIES.pack(*kept)):
        raise error_of_call()


def _capabilities(task: int) -> tuple[int, ...]:
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    if libc.capget(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, task), data):
        raise error_of_call()
    return _CAPABILITIES.unpack(data.raw)


def share_descriptors(task: int, other: int) -> bool:
    """Whether two tasks have one descriptor table, or that cannot be found out (kcmp(2))."""
    number = _SYS_KCMP.get(os.uname().machine)
    return not number or libc.syscall(number, task, other, _KCMP_FILES, 0, 0) <= 0


def are_one_file(task: int, fd: int, other: int) -> bool:
    """Whether two descriptors of a task are of one open file, if that can be found out."""
    number = _SYS_KCMP.get(os.uname().machine)
    return bool(number) and not libc.syscall(number, task, task, _KCMP_FILE, fd, other)


def only_interrupt(number: int) -> None:
    """Have a signal make system calls fail with EINTR (signal(7)), and do nothing else.

    Python does not hear of it: its own handler would wake an event loop besides.
    """
    # A handler gets a number, and what it returns is dropped.
    libc.signal(number, ctypes.cast(libc.abs, ctypes.c_void_p))
    libc.siginterrupt(number, 1)


def name_thread(name: str) -> None:
    """Name the calling thread (PR_SET_NAME(2const)), as ps(1) and top(1) show it.

    Args:
        name: its first 15 bytes count.
    """
    quick_libc.prctl(_PR_SET_NAME, name.encode())


def give_memory_back() -> None:
    """Give free memory of this process back to the kernel (malloc_trim(3))."""
    if _malloc_trim:
        _malloc_trim(0)
