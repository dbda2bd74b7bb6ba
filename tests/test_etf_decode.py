"""The decoder: every tag, every option, every error."""

from __future__ import annotations

import gc
import itertools
import math
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire import etf_decode
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.terms import (
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
from tests.support.ids import stable
from tests.test_terms import fun

NODE = b"w\3a@b"
PID = Pid("a@b", 1, 2, 3)
REFERENCE = Reference("a@b", 3, (7, 8, 9))


def decode(data: bytes, **options: Any) -> Any:
    value, end = Decoder(**options).decode(data)
    assert end == len(data)
    assert Decoder().skip(data) == end
    return value


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def resized(data: bytes) -> bytes:
    """The fun with its size corrected."""
    return data[:1] + u32(len(data) - 1) + data[5:]


def float_text(text: bytes) -> bytes:
    return b"c" + text.ljust(31, b"\0")


# Forms that a real Erlang accepts; those it sends itself are in tests/golden/terms.txt.
FORMS: list[tuple[bytes, object]] = [
    (b"a\xff", 255),
    (b"b\0\0\0\5", 5),
    (b"b\xff\xff\xff\xff", -1),
    (b"n\0\0", 0),
    (b"n\1\1\0", 0),
    (b"n\1\1\5", -5),
    (b"n\x08\0\5" + bytes(7), 5),
    (b"o" + u32(9) + b"\0" + bytes(8) + b"\1", 1 << 64),
    (b"F" + struct.pack(">d", -1.5), -1.5),
    (float_text(b"1.50000000000000000000e+00"), 1.5),
    (float_text(b"-1.5"), -1.5),
    (b"w\0", Atom("")),
    (b"w\2\xc3\xa9", Atom("é")),
    (b"v\0\2\xc3\xa9", Atom("é")),
    (b"s\1\xe9", Atom("é")),
    (b"d\0\1\xe9", Atom("é")),
    (b"s\4true", True),
    (b"d\0\5false", False),
    (b"v\0\3nil", None),
    (b"h\0", ()),
    (b"i\0\0\0\1j", ([],)),
    (b"i\0\0\0\0", ()),
    (b"j", []),
    (b"k\0\0", []),
    (b"k\0\2\1\xff", [1, 255]),
    (b"l\0\0\0\0j", []),
    (b"l\0\0\0\0a\5", 5),
    (b"l\0\0\0\0l\0\0\0\0a\5", 5),
    (b"l\0\0\0\1a\1j", [1]),
    (b"l\0\0\0\1a\1k\0\2\2\3", [1, 2, 3]),
    (b"l\0\0\0\1a\1l\0\0\0\1a\2j", [1, 2]),
    (b"l\0\0\0\1a\1l\0\0\0\0j", [1]),
    (b"l\0\0\0\1a\1l\0\0\0\0a\2", ImproperList([1], 2)),
    (b"l\0\0\0\1a\1l\0\0\0\1a\2a\3", ImproperList([1, 2], 3)),
    (b"l\0\0\0\1a\1h\1k\0\1\1", ImproperList([1], ([1],))),
    (b"m\0\0\0\3abc", b"abc"),
    (b"m\0\0\0\0", b""),
    (b"M\0\0\0\0\0", b""),
    (b"M\0\0\0\1\x08a", b"a"),
    (b"M\0\0\0\1\3\xff", BitString(b"\xe0", 3)),
    (b"t\0\0\0\0", {}),
    (b"t\0\0\0\1a\1t\0\0\0\0", {1: {}}),
    (b"X" + NODE + u32(1) + u32(2) + u32(3), PID),
    (b"Xv\0\3a@b" + u32(1) + u32(2) + u32(3), PID),
    (b"Xs\3a@b" + u32(1) + u32(2) + u32(3), PID),
    (b"g" + NODE + u32(1) + u32(2) + b"\3", PID),
    (b"gd\0\3a@b" + u32(1) + u32(2) + b"\3", PID),
    (b"Y" + NODE + u32(5) + u32(3), Port("a@b", 5, 3)),
    (b"f" + NODE + u32(5) + b"\3", Port("a@b", 5, 3)),
    (b"x" + NODE + u64(5) + u32(3), Port("a@b", 5, 3)),
    (b"x" + NODE + u64(2**64 - 1) + u32(3), Port("a@b", 2**64 - 1, 3)),
    (b"Z\0\3" + NODE + u32(3) + u32(7) + u32(8) + u32(9), REFERENCE),
    (b"Z\0\3d\0\3a@b" + u32(3) + u32(7) + u32(8) + u32(9), REFERENCE),
    (b"Z\0\5" + NODE + u32(3) + 5 * u32(1), Reference("a@b", 3, (1,) * 5)),
    (b"r\0\3" + NODE + b"\3" + u32(7) + u32(8) + u32(9), REFERENCE),
    (b"e" + NODE + u32(7) + b"\3", Reference("a@b", 3, (7,))),
    (b"qw\1mw\1fa\2", Export("m", "f", 2)),
    (b"qd\0\1mv\0\1fb\0\0\0\2", Export("m", "f", 2)),
    (b"qw\1mw\4truea\0", Export("m", "true", 0)),
    (fun().external, fun()),
    (
        b"C" + u32(2) + b"\0w\2nrw\2ptw\1xw\1ya\7a\6",
        Record("nr", "pt", ["x", "y"], [7, 6]),
    ),
    (b"C" + u32(1) + b"\1w\1mw\4truew\3nilj", Record("m", "true", ["nil"], [[]], flag=1)),
]


@pytest.mark.parametrize(("data", "value"), FORMS, ids=lambda part: stable(part)[:40])
class TestEveryForm:
    def test_is_decoded(self, data: bytes, value: object) -> None:
        found = decode(data)
        assert found == value
        assert type(found) is type(value)

    def test_is_decoded_inside_of_others(self, data: bytes, value: object) -> None:
        around = b"h\3" + data + b"l\0\0\0\2" + data + data + b"j" + b"t\0\0\0\1w\1k" + data
        assert decode(around) == (value, [value, value], {"k": value})

    def test_is_truncated_anywhere(self, data: bytes, value: object) -> None:
        around = b"h\3w\2ok" + data + b"a\1"
        for options in ({}, {"opaque": True}, {"binary_as": "str"}):
            decoder = Decoder(**options)
            for end in range(len(around)):
                with pytest.raises(DecodeError) as caught:
                    decoder.decode(around[:end])
                assert 0 <= caught.value.offset <= end
                with pytest.raises(DecodeError):
                    decoder.skip(around[:end])

    def test_takes_any_buffer_and_offset(self, data: bytes, value: object) -> None:
        for buffer in (bytearray(b"xyz" + data + b"rest"), memoryview(b"xyz" + data + b"rest")):
            assert Decoder().decode(buffer, 3) == (value, 3 + len(data))
            assert Decoder().skip(buffer, 3) == 3 + len(data)


@pytest.mark.parametrize(
    ("data", "canonical"),
    [
        (b"g" + NODE + u32(1) + u32(2) + b"\3", PID.external),
        (b"Xv\0\3a@b" + u32(1) + u32(2) + u32(3), PID.external),
        (b"r\0\3s\3a@b\3" + u32(7) + u32(8) + u32(9), REFERENCE.external),
        (b"f" + NODE + u32(5) + b"\3", b"Y" + NODE + u32(5) + u32(3)),
        # A port is equal in both forms, and goes back in the one it came in.
        (b"Y" + NODE + u32(2**31) + u32(3), b"Y" + NODE + u32(2**31) + u32(3)),
        (b"x" + NODE + u64(5) + u32(3), b"x" + NODE + u64(5) + u32(3)),
    ],
)
def test_old_forms_of_identifiers_become_the_canonical_one(data: bytes, canonical: bytes) -> None:
    assert decode(data).external == canonical
    assert Encoder().encode(decode(data)) == canonical
    assert decode(data, opaque=True) == Term(canonical)


NO_TERMS: list[tuple[bytes, str]] = [
    (b"\xc8", "unknown tag 200"),
    (b"y\0\0", r"LOCAL_EXT \(tag 121\): only the node"),
    (b"R\0", "ATOM_CACHE_REF .* without an atom table"),
    (b"h\1P\0\0\0\2abc", "compressed term"),
    (b"u\0\0\0\0", "FUN_EXT .* old form"),
    (b"\x83a\1", "version byte"),
    (b"w\2\xff\xfe", "not UTF-8"),
    (b"w\3\xed\xa0\x80", "not UTF-8"),
    (b"v\1\0" + b"a" * 256, "256 characters"),
    (b"d\1\0" + b"a" * 256, "256 characters"),
    (b"F\x7f\xf8" + bytes(6), "no finite number"),
    (b"F\x7f\xf0" + bytes(6), "no finite number"),
    (float_text(b"1.5e400"), "no finite number"),
    (float_text(b"inf"), "no finite number"),
    (float_text(b"15"), "no finite number"),
    (float_text(b" 1.5"), "no finite number"),
    (float_text(b"1.5e0xx"), "no finite number"),
    (float_text(b"1_0.5"), "no finite number"),
    (b"M\0\0\0\0\5", "BIT_BINARY_EXT"),
    (b"M\0\0\0\1\0a", "BIT_BINARY_EXT"),
    (b"M\0\0\0\1\x09a", "BIT_BINARY_EXT"),
    (b"Z\0\0" + NODE + u32(1), "0 words"),
    (b"Z\0\6" + NODE + u32(1) + 6 * u32(1), "6 words"),
    (b"Z\1\1" + NODE + u32(1) + 257 * u32(1), "257 words"),
    (b"r\0\6" + NODE + b"\1" + 6 * u32(1), "6 words"),
    (b"Xa\1" + bytes(20), "an atom should be here, and the tag is 97"),
    (b"Xw\3\xff\xffb" + u32(1) + u32(2) + u32(3), "not UTF-8"),
    (b"XR\0" + bytes(20), "ATOM_CACHE_REF"),
    (b"Z\0\1w\1\xff" + u32(1) + u32(1), "not UTF-8"),
    (b"qw\1mw\1fj", "arity"),
    (b"qw\1mw\1fb\0\0\1\0", "arity"),
    (b"qw\1ma\1a\1", "an atom should be here"),
    (b"C" + u32(0) + b"\0a\1w\1n", r"tag 67.*1 for a name"),
    (b"l\xff\xff\xff\xffa\1j", "announces 4294967296 terms and 3 bytes follow"),
    (b"i\xff\xff\xff\xffa\1", "announces 4294967295 terms"),
    (b"h\3a\1", "announces 3 terms and 2 bytes"),
    (b"t\xff\xff\xff\xffa\1", "announces 8589934590 terms"),
    (b"C\xff\xff\xff\xff\0w\1m", "announces"),
    (b"m\xff\xff\xff\xffabc", "truncated"),
    (b"n\xff\0abc", "truncated"),
    (b"o\xff\xff\xff\xff\0abc", "truncated"),
    (b"", "truncated"),
    (b"t\0\0\0\2a\1a\1a\1a\2", "key 1 twice"),
    (b"t\0\0\0\2a\1a\1b\0\0\0\1a\2", "key 1 twice"),
    (b"t\0\0\0\2m\0\0\0\1aa\1m\0\0\0\1aa\2", 'key "a" twice'),
    (b"t\0\0\0\2ja\1ja\2", "twice"),
    (b"t\0\0\0\2h\1a\1a\1h\1a\1a\2", r"key \{1\} twice"),
    (b"t\0\0\0\3a\1a\1w\4truea\2w\4truea\2", "twice"),
    (b"t\0\0\0\2l\0\0\0\1a\1a\1a\1l\0\0\0\1a\1a\1a\1", "twice"),
    (fun().external[:4] + b"\x01" + fun().external[5:], "NEW_FUN_EXT .* claims"),
    (resized(fun().external.replace(b"w\1q", b"a\1")), "NEW_FUN_EXT .* lacks"),
    (resized(fun().external.replace(b"X", b"h\0").replace(NODE, b"")), "NEW_FUN_EXT"),
]


@pytest.mark.parametrize(("data", "message"), NO_TERMS, ids=lambda part: stable(part)[:40])
def test_what_is_no_term_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        Decoder().decode(data)
    assert f"(at byte {caught.value.offset})" in str(caught.value)
    for around in (b"l\0\0\0\2a\1" + data, b"t\0\0\0\1a\1" + data):
        with pytest.raises(DecodeError):
            Decoder().decode(around)


@pytest.mark.parametrize("tag", [tag for tag in range(256) if tag != 106])
def test_every_tag_is_known_or_refused_by_name_and_offset(tag: int) -> None:
    with pytest.raises(DecodeError) as caught:
        Decoder().decode(b"h\2a\1" + bytes((tag,)))
    if tag in {*b"wvsdabFcjnoMmkhiltXgYfxZreqpC"}:
        assert "truncated" in str(caught.value)
    else:
        assert str(tag) in str(caught.value)
        assert caught.value.offset == 4


def test_an_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DecodeError("what", 7)))
    assert (type(error), str(error), error.offset) == (DecodeError, "what (at byte 7)", 7)


