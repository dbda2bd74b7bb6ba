"""The encoder: every type, every option, every error."""

from __future__ import annotations

import collections
import enum
import math
import struct
import sys
import threading
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire import etf_encode
from snex_node.wire.etf import (
    Decoder,
    EncodeError,
    Encoder,
    EncodeTypeError,
    EncodeValueError,
)
from snex_node.wire.pieces import Pieces
from snex_node.wire.terms import (
    Atom,
    BitString,
    Export,
    ImproperList,
    Pid,
    Port,
    Record,
    Reference,
    Term,
)
from tests.support.beam import Beam
from tests.support.ids import stable
from tests.test_etf_decode import one_by_one, u32
from tests.test_terms import fun


def encode(term: object, **options: Any) -> bytes:
    data = Encoder(**options).encode(term)
    assert Decoder().skip(data) == len(data)
    return data


class Colour(enum.IntEnum):
    RED = 3


class Shape(str, enum.Enum):
    ROUND = "round"


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"not this"

    def __str__(self) -> str:
        return "nor this"


class Number(int):
    def __int__(self) -> int:
        return 99

    def __index__(self) -> int:
        return 98


class Bytes(bytes):
    pass


class Items(list[Any]):
    def __iter__(self) -> Any:
        return iter("not this")


EXACT: list[tuple[object, bytes]] = [
    (None, b"w\3nil"),
    (True, b"w\4true"),
    (False, b"w\5false"),
    (0, b"a\0"),
    (255, b"a\xff"),
    (256, b"b\0\0\1\0"),
    (-1, b"b\xff\xff\xff\xff"),
    (2**31 - 1, b"b\x7f\xff\xff\xff"),
    (-(2**31), b"b\x80\0\0\0"),
    (2**31, b"n\4\0\0\0\0\x80"),
    (-(2**31) - 1, b"n\4\1\1\0\0\x80"),
    (256**255 - 1, b"n\xff\0" + b"\xff" * 255),
    (256**255, b"o" + u32(256) + b"\0" + bytes(255) + b"\1"),
    (-(256**255), b"o" + u32(256) + b"\1" + bytes(255) + b"\1"),
    (1.5, b"F\x3f\xf8" + bytes(6)),
    (-0.0, b"F\x80" + bytes(7)),
    ("é", b"m\0\0\0\2\xc3\xa9"),
    ("", b"m\0\0\0\0"),
    ("a" * 256, b"m\0\0\1\0" + b"a" * 256),
    (b"\xff", b"m\0\0\0\1\xff"),
    (b"a" * 256, b"m\0\0\1\0" + b"a" * 256),
    (bytearray(b"ab"), b"m\0\0\0\2ab"),
    (memoryview(b"ab"), b"m\0\0\0\2ab"),
    (Atom("ok"), b"w\2ok"),
    (Atom("é" * 127), b"w\xfe" + "é".encode() * 127),
    (Atom("é" * 128), b"v\1\0" + "é".encode() * 128),
    ([], b"j"),
    ([1, "a"], b"l\0\0\0\2a\1m\0\0\0\1aj"),
    ([[]], b"l\0\0\0\1jj"),
    ((), b"h\0"),
    ((1, ()), b"h\2a\1h\0"),
    ((1,) * 256, b"i\0\0\1\0" + b"a\1" * 256),
    ({}, b"t\0\0\0\0"),
    ({Atom("a"): 2}, b"t\0\0\0\1w\1aa\2"),
    ({1: {}}, b"t\0\0\0\1a\1t\0\0\0\0"),
    (Pid("a@b", 1, 2, 3), b"Xw\3a@b" + u32(1) + u32(2) + u32(3)),
    (Port("a@b", 5, 3), b"Yw\3a@b" + u32(5) + u32(3)),
    (Port("a@b", 5, 3, v4=True), b"xw\3a@b" + u32(0) + u32(5) + u32(3)),
    (Reference("a@b", 3, (7, 8)), b"Z\0\2w\3a@b" + u32(3) + u32(7) + u32(8)),
    (fun(), fun().external),
    (Export("m", "f", 2), b"qw\1mw\1fa\2"),
    (BitString(b"\xff", 3), b"M\0\0\0\1\3\xe0"),
    (ImproperList([1], 2), b"l\0\0\0\1a\1a\2"),
    (Record("m", "n", ["a", "b"], [1, []], 1), b"C\0\0\0\2\1w\1mw\1nw\1aw\1ba\1j"),
    (Term(b"anything at all"), b"anything at all"),
    (Colour.RED, b"a\3"),
    (Shape.ROUND, b"m\0\0\0\5round"),
    (Text("text"), b"m\0\0\0\4text"),
    (Bytes(b"ab"), b"m\0\0\0\2ab"),
    (Point(1, 2), b"h\2a\1a\2"),
    (collections.OrderedDict(a=1), b"t\0\0\0\1m\0\0\0\1aa\1"),
    (collections.defaultdict(int, a=1), b"t\0\0\0\1m\0\0\0\1aa\1"),
    (collections.Counter("a"), b"t\0\0\0\1m\0\0\0\1aa\1"),
    (Items([1]), b"l\0\0\0\1a\1j"),
]


