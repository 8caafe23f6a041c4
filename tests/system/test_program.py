"""The command: forking, exit statuses, one-line errors, what /proc/mounts shows."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tracing
from conftest import (
    MNT,
    RUN,
    USER_MODE_LINUX,
    Mounted,
    Start,
    command_of,
    complaints,
    daemon,
    error_of,
    fuse_mounts,
    ip,
    python_in,
    type_at,
    unmount,
    unmount_idle,
    wait_for,
)

from netnsfs import linux
from netnsfs.fuse import mounting

PROGRAM = [sys.executable, "-m", "netnsfs"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*PROGRAM, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        **options,
    )


def test_background(start: Start) -> None:
    before = time.monotonic()
    done = run()
    assert (done.returncode, done.stdout, complaints(done.stderr)) == (0, "", [])
    assert time.monotonic() - before < 10
    os.mkdir(MNT / "foo")
    assert (MNT / "foo/pids").read_text() == ""
    pid = daemon()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    os.rmdir(MNT / "foo")
    unmount()


def test_background_in_a_pipe_lets_the_pipe_end() -> None:
    done = subprocess.run(
        f"{sys.executable} -m netnsfs 2>&1 | cat", shell=True, timeout=20, check=True
    )
    assert done.returncode == 0
    unmount()


def test_what_proc_mounts_shows(mnt: Mounted) -> None:
    lines = map(str.split, Path("/proc/mounts").read_text().splitlines())
    [line] = [line for line in lines if line[1] == "/mnt/netnsfs"]
    assert line[:3] == ["netnsfs", "/mnt/netnsfs", "fuse.netnsfs"]
    assert {"nosuid", "nodev", "noexec", "allow_other", "default_permissions"} <= set(
        line[3].split(",")
    )


def test_a_source_is_shown(start: Start) -> None:
    start("my,so\\urce")
    assert "my,so\\134urce /mnt/netnsfs fuse.netnsfs" in Path("/proc/mounts").read_text()


def test_the_mount_point_is_made(start: Start) -> None:
    path = Path("/mnt/a/b")
    start(at=path)
    assert type_at(path) == b"fuse.netnsfs"


def test_rundir(start: Start, tmp_path: Path) -> None:
    mounted = start("-o", f"rundir={tmp_path}/run")
    (mounted / "foo").mkdir()
    assert os.readlink(mounted / "foo/ns") == f"{tmp_path}/run/foo"
    assert os.stat(tmp_path / "run/foo").st_ino == os.stat(mounted / "foo").st_ino
    assert ip("netns", "list").stdout == b""
    (mounted / "foo").rmdir()
    unmount_idle(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "looks"),
    [
        ("tmpfs", 0),
        pytest.param(
            "hugetlbfs",
            1,
            marks=pytest.mark.skipif(
                "hugetlbfs" not in Path("/proc/filesystems").read_text(), reason="there is none"
            ),
        ),
    ],
)
def test_looks_in_the_run_directory(start: Start, kind: str, looks: int) -> None:
    place = Path("/run/place")
    place.mkdir()
    subprocess.run(["mount", "-t", kind, kind, place], check=True)
    mounted = start("-o", f"rundir={place}/names")
    (mounted / "foo").mkdir()
    path = mounted / "foo"
    # The first lookups find out that the directory can be watched.
    wait_for(lambda: looks_of(mounted, path) == looks)
    ip("netns", "add", "bar")
    subprocess.run(["umount", place / "names/foo"], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0
    (place / "names/foo").unlink()
    assert not path.exists()
    unmount()
    unmount_idle(place / "names")
    unmount_idle(place)
    ip("netns", "del", "bar")
    place.rmdir()


def looks_of(mounted: Mounted, path: Path) -> int:
    """How many files the event loop looks at for one lookup."""
    calls = tracing.calls(mounted.process.pid, path.stat)
    return sum(call.name == "openat2" for call in calls)


# Errors that a user can hit


def failure(*arguments: str, **options: object) -> tuple[int, str]:
    done = run(*arguments, **options)
    lines = complaints(done.stderr)
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0].removeprefix("netnsfs: ")


def test_unknown_option() -> None:
    assert failure("-o", "rw,nonsense") == (1, "unknown option: nonsense (see netnsfs --help)")


@pytest.mark.parametrize("front", [[], ["-f"]])
def test_already_mounted(mnt: Mounted, front: list[str]) -> None:
    assert failure(*front) == (32, "a netnsfs is already mounted at /mnt/netnsfs")


def test_a_stopped_daemon_is_not_dead(mnt: Mounted) -> None:
    mnt.process.send_signal(signal.SIGSTOP)
    try:
        assert failure()[0] == 32
    finally:
        mnt.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "volume", [["-t", "tmpfs", "volume"], ["--bind", "/run/volume"], ["-t", "sysfs", "sysfs"]]
)
def test_a_mount_point_that_is_a_mount(volume: list[str]) -> None:
    # What other tests have left below /mnt may be called anything.
    Path("/run/volume/made while nothing was mounted").mkdir(parents=True)
    subprocess.run(["mount", *volume, MNT], check=True)
    try:
        before, kind = sorted(os.listdir(MNT)), type_at(MNT)
        done = run()
        assert (done.returncode, os.listdir(MNT), type_at(MNT)) == (0, [], b"fuse.netnsfs")
        shown = ", ".join(before[:5]) + ", ..." * (len(before) > 5)
        warning = f"netnsfs: WARNING: {MNT} is not empty: the mount hides {shown}"
        assert complaints(done.stderr) == [warning] * bool(before)
        # The second start sees the first, and not what that is mounted on.
        assert failure() == (32, "a netnsfs is already mounted at /mnt/netnsfs")
        unmount()
        assert (sorted(os.listdir(MNT)), type_at(MNT)) == (before, kind)
    finally:
        subprocess.run(["umount", MNT], check=True)
        shutil.rmtree("/run/volume")


def test_a_dead_netnsfs_on_a_volume() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "volume", MNT], check=True)
    try:
        assert run().returncode == 0
        pid = daemon()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not command_of(pid))
        assert run().returncode == 0
        assert [type_at(MNT), len(fuse_mounts())] == [b"fuse.netnsfs", 1]
        unmount()
    finally:
        subprocess.run(["umount", MNT], check=True)


def test_a_mount_point_that_is_not_empty() -> None:
    (MNT / "made while nothing\nwas mounted").mkdir()
    try:
        done = run()
        shown = "made while nothing\\nwas mounted"
        warning = f"netnsfs: WARNING: {MNT} is not empty: the mount hides {shown}"
        assert (done.returncode, complaints(done.stderr)) == (0, [warning])
        unmount()
    finally:
        (MNT / "made while nothing\nwas mounted").rmdir()


# Where process 1 is in another mount namespace.
ELSEWHERE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
ELSEWHERE += ["sh", "-c", 'unshare --mount "$@" || exit', "sh"]


@pytest.mark.parametrize("where", [[], ELSEWHERE], ids=["here", "elsewhere"])
def test_a_mount_point_whose_file_system_does_not_answer(where: list[str]) -> None:
    shell = (
        '"$@" & until grep -q fuse.netnsfs /proc/self/mountinfo; do sleep 0.1; done\n'
        "umount /mnt/netnsfs && wait $!"
    )
    with linux.closing_fd(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)) as device:
        options: dict[bytes, bytes | None] = {b"fd": b"%d" % device, b"rootmode": b"40000"}
        options |= {b"user_id": b"0", b"group_id": b"0", b"subtype": b"silent"}
        with linux.closing_fd(linux.new_mount(b"fuse", options, 0)) as mount:
            with linux.closing_fd(os.open(MNT, os.O_PATH)) as target:
                linux.move_mount(mount, target)
            try:
                program = [*where, "sh", "-c", shell, "sh", *PROGRAM, "-f"]
                subprocess.run(program, check=True, timeout=20)
            finally:
                linux.umount(bytes(MNT), linux.MNT_DETACH)


def test_mount_point_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert failure(str(file)) == (32, f"{file} is not a directory")
    status, message = failure(f"{file}/x")
    assert (status, message) == (32, f"cannot use {file}/x: Not a directory")


@pytest.mark.machine
def test_not_root(checkout: Path) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*nobody, python_in(checkout), "-m", "netnsfs"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 1
    assert (
        done.stderr == "netnsfs: only root can mount netnsfs: use sudo, or netnsfs --rootless\n"
    )


def test_no_dev_fuse() -> None:
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs t /dev; exec "$@"', "sh", *PROGRAM]
    done = subprocess.run(hidden, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "modprobe fuse" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("mount_setattr:ENOSYS", "mount_setattr(2), which Linux 5.12 and newer have"),
        ("open_tree:ENOSYS", "open_tree(2), which Linux 5.2 and newer have"),
    ],
)
def test_a_kernel_that_is_too_old(call: str, told: str) -> None:
    program = [sys.executable, "tests/without_call.py", call, "--", *PROGRAM]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert complaints(done.stderr) == [f"netnsfs: the kernel does not know {told}"]
    assert fuse_mounts() == []


# netnsfs --check


def test_check_of_a_mount(mnt: Mounted) -> None:
    done = run("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    Path("/mnt/link").symlink_to("netnsfs")
    assert run("--check", "/mnt/link").returncode == 0
    Path("/mnt/link").unlink()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/mnt", "no netnsfs is mounted at /mnt"),
        ("/mnt/nowhere", "no netnsfs is mounted at /mnt/nowhere: it does not exist"),
        ("/proc", "no netnsfs is mounted at /proc"),
        ("/mnt/netnsfs/foo", "no netnsfs is mounted at /mnt/netnsfs/foo"),
        ("/proc/version/x", "cannot look at /proc/version/x: Not a directory"),
    ],
)
def test_check_of_something_else(foo: Path, path: str, told: str) -> None:
    assert failure("--check", path) == (32, told)


def test_check_of_a_mount_whose_daemon_has_ended(start: Start) -> None:
    start().kill()
    told = f"the daemon of the netnsfs at {MNT} has ended: start it again"
    assert failure("--check", str(MNT)) == (32, told)


def test_check_of_a_daemon_that_does_not_answer(mnt: Mounted) -> None:
    mnt.process.send_signal(signal.SIGSTOP)
    try:
        assert failure("--check") == (32, f"the netnsfs at {MNT} does not answer")
    finally:
        mnt.process.send_signal(signal.SIGCONT)


def test_a_dev_fuse_that_cannot_be_opened(checkout: Path) -> None:
    shell = (
        "mount -t tmpfs t /dev; mknod -m 600 /dev/fuse c 10 229; "
        'exec setpriv --reuid=65534 --regid=65534 --clear-groups unshare -Urnm "$@"'
    )
    program = [python_in(checkout), "-m", "netnsfs", "-o", "rundir=/run/names"]
    hidden = ["unshare", "-m", "sh", "-c", shell, "sh", *program]
    done = subprocess.run(hidden, check=False, capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 1
    assert done.stderr == "netnsfs: cannot open /dev/fuse: Permission denied: see its mode\n"


@pytest.mark.parametrize(
    ("made", "told"),
    [("", "mount -t proc"), ("mkdir -p /proc/self/ns", "CONFIG_NET_NS")],
)
def test_another_proc(made: str, told: str) -> None:
    """In a chroot without a procfs, and on a kernel without network namespaces."""
    shell = f'mount -t tmpfs t /proc; {made}\nexec "$@"'
    hidden = ["unshare", "-m", "sh", "-c", shell, "sh", *PROGRAM]
    done = subprocess.run(hidden, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert told in done.stderr


def test_mount_refused_by_the_kernel() -> None:
    # A user namespace without a mount namespace of its own may not mount.
    command = ["unshare", "-Ur", *PROGRAM, "-f"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 32
    last = done.stderr.splitlines()[-1]
    assert last.startswith("netnsfs: cannot mount: Operation not permitted: ")
    assert "CAP_SYS_ADMIN" in last
    assert "Traceback" not in done.stderr


def test_mount_refused_by_a_security_module() -> None:
    refused = OSError(errno.EACCES, os.strerror(errno.EACCES))
    told = "cannot mount: Permission denied: AppArmor or SELinux refuses it: run the container "
    assert (
        str(mounting.cannot_mount(refused)) == told + "with --security-opt=apparmor=unconfined"
    )


# In a mount namespace of its own

APART = """
set -e
mount -t tmpfs shared /mnt
mount --make-shared /mnt
mkdir /mnt/run /mnt/point /mnt/other
mount -t tmpfs volume /mnt/other
mount --make-private /mnt/other
unshare --mount --propagation unchanged "$@"
! [ -e /mnt/point/.netnsfs ] || mkdir /mnt/point/foo
ls /mnt/run
"""


@pytest.mark.parametrize(
    ("arguments", "unseen", "names"),
    [
        ("rundir=/mnt/run /mnt/point", "", "foo\n"),
        ("rundir=/mnt/run /mnt/other", "the mount", ""),
        ("rundir=/mnt/other/run /mnt/point", "namespaces made here", ""),
        ("rundir=/mnt/other/run /mnt/other/point", "namespaces made here and the mount", ""),
    ],
)
def test_it_tells_what_process_1_does_not_see(arguments: str, unseen: str, names: str) -> None:
    apart = ["unshare", "--mount", "--pid", "--kill-child", "--mount-proc", "sh", "-c", APART]
    done = subprocess.run(
        [*apart, "sh", *PROGRAM, "-o", *arguments.split()],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = [line for line in done.stderr.splitlines() if "machine's mount namespace" in line]
    warning = "netnsfs: WARNING: this is not the machine's mount namespace: "
    assert told == [f"{warning}{unseen} cannot be seen outside"] * bool(unseen)
    assert (done.stdout, done.returncode) == (names, 0), done.stderr


# Without root, in a user namespace

ROOTLESS = """
set -e
cd "$1"
"$2" -m netnsfs -o rundir=./run ./mnt 2>log
mkdir mnt/foo mnt/bar
test "$(cat mnt/foo/inode)" = "$(stat -L -c %i run/foo)"
nsenter --net=mnt/foo/ns sleep 60 &
child=$!
until test "$(cat mnt/foo/pids)" = $child; do sleep 0.02; done
test "$(cat mnt/foo/id)" != "$(cat mnt/bar/id)"
kill $child
rmdir mnt/foo mnt/bar
test "$(ls mnt)" = ""
umount mnt
echo ok
"""


def test_in_a_user_namespace(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-Urnm", "sh", "-c", ROOTLESS, "sh", tmp_path, sys.executable],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": os.environ["PATH"]},
    )
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def test_end_of_the_mount_keeps_the_namespaces(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    subprocess.run(["umount", mnt.path], check=True)
    assert ip("netns", "list").stdout == b"foo\n"
    assert error_of(os.rmdir, RUN / "foo") == "ENOTDIR"
    ip("netns", "del", "foo")


# What once broke a start


ALREADY = f"netnsfs: a netnsfs is already mounted at {MNT}"


def all_but_one_refused(started: list[subprocess.Popen[str]]) -> None:
    told = [complaints(process.communicate(timeout=30)[1]) for process in started]
    statuses = [process.returncode for process in started]
    assert sorted(statuses) == [0] + [32] * (len(started) - 1)
    assert sorted(told) == [[]] + [[ALREADY]] * (len(started) - 1)
    assert fuse_mounts() == [bytes(MNT)]
    os.mkdir(MNT / "foo")
    os.rmdir(MNT / "foo")
    unmount()
    assert fuse_mounts() == []


def begun(program: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        program, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


@pytest.mark.parametrize("number", [2, 4, 8])
def test_several_starts_at_one_moment_make_one_mount(number: int) -> None:
    for _ in range(3):
        all_but_one_refused([begun(PROGRAM) for _ in range(number)])


LOOKS_EARLY = """
import os, sys, time
from netnsfs.__main__ import main
from netnsfs.fuse import mounting

