"""Long lists as the Elixir client arranges them, without a BEAM: terms are built as it sends them.

What it arranges, and that nothing else becomes of it than of the list itself, is tested in
elixir/test/arrangement_test.exs.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire.etf import DecodeError
from snex_node.wire.terms import BitString
from snex_runtime.arrangement import LISTS
from snex_runtime.serde import Atom, DistinctAtom, Term
from tests.test_serde import A, received, same

INT64 = st.integers(-(2**63), 2**63 - 1)


def arranged(name: str, **fields: object) -> dict[object, object]:
    module = A(f"Elixir.Snex.Arrangement.{name}")
    return {A("__struct__"): module, **{A(key): value for key, value in fields.items()}}


def bits(data: bytes) -> BitString:
    return BitString(data + b"\0", 1)


def texts(*parts: bytes) -> dict[object, object]:
    return arranged("Texts", joined=bits(b"\0".join(parts)))


def integers(*numbers: int) -> dict[object, object]:
    return arranged("Integers", words=bits(struct.pack(f"<{len(numbers)}q", *numbers)))


def atoms(names: object, *indexes: int) -> dict[object, object]:
    return arranged("Atoms", names=names, indexes=bits(bytes(indexes)))


def columns(keys: object, *found: object) -> dict[object, object]:
    return arranged("Columns", keys=keys, columns=list(found))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_texts(parts: list[str]) -> None:
    raw = [part.encode() for part in parts]
    assert received(texts(*raw)) == parts
    assert received(texts(*raw), binary_as="bytes") == raw
    as_arrays = received(texts(*raw), binary_as="bytearray")
    assert as_arrays == raw
    assert {type(part) for part in as_arrays} == {bytearray}
    assert len({id(part) for part in as_arrays}) == len(parts)


def test_a_text_that_is_none_is_told_by_its_place() -> None:
    with pytest.raises(
        DecodeError, match=r"binary 2 of a list is not UTF-8 \(invalid start byte\)"
    ):
        received(texts(b"a", b"b", b"c\xff", b"\xff"))
    assert received(texts(b"a", b"\xff"), binary_as="bytes") == [b"a", b"\xff"]


@given(st.lists(INT64))
def test_integers(numbers: list[int]) -> None:
    assert received(integers(*numbers)) == numbers


def test_atoms() -> None:
    term = atoms([A("a"), None, True, False], 0, 1, 2, 3, 0)
    assert same(received(term), [Atom("a"), None, True, False, Atom("a")])
    assert {type(one) for one in received(term, atom_as="distinct_atom")} == {
        DistinctAtom,
        type(None),
        bool,
    }
    assert received(atoms([])) == []


def test_maps() -> None:
    term = columns([b"id", b"name"], [1, 2], texts(b"one", b"two"))
    expected = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    assert received(term) == expected
    assert list(received(term)[0]) == ["id", "name"]
    assert received(columns([A("id")], [[]])) == [{"id": []}]


def test_maps_in_maps() -> None:
    inner = columns([b"x"], integers(1, 2**40, -3))
    assert received(columns([b"in", b"n"], inner, [1.5, None, True])) == [
        {"in": {"x": 1}, "n": 1.5},
        {"in": {"x": 2**40}, "n": None},
        {"in": {"x": -3}, "n": True},
    ]


def test_tuples() -> None:
    assert received(columns(None, [1, 2], texts(b"a", b"b"))) == [(1, "a"), (2, "b")]


def test_structs_have_their_name_once() -> None:
    term = columns([A("__struct__"), A("id")], A("Elixir.User"), [1, 2])
    assert received(term) == [
        {"__struct__": Atom("Elixir.User"), "id": 1},
        {"__struct__": Atom("Elixir.User"), "id": 2},
    ]
    [one, _] = received(term, atom_as="distinct_atom")
    assert all(type(key) is DistinctAtom for key in one)


def test_keys_are_what_maps_have() -> None:
    [as_text] = received(columns([b"id"], [1]))
    assert same(list(as_text), ["id"])
    [as_bytes] = received(columns([b"id"], [1]), binary_as="bytes")
    assert same(list(as_bytes), [b"id"])
    [as_atom] = received(columns([A("id")], [1]))
    assert same(next(iter(as_atom)), Atom("id"))
    # Python cannot hash a bytearray: such a key of a map is a term.
    [as_bytearray] = received(columns([b"id"], [1]), binary_as="bytearray")
    assert as_bytearray == received({b"id": 1}, binary_as="bytearray")
    assert [type(key) for key in as_bytearray] == [Term]


def test_many_keys() -> None:
    keys = [b"%d" % number for number in range(200)]
    assert received(columns(keys, *[[number] for number in range(200)])) == [
        {str(number): number for number in range(200)}
    ]


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (arranged("Texts", joined=b"plain"), "a bitstring joined"),
        (arranged("Texts"), "a bitstring joined"),
        (arranged("Texts", joined=A("a")), "a bitstring joined"),
        (arranged("Integers", words=bits(bytes(9))), "9 bytes, which are no whole words"),
        (arranged("Integers", words=[1]), "a bitstring words"),
        (atoms([A("a")], 0, 1), "a list of names for all indexes"),
        (atoms(A("a"), 0), "a list of names for all indexes"),
        (atoms([A("a"), 7], 0, 1), "names that are atoms"),
        (arranged("Atoms", names=[]), "a bitstring indexes"),
        (columns([b"a", b"b"], [1], [2, 3]), "a list of columns of one size"),
        (columns([b"a", b"b"], [1], 2), "columns and atoms, not 2"),
        (columns([b"a", b"b"], [1]), "1 columns and the keys"),
        (columns(A("keys"), [1]), "1 columns and the keys"),
        (columns([b"a"], A("constant")), "a list of columns of one size"),
        (columns(None), "a list of columns of one size"),
        (arranged("Columns", keys=None, columns=A("a")), "a list of columns of one size"),
        (arranged("Columns", keys=[b"a"]), "a list of columns of one size"),
        (columns([b"a", b"a"], [1], [2]), "the same key twice"),
        (columns([b"a", A("a")], [1], [2]), "the same key twice"),
        (columns([[b"a"]], [1]), "keys that are atoms or binaries"),
        (columns([7], [1]), "keys that are atoms or binaries"),
    ],
)
def test_what_is_none_of_these_is_refused(term: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        received(term)


def test_every_struct_is_known_to_the_decoder() -> None:
    assert list(LISTS) == [
        f"Elixir.Snex.Arrangement.{name}" for name in ("Texts", "Integers", "Atoms", "Columns")
    ]
