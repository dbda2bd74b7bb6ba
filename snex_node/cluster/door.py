"""Who comes to a listening socket, until his handshake is done or has failed.

Anybody can open sockets, and nobody has shown a cookie here. So everything is done in callbacks of
the event loop, without a task; who says nothing costs a descriptor and a few hundred bytes. At a
limit the oldest goes, not the newest, so that who does what is expected has his turn whatever
others do; and who comes from one address cannot push out who comes from another.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from snex_node.system import forks
from snex_node.system.log_limit import SECONDS, LogLimit
from snex_node.wire.handshake import (
    Acceptor,
    Completed,
    HandshakeError,
    NameReceived,
    State,
    Status,
)

MAX_NAMELESS = 128
"""Incoming connections that may be open and not have said a name, for 7 s at the most.

A stranger who opens sockets can hold this many descriptors, with about 1 KiB each. Beyond it the
oldest goes, of the address that has the most. At 5,000 new ones a second that leaves each of them
25 ms to say its name, which takes a node less than one; and what waits to be accepted is there to
be read when it is."""

MAX_HANDSHAKES = 128
"""Incoming connections that may have said a name and not have shown the cookie, likewise.

Those two do not push out each other: half a name, or none, costs nobody who has said his."""

BACKLOG = 4096
"""Connections that the system may hold for us while our loop is busy; many allow less.

Where it holds too few, those that come while it is full try again a second later."""

ACCEPTS_A_TURN = 16
"""Connections accepted in one turn of the event loop, in about 1 ms; then others have theirs."""

ACCEPT_PAUSE = 0.5
"""Seconds of pause after the system refused to accept a connection: it may have room then."""

_log = logging.getLogger(__name__)


class Visit(Protocol):
    """What a handshake is to the one who lets others in; made when a guest says something."""

    acceptor: Acceptor

    def decide(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
        """What to answer to a name: a status, and the name and creation that go with ``NAMED``."""

    def confirm(self) -> None:
        """The guest has shown the cookie, and is not told yet. `HandshakeError` refuses him."""

    def succeeded(self, sock: socket.socket, done: Completed) -> None:
        """The handshake is done; the socket is the visit's from now on."""

    def failed(self, error: HandshakeError) -> None:
        """It has failed; the socket is closed. Not called after `succeeded`."""


class _Guest:
    """Who came in. ``line`` is where he stands, by how far he is."""

    __slots__ = ("address", "line", "share", "sock", "timer", "visit")

    def __init__(
        self, sock: socket.socket, address: tuple[Any, ...], share: bytes, line: _Line
    ) -> None:
        self.sock = sock
        self.address = address
        self.share = share
        self.line = line
        self.visit: Visit | None = None
        self.timer: asyncio.TimerHandle | None = None


