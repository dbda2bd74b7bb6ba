"""Objects: results that stay in Python, each a process that takes requests about one.

Source: "Live objects" in elixir/guides/objects.md. An object is let go when its handle ends, when
it is stopped, and when the runtime stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol

from snex_node.processes.process import BaseProcess
from snex_node.wire.describe import inspect, short, type_name
from snex_node.wire.gen import From
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Pid
from snex_runtime import kept
from snex_runtime.answers import OK, OK_, PONG
from snex_runtime.coroutines import Work
from snex_runtime.environments import Intake
from snex_runtime.errors import BadRequest
from snex_runtime.handles import Handles
from snex_runtime.namespace import Variables
from snex_runtime.requests import (
    Asker,
    AskerWith,
    EvalOptions,
    Request,
    handle_in,
    receive_from_here,
    stopped_or_refused,
    typed,
)

__all__ = ["MAX_SHOWN", "Object", "Objects"]

MAX_SHOWN: Final = 60
"""Characters of an object's description."""


class Evaluates(Protocol):
    """Runs what requests ask for."""

    def eval(self, request: Request) -> Payload | Work:
        """Code."""

    def arguments(
        self, request: Request, least: int
    ) -> tuple[list[Any], dict[str, Any], EvalOptions]:
        """Arguments, keyword arguments and options, as far as there are some."""

    def run(
        self, request: Request, call: Callable[[], object], options: EvalOptions
    ) -> Payload | Work:
        """What ``call`` gives, awaited if it is to be."""


class Root(Protocol):
    """What code about an object begins with: the root environment."""

    @property
    def variables(self) -> Variables:
        """Its variables."""

    @property
    def new_context(self) -> Callable[[], Context]:
        """Makes a copy of its context."""


