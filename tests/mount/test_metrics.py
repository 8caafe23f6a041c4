"""`.netnsfs/metrics`, read back with prometheus_client's own parser."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from conftest import RUN, Mounted, error_of, ip, shortage_gives, wait_for
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from users import DROP, as_user

from netnsfs.linux.netlink import RouteSocket
from netnsfs.netns import interfaces
from netnsfs.netns.names import NamedNamespaces
from netnsfs.stats import Stats
from netnsfs.tree import metrics

Spawn = Callable[..., subprocess.Popen[bytes]]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

NAMES = [
    *(
        b"plain",
        b"back\\slash",
        b"back\\\\slash",
        b"\\xff",
        b"\xff",
        b'"quoted"',
        b"two\nlines",
    ),
    *(b"\r", b" # HELP ", b"\xc3\xa9", b"\xe2\x80\xa8", b"{}=,", b"z" * 255),
]
COUNTERS = {
    "receive_bytes": 0,
    "receive_packets": 1,
    "receive_errors": 2,
    "receive_drops": 3,
    "transmit_bytes": 8,
    "transmit_packets": 9,
    "transmit_errors": 10,
    "transmit_drops": 11,
}


def scrape(mounted: Mounted, name: str = "metrics") -> Series:
    text = (mounted / ".netnsfs" / name).read_bytes().decode()
    found: Series = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(series: Series, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    return series.get((f"netnsfs_{name}", frozenset((labels or {}).items())))


def test_members_sockets_and_interfaces_of_each_namespace(
    foo: Path, mnt: Mounted, spawn: Spawn
) -> None:
    (mnt / "bar").mkdir()
    ip("-n", "foo", "link", "set", "lo", "up")
    process = spawn("ip", "netns", "exec", "foo", sys.executable, "-c", SOCKETS,
                    stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    found = scrape(mnt)
    in_foo, in_bar = {"netns": "foo"}, {"netns": "bar"}
    assert value(found, "member_processes", in_foo) == 1
    assert value(found, "member_processes", in_bar) == 0
    assert value(found, "sockets_in_use", in_foo | {"protocol": "UDP"}) == 3
    assert value(found, "sockets_in_use", in_bar | {"protocol": "UDP"}) == 0
    # A socket that was closed counts until the kernel has freed it: that of ip(8), for one.
    wait_for(lambda: value(scrape(mnt), "sockets_used", in_foo) == 4)
    columns = (foo / "net/dev").read_text().splitlines()[2].split()[1:]
    assert int(columns[0]) > 500
    for counter, column in COUNTERS.items():
        labels = in_foo | {"device": "lo"}
        assert value(found, f"network_{counter}_total", labels) == int(columns[column])
    assert value(found, "network_receive_bytes_total", in_bar | {"device": "lo"}) == 0
    (mnt / "bar").rmdir()


SOCKETS = """
import socket, time
held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
for each in held:
    each.bind(("127.0.0.1", 0))
other = socket.socket(socket.AF_UNIX)
held[0].sendto(b"x" * 500, held[1].getsockname())
print("ready", flush=True)
time.sleep(100)
"""


def test_a_process_with_threads_in_two_namespaces_counts_in_both(
    mnt: Mounted, foo: Path, spawn: Spawn
) -> None:
    process = spawn(sys.executable, "-c", WORKER, RUN / "foo", stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    assert value(scrape(mnt), "member_processes", {"netns": "foo"}) == 1
    assert (foo / "pids").read_text() == f"{process.pid}\n"


WORKER = """
import ctypes, os, sys, threading, time
def work():
    fd = os.open(sys.argv[1], os.O_RDONLY)
    assert ctypes.CDLL(None).setns(fd, 0) == 0
    print("ready", flush=True)
    time.sleep(100)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(100)
"""


def test_names_of_any_bytes_are_told_apart(mnt: Mounted) -> None:
    for name in NAMES:
        os.mkdir(os.path.join(bytes(mnt.path), name))
    labels = {
        dict(labels)["netns"] for name, labels in scrape(mnt) if name == "netnsfs_sockets_used"
    }
    assert {_name_of(label) for label in labels} == set(NAMES)
    assert len(labels) == len(NAMES)
    for name in NAMES:
        os.rmdir(os.path.join(bytes(mnt.path), name))


def _name_of(label: str) -> bytes:
    """What the README says of labels, backwards."""
    parts = label.split("\\\\")
    return b"\\".join(
        b"".join(
            bytes([int(piece[:2], 16)]) + piece[2:].encode() if number else piece.encode()
            for number, piece in enumerate(part.split("\\x"))
        )
        for part in parts
    )


class Read(Collector):
    """Metrics that were read from a text."""

    def __init__(self, text: bytes) -> None:
        self._metrics = list(text_string_to_metric_families(text.decode()))

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def test_the_text_is_as_prometheus_client_writes_it(mnt: Mounted, foo: Path) -> None:
    odd = mnt / 'qu"o\\ted\n'
    odd.mkdir()
    ip("-n", "foo", "link", "set", "lo", "up")
    subprocess.run(["ip", "netns", "exec", "foo", sys.executable, "-c", MANY_BYTES], check=True)
    text = (mnt / ".netnsfs/metrics").read_bytes()
    assert b'receive_bytes_total{device="lo",netns="foo"} 1.' in text
    assert text == generate_latest(Read(text), escaping=ALLOWUTF8)
    odd.rmdir()


MANY_BYTES = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
    for _ in range(20):
        held.sendto(bytes(60_000), ("127.0.0.1", 9))
"""


