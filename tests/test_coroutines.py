"""Requests that have something to await: what ends them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import time
import weakref
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, NoReturn

import pytest

from snex_node.errors import CallTimeoutError, NodeError, ProcessExitError
from snex_node.system import forks
from snex_node.wire.gen import From
from snex_node.wire.terms import Pid, Reference
from snex_runtime import coroutines
from snex_runtime.coroutines import Coroutines, MayBeForked, Work
from snex_runtime.interrupts import Deadline, Interrupted
from snex_runtime.origin import origin
from snex_runtime.requests import EvalOptions
from tests.support.calling import (
    OK,
    A,
    Caller,
    calling,
    evaluate,
)
from tests.support.requests import Sent, Taker, Unforked, by_alias, code_of, request_of, value
from tests.support.waiting import until

EAGER = sys.version_info >= (3, 12)
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


@pytest.fixture
async def started(caller: Caller) -> Caller:
    """A caller that knows when code has begun to wait: ``began.set()`` in that code."""
    caller.server.provide(began=asyncio.Event(), ended=asyncio.Event(), asyncio=asyncio)
    return caller


FINALLY = """
began.set()
try:
    await asyncio.sleep(60)
finally:
    ended.set()
"""


class TestGivingUp:
    async def test_a_caller_whose_time_is_over(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(FINALLY.encode(), {}), timeout=0.2)
        gave_up = time.monotonic()
        await asyncio.wait_for(root["ended"].wait(), 5)
        assert time.monotonic() - gave_up < 0.1
        await until(lambda: started.server.info()[A("requests_running")] == 0)

    async def test_a_caller_that_is_lost_with_its_node(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        call = asyncio.ensure_future(started.eval(FINALLY))
        await root["began"].wait()
        started.node.disconnect(str(started.server.node.name))
        await asyncio.wait_for(root["ended"].wait(), 5)
        with pytest.raises(ProcessExitError):
            await call

    async def test_work_that_goes_on(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        root["go"] = asyncio.Event()
        code = b"began.set()\nawait go.wait()\nended.set()"
        options = {A("on_timeout"): A("continue")}
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(code, {}, options), timeout=0.2)
        assert await started.call(A("ping")) == A("pong")
        root["go"].set()
        await asyncio.wait_for(root["ended"].wait(), 5)

    async def test_one_caller_s_giving_up_is_not_another_s(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        root["go"] = asyncio.Event()
        other = asyncio.ensure_future(started.eval("await go.wait()\nreturn 1"))
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(FINALLY.encode(), {}), timeout=0.1)
        await asyncio.wait_for(root["ended"].wait(), 5)
        root["go"].set()
        assert await other == (OK, 1)

    @pytest.mark.parametrize("turns", range(6))
    async def test_before_the_work_has_begun(self, started: Caller, turns: int) -> None:
        """The request and its withdrawal may arrive in one read."""
        for _ in range(20):
            call = asyncio.ensure_future(started.eval("await asyncio.sleep(60)"))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
        await until(lambda: started.server.info()[A("requests_running")] == 0)
        assert await started.value("return 1") == 1

    async def test_in_an_environment(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        env = await started.env()
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(FINALLY.encode(), {}), to=env, timeout=0.2)
        await asyncio.wait_for(root["ended"].wait(), 5)
        assert await started.call(A("ping"), to=env) == A("pong")

    async def test_a_function_called(self, started: Caller) -> None:
        with pytest.raises(CallTimeoutError):
            await started.call((A("call"), b"asyncio", b"sleep", [60]), timeout=0.1)
        await until(lambda: started.server.info()[A("requests_running")] == 0)


class TestTimeout:
    async def test_work_that_awaits(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        begun = time.monotonic()
        code, reason = await started.error(evaluate(FINALLY.encode(), {}, {A("timeout"): 100}))
        assert (code, reason) == ("cancelled", "timeout")
        assert root["ended"].is_set()
        assert 0.1 <= time.monotonic() - begun < 2

    async def test_what_its_finally_returns_is_the_value(self, started: Caller) -> None:
        code = "try:\n  await asyncio.sleep(60)\nexcept asyncio.CancelledError:\n  return 'late'"
        assert await started.eval(code, {}, {A("timeout"): 50}) == (OK, b"late")

    async def test_work_that_is_done_in_time(self, started: Caller) -> None:
        code = "await asyncio.sleep(0)\nreturn 1"
        assert await started.eval(code, {}, {A("timeout"): 10_000}) == (OK, 1)

    async def test_work_that_blocks(self, caller: Caller) -> None:
        options = {A("timeout"): 100}
        for code in (b"while True: pass", b"import time\ntime.sleep(60)"):
            begun = time.monotonic()
            assert await caller.error(evaluate(code, {}, options)) == ("cancelled", "timeout")
            assert time.monotonic() - begun < 5
            assert await caller.value("return 1") == 1


class Interrupts:
    """Notes what it is to look after."""

    def __init__(self) -> None:
        self.watched: list[Deadline] = []

    def watch(self, work: Deadline) -> None:
        self.watched.append(work)

    def unwatch(self, work: Deadline) -> None:
        self.watched.remove(work)


class Monitors:
    """Notes whom it is to monitor."""

    def __init__(self) -> None:
        self.monitored: dict[Reference, Pid] = {}
        self.all: list[Pid] = []

    def monitor(self, target: Pid) -> Reference:
        self.all.append(target)
        ref = Reference("py@host", 5, (len(self.all), 0, 0))
        self.monitored[ref] = target
        return ref

    def demonitor(self, ref: Reference) -> None:
        del self.monitored[ref]


class Forked:
    """A node of a forked child's parent."""

    forked = True


