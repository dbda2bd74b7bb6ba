"""Handles: what they keep, and that it goes with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Node, Process
from snex_node.processes.process import DOWN, NORMAL
from snex_node.wire.terms import Atom, Pid
from snex_runtime.handles import Handles
from tests.support.tied import monitors_of
from tests.support.waiting import until

A = Atom


class Thing:
    """Something that is kept."""

    def __init__(self, handles: Handles) -> None:
        self.handles = handles
        self.handle: Pid | None = None
        self.ended: list[object] = []

    def exit(self, reason: object) -> None:
        self.ended.append(reason)
        self.handles.release(self)


class Keeper(Process):
    """The process that monitors handles."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.handles = Handles(self)
        self.others: list[Any] = []

    def message_received(self, message: object) -> None:
        assert isinstance(message, tuple)
        if not self.handles.down(message):
            self.others.append(message)


@pytest.fixture
async def keeper() -> AsyncIterator[Keeper]:
    async with Node("kept@127.0.0.1", cookie="x", epmd="none", listen=None) as node:
        yield Keeper(node)


def things(keeper: Keeper, count: int) -> list[Thing]:
    return [Thing(keeper.handles) for _ in range(count)]


async def test_all_that_one_keeps_goes_with_it(keeper: Keeper) -> None:
    handle = Process(keeper.node)
    kept = things(keeper, 3)
    for each in kept:
        keeper.handles.set(each, handle.pid)
        keeper.handles.set(each, handle.pid)
    assert len(monitors_of(keeper)) == 1
    handle.exit(A("boom"))
    await until(lambda: all(each.ended for each in kept))
    assert [each.ended for each in kept] == [[NORMAL]] * 3
    assert [each.handle for each in kept] == [None] * 3
    assert not monitors_of(keeper)


async def test_the_last_one_takes_the_monitor_along(keeper: Keeper) -> None:
    handle = Process(keeper.node)
    one, two = things(keeper, 2)
    keeper.handles.set(one, handle.pid)
    keeper.handles.set(two, handle.pid)
    one.exit(NORMAL)
    assert len(monitors_of(keeper)) == 1
    two.exit(NORMAL)
    two.exit(NORMAL)
    assert not monitors_of(keeper)
    handle.exit()
    assert one.ended == [NORMAL]


async def test_another_handle(keeper: Keeper) -> None:
    first, second = Process(keeper.node), Process(keeper.node)
    (it,) = things(keeper, 1)
    keeper.handles.set(it, first.pid)
    keeper.handles.set(it, second.pid)
    first.exit()
    assert it.ended == []
    keeper.handles.set(it, None)
    second.exit()
    assert it.ended == []
    assert not monitors_of(keeper)


async def test_a_handle_that_has_ended_keeps_nothing(keeper: Keeper) -> None:
    handle = Process(keeper.node)
    handle.exit()
    (it,) = things(keeper, 1)
    keeper.handles.set(it, handle.pid)
    await until(lambda: it.ended == [NORMAL])


async def test_a_node_that_is_lost_is_told_as_that(keeper: Keeper) -> None:
    (it,) = things(keeper, 1)
    handle = Pid("nowhere@127.0.0.1", 1, 0, 5)
    keeper.handles.set(it, handle)
    await until(lambda: it.ended == ["noconnection"])


async def test_other_messages_are_about_no_handle(keeper: Keeper) -> None:
    ref = keeper.node.make_ref()
    pid = Process(keeper.node).pid
    for what in (pid, ("name", "node")):
        assert not keeper.handles.down((DOWN, ref, A("process"), what, NORMAL))
    assert not keeper.handles.down((A("other"), 1, 2, pid, 3))
