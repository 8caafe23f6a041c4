"""What keeps a network namespace alive, on the whole machine.

The kernel keeps a namespace as long as a task is in it, a descriptor of its nsfs file or of
a socket in it is open, or its nsfs file is bind-mounted, in any mount namespace. lsns(8)
looks at leaders, descriptors, sockets (from util-linux 2.41 on) and its own mounts; here it
is all of them: every thread, and the mounts of every mount namespace that has a process.

Not found are descriptors and sockets that are in flight in a unix socket, those of a thread
with a descriptor table of its own or whose leader has ended, mounts of a mount namespace
that no process's leader is in, and what belongs to processes that the kernel does not let us
look at. The daemon's own descriptors are left out: it keeps none. So are the spares of any
netnsfs: nobody has made them yet.

A process may swap its descriptors while they are looked at. So nothing is opened that has not
been seen, through an O_PATH descriptor, to be a namespace's file.
"""

import os
import re
import stat
from collections.abc import Collection, Iterator
from typing import NamedTuple

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns import members, nsfs
from netnsfs.netns.spares import is_spare

_NET = re.compile(rb"net:\[(\d+)\]")


class Holder(NamedTuple):
    """One thing that holds a namespace.

    Attributes:
        inode: of the namespace.
        line: as shown to the user: `task PID`, `thread PID TID`, `fd PID N`,
            `socket PID N`, `mount PATH`. A mount of another mount namespace is shown by a
            path below /proc/PID/root.
        path: opening it gives the namespace, but for a socket.
        socket: (PID, descriptor) for a socket.
    """

    inode: int
    line: bytes
    path: bytes
    socket: tuple[int, int] | None = None

    def open(self, avoid: Collection[int]) -> int:
        """A descriptor of the namespace, as long as it is held in this way.

        Args:
            avoid: as for `linux.open_avoiding`.

        Raises:
            OSError: it is not.
        """
        if self.socket:
            return linux.socket_namespace(*self.socket)
        if self.line.startswith(b"mount"):
            target = linux.open_avoiding(self.path, avoid, os.getpid())
        else:
            target = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        try:
            return nsfs.open_reached(target)
        finally:
            os.close(target)


def scan() -> Iterator[Holder]:
    """All holders of all network namespaces, process by process."""
    may_block()
    # The mounts of our own mount namespace have paths that need no /proc/PID/root.
    seen = {os.readlink(b"/proc/self/ns/mnt")}
    yield from _mounts(b"self", b"")
    own = b"%d" % os.getpid()
    processes, extra, last_pid = members.processes()
    for pid in processes:
        leader = members.namespace_of_task(pid)
        if leader:
            yield Holder(leader, b"task %b" % pid, b"/proc/%b/ns/net" % pid)
        # A process may end at any moment, or be none of our business.
        try:
            if extra > 0:
                threads = os.stat(b"/proc/%b/task" % pid).st_nlink - members.ONE_THREAD
                if threads > 0:
                    extra = members.rest(pid, extra, threads, last_pid)
                    yield from _threads(pid, leader)
            mount_namespace = os.readlink(b"/proc/%b/ns/mnt" % pid)
            if mount_namespace not in seen:
                yield from _mounts(pid, b"/proc/%b/root" % pid)
                # Of one with another root, these were the mounts below that only.
                if os.readlink(b"/proc/%b/root" % pid) == b"/":
                    seen.add(mount_namespace)
            if pid != own:
                yield from _descriptors(pid)
        except OSError as error:
            members.pass_over(error)


def _threads(pid: bytes, leader: int | None) -> Iterator[Holder]:
    for tid in os.listdir(b"/proc/%b/task" % pid):
        task = b"%b/task/%b" % (pid, tid)
        inode = members.namespace_of_task(task)
        if inode and inode != leader:
            yield Holder(inode, b"thread %b %b" % (pid, tid), b"/proc/%b/ns/net" % task)


def _mounts(pid: bytes, root: bytes) -> Iterator[Holder]:
    for mount in linux.mounts(os.fsdecode(pid)):
        found = _NET.fullmatch(mount.root) if mount.fs_type == b"nsfs" else None
        if found:
            path = root + mount.target
            yield Holder(int(found[1]), b"mount " + _escaped(path), path)


def _escaped(path: bytes) -> bytes:
    """A path as /proc/PID/mountinfo writes it: one word, and never a second line."""
    return re.sub(rb"[\s\\#]", lambda found: b"\\%03o" % found[0][0], path)


def _descriptors(pid: bytes) -> Iterator[Holder]:
    device = nsfs.nsfs_device()
    directory = b"/proc/%b/fd/" % pid
    for number in os.listdir(directory):
        try:
            # Asks no server: the file may be of a file system that does not answer.
            mode, _, _, _, major, minor, _ = linux.statx_raw(
                directory + number, flags=linux.FOLLOW
            )
            if major << 32 | minor == device:
                yield from _descriptor(pid, number)
            elif stat.S_ISSOCK(mode):
                yield _socket(pid, number)
        except OSError as error:
            members.pass_over(error)


def _descriptor(pid: bytes, number: bytes) -> Iterator[Holder]:
    path = b"/proc/%b/fd/%b" % (pid, number)
    if is_spare(pid, number):
        return
    holder = Holder(0, b"fd %b %b" % (pid, number), path)
    fd = holder.open(())
    try:
        if linux.is_net_namespace(fd):
            yield holder._replace(inode=os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def _socket(pid: bytes, number: bytes) -> Holder:
    owner = int(pid), int(number)
    fd = linux.socket_namespace(*owner)
    try:
        inode = os.fstat(fd).st_ino
    finally:
        os.close(fd)
    line = b"socket %b %b" % (pid, number)
    return Holder(inode, line, b"/proc/%b/fd/%b" % (pid, number), owner)


_KINDS = (b"task", b"thread", b"fd", b"mount", b"socket")


def _order(holder: Holder) -> tuple[object, ...]:
    kind, _, rest = holder.line.partition(b" ")
    numbers = [] if kind == b"mount" else [int(number) for number in rest.split()]
    return _KINDS.index(kind), numbers, rest


def of(inode: int) -> list[Holder]:
    """The holders of one namespace: those that most likely stay and can be opened first."""
    # Two chrooted processes of one mount namespace may tell of the same mount.
    return sorted({holder for holder in scan() if holder.inode == inode}, key=_order)


def listing(inode: int) -> bytes:
    """The holders of one namespace, one a line."""
    return b"".join(holder.line + b"\n" for holder in of(inode))


def listing_size() -> int:
    """An upper bound, in bytes, of the listing of one namespace's holders.

    Tasks, open files and mounts, with room for files that are shared by several processes.
    """
    with open("/proc/sys/fs/file-nr", "rb") as file:
        files = int(file.read().split()[0])
    return members.listing_size() * 4 + files * 64
