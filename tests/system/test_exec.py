"""NAME/exec (netnsfs/data/netns-exec.c): beside `ip netns exec`, and beside attackers."""

import ctypes
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import MNT, RUN, Mounted, Start, bound, ip, no_more_mounts, wait_for

from netnsfs.tree import program as programs

# fusermount3(1) wants one with a name. In a user namespace, nobody is whom it does not know.
USER, OTHER = pwd.getpwnam("daemon").pw_uid, 23456
WHERE = ("readlink", "/proc/self/ns/net")

Done = subprocess.CompletedProcess[str]


AS_USER: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}


def run(*command: str | Path, uid: int = USER, **options: Any) -> Done:
    """Run a program as a user."""
    identity = {**AS_USER, "user": uid, "group": uid} if uid else {"cwd": "/"}
    settings = {"capture_output": True, "text": True, "timeout": 60, **identity, **options}
    return subprocess.run(command, check=False, **settings)


def is_refused(done: Done, why: str = "") -> None:
    """One line tells why, and nothing was run."""
    assert done.returncode == 126, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("exec: ")
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


def is_inside(done: Done, directory: Path) -> None:
    """`WHERE` was run in the namespace of a directory."""
    assert done.stdout == f"net:[{(directory / 'inode').read_text().strip()}]\n", done.stderr
    assert done.returncode == 0


@pytest.fixture
def program() -> Iterator[Path]:
    """A copy of the program, in this mount namespace, with the capability."""
    path = Path("/mnt/bin/netns-exec")
    path.parent.mkdir()
    installed = programs.installed()
    assert installed
    shutil.copy(os.fsdecode(installed), path)
    subprocess.run(["setcap", "cap_sys_admin=p", path], check=True)
    yield path
    shutil.rmtree(path.parent)


@contextmanager
def namespaces(mounted: Mounted) -> Iterator[None]:
    """blue, which is the user's, and red, which is not."""
    for name in ("blue", "red"):
        (mounted / name).mkdir()
    os.chown(mounted / "blue", USER, USER)
    try:
        yield
    finally:
        for name in os.listdir(RUN):
            ip("netns", "del", name)


@pytest.fixture
def blue(start: Start, program: Path) -> Iterator[Path]:
    mounted = start("-o", f"execpath={program}")
    with namespaces(mounted):
        yield mounted / "blue"


@pytest.fixture
def red(blue: Path) -> Path:
    return blue.with_name("red")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user's."""
    path = Path("/mnt/home")
    path.mkdir()
    os.chown(path, USER, USER)
    yield path
    shutil.rmtree(path)


def test_the_program_has_no_library_and_no_relocation(program: Path) -> None:
    """Nobody would relocate it: it would follow wrong addresses."""
    done = run("readelf", "-rld", program, uid=0)
    assert "There are no relocations" in done.stdout
    assert "NEEDED" not in done.stdout
    assert "INTERP" not in done.stdout


def test_the_owner_gets_in_and_nobody_else(blue: Path, red: Path) -> None:
    is_inside(run(blue / "exec", *WHERE), blue)
    is_refused(run(red / "exec", *WHERE), "/red: Permission denied")
    is_refused(run(blue / "exec", *WHERE, uid=OTHER), "/blue: Permission denied")


def test_root_needs_no_capability(start: Start, tmp_path: Path) -> None:
    mounted = start()
    with namespaces(mounted):
        is_inside(run(mounted / "red/exec", *WHERE, uid=0), mounted / "red")


def test_without_the_capability_it_tells_which_command_gives_it(
    blue: Path, program: Path
) -> None:
    subprocess.run(["setcap", "-r", program], check=True)
    is_refused(run(blue / "exec", *WHERE), f"setcap cap_sys_admin=p {program}\n")


@pytest.mark.parametrize("given", ["cap_sys_admin=ep", "cap_sys_admin=eip"])
def test_the_capability_may_be_effective(blue: Path, program: Path, given: str) -> None:
    subprocess.run(["setcap", given, program], check=True)
    done = run(blue / "exec", "grep", "^Cap[IPEA]", "/proc/self/status")
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"0" * 16}
    is_refused(run(blue.with_name("red") / "exec", *WHERE), "Permission denied")


def test_a_group_gets_in(blue: Path, red: Path) -> None:
    os.chown(red, 0, OTHER)
    member: dict[str, Any] = {"extra_groups": [OTHER]}
    is_refused(run(red / "exec", *WHERE, **member))
    red.chmod(0o775)
    is_inside(run(red / "exec", *WHERE, **member), red)
    is_refused(run(red / "exec", *WHERE))


def test_a_right_that_was_taken_back_is_gone(blue: Path) -> None:
    is_inside(run(blue / "exec", *WHERE), blue)
    os.chown(blue, 0, 0)
    is_refused(run(blue / "exec", *WHERE))
    os.chown(blue, USER, USER)
    blue.chmod(0o555)
    is_refused(run(blue / "exec", *WHERE))


def wait_until_started(cat: subprocess.Popen[bytes]) -> None:
    """Wait for a cat(1) to answer."""
    assert cat.stdin
    assert cat.stdout
    cat.stdin.write(b"\n")
    cat.stdin.flush()
    cat.stdout.readline()


