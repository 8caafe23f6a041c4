"""What the file system remembers of itself."""

import errno
import re

import pytest

from netnsfs.stats import Stats


def test_errors_are_counted_by_request_and_name() -> None:
    stats = Stats()
    for code in (errno.ENOENT, errno.ENOENT, errno.EEXIST, 0, 12345):
        stats.count_error("mkdir", code)
    stats.count_error("rmdir", errno.ENOENT)
    assert stats.errors == {
        ("mkdir", "ENOENT"): 2,
        ("mkdir", "EEXIST"): 1,
        ("mkdir", "EIO"): 2,
        ("rmdir", "ENOENT"): 1,
    }


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        (b"x", OSError(errno.EEXIST, "it is there"), b"mkdir x: it is there (EEXIST)"),
        (b"a\nb", OSError(errno.EPERM, "no"), b"mkdir a\\nb: no (EPERM)"),
        (b"\xff'", OSError(errno.EPERM, "no"), b"mkdir \\xff': no (EPERM)"),
        (b"x", OSError("no errno"), b"mkdir x: None (EIO)"),
    ],
)
def test_the_last_refusal_is_one_line(name: bytes, error: OSError, told: bytes) -> None:
    stats = Stats()
    assert stats.last == b"ok\n"
    stats.remember_refusal("rmdir", b"other", OSError(errno.EBUSY, "busy"))
    stats.remember_refusal("mkdir", name, error, pid=17)
    assert re.fullmatch(
        re.escape(told) + rb", PID 17, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}\n", stats.last
    )
