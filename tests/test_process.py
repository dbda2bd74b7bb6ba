"""Processes on one node: mailboxes, names, links, monitors and exit signals."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from snex_node import Atom, Node, NodeStartError, Process, ProcessExitError
from snex_node.processes.process import MAX_MAILBOX, BaseProcess
from tests.support.tied import links_of, monitors_of

NORMAL, KILL = Atom("normal"), Atom("kill")


async def turns(count: int = 3) -> None:
    """Let the event loop do what is ready: signals between processes here take one turn each."""
    for _ in range(count):
        await asyncio.sleep(0)


class Recorder(BaseProcess):
    """Notes everything that it is told."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.seen: list[object] = []

    def message_received(self, message: object) -> None:
        self.seen.append(message)

    def demonitored(self, ref: bytes) -> None:
        self.seen.append(("demonitored", ref))

    def exited(self, reason: object) -> None:
        self.seen.append(("exited", reason))


class TestMailbox:
    async def test_in_order(self, node: Node) -> None:
        process = Process(node)
        for n in range(3):
            process.message_received(n)
        assert len(process) == 3
        assert [await process.receive() for _ in range(3)] == [0, 1, 2]
        assert len(process) == 0
        assert bool(process)

    async def test_a_message_wakes_who_waits(self, node: Node) -> None:
        process = Process(node)
        waiting = asyncio.ensure_future(process.receive(timeout=5))
        await turns()
        process.send(process.pid, 1)
        assert await waiting == 1

    async def test_selective(self, node: Node) -> None:
        process = Process(node)
        for n in range(5):
            process.message_received(n)
        assert await process.receive(lambda n: n == 3) == 3
        assert await process.receive(lambda n: n == 1) == 1
        waiting = asyncio.ensure_future(process.receive(lambda n: n == 9))
        await turns()
        for n in (8, 9):
            process.message_received(n)
        assert await waiting == 9
        assert [await process.receive() for _ in range(4)] == [0, 2, 4, 8]

    async def test_who_came_first_is_served_first(self, node: Node) -> None:
        process = Process(node)
        first = asyncio.ensure_future(process.receive(lambda n: n == "x"))
        second = asyncio.ensure_future(process.receive())
        third = asyncio.ensure_future(process.receive())
        await turns()
        for message in ("a", "x", "b"):
            process.message_received(message)
        assert [await first, await second, await third] == ["x", "a", "b"]

    async def test_timeout(self, node: Node) -> None:
        process = Process(node)
        process.message_received(1)
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            await process.receive(lambda n: n == 2, timeout=0.01)
        assert await process.receive(timeout=0) == 1
        assert process._waiters == []

    async def test_a_cancelled_wait_takes_no_message(self, node: Node) -> None:
        process = Process(node)
        waiting = asyncio.ensure_future(process.receive())
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting])
        process.message_received(1)
        assert await process.receive() == 1

    async def test_cancelled_with_the_message_in_its_hands(self, node: Node) -> None:
        process = Process(node)
        waiting = asyncio.ensure_future(process.receive())
        await turns()
        process.message_received(1)
        process.message_received(2)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert [await process.receive() for _ in range(2)] == [1, 2]

    async def test_cancelled_while_another_one_waits_for_the_same(self, node: Node) -> None:
        process = Process(node)
        first = asyncio.ensure_future(process.receive())
        second = asyncio.ensure_future(process.receive())
        await turns()
        process.message_received(1)
        first.cancel()
        assert await asyncio.wait_for(second, 1) == 1

    async def test_cancelled_when_the_process_has_ended(self, node: Node) -> None:
        process = Process(node)
        waiting = asyncio.ensure_future(process.receive())
        await turns()
        process.exit()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    async def test_what_match_raises_is_for_who_wrote_it(self, node: Node) -> None:
        process = Process(node)

        def match(message: object) -> bool:
            return message[0] == "x"  # type: ignore[index, no-any-return]

        broken = asyncio.ensure_future(process.receive(match))
        other = asyncio.ensure_future(process.receive())
        await turns()
        process.message_received(1)
        assert await other == 1
        with pytest.raises(TypeError):
            await broken
        process.message_received(2)
        with pytest.raises(TypeError):
            await process.receive(match)
        assert await process.receive() == 2

    async def test_iterating(self, node: Node) -> None:
        process = Process(node)
        for n in range(3):
            process.send(process.pid, n)
        seen = []
        async for message in process:
            seen.append(message)
            if message == 2:
                process.exit()
        assert seen == [0, 1, 2]

    async def test_messages_outlive_the_process(self, node: Node) -> None:
        process = Process(node)
        process.message_received(1)
        process.exit(Atom("over"))
        assert await process.receive() == 1
        with pytest.raises(ProcessExitError, match=":over") as caught:
            await process.receive()
        assert caught.value.reason == "over"

    async def test_its_end_wakes_all_who_wait(self, node: Node) -> None:
        process = Process(node)
        waiting = [asyncio.ensure_future(process.receive()) for _ in range(3)]
        await turns()
        process.exit(Atom("over"))
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, ProcessExitError)

    async def test_a_full_one_ends(self, node: Node) -> None:
        process = Process(node, max_mailbox=2)
        for n in range(3):
            process.message_received(n)
        assert not process.alive
        assert process.exit_reason == "system_limit"
        assert Process(node)._max_mailbox == MAX_MAILBOX


