"""Which node the code that is running was sent by."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Origin(Protocol):
    """A node that made a request."""

    @property
    def name(self) -> str:
        """Its full name."""


origin: ContextVar[Origin | None] = ContextVar("snex_origin", default=None)
"""The node whose request is running; tasks started by it inherit it."""
