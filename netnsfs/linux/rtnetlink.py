"""rtnetlink(7): numbers and structures of messages about interfaces, addresses and routes.

Only data: `netlink` sends and receives.
"""

import socket
import struct

from netnsfs.linux.netlink import attribute

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTMGRP_LINK = 1
RTEXT_FILTER_SKIP_STATS = 8
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RT_TABLE_MAIN = 254
RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT = 1, 6, 7, 8
RTPROT_KERNEL, RTPROT_BOOT = 2, 3
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 2, 4, 5, 6, 7
RTA_METRICS, RTA_MULTIPATH, RTA_FLOW, RTA_CACHEINFO, RTA_TABLE = 8, 9, 11, 12, 15
RTA_VIA, RTA_NEWDST, RTA_PREF, RTA_ENCAP_TYPE, RTA_ENCAP = 18, 19, 20, 21, 22
RTA_TTL_PROPAGATE, RTA_NH_ID = 26, 30
RTNH_F_PERVASIVE, RTNH_F_ONLINK = 2, 4
# linux/if_link.h
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_STATS64 = 23
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_CARRIER = 33
IFLA_LINK_NETNSID = 37
IFLA_NEW_NETNSID = 45
IFLA_TARGET_NETNSID = 46
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
# linux/veth.h
VETH_INFO_PEER = 1
# linux/if_addr.h
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_F_OPTIMISTIC = 0x04
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
# linux/if.h, linux/if_arp.h
IFF_UP = 1
ARPHRD_LOOPBACK = 772
ADDRESS_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}
"""The families of IP, and how long an address of each is."""

# struct ifinfomsg: family, type, index, flags, change.
IFINFOMSG = struct.Struct("=BxHiII")
# struct ifaddrmsg: family, length of the prefix, flags, scope, index.
IFADDRMSG = struct.Struct("=BBBBI")
# struct rtnl_link_stats64: packets, bytes, errors and drops, each received and sent, and what
# was missed.
LINK_STATS64 = struct.Struct("=8Q56xQ")
# struct rtmsg: family, length of the prefix and of the source prefix, type of service, table,
# protocol, scope, type, flags.
RTMSG = struct.Struct("=8BI")
# struct rtnexthop: length, flags, hops, index.
RTNEXTHOP = struct.Struct("=HBBi")
# struct rta_cacheinfo up to rta_error: the third number is the time left, the fourth an error.
RTA_CACHE = struct.Struct("=IIiI")
S32, U32 = struct.Struct("=i"), struct.Struct("=I")


def named(name: bytes) -> bytes:
    """The attribute that names an interface."""
    return attribute(IFLA_IFNAME, name + b"\0")