class TestMonitors:
    async def test_down(self, node: Node) -> None:
        watcher, watched = Process(node), Process(node, name="watched")
        refs = [
            watcher.monitor(target) for target in (watched.pid, "watched", ("watched", node.name))
        ]
        watched.exit((Atom("because"), object))
        downs = [await watcher.receive(timeout=1) for _ in refs]
        targets = (watched.pid, "watched", ("watched", node.name))
        reason = (Atom("because"), object)  # within a node reasons stay Python objects
        assert downs == [
            ("DOWN", ref, "process", target, reason) for ref, target in zip(refs, targets)
        ]
        assert not monitors_of(watcher)

    @pytest.mark.parametrize("target", ["nobody", ("nobody", "py@127.0.0.1")])
    async def test_who_is_not_there(self, node: Node, target: str | tuple[str, str]) -> None:
        watcher = Process(node)
        ref = watcher.monitor(target)
        assert len(watcher) == 0  # never inside of the call
        down = await watcher.receive(timeout=1)
        assert down == ("DOWN", ref, "process", target, "noproc")

    async def test_demonitor(self, node: Node) -> None:
        watcher, watched = Process(node), Recorder(node)
        ref = watcher.monitor(watched.pid)
        watcher.demonitor(ref)
        watcher.demonitor(ref)
        watcher.demonitor(node.make_ref())
        watched.exit()
        await turns()
        assert len(watcher) == 0
        assert watched.seen == [("demonitored", ref.external), ("exited", "normal")]

    async def test_demonitor_who_is_gone(self, node: Node) -> None:
        watcher = Process(node)
        watched = Process(node)
        ref = watcher.monitor(watched.pid)
        watched.exit()
        watcher.demonitor(ref)  # before the DOWN has been delivered: it never is
        await turns()
        assert len(watcher) == 0

    async def test_the_watcher_ends(self, node: Node) -> None:
        watcher, watched = Process(node), Recorder(node)
        ref = watcher.monitor(watched.pid)
        watcher.monitor("nobody")
        watcher.exit()
        await turns()
        assert watched.seen == [("demonitored", ref.external)]
        watched.exit()

    async def test_both_end(self, node: Node) -> None:
        watcher, watched = Recorder(node), Recorder(node)
        watcher.monitor(watched.pid)
        watched.exit()
        watcher.exit()
        await turns()
        assert watcher.seen == [("exited", "normal")]
        assert watched.seen == [("exited", "normal")]


