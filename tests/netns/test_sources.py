"""All network namespaces: with a name, without one, by whom they may be seen."""

import os
import subprocess
from collections.abc import Callable

from conftest import RUN, wait_for

from netnsfs import linux
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.sources import Source, each_source

Spawn = Callable[..., subprocess.Popen[bytes]]


def inode_of(source: Source) -> int:
    with linux.closing_fd(source.open()) as fd:
        return os.fstat(fd).st_ino


def test_named_come_first(spawn: Spawn) -> None:
    names = NamedNamespaces(bytes(RUN))
    for name in (b"foo", b"bar", b".netnsfs"):
        names.create(name)
    own = os.stat("/proc/self/ns/net").st_ino
    process = spawn("unshare", "--net", "sleep", "60")
    wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != own)
    unnamed = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    found = list(each_source(names, b".netnsfs"))
    assert [source.name for source in found[:2]] == [b"bar", b"foo"]
    assert {source.name for source in found[2:]} == {None}
    inodes = [source.inode for source in found]
    hidden = os.stat(RUN / ".netnsfs").st_ino
    assert {own, unnamed, hidden} <= set(inodes[2:])
    assert inodes[2:] == sorted(set(inodes[2:]))
    for source in found:
        if source.name or source.inode in (own, unnamed, hidden):
            assert inode_of(source) == source.inode
    shown = each_source(names, b".netnsfs", lambda name: name == b"foo")
    assert [source.name for source in shown] == [b"foo"]
    for name in (b"foo", b"bar", b".netnsfs"):
        names.remove(name)
