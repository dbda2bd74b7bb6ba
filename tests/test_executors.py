"""Requests that run in threads: where, in which order, until when, and what becomes of others."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

import pytest

from snex_node.errors import CallTimeoutError, ProcessExitError
from snex_node.system import forks
from snex_runtime import executors, interrupts
from snex_runtime.coroutines import Work
from snex_runtime.errors import Failure
from snex_runtime.executors import SWITCH_INTERVAL, Awaiting, Counts, Pool, default_threads
from snex_runtime.interrupts import CLEANUP, Interrupted
from snex_runtime.loops import Runner
from snex_runtime.requests import NO_OPTIONS, Request
from tests.support.calling import OK, A, Caller, calling, evaluate
from tests.support.requests import Taker, Unforked, by_alias, request_of, value
from tests.support.waiting import until

THREAD = {A("executor"): A("thread")}
NAME = "import threading\nreturn threading.current_thread().name"
WAIT = "go.wait()"
SPIN = "began.set()\nwhile True: pass"
USUAL = 0.005


class Events:
    """What code in threads tells, and waits for."""

    def __init__(self) -> None:
        self.go, self.began, self.ended = (threading.Event() for _ in range(3))

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 10)
        self.began.clear()


@pytest.fixture
def events() -> Iterator[Events]:
    made = Events()
    yield made
    made.go.set()


def provide(caller: Caller, events: Events) -> None:
    caller.server.provide(go=events.go, began=events.began, ended=events.ended)


@pytest.fixture
async def caller(events: Events) -> AsyncIterator[Caller]:
    """All runs in two threads."""
    async with calling(executor="thread", threads=2) as made:
        provide(made, events)
        yield made


def counts(caller: Caller) -> dict[str, int]:
    names = "threads", "threads_busy", "threads_lost", "requests_queued", "requests_running"
    info: Any = caller.server.info()
    return {name: info[A(name)] for name in names}


class TestWhere:
    async def test_by_request(self) -> None:
        async with calling() as caller:
            main = threading.current_thread().name
            assert await caller.value(NAME) == main.encode()
            assert (await caller.eval(NAME, {}, THREAD))[1].startswith(b"snex-thread-")
            loop = {A("executor"): A("loop")}
            assert (await caller.eval(NAME, {}, loop))[1] == main.encode()

    async def test_by_environment(self) -> None:
        async with calling() as caller:
            env = await caller.env(executor=A("thread"))
            name = await caller.value(NAME, to=env)
            assert name.startswith(b"snex-thread-")
            _, name = await caller.call((A("call"), b"tests.test_executors", b"where", []), env)
            assert name.startswith(b"snex-thread-")
            loop = {A("executor"): A("loop")}
            assert not (await caller.eval(NAME, {}, loop, env))[1].startswith(b"snex")

    async def test_by_runtime(self, caller: Caller) -> None:
        assert (await caller.value(NAME)).startswith(b"snex-thread-")
        env = await caller.env(executor=A("loop"))
        assert not (await caller.value(NAME, to=env)).startswith(b"snex-")
        env = await caller.env()
        assert (await caller.value(NAME, to=env)).startswith(b"snex-thread-")
        _, name = await caller.call((A("call"), b"tests.test_executors", b"where", []))
        assert name.startswith(b"snex-thread-")

    async def test_init_stays_on_the_loop(self, caller: Caller) -> None:
        init = "import threading\nat = threading.current_thread().name"
        assert await caller.call((A("init"), init.encode(), {})) == (OK, None)
        assert not (await caller.value("return at")).startswith(b"snex-")

    @pytest.mark.parametrize("executor", [A("process"), b"x", 1])
    async def test_wrong_ones(self, caller: Caller, executor: object) -> None:
        option = {A("executor"): executor}
        code, reason = await caller.error(evaluate(b"return 1", {}, option))
        assert (code, "executor takes :loop or :thread" in reason) == ("bad_request", True)
        code, reason = await caller.error((A("make_env"), {}, option))
        assert (code, "executor takes :loop or :thread" in reason) == ("bad_request", True)


def where() -> str:
    """Called by a request."""
    return threading.current_thread().name


async def where_later() -> str:
    """Called by a request."""
    await asyncio.sleep(0)
    return where()


class TestWhatRuns:
    async def test_values_and_variables(self, caller: Caller) -> None:
        assert await caller.eval("return 6 * x", {"x": 7}) == (OK, 42)
        env = await caller.env()
        assert await caller.eval(None, {"x": 1}, to=env) == (OK, None)
        assert await caller.eval("x += y\nreturn x", {"y": 2}, to=env) == (OK, 3)

    async def test_errors(self, caller: Caller) -> None:
        code, reason = await caller.error(evaluate(b"return 1 / 0", {}))
        assert (code, reason) == ("python_runtime_error", "division by zero")
        code, reason = await caller.error(evaluate(b"return object()", {}))
        assert "Cannot serialize" in reason
        code, _ = await caller.error((A("call"), b"math", b"nosuch", []))
        assert code == "bad_request"
        code, reason = await caller.error(evaluate(b"import sys\nsys.exit('bye')", {}))
        assert reason == "bye"

    async def test_what_awaits(self, caller: Caller) -> None:
        code = f"import asyncio\nawait asyncio.sleep(0.001)\n{NAME}"
        assert (await caller.value(code)).startswith(b"snex-thread-")
        _, name = await caller.call((A("call"), b"tests.test_executors", b"where_later", []))
        assert name.startswith(b"snex-thread-")
        code, reason = await caller.error(
            evaluate(b"import asyncio\nawait asyncio.sleep(0)\nreturn 1 / 0", {})
        )
        assert reason == "division by zero"

    async def test_calls_out(self, caller: Caller) -> None:
        """They go over the node's loop, and back."""
        name = str(caller.server.node.name)
        assert (
            await caller.value(
                "return await snex.send((me, node), 1)",
                {
                    "me": "nobody",
                    "node": str(caller.node.name),
                },
            )
        ) is None
        code = "return await snex.call('math', 'sqrt', [16], node=node)"
        with pytest.raises(AssertionError, match=r"own node|itself"):
            await caller.value(code, {"node": name})

    async def test_the_loop_of_a_thread_is_kept(self) -> None:
        async with calling(executor="thread", threads=1) as caller:
            code = "import asyncio\nawait asyncio.sleep(0)\nreturn id(asyncio.get_running_loop())"
            assert await caller.value(code) == await caller.value(code)
            code = "import asyncio\nreturn asyncio.run(asyncio.sleep(0, 'own'))"
            assert await caller.value(code) == b"own"

    async def test_tasks_that_are_left_end(self, caller: Caller, events: Events) -> None:
        code = """
import asyncio
async def linger():
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        ended.set()
task = asyncio.create_task(linger())
await asyncio.sleep(0)
return "done"
"""
        assert await caller.value(code) == b"done"
        assert events.ended.is_set()

    async def test_code_that_would_end_the_loop(self, caller: Caller) -> None:
        for line in ("asyncio.get_running_loop().stop()", "call(sys.exit)"):
            code = f"""
import asyncio, sys
call = asyncio.get_running_loop().call_soon
{line}
await asyncio.sleep(0.01)
return 1
"""
            assert await caller.value(code) == 1

    async def test_contexts_stay_with_environments(self, caller: Caller) -> None:
        env = await caller.env({"variable": None})
        caller.server.environments.get(env).variables["variable"] = VARIABLE  # type: ignore[union-attr]
        assert await caller.value("variable.set('sync')", to=env) is None or True
        assert await caller.value("return variable.get()", to=env) == b"sync"
        code = (
            "import asyncio\nawait asyncio.sleep(0)\nvariable.set('async')\nawait asyncio.sleep(0)"
        )
        await caller.value(code, to=env)
        assert await caller.value("return variable.get()", to=env) == b"async"
        loop = {A("executor"): A("loop")}
        assert await caller.eval("return variable.get()", {}, loop, env) == (OK, b"async")
        assert VARIABLE.get() == "unset"

    async def test_nothing_is_kept_of_it(self, caller: Caller) -> None:
        kept: list[weakref.ref[object]] = []
        caller.server.provide(note=lambda value: kept.append(weakref.ref(value)))
        await caller.value("class Large: pass\nlarge = Large()\nnote(large)")

        def gone() -> bool:
            gc.collect()
            return kept[0]() is None

        await until(gone)


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


