"""What a daemon costs that nobody asks for anything."""

import time
from pathlib import Path

from benchmarks.mounts import SPARED, netnsfs
from benchmarks.namespaces import fill
from benchmarks.report import duration, heading, table, targets
from benchmarks.scale import Scale


def measure(scale: Scale) -> None:
    with netnsfs() as plain, netnsfs(SPARED, "-o", "spare=16") as spared:
        fill(10)
        time.sleep(2)
        daemons = {"netnsfs": plain, "netnsfs -o spare=16": spared}
        before = {label: _activity(pid) for label, pid in daemons.items()}
        time.sleep(scale.idle)
        rows, figures = [], []
        for label, pid in daemons.items():
            wakes, seconds = (a - b for a, b in zip(_activity(pid), before[label], strict=True))
            each, minute = wakes / scale.idle, seconds * 60 / scale.idle
            rows.append([label, f"{each:.2f}", duration(minute)])
            figures.append((f"{label}, idle", each, 2.0, "wake-ups a second"))
            figures.append((f"{label}, idle", minute * 1000, 10.0, "ms in a minute"))
    heading("Idle, ten namespaces")
    table(["daemon", "wake-ups a second", "processor time in a minute"], rows)
    targets(*figures)


def _activity(pid: int) -> tuple[int, float]:
    """How often the threads of a process were woken, and the seconds that they have run."""
    wakes, seconds = 0, 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        wakes += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
    return wakes, seconds
