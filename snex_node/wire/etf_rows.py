"""Lists of objects of one shape, encoded by columns: what `etf_columns` takes, written.

Dicts with the same keys, tuples of one length: what does not change is encoded once, each
column of values is encoded as a whole, and `zip` puts them together. Whatever is not as plain as
that is left to the encoder, and so is what it refuses: it knows why, and where.
"""

from __future__ import annotations

import gc
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from typing import Any, Final

from snex_node.wire.terms import Atom, Term

MIN_ROWS: Final = 64
"""Of a shorter list, looking for its shape costs what it gains."""

CHUNK: Final = 1024
"""Elements that are encoded at once, or one by one if one of them is of another shape."""

TRIAL: Final = 64
"""The same, where it is not known yet that there is a shape."""

MAX_LEVELS: Final = 8
"""Levels of dicts and tuples in an element."""

MAX_COLUMNS: Final = 64
"""Values in a dict or a tuple."""

MAX_ITEMS: Final = 15
"""Elements of a list in an element, which are fewer: many numbers are written in another way."""

MAX_LEFT: Final = 16_384
"""Elements left to the encoder, behind many that were of no shape, before the next try."""

MAX_SKIPPED: Final = 63
"""Lists left to the encoder, of those that begin as others whose elements were of no shape."""

MAX_POOR: Final = 64
"""Beginnings of such lists that are remembered."""

_NOT_POOR: Final = 0, 0

Streams = list[bytes | Sequence[bytes]]
"""One after the other they are the external form of an element: bytes are the same in each, and of
a column each has its own."""

Convert = Callable[[Any], object]


def no_converter(_: type) -> None:
    """For an encoder that other types mean nothing to."""


class Unfit(Exception):
    """These are not of one shape, or not plain enough."""


_SMALL: Final = tuple(bytes((97, number)) for number in range(256))
_HEADS: Final = tuple(struct.pack(">BI", 109, size) for size in range(256))
_CONSTANTS: Final = {None: b"w\3nil", True: b"w\4true", False: b"w\5false"}
_pack_i32: Final = struct.Struct(">Bi").pack
_pack_f64: Final = struct.Struct(">Bd").pack


def text_like(*kinds: type[Atom]) -> list[type[Atom]]:
    """Those that are equal to texts as `Atom` is: two keys of a dict are never one on the wire."""
    return [kind for kind in kinds if (kind.__eq__, kind.__hash__) == (str.__eq__, str.__hash__)]


