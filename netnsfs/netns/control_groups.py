"""The control groups of processes (cgroups(7)): which container, pod or unit they belong to.

A host has one hierarchy (version 2), several (version 1), or both (hybrid). In most of several,
processes are in the root or in the same group as in version 2, which tells nothing.
"""

import os
from collections.abc import Iterable, Iterator

from netnsfs import linux

# A path of PATH_MAX for each of the hierarchies that there can be.
_TEXT = 1 << 17
_ROOT = b"/"
# The hierarchy of version 2.
_UNIFIED = b"0"


def listing(members: Iterable[int]) -> bytes:
    """The control groups of processes, one path a line, sorted.

    That of version 2, and of version 1 those that are neither the root nor the same. No path
    has a second line: the kernel takes no newline in a name.

    Args:
        members: process IDs.
    """
    return list_paths(_texts(members))


def common(members: Iterable[int]) -> bytes:
    """The deepest control group that has all of some processes in it, or below it.

    With several hierarchies, that of version 2 unless it is the root, and else the deepest.

    Args:
        members: process IDs.

    Returns:
        Its path; nothing if there is no such process any more.
    """
    return common_path(_texts(members))


def list_paths(texts: Iterable[bytes]) -> bytes:
    """`listing`, from what /proc/PID/cgroup has for each process."""
    # Most processes have the same: each text is taken apart once.
    paths = {path for text in set(texts) for path in _telling(_by_hierarchy(text))}
    return b"".join(path + b"\n" for path in sorted(paths))


def common_path(texts: Iterable[bytes]) -> bytes:
    """`common`, from what /proc/PID/cgroup has for each process."""
    shared: dict[bytes, bytes] | None = None
    seen: set[bytes] = set()
    for text in texts:
        if text in seen:
            continue
        seen.add(text)
        paths = _by_hierarchy(text)
        shared = paths if shared is None else _common_paths(shared, paths)
        # It cannot be less. In the initial network namespace, the first thread of the kernel
        # ends this.
        if set(shared.values()) == {_ROOT}:
            break
    return _deepest(shared or {})


def _common_paths(one: dict[bytes, bytes], other: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {
        hierarchy: os.path.commonpath((path, other[hierarchy]))
        for hierarchy, path in one.items()
        if hierarchy in other
    }


def _deepest(shared: dict[bytes, bytes]) -> bytes:
    unified = shared.get(_UNIFIED, _ROOT)
    if unified != _ROOT:
        return unified
    return max(shared.values(), key=_depth, default=b"")


def _depth(path: bytes) -> tuple[int, bytes]:
    return path.rstrip(b"/").count(b"/"), path


def _telling(paths: dict[bytes, bytes]) -> Iterator[bytes]:
    unified = paths.get(_UNIFIED)
    others = {path for path in paths.values() if path not in (_ROOT, unified)}
    yield from others
    # If that is all there is, it is told: nothing would mean that nobody is there.
    if unified is not None or not others:
        yield unified or _ROOT


def _texts(members: Iterable[int]) -> Iterator[bytes]:
    """What /proc/PID/cgroup has for each process that has not ended meanwhile."""
    for pid in members:
        try:
            fd = os.open(b"/proc/%d/cgroup" % pid, os.O_RDONLY | os.O_CLOEXEC)
            with linux.closing_fd(fd):
                yield os.read(fd, _TEXT)
        except OSError as error:
            linux.reraise_if_resource(error)


def _by_hierarchy(text: bytes) -> dict[bytes, bytes]:
    """The path in each hierarchy, by its number (cgroups(7), /proc/pid/cgroup)."""
    lines = (line.split(b":", 2) for line in text.split(b"\n") if line)
    return {number: path for number, _, path in lines}
