"""Erlang terms that have no Python counterpart of their own.

Integers, floats, binaries, lists, tuples, maps, booleans and ``nil`` are plain Python objects;
everything else that the external term format can carry is a class of this module. All of them are
immutable, slotted, comparable, hashable where their contents are, picklable, and print as iex
prints the term (what they contain prints as Python does).

Pids, ports, references and funs are kept in their external form: that is what identifies them in a
cluster, what is compared and hashed, and what is sent back.

Source: External Term Format, https://www.erlang.org/doc/apps/erts/erl_ext_dist.html
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, TypeVar, final

__all__ = [
    "MAX_ATOM_CHARACTERS",
    "MAX_REFERENCE_WORDS",
    "Atom",
    "BitString",
    "Export",
    "Fun",
    "ImproperList",
    "Pid",
    "Port",
    "Record",
    "Reference",
    "Term",
]

MAX_ATOM_CHARACTERS: Final = 255
"""The longest atom, in characters: BEAM closes a connection that carries a longer one."""

MAX_REFERENCE_WORDS: Final = 5
"""The longest reference, in 32-bit words: BEAM closes a connection that carries a longer one."""

_OLD_PORT_ID_BITS: Final = 28  # OTP 25 to 27 send larger port ids as V4_PORT_EXT

_new = object.__new__
_set = object.__setattr__


class Atom(str):
    """An atom. Equal to, and hashing as, the plain string of its name.

    Raises ``ValueError`` when the name is longer than 255 characters.

    >>> Atom("ok") == "ok"
    True
    >>> Atom("Elixir.Enum")
    Enum
    """

    __slots__ = ()

    def __new__(cls, name: str = "") -> Atom:  # noqa: D102 - the class says it
        if len(name) > MAX_ATOM_CHARACTERS:
            raise ValueError(
                f"atom too long: {len(name)} characters, and an atom has at most "
                f"{MAX_ATOM_CHARACTERS}: {name[:40]!r}..."
            )
        return str.__new__(cls, name)

    def __repr__(self) -> str:
        return _inspect_atom(self)


class Term(bytes):
    """Any term in its external form (without the version byte 131), sent back as it came.

    Equal only to another ``Term`` of the same bytes. The bytes are not checked: build one only from
    those of one whole term, or the message it is put into is unreadable for its receiver.

    >>> Term(bytes([97, 7])) == Term(bytes([97, 7]))
    True
    >>> Term(bytes([97, 7]))
    #Term<opaque, 2 bytes>
    """

    __slots__ = ()

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not (isinstance(other, Term) and bytes.__eq__(self, other))

    def __repr__(self) -> str:
        return f"#Term<opaque, {len(self)} bytes>"

    __str__ = __repr__


class _Immutable:
    """Refuses assignment; the constructors below set their slots with ``object.__setattr__``."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")


_Self = TypeVar("_Self", bound="_Identifier")


class _Identifier(_Immutable):
    """What pids, ports and references share: they are their external form."""

    __slots__ = ("external",)

    external: bytes

    @classmethod
    def from_external(cls: type[_Self], external: bytes) -> _Self:
        """The identifier of this external form (tag first, no 131). Nothing is checked."""
        self = _new(cls)
        _set_external(self, external)
        return self

    def __hash__(self) -> int:
        return hash(self.external)

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return type(self).from_external, (self.external,)


_set_external = _Identifier.__dict__["external"].__set__  # half the time of object.__setattr__


@final
class Pid(_Identifier):
    """A process identifier, kept as NEW_PID_EXT in ``external``.

    ``id``, ``serial`` and ``creation`` are unsigned 32-bit integers; ``ValueError`` where they are
    not, or where the node's name is no atom.

    >>> Pid("py@host", 12, 0, 3)
    #PID<py@host.12.0>
    """

    __slots__ = ()

    def __init__(self, node: str, id: int, serial: int, creation: int) -> None:  # noqa: A002
        numbers = _pack("pid", ">III", id, serial, creation)
        _set(self, "external", b"X" + _external_atom(node) + numbers)

    def __eq__(self, other: object) -> bool:
        return self.external == other.external if type(other) is Pid else NotImplemented

    __hash__ = _Identifier.__hash__

    @property
    def node(self) -> Atom:
        """The name of the node that made it."""
        return _node_at(self.external, 1)[0]

    @property
    def id(self) -> int:
        """The first of the two numbers that tell processes of one node apart."""
        return _u32(self.external, -12)

    @property
    def serial(self) -> int:
        """The second of the two numbers that tell processes of one node apart."""
        return _u32(self.external, -8)

    @property
    def creation(self) -> int:
        """Which incarnation of the node made it."""
        return _u32(self.external, -4)

    def __repr__(self) -> str:
        return f"#PID<{_text(self.node)}.{self.id}.{self.serial}>"


