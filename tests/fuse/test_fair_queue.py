"""Users take turns for a worker."""

import threading

import pytest
from conftest import wait_for

from netnsfs.fuse.fair_queue import FairQueue, QueueItem
from netnsfs.fuse.quotas import ROOT


class Item(QueueItem):
    def __init__(self, user: int, number: int = 0, target: str = "") -> None:
        super().__init__(user, target)
        self.number = number


@pytest.fixture
def turns() -> FairQueue[Item]:
    return FairQueue(non_root_limit=2)


def take(turns: FairQueue[Item]) -> Item:
    item = turns.get()
    assert item
    return item


def test_users_take_turns() -> None:
    turns: FairQueue[Item] = FairQueue(non_root_limit=100)
    for number in range(3):
        turns.put(Item(1, number))
    turns.put(Item(2, 3))
    turns.put(Item(ROOT, 4))
    turns.put(Item(2, 5))
    assert [take(turns).number for _ in range(6)] == [0, 3, 4, 1, 5, 2]


def test_what_a_user_asks_for_takes_turns() -> None:
    turns: FairQueue[Item] = FairQueue(non_root_limit=100)
    for number in range(3):
        turns.put(Item(1, number, "a"))
    turns.put(Item(1, 3, "b"))
    turns.put(Item(2, 4, "a"))
    assert [take(turns).number for _ in range(3)] == [0, 4, 3]
    turns.put(Item(1, 5, "b"))
    turns.put(Item(1, 6, "c"))
    assert [take(turns).number for _ in range(4)] == [1, 5, 6, 2]


def test_others_leave_a_worker_to_root(turns: FairQueue[Item]) -> None:
    others = [Item(user) for user in (1, 2, 3, 1)]
    for item in others:
        turns.put(item)
    taken = [take(turns), take(turns)]
    got: list[Item] = []
    worker = threading.Thread(target=lambda: got.extend(take(turns) for _ in range(3)))
    worker.start()
    root = Item(ROOT)
    turns.put(root)
    wait_for(lambda: got)
    assert got == [root]
    for item in taken:
        turns.finish(item)
        # Once is enough: its place is not given away twice.
        turns.finish(item)
    worker.join(20)
    assert {*taken, *got[1:]} == {*others}


def test_a_user_leaves_a_worker_to_others() -> None:
    turns: FairQueue[Item] = FairQueue(non_root_limit=3)
    for number in range(3):
        turns.put(Item(1, number))
    first, _ = taken = [take(turns), take(turns)]
    assert [item.number for item in taken] == [0, 1]
    other = Item(2)
    got: list[Item] = []
    worker = threading.Thread(target=lambda: got.extend(take(turns) for _ in range(2)))
    worker.start()
    turns.put(other)
    wait_for(lambda: got)
    assert got == [other]
    # The one that the other gives up is not for the first either.
    turns.finish(other)
    turns.finish(first)
    worker.join(20)
    assert [item.number for item in got[1:]] == [2]


def test_who_would_wait_is_told_so() -> None:
    turns: FairQueue[Item] = FairQueue(non_root_limit=3)
    assert turns.starts_at_once(1)
    turns.put(Item(ROOT))
    turns.put(Item(1))
    assert turns.starts_at_once(1)
    turns.put(Item(1))
    assert not turns.starts_at_once(1)
    assert turns.starts_at_once(2)
    turns.put(Item(2))
    assert not turns.starts_at_once(3)
    assert turns.starts_at_once(ROOT)
    items = [take(turns) for _ in range(4)]
    assert not turns.starts_at_once(1)
    for item in items:
        turns.finish(item)
    assert turns.starts_at_once(1)


def test_a_worker_ends(turns: FairQueue[Item]) -> None:
    turns.put(Item(1))
    turns.put_stop()
    assert turns.get()
    assert turns.get() is None


def test_nothing_is_lost_between_many_workers(turns: FairQueue[Item]) -> None:
    got: list[Item] = []

    def work() -> None:
        while item := turns.get():
            got.append(item)
            turns.finish(item)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    items = [Item(number % 7, number) for number in range(5000)]
    for item in items:
        turns.put(item)
    wait_for(lambda: len(got) == len(items))
    for _ in workers:
        turns.put_stop()
    for worker in workers:
        worker.join(20)
    assert {item.number for item in got} == {*range(5000)}
