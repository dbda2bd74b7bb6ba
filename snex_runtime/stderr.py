"""Logging to standard error that never holds up who logs.

Standard error may be a pipe that nobody reads, or a terminal that was stopped with Ctrl-S. What
writes to it then waits, and if that is the event loop, the node has stopped for everybody. So
records are written by a thread of their own, those for which there is no room are counted, and the
count is written when there is room again.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, TextIO

from snex_runtime.formats import JsonFormatter, formatter

MAX_WAITING: Final = 1_000
"""Records that wait to be written; beyond it they are counted as dropped. A stranger who has us log
while nobody reads can make us hold this many, 64 MB with `MAX_RECORD`."""

MAX_RECORD: Final = 64 * 1024
"""Bytes of one record, its traceback included; what is longer is cut off."""

PATIENCE: Final = 0.5
"""Seconds without any progress after which an ending program stops waiting for its reader."""

_CHUNK: Final = 4096
"""Bytes written at a time: a pipe said to have room has room for that many (PIPE_BUF on Linux)."""

_MARK: Final = b" ... (cut off)"

_handlers: weakref.WeakSet[StderrHandler] = weakref.WeakSet()


class StderrHandler(logging.Handler):
    """Writes records to the descriptor ``file`` (default: that of standard error).

    It never waits, from whatever thread records come, and starts its own thread with the first
    record. Where there is nobody to write to (the descriptor is closed, its reader has gone) they
    are lost without a word. `flush`, which `logging` calls when the program ends, waits as long as
    somebody reads.

    >>> logging.getLogger().addHandler(StderrHandler())
    """

    def __init__(self, level: int = logging.NOTSET, file: int | None = None) -> None:
        super().__init__(level)
        self.file = file
        """The descriptor; None where there is no standard error."""
        self._encoding = "utf-8"
        if file is None:
            self._take_standard_error()
        self.forget()
        _handlers.add(self)

    def _take_standard_error(self) -> None:
        try:
            self.file = sys.stderr.fileno()
            self._encoding = sys.stderr.encoding
        except (AttributeError, OSError, ValueError):  # there is none, or it is no file
            pass

    def forget(self) -> None:
        """Forget what waits: as at first, and in a forked child, which has no thread for it."""
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each is written by one side only, so that neither needs a lock.
        self._dropped = 0  # counted by who logs
        self._told = 0  # of those, written by the thread
        self._written = 0  # bytes, by the thread

    @property
    def dropped(self) -> int:
        """Records that were dropped since the start."""
        return self._dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written, or count it."""
        if not self._has_place():
            return
        try:
            text = self.format(record)
        except Exception:  # its arguments do not fit its message, for example
            where = f"{record.pathname}:{record.lineno}"
            text = self._as_record(
                f"the log record made at {where} has no text: {traceback.format_exc()}",
                record.name,
                logging.ERROR,
            )
        self._put(text)

    def _as_record(self, text: str, logger: str, level: int = logging.WARNING) -> str:
        """``text``, that of no record, as what gathers these lines expects it."""
        if not isinstance(self.formatter, JsonFormatter):
            return text
        record = logging.LogRecord(logger, level, __file__, 0, text, None, None)
        return self.formatter.format(record)

    def _has_place(self) -> bool:
        if self.file is not None and self._waiting.qsize() >= MAX_WAITING:
            self._dropped += 1
            return False
        return self.file is not None

    def _put(self, text: str) -> None:
        data = _line(text.encode(self._encoding, "backslashreplace"))
        if sys.is_finalizing():
            # No thread runs any more: the queue would hand this to one that never wakes up, and who
            # starts one would wait for it for ever.
            self._write_waiting()
            if self._has_room(0):
                self._write(data)
            return
        self._waiting.put(data)
        self._start()

    def take_reports(self) -> Callable[[], None]:
        """Write warnings, and exceptions that nobody can be told of, as well: Python itself would
        wait for the reader of standard error.

        Those of code that has another ``sys.stderr`` go there. Returns what undoes it.
        """
        stream, before = sys.stderr, (warnings.showwarning, sys.unraisablehook)

        def is_ours() -> bool:
            # When the interpreter goes the thread has gone already.
            return sys.stderr is stream and not sys.is_finalizing()

        def show_warning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if file is not None or not is_ours():
                before[0](message, category, filename, lineno, file, line)
            elif self._has_place():
                text = warnings.formatwarning(message, category, filename, lineno, line)
                self._put(self._as_record(text.rstrip("\n"), "py.warnings"))

        def report(unraisable: sys.UnraisableHookArgs) -> None:
            if not is_ours():
                before[1](unraisable)
            elif self._has_place():
                text = _unraisable_text(unraisable)
                self._put(self._as_record(text, __name__, logging.ERROR))

        def undo() -> None:
            warnings.showwarning, sys.unraisablehook = before

        warnings.showwarning = show_warning
        sys.unraisablehook = report
        return undo

    def _start(self) -> None:
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="snex-stderr", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, or there is no room for another thread
            self._thread = None
            self._write_waiting()

    def flush(self) -> None:
        """Wait until all is written, or until nothing has been read for `PATIENCE`."""
        if self._thread is None or not self._thread.is_alive():
            return
        done = threading.Event()
        self._waiting.put(done)
        while True:
            before = self._written
            if done.wait(PATIENCE) or self._written == before:
                return

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._handle(self._waiting.get())

    def _write_waiting(self) -> None:
        """Write what waits, without a thread, as far as there is room."""
        while not self._waiting.empty() and self._has_room(0):
            self._handle(self._waiting.get())

    def _handle(self, item: bytes | threading.Event) -> None:
        if isinstance(item, bytes):
            self._write(item)
        missing = self._dropped - self._told
        if missing and self._waiting.empty():
            self._told += missing
            text = f"{missing} log records were dropped: nobody read standard error"
            self._write(_line(self._as_record(text, __name__).encode()))
        if isinstance(item, threading.Event):
            item.set()

    def _write(self, data: bytes) -> None:
        assert self.file is not None
        view = memoryview(data)
        while view:
            try:
                done = os.write(self.file, view[:_CHUNK])
            except BlockingIOError:
                # Another process made it non-blocking: terminals are shared with whoever has them.
                self._has_room(None)
                continue
            except OSError:  # nobody is there to read
                return
            self._written += done
            view = view[done:]

    def _has_room(self, seconds: float | None) -> bool:
        assert self.file is not None
        try:
            return bool(select.select([], [self.file], [], seconds)[1])
        except (OSError, ValueError):  # closed: writing says so
            return True


def log_to_stderr(level: str, kind: str = "text", node: str | None = None) -> StderrHandler:
    """Have all log records of ``level`` and above written to standard error, as ``kind``, which is
    one of `formats.CHOICES`, and as those of ``node``.
    """
    handler = StderrHandler()
    handler.setFormatter(formatter(kind, node))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    return handler


def _unraisable_text(unraisable: sys.UnraisableHookArgs) -> str:
    """As Python writes it. A ``repr`` that fails is no reason to say nothing."""
    error = unraisable.exc_value or unraisable.exc_type()
    lines = "".join(traceback.format_exception(type(error), error, unraisable.exc_traceback))
    if unraisable.object is None:
        said = f"{unraisable.err_msg}:\n" if unraisable.err_msg else ""
        return f"{said}{lines}".rstrip("\n")
    try:
        what = repr(unraisable.object)
    except Exception:
        what = "<object repr() failed>"
    return f"{unraisable.err_msg or 'Exception ignored in'}: {what}\n{lines}".rstrip("\n")


def _line(data: bytes) -> bytes:
    if len(data) > MAX_RECORD:
        data = data[: MAX_RECORD - len(_MARK)] + _MARK
    return data + b"\n"


def _forked() -> None:
    for handler in _handlers:
        handler.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
