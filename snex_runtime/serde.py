"""Elixir terms to Python objects and back, by the table of the Snex README.

Source: "Serialization" in the README of Snex.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypedDict, cast

from snex_node.wire import etf, terms
from snex_node.wire.describe import inspect, type_repr
from snex_node.wire.etf import Decoder, Encoder
from snex_runtime import everyday, kept, native, registered, shared, tables, tensors
from snex_runtime.arrangement import LISTS, BinaryAs
from snex_runtime.errors import from_exception


class Atom(terms.Atom):
    """An Elixir atom: equal to, and hashing as, the plain string of its name.

    ``ValueError`` for a name of more than 255 characters.

    >>> Atom("foo")
    snex.Atom('foo')
    >>> Atom("foo") == "foo"
    True
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"snex.Atom({str.__repr__(self)})"


class DistinctAtom(Atom):
    """An Elixir atom that is equal only to a `DistinctAtom` of the same name.

    >>> DistinctAtom("foo") == "foo", DistinctAtom("foo") == DistinctAtom("foo")
    (False, True)
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DistinctAtom) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return ~str.__hash__(self)  # another one than the string's, and as fast

    def __repr__(self) -> str:
        return f"snex.DistinctAtom({str.__repr__(self)})"


class Term(terms.Term):
    """An Elixir term that Python has no counterpart for; it goes back as it came.

    Hashable and comparable; made by the runtime, not by users.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        try:
            return f"snex.Term({inspect(to_typed(self))})"
        except etf.DecodeError:
            return f"snex.Term(<{len(self)} bytes>)"

    __str__ = __repr__


class _StringEnum(str, Enum):
    """Members that are their values wherever they become text, on every Python."""

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)


class EncodingOpt:
    """The values of `EncodingOpts`, as string enums."""

    class BinaryAs(_StringEnum):
        """What an Elixir binary becomes."""

        STR = "str"
        BYTES = "bytes"
        BYTEARRAY = "bytearray"

    class SetAs(_StringEnum):
        """What a ``MapSet`` becomes."""

        SET = "set"
        FROZENSET = "frozenset"

    class AtomAs(_StringEnum):
        """What an Elixir atom becomes."""

        ATOM = "atom"
        DISTINCT_ATOM = "distinct_atom"

    class TensorAs(_StringEnum):
        """What a ``Snex.Tensor`` becomes."""

        NDARRAY = "ndarray"
        MEMORYVIEW = "memoryview"
        TERM = "term"

    class StructsAs(_StringEnum):
        """What dates, times, decimal numbers and the like become."""

        DICT = "dict"
        NATIVE = "native"


class EncodingOpts(TypedDict, total=False):
    """How Elixir terms become Python objects; every key may be missing.

    The plain strings of the enums are accepted as well.
    """

    binary_as: EncodingOpt.BinaryAs | Literal["str", "bytes", "bytearray"]
    set_as: EncodingOpt.SetAs | Literal["set", "frozenset"]
    atom_as: EncodingOpt.AtomAs | Literal["atom", "distinct_atom"]
    tensor_as: EncodingOpt.TensorAs | Literal["ndarray", "memoryview", "term"]
    structs_as: EncodingOpt.StructsAs | Literal["dict", "native"]


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "binary_as": tuple(e.value for e in EncodingOpt.BinaryAs),
    "set_as": tuple(e.value for e in EncodingOpt.SetAs),
    "atom_as": tuple(e.value for e in EncodingOpt.AtomAs),
    "tensor_as": tuple(e.value for e in EncodingOpt.TensorAs),
    "structs_as": tuple(e.value for e in EncodingOpt.StructsAs),
}


class Options(NamedTuple):
    """Encoding options, all of them decided."""

    binary_as: str = "str"
    set_as: str = "set"
    atom_as: str = "atom"
    tensor_as: str = "ndarray"
    structs_as: str = "dict"


DEFAULTS: Final = Options()


def merge_options(options: object, base: Options = DEFAULTS) -> Options:
    """``options`` (a mapping, or pairs as in a keyword list; None for none) over ``base``.

    Raises ``ValueError`` for an unknown option or value.
    """
    if options is None:
        return base
    merged = dict(zip(_CHOICES, base, strict=True))
    for name, value in _option_pairs(options):
        key = str.__str__(name) if isinstance(name, str) else ""
        choices = _CHOICES.get(key)
        if choices is None:
            known = ", ".join(_CHOICES)
            raise ValueError(f"unknown encoding option {inspect(name)}: there are {known}")
        chosen = value.value if isinstance(value, Enum) else value
        if not isinstance(chosen, str) or str.__str__(chosen) not in choices:
            raise ValueError(f"{key} is one of {', '.join(choices)}, not {inspect(value)}")
        merged[key] = str.__str__(chosen)
    return Options(**merged)


