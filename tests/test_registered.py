"""What users register: for types of Python, and for structs of Elixir."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import date, datetime
from enum import IntEnum
from typing import Any, NamedTuple

import pytest

import snex
from snex_node.wire import terms
from snex_node.wire.etf import DecodeError, Decoder, EncodeError, Encoder
from snex_runtime import errors, registered, serde
from snex_runtime.serde import Atom, DistinctAtom, merge_options

A = terms.Atom
_plain = Decoder()


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered before a test, and nothing that it registers after it."""
    monkeypatch.setattr(registered, "_encoders", {})
    monkeypatch.setattr(registered, "_decoders", {})
    monkeypatch.setattr(serde, "_custom", None)


def sent(value: object) -> Any:
    return _plain.decode(serde.encoder.encode(value))[0]


def received(term: object, **options: str) -> Any:
    return serde.decoder(merge_options(options)).decode(_wire.encode(term))[0]


def struct(name: str, /, **fields: object) -> dict[object, object]:
    return {A("__struct__"): A(f"Elixir.{name}"), **{A(k): v for k, v in fields.items()}}


class Base:
    def __init__(self, x: object = 1) -> None:
        self.x = x


class Derived(Base):
    pass


class Mixed(Derived):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Single(NamedTuple):
    x: int


class Color(IntEnum):
    RED = 1


