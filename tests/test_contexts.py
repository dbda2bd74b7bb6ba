"""Context variables: each environment has its own; what one caller sets is not another's."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
import gc
import resource
import secrets
import sys
import weakref
from collections.abc import AsyncIterator, Generator
from types import coroutine
from typing import Any

import pytest

from snex_node import Node
from snex_node.wire.terms import Atom
from snex_runtime import contexts, serde
from snex_runtime.interrupts import Deadline, current, now
from snex_runtime.origin import origin
from tests.support.pair import Pair, pair

MIB = 1024 * 1024
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")

SYNCHRONOUS = "{}"
ASYNCHRONOUS = "import asyncio\nawait asyncio.sleep(0)\n{}"
either = pytest.mark.parametrize("form", [SYNCHRONOUS, ASYNCHRONOUS], ids=["sync", "async"])

GET = "return variable.get()"
SET = "variable.set(value)"


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        made.server.provide(variable=VARIABLE)
        yield made


async def make_env(both: Pair, **options: Any) -> Any:
    ok, env = await both.call("make_env", {}, options)
    assert ok == "ok", env
    return serde.to_typed(env)


async def evaluate(both: Pair, code: str, to: Any = None, **variables: object) -> Any:
    ok, value = await both.call("eval", code, variables, to=to)
    assert ok == "ok", value
    return value


class TestEvaluations:
    @either
    async def test_what_one_sets_no_other_sees(self, both: Pair, form: str) -> None:
        code = form.format(f"{SET}\n{GET}")
        assert await evaluate(both, code, value="mine") == "mine"
        assert await evaluate(both, GET) == "unset"
        env = await make_env(both)
        assert await evaluate(both, GET, env) == "unset"

    @either
    async def test_the_decimal_context_is_one_of_each(self, both: Pair, form: str) -> None:
        precision = form.format("import decimal\nreturn decimal.getcontext().prec")
        change = form.format("import decimal\ndecimal.getcontext().prec = 5")
        before = decimal.getcontext().prec
        await evaluate(both, change)
        assert await evaluate(both, precision) == before
        assert decimal.getcontext().prec == before

    async def test_a_decimal_context_of_the_init_script_is_copied(self, both: Pair) -> None:
        assert await both.call("init", "import decimal\ndecimal.getcontext().prec = 5", {})
        change = "import decimal\ndecimal.getcontext().prec = 7\nreturn decimal.getcontext().prec"
        precision = "import decimal\nreturn decimal.getcontext().prec"
        env = await make_env(both)
        assert await evaluate(both, change) == 7
        assert await evaluate(both, change, env) == 7
        assert await evaluate(both, precision) == 5
        assert await evaluate(both, precision, await make_env(both)) == 5
        assert await evaluate(both, precision, env) == 7

    async def test_a_task_of_theirs_copies_what_they_set(self, both: Pair) -> None:
        code = (
            f"import asyncio\nasync def get():\n  {GET}\n{SET}\n"
            "return await asyncio.create_task(get())"
        )
        assert await evaluate(both, code, value="mine") == "mine"

    async def test_calls_of_functions_leave_nothing(self, both: Pair) -> None:
        for _ in range(2):
            found = await both.call("call", "tests.test_contexts", "set_variable", ["x"])
            assert found == ("ok", "unset")

    async def test_nor_do_those_of_erpc_and_rpc(self, both: Pair) -> None:
        name = both.node.name
        for _ in range(2):
            found = await both.peer.rpc(name, "tests.test_contexts", "set_variable", ["x"])
            assert found == "unset"

    async def test_large_values_go_with_the_evaluation(self, both: Pair) -> None:
        code = (
            "import contextvars\n"
            "contextvars.ContextVar('large').set(bytearray(10 * 2**20))\n"
            "if wait:\n  import asyncio\n  await asyncio.sleep(0)"
        )
        await evaluate(both, code, wait=True)
        gc.collect()
        before = _resident()
        for index in range(20):
            await evaluate(both, code, wait=bool(index % 2))
        gc.collect()
        assert _resident() - before < 30 * MIB


def set_variable(value: str) -> str:
    """What `VARIABLE` was; for calls from outside."""
    before = VARIABLE.get()
    VARIABLE.set(value)
    return before


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class TestEnvironments:
    @either
    async def test_what_is_set_in_one_stays_there(self, both: Pair, form: str) -> None:
        one, other = await make_env(both), await make_env(both)
        await evaluate(both, form.format(SET), one, value="one")
        assert await evaluate(both, GET, one) == "one"
        assert await evaluate(both, form.format(GET), one) == "one"
        assert await evaluate(both, GET, other) == "unset"
        assert await evaluate(both, GET) == "unset"

    async def test_a_function_called_there_runs_there(self, both: Pair) -> None:
        env = await make_env(both)
        for expected in ("unset", "x"):
            found = await both.call("call", "tests.test_contexts", "set_variable", ["x"], to=env)
            assert found == ("ok", expected)

    @either
    async def test_those_made_later_have_what_the_init_script_set(
        self, both: Pair, form: str
    ) -> None:
        before = await make_env(both)
        ok, _ = await both.call("init", form.format(SET), {"value": "init"})
        assert ok == "ok"
        assert await evaluate(both, GET) == "init"
        assert await evaluate(both, GET, await make_env(both)) == "init"
        assert await evaluate(both, GET, before) == "unset"

    @either
    async def test_so_do_those_of_a_script(self, form: str) -> None:
        async with pair() as both:
            both.server.provide(variable=VARIABLE, value="script")
            assert await both.server.init(form.format(SET), "<init>", timeout=10) is None
            assert VARIABLE.get() == "unset"
            assert await evaluate(both, GET) == "script"
            assert await evaluate(both, GET, await make_env(both)) == "script"

    async def test_two_that_wait_in_one_keep_their_callers(self, both: Pair) -> None:
        """The context is shared, who asked is not."""
        began, go_on = asyncio.Event(), asyncio.Event()
        both.server.provide(began=began, go_on=go_on, origin=origin)
        env = await make_env(both)
        code = (
            "import asyncio\nasync def ask():\n  return origin.get()[0].name\n"
            "first = origin.get()[0].name\nbegan.set()\nawait go_on.wait()\n"
            "return first, origin.get()[0].name, await asyncio.create_task(ask())"
        )
        waits = asyncio.ensure_future(evaluate(both, code, env))
        await asyncio.wait_for(began.wait(), 10)
        async with another_peer(both) as other:
            request: Any = (Atom("eval"), "return origin.get()[0].name", {})
            assert await other.call(env, request, timeout=10) == ("ok", other.name)
            go_on.set()
            assert await asyncio.wait_for(waits, 10) == (both.peer.name,) * 3

    async def test_what_is_freed_runs_to_its_end_in_its_context(self, both: Pair) -> None:
        began, go_on = asyncio.Event(), asyncio.Event()
        found = asyncio.get_running_loop().create_future()
        both.server.provide(began=began, go_on=go_on, found=found)
        env = await make_env(both)
        code = f"{SET}\nbegan.set()\nawait go_on.wait()\nfound.set_result(variable.get())"
        both.peer.send(env, (Atom("$gen_cast"), (Atom("eval"), code, {"value": "kept"})))
        await asyncio.wait_for(began.wait(), 10)
        await both.call("destroy_env", env)
        go_on.set()
        assert await asyncio.wait_for(found, 10) == "kept"

    async def test_code_that_runs_the_loop_itself_lets_others_in(self, both: Pair) -> None:
        """As nest_asyncio has it: the environment's context is entered, and cannot be again."""
        env = await make_env(both)
        held = both.server.environments.get(env)
        assert held is not None
        held.context.run(VARIABLE.set, "outer")
        assert held.enter(lambda: held.enter(VARIABLE.get)) == "outer"


