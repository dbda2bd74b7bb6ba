"""A runtime that gets its requests from a front, and answers whoever sent them.

To callers it is as any other: what is sent to it or to its environments directly is handled as
usual. What the front sends on is answered to the caller, over a connection that this node makes to
the caller's; until there is one, and where there can be none, by way of the front. Each request is
begun at most once, and none that the front has revoked before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from typing import Any, Final

from snex_node.cluster.connection import TURN
from snex_node.errors import ConnectError, UndefinedFunctionError, error_reason, error_stack
from snex_node.node import Node
from snex_node.services import import_function
from snex_node.system import tasks
from snex_node.wire.etf import EncodeError
from snex_node.wire.gen import From
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom
from snex_runtime import lifetimes, serde
from snex_runtime.answers import OK_, Answers
from snex_runtime.contexts import Enter
from snex_runtime.coroutines import Work
from snex_runtime.dispatch import Kinds
from snex_runtime.errors import BadRequest
from snex_runtime.forwarding import Frame, Ledger, Line, Note, NoteKind, Status
from snex_runtime.forwarding import Request as Sent
from snex_runtime.requests import Asker, Receiver, Request, make_request, typed
from snex_runtime.server import Server

__all__ = ["CONNECT_AGAIN", "Worker"]

CONNECT_AGAIN: Final = 30.0
"""Seconds after which a node that could not be connected to is tried again."""

_RETURN: Final = Atom("return")
_RAISED: Final = Atom("raised")


class _Forwarded(Request):
    """A request that the front has sent on."""

    __slots__ = ("by_front", "sequence", "waits")

    watched_elsewhere = True
    sequence: int
    by_front: bool
    waits: bool
    """Whether it has given the loop a turn."""


class _Door:
    """Whom such requests came to. The front looks after their callers, so nobody here has to."""

    variables = None
    place = None

    def __init__(self, server: Server) -> None:
        self.pid = server.pid
        self.threaded = server.threaded
        self._server = server

    def system_received(self, caller: From, request: object) -> None:
        """A system message; the front keeps them."""
        self._server.system_received(caller, request)

    def is_monitored_with(self, ref: bytes) -> bool:
        """Whether somebody monitors it: the front does."""
        return True


class Worker(Server):
    """The runtime of a worker. `open` it to have it take what the front sends."""

    def __init__(self, node: Node, ledger: Ledger, **options: Any) -> None:
        self._ledger = ledger
        self._line: Line | None = None
        self._unhandled: deque[Frame] = deque()
        # The number of the request that is being read, and whether its answer is the front's.
        self._next = 0, False
        self._make_next = self._make
        # Under way, by their numbers.
        self._jobs: dict[int, _Forwarded] = {}
        # To be stopped as soon as they have begun.
        self._stopped: set[int] = set()
        # Nodes that are being connected to, or could not be: until when.
        self._connecting: dict[str, float] = {}
        self._connects: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        super().__init__(node, **options)
        self._door = _Door(self)

    def open(self, make: Callable[..., Line], gone: Callable[[], None]) -> None:
        """Take requests from a line, which ``make`` makes; call ``gone`` when it ends."""
        self._line = make(self._received, gone)

    def _make_answers(self, max_reply: int, slow: float | None) -> Answers:
        return _Answers(self, self.node, self.backend.logs, max_reply, slow)

    # --- requests -------------------------------------------------------------------------------

    def _received(self, frames: list[Frame]) -> None:
        self._unhandled.extend(frames)
        self._handle()

    def _handle(self) -> None:
        """Handle what has come; when that takes long, leave the rest for a later turn."""
        line, frames, ledger = self._line, self._unhandled, self._ledger
        assert line is not None
        began = before = time.monotonic()
        while frames:
            self._begin(frames.popleft())
            now = time.monotonic()
            ledger.pace += (int((now - before) * 1_000_000) - ledger.pace) // 4
            before = now
            if frames and now - began >= TURN:
                line.pause()
                self._loop.call_soon(self._handle)
                break
        else:
            line.resume()
        if ledger.wanted:
            line.send(Note.write(NoteKind.WAKE, 0, self.held))

    def _begin(self, frame: Frame) -> None:
        sequence, by_front, node, data, at = Sent.read(frame)
        if not self._ledger.start(sequence):
            self._stopped.discard(sequence)
            self._ledger.set_status(sequence, Status.REVOKED)
            return
        self._next = sequence, by_front
        self._dispatch(self._door, data, at, self.node.remote(node.decode()), self._make_next)
        if sequence in self._jobs:
            # It has its first turn before this (from Python 3.12 on it has had it).
            self._loop.call_soon(self._waits, sequence)
        if sequence in self._stopped:
            self._stopped.discard(sequence)
            self._stop(sequence)

    def _make(
        self,
        process: Receiver,
        enter: Enter,
        caller: From | None,
        remote: Asker,
        data: bytes,
        at: int,
    ) -> Request:
        request = make_request(process, enter, caller, remote, data, at, _Forwarded)
        request.sequence, request.by_front = self._next
        request.waits = False
        self._jobs[request.sequence] = request
        return request

    def _waits(self, sequence: int) -> None:
        request = self._jobs.get(sequence)
        if request is not None and not request.waits:
            request.waits = True
            self._ledger.set_status(sequence, Status.WAITS)
            if self._ledger.wanted:
                self._note(NoteKind.WAKE, sequence)

    def command(self, line: str) -> None:
        """Take ``stop SEQUENCE``: the caller of that request waits no more. From any thread."""
        name, _, number = line.partition(" ")
        if name == "stop":
            request = self._jobs.get(int(number))
            if request is not None:
                self.watch.abandoned.add(request)  # it may block the loop
            self._loop.call_soon_threadsafe(self._stop, int(number), request)

    def _stop(self, sequence: int, abandoned: _Forwarded | None = None) -> None:
        if sequence > self._ledger.started:
            self._stopped.add(sequence)
            return
        request = self._jobs.get(sequence)
        if abandoned is not None and abandoned is not request:
            self.watch.abandoned.discard(abandoned)  # it was answered meanwhile
        if request is not None and request.caller is not None and request.caller.ref is not None:
            self.demonitored(request.caller.ref)

    # --- what other nodes call on the front's ---------------------------------------------------

    def _kinds(self) -> Kinds:
        kinds = super()._kinds()
        return Kinds({**kinds.tuples, b"rpc": self._rpc_requested}, kinds.atoms)

    def _rpc_requested(self, request: Request) -> bytes | Work:
        """``{:rpc, module, function, args}``: somebody has called that on the front's node."""
        if not isinstance(request, _Forwarded) or request.arity != 4:
            raise BadRequest("unknown request: rpc")
        module, function = str(request.read(typed)), str(request.read(typed))
        args = request.read(self.node.decoder)
        called: Callable[..., object] | None = None
        try:
            called = import_function(module, function)
            value = called(*args)
        except Exception as error:
            if called is None and isinstance(error, UndefinedFunctionError):
                stack: list[object] = [(Atom(module[:255]), Atom(function[:255]), args, [])]
                return self._encoded((_RAISED, Atom("undef"), stack))
            return self._encoded(_raised(error))
        if isawaitable(value):
            return Work(request, _awaited(value))
        return self._encoded((_RETURN, value))

    def _encoded(self, outcome: object) -> bytes:
        try:
            return serde.encoder.encode(outcome, OK_)
        except EncodeError as error:
            return serde.encoder.encode(_raised(error), OK_)

    # --- answers --------------------------------------------------------------------------------

    def answered(self, request: _Forwarded, answer: bytes) -> None:
        """Send the answer of a request that the front sent on."""
        sequence = request.sequence
        self._jobs.pop(sequence, None)
        self.watch.abandoned.discard(request)
        caller = request.caller
        by_front = request.by_front
        if caller is not None and not by_front and request.remote.connection is None:
            by_front = True
            self._connect(request.remote.name)
        if by_front:
            self._ledger.set_status(sequence, Status.WAITS)
            self._note(NoteKind.ANSWERED, sequence, answer)
            return
        if caller is not None:
            self.node.reply_encoded(caller, answer, sender=self.pid)
        if request.waits:
            self._note(NoteKind.DONE, sequence)
        else:
            self._ledger.set_status(sequence, Status.DONE)

    def _note(self, kind: NoteKind, sequence: int, answer: bytes = b"") -> None:
        if self._line is not None:
            self._line.send(Note.write(kind, sequence, self.held, answer))

    def _connect(self, name: str) -> None:
        """Connect to the node of a caller, for the answers to come."""
        now = time.monotonic()
        if not self.alive or self._connecting.get(name, 0.0) > now:
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
        if self._line is not None:
            self._line.close()
        super().exited(reason)


def _raised(error: BaseException) -> tuple[object, ...]:
    traceback = error.__traceback__
    shown = error.with_traceback(None if traceback is None else traceback.tb_next)
    return _RAISED, error_reason(shown), error_stack(shown)


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

    def send(self, request: Request, answer: Payload) -> None:
        """Send ``answer`` to who waits for it, if anybody does."""
        if not isinstance(request, _Forwarded):
            super().send(request, answer)
            return
        self.ended(request)
        lifetimes.release(request)
        caller = request.caller
        if caller is not None:
            answer = self.bounded(request, answer)
            release: Callable[[], None] = partial(self._worker.answered, request, bytes(answer))
            if self.hold(caller, release):
                return
        self._worker.answered(request, bytes(answer))
