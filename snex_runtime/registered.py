"""What users have registered for types of Python, and for structs of Elixir.

There is one register for the process. What is registered counts at once, also for decoders and
connections that were there before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from snex_node.wire import terms
from snex_node.wire.describe import text_of, type_name, type_repr
from snex_node.wire.etf import Decoder
from snex_node.wire.etf_place import KNOWN

__all__ = [
    "BOUNDARIES",
    "decode",
    "decoder",
    "encode",
    "encoder",
    "encodes",
    "follow",
    "is_decoded",
]

T = TypeVar("T")
Encode = Callable[[Any], object]
Decode = Callable[[dict[Any, Any]], object]
_AnyEncode = TypeVar("_AnyEncode", bound=Encode)
_AnyDecode = TypeVar("_AnyDecode", bound=Decode)

_PREFIX: Final = "Elixir."
_OURS: Final = "Elixir.Snex."
_MAPSET: Final = "Elixir.MapSet"

_lock: Final = threading.Lock()
# By the id of the class, which is kept beside: a metaclass may say what its classes are equal to.
_encoders: Final[dict[int, tuple[type, Encode]]] = {}
_decoders: Final[dict[str, Decode]] = {}
_followers: Final[list[Decoder]] = []

_bases: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__mro__"].__get__


@overload
def encoder(kind: type, function: None = None) -> Callable[[_AnyEncode], _AnyEncode]: ...
@overload
def encoder(kind: type, function: _AnyEncode) -> _AnyEncode: ...
def encoder(kind: type, function: Encode | None = None) -> Any:
    """Send what ``function`` makes of an object, wherever one of the class ``kind`` is sent.

    It counts for what is derived from ``kind`` as well, unless something is registered for a class
    that is nearer; it is asked before the function of `snex.set_custom_encoder`. What it returns is
    encoded in the object's place, by the same rules. A ``TypeError`` or ``ValueError`` that it
    raises names the place of the object.

    As a decorator, or with the function. What is registered for the same class later replaces it.
    Raises ``ValueError`` for ``object`` and for types that are always sent as they are, as ``int``,
    ``dict`` and `snex.Atom`; what is derived from ``int`` or ``dict`` may be registered.

    >>> @encoder(complex)
    ... def pair(number: complex) -> object:
    ...     return [number.real, number.imag]
    """
    if function is None:
        return lambda function: encoder(kind, function)
    if not isinstance(kind, type):
        raise TypeError(f"an encoder is for a class, not for an object of {type_repr(type(kind))}")
    if not callable(function):
        raise TypeError(f"the encoder of {type_name(kind)} is no function")
    if kind is object:
        raise ValueError("an encoder of all objects is what snex.set_custom_encoder takes")
    if kind in KNOWN or issubclass(kind, (terms.Atom, terms.Term)):
        raise ValueError(f"{type_name(kind)} is always sent as it is, and has no encoder")
    with _lock:
        _encoders[id(kind)] = kind, function
    return function


def encode(value: object) -> object:
    """What is sent in place of ``value``, if something is registered for it; `NotImplemented` else.

    Raises what the function raises.
    """
    if _encoders:
        for base in _bases(type(value)):
            found = _encoders.get(id(base))
            if found is not None:
                return found[1](value)
    return NotImplemented


def encodes() -> bool:
    """Whether anything is registered for any type."""
    return bool(_encoders)


@overload
def decoder(struct: str, function: None = None) -> Callable[[_AnyDecode], _AnyDecode]: ...
@overload
def decoder(struct: str, function: _AnyDecode) -> _AnyDecode: ...
def decoder(struct: str, function: Decode | None = None) -> Any:
    """Have ``function`` make an object of each struct of this name that comes from Elixir.

    It is called with the dict that the struct would be, whose keys are atoms equal to texts and
    whose values have been converted; what it returns takes the struct's place, however deep that
    is. What it raises is the error of the request, told as a ``ValueError`` that names the struct.

    ``"My.Struct"`` and ``"Elixir.My.Struct"`` are the same. As a decorator, or with the function.
    What is registered for the same name later replaces it. Raises ``ValueError`` for ``MapSet`` and
    what begins with ``Snex.``.

    >>> @decoder("My.Point")
    ... def point(fields: dict[str, float]) -> complex:
    ...     return complex(fields["x"], fields["y"])
    """
    if function is None:
        return lambda function: decoder(struct, function)
    if not isinstance(struct, str):
        raise TypeError(
            f"the name of a struct is a str, not an object of {type_repr(type(struct))}"
        )
    if not callable(function):
        raise TypeError(f"the decoder of {struct} is no function")
    name = str.__str__(struct)
    if not name.startswith(_PREFIX):
        name = _PREFIX + name
    if name == _MAPSET or name.startswith(_OURS):
        raise ValueError(f"{shown(name)} has a meaning of its own, and takes no decoder")
    terms.Atom(name)  # raises ValueError for a name that is too long
    with _lock:
        _decoders[name] = function
        for follower in _followers:
            follower.add_struct_names((name,))
    return function


def decode(name: str, fields: Callable[[], dict[Any, Any]]) -> object:
    """What the struct of this name becomes, if there is a decoder for it; `NotImplemented` else.

    ``fields`` gives the fields as users expect them.
    """
    function = _decoders.get(name)
    if function is None:
        return NotImplemented
    try:
        return function(fields())
    except Exception as error:
        told = f"{type_name(type(error))}: {text_of(error)}".removesuffix(": ")
        raise ValueError(f"the decoder of {shown(name)} raised {told}") from error


def is_decoded(name: str) -> bool:
    """Whether there is a decoder for the struct of this name."""
    return name in _decoders


def shown(name: str) -> str:
    """The name of a struct as Elixir has it: ``%My.Struct{}``."""
    return f"%{name.removeprefix(_PREFIX)}{{}}"


def follow(decoder: Decoder) -> None:
    """Have ``decoder`` call its hook with the structs of all names that are ever registered."""
    with _lock:
        _followers.append(decoder)
        decoder.add_struct_names(_decoders)


BOUNDARIES: Final = (encode.__code__, decode.__code__)
"""What calls functions of users."""
