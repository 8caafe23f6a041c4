"""Network namespaces made ahead, so that mkdir is a bind mount.

Making a namespace takes some hundred microseconds in the kernel, mounting its file a dozen. So
some are made while nothing else is asked for, one after another on one thread, and held by a
descriptor. If the daemon is killed they are gone.

A namespace copies some sysctls when it is born, most of them from the machine's initial
namespace. A spare is given out only if a new one would have copied the same. What is copied:

- net.ipv4.conf.all and default (devinet_init_net(), net/ipv4/devinet.c), and those of IPv6
  (addrconf_init_net(), net/ipv6/addrconf.c), as net.core.devconf_inherit_init_net says;
- net.ipv4.neigh.default and that of IPv6, by the loopback device (neigh_parms_alloc(),
  net/core/neighbour.c);
- TCP's buffers and congestion control (tcp_sk_init(), net/ipv4/tcp_ipv4.c), and the sizes of
  tables that a namespace has for itself (tcp_set_hashinfo(), udp_set_table());
- which devices it has (net.core.fb_tunnels_only_for_init_net).

Found by changing every writable file of /proc/sys/net in turn, on Linux 6.18, and comparing
all that a new namespace shows; the kernel's source told of the rest.

All these files are read at each birth, and again when a spare is to be given out. That takes
a quarter of what it saves, so in a burst it is not done each time: a write to any of them is
noticed by inotify at once, and what has another way (another mount of procfs, the neighbour
tables by netlink) within hundredths of a second.

A spare shows its true age: the times of its directory are those of its birth.
"""

import fcntl
import glob
import logging
import os
import threading
import time
from collections import deque
from contextlib import ExitStack
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import expendable, start_thread, visit
from netnsfs.netns.nsfs import Namespace, open_own_namespace

# After a mkdir, how long to wait for the next one before the places are filled.
_QUIET_SECONDS = 0.1
_RETRY_SECONDS = 10.0
_READ_SECONDS = 0.02

_NET = "/proc/sys/net/"
_COPIED = (
    "ipv4/conf/all/*",
    "ipv4/conf/default/*",
    "ipv4/neigh/default/*",
    "ipv6/neigh/default/*",
    "ipv4/tcp_rmem",
    "ipv4/tcp_wmem",
    "ipv4/tcp_congestion_control",
    "ipv4/tcp_child_ehash_entries",
    "ipv4/udp_child_hash_entries",
    "core/devconf_inherit_init_net",
    "core/fb_tunnels_only_for_init_net",
)
_COPIED_IF_INHERITED = ("ipv6/conf/all/*", "ipv6/conf/default/*")
# It changes conf/all/forwarding and conf/default/forwarding.
_BESIDE = _NET + "ipv4/ip_forward"
_INHERIT = _NET + "core/devconf_inherit_init_net"
# Of IPv4, 2 alone says no; of IPv6, 0 and 2 do.
_NOT_INHERITED = (b"0\n", b"2\n")

# An open file can carry these two without any effect on a namespace's file: they mark a
# descriptor as that of a spare, for every netnsfs on the machine.
_MARK = os.O_APPEND | os.O_NOATIME

log = logging.getLogger(__name__)


def spares_possible() -> bool:
    """Whether what a new namespace copies can be seen: only in the initial one."""
    # Not in any other namespace (net/core/sysctl_net_core.c).
    return os.path.exists(_NET + "core/netdev_budget")


def is_spare(flags: int) -> bool:
    """Whether a descriptor of a namespace, with these flags (open(2)), is that of a spare."""
    return flags & _MARK == _MARK


