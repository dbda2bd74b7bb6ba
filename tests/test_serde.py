"""The table of the Snex README, row by row, without a BEAM: terms are built as one would send them.

The same table against a real Elixir is in tests/interop/test_serde.py.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import io
import math
import pickle
import re
from collections import Counter, OrderedDict, namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future as ThreadFuture
from enum import Enum, IntEnum
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from snex_node.wire import terms
from snex_node.wire.etf import DecodeError, Decoder, EncodeError, Encoder
from snex_runtime import registered, serde
from snex_runtime.serde import Atom, DistinctAtom, EncodingOpt, Term, merge_options
from tests.support.ids import stable

A = terms.Atom
_plain = Decoder()


def received(term: object, **options: str) -> Any:
    """What user code gets for ``term``, given as types of `snex_node.wire.terms`."""
    return serde.decoder(merge_options(options)).decode(_wire.encode(term))[0]


def sent(value: object) -> Any:
    """What a peer gets for ``value``."""
    return _plain.decode(serde.encoder.encode(value))[0]


def struct(name: str, /, **fields: object) -> dict[object, object]:
    return {A("__struct__"): A(f"Elixir.{name}"), **{A(k): v for k, v in fields.items()}}


def same(ours: object, expected: object) -> bool:
    return type(ours) is type(expected) and ours == expected


class _Other:
    """A key of a dict that is no other's equal, sent as what it holds."""

    def __init__(self, term: object) -> None:
        self.term = term


_wire = Encoder(default=lambda other: _binary(other.term))


def _binary(term: object) -> object:
    return term.encode() if isinstance(term, str) else term


class Array:
    """What NumPy's arrays have."""

    dtype, item, tolist = "int64", None, None

    def __len__(self) -> int:
        return 1


class Scalar:
    """What NumPy's scalars have."""

    dtype, item, tolist = "int64", None, None


class Iterable:
    """What can be iterated over, and may mean something else by it."""

    def __iter__(self) -> Iterator[int]:
        return iter((1,))


class NoAttributesMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("no attributes")


class NoAttributes(metaclass=NoAttributesMeta):
    """An object whose class can be asked for nothing."""


class Awaitable:
    def __await__(self) -> Iterator[None]:
        yield


async def asynchronous() -> AsyncIterator[int]:
    yield 1


class Vector:
    def __init__(self, x: int, y: int = 0) -> None:
        self.x, self.y = x, y

    class Inner:
        def __init__(self) -> None:
            self.name = "inner"


@pytest.fixture
def custom_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[Any], object]], None]:
    monkeypatch.setattr(serde, "_custom", None)
    return serde.set_custom_encoder