def _option_pairs(options: object) -> list[tuple[object, object]]:
    if isinstance(options, Mapping):
        return list(options.items())
    if isinstance(options, list | tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in options
    ):
        return list(options)
    raise ValueError(f"encoding options are a keyword list or a map, not {inspect(options)}")


# --- from Elixir --------------------------------------------------------------------------------

_STRUCT: Final = "__struct__"
_MAPSET: Final = "Elixir.MapSet"
_RAW_STRUCTS: Final = (
    "Elixir.Snex.Serde.Binary",
    "Elixir.Snex.Serde.Float",
    "Elixir.Snex.Serde.Object",
    "Elixir.Snex.Serde.Term",
)

_SPECIAL_FLOATS: Final = ("inf", "-inf", "nan")

_plain: Final = Decoder(binary_as="bytes")
_typed: Final = Decoder(binary_as="str")
_decoders: dict[Options, Decoder] = {}


def decoder(options: Options = DEFAULTS) -> Decoder:
    """The decoder for these options; there are 72 at the most, made once each."""
    found = _decoders.get(options)
    if found is None:
        found = _make_decoder(options)
        registered.follow(found)
        _decoders[options] = found
    return found


def _make_decoder(options: Options) -> Decoder:
    binaries: BinaryAs = options.binary_as  # type: ignore[assignment]
    make_set: Callable[[Any], object] = frozenset if options.set_as == "frozenset" else set
    loads = _loads(options)
    whole = (tensors.NAME,) if options.tensor_as == "term" else ()
    viewed = (shared.NAME, tables.NAME, *(() if whole else (tensors.NAME,)))

    def struct_hook(struct: dict[Any, Any]) -> object:
        name = struct[key]
        if name == mapset:
            members = struct.get(key_map)
            return make_set(members) if isinstance(members, dict) else struct
        plain_name = str(name)
        if plain_name in LISTS:
            return each_of(LISTS[plain_name](_plain_fields(struct), binaries, Term))
        load = loads.get(plain_name)
        if load is not None:
            return load(_plain_fields(struct))
        unwrap = _UNWRAP.get(plain_name)
        if unwrap is not None:
            return unwrap(struct, made)
        found = registered.decode(plain_name, lambda: _with_texts(struct))
        if found is NotImplemented and plain_name in natives:
            found = native.native(plain_name, _with_texts(struct))
        return struct if found is NotImplemented else found

    def each_of(elements: list[Any]) -> list[Any]:
        """Those of a list that has been arranged, where they are structs: all of one name then."""
        first = elements[0] if elements else None
        if type(first) is not dict or not isinstance(name := first.get(key), atom):
            return elements
        known = str(name) in natives or registered.is_decoded(str(name))
        return list(map(struct_hook, elements)) if known else elements

    natives = native.STRUCTS if options.structs_as == "native" else {}
    atom = DistinctAtom if options.atom_as == "distinct_atom" else Atom
    key, key_map, mapset = atom(_STRUCT), atom("map"), atom(_MAPSET)
    made = Decoder(
        binary_as=binaries,
        atom=atom,
        opaque=True,
        term=Term,
        struct_hook=struct_hook,
        struct_names=(_MAPSET, *_RAW_STRUCTS, *LISTS, *loads, *natives),
        raw_structs=_RAW_STRUCTS,
        view_structs=viewed,
        term_structs=whole,
    )
    return made


def _loads(options: Options) -> dict[str, Callable[[dict[str, Any]], object]]:
    """What makes Python's own of the structs that stand for it, by their names."""
    loads: dict[str, Callable[[dict[str, Any]], object]] = {
        tables.NAME: lambda fields: tables.load(shared.with_data(fields)),
        kept.NAME: kept.load,
        shared.NAME: lambda handle: shared.as_binary(handle, options.binary_as),
    }
    as_ = options.tensor_as
    if as_ != "term":
        loads[tensors.NAME] = lambda fields: tensors.load(shared.with_data(fields), as_)
    return loads


def _set_or_struct(struct: dict[Any, Any]) -> object:
    members = struct.get("map")
    return frozenset(members) if isinstance(members, dict) else struct


