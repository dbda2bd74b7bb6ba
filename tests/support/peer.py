"""A node that does only what a test tells it: the handshake, then frames by hand.

It has no timers and answers nothing by itself but ticks, so that a test sees exactly what the other
side sends, and can send what no honest node would.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from snex_node import epmd
from snex_node.wire import control
from snex_node.wire.control import ControlMessage
from snex_node.wire.framing import TICK, FrameReader, FrameWriter, Message
from snex_node.wire.handshake import (
    Acceptor,
    AliveAsked,
    Completed,
    Event,
    Handshake,
    Identity,
    Initiator,
    NameReceived,
    Peer,
    Status,
)
from snex_node.wire.terms import Pid, Reference
from tests.support.beam import Beam

SECONDS = 10.0
"""How long the other side may take for anything, on a busy machine."""


class ScriptedPeer:
    """A connection whose handshake is done, for a test to read from and write to.

    Example::

        async with await ScriptedPeer.connect(identity, cookie, beam.name, port) as peer:
            await peer.send(SendSender(peer.pid(), pid), etf_bytes)
            message = await peer.read()
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, done: Completed
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.peer: Peer = done.peer
        self.name = done.name
        self.creation = done.creation
        self.frames = FrameReader(done.peer.flags)
        self.frame_writer = FrameWriter(done.peer.flags)
        self._messages: list[Message] = []
        self._ticks = 0
        self._numbers = 0
        self._feed(done.trailing)

    @classmethod
    async def connect(
        cls, identity: Identity, cookie: str, peer_name: str, port: int
    ) -> ScriptedPeer:
        """Connect to the node `peer_name` on a port of loopback; replaces a connection it has."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        challenge = secrets.randbits(32)
        handshake = Initiator(identity, cookie, challenge, peer_name=peer_name)
        try:
            return cls(reader, writer, await shake(handshake, reader, writer))
        except BaseException:
            writer.close()
            raise

    @classmethod
    async def connect_to(
        cls, beam: Beam, epmd_port: int, identity: Identity | None = None
    ) -> ScriptedPeer:
        """Connect to a BEAM, as a new node unless told which."""
        identity = identity or Identity(f"p{secrets.token_hex(4)}@127.0.0.1", 17)
        return await cls.connect(identity, beam.cookie, beam.name, await port_of(beam, epmd_port))

    @classmethod
    async def accept(
        cls,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identity: Identity,
        cookie: str,
        status: Status = Status.OK,
    ) -> ScriptedPeer:
        """Do the accepting side's handshake, with `status` as the answer to the name."""
        handshake = Acceptor(identity, cookie, secrets.randbits(32))
        return cls(reader, writer, await shake(handshake, reader, writer, status))

    def pid(self, number: int = 1) -> Pid:
        """A pid of this node."""
        return Pid(self.name, number, 0, self.creation)

    def make_ref(self) -> Reference:
        """A new reference of this node."""
        self._numbers += 1
        return Reference(self.name, self.creation, (self._numbers, 0, 0))

    async def send(self, message: ControlMessage, payload: bytes = b"") -> None:
        """Send one message, in one frame whatever its size."""
        await self.send_raw(self.frame_writer.frame(control.encode(message), payload))

    async def send_raw(self, data: bytes) -> None:
        """Send any bytes."""
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), SECONDS)

    async def read(self) -> Message:
        """The next message. Ticks are answered; the end of the connection is `EOFError`."""
        while not self._messages:
            data = await asyncio.wait_for(self.reader.read(1 << 20), SECONDS)
            if not data:
                raise EOFError(f"{self.peer.name} closed the connection")
            self._feed(data)
        return self._messages.pop(0)

    async def wait_closed(self) -> None:
        """Return when the other side has closed; what it sends until then is dropped."""
        try:
            while await asyncio.wait_for(self.reader.read(1 << 20), SECONDS):
                pass
        except ConnectionError:
            pass

    def _feed(self, data: bytes) -> None:
        for message in self.frames.receive_data(data):
            assert isinstance(message, Message), message
            self._messages.append(message)
        assert self.frames.failure is None, self.frames.failure
        if self.frames.ticks != self._ticks:
            self._ticks = self.frames.ticks
            self.writer.write(TICK)

    def close(self) -> None:
        self.writer.close()

    async def __aenter__(self) -> ScriptedPeer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def port_of(beam: Beam, epmd_port: int) -> int:
    """Where a BEAM listens."""
    info = await epmd.lookup(beam.name.partition("@")[0], "127.0.0.1", port=epmd_port)
    assert info is not None
    return info.port


async def shake(
    handshake: Handshake,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    status: Status = Status.OK,
) -> Completed:
    """Do a handshake; `alive` is answered by replacing. Raises `HandshakeError`."""
    while True:
        writer.write(handshake.data_to_send())
        data = await asyncio.wait_for(reader.read(4096), SECONDS)
        if not data:
            raise handshake.connection_lost()
        try:
            events = handshake.receive_data(data)
            while events:
                event = events.pop(0)
                if isinstance(event, Completed):
                    return event
                if isinstance(event, AliveAsked):
                    assert isinstance(handshake, Initiator)
                    events += handshake.answer_alive(True)
                else:
                    assert isinstance(handshake, Acceptor)
                    events += _decide(handshake, event, status)
        finally:
            writer.write(handshake.data_to_send())


def _decide(handshake: Acceptor, event: NameReceived, status: Status) -> list[Event]:
    if status is not Status.NAMED:
        return handshake.decide(status)
    return handshake.decide(status, name=f"given@{event.name}", creation=4321)


@asynccontextmanager
async def listening(
    identity: Identity, epmd_port: int, at: int | None = None
) -> AsyncIterator[asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Listen as a node that others find by their epmd; gives the queue of what they connect.

    With `at`, epmd tells that port of loopback: a proxy, say.
    """
    connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    opened: list[asyncio.StreamWriter] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        connections.put_nowait((reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    info = epmd.NodeInfo(identity.name.partition("@")[0], at or port)
    registration = await epmd.register(info, port=epmd_port)
    try:
        yield connections
    finally:
        registration.close()
        server.close()
        for writer in opened:
            writer.close()
