"""Generic servers in Python, called from anywhere in the cluster with ``GenServer.call/3``.

Source: OTP's ``gen_server``. One message is handled at a time, in the order of arrival; a handler
may be a coroutine, and the next message then waits until it is done.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from snex_node.errors import error_reason, error_stack
from snex_node.etf import EncodeError
from snex_node.gen import From, GenProcess
from snex_node.process import MAX_MAILBOX, NORMAL
from snex_node.terms import Atom

if TYPE_CHECKING:
    from snex_node.node import Node

_log = logging.getLogger(__name__)


class _NoReply:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_REPLY"


NO_REPLY: Final = _NoReply()
"""Returned by ``handle_call`` when the answer comes later, through `GenServer.reply`."""


class Stop(Exception):
    """Raised in a handler: the server ends with ``reason``; a call is answered with ``reply``."""

    def __init__(self, reason: object = NORMAL, reply: object = NO_REPLY) -> None:
        super().__init__(f"stop: {reason!r}")
        self.reason = reason
        self.reply = reply


class _Job(NamedTuple):
    """A message that waits: its handler, what the handler is called with, and who is answered."""

    handler: Callable[..., object]
    arguments: tuple[object, ...]
    caller: From | None = None


class GenServer(GenProcess):
    """Base of servers; override the handlers, each a plain or a coroutine function.

    What a handler raises ends the server, as in OTP: callers get an exit with
    ``{{python_error, Type, Text}, Stack}``, and the error is logged.

    >>> class Counter(GenServer):
    ...     count = 0
    ...
    ...     def handle_call(self, request: object, caller: From) -> object:
    ...         self.count += 1
    ...         return self.count
    >>> async def main(node: Node) -> None:
    ...     Counter(node, name="counter")
    """

    def __init__(self, node: Node, *, name: str | None = None) -> None:
        super().__init__(node)
        self._jobs: deque[_Job] = deque()
        # The handler that is awaited, or `terminate`.
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        if name is not None:
            self.register(name)

    # --- to override ----------------------------------------------------------------------------

    def handle_call(self, request: object, caller: From) -> object:
        """Answer a call with what this returns, or return `NO_REPLY` and `reply` later."""
        raise NotImplementedError(f"{type(self).__name__} takes no calls: {request!r}")

    def handle_cast(self, request: object) -> object:
        """Take a cast; what this returns is ignored."""
        raise NotImplementedError(f"{type(self).__name__} takes no casts: {request!r}")

    def handle_info(self, message: object) -> object:
        """Take any other message; what this returns is ignored. The default logs it."""
        _log.warning("%s got an unexpected message: %.200r", self, message)
        return None

    def terminate(self, reason: object) -> object:
        """Clean up: the server is about to end. Not called when it is killed."""
        return None

    # --- for handlers ---------------------------------------------------------------------------

    def reply(self, caller: From, reply: object) -> None:
        """Answer a call. Raises `EncodeError`."""
        self.node.reply(caller, reply, sender=self.pid)

    # --- how it works ---------------------------------------------------------------------------

    def call_received(self, caller: From, request: object) -> None:
        """Handle a call, now or after what came before."""
        self._enqueue(_Job(self.handle_call, (request, caller), caller))

    def cast_received(self, request: object) -> None:
        """Handle a cast, now or after what came before."""
        self._enqueue(_Job(self.handle_cast, (request,)))

    def info_received(self, message: object) -> None:
        """Handle any other message, now or after what came before."""
        self._enqueue(_Job(self.handle_info, (message,)))

    def stop_requested(self, reason: object) -> None:
        """End after what came before."""
        self._enqueue(_Job(self._stop, (reason,)))

    def exited(self, reason: object) -> None:
        """Drop what waits; cancel the handler that runs."""
        self._jobs.clear()
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _stop(self, reason: object) -> object:
        raise Stop(reason)

    def _enqueue(self, job: _Job) -> None:
        if len(self._jobs) >= MAX_MAILBOX:
            self.exit(Atom("system_limit"))
            return
        self._jobs.append(job)
        if not self._busy:
            self._work()

    def _work(self) -> None:
        """Handle what waits until nothing does, or something has to be awaited."""
        self._busy = True
        try:
            while self._jobs and self._task is None and self.alive:
                self._handle(self._jobs.popleft())
        finally:
            self._busy = self._task is not None

    def _handle(self, job: _Job) -> None:
        try:
            result = job.handler(*job.arguments)
            if not inspect.isawaitable(result):
                self._answer(job, result)
                return
        except (Exception, asyncio.CancelledError) as error:
            self._failed(error, job)
            return
        if self.alive:
            self._task = asyncio.ensure_future(self._finish(result, job))
        elif inspect.iscoroutine(result):
            result.close()

    async def _finish(self, result: Awaitable[object], job: _Job) -> None:
        failure: BaseException | None = None
        try:
            self._answer(job, await result)
        except Exception as error:
            failure = error
        except asyncio.CancelledError as error:
            if not self.alive:
                raise  # `exited` did it
            failure = error
        self._task = None
        if failure is not None:
            self._failed(failure, job)
        if self._task is None:
            self._work()

    def _answer(self, job: _Job, result: object) -> None:
        if job.caller is not None and result is not NO_REPLY:
            self.reply(job.caller, result)

    def _failed(self, error: BaseException, job: _Job) -> None:
        if isinstance(error, Stop):
            try:
                self._answer(job, error.reply)
            except EncodeError as failure:
                self._failed(failure, job)
            else:
                self._terminate(error.reason)
            return
        _log.error("%s ends: a handler failed", self, exc_info=error)
        self._terminate((error_reason(error), error_stack(error)))

    def _terminate(self, reason: object) -> None:
        if not self.alive:
            return
        self._jobs.clear()
        try:
            result = self.terminate(reason)
        except Exception:
            _log.exception("%s: terminate failed", self)
            result = None
        if inspect.isawaitable(result):
            self._task = asyncio.ensure_future(self._terminate_later(result, reason))
        else:
            self.exit(reason)

    async def _terminate_later(self, result: Awaitable[object], reason: object) -> None:
        try:
            await result
        except Exception:
            _log.exception("%s: terminate failed", self)
        finally:
            self.exit(reason)


__all__ = ["NO_REPLY", "From", "GenServer", "Stop"]