@contextlib.asynccontextmanager
async def another_peer(both: Pair) -> AsyncIterator[Node]:
    name = f"other{secrets.token_hex(4)}@127.0.0.1"
    conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
    async with Node(name, cookie=both.cookie, epmd="none", listen=None, **conversion) as node:
        assert both.node.port is not None
        await node.connect(both.node.name, address=("127.0.0.1", both.node.port))
        yield node


class TestInSteps:
    async def test_each_step_is_in_that_context_and_nothing_else_is(self) -> None:
        context = contextvars.copy_context()

        async def work() -> list[str]:
            seen = [VARIABLE.get()]
            VARIABLE.set("inside")
            await asyncio.sleep(0)
            return [*seen, VARIABLE.get()]

        deadline = Deadline(None)
        assert await contexts.in_steps(context.run, deadline, None, work()) == ["unset", "inside"]
        assert context[VARIABLE] == "inside"
        assert VARIABLE.get() == "unset"
        assert current not in context or context[current] is None

    async def test_cancelling_reaches_the_work(self) -> None:
        cleaned = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(current.get())

        deadline = Deadline(None)

        async def run() -> None:
            await contexts.in_steps(contextvars.Context().run, deadline, None, work())

        task = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == [deadline]

    async def test_what_cancelled_work_held_is_free_at_once(self) -> None:
        class Held:
            pass

        async def work(held: Held) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
                del held

        held = Held()
        gone = weakref.ref(held)
        steps = contexts.in_steps(contextvars.Context().run, Deadline(None), None, work(held))
        del held

        async def run() -> None:
            nonlocal steps
            running, steps = steps, None  # type: ignore[assignment]
            await running

        gc.disable()
        try:
            task = asyncio.ensure_future(run())
            await asyncio.sleep(0)
            task.cancel()
            await task
            assert gone() is None
        finally:
            gc.enable()

    async def test_what_it_raises_comes_out(self) -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            raise LookupError("of the work")

        with pytest.raises(LookupError, match="of the work"):
            await contexts.in_steps(contextvars.Context().run, Deadline(None), None, work())

    def test_closed_it_closes_the_work(self) -> None:
        cleaned = []

        async def work() -> None:
            try:
                await _pause()
            finally:
                cleaned.append(True)

        async def run() -> None:
            await contexts.in_steps(contextvars.Context().run, Deadline(None), None, work())

        running = run()
        running.send(None)
        running.close()
        assert cleaned == [True]