@final
class Port(_Identifier):
    """A port identifier, kept in ``external`` as it came: NEW_PORT_EXT or V4_PORT_EXT.

    Both forms of one port are equal and hash alike; each is sent back in its own form. ``id`` is an
    unsigned 64-bit integer, ``creation`` has 32 bits; ``ValueError`` where they do not fit. ``v4``
    picks the form; without it, the one that OTP 27 uses for the id.

    >>> Port("py@host", 5, 3)
    #Port<py@host.5>
    """

    __slots__ = ()

    def __init__(
        self,
        node: str,
        id: int,  # noqa: A002
        creation: int,
        *,
        v4: bool | None = None,
    ) -> None:
        if v4 is None:
            v4 = not 0 <= id < 1 << _OLD_PORT_ID_BITS
        tag, layout = (b"x", ">QI") if v4 else (b"Y", ">II")
        _set(self, "external", tag + _external_atom(node) + _pack("port", layout, id, creation))

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if type(other) is Port else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> bytes:
        external = self.external
        if external[0] != 89:
            return external
        return b"x" + external[1:-8] + b"\0\0\0\0" + external[-8:]

    @property
    def node(self) -> Atom:
        """The name of the node that made it."""
        return _node_at(self.external, 1)[0]

    @property
    def id(self) -> int:
        """The number that tells ports of one node apart."""
        return int.from_bytes(self._identity()[-12:-4], "big")

    @property
    def creation(self) -> int:
        """Which incarnation of the node made it."""
        return _u32(self.external, -4)

    def __repr__(self) -> str:
        return f"#Port<{_text(self.node)}.{self.id}>"


@final
class Reference(_Identifier):
    """A reference, kept as NEWER_REFERENCE_EXT in ``external``.

    ``words`` are one to five unsigned 32-bit integers in the order of the wire, the reverse of what
    iex prints; ``ValueError`` where they are not.

    >>> Reference("py@host", 3, (30, 20, 10))
    #Reference<py@host.10.20.30>
    """

    __slots__ = ()

    def __init__(self, node: str, creation: int, words: Sequence[int]) -> None:
        count = len(words)
        if not 1 <= count <= MAX_REFERENCE_WORDS:
            raise ValueError(f"a reference has 1 to {MAX_REFERENCE_WORDS} words, not {count}")
        numbers = _pack("reference", f">{count + 1}I", creation, *words)
        _set(self, "external", b"Z" + count.to_bytes(2, "big") + _external_atom(node) + numbers)

    def __eq__(self, other: object) -> bool:
        return self.external == other.external if type(other) is Reference else NotImplemented

    __hash__ = _Identifier.__hash__

    @property
    def node(self) -> Atom:
        """The name of the node that made it."""
        return _node_at(self.external, 3)[0]

    @property
    def creation(self) -> int:
        """Which incarnation of the node made it."""
        return _u32(self.external, _node_at(self.external, 3)[1])

    @property
    def words(self) -> tuple[int, ...]:
        """The words in the order of the wire."""
        count = int.from_bytes(self.external[1:3], "big")
        words: tuple[int, ...] = struct.unpack(f">{count}I", self.external[-4 * count :])
        return words

    def __repr__(self) -> str:
        return f"#Reference<{_text(self.node)}.{'.'.join(map(str, reversed(self.words)))}>"


@final
class Fun(_Immutable):
    """An anonymous function of a BEAM node, kept as NEW_FUN_EXT in ``external``.

    ``arity`` is what it takes, ``module`` where it was written, ``uniq`` (16 bytes), ``index``,
    ``old_index`` and ``old_uniq`` which of the module's functions it is, ``pid`` who made it,
    ``free`` the values of its free variables. Equality is that of ``external``.
    """

    __slots__ = (
        "arity",
        "external",
        "free",
        "index",
        "module",
        "old_index",
        "old_uniq",
        "pid",
        "uniq",
    )

    external: bytes
    arity: int
    uniq: bytes
    index: int
    module: Atom
    old_index: int
    old_uniq: int
    pid: Pid
    free: tuple[object, ...]

    def __init__(
        self,
        external: bytes,
        *,
        arity: int,
        uniq: bytes,
        index: int,
        module: Atom,
        old_index: int,
        old_uniq: int,
        pid: Pid,
        free: Sequence[object] = (),
    ) -> None:
        _set(self, "external", external)
        _set(self, "arity", arity)
        _set(self, "uniq", uniq)
        _set(self, "index", index)
        _set(self, "module", module)
        _set(self, "old_index", old_index)
        _set(self, "old_uniq", old_uniq)
        _set(self, "pid", pid)
        _set(self, "free", tuple(free))

    def __eq__(self, other: object) -> bool:
        return self.external == other.external if type(other) is Fun else NotImplemented

    def __hash__(self) -> int:
        return hash(self.external)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        fields = (self.arity, self.uniq, self.index, self.module, self.old_index, self.old_uniq)
        return _make_fun, (self.external, *fields, self.pid, self.free)

    def __repr__(self) -> str:
        return f"#Function<{self.old_index}.{self.old_uniq}/{self.arity} in {self.module!r}>"


