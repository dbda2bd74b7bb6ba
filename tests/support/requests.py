"""Requests without a node: made of terms, from nobody in particular."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

from snex_node.cluster.connection import Ahead
from snex_node.wire import control
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.gen import From
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import serde
from snex_runtime.namespace import Variables
from snex_runtime.requests import Place, Request, make_request

PID = Pid("app@host", 100, 0, 5)
encode = Encoder().encode


def by_alias(number: int = 1) -> From:
    """A caller that waits at an alias."""
    alias = Reference("app@host", 5, (number, 2, 3)).external
    return From(PID, b"l\0\0\0\1w\5alias" + alias, alias)


class Line:
    """A connection that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, object]] = []

    def send(
        self, message: bytes, payload: Payload = b"", sender: object = None, before: bytes = b""
    ) -> None:
        self.sent.append((message, before + payload, sender))

    def look_ahead(self) -> Ahead:
        return Ahead([], False)


class Peer:
    """A node that asks; ``line`` is the connection to it, if there is one."""

    alias_send = staticmethod(control.alias_send)

    def __init__(self, line: Line | None = None) -> None:
        self.name = Atom("app@host")
        self.encoder = serde.encoder
        self.connection = line


class Taker:
    """A process that takes requests: an environment where it has variables, else the server."""

    def __init__(self, variables: Variables | None = None) -> None:
        self.pid = Pid("py@host", 1, 0, 5)
        self.variables = variables
        self.system: list[tuple[From, object]] = []
        self.monitored_with: set[bytes] = set()
        self.threaded = False
        self.place: Place | None = None

    def system_received(self, caller: From, request: object) -> None:
        self.system.append((caller, request))

    def is_monitored_with(self, ref: bytes) -> bool:
        return ref in self.monitored_with


def request_of(
    term: object,
    process: Taker | None = None,
    caller: From | None = None,
    remote: Peer | None = None,
) -> Request:
    """A request whose kind has been read, as handlers get it: a tuple that begins with an atom."""
    data = term if isinstance(term, bytes) else encode(term)
    enter = copy_context().run
    request: Request = make_request(
        process or Taker(), enter, caller, remote or Peer(), b"..." + data, 3
    )
    request.at, request.arity = 7 + data[3], data[1]
    return request


def value(answer: object) -> Any:
    """What an answer says: the value of ``{:ok, value}``, or the term that it is."""
    assert isinstance(answer, bytes), answer
    term = Decoder(binary_as="str").decode(answer)[0]
    return term[1] if isinstance(term, tuple) and term[0] == "ok" else term


class Sent:
    """Takes answers."""

    def __init__(self) -> None:
        self.answers: list[tuple[Request, Payload]] = []

    def send(self, request: Request, answer: Payload) -> None:
        self.answers.append((request, answer))

    @property
    def last(self) -> Any:
        return value(bytes(self.answers[-1][1]))


class Unforked:
    """A node in the process that made it."""

    forked = False


def code_of(answer: Any) -> str:
    """The code of an error."""
    assert answer[0] == "error", answer
    return str(answer[1]["code"])


class Killer:
    """Notes what it is to kill for."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, int]] = []
        self.disarmed: list[int] = []

    def arm(self, seconds: float, culprit: int) -> int:
        self.armed.append((seconds, culprit))
        return len(self.armed)

    def disarm(self, token: int) -> None:
        self.disarmed.append(token)
