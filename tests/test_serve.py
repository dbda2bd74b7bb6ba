"""The stream between a child process and its parent: frames, errors, and how each end goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node.wire.etf import Decoder
from snex_runtime import interface, serde, serve
from snex_runtime.interface import ElixirError
from snex_runtime.serde import Atom
from tests.support.waiting import until

GONE = "the process that connects this one to a BEAM has gone"


class Parent:
    """The backend of the parent: what it was asked, and what it answers."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, object]] = []
        self.logs: list[tuple[object, ...]] = []
        self.casts: list[tuple[object, ...]] = []
        self.calls: list[tuple[object, ...]] = []
        self.answer: object = None
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.cancelled = 0

    async def send(self, to: object, data: object) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((to, data))

    async def cast(self, *asked: object) -> None:
        self.casts.append(asked)

    async def call(self, module: str, function: str, args: Any, node: Any, decoder: Any) -> object:
        assert isinstance(decoder, Decoder)
        self.calls.append((module, function, args, node))
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        return self.answer

    def log(self, level: str, text: str, metadata: object) -> None:
        if self.error is not None:
            raise self.error
        self.logs.append((level, text, metadata))


class Line:
    """Both ends in one process: the child's backend, and what the parent's loop runs on."""

    def __init__(self) -> None:
        self.parent = Parent()
        self.child: serve.StreamBackend
        self.to_child: asyncio.StreamWriter
        self.to_parent: asyncio.StreamWriter
        self.from_parent: asyncio.StreamReader
        self.loop: asyncio.Task[None]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[Line]:
    line = Line()
    left, right = socket.socketpair()
    parents = await asyncio.open_connection(sock=left)
    line.from_parent, line.to_parent = await asyncio.open_connection(sock=right)
    line.to_child = parents[1]
    line.loop = asyncio.ensure_future(serve.io_loop_for_connection(*parents))
    before = interface.current_backend()
    try:
        yield line
    finally:
        line.to_parent.close()
        with contextlib.suppress(ConnectionError):
            await line.to_parent.wait_closed()
        await line.loop
        interface.set_backend(before)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    """A parent's loop and a child's `serve`; `interface` is the parent's, functions the child's."""
    async with connected() as made, serve.serve(made.from_parent, made.to_parent):
        backend = interface.get_backend()
        assert isinstance(backend, serve.StreamBackend)
        made.child = backend
        interface.set_backend(made.parent)
        yield made


class TestBothWays:
    async def test_sends_in_order_and_unchanged(self, line: Line) -> None:
        for n in range(50):
            await line.child.send("name", n)
        data = [b"\xff", "ü", {1, 2}, {"k": Atom("a")}, (1.5, None, True), 1 << 100]
        await line.child.send((Atom("name"), "n@h"), data)
        assert line.parent.sent[:50] == [("name", n) for n in range(50)]
        to, received = line.parent.sent[50]
        assert to == (Atom("name"), "n@h")
        assert isinstance(to, tuple)
        assert [type(part) for part in to] == [Atom, str]
        assert serde.encoder.encode(received) == serde.encoder.encode(data)

    async def test_cast(self, line: Line) -> None:
        await line.child.cast("m", "f", [1, "x"], None)
        await line.child.cast("m", "f", [], "n@h")
        assert line.parent.casts == [("m", "f", [1, b"x"], None), ("m", "f", [], "n@h")]

    async def test_call(self, line: Line) -> None:
        line.parent.answer = [b"text", Atom("a")]
        assert await line.child.call("m", "f", [1], "n@h", None) == ["text", "a"]
        decoder = serde.decoder(serde.Options("bytes", atom_as="distinct_atom"))
        answer = await line.child.call("m", "f", [1], None, decoder)
        assert answer == [b"text", serde.DistinctAtom("a")]
        assert line.parent.calls == [("m", "f", [1], "n@h"), ("m", "f", [1], None)]

    async def test_calls_do_not_wait_for_each_other(self, line: Line) -> None:
        line.parent.hold = asyncio.Event()
        waiting = asyncio.ensure_future(line.child.call("m", "f", [], None, None))
        await until(lambda: line.parent.calls)
        await line.child.send("name", 1)
        assert not waiting.done()
        line.parent.hold.set()
        assert await waiting is None

    async def test_from_a_thread(self, line: Line) -> None:
        line.parent.answer = 5
        call = line.child.call
        assert await asyncio.to_thread(lambda: asyncio.run(call("m", "f", [], None, None))) == 5

    async def test_logs(self, line: Line) -> None:
        line.child.log("info", "text", {Atom("file"): b"\xff"})
        await until(lambda: line.parent.logs)
        assert line.parent.logs == [("info", "text", {"file": b"\xff"})]

    async def test_a_cancelled_call(self, line: Line) -> None:
        line.parent.hold = asyncio.Event()
        call = asyncio.ensure_future(line.child.call("m", "f", [], None, None))
        await until(lambda: line.parent.calls)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        line.parent.hold.set()  # the late answer is for nobody
        await line.child.send("name", 1)
        assert line.child.unanswered == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (TypeError("t"), TypeError),
            (ValueError("v"), ValueError),
            (LookupError("l"), LookupError),
            (KeyError("k"), LookupError),
            (ConnectionError("c"), ConnectionError),
            (OSError("o"), RuntimeError),
            (RuntimeError("r \ud800"), RuntimeError),
        ],
    )
    async def test_come_back(
        self, line: Line, raised: Exception, expected: type[Exception]
    ) -> None:
        line.parent.error = raised
        with pytest.raises(Exception) as caught:
            await line.child.send("name", 1)
        assert type(caught.value) is expected
        assert str(caught.value) == str(raised).encode("utf-8", "backslashreplace").decode()

    async def test_of_elixir(self, line: Line) -> None:
        line.parent.error = ElixirError("failed", "throw", {"a": 1})
        with pytest.raises(ElixirError, match="failed") as caught:
            await line.child.call("m", "f", [], None, None)
        assert caught.value.kind == "throw"
        assert caught.value.reason == {b"a": 1}

    async def test_without_a_term(self, line: Line) -> None:
        with pytest.raises(TypeError, match="Cannot serialize object"):
            await line.child.send("name", object())
        await line.child.send("name", 1)
        assert line.parent.sent == [("name", 1)]

    async def test_too_long_a_frame(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serve, "MAX_FRAME", 1000)
        with pytest.raises(ValueError, match="at most 1000 fit a frame"):
            await line.child.send("name", b"x" * 1001)
        line.parent.answer = b"x" * 1001  # and the other way round
        with pytest.raises(ValueError, match="at most 1000 fit a frame"):
            await line.child.call("m", "f", [], None, None)
        await line.child.send("name", 1)

    async def test_a_record_that_is_lost(
        self, line: Line, caplog: pytest.LogCaptureFixture
    ) -> None:
        line.parent.error = RuntimeError("no backend")
        line.child.log("info", "x", {})
        await until(lambda: "a child's log record is lost: no backend" in caplog.text)
        line.parent.error = None
        await line.child.send("name", 1)

    async def test_records_that_nobody_reads(
        self, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serve, "MAX_UNWRITTEN", -1)
        line.child.log("info", "x", {})
        await until(lambda: line.child.logs_dropped == 1)


