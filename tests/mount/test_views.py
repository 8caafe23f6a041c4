"""net/ and sysctl/ of each namespace, with `ip netns exec` as the other side."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import RUN, Mounted, Start, error_of, ip, settled, unmount_idle, wait_for
from usage import MAX_THREADS, Usage, descriptors

from netnsfs.jobs import WouldBlock, never_block
from netnsfs.netns.names import NamedNamespaces
from netnsfs.node import Caller, Directory, File
from netnsfs.permissions import ROOT, Owner, Permissions
from netnsfs.tree import views
from netnsfs.tree.access import NamespaceAccess
from netnsfs.tree.open_files import OpenFiles

Spawn = Callable[..., subprocess.Popen[bytes]]

PROC = {"net": "/proc/net", "sysctl": "/proc/sys/net"}


@pytest.fixture
def pair(mnt: Mounted) -> Iterator[tuple[Path, Path]]:
    """Two namespaces joined by a veth pair, with addresses and traffic between them."""
    for number, name in enumerate(("left", "right"), 1):
        (mnt / name).mkdir()
        ip("-n", name, "link", "set", "lo", "up")
        if number == 2:
            ip("link", "add", "veth0", "netns", "left", "type", "veth",
               "peer", "veth0", "netns", "right")  # fmt: skip
    for number, name in enumerate(("left", "right"), 1):
        ip("-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "veth0")
        ip("-n", name, "link", "set", "veth0", "up")
    subprocess.run([sys.executable, "-c", TRAFFIC, RUN / "left", RUN / "right"], check=True)
    yield mnt / "left", mnt / "right"
    for name in ("left", "right"):
        (mnt / name).rmdir()


TRAFFIC = """
import ctypes, os, socket, sys
def enter(path):
    fd = os.open(path, os.O_RDONLY)
    assert ctypes.CDLL(None).setns(fd, 0) == 0
    os.close(fd)
enter(sys.argv[2])
server = socket.create_server(("192.0.2.2", 5000))
enter(sys.argv[1])
client = socket.create_connection(("192.0.2.2", 5000), timeout=10)
peer, _ = server.accept()
client.sendall(b"x" * 100000)
left = 100000
while left:
    left -= len(peer.recv(65536))
