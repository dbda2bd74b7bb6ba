"""Python servers, called and cast from a BEAM with everything that OTP has for it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from snex_node import NO_REPLY, Atom, From, GenServer, Node, Process, Stop
from tests.support.beam import Beam
from tests.support.tied import watchers_of
from tests.support.waiting import until

OK = Atom("ok")


class Server(GenServer):
    """Answers by what it is asked; notes what it takes."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, name="server")
        self.seen: list[object] = []
        self.waiting: list[From] = []
        self.withdrawn: list[bytes] = []
        self.ended_with: list[object] = []
        self.go_on = asyncio.Event()

    def handle_call(self, request: object, caller: From) -> object:
        self.seen.append(request)
        if request == "later":
            self.waiting.append(caller)
            return NO_REPLY
        if request == "slow":
            return self._slow()
        if request == "crash":
            raise RuntimeError("on purpose")
        if request == "stop":
            raise Stop(Atom("asked"), reply=Atom("bye"))
        if request == "stop_silently":
            raise Stop((Atom("shutdown"), 1))
        if request == "unsendable":
            return object()
        return OK, request

    async def _slow(self) -> object:
        await self.go_on.wait()
        return Atom("at_last")

    def handle_cast(self, request: object) -> object:
        self.seen.append(("cast", request))
        return self.go_on.wait() if request == "slow" else None

    def handle_info(self, message: object) -> object:
        self.seen.append(("info", message))
        return None

    def terminate(self, reason: object) -> object:
        self.ended_with.append(reason)
        return None

    def demonitored(self, ref: bytes) -> None:
        self.withdrawn.append(ref)


@pytest.fixture
async def server(node: Node) -> Server:
    return Server(node)


async def call(beam: Beam, node: Node, request: str, timeout: str = "5000") -> object:
    """What the call gives, or `{:exit, reason}` without the part that names the call."""
    source = f"""
    try do
      GenServer.call({{:server, py}}, {request}, {timeout})
    catch
      :exit, {{reason, _call}} -> {{:exit, reason}}
    end
    """
    return await beam.eval(source, py=node.name)


class TestCalls:
    async def test_by_name_and_by_pid(self, beam: Beam, node: Node, server: Server) -> None:
        assert await call(beam, node, "%{a: [1, 2.5]}") == ("ok", {"a": [1, 2.5]})
        source = "GenServer.call(pid, :hello)"
        assert await beam.eval(source, pid=server.pid) == ("ok", "hello")
        # A caller's monitor is taken back when it has its answer.
        await until(lambda: len(server.withdrawn) == 2)
        assert not watchers_of(server)

    async def test_infinite_timeout(self, beam: Beam, node: Node, server: Server) -> None:
        assert await call(beam, node, "1", ":infinity") == ("ok", 1)

    async def test_multi_call(self, beam: Beam, node: Node, server: Server) -> None:
        source = "GenServer.multi_call([py], :server, 7, 5000)"
        assert await beam.eval(source, py=node.name) == ([(node.name, (OK, 7))], [])

    async def test_a_coroutine_answers(self, beam: Beam, node: Node, server: Server) -> None:
        calling = asyncio.ensure_future(call(beam, node, ":slow"))
        await until(lambda: "slow" in server.seen)
        behind = asyncio.ensure_future(call(beam, node, ":behind"))
        assert await node.rpc(beam.name, "erlang", "node") == beam.name
        assert "behind" not in server.seen  # one message is handled at a time
        server.go_on.set()
        assert await calling == "at_last"
        assert await behind == ("ok", "behind")

    async def test_an_answer_that_comes_later(self, beam: Beam, node: Node, server: Server) -> None:
        calling = asyncio.ensure_future(call(beam, node, ":later"))
        await until(lambda: server.waiting)
        assert await call(beam, node, ":between") == ("ok", "between")
        server.reply(server.waiting[0], Atom("finally"))
        assert await calling == "finally"

    async def test_send_request(self, beam: Beam, node: Node, server: Server) -> None:
        source = """
        one = :gen_server.send_request({:server, py}, 1)
        two = :gen_server.send_request(pid, 2)
        {:gen_server.receive_response(two, 5000), :gen_server.wait_response(one, 5000),
         Process.info(self(), :messages)}
        """
        expected: object = (("reply", (OK, 2)), ("reply", (OK, 1)), ("messages", []))
        assert await beam.eval(source, py=node.name, pid=server.pid) == expected

    async def test_send_request_to_who_is_not_there(self, beam: Beam, node: Node) -> None:
        source = """
        request = :gen_server.send_request({:nobody, py}, 1)
        {:error, {reason, _}} = :gen_server.receive_response(request, 5000)
        reason
        """
        assert await beam.eval(source, py=node.name) == "noproc"

    async def test_a_tag_of_the_caller_s_own(self, beam: Beam, node: Node, server: Server) -> None:
        """`{'$gen_call', {Pid, Tag}, Request}` from who does not use `gen`: any term is a tag."""
        source = """
        for tag <- [make_ref(), :atom, {1, 2}, [:alias], 1.5] do
          send({:server, py}, {:"$gen_call", {self(), tag}, tag})
          receive do {^tag, {:ok, ^tag}} -> :ok after 5000 -> tag end
        end
        """
        assert await beam.eval(source, py=node.name) == ["ok"] * 5


