"""Memory of what was large: how much all connections hold together, and giving it back.

glibc keeps what is freed in the middle of its heap. After 300 MB of messages have come and gone, a
process may go on holding most of that for ever; `malloc_trim` gives it back to the system. On the
other hand it gives back at once what was larger than 128 KiB, and has it brought again, page by
page, for the next message: of 10 MB each that takes three times as long as all else.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, Generic, TypeVar

MAX_UNFINISHED: Final = 2 * 1024 * 1024 * 1024
"""Default for what all connections of a node hold of frames and messages that are not complete.

Each may hold 1 GiB by itself, and there may be thousands; beyond this the one that holds most is
closed. As with one connection, what is held can take three times what is counted."""

TRIM_AFTER: Final = 32 * 1024 * 1024
"""Bytes that must have been released before memory is given back."""

LARGE: Final = 1024 * 1024
"""Bytes of a message from which on it is worth keeping what the next ones need."""

KEPT: Final = 32 * 1024 * 1024
"""Bytes of one object up to which its memory is kept when it is freed, twice as many together: the
most that glibc comes to by itself."""

TRIM_PAUSE: Final = 10.0
"""Seconds between two times: one takes 1 ms for each few MB that are free, on another thread."""

_Holder = TypeVar("_Holder", bound=Hashable)


class Holdings(Generic[_Holder]):
    """How much each of many holds, and what happens when it is too much together.

    >>> holdings = Holdings(100, lambda holder: print(f"{holder} holds too much"))
    >>> holdings.changed("one", 30), holdings.changed("two", 80)
    two holds too much
    (None, None)
    """

    def __init__(self, limit: int, too_much: Callable[[_Holder], None]) -> None:
        self.limit = limit
        self.size = 0
        self._too_much = too_much
        self._held: dict[_Holder, int] = {}

    def changed(self, holder: _Holder, size: int) -> None:
        """``holder`` holds ``size`` bytes from now on. At the limit the one with the most is told.

        It must give up what it holds, and say so by a call of this with 0.
        """
        self.size += size - self._held.pop(holder, 0)
        if size:
            self._held[holder] = size
            if self.size > self.limit:
                self._too_much(max(self._held, key=self._held.__getitem__))


class Trimmer:
    """Gives memory back to the system some time after much of it has been released.

    `released` may be called from any thread, and only counts; `check` is for a thread of its own.
    """

    def __init__(self) -> None:
        self._released = 0
        self._keeping = False
        self._lock = threading.Lock()
        self._last = 0.0
        self._trim: Callable[[], object] | None = None

    def released(self, size: int) -> None:
        """``size`` bytes are, or are about to be, no longer needed."""
        with self._lock:
            self._released += size
        if size >= LARGE and not self._keeping:
            self._keeping = True
            keep_large()

    def check(self) -> None:
        """Give memory back if enough has been released, and the last time is long enough ago."""
        now = time.monotonic()
        if self._released < TRIM_AFTER or now - self._last < TRIM_PAUSE:
            return
        with self._lock:
            self._released = 0
        self._last = now
        if self._trim is None:
            self._trim = find_trim()
        self._trim()


def keep_large() -> None:
    """Have the C library keep the memory of objects of up to `KEPT` bytes that are freed.

    glibc does so for all that are no larger than one which was given back, and nothing is as cheap
    to make and to give back as zeros that nobody looks at. Elsewhere it changes nothing.
    """
    bytes(KEPT - 64 * 1024)


def find_trim() -> Callable[[], object]:
    """What gives memory back; it does nothing where the system's C library has no such thing."""
    try:
        ctypes = importlib.import_module("ctypes")  # 2 MB and 10 ms, for those who need it
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes = [ctypes.c_size_t]
        trim.restype = ctypes.c_int
    except (ImportError, OSError, AttributeError, TypeError):
        return _nothing
    # Called without the interpreter lock.
    return partial(trim, 0)


def _nothing() -> None:
    """There is nothing that gives memory back."""
