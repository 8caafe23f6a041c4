"""Interfaces by address: in named and unnamed namespaces, absent, oddly spelt, closed."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RUN, Mounted, error_of, ip, shortage_gives, wait_for
from users import DROP, as_user

from netnsfs.netns.names import NamedNamespaces
from netnsfs.permissions import Permissions
from netnsfs.tree.addresses import AddressesDirectory, AddressSearch

Spawn = Callable[..., subprocess.Popen[bytes]]

pytestmark = pytest.mark.usefixtures("both_ways")

NOBODY = 65534


class Root:
    pid = os.getpid()
    uid = umask = 0


# Of the networks for documentation (RFC 5737, RFC 3849).
ADDRESS = "198.51.100.7"
ADDRESS6 = "2001:db8::7"


@pytest.fixture
def directory(mnt: Mounted) -> Path:
    return mnt / ".netnsfs/address"


def own_inode() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def with_address(directory: Path, *addresses: str, interface: str = "lo") -> str:
    """Give an interface addresses; returns how it is called below `address`."""
    for address in addresses:
        inside = ["nsenter", f"--net={directory}/ns", "ip", "address"]
        subprocess.run([*inside, "add", address, "dev", interface], check=True)
    return f"{(directory / 'inode').read_text().strip()}:{interface}"


def test_an_address_leads_to_its_interfaces(foo: Path, mnt: Mounted, directory: Path) -> None:
    assert os.listdir(directory) == []
    assert error_of(os.listdir, directory / ADDRESS) == "ENOENT"
    link = with_address(foo, f"{ADDRESS}/24", f"{ADDRESS}/32", f"{ADDRESS6}/64")
    for address in (ADDRESS, ADDRESS6):
        assert os.listdir(directory / address) == [link]
        found = directory / address / link
        assert os.readlink(found) == "../../../foo/links/lo"
        assert os.lstat(found).st_size == len("../../../foo/links/lo")
        assert f"{ADDRESS6}/64\n" in (found / "addresses").read_text()
        assert (found / "../../inode").read_text() == (foo / "inode").read_text()
    # As the first name by then.
    (mnt / "a").symlink_to("foo")
    assert os.readlink(directory / ADDRESS / link) == "../../../a/links/lo"
    (mnt / "a").rmdir()


def test_what_was_found_is_asked_again(foo: Path, mnt: Mounted, directory: Path) -> None:
    link = with_address(foo, f"{ADDRESS}/24")
    assert os.listdir(directory / ADDRESS) == [link]
    subprocess.run(["ip", "-n", "foo", "address", "flush", "lo"], check=True)
    assert error_of(os.listdir, directory / ADDRESS) == "ENOENT"
    (mnt / "bar").mkdir()
    both = {with_address(mnt / name, f"{ADDRESS}/24") for name in ("foo", "bar")}
    assert set(os.listdir(directory / ADDRESS)) == both
    (mnt / "bar").rmdir()
    wait_for(lambda: os.listdir(directory / ADDRESS) == [link])
    (mnt / "bar").mkdir()
    added = with_address(mnt / "bar", f"{ADDRESS}/24")
    # This one may be seen a second late.
    wait_for(lambda: sorted(os.listdir(directory / ADDRESS)) == sorted([link, added]))
    (mnt / "bar").rmdir()


def test_a_second_look_goes_where_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NamedNamespaces(bytes(RUN))
    for name in (b"foo", b"bar"):
        names.create(name)
    ip("-n", "foo", "address", "add", ADDRESS, "dev", "lo")
    search = AddressSearch(names, Permissions())
    opened: list[bytes] = []
    open_namespace = names.open_namespace

    def open_counted(name: bytes) -> int:
        opened.append(name)
        return open_namespace(name)

    monkeypatch.setattr(names, "open_namespace", open_counted)
    packed = bytes([198, 51, 100, 7])
    for _ in range(2):
        assert [item.interface for item in search.find(packed, Root())] == [b"lo"]
    # Those without a name are opened in another way.
    assert opened == [b"bar", b"foo", b"foo"]
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 2)
    search.find(packed, Root())
    assert opened[3:] == [b"bar", b"foo"]
    for name in (b"foo", b"bar"):
        names.remove(name)


def test_without_a_name(mnt: Mounted, directory: Path, spawn: Spawn) -> None:
    process = spawn("unshare", "--net", "sleep", "60")
    path = f"/proc/{process.pid}/ns/net"
    wait_for(lambda: os.stat(path).st_ino != own_inode())
    inode = os.stat(path).st_ino
    unnamed = mnt / ".netnsfs/unnamed" / str(inode)
    link = with_address(unnamed, f"{ADDRESS}/24")
    assert os.readlink(directory / ADDRESS / link) == f"../../unnamed/{inode}/links/lo"
    lines = [f"os.listdir('{directory}/{ADDRESS}')"]
    assert as_user(NOBODY, NOBODY, *lines) == ["ENOENT"]
    assert as_user(0, 0, *lines, prefix=DROP) == ["ENOENT"]
    unnamed.rename(mnt / "web")
    assert as_user(NOBODY, NOBODY, *lines) == [[link]]
    assert os.readlink(directory / ADDRESS / link) == "../../../web/links/lo"
    (mnt / "web").rmdir()


def test_a_closed_namespace_is_not_found(foo: Path, mnt: Mounted, directory: Path) -> None:
    (mnt / "closed").mkdir(mode=0o700)
    closed = with_address(mnt / "closed", f"{ADDRESS}/24")
    lines = [f"os.listdir('{directory}/{ADDRESS}')"]
    assert as_user(NOBODY, NOBODY, *lines) == ["ENOENT"]
    link = with_address(foo, f"{ADDRESS}/24")
    assert as_user(NOBODY, NOBODY, *lines) == [[link]]
    os.chown(mnt / "closed", NOBODY, 0)
    both = sorted([link, closed])
    wait_for(lambda: as_user(NOBODY, NOBODY, f"sorted({lines[0]})") == [both])
    (mnt / "closed").rmdir()


def test_the_same_address_in_other_words(foo: Path, directory: Path) -> None:
    link = with_address(foo, f"{ADDRESS6}/64")
    for name in (ADDRESS6.upper(), "2001:0db8::7", "2001:db8:0:0:0:0:0:7"):
        assert os.readlink(directory / name) == ADDRESS6
        assert os.listdir(directory / name) == [link]
    odd = ("198.51.100.007", "198.51.100", f"{ADDRESS6}%lo", "x", ":", "\u0661", "9" * 255)
    for name in odd:
        assert error_of(os.lstat, directory / name) == "ENOENT", name
    for call in (os.mkdir, os.rmdir, os.unlink):
        assert error_of(call, directory / ADDRESS6) in ("EPERM", "EEXIST", "EISDIR")


def test_many_interfaces_with_one_address(foo: Path, mnt: Mounted, directory: Path) -> None:
    subprocess.run(["ip", "-n", "foo", "link", "add", "a@b", "type", "veth"], check=True)
    links = {with_address(foo, f"{ADDRESS}/24", interface=name) for name in ("lo", "a@b")}
    assert set(os.listdir(directory / ADDRESS)) == links
    for link in links:
        assert (directory / ADDRESS / link / "kind").exists()
    assert error_of(os.lstat, directory / ADDRESS / f"{own_inode()}:lo") == "ENOENT"


def test_without_views_there_is_nothing_to_lead_to(start: Callable[..., Mounted]) -> None:
    mounted = start("-o", "noviews")
    assert "address" not in os.listdir(mounted / ".netnsfs")
    assert error_of(os.lstat, mounted / ".netnsfs/address") == "ENOENT"


def test_a_user_who_searches_too_much_is_refused(foo: Path, directory: Path) -> None:
    script = (
        "import errno, os, sys\nos.setuid(65534)\nfound = ''\n"
        "while found != 'EAGAIN':\n"
        "    try: os.stat(sys.argv[1])\n"
        "    except OSError as error: found = errno.errorcode[error.errno]"
    )
    command = ["/usr/bin/python3", "-c", script, str(directory / ADDRESS)]
    subprocess.run(command, check=True, timeout=120)
    assert error_of(os.listdir, directory / ADDRESS) == "ENOENT"


def test_a_shortage_is_not_taken_for_absence() -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"foo")
    ip("-n", "foo", "address", "add", ADDRESS, "dev", "lo")
    directory = AddressesDirectory(names, Permissions())
    assert shortage_gives(lambda: directory.lookup(ADDRESS.encode(), Root())) == {"EMFILE", ""}
    names.remove(b"foo")
