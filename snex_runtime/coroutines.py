"""Requests that have something to await: the tasks that do so, what ends them, and their answers.

A task is eager where Python can do that (3.12): it runs to its first suspension at once. It is
cancelled when its time is over, when its caller has given up, and when the runtime stops.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, Protocol

from snex_node.errors import NodeError
from snex_node.system import forks, tasks
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Pid, Reference
from snex_runtime import contexts
from snex_runtime.answers import OK_, failed
from snex_runtime.errors import Failure, cancelled, from_exception, overloaded
from snex_runtime.interrupts import CLEANUP, Deadline, Interrupted
from snex_runtime.requests import NO_OPTIONS, EvalOptions, Request

__all__ = ["BOUNDARIES", "Coroutines", "MayBeForked", "Work"]

WATCH_AFTER: Final = 0.02
"""Seconds after which the caller of work that is not done is monitored, if it does not itself."""


class MayBeForked(Protocol):
    """Knows whether this process is a forked child: a node."""

    @property
    def forked(self) -> bool:
        """Whether it is one, of the process that the node is in."""


class Sender(Protocol):
    """Sends answers."""

    def send(self, request: Request, answer: Payload) -> None:
        """Send ``answer`` to who waits for it, if anybody does."""


class Watch(Protocol):
    """Interrupts work that blocks the loop beyond its deadline."""

    def watch(self, work: Deadline) -> None:
        """Look after ``work``."""

    def unwatch(self, work: Deadline) -> None:
        """No more."""


class Watcher(Protocol):
    """Monitors processes: a process."""

    def monitor(self, target: Pid) -> Reference:
        """Begin; `Coroutines.caller_down` is to be called when it has ended."""

    def demonitor(self, ref: Reference) -> None:
        """No more."""


class Work(Deadline):
    """A request under way that has to await: ``awaited``, in the request's context.

    ``threaded``: its code runs in a thread, in that context; what is awaited is the answer.
    """

    __slots__ = (
        "awaited",
        "begun",
        "continues",
        "disarm",
        "monitor",
        "request",
        "stopped",
        "task",
        "threaded",
        "timeout",
        "timer",
    )

    def __init__(
        self,
        request: Request,
        awaited: Coroutine[Any, Any, Any],
        options: EvalOptions = NO_OPTIONS,
        *,
        threaded: bool = False,
    ) -> None:
        super().__init__(options.timeout)
        request.let_go()
        self.request = request
        self.awaited = awaited
        self.timeout = options.timeout
        self.continues = options.continues
        self.threaded = threaded
        self.disarm: Callable[[], None] | None = None
        """To be called when it is done: until then something is to happen at a certain time."""
        self.begun = False
        self.stopped: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.monitor: Reference | None = None

    def stop(self, why: str) -> None:
        """Cancel the work; its `finally` blocks run."""
        if self.threaded:
            self._stop_thread(why)
            return
        self.stopped = why
        if self.task is not None and self.begun:
            # A task that is cancelled before it begins would not even clean up.
            self.task.cancel()
        if self.timer is not None:
            self.timer.cancel()
            self._grant_cleanup()

    def _stop_thread(self, why: str) -> None:
        """Cancel what awaits the thread, once: it sees to the rest."""
        if self.stopped is not None:
            return
        self.stopped = why
        if self.task is not None and self.begun:
            self.task.cancel()

    def _grant_cleanup(self) -> None:
        """Put the deadline off as long as the loop has its turns."""
        self.deadline = time.monotonic() + CLEANUP
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(CLEANUP / 2, self._grant_cleanup)


class Coroutines:
    """All work of a runtime that has begun and is not done.

    Beyond ``max_queue`` of those that await on the event loop (None: any number) further ones are
    answered ``overloaded``.
    """

    def __init__(
        self,
        node: MayBeForked,
        answers: Sender,
        interrupter: Watch,
        watcher: Watcher,
        *,
        max_queue: int | None = None,
    ) -> None:
        self._node = node
        self._watcher = watcher
        self._answers = answers
        self._interrupter = interrupter
        self._loop = asyncio.get_running_loop()
        self._max_queue = max_queue
        self._all: set[Work] = set()
        self._on_loop = 0
        self._by_ref: dict[bytes, Work] = {}
        self._by_monitor: dict[Reference, Work] = {}
        # What has begun just now. It is forgotten when it is done: its context may hold much.
        self._unwatched: dict[Work, None] = {}
        self._will_watch = False

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> list[Work]:
        """All of it."""
        return list(self._all)

    def on_loop(self) -> list[Work]:
        """The work whose code the event loop runs, from any thread."""
        return [work for work in list(self._all) if not work.threaded]

    def begin(self, work: Work) -> None:
        """Run it to its first suspension, or soon; outside of its context, which steps enter."""
        if not work.threaded:
            if self._on_loop == self._max_queue:
                self._refuse(work)
                return
            self._on_loop += 1
        self._all.add(work)
        if work.timeout is not None:
            if not work.threaded:
                self._interrupter.watch(work)
            work.timer = self._loop.call_later(work.timeout, work.stop, "timeout")
        caller = work.request.caller
        if caller is not None and caller.ref is not None:
            self._by_ref[caller.ref] = work
        try:
            work.task = task = _start_task(self._loop, self._complete(work))
        except RuntimeError:
            if self._node.forked:  # from 3.14 on: the loop that the task began on runs no more
                _end_child(work)
            raise
        if not task.done():
            if self._node.forked:
                forks.end_waiting_child()
            tasks.hide(task)
            self._unwatched[work] = None
            if not self._will_watch:
                self._will_watch = True
                self._loop.call_later(WATCH_AFTER, self._watch_callers)
        if work.stopped is not None:
            task.cancel()

    def _refuse(self, work: Work) -> None:
        work.awaited.close()
        failure = overloaded(
            f"{self._on_loop} requests that await are under way, and no more may be: try again "
            "later, or start the node with a higher --max-queue"
        )
        self._answers.send(work.request, failed(work.request, failure))

    def _watch_callers(self) -> None:
        """Have `caller_down` told of the ends of callers that would not be missed otherwise.

        Callers of `GenServer` monitor the process that they call. Others may not, because most
        answers come soon, and then monitors on both sides would have been for nothing.
        """
        self._will_watch = False
        waiting, self._unwatched = self._unwatched, {}
        for work in waiting:
            request = work.request
            caller = request.caller
            if caller is None or caller.ref is None:
                continue
            if not request.process.is_monitored_with(caller.ref):
                try:
                    work.monitor = monitor = self._watcher.monitor(caller.pid)
                except NodeError:  # too much waits for its node
                    continue
                self._by_monitor[monitor] = work

    def caller_down(self, monitor: Reference) -> bool:
        """What is monitored with ``monitor`` has ended; False when it is no caller."""
        work = self._by_monitor.pop(monitor, None)
        if work is None:
            return False
        work.monitor = None
        if not work.continues:
            work.stop("its caller has given up")
        return True

    def given_up(self, ref: bytes) -> None:
        """The call that is tagged with ``ref`` has no caller any more: stop its work."""
        work = self._by_ref.get(ref)
        if work is not None and not work.continues:
            work.stop("its caller has given up")

    def close(self) -> None:
        """The runtime stops: stop all work, and leave it to clean up."""
        self._unwatched.clear()
        for work in list(self._all):
            work.stop("the runtime stops")
            if work.task is not None:
                tasks.leave(work.task)

    async def _complete(self, work: Work) -> None:
        work.begun = True
        request = work.request
        if work.threaded:
            answer = await self.finish(work)
        else:
            answer = await contexts.in_steps(request.enter, work, request.asked, self.finish(work))
        if not request.answered:
            self._answers.send(request, answer)

    async def finish(self, work: Work) -> Payload:
        """Do ``work``: the answer to its request. Each step is taken in the request's context."""
        try:
            if work.stopped is not None:
                work.awaited.close()
                raise asyncio.CancelledError
            if work.threaded:
                answer: Payload = await work.awaited
                return answer
            try:
                return work.request.remote.encoder.encode_payload(await work.awaited, OK_)
            finally:
                work.over = True
        except BaseException as error:
            return failed(work.request, self._failure(work, error))
        finally:
            self._forget(work)

    def _failure(self, work: Work, error: BaseException) -> Failure:
        if isinstance(error, Interrupted):
            return cancelled(work.stopped or error.why)
        if isinstance(error, asyncio.CancelledError) and work.stopped is not None:
            return cancelled(work.stopped)
        if self._node.forked and not isinstance(error, asyncio.CancelledError):
            forks.end_child(error)
        return from_exception(error)

    def _forget(self, work: Work) -> None:
        self._all.discard(work)
        self._unwatched.pop(work, None)
        if not work.threaded:
            self._on_loop -= 1
            if work.timeout is not None:
                self._interrupter.unwatch(work)
        if work.timer is not None:
            work.timer.cancel()
        if work.disarm is not None:
            work.disarm()
        if work.monitor is not None:
            del self._by_monitor[work.monitor]
            self._watcher.demonitor(work.monitor)
        caller = work.request.caller
        if caller is not None and caller.ref is not None:
            self._by_ref.pop(caller.ref, None)


def _end_child(work: Work) -> NoReturn:
    if work.over:
        forks.end_child()
    forks.end_waiting_child()


if sys.version_info >= (3, 12):

    def _start_task(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run ``work`` to its first suspension at once: most of it then needs no other turn."""
        return asyncio.Task(work, loop=loop, eager_start=True)

else:

    def _start_task(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        return loop.create_task(work)


BOUNDARIES: Final = (Coroutines.finish.__code__,)
"""What calls user code, for `interrupts`."""
