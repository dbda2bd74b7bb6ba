"""What a Python that is too old says: one sentence with both versions, whatever it is asked for.

`requires-python` does not protect who runs the package from a folder, as the client does.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("snex", "snex_node", "snex_runtime")
OLD = sorted(
    path
    for pattern in ("2.*", "3.[0-9].*")
    for path in Path.home().glob(f".pyenv/versions/{pattern}/bin/python")
)
SENTENCE = "snex-node needs Python 3.10 or later, and this is Python {} ("

# Stands in for an old Python where there is none: the version is all that it lies about.
PRETEND = "import sys; sys.version_info = (3, 9, 18, 'final', 0); "
RUN = PRETEND + "sys.argv[0] = '-m'; import runpy; runpy.run_module('snex_runtime', alter_sys=True)"


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-B", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_read_before_the_version_is_known_can_be_read(package: str) -> None:
    """Old Pythons compile a whole file before they run its first line."""
    source = (ROOT / package / "__init__.py").read_text(encoding="ascii")
    tree = ast.parse(source, feature_version=(3, 4))
    allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.If)
    assert [part for part in tree.body if not isinstance(part, allowed)] == []
    futures = [part for part in tree.body if getattr(part, "module", "") == "__future__"]
    assert futures == [], "3.6 refuses the file for it"


@pytest.mark.parametrize("module", [*PACKAGES, "snex_node.cookie", "snex_runtime.server"])
def test_an_import(module: str) -> None:
    done = run(sys.executable, "-c", f"{PRETEND}import {module}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"ImportError: {SENTENCE.format('3.9')}{sys.executable})"


def test_the_command() -> None:
    done = run(sys.executable, "-c", RUN)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{SENTENCE.format('3.9')}{sys.executable})\n"


def test_this_python_is_not_too_old() -> None:
    assert run(sys.executable, "-c", "import snex").stderr == ""


@pytest.mark.skipif(not OLD, reason="there is no old Python here")
class TestRealOnes:
    @pytest.mark.parametrize("python", OLD, ids=lambda path: path.parts[-3])
    def test_the_command(self, python: Path) -> None:
        done = run(str(python), "-m", "snex_runtime", "child")
        version = ".".join(python.parts[-3].split(".")[:2])
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(SENTENCE.format(version))
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("python", OLD, ids=lambda path: path.parts[-3])
    @pytest.mark.parametrize("package", PACKAGES)
    def test_an_import(self, python: Path, package: str) -> None:
        done = run(str(python), "-c", f"import {package}")
        assert done.returncode == 1
        assert SENTENCE.format("")[:-3] in done.stderr.splitlines()[-1]
