"""What a run has found, and the file that keeps it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.figures import Ratio, Summary, Unit, ratios
from benchmarks.rows import Row

FORMAT = 1


class FormatError(Exception):
    """A file that has no results, or those of another version of the suite."""


@dataclass(frozen=True)
class Measured:
    """A row with its figures."""

    name: str
    what: str
    group: str
    unit: Unit
    subject: str
    """The side that the row is about."""
    sides: dict[str, Summary]
    ratios: dict[str, Ratio]
    """The subject to each other side."""

    @classmethod
    def of(cls, row: Row, subject: str, sides: dict[str, Summary]) -> Measured:
        found = ratios(subject, sides)
        return cls(row.name, row.what, row.group, row.unit, subject, sides, found)

    @property
    def figures(self) -> Summary:
        """Of the side that the row is about."""
        return self.sides[self.subject]


@dataclass(frozen=True)
class Results:
    """All rows, and what they were measured with."""

    made: dict[str, Any]
    rows: list[Measured]

    def by_name(self) -> dict[str, Measured]:
        return {row.name: row for row in self.rows}


def made(scale: str, trees: Mapping[str, Path], versions: Mapping[str, str]) -> dict[str, Any]:
    """Where, when, and of what."""
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scale": scale,
        "trees": {name: _commit(tree) for name, tree in trees.items()},
        **versions,
        **machine.described(),
    }


def save(results: Results, path: Path) -> None:
    """Write them as JSON."""
    rows = [{**asdict(row), "unit": row.unit.value} for row in results.rows]
    text = json.dumps({"format": FORMAT, "made": results.made, "rows": rows}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read what `save` wrote; `FormatError` says what else it is."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(f"{path} has no results of this version of the suite ({FORMAT})")
    return Results(found["made"], [_row(row) for row in found["rows"]])


def _row(row: dict[str, Any]) -> Measured:
    return Measured(
        **{
            **row,
            "unit": Unit(row["unit"]),
            "sides": {name: Summary(**side) for name, side in row["sides"].items()},
            "ratios": {name: Ratio(**one) for name, one in row["ratios"].items()},
        }
    )


def _commit(tree: Path) -> str:
    """The commit of a tree; with a plus where files differ from it."""
    command = ["git", "-C", str(tree), "describe", "--always", "--abbrev=10", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
