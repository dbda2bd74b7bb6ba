"""Errors as callers get them: user frames only, bounded, fit for the wire, whatever was raised."""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from snex_node.wire.etf import EncodeError, Encoder, decode, encode
from snex_node.wire.terms import Atom
from snex_runtime import errors
from snex_runtime.code import compile_code
from snex_runtime.errors import (
    MAX_CHAIN,
    MAX_FRAMES,
    MAX_TEXT,
    MAX_TRACEBACK,
    BadRequest,
    ErrorCode,
    Failure,
    bad_request,
    cancelled,
    format_traceback,
    from_exception,
)

CPYTHON = sys.implementation.name == "cpython"
HEADER = "Traceback (most recent call last):\n"
HERE = '  File "<Snex.Code>", line {}, in {}\n'


# Evaluates as the runtime does, and lies in its directory: its frames are none of the user's.
CALLER = """
import asyncio
from snex_runtime.code import compile_code

def raised(source, env=None, **at):
    try:
        code = compile_code(source, **at)
        result = code.run({} if env is None else env)
        if code.is_async:
            asyncio.run(awaited(result))
    except BaseException as error:
        return error

async def awaited(result):
    return await result
"""


def _load_caller() -> Callable[..., BaseException | None]:
    file = Path(errors.__file__).with_name("caller_in_tests.py")
    names: dict[str, Any] = {}
    exec(compile(CALLER, str(file), "exec"), names)
    raised: Callable[..., BaseException | None] = names["raised"]
    return raised


_raised = _load_caller()


def raised(source: str, env: dict[str, object] | None = None, **at: Any) -> BaseException:
    """What a snippet raises, at its top level or after it has awaited."""
    error = _raised(source, env, **at)
    assert error is not None
    return error


def lines_of(source: str, **at: Any) -> list[str]:
    lines = from_exception(raised(source, **at)).traceback
    assert lines is not None
    return lines


# --- Failure --------------------------------------------------------------------------------------


def test_the_codes_of_workers_are_among_them() -> None:
    assert {"overloaded", "worker_exited", "killed", "memory_limit"} <= set(get_args(ErrorCode))


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_a_failure_is_an_exception_struct_on_the_wire(code: ErrorCode) -> None:
    failure = Failure(code, {"any": [1]}, ["line\n", "lïne\n"], "KeyError")
    sent = decode(encode(failure.to_term()))
    assert sent == {
        Atom("__struct__"): Atom("Elixir.Snex.Error"),
        Atom("__exception__"): True,
        Atom("code"): Atom(code),
        Atom("reason"): {b"any": [1]},
        Atom("traceback"): [b"line\n", "lïne\n".encode()],
        Atom("type"): b"KeyError",
    }
    assert all(type(key) is Atom for key in failure.to_term())
    assert type(failure.to_term()[Atom("code")]) is Atom


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        ("{}['k']", "KeyError", "'k'"),
        ("1 / 0", "ZeroDivisionError", "division by zero"),
        ("raise ValueError", "ValueError", "ValueError"),
        ("raise ValueError('')", "ValueError", "ValueError"),
        ("raise ValueError(' \\n')", "ValueError", "ValueError"),
        ("assert False", "AssertionError", "AssertionError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise SystemExit", "SystemExit", "SystemExit"),
        ("import asyncio; raise asyncio.CancelledError", "asyncio.exceptions.CancelledError",
         "asyncio.exceptions.CancelledError"),
        ("import json; json.loads('x')", "json.decoder.JSONDecodeError",
         "Expecting value: line 1 column 1 (char 0)"),
        ("import queue; raise queue.Full", "queue.Full", "queue.Full"),
        ("class Mine(Exception): pass\nraise Mine('m')", "Mine", "m"),
        ("class Mine(Exception): pass\nraise Mine", "Mine", "Mine"),
        ("x =", "SyntaxError", None),
    ],
)  # fmt: skip
def test_it_has_the_name_of_the_type(source: str, kind: str, reason: str | None) -> None:
    failure = from_exception(raised(source, {"__name__": "__snex__"}))
    assert failure.type == kind
    assert failure.reason == (reason or failure.reason)
    assert failure.reason


def test_without_an_exception_there_is_no_type() -> None:
    for failure in (bad_request("no"), cancelled("timeout"), Failure("env_not_found", "gone")):
        assert failure.to_term()[Atom("type")] is None


