import subprocess
import sys
from pathlib import Path

import pytest

from netnsfs import linux

WITHOUT_CALL = str(Path(__file__).parents[1] / "without_call.py")
ASK = "from netnsfs import linux; print(linux.find_missing_call())"


def test_this_kernel_has_all() -> None:
    assert linux.find_missing_call() is None


@pytest.mark.parametrize(
    ("refused", "found"),
    [
        (["mount_setattr:ENOSYS"], ("mount_setattr(2)", "5.12")),
        (["open_tree:ENOSYS"], ("open_tree(2)", "5.2")),
        # The newest is told: a kernel that has it has the others too.
        (["open_tree:ENOSYS", "mount_setattr:ENOSYS"], ("mount_setattr(2)", "5.12")),
        # A call that is refused is there.
        (["mount_setattr:EPERM"], None),
    ],
)
def test_what_is_missing(refused: list[str], found: tuple[str, str] | None) -> None:
    command = [sys.executable, WITHOUT_CALL, *refused, "--", sys.executable, "-c", ASK]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{found}\n"
