"""The runtime of a worker: requests that come over a line, whose other end the test has."""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from snex_node import ConnectError, Node, Process
from snex_node.errors import UndefinedFunctionError
from snex_node.wire.etf import Decoder
from snex_node.wire.gen import From
from snex_node.wire.terms import Pid
from snex_runtime import serde
from snex_runtime import worker as worker_room
from snex_runtime.forwarding import Frame, Ledger, Line, Note, NoteKind, Request, Status
from snex_runtime.worker import Worker
from tests.support.asking import A, Asking, Call, coded, term_of
from tests.support.epmd import RealEpmd
from tests.support.requests import Killer
from tests.support.waiting import until

read = Decoder(binary_as="str").decode


class Held:
    """``worker``, and the front's end of its line and of its page."""

    def __init__(self, node: Node, caller: Node, **options: Any) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(Ledger.SIZE)
            self.ledger, theirs = Ledger(file.fileno()), Ledger(file.fileno())
        self.node = node
        self.worker = Worker(node, theirs, **options)
        self.asked_by = Process(caller)
        self.caller = Asking(caller, self.asked_by.pid)
        mine, line = socket.socketpair()
        self.notes: list[tuple[int, int, int, bytes]] = []
        self.gone = 0
        self.line = Line(mine, self._noted, self._closed)
        self.sequence = 0
        self.worker.open(partial(Line, line), self._left)

    def _noted(self, frames: list[Frame]) -> None:
        self.notes += map(Note.read, frames)

    def _closed(self) -> None:
        self.notes.append((-1, 0, 0, b""))

    def _left(self) -> None:
        self.gone += 1

    def send(self, data: bytes, *, by_front: bool = False, node: str | None = None) -> int:
        """Send a request on: its number."""
        self.line.send(self.frame(data, by_front=by_front, node=node))
        return self.sequence

    def frame(self, data: bytes, *, by_front: bool = False, node: str | None = None) -> Frame:
        """A request as it is sent, with the next number."""
        self.sequence += 1
        self.ledger.set_status(self.sequence, Status.UNKNOWN)
        origin = (node or str(self.caller.node.name)).encode()
        return Request.head(self.sequence, by_front, origin, len(data)) + data

    def eval(self, code: str, *options: object, by_front: bool = False) -> tuple[int, Call]:
        """Send an eval on: its number, and the call."""
        call = self.caller.call("eval", code, {}, *options)
        return self.send(call.data, by_front=by_front), call

    async def status(self, sequence: int, status: Status) -> None:
        """Wait until that is what became of a request."""
        await until(lambda: self.ledger.status(sequence) == status)

    async def note(self, kind: NoteKind, sequence: int) -> tuple[int, bytes]:
        """Wait for a note about a request: the number of environments, and the answer."""

        def found() -> list[tuple[int, bytes]]:
            return [note[2:] for note in self.notes if note[:2] == (kind, sequence)]

        await until(found)
        assert len(found()) == 1
        return found()[0]

    async def front_gets(self, *request: object) -> Any:
        """What a request of the front itself is answered."""
        message = self.caller.by_tag(self.node.make_ref(), *request)
        sequence = self.send(message, by_front=True, node=str(self.node.name))
        _, answer = await self.note(NoteKind.ANSWERED, sequence)
        return coded(read(answer)[0])

    def close(self) -> None:
        self.line.close()
        self.ledger.close()


Start = Callable[..., Any]


@pytest.fixture
async def start(epmd: RealEpmd) -> AsyncIterator[Start]:
    """Start a worker, and a node that calls, connected where that is wanted."""
    async with AsyncExitStack() as stack:

        async def start(*, connected: bool = True, **options: Any) -> Held:
            cookie = secrets.token_hex(8)
            conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
            name, other = (f"{kind}{secrets.token_hex(5)}@127.0.0.1" for kind in ("py", "peer"))
            places: dict[str, Any] = {"epmd": "external", "epmd_port": epmd.port}
            node = Node(name, cookie=cookie, **places, **conversion)
            caller = Node(other, cookie=cookie, **places, **conversion)
            for each in (node, caller):
                await stack.enter_async_context(each)
            held = Held(node, caller, **options)
            stack.callback(held.close)
            if connected:
                await node.connect(other)
                # It is asked for its sets, and that is none of what the tests wait for.
                await until(lambda: not held.worker._tasks)
            return held

        yield start


