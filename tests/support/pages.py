"""Pages of the documentation: their blocks of code, and how the pages say what is to be done.

A comment in front of a block says why it is not run (``<!-- not run: why -->``), or which Python
package it needs (``<!-- needs: numpy -->``). What a page needs beside what it shows is in comments,
too: ``<!-- run: code -->``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(```+|:::+)\s*(\S*)(.*)$")
_MARK = re.compile(r"<!-- (not run|needs): (.+) -->")


@dataclass(frozen=True)
class Block:
    """Code of a page, as its reader sees it; or, if it is hidden, as only tests do."""

    language: str
    text: str
    line: int
    """Of its first line of code."""
    not_run: str | None = None
    """Why it is not."""
    needs: str | None = None
    hidden: bool = False


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    return list(_blocks(path.read_text(encoding="utf-8").splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    number = 0
    marks: dict[str, str] = {}
    while number < len(lines):
        line = lines[number]
        number += 1
        if line == "<!-- run:":
            end = lines.index("-->", number)
            yield Block("hidden", "\n".join(lines[number:end]), number + 1, hidden=True)
            number = end + 1
        elif mark := _MARK.fullmatch(line.strip()):
            marks[mark[1]] = mark[2]
        elif (fence := _FENCE.match(line)) and not fence[3].startswith("{"):
            indent, ticks, language, _ = fence.groups()
            end = next(n for n in range(number, len(lines)) if lines[n].strip() == ticks)
            text = "\n".join(line.removeprefix(indent) for line in lines[number:end])
            yield Block(language, text, number + 1, marks.get("not run"), marks.get("needs"))
            marks = {}
            number = end + 1
        elif fence:  # a directive of MyST: its content is not code, or a file's that has tests
            number = next(n for n in range(number, len(lines)) if lines[n].strip() == fence[2]) + 1
        elif line.strip():
            marks = {}
