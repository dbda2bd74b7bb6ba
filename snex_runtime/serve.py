"""``snex.send``, ``cast`` and ``call`` in other Python processes, over a stream to this one.

Source: "Using snex.send & snex.call from external Python processes" in the README of Snex. The
child's `serve` and the parent's `io_loop_for_connection` exchange frames: a 32-bit length and one
term, ``{Kind, Id, ...}``. Text in them is binaries, so that data that is no text passes as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from struct import Struct
from typing import Any, Final

from snex_node.wire import etf
from snex_node.wire.describe import inspect, text_of
from snex_node.wire.etf import DecodeError, Decoder
from snex_runtime import interface, serde
from snex_runtime.interface import ElixirError
from snex_runtime.serde import Atom

MAX_FRAME: Final = 128 * 1024 * 1024
"""Longest frame either side accepts, in bytes; a longer one ends the connection."""

MAX_UNWRITTEN: Final = 16 * 1024 * 1024
"""Bytes that may wait for the parent to read before further log records are dropped: unlike calls
they wait for no answer, and nothing else would hold them up."""

_LENGTH = Struct(">I")
_GONE: Final = "the process that connects this one to a BEAM has gone"
_log = logging.getLogger(__name__)

# Pids and all else that Python has nothing for stay as they are, and so does what is not UTF-8.
_frames: Final = serde.passing
# Results pass through the parent unchanged: the child decodes them as its caller wants.
_results: Final = Decoder()
_plain: Final = etf.Encoder()


def encode_frame(message: object) -> bytes:
    """``message`` as it is written. Raises ``ValueError`` when it is longer than `MAX_FRAME`."""
    body = serde.encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a message of {len(body)} bytes: at most {MAX_FRAME} fit a frame")
    return _LENGTH.pack(len(body)) + body


async def _write(writer: asyncio.StreamWriter, lock: asyncio.Lock, frame: bytes) -> None:
    async with lock:  # `drain` may be waited for by one task only, before Python 3.11
        writer.write(frame)
        await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> tuple[str, int, list[Any]] | None:
    """The next message as its kind, number and fields; None at the end.

    Raises `DecodeError` and ``ConnectionError`` for what is none.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(4))
        if length > MAX_FRAME:
            raise ConnectionError(f"a frame of {length} bytes: at most {MAX_FRAME} are accepted")
        frame = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
        return None
    message = _frames.decode(frame)[0]
    if not isinstance(message, tuple) or len(message) < 2 or type(message[1]) is not int:
        raise ConnectionError(f"a message that is none: {inspect(message)}")
    kind, number, *fields = message
    return str(kind), number, fields


def _text(value: Any) -> Any:
    """Names, which the frames hold as bytes, as str."""
    if isinstance(value, bytes) and not isinstance(value, serde.Term):
        return value.decode()
    return tuple(map(_text, value)) if isinstance(value, tuple) else value


# --- the child ----------------------------------------------------------------------------------


class StreamBackend:
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
        self.logs_dropped = 0
        """Log records lost because the parent was gone, or did not read."""

    @property
    def unanswered(self) -> int:
        """How many messages wait for an answer."""
        return len(self._waiting)

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
        decoder: Decoder | None,
    ) -> object:
        """See `interface.call`."""
        raw = await self._ask("call", module, function, args, node)
        return (decoder or serde.decoder()).decode(raw)[0]

    def log(self, level: str, text: str, metadata: object) -> None:
        """Hand a log record on, from any thread."""
        frame = encode_frame((Atom("log"), 0, level, text, metadata))
        self._loop.call_soon_threadsafe(self._write_log, frame)

    def _write_log(self, frame: bytes) -> None:
        unwritten = self._writer.transport.get_write_buffer_size()
        if self.closed.is_set() or unwritten > MAX_UNWRITTEN:
            self.logs_dropped += 1
        else:
            self._writer.write(frame)

    async def _ask(self, kind: str, *fields: object) -> Any:
        if asyncio.get_running_loop() is self._loop:
            return await self._ask_here(kind, fields)
        if self._loop.is_closed():
            raise ConnectionError(_GONE)
        work = self._ask_here(kind, fields)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _ask_here(self, kind: str, fields: tuple[object, ...]) -> Any:
        if self.closed.is_set():
            raise ConnectionError(_GONE)
        number = next(self._ids)
        frame = encode_frame((Atom(kind), number, *fields))
        # Registered before it is written: the answer can be here before the write returns.
        self._waiting[number] = answer = self._loop.create_future()
        try:
            await _write(self._writer, self._lock, frame)
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def receive(self) -> None:
        """Take answers until the parent closes."""
        try:
            while True:
                message = await read_message(self._reader)
                if message is None:
                    return
                self._answered(*message)
        except (DecodeError, ConnectionError) as error:
            _log.error("the connection to the parent process is given up: %s", error)
        finally:
            self.closed.set()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(_GONE))

    def _answered(self, kind: str, number: int, fields: list[Any]) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if kind == "ok":
            waiting.set_result(fields[0])
        else:
            waiting.set_exception(_restored(fields))


