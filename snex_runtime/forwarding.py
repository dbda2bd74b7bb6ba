"""What a front and a worker have between them: a line of frames, and a page of shared memory.

On the line requests go to the worker as they came, behind a head, and notes come back. What can be
said without a message is in the page, the `Ledger`: which request has begun, what became of it,
and whether those that have not begun are to be. So a call costs the front nothing when it is over,
and what a worker did is known exactly when it is dead.
"""

from __future__ import annotations

import asyncio
import enum
import mmap
import socket
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from snex_node.system import forks

__all__ = ["Frame", "Ledger", "Line", "Note", "Request", "Status", "Verdict"]

_READ: Final = 256 * 1024
_LENGTH: Final = Struct("<I")
_request: Final = Struct("<IQBB")
_note: Final = Struct("<IBQI")

Frame = bytes
"""One frame, with its length, which takes four bytes."""


class Request(NamedTuple):
    """A request on its way to a worker; the message begins at ``data[at]``.

    With ``by_front`` the answer is for the front, else for the caller on ``node``.
    """

    sequence: int
    by_front: bool
    node: bytes
    data: Frame
    at: int

    @staticmethod
    def head(sequence: int, by_front: bool, node: bytes, size: int) -> bytes:
        """What comes before a message of ``size`` bytes."""
        length = _request.size - _LENGTH.size + len(node) + size
        return _request.pack(length, sequence, by_front, len(node)) + node

    @classmethod
    def read(cls, frame: Frame) -> Request:
        """Take a frame apart."""
        _, sequence, by_front, size = _request.unpack_from(frame)
        end = _request.size + size
        return cls(sequence, bool(by_front), frame[_request.size : end], frame, end)


class NoteKind(enum.IntEnum):
    """What a worker says."""

    WAKE = 0
    """It has done something since, and the front wanted to know."""

    DONE = 1
    """A request that awaited something is done, and its caller has the answer."""

    ANSWERED = 2
    """The same, and this is the answer, for the front to hand on."""


class Note(NamedTuple):
    """What a worker says of a request, and how many environments it has."""

    kind: int
    sequence: int
    environments: int
    answer: bytes

    @staticmethod
    def write(kind: NoteKind, sequence: int, environments: int, answer: bytes = b"") -> Frame:
        """The whole frame."""
        length = _note.size - _LENGTH.size + len(answer)
        return _note.pack(length, kind, sequence, environments) + answer

    @classmethod
    def read(cls, frame: Frame) -> Note:
        """Take a frame apart."""
        _, kind, sequence, environments = _note.unpack_from(frame)
        return cls(kind, sequence, environments, frame[_note.size :])


# --- the line -----------------------------------------------------------------------------------