class TestCopies:
    def test_nothing_is_mutable_without_decimals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        context = contextvars.copy_context()
        context.run(decimal.setcontext, decimal.Context(prec=5))
        assert len(contexts.mutable_in(context)) == 1
        monkeypatch.delitem(sys.modules, "decimal")
        assert contexts.mutable_in(context) == ()

    def test_a_thread_has_its_own_decimal_context_and_no_deadline(self) -> None:
        context = contextvars.copy_context()
        context.run(decimal.setcontext, decimal.Context(prec=5))
        context.run(current.set, Deadline(None))
        context.run(VARIABLE.set, "inherited")
        inherited = context.run(contexts.copy_for_thread)
        assert inherited[current] is None
        assert inherited[VARIABLE] == "inherited"
        assert inherited.run(decimal.getcontext).prec == 5
        inherited.run(decimal.getcontext).prec = 7
        assert context.run(decimal.getcontext).prec == 5


@coroutine
def _pause() -> Generator[None, None, None]:
    yield


async def test_who_asked_is_not_seen_where_nobody_did(both: Pair) -> None:
    await evaluate(both, "1")
    assert origin.get() is None


class TestSteps:
    """What is set while a step runs, on the loop and in threads."""

    @pytest.mark.parametrize("on_loop", [True, False])
    async def test_what_runs_is_known(self, on_loop: bool) -> None:
        limit, seen = Deadline(None), list[object]()

        async def work() -> int:
            for _ in range(2):
                seen.append((now.running, current.get()))
                await asyncio.sleep(0)
            return 5

        context = contextvars.copy_context()
        assert await contexts.in_steps(context.run, limit, None, work(), on_loop=on_loop) == 5
        assert seen == [(limit if on_loop else None, limit)] * 2
        assert (now.running, current.get()) == (None, None)
