"""The adapter, without a mount: a tree of our own, requests made by hand."""

import errno
import logging
import os
import select
import stat
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from netnsfs.fuse import operations as fuse
from netnsfs.fuse.loop import LoopWaiter
from netnsfs.fuse.pool import Pool, Pools
from netnsfs.fuse.quotas import Quota
from netnsfs.jobs import WouldBlock
from netnsfs.limits import WAITING_PER_USER
from netnsfs.node import (
    ENTRY_TIMEOUT,
    Attributes,
    Caller,
    Directory,
    File,
    Handle,
    Node,
    Snapshot,
)
from netnsfs.stats import Stats

ROOT, NOBODY = 0, 65534


def asked_by(user: int, thread: int = 1) -> pyfuse3.RequestContext:
    return cast(pyfuse3.RequestContext, SimpleNamespace(uid=user, pid=thread, umask=0))


CTX = asked_by(ROOT)


FILES = 3
TEXT = 90


class Leaf(File):
    def __init__(self, key: str, content: Callable[[], bytes]) -> None:
        self.key = key
        self._content = content

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFREG | 0o444, 99)

    def open(self, flags: int, caller: Caller) -> Handle:
        return Snapshot(flags, self._content)


class Awaited(Leaf):
    """A file whose readers can wait: `changed` is the answer, `wake` what they left."""

    changed = False
    wake: Callable[[], None]

    def open(self, flags: int, caller: Caller) -> Handle:
        return AwaitedSnapshot(flags, self)


class AwaitedSnapshot(Snapshot):
    def __init__(self, flags: int, file: Awaited) -> None:
        super().__init__(flags, bytes)
        self._file = file

    def poll(self, wake: Callable[[], None]) -> bool:
        elsewhere()
        self._file.wake = wake
        return self._file.changed


class Poller:
    """What the kernel gives for a file that somebody waits for."""

    notified = 0

    def notify(self) -> None:
        self.notified += 1


class Numbered(Directory):
    def __init__(self, number: int, generation: int) -> None:
        self.key = (number, generation)
        self.number = number
        self.generation = generation

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o755, links=2)


class Root(Directory):
    key = "root"
    writable = True

    def __init__(self) -> None:
        self.nodes: dict[bytes, Callable[[], Node]] = {}

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o755)

    def readdir(self) -> list[bytes]:
        return list(self.nodes)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return self.nodes[name]() if name in self.nodes else super().lookup(name, caller)


@pytest.fixture
def root() -> Root:
    return Root()


@pytest.fixture
async def ops(root: Root) -> AsyncIterator[fuse.Operations]:
    loop = LoopWaiter()
    pools = Pools(*(Pool("test", 1, 5, 5, loop) for _ in Pools._fields))
    files = Quota(errno.EMFILE, FILES, 2 * FILES)
    texts = Quota(errno.EMFILE, TEXT, 2 * TEXT)
    yield fuse.Operations(root, pools, lambda: None, Stats(), files, texts)
    for pool in pools:
        pool.close()
    loop.close()


def elsewhere() -> None:
    """As jobs.may_block, when this thread is the event loop's."""
    if threading.current_thread() is threading.main_thread():
        raise WouldBlock


async def code(awaitable: Any) -> str:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await awaitable
    return errno.errorcode[caught.value.errno]


async def test_absent(ops: fuse.Operations) -> None:
    assert await code(ops.lookup(1, b"x", CTX)) == "ENOENT"
    assert await code(ops.lookup(1, b"x" * 256, CTX)) == "ENAMETOOLONG"
    assert await code(ops.getattr(99, CTX)) == "ESTALE"


