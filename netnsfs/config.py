"""What the command line asks for, and the failures that a user can expect."""

from dataclasses import dataclass, field

from netnsfs.permissions import Permissions

# As mount(8) has them.
EXIT_USAGE = 1
EXIT_SYSTEM = 2
EXIT_MOUNT = 32

MAX_SPARES = 512
"""Each takes a descriptor, of the 1,024 that a process usually may have."""


def one_line(text: str) -> str:
    """A text with everything escaped that is not printable, such as the end of a line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Failure(Exception):
    """An end that a user can expect: one line that says what to do, and no traceback.

    Args:
        message: the line.
        status: exit status, as mount(8) has them: EXIT_USAGE for a wrong call or missing
            permission, EXIT_SYSTEM for what the machine lacks, EXIT_MOUNT for a mount that
            fails.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(one_line(message))
        self.status = status


@dataclass(frozen=True, slots=True)
class Config:
    """What the command line says.

    Attributes:
        mount_point: where to mount; absolute.
        source: what /proc/mounts shows in the first column.
        repeatable: it is no failure that the same is mounted there already.
        run_dir: the run directory; absolute.
        exec_path: what `exec` leads to; empty for the program that was installed.
        keep_busy: refuse to remove a namespace that processes are in.
        keep_devices: refuse to remove one whose interfaces were moved there.
        permissions: to whom namespaces belong.
        allow_other: others than the user who mounts may look at it.
        spare: namespaces to make in advance.
        views: show `net`, `sysctl` and `links` in each namespace.
        read_only: refuse every change.
        foreground: stay attached to the terminal.
        debug: log everything.
        check: mount nothing, and say whether a netnsfs answers at the mount point.
        command: what to run in namespaces of its own, with the mount, and its arguments; a
            shell if it is empty. None: no new namespaces.
    """

    mount_point: bytes
    source: str = "netnsfs"
    repeatable: bool = False
    run_dir: bytes = b"/run/netns"
    permissions: Permissions = field(default_factory=Permissions)
    allow_other: bool = True
    exec_path: bytes = b""
    keep_busy: bool = False
    keep_devices: bool = False
    spare: int = 0
    views: bool = True
    read_only: bool = False
    foreground: bool = False
    debug: bool = False
    check: bool = False
    command: tuple[str, ...] | None = None
