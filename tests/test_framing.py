"""Frames: read whole and in pieces, fragments in any order, limits, what waits to be written."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Hashable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snex_node.wire import control, framing
from snex_node.wire.control import (
    AliasSend,
    ControlMessage,
    MonitorP,
    PayloadExit,
    RegSend,
    SendSender,
    SpawnRequest,
    UnlinkId,
)
from snex_node.wire.etf import Encoder
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.framing import (
    ALIGNMENT,
    FRAGMENT_SIZE,
    LARGE,
    TICK,
    FrameReader,
    FrameWriter,
    FramingError,
    Message,
    SendQueue,
    Skipped,
)
from snex_node.wire.handshake import Identity
from snex_node.wire.pieces import Pieces
from snex_node.wire.terms import Atom, Pid, Reference
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.examples import examples
from tests.support.peer import ScriptedPeer

HEADERS = int(CLAIMED)
PASS_THROUGH = int(CLAIMED) & ~int(Flag.FRAGMENTS)
MIB = 1024 * 1024

US = Pid("py@127.0.0.1", 7, 0, 9)
THEY = Pid("app@127.0.0.1", 117, 3, 8)
REF = Reference("app@127.0.0.1", 8, (1, 2, 3))
SEND = SendSender(THEY, US)
SEND_BYTES = control.encode(SEND)
term = Encoder().encode

modes = pytest.mark.parametrize("flags", [HEADERS, PASS_THROUGH], ids=["headers", "pass-through"])
cuts = pytest.mark.parametrize("cut", [None, 1, 3, 4, 5], ids=lambda cut: f"cut {cut}")

Parts = list[Message | Skipped]


def feed(reader: FrameReader, data: bytes, cut: int | None = None) -> Parts:
    found: Parts = []
    for position in range(0, len(data), cut or len(data) or 1):
        found += reader.receive_data(data[position : position + (cut or len(data))])
    return found


def payload_of(message: Message | Skipped) -> bytes:
    assert isinstance(message, Message)
    return message.data[message.offset :]


def contents(found: Parts) -> list[tuple[ControlMessage, bytes]]:
    return [(m.control, payload_of(m)) for m in found if isinstance(m, Message)]


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def whole(message: ControlMessage | bytes = SEND, payload: bytes = b"") -> bytes:
    encoded = message if isinstance(message, bytes) else control.encode(message)
    return frame(b"\x83D\0" + encoded + payload)


def first(
    sequence: int, number: int, part: bytes = b"", message: ControlMessage | bytes = SEND
) -> bytes:
    encoded = message if isinstance(message, bytes) else control.encode(message)
    ids = sequence.to_bytes(8, "big") + number.to_bytes(8, "big")
    return frame(b"\x83E" + ids + b"\0" + encoded + part)


def following(sequence: int, number: int, part: bytes = b"") -> bytes:
    return frame(b"\x83F" + sequence.to_bytes(8, "big") + number.to_bytes(8, "big") + part)


def failure_of(data: bytes, flags: int = HEADERS, **limits: int) -> str:
    """The failure of a reader that was given these bytes, whole and in single bytes."""
    texts = set()
    for cut in (None, 1):
        reader = FrameReader(flags, **limits)
        feed(reader, data, cut)
        assert isinstance(reader.failure, FramingError)
        assert reader.unfinished == 0
        assert feed(reader, whole() + TICK, cut) == []
        texts.add(str(reader.failure))
    assert len(texts) == 1
    return texts.pop()


# Reading


MESSAGES: list[tuple[ControlMessage, bytes]] = [
    (MonitorP(THEY, Atom("snex"), REF), b""),
    (RegSend(THEY, Atom("snex")), term((1, "two"))),
    (SEND, term("x" * 1000)),
    (UnlinkId(5, THEY, US), b""),
    (PayloadExit(THEY, US), term(Atom("normal"))),
    (AliasSend(THEY, REF), term([])),
    (SpawnRequest(REF, THEY, THEY, (Atom("m"), Atom("f"), 0), []), term([])),
]


def stream(flags: int) -> bytes:
    writer = FrameWriter(flags)
    frames = [writer.frame(control.encode(message), payload) for message, payload in MESSAGES]
    return TICK + TICK.join(frames) + TICK * 3


@modes
@cuts
def test_messages_between_ticks(flags: int, cut: int | None) -> None:
    reader = FrameReader(flags)
    assert contents(feed(reader, stream(flags), cut)) == MESSAGES
    assert reader.failure is None
    assert reader.frames == len(MESSAGES)
    assert reader.ticks == 1 + len(MESSAGES) - 1 + 3
    assert reader.unfinished == 0


@modes
@given(st.lists(st.integers(1, 1500), max_size=30))
def test_messages_cut_anywhere(flags: int, sizes: list[int]) -> None:
    data = stream(flags)
    reader = FrameReader(flags)
    found: Parts = []
    for size in sizes:
        found += reader.receive_data(data[:size])
        data = data[size:]
    found += reader.receive_data(data)
    assert contents(found) == MESSAGES


@modes
def test_each_message_has_bytes_of_its_own(flags: int) -> None:
    """What keeps a message must not keep the megabyte that it was read with."""
    filler = FrameWriter(flags).frame(control.encode(SEND), b"\x83" + bytes(100_000))
    small = FrameWriter(flags).frame(control.encode(SEND), term("small"))
    for found in feed(FrameReader(flags), small + filler + small):
        assert isinstance(found, Message)
        assert len(found.data) < len(payload_of(found)) + 200


@modes
def test_a_large_frame_is_not_copied_once_it_is_whole(flags: int) -> None:
    data = FrameWriter(flags).frame(control.encode(SEND), term(b"x" * (8 * MIB)))
    reader = FrameReader(flags)
    pieces = [data[i : i + MIB] for i in range(0, len(data), MIB)]
    tracemalloc.start()
    try:
        [message] = [m for piece in pieces for m in reader.receive_data(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert payload_of(message)[-3:] == b"xxx"
    assert peak < 10 * MIB


def test_a_large_frame_alone_in_a_read_is_not_copied_at_all() -> None:
    data = whole(SEND, term(b"x" * MIB))
    [message] = FrameReader(HEADERS).receive_data(data)
    assert isinstance(message, Message)
    assert message.data is data


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_single_bytes_of_a_large_frame_take_neither_time_nor_memory(cut: int) -> None:
    size = 50_000 * cut
    data = whole(SEND, term(b"x" * size))
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    reader = FrameReader(HEADERS)
    tracemalloc.start()
    try:
        for piece in pieces[:-1]:
            assert reader.receive_data(piece) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.unfinished == len(data) - len(pieces[-1])
    assert held < 1.5 * size + 100_000
    [message] = reader.receive_data(pieces[-1])
    assert len(payload_of(message)) == size + 5


@pytest.mark.untraced
def test_the_time_of_single_bytes_grows_with_their_number_only() -> None:
    def seconds(size: int) -> float:
        data = frame(bytes([131]) * size)
        best = []
        for _ in range(3):
            reader = FrameReader(HEADERS)
            started = time.perf_counter()
            for position in range(len(data) - 1):
                reader.receive_data(data[position : position + 1])
            best.append(time.perf_counter() - started)
        return min(best)

    # 8 times the bytes: 8 times as long, and 64 times if each byte cost a copy of those before.
    assert seconds(80_000) < 25 * seconds(10_000)


@pytest.mark.untraced
def test_a_million_ticks() -> None:
    reader = FrameReader(HEADERS)
    assert reader.receive_data(TICK * 1_000_000 + b"\0") == []
    assert reader.ticks == 1_000_000
    assert reader.unfinished == 1
    assert contents(reader.receive_data(b"\0\0\0" + whole())) == [(SEND, b"")]
    assert reader.ticks == 1_000_001


def test_bytes_behind_the_payload_are_kept_with_it() -> None:
    """BEAM ignores them, and so does whoever decodes one term."""
    [message] = feed(FrameReader(HEADERS), whole(SEND, term(1) + b"more"))
    assert payload_of(message) == term(1) + b"more"


# Frames that are wrong


def test_a_frame_that_is_too_long() -> None:
    limit = 1000
    exact = whole(SEND, bytes(limit - len(whole(SEND)) + 4))
    reader = FrameReader(HEADERS, max_frame=limit)
    assert len(feed(reader, exact)) == 1
    text = failure_of((limit + 1).to_bytes(4, "big"), max_frame=limit)
    assert text == "a frame of 1001 bytes; at most 1000 are accepted"
    assert "4294967295 bytes" in failure_of(b"\xff" * 4)


def test_nothing_is_taken_for_a_length_alone() -> None:
    tracemalloc.start()
    try:
        reader = FrameReader(HEADERS)
        reader.receive_data(framing.MAX_FRAME.to_bytes(4, "big"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.failure is None
    assert peak < 10_000


@pytest.mark.parametrize(
    ("data", "flags", "complaint"),
    [
        (frame(b"\x83"), HEADERS, "begins with 83, which is no distribution header"),
        (frame(b"p\x83h\x01a\x05"), HEADERS, "begins with 70 83 68 01"),
        (frame(b"\x83C\0"), HEADERS, "begins with 83 43 00"),
        (frame(b"\x83D"), HEADERS, "cut off or names cached atoms"),
        # What follows such a frame is not part of it.
        (frame(b"\x83") + b"D\0\0\0", HEADERS, "begins with 83, which is no"),
        (frame(b"\x83D") + TICK, HEADERS, "cut off or names cached atoms"),
        (frame(b"\x83D\1\0" + bytes(20)), HEADERS, "cut off or names cached atoms"),
        (frame(b"\x83D\0"), HEADERS, "cannot be decoded"),
        (frame(b"\x83D\0h\x03a\x16"), HEADERS, "cannot be decoded"),
        (frame(b"\x83D\0\x79abc"), HEADERS, "cannot be decoded"),
        (frame(b"p"), PASS_THROUGH, "begins with 70, not with the pass-through byte"),
        (frame(b"p\x83"), PASS_THROUGH, "begins with 70 83, not"),
        (frame(b"ph\x01a\x05"), PASS_THROUGH, "begins with 70 68 01 61, not"),
        (frame(b"\x83D\0h\x01a\x05"), PASS_THROUGH, "begins with 83 44 00 68, not"),
        (frame(b"p\x83h\x01a\x05a\x01"), PASS_THROUGH, "a payload without its version byte"),
        (frame(b"p\x83h\x02a\x05"), PASS_THROUGH, "cannot be decoded"),
        (frame(b"\x83E" + bytes(16)), HEADERS, "first fragment with a header that is cut off"),
        (frame(b"\x83E" + bytes(16) + b"\1"), HEADERS, "or names atoms"),
        (first(1, 0), HEADERS, "fragment 0 begins sequence 0x1 out of turn"),
        (first(1, 2, message=b"h\x01a"), HEADERS, "cannot be decoded"),
        (first(1, 2, message=b"h\x01ac"), HEADERS, "fragments of unknown control message: {99}"),
        (frame(b"\x83F" + bytes(15)), HEADERS, "a fragment with a header that is cut off"),
        (following(1, 1), HEADERS, "fragment 1 of sequence 0x1 out of turn"),
        (first(1, 3) + following(1, 1), HEADERS, "fragment 1 of sequence 0x1 out of turn"),
        (first(1, 3) + following(1, 3), HEADERS, "fragment 3 of sequence 0x1 out of turn"),
        (first(1, 3) + following(2, 2), HEADERS, "fragment 2 of sequence 0x2 out of turn"),
        (first(1, 2) + first(1, 2), HEADERS, "fragment 2 begins sequence 0x1 out of turn"),
        (first(1, 2) + following(1, 1) + following(1, 0), HEADERS, "out of turn"),
    ],
)
def test_frames_that_are_wrong(data: bytes, flags: int, complaint: str) -> None:
    assert complaint in failure_of(data, flags)


@modes
def test_messages_before_a_broken_frame_are_given(flags: int) -> None:
    good = FrameWriter(flags).frame(control.encode(SEND), term(1))
    reader = FrameReader(flags)
    found = reader.receive_data(good + frame(b"bad") + good)
    assert contents(found) == [(SEND, term(1))]
    assert reader.failure is not None
    assert reader.frames == 2


@modes
@cuts
def test_an_unknown_control_message_is_skipped(flags: int, cut: int | None) -> None:
    writer = FrameWriter(flags)
    unknown = writer.frame(term((99, THEY)), term("payload"))
    after = writer.frame(control.encode(SEND), term(1))
    reader = FrameReader(flags)
    skipped, message = feed(reader, unknown + after, cut)
    assert skipped == Skipped("unknown control message: {99, #PID<app@127.0.0.1.117.3>}")
    assert payload_of(message) == term(1)
    assert reader.failure is None


def test_an_unknown_control_message_in_its_only_fragment_is_skipped() -> None:
    reader = FrameReader(HEADERS)
    [skipped] = feed(reader, first(1, 1, message=b"h\x01ac"))
    assert skipped == Skipped("unknown control message: {99}")
    assert reader.failure is None


# Fragments


@cuts
def test_one_fragment(cut: int | None) -> None:
    reader = FrameReader(HEADERS)
    assert contents(feed(reader, first(7, 1, b"payload"), cut)) == [(SEND, b"payload")]


@cuts
def test_fragments_with_others_between_them(cut: int | None) -> None:
    other = RegSend(THEY, Atom("other"))
    data = (
        first(1, 3, b"aa")
        + TICK
        + first(2, 2, b"", other)
        + whole(SEND, b"between")
        + following(1, 2, b"")
        + following(2, 1, b"other")
        + following(1, 1, b"bb")
        + first(1, 2, b"again")
        + following(1, 1)
    )
    reader = FrameReader(HEADERS)
    assert contents(feed(reader, data, cut)) == [
        (SEND, b"between"),
        (other, b"other"),
        (SEND, b"aabb"),
        (SEND, b"again"),
    ]
    assert reader.failure is None
    assert reader.unfinished == 0
    assert reader.frames == 8


@pytest.mark.untraced
@given(
    st.lists(st.lists(st.binary(max_size=50), min_size=1, max_size=5), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.integers(1, 200),
)
def test_fragments_of_many_messages_in_any_order(
    messages: list[list[bytes]], choose: random.Random, cut: int
) -> None:
    waiting = {
        sequence: [
            first(sequence, len(parts), parts[0]),
            *(
                following(sequence, len(parts) - index, part)
                for index, part in enumerate(parts[1:], 1)
            ),
        ]
        for sequence, parts in enumerate(messages)
    }
    data, expected = b"", []
    while waiting:
        sequence = choose.choice(sorted(waiting))
        data += waiting[sequence].pop(0)
        if not waiting[sequence]:
            del waiting[sequence]
            expected.append((SEND, b"".join(messages[sequence])))
    reader = FrameReader(HEADERS)
    assert contents(feed(reader, data, cut)) == expected
    assert reader.unfinished == 0


def test_large_fragments_are_put_together() -> None:
    parts = [bytes([number]) * FRAGMENT_SIZE for number in range(20)]
    data = first(1, 21, b"begin")
    for number, part in enumerate(parts):
        data += following(1, 20 - number, part) + whole()
    reader = FrameReader(HEADERS)
    found = feed(reader, data, 100_000)
    assert len(found) == 21
    assert payload_of(found[-2]) == b"begin" + b"".join(parts)


@pytest.mark.parametrize("before", range(20))
@pytest.mark.parametrize("behind", [0, 100])
def test_a_large_binary_begins_where_memory_is_aligned(before: int, behind: int) -> None:
    data = bytes(range(256)) * (LARGE // 256 + 1)
    payload = Encoder().encode((b"m" * before, [{b"a": data}], b"x" * behind))
    queue = SendQueue(FrameWriter(HEADERS))
    queue.add(None, control.encode(SEND), payload)
    [message] = feed(FrameReader(HEADERS), b"".join(drain(queue, FRAGMENT_SIZE)))
    assert isinstance(message, Message)
    assert payload_of(message) == payload
    assert message.data.index(data) % ALIGNMENT == 0


@pytest.mark.parametrize("very_large", [0, 5, 1000])
def test_what_is_very_large_is_put_together_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, very_large: int
) -> None:
    monkeypatch.setattr(framing, "_VERY_LARGE", very_large)
    data = random.Random(1).randbytes(10 * FRAGMENT_SIZE + 77)
    for before in (0, 1, 7):
        payload = Encoder().encode((b"m" * before, data))
        queue = SendQueue(FrameWriter(HEADERS))
        queue.add("a", control.encode(SEND), payload)
        queue.add("b", control.encode(SEND), payload[::-1])
        frames = b"".join(drain(queue, FRAGMENT_SIZE))
        for cut in (None, 1000, 100_000):
            reader = FrameReader(HEADERS)
            found = feed(reader, frames, cut)
            assert [payload_of(each) for each in found] == [payload, payload[::-1]]
            assert reader.unfinished == 0
            assert isinstance(found[0], Message)
            if very_large != 1000:
                assert found[0].data.index(data) % ALIGNMENT == 0


def test_what_looks_like_a_large_binary_moves_nothing() -> None:
    size = 2 * LARGE
    for text in (b"m\xff\xff\xff\xff", b"m" + (size + 1).to_bytes(4, "big"), b"m\0\0"):
        payload = text + bytes(size)
        queue = SendQueue(FrameWriter(HEADERS))
        queue.add(None, control.encode(SEND), payload)
        [message] = feed(FrameReader(HEADERS), b"".join(drain(queue, FRAGMENT_SIZE)))
        assert isinstance(message, Message)
        assert (message.data, message.offset) == (payload, 0)


def test_too_many_unfinished_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_SEQUENCES", 3)
    data = b"".join(first(number, 2) for number in range(3))
    reader = FrameReader(HEADERS)
    feed(reader, data)
    assert reader.failure is None
    assert failure_of(data + first(3, 2)) == "more than 3 fragmented messages at one time"
    reader.receive_data(following(0, 1) + first(3, 2))
    assert reader.failure is None


@pytest.mark.untraced
def test_too_large_an_unfinished_message() -> None:
    limit = 100_000
    data = first(1, 9, bytes(60_000)) + first(2, 9, bytes(30_000))
    reader = FrameReader(HEADERS, max_message=limit)
    feed(reader, data)
    assert reader.failure is None
    assert 90_000 < reader.unfinished < limit
    text = failure_of(data + following(1, 8, bytes(9_000)), max_message=limit)
    assert text == "fragmented messages of more than 100000 bytes together"


@pytest.mark.parametrize("size", [0, 1, 100])
def test_endless_small_fragments_are_counted_for_what_they_hold(size: int) -> None:
    limit = MIB
    reader = FrameReader(HEADERS, max_message=limit)
    reader.receive_data(first(1, 2**64 - 1))
    tracemalloc.start()
    try:
        number = 2**64 - 2
        while reader.failure is None:
            held, _ = tracemalloc.get_traced_memory()
            assert held < 1.5 * limit
            reader.receive_data(following(1, number, b"x" * size))
            number -= 1
    finally:
        tracemalloc.stop()


@pytest.mark.untraced
def test_control_messages_of_unfinished_messages_are_counted() -> None:
    large = SpawnRequest(REF, THEY, THEY, (Atom("m"), Atom("f"), 0), [b"x" * 10_000])
    data = b"".join(first(number, 2, b"", large) for number in range(20))
    assert "more than 100000 bytes" in failure_of(data, max_message=100_000)


@pytest.mark.parametrize("part", [FRAGMENT_SIZE // 2 - 1, FRAGMENT_SIZE // 2, FRAGMENT_SIZE])
def test_fragments_do_not_keep_the_reads_alive_that_they_came_with(part: int) -> None:
    """One fragment in each read of 1 MiB: 100 of them would keep 100 MiB for 3 to 6 MiB."""
    reader = FrameReader(HEADERS)
    reader.receive_data(first(1, 1000))
    rest = whole(SEND, bytes(MIB - part - 100))
    tracemalloc.start()
    try:
        for number in range(999, 899, -1):
            reader.receive_data(following(1, number, bytes(part)) + rest)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.failure is None
    assert held < 3 * reader.unfinished + 8 * MIB


def test_the_count_of_reads_starts_anew_when_nothing_is_unfinished() -> None:
    """Else fragments would be copied for no reason, the more the longer a connection lives."""
    reader = FrameReader(HEADERS)
    parts = FRAGMENT_SIZE * 16
    for sequence in range(30):
        data = first(sequence, 17)
        for number in range(16, 0, -1):
            data += following(sequence, number, bytes(FRAGMENT_SIZE))
        [message] = reader.receive_data(data)
        assert len(payload_of(message)) == parts
    assert reader._pinned == 0


# Anything


mutations = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)
pieces = st.one_of(
    st.sampled_from([TICK, whole(), whole(SEND, term(1)), whole(b"h\x01ac")]),
    st.builds(first, st.integers(0, 3), st.integers(0, 3), st.binary(max_size=9)),
    st.builds(following, st.integers(0, 3), st.integers(0, 3), st.binary(max_size=9)),
    st.binary(max_size=40),
    st.binary(max_size=40).map(frame),
    st.binary(max_size=40).map(lambda data: frame(b"\x83D\0" + data)),
    st.binary(max_size=40).map(lambda data: frame(b"p\x83" + data)),
)


@modes
@settings(max_examples=examples(2))
@given(st.lists(pieces, max_size=12), mutations, st.integers(1, 100))
def test_anything_gives_messages_or_one_stored_failure(
    flags: int, parts: list[bytes], changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(b"".join(parts))
    for position, value in changes:
        if data:
            data[position % len(data)] = value
    outcomes = []
    for size in (None, cut, 1):
        reader = FrameReader(flags)
        found = feed(reader, bytes(data), size)
        assert reader.failure is None or isinstance(reader.failure, FramingError)
        assert reader.unfinished <= len(data) + 64 * len(parts) + 1024 * len(reader._sequences)
        skipped = [part for part in found if isinstance(part, Skipped)]
        outcomes.append((contents(found), skipped, str(reader.failure), reader.ticks))
    # The same, however it is cut.
    assert outcomes[0] == outcomes[1] == outcomes[2]


# Writing


@modes
@pytest.mark.parametrize("size", [0, 1, 100, 2**16, 2**16 + 1])
def test_a_frame_is_read_back(flags: int, size: int) -> None:
    payload = b"m" * size
    data = FrameWriter(flags).frame(control.encode(SEND), payload)
    assert contents(feed(FrameReader(flags), data)) == [(SEND, payload)]


SIZES = sorted(
    {1, *(n * FRAGMENT_SIZE + more for n in (0, 1, 2, 3) for more in (-1, 0, 1, 2, 17))} - {-1, 0}
)


@modes
@pytest.mark.parametrize("size", SIZES)
def test_what_a_queue_gives_is_read_back(flags: int, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    queue = SendQueue(FrameWriter(flags))
    queue.add("sender", control.encode(SEND), payload)
    assert queue
    waiting = queue.size
    data = b"".join(drain(queue))
    assert len(data) == waiting
    for cut in (None, 50_000):
        assert contents(feed(FrameReader(flags), data, cut)) == [(SEND, payload)]


def test_where_fragments_begin() -> None:
    writer = FrameWriter(HEADERS)
    assert not writer.needs_fragments(bytes(FRAGMENT_SIZE))
    assert writer.needs_fragments(bytes(FRAGMENT_SIZE + 1))
    assert not FrameWriter(PASS_THROUGH).needs_fragments(bytes(FRAGMENT_SIZE + 1))


def test_the_bytes_of_fragments() -> None:
    writer = FrameWriter(HEADERS)
    payload = b"a" * FRAGMENT_SIZE + b"b" * 10
    for sequence in (1, 2):
        fragments = writer.fragments(b"message", payload)
        frames = []
        while fragments.left:
            frames.append(b"".join(fragments.take()))
        assert frames == [
            first(sequence, 2, payload[:FRAGMENT_SIZE], b"message"),
            following(sequence, 1, b"b" * 10),
        ]
        assert writer.fragments(b"message", payload).size == sum(map(len, frames))
        writer._sequence -= 1


@pytest.mark.parametrize("sizes", [[300, 5], [1, 700_000, 2, 300_000], [600_000, 262_144]])
def test_a_payload_in_pieces_is_cut_as_a_whole_one_is(sizes: list[int]) -> None:
    parts = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    frames = []
    for payload in (b"".join(parts), Pieces(parts)):
        fragments = FrameWriter(HEADERS).fragments(b"message", payload, b"before")
        assert fragments.size > sum(sizes)
        frames.append([b"".join(fragments.take()) for _ in range(fragments.left)])
        assert fragments.left == 0
        assert sum(map(len, frames[-1])) == fragments.size
    assert frames[0] == frames[1]
    assert FrameWriter(PASS_THROUGH).frame(b"a", Pieces(parts)).endswith(b"".join(parts))


def test_a_message_that_fits_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(ValueError, match="4 GiB at most"):
        FrameWriter(PASS_THROUGH).frame(b"message", Large())


def test_200_megabytes_are_cut_without_copying() -> None:
    payload = bytes(200 * 1000 * 1000)
    queue = SendQueue(FrameWriter(HEADERS))
    tracemalloc.start()
    try:
        queue.add("sender", control.encode(SEND), payload)
        sent = 0
        while queue:
            sent += sum(map(len, queue.take(MIB)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent == len(payload) + 3052 * 22 + 1 + len(control.encode(SEND))
    assert peak < 100_000


# The queue


def drain(
    queue: SendQueue, most: int = MIB, taking: random.Random | None = None
) -> Iterator[bytes]:
    """What a socket takes, and puts back, until nothing waits."""
    while queue:
        before = queue.size
        buffers = queue.take(most)
        total = sum(map(len, buffers))
        assert buffers
        assert queue.size == before - total
        sent = total if taking is None else taking.randint(0, total)
        assert queue.put_back(buffers, sent) is (sent == total)
        assert queue.size == before - sent
        yield b"".join(buffers)[:sent]
    assert queue.size == 0
    assert queue.take(most) == []


def numbered(sender: Hashable, number: int, size: int) -> tuple[bytes, bytes]:
    """A control message that tells its sender, and a payload that tells its number."""
    head = control.encode(RegSend(THEY, Atom(str(sender))))
    return head, number.to_bytes(4, "big") + bytes(max(0, size - 4))


operations = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from([0, 10, 1000, FRAGMENT_SIZE, FRAGMENT_SIZE + 1, 3 * FRAGMENT_SIZE]),
        st.booleans(),
    ),
    max_size=25,
)


@pytest.mark.untraced
@modes
@settings(max_examples=examples(0.6))
@given(operations, st.randoms(use_true_random=False), st.sampled_from([1, 1000, 100_000, MIB]))
def test_order_sizes_and_frames_whatever_is_taken_and_put_back(
    flags: int, steps: list[tuple[str | None, int, bool]], choose: random.Random, most: int
) -> None:
    queue = SendQueue(FrameWriter(flags))
    sent: dict[str, list[int]] = defaultdict(list)
    written = bytearray()
    for number, (sender, size, write) in enumerate(steps):
        sent[str(sender)].append(number)
        head, payload = numbered(sender, number, size)
        queue.add(sender, head, payload)
        if write:
            buffers = queue.take(most)
            total = sum(map(len, buffers))
            count = choose.randint(0, total)
            queue.put_back(buffers, count)
            written += b"".join(buffers)[:count]
    for piece in drain(queue, max(most, 1000), choose):
        written += piece
    reader = FrameReader(flags)
    received: dict[str, list[int]] = defaultdict(list)
    for message, payload in contents(feed(reader, bytes(written), 65_536)):
        assert isinstance(message, RegSend)
        received[str.__str__(message.name)].append(int.from_bytes(payload[:4], "big"))
    assert reader.failure is None
    assert reader.unfinished == 0
    assert received == sent
    assert not queue._waiting
    assert not queue._turns


def names_of(data: bytes) -> list[str]:
    """The senders of the messages, in the order in which they are complete."""
    found = contents(feed(FrameReader(HEADERS), data))
    return [str.__str__(m.name) for m, _ in found if isinstance(m, RegSend)]


def test_small_messages_pass_a_large_one_of_another_sender() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    queue.add("large", *numbered("large", 1, 10 * FRAGMENT_SIZE))
    data = b"".join(queue.take(1))
    queue.add("small", *numbered("small", 2, 100))
    queue.add("large", *numbered("large", 3, 100))
    data += b"".join(drain(queue))
    assert names_of(data) == ["small", "large", "large"]


def test_a_large_message_does_not_pass_earlier_ones_of_its_sender() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    for size in (FRAGMENT_SIZE, FRAGMENT_SIZE, 10, FRAGMENT_SIZE + 1, 10):
        queue.add("a", *numbered("a", size, size))
    data = b"".join(drain(queue, FRAGMENT_SIZE))
    numbers = [payload[:4] for _, payload in contents(feed(FrameReader(HEADERS), data))]
    sizes = [int.from_bytes(number, "big") for number in numbers]
    assert sizes == [FRAGMENT_SIZE, FRAGMENT_SIZE, 10, FRAGMENT_SIZE + 1, 10]


def test_large_messages_take_turns() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    for sender, size in (("a", 8), ("b", 4), ("c", 2), ("c", 2)):
        queue.add(sender, *numbered(sender, 0, size * FRAGMENT_SIZE))
    assert names_of(b"".join(drain(queue))) == ["c", "b", "c", "a"]


def test_a_large_message_gets_on_while_small_ones_keep_coming() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    queue.add("large", *numbered("large", 1, 10 * FRAGMENT_SIZE))
    small = numbered("small", 2, 1000)
    taken = 0
    while queue._waiting:
        while queue.size < 20 * FRAGMENT_SIZE and len(queue._ready) < 1000:
            queue.add("small", *small)
        taken += sum(map(len, queue.take(FRAGMENT_SIZE)))
        assert taken < 25 * FRAGMENT_SIZE


def test_small_messages_get_on_while_large_ones_keep_coming() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    for number in range(50):
        queue.add(number, *numbered(number, 0, 3 * FRAGMENT_SIZE))
    queue.take(1)
    queue.add("small", *numbered("small", 0, 10))
    data = b"".join(queue.take(1))
    assert b"small" in data


def test_large_messages_press_less_than_their_size() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    assert queue.pressure == 0
    queue.add_frame(None, bytes(1000))
    assert queue.pressure == queue.size == 1000
    queue.add("a", SEND_BYTES, bytes(10 * MIB))
    queue.add("a", SEND_BYTES, bytes(10 * MIB))
    assert queue.pressure == 1000 + 2 * framing.LARGE
    queue.add("b", SEND_BYTES, bytes(FRAGMENT_SIZE + 1))
    assert queue.pressure > 1000 + 2 * framing.LARGE + FRAGMENT_SIZE
    assert queue.pressure < 1100 + 2 * framing.LARGE + FRAGMENT_SIZE + 100
    pressures = [queue.pressure]
    while queue.size > 10 * MIB:
        queue.put_back(queue.take(MIB), 500_000)
        pressures.append(queue.pressure)
    assert max(pressures) <= pressures[0] + MIB + FRAGMENT_SIZE  # with what was put back
    assert queue.pressure <= 2 * framing.LARGE  # one message, and what was put back of it
    for _ in drain(queue):
        assert queue.pressure >= 0
    assert queue.pressure == 0
    queue.add("a", SEND_BYTES, bytes(10 * MIB))
    queue.clear()
    assert queue.pressure == 0


def test_what_was_put_back_goes_first_and_nothing_comes_between() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    queue.add("large", *numbered("large", 1, 3 * FRAGMENT_SIZE))
    buffers = queue.take(1)
    assert len(buffers) == 2
    for sent in (0, 5, len(buffers[0]), len(buffers[0]) + 7):
        queue.put_back(buffers, sent)
        queue.add_frame(None, TICK)
        again = b"".join(queue.take(FRAGMENT_SIZE))
        assert again.startswith(b"".join(buffers)[sent:])
        buffers = [again[: sum(map(len, buffers)) - sent]]
        if len(buffers[0]) < FRAGMENT_SIZE:
            break


def test_a_write_takes_a_bounded_number_of_buffers() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    for _ in range(2000):
        queue.add_frame(None, TICK)
    assert len(queue.take(MIB)) == framing._MAX_BUFFERS
    assert queue.size == 4 * (2000 - framing._MAX_BUFFERS)


def test_a_cleared_queue_is_empty() -> None:
    queue = SendQueue(FrameWriter(HEADERS))
    for sender in ("a", "b"):
        queue.add(sender, *numbered(sender, 0, 3 * FRAGMENT_SIZE))
        queue.add(sender, *numbered(sender, 0, 10))
    queue.put_back(queue.take(1), 3)
    queue.clear()
    assert not queue
    assert queue.size == 0
    assert queue.take(MIB) == []
    queue.add("a", *numbered("a", 0, 10))
    assert names_of(b"".join(drain(queue))) == ["a"]


# A real BEAM


@pytest.mark.interop
@modes
@pytest.mark.parametrize("size", [10, FRAGMENT_SIZE - 5, FRAGMENT_SIZE - 4, 1_000_003])
async def test_a_beam_and_we_read_each_others_frames(
    beam: Beam, epmd: RealEpmd, flags: int, size: int
) -> None:
    """It echoes what it gets; both sides cut what is larger than 64 KiB."""
    identity = Identity(f"f{random.randrange(10**9)}@127.0.0.1", 5, flags)
    async with await ScriptedPeer.connect_to(beam, epmd.port, identity) as peer:
        echo = await beam.eval("spawn(fn -> receive do {from, data} -> send(from, data) end end)")
        assert isinstance(echo, Pid)
        data = random.Random(size).randbytes(size)
        queue = SendQueue(peer.frame_writer)
        queue.add(None, control.encode(SendSender(peer.pid(), echo)), term((peer.pid(), data)))
        await peer.send_raw(b"".join(drain(queue)))
        message = await peer.read()
        assert payload_of(message) == term(data)
        # It cuts a payload of just 64 KiB as well, into a full fragment and an empty one.
        fragments = (size + 5) // FRAGMENT_SIZE + 1
        assert peer.frames.frames == (fragments if flags == HEADERS else 1)


@pytest.mark.interop
async def test_a_beam_finishes_the_fragments_of_a_sender_that_is_killed(
    beam: Beam, epmd: RealEpmd
) -> None:
    """So a sequence that has begun is always completed, and needs no time limit."""
    async with await ScriptedPeer.connect_to(beam, epmd.port) as peer:
        size = 40_000_000
        source = "spawn(fn -> send(peer, :binary.copy(<<1>>, size)); send(peer, :never) end)"
        pid = await beam.eval(source, peer=peer.pid(), size=size)
        # It is suspended, because the line is full, in the middle of its message.
        status = """
            wait = fn wait ->
              if Process.info(pid, :status) == {:status, :suspended}, do: :ok, else: wait.(wait)
            end
            wait.(wait)
            """
        await beam.eval(status, pid=pid)
        killed = """
            ref = Process.monitor(pid)
            Process.exit(pid, :kill)
            receive do {:DOWN, ^ref, _, _, reason} -> reason end
            """
        assert await beam.eval(killed, pid=pid) == "killed"
        message = await peer.read()
        assert len(payload_of(message)) == size + 5
        await beam.eval("send(peer, :after)", peer=peer.pid())
        assert payload_of(await peer.read()) == term(Atom("after"))
        assert peer.frames.unfinished == 0


@pytest.mark.parametrize("size", [1, FRAGMENT_SIZE, FRAGMENT_SIZE + 1, 3 * FRAGMENT_SIZE - 7])
@pytest.mark.parametrize("before", [b"", b"h\x02", b"before!"])
def test_what_comes_before_a_payload_is_part_of_it(size: int, before: bytes) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    queue = SendQueue(FrameWriter(Flag.FRAGMENTS))
    sender = Pid("py@host", 1, 0, 5)
    queue.add(None, control.encode(control.SendSender(sender, sender)), payload, before)
    written = queue.size
    buffers = queue.take(10 * FRAGMENT_SIZE)
    assert max(map(len, buffers)) <= FRAGMENT_SIZE + 100
    data = b"".join(buffers)
    assert len(data) == written
    [message] = FrameReader(Flag.FRAGMENTS).receive_data(data)
    assert isinstance(message, Message)
    assert message.data[message.offset :] == before + payload


def test_what_has_begun() -> None:
    reader = FrameReader(int(CLAIMED))
    assert reader.begun(100) == (b"", 0)
    reader.receive_data(b"\0\0")
    assert reader.begun(100) == (b"\0\0", 0)
    reader.receive_data(b"\1\0" + bytes(50))
    assert reader.begun(100) == (b"\0\0\1\0" + bytes(50), 0)
    reader.receive_data(bytes(100))
    assert reader.begun(100) == (b"", 260 - 154)
