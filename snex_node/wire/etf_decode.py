"""Decoding the external term format.

The decoder is one loop with an explicit stack, so that the depth of a term costs memory and not the
interpreter's stack. Sizes are compared with the bytes that are there before anything is built. A
slice that ends behind the data is short, and goes unnoticed at first: the next read fails, or the
comparison that ends the loop does. That spares a comparison for every element.

Source: External Term Format, https://www.erlang.org/doc/apps/erts/erl_ext_dist.html
"""

from __future__ import annotations

import gc
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from snex_node.wire import etf_columns
from snex_node.wire.describe import inspect
from snex_node.wire.etf_columns import Lists
from snex_node.wire.terms import (
    MAX_ATOM_CHARACTERS,
    MAX_REFERENCE_WORDS,
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

__all__ = ["MAX_DEPTH", "DecodeError", "Decoder"]

MAX_DEPTH: Final = 100_000
"""How deep terms may nest, unless a decoder or encoder is told otherwise.

A level costs some 200 bytes while the term is read, so that this is 20 MB.
"""

MAX_CACHED_ATOMS: Final = 4096
"""Atoms a decoder remembers: a peer that invents names makes it hold at most 5 MB."""

MAX_CACHED_PIDS: Final = 1024
"""Pids a decoder remembers: at most 400 KB, with the longest of node names."""

MAX_CACHED_HEADS: Final = 256
"""Beginnings of references (node and creation), and as many of pids (node), that a decoder
remembers: at most 200 KB."""

PAUSE: Final = 64 * 1024
"""Bytes from which on no garbage is collected while a term is decoded: it makes many objects and no
garbage, and looking at them time and again takes up to a third of the time."""

LARGE: Final = 1024 * 1024
"""Bytes from which on it is worth finding out whether they are a few terms: to look for something
in 10 MB takes 2 ms, and to pass over a binary of that size takes none."""

FEW: Final = 64
"""Terms that are passed over for that, in 30 us."""

MAX_KEY_DEPTH: Final = 64
"""A tuple nested deeper arrives as a ``Term`` where it is the key of a map.

Python hashes and compares tuples by recursion in C; 100,000 levels of it overflow the stack.
"""

MAX_REREAD: Final = 64
"""How many times the size of the data may be copied for terms inside of terms that are kept whole.

Those are opaque terms, funs, and keys of maps that cannot be hashed. Each level is copied anew.
Without a bound, 1 MB of improper lists in improper lists costs 50 GB.
"""

MAX_EQUAL_HASHES: Final = 64
"""Keys of one map that may have the same hash; more of them arrive as ``Term``.

Python's hashes of numbers, and of tuples of them, are the same everywhere: 100,000 integers that
are multiples of 2^61 - 1 are compared each with each, which takes minutes. This many cost 32
comparisons a key at the most. A ``Term`` has a hash that nobody can foresee.
"""


class DecodeError(ValueError):
    """The bytes are not a term. ``offset`` says where, in bytes from the start of the data."""

    offset: int

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset})")
        self.offset = offset

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return _restore_decode_error, (str(self), self.offset)


def _restore_decode_error(message: str, offset: int) -> DecodeError:
    error = DecodeError.__new__(DecodeError, message)
    ValueError.__init__(error, message)
    error.offset = offset
    return error


# What a term under construction is, until all of its elements are there.
_ROOT: Final = 0
_LIST: Final = 1
_TAIL: Final = 2  # a list that turned out to be improper, waiting for its tail
_TUPLE: Final = 3
_MAP: Final = 4
_KEYED_MAP: Final = 5  # a map with a container among its keys
_FUN: Final = 6
_RECORD: Final = 7

_BYTES: Final = 0
_STR: Final = 1

_CONSTANTS: Final = {"nil": None, "true": True, "false": False}

_i32: Final = struct.Struct(">i").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_u16: Final = struct.Struct(">H").unpack_from
_f64: Final = struct.Struct(">d").unpack_from
_fun_header: Final = struct.Struct(">IB16sII").unpack_from

_MIN_ELEMENTS: Final = etf_columns.MIN_ELEMENTS
_COLUMN_TAGS: Final = frozenset((104, 108, 109, 116, 119))

_MIN_RUN: Final = 16  # in a shorter list, looking for a run of numbers costs what it gains
_CHUNKS: Final = (512, 128, 32, 8)
_INTEGER_RUNS: Final = tuple(
    (n, 5 * n, b"b" * n, struct.Struct(">" + "xi" * n).unpack_from) for n in _CHUNKS
)
_MIXED: Final = 64  # integers that are taken one by one before the next look for runs
_FLOAT_RUNS: Final = tuple(
    (n, 9 * n, b"F" * n, struct.Struct(">" + "xd" * n).unpack_from) for n in _CHUNKS
)

_OLD_FLOAT: Final = re.compile(rb"[-+]?\d+\.\d+([eE][-+]?\d+)?\0*")  # as much as BEAM takes

_RARE_CONTAINERS: Final = frozenset((105, 112, 67))
_CONTAINERS: Final = frozenset((104, 108, 116, 105, 112, 67))

# Identifiers: offset of the node's name, and bytes after it (references: besides their words).
_AFTER_NODE: Final = {
    88: (1, 12),
    103: (1, 9),
    89: (1, 8),
    102: (1, 5),
    120: (1, 12),
    101: (1, 5),
    90: (3, 4),
    114: (3, 1),
}

_PID_NUMBERS: Final = 12  # bytes behind the node's name: id, serial and creation

_ATOM_TAGS: Final = frozenset((119, 118, 115, 100))

# Terms of a fixed size, tag included.
_FIXED: Final = {97: 2, 98: 5, 70: 9, 99: 32, 106: 1}