class TestEnds:
    async def test_the_parent_goes(self, line: Line) -> None:
        line.parent.hold = asyncio.Event()
        waiting = asyncio.ensure_future(line.child.call("m", "f", [], None, None))
        await until(lambda: line.parent.calls)
        line.loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await line.loop
        line.loop = asyncio.ensure_future(asyncio.sleep(0))
        with pytest.raises(ConnectionError, match=GONE):
            await waiting
        with pytest.raises(ConnectionError, match=GONE):
            await line.child.send("name", 1)
        line.child.log("info", "x", {})
        await until(lambda: line.child.logs_dropped == 1)

    async def test_the_child_goes(self) -> None:
        async with connected() as line:
            interface.set_backend(line.parent)
            line.parent.hold = asyncio.Event()
            line.to_parent.write(serve.encode_frame((Atom("call"), 1, "m", "f", [], None)))
            await until(lambda: line.parent.calls)
            line.to_parent.close()
            await line.loop
            await until(lambda: line.parent.cancelled == 1)
            assert line.to_child.is_closing()

    async def test_serve_forever(self) -> None:
        async with connected() as line:
            ready = asyncio.Event()
            serving = asyncio.ensure_future(
                serve.serve_forever(line.from_parent, line.to_parent, on_ready=ready.set)
            )
            await ready.wait()
            assert isinstance(interface.get_backend(), serve.StreamBackend)
            line.to_child.close()
            await serving
            assert interface.current_backend() is None

    async def test_serve_restores_what_was_there(self) -> None:
        async with connected() as line:
            interface.set_backend(line.parent)
            async with serve.serve(line.from_parent, line.to_parent):
                assert interface.get_backend() is not line.parent
            assert interface.get_backend() is line.parent


class TestBadInput:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
            (b"\0\0\0\x01\xff", "unknown tag"),
            (serve.encode_frame(7), "a message that is none: 7"),
            (serve.encode_frame((Atom("send"), "x")), "a message that is none"),
        ],
    )
    async def test_cuts_the_child_off(
        self, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with connected() as line:
            line.to_parent.write(data)
            await line.loop
            assert f"a child process is cut off: {reason}" in caplog.text
            assert await line.from_parent.read() == b""

    @pytest.mark.parametrize(
        "message", [(Atom("nonsense"), 1), (Atom("send"), 1, "x"), (Atom("call"), 1)]
    )
    async def test_is_answered(self, message: object) -> None:
        async with connected() as line:
            interface.set_backend(line.parent)
            line.to_parent.write(serve.encode_frame(message))
            answer = await serve.read_message(line.from_parent)
            assert answer is not None
            assert answer[:2] == ("error", 1)

    async def test_half_a_frame(self) -> None:
        async with connected() as line:
            line.to_parent.write(b"\0\0\0\x09abc")
            line.to_parent.close()
            await line.loop

    async def test_garbage_from_the_parent(
        self, line: Line, caplog: pytest.LogCaptureFixture
    ) -> None:
        line.to_child.write(b"\0\0\0\x01\xff")
        with caplog.at_level(logging.ERROR):
            await until(line.child.closed.is_set)
        assert "the connection to the parent process is given up" in caplog.text
