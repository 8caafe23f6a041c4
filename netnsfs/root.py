"""The mount point and the file system's own corner: what is not a namespace's directory."""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from weakref import WeakSet

from netnsfs import holders, linux, members, metrics, tree
from netnsfs.config import Config
from netnsfs.files import VIEWS, Directories, Name, Settings, Unnamed
from netnsfs.journal import Journal
from netnsfs.netns import Names
from netnsfs.nsfs import Namespace, namespace_of, reopen
from netnsfs.permissions import (
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,
    ROOT,
    Permissions,
    Viewer,
    has,
)
from netnsfs.workers import asked, may_block

RESERVED = b".netnsfs"

_UNNAMED = b"unnamed"
_PID = b"pid"
_ROOT_INODE = 1
_MOST_RETURNS = 40
# At a name that keeps changing.
_MOST_LOOKS = 10
_MOST_TEXTS = 16


def _absent(name: bytes, why: str = "there is no such name") -> OSError:
    return FileNotFoundError(errno.ENOENT, why, name)


def _invalid(why: str) -> OSError:
    return OSError(errno.EINVAL, why)


def _refuse_attaching(caller: tree.Caller, name: bytes) -> None:
    if caller.uid != 0 or not has(caller, CAP_SYS_ADMIN):
        message = "only root, with CAP_SYS_ADMIN as the daemon has it, may attach"
        raise PermissionError(errno.EPERM, message, name)


def _number(name: bytes) -> int:
    """An inode number, written as the kernel writes it."""
    if not name.isdigit() or name != b"%d" % int(name[:20]):
        raise _absent(name, "there is no such namespace")
    return int(name)


class StaleDirectory(tree.Directory):
    """A name that stands for no network namespace: empty, and closed by its mode."""

    def __init__(self, name: bytes, mark: linux.Stat) -> None:
        self.key = (name, mark)

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFDIR, links=2)


class OneTimeLink(tree.Link):
    """The answer to symlink(2). The next lookup of the name finds a directory."""

    def __init__(self, target: bytes) -> None:
        self.key = self
        self._target = target

    def text(self) -> bytes:
        return self._target


class UnnamedDirectory(tree.Directory):
    """`.netnsfs/unnamed`: the live namespaces that have no name, by inode number."""

    key = _UNNAMED

    def __init__(self, names: Names, directories: Directories) -> None:
        self._names = names
        self._directories = directories
        self._listed: dict[int, holders.Holder] = {}

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFDIR | 0o555)

    def list(self) -> list[bytes]:
        may_block()
        named = self._names.by_inode(without=RESERVED)
        found: dict[int, holders.Holder] = {}
        for holder in holders.scan():
            if holder.inode not in named:
                found.setdefault(holder.inode, holder)
        self._listed = found
        return [b"%d" % inode for inode in sorted(found)]

    def listed(self, name: bytes, caller: tree.Caller) -> tree.Node:
        may_block()
        holder = self._listed.get(int(name))
        if holder is None:
            raise _absent(name)
        with suppress(OSError):
            return self._found(holder)
        # Another may hold it still: this one may be a mount that another mount covers.
        return self.lookup(name, caller)

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        may_block()
        inode = _number(name)
        if inode in self._names.by_inode(without=RESERVED):
            raise _absent(name, "the namespace has a name")
        for holder in self._holders(inode):
            with suppress(OSError):
                return self._found(holder)
        raise _absent(name, "there is no such namespace")

    def _holders(self, inode: int) -> Iterator[holders.Holder]:
        """First the one that was seen last, then, at the cost of a scan, all."""
        if inode in self._listed:
            yield self._listed[inode]
        for holder in holders.of(inode):
            self._listed[inode] = holder
            yield holder

    def _found(self, holder: holders.Holder) -> tree.Node:
        fd, namespace = self._open(holder)
        os.close(fd)
        return self._directories.unnamed(namespace, Unnamed(self._names, holder))

    def _open(self, holder: holders.Holder) -> tuple[int, Namespace]:
        fd = holder.open(self._names.avoid)
        try:
            namespace = namespace_of(fd)
            if namespace.inode != holder.inode:
                raise _absent(holder.line, "it holds another namespace now")
        except BaseException:
            os.close(fd)
            raise
        return fd, namespace

    def open(self, name: bytes) -> int:
        """A descriptor of the namespace with an inode number.

        Raises:
            OSError: ENOENT.
        """
        for holder in self._holders(_number(name)):
            with suppress(OSError):
                return self._open(holder)[0]
        raise _absent(name, "there is no such namespace")

    def rename(
        self, name: bytes, directory: tree.Directory, new_name: bytes, caller: tree.Caller
    ) -> None:
        may_block()
        if not isinstance(directory, Root):
            return super().rename(name, directory, new_name, caller)
        _refuse_attaching(caller, new_name)
        fd = self.open(name)
        try:
            directory.attach(new_name, fd)
        finally:
            os.close(fd)


