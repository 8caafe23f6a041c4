"""A namespace for each test, with servers in it: pytest, in one process or with -n.

    netnsfs && pytest test_server.py              # as root
    netnsfs --rootless pytest test_server.py      # without

The name of a namespace is made up by mkdtemp(3), so that tests beside each other have others.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MOUNT_POINT = Path("/mnt/netnsfs")
Serve = Callable[..., None]


@pytest.fixture
def namespace() -> Iterator[Path]:
    """A new namespace. Whatever runs inside at the end of the test is killed."""
    subprocess.run(["netnsfs", "--check", MOUNT_POINT], check=True)
    path = Path(tempfile.mkdtemp(prefix="test-", dir=MOUNT_POINT))
    (path / "links/lo/up").write_text("1")
    yield path
    (path / "kill").write_text("KILL")
    path.rmdir()


@pytest.fixture
def serve(namespace: Path, tmp_path: Path) -> Iterator[Serve]:
    """Start a server in the namespace, and wait until it listens. Its log is the test's."""
    servers: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "log").open("w+") as log:

        def start(port: int, *command: str) -> None:
            inside = ["nsenter", f"--net={namespace}/ns", *command]
            servers.append(subprocess.Popen(inside, stdout=log, stderr=log))
            listens = ["ss", "-N", namespace.name, "-Hlnt", f"sport = {port}"]
            while not subprocess.check_output(listens):
                assert servers[-1].poll() is None, "the server has ended"
                time.sleep(0.05)

        yield start
        for server in servers:
            server.kill()
            server.wait()
        log.seek(0)
        print(log.read())


def test_server(namespace: Path, serve: Serve) -> None:
    serve(8000, "python3", "-u", "-m", "http.server", "8000")
    get = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8000').status)"
    inside = ["nsenter", f"--net={namespace}/ns", "python3", "-c", get]
    assert subprocess.check_output(inside) == b"200\n"
