"""Two mounts, `ip netns` and plain system calls in any order, against a model.

The daemons live as long as the search, and are stopped, killed and started in it. After each
step everything that can be seen is compared with the model: a mount's directories and their
numbers, /run/netns, mountinfo, and what `ip netns list` prints. Every refusal has the errno
that the model says.

A failure prints the steps and the seed for `--hypothesis-seed`. With NETNSFS_LONG set there are
10,000 runs, which take an hour or more.
"""

import os
import random
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from conftest import KEPT_OPEN, LONG, RUN, Mounted, Start, error_of, ip, mounts, nsids, wait_for
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import RESERVED, Entry, Model, Space

from netnsfs import linux
from netnsfs.netns import nsfs, nsid
from netnsfs.netns.spares import is_spare

SECOND = Path("/mnt/second")
SPARES = ("-o", "spare=4")
GONE = ("ESTALE", "ENODEV", "EIO")
DEAD = ("ENOTCONN", "ECONNABORTED")
UTS = b"/proc/self/ns/uts"
MARKER = b"sysctl/core/somaxconn"
FILES = (b"inode", b"id", b"nsid", b"pids", b"ns", MARKER)
# In the control directory, these are directories.
NUMBERS = (b"inode", b"id", b"nsid")

NAMES = (
    b"a",
    b"b",
    b"Z",
    b"4711",
    b"-rf",
    b".hidden",
    b"inode",
    b"c d",
    b"new\nline",
    b"back\\slash",
    b"#quote\"'",
    b"\xff\xfe\x80",
    b"a (id: 1)",
    b"\t\x01\x7f",
    b"x" * 255,
    RESERVED,
)
TOO_LONG = b"y" * 256

# Some more often, that steps have to do with each other.
OFTEN = (b"a", b"c d", b"\xff\xfe\x80") * 5
names = st.sampled_from((*OFTEN, *NAMES))
any_names = st.sampled_from((*OFTEN, *NAMES, TOO_LONG))
either = st.sampled_from((0, 1))


class Batch:
    """`ip -batch`, which takes one command after another.

    A process for each would cost more than everything else together.
    """

    END = b"link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00\n"

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = ["ip", "-force", "-batch", "-"]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._process.stderr
        os.set_blocking(self._process.stderr.fileno(), False)

    def run(self, command: bytes) -> tuple[bytes, bool]:
        """What `ip netns` prints, and whether it is content."""
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._process.stdin.write(b"netns " + command + b"\nlink show dev lo\n")
        self._process.stdin.flush()
        shown = b""
        while not shown.endswith(self.END):
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            assert part, "ip has ended"
            shown += part
        errors = self._process.stderr.read() or b""
        return shown[: shown.rindex(b"1: lo: ")], b"Command failed" not in errors

    def close(self) -> None:
        self._process.communicate()


class Nursery:
    """Starts processes with a namespace of their own, without a copy of this big one."""

    SCRIPT = """
import ctypes, os, signal, sys
for line in sys.stdin:
    pid = int(line)
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(flush=True)
        continue
    pid = os.fork()
    if not pid:
        ctypes.CDLL(None).unshare(0x40000000)
        print(os.getpid(), flush=True)
        signal.pause()
"""

    def __init__(self) -> None:
        command = [sys.executable, "-c", self.SCRIPT]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)

    def _ask(self, pid: int) -> bytes:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"%d\n" % pid)
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def start(self) -> int:
        return int(self._ask(0))

    def end(self, pid: int) -> None:
        self._ask(pid)

    def close(self) -> None:
        self._process.communicate()


