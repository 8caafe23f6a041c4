"""Namespaces without FUSE, with ip-netns(8) as the other side."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import (
    RUN,
    error_of,
    ip,
    no_more_mounts,
    no_run_directory,
    nsfs_mounts,
    wait_for,
)

from netnsfs import jobs as workers
from netnsfs import linux
from netnsfs.netns import rundir
from netnsfs.netns.names import NamedNamespaces


@pytest.fixture
def names() -> Iterator[NamedNamespaces]:
    # What pytest keeps must not keep the descriptors.
    made = [NamedNamespaces(bytes(RUN))]
    yield weakref.proxy(made[0])
    made.clear()


def own() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_create_is_what_ip_netns_add_makes(names: NamedNamespaces) -> None:
    made, _ = names.create(b"foo")
    ip("netns", "add", "bar")
    assert sorted(names.list_names()) == [b"bar", b"foo"]
    assert sorted(ip("netns", "list").stdout.split()) == [b"bar", b"foo"]
    ours, theirs = os.stat(RUN / "foo"), os.stat(RUN / "bar")
    assert made.inode == ours.st_ino
    assert (ours.st_mode, ours.st_dev, ours.st_size) == (
        theirs.st_mode,
        theirs.st_dev,
        theirs.st_size,
    )
    assert b"state DOWN" in ip("-n", "foo", "link", "show", "lo").stdout
    for name in ("foo", "bar"):
        subprocess.run(["umount", RUN / name], check=True)
        assert os.lstat(RUN / name).st_mode & 0o777 == 0
        names.remove(name.encode())
    assert names.list_names() == []


def test_id_is_unique_and_equals_the_socket_cookie(names: NamedNamespaces) -> None:
    first, _ = names.create(b"a")
    cookie = ip("netns", "exec", "a", "python3", "-c", COOKIE).stdout
    names.remove(b"a")
    second, _ = names.create(b"a")
    names.remove(b"a")
    assert int(cookie) == first.id
    assert second.id != first.id


COOKIE = """
import socket, sys
data = socket.socket(socket.AF_UNIX).getsockopt(socket.SOL_SOCKET, 71, 8)
print(int.from_bytes(data, sys.byteorder))
"""


def test_id_without_the_ioctl_of_linux_6_18(
    names: NamedNamespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = names.create(b"a")
    monkeypatch.setattr(linux, "namespace_id", lambda fd: None)
    assert names.identify(b"a") == made
    names.remove(b"a")
    assert names.list_names() == []


def test_the_caller_never_leaves_its_namespace(names: NamedNamespaces) -> None:
    before = own()
    names.create(b"a")
    assert own() == before
    names.remove(b"a")


@pytest.mark.parametrize(
    "name",
    [b"x" * 255, b"\xff\xfe", b"a\nb", b"-rf", b".hidden", b"4711", b"a b", "ä".encode()],
)
def test_names_that_ip_netns_takes(names: NamedNamespaces, name: bytes) -> None:
    names.create(name)
    assert names.list_names() == [name]
    assert name in ip("netns", "list").stdout
    names.remove(name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"x" * 256, "ENAMETOOLONG"),
        (b"", "EINVAL"),
        (b".", "EINVAL"),
        (b"..", "EINVAL"),
        (b"a/b", "EINVAL"),
        (b"a\0b", "EINVAL"),
    ],
)
def test_names_that_nobody_takes(names: NamedNamespaces, name: bytes, code: str) -> None:
    assert error_of(names.create, name) == code
    assert names.list_names() == []


def test_create_refuses_what_exists_before_it_makes_anything(
    names: NamedNamespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = names.create(b"live")
    (RUN / "stale").touch(mode=0)
    monkeypatch.setattr(linux, "unshare", lambda flags: pytest.fail("made a namespace"))
    assert error_of(names.create, b"live") == "EEXIST"
    assert error_of(names.create, b"stale") == "EEXIST"
    assert names.identify(b"live") == made
    names.remove(b"live")
    names.remove(b"stale")


@pytest.mark.parametrize("call", ["unshare", "bind_mount", "move_mount"])
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC, errno.EPERM])
def test_a_failed_create_leaves_nothing(
    names: NamedNamespaces, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    names.create(b"first")
    names.remove(b"first")

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(linux, call, fail)
        assert error_of(names.create, b"x") == errno.errorcode[code]
    assert names.list_names() == []
    assert nsfs_mounts() == []


LIMITED = """
import os, sys
from pathlib import Path
from netnsfs.netns.names import NamedNamespaces
names = NamedNamespaces(os.fsencode(sys.argv[1]))
names.create(b"first")
limit = Path("/proc/sys/user", sys.argv[2])
limit.write_text("1")
try:
    names.create(b"x")
