"""Waiting for what gives no sign of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Return when `condition()` is true, which is looked at again and again; else fail."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout} s: {condition}"
        await asyncio.sleep(0.005)