class Alone:
    """`Coroutines` without a runtime."""

    def __init__(self) -> None:
        self.sent, self.interrupts, self.monitors = Sent(), Interrupts(), Monitors()
        self.taker = Taker()
        self.coroutines = self.make(Unforked())

    def make(self, node: MayBeForked) -> Coroutines:
        return Coroutines(node, self.sent, self.interrupts, self.monitors)

    def begin(self, awaited: Any, caller: From | None = None, **options: object) -> Work:
        """Begin work; ``options`` are those of an eval."""
        request = request_of(b"h\x03w\x04eval" + b"x" * 100, self.taker, caller)
        work = Work(request, awaited, EvalOptions({A(name): o for name, o in options.items()}))
        self.coroutines.begin(work)
        return work


@pytest.fixture
async def alone() -> Alone:
    return Alone()


async def waiting(ended: list[object]) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        await asyncio.sleep(0)  # to clean up may take turns of the loop
        ended.append(type(error))
        raise


class TestDisarming:
    """Something is to happen at a certain time, unless work is done by then."""

    async def test_when_it_is_done(self, alone: Alone) -> None:
        go, disarmed = asyncio.Event(), asyncio.Event()
        alone.begin(go.wait()).disarm = disarmed.set
        await asyncio.sleep(0)
        assert not disarmed.is_set()
        go.set()
        await until(lambda: alone.sent.answers)
        assert disarmed.is_set()

    @pytest.mark.parametrize("why", ["it fails", "it is stopped", "it never begins"])
    async def test_when_it_ends_otherwise(self, alone: Alone, why: str) -> None:
        async def fail() -> NoReturn:
            await asyncio.sleep(0)
            raise KeyError

        disarmed: list[int] = []
        work = alone.begin(fail() if why == "it fails" else asyncio.Event().wait())
        work.disarm = lambda: disarmed.append(1)
        if why == "it is stopped":
            await asyncio.sleep(0)
        if why != "it fails":
            work.stop("its caller has given up")
        await until(lambda: alone.sent.answers)
        assert disarmed == [1]


