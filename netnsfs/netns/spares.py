"""Network namespaces made in advance, so that mkdir is a bind mount.

Making a namespace takes some hundred microseconds in the kernel, mounting its file a dozen. So
some are made beside the use, one after another on one thread, and held by a descriptor. If the
daemon is killed they are gone.

A namespace copies some sysctls when it is born, most of them from the initial
namespace. A spare is given out only if a new one would have copied the same. What is copied:

- net.ipv4.conf.all and default (devinet_init_net(), net/ipv4/devinet.c), and those of IPv6
  (addrconf_init_net(), net/ipv6/addrconf.c), as net.core.devconf_inherit_init_net says;
- net.ipv4.neigh.default and that of IPv6, by the loopback device (neigh_parms_alloc(),
  net/core/neighbour.c);
- TCP's buffers and congestion control (tcp_sk_init(), net/ipv4/tcp_ipv4.c), and the sizes of
  tables that a namespace has for itself (tcp_set_hashinfo(), udp_set_table());
- which devices it has (net.core.fb_tunnels_only_for_init_net).

Found by changing every writable file of /proc/sys/net in turn, on Linux 6.18, and comparing
all that a new namespace shows; the rest is from the kernel's source. Another kernel may copy
more. So nothing depends on the list alone: inotify tells of a write to any file of
/proc/sys/net but those of single interfaces, and then all spares are thrown away. The files of
the list are read besides, for what has another way (another mount of procfs, the neighbour
tables by netlink). It is noticed within hundredths of a second: they are not read each time,
which would take a quarter of what a spare saves.

A spare shows its true age: the times of its directory are those of its birth.
"""

import fcntl
import glob
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import disposable, restoring_namespace, start_thread
from netnsfs.netns.nsfs import Namespace, open_own_namespace

# How long after a mkdir spares are made. A thread that makes one takes the interpreter and the
# processor from the requests of that moment. So while half of the places are full, it waits
# for the end of the use, and then for a pause in it.
_QUIET_SECONDS = 0.1
_PAUSE_SECONDS = 0.001
_LOOK_AGAIN_SECONDS = 0.005
_RETRY_SECONDS = 10.0
_READ_SECONDS = 0.05

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
_INHERIT = _NET + "core/devconf_inherit_init_net"
# Of IPv4, 2 alone says no; of IPv6, 0 and 2 do.
_NOT_INHERITED = (b"0\n", b"2\n")

# An open file can carry these two without any effect on a namespace's file: they mark a
# descriptor as that of a spare, for every netnsfs on the machine.
_SPARE_FLAGS = os.O_APPEND | os.O_NOATIME

log = logging.getLogger(__name__)


def spares_possible() -> bool:
    """Whether a new namespace copies from here, and the thread that makes one can come back.

    That is so in the initial network namespace, if this user namespace owns it.
    """
    with open("/proc/self/ns/net", "rb") as own:
        # The file is in no other namespace (net/core/sysctl_net_core.c).
        return linux.is_owned_here(own.fileno()) and os.path.exists(_NET + "core/netdev_budget")


def is_spare(flags: int) -> bool:
    """Whether a descriptor of a namespace, with these flags (open(2)), is that of a spare."""
    return flags & _SPARE_FLAGS == _SPARE_FLAGS


class InheritedSettings:
    """Where a new namespace copies from, as it is now. For one thread at a time.

    Attributes:
        close: call it when it is of no more use.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._changed = False
        with ExitStack() as opened:
            self._watch = linux.Inotify()
            opened.callback(self._watch.close)
            for directory in _shared_directories():
                # Held open, a directory keeps the inode that is watched.
                opened.callback(os.close, os.open(directory, os.O_PATH | os.O_CLOEXEC))
                self._watch.watch_file(os.fsencode(directory), linux.IN_MODIFY)
            for path in _copied_paths():
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                self._fds.append(fd)
            # After the watch has begun: what is written meanwhile comes as an event.
            self._settings = self._read_settings()
            self.close = opened.pop_all().close

    def has_changed(self) -> bool:
        """Whether a namespace that is born now may be given something else."""
        if self._watch.has_events():
            self._changed = True
        elif not self._changed and time.monotonic() > self._read_at + _READ_SECONDS:
            self._changed = self._read_settings() != self._settings
        return self._changed

    def _read_settings(self) -> list[object]:
        self._read_at = time.monotonic()
        # With a protocol, more is copied.
        return [os.listdir(_NET), *map(_read_setting, self._fds)]


def _read_setting(fd: int) -> bytes | int | None:
    try:
        return os.pread(fd, 256, 0)
    except OSError as error:
        # A secret that is not set (net.ipv6.conf.default.stable_secret, EIO).
        return error.errno


def _copied_paths() -> list[str]:
    patterns: tuple[str, ...] = _COPIED
    with open(_INHERIT, "rb") as file:
        if file.read() not in _NOT_INHERITED:
            patterns += _COPIED_IF_INHERITED
    paths = (path for pattern in patterns for path in sorted(glob.glob(_NET + pattern)))
    # Some are for writing only.
    return [path for path in paths if os.stat(path).st_mode & 0o400]


def _shared_directories() -> Iterator[str]:
    """The directories of sysctls, but for those of single interfaces."""
    for directory, below, _ in os.walk(_NET):
        yield directory
        if os.path.basename(directory) in ("conf", "neigh"):
            below[:] = {"all", "default"}.intersection(below)


class _Spare(NamedTuple):
    fd: int
    namespace: Namespace


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
        self._origin: InheritedSettings | None = None
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
        if self._origin is None or self._origin.has_changed():
            self._throw_away()
        return self._held.popleft() if self._held else None

    def _throw_away(self) -> None:
        while self._held:
            os.close(self._held.popleft().fd)

    def _keep_filled(self) -> None:
        with disposable():
            while self._wanted.wait():
                self._wanted.clear()
                try:
                    while len(self._held) < self._count:
                        self._wait_for_pause()
                        self._add_spare()
                except OSError as error:
                    log.warning("cannot make a spare namespace: %s", error.strerror)
                    time.sleep(_RETRY_SECONDS)
                    self._wanted.set()

    def _wait_for_pause(self) -> None:
        while True:
            low = len(self._held) < self._count / 2
            pause = _PAUSE_SECONDS if low else _QUIET_SECONDS
            wait = self._taken + pause - time.monotonic()
            if wait <= 0:
                return
            time.sleep(min(wait, _LOOK_AGAIN_SECONDS))

    def _add_spare(self) -> None:
        inherited = self._inherited_now()
        with restoring_namespace():
            linux.unshare(linux.CLONE_NEWNET)
            spare = _Spare(*open_own_namespace())
        with ExitStack() as unfit:
            unfit.callback(os.close, spare.fd)
            fcntl.fcntl(spare.fd, fcntl.F_SETFL, _SPARE_FLAGS)
            with self._lock:
                # It may have changed before the birth or after it.
                if not inherited.has_changed():
                    self._held.append(spare)
                    unfit.pop_all()

    def _inherited_now(self) -> InheritedSettings:
        """What the held spares have inherited, or what is inherited now if that differs."""
        with self._lock:
            if self._origin and not self._origin.has_changed():
                return self._origin
            self._throw_away()
            before, self._origin = self._origin, None
        if before:
            before.close()
        inherited = InheritedSettings()
        with self._lock:
            self._origin = inherited
        return inherited