passing: Final = Decoder(
    binary_as="bytes",
    atom=Atom,
    opaque=True,
    term=Term,
    struct_hook=_set_or_struct,
    struct_names=(_MAPSET,),
)
"""The decoder of what only passes through: structs stay what they are. Sets are not the same in
every Elixir, and are written anew for the one that gets them."""


def _plain_fields(struct: dict[Any, Any]) -> dict[str, Any]:
    """The fields of a struct by their names as plain strings, whatever class atoms are of."""
    return {str(field): value for field, value in struct.items()}


def _with_texts(struct: dict[Any, Any]) -> dict[Any, Any]:
    """The fields, under atoms that are equal to texts."""
    if not any(type(field) is DistinctAtom for field in struct):
        return struct
    return {
        Atom(field) if type(field) is DistinctAtom else field: value
        for field, value in struct.items()
    }


def _field(struct: dict[Any, Any], name: str) -> bytes:
    """A field of a wrapper struct, in its external form."""
    for key, value in struct.items():
        if str(key) == name and isinstance(value, bytes):
            return bytes(value)
    raise ValueError(f"a Snex.Serde struct has no field {name}: {inspect(struct)}")


def _unwrap_binary(struct: dict[Any, Any], outer: Decoder) -> object:
    data = _plain.decode(_field(struct, "data"))[0]
    kind = _plain.decode(_field(struct, "type"))[0]
    if not isinstance(data, bytes) or isinstance(data, terms.Term):
        raise ValueError(f"Snex.Serde.binary takes a binary, not {inspect(data)}")
    if kind == "bytes":
        return data
    if kind == "bytearray":
        return bytearray(data)
    if kind != "str":
        raise ValueError(
            f"Snex.Serde.binary makes one of {', '.join(_CHOICES['binary_as'])}, "
            f"not {inspect(kind)}"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"Snex.Serde.binary(_, :str) is not UTF-8: {error}") from None


def _unwrap_float(struct: dict[Any, Any], outer: Decoder) -> object:
    value = _plain.decode(_field(struct, "value"))[0]
    if type(value) in (float, int) or (isinstance(value, terms.Atom) and value in _SPECIAL_FLOATS):
        return float(value)
    raise ValueError(
        f'Snex.Serde.float takes a number, :inf, :"-inf" or :nan, not {inspect(value)}'
    )


def _unwrap_object(struct: dict[Any, Any], outer: Decoder) -> object:
    module = _typed.decode(_field(struct, "module"))[0]
    name = _typed.decode(_field(struct, "name"))[0]
    args = outer.decode(_field(struct, "args"))[0]
    if not (isinstance(module, str) and isinstance(name, str) and isinstance(args, list)):
        raise ValueError(
            "Snex.Serde.object takes the names of a module and of what it has, and a list of "
            f"arguments, not {inspect((module, name, args))}"
        )
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found(*args)


def _unwrap_term(struct: dict[Any, Any], outer: Decoder) -> object:
    return Term(_field(struct, "term"))


_UNWRAP: Final[dict[str, Callable[[dict[Any, Any], Decoder], object]]] = dict(
    zip(_RAW_STRUCTS, (_unwrap_binary, _unwrap_float, _unwrap_object, _unwrap_term), strict=True)
)


def to_typed(value: object) -> object:
    """A `Term` as the type of `snex_node.wire.terms` that it stands for; all else as it is."""
    return _typed.decode(bytes(value))[0] if isinstance(value, terms.Term) else value


# --- to Elixir ----------------------------------------------------------------------------------

CustomEncoder = Callable[[Any], object]


def _unknown(value: object) -> object:
    kind = type(value)
    raise TypeError(f"Cannot serialize object of {type_repr(kind)}: {_remedy(kind)}")


# What the value's type has, the first that fits: coroutines and futures; asynchronous generators;
# arrays, tensors, columns of tables; complex numbers, NumPy's too; NumPy's other scalars; tables;
# fractions; files; what is iterable, but no iterator or sequence.
_REMEDIES: Final = (
    (("__await__",), "await it"),
    (("__anext__",), "collect it, as in [each async for each in it]"),
    (("tolist", "__len__"), "send what its .tolist() gives"),
    (("limit_denominator",), "send what str() or float() makes of it"),
    (("real", "imag", "__complex__"), "send its .real and .imag"),
    (("item", "dtype"), "send what its .item() gives"),
    (("to_dict", "columns"), 'send what its .to_dict("list") gives'),
    (("read", "__iter__"), "send what its .read() gives"),
    (("__iter__",), "send what list() makes of it"),
)


