"""An epmd inside this process, so that a machine without Erlang works.

It runs in a thread with an event loop of its own: nodes look each other up while user code blocks
the main loop. (Code that holds the interpreter's lock in one long C call holds it up as well.)

Source: Erlang distribution protocol, "Protocol between epmd and Nodes"; epmd(1) for who may do
what.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import itertools
import logging
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from snex_node.epmd.errors import PortInUseError
from snex_node.epmd.messages import (
    MAX_REQUEST_BYTES,
    AliveAnswer,
    AliveRequest,
    DebugRequest,
    MalformedError,
    NamesRequest,
    NodeInfo,
    PortRequest,
    Request,
    encode_alive_answer,
    encode_names_answer,
    encode_port_answer,
    parse_request,
)
from snex_node.epmd.settings import epmd_port, listen_addresses

MAX_CONNECTIONS = 512
"""Open connections. A process may have 1,024 files open by default, and without a bound whoever
connects and stays could take them all from the node that we are a guest of."""

MAX_NAMES = 384
"""Registered nodes, each with a connection. 128 connections are left for those who ask."""

REQUEST_SECONDS = 10.0
"""From the acceptance of a connection to the end of everything that is not a registration. Without
it, half a request, or a client that does not read its answer, would hold a connection for ever."""

BACKLOG = 128

_LOWEST_CREATION = 4
"""0 is reserved, and 1 to 3 are what old nodes get, whose creation has two bits."""

_NAME_TAKEN = "the name is taken"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpmdStatistics:
    """What an `EpmdServer` holds now, and did since its start."""

    names: int
    connections: int
    requests: int
    refused: int
    """Connections closed for what they asked, or because of a bound."""


class EpmdServer:
    """The embedded epmd.

    `host` is an address, or several; the default is `ERL_EPMD_ADDRESS` with loopback, or loopback
    alone. `port` is `ERL_EPMD_PORT` or 4369 by default, and 0 takes a free one (see `address`).

    It does what the epmd of OTP does with these differences: KILL, STOP and DUMP are refused, names
    must be ones that a node can have, and numbers are bounded (`MAX_NAMES`, `MAX_CONNECTIONS`,
    `REQUEST_SECONDS`). As there, only nodes of this machine can register.

    A BEAM starts an epmd of its own unless one runs already, so start this one first.

    Example::

        with EpmdServer(port=0) as server:
            print(server.address)
    """

    def __init__(self, host: str | Sequence[str] | None = None, port: int | None = None) -> None:
        if host is None:
            host = listen_addresses()
        self._hosts = (host,) if isinstance(host, str) else tuple(host)
        self._port = epmd_port() if port is None else port
        self._core: _Core | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The first address and the port it listens on. `RuntimeError` if it was not started."""
        if self._core is None:
            raise RuntimeError("the epmd server is not running: call start() first")
        return self._hosts[0], self._core.port

    def start(self) -> None:
        """Listen, and serve from a thread of its own.

        Raises `PortInUseError` if the port is taken or an address is not of this machine.
        """
        if self._core is not None:
            raise RuntimeError("the epmd server is running already")
        sockets = _listen(self._hosts, self._port)
        core = _Core(sockets)
        core.start()
        self._core = core

    def stop(self) -> None:
        """Close everything, registrations included, and end the thread. May be called twice."""
        core, self._core = self._core, None
        if core is not None:
            core.stop()

    def statistics(self) -> EpmdStatistics:
        """Return counts. `RuntimeError` if it was not started."""
        if self._core is None:
            raise RuntimeError("the epmd server is not running: call start() first")
        return self._core.statistics()

    def __enter__(self) -> EpmdServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Core:
    """A server from its start to its end, on the loop of its thread but for `start` and `stop`."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.port: int = sockets[0].getsockname()[1]
        self._sockets = sockets
        # Not what the policy says: uvloop brings nothing here, and this one runs in every thread.
        self._loop = asyncio.SelectorEventLoop()
        self._stopping: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"epmd {self.port}", daemon=True)
        self._nodes: dict[str, NodeInfo] = {}
        self._connections: set[_Connection] = set()
        self._creations = _creations()
        self._old_creations = itertools.cycle((1, 2, 3))
        self._requests = 0
        self._refused = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set_result, None)
        self._thread.join()

    def statistics(self) -> EpmdStatistics:
        # Each read is of one number; a count that changes meanwhile does no harm.
        return EpmdStatistics(
            len(self._nodes), len(self._connections), self._requests, self._refused
        )

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        servers = [
            await self._loop.create_server(lambda: _Connection(self), sock=sock, backlog=BACKLOG)
            for sock in self._sockets
        ]
        await self._stopping
        for server in servers:
            server.close()
        # One turn for connections that were accepted and are not known here yet, then for all
        # to be told of their end.
        await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.abort()
        while self._connections:  # noqa: ASYNC110 - one or two turns, which need no event
            await asyncio.sleep(0)

    # What connections ask of it

    def opened(self, connection: _Connection) -> bool:
        """Note a connection; False: it must go at once."""
        self._connections.add(connection)
        return len(self._connections) <= MAX_CONNECTIONS and not self._stopping.done()

    def closed(self, connection: _Connection, node: NodeInfo | None) -> None:
        self._connections.discard(connection)
        if node is not None:
            del self._nodes[node.name]

    def note_request(self) -> None:
        self._requests += 1

    def note_refusal(self) -> None:
        self._refused += 1

    def find(self, name: str) -> NodeInfo | None:
        return self._nodes.get(name)

    def nodes(self) -> list[NodeInfo]:
        return list(self._nodes.values())

    def full(self) -> bool:
        return len(self._nodes) >= MAX_NAMES

    def add(self, node: NodeInfo) -> int:
        """Register a node whose name is free; return the creation it gets."""
        self._nodes[node.name] = node
        return next(self._creations if node.highest_version >= 6 else self._old_creations)


class _Connection(asyncio.Protocol):
    """One connection: a request and its answer, or a registration that lasts as long as it does."""

    def __init__(self, core: _Core) -> None:
        self._core = core
        self._buffer = b""
        self._node: NodeInfo | None = None
        self._answered = False
        self._host = self._peer = "?"
        self._transport: asyncio.Transport
        self._limit: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # None if the peer was gone before we could ask.
        host, port, *_ = transport.get_extra_info("peername") or ("?", 0)
        self._host = host
        self._peer = f"{host}:{port}"
        loop = asyncio.get_running_loop()
        self._limit = loop.call_later(REQUEST_SECONDS, self._too_slow)
        if not self._core.opened(self):
            self._refuse(f"{MAX_CONNECTIONS} connections are open already")

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return  # nothing is ever sent on a registration, and a second request is not read
        self._buffer += data
        if len(self._buffer) < 2:
            return
        size = int.from_bytes(self._buffer[:2], "big")
        if size > MAX_REQUEST_BYTES:
            self._refuse(f"a request of {size} bytes, more than {MAX_REQUEST_BYTES}")
        elif len(self._buffer) >= 2 + size:
            self._take(self._buffer[2 : 2 + size])

    def connection_lost(self, exc: Exception | None) -> None:
        self._limit.cancel()
        self._core.closed(self, self._node)

    def abort(self) -> None:
        self._transport.abort()

    def _take(self, body: bytes) -> None:
        try:
            request = parse_request(body)
        except MalformedError as error:
            self._refuse(str(error))
            return
        self._core.note_request()
        self._answer(request)

    def _answer(self, request: Request) -> None:
        if isinstance(request, PortRequest):
            self._say(encode_port_answer(self._core.find(request.name)))
        elif isinstance(request, NamesRequest):
            port = self._transport.get_extra_info("sockname")[1]
            self._say(encode_names_answer(port, self._core.nodes()))
        elif isinstance(request, DebugRequest):
            self._refuse(f"{request.opcode.name} is not served by an embedded epmd")
        else:
            self._register(request)

    def _register(self, request: AliveRequest) -> None:
        node = request.node
        refusal = self._why_not(node)
        if refusal is not None:
            # That the name is taken is said by the answer; whoever asked tells its user.
            level = logging.INFO if refusal == _NAME_TAKEN else logging.WARNING
            _log.log(level, "epmd did not register %r for %s: %s", node.name, self._peer, refusal)
            self._core.note_refusal()
            self._say(encode_alive_answer(AliveAnswer(1, 99), node.highest_version))
            return
        self._node = node
        self._answered = True
        self._limit.cancel()
        creation = self._core.add(node)
        self._transport.write(encode_alive_answer(AliveAnswer(0, creation), node.highest_version))

    def _why_not(self, node: NodeInfo) -> str | None:
        if not self._is_local():
            return "only nodes of this machine can register"
        if self._core.find(node.name) is not None:
            return _NAME_TAKEN
        if self._core.full():
            return f"{MAX_NAMES} nodes are registered already"
        return None

    def _is_local(self) -> bool:
        own: str = self._transport.get_extra_info("sockname")[0]
        return is_local(self._host, own)

    def _say(self, answer: bytes) -> None:
        """Answer and close: a BEAM that looks a node up goes on only when it sees the end."""
        self._answered = True
        self._transport.write(answer)
        self._transport.close()

    def _refuse(self, reason: str) -> None:
        _log.warning("epmd closes the connection of %s: %s", self._peer, reason)
        self._core.note_refusal()
        self._answered = True
        self._transport.abort()

    def _too_slow(self) -> None:
        self._refuse(f"not done within {REQUEST_SECONDS:g} s")


def is_local(peer: str, own: str) -> bool:
    """Whether a peer is on this machine, told as OTP does: loopback, or our end's own address."""
    try:
        return peer == own or ipaddress.ip_address(peer.partition("%")[0]).is_loopback
    except ValueError:  # no address: the peer has gone
        return False


def _creations() -> Iterator[int]:
    """Yield the 32-bit numbers above 3 in turn, from a random one on.

    In turn, so that a name never gets the one it had before; at random, so that it does not after a
    restart of the server either.
    """
    count = 2**32 - _LOWEST_CREATION
    start = secrets.randbelow(count)
    for number in itertools.count(start):
        yield _LOWEST_CREATION + number % count


def _listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen at every host, at the same port: port 0 is chosen by the first."""
    sockets: list[socket.socket] = []
    for host in hosts:
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            family, _, _, _, address = socket.getaddrinfo(host, chosen, type=socket.SOCK_STREAM)[0]
            sockets.append(
                socket.create_server((str(address[0]), chosen), family=family, backlog=BACKLOG)
            )
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise PortInUseError(_cannot_listen(host, chosen, error)) from error
    return sockets


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} at {host} is in use: by an epmd, which `--epmd auto` would share, "
            f"or by another program; choose another port with ERL_EPMD_PORT"
        )
    return (
        f"an epmd cannot listen at {host}, port {port} ({error}): "
        f"give an address of this machine, and a port that this user may open"
    )
