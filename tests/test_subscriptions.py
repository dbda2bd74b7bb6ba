"""Subscriptions: what evaluated code takes of producers that speak GenStage's protocol."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

import snex
from snex_node import Node, Process
from snex_node.wire.terms import Atom
from snex_runtime import interface, lifetimes, subscriptions
from tests.support.consumer import Producer, typed
from tests.support.pair import Pair, pair
from tests.support.waiting import until

A = Atom
THREAD = [(A("executor"), A("thread"))]
LOOP = [(A("executor"), A("loop"))]
EXECUTORS = pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
FORMS = pytest.mark.parametrize(
    ("loop", "options"), [("async for", LOOP), ("async for", THREAD), ("for", THREAD)]
)
"""How items are taken: on the event loop, on that of a thread, and in a thread that waits."""


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made
        await until(lambda: not lifetimes.holds)
        await until(lambda: len(asyncio.all_tasks()) == 1)


@pytest.fixture
async def producer(both: Pair) -> Producer:
    return Producer(both.peer)


def run(both: Pair, code: str, options: Any = LOOP, **variables: object) -> asyncio.Task[Any]:
    """The answer to an evaluation, which goes on meanwhile."""
    return asyncio.create_task(both.call("eval", code, variables, options))


async def error_of(task: asyncio.Task[Any]) -> Any:
    status, error = await task
    assert status == "error", error
    assert error["type"] == "snex.ProducerError"
    return error["reason"]


def taking(loop: str, arguments: str = "", then: str = "") -> str:
    return (
        f"got = []\n{loop} x in snex.subscribe(source{arguments}): got.append(x){then}\nreturn got"
    )


class TestItems:
    @FORMS
    async def test_all_and_never_more_than_asked_for(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        task = run(both, taking(loop), options, source=producer.process.pid)
        await producer.serve(1000, most=7)
        assert await task == ("ok", list(range(1000)))
        assert producer.options == {"max_demand": 100, "min_demand": 50}
        assert producer.asked[0] == 100
        assert max(producer.asked[1:]) <= 100
        assert sum(producer.asked) <= 1000 + 100

    @FORMS
    @pytest.mark.parametrize(("most", "least"), [(1, 0), (2, 1), (10, 0), (10, 9), (1000, 1)])
    async def test_any_demand(
        self, both: Pair, producer: Producer, loop: str, options: Any, most: int, least: int
    ) -> None:
        code = taking(loop, f", max_demand={most}, min_demand={least}")
        task = run(both, code, options, source=producer.process.pid)
        await producer.subscribed()
        assert producer.demand == most
        while producer.given < 50:
            if not producer.demand:
                assert (await producer.next())[0] == "ask"
            assert producer.demand <= most
            producer.give([0] * min(producer.demand, 50 - producer.given))
        producer.end()
        assert await task == ("ok", [0] * 50)

    async def test_what_is_not_taken_is_not_asked_for_again(
        self, both: Pair, producer: Producer
    ) -> None:
        code = (
            "it = snex.subscribe(source, max_demand=4, min_demand=2)\nbox = snex.mailbox()\n"
            "await snex.send(owner, box.pid)\n"
            "async for n in box: await snex.send(owner, [await it.__anext__() for _ in range(n)])"
        )
        owner = Process(both.peer)
        task = run(both, code, source=producer.process.pid, owner=owner.pid)
        box = typed(await owner.receive(timeout=10))
        await producer.subscribed()
        producer.give([1, 2, 3, 4])
        for n in (1, 2):
            owner.send(box, 1)
            assert await owner.receive(timeout=10) == [n]
            assert await both.call("ping") == "pong"
            assert len(producer.process) == 0
        owner.send(box, 1)  # who comes for the third is done with two
        assert await owner.receive(timeout=10) == [3]
        assert await producer.next() == ("ask", 2)
        task.cancel()
        assert await producer.cancelled() == ("cancel", "normal")

    @FORMS
    async def test_what_is_in_work_counts_as_under_way(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        waits = "box.wait()" if loop == "for" else "await box.receive()"
        code = (
            "import asyncio\nbox = snex.mailbox()\n"
            "async def tell(): await snex.send(owner, box.pid)\n"
            f"{'asyncio.run(tell())' if loop == 'for' else 'await tell()'}\n"
            f"{loop} x in snex.subscribe(source, max_demand=10): {waits}\n"
        )
        owner = Process(both.peer)
        task = run(both, code, options, source=producer.process.pid, owner=owner.pid)
        box = typed(await owner.receive(timeout=10))
        await producer.subscribed()
        producer.give(list(range(10)))
        for done in range(4):
            assert await both.call("ping") == "pong"
            assert len(producer.process) == 0, done
            owner.send(box, "next")
        owner.send(box, "next")
        assert await producer.next() == ("ask", 5)
        for _ in range(5):
            owner.send(box, "next")
        assert await producer.next() == ("ask", 5)
        producer.end()
        assert await task == ("ok", None)

    @FORMS
    async def test_the_end(self, both: Pair, producer: Producer, loop: str, options: Any) -> None:
        for reason in ("normal", "shutdown"):
            producer = Producer(both.peer)
            task = run(both, taking(loop), options, source=producer.process.pid)
            await producer.subscribed()
            producer.give([1])
            producer.end(A(reason))
            assert await task == ("ok", [1])
        again = "it = snex.subscribe(source)\nreturn [x async for x in it], [x async for x in it]"
        producer = Producer(both.peer)
        task = run(both, again, source=producer.process.pid)
        await producer.serve(2)
        assert await task == ("ok", ([0, 1], []))

    @FORMS
    async def test_leaving_the_loop(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        code = (
            f"with snex.subscribe(source) as it:\n  {loop} x in it:\n    if x == 2: break\nreturn x"
        )
        task = run(both, code, options, source=producer.process.pid)
        await producer.subscribed()
        producer.give([1, 2, 3])
        assert await task == ("ok", 2)
        assert await producer.cancelled() == ("cancel", "normal")

    async def test_an_endless_one_is_dropped(self, both: Pair, producer: Producer) -> None:
        it = snex.subscribe(producer.process.pid)
        await producer.subscribed()
        producer.give([1, 2])
        async for x in it:
            assert x == 1
            break
        del it
        gc.collect()
        assert await producer.cancelled() == ("cancel", "normal")

    async def test_by_several_at_once(self, both: Pair, producer: Producer) -> None:
        code = (
            "import asyncio\nit = snex.subscribe(source, max_demand=3)\n"
            "async def take(): return [x async for x in it]\n"
            "return await asyncio.gather(*(take() for _ in range(4)))"
        )
        task = run(both, code, source=producer.process.pid)
        await producer.serve(100, most=1)
        status, parts = await task
        assert status == "ok"
        assert sorted(x for part in parts for x in part) == list(range(100))

    async def test_a_cancelled_wait_takes_nothing(self, both: Pair, producer: Producer) -> None:
        code = (
            "import asyncio\nit = snex.subscribe(source)\n"
            "try: await asyncio.wait_for(it.__anext__(), 0.02)\n"
            "except asyncio.TimeoutError: await snex.send(owner, 1)\n"
            "return [x async for x in it]"
        )
        owner = Process(both.peer)
        task = run(both, code, source=producer.process.pid, owner=owner.pid)
        assert await owner.receive(timeout=10) == 1
        await producer.serve(3)
        assert await task == ("ok", [0, 1, 2])

    async def test_many_at_once(self, both: Pair) -> None:
        producers = [Producer(both.peer) for _ in range(50)]
        code = (
            "import asyncio\nasync def total(source):\n"
            "  return sum([x async for x in snex.subscribe(source, max_demand=5)])\n"
            "return await asyncio.gather(*map(total, sources))"
        )
        task = run(both, code, sources=[each.process.pid for each in producers])
        await asyncio.gather(*(each.serve(40) for each in producers))
        assert await task == ("ok", [sum(range(40))] * 50)


class TestFailures:
    @FORMS
    async def test_come_behind_the_items(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        code = (
            f"got = []\ntry:\n  {loop} x in snex.subscribe(source): got.append(x)\n"
            "except snex.ProducerError as error: return got, error.reason, str(error)"
        )
        task = run(both, code, options, source=producer.process.pid)
        await producer.subscribed()
        producer.give([1, 2])
        producer.end((A("error"), A("boom")))
        _, (got, reason, text) = await task
        assert (got, reason) == ([1, 2], (A("error"), A("boom")))
        assert text.endswith("failed: {:error, :boom}")

    @pytest.mark.parametrize(
        ("reason", "told"),
        [
            (A("boom"), ":boom"),
            ((A("shutdown"), 1), "{:shutdown, 1}"),
            ((A("error"), {A("type"): "KeyError", A("reason"): "no x"}), "KeyError: no x"),
            ((A("error"), {A("type"): None, A("reason"): "no x"}), "failed: no x"),
            ((A("error"), {"reason": 5}), "failed: 5"),
            ((A("error"), {1: 5}), "{:error, %{1 => 5}}"),
        ],
        ids=range(6),
    )
    async def test_say_why(self, both: Pair, producer: Producer, reason: object, told: str) -> None:
        task = run(both, taking("async for"), source=producer.process.pid)
        await producer.subscribed()
        producer.end(reason)
        text = await error_of(task)
        assert text.startswith("the producer #PID<")
        assert told in text

    @FORMS
    async def test_a_producer_that_ends(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        task = run(both, taking(loop), options, source=producer.process.pid)
        await producer.subscribed()
        producer.process.exit(A("killed"))
        assert "it has ended: :killed" in await error_of(task)
        assert "it has ended: :noproc" in await error_of(
            run(both, taking(loop), options, source=producer.process.pid)
        )

    async def test_a_producer_that_ends_normally(self, both: Pair, producer: Producer) -> None:
        task = run(both, taking("async for"), source=producer.process.pid)
        await producer.subscribed()
        producer.give([1])
        producer.process.exit(A("normal"))
        assert await task == ("ok", [1])

    async def test_a_node_that_is_lost(self, both: Pair) -> None:
        name = "beside" + both.peer.name[4:]
        async with Node(name, cookie=both.cookie, epmd="none", listen=None) as other:
            assert both.node.port is not None
            await other.connect(both.node.name, address=("127.0.0.1", both.node.port))
            producer = Producer(other)
            task = run(both, taking("async for"), source=producer.process.pid)
            await producer.subscribed()
            other.disconnect(both.node.name)
            assert "it has ended: :noconnection" in await error_of(task)

    @FORMS
    async def test_what_cannot_be_decoded(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        code = (
            f"got = []\ntry:\n  {loop} x in snex.subscribe(source): got.append(x)\n"
            "except snex.ProducerError as error: told = str(error)\n"
            "box = snex.mailbox()\nimport asyncio\n"
            "async def rest():\n  await snex.send(owner, box.pid); return await box.receive()\n"
        )
        code += "last = asyncio.run(rest())\n" if loop == "for" else "last = await rest()\n"
        code += "return got, told, last"
        owner = Process(both.peer)
        task = run(both, code, options, source=producer.process.pid, owner=owner.pid)
        await producer.subscribed()
        producer.give([1])
        producer.give([b"\xff"])
        producer.give([3])
        box = typed(await owner.receive(timeout=10))
        # The producer is told though the evaluation goes on: or it would go on, too.
        what, why = await producer.cancelled()
        assert (what, why) == ("cancel", "normal")
        owner.send(box, "end")
        _, (got, told, last) = await task
        assert (got, last) == ([1], "end")
        assert "what it gave cannot be converted" in told
        assert "not UTF-8" in told

    async def test_what_was_not_asked_for_is_bounded(
        self, both: Pair, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(subscriptions, "MAX_DEMAND", 100)
        it = snex.subscribe(producer.process.pid, max_demand=10)
        await producer.subscribed()
        producer.say([0] * 60)
        producer.say([0] * 60)
        assert await producer.cancelled() == ("cancel", "normal")
        with pytest.raises(snex.ProducerError, match="more than 100 items wait"):
            [item async for item in it]
        it.close()

    async def test_what_a_decoder_of_the_users_raises(self, both: Pair, producer: Producer) -> None:
        code = "def no(fields): raise KeyError('mine')\nsnex.decoder('My.Struct')(no)\n" + taking(
            "async for"
        )
        task = run(both, code, source=producer.process.pid)
        await producer.subscribed()
        producer.give([{A("__struct__"): A("Elixir.My.Struct"), A("x"): 1}])
        text = await error_of(task)
        assert "cannot be converted" in text
        assert "mine" in text

    async def test_messages_of_others_are_nothing(self, both: Pair, producer: Producer) -> None:
        task = run(both, taking("async for"), source=producer.process.pid)
        await producer.subscribed()
        pid, tag = producer.consumer
        for message in (
            A("x"),
            (A("$gen_consumer"), (producer.process.pid, both.peer.make_ref()), [1]),
            (A("$gen_consumer"), (producer.process.pid, tag), A("what")),
            (A("$other"), (producer.process.pid, tag), [1]),
            (A("DOWN"), both.peer.make_ref(), A("process"), producer.process.pid, A("x")),
        ):
            producer.process.send(pid, message)
        producer.give([2])
        producer.end()
        producer.end((A("error"), A("late")))
        assert await task == ("ok", [2])


class TestTheEvaluation:
    @FORMS
    async def test_its_time_ends_the_wait(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        limit = [*options, (A("timeout"), 200)]
        task = run(both, taking(loop), limit, source=producer.process.pid)
        await producer.subscribed()
        status, error = await task
        assert (status, error["reason"]) == ("error", "timeout")
        assert await producer.cancelled() == ("cancel", "normal")
        assert await both.call("eval", "return 1", {}, options) == ("ok", 1)

    @FORMS
    async def test_a_caller_that_gives_up_ends_it(
        self, both: Pair, producer: Producer, loop: str, options: Any
    ) -> None:
        task = run(both, taking(loop), options, source=producer.process.pid)
        await producer.subscribed()
        task.cancel()
        assert await producer.cancelled() == ("cancel", "normal")

    @EXECUTORS
    async def test_its_end_ends_what_it_has(
        self, both: Pair, producer: Producer, options: Any
    ) -> None:
        code = "global kept\nkept = snex.subscribe(source)\nreturn 1"
        task = run(both, code, options, source=producer.process.pid)
        assert await task == ("ok", 1)
        assert await producer.cancelled() == ("cancel", "normal")

    async def test_the_runtime_stops(self, both: Pair, producer: Producer) -> None:
        task = run(both, taking("async for"), source=producer.process.pid)
        await producer.subscribed()
        both.server.exit(A("shutdown"))
        assert await producer.cancelled() == ("cancel", "normal")
        with pytest.raises(Exception, match="shutdown"):
            await task


class TestWho:
    async def test_names(self, both: Pair) -> None:
        for name, source in (("one", A("one")), ("two", (A("two"), A(both.peer.name)))):
            producer = Producer(both.peer, name)
            task = run(both, taking("async for"), source=source)
            await producer.serve(3)
            assert await task == ("ok", [0, 1, 2])

    async def test_a_process_of_this_node(self, both: Pair) -> None:
        producer = Producer(both.node)
        task = run(both, taking("async for"), source=producer.process.pid)
        await producer.serve(3)
        assert await task == ("ok", [0, 1, 2])

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            ("5", "TypeError: cannot send to 5"),
            ("(1, 2)", "TypeError: cannot send to"),
            ("'x', max_demand=0", "ValueError: max_demand is 1 to 1000000, not 0"),
            ("'x', max_demand='x'", "ValueError: max_demand is 1 to 1000000, not 'x'"),
            ("'x', max_demand=True", "ValueError: max_demand is 1 to"),
            ("'x', max_demand=10**9", "ValueError: max_demand is 1 to"),
            ("'x', min_demand=-1", "ValueError: min_demand is 0 to 99, not -1"),
            ("'x', min_demand=100", "ValueError: min_demand is 0 to 99, not 100"),
            ("'x', min_demand=0.5", "ValueError: min_demand is 0 to 99, not 0.5"),
            ("('x', 'n' * 300)", "ValueError: atom too long"),
            ("'x' * 300", "ValueError: atom too long"),
        ],
        ids=range(11),
    )
    @EXECUTORS
    async def test_wrong_arguments(self, both: Pair, source: str, options: Any, told: str) -> None:
        status, error = await both.call("eval", f"snex.subscribe({source})", {}, options)
        assert status == "error"
        assert told in f"{error['type']}: {error['reason']}"
        assert await both.call("ping") == "pong"

    async def test_aliases_are_none(self, both: Pair) -> None:
        alias = both.peer.make_ref()
        status, error = await both.call("eval", "snex.subscribe(alias)", {"alias": alias})
        assert status == "error"
        assert "it takes a pid, or a name" in error["reason"]

    async def test_a_plain_for_on_the_loop(self, both: Pair, producer: Producer) -> None:
        task = run(both, taking("for"), source=producer.process.pid)
        status, error = await task
        assert status == "error"
        assert "would wait for itself" in error["reason"]
        assert await producer.cancelled() == ("cancel", "normal")

    async def test_where_no_node_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="not connected to a BEAM"):
            snex.subscribe("x")
        monkeypatch.setattr(interface, "get_backend", object)
        with pytest.raises(RuntimeError, match="this process is no node"):
            snex.subscribe("x")

    def test_the_error_without_a_reason(self) -> None:
        assert subscriptions.ProducerError("x").reason is None
