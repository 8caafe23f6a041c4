"""Run a program for which system calls fail: without_call.py CALL... -- PROGRAM [ARGUMENT...].

A CALL is a name of `CALLS`, with the errno after a colon: mount_setattr:ENOSYS.
"""

import ctypes
import errno
import os
import struct
import sys

# Number on x86_64 and on aarch64, and the value of the third argument if it matters.
CALLS: dict[str, tuple[int, int, int | None]] = {
    "bpf": (321, 280, None),
    "open_tree": (428, 428, None),
    "mount_setattr": (442, 442, None),
    "unshare": (272, 97, None),
    # getsockopt(2), as in asm-generic/socket.h.
    "SO_NETNS_COOKIE": (55, 209, 71),
}
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000
# struct sock_filter: load a word of struct seccomp_data; skip so many unless it equals; return.
_LOAD, _JUMP, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _THIRD_ARGUMENT = 0, 32


def refuse(call: str, error: int) -> None:
    """Let a system call fail for this process and what it starts (seccomp(2))."""
    on_x86, on_arm, argument = CALLS[call]
    number = {"x86_64": on_x86, "aarch64": on_arm}[os.uname().machine]
    matched = (
        [] if argument is None else [(_LOAD, 0, 0, _THIRD_ARGUMENT), (_JUMP, 0, 1, argument)]
    )
    instructions = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP, 0, len(matched) + 1, number),
        *matched,
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    filters = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter")


def main() -> None:
    at = sys.argv.index("--")
    for word in sys.argv[1:at]:
        call, _, error = word.partition(":")
        refuse(call, getattr(errno, error))
    os.execvp(sys.argv[at + 1], sys.argv[at + 1 :])


if __name__ == "__main__":
    main()
