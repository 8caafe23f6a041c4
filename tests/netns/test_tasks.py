"""Members and holders, in both ways, with ip-netns(8) and lsns(8) as the other side."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import odd_tasks
import pytest
from conftest import IN_KERNEL, RUN, error_of, ip, wait_for
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netnsfs import linux
from netnsfs.bpf_objects import are_built
from netnsfs.netns import bpf_scanner, mount_holders, proc_scanner, tasks
from netnsfs.netns.bpf_scanner import BpfScanner
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.proc_scanner import ProcScanner
from netnsfs.netns.scanner import Scanner

Spawn = Callable[..., subprocess.Popen[bytes]]

THREAD_INSIDE = """
import os, sys, threading, time
sys.path[:0] = sys.argv[2:]
from netnsfs import linux
def enter():
    linux.setns(os.open(sys.argv[1], os.O_RDONLY), linux.CLONE_NEWNET)
    print(threading.get_native_id(), flush=True)
    time.sleep(100)
threading.Thread(target=enter).start()
"""


pytestmark = pytest.mark.usefixtures("way")


def test_the_programs_are_built() -> None:
    assert are_built()


def inode_of(name: str) -> int:
    return os.stat(RUN / name).st_ino


def test_members_of_a_new_namespace() -> None:
    names = NamedNamespaces(bytes(RUN))
    made, _ = names.create(b"a")
    assert tasks.pids(made.inode) == tasks.tids(made.inode) == []
    names.remove(b"a")


def test_processes(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    inside = {spawn("ip", "netns", "exec", "a", "sleep", "60").pid for _ in range(3)}
    wait_for(lambda: set(tasks.pids(inode_of("a"))) == inside)
    assert tasks.pids(inode_of("a")) == sorted(inside)
    assert set(map(int, ip("netns", "pids", "a").stdout.split())) == inside
    assert tasks.tids(inode_of("a")) == sorted(inside)
    ip("netns", "del", "a")


def test_a_thread_inside_makes_its_process_a_member(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    process = spawn(
        sys.executable, "-c", THREAD_INSIDE, str(RUN / "a"), *sys.path, stdout=subprocess.PIPE
    )
    assert process.stdout
    tid = int(process.stdout.readline())
    assert tid != process.pid
    assert tasks.pids(inode_of("a")) == [process.pid]
    assert tasks.tids(inode_of("a")) == [tid]
    assert ip("netns", "pids", "a").stdout == b""
    ip("netns", "del", "a")


def test_a_thread_of_ours_that_visits_is_no_member() -> None:
    ip("netns", "add", "a")
    inside, leave = threading.Event(), threading.Event()

    def look() -> None:
        with linux.closing_fd(os.open(RUN / "a", os.O_RDONLY)) as fd:
            linux.setns(fd, linux.CLONE_NEWNET)
        inside.set()
        leave.wait()

    visitor = threading.Thread(target=look)
    visitor.start()
    assert inside.wait(20)
    assert tasks.pids(inode_of("a")) == tasks.tids(inode_of("a")) == []
    assert os.getpid() in tasks.pids(os.stat("/proc/self/ns/net").st_ino)
    leave.set()
    visitor.join()
    ip("netns", "del", "a")


def test_zombies_are_no_members(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    zombie = spawn("ip", "netns", "exec", "a", "true")
    wait_for(
        lambda: f"{zombie.pid} (ip) Z" in status(zombie.pid) or "(true) Z" in status(zombie.pid)
    )
    assert tasks.pids(inode_of("a")) == tasks.tids(inode_of("a")) == []
    ip("netns", "del", "a")


def status(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read()


@pytest.mark.machine
def test_the_initial_namespace_has_kernel_threads_and_us() -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    assert {2, os.getpid()} <= set(tasks.pids(own))
    leaders = {
        int(pid)
        for pid in subprocess.check_output(
            ["lsns", "-t", "net", "-n", "-o", "PID", "--task", str(os.getpid())]
        ).split()
    }
    assert leaders <= set(tasks.pids(own))


def test_listing_size_is_an_upper_bound() -> None:
    found = [tid for pid in os.listdir("/proc") if pid.isdigit() for tid in threads(pid)]
    assert tasks.listing_size() >= sum(len(tid) + 1 for tid in found)


def threads(pid: str) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def test_threads_that_start_during_a_pass_hide_no_others(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, way: Scanner
) -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    # Its PID is higher than ours: it is looked at later.
    process = spawn(
        sys.executable, "-c", THREAD_INSIDE, str(RUN / "a"), *sys.path, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    expected = list(way.tasks(inode))
    assert expected
    load, calls, stop = proc_scanner.load, 0, threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(300)]

    def slow() -> Any:
        nonlocal calls
        loaded, calls = load(), calls + 1
        # The processes have been listed.
        if calls == 2:
            for thread in threads:
                thread.start()
        return loaded

    monkeypatch.setattr(proc_scanner, "load", slow)
    assert list(way.tasks(inode)) == expected
    stop.set()
    for thread in threads:
        if thread.ident:
            thread.join()
    ip("netns", "del", "a")


@contextmanager
def odd(*kinds: str) -> Iterator[set[int]]:
    """Tasks of these kinds, about the namespace `a`; gives the processes."""
    command = [sys.executable, odd_tasks.__file__, str(RUN / "a"), *kinds]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    with process:
        yield {process.pid, *map(int, process.stdout.readline().split())}


def seen(way: Scanner, inode: int, processes: set[int]) -> tuple[Any, ...]:
    """What a way tells of a namespace, and of some processes."""
    inside = sorted(way.tasks(inode))
    of_all = sorted(task for task in way.tasks() if {2, *processes} & {task[0]})
    threads = {tid for pid, tid, _ in of_all} - {2}
    mounts = sorted(found for found in way.mount_namespaces() if found[0] in threads)
    files = [*way.descriptors(inode), *way.mappings(inode)]
    held = sorted((d.kind, d.task, d.fd, d.inode) for d in files)
    # Of all, some of each namespace are told.
    is_held = any(d.inode == inode for d in way.descriptors())
    assert not any(d.inode == inode for d in way.descriptors(without={inode}))
    return inside, of_all, mounts, held, is_held


def has_pidfds_of_threads() -> bool:
    # PIDFD_THREAD
    return not error_of(lambda: os.close(os.pidfd_open(os.getpid(), os.O_EXCL)))


# What holds a namespace by descriptors that only a thread has. Without BPF, it takes a pidfd of
# the thread to look at them (Linux 6.9).
OF_THREADS = () if has_pidfds_of_threads() else ("ended_leader", "table_of_a_thread")


kinds = st.lists(st.sampled_from(sorted(odd_tasks.KINDS)), min_size=1, max_size=5)


@pytest.mark.machine
@pytest.mark.parametrize("way", [IN_KERNEL], indirect=True)
def test_both_ways_tell_the_same(way: Scanner) -> None:
    other = ProcScanner()

    @settings(max_examples=10, deadline=None)
    @example([*odd_tasks.KINDS])
    @example(["ended_leader"])
    @given(kinds)
    def run(kinds: list[str]) -> None:
        ip("netns", "add", "a")
        inode = inode_of("a")
        try:
            with odd(*(kind for kind in kinds if kind not in OF_THREADS)) as processes:
                assert seen(way, inode, processes) == seen(other, inode, processes)
        finally:
            ip("netns", "del", "a")

    run()


@pytest.mark.machine
def test_what_odd_tasks_hold() -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    with odd("thread_inside", "sockets", "tun", "descriptor"):
        assert [*map(len, held(inode).values())] == [1, 2, 1, 5, 1]
    wait_for(lambda: tasks.listing(inode) == b"mount /run/netns/a\n")
    ip("netns", "del", "a")


def held(inode: int) -> dict[str, list[str]]:
    """What holds a namespace, by its kind."""
    lines = tasks.listing(inode).decode().splitlines()
    kinds = {kind: [line for line in lines if line.startswith(kind)] for kind in KINDS}
    assert [*chain(*kinds.values())] == lines
    return kinds


KINDS = ("thread", "fd", "mount", "socket", "tun")


@pytest.mark.machine
def test_copies_of_a_file_are_listed_once(way: Scanner) -> None:
    """They may be millions, and cost a list of millions of lines."""
    ip("netns", "add", "a")
    inode = inode_of("a")
    with odd("copies", "descriptor") as (pid,):
        lines = tasks.listing(inode).splitlines()
        assert len([line for line in lines if line.startswith(b"socket %d " % pid)]) == 1
        if not linux.share_descriptors(os.getpid(), pid):
            # A socket stands between the file and its copies. Then it is opened once more.
            assert len([line for line in lines if line.startswith(b"fd %d " % pid)]) == 3
        assert inode in {found.inode for found in way.descriptors()}
    ip("netns", "del", "a")


@pytest.mark.machine
@pytest.mark.parametrize("way", [IN_KERNEL], indirect=True)
def test_of_what_holds_any_namespace_a_few_are_enough(
    way: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    with odd(*["descriptor", "sockets"] * 9) as (pid,):
        told = [found for found in way.descriptors() if found.task == pid]
        assert len([found for found in told if found.inode == inode]) == 1
        assert inode not in {found.inode for found in way.descriptors(without={inode})}
        monkeypatch.setattr(bpf_scanner, "MAX_OF_ONE", 10)
        lines = tasks.listing(inode).splitlines()
        assert sum(line.startswith((b"fd", b"socket")) for line in lines) == 10
        (omitted,) = (line for line in lines if line.startswith(b"omitted"))
        assert omitted.startswith(b"omitted descriptors ")
    ip("netns", "del", "a")


@pytest.mark.machine
def test_a_mapping_of_a_closed_socket(way: Scanner) -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    with odd("mapped") as (pid,):
        (line,) = (x for x in tasks.listing(inode).splitlines() if x.startswith(b"map"))
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        (mapped,) = (text for text in maps if "socket:[" in text)
        assert line == b"map %d %b" % (pid, mapped.partition("-")[0].encode())
        ip("netns", "del", "a")
        if isinstance(way, BpfScanner) and opens_by_id():
            (holder,) = tasks.holders_of(inode)
            assert holder in tasks.one_of_each(())
            with linux.closing_fd(holder.open(())) as fd:
                assert os.fstat(fd).st_ino == inode
    wait_for(lambda: tasks.holders_of(inode) == [])


def opens_by_id() -> bool:
    with linux.closing_fd(os.open("/proc/self/ns/net", os.O_RDONLY)) as fd:
        number, inode = linux.namespace_id(fd), os.fstat(fd).st_ino
    return number is not None and not error_of(
        lambda: os.close(linux.open_namespace_by_id(number, inode))
    )


@pytest.mark.machine
@pytest.mark.parametrize("way", [IN_KERNEL], indirect=True)
def test_whoever_locks_what_they_have_mapped_makes_nobody_wait(
    way: BpfScanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    before = tasks.listing(inode)
    assert way._mappings._iterators
    run, unlocked = way._mappings._iterators.run, threading.Event()

    def wait(*arguments: Any) -> bytes:
        unlocked.wait()
        return run(*arguments)

    monkeypatch.setattr(way._mappings._iterators, "run", wait)
    for _ in range(3):
        assert tasks.listing(inode) == before + b"omitted mappings 1\n"
    unlocked.set()
    wait_for(lambda: tasks.listing(inode) == before)
    ip("netns", "del", "a")


@pytest.mark.machine
def test_a_descriptor_table_of_a_thread(spawn: Spawn, way: Scanner) -> None:
    if isinstance(way, ProcScanner) and OF_THREADS:
        pytest.skip("this kernel has no pidfd of a thread (Linux 6.9)")
    if linux.share_descriptors(os.getpid(), spawn("sleep", "60").pid):
        pytest.skip("this kernel has no kcmp(2)")
    ip("netns", "add", "a")
    inode = inode_of("a")
    with odd("sockets", "tun", "descriptor", "table_of_a_thread") as found:
        (pid,) = found
        # The thread had a copy of the other table, and opened two more.
        kinds = held(inode)
        assert [*map(len, kinds.values())] == [0, 5, 1, 11, 2]
        owners = {int(line.split()[1]) for line in kinds["fd"]}
        assert len(owners) == 2
        assert pid in owners
    wait_for(lambda: tasks.listing(inode) == b"mount /run/netns/a\n")
    ip("netns", "del", "a")


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["sockets", "tun"])
def test_a_namespace_is_opened_by_what_holds_it(kind: str) -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    with odd(kind):
        ip("netns", "del", "a")
        for holder in tasks.holders_of(inode):
            with linux.closing_fd(holder.open(())) as fd:
                assert os.fstat(fd).st_ino == inode
    wait_for(lambda: tasks.holders_of(inode) == [])


OPEN_FILES = """
import ctypes, os, sys, time
home = os.open("/proc/self/ns/net", os.O_RDONLY)
ctypes.CDLL(None).setns(os.open(sys.argv[1], os.O_RDONLY | os.O_CLOEXEC), 0)
os.closerange(home + 1, 99)
holding = [os.open("/proc/thread-self/net/" + name, os.O_RDONLY) for name in HOLDING]
for name in OTHERS:
    os.open("/proc/thread-self/net/" + name, os.O_RDONLY)
