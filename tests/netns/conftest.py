"""Network namespaces without FUSE, with ip-netns(8) and lsns(8) as the other side.

Without a file of their own name:
- `scanner`, `bpf_scanner`, `proc_scanner`, `mount_holders`: test_tasks.py, which makes the same
  tests with both scanners, and compares them. More are in tests/mount/test_names.py.
- `route_text` and `route_words`: test_routes.py, with the kernel's own routes.
- `owners`: tests/mount/test_permissions.py. An owner matters where somebody is refused.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from conftest import IN_KERNEL, RUN, ip

from netnsfs import linux
from netnsfs.netns import tasks
from netnsfs.netns.bpf_scanner import BpfScanner
from netnsfs.netns.proc_scanner import ProcScanner
from netnsfs.netns.scanner import Scanner


class ScannerBefore67(BpfScanner):
    """As before Linux 6.7: no program goes through tasks or mounts by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._iterators.run_open_coded = lambda *_: None  # type: ignore[method-assign]
        self._mounts = None


@pytest.fixture(
    params=[IN_KERNEL, pytest.param(ScannerBefore67, marks=IN_KERNEL.marks), ProcScanner]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scanner]:
    """The test is made with all passes."""
    in_kernel = issubclass(request.param, BpfScanner)
    if in_kernel and not linux.in_initial_user_namespace():
        pytest.skip("not for a user namespace")
    made: Scanner = request.param()
    monkeypatch.setattr(tasks._chosen, "_scanner", made)
    yield made
    if isinstance(made, BpfScanner):
        made.close()


@pytest.fixture
def spaces() -> Iterator[tuple[int, int]]:
    """Descriptors of the namespaces a and b."""
    with ExitStack() as stack:
        fds = []
        for name in ("a", "b"):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            fd = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
            fds.append(stack.enter_context(linux.closing_fd(fd)))
        yield fds[0], fds[1]
