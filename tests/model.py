"""What a run directory holds, and so what every mount of it must show: a model in plain data.

It says what mkdir, rmdir, mv, ln -s and `ip netns` do to names and namespaces, and with which
errno they refuse. `test_model` does the same to the kernel and compares.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

RESERVED = b".netnsfs"
NAME_MAX = 255

_LINKS = 40


@dataclass(eq=False)
class Space:
    """A network namespace.

    Attributes:
        inode, id: its numbers.
        nsid: None if it has none.
        marker: the value of a sysctl of its own.
        pids: its members; None if others than ours may be in it.
        several: it has had several names at a time.
    """

    inode: int
    id: int
    nsid: int | None = None
    marker: int = 4096
    pids: list[int] | None = field(default_factory=list)
    several: bool = False


@dataclass(eq=False)
class Entry:
    """What stands under a name.

    Attributes:
        kind: "file", "directory" or "link".
        content: of a file, or where a link leads.
        stack: what is mounted on a file, the last on top; None for a namespace of another kind.
    """

    kind: str
    content: bytes = b""
    stack: list[Space | None] = field(default_factory=list)


class Model:
    """The names in one run directory.

    Args:
        run: its path.
        home: the namespace that `/proc/self` is in.
    """

    def __init__(self, run: bytes, home: Space) -> None:
        self.run = run
        self.home = home
        self.entries: dict[bytes, Entry] = {}
        self.processes: dict[int, Space] = {}

    # What is to be seen

    def end_of(self, name: bytes) -> Entry | Space | None:
        """What a name leads to through links."""
        for _ in range(_LINKS):
            entry = self.entries.get(name)
            if entry is None or entry.kind != "link":
                return entry
            if entry.content.startswith(b"/proc/"):
                return self.of_task(entry.content.split(b"/")[2])
            name = entry.content.removeprefix(self.run + b"/")
        return None

    def of_task(self, pid: bytes) -> Space | None:
        return self.home if pid == b"self" else self.processes.get(int(pid))

    def space(self, name: bytes) -> Space | None:
        """The namespace that a name stands for."""
        end = self.end_of(name)
        if isinstance(end, Entry):
            return end.stack[-1] if end.stack else None
        return end

    def names_of(self, space: Space) -> list[bytes]:
        return sorted(name for name in self.entries if self.space(name) is space)

    def visible(self) -> dict[bytes, Space | None]:
        """The directories of the mount."""
        return {name: self.space(name) for name in self.entries if name != RESERVED}

    def link_of(self, space: Space) -> bytes:
        """Where the link of a member leads."""
        names = [name for name in self.names_of(space) if name != RESERVED]
        return b"../../" + names[0] if names else b"../unnamed/%d" % space.inode

    def stacked(self) -> Iterator[tuple[bytes, Space | None]]:
        """All mounts: path and namespace."""
        for name, entry in self.entries.items():
            for space in entry.stack:
                yield self.run + b"/" + name, space

    def spaces(self) -> set[Space]:
        """All that is alive."""
        found = {self.home, *self.processes.values()}
        return found.union(*(filter(None, entry.stack) for entry in self.entries.values()))

    def line(self, name: bytes) -> bytes:
        """A line of `ip netns list`."""
        space = self.space(name)
        shown = b"" if space is None or space.nsid is None else b" (id: %d)" % space.nsid
        return name + shown + b"\n"

    # What is refused

    def refuses_new(self, name: bytes) -> str:
        if len(name) > NAME_MAX:
            return "ENAMETOOLONG"
        return "EEXIST" if name == RESERVED or name in self.entries else ""

    def refuses_rmdir(self, name: bytes) -> str:
        if len(name) > NAME_MAX:
            return "ENAMETOOLONG"
        entry = self.entries.get(name)
        if name == RESERVED:
            return "EPERM"
        if entry is None:
            return "ENOENT"
        kept = entry.kind == "directory" or (entry.kind == "file" and entry.content)
        return "EPERM" if kept and not entry.stack else ""

    def refuses_rename(self, old: bytes, new: bytes) -> str:
        if len(old) > NAME_MAX or len(new) > NAME_MAX:
            return "ENAMETOOLONG|ENOENT"
        if old == RESERVED:
            return "" if new == RESERVED else "EPERM"
        entry = self.entries.get(old)
        if entry is None:
            return "ENOENT"
        if old == new:
            return ""
        live = entry.kind == "link" or (entry.stack and entry.stack[-1])
        return self.refuses_new(new) or ("" if live else "EINVAL")

    def refuses_nsid(self, space: Space, number: int | None) -> str:
        taken = number is not None and number in {other.nsid for other in self.spaces()}
        return "EEXIST" if taken or space.nsid is not None else ""

    def refuses_target(self, name: bytes) -> str:
        """Of a link to a name through the mount."""
        if name == RESERVED:
            return "EINVAL"
        if name not in self.entries:
            return "ENAMETOOLONG" if len(name) > NAME_MAX else "ENOENT"
        if self.space(name):
            return ""
        return "EINVAL" if self.entries[name].kind != "link" else "EINVAL|ENOENT|ELOOP"

    # What is done

    def bind(self, name: bytes, space: Space) -> None:
        """A new name."""
        self.entries[name] = Entry("file", stack=[space])

    def rename(self, old: bytes, new: bytes) -> None:
        entry = self.entries.pop(old)
        del entry.stack[:-1]
        self.entries[new] = entry

    def ip_delete(self, name: bytes) -> bool:
        """What `ip netns delete` does. Whether it is content."""
        end = self.end_of(name)
        if isinstance(end, Entry) and end.stack:
            end.stack.pop()
        entry = self.entries.get(name)
        if entry is None or entry.kind == "directory" or entry.stack:
            return False
        del self.entries[name]
        return True