class _Line:
    """Guests in the order in which they came to stand here, at most ``most`` of them."""

    __slots__ = ("_shares", "guests", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.guests: dict[_Guest, None] = {}
        self._shares: Counter[bytes] = Counter()

    def add(self, guest: _Guest) -> None:
        guest.line = self
        self.guests[guest] = None
        self._shares[guest.share] += 1

    def remove(self, guest: _Guest) -> None:
        del self.guests[guest]
        self._shares[guest.share] -= 1
        if not self._shares[guest.share]:
            del self._shares[guest.share]

    def who_goes(self) -> _Guest:
        """The oldest of the address that has the most."""
        if len(self._shares) == 1:
            return next(iter(self.guests))
        most = max(self._shares, key=self._shares.__getitem__)
        return next(guest for guest in self.guests if guest.share == most)


class Door:
    """Accepts connections on one listening socket, and does the accepting side's handshake.

    ``visit`` makes a `Visit`, ``seconds`` tells how long a handshake may take from the moment in
    which the socket was accepted. Belongs to the thread of its event loop.
    """

    def __init__(self, visit: Callable[[], Visit], seconds: Callable[[], float]) -> None:
        self._visit = visit
        self._seconds = seconds
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._nameless = _Line(MAX_NAMELESS)
        self._named = _Line(MAX_HANDSHAKES)
        self._lines = LogLimit(_log)
        self._tell: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many handshakes are not done."""
        return len(self._nameless.guests) + len(self._named.guests)

    def open(self, listener: socket.socket) -> None:
        """Let others in from now on. ``listener`` is non-blocking, and remains the caller's."""
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._on_connections)

    def close(self) -> None:
        """Let nobody in any more, and end the handshakes that are under way."""
        listener, self._listener = self._listener, None
        if listener is not None:
            if self._pause is not None:
                self._pause.cancel()
            asyncio.get_running_loop().remove_reader(listener.fileno())
        for guest in [*self._nameless.guests, *self._named.guests]:
            self._fail(guest, HandshakeError("closed", "this node stops"))
        if self._tell is not None:
            self._tell.cancel()
            self._told()

    def warning(self, message: str, *args: object) -> None:
        """Log what somebody did who has shown no cookie: the first lines of many, and a count."""
        self._lines.warning(message, *args)
        if self._lines.left_out and self._tell is None:
            self._tell = asyncio.get_running_loop().call_later(SECONDS, self._told)

    def _told(self) -> None:
        self._tell = None
        self._lines.flush()

    # --- coming in ------------------------------------------------------------------------------

    def _on_connections(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._listener is None:
                return
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                self._watch_all()
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue  # whoever came has gone
                self._refused(error)
                return
            self._enter(sock, address)

    def _refused(self, error: OSError) -> None:
        """Out of descriptors, most likely: the listening socket itself is fine."""
        self.warning("cannot accept connections: %s", _words(error))
        for line in (self._nameless, self._named):
            for _ in range((len(line.guests) + 1) // 2):
                self._give_up(line)
        self._watch_all()
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._pause = loop.call_later(ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if self._listener is not None:
            self.open(self._listener)

    def enter(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Begin with a socket that has been accepted from ``address``, which is host and port."""
        self._enter(sock, address)
        self._watch_all()

    def _enter(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        forks.keep_from_children(sock)
        sock.setblocking(False)
        guest = _Guest(sock, address, _share(sock.family, address[0]), self._nameless)
        self._join(self._nameless, guest)
        # Who waited in the queue of the system has said his name by now. Who has not is watched
        # when that queue is empty: in a flood that spares most of what a socket costs.
        self._read(guest)

    def _watch_all(self) -> None:
        for guest in self._nameless.guests:
            if guest.timer is None:
                self._watch(guest)

    def _watch(self, guest: _Guest) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(guest.sock.fileno(), self._read, guest)
        guest.timer = loop.call_later(self._seconds(), self._too_late, guest)

    def _join(self, line: _Line, guest: _Guest) -> None:
        if len(line.guests) >= line.most:
            self._give_up(line)
        line.add(guest)

    def _give_up(self, line: _Line) -> None:
        """Have one go; but he may have said what was missing since somebody looked."""
        guest = line.who_goes()
        if not self._read(guest) or guest.line is not line:
            return
        message = f"gave up its handshake for others, of which {len(line.guests)} were under way"
        self._fail(guest, HandshakeError("closed", message))

    # --- the handshake --------------------------------------------------------------------------

    def _read(self, guest: _Guest) -> bool:
        """Read what he says, and answer. False when his handshake is over."""
        try:
            data = guest.sock.recv(4096)
            if data:
                return self._heard(guest, data)
            error = _lost(guest)
        except (BlockingIOError, InterruptedError):
            return True
        except ConnectionError:
            error = _lost(guest)
        except OSError as failure:
            message = f"lost the connection in its handshake: {_words(failure)}"
            error = HandshakeError("closed", message)
        except HandshakeError as failure:
            error = failure
        self._fail(guest, error)
        return False

    def _heard(self, guest: _Guest, data: bytes) -> bool:
        visit = guest.visit
        if visit is None:
            visit = guest.visit = self._visit()
        acceptor = visit.acceptor
        try:
            events = acceptor.receive_data(data)
            while events:
                event = events.pop(0)
                if isinstance(event, Completed):
                    self._confirm(visit)
                    _write(guest)
                    self._leave(guest)
                    visit.succeeded(guest.sock, event)
                    return False
                assert isinstance(event, NameReceived)
                guest.line.remove(guest)
                self._join(self._named, guest)
                if guest.timer is None:
                    self._watch(guest)
                status, name, creation = visit.decide(event)
                events += acceptor.decide(status, name=name, creation=creation)
                if acceptor.state is State.FAILED:
                    message = f"{event.name} was refused: {status.value}"
                    raise HandshakeError(status.value, message)
        except HandshakeError:
            _write(guest)  # what he is told, if he still listens
            raise
        _write(guest)
        return True

    def _confirm(self, visit: Visit) -> None:
        try:
            visit.confirm()
        except HandshakeError:
            visit.acceptor.data_to_send()  # the word that he is accepted
            raise

    def _too_late(self, guest: _Guest) -> None:
        message = f"the handshake was not done within {self._seconds():g} s"
        self._fail(guest, HandshakeError("timeout", message))

    # --- leaving --------------------------------------------------------------------------------

    def _leave(self, guest: _Guest) -> None:
        guest.line.remove(guest)
        if guest.timer is not None:
            guest.timer.cancel()
            asyncio.get_running_loop().remove_reader(guest.sock.fileno())

    def _fail(self, guest: _Guest, error: HandshakeError) -> None:
        self._leave(guest)
        guest.sock.close()
        if error.reason not in _SETTLED:
            name = guest.visit.acceptor.name if guest.visit is not None else None
            who = f"{guest.address[0]}:{guest.address[1]}"
            who = who if name is None else f"{name} ({who})"
            self.warning("%s: refused the connection: %s", who, error)
        if guest.visit is not None:
            guest.visit.failed(error)


_SETTLED = frozenset(("nok", "alive", "crossed"))
"""Reasons that need no line: two nodes settle which of their connections stays."""


def _lost(guest: _Guest) -> HandshakeError:
    if guest.visit is not None:
        return guest.visit.acceptor.connection_lost()
    return HandshakeError("closed", "the peer closed the connection and had not said its name")


def _write(guest: _Guest) -> None:
    """A handshake is a few hundred bytes: they fit any socket, or nobody reads them."""
    assert guest.visit is not None
    data = guest.visit.acceptor.data_to_send()
    if data:
        try:
            guest.sock.send(data)
        except OSError:
            return  # the next read says that he has gone, or his time is over


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _share(family: int, host: str) -> bytes:
    """Who counts as one: an address, and of IPv6 the network, in which one host has them all."""
    if family != socket.AF_INET6:
        return host.encode()
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed if packed.startswith(b"\0" * 10) else packed[:8]
