"""What can go wrong between nodes, as exceptions; and Python's exceptions as Erlang reasons."""

from __future__ import annotations

import os
import traceback
from typing import Final

from snex_node.wire.describe import inspect, text_of, type_name
from snex_node.wire.terms import Atom

MAX_STACK: Final = 50
"""Frames of a Python traceback that are sent as an Erlang stack trace, innermost first."""

MAX_TEXT: Final = 64 * 1024
"""Characters of an exception's text that are sent: it may quote the whole of what was wrong."""

MAX_REASON: Final = 1000
"""Characters of an exit reason in the text of an error; the whole of it is its ``reason``."""

_PACKAGE: Final = os.path.dirname(__file__)


class NodeError(Exception):
    """Base of the errors of this package that a caller may want to handle."""


class NodeStartError(NodeError):
    """The node could not be started, or is not running; the message says why and what to do."""


class ConnectError(NodeError):
    """No connection to a node could be made.

    ``node`` is its name, ``reason`` a short word: ``unknown`` (its epmd does not know it),
    ``unreachable``, ``resolve``, ``names`` (short against long), ``name`` (it is no node name),
    ``stopped`` (given up by `Node.disconnect` or `Node.stop`), ``lost`` (it ended while a message
    waited to be written), or one of `HandshakeError`.
    """

    def __init__(self, node: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.reason = reason


class ProcessExitError(NodeError):
    """A process has ended, with ``reason`` (a term): the one that was called, or waited for."""

    def __init__(self, reason: object, what: str = "the process") -> None:
        super().__init__(f"{what} has ended: {inspect(reason, MAX_REASON)}")
        self.reason = reason


class CallTimeoutError(NodeError, TimeoutError):
    """No answer within the time given. The callee is told that nobody waits any more."""


class RemoteError(NodeError):
    """A function called on another node did not return.

    ``kind`` is ``error``, ``exit``, ``throw``, or ``erpc`` when the call itself could not be made;
    ``reason`` the term that came with it, ``stack`` the stack trace as a term (a list, or empty).
    """

    def __init__(self, kind: str, reason: object, stack: object = ()) -> None:
        super().__init__(f"{kind}: {inspect(reason, MAX_REASON)}")
        self.kind = kind
        self.reason = reason
        self.stack = stack


class UndefinedFunctionError(LookupError):
    """There is no such module, or no such function in it: Erlang's ``undef``."""


class PassedOnError(Exception):
    """What a function raised in another process, as that told it: a term, and a stack trace.

    Raised by a function that other nodes call here, it is told to them unchanged.
    """

    def __init__(self, reason: object, stack: list[object]) -> None:
        super().__init__(inspect(reason, MAX_REASON))
        self.reason = reason
        self.stack = stack


def error_reason(error: BaseException) -> object:
    """A Python exception as an Erlang reason: ``{python_error, <<"Type">>, <<"text">>}``."""
    if isinstance(error, PassedOnError):
        return error.reason
    return Atom("python_error"), _utf8(type_name(type(error))), _utf8(text_of(error)[:MAX_TEXT])


def _utf8(text: str) -> str:
    """Without lone surrogates, which no binary and no list of characters may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def error_stack(error: BaseException) -> list[object]:
    """A Python traceback as an Erlang stack trace, innermost frame first.

    Frames of this package are left out: they are the same in every trace.
    """
    if isinstance(error, PassedOnError):
        return error.stack
    stack: list[object] = []
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            continue
        where = [
            (Atom("file"), list(map(ord, _utf8(code.co_filename)))),
            (Atom("line"), line or 0),
        ]
        stack.append((Atom("python"), Atom(_utf8(code.co_name)[:255]), 0, where))
        if len(stack) == MAX_STACK:
            break
    return stack