except OSError as error:
    print(error.errno, names.list_names(), error.strerror)
"""


@pytest.mark.parametrize("limit", ["max_net_namespaces", "max_mnt_namespaces"])
def test_limit_of_namespaces(tmp_path: Path, limit: str) -> None:
    # In a user namespace: the limit of the machine is not ours to change.
    command = ["unshare", "-Urnm", sys.executable, "-c", LIMITED, f"{tmp_path}/run", limit]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"{errno.ENOSPC} [b'first'] user.{limit} is 1 and reached")


@pytest.mark.machine
def test_limit_of_mounts(names: NamedNamespaces) -> None:
    names.create(b"first")
    with no_more_mounts():
        assert error_of(names.create, b"x") == "ENOSPC"
    assert names.list_names() == [b"first"]
    names.remove(b"first")


def test_a_name_remade_by_another_before_the_bind_is_left_alone(
    names: NamedNamespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.create(b"warm")
    names.remove(b"warm")
    move_mount = linux.move_mount

    def interfere(mount: int, target: int) -> None:
        ip("netns", "del", "foo")
        ip("netns", "add", "foo")
        move_mount(mount, target)

    with monkeypatch.context() as patch:
        patch.setattr(linux, "move_mount", interfere)
        assert error_of(names.create, b"foo") == "ENOENT"
    assert nsfs_mounts() == [bytes(RUN / "foo")]
    assert names.identify(b"foo") is not None
    names.remove(b"foo")


def test_a_job_without_a_caller_makes_nothing(names: NamedNamespaces) -> None:
    names.create(b"warm")
    names.remove(b"warm")
    job = workers.Job(names.create, b"x")

    def run() -> None:
        with workers.disposable():
            job.abandon()
            job.run()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    with pytest.raises(workers.Abandoned):
        job.result()
    assert names.list_names() == []


# The run directory


def test_the_directory_is_made_shared_once_and_mounts_are_not_doubled(
    names: NamedNamespaces,
) -> None:
    no_run_directory()
    subprocess.run(["mount", "--make-shared", "/run"], check=True)
    try:
        names.create(b"a")
        again = NamedNamespaces(bytes(RUN))
        again.create(b"b")
        ip("netns", "add", "c")
        top = linux.mount_at(bytes(RUN))
        assert top is not None
        assert top.peers
        assert sorted(nsfs_mounts()) == [bytes(RUN / name) for name in "abc"]
        for name in (b"a", b"b", b"c"):
            names.remove(name)
    finally:
        subprocess.run(["umount", RUN], check=True)
        subprocess.run(["mount", "--make-private", "/run"], check=True)


def test_a_directory_that_is_mounted_anew_is_made_shared_anew(names: NamedNamespaces) -> None:
    names.create(b"a")
    names.remove(b"a")
    # Before Linux 6.8, the new mount has the ID of the old one.
    subprocess.run(["umount", RUN], check=True)
    subprocess.run(["mount", "--bind", "--make-private", RUN, RUN], check=True)
    names.create(b"a")
    top = linux.mount_at(bytes(RUN))
    names.remove(b"a")
    assert top is not None
    assert top.peers


def test_a_bind_without_more_is_made_a_mount_of_its_own(names: NamedNamespaces) -> None:
    # What a kill in the middle leaves.
    no_run_directory()
    RUN.mkdir()
    subprocess.run(["mount", "--make-shared", "/run"], check=True)
    try:
        subprocess.run(["mount", "--bind", RUN, RUN], check=True)
        names.create(b"a")
        assert nsfs_mounts() == [bytes(RUN / "a")]
        names.remove(b"a")
        subprocess.run(["umount", RUN], check=True)
        # With a name in it, everything that is mounted twice must be unmounted twice.
        subprocess.run(["mount", "--bind", RUN, RUN], check=True)
        ip("netns", "add", "b")
        again = NamedNamespaces(bytes(RUN))
        again.create(b"a")
        for name in (b"a", b"b"):
            again.remove(name)
        assert nsfs_mounts() == []
    finally:
        subprocess.run(["umount", RUN], check=True)
        subprocess.run(["mount", "--make-private", "/run"], check=True)


def test_the_directory_and_its_parents_are_made(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        names = NamedNamespaces(bytes(tmp_path / "a/b"))
        assert names.list_names() == []
        names.create(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o755
    names.remove(b"x")
    subprocess.run(["umount", tmp_path / "a/b"], check=True)


def test_the_lock_of_iproute2_is_respected(
    names: NamedNamespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_run_directory()
    RUN.mkdir()
    monkeypatch.setattr(rundir, "LOCK_SECONDS", 0.05)
    fd = os.open(RUN, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert error_of(names.create, b"x") == "ETIMEDOUT"
    assert names.list_names() == []
    assert linux.mount_at(bytes(RUN)) is None
    os.close(fd)
    names.create(b"x")
    names.remove(b"x")


# Identify


def test_identify(names: NamedNamespaces) -> None:
    made, _ = names.create(b"real")
    os.symlink("real", RUN / "relative")
    os.symlink(RUN / "relative", RUN / "chain")
    os.symlink(f"/proc/{os.getpid()}/ns/net", RUN / "ours")
    os.symlink("nowhere", RUN / "dangling")
    os.symlink("loop", RUN / "loop")
    os.mkfifo(RUN / "fifo")
    (RUN / "directory").mkdir()
    (RUN / "uts").touch()
    subprocess.run(["mount", "--bind", "/proc/self/ns/uts", RUN / "uts"], check=True)
    assert names.identify(b"relative") == names.identify(b"chain") == made
    ours = names.identify(b"ours")
    assert ours is not None
    assert f"net:[{ours.inode}]" == own()
    for stale in (b"dangling", b"loop", b"fifo", b"directory", b"uts"):
        assert names.identify(stale) is None
    assert error_of(names.identify, b"absent") == "ENOENT"
    for name in (b"relative", b"chain", b"ours", b"dangling", b"loop", b"real", b"uts"):
        names.remove(name)
    (RUN / "fifo").unlink()
    (RUN / "directory").rmdir()


# Remove


def test_remove_takes_stacked_mounts(names: NamedNamespaces) -> None:
    names.create(b"a")
    for _ in range(3):
        subprocess.run(["mount", "--bind", "/proc/self/ns/net", RUN / "a"], check=True)
    names.remove(b"a")
    assert names.list_names() == []


@contextmanager
def read_only(*options: str) -> Iterator[str]:
    subprocess.run(["mount", "-o", ",".join(["remount", *options, "ro"]), RUN], check=True)
    try:
        yield "EROFS"
    finally:
        subprocess.run(["mount", "-o", ",".join(["remount", *options, "rw"]), RUN], check=True)


@contextmanager
def inode_flag(flag: str, below: bytes) -> Iterator[str]:
    with linux.closing_fd(linux.open_tree(bytes(RUN))) as clone:
        path = f"/proc/{os.getpid()}/fd/{clone}/{os.fsdecode(below)}"
        if subprocess.run(["chattr", f"+{flag}", path], check=False).returncode:
            pytest.skip("this tmpfs has no inode flags (Linux 6.6)")
        try:
            yield "EPERM"
        finally:
            subprocess.run(["chattr", f"-{flag}", path], check=True)


@pytest.mark.machine
@pytest.mark.parametrize(
    "closed",
    [
        partial(read_only, "bind"),
        read_only,
        partial(inode_flag, "i", b""),
        partial(inode_flag, "a", b""),
        partial(inode_flag, "i", b"foo"),
        partial(inode_flag, "a", b"foo"),
    ],
    ids=["mount", "file system", "immutable", "append only", "its file", "its file, append"],
)
def test_what_cannot_be_unlinked_is_not_detached(
    names: NamedNamespaces, closed: Callable[[], AbstractContextManager[str]]
) -> None:
    made, _ = names.create(b"foo")
    with closed() as code:
        assert error_of(names.remove, b"foo") == code
        assert error_of(names.rename, b"foo", b"bar") == code
        assert names.identify(b"foo") == made
        assert os.listdir(RUN) == ["foo"]
    names.rename(b"foo", b"bar")
    names.remove(b"bar")


def test_remove_of_a_link_leaves_its_target(names: NamedNamespaces) -> None:
    made, _ = names.create(b"real")
    os.symlink("real", RUN / "lnk")
    names.remove(b"lnk")
    assert names.identify(b"real") == made
    names.remove(b"real")


def test_remove_while_a_process_is_inside(names: NamedNamespaces) -> None:
    names.create(b"a")
    inside = subprocess.Popen(["ip", "netns", "exec", "a", "sleep", "60"])
    wait_for(lambda: os.readlink(f"/proc/{inside.pid}/ns/net") != own())
    there = os.readlink(f"/proc/{inside.pid}/ns/net")
    names.remove(b"a")
    assert os.readlink(f"/proc/{inside.pid}/ns/net") == there
    inside.kill()
    inside.wait()


@pytest.fixture
def foreign(names: NamedNamespaces) -> Iterator[None]:
    (RUN / "directory").mkdir()
    (RUN / "dhclient.pid").write_text("4711\n")
    os.mkfifo(RUN / "fifo")
    yield
    (RUN / "directory").rmdir()
    (RUN / "dhclient.pid").unlink()
    (RUN / "fifo").unlink()


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", [b"directory", b"dhclient.pid", b"fifo"])
def test_remove_leaves_what_is_somebodys(names: NamedNamespaces, name: bytes) -> None:
    assert error_of(names.remove, name) == "EPERM"
    assert name in names.list_names()


def test_remove_of_nothing(names: NamedNamespaces) -> None:
    assert error_of(names.remove, b"absent") == "ENOENT"


def test_a_name_for_what_had_one_is_removed_everywhere(
    names: NamedNamespaces, tmp_path: Path
) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    subprocess.run(["mount", "--rbind", "/run", inside], check=True)
    try:
        for number in range(2):
            names.create(b"foo")
            with linux.closing_fd(names.open_namespace(b"foo")) as fd:
                if number:
                    # Of a mount that still stands.
                    names.attach(b"bar", fd)
                names.remove(b"foo")
                if not number:
                    names.attach(b"bar", fd)
            assert os.listdir(RUN) == ["bar"]
            names.rename(b"bar", b"baz")
            names.remove(b"baz")
            assert os.listdir(RUN) == []
            assert nsfs_mounts() == []
    finally:
        subprocess.run(["umount", "-R", "-l", inside], check=True)


def test_remove_detaches_the_copies_in_other_mount_namespaces(names: NamedNamespaces) -> None:
    names.create(b"a")
    subprocess.run(["ip", "link", "add", "left", "type", "veth", "peer", "right"], check=True)
    ip("link", "set", "right", "netns", "a")
    other = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "60"])
    wait_for(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
    assert str(RUN / "a") in Path(f"/proc/{other.pid}/mountinfo").read_text()
    names.remove(b"a")
    assert str(RUN / "a") not in Path(f"/proc/{other.pid}/mountinfo").read_text()
    wait_for(lambda: ip("link", "show", "left", check=False).returncode != 0)
    other.kill()
    other.wait()


def test_eperm_of_setns_strands_the_thread_not_the_caller(
    names: NamedNamespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, home, setns = own(), os.stat("/proc/thread-self/ns/net"), linux.setns

    def fail_to_go_home(fd: int, nstype: int) -> None:
        if os.path.samestat(os.fstat(fd), home):
            raise PermissionError(errno.EPERM, "")
        # Where only a visit tells a namespace's ID, before Linux 6.18.
        setns(fd, nstype)

    with monkeypatch.context() as patch:
        patch.setattr(linux, "setns", fail_to_go_home)
        names.create(b"a")
    assert own() == before
    assert names.identify(b"a") is not None
    names.remove(b"a")
