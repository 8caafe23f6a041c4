"""`.netnsfs/topology.dot`, read by a small parser of its language, and by dot(1) if there."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import RUN, Mounted, ip, wait_for

from netnsfs.tree.topology import text_of

Spawn = Callable[..., subprocess.Popen[bytes]]

NOBODY = 65534

SVG = "{http://www.w3.org/2000/svg}"

# A string in quotes: anything but quotes and backslashes, which are escaped.
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def graph(mounted: Mounted) -> str:
    return (mounted / ".netnsfs/topology.dot").read_text()


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: found[1], text).replace("&amp;", "&")


def edges(text: str) -> set[tuple[str, str, str]]:
    """Two ends, and what the edge is called."""
    found = set()
    for line in text.splitlines():
        if '" -- "' in line:
            one, other, *label = (unescape(string) for string in STRING.findall(line))
            found.add((one, other, label[0] if label else ""))
    return found


def nodes(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        if "[label=" in line and '" -- "' not in line:
            name, label = STRING.findall(line)
            found[unescape(name)] = label.replace("\\n", "\n")
    return found


def drawn(text: str) -> ElementTree.Element:
    """The picture that dot(1) makes of it, without a complaint."""
    command = ["dot", "-Tsvg"]
    done = subprocess.run(command, input=text.encode(), check=True, capture_output=True)
    assert done.stderr == b""
    return ElementTree.fromstring(done.stdout)


@pytest.fixture
def spaces(mnt: Mounted) -> Iterator[tuple[Path, Path]]:
    for name in ("a", "b"):
        (mnt / name).mkdir()
    yield mnt / "a", mnt / "b"
    for name in ("a", "b"):
        (mnt / name).rmdir()


def test_what_connects_namespaces(
    mnt: Mounted, spaces: tuple[Path, Path], spawn: Spawn
) -> None:
    a, b = spaces
    spawn("nsenter", f"--net={a}/ns", "sleep", "100")
    wait_for((a / "pids").read_text)
    os.symlink("b/links/v1", a / "links/v0")
    os.symlink("a/links/w1", a / "links/w0")
    for command in (
        "link add br0 type bridge",
        "link set v0 master br0 up",
        "link add link w0 name m0 type macvlan",
        "addr add 10.0.0.1/24 dev v0",
        "addr add fd00::1/64 dev v0 nodad",
    ):
        ip("-n", "a", *command.split())
    os.rename(a / "links/m0", b / "links/m1")
    text = graph(mnt)
    # Elsewhere on the machine, processes come and go.
    assert graph(mnt).partition('"cluster_.net')[0] == text.partition('"cluster_.net')[0]
    assert {edge for edge in edges(text) if edge[0][0] in "ab"} == {
        ("a/v0", "b/v1", ""),
        ("a/w0", "a/w1", ""),
        ("a/v0", "a/br0", "master"),
        ("b/m1", "a/w0", "lower"),
    }
    shown = nodes(text)
    assert shown["a/v0"] == "v0\nveth, up\n10.0.0.1/24\nfd00::1/64"
    assert shown["b/v1"] == "v1\nveth, down"
    assert f'label="a\\ninode {os.stat(RUN / "a").st_ino}, 1 member"' in text
    assert f'label="b\\ninode {os.stat(RUN / "b").st_ino}, 0 members"' in text
    titles = {element.text for element in drawn(text).iter(f"{SVG}title")}
    assert {"cluster_a", "a/v0", "a/v0--b/v1", "b/m1--a/w0"} <= titles
    assert text.index('"cluster_a"') < text.index('"cluster_b"') < text.index('"cluster_.net')


def test_the_other_end_without_a_name(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    process = spawn("unshare", "-n", "sleep", "100")
    own = os.readlink("/proc/self/ns/net")
    wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
    inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    os.symlink(f".netnsfs/unnamed/{inode}/links/in", foo / "links/out")
    unnamed = f".netnsfs/unnamed/{inode}/in"
    assert (unnamed, "foo/out", "") in edges(graph(mnt))


def test_ends_that_look_alike_are_told_apart(mnt: Mounted) -> None:
    names = ("a0", "a1", "b0", "b1")
    for name in names:
        (mnt / name).mkdir()
    for one, other in (("a0", "b1"), ("a1", "b0")):
        ends = (
            "name x index 10 address 02:00:00:00:00:01",
            f"name y index 20 address 02:00:00:00:00:02 netns {other}",
        )
        ip(*f"-n {one} link add {ends[0]} type veth peer {ends[1]}".split())
    found = {edge for edge in edges(graph(mnt)) if edge[0][:2] in names}
    assert found == {("a0/x", "b1/y", ""), ("a1/x", "b0/y", "")}
    for name in names:
        (mnt / name).rmdir()


@pytest.mark.machine
def test_closed_namespaces_are_not_told_of(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, _ = spaces
    os.symlink("b/links/v1", a / "links/v0")
    a.chmod(0o700)
    command = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "cat"]
    done = subprocess.run(
        [*command, mnt / ".netnsfs/topology.dot"], check=True, capture_output=True
    )
    text = done.stdout.decode()
    assert set(nodes(text)) == {"b/lo", "b/v1"}
    assert edges(text) == set()
    assert '"a' not in text
    assert "unnamed" not in text


NAMES = [
    b'"quoted"',
    b"back\\slash",
    b"back\\\\slash",
    b"ends\\",
    b"\\N\\G",
    b"two\nlines",
    b"<b>&amp;<b>",
    b"\xff\xfe",
    b"\\xff",
    b"{a|b}",
    b"a -- b; # c",
    b"\x1b[31m",
    b"z" * 255,
]


def test_names_of_any_bytes(mnt: Mounted) -> None:
    for name in NAMES:
        os.mkdir(os.path.join(bytes(mnt.path), name))
    os.symlink(b'"quoted"/links/a"b', os.path.join(bytes(mnt.path), b"ends\\/links/c\\"))
    try:
        text = graph(mnt)
        loopbacks = [name for name in nodes(text) if name.endswith("/lo")]
        assert len(loopbacks) == len(set(loopbacks)) >= len(NAMES)
        assert len(edges(text)) == 1
        # Nothing but the language is left beside the strings.
        left = STRING.sub("", text)
        assert re.fullmatch(r"[a-z0-9\s{}=;\[\]-]*", left)
        lines = ("".join(line.itertext()) for line in drawn(text).iter(f"{SVG}text"))
        texts = {line.replace("\xa0", " ") for line in lines}
        assert {text_of(name) for name in NAMES} <= texts
        assert 'a"b' in texts
    finally:
        for name in NAMES:
            os.rmdir(os.path.join(bytes(mnt.path), name))
