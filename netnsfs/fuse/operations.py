"""The adapter between the FUSE protocol, as pyfuse3 has it, and a `tree`.

Caching. The kernel keeps what lies in a `lasting` directory and what a node's attributes
allow; it never keeps the names of any other directory, so a change made by anyone is seen
by the next lookup. File content is never cached (direct_io).

Nodes. The kernel knows a node by its number, and counts how often it was told of it
(lookup, mkdir, an entry of a listing); it takes that number back with forget, and at zero
the node is dropped here. A tree's node may wish for a number. If the number belongs to a
node with another generation, the new one takes it over together with the count: the
kernel retires its old inode, which answers EIO from then on, and the old inode's share of
the count comes back with forgets for the same number.

Time. Handlers answer at once or wait in the pool, which bounds them: a client waiting for
FUSE cannot be killed. Nothing here, and nothing that is waited for, may touch the mount
that is being served.

Errors. One shield stands around every handler: OSError becomes its errno, anything
unexpected is logged with its traceback and becomes EIO. pyfuse3 alone would end the whole
file system for either. The four requests that make up most of the traffic (lookup, open,
read, release) have the shield inside and call the tree themselves: a coroutine around each
would cost them a tenth.

ENOSYS makes the kernel stop asking. That is wanted for flush (one round trip less for each
close) and for extended attributes (`ls -l` asks for them, and the user is told
"not supported" either way), which is why those four and flush are left to pyfuse3's own
class; every other operation has an answer here.
"""

import errno
import functools
import itertools
import logging
import os
import select
import stat
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from netnsfs import linux
from netnsfs.fuse.pool import Pool
from netnsfs.jobs import WouldBlock
from netnsfs.node import Attributes, Caller, Directory, File, Handle, Link, Node
from netnsfs.stats import Stats

P = ParamSpec("P")
T = TypeVar("T")
Adapter = TypeVar("Adapter", bound="Operations")

LASTING_SECONDS = 3600.0
LISTING_SECONDS = 1.0
"""After that, what has been found of a listing is the answer. The kernel asks for the rest."""

NAME_MAX = 255

# Inode numbers of namespaces, which nodes may wish for, have 32 bits.
_FIRST_NUMBER = 1 << 32


log = logging.getLogger(__name__)