def test_the_type_of_what_cannot_be_encoded() -> None:
    for value, kind in ((1j, "TypeError"), (float("nan"), "ValueError")):
        with pytest.raises(EncodeError) as caught:
            Encoder().encode([value])
        assert from_exception(caught.value).type == kind


def test_the_name_of_a_type_may_be_anything() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError("no attributes")

    odd = Meta("Nä" + "x" * 10**6, (Exception,), {"__module__": 5})
    failure = from_exception(odd())
    encode(failure.to_term())
    assert failure.reason == failure.type
    assert str(failure.type).startswith("Näxxx")
    assert len(str(failure.type)) < 200


def test_without_a_traceback_it_is_nil() -> None:
    assert Failure("call_failed", Atom("noproc")).to_term()[Atom("traceback")] is None
    assert encode(Failure("call_failed", 1).to_term()).count(b"w\x03nil") == 2  # and no type


def test_a_failure_for_a_log() -> None:
    assert Failure("env_not_found", "gone").describe() == "env_not_found: gone"
    assert Failure("python_runtime_error", "b", ["a\n", "b\n"]).describe() == "a\nb"


def test_bad_requests_and_cancellations() -> None:
    assert bad_request("no").code == "bad_request"
    assert bad_request("x" * MAX_TEXT * 2).to_term()[Atom("reason")].startswith("xxx")  # type: ignore[attr-defined]
    assert cancelled("timed out").code == "cancelled"
    assert cancelled("timed out").reason == "timed out"
    assert issubclass(BadRequest, Exception)


def test_a_failure_that_was_raised_is_kept_as_it_is() -> None:
    failure = Failure("env_not_found", "gone")
    assert from_exception(failure) is failure


# --- Tracebacks of the user's code ----------------------------------------------------------------


def test_an_error_has_its_text_and_the_frames_of_the_user() -> None:
    failure = from_exception(raised("def f(x):\n  return 1 / x\nf(0)"))
    assert failure.code == "python_runtime_error"
    assert failure.reason == "division by zero"
    assert failure.traceback == [
        HEADER,
        HERE.format(3, "<module>"),
        HERE.format(2, "f"),
        "ZeroDivisionError: division by zero\n",
    ]


def test_the_frames_of_asyncio_above_the_user_are_left_out() -> None:
    source = (
        "import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  raise KeyError('k')\nawait f()"
    )
    failure = from_exception(raised(source))
    assert failure.reason == "'k'"
    assert failure.traceback == [
        HEADER,
        HERE.format(5, "<module>"),
        HERE.format(4, "f"),
        "KeyError: 'k'\n",
    ]


def test_the_frames_of_asyncio_that_the_user_called_are_kept() -> None:
    lines = lines_of("import asyncio\nawait asyncio.wait_for(asyncio.sleep(60), 0.001)")
    user = lines.index(HERE.format(2, "<module>"))
    assert lines[user - 1] == HEADER
    assert "asyncio" in lines[user + 1]
    assert "in wait_for" in lines[user + 1]


def test_frames_of_the_runtime_below_the_user_are_left_out() -> None:
    # As a snippet has them that calls into the runtime: here it compiles another snippet.
    source = (
        "from snex_runtime.code import compile_code\ncompile_code('\\n1 / 0', 'inner.ex').run({})"
    )
    assert lines_of(source) == [
        HEADER,
        HERE.format(2, "<module>"),
        '  File "inner.ex", line 2, in <module>\n',
        "ZeroDivisionError: division by zero\n",
    ]


def test_an_internal_error_keeps_all_frames() -> None:
    lines = from_exception(raised("1 / 0"), "internal_error").traceback
    assert lines is not None
    assert any("snex_runtime" in line and "in run" in line for line in lines)


def test_a_syntax_error_has_its_place_and_no_frames() -> None:
    failure = from_exception(raised("x = 1\ny = = 2\n", file="lib/a.ex", line=11))
    assert failure.reason == "invalid syntax (a.ex, line 12)"
    assert failure.traceback is not None
    text = "".join(failure.traceback)
    assert text.startswith('  File "lib/a.ex", line 12\n    y = = 2\n')
    assert text.endswith("SyntaxError: invalid syntax\n")