class TestRuns:
    """Numbers in long lists are taken in chunks; that must not show."""

    @pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 39, 40, 127, 128, 519, 520, 2000])
    @pytest.mark.parametrize("extra", [[], [1], [-1], [1.5], ["é"], [[]], [1 << 40]])
    @pytest.mark.parametrize("make", [lambda i: i * 7919 - 2**31, lambda i: i / 7 - 100])
    def test_of_any_length_with_something_behind(
        self, count: int, extra: list[Any], make: Callable[[int], Any]
    ) -> None:
        items = [make(i) for i in range(count)]
        for whole in (items + extra, extra + items, items + extra + items, items + extra + extra):
            data = b"l" + u32(len(whole)) + b"".join(map(one_by_one, whole)) + b"j"
            expected = [item.encode() if isinstance(item, str) else item for item in whole]
            assert decode(data) == expected
            assert list(map(type, decode(data))) == list(map(type, expected))

    @given(st.lists(st.sampled_from([1, 300, 1.5, -70000, 2.5, "x"]), min_size=16, max_size=200))
    def test_mixed_at_random(self, items: list[Any]) -> None:
        data = b"l" + u32(len(items)) + b"".join(map(one_by_one, items)) + b"j"
        assert decode(data, binary_as="str") == items

    def test_in_tuples_and_maps_behind_a_long_list(self) -> None:
        numbers = tuple(range(1000, 1100))
        pairs = b"".join(one_by_one(number) * 2 for number in numbers)
        data = b"h\2l" + u32(17) + one_by_one(-1) * 17 + b"jt" + u32(100) + pairs
        assert decode(data) == ([-1] * 17, dict(zip(numbers, numbers, strict=True)))

    @pytest.mark.parametrize("at", [0, 7, 8, 100, 511, 512, 599])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_float_that_is_no_number_is_found(self, at: int, bad: float) -> None:
        items = [1e308] * 600
        items[at] = bad
        data = b"l" + u32(600) + b"".join(map(one_by_one, items)) + b"j"
        with pytest.raises(DecodeError, match="no finite number") as caught:
            Decoder().decode(data)
        assert data[caught.value.offset : caught.value.offset + 1] == b"F"

    def test_whose_sum_overflows_are_fine(self) -> None:
        data = b"l" + u32(600) + one_by_one(1e308) * 600 + b"j"
        assert decode(data) == [1e308] * 600