def as_other(statement: str) -> tuple[str, ...]:
    """A command line before another: Python, to prepare what a process has at hand."""
    script = f"import os, resource, sys\n{statement}\nos.execv(sys.argv[1], sys.argv[1:])"
    return ("/usr/bin/python3", "-c", script)


def test_the_real_user_counts(blue: Path) -> None:
    """What a setuid program of the owner's calls for somebody else is refused."""
    ids = f"os.setresgid({USER}, {USER}, {USER}); os.setresuid({OTHER}, {USER}, {USER})"
    is_refused(run(*as_other(ids), blue / "exec", *WHERE, uid=0), "Permission denied")


def test_a_closed_directory_is_closed(blue: Path) -> None:
    blue.chmod(0o600)
    with pytest.raises(PermissionError):
        run(blue / "exec", *WHERE)


def test_a_closed_run_directory_is_closed(blue: Path) -> None:
    RUN.chmod(0o700)
    is_refused(run(blue / "exec", *WHERE), f"{RUN}/blue: Permission denied")
    is_inside(run(blue / "exec", *WHERE, uid=0), blue)


def test_a_namespace_without_a_name_is_roots(blue: Path, red: Path) -> None:
    red.chmod(0o777)
    inode = (red / "inode").read_text().strip()
    sleeper = subprocess.Popen([red / "exec", "cat"], stdin=subprocess.PIPE, stdout=-1)
    wait_until_started(sleeper)
    ip("netns", "del", "red")
    unnamed = MNT / ".netnsfs/unnamed" / inode
    is_inside(run(unnamed / "exec", *WHERE, uid=0), unnamed)
    with pytest.raises(PermissionError):
        run(unnamed / "exec", *WHERE)
    sleeper.communicate()


# Look-alikes, and other ways to the program.


def imitate(directory: Path, program: Path) -> None:
    """What tells the same as blue/, but leads to red."""
    directory.mkdir()
    (directory / "exec").symlink_to(program)
    (directory / "ns").symlink_to(RUN / "red")
    (directory / "id").write_text((MNT / "red/id").read_text())
    os.chown(directory, USER, USER)


def test_a_directory_that_looks_like_one(blue: Path, home: Path, program: Path) -> None:
    imitate(home / "red", program)
    is_refused(run(home / "red/exec", *WHERE), "not in a netnsfs that root has mounted here")


