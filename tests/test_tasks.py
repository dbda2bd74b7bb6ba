"""Tasks of the library: code that cancels whatever it finds does not find them."""

from __future__ import annotations

import asyncio

import pytest

from snex_node.system import tasks


async def seven() -> int:
    await asyncio.sleep(0)
    return 7


async def cancel_all() -> int:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    return len(others)


@pytest.mark.both_loops
class TestStart:
    async def test_it_is_not_found(self) -> None:
        task = tasks.start(seven())
        assert task not in asyncio.all_tasks()
        assert await cancel_all() == 0
        assert await task == 7

    async def test_the_loop_may_be_given(self) -> None:
        task = tasks.start(seven(), asyncio.get_running_loop())
        assert await task == 7

    async def test_it_can_be_cancelled_by_who_started_it(self) -> None:
        task = tasks.start(seven())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_task_is_found_until_it_is_hidden() -> None:
    task = asyncio.create_task(seven())
    assert task in asyncio.all_tasks()
    tasks.hide(task)
    assert task not in asyncio.all_tasks()
    assert await task == 7


async def test_one_that_is_left_cancelled_is_found_again() -> None:
    cleaned: list[str] = []

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("up")

    task, other = tasks.start(cleans_up()), tasks.start(seven())
    await asyncio.sleep(0)
    task.cancel()
    tasks.leave(task)
    assert tasks.is_left(task)
    assert not tasks.is_left(other)
    # Who ends the loop waits for what it finds, and need not cancel it again.
    assert asyncio.all_tasks() == {task, asyncio.current_task()}
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    assert cleaned == ["up"]
    await other
