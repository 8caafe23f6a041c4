"""Names, writes, reads and requests that nobody would make: a right errno, no EIO, no hang.

The fixture of the mount fails a test that leaves a traceback in the daemon's log.
"""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from conftest import LONG, RUN, Mounted, error_of, ip
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netnsfs import linux
from netnsfs.config import Config
from netnsfs.fuse import operations as fuse
from netnsfs.fuse.loop import LoopWaiter
from netnsfs.fuse.pool import Pool, Pools
from netnsfs.fuse.quotas import Quota
from netnsfs.fuse.replay import OperationsWithReplay, ReportedNames
from netnsfs.jobs import never_block, on_own_thread, restoring_namespace
from netnsfs.netns.names import NamedNamespaces
from netnsfs.stats import Stats
from netnsfs.tree.root import Root

profile = settings(
    max_examples=5000 if LONG else 150,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

# What a client can be kept waiting is bounded, and no test here waits that long.
pytestmark = pytest.mark.timeout(1800 if LONG else 120)


@pytest.fixture
def bar(mnt: Mounted) -> Iterator[Path]:
    (mnt / "bar").mkdir()
    yield mnt / "bar"
    (mnt / "bar").rmdir()


def under(mnt: Mounted, name: bytes) -> bytes:
    return bytes(mnt.path) + b"/" + name


def calls_on(mnt: Mounted, name: bytes) -> dict[str, str]:
    """The errno of every operation that takes a name, in an order in which all can work."""
    path, other = under(mnt, name), under(mnt, b"other")
    return {
        "mkdir": error_of(os.mkdir, path),
        "stat": error_of(os.stat, path),
        "mv": error_of(os.rename, path, other),
        "mv back": error_of(os.rename, other, path),
        "rmdir": error_of(os.rmdir, path),
        "ln -s": error_of(os.symlink, "/proc/self/ns/net", path),
        "rmdir of that": error_of(os.rmdir, path),
        "open": error_of(os.open, path + b"/id", os.O_RDONLY),
    }


NORMAL = {"open": "ENOENT"}


def test_every_byte_is_a_name(mnt: Mounted) -> None:
    for byte in range(1, 256):
        name = bytes([byte])
        if name in b"/.":
            continue
        assert {call: code for call, code in calls_on(mnt, name).items() if code} == NORMAL


@pytest.mark.parametrize("filler", [b"x", b"\xff", b"\n", b" "])
def test_every_length_of_a_name(mnt: Mounted, filler: bytes) -> None:
    for length in (1, 2, 31, 63, 127, 128, *range(250, 256)):
        assert calls_on(mnt, filler * length) == dict.fromkeys(calls_on(mnt, b"a"), "") | NORMAL
    assert os.listdir(RUN) == []
    for length in (*range(256, 301), 511, 1023, 1024, 1025, 2000, 4000):
        found = calls_on(mnt, filler * length)
        assert found.pop("mv back") == "ENOENT"
        # rename(2) looks for the old name first, which is too long as well.
        assert set(found.values()) == {"ENAMETOOLONG"}
    assert error_of(os.mkdir, under(mnt, b"")) == "EEXIST"
    assert error_of(os.rmdir, b"") == "ENOENT"


@profile
@given(name=st.binary(min_size=1, max_size=300))
@example(name=b"(deleted)")
@example(name=b"\\040")
def names_alike(mnt: Mounted, name: bytes) -> None:
    name = name.replace(b"\0", b"0").replace(b"/", b"1")
    if name in (b".", b"..", b".netnsfs", b"other"):
        return
    if len(name) > 255:
        assert error_of(os.mkdir, under(mnt, name)) == "ENAMETOOLONG"
        return
    os.mkdir(under(mnt, name))
    assert os.listdir(bytes(RUN)) == [name]
    assert ip("netns", "list").stdout == name + b"\n"
    assert os.readlink(under(mnt, name) + b"/ns") == bytes(RUN) + b"/" + name
    assert os.stat(under(mnt, name) + b"/ns").st_ino == os.stat(under(mnt, name)).st_ino
    os.rmdir(under(mnt, name))


def test_random_names(mnt: Mounted) -> None:
    names_alike(mnt)


# Writes


NSID = re.compile(rb"\s*(auto|[0-9]+)\s*")


def expected_of_nsid(text: bytes) -> set[str]:
    found = NSID.fullmatch(text)
    if not found:
        return {"EINVAL"}
    if found[1] != b"auto" and int(found[1][-4000:]) > 0x7FFFFFFF:
        return {"ERANGE"}
    return {"", "EEXIST"}


@profile
@given(
    text=st.one_of(
        st.binary(min_size=1, max_size=5000),
        st.from_regex(rb"\A[ \n]*-?[0-9]{1,12}[ \n\0]*\Z"),
        st.sampled_from([b"auto", b"AUTO", b"auto\n", b"auto\0", b"1e3", b"+1", b"\n", b"0x1"]),
    )
)
def nsids(foo: Path, text: bytes) -> None:
    before = (foo / "nsid").read_bytes()
    fd = os.open(foo / "nsid", os.O_WRONLY)
    codes = [error_of(os.write, fd, text), error_of(os.close, fd)]
    code = codes[0] or codes[1]
    assert code in expected_of_nsid(text)
    if code:
        assert (foo / "nsid").read_bytes() == before


def test_random_writes_of_nsid(foo: Path) -> None:
    nsids(foo)


SYSCTLS = (
    "ipv4/ip_forward",
    "core/somaxconn",
    "ipv4/ip_local_port_range",
    "ipv4/ping_group_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/tcp_congestion_control",
    "ipv4/conf/lo/rp_filter",
    "ipv4/tcp_fastopen_key",
)


class Direct:
    """/proc/sys/net, as a thread in a namespace has it."""

    def __init__(self, namespace: Path) -> None:
        self._fd = os.open(namespace, os.O_RDONLY)

    def write(self, name: str, data: bytes, offset: int) -> tuple[str, int, bytes]:
        return on_own_thread(self._write, name, data, offset)

    def _write(self, name: str, data: bytes, offset: int) -> tuple[str, int, bytes]:
        with restoring_namespace():
            linux.setns(self._fd, linux.CLONE_NEWNET)
            return outcome(Path("/proc/sys/net", name), data, offset)

    def close(self) -> None:
        os.close(self._fd)


def outcome(path: Path, data: bytes, offset: int) -> tuple[str, int, bytes]:
    """The errno of a write, the number of bytes taken, and what is to be read afterwards."""
    taken: list[int] = []
    fd = os.open(path, os.O_WRONLY)
    code = error_of(lambda: taken.append(os.pwrite(fd, data, offset)))
    os.close(fd)
    return code, sum(taken), path.read_bytes()


@profile
@given(
    name=st.sampled_from(SYSCTLS),
    offset=st.sampled_from([0, 0, 0, 0, 1, 4096]),
    data=st.one_of(
        st.binary(min_size=1, max_size=100),
        st.binary(min_size=1, max_size=9000),
        st.from_regex(rb"\A[ \t]*-?[0-9]{1,11}([ ,\t-][0-9]{1,6})?[ \n\0]{0,3}\Z"),
        st.sampled_from([b"cubic", b"reno\n", b"x" * 70_000, b"1" * 5000, b" " * 4097, b"\0"]),
    ),
)
@example(name="ipv4/tcp_congestion_control", offset=0, data=b"absent")
def sysctls(ours: Path, direct: Direct, name: str, offset: int, data: bytes) -> None:
    found = outcome(ours / "sysctl" / name, data, offset)
    assert found == direct.write(name, data, offset)


def test_random_writes_of_sysctls_are_the_kernels(foo: Path, bar: Path) -> None:
    direct = Direct(RUN / "bar")
    sysctls(foo, direct)
    direct.close()


# Reads


@profile
@given(
    file=st.sampled_from(
        (
            "inode",
            "id",
            "nsid",
            "pids",
            "cgroups",
            "net/dev",
            "net/tcp",
            "net/protocols",
            "sysctl/core/somaxconn",
        )
    ),
    offset=st.one_of(st.integers(0, 10_000), st.sampled_from([2**31, 2**32, 2**62])),
    size=st.one_of(st.integers(0, 9000), st.sampled_from([1 << 17, 1 << 20])),
)
def reads(foo: Path, file: str, offset: int, size: int) -> None:
    fd = os.open(foo / file, os.O_RDONLY)
    whole = os.pread(fd, 1 << 20, 0)
    assert os.pread(fd, size, offset) == whole[offset : offset + size]
    os.lseek(fd, offset, os.SEEK_SET)
    assert os.read(fd, size) == whole[offset : offset + size]
    os.close(fd)


def test_reads_at_any_offset(foo: Path) -> None:
    reads(foo)


# System calls that are not for such files


_libc = ctypes.CDLL(None, use_errno=True)


def libc(function: str, *arguments: object) -> int:
    """A call of the C library; raises OSError."""
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), function)
    return result


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


