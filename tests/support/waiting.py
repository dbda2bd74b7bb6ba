"""Waiting for what gives no sign of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(
    condition: Callable[[], object], timeout: float = 10.0, *, pause: float = 0.005
) -> None:
    """Return when `condition()` is true, which is looked at again and again; else fail.

    With a `pause` of 0 no turn of the event loop is missed.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout} s: {condition}"
        await asyncio.sleep(pause)
