"""Other tests again, run by an ordinary user in namespaces of its own: `unshare -Urnm`."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import (
    CHECKOUT,
    bound,
    command_of,
    complaints,
    no_run_directory,
    python_in,
    wait_for,
)

MODULES = (
    *(
        "tests/netns/test_tasks.py",
        "tests/netns/test_names.py",
        "tests/mount/test_session.py",
    ),
    *("tests/mount/test_names.py", "tests/system/test_by_files.py"),
)
# What takes long and does not depend on who asks.
LONG = "every_way_of_reading or del_is_seen_by_the_next_lookup"
USER = 12345
SETPRIV = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
UNSHARE = ["unshare", "-Urnm"]


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """/dev/fuse as udev makes it, which not every container has."""
    node = Path("/run/fuse")
    os.mknod(node, 0o020666, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    with bound(node, Path("/dev/fuse")):
        yield
    node.unlink()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user's, with the checkout in it: where that is, it may not look."""
    with tempfile.TemporaryDirectory(prefix="netnsfs-") as name:
        path = Path(name)
        (path / "checkout").mkdir()
        os.chown(path, USER, USER)
        with bound(CHECKOUT, path / "checkout"):
            yield path


def rootless(home: Path, *arguments: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout as the user, or a shell with Python as its $0."""
    before = ["sh", "-c", shell] if shell else []
    return as_user(home, [*UNSHARE, *before], *arguments)


def as_user(home: Path, before: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout as the user, with some words before it."""
    checkout = home / "checkout"
    return subprocess.run(
        [*SETPRIV, *before, python_in(checkout), *arguments],
        cwd=checkout,
        check=False,
        capture_output=True,
        text=True,
        env={
            **{"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
            **{"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
        },
    )


WITHOUT_RUNDIR = """
cd
mkdir mnt
"$0" -m netnsfs mnt
mkdir mnt/foo
echo $?
umount mnt
"""


def test_without_rundir_it_says_what_is_missing(home: Path) -> None:
    done = rootless(home, shell=WITHOUT_RUNDIR)
    assert done.stdout == "1\n"
    assert (
        "netnsfs: WARNING: no name can be made in /run/netns: give another directory with "
        "-o rundir=\n"
    ) in done.stderr


RECIPE = """
mkdir "$HOME/home" && cd "$HOME/home" || exit
"$0" -m netnsfs -o "rundir=$HOME/run" mnt && mkdir mnt/foo
"$0" -m netnsfs -o "rundir=$HOME/run" other && ls other
cp "$(command -v sleep)" "$(printf 'caf\\351')"
"./$(printf 'caf\\351')" 2 &
sleep 1 && ls mnt
"""


def test_a_daemon_ends_when_it_is_alone(home: Path) -> None:
    """Also beside a process whose name is no UTF-8."""
    done = rootless(home, shell=RECIPE)
    assert (done.stdout, done.returncode) == ("foo\nfoo\n", 0), done.stderr
    wait_for(lambda: not daemons(f"rundir={home}"))


def daemons(word: str) -> list[str]:
    """The user's processes with a word on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == USER and word.encode() in command_of(int(pid)):
                found.append(pid)
    return found


def test_a_daemon_in_front_stays(home: Path) -> None:
    """It may be the first process of a container."""
    done = rootless(home, shell=IN_FRONT)
    assert done.returncode == 0, done.stderr
    assert "nobody else" not in done.stderr


IN_FRONT = """
cd
unshare -m "$0" -m netnsfs -f -o "rundir=$HOME/run" mnt &
until grep -q fuse.netnsfs /proc/$!/mountinfo; do sleep 0.1; done
sleep 2
kill $! && wait $!
"""


# netnsfs --rootless

WITH_IP = """
ip netns add red
mkdir /mnt/netnsfs/blue
ip netns list | sort
ls /mnt/netnsfs
chmod 700 /mnt/netnsfs/blue
stat -c %A /mnt/netnsfs/blue
ln -s red/links/eth0 /mnt/netnsfs/blue/links/eth0
ip -n red -br link show eth0 | cut -d" " -f1
ip netns exec blue readlink /sys/class/net/eth0
readlink /mnt/netnsfs/blue/links/eth0/peer
readlink /run/link
cat /run/secret
exit 7
"""


def test_one_command_gives_a_mount_and_ip_netns(home: Path) -> None:
    """No directory of the machine's is there, and none is made."""
    no_run_directory()
    Path("/run/link").symlink_to("nowhere")
    Path("/run/secret").write_text("told\n")
    before = sorted(os.listdir("/run")), sorted(os.listdir("/mnt"))
    done = as_user(home, [], "-m", "netnsfs", "--rootless", "sh", "-c", WITH_IP)
    assert done.returncode == 7, done.stderr
    eth0 = "../../devices/virtual/net/eth0"
    assert done.stdout.splitlines() == [
        *("blue", "red", "blue", "red", "drwx------", "eth0@if2", eth0),
        *("../../../red/links/eth0", "nowhere", "told"),
    ]
    assert complaints(done.stderr) == []
    assert (sorted(os.listdir("/run")), sorted(os.listdir("/mnt"))) == before
    wait_for(lambda: not daemons("--rootless"))
    Path("/run/link").unlink()
    Path("/run/secret").unlink()


def test_what_the_machine_has_is_covered(home: Path, foo: Path) -> None:
    """The machine's names and its mount are neither seen nor touched."""
    shell = "ls /mnt/netnsfs; mkdir /mnt/netnsfs/foo /mnt/netnsfs/bar; ip netns list | sort"
    done = as_user(home, [], "-m", "netnsfs", "--rootless", "--", "sh", "-c", shell)
    assert (done.stdout, done.returncode) == ("bar\nfoo\n", 0), done.stderr
    assert os.listdir(foo.parent) == ["foo"]
    wait_for(lambda: not daemons("--rootless"))


def test_directories_that_are_given_are_taken(home: Path) -> None:
    shell = "mkdir ../mnt/foo; ls ../mnt ../run /mnt/netnsfs; id -u"
    options = ["-o", f"rundir={home}/run,spare=0", f"{home}/mnt"]
    done = as_user(home, [], "-m", "netnsfs", *options, "--rootless", "sh", "-c", shell)
    assert done.stdout == "../mnt:\nfoo\n\n../run:\nfoo\n\n/mnt/netnsfs:\n0\n", done.stderr
    wait_for(lambda: not daemons("--rootless"))


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        (["/nowhere/x"], 127, "cannot run /nowhere/x: No such file or directory"),
        (["/etc/passwd"], 126, "cannot run /etc/passwd: Permission denied"),
        (["sh", "-c", "kill -9 $$"], -9, ""),
        ([], 0, "netnsfs is mounted at /mnt/netnsfs, until this shell ends"),
    ],
)
def test_how_the_command_ends(home: Path, command: list[str], status: int, told: str) -> None:
    done = as_user(home, ["env", "SHELL=/bin/true"], "-m", "netnsfs", "--rootless", *command)
    assert done.returncode == status
    assert [line.removeprefix("netnsfs: ") for line in complaints(done.stderr)] == [
        *filter(None, [told])
    ]
    wait_for(lambda: not daemons("--rootless"))


def test_a_start_that_fails_runs_no_command(home: Path) -> None:
    words = ["-o", "rundir=/proc/names", f"{home}/checkout/README.md"]
    done = as_user(home, [], "-m", "netnsfs", *words, "--rootless", "echo", "run")
    assert (done.stdout, done.returncode) == ("", 32)
    assert "README.md is not a directory" in done.stderr


def test_without_user_namespaces_it_says_so(home: Path) -> None:
    without = str(home / "checkout/tests/without_call.py")
    python = python_in(home / "checkout")
    before = ["setpriv", "--no-new-privs", python, without, "unshare:EPERM", "--"]
    done = as_user(home, before, "-m", "netnsfs", "--rootless", "echo", "run")
    assert (done.stdout, done.returncode) == ("", 2)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("netnsfs: no user namespace can be made here: Operation not")
    assert "user.max_user_namespaces" in done.stderr


@pytest.mark.timeout(400)
def test_other_tests_without_root(home: Path) -> None:
    options = ["-p", "no:cacheprovider", "--basetemp", f"{home}/tmp"]
    chosen = ["-m", "not machine", "-k", f"not ({LONG})", *MODULES]
    done = rootless(home, "-m", "pytest", *options, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
