"""How long two ways to do the same take, beside each other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int = 3) -> float:
    """How much longer the one takes than the other: processor time, the best of some rounds."""
    ones, others = [], []
    gc.disable()  # it looks at what other tests have left
    try:
        for _ in range(rounds):
            ones.append(_seconds(one))
            others.append(_seconds(other))
    finally:
        gc.enable()
    return min(ones) / min(others)


def _seconds(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began
