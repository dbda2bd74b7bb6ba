"""Lists of terms of one shape, decoded by columns.

A list of maps with the same keys, of tuples, of texts: one regular expression of the bytes that do
not change, with a group for each value that does, takes thousands of elements at the speed of C.
Then each column of values is converted as a whole. What does not match is left to the decoder, and
so is what is to be refused: it knows why, and where.

The expression has a branch for each length of a binary, so that there is one way only in which an
element matches. No bytes make it go back. What is compiled is bounded: in number, in size, and by
the elements that have been seen, so that compiling never takes longer than it spares.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

from snex_node.wire.terms import Atom

MIN_ELEMENTS: Final = 64
"""In a shorter list, looking for its shape costs what it gains."""

MIN_TEXTS: Final = 512
"""The same of a list of nothing but binaries."""

MAX_SLOTS: Final = 64
"""Values in an element that may change; one with more is left to the decoder."""

MAX_ITEMS: Final = 15
"""Elements of a list in an element."""

MAX_NESTING: Final = 8
"""Levels of maps, tuples and lists in an element."""

MAX_CONSTANT: Final = 2048
"""Bytes of an element that do not change."""

MAX_LENGTH: Final = 127
"""Of a binary or an atom in an element. A length is a character of its own in UTF-8, too."""

MAX_SHAPES: Final = 64
"""Shapes that are remembered, compiled ones (some 50 KB each) and others (1 KB)."""

WORTH: Final = 5_000
"""Values and keys of one shape that must be there, or have been, before it is compiled, and as many
more for each group of binaries or atoms: to compile one takes 1 to 2.5 ms, and so does decoding
these."""

SAMPLE: Final = 16
"""Elements that are looked at, one by one, before a shape is compiled."""

PIECE: Final = 256 * 1024
"""Bytes that are taken at once: columns hold them several times over."""

TRIAL: Final = 4096
"""Bytes of texts that are taken at first, to see what they are like."""

MAX_STEP: Final = 4096
"""Elements left to the decoder, after many of them that did not match, before the next try."""

MAX_SKIPPED: Final = 63
"""Times that elements are left to the decoder, of which few were of one shape, before a try."""

GAIN: Final = 16
"""Elements that are worth having looked for their shape."""

INTEGER: Final = 1
FLOAT: Final = 2
BINARY: Final = 4
ATOM: Final = 8

_SLOT_OF: Final = {97: INTEGER, 98: INTEGER, 70: FLOAT, 109: BINARY, 119: ATOM}

_u32: Final = struct.Struct(">I").unpack_from


class Leaf(NamedTuple):
    """A value that changes; ``kinds`` are those that it may be of."""

    kinds: int


class Empty(NamedTuple):
    """An empty list."""


class Tuple(NamedTuple):
    """A tuple."""

    elements: tuple[Shape, ...]


class Items(NamedTuple):
    """A list of a few elements, always as many."""

    elements: tuple[Shape, ...]


class Map(NamedTuple):
    """A map, with the external form of its keys."""

    keys: tuple[bytes, ...]
    values: tuple[Shape, ...]


Shape = Leaf | Empty | Tuple | Items | Map


# --- shapes --------------------------------------------------------------------------------------


class _Unfit(Exception):
    """A term has no shape that is dealt with here."""


def learn(data: bytes, pos: int) -> tuple[Shape, int] | None:
    """The shape of the term at ``pos``, and its size; None if it is of none that is dealt with."""
    try:
        shape, end = _learn(data, pos, 0)
    except (_Unfit, IndexError, struct.error):
        return None
    if not 0 < len(slots_of(shape)) <= MAX_SLOTS or constant_of(shape) > MAX_CONSTANT:
        return None
    return shape, end - pos


def _learn(data: bytes, pos: int, depth: int) -> tuple[Shape, int]:
    tag = data[pos]
    if tag in _SLOT_OF:
        return Leaf(_SLOT_OF[tag]), _leaf_end(data, pos, tag)
    if tag == 106:
        return Empty(), pos + 1
    if depth == MAX_NESTING:
        raise _Unfit
    keys: list[bytes] | None = [] if tag == 116 else None
    if tag == 104:
        count, pos = data[pos + 1], pos + 2
    elif tag in (116, 108):
        count, pos = _u32(data, pos + 1)[0], pos + 5
    else:
        raise _Unfit
    if count > (MAX_ITEMS if tag == 108 else MAX_SLOTS):
        raise _Unfit
    found: list[Shape] = []
    for _ in range(count):
        if keys is not None:
            if data[pos] not in (119, 109):
                raise _Unfit
            end = _leaf_end(data, pos, data[pos])
            keys.append(data[pos:end])
            pos = end
        shape, pos = _learn(data, pos, depth + 1)
        found.append(shape)
    if keys is not None:
        return Map(tuple(keys), tuple(found)), pos
    if tag == 104:
        return Tuple(tuple(found)), pos
    if data[pos] != 106 or not found:
        raise _Unfit
    return Items(tuple(found)), pos + 1


def _leaf_end(data: bytes, pos: int, tag: int) -> int:
    if tag == 97:
        return pos + 2
    if tag == 98:
        return pos + 5
    if tag == 70:
        return pos + 9
    begin, length = (pos + 2, data[pos + 1]) if tag == 119 else (pos + 5, _u32(data, pos + 1)[0])
    if length > MAX_LENGTH:
        raise _Unfit
    return begin + int(length)


def merge(one: Shape, other: Shape) -> Shape | None:
    """The shape of what is of either; None where they differ in more than kinds of values."""
    if isinstance(one, Leaf) and isinstance(other, Leaf):
        return Leaf(one.kinds | other.kinds)
    if isinstance(one, Tuple) and isinstance(other, Tuple):
        parts = _merge_all(one.elements, other.elements)
        return None if parts is None else Tuple(parts)
    if isinstance(one, Items) and isinstance(other, Items):
        parts = _merge_all(one.elements, other.elements)
        return None if parts is None else Items(parts)
    if isinstance(one, Map) and isinstance(other, Map) and one.keys == other.keys:
        parts = _merge_all(one.values, other.values)
        return None if parts is None else Map(one.keys, parts)
    return one if isinstance(one, Empty) and isinstance(other, Empty) else None


def _merge_all(ones: tuple[Shape, ...], others: tuple[Shape, ...]) -> tuple[Shape, ...] | None:
    if len(ones) != len(others):
        return None
    parts = []
    for one, other in zip(ones, others, strict=True):
        part = merge(one, other)
        if part is None:
            return None
        parts.append(part)
    return tuple(parts)


def slots_of(shape: Shape) -> list[int]:
    """The kinds of the values that change, in order."""
    if isinstance(shape, Leaf):
        return [shape.kinds]
    return [kinds for part in _parts(shape) for kinds in slots_of(part)]


def constant_of(shape: Shape) -> int:
    """How many bytes of each element are always the same, besides those before its values."""
    if isinstance(shape, Leaf):
        return 0
    if isinstance(shape, Empty):
        return 1
    if isinstance(shape, Map):
        own = 5 + sum(map(len, shape.keys))
    else:
        own = 2 if isinstance(shape, Tuple) else 6
    return own + sum(map(constant_of, _parts(shape)))


def nesting_of(shape: Shape) -> int:
    """How many levels of lists, tuples and maps an element has."""
    if isinstance(shape, Leaf):
        return 0
    return 1 + max(map(nesting_of, _parts(shape)), default=0)


def _parts(shape: Shape) -> tuple[Shape, ...]:
    if isinstance(shape, Tuple | Items):
        return shape.elements
    return shape.values if isinstance(shape, Map) else ()


# --- regular expressions -------------------------------------------------------------------------

_LENGTHS: Final = b"|".join(
    re.escape(bytes((length,))) + b".{%d}" % length for length in range(MAX_LENGTH + 1)
)

# What stands before the group of a value of this kind, and the group.
_BEFORE: Final = {INTEGER: b"", FLOAT: b"F", BINARY: b"m\0\0\0", ATOM: b"w"}
_GROUPS: Final = {
    INTEGER: rb"(a.|b.{4})",
    FLOAT: rb"(.{8})",
    BINARY: b"(" + _LENGTHS + b")",
    ATOM: b"(" + _LENGTHS + b")",
}
# What stands for a value of this kind where there is one of another.
_BLANKS: Final = {INTEGER: b"a\0", FLOAT: bytes(8), BINARY: b"\0", ATOM: b"\3nil"}


def kinds_of(slot: int) -> list[int]:
    """The kinds of values in a slot; each has a group of its own."""
    return [kind for kind in _GROUPS if kind & slot]


def pattern_of(shape: Shape) -> bytes:
    """A regular expression for an element, with groups for the values that change."""
    if isinstance(shape, Leaf):
        of_each = [_BEFORE[kind] + _GROUPS[kind] for kind in kinds_of(shape.kinds)]
        return of_each[0] if len(of_each) == 1 else b"(?:" + b"|".join(of_each) + b")"
    if isinstance(shape, Empty):
        return b"j"
    if isinstance(shape, Tuple):
        head = re.escape(bytes((104, len(shape.elements))))
        return head + b"".join(map(pattern_of, shape.elements))
    if isinstance(shape, Items):
        head = re.escape(b"l" + len(shape.elements).to_bytes(4, "big"))
        return head + b"".join(map(pattern_of, shape.elements)) + b"j"
    head = re.escape(b"t" + len(shape.keys).to_bytes(4, "big"))
    pairs = zip(map(re.escape, shape.keys), map(pattern_of, shape.values), strict=True)
    return head + b"".join(chain.from_iterable(pairs))


def probe_of(shape: Shape) -> bytes:
    """Bytes that each element has, and others have seldom: its longest key, or how it begins."""
    keys = list(_keys(shape))
    if keys:
        return max(keys, key=len)
    tag, size = (b"h", 1) if isinstance(shape, Tuple) else (b"l", 4)
    return tag + len(_parts(shape)).to_bytes(size, "big")


def _keys(shape: Shape) -> Iterator[bytes]:
    if isinstance(shape, Map):
        yield from shape.keys
    for part in _parts(shape):
        yield from _keys(part)


class Columns:
    """A shape, compiled."""

    __slots__ = ("constant", "find", "nesting", "shape", "slots")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        # What does not match is swallowed whole, or the next elements would be found behind it.
        self.find = re.compile(pattern_of(shape) + b"|.+", re.DOTALL).findall
        self.slots = slots_of(shape)
        self.constant = constant_of(shape)
        self.nesting = nesting_of(shape)


# Of all decoders together: compiled ones, and of others how many values there have been.
_compiled: Final[dict[Shape, Columns]] = {}
_seen: Final[dict[Shape, int]] = {}


def compiled(
    shape: Shape, data: bytes, pos: int, count: int, size: int, caution: int
) -> Columns | None:
    """Compiles ``shape`` if that is worth it; ``count`` elements are said to be at ``data[pos]``.

    ``caution`` is how many times as many are asked for. How many there are is found out by bytes
    that all have, as far as they may reach if they are of about ``size`` bytes as the first one is.
    """
    columns = _compiled.get(shape)
    if columns is not None:
        return columns
    if not isinstance(shape, Leaf):  # what those begin with says nothing
        count = min(count, data.count(probe_of(shape), pos, pos + 2 * count * size))
    slots = slots_of(shape)
    seen = _seen.get(shape, 0) + count * (len(slots) + sum(1 for _ in _keys(shape)))
    groups = sum(bool(kind & BINARY) + bool(kind & ATOM) for kind in slots)
    if seen < WORTH * caution * (1 + groups):
        if len(_seen) >= MAX_SHAPES:
            _seen.clear()
        _seen[shape] = seen
        return None
    wider = _wider(shape, data, pos, min(count, SAMPLE))
    columns = _compiled.get(wider) or Columns(wider)
    if len(_compiled) >= MAX_SHAPES:
        _compiled.clear()
    _compiled[shape] = _compiled[wider] = columns
    return columns


def _wider(shape: Shape, data: bytes, pos: int, count: int) -> Shape:
    """What the next ``count`` elements are of, as far as they differ in kinds of values only."""
    with contextlib.suppress(_Unfit, IndexError, struct.error):
        for _ in range(count):
            found, pos = _learn(data, pos, 0)
            wider = merge(shape, found)
            if wider is None:
                break
            shape = wider
    return shape


# --- columns of values ---------------------------------------------------------------------------

Column = tuple[bytes, ...] | list[bytes]
Atoms = Callable[[bytes], object]
"""Gives the atom of a name in UTF-8; ``ValueError`` where it is none."""

_WIDE: Final = {b"a" + bytes((i,)): b"b\0\0\0" + bytes((i,)) for i in range(256)}


def integers(column: Column) -> tuple[list[Any] | tuple[Any, ...], int]:
    """Numbers of SMALL_INTEGER_EXT and INTEGER_EXT, and the bytes they take."""
    joined = b"".join(column)
    size = len(joined)
    if size == 2 * len(column):
        return list(joined[1::2]), size
    if size != 5 * len(column):
        joined = b"".join(map(_WIDE.get, column, column))
    return unpack_integers(joined), size


def unpack_integers(data: bytes) -> tuple[Any, ...]:
    """The numbers of nothing but INTEGER_EXT."""
    count = len(data) // 5
    bare = bytearray(4 * count)
    for byte in range(4):
        bare[byte::4] = data[byte + 1 :: 5]
    return struct.unpack(f">{count}i", bare)


def floats(column: Column) -> tuple[tuple[Any, ...], int]:
    """Numbers of eight bytes each. ``ValueError`` if one is not finite."""
    joined = b"".join(column)
    numbers = struct.unpack(f">{len(column)}d", joined)
    if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
        raise ValueError("not finite")
    return numbers, len(joined)


_SEPARATOR: Final = "\x7f"


def texts(column: Column) -> tuple[list[Any], int]:
    """Texts of UTF-8 behind their lengths, a byte each. ``ValueError`` where it is none."""
    joined = _SEPARATOR.encode().join(column)
    size = len(joined) - (len(column) - 1)
    parts = joined.decode().split(_SEPARATOR)
    if len(parts) != len(column):
        return [text[1:].decode() for text in column], size
    return [part[1:] for part in parts], size


_HEADS: Final = {length + 1: chr(length) for length in range(MAX_LENGTH + 1)}


def ascii_texts(data: bytes, pos: int, end: int, count: int) -> tuple[list[Any], int]:
    """At most ``count`` texts of ASCII that stand one after the other, and where they end.

    In half of the time that a regular expression takes. There may be none where those find some:
    behind ``end``, or before it, something is no ASCII.
    """
    try:
        text = data[pos:end].decode("ascii")
    except ValueError:
        return [], pos
    if not text.startswith("m\0\0\0"):
        return [], pos
    parts = text[4:].split("m\0\0\0", count)
    del parts[count:]
    sizes = list(map(len, parts))
    # The length in front of each tells whether the next one stands where it ends.
    fits = list(map(str.startswith, parts, map(_HEADS.get, sizes, repeat("\uffff"))))
    if False in fits:
        fitting = fits.index(False)
        del parts[fitting:], sizes[fitting:]
    return [part[1:] for part in parts], pos + sum(sizes) + 4 * len(parts)


def binaries(column: Column) -> tuple[list[Any], int]:
    """What is behind their lengths, a byte each."""
    return [binary[1:] for binary in column], sum(map(len, column))


def atoms(column: Column, atom: Atoms) -> tuple[list[Any], int]:
    """Atoms of names behind their lengths, a byte each."""
    known: dict[bytes, object] = dict.fromkeys(column)
    for name in known:
        known[name] = atom(name[1:])
    return list(map(known.__getitem__, column)), sum(map(len, column))


# --- maps ----------------------------------------------------------------------------------------

_makers: Final[dict[int, Callable[..., list[Any]]]] = {}


def make_maps(keys: tuple[object, ...], columns: list[Any]) -> list[Any]:
    """Maps of these keys: an expression for each number of them, twice as fast as `dict(zip())`."""
    count = len(keys)
    if count > MAX_SLOTS:
        return [dict(zip(keys, row)) for row in zip(*columns)]  # noqa: B905
    maker = _makers.get(count)
    if maker is None:
        names = ", ".join(f"k{i}" for i in range(count))
        values = "".join(f"v{i}, " for i in range(count))
        pairs = ", ".join(f"k{i}: v{i}" for i in range(count))
        # Of numbers and nothing else.
        maker = eval(f"lambda {names}, columns: [{{{pairs}}} for {values} in zip(*columns)]")  # noqa: S307
        _makers[count] = maker
    return maker(*keys, columns)


class Plan:
    """How a decoder makes values of the columns of a shape."""

    __slots__ = ("_converters", "_groups", "_lists", "_make", "_texts", "columns")

    def __init__(self, lists: Lists, columns: Columns) -> None:
        self.columns = columns
        self._lists = lists
        self._converters = [list(map(lists.converter, kinds_of(slot))) for slot in columns.slots]
        self._texts = lists.have_texts and columns.shape == Leaf(BINARY)
        self._groups = sum(map(len, self._converters))
        self._make = self._maker(columns.shape)

    def _maker(self, shape: Shape) -> Callable[[Any, int], Any]:
        """What makes the values of ``shape`` from an iterator of columns, and their number."""
        if isinstance(shape, Leaf):
            return lambda columns, count: next(columns)
        if isinstance(shape, Empty):
            return lambda columns, count: [[] for _ in range(count)]
        parts = list(map(self._maker, _parts(shape)))
        if not parts:
            empty = isinstance(shape, Map)
            return lambda columns, count: [{} for _ in range(count)] if empty else [()] * count
        if isinstance(shape, Tuple):
            return lambda columns, count: list(zip(*[part(columns, count) for part in parts]))  # noqa: B905
        if isinstance(shape, Items):
            return lambda columns, count: [
                *map(list, zip(*[part(columns, count) for part in parts]))  # noqa: B905
            ]
        keys = tuple(self._lists.key(key) for key in shape.keys)
        finish = self._lists.finisher(shape.keys)
        return lambda columns, count: finish(
            make_maps(keys, [part(columns, count) for part in parts])
        )

    def take(self, data: bytes, pos: int, count: int, out: list[Any]) -> tuple[int, int]:
        """Appends at most ``count`` elements; returns where they end, and how many they are."""
        taken = 0
        find, single = self.columns.find, self._groups == 1
        ascii_only = self._texts
        while taken < count:
            if ascii_only:
                end = pos + min(PIECE if taken else TRIAL, (count - taken) * (MAX_LENGTH + 6))
                found, after = ascii_texts(data, pos, end, count - taken)
                if len(found) <= _HEAD and data[pos:end].isascii() and end < len(data):
                    break  # they hold what texts begin with
                pos = after
                out.extend(found)
                taken += len(found)
                if len(found) > _HEAD:
                    continue
                ascii_only = False
            rows = find(data, pos, min(len(data), pos + PIECE))
            if rows and not (rows[-1] if single else any(rows[-1])):
                rows.pop()
            del rows[count - taken :]
            if not rows:
                break
            number = len(rows)
            columns = [rows] if single else list(zip(*rows))  # noqa: B905
            del rows  # or the garbage collector would look at them while maps are made
            try:
                found, size = self._convert(columns)
            except ValueError:  # the decoder knows why, and where
                break
            out.extend(self._make(iter(found), number))
            pos += size + self.columns.constant * number
            taken += number
        return pos, taken

    def _convert(self, columns: list[Any]) -> tuple[list[Any], int]:
        """Values of each slot, and how many bytes they take with what stands before each."""
        found = []
        size = 0
        rest = iter(columns)
        for of_slot in self._converters:
            if len(of_slot) == 1:
                [(kind, convert)] = of_slot
                column = next(rest)
                values, length = convert(column)
                size += length + len(_BEFORE[kind]) * len(column)
            else:
                values = None
                for kind, convert in of_slot:
                    column = next(rest)
                    size += sum(map(len, column))
                    size += len(_BEFORE[kind]) * (len(column) - column.count(b""))
                    blank = _BLANKS[kind]
                    of_kind, _ = convert([value or blank for value in column])
                    if values is None:
                        values = of_kind
                    else:
                        values = [
                            this if value else other
                            for value, this, other in zip(column, of_kind, values, strict=True)
                        ]
            found.append(values)
        return found, size


class Lists:
    """Takes elements of lists for one decoder.

    * ``binary_as``: what binaries become, ``"bytes"`` or ``"str"``.
    * ``atom``: gives the atom, or the constant, of a name.
    * ``is_atom``: the class of atoms.
    * ``hook``: what structs become, if they do; those of ``names`` only, if there are any.
    """

    def __init__(
        self,
        *,
        binary_as: str,
        atom: Atoms,
        is_atom: type[Atom],
        hook: Callable[[dict[Any, Any]], object] | None,
        names: frozenset[Atom] | None,
    ) -> None:
        self.names = names
        """May change: what has been learned of lists stays."""
        self.have_texts: Final = binary_as == "str"
        self._texts = texts if self.have_texts else binaries
        self._atom = atom
        self._is_atom = is_atom
        self._hook = hook
        self._plans: dict[Shape, Plan] = {}
        self._by_head: dict[bytes, Plan] = {}
        # Of elements with these first bytes few were of one shape: how often they are to be left to
        # the decoder, and have been.
        self._poor: dict[bytes, tuple[int, int]] = {}
        self._caution = 1

    def take(
        self, data: bytes, pos: int, count: int, out: list[Any], levels: int
    ) -> tuple[int, int, bool]:
        """Appends those of the next ``count`` elements that are of one shape to ``out``.

        They may be nested by ``levels``. Returns where they end, how many are left, and whether it
        is worth a try again behind the next element. Raises what ``hook`` raises.
        """
        head = data[pos : pos + _HEAD]
        if head.startswith(b"m"):
            if count < MIN_TEXTS:
                return pos, count, False
            head = b"m"
        skip, skipped = self._poor.get(head, _NOT_POOR)
        if skipped < skip:
            self._poor[head] = skip, skipped + 1
            return pos, count, True
        end, left, again = self._try(head, data, pos, count, out, levels)
        if left and again and count - left < GAIN:
            if len(self._poor) >= MAX_SHAPES:
                self._poor.clear()
            self._poor[head] = min(2 * skip + 1, MAX_SKIPPED), 0
        elif skip:
            self._poor.pop(head, None)  # another thread may have done so
        return end, left, again

    def _try(
        self, head: bytes, data: bytes, pos: int, count: int, out: list[Any], levels: int
    ) -> tuple[int, int, bool]:
        plan = self._by_head.get(head)
        if plan is not None and plan.columns.nesting <= levels:
            end, taken = plan.take(data, pos, count, out)
            if taken:
                return end, count - taken, True
        learned = learn(data, pos)
        if learned is None:
            return pos, count, True
        shape, size = learned
        if isinstance(shape, Leaf) and not shape.kinds & BINARY:
            return pos, count, True  # such elements by themselves are taken as fast by the loop
        if plan is not None:
            shape = merge(plan.columns.shape, shape) or shape
            if shape == plan.columns.shape:
                return pos, count, True
        known = len(self._plans)
        plan = self._plan(shape, data, pos, count, size)
        if plan is None or plan.columns.nesting > levels:
            return pos, count, False
        if len(self._by_head) >= MAX_SHAPES:
            self._by_head.clear()
        self._by_head[head] = plan
        pos, taken = plan.take(data, pos, count, out)
        if len(self._plans) != known:  # a new one: was it worth it?
            good = taken >= GAIN
            self._caution = max(1, self._caution // 2) if good else min(2 * self._caution, 64)
        return pos, count - taken, True

    def _plan(self, shape: Shape, data: bytes, pos: int, count: int, size: int) -> Plan | None:
        plan = self._plans.get(shape)
        if plan is None:
            columns = compiled(shape, data, pos, count, size, self._caution)
            if columns is None or not self._distinct(shape):
                return None
            if len(self._plans) >= MAX_SHAPES:
                self._plans.clear()
            plan = self._plans[shape] = Plan(self, columns)
        return plan

    def _distinct(self, shape: Shape) -> bool:
        """Whether no two keys of a map are one key in Python."""
        if isinstance(shape, Map):
            try:
                keys = set(map(self.key, shape.keys))
            except ValueError:
                return False
            if len(keys) != len(shape.keys):
                return False
        return all(map(self._distinct, _parts(shape)))

    def key(self, external: bytes) -> object:
        """The key of a map. ``ValueError`` where it is not UTF-8 and has to be."""
        if external[0] == 119:
            return self._atom(external[2:])
        return self._texts([external[4:]])[0][0]

    def finisher(self, keys: tuple[bytes, ...]) -> Callable[[list[Any]], list[Any]]:
        """What is still to be done with maps of these keys."""
        hook, is_atom = self._hook, self._is_atom
        if hook is None or _STRUCT not in keys:
            return lambda maps: maps
        key = self._atom(b"__struct__")

        def finish(maps: list[Any]) -> list[Any]:
            names = self.names
            found = {name for each in maps if isinstance(name := each[key], is_atom)}
            if not (found if names is None else found & names):
                return maps
            return [
                hook(each)
                if isinstance(each[key], is_atom) and (names is None or each[key] in names)
                else each
                for each in maps
            ]

        return finish

    def converter(self, kind: int) -> tuple[int, Callable[[Column], tuple[Any, int]]]:
        """What makes values of the groups of this kind, and tells how long they were."""
        of_one: dict[int, Callable[[Column], tuple[Any, int]]] = {
            INTEGER: integers,
            FLOAT: floats,
            BINARY: self._texts,
            ATOM: lambda column: atoms(column, self._atom),
        }
        return kind, of_one[kind]


_HEAD: Final = 8
_NOT_POOR: Final = 0, 0
_STRUCT: Final = b"w\x0a__struct__"
