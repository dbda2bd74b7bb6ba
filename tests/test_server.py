"""The contract of the runtime, request by request, with a second Python node as the caller.

No BEAM is needed: what a real one makes of the answers is in tests/interop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Node
from snex_node.errors import CallTimeoutError, ProcessExitError
from snex_node.processes.process import Process
from snex_node.wire.terms import Atom, ImproperList, Pid, Reference, Term
from snex_runtime import serde
from snex_runtime.server import Server
from tests.support.epmd import RealEpmd
from tests.support.waiting import until

A = Atom
OK = A("ok")
STRUCT = A("__struct__")


def binary(text: str) -> bytes:
    return b"m" + len(text.encode()).to_bytes(4, "big") + text.encode()


class Caller:
    """A node that asks a runtime, and the runtime, which shares its event loop."""

    def __init__(self, node: Node, server: Server) -> None:
        self.node = node
        self.server = server
        self.to = ("snex", str(server.node.name))

    async def call(self, request: object, to: Any = None, timeout: float = 10.0) -> Any:
        return await self.node.call(to or self.to, request, timeout=timeout)

    async def eval(
        self, code: object, variables: object = None, options: object = None, to: Any = None
    ) -> Any:
        request: tuple[object, ...] = (A("eval"), code, {} if variables is None else variables)
        return await self.call(request if options is None else (*request, options), to)

    async def value(self, code: str, variables: object = None, to: Any = None) -> Any:
        ok, value = await self.eval(code, variables, to=to)
        assert ok == OK, value
        return value

    async def error(self, request: object, to: Any = None) -> tuple[str, str]:
        """Code and reason of what must be an error, whose shape is checked."""
        tag, error = await self.call(request, to)
        assert tag == A("error"), error
        assert set(error) == {"__struct__", "__exception__", "code", "reason", "traceback", "type"}
        assert error[A("__exception__")] is True
        assert error[STRUCT] == A("Elixir.Snex.Error")
        assert isinstance(error[A("reason")], bytes)
        assert error[A("reason")].strip()
        assert (error[A("type")] is None) == (error[A("traceback")] is None)
        return str(error[A("code")]), error[A("reason")].decode()

    async def env(self, variables: object = None, **options: object) -> Pid:
        pairs = {A(name.rstrip("_")): value for name, value in options.items()}
        ok, env = await self.call((A("make_env"), variables or {}, pairs))
        assert ok == OK, env
        assert isinstance(env, Pid)
        return env

    def cast(self, request: object) -> None:
        self.node.send(self.to, (A("$gen_cast"), request))


@pytest.fixture
async def caller(epmd: RealEpmd) -> AsyncIterator[Caller]:
    cookie = secrets.token_hex(8)
    options: Any = {"cookie": cookie, "epmd": "external", "epmd_port": epmd.port}
    name = secrets.token_hex(4)
    async with Node(
        f"py{name}@127.0.0.1", decoder=serde.decoder(), encoder=serde.encoder, **options
    ) as node:
        server = Server(node)
        async with Node(f"caller{name}@127.0.0.1", **options) as other:
            yield Caller(other, server)


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
        options = [(A("encoding_opts"), [(A(option), A(value))])]
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


class TestCall:
    async def test_a_function_of_a_module(self, caller: Caller) -> None:
        assert await caller.call((A("call"), A("math"), A("sqrt"), [16])) == (OK, 4.0)
        assert await caller.call((A("call"), b"os.path", b"join", [b"a", b"b"])) == (OK, b"a/b")
        assert await caller.call((A("call"), b"datetime", b"date.fromisoformat", [b"x"])) != OK

    async def test_keyword_arguments(self, caller: Caller) -> None:
        request = (A("call"), b"json", b"dumps", [{b"b": 1, b"a": 2}], {A("sort_keys"): True})
        assert await caller.call(request) == (OK, b'{"a": 2, "b": 1}')

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
            ((A("call"), b"math", b"sqrt"), "a call request has 4 or 5 elements, not 3"),
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


class TestPingAndInfo:
    async def test_ping(self, caller: Caller) -> None:
        assert await caller.call(A("ping")) == A("pong")
        assert await caller.call(A("ping"), to=await caller.env()) == A("pong")

    async def test_info(self, caller: Caller) -> None:
        await caller.env()
        ok, info = await caller.call(A("info"))
        assert ok == OK
        assert info[A("os_pid")] == os.getpid()
        assert info[A("python_version")].decode() == platform.python_version()
        assert info[A("node")] == caller.server.node.name
        assert info[A("nodes")] == [caller.node.name]
        assert info[A("environments")] == 1
        assert info[A("requests_running")] == 0
        assert 0 <= info[A("uptime_ms")] < 60_000
        later = (await caller.call(A("info")))[1]
        assert later[A("bytes_in")] > info[A("bytes_in")] > 0
        assert later[A("bytes_out")] > info[A("bytes_out")] > 0
        assert later[A("uptime_ms")] >= info[A("uptime_ms")]

    async def test_info_counts_what_runs(self, started: Caller) -> None:
        waiting = asyncio.ensure_future(started.eval("began.set()\nawait ended.wait()"))
        await started.server.root["began"].wait()  # type: ignore[attr-defined]
        assert (await started.call(A("info")))[1][A("requests_running")] == 1
        started.server.root["ended"].set()  # type: ignore[attr-defined]
        assert await waiting == (OK, None)
        assert (await started.call(A("info")))[1][A("requests_running")] == 0

    async def test_info_of_an_environment(self, caller: Caller) -> None:
        code, reason = await caller.error(A("info"), to=await caller.env())
        assert (code, "unknown request" in reason) == ("bad_request", True)


class TestEnvironments:
    async def test_they_keep_their_variables_apart(self, caller: Caller) -> None:
        one, two = await caller.env({"x": 1}), await caller.env({"x": 2})
        await caller.eval("y = x * 10", to=one)
        assert await caller.value("return x, y", to=one) == (1, 10)
        assert await caller.value("return x, 'y' in globals()", to=two) == (2, False)

    async def test_copies(self, caller: Caller) -> None:
        old = await caller.env({"a": 1, "b": 2, "c": 3})
        new = await caller.env({"c": 30}, from_=old)
        assert await caller.value("a = 10\nreturn a, b, c", to=new) == (10, 2, 30)
        assert await caller.value("return a, b, c", to=old) == (1, 2, 3)

    async def test_copies_of_parts(self, caller: Caller) -> None:
        old = await caller.env({"a": 1, "b": 2})
        code = "return {k: v for k, v in globals().items() if len(k) == 1}"
        only = await caller.env(from_=(old, [(A("only"), [b"a", b"z"])]))
        assert await caller.value(code, to=only) == {b"a": 1, b"z": None}
        without = await caller.env(from_=(old, {A("except"): [A("a")]}))
        assert await caller.value(code, to=without) == {b"b": 2}
        for env in (only, without):
            assert await caller.value("return snex.__name__, Elixir is snex.Elixir", to=env) == (
                b"snex",
                True,
            )

    async def test_of_many_later_ones_win(self, caller: Caller) -> None:
        one, two = await caller.env({"a": 1, "b": 1}), await caller.env({"b": 2, "c": 2})
        env = await caller.env(from_=[one, (two, [(A("except"), [b"c"])])])
        assert await caller.value("return a, b, 'c' in globals()", to=env) == (1, 2, False)

    async def test_destroy(self, caller: Caller) -> None:
        env = await caller.env()
        for _ in range(3):
            assert await caller.call((A("destroy_env"), env)) == OK
        with pytest.raises(ProcessExitError) as raised:
            await caller.eval("return 1", to=env)
        assert raised.value.reason == A("noproc")

    async def test_what_is_not_an_environment(self, caller: Caller) -> None:
        foreign = Pid("other@host", 1, 2, 3)
        assert await caller.call((A("destroy_env"), foreign)) == OK
        code, reason = await caller.error((A("make_env"), {}, [(A("from"), foreign)]))
        assert code == "env_not_found"
        assert "#PID<other@host.1.2> is no environment of this node" in reason
        code, _ = await caller.error((A("make_env"), {}, [(A("from"), caller.server.pid)]))
        assert code == "env_not_found"

    async def test_the_handle(self, caller: Caller) -> None:
        handle, heir = Process(caller.node), Process(caller.node)
        env = await caller.env(handle=handle.pid)
        watcher = Process(caller.node)
        watcher.monitor(env)
        assert await caller.call((A("handle"), heir.pid), to=env) == OK
        handle.exit(A("done"))
        # The node has seen the first handle end when it answers what was sent after that.
        assert await caller.value("return 1", to=env) == 1
        heir.exit(A("done"))
        down = await watcher.next(timeout=5)
        assert isinstance(down, tuple)
        assert down[0] == A("DOWN")
        assert down[3:] == (env, A("normal"))
        assert len(caller.server.environments) == 0

    async def test_without_a_handle_it_stays(self, caller: Caller) -> None:
        handle = Process(caller.node)
        env = await caller.env(handle=A("none"))
        kept = await caller.env(handle=handle.pid)
        assert await caller.call((A("handle"), A("none")), to=kept) == OK
        handle.exit(A("done"))
        assert await caller.call(A("ping"), to=env) == A("pong")
        assert await caller.call(A("ping"), to=kept) == A("pong")

    async def test_of_a_node_that_goes(self, caller: Caller) -> None:
        await caller.env()
        assert len(caller.server.environments) == 1
        caller.server.node.disconnect(str(caller.node.name))
        await until(lambda: len(caller.server.environments) == 0)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ((A("make_env"),), "make_env request has 2 or 3 elements, not 1"),
            ((A("make_env"), 5), "variables are a map, not 5"),
            ((A("make_env"), {}, 5), "options are a keyword list or a map, not 5"),
            ((A("make_env"), {}, [(A("nope"), 1)]), "unknown option nope: there are from, handle"),
            ((A("make_env"), {}, [(A("handle"), 7)]), "handle takes a pid or :none, not 7"),
            ((A("make_env"), {}, {A("from"): 7}), "7 is no environment"),
            ((A("make_env"), {1: 2}), "a variable's name is a binary or an atom, not 1"),
            ((A("destroy_env"), 7), "destroy_env takes an environment's pid, not 7"),
            ((A("destroy_env"),), "destroy_env"),
            ((A("handle"), A("none")), "a handle request goes to an environment"),
            (
                (A("make_env"), {}, [(A("encoding_opts"), [(A("set_as"), A("list"))])]),
                "set_as is one of set, frozenset",
            ),
        ],
    )
    async def test_wrong_requests(self, caller: Caller, request_: object, message: str) -> None:
        code, reason = await caller.error(request_)
        assert code in ("bad_request", "env_not_found")
        assert message in reason
        assert len(caller.server.environments) == 0

    @pytest.mark.parametrize(
        ("which", "names"),
        [
            ([(A("only"), [b"a"]), (A("except"), [])], [b"a"]),
            ([(A("only"), []), (A("except"), [b"a"])], [b"b"]),
            ([(A("only"), []), (A("except"), [])], [b"a", b"b"]),
            ([(A("only"), [])], [b"a", b"b"]),
            ([(A("except"), [])], [b"a", b"b"]),
            ([], [b"a", b"b"]),
        ],
    )
    async def test_empty_names_restrict_nothing(
        self, caller: Caller, which: object, names: list[bytes]
    ) -> None:
        env = await caller.env({b"a": 1, b"b": 2})
        made = await caller.env(from_=(env, which))
        assert await caller.value("return sorted(set(globals()) & {'a', 'b'})", to=made) == names

    async def test_only_and_except_exclude_each_other(self, caller: Caller) -> None:
        both = [(A("only"), [b"a"]), (A("except"), [b"a"])]
        env = await caller.env()
        request: object = (A("make_env"), {}, [(A("from"), (env, both))])
        code, reason = await caller.error(request)
        assert (code, "exclude each other" in reason) == ("bad_request", True)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def snex_code(src: object, file: object = b"f.py", line: object = 1) -> object:
    return {STRUCT: A("Elixir.Snex.Code"), A("src"): src, A("file"): file, A("line"): line}


def evaluate(code: object, variables: object, *options: object) -> tuple[object, ...]:
    return (A("eval"), code, variables, *options)


TEACH = "snex.set_custom_encoder takes a function that knows what to send instead"


class TestBadInput:
    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (A("nope"), "unknown request: :nope"),
            (b"text", 'unknown request: "text"'),
            (7, "unknown request: 7"),
            ((), "unknown request: {}"),
            ((A("nope"), 1), "unknown request: {:nope, 1}"),
            ((A("nope"), 10**5000), "unknown request: {:nope, <an integer of 16610 bits>}"),
            ((A("nope"), nested(30_000)), "unknown request: {:nope, [[[[[["),
            ({A("nope"): [None, b"\xff", {b"k": True}]}, '%{nope: [nil, <<255>>, %{"k" => true}]}'),
            ((b"eval", b"return 1", {}), "unknown request"),
            ([A("eval"), b"return 1"], "unknown request"),
            (["x" * 10_000], "unknown request"),
            (ImproperList([1], 2), "unknown request: [1 | 2]"),
            ((A("eval"),), "an eval request has 3 or 4 elements, not 1"),
            ((A("eval"), b"return 1"), "an eval request has 3 or 4 elements, not 2"),
            ((A("eval"), b"1", {}, [], 5), "an eval request has 3 or 4 elements, not 5"),
            (evaluate(b"return 1", [1]), "variables are a map, not [1]"),
            (evaluate(b"return 1", None), "variables are a map, not nil"),
            (evaluate(b"return 1", {1: 2}), "a variable's name is a binary or an atom, not 1"),
            (evaluate(b"return 1", {(): 2}), "a variable's name is a binary or an atom, not {}"),
            (evaluate(7, {}), "code is a binary, nil or a %Snex.Code{}, not 7"),
            (evaluate(A("x"), {}), "code is a binary, nil or a %Snex.Code{}, not :x"),
            (evaluate([b"x"], {}), 'code is a binary, nil or a %Snex.Code{}, not ["x"]'),
            (evaluate([], {}), "code is a binary, nil or a %Snex.Code{}, not []"),
            (evaluate([10**5000], {}), "not the charlist"),
            (evaluate(list(b"return 1"), {}), 'not the charlist ~c"return 1": give it in double'),
            (evaluate([0x20AC] * 100_000, {}), 'not the charlist ~c"€€€€'),
            (evaluate(10**5000, {}), "%Snex.Code{}, not <an integer of 16610 bits>"),
            (
                evaluate(snex_code(5), {}),
                "nil or a %Snex.Code{}, not %Snex.Code{",
            ),
            (evaluate({A("src"): b""}, {}), "code is a binary, nil or a %Snex.Code{}"),
            (
                evaluate(b"x = '\xff'", {}),
                "code is not UTF-8: the byte 0xff at 5 belongs to no",
            ),
            (evaluate(snex_code([b"a", [0xE4]]), {}), "code is not UTF-8: the byte 0xe4 at 1"),
            (evaluate(b"1", {}, 5), "options are a keyword list or a map, not 5"),
            (evaluate(b"1", {}, [5]), "options are a keyword list or a map, not [5]"),
            (evaluate(b"1", {}, [(A("a"), 5)]), "unknown option a: there are encoding_opts, time"),
            (evaluate(b"1", {}, (A("timeout"), 5)), "keyword list or a map, not {:timeout, 5}"),
            (evaluate(b"1", {}, 0), "options are a keyword list or a map, not 0"),
            (evaluate(b"1", {}, b""), 'options are a keyword list or a map, not ""'),
            (
                evaluate(b"1", {}, [(10**5000, 1)]),
                "unknown option <an integer of 16610 bits>",
            ),
            (evaluate(b"1", {}, [(nested(30_000), 1)]), "unknown option [[[[["),
            *[
                (evaluate(b"1", {}, {A("timeout"): wrong}), f"or :infinity, not {told}")
                for wrong, told in [
                    (-1, "-1"),
                    (-5, "-5"),
                    (1.5, "1.5"),
                    (b"5", '"5"'),
                    (True, "true"),
                    (2**32, "4294967296"),
                    (10**400, "10000000000"),
                    (10**5000, "<an integer of 16610 bits>"),
                    ([5], "[5]"),
                ]
            ],
            (evaluate(b"1", {}, {A("on_timeout"): A("x")}), "on_timeout takes :cancel or :contin"),
            (
                evaluate(b"1", {}, {A("encoding_opts"): {A("x"): 1}}),
                "unknown encoding option :x: there are binary_as, set_as, atom_as",
            ),
        ],
    )
    async def test_it_is_answered_once(
        self, caller: Caller, request_: object, message: str
    ) -> None:
        code, reason = await caller.error(request_)
        assert code == "bad_request"
        assert message in reason
        assert len(reason) < 500
        assert await caller.call(A("ping")) == A("pong")

    @pytest.mark.parametrize(
        "code",
        [
            {"src": 5, "file": b"f", "line": 1},
            {"src": [b"a", 1.5], "file": b"f", "line": 1},
            {"src": b"a", "file": 5, "line": 1},
            {"src": b"a", "file": b"f", "line": -1},
            {"src": b"a", "file": b"f", "line": b"1"},
            {"src": b"a", "file": b"f"},
        ],
    )
    async def test_a_code_struct_of_another_shape(
        self, caller: Caller, code: dict[str, object]
    ) -> None:
        struct = {STRUCT: A("Elixir.Snex.Code"), **{A(k): v for k, v in code.items()}}
        error, reason = await caller.error(evaluate(struct, {}))
        assert error == "bad_request"
        assert "code is a binary, nil or a %Snex.Code{}" in reason

    @pytest.mark.parametrize("line", [2**40, 10**30])
    async def test_a_line_no_file_has(self, caller: Caller, line: int) -> None:
        struct = {STRUCT: A("Elixir.Snex.Code"), A("src"): b"1", A("file"): b"f", A("line"): line}
        code, reason = await caller.error(evaluate(struct, {}))
        assert code in ("bad_request", "python_runtime_error")
        assert str(line) in reason.replace(",", "")

    @pytest.mark.parametrize(
        "request_",
        [
            b"",
            b"h",
            b"h\x00",
            b"h\x03",
            b"h\x03w",
            b"h\x03w\x04eval",
            b"h\x03w\x04evalm\x00",
            b"h\x03w\x04eval" + b"m\x00\x00\x00\xffreturn 1",
            b"h\x03w\x04eval" + binary("return 1"),
            b"h\x03w\x04eval" + binary("return 1") + b"t\x00\x00\x00\x05",
            b"h\x03w\x04eval" + binary("return 1") + b"\xc8",
            b"h\x04w\x04eval" + binary("return 1") + b"t\x00\x00\x00\x00",
            b"h\x02w\x08make_env",
            b"h\x02w\x0bdestroy_env",
            b"h\x02w\x06handle",
            b"h\x04w\x04callw\x01a",
            b"\xc8",
        ],
    )
    async def test_what_cannot_be_decoded(self, caller: Caller, request_: bytes) -> None:
        code, reason = await caller.error(Term(request_))
        assert code == "bad_request"
        assert reason
        assert await caller.call(A("ping")) == A("pong")

    async def test_text_that_is_not_utf_8_names_variable_and_remedy(self, caller: Caller) -> None:
        variables = {b"fine": 1, b"photo": [b"\xff\xd8"], b"also": 2}
        code, reason = await caller.error(evaluate(b"return 1", variables))
        assert code == "python_runtime_error"
        assert '"photo"' in reason
        assert "encoding_opts: [binary_as: :bytes]" in reason
        code, reason = await caller.error((A("make_env"), variables))
        assert code == "python_runtime_error"
        assert '"photo"' in reason
        options = [(A("encoding_opts"), [(A("binary_as"), A("bytes"))])]
        assert await caller.eval("return photo", variables, options) == (OK, [b"\xff\xd8"])

    async def test_a_wrapper_that_is_none_names_its_variable(self, caller: Caller) -> None:
        wrong = {STRUCT: A("Elixir.Snex.Serde.Float"), A("value"): A("x")}
        code, reason = await caller.error(evaluate(b"return 1", {b"size": [wrong]}))
        assert code == "python_runtime_error"
        assert 'Snex.Serde.float takes a number, :inf, :"-inf" or :nan, not :x' in reason

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

    async def test_one_answer_each(self, caller: Caller) -> None:
        """The answers of wrong requests are counted by a process that calls by hand."""
        process = Process(caller.node)
        requests = [
            A("nope"),
            evaluate(b"return object()", {}),
            evaluate(b"import sys; sys.exit()", {}),
        ]
        everything: list[object] = [*requests, A("ping")]
        for number, request in enumerate(everything):
            tag = Reference(str(caller.node.name), 1, (number, 0, 0))
            process.send(caller.to, (A("$gen_call"), (process.pid, tag), request))
        answers: list[Any] = [await process.next(timeout=5) for _ in range(4)]
        assert [tag.words[0] for tag, _ in answers] == [0, 1, 2, 3]
        assert answers[-1][1] == A("pong")
        assert len(process) == 0


class TestCastsAndSends:
    async def test_a_cast_is_run(self, caller: Caller) -> None:
        env = await caller.env({"x": 1})
        caller.node.send(env, (A("$gen_cast"), evaluate(b"x = 2", {})))
        assert await caller.value("return x", to=env) == 2

    async def test_a_plain_send_is_run(self, caller: Caller) -> None:
        env = await caller.env({"x": 1})
        caller.node.send(env, evaluate(b"x = 3", {}))
        assert await caller.value("return x", to=env) == 3

    @pytest.mark.parametrize(
        ("request_", "logged"),
        [
            (A("nope"), "unknown request: :nope"),
            (evaluate(b"1 / 0", {}), "ZeroDivisionError: division by zero"),
            (evaluate(b"import asyncio\nawait asyncio.sleep(0)\n1/0", {}), "ZeroDivisionError"),
            (evaluate(b"return object()", {}), "Cannot serialize object"),
        ],
    )
    @pytest.mark.parametrize("wrap", [True, False], ids=["cast", "send"])
    async def test_a_failure_is_logged(
        self,
        caller: Caller,
        caplog: pytest.LogCaptureFixture,
        request_: object,
        logged: str,
        wrap: bool,
    ) -> None:
        caller.node.send(caller.to, (A("$gen_cast"), request_) if wrap else request_)
        await until(lambda: logged in caplog.text)
        [record] = [r for r in caplog.records if r.name == "snex_runtime.server"]
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("a request without an answer failed: ")
        assert await caller.call(A("ping")) == A("pong")

    async def test_a_cast_that_would_make_an_environment(
        self, caller: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody would be told its pid."""
        caller.cast((A("make_env"), {}))
        await until(lambda: "make_env is a call" in caplog.text)
        assert len(caller.server.environments) == 0


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


async def test_a_runtime_that_stops_cancels_what_runs(started: Caller) -> None:
    root: dict[str, Any] = started.server.root
    call = asyncio.ensure_future(started.eval(FINALLY))
    await root["began"].wait()
    node = started.server.node
    assert isinstance(node, Node)
    await node.stop()
    await asyncio.wait_for(root["ended"].wait(), 5)
    with contextlib.suppress(ProcessExitError):
        tag, error = await call
        assert (tag, error[A("code")]) == (A("error"), A("cancelled"))
