"""Several machines, by what mounts a directory of another: sshfs, and ClusterShell on top."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import RUN, Mounted, Start, error_of, ip, sshfs, wait_for

Spawn = Callable[..., subprocess.Popen[bytes]]

FLEET = Path("/mnt/fleet")
RUN_2 = Path("/run/netns2")
UNCACHED = ("dir_cache=no", "entry_timeout=0", "attr_timeout=0", "sshfs_sync")

LISTEN = """
import socket, time
sockets = [socket.create_server(("", 9000 + i)) for i in range(600)]
time.sleep(100)
"""


@pytest.fixture
def host1(mnt: Mounted) -> Iterator[Path]:
    with sshfs(mnt.path, FLEET / "host1", *UNCACHED):
        yield FLEET / "host1"
    FLEET.rmdir()


@pytest.fixture
def hosts(start: Start, host1: Path) -> Iterator[list[Path]]:
    """A second machine: its own daemon, with names of its own."""
    mounted = start("-o", f"rundir={RUN_2}", at=Path("/mnt/netnsfs2"))
    with sshfs(mounted.path, FLEET / "host2", *UNCACHED):
        yield [host1, FLEET / "host2"]
    if RUN_2.exists():
        subprocess.run(["umount", RUN_2], check=True)
        RUN_2.rmdir()


def test_names_are_made_renamed_and_removed_there(host1: Path) -> None:
    (host1 / "foo").mkdir()
    assert ip("netns", "list").stdout == b"foo\n"
    assert error_of(os.mkdir, host1 / "foo") == "EEXIST"
    (host1 / "foo").rename(host1 / "bar")
    assert ip("netns", "list").stdout == b"bar\n"
    (host1 / "foo").mkdir()
    assert error_of(os.rename, host1 / "foo", host1 / "bar") == "EPERM"
    for name in ("foo", "bar"):
        (host1 / name).rmdir()
    assert os.listdir(RUN) == []


def test_changes_made_there_are_seen_at_once(host1: Path) -> None:
    for _ in range(3):
        ip("netns", "add", "foo")
        assert os.listdir(host1) == ["foo"]
        inode = (host1 / "foo/inode").read_text()
        assert inode == f"{os.stat(RUN / 'foo').st_ino}\n"
        ip("netns", "del", "foo")
        assert error_of(os.stat, host1 / "foo") == "ENOENT"


def test_files_have_their_content(host1: Path, foo: Path, spawn: Spawn) -> None:
    before = (host1 / "foo/net/tcp").read_text()
    inside = spawn("nsenter", f"--net={foo}/ns", "python3", "-c", LISTEN)
    wait_for(lambda: len((foo / "net/tcp").read_text().splitlines()) == 601, 30)
    assert (host1 / "foo/net/tcp").read_text() == (foo / "net/tcp").read_text()
    assert len((host1 / "foo/net/tcp").read_text()) > 64 * 1024 > len(before)
    for name in ("id", "pids", "tids", "nsid", "net/dev"):
        assert (host1 / "foo" / name).read_text() == (foo / name).read_text()
    assert (host1 / "foo/pids").read_text() == f"{inside.pid}\n"


def test_writes_arrive_or_fail(host1: Path, foo: Path) -> None:
    (host1 / "foo/nsid").write_text("auto")
    assert (foo / "nsid").read_text().strip().isdigit()
    sysctl = "foo/sysctl/ipv4/ip_forward"
    for value in ("1\n", "0\n"):
        (host1 / sysctl).write_text(value)
        assert (foo.parent / sysctl).read_text() == value
    with pytest.raises(OSError, match="error"), (host1 / sysctl).open("w") as file:
        file.write("x")
    told = (host1 / ".netnsfs/last_error").read_text()
    assert told.startswith("write ip_forward: Invalid argument (EINVAL)")


def test_one_mkdir_for_all_machines(hosts: list[Path]) -> None:
    # `clush -w host[1-2] mkdir /mnt/netnsfs/foo`, where there is an sshd.
    command = ["clush", "-S", "-R", "exec", "-w", "host[1-2]"]
    subprocess.run([*command, "mkdir", f"{FLEET}/%h/foo"], check=True)
    assert os.listdir(RUN) == os.listdir(RUN_2) == ["foo"]
    inodes = {(host / "foo/inode").read_text() for host in hosts}
    assert len(inodes) == 2
    subprocess.run([*command, "mv", f"{FLEET}/%h/foo", f"{FLEET}/%h/bar"], check=True)
    (hosts[1] / "foo").mkdir()
    some = subprocess.run(
        [*command, "mkdir", f"{FLEET}/%h/foo"], check=False, capture_output=True, text=True
    )
    assert some.returncode == 1
    assert "host2: mkdir:" in some.stderr
    assert "host1: mkdir:" not in some.stderr
    subprocess.run([*command, "rmdir", f"{FLEET}/%h/foo", f"{FLEET}/%h/bar"], check=True)
    assert os.listdir(RUN) == os.listdir(RUN_2) == []
