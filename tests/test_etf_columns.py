"""Lists of terms of one shape: decoded by columns they are what the loop makes of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from snex_node import Atom, ImproperList
from snex_node.wire import etf_columns, etf_decode
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.etf_columns import (
    ATOM,
    BINARY,
    FLOAT,
    INTEGER,
    Empty,
    Items,
    Leaf,
    Map,
    Shape,
    Tuple,
    learn,
    merge,
)
from tests.support.examples import examples
from tests.support.times import ratio

encode = Encoder().encode
As = Literal["bytes", "str"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Columns from the second element on, and none that were made by other tests."""
    monkeypatch.setattr(etf_decode, "_MIN_ELEMENTS", 2)
    monkeypatch.setattr(etf_columns, "WORTH", 0)
    monkeypatch.setattr(etf_columns, "MIN_TEXTS", 2)
    forget()
    yield
    forget()


def forget() -> None:
    etf_columns._compiled.clear()
    etf_columns._seen.clear()


def by_loop(**options: Any) -> Decoder:
    decoder = Decoder(**options)
    decoder._lists = None
    return decoder


def exact(value: object) -> object:
    """Something that is equal only for the same values of the same types."""
    if isinstance(value, (list, tuple)):
        return type(value), [exact(element) for element in value]
    if isinstance(value, dict):
        return dict, [(exact(key), exact(element)) for key, element in value.items()]
    if isinstance(value, float):
        return float, struct.pack(">d", value)
    return type(value), value


def outcome(decoder: Decoder, data: bytes) -> object:
    try:
        value, end = decoder.decode(data)
    except DecodeError as error:
        return str(error)
    return exact(value), end


