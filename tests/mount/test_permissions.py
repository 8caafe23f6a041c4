"""Who may do what: as others than root, through the mount."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from conftest import (
    MNT,
    RUN,
    Mounted,
    Start,
    error_of,
    few_descriptors,
    ip,
    unmount_idle,
    wait_for,
)
from users import DROP, TRY, as_user

from netnsfs import linux
from netnsfs.config import Config
from netnsfs.jobs import Abandoned, Job, never_block
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import Namespace
from netnsfs.node import Directory, File, Node
from netnsfs.permissions import Owner, Permissions, delegated_owner
from netnsfs.stats import Stats
from netnsfs.tree.root import Root

ALICE, STAFF, NOBODY = 4711, 4712, 65534

Spawn = Callable[..., subprocess.Popen[bytes]]


def owner(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


def clear(mounted: Mounted) -> None:
    for name in NamedNamespaces(bytes(RUN)).list_names():
        os.rmdir(os.path.join(bytes(mounted.path), name))


def test_as_nobody_nothing_can_be_changed(mnt: Mounted, foo: Path) -> None:
    results = as_user(
        NOBODY,
        NOBODY,
        f"os.mkdir('{mnt.path}/new')",
        f"os.rmdir('{foo}')",
        f"os.rename('{foo}', '{mnt.path}/new')",
        f"os.symlink('/proc/self/ns/net', '{mnt.path}/new')",
        f"os.chmod('{foo}', 0o777)",
        f"os.chown('{foo}', {NOBODY}, {NOBODY})",
        f"write('{foo}/links/lo/up', '1')",
        f"write('{foo}/sysctl/ipv4/ip_forward', '1')",
        f"os.truncate('{foo}/nsid', 0)",
        f"os.utime('{foo}')",
        f"read('{foo}/holders')",
    )
    assert results[4:6] + results[9:10] == ["EPERM", "EPERM", "EACCES"]
    assert {*results[:4], *results[6:9], results[10]} == {"EACCES"}
    assert os.listdir(RUN) == ["foo"]


def test_a_group_may_make_and_remove_and_nothing_else(start: Start) -> None:
    mounted = start("-o", f"gid={STAFF},dmask=002")
    foo = mounted / "foo"
    assert owner(mounted.path) == (0, STAFF, 0o775)
    results = as_user(
        ALICE,
        STAFF,
        f"os.mkdir('{foo}')",
        f"os.mkdir('{mounted.path}/gone')",
        f"os.rename('{mounted.path}/gone', '{mounted.path}/away')",
        f"os.rmdir('{mounted.path}/away')",
        f"os.symlink('/proc/self/ns/net', '{mounted.path}/mine')",
        f"os.symlink('foo', '{mounted.path}/mine')",
        f"write('{foo}/links/lo/up', '1')",
        f"write('{foo}/sysctl/ipv4/ip_forward', '1')",
        f"os.chmod('{foo}', 0o777)",
        f"read('{foo}/holders')",
        f"os.rename('{mounted.path}/.netnsfs/unnamed/1', '{mounted.path}/mine')",
    )
    refused = ["EPERM", "EPERM", "EACCES", "EACCES", "EPERM", "EACCES"]
    assert results[:10] == ["", "", "", "", *refused]
    assert results[10] in ("EACCES", "ENOENT")
    assert os.listdir(RUN) == ["foo"]
    assert owner(foo) == (0, STAFF, 0o775)
    assert owner(foo / "links/lo/up") == (0, STAFF, 0o644)
    clear(mounted)


def test_a_group_member_cannot_loosen_by_mkdir(start: Start) -> None:
    mounted = start("-o", f"gid={STAFF},dmask=002")
    path = f"{mounted.path}/foo"
    assert as_user(
        ALICE,
        STAFF,
        f"(os.umask(0), os.mkdir('{path}', 0o777), os.chmod('{path}', 0o777))",
        f"write('{path}/links/lo/up', '1')",
        f"write('{path}/sysctl/ipv4/ip_forward', '1')",
        f"os.mkdir('{path}2', 0o770)",
        f"write('{path}2/links/lo/up', '1')",
        f"write('{path}2/sysctl/ipv4/ip_forward', '1')",
    ) == ["EPERM", "EACCES", "EACCES", "", "EACCES", "EACCES"]
    assert owner(mounted / "foo")[2] & 0o002 == 0
    clear(mounted)


def test_an_owner_by_option_may_write(start: Start) -> None:
    mounted = start("-o", f"uid={ALICE},fmask=027")
    (mounted / "foo").mkdir()
    assert as_user(
        ALICE,
        ALICE,
        f"write('{mounted.path}/foo/links/lo/up', '1')",
        f"write('{mounted.path}/foo/sysctl/ipv4/ip_forward', '1')",
        f"os.symlink('foo', '{mounted.path}/mine')",
        f"read('{mounted.path}/foo/holders')",
    ) == ["", "", "EPERM", "EACCES"]
    assert owner(mounted / "foo/sysctl/ipv4/ip_forward") == (ALICE, 0, 0o640)
    assert owner(mounted / "foo/inode") == (0, 0, 0o440)
    clear(mounted)


def test_umask_is_for_both(start: Start) -> None:
    mounted = start("-o", "umask=077")
    (mounted / "foo").mkdir()
    for path, mode in ((".", 0o700), ("foo", 0o700), ("foo/inode", 0o400), ("foo/net", 0o500)):
        assert owner(mounted / path)[2] == mode
    clear(mounted)


def test_others_can_be_kept_out(start: Start) -> None:
    mounted = start("-o", "noallow_other")
    assert as_user(NOBODY, NOBODY, f"os.listdir('{mounted.path}')") == ["EACCES"]
    assert os.listdir(mounted.path) == []


def test_a_namespace_is_given_to_somebody(start: Start) -> None:
    mounted = start()
    foo, other = mounted / "foo", mounted / "other"
    foo.mkdir()
    other.mkdir()
    os.chown(foo, ALICE, STAFF)
    lines = (
        f"write('{foo}/sysctl/ipv4/ip_forward', '1')",
        f"write('{other}/sysctl/ipv4/ip_forward', '1')",
        f"os.rmdir('{foo}')",
        f"os.symlink('foo', '{mounted.path}/mine')",
        f"read('{foo}/holders')",
    )
    expected = ["", "EACCES", "EACCES", "EACCES", "EACCES"]
    assert as_user(ALICE, ALICE, f"write('{foo}/links/lo/up', '1')", *lines) == ["", *expected]
    assert (foo / "links/lo/up").read_text() == "1\n"
    assert owner(foo) == (ALICE, STAFF, 0o755)
    assert owner(foo / "links/lo/up") == (ALICE, STAFF, 0o644)
    assert owner(foo / "inode") == (0, 0, 0o444)

    mounted.kill()
    mounted = start()
    assert as_user(ALICE, ALICE, *lines) == expected
    os.rename(foo, mounted / "bar")
    assert owner(mounted / "bar") == (ALICE, STAFF, 0o755)
    (mounted / "bar").rmdir()
    (mounted / "bar").mkdir()
    ip("netns", "add", "foo")
    for name in ("foo", "bar"):
        assert owner(mounted / name) == (0, 0, 0o755)
        assert owner(mounted / name / "links/lo/up") == (0, 0, 0o644)
    clear(mounted)


def test_mode_of_a_namespace(mnt: Mounted) -> None:
    foo = mnt / "foo"
    os.mkdir(foo, 0o700)
    assert owner(foo) == (0, 0, 0o700)
    assert as_user(NOBODY, NOBODY, f"read('{foo}/inode')") == ["EACCES"]
    os.chmod(foo, 0o775)
    os.chown(foo, -1, STAFF)
    assert owner(foo) == (0, STAFF, 0o775)
    assert owner(foo / "links/lo/up") == (0, STAFF, 0o664)
    assert as_user(ALICE, STAFF, f"write('{foo}/links/lo/up', '1')") == [""]
    assert as_user(NOBODY, NOBODY, f"write('{foo}/links/lo/up', '1')") == ["EACCES"]
    for mode in (0o1775, 0o2775, 0o4775):
        assert error_of(os.chmod, foo, mode) == "EPERM"
    assert owner(foo) == (0, STAFF, 0o775)
    foo.rmdir()
    (mnt / "foo").mkdir()
    assert owner(foo) == (0, 0, 0o755)
    foo.rmdir()


def test_secret_sysctls_stay_secret(foo: Path) -> None:
    key = foo / "sysctl/ipv4/tcp_fastopen_key"
    assert owner(key)[2] == 0o600
    foo.chmod(0o777)
    assert owner(key)[2] == 0o600
    assert owner(foo / "sysctl/ipv4/ip_forward")[2] == 0o666


def test_what_cannot_be_given(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    os.symlink("/proc/self/ns/net", RUN / "link")
    for path in (mnt.path, foo / "nsid", foo / "net", foo / "net/dev", foo / "sysctl/ipv4",
                 mnt / ".netnsfs", mnt / "link"):  # fmt: skip
        assert error_of(os.chown, path, ALICE, ALICE) == "EPERM", path
        assert error_of(os.chmod, path, 0o753) == "EPERM", path
    (mnt / "link").rmdir()


def test_another_daemon_sees_it_at_once(start: Start) -> None:
    first, second = start(), start(at=Path("/mnt/second"))
    (first / "foo").mkdir()
    for number in range(1, 30):
        one, other = (first, second) if number % 2 else (second, first)
        os.chown(one / "foo", number, -1)
        assert (other / "foo").stat().st_uid == number
        assert (other / "foo/links/lo/up").stat().st_uid == number
    os.rename(second / "foo", second / "bar")
    assert owner(first / "bar")[0] == 29
    (first / "bar").rmdir()
    os.mkdir(first / "bar", 0o711)
    assert owner(second / "bar") == (0, 0, 0o711)
    (first / "bar").rmdir()


def test_one_namespace_with_two_names_has_two_owners(mnt: Mounted, foo: Path) -> None:
    os.symlink("foo", mnt / "bar")
    os.chown(foo, ALICE, -1)
    assert owner(foo)[0] == ALICE
    assert owner(mnt / "bar")[0] == 0
    ip("netns", "del", "foo")
    os.symlink("bar", mnt / "foo")
    assert owner(mnt / "foo")[0] == 0
    (mnt / "bar").rmdir()


def test_placeholders_of_others_mean_nothing(mnt: Mounted) -> None:
    RUN.mkdir(exist_ok=True)
    (RUN / "foo").touch()
    os.chown(RUN / "foo", ALICE, ALICE)
    os.chmod(RUN / "foo", 0o777)
    linux.mount(b"/proc/self/ns/net", bytes(RUN / "foo"), linux.MS_BIND)
    assert owner(mnt / "foo") == (0, 0, 0o755)
    (mnt / "foo").rmdir()


def test_where_it_cannot_be_kept_it_is_refused(
    mnt: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"before")
    names.remove(b"before")
    names.owners._attribute = "nosuchkind.netnsfs"
    assert error_of(names.create, b"foo", delegated_owner(ALICE, ALICE, 0o700)) == "EPERM"
    assert names.list_names() == []
    names.create(b"foo")
    mark = names.entry_at(b"foo").identity
    assert error_of(names.owners.change_owner, b"foo", mark, to_alice) == "EPERM"
    names.remove(b"foo")


@pytest.mark.parametrize("mode", [0, 0o644])
def test_a_job_without_a_caller_gives_no_name(mode: int) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.directory.prepare()
    (RUN / "foo").touch()
    os.chmod(RUN / "foo", mode)
    linux.mount(b"/proc/self/ns/net", bytes(RUN / "foo"), linux.MS_BIND)
    job = Job(names.owners.change_owner, b"foo", names.entry_at(b"foo").identity, to_alice)
    job.abandon()
    job.run()
    with pytest.raises(Abandoned):
        job.result()
    assert names.owners.owner_of(b"foo") is None
    with linux.closing_fd(names.directory.open_placeholder_opath(b"foo")) as placeholder:
        assert os.fstat(placeholder).st_mode & 0o7777 == mode
    names.remove(b"foo")


def test_a_name_made_anew_is_not_given(mnt: Mounted) -> None:
    names = NamedNamespaces(bytes(RUN))
    _, mark = names.create(b"foo")
    again = mark
    # Before Linux 6.8, what is made anew within a tick of the clock looks the same.
    while again == mark:
        names.remove(b"foo")
        _, again = names.create(b"foo")
    assert error_of(names.owners.change_owner, b"foo", mark, to_alice) == "ENOENT"
    assert names.owners.owner_of(b"foo") is None
    names.remove(b"foo")


def test_nobody_sees_a_given_name_before_its_owner_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = NamedNamespaces(bytes(RUN))
    seen = []
    move_mount = linux.move_mount

    def look(mount: int, target: int) -> None:
        move_mount(mount, target)
        seen.append(names.owners.owner_of(b"foo"))

    monkeypatch.setattr(linux, "move_mount", look)
    private = delegated_owner(ALICE, ALICE, 0o700)
    names.create(b"foo", private)
    assert seen == [private]
    names.remove(b"foo")


def test_a_failed_one_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NamedNamespaces(bytes(RUN))
    names.create(b"before")
    names.remove(b"before")

    def fail(mount: int, target: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(linux, "move_mount", fail)
        assert error_of(names.create, b"foo", delegated_owner(ALICE, ALICE, 0o700)) == "ENOMEM"
    assert names.owners.owner_of(b"foo") is None
    assert names.list_names() == []


def test_a_name_that_is_mounted_during_a_look_has_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, others = NamedNamespaces(bytes(RUN)), NamedNamespaces(bytes(RUN))
    tree = Root(names, Stats(), Config(bytes(MNT)))
    others.create(b"foo")
    others.remove(b"foo")
    (RUN / "foo").touch()
    reach = names.directory.open_opath

    def late(name: bytes) -> int:
        fd = reach(name)
        monkeypatch.setattr(names.directory, "open_opath", reach)
        (RUN / "foo").unlink()
        others.create(name, delegated_owner(ALICE, ALICE, 0o700))
        return fd

    monkeypatch.setattr(names.directory, "open_opath", late)
    # Of that moment: a stale name, closed. The next look sees the namespace, and whose it is.
    assert tree.lookup(b"foo", _Caller()).getattr_cached().mode & 0o7777 == 0
    shown = tree.lookup(b"foo", _Caller()).getattr_cached()
    assert (shown.uid, shown.mode & 0o7777) == (ALICE, 0o700)
    names.remove(b"foo")


def test_a_name_that_keeps_changing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NamedNamespaces(bytes(RUN))
    tree = Root(names, Stats(), Config(bytes(MNT)))
    names.create(b"foo")
    reach = names.directory.open_opath

    def another(name: bytes) -> int:
        fd = reach(name)
        monkeypatch.setattr(names.directory, "open_opath", reach)
        names.remove(name)
        names.create(name)
        return fd

    monkeypatch.setattr(names.directory, "open_opath", another)
    shown = tree.lookup(b"foo", _Caller()).getattr_cached()
    assert shown.mode & 0o7777 == 0
    names.remove(b"foo")


def test_what_the_event_loop_keeps_of_an_owner_is_true() -> None:
    names, others = NamedNamespaces(bytes(RUN)), NamedNamespaces(bytes(RUN))
    names.create(b"foo")
    private = delegated_owner(ALICE, ALICE, 0o700)
    seen: list[Owner | None] = []

    def on_event_loop() -> None:
        never_block()
        assert others.directory.known_owners() is None
        for name in (b"foo", b"foo", b"bar", b"foo"):
            turn.wait(10)
            turn.wait(10)
            seen.append(others.owners.owner_of(name))
            assert set(others.directory.known_owners() or {}) == {name}

    def between_looks(step: Callable[[], object]) -> None:
        turn.wait(10)
        step()
        turn.wait(10)

    def listen() -> None:
        # What the event loop has found that it does not know, a worker prepares.
        others.list_names()
        others.owners.owner_of(b"foo")

    turn = threading.Barrier(2)
    thread = threading.Thread(target=on_event_loop)
    thread.start()
    between_looks(listen)
    between_looks(
        lambda: names.owners.change_owner(b"foo", names.entry_at(b"foo").identity, to_alice)
    )
    between_looks(lambda: names.rename(b"foo", b"bar"))
    between_looks(lambda: names.rename(b"bar", b"foo"))
    thread.join()
    assert seen == [None, private, private, private]
    names.remove(b"foo")


def test_masks_and_delegations_by_the_table() -> None:
    plain, caller = Permissions(), _Caller()
    assert plain.owner_at_birth(0o755, caller) is None
    assert plain.owner_at_birth(0o700, caller) == delegated_owner(0, 0, 0o700)
    grouped = Permissions(gid=5, dmask=0o002)
    assert grouped.owner_at_birth(0o755, caller) is None
    assert grouped.owner_at_birth(0o750, caller) == delegated_owner(0, 5, 0o750)
    alice = _Caller(uid=ALICE)
    assert grouped.owner_at_birth(0o770, alice) == Owner(0, 5, 0o770, 0o200)
    given = delegated_owner(ALICE, 5, 0o755)
    assert plain.owner_when_given(given, 0o777, None, None, alice) == Owner(
        ALICE, 5, 0o777, 0o200
    )
    shared = delegated_owner(ALICE, 5, 0o775)
    assert plain.owner_when_given(shared, None, None, 6, alice) == Owner(ALICE, 6, 0o755, 0o200)
    assert plain.owner_when_given(shared, None, None, 6, caller) == Owner(
        ALICE, 6, 0o775, 0o220
    )
    assert plain.owner_when_given(shared, None, 7, None, caller) == Owner(7, 5, 0o775, 0o220)
    assert (
        error_of(plain.owner_when_given, shared, 0o700, None, None, _Caller(uid=7)) == "EPERM"
    )
    closed = Permissions(uid=ALICE, fmask=0o222)
    assert closed.owner_when_given(closed.default_owner(), 0o700, None, None, alice).write == 0
    assert (
        closed.owner_when_given(closed.default_owner(), None, ALICE, None, caller).write
        == 0o200
    )
    assert plain.file_attributes(0o200, plain.default_owner()) == (0o200, 0, 0)
    assert plain.file_attributes(0o644, delegated_owner(7, 8, 0o777)) == (0o666, 7, 8)
    assert plain.file_attributes(0o644, delegated_owner(7, 8, 0o555)) == (0o444, 7, 8)
    assert plain.file_attributes(0o444, delegated_owner(7, 8, 0o777)) == (0o444, 0, 0)


def to_alice(before: Owner | None) -> Owner:
    return delegated_owner(ALICE, ALICE, 0o700)


@dataclass
class _Caller:
    pid: int = 0
    uid: int = 0
    umask: int = 0o022


def test_root_without_capabilities_gets_what_mode_bits_give(
    mnt: Mounted, foo: Path, spawn: Spawn
) -> None:
    process = spawn("unshare", "-n", "sleep", "60")
    here = os.stat("/proc/self/ns/net").st_ino
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != here)
    number = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    unnamed = f"{mnt.path}/.netnsfs/unnamed/{number}"
    lines = (
        f"os.mkdir('{mnt.path}/bar')",
        f"os.rmdir('{mnt.path}/bar')",
        f"os.symlink('/proc/{process.pid}/ns/net', '{mnt.path}/mine')",
        f"os.symlink('foo', '{mnt.path}/mine')",
        f"read('{foo}/holders')",
        f"os.readlink('{unnamed}/ns')",
        f"os.rename('{unnamed}', '{mnt.path}/mine')",
    )
    expected = ["", "", "EPERM", "EPERM", "EACCES", "EACCES", "EACCES"]
    assert as_user(0, 0, *lines, prefix=DROP) == expected
    # The same user ID, and all capabilities, but in a user namespace of its own.
    assert as_user(0, 0, *lines, prefix=("unshare", "-Ur")) == expected
    assert sorted(os.listdir(RUN)) == ["foo"]


def started_inside(spawn: Spawn) -> tuple[subprocess.Popen[bytes], int]:
    """A process in a namespace of its own, which has no name, and the inode number of that."""
    process = spawn("unshare", "-n", "sleep", "60")
    here = os.stat("/proc/self/ns/net").st_ino
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != here)
    return process, os.stat(f"/proc/{process.pid}/ns/net").st_ino


def test_what_has_no_name_is_for_those_who_may_read_everything(
    mnt: Mounted, spawn: Spawn
) -> None:
    _, number = started_inside(spawn)
    directory = f"{mnt.path}/.netnsfs/unnamed"
    assert owner(mnt / ".netnsfs/unnamed") == (0, 0, 0o700)
    files = ("id", "pids", "net/dev")
    lines = (
        f"len(os.listdir('{directory}')) > 1",
        f"[entry.is_dir() for entry in os.scandir('{directory}')] != []",
        f"os.stat('{directory}/{number}') and None",
        f"os.listdir('{directory}/{number}') and None",
        *(f"read('{directory}/{number}/{file}') and None" for file in files),
        f"read('{directory}/{number}/sysctl/ipv4/ip_forward')",
    )
    refused = ["EACCES"] * len(lines)
    assert as_user(NOBODY, NOBODY, *lines) == refused
    assert as_user(0, 0, *lines, prefix=DROP) == refused
    assert as_user(0, 0, *lines, prefix=("unshare", "-Ur")) == refused
    reader = ("setpriv", f"--reuid={NOBODY}", "--clear-groups", "--inh-caps=+dac_read_search")
    lent = (*reader, "--ambient-caps=+dac_read_search")
    forwards = Path(f"{directory}/{number}/sysctl/ipv4/ip_forward").read_text()
    shown = [True, True, "", "", "", "", "", forwards]
    assert as_user(0, 0, *lines, prefix=lent) == as_user(0, 0, *lines) == shown


def test_hidden_processes_have_no_sockets_to_be_seen(mnt: Mounted, spawn: Spawn) -> None:
    _, number = started_inside(spawn)
    line = f"read('{mnt.path}/.netnsfs/unnamed/{number}/net/unix')"
    assert as_user(NOBODY, NOBODY, line) == ["EACCES"]


def test_opening_what_has_no_name_takes_a_capability(mnt: Mounted) -> None:
    machine = f"{mnt.path}/.netnsfs/unnamed/{os.stat('/proc/self/ns/net').st_ino}"
    held = os.open(machine, os.O_PATH)
    os.set_inheritable(held, True)
    # A descriptor from before the capabilities were dropped is past the door, and no further.
    file = "'sysctl/ipv4/conf/default/log_martians'"
    lines = [f"os.open('nsid', {flags}, dir_fd={held}) and None" for flags in (os.O_WRONLY,)]
    lines += [
        f"os.open({file}, {flags}, dir_fd={held}) and None"
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC)
    ]
    command = ["/usr/bin/python3", "-c", TRY, "0", "0", "\n".join(lines)]
    for prefix, code in ((DROP, "EACCES"), ((), "")):
        done = subprocess.run(
            [*prefix, *command], check=True, capture_output=True, pass_fds=[held]
        )
        assert json.loads(done.stdout) == [code] * 5
    os.close(held)


HANDLE = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
place, path = os.open(sys.argv[1], os.O_RDONLY), sys.argv[2].encode()
# struct file_handle
handle = ctypes.create_string_buffer((128).to_bytes(4, "little"), 8 + 128)
held = os.open(path, os.O_PATH)
if libc.name_to_handle_at(-100, path, handle, ctypes.byref(ctypes.c_int()), 0):
    sys.exit(os.strerror(ctypes.get_errno()))
def found():
    results = []
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        fd = libc.open_by_handle_at(place, handle, flags)
        results.append("" if fd >= 0 else errno.errorcode[ctypes.get_errno()])
    return results
print(json.dumps(found()), flush=True)
CAP_DAC_READ_SEARCH = 2
# capset(2): effective, permitted, inheritable.
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
for capability in (1 << CAP_DAC_READ_SEARCH, 0):
    sets = (ctypes.c_uint32 * 6)(capability, capability)
    assert not libc.capset(header, sets)
    print(json.dumps(found()), flush=True)
"""


