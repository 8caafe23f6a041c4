"""What an owner may write, beside what the kernel lets the root of a user namespace write that
owns the network namespace: file by file.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mounted, error_of, ip
from users import as_user

from netnsfs.tree.delegation import check_sysctl_value

ALICE = 4711

# What the kernel may let an owner write, and root keeps: it takes memory or processors of the
# machine, suspends a device, or makes an event for the machine's udev.
KEPT = ("queues", "power", "threaded", "uevent")

# A bridge with a port, another veth, a tap, and what is there from the start.
MAKE = (
    "ip link add br0 type bridge; ip link add v0 type veth peer name v1;"
    "ip link set v1 master br0; ip tuntap add t0 mode tap"
)

# Which of the files that are writable to root may be written: what is read there, if anything.
TRY_ALL = """
import errno, json, os, sys
found = {}
def refused_at(path):
    try:
        fd = os.open(path, os.O_WRONLY)
        if sys.argv[2] == "write":
            try:
                content = open(path, "rb").read()
            except OSError:
                content = b""
            os.write(fd, content or b"0")
        os.close(fd)
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES)
for name in os.listdir(sys.argv[1]):
    for top, _, names in os.walk(os.path.join(sys.argv[1], name, "")):
        for path in (os.path.join(top, name) for name in names):
            if not os.path.islink(path) and os.lstat(path).st_mode & 0o200:
                found[os.path.relpath(path, sys.argv[1])] = not refused_at(path)
print(json.dumps(found))
"""
AS_ALICE = ("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups")


def files_to_write(path: Path | str, how: str, *prefix: str) -> dict[str, bool]:
    command = [*prefix, "/usr/bin/python3", "-c", TRY_ALL, str(path), how]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    found: dict[str, bool] = json.loads(done.stdout)
    return found


@pytest.fixture
def mine(mnt: Mounted) -> Iterator[Path]:
    """A namespace of Alice's with these interfaces."""
    foo = mnt / "foo"
    foo.mkdir()
    ip("netns", "exec", "foo", "sh", "-c", MAKE)
    os.chown(foo, ALICE, ALICE)
    yield foo
    foo.rmdir()


def test_an_owner_writes_of_sysfs_what_the_kernel_gives_to_root_inside(mine: Path) -> None:
    inside = ("unshare", "-Urnm", "sh", "-c", f'{MAKE}; mount -t sysfs none /sys; "$@"', "sh")
    kernels = files_to_write("/sys/class/net", "write", *inside)
    ours = files_to_write(mine / "links", "write", *AS_ALICE)
    of_sysfs = {
        path for path in ours if path.split("/")[1] not in ("up", "address", "addresses")
    }
    assert of_sysfs == kernels.keys()
    for path in of_sysfs:
        kept = path.split("/")[1] in KEPT
        assert ours[path] == (kernels[path] and not kept), path
    for given in ("v0/mtu", "br0/bridge/priority", "v1/brport/priority"):
        assert ours[given]
    for memory in ("queues/rx-0/rps_flow_cnt", "queues/rx-0/rps_cpus", "tx_queue_len"):
        assert not ours[f"v0/{memory}"]


def test_an_owner_writes_the_sysctls_that_the_kernel_gives_to_root_inside(mine: Path) -> None:
    inside = ("unshare", "-Urn", "sh", "-c", f'{MAKE}; "$@"', "sh")
    kernels = files_to_write("/proc/sys/net", "open", *inside)
    ours = files_to_write(mine / "sysctl", "open", *AS_ALICE)
    assert all(ours[path] for path, given in kernels.items() if given)
    # Older kernels give less.
    if "unix/max_dgram_qlen" in kernels and "core/optmem_max" in kernels:
        assert {path for path in ours if ours[path]} == {
            path for path in kernels if kernels[path]
        }


def test_what_an_owner_may_not_write_is_roots(mine: Path) -> None:
    for path in ("nsid", "links/v0/tx_queue_len", "links/v0/queues/rx-0/rps_cpus"):
        found = (mine / path).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 0, 0o644)
    (mine / "links/v0/tx_queue_len").write_text("10")


def test_an_owner_assigns_no_number_in_the_mounting_namespace(mine: Path) -> None:
    """That takes CAP_NET_ADMIN there, as `ip netns set` does."""
    results = as_user(ALICE, ALICE, f"write('{mine}/nsid', 'auto')", f"read('{mine}/nsid')")
    assert results == ["EACCES", "unassigned\n"]


def test_an_owner_has_no_module_loaded(mine: Path) -> None:
    path = b"/proc/sys/net/ipv4/tcp_congestion_control"
    check_sysctl_value(path, b"reno\n", 0)
    assert error_of(check_sysctl_value, path, b"absent", 0) == "ENOENT"
    # The kernel would put it behind what is there.
    assert error_of(check_sysctl_value, path, b"reno", 5) == "ENOENT"
    file = mine / "sysctl/ipv4/tcp_congestion_control"
    lines = [f"write('{file}', '{name}')" for name in ("reno", "absent")]
    assert as_user(ALICE, ALICE, *lines) == ["", "ENOENT"]
    assert file.read_text() == "reno\n"