def one_by_one(item: Any) -> bytes:
    """A scalar as BEAM writes it."""
    if type(item) is int and not 0 <= item < 256 and -(2**31) <= item < 2**31:
        return b"b" + item.to_bytes(4, "big", signed=True)
    if type(item) is float:
        return b"F" + struct.pack(">d", item)
    return Encoder().encode(item)


class TestBinaries:
    def test_as_str(self) -> None:
        assert decode(b"m\0\0\0\2\xc3\xa9", binary_as="str") == "é"
        assert decode(b"M\0\0\0\2\x08\xc3\xa9", binary_as="str") == "é"

    def test_as_bytearray(self) -> None:
        for data in (b"m\0\0\0\1a", b"M\0\0\0\1\x08a"):
            assert decode(data, binary_as="bytearray") == bytearray(b"a")
            assert type(decode(data, binary_as="bytearray")) is bytearray

    @pytest.mark.parametrize("data", [b"m\0\0\0\3ab\xff", b"M\0\0\0\3\x08ab\xff"])
    def test_that_cannot_be_str_are_an_error_with_place_and_remedy(self, data: bytes) -> None:
        with pytest.raises(
            DecodeError, match=r"3 bytes is not UTF-8 .*binary_as='bytes'"
        ) as caught:
            Decoder(binary_as="str").decode(b"h\1" + data)
        assert caught.value.offset == 2 + data.index(b"\xff")

    def test_any_other_form_is_refused(self) -> None:
        with pytest.raises(ValueError, match="binary_as"):
            Decoder(binary_as="text")  # type: ignore[arg-type]


class TestAtoms:
    class Special(Atom):
        __slots__ = ()

    def test_are_of_the_class_asked_for(self) -> None:
        for data in (b"w\2ok", b"v\0\2ok", b"s\2ok"):
            assert type(decode(data, atom=self.Special)) is self.Special
        export = decode(b"qw\1mw\1fa\1", atom=self.Special)
        assert type(export.module) is self.Special

    def test_constants_are_not(self) -> None:
        assert decode(b"h\3w\4truew\5falsew\3nil", atom=self.Special) == (True, False, None)

    def test_are_remembered_up_to_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etf_decode, "MAX_CACHED_ATOMS", 10)
        decoder = Decoder()
        names = [f"name{i}" for i in range(25)]
        data = Encoder().encode([*map(Atom, names), *map(Atom, names)])
        assert decoder.decode(data)[0] == names + names
        assert len(decoder._atoms) <= 10
        same = Decoder().decode(b"h\2w\2okw\2ok")[0]
        assert same[0] is same[1]

    def test_a_cut_name_is_not_taken_for_a_remembered_one(self) -> None:
        decoder = Decoder()
        assert decoder.decode(b"w\2ok") == ("ok", 4)
        with pytest.raises(DecodeError, match="truncated"):
            decoder.decode(b"h\2w\2okw\5ok")


