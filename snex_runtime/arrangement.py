"""Long lists that the Elixir client has arranged so that they are taken in bulk.

``Snex.Arrangement`` says what it arranges, and when. What comes back to Elixir needs nothing
of the kind: the BEAM's decoder is C.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat
from typing import Any, Final, Literal, TypeGuard

from snex_node.wire.describe import inspect
from snex_node.wire.etf import DecodeError
from snex_node.wire.etf_columns import make_maps
from snex_node.wire.terms import Atom, Term

BinaryAs = Literal["str", "bytes", "bytearray"]
Fields = dict[str, Any]

_NAME: Final = "Elixir.Snex.Arrangement."
_BIT_BINARY: Final = b"M"
_HEAD: Final = 6  # tag, size, and how many bits of the last byte there are
_TAIL: Final = 1  # the byte with a single bit, which makes it a bitstring
_WORD: Final = 8


def texts(fields: Fields, binary_as: BinaryAs, term: type[Term]) -> list[Any]:
    """Binaries between zero bytes."""
    joined = _bytes_of(fields, "joined")
    if binary_as == "bytes":
        return joined.split(b"\0")
    if binary_as == "bytearray":
        return list(map(bytearray, joined.split(b"\0")))
    try:
        return joined.decode().split("\0")
    except UnicodeDecodeError as error:
        index = joined.count(b"\0", 0, error.start)
        raise DecodeError(  # as for any binary: the runtime says which variable it is in
            f"binary {index} of a list is not UTF-8 ({error.reason}) and cannot become a str; "
            "have binaries decoded as bytes (binary_as='bytes')",
            error.start - index,
        ) from None


def integers(fields: Fields, binary_as: BinaryAs, term: type[Term]) -> list[int]:
    """Words of 64 bits, with a sign, little end first."""
    words = _bytes_of(fields, "words")
    if len(words) % _WORD:
        raise ValueError(f"{_NAME}Integers holds {len(words)} bytes, which are no whole words")
    return list(struct.unpack(f"<{len(words) // _WORD}q", words))


def atoms(fields: Fields, binary_as: BinaryAs, term: type[Term]) -> list[Any]:
    """A byte for each element: its place in a list of atoms."""
    names, indexes = fields.get("names"), _bytes_of(fields, "indexes")
    if not _is_list(names) or max(indexes, default=-1) >= len(names):
        raise ValueError(f"{_NAME}Atoms has a list of names for all indexes, not {inspect(names)}")
    if not all(name is None or isinstance(name, Atom | bool) for name in names):
        raise ValueError(f"{_NAME}Atoms has names that are atoms, not {inspect(names)}")
    return list(map(names.__getitem__, indexes))


def maps_or_tuples(fields: Fields, binary_as: BinaryAs, term: type[Term]) -> list[Any]:
    """Maps of the same keys, or tuples of one size; an atom in place of a column is that of all."""
    keys, found = fields.get("keys"), fields.get("columns")
    columns = found if _is_list(found) else []
    counts = {len(column) for column in columns if _is_list(column)}
    if len(counts) != 1:
        raise ValueError(f"{_NAME}Columns has a list of columns of one size, not {inspect(found)}")
    [count] = counts
    values: list[Any] = []
    for column in columns:
        if not isinstance(column, list | Atom):
            raise ValueError(f"{_NAME}Columns has columns and atoms, not {inspect(column)}")
        values.append(column if isinstance(column, list) else repeat(column, count))
    if keys is None:
        return list(zip(*values, strict=True))
    if not _is_list(keys) or len(keys) != len(values):
        raise ValueError(f"{_NAME}Columns has {len(values)} columns and the keys {inspect(keys)}")
    names = tuple(_key(key, term) for key in keys)
    if len(set(names)) != len(names):
        raise ValueError(f"{_NAME}Columns has the same key twice: {inspect(keys)}")
    return make_maps(names, values)


def _bytes_of(fields: Fields, name: str) -> bytes:
    value = fields.get(name)
    if not (isinstance(value, Term) and value[:1] == _BIT_BINARY):
        raise ValueError(f"{_NAME}* has a bitstring {name}, not {inspect(value)}")
    return bytes(value[_HEAD:-_TAIL])


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _key(key: object, term: type[Term]) -> object:
    if isinstance(key, str | bytes) and not isinstance(key, Term):
        return key
    if isinstance(key, bytearray):  # as a map has it: Python cannot hash it
        return term(b"m" + len(key).to_bytes(4, "big") + key)
    raise ValueError(f"{_NAME}Columns has keys that are atoms or binaries, not {inspect(key)}")


LISTS: Final[dict[str, Callable[[Fields, BinaryAs, type[Term]], list[Any]]]] = {
    f"{_NAME}Texts": texts,
    f"{_NAME}Integers": integers,
    f"{_NAME}Atoms": atoms,
    f"{_NAME}Columns": maps_or_tuples,
}
"""What makes a list of the fields of each struct, by its name."""
