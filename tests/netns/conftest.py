"""Network namespaces without FUSE, with ip-netns(8) and lsns(8) as the other side.

Without a file of their own name:
- `passes`, `kernel_pass`, `proc_pass`: test_tasks.py, which makes the same tests with both
  passes, and compares them. More are in tests/mount/test_names.py.
- `events_child`, the program of `events`: tests/mount/test_events.py. It needs a mount.
- `owners`: tests/mount/test_permissions.py. An owner matters where somebody is refused.
"""

from collections.abc import Iterator

import pytest
from conftest import IN_KERNEL

from netnsfs import linux
from netnsfs.netns import tasks
from netnsfs.netns.kernel_pass import KernelPass
from netnsfs.netns.passes import Pass
from netnsfs.netns.proc_pass import ProcPass


class PassBefore67(KernelPass):
    """As before Linux 6.7, without an iterator that goes through the tasks by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._iterators.run_open_coded = lambda variables: None  # type: ignore[method-assign]


@pytest.fixture(params=[IN_KERNEL, pytest.param(PassBefore67, marks=IN_KERNEL.marks), ProcPass])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pass]:
    """The test is made with all passes."""
    in_kernel = issubclass(request.param, KernelPass)
    if in_kernel and not linux.in_initial_user_namespace():
        pytest.skip("not for a user namespace")
    made: Pass = request.param()
    monkeypatch.setattr(tasks._chosen, "_way", made)
    yield made
    if isinstance(made, KernelPass):
        made._iterators.close()
