"""Namespace files."""

import os
from pathlib import Path

import pytest
from conftest import error_of

from netnsfs import linux
from netnsfs.jobs import on_own_thread, restoring_namespace
from netnsfs.netns import nsfs


def make() -> tuple[int, nsfs.Namespace]:
    """A new namespace."""
    with restoring_namespace():
        linux.unshare(linux.CLONE_NEWNET)
        return nsfs.open_own_namespace()


def test_what_is_told_of_a_namespace_is_what_its_file_shows() -> None:
    fd, made = on_own_thread(make)
    with linux.closing_fd(fd):
        shown = os.fstat(fd)
        assert made.inode == shown.st_ino
        times = made.atime_ns, made.mtime_ns, made.ctime_ns
        assert times == (shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns)
        link = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        assert link == b"net:[%d]" % made.inode
        assert nsfs.number_in(link) == made.inode
        assert made == nsfs.namespace_of(fd)
        assert linux.statx(b"", fd).dev == nsfs.nsfs_device()


def test_the_id_is_the_same_by_the_ioctl_and_by_a_visit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd, made = on_own_thread(make)
    with linux.closing_fd(fd):
        monkeypatch.setattr(linux, "namespace_id", lambda fd: None)
        assert nsfs.namespace_of(fd) == made


@pytest.mark.parametrize(
    "path", ["/proc/self/ns/uts", "/proc/self/status", "/run", "/dev/null"]
)
def test_what_is_no_network_namespace(path: str) -> None:
    with linux.closing_fd(os.open(path, os.O_RDONLY)) as fd:
        assert error_of(nsfs.namespace_of, fd) == "EINVAL"


def test_only_a_namespaces_file_is_opened_anew(tmp_path: Path) -> None:
    with (
        linux.closing_fd(os.open("/proc/self/ns/net", os.O_PATH)) as found,
        linux.closing_fd(nsfs.reopen(found)) as fd,
    ):
        assert os.path.samestat(os.fstat(fd), os.fstat(found))
        assert linux.is_net_namespace(fd)
    # To open it would not end before somebody writes.
    os.mkfifo(tmp_path / "fifo")
    with linux.closing_fd(os.open(tmp_path / "fifo", os.O_PATH)) as found:
        assert error_of(nsfs.reopen, found) == "EINVAL"
