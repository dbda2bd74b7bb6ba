"""The guardian: ticks and writes while the event loop is blocked, and ends when told."""

from __future__ import annotations

import asyncio
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snex_node.cluster.connection import Connection
from snex_node.system.guardian import TICK_INTERVAL, Guardian
from snex_node.wire import control
from snex_node.wire.control import SendSender
from snex_node.wire.flags import CLAIMED
from snex_node.wire.framing import TICK, FrameReader, Message
from snex_node.wire.handshake import Peer
from snex_node.wire.terms import Pid

SEND = control.encode(SendSender(Pid("us@host", 1, 0, 1), Pid("they@host", 1, 0, 1)))
INTERVAL = 0.02


class Silent:
    """A handler that needs to be told nothing."""

    def message_received(self, connection: Connection, message: Message) -> None:
        raise AssertionError(message)

    def connection_lost(self, connection: Connection, reason: str) -> None:
        pass


class Fake:
    """Stands for a connection; tells when it is looked at and ticked."""

    def __init__(self, due: Callable[[], bool] = lambda: True, error: str = "") -> None:
        self.looked: queue.Queue[tuple[float, float]] = queue.Queue()
        self.ticked: queue.Queue[threading.Thread] = queue.Queue()
        self._due = due
        self._error = error

    def tick_due(self, now: float, interval: float) -> bool:
        self.looked.put((now, interval))
        return self._due()

    def tick(self) -> None:
        self.ticked.put(threading.current_thread())
        if self._error:
            raise ValueError(self._error)

    def __repr__(self) -> str:
        return "<Fake>"


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    one = Guardian(INTERVAL)
    one.start()
    yield one
    one.stop()


@pytest.fixture
def line() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection whose socket takes little, on a loop that never runs; and the other end."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    theirs.settimeout(20)
    loop = asyncio.new_event_loop()
    peer = Peer("they@host", 1, int(CLAIMED))
    connection = Connection(ours, peer, Silent(), loop=loop)
    yield connection, theirs
    connection.close("end of the test")
    theirs.close()
    loop.close()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "snex-guardian"]


def test_what_is_due_is_ticked_again_and_again(guardian: Guardian) -> None:
    due, idle = Fake(), Fake(due=lambda: False)
    guardian.watch(due)
    guardian.watch(idle)
    for _ in range(3):
        assert due.ticked.get(timeout=20).name == "snex-guardian"
        now, interval = idle.looked.get(timeout=20)
        assert interval == INTERVAL
        assert 0 <= time.monotonic() - now < 20
    assert idle.ticked.empty()


def test_what_is_unwatched_is_left_alone(guardian: Guardian) -> None:
    one, other = Fake(), Fake()
    guardian.unwatch(one)  # unknown: ignored
    guardian.watch(one)
    guardian.watch(one)
    one.ticked.get(timeout=20)
    guardian.unwatch(one)
    guardian.watch(other)
    other.ticked.get(timeout=20)
    # A round that had begun may have ticked it once more; the rounds from here on do not.
    while not one.ticked.empty():
        one.ticked.get()
    other.ticked.get(timeout=20)
    other.ticked.get(timeout=20)
    assert one.ticked.empty()