async def test_whoever_waits_is_woken_once(ops: fuse.Operations, root: Root) -> None:
    file = Awaited("a", bytes)
    root.nodes[b"a"] = lambda: file
    inode = (await ops.lookup(1, b"a", CTX)).st_ino
    fh = (await ops.open(inode, 0, CTX)).fh
    ready = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
    pollers = [Poller() for _ in range(4)]

    async def wake() -> list[int]:
        # From any thread.
        await trio.to_thread.run_sync(file.wake)
        await trio.testing.wait_all_tasks_blocked()
        return [poller.notified for poller in pollers]

    # Nobody waits.
    assert await ops.poll(inode, fh, None, CTX) == ready
    assert await wake() == [0, 0, 0, 0]
    # The last one stands for all.
    for poller in pollers[:2]:
        assert await ops.poll(inode, fh, poller, CTX) == ready
    assert await wake() == [0, 1, 0, 0]
    assert await wake() == [0, 1, 0, 0]
    file.changed = True
    answer = await ops.poll(inode, fh, pollers[2], CTX)
    assert answer == ready | select.POLLPRI | select.POLLERR
    ops.drop_pollers()
    assert await wake() == [0, 1, 0, 0]
    await ops.poll(inode, fh, pollers[3], CTX)
    await ops.release(fh)
    assert await wake() == [0, 1, 0, 0]


async def test_a_file_that_cannot_be_waited_for(ops: fuse.Operations, root: Root) -> None:
    root.nodes[b"a"] = lambda: Leaf("a", bytes)
    inode = (await ops.lookup(1, b"a", CTX)).st_ino
    fh = (await ops.open(inode, 0, CTX)).fh
    ready = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
    assert await ops.poll(inode, fh, Poller(), CTX) == ready
    await ops.release(fh)
    assert await code(ops.poll(inode, fh, None, CTX)) == "EBADF"


async def test_lookup_counts(ops: fuse.Operations, root: Root) -> None:
    root.nodes[b"a"] = lambda: Leaf("a", lambda: b"abc")
    first = (await ops.lookup(1, b"a", CTX)).st_ino
    second = (await ops.lookup(1, b"a", CTX)).st_ino
    assert first == second
    await ops.forget([(first, 1)])
    assert (await ops.getattr(first, CTX)).st_size == 99
    await ops.forget([(first, 1)])
    assert await code(ops.getattr(first, CTX)) == "ESTALE"
    await ops.forget([(first, 1), (1, 5), (12345, 1)])
    assert (await ops.lookup(1, b"a", CTX)).st_ino != first


async def test_a_reused_number_is_shown_and_belongs_to_the_old_node(
    ops: fuse.Operations, root: Root
) -> None:
    root.nodes[b"a"] = lambda: Numbered(4026532000, 1)
    old = await ops.lookup(1, b"a", CTX)
    assert (old.st_ino, old.generation) == (4026532000, 1)
    root.nodes[b"a"] = lambda: Numbered(4026532000, 2)
    new = await ops.lookup(1, b"a", CTX)
    assert new.st_ino != 4026532000
    assert (await ops.getattr(new.st_ino, CTX)).st_ino == 4026532000
    await ops.forget([(4026532000, 1)])
    assert await code(ops.getattr(4026532000, CTX)) == "ESTALE"
    root.nodes[b"a"] = lambda: Numbered(4026532000, 3)
    assert (await ops.lookup(1, b"a", CTX)).st_ino == 4026532000


