"""Both nodes connect to each other at the same moment: one connection comes of it, and it works."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from snex_node import Atom, Node, Process, epmd
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.proxy import Proxy
from tests.support.waiting import until

ROUNDS = 50


class Crossing:
    """Our node and a BEAM, and two lines on which each calls the other."""

    def __init__(self, beam: Beam, node: Node, to_beam: Proxy, to_node: Proxy) -> None:
        self.beam = beam
        self.node = node
        self.lines = (to_beam, to_node)
        self.events = Process(node)
        node.monitor_nodes(self.events)

    async def connect_both(self, *, held: bool) -> tuple[object, object]:
        """Each tries to connect; `held`: no name arrives before both have been sent."""
        if held:
            for line in self.lines:
                line.to_target.stall()
        accepted = [line.accepted for line in self.lines]
        theirs = asyncio.wrap_future(self.beam.submit("Node.connect(py)", py=self.node.name))
        ours = asyncio.ensure_future(self.node.connect(self.beam.name))
        if held:
            for line, count in zip(self.lines, accepted):
                await line.wait_opened(count + 1)
            for line in self.lines:
                line.to_target.resume()
        return await asyncio.wait_for(theirs, 20), await asyncio.wait_for(ours, 20)

    async def check(self) -> None:
        """There is one connection, on both sides the same, that came up once."""
        node, beam = self.node, self.beam
        assert node.nodes == [beam.name]
        assert await beam.eval("{py in Node.list(:hidden), Node.ping(py)}", py=node.name) == (
            True,
            "pong",
        )
        assert await node.rpc(beam.name, "erlang", "node") == beam.name
        await until(lambda: sum(line.open_lines for line in self.lines) == 1)
        assert await self.events.receive(timeout=5) == ("nodeup", beam.name)
        assert len(self.events) == 0

    async def disconnect(self, *, ours: bool) -> None:
        if ours:
            self.node.disconnect(self.beam.name)
            gone = (
                "Enum.find_value(Stream.repeatedly(fn -> py not in Node.list(:hidden) end), & &1)"
            )
            await self.beam.eval(gone, py=self.node.name)
        else:
            await self.beam.eval("Node.disconnect(py)", py=self.node.name)
        assert await self.events.receive(timeout=5) == ("nodedown", self.beam.name)
        await until(lambda: not any(line.open_lines for line in self.lines))


@pytest.fixture(params=["aa", "zz"])
async def crossing(
    request: pytest.FixtureRequest, beam: Beam, start_node: NodeStarter, epmd: RealEpmd
) -> AsyncIterator[Crossing]:
    """With a name of ours before, and after, that of the BEAM: either may have to give way."""
    name = f"{request.param}{secrets.token_hex(4)}"
    node = await start_node(f"{name}@127.0.0.1", epmd="none")
    assert (node.name > beam.name) is (request.param == "zz")
    info = await lookup(beam, epmd)
    async with Proxy(info) as to_beam, Proxy(node.port) as to_node:
        node.remote(beam.name).address = ("127.0.0.1", to_beam.port)
        registration = await register(name, to_node.port, epmd)
        yield Crossing(beam, node, to_beam, to_node)
        registration.close()


async def lookup(beam: Beam, server: RealEpmd) -> int:
    info = await epmd.lookup(beam.name.partition("@")[0], port=server.port)
    assert info is not None
    return info.port


async def register(name: str, port: int, server: RealEpmd) -> epmd.Registration:
    return await epmd.register(epmd.NodeInfo(name, port), port=server.port)


class TestAtTheSameMoment:
    @pytest.mark.parametrize("held", [True, False])
    async def test_one_connection(self, crossing: Crossing, held: bool) -> None:
        for number in range(ROUNDS // 2):
            theirs, _ = await crossing.connect_both(held=held)
            assert theirs is True
            await crossing.check()
            await crossing.disconnect(ours=number % 2 == 0)

    async def test_messages_that_wait_for_it_arrive(self, crossing: Crossing) -> None:
        """What was sent while both were connecting is neither lost nor out of order."""
        node, beam = crossing.node, crossing.beam
        inbox = Process(node, name="inbox")
        for _ in range(10):
            for line in crossing.lines:
                line.to_target.stall()
            accepted = [line.accepted for line in crossing.lines]
            collected = beam.submit(
                """
                Process.register(self(), :collecting)
                for n <- 1..100, do: send({:inbox, py}, n)
                numbers = for _ <- 1..100, do: (receive do n -> n after 10_000 -> :nothing end)
                Process.unregister(:collecting)
                numbers
                """,
                py=node.name,
            )
            for n in range(1, 101):
                inbox.send(("collecting", beam.name), n)
            for line, count in zip(crossing.lines, accepted):
                await line.wait_opened(count + 1)
            for line in crossing.lines:
                line.to_target.resume()
            assert await asyncio.wait_for(asyncio.wrap_future(collected), 20) == list(range(1, 101))
            assert [await inbox.receive(timeout=5) for _ in range(100)] == list(range(1, 101))
            await crossing.check()
            await crossing.disconnect(ours=True)


async def test_two_of_ours(start_node: NodeStarter) -> None:
    """The same between two Python nodes, which do it all in one event loop."""
    one = await start_node(f"aa{secrets.token_hex(4)}@127.0.0.1", epmd="none")
    two = await start_node(f"zz{secrets.token_hex(4)}@127.0.0.1", epmd="none")
    one.remote(two.name).address = ("127.0.0.1", two.port)
    two.remote(one.name).address = ("127.0.0.1", one.port)
    events = Process(one)
    one.monitor_nodes(events)
    for number in range(ROUNDS):
        await asyncio.gather(one.connect(two.name), two.connect(one.name))
        assert (one.nodes, two.nodes) == ([two.name], [one.name])
        assert await one.ping(two.name) is True
        assert await two.rpc(one.name, "math", "sqrt", [16]) == 4
        assert await events.receive(timeout=5) == ("nodeup", two.name)
        (one, two)[number % 2].disconnect((two, one)[number % 2].name)
        await until(lambda: not one.nodes and not two.nodes)
        assert await events.receive(timeout=5) == ("nodedown", two.name)
        assert len(events) == 0


async def test_a_stranger_does_not_end_our_attempt(beam: Beam, start_node: NodeStarter) -> None:
    """Somebody without the cookie uses the BEAM's name while we connect to it: we get through."""
    node = await start_node(f"aa{secrets.token_hex(4)}@127.0.0.1")
    inbox = Process(node)
    await beam.eval("Process.register(spawn(fn -> receive do pid -> send(pid, :here) end end), :w)")
    async with Node(beam.name, cookie="wrong", epmd="none", listen=None) as stranger:
        stranger.remote(node.name).address = ("127.0.0.1", node.port)
        inbox.send(("w", beam.name), inbox.pid)
        intruding = asyncio.ensure_future(stranger.ping(node.name))
        assert await inbox.receive(timeout=5) == "here"
        assert await intruding is False
        assert node.nodes == [Atom(beam.name)]
