"""Deadlines: which frames are interrupted, and which never are."""

from __future__ import annotations

import asyncio
import inspect
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from types import CodeType, FrameType
from typing import Any

import pytest

from snex_node.wire import etf
from snex_runtime import interrupts
from snex_runtime.interrupts import (
    CLEANUP,
    GRACE,
    SIGNAL,
    Deadline,
    Interrupted,
    Interrupter,
    begin_ending,
    checkpoint,
    current,
    interrupt,
    now,
    on_ending,
    running_on,
    runs_user_code,
)

INTERVAL = 0.02


class Watched:
    """An interrupter with a thread that checks it, as the guardian does."""

    def __init__(self, *boundaries: CodeType) -> None:
        self.interrupter = Interrupter(boundaries)
        self.interrupter.install()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._check)
        self._thread.start()

    def _check(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.interrupter.check()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.interrupter.remove()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


def spin(seconds: float = 30.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


class TestRun:
    def test_beyond_the_deadline(self, watched: Watched) -> None:
        before = time.monotonic()
        with pytest.raises(Interrupted, match="over its deadline"):
            watched.interrupter.run(Deadline(0.05), spin)
        assert 0.05 <= time.monotonic() - before < 5

    @pytest.mark.parametrize(
        "wait",
        [
            lambda: time.sleep(30),
            lambda: threading.Event().wait(30),
            lambda: queue.Queue().get(timeout=30),
        ],
    )
    def test_waits_end(self, watched: Watched, wait: object) -> None:
        with pytest.raises(Interrupted):
            watched.interrupter.run(Deadline(0.05), wait)  # type: ignore[arg-type]

    def test_within_the_deadline(self, watched: Watched) -> None:
        assert watched.interrupter.run(Deadline(30), lambda: spin(0.1)) == "done"
        assert watched.interrupter.run(Deadline(None), lambda: spin(0.1)) == "done"

    def test_over_afterwards(self, watched: Watched) -> None:
        work = Deadline(0.05)
        watched.interrupter.run(work, lambda: None)
        assert work.over
        assert watched.interrupter.blocking is None
        assert current.get() is None
        spin(0.2)  # beyond its deadline, and nobody is interrupted

    def test_what_it_raises_comes_through(self, watched: Watched) -> None:
        with pytest.raises(ZeroDivisionError):
            watched.interrupter.run(Deadline(1), lambda: 1 / 0)

    def test_the_signal_reaches_only_whom_it_is_meant_for(self, watched: Watched) -> None:
        # Work that is over its deadline waits elsewhere, while innocent work runs.
        late = Deadline(0.0)
        watched.interrupter.watch(late)
        assert spin(0.2) == "done"
        innocent = copy_context()
        innocent.run(current.set, Deadline(None))
        assert innocent.run(spin, 0.2) == "done"
        guilty = copy_context()
        guilty.run(current.set, late)
        with pytest.raises(Interrupted):
            guilty.run(spin)
        late.over = True
        assert guilty.run(spin, 0.2) == "done"

    @pytest.mark.untraced
    def test_library_code_is_left_to_finish(self, watched: Watched) -> None:
        # The encoder runs beyond the deadline, in C and in Python, and is met again and again.
        work = Deadline(0.05)
        data = [{f"k{n}": [n, float(n)]} for n in range(300)]
        encoder = etf.Encoder()
        whole = encoder.encode(data)
        seen: list[bytes] = []

        def encode() -> None:
            while True:
                seen.append(encoder.encode(data))

        with pytest.raises(Interrupted):
            watched.interrupter.run(work, encode)
        assert seen
        assert all(each == whole for each in seen)

    def test_library_code_that_calls_back_is_left_to_finish(self, watched: Watched) -> None:
        class Odd:
            pass

        def slowly(value: object) -> object:
            return spin(0.2)

        encoder = etf.Encoder(default=slowly)
        # Frames: the user's below the encoder's below the user's. Interrupted only outside.
        ends: list[bytes] = []

        def user() -> None:
            ends.append(encoder.encode(Odd()))
            spin()

        with pytest.raises(Interrupted):
            watched.interrupter.run(Deadline(0.05), user)
        assert ends == [encoder.encode("done")]

    def test_boundaries_let_it_through(self) -> None:
        callers: list[FrameType | None] = []

        def note(value: object) -> None:
            frame = inspect.currentframe()
            assert frame is not None
            callers.append(frame.f_back)

        etf.Encoder(default=note).encode(object())
        [asks] = callers
        assert asks is not None
        watched = Watched(asks.f_code)
        try:
            encoder = etf.Encoder(default=lambda _: spin())
            with pytest.raises(Interrupted):
                watched.interrupter.run(Deadline(0.05), lambda: encoder.encode(object()))
        finally:
            watched.close()
            interrupts._boundaries.discard(asks.f_code)
        assert encoder.encode(1) == etf.Encoder().encode(1)


class TestInstalling:
    def test_the_handler_of_before_comes_back(self) -> None:
        assert SIGNAL is not None
        before = signal.getsignal(SIGNAL)
        interrupter = Interrupter()
        interrupter.install()
        assert interrupter.installed
        assert signal.getsignal(SIGNAL) != before
        interrupter.remove()
        interrupter.remove()
        assert not interrupter.installed
        assert signal.getsignal(SIGNAL) == before

    def test_not_on_another_thread(self) -> None:
        made: list[Interrupter] = []

        def work() -> None:
            made.append(Interrupter())
            made[0].install()
            made[0].check()
            made[0].remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not made[0].installed

    def test_a_signal_of_somebody_else_does_nothing(self) -> None:
        assert SIGNAL is not None
        interrupter = Interrupter()
        interrupter.install()
        try:
            signal.raise_signal(SIGNAL)
            interrupter.run(Deadline(30), lambda: signal.raise_signal(SIGNAL))
        finally:
            interrupter.remove()

    def test_awaiting_work_gets_its_grace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[int] = []
        monkeypatch.setattr(signal, "pthread_kill", lambda _, number: sent.append(number))
        work = Deadline(1000)
        interrupter = Interrupter()
        interrupter.watch(work)
        interrupter.install()
        try:
            interrupter.check()
            work.deadline = time.monotonic() - GRACE / 2
            interrupter.check()
            assert sent == []
            work.deadline = time.monotonic() - GRACE
            interrupter.check()
            assert sent == [SIGNAL]
            work.over = True
            interrupter.check()
            assert sent == [SIGNAL]
            work.over = False
            interrupter.unwatch(work)
            interrupter.unwatch(work)
            interrupter.check()
            assert sent == [SIGNAL]
        finally:
            interrupter.remove()


class TestGivingUp:
    """Code that blocks the loop, and of which nobody waits any more."""

    def give_up(self, watched: Watched, running: list[object]) -> Callable[[], None]:
        """Have it given up from another thread, as the guardian does, until what is returned."""
        over = threading.Event()

        def again() -> None:
            while not over.wait(INTERVAL):
                watched.interrupter.give_up(running)

        thread = threading.Thread(target=again, daemon=True)
        thread.start()

        def end() -> None:
            over.set()
            thread.join(10)
            watched.interrupter.give_up(())

        return end

    @pytest.fixture(autouse=True)
    def nothing_runs(self) -> Iterator[None]:
        yield
        now.running = None

    def test_what_runs(self, watched: Watched) -> None:
        request = object()
        now.running = request
        end = self.give_up(watched, [object(), request])
        with pytest.raises(Interrupted) as caught:
            watched.interrupter.run(Deadline(None), spin)
        assert caught.value.why == "its caller has given up"
        before = time.monotonic()
        assert spin(CLEANUP / 2) == "done"  # what cleans up has its time
        with pytest.raises(Interrupted):
            watched.interrupter.run(Deadline(None), spin)
        assert time.monotonic() - before > CLEANUP / 2
        end()

    def test_its_tasks(self, watched: Watched) -> None:
        work = Deadline(None)
        end = self.give_up(watched, [work])
        context = copy_context()
        context.run(current.set, work)
        with pytest.raises(Interrupted):
            context.run(spin)
        work.over = True
        assert context.run(spin, 0.2) == "done"
        end()

    def test_nothing_else(self, watched: Watched) -> None:
        now.running = object()
        end = self.give_up(watched, [object()])
        assert watched.interrupter.run(Deadline(None), lambda: spin(0.2)) == "done"
        now.running = None
        assert watched.interrupter.run(Deadline(None), lambda: spin(0.2)) == "done"
        end()


class TestCheckpoint:
    @pytest.mark.parametrize(
        ("behind", "over", "raises"),
        [(GRACE + 0.01, False, True), (GRACE + 0.01, True, False), (-1, False, False)],
    )
    def test_only_beyond_the_grace(self, behind: float, over: bool, raises: bool) -> None:
        work = Deadline(0)
        work.deadline = time.monotonic() - behind
        work.over = over

        def check() -> bool:
            current.set(work)
            try:
                checkpoint()
            except Interrupted:
                return True
            return False

        assert copy_context().run(check) is raises

    def test_outside_of_any_work(self) -> None:
        checkpoint()


async def test_tasks_inherit_the_deadline(watched: Watched) -> None:
    late = Deadline(0.0)
    watched.interrupter.watch(late)

    async def block() -> str:
        return spin()

    token = current.set(late)
    task = asyncio.ensure_future(block())
    current.reset(token)
    with pytest.raises(Interrupted):
        await task


class TestEnding:
    """The end of the process, where `Ending` interrupts what blocks the loop."""

    @pytest.fixture(autouse=True)
    def handler(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(interrupts, "_ending", False)
        assert SIGNAL is not None
        before = signal.signal(SIGNAL, on_ending)
        yield
        signal.signal(SIGNAL, before)

    def test_before_it_nothing_is_raised(self) -> None:
        noticed = interrupt(threading.get_ident())
        assert noticed()

    async def test_code_of_users_is_interrupted(self) -> None:
        begin_ending()
        main, blocks = threading.get_ident(), threading.Event()

        def end() -> None:
            blocks.wait()
            interrupt(main)

        def block() -> None:
            blocks.set()
            spin()

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(KeyboardInterrupt, match="this process ends"):
            block()
        ending.join()

    def test_deadlines_count_no_more(self, watched: Watched) -> None:
        begin_ending()
        assert watched.interrupter.run(Deadline(0.01), lambda: spin(0.1)) == "done"

    def test_whoever_has_ended_is_not_interrupted(self) -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        assert thread.ident is not None
        thread.join()
        noticed = interrupt(thread.ident)
        assert not noticed()

    async def test_what_runs(self) -> None:
        main, found = threading.get_ident(), list[object]()
        looking = threading.Thread(target=lambda: found.extend(map(running_on, (main, 0))))
        looking.start()
        looking.join()
        assert found[0] is not None
        assert found[1] is None

    async def test_a_callback_without_a_frame(self) -> None:
        """A function in C that the loop calls has none: then it is the loop's that is found."""
        assert SIGNAL is not None
        begin_ending()
        ended = asyncio.get_running_loop().create_future()

        def callback() -> None:
            frame = inspect.currentframe()
            assert frame is not None
            try:
                on_ending(0, frame.f_back)
            except KeyboardInterrupt as error:
                ended.set_result(str(error))

        asyncio.get_running_loop().call_soon(callback)
        assert await ended == "this process ends"


class TestThreads:
    """Where threads of a pool are; `tests.test_thread_interrupts` interrupts them."""

    def run(self, function: Callable[[Any], object], *, on_loop: bool) -> bool:
        """Whether a thread that waits in ``function`` is in code of users."""
        waits, go = threading.Event(), threading.Event()

        def wait(*_: object) -> object:
            waits.set()
            go.wait(10)
            return 1

        thread = threading.Thread(target=function, args=(wait,), daemon=True)
        thread.start()
        assert waits.wait(10)
        assert thread.ident is not None
        try:
            return runs_user_code(thread.ident, on_loop=on_loop)
        finally:
            go.set()
            thread.join(10)

    def test_where_they_are(self) -> None:
        interrupter = Interrupter()

        def of_users(wait: Callable[[], object]) -> None:
            interrupter.run(Deadline(None), wait)

        def of_the_library(wait: Callable[[object], object]) -> None:
            interrupter.run(Deadline(None), lambda: etf.Encoder(default=wait).encode(object()))

        def in_a_loop(wait: Callable[[], object]) -> None:
            async def main() -> None:
                wait()

            asyncio.run(main())

        def in_a_loop_of_theirs(wait: Callable[[], object]) -> None:
            interrupter.run(Deadline(None), lambda: in_a_loop(wait))

        assert self.run(of_users, on_loop=False)
        assert not self.run(of_the_library, on_loop=False)
        assert self.run(in_a_loop_of_theirs, on_loop=False)
        assert not self.run(in_a_loop, on_loop=False)
        assert self.run(in_a_loop, on_loop=True)
        assert not runs_user_code(0, on_loop=False)

    def test_their_checkpoints(self) -> None:
        work = Deadline(0)
        work.deadline = time.monotonic() - 2 * GRACE
        context = copy_context()
        context.run(current.set, work)
        work.thread = threading.get_ident() + 1
        context.run(checkpoint)  # it runs in another
        work.thread = threading.get_ident()
        with pytest.raises(Interrupted):
            context.run(checkpoint)
        context.run(checkpoint)  # what cleans up has its time
