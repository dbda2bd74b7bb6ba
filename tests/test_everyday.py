"""What is sent in place of everyday values: a row for each type, then what is special about some.

That Elixir takes it for its own is seen in tests/interop/test_everyday.py. Of what is no part of
the standard library NumPy is here; classes like those of other packages stand in for them.
"""

from __future__ import annotations

import collections
import enum
import itertools
import os
import re
import sys
import types
import uuid
import weakref
import zoneinfo
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snex_node.wire import terms
from snex_node.wire.etf import Decoder
from snex_runtime import errors, everyday, registered, serde
from tests.support.examples import examples
from tests.support.ids import stable

try:
    import numpy
except ImportError:  # there is none for this Python
    np: Any = None
else:
    np = numpy

A = terms.Atom
_plain = Decoder()


def sent(value: object) -> Any:
    """What an Elixir of today gets for ``value``."""
    return _plain.decode(serde.encoder.encode(value))[0]


def struct(name: str, /, **fields: object) -> dict[object, object]:
    return {A("__struct__"): A(f"Elixir.{name}"), **{A(k): v for k, v in fields.items()}}


def iso(name: str, /, **fields: object) -> dict[object, object]:
    return struct(name, calendar=A("Elixir.Calendar.ISO"), **fields)


def duration(**units: object) -> dict[object, object]:
    none = dict.fromkeys(("year", "month", "week", "day", "hour", "minute", "second"), 0)
    return struct("Duration", **{**none, "microsecond": (0, 6), **units})


def decimal(coef: object, exp: int = 0, sign: int = 1) -> dict[object, object]:
    return struct("Decimal", coef=coef, exp=exp, sign=sign)


DAY = {"year": 2026, "month": 2, "day": 28}
MOMENT = {**DAY, "hour": 13, "minute": 4, "second": 5, "microsecond": (6, 6)}
UTC = {"time_zone": b"Etc/UTC", "zone_abbr": b"UTC", "utc_offset": 0, "std_offset": 0}
NAIVE = datetime(2026, 2, 28, 13, 4, 5, 6)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, [2])


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclass
class Point:
    x: int
    y: object = None
    origin: ClassVar[int] = 0
    given: InitVar[int] = 0
    hidden: list[int] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("a",)
    a: int


@dataclass
class User:
    __struct__ = "My.User"
    name: str
    tags: set[str]


@dataclass
class PrefixedUser:
    __struct__ = "Elixir.My.User"
    name: str


