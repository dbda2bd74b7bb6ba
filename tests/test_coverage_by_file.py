"""The check that each module is covered by its own tests: what it counts, and that it can fail."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import coverage_by_file
from tests.support.coverage_by_file import Recorder, Share, modules, own_tests, shares, spans

pytestmark = pytest.mark.beside

SOURCE = """\
import os
import sys

def one():
    return 1

def other():
    number = 2
    return number

if sys.version_info < (3, 10):
    raise ImportError

if __name__ == "__main__":
    print(other())
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with two modules."""
    package = tmp_path / "snex_node"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in "one", "two":
        (package / f"{name}.py").write_text(SOURCE)
    return tmp_path


def load(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / f"snex_node/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_child(function: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)


def missing(recorder: Recorder, root: Path) -> dict[str, list[int]]:
    recorder.enter(None)
    found = shares(recorder.lines, root)
    return {share.module: share.missing for share in found if share.statements}


def test_what_runs_at_import_is_covered_and_functions_are_not(root: Path) -> None:
    assert [share for share in shares({}, root) if share.statements] == [
        Share("snex_node/one.py", "tests/test_one.py", 7, [5, 8, 9]),
        Share("snex_node/two.py", "tests/test_two.py", 7, [5, 8, 9]),
    ]


def test_only_its_own_tests_cover_a_module(root: Path) -> None:
    one, two = load(root, "one"), load(root, "two")
    recorder = Recorder(root)
    recorder.enter("tests/test_one.py")
    one.one()
    two.one()
    recorder.enter("tests/interop/test_all.py")
    one.other()
    two.other()
    assert missing(recorder, root) == {
        "snex_node/one.py": [8, 9],
        "snex_node/two.py": [5, 8, 9],
    }


def test_the_own_tests_a_file_may_run_in_parts(root: Path) -> None:
    one = load(root, "one")
    recorder = Recorder(root)
    for function in one.one, one.other:
        recorder.enter("tests/test_one.py")
        function()
        recorder.enter("tests/test_two.py")
    assert missing(recorder, root)["snex_node/one.py"] == []


def test_what_is_covered_is_traced_no_more(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_by_file, "PAUSE", 0)
    one = load(root, "one")
    recorder = Recorder(root)
    seen = []
    for function in one.one, one.other, one.other:
        recorder.enter("tests/test_one.py")
        function()
        recorder.look()
        seen.append(recorder.tracing)
        recorder.enter(None)
    assert seen == [True, False, False]
    assert missing(recorder, root)["snex_node/one.py"] == []


def test_what_forked_children_run_is_seen(root: Path) -> None:
    one = load(root, "one")
    recorder = Recorder(root)
    recorder.enter("tests/test_one.py")
    in_child(one.one)
    in_child(one.other)
    assert missing(recorder, root)["snex_node/one.py"] == []


def test_what_started_processes_run_is_seen_where_that_was_asked_for(root: Path) -> None:
    recorder = Recorder(root)
    for function, processes in ("one", True), ("other", False):
        recorder.enter("tests/test_one.py", processes=processes)
        # It ends as our processes do.
        source = f"import os, snex_node.one as it; it.{function}(); os._exit(0)"
        subprocess.run([sys.executable, "-c", source], cwd=root, check=True)
    assert missing(recorder, root)["snex_node/one.py"] == [8, 9]


CONFTEST = """\
from tests.support.coverage_by_file import Plugin

def pytest_configure(config):
    config.pluginmanager.register(Plugin(config))
"""

TESTS = """\
from snex_node import one, two

def test_one():
    assert one.one() == two.one() == 1

def test_other():
    assert one.other() == 2
"""


def run_tests(root: Path, tests: str) -> tuple[int, str]:
    """Run these tests of the module `one` in two processes; the status and what was printed."""
    (root / "conftest.py").write_text(CONFTEST)
    (root / "tests").mkdir(exist_ok=True)
    (root / "tests/test_one.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"],
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{coverage_by_file.ROOT}"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_run_with_a_module_that_is_not_covered_fails(root: Path) -> None:
    status, told = run_tests(root, TESTS)
    assert status == pytest.ExitCode.TESTS_FAILED, told
    assert "2 passed" in told
    found = told.partition("modules that their own tests do not cover")[2].splitlines()
    assert [line for line in found if ".py: " in line] == [
        "snex_node/two.py: 57.1 % by tests/test_two.py, not lines 5, 8-9"
    ]


def test_a_run_with_all_modules_covered_succeeds(root: Path) -> None:
    (root / "snex_node/two.py").unlink()
    status, told = run_tests(root, TESTS.replace(", two", "").replace("two.one() == ", ""))
    assert status == pytest.ExitCode.OK, told


def test_what_other_pythons_run_is_not_missed() -> None:
    def missed(minor: int) -> list[str]:
        patterns = coverage_by_file.of_other_pythons(minor)
        return [line for line in lines if not any(re.search(each, line) for each in patterns)]

    lines = ["from 3.10 on", "from 3.14 on", "until 3.10", "until 3.12", "in 3.12"]
    lines = [f"def f():  # covered {line}" for line in lines]
    assert missed(10) == [lines[0], lines[2], lines[3]]
    assert missed(12) == [lines[0], lines[3], lines[4]]
    assert missed(13) == [lines[0]]
    assert missed(14) == lines[:2]


class TestNames:
    def test_every_module_is_found(self) -> None:
        found = modules()
        assert {"snex/__init__.py", "snex_node/wire/etf.py", "snex_runtime/cli.py"} < set(found)

    def test_the_test_file_is_named_after_the_module(self) -> None:
        assert own_tests("snex_node/wire/etf_decode.py") == "tests/test_etf_decode.py"

    def test_no_two_modules_share_a_file_by_accident(self) -> None:
        by_name: dict[str, list[str]] = {}
        for module in modules():
            if module not in coverage_by_file.NAMED_OTHERWISE:
                by_name.setdefault(own_tests(module), []).append(module)
        inits = by_name.pop("tests/test___init__.py")  # they have no functions
        assert all(module.endswith("/__init__.py") for module in inits)
        assert [found for found in by_name.values() if len(found) > 1] == []

    def test_the_exceptions_are_modules(self) -> None:
        assert set(coverage_by_file.NAMED_OTHERWISE) <= set(modules())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [([], ""), ([3], "3"), ([4, 3, 5, 9], "3-5, 9"), ([1, 3, 4], "1, 3-4")],
)
def test_lines_are_told_as_spans(lines: list[int], expected: str) -> None:
    assert spans(lines) == expected