def _make_fun(
    external: bytes,
    arity: int,
    uniq: bytes,
    index: int,
    module: Atom,
    old_index: int,
    old_uniq: int,
    pid: Pid,
    free: tuple[object, ...],
) -> Fun:
    return Fun(
        external,
        arity=arity,
        uniq=uniq,
        index=index,
        module=module,
        old_index=old_index,
        old_uniq=old_uniq,
        pid=pid,
        free=free,
    )


@final
class Export(_Immutable):
    """A function named by module, function and arity (0 to 255): ``&String.length/1`` in Elixir.

    >>> Export(Atom("Elixir.String"), Atom("length"), 1)
    &String.length/1
    """

    __slots__ = ("arity", "function", "module")

    module: Atom
    function: Atom
    arity: int

    def __init__(self, module: str, function: str, arity: int) -> None:
        if not 0 <= arity <= 255:
            raise ValueError(f"an arity is 0 to 255, not {arity}")
        _set(self, "module", _as_atom(module))
        _set(self, "function", _as_atom(function))
        _set(self, "arity", arity)

    def _key(self) -> tuple[Atom, Atom, int]:
        return self.module, self.function, self.arity

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if type(other) is Export else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Export, self._key()

    def __repr__(self) -> str:
        module = Atom.__repr__(self.module)
        return f"&{module}.{_inspect_name(self.function, _CALLABLE)}/{self.arity}"


@final
class BitString(_Immutable):
    """A bitstring whose length is not a whole number of bytes.

    ``bits`` (1 to 8) counts the bits used of the last byte of ``data``, from its top; the rest of
    that byte is set to zero. ``ValueError`` for other counts and for empty data.

    >>> BitString(bytes([1, 0b10100000]), 3)
    <<1, 5::size(3)>>
    """

    __slots__ = ("bits", "data")

    data: bytes
    bits: int

    def __init__(self, data: bytes, bits: int) -> None:
        if not data or not 1 <= bits <= 8:
            raise ValueError(
                f"a bitstring has at least one byte, and 1 to 8 bits of its last one are used; "
                f"got {len(data)} bytes and {bits} bits"
            )
        last = data[-1] & (0xFF << (8 - bits)) & 0xFF
        _set(self, "data", bytes(data[:-1]) + bytes((last,)))
        _set(self, "bits", bits)

    def __eq__(self, other: object) -> bool:
        if type(other) is not BitString:
            return NotImplemented
        return self.bits == other.bits and self.data == other.data

    def __hash__(self) -> int:
        return hash((self.data, self.bits))

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return BitString, (self.data, self.bits)

    def __repr__(self) -> str:
        last = str(self.data[-1] >> (8 - self.bits))
        if self.bits < 8:
            last += f"::size({self.bits})"
        return f"<<{', '.join([*map(str, self.data[:-1]), last])}>>"


@final
class ImproperList(_Immutable):
    """A list whose last tail is not the empty list: ``[alias | reference]``.

    ``elements`` is a tuple of at least one element, ``tail`` anything but a list or another
    improper list; ``ValueError`` otherwise, since those make a list of another shape.

    >>> ImproperList([1, 2], 3)
    [1, 2 | 3]
    """

    __slots__ = ("elements", "tail")

    elements: tuple[object, ...]
    tail: object

    def __init__(self, elements: Sequence[object], tail: object) -> None:
        if not elements:
            raise ValueError("an improper list has at least one element before its tail")
        if isinstance(tail, (list, ImproperList)):
            raise ValueError("the tail of an improper list is not a list: append its elements")
        _set_elements(self, tuple(elements))
        _set_tail(self, tail)

    def __eq__(self, other: object) -> bool:
        if type(other) is not ImproperList:
            return NotImplemented
        return self.elements == other.elements and self.tail == other.tail

    def __hash__(self) -> int:
        return hash((self.elements, self.tail))

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return ImproperList, (self.elements, self.tail)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.elements))} | {self.tail!r}]"


_set_elements = ImproperList.__dict__["elements"].__set__
_set_tail = ImproperList.__dict__["tail"].__set__


