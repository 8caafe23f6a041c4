"""How many lines there are in the log. What becomes of them is in tests/mount/test_life.py."""

import logging

import pytest

from netnsfs import logs


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> logs.RateLimitFilter:
    monkeypatch.setattr(logs, "monotonic", lambda: clock[0])
    clock[0] = 0.0
    return logs.RateLimitFilter()


clock = [0.0]


def passes(only: logs.RateLimitFilter, message: str, *args: object, level: int = 30) -> str:
    """What is logged of it."""
    record = logging.LogRecord("netnsfs", level, "", 0, message, args, None)
    return record.getMessage() if only.filter(record) else ""


def test_one_of_a_kind_a_second(only: logs.RateLimitFilter) -> None:
    shown = []
    for number in range(1000):
        clock[0] = number / 100
        shown.append(passes(only, "%s failed", number))
    told = [line for line in shown if line]
    assert told[0] == "0 failed"
    assert told[1:] == [f"{n}00 failed (and 99 more like this before)" for n in range(1, 10)]


def test_other_kinds_are_not_held_back(only: logs.RateLimitFilter) -> None:
    assert passes(only, "%s failed", "a")
    assert passes(only, "%s is late", "a")
    assert passes(only, "%s failed", "a", level=20)


def test_debugging_is_not_held_back(only: logs.RateLimitFilter) -> None:
    for _ in range(3):
        assert passes(only, "%s failed", "a", level=10)
