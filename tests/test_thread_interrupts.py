"""Interrupting code in other threads: what is, and what never is."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snex_node.wire import etf
from snex_runtime import interrupts, thread_interrupts
from snex_runtime.code import Code, compile_code
from snex_runtime.interrupts import CLEANUP, GRACE, Deadline, Interrupted, checkpoint, current
from snex_runtime.thread_interrupts import Interruption

SPIN = "while go: pass"


@pytest.fixture(autouse=True)
def boundary() -> Iterator[None]:
    """What calls user code here; what raises is made anew."""
    thread_interrupts._raiser.cache_clear()
    added = {Code.run.__code__} - interrupts._boundaries
    interrupts._boundaries.update(added)
    yield
    interrupts._boundaries.difference_update(added)


class Running:
    """Code that a thread runs, as a pool has it run."""

    def __init__(self, source: str, timeout: float | None = None, **variables: object) -> None:
        self.limit = Deadline(timeout)
        self.interruption = Interruption(self.limit)
        self.began = threading.Event()
        self.variables = {"go": True, "began": self.began.set, **variables}
        self.code = compile_code(source if "began()" in source else f"began()\n{source}")
        self.outcome: object = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.began.wait(10)

    def _run(self) -> None:
        self.limit.thread = threading.get_ident()
        current.set(self.limit)
        try:
            self.outcome = self.code.run(self.variables)
        except BaseException as error:
            self.outcome = error
        self.interruption.settle()

    def attempt_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.interruption.attempt()
            time.sleep(0.001)

    def end(self) -> object:
        self.variables["go"] = False
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.outcome


def test_code_that_computes() -> None:
    running = Running(SPIN)
    running.interruption.attempt()
    assert not running.interruption.interrupted
    running.interruption.stop()
    running.attempt_until(lambda: running.outcome is not None)
    assert isinstance(running.end(), Interrupted)
    assert running.limit.over


def test_its_deadline() -> None:
    running = Running(SPIN, timeout=0.05)
    before = time.monotonic()
    running.attempt_until(lambda: running.outcome is not None)
    assert time.monotonic() - before > 0.02
    assert isinstance(running.end(), Interrupted)


def test_loops_of_its_own() -> None:
    source = """
import asyncio
async def spin():
    began()
    while go: await asyncio.sleep(0)
return asyncio.run(spin())
"""
    running = Running(source)
    running.interruption.stop()
    running.attempt_until(lambda: running.outcome is not None)
    assert isinstance(running.end(), Interrupted)


def test_clean_up_has_its_time() -> None:
    source = """
try:
    began()
    while True: pass
finally:
    cleaning()
    while go: pass
"""
    cleaning = threading.Event()
    running = Running(source, cleaning=cleaning.set)
    running.interruption.stop()
    running.attempt_until(cleaning.is_set)
    before = time.monotonic()
    running.interruption.stop()  # again: that changes nothing
    assert running.limit.deadline > before + CLEANUP / 2
    running.attempt_until(lambda: running.outcome is not None)
    assert time.monotonic() - before > CLEANUP / 2
    assert isinstance(running.end(), Interrupted)


def test_what_is_over_is_left_alone() -> None:
    running = Running("return 5")
    assert running.end() == 5
    running.interruption.stop()
    assert not running.interruption.interrupted


def test_what_has_not_begun() -> None:
    interruption = Interruption(Deadline(None))
    interruption.stop()
    assert not interruption.interrupted
    assert interruption.limit.deadline <= time.monotonic()


def test_library_code_is_left_to_finish() -> None:
    class Odd:
        pass

    entered, leave = threading.Event(), threading.Event()

    def slowly(value: object) -> object:
        entered.set()
        while not leave.is_set():
            pass
        return "done"

    encoder = etf.Encoder(default=slowly)
    running = Running(
        "ends.append(encode(odd))\nwhile go: pass", encode=encoder.encode, odd=Odd(), ends=[]
    )
    assert entered.wait(10)
    running.interruption.stop()
    for _ in range(20):
        running.interruption.attempt()
    assert not running.interruption.interrupted
    leave.set()
    running.attempt_until(lambda: running.outcome is not None)
    assert running.variables["ends"] == [encoder.encode("done")]
    assert isinstance(running.end(), Interrupted)


def test_the_library_s_functions_end_as_well() -> None:
    """Code that does little else is hardly ever met outside of them."""
    running = Running("while go: checkpoint()", checkpoint=checkpoint)
    running.limit.deadline = time.monotonic() - GRACE
    running.thread.join(10)
    assert isinstance(running.end(), Interrupted)
    assert running.limit.deadline > time.monotonic()  # what cleans up has its time


def test_what_awaits_is_cancelled_first() -> None:
    running = Running(SPIN)
    calls: list[float] = []
    running.interruption.cancel = lambda: calls.append(time.monotonic())
    running.interruption.stop()
    assert running.interruption.cancelled
    running.interruption.attempt()
    assert not running.interruption.interrupted
    running.attempt_until(lambda: running.outcome is not None)
    assert len(calls) == 1
    assert time.monotonic() - calls[0] >= GRACE
    assert isinstance(running.end(), Interrupted)


def test_it_never_strikes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again at the moment when the code ends: the thread goes on unharmed."""
    stop = threading.Event()
    harmed: list[BaseException] = []
    current_work: list[Interruption] = []
    code = compile_code("for n in range(20_000): pass")
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)

    def work() -> None:
        try:
            while not stop.is_set():
                limit = Deadline(None)
                limit.thread = threading.get_ident()
                interruption = Interruption(limit)
                current_work[:] = [interruption]
                try:
                    try:
                        code.run({})
                    except Interrupted:
                        pass
                    interruption.settle()
                except Interrupted:
                    interruption.settle()
                sum(range(50))  # of others: no exception may come here
        except BaseException as error:
            harmed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    end = time.monotonic() + 2
    struck = 0
    while time.monotonic() < end:
        for interruption in list(current_work):
            interruption.stop()
            struck += interruption.interrupted
    stop.set()
    thread.join(10)
    sys.setswitchinterval(before)
    assert harmed == []
    assert struck


