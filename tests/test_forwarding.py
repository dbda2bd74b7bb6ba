"""Between a front and a worker: frames on a line, and a page of memory that both have."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_runtime.forwarding import (
    Frame,
    Ledger,
    Line,
    Note,
    NoteKind,
    Request,
    Status,
    Verdict,
)
from tests.support.forked import forked
from tests.support.waiting import until

MANY = 8 * 1024 * 1024
"""Bytes, more than any socket has room for."""


def framed(content: bytes) -> Frame:
    return pack("<I", len(content)) + content


class TestRequest:
    @given(st.integers(1, 2**64 - 1), st.booleans(), st.binary(max_size=255), st.binary())
    def test_what_is_written_is_read(
        self, sequence: int, by_front: bool, node: bytes, message: bytes
    ) -> None:
        frame = Request.head(sequence, by_front, node, len(message)) + message
        request = Request.read(frame)
        assert (request.sequence, request.by_front, request.node) == (sequence, by_front, node)
        assert request.data is frame
        assert request.data[request.at :] == message

    def test_the_bytes(self) -> None:
        head = Request.head(258, True, b"a@b", 2)
        assert head == b"\x0f\0\0\0" + b"\2\1\0\0\0\0\0\0" + b"\1" + b"\3" + b"a@b"


class TestNote:
    @given(
        st.sampled_from(NoteKind),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(),
    )
    def test_what_is_written_is_read(
        self, kind: NoteKind, sequence: int, environments: int, answer: bytes
    ) -> None:
        frame = Note.write(kind, sequence, environments, answer)
        assert Note.read(frame) == (kind, sequence, environments, answer)

    def test_the_bytes(self) -> None:
        note = Note.write(NoteKind.ANSWERED, 3, 4, b"pong")
        assert note == b"\x11\0\0\0" + b"\2" + b"\3\0\0\0\0\0\0\0" + b"\4\0\0\0" + b"pong"


# --- the line -----------------------------------------------------------------------------------


class End:
    """One end of a line: what came, read by read, and how often its other end was seen to close."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reads: list[list[Frame]] = []
        self.closed = 0
        self.line = Line(sock, self.reads.append, self._closed)

    def _closed(self) -> None:
        self.closed += 1

    @property
    def frames(self) -> list[Frame]:
        return [frame for read in self.reads for frame in read]


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    one, other = map(End, socket.socketpair())
    yield one, other
    one.line.close()
    other.line.close()


@pytest.fixture
async def bare() -> AsyncIterator[tuple[End, socket.socket]]:
    """One end of a line, and the socket that the test has."""
    one, other = socket.socketpair()
    other.setblocking(False)
    end = End(one)
    yield end, other
    end.line.close()
    other.close()


async def received(parts: list[bytes]) -> list[Frame]:
    """What comes of bytes that arrive in these parts, each in a read of its own."""
    one, other = socket.socketpair()
    end = End(one)
    with other:
        for part in parts:
            other.sendall(part)
            await until(lambda: not has_something(one), pause=0)
    await until(lambda: end.closed, pause=0)
    return end.frames


