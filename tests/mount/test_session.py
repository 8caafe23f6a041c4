"""What the mounted tree promises: each test names its row of the contract's tables."""

import io
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import tracing
from conftest import (
    RUN,
    USER_MODE_LINUX,
    Mounted,
    Start,
    error_of,
    ip,
    needs_btf,
    no_more_mounts,
    resident,
    sshfs,
    unmount_idle,
    wait_for,
)

Spawn = Callable[..., subprocess.Popen[bytes]]


def listed() -> set[bytes]:
    return set(ip("netns", "list").stdout.split())


# The tree


def test_tree_of_a_namespace(foo: Path) -> None:
    modes = {name: stat.filemode(os.lstat(foo / name).st_mode) for name in os.listdir(foo)}
    assert modes == {
        "cgroups": "-r--r--r--",
        "exec": "lrwxrwxrwx",
        "holders": "-r--------",
        "id": "-r--r--r--",
        "inode": "-r--r--r--",
        "kill": "--w-------",
        "links": "drwxr-xr-x",
        "net": "dr-xr-xr-x",
        "ns": "lrwxrwxrwx",
        "nsid": "-rw-r--r--",
        "pids": "-r--r--r--",
        "routes": "-rw-r--r--",
        "sysctl": "dr-xr-xr-x",
        "tids": "-r--r--r--",
        "topology.dot": "-r--r--r--",
    }
    assert stat.filemode(os.stat(foo).st_mode) == "drwxr-xr-x"


