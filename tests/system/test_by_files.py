"""The README's promises: everything by file operations, and every file and option told."""

import re
import subprocess
from pathlib import Path

from conftest import RUN, Mounted

from netnsfs import cli
from netnsfs.tree import namespace as files

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text()


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


def test_the_readme_tells_every_file() -> None:
    for name in [*files.NAMESPACE, b"ns"]:
        assert f"`NAME/{name.decode()}`" in README


def test_the_readme_tells_every_option() -> None:
    for option in [*cli.OPTIONS, *cli.FLAGS]:
        assert re.search(rf"`-o {option}[`=]", README)