@pytest.mark.parametrize(("value", "data"), EXACT, ids=lambda part: stable(part)[:30])
def test_every_type_has_its_form(value: object, data: bytes) -> None:
    if isinstance(value, Term):
        assert Encoder().encode(value) == data
        return
    assert encode(value) == data
    around = b"h\3" + data + b"l\0\0\0\1" + data + b"j" + b"t\0\0\0\1a\0" + data
    assert encode((value, [value], {0: value})) == around
    assert b"".join(Encoder().encode_parts(value)) == data


def test_subclasses_count_as_their_base() -> None:
    class Set(set[Any]):
        pass

    class Frozen(frozenset[Any]):
        pass

    class Float(float):
        pass

    class Array(bytearray):
        pass

    class Dict(dict[Any, Any]):
        def items(self) -> Any:
            return [("not", "this")]

    class OpaqueTerm(Term):
        __slots__ = ()

    class OtherAtom(Atom):
        __slots__ = ()

    assert encode(Float(1.5)) == encode(1.5)
    assert encode(Array(b"a")) == encode(b"a")
    assert encode(Dict(a=1)) == encode({"a": 1})
    assert encode(OpaqueTerm(b"a\1")) == b"a\1"
    assert encode([OtherAtom("a"), Atom("a"), OtherAtom("a")]) == encode([Atom("a")] * 3)
    assert encode([OtherAtom("a")], atom=OtherAtom) == encode([Atom("a")])
    for kind in (Set, Frozen):
        assert encode(kind([1]), sets="mapset") == encode({1}, sets="mapset")


def test_an_atom_and_a_string_of_one_text_stay_what_they_are() -> None:
    class Distinct(Atom):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Distinct) and str.__eq__(self, other)

        def __hash__(self) -> int:
            return hash((Distinct, str.__str__(self)))

    for encoder in (Encoder(), Encoder(atom=Distinct)):
        for _ in range(2):
            mixed = ["a", Atom("a"), Distinct("a"), "a"]
            data = b"l\0\0\0\4m\0\0\0\1aw\1aw\1am\0\0\0\1aj"
            assert encoder.encode(mixed) == data


def test_atoms_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etf_encode, "MAX_CACHED_ATOMS", 10)
    encoder = Encoder()
    names = [Atom(f"name{i}") for i in range(25)]
    assert Decoder().decode(encoder.encode(names + names))[0] == names + names
    assert len(encoder._atoms) <= 10