_NOTHING_KNOWN: Final[dict[int, int]] = {}

_REFUSED: Final = {
    121: "LOCAL_EXT (tag 121): only the node that made this term can read it; "
    "make it without the option `local` of term_to_binary",
    82: "ATOM_CACHE_REF (tag 82) without an atom table: "
    "the peer uses an atom cache that was not agreed on",
    80: "a compressed term (tag 80), which may only stand alone, behind 131; send it uncompressed",
    117: "FUN_EXT (tag 117), the old form of funs, which no supported release sends",
    131: "a version byte (131) where a term should begin",
}

# Raw structs of a message: where each begins, to its name, where its fields begin and end, and its
# own end.
_Fields = dict[str, tuple[int, int]]
_RawStructs = dict[int, tuple[str, _Fields, int]]


class Decoder:
    """Turns terms into Python objects. Made once, then used from any thread, any number of times.

    * ``binary_as``: what a binary becomes, ``"bytes"``, ``"str"`` (UTF-8 or a ``DecodeError``) or
      ``"bytearray"``.
    * ``atom``: the class of atoms, called with a name. ``true``, ``false`` and ``nil`` are
      ``True``, ``False`` and ``None``.
    * ``opaque``: pids, ports, references, funs, exports, bitstrings, improper lists and records
      arrive as ``term``, each as a whole.
    * ``term``: the class of terms that are kept in their external form.
    * ``struct_hook``: called with every map that has an atom under the key ``__struct__``,
      innermost first, but of a long list in any order; its result takes the map's place.
    * ``struct_names``: names of structs (``"Elixir.Foo"``) that it is called with; None for all.
    * ``raw_structs``: names of structs (``"Elixir.Foo"``) whose other fields reach the hook as
      ``term``, for structs that say themselves how their contents are to be decoded.
    * ``view_structs``: names of structs whose fields, where they are binaries, reach the hook as a
      `memoryview` of the data that is decoded: large ones are not copied, and keep all of it.
      Other fields of theirs are read as a decoder without options reads them.
    * ``term_structs``: names of structs that arrive as ``term``, each as a whole.
    * ``max_depth``: terms nested deeper are refused.

    A map key that Python cannot hash, or cannot tell from another key of the same map (``1`` and
    ``1.0``, ``1`` and ``true``), arrives as ``term``: nothing is lost, and the map goes back as it
    came. An atom and a ``str`` of the same text are one key, and the last one wins.

    >>> Decoder(binary_as="str").decode(bytes([109, 0, 0, 0, 2, 104, 105]))
    ('hi', 7)
    """

    __slots__ = (
        "_atom",
        "_atoms",
        "_binary",
        "_hook",
        "_lists",
        "_max_depth",
        "_opaque",
        "_pid",
        "_pid_heads",
        "_pids",
        "_rare_containers",
        "_raw_marker",
        "_raw_names",
        "_raw_structs",
        "_reference",
        "_reference_heads",
        "_struct_key",
        "_struct_names",
        "_term",
        "_term_structs",
        "_view_structs",
    )

    def __init__(
        self,
        *,
        binary_as: Literal["bytes", "str", "bytearray"] = "bytes",
        atom: type[Atom] = Atom,
        opaque: bool = False,
        term: type[Term] = Term,
        struct_hook: Callable[[dict[Any, Any]], object] | None = None,
        struct_names: Iterable[str] | None = None,
        raw_structs: Iterable[str] = (),
        view_structs: Iterable[str] = (),
        term_structs: Iterable[str] = (),
        max_depth: int = MAX_DEPTH,
    ) -> None:
        if binary_as not in ("bytes", "str", "bytearray"):
            raise ValueError(f"binary_as is 'bytes', 'str' or 'bytearray', not {binary_as!r}")
        self._binary = ("bytes", "str", "bytearray").index(binary_as)
        self._atom = atom
        self._opaque = opaque
        self._rare_containers = _RARE_CONTAINERS - {112} if opaque else _RARE_CONTAINERS
        self._term = term
        self._hook = struct_hook
        self._struct_names = None if struct_names is None else frozenset(map(atom, struct_names))
        self._view_structs = frozenset(view_structs)
        self._term_structs = frozenset(term_structs)
        self._raw_structs = self._view_structs | self._term_structs | frozenset(raw_structs)
        # What all of them have, and what only they have: found in no time, and in a little.
        names = frozenset(name.encode() for name in self._raw_structs)
        self._raw_marker = _common_prefix(names)
        self._raw_names = re.compile(b"|".join(map(re.escape, sorted(names))))
        self._max_depth = max_depth
        self._struct_key = atom("__struct__")
        self._atoms: dict[bytes, object] = {}
        self._pids: dict[bytes, Pid | Term] = {}
        self._pid: Callable[[bytes], Pid | Term] = term if opaque else Pid.from_external
        self._pid_heads: set[bytes] = set()
        self._reference: Callable[[bytes], Reference | Term]
        self._reference = term if opaque else Reference.from_external
        self._reference_heads: dict[bytes, int] = {}
        self._lists: Lists | None = None
        if binary_as != "bytearray":  # each has to be an object of its own
            self._lists = Lists(
                binary_as=binary_as,
                atom=self._known_atom,
                is_atom=atom,
                hook=struct_hook,
                names=self._struct_names,
            )

    def add_struct_names(self, names: Iterable[str]) -> None:
        """Have the hook called with structs of these names too, from the next one on.

        Those that are decoded by other threads meanwhile may be before that or after it.
        """
        if self._struct_names is not None:
            self._struct_names = self._struct_names.union(map(self._atom, names))
            if self._lists is not None:
                self._lists.names = self._struct_names

    def decode(  # noqa: PLR0912, PLR0915 - the hot loop: a call for each element would double its time
        self, data: bytes | bytearray | memoryview, offset: int = 0
    ) -> tuple[Any, int]:
        """The term at ``offset`` (tag first, no 131), and the offset behind it.

        Raises ``DecodeError`` where the bytes are no term, and whatever ``struct_hook`` raises;
        nothing else, whatever the bytes are.
        """
        if type(data) is not bytes:
            data = bytes(data)
        size = len(data)
        pos = offset
        atoms = self._atoms
        pids = self._pids
        reference_heads = self._reference_heads
        binary = self._binary
        max_depth = self._max_depth
        hook = self._hook
        raw_structs = self._find_raw_structs(data, pos) if self._raw_structs else None
        lists = None if raw_structs else self._lists
        # Of lists of which some elements are left to this loop: how many there are behind those,
        # and those were, by where they begin.
        rests: dict[int, tuple[int, int]] | None = None
        in_hook = False
        reread = 0
        # Where maps end that had to be read twice, by where they begin: others need not read them.
        reread_maps: dict[int, int] = {}
        # The innermost term under construction: its elements so far, how many are still to come,
        # what it is, where it started. Those around it are on the stack.
        out: list[Any] = []
        remaining = 1
        kind = _ROOT
        start = pos
        stack: list[tuple[list[Any], int, int, int]] = []
        run_at = size  # from here on it is worth looking for a run of numbers
        begin = pos
        value: Any
        pausing = size - pos >= PAUSE and gc.isenabled()
        if pausing:
            gc.disable()
        try:
            while True:
                while remaining:
                    remaining -= 1
                    tag = data[pos]
                    if tag == 119:
                        begin = pos + 2
                        pos = begin + data[pos + 1]
                        try:
                            out.append(atoms[data[begin:pos]])
                        except KeyError:
                            out.append(self._remember_atom(data, begin, pos))
                    elif tag == 109:
                        begin = pos + 5
                        pos = begin + _u32(data, pos + 1)[0]
                        if binary == _BYTES:
                            out.append(data[begin:pos])
                        elif binary == _STR:
                            out.append(data[begin:pos].decode())
                        else:
                            out.append(bytearray(memoryview(data)[begin:pos]))
                    elif tag == 97:
                        if pos >= run_at:
                            run_at = pos + 40
                            if remaining >= 7 and (
                                data[pos : pos + 16 : 2] == b"aaaaaaaa"
                                or (remaining >= _MIXED and 97 <= data[pos + 2] <= 98)
                            ):
                                pos, remaining = _integers(data, pos, remaining + 1, out)
                                continue
                        out.append(data[pos + 1])
                        pos += 2
                    elif tag == 98:
                        if pos >= run_at:
                            run_at = pos + 40
                            if remaining >= 7 and (
                                data[pos:run_at:5] == b"bbbbbbbb"
                                or (remaining >= _MIXED and 97 <= data[pos + 5] <= 98)
                            ):
                                pos, remaining = _integers(data, pos, remaining + 1, out)
                                continue
                        out.append(_i32(data, pos + 1)[0])
                        pos += 5
                    elif tag == 70:
                        if pos >= run_at:
                            run_at = pos + 72
                            if remaining >= 7 and data[pos:run_at:9] == b"FFFFFFFF":
                                pos, remaining = _floats(data, pos, remaining + 1, out)
                                continue
                        number = _f64(data, pos + 1)[0]
                        if number * 0.0 != 0.0:
                            raise _not_finite(pos)
                        out.append(number)
                        pos += 9
                    elif tag == 104:
                        count = data[pos + 1]
                        if count > size - pos - 2:
                            raise _too_many(tag, count, pos, size - pos - 2)
                        if len(stack) >= max_depth:
                            raise _too_deep(max_depth, pos)
                        if kind == _MAP and not len(out) & 1:
                            kind = _KEYED_MAP
                        stack.append((out, remaining, kind, start))
                        out = []
                        remaining = count
                        kind = _TUPLE
                        start = pos
                        pos += 2
                    elif tag == 116:
                        count = 2 * _u32(data, pos + 1)[0]
                        if count > size - pos - 5:
                            raise _too_many(tag, count, pos, size - pos - 5)
                        if len(stack) >= max_depth:
                            raise _too_deep(max_depth, pos)
                        if kind == _MAP and not len(out) & 1:
                            kind = _KEYED_MAP
                        if raw_structs and pos in raw_structs:
                            begin = pos
                            pos = raw_structs[pos][2]
                            in_hook = True
                            out.append(self._hook_raw(data, begin, raw_structs[begin]))
                            in_hook = False
                            continue
                        stack.append((out, remaining, kind, start))
                        out = []
                        remaining = count
                        kind = _MAP
                        start = pos
                        pos += 5
                    elif tag == 108:
                        count = _u32(data, pos + 1)[0]
                        if count >= size - pos - 5:
                            raise _too_many(tag, count + 1, pos, size - pos - 5)
                        if len(stack) >= max_depth:
                            raise _too_deep(max_depth, pos)
                        if kind == _MAP and not len(out) & 1:
                            kind = _KEYED_MAP
                        stack.append((out, remaining, kind, start))
                        out = []
                        remaining = count
                        kind = _LIST
                        start = pos
                        pos += 5
                        run_at = pos if count >= _MIN_RUN else size
                        if count >= _MIN_ELEMENTS and lists and data[pos] in _COLUMN_TAGS:
                            in_hook = True
                            levels = max_depth - len(stack)
                            pos, remaining, rest = _take(lists, data, pos, count, out, levels, 1)
                            if rest is not None:
                                rests = rests or {}
                                rests[start] = rest
                            in_hook = False
                    elif tag == 106:
                        out.append([])
                        pos += 1
                    elif tag == 107:
                        begin = pos + 3
                        pos = begin + _u16(data, pos + 1)[0]
                        out.append(list(data[begin:pos]))
                    elif tag == 88:
                        begin = pos
                        pos += 15 + data[pos + 2]
                        try:
                            out.append(pids[data[begin:pos]])
                        except KeyError:
                            value, pos = self._remember_pid(data, begin, pos)
                            out.append(value)
                    elif tag == 90:
                        begin = pos
                        pos += 9 + data[pos + 4]
                        try:
                            pos += reference_heads[data[begin:pos]]
                            out.append(self._reference(data[begin:pos]))
                        except KeyError:
                            value, pos = self._remember_reference(data, begin, pos)
                            out.append(value)
                    elif tag in self._rare_containers:
                        opened, count, begin = _header(data, pos, tag)
                        if len(stack) >= max_depth:
                            raise _too_deep(max_depth, pos)
                        if kind == _MAP and not len(out) & 1:
                            kind = _KEYED_MAP
                        stack.append((out, remaining, kind, start))
                        out = []
                        remaining = count
                        kind = opened
                        start = pos
                        pos = begin
                    else:
                        value, pos = self._rare(data, pos, tag)
                        if kind == _MAP and not len(out) & 1:  # a large integer, perhaps
                            kind = _KEYED_MAP
                        out.append(value)
                # All elements are there: the term is put together and handed to the one around it.
                if kind == _TUPLE:
                    value = tuple(out)
                elif kind == _LIST:
                    if rests and start in rests and lists:
                        in_hook = True
                        levels = max_depth - len(stack)
                        left, step = rests.pop(start)
                        pos, remaining, rest = _take(lists, data, pos, left, out, levels, step)
                        if rest is not None:
                            rests[start] = rest
                        in_hook = False
                        if remaining:
                            continue
                    tag = data[pos]
                    if tag == 106:
                        pos += 1
                        value = out
                    elif tag == 108:  # the tail is a list: it goes on here
                        _, remaining, pos = _header(data, pos, tag)
                        continue
                    elif tag == 107:
                        begin = pos + 3
                        pos = begin + _u16(data, pos + 1)[0]
                        out.extend(data[begin:pos])
                        value = out
                    else:
                        kind = _TAIL
                        remaining = 1
                        continue
                elif kind == _MAP or kind == _KEYED_MAP:  # noqa: SIM109 - faster than `in`
                    if kind == _MAP or _are_plain(out[::2]):
                        pairs = iter(out)
                        try:
                            if len(out) <= 6:  # half the time of dict(zip())
                                value = {}
                                for key in pairs:
                                    value[key] = next(pairs)
                            else:
                                value = dict(zip(pairs, pairs))  # noqa: B905 - one iterator, twice
                            complete = 2 * len(value) == len(out)
                        except TypeError:
                            complete = False
                    else:
                        complete = False
                    if not complete:
                        value, copied = self._careful_map(data, start, out, reread_maps)
                        reread_maps[start] = pos
                        reread += copied
                        if reread > MAX_REREAD * size:
                            raise _too_much_reread(size, start)
                    if hook is not None and self._struct_key in value and self._is_struct(value):
                        if pos > size:
                            raise _truncated(data)
                        in_hook = True
                        value = hook(value)
                        in_hook = False
                elif kind == _ROOT:
                    if pos > size:
                        raise _truncated(data)
                    return out[0], pos
                else:
                    if pos > size:
                        raise _truncated(data)
                    if kind == _TAIL and not self._opaque:
                        tail = out.pop()
                        if isinstance(tail, list):
                            reread += 8 * len(tail)
                            if reread > MAX_REREAD * size:
                                raise _too_much_reread(size, start)
                        value = _joined(out, tail)
                    else:
                        if self._opaque or kind == _FUN:
                            reread += pos - start
                            if reread > MAX_REREAD * size:
                                raise _too_much_reread(size, start)
                        value = self._composite(data, start, pos, kind, out)
                out, remaining, kind, start = stack.pop()
                out.append(value)
        except (IndexError, struct.error):
            if in_hook:
                raise
            raise _truncated(data) from None
        except UnicodeDecodeError as error:
            if in_hook:
                raise
            raise _not_utf8(data, begin, pos, error) from None
        finally:
            if pausing:
                gc.enable()

    def skip(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """The offset behind the term at ``offset``, without building the term.

        Tags and sizes are checked and raise ``DecodeError``; what atoms, floats and the like hold
        is not.
        """
        if type(data) is not bytes:
            data = bytes(data)
        try:
            end = _skip(data, offset)
        except (IndexError, struct.error):
            raise _truncated(data) from None
        _check_end(data, end)
        return end

    def _careful_map(
        self, data: bytes, start: int, out: list[Any], known: dict[int, int]
    ) -> tuple[dict[Any, Any], int]:
        """The map whose keys Python cannot hash, or takes for one another: those become terms.

        ``known`` tells where maps end that have been read this way already, so that of maps in maps
        no byte is read a third time. Returned besides is how many bytes have been copied.
        """
        result: dict[Any, Any] = {}
        present: dict[Any, Any] = {}
        crowded = _crowded(out[::2])
        copied = 0
        pos = start + 5
        for key, value in zip(out[::2], out[1::2], strict=True):
            end = _skip(data, pos, known)
            if not _is_hashable(key) or (crowded and hash(key) in crowded):
                key = self._term(data[pos:end])
                copied += end - pos
            if key in present:
                other = present[key]
                if _is_same(key, other):
                    raise DecodeError(f"a map has the key {inspect(key)} twice", pos)
                if isinstance(key, str) and isinstance(other, str):
                    del result[key]
                else:
                    key = self._term(data[pos:end])
                    copied += end - pos
                    if key in present:
                        raise DecodeError(f"a map has the key {inspect(other)} twice", pos)
            present[key] = key
            result[key] = value
            pos = _skip(data, end, known)
        _check_end(data, pos)
        return result, copied

    def _is_struct(self, fields: dict[Any, Any]) -> bool:
        """Whether it is one for the hook: key and value of ``__struct__`` are atoms, no strings."""
        name = fields[self._struct_key]
        if not isinstance(name, self._atom):
            return False
        if self._struct_names is not None and name not in self._struct_names:
            return False
        return any(isinstance(key, self._atom) and key == self._struct_key for key in fields)

    def _find_raw_structs(self, data: bytes, pos: int) -> _RawStructs | None:
        if self._hook is None:
            return None
        try:
            few = len(data) - pos >= LARGE and _has_few_terms(data, pos)
            if not few:
                found = data.find(self._raw_marker, pos)
                if found < 0 or self._raw_names.search(data, found) is None:
                    return None
            return _raw_structs(data, pos, self._raw_structs)
        except (IndexError, struct.error):
            raise _truncated(data) from None

    def _hook_raw(self, data: bytes, start: int, struct: tuple[str, _Fields, int]) -> object:
        """What stands for a raw struct; its fields are decoded to know that they can be."""
        name, fields, end = struct
        if name in self._term_structs:
            _VALIDATOR.decode(data, start)
            return self._term(data[start:end])
        read = self._viewed if name in self._view_structs else self._raw_field
        made: dict[Any, Any] = {
            self._atom(field): read(data, *at)
            for field, at in fields.items()
            if field != "__struct__"
        }
        made[self._struct_key] = self._atom(name)
        assert self._hook is not None
        return self._hook(made)

    def _raw_field(self, data: bytes, begin: int, end: int) -> object:
        _VALIDATOR.decode(data, begin)
        return self._term(data[begin:end])

    def _viewed(self, data: bytes, begin: int, end: int) -> object:
        if data[begin] == 109:
            return memoryview(data)[begin + 5 : end]
        return _VALIDATOR.decode(data, begin)[0]

    def _composite(self, data: bytes, start: int, end: int, kind: int, out: list[Any]) -> object:
        if kind == _FUN:
            return _fun(data, start, end, out)
        if kind == _RECORD:
            record = self._record(data, start, out)
            return self._term(data[start:end]) if self._opaque else record
        return self._term(data[start:end])

    def _record(self, data: bytes, start: int, out: list[Any]) -> Record:
        fields = (len(out) - 2) // 2
        names: list[Atom] = []
        for name in out[: 2 + fields]:
            if isinstance(name, Atom):
                names.append(name)
            elif name is None or name is True or name is False:
                names.append(self._atom("nil" if name is None else str(name).lower()))
            else:
                raise DecodeError(f"a native record (tag 67) has {inspect(name)} for a name", start)
        return Record(names[0], names[1], names[2:], out[2 + fields :], data[start + 5])

    def _rare(self, data: bytes, pos: int, tag: int) -> tuple[Any, int]:
        """A term of a tag too seldom for the loop, and its end."""
        if tag in _AFTER_NODE:
            return self._identifier(data, pos, tag)
        if tag in _ATOM_TAGS:
            name, end = _atom_text(data, pos)
            return self._atom_or_constant(name), end
        if tag in (110, 111):
            return _big(data, pos, tag)
        if tag == 77:
            return self._bit_binary(data, pos)
        if tag == 113:
            return self._export(data, pos)
        if tag == 112:  # kept opaque, or it would be a container
            _, end = _VALIDATOR.decode(data, pos)
            return self._term(data[pos:end]), end
        if tag == 99:
            return _old_float(data, pos), pos + 32
        raise _unknown(tag, pos)

    def _remember_atom(self, data: bytes, begin: int, end: int) -> object:
        _check_end(data, end)
        raw = data[begin:end]
        value = self._atom_or_constant(_atom_name(raw, "utf-8", begin))
        if len(self._atoms) >= MAX_CACHED_ATOMS:
            self._atoms.clear()
        self._atoms[raw] = value
        return value

    def _known_atom(self, raw: bytes) -> object:
        known = self._atoms.get(raw, self)
        return self._remember_atom(raw, 0, len(raw)) if known is self else known

    def _atom_or_constant(self, name: str) -> object:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        return self._atom(name)

    def _remember_pid(self, data: bytes, begin: int, end: int) -> tuple[Pid | Term, int]:
        head = data[begin : end - _PID_NUMBERS]
        if head in self._pid_heads:  # of a node that is known a new one comes all the time
            _check_end(data, end)
            value = self._pid(data[begin:end])
        else:
            value, true_end = self._identifier(data, begin, 88)
            if data[begin + 1] != 119:
                return value, true_end
            if len(self._pid_heads) >= MAX_CACHED_HEADS:
                self._pid_heads.clear()
            self._pid_heads.add(head)
        if len(self._pids) >= MAX_CACHED_PIDS:
            self._pids.clear()
        self._pids[data[begin:end]] = value
        return value, end

    def _remember_reference(
        self, data: bytes, begin: int, head_end: int
    ) -> tuple[Reference | Term, int]:
        """A reference, and of it what comes before its words: number, node and creation."""
        value, end = self._identifier(data, begin, 90)
        if data[begin + 3] == 119:
            if len(self._reference_heads) >= MAX_CACHED_HEADS:
                self._reference_heads.clear()
            self._reference_heads[data[begin:head_end]] = end - head_end
        return value, end

    def _identifier(self, data: bytes, pos: int, tag: int) -> tuple[Any, int]:
        end = _skip(data, pos)
        _check_end(data, end)
        value = _make_identifier(data, pos, tag)
        return (self._term(value.external) if self._opaque else value), end

    def _bit_binary(self, data: bytes, pos: int) -> tuple[object, int]:
        begin = pos + 6
        end = begin + _u32(data, pos + 1)[0]
        bits = data[pos + 5]
        _check_end(data, end)
        if bits > 8 or (bits == 0) != (end == begin):
            raise DecodeError(
                f"BIT_BINARY_EXT (tag 77) of {end - begin} bytes uses {bits} bits of the last one",
                pos,
            )
        if bits == 8 or end == begin:
            return self._whole_binary(data, begin, end), end
        if self._opaque:
            return self._term(data[pos:end]), end
        return BitString(data[begin:end], bits), end

    def _whole_binary(self, data: bytes, begin: int, end: int) -> object:
        raw = data[begin:end]
        if self._binary == _STR:
            try:
                return raw.decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(data, begin, end, error) from None
        return raw if self._binary == _BYTES else bytearray(raw)

    def _export(self, data: bytes, pos: int) -> tuple[Export | Term, int]:
        module, end = _atom_text(data, pos + 1)
        function, end = _atom_text(data, end)
        arity_at = end
        tag = data[end]
        arity = -1
        if tag == 97:
            arity, end = data[end + 1], end + 2
        elif tag == 98:
            arity, end = _i32(data, end + 1)[0], end + 5
        if not 0 <= arity <= 255:
            raise DecodeError("EXPORT_EXT (tag 113) has no arity of 0 to 255", arity_at)
        if self._opaque:
            return self._term(data[pos:end]), end
        return Export(self._atom(module), self._atom(function), arity), end


def _take(
    lists: Lists, data: bytes, pos: int, count: int, out: list[Any], levels: int, step: int
) -> tuple[int, int, tuple[int, int] | None]:
    """Takes those of ``count`` elements that are of one shape; ``step`` were left to the loop.

    Returns where they end, how many the loop is to take now, and, if there are more after those,
    how many, and the step then.
    """
    end, left, again = lists.take(data, pos, count, out, levels)
    if not left or not again:
        return end, left, None
    step = 1 if count - left >= etf_columns.GAIN else min(2 * step, etf_columns.MAX_STEP)
    return (end, step, (left - step, step)) if left > step else (end, left, None)


def _integers(data: bytes, pos: int, count: int, out: list[Any]) -> tuple[int, int]:
    """Takes the INTEGER_EXT and SMALL_INTEGER_EXT at ``pos``.

    Returns their end, and how many of count are left. 100,000 of one kind take 1 to 3 ms this way,
    10 ms where they are mixed, and 17 ms one by one. The chunks keep it linear: a tag is looked at
    no more often than there are sizes of chunks.
    """
    append = out.append
    while True:
        if count >= 8 and data[pos : pos + 40 : 5] == b"bbbbbbbb":
            for length, width, tags, unpack in _INTEGER_RUNS:
                while count >= length and data[pos : pos + width : 5] == tags:
                    out.extend(unpack(data, pos))
                    pos += width
                    count -= length
        elif count >= 8 and data[pos : pos + 16 : 2] == b"aaaaaaaa":
            for length in _CHUNKS:
                width = 2 * length
                tags = b"a" * length
                while count >= length and data[pos : pos + width : 2] == tags:
                    out.extend(data[pos + 1 : pos + width : 2])
                    pos += width
                    count -= length
        mixed = min(count, _MIXED)
        for taken in range(mixed):
            tag = data[pos]
            if tag == 98:
                append(_i32(data, pos + 1)[0])
                pos += 5
            elif tag == 97:
                append(data[pos + 1])
                pos += 2
            else:
                return pos, count - taken
        count -= mixed
        if not count:
            return pos, 0


def _floats(data: bytes, pos: int, count: int, out: list[Any]) -> tuple[int, int]:
    """The same for a run of NEW_FLOAT_EXT."""
    for length, width, tags, unpack in _FLOAT_RUNS:
        while count >= length and data[pos : pos + width : 9] == tags:
            numbers = unpack(data, pos)
            if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
                raise _not_finite(pos)
            out.extend(numbers)
            pos += width
            count -= length
    return pos, count


def _common_prefix(names: frozenset[bytes]) -> bytes:
    first, last = min(names, default=b""), max(names, default=b"")
    same = [one == other for one, other in zip(first, last, strict=False)]
    return first[: same.index(False) if False in same else len(same)]


def _joined(elements: list[Any], tail: Any) -> Any:
    if not elements:  # LIST_EXT of no elements is its tail
        return tail
    if not isinstance(tail, (list, ImproperList)):
        return ImproperList(elements, tail)
    if isinstance(tail, list):  # what a struct hook made of a struct
        return [*elements, *tail]
    return ImproperList([*elements, *tail.elements], tail.tail)


def _fun(data: bytes, start: int, end: int, out: list[Any]) -> Fun:
    size, arity, uniq, index, _ = _fun_header(data, start + 1)
    module, old_index, old_uniq, pid, *free = out
    if start + 1 + size != end:
        raise DecodeError(
            f"NEW_FUN_EXT (tag 112) claims {size} bytes and has {end - start - 1}", start
        )
    if not (
        isinstance(module, Atom)
        and type(old_index) is int
        and type(old_uniq) is int
        and isinstance(pid, Pid)
    ):
        raise DecodeError(
            "NEW_FUN_EXT (tag 112) lacks its module, old index, old uniq or pid", start
        )
    return Fun(
        data[start:end],
        arity=arity,
        uniq=uniq,
        index=index,
        module=module,
        old_index=old_index,
        old_uniq=old_uniq,
        pid=pid,
        free=free,
    )


def _parts(key: object) -> tuple[Any, ...] | None:
    if type(key) is tuple:
        return key
    if isinstance(key, ImproperList):
        return (*key.elements, key.tail)
    return key.values if isinstance(key, Record) else None


def _is_shallow(key: object, depth: int = 0) -> bool:
    """Whether hashing and comparing the key is safe: both recurse."""
    parts = _parts(key)
    if parts is None:
        return True
    return depth < MAX_KEY_DEPTH and all(_is_shallow(part, depth + 1) for part in parts)


def _are_plain(keys: list[Any]) -> bool:
    """Whether a dict can be made of the keys at once, at a cost that is in proportion to them."""
    return all(map(_is_shallow, keys)) and not _crowded(keys)


def _crowded(keys: list[Any]) -> set[int]:
    """The hashes that more than `MAX_EQUAL_HASHES` of the keys have."""
    if len(keys) <= MAX_EQUAL_HASHES:
        return set()
    counts = Counter(hash(key) for key in keys if _is_hashable(key))
    return {value for value, count in counts.items() if count > MAX_EQUAL_HASHES}


def _is_hashable(key: object) -> bool:
    if not _is_shallow(key):
        return False
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _is_same(one: object, other: object) -> bool:
    """Whether two keys that are equal in Python are the same term too."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return math.copysign(1.0, one) == math.copysign(1.0, other)
    return all(map(_is_same, _parts(one) or (), _parts(other) or ()))


def _header(data: bytes, pos: int, tag: int) -> tuple[int, int, int]:
    """What the container is, how many terms it holds, and where the first of them begins."""
    if tag == 104:
        kind, count, begin = _TUPLE, data[pos + 1], pos + 2
    elif tag == 108:
        kind, count, begin = _LIST, _u32(data, pos + 1)[0], pos + 5
    elif tag == 116:
        kind, count, begin = _MAP, 2 * _u32(data, pos + 1)[0], pos + 5
    elif tag == 105:
        kind, count, begin = _TUPLE, _u32(data, pos + 1)[0], pos + 5
    elif tag == 112:  # module, old index, old uniq and pid precede the free variables
        kind, count, begin = _FUN, 4 + _u32(data, pos + 26)[0], pos + 30
    else:  # module and name precede the names of the fields and their values
        kind, count, begin = _RECORD, 2 + 2 * _u32(data, pos + 1)[0], pos + 6
    if count > len(data) - begin:
        raise _too_many(tag, count, pos, len(data) - begin)
    return kind, count, begin


def _skip(data: bytes, pos: int, known: dict[int, int] = _NOTHING_KNOWN) -> int:
    """The offset behind the term, which may lie behind the end of the data.

    ``known`` tells where some maps end, by where they begin.
    """
    pending = 1
    while pending:
        if known and pos in known:
            pos = known[pos]
            pending -= 1
            continue
        pos, children = _step(data, pos)
        pending += children - 1
    return pos


def _step(data: bytes, pos: int) -> tuple[int, int]:
    """Where the next term begins, and how many of those that follow are part of this one."""
    tag = data[pos]
    if tag in _CONTAINERS:
        _, children, begin = _header(data, pos, tag)
        return begin, children + (tag == 108)
    if tag == 113:
        return _skip_atom(data, _skip_atom(data, pos + 1)), 1
    return _skip_leaf(data, pos, tag), 0


def _skip_leaf(data: bytes, pos: int, tag: int) -> int:
    if tag in _FIXED:
        return pos + _FIXED[tag]
    if tag in _ATOM_TAGS:
        return _skip_atom(data, pos)
    if tag == 109:
        return pos + 5 + int(_u32(data, pos + 1)[0])
    if tag == 107:
        return pos + 3 + int(_u16(data, pos + 1)[0])
    if tag == 110:
        return pos + 3 + data[pos + 1]
    if tag in (111, 77):
        return pos + 6 + int(_u32(data, pos + 1)[0])
    if tag in _AFTER_NODE:
        before, after = _AFTER_NODE[tag]
        words = _u16(data, pos + 1)[0] if before == 3 else 0
        return _skip_atom(data, pos + before) + after + 4 * int(words)
    raise _unknown(tag, pos)


def _skip_atom(data: bytes, pos: int) -> int:
    tag = data[pos]
    if tag in (119, 115):
        return pos + 2 + data[pos + 1]
    if tag in (118, 100):
        return pos + 3 + int(_u16(data, pos + 1)[0])
    if tag == 82:
        raise _unknown(tag, pos)
    raise DecodeError(f"an atom should be here, and the tag is {tag}", pos)


def _has_few_terms(data: bytes, pos: int) -> bool:
    """Whether the term is of `FEW` terms at the most."""
    pending = 1
    for _ in range(FEW):
        pos, children = _step(data, pos)
        pending += children - 1
        if not pending:
            return True
    return False


def _raw_structs(data: bytes, pos: int, names: frozenset[str]) -> _RawStructs:
    """Finds the structs of these names, whatever they are nested in, in one walk over the term."""
    found: _RawStructs = {}
    stack: list[tuple[int, list[int] | None, int]] = []  # terms to come, offsets if a map, start
    offsets: list[int] | None = None
    remaining, start = 1, pos
    while True:
        while remaining:
            remaining -= 1
            if offsets is not None:
                offsets.append(pos)
            tag = data[pos]
            if tag in _FIXED:
                pos += _FIXED[tag]
                continue
            begin, children = _step(data, pos)
            if children:
                stack.append((remaining, offsets, start))
                remaining, start = children, pos
                offsets = [] if tag == 116 else None
            pos = begin
        if offsets is not None:
            struct = _raw_fields(data, [*offsets, pos], names)
            if struct is not None:
                found[start] = (*struct, pos)
        if not stack:
            return found
        remaining, offsets, start = stack.pop()


def _raw_fields(
    data: bytes, offsets: list[int], names: frozenset[str]
) -> tuple[str, _Fields] | None:
    fields: _Fields = {}
    if offsets[-1] > len(data):
        raise _truncated(data)
    for key, begin, end in zip(offsets[:-1:2], offsets[1::2], offsets[2::2], strict=True):
        if data[key] not in _ATOM_TAGS:
            return None
        fields[_atom_text(data, key)[0]] = begin, end
    begin, _ = fields.get("__struct__", (0, 0))
    if not begin or data[begin] not in _ATOM_TAGS:
        return None
    name = _atom_text(data, begin)[0]
    return (name, fields) if name in names else None


def _atom_text(data: bytes, pos: int) -> tuple[str, int]:
    end = _skip_atom(data, pos)
    _check_end(data, end)
    tag = data[pos]
    begin = pos + (2 if tag in (119, 115) else 3)
    return _atom_name(data[begin:end], "utf-8" if tag in (119, 118) else "latin-1", begin), end


def _atom_name(raw: bytes, encoding: str, pos: int) -> str:
    try:
        name = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DecodeError(f"the name of an atom is not UTF-8 ({error.reason})", pos) from None
    if len(name) > MAX_ATOM_CHARACTERS:
        raise DecodeError(
            f"an atom of {len(name)} characters, where {MAX_ATOM_CHARACTERS} is the most", pos
        )
    return name


def _make_identifier(data: bytes, pos: int, tag: int) -> Pid | Port | Reference:
    node, at = _atom_text(data, pos + _AFTER_NODE[tag][0])
    if tag == 88:
        return Pid(node, *struct.unpack_from(">III", data, at))
    if tag == 103:
        return Pid(node, *struct.unpack_from(">IIB", data, at))
    if tag in (90, 114):
        count = _u16(data, pos + 1)[0]
        if not 1 <= count <= MAX_REFERENCE_WORDS:
            raise _wrong_words(count, pos)
        creation, *words = struct.unpack_from(f">{'I' if tag == 90 else 'B'}{count}I", data, at)
        return Reference(node, creation, words)
    if tag == 101:
        number, creation = struct.unpack_from(">IB", data, at)
        return Reference(node, creation, (number,))
    if tag == 120:
        return Port(node, *struct.unpack_from(">QI", data, at), v4=True)
    return Port(node, *struct.unpack_from(">II" if tag == 89 else ">IB", data, at), v4=False)


def _big(data: bytes, pos: int, tag: int) -> tuple[int, int]:
    count, begin = (data[pos + 1], pos + 3) if tag == 110 else (_u32(data, pos + 1)[0], pos + 6)
    end = begin + count
    _check_end(data, end)
    magnitude = int.from_bytes(data[begin:end], "little")
    return (-magnitude if data[begin - 1] else magnitude), end


def _old_float(data: bytes, pos: int) -> float:
    _check_end(data, pos + 32)
    text = data[pos + 1 : pos + 32]
    if _OLD_FLOAT.fullmatch(text):
        value = float(text.rstrip(b"\0"))
        if math.isfinite(value):
            return value
    raise DecodeError(f"FLOAT_EXT (tag 99) holds no finite number: {text!r}", pos)


def _check_end(data: bytes, end: int) -> None:
    if end > len(data):
        raise _truncated(data)


def _too_much_reread(size: int, pos: int) -> DecodeError:
    return DecodeError(
        f"opaque terms, or maps with such keys, are nested so deep that more than {MAX_REREAD} "
        f"times the {size} bytes would be copied",
        pos,
    )


def _truncated(data: bytes | bytearray | memoryview) -> DecodeError:
    return DecodeError(f"the term is truncated: it goes on behind the {len(data)} bytes", len(data))


def _too_many(tag: int, count: int, pos: int, left: int) -> DecodeError:
    return DecodeError(
        f"the term is truncated: tag {tag} announces {count} terms and {max(left, 0)} bytes follow",
        pos,
    )


def _too_deep(max_depth: int, pos: int) -> DecodeError:
    return DecodeError(
        f"the term is nested deeper than max_depth, {max_depth} levels; raise max_depth to take it",
        pos,
    )


def _not_finite(pos: int) -> DecodeError:
    return DecodeError("NEW_FLOAT_EXT (tag 70) holds no finite number", pos)


def _not_utf8(data: bytes, begin: int, end: int, error: UnicodeDecodeError) -> DecodeError:
    if end > len(data):
        return _truncated(data)
    return DecodeError(
        f"a binary of {end - begin} bytes is not UTF-8 ({error.reason}) and cannot become a str; "
        f"have binaries decoded as bytes (binary_as='bytes')",
        begin + error.start,
    )


def _wrong_words(count: int, pos: int) -> DecodeError:
    return DecodeError(f"a reference of {count} words, where 1 to {MAX_REFERENCE_WORDS} are", pos)


def _unknown(tag: int, pos: int) -> DecodeError:
    if tag in _REFUSED:
        return DecodeError(f"{_REFUSED[tag]}", pos)
    return DecodeError(f"unknown tag {tag}", pos)


_VALIDATOR: Final = Decoder()
