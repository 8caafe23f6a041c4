"""links/ of each namespace, with ip-link(8) and /sys in the namespace as the other side."""

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    RUN,
    Mounted,
    Start,
    error_of,
    ip,
    nsids,
    resident,
    shortage_gives,
    wait_for,
)

from netnsfs import linux
from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsid import assign_nsid
from netnsfs.tree.nsid_resolver import NsidResolver

Spawn = Callable[..., subprocess.Popen[bytes]]

ALICE, STAFF, NOBODY = 4711, 4712, 65534


@pytest.fixture
def spaces(mnt: Mounted) -> Iterator[tuple[Path, Path]]:
    """The namespaces a and b."""
    for name in ("a", "b"):
        (mnt / name).mkdir()
    yield mnt / "a", mnt / "b"
    for name in ("a", "b"):
        with suppress(FileNotFoundError):
            (mnt / name).rmdir()


def join(here: Path, there: Path) -> None:
    """Make a veth pair, as `ln -s` does."""
    subprocess.run(
        ["ln", "-s", there.relative_to(there.parents[2]), here],
        check=True,
        capture_output=True,
    )


def told_by_ip(name: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(
        ip("-n", name, "-d", "-j", "-N", "addr", "show").stdout
    )
    return told


def last_error(mounted: Mounted) -> str:
    return (mounted / ".netnsfs" / "last_error").read_text()


def names_in(name: str) -> list[str]:
    return sorted(link["ifname"] for link in told_by_ip(name))


# What is seen


def test_a_directory_for_each_interface(spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    ip("-n", "a", "link", "add", "br0", "type", "bridge")
    ip("-n", "a", "link", "add", "i0", "type", "ifb")
    for space in spaces:
        assert sorted(os.listdir(space / "links")) == names_in(space.name)
    for told in told_by_ip("a"):
        path = a / "links" / told["ifname"]
        kind = told.get("linkinfo", {}).get("info_kind", "loopback")
        assert (path / "kind").read_text() == f"{kind}\n"
        assert (path / "up").read_text() == f"{int('UP' in told['flags'])}\n"
        assert (path / "ifindex").read_text() == f"{told['ifindex']}\n"
        assert (path / "peer").is_symlink() == (kind == "veth")
    for missing in ("nothere", "v1", "a-name-that-is-too-long", ".netnsfs", "lo "):
        assert error_of(os.stat, a / "links" / missing) == "ENOENT"


def test_without_views_there_are_no_links(start: Start) -> None:
    mounted = start("-o", "noviews")
    (mounted / "a").mkdir()
    assert "links" not in os.listdir(mounted / "a")
    assert error_of(os.listdir, mounted / "a/links") == "ENOENT"
    (mounted / "a").rmdir()


def test_keep_devices(start: Start) -> None:
    mounted = start("-o", "keep_devices")
    (mounted / "a").mkdir()
    (mounted / "b").mkdir()
    join(mounted / "a/links/v0", mounted / "b/links/v1")
    ip("-n", "a", "link", "add", "link", "v0", "name", "m0", "type", "macvlan")
    os.rename(mounted / "a/links/m0", mounted / "b/links/m1")
    assert error_of(os.rmdir, mounted / "b") == "EBUSY"
    assert "elsewhere first: m1 (EBUSY), PID" in last_error(mounted)
    assert names_in("b") == ["lo", "m1", "v1"]
    os.rename(mounted / "b/links/m1", mounted / "a/links/m0")
    (mounted / "b").rmdir()
    (mounted / "a").rmdir()
    # Hardware in the initial namespace has not been moved.
    ip("netns", "attach", "own", str(os.getpid()))
    (RUN / "stale").touch()
    (mounted / "own").rmdir()
    (mounted / "stale").rmdir()


# What is changed


def test_up_and_addresses(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    lo = spaces[0] / "links/lo"
    for text, expected in (("1\n", "1\n"), ("1", "1\n"), ("0\n", "0\n"), ("1", "1\n")):
        (lo / "up").write_text(text)
        assert (lo / "up").read_text() == expected
    subprocess.run(f"echo +10.0.0.1/24 +fd00::1/64 > {lo}/addresses", shell=True, check=True)
    assert (lo / "addresses").read_text().split() == [
        f"{address['local']}/{address['prefixlen']}"
        for address in told_by_ip("a")[0]["addr_info"]
    ]
    before = (lo / "addresses").read_text()
    for bad in ("nonsense", "10.0.0.2/24", "+10.0.0.2", "+10.0.0.2/24 +10.0.0.1/24", ""):
        expected = "EEXIST" if bad.endswith("0.1/24") else "EINVAL"
        if bad:
            assert error_of((lo / "addresses").write_text, bad) == expected
            assert "10.0.0.1/24 is there already" in last_error(mnt) or (
                "expected +ADDRESS/LENGTH or -ADDRESS/LENGTH" in last_error(mnt)
            )
        assert (lo / "addresses").read_text() == before
    for bad in ("2", "yes", "-1", "1 1"):
        assert error_of((lo / "up").write_text, bad) == "EINVAL"
        assert "expected 0 or 1" in last_error(mnt)
    assert error_of((lo / "kind").write_text, "veth") == "EACCES"


def test_move_and_rename(spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", a / "links/v1")
    held = os.open(a / "links/v0", os.O_RDONLY)
    subprocess.run(["mv", a / "links/v0", b / "links/w0"], check=True)
    assert (names_in("a"), names_in("b")) == (["lo", "v1"], ["lo", "w0"])
    assert os.readlink(a / "links/v1/peer") == "../../../b/links/w0"
    assert error_of(os.stat, a / "links/v0") == "ENOENT"
    assert error_of(lambda: os.open("up", os.O_RDONLY, dir_fd=held)) in ("ENOENT", "ESTALE")
    os.close(held)
    subprocess.run(["mv", b / "links/w0", a / "links/w0"], check=True)
    os.rename(a / "links/w0", a / "links/v0")
    assert os.readlink(a / "links/v1/peer") == "../../../a/links/v0"
    assert names_in("a") == ["lo", "v0", "v1"]


def test_nothing_is_replaced(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    for function, arguments, code in (
        (os.rename, (a / "links/v0", b / "links/v1"), "EEXIST"),
        (os.rename, (a / "links/v0", a / "links/lo"), "EEXIST"),
        (os.rename, (a / "links/v0", a / "links/sixteen-bytes-ab"), "ENAMETOOLONG"),
        (os.rename, (a / "links/v0", b / "links/per%d"), "EINVAL"),
        (os.rename, (a / "links/v0", b / "links/a b"), "EINVAL"),
        (os.rename, (a / "links/lo", b / "links/new"), "EINVAL"),
        (os.rename, (a / "links/v0", b / "new"), "EPERM"),
        (os.rename, (a / "links/v0", mnt / "new"), "EPERM"),
        (os.rename, (a, b / "links/new"), "EPERM"),
        (os.rename, (a / "links/v0/statistics", b / "links/new"), "EPERM"),
        (os.symlink, ("b/links/v2", a / "links/v0"), "EEXIST"),
        (os.symlink, ("b/links/v1", a / "links/new"), "EEXIST"),
        (os.symlink, ("c/links/v1", a / "links/new"), "ENOENT"),
        (os.symlink, ("b/links", a / "links/new"), "EINVAL"),
        (os.symlink, ("b", a / "links/new"), "EINVAL"),
        (os.symlink, ("/proc/self/ns/net", a / "links/new"), "EINVAL"),
        (os.symlink, ("../../../../etc/links/x", a / "links/new"), "EINVAL"),
        (os.symlink, ("b/links/per%d", a / "links/new"), "EINVAL"),
        (os.symlink, ("b/links/sixteen-bytes-ab", a / "links/new"), "ENAMETOOLONG"),
        (os.symlink, ("a/links/new", a / "links/new"), "EEXIST"),
        (os.rmdir, (a / "links/lo",), "ENOTSUP"),
        (os.rmdir, (a / "links/nothere",), "ENOENT"),
        (os.rmdir, (a / "links",), "EPERM"),
        (os.rmdir, (a / "links/v0/statistics",), "EPERM"),
        (os.mkdir, (a / "links/v0",), "EEXIST"),
        (os.mkdir, (a / "links/per%d",), "EINVAL"),
        (os.mkdir, (a / "links/sixteen-bytes-ab",), "ENAMETOOLONG"),
        (os.symlink, ("../lo", a / "links/v0/new"), "EPERM"),
        (os.symlink, ("lo", a / "links/v0/master"), "ENOTSUP"),
        (os.symlink, ("../nothere", a / "links/v0/master"), "ENOENT"),
        (os.symlink, ("b/links/v1", a / "links/v0/master"), "EINVAL"),
        (os.symlink, ("../../../b/links/v1", a / "links/v0/master"), "EINVAL"),
        (os.symlink, ("../statistics", a / "links/v0/statistics/master"), "EPERM"),
        (os.unlink, (a / "links/v0/master",), "ENOENT"),
        (os.mkdir, (a / "links/v0/new",), "EPERM"),
        (os.unlink, (a / "links/v0/up",), "EPERM"),
        (os.unlink, (a / "links/v0/peer",), "EPERM"),
        (os.chmod, (a / "links", 0o777), "EPERM"),
        (os.chmod, (a / "links/v0", 0o777), "EPERM"),
        (os.chmod, (a / "links/v0/up", 0o666), "EPERM"),
    ):
        assert error_of(function, *arguments) == code, (function, arguments)
        assert (names_in("a"), names_in("b")) == (["lo", "v0"], ["lo", "v1"])
    assert sorted(os.listdir(mnt.path)) == ["a", "b"]


def test_ways_to_say_where_the_other_end_is(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    for target in ("b/links/y", f"{b}/links/y", "../../b/links/y", "./b//links/y"):
        os.symlink(target, a / "links/x")
        assert (a / "links/x/peer").resolve() == b / "links/y"
        (b / "links/y").rmdir()
        assert names_in("a") == ["lo"]


def test_the_other_end_by_a_link_of_the_corner(spaces: tuple[Path, Path], spawn: Spawn) -> None:
    a, b = spaces
    pid = spawn("nsenter", f"--net={b}/ns", "sleep", "100").pid
    wait_for(lambda: (b / "pids").read_text() == f"{pid}\n")
    for way in (
        f"inode/{(b / 'inode').read_text().strip()}",
        f"id/{(b / 'id').read_text().strip()}",
        f"pid/{pid}",
    ):
        os.symlink(f".netnsfs/{way}/links/y", a / "links/x")
        assert os.readlink(a / "links/x/peer") == "../../../b/links/y"
        (a / "links/x").rmdir()
    for wrong in ("inode/1", f"id/{2**63}", "pid/0", "nsid/x", "nothing", "unnamed"):
        way = f".netnsfs/{wrong}/links/y"
        assert error_of(os.symlink, way, a / "links/x") == "ENOENT", wrong
    assert names_in("a") == names_in("b") == ["lo"]


@pytest.mark.machine
def test_a_pair_to_the_initial_namespace(mnt: Mounted, foo: Path) -> None:
    os.symlink(".netnsfs/init/links/nfs9", foo / "links/out")
    try:
        assert (foo / "links/out/peer").samefile(mnt / ".netnsfs/init/links/nfs9")
    finally:
        (foo / "links/out").rmdir()


def test_a_pair_to_a_namespace_without_a_name(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    process = spawn("unshare", "-n", "sleep", "100")
    own = os.readlink("/proc/self/ns/net")
    wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
    inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    unnamed = mnt / f".netnsfs/unnamed/{inode}/links"
    os.symlink(unnamed / "in", foo / "links/out")
    assert (foo / "links/out/peer").resolve() == unnamed / "in"
    assert (unnamed / "in/peer").resolve() == foo / "links/out"
    os.rename(unnamed / "in", foo / "links/back")
    os.rename(foo / "links/back", unnamed / "in")
    os.rename(unnamed.parent, mnt / "named")
    assert (foo / "links/out/peer").resolve() == mnt / "named/links/in"
    (mnt / "named").rmdir()
    assert (foo / "links/out/peer").resolve() == unnamed / "in"


@pytest.mark.parametrize("has_name", [True, False])
def test_the_namespace_of_an_nsid_is_not_unknown_for_want_of_descriptors(
    spawn: Spawn, has_name: bool
) -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    process = spawn("unshare", "-n", "sleep", "100")
    path = f"/proc/{process.pid}/ns/net"
    wait_for(lambda: os.stat(path).st_ino != own)
    names, number = NamedNamespaces(bytes(RUN)), next(nsids)
    with linux.closing_fd(os.open(path, os.O_RDONLY)) as fd:
        assign_nsid(fd, b"%d" % number)
        if has_name:
            names.attach(b"foo", fd)
    seen: list[bytes | None] = []
    with RouteSocket() as route:
        ask = partial(NsidResolver(names).find_path, own, route, number)
        assert shortage_gives(lambda: seen.append(ask())) == {"EMFILE", ""}
    unnamed = b".netnsfs/unnamed/%d" % os.stat(path).st_ino
    assert seen == [b"foo" if has_name else unnamed]
    if has_name:
        names.remove(b"foo")


def test_the_other_end_in_a_namespace_that_nothing_shows(mnt: Mounted, foo: Path) -> None:
    """Only an interface of it is seen, from foo; the daemon must say so, and not hang."""
    ip("netns", "add", "hidden")
    os.symlink("hidden/links/in", foo / "links/out")
    keeper = subprocess.Popen(
        ["ip", "netns", "exec", "hidden", sys.executable, "-c", KEEP], stdout=subprocess.PIPE
    )
    assert keeper.stdout
    assert keeper.stdout.readline() == b"ready\n"
    ip("netns", "del", "hidden")
    peer = os.readlink(foo / "links/out/peer")
    if ".netnsfs/unnamed/unknown" in peer:
        assert "the daemon cannot see" in last_error(mnt)
    else:
        assert (foo / "links/out/peer").resolve().name == "in"
    keeper.kill()
    keeper.wait()
    keeper.stdout.close()


KEEP = """
import time
print("ready", flush=True)
time.sleep(100)
"""


def test_open_files_of_what_is_gone(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(a / "links/v0" / name, "r+b", 0))
            for name in ("mtu", "up", "addresses")
        ]
        (a / "links/v0").rmdir()
        join(a / "links/v0", b / "links/v1")
        for file, text in zip(files, (b"1400", b"1", b"+10.0.0.1/24"), strict=True):
            # What was read at open may be had once more.
            error_of(os.pread, file.fileno(), 10, 0)
            assert error_of(os.pread, file.fileno(), 10, 0) == "ENODEV"
            assert error_of(file.write, text) == "ENODEV"
    assert (a / "links/v0/up").read_text() == "0\n"
    assert (a / "links/v0/addresses").read_text() == ""
    assert (a / "links/v0/mtu").read_text() == "1500\n"


def test_an_open_file_does_not_keep_a_namespace(
    mnt: Mounted, spaces: tuple[Path, Path]
) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    with (
        open(a / "links/v0/mtu", "r+b", 0) as mtu,
        open(a / "links/v0/up", "rb", 0),
        open(a / "links/lo/addresses", "rb", 0) as addresses,
    ):
        a.rmdir()
        wait_for(lambda: names_in("b") == ["lo"])
        for file in (mtu, addresses):
            error_of(os.pread, file.fileno(), 10, 0)
            assert error_of(os.pread, file.fileno(), 10, 0) == "ENODEV"
        assert error_of(mtu.write, b"1400") == "ENODEV"


def test_addresses_that_cannot_be_used_yet(spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    for space, name in ((a, "v0"), (b, "v1")):
        (space / "links" / name / "up").write_text("1\n")
    wait_for(lambda: (a / "links/v0/operstate").read_text() == "up\n")
    mine, theirs = a / "links/v0/addresses", b / "links/v1/addresses"
    mine.write_text("+fd00::1/64\n")
    assert "fd00::1/64 tentative\n" in mine.read_text()
    wait_for(lambda: "tentative" not in mine.read_text())
    theirs.write_text("+fd00::1/64 tentative +10.0.0.1/24\n")
    wait_for(lambda: "fd00::1/64 dadfailed\n" in theirs.read_text())
    assert error_of(theirs.write_text, "dadfailed\n") == "EINVAL"
    # What is read can be written, cut at each byte.
    shown = theirs.read_text()
    for sign in "-+":
        command = "".join(f"{sign}{line}\n" for line in shown.splitlines()).encode()
        at = command.index(b"dadf") + 4
        fd = os.open(theirs, os.O_WRONLY)
        assert os.write(fd, command[:at]) + os.write(fd, command[at:]) == len(command)
        os.close(fd)
        assert ("fd00::1/64" in theirs.read_text()) == (sign == "+")
    assert {line.split()[0] for line in theirs.read_text().splitlines()} == {
        line.split()[0] for line in shown.splitlines()
    }


@pytest.mark.parametrize("target", ["br0", "../br0", "a/links/br0", "{a}/links/br0"])
def test_a_bridge_and_its_ports(mnt: Mounted, spaces: tuple[Path, Path], target: str) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    (a / "links/br0").mkdir()
    assert (a / "links/br0/kind").read_text() == "bridge\n"
    assert (a / "links/br0/up").read_text() == "0\n"
    run = partial(subprocess.run, cwd=mnt.path, capture_output=True)
    link = ["ln", "-s", target.format(a=a), "a/links/v0/master"]
    run(link, check=True)
    port = next(told for told in told_by_ip("a") if told["ifname"] == "v0")
    assert port["master"] == "br0"
    assert os.readlink(a / "links/v0/master") == "../br0"
    assert os.listdir(a / "links/br0/brif") == ["v0"]
    # In a shell, what is a link to a directory is that directory.
    assert run(link, check=False).returncode == 1
    assert error_of(os.symlink, target.format(a=a), a / "links/v0/master") == "EEXIST"
    for options in ("-sT", "-sfn", "-sf"):
        assert run(["ln", options, *link[2:]], check=False).returncode == 1, options
        assert os.listdir(a / "links/br0/brif") == ["v0"]
        assert names_in("a") == ["br0", "lo", "v0"]
    run(["rm", "a/links/v0/master"], check=True)
    assert os.listdir(a / "links/br0/brif") == []
    assert error_of(os.readlink, a / "links/v0/master") == "ENOENT"
    (a / "links/br0").rmdir()
    assert names_in("a") == ["lo", "v0"]


def test_the_kernel_says_why(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, _ = spaces
    (a / "links/br0").mkdir()
    (a / "links/br1").mkdir()
    assert error_of(os.symlink, "br0", a / "links/br1/master") in ("ELOOP", "EINVAL")
    assert "bridge" in last_error(mnt)


def test_the_hardware_address_is_written(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    file = a / "links/v0/address"
    for text in ("02:00:00:00:00:01", "02:00:00:00:00:0A\n"):
        file.write_text(text)
        assert file.read_text() == text.strip().lower() + "\n"
    assert (a / "links/lo/address").read_text() == "00:00:00:00:00:00\n"
    before = file.read_text()
    for bad in ("2:0:0:0:0:1", "02:00:00:00:00", "02:00:00:00:00:01:01", "x", "\n", "02-00"):
        assert error_of(file.write_text, bad) == "EINVAL", bad
        assert "hardware address of 6 bytes" in last_error(mnt)
    assert error_of(file.write_text, "01:00:00:00:00:01") == "EADDRNOTAVAIL"
    assert file.read_text() == before
    for at in range(1, 17):
        fd = os.open(file, os.O_WRONLY)
        wanted = b"02:00:00:00:01:%02x" % at
        assert os.write(fd, wanted[:at]) + os.write(fd, wanted[at:]) == 17
        os.close(fd)
        assert file.read_bytes() == wanted + b"\n"


def test_each_refusal_says_its_rule(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    join(a / "links/v1", a / "links/w1")
    shell = ["sh", "-c"]
    for line, reason in (
        ("mkdir a/sub", "made at the top, and bridges in links"),
        ("rmdir a/links/v0/queues", "only namespaces at the top and interfaces"),
        ("mv a b", "not into a directory: see mv -T"),
        ("mv -f a b", "not into a directory: see mv -T"),
        ("mv -fT a b", "EEXIST"),
        ("mv a/links/v1 b/links/v1", "not into it: see mv -T"),
        ("mv -f a/links/v1 b/links/v1", "not into it: see mv -T"),
        ("mv -T a/links/v1 b/links/v1", "EEXIST"),
        ("mv a/pids a/x", "only names at the top and interfaces in links are moved"),
        ("ln -s b/links/x a/links/v0", "made at the top, in links and as links/IFACE/master"),
        ("ln -sf b/links/x a/links/v0", "made at the top, in links and as links/IFACE/master"),
        ("ln -s ../br0 a/links/v0/up2", "links/IFACE/master"),
        ("ln a/pids a/x", "no file can be made here"),
        ("mknod a/x p", "no file can be made here"),
        ("rmdir a/links/lo", "lo cannot be deleted"),
        ("echo 1 > a/sysctl/ipv4/ip_forwardd", "the kernel has no such file"),
        ("echo 1 > a/links/v0/mtuu", "no file can be made here"),
        ("touch zz", "mkdir makes a namespace"),
        ("touch a/x", "no file can be made here"),
        ("touch a/pids", "its times cannot be set"),
        ("truncate -s 5 a/links/lo/up", "its size cannot be set"),
        ("rm a/pids", "rmdir removes the whole namespace"),
        ("rm -r a", "rmdir removes the whole namespace"),
        ("echo x > a/inode", "the file is read-only"),
        ("echo x > a/sysctl/ipv4/ip_forward", "write ip_forward: Invalid argument"),
        ("echo x > a/links/lo/mtu", "write mtu: Invalid argument"),
        ("chmod 777 a/pids", "its mode and owner cannot be changed"),
        (f"mkdir {'x' * 256}", "a name has at most 255 bytes"),
    ):  # fmt: skip
        done = subprocess.run([*shell, line], check=False, cwd=mnt.path, capture_output=True)
        assert done.returncode != 0, line
        assert reason in last_error(mnt), line
        assert (names_in("a"), names_in("b")) == (["lo", "v0", "v1", "w1"], ["lo", "v1"])
        assert sorted(os.listdir(mnt.path)) == ["a", "b"]


# Who may

TRY = """
import errno, json, os, sys
uid, gid, group = map(int, sys.argv[1:4])
if uid:
    os.setgroups([group] if group else [])
    os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
def write(path, text):
    with open(path, "wb", 0) as file:
        file.write(text.encode())
results = []
for line in sys.argv[4].splitlines():
    try:
        value = eval(line, {"os": os, "write": write})
        results.append("" if value is None else value)
    except OSError as error:
        results.append(errno.errorcode[error.errno])
print(json.dumps(results))
"""


def as_user(
    uid: int, gid: int, *lines: str, group: int = 0, prefix: Sequence[str] = ()
) -> list[object]:
    command = [
        *prefix,
        "/usr/bin/python3",
        "-c",
        TRY,
        str(uid),
        str(gid),
        str(group),
        "\n".join(lines),
    ]
    done = subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60)
    found: list[object] = json.loads(done.stdout)
    return found


def operations(a: Path, b: Path) -> list[str]:
    return [
        f"write('{a}/links/lo/up', '1')",
        f"write('{a}/links/lo/addresses', '+10.0.0.1/24')",
        f"write('{a}/links/lo/mtu', '9000')",
        f"os.symlink('{a}/links/w1', '{a}/links/w0')",
        f"os.rename('{a}/links/w0', '{a}/links/w2')",
        f"os.rmdir('{a}/links/w1')",
        f"os.symlink('{b}/links/x1', '{a}/links/x0')",
        f"os.rename('{a}/links/x0', '{b}/links/x0')",
        f"os.rename('{b}/links/x0', '{a}/links/x0')",
        f"os.rmdir('{b}/links/x1')",
    ]


@pytest.mark.machine
def test_the_name_of_a_peer_in_a_closed_namespace(
    mnt: Mounted, spaces: tuple[Path, Path]
) -> None:
    a, b = spaces
    join(a / "links/v0", b / "links/v1")
    b.chmod(0o750)
    os.chown(b, ALICE, STAFF)
    ask = f"os.readlink('{a}/links/v0/peer')"
    whole, without = "../../../b/links/v1", "../../../b/links/unknown"
    assert as_user(ALICE, ALICE, ask) == as_user(0, 0, ask) == [whole]
    assert as_user(NOBODY, NOBODY, ask, group=STAFF) == [whole]
    assert as_user(NOBODY, NOBODY, ask) == [without]
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    assert as_user(0, 0, ask, prefix=bare) == [without]
    # A listing hands nodes to the kernel too.
    listing = (
        f"len([entry.stat(follow_symlinks=False) for entry in os.scandir('{a}/links/v0')])"
    )
    assert as_user(0, 0, listing, ask)[1] == whole
    assert as_user(NOBODY, NOBODY, listing, ask)[1] == without
    b.chmod(0o755)
    assert as_user(NOBODY, NOBODY, ask) == [whole]
    # What has no name is root's.
    os.symlink(".netnsfs/init/links/nfs9", a / "links/out")
    ask = f"os.readlink('{a}/links/out/peer')"
    assert str(as_user(NOBODY, NOBODY, ask)[0]).endswith("/links/unknown")
    assert str(as_user(0, 0, ask)[0]).endswith("/links/nfs9")
    (a / "links/out").rmdir()


def operations_inside(a: Path) -> list[str]:
    """What concerns one namespace: a bridge, its port, and hardware addresses."""
    return [
        f"os.mkdir('{a}/links/br9')",
        f"os.symlink('br9', '{a}/links/w0/master')",
        f"os.symlink('br9', '{a}/links/w1/master')",
        f"os.unlink('{a}/links/w0/master')",
        f"write('{a}/links/w0/address', '02:00:00:00:00:99')",
        f"write('{a}/links/w0/address', '02:00:00:00:00:98\\n')",
        f"os.rmdir('{a}/links/br9')",
    ]


@pytest.mark.machine
@pytest.mark.parametrize("who", ["root", "owner", "group", "other", "nobody"])
def test_who_may_change_what_is_inside(spaces: tuple[Path, Path], who: str) -> None:
    """By delegation of this namespace, not of another."""
    a, b = spaces
    join(a / "links/w0", b / "links/w1")
    join(a / "links/w1", b / "links/w0")
    given = b if who == "other" else a
    os.chown(given, 0 if who == "group" else ALICE, STAFF)
    given.chmod(0o775 if who == "group" else 0o755)
    uid = {"root": 0, "nobody": NOBODY}.get(who, ALICE)
    group = STAFF if who in ("group", "nobody") else 0
    results = as_user(uid, uid, *operations_inside(a), group=group)
    if who in ("other", "nobody"):
        assert results == ["EACCES", "EACCES", "EACCES", "ENOENT", "EACCES", "EACCES", "ENOENT"]
        assert names_in("a") == ["lo", "w0", "w1"]
    else:
        assert results == [""] * 7
        assert (a / "links/w0/address").read_text() == "02:00:00:00:00:98\n"


@pytest.mark.machine
@pytest.mark.parametrize("group", [0, STAFF])
def test_who_has_both_namespaces(spaces: tuple[Path, Path], group: int) -> None:
    """As owner, and as a member of the group."""
    a, b = spaces
    for space in spaces:
        os.chown(space, 0 if group else ALICE, group or 0)
        space.chmod(0o775)
    assert as_user(ALICE, ALICE, *operations(a, b), group=group) == [""] * 10
    assert names_in("a") == names_in("b") == ["lo"]


@pytest.mark.machine
def test_who_has_one_of_them(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    """The other is root's."""
    a, b = spaces
    os.chown(a, ALICE, ALICE)
    results = as_user(
        ALICE, ALICE, *operations(a, b), f"os.symlink('{a}/links/y0', '{b}/links/y1')"
    )
    # Where the end in b would be, the kernel finds nothing.
    assert results == [""] * 6 + ["EACCES", "ENOENT", "ENOENT", "ENOENT", "EACCES"]
    join(a / "links/x0", b / "links/x1")
    moves = [
        f"os.rename('{a}/links/x0', '{b}/links/new')",
        f"os.rename('{b}/links/x1', '{a}/links/new')",
    ]
    assert as_user(ALICE, ALICE, *moves) == ["EACCES", "EACCES"]
    assert names_in("a") == ["lo", "x0"]
    assert names_in("b") == ["lo", "x1"]


@pytest.mark.machine
def test_who_has_neither(spaces: tuple[Path, Path]) -> None:
    a, b = spaces
    join(a / "links/w0", a / "links/w1")
    join(a / "links/x0", b / "links/x1")
    refused = ["EACCES"] * 3 + ["EEXIST"] + ["EACCES"] * 2 + ["EEXIST", "EACCES"]
    refused += ["ENOENT", "EACCES"]
    assert as_user(NOBODY, NOBODY, *operations(a, b)) == refused
    for space in spaces:
        os.chown(space, ALICE, STAFF)
        space.chmod(0o755)
    assert as_user(NOBODY, NOBODY, *operations(a, b), group=STAFF) == refused


@pytest.mark.machine
def test_who_may_only_make_namespaces(start: Start) -> None:
    mounted = start("-o", f"gid={STAFF},dmask=002")
    a, b = mounted / "a", mounted / "b"
    made = as_user(ALICE, ALICE, f"os.mkdir('{a}')", f"os.mkdir('{b}')", group=STAFF)
    assert made == [""] * 2
    join(a / "links/x0", b / "links/x1")
    join(a / "links/w0", a / "links/w1")
    refused = as_user(ALICE, ALICE, *operations(a, b), group=STAFF)
    assert set(refused) <= {"EACCES", "EEXIST", "ENOENT"}
    assert names_in("a") == ["lo", "w0", "w1", "x0"]
    b.rmdir()
    a.rmdir()


@pytest.mark.machine
def test_without_a_name_it_takes_a_capability(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    """A root that has none, as in a container that has the mount."""
    process = spawn("unshare", "-n", "sleep", "100")
    own = os.readlink("/proc/self/ns/net")
    wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
    unnamed = mnt / f".netnsfs/unnamed/{os.stat(f'/proc/{process.pid}/ns/net').st_ino}/links"
    os.symlink(unnamed / "in", foo / "links/out")
    join(foo / "links/w0", foo / "links/w1")
    lines = [
        f"write('{unnamed}/lo/up', '1')",
        f"write('{unnamed}/lo/mtu', '9000')",
        f"os.rmdir('{unnamed}/in')",
        f"os.rename('{unnamed}/in', '{foo}/links/new')",
        f"os.rename('{foo}/links/w0', '{unnamed}/new')",
        f"os.rename('{unnamed}/in', '{unnamed}/new')",
        f"os.symlink('{foo}/links/x', '{unnamed}/x')",
        f"os.symlink('{unnamed}/x', '{foo}/links/x')",
        f"write('{foo}/links/lo/up', '1')",
        f"os.mkdir('{unnamed}/br9')",
        f"os.symlink('br9', '{unnamed}/lo/master')",
    ]
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    assert as_user(0, 0, *lines, prefix=bare) == ["EACCES"] * 8 + [""] + ["EACCES"] * 2
    results = [""] * 2 + ["", "ENOENT", "", "ENOENT", "", "EEXIST", "", "", "EINVAL"]
    assert as_user(0, 0, *lines) == results


@pytest.mark.machine
def test_out_of_the_initial_namespace_only_root_moves(mnt: Mounted, foo: Path) -> None:
    ip("netns", "attach", "own", str(os.getpid()))
    os.chown(mnt / "own", ALICE, ALICE)
    os.chown(foo, ALICE, ALICE)
    try:
        (line,) = as_user(
            ALICE, ALICE, f"os.symlink('{foo}/links/nfs1', '{mnt.path}/own/links/nfs0')"
        )
        assert line == ""
        (line,) = as_user(
            ALICE, ALICE, f"os.rename('{mnt.path}/own/links/nfs0', '{foo}/links/nfs0')"
        )
        assert line == "EPERM"
        assert "initial network namespace" in last_error(mnt)
        os.rename(mnt / "own/links/nfs0", foo / "links/nfs0")
        assert names_in("foo") == ["lo", "nfs0", "nfs1"]
    finally:
        (mnt / "own").rmdir()


# The whole


REACH = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[1] == "answer":
    server.bind(("", 7))
    print("ready", flush=True)
    data, sender = server.recvfrom(100)
    server.sendto(data.upper(), sender)
else:
    server.settimeout(10)
    server.sendto(b"ping", (sys.argv[2], 7))
    print(server.recv(100).decode())
"""


LAB = """
    mkdir left router right
    ln -s router/links/left left/links/eth0
    ln -s router/links/right right/links/eth0
    for up in */links/*/up; do echo 1 > $up; done
    echo +10.0.1.1/24 > left/links/eth0/addresses
    echo +10.0.1.254/24 > router/links/left/addresses
    echo +10.0.2.254/24 > router/links/right/addresses
    echo +10.0.2.1/24 > right/links/eth0/addresses
    echo 1 > router/sysctl/ipv4/ip_forward
    echo +default via 10.0.1.254 > left/routes
    echo +default via 10.0.2.254 > right/routes
    readlink left/links/eth0/peer
"""


def test_a_lab_by_files_alone(mnt: Mounted) -> None:
    """Two namespaces and a router between them, and an interface that moves there and back."""
    shell = ["sh", "-e", "-c"]
    done = subprocess.run([*shell, LAB], check=True, cwd=mnt.path, capture_output=True)
    assert done.stdout == b"../../../router/links/left\n"
    enter = ["ip", "netns", "exec"]
    with subprocess.Popen(
        [*enter, "right", sys.executable, "-c", REACH, "answer"], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        ask = [*enter, "left", sys.executable, "-c", REACH, "ask", "10.0.2.1"]
        assert subprocess.run(ask, check=True, capture_output=True).stdout == b"PING\n"
    assert os.readlink(mnt / "left/links/eth0/peer") == "../../../router/links/left"
    there_and_back = """
        mv left/links/eth0 right/links/visitor
        readlink router/links/left/peer
        mv right/links/visitor left/links/eth0
        rmdir left/links/eth0 router/links/right
        ls left/links router/links right/links
        rmdir left router right
    """
    done = subprocess.run(
        [*shell, there_and_back], check=True, cwd=mnt.path, capture_output=True
    )
    assert done.stdout.split(b"\n")[0] == b"../../../right/links/visitor"
    assert done.stdout.split()[1:] == b"left/links: lo right/links: lo router/links: lo".split()


def test_peers_of_a_random_topology(mnt: Mounted) -> None:
    """50 namespaces and 200 veth pairs, against ip."""
    choice = random.Random(18)
    names = [f"n{number}" for number in range(50)]
    for name in names:
        (mnt / name).mkdir()
    try:
        for number in range(200):
            here, there = choice.choice(names), choice.choice(names)
            os.symlink(f"{there}/links/b{number}", mnt / here / f"links/a{number}")
        for _ in range(100):
            name, there = choice.choice(names), choice.choice(names)
            moving = choice.choice(os.listdir(mnt / name / "links"))
            if moving != "lo" and there != name:
                os.rename(mnt / name / "links" / moving, mnt / there / "links" / moving)
        at = {link["ifname"]: (name, link) for name in names for link in told_by_ip(name)}
        inodes = {name: os.stat(RUN / name).st_ino for name in names}
        assert len(inodes) == 50
        for number in range(200):
            ends = (f"a{number}", f"b{number}")
            for mine, other in (ends, ends[::-1]):
                (name, link), (there, peer) = at[mine], at[other]
                expected = f"../../../{there}/links/{other}"
                assert os.readlink(mnt / name / "links" / mine / "peer") == expected
                assert link.get("link_index", peer["ifindex"]) == peer["ifindex"]
    finally:
        for name in names:
            (mnt / name).rmdir()


def test_a_storm_loses_nothing(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    """Our mv against `ip link set netns`, while a third reads: each interface in one place."""
    a, _ = spaces
    for number in range(3):
        join(a / f"links/v{number}", a / f"links/w{number}")
    macs = {link["address"] for link in told_by_ip("a")}
    end = time.monotonic() + 5
    expected = {errno.ENOENT, errno.EEXIST, errno.ENODEV, errno.ESTALE, errno.EIO}
    wrong: list[BaseException] = []
    moved = [0]

    def repeat(action: Callable[[random.Random], object], seed: int) -> None:
        choice = random.Random(seed)
        while time.monotonic() < end:
            try:
                action(choice)
            except OSError as error:
                if error.errno not in expected:
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    def move(choice: random.Random) -> None:
        here, there = choice.sample(spaces, 2)
        name = f"{choice.choice('vwn')}{choice.randrange(3)}"
        new = choice.choice([name, f"n{choice.randrange(3)}"])
        os.rename(here / "links" / name, there / "links" / new)
        moved[0] += 1

    def move_by_ip(choice: random.Random) -> None:
        here, there = choice.sample(["a", "b"], 2)
        name = f"{choice.choice('vwn')}{choice.randrange(3)}"
        ip("-n", here, "link", "set", name, "netns", there, check=False)

    def read(choice: random.Random) -> None:
        space = choice.choice(spaces)
        for name in os.listdir(space / "links"):
            with suppress(FileNotFoundError):
                os.readlink(space / "links" / name / "peer")
            (space / "links" / name / "up").read_text()

    actions = [move, move, move_by_ip, move_by_ip, read]
    threads = [
        threading.Thread(target=repeat, args=(action, seed))
        for seed, action in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert moved[0] > 10
    found = [link["address"] for name in ("a", "b") for link in told_by_ip(name)]
    assert sorted(found) == sorted([*macs, "00:00:00:00:00:00"])


def write_there(path: Path, text: str) -> None:
    """Write what a file of that name is to be told, and make none."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class Storm:
    """All that changes interfaces, by files and by ip, in two namespaces at once."""

    EXPECTED = frozenset(
        {
            errno.ENOENT,
            errno.ENODEV,
            errno.EEXIST,
            errno.ESTALE,
            errno.EIO,
            # An address is there already, or not there; a dump was interrupted too often.
            errno.EADDRNOTAVAIL,
            errno.EAGAIN,
        }
    )

    def __init__(self, spaces: tuple[Path, Path]) -> None:
        self.spaces = spaces
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, seconds: float) -> None:
        actions = [self.move, self.port, self.address, self.hardware, self.bridge, self.pair]
        actions += [self.by_ip, self.by_ip, self.read]
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._repeat, args=(action, seed, end))
            for seed, action in enumerate(actions)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _repeat(self, action: Callable[[random.Random], object], seed: int, end: float) -> None:
        choice = random.Random(seed)
        while time.monotonic() < end:
            try:
                action(choice)
                self.done[action.__name__] += 1
            except OSError as error:
                if error.errno not in self.EXPECTED:
                    self.wrong.append(f"{action.__name__}: {error!r} {error.filename}")
            except BaseException as error:
                self.wrong.append(f"{action.__name__}: {error!r}")

    def any_link(self, choice: random.Random) -> Path:
        name = f"{choice.choice('vwn')}{choice.randrange(3)}"
        return choice.choice(self.spaces) / "links" / name

    def move(self, choice: random.Random) -> None:
        os.rename(self.any_link(choice), self.any_link(choice))

    def port(self, choice: random.Random) -> None:
        link = self.any_link(choice) / "master"
        if choice.random() < 0.6:
            os.symlink(f"br{choice.randrange(3)}", link)
        else:
            link.unlink()

    def address(self, choice: random.Random) -> None:
        sign, host = choice.choice("+-"), choice.randrange(1, 9)
        file = self.any_link(choice) / "addresses"
        write_there(file, f"{sign}10.0.0.{host}/24 {sign}10.1.0.{host}/24\n")

    def hardware(self, choice: random.Random) -> None:
        link = self.any_link(choice)
        write_there(link / "address", f"02:00:00:00:00:{choice.randrange(256):02x}\n")
        write_there(link / "up", choice.choice("01"))

    def bridge(self, choice: random.Random) -> None:
        link = choice.choice(self.spaces) / f"links/br{choice.randrange(3)}"
        choice.choice([os.mkdir, os.rmdir])(link)

    def pair(self, choice: random.Random) -> None:
        """What comes and goes, with an index and a name that others had."""
        number = choice.randrange(3)
        here, there = choice.sample(self.spaces, 2)
        os.symlink(f"{there.name}/links/q{number}", here / f"links/p{number}")
        (here / f"links/p{number}").rmdir()

    def by_ip(self, choice: random.Random) -> None:
        link, bridge = self.any_link(choice), f"br{choice.randrange(3)}"
        here = ["-n", link.parts[-3], "link"]
        ip(
            *choice.choice(
                [
                    [*here, "set", link.name, "netns", choice.choice("ab")],
                    [*here, "set", link.name, "name", self.any_link(choice).name],
                    [*here, "set", link.name, "master", bridge],
                    [*here, "set", link.name, "nomaster"],
                    [*here, "set", link.name, "up"],
                    [*here, "add", bridge, "type", "bridge"],
                    [*here, "del", bridge],
                ]
            ),
            check=False,
        )

    def read(self, choice: random.Random) -> None:
        links = choice.choice(self.spaces) / "links"
        for name in os.listdir(links):
            for file in ("address", "addresses", "up", "kind"):
                (links / name / file).read_text()


def test_a_storm_of_everything_beside_ip(mnt: Mounted, spaces: tuple[Path, Path]) -> None:
    """Nothing is lost, nothing is doubled, and nobody else's interface is touched."""
    a, b = spaces
    for number in range(3):
        join(a / f"links/v{number}", b / f"links/w{number}")
        (a / f"links/v{number}/ifalias").write_text(f"v{number}")
        (b / f"links/w{number}/ifalias").write_text(f"w{number}")
    # Others', between which the storm goes on.
    (a / "links/keep").mkdir()
    join(a / "links/mine", b / "links/other")
    os.symlink("keep", a / "links/mine/master")
    (b / "links/other/addresses").write_text("+192.0.2.1/24\n")
    links = (a / "links/keep", a / "links/mine", b / "links/other")
    for link in links:
        (link / "up").write_text("1\n")
    wait_for(
        lambda: all(
            "fe80:" in (text := (link / "addresses").read_text()) and "tentative" not in text
            for link in links
        )
    )
    untouched = ("keep", "mine", "other")

    def others() -> list[dict[str, Any]]:
        told = [link for name in "ab" for link in told_by_ip(name)]
        kept = [link for link in told if link["ifname"] in untouched]
        # What a bridge tells of its timers is left out.
        return [{key: link.get(key) for key in OTHERS} for link in kept]

    before = others()
    storm = Storm(spaces)
    storm.run(6)
    assert Counter(storm.wrong) == Counter(), last_error(mnt)
    assert min(storm.done[name] for name in ("move", "port", "address", "bridge", "pair")) > 3
    assert others() == before
    told = [link for name in "ab" for link in told_by_ip(name)]
    aliases = sorted(link["ifalias"] for link in told if "ifalias" in link)
    assert aliases == ["v0", "v1", "v2", "w0", "w1", "w2"]
    kinds = Counter(link.get("linkinfo", {}).get("info_kind", "lo") for link in told)
    assert kinds["veth"] == 8
    assert kinds["lo"] == 2
    assert {link["ifname"] for link in told} <= {
        *untouched,
        "lo",
        *(f"{kind}{number}" for kind in ("v", "w", "n", "br") for number in range(3)),
    }
    for one in told:
        if one["ifname"] not in untouched:
            found = [at["local"] for at in one["addr_info"] if at["family"] == "inet"]
            assert len(found) == len({*found})
            assert all(address.startswith(("10.", "127.")) for address in found)


OTHERS = ("ifname", "ifindex", "flags", "mtu", "master", "operstate", "address", "addr_info")


def test_the_daemon_keeps_few_descriptors(mnt: Mounted) -> None:
    for number in range(60):
        (mnt / f"n{number}").mkdir()
        (mnt / f"n{number}/links/lo/mtu").read_text()
        os.listdir(mnt / f"n{number}/links/lo")
    assert len(os.listdir(f"/proc/{mnt.process.pid}/fd")) < 80
    for number in range(60):
        (mnt / f"n{number}").rmdir()
    assert resident(mnt.process.pid) < 100_000