def test_requests_and_errors_of_the_file_system(mnt: Mounted, foo: Path) -> None:
    before = scrape(mnt)
    fd = os.open(foo / "nsid", os.O_WRONLY)
    for _ in range(3):
        assert error_of(os.write, fd, b"nonsense") == "EINVAL"
        assert error_of(os.stat, mnt / "absent") == "ENOENT"
    os.close(fd)
    after = scrape(mnt)

    def grown(name: str, **labels: str) -> float:
        return (value(after, name, labels) or 0) - (value(before, name, labels) or 0)

    assert grown("requests_total", operation="write") == 3
    assert grown("request_errors_total", operation="write", errno="EINVAL") == 3
    assert grown("request_errors_total", operation="lookup", errno="ENOENT") == 3
    assert grown("requests_total", operation="mkdir") == 0
    assert grown("requests_total", operation="open") == 2


def test_stale_names_have_no_counters_and_second_names_have(mnt: Mounted, foo: Path) -> None:
    (RUN / "stale").touch()
    os.symlink("foo", RUN / "link")
    found = scrape(mnt)
    assert value(found, "names") == 3
    assert value(found, "sockets_used", {"netns": "stale"}) is None
    # The kernel closes the daemon's own a moment later.
    assert value(found, "sockets_used", {"netns": "link"}) in (0, 1)
    (mnt / "stale").rmdir()
    (mnt / "link").rmdir()
    assert value(scrape(mnt), "names") == 1


def test_the_textfile_collector_finds_it(mnt: Mounted, foo: Path) -> None:
    files = sorted((mnt / ".netnsfs").glob("*.prom"))
    assert files == [mnt / ".netnsfs/metrics.prom", mnt / ".netnsfs/metrics_all.prom"]
    assert files[0].is_file()
    assert os.path.samefile(files[0], mnt / ".netnsfs/metrics")
    scrape(mnt)
    assert set(scrape(mnt, "metrics.prom")) == set(scrape(mnt))


