"""How long requests take: counts in buckets of a logarithmic scale, which cost next to nothing.

Four buckets to each doubling, from a microsecond to hours: so a percentile is at most a quarter
above what it is the percentile of, or a microsecond. Counts of several processes are added up
bucket by bucket, and what came between two looks is the difference of their counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["BOUNDS", "Counts", "Latency"]

_UNIT: Final = 10
"""What is counted are units of 2^10 ns, about a microsecond."""

_SHORT: Final = 512
"""Units below which each has a count of its own: finding that is one shift, where finding a bucket
is six operations. It is half a millisecond, and so less than any ``slow``."""

BOUNDS: Final[tuple[int, ...]] = (
    *((unit + 1) << _UNIT for unit in range(4)),
    *((5 + quarter) << (octave + _UNIT) for octave in range(32) for quarter in range(4)),
)
"""Nanoseconds below which what is in each bucket took, up to 4.9 hours; in the last one is what
took longer as well."""


def _bucket(nanoseconds: int) -> int:
    return min(bisect_right(BOUNDS, nanoseconds), len(BOUNDS) - 1)


_BUCKETS: Final = tuple(_bucket(unit << _UNIT) for unit in range(_SHORT))
"""Those of the first units."""


class Counts:
    """How many took how long."""

    __slots__ = ("buckets", "longest")

    def __init__(self) -> None:
        self.buckets = [0] * len(BOUNDS)
        """How many, one number for each of `BOUNDS`."""
        self.longest = 0
        """Nanoseconds that the longest took."""

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    @property
    def total(self) -> int:
        """Nanoseconds that all of them took, as far as buckets tell: within an eighth."""
        lower = (0, *BOUNDS)
        return sum(n * (lower[at] + BOUNDS[at]) // 2 for at, n in enumerate(self.buckets) if n)

    def percentile(self, share: float) -> int:
        """Nanoseconds within which ``share`` of them were done, 0.0 to 1.0; 0 when there are none.

        It is the end of a bucket, and never more than the longest took.
        """
        rank = share * self.count
        for bound, number in zip(BOUNDS, self.buckets, strict=True):
            rank -= number
            if number and rank <= 0:
                return min(bound, self.longest)
        return self.longest

    def summary(self) -> dict[str, object]:
        """What ``:info`` tells: times in microseconds, rounded up, and ``buckets``, a map from the
        bound of each that has any to how many.
        """
        return {
            "count": self.count,
            "p50_us": _microseconds(self.percentile(0.5)),
            "p90_us": _microseconds(self.percentile(0.9)),
            "p99_us": _microseconds(self.percentile(0.99)),
            "max_us": _microseconds(self.longest),
            "buckets": {bound: n for bound, n in zip(BOUNDS, self.buckets, strict=True) if n},
        }

    def add(self, others: Counts) -> None:
        """Add what others have counted."""
        pairs = zip(self.buckets, others.buckets, strict=True)
        self.buckets = [one + another for one, another in pairs]
        self.longest = max(self.longest, others.longest)

    def include(self, summary: object) -> None:
        """Add what a `summary` tells, of another process say. What is none is passed over."""
        if not isinstance(summary, Mapping):
            return
        buckets, longest = summary.get("buckets"), summary.get("max_us")
        for bound, number in (buckets if isinstance(buckets, Mapping) else {}).items():
            if type(bound) is int and type(number) is int and bound > 0 and number > 0:
                self.buckets[_bucket(bound - 1)] += number
        if type(longest) is int:
            self.longest = max(self.longest, longest * 1000)

    def since(self, before: Counts) -> Counts:
        """What has come since there was ``before``: the longest of that is not known, and is that
        of all.
        """
        difference = Counts()
        difference.longest = self.longest
        pairs = zip(self.buckets, before.buckets, strict=True)
        difference.buckets = [max(0, now - then) for now, then in pairs]
        return difference


class Begun(Protocol):
    """What has begun: a request."""

    @property
    def began(self) -> int:
        """When, in nanoseconds of `time.perf_counter_ns`."""


B = TypeVar("B", bound=Begun)


class Latency(Generic[B]):
    """Counts how long requests took; `ended` is for one thread.

    ``tell`` is called with those that take ``slow`` seconds or more, 0.001 at least, and with the
    seconds that they took; None: with none.
    """

    __slots__ = ("_long", "_short", "_slow", "_tell")

    def __init__(
        self, slow: float | None = None, tell: Callable[[B, float], None] | None = None
    ) -> None:
        self._short = [0] * _SHORT
        self._long = Counts()
        self._slow = None if slow is None else int(slow * 1e9)
        self._tell = tell

    def ended(self, request: B) -> None:
        """``request`` ends now."""
        took = perf_counter_ns() - request.began
        try:
            self._short[took >> _UNIT] += 1
        except IndexError:
            self._note(request, took)

    def _note(self, request: B, took: int) -> None:
        long = self._long
        long.buckets[_bucket(took)] += 1
        long.longest = max(long.longest, took)
        if self._slow is not None and took >= self._slow and self._tell is not None:
            self._tell(request, took / 1e9)

    @property
    def counts(self) -> Counts:
        """How many took how long until now."""
        found = Counts()
        found.buckets = self._long.buckets.copy()
        found.longest = self._long.longest
        for unit, number in enumerate(self._short):
            if number:
                found.buckets[_BUCKETS[unit]] += number
                found.longest = max(found.longest, (unit + 1) << _UNIT)
        return found


def _microseconds(nanoseconds: int) -> int:
    return -(-nanoseconds // 1000)
