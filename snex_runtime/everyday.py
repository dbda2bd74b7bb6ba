"""What is sent in place of values that Python programs have every day.

Dates and times, decimal numbers, scalars of NumPy, paths, enums, objects with fields, mappings,
sequences and iterators: for each there is what an Elixir program would expect. Nothing is imported
to know them. A value of a class can only be there when the module of the class is, and what is no
part of the standard library is known by what its class has.

What is given is encoded by the rules for all values, so that it may hold values of these types.
"""

from __future__ import annotations

import os
import sys
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
    Set,
)
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from snex_node.wire.describe import text_of, type_name, type_repr
from snex_node.wire.terms import Atom

__all__ = ["BOUNDARIES", "MAX_ITEMS", "converter", "microseconds", "substitute"]

MAX_ITEMS: Final = 1_000_000
"""Elements that are taken of what may never come to an end: of iterators, and of sequences,
mappings and sets of classes that make them as they are asked for. So many integers take 50 ms and
40 MB."""

Convert = Callable[[Any], object]


class _Refused(ValueError):
    """A value that is not sent; the message says what to send instead."""


def substitute(value: object) -> object:
    """What is encoded in place of ``value``; `NotImplemented` for what is not known here.

    Raises ``ValueError`` for a value of a known type that Elixir has nothing for, ``TypeError`` for
    one that fails while it is looked at, and what an iterator raises.

    >>> substitute(date(2026, 2, 28))[Atom("day")], substitute(range(3))
    (28, [0, 1, 2])
    """
    convert: Convert | None = None
    try:
        convert = _converter(type(value))
        return convert(value)
    except (_Refused, MemoryError):
        raise
    except Exception as error:
        if convert is _exhausted:  # that is the user's, as what a function raises
            raise
        raise _broken(value, error) from None


def microseconds(value: object) -> object:
    """A ``timedelta`` for an Elixir without ``Duration``: its microseconds; else NotImplemented.

    >>> microseconds(timedelta(seconds=1.5)), microseconds(1)
    (1500000, NotImplemented)
    """
    if not issubclass(type(value), timedelta):  # what it claims to be is not asked
        return NotImplemented
    return _microseconds(cast(timedelta, value))


def _broken(value: object, error: Exception) -> TypeError:
    told = f"{type_name(type(error))}: {text_of(error)}".removesuffix(": ")
    message = f"{_cannot(value)}: it raised {told}, when it was looked at"
    return TypeError(message).with_traceback(error.__traceback__)


def _cannot(value: object) -> str:
    return f"Cannot serialize object of {type_repr(type(value))}"


# --- dates and times ----------------------------------------------------------------------------

_STRUCT: Final = Atom("__struct__")
_CALENDAR: Final = Atom("calendar")
_ISO: Final = Atom("Elixir.Calendar.ISO")
_YEAR, _MONTH, _DAY = Atom("year"), Atom("month"), Atom("day")
_HOUR, _MINUTE, _SECOND = Atom("hour"), Atom("minute"), Atom("second")
_MICROSECOND, _WEEK = Atom("microsecond"), Atom("week")
_TIME_ZONE, _ZONE_ABBR = Atom("time_zone"), Atom("zone_abbr")
_UTC_OFFSET, _STD_OFFSET = Atom("utc_offset"), Atom("std_offset")
_DATE, _TIME = Atom("Elixir.Date"), Atom("Elixir.Time")
_NAIVE, _AWARE = Atom("Elixir.NaiveDateTime"), Atom("Elixir.DateTime")
_DURATION: Final = Atom("Elixir.Duration")

_UTC_NAMES: Final = frozenset(
    ("UTC", "UCT", "Zulu", "Universal", "Etc/UTC", "Etc/UCT", "Etc/Zulu", "Etc/Universal")
)
_NO_TIME: Final = timedelta(0)
_IN_UTC: Final[dict[Atom, object]] = {
    _TIME_ZONE: "Etc/UTC",
    _ZONE_ABBR: "UTC",
    _UTC_OFFSET: 0,
    _STD_OFFSET: 0,
}


def _date(value: date) -> object:
    return {
        _STRUCT: _DATE,
        _CALENDAR: _ISO,
        _YEAR: value.year,
        _MONTH: value.month,
        _DAY: value.day,
    }


def _time(value: time) -> object:
    if value.tzinfo is not None:
        raise _Refused(
            f"{_cannot(value)} with a time zone: send a datetime, or what .replace(tzinfo=None) "
            "makes of it"
        )
    return {
        _STRUCT: _TIME,
        _CALENDAR: _ISO,
        _HOUR: value.hour,
        _MINUTE: value.minute,
        _SECOND: value.second,
        _MICROSECOND: (value.microsecond, 6),
    }


