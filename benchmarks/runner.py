"""Measures rows: all sides in turn, round by round, so that they meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from benchmarks import meters
from benchmarks.figures import Round, summarize
from benchmarks.meters import Meter
from benchmarks.results import Measured
from benchmarks.rows import Row, Scale
from benchmarks.stage import Stage


def rounds_of(
    sides: Mapping[str, Meter],
    scale: Scale,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[Round]]:
    """The rounds of each side, equally many.

    The order is turned round after each round: what the one leaves behind (a hot cache, a clock
    that was raised) is not always for the same other one.
    """
    if warm_up:
        for measure in sides.values():
            measure()
    found: dict[str, list[Round]] = {name: [] for name in sides}
    order = list(sides)
    end = clock() + scale.seconds
    for number in range(scale.rounds):
        if number >= scale.least and clock() >= end:
            break
        for name in order:
            found[name].append(sides[name]())
        order.reverse()
    return found


def measured(
    on: Stage,
    rows: list[Row],
    note: Callable[[str], None],
    begin: Callable[[int, Row], None],
) -> Iterator[Measured]:
    """Each row as it is done; ``begin`` is told of it before, ``note`` of what is missing."""
    subject = on.sides[0].name
    for number, row in enumerate(rows):
        begin(number, row)
        with meters.opened(on, row, note) as sides:
            if not sides:
                continue
            rounds = rounds_of(sides, on.scale, warm_up=row.warms_up)
        summaries = {name: summarize(row.unit, of_side) for name, of_side in rounds.items()}
        yield Measured.of(row, subject, summaries)
