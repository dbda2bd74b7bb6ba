"""Who lives is kept, whatever keeps it busy; who is silent for too long is dropped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snex_node import Atom, From, GenServer, Node, Process
from snex_node import epmd as epmds
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.proxy import Proxy
from tests.support.waiting import until

BeamStarter = Callable[..., Beam]

ROOT = Path(__file__).parent.parent.parent
NET_TICKTIME = 4
BLOCKED_SECONDS = 15
MIB = 1024 * 1024


@contextmanager
def blocked_node(beam: Beam, epmd_port: int) -> Iterator[str]:
    """A node of ours in a process of its own; see `blocked_node.py`."""
    name = f"py{secrets.token_hex(4)}@127.0.0.1"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.interop.blocked_node", name, str(epmd_port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{beam.cookie}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield name
        process.stdin.close()
        assert process.wait(10) == 0


# Ends with the answer when the call was answered over the connection that it began with.
BLOCK = """
Node.monitor(py, true)
caller = self()
spawn_link(fn ->
  answer = GenServer.call({:blocker, py}, {kind, seconds}, :infinity)
  send(caller, {:answer, answer})
end)
started = System.monotonic_time(:millisecond)
receive do
  {:answer, answer} -> {answer, Node.ping(py), System.monotonic_time(:millisecond) - started}
  {:nodedown, ^py} -> :nodedown
