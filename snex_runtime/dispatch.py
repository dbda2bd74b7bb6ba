"""The way of a request: from the bytes to its handler, and from that to its answer.

Each gets exactly one answer where somebody waits for it, whatever it contains and whatever happens.
Its handler is called in the callback that reads it; a task exists only for what has to be awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias

from snex_node.system import forks
from snex_node.wire.describe import inspect
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.gen import SYSTEM_HEAD, parse_call, parse_cast, parse_system
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom
from snex_runtime.answers import failed
from snex_runtime.contexts import Enter
from snex_runtime.coroutines import MayBeForked, Sender, Work
from snex_runtime.errors import BadRequest, Failure, bad_request, cancelled, from_exception
from snex_runtime.interrupts import Interrupted, now
from snex_runtime.origin import origin
from snex_runtime.requests import Asker, Receiver, Request, make_request, typed
from snex_runtime.standby import Standby

__all__ = ["Dispatcher", "Handler", "Kinds"]

_bytes: Final = Decoder()

Handler: TypeAlias = Callable[[Request], Payload | Work]
"""Handles requests of one kind: gives the answer, encoded, or what there is to await for it.

What it raises is answered too.
"""


class Kinds(NamedTuple):
    """The kinds of requests: their names, and who handles them."""

    tuples: Mapping[bytes, Handler]
    """Those that are tuples, by the atom in front."""

    atoms: Mapping[bytes, Handler]
    """Those that are one atom."""


class Begins(Protocol):
    """Has work done that there is to await."""

    def begin(self, work: Work) -> None:
        """Begin it; its answer goes out when it is done."""

    def given_up(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""


class NotesOrigin(Protocol):
    """Wants to know which node asked last."""

    last_origin: str | None
    """Its name."""


class Dispatcher:
    """Takes the messages of the server and its environments. None comes before `open`."""

    def __init__(
        self, node: MayBeForked, answers: Sender, coroutines: Begins, origins: NotesOrigin
    ) -> None:
        self._kinds = Kinds({}, {})
        self._heads: dict[bytes, tuple[Handler, int, str]] = {}
        self._node = node
        self._answers = answers
        self._coroutines = coroutines
        self._origins = origins
        self._standby = Standby()

    def open(self, kinds: Kinds) -> None:
        """From now on requests are handled, by ``kinds``."""
        self._kinds = kinds
        self._heads = _heads_of(kinds)

    def close(self) -> None:
        """The runtime stops."""
        self._standby.close()

    def given_up(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        self._coroutines.given_up(ref)

    def received(
        self,
        process: Receiver,
        enter: Enter,
        data: bytes,
        offset: int,
        remote: Asker,
        make: Callable[..., Request] = make_request,
    ) -> None:
        """A message to ``process``, whose requests run in the context of ``enter``.

        ``make`` makes the request; it takes what `make_request` takes.
        """
        call = parse_call(data, offset)
        if call is not None:
            caller, at = call
        elif data.startswith(SYSTEM_HEAD, offset):
            system = parse_system(typed.decode(data, offset)[0])
            if system is not None:
                process.system_received(*system)
            return
        else:
            caller, at = None, parse_cast(data, offset) or offset
        self._origins.last_origin = remote.name
        request = make(process, enter, caller, remote, data, at)
        outer, now.running = now.running, request
        outcome = self._standby.run(enter, self._handle, request)
        now.running = outer
        if isinstance(outcome, Work):
            self._coroutines.begin(outcome)
        else:
            self._answers.send(request, outcome)

    def _handle(self, request: Request) -> Payload | Work:
        """What its handler gives, or the answer that tells what went wrong."""
        # It is not reset: nothing runs in this context but requests, and each has its own.
        origin.set((request.remote, request.caller))
        at = request.at
        try:
            found = self._heads.get(request.data[at : at + _HEAD])
            if found is None:
                return self._handler_of(request)(request)
            handler, request.arity, request.kind = found
            request.at = at + _HEAD
            return handler(request)
        except BadRequest as error:
            return failed(request, bad_request(str(error)))
        except DecodeError as error:
            return failed(request, bad_request(f"the request cannot be decoded: {error}"))
        except Failure as failure:
            return failed(request, failure)
        except Interrupted as error:
            return failed(request, cancelled(error.why))
        except BaseException as error:
            if self._node.forked:
                forks.end_child(error)
            return failed(request, from_exception(error))

    def _handler_of(self, request: Request) -> Handler:
        """Who handles ``request``, of which its kind has been read then."""
        data, at = request.data, request.at
        if len(data) > at + 3 and data[at] == 104 and data[at + 2] == 119:
            end = at + 4 + data[at + 3]
            handler = self._kinds.tuples.get(data[at + 4 : end])
            if handler is not None:
                request.arity, request.at = data[at + 1], end
                request.kind = data[at + 4 : end].decode()
                return handler
        term = request.read(_bytes)
        handler = self._kinds.atoms.get(term.encode()) if isinstance(term, Atom) else None
        if handler is None:
            raise BadRequest(f"unknown request: {inspect(term)}")
        request.kind = str(term)
        return handler


_HEAD: Final = 8


def _heads_of(kinds: Kinds) -> dict[bytes, tuple[Handler, int, str]]:
    """Handlers, arities and names by the first `_HEAD` bytes of requests, where these tell all.

    So it is with names of four letters, which those that come often have, and with short atoms,
    behind which nothing follows. To find these takes a third of the time that others take.
    """
    heads = {
        bytes((104, arity, 119, len(name))) + name: (handler, arity, name.decode())
        for name, handler in kinds.tuples.items()
        for arity in range(1, 6)
    }
    heads = {head: found for head, found in heads.items() if len(head) == _HEAD}
    for name, handler in kinds.atoms.items():
        if 2 + len(name) < _HEAD:
            heads[bytes((119, len(name))) + name] = handler, 0, name.decode()
    return heads
