"""The door: handshakes of those who come, who goes when they are too many, and what is logged."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from snex_node.cluster import door as door_module
from snex_node.cluster.door import Door, _share
from snex_node.system.log_limit import LINES
from snex_node.wire.handshake import (
    Acceptor,
    Completed,
    HandshakeError,
    Identity,
    Initiator,
    NameReceived,
    Status,
)
from tests.support.peer import shake
from tests.support.waiting import until

US = Identity("us@127.0.0.1", 22)
THEM = Identity("they@127.0.0.1", 11)
COOKIE = "secret"
HALF_A_NAME = b"\0\x15N"
LOGGER = "snex_node.cluster.door"

pytestmark = pytest.mark.both_loops


class Visit:
    """Tells what became of a handshake."""

    def __init__(self, status: Status = Status.OK, refuse: HandshakeError | None = None) -> None:
        self.acceptor = Acceptor(US, COOKIE, 12345)
        self.outcome: asyncio.Future[Completed | HandshakeError] = (
            asyncio.get_running_loop().create_future()
        )
        self.sock: socket.socket | None = None
        self._status = status
        self._refuse = refuse

    def decide(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
        return self._status, None, None

    def confirm(self) -> None:
        if self._refuse is not None:
            raise self._refuse

    def succeeded(self, sock: socket.socket, done: Completed) -> None:
        self.sock = sock
        self.outcome.set_result(done)

    def failed(self, error: HandshakeError) -> None:
        self.outcome.set_result(error)


class House:
    """A door on a listening socket, and whoever was let in."""

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.seconds = 20.0
        self.make: Callable[[], Visit] = Visit
        self.door = Door(self._visit, lambda: self.seconds)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)

    def _visit(self) -> Visit:
        self.visits.append(self.make())
        return self.visits[-1]

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.listener.getsockname()
        return address

    async def come(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)

    async def outcome(self) -> Completed | HandshakeError:
        """What became of the handshake of the first one who said something."""
        await until(lambda: self.visits)
        return await asyncio.wait_for(self.visits[0].outcome, 20)

    async def error(self) -> HandshakeError:
        error = await self.outcome()
        assert isinstance(error, HandshakeError)
        return error

    def close(self) -> None:
        self.door.close()
        self.listener.close()
        for visit in self.visits:
            if visit.sock is not None:
                visit.sock.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    made.door.open(made.listener)
    yield made
    made.close()


def enter(house: House, address: str = "192.0.2.1") -> socket.socket:
    """Somebody comes from this address; returns his socket."""
    ours, theirs = socket.socketpair()
    house.door.enter(ours, (address, 1))
    theirs.settimeout(20)
    return theirs


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class TestHandshakes:
    async def test_who_knows_the_cookie_gets_in(self, house: House) -> None:
        reader, writer = await house.come()
        done = await shake(Initiator(THEM, COOKIE, 1, peer_name=US.name), reader, writer)
        assert done.peer.name == US.name
        outcome = await house.outcome()
        assert isinstance(outcome, Completed)
        assert outcome.peer.name == THEM.name
        [visit] = house.visits
        assert visit.sock is not None
        # The socket is the visit's: what comes now is not read at the door.
        writer.write(b"a frame")
        await until(lambda: visit.sock is not None and not _would_block(visit.sock))
        assert visit.sock.recv(100) == b"a frame"
        assert len(house.door) == 0
        writer.close()

    async def test_in_single_bytes(self, house: House) -> None:
        theirs = enter(house)
        initiator = Initiator(THEM, COOKIE, 1, peer_name=US.name)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        while not house.visits or not house.visits[0].outcome.done():
            for byte in initiator.data_to_send():
                await loop.sock_sendall(theirs, bytes([byte]))
                await asyncio.sleep(0)
            if not (house.visits and house.visits[0].outcome.done()):
                initiator.receive_data(await asyncio.wait_for(loop.sock_recv(theirs, 1), 20))
        assert isinstance(await house.outcome(), Completed)
        theirs.close()

    async def test_who_does_not_is_refused(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader, writer = await house.come()
        with pytest.raises(HandshakeError):
            await shake(Initiator(THEM, "another", 1, peer_name=US.name), reader, writer)
        error = await house.error()
        port = writer.get_extra_info("sockname")[1]
        assert caplog.messages == [
            f"{THEM.name} (127.0.0.1:{port}): refused the connection: {error}"
        ]
        writer.close()

    async def test_a_status_that_refuses_is_told_and_needs_no_line(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        house.make = lambda: Visit(Status.NOK)
        reader, writer = await house.come()
        with pytest.raises(HandshakeError) as caught:
            await shake(Initiator(THEM, COOKIE, 1, peer_name=US.name), reader, writer)
        assert caught.value.reason == "nok"
        assert (await house.error()).reason == "nok"
        assert await reader.read() == b""
        assert caplog.messages == []
        writer.close()

    async def test_one_that_is_refused_at_last_is_not_told_that_it_was_accepted(
        self, house: House
    ) -> None:
        house.make = lambda: Visit(refuse=HandshakeError("crossed", "another one is there"))
        reader, writer = await house.come()
        with pytest.raises(HandshakeError) as caught:
            await shake(Initiator(THEM, COOKIE, 1, peer_name=US.name), reader, writer)
        assert caught.value.reason == "cookie"  # as one finds who hears nothing more
        assert str(await house.error()) == "another one is there"
        writer.close()

    async def test_what_is_no_handshake(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader, writer = await house.come()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        error = await house.error()
        assert await reader.read() == b""
        assert f"refused the connection: {error}" in caplog.text
        writer.close()


def _would_block(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


class TestGoing:
    async def test_before_saying_anything(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        theirs = enter(house)
        assert len(house.door) == 1
        theirs.close()
        await until(lambda: len(house.door) == 0)
        assert house.visits == []
        assert caplog.messages == [
            "192.0.2.1:1: refused the connection: "
            "the peer closed the connection and had not said its name"
        ]

    async def test_in_the_middle(self, house: House) -> None:
        theirs = enter(house)
        theirs.send(HALF_A_NAME)
        await until(lambda: house.visits)
        theirs.close()
        assert (await house.error()).reason == "closed"

    async def test_by_a_reset(self, house: House) -> None:
        _, writer = await house.come()
        writer.write(HALF_A_NAME)
        await until(lambda: house.visits)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        assert (await house.error()).reason == "closed"

    async def test_without_reading_the_answer(self, house: House) -> None:
        house.make = lambda: Visit(Status.NOK)
        theirs = enter(house)
        theirs.sendall(Initiator(THEM, COOKIE, 1, peer_name=US.name).data_to_send())
        theirs.close()  # before the door has looked
        assert (await house.error()).reason == "nok"

    async def test_by_an_error_of_the_system(self, house: House) -> None:
        class Unreachable(socket.socket):
            def recv(self, size: int, flags: int = 0, /) -> bytes:
                raise OSError(errno.EHOSTUNREACH, "No route to host")

        ours, theirs = socket.socketpair()
        broken = Unreachable(fileno=ours.detach())
        house.door.enter(broken, ("192.0.2.1", 1))
        assert len(house.door) == 0
        assert broken.fileno() == -1
        theirs.close()

    async def test_who_takes_too_long(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        house.seconds = 0.05
        silent, slow = enter(house), enter(house)
        slow.send(HALF_A_NAME)
        assert (await house.error()).reason == "timeout"
        await until(lambda: len(house.door) == 0)
        assert is_closed(silent)
        assert "the handshake was not done within 0.05 s" in caplog.text
        silent.close()
        slow.close()

    async def test_when_the_door_is_closed(self, house: House) -> None:
        silent, talks = enter(house), enter(house)
        talks.send(HALF_A_NAME)
        await until(lambda: house.visits)
        house.door.close()
        assert str(await house.error()) == "this node stops"
        assert is_closed(silent)
        assert is_closed(talks)
        assert len(house.door) == 0
        house.door.close()
        silent.close()
        talks.close()


class TestTooMany:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(door_module, "MAX_NAMELESS", 4)
        monkeypatch.setattr(door_module, "MAX_HANDSHAKES", 2)

    def say_name(self, sock: socket.socket) -> None:
        sock.sendall(Initiator(THEM, COOKIE, 1, peer_name=US.name).data_to_send())

    async def test_the_oldest_goes(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        guests = [enter(house) for _ in range(6)]
        assert [is_closed(guest) for guest in guests] == [True] * 2 + [False] * 4
        assert "gave up its handshake for others, of which 4 were under way" in caplog.messages[0]
        for guest in guests:
            guest.close()

    async def test_of_the_address_that_has_the_most(self, house: House) -> None:
        first = enter(house, "192.0.2.7")
        many = [enter(house, "192.0.2.8") for _ in range(10)]
        assert not is_closed(first)
        assert [is_closed(guest) for guest in many] == [True] * 7 + [False] * 3
        for guest in (first, *many):
            guest.close()

    async def test_not_one_who_has_said_what_was_missing(self, house: House) -> None:
        guests = [enter(house) for _ in range(4)]
        self.say_name(guests[0])  # nobody has looked yet
        guests.append(enter(house))
        assert [is_closed(guest) for guest in guests] == [False] * 5
        assert len(house.visits) == 1
        for guest in guests:
            guest.close()

    async def test_names_and_silence_do_not_push_out_each_other(self, house: House) -> None:
        named = [enter(house) for _ in range(2)]
        for guest in named:
            self.say_name(guest)
        await until(lambda: len(house.visits) == 2)
        silent = [enter(house) for _ in range(10)]
        assert len(house.door) == 6
        assert not any(visit.outcome.done() for visit in house.visits)
        third = enter(house)
        self.say_name(third)
        await until(house.visits[0].outcome.done)
        assert not house.visits[1].outcome.done()
        for guest in (*named, *silent, third):
            guest.close()

    def test_who_counts_as_one(self) -> None:
        one = _share(socket.AF_INET, "192.0.2.1")
        assert one != _share(socket.AF_INET, "192.0.2.2")
        network = _share(socket.AF_INET6, "2001:db8:1:2::1")
        assert network == _share(socket.AF_INET6, "2001:db8:1:2:ffff::%eth0")
        assert network != _share(socket.AF_INET6, "2001:db8:1:3::1")
        # Mapped addresses are those of IPv4, each one by itself; so is loopback.
        mapped = [_share(socket.AF_INET6, f"::ffff:192.0.2.{number}") for number in (1, 2)]
        assert len({*mapped, _share(socket.AF_INET6, "::1")}) == 3


class Listener:
    """A listening socket that fails for a while, and tells how often it was asked."""

    def __init__(self, real: socket.socket, errors: list[OSError]) -> None:
        self._real = real
        self._errors = errors
        self.asked = 0

    def accept(self) -> Any:
        self.asked += 1
        if self._errors:
            raise self._errors.pop(0)
        return self._real.accept()

    def fileno(self) -> int:
        return self._real.fileno()

    def as_socket(self) -> socket.socket:
        return cast(socket.socket, self)


class TestAccepting:
    async def test_one_who_has_gone_is_no_matter(self) -> None:
        house = House()
        gone = OSError(errno.ECONNABORTED, "Software caused connection abort")
        house.door.open(Listener(house.listener, [gone, InterruptedError()]).as_socket())
        _, writer = await house.come()
        await until(lambda: len(house.door) == 1)
        house.close()
        writer.close()

    async def test_where_there_is_no_room_half_of_them_go_and_it_pauses(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(door_module, "ACCEPT_PAUSE", 0.05)
        house = House()
        guests = [enter(house) for _ in range(5)]
        listener = Listener(house.listener, [OSError(errno.EMFILE, "Too many open files")])
        house.door.open(listener.as_socket())
        _, writer = await house.come()
        await until(lambda: listener.asked == 1)
        assert [is_closed(guest) for guest in guests] == [True] * 3 + [False] * 2
        assert "cannot accept connections: Too many open files" in caplog.messages
        await until(lambda: len(house.door) == 3)
        assert listener.asked > 1
        house.close()
        writer.close()
        for guest in guests:
            guest.close()

    async def test_a_door_that_is_closed_in_the_pause_stays_closed(self) -> None:
        house = House()
        refusals = [OSError(errno.EMFILE, "")]
        listener = Listener(house.listener, refusals)
        house.door.open(listener.as_socket())
        _, writer = await house.come()
        await until(lambda: not refusals)
        house.door.close()
        assert listener.asked == 1
        house.close()
        writer.close()

    async def test_many_at_once_come_in_in_turns(self, house: House) -> None:
        guests = [socket.create_connection(house.address) for _ in range(50)]
        await until(lambda: len(house.door) == 50, pause=0)
        for guest in guests:
            guest.close()


async def test_lines_are_few_and_the_rest_is_counted(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door_module, "SECONDS", 0.05)
    for number in range(LINES + 5):
        house.door.warning("line %d", number)
    assert len(caplog.messages) == LINES
    await until(lambda: len(caplog.messages) > LINES)
    assert caplog.messages[LINES] == "... and 5 more lines like these"


async def test_what_was_left_out_is_told_when_it_closes(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    for number in range(LINES + 2):
        house.door.warning("line %d", number)
    house.door.close()
    assert caplog.messages[-1] == "... and 2 more lines like these"