class TestOrder:
    async def test_one_after_another_in_an_environment(self, caller: Caller) -> None:
        env = await caller.env({"seen": []})
        for number in range(50):
            pause = "import asyncio\nawait asyncio.sleep(0)" if number % 3 else "pass"
            caller.node.send(
                env, (A("$gen_cast"), evaluate(f"{pause}\nseen.append({number})".encode(), {}))
            )
        assert await caller.value("return seen", to=env) == list(range(50))

    async def test_what_awaits_holds_the_environment(self, caller: Caller, events: Events) -> None:
        env = await caller.env()
        code = (
            "import asyncio\nbegan.set()\nwhile not go.is_set(): await asyncio.sleep(0.001)\nx = 1"
        )
        first = asyncio.ensure_future(caller.eval(code, to=env))
        await events.begun()
        second = asyncio.ensure_future(caller.eval("return x", to=env))
        await until(lambda: counts(caller)["requests_queued"] == 1)
        events.go.set()
        assert (await first, await second) == ((OK, None), (OK, 1))

    async def test_throw_away_ones_run_side_by_side(self, caller: Caller) -> None:
        caller.server.provide(meet=threading.Barrier(2))
        code = "return meet.wait(10)"
        pair = await asyncio.gather(caller.value(code), caller.value(code))
        assert sorted(pair) == [0, 1]

    async def test_environments_do_not_wait_for_each_other(
        self, caller: Caller, events: Events
    ) -> None:
        one, two = await caller.env(), await caller.env()
        first = asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}", to=one))
        await events.begun()
        assert await caller.value("return 2", to=two) == 2
        events.go.set()
        await first

    async def test_the_loop_in_an_environment_that_is_busy(
        self, caller: Caller, events: Events
    ) -> None:
        env = await caller.env({"x": 1})
        first = asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}", to=env))
        await events.begun()
        loop = {A("executor"): A("loop")}
        assert await caller.eval("x += 1\nreturn x", {}, loop, env) == (OK, 2)
        copy = await caller.env(from_=[(env, {A("except"): [b"y"]})])
        assert await caller.value("return x", to=copy) == 2
        events.go.set()
        await first
        assert await caller.value("return x", to=env) == 2


