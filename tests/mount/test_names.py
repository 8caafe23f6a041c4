"""Names and identity: mv, ln -s, nsid, unnamed namespaces, holders, who is where."""

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    HOLD_THREAD,
    RUN,
    Mounted,
    Start,
    command_of,
    error_of,
    ip,
    mount_namespace,
    no_more_mounts,
    nsfs_mounts,
    nsids,
    wait_for,
)

from netnsfs import linux
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import Namespace
from netnsfs.permissions import Owner

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def unnamed(mnt: Mounted) -> Path:
    return mnt / ".netnsfs/unnamed"


def own_inode() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def inode_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def last_error(mnt: Mounted) -> str:
    return (mnt / ".netnsfs/last_error").read_text()


# mv


def test_mv_renames_a_live_namespace(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    inside = spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
    wait_for((foo / "pids").read_text)
    before, inode = (foo / "id").read_text(), os.stat(foo).st_ino
    held = {name: os.open(foo / name, os.O_RDONLY) for name in ("inode", "id", "pids")}
    directory = os.open(foo, os.O_RDONLY)
    subprocess.run(["mv", foo, mnt / "bar"], check=True)
    assert ip("netns", "list").stdout == b"bar\n"
    assert (mnt / "bar/id").read_text() == before
    assert os.stat(mnt / "bar").st_ino == inode
    assert os.readlink(mnt / "bar/ns") == "/run/netns/bar"
    assert os.lstat(mnt / "bar/ns").st_size == len("/run/netns/bar")
    assert error_of(os.stat, mnt / "foo") == "ENOENT"
    for name, fd in held.items():
        assert os.pread(fd, 99, 0) == (mnt / "bar" / name).read_bytes()
        os.close(fd)
    with open("id", opener=lambda path, flags: os.open(path, flags, dir_fd=directory)) as file:
        assert file.read() == before
    os.close(directory)
    assert inside.poll() is None
    assert ip("netns", "pids", "bar").stdout == b"%d\n" % inside.pid
    (mnt / "bar").rmdir()


@pytest.mark.parametrize("existing", ["live", "stale"])
def test_mv_replaces_nothing(mnt: Mounted, foo: Path, existing: str) -> None:
    if existing == "live":
        (mnt / "bar").mkdir()
    else:
        (RUN / "bar").touch(mode=0)
    before = os.stat(RUN / "bar").st_ino
    assert error_of(os.rename, foo, mnt / "bar") == "EEXIST"
    assert error_of(os.rename, foo, mnt / ".netnsfs") in ("EEXIST", "EPERM")
    assert os.stat(RUN / "bar").st_ino == before
    assert (foo / "pids").read_text() == ""
    (mnt / "bar").rmdir()


def test_exchange_is_refused(mnt: Mounted, foo: Path) -> None:
    (mnt / "bar").mkdir()
    code = subprocess.run(
        [sys.executable, "-c", EXCHANGE, foo, mnt / "bar"], check=True
    ).returncode
    assert code == 0
    (mnt / "bar").rmdir()


EXCHANGE = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
old, new = map(os.fsencode, sys.argv[1:])
assert libc.renameat2(-100, old, -100, new, 2) == -1
assert ctypes.get_errno() == {errno.EINVAL}
"""


def test_mv_into_another_directory_is_refused(mnt: Mounted, foo: Path) -> None:
    (mnt / "bar").mkdir()
    assert error_of(os.rename, foo, mnt / "bar/foo") == "EPERM"
    assert error_of(os.rename, foo, mnt / ".netnsfs/unnamed/1") == "EPERM"
    # Out of the mount, mv copies and then removes: the copies are made, nothing is removed.
    done = subprocess.run(["mv", foo, "/run/copy"], check=False, capture_output=True)
    assert done.returncode != 0
    shutil.rmtree("/run/copy")
    assert (foo / "pids").read_text() == ""
    (mnt / "bar").rmdir()


def test_mv_of_the_unusual(mnt: Mounted, foo: Path) -> None:
    (RUN / "stale").touch(mode=0)
    os.symlink("foo", RUN / "lnk")
    assert error_of(os.rename, mnt / "stale", mnt / "x") == "EINVAL"
    assert error_of(os.rename, mnt / "absent", mnt / "x") == "ENOENT"
    assert error_of(os.rename, foo, mnt / ("x" * 256)) == "ENAMETOOLONG"
    os.rename(mnt / "lnk", mnt / "lnk2")
    assert os.readlink(RUN / "lnk2") == "foo"
    assert (mnt / "lnk2/id").read_text() == (foo / "id").read_text()
    assert sorted(os.listdir(RUN)) == ["foo", "lnk2", "stale"]
    for name in ("stale", "lnk2"):
        (mnt / name).rmdir()


def test_mv_of_a_name_that_is_removed_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"old")
    attach = names.attach

    def interfere(name: bytes, fd: int, owner: Owner | None) -> Namespace:
        made = attach(name, fd, owner)
        ip("netns", "del", "old")
        return made

    monkeypatch.setattr(names, "attach", interfere)
    assert error_of(names.rename, b"old", b"new") == "ENOENT"
    assert names.list_names() == []


def test_mv_leaves_a_name_that_was_made_anew_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"old")
    umount = linux.umount

    def interfere(target: bytes, flags: int) -> None:
        umount(target, flags)
        if target.startswith(b"/proc"):
            monkeypatch.setattr(linux, "umount", umount)
            os.unlink(RUN / "old")
            ip("netns", "add", "old")

    monkeypatch.setattr(linux, "umount", interfere)
    names.rename(b"old", b"new")
    old, new = names.identify(b"old"), names.identify(b"new")
    assert old
    assert new
    assert old.id != new.id
    names.remove(b"old")
    names.remove(b"new")


def test_a_kill_in_the_middle_of_mv_leaves_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NamedNamespaces(bytes(RUN))
    made, _ = names.create(b"old")

    class Killed(BaseException):
        pass

    def kill(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(linux, "umount", kill)
        with pytest.raises(Killed):
            names.rename(b"old", b"new")
    assert names.identify(b"old") == names.identify(b"new") == made
    names.remove(b"old")
    names.remove(b"new")


def test_mv_of_a_second_name_with_its_directory_open(mnt: Mounted, foo: Path) -> None:
    os.symlink("foo", mnt / "two")
    directory = os.open(mnt / "two", os.O_RDONLY)
    os.rename(mnt / "two", mnt / "three")
    fd = os.open("id", os.O_RDONLY, dir_fd=directory)
    assert os.read(fd, 99).decode() == (foo / "id").read_text()
    os.close(fd)
    os.close(directory)
    (mnt / "three").rmdir()


def test_two_renames_race_for_one_name(mnt: Mounted, start: Start) -> None:
    second = start(at=Path("/mnt/second"))
    for _ in range(40):
        (mnt / "a").mkdir()
        (mnt / "b").mkdir()
        results = race(
            lambda: os.rename(mnt / "a", mnt / "c"),
            lambda: os.rename(second / "b", second / "c"),
        )
        assert sorted(results) == ["", "EEXIST"]
        assert len(os.listdir(RUN)) == len(nsfs_mounts()) == 2
        for name in os.listdir(RUN):
            (mnt / name).rmdir()


def test_two_renames_race_for_one_namespace(mnt: Mounted, start: Start) -> None:
    second = start(at=Path("/mnt/second"))
    for _ in range(40):
        (mnt / "a").mkdir()
        results = race(
            lambda: os.rename(mnt / "a", mnt / "x"),
            lambda: os.rename(second / "a", second / "y"),
        )
        assert sorted(results) == ["", "ENOENT"]
        assert len(os.listdir(RUN)) == len(nsfs_mounts()) == 1
        (mnt / os.listdir(RUN)[0]).rmdir()


def race(*calls: Callable[[], object]) -> list[str]:
    results: list[str] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        results.append(error_of(call))

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_rmdir_races_with_ip_netns_del(mnt: Mounted) -> None:
    for _ in range(60):
        (mnt / "a").mkdir()
        results = race(
            lambda: os.rmdir(mnt / "a"), lambda: ip("netns", "del", "a", check=False)
        )
        assert set(results) <= {"", "ENOENT"}
        assert os.listdir(RUN) == []
        assert nsfs_mounts() == []


# ln -s


@pytest.mark.parametrize(
    "target",
    [
        "/proc/{pid}/ns/net",
        "/proc/{pid}/task/{pid}/ns/net",
        "/mnt/netnsfs/foo",
        "/mnt/netnsfs/foo/ns",
        "foo",
        "./foo/ns",
        "../netnsfs/foo",
        "/run/netns/foo",
        "/var/run/netns/foo",
        "/proc/{pid}/root/run/netns/foo",
        "/mnt/netnsfs/.netnsfs/pid/{pid}",
        ".netnsfs/pid/{pid}/ns",
        "/run/somewhere",
        "//proc/{pid}/ns//net",
        "/var/run/../run/netns/foo",
        "./../netnsfs/foo/ns",
    ],
)
def test_ln_s_attaches(mnt: Mounted, foo: Path, spawn: Spawn, target: str) -> None:
    inside = spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
    wait_for((foo / "pids").read_text)
    os.symlink("/run/netns/foo", "/run/somewhere")
    subprocess.run(["ln", "-s", target.format(pid=inside.pid), mnt / "new"], check=True)
    os.unlink("/run/somewhere")
    assert stat.S_ISDIR(os.lstat(mnt / "new").st_mode)
    assert (mnt / "new/id").read_text() == (foo / "id").read_text()
    assert sorted(nsfs_mounts()) == [b"/run/netns/foo", b"/run/netns/new"]
    foo.rmdir()
    inside.kill()
    inside.wait()
    assert (mnt / "new/pids").read_text() == ""
    (mnt / "new").rmdir()


def test_ln_s_is_what_ip_netns_attach_makes(mnt: Mounted, spawn: Spawn) -> None:
    process = spawn("unshare", "-n", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != own_inode())
    ip("netns", "attach", "theirs", str(process.pid))
    os.symlink(f"/proc/{process.pid}/ns/net", mnt / "ours")
    assert os.stat(RUN / "ours").st_ino == os.stat(RUN / "theirs").st_ino
    assert (mnt / "ours/id").read_text() == (mnt / "theirs/id").read_text()
    for name in ("ours", "theirs"):
        (mnt / name).rmdir()


@pytest.mark.parametrize("target", ["foo", "/run/netns/foo", "foo/ns"])
def test_what_is_mounted_on_one_name_is_not_on_another(
    mnt: Mounted, foo: Path, target: str
) -> None:
    os.symlink(target, mnt / "new")
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", RUN / "new"], check=True)
    assert os.stat(RUN / "new").st_ino == own_inode() != os.stat(RUN / "foo").st_ino
    assert sorted(nsfs_mounts()) == [b"/run/netns/foo", *[b"/run/netns/new"] * 2]
    (mnt / "new").rmdir()


def test_ln_s_of_self_is_the_callers(mnt: Mounted, foo: Path) -> None:
    command = f"ln -s /proc/self/ns/net {mnt.path}/new"
    subprocess.run(["nsenter", f"--net={foo}/ns", "sh", "-c", command], check=True)
    assert (mnt / "new/id").read_text() == (foo / "id").read_text()
    (mnt / "new").rmdir()


@pytest.mark.parametrize(
    "target",
    [
        "/proc/self/ns/net",
        "//proc/self/ns/net",
        "/proc/thread-self/ns/net",
        "/run/l",
        "/dev/fd/9",
        "/mnt/netnsfs/.netnsfs/pid/self",
    ],
)
def test_self_is_the_caller_however_it_is_spelt(mnt: Mounted, foo: Path, target: str) -> None:
    os.symlink("/proc/self/ns/net", "/run/l")
    command = f"exec 9</proc/self/ns/net; ln -s {target} {mnt.path}/new"
    subprocess.run(["nsenter", f"--net={foo}/ns", "sh", "-c", command], check=True)
    os.unlink("/run/l")
    assert (mnt / "new/id").read_text() == (foo / "id").read_text()
    (mnt / "new").rmdir()


def test_a_target_through_the_mount_bound_elsewhere(mnt: Mounted, foo: Path) -> None:
    (mnt / "ns").mkdir()
    other = Path("/mnt/bound")
    other.mkdir()
    subprocess.run(["mount", "--bind", foo, other], check=True)
    for target in (other, other / "ns"):
        assert error_of(os.symlink, target, mnt / "new") == "EINVAL"
    subprocess.run(["umount", other], check=True)
    other.rmdir()
    (mnt / "ns").rmdir()


def test_a_link_into_what_hangs(mnt: Mounted, start: Start) -> None:
    hung = start(at=Path("/mnt/hung"))
    hung.process.send_signal(signal.SIGSTOP)
    os.symlink("/mnt/hung/x/y", RUN / "lnk")
    (mnt / "a").mkdir()
    before = time.monotonic()
    for _ in range(5):
        assert stat.S_IMODE(os.stat(mnt / "lnk").st_mode) == 0
        assert "lnk" in os.listdir(mnt.path)
        assert os.readlink(mnt / ".netnsfs/pid/self")
    assert time.monotonic() - before < 5
    for name in ("lnk", "a"):
        (mnt / name).rmdir()
    hung.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/proc/self/ns/uts", "EINVAL"),
        ("/etc/passwd", "EINVAL"),
        ("/run/fifo", "EINVAL"),
        ("/proc/4194304/ns/net", "ENOENT"),
        ("/nowhere", "ENOENT"),
        ("absent", "ENOENT"),
        ("stale", "EINVAL"),
        (".netnsfs", "EINVAL"),
        (".netnsfs/unnamed/1", "ENOENT"),
        (".netnsfs/last_error", "EINVAL"),
        ("foo/inode", "EINVAL"),
        ("/mnt/netnsfs", "EINVAL"),
        ("/run/loop", "ELOOP"),
        ("../netnsfs/" * 300 + "foo", "ELOOP"),
        ("/etc/passwd/x", "ENOTDIR"),
    ],
)
def test_ln_s_of_what_is_no_network_namespace(
    mnt: Mounted, foo: Path, target: str, code: str
) -> None:
    (RUN / "stale").touch(mode=0)
    os.mkfifo("/run/fifo")
    os.symlink("loop", "/run/loop")
    assert error_of(os.symlink, target, mnt / "new") == code
    assert sorted(os.listdir(RUN)) == ["foo", "stale"]
    assert last_error(mnt).startswith("symlink new: ")
    (mnt / "stale").rmdir()
    os.unlink("/run/fifo")
    os.unlink("/run/loop")


def test_ln_s_over_a_name(mnt: Mounted, foo: Path) -> None:
    (RUN / "stale").touch(mode=0)
    for name in ("foo", "stale", ".netnsfs"):
        assert error_of(os.symlink, "/proc/self/ns/net", mnt / name) == "EEXIST"
    (mnt / "stale").rmdir()


@pytest.mark.machine
def test_ln_s_is_for_root_only(start: Start) -> None:
    mounted = start()
    script = f"import os; os.setuid(65534); os.symlink('/proc/self/ns/net', '{mounted.path}/x')"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert b"PermissionError" in done.stderr
    assert os.listdir(RUN) == []


# HolderRef namespaces


@pytest.mark.usefixtures("both_ways")
def test_the_initial_namespace_is_unnamed_until_named(mnt: Mounted, unnamed: Path) -> None:
    own = str(own_inode())
    assert own in os.listdir(unnamed)
    assert (unnamed / own / "inode").read_text() == own + "\n"
    assert str(os.getpid()) in (unnamed / own / "pids").read_text().split()
    os.symlink("/proc/self/ns/net", mnt / "host")
    assert own not in os.listdir(unnamed)
    assert error_of(os.stat, unnamed / own) == "ENOENT"
    (mnt / "host").rmdir()
    assert own in os.listdir(unnamed)


def by_lsns() -> set[str]:
    command = ["lsns", "-t", "net", "-n", "-r", "-o", "NS"]
    return set(subprocess.check_output(command, text=True).split())


@pytest.mark.usefixtures("both_ways")
def test_everything_that_lsns_finds_is_there(mnt: Mounted, unnamed: Path, spawn: Spawn) -> None:
    inside = [spawn("unshare", "-n", "sleep", "60").pid for _ in range(3)]
    wait_for(lambda: not {own_inode()} & {inode_of(pid) for pid in inside})
    # What is there before and after is there all the time.
    before, listed, after = by_lsns(), os.listdir(unnamed), by_lsns()
    assert before & after <= set(listed)


@pytest.mark.usefixtures("both_ways")
def test_a_container_is_found_named_entered_renamed_removed(
    mnt: Mounted, unnamed: Path, spawn: Spawn
) -> None:
    inside = spawn("unshare", "--net", "--mount", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{inside.pid}/ns/net").st_ino != own_inode())
    link = os.readlink(mnt / f".netnsfs/pid/{inside.pid}")
    inode = str(os.stat(f"/proc/{inside.pid}/ns/net").st_ino)
    assert link == f"../unnamed/{inode}"
    assert (unnamed / inode / "pids").read_text() == f"{inside.pid}\n"
    shown = subprocess.check_output(
        ["nsenter", f"--net={unnamed}/{inode}/ns", "ip", "-o", "link"]
    )
    assert shown.count(b"\n") == 1
    held = os.open(unnamed / inode / "pids", os.O_RDONLY)
    subprocess.run(["mv", unnamed / inode, mnt / "web"], check=True)
    assert inode not in os.listdir(unnamed)
    # It may be closed under its name.
    assert error_of(os.pread, held, 99, 0) == "ENODEV"
    os.close(held)
    assert (mnt / "web/pids").read_text() == f"{inside.pid}\n"
    assert os.readlink(mnt / f".netnsfs/pid/{inside.pid}") == "../../web"
    assert ip("netns", "pids", "web").stdout == b"%d\n" % inside.pid
    os.rename(mnt / "web", mnt / "shop")
    assert (mnt / "shop/pids").read_text() == f"{inside.pid}\n"
    (mnt / "shop").rmdir()
    assert inode in os.listdir(unnamed)
    assert (unnamed / inode / "pids").read_text() == f"{inside.pid}\n"


@pytest.mark.usefixtures("both_ways")
def test_what_has_its_name_covered_is_unnamed(
    mnt: Mounted, unnamed: Path, spawn: Spawn
) -> None:
    inside = spawn("unshare", "-n", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{inside.pid}/ns/net").st_ino != own_inode())
    inode = str(os.stat(f"/proc/{inside.pid}/ns/net").st_ino)
    os.rename(unnamed / inode, mnt / "web")
    subprocess.run(["mount", "--bind", "/proc/self/ns/uts", RUN / "web"], check=True)
    assert inode in os.listdir(unnamed)
    assert (unnamed / inode / "pids").read_text() == f"{inside.pid}\n"
    (mnt / "web").rmdir()


@pytest.mark.usefixtures("both_ways")
def test_what_has_lost_its_name_is_named_again(
    mnt: Mounted, unnamed: Path, spawn: Spawn
) -> None:
    inside = spawn("unshare", "-n", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{inside.pid}/ns/net").st_ino != own_inode())
    inode = str(os.stat(f"/proc/{inside.pid}/ns/net").st_ino)
    for _ in range(2):
        os.rename(unnamed / inode, mnt / "web")
        assert (mnt / "web/pids").read_text() == f"{inside.pid}\n"
        ip("netns", "del", "web")


@pytest.mark.usefixtures("both_ways")
def test_a_directory_that_was_removed_while_open_is_made_anew(
    mnt: Mounted, foo: Path, spawn: Spawn
) -> None:
    inside = spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
    wait_for((foo / "pids").read_text)
    shown, inode = (foo / "id").read_text(), os.stat(foo).st_ino
    directory = os.open(foo, os.O_RDONLY)
    foo.rmdir()
    ip("netns", "attach", "new", str(inside.pid))
    assert (mnt / "new/id").read_text() == shown
    assert os.stat(mnt / "new").st_ino == inode
    assert "id" in os.listdir(mnt / "new")
    os.close(directory)
    (mnt / "new").rmdir()


@pytest.mark.usefixtures("both_ways")
def test_a_namespace_that_ends_is_gone(mnt: Mounted, unnamed: Path, spawn: Spawn) -> None:
    inside = spawn("unshare", "-n", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{inside.pid}/ns/net").st_ino != own_inode())
    inode = str(os.stat(f"/proc/{inside.pid}/ns/net").st_ino)
    held = os.open(unnamed / inode / "pids", os.O_RDONLY)
    inside.kill()
    inside.wait()
    wait_for(lambda: inode not in os.listdir(unnamed))
    assert error_of(os.pread, held, 99, 0) in ("ENODEV", "ESTALE", "EIO")
    os.close(held)


@pytest.mark.parametrize(
    "name", ["1", "0", "x", "-1", "007", "4294967296", "9" * 30, "4026531840 "]
)
@pytest.mark.usefixtures("both_ways")
def test_numbers_of_no_namespace(unnamed: Path, name: str) -> None:
    assert error_of(os.stat, unnamed / name) == "ENOENT"
    assert error_of(os.rename, unnamed / name, unnamed.parent.parent / "x") == "ENOENT"


@pytest.mark.usefixtures("both_ways")
def test_nothing_can_be_made_in_the_corner(mnt: Mounted, unnamed: Path) -> None:
    own = str(own_inode())
    for call in (
        lambda: os.mkdir(unnamed / "x"),
        lambda: os.rmdir(unnamed / own),
        lambda: os.rename(unnamed / own, unnamed / "x"),
        lambda: os.symlink("/proc/self/ns/net", unnamed / "x"),
        lambda: os.mkdir(mnt / ".netnsfs/pid/x"),
        lambda: os.unlink(mnt / ".netnsfs/last_error"),
    ):
        assert error_of(call) == "EPERM"


# Holders


def holders_of(directory: Path) -> list[str]:
    """Without another netnsfs of the machine that has it open while it looks for holders."""
    own = mount_namespace("self")
    return [
        line
        for line in (directory / "holders").read_text().splitlines()
        if not (pid := re.match(r"fd (\d+)", line))
        or b"netnsfs" not in command_of(int(pid[1]))
        or mount_namespace(pid[1]) == own
    ]


def held_by(mnt: Mounted, inode: str) -> list[str]:
    return holders_of(mnt / ".netnsfs/unnamed" / inode)


@pytest.mark.usefixtures("both_ways")
def test_held_by_a_descriptor_only(mnt: Mounted, unnamed: Path, spawn: Spawn) -> None:
    process = spawn(sys.executable, "-c", HOLD_FD, stdout=subprocess.PIPE)
    assert process.stdout
    inode, fd = process.stdout.readline().decode().split()
    assert inode in os.listdir(unnamed)
    assert held_by(mnt, inode) == [f"fd {process.pid} {fd}"]
    assert (unnamed / inode / "pids").read_text() == ""
    subprocess.run(["nsenter", f"--net={unnamed}/{inode}/ns", "true"], check=True)
    name_and_remove(mnt, inode)


def name_and_remove(mnt: Mounted, inode: str) -> None:
    os.rename(mnt / ".netnsfs/unnamed" / inode, mnt / "named")
    assert (mnt / "named/inode").read_text() == inode + "\n"
    (mnt / "named").rmdir()


HOLD_FD = """
import ctypes, os, time
libc = ctypes.CDLL(None)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(0x40000000)
fd = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.setns(home, 0)
print(os.fstat(fd).st_ino, fd, flush=True)
time.sleep(100)
"""


@pytest.mark.usefixtures("both_ways")
def test_a_chrooted_process_hides_no_mount(mnt: Mounted, unnamed: Path, spawn: Spawn) -> None:
    script = """
mkdir /run/jail; touch /run/elsewhere
unshare --net=/run/elsewhere true
stat -L -c %i /run/elsewhere
exec python3 -c 'import os, time; os.chroot("/run/jail"); print(flush=True); time.sleep(60)'
"""
    process = spawn("unshare", "-m", "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout
    inode = process.stdout.readline().decode().strip()
    process.stdout.readline()
    outside = spawn("nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "sleep", "60")
    wait_for(lambda: inode in os.listdir(unnamed))
    assert held_by(mnt, inode) == [f"mount /proc/{outside.pid}/root/run/elsewhere"]
    os.rmdir("/run/jail")
    os.unlink("/run/elsewhere")


@pytest.mark.usefixtures("both_ways")
def test_a_mount_path_is_one_word(mnt: Mounted, foo: Path) -> None:
    path = Path("/run/a b\ntask 1")
    path.touch()
    subprocess.run(["mount", "--bind", RUN / "foo", path], check=True)
    shown = holders_of(foo)
    subprocess.run(["umount", path], check=True)
    path.unlink()
    assert shown == ["mount /run/a\\040b\\012task\\0401", "mount /run/netns/foo"]


@pytest.mark.usefixtures("both_ways")
def test_held_by_a_socket_only(mnt: Mounted, unnamed: Path, spawn: Spawn) -> None:
    process = spawn(sys.executable, "-c", HOLD_SOCKET, stdout=subprocess.PIPE)
    assert process.stdout
    inode, fd = process.stdout.readline().decode().split()
    assert inode in os.listdir(unnamed)
    assert held_by(mnt, inode) == [f"socket {process.pid} {fd}"]
    name_and_remove(mnt, inode)


HOLD_SOCKET = """
import ctypes, os, socket, time
libc = ctypes.CDLL(None)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(0x40000000)
inode = os.stat("/proc/self/ns/net").st_ino
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
libc.setns(home, 0)
print(inode, held.fileno(), flush=True)
time.sleep(100)
"""


@pytest.mark.usefixtures("both_ways")
def test_held_by_a_mount_in_another_mount_namespace_only(
    mnt: Mounted, unnamed: Path, spawn: Spawn
) -> None:
    script = """
touch /run/elsewhere
unshare --net=/run/elsewhere true
stat -L -c %i /run/elsewhere
exec sleep 60
"""
    process = spawn(
        "unshare", "-m", "--propagation", "private", "sh", "-c", script, stdout=subprocess.PIPE
    )
    assert process.stdout
    inode = process.stdout.readline().decode().strip()
    assert inode in os.listdir(unnamed)
    assert held_by(mnt, inode) == [f"mount /proc/{process.pid}/root/run/elsewhere"]
    subprocess.run(["nsenter", f"--net={unnamed}/{inode}/ns", "true"], check=True)
    name_and_remove(mnt, inode)
    os.unlink("/run/elsewhere")


@pytest.mark.usefixtures("both_ways")
def test_held_by_a_thread(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    process = spawn(sys.executable, "-c", HOLD_THREAD, str(RUN / "foo"), stdout=subprocess.PIPE)
    assert process.stdout
    tid = process.stdout.readline().decode().strip()
    assert holders_of(foo) == [f"thread {process.pid} {tid}", "mount /run/netns/foo"]
    assert (foo / "tids").read_text() == tid + "\n"
    assert os.readlink(mnt / f".netnsfs/pid/{tid}") == "../../foo"


@pytest.mark.machine
@pytest.mark.usefixtures("both_ways")
def test_holders_of_a_named_namespace(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    assert holders_of(foo) == ["mount /run/netns/foo"]
    inside = spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
    wait_for(lambda: f"task {inside.pid}" in (foo / "holders").read_text())
    with open(RUN / "foo") as file:
        expected = f"fd {os.getpid()} {file.fileno()}"
        assert expected in (foo / "holders").read_text().splitlines()
    assert stat.S_IMODE(os.stat(foo / "holders").st_mode) == 0o400
    script = f"import os; os.setuid(65534); open('{foo}/holders')"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert b"PermissionError" in done.stderr


# Who is where


@pytest.mark.machine
@pytest.mark.usefixtures("both_ways")
def test_pid_links(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    inside = spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
    wait_for((foo / "pids").read_text)
    pid = mnt / ".netnsfs/pid"
    assert os.readlink(pid / str(inside.pid)) == "../../foo"
    assert (pid / str(inside.pid) / "id").read_text() == (foo / "id").read_text()
    assert os.readlink(pid / "self") == f"../unnamed/{own_inode()}"
    there = subprocess.check_output(["nsenter", f"--net={foo}/ns", "readlink", pid / "self"])
    assert there == b"../../foo\n"
    assert {"self", "2", str(os.getpid()), str(inside.pid)} <= set(os.listdir(pid))
    assert ip("netns", "identify", str(inside.pid)).stdout == b"foo\n"
    for name in ("0", "x", "4194304", "-1"):
        assert error_of(os.lstat, pid / name) == "ENOENT"
    for name in ("self", str(inside.pid)):
        assert os.lstat(pid / name).st_size == len(os.readlink(pid / name))


@pytest.mark.usefixtures("both_ways")
def test_the_first_of_several_names(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    inside = spawn("nsenter", f"--net={foo}/ns", "sleep", "60")
    wait_for((foo / "pids").read_text)
    for name in ("a", "z", "B"):
        os.symlink("foo", mnt / name)
    assert os.readlink(mnt / f".netnsfs/pid/{inside.pid}") == "../../B"
    # Of processes that end meanwhile, it complains.
    command = ["ls", "-l", str(mnt / ".netnsfs/pid")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert re.search(rf"\b{inside.pid} -> \.\./\.\./B$", done.stdout, re.MULTILINE)
    for complaint in done.stderr.splitlines():
        found = re.search(r"pid/(\d+)'?: No such file", complaint)
        assert found, complaint
        # A zombie is in no namespace.
        assert error_of(os.readlink, f"/proc/{found[1]}/ns/net") in ("ENOENT", "ESRCH")
    for name in ("a", "z", "B"):
        (mnt / name).rmdir()


# nsid, with iproute2's own two test files as cases


def nsid_of(name: str) -> str:
    shown = ip("-o", "netns", "list").stdout.decode()
    found = re.search(rf"^{name}(?: \(id: (\d+)\))?$", shown, re.MULTILINE)
    assert found
    return found[1] or "unassigned"


def test_nsid_is_what_ip_netns_shows(mnt: Mounted, foo: Path) -> None:
    assert (foo / "nsid").read_text() == nsid_of("foo") + "\n" == "unassigned\n"
    number = next(nsids)
    (foo / "nsid").write_text(f"{number}\n")
    assert (foo / "nsid").read_text() == nsid_of("foo") + "\n" == f"{number}\n"
    assert os.stat(foo / "nsid").st_size == len(f"{number}\n")
    assert b"nsid %d " % number in ip("netns", "list-id").stdout


def test_nsid_for_the_first_time_by_many_at_once(mnt: Mounted) -> None:
    names = [mnt / f"n{i}" for i in range(30)]
    for name in names:
        name.mkdir()
    readers = []
    for name in names:
        readers.append(subprocess.Popen(["cat", name / "nsid"], stdout=subprocess.PIPE))
        # While the first is at it, which takes its time.
        time.sleep(0.01)
    assert {reader.communicate()[0] for reader in readers} == {b"unassigned\n"}
    for name in names:
        name.rmdir()


def test_nsid_set_by_ip(mnt: Mounted, foo: Path) -> None:
    number, other = next(nsids), str(next(nsids))
    ip("netns", "set", "foo", str(number))
    assert (foo / "nsid").read_bytes() == b"%d\n" % number
    assert error_of((foo / "nsid").write_text, other) == "EEXIST"
    assert ip("netns", "set", "foo", other, check=False).returncode != 0


def test_nsid_set_in_a_batch(mnt: Mounted, foo: Path, tmp_path: Path) -> None:
    (mnt / "bar").mkdir()
    batch = tmp_path / "batch"
    batch.write_text(f"netns set foo {next(nsids)}\nnetns set bar auto\n")
    ip("-batch", str(batch))
    for name in ("foo", "bar"):
        assert (mnt / name / "nsid").read_text() == nsid_of(name) + "\n" != "unassigned\n"
    (mnt / "bar").rmdir()


def test_nsid_auto(mnt: Mounted, foo: Path) -> None:
    subprocess.run(f"echo auto > {foo}/nsid", shell=True, check=True)
    assert (foo / "nsid").read_text().strip().isdigit()
    assert (foo / "nsid").read_text() == nsid_of("foo") + "\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x", "EINVAL"),
        ("\n", "EINVAL"),
        ("-1", "EINVAL"),
        ("1 2", "EINVAL"),
        ("0x10", "EINVAL"),
        ("2147483648", "ERANGE"),
        ("9" * 5000, "ERANGE"),
    ],
)
def test_nsid_of_bad_input(mnt: Mounted, foo: Path, text: str, code: str) -> None:
    assert error_of(os.write, os.open(foo / "nsid", os.O_WRONLY), text.encode()) == code
    assert (foo / "nsid").read_text() == "unassigned\n"
    assert last_error(mnt).startswith("write nsid: ")
    for fd in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{fd}") and "nsid" in os.readlink(
            f"/proc/self/fd/{fd}"
        ):
            os.close(int(fd))


def test_nsid_taken_by_another(mnt: Mounted, foo: Path) -> None:
    (mnt / "bar").mkdir()
    number = str(next(nsids))
    (foo / "nsid").write_text(number)
    assert error_of((mnt / "bar/nsid").write_text, number) == "EEXIST"
    assert "nsid" in last_error(mnt)
    (mnt / "bar").rmdir()


def test_nsid_opening(foo: Path) -> None:
    os.truncate(foo / "nsid", 0)
    assert error_of(os.truncate, foo / "nsid", 5) == "EPERM"
    number = b"%d" % next(nsids)
    with open(foo / "nsid", "r+b", buffering=0) as file:
        assert file.read() == b"unassigned\n"
        file.write(number)
        file.seek(0)
        assert file.read() == number + b"\n"


def test_nsid_of_an_unnamed_namespace(mnt: Mounted, unnamed: Path, spawn: Spawn) -> None:
    inside = spawn("unshare", "-n", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{inside.pid}/ns/net").st_ino != own_inode())
    node = unnamed / str(os.stat(f"/proc/{inside.pid}/ns/net").st_ino)
    assert (node / "nsid").read_text() == "unassigned\n"
    (node / "nsid").write_text("auto")
    assert (node / "nsid").read_text().strip().isdigit()


# last_error and keep_busy


@pytest.mark.machine
def test_last_error_says_what_to_do(mnt: Mounted, foo: Path) -> None:
    assert last_error(mnt) == "ok\n"
    with no_more_mounts() as limit:
        assert error_of(os.mkdir, mnt / "x") == "ENOSPC"
    told = last_error(mnt)
    assert told.startswith(f"mkdir x: fs.mount-max is {limit} and reached")
    assert "(ENOSPC), PID " in told
    assert os.stat(mnt / ".netnsfs/last_error").st_size == len(told)
    (RUN / "notes").write_text("mine")
    assert error_of(os.rmdir, mnt / "notes") == "EPERM"
    told = last_error(mnt)
    assert told.startswith("rmdir notes: it is not a namespace: see what it is (EPERM), ")
    assert f", PID {os.getpid()}, 20" in told
    (RUN / "notes").unlink()
    assert error_of(os.mkdir, mnt / "foo/a\nb") == "EPERM"
    assert last_error(mnt).count("\n") == 1


def test_keep_busy(start: Start, spawn: Spawn) -> None:
    mounted = start("-o", "keep_busy")
    (mounted / "foo").mkdir()
    inside = spawn("nsenter", f"--net={mounted.path}/foo/ns", "sleep", "60")
    wait_for((mounted / "foo/pids").read_text)
    assert error_of(os.rmdir, mounted / "foo") == "EBUSY"
    assert "processes are inside" in last_error(mounted)
    # Everyone may read it, and not everyone may see the process.
    assert str(inside.pid) not in last_error(mounted)
    assert (mounted / "foo/pids").read_text() == f"{inside.pid}\n"
    inside.kill()
    inside.wait()
    (mounted / "foo").rmdir()


def test_read_only(start: Start) -> None:
    ip("netns", "add", "foo")
    mounted = start("-o", "ro")
    for call in (
        lambda: os.mkdir(mounted / "x"),
        lambda: os.rmdir(mounted / "foo"),
        lambda: os.rename(mounted / "foo", mounted / "x"),
        lambda: os.symlink("foo", mounted / "x"),
        lambda: os.open(mounted / "foo/nsid", os.O_WRONLY),
    ):
        assert error_of(call) == "EROFS"
    assert (mounted / "foo/pids").read_text() == ""
    ip("netns", "del", "foo")
