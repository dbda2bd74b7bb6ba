"""How log records are written: as text, or as JSON for programs that gather logs."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Final

__all__ = ["CHOICES", "MAX_JSON", "TEXT", "JsonFormatter", "formatter"]

CHOICES: Final = ("text", "json")

TEXT: Final = "%(asctime)s %(levelname)s %(message)s"

MAX_JSON: Final = 60 * 1024
"""Bytes of one record; message and exception are shortened until it fits, so that it stays JSON."""

_MARK: Final = " ... (cut off)"


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, on one line.

    It has ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``node`` (its name; null
    before that is known), ``pid`` (of the process) and ``exception`` (the traceback, or null).

    >>> line = JsonFormatter("py@127.0.0.1").format(logging.makeLogRecord({"msg": "it is there"}))
    >>> json.loads(line)["message"]
    'it is there'
    """

    def __init__(self, node: str | None = None) -> None:
        super().__init__()
        self.node = node
        """The name of the node that the records are of."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, in 60 KiB at most."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        message, exception = record.getMessage(), self._exception(record)
        most = MAX_JSON
        while True:
            fields = {
                "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": _cut(message, most),
                "node": self.node,
                "pid": record.process,
                "exception": None if exception is None else _cut(exception, most),
            }
            line = json.dumps(fields)
            if len(line) <= MAX_JSON or most < len(_MARK):
                return line
            most //= 2

    def _exception(self, record: logging.LogRecord) -> str | None:
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        elif record.exc_text:
            parts.append(record.exc_text)
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(parts) or None


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(0, most - len(_MARK))] + _MARK


def formatter(kind: str, node: str | None = None) -> logging.Formatter:
    """What writes records as ``kind``, one of `CHOICES`, for ``node``."""
    return JsonFormatter(node) if kind == "json" else logging.Formatter(TEXT)