def test_ls_is_what_ip_netns_list_prints(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    ip("netns", "add", "bar")
    (RUN / "stale").touch(mode=0)
    (RUN / "directory").mkdir()
    shown = subprocess.check_output(["ls", mnt.path]).split()
    listed = {
        line for line in ip("netns", "list", check=False).stdout.split() if b"Error" not in line
    }
    assert set(shown) == listed == {b"foo", b"bar", b"stale", b"directory"}
    assert set(os.listdir(mnt.path)) == {"foo", "bar", "stale", "directory"}
    for name in ("foo", "bar", "stale"):
        (mnt / name).rmdir()
    (RUN / "directory").rmdir()


def test_the_control_directory_is_found_and_never_listed(mnt: Mounted, foo: Path) -> None:
    assert (mnt / ".netnsfs/last_error").read_text() == "ok\n"
    assert os.stat(mnt / ".netnsfs").st_mode == stat.S_IFDIR | 0o555
    for walk in ("find . -maxdepth 1", "du -a --max-depth=1", "ls -fa1 | sed s,^,./,"):
        shown = subprocess.check_output(walk, shell=True, cwd=mnt.path, text=True).splitlines()
        names = {line.split()[-1] for line in shown} - {".", "./.", "./.."}
        assert names == {"./foo"}, walk


def test_inode_is_what_stat_shows_everywhere(mnt: Mounted, foo: Path) -> None:
    ip("netns", "add", "bar")
    for name in ("foo", "bar"):
        inode = os.stat(RUN / name).st_ino
        assert (mnt / name / "inode").read_text() == f"{inode}\n"
        assert os.stat(mnt / name).st_ino == inode
        assert {e.name: e.inode() for e in os.scandir(mnt.path)}[name] == inode
    ip("netns", "del", "bar")


def test_id_is_never_reused_but_inode_is(mnt: Mounted) -> None:
    seen = []

    def reused() -> bool:
        (mnt / "foo").mkdir()
        seen.append(((mnt / "foo/inode").read_text(), (mnt / "foo/id").read_text()))
        (mnt / "foo").rmdir()
        # Any number, for another process's namespace may have been given one of them.
        return len(seen) > 8 and len({inode for inode, _ in seen}) < len(seen)

    wait_for(reused)
    assert len({ns_id for _, ns_id in seen}) == len(seen)


def test_held_descriptors_never_show_the_next_namespace_with_the_number(mnt: Mounted) -> None:
    # Several, for another process's namespace may be given the number of one.
    removed: dict[int, tuple[str, list[int]]] = {}

    def reused() -> bool:
        (mnt / "foo").mkdir()
        number, shown = int((mnt / "foo/inode").read_text()), (mnt / "foo/id").read_text()
        if number in removed:
            return True
        opened = [os.open(mnt / path, os.O_RDONLY) for path in ("foo", "foo/id")]
        removed[number] = shown, opened
        (mnt / "foo").rmdir()
        return False

    wait_for(reused)
    number = int((mnt / "foo/inode").read_text())
    before, (directory, held) = removed[number]
    assert (mnt / "foo/id").read_text() != before
    assert error_of(os.pread, held, 99, 0) in ("ENODEV", "ESTALE", "EIO")
    assert error_of(lambda: os.open("id", os.O_RDONLY, dir_fd=directory)) in (
        "ENOENT",
        "ESTALE",
        "EIO",
    )
    # The kernel itself shows a removed directory as empty, until it has retired the node.
    with suppress(OSError):
        assert os.listdir(directory) == []
    assert os.stat(mnt / "foo").st_ino == number
    assert os.listdir(mnt / "foo")
    for _, opened in removed.values():
        for fd in opened:
            os.close(fd)
    (mnt / "foo").rmdir()


def test_two_names_of_one_namespace(mnt: Mounted, foo: Path) -> None:
    ip("netns", "attach", "other", str(os.getpid()))
    os.symlink("foo", RUN / "lnk")
    subprocess.run(["touch", RUN / "second"], check=True)
    subprocess.run(["mount", "--bind", RUN / "foo", RUN / "second"], check=True)
    for name in ("lnk", "second"):
        assert (mnt / name / "id").read_text() == (foo / "id").read_text()
        assert (mnt / name / "inode").read_text() == (foo / "inode").read_text()
        assert os.readlink(mnt / name / "ns") == f"/run/netns/{name}"
    foo.rmdir()
    assert error_of(os.stat, mnt / "foo") == "ENOENT"
    assert (mnt / "second/pids").read_text() == ""
    assert stat.S_IMODE(os.stat(mnt / "lnk").st_mode) == 0
    for name in ("lnk", "second", "other"):
        (mnt / name).rmdir()


def test_times_are_those_of_the_nsfs_inode(foo: Path) -> None:
    ours, theirs = os.stat(foo), os.stat(RUN / "foo")
    assert (ours.st_mtime_ns, ours.st_ctime_ns) == (theirs.st_mtime_ns, theirs.st_ctime_ns)
    assert (ours.st_uid, ours.st_gid) == (0, 0)


def test_dot_and_dot_dot_are_listed(foo: Path) -> None:
    shown = subprocess.check_output(["ls", "-a", foo]).split()
    assert shown[:2] == [b".", b".."]
    assert os.stat(foo / "..").st_ino == os.stat(foo.parent).st_ino


def test_statfs_is_that_of_cgroup2(mnt: Mounted) -> None:
    answer = os.statvfs(mnt.path)
    assert (answer.f_blocks, answer.f_files, answer.f_namemax) == (0, 0, 255)
    subprocess.run(["df", mnt.path], check=True, capture_output=True)


def test_ns_link_is_for_nsenter(foo: Path) -> None:
    shown = subprocess.check_output(["nsenter", f"--net={foo}/ns", "ip", "-o", "link"])
    assert b"lo:" in shown
    assert shown.count(b"\n") == 1
    assert os.readlink(foo / "ns") == "/run/netns/foo"
    assert os.lstat(foo / "ns").st_size == len("/run/netns/foo")


# Reading


@pytest.fixture
def crowd(foo: Path, spawn: Spawn) -> str:
    """What pids of foo must show, with more members than fit in 4,096 bytes."""
    if USER_MODE_LINUX:
        pytest.skip("user-mode Linux: 1,100 processes take a minute")
    parent = spawn("ip", "netns", "exec", "foo", sys.executable, "-c", CROWD)
    wait_for(lambda: len(children(parent.pid)) == 1100, 60)
    return "".join(f"{pid}\n" for pid in sorted([parent.pid, *children(parent.pid)]))


# Each child ends with its parent, also with one that was killed before prctl(2).
CROWD = """
import os, signal, ctypes
parent = os.getpid()
for _ in range(1100):
    if not os.fork():
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == parent:
            signal.pause()
        os._exit(0)
signal.pause()
"""


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _sendfile(path: Path) -> bytes:
    reader, writer = os.pipe()
    with path.open("rb") as file, open(reader, "rb") as out, open(writer, "wb") as into:
        while os.sendfile(into.fileno(), file.fileno(), None, 1 << 16):
            pass
        into.close()
        return out.read()


def _splice(path: Path) -> bytes:
    reader, writer = os.pipe()
    with path.open("rb") as file, open(reader, "rb") as out, open(writer, "wb") as into:
        while os.splice(file.fileno(), into.fileno(), 1 << 16):
            pass
        into.close()
        return out.read()


def _mmap(path: Path) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ)[:]