class TestFromElixir:
    @pytest.mark.parametrize(
        ("term", "expected"),
        [
            (None, None),
            (True, True),
            (False, False),
            (A("foo"), Atom("foo")),
            (A("Elixir.Enum"), Atom("Elixir.Enum")),
            (0, 0),
            (-(2**200), -(2**200)),
            (1.5, 1.5),
            (b"caf\xc3\xa9", "café"),
            ([1, b"a"], [1, "a"]),
            ((), ()),
            ((A("ok"), [b"a"]), (Atom("ok"), ["a"])),
            ({b"k": {A("a"): b"v"}}, {"k": {Atom("a"): "v"}}),
            ([], []),
            ({}, {}),
        ],
    )
    def test_plain_rows(self, term: object, expected: object) -> None:
        assert same(received(term), expected)

    def test_atoms_are_ours(self) -> None:
        assert type(received(A("foo"))) is Atom
        assert type(received(A("foo"), atom_as="distinct_atom")) is DistinctAtom
        key = next(iter(received({A("foo"): 1}, atom_as="distinct_atom")))
        assert type(key) is DistinctAtom

    @pytest.mark.parametrize(
        ("option", "expected"), [("str", "a"), ("bytes", b"a"), ("bytearray", bytearray(b"a"))]
    )
    def test_binary_as(self, option: str, expected: object) -> None:
        assert same(received(b"a", binary_as=option), expected)
        assert same(received([(b"a",)], binary_as=option)[0][0], expected)
        assert same(received({1: b"a"}, binary_as=option)[1], expected)

    def test_keys_of_maps(self) -> None:
        assert received({b"a": 1}) == {"a": 1}
        assert received({b"a": 1}, binary_as="bytes") == {b"a": 1}
        # A bytearray cannot be a key.
        [key] = received({b"a": 1}, binary_as="bytearray")
        assert isinstance(key, bytes)

    def test_an_atom_and_a_text_are_one_key_unless_atoms_are_distinct(self) -> None:
        both: dict[object, int] = {A("foo"): 1}
        both[_Other("foo")] = 2
        assert len(received(both)) == 1
        distinct = received(both, atom_as="distinct_atom")
        assert distinct[DistinctAtom("foo")] == 1
        assert distinct["foo"] == 2

    @pytest.mark.parametrize(("option", "kind"), [("set", set), ("frozenset", frozenset)])
    def test_mapset(self, option: str, kind: type) -> None:
        for fields in ({}, {"version": 2}):
            term = struct("MapSet", map={1: [], b"a": []}, **fields)
            assert same(received(term, set_as=option), kind({1, "a"}))
        assert same(received(struct("MapSet", map={}), set_as=option), kind())

    def test_mapset_of_what_python_cannot_hash_or_tell_apart(self) -> None:
        members: dict[object, object] = {1: [], (b"l",): [], _Other([1]): [], _Other({}): []}
        found = received(struct("MapSet", map=members))
        assert {1, ("l",)} < found
        assert sorted(type(x).__name__ for x in found) == ["Term", "Term", "int", "tuple"]

    def test_mapset_in_a_mapset(self) -> None:
        inner = struct("MapSet", map={1: []})
        outer = struct("MapSet", map={_Other(inner): []})
        assert received(outer, set_as="frozenset") == frozenset({frozenset({1})})
        # A set cannot be in a set.
        assert received(outer, set_as="set") == {Term(_wire.encode(inner))}

    def test_a_mapset_without_its_map_stays_a_struct(self) -> None:
        assert received(struct("MapSet", map=5)) == {"__struct__": "Elixir.MapSet", "map": 5}

    def test_structs_are_dicts(self) -> None:
        assert received(struct("Date", day=3, calendar=A("Elixir.Calendar.ISO"))) == {
            Atom("__struct__"): Atom("Elixir.Date"),
            Atom("day"): 3,
            Atom("calendar"): Atom("Elixir.Calendar.ISO"),
        }

    @pytest.mark.parametrize(
        "term",
        [
            terms.Pid("a@b", 1, 2, 3),
            terms.Port("a@b", 1, 2),
            terms.Reference("a@b", 1, (1, 2, 3)),
            terms.Export("Elixir.Enum", "map", 2),
            terms.BitString(b"\xa0", 3),
            terms.ImproperList([1, 2], A("tail")),
        ],
        ids=lambda term: type(term).__name__,
    )
    def test_what_python_has_no_counterpart_for(self, term: object) -> None:
        found = received([term])[0]
        assert type(found) is Term
        assert same(sent(found), term)
        assert same(serde.to_typed(found), term)

    def test_text_that_is_not_utf_8(self) -> None:
        with pytest.raises(DecodeError, match="UTF-8"):
            received(b"\xff")
        assert received(b"\xff", binary_as="bytes") == b"\xff"


