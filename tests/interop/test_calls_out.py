"""What we call, start and watch on a BEAM; and that a call given up leaves the line usable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from snex_node import (
    Atom,
    CallTimeoutError,
    ConnectError,
    DecodeError,
    Decoder,
    EncodeError,
    Node,
    Pid,
    Process,
    ProcessExitError,
    Reference,
    RemoteError,
)
from snex_node.client import Client
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.tied import links_of, monitors_of
from tests.support.waiting import until

# A server that answers by what it is asked.
SERVER = """
defmodule Snex.Test.Server do
  use GenServer
  def init(to), do: {:ok, {to, []}}
  def handle_call(:later, from, {to, waiting}) do
    send(to, :called)
    {:noreply, {to, [from | waiting]}}
  end
  def handle_call(:answer, _from, {to, waiting}) do
    for from <- waiting, do: GenServer.reply(from, :late)
    {:reply, length(waiting), {to, []}}
  end
  def handle_call(:crash, _from, _state), do: exit(:boom)
  def handle_call(:bye, _from, state), do: {:stop, :normal, :bye, state}
  def handle_call(:deep, _from, state) do
    {:reply, Enum.reduce(1..150_000, [], fn _, acc -> [acc] end), state}
  end
  def handle_call(:by_hand, {pid, tag}, state) do
    send(pid, {tag, :by_hand})
    {:noreply, state}
  end
  def handle_call(request, _from, state), do: {:reply, {:ok, request}, state}
  def handle_cast(request, {to, _} = state) do
    send(to, {:cast, request})
    {:noreply, state}
  end
  def handle_info(message, {to, _} = state) do
    send(to, {:info, message})
    {:noreply, state}
  end