class TestIdentifiers:
    def test_pids_are_remembered_up_to_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etf_decode, "MAX_CACHED_PIDS", 10)
        decoder = Decoder()
        pids = [Pid("a@b", i, 0, 1) for i in range(25)]
        data = Encoder().encode(pids)
        assert decoder.decode(data)[0] == pids
        assert decoder.decode(data)[0] == pids
        assert len(decoder._pids) <= 10

    def test_nodes_of_references_are_remembered_up_to_a_bound(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etf_decode, "MAX_CACHED_HEADS", 10)
        decoder = Decoder()
        references = [Reference(f"a@b{i % 15}", 1, (i,) * (1 + i % 5)) for i in range(50)]
        data = Encoder().encode(references)
        assert decoder.decode(data)[0] == references
        assert decoder.decode(data)[0] == references
        assert len(decoder._reference_heads) <= 10

    def test_nodes_of_pids_are_remembered_up_to_a_bound(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etf_decode, "MAX_CACHED_HEADS", 10)
        decoder = Decoder()
        pids = [Pid(f"a@b{i % 15}", i, i % 3, i % 2) for i in range(50)]
        data = Encoder().encode(pids)
        assert decoder.decode(data)[0] == pids
        assert decoder.decode(data)[0] == pids
        assert len(decoder._pid_heads) <= 10

    @pytest.mark.parametrize("opaque", [False, True])
    def test_a_pid_of_a_known_node_is_as_any_other(self, opaque: bool) -> None:
        decoder = Decoder(opaque=opaque)
        for number in range(3):
            pid = Pid("ä@b", number, 5, 2**32 - 1)
            found, end = decoder.decode(b"_" + pid.external + b"j", 1)
            assert (found, end) == (Term(pid.external) if opaque else pid, 1 + len(pid.external))
            for size in range(len(pid.external)):
                with pytest.raises(DecodeError, match="truncated"):
                    decoder.decode(pid.external[:size])


OPAQUE: list[object] = [
    PID,
    Port("a@b", 5, 3),
    REFERENCE,
    fun(),
    Export("m", "f", 2),
    BitString(b"\xe0", 3),
    ImproperList([Atom("alias")], REFERENCE),
    ImproperList([ImproperList([1], 2), (1,)], b""),
    Record("m", "n", ["a"], [PID]),
]


class TestOpaque:
    @pytest.mark.parametrize("value", OPAQUE, ids=stable)
    def test_terms_arrive_whole_and_go_back_unchanged(self, value: object) -> None:
        data = Encoder().encode((1, value, [value], {b"k": value, value: 1}))
        term = Term(Encoder().encode(value))
        found = decode(data, opaque=True)
        assert found == (1, term, [term], {b"k": term, term: 1})
        assert Encoder().encode(found) == data

    def test_what_python_has_a_form_for_is_decoded(self) -> None:
        data = Encoder().encode([1, 1.5, b"a", Atom("b"), None, (), [], {}])
        assert decode(data, opaque=True) == [1, 1.5, b"a", "b", None, (), [], {}]

    def test_terms_are_of_the_class_asked_for(self) -> None:
        class Special(Term):
            __slots__ = ()

        data = Encoder().encode([*OPAQUE, {b"a": 1}])
        data = data[:-1].replace(b"m\0\0\0\1a", b"j") + b"j"  # a list as key of the map
        *terms, mapping = decode(data, opaque=True, term=Special)
        assert {type(term) for term in [*terms, *mapping]} == {Special}

    def test_hooks_do_not_see_what_a_fun_holds(self) -> None:
        struct_ = Encoder().encode({Atom("__struct__"): Atom("S")})
        data = fun().external[:26] + u32(1) + fun().external[30:] + struct_
        data = resized(data)
        assert decode(data).free == ({"__struct__": "S"},)
        hooked: list[object] = []
        assert decode(data, opaque=True, struct_hook=hooked.append) == Term(data)
        assert hooked == []

    def test_what_a_fun_holds_is_checked(self) -> None:
        data = fun().external[:26] + u32(1) + fun().external[30:] + b"w\1\xff"
        data = resized(data)
        with pytest.raises(DecodeError, match="not UTF-8"):
            Decoder(opaque=True).decode(data)