def _datetime(value: datetime) -> object:
    zone = value.tzinfo
    if zone is None:
        return _moment(value, _NAIVE)
    if zone is not timezone.utc:
        offset = value.utcoffset()
        if offset is None:
            return _moment(value, _NAIVE)
        name = _zone_name(zone)
        abbreviation, saving = value.tzname(), value.dst() or _NO_TIME
        fractions = offset.microseconds or saving.microseconds
        if name is not None and isinstance(abbreviation, str) and not fractions:
            return {
                **_moment(value, _AWARE),
                _TIME_ZONE: name,
                _ZONE_ABBR: abbreviation,
                _UTC_OFFSET: _seconds(offset - saving),
                _STD_OFFSET: _seconds(saving),
            }
        try:
            value = value.astimezone(timezone.utc)
        except OverflowError:
            raise _Refused(f"{_cannot(value)}: in UTC it is not in the years 1 to 9999") from None
    return {**_moment(value, _AWARE), **_IN_UTC}


def _zone_name(zone: tzinfo) -> str | None:
    """The name that a database of time zones has it under, if it tells one; None for UTC."""
    for attribute in ("key", "zone"):  # of zoneinfo, of pytz
        name = getattr(zone, attribute, None)
        if isinstance(name, str) and name:
            return None if name in _UTC_NAMES else str.__str__(name)
    return None


def _moment(value: datetime, struct: Atom) -> dict[Atom, object]:
    if not 1 <= value.year <= 9999:  # pandas has such
        raise _Refused(f"{_cannot(value)}: it is not in the years 1 to 9999; send its text")
    return {
        _STRUCT: struct,
        _CALENDAR: _ISO,
        _YEAR: value.year,
        _MONTH: value.month,
        _DAY: value.day,
        _HOUR: value.hour,
        _MINUTE: value.minute,
        _SECOND: value.second,
        _MICROSECOND: (value.microsecond, 6),
    }


def _seconds(value: timedelta) -> int:
    return 86_400 * value.days + value.seconds


def _microseconds(value: timedelta) -> int:
    return 1_000_000 * _seconds(value) + value.microseconds


