"""Objects that stay in Python while a process of the BEAM holds them, by their pids.

What comes in is looked through here, and finds nothing nearly always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from snex_node.wire.describe import inspect
from snex_node.wire.etf import Decoder
from snex_node.wire.terms import Term

__all__ = ["NAME", "held", "load", "put_in"]

NAME: Final = "Elixir.Snex.Object"
"""The name of the struct that stands for one."""

_plain: Final = Decoder()

held: Final[dict[bytes, object]] = {}
"""The objects, by the external form of their pids. From any thread."""


def load(fields: Mapping[str, object]) -> object:
    """The object that a struct with these fields stands for. Raises ``ValueError``."""
    pid = fields.get("id")
    if not isinstance(pid, Term):
        raise ValueError(f"the id of a Snex.Object is a pid, not {inspect(pid)}")
    try:
        return held[bytes(pid)]
    except KeyError:
        told = inspect(_plain.decode(bytes(pid))[0])
        raise ValueError(
            f"{told} is no object of this node: it has been freed, or belongs to another Python"
        ) from None


def put_in(values: dict[str, Any]) -> None:
    """Put objects in the place of their pids, where these are among ``values``."""
    for name, value in values.items():
        if isinstance(value, Term) and bytes(value) in held:
            values[name] = held[bytes(value)]
