"""Python code that is in C for ever, where no signal handler runs, and takes no processor time.

It waits for a mutex that it has itself: on Linux one of zeros is free, and no signal ends the wait.
"""

from __future__ import annotations

from typing import Final

_DEADLOCK: Final = """\
import ctypes
mutex = ctypes.create_string_buffer(256)
lock = ctypes.{}(None).pthread_mutex_lock
lock(mutex)
lock(mutex)
"""

KEEPS_THE_LOCK: Final = _DEADLOCK.format("PyDLL")
"""No other thread runs meanwhile, as with a long computation in C."""

RELEASES_THE_LOCK: Final = _DEADLOCK.format("CDLL")
"""The interpreter's lock; other threads run."""
