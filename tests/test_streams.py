"""Streams: what is made, when, for whom, and what ends it; consumers speak GenStage's protocol."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snex_node import Process
from snex_node.wire.terms import Atom, Pid
from snex_runtime import serde, streams
from tests.support.consumer import A, Consumer
from tests.support.examples import examples
from tests.support.pair import Pair, pair
from tests.support.waiting import until


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made
        await until(lambda: not made.server.info()[Atom("streams")])
        assert len(asyncio.all_tasks()) == 1


async def stream(
    both: Pair, code: str, variables: dict[str, object] | None = None, to: Any = None, **opts: Any
) -> Any:
    options = [(A(name), value) for name, value in opts.items()]
    status, pid = await both.call("stream", code, variables or {}, options, to=to)
    assert status == "ok", pid
    return pid


async def consumer(both: Pair, code: str, *demand: int, **opts: Any) -> Consumer:
    made = Consumer(both.peer, await stream(both, code, **opts)).subscribe()
    for each in demand:
        made.ask(each)
    return made


COUNT = "n = 0\nwhile True:\n  yield n\n  n += 1"


class TestItems:
    async def test_are_made_when_they_are_asked_for(self, both: Pair) -> None:
        env = serde.to_typed((await both.call("make_env", {"made": []}))[1])
        code = "n = 0\nwhile True:\n  made.append(n)\n  yield n\n  n += 1"
        one = Consumer(both.peer, await stream(both, code, to=env)).subscribe()
        assert (await both.call("eval", "return len(made)", {}, to=env))[1] == 0
        await one.ask(3).take(3)
        assert (await both.call("eval", "return len(made)", {}, to=env))[1] == 3
        await one.ask(1).ask(1000).take(1004)
        assert one.items == list(range(1004))
        one.say((A("cancel"), A("enough")))
        assert await one.end() == ("cancel", "enough")
        assert await one.down() == "normal"

    @pytest.mark.parametrize(
        ("code", "items"),
        [
            ("yield from range(3)", [0, 1, 2]),
            ("return [1, 2]", [1, 2]),
            ("return (n for n in range(2))", [0, 1]),
            ("return {'a': 1}", ["a"]),
            ("", TypeError),
            ("return 1", TypeError),
            ("import asyncio\nawait asyncio.sleep(0)\nreturn [1]", [1]),
            ("import asyncio\nfor n in range(3):\n  await asyncio.sleep(0)\n  yield n", [0, 1, 2]),
            ("async def f():\n  yield 1\n  yield 2\nreturn f()", [1, 2]),
            ("if 0: yield", []),
            ("return []", []),
        ],
    )
    @pytest.mark.parametrize("executor", ["loop", "thread"])
    async def test_of_what_code_gives(
        self, both: Pair, code: str, items: Any, executor: str
    ) -> None:
        one = await consumer(both, code, 10, executor=A(executor))
        end: Any = await one.end()
        if items is TypeError:
            assert "a stream is of what a generator yields" in end[1][1]["reason"]
            assert end[1][1]["type"] == "TypeError"
        else:
            assert end == ("cancel", "normal")
            assert one.items == items

    async def test_the_environment_of_the_request(self, both: Pair) -> None:
        env = serde.to_typed((await both.call("make_env", {"x": 5}))[1])
        given = Consumer(both.peer, await stream(both, "x += y; yield x", {"y": 1}, to=env))
        await given.subscribe().ask(1).take(1)
        assert given.items == [6]
        assert (await both.call("eval", "return x, y", {}, to=env))[1] == (6, 1)
        assert await given.ask(1).end() == ("cancel", "normal")
        await both.call("init", "z = 1", {})
        other = await consumer(both, "z += 1; yield z", 2)
        assert await other.end() == ("cancel", "normal")
        assert other.items == [2]
        assert await both.run("return z") == 1

    async def test_go_out_at_once_where_the_next_takes_its_time(self, both: Pair) -> None:
        code = "import asyncio\nyield 1\nyield 2\nawait asyncio.Event().wait()"
        one = await consumer(both, code, 10)
        assert await one.take(2) == [1, 2]
        one.say((A("cancel"), A("normal")))
        await one.down()

    async def test_a_slow_generator_leaves_the_loop_its_turns(self, both: Pair) -> None:
        code = "import time\nwhile True:\n  time.sleep(0.002)\n  yield 1"
        one = await consumer(both, code, 1000)
        await one.next()
        for _ in range(5):
            assert await both.call("ping") == "pong"
        assert len(one.items) < 1000
        one.say((A("cancel"), A("normal")))
        await one.down()

    async def test_large_ones_have_messages_of_their_own(self, both: Pair) -> None:
        code = "for n in range(40): yield 'x' * (100 if n % 2 else 30_000)"
        one = await consumer(both, code, 100, max_chunk_bytes=100_000)
        assert await one.end() == ("cancel", "normal")
        assert [len(item) for item in one.items] == [30_000, 100] * 20
        assert max(one.chunks) <= 8
        two = await consumer(both, code, 100, max_chunk_bytes=1)
        assert await two.end() == ("cancel", "normal")
        assert two.chunks == [1] * 40

    async def test_for_a_process_of_the_same_node(self, both: Pair) -> None:
        pid = await stream(both, "yield 1; yield 2")
        one = Consumer(both.node, pid).subscribe().ask(5)
        assert await one.end() == ("cancel", "normal")
        assert one.items == [1, 2]

    async def test_to_an_alias(self, both: Pair) -> None:
        one = Consumer(both.peer, await stream(both, "yield 1"))
        one.subscribe([(A("alias"), True)]).ask(1)
        # The tag is none of an alias there, so that all is dropped but the end.
        assert await one.ask(1).end() == ("down", "normal")
        assert one.items == []


class TestSeveralConsumers:
    async def test_share_the_items(self, both: Pair) -> None:
        pid = await stream(both, "yield from range(100)")
        consumers = [Consumer(both.peer, pid).subscribe() for _ in range(3)]
        for each in consumers:
            each.ask(20)
        for each in consumers:
            await each.take(20)
        for each in consumers:
            each.ask(100)
        for each in consumers:
            assert await each.end() == ("cancel", "normal")
        assert sorted(chain.from_iterable(each.items for each in consumers)) == list(range(100))

    async def test_all_get_all_of_a_broadcast(self, both: Pair) -> None:
        pid = await stream(both, "yield from range(50)", broadcast=True)
        one, two = (Consumer(both.peer, pid).subscribe() for _ in range(2))
        one.ask(100)
        two.ask(10)
        await one.take(10)
        await two.take(10)
        two.ask(90)
        for each in (one, two):
            assert await each.end() == ("cancel", "normal")
            assert each.items == list(range(50))

    async def test_what_one_has_not_taken_is_for_others(self, both: Pair) -> None:
        pid = await stream(both, COUNT)
        one, two = (Consumer(both.peer, pid).subscribe() for _ in range(2))
        await one.ask(5).take(5)
        two.ask(1)
        one.process.exit(A("gone"))
        await two.take(1)
        two.ask(10)
        await two.take(11)
        assert two.items == list(range(5, 16))
        two.process.exit()

    async def test_who_takes_items(self, both: Pair) -> None:
        """As is looked at where the generator blocks the event loop."""
        one = await consumer(both, COUNT, 1)
        await one.take(1)
        [stream] = both.server._streams._all
        [(line, who)] = stream._request.takers
        assert line is both.node.remote(both.peer.name).connection
        assert (who.pid, who.ref) == (one.process.pid, one.tag.external)
        here = Consumer(both.node, one.producer).subscribe().ask(1)
        await here.take(1)
        assert stream._request.takers == []
        here.process.exit()
        one.process.exit()

    async def test_the_same_twice(self, both: Pair) -> None:
        one = await consumer(both, COUNT)
        one.subscribe()
        assert await one.next() == ("cancel", "duplicated_subscription")
        stranger = Consumer(both.peer, one.producer).ask(1)
        assert await stranger.next() == ("cancel", "unknown_subscription")
        stranger.subscribe([(A("selector"), A("f"))])
        assert await stranger.next() == ("cancel", "selector_is_not_supported")
        one.process.exit()

    async def test_in_place_of_an_old_one(self, both: Pair) -> None:
        one = await consumer(both, COUNT, 2)
        await one.take(2)
        two = Consumer(both.peer, one.producer)
        two.subscribe(old=(one.process.pid, one.tag)).ask(2)
        assert await one.next() == ("cancel", "resubscribed")
        assert await two.take(2) == [2, 3]
        two.process.exit()

    async def test_there_is_a_bound(self, both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "MAX_CONSUMERS", 1)
        one = await consumer(both, COUNT, 1)
        await one.take(1)
        two = Consumer(both.peer, one.producer).subscribe()
        assert await two.next() == ("cancel", "system_limit")
        one.process.exit()


class TestTheEnd:
    @pytest.mark.parametrize("executor", ["loop", "thread"])
    @pytest.mark.parametrize("how", ["cancel", "exit", "stop", "kill"])
    @pytest.mark.parametrize("waits", [False, True])
    async def test_closes_the_generator(
        self, both: Pair, how: str, executor: str, waits: bool
    ) -> None:
        await both.call("init", "closed = []", {})
        pause = "await asyncio.Event().wait()" if waits and executor == "loop" else "yield 2"
        code = (
            f"import asyncio\ntry:\n  yield 1\n  {pause}\n  yield 3\nfinally:\n  closed.append(1)"
        )
        one = await consumer(both, code, 2 if waits else 1, executor=A(executor))
        while not one.items:
            await one.next()
        if how == "cancel":
            one.say((A("cancel"), A("normal")))
        elif how == "exit":
            one.process.exit(A("boom"))
        elif how == "kill":
            one.process.exit_signal(one.producer, A("kill"))
        else:
            await both.peer.call(one.producer, A("x"), timeout=5)
            one.process.send(
                one.producer,
                (A("system"), (one.process.pid, A("t")), (A("terminate"), A("normal"))),
            )
        await until(lambda: both.server.root["closed"] == [1])

    async def test_an_error_comes_behind_the_items(
        self, both: Pair, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        one = await consumer(both, "yield 1\nyield 2\nraise KeyError('x')", 10)
        end: Any = await one.end()
        assert one.items == [1, 2]
        assert end[0] == "cancel"
        assert end[1][0] == "error"
        assert end[1][1]["type"] == "KeyError"
        reason: Any = await one.down()
        assert reason[0] == "shutdown"
        assert reason[1] == end[1]
        told = [record.getMessage() for record in caplog.records]
        assert any("stream" in text and "KeyError" in text for text in told)

    async def test_an_item_that_has_no_term(self, both: Pair) -> None:
        one = await consumer(both, "yield 1\nyield 2\nyield {'a': object()}\nyield 3", 10)
        end: Any = await one.end()
        assert one.items == [1, 2]
        assert end[1][1]["reason"].endswith('(at ["a"])')
        await one.down()

    async def test_an_error_while_it_is_closed_is_logged(
        self, both: Pair, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = await consumer(both, "try:\n  yield 1\nfinally:\n  raise KeyError('late')", 1)
        await one.take(1)
        one.say((A("cancel"), A("normal")))
        await one.down()
        await until(lambda: "a stream failed when it was closed" in caplog.text)

    async def test_nobody_has_subscribed_in_time(self, both: Pair) -> None:
        watcher = Process(both.peer)
        pid = serde.to_typed(await stream(both, COUNT, subscribe_timeout=50))
        assert isinstance(pid, Pid)
        watcher.monitor(pid)
        message: Any = await watcher.receive(timeout=5)
        assert message[4] == ("shutdown", "subscribe_timeout")

    async def test_the_node_of_its_consumer_goes(self, both: Pair) -> None:
        one = await consumer(both, COUNT, 1)
        await one.take(1)
        both.peer.disconnect(both.node.name)
        await until(lambda: not both.server.info()[Atom("streams")])
        assert both.node.port is not None
        await both.peer.connect(both.node.name, address=("127.0.0.1", both.node.port))

    async def test_the_runtime_stops(self, both: Pair) -> None:
        one = await consumer(both, COUNT, 1)
        await one.take(1)
        both.server.exit(A("shutdown"))
        assert await one.end() == ("down", "shutdown")

    async def test_code_that_blocks_in_a_thread_is_interrupted(self, both: Pair) -> None:
        await both.call("init", "closed = []", {})
        code = "try:\n  yield 1\n  while True: pass\nfinally:\n  closed.append(1)"
        one = await consumer(both, code, 2, executor=A("thread"))
        await one.take(1)
        one.say((A("cancel"), A("normal")))
        await one.down()
        await until(lambda: both.server.root["closed"] == [1])

    async def test_iterables_without_an_end_to_be_told(self, both: Pair) -> None:
        one = await consumer(both, "import itertools\nreturn itertools.count()", 3)
        await one.take(3)
        one.say((A("cancel"), A("normal")))
        assert await one.end() == ("cancel", "normal")


class TestRequests:
    @pytest.mark.parametrize(
        ("request_", "told"),
        [
            (("stream", "yield 1"), "3 or 4 elements, not 2"),
            (("stream", None, {}), "a stream takes code that yields"),
            (("stream", "yield (", {}), "never closed"),
            (("stream", "yield 1", {}, [(A("nope"), 1)]), "unknown option nope"),
            (("stream", "yield 1", {}, {A("broadcast"): 1}), "broadcast is true or false, not 1"),
            (("stream", "yield 1", {}, {A("max_chunk_bytes"): 0}), "max_chunk_bytes takes bytes"),
            (("stream", "yield 1", {}, {A("subscribe_timeout"): "x"}), "takes milliseconds"),
            (("stream", "yield 1", {}, {A("executor"): A("x")}), "executor takes :loop or"),
        ],
        ids=range(8),
    )
    async def test_that_are_wrong(
        self, both: Pair, request_: tuple[object, ...], told: str
    ) -> None:
        status, error = await both.call(*request_)
        assert status == "error"
        assert told in error["reason"]

    async def test_a_cast_makes_none(self, both: Pair, caplog: pytest.LogCaptureFixture) -> None:
        both.peer.cast(("snex", both.node.name), (A("stream"), "yield 1", {}))
        await until(lambda: "stream is a call" in caplog.text)

    async def test_to_a_stream(self, both: Pair, caplog: pytest.LogCaptureFixture) -> None:
        one = await consumer(both, COUNT)
        answer: Any = await both.peer.call(one.producer, (A("eval"), "1", {}))
        assert answer[0] == "error"
        assert "a stream takes no calls" in answer[1]["reason"]
        for message in (
            A("x"),
            (A("$gen_cast"), (A("$demand"), A("forward"))),
            (A("$gen_producer"), 1, 2),
            (A("$gen_producer"), (one.process.pid, one.tag), (A("ask"), 0)),
            (A("$gen_producer"), (one.process.pid, one.tag), (A("what"),)),
            (A("$other"), (one.process.pid, one.tag), (A("ask"), 1)),
            (A("DOWN"), both.peer.make_ref(), A("process"), one.process.pid, A("x")),
            (A("system"), (one.process.pid, A("tag")), A("get_state")),
        ):
            one.process.send(one.producer, message)
        assert await one.process.receive(timeout=5) == (
            A("tag"),
            (A("error"), A("unknown_system_msg")),
        )
        await one.ask(1).take(1)
        one.process.exit()

    async def test_what_runs_is_told(self, both: Pair) -> None:
        one = await consumer(both, "import asyncio\nyield 1\nawait asyncio.Event().wait()", 2)
        await one.take(1)
        info = (await both.call("info"))[1]
        assert info["streams"] == 1
        [running] = info["running"]
        assert running["kind"] == "stream"
        one.process.exit()


@settings(max_examples=examples(0.4), deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=12),
    st.integers(0, 30),
    st.booleans(),
    st.sampled_from(["loop", "thread"]),
    st.randoms(use_true_random=False),
)
async def test_any_demand(
    asks: list[int], items: int, is_async: bool, executor: str, random_: random.Random
) -> None:
    """Several consumers ask for anything: nothing is given twice, lost, or more than asked for."""
    async with pair() as both:
        pause = "await asyncio.sleep(0)" if is_async else "pass"
        code = f"import asyncio\nfor n in range(items):\n  {pause}\n  yield n"
        pid = await stream(both, code, {"items": items}, executor=A(executor))
        consumers = [Consumer(both.peer, pid).subscribe() for _ in range(3)]
        for ask in asks:
            random_.choice(consumers).ask(ask)
        want = min(sum(asks), items)

        def got() -> int:
            return sum(len(each.items) for each in consumers)

        async def drain(each: Consumer) -> None:
            while True:
                what = await each.next()
                if not isinstance(what, list) and what[0] == "down":
                    return

        draining = [asyncio.create_task(drain(each)) for each in consumers]
        await until(lambda: got() == want)
        for each in consumers:
            if each.process.alive and got() < items:
                each.ask(items)
        await until(lambda: got() == items)
        consumers[0].ask(1)
        await asyncio.gather(*draining)
        assert sorted(chain.from_iterable(each.items for each in consumers)) == list(range(items))
