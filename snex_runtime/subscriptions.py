"""What producers of the BEAM give, as something to iterate over.

A subscription is a process that speaks the consumer's part of GenStage's protocol: it asks for
items, and for no more than it has room for.

Source: "From Elixir to Python" in elixir/guides/streams.md; the protocol is that of gen_stage.ex.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from snex_node.cluster.remote import RemoteNode
from snex_node.processes.process import DOWN, NORMAL, BaseProcess
from snex_node.wire.describe import inspect, short, text_of, type_name
from snex_node.wire.etf import DecodeError
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime.interface import NodeBackend
from snex_runtime.mailboxes import Owned, node_backend
from snex_runtime.serde import to_typed

__all__ = ["MAX_DEMAND", "ProducerError", "Subscription", "subscribe"]

MAX_DEMAND: Final = 1_000_000
"""Items that may be under way at one time: more cannot be asked for, and who gives more fails."""

PRODUCER: Final = Atom("$gen_producer")
CONSUMER: Final = Atom("$gen_consumer")


class ProducerError(Exception):
    """A producer did not come to its end: it failed, was stopped, or its node has gone.

    ``reason`` is what it gave, converted by the usual table.
    """

    __module__ = "snex"  # where users find it, and tracebacks name it

    def __init__(self, text: str, reason: object = None) -> None:
        super().__init__(text)
        self.reason = reason


class _Consumer(BaseProcess):
    """The process behind a subscription."""

    __slots__ = (
        "_decoder",
        "_failure",
        "_handed",
        "_items",
        "_left",
        "_max",
        "_min",
        "_over",
        "_producer",
        "_ref",
        "_waiting",
    )

    def __init__(
        self, backend: NodeBackend, producer: Pid | tuple[str, str], most: int, least: int
    ) -> None:
        super().__init__(backend.node)
        self._decoder = backend.decoder
        self._producer = producer
        self._max, self._min = most, least
        self._items: deque[object] = deque()
        # What has been asked for and is not done with; of it, what was taken and may be in work.
        self._left = most
        self._handed = 0
        self._over = False
        self._failure: ProducerError | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._ref: Reference = self.monitor(producer)
        options = [(Atom("max_demand"), most), (Atom("min_demand"), least)]
        self._say((Atom("subscribe"), None, options))
        self._say((Atom("ask"), most))

    def _say(self, what: object) -> None:
        self.send(self._producer, (PRODUCER, (self.pid, self._ref), what))

    # --- messages -------------------------------------------------------------------------------

    def external_received(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a message of the producer; what cannot be decoded ends it."""
        try:
            message = self._decoder.decode(data, offset)[0]
        except DecodeError as error:
            self._refuse(f"what it gave cannot be converted: {error}")
        except Exception as error:  # of an object that the message asks for
            told = f"{type_name(type(error))}: {text_of(error)}"
            self._refuse(f"what it gave cannot be converted: {told}")
        else:
            self.message_received(message)

    def message_received(self, message: object) -> None:
        """Take a message, of the producer or of its monitor; others are dropped."""
        match message:
            case (Atom() as head, (_, tag), what) if head == CONSUMER:
                if to_typed(tag) == self._ref:
                    self._producer_says(what)
            case (Atom() as head, ref, _, _, reason) if head == DOWN and ref == self._ref:
                if reason == "normal":
                    self._finish()
                else:
                    self._fail(f"it has ended: {inspect(reason)}", reason)
            case _:
                pass

    def _producer_says(self, what: object) -> None:
        if self._over:  # nothing comes behind the end, or what failed would be missing there
            return
        if isinstance(what, list):
            self._items.extend(what)
            self._wake()
            if len(self._items) > MAX_DEMAND:
                self._refuse(f"more than {MAX_DEMAND} items wait, and it gives more than asked for")
            return
        match what:
            case (Atom() as head, reason) if head == "cancel":
                if reason == "normal" or reason == "shutdown":
                    self._finish()
                else:
                    self._fail(_told(reason), reason)

    def _refuse(self, told: str) -> None:
        """No more of that: the producer is told at once."""
        if not self._over:
            self._say((Atom("cancel"), NORMAL))
        self._fail(told, None)

    def _finish(self) -> None:
        self._over = True
        self.demonitor(self._ref)
        self._wake()

    def _fail(self, why: str, reason: object) -> None:
        if not self._over:
            self._failure = ProducerError(f"the producer {self._shown} failed: {why}", reason)
            self._finish()

    @property
    def _shown(self) -> str:
        return inspect(self._producer)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- items ----------------------------------------------------------------------------------

    async def take(self, most: int) -> list[object]:
        """At most so many items, and at least one; none at the end. Raises `ProducerError`.

        Who comes for more is done with those before: further ones are asked for.
        """
        self._left -= self._handed
        self._handed = 0
        if self._left <= self._min and not self._over:
            self._say((Atom("ask"), self._max - self._left))
            self._left = self._max
        while not self._items:
            if self._failure is not None:
                raise self._failure
            if self._over or not self.alive:
                return []
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        items = self._items
        taken = [items.popleft() for _ in range(min(most, len(items)))]
        self._handed += len(taken)
        return taken

    def exit(self, reason: object = NORMAL) -> None:
        """Nobody takes items any more: the producer is told before its monitor fires."""
        if not self._over:
            self._over = True
            self.demonitor(self._ref)
            self._say((Atom("cancel"), NORMAL))
        super().exit(reason)

    def exited(self, reason: object) -> None:
        """Wake who waits."""
        self._items.clear()
        self._wake()