"""

LIST = """
import json, os, stat, sys
found = {}
for top, names, files in os.walk(sys.argv[1]):
    for name in [*names, *files]:
        path = os.path.join(top, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            mode &= ~0o222
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            content = str(error.errno).encode()
        found[os.path.relpath(path, sys.argv[1])] = [mode, content.decode(errors="replace")]
json.dump(found, sys.stdout)
"""


def tree_of(*command: str | Path) -> dict[str, list[object]]:
    done = subprocess.run(command, check=True, capture_output=True)
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def inside(name: str, path: str) -> dict[str, list[object]]:
    return tree_of("ip", "netns", "exec", name, sys.executable, "-c", LIST, path)


@pytest.mark.parametrize("view", PROC)
def test_every_file_is_what_ip_netns_exec_shows(pair: tuple[Path, Path], view: str) -> None:
    for directory in pair:
        before = inside(directory.name, PROC[view])
        shown = tree_of(sys.executable, "-c", LIST, directory / view)
        after = inside(directory.name, PROC[view])
        assert set(shown) == set(before) == set(after)
        assert {name: found[0] for name, found in shown.items()} == {
            name: found[0] for name, found in after.items()
        }
        steady = [name for name in before if before[name] == after[name]]
        assert len(steady) > 0.8 * len(before)
        assert {name: shown[name] for name in steady} == {name: after[name] for name in steady}


def test_counters_are_the_namespaces_own(pair: tuple[Path, Path]) -> None:
    left, right = pair
    counters = {}
    for directory in pair:
        line = next(
            line for line in (directory / "net/dev").read_text().splitlines() if "veth0" in line
        )
        counters[directory.name] = int(line.split()[1])
    assert counters["right"] > 100000 > counters["left"]
    assert "veth0" not in Path("/proc/net/dev").read_text()
    assert (left / "net/dev").read_text() != (right / "net/dev").read_text()


def test_a_sysctl_changes_its_namespace_and_nothing_else(pair: tuple[Path, Path]) -> None:
    left, right = pair
    path = "sysctl/ipv4/conf/all/forwarding"
    before = Path("/proc/sys/net/ipv4/conf/all/forwarding").read_text()
    # A new namespace has what the machine has: 1, on a router.
    old = (right / path).read_text()
    new = {"0\n": "1\n", "1\n": "0\n"}[old]
    subprocess.run(f"echo {new.strip()} > {left / path}", shell=True, check=True)
    assert (left / path).read_text() == new
    assert (right / path).read_text() == old
    assert Path("/proc/sys/net/ipv4/conf/all/forwarding").read_text() == before
    shown = ip("netns", "exec", "left", "cat", "/proc/sys/net/ipv4/conf/all/forwarding").stdout
    assert shown.decode() == new


def test_writes_are_the_kernels(pair: tuple[Path, Path]) -> None:
    path = pair[0] / "sysctl/ipv4/ip_forward"
    assert error_of(path.write_text, "nonsense") == "EINVAL"
    assert error_of(os.truncate, path, 5) == "EPERM"
    os.truncate(path, 0)
    for flags in (os.O_TRUNC, os.O_APPEND, 0):
        for value in (b"1\n", b"0"):
            fd = os.open(path, os.O_WRONLY | flags)
            assert os.write(fd, value) == len(value)
            os.close(fd)
            assert path.read_bytes() == value.strip() + b"\n"
    with open(path, "r+b", buffering=0) as file:
        assert file.read() == b"0\n"
        file.seek(0)
        file.write(b"1\n")
        file.seek(0)
        assert file.read() == b"1\n"
    assert error_of(os.open, pair[0] / "net/dev", os.O_WRONLY) == "EACCES"
    assert error_of(os.mkdir, pair[0] / "sysctl/x") == "EPERM"


def test_directories_of_interfaces_come_and_go(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    conf = mnt / "foo/sysctl/ipv4/conf"
    assert "eth9" not in os.listdir(conf)
    ip("-n", "foo", "link", "add", "eth9", "type", "veth", "peer", "eth8")
    assert "eth9" in os.listdir(conf)
    assert (conf / "eth9/forwarding").read_text() == (conf / "default/forwarding").read_text()
    ip("-n", "foo", "link", "del", "eth9")
    assert error_of(os.stat, conf / "eth9") == "ENOENT"
    (mnt / "foo").rmdir()


def test_nothing_keeps_a_removed_namespace_alive(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    ip("link", "add", "out0", "type", "veth", "peer", "in0", "netns", "foo")
    for path in ("net/dev", "net/tcp", "sysctl/ipv4/ip_forward"):
        (mnt / "foo" / path).read_bytes()
    os.listdir(mnt / "foo/net")
    (mnt / "foo").rmdir()
    wait_for(lambda: ip("link", "show", "out0", check=False).returncode)


def test_a_removed_namespace_while_a_file_is_open(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    fd = os.open(mnt / "foo/net/tcp", os.O_RDONLY)
    dev = os.open(mnt / "foo/net/dev", os.O_RDONLY)
    directory = os.open(mnt / "foo/net", os.O_RDONLY)
    (mnt / "foo").rmdir()
    for held in (fd, dev):
        assert error_of(os.pread, held, 99, 0) in ("", "ENODEV", "ESTALE", "EIO")
        os.close(held)
    found = error_of(lambda: os.open("dev", os.O_RDONLY, dir_fd=directory))
    assert found in ("ENOENT", "ESTALE", "EIO")
    os.close(directory)


def test_an_open_sysctl_of_what_is_gone(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    ip("-n", "foo", "link", "add", "eth9", "type", "veth", "peer", "eth8")
    conf = mnt / "foo/sysctl/ipv4/conf"
    fd = os.open(conf / "eth9/forwarding", os.O_RDONLY)
    assert os.pread(fd, 9, 0) == (conf / "default/forwarding").read_bytes()
    ip("-n", "foo", "link", "del", "eth9")
    assert error_of(os.pread, fd, 9, 0) == "ENODEV"
    os.close(fd)
    (mnt / "foo").rmdir()


def test_big_tables_stream(mnt: Mounted, spawn: Spawn) -> None:
    (mnt / "foo").mkdir()
    server = spawn(
        "nsenter",
        f"--net={mnt.path}/foo/ns",
        sys.executable,
        "-c",
        MANY,
        stdout=subprocess.PIPE,
    )
    assert server.stdout
    server.stdout.readline()
    expected = ip("netns", "exec", "foo", "cat", "/proc/net/udp").stdout
    assert len(expected) > 1 << 17
    path = mnt / "foo/net/udp"
    for command in (["cat"], ["busybox", "cat"], ["dd", "bs=1000", "status=none"]):
        into = [f"if={path}"] if command[0] == "dd" else [str(path)]
        assert subprocess.check_output([*command, *into]) == expected
    server.kill()
    server.wait()
    (mnt / "foo").rmdir()


MANY = """
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2000)]
for number, each in enumerate(held):
    each.bind(("0.0.0.0", 10000 + number))