class Table(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return ord(key)

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


class Letters(Sequence[str]):
    def __getitem__(self, index: Any) -> Any:
        return "xyz"[index]

    def __len__(self) -> int:
        return 3


class Members(Set[int]):
    def __contains__(self, item: object) -> bool:
        return item in (1, 2)

    def __iter__(self) -> Iterator[int]:
        return iter((1, 2))

    def __len__(self) -> int:
        return 2


class Bag(Collection[int]):
    def __contains__(self, item: object) -> bool:
        return item == 5

    def __iter__(self) -> Iterator[int]:
        return iter((5, 5))

    def __len__(self) -> int:
        return 2


class Unregistered:
    """It has what collections have, as tables and messages do."""

    def __contains__(self, item: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Count:
    def __init__(self) -> None:
        self.left = 2

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.left


class PathLike:
    def __fspath__(self) -> bytes:
        return b"/a"


class Timestamp(datetime):
    """As that of pandas is."""


ROWS: list[tuple[object, object]] = [
    # dates and times
    (date(2026, 2, 28), iso("Date", **DAY)),
    (time(13, 4, 5, 6), iso("Time", hour=13, minute=4, second=5, microsecond=(6, 6))),
    (NAIVE, iso("NaiveDateTime", **MOMENT)),
    (Timestamp(2026, 2, 28, 13, 4, 5, 6), iso("NaiveDateTime", **MOMENT)),
    (NAIVE.replace(tzinfo=timezone.utc), iso("DateTime", **MOMENT, **UTC)),
    (NAIVE.replace(tzinfo=zoneinfo.ZoneInfo("UTC")), iso("DateTime", **MOMENT, **UTC)),
    (
        NAIVE.replace(tzinfo=BERLIN),
        iso(
            "DateTime",
            **MOMENT,
            time_zone=b"Europe/Berlin",
            zone_abbr=b"CET",
            utc_offset=3600,
            std_offset=0,
        ),
    ),
    (
        NAIVE.replace(month=7, tzinfo=BERLIN),
        iso(
            "DateTime",
            **{**MOMENT, "month": 7},
            time_zone=b"Europe/Berlin",
            zone_abbr=b"CEST",
            utc_offset=3600,
            std_offset=3600,
        ),
    ),
    (
        NAIVE.replace(tzinfo=timezone(timedelta(hours=2), "CEST")),
        iso("DateTime", **{**MOMENT, "hour": 11}, **UTC),
    ),
    (
        NAIVE.replace(tzinfo=timezone(timedelta(hours=-11, microseconds=4))),
        iso(
            "DateTime",
            **{**MOMENT, "day": 29 - 28, "month": 3, "hour": 0, "microsecond": (2, 6)},
            **UTC,
        ),
    ),
    (timedelta(0), duration()),
    (
        timedelta(days=2, hours=3, minutes=4, seconds=5, microseconds=6),
        duration(day=2, hour=3, minute=4, second=5, microsecond=(6, 6)),
    ),
    (timedelta(seconds=-1.5), duration(second=-1, microsecond=(-500_000, 6))),
    (timedelta(weeks=3), duration(day=21)),
    # numbers
    (Decimal("1.50"), decimal(150, -2)),
    (Decimal("-1E+3"), decimal(1, 3, -1)),
    (Decimal("-0"), decimal(0, 0, -1)),
    (Decimal("Infinity"), decimal(A("inf"))),
    (Decimal("-Infinity"), decimal(A("inf"), 0, -1)),
    (Decimal("NaN"), decimal(A("NaN"))),
    (Decimal("sNaN123"), decimal(A("NaN"))),
    # texts and members
    (uuid.UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
    (Path("/a/é"), "/a/é".encode()),
    (PurePosixPath("a"), b"a"),
    (Path(os.fsdecode(b"/a\xff")), b"/a\xff"),
    (PathLike(), b"/a"),
    (UserString("ab"), b"ab"),
    (Color.RED, b"red"),
    (Color.PAIR, (1, [2])),
    (Flags.A | Flags.B, 3),
    # objects with fields
    (Point(1, date(2026, 2, 28)), {b"x": 1, b"y": iso("Date", **DAY), b"hidden": []}),
    (Slotted(1), {b"a": 1}),
    (User("a", {"t"}), struct("My.User", name=b"a", tags=struct("MapSet", map={b"t": []}))),
    (PrefixedUser("a"), struct("My.User", name=b"a")),
    # mappings
    (types.MappingProxyType({"a": 1}), {b"a": 1}),
    (UserDict({"a": 1}), {b"a": 1}),
    (ChainMap({"a": 1}, {"b": 2}), {b"a": 1, b"b": 2}),
    (Table(), {b"a": 97, b"b": 98}),
    ({date(2026, 2, 28): 1}, None),
    # sequences and sets
    (deque([1, 2]), [1, 2]),
    (UserList([1]), [1]),
    (range(3), [0, 1, 2]),
    (range(0), []),
    ({1: 2}.keys(), [1]),
    ({1: 2}.values(), [2]),
    ({1: 2}.items(), [(1, 2)]),
    (OrderedDict({1: 2}).keys(), [1]),
    (Table().keys(), [b"a", b"b"]),
    (Table().items(), [(b"a", 97), (b"b", 98)]),
    (array("d", [1.5]), [1.5]),
    (array("i", range(20)), list(range(20))),
    (Letters(), [b"x", b"y", b"z"]),
    (Members(), struct("MapSet", map={1: [], 2: []})),
    (Bag(), [5, 5]),
    # iterators
    (iter([1, 2]), [1, 2]),
    (map(str, (1, 2)), [b"1", b"2"]),
    (filter(None, (0, 1)), [1]),
    (zip("ab", (1, 2)), [(b"a", 1), (b"b", 2)]),
    (enumerate("a"), [(0, b"a")]),
    (reversed([1, 2]), [2, 1]),
    ((x * x for x in (1, 2, 3)), [1, 4, 9]),
    (itertools.chain([1], [2]), [1, 2]),
    (Count(), [1, 0]),
    ((iter([x]) for x in (1, 2)), [[1], [2]]),
]

ROWS_OF_NUMPY: list[tuple[object, object]] = (
    []
    if np is None
    else [
        (np.bool_(True), True),
        (np.int8(-5), -5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float16(0.5), 0.5),
        (np.float32(1.5), 1.5),
        (np.float64(2.5), 2.5),
        (np.longdouble(2.5), 2.5),
        (np.float32("inf"), A("inf")),
        (np.float32("nan"), A("nan")),
        (np.str_("é"), "é".encode()),
        (np.bytes_(b"a"), b"a"),
        (np.datetime64("2026-02-28"), iso("Date", **DAY)),
        (np.datetime64("2026-02"), iso("Date", **{**DAY, "day": 1})),
        (np.datetime64("2026"), iso("Date", year=2026, month=1, day=1)),
        (np.datetime64("2026-02-26", "W"), iso("Date", **{**DAY, "day": 26})),
        (np.datetime64("2026-02-28T13:04:05.000006"), iso("NaiveDateTime", **MOMENT)),
        (np.datetime64("2026-02-28T13:04:05.000006999"), iso("NaiveDateTime", **MOMENT)),
        (
            np.datetime64("2026-02-28T13", "h"),
            iso("NaiveDateTime", **{**MOMENT, "minute": 0, "second": 0, "microsecond": (0, 6)}),
        ),
        (np.datetime64("NaT"), None),
        (np.timedelta64(90, "s"), duration(minute=1, second=30)),
        (np.timedelta64(1_999, "ns"), duration(microsecond=(1, 6))),
        (np.timedelta64(2, "W"), duration(day=14)),
        (np.timedelta64("NaT", "s"), None),
    ]
)
ROWS += ROWS_OF_NUMPY


@pytest.mark.parametrize(("value", "expected"), ROWS, ids=stable)
def test_rows(value: object, expected: object) -> None:
    if isinstance(value, dict):  # as a key
        [(key, found)] = sent(value).items()
        assert (type(key), found) == (terms.Term, 1)
        assert _plain.decode(bytes(key))[0] == iso("Date", **DAY)
        return
    found = sent(value)
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (time(1, tzinfo=timezone.utc), r"a time zone: send a datetime, or what \.replace\(tzinfo"),
        (
            datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
            "in UTC it is not in the years",
        ),
        (range(10**9), "more than 1000000 elements, and may have no end; send a part, as iter"),
        (range(10**30), "more than 1000000 elements"),
        (itertools.count(), "more than 1000000 elements"),
        (itertools.repeat({}), "more than 1000000 elements"),
        ((x for x in itertools.count()), "more than 1000000 elements"),
    ],
    ids=stable,
)
def test_values_of_known_types_that_are_not_sent(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^Cannot serialize object of <class '.*{why}") as raised:
        sent({"a": [value]})
    assert str(raised.value).endswith('(at ["a"][0])')
    failure = errors.from_exception(raised.value)
    assert (failure.type, len(failure.traceback or ())) == ("ValueError", 1)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (Fraction(1, 2), "send what str() or float() makes of it"),
        (Unregistered(), "send what list() makes of it"),
        (sys.stdin, "send what its .read() gives"),
        (Point, "snex.set_custom_encoder takes a function that knows"),
        (Color, "send what list() makes of it"),
        (types.SimpleNamespace(), "snex.set_custom_encoder takes a function that knows"),
    ],
    ids=stable,
)
def test_what_is_of_no_known_type(value: object, remedy: str) -> None:
    assert everyday.substitute(value) is NotImplemented
    with pytest.raises(TypeError, match=r"^Cannot serialize object of <class ") as raised:
        sent([value])
    assert f"'>: {remedy}" in str(raised.value)


