"""Standard input, output and errors that are there."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Open what is closed of the descriptors 0 to 2 on the null device.

    Else a socket would get the number, and the first program or library that writes to "standard
    error" would write to it; libuv aborts.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def flush_output() -> None:
    """Write what has been printed. A reader that has gone wants no more: that is no failure."""
    if sys.stdout is not None and not sys.stdout.closed:
        try:
            sys.stdout.flush()
        except OSError:
            discard(sys.stdout)


def discard(stream: TextIO) -> None:
    """Have what is written from now on, and what waits already, go nowhere."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nothing, stream.fileno())
    os.close(nothing)
