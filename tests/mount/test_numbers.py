"""Links from numbers to namespaces: with a name, without one, absent, oddly spelt."""

import os
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import MNT, RUN, Mounted, error_of, nsids, shortage_gives, wait_for
from users import DROP, as_user

from netnsfs import linux
from netnsfs.netns import tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import namespace_of
from netnsfs.permissions import Permissions
from netnsfs.tree.numbers import by_number
from netnsfs.tree.refs import HolderRef

Spawn = Callable[..., subprocess.Popen[bytes]]

pytestmark = pytest.mark.usefixtures("both_ways")

NOBODY = 65534
SO_NETNS_COOKIE = 71
SHORT = {"EMFILE", ""}
KINDS = ("inode", "id", "nsid")


@pytest.fixture
def corner(mnt: Mounted) -> Path:
    return mnt / ".netnsfs"


def own_inode() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def numbers(directory: Path) -> dict[str, str]:
    return {kind: (directory / kind).read_text().strip() for kind in KINDS}


def without_name(spawn: Spawn, corner: Path) -> Path:
    process = spawn("unshare", "--net", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != own_inode())
    inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    return corner / "unnamed" / str(inode)


def test_they_lead_to_names(foo: Path, mnt: Mounted, corner: Path) -> None:
    assert error_of(os.readlink, corner / "nsid/unassigned") == "ENOENT"
    (foo / "nsid").write_text(str(next(nsids)))
    for kind, number in numbers(foo).items():
        link = corner / kind / number
        assert os.readlink(link) == "../../foo"
        assert os.lstat(link).st_size == len("../../foo")
        assert (link / "id").read_text() == (foo / "id").read_text()
        assert os.listdir(corner / kind) == [number]
    # The first of several names, as it is by then.
    (mnt / "a").symlink_to("foo")
    for kind, number in numbers(foo).items():
        assert os.readlink(corner / kind / number) == "../../a"
    (mnt / "a").rmdir()
    foo.rename(mnt / "bar")
    for kind, number in numbers(mnt / "bar").items():
        assert os.readlink(corner / kind / number) == "../../bar"
    gone = numbers(mnt / "bar")
    (mnt / "bar").rmdir()
    # The number of the inode may be another's by now, and this one's end takes a moment.
    assert error_of(os.readlink, corner / "id" / gone["id"]) == "ENOENT"
    wait_for(lambda: error_of(os.readlink, corner / "nsid" / gone["nsid"]) == "ENOENT")


def test_the_cookie_of_a_socket_leads_to_its_namespace(foo: Path, corner: Path) -> None:
    script = (
        "import socket; print(int.from_bytes(socket.socket(socket.AF_UNIX).getsockopt("
        f"socket.SOL_SOCKET, {SO_NETNS_COOKIE}, 8), 'little'))"
    )
    command = ["nsenter", f"--net={foo}/ns", "/usr/bin/python3", "-c", script]
    cookie = subprocess.check_output(command, text=True).strip()
    assert os.readlink(corner / "id" / cookie) == "../../foo"
    with socket.socket(socket.AF_UNIX) as here:
        mine = here.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    number = int.from_bytes(mine, "little")
    assert os.readlink(corner / "id" / str(number)) == f"../unnamed/{own_inode()}"


def test_without_a_name_they_are_for_those_who_may_look(
    mnt: Mounted, corner: Path, spawn: Spawn
) -> None:
    directory = without_name(spawn, corner)
    (directory / "nsid").write_text(str(next(nsids)))
    links = [str(corner / kind / number) for kind, number in numbers(directory).items()]
    for link in links:
        assert os.readlink(link) == f"../unnamed/{directory.name}"
        assert os.path.basename(link) not in os.listdir(os.path.dirname(link))
    lines = [f"os.readlink({link!r})" for link in links]
    assert as_user(NOBODY, NOBODY, *lines) == ["ENOENT"] * 3
    assert as_user(0, 0, *lines, prefix=DROP) == ["ENOENT"] * 3
    directory.rename(mnt / "web")
    assert as_user(NOBODY, NOBODY, *lines) == ["../../web"] * 3
    (mnt / "web").rmdir()


def test_only_a_socket_holds_it(foo: Path, corner: Path, spawn: Spawn) -> None:
    script = (
        "import ctypes, os, socket, sys, time; home = os.open('/proc/self/ns/net', 0);"
        "libc = ctypes.CDLL(None); libc.setns(os.open(sys.argv[1], 0), 0);"
        "kept = socket.socket(); libc.setns(home, 0); print(flush=True); time.sleep(60)"
    )
    path = f"{foo}/ns"
    command = ("/usr/bin/python3", "-c", script, path)
    process = spawn(*command, stdout=subprocess.PIPE, close_fds=True)
    assert process.stdout
    process.stdout.readline()
    found = numbers(foo)
    foo.rmdir()
    for kind in ("inode", "id"):
        assert os.readlink(corner / kind / found[kind]) == f"../unnamed/{found['inode']}"


