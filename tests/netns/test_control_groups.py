"""Control groups: of real processes, and on hosts with one hierarchy, several, or both."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netnsfs.netns import control_groups

Spawn = Callable[..., subprocess.Popen[bytes]]

POD = b"/kubepods.slice/kubepods-pod1.slice"
UNIFIED = b"0::/system.slice/docker-1.scope\n"
HYBRID = (
    b"9:name=systemd:/system.slice/docker-1.scope\n4:memory:/docker/1\n3:cpuset:/\n"
    b"1:cpu:/system.slice/docker-1.scope\n" + UNIFIED
)
ONLY_ONE = b"9:name=systemd:/docker/1\n4:memory:/docker/1\n3:cpuset:/\n0::/\n"
VERSION_1 = b"9:name=systemd:/docker/1\n3:cpuset:/\n"


@pytest.mark.parametrize(
    ("texts", "listed", "common"),
    [
        ([], b"", b""),
        ([b"0::/\n"], b"/\n", b"/"),
        ([UNIFIED], b"/system.slice/docker-1.scope\n", b"/system.slice/docker-1.scope"),
        ([HYBRID], b"/docker/1\n/system.slice/docker-1.scope\n", UNIFIED[3:-1]),
        ([ONLY_ONE], b"/\n/docker/1\n", b"/docker/1"),
        ([VERSION_1], b"/docker/1\n", b"/docker/1"),
        ([b"3:cpuset:/\n2:cpu:/\n"], b"/\n", b"/"),
        ([b"0::/a:b/c d\n"], b"/a:b/c d\n", b"/a:b/c d"),
        (
            [b"0::%b/c1.scope\n" % POD, b"0::%b/c2.scope/sub\n" % POD] * 3,
            b"%b/c1.scope\n%b/c2.scope/sub\n" % (POD, POD),
            POD,
        ),
        ([b"0::/ab\n", b"0::/a\n"], b"/a\n/ab\n", b"/"),
        ([HYBRID, ONLY_ONE], b"/\n/docker/1\n/system.slice/docker-1.scope\n", b"/docker/1"),
    ],
)
def test_which_tell_something(texts: list[bytes], listed: bytes, common: bytes) -> None:
    assert control_groups.list_paths(texts) == listed
    assert control_groups.common_path(texts) == common


def test_after_the_root_nothing_is_read() -> None:
    def texts() -> Iterator[bytes]:
        yield b"0::/\n"
        raise AssertionError

    assert control_groups.common_path(texts()) == b"/"


def test_those_that_proc_tells(spawn: Spawn) -> None:
    inside = {spawn("sleep", "60").pid for _ in range(3)}
    lines = Path(f"/proc/{min(inside)}/cgroup").read_text().splitlines()
    told = control_groups.listing(inside).decode().splitlines()
    assert set(told) <= {line.split(":", 2)[2] for line in lines}
    assert all(line.split(":", 2)[2] in [*told, "/"] for line in lines)
    assert os.fsdecode(control_groups.common(inside)) in told
    # Another, which has ended, is none.
    gone = spawn("true")
    gone.wait()
    assert control_groups.listing([gone.pid]) == control_groups.common([gone.pid]) == b""
