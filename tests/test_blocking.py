"""Watching the event loop: when it is blocked, where, for whom, and until when.

`tests.interop.test_blocking` has real callers. Here the test has the loop, and plays the guardian.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from snex_node.cluster.connection import Ahead
from snex_node.errors import NodeError
from snex_node.wire.control import (
    ControlMessage,
    DemonitorP,
    Exit,
    MonitorP,
    MonitorPExit,
    PayloadExit,
    PayloadMonitorPExit,
)
from snex_node.wire.gen import From
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import interrupts
from snex_runtime.blocking import AGAIN, BLOCKED_AFTER, TOLD_AFTER, Blocked, Watch
from snex_runtime.coroutines import Work
from snex_runtime.interrupts import Deadline, Interrupter, now
from snex_runtime.requests import EvalOptions, Request, make_request
from tests.support.requests import PID, Line, Peer, Taker, by_alias, request_of

US = Pid("py@host", 1, 0, 5)
REF = Reference("py@host", 5, (7, 7, 7))
OTHER = Reference("app@host", 5, (9, 9, 9))


class AheadLine(Line):
    """A connection on which something has come."""

    def __init__(self, *signals: ControlMessage, ended: bool = False) -> None:
        super().__init__()
        self.ahead = Ahead(signals, ended)
        self.looks = 0

    def look_ahead(self) -> Ahead:
        self.looks += 1
        return self.ahead


class Home:
    """A node, and itself the node that signals go to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ControlMessage]] = []
        self.refuses = False
        self._name = ""

    def remote(self, name: str) -> Home:
        self._name = name
        return self

    def make_ref(self) -> Reference:
        return REF

    def send(self, message: ControlMessage, payload: bytes = b"", sender: object = None) -> None:
        if self.refuses:
            raise NodeError("too much waits")
        assert sender == US
        self.sent.append((self._name, message))


class GivenUp(Interrupter):
    """Keeps what it is to end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[object] = []

    def give_up(self, running: Any) -> None:
        self.ended = list(running)


class Works:
    """Work under way."""

    def __init__(self) -> None:
        self.all: list[Work] = []

    def on_loop(self) -> list[Work]:
        return self.all


class Watched:
    """A watch, with time that the test has pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.interrupter, self.works = Home(), GivenUp(), Works()
        self.watch = Watch(self.home, US, self.interrupter, self.works)
        self._at = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self._at)

    def after(self, seconds: float) -> float | None:
        self._at += seconds
        with ThreadPoolExecutor(1) as guardian:
            return guardian.submit(self.watch.check).result()

    def block(self, running: object, seconds: float = BLOCKED_AFTER) -> None:
        """Have ``running`` block the loop for so long."""
        now.running = running
        assert self.after(0.25) == BLOCKED_AFTER
        assert self.after(seconds) == AGAIN


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    yield
    now.running = None


def request(line: Line | None = None, caller: From | None = None) -> Request:
    made = request_of(b"h\x03w\x04eval", Taker(), caller or by_alias(), Peer(line))
    assert made.caller is not None
    return made