def clear(mount_point):
    mounting.clear = really_clear
    found = really_clear(mount_point)
    open(f"/run/looked/{os.getpid()}", "w").close()
    while not os.path.exists("/run/looked/all"):
        time.sleep(0.001)
    return found

really_clear, mounting.clear = mounting.clear, clear
sys.exit(main())
"""


@pytest.mark.parametrize("number", [2, 8])
def test_several_starts_that_have_all_looked_before(number: int) -> None:
    looked = Path("/run/looked")
    looked.mkdir()
    program = [sys.executable, "-c", LOOKS_EARLY, "netnsfs", str(MNT)]
    # With a source, the same again would be no failure.
    started = [begun([*program, "-o", f"umask={mask:o}"]) for mask in range(number)]
    wait_for(lambda: len(os.listdir(looked)) == number, 60)
    (looked / "all").touch()
    all_but_one_refused(started)
    shutil.rmtree(looked)


def test_several_starts_over_a_dead_one(start: Start) -> None:
    start().kill()
    started = [begun(PROGRAM) for _ in range(4)]
    told = [complaints(process.communicate(timeout=30)[1]) for process in started]
    assert sorted(process.returncode for process in started) == [0, 32, 32, 32]
    lines = [line for lines in told for line in lines]
    detached = f"netnsfs: WARNING: detaching the netnsfs at {MNT}, whose daemon is dead"
    assert sorted(lines) == sorted([detached, *[ALREADY] * 3])
    assert fuse_mounts() == [bytes(MNT)]
    unmount()


@pytest.mark.machine
def test_no_lock_of_others_stops_a_start() -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    script = "echo locked; exec sleep 60"
    locker = subprocess.Popen(
        [*nobody, "flock", "--no-fork", MNT.parent, "sh", "-c", script], stdout=subprocess.PIPE
    )
    assert locker.stdout
    assert locker.stdout.read(7) == b"locked\n"
    before = time.monotonic()
    assert run().returncode == 0
    assert time.monotonic() - before < 5
    assert locker.poll() is None
    unmount()
    locker.kill()
    locker.communicate()


@pytest.fixture
def autofs() -> Iterator[None]:
    """The mount point is one that mounts on demand, as systemd's automount units make them."""
    demands, kernel = os.pipe()
    options = f"fd={kernel},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    subprocess.run(
        ["mount", "-t", "autofs", "-o", options, "none", MNT], check=True, pass_fds=[kernel]
    )
    yield
    subprocess.run(["umount", MNT], check=True)
    os.close(kernel)
    os.close(demands)


