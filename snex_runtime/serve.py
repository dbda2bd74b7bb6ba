"""``snex.send``, ``cast`` and ``call`` in other Python processes, over a stream to this one.

Source: "Using snex.send & snex.call from external Python processes" in the README of Snex. The
child's `serve` and the parent's `io_loop_for_connection` exchange frames: a 32-bit length and one
term, ``{Kind, Id, ...}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from struct import Struct
from typing import Any, Final

from snex_node.etf import DecodeError
from snex_runtime import interface, serde
from snex_runtime.interface import ElixirError
from snex_runtime.serde import Atom

MAX_FRAME: Final = 128 * 1024 * 1024
"""Longest frame either side accepts, in bytes; a longer one ends the connection."""

_LENGTH = Struct(">I")
_log = logging.getLogger(__name__)


async def _write(writer: asyncio.StreamWriter, lock: asyncio.Lock, message: object) -> None:
    frame = serde.encoder.encode(message)
    if len(frame) > MAX_FRAME:
        raise ValueError(f"a message of {len(frame)} bytes: at most {MAX_FRAME} fit a frame")
    async with lock:
        writer.write(_LENGTH.pack(len(frame)) + frame)
        await writer.drain()


async def _read(reader: asyncio.StreamReader, options: serde.Options) -> Any:
    """The next message, or None at the end."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(4))
        if length > MAX_FRAME:
            raise ConnectionError(f"a frame of {length} bytes: at most {MAX_FRAME} are accepted")
        frame = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    return serde.decoder(options).decode(frame)[0]


# --- the child ----------------------------------------------------------------------------------


class _StreamBackend:
    """Carries messages to the parent; from any thread and loop of the child."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.closed = asyncio.Event()
        """Set when the parent has closed."""

    async def send(self, to: object, data: object) -> None:
        """See `interface.send`."""
        await self._ask("send", to, data)

    async def cast(self, module: str, function: str, args: list[object], node: str | None) -> None:
        """See `interface.cast`."""
        await self._ask("cast", module, function, args, node)

    async def call(
        self,
        module: str,
        function: str,
        args: list[object],
        node: str | None,
        options: serde.Options | None,
    ) -> object:
        """See `interface.call`."""
        chosen = options or serde.DEFAULTS
        raw = await self._ask("call", module, function, args, node, list(chosen))
        return serde.decoder(chosen).decode(raw)[0]

    def log(self, level: str, text: str, metadata: dict[Atom, object]) -> None:
        """Hand a log record on, from any thread."""
        message = (Atom("log"), 0, Atom(level), text, metadata)
        self._loop.call_soon_threadsafe(self._write_soon, message)

    def _write_soon(self, message: object) -> None:
        if not self.closed.is_set():
            frame = serde.encoder.encode(message)
            self._writer.write(_LENGTH.pack(len(frame)) + frame)

    async def _ask(self, kind: str, *fields: object) -> Any:
        if asyncio.get_running_loop() is self._loop:
            return await self._ask_here(kind, fields)
        work = self._ask_here(kind, fields)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _ask_here(self, kind: str, fields: tuple[object, ...]) -> Any:
        if self.closed.is_set():
            raise ConnectionError("the process that connects to the BEAM has gone")
        number = next(self._ids)
        # Registered before it is written: the answer can be here before the write returns.
        self._waiting[number] = answer = self._loop.create_future()
        try:
            await _write(self._writer, self._lock, (Atom(kind), number, *fields))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def receive(self) -> None:
        """Take answers until the parent closes."""
        try:
            while True:
                message = await _read(self._reader, ("bytes", "set", "atom"))
                if message is None:
                    return
                self._answered(message)
        finally:
            self.closed.set()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(
                        ConnectionError("the process that connects to the BEAM has gone")
                    )

    def _answered(self, message: tuple[Any, ...]) -> None:
        kind, number, *rest = message
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if kind == "ok":
            waiting.set_result(rest[0])
            return
        error, text, error_kind = (part.decode() for part in rest)
        if error == "ElixirError":
            waiting.set_exception(ElixirError(text, error_kind))
        elif error == "TypeError":
            waiting.set_exception(TypeError(text))
        else:
            waiting.set_exception(RuntimeError(text))


@contextlib.asynccontextmanager
async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Make `send`, `cast` and `call` work in this process through the given streams.

    The other end runs `io_loop_for_connection`, in a process that is connected to a BEAM. Inside of
    the ``async with`` block they work from any thread and loop; the writer is closed at its end.

    >>> async def child(path: str) -> None:
    ...     async with serve(*await asyncio.open_unix_connection(path)):
    ...         await interface.call("Elixir.IO", "puts", ["hello from a child"])
    """
    backend = _StreamBackend(reader, writer)
    receiving = asyncio.ensure_future(backend.receive())
    before = interface.current_backend()
    interface.set_backend(backend)
    try:
        yield
    finally:
        interface.set_backend(before)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        receiving.cancel()
        await asyncio.wait([receiving])
        await _close(writer)


async def serve_forever(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    on_ready: Callable[[], object] | None = None,
) -> None:
    """`serve` until the other end closes; ``on_ready`` is called when `send` and `call` work."""
    async with serve(reader, writer):
        if on_ready is not None:
            on_ready()
        backend = interface.get_backend()
        assert isinstance(backend, _StreamBackend)
        await backend.closed.wait()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, OSError):
        await writer.wait_closed()


# --- the parent ---------------------------------------------------------------------------------


async def io_loop_for_connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one child: carry its messages to the BEAM until it closes; then close the writer.

    Fits ``asyncio.start_unix_server`` as its callback.
    """
    lock = asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            message = await _read(reader, serde.DEFAULTS)
            if message is None:
                return
            if message[0] == "call":
                task = asyncio.ensure_future(_serve_one(message, writer, lock))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                # Sends stay in order: the next is read when this one is on its way.
                await _serve_one(message, writer, lock)
    except (DecodeError, ConnectionError) as error:
        _log.warning("a child process is cut off: %s", error)
    finally:
        for task in tasks:
            task.cancel()
        await _close(writer)


async def _serve_one(
    message: tuple[Any, ...], writer: asyncio.StreamWriter, lock: asyncio.Lock
) -> None:
    kind, number, *fields = message
    if kind == "log":
        level, text, metadata = fields
        interface.get_backend().log(level, text, metadata)
        return
    answer: object
    try:
        answer = (Atom("ok"), number, await _perform(kind, fields))
    except Exception as error:
        name = next(
            (t.__name__ for t in (ElixirError, TypeError) if isinstance(error, t)), "RuntimeError"
        )
        text = str(error).encode("utf-8", "backslashreplace")
        answer = (Atom("error"), number, name, text, getattr(error, "kind", "error"))
    with contextlib.suppress(ConnectionError):
        await _write(writer, lock, answer)


async def _perform(kind: str, fields: list[Any]) -> object:
    backend = interface.get_backend()
    if kind == "send":
        await backend.send(*fields)
        return None
    if kind == "cast":
        await backend.cast(*fields)
        return None
    if kind == "call":
        module, function, args, node, options = fields
        binary_as, set_as, atom_as = options
        result = await backend.call(module, function, args, node, (binary_as, set_as, atom_as))
        return serde.encoder.encode(result)
    raise ValueError(f"unknown message of a child: {kind!r}")
