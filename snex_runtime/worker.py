"""A runtime that gets its requests from a front, and answers whoever sent them.

To callers it is as any other: what is sent to it or to its environments directly is handled as
usual. What the front sends on is answered to the caller, over a connection that this node makes to
the caller's; until there is one, and where there can be none, by way of the front. Each request is
begun at most once: what the front has asked back before is passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from typing import Any, Final

from snex_node.errors import ConnectError, UndefinedFunctionError, error_reason, error_stack
from snex_node.node import Node
from snex_node.services import import_function
from snex_node.system import tasks
from snex_node.wire import control
from snex_node.wire.control import SendSender
from snex_node.wire.etf import EncodeError
from snex_node.wire.gen import From
from snex_node.wire.terms import Atom, Pid
from snex_runtime import serde
from snex_runtime.answers import OK_, Answers
from snex_runtime.contexts import Enter
from snex_runtime.coroutines import Work
from snex_runtime.dispatch import Kinds
from snex_runtime.errors import BadRequest
from snex_runtime.forwarding import Forward, Ledger, Note, NoteKind
from snex_runtime.requests import Asker, Receiver, Request, make_request
from snex_runtime.server import Server

__all__ = ["CONNECT_AGAIN", "Worker"]

CONNECT_AGAIN: Final = 30.0
"""Seconds after which a node that could not be connected to is tried again."""

_RETURN: Final = Atom("return")
_RAISED: Final = Atom("raised")
_KNOWN: Final = 1024
"""Requests of which it is known that they have begun, or were asked back."""


class _Forwarded(Request):
    """A request that the front has sent on."""

    __slots__ = ("by_front", "sequence")

    sequence: int
    by_front: bool


class _Door:
    """Whom such requests came to. The front looks after their callers, so nobody here has to."""

    variables = None

    def __init__(self, server: Server) -> None:
        self.pid = server.pid
        self._server = server

    def system_received(self, caller: From, request: object) -> None:
        """A system message; the front keeps them."""
        self._server.system_received(caller, request)

    def is_monitored_with(self, ref: bytes) -> bool:
        """Whether somebody monitors it: the front does."""
        return True


class Worker(Server):
    """The runtime of a worker. ``front`` is the process that sends requests on."""

    def __init__(self, node: Node, front: Pid, ledger: Ledger, **options: Any) -> None:
        self._front = front
        self._front_node = str(front.node)
        self._ledger = ledger
        # Under way, by their numbers.
        self._jobs: dict[int, _Forwarded] = {}
        # True: it has begun; False: it was asked back. Who sets it first, on whatever thread, wins.
        self._claims: dict[int, bool] = {}
        # Nodes that are being connected to, or could not be: until when.
        self._connecting: dict[str, float] = {}
        self._connects: set[asyncio.Task[None]] = set()
        super().__init__(node, **options)
        self._door = _Door(self)
        self._to_front = control.encode(SendSender(self.pid, front))

    def _make_answers(self, max_reply: int) -> Answers:
        return _Answers(self, self.node, self.backend.logs, max_reply)

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """Take a request, of the front or of anybody else."""
        forward = Forward.read(data, offset) if remote.name == self._front_node else None
        if forward is None:
            super().external_received(data, offset, remote)
            return
        sequence, by_front, node, at = forward
        claims = self._claims
        if not claims.setdefault(sequence, True):
            return
        claims.pop(sequence - _KNOWN, None)
        self._ledger.start(sequence)
        make = partial(self._make, sequence, by_front)
        self._dispatch(self._door, data, at, self.node.remote(node), make)
        if sequence in self._jobs:
            # It has its first turn before this (from Python 3.12 on it has had it).
            asyncio.get_running_loop().call_soon(self._tell_waiting, sequence)

    def _make(
        self,
        sequence: int,
        by_front: bool,
        process: Receiver,
        enter: Enter,
        caller: From | None,
        remote: Asker,
        data: bytes,
        at: int,
    ) -> Request:
        request = make_request(process, enter, caller, remote, data, at, _Forwarded)
        request.sequence = sequence
        request.by_front = by_front
        self._jobs[sequence] = request
        return request

    def _kinds(self) -> Kinds:
        kinds = super()._kinds()
        return kinds._replace(tuples={**kinds.tuples, b"rpc": self._rpc_requested})

    def _rpc_requested(self, request: Request) -> bytes | Work:
        """``{:rpc, module, function, args}``: somebody has called that on the front's node."""
        if not isinstance(request, _Forwarded) or request.arity != 4:
            raise BadRequest("unknown request: rpc")
        decoder = self.node.decoder
        module, function, args = (request.read(decoder) for _ in range(3))
        try:
            value = import_function(str(module), str(function))(*args)
        except UndefinedFunctionError:
            stack: list[object] = [(Atom(module), Atom(function), args, [])]
            return self._encoded((_RAISED, Atom("undef"), stack))
        except Exception as error:
            return self._encoded(_raised(error))
        if isawaitable(value):
            return Work(request, _awaited(value))
        return self._encoded((_RETURN, value))

    def _encoded(self, outcome: object) -> bytes:
        try:
            return serde.encoder.encode(outcome, OK_)
        except EncodeError as error:
            return serde.encoder.encode(_raised(error), OK_)

    def _tell_waiting(self, sequence: int) -> None:
        if sequence in self._jobs:
            self._note(NoteKind.WAITS, sequence)

    def command(self, line: str) -> None:
        """Take ``recall SEQUENCE``: the front wants a request back. From any thread.

        It is told whether that has begun; if not, it never will.
        """
        name, _, number = line.partition(" ")
        if name != "recall":
            return
        sequence = int(number)
        begun = self._claims.setdefault(sequence, False)
        self._note(NoteKind.STARTED if begun else NoteKind.RECALLED, sequence)

    # --- answers --------------------------------------------------------------------------------

    def answered(self, request: _Forwarded, answer: bytes) -> None:
        """Send the answer of a request that the front sent on."""
        self._jobs.pop(request.sequence, None)
        caller = request.caller
        if caller is None:
            self._note(NoteKind.DONE, request.sequence)
            return
        by_front = request.by_front
        if not by_front and request.remote.connection is None:
            by_front = True
            self._connect(request.remote.name)
        if by_front:
            self._note(NoteKind.ANSWERED, request.sequence, answer)
        else:
            self.node.reply_encoded(caller, answer, sender=self.pid)
            self._note(NoteKind.DONE, request.sequence)

    def _note(self, kind: NoteKind, sequence: int, *answer: bytes) -> None:
        connection = self.node.remote(self._front_node).connection
        if connection is not None:  # else the front has gone, and this process goes as well
            note = Note.write(kind, sequence, len(self.environments), *answer)
            connection.send(self._to_front, note, self.pid)

    def _connect(self, name: str) -> None:
        """Connect to the node of a caller, for the answers to come."""
        now = time.monotonic()
        if self._connecting.get(name, 0.0) > now:
            return
        self._connecting = {each: until for each, until in self._connecting.items() if until > now}
        self._connecting[name] = now + CONNECT_AGAIN
        task = tasks.start(self._try_to_connect(name))
        self._connects.add(task)
        task.add_done_callback(self._connects.discard)

    async def _try_to_connect(self, name: str) -> None:
        try:
            await self.node.connect(name)
        except ConnectError:  # answers go by way of the front
            return
        self._connecting.pop(name, None)

    def exited(self, reason: object) -> None:
        """Stop everything."""
        for task in self._connects:
            task.cancel()
        super().exited(reason)


def _raised(error: BaseException) -> tuple[object, ...]:
    return _RAISED, error_reason(error), error_stack(error)


async def _awaited(value: Any) -> object:
    try:
        return _RETURN, await value
    except asyncio.CancelledError:
        raise
    except Exception as error:
        return _raised(error)


class _Answers(Answers):
    """Has answers to requests of the front told to the front as well."""

    def __init__(self, worker: Worker, *args: Any) -> None:
        super().__init__(*args)
        self._worker = worker

    def send(self, request: Request, answer: bytes) -> None:
        """Send ``answer`` to who waits for it, if anybody does."""
        if not isinstance(request, _Forwarded):
            super().send(request, answer)
            return
        caller = request.caller
        if caller is not None:
            answer = self.bounded(request, answer)
            release: Callable[[], None] = partial(self._worker.answered, request, answer)
            if self.hold(caller, release):
                return
        self._worker.answered(request, answer)
