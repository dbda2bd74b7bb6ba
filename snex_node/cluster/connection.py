"""One connection to a peer, from the handshake to the end: sockets in, messages out.

The event loop says when the socket can be read or written; reading and writing are our own calls
on a non-blocking socket, not an asyncio transport. That way every write goes through one lock and
one queue, so that any thread may send, and the guardian can go on writing (what is queued, and
ticks between frames) while user code blocks the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from snex_node.errors import ConnectError
from snex_node.system import forks, tasks
from snex_node.system.memory import LARGE, Holdings, Trimmer
from snex_node.wire.control import ControlMessage
from snex_node.wire.describe import short
from snex_node.wire.framing import (
    MAX_FRAME,
    MAX_MESSAGE,
    TICK,
    FrameReader,
    FrameWriter,
    Message,
    SendQueue,
    Skipped,
)
from snex_node.wire.handshake import (
    AliveAsked,
    Completed,
    Handshake,
    HandshakeError,
    Identity,
    Initiator,
    Peer,
)
from snex_node.wire.lookahead import MAX_HEAD, SIGNALS, Lookahead
from snex_node.wire.pieces import Payload

HANDSHAKE_TIMEOUT = 7.0
"""Seconds a handshake may take: OTP's ``net_setuptime``."""

NET_TICKTIME = 60.0
"""Default seconds of silence after which a peer is taken for lost (OTP's ``net_ticktime``)."""

HIGH_WATER = 16 * 1024 * 1024
"""Bytes waiting to be written at which we stop reading from that peer, so that it stops asking.

Large messages count as 1 MiB each (`SendQueue.pressure`). Senders that can wait (`drain`) wait at
this many bytes, whatever they are part of."""

MAX_PENDING = 4 * 1024 * 1024 * 1024
"""Bytes waiting to be written at which the connection is closed: its peer no longer reads.

Requests alone do not get there, because of `HIGH_WATER`; what code here sends unasked does."""

ECHO_AFTER = 0.1
"""Seconds without a write after which a tick is answered by a tick.

A BEAM with a net_ticktime below ours shows it by ticking faster, down to every 0.25 s. Two nodes of
ours that answered each tick would send each other ticks as fast as the line allows."""

# 64 KiB stays below malloc's threshold for fresh pages, which would cost each small read about
# 10 us; a read that fills it shows a bulk transfer, and those are read 1 MiB at a time.
_READ_SMALL = 64 * 1024
_READ_LARGE = 1024 * 1024
_WRITE_MOST = 1024 * 1024

_WRITES_MOST = 4
"""Writes in a row: 200 MB, to a peer that reads as fast as we write, block the loop for 0.1 s."""

_CORK_MOST = 256 * 1024
"""Bytes of answers that gather during one read before they are written after all."""

ANSWER_AFTER = 0.002
"""Seconds for which the first answer to a read may wait for others to leave with it.

A write is 20 us, so that this many cost one per cent; what answers slowly is not to wait."""

TURN = 0.010
"""Seconds for which the messages of one read are handled before others have their turn.

What was read may ask for minutes of work, and others wait for one answer."""

MAX_AHEAD = 1024 * 1024
"""Bytes of one connection that are read while code blocks the event loop: so many tell whether its
caller has given up, and wait to be handled. What comes after them is seen later."""

_FULL = 0.005
"""Seconds for which `send` does not try to write to a socket that was full: each try would cost
100 us, and the loop or the guardian writes as soon as there is room."""

_log = logging.getLogger(__name__)


class Handler(Protocol):
    """Who is told what happens on a connection, always on the event loop."""

    def message_received(self, connection: Connection, message: Message) -> None:
        """A control message, with its payload still encoded."""

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """The connection is closed; called exactly once."""


