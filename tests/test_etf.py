"""The external term format as a whole: alone-standing terms, and what others make of them."""

from __future__ import annotations

import copy
import math
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import erlang
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snex_node.wire import etf, terms
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.terms import (
    Atom,
    BitString,
    Export,
    ImproperList,
    Pid,
    Port,
    Record,
    Reference,
)
from tests import golden
from tests.golden import Golden, Oracle, OracleError
from tests.support.examples import examples

NAMES: dict[str, object] = {name: getattr(terms, name) for name in terms.__all__}


@pytest.fixture(scope="module")
def erl() -> Iterator[Oracle]:
    with golden.oracle() as started:
        yield started


class TestAlone:
    def test_terms_begin_with_131(self) -> None:
        assert etf.encode((Atom("ok"), 42)) == b"\x83h\2w\2oka*"
        assert etf.decode(b"\x83h\2w\2oka*") == ("ok", 42)
        assert etf.decode(memoryview(b"\x83a\1")) == etf.decode(bytearray(b"\x83a\1")) == 1

    @pytest.mark.parametrize(
        ("data", "message", "offset"),
        [
            (b"", "131, but here is nothing", 0),
            (b"a\1", "131, but here is 97", 0),
            (b"\x83", "truncated", 1),
            (b"\x83a\1a\1", "followed by 2 more bytes", 3),
            (b"\x83\x83a\1", "version byte", 1),
            (b"\x83P", "size of the compressed term is truncated", 2),
            (b"\x83P\0\0\0\2", "not the 2 bytes", 6),
            (b"\x83P\0\0\0\2rubbish", "cannot be inflated", 6),
        ],
    )
    def test_what_is_none_is_an_error(self, data: bytes, message: str, offset: int) -> None:
        with pytest.raises(DecodeError, match=message) as caught:
            etf.decode(data)
        assert caught.value.offset == offset

    def test_options_are_those_of_the_coders_given(self) -> None:
        assert etf.decode(b"\x83m\0\0\0\1a", decoder=Decoder(binary_as="str")) == "a"
        assert etf.encode(math.inf, encoder=Encoder(special_floats="atoms")) == b"\x83w\3inf"


def compressed(term: bytes, *, claim: int | None = None, rest: bytes = b"") -> bytes:
    size = len(term) if claim is None else claim
    return b"\x83P" + struct.pack(">I", size) + zlib.compress(term) + rest