def _told(reason: object) -> str:
    """What a producer that has failed says, in a sentence."""
    match reason:
        case (Atom() as head, dict() as error) if head == "error":
            fields = {str(name): value for name, value in error.items()}
            if "reason" in fields:
                kind = fields.get("type")
                text = fields["reason"]
                shown = text if isinstance(text, str) else inspect(text)
                return f"{kind}: {shown}" if kind else shown
    return inspect(reason)


class Subscription(Owned):
    """Items of a producer, as long as it has some: for ``async for``, or ``for`` in a thread.

    Leaving the loop tells the producer; so does the end of the evaluation.
    """

    def __init__(self, producer: Pid | tuple[str, str], most: int, least: int) -> None:
        super().__init__()
        self._taken: deque[object] = deque()
        self._consumer: Final = self._begin(lambda: _Consumer(self._backend, producer, most, least))
        self._most = most

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Any:
        taken = await self._await(self._consumer.take(1))
        if not taken:
            self.close()
            raise StopAsyncIteration
        return taken[0]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._taken:
            # What is there at once: each time costs a turn of the event loop.
            self._taken.extend(self._wait(self._consumer.take(max(1, self._most // 2))))
        if not self._taken:
            self.close()
            raise StopIteration
        return self._taken.popleft()


def subscribe(
    source: object, *, max_demand: int = 100, min_demand: int | None = None
) -> Subscription:
    """Subscribe to a producer of the BEAM: what it gives can be iterated over.

    ``source`` is what ``Snex.source/1`` gives, or any GenStage producer: a pid, a registered name,
    or ``(name, node)``. At most ``max_demand`` items are under way; when ``min_demand`` of these
    are left (by default half), further ones are asked for. Raises ``TypeError`` and ``ValueError``
    for other arguments, ``LookupError`` for a name when it is not clear of which node, and
    ``RuntimeError`` where no node is in this process; while it is iterated over, `ProducerError`
    when the producer fails, ends otherwise than normally, or is lost.

    >>> async def total(source: object) -> int:
    ...     return sum([item async for item in subscribe(source)])
    """
    if type(max_demand) is not int or not 0 < max_demand <= MAX_DEMAND:
        raise ValueError(f"max_demand is 1 to {MAX_DEMAND}, not {short(max_demand)}")
    least = max_demand // 2 if min_demand is None else min_demand
    if type(least) is not int or not 0 <= least < max_demand:
        raise ValueError(f"min_demand is 0 to {max_demand - 1}, not {short(min_demand)}")
    return Subscription(_producer(source), max_demand, least)


def _producer(source: object) -> Pid | tuple[str, str]:
    destination = node_backend().destination(source)
    if isinstance(destination, Reference):
        raise TypeError(f"cannot subscribe to {short(source)}: it takes a pid, or a name")
    if isinstance(destination, tuple):  # before anything is tied to it
        return Atom(destination[0]), Atom(destination[1])
    return destination
