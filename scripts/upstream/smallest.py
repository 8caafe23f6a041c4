"""The smallest pyfuse3 file system, in a process of its own: any name is an empty file."""

import os
import stat
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, RequestContext

Beside = Callable[[], Awaitable[object]]


class Smallest(pyfuse3.Operations):
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return _entry(inode)

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(2)


def _entry(inode: int) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode
    root = inode == pyfuse3.ROOT_INODE
    entry.st_mode = stat.S_IFDIR | 0o755 if root else stat.S_IFREG | 0o444
    entry.entry_timeout = 0
    entry.attr_timeout = 3600
    return entry


@contextmanager
def mounted(beside: Beside = trio.sleep_forever) -> Iterator[tuple[str, int]]:
    """Keep the file system mounted.

    Args:
        beside: what the server does beside serving.

    Yields:
        The mount point, and the server's process ID.
    """
    with tempfile.TemporaryDirectory() as mount_point:
        pid = os.fork()
        if not pid:
            _serve(mount_point, beside)
            os._exit(0)
        while os.stat(mount_point).st_dev == os.stat(os.path.dirname(mount_point)).st_dev:
            time.sleep(0.05)
        try:
            yield mount_point, pid
        finally:
            os.system(f"umount {mount_point} || umount -l {mount_point}")
            os.waitpid(pid, 0)


def _serve(mount_point: str, beside: Beside) -> None:
    pyfuse3.init(Smallest(), mount_point, {"fsname=smallest"})

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    trio.run(serve)
    pyfuse3.close(unmount=False)
    sys.stdout.flush()
