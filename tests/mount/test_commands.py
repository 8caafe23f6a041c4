"""Commands that are written in pieces, by the shells that there are."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Mounted, error_of, ip, nsids, wait_for

from netnsfs.commands import NEWLINE, CommandSnapshot, Syntax
from netnsfs.limits import MAX_COMMAND

SHELLS = [
    shell
    for shell in (["dash"], ["bash"], ["busybox", "sh"], ["zsh"], ["mksh"])
    if shutil.which(shell[0])
]


def addresses(file: Path) -> set[str]:
    return {line.split()[0] for line in file.read_text().splitlines()}


def write_in_pieces(path: Path, *pieces: bytes, append: bool = False) -> list[str]:
    """The errno of each write, and of the close."""
    fd = os.open(path, os.O_WRONLY | (os.O_APPEND if append else 0))
    codes = [error_of(os.write, fd, piece) for piece in pieces]
    return [*codes, error_of(os.close, fd)]


def flushes(mounted: Mounted) -> int:
    lines = (mounted / ".netnsfs/metrics").read_text().splitlines()
    found = [
        line for line in lines if line.startswith('netnsfs_requests_total{operation="flush"')
    ]
    return int(float(found[0].split()[-1])) if found else 0


# What is whole


class Recorded:
    """A file whose commands are kept."""

    def __init__(self, syntax: Syntax, flags: int = os.O_WRONLY) -> None:
        self.ran: list[bytes] = []
        self.file = CommandSnapshot(flags, lambda: b"", lambda: None, self.ran.append, syntax)

    def write(self, *pieces: bytes) -> list[bytes]:
        offset = 0
        for piece in pieces:
            offset += self.file.write(piece, offset)
        return self.ran


@pytest.mark.parametrize("end", [b" ", b"\n", b"\t", b"\r\n"])
def test_white_space_ends_a_command(end: bytes) -> None:
    assert Recorded(Syntax()).write(b"one tw", b"o" + end, b"three") == [b"one two" + end]


def test_a_close_ends_a_command() -> None:
    recorded = Recorded(Syntax())
    assert recorded.write(b"one tw", b"o") == []
    recorded.file.flush()
    recorded.file.flush()
    assert recorded.ran == [b"one two"]


def test_a_line_is_not_ended_by_a_blank() -> None:
    recorded = Recorded(Syntax(NEWLINE))
    assert recorded.write(b"+10.0.0.0/8 dev eth0 ", b"metric 10", b"0\n") == [
        b"+10.0.0.0/8 dev eth0 metric 100\n"
    ]


def test_a_write_elsewhere_is_another_command() -> None:
    recorded = Recorded(Syntax())
    recorded.file.write(b"1", 0)
    recorded.file.write(b"0", 0)
    assert recorded.ran == [b"1"]
    appended = Recorded(Syntax(), os.O_WRONLY | os.O_APPEND)
    appended.file.write(b"1", 4096)
    appended.file.write(b"0\n", 4096)
    assert appended.ran == [b"10\n"]


def test_the_end_of_what_needed_none_is_no_command() -> None:
    syntax = Syntax(is_unfinished=lambda text: False)
    assert Recorded(syntax).write(b"1", b"\n", b"0", b"\n") == [b"1", b"0"]
    assert Recorded(syntax).write(b"\n") == [b"\n"]


def test_a_command_has_a_longest_length() -> None:
    recorded = Recorded(Syntax())
    piece = b"x" * (MAX_COMMAND // 2 + 1)
    recorded.file.write(piece, 0)
    assert recorded.file.length == len(piece)
    assert error_of(recorded.file.write, piece, len(piece)) == "E2BIG"
    recorded.file.flush()
    assert recorded.ran == []
    assert recorded.file.length == 0


# Files


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("append", [False, True])
def test_a_word_of_addresses_is_cut_nowhere(
    mnt: Mounted, foo: Path, end: bytes, append: bool
) -> None:
    file = foo / "links/lo/addresses"
    for word in (b"+10.1.1.87/24", b"+10.1.1.187/32", b"+fd00:1::17/128", b"+fd00:2::17/64"):
        text, seen = word + end, {word[1:].decode()}
        for at in range(1, len(text)):
            assert set(write_in_pieces(file, text[:at], text[at:], append=append)) == {""}, at
            assert addresses(file) == seen, at
            assert set(write_in_pieces(file, b"-" + text[1:at], text[at:])) == {""}, at
            assert addresses(file) == set(), at


def test_of_several_to_a_write_all_are_made_or_none(foo: Path) -> None:
    file = foo / "links/lo/addresses"
    file.write_text("+10.0.0.1/24")
    codes = write_in_pieces(file, b"+10.0.0.2/24 +10.0", b".0.3/24 +10.0.0.1/2", b"4")
    assert codes == ["", "", "EEXIST", ""]
    assert addresses(file) == {"10.0.0.1/24"}


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_number_is_cut_nowhere(foo: Path, end: bytes) -> None:
    number = b"%d" % next(nsids)
    text = number + end
    at = len(number) // 2
    assert set(write_in_pieces(foo / "nsid", text[:at], text[at:])) == {""}
    assert (foo / "nsid").read_bytes() == number + b"\n"


def test_a_signal_is_cut_nowhere(
    foo: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """SIGCONT does nothing to it, SIGHUP would."""
    member = spawn("nsenter", f"--net={foo}/ns", "sleep", "100")
    wait_for(lambda: (foo / "pids").read_text() == f"{member.pid}\n")
    for pieces in ((b"1", b"8"), (b"1", b"8\n"), (b"CON", b"T"), (b"SIG", b"CONT\n")):
        assert set(write_in_pieces(foo / "kill", *pieces)) == {""}
    assert write_in_pieces(foo / "kill", b"HU") == ["", "EINVAL"]
    assert member.poll() is None
    assert write_in_pieces(foo / "kill", b"KILL") == ["", ""]
    assert member.wait(30) == -9


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("form", ["%s", "%s\\n"])
def test_a_long_list_by_a_shell(foo: Path, shell: list[str], form: str) -> None:
    file = foo / "links/lo/addresses"
    # The word that is cut at 4,096 bytes is another one each time.
    for length in range(3):
        wanted = [
            f"10.{'1' * (length + 1)}.{number // 250}.{number % 250 + 1}/32"
            for number in range(310)
        ]
        for sign in "+-":
            text = " ".join(sign + address for address in wanted)
            assert len(text) > 4096
            subprocess.run(
                [*shell, "-c", f"printf '{form}' \"$1\" > {file}", shell[0], text],
                check=True,
                capture_output=True,
            )
            told = ip("-n", "foo", "-4", "-o", "addr", "show", "lo").stdout.split()
            found = {word.decode() for word in told if b"/" in word}
            assert found == (set(wanted) if sign == "+" else set())


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_what_people_type(foo: Path, shell: list[str]) -> None:
    os.symlink("foo/links/v1", foo / "links/v0")
    v0 = foo / "links/v0"
    for line, file, expected in (
        ("printf 1 > {}", "up", "1\n"),
        ("echo 0 > {}", "up", "0\n"),
        ("echo 1 >> {}", "up", "1\n"),
        ("printf 0 | tee {} >/dev/null", "up", "0\n"),
        ("printf '%s' +10.0.0.1/2 > {}", "addresses", "10.0.0.1/2\n"),
        ("{{ printf '%s' -10.0; printf '%s\\n' .0.1/2; }} > {}", "addresses", ""),
        ("for word in +10.0.0.1/8 +10.0.0.2/8; do echo $word; done > {}", "addresses",
         "10.0.0.1/8\n10.0.0.2/8\n"),
        ("printf '%s ' -10.0.0.2/8 -10.0.0.1/8 > {}", "addresses", ""),
    ):  # fmt: skip
        subprocess.run([*shell, "-c", line.format(v0 / file)], check=True, capture_output=True)
        assert (v0 / file).read_text() == expected, line
    for line, file in (
        ("printf 2 > {}", "up"),
        ("printf x > {}", "addresses"),
        ("echo 2 > {}", "up"),
    ):
        done = subprocess.run(
            [*shell, "-c", line.format(v0 / file)], check=False, capture_output=True
        )
        assert done.returncode != 0, line


def test_a_close_tells_the_error(mnt: Mounted, foo: Path) -> None:
    file = foo / "links/lo/addresses"
    file.write_text("+10.0.0.1/2\n")
    assert write_in_pieces(file, b"+10.0.0.1/2") == ["", "EEXIST"]
    assert (
        "write addresses: 10.0.0.1/2 is there already"
        in (mnt / ".netnsfs/last_error").read_text()
    )
    fd = os.open(file, os.O_WRONLY)
    assert os.write(fd, b"-10.0.0.1/2") == 11
    foo.rmdir()
    assert error_of(os.close, fd) == "ENODEV"


def test_a_read_from_the_start_shows_what_was_written(foo: Path) -> None:
    with open(foo / "links/lo/addresses", "r+b", 0) as file:
        file.write(b"+10.0.0.1/2")
        file.seek(0)
        assert file.read() == b"10.0.0.1/2\n"


def test_only_a_file_that_is_written_asks_at_its_close(mnt: Mounted, foo: Path) -> None:
    before = flushes(mnt)
    for name in ("inode", "pids", "nsid", "links/lo/up", "links/lo/mtu", "net/dev"):
        (foo / name).read_bytes()
    (foo / "links/lo/mtu").write_text("1400")
    assert flushes(mnt) == before
    (foo / "links/lo/up").write_text("1")
    assert flushes(mnt) > before
