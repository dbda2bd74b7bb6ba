"""What workers tell, as one answer."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from snex_runtime import totals
from snex_runtime.front import Job, Lane
from snex_runtime.latency import BOUNDS, Counts
from tests.support.asking import term_of
from tests.support.requests import PID, by_alias, encode

A = Atom


def named(**values: object) -> dict[Atom, object]:
    return {A(name): value for name, value in values.items()}


def peer(node: str, bytes_in: int = 0, heard: int = 0) -> dict[Atom, object]:
    traffic = {"bytes_in": bytes_in, "bytes_out": 1, "pending": 2}
    return named(node=A(node), **traffic, connected_ms=heard + 5, last_heard_ms=heard)


def counts(bucket: int, number: int = 1) -> Counts:
    made = Counts()
    made.buckets[bucket] = number
    made.longest = BOUNDS[bucket]
    return made


def own(**values: object) -> dict[Atom, object]:
    """What a front tells of itself, with something else in it."""
    traffic = ("bytes_in", "bytes_out", "requests_queued", "streams", "objects")
    threads = ("threads", "threads_busy", "threads_lost")
    return named(
        **{
            **dict.fromkeys(traffic + threads, 0),
            "memory_bytes": 100,
            "loop_lag_ms": 3,
            "loop_blocked_max_ms": 0,
            "peers": [],
            **values,
        }
    )


def test_what_workers_run() -> None:
    assert totals.running([]) == 0
    assert totals.running([{"requests_running": 2}, None, {}, {"requests_running": 3}]) == 5


class TestAddingUp:
    def test_sums(self) -> None:
        map_ = own(bytes_in=1)
        totals.add_up(map_, [{"bytes_in": 10, "memory_bytes": 5}, {"memory_bytes": None}], Counts())
        assert (map_[A("bytes_in")], map_[A("memory_bytes")]) == (11, 105)

    def test_of_a_worker_of_another_version(self) -> None:
        map_ = own()
        totals.add_up(map_, [{"streams": 2, "objects": 3}, {}], Counts())
        assert (map_[A("streams")], map_[A("objects")]) == (2, 3)

    @pytest.mark.parametrize(("told", "lag"), [([], 3), ([{"loop_lag_ms": 9}, {}], 9)])
    def test_the_worst_lag(self, told: list[dict[str, object]], lag: int) -> None:
        map_ = own()
        totals.add_up(map_, told, Counts())
        assert map_[A("loop_lag_ms")] == lag

    def test_the_loop_that_was_blocked_longest(self) -> None:
        map_ = own()
        blocked = {"loop_blocked_ms": 1, "loop_blocked_max_ms": 7, "loop_blocked_at": "here"}
        totals.add_up(map_, [{"loop_blocked_max_ms": 5}, blocked], Counts())
        assert {name: map_[A(name)] for name in blocked} == blocked

    def test_latency(self) -> None:
        map_ = own()
        told = [{"latency": counts(9).summary()}, {"latency": counts(9, 2).summary()}, {}]
        totals.add_up(map_, told, counts(40))
        latency: Any = map_[A("latency")]
        assert latency[A("count")] == 4
        assert latency[A("buckets")] == {BOUNDS[9]: 3, BOUNDS[40]: 1}
        assert latency[A("max_us")] == -(-BOUNDS[40] // 1000)

    def test_peers(self) -> None:
        map_ = own(peers=[peer("a@h", 1, heard=50)])
        totals.add_up(map_, [{"peers": [peer("a@h", 10, heard=7), peer("b@h")]}, {}], Counts())
        assert map_[A("peers")] == [
            named(
                node=A("a@h"),
                bytes_in=11,
                bytes_out=2,
                pending=4,
                connected_ms=55,
                last_heard_ms=7,
            ),
            peer("b@h"),
        ]


def lane(name: str = "py-1@h", *sent: Job, waiting: tuple[Job, ...] = ()) -> Lane:
    process: Any = SimpleNamespace(name=name, process=7, ledger=None)
    made = Lane(process)
    made.sent = deque(sent)
    made.waiting = dict(enumerate(waiting))
    made.progress = time.monotonic()
    return made


def job(*request: Any, caller: bool = True) -> Job:
    term = term_of(*request)
    message = (A("$gen_call"), (PID, A("tag")), term) if caller else (A("$gen_cast"), term)
    return Job(by_alias() if caller else None, encode(message), b"app@host")


class TestRunning:
    def test_as_the_worker_tells(self) -> None:
        told = {"running": [named(kind=A("eval"))]}
        assert totals.running_on(lane(), told) == [named(kind=A("eval"), worker=A("py-1@h"))]
        assert totals.running_on(lane(), {}) == []

    def test_of_one_that_tells_nothing(self) -> None:
        """A worker that is blocked: the front knows what it has been sent."""
        busy = lane(
            "py-1@h", job("eval", b"1", {}), waiting=(job("call", b"m", b"f", [], caller=False),)
        )
        first, second = totals.running_on(busy, None)
        age: Any = first.pop(A("age_ms"))
        assert 0 <= age < 60_000
        unknown = {"where": None, "environment": None, "worker": A("py-1@h")}
        assert first == named(caller=PID, kind=A("eval"), **unknown)
        assert second == named(caller=None, kind=A("call"), age_ms=None, **unknown)

    def test_of_what_is_no_request(self) -> None:
        (running,) = totals.running_on(lane("py-1@h", Job(None, b"nothing", b"app@host")), None)
        assert running[A("kind")] == "unknown"

    def test_the_oldest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(totals, "MAX_RUNNING", 3)
        running = [named(age_ms=age) for age in (1, None, 9, 5)]
        ages = [each[A("age_ms")] for each in totals.oldest(running)]
        assert ages == [None, 9, 5]


def test_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MAX_ENVIRONMENTS", 2)
    told = [[named(age_ms=1), named(age_ms=7)], [], [named(age_ms=3)]]
    assert totals.environments(told) == [named(age_ms=7), named(age_ms=3)]


def test_a_worker() -> None:
    busy = lane("py-1@h", job("eval", b"1", {}))
    assert totals.of_lane(busy)[A("state")] == A("busy")
    busy.retiring = True
    assert totals.of_lane(busy)[A("state")] == A("retiring")
    told = totals.of_lane(lane())
    assert told == named(
        node=A("py-1@h"),
        os_pid=7,
        state=A("free"),
        busy_ms=0,
        environments=0,
        requests=0,
        requests_running=0,
    )
