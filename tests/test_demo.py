"""``snex-node demo``, as a user runs it: a command, its output, its exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.epmd import executable

SECONDS = 50.0


def run_demo(path: str, temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo with ``path`` as PATH; it keeps its files in ``temporary`` while it runs."""
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-m", "snex_runtime", "demo"],
        cwd=temporary.parent,
        env={**os.environ, "PATH": path, "TMPDIR": str(temporary), "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def fake_elixir(tmp_path: Path) -> Path:
    """A PATH of its own on which `elixir` is a script, to be written by the test."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("elixir", "erl"):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    (directory / "sleep").symlink_to(shutil.which("sleep") or "/bin/sleep")
    return directory


@pytest.mark.interop
def test_the_demo_calls_from_a_real_elixir(temporary: Path) -> None:
    executable("elixir")
    done = run_demo(os.environ["PATH"], temporary)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "Node.connect" in done.stdout
    assert '{:eval, "return 6 * x", %{"x" => 7}})\n    {:ok, 42}\n' in done.stdout
    assert '["to", "be", "or"]' in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert ":math, :sqrt, [16])\n    4.0\n" in done.stdout
    assert list(temporary.iterdir()) == []


def test_without_elixir_the_demo_calls_from_python(temporary: Path) -> None:
    done = run_demo("", temporary)
    assert done.stderr == ""
    assert done.returncode == 0
    assert '(Atom("eval"), "return 6 * x", {"x": 7}))\n    (snex.Atom(\'ok\'), 42)\n' in done.stdout
    assert "['to', 'be']" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert list(temporary.iterdir()) == []


def test_an_elixir_that_fails_is_the_reason(temporary: Path, fake_elixir: Path) -> None:
    (fake_elixir / "elixir").write_text("#!/bin/sh\necho no BEAM today\nexit 3\n")
    done = run_demo(str(fake_elixir), temporary)
    assert done.returncode == 1
    assert "the demo failed: Elixir ended at Node.connect" in done.stderr
    assert "no BEAM today" in done.stderr
    assert list(temporary.iterdir()) == []


def test_an_unexpected_value_is_a_failure(temporary: Path, fake_elixir: Path) -> None:
    (fake_elixir / "elixir").write_text("#!/bin/sh\necho ignored\necho END\nexec sleep 60\n")
    done = run_demo(str(fake_elixir), temporary)
    assert done.returncode == 1
    assert "step 1 should have given true" in done.stderr


def test_a_node_that_does_not_start_is_the_reason(temporary: Path) -> None:
    """The demo's own modules are found, the node's process fails: its output is shown."""
    (temporary.parent / "sitecustomize.py").write_text(
        "import sys\nif 'start' in sys.orig_argv:\n    sys.exit('no node today')\n"
    )
    root = Path(__file__).parent.parent
    search = os.pathsep.join([str(temporary.parent), str(root)])
    done = subprocess.run(
        [sys.executable, "-m", "snex_runtime", "demo"],
        cwd=temporary.parent,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "did not start" in done.stderr
    assert "no node today" in done.stderr
    assert list(temporary.iterdir()) == []
