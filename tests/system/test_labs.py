"""Labs by files alone, and the README's first of all: made, pinged, drawn, removed."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import Mounted, wait_for

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
SVG = "{http://www.w3.org/2000/svg}"

Lab = Callable[..., str]


@pytest.fixture
def lab(mnt: Mounted) -> Iterator[Lab]:
    """Runs commands at the mount point; what they have made is removed in the end."""

    def run(script: str) -> str:
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=mnt.path,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    yield run
    for name in mnt.path.iterdir():
        name.rmdir()


def ping(lab: Lab, name: str, address: str) -> None:
    """As soon as there is an answer: a bridge and a router need a moment."""
    command = ["nsenter", f"--net=/run/netns/{name}", "ping", "-qc1", "-W1", address]
    wait_for(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0)


def texts(picture: str) -> set[str]:
    lines = ElementTree.fromstring(picture).iter(f"{SVG}text")
    return {re.sub("\xa0+", " ", "".join(line.itertext())).strip() for line in lines}


def test_the_lab_of_the_readme(lab: Lab) -> None:
    section = (CHECKOUT / "README.md").read_text().partition("## A lab by files\n")[2]
    section = section.partition("\n## ")[0]
    commands = re.findall(r"^    # (.*)$", section, re.MULTILINE)
    assert commands[0] == "cd /mnt/netnsfs"
    assert not [line for line in commands if re.search(r"\bip\b", line)]
    # A link needs a moment to come up before anything is sent through it.
    made = [line for line in commands if not line.startswith("nsenter")]
    shown = lab("\n".join(made[1:]))
    (asked,) = set(commands) - set(made)
    ping(lab, *re.findall(r"--net=(\w+)/ns ping -c 1 (\S+)", asked)[0])
    ping(lab, "bob", "10.0.1.1")
    for line in shown.splitlines():
        assert f"    {line.removesuffix(' linkdown')}\n" in section
    # The picture of the README is that of this lab.
    drawn = lab("dot -Tsvg .netnsfs/topology.dot")
    assert texts(drawn) == texts((CHECKOUT / "scripts/lab.svg").read_text())
