"""Requests in threads, asked for by a real BEAM."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.beam import Beam
from tests.support.runtime import Runtime

LIMIT = 0.030
"""Seconds within which 99 of 100 are answered while a thread computes without end."""


async def test_executors_are_chosen_by_request_and_environment(
    beam: Beam, runtime: Runtime
) -> None:
    source = """
    name = "import threading\\nreturn threading.current_thread().name"
    {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}, executor: :thread})
    {:ok, one} = GenServer.call({:snex, py}, {:eval, name, %{}, executor: :thread})
    {:ok, two} = GenServer.call(env, {:eval, name, %{}})
    {:ok, three} = GenServer.call(env, {:eval, name, %{}, executor: :loop})
    append = "seen = [*globals().get('seen', []), n]"
    for n <- 1..100, do: GenServer.cast(env, {:eval, append, %{"n" => n}})
    {:ok, seen} = GenServer.call(env, {:eval, "return seen", %{}})
    {for(name <- [one, two, three], do: String.starts_with?(name, "snex-thread-")), seen}
    """
    outcome = await beam.eval(source, py=runtime.name)
    assert outcome == ([True, True, False], list(range(1, 101)))


@pytest.mark.alone
async def test_others_are_answered_while_one_computes(
    beam: Beam, start_runtime: Callable[..., Runtime]
) -> None:
    runtime = start_runtime(cookie=beam.cookie, flags=["--executor", "thread"])
    source = """
    call = fn code, vars, time -> GenServer.call({:snex, py}, {:eval, code, vars}, time) end
    {:ok, _} = GenServer.call({:snex, py}, {:init, "import threading as t\nbegan = t.Event()", %{}})
    pid = spawn(fn -> call.("began.set()\nwhile True: pass", %{}, :infinity) end)
    {:ok, true} = call.("return began.wait(10)", %{}, 15_000)
    times = for n <- 1..1000 do
      {time, {:ok, value}} = :timer.tc(fn -> call.("return 6 * x", %{"x" => n}, 5000) end)
      ^value = 6 * n
      time
    end
    Process.exit(pid, :kill)
    Enum.at(Enum.sort(times), 990)
    """
    took = await beam.eval(source, py=runtime.name, timeout=100)
    assert isinstance(took, int)
    assert took / 1e6 <= LIMIT
