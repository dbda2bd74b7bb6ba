"""What evaluated code sees of the BEAM: ``snex.send``, ``call``, ``cast`` and ``Elixir``.

Source: "Cast and call Elixir code from Python" in the README of Snex. All of it works from the
event loop of the node, from other loops and from worker threads.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, Protocol

from snex_node.cluster.connection import HIGH_WATER
from snex_node.errors import ConnectError, NodeError, ProcessExitError, RemoteError
from snex_node.node import Node
from snex_node.system import tasks
from snex_node.wire import etf
from snex_node.wire.describe import inspect, short, text_of, type_name
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.gen import From
from snex_node.wire.terms import Pid, Reference
from snex_node.wire.terms import Term as RawTerm
from snex_runtime import interrupts, serde
from snex_runtime.origin import origin
from snex_runtime.serde import Atom, EncodingOpts

MAX_LOG_RECORDS: Final = 10_000
"""Log records that may wait, for a BEAM to be there or to take them; further ones are counted as
dropped. At some 2 KiB each they hold 20 MiB."""

LOG_PATIENCE: Final = 1.0
"""Seconds that an answer waits for `Logger` to have what its request logged; then it goes out. A
record takes some 0.2 ms, unless something over there holds up `Logger`."""

SYSTEM_APPLICATION: Final = "snex"
"""The application that the library's own notes to ``Logger`` name."""

_CLIENT: Final = "Elixir.Snex.Remote"
_TRACES: Final = 2  # the version from which on it takes the trace that a call is in
"""What the Elixir client has for us on its nodes: it calls functions as users of it expect."""

_typed: Final = Decoder(binary_as="bytes")

Name = str | RawTerm
"""A module, function or node: an Atom, a str, or a `Term` that is an atom."""


