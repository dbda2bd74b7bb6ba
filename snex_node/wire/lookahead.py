"""Signals in bytes that have come, and that nobody has taken yet.

Whoever is to take them may be kept from it for a long time, by code for which nobody waits any
more: that its caller has given up is among those bytes. So they are looked through, frame by frame,
for what says so, and for nothing else; they are taken in their order later on.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from snex_node.wire import control
from snex_node.wire.control import (
    ControlError,
    ControlMessage,
    DemonitorP,
    Exit,
    MonitorPExit,
    PayloadExit,
    PayloadMonitorPExit,
)
from snex_node.wire.etf import DecodeError

MAX_HEAD: Final = 4096
"""Bytes of a frame that are looked at. Three names of 255 characters, in UTF-8, and all else that a
control message has take less; only the reason of an EXIT of the old form may take more."""

SIGNALS: Final = (DemonitorP, MonitorPExit, PayloadMonitorPExit, Exit, PayloadExit)
"""What says that a process waits no more, or has ended."""

# And those with a token.
_OPCODES: Final = frozenset(bytes((each,)) for each in (*(k.opcode for k in SIGNALS), 13, 25))

_u32 = Struct(">I").unpack_from


class Lookahead:
    """Finds `SIGNALS` in the bytes from some place in a stream on.

    ``begun`` are the bytes before that of the frame that it is in, where they are few, and ``skip``
    tells how many behind it belong to one that is not to be looked at.

    >>> Lookahead().receive_data(bytes([0, 0, 0, 0, 0]))
    []
    """

    def __init__(self, begun: bytes = b"", skip: int = 0) -> None:
        self._begun = begun
        self._skip = skip

    def receive_data(self, data: bytes) -> list[ControlMessage]:
        """Take bytes; returns the signals of which enough has come with them. Never raises."""
        found: list[ControlMessage] = []
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        data = self._begun + data[skipped:]
        position, size = 0, len(data)
        while size - position >= 4:
            (length,) = _u32(data, position)
            head = position + 4 + min(length, MAX_HEAD)
            if head > size:
                break
            signal = _signal_in(data[position + 4 : head])
            if signal is not None:
                found.append(signal)
            position += 4 + length
        self._skip += max(0, position - size)
        self._begun = data[position:]
        return found


def _signal_in(frame: bytes) -> ControlMessage | None:
    """The signal in a frame of which this is the beginning."""
    if frame.startswith(b"\x83D\x00"):
        start = 3
    elif frame.startswith(b"p\x83"):
        start = 2
    elif frame.startswith(b"\x83E") and frame[18:19] == b"\x00":
        start = 19
    else:
        return None
    if frame[start : start + 1] != b"h" or frame[start + 2 : start + 3] != b"a":
        return None
    if frame[start + 3 : start + 4] not in _OPCODES:
        return None
    try:
        return control.decode(frame, start)[0]
    except (ControlError, DecodeError):
        return None  # whoever takes it finds that out


__all__ = ["MAX_HEAD", "SIGNALS", "Lookahead"]