def test_settling_is_repeated_when_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    interruption = Interruption(Deadline(None))
    interruption._unsettled = True
    raised: list[int] = []

    def raise_in(thread: int) -> bool:
        raised.append(thread)
        return False

    def raiser() -> Callable[[int], bool]:
        if not asked:
            asked.append(True)
            raise Interrupted  # what was on its way
        return raise_in

    asked: list[bool] = []
    monkeypatch.setattr(thread_interrupts, "_raiser", raiser)
    interruption.settle()
    assert raised == [threading.get_ident()]
    interruption.settle()
    assert raised == [threading.get_ident()]


def test_what_has_not_been_raised_is_raised_where_it_does_no_harm() -> None:
    outcome: list[object] = []

    def work() -> None:
        interruption = Interruption(Deadline(None))
        for _ in range(100):
            interruption._unsettled = True
            interruption.settle()
        outcome.append(interruption._unsettled)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert outcome == [False]


def test_it_waits_for_who_is_about_to(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(SPIN)
    waits, go_on = threading.Event(), threading.Event()

    def raise_in(thread: int) -> bool:
        waits.set()
        return not go_on.wait(10)

    monkeypatch.setattr(thread_interrupts, "_raiser", lambda: raise_in)
    interrupting = threading.Thread(target=running.interruption.stop, daemon=True)
    interrupting.start()
    assert waits.wait(10)
    running.variables["go"] = False
    running.thread.join(0.1)
    assert running.thread.is_alive()
    go_on.set()
    interrupting.join(10)
    assert running.end() is None


@pytest.mark.parametrize("error", [ImportError("no ctypes"), AttributeError("no pythonapi")])
def test_a_python_that_cannot(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> Any:
        raise error

    thread_interrupts._raiser.cache_clear()
    monkeypatch.setattr(importlib, "import_module", refuse)
    try:
        running = Running(SPIN)
        with caplog.at_level(logging.WARNING):
            running.interruption.stop()
            running.interruption.attempt()
        assert len(caplog.records) == 1
        assert "callers are answered in time" in caplog.text
        running.interruption._unsettled = True
        assert running.end() is None
    finally:
        thread_interrupts._raiser.cache_clear()


async def test_where_a_thread_is() -> None:
    """On a loop that is the library's, what the loop does is no code of users."""
    loops: list[asyncio.AbstractEventLoop] = []
    running, ended = threading.Event(), asyncio.Event()

    def run() -> None:
        loop = asyncio.new_event_loop()
        loops.append(loop)
        loop.call_soon(running.set)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert running.wait(10)
    assert thread.ident is not None
    assert not interrupts.runs_user_code(thread.ident, on_loop=True)
    assert not interrupts.runs_user_code(0, on_loop=True)
    assert not interrupts.runs_user_code(0, on_loop=False)
    loops[0].call_soon_threadsafe(loops[0].stop)
    thread.join(10)
    ended.set()
