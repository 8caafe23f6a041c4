"""Other tests again, run by an ordinary user in namespaces of its own: `unshare -Urnm`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MODULES = (
    *(
        "tests/netns/test_members.py",
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


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """/dev/fuse as udev makes it, which not every container has."""
    node = Path("/run/fuse")
    os.mknod(node, 0o020666, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    with mounted(node, Path("/dev/fuse")):
        yield
    node.unlink()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user's, with the checkout in it: where that is, it may not look."""
    with tempfile.TemporaryDirectory(prefix="netnsfs-") as name:
        path = Path(name)
        (path / "checkout").mkdir()
        os.chown(path, USER, USER)
        with mounted(CHECKOUT, path / "checkout"):
            yield path


def python(home: Path) -> str:
    """The Python that runs this, by a path that the user can walk."""
    path = Path(sys.executable)
    inside = path.is_relative_to(CHECKOUT)
    return str(home / "checkout" / path.relative_to(CHECKOUT) if inside else path)


def rootless(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout as the user."""
    checkout = home / "checkout"
    return subprocess.run(
        [*ROOTLESS, *command],
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
    done = rootless(home, "sh", "-c", WITHOUT_RUNDIR, python(home))
    assert done.stdout == "1\n"
    assert (
        "netnsfs: WARNING: no name can be made in /run/netns: give another directory with "
        "-o rundir=\n"
    ) in done.stderr


@pytest.mark.timeout(400)
def test_other_tests_without_root(home: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", f"{home}/tmp"]
    chosen = ["-m", "not machine", "-k", f"not ({LONG})", *MODULES]
    done = rootless(home, python(home), "-m", "pytest", *options, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
