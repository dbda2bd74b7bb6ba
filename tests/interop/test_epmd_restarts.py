"""epmd ends and comes back: connections stay, and nodes can be found again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import pytest

from snex_node import ConnectError, Node, epmd
from tests.support.beam import Beam
from tests.support.epmd import BUSY, RealEpmd, another_node, kill_epmd, said
from tests.support.waiting import until


def new_name() -> str:
    return f"py{secrets.token_hex(4)}@127.0.0.1"


async def until_registered(node: Node, port: int) -> None:
    """Registrations are renewed when epmd has gone."""

    async def found() -> None:
        while True:
            try:
                info = await epmd.lookup(node.name.partition("@")[0], port=port)
            except epmd.EpmdUnreachableError:
                info = None
            if info is not None:
                assert info.port == node.port
                return
            await asyncio.sleep(0.05)

    await asyncio.wait_for(found(), 10)


async def test_a_real_one(start_beam: Callable[..., Beam]) -> None:
    with RealEpmd() as server:
        beam = start_beam(epmd_port=server.port)
        async with Node(
            new_name(), cookie=beam.cookie, epmd="external", epmd_port=server.port
        ) as node:
            creation = node.creation
            assert await beam.eval("Node.ping(py)", py=node.name) == "pong"
            server.stop()
            # Who is connected needs no epmd.
            assert await beam.eval("Node.ping(py)", py=node.name) == "pong"
            assert await node.ping(beam.name) is True
            node.disconnect(beam.name)
            with pytest.raises(ConnectError, match="no epmd at"):
                await node.connect(beam.name)
            assert await beam.eval("Node.ping(py)", py=node.name) == "pang"
            server.restart()
            await until_registered(node, server.port)
            assert await beam.eval("Node.ping(py)", py=node.name) == "pong"
            assert node.creation == creation
            assert node.nodes == [beam.name]


async def test_one_of_ours(start_beam: Callable[..., Beam], epmd_port: int) -> None:
    port = epmd_port
    cookie = secrets.token_hex(8)
    async with Node(new_name(), cookie=cookie, epmd="embedded", epmd_port=port) as first:
        beam = start_beam(epmd_port=port, cookie=cookie)
        assert await beam.eval("Node.ping(py)", py=first.name) == "pong"
        async with Node(new_name(), cookie=cookie, epmd="auto", epmd_port=port) as second:
            assert await beam.eval("Node.ping(py)", py=second.name) == "pong"
            assert await second.ping(first.name) is True
            await first.stop()
            assert await beam.eval("Node.ping(py)", py=first.name) == "pang"
            assert await beam.eval("Node.ping(py)", py=second.name) == "pong"
            await first.start()
            kill_epmd(port)
            await until_registered(first, port)
            await until_registered(second, port)
            second.disconnect(beam.name)
            await until(lambda: not second.nodes)
            assert await beam.eval("Node.ping(py)", py=first.name) == "pong"
            assert await beam.eval("Node.ping(py)", py=second.name) == "pong"


async def test_who_asks_one_of_ours_while_a_node_is_busy(
    start_beam: Callable[..., Beam], epmd_port: int
) -> None:
    """A second node is found through the epmd that the first started, whatever that one does."""
    port = epmd_port
    cookie = secrets.token_hex(8)
    async with Node(new_name(), cookie=cookie, epmd="embedded", epmd_port=port) as first:
        beam = start_beam(epmd_port=port, cookie=cookie)
        # Waiting for the answer here and now keeps the event loop from everything else.
        names = beam.submit(":erl_epmd.names({127, 0, 0, 1})").result(10)
        assert isinstance(names, tuple)
        registered = {bytes(name).decode() for name, _ in names[1]}
        assert registered == {n.partition("@")[0] for n in (first.name, beam.name)}


async def test_a_beam_starts_while_c_code_keeps_the_node_that_was_first(
    start_beam: Callable[..., Beam], epmd_port: int
) -> None:
    first = another_node("first", epmd_port, BUSY, mode="embedded")
    try:
        assert await asyncio.to_thread(said, first) == "started"
        beam = await asyncio.to_thread(start_beam, epmd_port=epmd_port)
        names = await beam.eval(
            ":erl_epmd.names({127, 0, 0, 1}) |> elem(1) |> Enum.map(&elem(&1, 0))"
        )
        assert isinstance(names, list)
        assert len(names) == 2
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
