"""A connection goes down without a word: both sides notice, and everything that hung on it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from snex_node import Atom, ConnectError, GenServer, Node, Pid, Process, ProcessExitError
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.proxy import Proxy
from tests.support.tied import links_of, watchers_of
from tests.support.waiting import until

BeamStarter = Callable[..., Beam]

# A process there that is tied to one of ours in every way, and tells what it hears.
TIED = """
pid = spawn(fn ->
  Process.flag(:trap_exit, true)
  Process.link(ours)
  monitor = Process.monitor(ours)
  named = Process.monitor({:ours, py})
  Node.monitor(py, true)
  send(ours, :tied)
  heard = for _ <- 1..4 do
    receive do
      {:EXIT, ^ours, reason} -> {:link, reason}
      {:DOWN, ^monitor, :process, _, reason} -> {:monitor, reason}
      {:DOWN, ^named, :process, _, reason} -> {:named, reason}
      {:nodedown, ^py} -> :nodedown
    end
  end
  receive do {:tell, to} -> send(to, Enum.sort(heard)) end
end)
"""
TELL = "send(pid, {:tell, self()}); receive do heard -> heard after 15_000 -> :nothing end"
ALL_HEARD = [
    "nodedown",
    ("link", "noconnection"),
    ("monitor", "noconnection"),
    ("named", "noconnection"),
]


class Tied:
    """Our process, tied to one of theirs and theirs to ours; and a call each way that waits."""

    def __init__(self, node: Node, beam: Beam) -> None:
        self.node = node
        self.beam = beam
        self.ours = Process(node, name="ours")
        self.ours.trap_exit = True
        self.server = Silent(node)

    async def tie(self) -> None:
        self.node.monitor_nodes(self.ours)
        await self.node.connect(self.beam.name)
        pid = await self.beam.eval(TIED, ours=self.ours.pid, py=self.node.name)
        assert isinstance(pid, Pid)
        self.theirs = pid
        assert await self.ours.receive(timeout=5) == ("nodeup", self.beam.name)
        assert await self.ours.receive(timeout=5) == "tied"
        self.ours.link(pid)
        self.ref = self.ours.monitor(pid)
        self.calling = asyncio.ensure_future(
            self.node.rpc(self.beam.name, "timer", "sleep", [Atom("infinity")], timeout=None)
        )
        source = "try do GenServer.call({:silent, py}, 1, 20_000) catch :exit, {why, _} -> why end"
        self.called = asyncio.wrap_future(self.beam.submit(source, py=self.node.name))
        await until(lambda: self.server.asked)
        assert await self.node.ping(self.beam.name)

    async def check_ours(self) -> None:
        """All that we hear when the connection is lost."""
        heard = [await self.ours.receive(timeout=15) for _ in range(3)]
        assert ("EXIT", self.theirs, "noconnection") in heard
        assert ("DOWN", self.ref, "process", self.theirs, "noconnection") in heard
        assert heard[2] == ("nodedown", self.beam.name)
        with pytest.raises(ProcessExitError) as caught:
            await asyncio.wait_for(self.calling, 5)
        assert caught.value.reason == "noconnection"
        assert self.server.withdrawn == self.server.asked
        assert not watchers_of(self.ours)
        assert not links_of(self.ours)
        assert self.node.signals.ties.count(self.beam.name) == 0
        assert len(self.node.signals.spawns) == 0

    async def check_theirs(self) -> None:
        heard = await self.beam.eval(TELL, pid=self.theirs)
        assert heard == ALL_HEARD
        assert await asyncio.wait_for(self.called, 15) in (
            "noconnection",
            ("nodedown", self.node.name),
        )

    async def check_reconnects(self) -> None:
        assert await self.node.ping(self.beam.name) is True
        assert await self.ours.receive(timeout=5) == ("nodeup", self.beam.name)


class Silent(GenServer):
    def __init__(self, node: Node) -> None:
        super().__init__(node, name="silent")
        self.asked: list[bytes | None] = []
        self.withdrawn: list[bytes | None] = []

    async def handle_call(self, request: object, caller: object) -> object:
        self.asked.append(getattr(caller, "ref", None))
        await asyncio.Event().wait()
        return None

    def demonitored(self, ref: bytes) -> None:
        if ref in self.asked:
            self.withdrawn.append(ref)


@pytest.fixture
async def line(
    start_beam: BeamStarter, start_node: NodeStarter
) -> AsyncIterator[tuple[Tied, Proxy]]:
    """Our node, a BEAM with a net_ticktime of 4 s, and between them a line that can break."""
    own = start_beam(net_ticktime=4)
    node = await start_node(cookie=own.cookie, net_ticktime=4)
    port = await own.eval(
        """
        {:port, port, _} = :erl_epmd.port_please(
          String.to_charlist(hd(String.split(Atom.to_string(node()), "@"))), {127, 0, 0, 1})
        port
        """
    )
    assert isinstance(port, int)
    async with Proxy(port) as proxy:
        node.remote(own.name).address = ("127.0.0.1", proxy.port)
        tied = Tied(node, own)
        await tied.tie()
        yield tied, proxy


class TestKilled:
    async def test_the_beam(self, start_beam: BeamStarter, start_node: NodeStarter) -> None:
        own = start_beam()
        node = await start_node(cookie=own.cookie)
        tied = Tied(node, own)
        await tied.tie()
        await own.kill()
        await tied.check_ours()
        tied.called.cancel()

    async def test_the_beam_during_our_calls(
        self, start_beam: BeamStarter, start_node: NodeStarter
    ) -> None:
        own = start_beam()
        node = await start_node(cookie=own.cookie)
        await node.rpc(own.name, "erlang", "node")
        calls = [
            asyncio.ensure_future(node.rpc(own.name, "timer", "sleep", [60_000], timeout=None))
            for _ in range(100)
        ]
        await until(lambda: node.signals.ties.count(own.name) == 100)
        await own.kill()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, ProcessExitError)
            assert result.reason == "noconnection"
        with pytest.raises(Exception, match=r"knows no node|does not accept"):
            await node.connect(own.name)


class TestTheLine:
    @pytest.mark.parametrize("reset", [False, True])
    async def test_is_cut(self, line: tuple[Tied, Proxy], reset: bool) -> None:
        tied, proxy = line
        proxy.cut(reset=reset)
        await tied.check_ours()
        await tied.check_theirs()
        await tied.check_reconnects()

    @pytest.mark.slow
    async def test_goes_silent_both_ways(self, line: tuple[Tied, Proxy]) -> None:
        """Nothing is closed, nothing passes: after net_ticktime (4 s) both give it up."""
        tied, proxy = line
        proxy.to_client.stall()
        proxy.to_target.stall()
        await tied.check_ours()
        await tied.check_theirs()
        assert "not responding" in tied.beam.log
        proxy.cut()
        proxy.to_client.resume()
        proxy.to_target.resume()
        await tied.check_reconnects()

    @pytest.mark.slow
    async def test_goes_silent_one_way(self, line: tuple[Tied, Proxy]) -> None:
        """What we write still arrives: it is for us to notice, and to close."""
        tied, proxy = line
        proxy.to_client.stall()
        await tied.check_ours()
        proxy.to_client.resume()
        await tied.check_theirs()
        assert "not responding" not in tied.beam.log
        await tied.check_reconnects()


async def test_a_stopped_beam_for_which_much_waits(
    start_beam: BeamStarter, start_node: NodeStarter
) -> None:
    """100 MB are on their way to it when it stops: it is gone as if nothing were on its way.

    Whoever waits for them to be written is told.
    """
    peer = start_beam()
    node = await start_node(cookie=peer.cookie, net_ticktime=8)
    events = Process(node)
    node.monitor_nodes(events)
    pid = await peer.eval("spawn(fn -> Process.sleep(:infinity) end)")
    assert isinstance(pid, Pid)
    await node.connect(peer.name)
    assert await events.receive(timeout=5) == ("nodeup", peer.name)
    connection = node.remote(peer.name).connection
    assert connection is not None
    peer.suspend()
    began = time.monotonic()
    try:
        for _ in range(100):
            node.send(pid, bytes(1_000_000))
        draining = asyncio.ensure_future(connection.drain())
        assert await events.receive(timeout=15) == ("nodedown", peer.name)
        assert time.monotonic() - began < 11
        with pytest.raises(ConnectError, match=r"was lost \(net_tick_timeout\) while messages"):
            await draining
    finally:
        peer.resume()
