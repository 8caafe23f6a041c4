"""The command line. Pure: from arguments to a `Config`, and no further."""

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from netnsfs.config import EXIT_USAGE, Config, Failure

MOUNT_POINT = "/mnt/netnsfs"
RUN_DIR = "/var/run/netns"

IGNORED = frozenset(
    {"rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail"}
    | {
        "dev",
        "nodev",
        "suid",
        "nosuid",
        "exec",
        "noexec",
        "async",
        "sync",
        "dirsync",
        "_netdev",
    }
    | {"atime", "noatime", "relatime", "norelatime", "strictatime", "diratime", "nodiratime"}
    | {"lazytime", "nolazytime", "mand", "nomand", "silent", "iversion", "noiversion"}
    | {"nosymfollow", "allow_other", "default_permissions"}
)
"""What mount(8) hands on from fstab(5) that means nothing here, or is so anyway."""


def _directory(value: str) -> bytes:
    return os.fsencode(os.path.realpath(value))


OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "rundir": ("run_dir", _directory),
}
"""Options after -o that take a value: field of Config, and how the value is read."""

FLAGS = {
    "keep_busy": ("keep_busy", True),
    "noviews": ("views", False),
    "ro": ("read_only", True),
}
"""Options after -o that take none: field of Config and its value."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failure(f"{message} (see netnsfs --help)", EXIT_USAGE)


def parse(arguments: Sequence[str]) -> Config:
    """Read the command line.

    Args:
        arguments: without the program's name.

    Raises:
        Failure: it is wrong.
        SystemExit: --help and --version have been answered.
    """
    found = _parser().parse_intermixed_args(arguments)
    if len(found.paths) > 2:
        raise Failure("at most a source and a mount point (see netnsfs --help)", EXIT_USAGE)
    *source, mount_point = found.paths or [MOUNT_POINT]
    given = ",".join(found.options).split(",")
    if "remount" in given:
        # First: what comes along are the options that /proc/mounts shows.
        raise Failure("cannot remount: unmount it and mount it anew", EXIT_USAGE)
    fields = dict(_option(option) for option in given if not _is_ignored(option))
    if source:
        fields["source"] = _source(source[0])
    # The last component stays as it is: a dead mount there answers no question.
    parent, name = os.path.split(os.path.abspath(mount_point))
    return Config(
        mount_point=os.fsencode(os.path.join(os.path.realpath(parent), name)),
        foreground=found.foreground or found.debug,
        debug=found.debug,
        **{"run_dir": os.fsencode(os.path.realpath(RUN_DIR)), **fields},
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="netnsfs",
        description="Mount the machine's named network namespaces as directories.",
        usage="netnsfs [-o OPTION[,OPTION...]] [-f] [-d] [[SOURCE] MOUNTPOINT]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="MOUNTPOINT",
        help=f"where to mount (default {MOUNT_POINT}; made if missing). A SOURCE before it, "
        "as mount(8) gives it, is shown in /proc/mounts and has no other use",
    )
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION",
        help=f"rundir=DIR: the directory of names (default {RUN_DIR}). keep_busy: refuse to "
        "remove a namespace that processes are in. noviews: leave net and sysctl out. ro: "
        "refuse every change. The other generic options of mount(8) are accepted and change "
        "nothing",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in front")
    parser.add_argument(
        "-d", "--debug", action="store_true", help="stay in front and log everything"
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"netnsfs {version('netnsfs')}"
    )
    return parser


def _is_ignored(option: str) -> bool:
    return not option or option in IGNORED or option.startswith(("x-", "comment="))


def _option(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if option in FLAGS:
        return FLAGS[option]
    if key not in OPTIONS:
        raise Failure(f"unknown option: {option} (see netnsfs --help)", EXIT_USAGE)
    if not equals or not value:
        raise Failure(f"option {key} needs a value: {key}=...", EXIT_USAGE)
    field, read = OPTIONS[key]
    return field, read(value)


def _source(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise Failure("the source must be printable ASCII", EXIT_USAGE)
    return value
