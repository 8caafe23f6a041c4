"""Texts about many namespaces: none fails because of one of them."""

import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Mounted, apart, ip

from netnsfs.netns.interfaces import list_interfaces, rtnetlink
from netnsfs.tree import coverage
from netnsfs.tree.coverage import Coverage

Spawn = Callable[..., subprocess.Popen[bytes]]

# Interfaces come and go without a pause, many to a command.
CHANGE = """
while :; do
    echo "link set b0 mtu 1400"
    echo "link add a0 type veth"
    echo "link del a0"
done | ip -n foo -force -batch -
"""


def visit_all(visited: Coverage) -> list[int]:
    def visit(number: int) -> int | None:
        if number == 0:
            return None
        if number < 4:
            kinds = (errno.ENOENT, errno.EAGAIN, errno.EPERM)
            raise OSError(kinds[number - 1], os.strerror(kinds[number - 1]))
        return number

    return apart(lambda: visited.visit_each(visit, range(6)))


def test_what_cannot_be_read_is_counted() -> None:
    visited = Coverage()
    assert visit_all(visited) == [4, 5]
    assert visited.omitted == 2


def test_when_the_time_is_over_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "SECONDS", -1)
    visited = Coverage()
    assert visit_all(visited) == []
    assert visited.omitted == 6


def test_each_has_its_share() -> None:
    visited = Coverage()
    shares = apart(
        lambda: visited.visit_each(lambda _: visited.until - time.monotonic(), range(3))
    )
    for share, left in zip(shares, (3, 2, 1), strict=True):
        assert share <= coverage.SECONDS / left


def test_what_a_shortage_is_fails() -> None:
    def visit(number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(OSError, match="open files"):
        Coverage().visit_each(visit, range(2))


@pytest.fixture
def changing(foo: Path, spawn: Spawn) -> Iterator[None]:
    """The namespace foo has more interfaces than fit into one answer, and some come and go."""
    batch = "".join(f"link add b{number} type bridge\n" for number in range(150))
    subprocess.run(["ip", "-n", "foo", "-batch", "-"], input=batch.encode(), check=True)
    process = spawn("sh", "-c", CHANGE, stdout=subprocess.DEVNULL, start_new_session=True)
    yield
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.usefixtures("changing")
def test_a_namespace_that_changes_all_the_time_fails_no_text(mnt: Mounted) -> None:
    (mnt / "quiet").mkdir()
    for _ in range(20):
        for name in ("metrics", "topology.dot"):
            assert "quiet" in (mnt / ".netnsfs" / name).read_text()
    (omitted,) = re.findall(
        r"^netnsfs_namespaces_omitted (\S+)$", (mnt / ".netnsfs/metrics").read_text(), re.M
    )
    assert float(omitted) in (0, 1)
    (mnt / "quiet").rmdir()


def test_a_dump_ends_in_time(foo: Path) -> None:
    fd = os.open("/run/netns/foo", os.O_RDONLY)
    with rtnetlink(fd) as route:
        route.until = 0
        with pytest.raises(TimeoutError):
            list_interfaces(route)
    os.close(fd)
    assert ip("-n", "foo", "link").stdout
