"""The command line. Pure: from arguments to a `Config`, and no further."""

import argparse
import grp
import os
import pwd
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from netnsfs.config import EXIT_USAGE, MAX_SPARES, Config, Failure
from netnsfs.permissions import Permissions

MOUNT_POINT = "/mnt/netnsfs"
ROOTLESS = "--rootless"
# The next number, -1, is no ID: chown(2) takes it for "leave it as it is".
_MAX_ID = (1 << 32) - 2
# Without the byte that ends it (PATH_MAX, linux/limits.h).
_PATH_MAX = 4095
# As compiled into iproute2. On some machines, /var/run is no link to /run.
RUN_DIR = "/var/run/netns"

IGNORED = frozenset(
    {"rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail"}
    | {"dev", "nodev", "suid", "nosuid", "exec", "noexec", "async", "sync", "dirsync"}
    | {"atime", "noatime", "relatime", "norelatime", "strictatime", "diratime", "nodiratime"}
    | {"lazytime", "nolazytime", "mand", "nomand", "silent", "iversion", "noiversion"}
    | {"nosymfollow", "allow_other", "default_permissions", "_netdev"}
)
"""What mount(8) hands on from fstab(5) that means nothing here, or is so anyway."""


def _parse_directory(value: str) -> bytes:
    return os.fsencode(os.path.realpath(value))


def _parse_exec_path(value: str) -> bytes:
    # The text of a link: the daemon need not have that path.
    if not os.path.isabs(value) or len(os.fsencode(value)) > _PATH_MAX:
        raise Failure(f"execpath is an absolute path: {value}", EXIT_USAGE)
    return os.fsencode(value)


def _parse_user(value: str) -> int:
    return _parse_id(value, lambda name: pwd.getpwnam(name).pw_uid, "user")


def _parse_group(value: str) -> int:
    return _parse_id(value, lambda name: grp.getgrnam(name).gr_gid, "group")


def _parse_id(value: str, of_name: Callable[[str], int], kind: str) -> int:
    try:
        number = int(value) if value.isdecimal() else of_name(value)
    except KeyError:
        raise Failure(f"there is no {kind} called {value}", EXIT_USAGE) from None
    if number > _MAX_ID:
        raise Failure(f"{value} is no {kind} ID", EXIT_USAGE)
    return number


def _parse_mask(value: str) -> int:
    try:
        mask = int(value, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0o777:
        raise Failure(f"not an octal mask of permission bits: {value}", EXIT_USAGE)
    return mask


def _parse_spare(value: str) -> int:
    # Ten digits are enough to see that it is too much. int() refuses a text that is too long.
    if not value.isdecimal() or int(value[:10]) > MAX_SPARES:
        raise Failure(f"spare is a number of at most {MAX_SPARES}", EXIT_USAGE)
    return int(value)


OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "rundir": ("run_dir", _parse_directory),
    "execpath": ("exec_path", _parse_exec_path),
    "spare": ("spare", _parse_spare),
    "uid": ("uid", _parse_user),
    "gid": ("gid", _parse_group),
    "umask": ("umask", _parse_mask),
    "dmask": ("dmask", _parse_mask),
    "fmask": ("fmask", _parse_mask),
}
"""Options after -o that take a value: field of Config, and how the value is read."""

FLAGS = {
    "keep_busy": ("keep_busy", True),
    "keep_devices": ("keep_devices", True),
    "noallow_other": ("allow_other", False),
    "noviews": ("views", False),
    "ro": ("read_only", True),
}
"""Options after -o that take none: field of Config and its value."""


