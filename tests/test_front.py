"""Sends requests on to workers: here the test is what the workers do, over real lines and pages."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from snex_node import CallTimeoutError, Node, Process, ProcessExitError, RemoteError
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.terms import Pid
from snex_runtime import front as front_room
from snex_runtime import serde
from snex_runtime.answers import OK_
from snex_runtime.forwarding import Frame, Ledger, Line, Note, NoteKind, Request, Status, Verdict
from snex_runtime.front import MOST_AHEAD, Front, Job, Lane
from tests.support.asking import A, Asking, coded, term_of
from tests.support.waiting import until

encode = Encoder().encode
read = Decoder(binary_as="str").decode

QUICK = 1
SLOW = 5000
"""Microseconds at which a worker gets one request at a time."""

numbers = itertools.count(1)


class Fake:
    """A process of a worker, and what it does, which the test says."""

    def __init__(self, *, pace: int = QUICK, name: str | None = None) -> None:
        self.name = name or f"py-{next(numbers)}@127.0.0.1"
        self.process = os.getpid()
        with tempfile.TemporaryFile() as file:
            file.truncate(Ledger.SIZE)
            self.ledger, self.page = Ledger(file.fileno()), Ledger(file.fileno())
        self.socket, self._sock = socket.socketpair()
        self.page.pace = pace
        self.got: list[Request] = []
        """All that it has been sent."""
        self.line = Line(self._sock, self._received, lambda: None)
        self.stopped_requests: list[int] = []
        self.calls: list[str] = []
        self.signalled = False
        self.environments = 0
        self.auto = False
        """Whether it does at once what it is sent."""
        self.stuck = False
        """Whether it begins the first request at once, and does nothing more."""

    def _received(self, frames: list[Frame]) -> None:
        for request in map(Request.read, frames):
            self.got.append(request)
            if self.auto:
                self.do(request)
            elif self.stuck and request.sequence == 1:
                self.begin(request)

    # What a worker does.

    def request(self, number: int) -> Request:
        return next(each for each in self.got if each.sequence == number)

    def do(self, request: Request, answer: object = "done") -> None:
        """Begin it, if it may be, and answer it by way of the front."""
        if self.begin(request):
            self.answer(request, answer)

    def begin(self, request: Request) -> bool:
        """Begin it, unless it has been revoked."""
        begun = self.page.start(request.sequence)
        if not begun:
            self.page.set_status(request.sequence, Status.REVOKED)
        return begun

    def answer(self, request: Request, answer: object) -> None:
        """Say through the front that it is done, and what the answer is."""
        data = answer if isinstance(answer, bytes) else OK_ + serde.encoder.encode(answer)
        self.page.set_status(request.sequence, Status.WAITS)
        self.note(NoteKind.ANSWERED, request, data)

    def done(self, request: Request) -> None:
        """It is done, and its caller has the answer."""
        self.page.set_status(request.sequence, Status.DONE)
        self.wake()

    def waits(self, request: Request) -> None:
        """It awaits something."""
        self.page.set_status(request.sequence, Status.WAITS)
        self.wake()

    def wake(self) -> None:
        if self.page.wanted:
            self.line.send(Note.write(NoteKind.WAKE, 0, self.environments))

    def note(self, kind: NoteKind, request: Request, answer: bytes = b"") -> None:
        self.line.send(Note.write(kind, request.sequence, self.environments, answer))

    # What its front has it do.

    def stop_request(self, sequence: int) -> None:
        self.stopped_requests.append(sequence)

    def stop(self) -> None:
        self.calls.append("stop")

    def kill(self) -> None:
        self.calls.append("kill")

    def is_stopped(self) -> bool:
        return self.signalled

    def close(self) -> None:
        self.calls.append("close")
        self.ledger.close()
        self.socket.close()

    def end(self) -> None:
        self.line.close()
        self.page.close()
        if "close" not in self.calls:
            self.close()

    async def has(self, count: int) -> list[Request]:
        """Wait until it has been sent so many; no more than those."""
        await until(lambda: len(self.got) >= count)
        assert len(self.got) == count
        return self.got


class Rig:
    """A front, a node that calls, and fakes."""

    def __init__(self, front: Front, node: Node, caller: Node) -> None:
        self.front = front
        self.node = node
        self.caller = caller
        self.owner = Process(caller)
        self.asking = Asking(caller, self.owner.pid)
        self.to = ("snex", str(node.name))
        self.fakes: list[Fake] = []
        self.lanes: list[Lane] = []
        self.calls: list[asyncio.Future[Any]] = []

    def add(self, *, stuck: bool = False, **options: Any) -> Fake:
        """One more worker."""
        fake = Fake(**options)
        fake.stuck = stuck
        worker: Any = fake
        lane = Lane(worker)
        self.front.add(lane)
        self.fakes.append(fake)
        self.lanes.append(lane)
        return fake

    def lane_of(self, fake: Fake) -> Lane:
        return self.lanes[self.fakes.index(fake)]

    def lost(self, fake: Fake, status: int = -signal.SIGKILL) -> None:
        """It has ended."""
        fake.line.close()
        self.front.lost(self.lane_of(fake), status)

    def call(self, head: str, *rest: object, timeout: float = 10.0) -> asyncio.Future[Any]:
        """Begin a call; its result has codes in the place of errors."""

        async def called() -> Any:
            term = term_of(head, *rest)
            return coded(await self.caller.call(self.to, term, timeout=timeout))

        self.calls.append(asyncio.ensure_future(called()))
        return self.calls[-1]

    def eval(self, code: str = "1", **options: Any) -> asyncio.Future[Any]:
        return self.call("eval", code, {}, **options)

    def source(self, request: Request) -> str:
        """The code of an eval."""
        message, _ = read(request.data, request.at)
        assert isinstance(message, tuple)
        return str(message[-1][1])

    def sources(self, fake: Fake) -> list[str]:
        return [self.source(request) for request in fake.got]

    def deliver(self, data: bytes) -> None:
        """A message of the calling node, at the head of nothing."""
        remote = self.node.remote(str(self.caller.name))
        self.front.external_received(b"..." + data, 3, remote)

    async def evals(self, *codes: str) -> list[asyncio.Future[Any]]:
        """Begin these, one after the other."""
        calls = []
        for code in codes:
            more = self.count() + 1
            calls.append(self.eval(code))
            await until(partial(self.has, more))
        return calls

    def count(self) -> int:
        return self.front.running + self.front.queued

    def has(self, count: int) -> bool:
        return self.count() >= count

    async def end(self) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a front with options, and a node that is connected to it."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Rig:
            number = next(numbers)
            conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
            name, other = (f"{kind}{os.getpid()}x{number}@127.0.0.1" for kind in ("py", "peer"))
            fronts: list[Front] = []

            def resolve(module: str, function: str) -> Callable[..., object]:
                return fronts[0].resolve(module, function)

            node = Node(
                name,
                cookie="front",
                epmd="none",
                resolver=resolve,
                **conversion,
            )
            caller = Node(other, cookie="front", epmd="none", listen=None, **conversion)
            await stack.enter_async_context(node)
            await stack.enter_async_context(caller)
            fronts.append(Front(node, **options))
            await caller.connect(name, address=node.address)
            rig = Rig(fronts[0], node, caller)

            def end() -> None:
                for lane in list(rig.front.lanes):
                    rig.front.lost(lane, 0)
                for fake in rig.fakes:
                    fake.end()

            stack.callback(end)
            stack.push_async_callback(rig.end)
            return rig

        yield start


async def received(process: Process) -> Any:
    """The next message that it gets."""
    return await process.receive(timeout=10)


@pytest.fixture
async def rig(start: Start) -> Rig:
    made: Rig = await start()
    return made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken back from a worker that does not get on."""
    monkeypatch.setattr(front_room, "REVOKE_AFTER", 60.0)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time later it is taken back, when all that a test sends has been sent."""
    monkeypatch.setattr(front_room, "REVOKE_AFTER", 0.3)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """But in one test of a class it is."""
    monkeypatch.setattr(front_room, "REVOKE_AFTER", 0.3)


@pytest.mark.usefixtures("patient")
class TestOne:
    async def test_a_request_goes_on_as_it_came(self, rig: Rig) -> None:
        fake = rig.add()
        call = rig.call("eval", "return x", {"x": [1, 2]})
        (request,) = await fake.has(1)
        assert (request.sequence, request.by_front) == (1, False)
        assert request.node == str(rig.caller.name).encode()
        message, end = read(request.data, request.at)
        assert end == len(request.data)
        assert isinstance(message, tuple)
        assert message[0] == "$gen_call"
        assert message[2] == ("eval", "return x", {"x": [1, 2]})
        fake.do(request, 7)
        assert await call == ("ok", 7)
        assert (rig.front.running, rig.front.queued) == (0, 0)

    async def test_one_that_is_answered_directly(self, rig: Rig) -> None:
        fake = rig.add()
        rig.eval()
        (request,) = await fake.has(1)
        assert rig.front.running == 1
        fake.begin(request)
        fake.done(request)
        assert rig.front.running == 0
        # Not a word came back for that.
        assert not fake.page.wanted

    async def test_one_that_awaits(self, rig: Rig) -> None:
        fake = rig.add(pace=SLOW)
        call = rig.eval()
        (request,) = await fake.has(1)
        fake.begin(request)
        fake.waits(request)
        assert rig.front.running == 1
        # It blocks nobody.
        rig.eval()
        await fake.has(2)
        fake.note(NoteKind.DONE, request)
        await until(lambda: rig.front.running == 1)
        assert not call.done()

    async def test_large_ones(self, rig: Rig) -> None:
        fake = rig.add()
        fake.auto = True
        big = "x" * 3_000_000
        assert await rig.call("eval", "1", {"x": big}) == ("ok", "done")
        message, _ = read(fake.got[0].data, fake.got[0].at)
        assert isinstance(message, tuple)
        assert message[2][2] == {"x": big}

    async def test_a_cast(self, rig: Rig) -> None:
        fake = rig.add()
        rig.caller.cast(rig.to, term_of("eval", "1", {}))
        (request,) = await fake.has(1)
        assert not request.by_front
        assert read(request.data, request.at)[0] == ("$gen_cast", ("eval", "1", {}))
        fake.begin(request)
        fake.done(request)
        assert rig.front.running == 0

    async def test_a_plain_message(self, rig: Rig) -> None:
        fake = rig.add()
        rig.caller.send(rig.to, term_of("eval", "1", {}))
        (request,) = await fake.has(1)
        assert read(request.data, request.at)[0] == ("eval", "1", {})

    async def test_a_caller_without_an_alias_is_answered_here(self, rig: Rig) -> None:
        """Nothing would drop a second answer, should the worker end just after its own."""
        fake = rig.add()
        ref = rig.caller.make_ref()
        rig.deliver(rig.asking.by_tag(ref, "eval", "1", {}))
        (request,) = await fake.has(1)
        assert request.by_front
        fake.do(request, 5)
        tag, answer = await received(rig.owner)
        assert (serde.to_typed(tag), answer) == (ref, ("ok", 5))

    async def test_notes_of_nothing_that_is_known(self, rig: Rig) -> None:
        fake = rig.add()
        call = rig.eval()
        (request,) = await fake.has(1)
        fake.do(request)
        assert await call == ("ok", "done")
        fake.note(NoteKind.ANSWERED, request, b"w\2no")
        fake.note(NoteKind.DONE, request)
        fake.line.send(Note.write(NoteKind.DONE, 99, 0))
        fake.auto = True
        assert await rig.eval() == ("ok", "done")

    async def test_an_answer_from_behind_one_that_is_about_to_wait(self, rig: Rig) -> None:
        """It says so with its first turn of the loop, and the answer came before that."""
        fake = rig.add()
        first, second = await rig.evals("first", "second")
        one, two = await fake.has(2)
        fake.begin(one)
        fake.do(two, 2)
        assert await second == ("ok", 2)
        fake.waits(one)
        fake.answer(one, 1)
        assert await first == ("ok", 1)
        assert rig.front.running == 0


@pytest.mark.usefixtures("patient")
class TestRouting:
    async def test_to_the_one_that_has_least_to_do(self, rig: Rig) -> None:
        fakes = [rig.add() for _ in range(3)]
        await rig.evals("1", "2", "3", "4", "5", "6")
        assert [len(fake.got) for fake in fakes] == [2, 2, 2]

    async def test_what_awaits_is_less_than_what_may_block(self, rig: Rig) -> None:
        one, other = rig.add(), rig.add()
        await rig.evals("1", "2")
        for request in list(one.got):
            one.begin(request)
            one.waits(request)
        await rig.evals("3")
        await until(lambda: rig.sources(one) == ["1", "3"])
        assert rig.sources(other) == ["2"]

    async def test_the_last_one_goes_on_when_it_has_nothing_else(self, rig: Rig) -> None:
        fakes = [rig.add() for _ in range(2)]
        for fake in fakes:
            fake.auto = True
        for _ in range(5):
            assert await rig.eval() == ("ok", "done")
        assert sorted(len(fake.got) for fake in fakes) == [0, 5]

    async def test_one_at_a_time_to_those_that_are_slow(self, rig: Rig) -> None:
        fake = rig.add(pace=SLOW)
        calls = await rig.evals("1", "2", "3")
        assert (rig.front.running, rig.front.queued) == (1, 2)
        assert fake.page.wanted
        for number, call in enumerate(calls, 1):
            requests = await fake.has(number)
            fake.do(requests[-1], number)
            assert await call == ("ok", number)
        assert rig.sources(fake) == ["1", "2", "3"]
        assert not fake.page.wanted

    async def test_one_at_a_time_to_those_of_which_nothing_is_known(self, rig: Rig) -> None:
        fake = rig.add(pace=0)
        await rig.evals("1", "2")
        assert len(await fake.has(1)) == 1
        assert rig.front.queued == 1

    async def test_several_ahead_to_those_that_are_quick(self, rig: Rig) -> None:
        fake = rig.add(pace=500)
        await rig.evals("1", "2", "3", "4")
        assert len(await fake.has(3)) == 3
        assert rig.front.queued == 1

    async def test_and_no_more_than_that(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(front_room, "REVOKE_AFTER", 60.0)
        fake = rig.add(pace=1)
        await rig.evals(*map(str, range(MOST_AHEAD + 2)))
        await fake.has(MOST_AHEAD)
        assert rig.front.queued == 2

    async def test_before_there_is_any(self, rig: Rig) -> None:
        call = rig.eval()
        await until(lambda: rig.front.queued == 1)
        fake = rig.add()
        fake.auto = True
        assert await call == ("ok", "done")

    async def test_who_waits_longest_comes_first(self, rig: Rig) -> None:
        fake = rig.add(pace=SLOW)
        await rig.evals("1", "2", "3")
        requests = await fake.has(1)
        fake.begin(requests[0])
        fake.done(requests[0])
        await rig.evals("4")
        await fake.has(2)
        assert rig.sources(fake) == ["1", "2"]


@pytest.mark.usefixtures("patient")
class TestQueue:
    async def test_its_length_is_bounded(self, start: Start) -> None:
        rig = await start(max_queue=2)
        rig.add(pace=SLOW)
        calls = await rig.evals("1", "2", "3")
        assert await rig.eval("4") == ("error", "overloaded")
        assert [call.done() for call in calls] == [False] * 3
        # There is room again when one of them has gone.
        calls[1].cancel()
        await until(lambda: rig.front.queued == 1)
        await rig.evals("5")
        assert await rig.eval("6") == ("error", "overloaded")

    async def test_none_may_wait(self, start: Start) -> None:
        rig = await start(max_queue=0)
        assert await rig.eval() == ("error", "overloaded")
        fake = rig.add(pace=SLOW)
        fake.auto = True
        assert await rig.eval() == ("ok", "done")

    async def test_its_bytes_are_bounded(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(front_room, "MAX_QUEUED_BYTES", 10_000)
        rig.add(pace=SLOW)
        await rig.evals("1", "2")
        assert await rig.eval("x" * 9_900) == ("error", "overloaded")
        await rig.evals("x" * 5_000)
        assert await rig.eval("x" * 5_000) == ("error", "overloaded")
        await rig.evals("3")

    async def test_so_is_that_of_one_worker(self, start: Start) -> None:
        rig = await start(max_queue=2)
        fake, _ = rig.add(pace=SLOW, name="py-1@127.0.0.1"), rig.add()
        await rig.evals("1")
        env = Pid(fake.name, 5, 0, 7)
        for number in (1, 2):
            rig.call("destroy_env", env)
            await until(partial(rig.has, 1 + number))
        assert await rig.call("destroy_env", env) == ("error", "overloaded")
        assert rig.front.queued == 2

    async def test_what_waits_no_more_is_not_kept(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(front_room, "_MANY", 5)
        rig.add(pace=SLOW)
        await rig.evals("1", "2")
        for number in range(50):
            (call,) = await rig.evals(str(number))
            call.cancel()
            await until(lambda: rig.front.queued == 1)
        assert len(rig.front._queue) <= 2 * 2 + 5
        assert not rig.front._queue[0].over

    @pytest.mark.usefixtures("impatient")
    async def test_time_in_it_is_bounded(self, start: Start) -> None:
        rig = await start(queue_timeout=0.1)
        fake = rig.add(pace=SLOW)
        (first,) = await rig.evals("1")
        fake.begin((await fake.has(1))[0])
        second, third = await rig.evals("2", "3")
        assert await second == ("error", "overloaded")
        assert await third == ("error", "overloaded")
        assert rig.front.queued == 0
        fake.answer(fake.got[0], "done")
        assert await first == ("ok", "done")
        assert len(fake.got) == 1

    async def test_what_was_overloaded_can_be_told(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        rig = await start(max_queue=0)
        answer = await rig.caller.call(rig.to, term_of("eval", "1", {}))
        error = {str(name): value for name, value in answer[1].items()}
        assert error["reason"] == (
            "0 requests wait for a worker: ask less at a time, or start more workers"
        )
        rig.caller.cast(rig.to, term_of("eval", "1", {}))
        await until(lambda: "a request without an answer failed: overloaded: " in caplog.text)


@pytest.mark.usefixtures("busy")
class TestRevoking:
    """What a worker has not begun for a while is done elsewhere, once."""

    async def test_what_stands_behind_something_slow(self, rig: Rig) -> None:
        stuck = rig.add(stuck=True)
        calls = await rig.evals("slow", "2", "3")
        requests = await stuck.has(3)
        await until(lambda: rig.front.queued == 2)
        other = rig.add()
        other.auto = True
        assert await asyncio.gather(*calls[1:]) == [("ok", "done")] * 2
        assert rig.sources(other) == ["2", "3"]
        # When it comes to them it does not begin them.
        assert [stuck.begin(request) for request in requests[1:]] == [False, False]
        stuck.answer(requests[0], "late")
        assert await calls[0] == ("ok", "late")
        assert rig.front.running == rig.front.queued == 0
        assert len(other.got) == 2

    async def test_what_was_begun_in_that_moment(self, rig: Rig) -> None:
        """The worker has not seen yet that it is revoked: then it has begun."""
        fake = rig.add(stuck=True)
        calls = await rig.evals("slow", "2", "3")
        requests = await fake.has(3)
        revoke = fake.ledger.revoke
        begun: list[bool] = []

        def revoked(sequence: int) -> None:
            begun.append(fake.page.start(2))
            revoke(sequence)

        fake.ledger.revoke = revoked  # type: ignore[method-assign]
        await until(lambda: rig.front.queued == 1)
        assert begun == [True]
        assert rig.front.running == 2
        fake.answer(requests[0], 1)
        fake.answer(requests[1], 2)
        assert await asyncio.gather(*calls[:2]) == [("ok", 1), ("ok", 2)]
        assert not fake.begin(requests[2])
        # It has come as far as it was revoked, so it gets something again.
        fake.wake()
        await until(lambda: len(fake.got) == 4)
        fake.do(fake.got[3], 3)
        assert await calls[2] == ("ok", 3)

    async def test_what_the_worker_says_it_has_not_begun(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may say so before the front has waited long enough to take it back."""
        monkeypatch.setattr(Ledger, "SETTLED", 0.1)
        fake = rig.add(stuck=True)
        calls = await rig.evals("slow", "2")
        requests = await fake.has(2)
        await until(lambda: fake.page._words[1] == 2)
        assert not fake.begin(requests[1])
        fake.answer(requests[0], 1)
        assert await calls[0] == ("ok", 1)
        await until(lambda: len(fake.got) == 3)
        fake.do(fake.got[2], 2)
        assert await calls[1] == ("ok", 2)
        await asyncio.sleep(0.15)  # it is not taken back once more
        assert len(fake.got) == 3
        assert rig.front.queued == 0

    async def test_one_that_only_that_worker_can_do_stays_there(self, rig: Rig) -> None:
        fake, other = rig.add(stuck=True), rig.add()
        other.auto = True
        fake_name = fake.name
        rig.lane_of(other).retiring = True
        await rig.evals("slow")
        rig.lane_of(other).retiring = False
        destroy = rig.call("destroy_env", Pid(fake_name, 5, 0, 7))
        requests = await fake.has(2)
        await until(lambda: rig.front.queued == 1)
        assert await rig.eval() == ("ok", "done")
        assert not fake.begin(requests[1])
        fake.done(requests[0])
        again = (await fake.has(3))[2]
        fake.do(again, "destroyed")
        assert await destroy == ("ok", "destroyed")
        assert len(other.got) == 1

    async def test_nothing_more_is_sent_there_meanwhile(self, rig: Rig) -> None:
        fake = rig.add(stuck=True)
        await rig.evals("slow", "2")
        requests = await fake.has(2)
        await until(lambda: rig.front.queued == 1)
        await rig.evals("3")
        assert rig.front.queued == 2
        fake.done(requests[0])
        await asyncio.sleep(0)
        # It is still to come to the one that it must not begin.
        assert len(fake.got) == 2
        fake.begin(requests[1])
        fake.wake()
        await fake.has(4)
        assert rig.sources(fake)[2:] == ["2", "3"]

    async def test_a_single_slow_one_is_left_alone(self, rig: Rig) -> None:
        fake = rig.add(stuck=True)
        call = rig.eval()
        (request,) = await fake.has(1)
        await asyncio.sleep(2 * front_room.REVOKE_AFTER)
        assert fake.page.start(2)
        fake.answer(request, 1)
        assert await call == ("ok", 1)

    async def test_one_that_a_signal_has_stopped_is_ended(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(front_room, "STOPPED", 0.1)
        fake = rig.add()
        await rig.evals("1", "2")
        await until(lambda: rig.front.queued == 2)
        assert fake.calls == []
        fake.signalled = True
        await until(lambda: "kill" in fake.calls)
        assert f"{fake.name} has been stopped by a signal: it is ended" in caplog.text


@pytest.mark.usefixtures("patient")
class TestLost:
    """A worker has ended: nobody waits in vain, and nothing is done twice."""

    async def test_what_it_had_begun(self, rig: Rig) -> None:
        fake, other = rig.add(), rig.add()
        other.auto = True
        rig.lane_of(other).retiring = True
        calls = await rig.evals("1", "2", "3", "4")
        rig.lane_of(other).retiring = False
        requests = await fake.has(4)
        fake.begin(requests[0])
        fake.waits(requests[0])
        fake.begin(requests[1])
        rig.lost(fake, -signal.SIGSEGV)
        assert await calls[0] == ("error", "worker_exited")
        assert await calls[1] == ("error", "worker_exited")
        # What it had not begun is done by others, in order.
        assert await asyncio.gather(*calls[2:]) == [("ok", "done")] * 2
        assert rig.sources(other) == ["3", "4"]
        assert "close" in fake.calls
        assert rig.front.lanes == [rig.lane_of(other)]

    async def test_how_it_ended_is_told(self, rig: Rig) -> None:
        fake = rig.add()
        call = asyncio.ensure_future(rig.caller.call(rig.to, term_of("eval", "1", {})))
        (request,) = await fake.has(1)
        fake.begin(request)
        rig.lost(fake, -signal.SIGSEGV)
        answer: Any = await call
        error = {str(name): value for name, value in answer[1].items()}
        assert error["reason"] == (A("signal"), A("sigsegv"))

    async def test_what_it_had_done(self, rig: Rig) -> None:
        """Answers that were on their way arrive, and of what was answered nothing more is said."""
        fake = rig.add()
        calls = await rig.evals("1", "2")
        requests = await fake.has(2)
        fake.begin(requests[0])
        fake.page.set_status(1, Status.DONE)
        fake.begin(requests[1])
        fake.page.set_status(2, Status.WAITS)
        fake.note(NoteKind.ANSWERED, requests[1], OK_ + encode(2))
        rig.lost(fake)
        assert await calls[1] == ("ok", 2)
        assert not calls[0].done()
        assert rig.front.running == 0

    async def test_what_it_had_done_behind_one_that_was_about_to_wait(self, rig: Rig) -> None:
        """Its caller has the answer, and must not get another one."""
        fake = rig.add()
        calls = await rig.evals("1", "2", "3")
        for request in await fake.has(3):
            fake.begin(request)
        fake.page.set_status(2, Status.DONE)
        rig.lost(fake)
        assert await calls[0] == await calls[2] == ("error", "worker_exited")
        assert not calls[1].done()
        assert rig.front.running == 0

    async def test_what_only_it_could_do(self, rig: Rig) -> None:
        fake, other = rig.add(pace=SLOW), rig.add()
        other.auto = True
        rig.lane_of(other).retiring = True
        await rig.evals("1")
        rig.lane_of(other).retiring = False
        fake.begin((await fake.has(1))[0])
        destroy = rig.call("destroy_env", Pid(fake.name, 5, 0, 7))
        await until(lambda: rig.front.queued == 1)
        rig.lost(fake)
        assert await destroy == "ok"  # it has gone with its worker
        assert other.got == []
        # And what had been sent to it, but not begun.
        fake = rig.add()
        destroy = rig.call("destroy_env", Pid(fake.name, 5, 0, 7))
        await fake.has(1)
        rig.lost(fake)
        assert await destroy == "ok"
        assert other.got == []

    @pytest.mark.parametrize("waits", [False, True], ids=["blocks", "awaits"])
    async def test_it_was_killed_for_one(self, rig: Rig, waits: bool) -> None:
        fake = rig.add()
        calls = await rig.evals("1", "2")
        one, two = await fake.has(2)
        fake.begin(one)
        fake.waits(one)
        fake.begin(two)
        if waits:
            fake.waits(two)
        fake.page.judge(Verdict.OVERTIME, 2)
        rig.lost(fake)
        assert await calls[1] == ("error", "killed")
        assert await calls[0] == ("error", "worker_exited")

    async def test_it_had_too_much_memory(self, rig: Rig) -> None:
        """What ran then is blamed, and where nothing did, all that awaits."""
        fake = rig.add()
        calls = await rig.evals("1", "2")
        one, two = await fake.has(2)
        fake.begin(one)
        fake.waits(one)
        fake.begin(two)
        fake.page.judge(Verdict.MEMORY, 0)
        rig.lost(fake)
        assert await calls[1] == ("error", "memory_limit")
        assert await calls[0] == ("error", "worker_exited")
        fake = rig.add()
        call = rig.eval()
        (request,) = await fake.has(1)
        fake.begin(request)
        fake.waits(request)
        fake.page.judge(Verdict.MEMORY, 0)
        rig.lost(fake)
        assert await call == ("error", "memory_limit")

    async def test_a_cast_is_logged(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        fake = rig.add()
        rig.caller.cast(rig.to, term_of("eval", "1", {}))
        fake.begin((await fake.has(1))[0])
        rig.lost(fake)
        assert "a request without an answer failed: worker_exited: " in caplog.text

    async def test_what_had_been_given_up_just_before(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is looked at once more a moment later, when there is no page to ask any more."""
        monkeypatch.setattr(front_room, "STOP_AFTER", 0.2)
        fake = rig.add()
        calls = await rig.evals("1", "2")
        for request in await fake.has(2):
            fake.begin(request)
        for call in calls:
            call.cancel()
        await until(lambda: len(rig.front._left) == 2)
        rig.lost(fake)
        await until(lambda: not rig.front._left)
        assert fake.stopped_requests == []

    @pytest.mark.usefixtures("impatient")
    async def test_while_something_was_about_to_be_taken_back(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Ledger, "SETTLED", 0.05)
        fake = rig.add(stuck=True)
        calls = await rig.evals("slow", "2")
        await until(lambda: fake.page._words[1] == 2)
        rig.lost(fake)
        assert await calls[0] == ("error", "worker_exited")
        await asyncio.sleep(0.1)
        other = rig.add()
        other.auto = True
        assert await calls[1] == ("ok", "done")
        assert len(other.got) == 1


@pytest.mark.usefixtures("patient")
class TestCallers:
    async def test_one_that_gives_up_while_it_waits_for_a_worker(self, rig: Rig) -> None:
        fake = rig.add(pace=SLOW)
        await rig.evals("1")
        call = rig.eval("2", timeout=0.1)
        await until(lambda: rig.front.queued == 1)
        with pytest.raises(CallTimeoutError):
            await call
        await until(lambda: rig.front.queued == 0)
        await rig.evals("3")
        fake.begin(fake.got[0])
        fake.done(fake.got[0])
        await fake.has(2)
        assert rig.sources(fake) == ["1", "3"]
        assert fake.stopped_requests == []

    async def test_one_that_gives_up_when_it_was_sent(self, rig: Rig) -> None:
        fake = rig.add()
        call = rig.eval(timeout=0.1)
        (request,) = await fake.has(1)
        fake.begin(request)
        fake.waits(request)
        with pytest.raises(CallTimeoutError):
            await call
        await until(lambda: fake.stopped_requests == [1])
        assert rig.front.running == 1
        fake.note(NoteKind.DONE, request)
        await until(lambda: rig.front.running == 0)

    async def test_one_that_has_its_answer_has_not_given_up(self, rig: Rig) -> None:
        fake = rig.add()
        ref = rig.caller.make_ref()
        answer = rig.caller.router.expect(ref)
        rig.caller.signals.monitor(rig.owner, rig.to, ref)
        call = rig.asking.call("eval", "1", {})
        data = call.data.replace(call.ref.external, ref.external)
        rig.deliver(data)
        (request,) = await fake.has(1)
        fake.begin(request)
        fake.page.set_status(1, Status.DONE)
        rig.owner.demonitor(ref)
        await until(lambda: rig.front.running == 0)
        await asyncio.sleep(2 * front_room.STOP_AFTER)
        assert fake.stopped_requests == []
        assert not answer.done()

    @pytest.mark.usefixtures("impatient")
    async def test_one_that_gives_up_before_its_worker_begins(self, rig: Rig) -> None:
        """It is done nowhere else when it is taken back from there."""
        fake = rig.add(stuck=True)
        await rig.evals("slow")
        call = rig.eval("2")
        await fake.has(2)
        call.cancel()
        await until(lambda: fake.stopped_requests == [2])
        await until(lambda: rig.front.running == 1)
        assert rig.front.queued == 0
        rig.lost(fake)
        other = rig.add()
        other.auto = True
        assert await rig.eval("3") == ("ok", "done")
        assert rig.sources(other) == ["3"]

    async def test_one_that_does_not_monitor_is_monitored(self, rig: Rig) -> None:
        fake = rig.add(pace=SLOW)
        asks = [rig.asking.call("eval", str(n), {}) for n in (1, 2)]
        for call in asks:
            rig.deliver(call.data)
        (request,) = await fake.has(1)
        fake.begin(request)
        fake.waits(request)
        await until(lambda: len(rig.front._by_monitor) == 2)
        rig.owner.exit()
        await until(lambda: fake.stopped_requests == [1, 2])
        assert rig.front._by_monitor == {}

    async def test_not_for_longer_than_it_waits(self, rig: Rig) -> None:
        fake = rig.add()
        call = rig.asking.call("eval", "1", {})
        rig.deliver(call.data)
        (request,) = await fake.has(1)
        await until(lambda: len(rig.front._by_monitor) == 1)
        fake.do(request, 1)
        assert await call.answered() == ("ok", 1)
        assert rig.front._by_monitor == {}
        await until(lambda: rig.owner.ties is None or not rig.owner.ties.watchers)

    async def test_nor_one_that_does(self, rig: Rig) -> None:
        fake = rig.add()
        rig.eval()
        await fake.has(1)
        await until(lambda: not rig.front._will_watch)
        assert rig.front._by_monitor == {}


@pytest.mark.usefixtures("patient")
class TestInit:
    async def test_all_do_it_and_those_that_come_later(self, rig: Rig) -> None:
        fakes = [rig.add(), rig.add()]
        call = rig.call("init", "x = 1", {})
        for fake in fakes:
            (request,) = await fake.has(1)
            assert request.by_front
            assert not call.done()
            fake.do(request, None)
        assert await call == ("ok", None)
        later = rig.add()
        (request,) = await later.has(1)
        assert request.by_front, "its caller has an answer already"
        assert rig.source(request) == "x = 1"
        later.do(request, None)
        await until(lambda: rig.front.running == 0)

    async def test_it_fails_in_one(self, rig: Rig) -> None:
        one, other = rig.add(), rig.add()
        call = rig.call("init", "x = 1", {})
        one.do((await one.has(1))[0], None)
        failed = b"h\2w\5error" + serde.encoder.encode(
            {A("__exception__"): True, A("code"): A("python_runtime_error")}
        )
        other.do((await other.has(1))[0], failed)
        assert await call == ("error", "python_runtime_error")
        later = rig.add()
        rig.eval()
        await asyncio.sleep(0.05)
        assert [rig.source(request) for request in later.got if "x" in rig.source(request)] == []

    async def test_a_worker_ends_meanwhile(self, rig: Rig) -> None:
        one, other = rig.add(), rig.add()
        call = rig.call("init", "x = 1", {})
        await one.has(1)
        rig.lost(one)
        other.do((await other.has(1))[0], None)
        assert await call == ("error", "worker_exited")
        assert rig.front.inits == []

    async def test_it_fails_in_a_later_one(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake = rig.add()
        fake.auto = True
        assert await rig.call("init", "x = 1", {}) == ("ok", "done")
        later = rig.add()
        later.do((await later.has(1))[0], b"h\2w\5errorw\2no")
        told = f"an init request that was done elsewhere failed in {later.name}"
        await until(lambda: told in caplog.text)

    async def test_there_is_no_worker(self, rig: Rig) -> None:
        assert await rig.call("init", "x = 1", {}) == ("error", "worker_exited")
        assert rig.front.inits == []

    async def test_their_number_is_bounded(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(front_room, "_INITS", 2)
        fake = rig.add()
        fake.auto = True
        for _ in range(2):
            assert await rig.call("init", "x = 1", {}) == ("ok", "done")
        assert await rig.call("init", "x = 1", {}) == ("error", "overloaded")


@pytest.mark.usefixtures("patient")
class TestEnvironments:
    async def test_where_fewest_are(self, rig: Rig) -> None:
        one, other = rig.add(), rig.add()
        for _ in range(4):
            rig.call("make_env", {})
            await until(lambda: len(one.got) + len(other.got) == len(rig.calls))
        assert (len(one.got), len(other.got)) == (2, 2)
        # What a worker says counts.
        one.environments = 5
        one.note(NoteKind.WAKE, one.got[0])
        await until(lambda: rig.lane_of(one).environments == 5)
        for fake in (one, other):
            for request in list(fake.got):
                fake.begin(request)
                fake.done(request)
        rig.call("make_env", {})
        await until(lambda: len(other.got) == 3)

    @pytest.mark.parametrize("first", [False, True], ids=["options last", "options first"])
    @pytest.mark.parametrize(
        "of",
        [
            lambda pid: pid,
            lambda pid: (pid, A("only"), ["x"]),
            lambda pid: [(pid, A("except"), ["x"]), pid],
        ],
    )
    async def test_where_those_are_that_it_copies(
        self, rig: Rig, of: Callable[[Pid], object], first: bool
    ) -> None:
        rig.add()
        fake = rig.add()
        options = [(A("handle"), A("none")), (A("from"), of(Pid(fake.name, 5, 0, 7)))]
        for _ in range(3):
            if first:
                rig.call("make_env", options, {"x": 1})
            else:
                rig.call("make_env", {"x": 1}, dict(options))
        await fake.has(3)

    async def test_of_a_worker_that_is_not_there(self, rig: Rig) -> None:
        """Another one says so."""
        fake = rig.add()
        rig.call("make_env", {}, {A("from"): Pid("gone@127.0.0.1", 5, 0, 7)})
        await fake.has(1)

    @pytest.mark.parametrize(
        "options", [[], 5, {A("handle"): A("from")}, [(A("from"),)], {A("from"): []}]
    )
    async def test_options_that_name_none(self, rig: Rig, options: object) -> None:
        fake = rig.add()
        rig.call("make_env", {b"from": 1}, options)
        await fake.has(1)

    async def test_of_several_workers(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        fakes = [rig.add(), rig.add()]
        pids = [Pid(fake.name, 5, 0, 7) for fake in fakes]
        assert await rig.call("make_env", {}, {A("from"): pids}) == ("error", "bad_request")
        assert [fake.got for fake in fakes] == [[], []]
        rig.caller.cast(rig.to, term_of("make_env", {}, {A("from"): pids}))
        await until(lambda: "from: names environments of several workers" in caplog.text)

    async def test_one_is_destroyed_where_it_is(self, rig: Rig) -> None:
        rig.add()
        fake = rig.add()
        for _ in range(3):
            rig.call("destroy_env", Pid(fake.name, 5, 0, 7))
        await fake.has(3)

    async def test_one_that_has_gone_with_its_worker(self, rig: Rig) -> None:
        rig.add()
        assert await rig.call("destroy_env", Pid("gone@127.0.0.1", 5, 0, 7)) == "ok"

    @pytest.mark.parametrize("request_", [(5,), (5, 6), ()])
    async def test_what_is_none_a_worker_says(self, rig: Rig, request_: tuple[object, ...]) -> None:
        fake = rig.add()
        rig.call("destroy_env", *request_)
        await fake.has(1)

    @pytest.mark.parametrize(
        "request_",
        [
            b"h\3w\x08make_envt\0\0\0\1m\0\0\0\4from",
            b"h\3w\x08make_envjl\0\0\0\1h\2w\4from",
            b"h\3w\x08make_env",
            b"h\2w\x0bdestroy_envXw\3a@b",
            b"h\2w\x0bdestroy_env",
        ],
    )
    async def test_requests_that_are_cut_off(self, rig: Rig, request_: bytes) -> None:
        """A worker says so where it is not seen here."""
        fake = rig.add()
        call = rig.asking.call("x")
        rig.deliver(call.data.removesuffix(b"w\1x") + request_)
        await until(lambda: call.answer.done() or fake.got)
        if not fake.got:
            assert await call.answered() == ("error", "bad_request")
        assert await rig.call("ping") == "pong"


@pytest.mark.usefixtures("patient")
class TestItself:
    async def test_ping(self, rig: Rig) -> None:
        assert await rig.call("ping") == "pong"

    async def test_it_shares_no_memory(self, rig: Rig) -> None:
        # What it is lent it could only hand on, and the worker would have to be known.
        assert await rig.call("shared", None) == ("ok", (False, None))

    async def test_info(self, rig: Rig) -> None:
        assert await rig.call("info") == ("error", "bad_request")
        rig.front.info = lambda job: rig.front.answer(job, OK_ + encode(5))
        assert await rig.call("info") == ("ok", 5)

    async def test_info_of_environments(self, rig: Rig) -> None:
        assert await rig.call("info", A("environments")) == ("error", "bad_request")
        rig.front.environments_info = lambda job: rig.front.answer(job, OK_ + encode([]))
        assert await rig.call("info", A("environments")) == ("ok", [])

    @pytest.mark.parametrize(
        ("request_", "why"),
        [(("terminate", A("normal")), "not_allowed"), (("get_state",), "unknown_system_msg")],
    )
    async def test_system_messages(self, rig: Rig, request_: tuple[object, ...], why: str) -> None:
        ref = rig.caller.make_ref()
        answer = rig.caller.router.expect(ref)
        rig.deliver(rig.asking.system(ref, *request_))
        assert await asyncio.wait_for(answer, 10) == (A("error"), A(why))
        assert rig.front.alive

    async def test_what_only_looks_like_one(self, rig: Rig) -> None:
        fake = rig.add()
        rig.deliver(encode((A("system"), 1, 2)))
        rig.eval()
        await fake.has(1)

    async def test_what_is_no_request_a_worker_says(self, rig: Rig) -> None:
        fake = rig.add()
        messages = [A("x"), 5, (), ("text",), b"", [1], (A("a"),)]
        for message in messages:
            rig.caller.send(rig.to, message)
        await fake.has(len(messages))

    async def test_exit_signals(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        rig.owner.exit_signal(rig.front.pid, A("shutdown"))
        assert await rig.call("ping") == "pong"
        assert "does not end the runtime" in caplog.text
        rig.front.message_received(("anything", "else"))
        assert rig.front.alive

    async def test_but_for_kill(self, rig: Rig) -> None:
        fake = rig.add(pace=SLOW)
        ended = asyncio.ensure_future(rig.front.wait_ended())
        running, queued = await rig.evals("1", "2")
        await fake.has(1)
        rig.owner.exit_signal(rig.front.pid, A("kill"))
        assert await ended == "killed"
        for call in (running, queued):
            with pytest.raises(ProcessExitError):
                await call

    async def test_its_name(self, start: Start) -> None:
        rig = await start(name="other")
        assert rig.node.whereis("other") == rig.front.pid
        assert rig.front.owner is rig.node


@pytest.mark.usefixtures("patient")
class TestRequestsOfItsOwn:
    async def test_a_worker_answers(self, rig: Rig) -> None:
        fake, other = rig.add(), rig.add()
        asked = asyncio.ensure_future(rig.front.ask(A("info"), rig.lane_of(other)))
        (request,) = await other.has(1)
        assert request.by_front
        assert request.node == str(rig.node.name).encode()
        other.do(request, 5)
        assert read(await asked)[0] == ("ok", 5)
        asked = asyncio.ensure_future(rig.front.ask(A("info")))
        await until(lambda: fake.got or len(other.got) == 2)
        rig.lost(fake)
        rig.lost(other)
        asked.cancel()
        await asyncio.wait([asked])

    async def test_one_that_is_cancelled(self, rig: Rig) -> None:
        fake = rig.add()
        asked = asyncio.ensure_future(rig.front.ask(A("info")))
        (request,) = await fake.has(1)
        fake.begin(request)
        fake.waits(request)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: fake.stopped_requests == [1])
        fake.answer(request, 1)
        await until(lambda: rig.front.running == 0)
        # Nobody monitors itself.
        assert rig.front._by_monitor == {}

    async def test_one_is_not_watched(self, rig: Rig) -> None:
        fake = rig.add()
        asked = asyncio.ensure_future(rig.front.ask(A("info")))
        (request,) = await fake.has(1)
        await until(lambda: not rig.front._will_watch)
        assert rig.front._by_monitor == {}
        fake.do(request)
        await asked


@pytest.mark.usefixtures("patient")
class TestRpc:
    """What other nodes call on the front's node."""

    def rpc(self, rig: Rig, *args: object) -> asyncio.Future[Any]:
        name = str(rig.node.name)
        call = rig.caller.rpc(name, "math", "sqrt", list(args), timeout=10.0)
        rig.calls.append(asyncio.ensure_future(call))
        return rig.calls[-1]

    async def asked(self, fake: Fake) -> Request:
        """What it is to call, when it has been asked where output goes, which is an `rpc` too."""
        request = (await fake.has(1))[0]
        fake.do(request, (A("raised"), A("undef"), []))
        return (await fake.has(2))[1]

    async def test_a_worker_calls_it(self, rig: Rig) -> None:
        fake = rig.add()
        call = self.rpc(rig, 16)
        request = await self.asked(fake)
        message, _ = read(request.data, request.at)
        assert isinstance(message, tuple)
        assert message[2] == ("rpc", "math", "sqrt", [16])
        fake.do(request, (A("return"), 4.0))
        assert await call == 4.0

    async def test_it_raises(self, rig: Rig) -> None:
        fake = rig.add()
        call = self.rpc(rig)
        request = await self.asked(fake)
        reason = (A("python_error"), "TypeError", "no argument")
        stack: list[object] = [(A("math"), A("sqrt"), 0, [])]
        fake.do(request, (A("raised"), reason, stack))
        with pytest.raises(RemoteError) as raised:
            await call
        assert raised.value.kind == "error"
        assert raised.value.reason == ("python_error", "TypeError", "no argument")
        assert raised.value.stack == stack

    async def test_its_worker_ends(self, rig: Rig) -> None:
        fake = rig.add()
        call = self.rpc(rig, 16)
        fake.begin(await self.asked(fake))
        rig.lost(fake)
        with pytest.raises(RemoteError) as raised:
            await call
        reason: Any = raised.value.reason
        assert {str(name): value for name, value in reason.items()}["code"] == "worker_exited"

    async def test_an_answer_of_another_kind(self, rig: Rig) -> None:
        fake = rig.add()
        call = self.rpc(rig, 16)
        fake.do(await self.asked(fake), b"w\4pong")
        with pytest.raises(RemoteError, match="pong"):
            await call

    async def test_its_caller_gives_up(self, rig: Rig) -> None:
        fake = rig.add()
        call = self.rpc(rig, 16)
        request = await self.asked(fake)
        fake.begin(request)
        fake.waits(request)
        call.cancel()
        await asyncio.wait([call])
        # `erpc` leaves it to whoever is called: only `kill` would end it.
        fake.do(request, (A("return"), 4.0))
        await until(lambda: rig.front.running == 0)


@pytest.mark.usefixtures("patient")
class TestRetiring:
    async def test_after_so_many_requests(self, start: Start) -> None:
        rig = await start(max_requests=2)
        retired: list[Lane] = []
        rig.front.retired = retired.append
        old = rig.add()
        calls = await rig.evals("1", "2")
        assert retired == [rig.lane_of(old)]
        await rig.evals("3")
        assert rig.front.queued == 1
        new = rig.add()
        await new.has(1)
        requests = await old.has(2)
        old.environments = 1
        old.do(requests[0])
        assert await calls[0] == ("ok", "done")
        # It goes when it has nothing left, environments included.
        old.do(requests[1])
        assert await calls[1] == ("ok", "done")
        assert old.calls == []
        old.environments = 0
        old.note(NoteKind.WAKE, requests[0])
        await until(lambda: "stop" in old.calls)
        assert retired == [rig.lane_of(old)]
        rig.lost(old, 0)
        assert rig.front.lanes == [rig.lane_of(new)]

    async def test_its_environments_are_served(self, start: Start) -> None:
        rig = await start(max_requests=1)
        old = rig.add(pace=SLOW)
        rig.call("make_env", {})
        await old.has(1)
        assert rig.lane_of(old).retiring
        rig.call("destroy_env", Pid(old.name, 5, 0, 7))
        await until(lambda: rig.front.queued == 1)
        old.begin(old.got[0])
        old.done(old.got[0])
        await old.has(2)

    async def test_it_ends_when_it_was_idle_already(self, rig: Rig) -> None:
        fake = rig.add()
        rig.front.end_if_idle(rig.lane_of(fake))
        assert fake.calls == ["stop"]
        await rig.evals("1")
        rig.front.end_if_idle(rig.lane_of(fake))
        assert fake.calls == ["stop"]


def test_a_lane_s_state() -> None:
    async def test() -> None:
        fake = Fake()
        worker: Any = fake
        lane = Lane(worker)
        assert (lane.has_room, lane.has_nothing, lane.idle) == (True, True, True)
        job = Job(None, b"", b"a@b")
        lane.sequence = job.sequence = 1
        lane.sent.append(job)
        assert (lane.has_room, lane.has_nothing, lane.idle) == (True, False, False)
        assert list(lane.jobs()) == [job]
        fake.page.pace = 2000
        assert not lane.has_room
        fake.page.set_status(1, Status.DONE)
        assert lane.has_nothing
        lane.revoked = True
        assert (lane.has_room, lane.has_nothing) == (False, False)
        fake.end()

    asyncio.run(test())