def has_something(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


class TestReading:
    @given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=12))
    def test_frames_cut_anywhere(self, contents: list[bytes], places: list[int]) -> None:
        frames = [framed(content) for content in contents]
        assert asyncio.run(received(cut(b"".join(frames), places))) == frames

    def test_frames_in_single_bytes(self) -> None:
        frames = [framed(b""), framed(b"abc"), framed(bytes(300)), framed(b"")]
        data = b"".join(frames)
        assert asyncio.run(received([data[i : i + 1] for i in range(len(data))])) == frames

    def test_what_is_cut_off_is_no_frame(self) -> None:
        data = framed(b"whole") + framed(b"cut off")
        for end in range(len(framed(b"whole")), len(data)):
            assert asyncio.run(received([data[:end]])) == [framed(b"whole")]

    async def test_the_frames_of_one_read_come_together(
        self, bare: tuple[End, socket.socket]
    ) -> None:
        end, other = bare
        other.sendall(framed(b"1") + framed(b"2") + framed(b"three")[:5])
        await until(lambda: end.reads)
        assert end.reads == [[framed(b"1"), framed(b"2")]]
        other.sendall(framed(b"three")[5:] + framed(b"4"))
        await until(lambda: len(end.reads) == 2)
        assert end.reads[1] == [framed(b"three"), framed(b"4")]

    async def test_a_pause(self, bare: tuple[End, socket.socket]) -> None:
        end, other = bare
        end.line.pause()
        end.line.pause()
        other.sendall(framed(b"1"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert end.reads == []
        end.line.resume()
        end.line.resume()
        await until(lambda: end.frames == [framed(b"1")])

    async def test_nothing_to_read_is_no_end(self, bare: tuple[End, socket.socket]) -> None:
        """Somebody else may have read it: `drain` does."""
        end, other = bare
        other.sendall(framed(b"1"))
        end.line.drain()
        assert end.frames == [framed(b"1")]
        await asyncio.sleep(0)  # the loop may have seen it before
        assert end.line._read()
        assert end.closed == 0


class TestWriting:
    async def test_in_parts(self, ends: tuple[End, End]) -> None:
        one, other = ends
        one.line.send(framed(b"whole"))
        one.line.send(pack("<I", 6), b"", b"in ", b"two")
        await until(lambda: other.frames == [framed(b"whole"), framed(b"in two")])

    async def test_what_there_is_no_room_for_comes_later(self, ends: tuple[End, End]) -> None:
        one, other = ends
        frames = [framed(bytes([number % 251]) * 100_000) for number in range(200)]
        for frame in frames:
            one.line.send(frame[:4], frame[4:])
        await until(lambda: len(other.frames) == len(frames))
        assert other.frames == frames
        # And then as before.
        one.line.send(framed(b"small"))
        await until(lambda: other.frames[-1] == framed(b"small"))

    async def test_many_small_ones_too(self, ends: tuple[End, End]) -> None:
        """More than a system call takes."""
        one, other = ends
        one.line.send(framed(bytes(MANY)))
        frames = [framed(b"%d" % number) for number in range(2000)]
        for frame in frames:
            one.line.send(frame[:4], frame[4:])
        await until(lambda: len(other.frames) == 1 + len(frames))
        assert other.frames[1:] == frames

    async def test_both_ways_at_once_though_both_are_full(self, ends: tuple[End, End]) -> None:
        big = [framed(bytes([number]) * MANY) for number in range(3)]
        for frame in big:
            for end in ends:
                end.line.send(frame[:4], frame[4:])
        await until(lambda: all(len(end.frames) == len(big) for end in ends))
        assert all(end.frames == big for end in ends)

    async def test_a_paused_reader_holds_up_nobody(self, ends: tuple[End, End]) -> None:
        one, other = ends
        other.line.pause()
        one.line.send(framed(bytes(MANY)))
        other.line.send(framed(b"back"))
        await until(lambda: one.frames == [framed(b"back")])
        other.line.resume()
        await until(lambda: other.frames == [framed(bytes(MANY))])

    async def test_a_writer_that_finds_no_room_after_all(
        self, bare: tuple[End, socket.socket]
    ) -> None:
        end, other = bare
        frame = framed(bytes(MANY))
        end.line.send(frame)
        end.line._on_writable()
        got = bytearray()
        loop = asyncio.get_running_loop()
        while len(got) < len(frame):
            got += await asyncio.wait_for(loop.sock_recv(other, 1024 * 1024), 10)
        assert got == frame


class TestTheEnd:
    async def test_the_other_end_closes(self, ends: tuple[End, End]) -> None:
        one, other = ends
        one.line.send(framed(b"last"))
        one.line.close()
        one.line.close()
        await until(lambda: other.closed)
        assert other.frames == [framed(b"last")]
        assert other.sock.fileno() == -1
        assert (one.closed, other.closed) == (0, 1)

    async def test_it_is_broken(self, bare: tuple[End, socket.socket]) -> None:
        """Closed with something unread: the system calls that a reset."""
        end, other = bare
        end.line.send(framed(b"unread"))
        other.close()
        await until(lambda: end.closed)
        assert end.sock.fileno() == -1

    async def test_writing_to_nobody(self, bare: tuple[End, socket.socket]) -> None:
        end, other = bare
        end.line.pause()
        other.close()
        end.line.send(framed(b"to nobody"))
        end.line.resume()
        await until(lambda: end.closed)
        end.line.send(b"after", b"the end")

    async def test_the_other_end_goes_while_something_waits(
        self, bare: tuple[End, socket.socket]
    ) -> None:
        end, other = bare
        end.line.pause()
        end.line.send(framed(bytes(MANY)))
        end.line.send(framed(b"more"))
        other.close()
        # It is not tried again, nor does it keep the loop busy.
        loop = asyncio.get_running_loop()
        await until(lambda: not loop.remove_writer(end.sock))
        end.line.resume()
        await until(lambda: end.closed)

    async def test_closing_while_something_waits(self, ends: tuple[End, End]) -> None:
        one, other = ends
        one.line.send(framed(bytes(MANY)))
        one.line.close()
        await until(lambda: other.closed)
        assert other.frames == []

    async def test_closing_when_something_comes(self, ends: tuple[End, End]) -> None:
        one, other = ends
        other.line.close()
        sock, mine = socket.socketpair()
        read: list[Frame] = []
        line: Line

        def take(frames: list[Frame]) -> None:
            read.extend(frames)
            line.close()

        line = Line(sock, take, lambda: read.append(b"closed"))
        with mine:
            mine.sendall(framed(b"1"))
            await until(lambda: read)
            await until(lambda: one.closed)
        line.resume()
        assert read == [framed(b"1")]

    async def test_draining_takes_all_that_has_come(self, bare: tuple[End, socket.socket]) -> None:
        end, other = bare
        end.line.pause()
        frames = [framed(bytes([number % 256]) * 999) for number in range(100)]
        other.sendall(b"".join(frames) + framed(b"cut")[:5])
        other.close()
        end.line.drain()
        assert end.frames == frames
        end.line.close()
        end.line.drain()
        assert end.frames == frames
        assert end.closed == 0

    async def test_draining_what_is_open_ends_too(self, bare: tuple[End, socket.socket]) -> None:
        end, other = bare
        other.sendall(framed(b"1"))
        end.line.drain()
        assert end.frames == [framed(b"1")]
        other.sendall(framed(b"2"))
        await until(lambda: end.frames == [framed(b"1"), framed(b"2")])

    async def test_forked_children_have_no_end_of_it(self, bare: tuple[End, socket.socket]) -> None:
        end, other = bare

        def write() -> None:
            os.write(end.sock.fileno(), b"from a child")

        assert forked(write).status == 0
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            other.recv(1)


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture
def ledgers() -> Iterator[tuple[Ledger, Ledger]]:
    """The front's and the worker's, of one file."""
    with tempfile.TemporaryFile() as file:
        file.truncate(Ledger.SIZE)
        front, worker = Ledger(file.fileno()), Ledger(file.fileno())
    yield front, worker
    front.close()
    worker.close()


Ledgers = tuple[Ledger, Ledger]


class TestLedger:
    def test_it_begins_with_nothing(self, ledgers: Ledgers) -> None:
        front, _ = ledgers
        assert (front.started, front.pace, front.wanted) == (0, 0, False)
        assert front.verdict == (Verdict.NONE, 0)
        assert {front.status(n) for n in range(Ledger.RING)} == {Status.UNKNOWN}

    def test_what_one_writes_the_other_reads(self, ledgers: Ledgers) -> None:
        front, worker = ledgers
        assert worker.start(7)
        assert front.started == 7
        worker.pace = 1234
        assert front.pace == 1234
        front.wanted = True
        assert worker.wanted is True
        front.wanted = False
        assert worker.wanted is False
        worker.judge(Verdict.OVERTIME, 7)
        assert front.verdict == (Verdict.OVERTIME, 7)
        worker.judge(Verdict.MEMORY, 0)
        assert front.verdict == (Verdict.MEMORY, 0)

    def test_nothing_overlaps(self, ledgers: Ledgers) -> None:
        front, worker = ledgers
        most = 2**64 - 1
        front.wanted = True
        front.revoke(most)
        worker.start(most - 1)
        worker.pace = most - 2
        worker.judge(Verdict.OVERTIME, most - 3)
        for number in range(Ledger.RING):
            worker.set_status(number, number % 4)
        assert (front.started, front.pace, front.wanted) == (most - 1, most - 2, True)
        assert front.verdict == (Verdict.OVERTIME, most - 3)
        assert [front.status(n) for n in range(Ledger.RING)] == [n % 4 for n in range(Ledger.RING)]
        assert not worker.start(most)

    def test_statuses_are_a_ring(self, ledgers: Ledgers) -> None:
        front, worker = ledgers
        worker.set_status(5, Status.DONE)
        worker.set_status(6, Status.WAITS)
        assert front.status(5) == front.status(5 + Ledger.RING) == Status.DONE
        front.set_status(5 + Ledger.RING, Status.UNKNOWN)
        assert (front.status(5 + Ledger.RING), front.status(6)) == (Status.UNKNOWN, Status.WAITS)

    def test_what_is_revoked_does_not_begin(self, ledgers: Ledgers) -> None:
        front, worker = ledgers
        assert worker.start(1)
        front.revoke(3)
        assert front.started == 1
        assert [worker.start(n) for n in (2, 3, 4)] == [False, False, True]

    @given(st.integers(0, 9), st.integers(1, 9))
    def test_each_begins_or_is_seen_to_have_been_revoked(self, begun: int, last: int) -> None:
        """Whenever the front revokes: what it does not see begun is not begun."""
        with tempfile.TemporaryFile() as file:
            file.truncate(Ledger.SIZE)
            front, worker = Ledger(file.fileno()), Ledger(file.fileno())
        done = [n for n in range(1, begun + 1) if worker.start(n)]
        front.revoke(last)
        seen = front.started
        done += [n for n in range(begun + 1, 10) if worker.start(n)]
        assert done == [n for n in range(1, 10) if n <= seen or n > last]
        front.close()
        worker.close()

    def test_it_outlives_who_wrote_it(self, ledgers: Ledgers) -> None:
        """That is what it is for: of a worker that has ended it tells how far that came."""
        front, worker = ledgers

        def work() -> None:
            worker.start(3)
            worker.set_status(2, Status.DONE)
            os.kill(os.getpid(), signal.SIGKILL)

        assert forked(work).status == -signal.SIGKILL
        assert (front.started, front.status(2)) == (3, Status.DONE)

    def test_closing_gives_it_back(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(Ledger.SIZE)
            ledger = Ledger(file.fileno())
        ledger.close()
        with pytest.raises(ValueError, match="released"):
            ledger.started  # noqa: B018
