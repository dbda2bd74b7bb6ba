"""Evaluation from a real Elixir: the README's examples that need no client, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.beam import Beam
from tests.support.runtime import Runtime

HELPERS = """
snex = {:snex, py}
pyeval = fn to, code, vars -> GenServer.call(to, {:eval, code, vars}) end
make_env = fn vars, opts -> GenServer.call(snex, {:make_env, vars, opts}) end
_ = {snex, pyeval, make_env}
"""


async def elixir(beam: Beam, runtime: Runtime, source: str, **bindings: Any) -> Any:
    return await beam.eval(HELPERS + source, py=runtime.name, **bindings)


class TestReadme:
    async def test_the_first_of_all(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        true = Node.connect(py)
        {GenServer.call({:snex, py}, {:eval, "return 6 * x", %{"x" => 7}}),
         pyeval.(snex, "return 'hello world!'", %{})}
        """
        assert await elixir(beam, runtime, source) == (("ok", 42), ("ok", b"hello world!"))

    async def test_quick_example(self, beam: Beam, runtime: Runtime) -> None:
        source = '''
        pyeval.(snex, """
          width, height = await Elixir.Enum.map([3, 3], mapper)
          matrix = [[(-1) ** (i + j) for j in range(height)] for i in range(width)]

          return sum(x * x for row in matrix for x in row) ** 0.5
          """, %{"mapper" => &(&1 * 2)})
        '''
        assert await elixir(beam, runtime, source) == ("ok", 6.0)

    async def test_environments(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {:ok, env} = make_env.(%{}, [])
        {:ok, nil} = pyeval.(env, "x = 10", %{})
        {:ok, nil} = pyeval.(env, "y = x * z", %{"z" => 2})
        {:ok, {10, 20, 2}} = pyeval.(env, "return (x, y, z)", %{})
        {:ok, copy} = make_env.(%{"hello" => 42.0}, from: {env, only: ["x"]})
        {:ok, {10, 42.0, false}} = pyeval.(copy, "return (x, hello, 'y' in globals())", %{})
        :ok
        """
        assert await elixir(beam, runtime, source) == "ok"

    async def test_initialization_script(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        runtime = start_runtime(cookie=beam.cookie, init_script="import math\nmy_var = 42\n")
        source = """
        {:ok, env} = make_env.(%{}, [])
        {pyeval.(env, "return int(math.sqrt(my_var ** 2))", %{}),
         pyeval.(snex, "return my_var", %{})}
        """
        assert await elixir(beam, runtime, source) == (("ok", 42), ("ok", 42))

    async def test_async_code(self, beam: Beam, runtime: Runtime) -> None:
        source = '''
        pyeval.(snex, """
          import asyncio
          async def do_thing():
              await asyncio.sleep(0.01)
              return "hello"

          return await do_thing()
          """, %{})
        '''
        assert await elixir(beam, runtime, source) == ("ok", b"hello")

    async def test_blocking_code(self, beam: Beam, runtime: Runtime) -> None:
        source = '''
        {:ok, pool_env} = make_env.(%{}, [])
        {:ok, nil} = pyeval.(pool_env, """
          import asyncio
          from concurrent.futures import ThreadPoolExecutor

          pool = ThreadPoolExecutor(max_workers=cnt)
          loop = asyncio.get_running_loop()
          """, %{"cnt" => 5})
        {:ok, env} = make_env.(%{}, from: {pool_env, only: ["pool", "loop"]})
        answer = pyeval.(env, """
          def blocking_io():
              return "world!"

          return await loop.run_in_executor(pool, blocking_io)
          """, %{})
        {:ok, nil} = pyeval.(env, "pool.shutdown()", %{})
        answer
        '''
        assert await elixir(beam, runtime, source) == ("ok", b"world!")

    async def test_an_in_repo_project(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        modules = {"foo": 'def bar():\n    return "hi from bar"\n'}
        runtime = start_runtime(cookie=beam.cookie, modules=modules)
        source = """
        {pyeval.(snex, "import foo\\nreturn foo.bar()", %{}),
         GenServer.call(snex, {:call, :foo, :bar, []}), :erpc.call(py, :foo, :bar, [])}
        """
        expected = b"hi from bar"
        answers = await elixir(beam, runtime, source)
        assert answers == (("ok", expected), ("ok", expected), expected)

    async def test_sending(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        code = "await snex.send(to, b'hello from snex!')"
        {:ok, nil} = pyeval.(snex, code, %{"to" => self()})
        first = receive do message -> message after 5000 -> :nothing end
        Process.register(self(), :test_eval_sending)
        code = "await snex.send((snex.Atom('test_eval_sending'), node), b'again')"
        {:ok, nil} = pyeval.(snex, code, %{"node" => node()})
        {first, receive do message -> message after 5000 -> :nothing end}
        """
        assert await elixir(beam, runtime, source) == (b"hello from snex!", b"again")

    async def test_calling(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {:ok, agent} = Agent.start_link(fn -> 42 end)
        code = "return await snex.call('Elixir.Agent', 'get', [agent, identity])"
        get = pyeval.(snex, code, %{"agent" => agent, "identity" => & &1})
        code = "return await Elixir.Enum.frequencies(['a', 'b', 'a', 'a', 'd', 'b'])"
        {get, pyeval.(snex, code, %{})}
        """
        frequencies = {b"a": 3, b"b": 2, b"d": 1}
        assert await elixir(beam, runtime, source) == (("ok", 42), ("ok", frequencies))

    async def test_locations(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {:error, error} = pyeval.(snex, "raise RuntimeError('nolocation')", %{})
        code = %{__struct__: Snex.Code, src: "raise RuntimeError('x')", file: "/a/b.ex", line: 565}
        {:error, located} = pyeval.(snex, code, %{})
        {Enum.at(error.traceback, -2), Enum.at(located.traceback, -2)}
        """
        assert await elixir(beam, runtime, source) == (
            b'  File "<Snex.Code>", line 1, in <module>\n',
            b'  File "/a/b.ex", line 565, in <module>\n',
        )


class TestErrors:
    async def test_they_are_exceptions_for_elixir(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {:error, error} = pyeval.(snex, "def f():\\n  1 / 0\\nf()", %{})
        {error.__struct__ == Snex.Error, error.__exception__, error.code, error.reason,
         error.traceback, error.type, Enum.sort(Map.keys(error))}
        """
        struct, exception, code, reason, traceback, kind, keys = await elixir(beam, runtime, source)
        assert (struct, exception) == (True, True)
        assert (code, reason) == ("python_runtime_error", b"division by zero")
        assert traceback == [
            b"Traceback (most recent call last):\n",
            b'  File "<Snex.Code>", line 3, in <module>\n',
            b'  File "<Snex.Code>", line 2, in f\n',
            b"ZeroDivisionError: division by zero\n",
        ]
        assert kind == b"ZeroDivisionError"
        assert keys == ["__exception__", "__struct__", "code", "reason", "traceback", "type"]

    @pytest.mark.parametrize(
        ("request_", "code", "reason"),
        [
            (":nope", "bad_request", "unknown request: :nope"),
            ("{}", "bad_request", "unknown request: {}"),
            ('"text"', "bad_request", 'unknown request: "text"'),
            ("self()", "bad_request", "unknown request: #PID<"),
            ("fn -> 1 end", "bad_request", "unknown request: #Function<"),
            ("{:eval, :code, %{}}", "bad_request", "code is a binary, nil or a %Snex.Code{}, not"),
            ('{:eval, "1", [1]}', "bad_request", "variables are a map, not [1]"),
            ('{:eval, "1", [x: 1]}', "bad_request", "variables are a map, not [x: 1]"),
            ('{:eval, "1", %{self() => 1}}', "bad_request", "a variable's name is a binary"),
            ('{:eval, "1", %{}, [nope: 1]}', "bad_request", "unknown option nope: there are"),
            ("{:eval, <<255>>, %{}}", "bad_request", "code is not UTF-8: the byte 0xff at 0"),
            ('{:eval, ~c"return 1", %{}}', "bad_request", 'not the charlist ~c"return 1": give it'),
            ("{:eval, 42, %{}}", "bad_request", "code is a binary, nil or a %Snex.Code{}, not 42"),
            (
                "{:bogus, Integer.pow(10, 5000)}",
                "bad_request",
                "{:bogus, <an integer of 166",
            ),
            ("Enum.reduce(1..30_000, 1, &{&2, &1})", "bad_request", "unknown request: {{{{{{{{"),
            (
                '{:eval, "1", %{}, [timeout: Integer.pow(10, 400)]}',
                "bad_request",
                "infinity, not 10",
            ),
            ('{:eval, "1", %{}, [timeout: -5]}', "bad_request", "or :infinity, not -5"),
            ('{:eval, "1", %{}, [timeout: "5"]}', "bad_request", 'or :infinity, not "5"'),
            ("{:eval, <<1::1>>, %{}}", "bad_request", "code is a binary"),
            ('{:eval, "x = = 1", %{}}', "python_runtime_error", "invalid syntax (<Snex.Code>, li"),
            ('{:eval, "import sys; sys.exit(3)", %{}}', "python_runtime_error", "3"),
            ('{:eval, "return f", %{"f" => 1, f: 2}}', None, ""),
            ('{:eval, "1", %{"photo" => <<255>>}}', "python_runtime_error", 'variable "photo"'),
            (
                '{:eval, "1", %{"photo" => <<255>>}}',
                "python_runtime_error",
                "encoding_opts: [binary_as: :bytes]",
            ),
            ("{:call, :math, :nope, []}", "bad_request", "module math has no nope"),
        ],
    )
    async def test_bad_input_has_one_clear_answer(
        self, beam: Beam, runtime: Runtime, request_: str, code: str | None, reason: str
    ) -> None:
        # A bare call, so that a second answer would be seen.
        source = f"""
        ref = make_ref()
        send(snex, {{:"$gen_call", {{self(), ref}}, {request_}}})
        answer = receive do {{^ref, answer}} -> answer after 5000 -> :nothing end
        :pong = GenServer.call(snex, :ping)
        more = receive do message -> message after 0 -> :nothing end
        {{answer, more}}
        """
        (tag, answer), more = await elixir(beam, runtime, source)
        assert more == "nothing"
        if code is None:
            assert tag == "ok"
        else:
            assert (tag, answer["code"]) == ("error", code)
            assert reason in answer["reason"].decode()

    async def test_the_node_goes_on(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {:ok, env} = make_env.(%{n: 0}, [])
        bad = ["1/0", "import sys; sys.exit()", "raise KeyboardInterrupt", "return object()", "x ="]
        for n <- 1..50, code <- bad do
          {:error, %{code: :python_runtime_error}} = pyeval.(env, code, %{})
          {:ok, ^n} = if code == "1/0", do: pyeval.(env, "n += 1\\nreturn n", %{}), else: {:ok, n}
        end
        pyeval.(env, "return n", %{})
        """
        assert await elixir(beam, runtime, source) == ("ok", 50)


class TestCallsAtOnce:
    async def test_a_thousand_callers(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        code = "import asyncio\\nawait asyncio.sleep(0.01 * (n % 3))\\nreturn n"
        1..1000
        |> Enum.map(fn n -> Task.async(fn ->
             pyeval.(snex, (if rem(n, 2) == 0, do: code, else: "return n"), %{"n" => n})
           end) end)
        |> Task.await_many(20_000)
        |> Enum.with_index(1)
        |> Enum.all?(fn {answer, n} -> answer == {:ok, n} end)
        """
        assert await elixir(beam, runtime, source) is True

    async def test_evaluations_interleave_only_at_awaits(
        self, beam: Beam, runtime: Runtime
    ) -> None:
        source = '''
        {:ok, env} = make_env.(%{"n" => 0}, [])
        code = """
        import asyncio
        for _ in range(50):
            before = n
            n = before + 1
            if step and _ % 10 == 0:
                await asyncio.sleep(0)
        """
        1..10
        |> Enum.map(fn _ -> Task.async(fn -> pyeval.(env, code, %{"step" => true}) end) end)
        |> Task.await_many()
        pyeval.(env, "return n", %{})
        '''
        assert await elixir(beam, runtime, source) == ("ok", 500)

    async def test_casts_and_calls_of_one_process_are_run_in_order(
        self, beam: Beam, runtime: Runtime
    ) -> None:
        source = """
        {:ok, env} = make_env.(%{"seen" => []}, [])
        for n <- 1..200, do: GenServer.cast(env, {:eval, "seen.append(n)", %{"n" => n}})
        send(env, {:eval, "seen.append(201)", %{}})
        {:ok, seen} = pyeval.(env, "return seen", %{})
        seen == Enum.to_list(1..201)
        """
        assert await elixir(beam, runtime, source) is True
