"""Streams, sources and mailboxes with a real Elixir, whose processes speak GenStage's protocol.

They are plain processes, and send what gen_stage.ex sends; all that Python sends them is compared
with what a GenStage would.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime, until

StartRuntime = Callable[..., Runtime]

KNOWN = 0.1
"""Seconds within which the other side knows."""

# What a consumer of GenStage does (`consumer_subscribe`, `split_batches`): it asks for `max`, and
# again for what it has taken when `max - min` were. `take` gets the items of each message.
CONSUMER = """
defmodule CONSUMER do
  def start(stream, opts, take), do: spawn(fn -> init(stream, opts, take) end)

  def init(stream, opts, take) do
    max = Keyword.get(opts, :max_demand, 1000)
    min = Keyword.get(opts, :min_demand, div(max, 2))
    ref = Process.monitor(stream)
    send(stream, {:"$gen_producer", {self(), ref}, {:subscribe, nil, opts}})
    send(stream, {:"$gen_cast", {:"$demand", :forward}})
    send(stream, {:"$gen_producer", {self(), ref}, {:ask, max}})
    loop(%{stream: stream, ref: ref, pending: max, taken: 0, batch: max - min, take: take})
  end

  defp loop(%{stream: stream, ref: ref} = state) do
    receive do
      {:"$gen_consumer", {^stream, ^ref}, items} when is_list(items) ->
        pending = state.pending - length(items)
        if pending < 0, do: exit({:too_many, -pending})
        state.take.(items)
        taken = state.taken + length(items)
        if taken >= state.batch do
          send(stream, {:"$gen_producer", {self(), ref}, {:ask, taken}})
          loop(%{state | pending: pending + taken, taken: 0})
        else
          loop(%{state | pending: pending, taken: taken})
        end

      {:"$gen_consumer", {^stream, ^ref}, {:cancel, reason}} ->
        state.take.({:cancel, reason})

      {:DOWN, ^ref, :process, ^stream, reason} ->
        state.take.({:down, reason})

      # As `Snex.stream/4` leaves.
      :leave ->
        Process.demonitor(ref, [:flush])
        send(stream, {:"$gen_producer", {self(), ref}, {:cancel, :normal}})

      :stop ->
        send(stream, {:"$gen_producer", {self(), ref}, {:cancel, :normal}})
        loop(state)

      other ->
        exit({:unknown, other})
    end
  end
end
"""

# What a producer of GenStage does with a demand-driven dispatcher; it gives the numbers from 0 on.
PRODUCER = """
defmodule PRODUCER do
  def start(count, tell),
    do: spawn(fn -> loop(%{next: 0, count: count, demand: 0, from: nil, tell: tell}) end)

  defp loop(state) do
    receive do
      {:"$gen_producer", {pid, tag}, {:subscribe, nil, opts}} when is_list(opts) ->
        send(state.tell, {:subscribed, opts})
        loop(%{state | from: {pid, tag, Process.monitor(pid)}})

      {:"$gen_producer", {pid, tag}, {:ask, n}} when is_integer(n) and n > 0 ->
        {^pid, ^tag, _} = state.from
        if state.demand + n > 1000, do: exit({:too_much, state.demand + n})
        give(%{state | demand: state.demand + n})

      {:"$gen_producer", {pid, tag}, {:cancel, reason}} ->
        {^pid, ^tag, _} = state.from
        send(pid, {:"$gen_consumer", {self(), tag}, {:cancel, reason}})
        send(state.tell, {:cancelled, reason})

      {:DOWN, _, _, _, reason} -> send(state.tell, {:consumer_down, reason})
      :die -> exit(:boom)
      other -> send(state.tell, {:unknown, other})
    end
  end

  defp give(%{next: n, count: n, from: {pid, tag, _}} = state) do
    send(pid, {:"$gen_consumer", {self(), tag}, {:cancel, :normal}})
    send(state.tell, :done)
  end

  defp give(%{demand: 0} = state), do: loop(state)

  defp give(%{from: {pid, tag, _}} = state) do
    count = Enum.min([state.demand, 500, state.count - state.next])
    items = Enum.to_list(state.next..(state.next + count - 1))
    send(pid, {:"$gen_consumer", {self(), tag}, items})
    give(%{state | demand: state.demand - count, next: state.next + count})
  end