class TestTheEnd:
    async def test_code_that_computes(self, caller: Caller) -> None:
        before = time.monotonic()
        request = evaluate(SPIN.encode(), {}, {A("timeout"): 100})
        assert await caller.error(request) == ("cancelled", "timeout")
        assert time.monotonic() - before < CLEANUP
        assert await caller.value("return 1") == 1
        assert counts(caller)["threads_lost"] == 0

    async def test_code_that_awaits(self, caller: Caller, events: Events) -> None:
        code = "import asyncio\ntry: await asyncio.sleep(60)\nfinally: ended.set()"
        request = evaluate(code.encode(), {}, {A("timeout"): 100})
        assert await caller.error(request) == ("cancelled", "timeout")
        assert events.ended.is_set()

    async def test_code_that_awaits_and_computes(self, caller: Caller) -> None:
        code = "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass"
        request = evaluate(code.encode(), {}, {A("timeout"): 100})
        assert await caller.error(request) == ("cancelled", "timeout")
        code = "import asyncio\nawait asyncio.sleep(0)\nreturn 1"
        assert await caller.value(code) == 1

    async def test_code_that_catches_it(self, caller: Caller) -> None:
        code = (
            "try:\n    began.set()\n    while True: pass\n"
            "except BaseException as error: return type(error).__name__"
        )
        answer = await caller.eval(code, {}, {A("timeout"): 100})
        assert answer == (OK, b"Interrupted")

    async def test_code_that_takes_no_notice(self, caller: Caller, events: Events) -> None:
        lost = [
            asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}", {}, {A("timeout"): 100}))
            for _ in range(2)
        ]
        await asyncio.wait(lost)
        before = counts(caller)
        assert (before["threads_lost"], before["threads_busy"]) == (2, 0)
        # Others take their place, but not more than as many.
        more = [
            asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}", {}, {A("timeout"): 100}))
            for _ in range(2)
        ]
        await asyncio.wait(more)
        assert counts(caller)["threads"] == 4
        waits = asyncio.ensure_future(caller.eval("return 1"))
        await until(lambda: counts(caller)["requests_queued"] == 1)
        events.go.set()
        assert await waits == (OK, 1)
        await until(lambda: counts(caller)["threads_lost"] == 0)
        assert await caller.value("return 1") == 1
        await until(lambda: counts(caller)["threads"] <= 2)

    async def test_it_waits_for_a_thread_when_its_time_is_over(self, events: Events) -> None:
        async with calling(executor="thread", threads=1) as caller:
            provide(caller, events)
            first = asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}"))
            await events.begun()
            env = await caller.env()
            waits = [
                asyncio.ensure_future(caller.eval("return 1", {}, {A("timeout"): time}, to))
                for to, time in ((None, 100), (env, 200), (env, 100), (env, 30_000))
            ]
            for each in waits[:3]:
                _, error = await each
                assert (error[A("code")], error[A("reason")]) == ("cancelled", b"timeout")
            assert counts(caller)["requests_queued"] == 1
            events.go.set()
            await first
            assert await waits[3] == (OK, 1)
            assert counts(caller)["requests_queued"] == 0

    async def test_its_caller_gives_up(self, caller: Caller, events: Events) -> None:
        for code in (SPIN, "import asyncio\nbegan.set()\nawait asyncio.sleep(60)"):
            with pytest.raises(CallTimeoutError):
                await caller.call(evaluate(code.encode(), {}), timeout=0.2)
            await events.begun()
            await until(lambda: counts(caller)["threads_busy"] == 0)
            assert counts(caller)["threads_lost"] == 0

    async def test_it_goes_on_where_it_is_to(self, caller: Caller, events: Events) -> None:
        options = {A("on_timeout"): A("continue")}
        code = f"began.set()\n{WAIT}\nended.set()"
        with pytest.raises(CallTimeoutError):
            await caller.call(evaluate(code.encode(), {}, options), timeout=0.2)
        await events.begun()
        events.go.set()
        assert await asyncio.to_thread(events.ended.wait, 10)

    async def test_clean_up_is_interrupted_too(self, caller: Caller, events: Events) -> None:
        code = (
            "try:\n    began.set()\n    while True: pass\n"
            "finally:\n    ended.set()\n    while True: pass"
        )
        request = evaluate(code.encode(), {}, {A("timeout"): 100})
        assert await caller.error(request) == ("cancelled", "timeout")
        assert events.ended.is_set()
        await until(lambda: counts(caller)["threads_lost"] == 0)
        assert await caller.value("return 1") == 1

    async def test_the_guardian_interrupts_while_the_loop_is_blocked(
        self, caller: Caller, events: Events
    ) -> None:
        request = evaluate(
            b"try: \n    began.set()\n    while True: pass\nfinally: ended.set()",
            {},
            {A("timeout"): 100},
        )
        answer = asyncio.ensure_future(caller.error(request))
        await asyncio.sleep(0)
        until_begun = asyncio.ensure_future(events.begun())
        await until_begun
        assert events.ended.wait(10)  # on the loop, which is blocked by that
        assert await answer == ("cancelled", "timeout")

    async def test_the_runtime_stops(self, events: Events) -> None:
        async with calling(executor="thread", threads=2) as caller:
            provide(caller, events)
            cleaned = "try:\n    began.set()\n    while True: pass\nfinally: ended.set()"
            runs = asyncio.ensure_future(caller.eval(cleaned))
            await events.begun()
            awaits = asyncio.ensure_future(
                caller.eval("import asyncio\nbegan.set()\nawait asyncio.sleep(60)")
            )
            await events.begun()
            waits = asyncio.ensure_future(caller.eval("return 1"))
            await until(lambda: counts(caller)["requests_queued"] == 1)
            caller.server.exit(A("shutdown"))
            outcomes = await asyncio.gather(runs, awaits, waits, return_exceptions=True)
            assert {type(each) for each in outcomes} == {ProcessExitError}
            assert await asyncio.to_thread(events.ended.wait, 10)
            await until(lambda: not _threads_of_pools())


