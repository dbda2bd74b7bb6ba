"""Connections over real sockets: order, pressure, ticks, every way to end, handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

from snex_node.cluster import connection as module
from snex_node.cluster.connection import Connection, describe_error, initiate
from snex_node.cluster.door import Door
from snex_node.errors import ConnectError
from snex_node.wire import control
from snex_node.wire.control import RegSend, SendSender
from snex_node.wire.etf import Encoder
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.framing import FRAGMENT_SIZE, TICK, FrameReader, FrameWriter, Message
from snex_node.wire.handshake import (
    Acceptor,
    Completed,
    HandshakeError,
    Identity,
    Initiator,
    NameReceived,
    Peer,
    Status,
)
from snex_node.wire.terms import Atom, Pid, Reference
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.peer import listening, port_of

pytestmark = pytest.mark.both_loops

FLAGS = int(CLAIMED)
US = Pid("us@127.0.0.1", 1, 0, 1)
THEY = Pid("they@127.0.0.1", 1, 0, 1)
SEND = control.encode(SendSender(US, THEY))
NO_LINGER = struct.pack("ii", 1, 0)
term = Encoder().encode

# Which of these shows first, when a peer is gone, is up to the system and the event loop.
GONE = ("connection_closed", os.strerror(errno.EPIPE), os.strerror(errno.ECONNRESET))


class Recorder:
    """A handler that keeps what it is told, and does what a test tells it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.lost: list[str] = []
        self.on_message: Callable[[Connection, Message], None] | None = None
        self._told = asyncio.Event()

    def message_received(self, connection: Connection, message: Message) -> None:
        self.messages.append(message)
        self._told.set()
        if self.on_message is not None:
            self.on_message(connection, message)

    def connection_lost(self, connection: Connection, reason: str) -> None:
        assert connection.closed == reason
        self.lost.append(reason)
        self._told.set()

    async def wait_for(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                self._told.clear()
                await self._told.wait()

        await asyncio.wait_for(wait(), 20)

    async def wait_for_turns(self, condition: Callable[[], object]) -> None:
        """For what the handler is not told: look after each turn of the loop."""

        async def wait() -> None:
            while not condition():  # noqa: ASYNC110 - there is nobody to set an event
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), 20)

    async def received(self, count: int) -> list[bytes]:
        """The payloads of the first `count` messages, when they have come."""
        await self.wait_for(lambda: len(self.messages) >= count)
        return [message.data[message.offset :] for message in self.messages]

    async def ended(self) -> str:
        """Why the connection has ended, when it has."""
        await self.wait_for(lambda: self.lost)
        [reason] = self.lost
        return reason


class Line:
    """A connection and, at the other end, a plain socket for the test."""

    def __init__(self, sock: socket.socket, raw: socket.socket, **options: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler = Recorder()
        self.connection = Connection(
            sock,
            Peer("they@127.0.0.1", 1, int(options.pop("flags", FLAGS))),
            self.handler,
            loop=self.loop,
            **options,  # type: ignore[arg-type]
        )
        self.raw = raw
        raw.setblocking(False)
        self.writer = FrameWriter(self.connection.peer.flags)
        self.reader = FrameReader(self.connection.peer.flags)

    async def give(self, *payloads: bytes) -> None:
        """Send messages to the connection, in one write."""
        await self.give_raw(b"".join(self.writer.frame(SEND, payload) for payload in payloads))

    async def give_raw(self, data: bytes) -> None:
        await asyncio.wait_for(self.loop.sock_sendall(self.raw, data), 20)

    async def take_raw(self) -> bytes:
        return await asyncio.wait_for(self.loop.sock_recv(self.raw, 1 << 20), 20)

    async def take(self, count: int) -> list[bytes]:
        """The payloads of the next messages that the connection sends."""
        found: list[bytes] = []
        while len(found) < count:
            data = await self.take_raw()
            assert data
            for message in self.reader.receive_data(data):
                assert isinstance(message, Message)
                found.append(message.data[message.offset :])
            assert self.reader.failure is None
        return found


Open = Callable[..., Line]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


@pytest.fixture
async def open_line() -> AsyncIterator[Open]:
    """A function that makes a line whose connection has started; all is closed at the end."""
    lines: list[Line] = []

    def make(
        pair: tuple[socket.socket, socket.socket] | None = None,
        *,
        start: bool = True,
        small: bool = False,
        **options: float,
    ) -> Line:
        ours, theirs = pair or socket.socketpair()
        if small:  # as little as the system allows: some 4 KiB
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        line = Line(ours, theirs, **options)
        lines.append(line)
        if start:
            line.connection.start()
        return line

    yield make
    for line in lines:
        line.connection.close("end of the test")
        line.raw.close()


class CountingSocket(socket.socket):
    """Counts the system calls that write, and refuses some."""

    def __init__(self, sock: socket.socket, refusals: Iterable[OSError] = ()) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.writes = 0
        self.refusals = iter(refusals)

    def _count(self) -> None:
        self.writes += 1
        for refusal in self.refusals:
            raise refusal

    def send(self, *arguments: Any) -> int:
        self._count()
        return super().send(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        self._count()
        return super().sendmsg(*arguments)


async def turns(count: int = 3) -> None:
    """Let the loop do what it was asked to do soon."""
    for _ in range(count):
        await asyncio.sleep(0)


def numbered(number: int, size: int = 4) -> bytes:
    return number.to_bytes(4, "big") + bytes(max(0, size - 4))


# Sending and receiving


async def test_messages_both_ways(open_line: Open) -> None:
    line = open_line()
    line.connection.send(SEND, b"one")
    line.connection.send(SEND, b"two")
    assert await line.take(2) == [b"one", b"two"]
    await line.give(b"three", b"four")
    assert await line.handler.received(2) == [b"three", b"four"]
    assert line.handler.messages[0].control == SendSender(US, THEY)


async def test_bytes_are_counted(open_line: Open) -> None:
    line = open_line()
    frame = line.writer.frame(SEND, b"payload")
    line.connection.send(SEND, b"payload")
    line.connection.tick()
    await line.take(1)
    await line.give(b"payload")
    await line.handler.received(1)
    assert line.connection.bytes_out == len(frame) + 4
    assert line.connection.bytes_in == len(frame)


async def test_bytes_that_came_with_the_handshake_are_first(open_line: Open) -> None:
    line = open_line(start=False)
    first = line.writer.frame(SEND, b"first")
    second = line.writer.frame(SEND, b"second")
    line.connection.start(first + second[:10])
    await line.give_raw(second[10:])
    assert await line.handler.received(2) == [b"first", b"second"]
    assert line.connection.bytes_in == len(first + second)


async def test_garbage_that_came_with_the_handshake(open_line: Open) -> None:
    line = open_line(start=False)
    line.connection.start(b"\0\0\0\1x")
    assert "protocol error" in await line.handler.ended()
    assert line.connection._timer is None
    assert not line.connection._reading


async def test_answers_to_one_read_leave_in_one_write(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_AFTER", 1000.0)
    ours, theirs = socket.socketpair()
    counting = CountingSocket(ours)
    line = open_line((counting, theirs))
    line.handler.on_message = lambda connection, message: connection.send(
        SEND, message.data[message.offset :]
    )
    payloads = [numbered(number) for number in range(100)]
    await line.give(*payloads)
    assert await line.take(100) == payloads
    assert counting.writes == 1


async def test_answers_that_grow_large_do_not_wait_for_the_end_of_the_read(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_AFTER", 1000.0)
    ours, theirs = socket.socketpair()
    counting = CountingSocket(ours)
    line = open_line((counting, theirs))
    writes: list[int] = []

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, bytes(50_000))
        writes.append(counting.writes)

    line.handler.on_message = answer
    await line.give(*(b"" for _ in range(12)))
    await line.take(12)
    # Five of them are 250,000 bytes, a little less than the limit.
    assert writes[:6] == [0, 0, 0, 0, 0, 1]
    assert line.connection._corked_size == 0


async def test_a_thread_that_sends_during_a_read_comes_after_what_was_sent_before(
    open_line: Open,
) -> None:
    line = open_line()

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"before")
        thread = threading.Thread(target=connection.send, args=(SEND, b"thread"))
        thread.start()
        thread.join()
        connection.send(SEND, b"after")

    line.handler.on_message = answer
    await line.give(b"")
    assert await line.take(3) == [b"before", b"thread", b"after"]


async def test_what_is_corked_is_written_by_a_tick_of_another_thread(open_line: Open) -> None:
    line = open_line()
    seen: list[bytes] = []

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"waits")
        assert connection.tick_due(0.0, 1000.0)
        thread = threading.Thread(target=connection.tick)
        thread.start()
        thread.join()
        seen.append(line.raw.recv(1000))

    line.handler.on_message = answer
    await line.give(b"")
    await line.handler.wait_for(lambda: seen)
    assert seen == [line.writer.frame(SEND, b"waits")]


async def test_frames_behind_corked_ones_that_fill_the_socket(open_line: Open) -> None:
    line = open_line(small=True)

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, numbered(1, 60_000))
        thread = threading.Thread(target=connection.send, args=(SEND, numbered(2)))
        thread.start()
        thread.join()

    line.handler.on_message = answer
    await line.give(b"")
    assert await line.take(2) == [numbered(1, 60_000), numbered(2)]


