"""How long requests take, in buckets."""

from __future__ import annotations

import random
from time import perf_counter_ns

import pytest

from snex_runtime import latency
from snex_runtime.latency import BOUNDS, Counts, Latency
from snex_runtime.requests import Request
from tests.support.requests import request_of


class Took:
    """A request that has taken some time when it ends; the clock is the test's."""

    def __init__(self, nanoseconds: int) -> None:
        self.began = -nanoseconds


@pytest.fixture
def _stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: 0)


def counted(*nanoseconds: int) -> Counts:
    made: Latency[Took] = Latency()
    for each in nanoseconds:
        made.ended(Took(each))
    return made.counts


def test_bounds_are_four_to_each_doubling() -> None:
    assert list(BOUNDS[:9]) == [1024 * n for n in (1, 2, 3, 4, 5, 6, 7, 8, 10)]
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert 4 * 3600 < BOUNDS[-1] / 1e9 < 5 * 3600
    assert all(2 * low == high for low, high in zip(BOUNDS[3:], BOUNDS[7:]))


@pytest.mark.usefixtures("_stopped")
class TestCounting:
    def test_each_is_in_its_bucket(self) -> None:
        """What took less than a millisecond is counted another way than the rest."""
        choice = random.Random(7)
        for _ in range(2000):
            took = int(2 ** choice.uniform(0, 43))
            (found,) = [at for at, number in enumerate(counted(took).buckets) if number]
            assert took < BOUNDS[found]
            assert found == 0 or took >= BOUNDS[found - 1]

    def test_the_ends_of_buckets(self) -> None:
        for at, bound in enumerate(BOUNDS):
            assert counted(bound - 1).buckets[at] == 1
        assert counted(BOUNDS[-1], 10**18).buckets[-1] == 2

    def test_percentiles(self) -> None:
        counts = counted(*(n * 1000 for n in range(1, 1001)))
        assert counts.count == 1000
        for share, exact in ((0.5, 500_000), (0.9, 900_000), (0.99, 990_000)):
            assert exact <= counts.percentile(share) <= exact * 1.25
        assert counts.percentile(1.0) == counts.longest == 1_000_000
        assert counts.total == pytest.approx(500_500_000, rel=0.125)

    def test_never_more_than_the_longest(self) -> None:
        assert counted(2_000_001).percentile(0.5) == 2_000_001

    def test_none(self) -> None:
        assert counted().summary() == {
            **dict.fromkeys(("count", "p50_us", "p90_us", "p99_us", "max_us"), 0),
            "buckets": {},
        }

    def test_the_summary(self) -> None:
        summary = counted(1500, 1500, 3_000_000_001).summary()
        assert summary == {
            "count": 3,
            "p50_us": 3,
            "p90_us": 3_000_001,
            "p99_us": 3_000_001,
            "max_us": 3_000_001,
            "buckets": {2048: 2, 3_221_225_472: 1},
        }


@pytest.mark.usefixtures("_stopped")
class TestAddingUp:
    def test_what_others_tell(self) -> None:
        one, other = counted(1500, 90_000), counted(1500, 7_000_000)
        both = Counts()
        both.include(one.summary())
        both.include(other.summary())
        assert both.buckets == counted(1500, 90_000, 1500, 7_000_000).buckets
        assert both.longest == 7_000_000
        one.add(other)
        assert one.buckets == both.buckets
        assert one.longest == 7_000_000

    @pytest.mark.parametrize(
        "summary",
        [
            None,
            7,
            {},
            {"buckets": None, "max_us": None},
            {"buckets": {"x": 1, 5: None, -1: 3, 1024: -2, 2048: 0, True: 4}},
        ],
    )
    def test_what_is_no_summary(self, summary: object) -> None:
        counts = Counts()
        counts.include(summary)
        assert counts.count == 0

    def test_what_has_come_since(self) -> None:
        before, after = counted(1500), counted(1500, 1500, 9000)
        difference = after.since(before)
        assert difference.buckets == counted(1500, 9000).buckets
        assert before.since(after).count == 0


class TestSlow:
    @pytest.mark.usefixtures("_stopped")
    def test_it_is_told_of(self) -> None:
        told: list[tuple[Took, float]] = []
        made: Latency[Took] = Latency(0.001, lambda took, seconds: told.append((took, seconds)))
        requests = [Took(n) for n in (999_999, 1_000_000, 3_000_000_000)]
        for request in requests:
            made.ended(request)
        assert told == [(requests[1], 0.001), (requests[2], 3.0)]
        assert made.counts.count == 3

    def test_of_a_request(self) -> None:
        made: Latency[Request] = Latency()
        request = request_of(b"h\x03w\x04eval")
        before = perf_counter_ns()
        made.ended(request)
        assert 0 < request.began <= before
        assert made.counts.count == 1