print("ready", flush=True)
time.sleep(100)
"""


def test_descriptors_and_threads_do_not_grow(mnt: Mounted) -> None:
    names = [f"n{number}" for number in range(100)]
    for name in names:
        (mnt / name).mkdir()

    def read_all() -> None:
        for name in names:
            (mnt / name / "net/dev").read_bytes()
            (mnt / name / "sysctl/ipv4/ip_forward").read_bytes()

    proc = Path(f"/proc/{mnt.process.pid}")
    read_all()
    before = settled(partial(descriptors, mnt))
    for _ in range(50):
        read_all()
    wait_for(lambda: descriptors(mnt) == before)
    assert Usage(mnt).threads <= MAX_THREADS
    homes = {os.readlink(proc / f"task/{tid}/ns/net") for tid in os.listdir(proc / "task")}
    assert homes == {os.readlink("/proc/self/ns/net")}
    for name in names:
        (mnt / name).rmdir()


class Opened:
    """Files that nobody but a user keeps, of a namespace with one end of a veth pair.

    Attributes:
        far: where the other end is seen for as long as the namespace lives.
    """

    WRITABLE = ("sysctl/ipv4/ip_forward", "links/lo/tx_queue_len")
    FILES = ("net/dev", "net/unix", *WRITABLE)

    def __init__(self, directory: Path, far: Path) -> None:
        self.far = far
        self.fds = [os.open(directory / file, os.O_RDONLY) for file in self.FILES]
        self.written = [os.open(directory / file, os.O_RDWR) for file in self.WRITABLE]
        self.fds += self.written
        for fd in self.fds:
            os.pread(fd, 3, 0)

    def is_alive(self) -> bool:
        return "near" in (self.far / "net/dev").read_text()

    def codes(self) -> set[str]:
        found = {error_of(os.pread, fd, 99, offset) for fd in self.fds for offset in (0, 2)}
        return found | {error_of(os.write, fd, b"1") for fd in self.written}

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def opened(mnt: Mounted, foo: Path) -> Iterator[Opened]:
    (mnt / "far").mkdir()
    ip("link", "add", "near", "netns", "far", "type", "veth", "peer", "near", "netns", "foo")
    made = Opened(foo, mnt / "far")
    yield made
    made.close()
    (mnt / "far").rmdir()


def is_revoked(fd: int) -> bool:
    return error_of(os.pread, fd, 99, 0) == "ENODEV"


def remove_by_hand(foo: Path) -> None:
    unmount_idle(RUN / "foo")
    (RUN / "foo").unlink()


@pytest.mark.parametrize(
    "remove",
    [
        os.rmdir,
        lambda foo: ip("netns", "del", "foo"),
        remove_by_hand,
        lambda foo: NamedNamespaces(bytes(RUN)).remove(b"foo"),
    ],
    ids=["rmdir", "ip netns del", "umount", "another daemon"],
)
def test_what_is_open_is_revoked_with_the_last_name(
    mnt: Mounted, foo: Path, opened: Opened, remove: Callable[[Path], object]
) -> None:
    assert opened.codes() == {""}
    remove(foo)
    try:
        wait_for(lambda: opened.codes() == {"ENODEV"})
        wait_for(lambda: not opened.is_alive())
    finally:
        foo.mkdir()


def test_what_is_open_is_revoked_though_a_process_is_inside(
    foo: Path, opened: Opened, spawn: Spawn
) -> None:
    inside = spawn("nsenter", f"--net={RUN}/foo", "sleep", "60")
    wait_for((foo / "pids").read_bytes)
    foo.rmdir()
    assert opened.codes() == {"ENODEV"}
    assert opened.is_alive()
    inside.kill()
    inside.wait()
    wait_for(lambda: not opened.is_alive())
    foo.mkdir()


def test_what_is_open_stays_while_any_name_stands(
    mnt: Mounted, foo: Path, opened: Opened
) -> None:
    (mnt / "second").symlink_to("foo")
    foo.rename(mnt / "renamed")
    assert opened.codes() == {""}
    ip("netns", "del", "renamed")
    # What would be cut has been by the time that something else is.
    (mnt / "other").mkdir()
    with open(mnt / "other/net/dev") as other:
        ip("netns", "del", "other")
        wait_for(lambda: error_of(other.read) == "ENODEV")
    assert opened.codes() == {""}
    ip("netns", "del", "second")
    wait_for(lambda: opened.codes() == {"ENODEV"})
    wait_for(lambda: not opened.is_alive())
    foo.mkdir()


def test_what_is_open_is_revoked_with_a_link(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    inside = spawn("nsenter", f"--net={RUN}/foo", "sleep", "60")
    wait_for((foo / "pids").read_bytes)
    (RUN / "link").symlink_to(f"/proc/{inside.pid}/ns/net")
    file = os.open(mnt / "link/net/dev", os.O_RDONLY)
    foo.rmdir()
    assert error_of(os.pread, file, 99, 0) == ""
    (RUN / "link").unlink()
    wait_for(partial(is_revoked, file))
    os.close(file)
    foo.mkdir()


def test_what_is_open_below_unnamed_is_revoked_by_a_name(
    mnt: Mounted, foo: Path, spawn: Spawn
) -> None:
    spawn("nsenter", f"--net={RUN}/foo", "sleep", "60")
    wait_for((foo / "pids").read_bytes)
    unnamed = mnt / f".netnsfs/unnamed/{os.stat(foo).st_ino}"
    foo.rmdir()
    for give in (
        lambda: unnamed.rename(foo),
        lambda: ip("netns", "attach", "foo", (unnamed / "pids").read_text().strip()),
    ):
        files = [os.open(unnamed / file, os.O_RDONLY) for file in Opened.FILES]
        give()
        for file in files:
            wait_for(partial(is_revoked, file))
            os.close(file)
        foo.rmdir()
    foo.mkdir()


def test_no_open_escapes_revocation(mnt: Mounted) -> None:
    stop = threading.Event()
    held: list[int] = []
    seen: list[int] = []

    def open_all() -> None:
        while not stop.is_set():
            for file in Opened.FILES:
                with suppress(OSError):
                    held.append(os.open(mnt / "foo" / file, os.O_RDONLY))

    threads = [threading.Thread(target=open_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        ip("netns", "add", "foo")
        seen.append(len(held))
        wait_for(lambda: len(held) > seen[-1])
        ip("netns", "del", "foo")
    stop.set()
    for thread in threads:
        thread.join()
    for fd in held:
        wait_for(partial(is_revoked, fd))
        os.close(fd)


def test_readers_and_removal_at_once(mnt: Mounted) -> None:
    stop = threading.Event()
    errors: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            errors.add(error_of((mnt / "foo/net/tcp").read_bytes))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        (mnt / "foo").mkdir()
        (mnt / "foo").rmdir()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors <= {"", "ENOENT", "ENODEV", "ESTALE", "EIO"}


class AccessToHere(NamespaceAccess):
    """To the namespace that everybody is in already."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self.key = "here"
        self.permissions = Permissions(dmask=0, fmask=0)
        self.opened = OpenFiles()
        self._enter = enter

    def current_owner(self) -> Owner:
        return ROOT

    def require_may_open(self, caller: Caller, writes: bool) -> None:
        pass

    def is_reachable(self) -> bool:
        return True

    def enter_namespace(self) -> None:
        self._enter()