@pytest.fixture
def numpy_here() -> Any:
    return pytest.importorskip("numpy", reason="there is no NumPy for this Python")


@pytest.mark.usefixtures("numpy_here")
class TestNumPy:
    def test_values_that_are_not_sent(self) -> None:
        refused = [
            (np.datetime64("20000-01-01"), "not in the years 1 to 9999; send its text"),
            (np.datetime64(2**61, "s"), "not in the years 1 to 9999"),
            (np.timedelta64(5, "M"), r"no timedelta of Python; send what its \.item\(\) gives"),
            (np.timedelta64(2**62, "s"), "no timedelta of Python"),
            (np.timedelta64(5, "Y"), "no timedelta of Python"),
        ]
        for value, why in refused:
            with pytest.raises(ValueError, match=rf"^Cannot serialize object of .*{why}"):
                sent([value])

    def test_scalars_of_no_known_type(self) -> None:
        unknown = [
            (np.complex64(1j), "send its .real and .imag"),
            (np.complex128(1j), "send its .real and .imag"),
            (np.void(b"a"), "send what its .tolist() gives"),
        ]
        for value, remedy in unknown:
            assert everyday.substitute(value) is NotImplemented
            with pytest.raises(TypeError, match=rf"'>: {re.escape(remedy)}"):
                sent([value])

    def test_an_elixir_without_durations_gets_microseconds(self) -> None:
        value = np.timedelta64(-86_399_999_995, "us")
        assert _plain.decode(serde.encoder_v2.encode([value]))[0] == [-86_399_999_995]

    def test_types_that_are_taken_by_columns(self) -> None:
        assert everyday.converter(np.float32) is everyday.converter(np.bool_) is not None
        assert everyday.converter(np.ndarray) is None


