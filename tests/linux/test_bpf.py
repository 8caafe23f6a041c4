"""What is loaded, or why not. That iterators tell the truth is told in tests/netns."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import error_of, needs_btf

from netnsfs import linux

TESTS = Path(__file__).parents[1]
OBJECT = str(TESTS.parent / "netnsfs/netns/tasks.bpf.o")
LOAD = f"""
import errno
from netnsfs import linux
try:
    linux.Iterators({OBJECT!r}, ("tasks",))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@needs_btf
@pytest.mark.machine
def test_an_iterator_runs_again_and_again() -> None:
    iterators = linux.Iterators(OBJECT, ("tasks",))
    for _ in range(3):
        assert len(iterators.run("tasks", bytes(8))) > 0
        assert iterators.run("tasks", b"\1" + bytes(7)) == b""
    iterators.close()


def test_what_is_no_object_file(tmp_path: Path) -> None:
    assert error_of(linux.Iterators, str(tmp_path / "none"), ()) == "ENOENT"
    empty = tmp_path / "empty"
    empty.write_bytes(b"x" * 100)
    # The library has numbers of its own for that.
    with pytest.raises(OSError, match="empty"):
        linux.Iterators(str(empty), ())


@needs_btf
@pytest.mark.machine
def test_a_program_that_the_object_lacks() -> None:
    for _ in range(3):
        assert error_of(linux.Iterators, OBJECT, ("tasks", "no such program")) == "ENOENT"


def test_where_it_is_refused() -> None:
    command = [sys.executable, str(TESTS / "without_bpf.py"), sys.executable, "-c", LOAD]
    assert subprocess.check_output(command, cwd=TESTS.parent) in (b"EPERM\n", b"EACCES\n")
