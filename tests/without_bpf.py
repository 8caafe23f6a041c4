"""Run a program for which bpf(2) is refused: without_bpf.py PROGRAM [ARGUMENT...]."""

import ctypes
import os
import struct
import sys

NUMBERS = {"x86_64": 321, "aarch64": 280}
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ERRNO_EPERM = 0x00050001
_ALLOW = 0x7FFF0000


def refuse_bpf() -> None:
    # struct sock_filter: load the number; if it is that of bpf, refuse; allow.
    filters = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, NUMBERS[os.uname().machine]),
            (0x06, 0, 0, _ERRNO_EPERM),
            (0x06, 0, 0, _ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("HxxxxxxP", len(filters) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter")


if __name__ == "__main__":
    refuse_bpf()
    os.execvp(sys.argv[1], sys.argv[1:])
