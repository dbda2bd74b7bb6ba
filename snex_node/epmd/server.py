"""An epmd of ours, so that a machine without Erlang works.

It is a loop over sockets: in a thread (`EpmdServer`), or as all that a process does (`daemon`). It
imports little, because that process should be small.

Source: Erlang distribution protocol, "Protocol between epmd and Nodes"; epmd(1) for who may do
what.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType

from snex_node.epmd.errors import PortInUseError
from snex_node.epmd.messages import (
    MAX_REQUEST_BYTES,
    OUR_NAME,
    AliveAnswer,
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
from snex_node.system.addresses import is_loopback, resolve
from snex_node.system.log_limit import LogLimit
from snex_node.wire.values import value_class

MAX_NAMES = 384
"""Registered nodes, each with a connection. With `MAX_UNFINISHED` they fit into the 1,024 files
that a process may have open by default."""

MAX_UNFINISHED = 512
"""Connections that are no registration: their request has not come, or their answer has not gone.

A stranger who opens sockets and says nothing holds as many at the most. Beyond it the oldest one of
the source that has most of them goes, so that a stranger pushes out his own before those of others,
and whoever sends his request when he connects is answered: also while one on this machine opens
10,000 sockets a second, each of which then stays for 51 ms."""

REQUEST_SECONDS = 10.0
"""From the acceptance of a connection to the end of everything that is not a registration. Without
it, half a request, or a client that does not read its answer, would hold a connection for ever."""

BACKLOG = 4096
"""Connections that wait to be accepted; systems have lower limits of their own. When they are full
the system drops who comes, and he tries again after a second."""

ACCEPTS_AT_ONCE = 32
"""Connections accepted before those that are open get their turn: fewer than `MAX_UNFINISHED`, so
that each is looked at before it may have to go."""

ACCEPT_PAUSE = 0.5
"""Seconds of pause after the system refused to accept a connection: it may have room then."""

_CHUNK = 4096
_LOWEST_CREATION = 4
"""0 is reserved, and 1 to 3 are what old nodes get, whose creation has two bits."""

_NAME_TAKEN = "the name is taken"
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger(__name__)


@value_class(frozen=True)
class EpmdStatistics:
    """What an `EpmdServer` holds now, and did since its start."""

    names: int
    connections: int
    requests: int
    refused: int
    """Connections closed for what they asked, or because of a bound."""


class EpmdServer:
    """An epmd in a thread of this process.

    `host` is an address, or several; the default is `ERL_EPMD_ADDRESS` with loopback, or loopback
    alone. `port` is `ERL_EPMD_PORT` or 4369 by default, and 0 takes a free one (see `address`).

    It does what the epmd of OTP does with these differences: KILL, STOP and DUMP are refused, names
    must be ones that a node can have, and numbers are bounded (`MAX_NAMES`, `MAX_UNFINISHED`,
    `REQUEST_SECONDS`). As there, only nodes of this machine can register.

    A BEAM starts an epmd of its own unless one runs already, so start this one first. Code that
    holds the interpreter's lock in one long C call holds it up: where that may happen, use a
    `Registrar`, whose epmd is a process of its own.

    Example::

        with EpmdServer(port=0) as server:
            print(server.address)
    """

    def __init__(self, host: str | Sequence[str] | None = None, port: int | None = None) -> None:
        if host is None:
            host = listen_addresses()
        self._hosts = (host,) if isinstance(host, str) else tuple(host)
        self._port = epmd_port() if port is None else port
        self._core: Core | None = None
        self._thread: threading.Thread

    @property
    def address(self) -> tuple[str, int]:
        """The first address and the port it listens on. `RuntimeError` if it was not started."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """All of them. `RuntimeError` if it was not started."""
        return self._running().addresses

    def start(self) -> None:
        """Listen, and serve from a thread of its own.

        Raises `PortInUseError` if the port is taken or an address is not of this machine.
        """
        if self._core is not None:
            raise RuntimeError("the epmd server is running already")
        self._core = Core(listen(self._hosts, self._port))
        name = f"epmd {self._core.port}"
        self._thread = threading.Thread(target=self._core.run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close everything, registrations included, and end the thread. May be called twice."""
        core, self._core = self._core, None
        if core is not None:
            core.stop()
            self._thread.join()

    def statistics(self) -> EpmdStatistics:
        """Return counts. `RuntimeError` if it was not started."""
        return self._running().statistics()

    def _running(self) -> Core:
        if self._core is None:
            raise RuntimeError("the epmd server is not running: call start() first")
        return self._core

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