def test_the_source_is_shown_where_it_can_be_read_and_columns_only_in_python(
    tmp_path: Path,
) -> None:
    source = 'def f():\n    raise ValueError("x" + str(1 / 0))\n'
    for name in ("m.exs", "m.py"):
        (tmp_path / name).write_text(source)
    elixir = lines_of(source + "f()", file=str(tmp_path / "m.exs"))
    python = lines_of(source + "f()", file=str(tmp_path / "m.py"))
    where = '  File "{}", line 2, in f\n    raise ValueError("x" + str(1 / 0))\n'
    assert elixir[2] == where.format(tmp_path / "m.exs")
    assert python[2].startswith(where.format(tmp_path / "m.py"))
    marks = "~~^~~" in python[2]
    assert marks == (sys.version_info >= (3, 11) and CPYTHON) or not CPYTHON


def test_a_statement_of_many_lines_shows_its_first(tmp_path: Path) -> None:
    (tmp_path / "m.exs").write_text("x = (1 +\n  2 / 0 +\n  3)\n")
    lines = lines_of("x = f(1 +\n  2,\n  3)\n", file=str(tmp_path / "m.exs"))
    assert lines[1] == f'  File "{tmp_path / "m.exs"}", line 1, in <module>\n    x = (1 +\n'


CHAINED = """
def f():
  raise ValueError('inner')
try:
  f()
except ValueError as error:
  raise KeyError('outer'){}
"""


@pytest.mark.parametrize(
    ("how", "joint"),
    [
        (
            " from error",
            "\nThe above exception was the direct cause of the following exception:\n\n",
        ),
        ("", "\nDuring handling of the above exception, another exception occurred:\n\n"),
    ],
)
def test_causes_and_contexts_are_told(how: str, joint: str) -> None:
    assert lines_of(CHAINED.format(how)) == [
        HEADER,
        HERE.format(5, "<module>"),
        HERE.format(3, "f"),
        "ValueError: inner\n",
        joint,
        HEADER,
        HERE.format(7, "<module>"),
        "KeyError: 'outer'\n",
    ]


def test_a_suppressed_context_is_not_told() -> None:
    assert "inner" not in "".join(lines_of(CHAINED.format(" from None")))


def test_a_circle_of_causes_ends() -> None:
    lines = lines_of(
        "a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a"
    )
    assert lines[-1] == "ValueError: a\n"
    assert "ValueError: b\n" in lines


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups before 3.11")
def test_exception_groups_and_notes_are_told_without_frames_of_the_runtime() -> None:
    source = """
import asyncio
async def f(n):
  await asyncio.sleep(0)
  error = ValueError(n)
  error.add_note(f'note {n}')
  raise error
async with asyncio.TaskGroup() as group:
  for n in range(2): group.create_task(f(n))
"""
    text = "".join(lines_of(source))
    assert "unhandled errors in a TaskGroup (2 sub-exceptions)" in text
    for n in range(2):
        assert f"ValueError: {n}\n    | note {n}\n" in text
    assert text.count('File "<Snex.Code>", line 7, in f') == 2
    assert "snex_runtime" not in text
    assert "runners.py" not in text


def test_many_equal_frames_are_told_once() -> None:
    lines = lines_of("def f(): f()\nf()")
    assert HERE.format(1, "f") in lines
    assert any("times]" in line for line in lines)
    assert lines[-1].startswith("RecursionError: maximum recursion depth exceeded")
    assert len(lines) < 12


def test_errors_other_than_exceptions_are_told() -> None:
    assert from_exception(raised("raise SystemExit(3)")).reason == "3"
    assert from_exception(raised("raise KeyboardInterrupt")).traceback is not None
    assert from_exception(raised("class E(BaseException): pass\nraise E('x')")).reason == "x"


def test_an_error_raised_in_a_thread_keeps_the_users_frames() -> None:
    code = compile_code("def f():\n  raise ValueError('in thread')")
    env: dict[str, Any] = {}
    code.run(env)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        error = pool.submit(env["f"]).exception()
    assert error is not None
    assert from_exception(error).traceback[-2:] == [  # type: ignore[index]
        HERE.format(2, "f"),
        "ValueError: in thread\n",
    ]


def test_an_error_without_a_traceback() -> None:
    failure = from_exception(ValueError("made, not raised"))
    assert failure.traceback == ["ValueError: made, not raised\n"]


# --- Values that have no term ---------------------------------------------------------------------


def encode_error(value: object) -> EncodeError:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    return caught.value