ctypes.CDLL(None).setns(home, 0)
print(*holding, flush=True)
time.sleep(100)
"""


@pytest.mark.machine
@pytest.mark.parametrize("way", [IN_KERNEL], indirect=True)
@pytest.mark.usefixtures("way")
def test_an_open_file_of_proc_net(spawn: Spawn) -> None:
    ip("netns", "add", "a")
    inode = inode_of("a")
    # Not every file there holds the namespace, and no directory does.
    names = {"HOLDING": ["dev", "sockstat", "netstat", "unix"], "OTHERS": [".", "dev_snmp6/lo"]}
    script = "".join(f"{name} = {value}\n" for name, value in names.items()) + OPEN_FILES
    process = spawn(sys.executable, "-c", script, str(RUN / "a"), stdout=subprocess.PIPE)
    assert process.stdout
    fds = process.stdout.readline().split()
    ip("netns", "del", "a")
    lines = tasks.listing(inode).splitlines()
    assert lines == [b"file %d %b" % (process.pid, fd) for fd in fds]
    with open("/proc/self/ns/net") as own:
        opens_by_id = linux.namespace_id(own.fileno()) is not None
    for holder in tasks.holders_of(inode) if opens_by_id else ():
        with linux.closing_fd(holder.open(())) as fd:
            assert os.fstat(fd).st_ino == inode


DEEP = """
import os, sys, time
sys.path[:0] = sys.argv[3:]
from netnsfs import linux
linux.unshare(0x20000)
linux.mount(None, b"/", linux.MS_REC | linux.MS_PRIVATE)
os.chdir(sys.argv[2])
for _ in range(20):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
open("ns", "w").close()
linux.mount(sys.argv[1].encode(), b"ns", linux.MS_BIND)
print(os.open("ns", os.O_RDONLY), flush=True)
time.sleep(100)
"""


@pytest.mark.machine
def test_a_namespace_opened_by_a_path_that_is_too_long(spawn: Spawn, tmp_path: Path) -> None:
    ip("netns", "add", "a")
    inode, words = inode_of("a"), [str(RUN / "a"), str(tmp_path), *sys.path]
    process = spawn(sys.executable, "-c", DEEP, *words, stdout=subprocess.PIPE)
    assert process.stdout
    fd = process.stdout.readline().strip()
    assert error_number(os.readlink, f"/proc/{process.pid}/fd/{fd.decode()}") == (
        errno.ENAMETOOLONG
    )
    assert b"fd %d %b" % (process.pid, fd) in tasks.listing(inode).splitlines()
    ip("netns", "del", "a")


CHROOTED = """
import os, sys, time
sys.path[:0] = sys.argv[3:]
from netnsfs import linux
linux.unshare(0x20000)
linux.mount(None, b"/", linux.MS_REC | linux.MS_PRIVATE)
os.chdir(sys.argv[2])
jails = [f"jail{number:02}" for number in range(20)]
for jail in jails:
    os.mkdir(jail)
    open(jail + "/ns", "w").close()
    linux.mount(sys.argv[1].encode(), jail.encode() + b"/ns", linux.MS_BIND)
