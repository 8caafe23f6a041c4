"""The adapter between the FUSE protocol, as pyfuse3 has it, and the nodes of a tree.

Caching. The kernel keeps the names below a directory with an `entry_timeout`, and attributes
for the time that they name. It keeps no name below any other directory, so that the next lookup
sees every change, by any program. read(2) always asks here (direct_io). Only sendfile(2) and
splice(2) read from the kernel's pages, which every open throws away.

Time. A handler answers at once or waits in the pool, which limits the time: a client that
waits for FUSE cannot be killed. Nothing here, and nothing that is waited for, may touch the
mount that is being served.

Errors. Every handler translates them: OSError becomes its errno, anything unexpected
is logged with its traceback and becomes EIO. pyfuse3 alone would end the whole file system
for either. The four requests that make up most of the traffic (lookup, open, read, release)
translate inside and call the tree themselves: one more coroutine around each would cost
a tenth of their time. For the same reason they repeat a few lines of other methods.

ENOSYS makes the kernel stop asking. That is wanted for extended attributes (`ls -l` asks for
them, and the answer is "not supported" either way). Their handlers are therefore those of
pyfuse3's own class; every other operation has an answer here.
"""

import errno
import functools
import itertools
import logging
import os
import select
import stat
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio
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
from netnsfs.commands import CommandSnapshot
from netnsfs.fuse.file_info import FlushedFileInfo
from netnsfs.fuse.listings import Listing, Listings
from netnsfs.fuse.nodes import NodeEntry, NodeTable
from netnsfs.fuse.pool import Pool, Pools
from netnsfs.fuse.quotas import ROOT, Quota
from netnsfs.jobs import WouldBlock
from netnsfs.limits import LISTING_SECONDS, MAX_RETRYING
from netnsfs.node import (
    Attributes,
    Directory,
    File,
    Handle,
    Link,
    Node,
    Pollable,
    opened_for_writing,
)
from netnsfs.stats import Stats

P = ParamSpec("P")
T = TypeVar("T")
Adapter = TypeVar("Adapter", bound="_Adapter")

NAME_MAX = 255

# What poll(2) tells of every file (DEFAULT_POLLMASK, linux/poll.h), and what of one that has
# changed.
_READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
_CHANGED = select.POLLPRI | select.POLLERR

log = logging.getLogger(__name__)


class _Adapter(Protocol):
    """What answers requests of the kernel."""

    stats: Stats

    def to_fuse_error(self, error: Exception, request: str) -> FUSEError:
        """The answer to a request that failed."""


