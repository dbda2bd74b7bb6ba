"""What environments cost, and that all of it comes back.

``SNEX_TEST_FULL=1`` runs the full sizes: 10,000 processes with 10 environments each, and 100,000
live environments.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.beam import Beam
from tests.support.runtime import Runtime, until

FULL = bool(os.environ.get("SNEX_TEST_FULL"))
OWNERS = 10_000 if FULL else 2_000
LIVE = 100_000 if FULL else 20_000
KIB = 1024
MIB = 1024 * KIB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 if FULL else 120)]

# Each owner makes ten environments and dies; at most a hundred live at a time, so that the calls
# do not wait for each other until they time out.
OWNERS_LIVE_AND_DIE = """
owner = fn ->
  for _ <- 1..10 do
    {:ok, _} = GenServer.call({:snex, py}, {:make_env, %{"x" => 1}}, 60_000)
  end
end
1..owners |> Enum.chunk_every(100) |> Enum.each(fn chunk ->
  refs = for _ <- chunk, do: elem(spawn_monitor(owner), 1)
  for ref <- refs do
    receive do {:DOWN, ^ref, _, _, reason} -> :normal = reason end
  end
end)
"""


async def environments(beam: Beam, runtime: Runtime) -> int:
    return int((await runtime.info(beam))["environments"])


async def test_owners_come_and_go(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(cookie=beam.cookie)

    async def all_gone() -> bool:
        return await environments(beam, runtime) == 0

    await runtime.run(beam, "return 1")
    rounds = []
    for _ in range(3):
        rounds.append(runtime.resident)
        await beam.eval(OWNERS_LIVE_AND_DIE, py=runtime.name, owners=OWNERS, timeout=300)
        await until(all_gone, timeout=5.0)
    grown = runtime.resident - rounds[0]
    assert grown < 10 * MIB, f"{grown / MIB:.1f} MiB after three rounds: {rounds}"


async def test_many_live_environments(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(cookie=beam.cookie)
    keeper = """
    keeper = spawn(fn -> receive do :never -> :ok end end)
    make = fn n ->
      envs = for _ <- 1..n do
        {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}, handle: keeper}, 60_000)
        env
      end
      Enum.random(envs)
    end
    some = make.(count)
    {:ok, {}} = GenServer.call(some, {:eval, "return ()", %{}})
    keeper
    """
    await runtime.run(beam, "return 1")
    before = runtime.resident
    holder = await beam.eval(keeper, py=runtime.name, count=LIVE, timeout=300)
    assert await environments(beam, runtime) == LIVE
    each = (runtime.resident - before) / LIVE
    print(f"{each / KIB:.2f} KiB for each of {LIVE} environments")
    assert each < 1.5 * KIB, f"{each:.0f} bytes"

    await beam.eval("Process.exit(holder, :kill)", holder=holder)

    async def all_gone() -> bool:
        return await environments(beam, runtime) == 0

    await until(all_gone, timeout=10.0)
