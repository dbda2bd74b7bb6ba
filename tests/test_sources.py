"""Source text: files that callers name, what `inspect` finds of snippets, scripts."""

from __future__ import annotations

import inspect
import linecache
import logging
import os
import pickle
import resource
import sys
import threading
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from snex_runtime import namespace, sources
from snex_runtime.code import compile_code
from snex_runtime.errors import from_exception
from snex_runtime.sources import VIRTUAL_FILE, VirtualFile, is_bounded, read_script
from tests.support.pair import Pair, pair

MIB = 1024 * 1024
CPYTHON = sys.implementation.name == "cpython"


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


@pytest.fixture
def large(tmp_path: Path) -> str:
    path = tmp_path / "large.ex"
    with path.open("wb") as file:
        for _ in range(20):
            file.write(b"x = 1\n" * (MIB // 6))
    return str(path)


@pytest.fixture(params=["/dev/zero", "/dev/urandom", "/proc/self/pagemap", "fifo", "large"])
def endless(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    return name if name.startswith("/") else str(request.getfixturevalue(name))


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """A file that is read without end shall fail the test, and not the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 600 * MIB, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def last_frame(failed: BaseException) -> str:
    lines = from_exception(failed).traceback
    assert lines is not None
    return [line for line in lines if line.startswith("  File")][-1]


def failure_of(source: str, file: str, **variables: object) -> BaseException:
    try:
        compile_code(source, file).run({"__name__": namespace.NAME, **variables})
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


class TestEndlessFiles:
    """Named as the file of some code, they are never read."""

    def test_in_a_traceback(self, endless: str) -> None:
        assert last_frame(failure_of("1 / 0", endless)) == (
            f'  File "{endless}", line 1, in <module>\n'
        )
        assert endless not in linecache.cache

    @pytest.mark.parametrize(
        "source",
        ["x = (", "break", "nonlocal x", "return 1\nyield", "def f():\n  x = 1\n  global x", "\0"],
    )
    def test_in_a_syntax_error(self, endless: str, source: str) -> None:
        error = failure_of(source, endless)
        assert isinstance(error, SyntaxError)
        assert error.filename == endless
        assert f'File "{endless}"' in "".join(from_exception(error).traceback or ())

    def test_in_what_user_code_formats(self, endless: str) -> None:
        code = (
            "import traceback\ntry: 1 / 0\n"
            "except Exception as error: return traceback.format_exception(error)"
        )
        lines: Any = compile_code(code, endless).run({"__name__": "x"})
        assert endless in lines[1]

    def test_in_warnings(self, endless: str, capsys: pytest.CaptureFixture[str]) -> None:
        source = "import warnings\nwarnings.warn('of the user')\nx = '\\d'"
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("always")
            warnings.showwarning = _shown_on_stderr
            compile_code(source, endless).run({"__name__": "x"})
        assert "of the user" in capsys.readouterr().err

    def test_in_log_records(self, endless: str) -> None:
        records: list[logging.LogRecord] = []
        logger = logging.getLogger("tests.sources")
        logger.propagate = False
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign,assignment]
        logger.addHandler(handler)
        source = "try: 1 / 0\nexcept Exception: logger.exception('failed', stack_info=True)"
        compile_code(source, endless).run({"logger": logger})
        logger.removeHandler(handler)
        assert "ZeroDivisionError" in logging.Formatter().format(records[0])

    def test_when_a_thread_fails(self, endless: str, capfd: pytest.CaptureFixture[str]) -> None:
        """Until 3.12 it is C code that reads lines for what a thread raises."""
        variables: dict[str, object] = {"__name__": "x"}
        compile_code("def work(): 1 / 0", endless).run(variables)
        work: Any = variables["work"]
        thread = threading.Thread(target=work)
        before, threading.excepthook = threading.excepthook, threading.__excepthook__
        try:
            thread.start()
            thread.join(30)
        finally:
            threading.excepthook = before
        assert not thread.is_alive()
        assert "ZeroDivisionError" in capfd.readouterr().err

    def test_when_inspect_is_asked(self, endless: str) -> None:
        variables: dict[str, object] = {"__name__": "x"}
        compile_code("def work(): 1 / 0", endless).run(variables)
        with pytest.raises(OSError):
            inspect.getsource(variables["work"])  # type: ignore[arg-type]

    def test_of_code_that_users_compiled(self, endless: str) -> None:
        error = failure_of("exec(compile('1 / 0', name, 'exec'))", VIRTUAL_FILE, name=endless)
        assert last_frame(error) == f'  File "{endless}", line 1, in <module>\n'
        assert endless not in linecache.cache

    async def test_in_a_request(self, both: Pair, endless: str) -> None:
        struct: Any = {"__struct__": Atom("Elixir.Snex.Code")}
        code = {**struct, "src": "1 / 0", "file": endless, "line": 0}
        tag, error = await both.call("eval", {Atom(k): v for k, v in code.items()}, {})
        assert tag == "error"
        assert error["traceback"][1] == f'  File "{endless}", line 1, in <module>\n'


def _shown_on_stderr(*args: Any, **_: Any) -> None:
    print(warnings.formatwarning(*args[:4]), file=sys.stderr)


class TestFiles:
    def test_lines_of_an_ordinary_file_are_shown(self, tmp_path: Path) -> None:
        file = tmp_path / "app.ex"
        file.write_text("raise LookupError\n")
        assert last_frame(failure_of("raise LookupError", str(file))).endswith(
            "    raise LookupError\n"
        )

    def test_and_not_kept(self, tmp_path: Path) -> None:
        file = tmp_path / "app.ex"
        file.write_text("raise LookupError\n")
        last_frame(failure_of("raise LookupError", str(file)))
        assert str(file) not in linecache.cache

    def test_nor_where_only_the_last_of_many_is_told(self, tmp_path: Path) -> None:
        file = tmp_path / "app.ex"
        file.write_text("raise LookupError\n")
        error = failure_of("raise LookupError", str(file))
        last = error
        for _ in range(200):
            last.__context__ = last = ValueError()
        last.__context__, error.__context__ = None, error.__context__
        assert last_frame(error).endswith("    raise LookupError\n")
        assert str(file) not in linecache.cache

    def test_what_was_read_before_stays(self, tmp_path: Path) -> None:
        file = tmp_path / "app.ex"
        file.write_text("raise LookupError\n")
        assert linecache.getline(str(file), 1)
        last_frame(failure_of("raise LookupError", str(file)))
        assert str(file) in linecache.cache

    def test_modules_stay_up_to_a_bound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registered = (5, None, ["other\n"], "<registered>")
        monkeypatch.setitem(linecache.cache, "<registered>", registered)
        monkeypatch.setattr(sources, "MAX_LINES", 20)
        linecache.checkcache()
        names = [str(tmp_path / f"{index}.py") for index in range(3)]
        for name in names:
            Path(name).write_text("1 / 0  # x\n")
            last_frame(failure_of("1 / 0", name))
            kept = [each[0] for each in linecache.cache.values() if len(each) == 4 and each[1]]
            assert sum(kept) <= 20
        assert linecache.cache["<registered>"] is registered

    @pytest.mark.parametrize(
        ("name", "bounded"),
        [
            ("/no/such/file.ex", True),
            ("no_such_file.ex", True),
            (VIRTUAL_FILE, True),
            ("a\0b", True),
            (__file__, True),
            ("/dev/zero", False),
            ("/dev/../dev/zero", False),
            ("/proc/self/environ", False),
            ("/tmp", False),
        ],
    )
    def test_what_can_be_read_within_bounds(self, name: str, bounded: bool) -> None:
        assert is_bounded(name) is bounded

    def test_a_relative_name_is_looked_for_where_python_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fifo: str
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        assert not is_bounded("fifo")
        assert last_frame(failure_of("1 / 0", "fifo")) == '  File "fifo", line 1, in <module>\n'

    def test_a_link_is_what_it_leads_to(self, tmp_path: Path) -> None:
        link = tmp_path / "innocent.ex"
        link.symlink_to("/dev/zero")
        assert not is_bounded(str(link))


DEFINITIONS = '''
import functools

class Plain:
    pass


@functools.total_ordering
class Point:
    """A point."""

    def __lt__(self, other):
        return False

    class Inner:
        x = 1


def double(x):
    # twice
    return 2 * x
'''


FOUND = {
    "double": "def double(x):\n    # twice\n    return 2 * x\n",
    "Plain": "class Plain:\n    pass\n",
    "Point": DEFINITIONS[DEFINITIONS.index("@") : DEFINITIONS.index("\n\n\ndef")] + "\n",
    "Point.Inner": "    class Inner:\n        x = 1\n",
    "Point.__lt__": "    def __lt__(self, other):\n        return False\n",
}


class TestInspect:
    """`inspect.getsource` finds what snippets define."""

    pytestmark = pytest.mark.skipif(not CPYTHON, reason="code keeps no name of ours")

    @pytest.mark.parametrize("name", FOUND)
    async def test_a_snippet(self, both: Pair, name: str) -> None:
        code = f"{DEFINITIONS}\nimport inspect\nreturn inspect.getsource({name})"
        assert await both.run(code) == FOUND[name]

    async def test_each_finds_its_own(self, both: Pair) -> None:
        ok, _ = await both.call("init", "import inspect\ndef f(): return 1", {})
        assert ok == "ok"
        ok, _ = await both.call("init", "def g():\n  return 2\nclass C: y = 1", {})
        ok, _ = await both.call("init", "class C: x = 1", {})
        assert await both.run("return inspect.getsource(f)") == "def f(): return 1\n"
        assert await both.run("return inspect.getsource(g)") == "def g():\n  return 2\n"
        assert await both.run("return inspect.getsource(C)") == "class C: x = 1\n"

    def test_the_name_of_the_file_is_that_of_all(self) -> None:
        variables: dict[str, Any] = {"__name__": "x"}
        compile_code("def f(): return 1 / 0").run(variables)
        file = variables["f"].__code__.co_filename
        assert file == VIRTUAL_FILE
        assert str(file) == VIRTUAL_FILE
        assert VIRTUAL_FILE not in linecache.cache

    def test_tracebacks_show_no_line_of_it(self) -> None:
        error = failure_of("def f(): return 1 / 0\nf()", VIRTUAL_FILE)
        lines = from_exception(error).traceback
        assert lines is not None
        assert lines[-3:] == [
            '  File "<Snex.Code>", line 2, in <module>\n',
            '  File "<Snex.Code>", line 1, in f\n',
            "ZeroDivisionError: division by zero\n",
        ]

    def test_elsewhere_it_is_text(self) -> None:
        assert type(pickle.loads(pickle.dumps(VirtualFile("x")))) is str

    def test_memory_can_be_traced(self) -> None:
        """tracemalloc hashes names of files while it allocates."""
        tracemalloc.start(3)
        try:
            variables: dict[str, Any] = {}
            compile_code("def f(): return [[] for _ in range(1000)]").run(variables)
            held = variables["f"]()
            snapshot = tracemalloc.take_snapshot()
            assert held
            files = [frame.filename for trace in snapshot.traces for frame in trace.traceback]
            assert VIRTUAL_FILE in files
        finally:
            tracemalloc.stop()

    def test_what_is_kept_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = sources.Kept()
        monkeypatch.setattr(sources, "MAX_KEPT", 100)
        files = [VirtualFile(VIRTUAL_FILE) for _ in range(10)]
        for file in files:
            kept.add(file, "x" * 30, [])
        assert [file in linecache.cache for file in files] == [False] * 7 + [True] * 3
        kept.add(VirtualFile("y"), "x" * 101, [])
        assert [file in linecache.cache for file in files] == [False] * 7 + [True] * 3
        linecache.clearcache()
        for _ in range(4):
            kept.add(VirtualFile("z"), "x" * 100, [])

    def test_so_is_their_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = sources.Kept()
        monkeypatch.setattr(sources, "MAX_SNIPPETS", 2)
        files = [VirtualFile(VIRTUAL_FILE) for _ in range(3)]
        for file in files:
            kept.add(file, "x", [])
        assert [file in linecache.cache for file in files] == [False, True, True]

    def test_code_that_defines_nothing_is_not_kept(self) -> None:
        before = len(linecache.cache)
        compile_code(f"x = {id(object())}").run({})
        assert len(linecache.cache) == before


class TestScripts:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ("x = 'é'".encode(), "x = 'é'"),
            ("\ufeffx = 'é'".encode(), "x = 'é'"),
            ("# coding: latin-1\nx = 'é'".encode("latin-1"), "# coding: latin-1\nx = 'é'"),
            (b"#!/bin/x\r\n# -*- coding: cp1252 -*-\r\nx = '\x80'\r\n", None),
            (b"", ""),
        ],
    )
    def test_as_python_reads_files(self, tmp_path: Path, data: bytes, text: str | None) -> None:
        path = tmp_path / "script.py"
        path.write_bytes(data)
        read = read_script(path)
        assert read == (text if text is not None else read)
        mine: dict[str, Any] = {}
        pythons: dict[str, Any] = {}
        compile_code(read).run(mine)
        exec(compile(data, "x", "exec"), pythons)
        assert mine.get("x") == pythons.get("x")

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            (b"x = '\xe9'", UnicodeDecodeError),
            (b"# coding: no-such-thing\n", SyntaxError),
            (b"\xef\xbb\xbf# coding: latin-1\n", SyntaxError),
        ],
    )
    def test_what_python_does_not_read(
        self, tmp_path: Path, data: bytes, error: type[Exception]
    ) -> None:
        path = tmp_path / "script.py"
        path.write_bytes(data)
        with pytest.raises((error, SyntaxError)):
            read_script(path)

    def test_evaluated_code_may_begin_with_a_byte_order_mark(self) -> None:
        variables: dict[str, object] = {}
        assert compile_code("\ufeffx = 1\nreturn x").run(variables) == 1
        assert compile_code("\ufefffrom __future__ import annotations\nreturn 2").run({}) == 2
        with pytest.raises(SyntaxError):
            compile_code("\ufeff\ufeffx = 1")
