"""The end of a process within its time: what cleans up can, and nothing else lives on.

Each test is a child of its own, in which the loop runs on the main thread and the end comes from
another one, as in a node.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from snex_runtime import ending, interrupts
from snex_runtime.ending import Ending
from tests.support import endless
from tests.support.forked import Ended, forked

STATUS = 7


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the times of a real end."""
    for name in "PATIENCE", "AGAIN", "STUCK", "OTHERS":
        monkeypatch.setattr(ending, name, getattr(ending, name) / 10)


def process(
    work: Callable[[], Coroutine[Any, Any, object]],
    *,
    grace: float = 20.0,
    after: Callable[[], object] = int,
) -> Callable[[], None]:
    """What a process does that is told to end while ``work`` runs on its loop.

    ``after`` runs when the loop is over, before the functions of `atexit`.
    """

    def run() -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)

        async def main() -> None:
            stop = asyncio.Event()
            end = Ending(stop.set, grace=grace)
            threading.Thread(target=end.finish, args=(STATUS,), daemon=True).start()
            task = asyncio.ensure_future(work())
            waiter = asyncio.ensure_future(stop.wait())
            await asyncio.wait([waiter])
            task.cancel()
            await asyncio.wait([task])
            end.over()

        _until_done(loop, main())
        after()
        loop.close()
        atexit._run_exitfuncs()
        os._exit(STATUS)

    return run


def _until_done(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    task = loop.create_task(main)
    while not task.done():
        # The interruption of a task leaves the loop as well, as in `loops`.
        with contextlib.suppress(KeyboardInterrupt):
            loop.run_until_complete(task)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def nothing() -> None:
    pass


async def waits() -> None:
    await asyncio.Event().wait()


async def blocks() -> None:
    try:
        while True:
            pass
    except KeyboardInterrupt as error:
        say(str(error))
        raise


async def cleans_up() -> None:
    try:
        while True:
            pass
    finally:
        # Longer than it takes until code that goes on is interrupted again.
        end = time.monotonic() + 3 * ending.AGAIN
        while time.monotonic() < end:
            pass
        say("cleaned up")


async def awaits_in_finally() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)
        say("cleaned up")


async def takes_no_notice() -> None:
    interrupted = 0
    while interrupted < 3:
        try:
            while True:
                pass
        except KeyboardInterrupt:
            interrupted += 1
    say(f"{interrupted} times")


async def is_in_c() -> None:
    try:
        exec(endless.RELEASES_THE_LOCK, {})
    finally:
        say("it returned")


class TestTheLoop:
    @pytest.mark.parametrize(
        ("work", "said"),
        [
            (nothing, ""),
            (waits, ""),
            (blocks, "this process ends\n"),
            (cleans_up, "cleaned up\n"),
            (awaits_in_finally, "cleaned up\n"),
            (takes_no_notice, "3 times\n"),
            pytest.param(is_in_c, "", marks=pytest.mark.untraced),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_what_runs_on_it_ends(self, work: Any, said: str) -> None:
        assert forked(process(work)) == Ended(STATUS, said)

    def test_the_functions_of_atexit_are_called(self) -> None:
        async def registers() -> None:
            atexit.register(say, "at exit")

        assert forked(process(registers)) == Ended(STATUS, "at exit\n")

    @pytest.mark.parametrize("work", [pytest.param(is_in_c, marks=pytest.mark.untraced), waits])
    def test_they_are_where_the_main_thread_does_not_get_to_it(self, work: Any) -> None:
        async def registers() -> None:
            atexit.register(say, "at exit")
            await work()

        after = threading.Event().wait if work is waits else int
        assert forked(process(registers, after=after)) == Ended(STATUS, "at exit\n")

    def test_what_was_printed_is_not_lost(self) -> None:
        async def prints() -> None:
            sys.stdout = buffered
            print("printed")
            await waits()

        buffered = open(1, "w", buffering=10_000, closefd=False)  # noqa: SIM115
        assert forked(process(prints, after=threading.Event().wait)) == Ended(STATUS, "printed\n")


class TestTime:
    @pytest.mark.parametrize("status", [0, STATUS])
    def test_clean_up_without_end_is_given_up(
        self, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules[__name__], "STATUS", status)

        async def never_ends() -> None:
            atexit.register(say, "at exit")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.Event().wait()

        began = time.monotonic()
        # Functions of atexit have a time of their own.
        assert forked(process(never_ends, grace=0.3)) == Ended(status or 1, "at exit\n")
        assert time.monotonic() - began >= 0.3

    def test_so_is_a_function_of_atexit(self) -> None:
        async def registers() -> None:
            atexit.register(threading.Event().wait)

        assert forked(process(registers, grace=0.3)) == Ended(STATUS, "")

    def test_code_that_blocks_for_ever_is_interrupted_until_then(self) -> None:
        async def never_ends() -> None:
            while True:
                with contextlib.suppress(KeyboardInterrupt):
                    while True:
                        pass

        assert forked(process(never_ends, grace=0.5)) == Ended(STATUS, "")


class TestOthers:
    def test_threads_that_end_soon_are_waited_for(self) -> None:
        def work() -> None:
            time.sleep(ending.OTHERS / 4)
            say("the thread")

        thread = threading.Thread(target=work)

        async def starts() -> None:
            thread.start()

        assert forked(process(starts, after=thread.join)) == Ended(STATUS, "the thread\n")

    def test_others_are_not(self) -> None:
        thread = threading.Thread(target=threading.Event().wait)

        async def starts() -> None:
            thread.start()

        assert forked(process(starts, after=thread.join)) == Ended(STATUS, "")

    def test_children_of_multiprocessing_are_ended(self) -> None:
        def run() -> None:
            child = multiprocessing.get_context("fork").Process(target=threading.Event().wait)

            async def starts() -> None:
                child.start()

            process(starts, after=child.join)()

        # It has the output, whose end was waited for.
        assert forked(run) == Ended(STATUS, "")


def test_where_the_loop_is_closed_nothing_more_is_asked_of_it() -> None:
    def run() -> None:
        loop = asyncio.new_event_loop()

        async def make() -> Ending:
            return Ending(lambda: say("asked"), grace=0.3)

        end = loop.run_until_complete(make())
        loop.close()
        assert interrupts.SIGNAL is not None
        signal.signal(interrupts.SIGNAL, signal.SIG_IGN)  # no part of this
        threading.Thread(target=end.finish, args=(STATUS,)).start()
        threading.Event().wait()

    assert forked(run) == Ended(STATUS, "")


def test_off_the_main_thread_no_handler_is_set() -> None:
    async def make() -> None:
        Ending(lambda: None)

    def run() -> None:
        assert interrupts.SIGNAL is not None
        before = signal.getsignal(interrupts.SIGNAL)
        thread = threading.Thread(target=asyncio.run, args=(make(),))
        thread.start()
        thread.join()
        assert signal.getsignal(interrupts.SIGNAL) is before

    assert forked(run) == Ended(0, "")