class TestCallersThatDoNotMonitor:
    """Python looks after them, where the answer takes longer."""

    CALLER = From(Pid("app@host", 7, 0, 5), b"[tag]", Reference("app@host", 5, (1, 2, 3)).external)

    async def test_they_end(self, alone: Alone) -> None:
        ended: list[object] = []
        alone.begin(waiting(ended), self.CALLER)
        await until(lambda: alone.monitors.monitored)
        [(ref, target)] = alone.monitors.monitored.items()
        assert target == self.CALLER.pid
        assert not alone.coroutines.caller_down(Reference("py@host", 5, (9, 9, 9)))
        assert alone.coroutines.caller_down(ref)
        assert not alone.coroutines.caller_down(ref)
        await until(lambda: alone.sent.answers)
        assert ended == [asyncio.CancelledError]

    async def test_they_end_and_that_does_not_matter(self, alone: Alone) -> None:
        let_go = asyncio.Event()
        alone.begin(let_go.wait(), self.CALLER, on_timeout=A("continue"))
        await until(lambda: alone.monitors.monitored)
        [ref] = alone.monitors.monitored
        assert alone.coroutines.caller_down(ref)
        let_go.set()
        await until(lambda: alone.sent.answers)
        assert value(alone.sent.answers[0][1]) is True

    async def test_no_more_once_they_have_their_answer(self, alone: Alone) -> None:
        let_go = asyncio.Event()
        for _ in range(3):
            alone.begin(let_go.wait(), self.CALLER)
        await until(lambda: len(alone.monitors.monitored) == 3)
        let_go.set()
        await until(lambda: len(alone.sent.answers) == 3)
        assert alone.monitors.monitored == {}

    async def test_what_is_done_is_let_go_at_once(self, alone: Alone) -> None:
        """Its context may hold much."""
        awaited = asyncio.sleep(0)
        kept = weakref.ref(awaited)
        alone.begin(awaited, self.CALLER)
        del awaited
        await until(lambda: alone.sent.answers)
        alone.sent.answers.clear()
        await asyncio.sleep(0)
        gc.collect()
        assert kept() is None

    async def test_they_cannot_be_monitored(
        self, alone: Alone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(target: Pid) -> Reference:
            refused.append(target)
            raise NodeError("too much waits")

        refused: list[Pid] = []
        monkeypatch.setattr(alone.monitors, "monitor", refuse)
        ended: list[object] = []
        for _ in range(2):
            alone.begin(waiting(ended), self.CALLER)
        await until(lambda: len(refused) == 2)
        alone.coroutines.close()
        await until(lambda: len(ended) == 2)

    async def test_the_runtime_stops_before(self, alone: Alone) -> None:
        ended: list[object] = []
        alone.begin(waiting(ended), self.CALLER)
        alone.coroutines.close()
        await until(lambda: not len(alone.coroutines))
        await asyncio.sleep(2 * coroutines.WATCH_AFTER)  # that nothing happens is what is tried
        assert alone.monitors.all == []

    async def test_not_those_that_need_not_wait(self, alone: Alone) -> None:
        alone.begin(asyncio.sleep(0), self.CALLER)
        ended: list[object] = []
        monitoring = From(
            Pid("app@host", 8, 0, 5), b"[tag]", Reference("app@host", 5, (2, 2, 3)).external
        )
        assert monitoring.ref is not None
        alone.taker.monitored_with.add(monitoring.ref)
        alone.begin(waiting(ended), monitoring)
        alone.begin(waiting(ended), From(Pid("app@host", 9, 0, 5), b"[tag]", None))
        alone.begin(waiting(ended))
        alone.begin(waiting(ended), self.CALLER)
        await until(lambda: alone.monitors.monitored)
        assert alone.monitors.all == [self.CALLER.pid]
        alone.coroutines.close()
        await until(lambda: not len(alone.coroutines))


class TestAlone:
    async def test_its_value_is_the_answer(self, alone: Alone) -> None:
        async def work() -> list[int]:
            await asyncio.sleep(0)
            return [1]

        begun = alone.begin(work())
        assert len(alone.coroutines) == 1
        await until(lambda: alone.sent.answers)
        assert alone.sent.last == [1]
        assert alone.sent.answers[0][0] is begun.request
        assert len(alone.coroutines) == 0
        assert begun.over

    async def test_the_bytes_of_the_request_are_let_go(self, alone: Alone) -> None:
        work = alone.begin(asyncio.sleep(0))
        assert work.request.data == b""
        await until(lambda: alone.sent.answers)

    async def test_it_runs_in_the_context_of_its_request(self, alone: Alone) -> None:
        async def work() -> str:
            await asyncio.sleep(0)
            asked = origin.get()
            assert asked is not None
            VARIABLE.set("changed")
            return asked[0].name

        begun = alone.begin(work())
        await until(lambda: alone.sent.answers)
        assert alone.sent.last == "app@host"
        assert VARIABLE.get() == "unset"
        assert begun.request.enter(VARIABLE.get) == "changed"

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ValueError("wrong"), "wrong"),
            (SystemExit("bye"), "bye"),
            (asyncio.CancelledError("by itself"), "by itself"),
        ],
    )
    async def test_what_it_raises_is_told(
        self, alone: Alone, error: BaseException, reason: str
    ) -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            raise error

        alone.begin(work())
        await until(lambda: alone.sent.answers)
        assert code_of(alone.sent.last) == "python_runtime_error"
        assert alone.sent.last[1]["reason"] == reason

    async def test_it_is_interrupted(self, alone: Alone) -> None:
        async def work() -> None:
            raise Interrupted

        alone.begin(work())
        await until(lambda: alone.sent.answers)
        assert code_of(alone.sent.last) == "cancelled"

    async def test_its_caller_gives_up(self, alone: Alone) -> None:
        ended: list[object] = []
        caller, other = by_alias(1), by_alias(2)
        alone.begin(waiting(ended), caller)
        assert caller.ref is not None
        assert other.ref is not None
        await asyncio.sleep(0)
        alone.coroutines.given_up(other.ref)
        alone.coroutines.given_up(caller.ref)
        await until(lambda: alone.sent.answers)
        assert ended == [asyncio.CancelledError]
        assert code_of(alone.sent.last) == "cancelled"
        assert alone.sent.last[1]["reason"] == "its caller has given up"
        alone.coroutines.given_up(caller.ref)

    async def test_it_continues_where_it_is_to(self, alone: Alone) -> None:
        caller, go = by_alias(), asyncio.Event()
        assert caller.ref is not None
        alone.begin(go.wait(), caller, on_timeout=A("continue"))
        alone.coroutines.given_up(caller.ref)
        go.set()
        await until(lambda: alone.sent.answers)
        assert alone.sent.last is True

    async def test_it_is_stopped_before_it_begins(self, alone: Alone) -> None:
        ended: list[object] = []
        work = alone.begin(waiting(ended))
        work.stop("early")
        await until(lambda: alone.sent.answers)
        assert alone.sent.last[1]["reason"] == "early"
        # Eager tasks have begun, and clean up.
        assert ended == ([asyncio.CancelledError] if EAGER else [])

    async def test_it_is_stopped_in_its_first_step(self, alone: Alone) -> None:
        caller, ended = by_alias(), list[object]()
        assert caller.ref is not None
        ref = caller.ref

        async def work() -> None:
            alone.coroutines.given_up(ref)
            await waiting(ended)

        alone.begin(work(), caller)
        await until(lambda: alone.sent.answers)
        assert alone.sent.last[1]["reason"] == "its caller has given up"
        assert ended == [asyncio.CancelledError]

    async def test_it_has_a_time_limit(self, alone: Alone) -> None:
        ended: list[object] = []
        work = alone.begin(waiting(ended), timeout=20)
        assert alone.interrupts.watched == [work]
        before = work.deadline
        await until(lambda: alone.sent.answers)
        assert alone.sent.last[1]["reason"] == "timeout"
        assert ended == [asyncio.CancelledError]
        assert alone.interrupts.watched == []
        # To clean up it was given more, as long as it left the loop its turns.
        assert work.deadline > before
        assert work.timer is not None
        assert work.timer.cancelled()

    async def test_the_runtime_stops(self, alone: Alone) -> None:
        ended: list[object] = []
        works = [alone.begin(waiting(ended)) for _ in range(3)]
        await asyncio.sleep(0)
        alone.coroutines.close()
        assert all(work.task in asyncio.all_tasks() for work in works)
        await until(lambda: len(alone.sent.answers) == 3)
        assert alone.sent.last[1]["reason"] == "the runtime stops"
        assert ended == [asyncio.CancelledError] * 3

    async def test_its_task_is_hidden(self, alone: Alone) -> None:
        work = alone.begin(asyncio.Event().wait())
        assert work.task is not None
        assert work.task not in asyncio.all_tasks()
        work.stop("the test is over")
        await until(lambda: alone.sent.answers)