class Connection:
    """A connection whose handshake is done. Made on the event loop's thread.

    `send`, `flush`, `tick` and `tick_due` may be called from any thread; everything else belongs to
    the event loop. ``bytes_in`` and ``bytes_out`` count what came and went, ``last_write`` is the
    time of the last write and ``since`` that of the beginning (`time.monotonic`).
    """

    closed: str | None = None
    """Why the connection has ended; None while it lives."""

    _failure: str | None = None
    _timer: asyncio.TimerHandle | None = None
    # What was read ahead, which comes first, and what the socket failed with meanwhile.
    _ahead: _Ahead | None = None
    _lost: str | None = None

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        handler: Handler,
        *,
        loop: asyncio.AbstractEventLoop,
        net_ticktime: float = NET_TICKTIME,
        max_frame: int = MAX_FRAME,
        max_message: int = MAX_MESSAGE,
        unfinished: Holdings[Connection] | None = None,
        trimmer: Trimmer | None = None,
    ) -> None:
        self.peer = peer
        self.bytes_in = self.bytes_out = 0
        self.since = self.last_write = time.monotonic()
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._handler = handler
        self._loop = loop
        self._thread = threading.get_ident()
        self._reader = FrameReader(peer.flags, max_frame=max_frame, max_message=max_message)
        self._held = _Held(unfinished, trimmer)
        self._writer = FrameWriter(peer.flags)
        # Guards all that writing needs, for a few system calls and never while calling out.
        self._lock = threading.Lock()
        self._queue = SendQueue(self._writer)
        # While a read is handled, answers gather here and leave in one write, which costs more than
        # they do. Whatever goes to the queue writes these first, so they never wait beside it.
        self._corked: list[bytes] | None = None
        self._corked_size = 0
        self._open = True
        self._finishing = self._forked = False
        self._full_until = 0.0
        # What is left of a read for the next turn of the loop; nothing more is read meanwhile.
        self._left: list[Message | Skipped] = []
        # What is handled now, to be looked at by `look_ahead`.
        self._handling: list[Message | Skipped] = []
        # Held while bytes are read, from the socket to the reader.
        self._arriving = threading.Lock()
        # These belong to the loop, but for the wish to be woken there.
        self._watch_asked = self._writing = self._reading = False
        self._read_size = _READ_SMALL
        self._net_ticktime = net_ticktime
        self._ticks_seen = 0
        self._silence = _Silence()
        self._waiters: set[asyncio.Future[None]] = set()
        forks.keep_from_children(sock)
        forks.tell_children(self._on_fork)

    def __repr__(self) -> str:
        state = f", {self.closed}" if self.closed else ""
        return f"<Connection to {self.peer.name}{state}>"

    def start(self, trailing: bytes = b"") -> None:
        """Begin to read; ``trailing`` are bytes that came with the end of the handshake."""
        if trailing:
            self._receive(trailing)
        if self.closed is None:
            self._resume_reading()
            self._timer = self._loop.call_later(self._net_ticktime / 4, self._on_check)

    @property
    def pending(self) -> int:
        """Bytes that wait to be written."""
        return self._queue.size

    # --- writing, from any thread ---------------------------------------------------------------

    def send(
        self, message: bytes, payload: Payload = b"", sender: object = None, before: bytes = b""
    ) -> None:
        """Send a control message and its payload, both bare terms.

        ``before`` is what the payload begins with, for one that is too large to be copied for that.

        Messages with the same ``sender`` (any hashable key) arrive in the order of the calls. On a
        closed connection nothing happens, as with a signal to a process that is gone. Raises
        `ValueError` for a message that fits no frame.
        """
        queue = self._queue
        with self._lock:
            if not self._open:
                return
            if queue.size or self._writer.needs_fragments(payload):
                self._uncork_locked()
                queue.add(sender, message, payload, before)
                if len(payload) >= LARGE:
                    self._held.released(len(payload))
                if queue.size > MAX_PENDING:
                    self._fail_locked(f"it does not read: {queue.size} bytes wait for it")
                elif time.monotonic() >= self._full_until:
                    self._flush_locked()
            else:
                frame = self._writer.frame(message, before + payload if before else payload)
                if self._corked is not None and threading.get_ident() == self._thread:
                    self._corked.append(frame)
                    self._corked_size += len(frame)
                    if self._corked_size < _CORK_MOST:
                        return
                    self._uncork_locked()
                else:
                    self._uncork_locked()
                    self._write_locked(frame)
        self._after_write()

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        with self._lock:
            self._uncork_locked()
            self._flush_locked()
        self._after_write()

    def tick(self) -> None:
        """Write what waits, or else a tick: either shows the peer that we live."""
        with self._lock:
            if self._corked:
                self._uncork_locked()
            elif self._queue.size:
                self._flush_locked()
            else:
                self._write_locked(TICK)
        self._after_write()

    def tick_due(self, now: float, interval: float) -> bool:
        """Whether output waits, or nothing has been written for ``interval`` seconds."""
        return bool(self._queue.size or self._corked or now - self.last_write >= interval)

    def _uncork_locked(self) -> None:
        corked = self._corked
        if corked:
            data = b"".join(corked)
            corked.clear()
            self._corked_size = 0
            self._write_locked(data)

    def _write_locked(self, data: bytes) -> None:
        """Write to a socket that nothing waits for, and queue what it does not take."""
        if not self._open:
            return
        if self._queue.size:  # what was corked before this has filled the socket
            self._queue.add_frame(None, data)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail_locked(describe_error(error))
            return
        self._wrote(sent)
        if sent < len(data):
            self._queue.put_back((data,), sent)
            self._full_until = time.monotonic() + _FULL

    def _flush_locked(self) -> None:
        """Write until the queue is empty, the socket is full, or others should have their turn."""
        queue = self._queue
        for _ in range(_WRITES_MOST):
            if not queue.size or self._failure is not None:
                break
            buffers = queue.take(_WRITE_MOST)
            try:
                sent = self._sock.sendmsg(buffers)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail_locked(describe_error(error))
                return
            self._wrote(sent)
            if not queue.put_back(buffers, sent):
                self._full_until = time.monotonic() + _FULL
                return
        if self._finishing and not queue.size:
            self._finishing = False
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _wrote(self, count: int) -> None:
        if count:
            self.bytes_out += count
            self.last_write = time.monotonic()

    def _fail_locked(self, reason: str) -> None:
        """Take no more: half a message may have gone out. `close` follows, on the loop."""
        self._failure = reason
        self._stop_sending_locked()

    def _stop_sending_locked(self) -> None:
        self._open = False
        self._finishing = False
        self._queue.clear()
        self._corked = None

    def _after_write(self) -> None:
        """What a write leaves to do on the loop, never inside of whatever is sending."""
        queue = self._queue
        if self._failure is not None:
            self._call_soon(self.close, self._failure)
        elif (
            queue.size
            and not self._watch_asked
            and (not self._writing or (queue.pressure > HIGH_WATER and self._reading))
        ):
            self._watch_asked = True
            self._call_soon(self._watch_writable)

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        # A loop that is closed has closed its connections.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    # --- writing, on the loop -------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until no more than the high-water mark waits to be written.

        Raises `ConnectError` (``lost``) when the connection ends meanwhile: what waited is lost.
        """
        while self._queue.size > HIGH_WATER and self.closed is None:
            await self._wait()
        if self.closed is not None:
            raise ConnectError(
                self.peer.name,
                "lost",
                f"the connection to {self.peer.name} was lost ({self.closed}) while messages to it "
                "waited to be written; they have not arrived",
            )

    async def _wait(self) -> None:
        """Wait until most of the queue has been written, or the connection has ended."""
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _watch_writable(self) -> None:
        self._watch_asked = False
        if self.closed is not None or not self._queue.size:
            return
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._on_writable)
        if self._queue.pressure > HIGH_WATER and self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _on_writable(self) -> None:
        with self._lock:
            self._flush_locked()
            failure, size, pressure = self._failure, self._queue.size, self._queue.pressure
            if failure is None and not size:
                # Inside of the lock: who queues something now asks to be watched again.
                self._writing = False
        if failure is not None:
            self.close(failure)
            return
        if not size:
            self._loop.remove_writer(self._fd)
        if pressure <= HIGH_WATER // 2:
            self._resume_reading()
        if size <= HIGH_WATER // 2:
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- reading --------------------------------------------------------------------------------

    def _resume_reading(self) -> None:
        if not self._reading and not self._left and self.closed is None:
            self._reading = True
            self._loop.add_reader(self._fd, self._on_readable)
            if self._ahead is not None:
                self._loop.call_soon(self._take_ahead)

    def _on_readable(self) -> None:
        with self._arriving:
            try:
                if self._ahead is None:
                    data = self._sock.recv(self._read_size)
                else:
                    data = self._read_from_ahead()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost, data = describe_error(error), b""
            messages = self._reader.receive_data(data)
        if not data:
            self.close(self._lost or "connection_closed")
            return
        if len(data) == self._read_size:
            self._read_size = _READ_LARGE
        elif len(data) < _READ_SMALL:
            self._read_size = _READ_SMALL
        self._received_data(data, messages)

    def _receive(self, data: bytes) -> None:
        with self._arriving:
            messages = self._reader.receive_data(data)
        self._received_data(data, messages)

    def _received_data(self, data: bytes, messages: list[Message | Skipped]) -> None:
        self.bytes_in += len(data)
        reader = self._reader
        if reader.unfinished != self._held.size:
            self._held.changed(self, reader.unfinished)
            if self.closed is not None:
                return
        if messages:
            self._handle(messages)
            if self._left or self.closed is not None:
                return
        self._received()

    def _received(self) -> None:
        """All messages of a read have been handled: what else there was in it."""
        reader = self._reader
        if reader.failure is not None:
            self.close(f"protocol error: {reader.failure}")
        elif reader.ticks != self._ticks_seen:
            self._ticks_seen = reader.ticks
            if time.monotonic() - self.last_write >= ECHO_AFTER:
                self.tick()

    def _handle(self, messages: list[Message | Skipped]) -> None:
        """Handle them in order; when that takes long, leave the rest for a later turn."""
        self._corked = [] if self._open else None
        self._handling = messages
        left = len(messages)
        began = written = time.monotonic() if left > 1 else 0.0
        try:
            for message in messages:
                if isinstance(message, Skipped):
                    _log.warning("%s: skipped a frame: %s", self.peer.name, message.reason)
                else:
                    try:
                        self._handler.message_received(self, message)
                    except Exception:
                        what = short(message.control)
                        _log.exception("%s: handling %s failed", self.peer.name, what)
                if self.closed is not None:
                    if self._forked:
                        forks.end_child()  # whatever forked has returned: the rest is the parent's
                    return
                left -= 1
                if not left:
                    return
                now = time.monotonic()
                if now - written >= ANSWER_AFTER:
                    written = now
                    if self._corked:
                        self._write_corked()
                if now - began >= TURN:
                    self._leave(messages[-left:])
                    return
        finally:
            self._handling = []
            with self._lock:
                self._uncork_locked()
                self._corked = None
            self._after_write()

    def _write_corked(self) -> None:
        with self._lock:
            self._uncork_locked()
        self._after_write()

    def _leave(self, messages: list[Message | Skipped]) -> None:
        self._left = messages
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Handle what is left of a read; then the next one may come."""
        if self.closed is not None:
            return
        messages, self._left = self._left, []
        self._handle(messages)
        if self._left or self.closed is not None:
            return
        self._received()
        if self._queue.pressure <= HIGH_WATER:  # else `_on_writable` goes on with it
            self._resume_reading()

    # --- reading ahead, while the loop is blocked -----------------------------------------------

    def look_ahead(self) -> Ahead:
        """Read what has come, while code blocks the event loop, and say what is in it.

        From any other thread. What is read waits for the loop, which takes it first.
        """
        with self._arriving:
            if self.closed is not None:
                return Ahead([], True)
            fresh = self._ahead is None
            ahead = self._ahead = self._ahead or _Ahead(Lookahead(*self._reader.begun(MAX_HEAD)))
            while ahead.size < MAX_AHEAD and not ahead.ended and self._reads_on:
                try:
                    ahead.add(self._sock.recv(min(_READ_SMALL, MAX_AHEAD - ahead.size)))
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    self._lost = describe_error(error)
                    ahead.ended = True
            parsed = [each.control for each in self._parsed() if isinstance(each, Message)]
            signals = [each for each in (*parsed, *ahead.signals) if isinstance(each, SIGNALS)]
            found = Ahead(signals, ahead.ended)
        if fresh:
            self._call_soon(self._take_ahead)
        return found

    @property
    def _reads_on(self) -> bool:
        return self._queue.pressure <= HIGH_WATER

    def _parsed(self) -> list[Message | Skipped]:
        """What has been read, and not been handled yet, or not quite."""
        return [*self._handling, *self._left]

    def _read_from_ahead(self) -> bytes:
        """What was read ahead, or else what there is. Raises `OSError`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.size:
            return b"".join(ahead.data)
        return self._sock.recv(self._read_size)

    def _take_ahead(self) -> None:
        """The loop has its turns again."""
        if self._ahead is not None and self._reading:
            self._on_readable()

    def _on_check(self) -> None:
        """Four times per net_ticktime: give up a peer that has been silent for five checks.

        Checks are counted, not seconds: after user code has blocked the loop for a minute there
        has been one check, and what the peer sent in the meantime is read before the next.

        While we do not read, because too much waits for the peer, it lives as long as it takes
        some of that.
        """
        silence = self._silence
        stuck = silence.check(
            self.bytes_in, self.bytes_out, reading=self._reading, busy=bool(self._left)
        )
        if silence.checks >= 4:
            self.close("net_tick_timeout")
            return
        if not self._reading and stuck:
            # Neither side writes: two nodes that both stopped reading would wait for ever.
            self._resume_reading()
        self._timer = self._loop.call_later(self._net_ticktime / 4, self._on_check)

    # --- the end --------------------------------------------------------------------------------

    def _on_fork(self) -> None:
        """This is a forked child now: the connection is the parent's."""
        self._lock = threading.Lock()  # another thread of the parent's may hold it
        self._arriving = threading.Lock()
        self._stop_sending_locked()
        self._forked = True
        self.closed = "this process was forked from the one that it belongs to"

    def finish(self) -> None:
        """Write what waits, and then say that no more will come: the peer's answer is to close.

        What is sent after this call is dropped; what comes in is still handled.
        """
        with self._lock:
            if not self._open:
                return
            self._uncork_locked()
            self._finishing = self._open
            self._open = False
            self._flush_locked()
        self._after_write()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        while self.closed is None:
            await self._wait()

    def close(self, reason: str) -> None:
        """Close at once; the handler is told ``reason``, unless it was closed before."""
        with self._lock:
            if self.closed is not None:
                return
            self.closed = reason
            self._left = []
            waiting = self._queue.size
            self._stop_sending_locked()
        if self._timer is not None:
            self._timer.cancel()
        if self._reading:
            self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._sock.close()
        with self._arriving:
            self._reader = FrameReader(self.peer.flags)  # forgets what it holds
            self._ahead = None
        self._held.changed(self, 0)
        self._held.released(waiting)
        self._wake()
        try:
            self._handler.connection_lost(self, reason)
        except Exception:
            _log.exception("%s: handling the end of the connection failed", self.peer.name)


