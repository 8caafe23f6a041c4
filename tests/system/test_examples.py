"""What scripts/examples shows does what it says, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, MNT, RUN, Mounted, wait_for

EXAMPLES = CHECKOUT / "scripts/examples"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": PATH, "PYTHONDONTWRITEBYTECODE": "1", **more},
    )


@pytest.fixture
def xdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pytest-xdist is."""
    path = tmp_path_factory.mktemp("xdist")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(path)]
    done = subprocess.run([*pip, "pytest-xdist", "execnet"], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("pytest-xdist cannot be installed")
    return path


def test_the_fixture_of_pytest(mnt: Mounted) -> None:
    done = run(*PYTEST, "-rP", EXAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert '"GET / HTTP/1.1" 200' in done.stdout
    assert os.listdir(mnt.path) == []


def test_the_fixture_in_several_processes(
    mnt: Mounted, xdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tests = tmp_path_factory.mktemp("tests")
    for number in range(8):
        (tests / f"test_{number}.py").symlink_to(EXAMPLES / "test_server.py")
    done = run(*PYTEST, "-n", "4", tests, PYTHONPATH=str(xdist))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
    assert os.listdir(mnt.path) == []


def test_the_fixture_without_root() -> None:
    done = run("netnsfs", "--rootless", *PYTEST, EXAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_fixture_without_a_mount() -> None:
    done = run(*PYTEST, EXAMPLES)
    assert done.returncode == 1
    assert f"no netnsfs is mounted at {MNT}" in done.stdout + done.stderr
    assert os.listdir(MNT) == []


def test_the_script(mnt: Mounted) -> None:
    done = run(EXAMPLES / "server.sh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200\n")
    assert '"GET / HTTP/1.1" 200' in done.stdout
    assert os.listdir(mnt.path) == []


def test_the_script_without_a_mount() -> None:
    done = run(EXAMPLES / "server.sh")
    assert (done.returncode, done.stdout) == (32, "")
    assert os.listdir(MNT) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_script_is_ended(mnt: Mounted, number: signal.Signals) -> None:
    program = [EXAMPLES / "server.sh"]
    script = subprocess.Popen(
        program, env={**os.environ, "PATH": PATH}, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: any(RUN.iterdir()))
    script.send_signal(number)
    assert script.wait(60) != 0
    assert os.listdir(mnt.path) == []


def test_the_job(xdist: Path, tmp_path: Path) -> None:
    """Each step of it but the first, which installs."""
    (tmp_path / "bin").mkdir()
    for name, program in (("sudo", 'exec "$@"'), ("python3", f'exec {sys.executable} "$@"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "netnsfs").symlink_to(CHECKOUT)
    for step in steps()[1:]:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", step],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{tmp_path}/bin:{PATH}", "PYTHONPATH": str(xdist)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "ok\ntotal 0\n"


def steps() -> list[str]:
    """What the job runs. The YAML is read by the distribution's Python, which has it."""
    read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    with (EXAMPLES / "ci.yml").open() as job:
        found = subprocess.check_output(["/usr/bin/python3", "-c", read], stdin=job)
    [told] = json.loads(found)["jobs"].values()
    return [step["run"] for step in told["steps"] if "run" in step]
