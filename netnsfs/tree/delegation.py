"""What an owner may write of what the kernel shows: sysfs and sysctl.

An owner to whom root gave a namespace may write what the kernel lets the root of a user
namespace write that owns the network namespace, and no more. The kernel cannot decide that
here, for the daemon does the write. So this is a list: what is not on it stays root's. A test
compares it with the kernel's answers, file by file.

Some that the kernel would allow is not on it: what takes memory or processors of the machine,
what suspends a device, and what makes an event for the machine's udev.
"""

import errno
import os
import re

_INTERFACE_FILES = {b"carrier", b"flags", b"ifalias", b"mtu", b"netdev_group", b"proto_down"}

# All files in them are checked by one function of the kernel, for CAP_NET_ADMIN in the user
# namespace of the network namespace (net/bridge/br_sysfs_br.c, br_sysfs_if.c, and
# drivers/net/bonding/bond_sysfs.c).
_INTERFACE_DIRECTORIES = (b"bridge/", b"brport/", b"bonding/")

# What a namespace of another user namespace does not have (net/xfrm/xfrm_sysctl.c,
# net/ipv6/route.c).
_ROOTS_SYSCTLS = re.compile(rb"/proc/sys/net/(?:core/xfrm_.*|ipv6/route/(?!max_size$).*)")

_CONGESTION_CONTROL = b"/proc/sys/net/ipv4/tcp_congestion_control"
_AVAILABLE = b"/proc/sys/net/ipv4/tcp_available_congestion_control"


def is_interface_file_delegated(path: bytes) -> bool:
    """Whether an owner may write a file of sysfs.

    Args:
        path: from the interface's directory on.
    """
    return path in _INTERFACE_FILES or path.startswith(_INTERFACE_DIRECTORIES)


def is_sysctl_delegated(path: bytes) -> bool:
    """Whether an owner may write a sysctl.

    Args:
        path: its path in procfs.
    """
    return not _ROOTS_SYSCTLS.fullmatch(path)


def check_sysctl_value(path: bytes, value: bytes, offset: int) -> None:
    """Check what an owner writes to a sysctl, where the daemon's capabilities would do more.

    Args:
        path: its path in procfs.
        value: what is written.
        offset: where. The kernel puts a text together from what several writes give.

    Raises:
        OSError: ENOENT for a congestion control that is not there. The kernel would load a
            module for the daemon (tcp_ca_find_autoload(), net/ipv4/tcp_cong.c).
    """
    if path == _CONGESTION_CONTROL:
        with open(_AVAILABLE, "rb") as available:
            if offset or value.strip() not in available.read().split():
                message = "there is no such congestion control, and only root may load one"
                raise FileNotFoundError(errno.ENOENT, message, os.path.basename(path))
