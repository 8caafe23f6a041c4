"""`topology.dot`, read by a small parser of its language, and by dot(1) and sfdp(1)."""

import html
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import pytest
from conftest import RUN, Mounted, ip, wait_for

from netnsfs.tree.graphviz import text_of

Spawn = Callable[..., subprocess.Popen[bytes]]

NOBODY = 65534

SVG = "{http://www.w3.org/2000/svg}"

# A string in quotes: anything but quotes and backslashes, which are escaped.
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
EDGE = re.compile(
    rf"    {STRING.pattern}:{STRING.pattern} -- {STRING.pattern}:{STRING.pattern}"
)
NODE = re.compile(rf"    {STRING.pattern} \[label=<(.*)> tooltip={STRING.pattern}\];")


def graph(mounted: Mounted, name: str = ".netnsfs") -> str:
    return (mounted / name / "topology.dot").read_text()


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: found[1], text).replace("&amp;", "&")


def edges(text: str) -> set[tuple[str, str]]:
    """Each from left to right, by namespace and interface."""
    found = set()
    for line in text.splitlines():
        if (edge := EDGE.match(line)) is not None:
            one, port, other, other_port = edge.groups()
            ends = ((unescape(one), port), (unescape(other), other_port))
            names = (f"{name}/{os.fsdecode(unquote_to_bytes(end))}" for name, end in ends)
            found.add((next(names), next(names)))
    return found


def nodes(text: str) -> dict[str, list[str]]:
    """The rows of each, as they are read."""
    found = {}
    for line in text.splitlines():
        if (node := NODE.match(line)) is not None:
            name, label, _ = node.groups()
            rows = re.findall(r"<TR>(.*?)</TR>", label)
            found[unescape(name)] = [plain(row) for row in rows]
    return found


def plain(row: str) -> str:
    text = html.unescape(re.sub(r"<[^>]*>", "", row.replace("<BR/>", "\n")))
    return re.sub("\xa0+", " ", text).strip()


def drawn(text: str, program: str = "dot") -> ElementTree.Element:
    """The picture that a program makes of it, without a complaint."""
    done = subprocess.run(
        [program, "-Tsvg"], input=text.encode(), check=True, capture_output=True, timeout=300
    )
    assert done.stderr == b""
    return ElementTree.fromstring(done.stdout)


