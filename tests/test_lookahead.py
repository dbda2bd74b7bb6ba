"""Looking ahead in a stream: all signals are found, wherever it is cut, and nothing else is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire import control
from snex_node.wire.control import (
    ControlMessage,
    DemonitorP,
    Exit,
    Link,
    MonitorP,
    MonitorPExit,
    PayloadExit,
    PayloadMonitorPExit,
    RegSend,
    SendSender,
)
from snex_node.wire.flags import CLAIMED
from snex_node.wire.framing import FRAGMENT_SIZE, TICK, FrameReader, FrameWriter, Message, SendQueue
from snex_node.wire.lookahead import MAX_HEAD, SIGNALS, Lookahead
from snex_node.wire.terms import Atom, Pid, Reference

US, THEY = Pid("us@host", 1, 0, 1), Pid("they@host", 2, 0, 1)
LONG = Pid("é" * 250 + "@host", 3, 0, 1)
REF = Reference("they@host", 1, (1, 2, 3))

pids = st.sampled_from([US, THEY, LONG])
refs = st.builds(
    lambda number: Reference("they@host", 1, (number, 2, 3)), st.integers(0, 2**18 - 1)
)
messages = st.one_of(
    st.builds(DemonitorP, pids, st.one_of(pids, st.just(Atom("snex"))), refs),
    st.builds(MonitorPExit, pids, pids, refs, st.just(Atom("normal"))),
    st.builds(PayloadMonitorPExit, pids, pids, refs),
    st.builds(PayloadExit, pids, pids, st.sampled_from([None, Atom("token")])),
    st.builds(Exit, pids, pids, st.just(Atom("kill")), st.sampled_from([None, Atom("token")])),
    st.builds(Link, pids, pids),
    st.builds(MonitorP, pids, pids, refs),
    st.builds(RegSend, pids, st.just(Atom("snex"))),
    st.builds(SendSender, pids, pids),
)
WITH_PAYLOAD = (PayloadMonitorPExit, PayloadExit, RegSend, SendSender)
sizes = st.sampled_from([1, 100, MAX_HEAD - 60, 2 * MAX_HEAD, FRAGMENT_SIZE + 1, 3 * FRAGMENT_SIZE])


def written(flags: int, items: list[tuple[ControlMessage | None, int]]) -> bytes:
    """What a node would write, ticks (None) among it."""
    queue = SendQueue(FrameWriter(flags))
    for number, (message, size) in enumerate(items):
        if message is None:
            queue.add_frame(number, TICK)
        else:
            # A payload that looks like signals itself.
            decoy = b"\x83D\x00" + control.encode(DemonitorP(US, THEY, REF))
            payload = (decoy * (size // len(decoy) + 1))[:size]
            with_payload = isinstance(message, WITH_PAYLOAD)
            queue.add(number, control.encode(message), payload if with_payload else b"")
    data = b""
    while queue:
        data += b"".join(queue.take(1 << 20))
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@given(
    st.lists(st.tuples(st.one_of(st.none(), messages), sizes), max_size=12),
    st.lists(st.one_of(st.integers(0, 2000), st.integers(0, 10**6)), max_size=30),
    st.integers(0, 20),
    st.sampled_from([int(CLAIMED), 0]),
)
def test_all_signals_are_found(
    items: list[tuple[Any, int]], places: list[int], taken: int, flags: int
) -> None:
    parts = cut(written(flags, items), places)
    reader = FrameReader(flags)
    for part in parts[:taken]:  # the loop has had these
        reader.receive_data(part)
    looking = Lookahead(*reader.begun(MAX_HEAD))
    found = [signal for part in parts[taken:] for signal in looking.receive_data(part)]
    expected = [
        each.control
        for part in parts[taken:]
        for each in reader.receive_data(part)
        if isinstance(each, Message) and isinstance(each.control, SIGNALS)
    ]
    assert reader.failure is None
    # Of large ones the head tells, which may have been taken already, and comes before the end.
    key = repr
    known = [each for each in expected if each in found]
    assert sorted(map(key, known)) == sorted(map(key, (e for e in found if e in expected)))
    missing = [each for each in expected if each not in found]
    assert all(isinstance(each, WITH_PAYLOAD) for each in missing)
    if taken == 0:
        assert sorted(map(key, expected)) == sorted(map(key, found))


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_it_never_raises(parts: list[bytes]) -> None:
    looking = Lookahead()
    for part in parts:
        assert all(isinstance(each, SIGNALS) for each in looking.receive_data(part))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x83",
        b"\x83D\x01",
        b"\x83D\x00h\x04a\x14",
        b"\x83D\x00h\x04b\x00\x00\x00\x14",
        b"\x83D\x00h\x03a\x14ab",
        b"\x83E" + bytes(17),
        b"p\x83j",
    ],
)
def test_what_is_no_signal(frame: bytes) -> None:
    whole = DemonitorP(US, THEY, REF)
    data = len(frame).to_bytes(4, "big") + frame
    data += FrameWriter(int(CLAIMED)).frame(control.encode(whole))
    assert Lookahead().receive_data(data) == [whole]


def test_a_frame_that_is_skipped() -> None:
    whole = DemonitorP(US, THEY, REF)
    data = bytes(1000) + FrameWriter(int(CLAIMED)).frame(control.encode(whole))
    looking = Lookahead(b"", 1000)
    assert looking.receive_data(data[:500]) == []
    assert looking.receive_data(data[500:]) == [whole]


def test_the_longest_head_fits() -> None:
    name = "é" * 250 + "@host"
    longest = Pid(name, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    message = DemonitorP(longest, longest, Reference(name, 2**32 - 1, (1, 2, 3, 4, 5)))
    assert len(control.encode(message)) < MAX_HEAD - 19
