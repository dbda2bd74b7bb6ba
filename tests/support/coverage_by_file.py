"""How much of each module is covered by the tests of its own file, `tests/test_<module>.py`.

Lines that the tests of another module happen to run prove nothing about this one. With the option
``--coverage-by-file``, which `make test` gives, a run in which all tests passed fails if a module
has less than `ENOUGH` of its lines covered, and says which lines are not.

While the tests of a file run, its own modules are traced, until they are covered, and nothing else
is. Tests take twice their time while anything is traced; those that are no module's, of
tests/interop among them, run at their full speed, and so does what runs on a second event loop.
Lines that run when a module is imported are counted as covered. What forked children run counts as
well, and what other Python processes do if they are started by tests marked `traced_processes`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from coverage import Coverage, CoverageData
from coverage.exceptions import DataError

ROOT = Path(__file__).parents[2]
PACKAGES = ("snex_node", "snex_runtime", "snex")

ENOUGH = 0.95
"""The share of its lines that a module's own tests have to cover."""

PAUSE = 1.0
"""Seconds between two looks whether they do already."""

NAMED_OTHERWISE: Mapping[str, str] = {
    # Other modules have the same names.
    "snex_node/errors.py": "tests/test_node_errors.py",
    "snex_node/epmd/client.py": "tests/test_epmd_client.py",
    "snex_node/epmd/errors.py": "tests/test_epmd_client.py",
    "snex_node/epmd/server.py": "tests/test_epmd_server.py",
    # Their names alone do not say what they are about.
    "snex_node/epmd/daemon.py": "tests/test_epmd_daemon.py",
    "snex_node/epmd/messages.py": "tests/test_epmd_messages.py",
    "snex_node/epmd/settings.py": "tests/test_epmd_settings.py",
    "snex_node/epmd/starter.py": "tests/test_epmd_starter.py",
    # What the facade exports is tested as one.
    "snex/interface.py": "tests/test_snex.py",
    "snex/models.py": "tests/test_snex.py",
}
"""Modules whose test file is not named after them."""

NEVER_RUN = (r"if __name__ == .__main__.:", r"if sys\.version_info < \(3, 10\):")
"""What no process runs that imports a module with a Python we support."""


def of_other_pythons(minor: int) -> tuple[str, str, str]:
    """What is marked for other Pythons than 3.``minor`` by comments at the head of a block.

    They are ``# covered from 3.14 on``, ``# covered until 3.10`` and ``# covered in 3.12``.
    """
    known = range(10, 30)
    later = "|".join(str(other) for other in known if other > minor)
    earlier = "|".join(str(other) for other in known if other < minor) or "none"
    others = "|".join(str(other) for other in known if other != minor)
    return (
        rf"# covered from 3\.({later}) on$",
        rf"# covered until 3\.({earlier})$",
        rf"# covered in 3\.({others})$",
    )


Lines = dict[str, set[int]]
"""Numbers of the lines that were run, by module: a path relative to the root of the project."""


class Share(NamedTuple):
    """What was found about one module."""

    module: str
    tests: str
    statements: int
    missing: list[int]

    @property
    def covered(self) -> float:
        return 1 - len(self.missing) / self.statements if self.statements else 1.0

    def __str__(self) -> str:
        return (
            f"{self.module}: {100 * self.covered:.1f} % by {self.tests}, "
            f"not lines {spans(self.missing)}"
        )