class TestMemoryviews:
    @pytest.mark.parametrize(
        "view",
        [
            memoryview(array("i", [1, -2, 3])),
            memoryview(array("d", [1.5, 2.5])),
            memoryview(b"abcdef")[::2],
            memoryview(b"abcdef")[::-1],
            memoryview(array("h", range(10)))[::3],
            memoryview(b"abcdef").cast("B", (2, 3)),
            memoryview(bytearray(b"abc")),
            memoryview(b""),
        ],
        ids=lambda view: f"{view.format}{view.shape}{view.strides}",
    )
    def test_are_their_bytes_however_wide_and_scattered(self, view: memoryview) -> None:
        assert encode(view) == encode(view.tobytes())

    def test_that_are_released_are_an_error(self) -> None:
        view = memoryview(b"abc")
        view.release()
        with pytest.raises(EncodeValueError, match=r"memoryview cannot be read.* \(at \[0\]\)"):
            Encoder().encode([view])
        with pytest.raises(EncodeValueError, match="memoryview cannot be read"):
            Encoder(default=repr).encode([view])

    def test_with_rows_are_the_business_of_default_where_there_is_one(self) -> None:
        view = memoryview(bytes(range(6))).cast("B", (2, 3))
        assert Encoder(default=memoryview.tolist).encode(view) == encode([[0, 1, 2], [3, 4, 5]])

    def test_are_not_copied_before_the_parts_are_joined(self) -> None:
        view = memoryview(bytearray(b"abc"))
        assert any(part is view for part in Encoder().encode_parts([1, view]))


class TestPayloads:
    """What goes out in pieces where much is in it."""

    LARGE = 256 * 1024

    @pytest.mark.parametrize(
        "make",
        [
            bytes,
            bytearray,
            lambda size: "x" * size,
            lambda size: memoryview(bytes(size)),
            lambda size: memoryview(bytes(2 * size))[::2],
            lambda size: Term(Encoder().encode(bytes(size))),
        ],
        ids=["bytes", "bytearray", "str", "memoryview", "strided", "term"],
    )
    def test_large_ones(self, make: Callable[[int], Any]) -> None:
        encoder = Encoder()
        for size in (0, 10, self.LARGE - 1, self.LARGE, 3 * self.LARGE):
            for term in (make(size), [1, {"a": make(size)}, make(size)]):
                found = encoder.encode_payload(term, b"before")
                if size != self.LARGE - 1:  # of a term 5 more are on the wire
                    assert isinstance(found, Pieces) == (size >= self.LARGE)
                assert bytes(found) == b"before" + encoder.encode(term)

    def test_what_is_bytes_is_not_copied(self) -> None:
        data = bytes(self.LARGE)
        found = Encoder().encode_payload((Atom("ok"), data))
        assert isinstance(found, Pieces)
        assert found.parts[1] is data

    def test_many_small_ones_are_no_matter(self) -> None:
        found = Encoder().encode_payload(["x" * 1000] * 1000)
        assert type(found) is bytes


class TestRuns:
    """Long lists of numbers are written in one go; that must not show."""

    @pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 5000])
    @pytest.mark.parametrize(
        "make", [lambda i: i * 7919 - 2**31, lambda i: i / 7 - 100], ids=["integers", "floats"]
    )
    def test_of_numbers(self, count: int, make: Any) -> None:
        items = [make(i) for i in range(count)]
        expected = b"l" + u32(count) + b"".join(map(one_by_one, items)) + b"j"
        assert encode(items) == expected

    @pytest.mark.parametrize("count", [16, 255, 256, 65535, 65536])
    def test_of_bytes(self, count: int) -> None:
        items = [i % 256 for i in range(count)]
        data = encode(items)
        assert data[:1] == (b"k" if count < 65536 else b"l")
        assert Decoder().decode(data)[0] == items

    @pytest.mark.parametrize(
        "odd",
        [
            *(True, None, 1.5, 1 << 31, -(1 << 31) - 1, 1 << 63, "é", b"b", Atom("a"), []),
            *(Colour.RED, Number(5), object),
        ],
        ids=stable,
    )
    @pytest.mark.parametrize("at", [1, 7, 8, 14])
    def test_with_one_that_is_none(self, odd: Any, at: int) -> None:
        for numbers in ([5] * 16, [300] * 16, [1.5] * 16):
            items: list[Any] = [*numbers]
            items[at] = odd
            if odd is object:
                with pytest.raises(EncodeTypeError, match=rf"\(at \[{at}\]\)"):
                    Encoder().encode(items)
                continue
            found, _ = Decoder().decode(encode(items))
            base = int.__index__(odd) if isinstance(odd, int) and odd is not True else odd
            items[at] = odd.encode() if type(odd) is str else base
            assert found == items
            assert [type(item) for item in found] == [type(item) for item in items]

    @pytest.mark.parametrize("at", [0, 7, 15])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_with_a_float_that_is_no_number(self, at: int, bad: float) -> None:
        items = [1e308] * 16
        items[at] = bad
        with pytest.raises(EncodeValueError, match=rf"no external form \(at \[{at}\]\)"):
            Encoder().encode(items)

    def test_whose_sum_overflows_are_fine(self) -> None:
        assert Decoder().decode(encode([1e308] * 100))[0] == [1e308] * 100

    @given(
        st.lists(st.integers(-(2**33), 2**33) | st.floats(allow_nan=False, allow_infinity=False))
    )
    def test_mixed_at_random(self, items: list[Any]) -> None:
        found, _ = Decoder().decode(encode(items * 9))
        assert list(map(repr, found)) == list(map(repr, items * 9))

    def test_are_written_one_by_one_where_marshal_is_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (sys.implementation.name == "cpython") == etf_encode._MARSHAL_IS_KNOWN
        monkeypatch.setattr(etf_encode, "_MARSHAL_IS_KNOWN", False)
        for items in ([1.5] * 100, [5] * 100, [70000] * 100):
            assert encode(items) == b"l" + u32(100) + one_by_one(items[0]) * 100 + b"j"


