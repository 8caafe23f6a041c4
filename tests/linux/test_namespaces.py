"""Namespaces: entered, and told apart. On a thread that ends, for none finds its way back."""

import os
import subprocess
import sys

import pytest
from conftest import CLONE_NEWNS, apart, error_of

from netnsfs import linux

OWN = "/proc/thread-self/ns/net"


def new_namespace() -> int:
    linux.unshare(linux.CLONE_NEWNET)
    return os.open(OWN, os.O_RDONLY)


def test_only_the_calling_thread_moves() -> None:
    here = os.stat(OWN)
    with linux.closing_fd(apart(new_namespace)) as there:
        assert not os.path.samestat(os.fstat(there), here)
        assert os.path.samestat(os.stat(OWN), here)

        def enter() -> bool:
            linux.setns(there, linux.CLONE_NEWNET)
            return os.path.samestat(os.stat(OWN), os.fstat(there))

        assert apart(enter)
        assert os.path.samestat(os.stat(OWN), here)


def test_what_is_of_another_kind_is_not_entered() -> None:
    with linux.closing_fd(os.open("/proc/self/ns/uts", os.O_RDONLY)) as uts:
        assert error_of(linux.setns, uts, linux.CLONE_NEWNET) == "EINVAL"
        assert not linux.is_net_namespace(uts)
    with linux.closing_fd(os.open(OWN, os.O_RDONLY)) as net:
        assert linux.is_net_namespace(net)
    with linux.closing_fd(os.open("/proc/self/status", os.O_RDONLY)) as file:
        assert error_of(linux.is_net_namespace, file) == "ENOTTY"
        assert error_of(linux.setns, file, 0) == "EINVAL"


def test_a_refusal_is_told() -> None:
    assert apart(lambda: error_of(linux.unshare, 1)) == "EINVAL"
    script = "from netnsfs import linux; linux.unshare(linux.CLONE_NEWNET)"
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", script]
    done = subprocess.run(command, check=False, capture_output=True)
    assert b"PermissionError" in done.stderr


def test_ids_are_unique_and_the_cookies() -> None:
    def look() -> tuple[int | None, int, int]:
        with linux.closing_fd(new_namespace()) as fd:
            return linux.namespace_id(fd), linux.netns_cookie(), os.fstat(fd).st_ino

    found = [apart(look) for _ in range(5)]
    assert len({cookie for _, cookie, _ in found}) == 5
    assert {number for number, _, _ in found} in ({None}, {cookie for _, cookie, _ in found})


def test_an_id_is_had_of_no_other_file() -> None:
    with linux.closing_fd(os.open("/proc/self/status", os.O_RDONLY)) as file:
        assert linux.namespace_id(file) is None


@pytest.mark.machine
def test_the_user_namespace_that_the_machine_started_with() -> None:
    script = "from netnsfs import linux; print(linux.in_initial_user_namespace())"
    for prefix, expected in (([], b"True\n"), (["unshare", "-Ur"], b"False\n")):
        shown = subprocess.check_output([*prefix, sys.executable, "-c", script])
        assert shown == expected


def test_a_mount_namespace_is_for_the_thread_alone() -> None:
    def leave() -> str:
        linux.unshare(CLONE_NEWNS)
        return os.readlink("/proc/thread-self/ns/mnt")

    before = os.readlink("/proc/thread-self/ns/mnt")
    assert apart(leave) != before == os.readlink("/proc/thread-self/ns/mnt")


def test_to_whom_a_namespace_belongs() -> None:
    with linux.closing_fd(os.open(OWN, os.O_RDONLY)) as own:
        assert linux.is_owned_here(own)
    script = (
        "import os, sys; sys.path[:0] = sys.argv[1:]; from netnsfs import linux;"
        "outer = os.open('/proc/self/ns/net', os.O_RDONLY); linux.unshare(linux.CLONE_NEWNET);"
        "inner = os.open('/proc/self/ns/net', os.O_RDONLY);"
        "print(linux.is_owned_here(outer), linux.is_owned_here(inner))"
    )
    command = ["unshare", "-Ur", sys.executable, "-c", script, *sys.path]
    assert subprocess.check_output(command) == b"False True\n"