class Core:
    """A server on sockets that listen, from its start to its end.

    With `linger` it ends when no node has been registered for so many seconds.
    """

    def __init__(self, sockets: Sequence[socket.socket], *, linger: float | None = None) -> None:
        self.addresses: list[tuple[str, int]] = [s.getsockname()[:2] for s in sockets]
        self.port = self.addresses[0][1]
        self._sockets = sockets
        self._linger = linger
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._stopping = False
        self._accept_again: float | None = None
        self._nodes: dict[str, NodeInfo] = {}
        self._registered: set[_Connection] = set()
        # Those that are no registration, from the oldest on, and how many each source has.
        self._unfinished: dict[_Connection, None] = {}
        self._of_source: dict[str, int] = {}
        self._creations = _creations()
        self._old_creations = itertools.cycle((1, 2, 3))
        self._idle_since = time.monotonic()
        self._requests = 0
        self._refused = 0
        # Who is refused must not hide that a node of this machine is.
        self._of_strangers = LogLimit(_log)
        self._of_nodes = LogLimit(_log)

    def stop(self) -> None:
        """Make `run` return. May be called from another thread, and when it has returned."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def statistics(self) -> EpmdStatistics:
        """Counts; from any thread."""
        # Each read is of one number; a count that changes meanwhile does no harm.
        connections = len(self._registered) + len(self._unfinished)
        return EpmdStatistics(len(self._nodes), connections, self._requests, self._refused)

    def run(self) -> None:
        """Serve until `stop` is called, or nobody needs it any more."""
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._listen()
        try:
            while not self._stopping:
                events = self._selector.select(self._pause())
                for key, mask in events:
                    key.data(mask)
                now = time.monotonic()
                self._expire(now)
                if self._accept_again is not None and now >= self._accept_again:
                    self._listen()
                if self._is_needless(now, busy=bool(events)):
                    return
        finally:
            self._close()

    def _woken(self, mask: int) -> None:
        self._wake.recv(_CHUNK)

    def _pause(self) -> float | None:
        """Seconds until there is something to do though nothing comes in."""
        times = [] if self._accept_again is None else [self._accept_again]
        if self._unfinished:
            times.append(next(iter(self._unfinished)).deadline)
        if self._linger is not None and not self._nodes:
            times.append(self._idle_since + self._linger)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _is_needless(self, now: float, *, busy: bool) -> bool:
        if self._linger is None or self._nodes:
            return False
        late = now - self._idle_since - self._linger
        # What comes at the last moment is answered, but does not keep it for ever.
        return late >= 0 and (not busy or late > self._linger)

    def _close(self) -> None:
        # First, so that those who wait to be accepted are told, and look for another one.
        for sock in self._sockets:
            sock.close()
        for connection in [*self._unfinished, *self._registered]:
            self._remove(connection)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    # Connections

    def _listen(self) -> None:
        self._accept_again = None
        for sock in self._sockets:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, partial(self._accept, sock))

    def _accept(self, listener: socket.socket, mask: int) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._make_place(error)
                return
            self._welcome(sock, address)

    def _make_place(self, error: OSError) -> None:
        """The system has no room for another connection."""
        if self._accept_again is not None:
            return  # another address was asked first in this turn
        if error.errno in _NO_ROOM and self._unfinished:
            self._refuse_oldest(f"the system has no room ({error.strerror})")
            return
        self._of_strangers.warning("epmd cannot accept a connection: %s", error)
        for sock in self._sockets:
            self._selector.unregister(sock)
        self._accept_again = time.monotonic() + ACCEPT_PAUSE

    def _welcome(self, sock: socket.socket, address: Sequence[object]) -> None:
        sock.setblocking(False)
        connection = _Connection(self, sock, str(address[0]), address[1])
        self._unfinished[connection] = None
        self._of_source[connection.source] = self._of_source.get(connection.source, 0) + 1
        self._selector.register(sock, selectors.EVENT_READ, connection.ready)
        if len(self._unfinished) > MAX_UNFINISHED:
            self._refuse_oldest(f"{MAX_UNFINISHED} others have not finished their request")
        # Most requests are there by now, and need no second look at all sockets.
        connection.ready(selectors.EVENT_READ)

    def _refuse_oldest(self, reason: str) -> None:
        most = max(self._of_source.values())
        self.refuse(next(c for c in self._unfinished if self._of_source[c.source] == most), reason)

    def _expire(self, now: float) -> None:
        while self._unfinished:
            oldest = next(iter(self._unfinished))
            if oldest.deadline > now:
                return
            self.refuse(oldest, f"not done within {REQUEST_SECONDS:g} s")

    def watch(self, connection: _Connection, events: int) -> None:
        """Call its `ready` at these events instead."""
        self._selector.modify(connection.sock, events, connection.ready)

    def refuse(self, connection: _Connection, reason: str) -> None:
        """Close a connection for what it did, or for the place it takes."""
        self._of_strangers.warning("epmd closes the connection of %s: %s", connection.peer, reason)
        self._refused += 1
        self._remove(connection)

    def closed(self, connection: _Connection) -> None:
        """It has ended, or is to end."""
        self._remove(connection)

    def _remove(self, connection: _Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._finish(connection)
        self._registered.discard(connection)
        node, connection.node = connection.node, None
        if node is not None:
            del self._nodes[node.name]
            self._idle_since = time.monotonic()
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _finish(self, connection: _Connection) -> None:
        if connection not in self._unfinished:
            return
        del self._unfinished[connection]
        left = self._of_source.pop(connection.source) - 1
        if left:
            self._of_source[connection.source] = left

    # Requests

    def answer(self, connection: _Connection, body: bytes) -> None:
        """Do what a request asks for."""
        try:
            request = parse_request(body)
        except MalformedError as error:
            self.refuse(connection, str(error))
            return
        self._requests += 1
        self._answer(connection, request)

    def _answer(self, connection: _Connection, request: Request) -> None:
        if isinstance(request, PortRequest):
            connection.say(encode_port_answer(self._find(request.name)))
        elif isinstance(request, NamesRequest):
            connection.say(encode_names_answer(self.port, self._nodes.values()))
        elif isinstance(request, DebugRequest):
            self.refuse(connection, f"{request.opcode.name} is not served by an embedded epmd")
        else:
            self._register(connection, request.node)

    def _find(self, name: str) -> NodeInfo | None:
        if name == OUR_NAME:
            return NodeInfo(OUR_NAME, self.port, extra=b"%d" % os.getpid())
        return self._nodes.get(name)

    def _register(self, connection: _Connection, node: NodeInfo) -> None:
        refusal = self._why_not(connection, node)
        if refusal is not None:
            # That the name is taken is said by the answer; whoever asked tells its user.
            self._of_nodes.log(
                logging.INFO if refusal == _NAME_TAKEN else logging.WARNING,
                "epmd did not register %r for %s: %s",
                node.name,
                connection.peer,
                refusal,
            )
            self._refused += 1
            connection.say(encode_alive_answer(AliveAnswer(1, 99), node.highest_version))
            return
        creation = next(self._creations if node.highest_version >= 6 else self._old_creations)
        self._finish(connection)
        self._registered.add(connection)
        self._nodes[node.name] = connection.node = node
        connection.keep(encode_alive_answer(AliveAnswer(0, creation), node.highest_version))

    def _why_not(self, connection: _Connection, node: NodeInfo) -> str | None:
        if not connection.is_local():
            return "only nodes of this machine can register"
        if self._find(node.name) is not None:
            return _NAME_TAKEN
        if len(self._nodes) >= MAX_NAMES:
            return f"{MAX_NAMES} nodes are registered already"
        return None


class _Connection:
    """One connection: a request and its answer, or a registration that lasts as long as it does."""

    def __init__(self, core: Core, sock: socket.socket, host: str, port: object) -> None:
        self.sock = sock
        self.peer = f"{host}:{port}"
        self.source = _source(host)
        self.deadline = time.monotonic() + REQUEST_SECONDS
        self.node: NodeInfo | None = None
        self.closed = False
        self._core = core
        self._host = host
        self._buffer = b""
        self._answer: bytes | None = None

    def ready(self, mask: int) -> None:
        """Read or write what can be; whatever goes wrong, only this connection ends."""
        if self.closed:
            return  # by one that was handled before it in this turn
        try:
            if mask & selectors.EVENT_WRITE:
                self._write()
            else:
                self._read()
        except BlockingIOError:
            return
        except OSError:
            self._core.closed(self)
        except Exception as error:
            self._core.refuse(self, f"serving it failed: {error!r}")

    def say(self, answer: bytes) -> None:
        """Answer and close: a BEAM that looks a node up goes on only when it sees the end."""
        self._answer = answer
        try:
            self._write()
        except BlockingIOError:
            pass
        if not self.closed:
            self._core.watch(self, selectors.EVENT_WRITE)

    def keep(self, answer: bytes) -> None:
        """Answer and stay open. Six bytes always fit where nothing was written before."""
        self.sock.send(answer)

    def is_local(self) -> bool:
        """Whether the other side is on this machine."""
        return is_local(self._host, str(self.sock.getsockname()[0]))

    def _read(self) -> None:
        data = self.sock.recv(_CHUNK)
        if not data:
            self._core.closed(self)
        elif self.node is None:  # nothing is ever said on a registration
            self._buffer += data
            self._take()

    def _take(self) -> None:
        if len(self._buffer) < 2:
            return
        size = int.from_bytes(self._buffer[:2], "big")
        if size > MAX_REQUEST_BYTES:
            self._core.refuse(self, f"a request of {size} bytes, more than {MAX_REQUEST_BYTES}")
        elif len(self._buffer) >= 2 + size:
            self._core.answer(self, self._buffer[2 : 2 + size])

    def _write(self) -> None:
        assert self._answer is not None
        while self._answer:
            self._answer = self._answer[self.sock.send(self._answer) :]
        self._core.closed(self)


def is_local(peer: str, own: str) -> bool:
    """Whether a peer is on this machine, told as OTP does: loopback, or our end's own address."""
    return peer == own or is_loopback(peer)


