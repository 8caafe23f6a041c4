"""The mount point: one directory for each name."""

import errno
import logging
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress

from netnsfs import linux
from netnsfs.config import Config
from netnsfs.jobs import may_block
from netnsfs.netns import interfaces, tasks
from netnsfs.netns.names import NamedNamespaces
from netnsfs.netns.nsfs import namespace_of, reopen
from netnsfs.netns.rundir import ChangeWaiter
from netnsfs.node import (
    MOUNTED_NS,
    Attributes,
    Caller,
    Directory,
    Link,
    Node,
    OneTimeLink,
)
from netnsfs.stats import Stats
from netnsfs.tree import program
from netnsfs.tree.addresses import ADDRESS, AddressesDirectory
from netnsfs.tree.callers import require_may_attach
from netnsfs.tree.ctldir import (
    PID,
    AllMetrics,
    ControlDirectory,
    LastError,
    Metrics,
    NamesDirectory,
    PidDirectory,
    Topology,
    UnnamedDirectory,
    absent_error,
)
from netnsfs.tree.directories import Directories
from netnsfs.tree.interfaces import LinksContext
from netnsfs.tree.namespace import VIEWS, MountContext, NamespaceDirectory
from netnsfs.tree.nsid_resolver import NsidResolver
from netnsfs.tree.numbers import INIT, InitLink, NumberDirectory, by_number
from netnsfs.tree.open_files import OpenFiles
from netnsfs.tree.refs import RESERVED, UNNAMED, NameRef
from netnsfs.tree.sockets import SOCKET, SocketDirectory
from netnsfs.tree.sysfs import SysfsMounts

_ROOT_INODE = 1
_RETRY_SECONDS = 1.0

# Where ip-netns(8) looks for files of a name.
_FILES_OF_NAMES = b"/etc/netns/"

log = logging.getLogger(__name__)

# A target may leave the mount and enter it again many times. The limit is the kernel's for
# links (MAXSYMLINKS, linux/namei.h).
_MAX_RETURNS = 40


def _invalid_target(why: str) -> OSError:
    return OSError(errno.EINVAL, why)


class StaleDirectory(Directory):
    """A name that stands for no network namespace: empty, and closed by its mode."""

    def __init__(self, name: bytes, identity: linux.Stat) -> None:
        self.key = (name, identity)
        self.represents = (identity.dev, identity.ino)

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR, links=2)


