"""Signals by `kill`: what it sends to whom, and on whose behalf."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import USER_MODE_LINUX, Mounted, error_of, kills_forks, wait_for
from users import DROP, as_user

Spawn = Callable[..., subprocess.Popen[bytes]]

ALICE, BOB, STAFF = 1001, 1002, 1100
FORKERS = str(Path(__file__).parents[1] / "forkers.py")
MANY = 10 if USER_MODE_LINUX else 100


def last_error(mounted: Mounted) -> str:
    return (mounted / ".netnsfs/last_error").read_text()


def inside(spawn: Spawn, foo: Path, uid: int = 0) -> subprocess.Popen[bytes]:
    ids = (f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    process = spawn("nsenter", f"--net={foo}/ns", "setpriv", *ids, "sleep", "60")
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    return process


@pytest.mark.usefixtures("both_ways")
def test_all_members_and_nobody_else(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    members = [inside(spawn, foo, uid) for uid in (0, ALICE)]
    beside = spawn("sleep", "60")
    subprocess.run(f"echo TERM > {foo}/kill", shell=True, check=True)
    assert [member.wait(30) for member in members] == [-signal.SIGTERM] * 2
    assert beside.poll() is None
    # Nobody is left, which is what was wanted.
    subprocess.run(f"echo 9 > {foo}/kill", shell=True, check=True)
    assert last_error(mnt) == "ok\n"


@kills_forks
@pytest.mark.usefixtures("both_ways")
def test_those_that_fork_and_those_that_move_in(foo: Path) -> None:
    kinds = ("forking", str(MANY), "outside", "10", "moving", "20")
    command = [sys.executable, FORKERS, f"{foo}/ns", *kinds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"

        def is_empty() -> bool:
            (foo / "kill").write_text("TERM")
            return (foo / "pids").read_text() == ""

        # Those that move in come for a while.
        for _ in range(3):
            wait_for(is_empty)
            time.sleep(0.2)
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_commands(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    member = inside(spawn, foo)
    write = (foo / "kill").write_text
    for text in ("", "\n", "SIG", "NOSUCH", "-9", "65", "9 9", "TERM TERM"):
        # Nothing is written where there is nothing to write.
        assert error_of(write, text) == ("EINVAL" if text else ""), text
    assert re.fullmatch(r"write kill: neither .* signal \(EINVAL\), PID .*\n", last_error(mnt))
    write("0")
    assert member.poll() is None
    fd = os.open(foo / "kill", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"STOP\n")
    wait_for(lambda: ") T" in Path(f"/proc/{member.pid}/stat").read_text())
    os.write(fd, b"sigcont\n")
    wait_for(lambda: ") S" in Path(f"/proc/{member.pid}/stat").read_text())
    os.write(fd, b"KILL\n")
    assert member.wait(30) == -signal.SIGKILL
    (mnt / "foo").rmdir()
    assert error_of(os.write, fd, b"TERM") == "ENODEV"
    os.close(fd)


def test_it_reads_as_empty(foo: Path) -> None:
    assert (foo / "kill").read_bytes() == b""
    assert os.stat(foo / "kill").st_size == 0


def test_the_initial_namespace_is_left_alone(mnt: Mounted, spawn: Spawn) -> None:
    beside = spawn("sleep", "60")
    os.symlink("/proc/self/ns/net", mnt / "host")
    for path in (mnt / "host/kill", mnt / ".netnsfs/init/kill"):
        for text in ("KILL", "0"):
            assert error_of(path.write_text, text) == "EPERM"
        assert "initial network namespace (EPERM)" in last_error(mnt)
    os.chown(mnt / "host", ALICE, -1)
    assert as_user(ALICE, ALICE, f"write('{mnt.path}/host/kill', 'KILL')") == ["EPERM"]
    assert beside.poll() is None
    (mnt / "host").rmdir()


def test_an_owner_signals_their_own(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    os.chown(foo, ALICE, STAFF)
    foo.chmod(0o775)
    kill = f"write('{foo}/kill', %r)"
    assert as_user(ALICE, ALICE, kill % "TERM") == [""]
    theirs, roots = inside(spawn, foo, BOB), inside(spawn, foo)
    assert as_user(ALICE, ALICE, kill % "TERM", kill % "0") == ["EPERM", "EPERM"]
    assert "may signal none of the member processes (EPERM)" in last_error(mnt)
    mine = inside(spawn, foo, ALICE)
    assert as_user(ALICE, ALICE, kill % "0", kill % "TERM") == ["", ""]
    assert mine.wait(30) == -signal.SIGTERM
    # The group, whose members may write all else, and everybody else.
    for uid, gid in ((BOB, STAFF), (BOB, BOB)):
        assert as_user(uid, gid, kill % "TERM") == ["EACCES"]
    # The same user ID without the capability, or with it in a user namespace of its own.
    os.chown(foo, 0, 0)
    for prefix in (DROP, ("unshare", "-Ur")):
        assert as_user(0, 0, kill % "TERM", prefix=prefix) == ["EPERM"]
    assert [member.poll() for member in (theirs, roots)] == [None, None]
    assert as_user(0, 0, kill % "TERM") == [""]
    assert {member.wait(30) for member in (theirs, roots)} == {-signal.SIGTERM}


def test_an_owner_keeps_root_from_it_for_seconds_only(foo: Path, spawn: Spawn) -> None:
    os.chown(foo, ALICE, ALICE)
    ids = (f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups")
    # There is always somebody new.
    fork = ("sh", "-c", "while :; do (:); done")
    for _ in range(4):
        spawn("nsenter", f"--net={foo}/ns", "setpriv", *ids, *fork)
    again = f"[write('{foo}/kill', '0') for _ in range(1000000)]"
    # One that takes too long ends by itself.
    assert "EAGAIN" in as_user(ALICE, ALICE, again, again, again)
    assert as_user(0, 0, f"write('{foo}/kill', 'KILL')") == [""]


def test_what_counts_is_who_has_opened_it(foo: Path, spawn: Spawn) -> None:
    member = inside(spawn, foo)
    os.chown(foo, ALICE, ALICE)
    held = os.open(foo / "kill", os.O_WRONLY)
    line = f"os.write({held}, b'0')"
    script = f"import os; os.setuid({BOB}); print({line})"
    command = ["/usr/bin/python3", "-c", script]
    assert subprocess.check_output(command, pass_fds=[held]) == b"1\n"
    os.close(held)
    assert member.poll() is None


def test_without_a_name(mnt: Mounted, spawn: Spawn) -> None:
    process = spawn("unshare", "--net", "sleep", "60")
    own = os.stat("/proc/self/ns/net").st_ino
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != own)
    kill = mnt / f".netnsfs/pid/{process.pid}/kill"
    (kill).write_text("TERM")
    assert process.wait(30) == -signal.SIGTERM


def test_a_second_daemon_that_visits_is_left_alone(
    mnt: Mounted, foo: Path, start: Callable[..., Mounted], spawn: Spawn
) -> None:
    second = start(at=Path("/mnt/second"))
    look = partial(Path.read_bytes, second / ".netnsfs/metrics")
    script = f"while :; do cat {second.path}/.netnsfs/metrics; done > /dev/null"
    spawn("sh", "-c", script)
    for _ in range(5):
        member = inside(spawn, foo)
        (foo / "kill").write_text("KILL")
        assert member.wait(30) == -signal.SIGKILL
    assert b'netns="foo"' in look()
    assert second.process.poll() is None
