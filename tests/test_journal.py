"""What the log tells of requests."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from snex_runtime import journal
from snex_runtime.code import compile_code
from snex_runtime.errors import Failure, bad_request, from_exception
from snex_runtime.requests import Request
from tests.support.pair import pair
from tests.support.requests import PID, by_alias, request_of


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, journal.LOGGER)


def asked(**attributes: Any) -> Request:
    request = request_of(b"h\x03w\x04eval", caller=by_alias())
    for name, value in {"kind": "eval", **attributes}.items():
        setattr(request, name, value)
    return request


def failure_of(source: str, file: str = "f.py") -> Failure:
    try:
        compile_code(source, file).run({})
    except Exception as error:
        return from_exception(error)
    raise AssertionError("nothing was raised")


class TestFailures:
    def test_an_exception(self, caplog: pytest.LogCaptureFixture) -> None:
        failure = failure_of("def inner():\n  raise ValueError('secret')\n\ninner()")
        journal.told_failure(asked(), failure)
        line = f"eval of {PID} failed: python_runtime_error (ValueError), f.py:2 in inner"
        (record,) = caplog.records
        assert (record.levelno, record.getMessage()) == (logging.INFO, line)

    def test_of_code_that_does_not_compile(self, caplog: pytest.LogCaptureFixture) -> None:
        journal.told_failure(asked(), failure_of("a = 1\nb ="))
        assert caplog.messages == [
            f"eval of {PID} failed: python_runtime_error (SyntaxError), f.py:2"
        ]

    def test_without_a_traceback(self, caplog: pytest.LogCaptureFixture) -> None:
        code = compile_code("return 1", "g.py", 7)
        journal.told_failure(asked(runs=code), Failure("cancelled", "secret"))
        journal.told_failure(asked(runs=("math", "sqrt"), kind="call"), Failure("cancelled", "s"))
        request = request_of(b"h\x03w\x04eval")
        journal.told_failure(request, bad_request("secret"))
        assert caplog.messages == [
            f"eval of {PID} failed: cancelled, g.py:7",
            f"call of {PID} failed: cancelled, math.sqrt",
            "unknown of a process of app@host that waits for no answer failed: bad_request, "
            "no place known",
        ]

    @pytest.mark.parametrize("file", ["a\nb", "x" * 1000])
    def test_names_are_on_one_line_and_bounded(
        self, caplog: pytest.LogCaptureFixture, file: str
    ) -> None:
        code = compile_code("def f():\n  pass", file)
        journal.told_failure(asked(runs=code), Failure("cancelled", ""))
        kind = type("T" * 1000, (Exception,), {})
        journal.told_failure(asked(), from_exception(kind()))
        journal.told_failure(asked(), failure_of("1 / 0", file))
        for message in caplog.messages:
            assert len(message) < 1000
            assert "\n" not in message

    def test_nobody_wants_to_know(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.WARNING, journal.LOGGER)
        monkeypatch.setattr(journal, "told_failure_of", None)
        journal.told_failure(asked(), Failure("cancelled", ""))
        assert caplog.messages == []


def test_slow_ones(caplog: pytest.LogCaptureFixture) -> None:
    journal.told_slow(asked(runs=compile_code("return 1")), 1.5)
    journal.told_slow(asked(), 0.002)
    assert caplog.messages == [
        f"eval of {PID} took 1500 ms: <Snex.Code>:1",
        f"eval of {PID} took 2 ms: no place known",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_in_a_runtime(caplog: pytest.LogCaptureFixture) -> None:
    """On the loop, in a thread, and of what awaits: each is told of once."""
    async with pair(slow=0.05) as both:
        me = str(both.peer.name)
        thread = {"executor": "thread"}
        await both.call("eval", "raise KeyError('secret')", {})
        await both.call("eval", "import asyncio\nawait asyncio.sleep(0)\n1 / 0", {})
        await both.call("eval", "[].pop()", {}, thread)
        await both.call("call", "math", "sqrt", [-1])
        await both.call("nope")
        lines = [line for line in caplog.messages if me in line]
        failed = [line.partition(" failed: ")[2] for line in lines]
        assert failed == [
            "python_runtime_error (KeyError), <Snex.Code>:1 in <module>",
            "python_runtime_error (ZeroDivisionError), <Snex.Code>:3 in <module>",
            "python_runtime_error (IndexError), <Snex.Code>:1 in <module>",
            "python_runtime_error (ValueError), math.sqrt",
            "bad_request, no place known",
        ]
        assert "secret" not in caplog.text
        caplog.clear()
        await both.call("eval", "import time\ntime.sleep(0.1)", {})
        await both.call("eval", "import asyncio\n\nawait asyncio.sleep(0.1)", {})
        slow = [line for line in caplog.messages if line.startswith("eval of") and me in line]
        assert len(slow) == 2
        assert all(line.endswith(" ms: <Snex.Code>:1") for line in slow)
