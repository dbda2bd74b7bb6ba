"""``snex-node demo``, as a user runs it: a command, its output, its exit code."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snex_runtime import demo
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


@pytest.mark.traced_processes
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


@pytest.mark.traced_processes
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


# --- the programs that it starts ------------------------------------------------------------------


async def shell(command: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec("/bin/sh", "-c", command, stdout=pipe)


STUBBORN = "trap '' TERM; echo started; exec /bin/sleep 60"


async def test_one_that_does_not_get_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "START_SECONDS", 0.1)
    process = await shell("exec /bin/sleep 60")
    with pytest.raises(demo.DemoError, match=r"the node was not ready within 0\.1 s"):
        await demo._wait_ready(process, "the node")
    await demo._stop(process)
    assert process.returncode == -signal.SIGTERM
    await demo._stop(process)


async def test_one_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STOP_SECONDS", 0.1)
    process = await shell(STUBBORN)
    assert process.stdout is not None
    await process.stdout.readline()
    await demo._stop(process)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo half; exec /bin/sleep 60", r"no answer within 0\.5 s to 1 \+ 1"),
        ("echo it cannot", r"Elixir ended at 1 \+ 1\nit cannot"),
    ],
)
async def test_an_elixir_that_does_not_answer(command: str, message: str) -> None:
    process = await shell(command)
    with pytest.raises(demo.DemoError, match=message):
        await demo._read_value(process, demo.Step("add", "1 + 1", "2"), 0.5)
    await demo._stop(process)


async def test_a_python_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STEP_SECONDS", 0.1)
    monkeypatch.setattr(demo, "PYTHON_STEPS", [ENDLESS])
    with pytest.raises(demo.DemoError, match=r"no answer within 0\.1 s"):
        await demo._call_from_python("nobody@127.0.0.1", "cookie", 1)


ENDLESS = demo.Step("wait", "import asyncio\nreturn await asyncio.Event().wait()", "")
