"""Signals to members: those that fork, move, visit, belong to others; and nobody else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import HOLD_THREAD, RUN, USER_MODE_LINUX, error_of, ip, kills_forks, wait_for

from netnsfs import linux
from netnsfs.jobs import disposable, restoring_namespace
from netnsfs.netns import signals, tasks

Spawn = Callable[..., subprocess.Popen[bytes]]

FORKERS = str(Path(__file__).parents[1] / "forkers.py")
MANY = 20 if USER_MODE_LINUX else 200

# Enters by a thread for a moment, again and again.
VISITOR = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
def visit():
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(sys.argv[1], os.O_RDONLY)
    print("ready", flush=True)
    while True:
        libc.setns(there, 0)
        time.sleep(0.005)
        libc.setns(home, 0)
        time.sleep(0.01)
threading.Thread(target=visit).start()
"""


pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture
def foo() -> Iterator[Path]:
    ip("netns", "add", "foo")
    yield RUN / "foo"
    ip("netns", "del", "foo")


def send(path: Path, text: bytes, may_signal: Callable[[int], bool] | None = None) -> None:
    with linux.closing_fd(os.open(path, os.O_RDONLY)) as fd:
        signals.send(fd, text, may_signal)


def members(path: Path) -> list[int]:
    return tasks.pids(os.stat(path).st_ino)


@contextmanager
def forkers(path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Until the block ends; nobody outside may have got a signal."""
    command = [sys.executable, FORKERS, str(path), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.stdin.close()
            told = process.stdout.read()
        assert told == b""
    assert process.returncode == 0


def sleeper(spawn: Spawn, path: Path) -> subprocess.Popen[bytes]:
    process = spawn("nsenter", f"--net={path}", "sleep", "60")
    wait_for(lambda: process.pid in members(path) and command_is(process.pid, b"sleep"))
    return process


def command_is(pid: int, name: bytes) -> bool:
    return Path(f"/proc/{pid}/comm").read_bytes() == name + b"\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"TERM\n", 15),
        (b"SIGTERM", 15),
        (b" kill ", 9),
        (b"9\n", 9),
        (b"0", 0),
        (b"64", 64),
        (b"RTMIN", signal.SIGRTMIN),
        (b"037", 37),
    ],
)
def test_signals_by_name_and_number(text: bytes, number: int) -> None:
    assert signals.parse_signal(text) == number


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"SIG", b"FOO", b"65", b"-9", b"-1", b"9 9", b"9" * 5000, b"\xff", b"1.0"],
)
def test_what_is_no_signal(text: bytes) -> None:
    assert error_of(signals.parse_signal, text) == "EINVAL"


def test_each_member_is_sent_it_and_nobody_else(foo: Path, spawn: Spawn) -> None:
    inside = [sleeper(spawn, foo) for _ in range(3)]
    beside = spawn("sleep", "60")
    send(foo, b"TERM")
    assert [process.wait(30) for process in inside] == [-signal.SIGTERM] * 3
    assert beside.poll() is None
    send(foo, b"TERM")


def test_signal_0_reaches_nobody(foo: Path, spawn: Spawn) -> None:
    send(foo, b"0")
    inside = sleeper(spawn, foo)
    send(foo, b"0")
    assert error_of(send, foo, b"0", lambda pid: False) == "EPERM"
    assert inside.poll() is None


def test_processes_of_others_are_left_out(foo: Path, spawn: Spawn) -> None:
    first, second = sleeper(spawn, foo), sleeper(spawn, foo)
    send(foo, b"TERM", lambda pid: pid == first.pid)
    assert first.wait(30) == -signal.SIGTERM
    assert error_of(send, foo, b"TERM", lambda pid: False) == "EPERM"
    assert second.poll() is None


def test_nobody_is_signalled_in_the_initial_namespace(foo: Path) -> None:
    assert error_of(send, Path("/proc/self/ns/net"), b"0") == "EPERM"


@kills_forks
def test_those_that_fork_do_not_get_away(foo: Path) -> None:
    with forkers(foo, "forking", str(MANY), "outside", "20"):
        send(foo, b"KILL")
        # One that was sent it may be a moment on its way out.
        wait_for(lambda: not members(foo))
        time.sleep(0.2)
        assert not members(foo)


@kills_forks
def test_those_that_move_in_meanwhile(foo: Path) -> None:
    def is_empty() -> bool:
        send(foo, b"TERM")
        return not members(foo)

    # They come for a quarter of a second, or longer on a slow machine.
    with forkers(foo, "forking", str(MANY // 4), "moving", "50", "outside", "20"):
        wait_for(is_empty)


@kills_forks
def test_it_ends_where_new_ones_keep_coming(foo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SIGNAL_SECONDS", 0.5)
    with forkers(foo, "breeding", "10", "outside", "5"):
        wait_for(lambda: len(members(foo)) > 10)
        began = time.monotonic()
        # Now and then, nobody is born for long enough.
        assert error_of(send, foo, b"TERM") in ("ETIMEDOUT", "")
        assert time.monotonic() - began < 30
        send(foo, b"KILL")
        wait_for(lambda: not members(foo))


def test_it_tells_when_there_was_no_time(
    foo: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "SIGNAL_SECONDS", 0)
    inside = sleeper(spawn, foo)
    with pytest.raises(TimeoutError, match="1 were sent the signal"):
        send(foo, b"TERM")
    assert inside.wait(30) == -signal.SIGTERM


def test_a_process_with_only_a_thread_inside(foo: Path, spawn: Spawn) -> None:
    process = spawn(sys.executable, "-c", HOLD_THREAD, str(foo), stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline()
    assert members(foo) == [process.pid]
    send(foo, b"TERM")
    assert process.wait(30) == -signal.SIGTERM


def test_a_visitor_is_none(foo: Path, spawn: Spawn) -> None:
    visitor = spawn(sys.executable, "-c", VISITOR, str(foo), stdout=subprocess.PIPE)
    assert visitor.stdout
    assert visitor.stdout.readline()
    inside = sleeper(spawn, foo)
    send(foo, b"KILL")
    assert inside.wait(30) == -signal.SIGKILL
    assert visitor.poll() is None


def test_this_process_is_none(foo: Path) -> None:
    there, leave = threading.Event(), threading.Event()
    inside: list[int] = []

    def stay() -> None:
        with disposable(), restoring_namespace():
            with linux.closing_fd(os.open(foo, os.O_RDONLY)) as fd:
                linux.setns(fd, linux.CLONE_NEWNET)
            inside.append(os.stat("/proc/thread-self/ns/net").st_ino)
            there.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert there.wait(60)
    assert inside == [foo.stat().st_ino]
    send(foo, b"KILL")
    leave.set()
    thread.join()
