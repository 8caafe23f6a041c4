"""The life of one mount: the only place that calls pyfuse3's module functions.

pyfuse3 3.5 has one mount per process, held in module globals, and trusts its caller with
them. What is done about that:

1. A mount on top of another succeeds silently, so the mount point is looked at first. A
   netnsfs whose daemon is dead is detached, anything alive refused.
2. It polls /dev/fuse and then reads it with the interpreter locked. If the client of the
   only request is killed in between, the read blocks the whole process until the next
   request. An interval timer interrupts the read (EINTR makes pyfuse3 start over).
3. terminate() leaves handlers in flight running and serves nobody meanwhile. So the mount
   is detached first, and after a grace period the handlers are cancelled.
4. The kernel keeps what it was told of until it is short of memory, also below a directory
   that is gone if a file was open in it. A daemon would grow by each. So once there is much
   of it, the kernel is made to forget what is not in use.
5. libfuse has a buffer of a megabyte for each request that is read at once. What is kept of
   others between them makes the C library keep what is free, ever more of it. So it is made to
   give that back.
6. close() unmounts by path, whatever is mounted there by now, and does not after an abort
   of the connection (umount -f). So it only closes the session, once, and the mount is
   detached here if it is still there, recognised by its mount ID.
"""

import logging
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import IO, NamedTuple

import pyfuse3
import trio

from netnsfs import linux
from netnsfs.config import EXIT_MOUNT, Config, Failure
from netnsfs.fuse.operations import Operations
from netnsfs.fuse.pool import Lull, Pool
from netnsfs.fuse.takeover import FS_TYPE, mounted_at
from netnsfs.fuse.trace import trace
from netnsfs.jobs import never_block
from netnsfs.node import Directory
from netnsfs.stats import Stats

HANDLER_SECONDS = 10.0
"""How long a handler waits for a worker, and once more if the worker is past its commit."""


GRACE_SECONDS = 2.0


HEARTBEAT_SECONDS = 0.5


BOUND_MEMORY_SECONDS = 20.0


MOST_KEPT = 1000
"""How often, and from how many nodes on, the kernel is made to forget those not in use."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1)


# MISC_MAJOR, FUSE_MINOR (linux/major.h, linux/miscdevice.h).
_FUSE_DEVICE = os.makedev(10, 229)


QUEUE_SECONDS = 30.0
"""How long it waits for a worker to be free."""


# More threads make namespaces no faster: the kernel makes them one at a time. Scans of /proc
# share the interpreter.
CHANGES = 4


LOOKS = 4


# A handler that waits is a task of pyfuse3's. The default of 99 would let 99 slow requests
# stop all others.
MAX_TASKS = 1000


log = logging.getLogger(__name__)


def serve(
    root: Directory,
    stats: Stats,
    config: Config,
    mounted: Callable[[int], None],
    ready: Callable[[], None],
) -> None:
    """Mount a tree and serve it until it is unmounted or a signal says to stop.

    Args:
        root: what to serve.
        stats: where requests are counted.
        config: where and how.
        mounted: called with the mount's device number when it is there.
        ready: called when the mount answers.

    Raises:
        Failure: it could not be mounted.
    """
    trio.run(_serve, root, stats, config, mounted, ready)


async def _serve(
    root: Directory,
    stats: Stats,
    config: Config,
    mounted: Callable[[int], None],
    ready: Callable[[], None],
) -> None:
    lull = Lull()
    looks = Pool(LOOKS, HANDLER_SECONDS, QUEUE_SECONDS, lull)
    changes = Pool(CHANGES, HANDLER_SECONDS, QUEUE_SECONDS, lull)
    costly = Pool(1, HANDLER_SECONDS, QUEUE_SECONDS, lull)
    operations = Operations(root, looks, changes, costly, ready, stats)
    if config.debug:
        trace(operations)
    # What the receiver leaves behind: a second signal must not cut the clean-up short.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*SIGNALS) as signals:
        before = _devices()
        _init(operations, config)
        for device in _devices() - before:
            lull.watch_requests(device)
        ours = _netnsfs_at(config.mount_point)
        if ours is None:
            pyfuse3.close(unmount=False)
            raise Failure("the mount was gone as soon as it was made", EXIT_MOUNT)
        detach = partial(_detach, config.mount_point, ours)
        try:
            mounted(ours.dev)
            never_block()
            with _heartbeat():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_heed, signals, operations, detach, nursery)
                    forget = partial(_forget_unused, config.mount_point, ours)
                    nursery.start_soon(_keep_small, operations, looks, forget)
                    await pyfuse3.main(max_tasks=MAX_TASKS)
                    nursery.cancel_scope.cancel()
        finally:
            looks.close()
            changes.close()
            costly.close()
            lull.close()
            pyfuse3.close(unmount=False)
            detach()


def _init(operations: Operations, config: Config) -> None:
    options = {
        "fsname=" + config.source.replace("\\", "\\\\").replace(",", "\\,"),
        "subtype=netnsfs",
        "default_permissions",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
    }
    if config.read_only:
        options.add("ro")
    if config.allow_other:
        options.add("allow_other")
    with _captured_stderr() as captured:
        try:
            pyfuse3.init(operations, os.fsdecode(config.mount_point), options)
            return
        except RuntimeError as error:
            # libfuse tells the reason to file descriptor 2 only.
            captured.seek(0)
            reason = captured.read().strip().replace("\n", "; ") or str(error)
    raise Failure(f"cannot mount: {reason}", EXIT_MOUNT)


def _devices() -> set[int]:
    """Our descriptors of /dev/fuse: pyfuse3 does not tell which it uses."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if os.fstat(fd).st_rdev == _FUSE_DEVICE:
                found.add(fd)
    return found


