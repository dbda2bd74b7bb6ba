"""Decoding the external term format.

The decoder is one loop with an explicit stack, so the depth of a term costs memory and never the interpreter's
stack. Sizes are compared with the bytes that are there before anything is built. Short slices need no check of
their own: whatever lies past the end is noticed by the next read or by the comparison that ends the loop.

Source: External Term Format, https://www.erlang.org/doc/apps/erts/erl_ext_dist.html
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Final, Literal

from snex_node.terms import (
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

Such a term costs about 20 MB while it is read: one list and one stack entry for every level.
"""

MAX_CACHED_ATOMS: Final = 4096
"""Atoms a decoder remembers, so that a peer that invents names makes us hold at most some 5 MB."""

MAX_CACHED_IDENTIFIERS: Final = 1024
"""Pids and references a decoder remembers, each: about 200 KB."""

MAX_KEY_DEPTH: Final = 64
"""Tuples nested deeper arrive as ``Term`` when they are map keys.

Python hashes and compares tuples recursively in C without looking at the stack, 100,000 levels end the process.
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


# Frames of the decoder's stack: what is done with the elements once they are all there.
_ROOT: Final = 0
_LIST: Final = 1
_TAIL: Final = 2
_TUPLE: Final = 3
_MAP: Final = 4
_KEYED_MAP: Final = 5  # a map that has a tuple, list or map among its keys
_FUN: Final = 6
_RECORD: Final = 7

_i32: Final = struct.Struct(">i").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_u16: Final = struct.Struct(">H").unpack_from
_f64: Final = struct.Struct(">d").unpack_from
_fun_header: Final = struct.Struct(">IB16sII").unpack_from
_FUN_HEADER_SIZE: Final = 29
_FUN_PARTS: Final = 4  # module, old_index, old_uniq, pid

_OLD_FLOAT: Final = re.compile(rb" *[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\0*")

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


class Decoder:
    """Turns terms into Python objects. Configured once, then usable from any thread, any number of times.

    ``binary_as`` says what a binary becomes: ``"bytes"``, ``"str"`` (UTF-8 or a ``DecodeError``) or
    ``"bytearray"``. ``atom`` is the class of atoms, called with a name; true, false and nil are ``True``,
    ``False`` and ``None``. With ``opaque``, whatever only ``snex_node.terms`` could hold (pids, ports,
    references, funs, exports, bitstrings, improper lists, records) arrives as ``term``, its bytes untouched.
    ``struct_hook`` is given every map that has an atom under the key ``__struct__``, innermost first, and its
    result takes the map's place. Terms nested deeper than ``max_depth`` are refused.

    A map key that Python cannot hash, or cannot tell from another key of the same map (``1`` and ``1.0``,
    ``1`` and ``true``), arrives as ``term``: nothing is lost, and the map goes back as it came. An atom and a
    ``str`` of the same text are one key, and the last one wins.

    >>> Decoder(binary_as="str").decode(bytes([109, 0, 0, 0, 2, 104, 105]))
    ('hi', 7)
    """

    __slots__ = (
        "_atom",
        "_atoms",
        "_binary",
        "_hook",
        "_identifiers",
        "_max_depth",
        "_opaque",
        "_struct_key",
        "_term",
    )

    def __init__(
        self,
        *,
        binary_as: Literal["bytes", "str", "bytearray"] = "bytes",
        atom: type[Atom] = Atom,
        opaque: bool = False,
        term: type[Term] = Term,
        struct_hook: Callable[[dict[object, object]], object] | None = None,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        if binary_as not in ("bytes", "str", "bytearray"):
            raise ValueError(f"binary_as is 'bytes', 'str' or 'bytearray', not {binary_as!r}")
        self._binary = {"bytes": 0, "str": 1, "bytearray": 2}[binary_as]
        self._atom = atom
        self._opaque = opaque
        self._term = term
        self._hook = struct_hook
        self._max_depth = max_depth
        self._struct_key = atom("__struct__")
        self._atoms: dict[bytes, object] = {}
        self._identifiers: dict[bytes, Pid | Port | Reference] = {}

    def decode(self, data: bytes, offset: int = 0) -> tuple[object, int]:
        """The term at ``offset``, and the offset behind it. Raises ``DecodeError``.

        Nothing but ``DecodeError`` and what ``struct_hook`` raises comes out of it, whatever the bytes are.
        """
        hooked: list[dict[object, object]] = []
        try:
            return self._decode(bytes(data), offset, hooked)
        except (IndexError, struct.error):
            if hooked:
                raise
            raise _truncated(data) from None

    def skip(self, data: bytes, offset: int = 0) -> int:
        """The offset behind the term at ``offset``, without building it. Raises ``DecodeError``.

        Tags and lengths are checked, contents (the text of atoms, digits of floats) are not.
        """
        data = bytes(data)
        try:
            end = _skip(data, offset)
        except (IndexError, struct.error):
            raise _truncated(data) from None
        if end > len(data):
            raise _truncated(data)
        return end

    def _decode(
        self, data: bytes, pos: int, hooked: list[dict[object, object]]
    ) -> tuple[object, int]:
        size = len(data)
        atoms = self._atoms
        binary = self._binary
        opaque = self._opaque
        stack: list[tuple[list[object], int, int, int]] = []
        out: list[object] = []
        remaining = 1
        kind = _ROOT
        start = pos
        value: object
        while True:
            tag = data[pos]
            if tag == 119:
                end = pos + 2 + data[pos + 1]
                try:
                    value = atoms[data[pos + 2 : end]]
                except KeyError:
                    value = self._remember_atom(data, pos + 2, end)
                pos = end
            elif tag == 109:
                begin = pos + 5
                end = begin + _u32(data, pos + 1)[0]
                if binary == 0:
                    value = data[begin:end]
                elif binary == 1:
                    value = _utf8(data, begin, end)
                else:
                    value = bytearray(data[begin:end])
                pos = end
            elif tag == 97:
                value = data[pos + 1]
                pos += 2
            elif tag == 98:
                value = _i32(data, pos + 1)[0]
                pos += 5
            elif tag == 70:
                number: float = _f64(data, pos + 1)[0]
                if number * 0.0 != 0.0:
                    raise DecodeError("NEW_FLOAT_EXT (tag 70) holds no finite number", pos)
                value = number
                pos += 9
            elif tag == 106:
                value = []
                pos += 1
            elif tag == 107:
                end = pos + 3 + _u16(data, pos + 1)[0]
                value = list(data[pos + 3 : end])
                pos = end
            elif tag == 104 or tag == 108 or tag == 116 or tag in _RARE_CONTAINERS:
                into, count, begin = _header(data, pos, tag, size)
                if not count:
                    if tag == 108:  # no element: the tail is the value
                        pos = begin
                        continue
                    value = {} if tag == 116 else ()
                    pos = begin
                elif opaque and into == _FUN:
                    end = self.skip(data, pos)
                    value = self._term(data[pos:end])
                    pos = end
                else:
                    if len(stack) >= self._max_depth:
                        raise _too_deep(self._max_depth, pos)
                    if kind == _MAP and not len(out) & 1:
                        kind = _KEYED_MAP
                    stack.append((out, remaining, kind, start))
                    out = []
                    remaining = count
                    kind = into
                    start = pos
                    pos = begin
                    continue
            else:
                value, pos = self._rare(data, pos, tag)
            out.append(value)
            remaining -= 1
            while not remaining:
                if kind == _TUPLE:
                    value = tuple(out)
                elif kind == _LIST:
                    tag = data[pos]
                    if tag == 106:
                        pos += 1
                        value = out
                    elif tag == 107:
                        end = pos + 3 + _u16(data, pos + 1)[0]
                        out.extend(data[pos + 3 : end])
                        pos = end
                        value = out
                    elif tag == 108:  # the tail is a list: it goes on here
                        _, remaining, pos = _header(data, pos, tag, size)
                        continue
                    else:
                        remaining = 1
                        kind = _TAIL
                        break
                elif kind == _ROOT:
                    if pos > size:
                        raise _truncated(data)
                    return out[0], pos
                elif kind == _MAP or kind == _KEYED_MAP:
                    value = self._map(data, start, kind, out)
                    if self._hook is not None and self._struct_key in value:
                        if pos > size:
                            raise _truncated(data)
                        hooked.append(value)
                        value = self._hook(value)
                        hooked.clear()
                else:
                    if pos > size:
                        raise _truncated(data)
                    value = self._composite(data, start, pos, kind, out)
                out, remaining, kind, start = stack.pop()
                out.append(value)
                remaining -= 1

    def _map(
        self, data: bytes, start: int, kind: int, out: list[object]
    ) -> dict[object, object]:
        if kind == _MAP:
            pairs = iter(out)
            try:
                value = dict(zip(pairs, pairs))
            except TypeError:
                pass
            else:
                if 2 * len(value) == len(out):
                    return value
        return self._careful_map(data, start, out)

    def _careful_map(self, data: bytes, start: int, out: list[object]) -> dict[object, object]:
        """Keys that Python cannot hash, or takes for another one, are kept as terms."""
        result: dict[object, object] = {}
        present: dict[object, object] = {}
        pos = start + 5
        for key, value in zip(out[::2], out[1::2]):
            end = self.skip(data, pos)
            if not _is_hashable(key):
                key = self._term(data[pos:end])
            if key in present:
                other = present[key]
                if _is_same(key, other):
                    raise DecodeError(f"the map has the key {key!r} twice", pos)
                if isinstance(key, str) and isinstance(other, str):
                    del result[key]
                else:
                    key = self._term(data[pos:end])
                    if key in present:
                        raise DecodeError(f"the map has the key {other!r} twice", pos)
            present[key] = key
            result[key] = value
            pos = self.skip(data, end)
        return result

    def _composite(
        self, data: bytes, start: int, end: int, kind: int, out: list[object]
    ) -> object:
        if kind == _FUN:
            return self._fun(data, start, end, out)
        if self._opaque:
            return self._term(data[start:end])
        if kind == _TAIL:
            return _joined(out[:-1], out[-1])
        return self._record(data, start, out)

    def _fun(self, data: bytes, start: int, end: int, out: list[object]) -> Fun:
        size, arity, uniq, index, _ = _fun_header(data, start + 1)
        module, old_index, old_uniq, pid, *free = out
        if start + 1 + size != end:
            raise DecodeError(f"NEW_FUN_EXT claims {size} bytes and has {end - start - 1}", start)
        if not (
            isinstance(module, Atom)
            and type(old_index) is int
            and type(old_uniq) is int
            and isinstance(pid, Pid)
        ):
            raise DecodeError("NEW_FUN_EXT lacks a module, index, uniq or pid in its place", start)
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

    def _record(self, data: bytes, start: int, out: list[object]) -> Record:
        fields = (len(out) - 2) // 2
        names: list[Atom] = []
        for name in out[: 2 + fields]:
            if isinstance(name, Atom):
                names.append(name)
            elif name is None or name is True or name is False:
                names.append(self._atom("nil" if name is None else str(name).lower()))
            else:
                raise DecodeError(f"a name in a native record (tag 67) is {name!r}", start)
        return Record(names[0], names[1], names[2:], out[2 + fields :], data[start + 5])

    def _rare(self, data: bytes, pos: int, tag: int) -> tuple[object, int]:
        """Terms of tags that are too seldom for the loop; ``value`` and the end."""
        if tag in (118, 115, 100):
            name, end = _atom_text(data, pos)
            return self._known_atom(name, pos), end
        if tag in (88, 103, 89, 102, 120, 90, 114, 101):
            return self._identifier(data, pos, tag)
        if tag in (110, 111):
            return _big(data, pos, tag)
        if tag == 77:
            return self._bit_binary(data, pos)
        if tag == 113:
            return self._export(data, pos)
        if tag == 99:
            return _old_float(data, pos), pos + 32
        raise _unknown(tag, pos)

    def _remember_atom(self, data: bytes, begin: int, end: int) -> object:
        _check_end(data, end)
        raw = data[begin:end]
        value = self._known_atom(_atom_name(raw, "utf-8", begin), begin)
        if len(self._atoms) >= MAX_CACHED_ATOMS:
            self._atoms.clear()
        self._atoms[raw] = value
        return value

    def _known_atom(self, name: str, pos: int) -> object:
        if name == "nil":
            return None
        if name == "true":
            return True
        if name == "false":
            return False
        return self._atom(name)

    def _identifier(self, data: bytes, pos: int, tag: int) -> tuple[object, int]:
        end = _skip(data, pos)
        _check_end(data, end)
        raw = data[pos:end]
        known = self._identifiers.get(raw)
        if known is None:
            known = _make_identifier(data, pos, tag)
            if len(self._identifiers) >= MAX_CACHED_IDENTIFIERS:
                self._identifiers.clear()
            self._identifiers[raw] = known
        return (self._term(known.external) if self._opaque else known), end

    def _bit_binary(self, data: bytes, pos: int) -> tuple[object, int]:
        begin = pos + 6
        end = begin + _u32(data, pos + 1)[0]
        bits = data[pos + 5]
        _check_end(data, end)
        if bits > 8 or (bits == 0) != (end == begin):
            raise DecodeError(f"BIT_BINARY_EXT (tag 77) uses {bits} bits of its last byte", pos)
        if bits == 8 or end == begin:
            return self._whole_binary(data, begin, end), end
        if self._opaque:
            return self._term(data[pos:end]), end
        return BitString(data[begin:end], bits), end

    def _whole_binary(self, data: bytes, begin: int, end: int) -> object:
        if self._binary == 0:
            return data[begin:end]
        if self._binary == 1:
            return _utf8(data, begin, end)
        return bytearray(data[begin:end])

    def _export(self, data: bytes, pos: int) -> tuple[object, int]:
        module, end = _atom_text(data, pos + 1)
        function, end = _atom_text(data, end)
        if data[end] != 97:
            raise DecodeError("EXPORT_EXT (tag 113) has an arity that is no small integer", end)
        arity = data[end + 1]
        end += 2
        if self._opaque:
            return self._term(data[pos:end]), end
        return Export(self._atom(module), self._atom(function), arity), end


def _joined(elements: list[object], tail: object) -> object:
    if isinstance(tail, list):  # what a struct hook made of a struct
        return [*elements, *tail]
    if isinstance(tail, ImproperList):
        return ImproperList([*elements, *tail.elements], tail.tail)
    return ImproperList(elements, tail)


def _is_hashable(key: object, depth: int = 0) -> bool:
    if type(key) is tuple:
        return depth < MAX_KEY_DEPTH and all(_is_hashable(item, depth + 1) for item in key)
    if isinstance(key, (ImproperList, Record, Fun)):
        return False  # what they hold can be of any depth
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _is_same(one: object, other: object) -> bool:
    """Whether two keys that are equal in Python are the same term too."""
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(map(_is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.copysign(1.0, one) == math.copysign(1.0, other)
    return True


def _header(data: bytes, pos: int, tag: int, size: int) -> tuple[int, int, int]:
    """What a container becomes, how many terms it holds, and where the first one begins."""
    if tag == 104:
        into, count, begin = _TUPLE, data[pos + 1], pos + 2
    elif tag == 108:
        into, count, begin = _LIST, _u32(data, pos + 1)[0], pos + 5
    elif tag == 116:
        into, count, begin = _MAP, 2 * _u32(data, pos + 1)[0], pos + 5
    elif tag == 105:
        into, count, begin = _TUPLE, _u32(data, pos + 1)[0], pos + 5
    elif tag == 112:
        into, count, begin = _FUN, _FUN_PARTS + _u32(data, pos + 26)[0], pos + 1 + _FUN_HEADER_SIZE
    else:
        into, count, begin = _RECORD, 2 + 2 * _u32(data, pos + 1)[0], pos + 6
    if count > size - begin:
        raise DecodeError(
            f"tag {tag} announces {count} terms where only {max(size - begin, 0)} bytes are left", pos
        )
    return into, count, begin


def _skip(data: bytes, pos: int) -> int:
    """The offset behind the term, which may lie behind the end of the data."""
    size = len(data)
    pending = 1
    while pending:
        pending -= 1
        tag = data[pos]
        if tag == 119 or tag == 115:
            pos += 2 + data[pos + 1]
        elif tag == 109:
            pos += 5 + _u32(data, pos + 1)[0]
        elif tag == 97:
            pos += 2
        elif tag == 98:
            pos += 5
        elif tag == 70:
            pos += 9
        elif tag == 106:
            pos += 1
        elif tag in _CONTAINERS:
            _, count, pos = _header(data, pos, tag, size)
            pending += count + (tag == 108)
        elif tag == 107 or tag == 118 or tag == 100:
            pos += 3 + _u16(data, pos + 1)[0]
        elif tag == 110:
            pos += 3 + data[pos + 1]
        elif tag == 111:
            pos += 6 + _u32(data, pos + 1)[0]
        elif tag == 77:
            pos += 6 + _u32(data, pos + 1)[0]
        elif tag == 99:
            pos += 32
        elif tag == 113:
            pos += 1
            pending += 3
        elif tag in _AFTER_NODE:
            before, after = _AFTER_NODE[tag]
            words = _u16(data, pos + 1)[0] if before == 3 else 0
            pos = _skip_atom(data, pos + before) + after + 4 * words
        else:
            raise _unknown(tag, pos)
    return pos


def _skip_atom(data: bytes, pos: int) -> int:
    tag = data[pos]
    if tag == 119 or tag == 115:
        return pos + 2 + data[pos + 1]
    if tag == 118 or tag == 100:
        return pos + 3 + int(_u16(data, pos + 1)[0])
    if tag == 82:
        raise _unknown(tag, pos)
    raise DecodeError(f"an atom should be here, but the tag is {tag}", pos)


def _atom_text(data: bytes, pos: int) -> tuple[str, int]:
    end = _skip_atom(data, pos)
    _check_end(data, end)
    tag = data[pos]
    begin = pos + (2 if tag in (119, 115) else 3)
    return _atom_name(data[begin:end], "utf-8" if tag >= 118 else "latin-1", begin), end


def _atom_name(raw: bytes, encoding: str, pos: int) -> str:
    try:
        name = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DecodeError(f"the name of an atom is not UTF-8: {error.reason}", pos) from None
    if len(name) > MAX_ATOM_CHARACTERS:
        raise DecodeError(
            f"an atom of {len(name)} characters, and at most {MAX_ATOM_CHARACTERS} are allowed", pos
        )
    return name


def _make_identifier(data: bytes, pos: int, tag: int) -> Pid | Port | Reference:
    node_at = pos + _AFTER_NODE[tag][0]
    node, at = _atom_text(data, node_at)
    if tag == 88:
        return Pid(node, *struct.unpack_from(">III", data, at))
    if tag == 103:
        return Pid(node, *struct.unpack_from(">IIB", data, at))
    if tag == 90 or tag == 114:
        count = _u16(data, pos + 1)[0]
        if not 1 <= count <= MAX_REFERENCE_WORDS:
            raise DecodeError(f"a reference of {count} words", pos)
        creation, *words = struct.unpack_from(f">{'I' if tag == 90 else 'B'}{count}I", data, at)
        return Reference(node, creation, words)
    number, creation = struct.unpack_from({89: ">II", 120: ">QI"}.get(tag, ">IB"), data, at)
    if tag == 101:
        return Reference(node, creation, (number,))
    layout, first = (">QI", b"x") if tag == 120 else (">II", b"Y")
    canonical = Pid(node, 0, 0, 0).external[1:-12]
    return Port.from_external(first + canonical + struct.pack(layout, number, creation))


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


def _utf8(data: bytes, begin: int, end: int) -> str:
    try:
        return str(data[begin:end], "utf-8")
    except UnicodeDecodeError as error:
        _check_end(data, end)
        raise DecodeError(
            f"a binary of {end - begin} bytes is not UTF-8 ({error.reason}), so it cannot become a str; "
            f"take binaries as bytes (binary_as='bytes')",
            begin + error.start,
        ) from None


def _check_end(data: bytes, end: int) -> None:
    if end > len(data):
        raise _truncated(data)


def _truncated(data: bytes) -> DecodeError:
    return DecodeError(f"the term is truncated: it goes on after the {len(data)} bytes", len(data))


def _too_deep(max_depth: int, pos: int) -> DecodeError:
    return DecodeError(
        f"the term is nested deeper than max_depth, {max_depth} levels; raise max_depth to take it", pos
    )


def _unknown(tag: int, pos: int) -> DecodeError:
    if tag == 121:
        return DecodeError(
            "LOCAL_EXT (tag 121): a term only the node that made it can read; "
            "send it without the local option of term_to_binary",
            pos,
        )
    if tag == 82:
        return DecodeError(
            "ATOM_CACHE_REF (tag 82) without an atom table: the peer uses an atom cache that was not agreed on",
            pos,
        )
    if tag == 80:
        return DecodeError("a compressed term (tag 80) where none may be; send it uncompressed", pos)
    return DecodeError(f"unknown tag {tag}", pos)
