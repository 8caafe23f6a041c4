"""What the service manager is told, and the units."""

import errno
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import MNT, RUN, Mounted, Start, type_at, wait_for

from netnsfs import cli

UNITS = Path(cli.__file__).parent / "data"
FILES = ("netnsfs.service", "netns@.service", "mnt-netnsfs.mount")
PROGRAM = [sys.executable, "-m", "netnsfs", "-f"]

SERVICE = "netnsfs-test.service"

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket of a service manager, and its address in the environment."""
    abstract = f"@netnsfs-test-manager-{os.getpid()}"
    address = abstract if request.param == "abstract" else f"{tmp_path}/manager"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0"))
        listening.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield listening


def test_the_manager_is_told(manager: socket.socket, spawn: Spawn) -> None:
    daemon = spawn(*PROGRAM)
    assert manager.recv(100) == b"READY=1"
    assert os.listdir(MNT / ".netnsfs")
    subprocess.run(["umount", MNT], check=True)
    assert manager.recv(100) == b"STOPPING=1"
    assert daemon.wait(20) == 0


def test_no_child_may_speak_for_the_daemon(manager: socket.socket, spawn: Spawn) -> None:
    script = (
        "import subprocess; from netnsfs import cli, daemon;"
        "daemon.run(cli.parse_arguments(['-f']));"
        "subprocess.run(['env'])"
    )
    daemon = spawn(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert manager.recv(100) == b"READY=1"
    subprocess.run(["umount", MNT], check=True)
    assert b"NOTIFY_SOCKET" not in daemon.communicate(timeout=20)[0]


def test_a_manager_that_does_not_listen_is_not_waited_for(
    manager: socket.socket, start: Start
) -> None:
    _fill(manager)
    mounted = start()
    assert type_at(MNT) == b"fuse.netnsfs"
    message = f"cannot tell READY=1 to the service manager: {os.strerror(errno.EAGAIN)}"
    wait_for(lambda: message in mounted.messages())


def _fill(manager: socket.socket) -> None:
    # Each from a sender of its own, whose buffer is not what gets full.
    with suppress(BlockingIOError):
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as noise:
                noise.setblocking(False)
                noise.sendto(b"noise", manager.getsockname())


def test_what_the_unit_leaves_open_is_explained() -> None:
    unit = UNITS / "netnsfs.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--json=short", unit],
        check=True,
        capture_output=True,
    )
    told = re.findall(r"\w+=", unit.read_text())
    for check in json.loads(done.stdout):
        for directive in re.findall(r"\w+=", check["name"]):
            assert check["set"] is not False or directive in told, check


@pytest.mark.parametrize("unit", FILES)
def test_the_units_are_valid(unit: str, tmp_path: Path) -> None:
    for name in FILES:
        # It may not be installed where systemd looks for programs.
        text = (UNITS / name).read_text().replace("=netnsfs ", "=true ")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def of_template(directive: str, instance: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the template's, as the service manager does."""
    text = (UNITS / "netns@.service").read_text().replace("\\\n", "")
    command = next(
        line.removeprefix(f"{directive}=:")
        for line in text.splitlines()
        if line.startswith(directive)
    )
    # The manager takes a line apart first and then replaces what begins with a percent sign.
    words = shlex.split(command)
    words = [word.replace("%%", "%").replace("%I", instance) for word in words]
    at = MNT / ".netnsfs"
    return subprocess.run(words, cwd=at, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("unescaped", "name"),
    [("blue", "blue"), ("foo/bar", "foo-bar"), ("a $b'\"\\", "a $b'\"\\"), ("/n", "-n")],
)
def test_the_template_makes_and_removes(mnt: Mounted, unescaped: str, name: str) -> None:
    for _ in range(2):
        assert of_template("ExecStart", unescaped).returncode == 0
        assert os.listdir(mnt.path) == [name]
    for _ in range(2):
        assert of_template("ExecStop", unescaped).returncode == 0
        assert os.listdir(mnt.path) == []


def test_the_template_takes_no_stale_name_for_a_namespace(mnt: Mounted) -> None:
    (RUN / "blue").touch()
    refused = of_template("ExecStart", "blue")
    assert refused.returncode == 1
    assert "File exists" in refused.stderr
    assert of_template("ExecStop", "blue").returncode == 0
    assert of_template("ExecStart", ".netnsfs").returncode == 1


def test_the_capabilities_of_the_unit_are_enough(start: Start, spawn: Spawn) -> None:
    text = (UNITS / "netnsfs.service").read_text()
    capabilities = [name.lower() for name in re.findall(r"\bCAP_(\w+)", text)]
    bounds = ",+".join(["-all", *capabilities])
    restricted = ["setpriv", "--no-new-privs", f"--bounding-set={bounds}", *PROGRAM, str(MNT)]
    mnt = start(program=restricted)
    script = Path(__file__).parent / "by_files.sh"
    subprocess.run(["sh", script, MNT], check=True, capture_output=True, timeout=60)

    (mnt / "foo").mkdir()
    other = ["setpriv", "--reuid=65534", "--clear-groups", "sleep", "60"]
    inside = spawn("nsenter", f"--net={MNT}/foo/ns", *other)
    wait_for(lambda: f"task {inside.pid}\n" in (mnt / "foo/holders").read_text())
    (mnt / "foo").rmdir()


