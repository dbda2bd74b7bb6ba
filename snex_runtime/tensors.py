"""Arrays of numbers: ``Snex.Tensor`` in Elixir, ``numpy.ndarray`` and its kind in Python.

A tensor travels as a struct with its type, its shape and all its numbers in one binary: row after
row, the little end of each first. Neither NumPy nor another library is imported to find out what a
value is: an array of theirs exists only where they have been imported.

Source: "Tensors" in elixir/guides/data-science.md.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from array import array
from collections.abc import Mapping, Sequence
from math import prod
from types import ModuleType
from typing import Any, Final, NamedTuple

from snex_node.wire.describe import inspect, type_repr
from snex_node.wire.terms import Atom

__all__ = ["NAME", "SMALL", "load", "substitute"]

NAME: Final = "Elixir.Snex.Tensor"
"""The name of the struct."""

SMALL: Final = 1024 * 1024
"""Bytes up to which numbers that do not begin where the processor likes it are copied: what
computes with them would do that each time. The largest of a message begins there; see `framing`."""

_MAX_DIMENSIONS: Final = 64


class _Type(NamedTuple):
    """A type of numbers, by its names in Nx, in NumPy's array interface and for `memoryview`."""

    kind: str
    bits: int
    code: str
    """Kind and bytes, as in ``typestr``; of a type that NumPy lacks, its name in ml_dtypes."""
    format: str | None
    """The format for `memoryview.cast`, if it has one."""

    @property
    def size(self) -> int:
        """Bytes of one number."""
        return self.bits // 8

    @property
    def is_foreign(self) -> bool:
        """Whether it is one of ml_dtypes."""
        return len(self.code) > 3


_TYPES: Final = (
    _Type("s", 8, "i1", "b"),
    _Type("s", 16, "i2", "h"),
    _Type("s", 32, "i4", "i"),
    _Type("s", 64, "i8", "q"),
    _Type("u", 8, "u1", "B"),
    _Type("u", 16, "u2", "H"),
    _Type("u", 32, "u4", "I"),
    _Type("u", 64, "u8", "Q"),
    _Type("f", 16, "f2", None),
    _Type("f", 32, "f4", "f"),
    _Type("f", 64, "f8", "d"),
    _Type("c", 64, "c8", None),
    _Type("c", 128, "c16", None),
    _Type("bf", 16, "bfloat16", None),
    _Type("f", 8, "float8_e5m2", None),
)
_BY_NX: Final = {(each.kind, each.bits): each for each in _TYPES}
_BY_CODE: Final = {each.code: each for each in _TYPES} | {"b1": _BY_NX["u", 8]}
_BY_FORMAT: Final = {
    **{each.format: each for each in _TYPES if each.format},
    "?": _BY_NX["u", 8],
    "c": _BY_NX["u", 8],
    "e": _BY_NX["f", 16],
    "l": _BY_NX["s", 8 * ctypes.sizeof(ctypes.c_long)],
    "L": _BY_NX["u", 8 * ctypes.sizeof(ctypes.c_long)],
    "n": _BY_NX["s", 8 * ctypes.sizeof(ctypes.c_ssize_t)],
    "N": _BY_NX["u", 8 * ctypes.sizeof(ctypes.c_size_t)],
}
_TERMS: Final = {each: (Atom(each.kind), each.bits) for each in _TYPES}

# What PyTorch calls them.
_TORCH: Final = {
    "bool": "b1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "int8": "i1",
    "int16": "i2",
    "int32": "i4",
    "int64": "i8",
    "float16": "f2",
    "float32": "f4",
    "float64": "f8",
    "complex64": "c8",
    "complex128": "c16",
}

# Kinds of arrays that are none of numbers, or of other numbers than Nx has, and what helps.
_REMEDIES: Final = {
    "M": "send its .tolist(), or .astype('int64')",
    "m": "send its .tolist(), or .astype('int64')",
    "f": "send its .astype('float64')",
    "c": "send its .astype('complex128')",
}


# --- to Elixir ----------------------------------------------------------------------------------


