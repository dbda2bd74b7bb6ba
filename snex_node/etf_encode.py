"""Encoding Python objects in the external term format.

The encoder is one loop over iterators with an explicit stack, so the depth of an object costs memory and never
the interpreter's stack. It looks at the exact type first and leaves whatever is rare to methods. Where in the
object a failure sits is found afterwards, by walking it once more, so that success pays nothing for it.

Source: External Term Format, https://www.erlang.org/doc/apps/erts/erl_ext_dist.html
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any, Final, Literal

from snex_node.etf_decode import MAX_DEPTH
from snex_node.etf_place import find_cycle, find_place, short
from snex_node.terms import (
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

__all__ = ["EncodeError", "EncodeTypeError", "EncodeValueError", "Encoder"]

MAX_CACHED_ATOMS: Final = 4096
"""Atoms an encoder remembers the bytes of: at most some 5 MB."""

MAX_DEFAULT_CHAIN: Final = 100
"""How often in a row ``default`` may answer with an object that needs ``default`` again."""

MAX_SIZE: Final = 0xFFFF_FFFF
"""The external term format counts bytes and elements with 32 bits."""

_CYCLE_CHECK_DEPTH: Final = 1000  # from here on, look whether an object contains itself


class EncodeError(Exception):
    """An object that has no external form. The message ends with the place where it sits in the whole."""


class EncodeTypeError(EncodeError, TypeError):
    """No object of this type has an external form, and ``default`` did not help."""


class EncodeValueError(EncodeError, ValueError):
    """Objects of this type have an external form, but this one has not."""


class _Failure(Exception):
    """What went wrong, with the object it went wrong at; the place is added to it later."""

    def __init__(self, error: type[EncodeError], message: str, culprit: object) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.culprit = culprit


_pack_i32: Final = struct.Struct(">Bi").pack
_pack_u32: Final = struct.Struct(">BI").pack
_pack_f64: Final = struct.Struct(">Bd").pack
_SMALL: Final = tuple(bytes((97, number)) for number in range(256))
_MIN_HOMOGENEOUS: Final = 16  # below it, looking at the types costs more than it gains
_SIZED: Final = frozenset((str, bytes, bytearray, memoryview, int, list, tuple, dict, set, frozenset))
_KNOWN: Final = _SIZED | frozenset(
    (float, bool, type(None), Pid, Port, Reference, Fun, Export, BitString, ImproperList, Record, Term)
)
_STRUCT: Final = b"w\x0a__struct__w\x0dElixir.MapSet"
_MAPSET: Final = b"t\0\0\0\2" + _STRUCT + b"w\3map"
_MAPSET_V2: Final = b"t\0\0\0\3" + _STRUCT + b"w\7versiona\2w\3map"

# Keys of these types cannot collide on the wire when they do not collide in the dict.
_DISTINCT_WITH_STR: Final = frozenset((str, int, Atom, Pid, Reference))
_DISTINCT_WITH_BYTES: Final = frozenset((bytes, int, Atom, Pid, Reference))

class Encoder:
    """Turns Python objects into terms. Configured once, then usable from any thread, any number of times.

    ``default`` is called with every object that is otherwise unknown; its result is encoded in the object's
    place. ``special_floats`` says whether inf, -inf and nan are refused or become the atoms ``:inf``,
    ``:"-inf"`` and ``:nan``. ``sets`` says whether sets and frozensets are refused or become MapSet structs,
    with ``version: 2`` (the shape up to Elixir 1.14, which newer ones read as well) or without. Objects nested
    deeper than ``max_depth`` are refused.

    >>> Encoder().encode((Atom("ok"), 42))
    b'h\\x02w\\x02oka*'
    """

    __slots__ = ("_atoms", "_default", "_max_depth", "_sets", "_special_floats")

    def __init__(
        self,
        *,
        default: Callable[[object], object] | None = None,
        special_floats: Literal["refuse", "atoms"] = "refuse",
        sets: Literal["refuse", "mapset", "mapset_v2"] = "refuse",
        max_depth: int = MAX_DEPTH,
    ) -> None:
        if special_floats not in ("refuse", "atoms"):
            raise ValueError(f"special_floats is 'refuse' or 'atoms', not {special_floats!r}")
        if sets not in ("refuse", "mapset", "mapset_v2"):
            raise ValueError(f"sets is 'refuse', 'mapset' or 'mapset_v2', not {sets!r}")
        self._default = default
        self._special_floats = special_floats == "atoms"
        self._sets = sets
        self._max_depth = max_depth
        self._atoms: dict[str, bytes] = {}

    def encode(self, term: object) -> bytes:
        """The external form of ``term``, without the version byte 131.

        Raises ``EncodeTypeError`` for an object of a type that has none, ``EncodeValueError`` for a value that
        has none (both are ``EncodeError``), and whatever ``default`` raises.
        """
        return b"".join(self.encode_parts(term))

    def encode_parts(self, term: object) -> list[bytes]:
        """The same as ``encode``, as the parts that joined make the external form.

        For a caller that puts something before it and does not want to copy large binaries twice.
        """
        parts: list[bytes] = []
        replies: list[object] = []
        try:
            self._encode(term, parts, replies)
        except _Failure as failure:
            place = find_place(term, failure.culprit, replies)
            raise failure.error(failure.message + place) from failure.__cause__
        return parts

    def _encode(self, term: object, parts: list[bytes], replies: list[object]) -> None:
        append = parts.append
        atoms = self._atoms
        check_depth = min(_CYCLE_CHECK_DEPTH, self._max_depth)
        stack: list[tuple[Iterator[Any], bytes]] = []
        items: Iterator[Any] = iter((term,))
        suffix = b""
        kind: type = object
        item: Any = None
        try:
            while True:
                for item in items:
                    kind = type(item)
                    if kind is str:
                        text = item.encode()
                        append(_pack_u32(109, len(text)))
                        append(text)
                    elif kind is int:
                        if 0 <= item < 256:
                            append(_SMALL[item])
                        elif -0x8000_0000 <= item < 0x8000_0000:
                            append(_pack_i32(98, item))
                        else:
                            append(_big(item))
                    elif kind is Atom:
                        try:
                            append(atoms[item])
                        except KeyError:
                            append(self._remember_atom(item))
                    elif item is None:
                        append(b"w\3nil")
                    elif item is True:
                        append(b"w\4true")
                    elif item is False:
                        append(b"w\5false")
                    elif kind is bytes:
                        append(_pack_u32(109, len(item)))
                        append(item)
                    elif kind is float:
                        if item * 0.0 == 0.0:
                            append(_pack_f64(70, item))
                        else:
                            append(self._special_float(item))
                    elif kind is Pid or kind is Reference or kind is Port or kind is Fun:
                        append(item.external)
                    else:
                        opened = self._open(item, kind, parts, replies)
                        if opened is None:
                            continue
                        if len(stack) >= check_depth:
                            self._check_depth(term, item, len(stack))
                        stack.append((items, suffix))
                        items, suffix = opened
                        break
                else:
                    if suffix:
                        append(suffix)
                    if not stack:
                        return
                    items, suffix = stack.pop()
        except UnicodeEncodeError as error:
            raise _Failure(EncodeValueError, f"not UTF-8: {error}", item) from None
        except struct.error:
            if kind not in _SIZED:
                raise
            raise _Failure(EncodeValueError, f"a {kind.__name__} larger than 4 GiB", item) from None

    def _open(
        self, item: Any, kind: type, parts: list[bytes], replies: list[object]
    ) -> tuple[Iterator[Any], bytes] | None:
        """What is encoded in the item's place, and the bytes behind it; None once it is written."""
        if kind is list:
            if not item:
                parts.append(b"j")
                return None
            if len(item) >= _MIN_HOMOGENEOUS:
                packed = _homogeneous(item)
                if packed is not None:
                    parts.append(packed)
                    return None
            items = tuple(item)
            parts.append(_pack_u32(108, len(items)))
            return iter(items), b"j"
        if kind is tuple:
            parts.append(_tuple_header(len(item)))
            return iter(item), b""
        if kind is dict:
            return self._open_dict(item, parts)
        if kind is Term:
            parts.append(bytes(item))
        elif kind is bytearray or kind is memoryview:
            parts.extend(_bytes_like(item))
        elif kind is set or kind is frozenset:
            return self._open_set(item, parts)
        elif kind is BitString:
            parts.append(_pack_u32(77, len(item.data)) + bytes((item.bits,)) + item.data)
        elif kind is Export:
            names = self._atom(item.module) + self._atom(item.function)
            parts.append(b"q" + names + bytes((97, item.arity)))
        elif kind is ImproperList:
            parts.append(_pack_u32(108, len(item.elements)))
            return chain(item.elements, (item.tail,)), b""
        elif kind is Record:
            names = b"".join(map(self._atom, (item.module, item.name, *item.fields)))
            parts.append(_pack_u32(67, len(item.fields)) + bytes((item.flag,)) + names)
            return iter(item.values), b""
        elif issubclass(kind, Atom):
            parts.append(self._atom(item))
        else:
            return iter((self._substitute(item, kind, replies),)), b""
        return None

    def _open_dict(self, item: dict[Any, Any], parts: list[bytes]) -> tuple[Iterator[Any], bytes]:
        pairs = list(chain.from_iterable(item.items()))
        parts.append(_pack_u32(116, len(pairs) // 2))
        keys = pairs[::2]
        kinds = set(map(type, keys))
        if _DISTINCT_WITH_STR.issuperset(kinds) or _DISTINCT_WITH_BYTES.issuperset(kinds):
            return iter(pairs), b""
        return _distinct(item, keys, pairs[1::2], parts), b""

    def _open_set(
        self, item: set[Any] | frozenset[Any], parts: list[bytes]
    ) -> tuple[Iterator[Any], bytes]:
        if self._sets == "refuse":
            raise _unserializable(item)
        elements = list(item)
        parts.append(_MAPSET_V2 if self._sets == "mapset_v2" else _MAPSET)
        parts.append(_pack_u32(116, len(elements)))
        return _distinct(item, elements, repeat([]), parts), b""

    def _substitute(self, item: Any, kind: type, replies: list[object]) -> object:
        """An object of a known type for one of an unknown: of its base class, or what ``default`` gives."""
        for _ in range(MAX_DEFAULT_CHAIN):
            base = _as_base(item)
            if base is not None:
                return base
            if self._default is None:
                raise _unserializable(item)
            result = self._ask_default(self._default, item)
            if result is item:
                raise _Failure(
                    EncodeTypeError,
                    f"Cannot serialize object of {type(item)}: its encoder returned the object itself",
                    item,
                )
            replies.append(result)
            if type(result) in _KNOWN or isinstance(result, Atom):
                return result
            item = result
        raise _Failure(
            EncodeTypeError,
            f"Cannot serialize object of {kind}: {MAX_DEFAULT_CHAIN} encoded forms in a row "
            f"are no known type either, the last one is a {type(item)}",
            item,
        )

    def _ask_default(self, default: Callable[[Any], object], item: object) -> object:
        try:
            return default(item)
        except EncodeError:
            raise
        except TypeError as error:
            raise _Failure(EncodeTypeError, str(error), item) from error
        except ValueError as error:
            raise _Failure(EncodeValueError, str(error), item) from error

    def _check_depth(self, term: object, item: object, depth: int) -> None:
        if depth >= self._max_depth:
            message = (
                f"nested deeper than max_depth, {self._max_depth} levels; raise max_depth to send it"
            )
            raise _Failure(EncodeValueError, message, item)
        if depth == _CYCLE_CHECK_DEPTH:
            culprit = find_cycle(term)
            if culprit is not None:
                raise _Failure(EncodeValueError, f"a {type(culprit).__name__} contains itself", culprit)

    def _special_float(self, item: float) -> bytes:
        if self._special_floats:
            return b"w\3nan" if item != item else b"w\3inf" if item > 0 else b"w\4-inf"
        raise _Failure(EncodeValueError, f"the float {item} has no external form", item)

    def _atom(self, item: Atom) -> bytes:
        name = str.__str__(item)
        known = self._atoms.get(name)
        return self._remember_atom(name) if known is None else known

    def _remember_atom(self, name: str) -> bytes:
        text = name.encode()
        size = len(text)
        data = bytes((119, size)) + text if size < 256 else b"v" + size.to_bytes(2, "big") + text
        if len(self._atoms) >= MAX_CACHED_ATOMS:
            self._atoms.clear()
        self._atoms[str.__str__(name)] = data
        return data


def _unserializable(item: object) -> _Failure:
    return _Failure(EncodeTypeError, f"Cannot serialize object of {type(item)}", item)


def _as_base(item: Any) -> object:
    """The same value as an object of exactly the built-in type that its class derives from, or None."""
    if isinstance(item, str):
        return str.__str__(item)
    if isinstance(item, int):
        return int.__int__(item)
    if isinstance(item, float):
        return float.__float__(item)
    if isinstance(item, Term):
        return Term(item)
    if isinstance(item, bytes):
        return bytes(memoryview(item))
    if isinstance(item, bytearray):
        return bytes(memoryview(item))
    if isinstance(item, list):
        return list(list.__iter__(item))
    if isinstance(item, tuple):
        return tuple(tuple.__iter__(item))
    if isinstance(item, dict):
        return dict(dict.items(item))
    if isinstance(item, set):
        return set(set.__iter__(item))
    if isinstance(item, frozenset):
        return frozenset(frozenset.__iter__(item))
    return None


def _distinct(
    whole: object, keys: list[Any], values: Iterable[Any], parts: list[bytes]
) -> Iterator[Any]:
    """Keys and values in turn; when a key is written, its bytes are compared with those before it."""
    seen: dict[bytes, object] = {}
    for key, value in zip(keys, values):
        start = len(parts)
        yield key
        written = b"".join(parts[start:])
        if written in seen:
            raise _Failure(
                EncodeValueError,
                f"the keys {short(seen[written])} and {short(key)} are one and the same key in a map",
                whole,
            )
        seen[written] = key
        yield value


def _tuple_header(arity: int) -> bytes:
    return bytes((104, arity)) if arity < 256 else _pack_u32(105, arity)


def _bytes_like(item: bytearray | memoryview) -> tuple[bytes, bytes]:
    try:
        data = item.tobytes() if isinstance(item, memoryview) else bytes(item)
    except ValueError as error:
        raise _Failure(EncodeValueError, f"the memoryview cannot be read: {error}", item) from error
    return _pack_u32(109, len(data)), data


def _big(item: int) -> bytes:
    magnitude = abs(item)
    size = (magnitude.bit_length() + 7) // 8
    sign = item < 0
    if size < 256:
        return bytes((110, size, sign)) + magnitude.to_bytes(size, "little")
    return _pack_u32(111, size) + bytes((sign,)) + magnitude.to_bytes(size, "little")


def _homogeneous(items: list[Any]) -> bytes | None:
    """The whole list, if all its items are integers of 32 bits or all are finite floats."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return _integers(items)
    if kinds == {float}:
        return _floats(items)
    return None


def _integers(items: list[int]) -> bytes | None:
    lowest, highest = min(items), max(items)
    if lowest >= 0 and highest < 256 and len(items) < 0x10000:
        return b"k" + len(items).to_bytes(2, "big") + bytes(items)
    if lowest < -0x8000_0000 or highest >= 0x8000_0000:
        return None
    return _strided(b"b", array("i", items))


def _floats(items: list[float]) -> bytes | None:
    if not math.isfinite(sum(items)):
        return None
    return _strided(b"F", array("d", items))


def _strided(tag: bytes, numbers: array[Any]) -> bytes:
    """A proper list of numbers, each behind its tag: every byte of them is set by one slice assignment."""
    if sys.byteorder == "little":
        numbers.byteswap()
    count, width = len(numbers), numbers.itemsize
    step = width + 1
    result = bytearray(5 + step * count + 1)
    result[:5] = _pack_u32(108, count)
    end = len(result) - 1
    result[5:end:step] = tag * count
    data = numbers.tobytes()
    for index in range(width):
        result[6 + index : end : step] = data[index::width]
    result[end] = 106
    return bytes(result)
