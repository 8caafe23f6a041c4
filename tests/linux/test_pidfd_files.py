"""Sockets and tun devices of other processes, and files that nobody can close."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import error_of, few_descriptors, settled, type_at, wait_for

from netnsfs import linux
from netnsfs.linux import pidfd_files_child


def listen_elsewhere() -> tuple[socket.socket, int]:
    linux.unshare(linux.CLONE_NEWNET)
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM), inode


def test_the_namespace_of_a_socket() -> None:
    with ThreadPoolExecutor() as threads:
        held, inode = threads.submit(listen_elsewhere).result()
    with held, linux.closing_fd(linux.namespace_of_file(os.getpid(), held.fileno())) as found:
        assert os.fstat(found).st_ino == inode
    with linux.closing_fd(os.open("/", os.O_RDONLY)) as directory:
        assert error_of(linux.namespace_of_file, os.getpid(), directory) == "ENOENT"
    assert error_of(linux.namespace_of_file, os.getpid(), 10**6) == "ENOENT"


def test_the_namespaces_of_many_files() -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    with socket.socket() as held, open(os.devnull) as other:
        files = [(os.getpid(), fd) for fd in (held.fileno(), other.fileno(), 10**6)]
        assert linux.namespaces_of_files([*files, (2**22, 0)] * 100) == [own, 0, 0, 0] * 100
    assert linux.namespaces_of_files([]) == []


@contextmanager
def stuck(mount_point: Path) -> Iterator[Path]:
    """A file that can be opened, but not closed as long as its server runs."""
    mount_point.mkdir()
    program = Path(__file__).parents[1] / "stuckfs.py"
    server = subprocess.Popen([sys.executable, program, mount_point])
    try:
        wait_for(lambda: type_at(mount_point) == b"fuse")
        yield mount_point / "file"
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "-l", mount_point], check=True)
        mount_point.rmdir()


HOLD_FILE = """
import os, socket, sys, time
fds = [os.open(sys.argv[1], os.O_RDONLY), socket.socket().detach()]
print(*fds, flush=True)
time.sleep(100)
"""


@pytest.mark.machine
def test_a_copy_that_cannot_be_closed_costs_a_child_only() -> None:
    # Both the process that holds it and the children end with the server.
    with ExitStack() as stack, stuck(Path("/run/stuck")) as file:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD_FILE, file], stdout=subprocess.PIPE
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        assert process.stdout
        bad, good = map(int, process.stdout.readline().split())
        own = os.stat("/proc/self/ns/net").st_ino
        began = time.monotonic()
        for _ in range(3):
            files = [(process.pid, bad), (process.pid, good)]
            assert linux.namespaces_of_files(files) == [0, own]
        assert error_of(linux.namespace_of_file, process.pid, bad) == "ENOENT"
        assert time.monotonic() - began < 6

        def one_more_is_refused() -> bool:
            # How many are lost in the time that one call takes, is the machine's.
            assert None in linux.namespaces_of_files(
                [(process.pid, bad)] * 20 + [(process.pid, good)]
            )
            return linux.namespaces_of_files([(process.pid, good)]) == [None]

        # So many may be lost, and no more.
        wait_for(one_more_is_refused)
        began = time.monotonic()
        assert linux.namespaces_of_files([(process.pid, good)]) == [None]
        assert error_of(linux.namespace_of_file, process.pid, good) == "ETIMEDOUT"
        assert time.monotonic() - began < 1
    wait_for(lambda: linux.namespaces_of_files([(os.getpid(), 0)]) == [0])


def test_a_child_without_a_descriptor_for_it_is_waited_for() -> None:
    before = settled(children)
    # The memory takes two. A pidfd would take the third.
    with few_descriptors(2):
        assert error_of(linux.namespaces_of_files, [(os.getpid(), 0)]) == "EMFILE"

    def all_have_ended() -> bool:
        assert linux.namespaces_of_files([(os.getpid(), 0)]) == [0]
        return children() == before

    wait_for(all_have_ended)


def children() -> list[str]:
    tasks = Path("/proc/self/task").glob("*/children")
    return sorted(pid for path in tasks for pid in path.read_text().split())


def test_a_number_of_another_file_system_is_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A FUSE server answers ioctl(2) on its files with any number.
    with linux.closing_fd(os.open("/", os.O_RDONLY)) as file:
        monkeypatch.setattr(fcntl, "ioctl", lambda fd, request: fd)
        assert error_of(pidfd_files_child._open_namespace, file) == "ENOTSOCK"
        with socket.socket() as real:
            assert pidfd_files_child._open_namespace(real.fileno()) == real.fileno()
