"""Many Pythons behind one name, as an unchanged GenServer.call meets them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.beam import Beam, BeamError
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime, until

BYSTANDERS = 500

# Calls of others, 20 at a time, and what becomes of them: whether the answers are right, counted.
OTHERS = """
call = fn n -> GenServer.call({:snex, py}, {:eval, "return n + 1", %{"n" => n}}, 30_000) end
1..count
|> Task.async_stream(&(call.(&1) == {:ok, &1 + 1}), max_concurrency: 20, timeout: 60_000)
|> Enum.frequencies()
"""

# What a raw caller gets: every message that comes, until nothing has come for a while after the
# first. The tag is an alias, as `GenServer.call` has it, and then a bare reference.
ANSWERS = """
alias = :erlang.alias()
tag = if aliased, do: [:alias | alias], else: make_ref()
send({:snex, py}, {:"$gen_call", {self(), tag}, {:eval, code, %{}, opts}})
collect = fn collect, wait ->
  receive do {^tag, answer} -> [answer | collect.(collect, 300)] after wait -> [] end
end
collect.(collect, 10_000)
"""

# (what the code does, its options in Elixir, the code of the error, its reason)
FATES = {
    "segfault": (
        "import ctypes; ctypes.string_at(0)",
        "[]",
        "worker_exited",
        ("signal", "sigsegv"),
    ),
    "os._exit": ("import os; os._exit(3)", "[]", "worker_exited", ("status", 3)),
    "SIGKILL": (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "[]",
        "worker_exited",
        ("signal", "sigkill"),
    ),
    "SIGSTOP": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "[timeout: 300, kill_after: 300]",
        "killed",
        None,
    ),
    "memory": (
        "x = []\nwhile True: x.append(bytearray(b'1') * 8_000_000)",
        "[]",
        "memory_limit",
        None,
    ),
    "regex": (
        "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
        "[timeout: 300, kill_after: 300]",
        "killed",
        None,
    ),
    "sleep": ("import time; time.sleep(60)", "[timeout: 300]", "cancelled", None),
}


@pytest.fixture(scope="module")
def workers(epmd: RealEpmd, beam: Beam) -> Iterator[Runtime]:
    flags = ("--workers", "2", "--max-memory", str(300 * 1024 * 1024), "--max-restarts", "100/60")
    with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, flags=flags) as started:
        yield started


async def rested(beam: Beam, runtime: Runtime, count: int = 2) -> dict[str, Any]:
    """Nothing runs or waits, and all workers are there."""

    async def is_so() -> dict[str, Any] | None:
        info = await runtime.info(beam)
        counts = info["requests_running"], info["requests_queued"], len(info["workers"])
        return info if counts == (0, 0, count) else None

    found = await until(is_so)
    assert isinstance(found, dict)
    return found


def processes_of(info: dict[str, Any]) -> list[int]:
    return [worker["os_pid"] for worker in info["workers"]]


class TestCalls:
    async def test_what_one_process_answers_many_do(self, beam: Beam, workers: Runtime) -> None:
        assert await workers.run(beam, "return 6 * x", '%{"x" => 7}') == 42
        assert await workers.run(beam, "import asyncio\nawait asyncio.sleep(0)\nreturn 1") == 1
        assert await workers.call(beam, ":ping") == "pong"
        assert await workers.call(beam, '{:call, "math", "sqrt", [16]}') == ("ok", 4.0)

    async def test_it_is_evaluated_by_the_workers(self, beam: Beam, workers: Runtime) -> None:
        code = "import os, time; time.sleep(0.05); return os.getpid()"
        source = """
        1..20 |> Task.async_stream(fn _ ->
          {:ok, pid} = GenServer.call({:snex, py}, {:eval, code, %{}}, 30_000)
          pid
        end, max_concurrency: 8, timeout: 60_000) |> Enum.map(&elem(&1, 1)) |> Enum.uniq()
        """
        found = await beam.eval(source, py=workers.name, code=code.encode())
        assert isinstance(found, list)
        assert sorted(found) == sorted(processes_of(await workers.info(beam)))

    async def test_an_answer_comes_from_the_worker_itself(
        self, beam: Beam, workers: Runtime
    ) -> None:
        """A second one of 10 MB: the first may come before the worker has connected."""
        source = """
        {:ok, x} = GenServer.call({:snex, py}, {:eval, "return 'x' * 10_000_000", %{}}, 30_000)
        byte_size(x)
        """

        sent = 0
        while sent < 10_000_000:
            before = await self._sent_by_workers(beam, workers)
            assert await beam.eval(source, py=workers.name) == 10_000_000
            sent = await self._sent_by_workers(beam, workers) - before

    async def _sent_by_workers(self, beam: Beam, workers: Runtime) -> int:
        source = """
        for node <- nodes do
          {:ok, %{bytes_out: bytes}} = GenServer.call({:snex, node}, :info)
          bytes
        end |> Enum.sum()
        """
        nodes = [worker["node"] for worker in (await workers.info(beam))["workers"]]
        sent = await beam.eval(source, nodes=nodes)
        assert isinstance(sent, int)
        return sent

    async def test_info_adds_up(self, beam: Beam, workers: Runtime) -> None:
        before = sum(worker["requests"] for worker in (await workers.info(beam))["workers"])
        assert await workers.call(beam, '{:eval, "return 1", %{}}') == ("ok", 1)
        sent = await self._sent_by_workers(beam, workers)
        info = await workers.info(beam)
        assert info["bytes_out"] > sent > 0
        assert [worker["state"] for worker in info["workers"]] == ["free", "free"]
        assert sum(worker["requests"] for worker in info["workers"]) > before

    async def test_a_worker_is_a_node(self, beam: Beam, workers: Runtime) -> None:
        nodes = [str(each["node"]) for each in (await workers.info(beam))["workers"]]
        alive, _, host = str(workers.name).partition("@")
        assert nodes == [f"{alive}-1@{host}", f"{alive}-2@{host}"]
        for node in nodes:
            source = 'GenServer.call({:snex, String.to_atom(node)}, {:eval, "return 1", %{}})'
            assert await beam.eval(source, node=node.encode()) == ("ok", 1)

    async def test_what_it_prints_goes_where_the_front_prints(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        runtime = start_runtime(cookie=beam.cookie, flags=("--workers", "1"))
        await runtime.run(beam, "print('said by a worker', flush=True)")
        assert runtime.process.stdout is not None
        assert runtime.process.stdout.readline() == b"said by a worker\n"

    async def test_erpc_runs_on_a_worker(self, beam: Beam, workers: Runtime) -> None:
        source = ":erpc.call(py, :os, :getpid, [])"
        found = await beam.eval(source, py=workers.name)
        assert found in processes_of(await workers.info(beam))
        with pytest.raises(BeamError, match="undef"):
            await beam.eval(":erpc.call(py, :math, :nope, [1])", py=workers.name)
        with pytest.raises(BeamError, match="undef"):
            await beam.eval(":erpc.call(py, nil, :nope, [1])", py=workers.name)
        with pytest.raises(BeamError, match="invalid literal for int"):
            await beam.eval(':erpc.call(py, :builtins, :int, ["x"])', py=workers.name)

    async def test_a_caller_without_an_alias_has_one_answer(
        self, beam: Beam, workers: Runtime
    ) -> None:
        for aliased in (True, False):
            answers = await beam.eval(
                ANSWERS, py=workers.name, code=b"return 5", aliased=aliased, opts=[]
            )
            assert answers == [("ok", 5)]


class TestEnvironments:
    async def test_what_runs_there_is_told(self, beam: Beam, workers: Runtime) -> None:
        source = """
        spawn(fn ->
          {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}})
          GenServer.call(env, {:eval, "import asyncio; await asyncio.sleep(60)", %{}}, 60_000)
        end)
        """
        caller = await beam.eval(source, py=workers.name)

        async def told() -> bool:
            return bool((await workers.info(beam))["requests_running"] == 1)

        await until(told)
        await beam.eval("Process.exit(caller, :kill)", caller=caller)
        await rested(beam, workers)

    async def test_they_are_spread_and_stay_where_they_are(
        self, beam: Beam, workers: Runtime
    ) -> None:
        source = """
        envs = for n <- 1..4 do
          {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{"x" => n}})
          env
        end
        values = for env <- envs, do: GenServer.call(env, {:eval, "x += 1; return x", %{}})
        {:ok, %{environments: count}} = GenServer.call({:snex, py}, :info)
        {Enum.frequencies_by(envs, &node/1) |> Map.values(), values, count}
        """
        answer: Any = await beam.eval(source, py=workers.name)
        spread, values, count = answer
        assert spread == [2, 2]
        assert values == [("ok", n + 1) for n in range(1, 5)]
        assert count == 4
        # Their handle has ended.
        await until_environments(beam, workers, 0)

    async def test_a_copy_is_made_where_the_original_is(self, beam: Beam, workers: Runtime) -> None:
        source = """
        for n <- 1..4 do
          {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{"x" => n}})
          {:ok, copy} = GenServer.call({:snex, py}, {:make_env, %{}, [from: {env, only: ["x"]}]})
          {node(env) == node(copy), GenServer.call(copy, {:eval, "return x", %{}})}
        end
        """
        found = await beam.eval(source, py=workers.name)
        assert found == [(True, ("ok", n)) for n in range(1, 5)]

    async def test_one_of_several_workers_is_refused(self, beam: Beam, workers: Runtime) -> None:
        source = """
        envs = for _ <- 1..2 do
          {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}})
          env
        end
        {:error, error} = GenServer.call({:snex, py}, {:make_env, %{}, [from: envs]})
        {error.code, error.reason}
        """
        answer: Any = await beam.eval(source, py=workers.name)
        code, reason = answer
        assert code == "bad_request"
        assert b"of several workers" in reason

    async def test_destroyed_through_the_front(self, beam: Beam, workers: Runtime) -> None:
        source = """
        {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}})
        ref = Process.monitor(env)
        # The monitor goes to the worker itself: there it is before the other request is.
        {:ok, 1} = GenServer.call(env, {:eval, "return 1", %{}})
        first = GenServer.call({:snex, py}, {:destroy_env, env})
        receive do {:DOWN, ^ref, _, _, reason} -> {first, reason} after 5000 -> :never end
        """
        assert await beam.eval(source, py=workers.name) == ("ok", "normal")

    async def test_they_go_with_their_worker(self, beam: Beam, workers: Runtime) -> None:
        source = """
        {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}})
        {:ok, other} = GenServer.call({:snex, py}, {:make_env, %{"y" => 1}})
        ref = Process.monitor(env)
        spawn(fn -> GenServer.call(env, {:eval, "import os; os._exit(1)", %{}}) end)
        reason = receive do {:DOWN, ^ref, _, _, reason} -> reason after 5000 -> :never end
        {reason, GenServer.call(other, {:eval, "return y", %{}})}
        """
        assert await beam.eval(source, py=workers.name) == ("noconnection", ("ok", 1))
        await rested(beam, workers)


async def until_environments(beam: Beam, runtime: Runtime, count: int) -> None:
    async def is_so() -> bool:
        return bool((await runtime.info(beam))["environments"] == count)

    await until(is_so)


class TestInit:
    async def test_it_reaches_all_and_later_ones(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        runtime = start_runtime(
            cookie=beam.cookie, flags=("--workers", "2"), init_script="import os\nscripted = 1"
        )
        answer = await runtime.call(beam, '{:init, "z = scripted + 1; return z", %{}}')
        assert answer == ("ok", 2)
        for worker in (await runtime.info(beam))["workers"]:
            os.kill(worker["os_pid"], signal.SIGKILL)
        info = await rested(beam, runtime)
        code = "return (os.getpid(), scripted, z)"
        answers = [await self._slowly(beam, runtime, code) for _ in range(2)]
        assert info["worker_restarts"] == 2
        assert {tuple(each[1:]) for each in answers} == {(1, 2)}

    async def _slowly(self, beam: Beam, runtime: Runtime, code: str) -> Any:
        return await runtime.run(beam, code)

    async def test_one_that_fails_is_an_error_and_is_not_kept(
        self, beam: Beam, workers: Runtime
    ) -> None:
        tag, failure = await workers.call(beam, '{:init, "1 / 0", %{}}')
        assert (tag, failure["type"]) == ("error", b"ZeroDivisionError")


class TestFates:
    """What befalls one request, and that nobody else notices."""

    @pytest.mark.parametrize(
        ("fate", "aliased"),
        [*((fate, True) for fate in FATES), ("segfault", False), ("regex", False)],
    )
    async def test_one_answer_and_no_harm_to_others(
        self, fate: str, aliased: bool, beam: Beam, workers: Runtime
    ) -> None:
        code, opts, expected, reason = FATES[fate]
        before = await rested(beam, workers)
        others = asyncio.ensure_future(
            beam.eval(OTHERS, py=workers.name, count=BYSTANDERS, timeout=60)
        )
        began = time.monotonic()
        source = f"opts = {opts}\n" + ANSWERS
        answers = await beam.eval(
            source, py=workers.name, code=code.encode(), aliased=aliased, timeout=30
        )
        took = time.monotonic() - began
        assert isinstance(answers, list)
        assert len(answers) == 1, answers
        tag, failure = answers[0]
        assert (tag, failure["code"]) == ("error", expected)
        if reason is not None:
            assert failure["reason"] == reason
        assert took < 10, took
        assert await others == {("ok", True): BYSTANDERS}
        after = await rested(beam, workers)
        ended = 0 if expected == "cancelled" else 1
        assert after["worker_restarts"] - before["worker_restarts"] == ended

    async def test_within_its_bound(self, beam: Beam, workers: Runtime) -> None:
        source = """
        {time, _} = :timer.tc(fn ->
          GenServer.call({:snex, py}, {:eval, code, %{}, [timeout: 300, kill_after: 300]})
        end)
        time
        """
        for fate in ("regex", "SIGSTOP"):
            code = FATES[fate][0].encode()
            took = await beam.eval(source, py=workers.name, code=code)
            assert isinstance(took, int)
            assert 590_000 < took < 1_600_000, fate
            await rested(beam, workers)

    async def test_what_awaits_in_the_same_worker_is_told(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        runtime = start_runtime(cookie=beam.cookie, flags=("--workers", "1"))
        source = """
        me = self()
        waits = "await snex.send(me, 'here')\\nimport asyncio\\nawait asyncio.sleep(60)"
        one = Task.async(fn ->
          GenServer.call({:snex, py}, {:eval, waits, %{"me" => me}}, 30_000)
        end)
        receive do "here" -> :ok after 5000 -> raise "never" end
        crash = GenServer.call({:snex, py}, {:eval, "import os; os._exit(7)", %{}}, 30_000)
        for {:error, error} <- [crash, Task.await(one)], do: {error.code, error.reason}
        """
        told = ("worker_exited", ("status", 7))
        assert await beam.eval(source, py=runtime.name) == [told, told]

    async def test_a_worker_that_is_stopped_while_idle_holds_up_nobody(
        self, beam: Beam, workers: Runtime
    ) -> None:
        info = await rested(beam, workers)
        os.kill(processes_of(info)[0], signal.SIGSTOP)
        answers = await beam.eval(OTHERS, py=workers.name, count=BYSTANDERS, timeout=60)
        assert answers == {("ok", True): BYSTANDERS}
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes_of(info)[0], signal.SIGCONT)
        await rested(beam, workers)

    async def test_one_that_stops_with_its_only_worker_holds_up_nobody_for_long(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        runtime = start_runtime(cookie=beam.cookie, flags=("--workers", "1"))
        stop = '{:eval, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", %{}}'
        one = asyncio.ensure_future(runtime.call(beam, stop, timeout=30_000))
        await until_busy(beam, runtime)
        tag, _ = await runtime.call(beam, "{:make_env, %{}}", timeout=30_000)
        assert tag == "ok"
        tag, failure = await one
        assert (tag, failure["code"]) == ("error", "worker_exited")

    async def test_without_a_limit_it_holds_up_nobody(self, beam: Beam, workers: Runtime) -> None:
        source = """
        me = self()
        endless = spawn(fn ->
          send(me, {:is, GenServer.call({:snex, py}, {:eval, "while True: pass", %{}}, :infinity)})
        end)
        counts = for _ <- 1..1000 do
          {:ok, 1} = GenServer.call({:snex, py}, {:eval, "return 1", %{}}, 30_000)
        end
        {Process.alive?(endless), length(counts)}
        """
        info = await rested(beam, workers)
        assert await beam.eval(source, py=workers.name, timeout=60) == (True, 1000)
        busy = [w["os_pid"] for w in (await workers.info(beam))["workers"] if w["state"] == "busy"]
        assert len(busy) == 1
        assert busy[0] in processes_of(info)
        os.kill(busy[0], signal.SIGKILL)
        await rested(beam, workers)


class TestGivingUp:
    async def test_work_stops_with_its_caller(self, beam: Beam, workers: Runtime) -> None:
        source = """
        me = self()
        code = "import asyncio\\ntry:\\n await snex.send(me, 'on')\\n await asyncio.sleep(60)\\n" <>
          "finally:\\n await snex.send(me, 'off')"
        pid = spawn(fn -> GenServer.call({:snex, py}, {:eval, code, %{"me" => me}}, time) end)
        receive do "on" -> :ok after 5000 -> raise "never" end
        if kill, do: Process.exit(pid, :kill)
        receive do "off" -> :stopped after 5000 -> :runs_on end
        """
        for kill, limit in ((True, 60_000), (False, 300)):
            found = await beam.eval(source, py=workers.name, kill=kill, time=limit)
            assert found == "stopped"
        await rested(beam, workers)

    async def test_what_blocks_stops_with_its_caller(self, beam: Beam, workers: Runtime) -> None:
        source = """
        me = self()
        code = "await snex.call('erlang', 'send', [me, 'on'])\\nwhile True: pass"
        pid = spawn(fn -> GenServer.call({:snex, py}, {:eval, code, %{"me" => me}}, time) end)
        receive do "on" -> :ok after 5000 -> raise "never" end
        if kill, do: Process.exit(pid, :kill)
        """
        for kill, limit in ((True, 60_000), (False, 300)):
            await beam.eval(source, py=workers.name, kill=kill, time=limit)
            began = time.monotonic()
            await rested(beam, workers)
            assert time.monotonic() - began < 2
        sync = 'GenServer.call({:snex, py}, {:eval, "while True: pass", %{}}, 300)'
        with pytest.raises(BeamError, match="time out"):
            await beam.eval(sync, py=workers.name)
        await rested(beam, workers)

    async def test_what_waits_for_a_worker_is_dropped(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        """It waits behind code that ends when this test says so, and never runs."""
        runtime = start_runtime(cookie=beam.cookie, flags=("--workers", "1"))
        gate = runtime.home / "gate"
        slow = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
        blocking = asyncio.ensure_future(self._call(runtime, beam, slow))
        await until_busy(beam, runtime)
        source = """
        1..10
        |> Task.async_stream(fn _ ->
          try do
            GenServer.call({:snex, py}, {:eval, "import builtins; builtins.ran = 1", %{}}, 100)
          catch
            :exit, {:timeout, _} -> :given_up
          end
        end, max_concurrency: 10)
        |> Enum.frequencies()
        """
        assert await beam.eval(source, py=runtime.name) == {("ok", "given_up"): 10}
        gate.touch()
        assert await blocking == ("ok", None)
        code = "import builtins; return hasattr(builtins, 'ran')"
        assert await runtime.run(beam, code) is False
        await rested(beam, runtime, 1)

    async def _call(self, runtime: Runtime, beam: Beam, code: str) -> Any:
        return await runtime.call(beam, "{:eval, code, %{}}", 30_000, code=code.encode())


async def until_busy(beam: Beam, runtime: Runtime) -> None:
    """Code blocks the only worker."""

    async def is_so() -> bool:
        [worker] = (await runtime.info(beam))["workers"]
        return bool(worker["state"] == "busy")

    await until(is_so)


class TestBounds:
    async def test_a_full_queue_refuses_at_once(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        flags = ("--workers", "1", "--max-queue", "5")
        runtime = start_runtime(cookie=beam.cookie, flags=flags)
        source = """
        slow = "import time; time.sleep(0.5)"
        call = fn -> GenServer.call({:snex, py}, {:eval, slow, %{}}, 30_000) end
        1..20
        |> Task.async_stream(fn _ ->
          {time, answer} = :timer.tc(call)
          case answer do
            {:ok, nil} -> :ok
            {:error, error} -> {error.code, time < 400_000}
          end
        end, max_concurrency: 20, timeout: 60_000)
        |> Enum.map(&elem(&1, 1)) |> Enum.frequencies()
        """
        found = await beam.eval(source, py=runtime.name, timeout=60)
        assert found == {"ok": 6, ("overloaded", True): 14}

    async def test_one_that_waits_too_long_is_refused(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        flags = ("--workers", "1", "--queue-timeout", "300")
        runtime = start_runtime(cookie=beam.cookie, flags=flags)
        slow = '{:eval, "import time; time.sleep(2)", %{}}'
        blocking = asyncio.ensure_future(runtime.call(beam, slow, timeout=30_000))
        await until_busy(beam, runtime)
        source = """
        call = fn -> GenServer.call({:snex, py}, {:eval, "1", %{}}) end
        {time, {:error, error}} = :timer.tc(call)
        {error.code, div(time, 1000)}
        """
        answer: Any = await beam.eval(source, py=runtime.name)
        code, took = answer
        assert code == "overloaded"
        assert 290 < took < 1000
        assert await blocking == ("ok", None)

    async def test_a_worker_is_replaced_after_its_requests(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        flags = ("--workers", "2", "--max-requests", "50")
        runtime = start_runtime(cookie=beam.cookie, flags=flags)
        first = processes_of(await runtime.info(beam))
        assert await beam.eval(OTHERS, py=runtime.name, count=BYSTANDERS, timeout=60) == {
            ("ok", True): BYSTANDERS
        }
        info = await rested(beam, runtime)
        assert not set(first) & set(processes_of(info))
        assert info["worker_restarts"] == 0

    async def test_the_restart_budget_ends_the_node(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        flags = ("--workers", "1", "--max-restarts", "2/60")
        runtime = start_runtime(cookie=beam.cookie, flags=flags)
        crash = '{:eval, "import os; os._exit(1)", %{}}'
        for _ in range(3):
            tag, failure = await runtime.call(beam, crash, timeout=20_000)
            assert (tag, failure["code"]) == ("error", "worker_exited")
        await asyncio.to_thread(runtime.process.wait, 10)
        assert runtime.process.returncode == 1
        assert "more than 2 workers have ended within 60 s" in runtime.log


class TestTheEnd:
    async def test_nothing_is_left(self, beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
        for end in (signal.SIGTERM, signal.SIGKILL):
            runtime = start_runtime(cookie=beam.cookie, flags=("--workers", "2"))
            processes = processes_of(await runtime.info(beam))
            code = "import subprocess; return subprocess.Popen(['sleep', '1000']).pid"
            processes.append(await runtime.run(beam, code))
            runtime.process.send_signal(end)
            await asyncio.to_thread(runtime.process.wait, 10)
            await asyncio.to_thread(gone, processes)


def gone(processes: list[int], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, [each for each in processes if alive(each)]
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
