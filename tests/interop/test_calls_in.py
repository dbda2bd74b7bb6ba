"""What a BEAM starts on a node of ours: `:erpc`, `:rpc`, `Node.spawn`, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snex_node import Atom, Node, Pid, Process, UndefinedFunctionError, import_function
from tests.interop import functions
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.waiting import until

MODULE = functions.MODULE


@pytest.fixture(autouse=True)
def _fresh_functions() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


def caught(expression: str) -> str:
    """Elixir that gives the value, or kind and reason of what the expression raises."""
    return f"try do {{:value, {expression}}} catch kind, reason -> {{kind, reason}} end"


async def erpc(beam: Beam, node: Node, mfa: str, timeout: str = "5000") -> object:
    source = caught(f":erpc.call(py, {mfa}, {timeout})")
    return await beam.eval(source, py=node.name, m=MODULE)


async def rpc(beam: Beam, node: Node, mfa: str, kind: str = "call") -> Any:
    return await beam.eval(f":rpc.{kind}(py, {mfa})", py=node.name, m=MODULE)


class TestErpc:
    async def test_values(self, beam: Beam, node: Node) -> None:
        assert await erpc(beam, node, ":math, :sqrt, [16]") == ("value", 4.0)
        arguments = '[1, "two", :three, [4], %{5 => 6.5}, self()]'
        value = await erpc(beam, node, f"m, :give, {arguments}")
        assert isinstance(value, tuple)
        assert value[1][:5] == [1, b"two", "three", [4], {5: 6.5}]
        assert isinstance(value[1][5], Pid)

    async def test_dots_lead_further_in(self, beam: Beam, node: Node) -> None:
        assert await erpc(beam, node, 'm, :"Holder.method", [1]') == ("value", 1)

    async def test_coroutines(self, beam: Beam, node: Node) -> None:
        calling = asyncio.ensure_future(erpc(beam, node, "m, :wait, [1]"))
        await until(lambda: functions.running)
        # Meanwhile the node does other things.
        assert await erpc(beam, node, ":math, :sqrt, [16]") == ("value", 4.0)
        functions.go_on[0].set()
        assert await calling == ("value", ("waited", 1))

    @pytest.mark.parametrize(
        ("function", "kind", "text"),
        [
            ('fail, ["bad"]', b"ValueError", b"bad"),
            ('fail_later, ["bad"]', b"KeyError", b"'bad'"),
            ("end, []", b"SystemExit", b"3"),
            ("end_later, []", b"SystemExit", b"3"),
            ("cancel, []", b"asyncio.exceptions.CancelledError", b"by itself"),
            (
                "fail_unreadably, []",
                f"{MODULE}.Unreadable".encode(),
                b"<exception str() failed>",
            ),
        ],
    )
    async def test_exceptions_are_errors(
        self, beam: Beam, node: Node, function: str, kind: bytes, text: bytes
    ) -> None:
        result = await erpc(beam, node, f"m, :{function}")
        assert isinstance(result, tuple)
        assert result[0] == "error"
        tag, reason, stack = result[1]
        assert (tag, reason) == ("exception", ("python_error", kind, text))
        assert stack[-1][1] == function.partition(",")[0]
        assert await node.ping(beam.name)

    async def test_a_value_that_cannot_be_sent(self, beam: Beam, node: Node) -> None:
        result = await erpc(beam, node, "m, :unsendable, []")
        assert isinstance(result, tuple)
        _, (name, kind, text), _ = result[1]
        assert name == "python_error"
        assert kind.endswith(b"EncodeTypeError")
        assert b'at [1]["where"]' in text

    @pytest.mark.parametrize(
        "function",
        [
            ":no_such_module, :f",
            "m, :no_such_function",
            "m, :not_callable",
            "m, nil",
            "Enum, :map",
            ':"a.b.c", :d',
        ],
    )
    async def test_undef(self, beam: Beam, node: Node, function: str) -> None:
        result = await erpc(beam, node, f"{function}, [1]")
        assert isinstance(result, tuple)
        assert result[0] == "error"
        tag, reason, stack = result[1]
        assert (tag, reason) == ("exception", "undef")
        assert stack[0][2] == [1]

    async def test_a_fun_has_no_meaning_here(self, beam: Beam, node: Node) -> None:
        result = await beam.eval(caught(":erpc.call(py, fn -> 1 end)"), py=node.name)
        assert isinstance(result, tuple)
        assert result[1][:2] == ("exception", "undef")

    async def test_too_deep_an_argument(self, beam: Beam, node: Node) -> None:
        deep = "Enum.reduce(1..150_000, [], fn _, acc -> [acc] end)"
        assert await erpc(beam, node, f"m, :give, [{deep}]") == ("error", ("erpc", "badarg"))
        assert await node.ping(beam.name)

    async def test_a_timeout_cancels(self, beam: Beam, node: Node) -> None:
        assert await erpc(beam, node, "m, :wait, [:slow]", "50") == ("error", ("erpc", "timeout"))
        await until(lambda: functions.cancelled)
        assert functions.cancelled == ["slow"]
        assert functions.running == []
        assert await erpc(beam, node, ":math, :sqrt, [16]") == ("value", 4.0)

    async def test_a_caller_that_dies_cancels(self, beam: Beam, node: Node) -> None:
        source = "spawn(fn -> :erpc.call(py, m, :wait, [:orphan]) end)"
        pid = await beam.eval(source, py=node.name, m=MODULE)
        await until(lambda: functions.running)
        await beam.eval("Process.exit(pid, :kill)", pid=pid)
        await until(lambda: functions.cancelled)

    async def test_a_lost_connection_cancels(self, beam: Beam, node: Node) -> None:
        calling = asyncio.ensure_future(erpc(beam, node, "m, :wait, [1]"))
        await until(lambda: functions.running)
        node.disconnect(beam.name)
        assert await calling == ("error", ("erpc", "noconnection"))
        await until(lambda: functions.cancelled)
        # The evaluations are processes: none is left.
        assert {type(p).__name__ for p in node.registry.by_pid.values()} == {
            "Client",
            "NetKernel",
            "Rex",
        }

    async def test_send_request(self, beam: Beam, node: Node) -> None:
        source = """
        one = :erpc.send_request(py, m, :wait, [1])
        three = :erpc.send_request(py, m, :wait, [3])
        # Its answer shows that the others have begun: before, there is nothing to take back.
        two = :erpc.send_request(py, :math, :sqrt, [16])
        {:erpc.receive_response(two, 5000), :erpc.wait_response(one, 0),
         try do
           :erpc.receive_response(three, 0)
         catch
           kind, reason -> {kind, reason}
         end,
         send({:told, py}, :now),
         :erpc.receive_response(one, 5000)}
        """
        told = Process(node, name="told")
        evaluating = beam.submit(source, py=node.name, m=MODULE)
        await told.receive(timeout=5)
        functions.go_on[0].set()
        assert await asyncio.wrap_future(evaluating) == (
            4.0,
            "no_response",
            ("error", ("erpc", "timeout")),
            "now",
            ("waited", 1),
        )
        await until(lambda: functions.cancelled == [3])

    async def test_multicall(self, beam: Beam, node: Node) -> None:
        source = ":erpc.multicall([py, node()], :math, :sqrt, [16], 5000)"
        value = await beam.eval(source, py=node.name)
        assert value == [("ok", 4.0), ("ok", 4.0)]

    async def test_cast(self, beam: Beam, node: Node, caplog: pytest.LogCaptureFixture) -> None:
        source = """
        :ok = :erpc.cast(py, m, :note, [1])
        :ok = :erpc.cast(py, m, :fail, ["nobody hears"])
        :ok = :erpc.cast(py, m, :no_such_function, [])
        :ok = :erpc.multicast([py], m, :note, [2])
        """
        await beam.eval(source, py=node.name, m=MODULE)
        await until(lambda: functions.called == [(1,), (2,)])
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 2
        assert "nobody hears" in str(errors[0].exc_info)
        assert "no_such_function" in errors[1].message


class TestRpc:
    async def test_values(self, beam: Beam, node: Node) -> None:
        for kind in ("call", "block_call"):
            assert await rpc(beam, node, ":math, :sqrt, [16]", kind) == 4.0
            calling = asyncio.ensure_future(rpc(beam, node, "m, :wait, [1]", kind))
            await until(lambda: functions.running)
            functions.go_on.pop().set()
            assert await calling == ("waited", 1)

    async def test_errors(self, beam: Beam, node: Node) -> None:
        for kind in ("call", "block_call"):
            bad, (exit_, (reason, stack)) = await rpc(beam, node, 'm, :fail, ["bad"]', kind)
            assert (bad, exit_) == ("badrpc", "EXIT")
            assert reason == ("python_error", b"ValueError", b"bad")
            assert stack[0][1] == "fail"
            bad, (exit_, (reason, stack)) = await rpc(beam, node, "m, :nothing, [1]", kind)
            assert (bad, exit_, reason) == ("badrpc", "EXIT", "undef")
            assert stack == [(MODULE, "nothing", [1], [])]
            bad, (exit_, (reason, _)) = await rpc(beam, node, "m, :unsendable, []", kind)
            assert reason[1].endswith(b"EncodeTypeError")

    @pytest.mark.parametrize("kind", ["call", "block_call"])
    async def test_a_timeout_cancels(self, beam: Beam, node: Node, kind: str) -> None:
        assert await rpc(beam, node, "m, :wait, [1], 300", kind) == ("badrpc", "timeout")
        await until(lambda: functions.cancelled == [1])
        assert await rpc(beam, node, ":math, :sqrt, [16]", kind) == 4.0

    async def test_cast_and_multicall(self, beam: Beam, node: Node) -> None:
        source = """
        true = :rpc.cast(py, m, :note, [1])
        :abcast = :rpc.abcast([py], :told, :hello)
        :rpc.multicall([py], :math, :sqrt, [16])
        """
        told = Process(node, name="told")
        assert await beam.eval(source, py=node.name, m=MODULE) == ([4.0], [])
        assert await told.receive(timeout=5) == "hello"
        await until(lambda: functions.called == [(1,)])

    async def test_old_requests_to_rex(self, beam: Beam, node: Node) -> None:
        """What nodes before OTP 23 send, and what no node sends."""
        source = """
        gl = Process.group_leader()
        GenServer.cast({:rex, py}, {:cast, m, :note, [:old], gl})
        GenServer.cast({:rex, py}, {:nonsense})
        send({:rex, py}, :nonsense)
        {GenServer.call({:rex, py}, {:call, :math, :sqrt, [16], gl}),
         GenServer.call({:rex, py}, {:call, :math, :sqrt, :not_a_list, gl}),
         GenServer.call({:rex, py}, :nonsense),
         GenServer.call({:net_kernel, py}, :nonsense)}
        """
        bad = ("badrpc", "badarg")
        value = await beam.eval(source, py=node.name, m=MODULE)
        assert value == (4.0, bad, bad, "no")
        await until(lambda: functions.called == [("old",)])


class TestPlainMessagesToRex:
    async def test_sbcast(self, beam: Beam, node: Node) -> None:
        told = Process(node, name="told")
        source = "{:rpc.sbcast([py], :told, :hello), :rpc.sbcast([py], :nobody, :hello)}"
        good: object = ([node.name], [])
        bad: object = ([], [node.name])
        assert await beam.eval(source, py=node.name) == (good, bad)
        assert await told.receive(timeout=5) == "hello"

    async def test_eval_everywhere(self, beam: Beam, node: Node) -> None:
        source = ":rpc.eval_everywhere([py], m, :note, [:everywhere])"
        assert await beam.eval(source, py=node.name, m=MODULE) == "abcast"
        await until(lambda: functions.called == [("everywhere",)])

    async def test_erl_call(self, beam: Beam, node: Node, epmd: RealEpmd) -> None:
        """A C node: it knows no other way."""
        process = await asyncio.create_subprocess_exec(
            *("erl_call", "-name", node.name, "-c", beam.cookie, "-a", "math sqrt [16.0]"),
            env={**os.environ, "ERL_EPMD_PORT": str(epmd.port)},
            stdout=subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert float(output) == 4.0
        assert process.returncode == 0


class TestSpawn:
    async def test_spawn(self, beam: Beam, node: Node) -> None:
        source = "Node.spawn(py, m, :note, [1, 2])"
        pid = await beam.eval(source, py=node.name, m=MODULE)
        assert isinstance(pid, Pid)
        assert pid.node == node.name
        await until(lambda: functions.called == [(1, 2)])
        await until(lambda: node.find(pid) is None)

    async def test_a_coroutine_is_a_process(self, beam: Beam, node: Node) -> None:
        pid = await beam.eval("Node.spawn(py, m, :wait, [1])", py=node.name, m=MODULE)
        await until(lambda: functions.running)
        assert isinstance(pid, Pid)
        assert node.find(pid) is not None
        await beam.eval("Process.exit(pid, :kill)", pid=pid)
        await until(lambda: functions.cancelled)
        assert node.find(pid) is None

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            (":math, :sqrt, [16]", "normal"),
            (":math, :sqrt, [-1]", ("python_error", b"ValueError", b"math domain error")),
            (":nothing, :f, [1]", "undef"),
        ],
    )
    async def test_spawn_monitor(self, beam: Beam, node: Node, call: str, reason: object) -> None:
        source = f"""
        {{pid, ref}} = Node.spawn_monitor(py, {call})
        receive do {{:DOWN, ^ref, :process, ^pid, reason}} -> reason after 5000 -> :nothing end
        """
        ended = await beam.eval(source, py=node.name)
        if reason == "normal":
            assert ended == "normal"
        elif reason == "undef":
            assert ended == ("undef", [("nothing", "f", [1], [])])
        else:
            assert isinstance(ended, tuple)
            name, kind, _ = ended[0]
            assert (name, kind) == ("python_error", b"ValueError")

    async def test_spawn_link(self, beam: Beam, node: Node) -> None:
        source = """
        Process.flag(:trap_exit, true)
        failing = Node.spawn_link(py, m, :fail, ["bad"])
        waiting = Node.spawn_link(py, m, :wait, [1])
        reason = receive do {:EXIT, ^failing, reason} -> reason after 5000 -> :nothing end
        Process.unlink(waiting)
        other = spawn(fn ->
          Node.spawn_link(py, m, :wait, [2])
          receive do :stop -> exit(:stopped) end
        end)
        {reason, waiting, other}
        """
        told: Any = await beam.eval(source, py=node.name, m=MODULE)
        reason, _, other = told
        assert reason[0] == ("python_error", b"ValueError", b"bad")
        await until(lambda: len(functions.running) == 2)
        await beam.eval("send(pid, :stop)", pid=other)
        await until(lambda: functions.cancelled == [2])
        assert functions.running == [1]  # no longer linked

    async def test_options_that_mean_nothing_here(self, beam: Beam, node: Node) -> None:
        source = """
        options = [:monitor, priority: :high, min_heap_size: 1000, message_queue_data: :off_heap]
        {pid, ref} = :erlang.spawn_opt(py, :math, :sqrt, [1], options)
        receive do {:DOWN, ^ref, :process, ^pid, reason} -> reason after 5000 -> :nothing end
        """
        assert await beam.eval(source, py=node.name) == "normal"

    async def test_spawn_request(self, beam: Beam, node: Node) -> None:
        source = """
        for options <- [[], [:bogus], [{:bogus, 1}], [:monitor, {:reply_tag, :told}]] do
          ref = :erlang.spawn_request(py, :math, :sqrt, [16], options)
          receive do
            {tag, ^ref, status, what} -> {tag, status, if(is_pid(what), do: :pid, else: what)}
          after
            5000 -> :nothing
          end
        end
        """
        assert await beam.eval(source, py=node.name) == [
            ("spawn_reply", "ok", "pid"),
            ("spawn_reply", "error", "badopt"),
            ("spawn_reply", "error", "badopt"),
            ("told", "ok", "pid"),
        ]

    async def test_a_fun_is_refused(
        self, start_beam: Callable[..., Beam], node: Node, beam: Beam
    ) -> None:
        own = start_beam(cookie=beam.cookie)  # it logs a warning
        pid = await own.eval("Node.spawn(py, fn -> :code end)", py=node.name)
        assert isinstance(pid, Pid)
        source = """
        ref = :erlang.spawn_request(py, fn -> :code end, [:monitor])
        receive do {:spawn_reply, ^ref, status, what} -> {status, what} after 5000 -> :nothing end
        """
        assert await own.eval(source, py=node.name) == ("error", "notsup")
        assert await own.eval("Node.ping(py)", py=node.name) == "pong"

    async def test_spawning_and_dying_at_once(self, beam: Beam, node: Node) -> None:
        """The reply and the end of a process that ends at once come in one write, in order."""
        source = """
        refs = for _ <- 1..500 do
          {_, ref} = Node.spawn_monitor(py, :math, :sqrt, [1])
          ref
        end
        for ref <- refs do
          receive do {:DOWN, ^ref, _, _, reason} -> reason after 5000 -> :nothing end
        end |> Enum.uniq()
        """
        assert await beam.eval(source, py=node.name) == ["normal"]


class TestResolvers:
    async def test_who_allows_nothing(self, beam: Beam, start_node: NodeStarter) -> None:
        node = await start_node(resolver=None)
        result = await erpc(beam, node, ":math, :sqrt, [16]")
        assert isinstance(result, tuple)
        assert result[1][:2] == ("exception", "undef")
        bad, (_, (reason, _)) = await rpc(beam, node, ":math, :sqrt, [16]", "block_call")
        assert (bad, reason) == ("badrpc", "undef")
        assert await beam.eval("Node.ping(py)", py=node.name) == "pong"

    async def test_an_allow_list(self, beam: Beam, start_node: NodeStarter) -> None:
        def resolve(module: str, function: str) -> Callable[..., object]:
            if module != "math":
                raise UndefinedFunctionError(f"{module} is not for others")
            return import_function(module, function)

        node = await start_node(resolver=resolve)
        assert await erpc(beam, node, ":math, :sqrt, [16]") == ("value", 4.0)
        result = await erpc(beam, node, ":os, :getpid, []")
        assert isinstance(result, tuple)
        assert result[1][:2] == ("exception", "undef")

    async def test_a_module_that_fails_to_load(self, beam: Beam, start_node: NodeStarter) -> None:
        def resolve(module: str, function: str) -> Callable[..., object]:
            raise SystemExit(f"{module} wants to end this")

        node = await start_node(resolver=resolve)
        result = await erpc(beam, node, ":math, :sqrt, [16]")
        assert isinstance(result, tuple)
        assert result[1][1] == ("python_error", b"SystemExit", b"math wants to end this")


async def test_elixir_prints_what_python_raised(beam: Beam, node: Node) -> None:
    """What somebody at an iex prompt reads."""
    source = """
    try do
      :erpc.call(py, m, :fail, ["bad"])
    rescue
      error -> Exception.format(:error, error, __STACKTRACE__)
    end
    """
    text = await beam.eval(source, py=node.name, m=MODULE)
    assert isinstance(text, bytes)
    assert b'{:python_error, "ValueError", "bad"}' in text
    assert b"functions.py" in text


def test_atoms_name_modules() -> None:
    assert import_function("math", "sqrt")(16) == 4
    assert isinstance(MODULE, Atom)
