"""The threads that requests run in where that is asked for, and not on the event loop.

A pool makes threads as they are needed, up to its size. Requests to the same environment run one
after another, in the order in which they came. Code that awaits does so on an event loop of its
thread. What runs beyond its time is interrupted (`thread_interrupts`); a thread that takes no
notice is lost until it does, and another one takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from types import coroutine
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from snex_node.system import forks
from snex_node.wire.pieces import Payload
from snex_runtime import contexts, loops
from snex_runtime.answers import OK_, failed
from snex_runtime.contexts import Enter
from snex_runtime.coroutines import MayBeForked, Work
from snex_runtime.errors import BadRequest, Failure, bad_request, from_exception, overloaded
from snex_runtime.interrupts import CLEANUP, Interrupted
from snex_runtime.requests import EvalOptions, Place, Request
from snex_runtime.thread_interrupts import Interruption

__all__ = [
    "BOUNDARIES",
    "NO_THREADS",
    "SWITCH_INTERVAL",
    "Awaiting",
    "Counts",
    "Executor",
    "Function",
    "Job",
    "Pool",
    "default_threads",
]

SWITCH_INTERVAL: Final = 0.0002
"""Seconds after which a thread that computes gives up the interpreter, while there are threads.

Every system call of the event loop gives it up, and waits so long to have it back. Beside a thread
that computes, 99 of 100 requests in threads take 5 to 8 ms so, and 58 ms with the 5 ms that Python
has. What computes takes a few per cent longer for it."""

_USUAL_INTERVAL: Final = 0.005
_AGAIN: Final = 0.02  # seconds between attempts to meet code outside of the library

Executor: TypeAlias = Literal["loop", "thread"]
"""Where requests run."""

_log: Final = logging.getLogger(__name__)


class Awaiting(NamedTuple):
    """What there is to await for the value of a request."""

    awaitable: Awaitable[object]


Function = Callable[[Request], Payload | Awaiting]
"""Runs the code of a request: gives the answer, encoded, or what there is to await for it."""


class Counts(NamedTuple):
    """What a pool has to do."""

    threads: int
    """Threads that there are."""

    busy: int
    """Those that run something, and are not lost."""

    lost: int
    """Those that run on although they were interrupted, and whose callers have been answered."""

    queued: int
    """Requests that wait for a thread, or for those before them in their environment."""


NO_THREADS: Final = Counts(0, 0, 0, 0)
"""Where nothing runs in threads."""


def default_threads() -> int:
    """How many threads a pool has that is not told: as many as a `ThreadPoolExecutor`."""
    return min(32, (os.cpu_count() or 1) + 4)


class Job:
    """The code of one request on its way to a thread, and in it. `Pool.work` makes one."""

    __slots__ = (
        "_forked",
        "_function",
        "_request",
        "enter",
        "future",
        "interruption",
        "lost",
        "place",
        "work",
    )

    def __init__(
        self, request: Request, function: Function, place: Place | None, node: MayBeForked
    ) -> None:
        self._request = request
        self._function = function
        self._forked = node
        self.place = place
        self.enter: Enter = request.enter
        self.lost = False
        self.work: Work
        self.interruption: Interruption
        self.future: asyncio.Future[Payload | None]
        """Gets the answer; None when the code was interrupted, or cancelled as it was to be."""

    def begin(self, work: Work) -> None:
        """It is the work of ``work``."""
        self.work = work
        self.interruption = Interruption(work)

    # --- in the thread --------------------------------------------------------------------------

    def run(self, worker: _Worker) -> Payload | None:
        """Run it in this thread, which ``worker`` is, to its answer."""
        answer = None
        self.work.thread = threading.get_ident()
        try:
            try:
                answer = self._answer(worker)
            except Interrupted:  # on its way out of the code
                pass
            self.interruption.settle()
        except Interrupted:
            self.interruption.settle()
        return answer

    def _answer(self, worker: _Worker) -> Payload | None:
        request = self._request
        asked = request.asked
        try:
            outcome = self.enter(contexts.step_in_thread, self.work, asked, self._function, request)
            self._end_child()
            if not isinstance(outcome, Awaiting):
                answer: Payload = outcome
                return answer
            answering = self.finish(outcome.awaitable)
            steps = contexts.in_steps(self.enter, self.work, asked, answering, on_loop=False)
            return worker.run(self.interruption, _ending_children(self._forked, steps))
        except BaseException as error:
            return self._failed(error)

    async def finish(self, awaitable: Awaitable[object]) -> Payload | None:
        """Await what there is to await, on the loop of this thread, for the answer."""
        try:
            value = await awaitable
            self._end_child()
            return self._request.remote.encoder.encode_payload(value, OK_)
        except BaseException as error:
            return self._failed(error)

    def _end_child(self) -> None:
        if self._forked.forked:
            forks.end_child()

    def _failed(self, error: BaseException) -> Payload | None:
        cancelled = isinstance(error, asyncio.CancelledError) and self.interruption.cancelled
        if cancelled or isinstance(error, Interrupted):
            return None
        if self._forked.forked:
            forks.end_child(error)
        if isinstance(error, BadRequest):
            return failed(self._request, bad_request(str(error)))
        return failed(self._request, from_exception(error))


@coroutine
def _ending_children(
    node: MayBeForked, work: Coroutine[Any, Any, Payload | None]
) -> Generator[Any, Any, Payload | None]:
    """Await ``work``, and end the forked child that waits for the loop of this thread."""
    resume: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        try:
            awaited = resume(value)
        except StopIteration as done:
            value = None  # an exception that led here knows this frame
            answer: Payload | None = done.value
            return answer
        if node.forked:
            forks.end_waiting_child()
        try:
            value = yield awaited
            resume = work.send
        except BaseException as error:  # it is cancelled, interrupted or closed
            value = error
            resume = work.throw


class _Worker:
    """One thread of a pool, and the event loop that it has once something awaits."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool = pool
        self._given: Job | None = None
        self._wake = threading.Semaphore(0)
        self._runner: loops.Runner | None = None
        name = f"snex-thread-{number}"
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Begin. Raises ``RuntimeError`` where the system has no thread left."""
        Context().run(self._thread.start)  # it is to inherit nothing

    def give(self, job: Job | None) -> None:
        """Have it run ``job``; end, for None."""
        self._given = job
        self._wake.release()

    def wait(self) -> Job | None:
        """What it is given next."""
        self._wake.acquire()
        job, self._given = self._given, None
        return job

    def _main(self) -> None:
        job = self.wait()
        while job is not None:
            self._pool.done(job, job.run(self))
            job = None  # what it has run is not to be kept until there is more to do
            job = self._pool.next(self)
        self._close()

    def run(
        self, interruption: Interruption, work: Coroutine[Any, Any, Payload | None]
    ) -> Payload | None:
        """Run ``work`` on the loop of this thread, and then end what it has left running there."""
        if self._runner is None:
            self._runner = loops.Runner(loops.loop_of_thread())
        runner = self._runner
        try:
            answer = runner.run(_cancellable(interruption, work))
            left = asyncio.all_tasks(runner.loop)
            if left:
                runner.run(_end(left))
        except BaseException:  # an interruption outside of all tasks: nobody knows what it has left
            self._close()
            raise
        return answer

    def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            forks.leave_loop()
            runner.loop.close()


async def _cancellable(
    interruption: Interruption, work: Coroutine[Any, Any, Payload | None]
) -> Payload | None:
    task: Any = asyncio.current_task()
    interruption.cancel = partial(_cancel, asyncio.get_running_loop(), task)
    return await work


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Cancel ``task``, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: the task is over
        loop.call_soon_threadsafe(task.cancel)


async def _end(left: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for their clean-up."""
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class Pool:
    """At most ``threads`` threads for the requests of the runtime on ``node``.

    At most ``max_queue`` requests wait for one (None: any number), for ``queue_timeout`` seconds;
    what is too much is answered ``overloaded``. Made on the event loop; `next` and `done` belong to
    its threads, and `check` to the guardian's.
    """

    def __init__(
        self,
        node: MayBeForked,
        threads: int | None = None,
        *,
        max_queue: int | None = None,
        queue_timeout: float | None = None,
    ) -> None:
        self._node = node
        self._size = default_threads() if threads is None else threads
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._loop = asyncio.get_running_loop()
        # Guards all that follows; held for a moment, and never while code of users runs.
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._ready: OrderedDict[Job, None] = OrderedDict()
        # What waits for those before it, in each place where anything runs or is ready.
        self._lines: dict[Place, OrderedDict[Job, None]] = {}
        self._running: set[Job] = set()
        self._made = self._threads = self._lost = self._queued = 0
        self._closed = False
        self._interval_set = False

    @property
    def counts(self) -> Counts:
        """What it has to do."""
        with self._lock:
            busy = len(self._running) - self._lost
            return Counts(self._threads, busy, self._lost, self._queued)

    def work(
        self, request: Request, function: Function, place: Place | None, options: EvalOptions
    ) -> Work:
        """The work of running ``function`` in a thread, in ``place`` if it is given."""
        job = Job(request, function, place, self._node)
        work = Work(request, self._perform(job), options, threaded=True)
        job.begin(work)
        return work

    # --- on the event loop ----------------------------------------------------------------------

    async def _perform(self, job: Job) -> Payload:
        """Have it run, and give its answer. Raises `Failure`, and `Interrupted` when it was."""
        future: asyncio.Future[Payload | None] = self._loop.create_future()
        job.future = future
        timer = None
        if self._submit(job) and self._queue_timeout is not None:
            timer = self._loop.call_later(self._queue_timeout, self._expire, job)
        try:
            answer = await future
        except asyncio.CancelledError:
            if future.cancelled():
                future = job.future = self._loop.create_future()
            if self._withdraw(job) or not await self._ended(job):
                raise
            answer = future.result()
        finally:
            if timer is not None:
                timer.cancel()
        if answer is None:
            raise Interrupted
        return answer

    async def _ended(self, job: Job) -> bool:
        """Interrupt it, and wait for its end; False when it has not come to that in time."""
        interruption, future = job.interruption, job.future
        end = time.monotonic() + CLEANUP
        interruption.stop()
        while not future.done() and (left := end - time.monotonic()) > 0:
            met = interruption.interrupted
            await asyncio.wait((future,), timeout=left if met else min(left, _AGAIN))
            interruption.attempt()
        if not future.done():
            self._lose(job)
        return future.done()

    def _submit(self, job: Job) -> bool:
        """Put it where it will be run; whether it has to wait. Raises `Failure` when it cannot."""
        place = job.place
        with self._lock:
            line = None if place is None else self._lines.get(place)
            waits = line is not None or (not self._idle and self._threads >= self._most)
            if self._closed:
                raise Failure("cancelled", "the runtime stops")
            if waits and self._max_queue is not None and self._queued >= self._max_queue:
                raise overloaded(
                    f"{self._queued} requests wait for one of {self._size} threads, and no more "
                    "may: try again later, or start the node with more --threads or a higher "
                    "--max-queue"
                )
            if place is not None:
                job.enter = place.lend()
            self._queued += 1
            if line is not None:
                line[job] = None
                return True
            if place is not None:
                self._lines[place] = OrderedDict()
            self._ready[job] = None
            self._hand_out()
            stuck = not self._threads
        if stuck:
            self._withdraw(job)
            raise Failure("internal_error", "the system starts no thread for this process")
        return waits

    @property
    def _most(self) -> int:
        """How many threads there may be now."""
        return self._size + min(self._lost, self._size)

    def _hand_out(self) -> None:
        """Give what is ready to threads that have nothing to do, or to new ones."""
        while self._ready and (self._idle or self._threads < self._most):
            if self._idle:
                self._idle.pop().give(self._take())
                continue
            self._made += 1
            worker = _Worker(self, self._made)
            try:
                worker.start()
            except RuntimeError:
                have = self._threads
                _log.warning("the system starts no more than %d of %d threads", have, self._size)
                return
            self._threads += 1
            self._shorten_turns()
            worker.give(self._take())

    def _take(self) -> Job:
        job, _ = self._ready.popitem(last=False)
        self._queued -= 1
        self._running.add(job)
        return job

    def _shorten_turns(self) -> None:
        if not self._interval_set and _interval_is(_USUAL_INTERVAL):
            sys.setswitchinterval(SWITCH_INTERVAL)
            self._interval_set = True

    def _withdraw(self, job: Job) -> bool:
        """Take it back; False when it has begun."""
        with self._lock:
            line = None if job.place is None else self._lines.get(job.place)
            if line is not None and job in line:
                del line[job]
            elif job in self._ready:
                del self._ready[job]
                self._next_in_line(job)
                self._hand_out()
            else:
                return False
            self._queued -= 1
        if job.place is not None:
            job.place.give_back(job.enter)
        return True

    def _next_in_line(self, job: Job) -> None:
        """What waited for ``job`` in its place is ready now."""
        if job.place is None:
            return
        line = self._lines[job.place]
        if line:
            following, _ = line.popitem(last=False)
            self._ready[following] = None
        else:
            del self._lines[job.place]

    def _expire(self, job: Job) -> None:
        if not job.future.done() and self._withdraw(job):
            waited = round((self._queue_timeout or 0.0) * 1000)
            job.future.set_exception(
                overloaded(
                    f"none of {self._size} threads was free within {waited} ms: try again later, "
                    "or start the node with more --threads or a higher --queue-timeout"
                )
            )

    def _lose(self, job: Job) -> None:
        """It takes no notice: its caller is answered, and another thread takes the place."""
        with self._lock:
            if job not in self._running:
                return
            job.lost = True
            self._lost += 1
            self._hand_out()

    def _answered(self, job: Job, answer: Payload | None) -> None:
        if job.place is not None:
            job.place.give_back(job.enter)
        if not job.future.done():
            job.future.set_result(answer)

    def close(self) -> None:
        """Take no more. Threads end when they have nothing to do; what runs is to be stopped."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._threads -= len(idle)
        for worker in idle:
            worker.give(None)
        if self._interval_set and _interval_is(SWITCH_INTERVAL):
            sys.setswitchinterval(_USUAL_INTERVAL)

    # --- in a thread ----------------------------------------------------------------------------

    def next(self, worker: _Worker) -> Job | None:
        """What ``worker`` is to do next, which it waits for; None: it is to end."""
        with self._lock:
            if self._threads > self._most or (self._closed and not self._ready):
                self._threads -= 1
                self._hand_out()
                return None
            if self._ready:
                return self._take()
            self._idle.append(worker)
        return worker.wait()

    def done(self, job: Job, answer: Payload | None) -> None:
        """``job`` has been run."""
        with self._lock:
            self._running.discard(job)
            if job.lost:
                self._lost -= 1
            self._next_in_line(job)
        try:
            self._loop.call_soon_threadsafe(self._answered, job, answer)
        except RuntimeError:  # the loop is closed, as the process ends: nobody waits any more
            return

    def check(self) -> None:
        """Interrupt what is beyond its time while the event loop cannot: for the guardian."""
        with self._lock:
            running = list(self._running)
        for job in running:
            job.interruption.attempt()


def _interval_is(seconds: float) -> bool:
    """Whether this is what was set; it is kept in microseconds, and comes back a little off."""
    return math.isclose(sys.getswitchinterval(), seconds, rel_tol=1e-3)


BOUNDARIES: Final = (Job.finish.__code__,)
"""What calls user code, for `interrupts`."""
