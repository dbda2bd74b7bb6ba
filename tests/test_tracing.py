"""Where a request stands in a trace; OpenTelemetry is one of the test's own."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import snex
from snex_runtime import tracing
from snex_runtime.serde import to_typed
from snex_runtime.tracing import MAX_TRACEPARENT, checked, entered, in_steps
from tests.support.asking import A
from tests.support.pair import Pair, pair
from tests.support.waiting import until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = TRACE.replace("4bf9", "aaaa")

CONTEXT = """
from contextvars import ContextVar
_current = ContextVar("current", default=None)
attached = 0

def attach(context):
    global attached
    attached += 1
    return _current.set(context)

def detach(token):
    global attached
    attached -= 1
    _current.reset(token)

def get_current():
    return _current.get()
"""
PROPAGATION = """
class TraceContextTextMapPropagator:
    def extract(self, carrier):
        return carrier["traceparent"]
"""


@pytest.fixture(autouse=True)
def _none(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """There is none unless the test makes one."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "opentelemetry":
            monkeypatch.delitem(sys.modules, name)
    tracing._telemetry.cache_clear()
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == "opentelemetry":
            del sys.modules[name]
    tracing._telemetry.cache_clear()


@pytest.fixture
def telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The context of an OpenTelemetry that does next to nothing."""
    package = tmp_path / "opentelemetry"
    deep = package / "trace" / "propagation"
    deep.mkdir(parents=True)
    for directory in (package, package / "trace", deep):
        (directory / "__init__.py").touch()
    (package / "context.py").write_text(CONTEXT)
    (deep / "tracecontext.py").write_text(PROPAGATION)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("opentelemetry.context")


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


class TestChecked:
    @pytest.mark.parametrize(
        "value",
        [TRACE, TRACE[:-2] + "00", f"01{TRACE[2:]}", f"cc{TRACE[2:]}-what-comes-later"],
    )
    def test_what_is_one(self, value: str) -> None:
        assert checked(value) == value
        assert type(checked(A(value))) is str

    @pytest.mark.parametrize(
        "value",
        [
            None,
            7,
            "",
            TRACE.encode(),
            TRACE.upper(),
            TRACE[:-1],
            f"{TRACE}-more",
            f" {TRACE}",
            f"{TRACE}\n",
            f"ff{TRACE[2:]}",
            f"00-{'0' * 32}{TRACE[35:]}",
            f"{TRACE[:36]}{'0' * 16}-01",
            f"01{TRACE[2:]}x",
            f"01{TRACE[2:]}-\n",
            f"01{TRACE[2:]}-{'x' * MAX_TRACEPARENT}",
        ],
    )
    def test_what_is_none(self, value: object) -> None:
        with pytest.raises(ValueError, match="traceparent takes a binary as W3C"):
            checked(value)


CODE = "return snex.traceparent()"
LATE = "import asyncio\nawait asyncio.sleep(0)\nreturn snex.traceparent()"
THREAD = "import threading\nfound = []\n" + (
    "t = threading.Thread(target=lambda: found.append(snex.traceparent()))\n"
    "t.start()\nt.join()\nreturn found[0]"
)
TASK = (
    "import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  return snex.traceparent()\n"
    "return await asyncio.create_task(f())"
)


def given(traceparent: object = TRACE, **more: object) -> dict[str, object]:
    return {"traceparent": traceparent, **more}


class TestRequests:
    @pytest.mark.parametrize("code", [CODE, LATE, THREAD, TASK])
    @pytest.mark.parametrize("options", [{}, {"executor": "thread"}, {"timeout": 5000}])
    async def test_it_is_told(self, both: Pair, code: str, options: dict[str, object]) -> None:
        assert await both.call("eval", code, {}, given(**options)) == ("ok", TRACE)
        assert await both.call("eval", code, {}, options) == ("ok", None)

    async def test_one_environment_after_another(self, both: Pair) -> None:
        _, env = await both.call("make_env", {})
        for code in (CODE, LATE):
            for trace in (TRACE, OTHER):
                assert await both.call("eval", code, {}, given(trace), to=pid(env)) == ("ok", trace)
            assert await both.call("eval", code, {}, to=pid(env)) == ("ok", None)

    async def test_two_at_a_time(self, both: Pair) -> None:
        """They await in the context of one environment."""
        begun = [asyncio.Event(), asyncio.Event()]
        ended = asyncio.Event()
        both.server.provide(begun=begun, ended=ended)
        _, env = await both.call("make_env", {})
        code = "begun[n].set()\nawait ended.wait()\nreturn snex.traceparent()"
        calls = [
            asyncio.ensure_future(both.call("eval", code, {"n": n}, given(trace), to=pid(env)))
            for n, trace in enumerate((TRACE, OTHER))
        ]
        await until(lambda: all(event.is_set() for event in begun))
        ended.set()
        assert await asyncio.gather(*calls) == [("ok", TRACE), ("ok", OTHER)]

    async def test_of_code_that_prepares(self, both: Pair) -> None:
        code = "trace = snex.traceparent()"
        assert await both.call("init", code, {}, given()) == ("ok", None)
        assert await both.run("return trace, snex.traceparent()") == (TRACE, None)

    async def test_variables_alone(self, both: Pair) -> None:
        options = given(executor="thread")
        assert await both.call("eval", None, {"x": 1}, options) == ("ok", None)

    @pytest.mark.parametrize("value", ["no", 7, "x" * 5000, TRACE.upper()])
    async def test_what_is_none(self, both: Pair, value: object) -> None:
        status, error = await both.call("eval", CODE, {}, given(value))
        assert (status, error["code"]) == ("error", "bad_request")

    async def test_options_with_one_are_not_remembered(self, both: Pair) -> None:
        reader = both.server._evaluator._reader
        await both.call("eval", CODE, {}, {"timeout": 5000})
        before = set(reader._eval_options)
        assert before
        await both.call("eval", CODE, {}, given())
        assert set(reader._eval_options) == before

    def test_outside_of_requests(self) -> None:
        assert snex.traceparent() is None


def pid(env: Any) -> Any:
    return to_typed(env)


SPAN = """\
from opentelemetry import context
assert context.get_current() == snex.traceparent(), context.get_current()
context.attach("span")
{wait}
return context.get_current()
"""
"""It begins a span, and sees it as long as it runs."""


class TestTelemetry:
    @pytest.mark.parametrize("wait", ["", "import asyncio\nawait asyncio.sleep(0)"])
    @pytest.mark.parametrize("executor", ["loop", "thread"])
    async def test_its_context_is_set(
        self, both: Pair, telemetry: ModuleType, wait: str, executor: str
    ) -> None:
        _, env = await both.call("make_env", {})
        code = SPAN.format(wait=wait)
        for to in (None, pid(env)):
            answer = await both.call("eval", code, {}, given(executor=executor), to=to)
            assert answer == ("ok", "span")
        code = "from opentelemetry import context\nreturn context.get_current()"
        assert await both.call("eval", code, {}, to=pid(env)) == ("ok", None)

    async def test_it_is_interrupted_all_the_same(self, both: Pair, telemetry: ModuleType) -> None:
        code = "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass"
        _, error = await both.call("eval", code, {}, given(timeout=100))
        assert (error["code"], error["reason"]) == ("cancelled", "timeout")

    async def test_steps(self, telemetry: ModuleType) -> None:
        seen: list[object] = []

        async def work() -> str:
            try:
                await asyncio.sleep(0)
                seen.append(telemetry.get_current())
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(telemetry.get_current())
            return "done"

        task = asyncio.ensure_future(awaiting(in_steps(TRACE, work())))
        await until(lambda: len(seen) == 1)
        assert telemetry.attached == 0
        task.cancel()
        assert await task == "done"
        assert seen == [TRACE, TRACE]

    async def test_work_that_never_begins(self, telemetry: ModuleType) -> None:
        in_steps(TRACE, asyncio.sleep(0)).close()

    def test_what_runs_at_once(self, telemetry: ModuleType) -> None:
        with entered(TRACE):
            assert telemetry.get_current() == TRACE
        assert telemetry.get_current() is None

    async def test_where_there_is_none(self) -> None:
        work: Any = asyncio.sleep(0, "done")
        assert in_steps(TRACE, work) is work
        with entered(TRACE):
            assert await work == "done"

    async def test_one_that_is_broken(
        self, tmp_path: Path, telemetry: ModuleType, caplog: pytest.LogCaptureFixture
    ) -> None:
        del sys.modules["opentelemetry.context"]
        (tmp_path / "opentelemetry" / "context.py").write_text("raise SystemError('broken')")
        importlib.invalidate_caches()
        for cached in (tmp_path / "opentelemetry").glob("__pycache__/*"):
            cached.unlink()
        with entered(TRACE):
            pass
        assert "opentelemetry cannot be used" in caplog.text


async def awaiting(work: Coroutine[Any, Any, str]) -> str:
    return await work