FLAGS = [
    getattr(os, "O_" + name)
    for name in (
        *("APPEND", "ASYNC", "CREAT", "DIRECT", "DIRECTORY", "DSYNC", "EXCL", "NOATIME"),
        *("NOCTTY", "NOFOLLOW", "NONBLOCK", "PATH", "SYNC", "TMPFILE", "TRUNC", "CLOEXEC"),
    )
]
PLACES = (".", "id", "nsid", "ns", "pids", "net", "net/dev", "sysctl/ipv4/ip_forward")
REFUSALS = ["ENOTDIR", "EISDIR", "EACCES", "EEXIST", "ELOOP", "EINVAL", "EPERM", "ENOTSUP"]
WITH = (0, os.O_CREAT, os.O_DIRECTORY, os.O_EXCL, os.O_PATH, os.O_TRUNC)


@pytest.mark.parametrize("place", PLACES)
def test_every_flag_of_open(foo: Path, place: str) -> None:
    for mode, first, second in itertools.product(range(4), FLAGS, WITH):
        flags = mode | first | second
        code = error_of(lambda flags=flags: os.close(os.open(foo / place, flags)))
        assert code in {"", *REFUSALS}, flags


@pytest.mark.parametrize("file", ["id", "nsid", "net/dev", "sysctl/ipv4/ip_forward"])
def test_system_calls_of_other_files(foo: Path, file: str) -> None:
    writable = "O_RDWR" if file in ("nsid", "sysctl/ipv4/ip_forward") else "O_RDONLY"
    content = (foo / file).read_bytes()
    found: dict[str, str] = {}
    with opened(foo / file, getattr(os, writable)) as fd, opened(foo / "id") as other:
        attempts: dict[str, Callable[[], object]] = {
            "fallocate": lambda: libc("fallocate", fd, 0, 0, 10),
            "punch": lambda: libc("fallocate", fd, 3, 0, 10),
            "SEEK_DATA": lambda: os.lseek(fd, 0, os.SEEK_DATA),
            "SEEK_HOLE": lambda: os.lseek(fd, 0, os.SEEK_HOLE),
            "SEEK_END": lambda: os.lseek(fd, 0, os.SEEK_END),
            "negative seek": lambda: os.lseek(fd, -1, os.SEEK_SET),
            "copy_file_range": lambda: os.copy_file_range(fd, other, 10),
            "ioctl": lambda: fcntl.ioctl(fd, 0x5401),
            "FIONREAD": lambda: fcntl.ioctl(fd, 0x541B, b"1234"),
            "FICLONE": lambda: fcntl.ioctl(fd, 0x40049409, other),
            "FS_IOC_GETFLAGS": lambda: fcntl.ioctl(fd, 0x80086601, b"12345678"),
            "getxattr": lambda: os.getxattr(fd, "user.x"),
            "listxattr": lambda: os.listxattr(fd),
            "setxattr": lambda: os.setxattr(fd, "user.x", b"x"),
            "acl": lambda: os.getxattr(foo / file, "system.posix_acl_access"),
            "flock": lambda: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB),
            "lockf": lambda: fcntl.lockf(fd, fcntl.LOCK_UN),
            "lease": lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK),
            "notify": lambda: fcntl.fcntl(fd, fcntl.F_NOTIFY, 1),
            "mmap": lambda: mmap.mmap(fd, 1, mmap.MAP_PRIVATE, mmap.PROT_READ).close(),
            "shared": lambda: mmap.mmap(fd, 1, mmap.MAP_SHARED, mmap.PROT_WRITE).close(),
            "fsync": lambda: os.fsync(fd),
            "fdatasync": lambda: os.fdatasync(fd),
            "syncfs": lambda: libc("syncfs", fd),
            "readahead": lambda: libc("readahead", fd, 0, 4096),
            "fadvise": lambda: os.posix_fadvise(fd, 0, 10, os.POSIX_FADV_WILLNEED),
            "utimes": lambda: os.utime(fd, (1, 1)),
            "touch": lambda: os.utime(fd),
            "chmod": lambda: os.fchmod(fd, 0o777),
            "chown": lambda: os.fchown(fd, 1, 1),
            "truncate": lambda: os.ftruncate(fd, 1),
            "getdents": lambda: os.listdir(fd),
            "name_to_handle": lambda: libc(
                "name_to_handle_at", fd, b"", b"\0" * 200, b"\0" * 8, 0x1000
            ),
        }
        for name, call in attempts.items():
            found[name] = error_of(call)
    assert "EIO" not in found.values()
    for name in ("utimes", "touch", "chmod", "chown", "truncate", "setxattr", "fallocate"):
        assert found[name], name
    assert (foo / file).read_bytes() == content


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 5, 6, 8, 0x10, 0xFFFFFFFF])
def test_flags_of_rename(mnt: Mounted, foo: Path, bar: Path, flags: int) -> None:
    def rename(old: Path, new: Path) -> str:
        return error_of(libc, "renameat2", -100, bytes(old), -100, bytes(new), flags)

    assert rename(foo, bar) == ("EEXIST" if flags in (0, 1, 5) else "EINVAL")
    for old in (foo / "id", foo / "net", mnt / ".netnsfs", mnt / ".netnsfs/last_error"):
        assert rename(old, mnt / "new") in ("EPERM", "EINVAL", "ENOENT")
    expected = {0: "", 1: "", 2: "ENOENT"}.get(flags, "EINVAL")
    assert rename(foo, mnt / "new") == expected
    if not expected:
        (mnt / "new").rmdir()


