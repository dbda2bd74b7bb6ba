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
from collections.abc import Sequence
from io import BytesIO
from struct import Struct
from typing import NamedTuple

from snex_node.wire import control
from snex_node.wire.control import ControlError, ControlMessage
from snex_node.wire.etf import DecodeError
from snex_node.wire.flags import Flag
from snex_node.wire.pieces import Payload, Pieces

MAX_FRAME = 128 * 1024 * 1024
"""Default for the longest frame accepted, in bytes; a longer one closes the connection.

A frame is held whole before it is decoded, so this is what one length field can make us wait for
and keep. BEAM cuts messages into fragments of 64 KiB; only peers without fragments need more."""

MAX_MESSAGE = 1024 * 1024 * 1024
"""Default for all unfinished fragmented messages of one connection together, in bytes.

Counted are the bytes of their fragments and what keeping each costs. Fragments are kept as views of
the reads they came with, and copied when these make up more than twice as much; so a peer that
sends little else can make us hold three times this, and one that means well about once."""

MAX_SEQUENCES = 16_384
"""Fragmented messages that may be unfinished at one time on one connection.

BEAM has one per sending process. Each counts as 1 KiB besides its bytes, so this many take 16 MiB
before any of them has a payload."""

FRAGMENT_SIZE = 64 * 1024
"""Payload bytes in one fragment, as BEAM cuts them."""

TICK = b"\0\0\0\0"

LARGE = 1024 * 1024
"""What a message in fragments adds to `SendQueue.pressure`, at most, in bytes."""

_SEQUENCE_COST = 1024
_PART_COST = 64
"""Of a part of a few bytes: its object (33 bytes and they), its place in a list that doubles."""

_PINNED_SLACK = 4 * 1024 * 1024
"""Reads kept alive beyond what is counted, before fragments are copied out of them."""

ALIGNMENT = 16
"""Bytes of which the beginning of a large binary is a multiple, where the memory of a ``bytes``
is; it is on CPython."""

_HEADER_MOST = 64
"""Bytes before a control message that may stay with it: its header and the length of the frame."""

_GATHER = 4 * 1024
"""Reads below this are gathered: 1-byte reads of a frame of 128 MiB would take 1 GiB as a list."""

_VERY_LARGE = 512
"""Fragments from which on they are put together as they come: 32 MiB, see `system.memory.KEPT`."""

_MAX_BUFFERS = 512
"""Buffers written at one time; systems take 1,024."""

_LENGTH = Struct(">I")
_FRAGMENT = Struct(">QQ")
_FRAGMENT_FRAME = Struct(">I2sQQ")
_BINARY = b"m"
_VERSION = 131
_NORMAL, _FIRST, _NEXT = 68, 69, 70
_WHOLE = bytes((_VERSION, _NORMAL, 0))
"""The header of nearly all frames: a whole message, no cached atoms."""

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

    __slots__ = ("control", "cost", "next", "pad", "parts", "whole")

    def __init__(self, message: ControlMessage, following: int) -> None:
        self.control = message
        self.next = following
        self.cost = 0
        self.parts: list[bytes | memoryview] = []
        # Of what is very large all that has come, behind so many bytes: the memory of objects of
        # this size is new each time, and that of the reads is used again.
        self.whole: BytesIO | None = BytesIO() if following >= _VERY_LARGE else None
        self.pad = 0

    def add(self, part: bytes | memoryview) -> None:
        """This comes next."""
        whole = self.whole
        if whole is None:
            self.parts.append(part)
            return
        if not whole.tell():
            self.pad = -_begin_of_most(bytes(part), (self.next + 1) * FRAGMENT_SIZE) % ALIGNMENT
            whole.write(bytes(self.pad))
        whole.write(part)

    def joined(self) -> tuple[bytes, int]:
        """All of it, and where it begins in that."""
        if self.whole is None:
            return _joined(self.parts)
        return self.whole.getvalue(), self.pad  # which copies nothing, as nobody else has it


