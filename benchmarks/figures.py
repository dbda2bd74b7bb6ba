"""Medians, percentiles and ratios of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

P99_SAMPLES = 100
"""Single times that a 99th percentile needs; of fewer it would be the longest one."""


class Unit(Enum):
    """What a row is measured in."""

    TIME = "ns"
    RATE = "/s"
    MEMORY = "bytes"

    @property
    def more_is_better(self) -> bool:
        return self is Unit.RATE


class Round(NamedTuple):
    """What one side took in one round: the figure, and nanoseconds of each single time."""

    value: float
    times: Sequence[int] = ()

    @classmethod
    def of(cls, unit: Unit, wall: int, count: int, times: Sequence[int]) -> Round:
        """The round in which something was done ``count`` times in ``wall`` nanoseconds."""
        if unit is Unit.RATE:
            return cls(count * 1e9 / wall, times)
        return cls(quantile(times, 0.5), times)


@dataclass(frozen=True)
class Summary:
    """All rounds of one side."""

    median: float
    """Of the rounds."""
    best: float
    """The shortest single time, the least memory, the highest rate."""
    p50: float | None
    """Of all single times, in nanoseconds; None where they were not taken."""
    p99: float | None
    """The same; None where they are fewer than `P99_SAMPLES`."""
    rounds: list[float]


@dataclass(frozen=True)
class Ratio:
    """One side to another one; below 1 it took less time, had a lower rate, or less memory."""

    median: float
    """Of the ratios of the rounds: both sides of a round met the same machine."""
    low: float
    """A quarter of the rounds is below."""
    high: float
    """A quarter of the rounds is above."""
    best: float
    """Of the best figures of both."""
    p99: float | None
    """Of the 99th percentiles, where there are any."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values are; between two of them it is on the line.

    >>> quantile([3, 1, 2], 0.5), quantile([0, 1], 0.25)
    (2.0, 0.25)
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarize(unit: Unit, rounds: Sequence[Round]) -> Summary:
    """What the rounds of one side come to."""
    values = [one.value for one in rounds]
    times = [time for one in rounds for time in one.times]
    if unit.more_is_better:
        best = max(values)
    else:
        best = float(min(times)) if unit is Unit.TIME and times else min(values)
    return Summary(
        median=quantile(values, 0.5),
        best=best,
        p50=quantile(times, 0.5) if times else None,
        p99=quantile(times, 0.99) if len(times) >= P99_SAMPLES else None,
        rounds=values,
    )


def ratio(subject: Summary, yardstick: Summary) -> Ratio:
    """Subject to yardstick; both have the same rounds."""
    of_rounds = [ours / theirs for ours, theirs in zip(subject.rounds, yardstick.rounds)]
    of_p99 = None
    if subject.p99 is not None and yardstick.p99 is not None:
        of_p99 = subject.p99 / yardstick.p99
    return Ratio(
        median=quantile(of_rounds, 0.5),
        low=quantile(of_rounds, 0.25),
        high=quantile(of_rounds, 0.75),
        best=subject.best / yardstick.best,
        p99=of_p99,
    )


def ratios(subject: str, sides: Mapping[str, Summary]) -> dict[str, Ratio]:
    """The subject's ratio to each other side."""
    return {
        name: ratio(sides[subject], summary) for name, summary in sides.items() if name != subject
    }