def _threads_of_pools() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("snex-thread-")]


class TestOverload:
    async def test_too_many_wait(self, events: Events) -> None:
        async with calling(executor="thread", threads=1, max_queue=1) as caller:
            provide(caller, events)
            env = await caller.env()
            first = asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}", to=env))
            await events.begun()
            second = asyncio.ensure_future(caller.eval("return 2"))
            await until(lambda: counts(caller)["requests_queued"] == 1)
            for to in (None, env):
                code, reason = await caller.error(evaluate(b"return 3", {}), to)
                assert code == "overloaded"
                assert reason.startswith("1 requests wait for one of 1 threads")
                assert "--max-queue" in reason
            events.go.set()
            assert (await first, await second) == ((OK, None), (OK, 2))
            assert await caller.value("return 3") == 3

    async def test_none_may_wait(self, events: Events) -> None:
        async with calling(executor="thread", threads=1, max_queue=0) as caller:
            assert await caller.value("return 1") == 1
            assert await caller.value("return 1") == 1

    async def test_it_waits_too_long(self, events: Events) -> None:
        async with calling(executor="thread", threads=1, queue_timeout=0.05) as caller:
            provide(caller, events)
            env = await caller.env()
            first = asyncio.ensure_future(caller.eval(f"began.set()\n{WAIT}", to=env))
            await events.begun()
            for to in (None, env):
                code, reason = await caller.error(evaluate(b"return 3", {}), to)
                assert code == "overloaded"
                assert reason.startswith("none of 1 threads was free within 50 ms")
            events.go.set()
            await first
            # What is given one in time is not asked again how long it waited.
            code = "import time\ntime.sleep(0.1)\nreturn 1"
            pair = await asyncio.gather(caller.eval(code, to=env), caller.eval("return 1"))
            assert pair[0] == (OK, 1)

    async def test_on_the_loop(self) -> None:
        async with calling(max_queue=1) as caller:
            caller.server.provide(go=asyncio.Event())
            first = asyncio.ensure_future(caller.eval("await go.wait()"))
            await until(lambda: counts(caller)["requests_running"] == 1)
            code, reason = await caller.error(evaluate(b"await go.wait()", {}))
            assert code == "overloaded"
            assert reason.startswith("1 requests that await are under way")
            assert await caller.value("return 1") == 1  # that waits for nothing
            caller.server.root["go"].set()  # type: ignore[attr-defined]
            await first
            assert await caller.value("await go.wait()") is None


