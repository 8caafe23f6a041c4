"""The life of one mount: the one owner of pyfuse3's session.

pyfuse3 3.5 has one session per process, held in module globals, and trusts its caller with
them. It is made, run and closed here and nowhere else. (`operations` calls readdir_reply and
notify_store, which need the session that this module keeps open.) What is done about the
rest:

1. libfuse mounts by path, and tells nobody which mount it has made. So the mount is made
   here, known before it is mounted anywhere (see `mounting`), and libfuse gets its descriptor
   of /dev/fuse.
2. pyfuse3 polls /dev/fuse and then reads it with the interpreter locked. If the client of the
   only request is killed in between, the read blocks the whole process until the next
   request. An interval timer interrupts the read (EINTR makes pyfuse3 start over).
3. terminate() leaves handlers in flight running and serves nobody meanwhile. So the mount
   is detached first, and after a grace period the handlers are cancelled.
4. The kernel keeps the nodes that it knows until it is short of memory, also below a
   directory that is gone if a file was open in it. The daemon would grow by each. So once
   there are many, the kernel is made to forget those that are not in use.
5. libfuse has a buffer of a megabyte for each request that is read at once. Small pieces that
   stay allocated between such buffers make the C library keep ever more free memory. So it is
   made to give that back.
6. close() unmounts by path, whatever is mounted there by now, and does not unmount after an
   abort of the connection (umount -f). So it only closes the session, and the mount is
   detached here if it is still there (`mounting.is_still`).
7. Whatever fails, every step of the clean-up is made, so that no mount is left without a
   daemon.
"""

import errno
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version

import pyfuse3
import trio

from netnsfs import linux
from netnsfs.config import EXIT_MOUNT, Config, Failure
from netnsfs.fuse import mounting
from netnsfs.fuse.file_info import without_flush
from netnsfs.fuse.loop import LoopWaiter
from netnsfs.fuse.mounting import Identity
from netnsfs.fuse.operations import Operations
from netnsfs.fuse.pool import Pool, Pools
from netnsfs.fuse.quotas import Quota
from netnsfs.fuse.replay import OperationsWithReplay, ReportedNames
from netnsfs.fuse.trace import trace
from netnsfs.jobs import never_block
from netnsfs.limits import (
    FILES_PER_USER,
    GRACE_SECONDS,
    HANDLER_SECONDS,
    MAX_TASKS,
    QUEUE_SECONDS,
    TEXT_PER_USER,
    TEXT_TOTAL,
    WORKERS,
)
from netnsfs.logs import ASKED_FOR
from netnsfs.node import Directory
from netnsfs.stats import Stats

HEARTBEAT_SECONDS = 0.6
"""How long a blocked read of /dev/fuse can stop the process."""

SWITCH_SECONDS = 0.0002
"""For how long a thread may keep the interpreter if another one wants it.

A worker unlocks it at each system call, and under a flood of requests the event loop's thread
gives it back only when it must. At 1 ms, reading `pids` took up to 1.5 s then; now 0.1 s.
"""

BOUND_MEMORY_SECONDS = 20.0
"""How often memory is given back, and the kernel made to forget nodes."""

