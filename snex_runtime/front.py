"""The process registered as ``snex`` where workers evaluate: it sends requests on, and runs none.

A worker has one request at a time that may block it: the next goes to it when that is done or
awaits something. So code that blocks, or ends its process, is nobody else's fate, and a queue here
holds what no worker is free for. Workers answer callers themselves; what became of a request they
tell the front, which answers in the place of a worker that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

from snex_node.errors import NodeError, PassedOnError
from snex_node.node import Node
from snex_node.processes.process import DOWN, EXIT, BaseProcess
from snex_node.wire.etf import DecodeError
from snex_node.wire.gen import GEN_CALL, SYSTEM_HEAD, From, parse_call, parse_cast, parse_system
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import journal
from snex_runtime.answers import OK, OK_, PONG, error
from snex_runtime.coroutines import WATCH_AFTER
from snex_runtime.errors import BadRequest, Failure, bad_request
from snex_runtime.forwarding import Frame, Ledger, Line, Note, NoteKind, Request, Status, Verdict
from snex_runtime.requests import Asker, typed
from snex_runtime.workers import WorkerProcess, exit_term

__all__ = ["MAX_QUEUE", "MAX_QUEUED_BYTES", "REVOKE_AFTER", "Front", "Job", "Lane"]

REVOKE_AFTER: Final = 0.02
"""Seconds without progress after which a worker gets what it has begun only: what it has not is
sent to others."""

AHEAD: Final = 1500
"""Microseconds of work that a worker is sent ahead, as far as can be told from what it did last."""

MOST_AHEAD: Final = 16
"""Requests that it is sent ahead, at most."""

STOPPED: Final = 1.0
"""Seconds without progress after which a worker that others were sent to in vain is looked at: if a
signal has stopped it, it is ended."""

STOP_AFTER: Final = 0.005
"""Seconds after which work stops whose caller has given up. The caller may have its answer, which
the worker has not noted yet."""

MAX_QUEUE: Final = 10_000
"""Requests that wait for a worker, where no other number is given."""

MAX_QUEUED_BYTES: Final = 1024 * 1024 * 1024
"""Bytes of them."""

_log = logging.getLogger(__name__)


class Job:
    """One request, from when it came to its end.

    ``data`` is the message, from ``{'$gen_call', ...}`` on; ``take`` takes the answer where that is
    for the front itself.
    """

    __slots__ = (
        "bound",
        "caller",
        "data",
        "destroys",
        "given_up",
        "lane",
        "makes",
        "monitor",
        "origin",
        "over",
        "queued",
        "sequence",
        "since",
        "take",
    )

    def __init__(
        self,
        caller: From | None,
        data: bytes,
        origin: bytes,
        take: Callable[[bytes], None] | None = None,
        *,
        makes: bool = False,
    ) -> None:
        self.caller = caller
        self.data = data
        self.origin = origin
        """The name of the node that it came from."""
        self.take = take
        self.makes = makes
        """Whether it makes an environment."""
        self.destroys = False
        """Whether it destroys one."""
        self.bound: Lane | None = None
        """The only worker that can do it, if it is not all one."""
        self.lane: Lane | None = None
        self.sequence = 0
        self.since = 0.0
        """When it began to wait for whichever worker is free."""
        self.monitor: Reference | None = None
        self.queued = False
        """Whether it waits for whichever worker is free."""
        self.given_up = False
        """Whether its caller waits no more."""
        self.over = False

    @property
    def kind(self) -> str:
        """What it asks for, ``eval`` say."""
        data = self.data
        call = parse_call(data, 0)
        at = (parse_cast(data, 0) or 0) if call is None else call[1]
        return _kind_of(data, at).decode("utf-8", "replace") or "unknown"


class Lane:
    """One worker: what it has to do, and what is known of it."""

    def __init__(self, process: WorkerProcess) -> None:
        self.process: Final = process
        self.ledger: Final = process.ledger
        self.line: Line
        """Set by `Front.add`."""
        self.sent: deque[Job] = deque()
        """What it runs, and what is to run next; all of that may be blocked by what runs."""
        self.waiting: dict[int, Job] = {}
        """What awaits something there."""
        self.queue: deque[Job] = deque()
        """What only this worker can do."""
        self.sequence = 0
        self.environments = 0
        """Processes there that others know the pids of: environments, and streams and objects."""
        self.requests = 0
        self.progress = 0.0
        """When it was seen last that something had been done, or there was nothing to do."""
        self.revoked = False
        """Whether what had not begun was taken from it, and it has not come as far since."""
        self.retiring = False

    def jobs(self) -> Iterator[Job]:
        """All that it has begun, or is about to."""
        yield from self.sent
        yield from self.waiting.values()

    @property
    def has_room(self) -> bool:
        """Whether it may be sent a request: it has none, or it takes many in little time."""
        if self.revoked:
            return False
        sent = len(self.sent)
        return not sent or sent < min(MOST_AHEAD, AHEAD // self._pace())

    def _pace(self) -> int:
        return self.ledger.pace or AHEAD  # nothing is known of it to begin with

    @property
    def has_nothing(self) -> bool:
        """Whether all that it was sent is done, as far as can be told at once."""
        if self.waiting or self.revoked or self.retiring:
            return False
        return not self.sent or self.ledger.status(self.sequence) == Status.DONE

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do, and holds nothing of anybody."""
        return not (self.sent or self.waiting or self.queue or self.environments)


