"""A node by itself, and calls within it; what it needs others for is in tests/interop."""

from __future__ import annotations

import asyncio

import pytest

from snex_node import (
    Atom,
    Node,
    NodeStartError,
    Process,
)
from snex_node.wire import etf
from tests.support.ports import free_port

encode = etf.Encoder().encode
PEER = "peer@127.0.0.1"


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