@contextmanager
def own_fuse(target: Path, shown: Path, *before: str) -> Iterator[int]:
    """A mount of type fuse.netnsfs that the user has made, of what a directory holds.

    Yields:
        The process that serves it.
    """
    node = Path("/run/fuse")
    os.mknod(node, 0o020666, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    left, right = socket.socketpair()
    server = shutil.which("sftp-server") or "/usr/lib/openssh/sftp-server"
    options = "passive,subtype=netnsfs" + ",uid=0,gid=0" * bool(before)
    if "contain_symlinks" in run("sshfs", "--help").stdout:
        options += ",no_contain_symlinks"
    with left, right, bound(node, Path("/dev/fuse")):
        command = [*before, "sshfs", "-f", "-o", options, f"host:{shown}", str(target)]
        sftp = subprocess.Popen([server], stdin=left.fileno(), stdout=left.fileno(), **AS_USER)
        end = right.fileno()
        client = subprocess.Popen(command, stdin=end, stdout=end, **AS_USER)
        try:
            listing = f"/proc/{client.pid}/mountinfo"
            wait_for(lambda: f"{target} " in Path(listing).read_text())
            assert " - fuse.netnsfs " in Path(listing).read_text()
            yield client.pid
        finally:
            for process in (client, sftp):
                process.terminate()
                process.wait()
            if not before:
                subprocess.run(["umount", "-l", target], check=False)
    node.unlink()


def test_a_fuse_of_the_users_own(blue: Path, home: Path, program: Path) -> None:
    (home / "shown").mkdir()
    imitate(home / "shown/red", program)
    (home / "mount").mkdir()
    os.chown(home / "mount", USER, USER)
    with own_fuse(home / "mount", home / "shown"):
        assert run("cat", home / "mount/red/id").stdout == (MNT / "red/id").read_text()
        done = run(home / "mount/red/exec", *WHERE)
        is_refused(done, "not in a netnsfs that root has mounted here")


def test_a_fuse_over_the_directory(blue: Path, home: Path, program: Path) -> None:
    """The user may write it, so fusermount3(1) lets them."""
    imitate(home / "shown", program)
    with own_fuse(blue, home / "shown"):
        done = run(blue / "exec", *WHERE)
        is_refused(done, "not in a netnsfs that root has mounted here")


USERNS = ("unshare", "--user", "--map-root-user")


def test_a_user_namespace_in_the_machines_mount_namespace(blue: Path) -> None:
    done = run(*USERNS, blue / "exec", *WHERE)
    is_refused(done, "owner of the mount namespace: Operation not permitted")


def test_the_mount_namespace_of_a_user_namespace(blue: Path) -> None:
    """Who comes from outside may not trust what is mounted there."""
    command = (*USERNS, "--mount", "cat")
    with subprocess.Popen(command, stdin=-1, stdout=-1, **AS_USER) as apart:
        wait_until_started(apart)
        there = ("nsenter", f"--target={apart.pid}", "--mount")
        done = run(*there, blue / "exec", *WHERE, uid=0)
        is_refused(done, "belongs to another user namespace")
        apart.communicate()


def test_a_user_namespace_with_a_mount_namespace(blue: Path) -> None:
    """The netnsfs is root's. Root of the user namespace has no right to enter: setns(2)."""
    done = run(*USERNS, "--mount", blue / "exec", *WHERE)
    is_refused(done, "Operation not permitted")


def test_a_fuse_in_a_user_namespace(blue: Path, home: Path, program: Path) -> None:
    """There, users are root and the mount is theirs: user_id=0. Only what is theirs opens."""
    (home / "shown").mkdir()
    imitate(home / "shown/red", program)
    (home / "mount").mkdir()
    os.chown(home / "mount", USER, USER)
    with own_fuse(home / "mount", home / "shown", *USERNS, "--mount") as pid:
        inside = ("nsenter", f"--target={pid}", "--user", "--mount", "--preserve-credentials")
        assert ",user_id=0," in Path(f"/proc/{pid}/mountinfo").read_text()
        done = run(*inside, home / "mount/red/exec", *WHERE)
        is_refused(done, "the namespace: Operation not permitted")
        # From outside, through the directory of a process that is inside.
        done = run(f"/proc/{pid}/root{home}/mount/red/exec", *WHERE)
        is_refused(done, "not in a netnsfs that root has mounted here")


def test_a_netnsfs_in_another_mount_namespace(blue: Path, start: Start) -> None:
    """It may be anybody's, or one that was unmounted here on purpose."""
    with subprocess.Popen(["cat"], stdin=-1, **{**AS_USER, "cwd": blue}) as apart:
        there = f"/proc/{apart.pid}/cwd/exec"
        is_inside(run(there, *WHERE), blue)
        subprocess.run(["umount", "--lazy", MNT], check=True)
        is_refused(run(there, *WHERE), "not in a netnsfs that root has mounted here")
        apart.communicate()


def test_a_link_elsewhere(blue: Path, home: Path) -> None:
    (home / "exec").symlink_to(blue / "exec")
    is_refused(run(home / "exec", *WHERE), "not in a netnsfs")


def test_a_hard_link_to_the_program(blue: Path, program: Path) -> None:
    directory = program.parent / "red"
    imitate(directory, program)
    (directory / "exec").unlink()
    os.link(program, directory / "exec")
    is_refused(run(directory / "exec", *WHERE), "not in a netnsfs")


def test_the_program_by_its_own_path(blue: Path, program: Path) -> None:
    is_refused(run(program, *WHERE), "not in a netnsfs")


def test_a_copy_of_the_program(blue: Path, home: Path, program: Path) -> None:
    shutil.copy(program, home / "exec")
    is_refused(run(home / "exec", *WHERE), "not in a netnsfs")


def test_a_way_out_of_the_directory(blue: Path, red: Path) -> None:
    is_refused(run(f"{blue}/../red/exec", *WHERE), "/red: Permission denied")


def test_another_name_for_itself(blue: Path, red: Path) -> None:
    """argv[0] is what the caller likes. It is not asked."""
    is_inside(run(red / "exec", *WHERE, executable=blue / "exec"), blue)
    is_refused(run(blue / "exec", *WHERE, executable=red / "exec"), "Permission denied")


def test_a_script_that_it_is_to_interpret(blue: Path, home: Path) -> None:
    script = home / "exec"
    script.write_text(f"#!{blue}/exec /usr/bin/id\n")
    script.chmod(0o755)
    is_refused(run(script), "not in a netnsfs")


EXECVEAT = """
import ctypes, os, sys
path, name, flags, inherited = sys.argv[1:5]
fd = os.open(path, os.O_PATH)
os.set_inheritable(fd, bool(int(inherited)))
words = [b"exec", *map(os.fsencode, sys.argv[5:])]
arguments = (ctypes.c_char_p * (len(words) + 1))(*words)
ctypes.CDLL(None).execveat(fd, name.encode(), arguments, ctypes.c_void_p(), int(flags))
print("no")
"""
EMPTY_PATH = "4096"


def execveat(path: Path, name: str, flags: str, inherited: bool) -> Done:
    options = (str(path), name, flags, str(int(inherited)))
    return run("/usr/bin/python3", "-c", EXECVEAT, *options, *WHERE)


def test_execveat_of_a_descriptor(blue: Path, program: Path) -> None:
    for path in (program, blue / "exec"):
        is_refused(execveat(path, "", EMPTY_PATH, True), "not in a netnsfs")


def test_execveat_below_a_descriptor(blue: Path, red: Path) -> None:
    is_inside(execveat(blue, "exec", "0", True), blue)
    is_refused(execveat(red, "exec", "0", True), "Permission denied")
    # It is closed by the time that the program would look at it.
    is_refused(execveat(blue, "exec", "0", False), "No such file or directory")


def test_no_arguments(blue: Path) -> None:
    is_refused(run(blue / "exec"), "NAME/exec PROGRAM")
    # The kernel makes one empty argument of none at all since Linux 5.18.
    none = "import ctypes; ctypes.CDLL(None).execve(sys.argv[1].encode(), None, None)"
    is_refused(run(*as_other(f"{none}"), blue / "exec"), "NAME/exec PROGRAM")


# What a process has at hand.


def test_no_new_privileges(blue: Path) -> None:
    is_refused(run("setpriv", "--no-new-privs", blue / "exec", *WHERE), "no_new_privs is set")


def test_a_bounding_set_without_it(blue: Path) -> None:
    user = ("setpriv", f"--reuid={USER}", "--clear-groups", "--bounding-set=-sys_admin")
    is_refused(run(*user, "env", blue / "exec", *WHERE, uid=0), "Operation not permitted")
    root = ("setpriv", "--bounding-set=-sys_admin", "env")
    is_refused(run(*root, blue / "exec", *WHERE, uid=0), "Operation not permitted")


def test_a_mount_without_suid(blue: Path, program: Path) -> None:
    with bound(program.parent, program.parent):
        subprocess.run(["mount", "-o", "remount,bind,nosuid", program.parent], check=True)
        is_refused(run(blue / "exec", *WHERE), "Operation not permitted")


TRACED = """
import ctypes, os, sys
pid = os.fork()
if not pid:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    ctypes.CDLL(None).ptrace(7, pid, 0, 0)
"""


def test_traced(blue: Path) -> None:
    done = run("/usr/bin/python3", "-c", TRACED, blue / "exec", *WHERE)
    is_refused(done, "Operation not permitted")


SHARED = """
import ctypes, os, sys
CLONE_FS, SIGCHLD, SYS_clone = 0x200, 17, {"x86_64": 56, "aarch64": 220}[os.uname().machine]
pid = ctypes.CDLL(None).syscall(SYS_clone, CLONE_FS | SIGCHLD, 0, 0, 0, 0)
if not pid:
    os.execv(sys.argv[1], sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_current_directory_that_is_shared(blue: Path) -> None:
    done = run("/usr/bin/python3", "-c", SHARED, blue / "exec", *WHERE)
    is_refused(done, "Operation not permitted")


LIMITS = ("NOFILE", "STACK", "AS", "DATA", "FSIZE", "CPU", "MEMLOCK", "NPROC")


@pytest.mark.parametrize("limit", LIMITS)
def test_limits(blue: Path, limit: str) -> None:
    """It ends, or does all: nothing runs elsewhere, and no file is left unbound."""
    entered = f"net:[{(blue / 'inode').read_text().strip()}]\n"
    unit = 1 if limit in ("NOFILE", "NPROC", "CPU") else 4096
    for count in (*range(12), 64, 1024):
        statement = f"resource.setrlimit(resource.RLIMIT_{limit}, ({count * unit},) * 2)"
        try:
            done = run(*as_other(statement), blue / "exec", *WHERE)
        except OSError:
            continue
        assert done.stdout in ("", entered)


def test_closed_descriptors(blue: Path, home: Path) -> None:
    """What is opened gets these numbers, and is closed when the program starts."""
    where = "readlink /proc/self/ns/net >f; ls -l /proc/self/fd | wc -l >>f"
    command = (blue / "exec", "sh", "-c", where)
    done = run(*as_other("os.closerange(0, 100)"), *command, cwd=home)
    assert done.returncode == 0
    first, count = (home / "f").read_text().splitlines()
    assert first == f"net:[{(blue / 'inode').read_text().strip()}]"
    # The file, the pipe's end, and what ls(1) has opened.
    assert int(count) <= 5
    is_silent = run(*as_other("os.closerange(0, 100)"), blue.with_name("red") / "exec", "id")
    assert (is_silent.returncode, is_silent.stdout, is_silent.stderr) == (126, "", "")


def test_no_descriptor_is_left_open(blue: Path) -> None:
    listing = ("/usr/bin/python3", "-c", "import os; print(os.listdir('/proc/self/fd'))")
    assert run(blue / "exec", *listing).stdout == run(*listing).stdout


def test_variables(blue: Path, home: Path) -> None:
    """None counts for it, and all are handed on: also those that are taken from setuid ones."""
    names = "LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT LD_DEBUG LOCPATH GCONV_PATH NLSPATH TMPDIR"
    names += " GLIBC_TUNABLES MALLOC_CHECK_ RES_OPTIONS HOSTALIASES PATH IFS ENV BASH_ENV"
    given = dict.fromkeys(names.split(), f"{home}/none") | {"EMPTY": "", "LANG": "xx_XX"}
    done = run(blue / "exec", "/usr/bin/env", "-0", env=given)
    shown = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert shown == given


def test_hundreds_of_arguments_and_variables(blue: Path) -> None:
    given = {f"V{number}": "x" * number for number in range(2000)}
    arguments = [str(number) for number in range(2000)]
    script = "import os, sys; print(len(os.environ), sys.argv[-1])"
    done = run(blue / "exec", "/usr/bin/python3", "-Ic", script, *arguments, env=given)
    assert done.stdout.split()[1] == "1999"
    assert int(done.stdout.split()[0]) >= 2000


@contextmanager
def held_up(program: Path, **options: Any) -> Iterator[int]:
    """The program while it has the capability: it tells something, and nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    process = subprocess.Popen([program, "id"], stderr=writer, **{**AS_USER, **options})
    os.close(writer)
    try:
        status = Path(f"/proc/{process.pid}/status")
        wait_for(lambda: "CapPrm:\t0000000000200000\n" in status.read_text())
        yield process.pid
    finally:
        process.kill()
        process.wait()
        os.close(reader)


LOOK = """
import ctypes, os, sys
pid, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
libc.ptrace(16, pid, 0, 0)
print(ctypes.get_errno())
print(os.access(f"/proc/{pid}/mem", os.R_OK), os.access(f"/proc/{pid}/environ", os.R_OK))
try:
    print(os.listdir(f"/proc/{pid}/fd"))
except PermissionError:
    print("closed")
"""


def test_nobody_looks_into_it(blue: Path, program: Path) -> None:
    with held_up(program) as pid:
        done = run("/usr/bin/python3", "-c", LOOK, str(pid))
        assert done.stdout == "1\nFalse False\nclosed\n"


def test_no_core_is_dumped(blue: Path, program: Path, home: Path) -> None:
    if Path("/proc/sys/fs/suid_dumpable").read_text() == "1\n":
        pytest.skip("this machine wants them, for debugging")
    with held_up(program, cwd=home) as pid:
        run("kill", "-QUIT", str(pid))
        wait_for(lambda: "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
    assert os.listdir(home) == []


def test_a_kill_at_any_moment_leaves_nothing(blue: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    for delay in range(60):
        process = subprocess.Popen([blue / "exec", "true"], **AS_USER)
        time.sleep(delay / 20000)
        process.kill()
        process.wait()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert (blue / "pids").read_text() == ""


# What changes meanwhile.


PTRACE_DETACH, PTRACE_SYSCALL, PTRACE_SETOPTIONS, PTRACE_GET_SYSCALL_INFO = (
    17,
    24,
    0x4200,
    0x420E,
)
PTRACE_O_TRACESYSGOOD = ctypes.c_long(1)
CALLS = {
    "x86_64": {"openat": 257, "readlinkat": 267, "setns": 308},
    "aarch64": {"openat": 56, "readlinkat": 78, "setns": 268},
}
_libc = ctypes.CDLL(None)


@contextmanager
def waiting(blue: Path, call: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """The program, started by root, as it is stopped before its Nth call of a kind."""
    traced = as_other("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)")
    command: list[str | Path] = [*traced, blue / "exec", *WHERE]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    assert os.WIFSTOPPED(os.waitpid(process.pid, 0)[1])
    # Without it, nothing tells a stop before a call from others.
    _ptrace(PTRACE_SETOPTIONS, process.pid, 0, PTRACE_O_TRACESYSGOOD)
    number = CALLS[os.uname().machine][call]
    while count:
        _ptrace(PTRACE_SYSCALL, process.pid)
        assert os.WIFSTOPPED(os.waitpid(process.pid, 0)[1])
        count -= _call_entered(process.pid) == number
    yield process


def _ptrace(request: int, pid: int, size: int = 0, data: object = None) -> None:
    arguments = (ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(size), data)
    assert _libc.ptrace(*arguments) >= 0


def _call_entered(pid: int) -> int:
    """The number of the call that a stopped process is about to make, if it is."""
    found = ctypes.create_string_buffer(88)
    _ptrace(PTRACE_GET_SYSCALL_INFO, pid, 88, found)
    # struct ptrace_syscall_info, linux/ptrace.h: 1 for an entry, and the number.
    return int.from_bytes(found.raw[24:32], sys.byteorder) if found.raw[0] == 1 else -1


def end_of(process: subprocess.Popen[str]) -> Done:
    _ptrace(PTRACE_DETACH, process.pid)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def swap(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


# The path, the mount namespace, mountinfo, and then the namespace's file.
BEFORE_OPEN = ("openat", 4)


def test_a_name_that_was_removed_meanwhile(blue: Path) -> None:
    with waiting(blue, *BEFORE_OPEN) as process:
        ip("netns", "del", "blue")
        is_refused(end_of(process), "No such file or directory")


def test_a_name_that_was_made_again_meanwhile(blue: Path) -> None:
    with waiting(blue, *BEFORE_OPEN) as process:
        ip("netns", "del", "blue")
        ip("netns", "add", "blue")
        is_refused(end_of(process), "id: No such file or directory")


def test_a_name_that_another_has_taken_meanwhile(blue: Path, red: Path) -> None:
    with waiting(blue, *BEFORE_OPEN) as process:
        swap(blue, red)
        is_refused(end_of(process), "another has taken its place")


def test_a_directory_that_was_renamed_meanwhile(blue: Path) -> None:
    # The first link is that of its own descriptor.
    with waiting(blue, "readlinkat", 2) as process:
        blue.rename(blue.with_name("green"))
        is_refused(end_of(process), "renamed: try again")


def test_what_was_opened_is_entered(blue: Path, red: Path) -> None:
    inode = (blue / "inode").read_text().strip()
    with waiting(blue, "setns", 1) as process:
        swap(blue, red)
        assert end_of(process).stdout == f"net:[{inode}]\n"


def test_a_removed_directory_that_was_kept_open(blue: Path) -> None:
    fd = os.open(blue, os.O_PATH)
    ip("netns", "del", "blue")
    ip("netns", "add", "blue")
    with pytest.raises(OSError, match=r"No such|Stale"):
        run(f"/proc/self/fd/{fd}/exec", *WHERE, uid=0, pass_fds=[fd])
    os.close(fd)


SWAPS = """
import os, sys
blue, red, between = (os.path.join(sys.argv[1], name) for name in ("blue", "red", "between"))
print(flush=True)
while True:
    os.rename(blue, between); os.rename(red, blue); os.rename(between, red)
"""


def test_names_that_change_all_the_time(blue: Path, red: Path) -> None:
    """Whatever is under the name, the user enters what is theirs."""
    mine = f"net:[{(blue / 'inode').read_text().strip()}]\n"
    swapper = subprocess.Popen(["/usr/bin/python3", "-c", SWAPS, MNT], stdout=-1)
    assert swapper.stdout
    swapper.stdout.readline()
    seen = set()
    for _ in range(300):
        for name in ("blue", "red"):
            try:
                seen.add(run(MNT / name / "exec", *WHERE).stdout)
            except OSError:
                continue
    swapper.kill()
    swapper.communicate()
    assert seen == {"", mine}


# What is left when the program starts.


def test_nothing_of_the_capability_is_left(blue: Path) -> None:
    status = "^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Uid|Gid|Groups)"
    shown = run(blue / "exec", "grep", "-E", status, "/proc/self/status").stdout
    ids, none = "\t".join([str(USER)] * 4), "0" * 16
    assert shown == (
        f"Uid:\t{ids}\nGid:\t{ids}\nGroups:\t \n"
        f"CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapAmb:\t{none}\nNoNewPrivs:\t1\n"
    )
    done = run(blue / "exec", "ip", "link", "add", "name", "d0", "type", "dummy")
    assert "Operation not permitted" in done.stderr


def test_what_was_inheritable_is_not(blue: Path) -> None:
    user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    caps = ("--inh-caps=+sys_admin,+net_raw", "--ambient-caps=+sys_admin,+net_raw", "env")
    shown = run(
        *user, *caps, blue / "exec", "grep", "^Cap[IPEA]", "/proc/self/status", uid=0
    ).stdout
    assert [line.split()[1] for line in shown.splitlines()] == [
        f"{1 << 13:016x}",
        *["0" * 16] * 3,
    ]


def test_a_setuid_program_gains_nothing(blue: Path, program: Path) -> None:
    """It would ask a network that the user rules."""
    setuid = program.parent / "id"
    shutil.copy("/usr/bin/id", setuid)
    setuid.chmod(0o4755)
    assert run(setuid, "-u").stdout == "0\n"
    assert run(blue / "exec", setuid, "-u").stdout == f"{USER}\n"


def test_root_keeps_what_it_has(blue: Path) -> None:
    status = ("grep", "-E", "Cap|NoNew|Seccomp:|^Sig", "/proc/self/status")
    assert run(blue / "exec", *status, uid=0).stdout == run(*status, uid=0).stdout


# The files of /etc/netns.


@pytest.fixture
def files(blue: Path) -> Iterator[Path]:
    """/etc/netns/blue, in an /etc of the test's own."""
    above = Path("/mnt/above")
    for name in ("upper", "work"):
        (above / name).mkdir(parents=True)
    options = f"lowerdir=/etc,upperdir={above}/upper,workdir={above}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", "/etc"], check=True)
    path = Path("/etc/netns/blue")
    path.mkdir(parents=True, exist_ok=True)
    (path / "hosts").write_text("10.0.0.1 blue\n")
    yield path
    subprocess.run(["umount", "--lazy", "/etc"], check=True)
    shutil.rmtree(above)


HOSTS = ("cat", "/etc/hosts")


def test_files_are_bound(blue: Path, red: Path, files: Path) -> None:
    (files / "nowhere").touch()
    done = run(blue / "exec", *HOSTS)
    assert done.stdout == "10.0.0.1 blue\n"
    assert done.stderr == "exec: /etc/nowhere: cannot be bound: No such file or directory\n"
    assert run(red / "exec", *HOSTS, uid=0).stdout == Path("/etc/hosts").read_text()


def test_a_link_that_root_has_made_is_followed(blue: Path, files: Path) -> None:
    (files.parent / "common").write_text("10.0.0.2 common\n")
    (files / "hosts").unlink()
    (files / "hosts").symlink_to("../common")
    assert run(blue / "exec", *HOSTS).stdout == "10.0.0.2 common\n"
    files.rename(files.with_name("red"))
    files.symlink_to("red")
    assert run(blue / "exec", *HOSTS).stdout == "10.0.0.2 common\n"


@pytest.mark.parametrize("at", ["/etc/netns/blue", "/etc/netns", "/etc"])
def test_files_that_others_can_change(blue: Path, files: Path, at: str) -> None:
    """A passwd(5) or a sudoers(5) of the user's own would be theirs to write."""
    mode = os.stat(at).st_mode & 0o7777
    os.chmod(at, mode | 0o020)
    is_refused(run(blue / "exec", *HOSTS), "/etc/netns/blue: others than root can write it")
    assert run(blue / "exec", *HOSTS, uid=0).stdout == "10.0.0.1 blue\n"
    os.chmod(at, mode)
    os.chown(at, USER, USER)
    is_refused(run(blue / "exec", *HOSTS), "/etc/netns/blue: others than root can write it")
    os.chown(at, 0, 0)
    assert run(blue / "exec", *HOSTS).stdout == "10.0.0.1 blue\n"


def test_a_link_to_a_directory_of_the_users(blue: Path, files: Path, home: Path) -> None:
    files.rename(files.with_name("other"))
    files.symlink_to(home)
    is_refused(run(blue / "exec", *HOSTS), "others than root can write it")


def test_files_that_cannot_be_read(blue: Path, files: Path) -> None:
    """Without them, a program would ask another name server than root wants it to."""
    files.chmod(0o700)
    is_refused(run(blue / "exec", *HOSTS), "/etc/netns/blue: Permission denied")


def test_a_namespace_without_a_name_has_no_files(blue: Path, files: Path) -> None:
    inode = (blue / "inode").read_text().strip()
    (files.parent / inode).mkdir()
    (files.parent / inode / "hosts").write_text("10.0.0.3 other\n")
    with subprocess.Popen([blue / "exec", "cat"], stdin=-1, stdout=-1) as inside:
        wait_until_started(inside)
        ip("netns", "del", "blue")
        done = run(MNT / f".netnsfs/unnamed/{inode}/exec", *HOSTS, uid=0)
        inside.communicate()
    assert done.stdout == Path("/etc/hosts").read_text()


def test_a_root_directory_of_the_users(blue: Path, home: Path) -> None:
    """There, a link called /sys would lead where they like."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"uid={USER}", "tmpfs", home], check=True)
    for path in (MNT, RUN, Path("/proc")):
        place = home / path.relative_to("/")
        place.mkdir(parents=True)
        subprocess.run(["mount", "--rbind", path, place], check=True)
    (home / "mnt/bin").mkdir()
    shutil.copy(blue / "exec", home / "mnt/bin/netns-exec")
    subprocess.run(["setcap", "cap_sys_admin=p", home / "mnt/bin/netns-exec"], check=True)
    (home / "sys").symlink_to("mnt")
    user = ("chroot", f"--userspec={USER}:{USER}", "--groups=", home)
    is_refused(run(*user, blue / "exec", *WHERE, uid=0), ": /: others than root can write it")
    subprocess.run(["umount", "--recursive", "--lazy", home], check=True)


# Ways to a directory.


@pytest.mark.parametrize("path", ["./exec", "exec", "../blue/exec", "net/../exec", ".//exec"])
def test_relative_paths(blue: Path, path: str) -> None:
    is_inside(run(*as_other(""), path, *WHERE, cwd=blue), blue)


def test_links_that_lead_to_the_directory(blue: Path, home: Path) -> None:
    (home / "link").symlink_to(blue)
    is_inside(run(home / "link/exec", *WHERE), blue)
    number = (blue / "id").read_text().strip()
    is_inside(run(MNT / ".netnsfs/id" / number / "exec", *WHERE), blue)


def test_a_bind_mount_of_the_directory(blue: Path, red: Path, home: Path) -> None:
    with bound(blue, home):
        is_inside(run(home / "exec", *WHERE), blue)
        subprocess.run(["mount", "-o", "remount,bind,ro", home], check=True)
        is_refused(run(home / "exec", *WHERE), "Read-only file system")
    with bound(red, home):
        is_refused(run(home / "exec", *WHERE), "/red: Permission denied")


@pytest.mark.parametrize("name", ["a b", "back\\slash", "tab\tand\nline", "#", "-", "n" * 255])
def test_odd_names(blue: Path, home: Path, name: str) -> None:
    odd = blue.rename(blue.with_name(name))
    is_inside(run(odd / "exec", *WHERE), odd)
    mount = home / name
    mount.mkdir()
    with bound(MNT, mount):
        is_inside(run(mount / name / "exec", *WHERE), odd)
    with bound(odd, mount):
        is_inside(run(mount / "exec", *WHERE), odd)


def test_a_read_only_mount(start: Start, program: Path) -> None:
    ip("netns", "add", "blue")
    mounted = start("-o", f"ro,execpath={program}")
    is_refused(run(mounted / "blue/exec", *WHERE, uid=0), "/blue: Read-only file system")
    ip("netns", "del", "blue")


def test_many_mounts(blue: Path) -> None:
    """The list of mounts is longer than what is read of it at once."""
    with no_more_mounts():
        is_inside(run(blue / "exec", *WHERE), blue)


def test_without_the_program_there_is_no_link(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = Path("/mnt/none")
    path.touch()
    with bound(path, Path(os.fsdecode(programs.installed()))):
        mounted = start()
    with namespaces(mounted):
        assert "exec" not in os.listdir(mounted / "blue")
        assert not os.path.lexists(mounted / "blue/exec")
    path.unlink()


# Beside `ip netns exec`.

SCRIPT = "import os, socket, sys; print(socket.if_nameindex(), os.getcwd(), sys.argv)"
PROGRAMS = (
    ("ip", "addr"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule"),
    ("ip", "-s", "-d", "link"),
    ("ip", "netns", "identify"),
    ("ss", "-tulpn"),
    ("ping", "-c1", "-W1", "10.0.0.9"),
    ("curl", "-sS", "http://127.0.0.1:1/"),
    ("nstat", "-az"),
    ("tc", "qdisc"),
    ("ls", "-l", "/sys/class/net"),
    ("sh", "-c", "cat /sys/class/net/*/mtu; ls /sys"),
    ("grep", " /sys ", "/proc/self/mounts"),
    ("cat", "/etc/hosts"),
    ("cat", "/proc/net/dev", "/proc/net/snmp"),
    ("sysctl", "net.ipv4"),
    ("env",),
    ("id",),
    ("pwd",),
    ("ls", "-l", "/proc/self/fd"),
    ("grep", "-E", "^(Uid|Gid|Groups|Sig|Cap|NoNewPrivs|Seccomp|Umask)", "/proc/self/status"),
    ("/usr/bin/python3", "-Ic", SCRIPT, "", "a b"),
    ("bash", "-c", "ulimit -a; trap; tty; exit 9"),
    ("sh", "-c", "kill -TERM $$"),
)
PID = re.compile(r"\d\d:\d\d|pipe:\[\d+\]|/proc/\d+|pts/\d+")


@pytest.mark.parametrize("command", PROGRAMS, ids=lambda command: " ".join(command)[:20])
def test_the_same_as_ip_netns_exec(blue: Path, files: Path, command: tuple[str, ...]) -> None:
    (blue / "links/v0").symlink_to("red/links/v1")
    (blue / "links/lo/up").write_text("1")
    (blue / "links/v0/addresses").write_text("+10.0.0.1/24")
    ours = run(blue / "exec", *command, uid=0)
    theirs = run("ip", "netns", "exec", "blue", *command, uid=0)
    assert "failed: No such file" not in ours.stderr
    assert PID.sub("", ours.stdout) == PID.sub("", theirs.stdout)
    assert ours.stderr == theirs.stderr
    assert ours.returncode == theirs.returncode


def _has_members(directory: Path, count: int) -> bool:
    return len((directory / "pids").read_text().split()) == count


def test_an_interactive_shell(blue: Path) -> None:
    """Job control, and the terminal's signals, as in any shell."""
    pid, terminal = os.forkpty()
    if not pid:
        os.execv(blue / "exec", ["exec", "bash", "--norc", "-i"])
    for line, inside in ((b"sleep 100\n", 2), (b"\x03", 1), (b"echo st=$?; sleep 99 &\n", 2)):
        os.write(terminal, line)
        wait_for(partial(_has_members, blue, inside))
    os.write(terminal, b"kill %1; wait; readlink /proc/self/ns/net; exit 5\n")
    shown = b""
    with suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert b"no job control" not in shown
    assert b"st=130" in shown
    assert f"net:[{(blue / 'inode').read_text().strip()}]".encode() in shown


def test_what_cannot_be_run(blue: Path, home: Path) -> None:
    done = run(blue / "exec", "no-such-program")
    assert done.returncode == 127
    assert done.stderr == "exec: no-such-program: No such file or directory\n"
    assert run(blue / "exec", "").returncode == 127
    # A directory that is closed to the user is no program that is closed to them.
    (home / "closed").mkdir(mode=0)
    assert run(blue / "exec", "id", env={"PATH": f"{home}/closed"}).returncode == 127
    is_refused(run(blue / "exec", "/etc/passwd"), "/etc/passwd: Permission denied")
    is_refused(run(blue / "exec", home), "Permission denied")


def test_how_a_program_is_searched_for(blue: Path, home: Path) -> None:
    """As execvp(3) does it, whose text begins with this."""
    for name in ("closed", "open"):
        (home / name).mkdir()
        (home / name / "tool").write_text("echo $0 $1 $#\n")
    (home / "open/tool").chmod(0o755)
    path = {"PATH": f"/none:{home}/closed:{home}/open"}
    done = run(blue / "exec", "tool", "x", env=path)
    assert done.stdout == f"{home}/open/tool x 1\n"
    here = run(blue / "exec", "tool", "y", env={"PATH": "/none:"}, cwd=home / "open")
    assert here.stdout == "tool y 1\n"
    is_refused(run(blue / "exec", "tool", env={"PATH": f"{home}/closed:/none"}), "denied")
    assert run(blue / "exec", "id", "-u", env={}).stdout == f"{USER}\n"


# As a user works to whom root has given two namespaces.

LAB = """
set -e
cd "$1"
ln -s green/links/eth0 blue/links/eth0
echo +10.0.0.1/24 > blue/links/eth0/addresses
echo +10.0.0.2/24 > green/links/eth0/addresses
for up in blue/links/*/up green/links/*/up; do echo 1 > $up; done
echo +default via 10.0.0.1 > green/routes
cat green/routes
echo 0 2147483647 > blue/sysctl/ipv4/ping_group_range
blue/exec ping -q -c1 10.0.0.2 | grep received
green/exec /usr/bin/python3 -Im http.server --directory /proc/self/ns 8000 2>/dev/null &
until blue/exec curl -sSf -o /dev/null http://10.0.0.2:8000/ 2>/dev/null; do sleep 0.1; done
blue/exec curl -sS http://10.0.0.2:8000/ | grep -c net
green/exec ss -tln | grep -c :8000
[ "$(cat green/pids)" = $! ]
echo TERM > green/kill
wait $! || echo killed $?
! red/exec id
! echo +10.0.0.3/24 > red/links/lo/addresses
! echo TERM > red/kill
! ln -s red/links/eth1 blue/links/eth1
"""


def test_a_lab_without_sudo(blue: Path, tmp_path: Path) -> None:
    green = blue.with_name("green")
    green.mkdir()
    os.chown(green, USER, USER)
    done = run("sh", "-c", LAB, "sh", MNT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "default via 10.0.0.1 dev eth0",
        "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2",
        "1 packets transmitted, 1 received, 0% packet loss, time 0ms",
        "1",
        "1",
        "killed 143",
    ]
