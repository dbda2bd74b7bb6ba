"""Results for readers: a table on the terminal, one in Markdown, and a line that tells how far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from benchmarks.figures import Ratio, Unit
from benchmarks.results import Measured, Results
from benchmarks.rows import Row

WIDTH = 31
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
SCALES = {
    Unit.TIME: ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
    Unit.MEMORY: ((2**20, "MiB"), (2**10, "KiB"), (1, "B")),
}


def amount(value: float | None, unit: Unit) -> str:
    """A figure with the unit that suits its size; a dash for one that there is not.

    >>> amount(136_100, Unit.TIME), amount(42_123.4, Unit.RATE), amount(None, Unit.TIME)
    ('136 µs', '42,123 /s', '-')
    """
    if value is None:
        return "-"
    if unit is Unit.RATE:
        return f"{value:,.0f} /s"
    factor, name = next((one for one in SCALES[unit] if abs(value) >= one[0]), SCALES[unit][-1])
    scaled = value / factor
    return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {name}"


def times(ratio: Ratio) -> str:
    """A ratio and its spread."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def heading(made: dict[str, object]) -> str:
    """What was measured, in a line or two."""
    trees = made["trees"]
    assert isinstance(trees, dict)
    where = "pinned to a core for each role" if made["pinned"] else "not pinned"
    return (
        f"{made['scale']} run of {made['at']}: "
        + ", ".join(f"{name} {commit}" for name, commit in trees.items())
        + f"; OTP {made['otp']}, Python {made['python']}, {made['loop']}\n"
        f"{made['processor']}, {made['cores']} cores, {where}"
    )


class Table:
    """Prints rows as they come, under a heading for each group."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._group = ""

    def add(self, row: Measured) -> None:
        """Print a row; a line for each yardstick."""
        if row.group != self._group:
            self._group = row.group
            figures = f"{row.subject:>11}{'p99':>10}{'best':>11}"
            ratios = f"{'ratio':>8} {'half of them':13}{'p99':>5}{'best':>7}  to"
            self._write(f"\n{row.group:{WIDTH}}{figures}{ratios}")
        found = row.figures
        cells = f"{amount(found.median, row.unit):>11}{amount(found.p99, Unit.TIME):>10}"
        line = f"{row.name:{WIDTH}}{cells}{amount(found.best, row.unit):>11}"
        for name, ratio in row.ratios.items():
            their = amount(row.sides[name].median, row.unit)
            p99 = "-" if ratio.p99 is None else f"{ratio.p99:.2f}"
            spread = f"{ratio.low:.2f} to {ratio.high:.2f}"
            cells = f"{ratio.median:8.2f} {spread:13}{p99:>5}{ratio.best:7.2f}"
            self._write(f"{line}{cells}  {name}'s {their}")
            line = " " * len(line)
        if not row.ratios:
            self._write(line)

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


class Progress:
    """A line that tells which row is measured, and how long all others will take.

    It is written where somebody watches, and taken away before anything else is.
    """

    def __init__(self, out: TextIO, total: int) -> None:
        self._out = out
        self._total = total
        self._started = time.monotonic()
        self._shown = out.isatty()

    def show(self, number: int, row: Row) -> None:
        """Row ``number``, from 0 on, begins."""
        if not self._shown:
            return
        passed = time.monotonic() - self._started
        left = passed / number * (self._total - number) if number else 0.0
        rest = f", {left // 60:.0f}:{left % 60:02.0f} left" if number else ""
        self._out.write(f"\r\x1b[K[{number + 1}/{self._total}{rest}] {row.name}")
        self._out.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()


class Notes:
    """Tells what is missing, each thing once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._out.write(f"note: {text}\n")
            self._out.flush()


def markdown(results: Results, charts: list[str]) -> str:
    """The table for a document, with its charts in front."""
    return "\n".join([*_charts(charts), heading(results.made), *_tables(results)]) + "\n"


def fill(document: Path, text: str) -> bool:
    """Put figures between the two marks of a document; whether it has them."""
    if not document.is_file():
        return False
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        return False
    document.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
    return True


def _charts(charts: list[str]) -> Iterator[str]:
    for name in charts:
        yield f"![{Path(name).stem}]({name})"
        yield ""


def _tables(results: Results) -> Iterator[str]:
    group = ""
    for row in results.rows:
        if row.group != group:
            group = row.group
            yield f"\n### {group}\n"
            yield f"| | {row.subject} | p50 | p99 | yardstick | ratio | p99 |"
            yield "|---|---|---|---|---|---|---|"
        found = row.figures
        own = [row.name, amount(found.median, row.unit)]
        own += [amount(found.p50, Unit.TIME), amount(found.p99, Unit.TIME)]
        for name, ratio in row.ratios.items():
            their = f"{name}: {amount(row.sides[name].median, row.unit)}"
            p99 = "-" if ratio.p99 is None else f"{ratio.p99:.2f}"
            yield "| " + " | ".join([*own, their, times(ratio), p99]) + " |"
            own = [""] * len(own)
        if not row.ratios:
            yield "| " + " | ".join([*own, "", "", ""]) + " |"
