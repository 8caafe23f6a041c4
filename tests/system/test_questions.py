"""The questions of an operator: each command of the man page, and its answer."""

import os
import re
import socket
import subprocess
from collections.abc import Callable

import pytest
from conftest import CHECKOUT, Mounted, ip, nsids, wait_for

Spawn = Callable[..., subprocess.Popen[bytes]]

PAGE = (CHECKOUT / "netnsfs/data/netnsfs.8").read_text()
ADDRESS = "198.51.100.7"
VETH = f"v{os.getpid()}"


def commands() -> dict[str, str]:
    """What the man page says, by question."""
    block = PAGE.partition(".Ss Ten questions of an operator\n")[2].partition(".Ed")[0]
    return dict(re.findall(r"^# (.*)\n(.*)$", block, re.MULTILINE))


QUESTIONS = commands()


@pytest.fixture
def machine(mnt: Mounted, spawn: Spawn) -> dict[str, str]:
    """A container made by hand, and what stands in the page for what it has."""
    process = spawn("unshare", "--net", "sleep", "60")
    path = f"/proc/{process.pid}/ns/net"
    wait_for(lambda: os.stat(path).st_ino != os.stat("/proc/self/ns/net").st_ino)
    pid, inode = str(process.pid), str(os.stat(path).st_ino)
    inside = ("nsenter", f"--net={path}")
    ip("link", "add", VETH, "type", "veth", "peer", "name", "eth0", "netns", pid)
    subprocess.run([*inside, "ip", "address", "add", ADDRESS, "dev", "eth0"], check=True)
    script = "import os, socket, time; s = socket.socket(); print(os.fstat(s.fileno()).st_ino,"
    script += "flush=True); time.sleep(60)"
    holder = spawn(*inside, "/usr/bin/python3", "-c", script, stdout=subprocess.PIPE)
    assert holder.stdout
    number = holder.stdout.readline().decode().strip()
    unnamed = mnt / ".netnsfs/unnamed" / inode
    nsid = (unnamed / "nsid").read_text().strip()
    if nsid == "unassigned":
        nsid = str(next(nsids))
        (unnamed / "nsid").write_text(nsid)
    return {
        "4711": pid,
        "veth1": VETH,
        "10.0.0.1": ADDRESS,
        "184467": number,
        "4026532268": inode,
        "309115": (unnamed / "id").read_text().strip(),
        "nsid/3": f"nsid/{nsid}",
    }


def test_there_are_ten() -> None:
    assert len(QUESTIONS) == 10


def test_each_has_its_answer(mnt: Mounted, machine: dict[str, str]) -> None:
    answers = {}
    for question, command in QUESTIONS.items():
        done = subprocess.run(
            re.sub("|".join(map(re.escape, machine)), lambda found: machine[found[0]], command),
            shell=True,
            cwd=mnt.path,
            check=False,
            capture_output=True,
            text=True,
        )
        answers[question] = done.stdout
        # Nobody may have left any.
        assert done.returncode == 0 or question.startswith("Which namespaces has"), question
    inode, title = machine["4026532268"], f"unnamed/{machine['4026532268']}"
    with open(f"/proc/{machine['4711']}/cgroup") as lines:
        groups = {line.rstrip("\n").split(":", 2)[2] for line in lines}
    (process, veth, address, of_socket, group, members, nsid, holders, left, full) = (
        answers.values()
    )
    assert process == of_socket == nsid == f"../{title}\n"
    assert set(veth.splitlines()) == set(group.splitlines()) <= groups
    assert veth
    assert f"{inode}:eth0 -> ../../{title}/links/eth0" in address
    assert machine["4711"] in members.split()
    assert f"task {machine['4711']}\n" in holders
    assert title not in left
    assert f'netns=".netnsfs/{title}"' in full


def test_a_socket_is_called_as_ss_calls_it() -> None:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        shown = subprocess.check_output(["ss", "-Hltne"], text=True)
        assert f"ino:{os.fstat(opened.fileno()).st_ino} " in shown
