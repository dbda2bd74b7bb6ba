"""Bytes in several pieces that are never put together: a message with much in it is sent as it is.

To put 64 MB together takes as long as to send them, most of it for memory that is new to the
process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

__all__ = ["LARGE", "Payload", "Pieces"]

LARGE: Final = 256 * 1024
"""Bytes of a part from which on it is kept apart."""

_COPIED: Final = 1024 * 1024  # at a time; the memory of so much is used again


class Pieces:
    """What the parts make when joined, which happens only where somebody adds it to bytes.

    >>> pieces = Pieces([b"a", b"b", bytes(LARGE)])
    >>> len(pieces), [len(part) for part in pieces.parts], (b"_" + pieces)[:4]
    (262146, [2, 262144], b'_ab\\x00')
    """

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self.parts: Final = _apart(parts)
        self._size = sum(map(len, self.parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __radd__(self, before: bytes) -> bytes:
        return b"".join((before, *self.parts))


def _apart(parts: Iterable[bytes | memoryview]) -> list[bytes]:
    """Small parts joined, large ones as they are; copied where somebody may write to them."""
    found: list[bytes] = []
    small: list[bytes | memoryview] = []
    for part in parts:
        if len(part) < LARGE:
            small.append(part)
            continue
        if small:
            found.append(b"".join(small))
            small = []
        if isinstance(part, memoryview):
            found += [bytes(part[at : at + _COPIED]) for at in range(0, len(part), _COPIED)]
        else:
            found.append(part)
    if small:
        found.append(b"".join(small))
    return found


Payload: TypeAlias = bytes | Pieces
"""What a message brings: one term, in external form."""