@pytest.mark.machine
def test_a_mount_point_that_mounts_on_demand(autofs: None) -> None:
    assert run().returncode == 0
    assert failure() == (32, ALREADY.removeprefix("netnsfs: "))
    pid = daemon()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not command_of(pid))
    done = run()
    detached = f"netnsfs: WARNING: detaching the netnsfs at {MNT}, whose daemon is dead"
    assert (done.returncode, complaints(done.stderr)) == (0, [detached])
    assert (os.listdir(MNT), type_at(MNT)) == ([], b"fuse.netnsfs")
    unmount()


# What is loaded at the start

IMPORTS = [sys.executable, "-X", "importtime", "-m", "netnsfs"]


def imported(messages: str) -> set[str]:
    lines = [line for line in messages.splitlines() if line.startswith("import time:")]
    return {line.split("|")[-1].strip() for line in lines}


def test_help_needs_little() -> None:
    done = subprocess.run([*IMPORTS, "--help"], check=True, capture_output=True, text=True)
    assert imported(done.stderr) & {"trio", "pyfuse3", "ctypes", "importlib.metadata"} == set()


def test_check_needs_little(mnt: Mounted) -> None:
    done = subprocess.run([*IMPORTS, "--check"], check=True, capture_output=True, text=True)
    assert imported(done.stderr) & {"trio", "pyfuse3", "importlib.metadata"} == set()


