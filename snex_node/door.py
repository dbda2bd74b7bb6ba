"""Who comes to a listening socket, up to where the first message is there.

Anybody can open sockets, and nobody has shown a cookie here. So who says nothing costs a descriptor
and a few hundred bytes, no task; at the limit the oldest goes, not the newest, so that who does
what is expected always has his turn; and who comes from one address cannot push out who comes from
another.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from snex_node.log_limit import SECONDS, LogLimit

MAX_HANDSHAKES = 128
"""Incoming connections that may be in their handshake at one time, 7 s each at the most.

A stranger who opens sockets and says nothing can hold this many descriptors; with the beginning of
a handshake, about 10 KiB each. Beyond it the oldest unfinished one goes, of the address that has
the most: of those that have said nothing, if there are any, else of those that have not finished
their first message. At 10,000 new ones a second, that leaves each of them 13 ms to say its name,
which takes a node less than one."""

BACKLOG = 4096
"""Connections that the system may hold for us while our loop is busy; many allow less.

Where it holds too few, those that come while it is full try again a second later."""

ACCEPTS_A_TURN = 16
"""Connections accepted in one turn of the event loop: under 1 ms, then others have theirs."""

ACCEPT_PAUSE = 0.5
"""Seconds of pause after the system refused to accept a connection: it may have room then."""

MAX_FIRST = 2 + 1024
"""Bytes of a first message, with its length, that are waited for before it is looked at."""

_log = logging.getLogger(__name__)


class Guest:
    """Who came in, until his handshake is done or has failed."""

    __slots__ = ("address", "deadline", "door", "received", "share", "sock", "task", "timer")

    def __init__(self, door: Door, sock: socket.socket, address: str, share: bytes) -> None:
        self.door = door
        self.sock = sock
        self.address = address
        """Host and port, for messages."""
        self.share = share
        self.received = b""
        """What he has said, which the handshake begins with."""
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.deadline = 0.0
        """When his handshake must be done, by the clock of the event loop."""

    @property
    def stage(self) -> int:
        """0: has said nothing. 1: not his first message. 2: his handshake goes on."""
        return 2 if self.task is not None else 1 if self.received else 0


Welcome = Callable[[Guest], Coroutine[Any, Any, None]]
"""Does the handshake of a guest whose first message is there, and closes his socket or keeps it."""


class Door:
    """Accepts connections on one listening socket and hands them over when they have spoken.

    ``run`` starts the task of a handshake; ``seconds`` tells how long one may take, from the
    moment in which the socket was accepted. Belongs to the thread of its event loop.
    """

    def __init__(
        self,
        welcome: Welcome,
        run: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        seconds: Callable[[], float],
    ) -> None:
        self._welcome = welcome
        self._run = run
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        # In the order in which they came.
        self._guests: dict[Guest, None] = {}
        self._shares: Counter[bytes] = Counter()
        self._lines = LogLimit(_log)
        self._flush: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._guests)

    def open(self, listener: socket.socket) -> None:
        """Let others in from now on. ``listener`` is non-blocking, and remains the caller's."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._on_connections)

    def close(self) -> None:
        """Let nobody in any more; handshakes under way go on."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(listener.fileno())
        for guest in [guest for guest in self._guests if guest.task is None]:
            self._leave(guest)

    def tell(self) -> None:
        """Log how many lines were left out, if there were any."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._lines.flush()

    def left(self, guest: Guest) -> None:
        """The handshake of ``guest`` is over, one way or the other; his socket is the caller's."""
        if guest not in self._guests:
            return
        del self._guests[guest]
        self._shares[guest.share] -= 1
        if not self._shares[guest.share]:
            del self._shares[guest.share]
        if guest.timer is not None:
            guest.timer.cancel()

    def warning(self, message: str, *args: object) -> None:
        """Log what somebody did who has shown no cookie: the first lines of many, and a count."""
        self._lines.warning(message, *args)
        if self._lines.left_out and self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(SECONDS, self.tell)

    # --- coming in ------------------------------------------------------------------------------

    def _on_connections(self) -> None:
        listener = self._listener
        if listener is None:
            return
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue  # whoever came has gone
                self._refused(error)
                return
            self._enter(sock, address)

    def _refused(self, error: OSError) -> None:
        """Out of descriptors, most likely: the listening socket itself is fine."""
        self.warning("cannot accept connections: %s", error.strerror or str(error))
        for _ in range((len(self._guests) + 1) // 2):
            self._make_room()
        assert self._listener is not None
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._on_connections)

    def _enter(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        sock.setblocking(False)
        guest = Guest(self, sock, f"{address[0]}:{address[1]}", _share(sock.family, address[0]))
        self._guests[guest] = None
        self._shares[guest.share] += 1
        if len(self._guests) > MAX_HANDSHAKES:
            self._make_room()
        seconds = self._seconds()
        guest.deadline = self._loop.time() + seconds
        # Who waited in the queue of the system has said his name by now.
        if guest in self._guests and not self._listen_to(guest):
            self._loop.add_reader(sock.fileno(), self._listen_to, guest)
            guest.timer = self._loop.call_later(seconds, self._too_late, guest)

    def _listen_to(self, guest: Guest) -> bool:
        """Read; True when there is nothing more to wait for here."""
        try:
            data = guest.sock.recv(MAX_FIRST - len(guest.received))
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:
            data = b""
        except OSError as error:
            self._refuse(guest, f"lost the connection in its handshake: {error.strerror}")
            return True
        if not data:
            self._refuse(guest, "the peer closed the connection before it had said its name")
            return True
        guest.received += data
        if not _is_whole(guest.received):
            return False
        self._forget_reader(guest)
        guest.task = self._run(self._welcome(guest))
        guest.task.add_done_callback(lambda task: self._ended(guest, task))
        return True

    def _ended(self, guest: Guest, task: asyncio.Task[None]) -> None:
        """Nothing in a task that is cancelled before it begins is run."""
        self.left(guest)
        if task.cancelled():
            guest.sock.close()

    def _too_late(self, guest: Guest) -> None:
        self._refuse(guest, f"it has not said its name within {self._seconds():g} s")

    # --- leaving --------------------------------------------------------------------------------

    def _refuse(self, guest: Guest, why: str) -> None:
        self.warning("%s: refused the connection: %s", guest.address, why)
        self._leave(guest)

    def _make_room(self) -> None:
        """The oldest goes, of the address that has the most, and of those that said least."""
        most = max(self._shares, key=self._shares.__getitem__)
        chosen: Guest | None = None
        for guest in self._guests:
            if guest.share == most and (chosen is None or guest.stage < chosen.stage):
                chosen = guest
                if not guest.stage:
                    break
        assert chosen is not None
        self.warning(
            "%s: gave up its handshake, which was not done, for another: %d were under way",
            chosen.address,
            len(self._guests),
        )
        self._leave(chosen)

    def _leave(self, guest: Guest) -> None:
        self.left(guest)
        if guest.task is not None:
            guest.task.cancel()  # it closes the socket when it has let go of it
            return
        self._forget_reader(guest)
        guest.sock.close()

    def _forget_reader(self, guest: Guest) -> None:
        self._loop.remove_reader(guest.sock.fileno())


def _is_whole(received: bytes) -> bool:
    """Whether a first message is there, or what cannot be one."""
    if len(received) < 2:
        return False
    return len(received) >= min(2 + int.from_bytes(received[:2], "big"), MAX_FIRST)


def _share(family: int, host: str) -> bytes:
    """Who counts as one: an address, and of IPv6 the network, in which one host has them all."""
    if family != socket.AF_INET6:
        return host.encode()
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed if packed.startswith(b"\0" * 10) else packed[:8]
