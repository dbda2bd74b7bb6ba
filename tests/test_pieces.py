"""Bytes in pieces: what they make is what their parts make when joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire import pieces
from snex_node.wire.pieces import LARGE, Pieces

SIZES = st.sampled_from([0, 1, 10, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE])


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=8))
def test_they_are_what_the_parts_make(sizes: list[tuple[int, bool]]) -> None:
    parts: list[bytes | memoryview] = []
    for number, (size, is_view) in enumerate(sizes):
        part = bytes([number]) * size
        parts.append(memoryview(part) if is_view else part)
    whole = b"".join(parts)
    found = Pieces(parts)
    assert len(found) == len(whole)
    assert bytes(found) == whole
    assert b"before" + found == b"before" + whole
    assert all(type(part) is bytes for part in found.parts)


def test_small_parts_are_joined_and_large_ones_kept() -> None:
    large = bytes(LARGE)
    found = Pieces([b"a", b"", b"b", large, b"c", large, large])
    assert list(map(len, found.parts)) == [2, LARGE, 1, LARGE, LARGE]
    assert found.parts[1] is large


def test_what_somebody_may_write_to_is_copied_at_once() -> None:
    memory = bytearray(3 * pieces._COPIED + 1)
    found = Pieces([memoryview(memory)])
    memory[0] = memory[-1] = 1
    assert bytes(found) == bytes(len(memory))
    assert max(map(len, found.parts)) == pieces._COPIED
