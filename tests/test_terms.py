"""Terms: identity, immutability, and how they print."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from snex_node.wire.etf import Decoder
from snex_node.wire.terms import (
    MAX_ATOM_CHARACTERS,
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Record,
    Reference,
    Term,
)
from tests.support.beam import Beam
from tests.support.ids import stable

PID = Pid("py@host", 12, 3, 7)
# The fun made by `fun(X) -> X + N end` in a module q, with N = 4000000.
FUN_BYTES = bytes.fromhex(
    "700000004501d887eda1a15a5b4ef961b4f4fd0a86ae000000010000000077017161016206c43f6d58"
    "770d6e6f6e6f6465406e6f686f7374000000090000000000000000"
)


def fun() -> Fun:
    data = FUN_BYTES[:1] + (len(FUN_BYTES) - 1).to_bytes(4, "big") + FUN_BYTES[5:]
    value, _ = Decoder().decode(data)
    assert isinstance(value, Fun)
    return value


SAMPLES: list[Any] = [
    Atom("ok"),
    PID,
    Port("py@host", 5, 7),
    Port("py@host", 1 << 40, 7),
    Reference("py@host", 7, (1, 2, 3)),
    fun(),
    Export("Elixir.String", "length", 1),
    BitString(b"\x01\xa0", 3),
    ImproperList([1, 2], 3),
    Record("shop", "order", ["id"], [1]),
    Term(b"a\x07"),
]


@pytest.mark.parametrize("value", SAMPLES, ids=stable)
def test_values_are_equal_hash_alike_copy_and_pickle(value: Any) -> None:
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert not again != value
    assert type(again) is type(value)
    assert hash(again) == hash(value)
    assert repr(again) == repr(value)
    assert copy.deepcopy(value) == value
    assert value != object()
    assert not value == object()


@pytest.mark.parametrize("value", SAMPLES, ids=stable)
def test_values_are_slotted_and_immutable(value: Any) -> None:
    assert not hasattr(value, "__dict__")
    for name in ("unknown", *getattr(type(value), "__slots__", ())):
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
    if not isinstance(value, (Atom, Term)):
        with pytest.raises(AttributeError, match="immutable"):
            del value.anything


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PID, Pid("py@hose", 12, 3, 7)),
        (PID, Pid("py@host", 13, 3, 7)),
        (PID, Pid("py@host", 12, 4, 7)),
        (PID, Pid("py@host", 12, 3, 8)),
        (Port("a@b", 5, 7), Port("a@b", 6, 7)),
        (Port("a@b", 5, 7), Port("a@b", 5, 8)),
        (Reference("a@b", 7, (1, 2)), Reference("a@b", 7, (1, 2, 0))),
        (Reference("a@b", 7, (1, 2)), Reference("a@b", 7, (2, 1))),
        (Export("m", "f", 1), Export("m", "f", 2)),
        (BitString(b"\x80", 1), BitString(b"\x80", 2)),
        (ImproperList([1], 2), ImproperList([1], 3)),
        (Record("m", "n", ["a"], [1]), Record("m", "n", ["b"], [1])),
        (Record("m", "n", ["a"], [1]), Record("m", "n", ["a"], [1], flag=1)),
        (Term(b"a\x01"), Term(b"a\x02")),
        (Term(b"a\x01"), b"a\x01"),
        (PID, Term(PID.external)),
    ],
)
def test_what_differs_is_not_equal(one: object, other: object) -> None:
    assert one != other
    assert other != one
    assert len({one, other}) == 2


class TestAtom:
    def test_is_its_text(self) -> None:
        assert Atom("ok") == "ok"
        assert "ok" in {Atom("ok"): 1}
        assert f"{Atom('ok')}" == "ok"

    def test_has_at_most_255_characters(self) -> None:
        assert len(Atom("é" * MAX_ATOM_CHARACTERS)) == 255
        with pytest.raises(ValueError, match="atom too long: 256 characters"):
            Atom("a" * 256)

    def test_subclasses_are_made_as_themselves(self) -> None:
        class Special(Atom):
            __slots__ = ()

        assert type(Special("a")) is Special


class TestPid:
    def test_fields(self) -> None:
        assert (PID.node, PID.id, PID.serial, PID.creation) == ("py@host", 12, 3, 7)
        assert isinstance(PID.node, Atom)

    def test_fields_of_a_long_node_name(self) -> None:
        pid = Pid("é" * 200, 2**32 - 1, 2**32 - 2, 2**32 - 3)
        assert pid.external[1] == 118
        assert (pid.node, pid.id, pid.serial) == ("é" * 200, 2**32 - 1, 2**32 - 2)
        assert pid.creation == 2**32 - 3

    @pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, 1 << 32, 0), (0, 0, 1 << 32)])
    def test_numbers_have_32_bits(self, numbers: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="numbers of this pid do not fit"):
            Pid("a@b", *numbers)

    def test_from_external_does_not_look_at_it(self) -> None:
        assert Pid.from_external(PID.external) == PID
        assert Pid.from_external(b"anything").external == b"anything"


class TestPort:
    def test_both_forms_of_one_port_are_equal_and_stay_what_they_are(self) -> None:
        old, new = Port("a@b", 5, 7), Port("a@b", 5, 7, v4=True)
        assert old == new
        assert hash(old) == hash(new)
        assert (old.external[0], new.external[0]) == (89, 120)
        assert (old.id, new.id) == (5, 5)
        assert (old.creation, new.creation, old.node) == (7, 7, "a@b")

    def test_a_large_id_takes_the_v4_form(self) -> None:
        assert Port("a@b", (1 << 28) - 1, 7).external[0] == 89
        assert Port("a@b", 1 << 28, 7).external[0] == 120
        assert Port("a@b", 2**64 - 1, 7).id == 2**64 - 1

    @pytest.mark.parametrize("number", [-1, 1 << 64])
    def test_an_id_has_64_bits(self, number: int) -> None:
        with pytest.raises(ValueError, match="numbers of this port"):
            Port("a@b", number, 7)


class TestReference:
    def test_fields(self) -> None:
        reference = Reference("py@host", 7, [1, 2, 3])
        assert (reference.node, reference.creation, reference.words) == ("py@host", 7, (1, 2, 3))

    @pytest.mark.parametrize("words", [(), (1,) * 6])
    def test_has_one_to_five_words(self, words: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="1 to 5 words"):
            Reference("a@b", 7, words)

    def test_words_have_32_bits(self) -> None:
        with pytest.raises(ValueError, match="numbers of this reference"):
            Reference("a@b", 7, (1 << 32,))


def test_fields_of_a_fun() -> None:
    value = fun()
    assert (value.arity, value.index, value.module) == (1, 1, "q")
    assert (value.old_index, value.old_uniq) == (1, 113524589)
    assert value.uniq.hex() == "d887eda1a15a5b4ef961b4f4fd0a86ae"
    assert value.pid == Pid("nonode@nohost", 9, 0, 0)
    assert value.free == ()


@pytest.mark.parametrize("arity", [-1, 256])
def test_the_arity_of_an_export_is_a_byte(arity: int) -> None:
    with pytest.raises(ValueError, match="0 to 255"):
        Export("m", "f", arity)


class TestBitString:
    def test_unused_bits_do_not_count(self) -> None:
        assert BitString(b"\xff", 3) == BitString(b"\xe0", 3)
        assert BitString(b"\xff", 3).data == b"\xe0"
        assert hash(BitString(b"\xff", 3)) == hash(BitString(b"\xe0", 3))

    @pytest.mark.parametrize(("data", "bits"), [(b"", 1), (b"a", 0), (b"a", 9)])
    def test_uses_one_to_eight_bits_of_a_byte(self, data: bytes, bits: int) -> None:
        with pytest.raises(ValueError, match="1 to 8 bits"):
            BitString(data, bits)


class TestImproperList:
    def test_hashes_when_its_contents_do(self) -> None:
        assert {ImproperList([1], 2): 1}[ImproperList((1,), 2)] == 1
        with pytest.raises(TypeError, match="unhashable"):
            hash(ImproperList([[]], 2))

    @pytest.mark.parametrize(
        ("elements", "tail"), [([], 1), ([1], []), ([1], ImproperList([2], 3))]
    )
    def test_refuses_what_is_a_list_of_another_shape(self, elements: Any, tail: Any) -> None:
        with pytest.raises(ValueError, match="list"):
            ImproperList(elements, tail)


@pytest.mark.parametrize(
    ("fields", "values", "flag"), [(["a"], [], 0), ([], [1], 0), ([], [], 256), ([], [], -1)]
)
def test_a_record_has_as_many_values_as_fields(fields: Any, values: Any, flag: int) -> None:
    with pytest.raises(ValueError, match=r"record"):
        Record("m", "n", fields, values, flag)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (PID, "#PID<py@host.12.3>"),
        (Port("py@host", 5, 7), "#Port<py@host.5>"),
        (Reference("py@host", 7, (1, 2, 3)), "#Reference<py@host.3.2.1>"),
        (fun(), "#Function<1.113524589/1 in :q>"),
        (ImproperList([Atom("alias"), b"x"], None), "[:alias, b'x' | None]"),
        (
            Record("Elixir.Shop", "order", ["id", "a b"], [1, b"x"]),
            "#Shop.order{id: 1, \"a b\": b'x'}",
        ),
        (BitString(b"\x07", 8), "<<7>>"),
        (Term(b"abc"), "#Term<opaque, 3 bytes>"),
        (f"{Term(b'abc')}", "'#Term<opaque, 3 bytes>'"),
    ],
)
def test_prints_as_iex_does_but_for_the_name_of_the_node(value: object, text: str) -> None:
    assert repr(value) == text


ATOMS = [
    *("ok", "nil", "true", "false", "Elixir", "Elixir.Foo", "Elixir.foo", "Elixir.Foo.bar"),
    *(
        "Elixir.Elixir",
        "Elixir.Elixir.Foo",
        "Elixir.",
        "Elixir.Foo.",
        "Elixir.Foo_Bar1",
        "Elixir.É",
    ),
    *(
        "Elixir.Foo!",
        "Foo.Bar",
        "foo@bar",
        "foo?",
        "foo!",
        "foo?b",
        "foo bar",
        "",
        "a\nb",
        "é",
        "日本",
    ),
    *("1a", "A", "_a", 'a"b', "a\\b", "a#{b", "a#b", "\0", "\x1b", "\x7f", "\x01", "a-b", "🐍"),
    *(
        "Éa",
        "a·b",
        "@",
        "@a",
        "do",
        "fn",
        "end",
        "&1",
        "&",
        "%",
        "%{}",
        "%[]",
        "{}",
        "[]",
        "()",
    ),
    *(
        "<<>>",
        "+",
        "-",
        "*",
        "/",
        "//",
        "++",
        "--",
        "+++",
        "---",
        "**",
        "==",
        "===",
        "=~",
        "!=",
        "!==",
    ),
    *(
        "=",
        "=>",
        "->",
        "<-",
        "<",
        "<=",
        "<>",
        "<~",
        "<~>",
        "<<<",
        "<<~",
        "~>",
        "~>>",
        ">>>",
        "|",
        "||",
    ),
    *("|>", "|||", "&&", "&&&", "!", "^", ".", "..", "..//", "...", "::", ",", ";", "#", "\\\\"),
]


@pytest.mark.interop
async def test_atoms_and_what_they_name_print_as_iex_prints_them(beam: Beam) -> None:
    values: list[object] = [Atom(name) for name in ATOMS]
    # A function's name: operators whose printing changes between Elixir releases are left out.
    values += [
        Export("lists", name, 2) for name in ("map", "a b", "Foo", "é", "+", "!=", "..", "%{}")
    ]
    values += [Export("Elixir.String", "length", 1), Export("a b", "c?", 0)]
    values += [BitString(b"\x01\xa0", 3), BitString(b"\x80", 1), ImproperList([1, 2], 3)]
    printed = await beam.eval("Enum.map(values, &inspect/1)", values=values)
    assert isinstance(printed, list)
    assert [text.decode() for text in printed] == [repr(value) for value in values]


@pytest.mark.interop
async def test_pids_print_as_iex_prints_them_but_for_the_node(beam: Beam) -> None:
    source = """
    for term <- [self(), make_ref(), hd(Port.list())], do: {term, inspect(term)}
    """
    pairs = await beam.eval(source)
    assert isinstance(pairs, list)
    for term, text in pairs:
        here = repr(term).replace(f"<{term.node}.", "<0.")
        assert here == text.decode().replace("#Reference<0.", "#Reference<0.")
