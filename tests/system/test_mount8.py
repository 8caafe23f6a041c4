"""mount(8) and fstab(5), which start the program through mount.fuse3."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MNT, error_of, fuse_mounts, ip, python_in, type_at, unmount

FSTAB = Path("/run/fstab")
FSTAB_LINE = "none  /mnt/netnsfs  fuse.netnsfs  defaults,nofail  0  0"
PROGRAM = """#!/bin/sh
export PYTHONPATH={checkout}
exec {python} -m netnsfs "$@" 2>>/run/log
"""
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def bind(source: Path, target: str) -> None:
    subprocess.run(["mount", "--bind", source, target], check=True)


@pytest.fixture(autouse=True)
def installed(checkout: Path) -> Iterator[None]:
    """The program where mount(8), which sets PATH itself, finds it; our /etc/fstab."""
    bin_dir = Path("/run/bin")
    bin_dir.mkdir()
    program = bin_dir / "netnsfs"
    program.write_text(PROGRAM.format(checkout=checkout, python=python_in(checkout)))
    program.chmod(0o755)
    FSTAB.write_text(FSTAB_LINE + "\n")
    Path("/run/log").write_text("")
    Path("/run/log").chmod(0o666)
    bind(bin_dir, "/usr/local/sbin")
    bind(FSTAB, "/etc/fstab")
    yield
    subprocess.run(["umount", "--lazy", "/usr/local/sbin", "/etc/fstab"], check=True)
    program.unlink()
    bin_dir.rmdir()


def mount(
    *arguments: str | Path, as_user: list[str] | None = None, cwd: str | Path = "/"
) -> tuple[int, str]:
    """Run mount(8): its exit status and what netnsfs said, but for the one warning."""
    before = Path("/run/log").stat().st_size
    command = [*(as_user or []), "mount", *map(str, arguments)]
    status = subprocess.run(command, check=False, timeout=20, cwd=cwd).returncode
    said = Path("/run/log").read_text()[before:].splitlines()
    return status, "\n".join(line for line in said if "machine's mount namespace" not in line)


def netnsfs(options: str = "rw") -> tuple[int, str]:
    return mount("-t", "fuse.netnsfs", "netnsfs", MNT, "-o", options)


def findmnt(*columns: str) -> list[str]:
    command = ["findmnt", "-n", "-r", "-o", ",".join(columns), str(MNT)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    return found.stdout.split()


def test_mount_and_umount() -> None:
    assert netnsfs() == (0, "")
    os.mkdir(MNT / "foo")
    assert ip("netns", "list").stdout == b"foo\n"
    os.rmdir(MNT / "foo")
    unmount()
    assert type_at(MNT) == b""


def test_what_findmnt_shows() -> None:
    assert netnsfs() == (0, "")
    source, fs_type, options = findmnt("SOURCE", "FSTYPE", "OPTIONS")
    assert (source, fs_type) == ("netnsfs", "fuse.netnsfs")
    assert set(options.split(",")) == {
        *("rw", "nosuid", "nodev", "noexec", "noatime", "user_id=0", "group_id=0"),
        *("default_permissions", "allow_other"),
    }
    unmount()


def test_the_type_before_the_source() -> None:
    # As older fstab lines of FUSE file systems have it.
    assert mount("-t", "fuse", "netnsfs#none", MNT) == (0, "")
    assert findmnt("SOURCE", "FSTYPE") == ["none", "fuse.netnsfs"]
    unmount()


def test_fstab() -> None:
    verified = subprocess.run(["findmnt", "--verify"], check=False, capture_output=True)
    assert verified.returncode == 0, verified.stdout
    assert mount(MNT) == (0, "")
    unmount()


def test_mount_a_twice_mounts_once() -> None:
    for _ in range(2):
        assert mount("-a") == (0, "")
        assert fuse_mounts() == [bytes(MNT)]
    unmount()


@pytest.fixture
def confusing(tmp_path: Path) -> Path:
    """A directory where mount(8) takes any usual source for a relative path."""
    for source in ("netnsfs", "none"):
        (tmp_path / source).mkdir()
    return tmp_path


@pytest.mark.parametrize("source", ["netnsfs", "none"])
def test_mount_a_from_any_directory(confusing: Path, source: str) -> None:
    FSTAB.write_text(f"{source} /mnt/netnsfs fuse.netnsfs defaults 0 0\n")
    for cwd in (confusing, "/", confusing):
        assert mount("-a", cwd=cwd) == (0, "")
        assert fuse_mounts() == [bytes(MNT)]
    # findmnt(8) writes a blank in this way.
    assert findmnt("SOURCE") == [str(confusing / source).replace(" ", "\\x20")]
    unmount()


def test_the_same_again_is_no_failure() -> None:
    assert netnsfs("umask=077,keep_busy") == (0, "")
    for options in ("keep_busy,umask=077", "rw,noatime,umask=077,keep_busy"):
        assert netnsfs(options) == (0, "")
        assert fuse_mounts() == [bytes(MNT)]
    unmount()


ALREADY = "netnsfs: a netnsfs is already mounted at /mnt/netnsfs"


@pytest.mark.parametrize("options", ["rw", "keep_busy,noviews", "ro,keep_busy"])
def test_something_else_at_the_same_place_is_refused(options: str) -> None:
    assert netnsfs("keep_busy") == (0, "")
    assert netnsfs(options) == (32, ALREADY)
    assert fuse_mounts() == [bytes(MNT)]
    unmount()


def test_a_second_start_from_a_shell_is_refused() -> None:
    assert netnsfs() == (0, "")
    again = subprocess.run(["/usr/local/sbin/netnsfs", MNT], check=False)
    assert (again.returncode, Path("/run/log").read_text().splitlines()[-1]) == (32, ALREADY)
    assert fuse_mounts() == [bytes(MNT)]
    unmount()


@pytest.mark.parametrize("option", ["remount", "remount,ro"])
def test_remount_is_refused_and_changes_nothing(option: str) -> None:
    assert netnsfs() == (0, "")
    before = findmnt("OPTIONS")
    refused = (1, "netnsfs: cannot remount: unmount it and mount it anew")
    assert mount("-o", option, MNT) == refused
    assert findmnt("OPTIONS") == before
    unmount()


@pytest.mark.parametrize(
    "options",
    [
        "rw,nosuid,nodev,noexec,noauto,_netdev,nofail",
        "defaults,auto,suid,dev,exec,x-systemd.automount,x-of.mine=1,comment=mine",
        "user",
        "users,sync,dirsync,noatime",
        "owner,group,async,relatime,lazytime,nosymfollow",
    ],
)
def test_generic_options_are_taken(options: str) -> None:
    assert netnsfs(options) == (0, "")
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(findmnt("OPTIONS")[0].split(","))
    unmount()


@pytest.mark.parametrize("option", ["nonsense", "nonsense=1"])
def test_an_unknown_option_is_named(option: str) -> None:
    refused = (1, f"netnsfs: unknown option: {option} (see netnsfs --help)")
    assert netnsfs(f"nofail,{option},noatime") == refused
    assert type_at(MNT) == b""


@pytest.mark.machine
def test_user_does_not_make_root() -> None:
    FSTAB.write_text("netnsfs /mnt/netnsfs fuse.netnsfs user,noauto 0 0\n")
    refused = "netnsfs: only root can mount netnsfs: use sudo, or netnsfs --rootless"
    assert mount(MNT, as_user=NOBODY) == (1, refused)
    assert mount(MNT) == (0, "")
    assert subprocess.run([*NOBODY, "umount", MNT], check=False).returncode == 32
    unmount()


def test_a_directory_of_names_with_a_space() -> None:
    assert netnsfs("rundir=/run/my names") == (0, "")
    os.mkdir(MNT / "foo")
    assert os.listdir("/run/my names") == ["foo"]
    os.rmdir(MNT / "foo")
    unmount()
    subprocess.run(["umount", "/run/my names"], check=True)
    os.rmdir("/run/my names")


FOO = MNT / "foo"
CHANGES: dict[str, Callable[[], object]] = {
    "mkdir": lambda: os.mkdir(MNT / "x"),
    "mkdir inside": lambda: os.mkdir(FOO / "x"),
    "rmdir": lambda: os.rmdir(FOO),
    "rename": lambda: os.rename(FOO, MNT / "x"),
    "symlink": lambda: os.symlink("/proc/self/ns/net", MNT / "x"),
    "link": lambda: os.link(FOO / "inode", MNT / "x"),
    "mknod": lambda: os.mknod(MNT / "x"),
    "create": lambda: os.open(MNT / "x", os.O_CREAT | os.O_WRONLY),
    "unlink": lambda: os.unlink(FOO / "inode"),
    "open": lambda: os.open(FOO / "nsid", os.O_WRONLY),
    "open a sysctl": lambda: os.open(FOO / "sysctl/ipv4/ip_forward", os.O_RDWR),
    "truncate": lambda: os.truncate(FOO / "nsid", 0),
    "chmod": lambda: os.chmod(FOO, 0o700),
    "chown": lambda: os.chown(FOO, 1, 1),
    "utime": lambda: os.utime(FOO),
    "setxattr": lambda: os.setxattr(FOO, "user.x", b"1"),
}


def test_read_only() -> None:
    ip("netns", "add", "foo")
    assert netnsfs("ro") == (0, "")
    assert findmnt("OPTIONS")[0].startswith("ro,")
    refusals = {name: error_of(change) for name, change in CHANGES.items()}
    assert refusals == dict.fromkeys(CHANGES, "EROFS")
    assert (FOO / "nsid").read_text() == "unassigned\n"
    unmount()
    ip("netns", "del", "foo")
