"""The compiled BPF programs, which are made when the package is built, if clang is there."""

import os

_HERE = os.path.join(os.path.dirname(__file__), "netns")
TASKS = os.path.join(_HERE, "tasks.bpf.o")
HOLDERS = os.path.join(_HERE, "holders.bpf.o")
MOUNTS = os.path.join(_HERE, "mounts.bpf.o")
POPULATED_EVENTS = os.path.join(_HERE, "populated_events.bpf.o")


def are_built() -> bool:
    """Whether this netnsfs was built with them."""
    return all(map(os.path.exists, (TASKS, HOLDERS, MOUNTS, POPULATED_EVENTS)))
