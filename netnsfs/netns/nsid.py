"""The nsid of a network namespace: the number that another namespace knows it by.

rtnetlink(7), RTM_GETNSID and RTM_NEWNSID, as `ip netns list-id` and `ip netns set` use them.
"""

import errno
import socket
import struct

from netnsfs.jobs import commit, may_block
from netnsfs.linux.netlink import RouteSocket, attribute, attributes

# linux/rtnetlink.h, linux/net_namespace.h
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID = 1
_NETNSA_FD = 3
_UNASSIGNED = -1
_MAX = 0x7FFFFFFF
# struct rtgenmsg, padded.
_HEADER = struct.pack("=B3x", socket.AF_UNSPEC)
_NUMBER = struct.Struct("=i")


def read_nsid(fd: int) -> bytes:
    """The nsid of the namespace of `fd` as a line: a number, or "unassigned".

    Raises:
        OSError: the kernel's answer.
    """
    number = nsid_of(fd)
    return b"unassigned\n" if number is None else b"%d\n" % number


def nsid_of(fd: int) -> int | None:
    """The nsid of the namespace of `fd`; None if it has none.

    Raises:
        OSError: the kernel's answer.
    """
    may_block()
    # In the namespace of this thread, which is the daemon's: the nsid is the one that it knows.
    with RouteSocket() as route:
        return ask_nsid(route, fd)


def ask_nsid(route: RouteSocket, fd: int) -> int | None:
    """The nsid of the namespace of `fd` for that of a socket; None if it has none.

    A namespace has none for itself.

    Raises:
        OSError: the kernel's answer.
    """
    question = _HEADER + attribute(_NETNSA_FD, _NUMBER.pack(fd))
    answer = attributes(route.ask(_RTM_GETNSID, question), len(_HEADER))
    number: int = _NUMBER.unpack(answer[_NETNSA_NSID])[0]
    return None if number == _UNASSIGNED else number


def assign_nsid(fd: int, text: bytes) -> None:
    """Give the namespace of `fd` an nsid; it cannot be changed afterwards.

    Args:
        fd: a descriptor of the namespace.
        text: a decimal number, or "auto" for one that the kernel chooses.

    Raises:
        OSError: EINVAL if the text is neither; ERANGE beyond 2^31-1; EEXIST if the
            namespace has an nsid or the number is taken.
    """
    may_block()
    number = _NUMBER.pack(_parse_number(text.strip()))
    wanted = attribute(_NETNSA_FD, _NUMBER.pack(fd)) + attribute(_NETNSA_NSID, number)
    try:
        with RouteSocket() as route:
            commit()
            route.change(_RTM_NEWNSID, _HEADER + wanted)
    except FileExistsError as error:
        message = "the namespace has an nsid already, or the number is another's"
        raise FileExistsError(errno.EEXIST, message) from error


def is_unfinished(text: bytes) -> bool:
    """Whether more can follow what was written to `nsid`."""
    word = text.lstrip()
    if word.isdigit():
        digits = word.lstrip(b"0")
        return len(digits) <= len(str(_MAX)) and int(digits or b"0") <= _MAX
    return word != b"auto" and b"auto".startswith(word)


def _parse_number(text: bytes) -> int:
    if text == b"auto":
        return _UNASSIGNED
    if not text.isdigit():
        raise OSError(errno.EINVAL, 'neither a number nor "auto"')
    # Digits enough for any overflow, and not so many that int() refuses them.
    number = int(text.lstrip(b"0")[:20] or b"0")
    if number > _MAX:
        raise OSError(errno.ERANGE, f"an nsid is at most {_MAX}")
    return number
