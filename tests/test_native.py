"""What structs of Elixir's own become with ``structs_as: :native``: a row for each, and back."""

from __future__ import annotations

import zoneinfo
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snex_node.wire import terms
from snex_node.wire.describe import short
from snex_node.wire.etf import Encoder
from snex_runtime import native, serde
from snex_runtime.serde import merge_options
from tests.support.examples import examples

A = terms.Atom
_wire = Encoder()
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def received(term: object, **options: str) -> Any:
    chosen = merge_options({"structs_as": "native", **options})
    return serde.decoder(chosen).decode(_wire.encode(term))[0]


def back(value: object) -> Any:
    """What ``value`` is when it has been to Elixir."""
    return serde.decoder(serde.Options(structs_as="native")).decode(serde.encoder.encode(value))[0]


def struct(name: str, /, **fields: object) -> dict[object, object]:
    return {A("__struct__"): A(f"Elixir.{name}"), **{A(k): v for k, v in fields.items()}}


def iso(name: str, /, **fields: object) -> dict[object, object]:
    return struct(name, **{"calendar": A("Elixir.Calendar.ISO"), **fields})


DAY: dict[str, object] = {"year": 2026, "month": 2, "day": 28}
CLOCK: dict[str, object] = {"hour": 13, "minute": 4, "second": 5, "microsecond": (6, 6)}
MOMENT = {**DAY, **CLOCK}
NAIVE = datetime(2026, 2, 28, 13, 4, 5, 6)
NONE: dict[str, object] = dict.fromkeys(
    ("year", "month", "week", "day", "hour", "minute", "second"), 0
)


def zoned(name: object, abbreviation: object, utc: int, std: int, **fields: object) -> Any:
    zone = {"time_zone": name, "zone_abbr": abbreviation, "utc_offset": utc, "std_offset": std}
    return iso("DateTime", **{**MOMENT, **zone, **fields})


def duration(**fields: object) -> Any:
    return struct("Duration", **{**NONE, "microsecond": (0, 0), **fields})


def decimal(coef: object, exp: object = 0, sign: object = 1) -> Any:
    return struct("Decimal", coef=coef, exp=exp, sign=sign)


ROWS = [
    (iso("Date", **DAY), date(2026, 2, 28)),
    (iso("Time", **CLOCK), time(13, 4, 5, 6)),
    (iso("NaiveDateTime", **MOMENT), NAIVE),
    (zoned(b"Etc/UTC", b"UTC", 0, 0), NAIVE.replace(tzinfo=timezone.utc)),
    (zoned(b"Europe/Berlin", b"CET", 3600, 0), NAIVE.replace(tzinfo=BERLIN)),
    (
        zoned(b"Europe/Berlin", b"CEST", 3600, 3600, month=7),
        NAIVE.replace(month=7, tzinfo=BERLIN),
    ),
    (
        zoned(b"Mars/Utopia", b"MST", 3600, 60),
        NAIVE.replace(tzinfo=timezone(timedelta(seconds=3660), "MST")),
    ),
    (
        zoned(b"../../etc", b"X", 5, 0),
        NAIVE.replace(tzinfo=timezone(timedelta(seconds=5), "X")),
    ),
    # Of another offset than Python's database has for that zone.
    (
        zoned(b"Europe/Berlin", b"LMT", 3208, 0),
        NAIVE.replace(tzinfo=timezone(timedelta(seconds=3208), "LMT")),
    ),
    (
        duration(week=1, day=-2, hour=3, minute=4, second=5, microsecond=(6, 6)),
        timedelta(days=5, hours=3, minutes=4, seconds=5, microseconds=6),
    ),
    (decimal(150, -2), Decimal("1.50")),
    (decimal(0, 3, -1), Decimal("-0E+3")),
    (decimal(10**5000, 1), Decimal((0, (1, *(0,) * 5000), 1))),
    (decimal(A("inf")), Decimal("Infinity")),
    (decimal(A("inf"), 0, -1), Decimal("-Infinity")),
    (struct("Range", first=1, last=3, step=1), range(1, 4)),
    (struct("Range", first=3, last=1, step=-1), range(3, 0, -1)),
    (struct("Range", first=1, last=10, step=4), range(1, 11, 4)),
    (struct("Range", first=1, last=0, step=1), range(1, 1)),
]


@pytest.mark.parametrize(("term", "expected"), ROWS, ids=range(len(ROWS)))
@pytest.mark.parametrize("atom_as", ["atom", "distinct_atom"])
@pytest.mark.parametrize("binary_as", ["str", "bytes", "bytearray"])
def test_rows(term: Any, expected: Any, atom_as: str, binary_as: str) -> None:
    options = {"atom_as": atom_as, "binary_as": binary_as}
    for found in (received(term, **options), received([{1: term}] * 40, **options)[7][1]):
        assert type(found) is type(expected)
        assert (found, repr(found)) == (expected, repr(expected))
    assert type(received(term, structs_as="dict", **options)) is dict


def test_not_a_number() -> None:
    for sign in (1, -1):
        assert received(decimal(A("NaN"), 0, sign)).is_qnan()