class Rows:
    """Encodes elements of lists for one encoder.

    ``atom`` gives the external form of an atom, and ``key`` that of a key of a dict; ``is_atom`` is
    a class of atoms besides `Atom`. ``converter`` gives, for other types, what makes an object of a
    known type of one of theirs; None where nothing does.
    """

    def __init__(
        self,
        atom: Callable[[Atom], bytes],
        key: Callable[[object], bytes],
        is_atom: type[Atom],
        converter: Callable[[type], Convert | None] = no_converter,
    ) -> None:
        self._atom = atom
        self.converter: Final = converter
        self._key = key
        self._keys = frozenset((str, *text_like(Atom, is_atom)))
        self._constants = frozenset((type(None), bool))
        # Of lists that begin with such an element nothing could be taken: how often they are to be
        # left to the encoder, and have been.
        self._poor: dict[object, tuple[int, int]] = {}
        self._by_type: dict[type, Callable[[Sequence[Any]], Streams]] = {
            str: _texts,
            bytes: _binaries,
            int: _integers,
            float: _floats,
            bool: _constant,
            type(None): _constant,
            Atom: self._names,
            is_atom: self._names,
        }

    def take(self, items: Sequence[Any], levels: int) -> list[Any] | None:
        """``items``, with a `Term` for each chunk of them that could be encoded at once.

        None if there is none of those. They may be nested by ``levels``.
        """
        sort = self._sort_of(items[0])
        skip, skipped = self._poor.get(sort, _NOT_POOR)
        if skipped < skip:
            self._poor[sort] = skip, skipped + 1
            return None
        pausing = len(items) >= CHUNK and gc.isenabled()
        if pausing:  # as while a term is decoded: it takes up to a sixth of the time
            gc.disable()
        try:
            found = self._take(items, levels)
        finally:
            if pausing:
                gc.enable()
        if found is None:
            if len(self._poor) >= MAX_POOR:
                self._poor.clear()
            self._poor[sort] = min(2 * skip + 1, MAX_SKIPPED), 0
        elif skip:
            self._poor.pop(sort, None)  # another thread may have done so
        return found

    def _sort_of(self, element: object) -> object:
        """What elements have in common that may be of one shape, by a glance."""
        if isinstance(element, dict):
            first = next(iter(element), None)
            return len(element), first if type(first) in self._keys else None
        return type(element), len(element) if isinstance(element, tuple | list) else 0

    def _take(self, items: Sequence[Any], levels: int) -> list[Any] | None:
        found: list[Any] = []
        any_taken = False
        pos, left = 0, MIN_ROWS
        size = TRIAL
        while pos < len(items):
            chunk = items[pos : pos + size]
            pos += len(chunk)
            try:
                found.append(Term(self._encoded(chunk, min(levels, MAX_LEVELS))))
            except (Unfit, ValueError, struct.error, RuntimeError):
                found.extend(chunk)
                found.extend(items[pos : pos + left])
                pos += left
                left = min(2 * left, MAX_LEFT)
                size = TRIAL
            else:
                any_taken = True
                left = MIN_ROWS
                size = CHUNK
        return found if any_taken else None

    def _encoded(self, chunk: Sequence[Any], levels: int) -> bytes:
        return b"".join(_rows(self._streams(chunk, levels), len(chunk)))

    def _streams(self, column: Sequence[Any], levels: int) -> Streams:
        types = {*map(type, column)}
        if len(types) == 1:
            [kind] = types
            if kind is dict:
                return self._dicts(column, levels)
            if kind is tuple:
                return self._tuples(column, levels)
            if kind is list:
                return self._lists(column, levels)
            return self._of_type(kind, levels)(column)
        if types <= self._constants:
            return _constant(column)
        return [[*self._mixed(column, {kind: self._of_type(kind, levels) for kind in types})]]

    def _of_type(self, kind: type, levels: int) -> Callable[[Sequence[Any]], Streams]:
        """What encodes a column of objects of this type."""
        of_type = self._by_type.get(kind)
        if of_type is not None:
            return of_type
        convert = self.converter(kind)
        if convert is None:
            raise Unfit
        return lambda column: self._streams(_converted(convert, column), levels)

    def _dicts(self, column: Sequence[dict[Any, Any]], levels: int) -> Streams:
        column = [*map(dict.copy, column)]  # another thread may change them
        keys = tuple(column[0])
        if (
            not levels
            or not 0 < len(keys) <= MAX_COLUMNS
            or not self._keys.issuperset(map(type, keys))
            or [*map(tuple, column)].count(keys) != len(column)
        ):
            raise Unfit
        if len({*map(type, chain.from_iterable(column))}) > 1:  # "a" and :a are equal
            types = [*map(type, keys)]
            if any([*map(type, each)] != types for each in column):
                raise Unfit
        streams: Streams = []
        constant = struct.pack(">BI", 116, len(keys))
        values = zip(*map(dict.values, column), strict=True)
        for key, each in zip(keys, values, strict=True):
            streams.append(constant + self._key(key))
            streams += self._streams(each, levels - 1)
            constant = b""
        return streams

    def _tuples(self, column: Sequence[tuple[Any, ...]], levels: int) -> Streams:
        size = len(column[0])
        if not levels or not 0 < size <= MAX_COLUMNS or {*map(len, column)} != {size}:
            raise Unfit
        streams: Streams = [bytes((104, size))]
        for each in zip(*column, strict=True):
            streams += self._streams(each, levels - 1)
        return streams

    def _lists(self, column: Sequence[list[Any]], levels: int) -> Streams:
        size = len(column[0])
        if not levels or size > MAX_ITEMS or {*map(len, column)} != {size}:
            raise Unfit
        if not size:
            return [b"j"]
        streams: Streams = [struct.pack(">BI", 108, size)]
        for each in zip(*column, strict=True):
            streams += self._streams(each, levels - 1)
        streams.append(b"j")
        return streams

    def _names(self, column: Sequence[Atom]) -> Streams:
        known = {name: self._atom(name) for name in {*column}}
        return [[*map(known.__getitem__, column)]]

    def _mixed(
        self, column: Sequence[Any], types: dict[type, Callable[[Sequence[Any]], Streams]]
    ) -> Iterable[bytes]:
        """Values of several types: those of each as a column, and then all in their order."""
        of_each: dict[type, Any] = {}
        for kind, of_type in types.items():
            part = [value for value in column if type(value) is kind]
            of_each[kind] = iter(_rows(of_type(part), len(part)))
        return [next(of_each[type(value)]) for value in column]


def _converted(convert: Convert, column: Sequence[Any]) -> Sequence[Any]:
    try:
        return [*map(convert, column)]
    except Exception:  # the encoder meets it again, and knows where it is
        raise Unfit from None


def _rows(streams: Streams, count: int) -> Iterable[bytes]:
    """The external form of each of ``count`` elements. Formatting takes half the time of a join."""
    pattern = b""
    columns: list[Sequence[bytes]] = []
    for stream in streams:
        if isinstance(stream, bytes):
            pattern += stream.replace(b"%", b"%%")
        else:
            pattern += b"%b"
            columns.append(stream)
    if not columns:
        return repeat(pattern % (), count)
    return map(pattern.__mod__, zip(*columns, strict=True))


def _texts(column: Sequence[str]) -> Streams:
    if max(map(len, column)) > 255:
        raise Unfit
    return _binaries([*map(str.encode, column)])


def _binaries(column: Sequence[bytes]) -> Streams:
    sizes = [*map(len, column)]
    if max(sizes) > 255:
        raise Unfit
    return [[*map(_HEADS.__getitem__, sizes)], column]


def _integers(column: Sequence[int]) -> Streams:
    least, most = min(column), max(column)
    if least >= 0 and most < 256:
        return [[*map(_SMALL.__getitem__, column)]]
    if least < -0x8000_0000 or most > 0x7FFF_FFFF:
        raise Unfit
    if least > 255 or most < 0:
        return [[*map(_pack_i32, repeat(98), column)]]
    return [[_SMALL[n] if 0 <= n < 256 else _pack_i32(98, n) for n in column]]


def _floats(column: Sequence[float]) -> Streams:
    if not math.isfinite(sum(column)) and not all(map(math.isfinite, column)):
        raise Unfit
    return [[*map(_pack_f64, repeat(70), column)]]


def _constant(column: Sequence[object]) -> Streams:
    return [[*map(_CONSTANTS.__getitem__, column)]]  # type: ignore[arg-type]