def test_what_the_codec_finds_is_told_in_one_line() -> None:
    failure = from_exception(encode_error([object()]))
    assert failure.traceback == [f"TypeError: {failure.reason}\n"]
    failure = from_exception(encode_error(Atom("x") and [float("inf")]))
    assert failure.traceback == [f"ValueError: {failure.reason}\n"]


@pytest.mark.parametrize("text", ["", " \n", "gone"])
@pytest.mark.parametrize("place", [False, True])
def test_what_a_custom_encoder_raises_keeps_its_type_and_has_a_reason(
    text: str, place: bool
) -> None:
    """Also where it says nothing, and where it is derived from what the codec takes for its own."""
    environment: dict[str, Any] = {}
    exec(
        compile(
            f"class Gone(ValueError): pass\ndef refuse(value):\n    raise Gone({text!r})",
            "user.py",
            "exec",
        ),
        {"__name__": "my.module"},
        environment,
    )
    environment["refuse"].__globals__["Gone"] = environment["Gone"]
    with pytest.raises(EncodeError) as caught:
        Encoder(default=environment["refuse"]).encode([object()] if place else object())
    failure = from_exception(caught.value)
    assert failure.type == "my.module.Gone"
    told = "gone" if text == "gone" else "my.module.Gone"
    assert failure.reason == told + " (at [0])" * place
    assert failure.traceback is not None
    assert failure.traceback[-1].startswith("my.module.Gone")
    assert 'File "user.py", line 3, in refuse' in "".join(failure.traceback)


@pytest.mark.parametrize("notes", [[], ["look at it"]])
def test_what_a_custom_encoder_refuses_is_told_as_one_exception(notes: list[str]) -> None:
    environment: dict[str, object] = {"notes": notes}
    source = """
def refuse(value):
    error = TypeError("not mine")
    error.__notes__ = notes
    raise error
"""
    compile_code(source).run(environment)
    encoder: Any = environment["refuse"]
    with pytest.raises(EncodeError) as caught:
        Encoder(default=encoder).encode({"k": [object()]})
    failure = from_exception(caught.value)
    assert failure.reason == 'not mine (at ["k"][0])'
    assert failure.traceback is not None
    assert failure.traceback[:2] == [
        "Traceback (most recent call last):\n",
        '  File "<Snex.Code>", line 5, in refuse\n',
    ]
    assert failure.traceback[-1] == f"TypeError: {failure.reason}\n"
    assert "direct cause" not in "".join(failure.traceback)
    assert "snex_node" not in "".join(failure.traceback)


# --- It never fails -------------------------------------------------------------------------------


class Hostile(Exception):
    """Everything about it raises."""

    def __str__(self) -> str:
        raise ValueError("str")

    __repr__ = __str__

    @property
    def __notes__(self) -> list[str]:
        raise SystemExit("notes")

    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]
        raise KeyboardInterrupt

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("setattr")


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class AtomText(Exception):
    def __str__(self) -> str:
        return Atom("an_atom")


class Meta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise ValueError("module")


class Nameless(Exception, metaclass=Meta):
    pass


class Deep(Exception):
    def __str__(self) -> str:
        return str(self)


class Notes(Exception):
    __notes__ = ["fine", 5, Exits(), "n" * (MAX_TEXT + 1)] * 100


UNREADABLE = "<exception str() failed>"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Hostile(), UNREADABLE),
        (Exits(), UNREADABLE),
        (Deep(), UNREADABLE),
        (AtomText(), "an_atom"),
        (Nameless("x"), "x"),
        (Notes("x"), "x"),
        (ValueError("\ud800\udfff"), "\\ud800\\udfff"),
        (ValueError("ü€😀\0"), "ü€😀\0"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), None),
        (OSError(2, "No such file", "\udcff"), "[Errno 2] No such file: '\\udcff'"),
        (SyntaxError("msg", ("f\ud800", -5, 10**30, "t" * 100, -1, -1)), None),
        (SyntaxError("msg", (None, None, None, None)), "msg"),
        (SyntaxError(5), "5"),
        (NameError("n", name="x"), "n"),
        (AttributeError("a", name="x", obj=Hostile()), "a"),
        (ImportError(name=5, path=object()), "ImportError"),  # type: ignore[arg-type]
    ],
)
def test_whatever_is_raised_makes_an_error_that_can_be_sent(
    error: BaseException, reason: str | None
) -> None:
    try:
        raise error
    except BaseException as caught:
        failure = from_exception(caught)
    if reason is not None:
        assert failure.reason == reason
    assert type(failure.reason) is str
    assert failure.traceback
    for line in failure.traceback:
        assert type(line) is str
        assert len(line) < MAX_TEXT + 200
    encode(failure.to_term())