@pytest.mark.parametrize("kind", KINDS)
def test_odd_spellings(foo: Path, corner: Path, kind: str) -> None:
    (foo / "nsid").write_text(str(next(nsids)))
    number = numbers(foo)[kind]
    odd = (
        *(f"0{number}", f"+{number}", f"-{number}", f" {number}", f"{number} ", f"{number}\n"),
        *(f"{int(number):x}x", "-1", "0x1", "x", "00", "0" * 20, "9" * 20, "9" * 255),
        *("18446744073709551616", "4294967296", "1.0", "\u0661", "self", "unassigned"),
    )
    for name in odd:
        assert error_of(os.lstat, corner / kind / name) == "ENOENT", name
    assert error_of(os.lstat, corner / kind / ("9" * 256)) == "ENAMETOOLONG"
    if kind != "nsid":
        assert error_of(os.lstat, corner / kind / "0") == "ENOENT"
    for call in (os.mkdir, os.rmdir, os.unlink):
        assert error_of(call, corner / kind / number) in ("EPERM", "EEXIST", "ENOTDIR")


def test_init_leads_to_the_initial_namespace(mnt: Mounted, corner: Path) -> None:
    own = own_inode()
    assert os.readlink(corner / "init") == f"unnamed/{own}"
    assert (corner / "init/inode").read_text() == f"{own}\n"
    assert as_user(NOBODY, NOBODY, f"os.readlink('{corner}/init')") == [f"unnamed/{own}"]
    os.symlink("/proc/self/ns/net", mnt / "host")
    assert os.readlink(corner / "init") == "../host"
    assert "init" in os.listdir(corner)
    (mnt / "host").rmdir()


@pytest.mark.parametrize("kind", ["inode", "id"])
@pytest.mark.parametrize("rest", ["", "/ns"])
def test_they_are_targets(
    mnt: Mounted, corner: Path, spawn: Spawn, kind: str, rest: str
) -> None:
    directory = without_name(spawn, corner)
    number = numbers(directory)[kind]
    os.symlink(f".netnsfs/{kind}/{number}{rest}", mnt / "web")
    os.symlink(f"{MNT}/.netnsfs/{kind}/{number}{rest}", mnt / "shop")
    assert numbers(mnt / "web") == numbers(mnt / "shop")
    assert numbers(mnt / "web")[kind] == number
    os.symlink(f".netnsfs/init{rest}", mnt / "host")
    assert (mnt / "host/inode").read_text() == f"{own_inode()}\n"
    for target in (f"{kind}/{number}/x", f"{kind}/0", kind, "init/x", "absent/1"):
        code = error_of(os.symlink, f".netnsfs/{target}", mnt / "new")
        assert code in ("EINVAL", "ENOENT"), target
    for name in ("web", "shop", "host"):
        (mnt / name).rmdir()


def test_a_closed_namespace_is_told_by_no_number(mnt: Mounted, corner: Path) -> None:
    closed = mnt / "closed"
    closed.mkdir(mode=0o700)
    (closed / "nsid").write_text(str(next(nsids)))
    found = numbers(closed)
    lines = [f"os.readlink('{corner}/{kind}/{found[kind]}')" for kind in ("id", "nsid")]
    lines += [f"os.listdir('{corner}/{kind}')" for kind in ("id", "nsid")]
    # User ID 0 without capabilities owns it.
    told = ["../../closed"] * 2 + [[found["id"]], [found["nsid"]]]
    assert as_user(0, 0, *lines) == as_user(0, 0, *lines, prefix=DROP) == told
    assert as_user(NOBODY, NOBODY, *lines) == ["ENOENT"] * 2 + [[], []]
    os.chown(closed, NOBODY, 0)
    assert as_user(NOBODY, NOBODY, *lines) == told
    assert as_user(0, 0, *lines, prefix=DROP) == ["ENOENT"] * 2 + [[], []]
    os.chmod(closed, 0o750)
    assert as_user(0, 0, *lines, prefix=DROP) == told
    closed.rmdir()


def test_what_cannot_be_looked_at_is_not_absent(spawn: Spawn) -> None:
    names = NamedNamespaces(bytes(RUN))
    named, _ = names.create(b"foo")
    process = spawn("unshare", "--net", "sleep", "60")
    path = f"/proc/{process.pid}/ns/net"
    wait_for(lambda: os.stat(path).st_ino != own_inode())
    with linux.closing_fd(os.open(path, os.O_RDONLY)) as fd:
        unnamed = namespace_of(fd)
    _, by_id, _ = by_number(names, Permissions())
    for namespace in (named, unnamed):
        shown = partial(by_id.lookup, b"%d" % namespace.id, Root())
        assert shortage_gives(shown) == SHORT
    assert shortage_gives(lambda: by_id.readdir().index(b"%d" % named.id)) == SHORT
    holder = next(tasks.iter_holders(unnamed.inode))
    ref = HolderRef(names, holder, lambda inode: False)
    assert shortage_gives(partial(ref.require_present, unnamed)) == SHORT
    # The holder has let go, and another is looked for.
    ref = HolderRef(names, holder._replace(path=b"/proc/0/ns/net"), lambda inode: False)
    assert shortage_gives(partial(ref.require_present, unnamed)) == SHORT
    names.remove(b"foo")


class Root:
    pid = os.getpid()
    uid = umask = 0
