"""What is loaded, or why not. That it tells the truth: see tests/netns and tests/mount."""

import os
import re
import select
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import error_of, needs_btf

from netnsfs import linux

TESTS = Path(__file__).parents[1]
OBJECT = str(TESTS.parent / "netnsfs/netns/tasks.bpf.o")
PROBES_OBJECT = str(TESTS.parent / "netnsfs/netns/populated_events.bpf.o")
RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
LOAD = f"""
import errno
from netnsfs import linux
try:
    linux.Iterators({OBJECT!r}, ("tasks",), "list_tasks")
except OSError as error:
    print(errno.errorcode[error.errno], error.strerror)
"""


@needs_btf
@pytest.mark.machine
def test_an_iterator_runs_again_and_again() -> None:
    iterators = linux.Iterators(OBJECT, ("tasks",), "list_tasks")
    for _ in range(3):
        assert len(iterators.run("tasks", bytes(12))) > 0
        assert iterators.run("tasks", b"\1" + bytes(11)) == b""
    iterators.close()


@needs_btf
@pytest.mark.machine
@pytest.mark.skipif(RELEASE < (6, 7), reason="from Linux 6.7 on")
def test_an_open_coded_iterator_lists_what_another_does() -> None:
    iterators = linux.Iterators(OBJECT, ("tasks",), "list_tasks")
    # Others may come and go meanwhile. This process stays.
    own = struct.pack("=II", os.getpid(), os.getpid())
    for _ in range(3):
        listed = iterators.run_open_coded(bytes(12))
        assert listed
        assert own in listed
        assert len(listed) % 16 == 0
        assert iterators.run_open_coded(b"\1" + bytes(11)) == b""
    iterators.close()


@needs_btf
@pytest.mark.machine
def test_probes_tell_of_a_key_once() -> None:
    namespace = os.stat("/proc/self/ns/net").st_ino.to_bytes(4, sys.byteorder)
    probes = linux.Probes(PROBES_OBJECT, ("ends",), bytes(4))
    ready = select.poll()
    ready.register(probes, select.POLLIN)
    for _ in range(2):
        probes.watch(namespace)
        subprocess.run(["true"], check=True)
        assert ready.poll(20000)
        assert probes.read_records() == [namespace]
        subprocess.run(["true"], check=True)
        assert not ready.poll(100)
    probes.watch(namespace)
    probes.ignore(namespace)
    # Whatever ended in between was told of.
    probes.read_records()
    subprocess.run(["true"], check=True)
    assert not ready.poll(100)
    probes.close()


@needs_btf
@pytest.mark.machine
def test_what_probes_cannot_be_had() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert error_of(linux.Probes, PROBES_OBJECT, ("none",), bytes(4)) == "ENOENT"
    assert os.listdir("/proc/self/fd") == before


def test_what_is_no_object_file(tmp_path: Path) -> None:
    assert error_of(linux.Iterators, str(tmp_path / "none"), (), "none") == "ENOENT"
    empty = tmp_path / "empty"
    empty.write_bytes(b"x" * 100)
    # The library has numbers of its own for that.
    with pytest.raises(OSError, match="empty"):
        linux.Iterators(str(empty), (), "none")


@needs_btf
@pytest.mark.machine
def test_a_program_that_the_object_lacks() -> None:
    for _ in range(3):
        assert (
            error_of(linux.Iterators, OBJECT, ("tasks", "no such program"), "list_tasks")
            == "ENOENT"
        )


def test_where_it_is_refused() -> None:
    command = [sys.executable, str(TESTS / "without_bpf.py"), sys.executable, "-c", LOAD]
    told = subprocess.check_output(command, cwd=TESTS.parent)
    assert told.split()[0] in (b"EPERM", b"EACCES")


@pytest.mark.machine
def test_a_kernel_that_does_not_tell_its_types() -> None:
    shell = 'mount -t tmpfs none /sys/kernel; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, "-c", LOAD]
    told = subprocess.check_output(command, cwd=TESTS.parent, text=True)
    assert told == "ESRCH the kernel does not tell its types (CONFIG_DEBUG_INFO_BTF)\n"
