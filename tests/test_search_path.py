"""No module of users takes the place of one that the runtime needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snex_runtime import search_path
from tests.support.child import ROOT, ChildRuntime
from tests.support.epmd import RealEpmd
from tests.support.forked import Ended, forked

SECONDS = 30.0

# `python -m` imports these itself before it looks for the package (found by trying them all), if
# nothing keeps the current directory away from it: that is what the client's variable is for.
TOO_EARLY = {"collections", "contextlib", "functools", "importlib", "keyword", "operator"} | {
    *("reprlib", "runpy", "types", "warnings")
}
# What Python was asked for it takes from there.
OURS = {"snex", "snex_node", "snex_runtime"}
# Python's own start, of which this is no part, and what tests a module by importing it.
NOT_OURS = {"antigravity", "idlelib", "site", "sitecustomize", "this", "usercustomize"}


def traps(folder: Path, names: set[str]) -> Path:
    """Modules that leave their name in the file returned when they are imported, and raise."""
    caught = folder / "caught.txt"
    for name in names:
        (folder / f"{name}.py").write_text(
            f"with open({str(caught)!r}, 'a') as file: file.write(__name__ + ' ')\n"
            "raise RuntimeError('a module of the user')\n"
        )
    return caught


def every_module() -> set[str]:
    """What a runtime may import: the standard library, uvloop, and packages of ours."""
    return {*sys.stdlib_module_names, *OURS, "uvloop"} - set(sys.builtin_module_names) - NOT_OURS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "of the user"
    path.mkdir()
    return path


@pytest.fixture
def runtimes() -> Iterator[list[ChildRuntime]]:
    started: list[ChildRuntime] = []
    yield started
    for runtime in started:
        runtime.end()


# What makes the runtime, asyncio and the standard library do what they put off until it is needed.
WHOLE_LIFE = (
    "return 6 * 7",
    "raise ValueError('x')",
    "x = = 1",
    "while True: pass",
    "import asyncio\nasyncio.get_running_loop().call_soon(int, 'x')\nawait asyncio.sleep(0.01)",
    "import asyncio\nasync with asyncio.timeout(1): await asyncio.sleep(60)"
    if sys.version_info >= (3, 11)
    else "return 1",
    "import asyncio\nreturn await asyncio.get_running_loop().run_in_executor(None, int, 7)",
    "import asyncio\n"
    "return len(await asyncio.get_running_loop().getaddrinfo('m\\u00fcnchen.invalid', 1)) > 0",
    "import asyncio\nreturn (await asyncio.create_subprocess_exec('true')).pid > 0",
    "import snex\nreturn await snex.call('erlang', 'node', [])",
    "import snex\nawait snex.send('nobody', {1, 2.0, 'x', b'y'})",
    "import logging\nlogging.getLogger('x').warning('a line')\n"
    "logging.getLogger('x').error('%d', 'y')",
    "import snex, logging\nlogging.getLogger().addHandler(snex.LoggingHandler())\n"
    "try: 1 / 0\nexcept ZeroDivisionError: logging.exception('z')",
    "raise ExceptionGroup('g', [ValueError(1)])",
    "return object()",
    "import sys\nreturn sys.path[0]",
)


async def run_whole_life(runtime: ChildRuntime) -> None:
    for code in WHOLE_LIFE:
        answer = await runtime.eval(code)
        assert isinstance(answer, tuple)
        assert len(answer) == 2


async def test_all_names_of_the_standard_library(
    epmd: RealEpmd, folder: Path, runtimes: list[ChildRuntime]
) -> None:
    """Whatever a user's modules are called, the start and the work of the runtime use their own.

    The modules are on the path of evaluated code, which may import them: for that the test asks for
    the last value. So what a name stands for is decided by who imported it first.
    """
    early = TOO_EARLY | OURS if sys.version_info < (3, 11) else set()
    caught = traps(folder, every_module() - early)
    runtimes.append(ChildRuntime(epmd, cwd=folder, PYTHONSAFEPATH="snex"))
    await run_whole_life(runtimes[0])
    assert await runtimes[0].eval("import sys\nreturn sys.path[0]") == ("ok", str(folder))
    runtimes.pop().end()
    assert not caught.exists(), caught.read_text()


async def test_without_the_variable_of_the_client(
    epmd: RealEpmd, folder: Path, runtimes: list[ChildRuntime]
) -> None:
    """As anybody starts it, and as the client does on Python 3.10."""
    caught = traps(folder, every_module() - TOO_EARLY - OURS)
    runtimes.append(ChildRuntime(epmd, cwd=folder))
    assert await runtimes[0].eval("import sys\nreturn sys.path[0]") == ("ok", str(folder))
    runtimes.pop().end()
    assert not caught.exists(), caught.read_text()


async def test_modules_of_the_user_are_there(
    epmd: RealEpmd, folder: Path, runtimes: list[ChildRuntime]
) -> None:
    (folder / "of_mine.py").write_text("value = 42")
    (folder / "logging.py").write_text("raise RuntimeError")
    runtimes.append(ChildRuntime(epmd, cwd=folder, PYTHONSAFEPATH="snex"))
    assert await runtimes[0].eval("import of_mine\nreturn of_mine.value") == ("ok", 42)
    code = "import logging, os\nreturn logging.INFO, os.environ.get('PYTHONSAFEPATH')"
    assert await runtimes[0].eval(code) == ("ok", (20, None))


async def test_a_folder_that_has_been_deleted(
    epmd: RealEpmd, folder: Path, runtimes: list[ChildRuntime]
) -> None:
    """As where a deployment was replaced under a running BEAM."""
    runtimes.append(ChildRuntime(epmd, cwd=folder, before='rmdir "$PWD"', PYTHONSAFEPATH="snex"))
    assert await runtimes[0].eval("return 42") == ("ok", 42)


async def test_a_user_s_path_is_kept_in_its_order(
    epmd: RealEpmd, folder: Path, tmp_path: Path, runtimes: list[ChildRuntime]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "logging.py").write_text("raise RuntimeError")
    path = os.pathsep.join([str(other), str(ROOT)])
    runtimes.append(ChildRuntime(epmd, cwd=folder, PYTHONPATH=path))
    answer = await runtimes[0].eval("import sys\nreturn sys.path[:3]")
    assert answer == ("ok", [str(folder), str(other), str(ROOT)])


async def test_who_wants_a_safe_path_has_it(
    epmd: RealEpmd, folder: Path, runtimes: list[ChildRuntime]
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("this Python knows no safe path")
    runtimes.append(ChildRuntime(epmd, cwd=folder, PYTHONSAFEPATH="1"))
    answer = await runtimes[0].eval(
        "import os, sys\nreturn sys.path[0], os.environ['PYTHONSAFEPATH']"
    )
    assert answer == ("ok", (str(ROOT), "1"))


def test_in_a_clone_of_ours(tmp_path: Path) -> None:
    """There the current directory is where the package was found: it stays."""
    done = subprocess.run(
        [sys.executable, "-m", "snex_runtime", "--version"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_folder_that_is_gone_before_the_start(tmp_path: Path) -> None:
    def start() -> None:
        folder = tmp_path / "gone"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()
        os.environ["PYTHONSAFEPATH"] = search_path.SAFE
        before = list(sys.path)
        search_path.hide()
        assert "PYTHONSAFEPATH" not in os.environ
        search_path.restore()
        assert sys.path == before
        search_path.restore()
        assert sys.path == before

    assert forked(start) == Ended(0, "")


def test_the_standard_library_comes_first_until_then(tmp_path: Path) -> None:
    def start() -> None:
        os.chdir(tmp_path)
        os.environ["PYTHONSAFEPATH"] = search_path.SAFE
        library = os.path.dirname(os.__file__)
        given = [str(ROOT), "/of/the/user", library, f"{library}/site-packages"]
        sys.path[:] = given
        search_path.hide()
        assert sys.path[0] == library
        assert set(sys.path) <= set(given)
        search_path.restore()
        assert sys.path == [str(tmp_path), *given]

    assert forked(start) == Ended(0, "")


@pytest.mark.parametrize("first", ["", "/of/the/user"])
def test_what_python_puts_first_is_away_until_then(first: str) -> None:
    def start() -> None:
        library = os.path.dirname(os.__file__)
        given = [first, library, "/of/somebody"]
        sys.path[:] = given
        search_path.hide()
        assert sys.path == [library, "/of/somebody"]
        search_path.restore()
        assert sys.path == given

    assert forked(start) == Ended(0, "")