class _Parser(argparse.ArgumentParser):
    # argparse would end with status 2, which means something else here (`Failure`).
    def error(self, message: str) -> NoReturn:
        raise Failure(f"{message} (see netnsfs --help)", EXIT_USAGE)


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *call: object) -> NoReturn:
        # Takes longer to load than all else that the command line needs.
        from importlib.metadata import version

        from netnsfs import bpf_objects

        built = "with" if bpf_objects.are_built() else "without"
        print(f"netnsfs {version('netnsfs')}, built {built} BPF programs")
        parser.exit()


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read the command line.

    Args:
        arguments: without the program's name.

    Raises:
        Failure: it is wrong.
        SystemExit: --help and --version have been answered.
    """
    arguments, command = _split_command(arguments)
    # Intermixed: mount(8) gives the options after the mount point.
    found = make_parser().parse_intermixed_args(arguments)
    if len(found.paths) > 2:
        raise Failure("at most a source and a mount point (see netnsfs --help)", EXIT_USAGE)
    *source, mount_point = found.paths or [MOUNT_POINT]
    if not mount_point:
        # What a script gives whose variable is not set. It must not mean the working directory.
        raise Failure("the mount point is an empty text", EXIT_USAGE)
    given = ",".join(found.options).split(",")
    if command is not None and (found.foreground or found.debug):
        raise Failure(
            "--rootless has its daemon in the background: leave -f and -d out", EXIT_USAGE
        )
    if "remount" in given:
        # Refused first, because mount(8) then gives the options that /proc/mounts shows too,
        # and some of them are unknown here.
        raise Failure("cannot remount: unmount it and mount it anew", EXIT_USAGE)
    fields = dict(_parse_option(option) for option in given if not _is_ignored(option))
    if source:
        # A source comes from mount(8), which calls this again for a mount that it does not
        # recognise in /proc/mounts (mount -a).
        fields |= {"source": _parse_source(source[0]), "repeatable": True}
    # The last component is not resolved: it may be a dead mount, which answers no question.
    parent, name = os.path.split(os.path.abspath(mount_point))
    return Config(
        mount_point=os.fsencode(os.path.join(os.path.realpath(parent), name)),
        foreground=found.foreground or found.debug,
        debug=found.debug,
        check=found.check,
        command=command,
        permissions=_permissions(fields),
        **{"run_dir": os.fsencode(os.path.realpath(RUN_DIR)), **fields},
    )


def _split_command(
    arguments: Sequence[str],
) -> tuple[Sequence[str], tuple[str, ...] | None]:
    """Take what follows --rootless away. It is not ours to read."""
    if ROOTLESS not in arguments:
        return arguments, None
    at = arguments.index(ROOTLESS)
    command = arguments[at + 1 :]
    return arguments[:at], tuple(command[1:] if command[:1] == ["--"] else command)


def _permissions(fields: dict[str, Any]) -> Permissions:
    """Take what says to whom things belong out of the fields."""
    umask = fields.pop("umask", None)
    if umask is not None:
        # Whatever their order, dmask= and fmask= are stronger than umask=.
        fields.setdefault("dmask", umask)
        fields.setdefault("fmask", umask)
    given = fields.keys() & {"uid", "gid", "dmask", "fmask"}
    return Permissions(**{key: fields.pop(key) for key in given})


def make_parser() -> argparse.ArgumentParser:
    """What reads the command line.

    Completions are made from it, the man page is checked by it.
    """
    parser = _Parser(
        prog="netnsfs",
        description="Mount the machine's named network namespaces as directories.",
        usage="netnsfs [-o OPTION[,OPTION...]] [-f] [-d] [[SOURCE] MOUNTPOINT]\n"
        "       netnsfs --check [MOUNTPOINT]\n"
        "       netnsfs [-o OPTION[,OPTION...]] [MOUNTPOINT] --rootless [COMMAND [ARG...]]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="MOUNTPOINT",
        help=f"where to mount (default {MOUNT_POINT}; made if missing). A SOURCE before it, "
        "as mount(8) gives it, is shown in /proc/mounts; with one, it is no failure that the "
        "same is mounted there with the same options already",
    )
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION",
        help=f"rundir=DIR: the run directory (default {RUN_DIR}). execpath=PATH: what "
        "NAME/exec leads to, if not to the installed program. uid=, gid=: the owner, "
        "root unless given. umask=, dmask=, fmask=: permission bits that all, directories, "
        "files lack (022). noallow_other: only the user who mounts may look. keep_busy: refuse "
        "to remove a namespace that processes are in. keep_devices: refuse to remove one that "
        "hardware, or the like, was moved into. spare=N: make N namespaces in advance "
        f"(at most {MAX_SPARES}). noviews: leave net, sysctl and links out. ro: refuse every "
        "change. The other generic options of mount(8) are accepted and change nothing",
    )
    parser.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground"
    )
    parser.add_argument(
        "-d", "--debug", action="store_true", help="stay in the foreground and log everything"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="mount nothing; succeed if a netnsfs is mounted there and answers",
    )
    parser.add_argument(
        ROOTLESS,
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="run a command, or a shell, with a netnsfs that needs no root, in namespaces of "
        "its own; all that follows is the command",
    )
    parser.add_argument(
        "-V", "--version", action=_ShowVersion, nargs=0, help="show the version and exit"
    )
    return parser


def _is_ignored(option: str) -> bool:
    return not option or option in IGNORED or option.startswith(("x-", "comment="))


def _parse_option(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if option in FLAGS:
        return FLAGS[option]
    if key not in OPTIONS:
        raise Failure(f"unknown option: {option} (see netnsfs --help)", EXIT_USAGE)
    if not equals or not value:
        raise Failure(f"option {key} needs a value: {key}=...", EXIT_USAGE)
    field, read = OPTIONS[key]
    return field, read(value)


def _parse_source(value: str) -> str:
    # The kernel takes no empty one.
    if not value or not value.isascii() or not value.isprintable():
        raise Failure("the source must be printable ASCII, such as none", EXIT_USAGE)
    return value