class PidLink(tree.Link):
    """`.netnsfs/pid/PID`: leads to the directory of the namespace that a task is in."""

    def __init__(self, name: bytes, target: bytes) -> None:
        self.key = (_PID, name, target)
        self._target = target

    def text(self) -> bytes:
        return self._target


class PidDirectory(tree.Directory):
    """`.netnsfs/pid`: a link for each process; threads are found by lookup, as in /proc."""

    key = _PID

    def __init__(self, names: Names) -> None:
        self._names = names
        self._listed: dict[int, bytes] = {}

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFDIR | 0o555)

    def list(self) -> list[bytes]:
        may_block()
        self._listed = self._names.by_inode(without=RESERVED)
        return [b"self", *(pid for pid in os.listdir(b"/proc") if pid.isdigit())]

    def reader(self, caller: tree.Caller) -> tree.Caller:
        return Viewer(caller)

    def listed(self, name: bytes, caller: tree.Caller) -> tree.Node:
        return self._link(name, caller, self._listed)

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        may_block()
        return self._link(name, caller, self._names.by_inode(without=RESERVED))

    def _link(self, name: bytes, caller: tree.Caller, named: dict[int, bytes]) -> tree.Node:
        pid = b"%d" % caller.pid if name == b"self" else name
        inode = members.namespace_of_task(pid) if pid.isdigit() else None
        viewer = caller if isinstance(caller, Viewer) else Viewer(caller)
        if inode is None or not viewer.sees(int(pid)):
            raise _absent(name, "there is no such process, or its namespace is not to be seen")
        if inode in named:
            return PidLink(name, b"../../" + named[inode])
        return PidLink(name, b"../unnamed/%d" % inode)


class LastError(tree.File):
    """`.netnsfs/last_error`: why the last change that failed did.

    Everyone may read it. It tells operations, names and limits, which everyone may see; it does
    not tell the paths that root's links lead to.
    """

    key = label = b"last_error"

    def __init__(self, journal: Journal, permissions: Permissions) -> None:
        self._journal = journal
        self._mode = stat.S_IFREG | permissions.of_file(0o444, ROOT)[0]

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(self._mode, len(self._journal.last), seconds=0)

    def open(self, flags: int, caller: tree.Caller) -> tree.Handle:
        return tree.Snapshot(flags, lambda: self._journal.last)