class Box(NamedTuple):
    """Where something is drawn, in points."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def boxes(picture: ElementTree.Element) -> dict[str, Box]:
    """Of each namespace."""
    found = {}
    for group in picture.iter(f"{SVG}g"):
        if group.get("class") == "node":
            points = [
                tuple(map(float, point.split(",")))
                for polygon in group.iter(f"{SVG}polygon")
                for point in polygon.get("points", "").split()
            ]
            across, down = [point[0] for point in points], [point[1] for point in points]
            title = group.findtext(f"{SVG}title")
            assert title is not None
            found[title] = Box(min(across), min(down), max(across), max(down))
    return found


def require_readable(text: str, names: set[str], lines: set[str]) -> None:
    """All is there, nothing lies on anything else, and it is not a strip."""
    for program in ("dot", "sfdp"):
        picture = drawn(text, program)
        found = boxes(picture)
        assert set(found) == names, program
        told = list(found.values())
        for position, box in enumerate(told):
            assert not any(map(box.overlaps, told[:position])), program
        written = {"".join(line.itertext()) for line in picture.iter(f"{SVG}text")}
        assert lines <= {re.sub("\xa0+", " ", line).strip() for line in written}, program
        width, height = (
            float(picture.get(side, "").removesuffix("pt")) for side in ("width", "height")
        )
        assert max(width, height) < 4 * min(width, height), program
        # On a sheet that is as wide as a screen, letters of 11 points stay large enough.
        assert max(width, height) < 2500, program


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
        "link add link w0 name w0.7 type macvlan",
        "addr add 10.0.0.1/24 dev v0",
        "addr add fd00::1/64 dev v0 nodad",
    ):
        ip("-n", "a", *command.split())
    os.rename(a / "links/m0", b / "links/m1")
    text = graph(mnt)
    assert graph(mnt) == text == graph(mnt, "a") == graph(mnt, "b")
    # The namespace that has nothing but its neighbour is left of it.
    assert edges(text) == {("b/v1", "a/v0"), ("a/w0", "a/w1"), ("b/m1", "a/w0")} or (
        edges(text) == {("a/v0", "b/v1"), ("a/w0", "a/w1"), ("a/w0", "b/m1")}
    )
    assert text.count("[style=dotted];\n") == 1
    assert nodes(text) == {
        "a": [
            "a 1 member",
            "br0 bridge down",
            "v0 10.0.0.1/24\n fd00::1/64",
            "w0 down",
            "w0.7 macvlan on w0 down",
            "w1 down",
        ],
        "b": ["b", "m1 macvlan down", "v1 down"],
    }
    assert f'tooltip="inode {os.stat(RUN / "a").st_ino}, 1 member"' in text
    assert f'tooltip="inode {os.stat(RUN / "b").st_ino}, 0 members"' in text
    titles = {element.text for element in drawn(text).iter(f"{SVG}title")}
    assert {"a", "b"} <= titles


def test_what_would_only_fill_the_picture(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, _ = spaces
    os.symlink("b/links/v1", a / "links/v0")
    for name in ("a", "b"):
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", {"a": "v0", "b": "v1"}[name], "up")
    wait_for(lambda: b"fe80" in ip("-n", "a", "addr").stdout)
    assert nodes(graph(mnt)) == {"a": ["a", "v0"], "b": ["b", "v1"]}
    # Unless somebody uses it.
    ip("-n", "a", "addr", "add", "10.255.0.1/32", "dev", "lo")
    ip("-n", "b", "addr", "add", "fe80::1/64", "dev", "v1", "nodad")
    found = nodes(graph(mnt))
    assert found["a"] == ["a", "lo 10.255.0.1/32", "v0"]
    assert found["b"] == ["b", "v1 fe80::1/64"]


def test_sorted_by_name_with_ports_below_their_master(mnt: Mounted, foo: Path) -> None:
    ip("-n", "foo", "link", "add", "z0", "type", "bridge")
    for name in ("p10", "p9", "a1"):
        os.symlink(f"foo/links/{name}b", foo / f"links/{name}")
    for name in ("p10", "p9"):
        ip("-n", "foo", "link", "set", name, "master", "z0")
    rows = nodes(graph(mnt))["foo"]
    names = [row.split()[0] for row in rows[1:]]
    assert names == ["a1", "a1b", "p9b", "p10b", "z0", "p9", "p10"]


@pytest.fixture
def machine(mnt: Mounted, spawn: Spawn) -> Callable[[], Path]:
    """Makes namespaces without a name."""

    def make() -> Path:
        process = spawn("unshare", "-n", "sleep", "100")
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
        inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
        return mnt / f".netnsfs/unnamed/{inode}"

    return make


def test_only_what_something_named_is_tied_to(
    mnt: Mounted, spaces: tuple[Path, Path], machine: Callable[[], Path]
) -> None:
    a, _ = spaces
    near, far, alone = machine(), machine(), machine()
    os.symlink(f".netnsfs/unnamed/{near.name}/links/in", a / "links/out")
    os.symlink(f".netnsfs/unnamed/{far.name}/links/in", near / "links/out")
    names = {space: f".netnsfs/unnamed/{space.name}" for space in (near, far, alone)}
    assert set(nodes(graph(mnt))) == {"a", "b", names[near]}
    assert {"a/out", f"{names[near]}/in"} in map(set, edges(graph(mnt)))
    # What is connected with one: whatever that is.
    assert set(nodes(graph(mnt, "a"))) == {"a", names[near]}
    assert set(nodes(graph(mnt, "b"))) == {"b"}
    assert set(nodes(graph(mnt, names[far]))) == {names[far], names[near], "a"}
    assert set(nodes(graph(mnt, names[alone]))) == {names[alone]}


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
    assert edges(graph(mnt)) == {("a0/x", "b1/y"), ("a1/x", "b0/y")}
    assert set(nodes(graph(mnt, "a0"))) == {"a0", "b1"}
    for name in names:
        (mnt / name).rmdir()


def read_by(user: int, *paths: Path) -> list[str]:
    command = ["setpriv", f"--reuid={user}", "--clear-groups", "cat"]
    done = (
        subprocess.run([*command, path], check=False, capture_output=True) for path in paths
    )
    return [found.stdout.decode() for found in done]


@pytest.mark.machine
def test_closed_namespaces_are_not_told_of(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    os.symlink("b/links/v1", a / "links/v0")
    a.chmod(0o700)
    paths = [space / "topology.dot" for space in (mnt / ".netnsfs", b, a)]
    everything, around, closed = read_by(NOBODY, *paths)
    for text in (everything, around):
        assert nodes(text) == {"b": ["b", "v1 down"]}
        assert edges(text) == set()
        assert '"a' not in text
        assert "unnamed" not in text
    assert closed == ""
    # To whom it was given, it is no secret; others' closed ones still are.
    os.chown(a, NOBODY, NOBODY)
    (own,) = read_by(NOBODY, a / "topology.dot")
    assert set(nodes(own)) == {"a", "b"}
    b.chmod(0o700)
    (own,) = read_by(NOBODY, a / "topology.dot")
    assert set(nodes(own)) == {"a"}
    assert edges(own) == set()


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
    ends = [
        b'"quoted"/links/a"b',
        b"ends\\/links/c\\",
        b"two\nlines/links/<&>",
        b"\\xff/links/n",
    ]
    for one, other in (ends[:2], ends[2:]):
        os.symlink(one, os.path.join(bytes(mnt.path), other))
    try:
        text = graph(mnt)
        found = nodes(text)
        assert len(found) >= len(NAMES)
        assert len(edges(text)) == 2
        # Nothing but the language is left beside the strings and the labels.
        left = STRING.sub("", re.sub(r"label=<.*> tooltip", "", text))
        assert re.fullmatch(r"[a-z0-9\s{}=:;+\[\].-]*", left, re.IGNORECASE)
        for program in ("dot", "sfdp"):
            picture = drawn(text, program)
            lines = ("".join(line.itertext()) for line in picture.iter(f"{SVG}text"))
            texts = {line.replace("\xa0", " ").strip() for line in lines}
            assert {text_of(name) for name in NAMES} <= texts
            assert {'a"b', "<&>"} <= {line.split()[0] for line in texts}
            # Each edge ends at a row, of which dot(1) complains if it is not there.
            kinds = [group.get("class") for group in picture.iter(f"{SVG}g")]
            assert kinds.count("edge") == 2
    finally:
        for name in NAMES:
            os.rmdir(os.path.join(bytes(mnt.path), name))


# Pictures that one can read


@pytest.fixture
def lab(mnt: Mounted) -> Iterator[Callable[[str], Path]]:
    """Makes namespaces, which are removed in the end."""
    with ExitStack() as stack:

        def make(name: str) -> Path:
            (mnt / name).mkdir()
            stack.callback((mnt / name).rmdir)
            return mnt / name

        yield make


def join(mounted: Mounted, one: str, other: str, address: str = "") -> None:
    """A veth pair between NAME/links/IFACE and another, of which the first has an address."""
    os.symlink(other, mounted / one)
    for end in (one, other):
        (mounted / end / "up").write_text("1")
    if address:
        (mounted / one / "addresses").write_text(f"+{address}\n")


def test_a_star_of_fifty(mnt: Mounted, lab: Callable[[str], Path]) -> None:
    lab("hub")
    ip("-n", "hub", "link", "add", "br0", "up", "type", "bridge")
    for number in range(1, 51):
        lab(f"h{number}")
        address = f"10.0.0.{number}/24"
        join(mnt, f"h{number}/links/eth0", f"hub/links/p{number}", address)
        ip("-n", "hub", "link", "set", f"p{number}", "master", "br0")
    text = graph(mnt)
    assert len(edges(text)) == 50
    lines = {f"eth0 10.0.0.{number}/24" for number in range(1, 51)}
    lines |= {f"p{number}" for number in range(1, 51)}
    require_readable(text, {"hub", *(f"h{number}" for number in range(1, 51))}, lines)


def test_three_routers_in_a_ring(mnt: Mounted, lab: Callable[[str], Path]) -> None:
    names = {"r1", "r2", "r3", "n1", "n2", "n3", "n4"}
    for name in sorted(names):
        lab(name)
    for one, other in ((1, 2), (2, 3), (3, 1)):
        ends = f"r{one}/links/r{other}", f"r{other}/links/r{one}"
        join(mnt, *ends, f"10.1.{one}{other}.{one}/24")
        (mnt / ends[1] / "addresses").write_text(f"+10.1.{one}{other}.{other}/24\n")
    for router, network in ((1, 1), (2, 2), (3, 3), (3, 4)):
        ends = f"n{network}/links/eth0", f"r{router}/links/n{network}"
        join(mnt, *ends, f"10.0.{network}.1/24")
        (mnt / ends[1] / "addresses").write_text(f"+10.0.{network}.254/24\n")
    text = graph(mnt)
    assert len(edges(text)) == 7
    lines = {f"n{network} 10.0.{network}.254/24" for network in range(1, 5)}
    require_readable(text, names, lines | {"r2 10.1.12.1/24", "r1 10.1.31.3/24"})


def test_twenty_pods_behind_a_bridge_of_the_machine(
    mnt: Mounted, lab: Callable[[str], Path], machine: Callable[[], Path]
) -> None:
    host = machine()
    at = ["nsenter", f"--net={host}/ns", "ip"]
    bridge = "link add cni0 up type bridge"
    subprocess.run([*at, *bridge.split()], check=True)
    subprocess.run([*at, *["addr", "add", "10.22.0.1/16", "dev", "cni0"]], check=True)
    unnamed = f".netnsfs/unnamed/{host.name}"
    names = [f"cni-{number * 7919 * 104729 % 2**32:08x}" for number in range(1, 21)]
    for number, name in enumerate(names, 1):
        lab(name)
        ends = f"{name}/links/eth0", f"{unnamed}/links/veth{number:08x}"
        join(mnt, *ends, f"10.22.0.{number + 1}/16")
        port = f"link set veth{number:08x} master cni0"
        subprocess.run([*at, *port.split()], check=True)
    text = graph(mnt)
    assert len(edges(text)) == 20
    lines = {f"eth0 10.22.0.{number + 1}/16" for number in range(1, 21)}
    require_readable(text, {unnamed, *names}, lines | {"veth00000014"})
    assert graph(mnt, names[0]) == text
