"""What sections do with namespaces and files again and again."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mounts import RUN
from netnsfs import linux
from netnsfs.netns.names import NamedNamespaces


def mkdir_rmdir(path: Path) -> None:
    os.mkdir(path)
    os.rmdir(path)


def prepare_run() -> None:
    """The run directory as every side has it."""
    NamedNamespaces(bytes(RUN)).create(b"bare")
    NamedNamespaces(bytes(RUN)).remove(b"bare")


def below(call: Callable[[bytes], None], path: Path) -> Callable[[bytes], None]:
    """A call with a name in a directory."""
    return lambda name: call(bytes(path) + b"/" + name)


def bare_make(name: bytes) -> None:
    path = bytes(RUN) + b"/" + name
    linux.unshare(linux.CLONE_NEWNET)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    linux.mount(b"/proc/thread-self/ns/net", path, linux.MS_BIND)


def bare_remove(name: bytes) -> None:
    path = bytes(RUN) + b"/" + name
    linux.umount(path, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    os.unlink(path)


def fill(size: int) -> None:
    """Make namespaces until there are so many, named by their number."""
    names = NamedNamespaces(bytes(RUN))
    for number in range(len(names.list_names()), size):
        names.create(b"%04d" % number)


def growing(sizes: Iterable[int]) -> Iterator[int]:
    """Each number of namespaces, once there are so many."""
    for size in sizes:
        fill(size)
        yield size


@contextmanager
def own_namespace() -> Iterator[int]:
    """A descriptor of the namespace that a thread is to come back to."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_once(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def cat(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def counted(at: Path, what: str) -> float:
    """The sum of a mount's counters whose name, or name and labels, begin like this."""
    lines = cat(at / ".netnsfs/metrics").decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(what))