class TestSpecialFloats:
    @pytest.mark.parametrize(
        ("value", "atom"),
        [
            (math.inf, "inf"),
            (-math.inf, "-inf"),
            (math.nan, "nan"),
            (-math.nan, "nan"),
            (math.copysign(math.nan, -1.0), "nan"),
        ],
    )
    def test_become_atoms_or_an_error(self, value: float, atom: str) -> None:
        assert encode([value], special_floats="atoms") == encode([Atom(atom)])
        assert encode([value] * 50, special_floats="atoms") == encode([Atom(atom)] * 50)
        with pytest.raises(EncodeValueError, match="no external form"):
            Encoder().encode(value)

    def test_as_keys_collide(self) -> None:
        value = {math.nan: 1, float("nan"): 2}
        with pytest.raises(EncodeValueError, match="same key"):
            Encoder(special_floats="atoms").encode(value)


class TestSets:
    def test_are_refused_unless_asked_for(self) -> None:
        for value in ({1}, frozenset([1])):
            with pytest.raises(EncodeTypeError, match=f"Cannot serialize object of {type(value)}"):
                Encoder().encode(value)

    @pytest.mark.parametrize("kind", [set, frozenset])
    def test_become_mapset_structs(self, kind: Any) -> None:
        members: dict[int, list[Any]] = {1: [], 2: []}
        name = Atom("Elixir.MapSet")
        fields: dict[Any, Any] = {Atom("__struct__"): name, Atom("map"): members}
        assert Decoder().decode(encode(kind([1, 2]), sets="mapset"))[0] == fields
        fields[Atom("version")] = 2
        assert Decoder().decode(encode(kind([1, 2]), sets="mapset_v2"))[0] == fields

    def test_nest_and_are_keys(self) -> None:
        value: Any = frozenset([frozenset([1]), (frozenset(), 2)])
        assert encode({value: [value]}, sets="mapset")

    def test_whose_members_become_one_are_an_error(self) -> None:
        with pytest.raises(EncodeValueError, match="same key in a map"):
            Encoder(sets="mapset").encode({"a", b"a"})

    @pytest.mark.interop
    async def test_work_with_the_functions_of_mapset(self, beam: Beam) -> None:
        source = """
        theirs = MapSet.new([1, "two", {3}])
        {
          MapSet.equal?(ours, theirs), MapSet.member?(ours, {3}), MapSet.size(ours),
          MapSet.union(ours, theirs) |> MapSet.size(), MapSet.put(ours, 4) |> MapSet.size(),
          MapSet.delete(ours, 1) |> MapSet.to_list() |> Enum.sort(),
          MapSet.difference(ours, MapSet.new([1, 9])) |> MapSet.size(),
          MapSet.intersection(ours, MapSet.new([1, 9])) |> MapSet.to_list(),
          MapSet.subset?(ours, theirs), MapSet.disjoint?(ours, MapSet.new([9])),
          Enum.member?(ours, 1), Enum.count(ours)
        }
        """
        expected = (True, True, 3, 3, 4, [(3,), b"two"], 2, [1], True, True, True, 3)
        shapes: list[Any] = ["mapset_v2"]
        if not beam.elixir_version.startswith("1.14."):  # which needs the field `version`
            shapes.append("mapset")
        for shape in shapes:
            ours = Term(Encoder(sets=shape).encode({1, "two", (3,)}))
            assert await beam.eval(source, ours=ours) == expected

    @pytest.mark.interop
    async def test_one_of_the_shapes_is_the_one_that_elixir_makes(self, beam: Beam) -> None:
        shape: Any = "mapset_v2" if beam.elixir_version.startswith("1.14.") else "mapset"
        ours = Term(Encoder(sets=shape).encode({1, 2}))
        source = """
        theirs = MapSet.new([1, 2])
        {ours == theirs, inspect(ours) == inspect(theirs)}
        """
        assert await beam.eval(source, ours=ours) == (True, True)


