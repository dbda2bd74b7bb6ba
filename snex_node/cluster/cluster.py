"""The other nodes of the cluster, as this one knows them, and the connections to them."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import NamedTuple

from snex_node.cluster.connection import Connection
from snex_node.cluster.connector import Connector
from snex_node.cluster.remote import Receiver, RemoteNode
from snex_node.errors import ConnectError
from snex_node.system import tasks
from snex_node.system.guardian import Guardian
from snex_node.system.memory import Holdings, Trimmer
from snex_node.system.turns import Turns
from snex_node.wire.etf import Encoder
from snex_node.wire.handshake import Completed
from snex_node.wire.terms import Atom

MAX_REMOTES = 4096
"""Nodes remembered; beyond it those are forgotten that nothing ties us to."""

FAREWELL = 1.0
"""Seconds a stopping node waits for its peers to read what was sent last."""

RETRY_PAUSE = 0.5
RETRY_PAUSE_MOST = 5.0
"""Seconds between attempts to keep a connection: the first, and what they grow to."""

_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What peers are granted, in seconds and bytes; see `Node`."""

    net_ticktime: float
    net_setuptime: float
    max_frame: int
    max_message: int
    max_unfinished: int


class Cluster:
    """All other nodes that the node ``name`` knows.

    What comes from them goes to the `receiver`, which whoever makes this has to set.
    """

    receiver: Receiver

    def __init__(
        self,
        name: Atom,
        cookie: str,
        turns: Turns,
        guardian: Guardian,
        encoder: Encoder,
        epmd_port: int | None,
        limits: Limits,
    ) -> None:
        self.name = name
        self.creation = 0
        self.turns = turns
        self.guardian = guardian
        self.encoder = encoder
        self.net_setuptime = limits.net_setuptime
        self._limits = limits
        self.unfinished: Holdings[Connection] = Holdings(
            limits.max_unfinished, self._too_much_unfinished
        )
        self._trimmer = Trimmer()
        guardian.add_check(self._trimmer.check)
        self.connector = Connector(self, cookie, epmd_port, self._make_connection)
        self._remotes: dict[str, RemoteNode] = {}

    # --- who there is ---------------------------------------------------------------------------

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes we are connected to."""
        return [remote.name for remote in self.remotes if remote.connection is not None]

    @property
    def remotes(self) -> list[RemoteNode]:
        """What we hold about the nodes we know, connected or not."""
        return list(self._remotes.values())

    def remote(self, name: str) -> RemoteNode:
        """What we hold about the node ``name``; made when it is first named. Any thread."""
        remote = self._remotes.get(name)
        if remote is None:
            if len(self._remotes) >= MAX_REMOTES:
                for other in self.remotes:
                    if other.idle:
                        self._remotes.pop(other.name, None)
            remote = self._remotes.setdefault(Atom(name), RemoteNode(self, Atom(name)))
        return remote

    # --- connecting -----------------------------------------------------------------------------

    async def dial(self, remote: RemoteNode) -> None:
        """Make a connection to ``remote``. Raises `ConnectError`."""
        await self.connector.dial(remote)

    async def connect(self, name: str, address: tuple[str, int] | None) -> None:
        """See `Node.connect`."""
        if name == self.name:
            return
        remote = self.remote(name)
        remote.address = address or remote.address
        await remote.connect()

    def disconnect(self, name: str) -> None:
        """See `Node.disconnect`."""
        remote = self._remotes.get(name)
        if remote is not None:
            remote.close("disconnect was called")

    def keep_connected(self, name: str) -> None:
        """See `Node.keep_connected`."""
        self.turns.run(self._keep_connected(name))

    async def _keep_connected(self, name: str) -> None:
        pause, complaint = RETRY_PAUSE, ""
        while True:
            try:
                connection = await self.remote(name).connect()
            except ConnectError as error:
                if str(error) != complaint:  # once, not at every attempt
                    complaint = str(error)
                    _log.warning("%s (trying again)", complaint)
                pause = min(pause * 1.5, RETRY_PAUSE_MOST)
            else:
                await connection.wait_closed()
                pause, complaint = RETRY_PAUSE, ""
            await asyncio.sleep(pause)

    def _make_connection(
        self, remote: RemoteNode, sock: socket.socket, done: Completed
    ) -> Connection:
        # Without it every small frame waits for the acknowledgement of the one before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(
            sock,
            done.peer,
            remote,
            loop=asyncio.get_running_loop(),
            net_ticktime=self._limits.net_ticktime,
            max_frame=self._limits.max_frame,
            max_message=self._limits.max_message,
            unfinished=self.unfinished,
            trimmer=self._trimmer,
        )
        self.guardian.watch(connection)
        return connection

    def _too_much_unfinished(self, connection: Connection) -> None:
        connection.close(
            f"all peers together have sent more than {self.unfinished.limit} bytes of messages "
            "that are not complete, and it has sent the most"
        )

    # --- being connected, and the end -----------------------------------------------------------

    def let_in(self, listener: socket.socket | None) -> None:
        """Let others in from now on, who come to ``listener``; None: nobody can come."""
        if listener is not None:
            self.connector.listen(listener)

    def stop_letting_in(self) -> None:
        """Let nobody in any more, and end the handshakes of those who came."""
        self.connector.stop_listening()

    async def say_farewell(self) -> None:
        """What was written last would be lost if we closed before the peers have read it."""
        live = [r.connection for r in self.remotes if r.connection is not None]
        for connection in live:
            connection.finish()
        if live:
            closed = [tasks.start(connection.wait_closed()) for connection in live]
            await asyncio.wait(closed, timeout=FAREWELL)
            for waiting in closed:
                waiting.cancel()

    def close(self) -> None:
        """Close every connection, and give up those that were being made."""
        for remote in self.remotes:
            remote.close(f"{self.name} stops")