def _translate_errors(
    handler: Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]]:
    @functools.wraps(handler)
    async def translating(self: Adapter, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.stats.requests[request] += 1
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            raise self.to_fuse_error(error, request) from None

    request = handler.__name__
    return translating


def _not_open_error() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def _require_settable(node: Node, asked: EntryAttributes, fields: SetattrFields) -> None:
    """Sizes and times cannot be set, but a file for commands can be truncated to nothing.

    Raises:
        OSError: EPERM.
    """
    if fields.update_size:
        if asked.st_size or not (isinstance(node, File) and node.writable):
            raise PermissionError(errno.EPERM, "its size cannot be set")
    # truncate(2) asks for times together with the size.
    elif fields.update_atime or fields.update_mtime:
        raise PermissionError(errno.EPERM, "its times cannot be set")


class _OpenFile(NamedTuple):
    """An open file: the user who opened it, the bytes charged to that user, and the thread."""

    file: File
    handle: Handle
    user: int
    length: int
    pid: int
    entry: NodeEntry


class Operations(pyfuse3.Operations):
    """Serves the tree below `root`.

    Args:
        root: what the mount point is.
        pools: the workers.
        ready: called when the kernel has accepted the mount.
        stats: where requests are counted, and why a change was refused is kept.
        files: how many open files each user has.
        texts: how many bytes each user makes the daemon keep.

    Attributes:
        stats: as above.
        nodes: the nodes that the kernel knows.
    """

    supports_dot_lookup = False

    def __init__(
        self,
        root: Directory,
        pools: Pools,
        ready: Callable[[], None],
        stats: Stats,
        files: Quota,
        texts: Quota,
    ) -> None:
        super().__init__()
        self._pools = pools
        self._ready = ready
        self.stats = stats
        self._counted = stats.requests
        self._files = files
        self._texts = texts
        self._handles: dict[int, _OpenFile] = {}
        self._pollers: dict[int, Any] = {}
        self._listings = Listings(texts)
        self._unused_handles = itertools.count(1)
        self.nodes = NodeTable(root)
        self._by_number = self.nodes.by_number
        self._by_key = self.nodes.by_key
        # Who was told to look a file up again, by thread ID, and the key of the file.
        self._retrying: dict[int, Hashable] = {}

    def init(self) -> None:
        self._ready()

    def to_fuse_error(self, error: Exception, request: str) -> FUSEError:
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
    def known_nodes(self) -> int:
        """The number of nodes that the kernel knows."""
        return len(self._by_number)

    @property
    def open_files(self) -> int:
        """The number of open files."""
        return len(self._handles)

    # What a number of the kernel's stands for

    def _find_file(self, fh: int) -> _OpenFile:
        try:
            return self._handles[fh]
        except KeyError:
            raise _not_open_error() from None

    def _find_listing(self, fh: int) -> Listing:
        try:
            return self._listings[fh]
        except KeyError:
            raise _not_open_error() from None

    def _find_directory(self, inode: int) -> Directory:
        node = self._by_number[inode].node
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.nodes.forget(inode_list)

    # Calls of the tree, here or on a worker

    async def _call_tree(
        self, pool: Pool, user: int, function: Callable[..., T], *args: object
    ) -> T:
        """Call it at once or, if it would block, in a pool."""
        try:
            return function(*args)
        except WouldBlock:
            return await pool.run_for(user, function, *args)

    def _pool_for(self, node: Node) -> Pool:
        """The workers that look at a node, or into it."""
        locked = isinstance(node, Directory) and node.writable
        return self._pools.locked if locked else self._pools.read_only

    def _pool_for_content(self, file: File) -> Pool:
        return self._pools.slow if file.slow else self._pools.read_only

    async def _make_change(
        self,
        pool: Pool,
        ctx: RequestContext,
        name: bytes,
        function: Callable[..., T],
        *args: object,
    ) -> T:
        """Call what changes something, and remember why it failed if it does."""
        with self._remembering(function.__name__, name, ctx.pid):
            return await pool.run_for(ctx.uid, function, *args)

    @contextmanager
    def _remembering(self, operation: str, name: bytes, pid: int) -> Iterator[None]:
        """Remember why something is refused, for `last_error`."""
        try:
            yield
        except OSError as error:
            self.stats.remember_refusal(operation, name, error, pid)
            raise

    async def _insert(
        self,
        user: int,
        caller: int,
        node: Node,
        directory: Directory,
        taken: Attributes | None = None,
    ) -> NodeEntry:
        """The table's entry for a node that was just found, with attributes as they are now.

        The caller counts the lookup before it awaits anything else.

        Args:
            user: who asks.
            caller: the thread that asks.
            node: what was found.
            directory: where.
            taken: its attributes, if they need not be asked for.
        """
        known = self._by_key.get(node.key)
        change_cookie = node.change_cookie
        if (
            known is not None
            and known.attributes.attr_timeout
            and known.change_cookie == change_cookie
            and not known.exclusive
        ):
            return known
        pool = self._pool_for(directory)
        if taken is None:
            taken = await self._call_tree(pool, user, node.getattr_cached)
        known = self._by_key.get(node.key)
        if known is None or (known.exclusive and not known.is_for(caller)):
            known = self.nodes.insert(node, self._entry_timeout(caller, node, directory))
        known.take_attributes(taken, change_cookie)
        if known.exclusive:
            known.note_asked(caller)
        return known

    def _entry_timeout(self, caller: int, node: Node, directory: Directory) -> float:
        if isinstance(node, File) and not node.keeps_name:
            return 0
        # Whoever looks a file up again is the only one to be given the entry. By a name that
        # the kernel keeps, others would find it too.
        return 0 if self._retrying.get(caller) == node.key else directory.entry_timeout

    async def _refresh_attributes(
        self, pool: Pool, user: int, known: NodeEntry
    ) -> EntryAttributes:
        """A known node's attributes as they are now."""
        node, change_cookie = known.node, known.node.change_cookie
        # The length of what is open is known.
        getattr_now = node.getattr if known.length is None else node.getattr_cached
        taken = await self._call_tree(pool, user, getattr_now)
        known.take_attributes(taken, change_cookie)
        return known.shown

    # Names

    async def find_node(self, directory: Directory, name: bytes, ctx: RequestContext) -> Node:
        """What a name stands for, here or on a worker."""
        return await self._call_tree(self._pools.locked, ctx.uid, directory.lookup, name, ctx)

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._counted["lookup"] += 1
        try:
            # The kernel hands names of up to 1,024 bytes over.
            if len(name) > NAME_MAX:
                with self._remembering("lookup", name[:NAME_MAX], ctx.pid):
                    message = f"a name has at most {NAME_MAX} bytes"
                    raise OSError(errno.ENAMETOOLONG, message, name)
            directory = self._find_directory(parent_inode)
            try:
                node = directory.lookup(name, ctx)
            except WouldBlock:
                pool = self._pool_for(directory)
                node = await pool.run_for(ctx.uid, directory.lookup, name, ctx)
            known = self._by_key.get(node.key)
            if (
                known is None
                or known.exclusive
                or not known.attributes.attr_timeout
                or known.change_cookie != node.change_cookie
            ):
                known = await self._insert(ctx.uid, ctx.pid, node, directory)
            known.lookup_count += 1
            return known.attributes
        except Exception as error:
            raise self.to_fuse_error(error, "lookup") from None

    @_translate_errors
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._find_directory(parent_inode)
        node = await self._make_change(
            self._pools.mutating, ctx, name, directory.mkdir, name, mode & 0o777, ctx
        )
        return await self.introduce(directory, node, ctx, node.at_birth)

    @_translate_errors
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._find_directory(parent_inode)
        await self._make_change(self._pools.mutating, ctx, name, directory.rmdir, name, ctx)

    @_translate_errors
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._find_directory(parent_inode)
        node = await self._make_change(
            self._pools.mutating, ctx, name, directory.symlink, name, target, ctx
        )
        return await self.introduce(directory, node, ctx)

    @_translate_errors
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        with self._remembering("rename", name_old, ctx.pid):
            if flags & ~pyfuse3.RENAME_NOREPLACE:
                raise OSError(errno.EINVAL, "two names are not exchanged", name_old)
        into = self._find_directory(parent_inode_new)
        old = self._find_directory(parent_inode_old)
        await self._make_change(
            self._pools.mutating, ctx, name_old, old.rename, name_old, into, name_new, ctx
        )

    @_translate_errors
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._find_directory(parent_inode)
        await self._make_change(self._pools.mutating, ctx, name, directory.unlink, name, ctx)

    @_translate_errors
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise self._no_new_file("link", new_parent_inode, new_name, ctx)

    @_translate_errors
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise self._no_new_file("mknod", parent_inode, name, ctx)

    @_translate_errors
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        raise self._no_new_file("create", parent_inode, name, ctx)

    def _no_new_file(
        self, operation: str, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> OSError:
        error = PermissionError(errno.EPERM, self._find_directory(parent_inode).no_new_file)
        self.stats.remember_refusal(operation, name, error, ctx.pid)
        return error

    async def introduce(
        self,
        directory: Directory,
        node: Node,
        ctx: RequestContext,
        taken: Attributes | None = None,
    ) -> EntryAttributes:
        """The answer that tells the kernel of a node, below a directory.

        Args:
            directory: where.
            node: what.
            ctx: who asks.
            taken: its attributes, if they need not be asked for.
        """
        known = await self._insert(ctx.uid, ctx.pid, node, directory, taken)
        known.lookup_count += 1
        return known.attributes

    # Attributes

    @_translate_errors
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        known = self._by_number[inode]
        if known.exclusive:
            known.note_asked(ctx.pid)
        return await self._refresh_attributes(self._pool_for(known.node), ctx.uid, known)

    @_translate_errors
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        known = self._by_number[inode]
        before = await self._refresh_attributes(self._pools.locked, ctx.uid, known)
        with self._remembering("setattr", known.node.label, ctx.pid):
            _require_settable(known.node, attr, fields)
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
        uid = attr.st_uid if fields.update_uid else None
        gid = attr.st_gid if fields.update_gid else None
        if (
            mode in (None, stat.S_IMODE(before.st_mode))
            and uid in (None, before.st_uid)
            and gid in (None, before.st_gid)
        ):
            return before
        # The kernel may have decided by attributes that are no longer true.
        with self._remembering("setattr", known.node.label, ctx.pid):
            if ctx.uid not in (0, before.st_uid):
                raise PermissionError(errno.EPERM, "it belongs to somebody else")
        node = known.node
        await self._make_change(
            self._pools.mutating, ctx, node.label, node.setattr, mode, uid, gid, ctx
        )
        return await self._refresh_attributes(self._pools.locked, ctx.uid, known)

    @_translate_errors
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        node = self._by_number[inode].node
        if not isinstance(node, Link):
            raise FUSEError(errno.EINVAL)
        return await self._call_tree(self._pools.read_only, ctx.uid, node.readlink, ctx)

    @_translate_errors
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True

    @_translate_errors
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        # As cgroup2 answers: no blocks, no count of inodes.
        result = StatvfsData()
        result.f_bsize = result.f_frsize = 4096
        result.f_namemax = NAME_MAX
        return result

    # Directories

    @_translate_errors
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        directory, known = self._find_directory(inode), self._by_number[inode]
        fh = next(self._unused_handles)
        pool = self._pool_for(directory)
        caller = await self._call_tree(pool, ctx.uid, directory.listing_caller, ctx)
        self._listings.add(fh, Listing(known, directory, caller, ctx.uid))
        return fh

    @_translate_errors
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        listing = self._find_listing(fh)
        if start_id == 0:
            pool = self._pool_for(listing.directory)
            names = await self._call_tree(pool, listing.user, listing.directory.readdir)
            self._listings.fill(listing, names)
        replied = False
        end = time.monotonic() + LISTING_SECONDS
        for index in range(start_id, len(listing.names)):
            try:
                known = await self._find_listed(listing, index)
            except OSError:
                # The entries before are counted, so the kernel must hear of them. It asks
                # for this one again.
                if replied:
                    break
                raise
            if known is not None:
                name = listing.names[index]
                if not pyfuse3.readdir_reply(token, name, known.attributes, index + 1):
                    self.nodes.drop_unused(known)
                    break
                known.lookup_count += index >= 2
                replied = True
            if replied and time.monotonic() > end:
                break

    async def _find_listed(self, listing: Listing, index: int) -> NodeEntry | None:
        if index < 2:
            return listing.known if index == 0 else self.nodes.root
        name = listing.names[index]
        # Names come and go between list and lookup.
        try:
            node = await self._call_tree(
                self._pool_for(listing.directory),
                listing.user,
                listing.directory.lookup_listed,
                name,
                listing.caller,
            )
            caller = listing.caller.pid
            return await self._insert(listing.user, caller, node, listing.directory)
        except OSError as error:
            linux.reraise_if_resource(error)
            return None
        except Exception:
            log.exception("readdir failed for %r", name)
            return None

    @_translate_errors
    async def releasedir(self, fh: int) -> None:
        self._find_listing(fh)
        self._listings.remove(fh)

    @_translate_errors
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    # Files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        self._counted["open"] += 1
        try:
            known = self._by_number[inode]
            node = known.node
            if not isinstance(node, File):
                raise FUSEError(errno.EISDIR)
            with ExitStack() as undo:
                if known.exclusive:
                    retrying = self._claim(known, ctx.pid)
                    undo.callback(known.note_closed)
                try:
                    handle = node.open(flags, ctx)
                except WouldBlock:
                    pool = self._pool_for_content(node)
                    handle = await pool.run_for(ctx.uid, node.open, flags, ctx)
                # The kernel does not release what it could not open.
                undo.callback(handle.close)
                length = handle.length
                if known.exclusive:
                    if not retrying and not known.has_room(length, ctx.pid):
                        raise self._look_up_again(known, ctx.pid)
                    if flags & os.O_ACCMODE != os.O_WRONLY:
                        known.note_content(length)
                if length > known.attributes.st_size:
                    await self._correct_size(ctx.uid, known, length)
                if ctx.uid != ROOT:
                    self._count_open(ctx.uid, length)
                undo.pop_all()
            fh = next(self._unused_handles)
            self._handles[fh] = _OpenFile(node, handle, ctx.uid, length, ctx.pid, known)
            made = FlushedFileInfo if isinstance(handle, CommandSnapshot) else FileInfo
            return made(fh=fh, direct_io=True, keep_cache=False)
        except Exception as error:
            self._remember_open(inode, flags, error, ctx)
            raise self.to_fuse_error(error, "open") from None

    def _claim(self, known: NodeEntry, caller: int) -> bool:
        """Count an open file, if nobody else has its entry open.

        Returns:
            Whether the caller was told before to look the file up again. Whoever gets here a
            second time opens no name, but what is open already (/proc/self/fd/N), and read(2)
            does without an entry of its own.

        Raises:
            FUSEError: ESTALE if somebody else has it open.
        """
        retrying = self._retrying.pop(caller, None) == known.node.key
        if known.opened and not retrying:
            raise self._look_up_again(known, caller)
        known.note_opened()
        return retrying

    def _look_up_again(self, known: NodeEntry, caller: int) -> FUSEError:
        """What makes the kernel look a name up again, and be given another entry.

        At ESTALE it does (fs/namei.c, LOOKUP_REVAL).
        """
        if len(self._retrying) >= MAX_RETRYING:
            self._retrying.clear()
        self._retrying[caller] = known.node.key
        return FUSEError(errno.ESTALE)

    def _remember_open(
        self, inode: int, flags: int, error: Exception, ctx: RequestContext
    ) -> None:
        if isinstance(error, OSError) and opened_for_writing(flags):
            known = self._by_number.get(inode)
            label = known.node.label if known else b""
            self.stats.remember_refusal("open", label, error, ctx.pid)

    async def _correct_size(self, user: int, known: NodeEntry, size: int) -> None:
        # sendfile(2) asks for nothing after open, so a size that was too small must be
        # corrected before: storing the last byte does it, and open throws the page away. This
        # is done on a worker because it waits for the page, which may be held by a request
        # that only the event loop can answer.
        known.attributes.st_size = size
        store, number = pyfuse3.notify_store, known.number
        await self._pools.read_only.run_for(user, store, number, size - 1, b"\n")

    def _count_open(self, user: int, length: int) -> None:
        self._files.charge(user)
        try:
            self._texts.charge(user, length)
        except OSError:
            self._files.uncharge(user)
            raise

    def _count_closed(self, opened: _OpenFile) -> None:
        self._files.uncharge(opened.user)
        self._texts.uncharge(opened.user, opened.length)

    async def _read_slowly(self, fh: int, opened: _OpenFile, size: int, offset: int) -> bytes:
        pool = self._pool_for_content(opened.file)
        data = await pool.run_for(opened.user, opened.handle.read, size, offset)
        # The text may be a new one.
        self._recount_text(fh)
        if opened.entry.opened == 1:
            opened.entry.note_content(opened.handle.length)
        return data

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._counted["read"] += 1
        try:
            opened = self._find_file(fh)
            try:
                return opened.handle.read(size, off)
            except WouldBlock:
                return await self._read_slowly(fh, opened, size, off)
        except Exception as error:
            raise self.to_fuse_error(error, "read") from None

    @_translate_errors
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file, handle, user, _, pid, _ = self._find_file(fh)
        pool = self._pool_for_write(file)
        # A command that waits for its end is text that is kept for the user.
        self._texts.charge(user, len(buf))
        try:
            with self._remembering("write", file.label, pid):
                return await pool.run_for(user, handle.write, buf, off)
        finally:
            self._texts.uncharge(user, len(buf))
            self._recount_text(fh)

    # Only of files of commands (`file_info`): what waits for its end is complete.
    @_translate_errors
    async def flush(self, fh: int) -> None:
        file, handle, user, _, pid, _ = self._find_file(fh)
        if not isinstance(handle, CommandSnapshot) or not handle.has_pending:
            return
        try:
            with self._remembering("write", file.label, pid):
                await self._pool_for_write(file).run_for(user, handle.flush)
        finally:
            self._recount_text(fh)

    def _pool_for_write(self, file: File) -> Pool:
        return self._pools.slow if file.slow else self._pools.writing

    def _recount_text(self, fh: int) -> None:
        """Take note of how much text is kept for an open file by now."""
        # Another request for the same file may have found that already, or have closed it.
        opened = self._handles.get(fh)
        if opened is not None:
            length = opened.handle.length
            self._texts.recharge(opened.user, opened.length, length)
            self._handles[fh] = opened._replace(length=length)

    async def release(self, fh: int) -> None:
        self._counted["release"] += 1
        try:
            opened = self._find_file(fh)
            del self._handles[fh]
            self._pollers.pop(fh, None)
            if opened.user != ROOT:
                self._count_closed(opened)
            if opened.entry.exclusive:
                opened.entry.note_closed()
            opened.handle.close()
        except Exception as error:
            raise self.to_fuse_error(error, "release") from None

    @_translate_errors
    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    # As kernfs answers (kernfs_generic_poll, fs/kernfs/file.c).
    @_translate_errors
    async def poll(self, inode: int, fh: int, poll_handle: Any, ctx: RequestContext) -> int:
        handle = self._find_file(fh).handle
        if not isinstance(handle, Pollable):
            return _READY
        # None if nobody waits. The kernel takes any one of those that it gave for a file.
        if poll_handle is not None:
            self._pollers[fh] = poll_handle
        wake = functools.partial(self._wake_later, trio.lowlevel.current_trio_token(), fh)
        changed = await self._call_tree(self._pools.read_only, ctx.uid, handle.poll, wake)
        return _READY | _CHANGED if changed else _READY

    def _wake_later(self, token: trio.lowlevel.TrioToken, fh: int) -> None:
        """On any thread: wake the clients that wait for a file, so that they ask again."""
        # If the loop has ended, so has every wait. If only waking it has failed, it is late.
        with suppress(trio.RunFinishedError, OSError):
            token.run_sync_soon(self._wake_poller, fh)

    def _wake_poller(self, fh: int) -> None:
        poller = self._pollers.pop(fh, None)
        if poller is not None:
            with suppress(OSError):
                poller.notify()

    def drop_pollers(self) -> None:
        """Wake nobody any more: before the session is closed, which they lead to."""
        self._pollers.clear()