@pytest.fixture
async def held(start: Start) -> Held:
    """A worker that is connected to the node that calls."""
    made: Held = await start()
    return made


class TestAnswers:
    async def test_one_goes_to_its_caller_and_the_front_hears_nothing(self, held: Held) -> None:
        sequence, call = held.eval("return 6 * 7")
        assert await call.answered() == ("ok", 42)
        assert held.ledger.status(sequence) == Status.DONE
        assert held.ledger.started == sequence
        assert held.notes == []

    async def test_many_in_their_order(self, held: Held) -> None:
        calls = [held.caller.call("eval", f"return {n}", {}) for n in range(50)]
        held.line.send(b"".join(held.frame(call.data) for call in calls))
        assert [await call.answered() for call in calls] == [("ok", n) for n in range(50)]
        assert [held.ledger.status(n) for n in range(1, 51)] == [Status.DONE] * 50
        assert held.notes == []

    async def test_an_error_is_one_too(self, held: Held) -> None:
        sequence, call = held.eval("1 / 0")
        assert await call.answered() == ("error", "python_runtime_error")
        assert held.ledger.status(sequence) == Status.DONE
        call = held.caller.call("nothing", 1)
        sequence = held.send(call.data)
        assert await call.answered() == ("error", "bad_request")
        assert held.ledger.status(sequence) == Status.DONE

    async def test_those_for_the_front_itself(self, held: Held) -> None:
        sequence, call = held.eval("return 1", by_front=True)
        environments, answer = await held.note(NoteKind.ANSWERED, sequence)
        assert (environments, read(answer)[0]) == (0, ("ok", 1))
        assert held.ledger.status(sequence) == Status.WAITS
        assert not call.answer.done()

    async def test_info_and_ping_are_answered_as_by_any_runtime(self, held: Held) -> None:
        assert await held.front_gets("ping") == "pong"
        ok, told = await held.front_gets("info")
        assert (ok, told["node"]) == ("ok", str(held.node.name))

    async def test_a_cast_is_run_without_an_answer(
        self, held: Held, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[int] = []
        held.worker.provide(seen=seen)
        done = held.send(held.caller.cast("eval", "seen.append(1)", {}))
        await held.status(done, Status.DONE)
        assert seen == [1]
        failed = held.send(held.caller.cast("eval", "1 / 0", {}))
        await held.status(failed, Status.DONE)
        assert "a request without an answer failed: Trace" in caplog.text
        assert held.notes == []

    async def test_what_is_sent_to_the_runtime_itself(self, held: Held) -> None:
        caller, pid = held.caller.node, held.worker.pid
        assert await caller.call(pid, A("ping")) == "pong"
        request = term_of("eval", "import asyncio\nawait asyncio.sleep(0)\nreturn 5", {})
        assert await caller.call(pid, request) == ("ok", 5)
        assert held.notes == []
        assert held.ledger.started == 0

    async def test_too_long_ones(self, start: Start) -> None:
        held = await start(max_reply=100)
        _, call = held.eval("return 'x' * 101")
        _, error = await call.answer
        assert "a reply has at most 100" in {str(k): v for k, v in error.items()}["reason"]

    async def test_they_wait_for_what_was_logged(
        self, held: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logs = held.worker.backend.logs
        held_back: list[Callable[[], None]] = []

        def hold(caller: From, release: Callable[[], None]) -> bool:
            assert caller.ref == call.ref.external
            held_back.append(release)
            return True

        monkeypatch.setattr(logs, "hold", hold)
        monkeypatch.setattr(held.worker._dispatcher._answers, "_records", ["a record"])
        sequence, call = held.eval("return 1")
        await held.status(sequence, Status.WAITS)
        assert not call.answer.done()
        held_back[0]()
        assert await call.answered() == ("ok", 1)
        await held.note(NoteKind.DONE, sequence)
        # Of a cast nobody waits for an answer.
        done = held.send(held.caller.cast("eval", "1", {}))
        await held.status(done, Status.DONE)


class TestCallers:
    async def test_one_that_is_not_connected_to(self, start: Start) -> None:
        """Its answer goes by way of the front, and those after it directly."""
        held = await start(connected=False)
        name = str(held.caller.node.name)
        sequence, call = held.eval("return 1")
        _, answer = await held.note(NoteKind.ANSWERED, sequence)
        assert read(answer)[0] == ("ok", 1)
        assert held.ledger.status(sequence) == Status.WAITS
        assert not call.answer.done()
        await until(lambda: name in held.node.nodes)
        sequence, call = held.eval("return 2")
        assert await call.answered() == ("ok", 2)
        assert held.ledger.status(sequence) == Status.DONE
        assert len(held.notes) == 1

    async def test_one_that_cannot_be_connected_to(
        self, held: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[str] = []

        async def connect(name: str) -> None:
            tried.append(name)
            await asyncio.sleep(0)
            raise ConnectError(name, "unknown", "no such node")

        monkeypatch.setattr(held.node, "connect", connect)

        async def ask(name: str) -> None:
            call = held.caller.call("ping")
            sequence = held.send(call.data, node=name)
            assert (await held.note(NoteKind.ANSWERED, sequence))[1] == b"w\4pong"

        for name in ("a@nowhere", "b@nowhere", "a@nowhere", "b@nowhere"):
            await ask(name)
        assert tried == ["a@nowhere", "b@nowhere"]
        await until(lambda: not held.worker._connects)
        # Later it is tried again.
        monkeypatch.setattr(worker_room, "CONNECT_AGAIN", 0.0)
        for name in ("c@nowhere", "d@nowhere", "c@nowhere", "a@nowhere"):
            await ask(name)
        assert tried[2:] == ["c@nowhere", "d@nowhere", "c@nowhere"]
        # What can be tried again is forgotten.
        assert list(held.worker._connecting) == ["a@nowhere", "b@nowhere", "c@nowhere"]

    async def test_one_that_is_lost_is_connected_to_again(self, held: Held) -> None:
        name = str(held.caller.node.name)
        held.node.disconnect(name)
        sequence, _ = held.eval("return 1")
        await held.note(NoteKind.ANSWERED, sequence)
        await until(lambda: name in held.node.nodes)

    async def test_nobody_connects_for_a_cast(self, start: Start) -> None:
        held = await start(connected=False)
        done = held.send(held.caller.cast("eval", "return 1", {}))
        await held.status(done, Status.DONE)
        assert held.worker._connects == set()
        assert held.notes == []

    async def test_they_are_not_monitored_here(
        self, held: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monitored: list[object] = []
        monkeypatch.setattr(held.worker, "monitor", monitored.append)
        sequence, call = held.eval("import asyncio\nawait asyncio.sleep(0.05)\nreturn 1")
        assert await call.answered() == ("ok", 1)
        await held.note(NoteKind.DONE, sequence)
        assert monitored == []


WAIT = "began.set()\nawait go.wait()\nreturn 'went'"


@pytest.fixture
def waits(held: Held) -> Held:
    """A worker whose code may begin to wait, and be told to go on."""
    held.worker.provide(began=asyncio.Event(), go=asyncio.Event(), asyncio=asyncio)
    return held


class TestAwaiting:
    async def test_it_waits_and_is_done(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        sequence, call = waits.eval(WAIT)
        await waits.status(sequence, Status.WAITS)
        assert waits.notes == []
        later, quick = waits.eval("return 1")
        assert await quick.answered() == ("ok", 1)
        assert waits.ledger.status(later) == Status.DONE
        root["go"].set()
        assert await call.answered() == ("ok", "went")
        assert await waits.note(NoteKind.DONE, sequence) == (0, b"")
        assert waits.ledger.status(sequence) == Status.WAITS

    async def test_the_front_gets_the_answer(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        sequence, _ = waits.eval(WAIT, by_front=True)
        await waits.status(sequence, Status.WAITS)
        root["go"].set()
        _, answer = await waits.note(NoteKind.ANSWERED, sequence)
        assert read(answer)[0] == ("ok", "went")
        assert [note[0] for note in waits.notes] == [NoteKind.ANSWERED]

    async def test_what_needs_one_turn_only_never_waits(self, waits: Held) -> None:
        sequence, call = waits.eval("async def f(): return 1\nreturn await f()")
        assert await call.answered() == ("ok", 1)
        assert waits.ledger.status(sequence) == Status.DONE
        assert waits.notes == []

    async def test_the_front_is_woken_when_it_wants_to_be(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        waits.ledger.wanted = True
        sequence, _ = waits.eval(WAIT)
        await waits.note(NoteKind.WAKE, sequence)
        assert waits.ledger.status(sequence) == Status.WAITS
        waits.ledger.wanted = False
        root["go"].set()
        await waits.note(NoteKind.DONE, sequence)

    async def test_a_cast_that_waits(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        sequence = waits.send(waits.caller.cast("eval", WAIT, {}))
        await waits.status(sequence, Status.WAITS)
        root["go"].set()
        await waits.note(NoteKind.DONE, sequence)


class TestStop:
    """What the front says when a caller waits no more."""

    async def test_what_awaits_is_cancelled(self, waits: Held) -> None:
        sequence, call = waits.eval(WAIT)
        await waits.status(sequence, Status.WAITS)
        await asyncio.to_thread(waits.worker.command, f"stop {sequence}")
        assert await call.answered() == ("error", "cancelled")
        await waits.note(NoteKind.DONE, sequence)

    async def test_unless_it_is_to_go_on(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        sequence, call = waits.eval(WAIT, [(A("on_timeout"), A("continue"))])
        await waits.status(sequence, Status.WAITS)
        waits.worker.command(f"stop {sequence}")
        await asyncio.sleep(0)
        root["go"].set()
        assert await call.answered() == ("ok", "went")

    async def test_nobody_else(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        done, call = waits.eval("return 1")
        await call.answered()
        cast = waits.send(waits.caller.cast("eval", WAIT, {}))
        other, call = waits.eval(WAIT)
        await waits.status(other, Status.WAITS)
        for command in (f"stop {done}", f"stop {cast}", "begin 3", ""):
            waits.worker.command(command)
        await asyncio.sleep(0)
        root["go"].set()
        assert await call.answered() == ("ok", "went")
        await waits.note(NoteKind.DONE, cast)

    async def test_what_has_not_begun_yet(self, waits: Held) -> None:
        """It begins, and ends as it would have, had its caller given up then."""
        waits.worker.command(f"stop {waits.sequence + 1}")
        await asyncio.sleep(0)
        sequence, call = waits.eval(WAIT)
        assert await call.answered() == ("error", "cancelled")
        other, _ = waits.eval(WAIT)
        await waits.status(other, Status.WAITS)
        assert sequence < other


class TestRevoked:
    async def test_it_never_begins(self, held: Held) -> None:
        seen: list[int] = []
        held.worker.provide(seen=seen)
        held.ledger.revoke(2)
        calls = [held.caller.call("eval", f"seen.append({n})", {}) for n in (1, 2, 3)]
        numbers = [held.send(call.data) for call in calls]
        assert await calls[2].answered() == ("ok", None)
        assert [held.ledger.status(n) for n in numbers] == [
            Status.REVOKED,
            Status.REVOKED,
            Status.DONE,
        ]
        assert seen == [3]
        assert not calls[0].answer.done()
        assert held.ledger.started == 3

    async def test_while_another_one_runs(self, held: Held) -> None:
        """As the front does it: what stands behind code that blocks is taken back."""
        seen: list[int] = []

        def block() -> None:
            held.ledger.revoke(3)
            seen.append(held.ledger.started)

        held.worker.provide(block=block, seen=seen)
        calls = [
            held.caller.call("eval", code, {})
            for code in ("block()", "seen.append(2)", "seen.append(3)", "seen.append(4)")
        ]
        held.line.send(b"".join(held.frame(call.data) for call in calls))
        assert await calls[3].answered() == ("ok", None)
        assert await calls[0].answered() == ("ok", None)
        assert seen == [1, 4]
        assert [held.ledger.status(n) for n in (1, 2, 3, 4)] == [
            Status.DONE,
            Status.REVOKED,
            Status.REVOKED,
            Status.DONE,
        ]


class TestTurns:
    async def test_a_batch_that_takes_long_leaves_others_their_turn(
        self, held: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_room, "TURN", 0.0)
        order: list[object] = []
        loop = asyncio.get_running_loop()

        def work(number: int) -> None:
            order.append(number)
            loop.call_soon(order.append, f"after {number}")

        held.worker.provide(work=work)
        calls = [held.caller.call("eval", f"work({n})", {}) for n in (1, 2, 3)]
        held.line.send(b"".join(held.frame(call.data) for call in calls))
        assert await calls[2].answered() == ("ok", None)
        assert order[:4] == [1, "after 1", 2, "after 2"]
        # Then it reads on.
        _, call = held.eval("return 1")
        assert await call.answered() == ("ok", 1)

    async def test_one_that_does_not_is_done_in_one(self, held: Held) -> None:
        order: list[object] = []
        loop = asyncio.get_running_loop()

        def work(number: int) -> None:
            order.append(number)
            loop.call_soon(order.append, "after")

        held.worker.provide(work=work)
        calls = [held.caller.call("eval", f"work({n})", {}) for n in (1, 2, 3)]
        held.line.send(b"".join(held.frame(call.data) for call in calls))
        assert await calls[2].answered() == ("ok", None)
        assert order[:3] == [1, 2, 3]

    async def test_while_it_lasts_nothing_more_is_read(
        self, held: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_room, "TURN", 0.0)
        read: list[int] = []
        received = held.worker._received

        def note(frames: list[Frame]) -> None:
            read.append(len(frames))
            received(frames)

        monkeypatch.setattr(held.worker._line, "_received", note)
        more = held.caller.call("eval", "return 'more'", {})
        held.worker.provide(send=lambda: held.send(more.data))
        calls = [held.caller.call("eval", code, {}) for code in ("send()", "1", "2")]
        held.line.send(b"".join(held.frame(call.data) for call in calls))
        assert await more.answered() == ("ok", "more")
        assert read == [3, 1]

    async def test_the_pace_is_told(self, held: Held) -> None:
        assert held.ledger.pace == 0
        for _ in range(30):
            _, call = held.eval("import time\ntime.sleep(0.004)")
            await call.answered()
        assert held.ledger.pace > 3000
        for _ in range(60):
            _, call = held.eval("return 1")
            await call.answered()
        assert held.ledger.pace < 3000

    async def test_a_front_that_wants_to_be_woken(self, held: Held) -> None:
        _, call = held.eval("return 1")
        await call.answered()
        assert held.notes == []
        held.ledger.wanted = True
        assert (await held.front_gets("make_env", {}))[0] == "ok"
        _, call = held.eval("return 1")
        await call.answered()
        await until(lambda: (NoteKind.WAKE, 0, 1, b"") in held.notes)


class TestEnvironments:
    async def test_they_are_made_here_and_counted(self, held: Held) -> None:
        call = held.caller.call("make_env", {"x": 1})
        held.send(call.data)
        ok, env = await call.answered()
        env = serde.to_typed(env)
        assert ok == "ok"
        assert isinstance(env, Pid)
        assert env.node == held.node.name
        # Requests to it come as to any.
        caller = held.caller.node
        request = term_of("eval", "x += 1\nreturn x", {})
        assert await caller.call(env, request) == ("ok", 2)
        sequence, _ = held.eval("return 1", by_front=True)
        assert (await held.note(NoteKind.ANSWERED, sequence))[0] == 1
        # It ends with its handle, which is the caller.
        held.asked_by.exit()
        await until(lambda: len(held.worker.environments) == 0)
        sequence, _ = held.eval("return 1", by_front=True)
        assert (await held.note(NoteKind.ANSWERED, sequence))[0] == 0


class TestLimits:
    async def test_a_request_has_its_number_when_it_is_to_be_killed_for(self, start: Start) -> None:
        killer = Killer()
        held = await start(killer=killer, kill_after=0.5)
        _, call = held.eval("return 1")
        assert await call.answered() == ("ok", 1)
        assert killer.armed == []
        sequence, call = held.eval("return 1", [(A("timeout"), 1000)])
        assert await call.answered() == ("ok", 1)
        assert killer.armed == [(1.5, sequence)]
        await until(lambda: killer.disarmed == [1])


# --- what other nodes call on the front's -------------------------------------------------------


def double(number: int) -> int:
    """Called from another node."""
    return 2 * number


def fail(text: str) -> None:
    """Called from another node."""
    raise KeyError(text)


def look_up() -> None:
    """Called from another node."""
    raise UndefinedFunctionError("something that it looked for itself")


def give_object() -> object:
    """Called from another node."""
    return object()


async def double_later(number: int) -> int:
    """Called from another node."""
    await asyncio.sleep(0)
    return 2 * number


async def fail_later(text: str) -> None:
    """Called from another node."""
    await asyncio.sleep(0)
    raise KeyError(text)


async def give_object_later() -> object:
    """Called from another node."""
    await asyncio.sleep(0)
    return object()


class TestRpc:
    async def rpc(self, held: Held, function: str, *args: object) -> Any:
        return await held.front_gets("rpc", A(__name__), A(function), list(args))

    @pytest.mark.parametrize("function", ["double", "double_later"])
    async def test_what_it_returns(self, held: Held, function: str) -> None:
        assert await self.rpc(held, function, 21) == ("ok", ("return", 42))

    @pytest.mark.parametrize("function", ["fail", "fail_later"])
    async def test_what_it_raises(self, held: Held, function: str) -> None:
        ok, (raised, reason, stack) = await self.rpc(held, function, "k")
        assert (ok, raised) == ("ok", "raised")
        assert reason == ("python_error", "KeyError", "'k'")
        # Frames of ours are in none.
        assert [str(frame[1]) for frame in stack] == [function]
        assert bytes(dict(stack[0][3])["file"]).decode() == __file__

    async def test_there_is_none(self, held: Held) -> None:
        ok, (raised, reason, stack) = await self.rpc(held, "no_such", 1, 2)
        assert (ok, raised, reason) == ("ok", "raised", "undef")
        assert stack == [(__name__, "no_such", [1, 2], [])]

    async def test_one_that_misses_another_is_there_itself(self, held: Held) -> None:
        ok, (raised, reason, _) = await self.rpc(held, "look_up")
        assert (ok, raised) == ("ok", "raised")
        assert reason[2] == "something that it looked for itself"

    async def test_arguments_that_do_not_fit(self, held: Held) -> None:
        _, (raised, reason, _) = await self.rpc(held, "double")
        assert (raised, reason[1]) == ("raised", "TypeError")

    async def test_what_cannot_be_encoded(self, held: Held) -> None:
        ok, (raised, reason, _) = await self.rpc(held, "give_object")
        assert (ok, raised, reason[0]) == ("ok", "raised", "python_error")
        assert "Cannot serialize object of <class 'object'>" in reason[2]
        assert await self.rpc(held, "give_object_later") == ("error", "python_runtime_error")

    async def test_it_is_cancelled_like_all_that_awaits(self, held: Held) -> None:
        call = held.caller.call("rpc", A("asyncio"), A("sleep"), [60])
        sequence = held.send(call.data, by_front=True)
        await held.status(sequence, Status.WAITS)
        held.worker.command(f"stop {sequence}")
        _, answer = await held.note(NoteKind.ANSWERED, sequence)
        assert coded(read(answer)[0]) == ("error", "cancelled")

    async def test_it_is_the_front_s_alone(self, held: Held) -> None:
        request = term_of("rpc", A("math"), A("sqrt"), [4])
        assert coded(await held.caller.node.call(held.worker.pid, request)) == (
            "error",
            "bad_request",
        )
        assert await held.front_gets("rpc", A("math"), A("sqrt")) == ("error", "bad_request")


class TestEnd:
    async def test_the_front_closes(self, held: Held) -> None:
        held.line.close()
        await until(lambda: held.gone == 1)

    async def test_what_is_done_after_that_is_told_nobody(self, waits: Held) -> None:
        root: dict[str, Any] = waits.worker.root
        _, call = waits.eval(WAIT)
        await root["began"].wait()
        waits.line.close()
        await until(lambda: waits.gone == 1)
        root["go"].set()
        assert await call.answered() == ("ok", "went")

    async def test_before_it_is_open(self, start: Start) -> None:
        """A request of the front's may be under way when the runtime ends, but none before."""
        held = await start()
        with tempfile.TemporaryFile() as file:
            file.truncate(Ledger.SIZE)
            page = Ledger(file.fileno())
        other = Worker(held.node, page, name="other")
        other.exit(A("shutdown"))
        assert not other.alive
        page.close()

    async def test_it_ends(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        held = await start(connected=False)
        began = asyncio.Event()

        async def connect(name: str) -> None:
            began.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(held.node, "connect", connect)
        held.eval("return 1")
        await began.wait()
        (task,) = held.worker._connects
        held.worker.exit(A("shutdown"))
        await until(task.cancelled)
        await until(lambda: held.notes[-1][0] == -1)
        assert held.gone == 0

    async def test_nobody_is_connected_to_any_more(self, start: Start) -> None:
        """Work that is cancelled with the runtime has answers too."""
        held = await start(connected=False)
        began = asyncio.Event()
        held.worker.provide(began=began, go=asyncio.Event())
        held.eval(WAIT)
        await began.wait()
        await held.node.stop()
        await until(lambda: not held.worker._jobs)
        assert held.worker._connects == set()

    async def test_system_messages_do_not_end_it(self, held: Held) -> None:
        ref = held.caller.node.make_ref()
        answer = held.caller.node.router.expect(ref)
        held.send(held.caller.system(ref, "terminate", A("normal")))
        assert await asyncio.wait_for(answer, 10) == ("error", "not_allowed")
        assert held.worker.alive