class TestMapKeys:
    def test_that_cannot_be_hashed_are_terms(self) -> None:
        data = (
            b"t\0\0\0\4" + b"j" + b"a\1" + b"k\0\1\1" + b"a\2" + b"t\0\0\0\0" + b"a\3" + b"h\1ja\4"
        )
        expected = {Term(b"j"): 1, Term(b"k\0\1\1"): 2, Term(b"t\0\0\0\0"): 3, Term(b"h\1j"): 4}
        assert decode(data) == expected
        assert Encoder().encode(decode(data)) == data

    def test_bytearrays_are_terms(self) -> None:
        data = b"t\0\0\0\1m\0\0\0\1aa\1"
        assert decode(data, binary_as="bytearray") == {Term(b"m\0\0\0\1a"): 1}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (b"a\1", b"F" + struct.pack(">d", 1.0)),
            (b"a\1", b"w\4true"),
            (b"F" + bytes(8), b"F\x80" + bytes(7)),
            (b"w\5false", b"a\0"),
            (b"h\1a\1", b"h\1w\4true"),
            (b"l\0\0\0\1a\1a\1", b"l\0\0\0\1w\4truea\1"),
            (b"C\0\0\0\1\0w\1mw\1nw\1aa\1", b"C\0\0\0\1\0w\1mw\1nw\1aw\4true"),
            (b"h\1h\2a\0j", b"h\1h\2w\5falsej"),
        ],
    )
    def test_that_python_cannot_tell_apart_both_stay(self, one: bytes, other: bytes) -> None:
        for data in (
            b"t\0\0\0\2" + one + b"a\1" + other + b"a\2",
            b"t\0\0\0\2" + other + b"a\1" + one + b"a\2",
            b"t\0\0\0\5" + b"a\x07j" + one + b"a\1" + b"a\x08j" + other + b"a\2" + b"a\x09j",
        ):
            assert Encoder().encode(decode(data)) == data
            assert set(decode(data).values() if data[4] == 2 else ()) in ({1, 2}, set())

    def test_an_atom_and_a_str_are_one_key_and_the_last_wins(self) -> None:
        data = b"t\0\0\0\2w\1aa\1m\0\0\0\1aa\2"
        found = decode(data, binary_as="str")
        assert found == {"a": 2}
        assert [type(key) for key in found] == [str]
        data = b"t\0\0\0\2m\0\0\0\1aa\1w\1aa\2"
        found = decode(data, binary_as="str")
        assert found == {"a": 2}
        assert [type(key) for key in found] == [Atom]
        assert decode(data) == {b"a": 1, "a": 2}

    def test_tuples_are_keys_until_they_nest_too_deep(self) -> None:
        for depth, kind in (
            (etf_decode.MAX_KEY_DEPTH, tuple),
            (etf_decode.MAX_KEY_DEPTH + 1, Term),
        ):
            (key,) = decode(b"t\0\0\0\1" + b"h\1" * depth + b"a\1" + b"j")
            assert type(key) is kind

    @pytest.mark.untraced
    def test_a_tuple_nested_100000_deep_does_not_end_the_process(self) -> None:
        nested = b"h\1" * 99_990 + b"a\1"
        assert decode(b"t\0\0\0\1" + nested + b"j") == {Term(nested): []}

    def test_improper_lists_and_records_are_keys_where_they_can_be_hashed(self) -> None:
        for key in (ImproperList([1], 2), Record("m", "n", ["a"], [(1,)])):
            assert decode(b"t\0\0\0\1" + Encoder().encode(key) + b"j") == {key: []}
        data = Encoder().encode(ImproperList([[]], 2))
        assert decode(b"t\0\0\0\1" + data + b"j") == {Term(data): []}


class TestStructHook:
    def test_takes_the_place_of_maps_with_the_key(self) -> None:
        data = Encoder().encode(
            [{Atom("__struct__"): Atom("Elixir.S"), Atom("a"): 1}, {Atom("a"): 2}]
        )
        assert decode(data, struct_hook=lambda fields: fields["a"]) == [1, {"a": 2}]

    def test_runs_inside_out(self) -> None:
        key = Atom("__struct__")
        inner = {key: Atom("In"), b"x": 1}
        data = Encoder().encode({key: Atom("Out"), b"x": [inner, inner], b"y": (inner,)})
        seen: list[Any] = []

        def hook(fields: dict[Any, Any]) -> object:
            seen.append(dict(fields))
            return f"<{fields[key]}>"

        assert decode(data, struct_hook=hook) == "<Out>"
        assert seen[:3] == [inner] * 3
        assert seen[3] == {key: "Out", b"x": ["<In>", "<In>"], b"y": ("<In>",)}

    def test_results_can_be_keys(self) -> None:
        struct_ = Encoder().encode({Atom("__struct__"): Atom("S")})
        data = b"t\0\0\0\2" + struct_ + b"a\1" + b"a\1a\2"
        assert decode(data, struct_hook=lambda _: frozenset((0,))) == {frozenset((0,)): 1, 1: 2}
        assert decode(data, struct_hook=lambda _: {0}) == {Term(struct_): 1, 1: 2}

    @pytest.mark.parametrize(
        ("result", "expected"),
        [
            ([2, 3], [1, 2, 3]),
            (ImproperList([2], 3), ImproperList([1, 2], 3)),
            (2, ImproperList([1], 2)),
        ],
    )
    def test_results_can_be_the_tail_of_a_list(self, result: object, expected: object) -> None:
        data = b"l\0\0\0\1a\1" + Encoder().encode({Atom("__struct__"): Atom("S")})
        assert decode(data, struct_hook=lambda _: result) == expected

    @pytest.mark.parametrize("options", [{}, {"binary_as": "str"}])
    def test_strings_are_no_structs(self, options: dict[str, Any]) -> None:
        calls: list[object] = []
        for fields in (
            {b"__struct__": Atom("S")},
            {Atom("__struct__"): b"S"},
            {b"__struct__": b"S"},
        ):
            decode(Encoder().encode(fields), struct_hook=calls.append, **options)
        assert calls == []

    def test_finds_structs_whatever_the_class_of_atoms(self) -> None:
        class Distinct(Atom):
            __slots__ = ()

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Distinct) and str.__eq__(self, other)

            def __hash__(self) -> int:
                return hash((Distinct, str.__str__(self)))

        data = Encoder().encode({Atom("__struct__"): Atom("S")})
        assert decode(data, atom=Distinct, struct_hook=len) == 1

    @pytest.mark.parametrize("error", [IndexError, KeyError, struct.error, TypeError, ValueError])
    def test_errors_come_through(self, error: type[Exception]) -> None:
        def fail(_: object) -> object:
            raise error("mine")

        with pytest.raises(error, match="mine") as caught:
            decode(Encoder().encode([{Atom("__struct__"): Atom("S")}]), struct_hook=fail)
        assert type(caught.value) is error

    def test_its_unicode_errors_come_through(self) -> None:
        data = Encoder().encode([{Atom("__struct__"): Atom("S"), Atom("x"): b"\xff"}])
        with pytest.raises(UnicodeDecodeError):
            decode(data, struct_hook=lambda fields: fields[Atom("x")].decode())

    def test_is_not_called_for_a_truncated_struct(self) -> None:
        data = Encoder().encode({Atom("__struct__"): Atom("S"), Atom("x"): b"abc"})
        for end in range(len(data)):
            with pytest.raises(DecodeError):
                Decoder(struct_hook=pytest.fail).decode(data[:end])  # type: ignore[arg-type]