class Ahead(NamedTuple):
    """What has come while the event loop was blocked."""

    signals: Sequence[ControlMessage]
    """Those that tell of processes that wait no more, or have ended."""

    ended: bool
    """Whether the connection has."""


class _Ahead:
    """What was read ahead, and is to be taken first."""

    __slots__ = ("_looking", "data", "ended", "signals", "size")

    def __init__(self, looking: Lookahead) -> None:
        self._looking = looking
        self.data: list[bytes] = []
        self.size = 0
        self.ended = False
        self.signals: list[ControlMessage] = []

    def add(self, data: bytes) -> None:
        """This comes next; nothing: the connection has ended."""
        self.ended = not data
        self.data.append(data)
        self.size += len(data)
        self.signals += self._looking.receive_data(data)


class _Held:
    """What the reader of a connection holds, as it was told to those who count what all hold."""

    __slots__ = ("_holdings", "_trimmer", "size")

    def __init__(self, holdings: Holdings[Connection] | None, trimmer: Trimmer | None) -> None:
        self._holdings = holdings
        self._trimmer = trimmer
        self.size = 0

    def changed(self, connection: Connection, size: int) -> None:
        """The reader of ``connection`` holds ``size`` bytes from now on."""
        before, self.size = self.size, size
        if before - size >= _READ_LARGE:
            self.released(before - size)
        if self._holdings is not None:
            self._holdings.changed(connection, size)

    def released(self, size: int) -> None:
        """So much is no longer needed."""
        if self._trimmer is not None:
            self._trimmer.released(size)


