"""The man page: well formed, and every file and option told."""

import re
import subprocess
from pathlib import Path

import pytest

from netnsfs import cli, limits
from netnsfs.config import Config
from netnsfs.netns import names as netns
from netnsfs.stats import Stats
from netnsfs.tree import ctldir as corner_module
from netnsfs.tree import interfaces, metrics, refs, root
from netnsfs.tree import namespace as files

PAGE = Path(cli.__file__).parent / "data/netnsfs.8"
TEXT = PAGE.read_text()

# Which other pages are installed is the machine's matter.
OTHER_PAGES = ("referenced manual not found", "mandoc.db")


class Nobody:
    pid = umask = 0
    uid = 65534


def corner() -> list[bytes]:
    tree = root.Root(netns.NamedNamespaces(b"/nowhere"), Stats(), Config(b"/nowhere"))
    directory = tree.lookup(refs.RESERVED, Nobody())
    assert isinstance(directory, corner_module.ControlDirectory)
    return directory.readdir()


@pytest.mark.parametrize(
    "tool", [["mandoc", "-T", "lint"], ["groff", "-ww", "-mandoc", "-Tutf8", "-z"]]
)
def test_the_page_is_well_formed(tool: list[str]) -> None:
    done = subprocess.run([*tool, PAGE], check=False, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if not any(text in line for text in OTHER_PAGES)] == []


def test_the_page_tells_every_file() -> None:
    for name in [*files.NAMESPACE, *files.VIEWS, b"ns", interfaces.LINKS]:
        assert re.search(rf"^\.It Pa NAME/{name.decode()}/? ", TEXT, re.MULTILINE)
    for name in corner():
        assert re.search(rf"^\.It Pa \.netnsfs/{name.decode()}[ /]", TEXT, re.MULTILINE)


def test_the_page_tells_every_counter() -> None:
    families = metrics.render(
        netns.NamedNamespaces(b"/nowhere"), Stats(), metrics.Scope()
    ).decode()
    names = re.findall(r"^# TYPE (\w+)", families, re.MULTILINE)
    assert "netnsfs_member_processes" in names
    for name in names:
        assert re.search(rf"Va {name}( |$)", TEXT, re.MULTILINE), name


@pytest.mark.parametrize("row", files.NAMESPACE.values(), ids=lambda row: row.name.decode())
def test_the_page_tells_the_modes(row: files.NamespaceFileSpec) -> None:
    assert f".It Pa NAME/{row.name.decode()} Pq {row.mode:04o}\n" in TEXT


@pytest.mark.parametrize("row", interfaces.FILES.values(), ids=lambda row: row.name.decode())
def test_the_page_tells_the_files_of_interfaces(row: interfaces.InterfaceFileSpec) -> None:
    assert f".It Pa NAME/links/IFACE/{row.name.decode()} Pq {row.mode:04o}\n" in TEXT


def test_the_page_tells_every_option() -> None:
    for option in [*cli.OPTIONS, *cli.FLAGS]:
        assert re.search(rf"^\.It Cm {option}( |$)", TEXT, re.MULTILINE)
    for action in cli.make_parser()._actions:
        for option in action.option_strings:
            assert re.search(rf"Fl ({option[1:]}|Fl {option[2:]})( |$)", TEXT, re.MULTILINE)


def test_the_page_tells_the_limits() -> None:
    _, _, after = TEXT.partition(".Sh LIMITS\n")
    section, _, _ = after.replace("\n", " ").partition(".Sh ")
    for limit in (
        f"{limits.WAITING_PER_USER:,} a user, {limits.WAITING_TOTAL:,} in total",
        f"Open files: {limits.FILES_PER_USER:,} a user",
        f"{limits.LISTINGS_PER_USER:,} a user, {limits.LISTINGS_TOTAL:,} in total",
        f"{limits.TEXT_PER_USER >> 20} MiB a user, {limits.TEXT_TOTAL >> 20} MiB in total",
        f"a burst of {limits.SIGNAL_SECONDS:.0f} seconds of work, "
        f"refilled at {limits.SIGNAL_RATE} seconds a second",
    ):
        assert limit in section
