"""Answers to requests: how they are written, when they leave, and where to.

An answer is a bare term, ``:ok`` and the like or ``{:ok, value}`` or ``{:error, error}``, encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sized
from functools import partial
from typing import Final, Protocol

from snex_node.wire.framing import FRAGMENT_SIZE
from snex_node.wire.gen import From
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Pid
from snex_runtime import journal, serde
from snex_runtime.errors import Failure
from snex_runtime.latency import Latency
from snex_runtime.lifetimes import holds, release
from snex_runtime.requests import Request

__all__ = ["MAX_REPLY", "OK", "OK_", "OK_NIL", "PONG", "Answers", "error", "failed"]

MAX_REPLY: Final = 1024 * 1024 * 1024
"""Longest reply, in bytes; a longer one is answered with an error. It is what a node of ours takes
in one message, and it has to be held twice while it is sent."""

OK: Final = b"w\x02ok"
OK_: Final = b"h\x02" + OK
"""``{:ok, _}``, of which the value is missing."""
OK_NIL: Final = OK_ + b"w\x03nil"
PONG: Final = b"w\x04pong"
_ERROR_: Final = b"h\x02w\x05error"

_log = logging.getLogger(__name__)


class Replies(Protocol):
    """Sends replies: a node."""

    def reply_encoded(self, to: From, reply: Payload, *, sender: Pid | None = None) -> None:
        """Send ``reply`` to who waits for it; nothing happens where nobody does any more."""


class Records(Protocol):
    """Knows which log records are on their way."""

    @property
    def records(self) -> Sized:
        """All of them."""

    def hold(self, request: From, release: Callable[[], None]) -> bool:
        """Call ``release`` when those of ``request`` have arrived; False where there are none."""


class Answers:
    """Sends answers, when what their requests logged has arrived.

    ``max_reply`` bounds the length of one, in bytes. Requests that take ``slow`` seconds or more
    are told of in the log; None: none is.
    """

    def __init__(
        self,
        node: Replies,
        logs: Records,
        max_reply: int = MAX_REPLY,
        slow: float | None = None,
    ) -> None:
        self.latency: Final[Latency[Request]] = Latency(slow, journal.told_slow)
        """How long requests took, from when they were read to their answer."""
        self.ended: Final = self.latency.ended
        """To be called where a request comes to its answer, which each does once: in `send`."""
        self._reply = node.reply_encoded
        self._logs = logs
        self._records = logs.records
        self._max_reply = max_reply

    def send(self, request: Request, answer: Payload) -> None:
        """Send ``answer`` to who waits for it, if anybody does."""
        self.ended(request)
        if holds:
            release(request)
        caller = request.caller
        if caller is None:
            return
        if len(answer) > self._max_reply:
            answer = self.bounded(request, answer)
        sender = request.process.pid
        if self._records and self._logs.hold(
            caller, partial(self._reply, caller, answer, sender=sender)
        ):
            return
        remote, alias = request.remote, caller.alias
        connection = remote.connection
        if connection is None or alias is None:
            self._reply(caller, answer, sender=sender)
        else:
            # The way of nearly every answer: `Node.reply_encoded`, with what is known here, which
            # saves 1.1 us of 8.6.
            message = remote.alias_send(sender, alias)
            if len(answer) > FRAGMENT_SIZE:
                connection.send(message, answer, sender, b"h\x02" + caller.tag)
            else:
                connection.send(message, b"h\x02" + caller.tag + answer, sender)

    def hold(self, caller: From, release: Callable[[], None]) -> bool:
        """Call ``release`` when what the request of ``caller`` logged has arrived; False where that
        is nothing.
        """
        return bool(self._records) and self._logs.hold(caller, release)

    def bounded(self, request: Request, answer: Payload) -> Payload:
        """``answer``, or one that says that it is too long."""
        if len(answer) <= self._max_reply:
            return answer
        reason = (
            f"the result takes {len(answer)} bytes, and a reply has at most {self._max_reply}: "
            "return it in parts, or write it to a file"
        )
        return failed(request, Failure("python_runtime_error", reason))


def failed(request: Request, failure: Failure) -> bytes:
    """The answer ``{:error, error}``; it is logged where nobody waits for one."""
    journal.told_failure(request, failure)
    if request.caller is None:
        _log.error("a request without an answer failed: %s", failure.describe())
    return error(failure)


def error(failure: Failure) -> bytes:
    """The answer ``{:error, error}``."""
    return _ERROR_ + serde.encoder.encode(failure.to_term())
