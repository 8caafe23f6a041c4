"""Labs by files alone, and the README's first of all: made, pinged, drawn, removed."""

import os
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
Spawn = Callable[..., subprocess.Popen[bytes]]


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


def test_a_star_of_fifty(lab: Lab) -> None:
    """Made by eleven lines of shell, pinged, removed."""
    lab(
        """
        names=$(seq -f h%g 50)
        mkdir hub $names
        mkdir hub/links/br0
        echo 1 > hub/links/br0/up
        ln -s -t hub/links $(printf '%s\n' $names | sed 's|.*|&/links/&|')
        for name in $names; do
            ln -s br0 hub/links/$name/master
            echo +10.0.0.${name#h}/24 > $name/links/$name/addresses
            echo 1 > $name/links/$name/up
            echo 1 > hub/links/$name/up
        done
        """
    )
    for number in range(2, 51):
        ping(lab, "h1", f"10.0.0.{number}")


def test_an_office_behind_the_machine(lab: Lab, spawn: Spawn) -> None:
    """A bridge with three hosts, and a router to the machine, which here has no name."""
    process = spawn("unshare", "-n", "sleep", "300")
    own = os.readlink("/proc/self/ns/net")
    wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
    lab(
        f"""
        ln -s /proc/{process.pid}/ns/net machine
        mkdir lan h1 h2 h3 router
        mkdir lan/links/br0
        for port in h1 h2 h3 router; do
            ln -s lan/links/$port $port/links/eth0
            ln -s br0 lan/links/$port/master
        done
        ln -s machine/links/office router/links/eth1
        for up in */links/*/up; do echo 1 > $up; done
        echo +192.168.7.1/24 > router/links/eth0/addresses
        echo +172.16.7.2/30 > router/links/eth1/addresses
        echo +172.16.7.1/30 > machine/links/office/addresses
        echo 1 > router/sysctl/ipv4/ip_forward
        echo +default via 172.16.7.1 > router/routes
        echo +192.168.7.0/24 via 172.16.7.2 > machine/routes
        for number in 1 2 3; do
            echo +192.168.7.1$number/24 > h$number/links/eth0/addresses
            echo +default via 192.168.7.1 > h$number/routes
        done
        """
    )
    for host in ("h1", "h2", "h3"):
        ping(lab, host, "172.16.7.1")
    ping(lab, "machine", "192.168.7.12")


BIRD = """
router id 10.255.0.{number};
protocol device {{}}
protocol kernel {{ ipv4 {{ export all; }}; }}
protocol ospf v2 {{
    area 0 {{
        interface "r*" {{ type ptp; hello 1; dead 4; }};
        interface "n*" {{ stub; }};
    }};
}}
"""


def test_three_routers_with_ospf(lab: Lab, spawn: Spawn, tmp_path: Path) -> None:
    """A ring of routers, with four networks, whose routes bird finds by OSPF."""
    lab(
        """
        mkdir r1 r2 r3 n1 n2 n3 n4
        for ends in r1/r2 r2/r3 r3/r1; do
            ln -s ${ends#*/}/links/${ends%/*} ${ends%/*}/links/${ends#*/}
        done
        for ends in r1/n1 r2/n2 r3/n3 r3/n4; do
            ln -s ${ends%/*}/links/${ends#*/} ${ends#*/}/links/eth0
            number=${ends#*/n}
            echo +10.0.$number.254/24 > ${ends%/*}/links/n$number/addresses
            echo +10.0.$number.1/24 > n$number/links/eth0/addresses
        done
        for up in */links/*/up; do echo 1 > $up; done
        for number in 1 2 3 4; do echo +default via 10.0.$number.254 > n$number/routes; done
        for link in 1/2 2/3 3/1; do
            one=${link%/*} other=${link#*/}
            echo +10.1.$one$other.$one/24 > r$one/links/r$other/addresses
            echo +10.1.$one$other.$other/24 > r$other/links/r$one/addresses
            echo 1 > r$one/sysctl/ipv4/ip_forward
        done
        """
    )
    for number in (1, 2, 3):
        file = tmp_path / f"bird{number}.conf"
        file.write_text(BIRD.format(number=number))
        at = ["nsenter", f"--net=/run/netns/r{number}"]
        spawn(*at, "bird", "-f", "-c", str(file), "-s", str(tmp_path / f"bird{number}"))
    found = ("10.0.2.0/24 via 10.1.12.2 dev r2 proto bird", "10.0.4.0/24 via 10.1.31.3 dev r3")
    wait_for(lambda: all(line in lab("cat r1/routes") for line in found), 90)
    ping(lab, "n1", "10.0.4.1")
    ping(lab, "n2", "10.0.3.1")
    # Where a line is cut, they go the other way round.
    lab("echo 0 > r1/links/r2/up")
    wait_for(lambda: "10.0.2.0/24 via 10.1.31.3 dev r3" in lab("cat r1/routes"), 90)
    ping(lab, "n1", "10.0.2.1")
