"""A TCP proxy whose line a test can cut, stall, slow down and chop, each direction for itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType

READ_SIZE = 64 * 1024
# A slowed line moves 50 pieces a second, so that "bytes per second" holds for short times.
SLICES_PER_SECOND = 50


class Direction:
    """One direction of the line. Changes hold for open connections and for later ones."""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        """None: as fast as it goes."""
        self.chop: int | None = None
        """Greatest number of bytes written at a time; None: as they were read."""
        self.record: bytearray | None = None
        """Set it to a bytearray, and what passes is appended to it."""
        self.transferred = 0
        """Bytes that have passed, over all connections."""
        self._running = asyncio.Event()
        self._running.set()
        self._moved = asyncio.Event()

    def stall(self) -> None:
        """Let nothing pass from now on, and do not close either. The sender's buffers fill up."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    async def wait_transferred(self, count: int, timeout: float = 10.0) -> None:
        """Return when `count` bytes have passed, over all connections."""

        async def wait() -> None:
            while self.transferred < count:
                self._moved.clear()
                await self._moved.wait()

        await asyncio.wait_for(wait(), timeout)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_SIZE):
            position = 0
            while position < len(data):
                await self._running.wait()
                piece = data[position : position + self._piece_size()]
                await self._pass(piece, writer)
                position += len(piece)
        await self._running.wait()
        if writer.can_write_eof():
            writer.write_eof()

    def _piece_size(self) -> int:
        size = self.chop or READ_SIZE
        if self.bytes_per_second is not None:
            size = min(size, max(1, int(self.bytes_per_second / SLICES_PER_SECOND)))
        return size

    async def _pass(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(piece)
        await writer.drain()
        self.transferred += len(piece)
        if self.record is not None:
            self.record += piece
        self._moved.set()
        # Even unslowed, give the receiver a turn, so that chopped pieces arrive one by one.
        rate = self.bytes_per_second
        await asyncio.sleep(len(piece) / rate if rate else 0)


class Proxy:
    """Listens on loopback and hands every connection on to one target.

    Example::

        async with Proxy(node.port) as proxy:
            proxy.to_target.stall()
            ...
            proxy.cut()
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self.target = (target_host, target_port)
        self.to_target = Direction()
        self.to_client = Direction()
        self.refusing = False
        """True: connections are closed as soon as they are accepted."""
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Event()

    @property
    def port(self) -> int:
        assert self._server is not None, "the proxy was not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def open_lines(self) -> int:
        return len(self._lines)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None, "the proxy was not started"
        self._server.close()
        self.refusing = True  # connections that are accepted, but whose task has not begun
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def cut(self, *, reset: bool = False) -> None:
        """Close all open connections on both sides; with `reset` by RST instead of FIN."""
        for line in list(self._lines):
            line.cut(reset=reset)

    async def wait_opened(self, count: int = 1, timeout: float = 10.0) -> None:
        """Return when `count` connections have been handed on, over the proxy's life."""

        async def wait() -> None:
            while self.accepted < count:
                self._opened.clear()
                await self._opened.wait()

        await asyncio.wait_for(wait(), timeout)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.close()
            return
        try:
            target = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()  # as if the target itself had refused
            return
        if self.refusing:  # told so, or stopped, meanwhile
            writer.close()
            target[1].close()
            return
        line = _Line((reader, writer), target)
        self._lines.add(line)
        self.accepted += 1
        self._opened.set()
        try:
            await line.run(self.to_target.pump, self.to_client.pump)
        finally:
            self._lines.discard(line)

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Pump = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


class _Line:
    """Two connections and the tasks that move bytes between them."""

    def __init__(self, client: Streams, target: Streams) -> None:
        self._client = client
        self._target = target
        self._tasks: list[asyncio.Task[None]] = []
        for _, writer in (client, target):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self, to_target: Pump, to_client: Pump) -> None:
        self._tasks = [
            asyncio.create_task(to_target(self._client[0], self._target[1])),
            asyncio.create_task(to_client(self._target[0], self._client[1])),
        ]
        # A connection that was cut, or that a peer reset, is an ordinary end for a proxy.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close()

    def cut(self, *, reset: bool) -> None:
        for task in self._tasks:
            task.cancel()
        if reset:
            for _, writer in (self._client, self._target):
                _reset_on_close(writer)
        self._close()

    def _close(self) -> None:
        for _, writer in (self._client, self._target):
            writer.close()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    no_linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger: on, 0 seconds
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.transport.abort()