def modules(root: Path = ROOT) -> list[str]:
    """Every module of the packages, as a path relative to the root."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return sorted(str(path.relative_to(root)) for path in found)


def own_tests(module: str) -> str:
    """The test file of a module, both as paths relative to the root."""
    return NAMED_OTHERWISE.get(module, f"tests/test_{Path(module).stem}.py")


def spans(lines: Iterable[int]) -> str:
    """Numbers of lines as a reader wants them: ``3-5, 9``."""
    found: list[list[int]] = []
    for line in sorted(lines):
        if found and line == found[-1][-1] + 1:
            found[-1][1:] = [line]
        else:
            found.append([line])
    return ", ".join("-".join(map(str, span)) for span in found)


def tracer(files: Iterable[Path] = ()) -> Coverage:
    """A Coverage that looks at these files, writes none and reads no configuration."""
    names = list(map(str, files))
    found = Coverage(data_file=None, config_file=False, include=names, messages=False)
    # Tests of a file that run nothing of its module: what that means is said at the end.
    found.set_option("run:disable_warnings", ["no-data-collected"])
    for pattern in (*NEVER_RUN, *of_other_pythons(sys.version_info[1])):
        found.exclude(pattern)
    return found


class Recorder:
    """Traces, while the tests of a file run, the modules which those tests are for."""

    def __init__(self, root: Path = ROOT) -> None:
        self.lines: Lines = defaultdict(set)
        self._root = root
        self._modules: dict[str, list[str]] = defaultdict(list)
        for module in modules(root):
            self._modules[own_tests(module)].append(module)
        self._tests: str | None = None
        self._settings: Path | None = None
        self._coverage: Coverage | None = None
        self._at_import: Lines | None = None
        self._looked = 0.0
        self._covered: set[str] = set()
        self._stack = ExitStack()

    def enter(self, tests: str | None, *, processes: bool = False) -> None:
        """From now on the tests of this file run; None for what counts for no module.

        With ``processes`` the Python processes that they start are traced as well, for 0.1 s each.
        """
        if tests != self._tests:
            self._stack.close()
            self._tests = tests
            if tests in self._modules and tests not in self._covered:
                self._stack.enter_context(self._tracing(self._modules[tests]))
        if processes and self._settings is not None:
            os.environ[_FOR_PROCESSES] = str(self._settings)
        else:
            os.environ.pop(_FOR_PROCESSES, None)

    @property
    def tracing(self) -> bool:
        """Whether anything is traced now."""
        return self._coverage is not None

    def look(self) -> None:
        """Trace the tests of this file no more if their modules are covered by now."""
        if self._tests is None or self._coverage is None:
            return
        if time.monotonic() - self._looked < PAUSE:
            return
        if self._at_import is None:
            self._at_import = lines_at_import(self._root)
        data = self._coverage.get_data()
        for module in self._modules[self._tests]:
            file = str(self._root / module)
            seen = self._at_import[module] | self.lines[module] | set(data.lines(file) or ())
            _, statements, _, _, _ = self._coverage.analysis2(file)
            if len(seen.intersection(statements)) < ENOUGH * len(statements):
                break
        else:
            self._covered.add(self._tests)
            self._stack.close()
        self._looked = time.monotonic()

    @contextlib.contextmanager
    def _tracing(self, modules: list[str]) -> Iterator[None]:
        files = [self._root / module for module in modules]
        coverage = tracer(files)
        with _directory() as directory:
            self._settings = _settings(files, directory)
            with _forked(coverage, directory):
                coverage.start()
                self._coverage = coverage
                yield
                coverage.stop()
            self._settings = self._coverage = None
            for data in (coverage.get_data(), *_data_in(directory)):
                with _closing(data):
                    for module, file in zip(modules, files, strict=True):
                        self.lines[module].update(data.lines(str(file)) or ())


@contextlib.contextmanager
def _closing(data: CoverageData) -> Iterator[None]:
    """It is a database, also in memory, and Python 3.13 warns of one that nobody closes."""
    try:
        yield
    finally:
        data.close(force=True)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    # A child that nobody has waited for may still write into it.
    with tempfile.TemporaryDirectory(prefix="coverage-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def _forked(coverage: Coverage, directory: Path) -> Iterator[None]:
    """Have forked children write what they ran when they end, which they do by `os._exit`."""
    exit_at_once, process = os._exit, os.getpid()

    def write_and_exit(status: int) -> NoReturn:
        with contextlib.suppress(Exception):  # a child may be in any state
            if os.getpid() != process:
                coverage.stop()
                file = directory / f"of.{os.getpid()}"
                kept = CoverageData(str(file))
                kept.update(coverage.get_data())
                kept.write()
                file.rename(directory / f"data.{os.getpid()}")  # it is whole
        exit_at_once(status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", write_and_exit)
        yield


_FOR_PROCESSES = "COVERAGE_PROCESS_START"
"""Where coverage.py looks for settings in every Python process that starts."""


def _settings(files: Iterable[Path], directory: Path) -> Path:
    """A file with settings for processes that trace themselves."""
    settings = directory / "settings"
    settings.write_text(
        "[run]\nparallel = true\npatch = _exit\ndisable_warnings = no-data-collected\n"
        f"data_file = {directory / 'data'}\ninclude =\n"
        + "".join(f"    {file}\n" for file in files)
    )
    return settings


def _data_in(directory: Path) -> Iterator[CoverageData]:
    for file in directory.glob("data*"):
        data = CoverageData(str(file))
        try:
            data.read()
        except DataError:  # whoever wrote it was killed meanwhile
            data.close(force=True)
            continue
        yield data


_IMPORT_ALL = """
import importlib, json, sys
from pathlib import Path
from tests.support.coverage_by_file import tracer