class Metrics(tree.File):
    """`.netnsfs/metrics`: also under a name that node_exporter's textfile collector takes.

    A text is shared by all who had asked for it when it was begun, so that many readers cost
    as much as two. Each open file keeps its text, which can be long: nobody but root may have
    more than a few.
    """

    key = label = b"metrics"
    costly = True

    def __init__(self, names: Names, journal: Journal, permissions: Permissions) -> None:
        self._names = names
        self._journal = journal
        self._permissions = permissions
        self._latest: dict[bool, tuple[float, bytes]] = {}
        self._open: dict[int, WeakSet[tree.Snapshot]] = {}

    def attributes(self) -> tree.Attributes:
        mode, _, _ = self._permissions.of_file(0o444, ROOT)
        size, now = self.size(lambda: tree.USUAL_SIZE), time.time_ns()
        return tree.Attributes(stat.S_IFREG | mode, size, 2, now, now, now, seconds=0)

    def open(self, flags: int, caller: tree.Caller) -> tree.Handle:
        tree.refuse_writing(flags)
        may_block()
        sees_all = has(caller, CAP_DAC_READ_SEARCH)
        mine = self._open.setdefault(caller.uid, WeakSet())
        if caller.uid and len(mine) >= _MOST_TEXTS:
            raise OSError(errno.EMFILE, "close some of those that are open")
        snapshot = tree.Snapshot(flags, partial(self._text, sees_all))
        mine.add(snapshot)
        return snapshot

    def _text(self, sees_all: bool) -> bytes:
        may_block()
        began, text = self._latest.get(sees_all, (0.0, b""))
        if began < asked():
            began = time.monotonic()
            shown = None if sees_all else self._is_open
            text = metrics.text(self._names, self._journal, shown)
            self._latest[sees_all] = began, text
        return text

    def _is_open(self, name: bytes) -> bool:
        """Whether everyone may look into a namespace."""
        owner = self._names.owner(name, self._names.entry(name).mark)
        return bool((owner or self._permissions.owner()).mode & 0o001)


class Corner(tree.Directory):
    """`.netnsfs`: the file system's own corner."""

    key = RESERVED
    lasting = True

    def __init__(self, nodes: dict[bytes, tree.Node]) -> None:
        self._nodes = nodes

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFDIR | 0o555)

    def list(self) -> list[bytes]:
        return [*self._nodes]

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        return self._nodes.get(name) or super().lookup(name, caller)


