"""A mount of a tree made for the tests, with the life and the adapter of netnsfs.

    python slowfs.py MOUNTPOINT [busy]

`ok` reads at once. `slow` takes a second to open, on a worker; `hang` takes for ever. `bug`
raises what no handler should raise. With "busy", something keeps the event loop at work.
"""

import stat
import sys
import time
from collections.abc import Callable

import trio

from netnsfs import logs
from netnsfs.config import Config
from netnsfs.fuse import mounting, session
from netnsfs.fuse.replay import ReportedNames
from netnsfs.jobs import may_block
from netnsfs.node import Attributes, Caller, Directory, File, Handle, Node, Snapshot
from netnsfs.stats import Stats


class Leaf(File):
    def __init__(self, name: bytes, content: Callable[[], bytes]) -> None:
        self.key = name
        self._content = content

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFREG | 0o444, 3)

    def open(self, flags: int, caller: Caller) -> Handle:
        return Snapshot(flags, self._content)


def ok() -> bytes:
    return b"ok\n"


def slow() -> bytes:
    may_block()
    time.sleep(1)
    return b"ok\n"


def hang() -> bytes:
    may_block()
    time.sleep(1000)
    return b""


def bug() -> bytes:
    raise ZeroDivisionError("a bug")


CONTENTS = {function.__name__.encode(): function for function in (ok, slow, hang, bug)}


async def keep_busy() -> None:
    while True:
        time.sleep(0.02)
        await trio.sleep(0)


def mounted(identity: mounting.Identity) -> None:
    if sys.argv[2:] == ["busy"]:
        trio.lowlevel.spawn_system_task(keep_busy)


class Root(Directory):
    key = "root"

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o755)

    def readdir(self) -> list[bytes]:
        return list(CONTENTS)

    def lookup(self, name: bytes, caller: Caller) -> Node:
        return Leaf(name, CONTENTS[name]) if name in CONTENTS else super().lookup(name, caller)


if __name__ == "__main__":
    logs.log_to_terminal(debug=False)
    config = Config(mount_point=sys.argv[1].encode())
    mounting.clear(config.mount_point)
    session.serve(Root(), Stats(), config, ReportedNames(), mounted, lambda: None)
