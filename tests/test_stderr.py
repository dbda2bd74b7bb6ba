"""Logging to standard error that never holds up who logs."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snex_runtime import stderr
from snex_runtime.formats import JsonFormatter
from snex_runtime.stderr import MAX_RECORD, MAX_WAITING, StderrHandler
from tests.support.child import ChildRuntime
from tests.support.epmd import RealEpmd

SECONDS = 20.0
PIPE = 64 * 1024  # what a pipe takes that nobody reads, where nobody has set it to more


class Pipe:
    """A pipe, its writing end with a handler and a logger of its own."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.handler = StderrHandler(file=self.writer)
        self.logger = logging.Logger("of this test")  # noqa: LOG001 - nobody else is to see it
        self.logger.addHandler(self.handler)

    def read(self, wanted: bytes) -> str:
        """Read until ``wanted`` has come."""
        data = b""
        while wanted not in data:
            assert select.select([self.reader], [], [], SECONDS)[0], f"no {wanted!r} in {data!r}"
            data += os.read(self.reader, 65536)
        return data.decode()

    def close(self) -> None:
        """Close both ends. What the handler still has to write goes to nobody, and to no other."""
        with contextlib.suppress(OSError):
            os.close(self.reader)
        self.handler.flush()
        with contextlib.suppress(OSError):
            os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_a_record_is_written(pipe: Pipe) -> None:
    pipe.logger.warning("a %s with %d", "text", 2)
    assert pipe.read(b"\n") == "a text with 2\n"


def test_in_order_from_one_thread(pipe: Pipe) -> None:
    for number in range(500):
        pipe.logger.info("line %d", number)
    text = pipe.read(b"line 499\n")
    assert text == "".join(f"line {number}\n" for number in range(500))
    assert pipe.handler.dropped == 0


def test_nobody_reads(pipe: Pipe) -> None:
    """Who logs goes on at once; what there was no room for is counted, and told when there is."""
    count = MAX_WAITING + 5_000

    def log() -> None:
        for number in range(count):
            pipe.logger.info("%d %s", number, "x" * 100)

    done = threading.Thread(target=log, daemon=True)
    done.start()
    done.join(SECONDS)
    assert not done.is_alive(), "logging waits for the reader"
    dropped = pipe.handler.dropped
    assert 0 < dropped < count
    text = pipe.read(b"were dropped")
    lines = text.splitlines()
    assert lines.pop() == f"{dropped} log records were dropped: nobody read standard error"
    # Which were dropped depends on how fast the pipe took the first ones.
    numbers = [int(line.split()[0]) for line in lines]
    assert len(numbers) == count - dropped
    assert numbers == sorted(set(numbers))
    pipe.logger.info("and on")
    assert pipe.read(b"and on\n").endswith("and on\n")


def test_dropped_ones_are_told_once(pipe: Pipe) -> None:
    for number in range(MAX_WAITING + 2_000):
        pipe.logger.info("%d %s", number, "x" * 200)
    assert pipe.handler.dropped
    pipe.read(b"were dropped: nobody read standard error\n")
    pipe.logger.info("later")
    assert pipe.read(b"later\n") == "later\n"


def test_the_end_waits_for_who_reads(pipe: Pipe) -> None:
    """However slowly: as long as something is read nothing is lost."""
    line, count = "x" * 1000, 600
    got: list[bytes] = []

    def read_slowly() -> None:
        while sum(map(len, got)) < count * (len(line) + 1):
            time.sleep(0.01)
            got.append(os.read(pipe.reader, 16384))

    reader = threading.Thread(target=read_slowly, daemon=True)
    reader.start()
    for _ in range(count):
        pipe.logger.info(line)
    pipe.handler.flush()
    os.close(pipe.writer)
    reader.join(SECONDS)
    assert b"".join(got) == f"{line}\n".encode() * count


def test_the_end_does_not_wait_for_who_does_not(pipe: Pipe) -> None:
    for _ in range(200):
        pipe.logger.info("x" * 1000)
    began = time.monotonic()
    pipe.handler.flush()
    assert stderr.PATIENCE <= time.monotonic() - began < 2.0 + 4 * stderr.PATIENCE


def test_flush_with_nothing_logged(pipe: Pipe) -> None:
    pipe.handler.flush()
    pipe.handler.close()