def _tar(path: Path) -> bytes:
    archive = subprocess.run(
        ["tar", "-C", path.parent, "-cf", "-", path.name], check=True, capture_output=True
    )
    assert archive.stderr == b""
    member = tarfile.open(fileobj=io.BytesIO(archive.stdout)).extractfile(path.name)
    assert member
    return member.read()


def _copied(*command: str) -> Callable[[Path], bytes]:
    def run(path: Path) -> bytes:
        target = Path("/run/copied")
        subprocess.run([*command, path, target], check=True)
        content = target.read_bytes()
        target.unlink()
        return content

    return run


def _shutil(path: Path) -> bytes:
    target = Path("/run/copied")
    shutil.copyfile(path, target)
    content = target.read_bytes()
    target.unlink()
    return content


READERS = {
    "read": Path.read_bytes,
    "cat": lambda path: subprocess.check_output(["cat", path]),
    "busybox cat": lambda path: subprocess.check_output(["busybox", "cat", path]),
    "dd bs=1": lambda path: subprocess.check_output(
        ["dd", "bs=1", f"if={path}"], stderr=subprocess.DEVNULL
    ),
    "sendfile": _sendfile,
    "splice": _splice,
    "mmap": _mmap,
    "tar": _tar,
    "cp": _copied("cp"),
    "cp -r": _copied("cp", "-r"),
    "busybox cp": _copied("busybox", "cp"),
    "rsync": _copied("rsync"),
    "shutil": _shutil,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_way_of_reading(foo: Path, crowd: str, reader: str) -> None:
    expected = {
        "inode": f"{os.stat(RUN / 'foo').st_ino}\n",
        "id": (foo / "id").read_text(),
        "pids": crowd,
        "tids": crowd,
    }
    assert len(crowd) > 4096
    for name, content in expected.items():
        assert READERS[reader](foo / name).decode() == content, name


def test_a_holder_of_shorter_content_does_not_shorten_the_others(
    foo: Path, spawn: Spawn
) -> None:
    held = os.open(foo / "pids", os.O_RDONLY)
    time.sleep(1.1)
    inside = [spawn("nsenter", f"--net={foo}/ns", "sleep", "60").pid for _ in range(50)]
    wait_for(lambda: (foo / "pids").read_text().count("\n") == 50)
    expected = "".join(f"{pid}\n" for pid in sorted(inside)).encode()
    for reader in ("busybox cat", "sendfile", "splice", "cat", "tar"):
        assert READERS[reader](foo / "pids") == expected, reader
    os.close(held)


def test_sizes_never_lie_low(foo: Path) -> None:
    for name in ("inode", "id"):
        assert os.stat(foo / name).st_size == len((foo / name).read_bytes())


def _is_inside(pid: int, namespace: Path) -> bool:
    return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(namespace).st_ino


@needs_btf
@pytest.mark.machine
@pytest.mark.parametrize("reader", ["busybox cat", "sendfile", "splice", "cat", "tar", "rsync"])
def test_a_size_tells_whether_anybody_is_inside(foo: Path, spawn: Spawn, reader: str) -> None:
    for name in ("pids", "tids", "cgroups"):
        assert os.stat(foo / name).st_size == 0
    for _ in range(3):
        inside = spawn("ip", "netns", "exec", "foo", "sleep", "60")
        wait_for(partial(_is_inside, inside.pid, foo))
        # What stat has told before does not cut what is read now.
        content = READERS[reader](foo / "pids")
        assert inside.pid in map(int, content.split())
        assert os.stat(foo / "pids").st_size == len(content)
        assert os.stat(foo / "cgroups").st_size == len((foo / "cgroups").read_bytes()) > 0


@pytest.mark.machine
def test_a_size_asked_for_after_an_open_takes_no_worker(mnt: Mounted) -> None:
    reader = tracing.workers(mnt)["read"]
    (mnt / "foo").mkdir()

    def read() -> None:
        with open(mnt / "foo/pids", "rb") as file:
            for _ in range(3):
                os.fstat(file.fileno())
            file.read()

    read()
    # The size that the kernel asks for before an open is still that of the last one. At the end
    # of each job, a worker wakes the event loop, in one of two ways.
    ends = [call for call in tracing.calls(reader, read) if call.name in ("write", "sendto")]
    assert len(ends) == 1
    (mnt / "foo").rmdir()


@pytest.mark.usefixtures("refused_bpf")
def test_a_size_is_enough_where_it_is_not_known(mnt: Mounted, foo: Path) -> None:
    for name in ("pids", "tids", "cgroups"):
        assert os.stat(foo / name).st_size > 0
    # What is missing and why, in one line.
    told = [line for line in mnt.messages().splitlines() if "poll(2)" in line]
    assert len(told) == 1
    assert "looked for in /proc" in told[0]


def test_content_is_fixed_at_open_and_taken_anew_at_offset_0(foo: Path, spawn: Spawn) -> None:
    fd = os.open(foo / "pids", os.O_RDONLY)
    process = spawn("ip", "netns", "exec", "foo", "sleep", "60")
    wait_for(lambda: (foo / "pids").read_text() == f"{process.pid}\n")
    assert os.read(fd, 99) == b""
    assert os.pread(fd, 99, 0) == b"%d\n" % process.pid
    process.kill()
    process.wait()
    assert os.pread(fd, 99, 1) == (b"%d\n" % process.pid)[1:]
    assert os.pread(fd, 99, 0) == b""
    os.close(fd)


def test_sshfs_reads_the_same(foo: Path, crowd: str) -> None:
    # What sshfs does with its defaults: the page cache, sized by lstat.
    target = Path("/mnt/remote")
    with sshfs(foo, target):
        assert (target / "inode").read_bytes() == (foo / "inode").read_bytes()
        assert (target / "pids").read_text() == crowd
        assert _shutil(target / "pids").decode() == crowd


# Making and removing


def test_mkdir_is_ip_netns_add(mnt: Mounted, foo: Path) -> None:
    assert listed() == {b"foo"}
    assert b"state DOWN" in ip("-n", "foo", "link", "show", "lo").stdout
    assert os.readlink("/proc/self/ns/net") != f"net:[{(foo / 'inode').read_text().strip()}]"
    ip("netns", "exec", "foo", "true")


@pytest.mark.parametrize(
    "name", [b"x" * 255, b"\xff\xfe\x80", b"a\nb", b"-rf", b".hidden", b"0", b" ", b"a\\b"]
)
def test_any_name_that_ip_netns_takes(mnt: Mounted, name: bytes) -> None:
    os.mkdir(bytes(mnt.path) + b"/" + name)
    assert os.path.exists(bytes(RUN) + b"/" + name)
    assert name in os.listdir(bytes(mnt.path))
    assert ip("netns", "list").stdout == name + b"\n"
    ip("netns", "del", name)
    ip("netns", "add", name)
    assert os.stat(bytes(mnt.path) + b"/" + name).st_ino
    os.rmdir(bytes(mnt.path) + b"/" + name)
    assert os.listdir(RUN) == []


def test_too_long_a_name(mnt: Mounted) -> None:
    for length in (256, 1000):
        for call in (os.mkdir, os.rmdir, os.stat):
            assert error_of(call, mnt / ("x" * length)) == "ENAMETOOLONG"


def test_mkdir_of_what_exists(mnt: Mounted, foo: Path) -> None:
    (RUN / "stale").touch(mode=0)
    for name in ("foo", "stale", ".netnsfs"):
        assert error_of(os.mkdir, mnt / name) == "EEXIST"
    (mnt / "stale").rmdir()


def test_a_namespace_called_like_the_corner_is_shadowed(mnt: Mounted) -> None:
    ip("netns", "add", ".netnsfs")
    assert os.listdir(mnt.path) == []
    assert "pids" not in os.listdir(mnt / ".netnsfs")
    assert error_of(os.rmdir, mnt / ".netnsfs") == "EPERM"
    ip("netns", "del", ".netnsfs")


def test_mkdir_inside_a_namespace_makes_nothing(mnt: Mounted, foo: Path) -> None:
    assert error_of(os.mkdir, foo / "sub") == "EPERM"
    assert error_of(os.mkdir, mnt / ".netnsfs/sub") == "EPERM"
    assert os.listdir(RUN) == ["foo"]


@pytest.mark.machine
def test_everything_else_is_not_permitted(mnt: Mounted, foo: Path) -> None:
    operations: dict[str, Callable[[], object]] = {
        "touch new": lambda: os.open(mnt / "new", os.O_WRONLY | os.O_CREAT),
        "touch in foo": lambda: os.open(foo / "new", os.O_WRONLY | os.O_CREAT),
        "touch foo": lambda: os.utime(foo),
        "touch inode": lambda: os.utime(foo / "inode"),
        "mknod": lambda: os.mknod(mnt / "new"),
        "mkfifo": lambda: os.mkfifo(foo / "new"),
        "hard link": lambda: os.link(foo / "inode", mnt / "new"),
        "unlink": lambda: os.unlink(foo / "inode"),
        "unlink ns": lambda: os.unlink(foo / "ns"),
        "chmod": lambda: os.chmod(foo / "inode", 0o600),
        "chown": lambda: os.chown(foo / "inode", 1, 1),
        "truncate": lambda: os.truncate(foo / "inode", 5),
        "rename a file": lambda: os.rename(foo / "inode", foo / "x"),
        "rename the control directory": lambda: os.rename(mnt / ".netnsfs", mnt / "x"),
        "symlink in foo": lambda: os.symlink("/proc/self/ns/net", foo / "x"),
    }
    assert {name: error_of(call) for name, call in operations.items()} == dict.fromkeys(
        operations, "EPERM"
    )
    os.chmod(foo / "inode", 0o444)
    os.chown(foo / "inode", 0, 0)


def test_rm_r_stops_with_the_namespace_whole(mnt: Mounted, foo: Path) -> None:
    before = (foo / "id").read_text()
    done = subprocess.run(["rm", "-r", foo], check=False, capture_output=True)
    assert done.returncode != 0
    assert b"Operation not permitted" in done.stderr
    assert (foo / "id").read_text() == before


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
@pytest.mark.parametrize("name", ["inode", "id", "pids", "tids"])
def test_opening_for_writing_is_refused_to_root_too(foo: Path, name: str, flags: int) -> None:
    assert error_of(os.open, foo / name, flags) == "EACCES"


def test_rmdir_while_a_process_is_inside(foo: Path, spawn: Spawn) -> None:
    process = spawn("ip", "netns", "exec", "foo", "sleep", "60")
    wait_for(lambda: (foo / "pids").read_text() != "")
    foo.rmdir()
    assert listed() == set()
    assert process.poll() is None


def test_rmdir_of_every_sort_of_name(mnt: Mounted) -> None:
    (mnt / "real").mkdir()
    before = (mnt / "real/id").read_text()
    (RUN / "placeholder").touch(mode=0)
    os.symlink("real", RUN / "lnk")
    os.symlink("nowhere", RUN / "dangling")
    (RUN / "uts").touch()
    subprocess.run(["mount", "--bind", "/proc/self/ns/uts", RUN / "uts"], check=True)
    (RUN / "stacked").touch()
    for _ in range(3):
        subprocess.run(["mount", "--bind", "/proc/self/ns/net", RUN / "stacked"], check=True)
    assert ip("netns", "del", "stacked", check=False).returncode != 0
    for name in ("placeholder", "lnk", "dangling", "uts", "stacked"):
        (mnt / name).rmdir()
        assert not os.path.lexists(RUN / name)
    assert (mnt / "real/id").read_text() == before
    (mnt / "real").rmdir()


def test_stale_names_are_closed_empty_directories(mnt: Mounted) -> None:
    (RUN / "somebodys.pid").write_text("4711\n")
    (RUN / "directory").mkdir()
    (RUN / "placeholder").touch(mode=0)
    os.symlink("loop", RUN / "loop")
    for name in ("somebodys.pid", "directory", "placeholder", "loop"):
        shown = os.stat(mnt / name)
        assert stat.S_ISDIR(shown.st_mode)
        assert stat.S_IMODE(shown.st_mode) == 0
        assert os.listdir(mnt / name) == []
    for name in ("somebodys.pid", "directory"):
        assert error_of(os.rmdir, mnt / name) == "EPERM"
    assert (RUN / "somebodys.pid").read_text() == "4711\n"
    (RUN / "somebodys.pid").unlink()
    (RUN / "directory").rmdir()
    for name in ("placeholder", "loop"):
        (mnt / name).rmdir()


def test_a_stale_name_comes_alive(mnt: Mounted) -> None:
    (RUN / "a").touch(mode=0)
    assert stat.S_IMODE(os.stat(mnt / "a").st_mode) == 0
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", RUN / "a"], check=True)
    assert stat.S_IMODE(os.stat(mnt / "a").st_mode) == 0o755
    assert (mnt / "a/inode").read_text() == f"{os.stat('/proc/self/ns/net').st_ino}\n"
    (mnt / "a").rmdir()


def test_absent_names(mnt: Mounted) -> None:
    assert error_of(os.stat, mnt / "absent") == "ENOENT"
    assert error_of(os.rmdir, mnt / "absent") == "ENOENT"


def test_a_deleted_namespace(foo: Path) -> None:
    held = {name: os.open(foo / name, os.O_RDONLY) for name in ("inode", "id", "pids", "tids")}
    directory = os.open(foo, os.O_RDONLY)
    ip("netns", "del", "foo")
    for name, fd in held.items():
        assert error_of(os.pread, fd, 9, 0) in ("ENODEV", "ESTALE")
        assert error_of(lambda name=name: os.open(foo / name, os.O_RDONLY)) == "ENOENT"
        found = error_of(lambda name=name: os.open(name, os.O_RDONLY, dir_fd=directory))
        assert found == "ENOENT"
        os.close(fd)
    os.close(directory)


@pytest.mark.machine
def test_limit_of_mounts(mnt: Mounted) -> None:
    (mnt / "first").mkdir()
    with no_more_mounts():
        assert error_of(os.mkdir, mnt / "x") == "ENOSPC"
    assert os.listdir(RUN) == ["first"]
    (mnt / "first").rmdir()


def test_run_directory_full(mnt: Mounted) -> None:
    RUN.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "small", RUN], check=True)
    try:
        names = [f"n{i}" for i in range(9)]
        errors = [error_of(os.mkdir, mnt / name) for name in names]
        made = [name for name, error in zip(names, errors, strict=True) if not error]
        assert set(errors) == {"", "ENOSPC"}
        assert sorted(os.listdir(RUN)) == made
        for name in made:
            (mnt / name).rmdir()
    finally:
        unmount_idle(RUN)