class TestTimes:
    def test_an_elixir_without_durations_gets_microseconds(self) -> None:
        for encoder in (serde.encoder_without_duration, serde.encoder_v2):
            value = timedelta(days=-1, microseconds=5)
            assert _plain.decode(encoder.encode([value]))[0] == [-86_399_999_995]
            assert _plain.decode(encoder.encode(date(2026, 2, 28)))[0] == iso("Date", **DAY)

    @given(st.timedeltas())
    @settings(max_examples=examples(3))
    def test_a_duration_is_of_the_same_length_and_of_one_sign(self, value: timedelta) -> None:
        found = {str(k): v for k, v in sent(value).items()}
        units = ("day", "hour", "minute", "second")
        amounts = [*(found[unit] for unit in units), found["microsecond"][0]]
        parts = dict(zip(("days", "hours", "minutes", "seconds", "microseconds"), amounts))
        assert timedelta(**parts) == value
        assert not (min(amounts) < 0 < max(amounts))
        assert everyday.microseconds(value) == value // timedelta(microseconds=1)

    @pytest.mark.parametrize("name", ["key", "zone"])
    def test_names_of_zones_as_packages_have_them(self, name: str) -> None:
        class Zone(tzinfo):
            def utcoffset(self, _: datetime | None) -> timedelta:
                return timedelta(hours=3)

            def dst(self, _: datetime | None) -> timedelta | None:
                return None

            def tzname(self, _: datetime | None) -> str | None:
                return abbreviation

        zone: Any = Zone()
        abbreviation: str | None = "XST"
        assert sent(NAIVE.replace(tzinfo=zone))[A("time_zone")] == b"Etc/UTC"
        setattr(zone, name, "Mars/Utopia")
        found = sent(NAIVE.replace(tzinfo=zone))
        assert (found[A("time_zone")], found[A("zone_abbr")]) == (b"Mars/Utopia", b"XST")
        assert (found[A("utc_offset")], found[A("std_offset")]) == (10_800, 0)
        abbreviation = None
        assert sent(NAIVE.replace(tzinfo=zone))[A("time_zone")] == b"Etc/UTC"
        abbreviation = "XST"
        for other in (None, "", 5):
            setattr(zone, name, other)
            assert sent(NAIVE.replace(tzinfo=zone))[A("time_zone")] == b"Etc/UTC"

    def test_a_zone_that_knows_no_offset(self) -> None:
        class Zone(tzinfo):
            def utcoffset(self, _: datetime | None) -> None:
                return None

            dst = tzname = utcoffset

        assert sent(NAIVE.replace(tzinfo=Zone())) == iso("NaiveDateTime", **MOMENT)

    def test_years_that_only_others_have(self) -> None:
        class Far(datetime):
            year = 10_000

        with pytest.raises(ValueError, match="it is not in the years 1 to 9999; send its text"):
            sent(Far(2026, 1, 1))

    def test_the_hour_that_there_is_twice(self) -> None:
        moment = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
        assert sent(moment)[A("zone_abbr")] == b"CEST"
        assert sent(moment.replace(fold=1))[A("zone_abbr")] == b"CET"


