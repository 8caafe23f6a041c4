"""What is printed, and written to the report."""

import os
import platform
import textwrap
from importlib.metadata import version
from pathlib import Path

from benchmarks.programs import command


def duration(seconds: float) -> str:
    """A time in a fitting unit, with three digits."""
    unit, length = next(
        (pair for pair in (("s", 1.0), ("ms", 1e-3)) if seconds >= pair[1]), ("µs", 1e-6)
    )
    value = seconds / length
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


_report: list[str] = []
"""The lines of the report."""


def say(line: str = "") -> None:
    """Print a line that is also one of the report."""
    print(line, flush=True)
    _report.append(line)


def heading(title: str, text: str = "") -> None:
    """Begin a section: its title, and what a reader of its tables has to know."""
    say()
    say(f"## {title}")
    if text:
        say()
        say(textwrap.fill(text, 96, break_on_hyphens=False))


def table(header: list[str], rows: list[list[str]]) -> None:
    say()
    for cells in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        say(f"| {' | '.join(cells)} |")


REPORT_HEAD = """\
# Benchmarks

What one run of `scripts/bench` measured with version {netnsfs}, on {machine}. Before it, the
load average was {load}; before each section, others used at most {busy:.0%} of the processors.

All sides of a comparison take turns in each round. A time is the median over the rounds. A
ratio is the median of the rounds' ratios, not the ratio of the medians. Absolute times differ
from machine to machine; ratios differ less.
"""


def write_report(path: Path, load: float, busy: float, plot: Path | None) -> None:
    """Write all tables to a file.

    Args:
        path: the file.
        load: the load average of a minute before the run.
        busy: the largest share of the processors that others used before a section.
        plot: the file with the picture.
    """
    head = REPORT_HEAD.format(
        netnsfs=version("netnsfs"), machine=machine(), load=f"{load:.2f}", busy=busy
    )
    lines = [head, *_report[1:]]
    if plot:
        shown = os.path.relpath(plot, path.parent)
        lines += ["", f"![netnsfs beside other ways to the same end, in four plots]({shown})"]
    path.write_text("\n".join(lines) + "\n")


def targets(*figures: tuple[str, float, float, str]) -> None:
    """Print figures that are tracked: what, the figure reached, its limit, the unit."""
    print()
    for what, reached, limit, unit in figures:
        verdict = "met" if reached <= limit else "MISSED"
        print(f"- {what}: {reached:.2f} {unit} (target {limit:g}): {verdict}", flush=True)


def machine() -> str:
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    iproute2 = command("ip", "-V").split(",")[1].strip()
    return ", ".join(
        (
            models[0] if models else platform.machine(),
            f"{os.cpu_count()} cores",
            f"Linux {platform.release()}",
            f"Python {platform.python_version()}",
            f"pyfuse3 {version('pyfuse3')}",
            iproute2,
        )
    )


def with_size(what: str, size: int) -> str:
    return f"{what}, {size:,} namespaces"