def test_a_scrape_holds_no_namespace(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    number = os.stat(mnt / "foo").st_ino
    with open(mnt / ".netnsfs/metrics", "rb") as file:
        file.read()
        (mnt / "foo").rmdir()
        assert error_of(os.stat, mnt / f".netnsfs/unnamed/{number}") == "ENOENT"
        file.seek(0)
        assert b'netns="foo"' not in file.read()


def test_state_of_interfaces(mnt: Mounted, foo: Path) -> None:
    os.symlink("foo/links/there", foo / "links/here")
    ip("-n", "foo", "link", "set", "lo", "up")
    ip("-n", "foo", "addr", "add", "10.0.0.1/24", "dev", "here")
    before = scrape(mnt)
    for device, expected in {
        "lo": {"up": 1, "carrier": 1, "addresses": 2},
        "here": {"up": 0, "carrier": 0, "addresses": 1},
    }.items():
        labels = {"netns": "foo", "device": device}
        assert {name: value(before, f"network_{name}", labels) for name in expected} == expected
        assert ("netnsfs_network_speed_bytes", frozenset(labels.items())) not in before
    for end in ("here", "there"):
        ip("-n", "foo", "link", "set", end, "up")
    labels = {"netns": "foo", "device": "here"}
    after = scrape(mnt)
    assert value(after, "network_up", labels) == value(after, "network_carrier", labels) == 1
    speed = int((foo / "links/here/speed").read_text())
    assert value(after, "network_speed_bytes", labels) == speed * 1_000_000 / 8


def test_connections_that_found_the_queue_full(mnt: Mounted, foo: Path) -> None:
    ip("-n", "foo", "link", "set", "lo", "up")
    before = value(scrape(mnt), "tcp_listen_overflows_total", {"netns": "foo"})
    subprocess.run(["ip", "netns", "exec", "foo", sys.executable, "-c", OVERFLOW], check=True)
    series = scrape(mnt)
    assert before == 0
    names, numbers = (
        line.split()
        for line in (foo / "net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    )
    told = dict(zip(names, numbers, strict=True))
    overflows = value(series, "tcp_listen_overflows_total", {"netns": "foo"})
    assert overflows is not None
    assert 0 < overflows <= int(told["ListenOverflows"])
    count = foo / "sysctl/netfilter/nf_conntrack_count"
    if count.exists():
        assert value(series, "conntrack_entries", {"netns": "foo"}) is not None


OVERFLOW = """
import contextlib, socket
server = socket.create_server(("127.0.0.1", 5000), backlog=0)
clients = []
for _ in range(5):
    with contextlib.suppress(TimeoutError):
        clients.append(socket.create_connection(("127.0.0.1", 5000), timeout=0.3))
"""


def info_of(series: Series, netns: str) -> dict[str, str]:
    [labels] = (
        dict(labels)
        for name, labels in series
        if name == "netnsfs_namespace_info" and dict(labels)["netns"] == netns
    )
    return labels


def without_name(spawn: Spawn) -> int:
    """The number of a namespace without a name, with one process."""
    process = spawn("unshare", "--net", "sleep", "60")
    path = f"/proc/{process.pid}/ns/net"
    wait_for(lambda: os.stat(path).st_ino != os.stat("/proc/self/ns/net").st_ino)
    return os.stat(path).st_ino


def test_every_namespace_is_in_one_scrape(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    inode = without_name(spawn)
    (mnt / "closed").mkdir(mode=0o700)
    found, title = scrape(mnt, "metrics_all"), f".netnsfs/unnamed/{inode}"
    assert value(found, "member_processes", {"netns": title}) == 1
    assert value(found, "network_up", {"netns": title, "device": "lo"}) == 0
    for netns, directory in (("foo", foo), (title, mnt / title)):
        shown = info_of(found, netns)
        assert shown.keys() == {"netns", "inode", "id", "cgroup"}
        for kind in ("inode", "id"):
            assert shown[kind] == (directory / kind).read_text().strip()
    assert info_of(found, "foo")["cgroup"] == ""
    assert info_of(found, title)["cgroup"] in (mnt / title / "cgroups").read_text().split()
    own = f".netnsfs/unnamed/{os.stat('/proc/self/ns/net').st_ino}"
    assert info_of(found, own)["cgroup"]
    named = {dict(labels)["netns"] for name, labels in scrape(mnt) if "namespace_info" in name}
    assert named == {"foo", "closed"}
    # A namespace without members: of those with a name, and of all.
    assert value(scrape(mnt), "namespaces_without_members") == 2
    assert (value(found, "namespaces_without_members") or 0) >= 2
    assert set(scrape(mnt, "metrics_all.prom")) >= {
        (name, labels) for name, labels in found if dict(labels).get("netns") == "foo"
    }
    (mnt / "closed").rmdir()


def test_it_is_for_those_who_may_see_all(mnt: Mounted, foo: Path) -> None:
    path = mnt / ".netnsfs/metrics_all"
    assert os.stat(path).st_mode & 0o777 == 0o400
    lines = [f"len(read('{path}')) > 0"]
    assert as_user(65534, 65534, *lines) == ["EACCES"]
    assert as_user(0, 0, *lines, prefix=DROP) == ["EACCES"]
    assert as_user(0, 0, *lines) == [True]


def test_a_namespace_has_one_series_in_it(mnt: Mounted, foo: Path) -> None:
    # It has a name that the mount does not show.
    ip("netns", "add", ".netnsfs")
    inode = os.stat(RUN / ".netnsfs").st_ino
    found = scrape(mnt, "metrics_all")
    titles = {
        dict(labels)["netns"] for _, labels in found if dict(labels).get("inode") == str(inode)
    }
    assert titles == {".netnsfs"}
    ip("netns", "del", ".netnsfs")


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EPERM, errno.ETIMEDOUT])
def test_one_namespace_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"changing")
    names.create(b"still")
    states = interfaces.states
    failing = [True]

    def change(route: RouteSocket) -> list[interfaces.State]:
        # As the kernel answers where interfaces come and go all the time.
        if failing.pop():
            raise OSError(code, os.strerror(code))
        failing.append(False)
        return states(route)

    failing.insert(0, False)
    monkeypatch.setattr(interfaces, "states", change)
    text = metrics.render(names, Stats(), metrics.Scope()).decode()
    assert "netnsfs_namespaces_omitted 1.0\n" in text
    assert len(re.findall(r"^netnsfs_sockets_used\{", text, re.MULTILINE)) == 1
    for name in (b"changing", b"still"):
        names.remove(name)


def test_a_shortage_of_the_machine_is_told() -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"foo")
    render = partial(metrics.render, names, Stats(), metrics.Scope())
    assert shortage_gives(render) == {"EMFILE", ""}
    names.remove(b"foo")
