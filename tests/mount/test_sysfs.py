"""What sysfs shows of an interface, in links/, with /sys in the namespace as the other side."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Mounted, error_of, ip, wait_for


@pytest.fixture
def spaces(mnt: Mounted) -> Iterator[tuple[Path, Path]]:
    """The namespaces a and b, and a veth pair, v0 and v1, between them."""
    for name in ("a", "b"):
        (mnt / name).mkdir()
    os.symlink("b/links/v1", mnt / "a/links/v0")
    yield mnt / "a", mnt / "b"
    for name in ("a", "b"):
        with suppress(FileNotFoundError):
            (mnt / name).rmdir()


LOOK = """
import errno, json, os, stat, sys
found = {}
def look(path, shown):
    for name in sorted(os.listdir(path)):
        below, as_shown = os.path.join(path, name), os.path.join(shown, name)
        mode = os.lstat(below).st_mode
        if stat.S_ISDIR(mode):
            found[as_shown] = "directory"
            look(below, as_shown)
        elif stat.S_ISLNK(mode):
            found[as_shown] = "link"
        else:
            try:
                with open(below, "rb", 0) as file:
                    content = file.read().decode("latin-1")
            except OSError as error:
                content = errno.errorcode[error.errno]
            found[as_shown] = [stat.S_IMODE(mode), content]
for interface in sorted(os.listdir(sys.argv[1])):
    look(os.path.join(sys.argv[1], interface), interface)
json.dump(found, sys.stdout)
"""

# `address` is writable here, with the same content.
OURS = {"kind", "up", "address", "addresses", "peer"}


def test_every_file_is_as_sysfs_has_it(spaces: tuple[Path, Path]) -> None:
    """Modes too, and what sysfs refuses is refused in the same way."""
    a, _ = spaces
    ip("-n", "a", "link", "add", "br0", "type", "bridge")
    ip("-n", "a", "link", "set", "v0", "master", "br0", "up")
    ip("-n", "b", "link", "set", "v1", "up")
    wait_for(lambda: (a / "links/v0/operstate").read_text() == "up\n")
    inside = ["ip", "netns", "exec", "a", sys.executable, "-c", LOOK, "/sys/class/net"]
    outside = [sys.executable, "-c", LOOK, str(a / "links")]
    looks = [
        json.loads(subprocess.run(look, check=True, capture_output=True).stdout)
        for look in (inside, outside, inside)
    ]
    before, shown, after = (
        {path: told for path, told in look.items() if not path.endswith("/subsystem")}
        for look in looks
    )
    assert shown.keys() == looks[1].keys()
    ours = {path: found for path, found in shown.items() if path.split("/")[1] not in OURS}
    for path in [path for path in before if path.split("/")[1:] == ["address"]]:
        assert shown[path] == [0o644, before.pop(path)[1]]
    assert ours.keys() == before.keys()
    for path, found in before.items():
        if found != after[path]:
            # A counter or a clock.
            assert "/statistics/" in path or path.endswith("_timer")
            assert found[0] == ours[path][0]
        else:
            assert ours[path] == found, path
    assert any(content == [0o644, "EINVAL"] for content in ours.values())
    assert sum(content == "link" for content in ours.values()) > 4


@pytest.mark.parametrize("tool", [["cat"], ["busybox", "cat"], ["cp"]])
def test_other_ways_to_read(spaces: tuple[Path, Path], tool: list[str], tmp_path: Path) -> None:
    file = spaces[0] / "links/lo/mtu"
    command = [*tool, str(file), *([] if "cat" in tool else [str(tmp_path / "copy")])]
    done = subprocess.run(command, check=True, capture_output=True)
    assert (done.stdout or (tmp_path / "copy").read_bytes()) == b"65536\n"


def test_links_lead_to_interfaces(spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    ip("-n", "a", "link", "add", "br0", "type", "bridge")
    ip("-n", "a", "link", "set", "v0", "master", "br0")
    ip("-n", "a", "link", "add", "link", "v0", "name", "m0", "type", "macvlan", check=False)
    v0, br0 = a / "links/v0", a / "links/br0"
    for link, target in {
        v0 / "master": br0,
        v0 / "upper_br0": br0,
        br0 / "lower_v0": v0,
        br0 / "brif/v0/bridge": br0,
        v0 / "brport/bridge": br0,
        v0 / "peer": b / "links/v1",
        b / "links/v1/peer": v0,
    }.items():
        assert link.resolve() == target, link
    assert os.readlink(v0 / "master") == "../br0"


def test_no_link_leads_out(spaces: tuple[Path, Path]) -> None:
    """What follows links comes to an end, and stays in the mount."""
    a, _ = spaces
    assert "subsystem" not in os.listdir(a / "links/v0")
    assert error_of(os.readlink, a / "links/v0/subsystem") == "ENOENT"
    links = [path for path in (a / "links").rglob("*") if path.is_symlink()]
    assert {path.name for path in links} == {"peer"}
    found = subprocess.run(
        ["find", "-L", a, "-name", "kernel"], check=False, capture_output=True, timeout=100
    )
    assert found.stdout == b""


def test_hardware_leads_to_its_device(mnt: Mounted) -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    links = mnt / f".netnsfs/unnamed/{own}/links"
    hardware = [
        name
        for name in os.listdir("/sys/class/net")
        if os.path.exists(f"/sys/class/net/{name}/device")
    ]
    for name in hardware:
        assert (links / name / "kind").read_text() == "physical\n"
        device = os.path.realpath(f"/sys/class/net/{name}/device")
        assert os.readlink(links / name / "device") == device
        assert error_of(os.rmdir, links / name) == "ENOTSUP"


def test_sysfs_files_are_written(spaces: tuple[Path, Path]) -> None:
    a, _ = spaces
    (a / "links/v0/mtu").write_text("1400\n")
    (a / "links/v0/ifalias").write_text("to b")
    (a / "links/v0/tx_queue_len").write_text("10")
    (told,) = json.loads(ip("-n", "a", "-j", "link", "show", "v0").stdout)
    assert (told["mtu"], told["ifalias"], told["txqlen"]) == (1400, "to b", 10)
    assert error_of((a / "links/v0/mtu").write_text, "1") == "EINVAL"
    assert error_of((a / "links/v0/mtu").write_text, "many") == "EINVAL"
    assert error_of((a / "links/v0/address").write_text, "x") == "EINVAL"
    assert error_of((a / "links/v0/addr_len").write_text, "x") == "EACCES"


def test_a_held_file_follows_no_other_interface(spaces: tuple[Path, Path]) -> None:
    """One that is renamed keeps what is its own; its old name is another's."""
    a, _ = spaces
    with open(a / "links/v0/mtu", "r+b", 0) as mtu, open(a / "links/v0/up", "r+b", 0) as up:
        ip("-n", "a", "link", "set", "v0", "name", "old")
        os.symlink("b/links/w1", a / "links/v0")
        mtu.write(b"1400")
        assert error_of(up.write, b"1") == "ENODEV"
    assert (a / "links/old/mtu").read_text() == "1400\n"
    assert (a / "links/v0/mtu").read_text() == "1500\n"
    assert (a / "links/old/up").read_text() == (a / "links/v0/up").read_text() == "0\n"
