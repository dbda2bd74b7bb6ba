"""Connections that are made, or not: crossing ones, strangers, and what the system refuses."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any

import pytest

from snex_node import ConnectError, Node
from snex_node.cluster import connection as connections
from snex_node.cluster import door
from snex_node.cluster.connection import Connection
from snex_node.epmd import EpmdServer, register
from snex_node.epmd.messages import NodeInfo
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.handshake import HandshakeError, Identity, Initiator
from tests.support.peer import ScriptedPeer, shake
from tests.support.ports import free_port
from tests.support.scripted import (
    GREATER,
    SMALLER,
    Listener,
    come_in,
    dial,
)
from tests.support.waiting import until


class TestReflection:
    """Whoever lacks the cookie has us answer our own challenge."""

    async def test_of_the_other_side(self, node: Node, listener: Listener) -> None:
        """A stranger whom we dial connects back in that name, and passes on what we ask there."""
        dialling = dial(node, GREATER, listener)
        _, dialled = await listener.answer(b"sok")
        assert node.port is not None
        reader, back = await asyncio.open_connection("127.0.0.1", node.port)
        back.write(Initiator(Identity(GREATER, 4), "?", 1, peer_name=node.name).data_to_send())
        assert await read_message(reader) == b"sok_simultaneous"
        question = await read_message(reader)
        dialled.write(challenge(GREATER, question[9:13]))
        with pytest.raises(ConnectError, match="a challenge of our own") as caught:
            await asyncio.wait_for(dialling, 10)
        assert caught.value.reason == "reflection"
        assert node.nodes == []
        back.close()

    async def test_of_another_attempt(self, node: Node, listener: Listener) -> None:
        """Dialled under two names, he asks on one line what he has to answer on the other."""
        names = ("aa@127.0.0.1", "ab@127.0.0.1")
        first = dial(node, names[0], listener)
        reader, writer = await listener.answer(b"sok")
        writer.write(challenge(names[0], b"\1\2\3\4"))
        asked = (await read_message(reader))[1:5]
        second = dial(node, names[1], listener)
        _, other = await listener.answer(b"sok")
        other.write(challenge(names[1], asked))
        with pytest.raises(ConnectError, match="a challenge of our own") as caught:
            await asyncio.wait_for(second, 5)
        assert caught.value.reason == "reflection"
        first.cancel()

    async def test_none_is_left_behind(self, node: Node) -> None:
        """A challenge counts until its handshake is over, however that ends."""
        (await come_in(node, SMALLER)).close()
        with pytest.raises(HandshakeError):
            await come_in(node, GREATER, "wrong")
        await until(lambda: not node.cluster.connector.handshakes)
        assert node.cluster.connector.challenges == set()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 5), "big")
    return await asyncio.wait_for(reader.readexactly(size), 5)


def challenge(name: str, number: bytes) -> bytes:
    """The message with which an accepting side asks for a digest of `number`."""
    flags = int(CLAIMED).to_bytes(8, "big")
    text = name.encode()
    body = b"N" + flags + number + b"\0\0\0\4" + len(text).to_bytes(2, "big") + text
    return len(body).to_bytes(2, "big") + body


class TestNames:
    async def test_who_has_no_name_gets_one(self, node: Node) -> None:
        assert node.port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        identity = Identity("127.0.0.1", 4, CLAIMED | Flag.NAME_ME)
        handshake = Initiator(identity, "secret", 1, peer_name=node.name)
        done = await shake(handshake, reader, writer)
        alive, _, host = done.name.partition("@")
        assert len(alive) == 12
        assert host == "127.0.0.1"
        assert done.creation > 15
        await until(lambda: node.nodes == [done.name])
        writer.close()

    async def test_a_host_that_is_too_long_for_a_name(self, node: Node) -> None:
        assert node.port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        identity = Identity("h" * 250, 4, CLAIMED | Flag.NAME_ME)
        handshake = Initiator(identity, "secret", 1, peer_name=node.name)
        with pytest.raises(HandshakeError):
            await shake(handshake, reader, writer)
        writer.close()
        assert node.nodes == []


class TestTheSystem:
    async def test_it_refuses_to_accept(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Out of descriptors: told once, and tried again after a pause."""
        monkeypatch.setattr(door, "ACCEPT_PAUSE", 0.01)
        failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "x")]
        real = socket.socket.accept

        def accept(listener: socket.socket) -> object:
            if failures:
                raise failures.pop(0)
            return real(listener)

        monkeypatch.setattr(socket.socket, "accept", accept)
        (await come_in(node, GREATER)).close()
        assert not failures
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == ["cannot accept connections: Too many open files"]

    async def test_it_refuses_to_accept_while_strangers_hold_descriptors(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The older half of those who are not done is closed, for others to come in."""
        monkeypatch.setattr(door, "ACCEPT_PAUSE", 0.01)
        halves = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(4)]
        await until(lambda: node.cluster.connector.handshakes == 4)
        failures = [OSError(errno.EMFILE, "Too many open files")]
        real = socket.socket.accept

        def accept(listener: socket.socket) -> object:
            if failures:
                raise failures.pop(0)
            return real(listener)

        monkeypatch.setattr(socket.socket, "accept", accept)
        (await come_in(node, GREATER)).close()
        for reader, writer in halves[:2]:
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert node.cluster.connector.handshakes == 2
        for _, writer in halves[2:]:
            writer.close()

    async def test_it_does_not_connect(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host that drops our packets: given up after net_setuptime."""
        loop = asyncio.get_running_loop()

        async def sock_connect(sock: socket.socket, address: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "sock_connect", sock_connect)
        monkeypatch.setattr(node.cluster, "net_setuptime", 0.01)
        with pytest.raises(ConnectError, match=r"no answer within 0\.01 s") as caught:
            await node.connect("far@127.0.0.1", address=("127.0.0.1", 1))
        assert caught.value.reason == "unreachable"

    async def test_cancelled_while_it_connects(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = asyncio.get_running_loop()
        began: asyncio.Queue[None] = asyncio.Queue()

        async def sock_connect(sock: socket.socket, address: object) -> None:
            began.put_nowait(None)
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "sock_connect", sock_connect)
        dialling = asyncio.ensure_future(node.connect("far@127.0.0.1", address=("127.0.0.1", 1)))
        await began.get()
        node.disconnect("far@127.0.0.1")
        with pytest.raises(ConnectError):
            await dialling

    async def test_a_host_without_an_address(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def getaddrinfo(*args: object, **options: object) -> list[object]:
            return []

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        with pytest.raises(ConnectError, match="it has no address"):
            await node.connect("far@127.0.0.1", address=("127.0.0.1", 1))

    async def test_reset_in_the_handshake(
        self, node: Node, listener: Listener, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert node.port is not None
        sock = socket.create_connection(("127.0.0.1", node.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: node.cluster.connector.handshakes)
        sock.close()
        await until(lambda: caplog.records)
        assert "closed the connection" in caplog.records[0].getMessage()
        dialling = dial(node, SMALLER, listener)
        _, writer = await asyncio.wait_for(listener.came.get(), 5)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        with pytest.raises(ConnectError, match="closed the connection") as caught:
            await dialling
        assert caught.value.reason == "closed"

    async def test_the_network_fails_in_the_handshake(
        self,
        node: Node,
        listener: Listener,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        loop = asyncio.get_running_loop()

        async def sock_recv(sock: socket.socket, size: int) -> bytes:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

        monkeypatch.setattr(loop, "sock_recv", sock_recv)
        with pytest.raises(ConnectError, match="broke off the handshake: No route") as caught:
            await dial(node, SMALLER, listener)
        assert caught.value.reason == "closed"
        assert node.port is not None

        def recv(sock: socket.socket, size: int) -> bytes:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

        monkeypatch.setattr(socket.socket, "recv", recv)
        with socket.create_connection(("127.0.0.1", node.port)):
            await until(lambda: caplog.records)
        text = caplog.records[0].getMessage()
        assert text.endswith("lost the connection in its handshake: No route to host")

    async def test_given_up_with_the_last_byte(
        self, node: Node, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The attempt is given up in the moment in which its handshake is done."""
        real = connections.initiate

        async def initiate(*args: Any, **options: Any) -> object:
            done = await real(*args, **options)
            node.disconnect(SMALLER)
            return done

        monkeypatch.setattr(connections, "initiate", initiate)
        dialling = dial(node, SMALLER, listener)
        streams = await asyncio.wait_for(listener.came.get(), 5)
        peer = await ScriptedPeer.accept(*streams, Identity(SMALLER, 77), "secret")
        with pytest.raises(ConnectError, match="given up"):
            await dialling
        await peer.wait_closed()
        assert node.nodes == []

    async def test_stopped_in_the_middle(self, listener: Listener) -> None:
        """A node that stops leaves no socket open, whatever was under way."""
        async with Node("py@127.0.0.1", cookie="secret", epmd="none") as node:
            dialling = dial(node, SMALLER, listener)
            reader, _ = await asyncio.wait_for(listener.came.get(), 5)
            assert node.port is not None
            halves = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(3)]
            await until(lambda: node.cluster.connector.handshakes == 3)
        with pytest.raises(ConnectError, match=r"py@127\.0\.0\.1 stops"):
            await dialling
        for other_reader, writer in (*halves, (reader, halves[0][1])):
            await asyncio.wait_for(other_reader.read(), 5)
            writer.close()
        assert not node.cluster.connector.handshakes


class TestNodelay:
    async def test_small_frames_do_not_wait(self, node: Node) -> None:
        async with await come_in(node, SMALLER):
            await until(lambda: node.nodes)
            connection = node.remote(SMALLER).connection
            assert isinstance(connection, Connection)
            assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class TestLookingUp:
    """What keeps a connection from being made before there is a socket."""

    @pytest.mark.parametrize(
        ("name", "reason", "why"),
        [
            ("py", "name", "is no node name"),
            ("peer@short", "names", "is a short name and py@127.0.0.1 a long one"),
            ("peer@no-such-host.invalid", "resolve", "no-such-host.invalid"),
        ],
    )
    async def test_the_name_leads_nowhere(
        self, node: Node, name: str, reason: str, why: str
    ) -> None:
        with pytest.raises(ConnectError, match=why) as caught:
            await node.connect(name)
        assert (caught.value.node, caught.value.reason) == (name, reason)

    async def test_a_long_name_for_a_short_one(self) -> None:
        async with Node("py@localhost", cookie="secret", epmd="none") as node:
            with pytest.raises(ConnectError, match="is a long name and py@localhost a short one"):
                await node.connect("peer@127.0.0.1")

    async def test_the_host_of_an_address_does_not_resolve(self, node: Node) -> None:
        with pytest.raises(ConnectError, match="does not resolve") as caught:
            await node.connect(GREATER, address=("no-such-host.invalid", 1))
        assert caught.value.reason == "resolve"

    async def test_epmd_knows_it_or_not(self, listener: Listener) -> None:
        with EpmdServer("127.0.0.1", 0) as server:
            port = server.address[1]
            options: dict[str, Any] = {"epmd": "none", "epmd_port": port}
            async with Node("py@127.0.0.1", cookie="secret", **options) as node:
                with pytest.raises(ConnectError, match="knows no node zz") as caught:
                    await node.connect(GREATER)
                assert caught.value.reason == "unknown"
                there = await register(NodeInfo("zz", listener.address[1]), port=port)
                connecting = asyncio.ensure_future(node.connect(GREATER))
                streams = await asyncio.wait_for(listener.came.get(), 5)
                async with await ScriptedPeer.accept(*streams, Identity(GREATER, 77), "secret"):
                    await connecting
                    assert node.nodes == [GREATER]
                there.close()

    async def test_no_epmd_answers(self) -> None:
        options: dict[str, Any] = {"epmd": "none", "epmd_port": free_port()}
        async with Node("py@127.0.0.1", cookie="secret", **options) as node:
            with pytest.raises(ConnectError) as caught:
                await node.connect(GREATER)
            assert caught.value.reason == "unreachable"

    async def test_nobody_listens_there(self, node: Node) -> None:
        with pytest.raises(ConnectError, match="does not accept connections on") as caught:
            await node.connect(GREATER, address=("127.0.0.1", free_port()))
        assert caught.value.reason == "unreachable"
