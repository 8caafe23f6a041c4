"""The picture of what was measured."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.race import Curves
from benchmarks.report import machine


def draw(path: Path, found: Mapping[str, Curves]) -> None:
    """Plot what the sections have found that return something."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        sys.exit("bench: --plot needs matplotlib: .venv/bin/pip install --group plot")

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, ((pairs, small), (size, crowd)) = pyplot.subplots(
        2, 2, figsize=(13, 9), layout="constrained"
    )
    _draw_pairs(pairs, found["cold"], found["create"])
    _draw_requests(small, found["read"])
    _draw_growth(size, found["growth"])
    _draw_clients(crowd, found["clients"])
    for axes in (pairs, small, size, crowd):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="small")
        axes.title.set_fontsize("medium")
    figure.suptitle(machine(), fontsize="small", color="dimgray")
    figure.savefig(path, metadata={"Date": None})


def _draw_bars(axes: Any, seconds: Mapping[str, float], unit: float, shown: str) -> None:
    for label, value in seconds.items():
        color = "tab:blue" if label.startswith("netnsfs") else "lightgray"
        bar = axes.barh(label, value / unit, color=color)
        axes.bar_label(bar, fmt=shown, padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _draw_pairs(axes: Any, cold: Curves, hot: Curves) -> None:
    anew = {f"{label}, run anew": values[1] for label, values in cold.items()}
    # Commands are cold in any case.
    loop = {f"{label}, in a loop": v[1] for label, v in hot.items() if label not in cold}
    _draw_bars(axes, {**anew, **loop}, 1e-3, "%.2f")
    programs, plain, *_ = anew.values()
    axes.set_title(
        f"mkdir and rmdir, run anew:\n{plain / programs:.2f} of the time of ip netns"
    )
    axes.set_xlabel("ms for making a namespace and removing it")


def _draw_requests(axes: Any, curves: Curves) -> None:
    _draw_bars(axes, {label: values[1] for label, values in curves.items()}, 1e-6, "%.1f")
    mine, python, c = (
        curves[f"{server}: stat"][1]
        for server in ("netnsfs", "the pyfuse3 floor", "the C floor")
    )
    axes.set_title(
        f"A stat takes {mine / python:.2f} of the time of the smallest pyfuse3 file system,\n"
        f"and {mine / c:.2f} of that in C"
    )
    axes.set_xlabel("µs, client and server on one processor")


def _draw_growth(axes: Any, curves: Curves) -> None:
    lines = {
        label: {size: ratio / next(iter(ratios.values())) for size, ratio in ratios.items()}
        for label, ratios in curves.items()
    }
    _draw_lines(axes, lines)
    first, *_, last = next(iter(lines.values()))
    worst = max(values[last] for values in lines.values())
    axes.set(xlabel="namespaces", ylabel="1 is the time with ten, to the system calls alone")
    axes.set_title(
        f"With {last:,} namespaces, an operation takes at most\n"
        f"{worst:.2f} times as long as with {first:,}"
    )


def _draw_clients(axes: Any, curves: Curves) -> None:
    lines = {
        label: {count: second * 1000 for count, second in seconds.items()}
        for label, seconds in curves.items()
    }
    _draw_lines(axes, lines)
    mount, program = lines.values()
    worst = max(mount[count] / program[count] for count in mount)
    axes.set(xlabel="clients at once", ylabel="ms for making a namespace and removing it")
    axes.set_title(
        f"With one client or many, mkdir and rmdir take at most\n"
        f"{worst:.2f} of the time of ip netns"
    )


def _draw_lines(axes: Any, lines: Curves) -> None:
    """Lines with their names at the right end, above each other as the ends are."""
    top = max(value for values in lines.values() for value in values.values())
    height = 0.0
    for label, values in sorted(lines.items(), key=lambda line: [*line[1].values()][-1]):
        (line,) = axes.plot(list(values), list(values.values()), marker="o")
        end = max(values)
        height = max(height + top / 18, values[end])
        axes.annotate(label, (end * 1.03, height), color=line.get_color(), va="center")
    # Small ones would be written over each other.
    sizes = [size for size in values if size >= end / 20]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set(ylim=(0, max(top, height) * 1.1), xlim=(0, end * 1.4))