class World:
    """What outlives a run."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self.runs = 0
        self.failed = False
        self.mounts = [start(), start(*SPARES, at=SECOND)]
        self.batch = Batch()
        self.nursery = Nursery()
        self.home = look(b"/proc/self/ns/net")
        self.home.pids = None
        self._markers = iter(range(5000, 2**31))
        os.mkdir(self.mounts[0] / "first")
        os.rmdir(self.mounts[0] / "first")

    def remember_failure(self) -> None:
        """Print the first failure: what hangs on a number given again may not fail twice."""
        if not self.failed and isinstance(sys.exc_info()[1], AssertionError | OSError):
            self.failed = True
            traceback.print_exc()

    def restart(self, index: int, how: signal.Signals) -> None:
        mounted = self.mounts[index]
        mounted.process.send_signal(how)
        status = mounted.process.wait(20)
        assert status == (-how if how == signal.SIGKILL else 0)
        self.mounts[index] = self._start(*(SPARES if index else ()), at=mounted.path)

    def nsid(self) -> int:
        return next(nsids)

    def marker(self) -> int:
        return next(self._markers)

    def netns(self, command: str, name: bytes, argument: bytes = b"") -> bool:
        """Whether `ip netns` is content."""
        words = command.encode(), name, argument
        # `set` does not close what it opens, and keeps its namespace.
        if command == "set" or b"#" in name or b"\n" in name:
            return not ip("netns", *filter(None, words), check=False).returncode
        return self.batch.run(b'%b "%b" %b' % words)[1]

    def close(self) -> None:
        self.batch.close()
        self.nursery.close()


def look(path: bytes) -> Space:
    """The namespace that a file is of, from the kernel itself."""
    fd = os.open(path, os.O_RDONLY)
    try:
        found = nsfs.namespace_of(fd)
        number = nsid.read_nsid(fd).strip()
        return Space(found.inode, found.id, int(number) if number.isdigit() else None)
    finally:
        os.close(fd)


def content(path: bytes, directory: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=directory)
    try:
        return content_of(fd)
    finally:
        os.close(fd)


def content_of(fd: int) -> bytes:
    return os.pread(fd, 4096, 0)


@dataclass(eq=False)
class Held:
    """An open descriptor of a file in a namespace's directory, or of the directory itself.

    What is read of it first was fixed at open: `opened` is how the namespace was then.
    """

    fd: int
    index: int
    name: bytes
    entry: Entry
    space: Space
    file: bytes
    opened: Space | None


class Machine(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.restarts = False
        self.model = Model(bytes(RUN), self.world.home)
        self.held: list[Held] = []
        self.steps = 0
        self.world.runs += 1

    @initialize(restarts=st.sampled_from([False] * 7 + [True]))
    def begin(self, restarts: bool) -> None:
        # Each costs as much as all steps of a run.
        self.restarts = restarts

    # Paths, and the model's side of things

    def at(self, index: int, *names: bytes) -> bytes:
        return b"/".join((bytes(self.world.mounts[index].path), *names))

    def run(self, name: bytes) -> bytes:
        return b"%b/%b" % (bytes(RUN), name)

    def made(self, name: bytes) -> None:
        space = look(self.run(name))
        self.model.bind(name, space)
        if name != RESERVED:
            space.marker = self.world.marker()
            Path(os.fsdecode(self.at(self.steps % 2, name, MARKER))).write_bytes(
                b"%d" % space.marker
            )

    def living(self, name: bytes) -> Space | None:
        """The namespace of a name, if it may be changed."""
        space = self.model.space(name)
        return None if space is self.world.home else space

    def task(self, number: int) -> bytes:
        return [b"self", *(b"%d" % pid for pid in self.model.processes)][number]

    # Through the mount

    @rule(index=either, name=any_names)
    def mkdir(self, index: int, name: bytes) -> None:
        code = self.model.refuses_new(name)
        assert error_of(os.mkdir, self.at(index, name)) == code
        if not code:
            self.made(name)

    @rule(index=either, name=any_names)
    def rmdir(self, index: int, name: bytes) -> None:
        code = self.model.refuses_rmdir(name)
        assert error_of(os.rmdir, self.at(index, name)) == code
        if not code:
            del self.model.entries[name]

    @rule(index=either, name=names, by_ip=st.booleans())
    def replace(self, index: int, name: bytes, by_ip: bool) -> None:
        """Made anew until the number is one that it has had, as far as that goes."""
        before = self.living(name)
        if name == RESERVED or not before:
            return
        for mount in (0, 1):
            self.hold(mount, name, b".")
        numbers = {before.inode}
        for _ in range(20):
            if by_ip and len(self.model.entries[name].stack) == 1:
                self.ip_delete(name)
                self.ip_add(name)
            else:
                self.rmdir(index, name)
                self.mkdir(index, name)
            made = self.model.space(name)
            assert made
            if made.inode in numbers:
                break
            numbers.add(made.inode)
        for held in self.held:
            self.use(held, MARKER)

    @rule(index=either, old=any_names, new=any_names)
    def mv(self, index: int, old: bytes, new: bytes) -> None:
        codes = self.model.refuses_rename(old, new)
        found = error_of(os.rename, self.at(index, old), self.at(index, new))
        assert found in codes.split("|")
        if not codes and old != new:
            self.model.rename(old, new)
            if space := self.model.space(new):
                # For a moment it has both names, and the other mount's replayer may look then.
                space.several = True
            for held in self.held:
                if held.index == index and held.name == old:
                    held.name = new

    @precondition(lambda self: self.model.processes)
    @rule(index=either, name=any_names, data=st.data())
    def mv_unnamed(self, index: int, name: bytes, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from(list(self.model.processes.values())))
        visible = [found for found in self.model.names_of(space) if found != RESERVED]
        codes = "ENOENT|ENAMETOOLONG" if visible else self.model.refuses_new(name)
        if name == RESERVED:
            # The directory that it is below of: the kernel's own answer.
            codes = "ENOENT" if visible else "ENOTEMPTY"
        path = self.at(index, RESERVED, b"unnamed", b"%d" % space.inode)
        assert error_of(os.rename, path, self.at(index, name)) in codes.split("|")
        if not codes:
            self.model.bind(name, space)

    @rule(index=either, name=any_names, other=any_names, form=st.integers(0, 5))
    def ln_s(self, index: int, name: bytes, other: bytes, form: int) -> None:
        forms = (
            other,
            b"./%b/ns" % other,
            self.at(index, other),
            self.run(other),
            self.at(1 - index, other, b"ns"),
            self.at(1 - index, other),
        )
        codes = self.model.refuses_new(name) or self._refuses(other, form)
        assert error_of(os.symlink, forms[form], self.at(index, name)) in codes.split("|")
        space = self.model.space(other)
        if not codes:
            assert space
            self.model.bind(name, space)

    def _refuses(self, other: bytes, form: int) -> str:
        if form < 3:
            return self.model.refuses_target(other)
        # Not through this mount: a path like any.
        if other == RESERVED:
            return "" if form == 3 and self.model.space(other) else "EINVAL|ENOENT|ELOOP"
        if form == 5 and self.model.space(other):
            return "EINVAL"
        stale = other in self.model.entries and not self.model.space(other)
        return "EINVAL|ENOENT|ELOOP" if stale else self.model.refuses_target(other)

    @rule(index=either, name=any_names, number=st.integers(0, 3), form=st.integers(0, 2))
    def ln_s_of_a_task(self, index: int, name: bytes, number: int, form: int) -> None:
        pid = self.task(number % (len(self.model.processes) + 1))
        forms = b"/proc/%b/ns/net", RESERVED + b"/pid/%b", RESERVED + b"/pid/%b/ns"
        code = self.model.refuses_new(name)
        assert error_of(os.symlink, forms[form] % pid, self.at(index, name)) == code
        space = self.model.of_task(pid)
        if not code:
            assert space
            self.model.bind(name, space)

    @rule(index=either, name=any_names, file=st.sampled_from((*FILES, b"net/dev", b"absent")))
    def read(self, index: int, name: bytes, file: bytes) -> None:
        path = self.at(index, name, file)
        space = self.model.space(name)
        if name == RESERVED and file in NUMBERS:
            assert os.path.isdir(path)
        elif not space or file == b"absent" or name == RESERVED:
            code = "ENAMETOOLONG" if len(name) > 255 else "ENOENT"
            assert error_of(os.open, path, os.O_RDONLY) == code
        elif file == b"ns":
            assert os.readlink(path) == self.run(name)
        else:
            self.compare(content(path), file, space)

    def compare(self, found: bytes, file: bytes, space: Space) -> None:
        if file == b"inode":
            assert found == b"%d\n" % space.inode
        elif file == b"id":
            assert found == b"%d\n" % space.id
        elif file == b"nsid":
            shown = b"unassigned" if space.nsid is None else b"%d" % space.nsid
            assert found == shown + b"\n"
        elif file == MARKER and space is not self.world.home:
            assert found == b"%d\n" % space.marker
        elif file == b"net/dev":
            assert b" lo:" in found
            assert space is self.world.home or found.count(b"\n") == 3
        elif file == b"pids" and space.pids is not None:
            assert found == b"".join(b"%d\n" % pid for pid in sorted(space.pids))

    @rule(index=either, name=names, choice=st.sampled_from(["auto", "fresh", "taken", "bad"]))
    def write_nsid(self, index: int, name: bytes, choice: str) -> None:
        space = self.living(name)
        if not space or name == RESERVED:
            return
        text, number = self.nsid_text(choice)
        code = "EINVAL" if choice == "bad" else self.model.refuses_nsid(space, number)
        path = self.at(index, name, b"nsid")
        assert error_of(Path(os.fsdecode(path)).write_bytes, text) == code
        if not code:
            self.numbered(name, space, number)

    def nsid_text(self, choice: str) -> tuple[bytes, int | None]:
        taken = [space.nsid for space in self.model.spaces() if space.nsid is not None]
        if choice in ("auto", "bad"):
            return choice.encode(), None
        number = min(taken) if choice == "taken" and taken else self.world.nsid()
        return b"%d" % number, number

    def numbered(self, name: bytes, space: Space, number: int | None) -> None:
        space.nsid = look(self.run(name)).nsid
        assert space.nsid is not None
        assert number in (None, space.nsid)

    @rule(index=either, name=names, good=st.sampled_from([True, True, False]))
    def write_sysctl(self, index: int, name: bytes, good: bool) -> None:
        space = self.living(name)
        if not space or name == RESERVED:
            return
        value = self.world.marker() if good else -1
        path = Path(os.fsdecode(self.at(index, name, MARKER)))
        assert error_of(path.write_bytes, b"%d\n" % value) == ("" if good else "EINVAL")
        if good:
            space.marker = value

    # What is kept open

    @rule(index=either, name=names, file=st.sampled_from((*FILES, *[b"."] * 4)))
    def hold(self, index: int, name: bytes, file: bytes) -> None:
        space = self.model.space(name)
        if not space or name == RESERVED or file == b"ns" or len(self.held) > 7:
            return
        fd = os.open(self.at(index, name, file), os.O_RDONLY)
        entry = self.model.entries[name]
        opened = replace(space) if file in (b"nsid", b"pids", MARKER) else None
        self.held.append(Held(fd, index, name, entry, space, file, opened))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), file=st.sampled_from(FILES))
    def use_held(self, data: st.DataObject, file: bytes) -> None:
        self.use(data.draw(st.sampled_from(self.held)), file)

    def stands(self, held: Held) -> bool:
        """Whether what is held is still what the name stands for."""
        entry = self.model.entries.get(held.name)
        return entry is held.entry and self.model.space(held.name) is held.space

    def use(self, held: Held, file: bytes) -> None:
        stands = self.stands(held)
        codes: tuple[str, ...] = ("",) if stands else ("", *GONE)
        if held.file != b".":
            space = held.opened or held.space
            if self.same(space, held.file, codes, lambda: content_of(held.fd)):
                held.opened = None
            return
        codes = ("",) if stands else ("", "ENOENT", *GONE)
        assert error_of(os.listdir, held.fd) in codes
        if file == b"ns":
            self.same_link(held, codes)
        else:
            self.same(held.space, file, codes, lambda: content(file, held.fd))

    def same(
        self, space: Space, file: bytes, codes: tuple[str, ...], read: Callable[[], bytes]
    ) -> bool:
        """Whether it can still be read. What can is never another namespace's."""
        found: list[bytes] = []
        assert error_of(lambda: found.append(read())) in codes
        for one in found:
            self.compare(one, file, space)
        return bool(found)

    def same_link(self, held: Held, codes: tuple[str, ...]) -> None:
        found: list[bytes] = []
        assert error_of(lambda: found.append(os.readlink(b"ns", dir_fd=held.fd))) in codes
        for one in found:
            assert self.model.space(os.path.basename(one)) is held.space

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        self.held.remove(held)
        os.close(held.fd)

    # ip netns

    @rule(name=names)
    def ip_add(self, name: bytes) -> None:
        free = name not in self.model.entries
        assert self.world.netns("add", name) == free
        if free:
            self.made(name)

    @rule(name=names)
    def ip_delete(self, name: bytes) -> None:
        content = self.model.ip_delete(name)
        assert self.world.netns("delete", name) == content

    @rule(name=names, number=st.integers(0, 3))
    def ip_attach(self, name: bytes, number: int) -> None:
        pid = self.task(number % (len(self.model.processes) + 1))
        space = self.model.of_task(pid)
        free = name not in self.model.entries
        shown = b"%d" % os.getpid() if pid == b"self" else pid
        assert self.world.netns("attach", name, shown) == free
        if free:
            assert space
            self.model.bind(name, space)

    @rule(name=names, choice=st.sampled_from(["auto", "fresh", "taken"]))
    def ip_set(self, name: bytes, choice: str) -> None:
        space = self.living(name)
        if not space:
            return
        text, number = self.nsid_text(choice)
        content = not self.model.refuses_nsid(space, number)
        assert self.world.netns("set", name, text) == content
        if content:
            self.numbered(name, space, number)

    # Plain system calls

    @rule(name=names, flags=st.sampled_from([0, linux.MNT_DETACH]))
    def umount(self, name: bytes, flags: int) -> None:
        entry = self.model.entries.get(name)
        if entry and entry.stack:
            wait_for(partial(self.unmounted, name, flags))
            entry.stack.pop()

    def unmounted(self, name: bytes, flags: int) -> bool:
        # Who looks for holders, anywhere on the machine, has it open for a moment.
        code = error_of(linux.umount, self.run(name), linux.UMOUNT_NOFOLLOW | flags)
        assert code == "" or (code == "EBUSY" and not flags)
        return not code

    @rule(
        name=names,
        kind=st.sampled_from(["placeholder", "file", "directory", "link", "task", "nowhere"]),
        other=names,
    )
    def stray(self, name: bytes, kind: str, other: bytes) -> None:
        if name in self.model.entries:
            return
        path = self.run(name)
        if kind in ("placeholder", "file"):
            content = b"mine" if kind == "file" else b""
            Path(os.fsdecode(path)).write_bytes(content)
            entry = Entry("file", content)
        elif kind == "directory":
            os.mkdir(path)
            entry = Entry("directory")
        else:
            targets = {
                "link": other,
                "task": b"/proc/%b/ns/net" % self.task(len(self.model.processes)),
                "nowhere": self.run(b"nowhere"),
            }
            entry = Entry("link", targets[kind])
            os.symlink(entry.content, path)
        self.model.entries[name] = entry

    @rule(name=names)
    def tidy(self, name: bytes) -> None:
        entry = self.model.entries.get(name)
        if entry and not entry.stack:
            (os.rmdir if entry.kind == "directory" else os.unlink)(self.run(name))
            del self.model.entries[name]

    @rule(name=names, other=names, uts=st.sampled_from([False, False, True]))
    def stack(self, name: bytes, other: bytes, uts: bool) -> None:
        entry, space = self.model.entries.get(name), self.model.space(other)
        if not entry or entry.kind != "file" or not (uts or space) or len(entry.stack) > 3:
            return
        linux.mount(UTS if uts else self.run(other), self.run(name), linux.MS_BIND)
        # Else what is stacked on this one comes to lie on the other too.
        linux.mount(None, self.run(name), linux.MS_PRIVATE)
        entry.stack.append(None if uts else space)

    # Processes

    @precondition(lambda self: len(self.model.processes) < 3)
    @rule()
    def process(self) -> None:
        pid = self.world.nursery.start()
        space = look(b"/proc/%d/ns/net" % pid)
        space.pids = [pid]
        self.model.processes[pid] = space

    @precondition(lambda self: self.model.processes)
    @rule()
    def end_of_process(self) -> None:
        pid, space = self.model.processes.popitem()
        self.world.nursery.end(pid)
        space.pids = []

    @rule(index=either, number=st.integers(0, 3))
    def where_a_task_is(self, index: int, number: int) -> None:
        pid = self.task(number % (len(self.model.processes) + 1))
        space = self.model.of_task(pid)
        assert space
        path = self.at(index, RESERVED, b"pid", pid)
        assert os.readlink(path) == self.model.link_of(space)
        self.compare(content(path + b"/id"), b"id", space)

    @rule(index=either, number=st.integers(0, 3))
    def where_a_number_leads(self, index: int, number: int) -> None:
        space = self.model.of_task(self.task(number % (len(self.model.processes) + 1)))
        assert space
        numbers = {b"inode": space.inode, b"id": space.id, b"nsid": space.nsid}
        for kind, found in numbers.items():
            if found is not None:
                path = self.at(index, RESERVED, kind, b"%d" % found)
                assert os.readlink(path) == self.model.link_of(space)

    @rule(index=either)
    def unnamed(self, index: int) -> None:
        directory = self.at(index, RESERVED, b"unnamed")
        listed = os.listdir(directory)
        for space in (self.world.home, *self.model.processes.values()):
            number = b"%d" % space.inode
            path = b"%b/%b/id" % (directory, number)
            if [name for name in self.model.names_of(space) if name != RESERVED]:
                assert number not in listed
                assert error_of(os.stat, path) == "ENOENT"
            else:
                assert number in listed
                self.compare(content(path), b"id", space)

    # The daemons

    @precondition(lambda self: self.restarts)
    @rule(index=either, how=st.sampled_from([signal.SIGTERM, signal.SIGKILL]))
    def restart(self, index: int, how: signal.Signals) -> None:
        self.restarts = False
        self.world.restart(index, how)
        for held in [held for held in self.held if held.index == index]:
            self.held.remove(held)
            directory = held.file == b"."
            found = error_of(os.listdir if directory else content_of, held.fd)
            # Of what is gone, the kernel may answer by itself: of a directory that it has
            # removed, that nothing is in it.
            gone = ("", "ENOENT", *GONE) if directory else GONE
            assert found in (DEAD if self.stands(held) else (*DEAD, *gone))
            os.close(held.fd)

    # After every step

    @invariant()
    def compare_all(self) -> None:
        self.steps += 1
        for space in self.model.spaces():
            space.several = space.several or len(self.model.names_of(space)) > 1
        listed = os.listdir(bytes(RUN))
        assert set(listed) == set(self.model.entries)
        assert self.world.batch.run(b"list")[0] == b"".join(map(self.model.line, listed))
        self.compare_mounts()
        self.compare_mount(self.steps % 2)

    def compare_mounts(self) -> None:
        found = sorted((mount.target, mount.root) for mount in mounts(b"nsfs"))
        uts = os.readlink(UTS)
        assert found == sorted(
            (path, b"net:[%d]" % space.inode if space else uts)
            for path, space in self.model.stacked()
        )

    def compare_mount(self, index: int) -> None:
        with os.scandir(self.at(index)) as entries:
            numbers = {entry.name: entry.inode() for entry in entries}
        visible = self.model.visible()
        assert set(numbers) == set(visible)
        for name, space in visible.items():
            found = os.stat(self.at(index, name))
            # As long as somebody has an ended namespace of that number open, it is any number.
            assert numbers[name] == found.st_ino or numbers[name] >= 1 << 32
            assert found.st_mode == stat.S_IFDIR | (0o755 if space else 0)
            if space:
                assert space.several or found.st_ino == space.inode
        # The number alone may be the next namespace's.
        for name, space in [*visible.items()][self.steps % 5 :: 5]:
            if space:
                self.compare(content(self.at(index, name, b"id")), b"id", space)
        absent = NAMES[self.steps % len(NAMES)]
        # The control directory is there, and not listed.
        if absent not in (*numbers, RESERVED):
            assert error_of(os.stat, self.at(index, absent)) == "ENOENT"

    def teardown(self) -> None:
        self.world.remember_failure()
        for held in self.held:
            os.close(held.fd)
        for pid in self.model.processes:
            self.world.nursery.end(pid)
        self.clear()
        for index, mounted in enumerate(self.world.mounts):
            assert os.listdir(self.at(index)) == []
            wait_for(partial(self.keeps_nothing, mounted))

    def clear(self) -> None:
        """As far as it goes, also after a failure; then see whether anything is left."""
        for number, name in enumerate(os.listdir(bytes(RUN))):
            with suppress(OSError):
                os.rmdir(self.at(number % 2, name))
        failed = os.listdir(bytes(RUN))
        for name in failed:
            with suppress(OSError):
                while True:
                    linux.umount(self.run(name), linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            path = Path(os.fsdecode(self.run(name)))
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        expected = {
            name
            for name in self.model.entries
            if name == RESERVED or self.model.refuses_rmdir(name)
        }
        # What has failed already is not to be hidden by what comes of it.
        if sys.exc_info()[0] is None:
            assert set(failed) == expected
            assert mounts(b"nsfs") == []

    def keeps_nothing(self, mounted: Mounted) -> bool:
        """Whether a daemon has no descriptor that keeps a namespace."""
        home = os.readlink("/proc/self/ns/net")
        directory = f"/proc/{mounted.process.pid}/fd"
        for fd in os.listdir(directory):
            with suppress(FileNotFoundError):
                target = os.readlink(f"{directory}/{fd}")
                kept = target.startswith(("net:", "/proc/")) and target != home
                if (
                    kept
                    and not target.endswith(("/mountinfo", *KEPT_OPEN))
                    and not self.serves_spares(mounted, fd, target)
                ):
                    return False
        return True

    def serves_spares(self, mounted: Mounted, fd: str, target: str) -> bool:
        """Whether a descriptor is of a spare, or of what spares are compared with."""
        lines = Path(f"/proc/{mounted.process.pid}/fdinfo/{fd}").read_text().split("\n")
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags"))
        return mounted.path == SECOND and (
            target.startswith("/proc/sys/net") or is_spare(flags)
        )


@pytest.fixture
def world(start: Start) -> Iterator[World]:
    made = World(start)
    yield made
    made.close()


@pytest.mark.timeout(4 * 3600 if LONG else 900)
def test_any_order_of_anything(world: World, request: pytest.FixtureRequest) -> None:
    number = request.config.getoption("--hypothesis-seed")
    number = random.getrandbits(64) if number is None else int(number)
    print(f"--hypothesis-seed={number}")
    bound = type("Run", (Machine,), {"world": world})
    profile = settings(
        max_examples=10_000 if LONG else 200,
        stateful_step_count=50,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    before = time.monotonic()
    try:
        run_state_machine_as_test(seed(number)(bound), settings=profile)
    finally:
        print(f"{world.runs} runs in {time.monotonic() - before:.0f} s")
