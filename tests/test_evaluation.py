"""Evaluations, called functions and the init script."""

from __future__ import annotations

import asyncio
import math
import platform
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from snex_node.wire.etf import EncodeError
from snex_runtime import evaluation as evaluation_room
from snex_runtime import serde
from snex_runtime.code import Code, compile_code
from snex_runtime.coroutines import Work
from snex_runtime.errors import BadRequest
from snex_runtime.evaluation import BOUNDARIES, MAX_CODE, Evaluator, Snippets
from snex_runtime.executors import Awaiting, Function
from snex_runtime.interrupts import Interrupter, current
from snex_runtime.namespace import here
from snex_runtime.origin import origin
from snex_runtime.requests import EvalOptions, Place, Reader, Request, typed
from tests.support.calling import (
    OK,
    STRUCT,
    A,
    Caller,
    calling,
    evaluate,
)
from tests.support.requests import Killer, Taker, request_of, value


@pytest.fixture(autouse=True)
def nowhere() -> Iterator[None]:
    """What evaluates in the context of the tests leaves nothing there for others."""
    token = here.set(None)
    yield
    here.reset(token)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


@pytest.fixture
async def started(caller: Caller) -> Caller:
    """A caller that knows when code has begun to wait: ``began.set()`` in that code."""
    caller.server.provide(began=asyncio.Event(), ended=asyncio.Event(), asyncio=asyncio)
    return caller


class TestEval:
    @pytest.mark.parametrize("name", [b"x", A("x")], ids=["binary", "atom"])
    async def test_code_and_variables(self, caller: Caller, name: object) -> None:
        assert await caller.eval("return 6 * x", {name: 7}) == (OK, 42)

    async def test_without_return_the_value_is_nil(self, caller: Caller) -> None:
        assert await caller.eval("x = 1") == (OK, None)

    async def test_options_may_be_a_list_or_a_map(self, caller: Caller) -> None:
        for options in ([], {}, None, [(A("timeout"), A("infinity"))], {A("timeout"): 5000}):
            assert await caller.eval("return x", {"x": 1}, options) == (OK, 1)

    async def test_nil_sets_variables_only(self, caller: Caller) -> None:
        env = await caller.env()
        assert await caller.eval(None, {"x": 5}, to=env) == (OK, None)
        assert await caller.value("return x", to=env) == 5

    async def test_code_with_a_place(self, caller: Caller) -> None:
        code = {
            STRUCT: A("Elixir.Snex.Code"),
            A("src"): [b"1 /", [32, b"zero"]],
            A("file"): b"/some/file.ex",
            A("line"): 42,
        }
        tag, error = await caller.eval(code, {"zero": 0})
        assert tag == A("error")
        assert error[A("reason")] == b"division by zero"
        assert error[A("traceback")][1:] == [
            b'  File "/some/file.ex", line 42, in <module>\n',
            b"ZeroDivisionError: division by zero\n",
        ]

    async def test_evaluations_on_the_server_share_nothing(self, caller: Caller) -> None:
        assert await caller.eval("x = 1") == (OK, None)
        assert await caller.value("return 'x' in globals()") is False

    async def test_code_that_awaits(self, caller: Caller) -> None:
        code = "import asyncio\nawait asyncio.sleep(0)\nreturn x"
        assert await caller.eval(code, {"x": [1]}) == (OK, [1])

    @pytest.mark.parametrize(
        ("option", "value", "expected"),
        [
            ("binary_as", "bytes", b"<class 'bytes'>"),
            ("binary_as", "bytearray", b"<class 'bytearray'>"),
            ("atom_as", "distinct_atom", b"<class 'snex_runtime.serde.DistinctAtom'>"),
            ("set_as", "frozenset", b"<class 'frozenset'>"),
        ],
    )
    async def test_encoding_options(
        self, caller: Caller, option: str, value: str, expected: bytes
    ) -> None:
        x: object = {
            "binary_as": b"x",
            "atom_as": A("x"),
            "set_as": {STRUCT: A("Elixir.MapSet"), A("map"): {1: []}},
        }[option]
        options: Any = [(A("encoding_opts"), [(A(option), A(value))])]
        assert await caller.eval("return str(type(x))", {"x": x}, options) == (OK, expected)
        assert await caller.eval("return str(type(x))", {"x": x}) != (OK, expected)
        env = await caller.env({"x": x}, encoding_opts={A(option): A(value)})
        assert await caller.value("return str(type(x))", to=env) == expected

    async def test_what_an_environment_starts_with(self, caller: Caller) -> None:
        code = "return sorted(k for k in globals()), snex.__name__, __name__"
        names, snex, name = await caller.value(code)
        assert names == [b"Elixir", b"__builtins__", b"__name__", b"snex"]
        assert (snex, name) == (b"snex", b"__snex__")

    async def test_many_at_once_are_answered_each(self, caller: Caller) -> None:
        code = "import asyncio\nawait asyncio.sleep(0)\nreturn n"
        calls = [caller.eval(code if n % 2 else "return n", {"n": n}) for n in range(400)]
        assert await asyncio.gather(*calls) == [(OK, n) for n in range(400)]

    async def test_evaluations_interleave_only_where_they_await(self, caller: Caller) -> None:
        env = await caller.env({"log": []})
        code = """
import asyncio

async def run(name):
    for step in range(3):
        log.append((name, step, "in"))
        log.append((name, step, "out"))
        await asyncio.sleep(0)

await run(name)
"""
        await asyncio.gather(*(caller.eval(code, {"name": n}, to=env) for n in range(3)))
        log = await caller.value("return log", to=env)
        assert len(log) == 18
        for entered, left in zip(log[::2], log[1::2]):
            assert (entered[:2], entered[2], left[2]) == (left[:2], b"in", b"out")
        names = [entry[0] for entry in log]
        assert names != sorted(names)


