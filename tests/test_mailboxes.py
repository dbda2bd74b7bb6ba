"""Mailboxes of evaluated code: who reads them and from where, and what ends them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

import snex
from snex_node import Process
from snex_node.wire.terms import Atom, Pid
from snex_runtime import interface, lifetimes
from snex_runtime.mailboxes import Mailbox, running
from tests.support.consumer import Consumer, typed
from tests.support.pair import Pair, pair
from tests.support.waiting import until

A = Atom
THREAD = [(A("executor"), A("thread"))]
LOOP = [(A("executor"), A("loop"))]


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made
        await until(lambda: not lifetimes.holds)
        await until(lambda: len(asyncio.all_tasks()) == 1)


class Talk:
    """An evaluation that has told ``owner``, a process of the peer, the pid of its mailbox."""

    def __init__(self, both: Pair, code: str, options: Any, **variables: object) -> None:
        self.owner = Process(both.peer)
        variables["owner"] = self.owner.pid
        self.answer = asyncio.create_task(both.call("eval", code, variables, options))
        self.box: Any = None

    async def begun(self) -> Talk:
        self.box = typed(await self.owner.receive(timeout=10))
        assert isinstance(self.box, Pid)
        self.owner.monitor(self.box)
        return self

    def send(self, *messages: object) -> None:
        for message in messages:
            self.owner.send(self.box, message)

    async def value(self) -> Any:
        answer = await self.answer
        assert answer[0] == "ok", answer
        await self.gone()
        return answer[1]

    async def gone(self) -> None:
        down: Any = await self.owner.receive(timeout=10)
        assert (down[0], down[4]) in (("DOWN", "normal"), ("DOWN", "noproc"))


async def talk(both: Pair, code: str, options: Any = LOOP, **variables: object) -> Talk:
    return await Talk(both, code, options, **variables).begun()


OPEN = "box = snex.mailbox()\nawait snex.send(owner, box.pid)\n"
IN_THREAD = (
    "import asyncio\nbox = snex.mailbox()\n"
    "def tell():\n  async def it(): await snex.send(owner, box.pid)\n  asyncio.run(it())\ntell()\n"
)


class TestReading:
    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    async def test_what_has_come_and_what_comes(self, both: Pair, options: Any) -> None:
        code = (
            f"{OPEN}got = []\nasync for message in box:\n  got.append(message)\n"
            "  if message == 'last': break\nreturn got"
        )
        it = await talk(both, code, options)
        it.send(1, {"a": A("b")}, "last", "beyond")
        assert await it.value() == [1, {"a": "b"}, "last"]

    async def test_by_a_plain_for_in_a_thread(self, both: Pair) -> None:
        code = (
            f"{IN_THREAD}got = []\nfor message in box:\n  got.append(message)\n"
            "  if message == 'last': box.close()\nreturn got"
        )
        it = await talk(both, code, THREAD)
        it.send(*range(100), "last")
        assert await it.value() == [*range(100), "last"]

    async def test_by_a_plain_for_in_a_thread_of_its_own(self, both: Pair) -> None:
        code = (
            f"{OPEN}import asyncio\ndef read():\n  return [box.wait() for _ in range(3)]\n"
            "return await asyncio.to_thread(read)"
        )
        it = await talk(both, code)
        it.send(1, 2, 3)
        assert await it.value() == [1, 2, 3]

    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    async def test_selectively(self, both: Pair, options: Any) -> None:
        code = (
            f"{OPEN}two = await box.receive(lambda it: it == 2)\n"
            "one = await box.receive(timeout=5)\n"
            "try:\n  await box.receive(lambda it: it == 9, timeout=0.01)\n"
            "except TimeoutError as error: told = str(error)\n"
            "return two, one, told, await box.receive()"
        )
        it = await talk(both, code, options)
        it.send(1, 2, 3)
        two, one, told, three = await it.value()
        assert (two, one, three) == (2, 1, 3)
        assert "no message that was waited for" in told

    async def test_with_a_timeout_in_a_thread(self, both: Pair) -> None:
        code = (
            f"{IN_THREAD}try:\n  box.wait(lambda it: it == 3, timeout=0.01)\n"
            "except TimeoutError: return box.wait(lambda it: it > 1, timeout=5), box.wait()"
        )
        it = await talk(both, code, THREAD)
        it.send(1, 2)
        assert await it.value() == (2, 1)

    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    async def test_a_cancelled_wait_takes_nothing(self, both: Pair, options: Any) -> None:
        code = (
            f"import asyncio\n{OPEN}try:\n  await asyncio.wait_for(box.receive(), 0.02)\n"
            "except asyncio.TimeoutError: pass\n"
            "await snex.send(owner, 'now')\nreturn await box.receive(), await box.receive()"
        )
        it = await talk(both, code, options)
        assert await it.owner.receive(timeout=10) == "now"
        it.send(1, 2)
        assert await it.value() == (1, 2)

    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    async def test_of_one_that_has_ended(self, both: Pair, options: Any) -> None:
        code = (
            f"{OPEN}async with box: pass\n"
            "async for message in box: return message\n"
            "try: await box.receive()\n"
            "except Exception as error: return type(error).__name__"
        )
        it = await talk(both, code, options)
        assert await it.value() == "ProcessExitError"

    async def test_what_cannot_be_decoded_hurts_nobody(self, both: Pair) -> None:
        it = await talk(both, f"{OPEN}return await box.receive()")
        it.send(b"\xff", 1)
        assert await it.value() == 1
        assert await both.run("return 2") == 2

    async def test_on_the_loop_a_thread_does_not_wait(self, both: Pair) -> None:
        for code in ("return box.wait()", "return list(box)", "import asyncio\nlist(box)"):
            status, error = await both.call("eval", f"box = snex.mailbox()\n{code}", {})
            assert status == "error"
            assert "would wait for itself" in error["reason"]


class TestTheEnd:
    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    @pytest.mark.parametrize("form", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_comes_with_the_evaluation(self, both: Pair, options: Any, form: str) -> None:
        _, env = await both.call("make_env", {})
        code = f"{form}kept = snex.mailbox()\nreturn kept.pid, repr(kept)"
        _, (pid, shown) = await both.call("eval", code, {}, options, to=typed(env))
        watcher = Process(both.peer)
        watcher.monitor(typed(pid))
        down: Any = await watcher.receive(timeout=10)
        assert down[4] in ("normal", "noproc")
        assert shown.startswith("<snex.Mailbox ")

    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    async def test_comes_with_an_error(self, both: Pair, options: Any) -> None:
        it = await talk(both, f"{OPEN}raise KeyError(await box.receive())", options)
        it.send("x")
        assert (await it.answer)[1]["type"] == "KeyError"
        await it.gone()

    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    async def test_comes_with_the_time(self, both: Pair, options: Any) -> None:
        limit = [*options, (A("timeout"), 100)]
        it = await talk(both, f"{OPEN}return await box.receive()", limit)
        assert (await it.answer)[1]["reason"] == "timeout"
        await it.gone()

    async def test_comes_with_the_time_of_a_thread_that_waits(self, both: Pair) -> None:
        it = await talk(both, f"{IN_THREAD}return box.wait()", [*THREAD, (A("timeout"), 300)])
        assert (await it.answer)[1]["reason"] == "timeout"
        await it.gone()
        assert await both.call("eval", "return 1", {}, THREAD) == ("ok", 1)

    @pytest.mark.parametrize("options", [LOOP, THREAD], ids=["loop", "thread"])
    @pytest.mark.parametrize("form", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_comes_with_the_stream(self, both: Pair, options: Any, form: str) -> None:
        code = f"{form}box = snex.mailbox()\nyield box.pid\nyield 2\nyield 3"
        _, pid = await both.call("stream", code, {}, options)
        one = Consumer(both.peer, pid).subscribe().ask(1)
        [box] = await one.take(1)
        watcher = Process(both.peer)
        watcher.monitor(typed(box))
        await one.ask(1).take(2)
        assert len(watcher) == 0
        one.say((A("cancel"), A("normal")))
        down: Any = await watcher.receive(timeout=10)
        assert down[4] == "normal"
        await until(lambda: not both.server.info()[A("streams")])

    async def test_a_stream_yields_what_it_is_sent(self, both: Pair) -> None:
        code = "box = snex.mailbox()\nyield box.pid\nasync for message in box: yield message * 2"
        _, pid = await both.call("stream", code, {})
        one = Consumer(both.peer, pid).subscribe().ask(3)
        [box] = await one.take(1)
        one.process.send(typed(box), 1)
        one.process.send(typed(box), 2)
        assert (await one.take(3))[1:] == [2, 4]
        one.process.exit()
        await until(lambda: not both.server.info()[A("streams")])

    async def test_is_not_there_while_a_task_of_it_goes_on(self, both: Pair) -> None:
        code = (
            f"import asyncio\n{OPEN}async def read(): return await box.receive()\n"
            "global task\ntask = asyncio.create_task(read())\nawait asyncio.sleep(0)\n"
            "return await task"
        )
        it = await talk(both, code)
        it.send(5)
        assert await it.value() == 5


class TestOutside:
    """Of any evaluation: in code of a library, say."""

    async def test_it_is_there_until_it_is_closed(self, both: Pair) -> None:
        assert running() is None
        with snex.mailbox() as box:
            process = Process(both.peer)
            process.send(typed(box.pid), "x")
            assert await box.receive(timeout=5) == "x"
        await until(lambda: not box._inbox.alive)
        box.close()
        box.end()

    async def test_or_dropped(self, both: Pair) -> None:
        box = snex.mailbox()
        process = box._inbox
        del box
        gc.collect()
        await until(lambda: not process.alive)

    async def test_from_a_thread(self, both: Pair) -> None:
        def read() -> object:
            with snex.mailbox() as box:
                made.append(box)
                return box.wait(timeout=5)

        made: list[Mailbox] = []
        reading = asyncio.create_task(asyncio.to_thread(read))
        await until(lambda: made)
        Process(both.peer).send(typed(made[0].pid), 7)
        assert await reading == 7
        await until(lambda: not made[0]._inbox.alive)

    async def test_where_the_loop_is_closed_it_is_gone_anyway(
        self, both: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(*_: object) -> None:
            raise RuntimeError("the event loop is closed")

        box = snex.mailbox()
        with monkeypatch.context() as patch:
            patch.setattr(box._backend, "call_soon", closed)
            box.close()
        box.end()
        assert not box._inbox.alive

    async def test_where_no_node_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="not connected to a BEAM"):
            snex.mailbox()
        monkeypatch.setattr(interface, "get_backend", object)
        with pytest.raises(RuntimeError, match="this process is no node"):
            snex.mailbox()
        gc.collect()