class TestOtherStructs:
    """What has a room of its own is tested there; here is the way to it."""

    def test_as_python_has_them(self) -> None:
        day = struct("Date", year=2026, month=2, day=28, calendar=A("Elixir.Calendar.ISO"))
        assert same(received([day], structs_as="native")[0], datetime.date(2026, 2, 28))
        assert received(day) == received(day, structs_as="dict")
        found = received(day, structs_as="native", atom_as="distinct_atom")
        assert same(found, datetime.date(2026, 2, 28))
        unlike = struct("Date", year=0)
        assert received(unlike, structs_as="native") == {"__struct__": "Elixir.Date", "year": 0}

    def test_as_users_have_registered_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registered, "_decoders", {})
        registered.decoder("My.Point", lambda fields: fields["x"])
        assert received([struct("My.Point", x=1)]) == [1]
        assert received(struct("My.Point", x=1), atom_as="distinct_atom") == 1
        term = struct(
            "Snex.Arrangement.Columns",
            keys=[A("__struct__"), A("x")],
            columns=[A("Elixir.My.Point"), [1, 2]],
        )
        assert received(term) == [1, 2]
        term[A("keys")] = [A("__struct__"), A("y")]
        term[A("columns")] = [A("Elixir.Other"), [1]]
        assert received(term) == [{"__struct__": "Elixir.Other", "y": 1}]
        term[A("columns")] = [[], []]
        assert received(term) == []

    def test_tensors_and_tables(self) -> None:
        tensor = struct("Snex.Tensor", data=b"\1\2", shape=(2,), type=(A("u"), 8), names=None)
        assert received(tensor, tensor_as="memoryview").tolist() == [1, 2]
        assert received([tensor], tensor_as="term") == [Term(_wire.encode(tensor))]
        with pytest.raises(ValueError, match=r"the data of a Snex\.Arrow is a binary, not 5"):
            received(struct("Snex.Arrow", data=5))

    def test_what_only_passes_through(self) -> None:
        tensor = struct("Snex.Tensor", data=b"\1", shape=(1,), type=(A("u"), 8), names=None)
        for term in (tensor, struct("My.Point", x=b"a"), struct("MapSet", map=5)):
            assert serde.passing.decode(_wire.encode(term))[0] == term
        members = struct("MapSet", map={1: []})
        assert serde.passing.decode(_wire.encode(members))[0] == frozenset((1,))


class TestEncoders:
    """There is one for each kind of Elixir."""

    def test_which_it_is(self) -> None:
        mapset: dict[str, object] = {"map": {}}
        assert serde.encoder_for(mapset, {}) is serde.encoder
        assert serde.encoder_for(mapset, None) is serde.encoder_without_duration
        assert serde.encoder_for(None, None) is serde.encoder_without_duration
        assert serde.encoder_for({**mapset, "version": 2}, None) is serde.encoder_v2

    @pytest.mark.parametrize("count", [1, 200])
    def test_what_they_make(self, count: int) -> None:
        second = datetime.timedelta(seconds=1)
        value = [(second, datetime.date(2026, 2, 28), frozenset((1,)))] * count
        [ours, without, old] = (
            _plain.decode(encoder.encode(value))[0][-1]
            for encoder in (serde.encoder, serde.encoder_without_duration, serde.encoder_v2)
        )
        assert ours[0][A("__struct__")] == A("Elixir.Duration")
        assert without[0] == old[0] == 1_000_000
        assert ours[1] == without[1] == old[1]
        assert ours[2] == without[2] == struct("MapSet", map={1: []})
        assert old[2] == struct("MapSet", map={1: []}, version=2)
        lengths = _plain.decode(serde.encoder_v2.encode([second] * count))[0]
        assert lengths == [1_000_000] * count


