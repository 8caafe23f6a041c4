"""Where the files of network namespaces are mounted, in all mount namespaces.

Users can make tens of thousands of mounts, with long paths, in mount namespaces of their own.
So the kernel is asked, in this order, and what it cannot do goes to the next:

1. A BPF program lists the mounts of namespace files alone, of all mount namespaces at once.
2. listmount(2) and statmount(2) tell of what kind a mount is without making a text of it.
3. mountinfo is a text of all mounts.

In 2 and 3, each mount namespace but our own gets its share of the time, and what another one
does not need of its share. What is not done by then is noted as omitted.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from functools import partial

from netnsfs import linux
from netnsfs.netns.nsfs import number_in
from netnsfs.netns.scanner import MountRecord, Omitted, Scanner

Found = tuple[int, bytes]
"""The inode number of a network namespace, and the path of a mount of its file."""

_SECONDS = 1.0
# Without listmount(2), of a mount namespace in which all tasks are chrooted: how many of their
# roots are looked at.
_MAX_ROOTS = 8


def find_mounts(
    scanner: Scanner, inode: int, without: Collection[int], omitted: Omitted
) -> Iterator[Found]:
    """The mounts of the files of a network namespace, or of any.

    Args:
        scanner: how to find tasks.
        inode: number of the namespace, or 0 for any.
        without: numbers of those that are not asked for. It may grow meanwhile.
        omitted: where it is noted how many mount namespaces were not looked at to the end.
    """
    # The mounts of our own mount namespace have paths that need no /proc/PID/root.
    for found, path in linux.namespace_mounts(b"self"):
        if found == (inode or found) and found not in without:
            yield found, path
    own = number_in(os.readlink(b"/proc/self/ns/mnt"))
    listed = scanner.namespace_mounts(inode, without)
    known = None if listed is None else _by_mount_namespace(listed)
    others = _tasks_by_mount_namespace(scanner, own, known)
    deadline = time.monotonic() + _SECONDS
    for left, (mount_namespace, tasks) in zip(
        range(len(others), 0, -1), others.items(), strict=True
    ):
        now = time.monotonic()
        share = now + max(deadline - now, 0) / left
        numbers = known[mount_namespace] if known else []
        try:
            for found, path in _mounts_inside(tasks, numbers, share):
                if found == (inode or found) and found not in without:
                    yield found, path
        except TimeoutError:
            omitted[b"mounts"] += 1


def _by_mount_namespace(listed: list[MountRecord]) -> dict[int, list[int]]:
    """The IDs of mounts, by inode number of the mount namespace that they are in."""
    found: dict[int, list[int]] = defaultdict(list)
    for number, _, mount_namespace in listed:
        found[mount_namespace].append(number)
    return found


def _tasks_by_mount_namespace(
    scanner: Scanner, own: int, known: Collection[int] | None
) -> dict[int, list[int]]:
    """The tasks in each other mount namespace, if it is one of `known` or all are wanted."""
    found: dict[int, list[int]] = defaultdict(list)
    if known is None or set(known) - {own}:
        for task, mount_namespace in scanner.mount_namespaces():
            if mount_namespace != own and (known is None or mount_namespace in known):
                found[mount_namespace].append(task)
    return found


def _mounts_inside(tasks: list[int], numbers: list[int], deadline: float) -> list[Found]:
    """The mounts in a mount namespace.

    Args:
        tasks: in it.
        numbers: the IDs of those that are asked for; none for all.
        deadline: when to stop.

    Raises:
        TimeoutError: there are too many.
    """
    readers: tuple[Callable[[], list[Found]], ...] = (
        partial(_mounts_by_statmount, tasks, numbers, deadline),
        partial(_mounts_by_mountinfo, tasks, deadline),
    )
    for read in readers:
        try:
            return read()
        except TimeoutError:
            raise
        except OSError as error:
            # The kernel does not have it, or does not let us see.
            linux.reraise_if_resource(error)
    return []


def _mounts_by_statmount(tasks: list[int], numbers: list[int], deadline: float) -> list[Found]:
    mount_namespace = _id_of_first(tasks)
    # A kernel before Linux 6.8 has no IDs of mounts: they are 0.
    wanted = numbers if all(numbers) else []
    found = linux.namespace_mounts_in(mount_namespace, wanted, deadline)
    return _reached_from(tasks, set(found), deadline)


def _id_of_first(tasks: list[int]) -> int:
    """The ID of the mount namespace that these tasks are in, from the first that has not ended.

    Raises:
        OSError: all have ended, or the kernel does not tell.
    """
    *others, last = tasks
    for task in others:
        try:
            return linux.mount_namespace_id(task)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return linux.mount_namespace_id(last)


def _reached_from(tasks: list[int], mounts: set[Found], deadline: float) -> list[Found]:
    """The mounts by paths from here, if a task has a root from which they can be seen."""
    left, reached = mounts, []
    roots: set[bytes] = set()
    for task in tasks:
        root = _root_of(task) if left else b""
        # Of thousands of tasks, most have the same.
        if not root or root in roots:
            continue
        linux.check_deadline(deadline)
        roots.add(root)
        seen = {mount for mount in left if mount[1].startswith(root)}
        left -= seen
        inside = b"/proc/%d/root/" % task
        reached += [(inode, inside + path[len(root) :]) for inode, path in seen]
    return reached


def _root_of(task: int) -> bytes:
    """The root of a task, with a slash at its end; nothing if it cannot be told."""
    # A task may end at any moment, be closed to us, or have a path that is too long.
    try:
        return os.readlink(b"/proc/%d/root" % task).rstrip(b"/") + b"/"
    except OSError as error:
        linux.reraise_if_resource(error)
        return b""


def _mounts_by_mountinfo(tasks: list[int], deadline: float) -> list[Found]:
    """The mounts that the tasks in a mount namespace see.

    A chrooted task sees only those below its root. So another one is looked for first. If all
    are chrooted, a few roots are looked at: a user can have thousands, beside thousands of
    mounts.
    """
    chrooted: dict[bytes, list[int]] = defaultdict(list)
    for task in tasks:
        root = _root_of(task)
        if root == b"/":
            return _mounts_seen_by_any([task], deadline)
        chrooted[root].append(task)
    # From an outer one, what is below the inner ones is seen too.
    roots = sorted(chrooted, key=len)[:_MAX_ROOTS]
    return [found for root in roots for found in _mounts_seen_by_any(chrooted[root], deadline)]


def _mounts_seen_by_any(tasks: list[int], deadline: float) -> list[Found]:
    """What the first of these tasks sees that has not ended."""
    for task in tasks:
        try:
            return [
                (found, b"/proc/%d/root" % task + path)
                for found, path in linux.namespace_mounts(b"%d" % task, deadline)
            ]
        except TimeoutError:
            raise
        except OSError as error:
            linux.reraise_if_resource(error)
    return []