print(*jails, flush=True)
for jail in sys.stdin.readline().split():
    if not os.fork():
        os.chroot(jail)
        print(flush=True)
        time.sleep(100)
os.chroot(jails[0])
print(flush=True)
for _ in jails:
    os.wait()
"""


@pytest.mark.machine
@pytest.mark.parametrize(
    ("roots", "expected", "text"), [(1, 1, True), (3, 3, True), (20, 8, True), (20, 20, False)]
)
def test_chrooted_tasks_are_looked_at_by_their_roots(
    spawn: Spawn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    roots: int,
    expected: int,
    text: bool,
) -> None:
    """Not one by one: each look goes through all mounts, unless statmount(2) is there."""
    if text:
        monkeypatch.setattr(linux, "namespace_mounts_in", refuse_statmount)
    elif error_of(lambda: list(linux.namespace_mounts_in(own_mount_namespace()))):
        pytest.skip("this kernel has no statmount(2)")
    ip("netns", "add", "a")
    words = [str(RUN / "a"), str(tmp_path), *sys.path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    process = spawn(sys.executable, "-c", CHROOTED, *words, **pipes)
    assert process.stdin
    assert process.stdout
    jails = process.stdout.readline().split()
    # Twenty tasks besides the first.
    process.stdin.write(b" ".join((jails[:roots] * 20)[:20]) + b"\n")
    process.stdin.flush()
    for _ in range(21):
        process.stdout.readline()
    lines = tasks.listing(inode_of("a")).splitlines()
    os.killpg(process.pid, signal.SIGKILL)
    ip("netns", "del", "a")
    assert lines.count(b"mount /run/netns/a") == 1
    assert len(lines) == 1 + expected
    assert all(re.fullmatch(rb"mount (/proc/\d+/root/ns|/run/netns/a)", line) for line in lines)


def refuse_statmount(*arguments: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def own_mount_namespace() -> int:
    return linux.mount_namespace_id(os.getpid())


STRANGER = """
import os, sys, time
sys.path[:0] = sys.argv[3:]
from netnsfs import linux
linux.unshare(0x20000)
linux.mount(None, b"/", linux.MS_REC | linux.MS_PRIVATE)
held = os.open(sys.argv[1], os.O_RDONLY)
linux.umount(b"/run", linux.MNT_DETACH)
deep = sys.argv[2]
for number in range(10):
    deep += "/" + "x" * 200
    os.mkdir(deep)