def _timedelta(value: timedelta) -> object:
    """All units have the sign of the whole: ``Date.shift/2`` takes what is of days alone."""
    whole = _microseconds(value)
    sign = -1 if whole < 0 else 1
    seconds, fraction = divmod(abs(whole), 1_000_000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return {
        _STRUCT: _DURATION,
        _YEAR: 0,
        _MONTH: 0,
        _WEEK: 0,
        _DAY: sign * days,
        _HOUR: sign * hour,
        _MINUTE: sign * minute,
        _SECOND: sign * second,
        _MICROSECOND: (sign * fraction, 6),
    }


# --- numbers ------------------------------------------------------------------------------------

_COEF, _EXP, _SIGN = Atom("coef"), Atom("exp"), Atom("sign")
_DECIMAL: Final = Atom("Elixir.Decimal")
_INFINITY, _NOT_A_NUMBER = Atom("inf"), Atom("NaN")

_FINER: Final = frozenset(("ns", "ps", "fs", "as"))  # than microseconds


def _decimal(value: Any) -> object:
    decimal = sys.modules["decimal"].Decimal
    sign, digits, exponent = decimal.as_tuple(value)
    coefficient: object
    if type(exponent) is int:
        coefficient = int(decimal((0, digits, 0)))  # of any length, as no text is made of it
    else:
        coefficient = _INFINITY if exponent == "F" else _NOT_A_NUMBER
        exponent = 0
    return {
        _STRUCT: _DECIMAL,
        _COEF: coefficient,
        _EXP: exponent,
        _SIGN: -1 if sign else 1,
    }


def _numpy_scalar(value: Any) -> object:
    kind = value.dtype.kind
    if kind == "b":
        return bool(value)
    if kind in "iu":
        return int(value)
    if kind == "f":
        return float(value)
    if kind == "M":
        return _numpy_datetime(value)
    if kind == "m":
        return _numpy_timedelta(value)
    if type_name(type(value)).startswith("ml_dtypes."):  # bfloat16 and its like
        return int(value) if "int" in type(value).__name__ else float(value)
    return NotImplemented


def _numpy_datetime(value: Any) -> object:
    if sys.modules["numpy"].datetime_data(value.dtype)[0] in _FINER:
        value = value.astype("datetime64[us]")
    found = value.item()
    if found is None or isinstance(found, date):
        return found
    raise _Refused(f"{_cannot(value)}: it is not in the years 1 to 9999; send its text")


def _numpy_timedelta(value: Any) -> object:
    if sys.modules["numpy"].datetime_data(value.dtype)[0] in _FINER:
        value = value.astype("timedelta64[us]")
    found = value.item()
    if found is None or isinstance(found, timedelta):
        return found
    raise _Refused(f"{_cannot(value)}: it is no timedelta of Python; send what its .item() gives")


# --- texts, members, nothing --------------------------------------------------------------------


def _nothing(_: object) -> None:
    return None


def _text(value: object) -> str:
    return str(value)


def _member(value: Any) -> object:
    found: object = value.value
    return found


def _path(value: Any) -> str | bytes:
    text: str | bytes = os.fspath(value)
    if isinstance(text, bytes):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        return os.fsencode(text)
    return text


# --- objects with fields ------------------------------------------------------------------------


def _fields_of(kind: type) -> Convert | None:
    """What reads the fields of an object, if its class says that it has some."""
    names = _field_names(kind)
    if names is not None:
        return _reader(names, _struct_name(kind))
    fields = _attribute(kind, "__pydantic_fields__") or _attribute(kind, "model_fields")
    if isinstance(fields, dict) and _attribute(kind, "model_dump") is not None:
        if _attribute(kind, "__pydantic_root_model__") is True:
            return _root
        told = tuple(name for name, field in fields.items() if not _is_excluded(field))
        return _reader(told, _struct_name(kind), _extra_of_pydantic)
    fields = _attribute(kind, "__fields__")
    if isinstance(fields, dict) and _attribute(kind, "__validators__") is not None:
        hidden = frozenset(
            name
            for name, field in fields.items()
            if _is_excluded(getattr(field, "field_info", None))
        )
        return _reader((), _struct_name(kind), lambda value: _attributes(value, hidden))
    return None


def _field_names(kind: type) -> tuple[str, ...] | None:
    """Those of a dataclass, of a class of attrs, of a struct of msgspec."""
    dataclasses = sys.modules.get("dataclasses")
    if dataclasses is not None and isinstance(_attribute(kind, "__dataclass_fields__"), dict):
        return tuple(field.name for field in dataclasses.fields(kind))
    attributes = _attribute(kind, "__attrs_attrs__")
    if isinstance(attributes, tuple):
        return tuple(attribute.name for attribute in attributes)
    names = _attribute(kind, "__struct_fields__")
    return names if isinstance(names, tuple) else None


def _is_excluded(field: object) -> bool:
    """Whether a field of pydantic's is one that its ``model_dump()`` leaves out, a secret say."""
    return getattr(field, "exclude", None) is True


def _struct_name(kind: type) -> Atom | None:
    """The struct of Elixir that an object of this class is to become, if its class names one."""
    name = _attribute(kind, "__struct__")
    if not isinstance(name, str):
        return None
    text = str.__str__(name)
    return Atom(text if text.startswith("Elixir.") else f"Elixir.{text}")


def _nothing_more(_: object) -> dict[str, object]:
    return {}


def _reader(
    names: tuple[str, ...],
    struct: Atom | None,
    more: Callable[[Any], dict[str, object]] = _nothing_more,
) -> Convert:
    """It refers to no class, so that a class that it is remembered for can go."""

    def convert(value: object) -> object:
        found = {**_read(value, names), **more(value)}
        if struct is None:
            return found
        return {_STRUCT: struct, **{Atom(name): each for name, each in found.items()}}

    return convert


def _read(value: object, names: Iterable[str]) -> dict[str, object]:
    found = {}
    for name in names:
        found[name] = getattr(value, name)
    return found


def _root(value: Any) -> object:
    found: object = value.root
    return found


def _extra_of_pydantic(value: Any) -> dict[str, object]:
    return dict(value.model_extra or ())


def _attributes(value: object, hidden: frozenset[str]) -> dict[str, object]:
    return {name: each for name, each in vars(value).items() if name not in hidden}


# --- mappings, sequences, iterators -------------------------------------------------------------


def _taken(value: Iterable[Any]) -> list[Any]:
    """All elements, unless there are more than `MAX_ITEMS`: then it is refused."""
    elements = list(islice(value, MAX_ITEMS + 1))
    if len(elements) > MAX_ITEMS:
        raise _Refused(
            f"{_cannot(value)}: it has more than {MAX_ITEMS} elements, and may have no end; send a "
            "part, as itertools.islice() takes it, or a list"
        )
    return elements


def _exhausted(value: Iterator[Any]) -> object:
    return _taken(value)


def _mapped(value: Mapping[Any, Any]) -> object:
    found = {}
    for key in _taken(value):
        found[key] = value[key]
    return found


def _copied(value: Mapping[Any, Any]) -> object:
    return dict(value)


def _set(value: Iterable[Any]) -> object:
    return frozenset(_taken(value))


def _listed(value: Iterable[Any]) -> object:
    """What is in memory already, at once: nothing changes it meanwhile."""
    return list(value)


# --- which of them ------------------------------------------------------------------------------


def _unknown(_: object) -> object:
    return NotImplemented


def _of_others(_: object) -> object:
    """For what is never known here: it is remembered, as other types are not."""
    return NotImplemented


_NAMED: Final[dict[str, Convert]] = {
    "datetime.datetime": _datetime,
    "datetime.date": _date,
    "datetime.time": _time,
    "datetime.timedelta": _timedelta,
    "decimal.Decimal": _decimal,
    "uuid.UUID": _text,
    "enum.Enum": _member,
    "array.array": _listed,
    "collections.deque": _listed,
    "collections.UserString": _text,
    "mappingproxy": _copied,
    "memoryview": _of_others,  # of several dimensions
    "dict_keys": _listed,
    "dict_values": _listed,
    "dict_items": _listed,
    "numpy.generic": _numpy_scalar,
    "pandas._libs.tslibs.nattype.NaTType": _nothing,
    "pandas._libs.missing.NAType": _nothing,
    "pandas.api.typing.NaTType": _nothing,
    "pandas.api.typing.NAType": _nothing,
}
"""By the names of classes; what is derived from those counts as they do."""

_NO_KEYS: Final[dict[object, object]] = {}
_BUILTIN: Final[dict[str, type]] = {
    "mappingproxy": MappingProxyType,
    "memoryview": memoryview,
    "dict_keys": type(_NO_KEYS.keys()),
    "dict_values": type(_NO_KEYS.values()),
    "dict_items": type(_NO_KEYS.items()),
}

_MARKS_OF_OTHERS: Final = (
    *("__array__", "__array_interface__", "__dlpack__", "dtype"),
    *("__arrow_c_array__", "__arrow_c_stream__", "__dataframe__"),
    *("__await__", "__anext__"),
)
"""What has one of these is an array, a table or to be awaited, though it may be a sequence too."""

_remembered: WeakKeyDictionary[type, Convert] = WeakKeyDictionary()


def _converter(kind: type) -> Convert:
    """What makes something else of objects of this type."""
    found = _remembered.get(kind)
    if found is None:
        found = _find(kind)
        if found is not _unknown:  # its class may be registered as a sequence, say, at any time
            _remembered[kind] = found
    return found


def _find(kind: type) -> Convert:
    bases = _bases(kind)
    for base in bases:
        name = type_name(base)
        found = _NAMED.get(name)
        if found is not None and _named(name) is base:
            return found
    fields = _fields_of(kind)
    if fields is not None:
        return fields
    if _attribute(kind, "__fspath__") is not None:
        return _path
    if any(_attribute(kind, name) is not None for name in _MARKS_OF_OTHERS):
        return _of_others
    return _container(kind, bases)


def _container(kind: type, bases: tuple[type, ...]) -> Convert:
    if issubclass(kind, Mapping):
        return _mapped
    if issubclass(kind, MappingView):
        return _taken
    if issubclass(kind, Set):
        return _set
    # Others have what collections have, and may mean something else by it: tables, messages.
    if issubclass(kind, Sequence) or Collection in bases:
        return _taken
    is_iterator = all(_attribute(kind, name) is not None for name in ("__next__", "__iter__"))
    # A file is one, of its lines.
    return _exhausted if is_iterator and _attribute(kind, "read") is None else _unknown


def _named(name: str) -> object:
    """The class of that name, if it is there."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None) if module else _BUILTIN.get(name)


_TIMES: Final[dict[type, Convert]] = {
    date: _date,
    time: _time,
    datetime: _datetime,
    timedelta: _timedelta,
}
_NUMBERS_AND_TEXTS: Final = frozenset(("decimal.Decimal", "uuid.UUID"))


def converter(kind: type) -> Convert | None:
    """What `substitute` does with objects of exactly this type, for some that there are many of.

    Times, decimal numbers, UUIDs and scalars of NumPy; None for others.
    """
    found = _TIMES.get(kind)
    if found is not None:
        return found
    name = type_name(kind)
    if name in _NUMBERS_AND_TEXTS and _named(name) is kind:
        return _NAMED[name]
    numpy = sys.modules.get("numpy") if name.startswith("numpy.") else None
    return _numpy_scalar if numpy is not None and issubclass(kind, numpy.generic) else None


_bases: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__mro__"].__get__


def _attribute(kind: type, name: str) -> object:
    """An attribute of a class, None if it has none or its metaclass raises."""
    try:
        return getattr(kind, name, None)
    except Exception:
        return None


BOUNDARIES: Final = tuple(
    function.__code__
    for function in (
        *(_date, _time, _datetime, _moment, _zone_name, _timedelta, _decimal),
        *(_text, _member, _path, _read, _root, _extra_of_pydantic, _attributes),
        *(_taken, _mapped, _copied, _set, _listed),
    )
)
"""What calls user code: properties, iterators and the like."""
