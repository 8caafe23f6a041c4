"""The table of nodes: numbers, keys, and lookup counts."""

import errno
import stat

import pytest

from netnsfs.fuse.nodes import NodeEntry, NodeTable
from netnsfs.node import Attributes, Directory


class Numbered(Directory):
    def __init__(self, key: str, number: int = 0, generation: int = 0) -> None:
        self.key = key
        self.number = number
        self.generation = generation

    def getattr_cached(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o755, size=5)


@pytest.fixture
def table() -> NodeTable:
    return NodeTable(Numbered("root"))


def looked_up(table: NodeTable, node: Numbered, lookups: int = 1) -> NodeEntry:
    known = table.insert(node, 0)
    known.lookup_count += lookups
    return known


def test_the_root_is_there_and_stays(table: NodeTable) -> None:
    table.forget([(1, 1_000)])
    assert table.by_number[1] is table.root
    assert table.root.attributes.st_size == 5


def test_numbers_are_never_given_twice(table: NodeTable) -> None:
    first = looked_up(table, Numbered("a")).number
    table.forget([(first, 1)])
    assert looked_up(table, Numbered("a")).number > first >= 1 << 32


def test_a_node_is_dropped_with_its_last_lookup(table: NodeTable) -> None:
    known = looked_up(table, Numbered("a", 7), lookups=3)
    table.forget([(7, 1), (7, 1)])
    assert table.by_number[7] is table.by_key["a"] is known
    table.forget([(7, 1), (7, 1), (99, 1)])
    with pytest.raises(OSError, match="Stale") as caught:
        table.by_number[7]
    assert caught.value.errno == errno.ESTALE
    assert list(table.by_key) == ["root"]


def test_a_number_that_somebody_still_has_is_only_shown(table: NodeTable) -> None:
    old = looked_up(table, Numbered("old", 7, generation=1), lookups=2)
    new = looked_up(table, Numbered("new", 7, generation=2))
    assert table.by_number[7] is old
    assert table.by_number[new.number] is new
    new.take_attributes(new.node.getattr_cached(), None)
    assert (new.attributes.st_ino, new.shown.st_ino) == (new.number, 7)
    # The kernel is to ask, and hear of that one.
    assert new.attributes.attr_timeout == 0 < new.shown.attr_timeout
    assert new.attributes.st_mode == new.shown.st_mode == stat.S_IFDIR | 0o755
    table.forget([(7, 2), (new.number, 1)])
    assert looked_up(table, Numbered("third", 7, generation=3)).number == 7


def test_what_a_listing_still_holds_drops_nothing_else(table: NodeTable) -> None:
    old = looked_up(table, Numbered("old", 7, generation=1))
    table.forget([(7, 1)])
    new = looked_up(table, Numbered("new", 7, generation=2))
    table.drop_unused(old)
    assert table.by_number[7] is new