class TestLinks:
    async def test_the_end_of_one_ends_the_other(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.link(two.pid)
        one.link(two.pid)
        two.link(one.pid)
        two.exit(Atom("boom"))
        assert one.alive  # not before the next turn
        await turns()
        assert one.exit_reason == "boom"

    async def test_normal_ends_nobody(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.link(two.pid)
        two.exit()
        await turns()
        assert one.alive
        assert not links_of(one)

    async def test_trapped(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.trap_exit = True
        one.link(two.pid)
        two.exit()
        assert await one.receive(timeout=1) == ("EXIT", two.pid, "normal")

    async def test_kill_as_the_reason_of_a_link_is_no_kill(self, node: Node) -> None:
        one, two, three = Process(node), Process(node), Process(node)
        one.trap_exit = True
        one.link(two.pid)
        two.link(three.pid)
        three.exit(KILL)
        assert await one.receive(timeout=1) == ("EXIT", two.pid, "kill")

    async def test_unlink(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.unlink(two.pid)
        one.link(two.pid)
        two.unlink(one.pid)
        two.exit(Atom("boom"))
        await turns()
        assert one.alive
        one.link(two.pid)
        one.unlink(two.pid)  # before the noproc has come
        await turns()
        assert one.alive

    async def test_unlink_after_the_end(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.link(two.pid)
        two.exit(Atom("boom"))
        one.unlink(two.pid)
        await turns()
        assert one.alive

    async def test_to_itself(self, node: Node) -> None:
        one = Process(node)
        one.link(one.pid)
        one.exit(Atom("boom"))
        await turns()
        assert one.exit_reason == "boom"

    async def test_to_the_dead(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        two.exit()
        one.link(two.pid)
        assert one.alive
        await turns()
        assert one.exit_reason == "noproc"

    async def test_a_long_chain(self, node: Node) -> None:
        """Each end is a turn of its own: 10,000 of them are no recursion."""
        chain = [Process(node) for _ in range(10_000)]
        for one, two in itertools.pairwise(chain):
            one.link(two.pid)
        chain[-1].exit(Atom("boom"))
        await turns(len(chain) + 3)
        assert not any(process.alive for process in chain)


class TestExitSignals:
    async def test_they_end(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.exit_signal(two.pid, Atom("boom"))
        await turns()
        assert two.exit_reason == "boom"

    async def test_normal(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        one.exit_signal(two.pid, NORMAL)
        await turns()
        assert two.alive
        two.exit_signal(two.pid, NORMAL)  # to itself it ends the process, as in Erlang
        await turns()
        assert two.exit_reason == "normal"

    async def test_kill(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        two.trap_exit = True
        one.exit_signal(two.pid, "kill")  # text is not the atom
        assert await two.receive(timeout=1) == ("EXIT", one.pid, "kill")
        one.exit_signal(two.pid, KILL)
        await turns()
        assert two.exit_reason == "killed"

    async def test_to_the_dead(self, node: Node) -> None:
        one, two = Process(node), Process(node)
        two.trap_exit = True
        one.exit_signal(two.pid, Atom("boom"))
        two.exit()
        one.exit_signal(two.pid, Atom("boom"))
        await turns()
        assert len(two) == 0
        assert two.exit_reason == "normal"

    async def test_from_the_node(self, node: Node) -> None:
        one = Process(node)
        node.exit_signal(one.pid, Atom("boom"))
        await turns()
        assert one.exit_reason == "boom"


class TestTheEnd:
    async def test_once(self, node: Node) -> None:
        process = Recorder(node)
        assert process.alive
        assert process.exit_reason is None
        process.exit(Atom("one"))
        process.exit(Atom("two"))
        assert process.exit_reason == "one"
        assert process.seen == [("exited", "one")]
        assert node.find(process.pid) is None

    async def test_messages_come_before_it(self, node: Node) -> None:
        """Signals of one process to another arrive in the order in which they were sent."""
        sender, receiver = Process(node), Process(node)
        receiver.trap_exit = True
        receiver.link(sender.pid)
        receiver.monitor(sender.pid)
        sender.send(receiver.pid, 1)
        sender.exit_signal(receiver.pid, Atom("two"))
        sender.exit(Atom("three"))
        seen = [await receiver.receive(timeout=1) for _ in range(4)]
        assert seen[:2] == [1, ("EXIT", sender.pid, "two")]
        assert {seen[2][0], seen[3][0]} == {"EXIT", "DOWN"}  # type: ignore[index]

    async def test_nothing_comes_after_it(self, node: Node) -> None:
        process = Recorder(node)
        node.send(process.pid, 1)
        process.exit()
        node.send(process.pid, 2)
        await turns()
        assert process.seen == [("exited", "normal")]

    async def test_defaults_do_nothing(self, node: Node) -> None:
        process = BaseProcess(node)
        process.message_received(1)
        process.demonitored(b"")
        process.exit()

    async def test_with_its_node(self) -> None:
        async with Node("py@127.0.0.1", cookie="x", epmd="none", listen=None) as node:
            process = Process(node)
        assert process.exit_reason == "shutdown"
        with pytest.raises(NodeStartError):
            Process(node)


class TestWrongTargets:
    @pytest.mark.parametrize("target", [None, 1, ("name",), ("name", 1), ["name", "node"]])
    async def test_of_monitors(self, node: Node, target: Any) -> None:
        process = Process(node)
        with pytest.raises(TypeError, match="expected a pid, a name registered here, or"):
            process.monitor(target)
        with pytest.raises(TypeError, match="expected a pid, a name registered here, or"):
            await node.call(target, 1)
        assert process.ties is None

    @pytest.mark.parametrize("target", [None, 1, "name", ("name", "node")])
    async def test_of_links_and_exit_signals(self, node: Node, target: Any) -> None:
        process = Process(node)
        for act in (
            process.link,
            process.unlink,
            lambda to: process.exit_signal(to, NORMAL),
            lambda to: node.exit_signal(to, NORMAL),
        ):
            with pytest.raises(TypeError, match="expected a pid, not"):
                act(target)
        assert process.ties is None
