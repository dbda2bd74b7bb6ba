"""What the log tells of requests: a line for each that failed, and for each that took long.

The logger is ``snex_runtime.requests``: failures are told at ``info``, as the caller knows them,
and slow requests at ``warning``. A line has the kind of the request, who asked, and where in the
code it was; no value, and no text of an exception, as either may hold what is nobody's business.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from snex_node.wire.describe import short
from snex_runtime.errors import Failure
from snex_runtime.requests import Request

__all__ = ["LOGGER", "caller_of", "told_failure", "told_failure_of", "told_slow"]

LOGGER: Final = "snex_runtime.requests"
"""The name of the logger."""

_FRAME: Final = re.compile(r'^[ |]*File "(.+)", line (\d+)(?:, in (.+))?$', re.MULTILINE)
_LOOKED_AT: Final = 4096
"""Characters of an entry of a traceback that are searched for its place, which is in front."""

_log: Final = logging.getLogger(LOGGER)


def told_failure(request: Request, failure: Failure) -> None:
    """Log that ``request`` failed, if anybody wants to know."""
    if _log.isEnabledFor(logging.INFO):
        told_failure_of(request.called, caller_of(request), failure, request.place)


def told_failure_of(kind: str, caller: str, failure: Failure, place: str | None = None) -> None:
    """Log that a request failed which was for ``kind``, by ``caller``; ``place`` is where it is if
    ``failure`` does not say.
    """
    what = failure.code if failure.type is None else f"{failure.code} ({_clean(failure.type)})"
    where = _place_in(failure.traceback or ()) or place or "no place known"
    _log.info("%s of %s failed: %s, %s", kind, caller, what, where)


def told_slow(request: Request, seconds: float) -> None:
    """Log that ``request`` took so long."""
    kind, caller, place = request.called, caller_of(request), request.place
    _log.warning("%s of %s took %d ms: %s", kind, caller, seconds * 1000, place or "no place known")


def caller_of(request: Request) -> str:
    """Who made ``request``: a pid, or of one that waits for no answer the node."""
    if request.caller is None:
        return f"a process of {request.remote.name} that waits for no answer"
    return str(request.caller.pid)


def _place_in(traceback: list[str] | tuple[()]) -> str | None:
    """The innermost frame that a traceback shows."""
    for entry in reversed(traceback):
        found = _FRAME.search(entry[:_LOOKED_AT])
        if found is not None:
            file, line, function = found.groups()
            return _clean(f"{file}:{line}" + (f" in {function}" if function else ""))
    return None


def _clean(text: str) -> str:
    """``text``, on one line and of bounded length whatever is in it."""
    return text if len(text) <= _LONGEST and text.isprintable() else short(text, _LONGEST)


_LONGEST: Final = 300