class TestTimeouts:
    async def test_a_late_answer_is_dropped(self, beam: Beam, node: Node, server: Server) -> None:
        source = """
        try do
          GenServer.call({:server, py}, :later, 50)
        catch
          :exit, {:timeout, _} -> :timed_out
        end
        |> then(fn result ->
          # The answer that is sent now comes before that of the next call.
          {:ok, 1} = GenServer.call({:server, py}, 1)
          {result, Process.info(self(), :messages)}
        end)
        """
        evaluating = beam.submit(source, py=node.name)
        await until(lambda: server.withdrawn)
        caller = server.waiting[0]
        assert server.withdrawn[0] == caller.ref
        server.reply(caller, Atom("too_late"))
        result = await asyncio.wait_for(asyncio.wrap_future(evaluating), 5)
        assert result == ("timed_out", ("messages", []))

    async def test_a_caller_that_dies_is_noticed(
        self, beam: Beam, node: Node, server: Server
    ) -> None:
        pid = await beam.eval(
            "spawn(fn -> GenServer.call({:server, py}, :later) end)", py=node.name
        )
        await until(lambda: server.waiting)
        assert server.waiting[0].pid == pid
        assert not server.withdrawn
        await beam.eval("Process.exit(pid, :kill)", pid=pid)
        await until(lambda: server.withdrawn)
        assert server.withdrawn == [server.waiting[0].ref]
        server.reply(server.waiting[0], 1)  # to nobody
        assert await call(beam, node, "2") == ("ok", 2)

    async def test_lost_callers_are_noticed(self, beam: Beam, node: Node, server: Server) -> None:
        calling = asyncio.ensure_future(call(beam, node, ":later"))
        await until(lambda: server.waiting)
        node.disconnect(beam.name)
        assert server.withdrawn == [server.waiting[0].ref]
        result = await calling
        assert result == ("exit", ("nodedown", node.name)) or result == ("exit", "noconnection")
        server.reply(server.waiting[0], 1)  # connects nobody
        assert node.nodes == []
        assert await call(beam, node, "2") == ("ok", 2)


class TestCastsAndMessages:
    async def test_in_order(self, beam: Beam, node: Node, server: Server) -> None:
        source = """
        GenServer.cast({:server, py}, 1)
        send({:server, py}, 2)
        GenServer.cast(pid, 3)
        send(pid, 4)
        :abcast = GenServer.abcast([py], :server, 5)
        :gen_server.cast({:server, py}, 6)
        GenServer.call({:server, py}, 7)
        """
        assert await beam.eval(source, py=node.name, pid=server.pid) == ("ok", 7)
        assert server.seen == [
            ("cast", 1),
            ("info", 2),
            ("cast", 3),
            ("info", 4),
            ("cast", 5),
            ("cast", 6),
            7,
        ]

    async def test_what_waits_behind_a_slow_cast(
        self, beam: Beam, node: Node, server: Server
    ) -> None:
        await beam.eval("GenServer.cast({:server, py}, :slow)", py=node.name)
        calling = asyncio.ensure_future(call(beam, node, "1"))
        await until(lambda: server.seen)
        assert await node.ping(beam.name)
        assert server.seen == [("cast", "slow")]
        server.go_on.set()
        assert await calling == ("ok", 1)

    async def test_to_nobody(self, beam: Beam, node: Node, server: Server) -> None:
        source = """
        send({:nobody, py}, 1)
        GenServer.cast({:nobody, py}, 1)
        GenServer.call({:server, py}, 1)
        """
        assert await beam.eval(source, py=node.name) == ("ok", 1)


