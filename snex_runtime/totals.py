"""What a front tells of its workers: what each has told of itself, as one answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from snex_node.wire.terms import Atom
from snex_runtime.front import Lane
from snex_runtime.info import MAX_ENVIRONMENTS, MAX_RUNNING
from snex_runtime.latency import Counts

__all__ = ["add_up", "environments", "of_lane", "oldest", "running", "running_on"]

Told = Mapping[str, Any]
"""What one worker has told: an answer to ``:info``."""

_SUMS: Final = (
    *("bytes_in", "bytes_out", "requests_queued", "memory_bytes", "streams"),
    "objects",
    *("threads", "threads_busy", "threads_lost"),
)
_OF_THE_WORST: Final = ("loop_blocked_ms", "loop_blocked_max_ms", "loop_blocked_at")
"""What is that of the worker whose loop was blocked longest."""

_OF_PEERS: Final[Mapping[Atom, Callable[[Iterable[int]], int]]] = {
    Atom("bytes_in"): sum,
    Atom("bytes_out"): sum,
    Atom("pending"): sum,
    Atom("connected_ms"): max,
    Atom("last_heard_ms"): min,
}
"""How what several processes tell of one peer becomes one."""


def add_up(own: dict[Atom, object], told: Sequence[Told], gone: Counts) -> None:
    """Put what workers have ``told`` into what their front tells, ``own``. ``gone`` is how long the
    requests took of workers that are no more.
    """
    map_: Any = own
    blocked: Told = max(told, key=lambda each: each.get("loop_blocked_max_ms", 0), default={})
    map_ |= {Atom(name): blocked[name] for name in _OF_THE_WORST if name in blocked}
    for name in map(Atom, _SUMS):
        parts = [map_[name], *(each.get(name, 0) for each in told)]
        map_[name] = sum(part for part in parts if part is not None)
    lag = Atom("loop_lag_ms")
    map_[lag] = max(map_[lag], *(each.get("loop_lag_ms", 0) for each in told), 0)
    peers = Atom("peers")
    map_[peers] = _peers([map_[peers], *(each.get("peers", []) for each in told)])
    counts = Counts()
    counts.add(gone)
    for each in told:
        counts.include(each.get("latency"))
    map_[Atom("latency")] = {Atom(name): value for name, value in counts.summary().items()}


def _peers(lists: Iterable[Sequence[Mapping[Any, Any]]]) -> list[dict[Atom, object]]:
    by_node: dict[str, list[Mapping[Any, Any]]] = {}
    for peer in (peer for peers in lists for peer in peers):
        by_node.setdefault(peer[Atom("node")], []).append(peer)
    return [
        {
            Atom("node"): Atom(node),
            **{name: unite(each[name] for each in of_one) for name, unite in _OF_PEERS.items()},
        }
        for node, of_one in by_node.items()
    ]


def running_on(lane: Lane, told: Told | None) -> list[dict[Atom, object]]:
    """What a worker runs, as it has told; of one that could not, what it was sent."""
    worker = {Atom("worker"): Atom(lane.process.name)}
    if told is not None:
        return [{**each, **worker} for each in told.get("running", ())]
    since = int((time.monotonic() - lane.progress) * 1000)
    return [
        {
            Atom("caller"): None if job.caller is None else job.caller.pid,
            Atom("kind"): Atom(job.kind),
            Atom("age_ms"): since if job in lane.sent else None,
            Atom("where"): None,
            Atom("environment"): None,
            **worker,
        }
        for job in lane.jobs()
    ]


def running(told: Iterable[Told | None]) -> int:
    """How many requests workers have told that they run."""
    return sum(each.get("requests_running", 0) for each in told if each is not None)


def oldest(running: Iterable[dict[Atom, object]]) -> list[dict[Atom, object]]:
    """Of what several workers run, what has run longest; that of which nobody knows comes first."""
    age = Atom("age_ms")
    by_age = sorted(running, key=lambda each: _descending(each[age]))
    return by_age[:MAX_RUNNING]


def _descending(age: object) -> float:
    return -age if isinstance(age, int) else float("-inf")


def environments(told: Iterable[Sequence[dict[Atom, object]]]) -> list[dict[Atom, object]]:
    """Those of several workers, the oldest first."""
    age = Atom("age_ms")
    found = [each for environments in told for each in environments]
    return sorted(found, key=lambda each: _descending(each[age]))[:MAX_ENVIRONMENTS]


def of_lane(lane: Lane, environments: int | None = None) -> dict[Atom, object]:
    """What a front tells of one worker."""
    busy = 0.0 if not lane.sent else time.monotonic() - lane.progress
    return {
        Atom("node"): Atom(lane.process.name),
        Atom("os_pid"): lane.process.process,
        Atom("state"): Atom("retiring" if lane.retiring else "busy" if lane.sent else "free"),
        Atom("busy_ms"): int(busy * 1000),
        Atom("environments"): lane.environments if environments is None else environments,
        Atom("requests"): lane.requests,
        Atom("requests_running"): sum(1 for _ in lane.jobs()),
    }