@pytest.mark.machine
def test_a_file_handle_leads_past_the_door_and_no_further(mnt: Mounted) -> None:
    """open_by_handle_at(2) walks no path, so that no directory on the way is closed to it."""
    machine = mnt / f".netnsfs/unnamed/{os.stat('/proc/self/ns/net').st_ino}"
    file = machine / "sysctl/ipv4/conf/default/log_martians"
    command = ["/usr/bin/python3", "-c", HANDLE, str(mnt.path), str(file)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    root, reader, none = map(json.loads, done.stdout.splitlines())
    assert root == [""] * 4
    assert reader == ["", "EACCES", "EACCES", "EACCES"]
    assert none == ["EPERM"] * 4


def test_a_name_closes_what_was_open_below_unnamed(mnt: Mounted, spawn: Spawn) -> None:
    _, number = started_inside(spawn)
    directory = os.open(mnt / f".netnsfs/unnamed/{number}", os.O_PATH)
    files = ("pids", "tids", "holders", "nsid", "id", "inode")
    below = (*files, "net/dev", "sysctl/ipv4/ip_forward")
    held = [os.open(file, os.O_RDONLY, dir_fd=directory) for file in files]
    views = [os.open(view, os.O_PATH, dir_fd=directory) for view in ("net", "sysctl")]
    (mnt / f".netnsfs/unnamed/{number}").rename(mnt / "web")
    try:
        (mnt / "web").chmod(0o700)
        for file in below:
            code = error_of(partial(os.open, file, os.O_RDONLY, dir_fd=directory))
            assert code in ("ENOENT", "ESTALE"), file
        for view, file in zip(views, ("dev", "core/somaxconn"), strict=True):
            code = error_of(partial(os.open, file, os.O_RDONLY, dir_fd=view))
            assert code in ("ENOENT", "ESTALE"), file
        for fd in (*views, directory):
            # For the C library, ENOENT is the end of a directory that was removed.
            with suppress(FileNotFoundError):
                assert os.listdir(f"/proc/self/fd/{fd}") == []
        assert error_of(os.readlink, f"/proc/self/fd/{directory}/ns") == "ENOENT"
        for fd in held:
            assert error_of(os.pread, fd, 99, 0) == "ENODEV"
    finally:
        for fd in (directory, *held, *views):
            os.close(fd)
        (mnt / "web").rmdir()


def test_a_rename_is_never_seen_to_leave_no_name(mnt: Mounted, foo: Path) -> None:
    number = os.stat(foo).st_ino
    stop = threading.Event()
    caught: list[object] = []

    def look() -> None:
        while not stop.is_set():
            caught.append(error_of(os.stat, mnt / f".netnsfs/unnamed/{number}"))
            caught.append(str(number) in os.listdir(mnt / ".netnsfs/unnamed") or "ENOENT")

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    for _ in range(150):
        foo.rename(mnt / "bar")
        (mnt / "bar").rename(foo)
    stop.set()
    for thread in looking:
        thread.join()
    assert set(caught) == {"ENOENT"}


def test_whoever_removes_a_closed_name_sees_no_more_of_it(start: Start, spawn: Spawn) -> None:
    mounted = start("-o", f"gid={STAFF},dmask=002")
    (mounted / "secret").mkdir()
    (mounted / "secret").chmod(0o700)
    inside = spawn("nsenter", f"--net={RUN}/secret", "sleep", "60")
    wait_for((mounted / "secret/pids").read_bytes)
    number = os.stat(mounted / "secret").st_ino
    lines = (
        f"read('{mounted.path}/secret/pids')",
        f"os.rmdir('{mounted.path}/secret')",
        f"read('{mounted.path}/.netnsfs/unnamed/{number}/pids')",
    )
    assert as_user(ALICE, STAFF, *lines) == ["EACCES", "", "EACCES"]
    found = (mounted / f".netnsfs/unnamed/{number}/pids").read_text()
    assert found == f"{inside.pid}\n"


def test_a_user_in_a_child_user_namespace_is_that_user(mnt: Mounted, foo: Path) -> None:
    script = f"""
import os, subprocess, sys
os.setgroups([])
os.setresgid({ALICE}, {ALICE}, {ALICE})
os.setresuid({ALICE}, {ALICE}, {ALICE})
os.chdir("/")
inner = '''
import os
for call in (lambda: os.mkdir("{mnt.path}/x"), lambda: os.rmdir("{foo}"),
             lambda: os.symlink("foo", "{mnt.path}/x"), lambda: open("{foo}/nsid", "w"),
             lambda: open("{foo}/holders"), lambda: os.chown("{foo}", 0, 0)):
    try:
        call(); print("done")
    except PermissionError:
        print("refused")
'''
subprocess.run(["unshare", "-Urnm", "/usr/bin/python3", "-c", inner], check=True)
"""
    done = subprocess.run(["/usr/bin/python3", "-c", script], check=True, capture_output=True)
    assert done.stdout.split() == [b"refused"] * 6


def test_hidden_processes_stay_hidden(mnt: Mounted, foo: Path, spawn: Spawn) -> None:
    inside = spawn("nsenter", f"--net={RUN}/foo", "sleep", "60")
    own = spawn("nsenter", f"--net={RUN}/foo", "setpriv", f"--reuid={ALICE}", "sleep", "60")
    pids = f"{inside.pid}\n{own.pid}\n"
    wait_for(lambda: (foo / "pids").read_text() == pids)
    wait_for(lambda: os.stat(f"/proc/{own.pid}").st_uid == ALICE)
    look = [f"read('{foo}/{name}')" for name in ("pids", "tids")]
    link = f"os.readlink('{MNT}/.netnsfs/pid/%d')"
    listing = f"len(os.listdir('{MNT}/.netnsfs/pid')) > 3"
    lines = [*look, link % inside.pid, link % own.pid, listing]
    named = "../../foo"
    assert as_user(ALICE, ALICE, *lines) == [pids, pids, named, named, True]
    # A mount of its own: the options of the machine's are the machine's.
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
    try:
        mine = f"{own.pid}\n"
        assert as_user(ALICE, ALICE, *lines) == [mine, mine, "ENOENT", named, False]
        assert as_user(0, 0, *lines) == [pids, pids, named, named, True]
        own.kill()
        own.wait()
        look = [f"read('{foo}/cgroups')"]
        assert as_user(ALICE, ALICE, *look) == [""] != as_user(0, 0, *look)
    finally:
        linux.umount(b"/proc", linux.MNT_DETACH)


def test_names_of_users_and_groups(start: Start) -> None:
    mounted = start("-o", "uid=nobody,gid=daemon")
    assert owner(mounted.path)[:2] == (NOBODY, 1)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("uid=nosuchuser", "no user called nosuchuser"),
        ("gid=nosuchgroup", "no group called nosuchgroup"),
        ("uid=4294967295", "no user ID"),
        ("umask=8", "octal"),
        ("dmask=1000", "octal"),
        ("fmask=-1", "octal"),
        ("gid=", "needs a value"),
    ],
)
def test_wrong_options_are_told(option: str, says: str) -> None:
    command = [sys.executable, "-m", "netnsfs", "-f", "-o", option, str(MNT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_names_of_one_namespace_keep_their_owners(mnt: Mounted, foo: Path) -> None:
    bar = mnt / "bar"
    os.symlink("foo", bar)
    foo.chmod(0o777)
    os.chown(foo, ALICE, -1)
    bar.chmod(0o700)
    foo.stat()
    ip("netns", "del", "foo")
    assert owner(bar) == (0, 0, 0o700)
    bar.rmdir()


def test_revocation_holds_for_what_is_open_elsewhere(start: Start) -> None:
    first, second = start(), start(at=Path("/mnt/second"))
    (first / "foo").mkdir()
    os.chown(first / "foo", ALICE, -1)
    script = f"""
import os, sys
os.setgroups([])
os.setresgid({ALICE}, {ALICE}, {ALICE})
os.setresuid({ALICE}, {ALICE}, {ALICE})
fd = os.open("{second.path}/foo", os.O_DIRECTORY)
print("open", flush=True); sys.stdin.readline()
try:
    os.fchmod(fd, 0o777)
except PermissionError:
    print("refused")
"""
    command = ["/usr/bin/python3", "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        os.chown(first / "foo", 0, -1)
        assert process.communicate("\n")[0] == "refused\n"
    assert owner(first / "foo") == (0, 0, 0o755)
    (first / "foo").rmdir()


def test_a_delegation_is_not_lost_for_want_of_descriptors() -> None:
    names, others = NamedNamespaces(bytes(RUN)), NamedNamespaces(bytes(RUN))
    names.create(b"secret", delegated_owner(0, 0, 0o700))
    others.owners.owner_of(b"absent")
    with few_descriptors(0):
        assert error_of(others.owners.owner_of, b"secret") == "EMFILE"
    assert others.owners.owner_of(b"secret") == delegated_owner(0, 0, 0o700)
    names.remove(b"secret")


def test_an_owner_by_option_does_not_own_the_machines_namespace(start: Start) -> None:
    mounted = start("-o", f"uid={ALICE},fmask=000")
    unnamed = mounted / f".netnsfs/unnamed/{os.stat('/proc/self/ns/net').st_ino}"
    assert owner(unnamed) == (0, 0, 0o755)
    assert owner(unnamed / "sysctl/ipv4/ip_forward") == (0, 0, 0o644)
    assert owner(unnamed / "nsid") == (0, 0, 0o644)


def test_revocation_is_not_lost_in_a_rename(
    mnt: Mounted, foo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NamedNamespaces(bytes(RUN))
    renaming = threading.Event()
    attach = names.attach

    def wait(name: bytes, fd: int, given: Owner | None = None) -> Namespace:
        renaming.set()
        time.sleep(0.3)
        return attach(name, fd, given)

    os.chown(foo, ALICE, -1)
    monkeypatch.setattr(names, "attach", wait)
    thread = threading.Thread(target=names.rename, args=(b"foo", b"bar"))
    thread.start()
    renaming.wait(10)
    with suppress(FileNotFoundError):
        os.chown(foo, 0, -1)
        assert owner(mnt / "bar")[0] == 0
    thread.join()
    (mnt / "bar").rmdir()


def test_nobody_makes_the_daemon_hold_many_texts(mnt: Mounted) -> None:
    path = f"{mnt.path}/.netnsfs/metrics"
    opened, again = f"[os.open('{path}', 0) for _ in range(16)][0]", f"os.open('{path}', 0)"
    first, refused, closed, anew = as_user(
        NOBODY, NOBODY, opened, again, "os.close(3)", f"os.close({again})"
    )
    assert (first, refused, closed, anew) == (3, "EMFILE", "", "")
    assert as_user(NOBODY, NOBODY, opened) == [3]
    assert as_user(0, 0, opened, f"os.close({again})") == [3, ""]


def test_metrics_of_a_closed_namespace_are_for_root(mnt: Mounted) -> None:
    os.mkdir(mnt / "secret", 0o700)
    (mnt / "open").mkdir()
    lines = [f"'{name}' in read('{mnt.path}/.netnsfs/metrics')" for name in ("secret", "open")]
    assert as_user(NOBODY, NOBODY, *lines) == [False, True]
    assert as_user(0, 0, *lines) == [True, True]
    clear(mnt)


def test_the_control_directory_obeys_the_masks(start: Start) -> None:
    mounted = start("-o", "fmask=077")
    for name in ("metrics", "last_error"):
        assert owner(mounted / ".netnsfs" / name)[2] == 0o400


def test_processes_stay_hidden_from_who_inherits_a_descriptor(mnt: Mounted, foo: Path) -> None:
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
    try:
        done = subprocess.run(
            ["/usr/bin/python3", "-c", INHERIT, mnt.path], check=True, capture_output=True
        )
    finally:
        linux.umount(b"/proc", linux.MNT_DETACH)
    assert done.stdout.split() == [b"True"]


# The opener is gone when its child, another process, reads on.
INHERIT = """
import os, sys, time
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
fd = os.open(sys.argv[1] + "/.netnsfs/pid", os.O_RDONLY)
opener = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == opener:
    time.sleep(0.01)
print(len(os.listdir(fd)) < 4)
"""


def test_addresses_of_the_kernel_are_for_nobody(foo: Path, spawn: Spawn) -> None:
    holder = spawn("nsenter", f"--net={RUN}/foo", "/usr/bin/python3", "-c", LISTEN,
                   stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    setting = Path("/proc/sys/kernel/kptr_restrict")
    before = setting.read_text()
    try:
        setting.write_text("1")
        read = f"read('{foo}/net/unix')"
        (shown,) = as_user(NOBODY, NOBODY, read)
    finally:
        setting.write_text(before)
    addresses = [line.split(":")[0] for line in str(shown).splitlines()[1:]]
    assert set(addresses) == {"0" * 16}


LISTEN = """
import socket, time
held = socket.socket(socket.AF_UNIX)
held.bind("\\0netnsfs-test")
print("ready", flush=True)
time.sleep(100)
"""


def test_an_old_owner_never_has_it_back(start: Start) -> None:
    first, second = start(), start(at=Path("/mnt/second"))
    script = f"""
import os
os.setgroups([])
os.setresgid({ALICE}, {ALICE}, {ALICE})
os.setresuid({ALICE}, {ALICE}, {ALICE})
print("ready", flush=True)
while True:
    for mode in (0o755, 0o711):
        try:
            os.chmod("{second.path}/foo", mode)
        except OSError:
            pass
"""
    (first / "foo").mkdir()
    with subprocess.Popen(["/usr/bin/python3", "-c", script], stdout=subprocess.PIPE) as loop:
        assert loop.stdout
        loop.stdout.readline()
        try:
            for number in range(100):
                os.chown(first / "foo", ALICE, -1)
                time.sleep(number % 7 / 1000)
                os.chown(first / "foo", NOBODY, -1)
                time.sleep(0.002)
                assert owner(first / "foo")[0] == NOBODY
        finally:
            loop.kill()
    (first / "foo").rmdir()


def test_who_changes_the_group_lets_nobody_else_write(mnt: Mounted, foo: Path) -> None:
    os.chown(foo, ALICE, STAFF)
    foo.chmod(0o775)
    assert owner(foo / "links/lo/up") == (ALICE, STAFF, 0o664)
    change = f"os.chown('{foo}', -1, {ALICE})"
    assert as_user(ALICE, ALICE, change) == [""]
    assert owner(foo) == (ALICE, ALICE, 0o755)
    assert owner(foo / "links/lo/up") == (ALICE, ALICE, 0o644)
    assert as_user(ALICE, ALICE, f"os.chmod('{foo}', 0o775)") == [""]
    assert owner(foo / "sysctl/ipv4/ip_forward") == (ALICE, ALICE, 0o644)


def has_lock(pid: int) -> bool:
    return f"FLOCK  ADVISORY  WRITE {pid} " in Path("/proc/locks").read_text()


def test_nobody_keeps_the_locks_that_changes_need(mnt: Mounted, foo: Path) -> None:
    locks = []
    for directory in (RUN, mnt.path, Path("/run")):
        command = [
            "setpriv",
            f"--reuid={NOBODY}",
            "flock",
            "--no-fork",
            str(directory),
            "sleep",
            "60",
        ]
        locks.append(subprocess.Popen(command))
        wait_for(partial(has_lock, locks[-1].pid))
    try:
        started = time.monotonic()
        os.chown(foo, ALICE, -1)
        foo.chmod(0o711)
        os.mkdir(mnt / "bar", 0o700)
        os.rename(foo, mnt / "baz")
        assert time.monotonic() - started < 2
        assert owner(mnt / "baz") == (ALICE, 0, 0o711)
    finally:
        for lock in locks:
            lock.kill()
            lock.wait()
    clear(mnt)


def test_a_refused_chown_is_explained(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    assert error_of(os.chmod, mnt / "foo", 0o1777) == "EPERM"
    told = (mnt / ".netnsfs/last_error").read_text()
    assert told.startswith("setattr foo: only the bits of mode 0777")
    clear(mnt)


def test_a_second_name_of_a_placeholder_is_no_way_around_it(mnt: Mounted) -> None:
    os.mkdir(mnt / "a", 0o700)
    (mnt / "a").stat()
    unmount_idle(RUN / "a")
    os.link(RUN / "a", RUN / "b")
    (RUN / "a").unlink()
    linux.mount(b"/proc/self/ns/net", bytes(RUN / "b"), linux.MS_BIND)
    assert owner(mnt / "b") == (0, 0, 0o700)
    (mnt / "b").rmdir()


def test_a_delegation_follows_the_directory_from_read_only_and_back(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    subprocess.run(["mount", "-o", "remount,bind,ro", RUN], check=True)
    try:
        assert error_of(os.chmod, mnt / "foo", 0o700) == "EROFS"
    finally:
        subprocess.run(["mount", "-o", "remount,bind,rw", RUN], check=True)
    os.chmod(mnt / "foo", 0o700)
    assert owner(mnt / "foo") == (0, 0, 0o700)
    (mnt / "foo").rmdir()


@pytest.mark.parametrize(
    "value",
    [b"junk", b"", b"1:2:777", b"-1:0:755:200", b"99999999999:0:755:200", b"1:1:7777:222"],
)
def test_what_nobody_can_read_is_closed_until_root_says_whose(
    mnt: Mounted, value: bytes
) -> None:
    (mnt / "foo").mkdir()
    unmount_idle(RUN / "foo")
    os.setxattr(RUN / "foo", "trusted.netnsfs", value)
    linux.mount(b"/proc/self/ns/net", bytes(RUN / "foo"), linux.MS_BIND)
    assert owner(mnt / "foo") == (0, 0, 0)
    assert as_user(NOBODY, NOBODY, f"len(read('{mnt.path}/.netnsfs/metrics')) > 0") == [True]
    os.chmod(mnt / "foo", 0o755)
    assert owner(mnt / "foo") == (0, 0, 0o755)
    (mnt / "foo").rmdir()


def test_a_former_owner_changes_nothing_whatever_the_kernel_believes(
    mnt: Mounted, foo: Path, spawn: Spawn
) -> None:
    """The kernel may let a caller in by attributes that it asked for before a chown(2)."""
    root = Root(NamedNamespaces(bytes(RUN)), Stats(), Config(bytes(MNT)))
    drop = ("--reuid=4711", "--regid=4711", "--clear-groups", "--bounding-set=-all")
    asking = spawn("setpriv", *drop, "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{asking.pid}").st_uid == ALICE)
    alice = _Caller(asking.pid, ALICE)

    def find(path: str) -> Node:
        node: Node = root
        for name in path.encode().split(b"/"):
            assert isinstance(node, Directory)
            node = node.lookup(name, alice)
        return node

    def outcomes() -> set[str]:
        def write(file: Node) -> None:
            assert isinstance(file, File)
            file.open(os.O_WRONLY, alice).close()

        files = ("nsid", "sysctl/ipv4/ip_forward", "links/lo/up", "links/lo/mtu")
        found = {error_of(write, find(f"foo/{file}")) for file in files}
        links = find("foo/links")
        assert isinstance(links, Directory)
        found.add(error_of(links.rmdir, b"none", alice))
        found.add(error_of(links.rename, b"none", links, b"x", alice))
        return found

    os.chown(foo, ALICE, ALICE)
    assert outcomes() == {"", "ENOENT"}
    os.chown(foo, STAFF, STAFF)
    assert outcomes() == {"EACCES"}
    foo.chmod(0o777)
    assert outcomes() == {"", "ENOENT"}
    os.chown(foo, 0, STAFF)
    foo.chmod(0o775)
    assert outcomes() == {"EACCES"}
