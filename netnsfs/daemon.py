"""From the command to the running daemon.

The fork comes first, before anything that a fork would split (threads, the FUSE session,
the event loop). The parent waits for the child's word, one byte with the exit status, and
so ends when the mount answers or with the reason why it never will.
"""

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from netnsfs import bpf_objects, instances, last_process, linux, logs
from netnsfs.config import EXIT_SYSTEM, EXIT_USAGE, Config, Failure
from netnsfs.fuse import mounting, session
from netnsfs.fuse.mounting import Identity
from netnsfs.fuse.replay import ReportedNames
from netnsfs.fuse.replayer import keep_replaying
from netnsfs.fuse.replayer_child import ReplayTarget
from netnsfs.jobs import start_thread
from netnsfs.netns import spares, tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.rundir import ChangeWaiter
from netnsfs.netns.spares import Spares
from netnsfs.stats import Stats
from netnsfs.tree.refs import RESERVED
from netnsfs.tree.root import Root

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Serve a mount, in the foreground or in the background.

    Returns:
        The exit status of the command: in the foreground when the mount has ended, in the
        background when it answers.
    """
    if config.foreground:
        logs.log_to_terminal(config.debug)
        return _serve(config, lambda: None)
    # What a shell has left open (a lock, a pipe) is not ours to keep.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        # A child that dies without a word closes the pipe.
        return (os.read(reader, 1) or bytes([EXIT_SYSTEM]))[0]
    os.close(reader)
    # A session of its own: the end of the terminal sends no SIGHUP.
    os.setsid()
    return _serve_in_background(config, writer)


def _serve_in_background(config: Config, parent: int) -> int:
    def report(status: int) -> None:
        # The parent ends with the first byte, so that a second one has no reader.
        with suppress(BrokenPipeError):
            os.write(parent, bytes([status]))

    def ready() -> None:
        logs.leave_terminal(config.debug)
        report(0)

    logs.log_to_terminal(config.debug)
    status = _serve(config, ready)
    report(status)
    return status


def _serve(config: Config, ready: Callable[[], None]) -> int:
    try:
        _mount_and_serve(config, ready)
    except Failure as failure:
        already = isinstance(failure, mounting.AlreadyMounted)
        # mount(8) asks for the same mount again, which is no failure.
        if already and config.repeatable and instances.serves(config):
            return 0
        print(f"netnsfs: {failure}", file=sys.stderr)
        return failure.status
    except Exception:
        log.exception("netnsfs ends")
        return EXIT_SYSTEM
    return 0


def _mount_and_serve(config: Config, ready: Callable[[], None]) -> None:
    mounting.require_fuse()
    names = NamedNamespaces(config.run_dir, Spares(config.spare))
    # Taken away, so that no child process can speak for us.
    tell_manager = partial(_notify_manager, os.environ.pop("NOTIFY_SOCKET", ""))
    # With it, the kernel would show its addresses in net/ to callers who may not see them. Now,
    # because it counts for this thread and for those that it starts.
    linux.drop_capability(linux.CAP_SYSLOG)
    _raise_descriptor_limit()
    config = replace(config, mount_point=mounting.clear(config.mount_point))
    _require_usable(config)

    stats = Stats()
    root = Root(names, stats, config)
    revoke = partial(root.revoke_what_others_remove, ChangeWaiter(config.run_dir))
    reported = ReportedNames(root.readdir())
    ours: list[Identity] = []

    def mounted(identity: Identity) -> None:
        # A link that leads into our own mount would have the daemon wait for itself.
        names.links.avoid = {identity.dev}
        ours.append(identity)

    def answers() -> None:
        ready()
        names.spares.start()
        start_thread(revoke, "netnsfs-revoke")
        # The first who asks for members or holders would wait for it.
        start_thread(tasks.prepare, "netnsfs-scanner")
        _start_replaying(config, ours[0], reported)
        _end_when_last(config)
        tell_manager("READY=1")

    session.serve(root, stats, config, reported, mounted, answers)
    tell_manager("STOPPING=1")


def _start_replaying(config: Config, ours: Identity, reported: ReportedNames) -> None:
    # In a read-only mount the kernel makes no change, and so reports none.
    if not config.read_only:
        target = ReplayTarget(config.run_dir, config.mount_point, *ours, RESERVED)
        start_thread(partial(keep_replaying, target, reported), "netnsfs-replay")


def _raise_descriptor_limit() -> None:
    """Users keep files open here: what a shell is content with is soon used up."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _require_usable(config: Config) -> None:
    _require_outside(config)
    _warn_if_unseen(config)
    _warn_if_blind()
    _warn_if_slow()
    _warn_if_closed(config)
    _require_spares(config)


