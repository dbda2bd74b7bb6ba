"""Foreign values in texts: in errors, exit reasons and logs. Bounded, and it never raises.

A value that something is wrong with is the last one to be trusted: it may be an integer that Python
refuses to write in digits, 30,000 levels deep, contain itself, hold lone surrogates, or be an
object whose own ``__repr__`` raises or takes a gigabyte. So nothing of the user's is called here;
types are taken from `type`, and an object of an unknown type is told by that alone.

`inspect` writes terms as Elixir does, for those who sent them; `short` writes objects as Python
does, for those whose code made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from snex_node.wire.terms import (
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
    escape,
)

__all__ = [
    "MAX_INTEGER_BITS",
    "MAX_LEVELS",
    "inspect",
    "short",
    "text_of",
    "type_name",
    "type_repr",
]

MAX_LEVELS: Final = 20
"""Levels of nesting that are written, two frames of Python's stack each. What is deeper is left
out; more than this does not fit a message anyway."""

MAX_INTEGER_BITS: Final = 2048
"""Longest integer that is written in digits, 617 of them. Writing one takes quadratic time, and
Python itself refuses beyond 4,300 digits, or 640 where it is told so."""

_LIMIT: Final = 200  # characters
_FEW: Final = 50  # elements of a list or map that are looked at for whether all keys are atoms
_NAME: Final = 120  # characters of the name of a type

_SPACE: Final = frozenset("\a\b\t\n\v\f\r\x1b\x7f")  # printable in Elixir
_NUMBERS: Final = frozenset((complex, range))
_ITSELF: Final = frozenset((Pid, Port, Reference, Fun, Export))


def inspect(term: object, limit: int = _LIMIT) -> str:
    """``term`` as Elixir writes it, in about ``limit`` characters.

    >>> inspect({"a": [None, True, Atom("ok")], Atom("b"): (1, 2.5)})
    '%{"a" => [nil, true, :ok], :b => {1, 2.5}}'
    """
    return _Elixir(limit).describe(term)


def short(value: object, limit: int = _LIMIT) -> str:
    """``value`` as Python writes it, in about ``limit`` characters.

    >>> short({"a": [None, True], "b": object()})
    "{'a': [None, True], 'b': <object object>}"
    >>> short(10**5000)
    '<an int of 16610 bits>'
    """
    return _Python(limit).describe(value)


def type_name(kind: type) -> str:
    """The name of a type with its module, which builtin ones and those of ``__main__`` go without.

    >>> type_name(KeyError), type_name(Pid)
    ('KeyError', 'snex_node.wire.terms.Pid')
    """
    name: object = _qualname(kind)
    module: object = _module(kind)
    if not isinstance(module, str) or module in ("builtins", "__main__"):
        return _cut(str(name), _NAME)
    return _cut(f"{module}.{name}", _NAME)


_qualname = type.__dict__["__qualname__"].__get__  # a metaclass may have others
_module = type.__dict__["__module__"].__get__


def type_repr(kind: type) -> str:
    """A type as `repr` writes it, whatever its metaclass does: ``<class 'datetime.date'>``."""
    return _cut(type.__repr__(kind), 2 * _NAME)


def text_of(error: BaseException) -> str:
    """``str(error)``, whatever that does; the whole of it."""
    try:
        return str.__str__(str(error))  # a subclass of str, an Atom say, is not sent as text
    except BaseException:  # methods of the user's exception run in there, and may raise anything
        return "<exception str() failed>"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


class _FullError(Exception):
    """No more characters are left."""


class _Writer:
    """Writes one value until its characters are used up."""

    __slots__ = ("_left", "_levels", "_parts")

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._levels = MAX_LEVELS
        self._parts: list[str] = []

    def describe(self, value: object) -> str:
        try:
            self._write(value)
        except Exception:  # full, the stack is, or another thread changes what is written
            self._parts.append("...")
        return "".join(self._parts)

    def _add(self, text: str) -> None:
        if len(text) > self._left:
            self._parts.append(text[: self._left])
            raise _FullError
        self._left -= len(text)
        self._parts.append(text)

    def _write(self, value: Any) -> None:
        if not self._levels:
            self._add("...")
            return
        self._levels -= 1
        self._write_known(value, type(value))
        self._levels += 1

    def _write_known(self, value: Any, kind: type) -> None:  # noqa: PLR0912 - a table of types
        if value is None or value is True or value is False:
            self._add(self._constant(value))
        elif issubclass(kind, Atom):
            self._atom(value)
        elif issubclass(kind, str):
            self._string(str.__str__(value))
        elif issubclass(kind, int):
            self._integer(int.__index__(value))
        elif issubclass(kind, float):
            self._float(float.__float__(value))
        elif issubclass(kind, Term):
            self._add(f"#Term<opaque, {bytes.__len__(value)} bytes>")
        elif issubclass(kind, (bytes, bytearray)):
            exact = bytes if issubclass(kind, bytes) else bytearray
            self._binary(bytes(exact.__getitem__(value, slice(self._left + 1))))
        elif issubclass(kind, list):
            self._list(value)
        elif issubclass(kind, tuple):
            self._tuple(value)
        elif issubclass(kind, dict):
            self._dict(value)
        elif issubclass(kind, (set, frozenset)):
            exact_set = set if issubclass(kind, set) else frozenset
            self._set(list(islice(exact_set.__iter__(value), self._left)), kind)
        elif kind in _ITSELF:
            self._add(repr(value))
        elif kind is ImproperList:
            self._add("[")
            self._sequence(value.elements)
            self._add(" | ")
            self._write(value.tail)
            self._add("]")
        elif kind is BitString:
            self._bits(value.data, value.bits)
        elif kind is Record:
            self._add(f"#{Atom.__repr__(value.module)}.{str.__str__(value.name)}{{")
            self._keywords(zip(value.fields, value.values, strict=True))
            self._add("}")
        else:
            self._object(value, kind)

    def _sequence(self, items: Iterable[object]) -> None:
        for number, item in enumerate(items):
            if number:
                self._add(", ")
            self._write(item)

    def _keywords(self, pairs: Iterable[Any]) -> None:
        for number, (key, item) in enumerate(pairs):
            name = Atom.__repr__(key)
            if name.startswith(":"):
                name = name[1:]
            elif name not in ("nil", "true", "false"):
                name = f'"Elixir.{name}"'
            self._add(f", {name}: " if number else f"{name}: ")
            self._write(item)

    def _bits(self, data: bytes, bits: int) -> None:
        numbers = [str(each) for each in data[: self._left]]
        if bits < 8 and len(data) <= self._left:
            numbers[-1] = f"{data[-1] >> (8 - bits)}::size({bits})"
        self._add(f"<<{', '.join(numbers)}>>")

    def _integer(self, value: int) -> None:
        bits = value.bit_length()
        if bits > MAX_INTEGER_BITS:
            self._add(self._large(bits))
            return
        try:
            digits = str(value)
        except ValueError:  # it has been told to refuse even these
            digits = hex(value)
        self._add(digits)

    def _large(self, bits: int) -> str:
        raise NotImplementedError

    def _constant(self, value: bool | None) -> str:
        raise NotImplementedError

    def _atom(self, value: Atom) -> None:
        raise NotImplementedError

    def _string(self, value: str) -> None:
        raise NotImplementedError

    def _float(self, value: float) -> None:
        raise NotImplementedError

    def _binary(self, value: bytes) -> None:
        raise NotImplementedError

    def _list(self, value: list[object]) -> None:
        self._add("[")
        self._sequence(list.__iter__(value))
        self._add("]")

    def _tuple(self, value: tuple[object, ...]) -> None:
        raise NotImplementedError

    def _dict(self, value: dict[object, object]) -> None:
        raise NotImplementedError

    def _set(self, items: list[object], kind: type) -> None:
        raise NotImplementedError

    def _object(self, value: object, kind: type) -> None:
        raise NotImplementedError


class _Elixir(_Writer):
    __slots__ = ()

    def _large(self, bits: int) -> str:
        return f"<an integer of {bits} bits>"

    def _constant(self, value: bool | None) -> str:
        return "nil" if value is None else "true" if value else "false"

    def _atom(self, value: Atom) -> None:
        self._add(Atom.__repr__(value))

    def _string(self, value: str) -> None:
        text = "".join(map(escape, value[: self._left])).replace("#{", "\\#{")
        self._add(f'"{text}"')

    def _float(self, value: float) -> None:
        text = float.__repr__(value)
        self._add(f":{text}" if text in ("inf", "nan") else ':"-inf"' if text == "-inf" else text)

    def _binary(self, value: bytes) -> None:
        is_cut = len(value) > self._left
        try:
            text = value.decode()
        except UnicodeDecodeError as error:
            if not is_cut or error.start < len(value) - 3:
                self._bits(value, 8)
                return
            text = value[: error.start].decode()  # what was cut off began inside of a character
        if text.isprintable() or all(each.isprintable() or each in _SPACE for each in text):
            self._string(text)
            if is_cut:
                raise _FullError
        else:
            self._bits(value, 8)

    def _list(self, value: list[object]) -> None:
        pairs = list(islice(list.__iter__(value), _FEW + 1))
        if pairs and len(pairs) <= _FEW and all(map(_is_keyword, pairs)):
            self._add("[")
            self._keywords(pairs)
            self._add("]")
        else:
            super()._list(value)

    def _tuple(self, value: tuple[object, ...]) -> None:
        self._add("{")
        self._sequence(tuple.__iter__(value))
        self._add("}")

    def _dict(self, value: dict[object, object]) -> None:
        pairs: list[Any] = list(islice(dict.items(value), self._left))
        name = ""
        for number, (key, struct) in enumerate(pairs):
            if _is_atom(struct) and _is_atom(key) and str.__eq__(key, "__struct__"):
                name = Atom.__repr__(struct)
                del pairs[number]
                break
        self._add(f"%{name}{{")
        if len(pairs) <= _FEW and all(map(_is_keyword, pairs)):
            self._keywords(pairs)
        else:
            for number, (key, item) in enumerate(pairs):
                if number:
                    self._add(", ")
                self._write(key)
                self._add(" => ")
                self._write(item)
        self._add("}")

    def _set(self, items: list[object], kind: type) -> None:
        self._add("MapSet.new([")
        self._sequence(items)
        self._add("])")

    def _object(self, value: object, kind: type) -> None:
        self._add(f"#Python<{type_name(kind)}>")


class _Python(_Writer):
    __slots__ = ()

    def _large(self, bits: int) -> str:
        return f"<an int of {bits} bits>"

    def _constant(self, value: bool | None) -> str:
        return str(value)

    def _atom(self, value: Atom) -> None:
        module: object = _module(type(value))
        ours = isinstance(module, str) and module.startswith("snex_")
        self._add(repr(value) if ours else Atom.__repr__(value))

    def _string(self, value: str) -> None:
        self._add(repr(value[: self._left + 1]))

    def _float(self, value: float) -> None:
        self._add(float.__repr__(value))

    def _binary(self, value: bytes) -> None:
        self._add(repr(value))

    def _tuple(self, value: tuple[object, ...]) -> None:
        self._add("(")
        self._sequence(tuple.__iter__(value))
        self._add(",)" if tuple.__len__(value) == 1 else ")")

    def _dict(self, value: dict[object, object]) -> None:
        self._add("{")
        for number, (key, item) in enumerate(islice(dict.items(value), self._left)):
            if number:
                self._add(", ")
            self._write(key)
            self._add(": ")
            self._write(item)
        self._add("}")

    def _set(self, items: list[object], kind: type) -> None:
        name = "" if issubclass(kind, set) else "frozenset"
        if not items:
            self._add(f"{name or 'set'}()")
            return
        self._add(f"{name}({{" if name else "{")
        self._sequence(items)
        self._add("})" if name else "}")

    def _object(self, value: object, kind: type) -> None:
        fields = _fields(kind)
        if issubclass(kind, type):
            self._add(type_repr(value))  # type: ignore[arg-type]
        elif kind in _NUMBERS:
            self._add(repr(value))
        elif fields:
            self._add(f"{_qualname(kind)}(")
            for number, name in enumerate(fields):
                self._add(f", {name}=" if number else f"{name}=")
                self._write(getattr(value, name))
            self._add(")")
        else:
            self._add(f"<{type_name(kind)} object>")


def _fields(kind: type) -> Iterable[str]:
    """The fields of a class of ours, a control message say; others may have code of users."""
    module: object = _module(kind)
    ours = isinstance(module, str) and module.startswith("snex_node.")
    return getattr(kind, "__match_args__", ()) if ours else ()


def _is_atom(value: object) -> bool:
    return issubclass(type(value), Atom)


def _is_keyword(pair: Any) -> bool:
    return type(pair) is tuple and len(pair) == 2 and _is_atom(pair[0])