async def test_a_large_message_behind_corked_ones(open_line: Open) -> None:
    line = open_line()

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"small", "a")
        connection.send(SEND, numbered(1, 3 * FRAGMENT_SIZE), "a")
        connection.send(SEND, b"last", "a")

    line.handler.on_message = answer
    await line.give(b"")
    assert await line.take(3) == [b"small", numbered(1, 3 * FRAGMENT_SIZE), b"last"]


@pytest.mark.parametrize("flags", [FLAGS, FLAGS & ~int(Flag.FRAGMENTS)])
async def test_threads_keep_the_order_of_each_sender(open_line: Open, flags: int) -> None:
    """Small and large messages from four threads and the loop, over a line that is often full."""
    line = open_line(small=True, flags=flags)
    count, senders = 60, 4

    def send(name: str) -> None:
        choose = random.Random(name)
        head = control.encode(RegSend(US, Atom(name)))
        for number in range(count):
            size = choose.choice([4, 100, 5000, FRAGMENT_SIZE + 1, 2 * FRAGMENT_SIZE])
            line.connection.send(head, numbered(number, size), name)

    threads = [threading.Thread(target=send, args=(str(n),)) for n in range(senders)]
    for thread in threads:
        thread.start()
    send("loop")
    received: dict[str, list[int]] = defaultdict(list)
    total = 0
    while total < count * (senders + 1):
        for message in line.reader.receive_data(await line.take_raw()):
            assert isinstance(message, Message)
            assert isinstance(message.control, RegSend)
            number = int.from_bytes(message.data[message.offset :][:4], "big")
            received[str.__str__(message.control.name)].append(number)
            total += 1
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert set(received) == {"0", "1", "2", "3", "loop"}
    assert all(numbers == list(range(count)) for numbers in received.values())
    await line.handler.wait_for(lambda: line.connection.pending == 0)


async def test_two_connections_send_to_each_other_all_the_time(open_line: Open) -> None:
    ours, theirs = tcp_pair()
    one = open_line((ours, socket.socket()))
    two = open_line((theirs, socket.socket()))
    payloads = [numbered(number, 40_000 * (number % 5)) for number in range(200)]
    for payload in payloads:
        one.connection.send(SEND, payload, "a")
        two.connection.send(SEND, payload, "a")
    assert await one.handler.received(200) == payloads
    assert await two.handler.received(200) == payloads


# Pressure


async def test_a_write_that_takes_only_part(open_line: Open) -> None:
    line = open_line(small=True)
    payload = random.Random(1).randbytes(3_000_000)
    line.connection.send(SEND, payload)
    assert line.connection.pending > 2_000_000
    assert await line.take(1) == [payload]
    await line.handler.wait_for(lambda: line.connection.pending == 0)
    await turns()
    assert line.connection.bytes_out == line.reader.frames * 22 + len(payload) + len(SEND) + 1
    assert not line.connection._writing