def _shield(
    handler: Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]]:
    @functools.wraps(handler)
    async def shielded(self: Adapter, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.stats.requests[request] += 1
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            raise self.refuse(error, request) from None

    request = handler.__name__
    return shielded


def _not_open() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Known:
    """A node that the kernel knows."""

    __slots__ = ("attributes", "lookups", "node", "number", "stamp")

    def __init__(self, node: Node, number: int, lookups: int, name_seconds: float) -> None:
        self.node = node
        self.number = number
        self.lookups = lookups
        self.stamp: Hashable = None
        self.attributes = EntryAttributes()
        self.attributes.st_ino = number
        self.attributes.generation = node.generation
        self.attributes.entry_timeout = name_seconds

    def show(self, shown: Attributes, stamp: Hashable) -> None:
        """Take over a node's attributes, and the stamp that they have."""
        self.stamp = stamp
        entry = self.attributes
        entry.attr_timeout = shown.seconds
        entry.st_mode = shown.mode
        entry.st_nlink = shown.links
        entry.st_size = shown.size
        entry.st_uid = shown.uid
        entry.st_gid = shown.gid
        entry.st_atime_ns = shown.atime_ns
        entry.st_mtime_ns = shown.mtime_ns
        entry.st_ctime_ns = shown.ctime_ns


class _Listing:
    """An open directory: the names as they were when it was last read from the start."""

    __slots__ = ("caller", "directory", "names")

    def __init__(self, directory: _Known, caller: Caller) -> None:
        self.directory = directory
        self.caller = caller
        self.names: list[bytes] = []


class Operations(pyfuse3.Operations):
    """Serves the tree below `root`.

    Args:
        root: what the mount point is.
        looks: where calls that can take long are made.
        changes: the same for calls that change something, so that no crowd of readers keeps
            them waiting.
        costly: the same for files that take long to make.
        ready: called when the kernel has accepted the mount.
        stats: where requests are counted, and why a change was refused is kept.
    """

    supports_dot_lookup = False

    def __init__(
        self,
        root: Directory,
        looks: Pool,
        changes: Pool,
        costly: Pool,
        ready: Callable[[], None],
        stats: Stats,
    ) -> None:
        super().__init__()
        self._looks = looks
        self._changes = changes
        self._costly = costly
        self._ready = ready
        self.stats = stats
        self._counted = stats.requests
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._handles: dict[int, tuple[File, Handle]] = {}
        self._listings: dict[int, _Listing] = {}
        self._fhs = itertools.count(1)
        self._root = _Known(root, pyfuse3.ROOT_INODE, 1, 0)
        self._root.show(root.attributes(), root.stamp)
        self._by_number: dict[int, _Known] = {self._root.number: self._root}
        self._by_key = {root.key: self._root}

    def init(self) -> None:
        self._ready()

    def refuse(self, error: Exception, request: str) -> FUSEError:
        """The answer to a request that failed."""
        if isinstance(error, FUSEError):
            answer = error
        elif isinstance(error, OSError):
            answer = FUSEError(error.errno or errno.EIO)
        else:
            log.error("%s failed", request, exc_info=error)
            answer = FUSEError(errno.EIO)
        self.stats.count_error(request, answer.errno)
        return answer

    @property
    def known(self) -> int:
        """The number of nodes that the kernel knows."""
        return len(self._by_number)

    @property
    def opened(self) -> int:
        """The number of open files."""
        return len(self._handles)

    # The tables of nodes and lookup counts. Nothing below awaits.

    def _find(self, inode: int) -> _Known:
        try:
            return self._by_number[inode]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def _file(self, fh: int) -> tuple[File, Handle]:
        try:
            return self._handles[fh]
        except KeyError:
            raise _not_open() from None

    def _listing(self, fh: int) -> _Listing:
        try:
            return self._listings[fh]
        except KeyError:
            raise _not_open() from None

    def _directory(self, inode: int) -> Directory:
        node = self._find(inode).node
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def _admit(self, node: Node, name_seconds: float) -> _Known:
        number = node.number or next(self._numbers)
        before = self._by_number.get(number)
        known = _Known(node, number, before.lookups if before else 0, name_seconds)
        if before:
            del self._by_key[before.node.key]
        self._by_number[number] = self._by_key[node.key] = known
        return known

    def _drop(self, known: _Known) -> None:
        # What is still open may have been dropped already.
        if known.lookups <= 0 and self._by_number.get(known.number) is known:
            del self._by_number[known.number]
            del self._by_key[known.node.key]

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            known = self._by_number.get(inode)
            if known is None or known is self._root:
                continue
            known.lookups -= count
            self._drop(known)

    # Calls of the tree, here or on a worker

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        try:
            return function(*args)
        except WouldBlock:
            return await self._looks.run(function, *args)

    def _pool(self, file: File) -> Pool:
        return self._costly if file.costly else self._looks

    async def _change(self, name: bytes, function: Callable[..., T], *args: object) -> T:
        """A call that changes something: if it fails, people want to know why."""
        try:
            return await self._changes.run(function, *args)
        except OSError as error:
            self.stats.remember_refusal(function.__name__, name, error)
            raise

    async def _know(self, node: Node, directory: Directory) -> _Known:
        """The table's entry for a node that was just found, with attributes to show.

        The caller counts the lookup before it awaits anything else.
        """
        known = self._by_key.get(node.key)
        stamp = node.stamp
        if known is not None and known.attributes.attr_timeout and known.stamp == stamp:
            return known
        shown = await self._call(node.attributes)
        if node.number in self._by_number:
            # A late answer about a dead namespace must not take the number from a live one.
            await self._call(node.ensure_present)
        known = self._by_key.get(node.key)
        if known is None:
            known = self._admit(node, LASTING_SECONDS if directory.lasting else 0)
        known.show(shown, stamp)
        return known

    async def _show(self, known: _Known) -> EntryAttributes:
        """A known node's attributes as they are now."""
        stamp = known.node.stamp
        known.show(await self._call(known.node.attributes), stamp)
        return known.attributes

    # Names

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._counted["lookup"] += 1
        try:
            # The kernel hands names of up to 1,024 bytes over.
            if len(name) > NAME_MAX:
                raise FUSEError(errno.ENAMETOOLONG)
            directory = self._directory(parent_inode)
            try:
                node = directory.lookup(name, ctx)
            except WouldBlock:
                node = await self._looks.run(directory.lookup, name, ctx)
            known = self._by_key.get(node.key)
            if known is None or not known.attributes.attr_timeout or known.stamp != node.stamp:
                known = await self._know(node, directory)
            known.lookups += 1
            return known.attributes
        except Exception as error:
            raise self.refuse(error, "lookup") from None

    @_shield
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._directory(parent_inode)
        node = await self._change(name, directory.mkdir, name, mode & 0o777, ctx)
        known = await self._know(node, directory)
        known.lookups += 1
        return known.attributes

    @_shield
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._change(name, self._directory(parent_inode).rmdir, name)

    @_shield
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._directory(parent_inode)
        node = await self._change(name, directory.symlink, name, target, ctx)
        known = await self._know(node, directory)
        known.lookups += 1
        return known.attributes

    @_shield
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        into = self._directory(parent_inode_new)
        old = self._directory(parent_inode_old)
        await self._change(name_old, old.rename, name_old, into, name_new, ctx)

    @_shield
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.EPERM)

    @_shield
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    @_shield
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    @_shield
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        raise FUSEError(errno.EPERM)

    # Attributes

    @_shield
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return await self._show(self._find(inode))

    @_shield
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        known = self._find(inode)
        shown = await self._show(known)
        emptied = isinstance(known.node, File) and known.node.writable and not attr.st_size
        if (
            (fields.update_size and not emptied)
            or (fields.update_atime and not fields.update_size)
            or (fields.update_mtime and not fields.update_size)
        ):
            raise FUSEError(errno.EPERM)
        before = stat.S_IMODE(shown.st_mode), shown.st_uid, shown.st_gid
        asked = (
            stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            attr.st_uid if fields.update_uid else None,
            attr.st_gid if fields.update_gid else None,
        )
        if all(new in (None, old) for new, old in zip(asked, before, strict=True)):
            return shown
        # The kernel may have asked attributes that are no longer true.
        if ctx.uid not in (0, shown.st_uid):
            raise FUSEError(errno.EPERM)
        await self._change(known.node.label, known.node.setattr, *asked, ctx)
        return await self._show(known)

    @_shield
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        node = self._find(inode).node
        if not isinstance(node, Link):
            raise FUSEError(errno.EINVAL)
        return await self._call(node.target_for, ctx)

    @_shield
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True

    @_shield
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        # As cgroup2 answers: no blocks, no count of inodes.
        result = StatvfsData()
        result.f_bsize = result.f_frsize = 4096
        result.f_namemax = NAME_MAX
        return result

    # Directories

    @_shield
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        reader = self._directory(inode).listing_caller(ctx)
        fh = next(self._fhs)
        self._listings[fh] = _Listing(self._find(inode), reader)
        return fh

    @_shield
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        listing = self._listing(fh)
        directory = listing.directory.node
        assert isinstance(directory, Directory)
        if start_id == 0:
            listing.names = [b".", b"..", *await self._call(directory.list_names)]
        replied = False
        end = time.monotonic() + LISTING_SECONDS
        for index in range(start_id, len(listing.names)):
            name = listing.names[index]
            if index < 2:
                known = listing.directory if index == 0 else self._root
            else:
                try:
                    found = await self._entry(directory, name, listing.caller)
                except OSError:
                    # The kernel must hear of the entries before, which are counted. It asks
                    # for this one again.
                    if replied:
                        break
                    raise
                if found is None:
                    continue
                known = found
            if not pyfuse3.readdir_reply(token, name, known.attributes, index + 1):
                self._drop(known)
                break
            known.lookups += index >= 2
            replied = True
            if time.monotonic() > end:
                break

    async def _entry(self, directory: Directory, name: bytes, caller: Caller) -> _Known | None:
        # Names come and go between list and lookup.
        try:
            node = await self._call(directory.lookup_listed, name, caller)
            return await self._know(node, directory)
        except OSError as error:
            if error.errno in linux.SHORTAGE:
                raise
            return None
        except Exception:
            log.exception("readdir failed for %r", name)
            return None

    @_shield
    async def releasedir(self, fh: int) -> None:
        self._listing(fh)
        del self._listings[fh]

    @_shield
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    # Files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        self._counted["open"] += 1
        try:
            known = self._find(inode)
            node = known.node
            if not isinstance(node, File):
                raise FUSEError(errno.EISDIR)
            try:
                handle = node.open(flags, ctx)
            except WouldBlock:
                handle = await self._pool(node).run(node.open, flags, ctx)
            fh = next(self._fhs)
            self._handles[fh] = node, handle
            length = handle.length
            node.remember_length(length)
            if length > known.attributes.st_size:
                await self._tell_size(known, length)
            return FileInfo(fh=fh, direct_io=True, keep_cache=False)
        except Exception as error:
            raise self.refuse(error, "open") from None

    async def _tell_size(self, known: _Known, size: int) -> None:
        # sendfile(2) asks for nothing after open, so a size that was too small must be made
        # good before. A stored byte does it; open throws the page away. On a worker, for it
        # waits for the page, which a request may hold that only the event loop can answer.
        known.attributes.st_size = size
        await self._looks.run(pyfuse3.notify_store, known.number, size - 1, b"\n")

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._counted["read"] += 1
        try:
            node, handle = self._file(fh)
            try:
                return handle.read(size, off)
            except WouldBlock:
                return await self._pool(node).run(handle.read, size, off)
        except Exception as error:
            raise self.refuse(error, "read") from None

    @_shield
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node, handle = self._file(fh)
        return await self._change(node.label, handle.write, buf, off)

    async def release(self, fh: int) -> None:
        self._counted["release"] += 1
        try:
            _, handle = self._file(fh)
            del self._handles[fh]
            handle.close()
        except Exception as error:
            raise self.refuse(error, "release") from None

    @_shield
    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    @_shield
    async def poll(self, inode: int, fh: int, poll_handle: Any, ctx: RequestContext) -> int:
        return select.POLLIN | select.POLLRDNORM