class TestTraces:
    TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    @pytest.mark.parametrize(
        "code", ["return snex.traceparent()", "await asyncio.sleep(0)\nreturn snex.traceparent()"]
    )
    @pytest.mark.parametrize("executor", ["loop", "thread"])
    async def test_where_it_stands(self, started: Caller, code: str, executor: str) -> None:
        options = {A("traceparent"): self.TRACE, A("executor"): A(executor)}
        assert await started.eval(code.encode(), options=options) == (A("ok"), self.TRACE)
        assert await started.value(code) is None

    async def test_variables_alone(self, started: Caller) -> None:
        options = {A("traceparent"): self.TRACE, A("executor"): A("thread")}
        assert await started.eval(None, {"x": 1}, options) == (A("ok"), None)

    async def test_of_code_that_prepares(self, started: Caller) -> None:
        request: object = (
            A("init"),
            b"trace = snex.traceparent()",
            {},
            {A("traceparent"): self.TRACE},
        )
        assert await started.call(request) == (A("ok"), None)
        assert await started.value("return trace") == self.TRACE


class TestCall:
    async def test_a_function_of_a_module(self, caller: Caller) -> None:
        assert await caller.call((A("call"), A("math"), A("sqrt"), [16])) == (OK, 4.0)
        assert await caller.call((A("call"), b"os.path", b"join", [b"a", b"b"])) == (OK, b"a/b")
        assert await caller.call((A("call"), b"datetime", b"date.fromisoformat", [b"x"])) != OK

    async def test_keyword_arguments(self, caller: Caller) -> None:
        request = (A("call"), b"json", b"dumps", [{b"b": 1, b"a": 2}], {A("sort_keys"): True})
        assert await caller.call(request) == (OK, b'{"a": 2, "b": 1}')

    async def test_options(self, caller: Caller) -> None:
        trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        call: tuple[Any, ...] = (A("call"), b"snex", b"traceparent", [], {})
        assert await caller.call(call) == (OK, None)
        for executor in ("loop", "thread"):
            traced = [(A("traceparent"), trace), (A("executor"), A(executor))]
            assert await caller.call((*call, traced)) == (OK, trace)
        late: Any = (
            A("call"),
            b"asyncio",
            b"sleep",
            [0.001, b"late"],
            {},
            [(A("traceparent"), trace)],
        )
        assert await caller.call(late) == (OK, b"late")
        late = (*late[:3], [60], {}, [(A("timeout"), 20), (A("on_timeout"), A("continue"))])
        assert await caller.error(late) == ("cancelled", "timeout")
        read: Any = (A("call"), b"builtins", b"repr", [b"x"], {})
        options = [(A("encoding_opts"), [(A("binary_as"), A("bytes"))])]
        assert await caller.call((*read, options)) == (OK, b"b'x'")
        assert await caller.error((*read, [(A("nope"), 1)])) == (
            "bad_request",
            "unknown option nope: there are encoding_opts, timeout, on_timeout, kill_after, "
            "executor, traceparent, keep, handle, progress, shared",
        )

    async def test_objects(self, caller: Caller) -> None:
        ok, kept = await caller.call((A("call"), b"builtins", b"list", [], {}, [(A("keep"), True)]))
        assert ok == OK
        assert await caller.call((A("call"), b"builtins", b"len", [kept])) == (OK, 0)
        made: Any = (A("call"), b"builtins", b"dict", [], {b"a": kept})
        assert await caller.call(made) == (OK, {b"a": []})
        assert await caller.value("return a", {b"a": kept}) == []
        ok, other = await caller.eval(None, {}, {A("keep"): True})
        assert await caller.value("return a is None", {b"a": other}) is True

    @pytest.mark.parametrize(
        ("kwargs", "answer"),
        [
            ([(A("sort_keys"), True)], b'{"a": 2, "b": 1}'),
            ([(b"sort_keys", True), (A("sort_keys"), False)], b'{"a": 2, "b": 1}'),
            ([(A("sort_keys"), True), (A("indent"), None)], b'{"a": 2, "b": 1}'),
            ([], b'{"b": 1, "a": 2}'),
            (None, b'{"b": 1, "a": 2}'),
        ],
    )
    async def test_keyword_arguments_as_a_keyword_list(
        self, caller: Caller, kwargs: object, answer: bytes
    ) -> None:
        request = (A("call"), b"json", b"dumps", [{b"b": 1, b"a": 2}], kwargs)
        assert await caller.call(request) == (OK, answer)

    async def test_a_coroutine_is_awaited(self, caller: Caller) -> None:
        assert await caller.call((A("call"), b"asyncio", b"sleep", [0, b"x"])) == (OK, b"x")

    async def test_in_an_environment(self, caller: Caller) -> None:
        env = await caller.env()
        assert await caller.call((A("call"), b"math", b"sqrt", [4]), to=env) == (OK, 2.0)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ((A("call"), b"no_such_module", b"f", []), "no module named no_such_module"),
            ((A("call"), b"math", b"no_such", []), "module math has no no_such"),
            ((A("call"), b"math", b"pi", []), "math.pi cannot be called"),
            ((A("call"), 1, b"pi", []), 'a call are atoms or binaries, not 1 and "pi"'),
            ((A("call"), 10**5000, [], []), "not <an integer of 16610 bits> and []"),
            ((A("call"), b"math", b"sqrt", 16), "the arguments of a call are a list, not 16"),
            (
                (A("call"), b"math", b"sqrt", [16], [1]),
                "arguments are a keyword list or a map, not [1]",
            ),
            (
                (A("call"), b"math", b"sqrt", [16], 5),
                "keyword arguments are a keyword list or a",
            ),
            ((A("call"), b"math", b"sqrt", [16], [(1, 2)]), "argument's name is an atom, not 1"),
            ((A("call"), b"math", b"sqrt"), "a call request has 4 to 6 elements, not 3"),
        ],
    )
    async def test_wrong_ones(self, caller: Caller, request_: object, message: str) -> None:
        code, reason = await caller.error(request_)
        assert code == "bad_request"
        assert message in reason

    async def test_what_the_function_raises(self, caller: Caller) -> None:
        assert await caller.error((A("call"), b"math", b"sqrt", [-1])) == (
            "python_runtime_error",
            "expected a nonnegative input, got -1.0"
            if platform.python_version_tuple() >= ("3", "14")
            else "math domain error",
        )
        code, reason = await caller.error((A("call"), b"math", b"sqrt", []))
        assert code == "python_runtime_error"
        assert "takes exactly one argument" in reason

    async def test_text_that_is_not_utf_8(self, caller: Caller) -> None:
        code, reason = await caller.error((A("call"), b"builtins", b"len", [b"\xff"]))
        assert code in ("bad_request", "python_runtime_error")
        assert "UTF-8" in reason


