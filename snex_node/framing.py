"""Frames of the connected phase: bytes in, messages out, and back.

Source: "Distribution Header" and "Protocol between Connected Nodes" in the ERTS user's guide.
A frame is a 32-bit length and that many bytes; length 0 is a tick. What is in a frame depends on
the flags both sides claim:

* with FRAGMENTS or DIST_HDR_ATOM_CACHE every frame carries a distribution header: ``131 68`` for
  a whole message, ``131 69`` for the first fragment of one, ``131 70`` for the others;
* without them frames are ``112``, then control message and payload, each with its version byte.

We claim FRAGMENTS and not the atom cache, so the headers we read and write name no atoms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from snex_node import control
from snex_node.control import ControlError, ControlMessage
from snex_node.etf import DecodeError
from snex_node.flags import Flag

MAX_FRAME = 128 * 1024 * 1024
"""Default for the longest frame accepted, in bytes; a longer one closes the connection.

A frame is held whole before it is decoded, so this is what one length field can make us wait for
and keep. BEAM cuts messages into fragments of 64 KiB; only peers without fragments need more."""

MAX_MESSAGE = 1024 * 1024 * 1024
"""Default for all unfinished fragmented messages of one connection together, in bytes."""

MAX_SEQUENCES = 16_384
"""Fragmented messages that may be unfinished at one time on one connection.

