"""What can go wrong between nodes, as exceptions."""

from __future__ import annotations


class NodeError(Exception):
    """Base of the errors of this package that a caller may want to handle."""


class NodeStartError(NodeError):
    """The node could not be started; the message says why and what to do."""


class ConnectError(NodeError):
    """No connection to a node could be made.

    ``node`` is its name, ``reason`` a short word: ``unknown`` (its epmd does not know it),
    ``unreachable``, ``resolve``, ``names`` (short against long), or one of `HandshakeError`.
    """

    def __init__(self, node: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.reason = reason


class ProcessExitError(NodeError):
    """A process has ended, with ``reason`` (a term): the one that was called, or waited for."""

    def __init__(self, reason: object, what: str = "the process") -> None:
        super().__init__(f"{what} has ended: {reason!r}")
        self.reason = reason


class CallTimeoutError(NodeError, TimeoutError):
    """No answer within the time given. The callee is told that nobody waits any more."""


class RemoteError(NodeError):
    """A function called on another node did not return.

    ``kind`` is ``error``, ``exit``, ``throw``, or ``erpc`` when the call itself could not be made;
    ``reason`` the term that came with it, ``stack`` the stack trace as a term (a list, or empty).
    """

    def __init__(self, kind: str, reason: object, stack: object = ()) -> None:
        super().__init__(f"{kind}: {reason!r}")
        self.kind = kind
        self.reason = reason
        self.stack = stack
