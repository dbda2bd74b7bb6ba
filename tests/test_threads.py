"""Threads and pools of evaluated code: they run in its context, and keep nothing of it."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from snex_runtime import threads
from snex_runtime.interrupts import Deadline, current
from snex_runtime.namespace import here
from snex_runtime.origin import origin
from tests.support.pair import Pair, pair

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        made.server.provide(variable=VARIABLE, origin=origin, current=current)
        yield made


class TestStarted:
    """By evaluated code."""

    @pytest.mark.parametrize(
        "start",
        [
            "thread = threading.Thread(target=work)",
            "class T(threading.Thread):\n  def run(self): work()\nthread = T()",
            "thread = threading.Timer(0, work)",
        ],
        ids=["target", "subclass", "timer"],
    )
    @pytest.mark.parametrize("form", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_a_thread_inherits(self, both: Pair, start: str, form: str) -> None:
        code = (
            f"{form}import threading\nseen = []\n"
            "def work(): seen.extend([variable.get(), origin.get()[0].name, current.get()])\n"
            f"variable.set('mine')\n{start}\n"
            "thread.start()\nthread.join()\nreturn seen"
        )
        assert await both.run(code) == ["mine", both.peer.name, None]

    async def test_what_a_thread_sets_stays_with_it(self, both: Pair) -> None:
        code = (
            "import decimal, threading\nvariable.set('mine')\ndecimal.getcontext().prec = 9\n"
            "def work():\n  variable.set('its')\n  decimal.getcontext().prec = 5\n"
            "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\n"
            "return variable.get(), decimal.getcontext().prec"
        )
        assert await both.run(code) == ("mine", 9)

    async def test_a_pools_worker_runs_each_task_for_who_submitted_it(self, both: Pair) -> None:
        both.server.provide(pool=ThreadPoolExecutor(1))
        code = (
            "variable.set(value)\n"
            "def seen(): return variable.get(), origin.get()[0].name, current.get()\n"
            "return pool.submit(seen).result()"
        )
        for value in ("first", "second"):
            assert await both.run(code, value=value) == (value, both.peer.name, None)
        bare = await both.run("return pool.submit(variable.get).result()")
        assert bare == "unset"
        both.server.root["pool"].shutdown()  # type: ignore[attr-defined]

    async def test_the_loops_own_pool_as_well(self, both: Pair) -> None:
        code = (
            "import asyncio\nvariable.set(value)\n"
            "loop = asyncio.get_running_loop()\n"
            "return await loop.run_in_executor(None, variable.get), "
            "await asyncio.to_thread(variable.get)"
        )
        for value in ("first", "second"):
            assert await both.run(code, value=value) == (value, value)

    async def test_a_worker_keeps_nothing_of_the_first_who_submitted(self, both: Pair) -> None:
        large = Large()
        reference = weakref.ref(large)
        both.server.provide(pool=ThreadPoolExecutor(1), large=[large])
        await both.run("variable.set(large.pop())\npool.submit(int).result()")
        del large
        gc.collect()
        assert reference() is None
        both.server.root["pool"].shutdown()  # type: ignore[attr-defined]

    async def test_a_thread_that_has_ended_keeps_nothing(self, both: Pair) -> None:
        large = Large()
        reference = weakref.ref(large)
        both.server.provide(large=[large], threads=[])
        await both.run(
            "import threading\nvariable.set(large.pop())\n"
            "threads.append(threading.Thread(target=int))\nthreads[0].start()\nthreads[0].join()"
        )
        del large
        gc.collect()
        assert reference() is None

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="threads take a context from 3.14 on")
    async def test_a_context_that_is_given_counts(self, both: Pair) -> None:
        code = (
            "import contextvars, threading\nseen = []\nvariable.set('mine')\n"
            "thread = threading.Thread(target=lambda: seen.append(variable.get()), "
            "context=contextvars.Context())\n"
            "thread.start()\nthread.join()\nreturn seen"
        )
        assert await both.run(code) == ["unset"]

    async def test_a_thread_that_cannot_start_is_as_it_was(
        self, both: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = (
            "import threading\nthread = threading.Thread(target=int)\n"
            "thread.start()\nthread.join()\n"
            "try: thread.start()\nexcept RuntimeError: return 'run' in vars(thread)"
        )
        assert await both.run(code) is False


class Large:
    """Something that is to be let go."""


class TestOthers:
    """What is not of evaluated code is as Python has it."""

    @pytest.fixture(autouse=True)
    async def running(self, both: Pair) -> None:
        """There is a runtime."""

    @pytest.fixture(autouse=True)
    def outside(self) -> Iterator[None]:
        token = VARIABLE.set("outside")
        yield
        VARIABLE.reset(token)

    def test_threads(self) -> None:
        assert here.get() is None
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(VARIABLE.get()))
        thread.start()
        thread.join()
        inherits = getattr(sys.flags, "thread_inherit_context", 0)
        assert seen == ["outside" if inherits else "unset"]

    def test_pools(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            inherits = getattr(sys.flags, "thread_inherit_context", 0)
            assert pool.submit(VARIABLE.get).result() == ("outside" if inherits else "unset")


class TestInstall:
    async def test_it_lasts_as_long_as_a_runtime(self) -> None:
        start, submit = threading.Thread.start, ThreadPoolExecutor.submit
        async with pair() as one:
            async with pair() as two:
                assert threading.Thread.start is not start
                two.server.exit()
                assert threading.Thread.start is not start
                assert ThreadPoolExecutor.submit is not submit
            one.server.exit()
            assert threading.Thread.start is start
            assert ThreadPoolExecutor.submit is submit

    def test_what_others_put_in_place_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start = threading.Thread.start
        threads.install()

        def theirs(self: threading.Thread) -> None:
            start(self)

        try:
            monkeypatch.setattr(threading.Thread, "start", theirs)
        finally:
            threads.remove()
        assert threading.Thread.start is theirs
        monkeypatch.undo()
        threading.Thread.start = start  # type: ignore[method-assign]


def test_the_deadline_of_a_request_is_not_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a context is handed on by other means than ours, as `asyncio.to_thread` does."""
    from snex_runtime.interrupts import checkpoint

    work = Deadline(-10)
    seen: list[str] = []

    def check() -> None:
        try:
            checkpoint()
        except BaseException as error:
            seen.append(type(error).__name__)
        else:
            seen.append("went on")

    token = current.set(work)
    try:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(check,))
        thread.start()
        thread.join()
        check()
    finally:
        current.reset(token)
    assert seen == ["went on", "Interrupted"]