class Line:
    """One end of it, on the event loop. ``received`` is called with the frames of each read,
    ``closed`` when the other end has closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[list[Frame]], None],
        closed: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        forks.keep_from_children(sock)
        self._sock = sock
        self._received = received
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._need = 0
        self._unwritten: list[bytes | memoryview] = []
        self._reading = False
        self.resume()

    # --- reading --------------------------------------------------------------------------------

    def resume(self) -> None:
        """Read on."""
        if not self._reading and self._sock.fileno() >= 0:
            self._reading = True
            self._loop.add_reader(self._sock, self._on_readable)

    def pause(self) -> None:
        """Read nothing until `resume`."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _on_readable(self) -> None:
        if not self._read():
            self.close()
            self._closed()

    def _read(self) -> bool:
        """Read once; False at the end."""
        try:
            data = self._sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        frames = self._split(data)
        if frames:
            self._received(frames)
        return bool(data)

    def drain(self) -> None:
        """Take what has come already, up to the end."""
        while self._sock.fileno() >= 0:
            try:
                data = self._sock.recv(_READ)
            except OSError:
                return
            if not data:
                return
            frames = self._split(data)
            if frames:
                self._received(frames)

    def _split(self, data: bytes) -> list[Frame]:
        """The frames that are complete with ``data``."""
        if self._unread:
            self._unread += data
            if len(self._unread) < self._need:
                return []
            data = bytes(self._unread)
            self._unread.clear()
        frames = []
        position, size = 0, len(data)
        while size - position >= _LENGTH.size:
            end = position + _LENGTH.size + _LENGTH.unpack_from(data, position)[0]
            if end > size:
                break
            frames.append(data[position:end])
            position = end
        if position < size:
            self._unread += data[position:]
            left = size - position
            known = left >= _LENGTH.size
            self._need = _LENGTH.size + (_LENGTH.unpack_from(data, position)[0] if known else 0)
        return frames

    # --- writing --------------------------------------------------------------------------------

    def send(self, *parts: bytes) -> None:
        """Write a frame, given in parts; what there is no room for is written later."""
        if self._unwritten:
            self._unwritten += parts
            return
        one = len(parts) == 1
        try:
            sent = self._sock.send(parts[0]) if one else self._sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # the other process has ended: its end is noticed by whoever waits for it
        if sent < (len(parts[0]) if one else sum(map(len, parts))):
            self._keep(parts, sent)
            self._loop.add_writer(self._sock, self._on_writable)

    def _keep(self, parts: tuple[bytes | memoryview, ...], sent: int) -> None:
        for part in parts:
            if sent < len(part):
                self._unwritten.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def _on_writable(self) -> None:
        parts, self._unwritten = self._unwritten[:_PARTS], self._unwritten[_PARTS:]
        try:
            sent = self._sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._unwritten.clear()
            self._loop.remove_writer(self._sock)
            return
        rest, self._unwritten = self._unwritten, []
        self._keep(tuple(parts), sent)
        self._unwritten += rest
        if not self._unwritten:
            self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Close this end; again: nothing."""
        if self._sock.fileno() >= 0:
            self.pause()
            self._loop.remove_writer(self._sock)
            self._sock.close()


_PARTS: Final = 256


# --- the page -----------------------------------------------------------------------------------


class Status(enum.IntEnum):
    """What became of a request."""

    UNKNOWN = 0
    DONE = 1
    WAITS = 2
    """It awaits something, or its answer is on the line: a note comes."""

    REVOKED = 3
    """It was revoked, and has never begun."""


class Verdict(enum.IntEnum):
    """Why the watcher of a worker has killed it."""

    NONE = 0
    OVERTIME = 1
    """A request had gone beyond its ``kill_after``."""

    MEMORY = 2
    """The process had more memory than it may have."""


class Ledger:
    """A page of memory that a front, a worker and the worker's watcher share.

    Requests are numbered from 1 on and begin in that order. Each word has one writer. To revoke
    requests the front writes, waits for `SETTLED`, and reads ``started``; the worker writes that
    and then reads what is revoked. So either the front sees that a request has begun, or the
    worker that it must not begin it, or both; and then the worker says that it has not.
    """

    SIZE: Final = mmap.PAGESIZE
    """Bytes of the file that is given as a descriptor."""

    RING: Final = 1024
    """Requests of which the status is kept."""

    SETTLED: Final = 0.002
    """Seconds after which what one processor wrote is seen by all others, many times over."""

    def __init__(self, number: int) -> None:
        self._map = mmap.mmap(number, self.SIZE)
        page = memoryview(self._map)
        self._words = page[: 8 * _WORDS].cast("Q")
        self._statuses = page[8 * _WORDS : 8 * _WORDS + self.RING]
        self._page = page

    def close(self) -> None:
        """Give the memory back."""
        for view in (self._words, self._statuses, self._page):
            view.release()
        self._map.close()

    # --- written by the worker ------------------------------------------------------------------

    @property
    def started(self) -> int:
        """The last request that was begun; 0: none was."""
        return self._words[_STARTED]

    def start(self, sequence: int) -> bool:
        """Begin a request; False when it was revoked."""
        words = self._words
        words[_STARTED] = sequence
        return sequence > words[_REVOKED]

    def status(self, sequence: int) -> int:
        """What became of a request, a `Status`."""
        return self._statuses[sequence % self.RING]

    def set_status(self, sequence: int, status: int) -> None:
        """Note what became of a request; the front makes it `Status.UNKNOWN` to begin with."""
        self._statuses[sequence % self.RING] = status

    @property
    def pace(self) -> int:
        """Microseconds that requests take, the last ones above all."""
        return self._words[_PACE]

    @pace.setter
    def pace(self, microseconds: int) -> None:
        self._words[_PACE] = microseconds

    # --- written by the front -------------------------------------------------------------------

    def revoke(self, sequence: int) -> None:
        """No request up to this one is begun any more."""
        self._words[_REVOKED] = sequence

    @property
    def wanted(self) -> bool:
        """Whether the front wants to be woken when something is done."""
        return bool(self._words[_WANTED])

    @wanted.setter
    def wanted(self, value: bool) -> None:
        self._words[_WANTED] = value

    # --- written by the watcher -----------------------------------------------------------------

    @property
    def verdict(self) -> tuple[Verdict, int]:
        """Why the worker was killed, and because of which request (0: of none of the front's)."""
        return Verdict(self._words[_VERDICT]), self._words[_CULPRIT]

    def judge(self, verdict: Verdict, culprit: int) -> None:
        """Note why the worker is killed."""
        self._words[_CULPRIT] = culprit
        self._words[_VERDICT] = verdict


_STARTED, _REVOKED, _PACE, _WANTED, _VERDICT, _CULPRIT = range(6)
_WORDS: Final = 8