TEACH = "snex.set_custom_encoder takes a function that knows what to send instead"


class TestFailures:
    async def test_code_that_does_not_parse(self, caller: Caller) -> None:
        tag, error = await caller.eval("x = 1\ny = = 2")
        assert tag == A("error")
        assert error[A("code")] == A("python_runtime_error")
        assert b"invalid syntax" in error[A("reason")]
        assert b'  File "<Snex.Code>", line 2\n' in error[A("traceback")]

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("return object()", f"Cannot serialize object of <class 'object'>: {TEACH}"),
            (
                "return {'a': [1, object()]}",
                f"Cannot serialize object of <class 'object'>: {TEACH} (at [\"a\"][1])",
            ),
            ("return {'k': 1, b'k': 2}", "the keys 'k' and b'k' are the same key in a map"),
            (
                "async def f(): return 1\nreturn f",
                f"Cannot serialize object of <class 'function'>: {TEACH}",
            ),
            ("x = []\nx.append(x)\nreturn x", "a list contains itself"),
        ],
    )
    @pytest.mark.parametrize("wait", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_results_that_cannot_be_encoded(
        self, caller: Caller, code: str, reason: str, wait: str
    ) -> None:
        assert await caller.error(evaluate((wait + code).encode(), {})) == (
            "python_runtime_error",
            reason,
        )

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("import sys; sys.exit()", "SystemExit"),
            ("import sys; sys.exit('bye')", "bye"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("raise GeneratorExit", "GeneratorExit"),
            ("class Own(BaseException): pass\nraise Own('mine')", "mine"),
            ("raise StopIteration(5)", None),
        ],
    )
    @pytest.mark.parametrize("wait", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_what_ends_programs_ends_the_evaluation(
        self, caller: Caller, code: str, reason: str | None, wait: str
    ) -> None:
        kind, text = await caller.error(evaluate((wait + code).encode(), {}))
        assert kind == "python_runtime_error"
        assert reason is None or text == reason
        assert await caller.call(A("ping")) == A("pong")

    async def test_a_task_of_user_code_that_is_cancelled(self, caller: Caller) -> None:
        code = b"import asyncio\nt = asyncio.ensure_future(asyncio.sleep(9))\nt.cancel()\nawait t"
        kind, _ = await caller.error(evaluate(code, {}))
        assert kind == "python_runtime_error"

    async def test_a_coroutine_that_is_not_awaited(self, caller: Caller) -> None:
        code = "async def f(): return 1\nc = f()\ntry:\n  return [c]\nfinally:\n  c.close()"
        kind, reason = await caller.error(evaluate(code.encode(), {}))
        assert (kind, reason) == (
            "python_runtime_error",
            "Cannot serialize object of <class 'coroutine'>: await it (at [0])",
        )


class TestInit:
    async def test_what_it_sets_every_environment_has(self, caller: Caller) -> None:
        before = await caller.env()
        assert await caller.server.init("import math\nbase = 40", "init.py") is None
        assert await caller.value("return base + math.sqrt(4)") == 42.0
        assert await caller.value("return base", to=await caller.env()) == 40
        assert await caller.value("return 'base' in globals()", to=before) is False

    async def test_it_may_await(self, caller: Caller) -> None:
        code = "import asyncio\nawait asyncio.sleep(0)\nx = 1"
        assert await caller.server.init(code, "init.py", timeout=10) is None
        assert await caller.value("return x") == 1

    async def test_it_raises(self, caller: Caller) -> None:
        failure = await caller.server.init("x = 1\n1 / 0", "init.py")
        assert failure is not None
        assert failure.code == "python_runtime_error"
        assert '  File "init.py", line 2, in <module>\n' in (failure.traceback or [])

    @pytest.mark.parametrize("wait", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_it_would_end_the_program(self, caller: Caller, wait: str) -> None:
        failure = await caller.server.init(wait + "raise SystemExit('bye')", "init.py")
        assert failure is not None
        assert failure.reason == "bye"
        assert await caller.value("return 1") == 1

    async def test_it_takes_too_long(self, caller: Caller) -> None:
        for code in ("import asyncio\nawait asyncio.sleep(60)", "while True: pass"):
            failure = await caller.server.init(code, "init.py", timeout=0.1)
            assert failure is not None
            assert failure.code == "init_script_timeout"
            assert "0.1 s" in str(failure.reason)


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


class Root:
    """A root environment without a process."""

    def __init__(self) -> None:
        self.variables: dict[str, object] = {"base": 40, "variable": VARIABLE}
        self.enter = copy_context().run


class Threads:
    """Runs nothing, and keeps what it is to run."""

    def __init__(self) -> None:
        self.given: list[tuple[Function, Place | None, EvalOptions]] = []

    def work(
        self, request: Request, function: Function, place: Place | None, options: EvalOptions
    ) -> Work:
        self.given.append((function, place, options))
        return Work(request, asyncio.sleep(0), options, threaded=True)


class Alone:
    """An `Evaluator` without a runtime."""

    def __init__(
        self,
        max_time: float | None = None,
        killer: Killer | None = None,
        kill_after: float | None = None,
    ) -> None:
        self.root = Root()
        self.interrupter = Interrupter(BOUNDARIES)
        self.threads = Threads()
        reader = Reader(serde.DEFAULTS, max_time)
        limits = killer, kill_after
        self.evaluator = Evaluator(self.root, reader, self.interrupter, self.threads, *limits)

    def do(self, kind: str, *parts: object, variables: dict[str, object] | None = None) -> Any:
        """The answer to a request, or the work that has to be done for it."""
        request = request_of((A(kind), *parts), Taker(variables))
        outcome = request.enter(getattr(self.evaluator, kind), request)
        return outcome if isinstance(outcome, Work) else value(outcome)


@pytest.fixture
def alone() -> Alone:
    return Alone()


class TestAlone:
    def test_in_a_copy_of_the_root(self, alone: Alone) -> None:
        assert alone.do("eval", b"x = base + n\nreturn x", {b"n": 2}) == 42
        assert "x" not in alone.root.variables
        assert "n" not in alone.root.variables

    def test_in_an_environment(self, alone: Alone) -> None:
        own: dict[str, object] = {"n": 1}
        assert alone.do("eval", b"n += m\nreturn n", {b"m": 4}, variables=own) == 5
        assert (own["n"], own["m"]) == (5, 4)
        assert alone.do("eval", None, {b"n": 7}, variables=own) is None
        assert own["n"] == 7

    def test_init_runs_in_the_root(self, alone: Alone) -> None:
        code = b"variable.set('init')\nbase = 1"
        assert alone.do("init", code, {}) is None
        assert alone.root.variables["base"] == 1
        assert alone.root.enter(VARIABLE.get) == "init"
        assert alone.root.enter(origin.get) is None
        assert VARIABLE.get() == "unset"

    def test_init_that_awaits_stays_in_the_root_s_context(self, alone: Alone) -> None:
        work = alone.do("init", b"import asyncio\nawait asyncio.sleep(0)", {})
        assert work.request.enter is alone.root.enter
        work.awaited.close()

    def test_what_awaits_is_work(self, alone: Alone) -> None:
        own: dict[str, object] = {}
        code = b"import asyncio\nawait asyncio.sleep(0)\nreturn n"
        options = {A("timeout"): 5000, A("on_timeout"): A("continue")}
        work = alone.do("eval", code, {b"n": 1}, options, variables=own)
        assert (work.timeout, work.continues) == (5.0, True)
        # Others that begin in this turn must not see them.
        assert own == {}
        assert asyncio.run(work.awaited) == 1
        assert own["n"] == 1

    def test_functions(self, alone: Alone) -> None:
        assert alone.do("call", b"math", b"sqrt", [16]) == 4.0
        assert alone.do("call", b"json", b"dumps", [[1]], {b"indent": None}) == "[1]"
        work = alone.do("call", b"asyncio", b"sleep", [0, b"done"])
        assert asyncio.run(work.awaited) == "done"

    def test_a_function_sees_the_environment_that_it_is_called_in(self, alone: Alone) -> None:
        own: dict[str, object] = {}
        calls: object = (A("call"), b"tests.test_evaluation", b"note_here", [])
        request = request_of(calls, Taker(own))
        request.enter(alone.evaluator.call, request)
        assert own == {"noted": True}

    def test_a_time_limit(self, alone: Alone) -> None:
        own: dict[str, object] = {"interrupter": alone.interrupter}
        code = b"return interrupter.blocking is not None"
        for options, limited in ([], False), ({A("timeout"): 5000}, True):
            assert alone.do("eval", code, {}, options, variables=own) is limited

    def run(
        self, alone: Alone, kind: str, *parts: object, variables: dict[str, object] | None = None
    ) -> Any:
        """What a thread would give for a request."""
        taker = Taker(variables)
        taker.threaded = True
        request = request_of((A(kind), *parts), taker)
        work = getattr(alone.evaluator, kind)(request)
        work.awaited.close()
        assert work.threaded
        assert here.get() is None
        ((function, place, _),) = alone.threads.given
        assert place is None
        alone.threads.given.clear()
        outcome = copy_context().run(function, request)
        return outcome if isinstance(outcome, Awaiting) else value(outcome)

    def test_in_threads(self, alone: Alone) -> None:
        own: dict[str, object] = {}
        assert self.run(alone, "eval", b"x = base + n\nreturn x", {b"n": 2}) == 42
        assert self.run(alone, "eval", None, {b"n": 2}, variables=own) is None
        assert own["n"] == 2
        assert self.run(alone, "call", b"math", b"sqrt", [16]) == 4.0
        calls: Any = b"tests.test_evaluation", b"note_here", []
        assert self.run(alone, "call", *calls, variables=own) is None
        assert own["noted"] is True
        awaiting_ones: list[Any] = [
            ("eval", b"import asyncio\nawait asyncio.sleep(0)\nreturn 5", {}),
            ("call", b"asyncio", b"sleep", [0, 5]),
        ]
        for parts in awaiting_ones:
            awaiting = self.run(alone, *parts)
            assert asyncio.run(awaiting.awaitable) == 5

    def test_a_function_that_is_not_there(self, alone: Alone) -> None:
        with pytest.raises(BadRequest, match="nosuch"):
            self.run(alone, "call", b"math", b"nosuch", [])

    @pytest.mark.parametrize("options", [{}, {A("executor"): A("thread")}])
    def test_init_stays_on_the_loop(self, alone: Alone, options: dict[object, object]) -> None:
        taker = Taker()
        taker.threaded = True
        request = request_of((A("init"), b"return 1", {}, options), taker)
        if options:
            with pytest.raises(BadRequest, match="init takes no executor"):
                alone.evaluator.init(request)
        else:
            assert value(alone.evaluator.init(request)) == 1
        assert alone.threads.given == []

    def test_the_request_says_where_it_runs(self, alone: Alone) -> None:
        for threaded in (False, True):
            taker = Taker()
            taker.threaded = not threaded
            options = {A("executor"): A("thread" if threaded else "loop")}
            request = request_of((A("eval"), b"return 1", {}, options), taker)
            outcome = alone.evaluator.eval(request)
            assert isinstance(outcome, Work) is threaded
            if isinstance(outcome, Work):
                outcome.awaited.close()

    def test_a_time_limit_for_all_that_bring_none(self) -> None:
        alone = Alone(max_time=20.0)
        code = b"return interrupter.blocking is not None"
        alone.root.variables["interrupter"] = alone.interrupter
        own = alone.root.variables.copy()
        limited: list[tuple[object, ...]] = [(), ({},), ({A("timeout"): 5000},)]
        for options in limited:
            assert alone.do("eval", code, {}, *options, variables=own) is True
        assert alone.do("eval", code, {}, {A("timeout"): A("infinity")}, variables=own) is False
        assert alone.do("call", b"tests.test_evaluation", b"limit_here", [])
        assert alone.do("init", code, {}) is False
        assert alone.do("init", code, {}, {A("timeout"): 5000}) is True
        for kind, *parts in (
            ("eval", b"import asyncio\nawait asyncio.sleep(0)", {}),
            ("call", b"asyncio", b"sleep", [0]),
        ):
            work = alone.do(str(kind), *parts)
            assert work.timeout == 20.0
            asyncio.run(work.awaited)

    @pytest.mark.parametrize(
        "request_",
        [
            (b"h\x03w\x04eval", "ends before its code does"),
            (b"h\x03w\x04evalm\0", "ends before its code does"),
            (b"h\x03w\x04evalm\0\0\0\xffx", "the code cannot be decoded"),
            (b"h\x02w\x04evalj", "3 or 4 elements, not 2"),
        ],
    )
    def test_wrong_ones(self, alone: Alone, request_: tuple[bytes, str]) -> None:
        data, message = request_
        with pytest.raises(BadRequest, match=message):
            alone.evaluator.eval(request_of(data))


class TestKilling:
    """A process is killed at the last limit of a request, where there is one."""

    TIMEOUT = A("timeout"), 2000
    KILL_AFTER = A("kill_after"), 500

    def test_what_is_done_in_time(self) -> None:
        killer = Killer()
        alone = Alone(killer=killer)
        assert alone.do("eval", b"return 1", {}, [self.TIMEOUT, self.KILL_AFTER]) == 1
        assert (killer.armed, killer.disarmed) == ([(2.5, 0)], [1])

    @pytest.mark.parametrize("code", [b"1 / 0", b"return object()"])
    def test_what_fails(self, code: bytes) -> None:
        killer = Killer()
        alone = Alone(killer=killer)
        with pytest.raises((ZeroDivisionError, EncodeError)):
            alone.do("eval", code, {}, [self.TIMEOUT, self.KILL_AFTER])
        assert (killer.armed, killer.disarmed) == ([(2.5, 0)], [1])

    def test_what_awaits_until_it_is_done(self) -> None:
        killer = Killer()
        alone = Alone(killer=killer)
        code = b"import asyncio\nawait asyncio.sleep(0)\nreturn n"
        work = alone.do("eval", code, {b"n": 1}, [self.TIMEOUT, self.KILL_AFTER])
        assert asyncio.run(work.awaited) == 1
        assert (killer.armed, killer.disarmed) == ([(2.5, 0)], [])
        work.disarm()
        assert killer.disarmed == [1]

    def test_it_is_armed_while_code_runs(self) -> None:
        killer = Killer()
        alone = Alone(killer=killer)
        alone.root.variables["killer"] = killer
        code = b"return len(killer.armed), len(killer.disarmed)"
        assert alone.do("eval", code, {}, [self.TIMEOUT, self.KILL_AFTER]) == (1, 0)

    def test_the_node_s_is_for_those_that_give_none(self) -> None:
        killer = Killer()
        alone = Alone(killer=killer, kill_after=0.25)
        assert alone.do("eval", b"return 1", {}, [self.TIMEOUT]) == 1
        assert alone.do("eval", b"return 1", {}, [self.TIMEOUT, self.KILL_AFTER]) == 1
        assert killer.armed == [(2.25, 0), (2.5, 0)]
        # And there is none without a time limit.
        for options in ([], [(A("timeout"), A("infinity"))]):
            assert alone.do("eval", b"return 1", {}, options) == 1
        assert alone.do("eval", b"return 1", {}) == 1
        assert len(killer.armed) == len(killer.disarmed) == 2

    def test_nil_and_init_too(self) -> None:
        killer = Killer()
        alone = Alone(killer=killer, kill_after=0.25)
        assert alone.do("eval", None, {b"n": 7}, [self.TIMEOUT], variables={}) is None
        assert alone.do("init", b"x = 1", {}, [self.TIMEOUT]) is None
        assert len(killer.armed) == len(killer.disarmed) == 2

    def test_time_beyond_a_limit_that_is_missing(self) -> None:
        alone = Alone(killer=Killer())
        with pytest.raises(BadRequest, match=r"^kill_after: is the time beyond timeout:, which is"):
            alone.do("eval", b"return 1", {}, [self.KILL_AFTER])

    def test_a_node_that_is_not_to_be_killed(self) -> None:
        alone = Alone()
        for code in (b"return 1", b"import asyncio\nawait asyncio.sleep(0)"):
            with pytest.raises(BadRequest, match="would end this whole node: start it with"):
                alone.do("eval", code, {}, [self.TIMEOUT, self.KILL_AFTER])
        assert Alone(kill_after=0.25).do("eval", b"return 1", {}, [self.TIMEOUT]) == 1


def note_here() -> None:
    """Called by a request."""
    variables = here.get()
    assert variables is not None
    variables["noted"] = True


def limit_here() -> bool:
    """Called by a request: whether it has a time limit."""
    limit = current.get()
    return limit is not None and limit.deadline < math.inf


class TestSnippets:
    def test_the_same_bytes_are_the_same_code(self) -> None:
        snippets = Snippets()
        one, two = (snippets.read(evaluation("return 1")) for _ in range(2))
        assert one is two
        assert one is not None

    def test_what_comes_behind_is_next(self) -> None:
        request = evaluation("return 1")
        Snippets().read(request)
        assert request.read(typed) == {}

    def test_long_ones_are_not_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled: list[str] = []

        def compile_noted(source: str, *place: Any, **options: Any) -> Code:
            compiled.append(source)
            return compile_code(source, *place, **options)

        monkeypatch.setattr(evaluation_room, "compile_code", compile_noted)
        snippets = Snippets()
        long = "return 1" + " " * MAX_CODE
        for source in ("return 1", long, "return 1", long):
            snippets.read(evaluation(source))
        assert compiled == ["return 1", long, long]

    def test_their_number_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled: list[str] = []

        def compile_noted(source: str, *place: Any, **options: Any) -> Code:
            compiled.append(source)
            return compile_code(source, *place, **options)

        monkeypatch.setattr(evaluation_room, "compile_code", compile_noted)
        monkeypatch.setattr(evaluation_room, "MAX_CODES", 2)
        snippets = Snippets()
        for source in ("1", "2", "1", "3", "3", "1"):
            snippets.read(evaluation(source))
        assert compiled == ["1", "2", "3", "1"]


def evaluation(source: str) -> Request:
    return request_of(evaluate(source.encode(), {}))


class TestScriptAlone:
    async def test_its_own_timeout_is_no_other(self, alone: Alone) -> None:
        code = "import asyncio\nawait asyncio.sleep(0)\nraise asyncio.TimeoutError('own')"
        failure = await alone.evaluator.run_init_script(code, "init.py", timeout=10)
        assert failure is not None
        assert (failure.code, failure.reason) == ("python_runtime_error", "own")

    async def test_it_is_cancelled(self, alone: Alone) -> None:
        alone.root.variables["began"] = began = asyncio.Event()
        code = "import asyncio\nbegan.set()\nawait asyncio.sleep(60)"
        running = asyncio.ensure_future(alone.evaluator.run_init_script(code, "init.py"))
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_ctrl_c_ends_the_start(self, alone: Alone) -> None:
        with pytest.raises(KeyboardInterrupt):
            await alone.evaluator.run_init_script("raise KeyboardInterrupt", "init.py")
