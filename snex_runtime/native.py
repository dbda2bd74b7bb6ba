"""What structs of Elixir's own become with ``structs_as: :native``: dates, times, decimal numbers.

A struct that Python has no counterpart for, as a year before 1 or another calendar, stays the dict
that it is with ``structs_as: :dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from snex_node.wire.terms import Atom

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["STRUCTS", "native"]

Fields = dict[str, Any]

_UTC: Final = "Etc/UTC"
_MAX_ZONES: Final = 1024
"""Time zones that are remembered, of some 600 that there are and of names that are none."""


class _Unlike(Exception):
    """Fields that are not what the struct has."""


def native(name: str, fields: Fields) -> object:
    """What the struct of this name becomes; `NotImplemented` where it stays what it is.

    The keys of ``fields`` are texts, or atoms that are equal to them.

    >>> native("Elixir.Range", {"first": 1, "last": 3, "step": 1})
    range(1, 4)
    """
    try:
        return STRUCTS[name](fields)
    except (_Unlike, KeyError, ValueError, OverflowError, ArithmeticError):
        return NotImplemented


def _integers(fields: Fields, *names: str) -> list[int]:
    found = [fields[name] for name in names]
    if any(type(each) is not int for each in found):
        raise _Unlike
    return found


def _check_calendar(fields: Fields) -> None:
    if _name(fields["calendar"]) != "Elixir.Calendar.ISO":
        raise _Unlike


def _name(value: object) -> str | None:
    """The name of an atom, of whatever class the options say that it is; None for all else."""
    return str.__str__(value) if isinstance(value, Atom) else None


def _microsecond(fields: Fields) -> int:
    """That of ``{value, precision}``."""
    pair = fields["microsecond"]
    if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not int:
        raise _Unlike
    value: int = pair[0]
    return value


def _text(value: object) -> str:
    """A binary, as whatever the options say it becomes."""
    if isinstance(value, bytes | bytearray):
        return value.decode()
    if type(value) is not str:
        raise _Unlike
    return value


def _date(fields: Fields) -> date:
    _check_calendar(fields)
    return date(*_integers(fields, "year", "month", "day"))


def _time(fields: Fields) -> time:
    _check_calendar(fields)
    hour, minute, second = _integers(fields, "hour", "minute", "second")
    return time(hour, minute, second, _microsecond(fields))


def _naive(fields: Fields) -> datetime:
    day, moment = _date(fields), _time(fields)
    return datetime.combine(day, moment)


def _aware(fields: Fields) -> datetime:
    naive = _naive(fields)
    name, abbreviation = _text(fields["time_zone"]), _text(fields["zone_abbr"])
    offset = timedelta(seconds=sum(_integers(fields, "utc_offset", "std_offset")))
    if name == _UTC and not offset:
        return naive.replace(tzinfo=timezone.utc)
    zone = _zone(name)
    if zone is not None:
        for fold in (0, 1):  # of an hour that there is twice
            found = naive.replace(tzinfo=zone, fold=fold)
            if found.utcoffset() == offset:
                return found
    return naive.replace(tzinfo=timezone(offset, abbreviation))


@lru_cache(maxsize=_MAX_ZONES)
def _zone(name: str) -> tzinfo | None:
    """None for a name that Python's database does not have, or where there is no database."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - few need it, and it takes 3 ms

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        return None


def _duration(fields: Fields) -> timedelta:
    units = ("year", "month", "week", "day", "hour", "minute", "second")
    years, months, weeks, days, hours, minutes, seconds = _integers(fields, *units)
    if years or months:
        raise _Unlike  # they are of no fixed length
    return timedelta(
        weeks=weeks,
        days=days,
        hours=hours,
        minutes=minutes,
        seconds=seconds,
        microseconds=_microsecond(fields),
    )


def _decimal(fields: Fields) -> Decimal:
    from decimal import Decimal  # noqa: PLC0415 - as zoneinfo

    exponent, sign = _integers(fields, "exp", "sign")
    coefficient = fields["coef"]
    if sign not in (1, -1):
        raise _Unlike
    negative = int(sign < 0)
    if type(coefficient) is int and coefficient >= 0:
        digits = Decimal(coefficient).as_tuple().digits
        return Decimal((negative, digits, exponent))
    special = {"inf": "Infinity", "NaN": "NaN"}.get(_name(coefficient) or "")
    if special is None:
        raise _Unlike
    return Decimal(f"-{special}" if negative else special)


def _range(fields: Fields) -> range:
    first, last, step = _integers(fields, "first", "last", "step")
    return range(first, last + (1 if step > 0 else -1), step)


STRUCTS: Final[dict[str, Callable[[Fields], object]]] = {
    "Elixir.Date": _date,
    "Elixir.Time": _time,
    "Elixir.NaiveDateTime": _naive,
    "Elixir.DateTime": _aware,
    "Elixir.Duration": _duration,
    "Elixir.Decimal": _decimal,
    "Elixir.Range": _range,
}
"""What makes an object of the fields of each struct, by its name."""