def test_decimal_numbers_that_have_more_digits_than_texts_may() -> None:
    value = Decimal((1, (1,) * 10_000, -3))
    found = sent(value)
    assert found[A("coef")] == (10**10_000 - 1) // 9
    assert (found[A("exp")], found[A("sign")]) == (-3, -1)


class TestObjectsWithFields:
    def test_pydantic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Model:
            model_fields: ClassVar = {
                "a": types.SimpleNamespace(exclude=None),
                "secret": types.SimpleNamespace(exclude=True),
            }
            model_extra: dict[str, int] | None = None

            def model_dump(self) -> None:
                raise AssertionError("this copies all that is in it")

            def __init__(self, a: object) -> None:
                self.a = a
                self.secret = 1

        assert sent(Model([Model(1)])) == {b"a": [{b"a": 1}]}
        model = Model(1)
        model.model_extra = {"more": 2}
        assert sent(model) == {b"a": 1, b"more": 2}

        class Root(Model):
            __pydantic_root_model__ = True
            root = 5

        assert sent(Root(1)) == 5

        class Named(Model):
            __struct__ = "My.Model"

        assert sent(Named(1)) == struct("My.Model", a=1)

        class Empty(Model):
            __pydantic_fields__: ClassVar[dict[str, object]] = {}
            model_fields: ClassVar = {}

        assert sent(Empty(1)) == {}

    def test_the_first_pydantic(self) -> None:
        class Model:
            __validators__: ClassVar[dict[str, object]] = {}
            __fields__: ClassVar = {
                "a": types.SimpleNamespace(field_info=types.SimpleNamespace(exclude=None)),
                "secret": types.SimpleNamespace(field_info=types.SimpleNamespace(exclude=True)),
            }

            def __init__(self) -> None:
                self.a, self.secret, self.more = 1, 2, 3

        assert sent(Model()) == {b"a": 1, b"more": 3}

    def test_attrs(self) -> None:
        class Attrs:
            __attrs_attrs__ = (types.SimpleNamespace(name="a"),)
            a = 1

        assert sent(Attrs()) == {b"a": 1}

    def test_msgspec(self) -> None:
        class Meta(type):
            @property
            def __struct_fields__(cls) -> tuple[str, ...]:
                return ("a", "b")

        class Struct(metaclass=Meta):
            a, b = 1, "b"

        assert sent(Struct()) == {b"a": 1, b"b": b"b"}

    def test_names_of_structs_that_are_none(self) -> None:
        @dataclass
        class Odd:
            __struct__ = 5
            a: int

        assert sent(Odd(1)) == {b"a": 1}

        @dataclass
        class Long:
            __struct__ = "x" * 300
            a: int

        with pytest.raises(TypeError, match="it raised ValueError: atom too long"):
            sent(Long(1))

    def test_classes_are_not_kept(self) -> None:
        @dataclass
        class Gone:
            a: int

        sent(Gone(1))
        kept = weakref.ref(Gone)
        del Gone
        import gc

        gc.collect()
        assert kept() is None

    def test_what_others_call_by_these_names(self) -> None:
        class Odd:
            model_fields = 5
            __fields__ = ("a",)
            __attrs_attrs__ = None
            __dataclass_fields__ = None
            __struct_fields__ = None

        with pytest.raises(
            TypeError, match=r"Cannot serialize object of <class 'tests.*Odd'>: snex"
        ):
            sent(Odd())


