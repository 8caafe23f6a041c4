"""The smallest file systems that answer the same requests, to be measured beside netnsfs."""

import errno
import itertools
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from benchmarks.mounts import C_FLOOR, CHECKOUT, FLOOR, MNT, OURSELVES, netnsfs, serving
from benchmarks.namespaces import bare_make, bare_remove
from benchmarks.programs import command


class Floor(pyfuse3.Operations):
    """A directory `foo` and in it a file `inode`, with netnsfs's timeouts; mkdir and rmdir."""

    supports_dot_lookup = False
    content = b"4026532268\n"

    def __init__(self) -> None:
        super().__init__()
        self._attributes = {
            pyfuse3.ROOT_INODE: _entry(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, 0, 0),
            2: _entry(2, stat.S_IFDIR | 0o755, 0, 0),
            3: _entry(3, stat.S_IFREG | 0o444, len(self.content), 3600),
        }
        self._names = {(pyfuse3.ROOT_INODE, b"foo"): 2, (2, b"inode"): 3}
        self._numbers = itertools.count(4)

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        try:
            return self._attributes[self._names[parent_inode, name]]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes[inode]

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=1, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self.content[off : off + size]

    async def release(self, fh: int) -> None:
        pass

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        number = self._names[parent_inode, name] = next(self._numbers)
        self._attributes[number] = _entry(number, stat.S_IFDIR | 0o755, 0, 0)
        return self._attributes[number]

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del self._attributes[self._names.pop((parent_inode, name))]


class FloorWithCalls(Floor):
    """It makes the bare system calls besides: on its only thread, nothing checked or undone."""

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        bare_make(name)
        return await super().mkdir(parent_inode, name, mode, ctx)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        bare_remove(name)
        await super().rmdir(parent_inode, name, ctx)


def _entry(number: int, mode: int, size: int, name_seconds: float) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = number
    entry.st_mode = mode
    entry.st_size = size
    entry.entry_timeout = name_seconds
    entry.attr_timeout = 3600
    return entry


def serve_floor(floor: Floor, at: str) -> NoReturn:
    options = "fsname=floor allow_other default_permissions nosuid nodev noexec noatime"
    pyfuse3.init(floor, at, set(options.split()))
    trio.run(pyfuse3.main)
    sys.exit(0)


@cache
def _compiled_floor() -> str:
    """The path of the C floor."""
    flags = command("pkg-config", "--cflags", "--libs", "fuse3").split()
    program = "/run/c-floor"
    command("cc", "-O2", str(CHECKOUT / "scripts/floor.c"), "-o", program, *flags)
    return program


@contextmanager
def floors() -> Iterator[None]:
    """Keep netnsfs with a name `foo`, and both floors mounted."""
    with (
        netnsfs(),
        serving(FLOOR, *OURSELVES, "--floor"),
        serving(C_FLOOR, _compiled_floor()),
    ):
        (MNT / "foo").mkdir()
        yield


SERVERS = {"the pyfuse3 floor": FLOOR, "the C floor": C_FLOOR, "netnsfs": MNT}