class _Silence:
    """Counts the checks in a row at which a peer had been silent."""

    __slots__ = ("_bytes_in", "_bytes_out", "checks")

    def __init__(self) -> None:
        self._bytes_in = self._bytes_out = -1
        self.checks = 0

    def check(self, bytes_in: int, bytes_out: int, *, reading: bool, busy: bool) -> bool:
        """Check; returns whether nothing has gone out since the last one.

        ``busy``: some of what has come waits to be handled, so that nothing more was read.
        """
        stuck = bytes_out == self._bytes_out
        silent = bytes_in == self._bytes_in and (reading or stuck) and not busy
        self.checks = self.checks + 1 if silent else 0
        self._bytes_in, self._bytes_out = bytes_in, bytes_out
        return stuck


def describe_error(error: OSError) -> str:
    """An `OSError` in the words of the system, without its number."""
    return error.strerror or str(error)


async def initiate(
    sock: socket.socket,
    identity: Identity,
    cookie: str,
    peer_name: str,
    *,
    timeout: float = HANDSHAKE_TIMEOUT,
    outstanding: set[int] | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Completed:
    """Do the connecting side's handshake on a connected, non-blocking socket.

    A connection of our name that the peer still has is replaced: we would not connect if ours
    lived. ``outstanding`` are the challenges of all handshakes of this node; ``wanted`` tells
    whether this connection still is. Raises `HandshakeError`, `OSError`.
    """

    others = set() if outstanding is None else outstanding
    challenge = new_challenge(others)
    try:
        handshake = Initiator(identity, cookie, challenge, peer_name=peer_name, outstanding=others)
        exchanging = tasks.start(_exchange(sock, handshake, wanted))
        return await asyncio.wait_for(exchanging, timeout)
    except asyncio.TimeoutError:
        raise HandshakeError(
            "timeout", f"the handshake was not done within {timeout:g} s"
        ) from None
    finally:
        others.discard(challenge)


def new_challenge(outstanding: set[int]) -> int:
    """A challenge for a handshake: 32 random bits, none of those ``outstanding``, and now one."""
    challenge = int.from_bytes(os.urandom(4), "big")
    while challenge in outstanding:
        challenge = int.from_bytes(os.urandom(4), "big")
    outstanding.add(challenge)
    return challenge


async def _exchange(
    sock: socket.socket, handshake: Initiator, wanted: Callable[[], bool]
) -> Completed:
    loop = asyncio.get_running_loop()
    while True:
        try:
            await _write(loop, sock, handshake)
            data = await loop.sock_recv(sock, 4096)
        except ConnectionError as error:
            raise handshake.connection_lost() from error
        if not data:
            raise handshake.connection_lost()
        if not wanted():
            # A task that is cancelled goes on for two turns of the loop (until Python 3.12). To
            # answer `alive` now would end the connection that this one gave way to.
            raise HandshakeError("crossed", "another connection stays")
        events = handshake.receive_data(data)
        while events:
            event = events.pop(0)
            if isinstance(event, Completed):
                return event
            assert isinstance(event, AliveAsked)
            events += handshake.answer_alive(True)


async def _write(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, handshake: Handshake
) -> None:
    data = handshake.data_to_send()
    if data:
        await loop.sock_sendall(sock, data)
