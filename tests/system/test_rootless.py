"""Other tests again, run by an ordinary user in namespaces of its own: `unshare -Urnm`."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT, bound, command_of, python_in, wait_for

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
ROOTLESS = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("unshare", "-Urnm"),
]


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
    checkout = home / "checkout"
    before = ["sh", "-c", shell] if shell else []
    return subprocess.run(
        [*ROOTLESS, *before, python_in(checkout), *arguments],
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

    def daemons() -> list[str]:
        commands = {
            pid: command_of(int(pid)) for pid in filter(str.isdigit, os.listdir("/proc"))
        }
        return [
            pid for pid, command in commands.items() if f"rundir={home}".encode() in command
        ]

    done = rootless(home, shell=RECIPE)
    assert (done.stdout, done.returncode) == ("foo\nfoo\n", 0), done.stderr
    wait_for(lambda: not daemons())


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


@pytest.mark.timeout(400)
def test_other_tests_without_root(home: Path) -> None:
    options = ["-p", "no:cacheprovider", "--basetemp", f"{home}/tmp"]
    chosen = ["-m", "not machine", "-k", f"not ({LONG})", *MODULES]
    done = rootless(home, "-m", "pytest", *options, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