root, *modules = sys.argv[1:]
sys.path.insert(0, root)
coverage = tracer(Path(root, module) for module in modules)
coverage.start()
for module in modules:
    importlib.import_module(module.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
coverage.stop()
data = coverage.get_data()
print(json.dumps({module: data.lines(str(Path(root, module))) or [] for module in modules}))
"""


def lines_at_import(root: Path = ROOT) -> Lines:
    """The lines that run when a module is imported, which no test can leave out."""
    process = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, str(root), *modules(root)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return {module: set(lines) for module, lines in json.loads(process.stdout).items()}


def shares(lines: Lines, root: Path = ROOT) -> list[Share]:
    """What of each module was run, by lines that are in `lines` and at its import."""
    coverage = tracer()
    data = coverage.get_data()
    for ran in (lines, lines_at_import(root)):
        data.add_lines({str(root / module): numbers for module, numbers in ran.items()})
    found = []
    with _closing(data):
        for module in modules(root):
            _, statements, _, missing, _ = coverage.analysis2(str(root / module))
            found.append(Share(module, own_tests(module), len(statements), missing))
    return found


_OUTPUT = "coverage_by_file"


class Plugin:
    """For pytest: records in each process that runs tests; the one that was called judges."""

    def __init__(self, config: pytest.Config) -> None:
        self._output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        self._root = config.rootpath
        self._recorder = Recorder(self._root)
        self._below: list[Share] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        traced = (
            item.path.is_relative_to(self._root)
            and not item.get_closest_marker("untraced")
            and "uvloop" not in item.name  # where asyncio's own loop has its turn too
        )
        self._recorder.enter(
            str(item.path.relative_to(self._root)) if traced else None,
            processes=item.get_closest_marker("traced_processes") is not None,
        )
        result = yield
        self._recorder.look()
        if nextitem is None:
            self._recorder.enter(None)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of pytest-xdist has ended, and hands over what it saw."""
        for module, lines in getattr(node, "workeroutput", {}).get(_OUTPUT, {}).items():
            self._recorder.lines[module].update(lines)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        lines = self._recorder.lines
        if self._output is not None:
            self._output[_OUTPUT] = {module: sorted(ran) for module, ran in lines.items()}
        elif session.exitstatus == pytest.ExitCode.OK:  # tests that fail leave lines out
            self._below = [share for share in shares(lines, self._root) if share.covered < ENOUGH]
            if self._below:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._below:
            terminalreporter.section("modules that their own tests do not cover", red=True)
            for share in self._below:
                terminalreporter.line(str(share))
