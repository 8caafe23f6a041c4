"""ioctl(2) calls on network interfaces, by name (netdevice(7)).

They are for the network namespace of the socket, whatever thread calls.
"""

import ctypes
import fcntl
import struct

# linux/sockios.h, linux/ethtool.h
_SIOCSIFNAME = 0x8923
_SIOCETHTOOL = 0x8946
_ETHTOOL_GSET = 1
_UNKNOWN_SPEEDS = (0, 0xFFFF, 0xFFFFFFFF)
# struct ifreq with another name, and with a pointer.
_IFREQ_NAME = struct.Struct("=16s16s8x")
_IFREQ_POINTER = struct.Struct("@16sP16x")
# struct ethtool_cmd: command, lower half of the speed, its upper half.
_ETHTOOL_CMD = struct.Struct("=I8xH14xH14x")


def rename_interface(socket: int, name: bytes, new_name: bytes) -> None:
    """Give an interface another name (SIOCSIFNAME).

    Args:
        socket: a descriptor of any socket of the namespace.
        name: the name.
        new_name: the other.

    Raises:
        OSError: ENODEV, EEXIST, EINVAL; EBUSY if it is up, before Linux 6.2.
    """
    fcntl.ioctl(socket, _SIOCSIFNAME, _IFREQ_NAME.pack(name, new_name))


def interface_speed(socket: int, name: bytes) -> int | None:
    """The speed of an interface in Mbit/s (SIOCETHTOOL), or None if it has or tells none."""
    command = ctypes.create_string_buffer(_ETHTOOL_CMD.pack(_ETHTOOL_GSET, 0, 0))
    try:
        address = ctypes.addressof(command)
        fcntl.ioctl(socket, _SIOCETHTOOL, _IFREQ_POINTER.pack(name, address))
    except OSError:
        return None
    _, low, high = _ETHTOOL_CMD.unpack_from(command)
    speed: int = high << 16 | low
    return None if speed in _UNKNOWN_SPEEDS else speed