_ERRORS: Final = (ElixirError, TypeError, ValueError, LookupError, ConnectionError)
"""Errors that a child gets as what they are; others become ``RuntimeError``."""


def _described(error: Exception) -> tuple[object, ...]:
    """An error as fields of a message."""
    kind = next((t.__name__ for t in _ERRORS if isinstance(error, t)), "RuntimeError")
    text = text_of(error).encode("utf-8", "backslashreplace")
    if isinstance(error, ElixirError):
        return kind, text, error.kind, error.reason
    return kind, text


def _restored(fields: list[Any]) -> Exception:
    name, text = (part.decode() for part in fields[:2])
    if name == "ElixirError":
        return ElixirError(text, fields[2].decode(), fields[3])
    return next((t for t in _ERRORS if t.__name__ == name), RuntimeError)(text)


@contextlib.asynccontextmanager
async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Make `send`, `cast` and `call` work in this process through the given streams.

    The other end runs `io_loop_for_connection`, in a process that is connected to a BEAM. Inside of
    the ``async with`` block they work from any thread and loop; the writer is closed at its end.
    When the other end has gone they raise ``ConnectionError``.

    >>> async def child(path: str) -> None:
    ...     async with serve(*await asyncio.open_unix_connection(path)):
    ...         await interface.call("Elixir.IO", "puts", ["hello from a child"])
    """
    backend = StreamBackend(reader, writer)
    receiving = asyncio.ensure_future(backend.receive())
    before = interface.current_backend()
    interface.set_backend(backend)
    try:
        yield
    finally:
        interface.set_backend(before, stopped=before is None)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        receiving.cancel()  # whoever waits yet is told
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
        assert isinstance(backend, StreamBackend)
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
            message = await read_message(reader)
            if message is None:
                return
            if message[0] == "call":
                task = asyncio.ensure_future(_serve_one(*message, writer, lock))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                # Sends stay in order: the next is read when this one is on its way.
                await _serve_one(*message, writer, lock)
    except (DecodeError, ConnectionError) as error:
        _log.warning("a child process is cut off: %s", error)
    finally:
        for task in tasks:
            task.cancel()
        await _close(writer)


async def _serve_one(
    kind: str, number: int, fields: list[Any], writer: asyncio.StreamWriter, lock: asyncio.Lock
) -> None:
    try:
        frame = encode_frame((Atom("ok"), number, await _perform(kind, fields)))
    except Exception as error:
        if kind == "log":  # it waits for no answer
            _log.warning("a child's log record is lost: %s", error)
            return
        frame = encode_frame((Atom("error"), number, *_described(error)))
    if kind != "log":
        with contextlib.suppress(ConnectionError):
            await _write(writer, lock, frame)


async def _perform(kind: str, fields: list[Any]) -> object:
    backend = interface.get_backend()
    if kind == "send":
        to, data = fields
        await backend.send(_text(to), data)
        return None
    if kind == "log":
        level, text, metadata = fields
        backend.log(_text(level), _text(text), metadata)
        return None
    if kind not in ("cast", "call"):
        raise ValueError(f"unknown message of a child: {inspect(kind)}")
    module, function, args, node = fields
    names = _text(module), _text(function)
    if kind == "cast":
        await backend.cast(*names, args, _text(node))
        return None
    return _plain.encode(await backend.call(*names, args, _text(node), _results))
