"""The README's promises: everything by file operations, every file told, figures measured."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RUN, Mounted

from netnsfs import cli, linux
from netnsfs.tree import interfaces
from netnsfs.tree import namespace as files

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
README = (CHECKOUT / "README.md").read_text()
BENCH = (CHECKOUT / "scripts/BENCH.md").read_text()
PAGE = Path(cli.__file__).parent / "data/netnsfs.8"
TREE = re.findall(r"^\| `(\S+?)/?` \|", README, re.MULTILINE)


def test_everything_that_ip_netns_does(mnt: Mounted) -> None:
    done = subprocess.run(
        ["sh", HERE / "by_files.sh", mnt.path], check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "blue"
    assert lines[2] == "../../blue"
    assert f"{mnt.path}/blue/nsid:4242" in lines
    assert re.fullmatch(r"\d+", lines[-1])
    assert not list(RUN.iterdir())


def test_the_readme_tells_every_file(mnt: Mounted) -> None:
    for name in [*files.NAMESPACE, *files.VIEWS, b"ns", files.EXEC]:
        assert f"NAME/{name.decode()}" in TREE
    for name in [*interfaces.FILES, b"peer"]:
        assert f"NAME/links/IFACE/{name.decode()}" in TREE
    for path in (mnt.path / ".netnsfs").iterdir():
        assert any(line.startswith(f".netnsfs/{path.name}") for line in TREE)


def test_the_readme_tells_no_other_file(mnt: Mounted) -> None:
    (mnt.path / "foo").mkdir()
    (mnt.path / "foo/links/v0").symlink_to("foo/links/v1")
    (mnt.path / "foo/links/v0/addresses").write_text("+198.51.100.7/24")
    (mnt.path / "foo/nsid").write_text("auto")
    standing = {
        "NAME": "foo",
        "IFACE": "v0",
        "INODE": (mnt.path / ".netnsfs/pid/self").readlink().name,
        "NSID": (mnt.path / "foo/nsid").read_text().strip(),
        "PID": "self",
        "ADDR": "198.51.100.7",
        "ID": (mnt.path / "foo/id").read_text().strip(),
    }
    # Without root it is not to be seen which one that is.
    hidden = set() if linux.in_initial_user_namespace() else {".netnsfs/init"}
    with socket.socket() as opened:
        standing["SOCKET"] = str(os.fstat(opened.fileno()).st_ino)
        for line in {*TREE} - hidden:
            name = re.sub("[A-Z]+", lambda found: standing[found[0]], line)
            assert os.path.lexists(mnt.path / name), name
    (mnt.path / "foo").rmdir()


def test_the_page_tells_every_option() -> None:
    """What used to be a table of the README, as a reader of the page sees it."""
    done = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=200", PAGE], check=True, capture_output=True
    )
    text = re.sub(r".\x08", "", done.stdout.decode())
    for option in [*cli.OPTIONS, *cli.FLAGS]:
        assert re.search(rf"^ +{option}(=|\s|$)", text, re.MULTILINE), option


def test_the_line_of_fstab_was_tested() -> None:
    shown = re.findall(r"^(none +/mnt/netnsfs +.*0)$", PAGE.read_text(), re.M)
    assert len(shown) == 1
    tested = re.search(r'^FSTAB_LINE = "(.*)"', (HERE / "test_mount8.py").read_text(), re.M)
    assert tested
    assert [tested[1]] == shown


def test_the_figures_of_the_readme_were_measured() -> None:
    speed = README.partition("## Speed")[2].partition("\n## ")[0]
    figures = re.findall(r"\d[\d.]* (?:µs|ms|MiB)", speed)
    assert len(figures) == 9
    for figure in figures:
        assert f"| {figure} |" in BENCH


def test_each_module_of_the_bench_is_a_section_of_it() -> None:
    bench = [sys.executable, str(CHECKOUT / "scripts/bench")]
    shown = subprocess.run([*bench, "--help"], check=True, capture_output=True, text=True)
    sections = re.search(r"--section\s+\{([\w,]+)\}", shown.stdout)
    assert sections
    modules = (CHECKOUT / "scripts/benchmarks/sections").glob("[!_]*.py")
    assert {*sections[1].split(",")} == {path.stem for path in modules}
    subprocess.run([*bench, "--quick", "--section", "requests"], check=True, timeout=100)


@pytest.mark.parametrize(
    "document", ["README.md", ".github/CONTRIBUTING.md", "scripts/BENCH.md"]
)
def test_links_lead_to_files(document: str) -> None:
    path = CHECKOUT / document
    if not path.exists():
        pytest.skip("not in a source distribution")
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


def test_the_guide_names_what_there_is() -> None:
    guide = CHECKOUT / ".github/CONTRIBUTING.md"
    if not guide.exists():
        pytest.skip("not in a source distribution")
    named = re.findall(r"`((?:netnsfs|tests|scripts)/[\w./]+)`", guide.read_text())
    assert len(named) > 10
    for path in named:
        assert (CHECKOUT / path).exists(), path
    folders = {path.parent.name for path in (CHECKOUT / "tests").glob("*/test_*.py")}
    assert folders <= set(re.findall(r"^\| `(\w+)` \|", guide.read_text(), re.MULTILINE))
