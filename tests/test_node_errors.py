"""Errors of nodes: what they hold, and Python's exceptions as Erlang knows reasons and stacks."""

from __future__ import annotations

from typing import Any, Final

import pytest

from snex_node import Node, errors
from snex_node.errors import (
    MAX_REASON,
    MAX_STACK,
    MAX_TEXT,
    CallTimeoutError,
    ConnectError,
    NodeError,
    NodeStartError,
    PassedOnError,
    ProcessExitError,
    RemoteError,
    UndefinedFunctionError,
    error_reason,
    error_stack,
)
from snex_node.wire import etf
from snex_node.wire.terms import Atom


class TestHierarchy:
    @pytest.mark.parametrize(
        "kind", [NodeStartError, ConnectError, ProcessExitError, CallTimeoutError, RemoteError]
    )
    def test_all_that_a_caller_may_want_to_handle_has_one_base(self, kind: type) -> None:
        assert issubclass(kind, NodeError)

    def test_a_timeout_is_one_for_python_as_well(self) -> None:
        assert issubclass(CallTimeoutError, TimeoutError)

    def test_a_function_that_is_missing_is_not_found(self) -> None:
        assert issubclass(UndefinedFunctionError, LookupError)
        assert not issubclass(UndefinedFunctionError, NodeError)


def test_a_connect_error_has_the_node_and_a_word() -> None:
    error = ConnectError("app@host", "unknown", "epmd at host does not know app")
    assert (error.node, error.reason) == ("app@host", "unknown")
    assert str(error) == "epmd at host does not know app"


class TestReasons:
    REASON = (Atom("shutdown"), b"text", None)

    def test_an_exit_names_what_has_ended(self) -> None:
        error = ProcessExitError(self.REASON)
        assert error.reason is self.REASON
        assert str(error) == 'the process has ended: {:shutdown, "text", nil}'
        assert str(ProcessExitError(Atom("noproc"), "snex")) == "snex has ended: :noproc"

    def test_what_a_remote_function_did(self) -> None:
        stack: list[object] = [(Atom("lists"), Atom("hd"), 1, [])]
        error = RemoteError("error", Atom("badarg"), stack)
        assert (error.kind, error.reason, error.stack) == ("error", "badarg", stack)
        assert str(error) == "error: :badarg"
        assert RemoteError("throw", 1).stack == ()

    @pytest.mark.parametrize("make", [ProcessExitError, lambda reason: RemoteError("exit", reason)])
    def test_texts_are_bounded_and_reasons_whole(self, make: Any) -> None:
        reason = [b"x" * 100] * 1000
        error = make(reason)
        assert MAX_REASON <= len(str(error)) <= MAX_REASON + 50
        assert error.reason is reason


class TestErrorReason:
    def test_type_and_text(self) -> None:
        reason: Any = error_reason(KeyError("missing"))
        assert reason == ("python_error", "KeyError", "'missing'")
        assert isinstance(reason[0], Atom)

    def test_texts_are_bounded(self) -> None:
        reason: Any = error_reason(ValueError("ä" * (MAX_TEXT + 1)))
        assert reason[2] == "ä" * MAX_TEXT

    def test_lone_surrogates_are_replaced(self) -> None:
        reason: Any = error_reason(ValueError("\ud800 here"))
        assert reason == ("python_error", "ValueError", "? here")
        assert etf.decode(etf.encode(reason)) == ("python_error", b"ValueError", b"? here")

    def test_a_text_that_cannot_be_made(self) -> None:
        class OddError(Exception):
            __module__ = "builtins"

            def __str__(self) -> str:
                raise RuntimeError

        reason: Any = error_reason(OddError())
        _, name, text = reason
        assert name.endswith("OddError")
        assert text == "<exception str() failed>"


class TestPassedOn:
    """What another process told of an error is told on as it is."""

    STACK: Final[list[object]] = [(Atom("module"), Atom("function"), 1, [])]

    def test_reason_and_stack_are_those_that_came(self) -> None:
        reason = (Atom("python_error"), b"KeyError", b"'k'")
        error = PassedOnError(reason, self.STACK)
        assert error_reason(error) is reason
        assert error_stack(error) is self.STACK
        assert str(error) == '{:python_error, "KeyError", "\'k\'"}'

    def test_raising_it_adds_nothing_to_the_stack(self) -> None:
        def fail() -> None:
            raise PassedOnError(Atom("undef"), self.STACK)

        error = raised(fail)
        assert error_reason(error) == "undef"
        assert error_stack(error) == self.STACK

    def test_its_text_is_bounded(self) -> None:
        reason = [b"x" * 100] * 1000
        error = PassedOnError(reason, [])
        assert len(str(error)) <= MAX_REASON + 50
        assert error.reason is reason

    def test_it_is_no_error_of_the_node(self) -> None:
        assert not issubclass(PassedOnError, NodeError)


def raised(function: Any) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it did not raise")


def compiled(source: str, file: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(source, file, "exec"), names)
    return names


def summary(stack: list[Any]) -> list[tuple[str, str, int]]:
    """Function, file and line of each entry."""
    found = []
    for module, function, arity, where in stack:
        assert (module, arity) == ("python", 0)
        (file, name), (line, number) = where
        assert (file, line) == ("file", "line")
        found.append((str(function), "".join(map(chr, name)), number))
    return found


class TestErrorStack:
    def test_frames_come_innermost_first(self) -> None:
        names = compiled("def f():\n    g()\n\ndef g():\n    1 / 0\n", "/app/mine.py")
        found = summary(error_stack(raised(names["f"])))
        assert found[:2] == [("g", "/app/mine.py", 5), ("f", "/app/mine.py", 2)]
        assert found[2][0] == "raised"

    def test_those_of_this_package_are_left_out(self) -> None:
        found = summary(error_stack(raised(lambda: Node("no name", cookie="c"))))
        assert [function for function, _, _ in found] == ["<lambda>", "raised"]
        assert not any(file.startswith(errors._PACKAGE) for _, file, _ in found)

    def test_their_number_is_bounded_and_the_inner_ones_are_kept(self) -> None:
        names = compiled("def f(n):\n    return f(n - 1) if n else 1 / 0\n", "deep.py")
        found = summary(error_stack(raised(lambda: names["f"](3 * MAX_STACK))))
        assert found == [("f", "deep.py", 2)] * MAX_STACK

    def test_names_fit_into_atoms_and_on_the_wire(self) -> None:
        name = "f" * 300
        names = compiled(f"def {name}():\n    1 / 0\n", "/tmp/\udc80ä.py")
        stack = error_stack(raised(names[name]))
        assert summary(stack)[0] == ("f" * 255, "/tmp/?ä.py", 2)
        assert etf.decode(etf.encode(stack))

    def test_an_error_that_was_not_raised_has_none(self) -> None:
        assert error_stack(ValueError()) == []
