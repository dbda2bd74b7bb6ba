"""The other nodes that a node knows."""

from __future__ import annotations

import asyncio
import logging

import pytest

from snex_node import ConnectError, Node, Process
from snex_node.cluster import cluster as clusters
from snex_node.wire.handshake import Identity
from tests.support.peer import ScriptedPeer
from tests.support.scripted import PEER, Listener, connect, read
from tests.support.waiting import until


class TestOtherNodes:
    async def test_remotes(self, node: Node, peer: ScriptedPeer) -> None:
        assert [remote.name for remote in node.remotes] == [PEER]
        assert node.remote(PEER) is node.remotes[0]
        assert node.nodes == [PEER]

    async def test_unused_ones_are_forgotten(
        self, node: Node, peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clusters, "MAX_REMOTES", 10)
        for number in range(100):
            node.remote(f"a{number}@127.0.0.1")
        assert len(node.remotes) <= 10
        assert node.nodes == [PEER]

    async def test_keep_connected_complains_once(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        attempts = 0

        async def dial(remote: object) -> None:
            nonlocal attempts
            attempts += 1
            raise ConnectError(PEER, "unknown", "no such node yet")

        monkeypatch.setattr(node.cluster, "dial", dial)
        monkeypatch.setattr(clusters, "RETRY_PAUSE", 0.001)
        node.keep_connected(PEER)
        await until(lambda: attempts >= 3)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == ["no such node yet (trying again)"]


class TestLife:
    async def test_keeps_a_connection(
        self, node: Node, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is made again when it is lost."""
        monkeypatch.setattr(clusters, "RETRY_PAUSE", 0.001)
        node.remote(PEER).address = listener.address
        node.keep_connected(PEER)
        for _ in range(2):
            streams = await asyncio.wait_for(listener.came.get(), 5)
            peer = await ScriptedPeer.accept(*streams, Identity(PEER, 77), "secret")
            await until(lambda: node.nodes == [PEER])
            peer.close()

    async def test_to_itself_nothing_is_connected(self, node: Node) -> None:
        await node.connect(node.name)
        assert node.nodes == []
        node.disconnect(node.name)
        node.disconnect("nobody@127.0.0.1")

    async def test_disconnect(self, node: Node, peer: ScriptedPeer) -> None:
        node.disconnect(PEER)
        assert node.nodes == []
        await peer.wait_closed()

    async def test_a_farewell_is_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that does not close its side holds up the end for that long, and no longer."""
        monkeypatch.setattr(clusters, "FAREWELL", 0.01)
        async with Node("py@127.0.0.1", cookie="secret", epmd="none") as node:
            peer = await connect(node)
            Process(node).send(peer.pid(), "last")
        assert (await read(peer))[1] == b"last"
        peer.close()

    async def test_who_holds_too_much_is_closed(
        self, node: Node, peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        node.cluster.unfinished.limit = 1000
        await peer.send_raw((2**20).to_bytes(4, "big") + bytes(2000))
        await peer.wait_closed()
        assert "all peers together have sent more than 1000 bytes" in caplog.text

    async def test_a_node_that_does_not_listen(self) -> None:
        async with Node("py@127.0.0.1", cookie="secret", epmd="none", listen=None) as node:
            assert node.port is None
            assert node.cluster.connector.handshakes == 0