def _source(host: str) -> str:
    """What shares one part of the room: an IPv4 address, or the network of an IPv6 address.

    Whoever has one of its addresses has the 2^64 of its network.
    """
    if ":" not in host:
        return host
    try:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex()
    except (OSError, ValueError):
        return host


def _creations() -> Iterator[int]:
    """Yield the 32-bit numbers above 3 in turn, from a random one on.

    In turn, so that a name never gets the one it had before; at random, so that it does not after a
    restart of the server either.
    """
    count = 2**32 - _LOWEST_CREATION
    # Not by `secrets`, which would bring 4 MB of libraries for it.
    start = int.from_bytes(os.urandom(8), "big") % count
    for number in itertools.count(start):
        yield _LOWEST_CREATION + number % count


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen at every host, at the same port: port 0 is chosen by the first.

    Raises `PortInUseError` if it is taken or an address is not of this machine.
    """
    return _each(hosts, port, lambda sock: sock.listen(BACKLOG))


def check_free(hosts: Sequence[str], port: int) -> None:
    """Raise the `PortInUseError` that `listen` would, without listening."""
    for sock in _each(hosts, port, lambda sock: None):
        sock.close()


def _each(
    hosts: Sequence[str], port: int, then: Callable[[socket.socket], None]
) -> list[socket.socket]:
    """Bind a socket to every host."""
    sockets: list[socket.socket] = []
    for host in hosts:
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            family, address = resolve(host, chosen)[0]
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # IPv4 addresses have sockets of their own
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            then(sock)
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise PortInUseError(_cannot_listen(host, chosen, error)) from error
    return sockets


def _cannot_listen(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"port {port} at {host} is in use: by an epmd, which `--epmd auto` would share, "
            f"or by another program; choose another port with ERL_EPMD_PORT"
        )
    return (
        f"an epmd cannot listen at {host}, port {port} ({error}): "
        f"give an address of this machine, and a port that this user may open"
    )