end
"""


@pytest.fixture(scope="module", autouse=True)
def blocked(epmd: RealEpmd) -> Iterator[list[concurrent.futures.Future[object]]]:
    """Two nodes of ours that are blocked for 15 s: by a call that sleeps, and by pure Python.

    That goes on while the other tests of this module run; the last of them has the result.
    """
    with (
        Beam.start(epmd_port=epmd.port, net_ticktime=NET_TICKTIME) as beam,
        blocked_node(beam, epmd.port) as one,
        blocked_node(beam, epmd.port) as two,
    ):
        yield [
            beam.submit(BLOCK, py=Atom(name), kind=Atom(kind), seconds=BLOCKED_SECONDS)
            for name, kind in ((one, "sleep"), (two, "busy"))
        ]
        assert beam.log == ""


class TestASuspendedBeam:
    async def test_for_less_than_our_net_ticktime(
        self, start_beam: BeamStarter, start_node: NodeStarter
    ) -> None:
        beam = start_beam()
        node = await start_node(cookie=beam.cookie, net_ticktime=NET_TICKTIME)
        events = Process(node)
        node.monitor_nodes(events)
        await node.connect(beam.name)
        assert await events.receive(timeout=5) == ("nodeup", beam.name)
        beam.suspend()
        calling = asyncio.ensure_future(node.ping(beam.name, timeout=None))
        await asyncio.sleep(NET_TICKTIME * 0.6)  # silence is what is tried here
        assert not calling.done()
        beam.resume()
        assert await calling is True
        assert len(events) == 0

    @pytest.mark.slow
    async def test_for_ever(self, start_beam: BeamStarter, start_node: NodeStarter) -> None:
        beam = start_beam()
        node = await start_node(cookie=beam.cookie, net_ticktime=NET_TICKTIME)
        events = Process(node)
        node.monitor_nodes(events)
        await node.connect(beam.name)
        assert await events.receive(timeout=5) == ("nodeup", beam.name)
        beam.suspend()
        started = time.monotonic()
        assert await node.ping(beam.name, timeout=None) is False
        # Four checks within net_ticktime: it is noticed after 1 to 1.25 of it.
        assert NET_TICKTIME * 0.9 <= time.monotonic() - started <= NET_TICKTIME * 1.5
        assert await events.receive(timeout=5) == ("nodedown", beam.name)
        beam.resume()


class Sink(GenServer):
    def __init__(self, node: Node) -> None:
        super().__init__(node, name="sink")

    def handle_call(self, request: object, caller: From) -> object:
        return hashlib.sha256(request).digest() if isinstance(request, bytes) else request


@pytest.mark.slow
async def test_a_message_that_takes_longer_than_net_ticktime(
    start_beam: BeamStarter, start_node: NodeStarter, epmd: RealEpmd
) -> None:
    """200 MB each way at once, at 22 MB/s: 9 s and more, with a net_ticktime of 4 s on both sides.

    Meanwhile ticks pass, and so do other calls: each waits for what the sockets hold already, some
    megabytes each way, and not for the whole.
    """
    beam = start_beam(net_ticktime=NET_TICKTIME)
    node = await start_node(cookie=beam.cookie, net_ticktime=NET_TICKTIME)
    Sink(node)
    events = Process(node)
    node.monitor_nodes(events)
    size = 200 * 1000 * 1000
    async with Proxy(await listening_port(beam, epmd)) as line:
        await node.connect(beam.name, address=("127.0.0.1", line.port))
        assert await events.receive(timeout=5) == ("nodeup", beam.name)
        assert await node.rpc(beam.name, "erlang", "node") == beam.name
        for direction in (line.to_target, line.to_client):
            direction.bytes_per_second = 22_000_000
        started = time.monotonic()
        args = [Atom("sha256"), bytes(size)]
        there = asyncio.ensure_future(node.rpc(beam.name, "crypto", "hash", args, timeout=50))
        here = asyncio.ensure_future(
            beam.eval(
                "GenServer.call({:sink, py}, :binary.copy(<<0>>, size), 50_000)",
                timeout=50,
                py=node.name,
                size=size,
            )
        )
        calls = await calls_until_done(node, beam, [there, here])
        assert await there == await here == hashlib.sha256(bytes(size)).digest()
        assert time.monotonic() - started > 2 * NET_TICKTIME
        assert calls >= 4
        for direction in (line.to_target, line.to_client):
            direction.bytes_per_second = None
        assert node.nodes == [beam.name]
        assert len(events) == 0
    assert beam.log == ""


async def calls_until_done(node: Node, beam: Beam, large: list[asyncio.Future[object]]) -> int:
    """Call both ways until the first of `large` is done; how often both calls came through."""
    count = 0
    call = "GenServer.call({:sink, py}, :pong, 20_000)"
    while not any(future.done() for future in large):
        assert await node.ping(beam.name, timeout=20) is True
        assert await beam.eval(call, py=node.name, timeout=20) == "pong"
        count += 1
    return count


async def listening_port(beam: Beam, server: RealEpmd) -> int:
    info = await epmds.lookup(beam.name.partition("@")[0], port=server.port)
    assert info is not None
    return info.port


async def test_an_idle_line_stays_up(start_beam: BeamStarter, start_node: NodeStarter) -> None:
    """With a net_ticktime of 1 s, which is the shortest there is; idle for three times that."""
    beam = start_beam(net_ticktime=1)
    node = await start_node(cookie=beam.cookie, net_ticktime=1)
    events = Process(node)
    node.monitor_nodes(events)
    await node.connect(beam.name)
    connection = node.remote(beam.name).connection
    assert connection is not None
    # Ticks are four bytes; a dozen of them take three seconds.
    ticks = connection.bytes_in + 12 * 4
    await until(lambda: connection.bytes_in >= ticks)
    assert await node.ping(beam.name) is True
    assert [await events.receive()] == [("nodeup", beam.name)]
    assert len(events) == 0
    assert beam.log == ""


@pytest.mark.slow
async def test_a_blocked_event_loop(blocked: list[concurrent.futures.Future[object]]) -> None:
    """It is not seen from outside: the guardian ticks, and the connection stays."""
    for waiting in blocked:
        result = await asyncio.wait_for(asyncio.wrap_future(waiting), BLOCKED_SECONDS + 20)
        assert isinstance(result, tuple)
        answer, pong, milliseconds = result
        assert (answer, pong) == ("awake", "pong")
        assert milliseconds >= BLOCKED_SECONDS * 1000