def test_a_start_needs_little(start: Start) -> None:
    mounted = start(program=[*IMPORTS, "-f", str(MNT)])
    late = {"asyncio", "multiprocessing"}
    assert imported(mounted.messages()) & late == set()
    # From the command to the answer, on a processor of its own; twice what it was.
    assert processor_seconds(mounted) < (3 if USER_MODE_LINUX else 0.5)


def processor_seconds(mounted: Mounted) -> float:
    found = Path(f"/proc/{mounted.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK")


# Starts that fail half-way

FAILING = """
import errno, os, sys
from netnsfs import linux
from netnsfs.__main__ import main
from netnsfs.fuse import loop, session

def fail(*arguments):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

def fail_when_mounted(*arguments):
    if "fuse.netnsfs" in open("/proc/self/mountinfo").read():
        fail()
    return really_mounts(*arguments)

really_mounts = linux.mounts
{failures}
sys.exit(main())
"""

FAILURES = {
    "the look at the mount": "session.mounting.identity_of = fail",
    "mountinfo": "linux.mounts = fail_when_mounted",
    "the session": "session.pyfuse3.init = fail",
    "the start of the loop": "session.never_block = fail",
    "a clean-up too": "session.never_block = loop.LoopWaiter.close = fail",
}


@pytest.mark.parametrize("failures", FAILURES)
def test_a_start_that_fails_leaves_no_mount(failures: str) -> None:
    program = [sys.executable, "-c", FAILING.format(failures=FAILURES[failures])]
    done = subprocess.run(
        [*program, "-f"], check=False, capture_output=True, text=True, timeout=20
    )
    assert fuse_mounts() == []
    lines = complaints(done.stderr)
    assert done.returncode == 2
    assert len(lines) == 1
    assert "Function not implemented" in lines[0]