MAX_UNUSED_NODES = 1000
"""From how many known nodes on the kernel is made to forget those not in use."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1)

_MAX_TRIES = 10
_MOUNT_ATTRIBUTES = (
    linux.MOUNT_ATTR_NOSUID
    | linux.MOUNT_ATTR_NODEV
    | linux.MOUNT_ATTR_NOEXEC
    | linux.MOUNT_ATTR_NOATIME
)

log = logging.getLogger(__name__)


def serve(
    root: Directory,
    stats: Stats,
    config: Config,
    reported: ReportedNames,
    mounted: Callable[[Identity], None],
    ready: Callable[[], None],
) -> None:
    """Mount a tree and serve it until it is unmounted or a signal says to stop.

    Args:
        root: what to serve.
        stats: where requests are counted.
        config: where and how.
        reported: the names in `root` that watchers know.
        mounted: called with the identity of the mount when it is there.
        ready: called when the mount answers.

    Raises:
        Failure: it could not be mounted.
    """
    # By default 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    trio.run(_serve, root, stats, config, reported, mounted, ready)


async def _serve(
    root: Directory,
    stats: Stats,
    config: Config,
    reported: ReportedNames,
    mounted: Callable[[Identity], None],
    ready: Callable[[], None],
) -> None:
    # A second signal must not cut the clean-up short: the receiver leaves this behind.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with ExitStack() as cleanup, trio.open_signal_receiver(*SIGNALS) as signals:
        loop = LoopWaiter()
        cleanup.callback(loop.close)
        pools = _open_pools(loop, cleanup)
        texts = Quota(errno.EMFILE, TEXT_PER_USER, TEXT_TOTAL)
        operations = OperationsWithReplay(
            *(root, pools, ready, stats, _file_quota(), texts), reported=reported
        )
        if config.debug:
            trace(operations)
        device, ours = _open_session(operations, loop, config, cleanup)
        cleanup.callback(operations.drop_pollers)
        mounted(ours)
        never_block()
        without_flush()
        with _heartbeat(), loop.serving_pyfuse3():
            async with trio.open_nursery() as nursery:
                detach = partial(_detach, config.mount_point, ours, device)
                nursery.start_soon(_handle_signals, signals, operations, detach, nursery)
                forget = partial(_forget_unused, config.mount_point, ours, device)
                nursery.start_soon(_bound_memory, operations, pools.read_only, forget)
                await _serve_requests()
                nursery.cancel_scope.cancel()


async def _serve_requests() -> None:
    try:
        await pyfuse3.main(max_tasks=MAX_TASKS)
    except* ConnectionAbortedError:
        # A read of /dev/fuse says so when the kernel has given the connection up
        # (fuse_dev_do_read, fs/fuse/dev.c). That is an unmount as well.
        log.info("the kernel has ended the connection")


def _file_quota() -> Quota:
    """An open file may keep a descriptor: half of them are for root and the daemon."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Quota(errno.EMFILE, min(FILES_PER_USER, descriptors // 4), descriptors // 2)


def _open_pools(loop: LoopWaiter, cleanup: ExitStack) -> Pools:
    pools = Pools(
        *(
            Pool(f"netnsfs-{work}", limit, HANDLER_SECONDS, _queue_seconds(work), loop)
            for work, limit in WORKERS.items()
        )
    )
    for pool in pools:
        cleanup.callback(pool.close)
    return pools


def _queue_seconds(work: str) -> float:
    # The kernel holds a directory's lock, and root may want it.
    return 0 if work == "mutate" else QUEUE_SECONDS


def _open_session(
    operations: Operations, loop: LoopWaiter, config: Config, cleanup: ExitStack
) -> tuple[int, Identity]:
    """Mount, and open pyfuse3's session. What undoes both goes to `cleanup`.

    Returns:
        As `_mount`.
    """
    device, ours = _mount(config)
    cleanup.callback(_detach, config.mount_point, ours)
    try:
        # Such a path tells libfuse that the descriptor is mounted already.
        pyfuse3.init(operations, f"/dev/fd/{device}", set())
    except BaseException:
        os.close(device)
        raise
    # It closes the device too.
    cleanup.callback(pyfuse3.close, unmount=False)
    loop.watch_requests(device)
    return device, ours


def _mount(config: Config) -> tuple[int, Identity]:
    """Mount the file system, unless another start is first.

    Returns:
        The descriptor by which requests come, and the identity of the mount.

    Raises:
        Failure: it cannot be mounted.
    """
    for _ in range(_MAX_TRIES):
        with ExitStack() as undo:
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, device)
            with linux.closing_fd(_new_mount(device, config)) as mount:
                ours = mounting.attach(mount, config.mount_point)
            if ours:
                # The session closes the device.
                undo.pop_all()
                return device, ours
        # Ends here if the other start serves. If it has failed meanwhile, this one tries again.
        mounting.clear(config.mount_point)
    raise Failure("the mount was gone as soon as it was made", EXIT_MOUNT)


