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
from functools import partial
from typing import Final, NamedTuple

from snex_node.errors import error_reason, error_stack
from snex_node.processes.genprocess import GenProcess
from snex_node.processes.host import Host
from snex_node.processes.process import MAX_MAILBOX, NORMAL
from snex_node.wire import describe
from snex_node.wire.etf import EncodeError
from snex_node.wire.gen import From
from snex_node.wire.terms import Atom

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
        super().__init__(f"stop: {describe.inspect(reason)}")
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
    >>> async def main(node: Host) -> None:
    ...     Counter(node, name="counter")
    """

    def __init__(self, node: Host, *, name: str | None = None) -> None:
        super().__init__(node)
        # With two underscores, so that subclasses may use such plain names for their own.
        self.__jobs: deque[_Job] = deque()
        # Of the handler that is awaited, or of `terminate`.
        self.__task: asyncio.Future[object] | None = None
        self.__busy = False
        if name is not None:
            self.register(name)

    # --- to override ----------------------------------------------------------------------------

    def handle_call(self, request: object, caller: From) -> object:
        """Answer a call with what this returns, or return `NO_REPLY` and `reply` later."""
        raise NotImplementedError(
            f"{type(self).__name__} takes no calls: {describe.inspect(request)}"
        )

    def handle_cast(self, request: object) -> object:
        """Take a cast; what this returns is ignored."""
        raise NotImplementedError(
            f"{type(self).__name__} takes no casts: {describe.inspect(request)}"
        )

    def handle_info(self, message: object) -> object:
        """Take any other message; what this returns is ignored. The default logs it."""
        _log.warning("%s got an unexpected message: %s", self, describe.inspect(message))
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
        self.__enqueue(_Job(self.handle_call, (request, caller), caller))

    def cast_received(self, request: object) -> None:
        """Handle a cast, now or after what came before."""
        self.__enqueue(_Job(self.handle_cast, (request,)))

    def info_received(self, message: object) -> None:
        """Handle any other message, now or after what came before."""
        self.__enqueue(_Job(self.handle_info, (message,)))

    def stop_requested(self, reason: object) -> None:
        """End after what came before."""
        self.__enqueue(_Job(self.__stop, (reason,)))

    def exited(self, reason: object) -> None:
        """Drop what waits; cancel the handler that runs."""
        self.__jobs.clear()
        task, self.__task = self.__task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def __stop(self, reason: object) -> object:
        raise Stop(reason)

    def __enqueue(self, job: _Job) -> None:
        if len(self.__jobs) >= MAX_MAILBOX:
            self.exit(Atom("system_limit"))
            return
        self.__jobs.append(job)
        if not self.__busy:
            self.__work()

    def __work(self) -> None:
        """Handle what waits until nothing does, or something has to be awaited."""
        self.__busy = True
        try:
            while self.__jobs and self.__task is None and self.alive:
                self.__handle(self.__jobs.popleft())
        finally:
            self.__busy = self.__task is not None

    def __handle(self, job: _Job) -> None:
        try:
            result = job.handler(*job.arguments)
            if not inspect.isawaitable(result):
                self.__answer(job, result)
                return
        except (Exception, asyncio.CancelledError) as error:
            self.__failed(error, job)
            return
        if self.alive:
            self.__await(result, partial(self.__finished, job))
        elif inspect.iscoroutine(result):
            result.close()

    def __await(
        self, result: Awaitable[object], done: Callable[[asyncio.Future[object]], None]
    ) -> None:
        # A task of the coroutine itself: one that is cancelled before it begins is closed by it.
        self.__task = asyncio.ensure_future(result)
        self.__task.add_done_callback(done)

    def __finished(self, job: _Job, task: asyncio.Future[object]) -> None:
        if self.__task is not task:  # `exited` has it
            if not task.cancelled() and task.exception() is not None:
                _log.error(
                    "%s has ended, and then its handler failed", self, exc_info=task.exception()
                )
            return
        self.__task = None
        try:
            self.__answer(job, task.result())
        except (Exception, asyncio.CancelledError) as error:
            self.__failed(error, job)
        if self.__task is None:
            self.__work()

    def __answer(self, job: _Job, result: object) -> None:
        if job.caller is not None and result is not NO_REPLY:
            self.reply(job.caller, result)

    def __failed(self, error: BaseException, job: _Job) -> None:
        if isinstance(error, Stop):
            try:
                self.__answer(job, error.reply)
            except EncodeError as failure:
                self.__failed(failure, job)
            else:
                self.__terminate(error.reason)
            return
        _log.error("%s ends: a handler failed", self, exc_info=error)
        self.__terminate((error_reason(error), error_stack(error)))

    def __terminate(self, reason: object) -> None:
        if not self.alive:
            return
        self.__jobs.clear()
        try:
            result = self.terminate(reason)
        except Exception:
            _log.exception("%s: terminate failed", self)
            result = None
        if inspect.isawaitable(result):
            self.__await(result, partial(self.__terminated, reason))
        else:
            self.exit(reason)

    def __terminated(self, reason: object, task: asyncio.Future[object]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s: terminate failed", self, exc_info=task.exception())
        self.exit(reason)


__all__ = ["NO_REPLY", "From", "GenServer", "Stop"]
