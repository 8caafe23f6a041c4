"""How a run that fails says so."""

import pytest

from netnsfs.config import EXIT_MOUNT, Failure, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain äö €", "plain äö €"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[1m\x7f\x00", "\\x1b[1m\\x7f\\x00"),
        ("\u2028\x85", "\\u2028\\x85"),
        # A byte that is no UTF-8.
        ("\udcff", "\\udcff"),
    ],
)
def test_a_line_is_one_whatever_is_in_it(text: str, line: str) -> None:
    assert one_line(text) == line
    failure = Failure(text, EXIT_MOUNT)
    assert (str(failure), failure.status) == (line, EXIT_MOUNT)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