def substitute(value: Any) -> object:
    """The struct that stands for ``value``, or `NotImplemented` where that is no tensor.

    Tensors are arrays of NumPy, tensors of PyTorch and JAX, whatever else has an
    ``__array_interface__``, and a `memoryview` of other than one dimension. Raises ``TypeError``
    for one that has none of Nx's types of numbers, saying what helps.
    """
    kind = type(value)  # the object itself may claim to be of another class, or raise when asked
    if kind is memoryview:
        return _of_memoryview(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if issubclass(kind, numpy.ndarray):
            return _of_ndarray(numpy, value)
        if issubclass(kind, numpy.generic):  # one number has the interface, too
            return NotImplemented
    if _is_of(value, "torch", "Tensor"):
        return _of_torch(sys.modules["torch"], value)
    if numpy is not None and _is_of(value, "jax", "Array"):
        return _of_ndarray(numpy, numpy.asarray(value))
    return _of_interface(value) if _has_interface(kind) else NotImplemented


def _is_of(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and issubclass(type(value), kind)


def _has_interface(kind: type) -> bool:
    try:
        return hasattr(kind, "__array_interface__")
    except Exception:  # of a metaclass of the user's
        return False


def _struct(of: _Type, shape: Sequence[int], data: memoryview) -> dict[Atom, object]:
    return {
        Atom("__struct__"): Atom(NAME),
        Atom("data"): data,
        Atom("names"): None,
        Atom("shape"): tuple(shape),
        Atom("type"): _TERMS[of],
    }


def _cannot(value: object, why: str) -> TypeError:
    return TypeError(f"Cannot serialize object of {type_repr(type(value))}: {why}")


def _no_numbers(value: object, kind: str, what: str) -> TypeError:
    remedy = _REMEDIES.get(kind, "send its .tolist()")
    return _cannot(value, f"{what} is no type that a Snex.Tensor has; {remedy}")


def _of_ndarray(numpy: Any, value: Any) -> dict[Atom, object]:
    if isinstance(value, numpy.ma.MaskedArray):
        raise _cannot(value, "a tensor has no mask; send what its .filled() gives")
    plain = numpy.asarray(value)
    dtype = plain.dtype
    of = _BY_CODE.get(dtype.name if dtype.kind == "V" else dtype.str[1:])
    if of is None and dtype.kind == "f":  # as NumPy calls what ml_dtypes adds since 0.5
        of = _BY_CODE.get(dtype.name)
    if of is None:
        raise _no_numbers(value, dtype.kind, f"dtype {dtype.name}")
    if not of.is_foreign and dtype.newbyteorder("<") != dtype:
        plain = plain.astype(dtype.newbyteorder("<"), order="C")
    elif not plain.flags.c_contiguous:
        plain = plain.copy(order="C")
    return _struct(of, plain.shape, memoryview(plain.reshape(-1).view(numpy.uint8)))


def _of_torch(torch: Any, value: Any) -> dict[Atom, object]:
    name = str(value.dtype).removeprefix("torch.")
    of = _BY_CODE.get(_TORCH.get(name, name))
    if of is None:
        raise _cannot(value, f"{name} is no type that a Snex.Tensor has; send its .float()")
    if value.layout is not torch.strided:
        raise _cannot(value, "it is sparse; send what its .to_dense() gives")
    if value.device.type != "cpu":
        raise _cannot(value, f"it is on {value.device}; send what its .cpu() gives")
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    # By its address: PyTorch may be there without NumPy.
    data = _memory(plain.data_ptr(), plain.numel() * of.size, plain)
    return _struct(of, tuple(plain.shape), _ordered(data, of, "="))


def _of_interface(value: Any) -> dict[Atom, object]:
    """Of an object with an array interface; without NumPy its memory has to lie in order."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        return _of_ndarray(numpy, numpy.asarray(value))
    told = value.__array_interface__
    code, shape = told["typestr"], tuple(told["shape"])
    of = _BY_CODE.get(code[1:])
    if of is None:
        raise _no_numbers(value, code[1:2], f"typestr {inspect(code)}")
    if told.get("mask") is not None:
        raise _cannot(value, "a tensor has no mask; send a copy without")
    size = prod(shape) * of.size
    if told.get("strides") not in (None, _strides(shape, of.size)):
        raise _cannot(value, "its memory does not lie in order; send a contiguous copy")
    data, offset = told.get("data"), told.get("offset", 0)
    if isinstance(data, tuple):
        memory = _memory(data[0], size, value)
    else:
        memory = memoryview(value if data is None else data).cast("B")[offset : offset + size]
    return _struct(of, shape, _ordered(memory, of, code[:1]))


def _strides(shape: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple(size * prod(shape[index + 1 :]) for index in range(len(shape)))


def _of_memoryview(value: memoryview) -> object:
    if value.ndim == 1:  # a binary
        return NotImplemented
    order, code = value.format[:-1] or "=", value.format[-1:]
    of = _BY_FORMAT.get(code) if order in ("=", "@", "<", ">") else None
    if of is None or of.size != value.itemsize:
        raise _no_numbers(value, "V", f"format {inspect(value.format)}")
    return _struct(of, value.shape or (), _ordered(memoryview(value.tobytes()), of, order))


def _memory(address: int, size: int, owner: object) -> memoryview:
    """The bytes there; ``owner``, whose they are, is kept as long as the view is."""
    if not size:
        return memoryview(b"")
    held: Any = (ctypes.c_char * size).from_address(address)
    held.owner = owner
    return memoryview(held).cast("B")


def _ordered(data: memoryview, of: _Type, order: str) -> memoryview:
    """``data`` with the little end of each number first; ``order`` is that of `struct`."""
    size = of.size // 2 if of.kind == "c" else of.size
    big = order == ">" or (order in ("=", "@") and sys.byteorder == "big")
    if size == 1 or not big:
        return data
    words = array({2: "H", 4: "I", 8: "Q"}[size], data.tobytes())
    words.byteswap()
    return memoryview(words).cast("B")


# --- from Elixir --------------------------------------------------------------------------------


def load(fields: Mapping[str, object], tensor_as: str) -> object:
    """What a tensor with these fields is in Python: a view of its data, which is not to be changed.

    Raises ``ValueError`` for one that contradicts itself, or that needs what is not installed.
    """
    of, shape, data = _type_of(fields.get("type")), fields.get("shape"), fields.get("data")
    if not isinstance(data, memoryview):
        raise ValueError(f"the data of a Snex.Tensor is a binary, not {inspect(data)}")
    if not isinstance(shape, tuple) or not all(map(_is_size, shape)):
        raise ValueError(f"the shape of a Snex.Tensor is a tuple of sizes, not {inspect(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(
            f"a Snex.Tensor of {len(shape)} dimensions, where {_MAX_DIMENSIONS} are the most"
        )
    size = prod(shape) * of.size
    if size != len(data):
        raise ValueError(
            f"a Snex.Tensor of type {_told(of)} and shape {inspect(shape)} has {size} bytes of "
            f"data, and here are {len(data)}"
        )
    numpy = _imported("numpy") if tensor_as == "ndarray" else None
    if numpy is None:
        return _as_memoryview(data, of, shape, tensor_as)
    return _as_ndarray(numpy, data, of, shape)


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _type_of(value: object) -> _Type:
    if isinstance(value, tuple) and all(isinstance(each, str | int) for each in value):
        known = _BY_NX.get(value)
        if known is not None:
            return known
    types = ", ".join(map(_told, _TYPES))
    raise ValueError(f"the type of a Snex.Tensor is one of {types}, not {inspect(value)}")


def _told(of: _Type) -> str:
    return f"{{:{of.kind}, {of.bits}}}"


_missing: set[str] = set()


def _imported(name: str) -> ModuleType | None:
    """The module, if it is installed: NumPy takes a tenth of a second to import, once."""
    found = sys.modules.get(name)
    if found is None and name not in _missing:
        try:
            found = importlib.import_module(name)
        except ImportError:
            _missing.add(name)
    return found


def _as_ndarray(numpy: Any, data: memoryview, of: _Type, shape: tuple[int, ...]) -> object:
    if of.is_foreign:
        library = _imported("ml_dtypes")
        if library is None:
            raise ValueError(
                f"a Snex.Tensor of type {_told(of)} needs the package ml_dtypes beside NumPy: "
                "install it, or send another type, as Nx.as_type(tensor, :f32) makes"
            )
        dtype = numpy.dtype(getattr(library, of.code))
    else:
        dtype = numpy.dtype("<" + of.code)
    made = numpy.ndarray(shape, dtype, data)
    if not made.flags.aligned and len(data) <= SMALL:
        made = made.copy()
        made.flags.writeable = False
    return made


def _as_memoryview(
    data: memoryview, of: _Type, shape: tuple[int, ...], tensor_as: str
) -> memoryview:
    if of.format is None:
        needed = "NumPy and ml_dtypes" if of.is_foreign else "NumPy"
        why = "" if tensor_as == "memoryview" else ", which is not installed"
        raise ValueError(
            f"a memoryview has no numbers of type {_told(of)}: that takes {needed}{why}"
        )
    if sys.byteorder == "big":
        data = _ordered(data, of, ">").toreadonly()
    if len(data):
        cast: Any = data.cast
        return cast(of.format, shape)  # type: ignore[no-any-return]
    kind: Any = _EMPTY[of.format]  # `cast` refuses sizes of zero
    for extent in reversed(shape):
        kind = kind * extent
    return memoryview(kind()).toreadonly()


_EMPTY: Final = {
    "b": ctypes.c_byte,
    "h": ctypes.c_short,
    "i": ctypes.c_int,
    "q": ctypes.c_longlong,
    "B": ctypes.c_ubyte,
    "H": ctypes.c_ushort,
    "I": ctypes.c_uint,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}