def _remedy(kind: type) -> str:
    for names, remedy in _REMEDIES:
        if all(_has(kind, name) for name in names):
            return remedy
    return "snex.set_custom_encoder takes a function that knows what to send instead"


def _has(kind: type, name: str) -> bool:
    try:
        return hasattr(kind, name)
    except Exception:  # of a metaclass of the user's
        return False


_custom: CustomEncoder | None = None


def set_custom_encoder(encoder_fun: CustomEncoder) -> None:
    """Call ``encoder_fun`` with every object to be sent that is of none of the codec's own types.

    What it returns is encoded in the object's place, by the same rules. There is one for the whole
    process; where it raises ``TypeError`` the object is sent as it would be without it. For one
    class there is `snex.encoder`.

    >>> import datetime
    >>> set_custom_encoder(lambda value: value.isoformat())
    """
    global _custom  # noqa: PLW0603 - process-wide, as the seed has it
    _custom = encoder_fun


def custom_encoder() -> CustomEncoder | None:
    """What `set_custom_encoder` was called with last, if it was."""
    return _custom


Substitute = Callable[[object], object]

Converter = Callable[[type], Substitute | None]

_SUBSTITUTES: Final[tuple[Substitute, ...]] = (
    everyday.substitute,  # there are many more of those
    tensors.substitute,
    tables.substitute,
)
"""Each gives what is encoded in place of a value that it knows, and else `NotImplemented`."""

_WITHOUT_DURATION: Final = (everyday.microseconds, *_SUBSTITUTES)
"""The same for an Elixir that has no ``Duration``, as it had none up to 1.16."""


def _encode_unknown(value: object, substitutes: tuple[Substitute, ...] = _SUBSTITUTES) -> object:
    """What stands for a value of a type that is none of the codec's: the user's word goes first."""
    refused: TypeError | None = None
    if _custom is not None:
        try:
            return _custom(value)
        except TypeError as error:
            refused = error
    if issubclass(type(value), Exception):  # as the caller gets one that is raised
        return from_exception(cast(Exception, value)).to_term()
    for substitute in substitutes:
        found = substitute(value)
        if found is not NotImplemented:
            return found
    if refused is not None:
        raise refused
    return _unknown(value)


stand_in: Final = _encode_unknown
"""What is encoded in place of a value whose type is none of the codec's; ``TypeError`` where that
is nothing."""

BOUNDARIES: Final = (
    _encode_unknown.__code__,
    *everyday.BOUNDARIES,
    *registered.BOUNDARIES,
)
"""What calls user code, a custom encoder say, for `interrupts`."""


def _converter(kind: type) -> Substitute | None:
    """None where users may have a word in what becomes of objects of the type."""
    if _custom is not None or registered.encodes():
        return None
    return everyday.converter(kind)


def _converter_without_duration(kind: type) -> Substitute | None:
    found = _converter(kind)
    return everyday.microseconds if found is not None and kind is timedelta else found


def _make_encoder(
    sets: Literal["mapset", "mapset_v2"],
    substitutes: tuple[Substitute, ...] = _WITHOUT_DURATION,
    converter: Converter = _converter_without_duration,
) -> Encoder:
    return Encoder(
        default=partial(_encode_unknown, substitutes=substitutes),
        prior=registered.encode,
        converter=converter,
        atom=Atom,
        special_floats="atoms",
        sets=sets,
    )


encoder: Final = _make_encoder("mapset", _SUBSTITUTES, _converter)
"""The encoder of the runtime, for an Elixir of today; it has no options, what users register
apart."""

encoder_without_duration: Final = _make_encoder("mapset")
"""The same for one that has no ``Duration``, and for nodes without Elixir: they get microseconds.
"""

encoder_v2: Final = _make_encoder("mapset_v2")
"""The same for an Elixir whose ``MapSet`` has a field ``version`` besides, as it had up to 1.14: a
set without it would be a set there, but not equal to one that Elixir made."""


def encoder_for(mapset: object, duration: object) -> Encoder:
    """The encoder for an Elixir, by its empty structs ``MapSet`` and ``Duration``.

    Each is the dict that the struct is, None where there is none.
    """
    if isinstance(mapset, dict) and "version" in mapset:
        return encoder_v2
    return encoder if isinstance(duration, dict) else encoder_without_duration
