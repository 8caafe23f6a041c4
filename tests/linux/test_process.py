"""The capabilities, the memory and the signals of a process."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from netnsfs import linux

DROP = """
import os, threading
from netnsfs import linux
def held():
    with open("/proc/thread-self/status") as lines:
        return [int(line.split()[1], 16) for line in lines if line[:6] in SETS]
SETS = ("CapInh", "CapPrm", "CapEff")
bit, before = 1 << linux.CAP_SYSLOG, held()
assert all(word & bit for word in before[1:])
for _ in range(2):
    linux.drop_capability(linux.CAP_SYSLOG)
    assert held() == [word & ~bit for word in before]
of_thread = []
thread = threading.Thread(target=lambda: of_thread.extend(held()))
thread.start()
thread.join()
assert of_thread == held()
"""


def test_a_capability_is_dropped_and_no_other() -> None:
    subprocess.run([sys.executable, "-c", DROP], check=True)


HOLLOW = """
from netnsfs import linux
def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
pieces = [b"x" * 8192 for _ in range(20_000)]
# The C library gives back by itself what is free at the end.
kept = pieces[::16]
del pieces
before = pages()
linux.give_memory_back()
print(before, pages())
"""


def test_free_memory_is_given_back() -> None:
    shown = subprocess.check_output([sys.executable, "-c", HOLLOW])
    before, after = map(int, shown.split())
    # Of 160 MB, all but each sixteenth piece.
    assert (before - after) * resource.getpagesize() > 100_000_000


def test_effective_capabilities_are_those_of_a_task() -> None:
    with open("/proc/self/status") as lines:
        told = next(line for line in lines if line.startswith("CapEff"))
    assert linux.effective_capabilities(os.getpid()) == int(told.split()[1], 16)
    # Of no task, and not this one's own.
    for task in (0, 2**22 + 1):
        with pytest.raises(ProcessLookupError):
            linux.effective_capabilities(task)


INTERRUPT = """
import ctypes, errno, os, select, signal
from netnsfs import linux
linux.only_interrupt(signal.SIGALRM)
told, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.read(os.pipe()[0], ctypes.create_string_buffer(1), 1) == -1
assert ctypes.get_errno() == errno.EINTR
assert not select.select([told], [], [], 0.2)[0]
"""


def test_a_signal_that_only_interrupts() -> None:
    subprocess.run([sys.executable, "-c", INTERRUPT], check=True, timeout=60)


def test_a_thread_has_a_name_of_15_bytes() -> None:
    names: list[str] = []

    def run() -> None:
        linux.name_thread("a-name-that-is-longer")
        names.append(Path("/proc/thread-self/comm").read_text())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert names == ["a-name-that-is-\n"]
