"""A consumer of GenStage's protocol, and a producer, as processes of a node of the tests."""

from __future__ import annotations

from typing import Any

from snex_node import Node, Process
from snex_node.processes.process import DOWN
from snex_node.wire.terms import Atom, Reference
from snex_runtime import serde

A = Atom


def typed(value: object) -> Any:
    """A pid or a reference that came as an opaque term."""
    return serde.to_typed(value)


class Consumer:
    """Takes items of a stream; all that came is in ``items`` and, its sizes, in ``chunks``."""

    def __init__(self, node: Node, producer: Any) -> None:
        self.process = Process(node)
        self.producer = typed(producer)
        self.tag: Reference = self.process.monitor(self.producer)
        self.items: list[Any] = []
        self.chunks: list[int] = []
        self.asked = 0

    def say(self, what: object) -> None:
        message = (A("$gen_producer"), (self.process.pid, self.tag), what)
        self.process.send(self.producer, message)

    def subscribe(self, options: object = None, old: object = None) -> Consumer:
        self.say((A("subscribe"), old, options or []))
        return self

    def ask(self, demand: int) -> Consumer:
        self.asked += demand
        self.say((A("ask"), demand))
        return self

    async def next(self, timeout: float = 10.0) -> Any:
        """The next message: items are noted; of a cancel, or an end, what it says is returned."""
        message: Any = await self.process.receive(timeout=timeout)
        if message[0] == DOWN:
            return A("down"), message[4]
        assert message[0] == "$gen_consumer"
        assert serde.to_typed(message[1][1]) == self.tag
        what = message[2]
        if isinstance(what, list):
            self.items += what
            self.chunks.append(len(what))
            assert len(self.items) <= self.asked
            return what
        return what

    async def take(self, count: int) -> list[Any]:
        """So many items, of which no further ones come."""
        while len(self.items) < count:
            what = await self.next()
            assert isinstance(what, list), what
        assert len(self.items) == count
        return self.items

    async def end(self) -> Any:
        """What comes behind the items: a cancel."""
        while True:
            what = await self.next()
            if not isinstance(what, list):
                return what

    async def down(self) -> Any:
        """Why the stream has ended."""
        while True:
            what = await self.next()
            if not isinstance(what, list) and what[0] == "down":
                return what[1]


class Producer:
    """A producer, as a process of the peer: it gives numbers, or what it is told to.

    ``demand`` is what it has been asked for and has not given, ``asked`` each ask.
    """

    def __init__(self, node: Node, name: str | None = None) -> None:
        self.process = Process(node)
        if name is not None:
            self.process.register(name)
        self.consumer: Any = None
        self.options: Any = None
        self.demand = 0
        self.asked: list[int] = []
        self.given = 0

    async def next(self, timeout: float = 10.0) -> Any:
        """The next message of the consumer: asks are noted."""
        message: Any = await self.process.receive(timeout=timeout)
        if message[0] == "DOWN":
            return ("down", message[4])
        assert message[0] == "$gen_producer", message
        sender, what = message[1], message[2]
        if what[0] == "subscribe":
            self.consumer = tuple(map(typed, sender))
            self.process.monitor(self.consumer[0])
            self.options = {str(name): value for name, value in what[2]}
            assert what[1] is None
        else:
            assert tuple(map(typed, sender)) == self.consumer
        if what[0] == "ask":
            self.asked.append(what[1])
            self.demand += what[1]
        return what

    async def subscribed(self) -> Producer:
        assert (await self.next())[0] == "subscribe"
        assert (await self.next())[0] == "ask"
        return self

    def say(self, what: object) -> None:
        pid, tag = self.consumer
        self.process.send(pid, (A("$gen_consumer"), (self.process.pid, tag), what))

    def give(self, items: list[Any]) -> None:
        self.given += len(items)
        self.demand -= len(items)
        assert self.demand >= 0
        self.say(items)

    def end(self, reason: object = A("normal")) -> None:
        self.say((A("cancel"), reason))

    async def serve(self, items: int, most: int = 10) -> None:
        """Give the numbers below ``items`` as they are asked for, and end."""
        await self.subscribed()
        while self.given < items:
            count = min(self.demand, items - self.given, most)
            if count:
                self.give(list(range(self.given, self.given + count)))
            else:
                assert (await self.next())[0] == "ask"
        self.end()

    async def cancelled(self) -> Any:
        """Why the consumer wants no more."""
        while True:
            what = await self.next()
            if what[0] not in ("subscribe", "ask"):
                return what
