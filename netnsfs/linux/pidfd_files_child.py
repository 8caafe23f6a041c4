"""The program of the child process of `pidfd_files`. It stands alone, to start quickly.

    pidfd_files_child.py tell            of many files: the namespace of each
    pidfd_files_child.py fetch TASK FD   of one: a descriptor of its namespace
    pidfd_files_child.py maps            the sockets that processes have mapped

Its standard input is the memory with the records of the many, a socket for the descriptor, or a
file for the records of the mappings.

A copy of a foreign descriptor may be of anything by the time it is made, and closing it may
take as long as somebody likes. So it tells what it has learnt before it closes a copy. To read
what a process has mapped may take as long as well: the kernel locks its memory meanwhile.
"""

import array
import ctypes
import errno
import fcntl
import mmap
import os
import re
import socket
import stat
import struct
import sys

HEAD = struct.Struct("=II")
"""Before the records: how many there are, and how many have been looked at."""
RECORD = struct.Struct("=III")
"""Task, descriptor, and the inode number of its namespace: 0 if it has none."""
MAPPING = struct.Struct("=IQQ")
"""Process, address, and the inode number of the socket."""

# A line of /proc/PID/maps: the address, and, at the end, what is mapped.
_SOCKET_LINE = re.compile(rb"^([0-9a-f]+)-.* socket:\[(\d+)\]$", re.MULTILINE)

_SYS_PIDFD_OPEN = 434
_SYS_PIDFD_GETFD = 438
# Linux 6.9: a pidfd of a thread that is not the first of its process.
_PIDFD_THREAD = os.O_EXCL
# linux/sockios.h; also of tun devices.
_SIOCGSKNS = 0x894C
# asm-generic/socket.h
_SO_NETNS_COOKIE = 71
# TUN_MINOR of the miscellaneous devices (linux/miscdevice.h).
_TUN = os.makedev(10, 200)
_libc = ctypes.CDLL(None)
_cookie = ctypes.create_string_buffer(8)
_length = ctypes.c_uint()
_length_pointer = ctypes.byref(_length)


def main(what: str, *arguments: str) -> None:
    if what == "fetch":
        _fetch(*map(int, arguments))
    elif what == "maps":
        _list_mapped()
    else:
        _tell(mmap.mmap(0, 0))


def _fetch(task: int, fd: int) -> None:
    copy = _copy(_open_task(task), fd)
    out = socket.socket(fileno=0)
    try:
        rights = array.array("i", [_open_namespace(copy)])
    except (OSError, ValueError):
        # An answer without a descriptor. Without any, the daemon would wait until this ends.
        out.send(b"\0")
    else:
        out.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def _tell(memory: mmap.mmap) -> None:
    count, done = HEAD.unpack_from(memory)
    known: dict[bytes, int] = {}
    owner, opened = 0, -1
    for number in range(done, count):
        at = HEAD.size + number * RECORD.size
        task, fd, _ = RECORD.unpack_from(memory, at)
        # The files of a task follow one another: one pidfd serves for all of them.
        if task != owner:
            if opened >= 0:
                os.close(opened)
            owner, opened = task, _open_task(task)
        copy = _copy(opened, fd)
        RECORD.pack_into(memory, at, task, fd, _namespace(copy, known))
        HEAD.pack_into(memory, 0, count, number + 1)
        # Last, because this close may hang: the answer stands by now, and the file is counted.
        if copy >= 0:
            os.close(copy)


def _list_mapped() -> None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                found = _SOCKET_LINE.findall(file.read())
        except OSError:
            continue
        for address, inode in found:
            os.write(0, MAPPING.pack(int(pid), int(address, 16), int(inode)))


def _open_task(task: int) -> int:
    process: int = _libc.syscall(_SYS_PIDFD_OPEN, task, 0)
    if process < 0:
        process = _libc.syscall(_SYS_PIDFD_OPEN, task, _PIDFD_THREAD)
    return process


def _copy(task: int, fd: int) -> int:
    return int(_libc.syscall(_SYS_PIDFD_GETFD, task, fd, 0))


def _namespace(copy: int, known: dict[bytes, int]) -> int:
    """The inode number of a file's namespace. The file of each namespace is opened once."""
    if not _is_socket(copy):
        return _inode(copy)
    cookie = _cookie.raw
    # A cookie takes one call; opening the namespace's file takes three, and makes an inode.
    if cookie not in known:
        known[cookie] = _inode(copy)
    return known[cookie]


def _is_socket(copy: int) -> bool:
    # getsockopt(2) writes the length back.
    _length.value = len(_cookie)
    level, option = socket.SOL_SOCKET, _SO_NETNS_COOKIE
    return not _libc.getsockopt(copy, level, option, _cookie, _length_pointer)


def _open_namespace(copy: int) -> int:
    """The descriptor that the kernel gives for a socket or a tun device.

    For any other file, its file system answers ioctl(2), with what number it likes. It would be
    taken for a descriptor of this process: of that file, say, which nobody may close.
    """
    if not _is_socket(copy):
        found = os.fstat(copy)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _TUN:
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    return fcntl.ioctl(copy, _SIOCGSKNS)


def _inode(copy: int) -> int:
    try:
        fd = _open_namespace(copy)
    except (OSError, ValueError):
        # Nothing of that kind, or there was no file to copy, so that the number is -1.
        return 0
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


if __name__ == "__main__":
    main(*sys.argv[1:])
