"""Elixir terms to Python objects and back, by the table of the Snex README.

Source: "Serialization" in the README of Snex.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, TypedDict

from snex_node.wire import etf, terms
from snex_node.wire.describe import inspect, type_repr
from snex_node.wire.etf import Decoder, Encoder
from snex_runtime import shared, tables, tensors
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
    merged = base._asdict()
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
        found = _decoders[options] = _make_decoder(options)
    return found


def _make_decoder(options: Options) -> Decoder:
    binaries: BinaryAs = options.binary_as  # type: ignore[assignment]
    make_set: Callable[[Any], object] = frozenset if options.set_as == "frozenset" else set
    tensor_as: tensors.TensorAs = options.tensor_as  # type: ignore[assignment]
    whole = (tensors.NAME,) if options.tensor_as == "term" else ()
    viewed = (shared.NAME, tables.NAME, *(() if whole else (tensors.NAME,)))

    def struct_hook(struct: dict[Any, Any]) -> object:
        name = struct[key]
        if name == mapset:
            members = struct.get(key_map)
            return make_set(members) if isinstance(members, dict) else struct
        plain_name = str(name)
        if plain_name in LISTS:
            return LISTS[plain_name](_plain_fields(struct), binaries, Term)
        if plain_name == tensors.NAME:
            return tensors.load(shared.with_data(_plain_fields(struct)), tensor_as)
        if plain_name == tables.NAME:
            return tables.load(shared.with_data(_plain_fields(struct)))
        if plain_name == shared.NAME:
            return shared.as_binary(struct, binaries)
        unwrap = _UNWRAP.get(plain_name)
        return struct if unwrap is None else unwrap(struct, made)

    atom = DistinctAtom if options.atom_as == "distinct_atom" else Atom
    key, key_map, mapset = atom(_STRUCT), atom("map"), atom(_MAPSET)
    made = Decoder(
        binary_as=binaries,
        atom=atom,
        opaque=True,
        term=Term,
        struct_hook=struct_hook,
        struct_names=(_MAPSET, *_RAW_STRUCTS, *LISTS, *viewed),
        raw_structs=_RAW_STRUCTS,
        view_structs=viewed,
        term_structs=whole,
    )
    return made


def _plain_fields(struct: dict[Any, Any]) -> dict[str, Any]:
    """The fields of a struct by their names as plain strings, whatever class atoms are of."""
    return {str(field): value for field, value in struct.items()}


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
# arrays, tensors, columns of tables; NumPy's scalars; tables; pydantic's models; dataclasses;
# enums; decimal numbers; dates and times; paths; generators, views and whatever else has elements.
_REMEDIES: Final = (
    (("__await__",), "await it"),
    (("__anext__",), "collect it, as in [each async for each in it]"),
    (("tolist", "__len__"), "send what its .tolist() gives"),
    (("item", "dtype"), "send what its .item() gives"),
    (("to_dict", "columns"), 'send what its .to_dict("list") gives'),
    (("model_dump",), "send what its .model_dump() gives"),
    (("__dataclass_fields__",), "send what dataclasses.asdict() makes of it"),
    (("_member_map_",), "send its .value"),
    (("as_tuple", "quantize"), "send what str() or float() makes of it"),
    (("isoformat",), "send what its .isoformat() gives"),
    (("__fspath__",), "send what str() makes of it"),
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
    """Call ``encoder_fun`` with every object to be sent that is otherwise unknown.

    What it returns is encoded in the object's place, by the same rules. There is one for the whole
    process; it raises ``TypeError`` for what it does not know either.

    >>> import datetime
    >>> set_custom_encoder(lambda value: value.isoformat())
    """
    global _custom  # noqa: PLW0603 - process-wide, as the seed has it
    _custom = encoder_fun


def custom_encoder() -> CustomEncoder | None:
    """What `set_custom_encoder` was called with last, if it was."""
    return _custom


_SUBSTITUTES: Final[tuple[Callable[[object], object], ...]] = (
    tensors.substitute,
    tables.substitute,
)
"""Each gives what is encoded in place of a value that it knows, and else `NotImplemented`."""


def _encode_unknown(value: object) -> object:
    """What stands for a value of a type that is none of the codec's: the user's word goes first."""
    refused: TypeError | None = None
    if _custom is not None:
        try:
            return _custom(value)
        except TypeError as error:
            refused = error
    if isinstance(value, Exception):  # as the caller gets one that is raised
        return from_exception(value).to_term()
    for substitute in _SUBSTITUTES:
        found = substitute(value)
        if found is not NotImplemented:
            return found
    if refused is not None:
        raise refused
    return _unknown(value)


stand_in: Final = _encode_unknown
"""What is encoded in place of a value whose type is none of the codec's; ``TypeError`` where that
is nothing."""

BOUNDARIES: Final = (_encode_unknown.__code__,)
"""What calls user code, a custom encoder, for `interrupts`."""


def _make_encoder(sets: Literal["mapset", "mapset_v2"]) -> Encoder:
    return Encoder(default=_encode_unknown, atom=Atom, special_floats="atoms", sets=sets)


encoder: Final = _make_encoder("mapset")
"""The encoder of the runtime; it has no options, a custom encoder apart."""

encoder_v2: Final = _make_encoder("mapset_v2")
"""The same for an Elixir whose ``MapSet`` has a field ``version``, as it had up to 1.14: a set
without it would be a set there, but not equal to one that Elixir made."""