def test_the_reader_has_gone(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    os.close(pipe.reader)
    for number in range(100):
        pipe.logger.info("line %d", number)
    pipe.handler.flush()
    assert capfd.readouterr() == ("", "")


def test_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    handler = StderrHandler()
    handler.handle(logging.makeLogRecord({"msg": "x"}))
    handler.flush()
    assert handler.file is None


def test_standard_error_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    handler = StderrHandler()
    handler.handle(logging.makeLogRecord({"msg": "a line"}))
    handler.flush()
    assert capfd.readouterr().err == "a line\n"


def test_a_descriptor_that_another_process_made_non_blocking(pipe: Pipe) -> None:
    """A BEAM does that to its terminal, which may be ours too."""
    flags = fcntl.fcntl(pipe.writer, fcntl.F_GETFL)
    fcntl.fcntl(pipe.writer, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    count = 2 * PIPE // 500
    for number in range(count):
        pipe.logger.info("%d %s", number, "x" * 500)
    text = pipe.read(f"\n{count - 1} {'x' * 500}\n".encode())
    assert text.count("\n") == count


def test_a_long_record_is_cut_off(pipe: Pipe) -> None:
    pipe.logger.info("x" * (2 * MAX_RECORD))
    text = pipe.read(b"\n")
    assert len(text) == MAX_RECORD + 1
    assert text.endswith("xxx ... (cut off)\n")


class Evil:
    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("message", "argument"), [("%d", "no number"), ("%s", Evil()), (Evil(), None), ("%s %s", 1)]
)
def test_a_record_without_a_text(
    pipe: Pipe, message: object, argument: object, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python's own handlers print that themselves, to a standard error that may not be read."""
    record = logging.makeLogRecord(
        {"msg": message, "args": (argument,), "pathname": "/a/b.py", "lineno": 7}
    )
    pipe.handler.handle(record)
    pipe.handler.handle(logging.makeLogRecord({"msg": "the next"}))
    text = pipe.read(b"the next\n")
    assert text.startswith("the log record made at /a/b.py:7 has no text: Traceback (most recent")
    assert capfd.readouterr().err == ""


def test_what_cannot_be_encoded(pipe: Pipe) -> None:
    pipe.logger.info("\udc80 and \u00e9")
    assert pipe.read(b"\n") == "\\udc80 and \u00e9\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_logs_what_is_its_own() -> None:
    """It has no thread, and what waits is its parent's."""
    program = """
import logging, os, sys, warnings
from snex_runtime.stderr import StderrHandler
warnings.simplefilter("ignore")
logger = logging.Logger("x")
logger.addHandler(StderrHandler())
for number in range(20): logger.info("parent %d", number)
child = os.fork()
if child == 0:
    logger.info("child")
    logging.shutdown()
    os._exit(0)
os.waitpid(child, 0)
logger.info("parent 20")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=SECONDS,
        text=True,
        check=True,
    )
    assert sorted(re.findall(r"child|parent \d+", done.stderr)) == sorted(
        ["child", *(f"parent {number}" for number in range(21))]
    )


def test_what_is_logged_last_is_not_lost() -> None:
    program = """
import atexit, logging
from snex_runtime.stderr import StderrHandler
logging.basicConfig(level=0, format='%(message)s', handlers=[StderrHandler()])
atexit.register(logging.info, "in atexit")
for number in range(900): logging.info("line %d", number)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=SECONDS,
        text=True,
        check=True,
    )
    assert done.stderr == "".join([f"line {n}\n" for n in range(900)]) + "in atexit\n"


# More than a pipe takes, and than waits for it: by Python's own means, as any library would.
FLOOD = (
    "import logging\nfor n in range(6000): logging.getLogger('lib').warning('%d %s', n, 'x' * 200)"
)


@pytest.mark.parametrize("before", ["", "logging.error('before')\n"], ids=["first", "another"])
def test_what_is_logged_when_no_thread_runs_any_more(before: str) -> None:
    """As a task does of which nobody wanted to know how it ended."""
    script = (
        "import logging, sys\nfrom snex_runtime.stderr import StderrHandler\n"
        "logging.getLogger().addHandler(StderrHandler())\n"
        f"{before}"
        "class Last:\n"
        "  def __del__(self, log=logging.error, ending=sys.is_finalizing):\n"
        "    log('ending: %s', ending())\n"
        "last = Last()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=SECONDS,
        text=True,
        check=True,
    )
    assert done.stderr.endswith("ending: True\n")


class TestReportsInThisProcess:
    """Of Python itself: warnings, and exceptions that nobody can be told of."""

    @pytest.fixture(autouse=True)
    def before(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
        """What those that were there before were told."""
        told: list[Any] = []
        monkeypatch.setattr(warnings, "showwarning", lambda *given: told.append(given))
        monkeypatch.setattr(sys, "unraisablehook", told.append)
        undo = pipe.handler.take_reports()
        yield told
        undo()
        assert sys.unraisablehook == told.append

    def test_a_warning(self, pipe: Pipe) -> None:
        warnings.showwarning("careful", UserWarning, "mine.py", 7, line="x = 1")
        assert pipe.read(b"x = 1") == "mine.py:7: UserWarning: careful\n  x = 1\n"

    def test_warnings_for_another_file(self, before: list[Any]) -> None:
        other = io.StringIO()
        warnings.showwarning("careful", UserWarning, "mine.py", 7, file=other, line="x = 1")
        assert before == [("careful", UserWarning, "mine.py", 7, other, "x = 1")]

    def report(self, what: object, message: str | None = None) -> None:
        try:
            raise ValueError("lost")
        except ValueError as error:
            fields = (type(error), error, error.__traceback__, message, what)
            names = ("exc_type", "exc_value", "exc_traceback", "err_msg", "object")
            unraisable: Any = SimpleNamespace(**dict(zip(names, fields)))
            sys.unraisablehook(unraisable)

    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    @pytest.mark.parametrize(
        ("what", "message", "expected"),
        [
            (7, None, "Exception ignored in: 7\n"),
            (7, "Could not", "Could not: 7\n"),
            (None, "Could not", "Could not:\n"),
            (None, None, "Traceback"),
            (Odd(), None, "Exception ignored in: <object repr() failed>\n"),
        ],
    )
    def test_an_exception(
        self, pipe: Pipe, what: object, message: str | None, expected: str
    ) -> None:
        self.report(what, message)
        said = pipe.read(b"ValueError: lost\n")
        assert said.startswith(expected)
        assert "Traceback (most recent call last):" in said

    def test_those_of_code_with_another_standard_error_are_its_own(
        self, pipe: Pipe, before: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        warnings.showwarning("careful", UserWarning, "mine.py", 7)
        self.report(7)
        assert len(before) == 2
        assert before[1].object == 7
        assert not select.select([pipe.reader], [], [], 0)[0]


def test_where_no_thread_can_be_started_it_is_written_at_once(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pipe.logger.warning("one")
    assert os.read(pipe.reader, 100) == b"one\n"
    monkeypatch.undo()
    pipe.logger.warning("two")
    assert pipe.read(b"two") == "two\n"


def test_at_the_end_of_the_interpreter_it_is_written_as_far_as_there_is_room(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    pipe.logger.warning("one")
    assert os.read(pipe.reader, 100) == b"one\n"
    os.set_blocking(pipe.writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe.writer, bytes(4096))
    pipe.logger.warning("there is no room for this")
    os.close(pipe.reader)
    pipe.logger.warning("nobody reads this")


async def test_a_child_whose_output_nobody_reads(epmd: RealEpmd) -> None:
    """What its libraries log holds up neither its other callers nor its end."""
    runtime = ChildRuntime(epmd, stderr=subprocess.PIPE)
    try:
        assert await runtime.eval(FLOOD) == ("ok", None)
        assert await runtime.eval("return 42") == ("ok", 42)
    finally:
        began = time.monotonic()
        runtime.end()
    assert runtime.process.returncode == 0
    assert time.monotonic() - began < 3.0


WARNINGS = "import warnings\nfor n in range(6000): warnings.warn('x' * 200 + str(n))"
UNRAISABLE = """
class A:
    def __del__(self): raise ValueError('x' * 200)
for n in range(2000): A()
"""
UNAWAITED = """
async def nothing(): pass
import warnings
warnings.simplefilter('always')
for n in range(3000): nothing()
"""


@pytest.mark.parametrize("code", [WARNINGS, UNRAISABLE, UNAWAITED])
async def test_what_python_itself_reports(epmd: RealEpmd, code: str) -> None:
    runtime = ChildRuntime(epmd, stderr=subprocess.PIPE)
    try:
        assert await runtime.eval(code) == ("ok", None)
        assert await runtime.eval("return 42") == ("ok", 42)
    finally:
        runtime.end()
    assert runtime.process.returncode == 0


class TestReports:
    """Warnings, and exceptions that cannot be raised, are written as Python writes them."""

    def run(self, folder: Path, code: str, reports: bool) -> str:
        program = "import sys, warnings\nfrom snex_runtime.stderr import StderrHandler\n"
        program += "undo = StderrHandler().take_reports()\n" if reports else "\n"
        (folder / "program.py").write_text(program + code)
        return subprocess.run(
            [sys.executable, "program.py"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            timeout=SECONDS,
            text=True,
            check=True,
        ).stderr

    @pytest.mark.parametrize(
        "code",
        [
            "warnings.warn('a warning')",
            "warnings.warn(DeprecationWarning('old'))",
            "class A:\n    def __del__(self): 1 / 0\nA()",
            "import io, contextlib\n"
            "with contextlib.redirect_stderr(io.StringIO()) as text: warnings.warn('kept')\n"
            "print(text.getvalue(), file=sys.stderr)",
            "warnings.showwarning('text', UserWarning, 'f', 1, file=sys.stderr)",
        ],
    )
    def test_the_same_text(self, code: str, tmp_path: Path) -> None:
        texts = (self.run(tmp_path, code, how) for how in (True, False))
        # Where in a line it was, Python's own C code does not always show.
        ours, pythons = (re.sub("0x[0-9a-f]+|\n *[~^]+\n", "\n", text) for text in texts)
        assert ours == pythons != ""

    def test_undoing_it(self, tmp_path: Path) -> None:
        code = "undo()\nassert 'warnings' in warnings.showwarning.__module__"
        assert self.run(tmp_path, code, True) == ""


async def test_a_child_s_last_words(epmd: RealEpmd) -> None:
    runtime = ChildRuntime(epmd, stderr=subprocess.PIPE)
    try:
        code = "import logging, atexit\natexit.register(logging.getLogger('x').warning, 'at exit')"
        assert await runtime.eval(code) == ("ok", None)
        assert runtime.process.stdin is not None
        runtime.process.stdin.close()
        assert runtime.process.stderr is not None
        assert runtime.process.stderr.read() == b"at exit\n"
    finally:
        runtime.end()


class TestJson:
    """Whatever is written is JSON then."""

    @pytest.fixture
    def pipe(self, pipe: Pipe) -> Pipe:
        pipe.handler.setFormatter(JsonFormatter("py@127.0.0.1"))
        return pipe

    def test_records(self, pipe: Pipe) -> None:
        pipe.logger.warning("%s is there", "it")
        pipe.logger.warning("%d", "no number")
        lines = pipe.read(b"no text").splitlines()
        first, second = map(json.loads, lines)
        assert (first["message"], first["logger"]) == ("it is there", "of this test")
        assert second["message"].startswith("the log record made at ")
        assert second["level"] == "error"

    def test_reports(self, pipe: Pipe) -> None:
        undo = pipe.handler.take_reports()
        try:
            warnings.showwarning("an old thing", DeprecationWarning, "f.py", 3)
            unraisable: Any = SimpleNamespace(
                exc_type=ValueError,
                exc_value=ValueError("lost"),
                exc_traceback=None,
                err_msg=None,
                object=None,
            )
            sys.unraisablehook(unraisable)
        finally:
            undo()
        lines = pipe.read(b"lost").splitlines()
        warned, lost = map(json.loads, lines)
        assert (warned["logger"], warned["level"]) == ("py.warnings", "warning")
        assert "DeprecationWarning: an old thing" in warned["message"]
        assert (lost["level"], "ValueError: lost" in lost["message"]) == ("error", True)

    def test_what_was_dropped(self, pipe: Pipe) -> None:
        pipe.handler._dropped = 3
        pipe.logger.warning("there")
        *_, told = map(json.loads, pipe.read(b"were dropped").splitlines())
        assert told["message"] == "3 log records were dropped: nobody read standard error"
