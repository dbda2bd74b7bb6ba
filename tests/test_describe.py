"""Foreign values in texts: as Elixir writes them or as Python does, bounded, and never an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire import control
from snex_node.wire.describe import inspect, short, text_of, type_name, type_repr
from snex_node.wire.terms import (
    Atom,
    BitString,
    Export,
    ImproperList,
    Pid,
    Record,
    Reference,
    Term,
)
from snex_runtime import serde


class Meta(type):
    def __repr__(cls) -> str:
        raise RuntimeError("no repr of the class")

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name of the class")

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("no attributes of the class")


class Hostile(metaclass=Meta):
    def __repr__(self) -> str:
        raise SystemExit(3)

    __str__ = __repr__

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    def __hash__(self) -> int:
        return 1


class Gigabytes:
    def __repr__(self) -> str:
        return "x" * 10**9


class NoText:
    def __repr__(self) -> str:
        return 5  # type: ignore[return-value]


class OddText(str):
    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError("no items")


class OddInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class OddList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no items")

    def __len__(self) -> int:
        raise RuntimeError("no length")


class OddDict(dict[Any, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class OddBytes(bytes):
    def __buffer__(self, flags: int) -> memoryview:
        raise RuntimeError("no buffer")

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("no items")


def nested(make: Callable[[Any], Any], depth: int = 30_000) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


def cyclic() -> list[Any]:
    value: list[Any] = [1]
    value.append({"again": value})
    return value


FOREIGN: dict[str, Any] = {
    "a large integer": 10**5000,
    "a very large integer": -(1 << 4_000_000),
    "deep lists": nested(lambda v: [v]),
    "deep tuples": nested(lambda v: (v, Atom("x"))),
    "deep maps": nested(lambda v: {"k": v}),
    "deep improper lists": nested(lambda v: ImproperList([v], 1)),
    "a cycle": cyclic(),
    "surrogates": "\ud800 and \udfff",
    "an atom of surrogates": Atom("\ud800"),
    "a long text": "x" * 10**7,
    "long bytes": b"\xff" * 10**7,
    "a long list": list(range(10**6)),
    "a large map": {number: number for number in range(10**5)},
    "a large set": set(range(10**5)),
    "a long bitstring": BitString(b"x" * 10**7, 3),
    "a hostile object": Hostile(),
    "a hostile class": Hostile,
    "hostile objects in containers": [{Hostile(): (Hostile(),)}, {Hostile()}],
    "hostile objects in a set": {Hostile()},
    "gigabytes": Gigabytes(),
    "no text": NoText(),
    "a text": OddText("text"),
    "an int": OddInt(7),
    "a list": OddList([1]),
    "a dict": OddDict(a=1),
    "bytes": OddBytes(b"abc"),
    "a type with a long name": type("N" * 10_000, (), {}),
    "an object with a long name": type("N" * 10_000, (), {})(),
    "a module that is no text": type("Odd", (), {"__module__": 5})(),
    "an opaque term": Term(b"\xff\xff"),
    "a term of the runtime": serde.Term(b"\xff\xff"),
    "a long record": Record("m", "r", ["f"], [10**5000]),
}


@pytest.mark.parametrize("write", [inspect, short])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_values_are_bounded_and_fail_nothing(
    name: str, write: Callable[[object], str]
) -> None:
    text = write(FOREIGN[name])
    assert type(text) is str
    assert 0 < len(text) <= 400
    text.encode("utf-8")


@pytest.mark.parametrize("write", [inspect, short])
def test_it_works_where_the_stack_is_nearly_full(write: Callable[[object], str]) -> None:
    def deeper(left: int) -> str:
        return write([[[[["x"]]]]]) if left == 0 else deeper(left - 1)

    def depth() -> int:
        frame, count = sys._getframe(), 0
        while frame.f_back is not None:
            frame, count = frame.f_back, count + 1
        return count

    texts = [deeper(sys.getrecursionlimit() - depth() - spare) for spare in (30, 25, 20)]
    assert all(type(text) is str for text in texts)


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="no limit there")
def test_integers_where_python_refuses_even_small_ones() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert inspect(10**616) == "1" + "0" * 199 + "..."
        assert inspect(10**700) == "<an integer of 2326 bits>"
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (None, "nil"),
        (True, "true"),
        (False, "false"),
        (-5, "-5"),
        (1.5, "1.5"),
        (float("-inf"), ':"-inf"'),
        (Atom("ok"), ":ok"),
        (serde.Atom("ok"), ":ok"),
        (serde.DistinctAtom("Elixir.Enum"), "Enum"),
        (Atom("two words"), ':"two words"'),
        ("text", '"text"'),
        ('a "quote"\n#{x}', r'"a \"quote\"\n\#{x}"'),
        ("\ud800", r'"\x{D800}"'),
        (b"text\n", r'"text\n"'),
        (b"\xff\x00", "<<255, 0>>"),
        (bytearray(b"ab"), '"ab"'),
        (BitString(b"\xa0", 3), "<<5::size(3)>>"),
        ([], "[]"),
        ([1, "a"], '[1, "a"]'),
        ([(Atom("a"), 1), (Atom("b"), [2])], "[a: 1, b: [2]]"),
        ([(Atom("a b"), 1), (Atom("Elixir.X"), 2)], '["a b": 1, "Elixir.X": 2]'),
        (ImproperList([1, 2], 3), "[1, 2 | 3]"),
        ((), "{}"),
        ((1, None), "{1, nil}"),
        ({}, "%{}"),
        ({"a": 1}, '%{"a" => 1}'),
        ({Atom("a"): 1, Atom("b"): {}}, "%{a: 1, b: %{}}"),
        ({Atom("__struct__"): Atom("Elixir.Date"), Atom("day"): 1}, "%Date{day: 1}"),
        ({1}, "MapSet.new([1])"),
        (Pid("py@host", 12, 0, 3), "#PID<py@host.12.0>"),
        (Reference("py@host", 3, (30, 20, 10)), "#Reference<py@host.10.20.30>"),
        (Export("Elixir.String", "length", 1), "&String.length/1"),
        (Term(b"a\x07"), "#Term<opaque, 2 bytes>"),
        (object(), "#Python<object>"),
        (2**2048, "<an integer of 2049 bits>"),
    ],
)
def test_as_elixir_writes_it(term: object, text: str) -> None:
    assert inspect(term) == text


@pytest.mark.parametrize(
    "value",
    [None, True, 12, 1.5, "te'xt", b"x", [], [1, "a"], (), (1,), (1, 2), {}, {"a": [1]}, set(), {1},
     frozenset(), frozenset({1}), 2j, range(3), Atom("ok"), serde.Atom("ok"),
     Pid("py@host", 1, 0, 3), dict],
)  # fmt: skip
def test_as_python_writes_it(value: object) -> None:
    assert short(value) == repr(value)


def test_control_messages_show_what_is_in_them() -> None:
    message = control.Exit(Pid("a@b", 1, 0, 1), Pid("a@b", 2, 0, 1), 10**5000)
    assert short(message).startswith("Exit(from_=#PID<a@b.1.0>, to=#PID<a@b.2.0>, reason=<an int")


def test_python_objects() -> None:
    assert short(object()) == "<object object>"
    assert short([Hostile()]).startswith("[<tests.test_describe.Hostile object")
    assert short(bytearray(b"x")) == "b'x'"


@pytest.mark.parametrize("write", [inspect, short])
def test_what_is_long_is_cut(write: Callable[..., str]) -> None:
    assert write("x" * 1000, 20).endswith("xxx...")
    assert len(write("x" * 1000, 20)) <= 23
    assert write(list(range(1000)), 20) == "[0, 1, 2, 3, 4, 5, 6..."
    assert write(nested(lambda v: [v], 40)) == "[" * 20 + "..." + "]" * 20


def test_bytes_that_are_cut_inside_of_a_character() -> None:
    assert inspect("ä".encode() * 1000, 10) == '"äääää"...'


@pytest.mark.untraced
@given(st.recursive(st.none() | st.integers() | st.text() | st.binary() | st.floats(),
       lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)),
       st.integers(0, 300))  # fmt: skip
def test_the_limit_holds(value: object, limit: int) -> None:
    assert len(inspect(value, limit)) <= limit + 3
    assert len(short(value, limit)) <= limit + 3


class OddError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class TestNames:
    def test_types(self) -> None:
        assert type_name(KeyError) == "KeyError"
        assert type_name(Pid) == "snex_node.wire.terms.Pid"
        assert type_name(Hostile) == "tests.test_describe.Hostile"
        assert type_repr(int) == "<class 'int'>"
        assert type_repr(Hostile) == "<class 'tests.test_describe.Hostile'>"

    def test_texts_of_errors(self) -> None:
        assert text_of(ValueError("no")) == "no"
        assert text_of(OddError()) == "<exception str() failed>"
        assert type(text_of(ValueError(Atom("no")))) is str
