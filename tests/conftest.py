"""Fixtures of all tests, and the rules that every test is held to."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import inspect
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies
import pytest

from snex_node import Node, Process
from snex_node.epmd import EpmdServer
from tests.support import leaks
from tests.support.beam import Beam, remove_compiled
from tests.support.epmd import RealEpmd, kill_epmd
from tests.support.examples import IN_CI, examples
from tests.support.peer import ScriptedPeer
from tests.support.ports import free_port
from tests.support.scripted import Listener, connect

# No deadline: an example takes as long as the machine is busy.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=IN_CI, max_examples=examples(1)
)
hypothesis.settings.load_profile("tests")

# A shell that starts tests in the background has Ctrl-C ignored, by them and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A BEAM that was told to stop needs about 0.1 s to end; ten seconds are for a busy machine.
SECONDS_TO_END = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--coverage-by-file",
        action="store_true",
        help="fail if a module is not covered by the tests of its own file",
    )
    parser.addoption(
        "--shuffle", metavar="SEED", help="run files, and the tests of each, in another order"
    )
    parser.addoption(
        "--one-for-waiting",
        action="store_true",
        help="have the last of the processes run the files whose tests wait, and nothing else",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("coverage_by_file"):
        from tests.support.coverage_by_file import Plugin  # it needs coverage.py

        config.pluginmanager.register(Plugin(config), "coverage-by-file")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where all tests of one of these kinds are asked for, import no file that has none of them."""
    kind = config.option.markexpr
    if kind not in ("alone", "beside") or config.args_source is not _TESTPATHS:
        return None
    if collection_path.suffix != ".py":
        return None
    return f"mark.{kind}" not in collection_path.read_text(encoding="utf-8") or None


_TESTPATHS = pytest.Config.ArgsSource.TESTPATHS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if not config.getoption("one_for_waiting"):
        return None
    from tests.support.schedule import scheduling  # it needs pytest-xdist

    return scheduling(config, log)


class _LoopErrors(logging.Handler):
    """Collects what event loops report when nobody is there to be told.

    The default exception handler of asyncio and of uvloop logs here: exceptions in callbacks and in
    transports, task exceptions that were never retrieved, tasks destroyed while pending.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter().format(record))


@pytest.fixture(autouse=True)
def loop_errors(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Fail a test during which an event loop's exception handler saw anything.

    A test that provokes such a report on purpose takes this fixture, checks and clears the list.
    """
    handler = _LoopErrors()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    awaits = inspect.iscoroutinefunction(getattr(request.node, "obj", None))
    if awaits:
        gc.freeze()
    try:
        yield handler.messages
        if awaits:
            # An exception that was never retrieved is reported when its task is collected. What had
            # been there before the test is left out: it would take longer than most tests do.
            gc.collect()
    finally:
        logger.removeHandler(handler)
    if handler.messages:
        pytest.fail("the event loop reported:\n" + "\n".join(handler.messages), pytrace=False)


@pytest.fixture(autouse=True)
def no_callbacks_of_the_collector() -> None:
    """Have no code of Hypothesis's run wherever the collector does, to time it.

    What interrupts code of a test may come to that, and Python reports it as unraisable.
    """
    gc.callbacks.clear()


@pytest.fixture(autouse=True, scope="session")
def no_process_left() -> Iterator[None]:
    """Fail the run if a process that it started is still there at its end."""
    mark = leaks.mark_this_process()
    yield
    left = leaks.wait_until_gone(mark, SECONDS_TO_END)
    leaks.kill(left)
    if left:
        lines = "\n".join(f"  {process.pid}: {process.command}" for process in left)
        pytest.fail(f"processes left running by the tests (killed now):\n{lines}", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def no_code_left() -> Iterator[None]:
    """Remove what was compiled for BEAMs."""
    yield
    remove_compiled()


@pytest.fixture(scope="session")
def epmd(no_process_left: None) -> Iterator[RealEpmd]:
    """A real epmd on a port of its own. A test that kills or restarts one makes its own."""
    with RealEpmd() as server:
        yield server


@pytest.fixture
def embedded() -> Iterator[EpmdServer]:
    """An epmd of ours, in a thread, on a port of its own."""
    with EpmdServer("127.0.0.1", 0) as server:
        yield server


@pytest.fixture
def epmd_port() -> Iterator[int]:
    """A port for an epmd that is started during the test, and killed after it."""
    port = free_port()
    yield port
    kill_epmd(port)


@pytest.fixture
def no_otp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Erlang: no program is found."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="module")
def beam(epmd: RealEpmd) -> Iterator[Beam]:
    """A live BEAM that the tests of a module share: leave it as it was found."""
    with Beam.start(epmd_port=epmd.port) as peer:
        yield peer


@pytest.fixture
def start_beam(epmd: RealEpmd) -> Iterator[Callable[..., Beam]]:
    """A function that starts a BEAM of the test's own, with the options of `Beam.start`.

    It returns when the BEAM is up; the BEAM is stopped at the end of the test.
    """
    with ExitStack() as stack:

        def start(**options: Any) -> Beam:
            return stack.enter_context(Beam.start(**{"epmd_port": epmd.port, **options}))

        yield start


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Give tests asyncio's event loop, and those marked `both_loops` uvloop's in a second run."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop
    }
    if item.get_closest_marker("both_loops") and importlib.util.find_spec("uvloop"):
        factories["uvloop"] = importlib.import_module("uvloop").new_event_loop
    return factories


# Of several processes the others would wait for one that came to such a file in the end.
LONG_FILES = (
    *("test_cli.py", "test_child.py", "test_etf.py", "test_registrar.py"),
    *("test_support.py", "test_watcher.py", "test_code.py", "test_ticks.py"),
)


@pytest.hookimpl(tryfirst=True)  # pytest itself brings together what shares costly fixtures
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long files first, and what runs on a second event loop behind the rest of its file; or
    all in another order.
    """
    seed = config.getoption("shuffle")
    if seed is not None:
        order = random.Random(seed)
        numbers = {item.path: order.random() for item in items}
        items.sort(key=lambda item: (numbers[item.path], order.random()))
    else:
        files = {path: index for index, path in enumerate(dict.fromkeys(i.path for i in items))}
        items.sort(
            key=lambda item: (
                item.path.name not in LONG_FILES,
                files[item.path],
                "uvloop" in item.name,
            )
        )


@pytest.fixture(autouse=True, scope="module")
def garbage_of_other_files() -> None:
    """Collect what tests of other files have left, and was out of the collector's sight since."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Leave what was collected out of garbage collections, of which each async test makes one."""
    _property_of_nothing()  # hypothesis registers its random numbers, and looks who refers to them
    gc.collect()
    gc.freeze()


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.none())
def _property_of_nothing(nothing: None) -> None:
    assert nothing is None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI is set, a skipped interop test is a failure: nothing would have been proved."""
    report = yield
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("interop"):
        report.outcome = "failed"
        report.longrepr = f"an interop test must not be skipped in CI: {report.longrepr}"
    return report


# --- a node, and another one played by a script; tests that need others make their own ------------


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("py@127.0.0.1", cookie="secret", epmd="none", net_setuptime=5) as node:
        yield node


@pytest.fixture
async def peer(node: Node) -> AsyncIterator[ScriptedPeer]:
    async with await connect(node) as peer:
        yield peer


@pytest.fixture
async def ours(node: Node) -> Process:
    """A process that keeps what comes to it, exit signals too."""
    process = Process(node, name="ours")
    process.trap_exit = True
    return process


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener() as listener:
        yield listener
