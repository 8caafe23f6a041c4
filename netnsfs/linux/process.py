"""The capabilities of this process (capabilities(7)), its memory and its signals."""

import ctypes
import os
import struct

from netnsfs.linux.library import error_of_call, libc

CAP_SYSLOG = 34
_CAPABILITY_VERSION_3 = 0x20080522
# kcmp(2) has another number on each architecture. Without one, the tables count as shared.
_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_KCMP_FILES = 2
# Not every C library has it.
_malloc_trim = getattr(libc, "malloc_trim", None)
libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)


def drop_capability(number: int) -> None:
    """Give up a capability (capset(2)), for this thread and those that it starts."""
    # struct __user_cap_header_struct, and twice __user_cap_data_struct: effective, permitted,
    # inheritable.
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        raise error_of_call()
    held = struct.unpack("=6I", data.raw)
    # The first three words are for capabilities 0 to 31, the others for the rest.
    first, bit = number // 32 * 3, 1 << number % 32
    kept = [word & ~bit if first <= i < first + 3 else word for i, word in enumerate(held)]
    # What is not held needs no call: a filter of system calls may refuse it.
    if kept != list(held) and libc.capset(header, struct.pack("=6I", *kept)):
        raise error_of_call()


def share_descriptors(task: int, other: int) -> bool:
    """Whether two tasks have one descriptor table, or that cannot be told (kcmp(2))."""
    number = _SYS_KCMP.get(os.uname().machine)
    return not number or libc.syscall(number, task, other, _KCMP_FILES, 0, 0) <= 0


def only_interrupt(number: int) -> None:
    """Have a signal make system calls fail with EINTR (signal(7)), and do nothing else.

    Python does not hear of it: its own handler would wake an event loop besides.
    """
    # A handler gets a number, and what it returns is dropped.
    libc.signal(number, ctypes.cast(libc.abs, ctypes.c_void_p))
    libc.siginterrupt(number, 1)


def give_memory_back() -> None:
    """Give free memory of this process back to the kernel (malloc_trim(3))."""
    if _malloc_trim:
        _malloc_trim(0)
