"""Tables: ``Snex.Arrow`` in Elixir, those of pyarrow, Polars and pandas in Python.

A table travels as a struct with the bytes of an Arrow IPC stream, which the library writes that the
table is of, or pyarrow where that library cannot. No library is imported to find out what a value
is: a table of theirs exists only where they have been imported.

Source: "Tables" in elixir/guides/data-science.md.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from snex_node.wire.describe import inspect, type_repr
from snex_node.wire.terms import Atom

__all__ = ["ALIGNMENT", "NAME", "SMALL", "load", "stream_of", "struct", "substitute"]

NAME: Final = "Elixir.Snex.Arrow"
"""The name of the struct."""

ALIGNMENT: Final = 8
"""Bytes of which the beginning of a stream is to be a multiple, for its columns to be."""

SMALL: Final = 1024 * 1024
"""Bytes up to which a stream that begins elsewhere is copied. The largest of a message begins
there; see `framing`."""

# One column, or a table that is still to be computed, and what helps.
_REMEDIES: Final = (
    ("pyarrow", ("Array", "ChunkedArray"), "send its .to_pylist(), or a table that has it"),
    ("polars", ("Series",), "send its .to_list(), or its .to_frame()"),
    ("polars", ("LazyFrame",), "send what its .collect() gives"),
    ("pandas", ("Series", "Index"), "send its .tolist(), or its .to_frame()"),
)


# --- to Elixir ----------------------------------------------------------------------------------


def substitute(value: Any) -> object:
    """The struct that stands for ``value``, or `NotImplemented` where that is no table.

    Tables are those and the record batches of pyarrow, data frames of Polars and pandas, and what
    else has an ``__arrow_c_stream__``. Raises ``TypeError`` for a column, and for a table that
    takes a library which is not installed, saying what helps.
    """
    for module, names, remedy in _REMEDIES:
        if _is_of(value, module, *names):
            raise TypeError(f"Cannot serialize object of {type_repr(type(value))}: {remedy}")
    if _is_of(value, "polars", "DataFrame"):
        return struct(_by_polars(sys.modules["polars"], value))
    table = _of_pyarrow(value)
    return NotImplemented if table is None else struct(_by_pyarrow(table))


def stream_of(value: object) -> tuple[int, Callable[[io.RawIOBase], object]] | None:
    """How many bytes the stream of a table takes, and what writes it to a file; None for what is no
    table, or one that another library than pyarrow writes. It is for `struct`.
    """
    if _is_of(value, "polars", "DataFrame"):
        return None
    table = _of_pyarrow(value)
    if table is None:
        return None
    pyarrow = sys.modules["pyarrow"]
    counter = pyarrow.MockOutputStream()
    _write(table, counter)
    return counter.size(), lambda file: _write(table, pyarrow.PythonFile(file, "w"))


def _of_pyarrow(value: Any) -> Any:
    """The table as one of pyarrow; None for what is none. Raises ``TypeError``."""
    if _is_of(value, "pyarrow", "Table", "RecordBatch"):
        return value
    if _is_of(value, "pandas", "DataFrame"):
        return _pyarrow_for(value).Table.from_pandas(value)
    return _pyarrow_for(value).table(value) if _has_stream(type(value)) else None


def _is_of(value: object, module: str, *names: str) -> bool:
    found = sys.modules.get(module)
    kinds = (getattr(found, name, None) for name in names) if found is not None else ()
    return any(isinstance(kind, type) and issubclass(type(value), kind) for kind in kinds)


def _has_stream(kind: type) -> bool:
    try:
        return hasattr(kind, "__arrow_c_stream__")
    except Exception:  # of a metaclass of the user's
        return False


def struct(data: object) -> dict[Atom, object]:
    """The struct with this data."""
    return {Atom("__struct__"): Atom(NAME), Atom("data"): data}


def _by_polars(polars: Any, value: Any) -> memoryview:
    sink = io.BytesIO()
    # As old readers understand it.
    value.write_ipc_stream(sink, compat_level=polars.CompatLevel.oldest())
    return sink.getbuffer()


def _by_pyarrow(table: Any) -> memoryview:
    sink = sys.modules["pyarrow"].BufferOutputStream()
    _write(table, sink)
    return memoryview(sink.getvalue()).cast("B")


def _write(table: Any, sink: Any) -> None:
    with importlib.import_module("pyarrow.ipc").new_stream(sink, table.schema) as writer:
        writer.write(table)


def _pyarrow_for(value: object) -> Any:
    pyarrow = _imported("pyarrow")
    if pyarrow is None:
        raise TypeError(
            f"Cannot serialize object of {type_repr(type(value))}: that takes the package pyarrow; "
            "install it, or send the columns as lists"
        )
    return pyarrow


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# --- from Elixir --------------------------------------------------------------------------------


def load(fields: Mapping[str, object]) -> object:
    """The table with these fields: of pyarrow, or of Polars where only that is installed.

    Its columns are views of the data where they can be. Raises ``ValueError`` where neither library
    is installed, and for what is no table.
    """
    data = fields.get("data")
    if not isinstance(data, memoryview):
        raise ValueError(f"the data of a Snex.Arrow is a binary, not {inspect(data)}")
    pyarrow = _imported("pyarrow")
    polars = _imported("polars") if pyarrow is None else None
    if pyarrow is None and polars is None:
        raise ValueError(
            "a Snex.Arrow takes the package pyarrow, or polars: install one of them, or send rows"
        )
    try:
        return _read_by_polars(polars, data) if pyarrow is None else _read_by_pyarrow(pyarrow, data)
    except Exception as error:  # of the library's own
        raise ValueError(f"the data of a Snex.Arrow is no Arrow IPC stream: {error}") from error


def _read_by_pyarrow(pyarrow: Any, data: memoryview) -> object:
    buffer = pyarrow.py_buffer(data)
    if buffer.address % ALIGNMENT and len(data) <= SMALL:
        buffer = pyarrow.py_buffer(bytes(data))
    with importlib.import_module("pyarrow.ipc").open_stream(buffer) as reader:
        return reader.read_all()


def _read_by_polars(polars: Any, data: memoryview) -> object:
    return polars.read_ipc_stream(io.BytesIO(data))
