"""Users who make whoever copies their descriptors wait: nobody else waits, nor the daemon."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MNT, Mounted, Start, type_at, wait_for

STUCK = Path("/run/stuck")

# Each descriptor is a socket first, then a file that cannot be closed.
SWAP = """
import os, socket, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
print(flush=True)
for _ in range(300):
    held = socket.socket()
    time.sleep(0.01)
    os.dup2(file, held.detach())
time.sleep(100)
"""

# Who is last to close a socket that lingers waits until all is sent.
LINGER = """
import os, socket, struct, time
listener = socket.create_server(("127.0.0.1", 0))
print(flush=True)
for _ in range(300):
    if os.fork() == 0:
        sender = socket.create_connection(listener.getsockname())
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 100))
        sender.setblocking(False)
        try:
            while True:
                sender.send(bytes(100000))
        except BlockingIOError:
            os._exit(0)
    os.wait()
time.sleep(100)
"""


@pytest.fixture
def stuck_server() -> Iterator[subprocess.Popen[bytes]]:
    """The server of a file that can be opened, but not closed as long as it runs."""
    STUCK.mkdir()
    program = Path(__file__).parents[1] / "stuckfs.py"
    server = subprocess.Popen([sys.executable, program, STUCK])
    try:
        wait_for(lambda: type_at(STUCK) == b"fuse")
        yield server
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "-l", STUCK], check=True)
        STUCK.rmdir()


@pytest.mark.machine
@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("script", [SWAP, LINGER], ids=["swap", "linger"])
def test_what_cannot_be_closed_makes_nobody_wait(
    start: Start, script: str, stuck_server: subprocess.Popen[bytes]
) -> None:
    mnt = start()
    (mnt / "foo").mkdir()
    command = [sys.executable, "-c", script, str(STUCK / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout
            attacker.stdout.readline()
            read_holders(mnt, 4)
            (mnt / "foo").rmdir()
            ends_soon(mnt)
        finally:
            attacker.kill()
            # Only now can it end.
            stuck_server.kill()


def read_holders(mnt: Mounted, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert b"mount /run/netns/foo\n" in (mnt / "foo/holders").read_bytes()
        began = time.monotonic()
        assert (mnt / "foo/pids").read_bytes() == b""
        assert time.monotonic() - began < 1


def ends_soon(mnt: Mounted) -> None:
    began = time.monotonic()
    mnt.process.send_signal(signal.SIGTERM)
    assert mnt.process.wait(20) == 0
    assert time.monotonic() - began < 1
    assert type_at(MNT) == b""


# The kernel cuts the name of a program after 15 bytes: here, in the middle of a letter.
READ_UNDER_A_NAME = """
import ctypes, sys
PR_SET_NAME = 15
ctypes.CDLL(None).prctl(PR_SET_NAME, "ääääääää".encode())
print(open(sys.argv[1]).read(), end="")
"""


def test_a_reader_with_a_name_that_is_not_utf_8(foo: Path) -> None:
    for file in ("pids", "tids", "holders"):
        command = [sys.executable, "-c", READ_UNDER_A_NAME, str(foo / file)]
        assert subprocess.check_output(command) == (foo / file).read_bytes()
