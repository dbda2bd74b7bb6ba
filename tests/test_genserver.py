"""Generic servers on one node: one message at a time, and every way to end."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from snex_node import (
    NO_REPLY,
    Atom,
    From,
    GenServer,
    Node,
    Process,
    ProcessExitError,
    Stop,
)
from snex_node.processes import genserver

OK = Atom("ok")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("py@127.0.0.1", cookie="secret", epmd="none", listen=None) as node:
        yield node


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Server(GenServer):
    """Does with a message what a function given by the test does."""

    def __init__(self, node: Node, name: str | None = None) -> None:
        super().__init__(node, name=name)
        self.log: list[object] = []
        self.on: Callable[[object], object] = lambda message: None
        self.on_end: Callable[[object], object] = lambda reason: None
        self.callers: list[From] = []

    def handle_call(self, request: object, caller: From) -> object:
        self.callers.append(caller)
        return self._do(request)

    def handle_cast(self, request: object) -> object:
        return self._do(request)

    def handle_info(self, message: object) -> object:
        return self._do(message)

    def _do(self, message: object) -> object:
        self.log.append(message)
        return self.on(message)

    def terminate(self, reason: object) -> object:
        self.log.append(("terminate", reason))
        return self.on_end(reason)


@pytest.fixture
async def server(node: Node) -> Server:
    return Server(node, "server")


class Gate:
    """Coroutines that wait until the test opens the gate."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0

    async def wait(self, result: object = None) -> object:
        self.waiting += 1
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return result


def raising(error: BaseException) -> Callable[[object], object]:
    def handler(message: object) -> object:
        raise error

    return handler


def later(error: BaseException) -> Callable[[object], object]:
    async def handler(message: object) -> object:
        await asyncio.sleep(0)
        raise error

    return handler


async def reason_of(calling: Awaitable[object]) -> Any:
    """The reason for which a call fails."""
    with pytest.raises(ProcessExitError) as caught:
        await calling
    return caught.value.reason


class TestHandlers:
    async def test_a_plain_answer(self, node: Node, server: Server) -> None:
        server.on = lambda request: (OK, request)
        assert await node.call("server", 1) == ("ok", 1)
        assert await node.call(server.pid, 2) == ("ok", 2)
        assert await node.call(("server", node.name), 3) == ("ok", 3)

    async def test_a_coroutine_s_answer(self, node: Node, server: Server) -> None:
        gate = Gate()
        server.on = lambda request: gate.wait((OK, request))
        calling = asyncio.ensure_future(node.call("server", 1))
        await turns()
        assert gate.waiting == 1
        gate.event.set()
        assert await calling == ("ok", 1)

    async def test_one_at_a_time_in_order(self, node: Node, server: Server) -> None:
        gate = Gate()
        server.on = lambda message: gate.wait() if message == "slow" else None
        node.send("server", "slow")
        node.cast("server", 1)
        calling = asyncio.ensure_future(node.call("server", 2))
        await turns()
        node.send("server", 3)
        await turns()
        assert server.log == ["slow"]
        gate.event.set()
        await calling
        await turns()
        assert server.log == ["slow", 1, 2, 3]

    async def test_slow_ones_in_a_row(self, node: Node, server: Server) -> None:
        async def handler(message: object) -> object:
            await asyncio.sleep(0)
            server.log.append(("done", message))
            return None

        server.on = handler
        for n in range(3):
            node.cast("server", n)
        await turns(12)
        assert server.log == [0, ("done", 0), 1, ("done", 1), 2, ("done", 2)]

    async def test_what_a_handler_sends_to_its_server_waits(
        self, node: Node, server: Server
    ) -> None:
        def handler(message: object) -> object:
            if message == 1:
                server.cast_received(2)  # straight into the queue, as a read of many messages does
                server.log.append("end of 1")
            return None

        server.on = handler
        node.cast("server", 1)
        await turns()
        assert server.log == [1, "end of 1", 2]

    async def test_an_answer_that_comes_later(self, node: Node, server: Server) -> None:
        server.on = lambda request: NO_REPLY
        calling = asyncio.ensure_future(node.call("server", 1))
        await turns()
        assert not calling.done()
        server.reply(server.callers[0], (OK, 1))
        assert await calling == ("ok", 1)
        assert repr(NO_REPLY) == "NO_REPLY"

    async def test_messages_that_are_no_calls(self, node: Node, server: Server) -> None:
        watched = Process(node)
        server.trap_exit = True
        server.link(watched.pid)
        watched.exit(Atom("over"))
        await turns()
        assert server.log == [("EXIT", watched.pid, "over")]

    async def test_the_defaults(self, node: Node, caplog: pytest.LogCaptureFixture) -> None:
        for kind in ("call", "cast", "info"):
            server = GenServer(node)
            if kind == "call":
                reason = await reason_of(node.call(server.pid, 1))
                assert reason[0][1:] == ("NotImplementedError", "GenServer takes no calls: 1")
            elif kind == "cast":
                node.cast(server.pid, 1)
                await turns()
                assert not server.alive
            else:
                node.send(server.pid, [1])
                await turns()
                assert server.alive
                assert "unexpected message: [1]" in caplog.records[-1].getMessage()


