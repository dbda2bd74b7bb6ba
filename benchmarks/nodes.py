"""Python nodes of any source tree: ``snex-node start``, as its users start it."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import CALLED, pinned

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("snex", "snex_node", "snex_runtime")
START_SECONDS = 60.0

# What the snippets of benchmarks/beam/requests.ex need.
INIT_SCRIPT = "import asyncio, time\n"


class TreeError(Exception):
    """What was named is no source tree of this project, or its code is not what runs."""


@dataclass(frozen=True)
class Cluster:
    """What nodes need to know to find each other."""

    epmd_port: int
    cookie: str


@dataclass(frozen=True)
class PythonNode:
    """A Python node that runs."""

    name: str
    pid: int


def check_tree(tree: Path) -> Path:
    """The tree as an absolute path; `TreeError` where there is none of this project."""
    missing = [name for name in PACKAGES if not (tree / name / "__init__.py").is_file()]
    if missing:
        raise TreeError(f"{tree} has no {', '.join(missing)}: it is no checkout of this project")
    return tree.resolve()


def environment(tree: Path, **more: str) -> dict[str, str]:
    """Environment variables of a Python that runs the code of a tree, and nobody else's.

    Those of Python itself are left out: one that keeps no compiled modules, say, starts slowly.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ERL_", "SNEX_", "PYTHON"))
    }
    return {**inherited, "PYTHONPATH": str(tree), **more}


@contextlib.contextmanager
def started(
    tree: Path, cluster: Cluster, *flags: str, role: int | None = CALLED
) -> Iterator[PythonNode]:
    """A node with the code of a tree, on the core of those who are called; None: on any."""
    name = f"py{secrets.token_hex(4)}@127.0.0.1"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with pinned(role):
            process = _start(tree, cluster, name, Path(folder), flags)
        try:
            _wait_ready(process, Path(folder) / "log")
            yield PythonNode(name, process.pid)
        finally:
            process.terminate()
            process.communicate()


def time_to_ready(tree: Path, cluster: Cluster) -> int:
    """Nanoseconds from the start of a node to its being ready; it is ended then."""
    start = time.perf_counter_ns()
    with started(tree, cluster):
        return time.perf_counter_ns() - start


def time_to_import_asyncio(tree: Path) -> int:
    """Nanoseconds of a Python that imports asyncio and ends."""
    with pinned(CALLED):
        start = time.perf_counter_ns()
        command = [sys.executable, "-c", "import asyncio"]
        subprocess.run(command, cwd=tree, env=environment(tree), check=True)
        return time.perf_counter_ns() - start


def _start(
    tree: Path, cluster: Cluster, name: str, home: Path, flags: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    script = home / "init.py"
    script.write_text(INIT_SCRIPT)
    options = ["--name", name, "--epmd", "external", "--init-script", str(script)]
    access = {"SNEX_COOKIE": cluster.cookie, "ERL_EPMD_PORT": str(cluster.epmd_port)}
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "snex_runtime", "start", *options, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=tree,
            env=environment(tree, HOME=str(home), **access),
        )


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if readable else b""
    if not line.startswith(b"ready "):
        raise RuntimeError(f"the node did not start: {line!r}\n{log.read_text(errors='replace')}")


def check_runs(tree: Path, files: Iterable[str]) -> None:
    """Raise `TreeError` unless all files of modules are in the tree.

    An installed copy, an editable one included, comes behind ``PYTHONPATH``; but who compares two
    trees must not compare one with itself.
    """
    for file in files:
        if not Path(file).resolve().is_relative_to(tree):
            raise TreeError(f"the code of {tree} was asked for, but {file} is what runs")