def view_of_here(enter: Callable[[], None]) -> views.View:
    return views.View("here", AccessToHere(enter), writable=True, fixed_levels=2)


def test_the_first_read_of_a_long_file_takes_no_other_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"a" * 2 * views.HEAD)
    node = view_of_here(lambda: None).find_node(bytes(path))
    assert isinstance(node, File)
    handle = node.open(os.O_RDONLY, Nobody())
    path.write_bytes(b"b" * 3 * views.HEAD)

    def ask_on_event_loop() -> None:
        never_block()
        with pytest.raises(WouldBlock):
            handle.read(views.HEAD + 1, 0)

    with ThreadPoolExecutor() as threads:
        threads.submit(ask_on_event_loop).result()
    for length in (2, 3):
        assert handle.read(views.HEAD + 1, 0) == b"b" * (views.HEAD + 1)
        assert handle.length == length * views.HEAD
    handle.close()


def test_a_listing_is_one_visit() -> None:
    visits = []
    view = view_of_here(lambda: visits.append(""))
    for path in (b"/proc/sys/net/ipv4/conf", b"/proc/sys/net/ipv4", b"/proc/thread-self/net"):
        directory = view.find_node(path)
        assert isinstance(directory, Directory)
        del visits[:]
        names = directory.readdir()
        found = [directory.lookup_listed(name, Nobody()) for name in names]
        assert len(visits) == 1
        assert sorted(names) == sorted(os.listdir(path))
        for name, node in zip(names, found, strict=True):
            alone = directory.lookup(name, Nobody())
            assert (node.key, type(node)) == (alone.key, type(alone))
            assert node.getattr_cached().mode == alone.getattr_cached().mode
        # What has come since.
        assert error_of(directory.lookup_listed, b"absent", Nobody()) == "ENOENT"


