"""Where code is."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Generator
from types import FrameType, coroutine
from typing import Any

import pytest

from snex_runtime import places
from snex_runtime.code import compile_code
from snex_runtime.contexts import in_steps
from snex_runtime.interrupts import Deadline


class TestInnermost:
    def test_rather_of_users_than_of_python(self) -> None:
        found: list[str | None] = []

        def key(number: int) -> int:
            found.append(places.innermost(sys._getframe()))
            return number

        sorted([1, 2], key=key)
        assert found[0] is not None
        assert found[0].startswith(f"{__file__}:")
        assert found[0].endswith("in key")
        import sched

        scheduler = sched.scheduler(time.monotonic, lambda _: None)
        scheduler.enter(0, 0, lambda: found.append(places.innermost(sys._getframe(1))))
        scheduler.run()  # of the standard library, called by this line
        assert found[-1] is not None
        assert found[-1].endswith("in test_rather_of_users_than_of_python")

    def test_none(self) -> None:
        assert places.innermost(None) is None
        assert places.of_user(None) is None

    def test_python_s_own_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "_STANDARD", "")
        monkeypatch.setattr(places, "_INSTALLED", ())
        place = places.innermost(sys._getframe())
        assert place is not None
        assert place.endswith("in test_python_s_own_alone")
        assert places.of_user(sys._getframe()) is None
        monkeypatch.setattr(places, "_OWN", ("/",))
        place = places.innermost(sys._getframe())
        assert place is not None
        assert place.endswith("in test_python_s_own_alone")


def test_of_users_alone() -> None:
    found: list[str | None] = []
    began, done = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait()
    assert thread.ident is not None
    frame: FrameType = sys._current_frames()[thread.ident]
    found.append(places.of_user(frame))
    done.set()
    thread.join()
    assert found[0] is not None
    assert found[0].startswith(f"{__file__}:")
    assert found[0].endswith("in wait")


class TestAwaited:
    async def test_as_far_in_as_it_is_the_users(self) -> None:
        source = "async def inner():\n  await event.wait()\n\nawait inner()"
        code = compile_code(source, "f.py", 10)
        work: Any = code.run({"event": asyncio.Event()})
        assert places.awaited(work) == "f.py:10, in <module>"
        work.send(None)
        assert places.awaited(work) == "f.py:11, in inner"
        work.close()
        assert places.awaited(work) is None

    async def test_through_what_is_ours(self) -> None:
        work: Any = compile_code("await event.wait()").run({"event": asyncio.Event()})
        steps: Any = in_steps(lambda function, *args: function(*args), Deadline(None), None, work)
        steps.send(None)
        assert places.awaited(work) == "<Snex.Code>:1, in <module>"
        assert places.awaited(steps) is None  # it calls what it runs, and does not await it
        steps.close()

    async def test_generators(self) -> None:
        @coroutine
        def old(work: Any) -> Generator[Any, Any, None]:
            yield from work

        work: Any = old(compile_code("await event.wait()").run({"event": asyncio.Event()}))
        work.send(None)
        assert places.awaited(work) == "<Snex.Code>:1, in <module>"
        work.close()

    def test_what_is_no_coroutine(self) -> None:
        assert places.awaited(7) is None

    async def test_as_many_as_there_may_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "MAX_AWAITED", 3)
        source = (
            "async def nested(n):\n  if n:\n    await nested(n - 1)\n  else:\n    await wait()\n"
            "await nested(9)"
        )
        work: Any = compile_code(source).run({"wait": asyncio.Event().wait})
        work.send(None)
        assert places.awaited(work) == "<Snex.Code>:3, in nested"
        work.close()