# Permission


@pytest.mark.machine
def test_nobody_can_read_and_change_nothing(mnt: Mounted, foo: Path) -> None:
    script = f"""
import errno, os
os.setgid(65534); os.setuid(65534)
print(open("{foo}/inode").read() == open("{foo}/inode").read(), len(os.listdir("{mnt.path}")))
for call in (lambda: os.mkdir("{mnt.path}/x"), lambda: os.rmdir("{foo}"),
             lambda: os.listdir("{mnt.path}/stale"), lambda: os.open("{foo}/id", os.O_WRONLY)):
    try:
        call()
        print("worked")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    (RUN / "stale").touch(mode=0)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout.decode().split() == ["True", "2", *["EACCES"] * 4]
    (mnt / "stale").rmdir()


# Coherence


def test_del_is_seen_by_the_next_lookup(mnt: Mounted) -> None:
    stale = 0
    for _ in range(1000):
        ip("netns", "add", "foo")
        os.stat(mnt / "foo")
        ip("netns", "del", "foo")
        stale += error_of(os.stat, mnt / "foo") != "ENOENT"
    assert stale == 0


def test_every_change_is_seen_at_once(mnt: Mounted, start: Start) -> None:
    second = start(at=Path("/mnt/second"))
    (mnt / "a").mkdir()
    assert (second / "a/id").read_text() == (mnt / "a/id").read_text()
    (second / "a").rmdir()
    assert error_of(os.stat, mnt / "a") == "ENOENT"
    (RUN / "b").touch(mode=0)
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", RUN / "b"], check=True)
    assert os.listdir(mnt / "b")
    unmount_idle(RUN / "b")
    assert stat.S_IMODE(os.stat(mnt / "b").st_mode) == 0
    (RUN / "b").unlink()
    assert error_of(os.stat, second / "b") == "ENOENT"


def test_a_listing_skips_nothing_while_names_come_and_go(mnt: Mounted) -> None:
    steady = {f"steady-name-{i}" for i in range(150)}
    for name in steady:
        (mnt / name).mkdir()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for i in range(5):
                ip("netns", "add", f"churn{i}")
            for i in range(5):
                ip("netns", "del", f"churn{i}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(60):
            names = os.listdir(mnt.path)
            assert steady <= set(names)
            assert len(names) == len(set(names))
    finally:
        stop.set()
        thread.join()
    for name in steady:
        (mnt / name).rmdir()


def test_names_made_mid_listing(mnt: Mounted) -> None:
    for i in range(100):
        (mnt / f"long-enough-to-need-several-requests-{i}").mkdir()
    with os.scandir(mnt.path) as entries:
        first = next(entries).name
        ip("netns", "add", "late")
        rest = [entry.name for entry in entries]
    assert len({first, *rest} - {"late"}) == 100
    assert "late" in os.listdir(mnt.path)
    for name in os.listdir(mnt.path):
        (mnt / name).rmdir()


FORGETFUL = """
from netnsfs.fuse import session as mount
from netnsfs.__main__ import main
mount.BOUND_MEMORY_SECONDS = 0.2
main()
"""


def test_the_kernel_forgets_what_is_not_in_use(start: Start) -> None:
    # What is looked up anew is another node, with another number.
    program = [sys.executable, "-c", FORGETFUL, "-f", "/mnt/netnsfs"]
    mnt = start(program=program)
    for i in range(10):
        (mnt / f"n{i}").mkdir()
    with (mnt / "n0/id").open() as held:
        numbers = os.fstat(held.fileno()).st_ino, os.stat(mnt / "n1/id").st_ino
        time.sleep(0.5)
        assert os.stat(mnt / "n1/id").st_ino == numbers[1]
        for i in range(10):
            sysctls = subprocess.run(
                ["find", mnt / f"n{i}/sysctl"], check=True, capture_output=True
            )
            assert sysctls.stdout.count(b"\n") > 100
        wait_for(lambda: os.stat(mnt / "n1/id").st_ino != numbers[1])
        assert os.stat(mnt / "n0/id").st_ino == numbers[0]
        assert held.read()
    for i in range(10):
        (mnt / f"n{i}").rmdir()


HOLLOW = f"""
pieces = [b"x" * 8192 for _ in range(20_000)]
# The C library gives back by itself what is free at the end.
kept = pieces[::16]
del pieces
{FORGETFUL}
"""


def test_free_memory_is_given_back(start: Start) -> None:
    mnt = start(program=[sys.executable, "-c", HOLLOW, "-f", "/mnt/netnsfs"])
    (mnt / "foo").mkdir()
    (mnt / "foo").rmdir()
    wait_for(lambda: resident(mnt.process.pid) < 80_000)


# Errno of the unusual


def test_errno_is_told_apart(foo: Path) -> None:
    assert error_of(os.listdir, foo / "inode") == "ENOTDIR"
    assert error_of(os.open, foo, os.O_WRONLY) == "EISDIR"
    assert error_of(os.mkdir, foo / "inode") == "EEXIST"
    assert error_of(os.getxattr, foo, "user.x") == "ENOTSUP"
    fd = os.open(foo / "inode", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_the_daemon_stays_at_home(mnt: Mounted) -> None:
    for _ in range(30):
        (mnt / "foo").mkdir()
        (mnt / "foo/pids").read_text()
        (mnt / "foo").rmdir()
    pid = mnt.process.pid
    homes = {
        os.readlink(f"/proc/{pid}/task/{tid}/ns/net") for tid in os.listdir(f"/proc/{pid}/task")
    }
    assert homes == {os.readlink("/proc/self/ns/net")}