def _new_mount(device: int, config: Config) -> int:
    attributes = _MOUNT_ATTRIBUTES
    options = {
        b"source": os.fsencode(config.source),
        b"subtype": b"netnsfs",
        b"fd": b"%d" % device,
        b"rootmode": b"40000",
        b"user_id": b"%d" % os.getuid(),
        b"group_id": b"%d" % os.getgid(),
        b"default_permissions": None,
    }
    if config.allow_other:
        options[b"allow_other"] = None
    if config.read_only:
        options[b"ro"] = None
        attributes |= linux.MOUNT_ATTR_RDONLY
    try:
        return linux.new_mount(b"fuse", options, attributes)
    except OSError as error:
        raise mounting.cannot_mount(error) from None


@contextmanager
def _top_if_ours(
    mount_point: bytes, ours: Identity, device: int | None = None
) -> Iterator[int | None]:
    """A descriptor of our mount, None if something else is at the mount point by now.

    Args:
        mount_point: where it was mounted.
        ours: what it was.
        device: the descriptor by which requests come, if it is still open.
    """
    with ExitStack() as opened:
        top = None
        with suppress(FileNotFoundError, NotADirectoryError):
            fd = mounting.open_mount_point(mount_point)
            opened.callback(os.close, fd)
            if mounting.is_still(fd, ours, device is not None and _is_connected(device)):
                top = fd
        yield top


def _is_connected(device: int) -> bool:
    """Whether the kernel still has requests to make (fuse_dev_poll(), fs/fuse/dev.c)."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)


def _detach(mount_point: bytes, ours: Identity, device: int | None = None) -> None:
    shown = os.fsdecode(mount_point)
    try:
        with _top_if_ours(mount_point, ours, device) as top:
            if top is not None:
                linux.detach(top)
            elif _is_mounted(ours):
                log.warning("something is mounted over %s: umount both", shown)
    except OSError as error:
        log.warning("cannot unmount %s: %s", shown, error.strerror)


def _is_mounted(ours: Identity) -> bool:
    return any(
        mount.dev == ours.dev and mount.fs_type == mounting.FS_TYPE for mount in linux.mounts()
    )


async def _bound_memory(operations: Operations, pool: Pool, forget: Callable[[], None]) -> None:
    answered = 0
    while True:
        await trio.sleep(BOUND_MEMORY_SECONDS)
        if operations.known_nodes > MAX_UNUSED_NODES:
            with suppress(OSError):
                await pool.run(forget)
        if answered != (answered := operations.stats.requests.total()):
            with suppress(OSError):
                await pool.run(linux.give_memory_back)


def _forget_unused(mount_point: bytes, ours: Identity, device: int) -> None:
    with _top_if_ours(mount_point, ours, device) as top:
        if top is not None:
            linux.forget_unused(mount_point)


async def _handle_signals(
    signals: AsyncIterator[int],
    operations: Operations,
    detach: Callable[[], None],
    nursery: trio.Nursery,
) -> None:
    started = time.monotonic()
    async for number in signals:
        if number == signal.SIGUSR1:
            _log_counts(operations, time.monotonic() - started)
            continue
        log.info("%s: unmounting", signal.Signals(number).name)
        with trio.move_on_after(GRACE_SECONDS):
            # Not on a worker: they may all be busy.
            await trio.to_thread.run_sync(detach, abandon_on_cancel=True)
        pyfuse3.terminate()
        await trio.sleep(GRACE_SECONDS)
        log.warning("requests are still in flight; they are dropped")
        nursery.cancel_scope.cancel()


def _log_counts(operations: Operations, up: float) -> None:
    nodes, files = operations.known_nodes, operations.open_files
    message = "version %s, up %d s, %d nodes, %d open files"
    log.info(message, version("netnsfs"), up, nodes, files, extra=ASKED_FOR)


@contextmanager
def _heartbeat() -> Iterator[None]:
    linux.only_interrupt(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, HEARTBEAT_SECONDS, HEARTBEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
