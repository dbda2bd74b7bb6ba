"""Runs what requests bring: snippets (``eval``, ``init``), functions (``call``), the init script.

Code that finishes without suspending has its answer at once; for what there is to await a `Work` is
given, which the dispatcher has begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from struct import Struct
from struct import error as StructError  # noqa: N812 - its own name says too little
from typing import Any, Final, Protocol

from snex_node.services import UndefinedFunctionError, import_function
from snex_node.wire.describe import inspect
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Term
from snex_runtime import contexts, requests, tracing
from snex_runtime.answers import OK_, OK_NIL
from snex_runtime.code import Code, compile_code
from snex_runtime.contexts import Enter
from snex_runtime.coroutines import Work
from snex_runtime.errors import BadRequest, Failure, from_exception
from snex_runtime.executors import Awaiting, Function
from snex_runtime.interrupts import Deadline, Interrupted, Interrupter, now
from snex_runtime.kept import held
from snex_runtime.namespace import Variables, here
from snex_runtime.origin import origin
from snex_runtime.requests import (
    NO_OPTIONS,
    Asker,
    EvalOptions,
    Reader,
    Request,
    code_parts,
    read_keywords,
    read_variables,
    typed,
)

__all__ = ["BOUNDARIES", "MAX_CODE", "MAX_CODES", "Evaluator", "Place", "Snippets"]

MAX_CODES: Final = 1024
"""Snippets remembered by the bytes they came in, which spares decoding and looking them up."""

MAX_CODE: Final = 64 * 1024
"""Bytes above which a snippet is not: with `MAX_CODES` that bounds them to 64 MiB."""

_u32 = Struct(">I").unpack_from
_bytes: Final = Decoder()


class Place(Protocol):
    """Where code runs: the root environment."""

    @property
    def variables(self) -> Variables:
        """Its variables."""

    @property
    def enter(self) -> Enter:
        """Calls functions in its context."""


class Killer(Protocol):
    """Kills this process at a time, whatever runs then."""

    def arm(self, seconds: float, culprit: int) -> int:
        """Kill in so many seconds, because of the request ``culprit``; the token is to `disarm`."""

    def disarm(self, token: int) -> None:
        """The request is done in time."""


class Lends(Protocol):
    """Lends large data to nodes of this machine."""

    def to(self, remote: Asker) -> Asker:
        """The node, with an encoder that does so if it can be."""


class Threads(Protocol):
    """Runs the code of requests in threads: a pool."""

    def work(
        self,
        request: Request,
        function: Function,
        place: requests.Place | None,
        options: EvalOptions,
    ) -> Work:
        """The work of running ``function`` in a thread, in ``place`` if it is given."""


class Keeps(Protocol):
    """Keeps results as objects."""

    def to(self, request: Request, options: EvalOptions) -> Asker:
        """The node that asked, for whom what is encoded stays here."""


class Evaluator:
    """Runs code, in the environment that a request went to or in copies of ``root``.

    ``killer`` is there where this process may be killed because of one request, and
    ``kill_after`` are the seconds beyond its time limit that one has which does not say.
    ``lends`` lends large data of answers.
    """

    def __init__(
        self,
        root: Place,
        reader: Reader,
        interrupter: Interrupter,
        pool: Threads,
        killer: Killer | None = None,
        kill_after: float | None = None,
        lends: Lends | None = None,
    ) -> None:
        self._killer = killer
        self._lends = lends
        self._kill_after = kill_after
        self._root = root
        self._reader = reader
        self._no_options = reader.no_options
        self._pool = pool
        self._decoder = reader.decoder
        self._interrupter = interrupter
        self._snippets = Snippets()
        self.keeps: Keeps
        """Keeps results as objects; to be set."""

    # --- requests -------------------------------------------------------------------------------

    def eval(self, request: Request, *, init: bool = False) -> Payload | Work:
        """``{:eval, code, vars}`` or ``{:eval, code, vars, opts}``: the value of the code."""
        if request.arity not in (3, 4):
            raise BadRequest(f"an eval request has 3 or 4 elements, not {request.arity}")
        code = self._snippets.read(request)
        options = self._no_options
        given: Variables | None = None
        if request.arity == 4:
            given, options = self._reader.variables_and_eval_options(request)
            if options.special:
                self._prepare(request, options)
                if options.traceparent is not None:
                    return self._traced(request, code, given, options, init)
        elif not request.data.startswith(b"t\0\0\0\0", request.at):
            given, _ = read_variables(self._decoder, request.data, request.at)
        if not init and self._kill_after is None and options.kill_after is None:
            return self._evaluate(request, code, given, options, init)  # nearly all are such
        return self._limited(request, code, given, options, init)

    def _prepare(self, request: Request, options: EvalOptions) -> None:
        """What becomes of the result, and who is told of the progress. Raises `BadRequest`."""
        if options.keep:
            request.remote = self.keeps.to(request, options)
        elif options.shared and self._lends is not None and request.caller is not None:
            request.remote = self._lends.to(request.remote)
        if options.progress is not None:
            request.progress = options.progress

    def _traced(
        self,
        request: Request,
        code: Code | None,
        given: Variables | None,
        options: EvalOptions,
        init: bool,
    ) -> Payload | Work:
        """Evaluate as a part of a trace."""
        assert options.traceparent is not None
        request.traceparent = traceparent = options.traceparent
        # It is not reset, as what the dispatcher sets is not.
        origin.set(request.asked)
        with tracing.entered(traceparent):
            outcome = self._limited(request, code, given, options, init)
        if isinstance(outcome, Work) and not outcome.threaded:
            outcome.awaited = tracing.in_steps(traceparent, outcome.awaited)
        return outcome

    def _limited(
        self,
        request: Request,
        code: Code | None,
        given: Variables | None,
        options: EvalOptions,
        init: bool,
    ) -> Payload | Work:
        if init:
            options = _options_of_init(options)
        if self._kill_after is None and options.kill_after is None:
            return self._evaluate(request, code, given, options, init)
        evaluate = partial(self._evaluate, request, code, given, options, init)
        return self._killed_beyond(request, options, evaluate)

    def _evaluate(
        self,
        request: Request,
        code: Code | None,
        given: Variables | None,
        options: EvalOptions,
        init: bool,
    ) -> Payload | Work:
        threaded = options.threaded
        if threaded is None:
            threaded = request.process.threaded
        if threaded and not init:
            return self._eval_in_thread(request, code, given, options)
        if options.continues:
            request.continues = True
        variables = request.variables
        if variables is None:
            variables = self._root.variables.copy()
            here.set(variables)
        elif here.get() is not variables:
            here.set(variables)
        if code is not None and code.is_async:
            work: Any = _run_with(code, variables, given) if given else code.run(variables)
            return Work(request, work, options)
        if given:
            variables.update(given)
        if code is None:
            return _nothing(request, options)
        if options.timeout is None:
            return request.remote.encoder.encode_payload(code.run(variables), OK_)
        limit = Deadline(options.timeout)
        return self._interrupter.run(limit, partial(_value, request, code, variables))

    def _killed_beyond(
        self, request: Request, options: EvalOptions, function: Callable[[], Payload | Work]
    ) -> Payload | Work:
        """Have this process killed at the last limit of ``request``, if it has one, and if what
        ``function`` begins is not done by then.
        """
        seconds = self._last_limit(options)
        if seconds is None or self._killer is None:
            return function()
        token = self._killer.arm(seconds, getattr(request, "sequence", 0))
        outcome: Payload | Work = b""
        try:
            outcome = function()
        finally:
            disarm = partial(self._killer.disarm, token)
            if isinstance(outcome, Work):
                outcome.disarm = disarm
            else:
                disarm()
        return outcome

    def _last_limit(self, options: EvalOptions) -> float | None:
        """Seconds from now; None where there is no such limit. Raises `BadRequest`."""
        asked = options.kill_after is not None
        if asked and options.timeout is None:
            raise BadRequest("kill_after: is the time beyond timeout:, which is missing")
        if asked and self._killer is None:
            raise BadRequest(
                "kill_after: would end this whole node: start it with --workers, or through "
                "Snex.Interpreter"
            )
        beyond = options.kill_after if asked else self._kill_after
        if beyond is None or options.timeout is None:
            return None
        return options.timeout + beyond

    def _eval_in_thread(
        self, request: Request, code: Code | None, given: Variables | None, options: EvalOptions
    ) -> Work:
        variables = request.variables
        if variables is None:
            variables = self._root.variables.copy()
        function = partial(_eval, code=code, variables=variables, given=given)
        return self._pool.work(request, function, request.process.place, options)

    def init(self, request: Request) -> Payload | Work:
        """An eval that runs in the root environment, and so prepares all that are made later."""
        request.variables, request.enter = self._root.variables, self._root.enter
        result: Payload | Work = request.enter(self._init, request)
        return result

    def _init(self, request: Request) -> Payload | Work:
        # To be reset: environments made later copy this context.
        token = origin.set((request.remote, request.caller))
        try:
            return self.eval(request, init=True)
        finally:
            origin.reset(token)

    def call(self, request: Request) -> Payload | Work:
        """``{:call, module, function, args}``, with ``kwargs``, and ``opts``, or without: what it
        returns.
        """
        if request.arity not in (4, 5, 6):
            raise BadRequest(f"a call request has 4 to 6 elements, not {request.arity}")
        data = request.data
        module, at = typed.decode(data, request.at)
        function, request.at = typed.decode(data, at)
        if not isinstance(module, str) or not isinstance(function, str):
            named = f"{inspect(module)} and {inspect(function)}"
            raise BadRequest(f"module and function of a call are atoms or binaries, not {named}")
        request.runs = module, function
        args, kwargs, options = self.arguments(request, 4)
        called = partial(_call, request.variables, str(module), str(function), args, kwargs)
        return self.run(request, called, options)

    def arguments(
        self, request: Request, least: int
    ) -> tuple[list[Any], dict[str, Any], EvalOptions]:
        """Arguments, keyword arguments and options; the latter are there if the request has more
        than ``least`` parts. Raises `BadRequest`.
        """
        data, at, decoder, options = request.data, request.at, self._decoder, self._no_options
        if request.arity == least + 2:
            raw = typed.decode(data, typed.skip(data, typed.skip(data, at)))[0]
            options = self._reader.eval_options(raw)
            decoder = self._reader.decoder_for(raw)
        args, at = decoder.decode(data, at)
        kwargs: Any = read_keywords(decoder, data, at) if request.arity > least else {}
        if not isinstance(args, list):
            raise BadRequest(f"the arguments of a call are a list, not {inspect(args)}")
        if held:
            args = [held.get(bytes(arg), arg) if isinstance(arg, Term) else arg for arg in args]
        return args, kwargs, options

    def run(
        self, request: Request, call: Callable[[], object], options: EvalOptions
    ) -> Payload | Work:
        """What ``call`` gives, awaited if it is to be."""
        if options.special:
            self._prepare(request, options)
        if options.continues:
            request.continues = True
        if options.traceparent is not None:
            return self._run_traced(request, call, options, options.traceparent)
        if self._kill_after is None and options.kill_after is None:
            return self._run_call(request, call, options)
        return self._killed_beyond(
            request, options, partial(self._run_call, request, call, options)
        )

    def _run_traced(
        self,
        request: Request,
        call: Callable[[], object],
        options: EvalOptions,
        traceparent: str,
    ) -> Payload | Work:
        request.traceparent = traceparent
        origin.set(request.asked)
        with tracing.entered(traceparent):
            run = partial(self._run_call, request, call, options)
            outcome = self._killed_beyond(request, options, run)
        if isinstance(outcome, Work) and not outcome.threaded:
            outcome.awaited = tracing.in_steps(traceparent, outcome.awaited)
        return outcome

    def _run_call(
        self, request: Request, call: Callable[[], object], options: EvalOptions
    ) -> Payload | Work:
        threaded = request.process.threaded if options.threaded is None else options.threaded
        if threaded:
            return self._pool.work(
                request, partial(_call_in_thread, call=call), request.process.place, options
            )
        if options.timeout is None:
            result = call()
        else:
            result = self._interrupter.run(Deadline(options.timeout), call)
        if isawaitable(result):
            return Work(request, _await(result), options)
        return request.remote.encoder.encode_payload(result, OK_)

    # --- the init script ------------------------------------------------------------------------

    async def run_init_script(
        self, source: str, file: str, *, timeout: float | None = None
    ) -> Failure | None:
        """Run a script in the root environment; returns what went wrong, if anything.

        ``timeout`` is in seconds.
        """
        limit = Deadline(timeout)
        try:
            code = compile_code(source, file)
            variables = self._root.variables
            now.running = limit
            try:
                result = self._root.enter(self._interrupter.run, limit, lambda: code.run(variables))
            finally:
                now.running = None
            if code.is_async:
                await self._await_script(result, limit, timeout)
        except Interrupted:
            return _init_timeout(timeout)
        except asyncio.TimeoutError as error:
            own = time.monotonic() < limit.deadline  # the script's own, and not its time limit
            return from_exception(error) if own else _init_timeout(timeout)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # `sys.exit` too: what it says is worth more than its code
            return from_exception(error)
        return None

    async def _await_script(self, work: Any, limit: Deadline, timeout: float | None) -> None:
        limit.over = False
        self._interrupter.watch(limit)
        try:
            error = await asyncio.wait_for(self._in_steps(work, limit), timeout)
        finally:
            limit.over = True
            self._interrupter.unwatch(limit)
        if error is not None:
            raise error

    async def _in_steps(self, work: Any, limit: Deadline) -> BaseException | None:
        return await contexts.in_steps(self._root.enter, limit, None, _error_of(work))


class Snippets:
    """Compiled snippets, by the bytes that they come in; with ``yields`` they may yield."""

    def __init__(self, *, yields: bool = False) -> None:
        self._codes: dict[bytes, Code] = {}
        self._yields = yields

    def read(self, request: Request) -> Code | None:
        """The code that comes next: a binary, nil (None), or a ``Snex.Code``.

        Raises `BadRequest`, and what `compile_code` raises.
        """
        data, at = request.data, request.at
        try:
            end = at + 5 + _u32(data, at + 1)[0] if data[at] == 109 else typed.skip(data, at)
        except (IndexError, StructError):
            raise BadRequest("the request ends before its code does") from None
        request.at = end
        raw = data[at:end]
        request.runs = code = self._codes.get(raw) or self._compile(raw)
        return code

    def _compile(self, raw: bytes) -> Code | None:
        try:
            term, _ = _bytes.decode(raw)
        except DecodeError as error:
            raise BadRequest(f"the code cannot be decoded: {error}") from None
        if term is None:
            return None
        code = compile_code(*code_parts(term), yields=self._yields)
        if len(raw) <= MAX_CODE:
            if len(self._codes) >= MAX_CODES:
                self._codes.clear()
            self._codes[raw] = code
        return code


def _init_timeout(timeout: float | None) -> Failure:
    return Failure("init_script_timeout", f"not done within {timeout} s")


def _options_of_init(options: EvalOptions) -> EvalOptions:
    """What counts of ``options`` for code that prepares environments. Raises `BadRequest`."""
    if options.threaded:
        raise BadRequest("init takes no executor: it runs on the event loop, before all else")
    return options if options.limited or options.kill_after is not None else NO_OPTIONS


def _nothing(request: Request, options: EvalOptions) -> Payload:
    """What no code gives, which may be kept as well."""
    return request.remote.encoder.encode_payload(None, OK_) if options.keep else OK_NIL


def _eval(
    request: Request, *, code: Code | None, variables: Variables, given: Variables | None
) -> Payload | Awaiting:
    """Run code in a thread."""
    here.set(variables)
    if given:
        variables.update(given)
    if code is None:
        return request.remote.encoder.encode_payload(None, OK_)
    traceparent = request.asked[2:]
    if traceparent:
        return _eval_traced(request, code, variables, traceparent[0])
    value: Any = code.run(variables)
    return Awaiting(value) if code.is_async else request.remote.encoder.encode_payload(value, OK_)


def _eval_traced(
    request: Request, code: Code, variables: Variables, traceparent: str
) -> Payload | Awaiting:
    with tracing.entered(traceparent):
        value: Any = code.run(variables)
    if code.is_async:
        return Awaiting(tracing.in_steps(traceparent, value))
    return request.remote.encoder.encode_payload(value, OK_)


def _call(
    variables: Variables | None, module: str, function: str, args: list[Any], kwargs: Any
) -> Any:
    """Call a function of a module. Raises `BadRequest` where there is none."""
    if variables is not None:
        here.set(variables)
    try:
        called = import_function(module, function)
    except UndefinedFunctionError as error:
        raise BadRequest(str(error)) from None
    return called(*args, **kwargs)


def _call_in_thread(request: Request, *, call: Callable[[], Any]) -> Payload | Awaiting:
    value = call()
    return (
        Awaiting(value) if isawaitable(value) else request.remote.encoder.encode_payload(value, OK_)
    )


def _value(request: Request, code: Code, variables: Variables) -> Payload:
    return request.remote.encoder.encode_payload(code.run(variables), OK_)


async def _run_with(code: Code, variables: Variables, given: Variables) -> object:
    """Run code that awaits, and set its variables when it begins, which may be a turn later.

    Set any sooner, they would be those of whatever else begins in the environment in that turn.
    """
    variables.update(given)
    return await _await(code.run(variables))


async def _error_of(work: Any) -> BaseException | None:
    """What ``work`` raises. A task that raised `SystemExit` itself would end the event loop."""
    try:
        await _await(work)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return error
    return None


async def _await(awaitable: Any) -> object:
    return await awaitable


BOUNDARIES: Final = (
    *(f.__code__ for f in (Code.run, _call, _await)),
    *tracing.BOUNDARIES,
)
"""What calls user code, for `interrupts`."""