class ElixirError(Exception):
    """A function called on the BEAM did not return.

    ``kind`` is ``error``, ``exit`` or ``throw``; ``reason`` is what came with it, converted by the
    usual table. The text holds the exception as Elixir's ``Exception.format/3`` writes it.
    """

    __module__ = "snex"  # where users find it, and tracebacks name it

    def __init__(self, text: str, kind: str = "error", reason: object = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.reason = reason


class Backend(Protocol):
    """Who carries messages to the BEAM: the node itself, or the parent of this process."""

    async def send(self, to: object, data: object) -> None:
        """See `send`."""

    async def cast(self, module: str, function: str, args: list[object], node: str | None) -> None:
        """See `cast`."""

    async def call(
        self,
        module: str,
        function: str,
        args: list[object],
        node: str | None,
        decoder: Decoder | None,
    ) -> object:
        """See `call`; ``decoder`` decodes the result, by default one with the usual options."""

    def log(self, level: str, text: str, metadata: object) -> None:
        """Hand a log record to Elixir's ``Logger``, from any thread."""


class NodeBackend:
    """Carries messages over the distribution, from any thread and loop."""

    def __init__(self, node: Node, sender: Pid, options: serde.Options) -> None:
        self._node = node
        self._sender = sender
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.logs: Final = LogQueue(self)
        """Log records on their way to Elixir."""
        # Whether the client is loaded on a node, which each is asked for once it is called.
        self._clients: dict[str, asyncio.Task[int]] = {}
        self.last_origin: str | None = None
        """The node that made a request last."""

    async def send(self, to: object, data: object) -> None:
        """Send ``data`` and, on the loop, wait while too much is on its way to that node."""
        destination = self.destination(to)
        self._node.send(destination, data, sender=self._sender)
        name = destination[1] if isinstance(destination, tuple) else destination.node
        connection = self._node.remote(name).connection if name != self._node.name else None
        if connection is not None and connection.pending > HIGH_WATER:
            await self._on_loop(connection.drain())

    def post(self, to: Pid | Reference | tuple[str, str], data: object) -> None:
        """Send ``data``, from any thread, without waiting for anything."""
        self._node.send(to, data, sender=self._sender)

    def destination(self, to: object) -> Pid | Reference | tuple[str, str]:
        """Where ``to`` is: names without a node are those of the default node."""
        to = serde.to_typed(to)
        if isinstance(to, Pid | Reference):
            return to
        if isinstance(to, str):
            return str(to), self.default_node()
        if isinstance(to, tuple) and len(to) == 2:
            name, node = (serde.to_typed(part) for part in to)
            if isinstance(name, str) and isinstance(node, str):
                return str(name), str(node)
        raise TypeError(
            f"cannot send to {short(to)}: it takes a pid, an alias, a name or (name, node)"
        )

    def default_node(self) -> str:
        """The node whose request is running; else the last that made one; else the only one."""
        asked = origin.get()
        if asked is not None:
            return asked[0].name
        nodes = self._node.nodes
        if self.last_origin in nodes:
            return str(self.last_origin)
        if len(nodes) == 1:
            return nodes[0]
        if not nodes:
            raise LookupError("no BEAM is connected: connect one, or name the node to connect to")
        raise LookupError(
            f"which node is meant? {len(nodes)} are connected and no request is running: "
            "give its name, as in node='app@host'"
        )

    async def cast(self, module: str, function: str, args: list[object], node: str | None) -> None:
        """Have a function called in a new process, without an answer."""
        name = node or self.default_node()
        known = self._clients.get(name)
        if known is None or not known.done():
            client = await self._on_loop(self._client(name))
        else:
            client = known.result()
        if client:
            module, function, args = self._through_client(client, module, function, args)
        self._node.rpc_cast(name, module, function, args)

    async def call(
        self,
        module: str,
        function: str,
        args: list[object],
        node: str | None,
        decoder: Decoder | None,
    ) -> object:
        """Call a function in a new process; the result is decoded by ``decoder``."""
        name = node or self.default_node()
        work = self._call(name, module, function, args, decoder or serde.decoder(self._options))
        return await self._on_loop(work)

    async def _call(
        self, node: str, module: str, function: str, args: list[object], decoder: Decoder
    ) -> object:
        what = f"{module}.{function}/{len(args)}"
        outcome = _outcome(decoder)
        client = await self._client(node)
        if client:
            module, function, args = self._through_client(client, module, function, args)
        try:
            return await self._node.rpc(node, module, function, args, timeout=None, decoder=outcome)
        except RemoteError as error:
            failure = await self._describe(node, what, error, decoder)
        except (ConnectError, ProcessExitError) as error:
            failure = ElixirError(f"{what} failed: {error}", "exit")
        raise failure

    def _through_client(
        self, client: int, module: str, function: str, args: list[object]
    ) -> tuple[str, str, list[object]]:
        """The call that has the client call: it encodes the result, and knows for whom it is, and
        from version 2 on in which trace.
        """
        asked = origin.get()
        caller = self._sender if asked is None or asked[1] is None else asked[1].pid
        through: list[object] = [Atom(module), Atom(function), args, caller]
        if client >= _TRACES and asked is not None:
            through += asked[2:]
        return _CLIENT, "apply", through

    async def _client(self, name: str) -> int:
        """The version of the client there; 0: there is none."""
        known = self._clients.get(name)
        if known is None:
            known = self._clients[name] = self._loop.create_task(self._ask_for_client(name))
        return await asyncio.shield(known)

    async def _ask_for_client(self, name: str) -> int:
        try:
            version = await self._node.rpc(name, _CLIENT, "version", decoder=_typed)
        except RemoteError:  # there is no such module
            return 0
        except NodeError:  # it has gone, or cannot be reached: what is to be called will tell
            self._clients.pop(name, None)
            return 0
        return version if type(version) is int else 0

    async def _describe(
        self, node: str, what: str, error: RemoteError, decoder: Decoder
    ) -> ElixirError:
        kind = error.kind if error.kind in ("error", "exit", "throw") else "error"
        stack = error.stack or []
        formatted = [Atom(kind), error.reason, stack]
        try:
            text = await self._node.rpc(
                node, "Elixir.Exception", "format", formatted, decoder=_typed
            )
        except NodeError:  # a bare Erlang node formats nothing
            text = None
        if isinstance(text, bytes):
            described = text.decode("utf-8", "replace")
        else:
            described = f"** ({kind}) {inspect(error.reason, 1000)}\n    {inspect(stack, 1000)}"
        reason = _converted(error.reason, decoder)
        return ElixirError(f"{what} failed on Elixir side:\n{described}", kind, reason)

    def log(self, level: str, text: str, metadata: object) -> None:
        """Queue a record; it goes to the node whose request is running."""
        self.logs.put(level, text, metadata)

    def log_node(self, wanted: str | None) -> str | None:
        """Where a record goes that was made in a request of ``wanted``; None when nobody is there.

        Rather to another node than nowhere.
        """
        nodes = self._node.nodes
        for name in (wanted, self.last_origin):
            if name in nodes:
                return name
        return nodes[0] if nodes else None

    async def write_log(self, node: str, args: list[object]) -> None:
        """Have ``Logger.bare_log`` called, and wait until it has been."""
        await self._node.rpc(node, "Elixir.Logger", "bare_log", args, decoder=_typed)

    @property
    def logs_dropped(self) -> int:
        """How many log records were lost."""
        return self.logs.dropped

    def connected(self) -> None:
        """A node is there: what was logged while none was goes out."""
        self.logs.wake()

    def close(self) -> None:
        """The runtime stops."""
        self.logs.close()
        for asking in self._clients.values():
            asking.cancel()

    def disconnected(self, name: str) -> None:
        """A node is gone; another one may come in its name."""
        self._clients.pop(name, None)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the node."""
        return self._loop

    @property
    def node(self) -> Node:
        """The node."""
        return self._node

    @property
    def decoder(self) -> Decoder:
        """What decodes messages: as variables are, where requests do not say."""
        return serde.decoder(self._options)

    @property
    def is_its_thread(self) -> bool:
        """Whether this is the thread of the event loop."""
        return threading.get_ident() == self._thread

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run ``function`` on the node's loop soon."""
        self._loop.call_soon_threadsafe(function)

    async def _on_loop(self, work: Any) -> Any:
        """Await ``work`` on the node's loop, from whatever loop this is."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class Outcome(Decoder):
    """Decodes what ``erpc:execute_call`` ends with: a result as the caller wants it, all else as it
    is, so that an exception is told of whatever it holds.
    """

    __slots__ = ("_result",)

    def __init__(self, result: Decoder) -> None:
        super().__init__(binary_as="bytes")
        self._result = result

    def decode(self, data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[Any, int]:
        """The term at ``offset``, and the offset behind it."""
        if data[offset : offset + 2] == b"h\x03":
            kind = self.skip(data, offset + 2)
            if data[kind : kind + 8] == b"w\x06return":
                ref, _ = super().decode(data, offset + 2)
                value, end = self._value(bytes(data), kind + 8)
                return (ref, Atom("return"), value), end
        return super().decode(data, offset)

    def _value(self, data: bytes, offset: int) -> tuple[Any, int]:
        try:
            return self._result.decode(data, offset)
        except DecodeError:
            raise
        except Exception as error:  # of an object that the result asks for
            told = f"{type_name(type(error))}: {text_of(error)}"
            raise DecodeError(f"the result cannot be converted: {told}", offset) from error


# There are as many decoders as there are encoding options, and to make one takes 15 us.
_outcome: Final = lru_cache(maxsize=16)(Outcome)


def _converted(term: object, decoder: Decoder) -> object:
    """A decoded term by the usual table; as it is where that has no way (binaries, not UTF-8)."""
    try:
        return decoder.decode(etf.Encoder().encode(term), 0)[0]
    except (DecodeError, etf.EncodeError):
        return term


delivering_logs: ContextVar[bool] = ContextVar("snex_delivering_logs", default=False)
"""Whether the code that runs carries log records: what it logs itself must not join them."""


class LogCarrier(Protocol):
    """What a `LogQueue` needs of a backend."""

    def log_node(self, wanted: str | None) -> str | None:
        """Where a record made in a request of ``wanted`` goes; None when nobody is there."""

    async def write_log(self, node: str, args: list[object]) -> None:
        """Have ``Logger.bare_log`` called, and wait until it has been."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run ``function`` on the loop soon, from any thread."""


_Record = tuple[int, From | None, str | None, list[object]]
# A record's number, the request in which it was made, that one's node, and what Logger gets.


class LogQueue:
    """Log records on their way to Elixir: one at a time, because each is logged by a process of its
    own there, and only what is done before the next begins stays in order.

    At most ``limit`` records wait. How many were lost is told to ``Logger`` when it takes records
    again.
    """

    def __init__(self, backend: LogCarrier, limit: int = MAX_LOG_RECORDS) -> None:
        self._backend = backend
        self._limit = limit
        self.records: Final[deque[_Record]] = deque()
        """What is on its way, the oldest first; who only looks whether there is anything may."""
        self._writer: asyncio.Task[None] | None = None
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        # The number of the last record of each request, and of none, that is on its way.
        self._last: dict[From | None, int] = {}
        # What is to be done when the record of a number has arrived.
        self._held: dict[int, list[Callable[[], None]]] = {}
        self.dropped = 0
        """Records lost because too many waited, or because no ``Logger`` took them."""
        self._reported = 0
        self._closed = False

    def put(self, level: str, text: str, metadata: object) -> None:
        """Queue a record, from any thread."""
        asked = origin.get()
        remote, request = (None, None) if asked is None else asked[:2]
        node = None if remote is None else remote.name
        with self._lock:
            if len(self.records) >= self._limit:
                self.dropped += 1
                return
            number = next(self._numbers)
            self.records.append((number, request, node, [Atom(level), text, metadata]))
            self._last[request] = number
        try:
            self._backend.call_soon(self.wake)
        except RuntimeError:  # the loop is closed: the program ends
            self.dropped += 1

    def hold(self, request: From, release: Callable[[], None]) -> bool:
        """Have ``release`` called when what was logged for ``request`` has arrived.

        So it is with what was logged for no request, by a thread say, as it may be this one's. It
        is called after `LOG_PATIENCE` at the latest. False, and not called, when nothing of that is
        on its way.
        """
        with self._lock:
            number = max(self._last.get(request, 0), self._last.get(None, 0))
        if not number or self._closed:
            return False
        if number not in self._held:
            self._held[number] = []
            asyncio.get_running_loop().call_later(LOG_PATIENCE, self._release, number)
        self._held[number].append(release)
        return True

    def _release(self, number: int) -> None:
        for release in self._held.pop(number, ()):
            release()

    def _arrived(self) -> None:
        with self._lock:
            number, request, _, _ = self.records.popleft()
            if self._last.get(request) == number:
                del self._last[request]
        self._release(number)

    def wake(self) -> None:
        """Write what waits, unless that is under way, or nobody is there."""
        if self._writer is not None or self._closed or not self.records:
            return
        if self._next_node() is not None:
            self._writer = tasks.start(self._write())

    @property
    def writing(self) -> bool:
        """Whether records are being written."""
        return self._writer is not None

    def close(self) -> None:
        """Write no more."""
        self._closed = True
        if self._writer is not None:
            self._writer.cancel()
        for number in list(self._held):
            self._release(number)

    def _next_node(self) -> str | None:
        return self._backend.log_node(self.records[0][2])

    async def _write(self) -> None:
        delivering_logs.set(True)
        try:
            while self.records:
                node = self._next_node()
                if node is None:
                    return  # the next connection wakes us
                taken = await self._deliver(node, self.records[0][3])
                self._arrived()
                if taken and not self.records and self.dropped > self._reported:
                    await self._report(node)
        except ConnectError:
            return  # nobody is there after all, and the record waits on
        finally:
            self._writer = None

    async def _deliver(self, node: str, args: list[object]) -> bool:
        try:
            await self._backend.write_log(node, args)
        except ConnectError:
            raise
        except Exception:  # a record without a term, a node without a Logger: the next may do
            self.dropped += 1
            return False
        return True

    async def _report(self, node: str) -> None:
        lost, self._reported = self.dropped - self._reported, self.dropped
        text = f"{lost} log records of Python were dropped"
        metadata = {Atom("application"): Atom(SYSTEM_APPLICATION)}
        await self._deliver(node, [Atom("warning"), text, metadata])


_backend: Backend | None = None
_stopped = False


def set_backend(backend: Backend | None, *, stopped: bool = False) -> None:
    """Make ``backend`` what `send`, `cast` and `call` of this process go through.

    ``stopped`` says that there is none any more because what there was came to its end.
    """
    global _backend, _stopped
    _backend, _stopped = backend, stopped


def has_stopped() -> bool:
    """Whether there was a way to a BEAM that came to its end."""
    return _stopped


def current_backend() -> Backend | None:
    """What they go through, if anything."""
    return _backend


def node_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of the node in this process; None where there is no node."""
    return _backend.loop if isinstance(_backend, NodeBackend) else None


def _forget_backend() -> None:
    set_backend(None)


if hasattr(os, "register_at_fork"):
    # A forked child shares the parent's sockets; what it wrote there would cut the parent off.
    os.register_at_fork(after_in_child=_forget_backend)


def get_backend() -> Backend:
    """What they go through. Raises ``RuntimeError`` where there is none."""
    interrupts.checkpoint()
    if _backend is None:
        raise RuntimeError(
            "this process is not connected to a BEAM: run it under snex-node, or let snex.serve "
            "connect it to a process that is"
        )
    return _backend


async def send(to: object, data: object) -> None:
    """Send ``data`` to a BEAM process, as ``Kernel.send/2`` does.

    ``to`` is a pid, an alias, a registered name (of the node whose request is running), or
    ``(name, node)``. Messages from one task to one process arrive in the order of the calls. A
    message to a process that does not exist is dropped. Raises ``TypeError`` for data that cannot
    be serialized, or a destination that is none, ``LookupError`` for a name when it is not clear of
    which node, and ``RuntimeError`` where no BEAM can be reached from this process.

    >>> async def report(pid: object) -> None:
    ...     await send(pid, {"progress": 0.5})
    """
    await get_backend().send(to, data)


async def cast(
    module: Name, function: Name, args: Iterable[object], *, node: Name | None = None
) -> None:
    """Call a function on the BEAM in a new process, without waiting for it.

    ``module`` and ``function`` are names; Elixir modules have their full one (``Elixir.Enum``).
    ``node`` is where, by default the node whose request is running. Raises what `call` raises
    before anything is sent; what becomes of the function is not told.

    >>> async def log(text: str) -> None:
    ...     await cast("Elixir.IO", "puts", [text])
    """
    where = None if node is None else _name(node, "node")
    named = _name(module, "module"), _name(function, "function")
    await get_backend().cast(*named, _arguments(args), where)


async def call(
    module: Name,
    function: Name,
    args: Iterable[object],
    *,
    node: Name | None = None,
    result_encoding_opts: EncodingOpts | None = None,
) -> Any:
    """Call a function on the BEAM in a new process, and return its result.

    ``result_encoding_opts`` say how the result becomes Python objects. Raises `ElixirError` when
    the function does not return, ``TypeError`` for arguments that cannot be serialized,
    ``ValueError`` for a name that is no atom, an unknown option, or a result that the options
    cannot convert, ``LookupError`` when no node is given and it is not clear which is meant, and
    ``RuntimeError`` where no BEAM can be reached from this process. A cancelled call is abandoned:
    its process goes on, its result is dropped.

    >>> async def now() -> str:
    ...     return await call("Elixir.DateTime", "utc_now", [])
    """
    decoder = None
    if result_encoding_opts is not None:
        decoder = serde.decoder(serde.merge_options(result_encoding_opts))
    where = None if node is None else _name(node, "node")
    return await get_backend().call(
        _name(module, "module"), _name(function, "function"), _arguments(args), where, decoder
    )


def traceparent() -> str | None:
    """Where the request that runs stands in a trace, as W3C Trace Context has it; None where its
    caller has not said so (the option ``traceparent:`` of ``eval``).

    Tasks and threads that the request starts have it too, and so has what it calls by `call` and
    `cast` where the Elixir client is. `send` has no place for it.

    >>> traceparent() is None
    True
    """
    asked = origin.get()
    return asked[2] if asked is not None and len(asked) == 3 else None


def _name(value: Name, what: str) -> str:
    typed = serde.to_typed(value)
    if not isinstance(typed, str):
        raise TypeError(
            f"{what} takes a name (str, Atom, or a Term that is an atom), not {short(value)}"
        )
    return str(Atom(typed))


def _arguments(args: Iterable[object]) -> list[object]:
    if isinstance(args, str | bytes | bytearray):
        raise TypeError(
            f"the arguments of a function are a list, not {short(args)}: [{short(args)}]"
        )
    return list(args)


class BeamModuleProxy:
    """A module of the BEAM, or a function of one, as a Python object.

    An attribute that begins with a capital extends the module's name, any other names a function;
    calling it calls the function. ``Elixir`` is the root of all Elixir modules.

    >>> async def double(numbers: list[int], mapper: object) -> list[int]:
    ...     return await Elixir.Enum.map(numbers, mapper)
    """

    __slots__ = ("_function", "_module")

    def __init__(self, module_name: str, function_name: str | None = None) -> None:
        self._module = module_name
        self._function = function_name

    def __getattr__(self, name: str) -> BeamModuleProxy:
        # The slots are asked for here only before they are set, as `copy` and `pickle` do.
        if (name.startswith("__") and name.endswith("__")) or name in BeamModuleProxy.__slots__:
            raise AttributeError(name)
        if self._function is not None:
            raise AttributeError(f"{self!r} is a function and has no {name}")
        if name[:1].isupper():
            return BeamModuleProxy(f"{self._module}.{name}")
        return BeamModuleProxy(self._module, name)

    def __call__(
        self,
        *args: object,
        cast: bool = False,
        node: Name | None = None,
        result_encoding_opts: EncodingOpts | None = None,
    ) -> Any:
        """Call the function, as `call` does, or as `cast` with ``cast=True``; await the result."""
        if self._function is None:
            raise TypeError(f"{self!r} is a module; call one of its functions")
        if cast:
            return _cast(self._module, self._function, args, node=node)
        return call(
            self._module,
            self._function,
            args,
            node=node,
            result_encoding_opts=result_encoding_opts,
        )

    def __repr__(self) -> str:
        function = "" if self._function is None else f".{self._function}"
        return f"<snex.BeamModuleProxy {self._module}{function}>"


_cast = cast

Elixir = BeamModuleProxy("Elixir")
"""The root of Elixir's modules: ``await Elixir.Enum.map([1, 2], mapper)``."""
