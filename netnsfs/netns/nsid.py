"""The nsid of a network namespace: the number that this namespace knows another by.

rtnetlink(7), RTM_GETNSID and RTM_NEWNSID, as `ip netns list-id` and `ip netns set` use them.
pyroute2 writes and reads the messages; it is imported at the first use, for its import
takes longer than a mount. The socket is plain: one request, one answer.
"""

import errno
import os
import socket
import threading
from importlib import import_module
from typing import Any

from netnsfs.jobs import may_block

UNASSIGNED = 0xFFFFFFFF
_MAX = 0x7FFFFFFF

_importing = threading.Lock()


def read_nsid(fd: int) -> bytes:
    """The nsid of the namespace of `fd` as a line: a number, or "unassigned".

    Raises:
        OSError: the kernel's answer.
    """
    may_block()
    _import_pyroute2()
    from pyroute2.netlink import NLM_F_REQUEST
    from pyroute2.netlink.rtnl import RTM_GETNSID

    number = _ask_kernel(RTM_GETNSID, NLM_F_REQUEST, fd).get_attr("NETNSA_NSID")
    return b"unassigned\n" if number == UNASSIGNED else b"%d\n" % number


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
    number = _parse_number(text.strip())
    _import_pyroute2()
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
    from pyroute2.netlink.rtnl import RTM_NEWNSID

    try:
        _ask_kernel(RTM_NEWNSID, NLM_F_REQUEST | NLM_F_ACK, fd, ("NETNSA_NSID", number))
    except FileExistsError as error:
        message = "the namespace has an nsid already, or the number is another's"
        raise FileExistsError(errno.EEXIST, message) from error


def _import_pyroute2() -> None:
    # Its modules import each other in circles, which fails if two threads are at it.
    with _importing:
        import_module("pyroute2.netlink.rtnl.marshal")


def _parse_number(text: bytes) -> int:
    if text == b"auto":
        return UNASSIGNED
    if not text.isdigit():
        raise OSError(errno.EINVAL, 'neither a number nor "auto"')
    # Digits enough for any overflow, and not so many that int() refuses them.
    number = int(text.lstrip(b"0")[:20] or b"0")
    if number > _MAX:
        raise OSError(errno.ERANGE, f"an nsid is at most {_MAX}")
    return number


def _ask_kernel(kind: int, flags: int, fd: int, *attributes: tuple[str, int]) -> Any:
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl
    from pyroute2.netlink.rtnl.nsidmsg import nsidmsg

    message = nsidmsg()
    message["attrs"] = [("NETNSA_FD", fd), *attributes]
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = 1
    message.encode()
    family, protocol = socket.AF_NETLINK, socket.NETLINK_ROUTE
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as rtnetlink:
        rtnetlink.send(message.data)
        answer = next(iter(MarshalRtnl().parse(rtnetlink.recv(1 << 16))), None)
    if answer is None:
        raise OSError(errno.EPROTO, "rtnetlink gives no answer")
    error = answer["header"].get("error")
    if error is not None:
        raise OSError(error.code, os.strerror(error.code))
    return answer