@contextmanager
def _captured_stderr() -> Iterator[IO[str]]:
    with tempfile.TemporaryFile("w+") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class _Ours(NamedTuple):
    """What tells our mount from any other: device numbers are given again at once."""

    dev: int
    mount: int


def _netnsfs_at(mount_point: bytes) -> _Ours | None:
    top = mounted_at(mount_point)
    if top is None or top.fs_type != FS_TYPE:
        return None
    return _Ours(top.dev, linux.statx(mount_point).mount)


def _detach(mount_point: bytes, ours: _Ours) -> None:
    try:
        if _netnsfs_at(mount_point) == ours:
            linux.umount(mount_point, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        elif any(
            mount.dev == ours.dev and mount.fs_type == FS_TYPE for mount in linux.mounts()
        ):
            log.warning("something is mounted over %s: umount both", os.fsdecode(mount_point))
    except OSError as error:
        log.warning("cannot unmount %s: %s", os.fsdecode(mount_point), error.strerror)


async def _keep_small(operations: Operations, pool: Pool, forget: Callable[[], None]) -> None:
    answered = 0
    while True:
        await trio.sleep(BOUND_MEMORY_SECONDS)
        if operations.known_nodes > MOST_KEPT:
            with suppress(OSError):
                await pool.run(forget)
        if answered != (answered := operations.stats.requests.total()):
            with suppress(OSError):
                await pool.run(linux.give_memory_back)


def _forget_unused(mount_point: bytes, ours: _Ours) -> None:
    if _netnsfs_at(mount_point) == ours:
        linux.forget_unused(mount_point)


async def _heed(
    signals: AsyncIterator[int],
    operations: Operations,
    detach: Callable[[], None],
    nursery: trio.Nursery,
) -> None:
    started = time.monotonic()
    async for number in signals:
        if number == signal.SIGUSR1:
            up = time.monotonic() - started
            nodes, files = operations.known_nodes, operations.open_files
            message = "version %s, up %d s, %d nodes, %d open files"
            log.info(message, version("netnsfs"), up, nodes, files)
            continue
        log.info("%s: unmounting", signal.Signals(number).name)
        with trio.move_on_after(GRACE_SECONDS):
            # Not on a worker: they may all be busy.
            await trio.to_thread.run_sync(detach, abandon_on_cancel=True)
        pyfuse3.terminate()
        await trio.sleep(GRACE_SECONDS)
        log.warning("requests are still in flight; they are dropped")
        nursery.cancel_scope.cancel()


@contextmanager
def _heartbeat() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, HEARTBEAT_SECONDS, HEARTBEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
