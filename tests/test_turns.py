"""The turns of the event loop that a node gets."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from snex_node import NodeStartError
from snex_node.system.turns import Turns

WHO = contextvars.ContextVar("WHO", default="nobody")


async def test_nothing_before_it_begins() -> None:
    turns = Turns("py@host")
    assert not turns.running
    work = asyncio.sleep(0)
    with pytest.raises(NodeStartError, match="py@host is not running: start it first"):
        turns.run(work)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        await work  # it was closed, and nobody is warned that it was never awaited
    with pytest.raises(NodeStartError):
        turns.call_soon(print)
    with pytest.raises(NodeStartError):
        turns.require()


async def test_calls_have_turns_of_their_own() -> None:
    turns = Turns("py@host")
    turns.begin()
    turns.require()
    seen: list[object] = []
    turns.call_soon(seen.append, 1)
    assert seen == []
    await turns.next()
    assert seen == [1]
    turns.end()


async def test_calls_from_other_threads() -> None:
    turns = Turns("py@host")
    turns.begin()
    assert turns.here
    seen: list[object] = []
    called = asyncio.Event()

    def note() -> None:
        seen.append(threading.current_thread())
        called.set()

    def elsewhere() -> None:
        seen.append(turns.here)
        turns.call_soon(note)

    await asyncio.to_thread(elsewhere)
    await asyncio.wait_for(called.wait(), 5)
    assert seen == [False, threading.current_thread()]
    turns.end()


async def test_tasks_run_in_the_context_in_which_it_began() -> None:
    turns = Turns("py@host")
    WHO.set("the node")
    turns.begin()
    WHO.set("a caller")

    async def ask() -> str:
        return WHO.get()

    assert await turns.run(ask()) == "the node"
    turns.end()


async def test_tasks_end_with_it() -> None:
    turns = Turns("py@host")
    turns.begin()
    late: list[BaseException] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                turns.run(asyncio.sleep(0))
            except NodeStartError as error:
                late.append(error)

    task = turns.run(wait())
    await turns.next()
    await turns.end_tasks()
    assert task.cancelled()
    assert len(late) == 1, "what begins while it ends would not be cancelled"
    assert turns.running
    turns.end()
    assert not turns.running
    turns.begin()  # it may be started again
    await turns.run(asyncio.sleep(0))
    turns.end()