class TestNothingOfPandas:
    @pytest.mark.parametrize(
        "name",
        ["pandas._libs.tslibs.nattype.NaTType", "pandas._libs.missing.NAType"],
    )
    def test_it_is_nil(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        module, _, attribute = name.rpartition(".")
        kind = type(attribute, (Timestamp,), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{attribute: kind}))
        assert sent([kind(2026, 1, 1)]) == [None]

    def test_a_class_that_is_only_called_so(self) -> None:
        kind = type("NAType", (), {"__module__": "pandas._libs.missing"})
        with pytest.raises(TypeError, match="Cannot serialize object of"):
            sent(kind())


def test_scalars_of_ml_dtypes() -> None:
    for name, value, expected in (("bfloat16", 1.5, 1.5), ("int4", 3.0, 3)):
        kind = type(name, (), {"__module__": "ml_dtypes", "dtype": types.SimpleNamespace(kind="V")})
        kind.__float__ = lambda self, value=value: value  # type: ignore[attr-defined]
        kind.__int__ = lambda self, value=value: int(value)  # type: ignore[attr-defined]
        assert everyday._numpy_scalar(kind()) == expected


class TestIterators:
    def test_what_a_generator_raises_is_the_users(self) -> None:
        def broken(error: Exception) -> Iterator[int]:
            yield 1
            raise error

        with pytest.raises(KeyError, match="gone"):
            sent([broken(KeyError("gone"))])
        for kind in (ValueError, TypeError, UnicodeError):
            with pytest.raises(kind if kind is not UnicodeError else ValueError) as raised:
                sent([broken(kind("gone"))])
            failure = errors.from_exception(raised.value)
            assert failure.type == kind.__name__
            assert failure.reason == "gone (at [0])"
            told = "".join(failure.traceback or ())
            assert "in broken" in told
            assert told.endswith(f"{kind.__name__}: gone (at [0])\n")
            assert told.count("Traceback") == 1

    def test_a_generator_is_run_once(self) -> None:
        runs: list[int] = []

        def once() -> Iterator[int]:
            runs.append(1)
            yield from (1, 2)

        value = [{"a": once()} for _ in range(40)]
        assert sent(value) == [{b"a": [1, 2]}] * 40
        assert len(runs) == 40

    def test_generators_in_generators_without_end(self) -> None:
        def nested() -> Iterator[object]:
            yield nested()

        with pytest.raises(ValueError, match="nested deeper than max_depth"):
            sent(nested())

    def test_as_many_as_there_may_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(everyday, "MAX_ITEMS", 3)
        assert sent(iter("xyz")) == sent(Letters()) == [b"x", b"y", b"z"]
        for value in (iter("abcd"), range(4), UserDict.fromkeys("abcd"), UserList("abcd")):
            with pytest.raises(ValueError, match="more than 3 elements"):
                sent(value)
        # What is in memory already has a length of its own.
        assert sent(deque(range(4))) == [0, 1, 2, 3]
        assert len(sent(dict.fromkeys(range(4)).items())) == 4


