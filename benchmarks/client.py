"""The Elixir client of a source tree, compiled by mix for the BEAMs that call."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.nodes import PACKAGES, ROOT

COMPILE_SECONDS = 300.0


class NoClientError(Exception):
    """There is no client that could be used; the text says why."""


@dataclass(frozen=True)
class Client:
    """A client that was compiled."""

    folders: list[Path]
    """For the code path of a BEAM; the last one comes first in it."""
    source: Path
    """Where it and all that it brings are."""


def compiled(tree: Path, scratch: Path) -> Client:
    """Compile the client of a tree.

    Our own tree keeps what mix made in ``elixir/_build/bench``. Nothing is written into another
    one: its client is compiled from a copy in ``scratch``.
    """
    mix = shutil.which("mix")
    if mix is None:
        raise NoClientError("mix is not installed")
    if not (tree / "elixir" / "mix.exs").is_file():
        raise NoClientError(f"{tree} has no client in elixir/")
    source = tree / "elixir" if tree == ROOT else _copied(tree, scratch)
    build = source / "_build" / "bench"
    _compile(mix, source, build)
    if tree != ROOT:
        # Older clients make files that only builds which begin later have.
        _compile(mix, source, build)
    # Consolidated, as in every release: otherwise each struct is looked for among the files.
    folders = [build / "lib" / "snex" / name for name in ("ebin", "consolidated")]
    return Client(folders, source)


def _compile(mix: str, source: Path, build: Path) -> None:
    done = subprocess.run(
        [mix, "compile"],
        cwd=source,
        env={**os.environ, "MIX_ENV": "prod", "MIX_BUILD_PATH": str(build)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMPILE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise NoClientError(f"mix cannot compile what is in {source}:\n{done.stdout}")


def _copied(tree: Path, scratch: Path) -> Path:
    generated = shutil.ignore_patterns("_build", "deps", "priv", "__pycache__")
    for name in ("elixir", *PACKAGES):
        shutil.copytree(tree / name, scratch / name, ignore=generated)
    return scratch / "elixir"