class TestEnds:
    async def test_stop(self, beam: Beam, node: Node, server: Server) -> None:
        assert await beam.eval("GenServer.stop({:server, py})", py=node.name) == "ok"
        assert server.ended_with == ["normal"]
        assert not server.alive
        assert await call(beam, node, "1") == ("exit", "noproc")

    async def test_stop_by_pid_with_a_reason(self, beam: Beam, node: Node, server: Server) -> None:
        assert await beam.eval("GenServer.stop(pid, :shutdown, 5000)", pid=server.pid) == "ok"
        assert server.exit_reason == "shutdown"

    async def test_stop_who_is_not_there(self, beam: Beam, node: Node) -> None:
        source = """
        try do
          GenServer.stop({:nobody, py})
        catch
          :exit, {reason, _} -> reason
        end
        """
        assert await beam.eval(source, py=node.name) == "noproc"

    async def test_a_crash_tells_the_caller_why(
        self, beam: Beam, node: Node, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        result = await call(beam, node, ":crash")
        assert isinstance(result, tuple)
        reason, stack = result[1]
        assert reason == ("python_error", b"RuntimeError", b"on purpose")
        module, function, arity, where = stack[0]
        assert (module, function, arity) == ("python", "handle_call", 0)
        assert dict(where)["file"] == list(map(ord, __file__))
        assert server.ended_with == [server.exit_reason]
        assert not server.alive
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 1
        assert errors[0].exc_info is not None
        # The stack is one that Elixir can print.
        source = "Exception.format_exit({{:python_error, a, b}, stack})"
        text = await beam.eval(source, a=b"x", b=b"y", stack=stack)
        assert isinstance(text, bytes)
        assert b"test_servers.py:" in text

    async def test_an_answer_that_cannot_be_sent(
        self, beam: Beam, node: Node, server: Server
    ) -> None:
        result = await call(beam, node, ":unsendable")
        assert isinstance(result, tuple)
        name, kind, text = result[1][0]
        assert name == "python_error"
        assert kind.endswith(b"EncodeTypeError")
        assert b"object" in text

    async def test_stopping_with_an_answer(self, beam: Beam, node: Node, server: Server) -> None:
        assert await call(beam, node, ":stop") == "bye"
        assert server.exit_reason == "asked"

    async def test_stopping_without_an_answer(self, beam: Beam, node: Node, server: Server) -> None:
        assert await call(beam, node, ":stop_silently") == ("exit", ("shutdown", 1))

    async def test_killed_while_it_works(self, beam: Beam, node: Node, server: Server) -> None:
        calling = asyncio.ensure_future(call(beam, node, ":slow"))
        await until(lambda: server.seen)
        await beam.eval("Process.exit(pid, :kill)", pid=server.pid)
        assert await calling == ("exit", "killed")
        assert server.ended_with == []


class TestSystemMessages:
    async def test_other_requests_are_refused_readably(
        self, beam: Beam, node: Node, server: Server
    ) -> None:
        source = """
        try do
          :sys.get_state({:server, py})
        catch
          kind, reason -> {kind, reason}
        end
        """
        expected = ("error", ("unknown_system_msg", "get_state"))
        assert await beam.eval(source, py=node.name) == expected
        source = ":sys.suspend({:server, py})"
        expected = ("error", ("unknown_system_msg", "suspend"))
        assert await beam.eval(source, py=node.name) == expected
        assert await call(beam, node, "1") == ("ok", 1)

    async def test_terminate(self, beam: Beam, node: Node, server: Server) -> None:
        assert await beam.eval(":sys.terminate({:server, py}, :gone)", py=node.name) == "ok"
        assert server.exit_reason == "gone"


class TestUndecodable:
    async def test_a_call_is_answered(
        self, beam: Beam, node: Node, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A term nested deeper than our limit: the call gets an answer, and the line stays up."""
        deep = "Enum.reduce(1..150_000, [], fn _, acc -> [acc] end)"
        result = await call(beam, node, deep)
        assert isinstance(result, tuple)
        tag, (name, kind, text) = result
        assert (tag, name) == ("error", "python_error")
        assert kind.endswith(b"DecodeError")
        assert b"100000" in text
        await beam.eval(f"GenServer.cast({{:server, py}}, {deep})", py=node.name)
        assert await call(beam, node, "1") == ("ok", 1)
        assert server.seen == [1]
        lines = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(lines) == 2
        assert all(beam.name in line for line in lines)


class TestMailboxes:
    async def test_a_process_is_no_server_but_can_answer(self, beam: Beam, node: Node) -> None:
        process = Process(node, name="plain")
        source = """
        send({:plain, py}, {self(), :question})
        receive do {:answer, n} -> n after 5000 -> :nothing end
        """
        evaluating = beam.submit(source, py=node.name)
        message = await process.receive(timeout=5)
        assert isinstance(message, tuple)
        assert message[1] == "question"
        process.send(message[0], (Atom("answer"), 42))
        assert await asyncio.wrap_future(evaluating) == 42