for _ in range(300):
    linux.mount(b"/proc", deep.encode(), linux.MS_BIND)
file = sys.argv[2] + "/a file"
open(file, "w").close()
linux.mount(b"/proc/self/fd/%d" % held, file.encode(), linux.MS_BIND)
os.close(held)
print(flush=True)
time.sleep(100)
"""


@pytest.fixture
def stranger(spawn: Spawn, tmp_path: Path) -> bytes:
    """The path from here of a mount of `a`, which somebody has beside many others."""
    words = [str(RUN / "a"), str(tmp_path), *sys.path]
    process = spawn(sys.executable, "-c", STRANGER, *words, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return b"/proc/%d/root%b/a\\040file" % (process.pid, bytes(tmp_path))


@pytest.mark.machine
@pytest.mark.parametrize("text", [True, False])
def test_a_mount_of_a_stranger(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    """Found by all ways; if there is no time for it, that is said, and all else is listed."""
    ip("netns", "add", "a")
    path, inode = request.getfixturevalue("stranger"), inode_of("a")
    if text:
        monkeypatch.setattr(linux, "namespace_mounts_in", refuse_statmount)
    lines = tasks.listing(inode).splitlines()
    assert sorted(lines) == [b"mount " + path, b"mount /run/netns/a"]
    monkeypatch.setattr(mount_holders, "_SECONDS", -1)
    own, *omitted = tasks.listing(inode).splitlines()
    assert own == b"mount /run/netns/a"
    assert omitted
    assert all(line.startswith(b"omitted mounts ") for line in omitted)
    ip("netns", "del", "a")


@pytest.mark.machine
@pytest.mark.parametrize("way", [IN_KERNEL], indirect=True)
def test_a_mount_namespace_without_such_mounts_costs_nothing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, way: BpfScanner
) -> None:
    if way._mounts is None:
        pytest.skip("this kernel does not run the program (Linux 6.2)")
    for name in "ab":
        ip("netns", "add", name)
    request.getfixturevalue("stranger")
    monkeypatch.setattr(mount_holders, "_SECONDS", -1)
    assert tasks.listing(inode_of("b")) == b"mount /run/netns/b\n"
    for name in "ab":
        ip("netns", "del", name)


def error_number(function: Callable[..., object], *arguments: object) -> int | None:
    with pytest.raises(OSError) as raised:  # noqa: PT011
        function(*arguments)
    return raised.value.errno


def test_out_of_sight_is_not_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    ip("netns", "add", "a")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(linux, "in_initial_pid_namespace", lambda: False)
        for listing in (tasks.pids, tasks.tids):
            assert error_number(listing, inode_of("a")) == errno.ENODATA
        assert tasks.is_busy(inode_of("a"))
    assert not tasks.is_busy(inode_of("a"))
    ip("netns", "del", "a")


def test_the_namespace_of_a_socket(way: Scanner, spaces: tuple[int, int], spawn: Spawn) -> None:
    script = (
        "import os, socket, time; held = [socket.socket() for _ in range(2)];"
        "copies = [os.dup(held[0].fileno()) for _ in range(3)];"
        "print(*(os.fstat(each.fileno()).st_ino for each in held), flush=True); time.sleep(60)"
    )
    command = ("ip", "netns", "exec", "a", sys.executable, "-c", script)
    process = spawn(*command, stdout=subprocess.PIPE)
    assert process.stdout
    numbers = [int(word) for word in process.stdout.readline().split()]
    assert [way.namespace_of_socket(number) for number in numbers] == [inode_of("a")] * 2
    pipe = os.fstat(process.stdout.fileno()).st_ino
    assert tasks.namespace_of_socket(pipe) is None
    process.kill()
    process.wait()
    wait_for(lambda: tasks.namespace_of_socket(numbers[0]) is None)
