"""A handler that carries Python's log records to Elixir's ``Logger``.

Source: "Using Elixir Logger from Python" in the README of Snex.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from snex_node.wire.describe import type_name
from snex_runtime import interface, serde
from snex_runtime.serde import Atom

MAX_METADATA: Final = 64 * 1024
"""Characters of what stands for a value of the metadata that cannot be sent itself."""

_LEVELS: Final = (
    (logging.DEBUG, "debug"),
    (logging.INFO, "info"),
    (logging.WARNING - 1, "notice"),
    (logging.WARNING, "warning"),
    (logging.ERROR, "error"),
    (logging.CRITICAL, "critical"),
    (logging.CRITICAL + 10, "alert"),
)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({})))


def elixir_level(level: int) -> str:
    """The Elixir level for a Python one; notice lies between INFO and WARNING.

    >>> elixir_level(logging.INFO), elixir_level(25), elixir_level(70)
    ('info', 'notice', 'emergency')
    """
    for highest, name in _LEVELS:
        if level <= highest:
            return name
    return "emergency"


class LoggingHandler(logging.Handler):
    """Sends records to Elixir's ``Logger``, in order, from any thread.

    ``default_metadata`` is added to every record's metadata; an attribute of the record of the same
    name wins. ``extra_metadata_keys`` name the attributes (given as ``extra=``) that become
    metadata; they win over everything. It never raises into the code that logs: failures go to
    ``logging``'s own error handler. Records made while no BEAM is connected are kept, up to a
    bound, and sent when one is.

    >>> handler = LoggingHandler(default_metadata={"application": Atom("my_app")})
    >>> logging.getLogger("my_app").addHandler(handler)
    """

    def __init__(
        self,
        level: int | str = logging.NOTSET,
        *,
        default_metadata: Mapping[str, object] | None = None,
        extra_metadata_keys: Iterable[str] | None = None,
    ) -> None:
        super().__init__(level)
        self._default_metadata = dict(default_metadata or {})
        self._extra_keys = frozenset(extra_metadata_keys or ())

    def takes(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` gets to Elixir from here.

        Those that carrying records makes do not: each would make the next.
        """
        if record.levelno < self.level or interface.delivering_logs.get():
            return False
        return interface.current_backend() is not None or not interface.has_stopped()

    def emit(self, record: logging.LogRecord) -> None:
        """Send ``record`` as ``Logger.bare_log(level, text, metadata)``.

        What comes when the runtime has stopped is lost, as there is nobody any more to tell.
        """
        if not self.takes(record):
            return
        try:
            text = self.format(record).encode("utf-8", "backslashreplace").decode("utf-8")
            level = elixir_level(record.levelno)
            interface.get_backend().log(level, text, self.metadata(record))
        except Exception:
            if self.takes(record):  # else it has stopped just now
                self.handleError(record)

    def metadata(self, record: logging.LogRecord) -> dict[Atom, object]:
        """What goes with the text: location, time, and the ``python_*`` facts."""
        metadata: dict[str, object] = {
            "application": Atom("snex"),
            "domain": [Atom("snex"), Atom("python")],
            **self._default_metadata,
            "file": _path(record.pathname),
            "line": record.lineno,
            "time": int(record.created * 1_000_000),
            "python_logger_name": record.name,
            "python_log_level": record.levelname,
            "python_module": record.module,
            "python_function": record.funcName,
            "python_process_id": record.process,
            "python_thread_id": record.thread,
            "python_thread_name": record.threadName,
            "python_task_name": _task_name(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            metadata["python_exception"] = type_name(type(record.exc_info[1])).rpartition(".")[2]
        attributes = record.__dict__
        for name in self._default_metadata:
            if name in attributes and name not in _STANDARD:
                metadata[name] = attributes[name]
        for name in self._extra_keys:
            if name in attributes:
                metadata[name] = attributes[name]
        return {Atom(name): _sendable(value) for name, value in metadata.items()}


def is_untold(record: logging.LogRecord) -> bool:
    """Whether no handler of the root logger takes ``record``.

    A filter for a handler of the library's own loggers: what users let the root logger tell, in
    Elixir's `Logger` say, need not be told a second time.
    """
    return not any(
        handler.takes(record)
        if isinstance(handler, LoggingHandler)
        else record.levelno >= handler.level
        for handler in logging.getLogger().handlers
    )


def _path(file: str) -> bytes:
    """The full path; code that is in no file, such as ``<Snex.Code>``, has none."""
    path = file if file.startswith("<") else os.path.abspath(file)
    return path.encode("utf-8", "surrogateescape")


def _task_name(record: logging.LogRecord) -> str | None:
    name: str | None = getattr(record, "taskName", None)  # from 3.12 on
    if name is None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return None
        name = task.get_name() if task is not None else None
    return name


def _sendable(value: Any) -> object:
    """Metadata as it is where it can be sent, else its text.

    An iterator is not taken to its end for that: others want what it gives.
    """
    try:
        if issubclass(type(value), Iterator):
            return _repr(value)
        serde.encoder.encode(value)
    except Exception:
        return _repr(value)
    return value


def _repr(value: object) -> str:
    """The text of an object of the user's, whose own ``__repr__`` must not cost the record.

    Here it is called, as the user asked for this very object to be told of.
    """
    try:
        text = repr(value)[:MAX_METADATA]
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception:
        return f"<{type_name(type(value))}, whose __repr__ failed>"
