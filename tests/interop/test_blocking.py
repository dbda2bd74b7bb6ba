"""Code that blocks the event loop, and whose caller has given up: the loop is free again soon."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime, until

pytestmark = pytest.mark.alone

FREE = 500_000
"""Microseconds within which the loop is to be free again."""

MARGIN = 400_000
"""On a busy machine."""

SPIN = b"while True: pass"
AWAITS = b"""
import asyncio
await asyncio.sleep(0)
while True: pass
"""
GATHERS = b"""
import asyncio
async def spin():
    while True: pass
await asyncio.gather(spin())
"""
SLEEPS = b"import time\ntime.sleep(60)"
TEXTS = {"computes": SPIN, "awaits": AWAITS, "in a task": GATHERS, "sleeps": SLEEPS}
each_kind = pytest.mark.parametrize("code", TEXTS.values(), ids=TEXTS)

MEASURE = """
free = fn began ->
  {:ok, 1} = GenServer.call({:snex, py}, {:eval, "return 1", %{}}, 20_000)
  System.monotonic_time(:microsecond) - began
end
"""


async def answered(beam: Beam, runtime: Runtime, source: str, code: bytes) -> None:
    """``source`` has the caller give up, and measures from then on."""
    took = await beam.eval(MEASURE + source, py=runtime.name, code=code, timeout=60)
    assert isinstance(took, int)
    assert took < FREE + MARGIN, f"the loop was free {took} us after the caller gave up"


@each_kind
async def test_a_call_that_timed_out(beam: Beam, runtime: Runtime, code: bytes) -> None:
    source = """
    try do GenServer.call({:snex, py}, {:eval, code, %{}}, 300) catch :exit, _ -> :ok end
    free.(System.monotonic_time(:microsecond))
    """
    await answered(beam, runtime, source, code)


@each_kind
async def test_a_task_that_is_killed(beam: Beam, runtime: Runtime, code: bytes) -> None:
    source = """
    task = Task.async(fn -> GenServer.call({:snex, py}, {:eval, code, %{}}, :infinity) end)
    Process.sleep(700)
    Task.shutdown(task, :brutal_kill)
    free.(System.monotonic_time(:microsecond))
    """
    await answered(beam, runtime, source, code)


@each_kind
async def test_a_caller_that_does_not_monitor(beam: Beam, runtime: Runtime, code: bytes) -> None:
    source = """
    pid = spawn(fn ->
      alias = :erlang.alias([:reply])
      send({:snex, py}, {:"$gen_call", {self(), [:alias | alias]}, {:eval, code, %{}}})
      Process.sleep(:infinity)
    end)
    Process.sleep(wait)
    Process.exit(pid, :kill)
    free.(System.monotonic_time(:microsecond))
    """
    for wait in (50, 900):
        await answered(beam, runtime, f"wait = {wait}\n{source}", code)


async def test_an_environment_s_caller(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{"x" => 1}})
    try do GenServer.call(env, {:eval, code, %{}}, 300) catch :exit, _ -> :ok end
    took = free.(System.monotonic_time(:microsecond))
    {:ok, 1} = GenServer.call(env, {:eval, "return x", %{}})
    took
    """
    await answered(beam, runtime, source, SPIN)


async def test_a_node_that_is_killed(epmd: RealEpmd, beam: Beam, runtime: Runtime) -> None:
    with Beam.start(epmd_port=epmd.port, cookie=beam.cookie) as other:
        source = """
        spawn(fn -> GenServer.call({:snex, py}, {:eval, "while True: pass", %{}}, :infinity) end)
        Process.sleep(700)
        """
        await other.eval(source, py=runtime.name)
        os.kill(other.os_pid, signal.SIGKILL)
        source = "free.(System.monotonic_time(:microsecond))"
        await answered(beam, runtime, source, b"")


async def test_several_that_wait_behind_one_another(beam: Beam, runtime: Runtime) -> None:
    """Each is ended when it comes to run: that its caller has given up has come long before."""
    source = """
    for _ <- 1..3 do
      spawn(fn ->
        try do GenServer.call({:snex, py}, {:eval, code, %{}}, 300) catch :exit, _ -> :ok end
      end)
    end
    Process.sleep(300)
    div(free.(System.monotonic_time(:microsecond)), 3)
    """
    await answered(beam, runtime, source, SPIN)