class TestFailures:
    @pytest.mark.parametrize("make", [raising, later])
    @pytest.mark.parametrize(
        ("error", "name"),
        [(ValueError("no"), "ValueError"), (asyncio.CancelledError("no"), "CancelledError")],
    )
    async def test_a_call(
        self,
        node: Node,
        server: Server,
        make: Callable[[BaseException], Callable[[object], object]],
        error: BaseException,
        name: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.on = make(error)
        reason, stack = await reason_of(node.call("server", 1))
        assert reason[0] == "python_error"
        assert reason[1].endswith(name)
        if name == "ValueError" or sys.version_info >= (3, 11):  # 3.10 forgets why it was cancelled
            assert reason[2] == "no"
            assert [frame[1] for frame in stack][:1] == ["handler"]
        assert server.log[-1] == ("terminate", (reason, stack))
        assert not server.alive
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert [type(r.exc_info[1]) for r in errors if r.exc_info] == [type(error)]

    @pytest.mark.parametrize("send", ["cast", "send"])
    async def test_other_messages(self, node: Node, server: Server, send: str) -> None:
        server.on = raising(ValueError("no"))
        watcher = Process(node)
        watcher.monitor(server.pid)
        getattr(node, send)("server", 1)
        down = await watcher.receive(timeout=1)
        assert isinstance(down, tuple)
        assert down[4][0] == ("python_error", "ValueError", "no")

    async def test_an_answer_that_cannot_be_encoded(self, node: Node, server: Server) -> None:
        server.on = lambda request: object()
        reason = await reason_of(node.call("server", 1))
        assert reason[0][1].endswith("EncodeTypeError")

    async def test_what_waits_is_dropped(self, node: Node, server: Server) -> None:
        server.on = later(ValueError("no"))
        calls = [asyncio.ensure_future(node.call("server", n)) for n in range(3)]
        for call in calls:
            await reason_of(call)
        assert [entry for entry in server.log if isinstance(entry, int)] == [0]

    async def test_the_end_of_the_program_is_not_caught(self, node: Node) -> None:
        server = Server(node)
        server.on = raising(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            server.cast_received(1)
        server.on = lambda message: None
        server.cast_received(2)
        assert server.log == [1, 2]

    async def test_too_much_waits(
        self, node: Node, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(genserver, "MAX_MAILBOX", 2)
        gate = Gate()
        server.on = lambda message: gate.wait()
        for n in range(4):
            node.cast("server", n)
        await turns()
        assert server.exit_reason == "system_limit"
        assert gate.waiting == 0  # cancelled before it began


class TestStopping:
    async def test_when_asked(self, node: Node, server: Server) -> None:
        asking = Process(node)
        node.cast("server", 1)
        message = (Atom("system"), (asking.pid, Atom("tag")), (Atom("terminate"), Atom("why")))
        node.send("server", message)
        node.cast("server", 2)
        assert await asking.receive(timeout=1) == ("tag", "ok")
        await turns()
        assert server.log == [1, ("terminate", "why")]
        assert server.exit_reason == "why"

    @pytest.mark.parametrize("make", [raising, later])
    async def test_by_a_handler(
        self,
        node: Node,
        server: Server,
        make: Callable[[BaseException], Callable[[object], object]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.on = make(Stop())
        assert await reason_of(node.call("server", 1)) == "normal"
        other = Server(node)
        other.on = make(Stop(Atom("why"), reply=(OK, 1)))
        assert await node.call(other.pid, 1) == ("ok", 1)
        await turns()
        assert other.exit_reason == "why"
        third = Server(node)
        third.on = make(Stop(Atom("why"), reply=(OK, 1)))
        node.cast(third.pid, 1)
        await turns()
        assert third.exit_reason == "why"
        assert caplog.records == []

    async def test_with_an_answer_that_cannot_be_encoded(self, node: Node, server: Server) -> None:
        server.on = raising(Stop(Atom("why"), reply=object()))
        reason = await reason_of(node.call("server", 1))
        assert reason[0][1].endswith("EncodeTypeError")

    async def test_a_coroutine_ends_it(self, node: Node, server: Server) -> None:
        gate = Gate()
        server.on_end = lambda reason: gate.wait()
        server.on = raising(Stop(Atom("why")))
        calling = asyncio.ensure_future(node.call("server", 1))
        await turns()
        assert gate.waiting == 1
        assert server.alive
        # What comes meanwhile is not handled any more.
        behind = asyncio.ensure_future(node.call("server", 2))
        node.cast("server", 3)
        await turns()
        gate.event.set()
        assert await reason_of(calling) == "why"
        assert await reason_of(behind) == "why"
        assert server.log == [1, ("terminate", "why")]

    async def test_a_coroutine_ends_it_after_a_coroutine(self, node: Node, server: Server) -> None:
        gate = Gate()
        server.on_end = lambda reason: gate.wait()
        server.on = later(Stop(Atom("why")))
        node.cast("server", 1)
        await turns()
        assert gate.waiting == 1
        node.cast("server", 2)
        await turns()
        assert server.log == [1, ("terminate", "why")]
        gate.event.set()
        await turns()
        assert server.exit_reason == "why"

    @pytest.mark.parametrize("make", [raising, later])
    async def test_terminate_fails(
        self,
        node: Node,
        server: Server,
        make: Callable[[BaseException], Callable[[object], object]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.on = raising(Stop(Atom("why")))
        server.on_end = make(ValueError("at the end"))
        assert await reason_of(node.call("server", 1)) == "why"
        assert [r.getMessage() for r in caplog.records] == [f"{server!r}: terminate failed"]

    @pytest.mark.parametrize("kind", ["handler", "terminate"])
    async def test_killed_in_the_middle(self, node: Node, server: Server, kind: str) -> None:
        gate = Gate()
        if kind == "handler":
            server.on = lambda message: gate.wait()
        else:
            server.on = raising(Stop())
            server.on_end = lambda reason: gate.wait()
        node.cast("server", 1)
        node.cast("server", 2)
        await turns()
        assert gate.waiting == 1
        node.exit_signal(server.pid, Atom("kill"))
        await turns()
        assert gate.cancelled == 1
        assert server.exit_reason == "killed"

    async def test_by_itself_in_a_handler(self, node: Node, server: Server) -> None:
        def handler(message: object) -> object:
            server.exit(Atom("why"))
            return (OK, 1)

        server.on = handler
        assert await reason_of(node.call("server", 1)) == "why"

        async def slow(message: object) -> object:
            other.exit(Atom("why"))
            await asyncio.sleep(0)  # it may finish: nobody cancels its own task
            return (OK, 2)

        other = Server(node)
        other.on = slow
        assert await reason_of(node.call(other.pid, 1)) == "why"
        assert other.log == [1]

    async def test_by_itself_with_a_coroutine_left(self, node: Node, server: Server) -> None:
        gate = Gate()

        def handler(message: object) -> object:
            server.exit(Atom("why"))
            return gate.wait()

        server.on = handler
        node.cast("server", 1)
        await turns()
        assert gate.waiting == 0  # it was closed, not started
        assert server.log == [1]

    async def test_failing_after_its_end(
        self, node: Node, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        def handler(message: object) -> object:
            server.exit(Atom("why"))
            raise ValueError("afterwards")

        server.on = handler
        node.cast("server", 1)
        await turns()
        assert server.log == [1]  # no `terminate`: it has ended
        assert len(caplog.records) == 1

        async def slow(message: object) -> object:
            other.exit(Atom("why"))
            await asyncio.sleep(0)
            raise ValueError("afterwards")

        other = Server(node)
        other.on = slow
        node.cast(other.pid, 1)
        await turns()
        assert other.log == [1]
        assert "has ended, and then its handler failed" in caplog.records[1].getMessage()

    async def test_with_its_node(self) -> None:
        async with Node("py@127.0.0.1", cookie="x", epmd="none", listen=None) as node:
            server = Server(node)
            gate = Gate()
            server.on = lambda message: gate.wait()
            node.cast(server.pid, 1)
            await turns()
        await turns()
        assert server.exit_reason == "shutdown"
        assert gate.cancelled == 1