class Root(tree.Directory):
    """The mount point: one directory for each name.

    Args:
        names: the run directory.
        journal: what the adapter tells of its requests.
        config: what was asked for.
    """

    key = b"/"

    def __init__(self, names: Names, journal: Journal, config: Config) -> None:
        self._names = names
        self._mount_point = config.mount_point
        self._keep_busy = config.keep_busy
        self._permissions = config.permissions
        owner = config.permissions.owner()
        self._owner = owner._replace(mode=stat.S_IFDIR | owner.mode)
        shown = VIEWS if config.views else {}
        self._directories = Directories(Settings(shown, config.permissions))
        self._unnamed = UnnamedDirectory(names, self._directories)
        last_error = LastError(journal, config.permissions)
        counters = Metrics(names, journal, config.permissions)
        self._corner = Corner(
            {
                _UNNAMED: self._unnamed,
                _PID: PidDirectory(names),
                last_error.key: last_error,
                counters.key: counters,
                counters.key + b".prom": counters,
            }
        )

    def attributes(self) -> tree.Attributes:
        try:
            times = self._names.times()
        except FileNotFoundError:
            times = (tree.MOUNTED_NS,) * 3
        owner = self._owner
        return tree.Attributes(owner.mode, 0, 1, *times, 1, owner.uid, owner.gid)

    def list(self) -> list[bytes]:
        return [RESERVED, *(name for name in self._names.list() if name != RESERVED)]

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        if name == RESERVED:
            return self._corner
        return self._find(name)

    def _find(self, name: bytes) -> tree.Node:
        known = self._directories.named(name)
        if known is not None:
            return known
        for _ in range(_MOST_LOOKS):
            entry = self._names.entry(name)
            namespace = self._names.identify(name)
            if self._names.entry(name) == entry:
                break
        else:
            # Of another entry, the namespace may be another's.
            namespace = None
        if namespace is None:
            return StaleDirectory(name, entry.mark)
        return self._directories.under_name(namespace, Name(self._names, name, entry.mark))

    def mkdir(self, name: bytes, mode: int, caller: tree.Caller) -> tree.Node:
        self._refuse_reserved(name)
        owner = self._permissions.born(mode, caller)
        namespace, mark = self._names.create(name, owner)
        return self._directories.under_name(namespace, Name(self._names, name, mark))

    def rmdir(self, name: bytes) -> None:
        if name == RESERVED:
            raise PermissionError(errno.EPERM, "the name is the file system's own", name)
        if self._keep_busy:
            self._refuse_busy(name)
        self._names.remove(name)
        self._directories.removed(name)

    def _refuse_busy(self, name: bytes) -> None:
        if self._names.entry(name).kind != "mount" or not (ns := self._names.identify(name)):
            return
        inside = members.pids(ns.link)
        if inside:
            raise OSError(errno.EBUSY, "processes are inside (see pids): end them first", name)

    def rename(
        self, name: bytes, directory: tree.Directory, new_name: bytes, caller: tree.Caller
    ) -> None:
        if directory is not self or name == RESERVED:
            super().rename(name, directory, new_name, caller)
        self._refuse_reserved(new_name)
        self._names.rename(name, new_name)
        with suppress(OSError):
            mark = self._names.entry(new_name).mark
            self._directories.moved(name, Name(self._names, new_name, mark))
        self._look(new_name)

    def attach(self, name: bytes, fd: int) -> None:
        """Give the namespace of `fd` a name.

        Raises:
            OSError: as `Names.attach`.
        """
        self._refuse_reserved(name)
        self._names.attach(name, fd)
        self._look(name)

    def _look(self, name: bytes) -> None:
        """Find a namespace under its new name before anyone asks under which it is open."""
        with suppress(OSError):
            self._find(name)

    def symlink(self, name: bytes, target: bytes, caller: tree.Caller) -> tree.Node:
        may_block()
        _refuse_attaching(caller, name)
        self._refuse_reserved(name)
        if os.path.lexists(self._names.file(name)):
            raise FileExistsError(errno.EEXIST, "the name exists already", name)
        fd = self._open_target(target, caller)
        try:
            self.attach(name, fd)
        finally:
            os.close(fd)
        return OneTimeLink(target)

    def _open_target(self, target: bytes, caller: tree.Caller) -> int:
        """Open the namespace that a link's target designates, as its maker means it."""
        path = os.path.join(self._mount_point, target)
        for _ in range(_MOST_RETURNS):
            try:
                reached = linux.open_path(path, self._names.avoid, caller.pid)
            except linux.EnteredError as error:
                if error.ino != _ROOT_INODE:
                    raise _invalid("the target goes through a bind mount of netnsfs") from None
                if error.rest[:1] != [b".."]:
                    return self._open_below(error.rest, caller)
                path = os.path.join(os.path.dirname(self._mount_point), *error.rest[1:])
                continue
            except FileNotFoundError:
                raise _absent(b"", "the target does not exist") from None
            try:
                return reopen(reached)
            finally:
                os.close(reached)
        raise OSError(errno.ELOOP, "the target leaves the mount too often")

    def _open_below(self, path: Sequence[bytes], caller: tree.Caller) -> int:
        """Open the namespace that a path inside this file system designates."""
        match path:
            case [name] | [name, b"ns"] if name != RESERVED:
                return self._names.open_settled(name)
            case [corner, kind, name] | [corner, kind, name, b"ns"] if corner == RESERVED:
                if kind == _UNNAMED:
                    return self._unnamed.open(name)
                if kind == _PID:
                    return self._open_task(b"%d" % caller.pid if name == b"self" else name)
        raise _invalid("the target is not a network namespace")

    def _open_task(self, pid: bytes) -> int:
        if not pid.isdigit():
            raise _absent(pid, "the target does not exist")
        task = os.open(b"/proc/%b/ns/net" % pid, os.O_PATH | os.O_CLOEXEC)
        try:
            return reopen(task)
        finally:
            os.close(task)

    def _refuse_reserved(self, name: bytes) -> None:
        if name == RESERVED:
            raise FileExistsError(errno.EEXIST, "the name is the file system's own", name)