async def test_what_is_to_go_on_does(beam: Beam, runtime: Runtime) -> None:
    source = """
    code = "import time, builtins\\nend = time.monotonic() + 1.5\\n" <>
           "while time.monotonic() < end: pass\\nbuiltins.gone_on = True"
    request = {:eval, code, %{}, on_timeout: :continue}
    try do GenServer.call({:snex, py}, request, 200) catch :exit, _ -> :ok end
    GenServer.call({:snex, py}, {:eval, "import builtins\\nreturn builtins.gone_on", %{}}, 20_000)
    """
    assert await beam.eval(source, py=runtime.name, timeout=60) == ("ok", True)


async def test_messages_keep_their_order_and_their_bytes(beam: Beam, runtime: Runtime) -> None:
    """While the loop is blocked they are read ahead, and large ones in part."""
    source = """
    {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{"seen" => []}})
    spawn(fn ->
      GenServer.call({:snex, py}, {:eval, "import time\\ntime.sleep(1.5)", %{}}, :infinity)
    end)
    Process.sleep(50)
    for n <- 1..200 do
      data = :binary.copy(<<rem(n, 128)>>, if(rem(n, 20) == 0, do: 300_000, else: n))
      vars = %{"n" => n, "data" => data}
      GenServer.cast(env, {:eval, "seen.append([n, len(data), len(set(data))])", vars})
      if rem(n, 50) == 0, do: Process.sleep(200)
    end
    {:ok, seen} = GenServer.call(env, {:eval, "return seen", %{}}, 20_000)
    seen
    """
    seen = await beam.eval(source, py=runtime.name, timeout=60)
    expected = [[n, 300_000 if n % 20 == 0 else n, 1] for n in range(1, 201)]
    assert seen == expected


async def test_it_is_told(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(cookie=beam.cookie, flags=["--log-level", "info"])
    code = b"import time\ndef wait():\n    time.sleep(1.8)\nwait()"
    await runtime.call(beam, "{:eval, code, %{}}", code=code)

    async def told() -> bool:
        return "the event loop goes on, after" in runtime.log

    await until(told)
    assert runtime.log.count("the event loop has been blocked for 1.") == 1
    assert "by <Snex.Code>:3, in wait, which runs for #PID<" in runtime.log
    info = await runtime.info(beam)
    assert info[Atom("loop_blocked_ms")] == 0
    assert 1500 < info[Atom("loop_blocked_max_ms")] < 4000
    assert info[Atom("loop_blocked_at")] == b"<Snex.Code>:3, in wait"


@pytest.mark.parametrize("how", ["killed", "ended"])
@pytest.mark.parametrize("awaits", [False, True])
async def test_the_consumer_of_a_stream(
    beam: Beam, runtime: Runtime, how: str, awaits: bool
) -> None:
    code = b"import asyncio\nyield 1\n"
    code += b"await asyncio.sleep(0)\nwhile True: pass" if awaits else b"while True: pass"
    source = """
    test = self()
    {pid, ref} = spawn_monitor(fn ->
      {:ok, stream} = GenServer.call({:snex, py}, {:stream, code, %{}})
      say = &send(stream, {:"$gen_producer", {self(), :tag}, &1})
      say.({:subscribe, nil, []})
      say.({:ask, 1})
      receive do {:"$gen_consumer", _, [1]} -> :ok end
      say.({:ask, 1})
      send(test, :asked)
      receive do: (:end -> :ok)
    end)
    receive do: (:asked -> :ok)
    # Until the loop is blocked.
    blocked = fn blocked ->
      try do
        GenServer.call({:snex, py}, :ping, 100)
        blocked.(blocked)
      catch
        :exit, _ -> :ok
      end
    end
    blocked.(blocked)
    if how == "killed", do: Process.exit(pid, :kill), else: send(pid, :end)
    receive do: ({:DOWN, ^ref, _, _, _} -> :ok)
    free.(System.monotonic_time(:microsecond))
    """
    took = await beam.eval(
        MEASURE + source, py=runtime.name, code=code, how=how.encode(), timeout=60
    )
    assert isinstance(took, int)
    assert took < FREE + MARGIN
    answer = await beam.eval(
        "{:ok, i} = GenServer.call({:snex, py}, :info); i.streams", py=runtime.name
    )
    assert answer == 0