class Object(BaseProcess):
    """One object."""

    __slots__ = ("_home", "handle", "since", "value")

    variables: Final[Variables | None] = None
    place = None

    def __init__(self, home: Objects, value: object) -> None:
        super().__init__(home.node)
        self._home = home
        self.value = value
        self.handle: Pid | None = None
        self.since: Final = time.monotonic()

    @property
    def threaded(self) -> bool:
        """Whether requests run in threads, where they do not say."""
        return self._home.threaded

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """Take a request about it."""
        home = self._home
        home.intake.received(self, home.root.new_context().run, data, offset, remote)

    def message_received(self, message: object) -> None:
        """Take a message from a process of this node."""
        receive_from_here(self, message)

    def system_received(self, caller: From, request: object) -> None:
        """``GenServer.stop/1`` lets it go."""
        stopped_or_refused(self, caller, request)

    def demonitored(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        self._home.intake.given_up(ref)

    def exited(self, reason: object) -> None:
        """Nobody holds it any more."""
        self._home.removed(self)


class Objects:
    """All objects of a runtime.

    ``handles`` keep them, ``intake`` takes what is sent to them, and ``evaluator`` runs that, in
    copies of ``root``; ``threaded`` says whether in threads, where requests do not say.
    """

    def __init__(
        self,
        server: BaseProcess,
        handles: Handles,
        intake: Intake,
        evaluator: Evaluates,
        root: Root,
        *,
        threaded: bool = False,
    ) -> None:
        self.node: Final = server.node
        self.intake: Final = intake
        self.root: Final = root
        self.threaded: Final = threaded
        self._handles = handles
        self._evaluator = evaluator
        self._loop = asyncio.get_running_loop()
        self._all: set[Object] = set()

    def __len__(self) -> int:
        return len(self._all)

    # --- made and let go ------------------------------------------------------------------------

    def keep(self, value: object, handle: Pid | None) -> Object:
        """Make an object that lives as long as ``handle``."""
        made = Object(self, value)
        self._all.add(made)
        kept.held[bytes(made.pid.external)] = value
        self._handles.set(made, handle)
        return made

    def to(self, request: Request, options: EvalOptions) -> Asker:
        """The node that asked, for whom what is encoded stays here as an object.

        Raises `BadRequest` where nobody would have its pid.
        """
        if request.caller is None:
            raise BadRequest("keep: is for calls: without an answer nobody would have the pid")
        handle = request.caller.pid if options.handle is None else handle_in(options.handle)
        return AskerWith(request.remote, _Keeping(self, handle, options.keep == "shown"))

    def kept_from_anywhere(self, value: object, handle: Pid | None) -> Object:
        """The same as `keep`, from any thread."""
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            return self.keep(value, handle)
        making = asyncio.run_coroutine_threadsafe(_called(self.keep, value, handle), self._loop)
        return making.result()

    def removed(self, each: Object) -> None:
        """``each`` has ended."""
        self._all.discard(each)
        kept.held.pop(bytes(each.pid.external), None)
        self._handles.release(each)
        each.value = None

    def close(self, reason: object) -> None:
        """The runtime stops."""
        for each in list(self._all):
            each.exit(reason)

    # --- requests -------------------------------------------------------------------------------

    @property
    def tuples(self) -> dict[bytes, Callable[[Request], Payload | Work]]:
        """Who handles requests to objects that are tuples, by their kinds."""
        return {
            b"call": self._call_requested,
            b"get": self._get_requested,
            b"eval": self._eval_requested,
            b"handle": self._handle_requested,
            b"destroy_env": self._destroy_requested,
        }

    @property
    def atoms(self) -> dict[bytes, Callable[[Request], Payload | Work]]:
        """The same of those that are atoms."""
        return {b"value": self._value_requested, b"ping": lambda request: PONG}

    def _call_requested(self, request: Request) -> Payload | Work:
        """``{:call, method, args}``, with ``kwargs`` and ``opts`` or without."""
        if request.arity not in (3, 4, 5):
            raise BadRequest(f"a call to an object has 3 to 5 elements, not {request.arity}")
        value = _value_of(request)
        name = _name_in(request)
        request.runs = type_name(type(value)), name
        args, kwargs, options = self._evaluator.arguments(request, 3)
        return self._evaluator.run(request, partial(_call, value, name, args, kwargs), options)

    def _get_requested(self, request: Request) -> Payload | Work:
        """``{:get, attribute}`` or ``{:get, attribute, opts}``."""
        if request.arity not in (2, 3):
            raise BadRequest(f"a get request has 2 or 3 elements, not {request.arity}")
        value = _value_of(request)
        name = _name_in(request)
        request.runs = type_name(type(value)), name
        options = EvalOptions(request.read(typed) if request.arity == 3 else None)
        return self._evaluator.run(request, partial(getattr, value, name), options)

    def _value_requested(self, request: Request) -> Payload | Work:
        """``:value``: the object, converted."""
        return request.remote.encoder.encode_payload(_value_of(request), OK_)

    def _eval_requested(self, request: Request) -> Payload | Work:
        """``{:eval, code, vars}``, with ``opts`` or without: the object is ``self`` there."""
        request.variables = {**self.root.variables, "self": _value_of(request)}
        return self._evaluator.eval(request)

    def _handle_requested(self, request: Request) -> bytes:
        """``{:handle, pid}`` or ``{:handle, :none}``: ``:ok``."""
        if request.arity != 2:
            raise BadRequest(f"a handle request has 2 elements, not {request.arity}")
        process = request.process
        assert isinstance(process, Object)
        self._handles.set(process, handle_in(request.read(typed)))
        return OK

    def _destroy_requested(self, request: Request) -> bytes:
        """``{:destroy_env, pid}``, as its handle on the BEAM has it sent: ``:ok``."""
        process = request.process
        assert isinstance(process, Object)
        if request.caller is None:
            process.exit()
        else:  # behind the answer, or the caller gets a DOWN in its place
            self._loop.call_soon(process.exit)
        return OK


def _value_of(request: Request) -> object:
    process = request.process
    assert isinstance(process, Object)
    return process.value


def _name_in(request: Request) -> str:
    name = request.read(typed)
    if not isinstance(name, str):
        raise BadRequest(f"the name of a method or attribute is a text, not {inspect(name)}")
    return str(name)


def _call(value: object, name: str, args: list[Any], kwargs: dict[str, Any]) -> object:
    return getattr(value, name)(*args, **kwargs)


async def _called(function: Callable[..., Object], *args: Any) -> Object:
    return function(*args)


class _Keeping:
    """Makes objects of values; ``shows``: with a description."""

    def __init__(self, objects: Objects, handle: Pid | None, shows: bool) -> None:
        self._objects = objects
        self._handle = handle
        self._shows = shows

    def encode(self, value: object, before: bytes = b"") -> bytes:
        """The pid of the object that ``value`` is from now on."""
        # First, or an object whose code ends that would stay, of which nobody knows.
        text = shown(value).encode("utf-8", "replace") if self._shows else b""
        made = self._objects.kept_from_anywhere(value, self._handle)
        if not self._shows:
            return before + made.pid.external
        return before + b"h\x02" + made.pid.external + b"m" + len(text).to_bytes(4, "big") + text

    encode_payload = encode


def shown(value: object) -> str:
    """What an object is, in a few words: its type, and its shape or how it looks."""
    kind = type_name(type(value)).removesuffix("...").rpartition(".")[2][:MAX_SHOWN]
    try:
        shape: Any = getattr(value, "shape", None)
        if type(shape) is tuple and shape and all(type(size) is int for size in shape):
            return f"{kind} {'x'.join(map(str, shape))}"[:MAX_SHOWN]
    except Exception:  # of the user's own
        return kind
    text = short(value)
    return (text if kind in text else f"{kind} {text}")[:MAX_SHOWN]