class FrameReader:
    """Takes bytes as they come and gives messages.

    After a `FramingError` it stays failed: later bytes are discarded, the error stays in
    ``failure``. ``frames`` and ``ticks`` count what came in.

    >>> reader = FrameReader(Flag.FRAGMENTS)
    >>> reader.receive_data(TICK + bytes([0, 0, 0, 9, 131])), reader.ticks, reader.unfinished
    ([], 1, 5)
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
        self.unfinished = 0
        """Bytes held for frames and fragmented messages that are not complete."""
        self._headers = bool(flags & (Flag.FRAGMENTS | Flag.DIST_HDR_ATOM_CACHE))
        self._max_frame = max_frame
        self._max_message = max_message
        # An unfinished frame, with its length: kept as it comes and joined once, when it is whole,
        # so that a frame of n reads costs one copy, not n.
        self._chunks: list[bytes | bytearray] = []
        self._have = 0
        self._need = 0
        self._sequences: dict[int, _Sequence] = {}
        self._held = 0
        # Reads that parts of sequences keep alive, and the latest of them.
        self._pinned = 0
        self._last_pinned: bytes | None = None

    def begun(self, most: int) -> tuple[bytes, int]:
        """The bytes that have come of a frame that is not complete, if they are no more than
        ``most``; else none of them, and how many are still to come.
        """
        if self._have <= most:
            return b"".join(self._chunks), 0
        return b"", self._need - self._have

    def receive_data(self, data: bytes) -> list[Message | Skipped]:
        """Take bytes; returns the messages that are complete with them.

        Messages that came before a broken frame are returned; the failure is then in ``failure``.
        """
        if self.failure is not None:
            return []
        messages: list[Message | Skipped] = []
        try:
            position = self._finish_frame(data, messages) if self._have else 0
            self._split(data, position, messages)
        except FramingError as error:
            self.failure = error
            self._chunks.clear()
            self._have = 0
            self._sequences.clear()
            self._held = 0
            self._unpin()
        self.unfinished = self._have + self._held
        return messages

    def _finish_frame(self, data: bytes, messages: list[Message | Skipped]) -> int:
        """Take what the unfinished frame lacks; returns where the next one begins."""
        position = 0
        while self._have:
            taken = data[position : position + self._need - self._have]
            position += len(taken)
            self._add_chunk(taken)
            if self._have < self._need:
                break
            frame = b"".join(self._chunks)
            self._chunks.clear()
            self._have = 0
            # A whole frame; or its length alone, and then it is kept again, the size known.
            self._split(frame, 0, messages)
        return position

    def _add_chunk(self, chunk: bytes) -> None:
        self._have += len(chunk)
        last = self._chunks[-1]
        if len(chunk) >= _GATHER:
            self._chunks.append(chunk)
        elif isinstance(last, bytearray) and len(last) < FRAGMENT_SIZE:
            last += chunk
        else:
            self._chunks.append(bytearray(chunk))

    def _split(self, data: bytes, position: int, messages: list[Message | Skipped]) -> None:
        size = len(data)
        headers = self._headers
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
                self._keep(data[position:], 4 + length)
                return
            self.frames += 1
            message: Message | Skipped | None
            if headers and length > 2 and data[position + 4 : position + 7] == _WHOLE:
                message = self._read_message(data, position + 7, end)
            else:
                message = self._read_frame(data, position + 4, end)
            if message is not None:
                messages.append(message)
            position = end
        if position < size:
            self._keep(data[position:], 4)

    def _keep(self, begun: bytes, need: int) -> None:
        self._chunks.append(begun)
        self._have = len(begun)
        self._need = need

    def _read_frame(self, data: bytes, start: int, end: int) -> Message | Skipped | None:
        if not self._headers:
            return self._read_pass_through(data, start, end)
        kind = data[start + 1] if end - start >= 2 and data[start] == _VERSION else 0
        if kind == _NORMAL:
            raise FramingError(
                "a distribution header that is cut off or names cached atoms, not agreed on"
            )
        if kind == _FIRST:
            return self._read_first(data, start + 2, end)
        if kind == _NEXT:
            return self._read_next(data, start + 2, end)
        raise FramingError(
            f"a frame that begins with {data[start : min(start + 4, end)].hex(' ')}, "
            "which is no distribution header"
        )

    def _read_pass_through(self, data: bytes, start: int, end: int) -> Message | Skipped:
        if end - start < 3 or data[start] != _PASS_THROUGH or data[start + 1] != _VERSION:
            raise FramingError(
                f"a frame that begins with {data[start : min(start + 4, end)].hex(' ')}, "
                "not with the pass-through byte 112 and a term"
            )
        found = self._read_message(data, start + 2, end)
        if isinstance(found, Skipped) or found.offset == len(found.data):
            return found
        if found.data[found.offset] != _VERSION:
            raise FramingError("a payload without its version byte")
        return Message(found.control, found.data, found.offset + 1)

    def _read_message(self, data: bytes, start: int, end: int) -> Message | Skipped:
        # What is kept of a message must not keep a whole read, unless it is nearly all of that;
        # and then it need not be copied, which counts when it is large.
        if end - start < FRAGMENT_SIZE or end != len(data) or start > _HEADER_MOST:
            data, start = data[start:end], 0
        try:
            message, offset = control.decode(data, start)
        except ControlError as error:
            return Skipped(str(error))
        except DecodeError as error:
            raise FramingError(f"a control message that cannot be decoded: {error}") from error
        return Message(message, data, offset)

    def _read_first(self, data: bytes, start: int, end: int) -> Message | Skipped | None:
        if end - start < 17 or data[start + 16]:
            raise FramingError("a first fragment with a header that is cut off or names atoms")
        key, number = _FRAGMENT.unpack_from(data, start)
        if not number or key in self._sequences:
            raise FramingError(f"fragment {number} begins sequence {key:#x} out of turn")
        found = self._read_message(data, start + 17, end)
        if isinstance(found, Skipped):
            if number > 1:
                raise FramingError(f"fragments of {found.reason}")
            return found
        if number == 1:
            return found
        if len(self._sequences) >= MAX_SEQUENCES:
            raise FramingError(f"more than {MAX_SEQUENCES} fragmented messages at one time")
        sequence = _Sequence(found.control, number - 1)
        self._sequences[key] = sequence
        part = memoryview(found.data)[found.offset :]
        self._hold(sequence, part, len(found.data) + _SEQUENCE_COST)
        return None

    def _read_next(self, data: bytes, start: int, end: int) -> Message | None:
        if end - start < 16:
            raise FramingError("a fragment with a header that is cut off")
        key, number = _FRAGMENT.unpack_from(data, start)
        sequence = self._sequences.get(key)
        if sequence is None or number != sequence.next:
            raise FramingError(f"fragment {number} of sequence {key:#x} out of turn")
        size = end - start - 16
        if size < FRAGMENT_SIZE // 2:
            self._hold(sequence, data[start + 16 : end], size + _PART_COST)
        else:
            if sequence.whole is None:
                self._pin(data)
            self._hold(sequence, memoryview(data)[start + 16 : end], size + _PART_COST)
        sequence.next -= 1
        if sequence.next:
            return None
        del self._sequences[key]
        self._held -= sequence.cost
        if not self._sequences:
            self._unpin()
        return Message(sequence.control, *sequence.joined())

    def _hold(self, sequence: _Sequence, part: bytes | memoryview, cost: int) -> None:
        sequence.add(part)
        sequence.cost += cost
        self._held += cost
        if self._held > self._max_message:
            raise FramingError(
                f"fragmented messages of more than {self._max_message} bytes together"
            )

    def _pin(self, data: bytes) -> None:
        """Count ``data`` as kept alive by a view, and copy the views where that costs too much."""
        if data is self._last_pinned:
            return
        self._pinned += len(data)
        self._last_pinned = data
        if self._pinned > 2 * self._held + _PINNED_SLACK:
            for sequence in self._sequences.values():
                if sequence.whole is None:
                    sequence.parts = [b"".join(sequence.parts)]
            self._pinned = len(data)

    def _unpin(self) -> None:
        self._pinned = 0
        self._last_pinned = None


def _joined(parts: list[bytes | memoryview]) -> tuple[bytes, int]:
    """The payload that the parts make, behind a few bytes, and where it begins.

    A large binary that makes up most of it begins at a multiple of `ALIGNMENT`: who looks at it as
    numbers needs no copy for that.
    """
    total = sum(map(len, parts))
    pad = -_begin_of_most(bytes(parts[0]), total) % ALIGNMENT if total >= LARGE else 0
    if pad:
        parts.insert(0, bytes(pad))
    return b"".join(parts), pad


def _begin_of_most(first: bytes, total: int) -> int:
    """Where a binary begins that has most of the ``total`` bytes after ``first``'s start; or 0."""
    at = first.find(_BINARY)
    while 0 <= at <= len(first) - 5:
        (size,) = _LENGTH.unpack_from(first, at + 1)
        if total // 2 <= size <= total - at - 5:
            return at + 5
        at = first.find(_BINARY, at + 1)
    return 0