def test_a_mount_point_behind_a_link(start: Start) -> None:
    real, link = Path("/mnt/real"), Path("/mnt/link")
    real.mkdir()
    link.symlink_to("real")
    assert run(str(link)).returncode == 0
    assert type_at(real) == b"fuse.netnsfs"
    pid = daemon()
    subprocess.run(["umount", real], check=True)
    wait_for(lambda: not command_of(pid))
    link.unlink()
    real.rmdir()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str) -> None:
    command = f"{sys.executable} -m netnsfs {closed}"
    assert subprocess.run(command, shell=True, check=False, timeout=20).returncode == 0
    assert (os.listdir(MNT), type_at(MNT)) == ([], b"fuse.netnsfs")
    unmount()


def test_inherited_descriptors_are_closed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = f"exec 9>'{lock}'; flock 9; {sys.executable} -m netnsfs 2>/dev/null"
    subprocess.run(command, shell=True, check=True, timeout=20)
    subprocess.run(["flock", "-n", lock, "true"], check=True)
    unmount()


@pytest.mark.parametrize("inside", ["", "/names"])
def test_names_may_not_lie_in_the_mount(inside: str) -> None:
    status, message = failure("-o", f"rundir={MNT}{inside}")
    assert status == 1
    assert "may not lie in the mount point" in message