class Front(BaseProcess):
    """Sends requests on to workers.

    At most ``max_queue`` requests wait for one, each for ``queue_timeout`` seconds; None is no
    limit of time. ``lane_wanted`` is called when a worker is to be replaced, because it has had
    ``max_requests``.
    """

    def __init__(
        self,
        node: Node,
        *,
        name: str = "snex",
        max_queue: int | None = None,
        queue_timeout: float | None = None,
        max_requests: int | None = None,
    ) -> None:
        super().__init__(node)
        self.trap_exit = True
        self.lanes: list[Lane] = []
        self.inits: list[Job] = []
        """What is to be run in the root environment of every worker."""
        self.info: Callable[[Job], None] = self._no_info
        """Answers ``:info``."""
        self.environments_info: Callable[[Job], None] = self._no_info
        """Answers ``{:info, :environments}``."""
        self.owner: Final = node
        """The node that it is on."""
        self._max_queue = MAX_QUEUE if max_queue is None else max_queue
        self._queue_timeout = queue_timeout
        self._max_requests = max_requests
        self.retired: Callable[[Lane], None] = _ignore
        """Called when a worker gets no more requests, because it has had enough of them."""
        self._by_name: dict[str, Lane] = {}
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._queued = 0
        self._by_ref: dict[bytes, Job] = {}
        self._by_monitor: dict[Reference, Job] = {}
        self._unwatched: dict[Job, None] = {}
        self._last: Lane | None = None
        """Who got the last request: when it has nothing else it gets the next one, being awake."""
        self._left: list[Job] = []
        """Whose callers have taken their monitors back: most have their answers."""
        self._loop = asyncio.get_running_loop()
        self._will_watch = False
        self._looking: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._kinds: Final = {
            b"ping": self._ping_requested,
            b"info": self._info_requested,
            b"init": self._init_requested,
            b"make_env": self._make_env_requested,
            b"destroy_env": self._destroy_env_requested,
            b"shared": self._shared_requested,
        }
        self.register(name)

    # --- messages -------------------------------------------------------------------------------

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """Take a request."""
        call = parse_call(data, offset)
        if call is not None:
            caller, at = call
        elif data.startswith(SYSTEM_HEAD, offset):
            system = parse_system(typed.decode(data, offset)[0])
            if system is not None:
                self._system_received(*system)
            return
        else:
            caller, at = None, parse_cast(data, offset) or offset
        message = data[offset:] if offset else data
        job = Job(caller, message, remote.name.encode())
        if data[at : at + _HEAD] in _USUAL:
            self.submit(job)
            return
        handler = self._kinds.get(_kind_of(data, at))
        if handler is None:
            self.submit(job)
            return
        try:
            handler(job, data, at)
        except BadRequest as wrong:
            self._fail(job, bad_request(str(wrong)))
        except DecodeError as wrong:
            self._fail(job, bad_request(f"the request cannot be decoded: {wrong}"))
        except Failure as failure:
            self._fail(job, failure)

    def _system_received(self, caller: From, request: object) -> None:
        stop = isinstance(request, tuple) and len(request) == 2 and request[0] == "terminate"
        why = Atom("not_allowed" if stop else "unknown_system_msg")
        self.node.reply(caller, (Atom("error"), why), sender=self.pid)

    def message_received(self, message: object) -> None:
        """Take a message from this node: the end of a caller, an exit signal."""
        if isinstance(message, tuple) and len(message) == 3 and message[0] == EXIT:
            _log.warning("an exit signal of %s does not end the runtime", message[1])
        elif isinstance(message, tuple) and len(message) == 5 and message[0] == DOWN:
            job = self._by_monitor.pop(message[1], None)
            if job is not None:
                job.monitor = None
                self._given_up(job)

    def demonitored(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        job = self._by_ref.get(ref)
        if job is not None:
            self._given_up(job)

    # --- the way of a request -------------------------------------------------------------------

    def submit(self, job: Job, lane: Lane | None = None) -> None:
        """Have ``job`` done by a worker, or by the one of ``lane``, as soon as it has room."""
        caller = job.caller
        if caller is not None:
            ref = caller.ref
            if ref is not None:
                self._by_ref[ref] = job
        if lane is not None:
            job.bound = lane
            self._refresh(lane)
            if lane.has_room:
                self._dispatch(lane, job)
            elif not self._enqueue(job, lane.queue, [lane]):
                return
        else:
            free = None if self._queue else self._free(job)
            if free is not None:
                self._dispatch(free, job)
            elif not self._enqueue(job, self._queue, self.lanes):
                return
            else:
                self._fill_all()
        if caller is not None:
            self._unwatched[job] = None
            if not self._will_watch:
                self._will_watch = True
                self._loop.call_later(WATCH_AFTER, self._watch_callers)

    def _free(self, job: Job) -> Lane | None:
        """The worker that has least to do, of those that have room."""
        last = self._last
        if last is not None and not job.makes and last.has_nothing:
            return last
        found: Lane | None = None
        least = 0
        for lane in self.lanes:
            if lane.sent:
                self._refresh(lane)
            if lane.retiring or not lane.has_room:
                continue
            load = len(lane.sent) * _BLOCKS + len(lane.waiting)
            if job.makes:
                load = lane.environments
            if found is None or load < least:
                found, least = lane, load
        self._last = found
        return found

    def _enqueue(self, job: Job, queue: deque[Job], lanes: list[Lane]) -> bool:
        size = len(job.data)
        if self._queued >= self._max_queue or self._queued_bytes + size > MAX_QUEUED_BYTES:
            self._fail(job, _overloaded(f"{self._queued} requests wait for a worker"))
            return False
        job.since = time.monotonic()
        if len(queue) > 2 * self._queued + _MANY:  # most of it waits no more
            left = [job for job in queue if not job.over]
            queue.clear()
            queue.extend(left)
        queue.append(job)
        self._count(job)
        for lane in lanes:
            lane.ledger.wanted = True
        self._look_soon()
        return True

    def _count(self, job: Job) -> None:
        job.queued = True
        self._queued += 1
        self._queued_bytes += len(job.data)

    def _uncount(self, job: Job) -> None:
        if job.queued:
            job.queued = False
            self._queued -= 1
            self._queued_bytes -= len(job.data)

    def _dispatch(self, lane: Lane, job: Job) -> None:
        lane.sequence = sequence = lane.sequence + 1
        job.lane, job.sequence = lane, sequence
        lane.ledger.set_status(sequence, Status.UNKNOWN)
        data = job.data
        head = Request.head(sequence, _by_front(job), job.origin, len(data))
        if len(data) < _SMALL:
            lane.line.send(head + data)
        else:
            lane.line.send(head, data)
        # It is on its way; the rest has time.
        if lane.sent:
            self._refresh(lane)
        if not lane.sent:
            lane.progress = time.monotonic()
        lane.sent.append(job)
        lane.requests += 1
        lane.environments += job.makes
        if self._looking is None:
            self._look_soon()
        if self._max_requests is not None and lane.requests >= self._max_requests:
            self._retire(lane)

    def _refresh(self, lane: Lane) -> None:
        """See what has become of what a worker was sent."""
        sent, status_of = lane.sent, lane.ledger.status
        done = False
        while sent:
            job = sent[0]
            status = status_of(job.sequence)
            if status == Status.UNKNOWN:
                break
            done = True
            sent.popleft()
            if status == Status.DONE:
                self._finish(job)
            elif status == Status.WAITS:
                lane.waiting[job.sequence] = job
            else:
                self._again(job)
        if done:
            lane.progress = time.monotonic()
        if lane.revoked and lane.ledger.started >= lane.sequence:
            lane.revoked = False

    def _noted(self, lane: Lane, frames: list[Frame]) -> None:
        """A worker has said something."""
        for frame in frames:
            kind, sequence, lane.environments, answer = Note.read(frame)
            if kind == NoteKind.WAKE:
                continue
            if sequence not in lane.waiting:
                self._refresh(lane)
            job = lane.waiting.pop(sequence, None) or _taken(lane, sequence)
            if job is None:
                continue
            if kind == NoteKind.ANSWERED:
                self.answer(job, answer)
            else:
                self._finish(job)
        self._fill(lane)

    def _fill(self, lane: Lane) -> None:
        """Give a worker that has room something to do."""
        self._refresh(lane)
        while lane.has_room:
            job = self._next(lane)
            if job is None:
                break
            self._dispatch(lane, job)
        waits = self._queue or lane.queue or lane.retiring or lane.revoked
        lane.ledger.wanted = bool(waits)
        if lane.retiring:
            self.end_if_idle(lane)

    def _next(self, lane: Lane) -> Job | None:
        queues = (lane.queue,) if lane.retiring else (lane.queue, self._queue)
        for queue in queues:
            while queue:
                job = queue.popleft()
                if not job.over:
                    self._uncount(job)
                    return job
        return None

    def _again(self, job: Job) -> None:
        """A request that has not begun where it was sent to, and never will: it waits again."""
        lane, job.lane = job.lane, None
        if job.over:
            return
        if lane is not None:
            lane.environments -= job.makes
        if job.given_up:
            self._finish(job)
            return
        job.since = job.since or time.monotonic()
        if job.bound is not None:
            job.bound.queue.appendleft(job)
            self._count(job)
            job.bound.ledger.wanted = True
            return
        self._queue.appendleft(job)
        self._count(job)
        for each in self.lanes:
            each.ledger.wanted = True

    def _fill_all(self) -> None:
        for lane in list(self.lanes):
            self._fill(lane)

    def answer(self, job: Job, answer: bytes) -> None:
        """Give ``job`` its answer here."""
        if job.over:
            return
        self._finish(job)
        if job.take is not None:
            job.take(answer)
        elif job.caller is not None:
            self.node.reply_encoded(job.caller, answer, sender=self.pid)

    def _fail(self, job: Job, failure: Failure) -> None:
        """Answer ``job`` with an error; it is logged where nobody waits for one."""
        if job.take is None and not job.over:
            caller = f"a process of {job.origin.decode()}" if job.caller is None else job.caller.pid
            journal.told_failure_of(job.kind, str(caller), failure)
        if job.caller is None and job.take is None and not job.over:
            _log.error("a request without an answer failed: %s", failure.describe())
        self.answer(job, error(failure))

    def _finish(self, job: Job) -> None:
        self._uncount(job)
        job.over = True
        job.data = b""
        self._unwatched.pop(job, None)
        if job.monitor is not None:
            self._by_monitor.pop(job.monitor, None)
            self.demonitor(job.monitor)
        caller = job.caller
        if caller is not None and caller.ref is not None:
            self._by_ref.pop(caller.ref, None)

    # --- callers --------------------------------------------------------------------------------

    def _watch_callers(self) -> None:
        """See `coroutines.Coroutines`: callers that do not monitor this process are monitored."""
        self._will_watch = False
        for lane in self.lanes:
            self._refresh(lane)
        waiting, self._unwatched = self._unwatched, {}
        for job in waiting:
            caller = job.caller
            if caller is None or caller.ref is None or self.is_monitored_with(caller.ref):
                continue
            if caller.pid == self.pid:
                continue
            with contextlib.suppress(NodeError):  # too much waits for its node
                job.monitor = self.monitor(caller.pid)
                self._by_monitor[job.monitor] = job

    def _given_up(self, job: Job) -> None:
        if job.lane is None:
            self._finish(job)
            return
        # Nearly always it has its answer, and that is why it waits no more: a look at its worker
        # has time, and what came with this has not.
        job.given_up = True
        if not self._left:
            self._loop.call_later(STOP_AFTER, self._stop_left)
        self._left.append(job)

    def _stop_left(self) -> None:
        left, self._left = self._left, []
        for job in left:
            lane = job.lane
            if lane is not None:
                self._refresh(lane)
            if not job.over and lane is not None:
                lane.process.stop_request(job.sequence)
            elif lane is None:
                self._finish(job)

    # --- workers --------------------------------------------------------------------------------

    def add(self, lane: Lane) -> None:
        """A worker is ready: it gets what was asked of all, and then its share."""
        lane.line = Line(lane.process.socket, partial(self._noted, lane), _ignore)
        self.lanes.append(lane)
        self._by_name[lane.process.name] = lane
        for init in self.inits:
            take = partial(self._init_repeated, lane)
            lane.queue.append(Job(None, init.data, init.origin, take))
        self._fill(lane)

    def lost(self, lane: Lane, status: int) -> None:
        """A worker has ended."""
        lane.line.drain()
        lane.line.close()
        self._refresh(lane)
        self._last = None
        self.lanes.remove(lane)
        del self._by_name[lane.process.name]
        started = lane.ledger.started
        verdict, culprit = lane.ledger.verdict
        blamed = _blamed(lane, started, verdict, culprit)
        for job in reversed(lane.sent):
            if lane.ledger.status(job.sequence) == Status.DONE:
                self._finish(job)  # behind one of which nobody knows what became of it
            elif job.sequence > started and job.bound is None:
                self._again(job)
        for job in [*lane.jobs(), *lane.queue]:
            if job.destroys:  # the environment has gone with it
                self.answer(job, OK)
            elif job.lane is lane or job.bound is lane:
                self._fail(job, _exit_failure(status, verdict if job in blamed else None))
        lane.sent.clear()  # who still looks at it must not ask the page
        lane.waiting.clear()
        lane.queue.clear()
        lane.revoked = False
        lane.process.close()
        self._fill_all()

    def _retire(self, lane: Lane) -> None:
        if not lane.retiring:
            lane.retiring = True
            self.retired(lane)

    def end_if_idle(self, lane: Lane) -> None:
        """End a worker that is to go, if it has nothing left to do."""
        if lane.idle:
            lane.process.stop()

    # --- looking after what takes long ----------------------------------------------------------

    def _look_soon(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(REVOKE_AFTER, self._look)

    def _look(self) -> None:
        """Take back what may be stuck, and end what has waited too long."""
        self._looking = None
        now = time.monotonic()
        self._end_waiting(now)
        for lane in list(self.lanes):
            self._refresh(lane)
            if (lane.sent or lane.revoked) and now - lane.progress >= REVOKE_AFTER:
                self._look_at(lane, now)
        self._fill_all()
        if self._queued or any(lane.sent or lane.revoked for lane in self.lanes):
            self._look_soon()

    def _look_at(self, lane: Lane, now: float) -> None:
        if not lane.revoked and lane.sent[-1].sequence > lane.ledger.started:
            lane.revoked = lane.ledger.wanted = True
            lane.ledger.revoke(lane.sequence)
            self._loop.call_later(Ledger.SETTLED, self._take_back, lane, lane.sequence)
            return
        others_wait = lane.revoked or self._queue or lane.queue
        if others_wait and now - lane.progress >= STOPPED and lane.process.is_stopped():
            _log.error("%s has been stopped by a signal: it is ended", lane.process.name)
            lane.process.kill()

    def _take_back(self, lane: Lane, last: int) -> None:
        """What it has not begun by now, of requests up to ``last``, is never begun there."""
        if lane not in self.lanes:
            return
        self._refresh(lane)
        started = lane.ledger.started
        taken = [job for job in lane.sent if started < job.sequence <= last]
        for job in reversed(taken):
            lane.sent.remove(job)
            self._again(job)
        self._fill_all()

    def _end_waiting(self, now: float) -> None:
        limit = self._queue_timeout
        if limit is None:
            return
        for queue in (self._queue, *(lane.queue for lane in self.lanes)):
            while queue:
                job = queue[0]
                late = job.caller is not None and now - job.since >= limit
                if not job.over and not late:
                    break
                queue.popleft()
                if not job.over:
                    self._fail(job, _overloaded(f"no worker was free within {limit:g} s"))

    # --- requests that are more than one worker's -----------------------------------------------

    def _ping_requested(self, job: Job, data: bytes, at: int) -> None:
        self.answer(job, PONG)

    def _shared_requested(self, job: Job, data: bytes, at: int) -> None:
        # Which worker will have the data is not known when it is lent.
        self.answer(job, _NOT_SHARED)

    def _info_requested(self, job: Job, data: bytes, at: int) -> None:
        if data[at] != _TUPLE:
            self.info(job)
        elif typed.decode(data, at)[0] == _ENVIRONMENTS:
            self.environments_info(job)
        else:
            self.submit(job)  # a worker says what is wrong with it

    def _no_info(self, job: Job) -> None:
        raise BadRequest("unknown request: :info")

    def _init_requested(self, job: Job, data: bytes, at: int) -> None:
        """Have every worker do it, and every later one; the answer is the first that is an error,
        or that of one of them.
        """
        if len(self.inits) >= _INITS:
            raise Failure("overloaded", f"more than {_INITS} init requests: start the node anew")
        parts = len(self.lanes)
        if not parts:
            raise Failure("worker_exited", "no worker is there: they are being started")
        kept = Job(None, job.data, job.origin)
        self.inits.append(kept)
        answers: list[bytes] = []

        def take(answer: bytes) -> None:
            answers.append(answer)
            if len(answers) == parts:
                self._init_done(job, kept, answers)

        for lane in list(self.lanes):
            self.submit(Job(None, job.data, job.origin, take), lane)

    def _init_done(self, job: Job, kept: Job, answers: list[bytes]) -> None:
        failed = [answer for answer in answers if not answer.startswith(_OK)]
        if failed and kept in self.inits:
            self.inits.remove(kept)
        self.answer(job, failed[0] if failed else answers[0])

    def _init_repeated(self, lane: Lane, answer: bytes) -> None:
        """Its caller had the answers of those workers that were there then."""
        if not answer.startswith(_OK):
            _log.error("an init request that was done elsewhere failed in %s", lane.process.name)

    def _make_env_requested(self, job: Job, data: bytes, at: int) -> None:
        """On the worker of the environments that it copies from."""
        job.makes = True
        self.submit(job, self._lane_of_sources(data, at))

    def _lane_of_sources(self, data: bytes, at: int) -> Lane | None:
        if data[at + 1] != 3 or data.find(b"from", at) < 0:
            return None
        first = typed.skip(data, at + 2)
        where = first if data[first : first + 1] in (b"l", b"j") else typed.skip(data, first)
        raw, _ = typed.decode(data, where)
        pairs = list(raw.items()) if isinstance(raw, dict) else raw
        if not isinstance(pairs, list):
            return None
        names = {pid.node for pair in pairs if _is_from(pair) for pid in _pids_in(pair[1])}
        if len(names) > 1:
            raise BadRequest(
                "from: names environments of several workers: copy from those of one, or give "
                "what the others hold as variables"
            )
        return self._by_name.get(names.pop()) if names else None

    def _destroy_env_requested(self, job: Job, data: bytes, at: int) -> None:
        if data[at + 1] == 2:
            pid, _ = typed.decode(data, typed.skip(data, at + 2))
            if isinstance(pid, Pid):
                lane = self._by_name.get(pid.node)
                if lane is None:
                    self.answer(job, OK)
                else:
                    job.destroys = True
                    self.submit(job, lane)
                return
        self.submit(job)  # a worker says what is wrong with it

    async def ask(self, request: object, lane: Lane | None = None) -> bytes:
        """Have a worker answer ``request``, the one of ``lane`` or any; what it answers, encoded.

        When this is cancelled, so is the work.
        """
        answered: asyncio.Future[bytes] = self._loop.create_future()

        def take(answer: bytes) -> None:
            if not answered.done():
                answered.set_result(answer)

        ref = self.node.make_ref()
        message = self.owner.encoder.encode((GEN_CALL, (self.pid, ref), request))
        caller = From(self.pid, ref.external, None)
        job = Job(caller, message, self.owner.name.encode(), take)
        self.submit(job, lane)
        try:
            return await answered
        except asyncio.CancelledError:
            self._given_up(job)
            raise

    def resolve(self, module: str, function: str) -> Callable[..., Awaitable[object]]:
        """What other nodes call here by ``:erpc`` and the like: a worker calls it."""
        return partial(self._call_function, module, function)

    async def _call_function(self, module: str, function: str, *args: object) -> object:
        request = (Atom("rpc"), module, function, list(args))
        answer, _ = self.owner.decoder.decode(await self.ask(request))
        match answer:
            case ("ok", ("return", value)):
                return value
            case ("ok", ("raised", reason, list() as stack)):
                raise PassedOnError(reason, stack)
            case (_, failure):
                raise PassedOnError(failure, [])
        raise PassedOnError(answer, [])

    # --- the end --------------------------------------------------------------------------------

    async def wait_ended(self) -> object:
        """Wait until this process has ended, and return why: somebody has killed it."""
        await self._ended.wait()
        return self.exit_reason

    def exited(self, reason: object) -> None:
        """Nothing is sent on any more."""
        self._ended.set()
        if self._looking is not None:
            self._looking.cancel()
        self._unwatched.clear()

    @property
    def running(self) -> int:
        """Requests that workers have."""
        for lane in self.lanes:
            self._refresh(lane)
        return sum(1 for lane in self.lanes for _ in lane.jobs())

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return self._queued


_ENVIRONMENTS: Final = ("info", "environments")
_NOT_SHARED: Final = OK_ + b"h\x02w\x05falsew\x03nil"
_INITS: Final = 1000
_MANY: Final = 100
_SMALL: Final = 4096  # bytes that cost less to be copied than to be written from two places
_BLOCKS: Final = 1000  # how much worse a request is that may block, than one that awaits
_OK: Final = b"h\x02w\x02ok"


def _ignore(*_: object) -> None:
    pass


def _taken(lane: Lane, sequence: int) -> Job | None:
    """What stands behind a request that has begun to await something, and does not say so yet."""
    for job in lane.sent:
        if job.sequence == sequence:
            lane.sent.remove(job)
            return job
    return None


def _by_front(job: Job) -> bool:
    """Whether the answer comes by way of the front: where it is for that, or where nothing would
    drop a second one, should the worker end just after it has answered.
    """
    return job.take is not None or (job.caller is not None and job.caller.alias is None)


def _kind_of(data: bytes, at: int) -> bytes:
    """The atom that a request is, or begins with."""
    if len(data) > at + 3 and data[at] == _TUPLE:
        at += 2
    if len(data) > at + 1 and data[at] == _ATOM:
        return data[at + 2 : at + 2 + data[at + 1]]
    return b""


_USUAL: Final = frozenset(
    bytes((104, arity, 119, 4)) + name for arity in (3, 4, 5) for name in (b"eval", b"call")
)
"""How requests begin that any worker can do, and nearly all are."""

_HEAD: Final = 8
_TUPLE: Final = 104
_ATOM: Final = 119


def _is_from(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and pair[0] == "from"


def _pids_in(value: object) -> Iterator[Pid]:
    for each in value if isinstance(value, list) else [value]:
        pid = each[0] if isinstance(each, tuple) and each else each
        if isinstance(pid, Pid):
            yield pid


def _overloaded(what: str) -> Failure:
    return Failure("overloaded", f"{what}: ask less at a time, or start more workers")


def _blamed(lane: Lane, started: int, verdict: Verdict, culprit: int) -> list[Job]:
    """Whose request it was that a worker was killed for."""
    if verdict is Verdict.OVERTIME:
        return [job for job in lane.jobs() if job.sequence == culprit]
    if verdict is Verdict.MEMORY:
        running = [job for job in lane.sent if job.sequence == started]
        return running or list(lane.waiting.values())
    return []


def _exit_failure(status: int, verdict: Verdict | None) -> Failure:
    if verdict is Verdict.OVERTIME:
        return Failure("killed", "it went on beyond timeout: and kill_after:, so its worker ended")
    if verdict is Verdict.MEMORY:
        return Failure("memory_limit", "its worker had more memory than --max-memory allows")
    return Failure("worker_exited", exit_term(status))
