"""Let the sides of a comparison take turns, and compare what they took."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.report import duration

Curves = dict[str, dict[int, float]]
"""Values by size, for each line of a plot; at 1 alone, where there are no sizes."""


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do something.

    Attributes:
        label: its line in the table.
        run: does it as often as it is told.
        count: how often in a round.
    """

    label: str
    run: Callable[[int], object]
    count: int


@dataclass(frozen=True, slots=True)
class Race:
    """Seconds for each side and round."""

    seconds: dict[str, list[float]]

    def median(self, label: str) -> float:
        """What a side takes."""
        return median(self.seconds[label])

    def ratio(self, label: str, baseline: str) -> float:
        """What a side takes, in units of another."""
        pairs = zip(self.seconds[label], self.seconds[baseline], strict=True)
        return median(mine / other for mine, other in pairs)

    def rows(self, *baselines: str) -> list[list[str]]:
        """The lines of the table: what a side takes, also in units of others."""
        return [
            [
                label,
                duration(self.median(label)),
                *(f"{self.ratio(label, baseline):.2f}" for baseline in baselines),
            ]
            for label in self.seconds
        ]

    def curves(self) -> Curves:
        """What each side takes, for the plot."""
        return {label: {1: self.median(label)} for label in self.seconds}


def race(sides: list[Side], rounds: int, pause: float = 0.0) -> Race:
    """Let the sides take turns, after a round that does not count.

    Args:
        sides: in the order of the table.
        rounds: how many.
        pause: seconds before each turn, for what the turn before has left to the kernel.
    """

    def mean(side: Side) -> float:
        time.sleep(pause)
        return timed(partial(side.run, side.count)) / side.count

    return take_turns({side.label: partial(mean, side) for side in sides}, rounds)


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> Race:
    """`race`, of what tells by itself how many seconds it has taken."""
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    for number in range(rounds + 1):
        for label in list(sides)[:: 1 if number % 2 else -1]:
            took = sides[label]()
            if number:
                seconds[label].append(took)
    return Race(seconds)


def repeat(function: Callable[..., object], *arguments: object) -> Callable[[int], None]:
    """What makes the same call as often as it is told."""

    def run(count: int) -> None:
        for _ in range(count):
            function(*arguments)

    return run


def timed(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