def test_names_with_any_line_end(start: Start) -> None:
    names = ["a\rb", "a\x0bb", "a\x85b", "a\u2028b"]
    for name in names:
        ip("netns", "add", name)
    mounted = start()
    assert sorted(os.listdir(mounted.path)) == sorted(names)
    for name in names:
        (mounted / name).rmdir()


def test_a_link_as_rundir_is_bound_once(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    for _ in range(3):
        mounted = start("-o", f"rundir={tmp_path}/link")
        (mounted / "foo").mkdir()
        (mounted / "foo").rmdir()
        subprocess.run(["umount", MNT], check=True)
        mounted.process.wait(5)
    subprocess.run(["umount", tmp_path / "run"], check=True)
    assert str(tmp_path / "run") not in Path("/proc/self/mountinfo").read_text()


def test_no_descriptors_do_not_make_names_look_stale(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    os.symlink("foo", RUN / "lnk")
    limit = ["prlimit", "--pid", str(mnt.process.pid), "--nofile=5:4096"]
    subprocess.run(limit, check=True)
    assert error_of(os.stat, mnt / "lnk") == "EMFILE"
    subprocess.run([*limit[:-1], "--nofile=1024:4096"], check=True)
    assert os.listdir(mnt / "lnk")
    for name in ("foo", "lnk"):
        (mnt / name).rmdir()


@pytest.fixture
def pids_controller() -> Iterator[Path]:
    """The root of the control groups that limit the number of tasks, whichever version."""
    path = Path("/run/pids")
    path.mkdir()
    version_1 = ["mount", "-t", "cgroup", "-o", "pids", "pids", str(path)]
    if subprocess.run(version_1, check=False, capture_output=True).returncode:
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", path], check=True)
        (path / "cgroup.subtree_control").write_text("+pids")
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


@pytest.mark.machine
def test_no_thread_to_be_had(mnt: Mounted, pids_controller: Path) -> None:
    own = pids_controller / "netnsfs-test"
    own.mkdir()
    try:
        (own / "cgroup.procs").write_text(str(mnt.process.pid))
        (own / "pids.max").write_text("1")
        assert error_of(os.mkdir, mnt / "x") == "EAGAIN"
        (own / "pids.max").write_text("max")
        (mnt / "y").mkdir()
        assert os.listdir(RUN) == ["y"]
        (mnt / "y").rmdir()
    finally:
        (pids_controller / "cgroup.procs").write_text(str(mnt.process.pid))
        own.rmdir()
