"""Functions of lists, called with one item each by many."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

import snex
from snex_runtime import interface
from snex_runtime.batches import MAX_SIZE, Batched, batched
from tests.support.pair import Pair, pair

T = TypeVar("T")
R = TypeVar("R")

LONG = 60.0
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture(autouse=True)
def no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "_backend", None)


@pytest.fixture
def calls() -> list[list[int]]:
    return []


def doubling(calls: list[list[int]]) -> Callable[[list[int]], list[int]]:
    def double(items: list[int]) -> list[int]:
        calls.append(list(items))
        return [item * 2 for item in items]

    return double


async def begin(batch: Batched[T, R], item: T) -> asyncio.Task[R]:
    """Call it, up to where it waits for others."""
    task = asyncio.create_task(batch(item))
    await asyncio.sleep(0)
    return task


async def answers(batch: Batched[Any, Any], *items: object) -> list[Any]:
    return await asyncio.gather(*map(batch, items), return_exceptions=True)


class TestBatches:
    async def test_calls_that_come_together_are_one(self, calls: list[list[int]]) -> None:
        batch = batched(max_size=32, max_wait=0.02)(doubling(calls))
        assert await answers(batch, 1, 2, 3) == [2, 4, 6]
        assert calls == [[1, 2, 3]]

    async def test_a_full_one_does_not_wait(self, calls: list[list[int]]) -> None:
        batch = batched(max_size=2, max_wait=LONG)(doubling(calls))
        assert await answers(batch, 1, 2, 3, 4) == [2, 4, 6, 8]
        assert calls == [[1, 2], [3, 4]]

    async def test_one_of_a_single_item(self, calls: list[list[int]]) -> None:
        batch = batched(max_size=1, max_wait=LONG)(doubling(calls))
        assert await answers(batch, 1, 2) == [2, 4]
        assert calls == [[1], [2]]

    async def test_those_of_one_turn_need_no_time(self, calls: list[list[int]]) -> None:
        batch = batched(max_wait=0)(doubling(calls))
        assert await answers(batch, 1, 2) == [2, 4]
        assert calls == [[1, 2]]

    async def test_a_function_that_awaits_and_takes_no_arguments_of_its_decorator(self) -> None:
        @batched
        async def double(items: list[int]) -> list[int]:
            """Doubles."""
            await asyncio.sleep(0)
            return [item * 2 for item in items]

        value: int = await double(4)  # as mypy sees it, too
        assert value == 8
        assert double.__doc__ == "Doubles."
        assert repr(double).startswith("<snex.batched TestBatches.test_a_function")
        assert (double.max_size, double.max_wait, double.isolate) == (32, 0.005, True)

    async def test_a_callable_without_a_name(self) -> None:
        class Doubles:
            def __call__(self, items: list[int]) -> list[int]:
                return [item * 2 for item in items]

        batch = batched(Doubles())
        assert await batch(1) == 2
        assert repr(batch).endswith(".Doubles>")

    async def test_what_the_function_does_to_its_list_is_no_matter(self) -> None:
        def pops(items: list[int]) -> list[int]:
            return [items.pop() for _ in range(len(items))]

        assert await answers(batched(max_wait=0)(pops), 1, 2) == [2, 1]

    async def test_it_runs_in_the_context_of_the_first_caller(self) -> None:
        def read(items: list[int]) -> list[str]:
            return [VARIABLE.get() for _ in items]

        batch = batched(max_wait=0)(read)

        async def call(value: str) -> str:
            VARIABLE.set(value)
            return await batch(1)

        found = await asyncio.gather(*map(call, ("first", "second")))
        assert found == ["first", "first"]

    async def test_the_next_gathers_while_one_is_under_way(self) -> None:
        gate, both = asyncio.Event(), asyncio.Event()
        begun: list[list[int]] = []

        @batched(max_size=2, max_wait=LONG)
        async def wait(items: list[int]) -> list[int]:
            begun.append(items)
            if len(begun) == 2:
                both.set()
            await gate.wait()
            return items

        tasks = [asyncio.create_task(answers(wait, n, n + 1)) for n in (1, 3)]
        await both.wait()
        gate.set()
        assert await asyncio.gather(*tasks) == [[1, 2], [3, 4]]


class TestFailures:
    async def test_an_exception_in_the_list_is_raised_for_its_caller(self) -> None:
        def halve(items: list[int]) -> list[int | Exception]:
            return [ValueError(f"odd {item}") if item % 2 else item // 2 for item in items]

        two, three = await answers(batched(max_wait=0)(halve), 2, 3)
        assert two == 1
        assert isinstance(three, ValueError)
        assert str(three) == "odd 3"

    @pytest.mark.parametrize("isolate", [True, False])
    async def test_one_that_makes_the_function_raise(
        self, calls: list[list[int]], isolate: bool
    ) -> None:
        def divide(items: list[int]) -> list[int]:
            calls.append(list(items))
            return [6 // item for item in items]

        batch = batched(max_wait=0, isolate=isolate)(divide)
        one, none, three = await answers(batch, 1, 0, 3)
        assert isinstance(none, ZeroDivisionError)
        if isolate:
            assert (one, three) == (6, 2)
            assert calls == [[1, 0, 3], [1], [0], [3]]
        else:
            assert one is three is none
            assert calls == [[1, 0, 3]]

    async def test_of_one_item_are_not_tried_again(self, calls: list[list[int]]) -> None:
        def fail(items: list[int]) -> list[int]:
            calls.append(items)
            raise ValueError("bad")

        with pytest.raises(ValueError, match="bad"):
            await batched(fail)(1)
        assert calls == [[1]]

    @pytest.mark.parametrize(
        ("returned", "error", "text"),
        [
            ([1], ValueError, "one result for each item: 1 for 2"),
            (None, TypeError, "one result for each item, not None"),
            ({1: 2, 3: 4}, TypeError, "one result for each item, not {1: 2, 3: 4}"),
            ("ab", TypeError, "not 'ab'"),
        ],
    )
    async def test_what_is_no_list_of_that_length(
        self, returned: Any, error: type[Exception], text: str
    ) -> None:
        def wrong(items: list[int]) -> Any:
            return returned

        for answer in await answers(batched(max_wait=0)(wrong), 1, 2):
            assert type(answer) is error
            assert text in str(answer)

    async def test_stop_iteration_is_a_runtime_error(self) -> None:
        def stop(items: list[int]) -> list[int]:
            raise StopIteration

        def stops(items: list[int]) -> list[int | Exception]:
            return [StopIteration() for _ in items]

        for batch in (batched(max_wait=0)(stop), batched(max_wait=0)(stops)):
            for answer in await answers(batch, 1, 2):
                assert isinstance(answer, RuntimeError)
                assert isinstance(answer.__cause__, StopIteration)

    async def test_what_is_to_end_the_program_ends_the_call(self) -> None:
        def leave(items: list[int]) -> list[int]:
            raise SystemExit(3)

        batch = batched(leave)

        async def call() -> object:
            try:
                return await batch(1)
            except SystemExit as error:
                return error.code

        assert await call() == 3

    async def test_a_function_that_is_cancelled_by_others_cancels_its_callers(self) -> None:
        async def cancelled(items: list[int]) -> list[int]:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await batched(cancelled)(1)


class TestCancelled:
    async def test_who_is_cancelled_before_is_not_in_the_batch(
        self, calls: list[list[int]]
    ) -> None:
        batch = batched(max_size=3, max_wait=LONG)(doubling(calls))
        first, second = await begin(batch, 1), await begin(batch, 2)
        first.cancel()
        await asyncio.wait([first])
        assert await batch(3) == 6
        assert await second == 4
        assert calls == [[2, 3]]

    async def test_a_batch_of_nobody_is_none(self, calls: list[list[int]]) -> None:
        batch = batched(max_wait=0.01)(doubling(calls))
        task = await begin(batch, 1)
        task.cancel()
        await asyncio.wait([task])
        over = asyncio.Event()  # set after the time of the batch, on the same loop
        asyncio.get_running_loop().call_later(0.05, over.set)
        await over.wait()
        assert await batch(2) == 4
        assert calls == [[2]]

    async def test_the_call_goes_on_for_the_others_and_not_for_nobody(self) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        @batched(max_size=2, max_wait=LONG)
        async def wait(items: list[int]) -> list[int]:
            begun.set()
            try:
                await asyncio.sleep(LONG)
            finally:
                ended.set()
            return items

        tasks = [await begin(wait, n) for n in (1, 2)]
        await begun.wait()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        assert not ended.is_set()
        tasks[1].cancel()
        await asyncio.wait_for(ended.wait(), 5)

    async def test_who_is_cancelled_is_not_run_alone(self, calls: list[list[int]]) -> None:
        batches: list[asyncio.Task[Any]] = []

        @batched(max_size=2, max_wait=LONG)
        async def fail(items: list[int]) -> list[int]:
            calls.append(items)
            batches[0].cancel()
            await asyncio.sleep(0)
            raise ValueError

        batches += [asyncio.create_task(fail(n)) for n in (1, 2)]
        first, second = await asyncio.gather(*batches, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert isinstance(second, ValueError)
        assert calls == [[1, 2], [2]]


class TestOtherThreads:
    async def test_a_thread_waits_for_its_result(self, calls: list[list[int]]) -> None:
        batch = batched(max_size=2, max_wait=LONG)(doubling(calls))
        first = await begin(batch, 1)
        assert await asyncio.to_thread(batch.sync, 2) == 4
        assert await first == 2
        assert calls == [[1, 2]]

    async def test_another_loop_awaits_it(self, calls: list[list[int]]) -> None:
        batch = batched(max_size=2, max_wait=LONG)(doubling(calls))
        first = await begin(batch, 1)
        assert await asyncio.to_thread(asyncio.run, answers(batch, 2)) == [4]
        assert await first == 2

    async def test_an_error_reaches_a_thread(self) -> None:
        def fail(items: list[int]) -> list[int]:
            raise TimeoutError("its own")

        batch = batched(fail)
        with pytest.raises(TimeoutError, match="its own"):
            await batch(1)
        with pytest.raises(TimeoutError, match="its own"):
            await asyncio.to_thread(batch.sync, 1, 5.0)

    async def test_a_thread_does_not_wait_for_longer_than_it_will(self) -> None:
        ended = asyncio.Event()

        @batched(max_wait=0)
        async def wait(items: list[int]) -> list[int]:
            try:
                await asyncio.sleep(LONG if items == [2] else 0)
            finally:
                if items == [2]:
                    ended.set()
            return items

        assert await wait(1) == 1
        with pytest.raises(TimeoutError, match=r"no result within 0\.1 s"):
            await asyncio.to_thread(wait.sync, 2, 0.1)
        await asyncio.wait_for(ended.wait(), 5)

    async def test_the_loop_does_not_wait_for_itself(self) -> None:
        batch = batched(doubling([]))
        with pytest.raises(RuntimeError, match="await it instead"):
            batch.sync(1)

    def test_without_a_loop_there_is_nothing_to_run_on(self) -> None:
        with pytest.raises(RuntimeError, match=r"no event loop that <snex\.batched"):
            batched(doubling([])).sync(1)

    def test_the_next_loop_takes_the_place_of_one_that_has_ended(
        self, calls: list[list[int]]
    ) -> None:
        batch = batched(max_wait=0)(doubling(calls))
        assert asyncio.run(answers(batch, 1)) == [2]
        assert asyncio.run(answers(batch, 2)) == [4]

    async def test_a_forked_child_has_a_loop_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, calls: list[list[int]]
    ) -> None:
        batch = batched(max_wait=0)(doubling(calls))
        assert await batch(1) == 2
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        loop = await asyncio.to_thread(asyncio.run, answers(batch, 2))
        assert loop == [4]

    async def test_many_threads(self, calls: list[list[int]]) -> None:
        batch = batched(max_size=8, max_wait=0.002)(doubling(calls))
        await batch(0)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            loop = asyncio.get_running_loop()
            waiting = [loop.run_in_executor(pool, batch.sync, n) for n in range(200)]
            assert await asyncio.gather(*waiting) == [n * 2 for n in range(200)]
        assert sorted(n for call in calls for n in call) == [0, *range(200)]


class TestArguments:
    @pytest.mark.parametrize("size", [0, -1, 1.5, True, MAX_SIZE + 1])
    def test_sizes_that_are_none(self, size: Any) -> None:
        with pytest.raises(ValueError, match="max_size is a number of items, 1 to 100000"):
            batched(max_size=size)

    @pytest.mark.parametrize("wait", [-1, float("inf"), float("nan")])
    def test_times_that_are_none(self, wait: float) -> None:
        with pytest.raises(ValueError, match="max_wait is a number of seconds"):
            batched(max_wait=wait)

    def test_what_is_no_function(self) -> None:
        with pytest.raises(TypeError, match="a function is batched, not 5"):
            batched(max_size=1)(5)  # type: ignore[arg-type]

    def test_it_is_in_snex(self) -> None:
        assert snex.batched is batched
        assert snex.interface.batched is batched
        assert snex.Batched is Batched


DEFINE = """
import threading