end
"""


def of(module: str, names: dict[str, str]) -> str:
    for name, own in names.items():
        module = module.replace(name, own)
    return module


@pytest.fixture(scope="module")
def modules(beam: Beam) -> dict[str, str]:
    """The names of the modules on the BEAM."""
    names = {
        "CONSUMER": "Consumer" + secrets.token_hex(3),
        "PRODUCER": "Producer" + secrets.token_hex(3),
    }
    for module in (CONSUMER, PRODUCER):
        beam.eval_sync(of(module, names) + "\n:ok")
    return names


class Elixir:
    """Code on the BEAM that knows these modules, and the runtime as ``py``."""

    def __init__(self, beam: Beam, runtime: Runtime, names: dict[str, str]) -> None:
        self.beam = beam
        self.runtime = runtime
        self.names = names

    async def eval(self, source: str, timeout: float = 60.0, **bindings: Any) -> Any:
        head = """
        stream = fn code, vars, opts ->
          {:ok, pid} = GenServer.call({:snex, py}, {:stream, code, vars, opts})
          pid
        end
        next = fn -> receive do message -> message after 10_000 -> :nothing end end
        _ = {stream, next}
        """
        bound = {
            name: value.encode() if type(value) is str else value
            for name, value in bindings.items()
        }
        code = head + of(source, self.names)
        return await self.beam.eval(code, timeout=timeout, py=self.runtime.name, **bound)

    async def at_rest(self, timeout: float = 10.0) -> None:
        """No stream, no object, and nothing that runs."""

        async def nothing() -> bool:
            info = await self.runtime.info(self.beam)
            return (info["streams"], info["objects"], info["requests_running"]) == (0, 0, 0)

        await until(nothing, timeout)


@pytest.fixture
async def elixir(beam: Beam, runtime: Runtime, modules: dict[str, str]) -> AsyncIterator[Elixir]:
    made = Elixir(beam, runtime, modules)
    yield made
    await made.at_rest()


class TestConsumers:
    async def test_all_that_comes_is_what_a_producer_sends(self, elixir: Elixir) -> None:
        source = """
        me = self()
        pid = stream.("yield from range(7)", %{}, [])
        CONSUMER.start(pid, [max_demand: 4, min_demand: 2], &send(me, &1))
        collect = fn collect ->
          case next.() do
            {:cancel, _} = it -> [it]
            it -> [it | collect.(collect)]
          end
        end
        collect.(collect)
        """
        found = await elixir.eval(source)
        assert found[-1] == ("cancel", "normal")
        assert [n for items in found[:-1] for n in items] == list(range(7))

    async def test_an_error_is_one(self, elixir: Elixir) -> None:
        source = """
        me = self()
        pid = stream.("yield 1; raise ValueError('no')", %{}, [])
        ref = Process.monitor(pid)
        CONSUMER.start(pid, [], &send(me, &1))
        # The stream and its consumer tell each for itself: which comes first is not said.
        receive do [1] -> :ok end
        error = receive do {:cancel, {:error, error}} -> error end
        %{__struct__: Snex.Error, type: "ValueError", reason: "no"} = error
        receive do {:DOWN, ^ref, _, _, {:shutdown, {:error, ^error}}} -> :ok end
        :ok
        """
        assert await elixir.eval(source) == "ok"

    async def test_several_share_what_is_made(self, elixir: Elixir) -> None:
        source = """
        me = self()
        pid = stream.("yield from range(10_000)", %{}, [])
        for n <- 1..3, do: CONSUMER.start(pid, [max_demand: 50], &send(me, {n, &1}))
        collect = fn
          _, 3, all -> all
          collect, ended, all ->
            case next.() do
              {_, {:cancel, :normal}} -> collect.(collect, ended + 1, all)
              {n, items} -> collect.(collect, ended, [{n, items} | all])
            end
        end
        all = collect.(collect, 0, [])
        items = Enum.flat_map(all, &elem(&1, 1))
        takers = all |> Enum.map(&elem(&1, 0)) |> Enum.uniq()
        {Enum.sort(items) == Enum.to_list(0..9_999), length(takers)}
        """
        assert await elixir.eval(source) == (True, 3)

    async def test_a_subscription_to_an_alias(self, elixir: Elixir) -> None:
        source = """
        pid = stream.("yield from range(5)", %{}, [])
        ref = :erlang.monitor(:process, pid, alias: :explicit_unalias)
        opts = [max_demand: 2, alias: true]
        send(pid, {:"$gen_producer", {self(), ref}, {:subscribe, nil, opts}})
        send(pid, {:"$gen_producer", {self(), ref}, {:ask, 2}})
        {:"$gen_consumer", {^pid, ^ref}, first} = next.()
        :erlang.unalias(ref)
        send(pid, {:"$gen_producer", {self(), ref}, {:ask, 2}})
        send(pid, {:"$gen_producer", {self(), ref}, {:cancel, :normal}})
        receive do {:DOWN, ^ref, _, _, :normal} -> :ok end
        {first, Process.info(self(), :message_queue_len)}
        """
        first, queue = await elixir.eval(source)
        assert first in ([0, 1], [0])
        assert queue[1] in (0, 1)


class TestProducers:
    ALL = "return sum([n async for n in snex.subscribe(source, max_demand=1000)])"

    async def test_what_python_sends_is_what_a_consumer_sends(self, elixir: Elixir) -> None:
        source = """
        pid = PRODUCER.start(2_500, self())
        {:ok, sum} = GenServer.call({:snex, py}, {:eval, code, %{"source" => pid}})
        {sum, next.(), next.()}
        """
        sum_, subscribed, done = await elixir.eval(source, code=self.ALL)
        assert sum_ == sum(range(2_500))
        assert subscribed == ("subscribed", [("max_demand", 1000), ("min_demand", 500)])
        assert done == "done"

    async def test_leaving_is_told(self, elixir: Elixir) -> None:
        code = "async for n in snex.subscribe(source):\n  if n == 7: return n"
        source = """
        pid = PRODUCER.start(1_000_000, self())
        {:ok, 7} = GenServer.call({:snex, py}, {:eval, code, %{"source" => pid}})
        [next.(), next.()]
        """
        told = await elixir.eval(source, code=code)
        assert told[1] == ("cancelled", "normal")

    @pytest.mark.parametrize("executor", ["loop", "thread"])
    async def test_one_that_dies(self, elixir: Elixir, executor: str) -> None:
        code = (
            "async for n in snex.subscribe(source):\n  await snex.send(owner, n)"
            if executor == "loop"
            else "for n in snex.subscribe(source): pass"
        )
        source = """
        pid = PRODUCER.start(1_000_000_000, self())
        opts = [executor: executor]
        task = Task.async(fn ->
          vars = %{"source" => pid, "owner" => self()}
          GenServer.call({:snex, py}, {:eval, code, vars, opts})
        end)
        {:subscribed, _} = next.()
        Process.exit(pid, :kill)
        {:error, error} = Task.await(task)
        {error.type, error.reason}
        """
        type_, reason = await elixir.eval(source, code=code, executor=Atom(executor))
        assert type_ == b"snex.ProducerError"
        assert b":killed" in reason


async def test_200_000_items_through_python_and_back(
    beam: Beam, start_runtime: StartRuntime, modules: dict[str, str]
) -> None:
    """Demand is never exceeded by one (both modules exit then), and nothing piles up."""
    runtime = start_runtime(cookie=beam.cookie)
    elixir = Elixir(beam, runtime, modules)
    source = """
    me = self()
    code = "async for n in snex.subscribe(source, max_demand=1000): yield n + 1"
    collector = spawn(fn ->
      loop = fn loop, count, sum ->
        receive do
          {:cancel, reason} -> send(me, {count, sum, reason})
          {:down, reason} -> send(me, {count, sum, reason})
          items -> loop.(loop, count + length(items), sum + Enum.sum(items))
        end
      end
      loop.(loop, 0, 0)
    end)
    producer = PRODUCER.start(count, self())
    pid = stream.(code, %{"source" => producer}, [])
    CONSUMER.start(pid, [max_demand: 1000], &send(collector, &1))
    {:subscribed, _} = next.()
    receive do {_, _, _} = result -> result after 60_000 -> :nothing end
    """
    await elixir.eval(source, count=20_000)
    before = runtime.resident
    count = 200_000
    assert await elixir.eval(source, count=count) == (count, count * (count + 1) // 2, "normal")
    assert runtime.resident - before <= 20 * 1024 * 1024
    await elixir.at_rest()


MARK = (
    "def mark(what):\n  import pathlib, time\n"
    "  pathlib.Path(file).write_text(f'{what} {time.time()}')\n"
)
"""For generators: leaves when they are closed, since the loop may have other things to do."""

KINDS = {
    "sync": "try:\n  n = 0\n  while True:\n    yield n\n    n += 1\nfinally: mark('closed')",
    "async": (
        "import asyncio\ntry:\n  n = 0\n  while True:\n    yield n\n    n += 1\n"
        "    if n > 20: await asyncio.Event().wait()\nfinally: mark('closed')"
    ),
    "nested": (
        "def inner():\n  try:\n    n = 0\n    while True:\n      yield n\n      n += 1\n"
        "  finally: mark('closed')\n"
        "yield from inner()"
    ),
    "returned": (
        "async def inner():\n  try:\n    n = 0\n    while True:\n      yield n\n      n += 1\n"
        "  finally: mark('closed')\nreturn inner()"
    ),
}

ENDS = {
    "takes 5": "send(consumer, :stop)",
    "raises": "send(consumer, :nonsense)",
    "is killed": "Process.exit(consumer, :kill)",
}


@pytest.mark.alone
class TestEnds:
    """The other side knows within `KNOWN` seconds, and nothing is left."""

    @pytest.mark.parametrize("how", ENDS)
    @pytest.mark.parametrize("executor", ["loop", "thread"])
    @pytest.mark.parametrize("kind", KINDS)
    async def test_of_the_consumer(
        self, elixir: Elixir, kind: str, executor: str, how: str
    ) -> None:
        file = elixir.runtime.home / f"closed-{secrets.token_hex(4)}"
        source = f"""
        me = self()
        vars = %{{"file" => file}}
        pid = stream.(code, vars, [executor: executor])
        ref = Process.monitor(pid)
        take = fn items -> send(me, items); receive do :never -> :ok after 0 -> :ok end end
        consumer = CONSUMER.start(pid, [max_demand: 10, min_demand: 9], fn
          items when is_list(items) -> send(me, :some); if 5 in items, do: Process.sleep(20)
          other -> take.(other)
        end)
        :some = next.()
        at = System.os_time(:microsecond)
        Logger.configure(level: :none)
        {ENDS[how]}
        wait = fn wait ->
          case next.() do
            {{:DOWN, ^ref, _, _, reason}} -> reason
            :nothing -> :nothing
            _ -> wait.(wait)
          end
        end
        reason = wait.(wait)
        Logger.configure(level: :debug)
        {{reason, System.os_time(:microsecond) - at, at / 1_000_000}}
        """
        reason, took, at = await elixir.eval(
            source, code=MARK + KINDS[kind], executor=Atom(executor), file=str(file)
        )
        assert reason == "normal"
        assert took / 1e6 <= KNOWN
        await elixir.at_rest(2.0)
        what, when = file.read_text().split()
        assert what == "closed"
        assert float(when) - at <= KNOWN

    @pytest.mark.parametrize(
        ("code", "last"),
        [
            ("yield 1\nraise KeyError('x')", "error"),
            ("yield 1", "normal"),
            ("import asyncio\nyield 1\nawait asyncio.sleep(0)\nraise KeyError('x')", "error"),
            ("import asyncio\nyield 1\nawait asyncio.sleep(0)", "normal"),
            ("def inner():\n  yield 1\n  raise KeyError('x')\nyield from inner()", "error"),
        ],
        ids=range(5),
    )
    @pytest.mark.parametrize("executor", ["loop", "thread"])
    async def test_of_the_generator(
        self, elixir: Elixir, code: str, last: str, executor: str
    ) -> None:
        source = """
        me = self()
        pid = stream.(code, %{}, [executor: executor])
        at = System.monotonic_time(:microsecond)
        CONSUMER.start(pid, [], &send(me, &1))
        [1] = next.()
        {:cancel, reason} = next.()
        took = System.monotonic_time(:microsecond) - at
        {(if is_tuple(reason), do: elem(reason, 0), else: reason), took}
        """
        reason, took = await elixir.eval(source, code=code, executor=Atom(executor))
        assert reason == last
        assert took / 1e6 <= KNOWN

    async def test_of_the_consumer_while_the_generator_blocks_in_c(self, elixir: Elixir) -> None:
        """In a thread: the loop has its turns, and for all others the stream is gone at once."""
        code = "import time\nyield 1\ntime.sleep(1.5)\nyield 2"
        source = """
        me = self()
        pid = stream.(code, %{}, [executor: :thread])
        ref = Process.monitor(pid)
        consumer = CONSUMER.start(pid, [], &send(me, &1))
        [1] = next.()
        at = System.monotonic_time(:microsecond)
        Process.exit(consumer, :kill)
        {:DOWN, ^ref, _, _, :normal} = next.()
        System.monotonic_time(:microsecond) - at
        """
        assert await elixir.eval(source, code=code) / 1e6 <= KNOWN
        info = await elixir.runtime.info(elixir.beam)
        assert info["streams"] == 0

    @pytest.mark.parametrize("how", ["Process.exit(consumer, :kill)", "send(consumer, :leave)"])
    async def test_of_the_consumer_while_the_generator_blocks_the_loop(
        self, elixir: Elixir, how: str
    ) -> None:
        """As code does whose caller has given up, it ends half a second later."""
        code = MARK + "try:\n  yield 1\n  while True: pass\nfinally: mark('closed')"
        file = elixir.runtime.home / f"closed-{secrets.token_hex(4)}"
        source = f"""
        me = self()
        pid = stream.(code, %{{"file" => file}}, [])
        consumer = CONSUMER.start(pid, [max_demand: 1, min_demand: 0], &send(me, &1))
        [1] = next.()
        Process.sleep(50)
        at = System.monotonic_time(:microsecond)
        {how}
        :pong = GenServer.call({{:snex, py}}, :ping, 10_000)
        System.monotonic_time(:microsecond) - at
        """
        took = await elixir.eval(source, code=code, file=str(file))
        assert took / 1e6 <= 1.0
        await elixir.at_rest(1.0)
        assert file.read_text().startswith("closed")

    async def test_of_the_node_of_the_consumer(
        self, elixir: Elixir, epmd: RealEpmd, beam: Beam
    ) -> None:
        async with Beam.start(epmd_port=epmd.port, cookie=beam.cookie) as other:
            there = Elixir(other, elixir.runtime, elixir.names)
            await other.eval(of(CONSUMER, elixir.names) + "\n:ok")
            source = """
            me = self()
            pid = stream.("n = 0\\nwhile True:\\n  yield n\\n  n += 1", %{}, [])
            CONSUMER.start(pid, [max_demand: 10], &send(me, &1))
            is_list(next.())
            """
            # The evaluation's process has ended by then: items go to nobody.
            assert await there.eval(source) is True
            assert (await elixir.runtime.info(beam))["streams"] == 1
            await other.kill()
            began = time.monotonic()

            async def gone() -> bool:
                info = await elixir.runtime.info(beam)
                return bool(info["streams"] == 0)

            await until(gone)
            assert time.monotonic() - began <= KNOWN

    @pytest.mark.parametrize("kind", KINDS)
    async def test_of_the_runtime(
        self, beam: Beam, start_runtime: StartRuntime, modules: dict[str, str], kind: str
    ) -> None:
        runtime = start_runtime(cookie=beam.cookie)
        elixir = Elixir(beam, runtime, modules)
        file = runtime.home / "closed"
        source = """
        me = self()
        pid = stream.(code, %{"file" => file}, [])
        CONSUMER.start(pid, [max_demand: 10], fn items -> send(me, items); Process.sleep(5) end)
        true = is_list(next.())
        {:ok, info} = GenServer.call({:snex, py}, :info)
        System.cmd("kill", ["-TERM", "#{info.os_pid}"])
        at = System.monotonic_time(:microsecond)
        wait = fn wait ->
          case next.() do
            {:down, reason} -> reason
            :nothing -> :nothing
            _ -> wait.(wait)
          end
        end
        {wait.(wait), System.monotonic_time(:microsecond) - at}
        """
        reason, took = await elixir.eval(source, code=MARK + KINDS[kind], file=str(file))
        assert reason in ("shutdown", "noconnection")
        assert took / 1e6 <= KNOWN + 0.2  # a process of the system ends, too
        await asyncio.to_thread(runtime.process.wait, 10)
        assert file.read_text().startswith("closed")


class TestWhatCodeHas:
    """It is gone with the evaluation, as counted by the runtime."""

    async def test_objects_streams_and_mailboxes(self, elixir: Elixir) -> None:
        source = """
        me = self()
        opts = [keep: true, handle: :none]
        {:ok, object} = GenServer.call({:snex, py}, {:eval, "return [1]", %{}, opts})
        {:ok, [1]} = GenServer.call(object, :value)
        {:ok, 1} = GenServer.call({:snex, py}, {:eval, "return len(o)", %{"o" => object}})
        pid = stream.("yield from o", %{"o" => object}, [])
        CONSUMER.start(pid, [], &send(me, &1))
        {[1], {:cancel, :normal}} = {next.(), next.()}
        code = "box = snex.mailbox(); await snex.send(me, box.pid); return await box.receive()"
        task = Task.async(fn -> GenServer.call({:snex, py}, {:eval, code, %{"me" => me}}) end)
        box = next.()
        ref = Process.monitor(box)
        send(box, {:a, 1})
        {:ok, {:a, 1}} = Task.await(task)
        {:DOWN, ^ref, _, _, _} = next.()
        :ok = GenServer.call(object, {:destroy_env, object})
        :ok
        """
        assert await elixir.eval(source) == "ok"
        await elixir.at_rest()

    async def test_of_a_caller_that_is_killed(self, elixir: Elixir) -> None:
        source = """
        me = self()
        pid = spawn(fn ->
          {:ok, _} = GenServer.call({:snex, py}, {:eval, "return [1]", %{}, keep: true})
          send(me, :kept)
          Process.sleep(:infinity)
        end)
        :kept = next.()
        {:ok, info} = GenServer.call({:snex, py}, :info)
        Process.exit(pid, :kill)
        info.objects
        """
        assert await elixir.eval(source) == 1
        await elixir.at_rest()


@pytest.fixture(scope="module")
def workers(epmd: RealEpmd, beam: Beam) -> Iterator[Runtime]:
    flags = ("--workers", "2")
    with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, flags=flags) as started:
        yield started


class TestWorkers:
    """The same where several processes are behind the name."""

    @pytest.fixture
    async def many(
        self, beam: Beam, workers: Runtime, modules: dict[str, str]
    ) -> AsyncIterator[Elixir]:
        made = Elixir(beam, workers, modules)
        yield made
        await made.at_rest()

    async def test_a_stream(self, many: Elixir) -> None:
        source = """
        me = self()
        pid = stream.("yield from range(1000)", %{}, [])
        CONSUMER.start(pid, [max_demand: 100], &send(me, &1))
        collect = fn collect, all ->
          case next.() do
            items when is_list(items) -> collect.(collect, all ++ items)
            {:cancel, reason} -> {reason, all}
            other -> {other, all}
          end
        end
        collect.(collect, [])
        """
        assert await many.eval(source) == ("normal", list(range(1000)))

    async def test_a_source(self, many: Elixir) -> None:
        source = """
        pid = PRODUCER.start(2_500, self())
        GenServer.call({:snex, py}, {:eval, code, %{"source" => pid}})
        """
        assert await many.eval(source, code=TestProducers.ALL) == ("ok", sum(range(2_500)))

    async def test_objects(self, many: Elixir) -> None:
        source = """
        made = for n <- 1..6 do
          request = {:eval, "return [n]", %{"n" => n}, keep: true}
          {:ok, object} = GenServer.call({:snex, py}, request)
          object
        end
        values = for object <- made, do: GenServer.call(object, :value)
        calls = for object <- made, do: GenServer.call(object, {:call, "append", [0]})
        evals = for object <- made, do: GenServer.call(object, {:eval, "return len(self)", %{}})
        for object <- made, do: :ok = GenServer.stop(object)
        {values, calls, evals}
        """
        values, calls, evals = await many.eval(source)
        assert values == [("ok", [n]) for n in range(1, 7)]
        assert calls == [("ok", None)] * 6
        assert evals == [("ok", 2)] * 6

    async def test_an_object_as_a_variable(self, many: Elixir) -> None:
        """Of a request to the server, which any worker may get: see what is said then."""
        source = """
        {:ok, object} = GenServer.call({:snex, py}, {:eval, "return [1]", %{}, keep: true})
        vars = %{"o" => %{__struct__: Snex.Object, id: object}}
        call = fn _ -> GenServer.call({:snex, py}, {:eval, "return len(o)", vars}) end
        answers = 1..20 |> Enum.map(&Task.async(fn -> call.(&1) end)) |> Task.await_many()
        :ok = GenServer.stop(object)
        told = fn {:ok, 1} -> :ok; {:error, error} -> error.reason end
        answers |> Enum.map(told) |> Enum.frequencies()
        """
        found = await many.eval(source)
        for told in found:
            assert told == "ok" or b"is no object of this node" in told
