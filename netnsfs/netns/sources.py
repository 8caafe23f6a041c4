"""Every network namespace of the machine, and how to open each."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from netnsfs.netns import tasks
from netnsfs.netns.names import NamedNamespaces


class Source(NamedTuple):
    """A network namespace, and how to open it.

    Attributes:
        inode: its number.
        name: its first name; None if it has none.
        open: returns a descriptor of it that the caller closes.
    """

    inode: int
    name: bytes | None
    open: Callable[[], int]


def each_source(
    names: NamedNamespaces, reserved: bytes, shown: Callable[[bytes], bool] | None = None
) -> Iterator[Source]:
    """All namespaces: those with a name by that name, then the others by inode number.

    Args:
        names: the run directory.
        reserved: a name that is none.
        shown: whether a name is; None for all, and for namespaces without a name too.
    """
    named = names.names_by_inode(without=reserved)
    for inode, name in sorted(named.items(), key=lambda item: item[1]):
        if shown is None or shown(name):
            yield Source(inode, name, partial(names.open_namespace, name))
    # Only users who may read everything see namespaces without a name.
    if shown is not None:
        return
    yield from sorted(
        Source(holder.inode, None, partial(holder.open, names.links.avoid))
        for holder in tasks.one_of_each(named)
    )
