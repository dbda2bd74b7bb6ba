"""``snex.LoggingHandler``: what a record becomes."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from snex_node.wire.describe import type_name
from snex_runtime import interface
from snex_runtime.logging import LoggingHandler, elixir_level, is_untold
from snex_runtime.serde import Atom
from tests.support.pair import pair


class Backend:
    def __init__(self) -> None:
        self.records: list[tuple[str, str, Any]] = []

    def log(self, level: str, text: str, metadata: object) -> None:
        self.records.append((level, text, metadata))


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    before = interface.current_backend()
    interface.set_backend(made)  # type: ignore[arg-type]
    yield made
    interface.set_backend(before)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    # In nobody's tree: pytest, which listens to all others, raises what records cannot format.
    made = logging.Logger("test.handler", 1)  # noqa: LOG001
    yield made
    made.handlers.clear()


def record(**attributes: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "n", "msg": "m", "pathname": "/a/b.py", "lineno": 7})
    made.__dict__.update(attributes)
    return made


class TestAtTheEnd:
    """A runtime that has stopped takes no records, and that is no failure of who logs."""

    def test_nothing_is_said_after_a_normal_stop(
        self, backend: Backend, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logger.addHandler(LoggingHandler())
        logger.info("before")
        interface.set_backend(None, stopped=True)
        logger.info("after")
        assert [text for _, text, _ in backend.records] == ["before"]
        assert capsys.readouterr().err == ""

    def test_where_there_never_was_a_beam_it_says_so(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = interface.current_backend()
        interface.set_backend(None)
        try:
            logger.addHandler(LoggingHandler())
            logger.info("text")
        finally:
            interface.set_backend(before)
        assert "this process is not connected to a BEAM" in capsys.readouterr().err

    async def test_of_a_runtime(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async with pair() as both:
            logger.addHandler(LoggingHandler())
            both.server.exit()
            logger.info("on the loop")
            await asyncio.to_thread(logger.info, "in a thread")
        logger.info("after its node")
        assert capsys.readouterr().err == ""


class TestOwnRecords:
    """The library's own records are told by the root logger, where users have it, else by us."""

    @pytest.fixture(params=["WARNING", "INFO"])
    def own(self, request: pytest.FixtureRequest) -> logging.LogRecord:
        return record(levelno=getattr(logging, request.param))

    @staticmethod
    def untold(record: logging.LogRecord, *handlers: logging.Handler) -> bool:
        """What `is_untold` says where the root logger has just these handlers."""
        root = logging.getLogger()
        before = list(root.handlers)
        root.handlers[:] = handlers
        try:
            return is_untold(record)
        finally:
            root.handlers[:] = before

    def test_who_tells(self, backend: Backend, own: logging.LogRecord) -> None:
        assert self.untold(own)
        for make in (LoggingHandler, logging.StreamHandler):
            at, above = make(), make()
            at.setLevel(own.levelno)
            above.setLevel(own.levelno + 1)
            assert self.untold(own, above)
            assert not self.untold(own, at)
            assert not self.untold(own, above, at)

    def test_what_elixir_does_not_get(self, backend: Backend, own: logging.LogRecord) -> None:
        token = interface.delivering_logs.set(True)
        untold = self.untold(own, LoggingHandler())
        interface.delivering_logs.reset(token)
        assert untold  # else each record of carrying records would make the next
        interface.set_backend(None, stopped=True)
        assert self.untold(own, LoggingHandler())


@pytest.mark.parametrize(
    ("level", "name"),
    [(0, "debug"), (10, "debug"), (11, "info"), (20, "info"), (21, "notice"), (29, "notice"),
     (30, "warning"), (31, "error"), (40, "error"), (41, "critical"), (50, "critical"),
     (51, "alert"), (60, "alert"), (61, "emergency"), (1000, "emergency")],
)  # fmt: skip
def test_levels(level: int, name: str) -> None:
    assert elixir_level(level) == name