BEAM has one per sending process. An entry with an empty fragment takes about 1 KiB, so that
this many hold 16 MiB."""

FRAGMENT_SIZE = 64 * 1024
"""Payload bytes in one fragment, as BEAM cuts them."""

TICK = b"\0\0\0\0"

_LENGTH = Struct(">I")
_FRAGMENT = Struct(">QQ")
_FRAGMENT_FRAME = Struct(">I2sQQ")
_VERSION = 131
_NORMAL, _FIRST, _NEXT = 68, 69, 70
_PASS_THROUGH = 112


class FramingError(ValueError):
    """The peer sent what is no frame; the stream cannot be followed any further."""


class Message(NamedTuple):
    """One control message; its payload, a bare term, begins at ``data[offset]``.

    ``offset == len(data)`` when there is none.
    """

    control: ControlMessage
    data: bytes
    offset: int


class Skipped(NamedTuple):
    """A whole frame whose control message we do not know; it has been passed over."""

    reason: str


class _Sequence:
    """A fragmented message under way."""

    __slots__ = ("control", "next", "parts", "size")

    def __init__(self, message: ControlMessage, following: int, part: memoryview) -> None:
        self.control = message
        self.next = following
        self.parts = [part]
        self.size = len(part)


class FrameReader:
    """Takes bytes as they come and gives messages.

    After a `FramingError` it stays failed: later bytes are discarded, the error stays in
    ``failure``. ``frames`` and ``ticks`` count what came in.
    """

    def __init__(
        self,
        flags: int,
        *,
        max_frame: int = MAX_FRAME,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.failure: FramingError | None = None
        self.frames = 0
        self.ticks = 0
        self._headers = bool(flags & (Flag.FRAGMENTS | Flag.DIST_HDR_ATOM_CACHE))
        self._max_frame = max_frame
        self._max_message = max_message
        # Bytes of an unfinished frame: appended as they come and joined once, when it is whole,
        # so that a frame of n reads costs n appends and one copy, not n copies.
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 4
        self._sequences: dict[int, _Sequence] = {}
        self._held = 0

    @property
    def unfinished(self) -> int:
        """Bytes held for frames and fragmented messages that are not complete."""
        return self._have + self._held

    def receive_data(self, data: bytes) -> list[Message | Skipped]:
        """Take bytes; returns the messages that are complete with them.

        Messages that came before a broken frame are returned; the failure is then in ``failure``.
        """
        if self.failure is not None:
            return []
        if self._chunks:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._have = 0
        messages: list[Message | Skipped] = []
        try:
            self._split(data, messages)
        except FramingError as error:
            self.failure = error
            self._sequences.clear()
            self._held = 0
        return messages

    def _split(self, data: bytes, messages: list[Message | Skipped]) -> None:
        position, size = 0, len(data)
        while size - position >= 4:
            (length,) = _LENGTH.unpack_from(data, position)
            if not length:
                self.ticks += 1
                position += 4
                continue
            if length > self._max_frame:
                raise FramingError(
                    f"a frame of {length} bytes; at most {self._max_frame} are accepted"
                )
            end = position + 4 + length
            if end > size:
                self._keep(data, position, 4 + length)
                return
            self.frames += 1
            message = self._read_frame(data, position + 4, end)
            if message is not None:
                messages.append(message)
            position = end
        if position < size:
            self._keep(data, position, 4)

    def _keep(self, data: bytes, position: int, need: int) -> None:
        rest = data[position:] if position else data
        self._chunks.append(rest)
        self._have = len(rest)
        self._need = need

    def _read_frame(self, data: bytes, start: int, end: int) -> Message | Skipped | None:
        if not self._headers:
            return self._read_pass_through(data[start:end])
        kind = data[start + 1] if end - start >= 2 and data[start] == _VERSION else 0
        if kind == _NORMAL:
            if end - start < 3 or data[start + 2]:
                raise FramingError("a distribution header that names cached atoms, not agreed on")
            return self._read_message(data[start + 3 : end])
        if kind == _FIRST:
            return self._read_first(data, start + 2, end)
        if kind == _NEXT:
            return self._read_next(data, start + 2, end)
        raise FramingError(
            f"a frame that begins with {data[start : start + 4].hex(' ')}, "
            "which is no distribution header"
        )

    def _read_pass_through(self, frame: bytes) -> Message | Skipped:
        if len(frame) < 3 or frame[0] != _PASS_THROUGH or frame[1] != _VERSION:
            raise FramingError(
                f"a frame that begins with {frame[:4].hex(' ')}, not with the pass-through byte 112"
            )
        found = self._read_message(frame, 2)
        if isinstance(found, Skipped) or found.offset == len(frame):
            return found
        if frame[found.offset] != _VERSION:
            raise FramingError("a payload without its version byte")
        return Message(found.control, frame, found.offset + 1)

    def _read_message(self, data: bytes, offset: int = 0) -> Message | Skipped:
        try:
            message, end = control.decode(data, offset)
        except ControlError as error:
            return Skipped(str(error))
        except DecodeError as error:
            raise FramingError(f"a control message that cannot be decoded: {error}") from error
        return Message(message, data, end)

    def _read_first(self, data: bytes, start: int, end: int) -> Message | Skipped | None:
        if end - start < 17 or data[start + 16]:
            raise FramingError("a first fragment with a header that is cut off or names atoms")
        sequence, number = _FRAGMENT.unpack_from(data, start)
        if not number or sequence in self._sequences:
            raise FramingError(f"fragment {number} begins sequence {sequence:#x} out of turn")
        found = self._read_message(data[start + 17 : end])
        if isinstance(found, Skipped):
            if number > 1:
                raise FramingError(f"fragments of {found.reason}")
            return found
        if number == 1:
            return found
        if len(self._sequences) >= MAX_SEQUENCES:
            raise FramingError(f"more than {MAX_SEQUENCES} fragmented messages at one time")
        part = memoryview(found.data)[found.offset :]
        self._hold(len(part))
        self._sequences[sequence] = _Sequence(found.control, number - 1, part)
        return None

    def _read_next(self, data: bytes, start: int, end: int) -> Message | None:
        if end - start < 16:
            raise FramingError("a fragment with a header that is cut off")
        number_of, number = _FRAGMENT.unpack_from(data, start)
        sequence = self._sequences.get(number_of)
        if sequence is None or number != sequence.next:
            raise FramingError(f"fragment {number} of sequence {number_of:#x} out of turn")
        # A view keeps its whole read alive. Reads hold little else while a large message comes in,
        # and a small fragment is copied, so that it does not hold a read of 256 KiB.
        part = memoryview(data)[start + 16 : end]
        if len(part) < FRAGMENT_SIZE // 2:
            part = memoryview(bytes(part))
        self._hold(len(part))
        sequence.parts.append(part)
        sequence.size += len(part)
        sequence.next -= 1
        if sequence.next:
            return None
        del self._sequences[number_of]
        self._held -= sequence.size
        return Message(sequence.control, b"".join(sequence.parts), 0)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._max_message:
            raise FramingError(
                f"fragmented messages of more than {self._max_message} bytes together"
            )


class FrameWriter:
    """Turns messages into frames, in the form that the common ``flags`` ask for."""

    def __init__(self, flags: int) -> None:
        self._fragments = bool(flags & Flag.FRAGMENTS)
        headers = self._fragments or bool(flags & Flag.DIST_HDR_ATOM_CACHE)
        self._before = b"\x83D\x00" if headers else b"p\x83"
        self._between = b"" if headers else b"\x83"
        self._sequence = 0

    def frame(self, message: bytes, payload: bytes = b"") -> bytes:
        """One frame of a control message and, unless it is empty, a payload (bare terms)."""
        if payload:
            payload = self._between + payload
        size = len(self._before) + len(message) + len(payload)
        if size > 0xFFFFFFFF:
            raise FramingError(f"a message of {size} bytes does not fit a frame: 4 GiB at most")
        return _LENGTH.pack(size) + self._before + message + payload

    def needs_fragments(self, payload: bytes) -> bool:
        """Whether a message with this payload has to be cut by `fragments`."""
        return self._fragments and len(payload) > FRAGMENT_SIZE

    def fragments(self, message: bytes, payload: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """The frames of a message with a large payload, each as its head and its part.

        The parts are views of ``payload``: nothing is copied.
        """
        self._sequence += 1
        sequence = self._sequence
        view = memoryview(payload)
        number = -(-len(view) // FRAGMENT_SIZE)
        first = b"\x00" + message
        for start in range(0, len(view), FRAGMENT_SIZE):
            part = view[start : start + FRAGMENT_SIZE]
            if start == 0:
                size = 18 + len(first) + len(part)
                yield _FRAGMENT_FRAME.pack(size, b"\x83E", sequence, number) + first, part
            else:
                yield _FRAGMENT_FRAME.pack(18 + len(part), b"\x83F", sequence, number), part
            number -= 1


class SendQueue:
    """What waits to be written on one connection, in the order in which it may be written.

    Small messages go in order. A large one goes in fragments, and while it is under way other
    senders' messages pass between its fragments; what the *same* sender sends later waits behind
    it, because signals between two processes stay in order.

    ``size`` is the number of bytes that wait.
    """

    def __init__(self, writer: FrameWriter) -> None:
        self.size = 0
        self._writer = writer
        self._ready: deque[bytes | memoryview] = deque()
        # Senders with a fragmented message under way, in the order of their turns.
        self._turns: deque[object] = deque()
        self._waiting: dict[object, deque[bytes | Iterator[tuple[bytes, memoryview]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._ready or self._turns)

    def add(self, sender: object, message: bytes, payload: bytes = b"") -> None:
        """Queue one message; ``sender`` is any hashable key, the same for the same process."""
        if self._writer.needs_fragments(payload):
            self.size += len(message) + len(payload)
            waiting = self._waiting.get(sender)
            if waiting is None:
                self._waiting[sender] = waiting = deque()
                self._turns.append(sender)
            waiting.append(self._writer.fragments(message, payload))
        else:
            self.add_frame(sender, self._writer.frame(message, payload))

    def add_frame(self, sender: object, frame: bytes) -> None:
        """Queue one frame that is whole already."""
        self.size += len(frame)
        waiting = self._waiting.get(sender) if self._waiting else None
        if waiting is None:
            self._ready.append(frame)
        else:
            waiting.append(frame)

    def put_back(self, buffers: list[bytes | memoryview], sent: int) -> bool:
        """Put back what a write of ``buffers`` did not take; True when it took all."""
        for index, buffer in enumerate(buffers):
            if sent < len(buffer):
                rest: list[bytes | memoryview] = [memoryview(buffer)[sent:], *buffers[index + 1 :]]
                self._ready.extendleft(reversed(rest))
                self.size += sum(map(len, rest))
                return False
            sent -= len(buffer)
        return True

    def take(self, most: int) -> list[bytes | memoryview]:
        """Take buffers to write next, of about ``most`` bytes, at least one if there are any."""
        buffers: list[bytes | memoryview] = []
        taken = 0
        ready = self._ready
        while taken < most and len(buffers) < 512:
            if not ready and not self._fill():
                break
            buffer = ready.popleft()
            taken += len(buffer)
            buffers.append(buffer)
        self.size = max(0, self.size - taken) if self else 0
        return buffers

    def _fill(self) -> bool:
        """Move the next fragment, of the sender whose turn it is, to what is ready."""
        while self._turns:
            sender = self._turns[0]
            waiting = self._waiting[sender]
            if not waiting:
                self._turns.popleft()
                del self._waiting[sender]
                continue
            first = waiting[0]
            if isinstance(first, bytes):
                self._ready.append(first)
                waiting.popleft()
                return True
            fragment = next(first, None)
            if fragment is None:
                waiting.popleft()
                continue
            self._ready.extend(fragment)
            self._turns.rotate(-1)
            return True
        return False


__all__ = [
    "FRAGMENT_SIZE",
    "MAX_FRAME",
    "MAX_MESSAGE",
    "MAX_SEQUENCES",
    "TICK",
    "FrameReader",
    "FrameWriter",
    "FramingError",
    "Message",
    "SendQueue",
    "Skipped",
]
