"""Charts of results, as SVG, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.rows import CALLERS, KINDS

HINT = "no charts: matplotlib is not installed (pip install -e '.[charts]')"
NODE, BEAM = "#306998", "#a2003e"


def available() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, folder: Path) -> list[str]:
    """Write a chart for each kind of rows that there are; returns the names of the files."""
    import matplotlib  # noqa: PLC0415 - optional, and slow to import

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "benchmarks", "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure in (
        ("callers.svg", _callers(results, pyplot)),
        ("data.svg", _bars(results, pyplot, "Data", ("there", "back"), "", "x BEAM to BEAM")),
        (
            "pyeval.svg",
            _bars(results, pyplot, "by pyeval", ("there", "back"), ", pyeval", "x BEAM to BEAM"),
        ),
        ("codec.svg", _codec(results, pyplot)),
    ):
        if figure is not None:
            # Without a date the file of equal figures is equal.
            figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
            pyplot.close(figure)
            drawn.append(name)
    return drawn


def _callers(results: Results, pyplot: Any) -> Any:
    """Calls per second by the number of callers."""
    found = results.by_name()
    requests = ("call", "eval", "Snex.pyeval")
    figure, all_axes = pyplot.subplots(1, len(requests), figsize=(9, 3), sharey=True)
    drawn = False
    for axes, request in zip(all_axes, requests):
        rows = [
            (n, row)
            for n in CALLERS
            if (row := found.get(f"{request}, {n} caller" + ("s" if n > 1 else "")))
        ]
        for side, color in (("node", NODE), ("beam", BEAM)):
            points = [(n, row.sides[side].median) for n, row in rows if side in row.sides]
            if points:
                drawn = True
                axes.plot(*zip(*points), marker="o", color=color, label=side)
        axes.set(title=request, xlabel="callers", xscale="log", ylim=(0, None))
        axes.set_xticks(CALLERS, [str(n) for n in CALLERS])
    all_axes[0].set_ylabel("calls per second")
    if not drawn:
        pyplot.close(figure)
        return None
    next(axes for axes in all_axes if axes.lines).legend(frameon=False)
    return figure


def _bars(
    results: Results, pyplot: Any, title: str, ways: tuple[str, str], suffix: str, label: str
) -> Any:
    """The ratio of each kind of data, both ways."""
    found = results.by_name()
    kinds = [kind.name for kind in KINDS if f"{kind.name} {ways[0]}{suffix}" in found]
    if not kinds:
        return None
    values = [[_ratio(results, f"{kind} {way}{suffix}", "beam") for kind in kinds] for way in ways]
    return _horizontal(pyplot, title, kinds, dict(zip(ways, values)), label)


def _codec(results: Results, pyplot: Any) -> Any:
    """Time of pickle and of erlang-py, as multiples of ours."""
    rows = [row for row in results.rows if row.name.startswith(("decode ", "encode "))]
    if not rows:
        return None
    values = {
        name: [1 / value if (value := _ratio(results, row.name, name)) else 0.0 for row in rows]
        for name in ("erlang-py", "pickle")
    }
    labels = [row.name for row in rows]
    figure = _horizontal(pyplot, "The codec alone", labels, values, "x the time of ours")
    figure.axes[0].set_xscale("log")
    return figure


def _ratio(results: Results, name: str, yardstick: str) -> float:
    row = results.by_name().get(name)
    return row.ratios[yardstick].median if row and yardstick in row.ratios else 0.0


def _horizontal(
    pyplot: Any, title: str, labels: list[str], series: dict[str, list[float]], label: str
) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.36 * len(labels)))
    height = 0.8 / len(series)
    for number, (name, color) in enumerate(_colored(series)):
        places = [place + number * height for place in range(len(labels))]
        bars = axes.barh(places, series[name], height, color=color, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.set_yticks([place + height / 2 for place in range(len(labels))], labels)
    axes.invert_yaxis()
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set(title=title, xlabel=label)
    axes.legend(frameon=False)
    return figure


def _colored(series: dict[str, list[float]]) -> Iterator[tuple[str, str]]:
    yield from zip(series, (NODE, BEAM))