class TestMetadata:
    def test_all_of_it(self) -> None:
        made = record(created=12.5, levelname="INFO", module="b", funcName="f", process=1, thread=2,
                      threadName="t", taskName="k")  # fmt: skip
        assert LoggingHandler().metadata(made) == {
            "application": "snex",
            "domain": ["snex", "python"],
            "file": b"/a/b.py",
            "line": 7,
            "time": 12_500_000,
            "python_logger_name": "n",
            "python_log_level": "INFO",
            "python_module": "b",
            "python_function": "f",
            "python_process_id": 1,
            "python_thread_id": 2,
            "python_thread_name": "t",
            "python_task_name": "k",
        }

    def test_names_and_application_are_atoms(self) -> None:
        metadata = LoggingHandler().metadata(record())
        assert all(isinstance(name, Atom) for name in metadata)
        assert isinstance(metadata[Atom("application")], Atom)

    def test_precedence(self) -> None:
        handler = LoggingHandler(
            default_metadata={"application": "mine", "a": 1, "b": 1, "line": 1, "name": 1},
            extra_metadata_keys={"b", "c", "line", "absent"},
        )
        metadata = handler.metadata(record(a=2, b=2, c=2, d=2))
        names = ("application", "a", "b", "c", "line", "name")
        assert [metadata[Atom(name)] for name in names] == ["mine", 2, 2, 2, 7, 1]
        assert "d" not in metadata
        assert "absent" not in metadata

    def test_an_iterator_is_left_to_others(self) -> None:
        given = iter((1, 2))
        found = LoggingHandler(extra_metadata_keys={"a"}).metadata(record(a=given))
        assert str(found[Atom("a")]).startswith("<tuple_iterator object at ")
        assert list(given) == [1, 2]

    def test_exceptions(self) -> None:
        try:
            raise ValueError("bad")
        except ValueError:
            made = record(exc_info=sys.exc_info())
        assert LoggingHandler().metadata(made)[Atom("python_exception")] == "ValueError"
        assert "python_exception" not in LoggingHandler().metadata(record(exc_info=(None,) * 3))

    @pytest.mark.parametrize(
        ("file", "expected"), [("<Snex.Code>", b"<Snex.Code>"), ("/a/\udcff.py", b"/a/\xff.py")]
    )
    def test_files(self, file: str, expected: bytes) -> None:
        assert LoggingHandler().metadata(record(pathname=file))[Atom("file")] == expected

    def test_a_relative_file(self) -> None:
        file = LoggingHandler().metadata(record(pathname="b.py"))[Atom("file")]
        assert isinstance(file, bytes)
        assert file.startswith(b"/")
        assert file.endswith(b"/b.py")

    async def test_the_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("mine")
        made = record()
        made.__dict__.pop("taskName", None)  # as before Python 3.12
        assert LoggingHandler().metadata(made)[Atom("python_task_name")] == "mine"

    def test_values_without_a_term(self) -> None:
        class Odd:
            def __repr__(self) -> str:
                return "odd \ud800"

        class Worse:
            def __repr__(self) -> str:
                raise ValueError

        handler = LoggingHandler(extra_metadata_keys=["a", "b", "c"])
        metadata = handler.metadata(record(a=Odd(), b=[Worse()], c=Worse()))
        assert metadata[Atom("a")] == "odd \\ud800"
        assert metadata[Atom("b")] == "<list, whose __repr__ failed>"
        assert metadata[Atom("c")] == f"<{type_name(Worse)}, whose __repr__ failed>"


class TestEmit:
    def test_text_and_level(self, backend: Backend, logger: logging.Logger) -> None:
        logger.addHandler(LoggingHandler(logging.INFO))
        logger.debug("too low")
        logger.log(25, "%s", "lone \ud800")
        [(level, text, metadata)] = backend.records
        assert (level, text) == ("notice", "lone \\ud800")
        assert metadata[Atom("python_function")] == "test_text_and_level"

    def test_a_formatter(self, backend: Backend, logger: logging.Logger) -> None:
        handler = LoggingHandler()
        handler.setFormatter(logging.Formatter("<%(message)s>"))
        logger.addHandler(handler)
        logger.info("x")
        assert backend.records[0][1] == "<x>"

    def test_never_raises(
        self, logger: logging.Logger, backend: Backend, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logger.addHandler(LoggingHandler())
        logger.info("%d", "no number")
        assert "%d format" in capsys.readouterr().err
        interface.set_backend(None)
        logger.info("nobody is there")
        assert "not connected to a BEAM" in capsys.readouterr().err
        assert backend.records == []

    def test_what_carrying_records_logs_is_left_out(
        self, backend: Backend, logger: logging.Logger
    ) -> None:
        logger.addHandler(LoggingHandler())
        token = interface.delivering_logs.set(True)
        logger.info("while carrying")
        interface.delivering_logs.reset(token)
        logger.info("afterwards")
        assert [text for _, text, _ in backend.records] == ["afterwards"]
