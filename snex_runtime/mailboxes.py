"""Mailboxes of evaluated code: processes that it hands out the pids of, and reads.

Source: "Messages to running code" in elixir/guides/streams.md.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from snex_node.cluster.remote import RemoteNode
from snex_node.errors import ProcessExitError
from snex_node.processes.process import NORMAL, BaseProcess, Match, Process
from snex_node.wire.etf import Decoder
from snex_runtime import interface, interrupts, lifetimes, serde
from snex_runtime.coroutines import Work
from snex_runtime.interface import NodeBackend
from snex_runtime.requests import Request

__all__ = ["Mailbox", "Owned", "mailbox", "node_backend", "running"]

T = TypeVar("T")
P = TypeVar("P", bound=BaseProcess)

_PATIENCE: Final = 0.05
"""Seconds for which a thread waits before it looks whether it is to go on waiting."""


def running() -> Request | None:
    """The request whose code asks, from any thread; None where it is that of none, or over."""
    work = interrupts.current.get()
    if isinstance(work, Work):
        return None if work.over else work.request
    found = interrupts.now.running
    on_loop = threading.current_thread() is threading.main_thread()
    return found if isinstance(found, Request) and on_loop else None


def node_backend() -> NodeBackend:
    """What evaluated code goes through here. Raises ``RuntimeError`` where no node is."""
    backend = interface.get_backend()
    if isinstance(backend, NodeBackend):
        return backend
    raise RuntimeError(
        "this process is no node, but a child of one that snex.serve connects: only snex.send, "
        "call and cast work here"
    )


class Owned:
    """Something on the node's event loop that evaluated code has, in whatever thread that is.

    It ends with the evaluation that made it, by `close`, or when nobody has it any more.
    """

    _process: BaseProcess | None = None
    """The process behind it. None: it was not made, what was given was wrong, say."""

    def __init__(self) -> None:
        self._backend: Final = node_backend()
        self._owner: Final = running()

    @property
    def _is_on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._backend.loop
        except RuntimeError:
            return self._backend.is_its_thread

    def _begin(self, make: Callable[[], P]) -> P:
        """The process that ``make`` makes on the event loop."""
        if self._is_on_loop:
            return self._own(make)
        return self._wait(_called(partial(self._own, make)))

    def _own(self, make: Callable[[], P]) -> P:
        self._process = made = make()
        lifetimes.hold(self._owner, self)
        return made

    async def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` on the node's loop, from whatever loop this is."""
        loop = self._backend.loop
        if asyncio.get_running_loop() is loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``, in a thread."""
        if self._is_on_loop:
            work.close()
            raise RuntimeError(
                "on the event loop this would wait for itself: await it (`async for`), or run the "
                "code with `executor: :thread`"
            )
        future = asyncio.run_coroutine_threadsafe(work, self._backend.loop)
        try:
            while not concurrent.futures.wait((future,), _PATIENCE).done:
                interrupts.checkpoint()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End it, from any thread; again: nothing."""
        try:
            self._backend.call_soon(self.end)
        except RuntimeError:  # the loop is closed
            pass

    def end(self) -> None:
        """End it, on the event loop; again: nothing."""
        lifetimes.drop(self._owner, self)
        if self._process is not None:
            self._process.exit(NORMAL)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self.close()


async def _called(function: Callable[[], T]) -> T:
    return function()


class _Inbox(Process):
    """The process behind a mailbox: messages are decoded as variables are."""

    __slots__ = ("_decoder",)

    def __init__(self, backend: NodeBackend) -> None:
        super().__init__(backend.node)
        self._decoder: Decoder = backend.decoder

    def external_received(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a message of another node."""
        self.message_received(self._decoder.decode(data, offset)[0])


class Mailbox(Owned):
    """A process of running code: others send to its ``pid``, the code reads what has come.

    It ends with the evaluation that made it. In code of the event loop it is awaited; in a thread
    it is read by a plain ``for``, and by `wait`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inbox: Final = self._begin(lambda: _Inbox(self._backend))
        self.pid: Final = serde.Term(self._inbox.pid.external)
        """The pid, to be handed out."""

    async def receive(self, match: Match | None = None, *, timeout: float | None = None) -> Any:
        """Take the first message, or the first that ``match`` is true of; others stay.

        ``timeout`` is in seconds. Raises ``TimeoutError`` when it passes, and
        `snex_node.errors.ProcessExitError` when the mailbox has ended.
        """
        return await self._await(self._inbox.receive(match, timeout=timeout))

    def wait(self, match: Match | None = None, *, timeout: float | None = None) -> Any:
        """The same in a thread, which waits."""
        return self._wait(self._inbox.receive(match, timeout=timeout))

    def __aiter__(self) -> Mailbox:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except ProcessExitError:
            raise StopAsyncIteration from None

    def __iter__(self) -> Mailbox:
        return self

    def __next__(self) -> Any:
        try:
            return self.wait()
        except ProcessExitError:
            raise StopIteration from None

    def __repr__(self) -> str:
        return f"<snex.Mailbox {self._inbox.pid}>"


def mailbox() -> Mailbox:
    """A process of the code that runs, to be sent to and read.

    Raises ``RuntimeError`` where no node is in this process.

    >>> async def serve() -> None:
    ...     async with mailbox() as box:
    ...         await send("manager", {"ready": box.pid})
    ...         async for message in box:
    ...             print(message)
    """
    return Mailbox()
