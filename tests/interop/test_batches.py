"""Evaluations of many Elixir processes become one call of a batched function."""

from __future__ import annotations

from collections.abc import Callable

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.runtime import Runtime

INIT = """
import snex

sizes = []

@snex.batched(max_size=50, max_wait=60)
async def divide(items):
    sizes.append(len(items))
    return [100 // item for item in items]
"""

# Each in a process of its own: the answers, in the order of the numbers.
CALL_ALL = """
numbers
|> Enum.map(fn n -> Task.async(fn ->
  GenServer.call({:snex, py}, {:eval, "return await divide(n)", %{"n" => n}}, 20_000)
end) end)
|> Task.await_many(20_000)
|> Enum.map(fn {:ok, value} -> value; {:error, error} -> {:error, error.type} end)
"""

StartRuntime = Callable[..., Runtime]


async def sizes(beam: Beam, runtime: Runtime) -> object:
    source = '{:ok, sizes} = GenServer.call({:snex, py}, {:eval, "return sizes", %{}}); sizes'
    return await beam.eval(source, py=runtime.name)


async def test_fifty_callers_are_one_call(beam: Beam, start_runtime: StartRuntime) -> None:
    runtime = start_runtime(cookie=beam.cookie, init_script=INIT)
    found = await beam.eval(CALL_ALL, py=runtime.name, numbers=list(range(1, 51)))
    assert found == [100 // n for n in range(1, 51)]
    assert await sizes(beam, runtime) == [50]


async def test_the_item_that_raises_fails_alone(beam: Beam, start_runtime: StartRuntime) -> None:
    runtime = start_runtime(cookie=beam.cookie, init_script=INIT)
    numbers = [0, *range(1, 50)]
    found = await beam.eval(CALL_ALL, py=runtime.name, numbers=numbers)
    assert isinstance(found, list)
    assert found[0] == (Atom("error"), b"ZeroDivisionError")
    assert found[1:] == [100 // n for n in range(1, 50)]
    assert await sizes(beam, runtime) == [50] + [1] * 50