def _require_outside(config: Config) -> None:
    """The daemon may not look for names below its own mount: it would wait for itself."""
    if os.path.commonpath([config.mount_point, config.run_dir]) == config.mount_point:
        shown = os.fsdecode(config.run_dir)
        message = f"the run directory, {shown}, may not lie in the mount point"
        raise Failure(message, EXIT_USAGE)


def _warn_if_unseen(config: Config) -> None:
    """What we mount is seen in another mount namespace if what it is on has a peer there."""
    places = {"namespaces made here": config.run_dir, "the mount": config.mount_point}
    with suppress(OSError):
        # In a container, the kernel may not let us look at PID 1.
        if os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt"):
            peers = {mount.peers for mount in linux.mounts("1") if mount.peers}
            unseen = [what for what, path in places.items() if _peers_at(path) not in peers]
            if unseen:
                log.warning(
                    "this is not the machine's mount namespace: %s cannot be seen outside",
                    " and ".join(unseen),
                )


def _peers_at(directory: bytes) -> bytes:
    """The peer group of the mount that a directory is on, or will be made on."""
    with linux.closing_fd(_open_existing(directory)) as fd:
        mount = linux.mount_with_id(linux.mount_number(fd))
    return mount.peers if mount else b""


def _open_existing(directory: bytes) -> int:
    """An O_PATH descriptor of a directory, or of the one above where it would be made.

    What is mounted there is not asked: it may be a file system that does not answer.
    """
    while True:
        try:
            return os.open(directory, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            if directory == b"/":
                raise
            directory = os.path.dirname(directory)


def _warn_if_blind() -> None:
    if not linux.in_initial_pid_namespace():
        log.warning(
            "this is not the machine's PID namespace: processes outside of it are not seen, "
            "and pids, tids, cgroups and kill fail where only such may be inside"
        )


def _warn_if_slow() -> None:
    if not bpf_objects.are_built():
        log.warning(
            "built without BPF programs, which need clang and libbpf-dev: members are looked "
            "for in /proc, which takes longer"
        )


def _warn_if_closed(config: Config) -> None:
    if config.read_only:
        return
    with linux.closing_fd(_open_existing(config.run_dir)) as fd:
        if not os.access(b"/proc/self/fd/%d" % fd, os.W_OK):
            shown = os.fsdecode(config.run_dir)
            log.warning(
                "no name can be made in %s: give another directory with -o rundir=", shown
            )


def _require_spares(config: Config) -> None:
    if config.spare and not spares.spares_possible():
        message = "spare= needs the initial network and user namespaces: leave it out"
        raise Failure(message, EXIT_USAGE)


def _end_when_last(config: Config) -> None:
    """End, as on a signal, when nobody is left who could see the mount, or unmount it.

    In the foreground, the starter decides: the daemon may be all that is in a container.
    """
    if linux.in_initial_user_namespace() or config.foreground:
        return

    def run() -> None:
        last_process.wait_until_last()
        log.info("nobody else is in this mount namespace any more")
        os.kill(os.getpid(), signal.SIGTERM)

    start_thread(run, "netnsfs-last")


def _notify_manager(address: str, state: str) -> None:
    """As sd_notify(3), but without ever waiting, because the event loop must not stop."""
    if not address:
        return
    path = os.fsencode(address)
    # An abstract socket (sd_notify(3)).
    if path.startswith(b"@"):
        path = b"\0" + path[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(state.encode(), path)
    except OSError as error:
        log.warning("cannot tell %s to the service manager: %s", state, error.strerror)