calls = []

@snex.batched(max_size=3, max_wait=60)
def double(items):
    calls.append((threading.current_thread() is threading.main_thread(), len(items)))
    return [item * 2 for item in items]
"""


class TestEvaluated:
    @pytest.fixture
    async def both(self) -> AsyncIterator[Pair]:
        async with pair() as made:
            yield made

    async def test_evaluations_share_calls(self, both: Pair) -> None:
        assert (await both.call("init", DEFINE, {}))[0] == "ok"
        code = "return await double(n)"
        assert await asyncio.gather(*(both.run(code, n=n) for n in range(3))) == [0, 2, 4]
        assert await both.run("return calls") == [(True, 3)]

    async def test_a_thread_of_one_joins_in_on_the_node_s_loop(self, both: Pair) -> None:
        assert (await both.call("init", DEFINE, {}))[0] == "ok"
        in_thread = "import asyncio\nreturn await asyncio.to_thread(double.sync, 5)"
        elsewhere = "import asyncio\nreturn await asyncio.to_thread(asyncio.run, double(6))"
        both_codes = (in_thread, elsewhere, "return await double(7)")
        found = await asyncio.gather(*(both.run(code) for code in both_codes))
        assert found == [10, 12, 14]
        assert await both.run("return calls") == [(True, 3)]

    async def test_one_that_is_out_of_time_is_out_of_the_batch(self, both: Pair) -> None:
        assert (await both.call("init", DEFINE, {}))[0] == "ok"
        code = "return await double(n)"
        late = await both.call("eval", code, {"n": 1}, {"timeout": 50})
        assert late[1]["reason"] == "timeout"
        found = await asyncio.gather(*(both.run(code, n=n) for n in (2, 3)))
        assert found == [4, 6]
        assert await both.run("return calls") == [(True, 2)]

    async def test_the_time_of_one_does_not_interrupt_the_call(self, both: Pair) -> None:
        blocks = (
            "import time\n@snex.batched(max_size=2, max_wait=60)\n"
            "def blocks(items):\n  time.sleep(1)\n  return items\n"
        )
        assert (await both.call("init", blocks, {}))[0] == "ok"
        code = "return await blocks(n)"
        hasty = both.call("eval", code, {"n": 1}, {"timeout": 100})
        found = await asyncio.gather(hasty, both.run(code, n=2))
        assert found[1] == 2
