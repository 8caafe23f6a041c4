"""A file system whose one file can be opened, but never closed: stuckfs.py MOUNTPOINT."""

import errno
import stat
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

FILE = 2


def entry(number: int, mode: int) -> EntryAttributes:
    attributes = EntryAttributes()
    attributes.st_ino = number
    attributes.st_mode = mode
    attributes.attr_timeout = attributes.entry_timeout = 3600
    return attributes


class Stuck(pyfuse3.Operations):
    supports_dot_lookup = False

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if name != b"file":
            raise FUSEError(errno.ENOENT)
        return entry(FILE, stat.S_IFREG | 0o644)

    async def forget(self, inode_list: object) -> None:
        pass

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        mode = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        return entry(inode, mode)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=1)

    async def flush(self, fh: int) -> None:
        await trio.sleep_forever()


if __name__ == "__main__":
    pyfuse3.init(Stuck(), sys.argv[1], {"fsname=stuck", "allow_other", "default_permissions"})
    trio.run(pyfuse3.main)
