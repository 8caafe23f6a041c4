"""Which netnsfs serve on this machine, and what they were asked for.

FUSE shows no options of its own in /proc/mounts, and a file for them would be state. A command
line is there as long as the daemon is.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from netnsfs import cli
from netnsfs.config import Config, Failure


def serves(config: Config) -> bool:
    """Whether a daemon in this mount namespace was asked for the same mount.

    Args:
        config: where and how. Its source, and how it is run, make no difference.
    """
    return _comparable(config) in map(_comparable, _served())


def is_daemon(pid: str) -> bool:
    """Whether a process serves a netnsfs in this mount namespace.

    Raises:
        OSError: that cannot be found out, or it has ended.
    """
    try:
        return _serves_here(pid) and bool(_arguments(pid))
    except ValueError:
        return False


def _comparable(config: Config) -> Config:
    return replace(
        config, source="", repeatable=False, foreground=False, debug=False, command=None
    )


def _served() -> Iterator[Config]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, ValueError, Failure):
            if _serves_here(pid):
                yield cli.parse_arguments(_arguments(pid))


def _serves_here(pid: str) -> bool:
    """Whether it may be a daemon: not one that is only being started, nor a user's."""
    # A user could run a program with any command line.
    if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
        return False
    if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
        return False
    fds = f"/proc/{pid}/fd"
    # A daemon that serves has it open. One that is only being started may still fail.
    return any(os.readlink(f"{fds}/{fd}") == "/dev/fuse" for fd in os.listdir(fds))


def _arguments(pid: str) -> list[str]:
    """The words after the program's name on its command line."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        # Each word ends with a NUL, so the last part is empty.
        words = os.fsdecode(file.read()).split("\0")[:-1]
    # Before it may stand the interpreter and its options.
    program = [os.path.basename(word) for word in words].index("netnsfs")
    return words[program + 1 :]