class TestPool:
    """A pool without a runtime."""

    @pytest.fixture
    async def pool(self) -> AsyncIterator[Pool]:
        made = Pool(Unforked(), 1)
        yield made
        made.close()
        await until(lambda: not _threads_of_pools())

    def work(self, pool: Pool, function: Any) -> Work:
        request = request_of(b"h\x03w\x04eval", Taker(), by_alias())
        return pool.work(request, function, None, NO_OPTIONS)

    async def test_answers(self, pool: Pool) -> None:
        work = self.work(pool, lambda request: b"answer")
        assert work.threaded
        assert await work.awaited == b"answer"
        assert work.over
        awaiting = self.work(pool, lambda request: Awaiting(asyncio.sleep(0, 5)))
        assert value(await awaiting.awaited) == 5
        assert pool.counts == Counts(1, 0, 0, 0)

    async def test_what_is_interrupted(self, pool: Pool) -> None:
        def interrupted(request: Request) -> NoReturn:
            raise Interrupted

        with pytest.raises(Interrupted):
            await self.work(pool, interrupted).awaited

    async def test_the_interpreter_is_given_up_sooner(self, pool: Pool) -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(USUAL)
        try:
            await self.work(pool, lambda request: b"").awaited
            assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
            pool.close()
            assert sys.getswitchinterval() == pytest.approx(USUAL)
        finally:
            sys.setswitchinterval(before)

    async def test_what_users_have_set_stays(self, pool: Pool) -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(0.002)
        try:
            await self.work(pool, lambda request: b"").awaited
            pool.close()
            assert sys.getswitchinterval() == pytest.approx(0.002)
        finally:
            sys.setswitchinterval(before)

    async def test_it_is_closed(self, pool: Pool) -> None:
        pool.close()
        with pytest.raises(Failure, match="the runtime stops"):
            await self.work(pool, lambda request: b"").awaited

    async def test_the_system_has_no_threads(
        self, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(self: threading.Thread) -> NoReturn:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with caplog.at_level(logging.WARNING), pytest.raises(Failure, match="starts no thread"):
            await self.work(pool, lambda request: b"").awaited
        assert "no more than 0 of 1 threads" in caplog.text
        assert pool.counts == Counts(0, 0, 0, 0)

    async def test_an_interruption_outside_of_all_tasks(
        self, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then nobody knows what the loop has left, and the next request has another."""
        loops: list[object] = []

        def look(request: Request) -> Awaiting:
            async def looking() -> None:
                loops.append(asyncio.get_running_loop())

            return Awaiting(looking())

        await self.work(pool, look).awaited

        run_to_its_end = Runner.run

        def run(self: Any, work: Any) -> NoReturn:
            run_to_its_end(self, work)
            raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(Runner, "run", run)
            lost = self.work(pool, lambda request: Awaiting(asyncio.sleep(0)))
            with pytest.raises(Interrupted):
                await lost.awaited
        await self.work(pool, look).awaited
        assert loops[0] is not loops[1]

    def test_its_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cores, threads in ((None, 5), (2, 6), (64, 32)):
            monkeypatch.setattr(os, "cpu_count", lambda found=cores: found)
            assert default_threads() == threads


class Ended(BaseException):
    """A forked child would have ended here."""


class Forked:
    """A node in a forked child."""

    forked = True


class TestForked:
    """What happens in a forked child; `tests.interop.test_forks` has real ones."""

    @pytest.fixture(autouse=True)
    def ends(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        ends: list[str] = []

        def end(error: BaseException | None = None) -> NoReturn:
            ends.append("done" if error is None else f"{error!r}")
            raise Ended

        def wait() -> NoReturn:
            ends.append("waits")
            raise Ended

        monkeypatch.setattr(forks, "end_child", end)
        monkeypatch.setattr(forks, "end_waiting_child", wait)
        return ends

    async def test_it_ends(self, ends: list[str]) -> None:
        node = Forked()
        request = request_of(b"h\x03w\x04eval", Taker(), by_alias())
        job = executors.Job(request, lambda request: b"", None, node)
        work = Work(request, asyncio.sleep(0), threaded=True)
        job.begin(work)
        with pytest.raises(Ended):
            job.run(None)  # type: ignore[arg-type]
        assert ends[0] == "done"
        with pytest.raises(Ended):
            await job.finish(asyncio.sleep(0))
        with pytest.raises(Ended):
            await executors._ending_children(node, asyncio.sleep(0))
        assert ends[-1] == "waits"
        work.awaited.close()


def test_boundaries() -> None:
    assert set(executors.BOUNDARIES) <= interrupts._boundaries
