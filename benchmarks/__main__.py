"""The command line: ``python -m benchmarks``; ``--help`` tells what there is."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import charts, compare, report, results, runner, stage
from benchmarks.nodes import ROOT, TreeError, check_tree
from benchmarks.results import FormatError, Results
from benchmarks.rows import FULL, QUICK, Row, Scale, all_rows

DOCUMENTS = ROOT / "docs" / "benchmarks"
DEVELOPMENT = ROOT / "benchmarks" / "results"
RESULTS = "results.json"


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (FormatError, TreeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What calls, data and environments cost; docs/benchmarks/README.md explains "
        "each row.",
    )
    parser.set_defaults(command=_run, quick=False, only=[], to=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    run = commands.add_parser("run", help="measure everything (the default)")
    _add_choice(run)
    run.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="where results.json and the charts go, and the figures of a README.md that has marks "
        "for them (default: docs/benchmarks, or benchmarks/results with --quick or --only)",
    )
    run.set_defaults(command=_run)
    against = commands.add_parser(
        "against", help="the Python of this tree beside that of another one, in one run"
    )
    against.add_argument("tree", type=Path, metavar="TREE", help="a checkout of the project")
    _add_choice(against)
    against.add_argument("--to", type=Path, metavar="FILE", help="write the results as JSON")
    against.set_defaults(command=_against)
    comparing = commands.add_parser("compare", help="two files of results, row by row")
    comparing.add_argument("before", type=Path, metavar="A.json")
    comparing.add_argument("after", type=Path, metavar="B.json")
    comparing.set_defaults(command=_compare)
    rows = commands.add_parser("rows", help="the rows, and what they are")
    rows.set_defaults(command=_rows)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds of fewer calls: less than a minute"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="rows whose name or group has these words (repeatable)",
    )


def _run(options: argparse.Namespace) -> int:
    partly = options.quick or options.only
    folder = options.to or (DEVELOPMENT if partly else DOCUMENTS)
    found = _measure(stage.whole_tree(), options)
    if found is None:
        return 1
    results.save(found, folder / RESULTS)
    drawn = charts.draw(found, folder) if charts.available() else []
    if not charts.available():
        print(f"note: {charts.HINT}", file=sys.stderr)
    report.fill(folder / "README.md", report.markdown(found, drawn))
    print(f"\n{folder / RESULTS}" + "".join(f", {name}" for name in drawn))
    return 0


def _against(options: argparse.Namespace) -> int:
    trees = {"this": ROOT, "other": check_tree(options.tree)}
    found = _measure(trees, options)
    if found is None:
        return 1
    if options.to is not None:
        results.save(found, options.to)
    return 0


def _compare(options: argparse.Namespace) -> int:
    for line in compare.lines(results.load(options.before), results.load(options.after)):
        print(line)
    return 0


def _rows(_options: argparse.Namespace) -> int:
    for row in all_rows():
        print(f"{row.name:{report.WIDTH}}{row.what}")
    return 0


def chosen(words: list[str]) -> list[Row]:
    """The rows whose name or group has some of the words; all of them where there are none."""
    rows = all_rows()
    if not words:
        return rows
    return [
        row
        for row in rows
        if any(word.lower() in f"{row.name} / {row.group}".lower() for word in words)
    ]


def _measure(trees: Mapping[str, Path], options: argparse.Namespace) -> Results | None:
    scale = QUICK if options.quick else FULL
    rows = chosen(options.only)
    missing = [name for name in ("elixir", "epmd") if shutil.which(name) is None]
    if missing or not rows:
        why = f"{' and '.join(missing)} must be installed" if missing else "there is no such row"
        print(f"error: {why}", file=sys.stderr)
        return None
    return measure(trees, scale, rows)


def measure(trees: Mapping[str, Path], scale: Scale, rows: list[Row]) -> Results:
    """Measure rows and print them as they come."""
    progress, table = report.Progress(sys.stderr, len(rows)), report.Table(sys.stdout)
    notes = report.Notes(sys.stderr)

    def note(text: str) -> None:
        progress.clear()
        notes(text)

    found = []
    with stage.opened(trees, scale) as on:
        made = results.made(scale.name, trees, on.described())
        print(report.heading(made))
        for row in runner.measured(on, rows, note, progress.show):
            progress.clear()
            table.add(row)
            found.append(row)
    progress.clear()
    return Results(made, found)


if __name__ == "__main__":
    sys.exit(main())
