"""Links from sockets to namespaces: with a name, without one, closed, absent."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Mounted, error_of, wait_for
from users import DROP, as_user

Spawn = Callable[..., subprocess.Popen[bytes]]

pytestmark = pytest.mark.usefixtures("both_ways")

NOBODY = 65534
HOLD = (
    "import os, socket, sys, time\n"
    "families = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX\n"
    "kept = [socket.socket(family) for family in families]\n"
    "copy = os.dup(kept[0].fileno())\n"
    "print(*(os.fstat(each.fileno()).st_ino for each in kept), flush=True)\n"
    "time.sleep(60)"
)


def sockets_of(spawn: Spawn, *prefix: str) -> list[str]:
    """The numbers of the sockets of a new process."""
    process = spawn(*prefix, "/usr/bin/python3", "-c", HOLD, stdout=subprocess.PIPE)
    assert process.stdout
    return process.stdout.readline().decode().split()


@pytest.fixture
def directory(mnt: Mounted) -> Path:
    return mnt / ".netnsfs/socket"


def test_a_socket_leads_to_its_namespace(
    foo: Path, mnt: Mounted, directory: Path, spawn: Spawn
) -> None:
    inside = sockets_of(spawn, "ip", "netns", "exec", "foo")
    here = sockets_of(spawn)
    own = os.stat("/proc/self/ns/net").st_ino
    assert len({*inside, *here}) == 6
    assert {os.readlink(directory / number) for number in inside} == {"../../foo"}
    assert {os.readlink(directory / number) for number in here} == {f"../unnamed/{own}"}
    assert (directory / inside[0] / "inode").read_text() == (foo / "inode").read_text()
    assert os.listdir(directory) == []
    # As `nsenter` and /proc tell it.
    tables = subprocess.check_output(["nsenter", f"--net={foo}/ns", "cat", "/proc/net/unix"])
    assert inside[2].encode() in tables.split()
    foo.rename(mnt / "bar")
    assert os.readlink(directory / inside[1]) == "../../bar"
    (mnt / "bar").rmdir()


def test_one_whose_process_has_left(foo: Path, directory: Path, spawn: Spawn) -> None:
    script = (
        "import ctypes, os, socket, sys, time; home = os.open('/proc/self/ns/net', 0);"
        "libc = ctypes.CDLL(None); libc.setns(os.open(sys.argv[1], 0), 0);"
        "kept = socket.socket(); libc.setns(home, 0);"
        "print(os.fstat(kept.fileno()).st_ino, flush=True); time.sleep(60)"
    )
    command = ("/usr/bin/python3", "-c", script, f"{foo}/ns")
    process = spawn(*command, stdout=subprocess.PIPE)
    assert process.stdout
    number = process.stdout.readline().decode().strip()
    assert os.readlink(directory / number) == "../../foo"
    process.kill()
    process.wait()
    wait_for(lambda: error_of(os.readlink, directory / number) == "ENOENT")


def test_who_finds_it(foo: Path, mnt: Mounted, directory: Path, spawn: Spawn) -> None:
    (mnt / "closed").mkdir(mode=0o700)
    numbers = [
        sockets_of(spawn, *prefix)[0]
        for prefix in (
            ("ip", "netns", "exec", "foo"),
            ("ip", "netns", "exec", "closed"),
            ("unshare", "--net"),
        )
    ]
    lines = [f"os.path.basename(os.readlink('{directory}/{number}'))" for number in numbers]
    assert as_user(NOBODY, NOBODY, *lines) == ["foo", "ENOENT", "ENOENT"]
    # User ID 0 without capabilities owns it.
    assert as_user(0, 0, *lines, prefix=DROP) == ["foo", "closed", "ENOENT"]
    all_of_them = as_user(0, 0, *lines)
    assert all_of_them[:2] == ["foo", "closed"]
    assert str(all_of_them[2]).isdigit()
    (mnt / "closed").rmdir()


def test_odd_numbers(directory: Path, spawn: Spawn) -> None:
    [number, *_] = sockets_of(spawn)
    for name in ("0", f"0{number}", f"{number} ", "-1", "x", "4294967296", "9" * 255):
        assert error_of(os.lstat, directory / name) == "ENOENT", name
    pipe, other = os.pipe()
    for fd in (pipe, other):
        assert error_of(os.lstat, directory / str(os.fstat(fd).st_ino)) == "ENOENT"
        os.close(fd)
    for call in (os.mkdir, os.rmdir, os.unlink):
        assert error_of(call, directory / number) in ("EPERM", "EEXIST", "ENOTDIR")


def test_a_user_who_searches_too_much_is_refused(mnt: Mounted, directory: Path) -> None:
    # With the burst, some 100 milliseconds of each second are left.
    script = (
        "import errno, os, sys\nos.setuid(65534)\nfound = ''\n"
        "while found != 'EAGAIN':\n"
        "    try: os.stat(sys.argv[1])\n"
        "    except OSError as error: found = errno.errorcode[error.errno]"
    )
    command = ["/usr/bin/python3", "-c", script, str(directory / "1")]
    subprocess.run(command, check=True, timeout=120)
    assert error_of(os.stat, directory / "1") == "ENOENT"


def test_it_is_a_target(foo: Path, mnt: Mounted, directory: Path, spawn: Spawn) -> None:
    [number, *_] = sockets_of(spawn, "unshare", "--net")
    (mnt / "web").symlink_to(f".netnsfs/socket/{number}")
    assert os.readlink(directory / number) == "../../web"
    (mnt / "web").rmdir()
