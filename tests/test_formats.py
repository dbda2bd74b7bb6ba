"""How log records are written."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime, timezone
from typing import Any

import pytest

from snex_runtime.formats import CHOICES, MAX_JSON, JsonFormatter, formatter


def record(message: str = "%s is there", *args: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.WARNING, "f.py", 3, message, args, None)
    vars(made).update(more)
    return made


def written(made: logging.LogRecord, node: str | None = "py@127.0.0.1") -> dict[str, Any]:
    line = JsonFormatter(node).format(made)
    assert "\n" not in line
    assert len(line.encode()) <= MAX_JSON
    told = json.loads(line)
    assert list(told) == ["time", "level", "logger", "message", "node", "pid", "exception"]
    return dict(told)


class TestJson:
    def test_what_is_in_it(self) -> None:
        at = datetime(2026, 11, 27, 20, 30, 1, 250_000, timezone.utc)
        assert written(record("%s is there", "it", created=at.timestamp())) == {
            "time": "2026-11-27T20:30:01.250Z",
            "level": "warning",
            "logger": "a.logger",
            "message": "it is there",
            "node": "py@127.0.0.1",
            "pid": os.getpid(),
            "exception": None,
        }

    def test_before_the_node_has_its_name(self) -> None:
        assert written(record("early"), None)["node"] is None

    def test_an_exception(self) -> None:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            made = record("it failed", exc_info=sys.exc_info(), stack_info="Stack:\n  here")
        told = written(made)
        assert told["message"] == "it failed"
        assert told["exception"].startswith("Traceback (most recent call last):")
        assert "ValueError: two\nlines" in told["exception"]
        assert told["exception"].endswith("Stack:\n  here")

    def test_one_that_is_a_text_already(self) -> None:
        assert (
            written(record("it failed", exc_text="Traceback ..."))["exception"] == "Traceback ..."
        )

    def test_there_is_no_exception_after_all(self) -> None:
        assert written(record("x", exc_info=(None, None, None)))["exception"] is None

    @pytest.mark.parametrize("character", ["x", "\0", "\u20ac", "\U0001f600", "\ud800", '"', "\n"])
    def test_it_is_bounded(self, character: str) -> None:
        long = character * 200_000
        told = written(record(long.replace("%", "%%"), exc_text=long))
        for text in (told["message"], told["exception"]):
            assert text.startswith(character * 100)
            assert text.endswith(" ... (cut off)")

    def test_with_a_name_that_leaves_no_room(self) -> None:
        line = JsonFormatter("n" * MAX_JSON).format(record("x" * 100_000))
        assert len(line) < MAX_JSON + 1000
        assert json.loads(line)["message"]


def test_choices() -> None:
    text, as_json = (formatter(kind, "py@127.0.0.1") for kind in CHOICES)
    assert text.format(record("there")).endswith(" WARNING there")
    assert isinstance(as_json, JsonFormatter)
    assert as_json.node == "py@127.0.0.1"