class Fragments:
    """The frames of one message with a large payload. Its parts are views: nothing is copied.

    ``left`` is the number of frames to come, ``size`` what all of them take on the wire, in bytes.
    """

    __slots__ = ("_before", "_message", "_payload", "_sequence", "left", "size")

    def __init__(
        self, sequence: int, message: bytes, payload: Payload, before: bytes = b""
    ) -> None:
        length = len(before) + len(payload)
        self.left = -(-length // FRAGMENT_SIZE)
        self.size = self.left * _FRAGMENT_FRAME.size + 1 + len(message) + length
        self._sequence = sequence
        self._message = message
        self._before = before
        pieces = payload.parts if isinstance(payload, Pieces) else [payload]
        self._payload = deque([memoryview(piece) for piece in pieces])

    def take(self) -> list[bytes | memoryview]:
        """The next frame: its head, and what is in it. There must be one left."""
        number = self.left
        self.left -= 1
        parts = self._next(FRAGMENT_SIZE - len(self._before))
        size = _FRAGMENT_FRAME.size - 4 + sum(map(len, parts))
        if not self._message:
            return [_FRAGMENT_FRAME.pack(size, b"\x83F", self._sequence, number), *parts]
        first = b"\0" + self._message + self._before
        self._message = self._before = b""
        head = _FRAGMENT_FRAME.pack(size + len(first), b"\x83E", self._sequence, number)
        return [head + first, *parts]

    def _next(self, size: int) -> list[memoryview]:
        """The next ``size`` bytes of the payload, or what is left of it."""
        payload = self._payload
        parts: list[memoryview] = []
        while size and payload:
            part = payload[0]
            if len(part) <= size:
                payload.popleft()
            else:
                payload[0] = part[size:]
                part = part[:size]
            parts.append(part)
            size -= len(part)
        return parts


class FrameWriter:
    """Turns messages into frames, in the form that the common ``flags`` ask for.

    >>> FrameWriter(Flag.FRAGMENTS).frame(control.encode(control.NodeLink()))
    b'\x00\x00\x00\x07\x83D\x00h\x01a\x05'
    """

    def __init__(self, flags: int) -> None:
        self._fragments = bool(flags & Flag.FRAGMENTS)
        headers = self._fragments or bool(flags & Flag.DIST_HDR_ATOM_CACHE)
        self._before = b"\x83D\x00" if headers else b"p\x83"
        self._between = b"" if headers else b"\x83"
        self._sequence = 0

    def frame(self, message: bytes, payload: Payload = b"") -> bytes:
        """One frame of a control message and, unless it is empty, a payload (bare terms).

        Raises `ValueError` when it does not fit a frame, which ends at 4 GiB.
        """
        before, between = self._before, self._between if payload else b""
        size = len(before) + len(message) + len(between) + len(payload)
        if size > 0xFFFFFFFF:
            raise ValueError(f"a message of {size} bytes does not fit a frame: 4 GiB at most")
        return (_LENGTH.pack(size) + before + message + between) + payload

    def needs_fragments(self, payload: Payload) -> bool:
        """Whether a message with this payload has to be cut by `fragments`."""
        return self._fragments and len(payload) > FRAGMENT_SIZE

    def fragments(self, message: bytes, payload: Payload, before: bytes = b"") -> Fragments:
        """The frames of a message with a large payload, behind a few bytes ``before``."""
        self._sequence += 1
        return Fragments(self._sequence, message, payload, before)


class _Turn(NamedTuple):
    """Where, among the small messages, a sender's large one begins to take its turns."""

    sender: object


class SendQueue:
    """What waits to be written on one connection, in the order in which it may be written.

    Small messages go in order. A large one goes in fragments, and while it is under way other
    senders' messages pass between its fragments; what the *same* sender sends later waits behind
    it, because signals between two processes stay in order. Large messages take turns, one fragment
    each, and get one for every 64 KiB of small ones, so that neither kind starves the other.

    ``size`` is the number of bytes that wait.
    """

    def __init__(self, writer: FrameWriter) -> None:
        self.size = 0
        # Of which in fragments that are still to be cut; and what those messages count as.
        self._large_size = 0
        self._large_weight = 0
        self._writer = writer
        # What a write did not take: it may begin inside of a frame, so it goes before all else.
        self._rest: deque[bytes | memoryview] = deque()
        self._ready: deque[bytes | _Turn] = deque()
        self._ready_taken = 0
        # Senders whose large message is under way, in the order of their turns; and what each has
        # sent from that message on, while it is under way or among what is ready.
        self._turns: deque[object] = deque()
        self._waiting: dict[object, deque[bytes | Fragments]] = {}

    def __bool__(self) -> bool:
        return bool(self._rest or self._ready or self._turns)

    @property
    def pressure(self) -> int:
        """Bytes that wait, a message in fragments counted as `LARGE` at the most.

        However long such a message takes, others pass it: that it waits is no reason to stop
        listening to the peer. That many of them wait is.
        """
        return self.size - self._large_size + self._large_weight

    def add(
        self, sender: object, message: bytes, payload: Payload = b"", before: bytes = b""
    ) -> None:
        """Queue one message; ``sender`` is any hashable key, the same for the same process.

        ``before`` are a few bytes of the payload that a large one is not to be copied for.

        Raises `ValueError` as `FrameWriter.frame` does.
        """
        if not self._writer.needs_fragments(payload):
            self.add_frame(sender, self._writer.frame(message, before + payload))
            return
        fragments = self._writer.fragments(message, payload, before)
        self.size += fragments.size
        self._large_size += fragments.size
        self._large_weight += min(fragments.size, LARGE)
        waiting = self._waiting.get(sender)
        if waiting is None:
            self._waiting[sender] = deque((fragments,))
            self._ready.append(_Turn(sender))
        else:
            waiting.append(fragments)

    def add_frame(self, sender: object, frame: bytes) -> None:
        """Queue one frame that is whole already."""
        self.size += len(frame)
        waiting = self._waiting.get(sender) if self._waiting else None
        if waiting is None:
            self._ready.append(frame)
        else:
            waiting.append(frame)

    def put_back(self, buffers: Sequence[bytes | memoryview], sent: int) -> bool:
        """Put back what a write of ``buffers`` did not take; True when it took all."""
        for index, buffer in enumerate(buffers):
            if sent < len(buffer):
                rest = [memoryview(buffer)[sent:], *buffers[index + 1 :]]
                self._rest.extendleft(reversed(rest))
                self.size += sum(map(len, rest))
                return False
            sent -= len(buffer)
        return True

    def take(self, most: int) -> list[bytes | memoryview]:
        """Take buffers to write next, of about ``most`` bytes; none only when nothing waits."""
        buffers: list[bytes | memoryview] = []
        taken = 0
        rest, ready, turns = self._rest, self._ready, self._turns
        while taken < most and len(buffers) < _MAX_BUFFERS:
            if rest:
                buffer = rest.popleft()
            elif ready and (not turns or self._ready_taken < FRAGMENT_SIZE):
                frame = ready.popleft()
                if isinstance(frame, _Turn):
                    turns.append(frame.sender)
                    continue
                buffer = frame
                self._ready_taken += len(buffer)
            elif turns:
                fragment = self._take_fragment()
                buffers += fragment
                taken += sum(map(len, fragment))
                self._ready_taken = 0
                continue
            else:
                break
            buffers.append(buffer)
            taken += len(buffer)
        self.size -= taken
        return buffers

    def clear(self) -> None:
        """Forget everything."""
        self.size = self._large_size = self._large_weight = 0
        self._rest.clear()
        self._ready.clear()
        self._turns.clear()
        self._waiting.clear()

    def _take_fragment(self) -> list[bytes | memoryview]:
        """The next fragment, of the sender whose turn it is."""
        sender = self._turns[0]
        waiting = self._waiting[sender]
        large = waiting[0]
        assert isinstance(large, Fragments)
        fragment = large.take()
        self._large_size -= sum(map(len, fragment))
        if large.left:
            self._turns.rotate(-1)
            return fragment
        self._large_weight -= min(large.size, LARGE)
        self._turns.popleft()
        waiting.popleft()
        # What waited behind the message may go now, up to the sender's next large one.
        while waiting:
            frame = waiting[0]
            if isinstance(frame, Fragments):
                self._ready.append(_Turn(sender))
                return fragment
            self._ready.append(frame)
            waiting.popleft()
        del self._waiting[sender]
        return fragment


__all__ = [
    "ALIGNMENT",
    "FRAGMENT_SIZE",
    "LARGE",
    "MAX_FRAME",
    "MAX_MESSAGE",
    "MAX_SEQUENCES",
    "TICK",
    "Fragments",
    "FrameReader",
    "FrameWriter",
    "FramingError",
    "Message",
    "SendQueue",
    "Skipped",
]