class Ended(BaseException):
    """A forked child would have ended here."""


class TestForked:
    """What happens in a forked child; `tests.interop.test_forks` has real ones."""

    @pytest.fixture(autouse=True)
    def ends(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        ends: list[str] = []

        def end(kind: str, error: BaseException | None = None) -> NoReturn:
            ends.append(kind if error is None else f"{kind} {error}")
            raise Ended

        monkeypatch.setattr(forks, "end_child", partial(end, "done"))
        monkeypatch.setattr(forks, "end_waiting_child", partial(end, "waits"))
        return ends

    @pytest.fixture
    async def child(self, alone: Alone) -> Alone:
        alone.coroutines = alone.make(Forked())
        return alone

    async def test_its_work_awaits(self, child: Alone, ends: list[str]) -> None:
        request = request_of(b"h\x03w\x04eval")
        work = Work(request, asyncio.sleep(0))
        with pytest.raises(Ended):
            child.coroutines.begin(work)
        assert ends == ["waits"]
        await until(lambda: child.sent.answers)

    @pytest.mark.parametrize("over", [False, True])
    async def test_there_is_no_loop_to_begin_on(
        self,
        child: Alone,
        alone: Alone,
        ends: list[str],
        over: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def start(_: object, work: Coroutine[Any, Any, None]) -> NoReturn:
            work.close()
            raise RuntimeError("no running event loop")

        monkeypatch.setattr(coroutines, "_start_task", start)
        awaited = asyncio.sleep(0)
        work = Work(request_of(b"h\x03w\x04eval"), awaited)
        work.over = over
        with pytest.raises(Ended):
            child.coroutines.begin(work)
        assert ends == ["done" if over else "waits"]
        with pytest.raises(RuntimeError, match="no running event loop"):
            alone.make(Unforked()).begin(work)
        awaited.close()

    async def test_its_work_raises(self, child: Alone, ends: list[str]) -> None:
        async def work() -> None:
            raise ValueError("shown")

        finish = child.coroutines.finish(Work(request_of(b"h\x03w\x04eval"), work()))
        with pytest.raises(Ended):
            await finish
        assert ends == ["done shown"]


class TestInThreads:
    """Work whose code a thread runs: what is awaited is its answer."""

    def begin(self, alone: Alone, awaited: Any, **options: object) -> Work:
        request = request_of(b"h\x03w\x04eval", alone.taker, by_alias())
        given = EvalOptions({A(name): value for name, value in options.items()})
        work = Work(request, awaited, given, threaded=True)
        alone.coroutines.begin(work)
        return work

    async def test_its_answer(self, alone: Alone) -> None:
        self.begin(alone, asyncio.sleep(0, b"w\2ok"))
        assert len(alone.coroutines) == 1
        assert alone.coroutines.on_loop() == []
        await until(lambda: alone.sent.answers)
        assert alone.sent.answers[0][1] == b"w\2ok"

    async def test_it_is_cancelled_once(self, alone: Alone) -> None:
        ended: list[object] = []
        work = self.begin(alone, waiting(ended), timeout=60_000)
        assert alone.interrupts.watched == []
        await until(lambda: work.begun)
        work.stop("first")
        work.stop("second")
        await until(lambda: alone.sent.answers)
        assert alone.sent.last[1]["reason"] == "first"
        assert ended == [asyncio.CancelledError]

    async def test_it_was_interrupted(self, alone: Alone) -> None:
        async def interrupted() -> None:
            raise Interrupted

        self.begin(alone, interrupted())
        await until(lambda: alone.sent.answers)
        assert alone.sent.last[1]["reason"] == "timeout"


async def test_too_many_await(alone: Alone) -> None:
    alone.coroutines = Coroutines(
        Unforked(), alone.sent, alone.interrupts, alone.monitors, max_queue=1
    )
    go = asyncio.Event()
    first = alone.begin(go.wait())
    assert alone.coroutines.on_loop() == [first]
    alone.begin(go.wait())
    assert code_of(alone.sent.last) == "overloaded"
    go.set()
    await until(lambda: len(alone.sent.answers) == 2)
    alone.begin(go.wait())
    await until(lambda: len(alone.sent.answers) == 3)
    assert alone.sent.last is True
