"""Which node the code that is running was sent by, and which process asked for it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol, TypeAlias

from snex_node.wire.gen import From


class OriginNode(Protocol):
    """A node that made a request."""

    @property
    def name(self) -> str:
        """Its full name."""


Origin: TypeAlias = tuple[OriginNode, From | None] | tuple[OriginNode, From | None, str]
"""The node that made a request, and who waits there for the answer, if anybody does; and the
``traceparent`` that came with it, if one did.
"""

origin: ContextVar[Origin | None] = ContextVar("snex_origin", default=None)
"""Where the request that is running came from; tasks started by it inherit it."""
