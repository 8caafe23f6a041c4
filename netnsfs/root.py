"""The mount point and the file system's own corner: what is not a namespace's directory."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

from netnsfs import holders, linux, members, tree
from netnsfs.files import VIEWS, Directories, Name, Unnamed
from netnsfs.netns import Names, Namespace, namespace_of, reopen
from netnsfs.workers import may_block

RESERVED = b".netnsfs"

_UNNAMED = b"unnamed"
_PID = b"pid"
_ROOT_INODE = 1
_MOST_RETURNS = 40


def _absent(name: bytes, why: str = "there is no such name") -> OSError:
    return FileNotFoundError(errno.ENOENT, why, name)


def _invalid(why: str) -> OSError:
    return OSError(errno.EINVAL, why)


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

    def target(self) -> bytes:
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

    def rename(self, name: bytes, directory: tree.Directory, new_name: bytes) -> None:
        may_block()
        if not isinstance(directory, Root):
            return super().rename(name, directory, new_name)
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

    def target(self) -> bytes:
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

    def listed(self, name: bytes, caller: tree.Caller) -> tree.Node:
        return self._link(name, caller, self._listed)

    def lookup(self, name: bytes, caller: tree.Caller) -> tree.Node:
        may_block()
        return self._link(name, caller, self._names.by_inode(without=RESERVED))

    def _link(self, name: bytes, caller: tree.Caller, named: dict[int, bytes]) -> tree.Node:
        pid = b"%d" % caller.pid if name == b"self" else name
        inode = members.namespace_of_task(pid) if pid.isdigit() else None
        if inode is None:
            raise _absent(name, "there is no such process, or its namespace is not to be seen")
        if inode in named:
            return PidLink(name, b"../../" + named[inode])
        return PidLink(name, b"../unnamed/%d" % inode)


class LastError(tree.File):
    """`.netnsfs/last_error`: why the last change that failed did.

    Everyone may read it. It tells operations, names, limits and process IDs, which everyone
    may see; it does not tell the paths that root's links lead to.
    """

    key = label = b"last_error"

    def __init__(self) -> None:
        self._text = b"ok\n"

    def record(self, operation: str, name: bytes, error: OSError) -> None:
        """Remember a failure."""
        code = errno.errorcode.get(error.errno or 0, "EIO")
        shown = repr(name)[2:-1]
        self._text = f"{operation} {shown}: {error.strerror} ({code})\n".encode()

    def attributes(self) -> tree.Attributes:
        return tree.Attributes(stat.S_IFREG | 0o444, len(self._text), seconds=0)

    def open(self, flags: int) -> tree.Handle:
        return tree.Snapshot(flags, lambda: self._text)


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
        mount_point: the path of this directory, for relative targets of links.
        keep_busy: refuse to remove a namespace that processes are in.
        views: show `net` and `sysctl` in each namespace.
    """

    key = b"/"

    def __init__(
        self, names: Names, mount_point: bytes, keep_busy: bool = False, views: bool = True
    ) -> None:
        self._names = names
        self._mount_point = mount_point
        self._keep_busy = keep_busy
        self._directories = Directories(VIEWS if views else {})
        self._unnamed = UnnamedDirectory(names, self._directories)
        self.last_error = LastError()
        self._corner = Corner(
            {
                _UNNAMED: self._unnamed,
                _PID: PidDirectory(names),
                self.last_error.key: self.last_error,
            }
        )

    def attributes(self) -> tree.Attributes:
        mode = stat.S_IFDIR | 0o755
        with suppress(FileNotFoundError):
            run = os.stat(self._names.path)
            times = run.st_atime_ns, run.st_mtime_ns, run.st_ctime_ns
            return tree.Attributes(mode, 0, 1, *times, seconds=1)
        return tree.Attributes(mode, seconds=1)

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
        # First the entry, then the namespace: if the name is made anew in between, the next
        # look sees that the entry has changed.
        entry = self._names.entry(name)
        namespace = self._names.identify(name)
        if namespace is None:
            return StaleDirectory(name, entry.mark)
        return self._directories.under_name(namespace, Name(self._names, name, entry.mark))

    def mkdir(self, name: bytes) -> tree.Node:
        self._refuse_reserved(name)
        namespace, mark = self._names.create(name)
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
            shown = " ".join(map(str, inside[:10])) + (" ..." if len(inside) > 10 else "")
            raise OSError(errno.EBUSY, f"processes are inside, end them first: {shown}", name)

    def rename(self, name: bytes, directory: tree.Directory, new_name: bytes) -> None:
        if directory is not self or name == RESERVED:
            super().rename(name, directory, new_name)
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
        if caller.uid != 0:
            raise PermissionError(errno.EPERM, "only root may attach a namespace", name)
        may_block()
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
