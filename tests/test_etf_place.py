"""Places in errors: the walk that finds what the encoder stumbled over."""

from __future__ import annotations

from typing import Any

import pytest

from snex_node.wire.etf import EncodeError, Encoder
from snex_node.wire.etf_place import find_cycle, find_place
from snex_node.wire.terms import Atom, ImproperList, Record
from tests.support.ids import stable

BAD = object()


class Items(list[Any]):
    pass


PLACES: list[tuple[object, str]] = [
    (BAD, ""),
    ([BAD], " (at [0])"),
    ([1, [2, BAD]], " (at [1][1])"),
    ((1, (BAD,)), " (at [1][0])"),
    ({"users": [1, 2, 3, {"photo": BAD}]}, ' (at ["users"][3]["photo"])'),
    ({Atom("a b"): BAD}, ' (at [:"a b"])'),
    ({b"k": BAD}, " (at [b'k'])"),
    ({(1, 2): BAD}, " (at [(1, 2)])"),
    ({'say "hi"\\': BAD}, ' (at ["say \\"hi\\"\\\\"])'),
    ({"a" * 100: BAD}, f' (at ["{"a" * 57}..."])'),
    ({BAD: 1}, " (at key <object"),
    ([{(1, BAD): 1}], " (at [0] key (1, <object"),
    (ImproperList([1, BAD], 2), " (at [1])"),
    (ImproperList([1], BAD), " (at tail)"),
    ([ImproperList([1], (BAD,))], " (at [0] tail[0])"),
    (Record("m", "n", ["a", "b"], [1, [BAD]]), " (at .b[0])"),
    (Items([1, Items([BAD])]), " (at [1][0])"),
    (["a", "a", BAD, BAD], " (at [2])"),
]


@pytest.mark.parametrize(("value", "place"), PLACES, ids=lambda part: stable(part)[:40])
def test_the_place_is_written_as_one_would_index_it(value: object, place: str) -> None:
    with pytest.raises(EncodeError) as caught:
        Encoder().encode(value)
    message = "Cannot serialize object of <class 'object'>"
    assert str(caught.value).startswith(message + place)
    assert bool(place) == str(caught.value).endswith(")")


def test_members_of_sets_are_named() -> None:
    with pytest.raises(EncodeError, match=r"<class 'complex'> \(at \[1\] element 2j\)"):
        Encoder(sets="mapset").encode([{1}, {2j}])


def test_the_way_leads_through_what_default_gave() -> None:
    def default(value: Any) -> object:
        if isinstance(value, complex):
            return {"parts": [value.real, range(3) if value.imag else 0]}
        raise TypeError("no range")

    with pytest.raises(EncodeError) as caught:
        Encoder(default=default).encode([1, 5 + 0j, (5j, 5j)])
    assert str(caught.value) == 'no range (at [2][0]["parts"][1])'


def test_an_object_that_default_knew_the_first_time_only() -> None:
    value = 2j
    answers = iter([1, 2])

    def default(_: object) -> object:
        for answer in answers:
            return answer
        raise ValueError("that was it")

    with pytest.raises(EncodeError) as caught:
        Encoder(default=default).encode([value, [value], (0, value), value])
    assert str(caught.value) == "that was it (at [2][1])"


@pytest.mark.untraced
def test_the_middle_of_a_long_way_is_left_out() -> None:
    value: Any = BAD
    for index in range(50_000):
        value = [index, value]
    with pytest.raises(EncodeError) as caught:
        Encoder().encode(value)
    message = "Cannot serialize object of <class 'object'>"
    expected = f"{message} (at {'[1]' * 10} ... 49980 more ... {'[1]' * 10})"
    assert str(caught.value) == expected


def test_what_is_not_there_has_no_place() -> None:
    assert find_place([1, 2], object(), []) == ""


class TestFindCycle:
    def test_finds_what_contains_itself(self) -> None:
        items: list[Any] = [1]
        mapping = {"a": (items,)}
        assert find_cycle([mapping, mapping], 100) is None
        items.append(mapping)
        assert find_cycle([0, mapping], 100) is mapping

    def test_ends_at_the_depth_given(self) -> None:
        items: list[Any] = [[[[]]]]
        items.append(items)
        assert find_cycle(items, 10) is items
        assert find_cycle(items, 3) is None
        assert find_cycle(items, 4) is items

    def test_what_is_shared_is_no_cycle_and_is_walked_once(self) -> None:
        value: Any = []
        for _ in range(100):
            value = [value, value]
        assert find_cycle(value, 1000) is None

    @pytest.mark.untraced
    def test_depth_does_not_matter(self) -> None:
        value: Any = []
        for _ in range(100_000):
            value = (value,)
        assert find_cycle(value, 1_000_000) is None


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Meta(type):
    def __repr__(cls) -> str:
        raise RuntimeError("no")


class BrokenType(metaclass=Meta):
    pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({Broken(): 1}, "Broken'> \\(at key <tests.test_etf_place.Broken object>\\)"),
        ({10**5000: 2j}, "complex'> \\(at \\[<an int of 16610 bits>\\]\\)"),
        ([BrokenType()], "Cannot serialize object of <class 'tests.test_etf_place.BrokenType'>"),
    ],
)
def test_what_is_wrong_is_told_whatever_the_value_does(value: object, text: str) -> None:
    with pytest.raises(EncodeError, match=text):
        Encoder().encode(value)
