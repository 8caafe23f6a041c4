"""`netnsfs --rootless`: a command in namespaces of a user's own, with a netnsfs beside it.

What it does is what a user would do by hand:

    unshare --user --map-root-user --net --mount
    mount -t tmpfs tmpfs /run/netns
    netnsfs
    exec COMMAND

The default run directory and mount point are covered with an empty directory each, in the mount
namespace of the command alone. So ip-netns(8) and what a script says of /mnt/netnsfs work as
they do for root, and what the machine has there is neither seen nor changed. Others, given with
`rundir=` or as the mount point, are taken as they are.

The daemon is no child of the command, which may wait for all of its children. It ends when
nobody is left in the mount namespace (see `daemon`).
"""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace

from netnsfs import cli, daemon, linux
from netnsfs.config import EXIT_SYSTEM, Config, Failure

_CLONE_NEWNS = 0x20000
_CLONE_NEWUSER = 0x10000000
_OWN_NAMESPACES = _CLONE_NEWUSER | _CLONE_NEWNS | linux.CLONE_NEWNET
# As a shell has them.
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def run(config: Config) -> int:
    """Serve a mount in new namespaces, and become the command.

    Returns:
        The exit status of the start, or of a command that cannot be run.
    """
    try:
        _enter_namespaces()
        _cover_defaults(config)
    except Failure as failure:
        print(f"netnsfs: {failure}", file=sys.stderr)
        return failure.status
    starter = os.fork()
    if not starter:
        return daemon.run(replace(config, command=None))
    _, status = os.waitpid(starter, 0)
    if status:
        return os.waitstatus_to_exitcode(status)
    return _become(config)


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        linux.unshare(_OWN_NAMESPACES)
        # Without this, a group that is denied something could be left (user_namespaces(7)).
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {user} 1")
        _write("/proc/self/gid_map", f"0 {group} 1")
    except OSError as error:
        raise Failure(
            f"no user namespace can be made here: {error.strerror}: see the sysctls "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone and "
            "kernel.apparmor_restrict_unprivileged_userns; a container may refuse it too",
            EXIT_SYSTEM,
        ) from None


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _cover_defaults(config: Config) -> None:
    default = cli.parse_arguments([])
    for path, usual in (
        (config.run_dir, default.run_dir),
        (config.mount_point, default.mount_point),
    ):
        if path == usual:
            try:
                _cover(path)
            except OSError as error:
                shown, reason = os.fsdecode(path), error.strerror
                raise Failure(f"cannot cover {shown}: {reason}", EXIT_SYSTEM) from None


def _cover(directory: bytes) -> None:
    """Mount an empty directory on one, which need not exist if the one above it does."""
    if not os.path.isdir(directory):
        _make_writable(os.path.dirname(directory))
        os.mkdir(directory)
    _mount_empty(directory)


def _mount_empty(directory: bytes) -> None:
    attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    with (
        linux.closing_fd(linux.new_mount(b"tmpfs", {b"mode": b"755"}, attributes)) as mount,
        linux.closing_fd(os.open(directory, os.O_PATH | os.O_CLOEXEC)) as target,
    ):
        linux.move_mount(mount, target)


def _make_writable(directory: bytes) -> None:
    """Cover a directory of root's with one that has the same in it."""
    with linux.closing_fd(os.open(directory, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        with os.scandir(fd) as entries:
            found = [*entries]
        _mount_empty(directory)
        for entry in found:
            source = b"/proc/self/fd/%d/%b" % (fd, os.fsencode(entry.name))
            # What has ended meanwhile, or what the user may not see.
            with suppress(OSError):
                _repeat(entry, source, os.path.join(directory, os.fsencode(entry.name)))


def _repeat(entry: os.DirEntry[str], source: bytes, target: bytes) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(source), target)
        return
    if entry.is_dir(follow_symlinks=False):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC))
    # What is mounted below may not be left out in a user namespace (mount_namespaces(7)).
    linux.mount(source, target, linux.MS_BIND | linux.MS_REC)


def _become(config: Config) -> int:
    shown = os.fsdecode(config.mount_point)
    command = config.command or (os.environ.get("SHELL") or "/bin/sh",)
    if not config.command:
        print(f"netnsfs is mounted at {shown}, until this shell ends", file=sys.stderr)
    # Python ignores it, and an ignored signal stays so (execve(2)).
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"netnsfs: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
