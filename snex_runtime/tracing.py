"""Where a request stands in a distributed trace: ``traceparent``, as W3C Trace Context has it.

It comes with the request, is a part of its origin, and is that of all that the code starts. Where
``opentelemetry`` can be imported, its context is set as well, for each step that the code takes, so
that spans which it begins are children of the caller's.

Source: https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeVar

__all__ = ["BOUNDARIES", "MAX_TRACEPARENT", "checked", "entered", "in_steps"]

MAX_TRACEPARENT: Final = 256
"""Characters: 55 in this version, later ones may have more behind them."""

_IDS: Final = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_VALID: Final = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-[!-~]*)?")

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")


def checked(value: object) -> str:
    """``value``, which has to be a ``traceparent``. Raises ``ValueError``.

    >>> checked("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    """
    if isinstance(value, str) and len(value) <= MAX_TRACEPARENT and _VALID.fullmatch(value):
        return str.__str__(value)
    raise ValueError(
        "traceparent takes a binary as W3C Trace Context has it: version, trace, parent and flags, "
        "00-<32 hex digits>-<16 hex digits>-<2 hex digits>"
    )


class _Telemetry(NamedTuple):
    """What is used of ``opentelemetry``."""

    extract: Callable[[dict[str, str]], Any]
    """Makes a context of headers."""

    attach: Callable[[Any], Any]
    """Makes a context that of the code that runs; what it gives is for `detach`."""

    detach: Callable[[Any], None]
    current: Callable[[], Any]


@lru_cache(maxsize=1)
def _telemetry() -> _Telemetry | None:
    try:
        context: Any = import_module("opentelemetry.context")
        propagation: Any = import_module("opentelemetry.trace.propagation.tracecontext")
        extract = propagation.TraceContextTextMapPropagator().extract
        return _Telemetry(extract, context.attach, context.detach, context.get_current)
    except ImportError:
        return None
    except Exception:  # it is none of ours, and nobody's request has to fail for it
        _log.exception("opentelemetry cannot be used")
        return None


def entered(traceparent: str) -> AbstractContextManager[None]:
    """Whatever runs inside is a part of that trace, for OpenTelemetry."""
    telemetry = _telemetry()
    if telemetry is None:
        return contextlib.nullcontext()
    return _attached(telemetry, telemetry.extract({"traceparent": traceparent}))


@contextlib.contextmanager
def _attached(telemetry: _Telemetry, context: Any) -> Generator[None, None, None]:
    token = telemetry.attach(context)
    try:
        yield
    finally:
        telemetry.detach(token)


def in_steps(traceparent: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """``work``, each step of which is a part of that trace, and goes on with the spans that it has
    begun: others may run in its context between two of them.
    """
    telemetry = _telemetry()
    return work if telemetry is None else _Steps(work, telemetry, traceparent)


class _Steps(Coroutine[Any, Any, T]):
    def __init__(
        self, work: Coroutine[Any, Any, T], telemetry: _Telemetry, traceparent: str
    ) -> None:
        self._work = work
        self._telemetry = telemetry
        self._context = telemetry.extract({"traceparent": traceparent})

    def _step(self, function: Callable[..., Any], *args: Any) -> Any:
        telemetry = self._telemetry
        token = telemetry.attach(self._context)
        try:
            return function(*args)
        finally:
            self._context = telemetry.current()
            telemetry.detach(token)

    def send(self, value: Any) -> Any:
        return self._step(self._work.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._work.throw, *error)

    def close(self) -> None:
        self._step(self._work.close)

    def __await__(self) -> Generator[Any, Any, T]:
        return _iterated(self)


def _iterated(work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    value: Any = None
    resume: Callable[[Any], Any] = work.send
    while True:
        try:
            awaited = resume(value)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            value = yield awaited
            resume = work.send
        except BaseException as error:  # it is cancelled, interrupted or closed
            value = error
            resume = work.throw


BOUNDARIES: Final = (_Steps._step.__code__,)  # noqa: SLF001 - of this file
"""What calls user code, for `interrupts`."""