class Counting:
    """How many elements columns have taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        take = etf_columns.Plan.take

        def counting(*args: Any) -> tuple[int, int]:
            pos, taken = take(*args)
            self.taken += taken
            return pos, taken

        monkeypatch.setattr(etf_columns.Plan, "take", counting)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def words(count: int) -> list[str]:
    return [f"word {i}" * (i % 4) for i in range(count)]


ELEMENTS: dict[str, Callable[[int], object]] = {
    "map": lambda i: {"id": i, "name": f"name {i}", "score": i / 7},
    "map of atoms": lambda i: {Atom("id"): i * 7919 - 300_000, Atom("kind"): Atom(f"k{i % 3}")},
    "map of constants": lambda i: {"on": i % 2 == 0, "off": None if i % 3 else Atom("x")},
    "tuple": lambda i: (i, str(i), i / 3),
    "nested": lambda i: {"user": {"age": i % 90, "at": (i / 3, -i)}, "tags": [], "none": ()},
    "empty maps": lambda i: ({}, i, {}),
    "one value": lambda i: (i,),
    "text": lambda i: "x" * (i % 128),
    "unicode": lambda i: "ünï → 𝄞"[: i % 8],
    "atom": lambda i: Atom(f"atom {i % 10}"),
    "two kinds": lambda i: {"a": i if i % 2 else None, "b": i / 2 if i % 3 else f"{i}"},
    "all kinds": lambda i: {"a": (i, i / 2, str(i), Atom("a"), None)[i % 5]},
    "small and large": lambda i: (i % 3 and i, i % 5 and 2**31 - i, -i),
    "separators": lambda i: ("\x7f" * (i % 4), "m\0\0\0\x01", "m\0\0\0"),
    "short lists": lambda i: [i * 300, f"{i}", i / 2],
    "lists": lambda i: {"tags": [f"tag {i % 10}", f"tag {i % 13}"], "at": [i / 3, 0.5, -i], "n": i},
    "structs": lambda i: {Atom("__struct__"): Atom("Elixir.Point"), Atom("x"): i, Atom("y"): 2},
    "no structs": lambda i: {Atom("__struct__"): None if i % 2 else Atom("A"), "__struct__1": i},
    "wide": lambda i: {f"key {key}": i * key for key in range(40)},
}


@pytest.mark.parametrize("binary_as", ["bytes", "str"])
@pytest.mark.parametrize("make", ELEMENTS.values(), ids=ELEMENTS)
def test_all_elements_are_taken(
    make: Callable[[int], object], binary_as: As, counting: Counting
) -> None:
    data = encode([make(i) for i in range(500)])
    assert outcome(Decoder(binary_as=binary_as), data) == outcome(
        by_loop(binary_as=binary_as), data
    )
    assert counting.taken >= 450 or isinstance(make(0), Atom)


@pytest.mark.parametrize("make", ELEMENTS.values(), ids=ELEMENTS)
def test_pieces(make: Callable[[int], object], monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode([make(i) for i in range(300)])
    expected = outcome(by_loop(binary_as="str"), data)
    for piece in 900, 1001, 4096:
        monkeypatch.setattr(etf_columns, "PIECE", piece)
        assert outcome(Decoder(binary_as="str"), data) == expected


def test_struct_hooks() -> None:
    def hook(fields: dict[Any, Any]) -> object:
        return sorted(map(str, fields.items()))

    for name in "structs", "no structs":
        data = encode([ELEMENTS[name](i) for i in range(50)])
        assert outcome(Decoder(struct_hook=hook), data) == outcome(by_loop(struct_hook=hook), data)


def test_struct_hooks_for_some_names() -> None:
    names = [Atom("Elixir.A"), Atom("Elixir.B"), "Elixir.A", 1, None, {"a": 1}]
    kinds: list[list[object]] = [[A(name) for A in (str, Atom) for name in "ab"], names[:2], names]
    for some in kinds:
        values = [{Atom("__struct__"): some[i % len(some)], Atom("n"): i} for i in range(60)]
        for each in (values, [value for value in values for _ in range(20)]):
            options: dict[str, Any] = {"struct_hook": str, "struct_names": ["Elixir.A"]}
            data = encode(each)
            assert outcome(Decoder(**options), data) == outcome(by_loop(**options), data)
    for i, name in enumerate(names):
        data = encode([{Atom("__struct__"): name, Atom("n"): i}] * 30)
        options = {"struct_hook": str, "struct_names": ["Elixir.A"], "binary_as": "str"}
        assert outcome(Decoder(**options), data) == outcome(by_loop(**options), data)
        kinds_found = {type(each) for each in Decoder(**options).decode(data)[0]}
        assert kinds_found == {str if i == 0 else dict}


def test_names_that_are_added_later() -> None:
    decoder = Decoder(struct_hook=lambda fields: fields[Atom("n")], struct_names=["Elixir.A"])
    values = [{Atom("__struct__"): Atom("Elixir.B"), Atom("n"): i} for i in range(60)]
    for data, expected in ((encode(values), [*range(60)]), (encode(values[0]), 0)):
        made = Decoder(struct_hook=lambda fields: fields[Atom("n")], struct_names=["Elixir.A"])
        assert made.decode(data)[0] != expected
        made.add_struct_names(["Elixir.B"])
        assert made.decode(data)[0] == expected
    each: list[dict[str, Any]] = [{}, {"binary_as": "bytearray", "struct_names": ["Elixir.A"]}]
    for options in each:
        of_any = Decoder(struct_hook=lambda fields: 1, **options)
        of_any.add_struct_names(["Elixir.B"])
        assert of_any.decode(encode(values))[0] == [1] * 60
    assert decoder.decode(encode(values))[0] == values


def test_what_a_hook_raises_comes_through() -> None:
    def hook(fields: dict[Any, Any]) -> object:
        raise IndexError("of the hook")

    data = encode([ELEMENTS["structs"](i) for i in range(50)])
    with pytest.raises(IndexError, match="of the hook"):
        Decoder(struct_hook=hook).decode(data)


def test_raw_structs_are_kept_raw() -> None:
    seen: list[object] = []
    data = encode([ELEMENTS["structs"](i) for i in range(9)])
    Decoder(struct_hook=seen.append, raw_structs=["Elixir.Point"]).decode(data)
    assert len(seen) == 9
    assert all(type(fields[Atom("x")]).__name__ == "Term" for fields in seen)  # type: ignore[index]


def test_atoms_are_of_the_class_asked_for() -> None:
    class Special(Atom):
        __slots__ = ()

    data = encode([{Atom("key"): Atom("value"), Atom("n"): i} for i in range(20)])
    for element in Decoder(atom=Special).decode(data)[0]:
        assert [type(part) for part in (*element, *element.values())] == [*[Special] * 3, int]


def test_what_can_change_is_never_shared() -> None:
    data = encode([{"list": [], "map": {}, "n": i} for i in range(50)])
    found = Decoder(binary_as="str").decode(data)[0]
    assert len({id(element["list"]) for element in found}) == 50
    assert len({id(element["map"]) for element in found}) == 50
    data = encode([b"same"] * 50)
    assert len({id(each) for each in Decoder(binary_as="bytearray").decode(data)[0]}) == 50


# --- elements that differ ------------------------------------------------------------------------

OTHERS: list[object] = [
    None,
    7,
    2**40,
    "x" * 200,
    {"id": 1},
    {"id": 1, "name": "x", "score": 2},
    {"name": "x", "id": 1, "score": 0.5},
    {"id": [1, 2], "name": "x", "score": 0.5},
    {b"\xff": 1, "name": "x", "score": 0.5},
    {"id": 1, "name": "x", "score": 0.5, "more": 1},
    [{"id": 1, "name": "x", "score": 0.5}] * 5,
    (1, 2),
]


@pytest.mark.parametrize("place", [0, 1, 2, 50, 98, 99])
@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
def test_one_among_many(other: object, place: int, counting: Counting) -> None:
    elements = [ELEMENTS["map"](i) for i in range(100)]
    elements[place] = other
    data = encode(elements)
    assert outcome(Decoder(), data) == outcome(by_loop(), data)
    # Where a list begins with a number it is looked for numbers.
    assert counting.taken > 80 or (place == 0 and isinstance(other, int))


def test_two_shapes_in_turns() -> None:
    data = encode([{"a": i} if i % 2 else {"b": i} for i in range(1000)])
    assert outcome(Decoder(), data) == outcome(by_loop(), data)


def test_lists_in_lists() -> None:
    rows = [[{"a": i, "b": str(j)} for j in range(i % 30)] for i in range(100)]
    data = encode({"rows": rows, "again": (rows, rows)})
    assert outcome(Decoder(), data) == outcome(by_loop(), data)


@pytest.mark.parametrize("tail", [{"a": 1}, 5, [{"a": 1}], "x"], ids=str)
def test_improper_lists(tail: object) -> None:
    body = b"".join(encode({"a": i}) for i in range(20))
    data = b"l" + (20).to_bytes(4, "big") + body + encode(tail)
    decoded, end = Decoder().decode(data)
    expected, _ = by_loop().decode(data)
    assert (repr(decoded), end) == (repr(expected), len(data))


def test_what_follows_the_list_is_not_of_it() -> None:
    element = encode({"a": 1})
    data = b"h\2" + b"l\0\0\0\5" + 5 * element + b"j" + element
    assert Decoder().decode(data)[0] == ([{b"a": 1}] * 5, {b"a": 1})
    data = b"l\0\0\0\2" + 2 * (b"l\0\0\0\5" + 5 * element + b"j") + b"j"
    assert Decoder().decode(data)[0] == [[{b"a": 1}] * 5] * 2


# --- errors --------------------------------------------------------------------------------------

NOT_FINITE = b"F\x7f\xf0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "bad",
    [
        b"h\3a\1m\0\0\0\1\xff" + encode(0.5),  # no UTF-8
        b"h\3a\1m\0\0\0\1x" + NOT_FINITE,
        b"h\3a\1m\0\0\0\1xc",  # an unknown tag, or a cut term
        b"h\3w\1\xffm\0\0\0\1x" + encode(0.5),  # an atom that is no UTF-8
    ],
    ids=range(4),
)
@pytest.mark.parametrize("place", [0, 10, 49])
def test_errors_are_those_of_the_loop(bad: bytes, place: int) -> None:
    elements = [encode((i, "x", 0.5)) for i in range(50)]
    elements[place] = bad
    data = b"l" + (50).to_bytes(4, "big") + b"".join(elements) + b"j"
    found = outcome(Decoder(binary_as="str"), data)
    assert isinstance(found, str)
    assert found == outcome(by_loop(binary_as="str"), data)


@pytest.mark.parametrize(
    "keys",
    [
        [encode("a"), encode("a")],
        [encode(Atom("a")), encode("a")],
        [b"m\0\0\0\1\xff", encode("a")],
    ],
    ids=["twice", "atom and text", "no UTF-8"],
)
def test_keys_that_are_no_two_keys(keys: list[bytes]) -> None:
    element = b"t\0\0\0\2" + keys[0] + b"a\1" + keys[1] + b"a\2"
    data = b"l\0\0\0\x20" + 32 * element + b"j"
    assert outcome(Decoder(binary_as="str"), data) == outcome(by_loop(binary_as="str"), data)


def test_depth_is_bounded_as_ever() -> None:
    data = encode([{"a": {"b": ({"c": i},)}} for i in range(20)])
    for depth in range(1, 8):
        options = {"max_depth": depth}
        assert outcome(Decoder(**options), data) == outcome(by_loop(**options), data)  # type: ignore[arg-type]


def test_every_cut_is_told() -> None:
    data = encode([ELEMENTS["nested"](i) for i in range(12)])
    columns, loop = Decoder(binary_as="str"), by_loop(binary_as="str")
    for size in range(len(data)):
        assert outcome(columns, data[:size]) == outcome(loop, data[:size])


# --- anything ------------------------------------------------------------------------------------

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", "m\0\0\0\2ab", "\x7f", "x" * 127, "x" * 128]),
    st.sampled_from("abc").map(Atom),
    st.just([]),
    st.integers(2**31, 2**70),
)
keys = st.one_of(st.sampled_from("abcdef"), st.sampled_from("uvwxyz").map(Atom))
records = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(keys, inner, max_size=4), st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


def another(value: object, number: random.Random) -> object:
    """A value of the same form with other leaves, most times."""
    if isinstance(value, dict):
        return {key: another(part, number) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(another(part, number) for part in value)
    if isinstance(value, bool) or value is None or value == []:
        return value
    kind = number.randrange(30)
    if kind == 0:
        return number.choice([None, 5, 0.5, "other", Atom("other"), (1,)])
    if isinstance(value, int):
        return number.choice([number.randrange(256), number.randrange(-(2**31), 2**31)])
    if isinstance(value, float):
        return number.random()
    return type(value)("y" * number.randrange(40)) if isinstance(value, str) else value


@settings(max_examples=examples(3))
@given(records, st.randoms(use_true_random=False), st.sampled_from(["bytes", "str"]))
def test_any_records(record: object, number: random.Random, binary_as: As) -> None:
    data = encode([another(record, number) for _ in range(60)])
    assert outcome(Decoder(binary_as=binary_as), data) == outcome(
        by_loop(binary_as=binary_as), data
    )


@settings(max_examples=examples(3))
@given(records, st.randoms(use_true_random=False), st.sampled_from(["bytes", "str"]))
def test_records_with_bytes_changed(record: object, number: random.Random, binary_as: As) -> None:
    data = bytearray(encode([another(record, number) for _ in range(30)]))
    for _ in range(number.randrange(1, 4)):
        data[number.randrange(len(data))] = number.choice(b"abFmwhtjl\0\1\2\x7f\xff")
    assert outcome(Decoder(binary_as=binary_as), bytes(data)) == outcome(
        by_loop(binary_as=binary_as), bytes(data)
    )


# --- what it costs -------------------------------------------------------------------------------


def slower(data: bytes) -> float:
    """How much longer columns take than the loop, with compiling."""

    def columns() -> None:
        forget()
        Decoder().decode(data)

    return ratio(columns, lambda: by_loop().decode(data))


def changing_at_the_end(count: int) -> list[object]:
    return [*({"a": i, "b": "x"} for i in range(count - 1)), {"a": 1}]


def two_shapes() -> list[object]:
    return [[{"a": i, "b": 1} if i % 2 else {"b": i} for i in range(70)]] * 300


def many_shapes() -> list[object]:
    return [[{"a": i, "b": [i] * (i % 20), f"c{i}": 1} for i in range(70)]] * 100


def but_for_a_value() -> list[object]:
    return [[{"a": i, "b": "x", "c": [i] * (i % 20)} for i in range(70)]] * 100


HOSTILE: dict[str, Callable[[], bytes]] = {
    "every map another shape": lambda: encode([{f"k{i}": i, "v": i} for i in range(20_000)]),
    "lists whose last element differs": lambda: encode([changing_at_the_end(64)] * 300),
    "every other map another shape": lambda: encode(
        [{"a": i} if i % 2 else {"b": i} for i in range(20_000)]
    ),
    "many lists of two shapes": lambda: encode(two_shapes()),
    "many lists of many shapes": lambda: encode(many_shapes()),
    "many lists of one shape but for a value": lambda: encode(but_for_a_value()),
    "many lists of short texts": lambda: encode([[f"{i}" for i in range(70)]] * 1000),
    "texts that hold heads of texts": lambda: encode(["m\0\0\0\1" * 20] * 5000),
    "maps that hold heads of maps": lambda: encode(
        [{"a": encode({"a": "x"})[:-1], "b": i} for i in range(10_000)]
    ),
    "elements too long": lambda: encode([{"a": "x" * 128, "b": i} for i in range(10_000)]),
}


@pytest.mark.untraced
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_nothing_makes_it_slow(make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    # A tenth more is what it may cost; the rest is what two measurements differ by.
    value = make()
    assert any(slower(value) < 1.4 for _ in range(6))  # of a busy machine one is to be true


@pytest.mark.untraced
def test_maps_take_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = encode([ELEMENTS["map"](i) for i in range(20_000)])
    assert any(slower(data) < 0.7 for _ in range(6))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etf_columns, "MAX_SHAPES", 10)
    decoder = Decoder()
    for i in range(50):
        data = encode([{f"key {i}": 1, "b": 2}] * 20)
        assert decoder.decode(data)[0] == [{f"key {i}".encode(): 1, b"b": 2}] * 20
    lists = decoder._lists
    assert lists is not None
    for table in etf_columns._compiled, lists._plans, lists._by_head:
        assert 0 < len(table) <= 11


def times_until_compiled(elements: list[object]) -> int:
    forget()
    decoder = Decoder()
    data = encode(elements)
    for times in range(1, 100):
        decoder.decode(data)
        if etf_columns._compiled:
            return times
    raise AssertionError


def test_shapes_are_compiled_when_that_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etf_columns, "WORTH", 2000)
    assert times_until_compiled([{"a": i, "b": i} for i in range(100)]) == 5
    assert times_until_compiled([{"a": i, "b": i} for i in range(500)]) == 1
    # Each column of texts takes time to be compiled.
    assert times_until_compiled([{"a": "x", "b": f"{i}"} for i in range(500)]) == 3
    # Only every tenth has the key.
    some: list[object] = [{"a": i, "two": i} for i in range(100)]
    assert times_until_compiled([*some, *({"a": i} for i in range(900))]) == 5


def test_it_takes_more_where_it_was_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etf_columns, "WORTH", 100)
    decoder = Decoder()
    lists = decoder._lists
    assert lists is not None
    # Of many with the key one after the other is of another shape.
    values = [{"key": 1, "b": [0] * (n % 9)} for n in range(200)]
    decoder.decode(encode(values))
    caution = lists._caution
    assert 1 < caution <= 64
    decoder.decode(encode([{"good": n, "b": 2} for n in range(64 * 100)]))
    assert lists._caution == caution // 2


def test_looking_for_many_takes_no_time() -> None:
    """Lists each of which begins with another shape, and says to be long."""
    count = 20_000
    lists = b"".join(
        b"l" + count.to_bytes(4, "big") + encode({f"k{i}": 1, "b": 2}) + (count - 1) * b"j" + b"j"
        for i in range(20)
    )
    data = b"l\0\0\0\x14" + lists + b"j"
    assert any(slower(data) < 1.5 for _ in range(6))


def test_seen_shapes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etf_columns, "WORTH", 10**9)
    monkeypatch.setattr(etf_columns, "MAX_SHAPES", 10)
    for i in range(50):
        Decoder().decode(encode([{f"key {i}": 1}] * 20))
    assert 0 < len(etf_columns._seen) <= 10


# --- shapes --------------------------------------------------------------------------------------


class TestLearn:
    def test_kinds(self) -> None:
        term = {"a": 1, "b": (-5, 0.5, []), Atom("c"): {"d": Atom("x"), "e": None}}
        assert learn(encode(term), 0) == (
            Map(
                (encode("a"), encode("b"), encode(Atom("c"))),
                (
                    Leaf(INTEGER),
                    Tuple((Leaf(INTEGER), Leaf(FLOAT), Empty())),
                    Map((encode("d"), encode("e")), (Leaf(ATOM), Leaf(ATOM))),
                ),
            ),
            len(encode(term)),
        )
        assert learn(b"_" + encode("text") + b"_", 1) == (Leaf(BINARY), 9)

    @pytest.mark.parametrize(
        "term",
        [
            {},
            (),
            [],
            {1: 2},
            {(1,): 2},
            2**40,
            "x" * 128,
            {"x" * 128: 1},
            tuple(range(65)),
            (((((((((1,),),),),),),),),),
            {f"{'k' * 100}{i}": i for i in range(30)},
            [Atom("a")] * 16,
            ImproperList([Atom("a")], Atom("b")),
        ],
        ids=range(13),
    )
    def test_what_has_none(self, term: object) -> None:
        assert learn(encode(term), 0) is None

    def test_what_is_cut(self) -> None:
        data = encode({"a": (1, "x")})
        for size in range(len(data) - 1):
            found = learn(data[:size], 0)
            assert found is None or size > len(data) - 7  # the last value is not looked at


class TestMerge:
    A = Map((b"w\1a",), (Leaf(INTEGER),))
    B = Map((b"w\1a",), (Leaf(ATOM),))

    @pytest.mark.parametrize(
        ("one", "other", "merged"),
        [
            (Leaf(INTEGER), Leaf(FLOAT), Leaf(INTEGER | FLOAT)),
            (A, B, Map((b"w\1a",), (Leaf(INTEGER | ATOM),))),
            (Tuple((A, Empty())), Tuple((B, Empty())), None),
            (A, Map((b"w\1b",), (Leaf(INTEGER),)), None),
            (Tuple((A,)), Tuple((A, A)), None),
            (Tuple((A,)), Tuple((Empty(),)), None),
            (Empty(), Leaf(ATOM), None),
            (Empty(), Empty(), Empty()),
            (Items((A,)), Items((B,)), Items((Map((b"w\1a",), (Leaf(INTEGER | ATOM),)),))),
            (Items((A,)), Items((A, A)), None),
            (Items((A,)), Tuple((A,)), None),
        ],
        ids=range(11),
    )
    def test_it(self, one: Shape, other: Shape, merged: Shape | None) -> None:
        if merged is None and isinstance(one, Tuple) and one.elements[-1:] == (Empty(),):
            merged = Tuple((Map((b"w\1a",), (Leaf(INTEGER | ATOM),)), Empty()))
        assert merge(one, other) == merged
        assert merge(other, one) == merged
