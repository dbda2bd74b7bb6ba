"""What a front and its workers say to each other: bytes in, bytes out.

The front sends requests on as they came, behind a head that it puts there::

    {'$snex', Sequence, ByFront, Node, Message}

``Message`` is what a caller on ``Node`` sent, ``{'$gen_call', From, Request}`` most often. With
``ByFront`` the answer goes to the front instead of the caller. A worker tells what became of it::

    {'$snex_note', Kind, Sequence, Environments, Answer}

where ``Environments`` is how many it has, and ``Answer`` is empty but for an answer by the front.
"""

from __future__ import annotations

import enum
import mmap
from struct import Struct
from struct import error as StructError  # noqa: N812 - its own name says too little
from typing import Final, NamedTuple

from snex_node.wire.etf import DecodeError

__all__ = ["Forward", "Ledger", "Note", "NoteKind", "Verdict"]

_FORWARD: Final = b"h\x05w\x05$snexn\x08\x00"
_NOTE: Final = b"h\x05w\x0a$snex_notea"
_sequence: Final = Struct("<Q")
_note: Final = Struct(">B3sQ5s")
_environments: Final = Struct(">i")
_NOTHING: Final = b"j"
_BIG: Final = b"n\x08\x00"


class NoteKind(enum.IntEnum):
    """What a worker tells of a request."""

    DONE = 0
    """It is done, and whoever waited for it has the answer."""

    ANSWERED = 1
    """It is done, and this is the answer, for the front to hand on."""

    WAITS = 2
    """It awaits something: another one can run meanwhile."""

    STARTED = 3
    """It was asked for back, and has been started already."""

    RECALLED = 4
    """It was asked for back, and is never started here."""


class Forward(NamedTuple):
    """The head of a request that the front sends on; the message begins at ``at``."""

    sequence: int
    by_front: bool
    node: str
    at: int

    @staticmethod
    def head(sequence: int, by_front: bool, node: bytes) -> bytes:
        """What to put before the message; ``node`` is the name of the caller's as an atom."""
        flag = b"a\x01" if by_front else b"a\x00"
        return _FORWARD + _sequence.pack(sequence) + flag + node

    @classmethod
    def read(cls, data: bytes, offset: int) -> Forward | None:
        """Read a head at ``offset``; None where there is none. Raises `DecodeError`."""
        if not data.startswith(_FORWARD, offset):
            return None
        at = offset + len(_FORWARD)
        try:
            (sequence,) = _sequence.unpack_from(data, at)
            start = at + 12
            end = start + data[start - 1]
            if data[start - 2] != _ATOM or end > len(data):
                raise DecodeError("a forwarded request without the name of a node", start - 2)
            return cls(sequence, data[at + 9] == 1, data[start:end].decode(), end)
        except (StructError, IndexError, UnicodeDecodeError):
            raise DecodeError("the head of a forwarded request is cut off", offset) from None


_ATOM: Final = 119


class Note(NamedTuple):
    """What a worker tells of a request, and how many environments it has; ``at`` is the answer."""

    kind: int
    sequence: int
    environments: int
    at: int

    @staticmethod
    def write(kind: NoteKind, sequence: int, environments: int, answer: bytes = _NOTHING) -> bytes:
        """The whole note, as a bare term."""
        numbers = _BIG + _sequence.pack(sequence) + b"b" + _environments.pack(environments)
        return _NOTE + bytes((kind,)) + numbers + answer

    @classmethod
    def read(cls, data: bytes, offset: int) -> Note | None:
        """Read a note at ``offset``; None where there is none. Raises `DecodeError`."""
        if not data.startswith(_NOTE, offset):
            return None
        at = offset + len(_NOTE)
        try:
            (sequence,) = _sequence.unpack_from(data, at + 4)
            (environments,) = _environments.unpack_from(data, at + 13)
            return cls(data[at], sequence, environments, at + 17)
        except (StructError, IndexError):
            raise DecodeError("a worker's note is cut off", offset) from None


# --- what outlives a worker ---------------------------------------------------------------------


class Verdict(enum.IntEnum):
    """Why the watcher of a worker has killed it."""

    NONE = 0
    OVERTIME = 1
    """A request had gone beyond its ``kill_after``."""

    MEMORY = 2
    """The process had more memory than it may have."""


class Ledger:
    """A page of memory that a front, a worker and the worker's watcher share.

    What is written there is known when the worker is dead: ``started``, the last request that it
    began, and the ``verdict`` of the watcher, with the ``culprit``, the request that it is about.
    """

    SIZE: Final = mmap.PAGESIZE
    """Bytes of the file that is given as a descriptor."""

    def __init__(self, number: int) -> None:
        self._map = mmap.mmap(number, self.SIZE)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Give the memory back."""
        self._words.release()
        self._map.close()

    @property
    def started(self) -> int:
        """The last request that was begun; 0: none was."""
        return self._words[0]

    def start(self, sequence: int) -> None:
        """Note that a request begins."""
        self._words[0] = sequence

    @property
    def verdict(self) -> tuple[Verdict, int]:
        """Why the worker was killed, and because of which request (0: of none of the front's)."""
        return Verdict(self._words[1]), self._words[2]

    def judge(self, verdict: Verdict, culprit: int) -> None:
        """Note why the worker is killed."""
        self._words[2] = culprit
        self._words[1] = verdict