class TestRawStructs:
    KEY = Atom("__struct__")
    BINARY = Atom("Elixir.Serde.Binary")
    TERM = Atom("Elixir.Serde.Term")

    def decode(self, value: object, **options: Any) -> Any:
        data = Encoder().encode(value)
        names = [self.BINARY, self.TERM]
        return decode(data, struct_hook=dict, raw_structs=names, binary_as="str", **options)

    def test_reach_the_hook_with_their_fields_undecoded(self) -> None:
        found = self.decode([{self.KEY: self.BINARY, Atom("value"): b"\xff"}, b"text"])
        assert found == [{"__struct__": self.BINARY, "value": Term(b"m\0\0\0\1\xff")}, "text"]
        assert isinstance(found[0]["__struct__"], Atom)

    def test_wherever_the_key_stands(self) -> None:
        found = self.decode({Atom("value"): b"\xff", self.KEY: self.BINARY, Atom("z"): 1})
        assert found == {
            "value": Term(b"m\0\0\0\1\xff"),
            "__struct__": self.BINARY,
            "z": Term(b"a\1"),
        }

    def test_the_outermost_holds_those_inside(self) -> None:
        inner = {self.KEY: self.TERM, Atom("value"): 1}
        found = self.decode(({self.KEY: self.TERM, Atom("value"): [inner]}, inner))
        assert found == (
            {"__struct__": self.TERM, "value": Term(Encoder().encode([inner]))},
            {"__struct__": self.TERM, "value": Term(b"a\1")},
        )

    @pytest.mark.untraced
    def test_may_be_deep_in_other_terms(self) -> None:
        value: Any = {self.KEY: self.BINARY, Atom("value"): b"\xff"}
        for _ in range(3):
            value = [(1.5, {b"k": value}, [ImproperList([value], None)])]
        assert "Term" in repr(self.decode(value))
        # 9 MB of terms around it, walked once.
        numbers = [1.5] * 1_000_000
        found = self.decode([numbers, {self.KEY: self.TERM, Atom("value"): 1}])
        assert found[1]["value"] == Term(b"a\1")

    def test_may_be_keys(self) -> None:
        data = b"t\0\0\0\1" + Encoder().encode({self.KEY: self.TERM, Atom("value"): 1}) + b"j"
        decoder = Decoder(struct_hook=lambda fields: fields["value"], raw_structs=[self.TERM])
        assert decoder.decode(data)[0] == {Term(b"a\1"): []}

    def test_other_maps_are_decoded(self) -> None:
        values: list[object] = [
            {self.KEY: Atom("Elixir.Serde.Other"), Atom("value"): b"a"},
            {self.KEY: b"Elixir.Serde.Term", Atom("value"): b"a"},
            {self.KEY: self.TERM, b"value": b"a"},
            {Atom("a"): self.TERM},
            {self.TERM: []},
            {},
            [b"Elixir.Serde.Term"],
        ]
        for value in values:
            assert "Term<" not in repr(self.decode(value))

    def test_what_they_hold_is_checked(self) -> None:
        data = Encoder().encode({self.KEY: self.TERM, Atom("value"): Term(b"w\1\xff")})
        decoder = Decoder(struct_hook=dict, raw_structs=[self.TERM])
        with pytest.raises(DecodeError, match="not UTF-8") as caught:
            decoder.decode(data)
        assert data[caught.value.offset] == 0xFF

    def test_are_truncated_anywhere(self) -> None:
        decoder = Decoder(struct_hook=dict, raw_structs=[self.TERM, self.BINARY])
        data = Encoder().encode([{self.KEY: self.TERM, Atom("value"): b"abc"}])
        for end in range(len(data)):
            with pytest.raises(DecodeError):
                decoder.decode(data[:end])

    def test_errors_of_the_hook_come_through(self) -> None:
        data = Encoder().encode({self.KEY: self.TERM, Atom("value"): 1})

        def fail(_: object) -> object:
            raise IndexError("mine")

        with pytest.raises(IndexError, match="mine"):
            Decoder(struct_hook=fail, raw_structs=[self.TERM]).decode(data)


class TestDepth:
    @pytest.mark.untraced
    @pytest.mark.parametrize(
        ("opened", "closed"),
        [(b"h\1", b""), (b"l\0\0\0\1", b"j"), (b"t\0\0\0\1w\1k", b""), (b"i\0\0\0\1", b"")],
    )
    def test_is_bounded_by_max_depth_and_nothing_else(self, opened: bytes, closed: bytes) -> None:
        for depth in (10, 100_000):
            data = opened * depth + b"j" + closed * depth
            value, end = Decoder(max_depth=depth).decode(data)
            assert end == len(data)
            assert unnested(value) == depth
            with pytest.raises(DecodeError, match=f"deeper than max_depth, {depth - 1} levels"):
                Decoder(max_depth=depth - 1).decode(data)
            assert Decoder().skip(data) == len(data)

    @pytest.mark.untraced
    def test_a_million_levels_are_refused_or_decoded(self) -> None:
        data = b"h\1" * 1_000_000 + b"j"
        with pytest.raises(DecodeError, match="max_depth, 100000 levels"):
            Decoder().decode(data)
        value, _ = Decoder(max_depth=1_000_000).decode(data)
        assert unnested(value) == 1_000_000

    @pytest.mark.untraced
    def test_a_list_in_cells_is_not_deep(self) -> None:
        cells = b"l\0\0\0\1a\1" * 200_000 + b"j"
        assert decode(cells) == [1] * 200_000

    def test_improper_lists(self) -> None:
        data = b"l\0\0\0\1" * 1000 + b"j" + b"a\1" * 1000
        value: Any = decode(data)
        for _ in range(1000):
            value = value.elements[0]
        assert value == []
        assert decode(b"l\0\0\0\1" * 50 + b"j" + b"a\1" * 50, opaque=True)

    @pytest.mark.parametrize(
        ("opened", "closed"),
        [(b"l\0\0\0\1", b"a\1"), (b"t\0\0\0\1", b"a\1")],
        ids=["improper lists", "maps as keys"],
    )
    def test_opaque_terms_in_opaque_terms_are_not_copied_without_end(
        self, opened: bytes, closed: bytes
    ) -> None:
        depth = 50_000
        data = opened * depth + b"j" + closed * depth
        with pytest.raises(DecodeError, match="nested so deep that more than 64 times"):
            Decoder(opaque=True).decode(data)


