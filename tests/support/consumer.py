"""A consumer of GenStage's protocol, and a producer, as processes of a node of the tests."""

from __future__ import annotations

from typing import Any

from snex_node import Node, Process
from snex_node.processes.process import DOWN
from snex_node.wire.terms import Atom, Reference
from snex_runtime import serde

A = Atom


class Consumer:
    """Takes items of a stream; all that came is in ``items`` and, its sizes, in ``chunks``."""

    def __init__(self, node: Node, producer: Any) -> None:
        self.process = Process(node)
        typed: Any = serde.to_typed(producer)
        self.producer = typed
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
