"""A node of ours, and another one played by a script: what is sent, in what order."""

from __future__ import annotations

import asyncio
from typing import Any

from snex_node import Atom, Node
from snex_node.wire import etf
from snex_node.wire.control import ControlMessage, RegSend
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.handshake import Identity, Initiator
from tests.support.peer import ScriptedPeer
from tests.support.waiting import until

PEER = "peer@127.0.0.1"

SMALLER, GREATER = "aa@127.0.0.1", "zz@127.0.0.1"
"""Names below and above that of our node, ``py@127.0.0.1``."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

encode = etf.Encoder().encode


async def connect(node: Node, flags: Flag = CLAIMED, name: str = PEER) -> ScriptedPeer:
    """Come to ``node`` as ``name``."""
    assert node.port is not None
    peer = await ScriptedPeer.connect(Identity(name, 77, flags), "secret", node.name, node.port)
    # Our side of the handshake ends a moment after theirs.
    await until(lambda: name in node.nodes, pause=0)
    return peer


async def read(peer: ScriptedPeer) -> tuple[ControlMessage, Any]:
    """What comes next, with its payload decoded."""
    message = await peer.read()
    if message.offset == len(message.data):
        return message.control, None
    return message.control, etf.Decoder().decode(message.data, message.offset)[0]


async def settled(peer: ScriptedPeer) -> list[tuple[ControlMessage, Any]]:
    """What has come when all that was sent before has been handled."""
    ref = peer.make_ref()
    ping = (Atom("$gen_call"), (peer.pid(99), ref), (Atom("is_auth"), Atom(peer.name)))
    await peer.send(RegSend(peer.pid(99), Atom("net_kernel")), encode(ping))
    seen: list[tuple[ControlMessage, Any]] = []
    while True:
        message = await read(peer)
        if message[1] == (ref, "yes"):
            return seen
        seen.append(message)


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
