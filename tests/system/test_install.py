"""The wheel and the source distribution, and what they install."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import CHECKOUT, MNT, RUN, command_of, ip, mount_namespace, unmount, wait_for

from netnsfs import cli

DATA = Path(cli.__file__).parent / "data"
PLACES = (Path("/opt"), Path("/usr/local"), Path("/var/cache/man"))

MOUNT_COMMAND = ("mount", "-t", "fuse.netnsfs", "netnsfs", MNT)

# Below /opt/netnsfs, and nowhere else: a capability is given to one file.
PROGRAM = "lib/netnsfs/netns-exec"

SHARED = {
    "lib/systemd/system/netns@.service",
    "lib/systemd/system/netnsfs.service",
    "share/bash-completion/completions/netnsfs",
    "share/doc/netnsfs/examples/mnt-netnsfs.mount",
    "share/fish/vendor_completions.d/netnsfs.fish",
    "share/man/man8/netnsfs.8",
    "share/zsh/site-functions/_netnsfs",
}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution, and the wheel that was built from it."""
    path = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", path, CHECKOUT)
    return path


@pytest.fixture(scope="module")
def shared(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel brings for other programs, as a tree."""
    path = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel(dist)) as archive:
        archive.extractall(path)
    return next(path.glob("*.data/data"))


@pytest.fixture
def places() -> Iterator[None]:
    """Let what is written to /opt and /usr/local go elsewhere, and end there."""
    base = Path("/mnt/places")
    for number, place in enumerate(PLACES):
        upper, work = base / f"{number}/upper", base / f"{number}/work"
        upper.mkdir(parents=True)
        work.mkdir()
        options = f"lowerdir={place},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, place)
    # What is installed already is gone here, and only here.
    run(CHECKOUT / "scripts/uninstall")
    yield
    for place in PLACES:
        run("umount", "-l", place)
    shutil.rmtree(base)


def held() -> set[Path]:
    return {*Path("/opt").iterdir(), *Path("/usr/local").rglob("*")}


def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def files_below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}


def test_the_wheel_is_complete(dist: Path, shared: Path) -> None:
    assert files_below(shared) == {*SHARED, PROGRAM}
    package = DATA.parent
    modules = {str(module.relative_to(package.parent)) for module in package.rglob("*.py")}
    with zipfile.ZipFile(wheel(dist)) as archive:
        packed = {name for name in archive.namelist() if name.startswith("netnsfs/")}
    programs = {f"netnsfs/netns/{source.stem}.o" for source in DATA.glob("*.bpf.c")}
    assert packed == {*modules, *programs, "netnsfs/py.typed"}


def test_the_wheel_is_for_this_architecture(dist: Path) -> None:
    assert wheel(dist).name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")


@pytest.mark.parametrize("built", [True, False])
def test_the_version_tells_what_it_was_built_with(built: bool, tmp_path: Path) -> None:
    """And the start, if something is missing."""
    ignored = shutil.ignore_patterns(*[] if built else ["*.bpf.o"])
    shutil.copytree(DATA.parent, tmp_path / "netnsfs", ignore=ignored)
    command = [sys.executable, "-m", "netnsfs"]
    shown = subprocess.check_output([*command, "--version"], cwd=tmp_path, text=True)
    word = "with" if built else "without"
    assert shown == f"netnsfs {version('netnsfs')}, built {word} BPF programs\n"
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert ("built without BPF programs" in done.stderr) == (not built)
    (MNT / "foo").mkdir()
    assert (MNT / "foo/pids").read_text() == ""
    (MNT / "foo").rmdir()
    unmount()


def test_the_source_distribution_is_what_the_repository_holds(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tops = ("LICENSE", "README.md", "netnsfs", "pyproject.toml", "scripts", "tests")
    paths = [path for top in tops for path in [CHECKOUT / top, *(CHECKOUT / top).rglob("*")]]
    files = {str(path.relative_to(CHECKOUT)) for path in paths if path.is_file()}
    assert packed - {"PKG-INFO", ".gitignore"} == {
        file for file in files if "__pycache__" not in file and not file.endswith(".bpf.o")
    }


OPTIONS = {*cli.FLAGS, *(f"{name}=" for name in cli.OPTIONS)}


def test_bash_completes_mount_options(shared: Path) -> None:
    script = (
        'source "$1"; COMP_WORDS=(netnsfs -o "$2"); COMP_CWORD=2; _shtab_netnsfs;'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def complete(word: str) -> list[str]:
        file = shared / "share/bash-completion/completions/netnsfs"
        return run("bash", "-c", script, "bash", file, word).split()

    assert set(complete("")) == OPTIONS
    assert complete("noviews,keep") == ["noviews,keep_busy", "noviews,keep_devices"]


def test_fish_completes_mount_options(shared: Path) -> None:
    def complete(word: str) -> list[str]:
        file = shared / "share/fish/vendor_completions.d/netnsfs.fish"
        line = f"source '{file}'; complete -C 'netnsfs -o {word}'"
        lines = run("fish", "--no-config", "-c", line).splitlines()
        return [line.split("\t")[0] for line in lines]

    assert set(complete("")) == OPTIONS
    assert complete("noviews,keep") == ["noviews,keep_busy", "noviews,keep_devices"]


def test_zsh_reads_its_completion(shared: Path) -> None:
    file = shared / "share/zsh/site-functions/_netnsfs"
    run("zsh", "-n", file)
    for option in [*cli.FLAGS, *cli.OPTIONS]:
        assert option in file.read_text()


def test_the_debian_package_has_the_version_of_the_project() -> None:
    first = (CHECKOUT / "scripts/debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"netnsfs ({version('netnsfs')}) ")


@pytest.mark.usefixtures("places")
def test_install_and_uninstall(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = held()
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
        monkeypatch.setenv(name, str(Path(sys.prefix, "releases")))
    run(CHECKOUT / "scripts/install", wheel(dist))
    assert all(Path("/usr/local", path).exists() for path in SHARED)
    # Whether anybody but root gets in by it, the administrator decides.
    assert run("getcap", Path("/opt/netnsfs", PROGRAM)) == ""
    assert "namespaces as directories" in run("man", "-k", "netnsfs")
    run("systemd-analyze", "verify", "--man=no", "netnsfs.service", DATA / "mnt-netnsfs.mount")

    # By /usr/local/sbin/netnsfs, and by nothing else.
    run("env", f"PATH={os.defpath}:/usr/local/sbin:/usr/sbin", *MOUNT_COMMAND)
    os.mkdir(MNT / "foo")
    assert run(MNT / "foo/exec", "ls", "/sys/class/net") == "lo\n"
    run("umount", MNT)
    wait_for(lambda: not _users(Path("/opt/netnsfs")))

    run(CHECKOUT / "scripts/uninstall")
    assert held() == before
    assert os.listdir(RUN) == ["foo"]
    ip("netns", "del", "foo")


def _users(directory: Path) -> list[str]:
    """The processes of this mount namespace that run something below a directory."""
    own = mount_namespace("self")
    return [
        pid
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if command_of(int(pid)).startswith(bytes(directory) + b"/")
        and mount_namespace(pid) == own
    ]
