"""`-o spare=N`: what a directory from a spare shows is what any new one shows."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import MNT, RUN, Mounted, Start, ip, settled, wait_for
from usage import descriptors

from netnsfs import linux
from netnsfs.jobs import disposable
from netnsfs.netns.spares import Spares

SYSCTL = Path("/proc/sys/net")

# Of each kind that a new namespace copies, one, and two values: one that it does not have.
COPIED = [
    ("ipv4/conf/default/log_martians", "7", "8"),
    ("ipv4/conf/all/medium_id", "7", "8"),
    ("ipv4/neigh/default/gc_stale_time", "77", "78"),
    ("ipv6/neigh/default/gc_stale_time", "77", "78"),
    ("ipv4/tcp_rmem", "4097 131073 33554433", "4098 131074 33554434"),
    ("ipv4/tcp_wmem", "4097 16385 4194305", "4098 16386 4194306"),
    ("ipv4/tcp_child_ehash_entries", "1024", "2048"),
    ("ipv4/udp_child_hash_entries", "1024", "2048"),
    ("ipv4/tcp_congestion_control", "reno", "cubic"),
    ("core/devconf_inherit_init_net", "1", "2"),
]
# The machine may have no IPv6.
COPIED = [row for row in COPIED if (SYSCTL / row[0]).exists()]


@contextmanager
def changed(name: str, *values: str) -> Iterator[None]:
    """A sysctl of the machine has another value until the block ends."""
    path = SYSCTL / name
    before = path.read_text()
    try:
        path.write_text(next(value for value in values if value.split() != before.split()))
        yield
    finally:
        path.write_text(before)


def counter(mounted: Mounted, name: str) -> int:
    text = (mounted / ".netnsfs/metrics").read_text()
    found = re.search(rf"^netnsfs_{re.escape(name)} (.*)$", text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def hits(mounted: Mounted) -> int:
    return counter(mounted, 'spares_taken_total{result="hit"}')


def content(directory: Path) -> dict[str, bytes]:
    """All sysctls of the namespace, and the devices."""
    found = {"dev": (directory / "net/dev").read_bytes()}
    for top, _, files in os.walk(directory / "sysctl"):
        # One list for the whole machine, which other programs may change.
        for file in set(files) - {"tcp_allowed_congestion_control"}:
            path = Path(top, file)
            try:
                found[str(path.relative_to(directory))] = path.read_bytes()
            except OSError as error:
                found[str(path.relative_to(directory))] = str(error.errno).encode()
    return found


def full(mounted: Mounted, count: int) -> None:
    wait_for(lambda: counter(mounted, "spares") == count)


def test_a_burst_is_served_from_spares(start: Start) -> None:
    mounted = start("-o", "spare=10")
    full(mounted, 10)
    for number in range(10):
        (mounted / f"n{number}").mkdir()
    assert hits(mounted) == 10
    assert len({(mounted / f"n{number}/id").read_text() for number in range(10)}) == 10
    # The first removal opens what shows the placeholders, once.
    (mounted / "n9").rmdir()
    full(mounted, 10)
    before = settled(partial(descriptors, mounted))
    for number in range(9):
        (mounted / f"n{number}").rmdir()
    (mounted / "n0").mkdir()
    (mounted / "n0").rmdir()
    full(mounted, 10)
    wait_for(lambda: descriptors(mounted) <= before)


def test_a_spare_is_as_a_new_one(start: Start) -> None:
    mounted = start("-o", "spare=1")
    full(mounted, 1)
    (mounted / "spare").mkdir()
    assert hits(mounted) == 1
    ip("netns", "add", "fresh")
    assert content(mounted / "spare") == content(mounted / "fresh")
    assert (mounted / "spare/pids").read_text() == ""
    for name in ("spare", "fresh"):
        (mounted / name).rmdir()


def test_a_spare_that_is_out_of_date_is_thrown_away(start: Start) -> None:
    mounted = start("-o", "spare=2")
    for name, *values in COPIED:
        full(mounted, 2)
        before = hits(mounted)
        with changed(name, *values):
            (mounted / "foo").mkdir()
            assert hits(mounted) == before, name
            ip("netns", "add", "fresh")
            assert content(mounted / "foo") == content(mounted / "fresh"), name
            for made in ("foo", "fresh"):
                (mounted / made).rmdir()


def test_a_change_by_another_mount_of_procfs_is_noticed(start: Start, tmp_path: Path) -> None:
    other = tmp_path / "proc"
    other.mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", other], check=True)
    try:
        mounted = start("-o", "spare=2")
        full(mounted, 2)
        path = other / "sys/net/ipv4/conf/default/log_martians"
        before = path.read_text()
        value = "8\n" if before == "7\n" else "7\n"
        try:
            path.write_text(value)
            time.sleep(0.1)
            (mounted / "foo").mkdir()
            shown = mounted / "foo/sysctl/ipv4/conf/default/log_martians"
            assert shown.read_text() == value
        finally:
            path.write_text(before)
    finally:
        subprocess.run(["umount", other], check=True)
    (mounted / "foo").rmdir()


def test_a_spare_born_during_a_change_that_was_taken_back_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unshare = linux.unshare
    births: list[int] = []
    change = changed(*COPIED[0])

    def meddle(flags: int) -> None:
        births.append(flags)
        if len(births) > 1:
            return unshare(flags)
        # The change is taken back by a thread that is still in the initial network namespace.
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(change.__enter__).result()
            try:
                unshare(flags)
            finally:
                elsewhere.submit(change.__exit__, None, None, None).result()

    monkeypatch.setattr(linux, "unshare", meddle)
    spares = Spares(1)

    def fill() -> None:
        with disposable():
            while not len(spares):
                spares._add_spare()

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    assert len(births) == 2
    taken = spares.take_spare()
    assert taken
    os.close(taken[0])
    assert spares._origin
    spares._origin.close()


def test_a_change_of_anything_else_costs_the_spares_too(start: Start) -> None:
    """Another kernel may copy what this one does not."""
    mounted = start("-o", "spare=2")
    full(mounted, 2)
    with changed("ipv4/icmp_ratelimit", "1234", "1235"):
        (mounted / "foo").mkdir()
        assert hits(mounted) == 0
    (mounted / "foo").rmdir()


def test_a_change_of_one_interface_keeps_spares_good(start: Start) -> None:
    mounted = start("-o", "spare=2")
    full(mounted, 2)
    with changed("ipv4/conf/lo/log_martians", "7", "8"):
        (mounted / "foo").mkdir()
    assert hits(mounted) == 1
    (mounted / "foo").rmdir()


def test_steady_use_is_served(start: Start) -> None:
    mounted = start("-o", "spare=16")
    full(mounted, 16)
    for _ in range(100):
        (mounted / "foo").mkdir()
        time.sleep(0.005)
        (mounted / "foo").rmdir()
    assert hits(mounted) > 50


def test_nobody_finds_a_spare(start: Start) -> None:
    first, second = start("-o", "spare=3"), start(at=Path("/mnt/second"))
    full(first, 3)
    spares = {
        os.stat(f"/proc/{first.process.pid}/fd/{fd}").st_ino
        for fd in os.listdir(f"/proc/{first.process.pid}/fd")
        if os.readlink(f"/proc/{first.process.pid}/fd/{fd}").startswith("net:")
    }
    assert len(spares) >= 3
    here = os.stat("/proc/self/ns/net").st_ino
    for mounted in (first, second):
        listed = {int(name) for name in os.listdir(mounted / ".netnsfs/unnamed")}
        assert not listed & (spares - {here})


def test_spares_end_with_the_daemon(start: Start) -> None:
    mounted = start("-o", "spare=3")
    full(mounted, 3)
    (mounted / "foo").mkdir()
    mounted.kill()
    mounted = start()
    assert os.listdir(mounted.path) == ["foo"]
    (mounted / "foo").rmdir()
    assert os.listdir(RUN) == []


@pytest.mark.parametrize("option", ["-n", "-Urm"])
def test_without_the_initial_namespaces_there_are_none(option: str) -> None:
    command = [
        "unshare",
        option,
        sys.executable,
        "-m",
        "netnsfs",
        "-f",
        "-o",
        "spare=2",
        str(MNT),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "initial network and user namespaces" in done.stderr
    warning = "this is not the machine's mount namespace"
    assert len([line for line in done.stderr.splitlines() if warning not in line]) == 1


@pytest.mark.parametrize("value", ["513", "x", "-1", ""])
def test_wrong_numbers_are_told(value: str) -> None:
    command = [sys.executable, "-m", "netnsfs", "-f", "-o", f"spare={value}", str(MNT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "spare" in done.stderr