_libc.opendir.restype = _libc.readdir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _name in ("readdir", "closedir", "telldir", "rewinddir"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


@pytest.mark.parametrize("place", [".", "foo", "foo/net", ".netnsfs/pid", ".netnsfs/unnamed"])
def test_any_offset_of_a_directory(mnt: Mounted, foo: Path, place: str) -> None:
    stream = _libc.opendir(bytes(mnt / place))
    try:
        for offset in (5, 1, 10**6, 0, 2**31, 2, 2**62, 2**63 - 1, -1, 3):
            _libc.seekdir(stream, offset)
            _libc.telldir(stream)
            ctypes.set_errno(0)
            while _libc.readdir(stream):
                pass
            assert errno.errorcode.get(ctypes.get_errno(), "") in ("", "EINVAL", "ENOENT")
    finally:
        _libc.closedir(stream)


def test_a_removed_directory_that_is_open(mnt: Mounted, foo: Path) -> None:
    held = [os.open(foo / place, os.O_RDONLY) for place in (".", "net", "sysctl/ipv4")]
    foo.rmdir()
    for fd in held:
        for call in (
            partial(os.listdir, fd),
            partial(os.open, "id", os.O_RDONLY, dir_fd=fd),
            partial(os.mkdir, "x", dir_fd=fd),
            partial(os.rmdir, "x", dir_fd=fd),
            partial(os.symlink, "x", "y", dir_fd=fd),
            partial(os.rename, "x", "y", src_dir_fd=fd, dst_dir_fd=fd),
            partial(os.fstat, fd),
            partial(os.fsync, fd),
        ):
            assert error_of(call) in ("", "ENOENT", "ESTALE", "EPERM")
        os.close(fd)


# Requests that the kernel would not send, to the adapter with the real tree behind it


class Requests:
    """Makes requests out of numbers: of nodes and files that were told of, and of others."""

    def __init__(self, operations: fuse.Operations) -> None:
        self._operations = operations
        self._nodes = [1, 0, 99, 2**63]
        self._fhs = [0, 12345]
        self._context = cast(
            pyfuse3.RequestContext, SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0)
        )

    async def make(self, kind: str, a: int, b: int, name: bytes) -> None:
        code = 0
        try:
            await getattr(self, kind)(a, b, name)
        except pyfuse3.FUSEError as error:
            code = error.errno
        assert code not in (errno.EIO, errno.ENOSYS), kind

    def _node(self, number: int) -> int:
        return self._nodes[number % len(self._nodes)]

    def _fh(self, number: int) -> int:
        return self._fhs[number % len(self._fhs)]

    async def lookup(self, a: int, b: int, name: bytes) -> None:
        found = await self._operations.lookup(self._node(a), name, self._context)
        self._nodes.append(found.st_ino)

    async def forget(self, a: int, b: int, name: bytes) -> None:
        await self._operations.forget([(self._node(a), b), (self._node(b), a)])

    async def getattr(self, a: int, b: int, name: bytes) -> None:
        await self._operations.getattr(self._node(a), self._context)

    async def setattr(self, a: int, b: int, name: bytes) -> None:
        names = ("size", "atime", "mtime", "ctime", "mode", "uid", "gid")
        fields = SimpleNamespace(
            **{f"update_{n}": bool(b >> i & 1) for i, n in enumerate(names)}
        )
        attributes = pyfuse3.EntryAttributes()
        attributes.st_size, attributes.st_mode = b, a & 0xFFFF
        await self._operations.setattr(
            self._node(a), attributes, cast(Any, fields), None, self._context
        )

    async def readlink(self, a: int, b: int, name: bytes) -> None:
        await self._operations.readlink(self._node(a), self._context)

    async def mkdir(self, a: int, b: int, name: bytes) -> None:
        found = await self._operations.mkdir(self._node(a), name, b & 0o7777, self._context)
        self._nodes.append(found.st_ino)

    async def rmdir(self, a: int, b: int, name: bytes) -> None:
        await self._operations.rmdir(self._node(a), name, self._context)

    async def rename(self, a: int, b: int, name: bytes) -> None:
        await self._operations.rename(
            self._node(a), name, self._node(b), name[::-1], b % 9, self._context
        )

    async def symlink(self, a: int, b: int, name: bytes) -> None:
        targets = (b"/proc/self/ns/net", name[::-1], b"", b"/" * 300, b"../" * 50)
        found = await self._operations.symlink(
            self._node(a), name, targets[b % len(targets)], self._context
        )
        self._nodes.append(found.st_ino)

    async def opendir(self, a: int, b: int, name: bytes) -> None:
        self._fhs.append(await self._operations.opendir(self._node(a), self._context))

    async def readdir(self, a: int, b: int, name: bytes) -> None:
        await self._operations.readdir(self._fh(a), b, cast(Any, itertools.count(-(b % 7))))

    async def releasedir(self, a: int, b: int, name: bytes) -> None:
        await self._operations.releasedir(self._fh(a))

    async def open(self, a: int, b: int, name: bytes) -> None:
        info = await self._operations.open(self._node(a), b & 0o7777777, self._context)
        self._fhs.append(info.fh)

    async def read(self, a: int, b: int, name: bytes) -> None:
        await self._operations.read(self._fh(a), b, a)

    async def write(self, a: int, b: int, name: bytes) -> None:
        await self._operations.write(self._fh(a), b, name)

    async def release(self, a: int, b: int, name: bytes) -> None:
        await self._operations.release(self._fh(a))

    async def poll(self, a: int, b: int, name: bytes) -> None:
        await self._operations.poll(self._node(a), self._fh(b), None, self._context)

    async def close(self) -> None:
        for fh, handler in itertools.product(self._fhs, ("release", "releasedir")):
            with suppress(pyfuse3.FUSEError):
                await getattr(self._operations, handler)(fh)


