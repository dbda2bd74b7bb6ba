"""Evaluated code that sends to and calls a real BEAM, from every kind of thread and loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd, executable
from tests.support.runtime import Runtime, until

EVAL = "GenServer.call({:snex, py}, {:eval, code, vars}, 15_000)"


async def ask(beam: Beam, runtime: Runtime, code: str, vars_: str = "%{}") -> object:
    source = f"vars = {vars_}\n{EVAL}"
    return await beam.eval(source, py=runtime.name, code=code.encode())


async def failing(beam: Beam, runtime: Runtime, code: str, vars_: str = "%{}") -> tuple[str, str]:
    """The code and the reason of the error."""
    answer = await ask(beam, runtime, code, vars_)
    assert isinstance(answer, tuple)
    assert answer[0] == "error", answer
    return str(answer[1]["code"]), answer[1]["reason"].decode()


class TestSend:
    async def test_every_destination(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        Process.register(self(), :send_target)
        code = \"\"\"
        await snex.send(pid, 1)
        await snex.send(alias_, 2)
        await snex.send('send_target', 3)
        await snex.send(snex.Atom('send_target'), 4)
        await snex.send((snex.Atom('send_target'), node), 5)
        await snex.send(('send_target', str(node)), 6)
        await snex.send(('nobody_here', node), 7)
        \"\"\"
        vars = %{pid: self(), alias_: :erlang.alias(), node: node()}
        {:ok, nil} = GenServer.call({:snex, py}, {:eval, code, vars})
        for _ <- 1..6 do receive do n -> n after 5000 -> :none end end
        """
        assert await beam.eval(source, py=runtime.name) == [1, 2, 3, 4, 5, 6]

    async def test_values(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        code = "await snex.send(me, (b'\\\\xff', 'ü', {'a': {1, 2}}, fun, float('nan'), None))"
        fun = &String.upcase/1
        {:ok, nil} = GenServer.call({:snex, py}, {:eval, code, %{me: self(), fun: fun}})
        receive do
          {<<255>>, "ü", %{"a" => set}, ^fun, :nan, nil} -> set == MapSet.new([1, 2])
        after 5000 -> :none end
        """
        assert await beam.eval(source, py=runtime.name) is True

    async def test_ten_thousand_in_order(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        code = "for n in range(10_000): await snex.send(me, n)"
        {:ok, nil} = GenServer.call({:snex, py}, {:eval, code, %{me: self()}}, 15_000)
        Enum.all?(0..9_999, fn n -> receive do m -> m == n after 5000 -> false end end)
        """
        assert await beam.eval(source, py=runtime.name) is True

    async def test_refused_before_anything_is_sent(self, beam: Beam, runtime: Runtime) -> None:
        for to in ("7", "None", "('a', 'b', 'c')", "('a', 7)", "[1]"):
            code, reason = await failing(beam, runtime, f"await snex.send({to}, 1)")
            assert code == "python_runtime_error"
            assert "it takes a pid, an alias, a name or (name, node)" in reason
        what = await failing(beam, runtime, "await snex.send(me, object())", "%{me: self()}")
        assert what[1].startswith("Cannot serialize object of <class 'object'>: snex.set_custom")
        what = await failing(beam, runtime, "await snex.send('x' * 256, 1)")
        assert "atom too long" in what[1]


class TestCall:
    async def test_results(self, beam: Beam, runtime: Runtime) -> None:
        assert await ask(
            beam,
            runtime,
            "import snex as s\n"
            "return [await snex.call('erlang', 'abs', [-1]),"
            " await snex.call(s.Atom('Elixir.Enum'), s.Atom('sum'), (1, 2)),"
            " await snex.call(m, f, [[1, 2]], node=n),"
            " await Elixir.Enum.map([1, 2], fun),"
            " await Elixir.Enum.map([1], fun, node=n),"
            " await s.BeamModuleProxy('lists').reverse([1, 2]),"
            " await s.BeamModuleProxy('lists', 'sum')([1, 2])]".replace("(1, 2)),", "[[1, 2]]),"),
            "%{m: Enum, f: :sum, n: node(), fun: &(&1 * 2)}",
        ) == ("ok", [1, 3, 3, [2, 4], [2], [2, 1], 3])

    async def test_result_encoding(self, beam: Beam, runtime: Runtime) -> None:
        code = """
call = lambda **o: snex.call('erlang', 'hd', [[x]], result_encoding_opts=o or None)
plain = await call()
raw = await call(binary_as="bytes", set_as=snex.EncodingOpt.SetAs.FROZENSET)
proxy = await Elixir.Kernel.hd([x], result_encoding_opts={"atom_as": "distinct_atom"})
return [type(plain[0]).__name__, type(raw[0]).__name__, type(raw[1]).__name__,
        type(proxy[2]).__name__, type(plain[2]).__name__, type(plain[3]).__name__]
"""
        answer = await ask(beam, runtime, code, '%{x: ["a", MapSet.new([1]), :atom, self()]}')
        names = [b"str", b"bytes", b"frozenset", b"DistinctAtom", b"Atom", b"Term"]
        assert answer == ("ok", names)
        what = await failing(
            beam, runtime, "await snex.call('erlang', 'node', [], result_encoding_opts={'a': 1})"
        )
        assert 'unknown encoding option "a"' in what[1]
        what = await failing(beam, runtime, "await snex.call('erlang', 'list_to_binary', [[255]])")
        assert "is not UTF-8" in what[1]
        assert "binary_as='bytes'" in what[1]

    @pytest.mark.parametrize(
        ("code", "texts"),
        [
            ("await Elixir.String.to_integer('x')", ["(ArgumentError)", "not a textual repr"]),
            ("await Elixir.Kernel.exit('bye')", ['** (exit) "bye"']),
            ("await Elixir.Kernel.throw(7)", ["** (throw) 7"]),
            ("await Elixir.Nope.f(1)", ["(UndefinedFunctionError)", "Nope.f/1 is undefined"]),
            ("await snex.call('erlang', 'apply', [fun, []])", ["(RuntimeError)", "from a fun"]),
            ("await snex.call('erlang', 'error', [b'\\xff'])", ["(ErlangError)", "255"]),
            ("await snex.call('erlang', 'abs', [1], node='nobody@127.0.0.1')", ["no node nobody"]),
        ],
        ids=lambda value: value.split("(")[0] if isinstance(value, str) else "",
    )
    async def test_failures(
        self, beam: Beam, runtime: Runtime, code: str, texts: list[str]
    ) -> None:
        variables = '%{fun: fn -> raise "from a fun" end}'
        wrapped = f"""
try:
    {code}
except snex.ElixirError as error:
    return (str(error), error.kind, type(error).__module__)
"""
        answer = await ask(beam, runtime, wrapped, variables)
        assert isinstance(answer, tuple)
        assert answer[0] == "ok", answer
        text, kind, module = answer[1]
        for expected in texts:
            assert expected in text.decode()
        if "nobody" not in code:
            assert "failed on Elixir side" in text.decode()
        assert kind in (b"error", b"exit", b"throw")
        assert module == b"snex"

    async def test_the_reason_by_the_usual_table(self, beam: Beam, runtime: Runtime) -> None:
        code = """
try:
    await Elixir.Kernel.throw({"a": [snex.Atom("b"), {1}]})
except snex.ElixirError as error:
    return error.reason == {"a": ["b", {1}]}, error.kind
"""
        assert await ask(beam, runtime, code) == ("ok", (True, b"throw"))

    async def test_an_object_in_a_result_that_raises(self, beam: Beam, runtime: Runtime) -> None:
        made = '%{__struct__: Snex.Serde.Object, module: "builtins", name: "int", args: ["x"]}'
        code = "return await snex.call('erlang', 'apply', [fun, []])"
        _, reason = await failing(beam, runtime, code, f"%{{fun: fn -> {made} end}}")
        assert "invalid literal for int()" in reason
        assert await runtime.run(beam, "return 1") == 1

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("await snex.call(7, 'f', [])", "module takes a name"),
            ("await snex.call('m', None, [])", "function takes a name"),
            ("await snex.call('m', 'f', [], node=7)", "node takes a name"),
            ("await snex.call('m', 'f', 'abc')", "arguments of a function are a list"),
            ("await snex.cast('m', 'f', b'abc')", "arguments of a function are a list"),
            ("await snex.call('m' * 256, 'f', [])", "atom too long"),
            ("await snex.cast('m', 'f' * 256, [])", "atom too long"),
            ("await snex.call('m', 'f', [object()])", "Cannot serialize object"),
            ("await snex.cast('m', 'f', [object()])", "Cannot serialize object"),
            ("await Elixir.Enum()", "is a module; call one of its functions"),
            ("Elixir.Enum.map.reduce", "is a function and has no reduce"),
        ],
    )
    async def test_refused(self, beam: Beam, runtime: Runtime, code: str, reason: str) -> None:
        assert reason in (await failing(beam, runtime, code))[1]

    async def test_cast(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        code = \"\"\"
        await snex.cast('erlang', 'send', [me, 1])
        await Elixir.Kernel.send(me, 2, cast=True)
        await Elixir.Kernel.send(me, 3, cast=True, node=node)
        \"\"\"
        {:ok, nil} = GenServer.call({:snex, py}, {:eval, code, %{me: self(), node: node()}})
        Enum.sort(for _ <- 1..3 do receive do n -> n after 5000 -> :none end end)
        """
        assert await beam.eval(source, py=runtime.name) == [1, 2, 3]

    async def test_a_large_argument_and_result(self, beam: Beam, runtime: Runtime) -> None:
        code = (
            "big = b'x' * 10_000_000\n"
            "back = await snex.call('erlang', 'hd', [[big]], "
            "result_encoding_opts={'binary_as': 'bytes'})\n"
            "return (back == big, await snex.call('erlang', 'byte_size', [big]))"
        )
        assert await ask(beam, runtime, code) == ("ok", (True, 10_000_000))

    async def test_cancelled(self, beam: Beam, runtime: Runtime) -> None:
        code = """
import asyncio
call = asyncio.ensure_future(snex.call("timer", "sleep", [60_000]))
await asyncio.sleep(0.05)
call.cancel()
try:
    await call
except asyncio.CancelledError:
    return await snex.call("erlang", "abs", [-2])
"""
        assert await ask(beam, runtime, code) == ("ok", 2)


THREADS = {
    "to_thread": """
import asyncio
def work():
    return asyncio.run(snex.call("erlang", "abs", [-3]))
return await asyncio.to_thread(work)
""",
    "run_in_executor": """
import asyncio
def work():
    async def both():
        await snex.send(me, 1)
        return await snex.call("erlang", "abs", [-3])
    return asyncio.run(both())
return await asyncio.get_running_loop().run_in_executor(None, work)
""",
    "a bare thread": """
import asyncio, threading
done = asyncio.Event()
loop = asyncio.get_running_loop()
out = []
def work():
    async def all():
        await snex.send(me, 1)
        await snex.cast("erlang", "abs", [1])
        out.append(await Elixir.Kernel.abs(-3))
    asyncio.run(all())
    loop.call_soon_threadsafe(done.set)
threading.Thread(target=work).start()
await done.wait()
return out[0]
""",
    "another loop, errors": """
import asyncio
def work():
    async def failing():
        try:
            await Elixir.Kernel.exit("x")
        except snex.ElixirError:
            return 3
    return asyncio.run(failing())
return await asyncio.to_thread(work)
""",
    "another loop, cancelled": """
import asyncio
def work():
    async def late():
        try:
            await asyncio.wait_for(snex.call("timer", "sleep", [60_000]), 0.05)
        except asyncio.TimeoutError:
            return await Elixir.Kernel.abs(-3)
    return asyncio.run(late())
return await asyncio.to_thread(work)
""",
}


class TestThreads:
    @pytest.mark.parametrize("code", THREADS.values(), ids=THREADS)
    async def test_call(self, beam: Beam, runtime: Runtime, code: str) -> None:
        assert await ask(beam, runtime, code, "%{me: self()}") == ("ok", 3)

    async def test_four_threads_of_a_thousand_calls(self, beam: Beam, runtime: Runtime) -> None:
        code = """
import asyncio
def work(k):
    async def calls():
        one_by_one = [await snex.call("erlang", "abs", [-n]) for n in range(500)]
        at_once = await asyncio.gather(
            *(snex.call("erlang", "abs", [-n]) for n in range(500, 1000)))
        return one_by_one + at_once == list(range(1000))
    return asyncio.run(calls())
return await asyncio.gather(*(asyncio.to_thread(work, k) for k in range(4)))
"""
        assert await ask(beam, runtime, code) == ("ok", [True] * 4)


class TestWhichNode:
    async def test_two_beams(
        self, beam: Beam, runtime: Runtime, start_beam: Callable[..., Beam]
    ) -> None:
        other = start_beam(cookie=beam.cookie, flags=["-connect_all", "false"])
        code = """
import asyncio
async def inherits():
    await asyncio.sleep(0.01)
    return await Elixir.Kernel.node()
task = asyncio.ensure_future(inherits())
thread = asyncio.to_thread(lambda: asyncio.run(Elixir.Kernel.node()))
return [await Elixir.Kernel.node(), await task, await thread,
        await snex.call("erlang", "node", [], node=there)]
"""
        here, there = Atom(beam.name), Atom(other.name)
        source = "GenServer.call({:snex, py}, {:eval, code, %{there: there}})"
        binds: dict[str, Any] = {"py": runtime.name, "code": code.encode()}
        for _ in range(3):  # interleaved, so that one's request runs inside of the other's
            answers = await asyncio.gather(
                beam.eval(source, **binds, there=there), other.eval(source, **binds, there=here)
            )
            assert answers[0] == ("ok", [here, here, here, there])
            assert answers[1] == ("ok", [there, there, there, here])

        # A thread that was not started by a request: the node that made the last one.
        last = """
import asyncio
return await asyncio.get_running_loop().run_in_executor(
    None, lambda: asyncio.run(Elixir.Kernel.node()))
"""
        binds["code"] = last.encode()
        source = "GenServer.call({:snex, py}, {:eval, code, %{}})"
        assert await other.eval(source, **binds) == ("ok", there)
        assert await beam.eval(source, **binds) == ("ok", here)

    async def test_a_background_task_outlives_its_node(
        self, beam: Beam, start_runtime: Callable[..., Runtime], start_beam: Callable[..., Beam]
    ) -> None:
        runtime = start_runtime(cookie=beam.cookie)
        other = start_beam(cookie=beam.cookie, flags=["-connect_all", "false"])
        code = """
import asyncio
snex._out = []
async def ask():
    try:
        snex._out.append(await Elixir.Kernel.node())
    except Exception as error:
        snex._out.append(repr(error))
def outside():
    import contextvars
    contextvars.Context().run(asyncio.ensure_future, ask())
snex._ask = outside
"""
        source = "GenServer.call({:snex, py}, {:eval, code, %{}})"
        assert await other.eval(source, py=runtime.name, code=code.encode()) == ("ok", None)
        await other.kill()

        # The node that made the last request is gone, and one is connected: that one is meant.
        poll = "import asyncio; await asyncio.sleep(0.01); return snex._out"
        await runtime.run(beam, "snex._ask()")
        answer = await until(lambda: runtime.run(beam, poll))
        assert answer == [Atom(beam.name)]


@pytest.fixture
def bare_erl(epmd: RealEpmd, beam: Beam) -> Iterator[str]:
    """The name of a node without Elixir."""
    name = f"erl{secrets.token_hex(4)}@127.0.0.1"
    process = subprocess.Popen(
        [executable("erl"), "-noinput", "-name", name, "-setcookie", beam.cookie,
         "-start_epmd", "false", "-eval", 'io:format("up~n").'],
        env={**os.environ, "ERL_EPMD_PORT": str(epmd.port)},
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield name
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_a_bare_erlang_node(beam: Beam, runtime: Runtime, bare_erl: str) -> None:
    code = f"""
there = {bare_erl!r}
out = [await snex.call("lists", "sum", [[1, 2]], node=there)]
for function, args in (("abs", ["x"]), ("exit", ["bye"]), ("throw", [7]), ("nope", [])):
    try:
        await snex.call("erlang", function, args, node=there)
    except snex.ElixirError as error:
        out.append((error.kind, str(error)))
return out
"""
    answer = await ask(beam, runtime, code)
    assert isinstance(answer, tuple)
    total, *failures = answer[1]
    assert total == 3
    assert [kind for kind, _ in failures] == [b"error", b"exit", b"throw", b"error"]
    for (_, text), word in zip(failures, ("badarg", "bye", "7", "undef")):
        assert "failed on Elixir side" in text.decode()
        assert word in text.decode()
