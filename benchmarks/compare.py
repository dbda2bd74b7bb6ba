"""Two files of results beside each other."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import WIDTH, amount, heading
from benchmarks.results import Measured, Results

ROUNDS = 4
"""Fewer have no spread to speak of, and no verdict."""


def lines(before: Results, after: Results) -> Iterator[str]:
    """A line for each row of both, and one for those that only one has.

    The figures of two runs differ with the speed of the machine as well. The ratios to a yardstick
    of the same run do so less: the last column is what became of them.
    """
    yield f"A: {heading(before.made)}"
    yield f"B: {heading(after.made)}"
    known, group = before.by_name(), ""
    for row in after.rows:
        if row.name not in known:
            continue
        if row.group != group:
            group = row.group
            columns = f"{'A':>12}{'B':>12}{'B/A':>8}   {'ratio A':>8}{'ratio B':>9}{'B/A':>7}"
            yield f"\n{group:{WIDTH}}{columns}"
        yield from _row(known[row.name], row)
    for name, one, other in (("A", before, after), ("B", after, before)):
        only = [row.name for row in one.rows if row.name not in other.by_name()]
        if only:
            yield f"\nonly in {name}: {', '.join(only)}"


def _row(before: Measured, after: Measured) -> Iterator[str]:
    a, b = before.figures.median, after.figures.median
    start = f"{after.name:{WIDTH}}{amount(a, before.unit):>12}{amount(b, after.unit):>12}"
    start += f"{b / a:8.2f}"
    shared = [name for name in after.ratios if name in before.ratios]
    for name in shared:
        old, new = before.ratios[name].median, after.ratios[name].median
        verdict = _verdict(before, after, name)
        yield f"{start}   {old:8.2f}{new:9.2f}{new / old:7.2f}  of {name}{verdict}"
        start = " " * len(start)
    if not shared:
        yield start


def _verdict(before: Measured, after: Measured, name: str) -> str:
    """Whether the ratios differ by more than they do between the rounds of one run."""
    old, new = before.ratios[name], after.ratios[name]
    if min(len(row.figures.rounds) for row in (before, after)) < ROUNDS or (
        old.low <= new.high and new.low <= old.high
    ):
        return ""
    better = (new.median > old.median) == after.unit.more_is_better
    return ", better" if better else ", worse"