class TestWhatBreaks:
    """The error names the place, whatever a value does while it is looked at."""

    @pytest.mark.parametrize("error", [KeyError("k"), AttributeError("a"), RuntimeError()])
    def test_a_property(self, error: Exception) -> None:
        @dataclass
        class Broken:
            a: int

            def __getattribute__(self, name: str) -> Any:
                if name == "a":
                    raise error
                return super().__getattribute__(name)

        with pytest.raises(
            TypeError, match=r"^Cannot serialize object of <class '.*Broken'>: it"
        ) as r:
            sent({"k": [Broken(1)]})
        told = f"it raised {type(error).__name__}"
        assert told in str(r.value)
        assert str(r.value).endswith(', when it was looked at (at ["k"][0])')
        failure = errors.from_exception(r.value)
        assert failure.type == "TypeError"
        assert "in __getattribute__" in "".join(failure.traceback or ())

    def test_what_it_claims_to_be_is_not_asked(self) -> None:
        class Hostile:
            @property
            def __class__(self) -> type:
                raise RuntimeError("no class")

            @__class__.setter
            def __class__(self, _: type) -> None: ...

        class Pretending:
            @property
            def __class__(self) -> type:
                return str

            @__class__.setter
            def __class__(self, _: type) -> None: ...

        for value in (Hostile(), Pretending()):
            with pytest.raises(TypeError, match=r"Cannot serialize object of .*\(at \[0\]\)$"):
                sent([value])
            with pytest.raises(TypeError, match=r"Cannot serialize object of .*\(at \[0\]\)$"):
                serde.encoder_v2.encode([value])

    def test_a_metaclass(self) -> None:
        class Meta(type):
            def __hash__(cls) -> int:
                raise RuntimeError("no hash")

        class Hostile(metaclass=Meta):
            pass

        with pytest.raises(
            TypeError, match="it raised RuntimeError: no hash, when it was looked at"
        ):
            everyday.substitute(Hostile())

    @pytest.mark.parametrize(
        "base", [Mapping, Sequence, Set, collections.abc.ItemsView], ids=lambda base: base.__name__
    )
    def test_a_container(self, base: Any) -> None:
        def fail(*_: object) -> Any:
            raise LookupError("no more")

        names = ("__getitem__", "__iter__", "__len__", "__contains__")
        kind = type("Broken", (base,), dict.fromkeys(names, fail))
        value = kind({}) if base is collections.abc.ItemsView else kind()
        with pytest.raises(TypeError, match="LookupError: no more, when it was looked at"):
            sent([value])

    def test_a_set_of_what_cannot_be_in_one(self) -> None:
        class Lists(Members):
            def __iter__(self) -> Any:
                return iter(([],))

        with pytest.raises(TypeError, match=r"TypeError: .*unhashable"):
            sent(Lists())

    def test_what_memory_does_not_suffice_for(self) -> None:
        class Huge(Letters):
            def __getitem__(self, index: Any) -> Any:
                raise MemoryError

        with pytest.raises(MemoryError):
            sent(Huge())

    def test_a_mapping_that_changes_meanwhile(self) -> None:
        class Changing(UserDict[int, int]):
            def __getitem__(self, key: int) -> int:
                self.data[len(self.data)] = 0
                return super().__getitem__(key)

        assert sent(Changing({0: 0})) == {0: 0}


def test_a_class_may_be_registered_later() -> None:
    class Later:
        def __getitem__(self, index: int) -> int:
            return (1, 2)[index]

        def __iter__(self) -> Iterator[int]:
            return iter((1, 2))

    with pytest.raises(TypeError):
        sent(Later())
    Sequence.register(Later)
    assert sent(Later()) == [1, 2]


