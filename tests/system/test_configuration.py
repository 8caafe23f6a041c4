"""Configuration management: what is to be, again and again."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Mounted

PLAYBOOK = Path(__file__).parent / "ansible.yml"

# What Salt's `cmd.run` and Puppet's `exec` make of `creates`, `onlyif` and `unless`.
IDIOMS = {
    "creates": "[ -e blue ] || mkdir blue",
    "onlyif": "! test -e blue || rmdir blue",
    "unless": "grep -qx 1 blue/sysctl/ipv4/ip_forward || echo 1 > blue/sysctl/ipv4/ip_forward",
}


@pytest.mark.machine
@pytest.mark.timeout(300)
def test_ansible(mnt: Mounted, tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "false"}
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-e", f"mount={mnt.path}", PLAYBOOK],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **own},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(mnt.path) == []


def test_what_is_done_already_is_not_done_again(mnt: Mounted) -> None:
    for idiom in ("creates", "unless", "onlyif"):
        for _ in range(2):
            subprocess.run(["sh", "-c", IDIOMS[idiom]], check=True, cwd=mnt.path)
        assert os.listdir(mnt.path) == ([] if idiom == "onlyif" else ["blue"])


def test_a_tree_is_not_removed_by_its_files(mnt: Mounted, foo: Path) -> None:
    """As Salt's `file.absent` tries it. Puppet's `force` passes over what it cannot remove."""
    inode = (foo / "inode").read_text()
    with pytest.raises(PermissionError):
        shutil.rmtree(foo)
    assert (foo / "inode").read_text() == inode
    shutil.rmtree(foo, ignore_errors=True)
    assert os.listdir(mnt.path) == []