async def test_a_flush_leaves_the_loop_its_turns(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_MOST", 100)
    ours, theirs = socket.socketpair()
    counting = CountingSocket(ours)
    line = open_line((counting, theirs))
    payload = numbered(7, 30 * FRAGMENT_SIZE)
    line.connection.send(SEND, payload)
    assert counting.writes == module._WRITES_MOST
    assert line.connection.pending > 20 * FRAGMENT_SIZE
    assert await line.take(1) == [payload]


async def test_a_full_socket_is_not_tried_for_each_message(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FULL", 1000.0)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    counting = CountingSocket(ours)
    line = open_line((counting, theirs))
    line.connection.send(SEND, bytes(60_000))
    tries = counting.writes
    for number in range(50):
        line.connection.send(SEND, numbered(number))
    assert counting.writes == tries
    assert len(await line.take(51)) == 51  # the loop writes as soon as there is room


async def test_a_peer_that_does_not_read_is_not_read_from(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HIGH_WATER", 500_000)
    line = open_line(small=True)
    connection = line.connection
    connection.send(SEND, bytes(60_000))  # a little at first: the socket is full now
    await turns()
    assert connection._writing
    assert connection._reading
    for _ in range(10):
        connection.send(SEND, bytes(60_000))
    await turns()
    assert not connection._reading
    await line.give(b"not read yet")
    await turns(20)
    assert line.handler.messages == []
    draining = asyncio.ensure_future(connection.drain())
    await turns()
    assert not draining.done()
    assert len(await line.take(11)) == 11
    await asyncio.wait_for(draining, 20)
    assert await line.handler.received(1) == [b"not read yet"]
    assert connection.pending == 0


async def test_drain_raises_when_the_connection_ends(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HIGH_WATER", 500_000)
    line = open_line(small=True)
    await asyncio.wait_for(line.connection.drain(), 1)  # nothing waits
    line.connection.send(SEND, bytes(1_000_000))
    draining = asyncio.ensure_future(line.connection.drain())
    await turns()
    assert not draining.done()
    line.connection.close("enough")
    with pytest.raises(ConnectError, match=r"was lost \(enough\) while messages") as caught:
        await asyncio.wait_for(draining, 20)
    assert (caught.value.node, caught.value.reason) == ("they@127.0.0.1", "lost")
    with pytest.raises(ConnectError):  # asked by another thread, which could not know
        await line.connection.drain()


@pytest.mark.parametrize("from_thread", [False, True])
async def test_a_peer_that_never_reads_is_given_up(
    open_line: Open, monkeypatch: pytest.MonkeyPatch, from_thread: bool
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 1_000_000)
    line = open_line(small=True)

    def send() -> None:
        for _ in range(100):
            line.connection.send(SEND, bytes(60_000))
            assert line.connection.pending <= 1_100_000

    await (asyncio.to_thread(send) if from_thread else turns())
    if not from_thread:
        send()
    reason = await line.handler.ended()
    assert reason.startswith("it does not read: 10")
    assert line.connection.pending == 0


async def test_two_connections_that_both_stopped_reading_get_on(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads again after a check in which it could not write."""
    monkeypatch.setattr(module, "HIGH_WATER", 300_000)
    ours, theirs = tcp_pair()
    pair = [open_line((sock, socket.socket()), net_ticktime=0.4) for sock in (ours, theirs)]
    payload = bytes(60_000)
    for line in pair:
        # All that the sockets take, and more than the mark.
        while line.connection.pending <= 600_000:
            line.connection.send(SEND, payload)
    sent = [line.connection.bytes_out + line.connection.pending for line in pair]
    for line, expected in zip(pair, reversed(sent)):
        await line.handler.wait_for(lambda: line.connection.bytes_in == expected)  # noqa: B023
        assert line.handler.lost == []


# The end


async def test_the_peer_closes(open_line: Open) -> None:
    line = open_line()
    await line.give(b"last words")
    line.raw.close()
    assert await line.handler.ended() == "connection_closed"
    assert len(line.handler.messages) == 1
    assert repr(line.connection) == "<Connection to they@127.0.0.1, connection_closed>"


async def test_the_peer_resets(open_line: Open) -> None:
    line = open_line(tcp_pair())
    assert repr(line.connection) == "<Connection to they@127.0.0.1>"
    line.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    line.raw.close()
    assert await line.handler.ended() == os.strerror(errno.ECONNRESET)


async def test_writing_to_a_peer_that_is_gone(open_line: Open) -> None:
    line = open_line(start=False)
    line.raw.close()
    line.connection.send(SEND, b"x")
    line.connection.send(SEND, b"y")
    assert line.handler.lost == []  # not inside of whatever is sending
    assert await line.handler.ended() == os.strerror(errno.EPIPE)
    line.connection.send(SEND, b"z")
    line.connection.flush()
    line.connection.tick()
    assert line.connection.pending == 0


async def test_the_peer_goes_while_much_waits(open_line: Open) -> None:
    line = open_line(small=True)
    line.connection.send(SEND, bytes(1_000_000))
    await turns()
    line.raw.close()
    assert await line.handler.ended() in GONE
    assert line.connection.pending == 0


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("way", ["send", "large", "flush", "tick", "corked"])
async def test_nothing_follows_a_write_that_failed(
    open_line: Open, way: str, waiting: bool
) -> None:
    """The error may pass, but half a message may have gone out."""
    ours, theirs = socket.socketpair()
    full = BlockingIOError(errno.EAGAIN, "full")
    refusals = [full, full] if waiting else []
    counting = CountingSocket(ours, [*refusals, OSError(errno.ENOBUFS, "no buffers")])
    line = open_line((counting, theirs))
    connection = line.connection
    if waiting:
        connection.send(SEND, b"waits")
        connection.flush()
    if way in ("send", "flush", "tick") and not waiting:
        connection.send(SEND, b"x") if way == "send" else connection.tick()
    elif way == "large":
        connection.send(SEND, bytes(3 * FRAGMENT_SIZE))
        connection.flush()
    elif way == "corked":
        line.handler.on_message = lambda at, message: at.send(SEND, b"x")
        await line.give(b"")
    else:
        connection.tick() if way == "tick" else connection.flush()
    assert await line.handler.ended() == "no buffers"
    connection.send(SEND, b"after")
    assert line.raw.recv(100) == b""


async def test_nothing_follows_corked_messages_that_failed(open_line: Open) -> None:
    ours, theirs = socket.socketpair()
    line = open_line((CountingSocket(ours, [OSError(errno.ENOBUFS, "no buffers")]), theirs))

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"small")
        connection.send(SEND, bytes(3 * FRAGMENT_SIZE))

    line.handler.on_message = answer
    await line.give(b"")
    assert await line.handler.ended() == "no buffers"
    assert line.raw.recv(100) == b""


async def test_an_interrupted_write_goes_on(open_line: Open) -> None:
    ours, theirs = socket.socketpair()
    line = open_line((CountingSocket(ours, [InterruptedError(), InterruptedError()]), theirs))
    line.connection.send(SEND, b"x")
    assert line.connection.pending > 0
    assert await line.take(1) == [b"x"]


async def test_a_read_that_fails_for_now(open_line: Open) -> None:
    line = open_line()
    line.connection._on_readable()  # nothing is there
    assert line.connection.closed is None


async def test_closing_tells_the_handler_once(open_line: Open) -> None:
    line = open_line()
    line.connection.close("one")
    line.connection.close("two")
    line.connection.send(SEND, b"x")
    line.connection.flush()
    line.connection.tick()
    line.connection.finish()
    line.connection.start()
    assert line.handler.lost == ["one"]
    assert line.connection.closed == "one"
    assert line.raw.recv(100) == b""


async def test_closing_while_a_read_is_handled(open_line: Open) -> None:
    line = open_line()

    def close(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"answer")
        connection.close("enough")
        connection.send(SEND, b"ignored")

    line.handler.on_message = close
    await line.give(b"one", b"two", b"three")
    assert await line.handler.ended() == "enough"
    assert len(line.handler.messages) == 1
    assert line.raw.recv(100) == b""


async def test_closing_forgets_what_waits(open_line: Open) -> None:
    line = open_line(small=True)
    line.connection.send(SEND, bytes(1_000_000))
    assert line.connection.pending
    line.connection.close("enough")
    assert line.connection.pending == 0
    assert not line.connection._queue


async def test_a_closed_connection_leaves_its_descriptor_to_others(open_line: Open) -> None:
    """Callbacks that were asked for before the end must not touch what has its number now."""
    line = open_line(small=True)
    line.connection.send(SEND, bytes(100_000))  # asks to watch for room, soon
    number = line.connection._fd
    line.connection.close("enough")
    ours, theirs = socket.socketpair()
    heirs = [ours, theirs]
    while number not in (heir.fileno() for heir in heirs):
        heirs.append(socket.socket())
    await turns()
    assert not line.loop.remove_writer(number)
    assert not line.loop.remove_reader(number)
    line.connection._watch_writable()
    line.connection._on_writable()
    assert line.handler.lost == ["enough"]
    for heir in heirs:
        heir.close()


async def test_finishing_writes_what_waits_and_then_says_so(open_line: Open) -> None:
    line = open_line(small=True)
    payload = random.Random(2).randbytes(1_000_000)
    line.connection.send(SEND, payload)
    line.connection.finish()
    line.connection.finish()
    line.connection.send(SEND, b"too late")
    line.connection.tick()
    assert await line.take(1) == [payload]
    assert await line.take_raw() == b""
    await line.give(b"still read")
    assert await line.handler.received(1) == [b"still read"]
    assert line.connection.closed is None
    line.raw.close()
    assert await line.handler.ended() == "connection_closed"


async def test_finishing_when_more_waits_than_one_turn_writes(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_MOST", 100)
    line = open_line()
    payload = numbered(7, 30 * FRAGMENT_SIZE)
    line.connection.send(SEND, payload)
    line.connection.finish()
    assert line.connection.pending
    assert await line.take(1) == [payload]
    assert await line.take_raw() == b""


async def test_finishing_when_nothing_waits(open_line: Open) -> None:
    line = open_line()
    line.connection.send(SEND, b"last")
    line.connection.finish()
    assert await line.take(1) == [b"last"]
    assert await line.take_raw() == b""


async def test_finishing_while_a_read_is_handled(open_line: Open) -> None:
    line = open_line()

    def finish(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"last")
        connection.finish()
        connection.send(SEND, b"too late")

    line.handler.on_message = finish
    await line.give(b"")
    assert await line.take(1) == [b"last"]
    assert await line.take_raw() == b""


async def test_finishing_towards_a_peer_that_is_gone(open_line: Open) -> None:
    line = open_line(start=False)

    def cork(connection: Connection, message: Message) -> None:
        connection.send(SEND, b"x")
        line.raw.close()
        connection.finish()

    line.handler.on_message = cork
    line.connection.start(line.writer.frame(SEND, b""))
    assert await line.handler.ended() in GONE


async def test_waiting_for_the_end(open_line: Open) -> None:
    line = open_line(small=True)
    given_up = asyncio.ensure_future(line.connection.wait_closed())
    waiting = [asyncio.ensure_future(line.connection.wait_closed()) for _ in range(2)]
    await turns()
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    line.connection.send(SEND, bytes(100_000))
    await line.take(1)  # room to write wakes them, and they wait on
    await turns()
    assert not any(one.done() for one in waiting)
    line.connection.close("enough")
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert not line.connection._waiters
    await asyncio.wait_for(line.connection.wait_closed(), 20)


async def test_the_end_while_one_that_waits_is_being_cancelled(open_line: Open) -> None:
    line = open_line()
    given_up = asyncio.ensure_future(line.connection.wait_closed())
    await turns()
    given_up.cancel()
    line.connection.close("enough")
    with pytest.raises(asyncio.CancelledError):
        await given_up


# What goes wrong while handling


async def test_a_handler_that_fails_is_logged_and_the_connection_goes_on(
    open_line: Open, caplog: pytest.LogCaptureFixture
) -> None:
    line = open_line()

    def answer(connection: Connection, message: Message) -> None:
        connection.send(SEND, message.data[message.offset :])
        if message.data[message.offset :] == b"bad":
            raise ValueError("oh no")

    line.handler.on_message = answer
    await line.give(b"good", b"bad", b"good again")
    assert await line.take(3) == [b"good", b"bad", b"good again"]
    [record] = caplog.records
    assert record.getMessage().startswith("they@127.0.0.1: handling SendSender(")
    assert "oh no" in caplog.text


async def test_a_handler_that_fails_at_the_end_is_logged(
    open_line: Open, caplog: pytest.LogCaptureFixture
) -> None:
    line = open_line()

    def fail(connection: Connection, reason: str) -> None:
        raise ValueError("oh no")

    line.handler.connection_lost = fail  # type: ignore[method-assign]
    line.connection.close("enough")
    assert "handling the end of the connection failed" in caplog.text
    assert "oh no" in caplog.text


async def test_unknown_control_messages_are_logged_and_skipped(
    open_line: Open, caplog: pytest.LogCaptureFixture
) -> None:
    line = open_line()
    unknown = line.writer.frame(term((99,)), b"x")
    await line.give_raw(unknown + line.writer.frame(SEND, b"after"))
    assert await line.handler.received(1) == [b"after"]
    assert caplog.messages == ["they@127.0.0.1: skipped a frame: unknown control message: {99}"]


async def test_a_broken_frame_ends_the_connection_after_what_came_before(open_line: Open) -> None:
    line = open_line()
    await line.give_raw(line.writer.frame(SEND, b"good") + b"\0\0\0\3bad")
    assert (await line.handler.ended()).startswith("protocol error: a frame that begins with 62")
    assert await line.handler.received(1) == [b"good"]


async def test_limits_are_the_readers(open_line: Open) -> None:
    line = open_line(max_frame=100)
    await line.give(bytes(100))
    assert "at most 100 are accepted" in await line.handler.ended()
    line = open_line(max_message=100_000)
    payload = line.writer.fragments(SEND, bytes(3 * FRAGMENT_SIZE))
    for _ in range(2):
        await line.give_raw(b"".join(payload.take()))
    assert "more than 100000 bytes together" in await line.handler.ended()


# Ticks


async def test_a_tick_is_written_only_when_nothing_else_is(open_line: Open) -> None:
    line = open_line(small=True)
    line.connection.tick()
    assert await line.take_raw() == TICK
    payload = random.Random(3).randbytes(300_000)
    line.connection.send(SEND, payload)
    for _ in range(10):
        line.connection.tick()  # in the middle of a frame, each of them
        line.connection.flush()
    assert await line.take(1) == [payload]
    assert line.reader.ticks == 0


async def test_when_a_tick_is_due(open_line: Open) -> None:
    connection = open_line().connection
    last = connection.last_write
    assert not connection.tick_due(last + 0.9, 1.0)
    assert connection.tick_due(last + 1.0, 1.0)
    connection.tick()
    assert connection.last_write >= last
    assert not connection.tick_due(connection.last_write, 1.0)
    connection.send(SEND, bytes(30_000_000))
    assert connection.tick_due(connection.last_write, 1.0)


async def test_ticks_are_answered_by_one_unless_we_wrote_lately(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = open_line()
    monkeypatch.setattr(module, "ECHO_AFTER", 1000.0)
    await line.give_raw(TICK * 5 + line.writer.frame(SEND, b""))
    await line.handler.received(1)
    assert line.connection.bytes_out == 0
    monkeypatch.setattr(module, "ECHO_AFTER", 0.0)
    await line.give_raw(TICK * 1000)
    assert await line.take_raw() == TICK
    await line.give_raw(line.writer.frame(SEND, b""))
    await line.handler.received(2)
    assert line.connection.bytes_out == 4


async def test_two_connections_do_not_answer_each_others_answers(open_line: Open) -> None:
    """Two nodes of ours would else exchange ticks as fast as the line allows."""
    ours, theirs = tcp_pair()
    one = open_line((ours, socket.socket()))
    two = open_line((theirs, socket.socket()))
    two.connection.last_write -= 1000
    one.connection.tick()
    await one.handler.wait_for_turns(lambda: one.connection._reader.ticks == 1)
    two.handler.on_message = lambda connection, message: connection.send(SEND, b"back")
    for count in range(1, 6):
        one.connection.send(SEND, b"to and fro")
        await one.handler.received(count)
    assert one.connection._reader.ticks == 1
    assert two.connection._reader.ticks == 1


async def test_a_silent_peer_is_dropped_after_its_tick_time(open_line: Open) -> None:
    started = time.monotonic()
    line = open_line(net_ticktime=0.4)
    assert await line.handler.ended() == "net_tick_timeout"
    assert 0.4 <= time.monotonic() - started < 10


async def test_five_checks_without_a_byte_and_no_fewer(open_line: Open) -> None:
    line = open_line(net_ticktime=4000)
    connection = line.connection
    for number in range(4):
        for _ in range(4):
            connection._on_check()
            assert connection.closed is None
        # A single byte of a large frame is a sign of life.
        await line.give_raw(b"\0")
        await line.handler.wait_for_turns(lambda: connection.bytes_in == number + 1)  # noqa: B023
    for _ in range(4):
        connection._on_check()
    assert connection.closed is None
    connection._on_check()
    assert line.handler.lost == ["net_tick_timeout"]


async def test_silence_does_not_count_while_we_do_not_read(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HIGH_WATER", 100_000)
    line = open_line(small=True, net_ticktime=4000)
    connection = line.connection
    connection.send(SEND, bytes(3_000_000))
    await turns()
    assert not connection._reading
    for _ in range(10):
        connection._on_check()
        assert not connection._reading
        await line.take_raw()  # it reads, slowly
        connection.flush()
    assert connection.closed is None
    connection._on_check()
    connection._on_check()  # nothing was written since the last one: it is time to listen
    assert connection._reading
    for _ in range(4):
        connection._on_check()
    assert line.handler.lost == ["net_tick_timeout"]


async def test_a_dead_peer_for_which_much_waits_is_dropped(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We do not read because of what waits, and each tick of the guardian says so again."""
    monkeypatch.setattr(module, "HIGH_WATER", 100_000)
    line = open_line(small=True, net_ticktime=4000)
    connection = line.connection
    connection.send(SEND, bytes(3_000_000))
    checks = 0
    while connection.closed is None:
        assert checks < 7
        connection._on_check()
        checks += 1
        connection.tick()
        await turns()
    assert checks >= 5
    assert line.handler.lost == ["net_tick_timeout"]


async def test_a_peer_that_takes_what_waits_is_kept(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing while it does, and we would not read it."""
    monkeypatch.setattr(module, "HIGH_WATER", 100_000)
    line = open_line(small=True, net_ticktime=4000)
    connection = line.connection
    connection.send(SEND, bytes(3_000_000))
    await turns()
    for _ in range(20):
        await line.take_raw()
        connection.flush()
        connection._on_check()
    assert connection.closed is None


async def test_a_peer_is_not_silent_while_we_handle_what_it_said(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN", 0.0)
    line = open_line(net_ticktime=4000)

    def check_soon(connection: Connection, message: Message) -> None:
        line.loop.call_soon(connection._on_check)

    line.handler.on_message = check_soon
    await line.give(*map(numbered, range(20)))
    assert len(await line.handler.received(20)) == 20
    assert line.connection.closed is None


# Turns


async def test_answers_do_not_wait_for_slow_ones(open_line: Open) -> None:
    """Ten callers, 20 ms each: the first answer leaves before the second request is begun."""
    line = open_line()
    arrived: list[int] = []

    def answer(connection: Connection, message: Message) -> None:
        with contextlib.suppress(BlockingIOError):
            arrived.append(len(line.raw.recv(1 << 16)))
        time.sleep(0.02)
        connection.send(SEND, numbered(len(line.handler.messages)))

    line.handler.on_message = answer
    await line.give(*map(numbered, range(10)))
    await line.handler.received(10)
    frame = len(line.writer.frame(SEND, numbered(1)))
    assert arrived == [frame] * 9


async def test_quick_answers_leave_after_a_while(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one turn, though more is to be handled."""
    monkeypatch.setattr(module, "ANSWER_AFTER", 0.0)
    monkeypatch.setattr(module, "TURN", 1000.0)
    ours, theirs = socket.socketpair()
    counting = CountingSocket(ours)
    line = open_line((counting, theirs))
    line.handler.on_message = lambda connection, message: connection.send(SEND, b"x")
    await line.give(*map(numbered, range(10)))
    await line.take(10)
    assert counting.writes == 10


async def test_others_have_their_turn(open_line: Open) -> None:
    """One peer asks for two seconds of work in one write; another waits for one answer."""
    busy, other = open_line(), open_line()

    def work(connection: Connection, message: Message) -> None:
        time.sleep(0.002)

    busy.handler.on_message = work
    other.handler.on_message = lambda connection, message: connection.send(SEND, b"answer")
    payloads = list(map(numbered, range(1000)))
    await busy.give(*payloads)
    await busy.handler.wait_for(lambda: busy.handler.messages)
    await other.give(b"question")
    assert await other.take(1) == [b"answer"]
    assert len(busy.handler.messages) < 200
    await busy.give(b"the last one")
    assert await busy.handler.received(1001) == [*payloads, b"the last one"]
    assert busy.connection._reading


async def test_what_is_left_of_a_read_when_it_is_closed(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN", 0.0)
    line = open_line()
    await line.give(*map(numbered, range(10)))
    await line.handler.received(3)
    count = len(line.handler.messages)
    line.connection.close("enough")
    await turns(20)
    assert len(line.handler.messages) == count < 10
    assert line.handler.lost == ["enough"]


async def test_a_broken_frame_behind_what_is_left(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before it is handled first, and ticks in between are answered at the end."""
    monkeypatch.setattr(module, "TURN", 0.0)
    line = open_line()
    frames = [line.writer.frame(SEND, numbered(number)) for number in range(10)]
    await line.give_raw(b"".join([*frames, TICK, b"\0\0\0\1x"]))
    assert "protocol error" in await line.handler.ended()
    assert len(line.handler.messages) == 10


async def test_nothing_is_read_while_something_is_left(
    open_line: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when what waited has been written, nor when it is time to listen."""
    monkeypatch.setattr(module, "TURN", 0.0)
    line = open_line()
    reading: list[bool] = []

    def check(connection: Connection) -> None:
        connection._on_check()
        connection._on_check()
        reading.append(connection._reading)

    def answer(connection: Connection, message: Message) -> None:
        line.loop.call_soon(check, connection)

    line.handler.on_message = answer
    await line.give(*map(numbered, range(5)))
    assert await line.handler.received(5) == list(map(numbered, range(5)))
    await line.handler.wait_for_turns(lambda: len(reading) == 5)
    assert reading == [False, False, False, False, True]
    await line.give(b"more")
    assert (await line.handler.received(6))[5] == b"more"


async def test_a_blocked_loop_does_not_drop_a_peer_that_ticks(open_line: Open) -> None:
    line = open_line(net_ticktime=0.2)
    line.raw.setblocking(True)
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.03):
            line.raw.sendall(TICK)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        for _ in range(3):
            time.sleep(0.3)  # noqa: ASYNC251 - as user code does
            await turns()
        heard = line.connection.bytes_in
        await line.handler.wait_for_turns(lambda: line.connection.bytes_in > heard)
    finally:
        stop.set()
        await asyncio.to_thread(ticking.join)
    assert line.connection.closed is None


# Reading


async def test_bulk_is_read_in_large_pieces_and_the_rest_in_small_ones(open_line: Open) -> None:
    line = open_line()
    sizes = set()
    line.handler.on_message = lambda connection, message: sizes.add(connection._read_size)
    bulk = [bytes(60_000)] * 100
    await asyncio.gather(line.give(*bulk), line.handler.received(100))
    await line.give(b"small")
    await line.handler.received(101)
    assert sizes == {module._READ_SMALL, module._READ_LARGE}
    assert line.connection._read_size == module._READ_SMALL


# Threads and loops that end


def test_sending_when_the_loop_is_closed() -> None:
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

    async def make() -> Connection:
        peer = Peer("they@127.0.0.1", 1, FLAGS)
        return Connection(ours, peer, Recorder(), loop=asyncio.get_running_loop())

    connection = loop.run_until_complete(make())
    loop.close()
    connection.send(SEND, bytes(1_000_000))
    assert connection.pending
    theirs.close()
    connection.flush()
    connection.tick()
    assert connection.pending == 0
    ours.close()


# Handshakes

A = Identity("a@127.0.0.1", 11)
B = Identity("b@127.0.0.1", 22)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    sockets = socket.socketpair()
    for sock in sockets:
        sock.setblocking(False)
    yield sockets
    for sock in sockets:
        sock.close()


Pair = tuple[socket.socket, socket.socket]


def saying(
    status: Status, name: str | None = None, creation: int | None = None
) -> Callable[[NameReceived], tuple[Status, str | None, int | None]]:
    return lambda event: (status, name, creation)


async def accept(
    sock: socket.socket,
    identity: Identity,
    cookie: str,
    decide: Callable[[NameReceived], tuple[Status, str | None, int | None]],
    timeout: float = 20.0,
) -> Completed:
    """Do the accepting side's handshake as a node does it. Raises `HandshakeError`."""
    done: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()

    class Visit:
        acceptor = Acceptor(identity, cookie, random.getrandbits(32))

        def decide(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
            return decide(event)

        def confirm(self) -> None:
            pass

        def succeeded(self, sock: socket.socket, completed: Completed) -> None:
            sock.close()
            done.set_result(completed)

        def failed(self, error: HandshakeError) -> None:
            done.set_exception(error)

    door = Door(Visit, lambda: timeout)
    door.enter(sock.dup(), ("they", 1))
    return await done


async def both(
    one: asyncio.Future[Completed] | Any, two: asyncio.Future[Completed] | Any
) -> list[Completed | BaseException]:
    return await asyncio.wait_for(asyncio.gather(one, two, return_exceptions=True), 20)


@pytest.mark.parametrize("status", [Status.OK, Status.OK_SIMULTANEOUS, Status.ALIVE])
async def test_a_handshake(pair: Pair, status: Status) -> None:
    done_a, done_b = await both(
        initiate(pair[0], A, "secret", B.name), accept(pair[1], B, "secret", saying(status))
    )
    assert done_a == Completed(Peer(B.name, 22, FLAGS), A.name, 11, b"")
    assert done_b == Completed(Peer(A.name, 11, FLAGS), B.name, 22, b"")


async def test_a_handshake_that_gives_a_name(pair: Pair) -> None:
    nameless = Identity("127.0.0.1", 0, CLAIMED | Flag.NAME_ME)
    done_a, done_b = await both(
        initiate(pair[0], nameless, "secret", B.name),
        accept(pair[1], B, "secret", saying(Status.NAMED, "word@127.0.0.1", 33)),
    )
    assert isinstance(done_a, Completed)
    assert isinstance(done_b, Completed)
    assert (done_a.name, done_a.creation) == ("word@127.0.0.1", 33)
    assert done_b.peer == Peer("word@127.0.0.1", 33, FLAGS)


@pytest.mark.parametrize("status", [Status.NOK, Status.NOT_ALLOWED])
async def test_a_handshake_that_is_refused(pair: Pair, status: Status) -> None:
    failures = await both(
        initiate(pair[0], A, "secret", B.name), accept(pair[1], B, "secret", saying(status))
    )
    assert [getattr(failure, "reason", failure) for failure in failures] == [status.value] * 2


async def test_a_handshake_with_different_cookies(pair: Pair) -> None:
    connecting = asyncio.ensure_future(initiate(pair[0], A, "secret", B.name))
    with pytest.raises(HandshakeError, match=r"the cookie of a@127\.0\.0\.1 differs") as caught:
        await accept(pair[1], B, "other", saying(Status.OK))
    assert caught.value.reason == "cookie"
    pair[1].close()
    with pytest.raises(HandshakeError, match="when it saw our digest") as caught:
        await connecting
    assert caught.value.reason == "cookie"


async def test_bytes_behind_the_handshake_are_handed_over(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(accept(pair[1], B, "secret", saying(Status.OK)))
    side = Initiator(A, "secret", 5, peer_name=B.name)
    await loop.sock_sendall(pair[0], side.data_to_send())
    while not (reply := side.data_to_send()):
        side.receive_data(await loop.sock_recv(pair[0], 100))
    await loop.sock_sendall(pair[0], reply + b"more")
    assert (await asyncio.wait_for(accepting, 20)).trailing == b"more"


async def test_a_handshake_that_stalls(pair: Pair) -> None:
    await asyncio.get_running_loop().sock_sendall(pair[0], b"\0")
    with pytest.raises(HandshakeError, match=r"not done within 0\.05 s") as caught:
        await accept(pair[1], B, "secret", saying(Status.OK), timeout=0.05)
    assert caught.value.reason == "timeout"
    await asyncio.get_running_loop().sock_sendall(pair[1], b"\0\3s")
    with pytest.raises(HandshakeError, match=r"not done within 0\.05 s"):
        await initiate(pair[0], A, "secret", B.name, timeout=0.05)


async def test_an_attempt_that_was_given_up_answers_nothing(pair: Pair) -> None:
    """Not even that the connection which the peer has is dead: it is the one that stays."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(pair[1], b"\0\6salive")
    with pytest.raises(HandshakeError) as caught:
        await initiate(pair[0], A, "secret", B.name, wanted=lambda: False)
    assert caught.value.reason == "crossed"
    name = await loop.sock_recv(pair[1], 1000)
    assert len(name) == 2 + int.from_bytes(name[:2], "big")
    with pytest.raises(BlockingIOError):
        pair[1].recv(100)


async def test_a_peer_that_closes_during_the_handshake(pair: Pair) -> None:
    await asyncio.get_running_loop().sock_sendall(pair[0], b"\0")
    pair[0].close()
    with pytest.raises(HandshakeError, match=r"closed the connection .*wait_name") as caught:
        await accept(pair[1], B, "secret", saying(Status.OK))
    assert caught.value.reason == "closed"


async def test_a_peer_that_resets_during_the_handshake() -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    theirs.close()
    with ours, pytest.raises(HandshakeError) as caught:
        await initiate(ours, A, "secret", B.name)
    assert caught.value.reason == "closed"
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_garbage_instead_of_a_handshake(pair: Pair) -> None:
    await asyncio.get_running_loop().sock_sendall(pair[0], b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeError, match="does not speak the Erlang") as caught:
        await accept(pair[1], B, "secret", saying(Status.OK))
    assert caught.value.reason == "garbage"


async def test_a_refusal_reaches_the_peer_and_its_reason_the_caller(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    side = Initiator(Identity(B.name, 1), "secret", 5, peer_name=B.name)
    await loop.sock_sendall(pair[0], side.data_to_send())
    with pytest.raises(HandshakeError, match="which is our own name"):
        await accept(pair[1], B, "secret", saying(Status.OK))
    assert await loop.sock_recv(pair[0], 100) == b"\0\4snok"


async def test_a_refusal_that_cannot_be_written_keeps_its_reason(pair: Pair) -> None:
    side = Initiator(Identity(B.name, 1), "secret", 5, peer_name=B.name)
    await asyncio.get_running_loop().sock_sendall(pair[0], side.data_to_send())
    pair[0].close()
    with pytest.raises(HandshakeError, match="which is our own name"):
        await accept(pair[1], B, "secret", saying(Status.OK))


def test_errors_of_the_system_in_its_words() -> None:
    assert describe_error(OSError(errno.EPIPE, "Broken pipe")) == "Broken pipe"
    assert describe_error(OSError("something")) == "something"


# A real BEAM


async def connect(beam: Beam, epmd: RealEpmd) -> tuple[socket.socket, Completed]:
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", await port_of(beam, epmd.port)))
    us = Identity(f"c{random.randrange(10**9)}@127.0.0.1", 77)
    return sock, await initiate(sock, us, beam.cookie, beam.name)


def begin(sock: socket.socket, done: Completed) -> tuple[Connection, Recorder]:
    handler = Recorder()
    connection = Connection(sock, done.peer, handler, loop=asyncio.get_running_loop())
    connection.start(done.trailing)
    return connection, handler


@pytest.mark.interop
async def test_a_connection_to_a_beam(beam: Beam, epmd: RealEpmd) -> None:
    sock, done = await connect(beam, epmd)
    connection, handler = begin(sock, done)
    us = Pid(done.name, 1, 0, done.creation)
    echo = """
        spawn(fn ->
          loop = fn loop -> receive do {from, data} -> send(from, data); loop.(loop) end end
          loop.(loop)
        end)
        """
    pid = await beam.eval(echo)
    assert isinstance(pid, Pid)
    sizes = [1, 3_000_000, 10, FRAGMENT_SIZE, 500_000, 0]
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    for payload in payloads:
        connection.send(control.encode(SendSender(us, pid)), term((us, payload)), us)
    assert await handler.received(len(sizes)) == [term(payload) for payload in payloads]
    await beam.eval("Node.disconnect(node)", node=Atom(done.name))
    assert await handler.ended() == "connection_closed"


@pytest.mark.interop
async def test_a_connection_from_a_beam(beam: Beam, epmd: RealEpmd) -> None:
    us = Identity(f"d{random.randrange(10**9)}@127.0.0.1", 78)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        async with listening(us, epmd.port, server.getsockname()[1]):
            source = "send({:name, node}, :hello); Node.list(:hidden)"
            evaluating = asyncio.ensure_future(beam.eval(source, node=Atom(us.name)))
            sock, _ = await asyncio.wait_for(loop.sock_accept(server), 20)
            sock.setblocking(False)
            done = await accept(sock, us, beam.cookie, saying(Status.OK))
    connection, handler = begin(sock, done)
    assert await handler.received(1) == [term(Atom("hello"))]
    await evaluating
    assert done.peer.name == beam.name
    # What we do not know ends nothing; what is no frame at a BEAM ends the connection there.
    connection.send(b"h\x01a\x63")
    assert await handler.ended() == "connection_closed"


class TestReadingAhead:
    """What comes while the loop is blocked: another thread reads it, and the loop takes it first.

    Here the test has the loop, and calls what the guardian does; nothing else has a turn meanwhile.
    """

    DEMONITOR = control.DemonitorP(THEY, US, Reference("they@127.0.0.1", 1, (1, 2, 3)))

    async def test_order_and_bytes_are_kept(self, open_line: Open) -> None:
        line = open_line()
        await asyncio.sleep(0)
        payloads = [term(n) + bytes(n) for n in range(0, 3000, 100)]
        data = b"".join(line.writer.frame(SEND, payload) for payload in payloads)
        ends = [*range(0, len(data), 777), len(data)]
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            line.raw.send(data[start:end])
            if number % 3:
                assert line.connection.look_ahead() == ([], False)
            if number % 7 == 0:
                await asyncio.sleep(0.001)
        assert await line.handler.received(len(payloads)) == payloads
        assert line.connection.bytes_in == len(data)

    async def test_signals_are_told(self, open_line: Open) -> None:
        line = open_line()
        await asyncio.sleep(0)
        frame = line.writer.frame(control.encode(self.DEMONITOR))
        line.raw.send(line.writer.frame(SEND, term(1)) + frame[:10])
        assert line.connection.look_ahead() == ([], False)
        line.raw.send(frame[10:] + line.writer.frame(SEND, term(2)))
        for _ in range(2):
            assert line.connection.look_ahead() == ([self.DEMONITOR], False)
        assert await line.handler.received(3) == [term(1), b"", term(2)]
        assert line.connection.look_ahead() == ([], False)

    async def test_what_has_been_parsed_is_looked_at_too(self, open_line: Open) -> None:
        line = open_line()
        seen: list[object] = []

        def on_message(connection: Connection, message: Message) -> None:
            if len(line.handler.messages) == 1:
                time.sleep(2 * module.TURN)
            seen.append(connection.look_ahead().signals)

        line.handler.on_message = on_message
        frame = line.writer.frame(control.encode(self.DEMONITOR))
        await line.give_raw(frame.join(line.writer.frame(SEND, term(n)) for n in range(2)))
        await line.handler.received(3)
        assert seen == [[self.DEMONITOR]] * 3

    async def test_a_frame_that_was_begun(self, open_line: Open) -> None:
        line = open_line()
        frame = line.writer.frame(control.encode(self.DEMONITOR))
        await line.give_raw(frame[:20])
        await line.handler.wait_for_turns(lambda: line.connection.bytes_in == 20)
        line.raw.send(frame[20:])
        assert line.connection.look_ahead() == ([self.DEMONITOR], False)

    async def test_the_end(self, open_line: Open) -> None:
        line = open_line()
        await line.give(term(1))
        line.raw.close()
        assert line.connection.look_ahead() == ([], True)
        assert line.connection.look_ahead() == ([], True)
        assert await line.handler.received(1) == [term(1)]
        assert await line.handler.ended() == "connection_closed"
        assert line.connection.look_ahead() == ([], True)

    async def test_a_failure(self, open_line: Open) -> None:
        ours, theirs = tcp_pair()
        line = open_line((ours, theirs))
        await asyncio.sleep(0)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        theirs.close()
        assert line.connection.look_ahead() == ([], True)
        assert await line.handler.ended() == os.strerror(errno.ECONNRESET)

    async def test_not_more_than_its_bound(
        self, open_line: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_AHEAD", 1000)
        line = open_line()
        await asyncio.sleep(0)
        frame = line.writer.frame(control.encode(self.DEMONITOR))
        data = b"".join(line.writer.frame(SEND, bytes(90)) for _ in range(20))
        line.raw.send(data + frame)
        assert line.connection.look_ahead() == ([], False)
        assert await line.handler.received(21) == [bytes(90)] * 20 + [b""]

    async def test_nothing_of_a_peer_that_does_not_read(
        self, open_line: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "HIGH_WATER", 10_000)
        line = open_line(small=True)
        await asyncio.sleep(0)
        line.raw.send(line.writer.frame(control.encode(self.DEMONITOR)))
        for _ in range(200):
            line.connection.send(SEND, bytes(1000))
        assert line.connection.look_ahead() == ([], False)
        await line.take(200)
        await line.handler.received(1)

    async def test_what_was_read_ahead_waits_while_reading_does(
        self, open_line: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "HIGH_WATER", 10_000)
        line = open_line(small=True)
        await asyncio.sleep(0)
        line.raw.send(line.writer.frame(SEND, term(1)))
        assert line.connection.look_ahead() == ([], False)
        for _ in range(200):
            line.connection.send(SEND, bytes(1000))
        await asyncio.sleep(0.01)
        await line.take(200)
        assert await line.handler.received(1) == [term(1)]
