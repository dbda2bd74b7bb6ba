"""Calls, casts and system messages: read from their bytes, told apart, answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node import Atom, DecodeError, From, ImproperList, Pid, Reference
from snex_node.wire import etf
from snex_node.wire.gen import (
    ALIAS,
    GEN_CALL,
    GEN_CAST,
    SYSTEM,
    alias_in,
    call_head,
    parse_call,
    parse_cast,
    parse_system,
    parse_term,
)

encode = etf.Encoder().encode
decode = etf.Decoder().decode

PID = Pid("b@127.0.0.1", 5, 0, 77)
REF = Reference("b@127.0.0.1", 77, (1, 2, 3))
REF5 = Reference("b@127.0.0.1", 77, (1, 2, 3, 4, 5))
ALIAS_TAG = ImproperList([ALIAS], REF)

# Every form of a tag, and the alias that is to be answered to.
TAGS: list[tuple[object, Reference | None]] = [
    (ALIAS_TAG, REF),
    (ImproperList([ALIAS], REF5), REF5),
    (ImproperList([ALIAS_TAG], REF5), REF),
    ([ALIAS_TAG], REF),
    ([ALIAS_TAG, 1], REF),
    (REF, None),
    (Atom("tag"), None),
    ([], None),
    ([ALIAS], None),
    ([[ALIAS_TAG]], None),
    (ImproperList([ALIAS, ALIAS], REF), None),
    (ImproperList([Atom("other")], REF), None),
    (ImproperList([ALIAS], Atom("no_ref")), None),
    ((1, 2.5), None),
]


def as_latin1(data: bytes) -> bytes:
    """The same term with its first atom as SMALL_ATOM_EXT, as old nodes send it."""
    return data.replace(b"w", b"s", 1)


def as_long(data: bytes) -> bytes:
    """The same term with its first atom as ATOM_UTF8_EXT."""
    at = data.index(b"w")
    return data[:at] + b"v\0" + data[at + 1 :]


class TestFrom:
    @pytest.mark.parametrize(("tag", "alias"), TAGS)
    def test_of_a_term(self, tag: object, alias: Reference | None) -> None:
        caller = From.from_term((PID, tag))
        assert caller is not None
        assert caller.pid == PID
        assert caller.tag == encode(tag)
        assert caller.alias == (alias.external if alias else None)
        assert alias_in(tag) == alias

    @pytest.mark.parametrize("term", [None, PID, (PID,), (PID, 1, 2), (Atom("x"), 1), [PID, 1]])
    def test_of_what_is_none(self, term: object) -> None:
        assert From.from_term(term) is None

    def test_ref_is_what_the_caller_monitors_with(self) -> None:
        def ref_of(tag: object) -> bytes | None:
            caller = From.from_term((PID, tag))
            assert caller is not None
            return caller.ref

        assert ref_of(ALIAS_TAG) == REF.external
        assert ref_of(REF5) == REF5.external
        assert ref_of(Atom("tag")) is None

    def test_comparable(self) -> None:
        one, two = From.from_term((PID, ALIAS_TAG)), From.from_term((PID, ALIAS_TAG))
        other = From.from_term((PID, REF))
        assert one == two
        assert hash(one) == hash(two)
        assert one != other
        assert one != 1
        assert {one: 1}[two] == 1
        assert repr(one) == "<From #PID<b@127.0.0.1.5.0>>"


class TestParseCall:
    @pytest.mark.parametrize(("tag", "alias"), TAGS)
    @pytest.mark.parametrize("form", [bytes, as_latin1, as_long])
    @pytest.mark.parametrize("before", [b"", b"before"])
    def test_every_form(
        self, tag: object, alias: Reference | None, form: type, before: bytes
    ) -> None:
        data = before + form(encode((GEN_CALL, (PID, tag), (Atom("request"), 1))))
        found = parse_call(data, len(before))
        assert found is not None
        caller, offset = found
        assert caller == From.from_term((PID, tag))
        assert caller.alias == (alias.external if alias else None)
        assert decode(data, offset) == (("request", 1), len(data))

    def test_a_long_node_name(self) -> None:
        node = "ä" * 130 + "@host"  # no node has it, but the bytes may come
        pid, ref = Pid(node, 1, 2, 3), Reference(node, 3, (1, 2, 3))
        for caller_pid, tag in ((pid, ALIAS_TAG), (PID, ImproperList([ALIAS], ref))):
            data = encode((GEN_CALL, (caller_pid, tag), 1))
            found = parse_call(data, 0)
            assert found is not None
            assert found[0] == From.from_term((caller_pid, tag))
            assert data[found[1] :] == b"a\x01"

    @pytest.mark.parametrize(
        "term",
        [
            1,
            (),
            GEN_CALL,
            (GEN_CALL,),
            (GEN_CALL, (PID, ALIAS_TAG)),
            (GEN_CALL, (PID, ALIAS_TAG), 1, 2),
            (GEN_CALL, PID, 1),
            (GEN_CALL, (Atom("x"), ALIAS_TAG), 1),
            (GEN_CALL, (PID,), 1),
            (Atom("$gen_calls"), (PID, ALIAS_TAG), 1),
            (Atom("x$gen_call"), (PID, ALIAS_TAG), 1),
            (b"$gen_call", (PID, ALIAS_TAG), 1),
            (GEN_CAST, 1),
            (SYSTEM, (PID, ALIAS_TAG), 1),
            [GEN_CALL, (PID, ALIAS_TAG), 1],
        ],
    )
    def test_what_is_no_call(self, term: object) -> None:
        assert parse_call(encode(term), 0) is None
        assert parse_term(term) is None

    @pytest.mark.parametrize("tag", [tag for tag, _ in TAGS])
    @pytest.mark.parametrize("form", [bytes, as_latin1])
    def test_cut_off_anywhere(self, tag: object, form: type) -> None:
        """None, or a `DecodeError`; and never a request that begins behind the end."""
        whole = form(encode((GEN_CALL, (PID, tag), 1)))
        for length in range(len(whole)):
            try:
                found = parse_call(whole[:length], 0)
            except DecodeError:
                continue
            assert found is None or found[1] <= length

    @given(st.binary(max_size=80), st.integers(0, 100))
    def test_arbitrary_bytes_behind_the_head(self, junk: bytes, cut: int) -> None:
        head = encode((GEN_CALL, (PID, ALIAS_TAG), 1))[:cut]
        try:
            found = parse_call(head + junk, 0)
        except DecodeError:
            return
        assert found is None or found[1] <= len(head + junk)

    def test_references_of_too_many_words(self) -> None:
        data = bytearray(encode((GEN_CALL, (PID, ALIAS_TAG), 1)))
        at = data.index(b"Z\x00\x03") + 2
        data[at] = 6
        with pytest.raises(DecodeError):
            parse_call(bytes(data) + bytes(12), 0)

    def test_the_head_that_we_write(self) -> None:
        expected = encode((GEN_CALL, (PID, ALIAS_TAG), (Atom("request"), [1])))
        assert call_head(PID, REF) + encode((Atom("request"), [1])) == expected


class TestOtherMessages:
    def test_casts(self) -> None:
        data = b"before" + encode((GEN_CAST, [1]))
        offset = parse_cast(data, 6)
        assert offset is not None
        assert decode(data, offset) == ([1], len(data))
        for term in (GEN_CAST, (GEN_CALL, 1), (GEN_CAST, 1, 2), (Atom("$gen_casting"), 1)):
            assert parse_cast(encode(term), 0) is None

    def test_system_messages(self) -> None:
        message = (SYSTEM, (PID, REF), (Atom("terminate"), Atom("normal")))
        assert parse_system(message) == (From.from_term((PID, REF)), message[2])
        for term in (1, (SYSTEM,), (SYSTEM, 1, 2), (GEN_CALL, (PID, REF), 1)):
            assert parse_system(term) is None