class TestLooking:
    async def test_an_idle_loop_is_left_alone(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interrupts, "running_on", lambda thread: None)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", None)
        for _ in range(3):
            assert watched.after(0.25) is None
        assert watched.watch.blocked == Blocked()

    async def test_a_loop_that_gives_a_sign(self, watched: Watched) -> None:
        now.running = request(AheadLine())
        assert watched.after(0.25) == BLOCKED_AFTER
        assert watched.after(BLOCKED_AFTER / 2) == pytest.approx(BLOCKED_AFTER / 2)
        await asyncio.sleep(0)
        assert watched.after(0.25) is None
        assert watched.watch.blocked == Blocked()
        assert watched.after(0.25) == BLOCKED_AFTER  # the next sign

    async def test_code_of_users_that_no_request_runs(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frame = sys._getframe()
        monkeypatch.setattr(interrupts, "running_on", lambda thread: frame)
        assert watched.after(0.25) == BLOCKED_AFTER
        assert watched.after(BLOCKED_AFTER) == AGAIN
        assert watched.watch.blocked.seconds == pytest.approx(BLOCKED_AFTER)

    async def test_a_loop_that_is_closed(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(*_: object) -> None:
            raise RuntimeError("Event loop is closed")

        monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", closed)
        now.running = request(AheadLine())
        for _ in range(2):
            assert watched.after(0.25) is None


class TestTelling:
    async def test_once_for_each_time(
        self, watched: Watched, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        watched.block(request(AheadLine()), TOLD_AFTER - 0.1)
        assert caplog.messages == []
        for _ in range(3):
            watched.after(AGAIN)
        [message] = caplog.messages
        assert message.startswith("the event loop has been blocked for 1.0 s by ")
        assert f"which runs for {PID}: all others wait" in message
        assert f"{__file__}:" in message
        assert "in after" in message
        await asyncio.sleep(0)
        assert watched.after(0.25) is None
        assert caplog.messages[1:] == ["the event loop goes on, after 1.2 s"]
        blocked = watched.watch.blocked
        assert blocked.seconds == 0.0
        assert blocked.longest == pytest.approx(1.2)
        assert blocked.place is not None
        watched.block(request(AheadLine()), TOLD_AFTER)
        assert len(caplog.messages) == 3

    async def test_for_whom(self, watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
        nobody = request(AheadLine())
        nobody.caller = None
        work = Work(request(AheadLine()), asyncio.sleep(0))
        texts = {"a process of app@host that waits": nobody, str(PID): work, "no request": object()}
        for text, running in texts.items():
            caplog.clear()
            watched.block(running, TOLD_AFTER)
            assert f"which runs for {text}" in caplog.text
            await asyncio.sleep(0)
            watched.after(0.25)
        work.awaited.close()

    async def test_not_of_init_scripts(
        self, watched: Watched, caplog: pytest.LogCaptureFixture
    ) -> None:
        watched.block(Deadline(None), TOLD_AFTER)
        assert caplog.messages == []
        assert watched.watch.blocked.seconds == TOLD_AFTER


def demonitor(ref: bytes | None) -> DemonitorP:
    assert ref is not None
    return DemonitorP(PID, US, Reference.from_external(ref))


class TestCallers:
    @pytest.mark.parametrize(
        "signal",
        [
            demonitor(by_alias().ref),
            MonitorPExit(PID, US, OTHER, Atom("noproc")),
            PayloadMonitorPExit(PID, US, OTHER),
            Exit(PID, US, Atom("kill")),
            PayloadExit(PID, US),
        ],
    )
    async def test_it_gives_up(self, watched: Watched, signal: ControlMessage) -> None:
        running = request(AheadLine(signal))
        watched.block(running)
        assert watched.interrupter.ended == [running]
        await asyncio.sleep(0)
        watched.after(0.25)
        assert watched.interrupter.ended == []

    @pytest.mark.parametrize(
        "signal",
        [demonitor(OTHER.external), PayloadExit(US, PID), PayloadMonitorPExit(US, PID, OTHER)],
    )
    async def test_another_does(self, watched: Watched, signal: ControlMessage) -> None:
        watched.block(request(AheadLine(signal)))
        assert watched.interrupter.ended == []

    async def test_its_node_is_lost(self, watched: Watched) -> None:
        for line in (AheadLine(ended=True), None):
            running = request(line)
            watched.block(running)
            assert watched.interrupter.ended == [running]
            await asyncio.sleep(0)
            watched.after(0.25)

    async def test_it_is_to_go_on(self, watched: Watched) -> None:
        running = request(AheadLine(ended=True))
        running.continues = True
        watched.block(running)
        watched.after(AGAIN)
        assert watched.interrupter.ended == []

    async def test_work_is_looked_after(self, watched: Watched) -> None:
        """Where a task of users blocks, it may be that of any work."""
        line = AheadLine(demonitor(by_alias(1).ref))
        given_up, other, goes_on = (
            Work(
                request(line, by_alias(number)),
                asyncio.sleep(0),
                EvalOptions({Atom("on_timeout"): Atom(mode)}),
            )
            for number, mode in ((1, "cancel"), (2, "cancel"), (1, "continue"))
        )
        watched.works.all = [given_up, other, goes_on]
        watched.block(None)
        assert watched.interrupter.ended == [given_up]
        assert line.looks == 1
        for work in watched.works.all:
            work.awaited.close()

    async def test_a_stream_is_looked_after_for_those_who_take_its_items(
        self, watched: Watched
    ) -> None:
        class Streaming(Request):
            __slots__ = ()
            takers: Any = ()

        running = request_of(b"h\x03w\x04eval", Taker())
        stream = make_request(running.process, running.enter, None, Peer(), b"", 0, Streaming)
        gone, there = AheadLine(demonitor(by_alias(1).ref)), AheadLine()
        for takers, ended in (
            ([], []),
            ([(there, by_alias(1))], []),
            ([(gone, by_alias(2))], []),
            ([(gone, by_alias(1)), (gone, by_alias(2))], []),
            ([(gone, by_alias(1)), (None, by_alias(2))], [stream]),
            ([(gone, by_alias(1))], [stream]),
        ):
            Streaming.takers = takers
            watched.block(stream)
            assert watched.interrupter.ended == ended
            await asyncio.sleep(0)
            watched.after(0.25)
        assert watched.home.sent == []


class TestMonitoring:
    MONITOR = ("app@host", MonitorP(US, PID, REF))
    DEMONITOR = ("app@host", DemonitorP(US, PID, REF))

    async def test_a_caller_that_does_not_monitor(self, watched: Watched) -> None:
        watched.block(request(AheadLine()))
        watched.after(AGAIN)
        assert watched.home.sent == [self.MONITOR]
        await asyncio.sleep(0)
        watched.after(0.25)
        assert watched.home.sent == [self.MONITOR, self.DEMONITOR]

    async def test_a_caller_that_monitors(self, watched: Watched) -> None:
        running = request(AheadLine())
        assert running.caller is not None
        assert isinstance(running.process, Taker)
        assert running.caller.ref is not None
        running.process.monitored_with.add(running.caller.ref)
        watched.block(running)
        work = Work(request(AheadLine()), asyncio.sleep(0))
        work.monitor = REF
        now.running = work
        watched.after(AGAIN)
        assert watched.home.sent == []
        work.awaited.close()

    async def test_it_cannot_be_told(self, watched: Watched) -> None:
        watched.home.refuses = True
        watched.block(request(AheadLine()))
        watched.home.refuses = False
        watched.after(AGAIN)  # it is tried again
        assert watched.home.sent == [self.MONITOR]