def test_the_hour_that_there_is_twice() -> None:
    moment = {"year": 2026, "month": 10, "day": 25, "hour": 2, "minute": 30}
    assert received(zoned(b"Europe/Berlin", b"CEST", 3600, 3600, **moment)).fold == 0
    assert received(zoned(b"Europe/Berlin", b"CET", 3600, 0, **moment)).fold == 1


@pytest.mark.parametrize(
    "term",
    [
        iso("Date", **{**DAY, "year": 0}),
        iso("Date", **{**DAY, "year": 10_000}),
        iso("Date", **{**DAY, "year": -1}),
        iso("Date", **{**DAY, "day": 31}),
        iso("Date", **{**DAY, "day": 1.5}),
        iso("Date", **{**DAY, "day": True}),
        iso("Date", **{**DAY, "day": 2**70}),
        iso("Date", **{**DAY, "calendar": A("Elixir.Calendar.Holocene")}),
        iso("Date", **{**DAY, "calendar": b"Elixir.Calendar.ISO"}),
        struct("Date", **DAY),
        struct("Date"),
        iso("Time", **{**CLOCK, "second": 60}),
        iso("Time", **{**CLOCK, "hour": 24}),
        iso("Time", **{**CLOCK, "microsecond": 5}),
        iso("Time", **{**CLOCK, "microsecond": (1.5, 6)}),
        iso("Time", **{**CLOCK, "microsecond": (1,)}),
        iso("NaiveDateTime", **{**MOMENT, "month": 13}),
        zoned(b"Mars/Utopia", b"MST", 10**6, 0),
        zoned(b"Mars/Utopia", b"MST", 10**30, 0),
        zoned(A("Utopia"), b"MST", 1, 0),
        zoned(b"Mars/Utopia", 5, 1, 0),
        duration(month=1),
        duration(year=-1),
        duration(day=10**10),
        duration(day=10**400),
        decimal(-1),
        decimal(b"inf"),
        decimal(A("foo")),
        decimal(1.5),
        decimal(1, 10**30),
        decimal(1, A("x")),
        decimal(1, 0, 0),
        struct("Range", first=1, last=3, step=0),
        struct("Range", first=1, last=3),
        struct("Range", first=b"a", last=b"b", step=1),
    ],
    ids=short,
)
def test_what_stays_a_dict(term: Any) -> None:
    found = received([term])[0]
    assert found == received(term, structs_as="dict")
    assert _wire.encode(found)


def test_structs_of_others_stay_dicts() -> None:
    assert received(struct("URI", host=None)) == {"__struct__": "Elixir.URI", "host": None}


def test_a_python_without_a_database_of_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_zone", lambda name: None)
    found = received(zoned(b"Europe/Berlin", b"CET", 3600, 0))
    assert found.tzinfo == timezone(timedelta(hours=1), "CET")
    assert found.tzname() == "CET"


ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Eucla"])
AWARE = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1)).flatmap(
    lambda naive: ZONES.map(
        # Through UTC, so that it is a time that there is.
        lambda name: naive.replace(tzinfo=timezone.utc).astimezone(zoneinfo.ZoneInfo(name))
    )
)


@given(st.dates() | st.times() | st.datetimes() | st.timedeltas() | AWARE)
@settings(max_examples=examples(5))
def test_times_come_back_as_they_went(value: Any) -> None:
    found = back([value])[0]
    assert type(found) is type(value)
    assert found == value
    if isinstance(value, datetime) and value.tzinfo is not None:
        assert (found.tzinfo, found.fold) == (value.tzinfo, value.fold)


@given(
    st.datetimes(
        timezones=st.timezones()
        | st.builds(
            timezone, st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23))
        )
    )
)
@settings(max_examples=examples(3))
def test_whatever_the_zone_it_is_the_same_moment(value: datetime) -> None:
    try:
        value.astimezone(timezone.utc)
    except OverflowError:
        return
    found = back(value)
    assert (found - found.utcoffset()).replace(tzinfo=None) == (
        value - value.utcoffset()  # type: ignore[operator]
    ).replace(tzinfo=None)


@given(st.decimals(allow_nan=False) | st.integers().map(Decimal))
@settings(max_examples=examples(3))
def test_decimal_numbers_come_back_digit_by_digit(value: Decimal) -> None:
    assert back(value).as_tuple() == value.as_tuple()


_LEAVES = (
    st.none()
    | st.integers(-5, 10_000)
    | st.sampled_from([A("Elixir.Calendar.ISO"), A("inf"), b"Etc/UTC", (5, 6), 1.5])
)


@given(
    st.sampled_from(sorted(native.STRUCTS)),
    st.dictionaries(
        st.sampled_from(
            [
                "calendar",
                *NONE,
                "microsecond",
                "coef",
                "exp",
                "sign",
                "first",
                "last",
                "step",
                "time_zone",
                "zone_abbr",
                "utc_offset",
                "std_offset",
            ]
        ),
        _LEAVES,
    ),
)
@settings(max_examples=examples(5))
def test_no_fields_make_it_fail(name: str, fields: dict[str, object]) -> None:
    received(struct(name.removeprefix("Elixir."), **fields))


def test_docstrings_tell_the_truth() -> None:
    import doctest

    assert doctest.testmod(native).attempted
    assert not doctest.testmod(native).failed