def grown(make: Callable[[], BaseException]) -> tuple[Failure, int]:
    """The error, and the most memory that making it took beyond the exception."""
    import tracemalloc  # PyPy has none

    error = make()
    tracemalloc.start()
    try:
        failure = from_exception(error)
        return failure, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HUGE = 100_000_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("x" * HUGE),
        lambda: SyntaxError("x" * HUGE, ("f", 1, 1, "y" * HUGE)),
        lambda: OSError(1, "x" * HUGE),
    ],
)
@pytest.mark.skipif(not CPYTHON, reason="PyPy does not trace memory")
def test_a_huge_text_is_cut_before_it_is_copied(make: Callable[[], BaseException]) -> None:
    failure, memory = grown(make)
    assert isinstance(failure.reason, str)
    assert len(failure.reason) < MAX_TEXT + 100
    assert failure.reason.endswith("characters)")
    assert sum(map(len, failure.traceback or ())) < 3 * MAX_TEXT + 1000
    # str() of some exceptions is one copy, made for the reason and again for the traceback.
    assert memory < 2 * HUGE + 10_000_000


def test_a_long_traceback_keeps_its_end() -> None:
    error: BaseException = ValueError("x" * MAX_TEXT)
    for _ in range(MAX_CHAIN - 1):
        outer = ValueError("y" * MAX_TEXT)
        outer.__cause__ = error
        error = outer
    lines = from_exception(error).traceback
    assert lines is not None
    assert sum(map(len, lines)) <= MAX_TRACEBACK + 100
    assert lines[-1].startswith("ValueError: yyy")
    assert lines[0].endswith("earlier entries are left out]\n")


def test_a_long_chain_tells_of_its_last_exception() -> None:
    source = f"""
error = None
for n in range({MAX_CHAIN + 1}):
  try: raise ValueError(n) from error
  except ValueError as e: error = e
raise error
"""
    assert lines_of(source) == [
        f"[more than {MAX_CHAIN} chained exceptions are left out]\n",
        HEADER,
        HERE.format(6, "<module>"),
        HERE.format(4, "<module>"),
        f"ValueError: {MAX_CHAIN}\n",
    ]


def test_frames_are_bounded() -> None:
    # Every second frame differs, so that nothing is told once for many.
    source = f"""
import sys
sys.setrecursionlimit({MAX_FRAMES * 4 + 500})
def f(n): return n and g(n - 1)
def g(n): return f(n - 1) if n else 1 / 0
f({MAX_FRAMES * 3 + 1})
"""
    limit = sys.getrecursionlimit()
    try:
        lines = lines_of(source)
    finally:
        sys.setrecursionlimit(limit)
    assert MAX_FRAMES - 10 <= len(lines) <= MAX_FRAMES + 10
    assert lines[-1] == "ZeroDivisionError: division by zero\n"


def test_when_the_traceback_cannot_be_made_the_last_line_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(traceback, "TracebackException", fails)
    assert format_traceback(KeyError("k")) == ["KeyError: 'k'\n"]
    assert format_traceback(errors.BadRequest()) == ["snex_runtime.errors.BadRequest\n"]


# --- It keeps nothing alive -----------------------------------------------------------------------


class Witness:
    """An object that a test watches being freed."""


@pytest.mark.parametrize(
    "source",
    [
        "def f(kept): raise ValueError\nf(witness)",
        "e = ValueError()\ndef f(kept): raise e\nf(witness)",
        "async def f(kept): raise ValueError\nawait f(witness)",
        "def f(kept):\n  try: 1 / 0\n  except ZeroDivisionError as error:\n"
        "    global inner\n    inner = error\n    raise KeyError\nf(witness)",
    ],
)
@pytest.mark.skipif(not CPYTHON, reason="counts references")
def test_the_users_variables_are_freed_although_the_exception_is_kept(source: str) -> None:
    env: dict[str, object] = {"witness": Witness()}
    gone = weakref.ref(env["witness"])
    error = raised(source, env)
    gc.collect()
    gc.disable()
    try:
        failure = from_exception(error)
        assert failure.traceback is not None
        assert "<Snex.Code>" in "".join(failure.traceback)
        del env["witness"]
        assert gone() is None
    finally:
        gc.enable()
    assert error.__traceback__ is None
