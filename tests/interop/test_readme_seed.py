"""The examples of the README of Snex that need no client library, through plain messages."""

from __future__ import annotations

from collections.abc import Callable

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.runtime import Runtime

# `Snex.pyeval` and `Snex.make_env` as the contract has them: nothing else is on the BEAM.
SNEX = """
inp = {:snex, py}
pyeval = fn to, code, vars -> GenServer.call(to, {:eval, code, vars}, 15_000) end
make_env = fn vars, opts -> GenServer.call(inp, {:make_env, vars, opts}) end
_ = {inp, pyeval, make_env}
"""


async def run(beam: Beam, runtime: Runtime, source: str) -> object:
    return await beam.eval(SNEX + source, py=runtime.name)


async def test_pyeval(beam: Beam, runtime: Runtime) -> None:
    source = """{:ok, "hello world!"} = pyeval.(inp, "return 'hello world!'", %{})"""
    assert await run(beam, runtime, source) == ("ok", b"hello world!")


async def test_quick_example_with_a_function_of_elixir(beam: Beam, runtime: Runtime) -> None:
    # The README's multiplies with numpy, which is not ours to need.
    source = '''
    {:ok, 6.0} = pyeval.(inp, """
      width, height = await Elixir.Enum.map([3, 3], mapper)
      matrix = [[(-1) ** (i + j) for j in range(height)] for i in range(width)]

      return sum(x * x for row in matrix for x in row) ** 0.5
      """, %{"mapper" => &(&1 * 2)})
    '''
    assert await run(beam, runtime, source) == ("ok", 6.0)


async def test_environments(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:ok, env} = GenServer.call(inp, {:make_env, %{}})
    {:ok, nil} = pyeval.(env, "x = 10", %{})
    {:ok, nil} = pyeval.(env, "y = x * z", %{"z" => 2})
    {:ok, {10, 20, 2}} = pyeval.(env, "return (x, y, z)", %{})
    """
    assert await run(beam, runtime, source) == ("ok", (10, 20, 2))


async def test_copying_environments(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:ok, oldest_env} = make_env.(%{"pool" => 1, "a" => 1}, [])
    {:ok, older_env} = make_env.(%{"pool" => 2, "a" => 2}, [])
    {:ok, old_env} = make_env.(%{"pool" => 3, "b" => 3, "world" => 4}, [])
    {:ok, one} = make_env.(%{}, from: old_env)
    {:ok, many} =
      make_env.(%{}, from: [oldest_env, {older_env, only: ["pool"]}, {old_env, except: ["pool"]}])
    {:ok, vars} = make_env.(%{"hello" => 42.0}, from: {old_env, only: ["world"]})
    {pyeval.(one, "return pool, b", %{}), pyeval.(many, "return pool, a, b", %{}),
     pyeval.(vars, "return hello, world", %{})}
    """
    answer = await run(beam, runtime, source)
    assert answer == (("ok", (3, 3)), ("ok", (2, 1, 3)), ("ok", (42.0, 4)))