def test_an_error_is_logged_and_the_others_are_ticked(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bool:
        raise ValueError("cannot tell")

    fakes = [Fake(due=broken), Fake(error="cannot tick"), Fake()]
    for fake in fakes:
        guardian.watch(fake)
    for _ in range(2):
        fakes[0].looked.get(timeout=20)
        fakes[1].ticked.get(timeout=20)
        fakes[2].ticked.get(timeout=20)
    guardian.stop()
    assert "<Fake>: ticking failed" in caplog.messages
    assert "cannot tell" in caplog.text
    assert "cannot tick" in caplog.text


def test_checks_are_called_until_they_are_removed(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    called: queue.Queue[threading.Thread] = queue.Queue()
    others: queue.Queue[None] = queue.Queue()

    def failing() -> None:
        called.put(threading.current_thread())
        raise ValueError("cannot check")

    def other() -> None:
        others.put(None)

    guardian.remove_check(failing)  # unknown: ignored
    guardian.add_check(failing)
    guardian.add_check(other)
    for _ in range(3):
        assert called.get(timeout=20).name == "snex-guardian"
    guardian.remove_check(failing)
    while not others.empty():
        others.get()
    others.get(timeout=20)  # the end of a round that may have begun before
    while not called.empty():
        called.get()
    for _ in range(2):
        others.get(timeout=20)
    assert called.empty()
    assert "a check of the guardian failed" in caplog.messages
    assert "cannot check" in caplog.text


def test_starting_and_stopping() -> None:
    guardian, fake = Guardian(INTERVAL), Fake()
    guardian.watch(fake)
    guardian.stop()  # it has not begun
    guardian.start()
    guardian.start()
    [thread] = threads()
    assert thread.daemon
    fake.ticked.get(timeout=20)
    guardian.stop()
    guardian.stop()
    assert not thread.is_alive()
    assert threads() == []
    guardian.start()
    while fake.ticked.get(timeout=20) is thread:
        pass
    guardian.stop()


def test_stopping_does_not_wait_for_the_interval() -> None:
    guardian = Guardian(1000.0)
    guardian.start()
    started = time.monotonic()
    guardian.stop()
    assert time.monotonic() - started < 20


def test_the_default_interval_serves_a_tick_time_of_one_second() -> None:
    """It looks twice per interval, so that no connection is silent for longer than 1.5 of them."""
    waits: list[float | None] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return len(waits) == 3

    guardian = Guardian()
    guardian._stopping = Stopping()
    guardian._run()
    assert waits == [TICK_INTERVAL / 2] * 3
    assert 1.5 * TICK_INTERVAL < 1.0


# Real connections


def sleeping(seconds: float) -> None:
    time.sleep(seconds)


def computing(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("block", [sleeping, computing])
async def test_ticks_while_the_loop_is_blocked(
    guardian: Guardian, block: Callable[[float], None]
) -> None:
    ours, theirs = socket.socketpair()
    peer = Peer("they@host", 1, int(CLAIMED))
    connection = Connection(ours, peer, Silent(), loop=asyncio.get_running_loop())
    connection.start()
    guardian.watch(connection)
    try:
        block(30 * INTERVAL)
        ticks = theirs.recv(1 << 16)
        # Some 20: one in an interval and a half; fewer where the machine is busy.
        assert ticks == TICK * (len(ticks) // 4)
        assert 3 <= len(ticks) // 4 <= 31
    finally:
        guardian.unwatch(connection)
        connection.close("end of the test")
        theirs.close()


def test_what_waits_is_written_while_the_loop_is_blocked(
    guardian: Guardian, line: tuple[Connection, socket.socket]
) -> None:
    """And no tick gets into the middle of a message."""
    connection, raw = line
    guardian.watch(connection)
    payload = random.Random(1).randbytes(200_000)
    connection.send(SEND, payload)
    assert connection.pending
    reader = FrameReader(connection.peer.flags)
    found: list[Any] = []
    while not found:
        found = reader.receive_data(raw.recv(50_000))
        assert reader.failure is None
    assert found[0].data[found[0].offset :] == payload
    while reader.ticks == 0:  # and then ticks again
        assert reader.receive_data(raw.recv(100)) == []


def test_a_connection_that_is_closed_is_no_error(
    guardian: Guardian, line: tuple[Connection, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    connection, raw = line
    guardian.watch(connection)
    connection.close("enough")
    fake = Fake()
    guardian.watch(fake)
    for _ in range(3):
        fake.ticked.get(timeout=20)
    assert raw.recv(100) in (b"", TICK)
    assert caplog.messages == []


SCRIPT = """
from snex_node.system.guardian import Guardian
Guardian().start()
print("done")
"""


def test_it_never_keeps_a_process_alive() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True, text=True)
    assert done.stdout == "done\n"
    assert done.stderr == ""


def test_a_check_may_come_sooner() -> None:
    slow = Guardian(interval=60)
    called: queue.Queue[float] = queue.Queue()

    def check() -> float | None:
        called.put(time.monotonic())
        return 0.01 if called.qsize() < 3 else None

    slow.add_check(check)
    pause, slow._interval = slow._interval, 0.01
    slow.start()
    slow._interval = pause
    for _ in range(2):
        called.get(timeout=20)
    slow.stop()
