"""A node by itself, and calls within it; what it needs others for is in tests/interop."""

from __future__ import annotations

import asyncio
import os

import pytest

from snex_node import Atom, CallTimeoutError, From, Node, NodeStartError, Process
from snex_node.wire import etf
from tests.support.peer import ScriptedPeer
from tests.support.ports import free_port
from tests.support.scripted import PEER, Listener

encode = etf.Encoder().encode


class TestLife:
    def test_names(self) -> None:
        assert Node("py@host", cookie="x").name == Atom("py@host")
        assert repr(Node("py@host", cookie="x")) == "<Node py@host>"
        for bad in ("py", "@host", "py@", "a@b@c", "ü@host", "x" * 251 + "@host"):
            with pytest.raises(NodeStartError, match="is no node name"):
                Node(bad, cookie="x")

    async def test_a_creation_without_epmd(self, node: Node) -> None:
        assert 15 < node.creation < 2**32

    async def test_nothing_before_its_start(self) -> None:
        node = Node("py@127.0.0.1", cookie="x")
        with pytest.raises(NodeStartError, match="is not running: start it first"):
            Process(node)
        with pytest.raises(NodeStartError):
            node.keep_connected("a@b")
        with pytest.raises(NodeStartError):
            node.send(("name", PEER), 1)
        with pytest.raises(NodeStartError):
            await node.call(("name", PEER), 1)
        with pytest.raises(NodeStartError):
            await node.rpc(PEER, "m", "f")
        await node.stop()

    async def test_nothing_after_its_end(self, node: Node) -> None:
        await node.stop()
        with pytest.raises(NodeStartError):
            node.send(("name", PEER), 1)
        assert not node.remote(PEER)._queue  # nor when it is started again

    async def test_a_failed_start_leaves_nothing(self) -> None:
        node = Node("py@127.0.0.1", cookie="x", epmd="external", epmd_port=free_port())
        for _ in range(2):
            with pytest.raises(NodeStartError, match="no epmd at"):
                await node.start()
            assert node.port is None

    async def test_a_host_that_cannot_be_listened_on(self) -> None:
        node = Node("py@127.0.0.1", cookie="x", epmd="none", listen=("no-such-host.invalid", 0))
        with pytest.raises(NodeStartError, match=r"cannot listen on no-such-host\.invalid:0: "):
            await node.start()

    async def test_stopped_twice_at_once(self, node: Node) -> None:
        await asyncio.gather(node.stop(), node.stop())
        assert node.port is None


class TestTheFacade:
    """All that a node offers leads somewhere; what becomes of it the rooms' own tests tell."""

    async def test_names(self, node: Node, ours: Process) -> None:
        assert node.whereis("ours") == ours.pid
        assert node.whereis("nobody") is None
        assert node.find(ours.pid) is node.find("ours") is ours
        node.register("also", ours)
        node.unregister("ours")
        assert node.whereis("ours") is None
        assert node.whereis("also") == ours.pid

    async def test_messages(self, node: Node, ours: Process) -> None:
        node.send(ours.pid, 1)
        node.cast(ours.pid, 2)
        node.exit_signal(ours.pid, Atom("boom"))
        node.reply(From(ours.pid, encode(3), None), "answer")
        node.reply_encoded(From(ours.pid, encode(4), None), encode("answer"))
        assert [await ours.receive(timeout=5) for _ in range(5)] == [
            1,
            ("$gen_cast", 2),
            ("EXIT", node.router.speaker.pid, "boom"),
            (3, b"answer"),
            (4, b"answer"),
        ]

    async def test_calls(self, node: Node, peer: ScriptedPeer) -> None:
        for work in (
            node.call(("server", PEER), 1, timeout=0.01),
            node.rpc(PEER, "m", "f", timeout=0.01),
        ):
            with pytest.raises(CallTimeoutError):
                await work
        with pytest.raises(ValueError, match="is this node"):
            await node.spawn(node.name, "m", "f")
        with pytest.raises(ValueError, match="is this node"):
            node.rpc_cast(node.name, "m", "f")
        assert node.make_ref() != node.make_ref()

    async def test_other_nodes(self, node: Node, peer: ScriptedPeer, ours: Process) -> None:
        assert node.nodes == [PEER]
        assert node.remotes == [node.remote(PEER)]
        await node.connect(PEER)  # there is one
        node.monitor_nodes(ours)
        node.disconnect(PEER)
        assert await ours.receive(timeout=5) == ("nodedown", PEER)
        node.monitor_nodes(ours, False)

    async def test_pings(self, node: Node, peer: ScriptedPeer) -> None:
        assert await node.ping(node.name)
        assert not await node.ping(PEER, timeout=0.01)
        assert not await node.ping("no@name@at.all")

    async def test_keep_connected(self, node: Node, listener: Listener) -> None:
        node.remote(PEER).address = listener.address
        node.keep_connected(PEER)
        await asyncio.wait_for(listener.came.get(), 5)

    async def test_where_it_is(self, node: Node) -> None:
        assert node.address == ("127.0.0.1", node.port)
        assert not node.forked
        with pytest.raises(NodeStartError, match="has been started already"):
            await node.start()

    async def test_a_child_knows_that_it_is_none(self, node: Node) -> None:
        child = os.fork()
        if not child:
            os._exit(int(not node.forked))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert status == 0
