"""ioctl(2) on interfaces, in a namespace of the test's own."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from conftest import error_of

from netnsfs import linux


@pytest.fixture
def inside() -> Iterator[tuple[int, int]]:
    """A socket in a new namespace, with the veth pair v0 and v1, and the namespace."""
    found: list[tuple[socket.socket, int]] = []

    def make() -> None:
        linux.unshare(linux.CLONE_NEWNET)
        command = ["ip", "link", "add", "v0", "type", "veth", "peer", "v1"]
        subprocess.run(command, check=True)
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        found.append((socket.socket(socket.AF_INET, socket.SOCK_DGRAM), fd))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    ((each, fd),) = found
    with each, linux.closing_fd(fd):
        yield each.fileno(), fd


def names(fd: int) -> list[str]:
    command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "ip", "-o", "link"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(line.split()[1].split("@")[0].rstrip(":") for line in lines.splitlines())


def test_rename(inside: tuple[int, int]) -> None:
    socket, fd = inside
    linux.rename_interface(socket, b"v0", b"fifteen-bytes-a")
    assert names(fd) == ["fifteen-bytes-a", "lo", "v1"]
    assert error_of(linux.rename_interface, socket, b"v1", b"lo") == "EEXIST"
    assert error_of(linux.rename_interface, socket, b"gone", b"new") == "ENODEV"
    assert error_of(linux.rename_interface, socket, b"v1", b"a b") == "EINVAL"


def test_speed(inside: tuple[int, int]) -> None:
    socket, _ = inside
    speed = linux.interface_speed(socket, b"v0")
    assert speed is not None
    assert speed >= 1000
    assert linux.interface_speed(socket, b"lo") is None
    assert linux.interface_speed(socket, b"gone") is None
