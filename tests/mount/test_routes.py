"""`routes` through a mount: what is in it, tests/netns/test_routes.py says."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Mounted, error_of, ip, wait_for
from users import DROP, as_user

Spawn = Callable[..., subprocess.Popen[bytes]]

ALICE, STAFF, NOBODY = 4711, 4712, 65534


@pytest.fixture
def net(foo: Path) -> Path:
    """A namespace with an interface that has an address and is up."""
    os.symlink("foo/links/peer", foo / "links/eth0")
    for name in ("eth0", "peer"):
        (foo / f"links/{name}/up").write_text("1")
    (foo / "links/eth0/addresses").write_text("+10.0.1.1/24")
    return foo


def last_error(mounted: Mounted) -> str:
    return (mounted / ".netnsfs" / "last_error").read_text()


def told(text: str) -> list[str]:
    return [line.replace(" linkdown", "").rstrip() for line in text.splitlines()]


def test_it_is_what_ip_prints(net: Path) -> None:
    subprocess.run(
        f"printf '+default via 10.0.1.254\\n+blackhole fd00::/8\\n' > {net}/routes",
        shell=True,
        check=True,
    )
    shown = [ip("-n", "foo", way, "route").stdout.decode() for way in ("-4", "-6")]
    assert told((net / "routes").read_text()) == told("".join(shown))
    assert "default via 10.0.1.254 dev eth0" in told((net / "routes").read_text())
    cat = subprocess.run(["cat", net / "routes"], check=True, capture_output=True, text=True)
    assert told(cat.stdout) == told("".join(shown))


def test_a_table_is_copied(mnt: Mounted, net: Path) -> None:
    (net / "routes").write_text("+20.0.0.0/8 via 10.0.1.9\n+default via 10.0.1.254\n")
    before = told((net / "routes").read_text())
    script = "sed s/^/-/ routes > routes; cat routes; sed s/^/+/ /run/copy > routes"
    Path("/run/copy").write_text((net / "routes").read_text())
    done = subprocess.run(script, shell=True, check=True, capture_output=True, cwd=net)
    assert done.stdout == b""
    assert told((net / "routes").read_text()) == before
    os.remove("/run/copy")


def test_a_refused_command_tells_why(mnt: Mounted, net: Path) -> None:
    before = told((net / "routes").read_text())
    for command, code, words in (
        ("+20.0.0.0/8 dev eth0\n+default via 192.0.2.1\n", "ENETUNREACH", "invalid gateway"),
        ("+20.0.0.0/8 dev eth1\n", "ENODEV", "no such interface"),
        ("-default\n", "ESRCH", "0.0.0.0/0: there is no such route"),
        ("+10.0.1.0/24 dev peer\n", "EEXIST", "a route with this prefix and metric"),
        ("+default nexthop via 10.0.1.9\n", "EINVAL", "expected +ROUTE or -ROUTE"),
    ):
        assert error_of((net / "routes").write_text, command) == code
        assert last_error(mnt).startswith("write routes: ")
        assert words in last_error(mnt)
        assert told((net / "routes").read_text()) == before


def test_who_may_write(mnt: Mounted, net: Path) -> None:
    path = net / "routes"
    write = f"write('{path}', '+20.0.0.0/8 dev eth0')"
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert as_user(NOBODY, NOBODY, write, f"len(read('{path}')) > 9") == ["EACCES", True]
    os.chown(net, ALICE, STAFF)
    net.chmod(0o775)
    remove = f"write('{path}', '-20.0.0.0/8')"
    assert as_user(ALICE, ALICE, write, remove) == ["", ""]
    assert as_user(NOBODY, STAFF, write, remove) == ["", ""]
    assert as_user(NOBODY, NOBODY, write) == ["EACCES"]
    net.chmod(0o700)
    assert as_user(NOBODY, NOBODY, f"read('{path}')") == ["EACCES"]


@pytest.mark.machine
def test_a_namespace_without_a_name(mnt: Mounted, spawn: Spawn) -> None:
    process = spawn("unshare", "-n", "sleep", "100")
    own = os.readlink("/proc/self/ns/net")
    wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
    inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    unnamed = mnt / f".netnsfs/unnamed/{inode}"
    (unnamed / "routes").write_text("+blackhole 20.0.0.0/8\n")
    assert (unnamed / "routes").read_text() == "blackhole 20.0.0.0/8\n"
    write = f"write('{unnamed}/routes', '-20.0.0.0/8')"
    (denied,) = as_user(0, 0, write, prefix=DROP)
    assert denied == "EACCES"


def test_a_removed_namespace(mnt: Mounted) -> None:
    (mnt / "bar").mkdir()
    with open(mnt / "bar/routes", "r+b", 0) as file:
        (mnt / "bar").rmdir()
        assert error_of(file.read) == "ENODEV"
        assert error_of(file.write, b"+blackhole 20.0.0.0/8") == "ENODEV"
    assert error_of((mnt / "bar/routes").read_text) == "ENOENT"


def test_beside_ip(net: Path) -> None:
    """Nothing is lost, and nothing doubled, while others change the same table."""
    end = time.monotonic() + 3
    errors: list[BaseException] = []
    done = [0]

    def ours(number: int) -> None:
        routes = [f"20.{number}.{part}.0/24 via 10.0.1.{part + 2}" for part in range(40)]
        try:
            while time.monotonic() < end:
                for sign in "+-":
                    text = "".join(f"{sign}{route}\n" for route in routes)
                    (net / "routes").write_text(text)
                done[0] += 1
        except BaseException as error:
            errors.append(error)

    def theirs() -> None:
        while time.monotonic() < end:
            for verb in ("add", "del"):
                ip("-n", "foo", "route", verb, "30.0.0.0/8", "via", "10.0.1.7")

    before = told((net / "routes").read_text())
    threads = [threading.Thread(target=ours, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=theirs))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert done[0] > 3
    assert told((net / "routes").read_text()) == before
