"""Keeps the workers of a front: starts them, starts others in their place, and ends them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from snex_node.wire.terms import Atom
from snex_runtime import info, serde, totals
from snex_runtime.answers import OK_
from snex_runtime.blocking import Blocked
from snex_runtime.executors import NO_THREADS
from snex_runtime.front import Front, Job, Lane
from snex_runtime.latency import Counts
from snex_runtime.pulse import Pulse
from snex_runtime.requests import typed
from snex_runtime.workers import (
    ScriptFailedError,
    WorkerProcess,
    WorkerStartError,
    describe_exit,
)

__all__ = ["RESTARTS", "Crew"]

RESTARTS: Final = (10, 60.0)
"""Workers that may end by themselves in so many seconds, where nothing else is given."""

INFO_TIMEOUT: Final = 0.5
"""Seconds in which a worker has to say how it is; of one that does not, the last is told."""

_AGAIN: Final = 0.2  # seconds before another try at what has just failed

_log = logging.getLogger(__name__)


class Crew:
    """``size`` workers for ``front``, each told the ``configuration`` (`child.Configuration`).

    ``restarts`` are how many may end by themselves, in how many seconds: one more sets `failed`.
    """

    def __init__(
        self,
        front: Front,
        size: int,
        configuration: Mapping[str, Any],
        *,
        arguments: tuple[str, ...] = (),
        restarts: tuple[int, float] = RESTARTS,
    ) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to what is to be said when too many workers have ended."""
        self.restarts = 0
        """Workers started in the place of others that had ended by themselves."""
        self._node = front.owner
        self._front = front
        self._size = size
        self._configuration = configuration
        self._arguments = arguments
        self._most, self._within = restarts
        self._ends: deque[float] = deque()
        self._processes: dict[str, WorkerProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, dict[str, Any]] = {}
        self._stopping = False
        self._started = time.monotonic()
        front.retired = self._retired
        # How long the requests took of workers that have ended, as far as they have told.
        self._gone = Counts()
        self._pulse = Pulse(front.owner)
        front.info = self._info_requested
        front.environments_info = self._environments_requested

    def __len__(self) -> int:
        """How many processes there are."""
        return len(self._processes)

    async def start(self) -> None:
        """Start all of them. Raises `WorkerStartError`; then none is left."""
        starts = [asyncio.ensure_future(self._launch()) for _ in range(self._size)]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all of them, as programs end."""
        self._stopping = True
        self._pulse.close()
        for process in self._processes.values():
            process.stop()
        await asyncio.gather(*(each.ended() for each in list(self._processes.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- one of them ----------------------------------------------------------------------------

    async def _launch(self) -> None:
        name = self._free_name()
        process = self._processes[name] = WorkerProcess(name)
        try:
            await process.start(self._configuration, self._arguments)
        except BaseException:
            del self._processes[name]
            raise
        lane = Lane(process)
        self._run(self._look_after(lane))
        self._front.add(lane)

    def _free_name(self) -> str:
        """The first name that no process has: those of nodes are remembered by every BEAM."""
        alive, _, host = str(self._node.name).partition("@")
        number = 1
        while f"{alive}-{number}@{host}" in self._processes:
            number += 1
        return f"{alive}-{number}@{host}"

    async def _look_after(self, lane: Lane) -> None:
        """Wait for the end of a worker, and see to what it leaves."""
        process = lane.process
        status = await process.exited
        self._gone.include(self._told.pop(process.name, {}).get("latency"))
        del self._processes[process.name]
        self._front.lost(lane, status)
        if self._stopping or (lane.retiring and status == 0):
            return
        _log.warning("the worker %s has ended %s", process.name, describe_exit(status))
        if not lane.retiring:  # else there is another one already
            await self._replace()

    async def _replace(self) -> None:
        """Start another worker in the place of one, as often as may be."""
        while not self._stopping:
            now = time.monotonic()
            while self._ends and now - self._ends[0] > self._within:
                self._ends.popleft()
            if len(self._ends) >= self._most:
                self._give_up()
                return
            self._ends.append(now)
            self.restarts += 1
            if await self._try_to_launch():
                return
            await asyncio.sleep(_AGAIN)

    async def _try_to_launch(self) -> bool:
        try:
            await self._launch()
        except ScriptFailedError as error:
            _log.error("the init script failed in a worker: %s", error)
        except WorkerStartError as error:
            _log.error("a worker did not start: %s", error)
        else:
            return True
        return False

    def _give_up(self) -> None:
        if not self.failed.done():
            self.failed.set_result(
                f"more than {self._most} workers have ended within {self._within:g} s: see what "
                "the log says of each (--max-restarts N/SECONDS allows more)"
            )

    def _retired(self, lane: Lane) -> None:
        """``lane`` gets nothing more to do, and ends when it has nothing left."""
        _log.info("the worker %s has had its %d requests", lane.process.name, lane.requests)
        self._run(self._relieve(lane))

    async def _relieve(self, lane: Lane) -> None:
        if not await self._try_to_launch():
            await self._replace()
        while lane in self._front.lanes:
            await self._ask(lane)  # its environments end without a word
            self._front.end_if_idle(lane)
            await asyncio.sleep(INFO_TIMEOUT)

    # --- what there is --------------------------------------------------------------------------

    def _info_requested(self, job: Job) -> None:
        self._run(self._tell(job))

    def _environments_requested(self, job: Job) -> None:
        self._run(self._tell_environments(job))

    @property
    def _lanes(self) -> list[Lane]:
        return sorted(self._front.lanes, key=lambda lane: lane.process.name)

    async def _tell(self, job: Job) -> None:
        self._front.answer(job, OK_ + serde.encoder.encode(await self.info()))

    async def info(self) -> dict[Atom, object]:
        """What ``:info`` answers: of all workers together, which are asked for it."""
        front, lanes = self._front, self._lanes
        fresh = await asyncio.gather(*(self._ask(lane) for lane in lanes))
        last = [self._told.get(lane.process.name, {}) for lane in lanes]
        map_ = info.about(
            self._node,
            uptime=time.monotonic() - self._started,
            environments=sum(map(_environments_of, lanes, fresh)),
            streams=0,
            objects=0,
            # Those that came to environments on workers directly are not known here.
            requests_running=max(front.running, totals.running(fresh)),
            threads=NO_THREADS,
            blocked=Blocked(),
            pulse=self._pulse,
            latency=Counts(),
        )
        totals.add_up(map_, last, self._gone)
        queued: Any = map_[Atom("requests_queued")]
        map_[Atom("requests_queued")] = queued + front.queued
        parts = [totals.running_on(lane, told) for lane, told in zip(lanes, fresh, strict=True)]
        map_[Atom("running")] = totals.oldest(each for part in parts for each in part)
        map_[Atom("worker_restarts")] = self.restarts
        map_[Atom("workers")] = [
            totals.of_lane(lane, _environments_of(lane, told))
            for lane, told in zip(lanes, fresh, strict=True)
        ]
        return map_

    async def _tell_environments(self, job: Job) -> None:
        lanes = self._lanes
        asked = Atom("info"), Atom("environments")
        answers = await asyncio.gather(*(self._answer_of(lane, asked) for lane in lanes))
        told = totals.environments(each for each in answers if isinstance(each, list))
        self._front.answer(job, OK_ + serde.encoder.encode(told))

    async def _ask(self, lane: Lane) -> dict[str, Any] | None:
        """Ask a worker that nothing blocks how it is; None: it does not say."""
        answer = await self._answer_of(lane, Atom("info"))
        if not isinstance(answer, dict):
            return None
        told = self._told[lane.process.name] = {str(k): v for k, v in answer.items()}
        lane.environments = sum(
            told.get(name, 0) for name in ("environments", "streams", "objects")
        )
        return told

    async def _answer_of(self, lane: Lane, request: object) -> object:
        """What a worker answers that nothing blocks; None of one that does not in time."""
        if lane not in self._front.lanes or not lane.has_room:
            return None
        try:
            answer = await asyncio.wait_for(self._front.ask(request, lane), INFO_TIMEOUT)
        except asyncio.TimeoutError:
            return None
        raw, _ = typed.decode(answer)
        return raw[1] if isinstance(raw, tuple) and raw[0] == "ok" else None


def _environments_of(lane: Lane, told: dict[str, Any] | None) -> int:
    """Those on a worker; of one that does not answer, with what else others know the pids of."""
    return lane.environments if told is None else int(told["environments"])
