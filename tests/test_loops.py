"""Running the event loop: both kinds, and what must not end it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
import threading

import pytest

from snex_node.system import forks
from snex_runtime import loops

CHOICES = ("asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else []))


@pytest.mark.parametrize("choice", CHOICES)
class TestRun:
    def test_returns_and_raises_what_main_does(self, choice: str) -> None:
        async def returns() -> str:
            return type(asyncio.get_running_loop()).__module__

        async def raises() -> None:
            raise ValueError("mine")

        assert loops.run(returns(), choice).startswith(choice)
        with pytest.raises(ValueError, match="mine"):
            loops.run(raises(), choice)

    def test_ends_what_main_left_running(self, choice: str) -> None:
        ended: list[str] = []

        async def left() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("left")

        async def main() -> asyncio.Task[None]:
            task = asyncio.create_task(left())
            await asyncio.sleep(0)
            return task

        assert loops.run(main(), choice).cancelled()
        assert ended == ["left"]

    def test_sys_exit_elsewhere_ends_that_code_only(
        self, choice: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def quits() -> None:
            sys.exit(3)

        async def main() -> str:
            asyncio.get_running_loop().call_soon(sys.exit, 4)
            task = asyncio.create_task(quits())
            await asyncio.wait([task])
            with pytest.raises(SystemExit):
                task.result()
            return "still here"

        with caplog.at_level(logging.WARNING):
            assert loops.run(main(), choice) == "still here"
        # Once for each, or for those of one turn of the loop together.
        said = [record.getMessage() for record in caplog.records]
        assert said
        assert set(said) == {"code on the event loop called sys.exit(): only that code has ended"}

    def test_sys_exit_of_main_is_mains(self, choice: str) -> None:
        async def main() -> None:
            sys.exit(5)

        with pytest.raises(SystemExit) as caught:
            loops.run(main(), choice)
        assert caught.value.code == 5


def test_nest_asyncio_is_refused() -> None:
    async def main() -> bool:
        # What it looks at first.
        return hasattr(asyncio.get_running_loop(), "_nest_patched")

    with pytest.raises(RuntimeError, match="nest_asyncio cannot patch the event loop of a snex"):
        loops.run(main(), "asyncio")


@pytest.mark.parametrize("choice", CHOICES)
class TestWhatCodeElsewhereDoes:
    def test_handlers_set_inside_of_it_are_gone_with_it(self, choice: str) -> None:
        async def main() -> None:
            before = forks.set_handler(signal.SIGINT, lambda *_: None)
            forks.reset_handler(signal.SIGINT, before)
            assert forks.has_handler(signal.SIGINT)

        loops.run(main(), choice)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not forks.has_handler(signal.SIGINT)

    def test_stopping_the_loop(self, choice: str, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> str:
            for _ in range(3):
                asyncio.get_running_loop().stop()
                await asyncio.sleep(0)
            return "still here"

        assert loops.run(main(), choice) == "still here"
        said = [record.getMessage() for record in caplog.records]
        assert said == ["code on the event loop stopped the loop, which is not its own: it goes on"]

    def test_keyboard_interrupt_that_is_none(
        self, choice: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def raises() -> None:
            raise KeyboardInterrupt

        async def main() -> str:
            task = asyncio.create_task(raises())
            await asyncio.wait([task])
            assert isinstance(task.exception(), KeyboardInterrupt)
            return "still here"

        assert loops.run(main(), choice) == "still here"
        assert "raised KeyboardInterrupt" in caplog.text

    def test_ctrl_c_is_no_such_thing(self, choice: str) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.sleep(60)

        with pytest.raises(KeyboardInterrupt):
            loops.run(main(), choice)

    def test_cancelling_all_tasks(self, choice: str) -> None:
        async def main() -> str:
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(0)
            return "still here"

        assert loops.run(main(), choice) == "still here"


def test_an_unknown_choice_is_refused_before_main_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        raise AssertionError("was run")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="uvloop is not installed"):
        loops.run(main(), "uvloop")


def test_a_loop_of_a_thread() -> None:
    """It runs what its thread gives it, and ends children that are forked there."""
    outcome: list[object] = []

    def run() -> None:
        loop = loops.loop_of_thread()
        try:
            runner = loops.Runner(loop)
            outcome.append(runner.run(asyncio.sleep(0, 5)))
            pid = runner.run(fork())
            outcome.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        finally:
            forks.leave_loop()
            forks.leave_loop()
            loop.close()

    async def fork() -> int:
        pid = os.fork()
        if pid == 0:
            await asyncio.sleep(0)  # the loop's next turn ends it
            os._exit(7)
        return pid

    # A child does so where there is a node's loop, which is another thread's.
    with forks.owning_loop(asyncio.new_event_loop) as owner:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
        owner.close()
    assert outcome == [5, 1]