class _Origin:
    """Where a new namespace copies from. For one thread at a time."""

    def __init__(self) -> None:
        # Some are for writing only.
        paths = [path for path in _copied_paths() if os.stat(path).st_mode & 0o400]
        self._fds: list[int] = []
        with ExitStack() as opened:
            self._watch = linux.Watch()
            opened.callback(self._watch.close)
            for path in (*paths, _BESIDE):
                # Held open, a file keeps the inode that is watched.
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                self._fds.append(fd)
                self._watch.watch_file(path.encode(), linux.IN_MODIFY)
            self.close = opened.pop_all().close
        self._read_at = 0.0
        self._writes = 0
        self._content: list[bytes] = []

    def count_writes(self) -> int:
        """Another number after each write that is noticed. `read_settings` must follow."""
        self._writes += self._watch.has_events()
        return self._writes

    def read_settings(self) -> list[bytes]:
        """What a namespace that is born now is given."""
        self._read_at = time.monotonic()
        content = [os.pread(fd, 256, 0) for fd in self._fds]
        # The same items each time: Python does not look into identical ones to compare them.
        if content != self._content:
            self._content = content
        return self._content

    def current_settings(self) -> list[bytes]:
        """The same, but read again only if it may have changed."""
        before = self._writes
        if self.count_writes() != before or time.monotonic() > self._read_at + _READ_SECONDS:
            return self.read_settings()
        return self._content


def _copied_paths() -> list[str]:
    patterns: tuple[str, ...] = _COPIED
    with open(_INHERIT, "rb") as file:
        if file.read() not in _NOT_INHERITED:
            patterns += _COPIED_IF_INHERITED
    return [path for pattern in patterns for path in sorted(glob.glob(_NET + pattern))]


class _Spare(NamedTuple):
    fd: int
    namespace: Namespace
    born: list[bytes]


class Spares:
    """The spares of one file system.

    Args:
        count: how many to hold.

    Attributes:
        hits: how often one was given out.
        misses: how often there was none.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._held: deque[_Spare] = deque()
        self._origin: _Origin | None = None
        self._wanted = threading.Event()
        self._taken = 0.0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._held)

    def start(self) -> None:
        """Fill the places, now and whenever some have become free.

        Raises:
            OSError: EAGAIN if the machine has no thread for it.
        """
        if self._count:
            self._wanted.set()
            start_thread(self._keep_filled, "netnsfs-spares")

    def take_spare(self) -> tuple[int, Namespace] | None:
        """A namespace that is as a new one would be.

        Returns:
            A descriptor of it that the caller closes, and what it is; None if there is none.
        """
        if not self._count:
            return None
        with self._lock:
            self._taken = time.monotonic()
            spare = self._take_fitting()
            if spare is None:
                self.misses += 1
            else:
                self.hits += 1
        self._wanted.set()
        return spare and (spare.fd, spare.namespace)

    def _take_fitting(self) -> _Spare | None:
        if not self._held or self._origin is None:
            return None
        now = self._origin.current_settings()
        while self._held:
            spare = self._held.popleft()
            if spare.born == now:
                return spare
            os.close(spare.fd)
        return None

    def _keep_filled(self) -> None:
        with expendable():
            while self._wanted.wait():
                self._wanted.clear()
                # The kernel makes namespaces one after another: a spare that is made in a burst
                # of mkdir would hold the next mkdir up.
                while (wait := self._taken + _QUIET_SECONDS - time.monotonic()) > 0:
                    time.sleep(wait)
                try:
                    self._fill_places()
                except OSError as error:
                    log.warning("cannot make a spare namespace: %s", error.strerror)
                    time.sleep(_RETRY_SECONDS)
                    self._wanted.set()

    def _fill_places(self) -> None:
        origin, before = _Origin(), self._origin
        with self._lock:
            self._origin = origin
        if before:
            before.close()
        while len(self._held) < self._count:
            with self._lock:
                writes, born = origin.count_writes(), origin.read_settings()
            with visit():
                linux.unshare(linux.CLONE_NEWNET)
                spare = _Spare(*open_own_namespace(), born)
            fcntl.fcntl(spare.fd, fcntl.F_SETFL, _MARK)
            with self._lock:
                # What was read before and after can be the same although a setting was changed,
                # and changed back, in between. The count of writes tells.
                if (writes, born) == (origin.count_writes(), origin.read_settings()):
                    self._held.append(spare)
                else:
                    os.close(spare.fd)