def machine(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in the machine's mount namespace, where systemd listens."""
    outside = ["nsenter", "--mount=/proc/1/ns/mnt", *command]
    return subprocess.run(outside, check=check, capture_output=True, text=True, timeout=100)


AT = "/run/netnsfs-test"


@pytest.fixture
def service() -> Iterator[str]:
    """The units under other names, for a mount point and names of their own."""
    if Path("/proc/1/comm").read_text() != "systemd\n":
        pytest.skip("systemd is not running")
    machine("mkdir", "-p", f"{AT}/names")
    program = f"{sys.executable} -m netnsfs -o rundir={AT}/names"
    unit = (UNITS / "netnsfs.service").read_text().replace("=netnsfs -f", f"={program} -f")
    template = (UNITS / "netns@.service").read_text()
    in_it = f"[Service]\nNetworkNamespacePath={AT}/names/blue\nExecStart=sleep 1000\n"
    units = {
        SERVICE: unit,
        "netnsfs-test@.service": template.replace("netnsfs.service", SERVICE),
        "netnsfs-test-user.service": "[Unit]\nBindsTo=netnsfs-test@blue.service\n"
        "After=netnsfs-test@blue.service\n" + in_it,
    }
    for name, text in units.items():
        install = ["nsenter", "--mount=/proc/1/ns/mnt", "tee", f"/run/systemd/system/{name}"]
        moved = text.replace("/mnt/netnsfs", f"{AT}/mnt")
        subprocess.run(install, input=moved.encode(), check=True, stdout=subprocess.DEVNULL)
    machine("systemctl", "daemon-reload")
    yield SERVICE
    machine("systemctl", "stop", "netnsfs-test@blue.service", SERVICE)
    machine("systemctl", "reset-failed", "netnsfs-test*")
    machine("sh", "-c", f"umount -l {AT}/names; rm -r {AT} /run/systemd/system/netnsfs-test*")
    machine("systemctl", "daemon-reload")


def machine_mounts() -> str:
    return Path("/proc/1/mounts").read_text()


def test_the_service_starts_and_stops(service: str) -> None:
    machine("systemctl", "start", service)
    machine("mkdir", "/run/netnsfs-test/mnt/foo")
    assert "/run/netnsfs-test/names/foo nsfs" in machine_mounts()
    machine("rmdir", "/run/netnsfs-test/mnt/foo")
    machine("systemctl", "stop", service)
    assert "/run/netnsfs-test/mnt" not in machine_mounts()


def test_a_killed_service_comes_back(service: str) -> None:
    machine("systemctl", "start", service)
    machine("systemctl", "kill", "--signal=KILL", service)
    inside = ("ls", "/run/netnsfs-test/mnt/.netnsfs")
    wait_for(lambda: not machine(*inside, check=False).returncode, 30)
    assert machine_mounts().count("/run/netnsfs-test/mnt") == 1


def test_a_stop_before_the_restart_leaves_no_dead_mount(service: str) -> None:
    machine("systemctl", "start", service)
    # Not by systemctl(1): that of systemd 257 kills what ExecStopPost starts as well.
    machine("kill", "-KILL", str(main_pid(service)))
    state = ("systemctl", "show", "--value", "--property=SubState", service)
    wait_for(lambda: machine(*state).stdout != "running\n")
    machine("systemctl", "stop", service)
    assert "/run/netnsfs-test/mnt" not in machine_mounts()


def main_pid(unit: str) -> int:
    return int(machine("systemctl", "show", "--value", "--property=MainPID", unit).stdout)


def test_a_unit_makes_a_namespace_for_another(service: str) -> None:
    # It starts all that it needs.
    machine("systemctl", "start", "netnsfs-test-user.service")
    inside = os.stat(f"/proc/{main_pid('netnsfs-test-user.service')}/ns/net").st_ino
    assert machine("cat", f"{AT}/mnt/blue/inode").stdout == f"{inside}\n"
    machine("systemctl", "stop", "netnsfs-test@blue.service")
    assert machine("ls", f"{AT}/mnt").stdout == ""
    assert main_pid("netnsfs-test-user.service") == 0


def test_what_ends_the_daemon_leaves_the_units_of_namespaces(service: str) -> None:
    machine("systemctl", "start", "netnsfs-test@blue.service")
    machine("systemctl", "restart", service)
    assert machine("ls", f"{AT}/mnt").stdout == "blue\n"
    machine("systemctl", "is-active", "netnsfs-test@blue.service")


def test_a_mount_that_is_there_is_enough(service: str) -> None:
    machine("mkdir", f"{AT}/mnt")
    machine(sys.executable, "-m", "netnsfs", "-o", f"rundir={AT}/names", f"{AT}/mnt")
    machine("systemctl", "start", "netnsfs-test@blue.service")
    assert machine("ls", f"{AT}/mnt").stdout == "blue\n"
    assert machine("systemctl", "is-active", service, check=False).stdout == "inactive\n"
    machine("systemctl", "stop", "netnsfs-test@blue.service")
    machine("umount", f"{AT}/mnt")
