"""What belongs to an evaluation, and goes with it: its mailboxes, what it has subscribed to.

An answer is sent once for each request, and whoever sends it looks here: nearly always there is
nothing.
"""

from __future__ import annotations

from typing import Final, Protocol

from snex_runtime.requests import Request

__all__ = ["Held", "drop", "hold", "holds", "release"]


class Held(Protocol):
    """Something that ends with an evaluation."""

    def end(self) -> None:
        """End it, on the event loop; again: nothing."""


holds: Final[dict[Request, set[Held]]] = {}
"""What each request under way has. Belongs to the event loop."""


def hold(request: Request | None, held: Held) -> None:
    """End ``held`` when ``request`` is done; None: it ends by itself, or with the runtime."""
    if request is not None:
        holds.setdefault(request, set()).add(held)


def drop(request: Request | None, held: Held) -> None:
    """It has ended by itself."""
    having = None if request is None else holds.get(request)
    if having is not None and request is not None:
        having.discard(held)
        if not having:
            del holds[request]


def release(request: Request) -> None:
    """``request`` is done."""
    for held in holds.pop(request, ()):
        held.end()
