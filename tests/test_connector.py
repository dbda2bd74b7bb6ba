"""Connections that are made, or not: crossing ones, strangers, and what the system refuses."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import ConnectError, Node, Process
from snex_node.cluster import connection as connections
from snex_node.cluster import door
from snex_node.cluster import remote as remote_nodes
from snex_node.cluster.connection import Connection
from snex_node.cluster.presence import random_creation
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.handshake import HandshakeError, Identity, Initiator, Status
from tests.support.peer import ScriptedPeer, shake
from tests.support.ports import free_port
from tests.support.waiting import until

SMALLER, GREATER = "aa@127.0.0.1", "zz@127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("py@127.0.0.1", cookie="secret", epmd="none", net_setuptime=5) as node:
        yield node


class Listener:
    """Where our node dials; the test answers by hand."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[Streams] = asyncio.Queue()
        self._opened: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Listener:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()
        return self

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._opened.append(writer)
        self.came.put_nowait((reader, writer))

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._opened:
            writer.close()

    async def answer(self, status: bytes) -> Streams:
        """Read a name, and say only `status`."""
        reader, writer = await asyncio.wait_for(self.came.get(), 5)
        size = int.from_bytes(await reader.readexactly(2), "big")
        await reader.readexactly(size)
        writer.write(len(status).to_bytes(2, "big") + status)
        return reader, writer


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener() as listener:
        yield listener


def dial(node: Node, name: str, listener: Listener) -> asyncio.Task[None]:
    return asyncio.ensure_future(node.connect(name, address=listener.address))


async def come_in(node: Node, name: str, cookie: str = "secret") -> ScriptedPeer:
    """Connect to our node under `name`."""
    assert node.port is not None
    return await ScriptedPeer.connect(Identity(name, 77), cookie, node.name, node.port)


async def say_name_of(
    node: Node, name: str, cookie: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Initiator]:
    """Begin a handshake with our node under `name`; its answer has come, and waits to be read."""
    assert node.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    handshake = Initiator(Identity(name, 4), cookie, 1, peer_name=node.name)
    writer.write(handshake.data_to_send())
    assert (await reader.readexactly(2))[0] == 0
    handshake.receive_data(b"\0\3" + await reader.readexactly(3))
    return reader, writer, handshake


async def say_name(node: Node, name: str) -> Streams:
    """As somebody without a cookie can, who goes no further."""
    assert node.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(Initiator(Identity(name, 4), "wrong", 1, peer_name=node.name).data_to_send())
    assert (await reader.readexactly(5))[2:] == b"sok"  # and perhaps "_simultaneous"
    return reader, writer


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
        assert await events.next(timeout=5) == ("nodeup", SMALLER)
        with pytest.raises(HandshakeError):
            await come_in(node, SMALLER, "wrong")
        assert len(events) == 0
        second = await come_in(node, SMALLER)
        assert await events.next(timeout=5) == ("nodedown", SMALLER)
        assert await events.next(timeout=5) == ("nodeup", SMALLER)
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


def test_creations_are_never_small() -> None:
    creations = {random_creation() for _ in range(100)}
    assert len(creations) > 95
    assert all(15 < creation < 2**32 for creation in creations)