class TestDefault:
    def test_is_asked_for_unknown_objects_and_its_answer_encoded(self) -> None:
        data = encode([1 + 2j, (3j,)], default=lambda z: {"re": z.real, "im": [z.imag]})
        assert Decoder(binary_as="str").decode(data)[0] == [
            {"re": 1.0, "im": [2.0]},
            ({"re": 0.0, "im": [3.0]},),
        ]

    def test_may_answer_with_another_unknown_object(self) -> None:
        seen: list[object] = []

        def default(value: object) -> object:
            seen.append(value)
            return {range(1): range(2), range(2): 2j, 2j: (4, 5)}[value]

        assert encode([range(1)], default=default) == encode([(4, 5)])
        assert seen == [range(1), range(2), 2j]

    def test_is_not_asked_for_what_is_known(self) -> None:
        def default(value: object) -> object:
            raise AssertionError(value)

        for value, data in EXACT:
            assert Encoder(default=default).encode(value) == data

    def test_keys_it_makes_equal_are_an_error(self) -> None:
        with pytest.raises(EncodeValueError, match="the keys 1j and 2j are the same key"):
            Encoder(default=lambda _: "same").encode({1j: 1, 2j: 2})

    def test_that_returns_the_object_itself_is_an_error(self) -> None:
        message = (
            r"object of <class 'complex'>: its encoder returned the object itself \(at \[1\]\)"
        )
        with pytest.raises(EncodeTypeError, match=message):
            Encoder(default=lambda value: value).encode([1, 2j])

    def test_that_never_comes_to_an_end_is_an_error(self) -> None:
        with pytest.raises(EncodeTypeError, match="asked 100 times in a row") as caught:
            Encoder(default=lambda _: object()).encode([2j])
        assert str(caught.value).startswith("Cannot serialize object of <class 'complex'>")
        assert str(caught.value).endswith("(at [0])")
        with pytest.raises(EncodeValueError, match="deeper than max_depth"):
            Encoder(default=lambda z: [z], max_depth=5000).encode(2j)

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (TypeError("no way"), EncodeTypeError),
            (ValueError("no way"), EncodeValueError),
            (UnicodeError("no way"), EncodeValueError),
        ],
    )
    def test_its_type_and_value_errors_name_the_place(
        self, raised: Exception, expected: type[EncodeError]
    ) -> None:
        def default(_: object) -> object:
            raise raised

        with pytest.raises(expected) as caught:
            Encoder(default=default).encode({"a": [2j]})
        assert str(caught.value) == 'no way (at ["a"][0])'
        assert caught.value.__cause__ is raised

    @pytest.mark.parametrize("error", [KeyError, RuntimeError, struct.error, EncodeTypeError])
    def test_its_other_errors_come_through(self, error: type[Exception]) -> None:
        def default(_: object) -> object:
            raise error("mine")

        with pytest.raises(error, match="mine") as caught:
            Encoder(default=default).encode([2j])
        assert type(caught.value) is error

    def test_may_change_what_is_being_encoded(self) -> None:
        items: list[Any] = [2j, 1, 2]
        mapping: dict[Any, Any] = {0: 2j, 1: 1}

        def default(_: object) -> object:
            items.append(9)
            mapping[9] = 9
            return "x"

        data = encode((items, mapping), default=default)
        assert Decoder().decode(data)[0] == ([b"x", 1, 2], {0: b"x", 1: 1, 9: 9})