class TestWrappers:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [("bytes", b"\xc3\xa9"), ("str", "é"), ("bytearray", bytearray(b"\xc3\xa9"))],
    )
    @pytest.mark.parametrize("option", ["str", "bytes", "bytearray"])
    def test_binary(self, kind: str, expected: object, option: str) -> None:
        term = struct("Snex.Serde.Binary", data=b"\xc3\xa9", type=A(kind))
        assert same(received(term, binary_as=option), expected)
        assert same(received([{1: term}], binary_as=option)[0][1], expected)

    def test_binary_of_bytes_that_are_not_utf_8(self) -> None:
        assert received(struct("Snex.Serde.Binary", data=b"\xff", type=A("bytes"))) == b"\xff"
        with pytest.raises(ValueError, match=r"binary\(_, :str\) is not UTF-8: .* byte 0xff"):
            received(struct("Snex.Serde.Binary", data=b"\xff", type=A("str")))

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (A("inf"), math.inf),
            (A("-inf"), -math.inf),
            (1.5, 1.5),
            (3, 3.0),
            (-0.0, -0.0),
        ],
    )
    @pytest.mark.parametrize("atom_as", ["atom", "distinct_atom"])
    def test_float(self, value: object, expected: float, atom_as: str) -> None:
        found = received(struct("Snex.Serde.Float", value=value), atom_as=atom_as)
        assert same(found, expected)
        assert math.copysign(1, found) == math.copysign(1, expected)

    def test_not_a_number(self) -> None:
        found = received(struct("Snex.Serde.Float", value=A("nan")))
        assert type(found) is float
        assert math.isnan(found)

    def test_object(self) -> None:
        term = struct("Snex.Serde.Object", module=b"datetime", name=b"date", args=[2025, 12, 28])
        assert received([term]) == [datetime.date(2025, 12, 28)]

    def test_object_named_by_atoms_with_a_dotted_name(self) -> None:
        term = struct("Snex.Serde.Object", module=A(__name__), name=A("Vector.Inner"), args=[])
        assert type(received(term)) is Vector.Inner

    def test_arguments_of_an_object_follow_the_table_and_the_options(self) -> None:
        inner = struct("Snex.Serde.Binary", data=b"b", type=A("bytearray"))
        args = [[b"a", inner, struct("MapSet", map={1: []})]]
        term = struct("Snex.Serde.Object", module=b"builtins", name=b"tuple", args=args)
        assert received(term) == ("a", bytearray(b"b"), {1})
        found = received(term, binary_as="bytes", set_as="frozenset")
        assert found == (b"a", bytearray(b"b"), frozenset({1}))
        assert type(found[2]) is frozenset

    def test_objects_in_the_arguments_of_objects(self) -> None:
        day = struct("Snex.Serde.Object", module=b"datetime", name=b"date", args=[2025, 1, 1])
        term = struct("Snex.Serde.Object", module=b"builtins", name=b"repr", args=[day])
        assert received(term) == "datetime.date(2025, 1, 1)"

    @pytest.mark.parametrize("inner", [[1, b"\xff"], A("x"), struct("Foo", a=1), {b"a": 1}])
    def test_term(self, inner: object) -> None:
        found = received({1: struct("Snex.Serde.Term", term=inner)})[1]
        assert type(found) is Term
        assert isinstance(found, bytes)
        assert sent(found) == inner

    @pytest.mark.parametrize(
        ("term", "message"),
        [
            (struct("Snex.Serde.Float", value=A("infinity")), ':inf, :"-inf" or :nan, not :inf'),
            (struct("Snex.Serde.Float", value=True), "float takes a number"),
            (struct("Snex.Serde.Float", value=b"1"), "float takes a number"),
            (struct("Snex.Serde.Float"), "has no field value"),
            (struct("Snex.Serde.Binary", data=[b"a"], type=A("str")), "binary takes a binary"),
            (struct("Snex.Serde.Binary", data=b"a", type=A("text")), "one of str, bytes, byte"),
            (struct("Snex.Serde.Binary", data=b"a"), "has no field type"),
            (struct("Snex.Serde.Term"), "has no field term"),
            (struct("Snex.Serde.Object", module=b"m", name=b"n", args=5), "a list of arguments"),
            (struct("Snex.Serde.Object", module=1, name=b"n", args=[]), "the names of a module"),
        ],
    )
    def test_what_no_wrapper_function_makes(self, term: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            received([term])

    def test_objects_that_cannot_be_made_raise_what_python_raises(self) -> None:
        def make(module: bytes, name: bytes, *args: object) -> object:
            return received(struct("Snex.Serde.Object", module=module, name=name, args=list(args)))

        with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
            make(b"no_such_module", b"x")
        with pytest.raises(AttributeError, match="no attribute 'nope'"):
            make(b"datetime", b"nope")
        with pytest.raises(ValueError, match="month must be in"):
            make(b"datetime", b"date", 2025, 13, 1)


class TestToElixir:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (7, 7),
            (-(2**200), -(2**200)),
            (1.5, 1.5),
            (math.inf, A("inf")),
            (-math.inf, A("-inf")),
            (math.nan, A("nan")),
            (math.copysign(math.nan, -1), A("nan")),
            ("café", b"caf\xc3\xa9"),
            (b"\xff", b"\xff"),
            (bytearray(b"\xff"), b"\xff"),
            (memoryview(b"\xff"), b"\xff"),
            (Atom("foo"), A("foo")),
            (DistinctAtom("foo"), A("foo")),
            (Atom("nil"), None),
            ([1, ["a"]], [1, [b"a"]]),
            ((1, ("a",)), (1, (b"a",))),
            ({"k": {1: None}}, {b"k": {1: None}}),
            ({Atom("k"): DistinctAtom("v")}, {A("k"): A("v")}),
        ],
        ids=stable,
    )
    def test_rows(self, value: object, expected: object) -> None:
        assert same(sent(value), expected)

    def test_memoryviews_of_wider_items_and_with_gaps(self) -> None:
        wide = memoryview(b"abcdefgh").cast("I")
        assert sent(wide) == b"abcdefgh"
        assert sent(memoryview(b"abcdefgh")[::2]) == b"aceg"

    @pytest.mark.parametrize("kind", [set, frozenset])
    def test_sets(self, kind: Callable[[object], object]) -> None:
        found = sent(kind([1, "a"]))
        assert found[A("__struct__")] == A("Elixir.MapSet")
        assert found[A("map")] == {1: [], b"a": []}
        assert sent(kind([]))[A("map")] == {}

    def test_subclasses_are_sent_as_what_they_derive_from(self) -> None:
        class Text(str):
            __slots__ = ()

        point = namedtuple("point", "x y")
        color = IntEnum("color", ["RED"])
        assert sent(Text("a")) == b"a"
        assert sent(point(1, 2)) == (1, 2)
        assert sent(color.RED) == 1
        assert sent(OrderedDict(a=1)) == {b"a": 1}
        assert sent(Counter("aab")) == {b"a": 2, b"b": 1}
        assert sent(EncodingOpt.BinaryAs.STR) == b"str"

    @pytest.mark.parametrize(
        ("value", "where"),
        [
            (object(), ""),
            ([object()], "[0]"),
            ({"users": [1, 2, 3, {"photo": object()}]}, '["users"][3]["photo"]'),
            ((1, {Atom("k"): object()}), "[1][snex.Atom('k')]"),
        ],
        ids=["top", "list", "deep", "atom key"],
    )
    def test_unknown_objects(self, value: object, where: str) -> None:
        with pytest.raises(TypeError) as raised:
            sent(value)
        place = f" (at {where})" if where else ""
        text = str(raised.value)
        assert text.startswith("Cannot serialize object of <class 'object'>: snex.set_custom_encod")
        assert text.endswith(f" to send instead{place}")

    @pytest.mark.parametrize(
        ("value", "remedy"),
        [
            (asyncio.sleep(0), "await it"),
            (Awaitable(), "await it"),
            (asynchronous(), "collect it, as in [each async for each in it]"),
            (Array(), "send what its .tolist() gives"),
            (Scalar(), "send what its .item() gives"),
            (1j, "send its .real and .imag"),
            (Fraction(1, 2), "send what str() or float() makes of it"),
            (io.StringIO("a"), "send what its .read() gives"),
            (Iterable(), "send what list() makes of it"),
            (
                ThreadFuture(),
                "snex.set_custom_encoder takes a function that knows what to send instead",
            ),
            (NoAttributes(), "snex.set_custom_encoder takes a function that knows what to send"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
    def test_it_says_what_to_do(self, value: object, remedy: str) -> None:
        with pytest.raises(TypeError, match="Cannot serialize object of <class ") as raised:
            sent([value])
        assert f"'>: {remedy}" in str(raised.value)
        assert str(raised.value).endswith(" (at [0])")

    @pytest.mark.parametrize(
        "value",
        [1j, print, TestWrappers, asyncio, SimpleNamespace(a=1), re.match("a", "a"), type],
        ids=stable,
    )
    def test_types_that_the_table_does_not_have(self, value: object) -> None:
        with pytest.raises(TypeError, match="Cannot serialize object of <class"):
            sent(value)

    def test_keys_that_are_one_on_the_wire(self) -> None:
        with pytest.raises(ValueError, match=r"the keys 'k' and b'k' are the same key"):
            sent([{"k": 1, b"k": 2}])

    def test_an_object_that_contains_itself(self) -> None:
        loop: list[object] = []
        loop.append(loop)
        with pytest.raises(ValueError, match="a list contains itself"):
            sent(loop)

    def test_lone_surrogates(self) -> None:
        with pytest.raises(ValueError, match=r'the text is not UTF-8: .* \(at \["a"\]\)'):
            sent({"a": "\ud800"})

    def test_deep_nesting(self) -> None:
        value: object = 1
        for _ in range(50_000):
            value = [value]
        data = serde.encoder.encode(value)
        assert serde.encoder.encode(serde.decoder().decode(data)[0]) == data


class TestCustomEncoder:
    def test_it_is_asked_for_unknown_objects_only(
        self, custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        asked: list[object] = []

        def encode(value: Any) -> object:
            asked.append(value)
            return {"x": value.x, "y": {value.y}}

        custom_encoder(encode)
        vector = Vector(1, 2)
        found = sent([1, "a", None, vector, Atom("b")])
        assert asked == [vector]
        assert found[3][b"x"] == 1
        assert found[3][b"y"][A("map")] == {2: []}

    def test_what_it_returns_may_need_it_again(
        self, custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        custom_encoder(lambda value: value.isoformat() if hasattr(value, "day") else value.x)
        assert sent({"v": Vector(datetime.date(2025, 1, 2))}) == {b"v": b"2025-01-02"}  # type: ignore[arg-type]

    def test_one_that_returns_the_same_object(
        self, custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        custom_encoder(lambda value: value)
        with pytest.raises(TypeError) as raised:
            sent([Vector(1)])
        assert "its encoder returned the object itself (at [0])" in str(raised.value)

    def test_one_that_never_comes_to_an_end(
        self, custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        custom_encoder(lambda value: Vector(1))
        with pytest.raises(TypeError, match="asked 100 times in a row"):
            sent(Vector(1))

    @pytest.mark.parametrize("kind", [TypeError, ValueError])
    def test_its_refusal_gets_a_place(
        self, kind: type[Exception], custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        def refuse(value: object) -> object:
            raise kind("not with me")

        custom_encoder(refuse)
        with pytest.raises(kind, match=r'not with me \(at \["k"\]\)') as raised:
            sent({"k": Vector(1)})
        assert isinstance(raised.value, EncodeError)
        assert isinstance(raised.value.__cause__, kind)

    def test_another_error_of_it_comes_as_it_is(
        self, custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        custom_encoder(lambda value: value.no_such_attribute)
        with pytest.raises(AttributeError, match="no_such_attribute"):
            sent(Vector(1))


class TestExceptions:
    def test_they_arrive_as_the_errors_that_they_would_be_if_they_were_raised(self) -> None:
        found = sent([1, {"e": KeyError("k")}])[1][b"e"]
        assert found[A("__struct__")] == A("Elixir.Snex.Error")
        assert found[A("__exception__")] is True
        assert found[A("code")] == A("python_runtime_error")
        assert (found[A("reason")], found[A("type")]) == (b"'k'", b"KeyError")
        assert found[A("traceback")] == [b"KeyError: 'k'\n"]

    def test_a_custom_encoder_may_know_better(
        self, custom_encoder: Callable[[Callable[[Any], object]], None]
    ) -> None:
        def encode(value: object) -> object:
            if isinstance(value, KeyError):
                return "a key"
            raise TypeError("not with me")

        custom_encoder(encode)
        assert sent(KeyError("k")) == b"a key"
        assert sent(ValueError("v"))[A("type")] == b"ValueError"

    def test_what_is_to_end_a_program_is_none(self) -> None:
        with pytest.raises(TypeError, match="Cannot serialize object of <class 'SystemExit'>"):
            sent(SystemExit(1))


class TestAtom:
    def test_it_is_the_text_of_its_name(self) -> None:
        assert Atom("foo") == "foo"
        assert hash(Atom("foo")) == hash("foo")
        data: dict[str, int] = {Atom("foo"): 1}
        assert data["foo"] == 1
        assert Atom("foo") == A("foo")
        assert repr(Atom("foo")) == "snex.Atom('foo')"
        assert f"{Atom('foo')}" == "foo"

    def test_a_distinct_one_is_not(self) -> None:
        foo = DistinctAtom("foo")
        assert foo == DistinctAtom("foo")
        assert not foo != DistinctAtom("foo")
        assert hash(foo) == hash(DistinctAtom("foo"))
        for other in ("foo", Atom("foo"), A("foo"), DistinctAtom("bar"), None):
            assert foo != other
            assert other != foo
            assert not foo == other
            assert not other == foo
        assert hash(foo) != hash("foo")
        assert "foo" not in {foo: 1}
        assert foo not in {"foo": 1}
        assert isinstance(foo, Atom)
        assert repr(foo) == "snex.DistinctAtom('foo')"
        assert f"{foo}" == "foo"

    @pytest.mark.parametrize("kind", [Atom, DistinctAtom])
    def test_length(self, kind: type[Atom]) -> None:
        assert len(kind("é" * 255)) == 255
        with pytest.raises(ValueError, match="atom too long: 256 characters"):
            kind("a" * 256)

    @pytest.mark.parametrize(
        "value", [Atom("foo"), DistinctAtom("foo"), Term(b"a\x01")], ids=lambda v: type(v).__name__
    )
    def test_copies(self, value: object) -> None:
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert same(pickle.loads(pickle.dumps(value, protocol)), value)
        assert same(copy.copy(value), value)
        assert same(copy.deepcopy([value])[0], value)


class TestTerm:
    def test_it_compares_by_its_bytes_and_with_terms_only(self) -> None:
        term = received(terms.Pid("a@b", 1, 2, 3))
        again = received(terms.Pid("a@b", 1, 2, 3))
        assert term == again
        assert hash(term) == hash(again)
        assert {term: 1}[again] == 1
        assert term != received(terms.Pid("a@b", 2, 2, 3))
        assert term != bytes(term)
        assert bytes(term) != term

    @pytest.mark.parametrize(
        ("inner", "text"),
        [
            (terms.Pid("a@b", 1, 2, 3), "snex.Term(#PID<a@b.1.2>)"),
            (terms.Export("Elixir.Enum", "map", 2), "snex.Term(&Enum.map/2)"),
            (terms.ImproperList([1], 2), "snex.Term([1 | 2])"),
        ],
    )
    def test_it_shows_what_it_is(self, inner: object, text: str) -> None:
        assert repr(received(inner)) == text
        assert str(received(inner)) == text

    def test_a_large_one_shows_its_beginning(self) -> None:
        text = repr(received(struct("Snex.Serde.Term", term=[7] * 10_000)))
        assert text.startswith("snex.Term([7, 7, ")
        assert len(text) < 250

    def test_bytes_that_are_no_term_can_be_shown_too(self) -> None:
        assert repr(Term(b"\xff\xff")) == "snex.Term(<2 bytes>)"

    def test_to_typed_leaves_other_values_alone(self) -> None:
        value = ["a"]
        assert serde.to_typed(value) is value


class TestOptions:
    @pytest.mark.parametrize(
        "option", [EncodingOpt.BinaryAs, EncodingOpt.SetAs, EncodingOpt.AtomAs]
    )
    def test_enums_are_their_values(self, option: type[Enum]) -> None:
        for member in option:
            assert isinstance(member, str)
            assert member == member.value
            assert str(member) == member.value
            assert f"{member}" == "{}".format(member) == "%s" % member == member.value  # noqa: UP031, UP032
            assert f"{member:>20}" == member.value.rjust(20)
            assert type(str(member)) is str
            assert option(str(member)) is member
            assert pickle.loads(pickle.dumps(member)) is member
        assert repr(EncodingOpt.SetAs.SET) == "<SetAs.SET: 'set'>"

    @pytest.mark.parametrize(
        "options",
        [
            {"binary_as": "bytes"},
            {Atom("binary_as"): Atom("bytes")},
            {DistinctAtom("binary_as"): DistinctAtom("bytes")},
            [("binary_as", "bytes")],
            [(Atom("binary_as"), EncodingOpt.BinaryAs.BYTES)],
            [("binary_as", "str"), ("binary_as", "bytes")],
        ],
        ids=stable,
    )
    def test_forms(self, options: object) -> None:
        assert merge_options(options) == serde.Options("bytes")

    def test_they_are_merged(self) -> None:
        base = merge_options({"set_as": "frozenset"})
        merged = merge_options({"atom_as": "distinct_atom"}, base)
        assert merged == serde.Options("str", "frozenset", "distinct_atom")
        nothings: list[object] = [None, {}, []]
        for nothing in nothings:
            assert merge_options(nothing, base) == base

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"nope": 1},
                'unknown encoding option "nope": there are binary_as, set_as, atom_as, tensor_as, '
                "structs_as",
            ),
            ({"set_as": "list"}, 'set_as is one of set, frozenset, not "list"'),
            ({"set_as": None}, "set_as is one of set, frozenset, not nil"),
            ({"set_as": ["x" * 1000]}, r'set_as is one of set, frozenset, not \["xxx'),
            ("binary_as", 'encoding options are a keyword list or a map, not "binary_as"'),
            ("ab", "encoding options are a keyword list or a map"),
            ({10**5000: 1}, "unknown encoding option <an integer of 16610 bits>"),
            ({"set_as": 10**5000}, "frozenset, not <an integer of 16610 bits>"),
            ([1], "encoding options are a keyword list or a map"),
            ([("binary_as",)], "encoding options are a keyword list or a map"),
            (0, "encoding options are a keyword list or a map, not 0"),
            (False, "encoding options are a keyword list or a map, not false"),
        ],
    )
    def test_wrong_ones(self, options: object, message: str) -> None:
        with pytest.raises(ValueError, match=message) as raised:
            merge_options(options)
        assert len(str(raised.value)) < 300

    def test_decoders_are_made_once(self) -> None:
        options = merge_options({"binary_as": "bytes"})
        assert serde.decoder(options) is serde.decoder(merge_options({"binary_as": "bytes"}))
        assert serde.decoder() is serde.decoder(serde.DEFAULTS)


def test_docstrings_tell_the_truth(
    custom_encoder: Callable[[Callable[[Any], object]], None],
) -> None:
    import doctest

    result = doctest.testmod(serde)
    assert result.attempted > 4
    assert result.failed == 0