async def test_init_script(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    script = "import statistics as np\nmy_var = 42\n"
    runtime = start_runtime(cookie=beam.cookie, init_script=script)
    source = """
    {:ok, env} = make_env.(%{}, [])
    {:ok, 42} = pyeval.(env, "return int(np.mean([my_var]))", %{})
    """
    assert await run(beam, runtime, source) == ("ok", 42)


async def test_an_environment_on_another_node(
    beam: Beam, runtime: Runtime, start_beam: Callable[..., Beam]
) -> None:
    other = start_beam(cookie=beam.cookie)
    source = """
    {:ok, env} = make_env.(%{"hello" => "hello from a!"}, [])
    :erpc.call(b, GenServer, :call, [env, {:eval, "return hello", %{}}])
    """
    answer = await beam.eval(SNEX + source, py=runtime.name, b=Atom(other.name))
    assert answer == ("ok", b"hello from a!")


async def test_round_trip_of_a_struct(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    script = """
import datetime

def custom_encoder(obj):
    if isinstance(obj, datetime.date):
        return {
            snex.Atom("__struct__"): snex.Atom("Elixir.Date"),
            snex.Atom("day"): obj.day,
            snex.Atom("month"): obj.month,
            snex.Atom("year"): obj.year,
            snex.Atom("calendar"): snex.Atom("Elixir.Calendar.ISO"),
        }

    raise TypeError(f"Cannot serialize object of {type(obj)}")

snex.set_custom_encoder(custom_encoder)
"""
    runtime = start_runtime(cookie=beam.cookie, init_script=script)
    source = '''
    # What the client's Snex.Serde.object("datetime", "date", [2025, 12, 28]) makes.
    date = %{__struct__: Snex.Serde.Object, module: "datetime", name: "date", args: [2025, 12, 28]}
    {:ok, {{"datetime", "date"}, %Date{year: 2026, month: 12, day: 27}}} =
      pyeval.(inp, """
        typ = type(date)
        next_date = date + datetime.timedelta(days=364)

        return ((typ.__module__, typ.__name__), next_date)
        """, %{"date" => date})
    {:error, error} = pyeval.(inp, "return {'a': [object()]}", %{})
    error.reason
    '''
    reason = await run(beam, runtime, source)
    assert reason == b"Cannot serialize object of <class 'object'> (at [\"a\"][0])"


async def test_async_code(beam: Beam, runtime: Runtime) -> None:
    source = '''
    {:ok, "hello"} = pyeval.(inp, """
      import asyncio
      async def do_thing():
          await asyncio.sleep(0.01)
          return "hello"

      return await do_thing()
      """, %{})
    '''
    assert await run(beam, runtime, source) == ("ok", b"hello")


async def test_blocking_code(beam: Beam, runtime: Runtime) -> None:
    source = '''
    {:ok, pool_env} = make_env.(%{}, [])
    {:ok, nil} = pyeval.(pool_env, """
      import asyncio
      from concurrent.futures import ThreadPoolExecutor

      pool = ThreadPoolExecutor(max_workers=cnt)
      loop = asyncio.get_running_loop()
      """, %{"cnt" => 5})
    {:ok, env} = make_env.(%{}, from: {pool_env, only: ["pool", "loop"]})
    {:ok, "world!"} = pyeval.(env, """
      def blocking_io():
          return "world!"

      return await loop.run_in_executor(pool, blocking_io)
      """, %{})
    '''
    assert await run(beam, runtime, source) == ("ok", b"world!")


async def test_a_module_of_the_users(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    modules = {"foo": "def bar():\n    return 'hi from bar'\n"}
    runtime = start_runtime(cookie=beam.cookie, modules=modules)
    source = """
    {:ok, env} = make_env.(%{}, [])
    {:ok, "hi from bar"} = pyeval.(env, "import foo\\nreturn foo.bar()", %{})
    """
    assert await run(beam, runtime, source) == ("ok", b"hi from bar")


async def test_send(beam: Beam, runtime: Runtime) -> None:
    source = '''
    {:ok, env} = make_env.(%{}, [])
    pyeval.(env, """
      await snex.send(self, b'hello from snex!')
      # insert long computation here
      """, %{"self" => self()})
    "hello from snex!" = receive do val -> val after 5000 -> :none end

    Process.register(self(), :myname)
    pyeval.(env, """
      await snex.send((snex.Atom('myname'), node), b'hello from snex (again!)')
      """, %{"node" => node()})
    "hello from snex (again!)" = receive do val -> val after 5000 -> :none end
    '''
    assert await run(beam, runtime, source) == b"hello from snex (again!)"


async def test_call_and_elixir(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:ok, agent} = Agent.start_link(fn -> 42 end)
    code = "return await snex.call('Elixir.Agent', 'get', [agent, identity])"
    {:ok, 42} = pyeval.(inp, code, %{"agent" => agent, "identity" => & &1})
    code = "return await Elixir.Enum.frequencies(['a', 'b', 'a', 'a', 'd', 'b'])"
    {:ok, %{"a" => 3, "b" => 2, "d" => 1}} = pyeval.(inp, code, %{})
    """
    assert await run(beam, runtime, source) == ("ok", {b"a": 3, b"b": 2, b"d": 1})


async def test_code_locations(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:error, plain} = pyeval.(inp, "raise RuntimeError('nolocation')", %{})
    # What the sigil ~p makes.
    code = %{__struct__: Snex.Code, src: "raise RuntimeError('here')", file: "lib/my.ex", line: 8}
    {:error, located} = pyeval.(inp, code, %{})
    {Enum.at(plain.traceback, -2), Enum.at(located.traceback, -2), plain.__struct__}
    """
    assert await run(beam, runtime, source) == (
        b'  File "<Snex.Code>", line 1, in <module>\n',
        b'  File "lib/my.ex", line 8, in <module>\n',
        "Elixir.Snex.Error",
    )


async def test_bad_requests_get_one_answer_each(beam: Beam, runtime: Runtime) -> None:
    source = """
    for request <- [
          {:eval}, {:eval, "return 1"}, {:eval, 7, %{}}, {:eval, "return 1", [1]},
          {:eval, "return 1", %{1 => 2}}, {:eval, <<255>>, %{}}, {:eval, "1", %{}, [nope: 1]},
          {:nonsense, 1}, :nonsense, [], %{}, {:call, "math"}, {:call, "math", "nope", []},
          {:call, "math", "sqrt", 4}] do
      {:error, %{code: code, reason: reason}} = GenServer.call(inp, request)
      true = is_binary(reason)
      code
    end ++ [Process.info(self(), :message_queue_len)]
    """
    answers = await run(beam, runtime, source)
    assert isinstance(answers, list)
    assert answers == ["bad_request"] * 14 + [("message_queue_len", 0)]


async def test_an_encoder_that_returns_its_object(
    beam: Beam, start_runtime: Callable[..., Runtime]
) -> None:
    script = "snex.set_custom_encoder(lambda value: value)"
    runtime = start_runtime(cookie=beam.cookie, init_script=script)
    source = """
    {:error, error} = pyeval.(inp, "return [object()]", %{})
    {:ok, 1} = pyeval.(inp, "return 1", %{})
    error.reason
    """
    reason = await run(beam, runtime, source)
    assert isinstance(reason, bytes)
    assert reason.startswith(b"Cannot serialize object of <class 'object'>")
    assert b"returned the object itself" in reason
