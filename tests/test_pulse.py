"""How late the loop is, and which peers have been heard; the clocks are the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from snex_runtime.pulse import INTERVAL, KEPT, Pulse
from tests.support.pair import pair
from tests.support.waiting import until


class Line:
    def __init__(self) -> None:
        self.bytes_in = 0


class Peer:
    def __init__(self, connection: Line | None) -> None:
        self.connection = connection


class Home:
    def __init__(self, *lines: Line | None) -> None:
        self.remotes = [Peer(line) for line in lines]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 1000.0
        loop = asyncio.get_running_loop()
        self._calls: list[tuple[float, object]] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.at)
        monkeypatch.setattr(loop, "time", lambda: self.at)
        monkeypatch.setattr(loop, "call_at", self._call_at)
        self.cancelled = 0

    def _call_at(self, when: float, function: object) -> Clock:
        self._calls.append((when, function))
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def beat(self, late: float = 0.0) -> None:
        """Have the next look come, so late."""
        ((when, function),) = self._calls
        self._calls = []
        self.at = when + late
        assert callable(function)
        function()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clock]:
    with monkeypatch.context() as patch:
        yield Clock(patch)


class TestLag:
    async def test_the_worst_of_the_last_looks(self, clock: Clock) -> None:
        pulse = Pulse(Home())
        assert pulse.lag == 0.0
        clock.beat(0.25)
        assert pulse.lag == pytest.approx(0.25)
        for _ in range(KEPT - 1):
            clock.beat()
        assert pulse.lag == pytest.approx(0.25)
        clock.beat()
        assert pulse.lag == 0.0

    async def test_how_late_it_is_now(self, clock: Clock) -> None:
        pulse = Pulse(Home())
        clock.at += INTERVAL + 3.0
        assert pulse.lag == pytest.approx(3.0)

    async def test_it_is_closed(self, clock: Clock) -> None:
        Pulse(Home()).close()
        assert clock.cancelled == 1


class TestSilence:
    async def test_since_something_came(self, clock: Clock) -> None:
        line, other = Line(), Line()
        pulse = Pulse(Home(line, None, other))
        assert pulse.silence(line) == 0.0
        clock.beat()
        for _ in range(3):
            other.bytes_in += 1
            clock.beat()
        assert pulse.silence(line) == pytest.approx(3 * INTERVAL)
        assert pulse.silence(other) == 0.0
        line.bytes_in += 1
        assert pulse.silence(line) == 0.0
        clock.at += 0.5
        assert pulse.silence(other) == pytest.approx(0.5)

    async def test_a_line_that_has_gone_is_forgotten(self, clock: Clock) -> None:
        line = Line()
        home = Home(line)
        pulse = Pulse(home)
        clock.beat()
        home.remotes.clear()
        clock.beat()
        clock.at += 5.0
        assert pulse.silence(line) == 0.0


async def test_it_beats() -> None:
    async with pair() as both:
        pulse = Pulse(both.node)
        line = both.node.remote(both.peer.name).connection
        assert line is not None
        await until(lambda: line in pulse._heard)
        assert 0.0 <= pulse.lag < 5.0
        pulse.close()