class Root(NamesDirectory):
    """The mount point: one directory for each name.

    Args:
        names: the run directory.
        stats: what the adapter tells of its requests.
        config: what was asked for.
    """

    key = b"/"
    writable = True

    def __init__(self, names: NamedNamespaces, stats: Stats, config: Config) -> None:
        self._names = names
        self._times = (MOUNTED_NS,) * 3
        self._mount_point = config.mount_point
        self._keep_busy = config.keep_busy
        self._keep_devices = config.keep_devices
        self._permissions = config.permissions
        owner = config.permissions.default_owner()
        self._owner = owner._replace(mode=stat.S_IFDIR | owner.mode)
        shown = VIEWS if config.views else {}
        self._opened = OpenFiles()
        links = self._links_context(config, stats) if config.views else None
        self._topology = Topology(names, config.permissions)
        context = MountContext(
            shown,
            config.permissions,
            self._opened,
            self._topology.draw_around,
            links,
            program=config.exec_path or program.installed(),
        )
        self._directories = Directories(context)
        self._unnamed = UnnamedDirectory(names, self._directories, self)
        self._ctldir = self._make_ctldir(stats, config)

    def _make_ctldir(self, stats: Stats, config: Config) -> ControlDirectory:
        names, permissions = self._names, config.permissions
        counters = (
            Metrics(names, stats, permissions),
            AllMetrics(names, stats, permissions),
        )
        last_error = LastError(stats, permissions)
        nodes: dict[bytes, Node] = {
            UNNAMED: self._unnamed,
            PID: PidDirectory(names),
            INIT: InitLink(names),
            **{links.key: links for links in by_number(names, permissions)},
            SOCKET: SocketDirectory(names, permissions),
            last_error.key: last_error,
            **{file.key: file for file in counters},
            **{file.key + b".prom": file for file in counters},
            self._topology.key: self._topology,
        }
        # It leads to interfaces, which are only where the views are.
        if config.views:
            nodes[ADDRESS] = AddressesDirectory(names, permissions)
        return ControlDirectory(nodes)

    def _links_context(self, config: Config, stats: Stats) -> LinksContext:
        return LinksContext(
            config.mount_point,
            NsidResolver(self._names),
            SysfsMounts(),
            self._resolve_directory,
            stats,
        )

    def _resolve_directory(self, path: Sequence[bytes], caller: Caller) -> NamespaceDirectory:
        """The directory of a namespace, at a path below this one.

        Raises:
            OSError: ENOENT.
        """
        found: Node | None = None
        match path:
            case [name] if name != RESERVED:
                found = self._find_name(name)
            case [ctldir, kind, name] if (ctldir, kind) == (RESERVED, UNNAMED):
                found = self._unnamed.lookup(name, caller)
            case _:
                if beyond := self._follow_number(path, caller):
                    return self._resolve_directory(beyond, caller)
        if isinstance(found, NamespaceDirectory):
            return found
        raise absent_error(b"/".join(path), "there is no such namespace")

    def revoke_what_others_remove(self, changes: ChangeWaiter) -> None:
        """Cut the open files of each namespace that loses its last name. Never returns.

        Args:
            changes: of the run directory.
        """
        while True:
            self._opened.wait_for_any()
            changes.wait()
            while not self._opened.revoke_unreachable():
                time.sleep(_RETRY_SECONDS)

    def getattr_cached(self) -> Attributes:
        try:
            self._times = self._names.directory.read_times()
        except FileNotFoundError:
            self._times = (MOUNTED_NS,) * 3
        except OSError as error:
            # The kernel asks for them before it asks for anything in the mount: an answer of a
            # moment ago is better than none.
            if error.errno not in linux.RESOURCE_ERRNOS:
                raise
        owner = self._owner
        return Attributes(owner.mode, 0, 1, *self._times, 1, owner.uid, owner.gid)

    def readdir(self) -> list[bytes]:
        # The control directory is not listed: a program that walks a tree must not walk every
        # namespace of the machine.
        return [name for name in self._names.list_names() if name != RESERVED]

    def lookup(self, name: bytes, caller: Caller) -> Node:
        if name == RESERVED:
            return self._ctldir
        return self._find_name(name)

    def _find_name(self, name: bytes) -> Node:
        known = self._directories.find_by_name(name)
        if known is not None:
            return known
        entry, namespace = self._names.inspect(name, namespace_of)
        if namespace is None:
            return StaleDirectory(name, entry.identity)
        return self._directories.get_named(
            namespace, NameRef(self._names, name, entry.identity)
        )

    def mkdir(self, name: bytes, mode: int, caller: Caller) -> Node:
        self._require_not_reserved(name)
        owner = self._permissions.owner_at_birth(mode, caller)
        namespace, identity = self._names.create(name, owner)
        node = self._directories.get_named(namespace, NameRef(self._names, name, identity))
        node.at_birth = node.attributes_of(owner or self._permissions.default_owner(), 0)
        return node

    def rmdir(self, name: bytes, caller: Caller) -> None:
        if name == RESERVED:
            raise PermissionError(errno.EPERM, "the name is the file system's own", name)
        if self._keep_busy:
            self._require_idle(name)
        if self._keep_devices:
            self._require_no_devices(name)
        self._names.remove(name)
        self._directories.note_removed(name)
        self._opened.revoke_unreachable()

    def _require_idle(self, name: bytes) -> None:
        # Of a symbolic link, only the link is removed.
        if self._names.entry_at(name).kind != "mount" or not (ns := self._names.identify(name)):
            return
        if tasks.is_busy(ns.inode):
            raise OSError(errno.EBUSY, "processes are inside (see pids): end them first", name)

    def _require_no_devices(self, name: bytes) -> None:
        # Of a symbolic link, only the link is removed. The namespace loses nothing.
        if self._names.entry_at(name).kind != "mount":
            return
        _, inside = self._names.inspect(name, interfaces.moved_in)
        if inside:
            shown = b", ".join(inside).decode(errors="backslashreplace")
            raise OSError(errno.EBUSY, f"move these interfaces elsewhere first: {shown}", name)

    def rename(
        self, name: bytes, directory: Directory, new_name: bytes, caller: Caller
    ) -> None:
        if name == RESERVED:
            return super().rename(name, directory, new_name, caller)
        if directory is not self:
            # `mv blue red`, where red exists, means red/blue.
            message = "a name is moved to a new name, not into a directory: see mv -T"
            raise PermissionError(errno.EPERM, message, name)
        return self._rename_name(name, new_name, caller)

    def _rename_name(self, name: bytes, new_name: bytes, caller: Caller) -> None:
        self._require_not_reserved(new_name)
        # The kernel keeps the directory locked: nobody but root may wait here.
        self._names.rename(name, new_name, may_retry=caller.uid == 0)
        with suppress(OSError):
            # The rename is done. Whatever goes wrong from here on must not be its answer.
            identity = self._names.entry_at(new_name).identity
            self._directories.note_renamed(name, NameRef(self._names, new_name, identity))
        self._lookup_early(new_name)
        left = _FILES_OF_NAMES + name
        if os.path.isdir(left):
            log.info("%s is not renamed along with the name", os.fsdecode(left))

    def attach(self, name: bytes, fd: int) -> None:
        """Give the namespace of `fd` a name.

        Raises:
            OSError: as `NamedNamespaces.attach`.
        """
        self._require_not_reserved(name)
        self._names.attach(name, fd)
        self._lookup_early(name)
        self._opened.revoke_unreachable()

    def _lookup_early(self, name: bytes) -> None:
        """Look a new name up, so that directories which are open learn of it at once."""
        with suppress(OSError):
            self._find_name(name)

    def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        may_block()
        require_may_attach(caller, name)
        self._require_not_reserved(name)
        if os.path.lexists(self._names.path_of(name)):
            raise FileExistsError(errno.EEXIST, "the name exists already", name)
        with linux.closing_fd(self._open_target(target, caller)) as fd:
            self.attach(name, fd)
        return OneTimeLink(target)

    def _open_target(self, target: bytes, caller: Caller) -> int:
        """Open what a link's target designates for its maker (/proc/self is theirs)."""
        path = os.path.join(self._mount_point, target)
        for _ in range(_MAX_RETURNS):
            try:
                reached = linux.open_no_xdev(path, self._names.links.avoid, caller.pid)
            except linux.CrossedMountError as error:
                # The rest of the path starts where it entered, which is the mount point only at
                # the root.
                if error.ino != _ROOT_INODE:
                    raise _invalid_target(
                        "the target goes through a bind mount of netnsfs"
                    ) from None
                if error.rest[:1] != [b".."]:
                    # The rest lies in our own mount. The kernel must not walk it: it would ask
                    # this daemon, which is waiting for it. So the names are looked up here.
                    return self._open_below(error.rest, caller)
                path = os.path.join(os.path.dirname(self._mount_point), *error.rest[1:])
                continue
            except FileNotFoundError:
                raise absent_error(b"", "the target does not exist") from None
            with linux.closing_fd(reached):
                return reopen(reached)
        raise OSError(errno.ELOOP, "the target leaves the mount too often")

    def _open_below(self, path: Sequence[bytes], caller: Caller) -> int:
        """Open the namespace that a path inside this file system designates."""
        match path:
            case [name] | [name, b"ns"] if name != RESERVED:
                return self._names.open_with_retry(name)
            case [ctldir, kind, name] | [ctldir, kind, name, b"ns"] if ctldir == RESERVED:
                if kind == UNNAMED:
                    return self._unnamed.open_namespace(name)
                if kind == PID:
                    return self._open_task(b"%d" % caller.pid if name == b"self" else name)
        if beyond := self._follow_number(path, caller):
            return self._open_below(beyond, caller)
        raise _invalid_target("the target is not a network namespace")

    def _follow_number(self, path: Sequence[bytes], caller: Caller) -> Sequence[bytes]:
        """Where a path that begins with a link from a number leads to; nothing for others."""
        match path:
            case [ctldir, kind, *rest] if ctldir == RESERVED and kind == INIT:
                above, link = [ctldir], self._ctldir.lookup(kind, caller)
            case [ctldir, kind, number, *rest] if ctldir == RESERVED:
                above, directory = [ctldir, kind], self._ctldir.lookup(kind, caller)
                if not isinstance(directory, NumberDirectory | PidDirectory):
                    return []
                link = directory.lookup(number, caller)
            case _:
                return []
        assert isinstance(link, Link)
        target = os.path.normpath(b"/".join((*above, link.target_path())))
        return [*target.split(b"/"), *rest]

    def _open_task(self, pid: bytes) -> int:
        if not pid.isdigit():
            raise absent_error(pid, "the target does not exist")
        path = b"/proc/%b/ns/net" % pid
        with linux.closing_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as task:
            return reopen(task)

    def _require_not_reserved(self, name: bytes) -> None:
        if name == RESERVED:
            raise FileExistsError(errno.EEXIST, "the name is the file system's own", name)