@given(
    st.recursive(
        st.dates() | st.datetimes() | st.times() | st.uuids() | st.decimals() | st.timedeltas(),
        lambda inner: st.lists(inner).map(deque) | st.lists(inner).map(iter),
    )
)
@settings(max_examples=examples(2))
def test_whatever_it_is_it_is_sent(value: object) -> None:
    assert serde.encoder.encode(value)


def test_a_custom_encoder_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def custom(value: Any) -> object:
        if isinstance(value, date):
            return value.isoformat()
        raise TypeError("not with me")

    monkeypatch.setattr(serde, "_custom", custom)
    assert sent([date(2026, 2, 28), range(2)]) == [b"2026-02-28", [0, 1]]
    with pytest.raises(TypeError, match=r"not with me \(at \[0\]\)"):
        sent([object()])


class TestLongLists:
    """They are written by columns; what comes is the same."""

    @pytest.mark.parametrize("row", range(len(ROWS)))
    def test_they_hold_what_short_ones_do(self, row: int) -> None:
        value, expected = ROWS[row]
        if isinstance(value, Iterator | dict):
            return
        assert sent([value] * 200) == [expected] * 200
        assert sent([{"a": value, "b": (1, value)}] * 200) == (
            [{b"a": expected, b"b": (1, expected)}] * 200
        )
        assert sent([(None,), (value,)] * 100) == [(None,), (expected,)] * 100
        old = serde.encoder_without_duration
        assert _plain.decode(old.encode([value] * 200))[0] == (
            [_plain.decode(old.encode(value))[0]] * 200
        )

    def test_of_several_shapes(self) -> None:
        values = [date(2026, 2, 28), NAIVE, NAIVE.replace(tzinfo=BERLIN), timedelta(1), None, 1.5]
        assert sent(values * 100) == [sent(value) for value in values] * 100

    def test_one_that_is_not_sent(self) -> None:
        value = [time(1)] * 200 + [time(1, tzinfo=timezone.utc)]
        with pytest.raises(ValueError, match=r"with a time zone: .* \(at \[200\]\)"):
            sent(value)

    def test_the_place_of_what_is_behind_them(self) -> None:
        """Of what is written by columns nothing is known when something fails elsewhere."""
        day = date(2026, 2, 28)
        value = {
            "a": [day] * 200,
            "b": [{"at": day, "id": uuid.UUID(int=1)}] * 200,
            "c": [day, iter([day])],
            "d": [day, {"e": deque([day, object()])}],
        }
        with pytest.raises(TypeError, match=r'\(at \["d"\]\[1\]\["e"\]\[1\]\)$'):
            sent(value)

    def test_users_are_asked_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serde, "_custom", str)
        assert sent([date(2026, 2, 28)] * 200) == [b"2026-02-28"] * 200
        monkeypatch.setattr(serde, "_custom", None)
        monkeypatch.setattr(registered, "_encoders", {})
        registered.encoder(date, lambda value: value.day)
        assert sent([date(2026, 2, 28)] * 200) == [28] * 200

    def test_types_that_are_taken_so(self) -> None:
        for known in (date, datetime, time, timedelta, Decimal, uuid.UUID):
            assert everyday.converter(known) is not None
        for other in (Timestamp, str, Point, Color, range, Path):
            assert everyday.converter(other) is None


def test_nothing_is_imported_for_it() -> None:
    import subprocess

    source = (
        "import sys; from snex_runtime import serde; serde.encoder.encode([range(3), iter([])]);"
        "print([m for m in ('decimal', 'uuid', 'dataclasses', 'zoneinfo', 'numpy', 'pathlib')"
        " if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=True, text=True
    )
    assert found.stdout == "[]\n"


def test_docstrings_tell_the_truth() -> None:
    import doctest

    assert doctest.testmod(everyday).attempted
    assert not doctest.testmod(everyday).failed