class TestPrior:
    """It is asked before an object counts as what its type is derived from."""

    @staticmethod
    def prior(value: object) -> object:
        return f"a {type(value).__name__}" if isinstance(value, (Point, Colour)) else NotImplemented

    def test_it_is_asked_for_what_is_derived_from_known_types(self) -> None:
        encoder = Encoder(prior=self.prior)
        value = [Point(1, 2), Text("x"), {Colour.RED: (Number(1),)}, (1, 2)]
        data = encoder.encode(value)
        assert data == encode(["a Point", "x", {"a Colour": (1,)}, (1, 2)])
        assert encoder.encode([Point(1, 2)] * 100) == encode(["a Point"] * 100)

    def test_default_is_asked_next(self) -> None:
        encoder = Encoder(prior=self.prior, default=lambda value: Point(1, 2))
        assert encoder.encode([2j]) == encode(["a Point"])

    def test_without_a_default(self) -> None:
        with pytest.raises(EncodeTypeError, match=r"<class 'complex'> \(at \[1\]\)"):
            Encoder(prior=self.prior).encode([Point(1, 2), 2j])

    def test_what_it_raises_names_the_place(self) -> None:
        def prior(value: object) -> object:
            raise ValueError

        with pytest.raises(EncodeValueError, match=r"^ValueError \(at \[0\]\)$"):
            Encoder(prior=prior).encode([Text("x")])