class TestEncoder:
    def test_a_decorator(self) -> None:
        @snex.encoder(Base)
        def encode(value: Base) -> object:
            return {"x": value.x}

        assert encode(Base(2)) == {"x": 2}
        assert sent([Base(), {"k": Base("a")}]) == [{b"x": 1}, {b"k": {b"x": b"a"}}]

    def test_a_function(self) -> None:
        assert snex.encoder(complex, str) is str
        assert sent(1j) == b"1j"

    def test_the_nearest_class_counts(self) -> None:
        snex.encoder(Base, lambda value: "base")
        assert sent([Base(), Derived(), Mixed()]) == [b"base"] * 3
        snex.encoder(Derived, lambda value: "derived")
        assert sent([Base(), Derived(), Mixed()]) == [b"base", b"derived", b"derived"]

    def test_the_last_one_counts(self) -> None:
        snex.encoder(Base, lambda value: 1)
        snex.encoder(Base, lambda value: 2)
        assert sent(Base()) == 2

    def test_what_it_gives_may_need_others(self) -> None:
        snex.encoder(Base, lambda value: [value.x])
        snex.encoder(date, lambda value: value.isoformat())
        assert sent(Base(Derived(date(2026, 2, 28)))) == [[b"2026-02-28"]]
        assert sent(datetime(2026, 2, 28)) == b"2026-02-28T00:00:00"

    def test_it_is_asked_before_the_custom_encoder(self) -> None:
        def custom(value: object) -> object:
            return "custom"

        snex.set_custom_encoder(custom)
        snex.encoder(Base, lambda value: "registered")
        assert sent([Base(), object()]) == [b"registered", b"custom"]

    @pytest.mark.parametrize(
        ("value", "base"),
        [
            (Point(1, 2), (1, 2)),
            (Single(1), (1,)),
            (Color.RED, 1),
            (OrderedDict(a=1), {b"a": 1}),
            (type("Text", (str,), {})("a"), b"a"),
            (type("Number", (float,), {})(1.5), 1.5),
            (type("Several", (frozenset,), {})(), None),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_derived_from_types_that_are_always_sent(
        self, value: Any, base: object
    ) -> None:
        if base is not None:
            assert sent([value] * 40) == [base] * 40
        snex.encoder(type(value), lambda value: "registered")
        assert sent([value] * 40) == [b"registered"] * 40
        assert sent([(value, {"k": value})] * 40) == [(b"registered", {b"k": b"registered"})] * 40
        if not isinstance(value, dict):
            assert sent({value: 1}) == {b"registered": 1}

    def test_exceptions(self) -> None:
        snex.encoder(KeyError, lambda error: {"missing": error.args[0]})
        assert sent(KeyError("k")) == {b"missing": b"k"}
        assert sent(ValueError("v"))[A("__struct__")] == A("Elixir.Snex.Error")

    @pytest.mark.parametrize("kind", [TypeError, ValueError])
    def test_its_error_gets_a_place(self, kind: type[Exception]) -> None:
        @snex.encoder(Base)
        def refuse(value: Base) -> object:
            raise kind("not this one")

        with pytest.raises(kind, match=r'not this one \(at \["k"\]\[1\]\)') as raised:
            sent({"k": [0, Base()]})
        assert isinstance(raised.value, EncodeError)
        failure = errors.from_exception(raised.value)
        assert failure.type == kind.__name__
        assert "in refuse" in "".join(failure.traceback or ())

    def test_one_that_returns_the_object_itself(self) -> None:
        snex.encoder(Base, lambda value: value)
        with pytest.raises(TypeError, match=r"its encoder returned the object itself \(at \[0\]\)"):
            sent([Base()])
        snex.encoder(Point, lambda value: value._replace(x=value.x + 1))
        with pytest.raises(TypeError, match="asked 100 times in a row"):
            sent(Point(1, 2))

    @pytest.mark.parametrize(
        "kind",
        [
            *(int, str, dict, list, tuple, bool, type(None), bytes, set),
            *(Atom, DistinctAtom, A, snex.Term, terms.Pid),
        ],
    )
    def test_types_that_are_always_sent_as_they_are(self, kind: type) -> None:
        with pytest.raises(ValueError, match="is always sent as it is, and has no encoder"):
            snex.encoder(kind, str)

    def test_what_is_no_class_or_no_function(self) -> None:
        with pytest.raises(ValueError, match=r"what snex\.set_custom_encoder takes"):
            snex.encoder(object, str)
        with pytest.raises(TypeError, match="for a class, not for an object of <class 'int'>"):
            snex.encoder(5, str)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"the encoder of tests.*\.Base is no function"):
            snex.encoder(Base, "text")  # type: ignore[call-overload]

    def test_metaclasses_are_not_asked(self) -> None:
        class Meta(type):
            def __eq__(cls, other: object) -> bool:
                raise RuntimeError

            def __hash__(cls) -> int:
                raise RuntimeError

        snex.encoder(Base, lambda value: 1)
        assert registered.encode(Meta("Odd", (), {})()) is NotImplemented


class TestDecoder:
    def test_a_decorator(self) -> None:
        @snex.decoder("My.Point")
        def decode(fields: dict[str, Any]) -> object:
            assert type(fields["__struct__"]) is Atom
            return complex(fields["x"], fields["y"])

        assert decode({"__struct__": Atom("a"), "x": 0, "y": 1}) == 1j
        term = struct("My.Point", x=1, y=2)
        assert received(term) == 1 + 2j
        assert received([{b"k": (term,)}]) == [{"k": (1 + 2j,)}]
        assert received({(1,): term}) == {(1,): 1 + 2j}

    @pytest.mark.parametrize("name", ["My.Point", "Elixir.My.Point"])
    def test_a_function(self, name: str) -> None:
        assert snex.decoder(name, dict) is dict
        snex.decoder(name, len)
        assert received(struct("My.Point", x=1)) == 2

    def test_in_a_key(self) -> None:
        snex.decoder("My.Point", lambda fields: fields["x"])
        assert received({_Key(struct("My.Point", x=1)): 2}) == {1: 2}

    def test_decoders_from_before(self) -> None:
        made = serde.decoder()
        term = [struct("My.Point", x=n) for n in range(1000)]
        data = _wire.encode(term)
        assert made.decode(data)[0][7] == {"__struct__": "Elixir.My.Point", "x": 7}
        snex.decoder("My.Point", lambda fields: fields["x"])
        assert made.decode(data)[0] == list(range(1000))
        snex.decoder("My.Point", lambda fields: -fields["x"])
        assert made.decode(data)[0] == [-n for n in range(1000)]
        mixed = _wire.encode([(n, struct("My.Other", a=1)) for n in range(100)])
        assert made.decode(mixed)[0][3] == (3, {"__struct__": "Elixir.My.Other", "a": 1})

    @pytest.mark.parametrize("binary_as", ["str", "bytes", "bytearray"])
    @pytest.mark.parametrize("atom_as", ["atom", "distinct_atom"])
    def test_with_any_options(self, binary_as: str, atom_as: str) -> None:
        snex.decoder("My.Point", lambda fields: (fields["x"], fields["__struct__"]))
        term = [struct("My.Point", x=b"a")] * 40
        found = received(term, binary_as=binary_as, atom_as=atom_as)
        value = {"str": "a", "bytes": b"a", "bytearray": bytearray(b"a")}[binary_as]
        name = DistinctAtom if atom_as == "distinct_atom" else Atom
        assert found == [(value, name("Elixir.My.Point"))] * 40

    def test_structs_in_structs(self) -> None:
        snex.decoder("My.Point", lambda fields: fields["x"])
        snex.decoder("My.Line", lambda fields: fields["points"])
        points = [struct("My.Point", x=1), struct("My.Point", x={1: struct("My.Point", x=5)})]
        assert received(struct("My.Line", points=points)) == [1, {1: 5}]
        wrapped = struct("Snex.Serde.Object", module=b"builtins", name=b"tuple", args=[points])
        assert received(wrapped) == (1, {1: 5})

    def test_not_implemented_leaves_it_as_it_is(self) -> None:
        snex.decoder("My.Point", lambda fields: NotImplemented)
        assert received(struct("My.Point", x=1)) == {"__struct__": "Elixir.My.Point", "x": 1}

    def test_it_goes_before_what_python_has_for_a_struct(self) -> None:
        term = struct("Range", first=1, last=3, step=1)
        assert received(term, structs_as="native") == range(1, 4)
        snex.decoder("Range", lambda fields: "mine")
        assert received(term, structs_as="native") == received(term) == "mine"

    @pytest.mark.parametrize("error", [KeyError("x"), ValueError("bad"), IndexError(), snex.Term])
    def test_what_it_raises(self, error: Any) -> None:
        @snex.decoder("My.Point")
        def fail(fields: object) -> object:
            if error is snex.Term:
                raise DecodeError("no term", 3)
            raise error

        for term in ([struct("My.Point", x=1)], [struct("My.Point", x=1)] * 40):
            with pytest.raises(
                ValueError, match=r"^the decoder of %My\.Point\{\} raised "
            ) as raised:
                received(term)
            failure = errors.from_exception(raised.value)
            assert (failure.code, failure.type) == ("python_runtime_error", "ValueError")
            assert "in fail" in "".join(failure.traceback or ())

    @pytest.mark.parametrize(
        "name", ["MapSet", "Elixir.MapSet", "Snex.Error", "Elixir.Snex.Serde.Binary", "Snex.Mine"]
    )
    def test_names_that_have_a_meaning(self, name: str) -> None:
        with pytest.raises(ValueError, match="has a meaning of its own, and takes no decoder"):
            snex.decoder(name, dict)

    def test_what_is_no_name_or_no_function(self) -> None:
        with pytest.raises(
            TypeError, match="the name of a struct is a str, not an object of <class 'int'>"
        ):
            snex.decoder(5, dict)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="the decoder of My is no function"):
            snex.decoder("My", 5)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="atom too long"):
            snex.decoder("x" * 300, dict)

    def test_what_only_passes_through_is_left_alone(self) -> None:
        snex.decoder("My.Point", lambda fields: 1)
        assert serde.passing.decode(_wire.encode(struct("My.Point")))[0] == {
            "__struct__": "Elixir.My.Point"
        }

    def test_lists_that_the_client_has_arranged(self) -> None:
        def arranged(keys: list[object], *columns: object) -> object:
            return struct("Snex.Arrangement.Columns", keys=keys, columns=[*columns])

        keys: list[object] = [A("__struct__"), A("x")]
        term = [arranged(keys, A("Elixir.My.Point"), [1, 2])]
        as_dict = {"__struct__": "Elixir.My.Point"}
        assert received(term) == [[{**as_dict, "x": 1}, {**as_dict, "x": 2}]]
        snex.decoder("My.Point", lambda fields: -fields["x"])
        for atom_as in ("atom", "distinct_atom"):
            assert received(term, atom_as=atom_as) == [[-1, -2]]
        ranges: list[object] = [A("__struct__"), A("first"), A("last"), A("step")]
        term = [arranged(ranges, A("Elixir.Range"), [1, 2], [3, 3], [1, 1])]
        assert received(term, structs_as="native") == [[range(1, 4), range(2, 4)]]
        assert received(term)[0][1]["first"] == 2
        assert received(arranged([b"a"], [1, 2])) == [{"a": 1}, {"a": 2}]
        assert received(arranged([A("a")], [])) == []

    def test_from_many_threads(self) -> None:
        def register(thread: int) -> None:
            for n in range(50):
                snex.decoder(f"My.T{thread}N{n}", lambda fields: fields["x"])
                serde.decoder(serde.Options(binary_as=("str", "bytes")[n % 2]))

        threads = [threading.Thread(target=register, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [f"My.T{thread}N{n}" for thread in range(4) for n in range(50)]
        assert received([struct(name, x=1) for name in names]) == [1] * 200


class _Key:
    """A key of a dict that is sent as what it holds."""

    def __init__(self, term: object) -> None:
        self.term = term


_wire = Encoder(default=lambda key: key.term)


def test_docstrings_tell_the_truth() -> None:
    import doctest

    assert doctest.testmod(registered).attempted
    assert not doctest.testmod(registered).failed