@final
class Record(_Immutable):
    """A native record (OTP 29, tag 67): a named, typed set of fields defined by a module.

    ``fields`` are the names of the fields, ``values`` what they hold, in the same order and number
    (``ValueError`` otherwise); ``flag`` is the byte the wire carries beside them, sent back as it
    came.
    """

    __slots__ = ("fields", "flag", "module", "name", "values")

    module: Atom
    name: Atom
    fields: tuple[Atom, ...]
    values: tuple[object, ...]
    flag: int

    def __init__(
        self,
        module: str,
        name: str,
        fields: Sequence[str],
        values: Sequence[object],
        flag: int = 0,
    ) -> None:
        if len(fields) != len(values):
            raise ValueError(f"a record of {len(fields)} fields cannot hold {len(values)} values")
        if not 0 <= flag <= 255:
            raise ValueError(f"the flag of a record is one byte, not {flag}")
        _set(self, "module", _as_atom(module))
        _set(self, "name", _as_atom(name))
        _set(self, "fields", tuple(map(_as_atom, fields)))
        _set(self, "values", tuple(values))
        _set(self, "flag", flag)

    def _key(self) -> tuple[object, ...]:
        return self.module, self.name, self.fields, self.values, self.flag

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if type(other) is Record else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Record, self._key()

    def __repr__(self) -> str:
        pairs = ", ".join(
            f"{_inspect_name(name, _CALLABLE)}: {value!r}"
            for name, value in zip(self.fields, self.values, strict=True)
        )
        return f"#{Atom.__repr__(self.module)}.{_inspect_name(self.name, _CALLABLE)}{{{pairs}}}"


def _as_atom(name: str) -> Atom:
    return name if isinstance(name, Atom) else Atom(name)


def _external_atom(name: str) -> bytes:
    text = _as_atom(name).encode()
    size = len(text)
    return b"w" + bytes((size,)) + text if size < 256 else b"v" + size.to_bytes(2, "big") + text


def _node_at(external: bytes, offset: int) -> tuple[Atom, int]:
    if external[offset] == 119:
        start = offset + 2
        end = start + external[offset + 1]
    else:
        start = offset + 3
        end = start + int.from_bytes(external[offset + 1 : start], "big")
    return Atom(external[start:end].decode()), end


def _u32(external: bytes, offset: int) -> int:
    end = offset + 4
    return int.from_bytes(external[offset : end or None], "big")


def _pack(what: str, layout: str, *numbers: int) -> bytes:
    try:
        return struct.pack(layout, *numbers)
    except struct.error as error:
        raise ValueError(f"the numbers of this {what} do not fit: {numbers} ({error})") from None


def _text(name: Atom) -> str:
    return str.__str__(name)


# Operators that Elixir prints without quotes behind a dot, and those that it does as atoms.
_CALLABLE: Final = frozenset(
    "! != !== & && &&& * ** + ++ +++ - -- --- / < <- <<< <<~ <= <> <~ <~> = == === =~ "
    "> >= >>> @ ^ | |> || ||| ~> ~>>".split()
)
_OPERATORS: Final = _CALLABLE | frozenset("% %{} -> . .. ... ..// <<>> \\\\ {}".split())
_ALIAS: Final = re.compile(r"Elixir(\.[A-Z][A-Za-z0-9_]*)*", re.ASCII)
_ESCAPES: Final = {
    "\0": "\\0",
    "\a": "\\a",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\v": "\\v",
    "\f": "\\f",
    "\r": "\\r",
    "\x1b": "\\e",
    "\x7f": "\\d",
    '"': '\\"',
    "\\": "\\\\",
}


def _inspect_atom(atom: Atom) -> str:
    name = _text(atom)
    if name in ("nil", "true", "false"):
        return name
    if _ALIAS.fullmatch(name):
        hidden = name.startswith("Elixir.") and not name.startswith("Elixir.Elixir")
        return name[len("Elixir.") :] if hidden else name
    return ":" + _inspect_name(atom, _OPERATORS)


def _inspect_name(atom: Atom, operators: frozenset[str]) -> str:
    name = _text(atom)
    may_be_capital = operators is _OPERATORS  # `:Foo`, but `:lists."Foo"`
    if name in operators or (_is_identifier(name) and (may_be_capital or not name[0].isupper())):
        return name
    escaped = "".join(map(escape, name)).replace("#{", "\\#{")
    return f'"{escaped}"'


def _is_identifier(name: str) -> bool:
    bare = name[:-1] if name.endswith(("?", "!")) else name
    return bare.replace("@", "_").isidentifier() and not bare.startswith("@")


def escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02X}" if code < 256 else f"\\x{{{code:X}}}"