class TestCompressed:
    TERM = Encoder().encode(list(range(1000)))

    def test_terms_are_inflated(self) -> None:
        assert etf.decode(compressed(self.TERM)) == list(range(1000))

    @pytest.mark.parametrize(
        "data",
        [
            compressed(TERM, claim=len(TERM) - 1),
            compressed(TERM, claim=len(TERM) + 1),
            compressed(TERM, rest=b"x"),
            compressed(TERM)[:-1],
            compressed(TERM)[:-4],
            compressed(b"\x83a\1"),
            compressed(b"P\0\0\0\2" + zlib.compress(b"a\1")),
            compressed(b"a\1a\1"),
        ],
    )
    def test_terms_that_are_not_what_they_claim_are_errors(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            etf.decode(data)

    def test_claims_are_bounded_before_anything_is_inflated(self) -> None:
        assert etf.decode(compressed(self.TERM), max_inflated=len(self.TERM))
        with pytest.raises(DecodeError, match="raise max_inflated to take it"):
            etf.decode(compressed(self.TERM), max_inflated=len(self.TERM) - 1)
        with pytest.raises(DecodeError, match=f"more than the {etf.MAX_INFLATED} allowed"):
            etf.decode(b"\x83P\xff\xff\xff\xff" + zlib.compress(b"a\1"))

    def test_no_more_is_inflated_than_claimed(self) -> None:
        bomb = compressed(bytes(200_000_000), claim=100)
        with pytest.raises(DecodeError, match="not the 100 bytes"):
            etf.decode(bomb)


class TestGolden:
    @pytest.mark.parametrize("line", golden.golden_terms(), ids=lambda line: line.erlang[:40])
    def test_terms_are_what_a_real_erlang_wrote(self, line: Golden) -> None:
        value = eval(line.python, NAMES)
        found, end = Decoder().decode(line.data)
        assert end == len(line.data)
        assert found == value
        assert repr(found) == repr(value)
        if line.data[0] not in b"kl":  # we write few lists of small integers as STRING_EXT
            assert Encoder().encode(value) == line.data

    @pytest.mark.interop
    def test_the_script_writes_what_is_recorded(self, tmp_path: Path, erl: Oracle) -> None:
        path = tmp_path / "terms.txt"
        path.write_bytes(golden.TERMS.read_bytes())
        golden.record(path)
        if erl.release() == golden.recorded_release():
            assert path.read_text() == golden.TERMS.read_text()
        for ours, theirs in zip(golden.golden_terms(), golden.golden_terms(path), strict=True):
            assert Decoder().decode(theirs.data) == (
                Decoder().decode(ours.data)[0],
                len(theirs.data),
            )


# Terms of every type. Text is bytes, so that what is decoded equals what was encoded.

node_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=255).map(Atom)
u8, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
pids = st.builds(Pid, node_names, u32, u32, u32)
ports = st.builds(Port, node_names, u64, u32)
references = st.builds(Reference, node_names, u32, st.lists(u32, min_size=1, max_size=5))
atoms = st.text(st.characters(codec="utf-8"), max_size=255).map(Atom)
plain_atoms = atoms.filter(lambda name: name not in ("nil", "true", "false"))
large_integers = st.binary(min_size=250, max_size=260).map(lambda data: int.from_bytes(data, "big"))
integers = st.integers() | st.integers(-(2**70), 2**70) | large_integers
floats = st.floats(allow_nan=False, allow_infinity=False)
bitstrings = st.builds(BitString, st.binary(min_size=1), st.integers(1, 7))
exports = st.builds(Export, atoms, atoms, u8)
scalars = (
    st.none() | st.booleans() | integers | floats | plain_atoms | st.binary() | bitstrings
    | pids | ports | references | exports
)  # fmt: skip
keys = st.recursive(
    st.none()
    | plain_atoms
    | st.binary()
    | pids
    | integers.filter(lambda key: key > 1)
    | bitstrings,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


def no_list(tail: Any) -> object:
    return tuple(tail) if isinstance(tail, list) else () if type(tail) is ImproperList else tail


def runs(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Long lists of numbers: a few that come again, because each one drawn takes its time."""
    few = st.lists(numbers, min_size=1, max_size=7)
    return st.builds(lambda some, size: (some * size)[:size], few, st.integers(14, 70))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=20)
        | runs(floats)
        | runs(st.integers(-300, 300))
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=8)
        | st.builds(ImproperList, st.lists(inner, min_size=1, max_size=4), inner.map(no_list))
    )


beam_terms = st.recursive(scalars, containers, max_leaves=25)


def record(module: Atom, name: Atom, fields: list[tuple[Atom, Any]], flag: int) -> Record:
    return Record(
        module, name, [field[0] for field in fields], [field[1] for field in fields], flag
    )


record_values = st.recursive(scalars, containers, max_leaves=5)
record_fields = st.lists(st.tuples(atoms, record_values), max_size=4)
records = st.builds(record, atoms, atoms, record_fields, u8)
all_terms = beam_terms | records

thorough = settings(
    max_examples=examples(2), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # generated terms are large


def same(one: Any, other: Any) -> bool:
    """Equality that tells 1, 1.0 and true apart, and 0.0 and -0.0, but not the order of maps."""
    equal: bool = exact(one) == exact(other)
    return equal


def exact(term: Any) -> Any:
    if isinstance(term, dict):
        pairs = [(exact(key), exact(value)) for key, value in term.items()]
        return type(term), sorted(pairs, key=repr)
    if isinstance(term, terms.Term):
        # Its bytes are those that came; another node writes the same term its own way.
        return type(term), exact(Decoder().decode(bytes(term))[0])
    if isinstance(term, (list, tuple)):
        return type(term), [exact(item) for item in term]
    if isinstance(term, ImproperList):
        return type(term), [exact(item) for item in term.elements], exact(term.tail)
    if isinstance(term, Record):
        names = term.module, term.name, term.fields, term.flag
        return type(term), names, [exact(item) for item in term.values]
    return type(term), repr(term), term


@pytest.mark.untraced
class TestRoundTrip:
    @thorough
    @given(all_terms)
    def test_decode_is_the_inverse_of_encode(self, term: object) -> None:
        data = etf.encode(term)
        assert same(etf.decode(data), term)
        assert Decoder().skip(data, 1) == len(data)

    @thorough
    @given(all_terms)
    def test_opaque_terms_go_back_as_they_came(self, term: object) -> None:
        data = etf.encode(term)
        again = etf.decode(data, decoder=Decoder(opaque=True))
        assert etf.encode(again) == data

    @thorough
    @given(all_terms)
    def test_values_copy_and_pickle(self, term: object) -> None:
        assert same(pickle.loads(pickle.dumps(term)), term)
        assert same(copy.deepcopy(term), term)

    @given(
        st.recursive(
            st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        )
    )
    def test_text_is_the_same_as_str(self, term: object) -> None:
        assert etf.decode(etf.encode(term), decoder=Decoder(binary_as="str")) == term


@pytest.mark.untraced
class TestAnyBytes:
    """Whatever the bytes are, the outcome is a term or a DecodeError."""

    DECODERS = (
        Decoder(),
        Decoder(opaque=True, binary_as="str", struct_hook=dict),
        Decoder(binary_as="bytearray", struct_hook=dict, raw_structs=["S", "Elixir.S"]),
        Decoder(max_depth=3),
    )

    def check(self, data: bytes) -> None:
        for decoder in self.DECODERS:
            try:
                value, end = decoder.decode(data)
            except DecodeError as error:
                refused = error
            else:
                assert 0 < end <= len(data)
                assert decoder.skip(data) == end
                # What was read can be written, and read again as the same.
                again = Encoder(max_integer_bytes=2**32 - 1).encode(value)
                assert same(decoder.decode(again)[0], value)
                continue
            assert 0 <= refused.offset <= len(data)

    @given(st.binary(max_size=200))
    @settings(max_examples=examples(2))
    def test_at_random(self, data: bytes) -> None:
        self.check(data)

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"\0",
                    b"\1",
                    b"\2",
                    *(bytes((tag,)) for tag in b"wvsdabFcjnoMmkhiltXgYfxZreqpC"),
                    b"\0\0\0\1",
                    b"\0\0\0\2",
                    b"\0\1",
                ]
            ),
            max_size=60,
        )
    )
    @settings(max_examples=examples(4))
    def test_of_tags_and_small_sizes(self, parts: list[bytes]) -> None:
        self.check(b"".join(parts))

    @given(st.data())
    @settings(max_examples=examples(4), deadline=None)
    def test_of_terms_with_some_bytes_changed(self, data: st.DataObject) -> None:
        line = data.draw(st.sampled_from(golden.golden_terms()))
        changed = bytearray(
            b"h\2" + line.data[:300] + Encoder().encode({Atom("__struct__"): Atom("S")})
        )
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(changed) - 1))
            changed[place] = data.draw(st.sampled_from([0, 1, 2, 106, 108, 116, 255]) | u8)
        self.check(bytes(changed))

    @pytest.mark.parametrize("line", golden.golden_terms(), ids=lambda line: line.erlang[:40])
    def test_of_terms_cut_anywhere(self, line: Golden) -> None:
        for end in range(min(len(line.data), 400)):
            for decoder in self.DECODERS:
                with pytest.raises(DecodeError):
                    decoder.decode(line.data[:end])

    @pytest.mark.parametrize("tag", [b"l", b"i", b"t", b"C", b"m", b"o", b"M\xff", b"p"])
    def test_that_announce_gigabytes_cost_nothing(self, tag: bytes) -> None:
        import tracemalloc

        data = tag + b"\xff\xff\xff\xff\0\0\0\0"
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError):
                Decoder().decode(data)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


# The same terms as erlang-py, an independent implementation, has them.


def theirs(term: Any) -> Any:
    if isinstance(term, bool) or term is None or isinstance(term, float):
        return term
    if isinstance(term, Atom):
        return erlang.OtpErlangAtom(str.__str__(term))
    if isinstance(term, bytes):
        return erlang.OtpErlangBinary(term)
    if isinstance(term, BitString):
        return erlang.OtpErlangBinary(term.data, bits=term.bits)
    if isinstance(term, list):
        return erlang.OtpErlangList([theirs(item) for item in term])
    if isinstance(term, ImproperList):
        items = [*term.elements, term.tail]
        return erlang.OtpErlangList([theirs(item) for item in items], improper=True)
    if isinstance(term, tuple):
        return tuple(theirs(item) for item in term)
    if isinstance(term, dict):
        return {theirs(key): theirs(value) for key, value in term.items()}
    return term


def is_not_string(items: list[Any]) -> bool:
    return not all(type(item) is int and 0 <= item < 256 for item in items)


small_names = st.text(st.characters(codec="utf-8"), max_size=60).map(Atom)
their_scalars = (
    floats | integers | st.binary() | bitstrings
    | small_names.filter(lambda name: name not in ("nil", "true", "false", "undefined"))
)  # fmt: skip
their_terms = st.recursive(
    their_scalars,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=8).filter(is_not_string)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.binary(min_size=1), inner, max_size=5)
    ),
    max_leaves=15,
)


@pytest.mark.untraced
class TestErlangPy:
    @thorough
    @given(their_terms)
    def test_reads_what_we_write(self, term: object) -> None:
        assert comparable(erlang.binary_to_term(etf.encode(term))) == comparable(theirs(term))

    @thorough
    @given(their_terms)
    def test_writes_what_we_read(self, term: object) -> None:
        assert same(etf.decode(erlang.term_to_binary(theirs(term))), term)

    @given(
        st.builds(Pid, small_names, u32, u32, u32)
        | st.builds(Reference, small_names, u32, st.lists(u32, min_size=1, max_size=5))
    )
    def test_passes_identifiers_on(self, term: object) -> None:
        data = etf.encode(term)
        assert etf.decode(erlang.term_to_binary(erlang.binary_to_term(data))) == term


def comparable(term: Any) -> Any:
    if isinstance(term, erlang.OtpErlangAtom):
        return ("atom", term.value)
    if isinstance(term, erlang.OtpErlangBinary):
        return ("binary", term.value, term.bits)
    if isinstance(term, erlang.OtpErlangList):
        return ("list", term.improper, [comparable(item) for item in term.value])
    if isinstance(term, bytes):
        return ("binary", term, 8)
    if isinstance(term, list):
        return ("list", False, [comparable(item) for item in term])
    if isinstance(term, tuple):
        return tuple(comparable(item) for item in term)
    if isinstance(term, dict):
        return sorted((repr(comparable(key)), comparable(value)) for key, value in term.items())
    return (type(term), term)


# Terms as Erlang source, for a real Erlang to compare with what it reads.


def source(term: Any) -> str:
    if term is None or isinstance(term, bool):
        return "nil" if term is None else str(term).lower()
    if isinstance(term, Atom):
        return "'" + "".join(f"\\x{{{ord(character):x}}}" for character in term) + "'"
    if isinstance(term, float):
        mantissa, _, exponent = f"{term:.17e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    if isinstance(term, int):
        return str(term)
    if isinstance(term, bytes):
        return f"<<{','.join(map(str, term))}>>"
    if isinstance(term, BitString):
        last = term.data[-1] >> (8 - term.bits)
        return f"<<{','.join([*map(str, term.data[:-1]), f'{last}:{term.bits}'])}>>"
    if isinstance(term, list):
        return f"[{','.join(map(source, term))}]"
    if isinstance(term, ImproperList):
        return f"[{','.join(map(source, term.elements))}|{source(term.tail)}]"
    if isinstance(term, tuple):
        return f"{{{','.join(map(source, term))}}}"
    assert isinstance(term, dict)
    return f"#{{{','.join(f'{source(key)}=>{source(value)}' for key, value in term.items())}}}"


no_identifiers = st.none() | st.booleans() | integers | floats | atoms | st.binary() | bitstrings
source_keys = st.recursive(
    st.none() | plain_atoms | st.binary() | integers.filter(lambda key: key > 1) | bitstrings,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
source_terms = st.recursive(
    no_identifiers,
    lambda inner: (
        st.lists(inner, max_size=20)
        | runs(floats)
        | runs(st.integers(-300, 300))
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(source_keys, inner, max_size=8)
        | st.builds(ImproperList, st.lists(inner, min_size=1, max_size=4), inner.map(no_list))
    ),
    max_leaves=25,
)
with_erl = settings(
    max_examples=examples(3),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.untraced
@pytest.mark.interop
class TestErl:
    @with_erl
    @given(term=source_terms)
    def test_reads_what_we_write(self, erl: Oracle, term: object) -> None:
        erl.check_is(etf.encode(term), source(term))

    def test_says_so_when_it_does_not(self, erl: Oracle) -> None:
        with pytest.raises(OracleError, match="1 is not 2"):
            erl.check_is(etf.encode(1), "2")

    @with_erl
    @given(term=beam_terms)
    def test_writes_what_we_read(self, erl: Oracle, term: object) -> None:
        data = etf.encode(term)
        assert same(etf.decode(erl.rewrite(data)), term)
        assert same(etf.decode(erl.rewrite(data, compressed=True)), term)

    @with_erl
    @given(term=beam_terms)
    def test_takes_opaque_terms_back(self, erl: Oracle, term: object) -> None:
        data = erl.rewrite(etf.encode(term))
        again = etf.encode(etf.decode(data, decoder=Decoder(opaque=True)))
        assert erl.rewrite(again) == data

    @with_erl
    @given(
        data=st.lists(
            st.sampled_from([b"\0", b"\1", b"w\1a", b"a\1", b"j", b"l\0\0\0\1", b"k\0\1\1", b"h\1"])
            | st.sampled_from(
                [b"t\0\0\0\1", b"m\0\0\0\1x", b"l\0\0\0\0", b"n\1\1\5", b"M\0\0\0\1\3\xff"]
            )
            | st.sampled_from(
                [b"\x83", b"P", b"y", b"s\1\xe9", b"w\1\xff", b"v\0\1a", b"i\0\0\0\1"]
            ),
            min_size=1,
            max_size=8,
        ).map(b"".join)
    )
    def test_takes_what_we_take_and_refuses_what_we_refuse(self, erl: Oracle, data: bytes) -> None:
        try:
            _, end = Decoder().decode(data)
        except DecodeError:
            with pytest.raises(OracleError):
                erl.rewrite(b"\x83" + data)
            return
        found = etf.decode(erl.rewrite(b"\x83" + data[:end]))
        assert same(found, Decoder().decode(data)[0])

    @pytest.mark.parametrize("depth", [1000, 90_000])
    def test_nests_as_deep_as_we_do(self, erl: Oracle, depth: int) -> None:
        data = b"\x83" + b"l\0\0\0\1" * depth + b"j" + b"j" * depth
        assert erl.rewrite(data) == data
        assert etf.encode(etf.decode(data)) == data

    def test_takes_our_largest_integer(self, erl: Oracle) -> None:
        from snex_node.wire.etf_encode import MAX_INTEGER_BYTES

        data = etf.encode(-(1 << 8 * MAX_INTEGER_BYTES) + 1)
        assert erl.rewrite(data) == data
