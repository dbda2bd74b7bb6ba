"""Processes that we ask another node to start: what becomes of the request."""

from __future__ import annotations

import asyncio

import pytest

from snex_node import (
    Atom,
    Node,
    Process,
    ProcessExitError,
    RemoteError,
)
from snex_node.wire import control
from snex_node.wire.control import (
    DemonitorP,
    PayloadExit,
    PayloadMonitorPExit,
    SpawnReply,
    SpawnRequest,
)
from snex_node.wire.flags import CLAIMED, Flag
from tests.support.peer import ScriptedPeer
from tests.support.scripted import PEER, connect, encode, read, settled
from tests.support.tied import links_of

BOOM = Atom("boom")


async def no_user(peer: ScriptedPeer) -> None:
    """Answer the question where what is started there is to print."""
    request, _ = await read(peer)
    assert isinstance(request, SpawnRequest)
    assert request.mfa == ("erpc", "execute_call", 4)
    await peer.send(SpawnReply(request.id, request.from_, 0, Atom("notsup")))


class TestSpawning:
    async def test_its_end_comes_with_the_reply(
        self, node: Node, peer: ScriptedPeer, ours: Process
    ) -> None:
        """Reply, exit and DOWN in one read: the ties are there before any is handled."""
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", [1], link=ours, monitor=ours))
        await no_user(peer)
        request, args = await read(peer)
        assert isinstance(request, SpawnRequest)
        assert (request.mfa, args, request.options) == (("m", "f", 1), [1], ["link", "monitor"])
        assert request.group_leader == node.router.speaker.pid
        frame = peer.frame_writer.frame
        pid = peer.pid(5)
        await peer.send_raw(
            frame(control.encode(SpawnReply(request.id, ours.pid, 3, pid)))
            + frame(control.encode(PayloadExit(pid, ours.pid)), encode(BOOM))
            + frame(control.encode(PayloadMonitorPExit(pid, ours.pid, request.id)), encode(BOOM))
        )
        assert await spawning == pid
        assert await ours.receive(timeout=5) == ("EXIT", pid, "boom")
        assert await ours.receive(timeout=5) == ("DOWN", request.id, "process", pid, "boom")

    @pytest.mark.parametrize("ends", ["cancelled", "owner"])
    async def test_given_up(self, node: Node, peer: ScriptedPeer, ours: Process, ends: str) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", link=ours, monitor=ours))
        await no_user(peer)
        request, _ = await read(peer)
        assert isinstance(request, SpawnRequest)
        if ends == "cancelled":
            spawning.cancel()
            await asyncio.wait([spawning])
        else:
            ours.exit((BOOM, 1))
        pid = peer.pid(5)
        await peer.send(SpawnReply(request.id, ours.pid, 3, pid))
        reason = "abandoned" if ends == "cancelled" else ("boom", 1)
        assert await read(peer) == (PayloadExit(ours.pid, pid), reason)
        assert await read(peer) == (DemonitorP(ours.pid, pid, request.id), None)
        if ends == "owner":
            assert await spawning == pid
        assert not links_of(ours)
        assert node.signals.ties.count(PEER) == 0

    async def test_the_connection_goes_before_the_reply(
        self, node: Node, peer: ScriptedPeer, ours: Process
    ) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", link=ours))
        await no_user(peer)
        await read(peer)
        peer.close()
        with pytest.raises(ProcessExitError) as caught:
            await spawning
        assert caught.value.reason == "noconnection"
        assert not links_of(ours)

    async def test_refused(self, node: Node, peer: ScriptedPeer) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f"))
        await no_user(peer)
        request, _ = await read(peer)
        assert isinstance(request, SpawnRequest)
        assert request.options == []
        await peer.send(SpawnReply(request.id, request.from_, 0, Atom("system_limit")))
        with pytest.raises(RemoteError) as caught:
            await spawning
        assert (caught.value.kind, caught.value.reason) == ("erpc", "system_limit")

    async def test_a_reply_that_nobody_asked_for(self, node: Node, peer: ScriptedPeer) -> None:
        await peer.send(SpawnReply(peer.make_ref(), node.router.speaker.pid, 0, peer.pid()))
        assert await settled(peer) == []


class TestOldPeers:
    async def test_without_spawn(self, node: Node) -> None:
        async with await connect(node, CLAIMED & ~Flag.SPAWN):
            with pytest.raises(RemoteError) as caught:
                await node.rpc(PEER, "m", "f")
            assert (caught.value.kind, caught.value.reason) == ("erpc", "notsup")