async def test_names_of_a_directory_that_does_not_last_are_not_cached(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.nodes[b"a"] = lambda: Leaf("a", lambda: b"abc")
    assert (await ops.lookup(1, b"a", CTX)).entry_timeout == 0
    monkeypatch.setattr(Root, "entry_timeout", ENTRY_TIMEOUT)
    root.nodes[b"b"] = lambda: Leaf("b", lambda: b"abc")
    assert (await ops.lookup(1, b"b", CTX)).entry_timeout == ENTRY_TIMEOUT


class Replies:
    """Stands in for pyfuse3.readdir_reply: a buffer with room for some entries."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.names: list[bytes] = []
        self.next = 0

    def __call__(self, token: object, name: bytes, attr: object, next_id: int) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.names.append(name)
        self.next = next_id
        return True


async def listing(
    ops: fuse.Operations, fh: int, start: int, room: int, patch: pytest.MonkeyPatch
) -> Replies:
    replies = Replies(room)
    patch.setattr(pyfuse3, "readdir_reply", replies)
    await ops.readdir(fh, start, cast(pyfuse3.ReaddirToken, None))
    return replies


async def test_a_listing_skips_and_repeats_nothing(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b", b"c", b"d"):
        root.nodes[name] = partial(Leaf, name.decode(), bytes)
    fh = await ops.opendir(1, CTX)
    first = await listing(ops, fh, 0, 4, monkeypatch)
    assert first.names == [b".", b"..", b"a", b"b"]
    del root.nodes[b"a"], root.nodes[b"c"]
    root.nodes[b"0"] = lambda: Leaf("0", lambda: b"")
    second = await listing(ops, fh, first.next, 9, monkeypatch)
    assert second.names == [b"d"]
    again = await listing(ops, fh, 0, 9, monkeypatch)
    assert again.names == [b".", b"..", b"b", b"d", b"0"]
    await ops.releasedir(fh)


async def test_a_slow_listing_comes_in_pieces(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b", b"c"):
        root.nodes[name] = partial(Leaf, name.decode(), bytes)
    monkeypatch.setattr(fuse, "LISTING_SECONDS", 0)
    fh = await ops.opendir(1, CTX)
    at = 0
    for name in (b".", b"..", b"a", b"b", b"c"):
        piece = await listing(ops, fh, at, 9, monkeypatch)
        assert piece.names == [name]
        at = piece.next
    assert (await listing(ops, fh, at, 9, monkeypatch)).names == []
    await ops.releasedir(fh)


async def test_only_delivered_entries_are_counted(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (4026532001, 4026532002):
        root.nodes[b"%d" % number] = partial(Numbered, number, 1)
    fh = await ops.opendir(1, CTX)
    await listing(ops, fh, 0, 3, monkeypatch)
    await ops.forget([(4026532001, 1)])
    assert await code(ops.getattr(4026532001, CTX)) == "ESTALE"
    await ops.releasedir(fh)


async def test_a_listing_that_is_short_of_something_fails_where_it_stopped(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short() -> Node:
        raise OSError(errno.EMFILE, "too many open files")

    root.nodes = {b"a": partial(Numbered, 4026532001, 1), b"b": short}
    fh = await ops.opendir(1, CTX)
    first = await listing(ops, fh, 0, 9, monkeypatch)
    assert first.names == [b".", b"..", b"a"]
    assert await code(ops.readdir(fh, first.next, cast(pyfuse3.ReaddirToken, None))) == "EMFILE"
    root.nodes[b"b"] = lambda: Leaf("b", bytes)
    assert (await listing(ops, fh, first.next, 9, monkeypatch)).names == [b"b"]
    await ops.releasedir(fh)


async def test_a_listing_survives_a_broken_entry(
    ops: fuse.Operations,
    root: Root,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Node:
        raise ValueError("broken")

    root.nodes = {b"a": broken, b"b": lambda: Leaf("b", lambda: b"")}
    fh = await ops.opendir(1, CTX)
    assert (await listing(ops, fh, 0, 9, monkeypatch)).names == [b".", b"..", b"b"]
    assert "Traceback" in caplog.text
    await ops.releasedir(fh)


async def test_errors(
    ops: fuse.Operations, root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: Exception) -> Callable[[], Node]:
        def lookup() -> Node:
            raise error

        return lookup

    root.nodes = {
        b"os": fail(OSError(errno.EXDEV, "")),
        b"bare": fail(OSError("no errno")),
        b"bug": fail(ZeroDivisionError()),
    }
    with caplog.at_level(logging.ERROR):
        assert await code(ops.lookup(1, b"os", CTX)) == "EXDEV"
        assert await code(ops.lookup(1, b"bare", CTX)) == "EIO"
        assert not caplog.records
        assert await code(ops.lookup(1, b"bug", CTX)) == "EIO"
        assert "ZeroDivisionError" in caplog.text


async def test_a_call_that_would_block_is_made_on_a_worker(
    ops: fuse.Operations, root: Root
) -> None:
    loop = threading.get_ident()

    def slow() -> Node:
        if threading.get_ident() == loop:
            raise WouldBlock
        return Leaf("slow", lambda: b"")

    root.nodes[b"slow"] = slow
    assert (await ops.lookup(1, b"slow", CTX)).st_size == 99


async def test_snapshots(ops: fuse.Operations, root: Root) -> None:
    contents = [b"third", b"second", b"first"]
    root.nodes[b"f"] = lambda: Leaf("f", contents.pop)
    inode = (await ops.lookup(1, b"f", CTX)).st_ino
    info = await ops.open(inode, 0, CTX)
    assert info.direct_io
    assert not info.keep_cache
    assert await ops.read(info.fh, 1, 2) == b"ir"
    assert await ops.read(info.fh, 0, 99) == b"first"
    assert await ops.read(info.fh, 3, 99) == b"st"
    assert await ops.read(info.fh, 0, 99) == b"second"
    assert await ops.read(info.fh, 99, 99) == b""
    await ops.release(info.fh)


async def test_a_size_that_was_too_small_is_made_good_at_open(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(pyfuse3, "notify_store", lambda *args: told.append(args))
    for name, length in ((b"short", 99), (b"long", 100)):
        root.nodes[name] = partial(Leaf, name.decode(), partial(bytes, length))
        inode = (await ops.lookup(1, name, CTX)).st_ino
        await ops.release((await ops.open(inode, 0, CTX)).fh)
    assert told == [(inode, 99, b"\n")]


async def test_what_cannot_be_opened_after_all_is_closed(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*store: object) -> None:
        raise OSError(errno.ENOENT, "not known to the kernel")

    def close(snapshot: Snapshot) -> None:
        closed.append(snapshot)

    closed: list[Snapshot] = []
    monkeypatch.setattr(Snapshot, "close", close)
    monkeypatch.setattr(pyfuse3, "notify_store", fail)
    root.nodes[b"f"] = lambda: Leaf("f", lambda: bytes(100))
    inode = (await ops.lookup(1, b"f", CTX)).st_ino
    assert await code(ops.open(inode, 0, CTX)) == "ENOENT"
    assert len(closed) == 1
    assert ops.open_files == 0


Change = tuple[int | None, int | None, int | None]


class Changeable(Numbered):
    changes: list[Change]

    def setattr(
        self, mode: int | None, uid: int | None, gid: int | None, caller: Caller
    ) -> None:
        self.changes.append((mode, uid, gid))


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ({"mode": 0o40700}, [(0o700, None, None)]),
        ({"uid": 5}, [(None, 5, None)]),
        ({"gid": 6}, [(None, None, 6)]),
        ({"mode": 0o40755, "uid": 5, "gid": 0}, [(0o755, 5, 0)]),
        ({"mode": 0o40755, "uid": 0, "gid": 0}, []),
        ({}, []),
    ],
)
async def test_only_the_fields_that_were_asked_for_are_changed(
    ops: fuse.Operations, root: Root, asked: dict[str, int], changes: list[Change]
) -> None:
    directory = Changeable(4026532001, 1)
    directory.changes = []
    root.nodes[b"d"] = lambda: directory
    inode = (await ops.lookup(1, b"d", CTX)).st_ino
    attributes = pyfuse3.EntryAttributes()
    for name, value in asked.items():
        setattr(attributes, f"st_{name}", value)
    names = ("size", "atime", "mtime", "ctime", "mode", "uid", "gid")
    fields = SimpleNamespace(**{f"update_{name}": name in asked for name in names})
    root_user = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, pid=1, umask=0))
    await ops.setattr(inode, attributes, cast(Any, fields), None, root_user)
    assert directory.changes == changes


async def test_a_snapshot_of_what_is_gone(ops: fuse.Operations, root: Root) -> None:
    gone = False

    def content() -> bytes:
        if gone:
            raise FileNotFoundError(errno.ENOENT, "")
        return b"here"

    root.nodes[b"f"] = lambda: Leaf("f", content)
    inode = (await ops.lookup(1, b"f", CTX)).st_ino
    info = await ops.open(inode, 0, CTX)
    assert await ops.read(info.fh, 0, 99) == b"here"
    gone = True
    assert await ops.read(info.fh, 2, 99) == b"re"
    assert await code(ops.read(info.fh, 0, 99)) == "ENODEV"
    await ops.release(info.fh)
    assert await code(ops.open(inode, 0, CTX)) == "ENOENT"


async def test_what_is_not_open(ops: fuse.Operations, root: Root) -> None:
    root.nodes[b"f"] = lambda: Leaf("f", lambda: b"")
    inode = (await ops.lookup(1, b"f", CTX)).st_ino
    fh = (await ops.open(inode, 0, CTX)).fh
    listing = await ops.opendir(1, CTX)
    await ops.release(fh)
    await ops.releasedir(listing)
    token = cast(pyfuse3.ReaddirToken, None)
    for request in (
        ops.release(fh),
        ops.read(fh, 0, 1),
        ops.write(fh, 0, b"x"),
        ops.releasedir(listing),
        ops.readdir(listing, 0, token),
        ops.read(listing, 0, 1),
    ):
        assert await code(request) == "EBADF"


async def test_a_listing_of_a_forgotten_directory(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.nodes[b"d"] = lambda: Numbered(4026532001, 1)
    inode = (await ops.lookup(1, b"d", CTX)).st_ino
    fh = await ops.opendir(inode, CTX)
    await ops.forget([(inode, 1)])
    assert (await listing(ops, fh, 0, 0, monkeypatch)).names == []
    assert (await listing(ops, fh, 0, 9, monkeypatch)).names == [b".", b".."]
    await ops.releasedir(fh)


async def test_wrong_kinds_of_node(ops: fuse.Operations, root: Root) -> None:
    root.nodes[b"f"] = lambda: Leaf("f", lambda: b"")
    inode = (await ops.lookup(1, b"f", CTX)).st_ino
    assert await code(ops.opendir(inode, CTX)) == "ENOTDIR"
    assert await code(ops.lookup(inode, b"x", CTX)) == "ENOTDIR"
    assert await code(ops.readlink(inode, CTX)) == "EINVAL"
    assert await code(ops.open(1, 0, CTX)) == "EISDIR"


async def test_nothing_answers_enosys_but_what_is_meant_to(ops: fuse.Operations) -> None:
    inherited = {
        name
        for name, value in vars(pyfuse3.Operations).items()
        if callable(value) and not name.startswith("_") and name not in vars(fuse.Operations)
    }
    assert inherited == {
        "getxattr",
        "listxattr",
        "removexattr",
        "setxattr",
        "stacktrace",
    }


async def test_statfs_is_that_of_cgroup2(ops: fuse.Operations) -> None:
    answer = await ops.statfs(CTX)
    assert (answer.f_bsize, answer.f_blocks, answer.f_files, answer.f_namemax) == (
        4096,
        0,
        0,
        255,
    )


async def open_anew(ops: fuse.Operations, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
    """As the kernel opens a name that it may not keep."""
    inode = (await ops.lookup(1, b"a", ctx)).st_ino
    return await ops.open(inode, 0, ctx)


async def test_a_user_has_so_many_open_files(ops: fuse.Operations, root: Root) -> None:
    root.nodes[b"a"] = lambda: Leaf("a", lambda: b"abc")
    nobody = asked_by(65534)
    opened = [(await open_anew(ops, nobody)).fh for _ in range(FILES)]
    assert await code(open_anew(ops, nobody)) == "EMFILE"
    assert ops.open_files == FILES
    for user in (0, 1000):
        opened.append((await open_anew(ops, asked_by(user))).fh)
    for fh in opened:
        await ops.release(fh)
    for _ in range(FILES + 1):
        await ops.release((await open_anew(ops, nobody)).fh)


async def test_a_user_keeps_so_much_text(ops: fuse.Operations, root: Root) -> None:
    texts = iter([b"x" * TEXT, b"x", b"x", b"x" * (TEXT - 1), b"x", b"x"])
    root.nodes[b"a"] = lambda: Leaf("a", lambda: next(texts))
    nobody = asked_by(65534)
    first = (await open_anew(ops, nobody)).fh
    assert await code(open_anew(ops, nobody)) == "EMFILE"
    await ops.release(first)
    opened = [(await open_anew(ops, nobody)).fh for _ in range(2)]
    assert await code(open_anew(ops, nobody)) == "EMFILE"
    opened.append((await open_anew(ops, CTX)).fh)
    for fh in opened:
        await ops.release(fh)


async def test_a_text_that_has_grown_counts(ops: fuse.Operations, root: Root) -> None:
    texts = iter([b"x", b"x" * (TEXT - 1), b"xx", b"x"])

    def slow() -> bytes:
        elsewhere()
        return next(texts)

    root.nodes[b"a"] = lambda: Leaf("a", slow)
    nobody = asked_by(65534)
    fh = (await open_anew(ops, nobody)).fh
    for _ in range(2):
        await ops.read(fh, 0, TEXT)
    assert await code(open_anew(ops, nobody)) == "EMFILE"
    await ops.release(fh)
    await ops.release((await open_anew(ops, nobody)).fh)


async def test_a_user_waits_for_so_many(ops: fuse.Operations, root: Root) -> None:
    release = threading.Event()

    def find() -> Node:
        elsewhere()
        release.wait()
        return Leaf("a", lambda: b"abc")

    root.nodes[b"a"] = find
    nobody = asked_by(65534)
    async with trio.open_nursery() as nursery:
        for _ in range(WAITING_PER_USER):
            nursery.start_soon(ops.lookup, 1, b"a", nobody)
        await trio.testing.wait_all_tasks_blocked()
        assert await code(ops.lookup(1, b"a", nobody)) == "EAGAIN"
        nursery.start_soon(ops.lookup, 1, b"a", CTX)
        await trio.testing.wait_all_tasks_blocked()
        release.set()


async def test_readers_do_not_keep_a_directory_locked(ops: fuse.Operations, root: Root) -> None:
    release = threading.Event()

    def wait() -> bytes:
        elsewhere()
        release.wait()
        return b"abc"

    def find() -> Node:
        elsewhere()
        return Leaf("b", lambda: b"abc")

    root.nodes[b"a"] = lambda: Leaf("a", wait)
    root.nodes[b"b"] = find
    nobody = asked_by(65534)
    inode = (await ops.lookup(1, b"a", nobody)).st_ino
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ops.open, inode, 0, nobody)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(4):
            assert (await ops.lookup(1, b"b", nobody)).st_ino
        release.set()


@pytest.mark.parametrize("is_slow", [True, False])
async def test_what_takes_long_to_write_keeps_no_other_change_waiting(
    ops: fuse.Operations, root: Root, is_slow: bool
) -> None:
    release = threading.Event()

    def run(data: bytes) -> None:
        elsewhere()
        release.wait()

    class Slow(Leaf):
        slow = is_slow

        def open(self, flags: int, caller: Caller) -> Handle:
            return Snapshot(flags, bytes, run=run)

    root.nodes[b"a"] = lambda: Slow("a", bytes)
    nobody = asked_by(65534)
    inode = (await ops.lookup(1, b"a", nobody)).st_ino
    fh = (await ops.open(inode, os.O_WRONLY, nobody)).fh
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ops.write, fh, 0, b"x")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(4):
            assert await code(ops.mkdir(1, b"b", 0o755, nobody)) == "EPERM"
        release.set()


async def test_open_files_are_different_nodes(ops: fuse.Operations, root: Root) -> None:
    texts = (b"x" * length for length in range(1, 100))
    root.nodes[b"a"] = lambda: Leaf("a", lambda: next(texts))
    other = asked_by(NOBODY, 2)

    async def look_up(ctx: pyfuse3.RequestContext = CTX) -> int:
        return (await ops.lookup(1, b"a", ctx)).st_ino

    async def size(inode: int) -> int:
        return (await ops.getattr(inode, CTX)).st_size

    first = await look_up()
    assert await look_up() == first
    one = (await ops.open(first, 0, CTX)).fh
    second = await look_up()
    assert second != first
    two = (await ops.open(second, 0, CTX)).fh
    assert [await size(first), await size(second)] == [1, 2]
    # What is only looked up is for whoever did.
    third = await look_up(other)
    assert third not in (first, second, await look_up())
    three = (await ops.open(third, 0, other)).fh
    # All of them show one number.
    assert {(await ops.getattr(inode, CTX)).st_ino for inode in (first, second, third)} == {
        first
    }
    for fh in (one, two, three):
        await ops.release(fh)


async def test_a_file_whose_name_is_kept_is_looked_up_again(
    ops: fuse.Operations, root: Root
) -> None:
    root.nodes[b"a"] = lambda: Leaf("a", lambda: b"abc")
    inode = (await ops.lookup(1, b"a", CTX)).st_ino
    one = (await ops.open(inode, 0, CTX)).fh
    assert await code(ops.open(inode, os.O_RDONLY, CTX)) == "ESTALE"
    another = await ops.lookup(1, b"a", CTX)
    assert another.st_ino != inode
    # Nobody else finds this one by the name.
    assert another.entry_timeout == 0
    two = (await ops.open(another.st_ino, 0, CTX)).fh
    # What is open already can be opened again: no lookup helps.
    assert await code(ops.open(inode, os.O_RDONLY, CTX)) == "ESTALE"
    three = (await ops.open(inode, 0, CTX)).fh
    for fh in (one, two, three):
        await ops.release(fh)


async def test_what_another_was_told_may_not_have_come_there(
    ops: fuse.Operations, root: Root
) -> None:
    """The kernel could still take that for the size. One that is too large does no harm."""
    texts = iter([b"abc", b"x" * 100, b"x" * 99])
    root.nodes[b"a"] = lambda: Leaf("a", lambda: next(texts))
    inode = (await ops.lookup(1, b"a", CTX)).st_ino
    assert (await ops.getattr(inode, asked_by(NOBODY, 2))).st_size == 99
    await ops.release((await ops.open(inode, 0, CTX)).fh)
    await ops.getattr(inode, asked_by(NOBODY, 2))
    assert await code(ops.open(inode, 0, CTX)) == "ESTALE"
    another = (await ops.lookup(1, b"a", CTX)).st_ino
    assert another != inode
    await ops.release((await ops.open(another, 0, CTX)).fh)


async def test_what_mkdir_has_made_is_told_without_a_look(
    ops: fuse.Operations, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And valid for no time: others may have changed it already."""
    looks: list[int] = []

    class Made(Numbered):
        at_birth = Attributes(stat.S_IFDIR | 0o700, attr_timeout=0)

        def getattr_cached(self) -> Attributes:
            looks.append(1)
            return super().getattr_cached()

    made = Made(77, 1)
    monkeypatch.setattr(root, "mkdir", lambda name, mode, caller: made)
    root.nodes[b"new"] = lambda: made
    entry = await ops.mkdir(1, b"new", 0o700, asked_by(0))
    assert (entry.st_ino, entry.st_mode, entry.attr_timeout) == (77, stat.S_IFDIR | 0o700, 0)
    assert looks == []
    found = await ops.lookup(1, b"new", asked_by(0))
    assert (found.st_mode, looks) == (stat.S_IFDIR | 0o755, [1])