def unnested(value: Any) -> int:
    depth = 0
    while value:
        value = value["k"] if isinstance(value, dict) else value[0]
        depth += 1
    return depth


def test_one_decoder_serves_many_threads() -> None:
    decoder = Decoder(struct_hook=lambda fields: fields["a"])
    failures: list[object] = []

    def work(number: int) -> None:
        key = Atom("__struct__")
        term = [[Atom(f"a{number}{i}"), {key: Atom("S"), Atom("a"): i}] for i in range(200)]
        data = Encoder().encode(term)
        for _ in range(20):
            if decoder.decode(data)[0] != [[f"a{number}{i}", i] for i in range(200)]:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_funs_are_decoded_with_what_they_hold() -> None:
    data = fun().external[:26] + u32(2) + fun().external[30:] + b"a\1" + b"k\0\1\7"
    data = resized(data)
    value = decode(data)
    assert isinstance(value, Fun)
    assert value.free == (1, [7])
    assert value.external == data
    assert Encoder().encode([value]) == b"l\0\0\0\1" + data + b"j"


# Work that is in proportion to the data


def map_of(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"t" + len(pairs).to_bytes(4, "big") + b"".join(key + value for key, value in pairs)


def big(number: int) -> bytes:
    digits = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return b"n" + bytes([len(digits), 0]) + digits


ONE = b"a\x01"
ONE_POINT_ZERO = b"F\x3f\xf0\0\0\0\0\0\0"
SAME_HASH = 2**61 - 1  # Python's hash of an integer is its remainder


class Steps:
    """Counts the terms that are passed over without being built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = etf_decode._step

        def step(data: bytes, pos: int) -> tuple[int, int]:
            self.count += 1
            return real(data, pos)

        monkeypatch.setattr(etf_decode, "_step", step)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize(
    "around",
    [
        pytest.param(lambda inner: map_of((inner, ONE)), id="a map as key of a map"),
        pytest.param(
            lambda inner: map_of((b"h\1" + inner, ONE)), id="a map in a tuple as key of a map"
        ),
        pytest.param(
            lambda inner: map_of((ONE, inner), (ONE_POINT_ZERO, ONE)),
            id="a map in a map with keys that are equal in Python",
        ),
    ],
)
def test_maps_in_maps_are_read_twice_and_not_once_for_each_level(
    monkeypatch: pytest.MonkeyPatch, around: Callable[[bytes], bytes], opaque: bool
) -> None:
    data = map_of((ONE, b"l" + (5000).to_bytes(4, "big") + 5000 * ONE + b"j"))
    for _ in range(50):
        data = around(data)
    steps = Steps(monkeypatch)
    value, end = Decoder(opaque=opaque).decode(data)
    assert (end, len(value)) == (len(data), data[4])
    assert steps.count < 7000
    assert Decoder(opaque=opaque).decode(Encoder().encode(value))[0] == value


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(lambda number: number, id="integers"),
        pytest.param(lambda number: b"h\1" + number, id="tuples"),
        pytest.param(lambda number: b"h\1h\1" + number, id="tuples in tuples"),
        pytest.param(lambda number: b"l\0\0\0\1" + number + ONE, id="improper lists"),
    ],
)
def test_keys_of_the_same_hash_become_terms(around: Callable[[bytes], bytes]) -> None:
    """A dict would compare each of them with each: 100,000 of them take minutes."""
    numbers = [SAME_HASH * (n + 1) for n in range(1000)]
    pairs = [(around(big(number)), ONE) for number in numbers]
    data = map_of((b"m\0\0\0\1k", ONE), *pairs)
    value, _ = Decoder().decode(data)
    assert len(value) == 1001
    assert value[b"k"] == 1
    assert [type(key) for key in value] == [bytes] + [Term] * 1000
    assert Encoder().encode(value) == data


def test_few_keys_of_the_same_hash_stay_what_they_are() -> None:
    """Those of -1 and -2 are the same: a grid of them is nothing unusual."""
    count = etf_decode.MAX_EQUAL_HASHES
    numbers = [SAME_HASH * (n + 1) for n in range(count)]
    others = list(range(1, 1000))  # 0 has that hash, too
    wanted = dict.fromkeys([*numbers, *others], 1)
    assert Decoder().decode(Encoder().encode(wanted))[0] == wanted
    grid = dict.fromkeys(itertools.product((-1, -2), repeat=6), 0)
    assert Decoder().decode(Encoder().encode(grid))[0] == grid


def test_a_key_twice_among_many_of_the_same_hash() -> None:
    pairs = [(big(SAME_HASH * (n + 1)), ONE) for n in range(100)]
    with pytest.raises(DecodeError, match="twice"):
        Decoder().decode(map_of(*pairs, pairs[0]))


def test_funs_in_funs_are_bounded() -> None:
    """Each holds its external form: a megabyte of them would be eight gigabytes."""
    data = ONE
    for _ in range(200):
        body = b"w\1m" + ONE + ONE + PID.external + data
        rest = bytes([0]) + bytes(16) + bytes(4) + (1).to_bytes(4, "big") + body
        data = b"p" + (4 + len(rest)).to_bytes(4, "big") + rest
    with pytest.raises(DecodeError, match="would be copied"):
        Decoder().decode(data)


RAW_NAME = "Elixir.Raw"
RAW = {Atom("__struct__"): Atom(RAW_NAME), Atom("field"): [1, b"a"]}
LARGE = b"x" * etf_decode.LARGE


class TestViewedStructs:
    KEY = Atom("__struct__")
    VIEWED = Atom("Elixir.Viewed")

    def struct(self, **fields: object) -> dict[Atom, object]:
        return {self.KEY: self.VIEWED, **{Atom(name): value for name, value in fields.items()}}

    def decoder(self, **options: Any) -> Decoder:
        return Decoder(struct_hook=dict, view_structs=[self.VIEWED], **options)

    @pytest.mark.parametrize("binary_as", ["bytes", "str", "bytearray"])
    def test_their_binaries_are_views(self, binary_as: Literal["bytes", "str"]) -> None:
        data = Encoder().encode([self.struct(data=b"\xff\0", shape=(2, 3), type=Atom("f"))])
        [found] = self.decoder(binary_as=binary_as).decode(data)[0]
        assert found == {
            self.KEY: self.VIEWED,
            "data": b"\xff\0",
            "shape": (2, 3),
            "type": Atom("f"),
        }
        assert type(found["data"]) is memoryview
        assert found["data"].obj is data
        assert found["data"].readonly

    def test_other_fields_are_read_plainly(self) -> None:
        inner = {self.KEY: Atom("Elixir.Inner"), Atom("text"): b"\xff"}
        data = Encoder().encode(self.struct(data=inner, names=[b"x"]))
        found, _ = self.decoder(binary_as="str", opaque=True).decode(data)
        assert found["data"] == inner
        assert found["names"] == [b"x"]

    def test_what_only_begins_like_their_name_is_none(self) -> None:
        other = {self.KEY: Atom("Elixir.Viewed.Other"), Atom("data"): b"x"}
        for term in (other, [other, self.VIEWED], b"Elixir.Viewed"):
            found, _ = Decoder(view_structs=[self.VIEWED]).decode(Encoder().encode(term))
            assert found == term

    def test_those_that_are_kept_whole(self) -> None:
        term = [self.struct(data=b"\xff"), {b"a": self.struct()}, b"text"]
        data = Encoder().encode(term)
        decoder = Decoder(struct_hook=dict, term_structs=[self.VIEWED], binary_as="str")
        found, end = decoder.decode(data)
        assert end == len(data)
        assert found == [
            Term(Encoder().encode(term[0])),
            {"a": Term(Encoder().encode(self.struct()))},
            "text",
        ]

    @pytest.mark.parametrize("kind", ["view_structs", "term_structs"])
    def test_broken_ones(self, kind: str) -> None:
        data = Encoder().encode([self.struct(data=b"abc", names=[1.5, b"x"])])
        decoder = Decoder(struct_hook=dict, **{kind: [self.VIEWED]})  # type: ignore[arg-type]
        for size in range(len(data)):
            with pytest.raises(DecodeError):
                decoder.decode(data[:size])
        with pytest.raises(DecodeError, match="unknown tag 0"):
            decoder.decode(data.replace(b"\x46\x3f\xf8", b"\0\x3f\xf8"))


class TestRawStructsInLargeTerms:
    """What is of a few terms is walked, and not searched."""

    def found(self, term: object) -> list[Any]:
        seen: list[Any] = []

        def hook(struct: dict[Any, Any]) -> object:
            seen.append(struct.get(Atom("field")))
            return "made"

        Decoder(struct_hook=hook, raw_structs=[RAW_NAME]).decode(Encoder().encode(term))
        return seen

    @pytest.mark.parametrize("many", [[], list(range(1000, 1000 + etf_decode.FEW))])
    def test_they_are_found(self, many: list[int]) -> None:
        raw = Term(Encoder().encode([1, b"a"]))
        assert self.found({b"a": LARGE, b"b": [RAW], b"c": many}) == [raw]
        assert self.found([RAW, {b"a": [RAW, LARGE, many]}]) == [raw, raw]

    @pytest.mark.parametrize("many", [[], list(range(1000, 1000 + etf_decode.FEW))])
    def test_where_there_are_none(self, many: list[int]) -> None:
        assert self.found([LARGE, many, RAW_NAME.encode()]) == []
        other = {Atom("__struct__"): Atom("Elixir.Other"), Atom("field"): 7}
        assert self.found([LARGE, many, other]) == [7]

    def test_what_is_cut_off(self) -> None:
        decoder = Decoder(struct_hook=dict, raw_structs=[RAW_NAME])
        data = Encoder().encode([LARGE, RAW])
        for cut in (1, 10, len(data) - etf_decode.LARGE // 2):
            with pytest.raises(DecodeError, match="truncated"):
                decoder.decode(data[:-cut])
        with pytest.raises(DecodeError, match="unknown tag 7"):
            decoder.decode(data[:-1] + b"\x07")


@pytest.fixture
def collecting() -> Iterator[None]:
    """Garbage is collected, and is so again after the test."""
    gc.enable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collecting")
@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_large_term_is_decoded(enabled: bool) -> None:
    seen: list[bool] = []

    def hook(struct: dict[Any, Any]) -> object:
        seen.append(gc.isenabled())
        if len(struct) > 1:
            raise KeyError("of the hook")
        return struct

    decoder = Decoder(struct_hook=hook)
    struct = {Atom("__struct__"): Atom("Foo")}
    large = Encoder().encode([struct, b"x" * etf_decode.PAUSE])
    if not enabled:
        gc.disable()
    decoder.decode(Encoder().encode(struct))
    assert seen == [enabled]
    decoder.decode(large)
    assert seen == [enabled, False]
    assert gc.isenabled() is enabled
    with pytest.raises(DecodeError):
        decoder.decode(large[:-1])
    with pytest.raises(KeyError):
        decoder.decode(Encoder().encode([{**struct, b"a": 1}, b"x" * etf_decode.PAUSE]))
    assert gc.isenabled() is enabled