class Nobody:
    pid = uid = 65534
    umask = 0


@pytest.mark.machine
def test_nobody_reads_what_its_own_proc_shows(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    script = f"""
import os
os.setgid(65534); os.setuid(65534)
print(len(open("{mnt.path}/foo/net/dev").read()) > 0)
for path, flags in (("sysctl/ipv4/ip_forward", os.O_WRONLY), ("net/dev", os.O_WRONLY)):
    try:
        os.open("{mnt.path}/foo/" + path, flags)
    except PermissionError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout.split() == [b"True", b"refused", b"refused"]
    closed = [
        path
        for path in (mnt / "foo/net").iterdir()
        if not stat.S_IMODE(path.lstat().st_mode) & 4
    ]
    for path in closed:
        assert stat.S_IMODE(os.lstat(f"/proc/net/{path.name}").st_mode) & 4 == 0
    (mnt / "foo").rmdir()


def test_unnamed_namespaces_have_views_too(mnt: Mounted, spawn: Spawn) -> None:
    process = spawn("unshare", "-n", "sleep", "60")
    here = os.stat("/proc/self/ns/net").st_ino
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != here)
    directory = mnt / f".netnsfs/unnamed/{os.stat(f'/proc/{process.pid}/ns/net').st_ino}"
    assert "lo:" in (directory / "net/dev").read_text()
    (directory / "sysctl/ipv4/ip_forward").write_text("1")
    assert (directory / "sysctl/ipv4/ip_forward").read_text() == "1\n"


def test_noviews(start: Start) -> None:
    mounted = start("-o", "noviews")
    (mounted / "foo").mkdir()
    assert not {"net", "sysctl"} & set(os.listdir(mounted / "foo"))
    assert error_of(os.stat, mounted / "foo/net") == "ENOENT"
    (mounted / "foo").rmdir()
