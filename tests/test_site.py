"""The documentation site: it builds without a warning, and the code on its pages runs."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from snex_node.wire import etf
from snex_runtime import cli
from tests.support import mix
from tests.support.beam import QUIET_SCHEDULERS
from tests.support.epmd import RealEpmd, executable
from tests.support.pages import ROOT, Block, blocks

pytestmark = [pytest.mark.beside, pytest.mark.timeout(300)]

GUIDES = sorted((ROOT / "elixir" / "guides").glob("*.*md"))
PAGES = [
    *(
        path
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if "reference" not in path.parts or path.parent.parent.name == "docs"
    ),
    *GUIDES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "RELEASING.md", "elixir/README.md")),
]
BUILD = ROOT / "build" / "elixir"
"""Where `make docs` builds the client, too."""
LANGUAGES = {"elixir", "python", "sh", "console", "yaml", "ini", "toml", "dockerfile", "text", "diff"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_mix(arguments: list[str], env: dict[str, str] | None = None) -> str:
    return mix.run(
        ROOT / "elixir",
        "mix",
        *arguments,
        env={
            "MIX_ENV": "dev",
            "MIX_BUILD_PATH": str(BUILD),
            "PAGES_PYTHONPATH": sysconfig.get_path("purelib"),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            **(env or {}),
        },
    )


# --- Elixir ---------------------------------------------------------------------------------------


def elixir_of(page: Path) -> Iterator[tuple[str, int, str]]:
    """The Elixir of a page as pages.exs takes it: kind, line and code."""
    for block in blocks(page):
        if block.language not in ("elixir", "hidden"):
            continue
        if block.not_run or (block.needs and not importlib.util.find_spec(block.needs)):
            yield "parse", block.line, block.text
        else:
            yield ("iex" if block.text.startswith("iex> ") else "run"), block.line, block.text


@pytest.mark.interop
def test_the_elixir_of_the_pages_runs(
    epmd: RealEpmd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERL_EPMD_PORT", str(epmd.port))
    pages = [(name_of(page), list(elixir_of(page))) for page in PAGES]
    file = tmp_path / "pages.etf"
    file.write_bytes(etf.encode([(name, code) for name, code in pages if code]))
    run_mix(["run", str(ROOT / "tests/support/pages.exs"), str(file)])
