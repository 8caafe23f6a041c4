"""From arguments to a Config."""

import os
from pathlib import Path

import pytest

from netnsfs import cli
from netnsfs.config import EXIT_USAGE, Config, Failure


def run_dir() -> bytes:
    return os.fsencode(os.path.realpath("/var/run/netns"))


def test_defaults() -> None:
    assert cli.parse_arguments([]) == Config(mount_point=b"/mnt/netnsfs", run_dir=run_dir())


def test_as_mount_8_calls() -> None:
    config = cli.parse_arguments(
        ["none", "/mnt/x", "-o", "rw,dev,suid,_netdev,x-systemd.automount"]
    )
    expected = Config(b"/mnt/x", source="none", repeatable=True, run_dir=run_dir())
    assert config == expected


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["-f"], "foreground", True),
        (["-d"], "debug", True),
        (["-d"], "foreground", True),
        (["/a/b"], "mount_point", b"/a/b"),
        (["-o", "rundir=/r"], "run_dir", b"/r"),
        (["-o", "rw", "/a", "-o", "rundir=/r,nosuid"], "run_dir", b"/r"),
        (["src", "/a"], "source", "src"),
        (["/a", "-f"], "foreground", True),
        (["--check", "/a"], "check", True),
        (["--rootless"], "command", ()),
        (["/a", "--rootless"], "mount_point", b"/a"),
        (["--rootless", "ip", "-f", "x", "--help"], "command", ("ip", "-f", "x", "--help")),
        (["--rootless", "--", "--x"], "command", ("--x",)),
        (["-o", "spare=1", "--rootless", "x"], "spare", 1),
    ],
)
def test_options(arguments: list[str], field: str, value: object) -> None:
    assert getattr(cli.parse_arguments(arguments), field) == value


def test_relative_paths_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = cli.parse_arguments(["mnt", "-o", "rundir=run"])
    assert config.mount_point == bytes(tmp_path / "mnt")
    assert config.run_dir == bytes(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-o", "bogus"], "bogus"),
        (["-o", "bogus=1"], "bogus"),
        (["-o", "rundir"], "rundir"),
        (["-o", "user_id=0,remount"], "remount"),
        (["-o", "rundir="], "rundir"),
        (["a", "b", "c"], "source"),
        (["--nope"], "--nope"),
        (["häßlich", "/a"], "ASCII"),
        (["", "/a"], "ASCII"),
        ([""], "mount point"),
        (["none", ""], "mount point"),
        (["-o"], "-o"),
        (["-f", "--rootless"], "background"),
        (["-d", "--rootless", "x"], "background"),
    ],
)
def test_wrong_calls_are_told_in_one_line(arguments: list[str], word: str) -> None:
    with pytest.raises(Failure) as caught:
        cli.parse_arguments(arguments)
    assert caught.value.status == EXIT_USAGE
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse_arguments([option])
    assert caught.value.code == 0
    assert "netnsfs" in capsys.readouterr().out