KINDS = [kind for kind in vars(Requests) if kind[0] != "_" and kind not in ("make", "close")]

requests = st.lists(
    st.tuples(
        st.sampled_from(KINDS + ["lookup", "open", "opendir"] * 2),
        st.integers(0, 40),
        st.one_of(st.integers(0, 200), st.sampled_from([2**31, 2**62])),
        st.sampled_from(
            [
                b"a",
                b"b",
                b".netnsfs",
                b"unnamed",
                b"pid",
                b"self",
                b"id",
                b"ns",
                b"nsid",
                b"kill",
                b"init",
                b"net",
                b"dev",
                b"sysctl",
                b"ipv4",
                b"ip_forward",
                b"last_error",
                b".",
                b"..",
                b"",
                b"a/b",
                b"\xff" * 300,
            ]
        ),
    ),
    min_size=10,
    max_size=60,
)


@profile
@given(requests=requests)
def odd_orders(names: NamedNamespaces, requests: list[tuple[str, int, int, bytes]]) -> None:
    async def serve() -> None:
        loop = LoopWaiter()
        pool = Pool("test", 2, 10, 10, loop)
        stats = Stats()
        root = Root(names, stats, Config(b"/mnt/nowhere"))
        unbounded = Quota(errno.EMFILE, 1 << 60, 1 << 60)
        operations = OperationsWithReplay(
            *(root, Pools(*[pool] * 5), lambda: None, stats, unbounded, unbounded),
            reported=ReportedNames(),
        )
        made = Requests(operations)
        never_block()
        try:
            with trio.fail_after(60):
                for request in requests:
                    await made.make(*request)
                await made.close()
        finally:
            pool.close()
            loop.close()

    failures: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for name in names.list_names():
        names.remove(name)
    if failures:
        raise failures[0]


def test_requests_in_odd_orders(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(room: Iterator[int], *entry: object) -> bool:
        return next(room) < 0

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    monkeypatch.setattr(pyfuse3, "notify_store", lambda *store: None)
    odd_orders(NamedNamespaces(bytes(RUN)))
    assert caplog.text == ""