end
"""


@pytest.fixture(scope="module")
def server_module(beam: Beam) -> None:
    beam.eval_sync(SERVER)


@pytest.fixture
async def inbox(node: Node) -> Process:
    return Process(node)


@pytest.fixture
async def server(beam: Beam, inbox: Process, server_module: None) -> Pid:
    source = "{:ok, pid} = GenServer.start(Snex.Test.Server, to); pid"
    pid = await beam.eval(source, to=inbox.pid)
    assert isinstance(pid, Pid)
    return pid


async def still_usable(node: Node, beam: Beam) -> None:
    """What was given up left nothing behind, here or there."""
    assert await node.ping(beam.name)
    # Comes behind the end of the ping's monitor, and its own ends with its process.
    assert await node.rpc(beam.name, "erlang", "abs", [-1]) == 1
    assert node.router.expected == 0
    client = node.router.speaker
    assert isinstance(client, Client)
    assert client.waiting == 0
    assert not monitors_of(client)
    remote = node.remote(beam.name)
    assert (node.signals.ties.count(remote.name), len(node.signals.spawns)) == (0, 0)
    monitored = "Enum.count(Process.list(), &(pid in elem(Process.info(&1, :monitored_by), 1)))"
    source = monitored.replace("Process.list()", "for(p <- Process.list(), Process.info(p), do: p)")
    assert await beam.eval(source, pid=client.pid) == 0


class TestCall:
    async def test_values(self, beam: Beam, node: Node, server: Pid) -> None:
        assert await node.call(server, {"a": [1, 2.5]}) == ("ok", {b"a": [1, 2.5]})
        await beam.eval("Process.register(pid, :called)", pid=server)
        assert await node.call(("called", beam.name), Atom("x")) == ("ok", "x")
        await still_usable(node, beam)

    async def test_an_answer_to_the_pid(self, node: Node, server: Pid) -> None:
        assert await node.call(server, Atom("by_hand")) == "by_hand"

    async def test_who_is_not_there(self, beam: Beam, node: Node, server: Pid) -> None:
        await beam.eval("GenServer.stop(pid)", pid=server)
        for to in (("nobody", beam.name), server):
            with pytest.raises(ProcessExitError) as caught:
                await node.call(to, 1)
            assert caught.value.reason == "noproc"
        with pytest.raises(ConnectError):
            await node.call(("nobody", "nobody@127.0.0.1"), 1)
        await still_usable(node, beam)

    async def test_a_crash(self, start_beam: Callable[..., Beam], node: Node, beam: Beam) -> None:
        own = start_beam(cookie=beam.cookie)  # it logs the crash
        source = SERVER + "\n{:ok, pid} = GenServer.start(Snex.Test.Server, nil); pid"
        pid = await own.eval(source)
        assert isinstance(pid, Pid)
        with pytest.raises(ProcessExitError, match="has ended: :boom") as caught:
            await node.call(pid, Atom("crash"))
        assert caught.value.reason == "boom"
        await still_usable(node, own)

    async def test_an_answer_and_the_end(self, node: Node, server: Pid) -> None:
        assert await node.call(server, Atom("bye")) == "bye"
        with pytest.raises(ProcessExitError):
            await node.call(server, 1)

    async def test_what_cannot_be_sent(self, beam: Beam, node: Node, server: Pid) -> None:
        with pytest.raises(EncodeError):
            await node.call(server, object())
        await still_usable(node, beam)

    async def test_an_answer_that_cannot_be_decoded(
        self, beam: Beam, node: Node, server: Pid
    ) -> None:
        with pytest.raises(DecodeError, match="100000"):
            await node.call(server, Atom("deep"))
        await still_usable(node, beam)

    async def test_a_timeout(self, beam: Beam, node: Node, server: Pid, inbox: Process) -> None:
        with pytest.raises(CallTimeoutError, match=r"did not answer within 0\.05 s"):
            await node.call(server, Atom("later"), timeout=0.05)
        assert await inbox.receive(timeout=5) == "called"
        await still_usable(node, beam)
        # The answer that comes yet is nobody's.
        assert await node.call(server, Atom("answer")) == 1
        await still_usable(node, beam)

    async def test_cancelled(self, beam: Beam, node: Node, server: Pid, inbox: Process) -> None:
        calling = asyncio.ensure_future(node.call(server, Atom("later"), timeout=None))
        assert await inbox.receive(timeout=5) == "called"
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await node.call(server, Atom("answer")) == 1
        await still_usable(node, beam)

    async def test_cancelled_before_there_is_a_connection(
        self, beam: Beam, node: Node, server: Pid, inbox: Process
    ) -> None:
        node.disconnect(beam.name)
        calling = asyncio.ensure_future(node.call(server, Atom("later")))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await still_usable(node, beam)
        assert len(inbox) == 0

    async def test_the_connection_is_lost(
        self, beam: Beam, node: Node, server: Pid, inbox: Process
    ) -> None:
        calling = asyncio.ensure_future(node.call(server, Atom("later"), timeout=None))
        await inbox.receive(timeout=5)
        await beam.eval("Node.disconnect(py)", py=node.name)
        with pytest.raises(ProcessExitError) as caught:
            await calling
        assert caught.value.reason == "noconnection"
        await still_usable(node, beam)

    async def test_casts_and_sends(
        self, beam: Beam, node: Node, server: Pid, inbox: Process
    ) -> None:
        await beam.eval("Process.register(pid, :cast_to)", pid=server)
        node.cast(server, 1)
        node.cast(("cast_to", beam.name), 2)
        node.send(server, 3)
        node.send(("cast_to", beam.name), 4)
        seen = [await inbox.receive(timeout=5) for _ in range(4)]
        assert seen == [("cast", 1), ("cast", 2), ("info", 3), ("info", 4)]

    async def test_to_an_alias_of_theirs(self, beam: Beam, node: Node) -> None:
        """A reference is an address, too."""
        inbox = Process(node, name="inbox")
        waiting = beam.submit(
            """
            alias = :erlang.alias()
            send({:inbox, py}, alias)
            receive do message -> message end
            """,
            py=node.name,
        )
        alias = await inbox.receive(timeout=5)
        assert isinstance(alias, Reference)
        node.send(alias, Atom("hello"))
        assert await asyncio.wrap_future(waiting) == "hello"


class TestRpc:
    async def test_values(self, beam: Beam, node: Node) -> None:
        assert await node.rpc(beam.name, "Elixir.String", "upcase", [b"abc"]) == b"ABC"
        assert await node.rpc(beam.name, "lists", "seq", [1, 3]) == [1, 2, 3]

    @pytest.mark.parametrize(
        ("module", "function", "args", "kind", "reason"),
        [
            ("erlang", "throw", [1], "throw", 1),
            ("erlang", "exit", [Atom("done")], "exit", "done"),
            ("erlang", "error", [Atom("bad")], "error", "bad"),
            ("erlang", "atom_to_list", [1], "error", "badarg"),
            ("nobody", "nothing", [1], "error", "undef"),
        ],
    )
    async def test_failures(
        self,
        beam: Beam,
        node: Node,
        module: str,
        function: str,
        args: list[object],
        kind: str,
        reason: object,
    ) -> None:
        with pytest.raises(RemoteError) as caught:
            await node.rpc(beam.name, module, function, args)
        assert (caught.value.kind, caught.value.reason) == (kind, reason)
        if kind == "error":
            stack = caught.value.stack
            assert isinstance(stack, list)
            assert stack[0][0] in (module, "erlang")
        await still_usable(node, beam)

    async def test_the_process_is_killed(self, beam: Beam, node: Node) -> None:
        # A process that is linked to it takes it down: what erpc calls a signal.
        source = """
        defmodule Snex.Test.Dies do
          def die, do: Process.exit(self(), :kill)
        end
        """
        await beam.eval(source)
        with pytest.raises(RemoteError) as caught:
            await node.rpc(beam.name, "Elixir.Snex.Test.Dies", "die")
        assert (caught.value.kind, caught.value.reason) == ("exit", "killed")

    async def test_a_timeout(self, beam: Beam, node: Node) -> None:
        with pytest.raises(CallTimeoutError, match=r"timer\.sleep on .* did not return within"):
            await node.rpc(beam.name, "timer", "sleep", [60_000], timeout=0.05)
        await still_usable(node, beam)

    async def test_cancelled_at_every_step(self, beam: Beam, node: Node) -> None:
        """Connecting, asking where to print, waiting for the pid, waiting for the result."""
        for turns in (*range(12), 50):
            if turns % 2:
                node.disconnect(beam.name)
            calling = asyncio.ensure_future(
                node.rpc(beam.name, "timer", "sleep", [60_000], timeout=None)
            )
            for _ in range(turns):
                await asyncio.sleep(0.001)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await until(lambda: not len(node.signals.spawns))
        await still_usable(node, beam)

    async def test_what_cannot_be_sent(self, beam: Beam, node: Node) -> None:
        with pytest.raises(EncodeError):
            await node.rpc(beam.name, "erlang", "abs", [object()])
        await still_usable(node, beam)

    async def test_a_result_that_cannot_be_decoded(self, beam: Beam, node: Node) -> None:
        source = """
        defmodule Snex.Test.Deep do
          def deep, do: Enum.reduce(1..150_000, [], fn _, acc -> [acc] end)
        end
        """
        await beam.eval(source)
        with pytest.raises(DecodeError, match="100000"):
            await node.rpc(beam.name, "Elixir.Snex.Test.Deep", "deep")
        await still_usable(node, beam)

    async def test_who_is_not_there(self, node: Node) -> None:
        with pytest.raises(ConnectError):
            await node.rpc("nobody@127.0.0.1", "erlang", "node")
        with pytest.raises(ValueError, match="is this node"):
            await node.rpc(node.name, "erlang", "node")

    async def test_the_connection_is_lost(self, beam: Beam, node: Node) -> None:
        calling = asyncio.ensure_future(
            node.rpc(beam.name, "timer", "sleep", [60_000], timeout=None)
        )
        await until(lambda: node.nodes)
        await node.rpc(beam.name, "erlang", "node")
        node.disconnect(beam.name)
        with pytest.raises(ProcessExitError) as caught:
            await calling
        assert caught.value.reason == "noconnection"
        await still_usable(node, beam)

    async def test_it_prints_there(
        self, start_beam: Callable[..., Beam], node: Node, beam: Beam
    ) -> None:
        own = start_beam(cookie=beam.cookie)
        printing = [
            node.rpc(own.name, "Elixir.IO", "puts", [f"line {n}".encode()]) for n in range(3)
        ]
        assert await asyncio.gather(*printing) == ["ok"] * 3
        for n in range(3):
            await own.wait_log(f"line {n}")
        await node.spawn(own.name, "erlang", "error", [Atom("on_purpose")])
        await own.wait_log("on_purpose")  # a crash report is not lost

    async def test_nobody_to_print_for(
        self, start_beam: Callable[..., Beam], node: Node, beam: Beam
    ) -> None:
        """Without a `user` there the output comes to us, and must not hang."""
        own = start_beam(cookie=beam.cookie)
        await own.eval("Process.unregister(:user)")
        assert await node.rpc(own.name, "Elixir.IO", "puts", [b"to nobody"]) == "ok"

    async def test_terms_kept_as_they_are(self, beam: Beam, start_node: NodeStarter) -> None:
        """A decoder that leaves pids and references undecoded changes nothing."""
        node = await start_node(decoder=Decoder(opaque=True, binary_as="str"))
        assert await node.rpc(beam.name, "Elixir.String", "upcase", [b"abc"]) == "ABC"
        pid = await node.rpc(beam.name, "erlang", "whereis", [Atom("init")])
        assert not isinstance(pid, Pid)
        assert await node.rpc(beam.name, "erlang", "is_pid", [pid]) is True
        assert await node.ping(beam.name)
        assert await beam.eval("Node.ping(py)", py=node.name) == "pong"


class TestSpawn:
    async def test_spawn(self, beam: Beam, node: Node, inbox: Process) -> None:
        pid = await node.spawn(beam.name, "erlang", "send", [inbox.pid, Atom("hello")])
        assert pid.node == beam.name
        assert await inbox.receive(timeout=5) == "hello"

    async def test_monitor(self, beam: Beam, node: Node, inbox: Process) -> None:
        """The end may come in the same read as the reply: it is not lost."""
        for _ in range(50):
            pid = await node.spawn(beam.name, "erlang", "exit", [Atom("done")], monitor=inbox)
            down = await inbox.receive(timeout=5)
            assert isinstance(down, tuple)
            name, ref, kind, who, reason = down
            assert (name, kind, who, reason) == ("DOWN", "process", pid, "done")
            assert isinstance(ref, Reference)
        assert not monitors_of(inbox)

    async def test_link(self, beam: Beam, node: Node, inbox: Process) -> None:
        inbox.trap_exit = True
        for _ in range(50):
            pid = await node.spawn(beam.name, "erlang", "exit", [Atom("done")], link=inbox)
            assert await inbox.receive(timeout=5) == ("EXIT", pid, "done")
        assert not links_of(inbox)

    async def test_both(self, beam: Beam, node: Node, inbox: Process) -> None:
        inbox.trap_exit = True
        pid = await node.spawn(
            beam.name, "erlang", "exit", [Atom("done")], link=inbox, monitor=inbox
        )
        first, second = await inbox.receive(timeout=5), await inbox.receive(timeout=5)
        assert isinstance(second, tuple)
        assert first == ("EXIT", pid, "done")
        assert (second[0], second[3:]) == ("DOWN", (pid, "done"))

    async def test_our_end_ends_what_is_linked(
        self, beam: Beam, node: Node, inbox: Process
    ) -> None:
        owner = Process(node)
        pid = await node.spawn(beam.name, "timer", "sleep", [Atom("infinity")], link=owner)
        ref = inbox.monitor(pid)
        owner.exit(Atom("over"))
        assert await inbox.receive(timeout=5) == ("DOWN", ref, "process", pid, "over")

    async def test_undefined(
        self, start_beam: Callable[..., Beam], node: Node, beam: Beam, inbox: Process
    ) -> None:
        own = start_beam(cookie=beam.cookie)  # it logs the crash
        pid = await node.spawn(own.name, "nobody", "nothing", [1], monitor=inbox)
        down = await inbox.receive(timeout=5)
        assert isinstance(down, tuple)
        assert down[3] == pid
        assert down[4] == ("undef", [("nobody", "nothing", [1], [])])

    async def test_what_is_refused(self, beam: Beam, node: Node, inbox: Process) -> None:
        with pytest.raises(EncodeError):
            await node.spawn(beam.name, "erlang", "abs", [object()])
        with pytest.raises(ConnectError):
            await node.spawn("nobody@127.0.0.1", "erlang", "abs", [1])
        with pytest.raises(ValueError, match="is this node"):
            await node.spawn(node.name, "erlang", "abs", [1])
        with pytest.raises(ValueError, match="not two"):
            await node.spawn(beam.name, "erlang", "abs", [1], link=inbox, monitor=Process(node))
        await still_usable(node, beam)

    @pytest.mark.parametrize("ends", ["cancelled", "owner"])
    async def test_given_up_before_the_answer(self, beam: Beam, node: Node, ends: str) -> None:
        """What is linked to nobody any more must not stay: OTP ends it, and so do we."""
        await node.rpc(beam.name, "erlang", "node")  # connected, and knows where to print
        source = """
        defmodule Snex.Test.Abandoned do
          def wait(), do: Process.sleep(:infinity)
        end
        """
        await beam.eval("Code.ensure_loaded?(Snex.Test.Abandoned) || Code.eval_string(s)", s=source)
        owner = Process(node)
        module = "Elixir.Snex.Test.Abandoned"
        spawning = asyncio.ensure_future(
            node.spawn(beam.name, module, "wait", link=owner, monitor=owner)
        )
        spawns = node.signals.spawns
        await until(lambda: len(spawns) == 1, pause=0)
        if ends == "cancelled":
            spawning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await spawning
        else:
            owner.exit(Atom("over"))
            assert isinstance(await spawning, Pid)
        await until(lambda: not len(spawns))  # it has been started
        await still_usable(node, beam)
        assert node.signals.ties.count(beam.name) == 0
        waiting = """
        Enum.filter(Process.list(), fn pid ->
          Process.info(pid, :initial_call) == {:initial_call, {Snex.Test.Abandoned, :wait, 0}}
        end)
        """
        assert await beam.eval(waiting) == []


class TestNodeEvents:
    async def test_up_and_down(
        self, start_beam: Callable[..., Beam], node: Node, beam: Beam, inbox: Process
    ) -> None:
        node.monitor_nodes(inbox)
        own = start_beam(cookie=beam.cookie)
        await own.eval("Node.connect(py)", py=node.name)
        assert await inbox.receive(timeout=5) == ("nodeup", own.name)
        await own.stop()
        assert await inbox.receive(timeout=5) == ("nodedown", own.name)

    async def test_up_comes_before_the_first_message(
        self, beam: Beam, node: Node, inbox: Process
    ) -> None:
        node.monitor_nodes(inbox)
        await beam.eval("send(pid, :first)", pid=inbox.pid)
        assert await inbox.receive(timeout=5) == ("nodeup", beam.name)
        assert await inbox.receive(timeout=5) == "first"
        await beam.eval("send(pid, :last); Node.disconnect(py)", pid=inbox.pid, py=node.name)
        assert await inbox.receive(timeout=5) == "last"
        assert await inbox.receive(timeout=5) == ("nodedown", beam.name)