class TestErrors:
    @pytest.mark.parametrize(
        "value", [object(), 2j, range(3), int, len, NotImplemented, ...], ids=stable
    )
    def test_an_unknown_type(self, value: object) -> None:
        with pytest.raises(EncodeTypeError) as caught:
            Encoder().encode(value)
        assert str(caught.value) == f"Cannot serialize object of {type(value)}"
        assert isinstance(caught.value, EncodeError)
        assert isinstance(caught.value, TypeError)

    def test_text_that_is_no_utf8(self) -> None:
        class Sub(str):
            __slots__ = ()

        for value in ("a\ud800", Sub("a\ud800"), Atom("a\ud800")):
            with pytest.raises(
                EncodeValueError, match=r"text is not UTF-8.* \(at \[1\]\)"
            ) as caught:
                Encoder().encode(["ok", value])
            assert isinstance(caught.value, ValueError)

    def test_an_integer_that_beam_would_close_the_connection_for(self) -> None:
        largest = (1 << 8 * etf_encode.MAX_INTEGER_BYTES) - 1
        assert Decoder().decode(encode(largest))[0] == largest
        with pytest.raises(EncodeValueError, match=r"524281 bytes, more than .* \(at \[0\]\)"):
            Encoder().encode([-largest - 1])
        assert encode(largest + 1, max_integer_bytes=2**32 - 1)

    @pytest.mark.parametrize(
        "value",
        [
            {"k": 1, b"k": 2},
            {("a", 1): 1, (b"a", 1): 2},
            {Term(b"a\1"): 1, 1: 2},
            {Atom("true"): 1, True: 2},
            {Atom("nil"): 1, None: 2},
            {"k": 1, memoryview(b"k"): 2, 5: 3},
            {Pid("a@b", 1, 2, 3): 1, Term(Pid("a@b", 1, 2, 3).external): 2},
            {1: {("a",): 1, (b"a",): 1}},
        ],
        ids=stable,
    )
    def test_keys_that_are_one_on_the_wire(self, value: dict[Any, Any]) -> None:
        with pytest.raises(EncodeValueError, match=r"the keys .* and .* are the same key in a map"):
            Encoder().encode(value)

    def test_keys_that_only_look_alike(self) -> None:
        for value in (
            {"k": 1, b"j": 2, Atom("j"): 3},
            {("a", 1): 1, (b"a", 2): 2},
            {Atom("a"): 1, "b": 2, 3: 3, None: 4, False: 5, 2.5: 6},
            {b"a": 1, 2: 2, Atom("c"): 3},
        ):
            found, _ = Decoder().decode(encode(value))
            assert len(found) == len(value)

    @pytest.mark.untraced
    @pytest.mark.parametrize("depth", [999, 1000, 1001, 10_000])
    def test_nesting_is_bounded_by_max_depth_and_nothing_else(self, depth: int) -> None:
        for wrap in (
            lambda x: [x],
            lambda x: (x,),
            lambda x: {1: x},
            lambda x: ImproperList([x], 1),
        ):
            value: Any = 1
            for _ in range(depth):
                value = wrap(value)
            data = Encoder(max_depth=depth).encode(value)
            assert Decoder().skip(data) == len(data)
            with pytest.raises(
                EncodeValueError, match=f"deeper than max_depth, {depth - 1} levels"
            ):
                Encoder(max_depth=depth - 1).encode(value)

    @pytest.mark.untraced
    def test_a_million_levels_are_refused_or_encoded(self) -> None:
        value: Any = []
        for _ in range(999_999):
            value = (value,)
        with pytest.raises(EncodeValueError, match="max_depth, 100000 levels"):
            Encoder().encode(value)
        assert Encoder(max_depth=1_000_000).encode(value) == b"h\1" * 999_999 + b"j"

    def test_what_contains_itself(self) -> None:
        items: list[Any] = [b"x" * 100_000, [], {}]
        items[2]["again"] = (items,)
        with pytest.raises(EncodeValueError, match="contains itself"):
            Encoder().encode(["first", items])
        mapping: dict[Any, Any] = {}
        mapping["self"] = mapping
        with pytest.raises(EncodeValueError, match=r"a dict contains itself"):
            Encoder().encode(mapping)

    def test_an_option_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="special_floats"):
            Encoder(special_floats="yes")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="sets"):
            Encoder(sets="yes")  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", [str, bytes, list, tuple, dict])
    def test_more_than_32_bits_can_count(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        # 4 GiB of memory would be too much to ask for; a header of 16 bits fails in the same way.
        monkeypatch.setattr(etf_encode, "_pack_u32", struct.Struct(">BH").pack)
        numbers = range(70_000)
        value = {
            str: "a" * 70_000,
            bytes: b"a" * 70_000,
            list: [None, *numbers],
            tuple: tuple(numbers),
            dict: dict.fromkeys(numbers),
        }[kind]
        with pytest.raises(
            EncodeValueError, match=rf"a {kind.__name__} of 4 GiB or more \(at \[0\]\)"
        ):
            Encoder().encode([value])


def test_one_encoder_serves_many_threads() -> None:
    encoder = Encoder(default=lambda z: (z.real, Atom(f"im{z.imag}")))
    failures: list[object] = []

    def work(number: int) -> None:
        term = [{Atom(f"a{number}{i}"): complex(number, i)} for i in range(200)]
        expected = [{f"a{number}{i}": (float(number), f"im{float(i)}")} for i in range(200)]
        for _ in range(20):
            if Decoder().decode(encoder.encode(term))[0] != expected:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_large_binaries_are_not_copied_into_the_parts() -> None:
    data = b"x" * 1_000_000
    assert any(part is data for part in Encoder().encode_parts((Atom("ok"), data)))


def test_what_comes_before_a_term() -> None:
    assert Encoder().encode(7, b"h\x01") == b"h\x01a\x07"
    assert Encoder().encode([b"x" * 100], b"before") == b"before" + Encoder().encode([b"x" * 100])
