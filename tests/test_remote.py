"""One other node: whose connection it is when both begin, what waits for one, old peers."""

from __future__ import annotations

import asyncio
import logging

import pytest

from snex_node import (
    Atom,
    ConnectError,
    Node,
    NodeError,
    Pid,
    Process,
)
from snex_node.cluster import remote
from snex_node.cluster import remote as remote_nodes
from snex_node.wire.control import (
    Exit,
    Exit2,
    Link,
    MonitorP,
    MonitorPExit,
    PayloadExit2,
    Send,
)
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.handshake import HandshakeError, Identity, Initiator, Status
from tests.support.peer import ScriptedPeer, shake
from tests.support.ports import free_port
from tests.support.scripted import (
    GREATER,
    PEER,
    SMALLER,
    Listener,
    come_in,
    connect,
    dial,
    read,
    say_name,
    say_name_of,
    settled,
)
from tests.support.waiting import until

BOOM = Atom("boom")


class TestCrossing:
    async def test_they_refuse_and_come(self, node: Node, listener: Listener) -> None:
        """Their name is the greater: they say nok to ours, and theirs is the connection."""
        dialling = dial(node, GREATER, listener)
        await listener.answer(b"snok")
        await until(lambda: not node.remote(GREATER).connecting)
        node.send(("name", GREATER), 1)  # waits for what they said would come
        async with await come_in(node, GREATER) as peer:
            await dialling
            assert node.nodes == [GREATER]
            assert (await peer.read()).control is not None
        assert listener.came.empty()

    async def test_they_refuse_and_do_not_come(self, listener: Listener) -> None:
        async with Node("py@127.0.0.1", cookie="secret", epmd="none", net_setuptime=0.2) as node:
            dialling = dial(node, GREATER, listener)
            await listener.answer(b"snok")
            with pytest.raises(ConnectError, match="was connecting to us, and did not") as caught:
                await dialling
        assert caught.value.reason == "nok"

    async def test_they_refuse_and_cannot_come(self, node: Node, listener: Listener) -> None:
        """Whoever came in their name may have been anybody: we try again, but not for ever."""
        dialling = dial(node, GREATER, listener)
        for _ in range(1 + remote_nodes.TRIES_AGAIN):
            await listener.answer(b"snok")
            await until(lambda: not node.remote(GREATER).connecting)
            with pytest.raises(HandshakeError):
                await come_in(node, GREATER, "wrong")
        with pytest.raises(ConnectError, match="cookie") as caught:
            await dialling
        assert caught.value.reason == "accept"

    async def test_they_refuse_and_a_stranger_comes(self, node: Node, listener: Listener) -> None:
        dialling = dial(node, GREATER, listener)
        await listener.answer(b"snok")
        await until(lambda: not node.remote(GREATER).connecting)
        with pytest.raises(HandshakeError):
            await come_in(node, GREATER, "wrong")
        streams = await asyncio.wait_for(listener.came.get(), 5)
        peer = await ScriptedPeer.accept(*streams, Identity(GREATER, 77), "secret")
        await asyncio.wait_for(dialling, 5)
        peer.close()

    async def test_we_refuse(self, node: Node, listener: Listener) -> None:
        """Ours is the greater name: they are told nok, and our attempt goes on."""
        dialling = dial(node, SMALLER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        with pytest.raises(HandshakeError) as caught:
            await come_in(node, SMALLER)
        assert caught.value.reason == "nok"
        peer = await ScriptedPeer.accept(*streams, Identity(SMALLER, 77), "secret")
        await dialling
        assert node.nodes == [SMALLER]
        peer.close()

    async def test_we_give_way(self, node: Node, listener: Listener) -> None:
        dialling = dial(node, GREATER, listener)
        reader, _ = await asyncio.wait_for(listener.came.get(), 5)
        async with await come_in(node, GREATER):
            await dialling
            assert node.nodes == [GREATER]
            # Our attempt is dropped: its socket is closed.
            await asyncio.wait_for(reader.read(), 5)

    async def test_a_stranger_does_not_make_us_give_way(
        self, node: Node, listener: Listener, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever used their name had no cookie: our attempt goes on, and nothing is lost."""
        inbox = Process(node)
        inbox.send(("name", GREATER), 1)
        dialling = dial(node, GREATER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        with pytest.raises(HandshakeError):
            await come_in(node, GREATER, "wrong")
        peer = await ScriptedPeer.accept(*streams, Identity(GREATER, 77), "secret")
        await dialling
        assert (await peer.read()).control is not None
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
        assert listener.came.empty()
        peer.close()

    async def test_half_handshakes_in_their_name_do_not_keep_us_away(
        self, node: Node, listener: Listener
    ) -> None:
        """A stranger begins one after the other; we connect all the same."""
        strangers = [await say_name(node, GREATER) for _ in range(3)]
        dialling = dial(node, GREATER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        strangers += [await say_name(node, GREATER) for _ in range(3)]
        peer = await ScriptedPeer.accept(*streams, Identity(GREATER, 77), "secret")
        await asyncio.wait_for(dialling, 2)
        assert node.nodes == [GREATER]
        peer.close()
        for _, writer in strangers:
            writer.close()

    async def test_half_handshakes_in_their_name_hide_no_error(self, node: Node) -> None:
        """That nobody listens there is told, though somebody uses the name all the time."""
        _, writer = await say_name(node, GREATER)
        address = ("127.0.0.1", free_port())
        with pytest.raises(ConnectError) as caught:
            await asyncio.wait_for(node.connect(GREATER, address=address), 2)
        assert caught.value.reason == "unreachable"
        writer.close()

    async def test_an_error_of_the_handshake_is_hidden_for_a_while_only(
        self, listener: Listener
    ) -> None:
        """Theirs may be the connection that stays; a stranger's does not keep us waiting."""
        async with Node("py@127.0.0.1", cookie="secret", epmd="none", net_setuptime=0.3) as node:
            dialling = dial(node, GREATER, listener)
            _, writer = await listener.answer(b"sok")
            stranger = await say_name(node, GREATER)
            writer.close()
            with pytest.raises(ConnectError, match="closed the connection") as caught:
                await asyncio.wait_for(dialling, 5)
            assert caught.value.reason == "closed"
            stranger[1].close()

    async def test_theirs_is_done_after_they_dropped_ours(
        self, node: Node, listener: Listener
    ) -> None:
        """They dropped our attempt because theirs goes on: nobody is told of an error."""
        dialling = dial(node, GREATER, listener)
        _, writer = await listener.answer(b"sok")
        _, theirs = await say_name(node, GREATER)
        writer.close()
        await until(lambda: not node.remote(GREATER).connecting)
        assert not dialling.done()
        async with await come_in(node, GREATER):
            await asyncio.wait_for(dialling, 5)
            assert node.nodes == [GREATER]
        theirs.close()

    async def test_ours_that_they_know_of_stays(self, node: Node, listener: Listener) -> None:
        """Our name is the greater. They began before us, and show the cookie while we connect.

        Who answers to our name drops theirs for it: if we took that one, neither would be left.
        """
        reader, writer, theirs = await say_name_of(node, SMALLER, "secret")
        dialling = dial(node, SMALLER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        with pytest.raises(HandshakeError):
            await shake(theirs, reader, writer)
        writer.close()
        peer = await ScriptedPeer.accept(
            *streams, Identity(SMALLER, 77), "secret", status=Status.OK_SIMULTANEOUS
        )
        await asyncio.wait_for(dialling, 5)
        assert node.nodes == [SMALLER]
        peer.close()

    async def test_theirs_is_late(self, node: Node, listener: Listener) -> None:
        """They said their name before ours was done, and go on after it: ours stays."""
        reader, writer, theirs = await say_name_of(node, SMALLER, "secret")
        dialling = dial(node, SMALLER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        peer = await ScriptedPeer.accept(*streams, Identity(SMALLER, 77), "secret")
        await asyncio.wait_for(dialling, 5)
        events = Process(node)
        node.monitor_nodes(events)
        with pytest.raises(HandshakeError):
            await shake(theirs, reader, writer)
        writer.close()
        assert len(events) == 0
        assert node.nodes == [SMALLER]
        peer.close()

    async def test_a_stranger_while_nothing_waits(self, node: Node) -> None:
        with pytest.raises(HandshakeError):
            await come_in(node, GREATER, "wrong")
        await until(lambda: node.remote(GREATER).idle)

    async def test_ours_is_done_while_a_stranger_is_not(
        self, node: Node, listener: Listener
    ) -> None:
        """A stranger with their name says hello and no more; that keeps nobody waiting."""
        assert node.port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        identity = Identity(SMALLER, 4)
        handshake = Initiator(identity, "wrong", 1, peer_name=node.name)
        writer.write(handshake.data_to_send())
        assert (await reader.readexactly(5))[2:] == b"sok"
        dialling = dial(node, SMALLER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        peer = await ScriptedPeer.accept(*streams, Identity(SMALLER, 77), "secret")
        await dialling
        writer.close()
        await until(lambda: not node.cluster.connector.handshakes)
        assert node.nodes == [SMALLER]
        peer.close()

    async def test_alive_there(self, node: Node, listener: Listener) -> None:
        """They have a connection of ours that is dead: we say so, and take its place."""
        dialling = dial(node, SMALLER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        peer = await ScriptedPeer.accept(
            *streams, Identity(SMALLER, 77), "secret", status=Status.ALIVE
        )
        await dialling
        assert node.nodes == [SMALLER]
        peer.close()

    async def test_alive_here(self, node: Node) -> None:
        """We have a connection of theirs; a new one takes its place once the cookie is right."""
        events = Process(node)
        node.monitor_nodes(events)
        first = await come_in(node, SMALLER)
        assert await events.receive(timeout=5) == ("nodeup", SMALLER)
        with pytest.raises(HandshakeError):
            await come_in(node, SMALLER, "wrong")
        assert len(events) == 0
        second = await come_in(node, SMALLER)
        assert await events.receive(timeout=5) == ("nodedown", SMALLER)
        assert await events.receive(timeout=5) == ("nodeup", SMALLER)
        await first.wait_closed()
        first.close()
        second.close()

    async def test_they_keep_what_they_have(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = await come_in(node, SMALLER)
        await until(lambda: node.nodes)
        assert node.port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        handshake = Initiator(Identity(SMALLER, 77), "secret", 1, peer_name=node.name)
        writer.write(handshake.data_to_send())
        assert (await reader.readexactly(8))[2:] == b"salive"
        writer.write(b"\x00\x06sfalse")
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not node.cluster.connector.handshakes)
        assert node.nodes == [SMALLER]
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
        first.close()


class TestOldPeers:
    async def test_forms_without_payloads(self, node: Node, ours: Process) -> None:
        flags = CLAIMED & ~(Flag.EXIT_PAYLOAD | Flag.SEND_SENDER)
        async with await connect(node, flags) as peer:
            watcher = peer.make_ref()
            await peer.send(MonitorP(peer.pid(), ours.pid, watcher))
            await peer.send(Link(peer.pid(), ours.pid))
            await settled(peer)
            ours.send(peer.pid(), 1)
            assert await read(peer) == (Send(peer.pid()), 1)
            ours.exit_signal(peer.pid(), (BOOM, 1))
            assert await read(peer) == (Exit2(ours.pid, peer.pid(), ("boom", 1)), None)
            ours.exit((BOOM, 2))
            seen = [(await read(peer))[0], (await read(peer))[0]]
            assert Exit(ours.pid, peer.pid(), ("boom", 2)) in seen
            assert MonitorPExit(ours.pid, peer.pid(), watcher, ("boom", 2)) in seen

    async def test_without_sender_only(self, node: Node, ours: Process) -> None:
        async with await connect(node, CLAIMED & ~Flag.SEND_SENDER) as peer:
            ours.send(peer.pid(), 1)
            assert await read(peer) == (Send(peer.pid()), 1)
            ours.exit_signal(peer.pid(), BOOM)
            assert await read(peer) == (PayloadExit2(ours.pid, peer.pid()), "boom")


class TestWaitingForAConnection:
    async def test_too_much_waits(
        self, node: Node, ours: Process, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "MAX_QUEUED", 10_000)
        other = ("name", "other@127.0.0.1")
        for _ in range(7):  # 1,000 bytes of payload and 512 for the rest
            ours.send(other, bytes(1000))
        with pytest.raises(NodeError, match=r"wait for a connection to other@127\.0\.0\.1"):
            ours.send(other, bytes(1000))
        # The attempt fails: nothing waits any more.
        with pytest.raises(ConnectError):
            await node.connect("other@127.0.0.1")
        ours.send(other, bytes(1000))

    async def test_a_bug_in_an_attempt_is_told(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(of: object) -> None:
            raise LookupError("a bug")

        monkeypatch.setattr(node.cluster, "dial", broken)
        with pytest.raises(ConnectError, match="a bug") as caught:
            await node.connect("other@127.0.0.1")
        assert caught.value.reason == "internal"
        assert len(caplog.records) == 1

    async def test_repr(self, node: Node, peer: ScriptedPeer) -> None:
        assert repr(node.remote(PEER)) == f"<RemoteNode {PEER} connected>"
        assert repr(node.remote("a@b")) == "<RemoteNode a@b>"
        assert node.remote("a@b").idle
        assert not node.remote(PEER).idle


class TestOnceConnected:
    async def test_which_pids_are_its_own(
        self, node: Node, peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        there = node.remote(PEER)
        assert there.owns(peer.pid())
        assert caplog.text == ""
        assert not there.owns(Pid("other@127.0.0.1", 1, 0, 1))
        assert "ignored a signal in the name of" in caplog.text

    async def test_there_is_one_connection(self, node: Node, peer: ScriptedPeer) -> None:
        there = node.remote(PEER)
        assert there.reachable
        assert await there.connect() is there.connection
        there.close("a test ends")
        assert not there.reachable
        assert node.nodes == []
        await peer.wait_closed()
