"""Large data of answers, lent to those who asked for it, used again, and closed."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

from snex_node.wire.describe import inspect
from snex_node.wire.etf import Decoder, EncodeError
from snex_node.wire.terms import Atom, Pid
from snex_runtime import lending, regions, serde, shared
from snex_runtime.errors import BadRequest
from snex_runtime.lending import IDLE, LENT, MAX_BYTES, MAX_REGIONS, THRESHOLD, Arena, Lending
from snex_runtime.regions import HEADER, Region
from tests.support.calling import OK, Caller, calling
from tests.support.requests import Line, Peer, request_of
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not regions.SUPPORTED, reason="only Linux has such memory")

A = Atom
OWNER = Pid("py@host", 1, 0, 5)
NODE = "app@host"
LARGE = bytes(range(256)) * (THRESHOLD // 256)
TEXT = "x" * THRESHOLD


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def arena(clock: Clock) -> Iterator[Arena]:
    before = descriptors()
    made = Arena(OWNER, clock)
    yield made
    made.close()
    gc.collect()
    assert made.counts == (0, 0)
    assert descriptors() == before


def lent(arena: Arena, data: bytes, node: str = NODE) -> Any:
    handle = arena.lend(memoryview(data), node)
    assert handle is not None
    return handle


class TestArena:
    def test_a_handle(self, arena: Arena) -> None:
        handle = lent(arena, LARGE)
        assert {str(name) for name in handle} == {
            "__struct__",
            "fd",
            "id",
            "os_pid",
            "owner",
            "size",
        }
        assert handle["owner"] == OWNER
        assert handle["os_pid"] == os.getpid()
        assert bytes(shared.load(handle)) == LARGE

    def test_memory_is_used_again_when_it_has_been_dropped(self, arena: Arena) -> None:
        first = lent(arena, LARGE)
        second = lent(arena, b"y" * THRESHOLD)
        assert first["fd"] != second["fd"]
        assert arena.counts == (2, 0)
        arena.dropped(first["id"], NODE)
        third = lent(arena, b"z" * THRESHOLD)
        assert third["fd"] == first["fd"]
        assert third["id"] != first["id"]
        assert bytes(shared.load(third)) == b"z" * THRESHOLD
        assert bytes(shared.load(second)) == b"y" * THRESHOLD
        with pytest.raises(regions.RegionError, match="something else"):
            shared.load(first)

    def test_others_cannot_say_that_it_is_dropped(self, arena: Arena) -> None:
        first = lent(arena, LARGE)
        arena.dropped(first["id"], "other@host")
        arena.dropped(b"unknown", NODE)
        assert arena.counts == (1, 0)

    def test_of_those_that_fit_the_smallest_is_taken(self, arena: Arena) -> None:
        sizes = (8, 1, 4)
        handles = [lent(arena, LARGE * size) for size in sizes]
        for handle in handles:
            arena.dropped(handle["id"], NODE)
        assert lent(arena, LARGE * 2)["fd"] == handles[2]["fd"]
        assert lent(arena, LARGE)["fd"] == handles[1]["fd"]
        assert lent(arena, LARGE * 40)["fd"] != handles[0]["fd"]  # it has no room
        assert arena.counts == (3, 1)

    def test_what_nobody_has_dropped_is_closed_after_a_while(
        self, arena: Arena, clock: Clock
    ) -> None:
        handle = lent(arena, LARGE)
        view = shared.load(handle)
        clock.now += LENT - 1
        assert arena.check() is None
        assert arena.counts == (1, 0)
        clock.now += 1
        arena.check()
        assert arena.counts == (0, 0)
        arena.dropped(handle["id"], NODE)
        lent(arena, b"y" * THRESHOLD)
        assert bytes(view) == LARGE

    def test_what_is_idle_is_closed(self, arena: Arena, clock: Clock) -> None:
        arena.dropped(lent(arena, LARGE)["id"], NODE)
        clock.now += IDLE - 1
        arena.check()
        assert arena.counts == (0, 1)
        clock.now += 1
        arena.check()
        assert arena.counts == (0, 0)

    def test_what_a_node_had_is_closed_when_it_is_gone(self, arena: Arena) -> None:
        first = lent(arena, LARGE)
        lent(arena, LARGE, "other@host")
        view = shared.load(first)
        arena.node_down(NODE)
        assert arena.counts == (1, 0)
        arena.dropped(first["id"], NODE)
        assert arena.counts == (1, 0)
        assert bytes(view) == LARGE

    def test_free_memory_is_bounded(self, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lending, "MAX_FREE_BYTES", 2 * (THRESHOLD + HEADER))
        handles = [lent(arena, LARGE) for _ in range(3)]
        for handle in handles:
            arena.dropped(handle["id"], NODE)
        assert arena.counts == (0, 2)
        assert {lent(arena, LARGE)["fd"] for _ in range(2)} == {h["fd"] for h in handles[1:]}

    def test_all_memory_is_bounded(self, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lending, "MAX_BYTES", 4 * (THRESHOLD + HEADER))
        handles = [lent(arena, LARGE) for _ in range(4)]
        assert arena.lend(memoryview(LARGE), NODE) is None
        for handle in handles[:2]:
            arena.dropped(handle["id"], NODE)
        # Free ones make place for one that is larger.
        lent(arena, LARGE * 2)
        assert arena.counts == (3, 0)
        assert arena.lend(memoryview(LARGE * 2), NODE) is None

    def test_there_are_so_many_at_the_most(
        self, arena: Arena, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert MAX_REGIONS * 3 < 1024  # files of a process, where nobody has set more
        assert MAX_BYTES > 2**30
        monkeypatch.setattr(lending, "MAX_REGIONS", 2)
        for _ in range(2):
            lent(arena, LARGE)
        assert arena.lend(memoryview(LARGE), NODE) is None

    def test_where_the_system_gives_none(
        self, arena: Arena, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(Region, "write", refuse)
            assert arena.lend(memoryview(LARGE), NODE) is None
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", refuse)
            assert arena.lend(memoryview(LARGE), NODE) is None
        with monkeypatch.context() as patch:
            patch.setattr(regions, "SUPPORTED", False)
            assert arena.lend(memoryview(LARGE), NODE) is None
        # Nothing of that is counted.
        monkeypatch.setattr(lending, "MAX_BYTES", THRESHOLD + HEADER)
        lent(arena, LARGE)

    def test_a_closed_one_lends_nothing(self, arena: Arena) -> None:
        lent(arena, LARGE)
        arena.dropped(lent(arena, LARGE)["id"], NODE)
        arena.close()
        assert arena.lend(memoryview(LARGE), NODE) is None

    def test_one_that_is_closed_meanwhile_keeps_nothing(
        self, arena: Arena, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Region.write

        def close_and_write(region: Region, name: bytes, data: memoryview) -> None:
            arena.close()
            write(region, name, data)

        monkeypatch.setattr(Region, "write", close_and_write)
        lent(arena, LARGE)


_bytes = Decoder()


class Borrower:
    """A node that has asked, and what it gets."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.lending = Lending(arena)
        self.peer = Peer()

    def probe(self, handle: object = None) -> Any:
        answer = self.lending.requested(request_of((A("shared"), handle), remote=self.peer))
        tag, value = _bytes.decode(answer)[0]
        assert tag == A("ok")
        return value

    def dropped(self, *parts: object) -> bytes:
        request = request_of((A("shared"), (A("dropped"), *parts)), remote=self.peer)
        return self.lending.requested(request)

    def got(self, value: object) -> Any:
        return _bytes.decode(self.lending.to(self.peer).encoder.encode(value))[0]


@pytest.fixture
def borrower(arena: Arena) -> Borrower:
    made = Borrower(arena)
    made.dropped(made.probe()[1][A("id")])
    return made


def content(handle: Any) -> bytes:
    assert handle["__struct__"] == "Elixir.Snex.Shared", inspect(handle)
    return bytes(shared.load(handle))


class TestProbes:
    def test_both_ways(self, arena: Arena) -> None:
        borrower = Borrower(arena)
        read, answer = borrower.probe(lent(arena, b""))
        assert read is True
        assert content(answer) == b""

    def test_what_cannot_be_read(self, arena: Arena) -> None:
        borrower = Borrower(arena)
        assert borrower.probe(None)[0] is False
        assert borrower.probe({A("os_pid"): 1})[0] is False
        assert borrower.probe({**lent(arena, b""), A("os_pid"): 1})[0] is False

    def test_where_nothing_can_be_lent(self, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        borrower = Borrower(arena)
        monkeypatch.setattr(regions, "SUPPORTED", False)
        assert borrower.probe(None) == (False, None)
        assert borrower.lending.to(borrower.peer) is borrower.peer

    def test_where_tensors_are_not_looked_into(self, arena: Arena) -> None:
        peer = Peer()
        request = request_of((A("shared"), lent(arena, b"")), remote=peer)
        answer: Any = _bytes.decode(Lending(arena, opens=False).requested(request))[0]
        assert answer[1][0] is False

    @pytest.mark.parametrize(
        "parts", [(), (1,), (None, None), (b"handle",), ([],), ((),), ((A("dropped"),),)]
    )
    def test_others_are_refused(self, arena: Arena, parts: tuple[object, ...]) -> None:
        request = request_of((A("shared"), *parts))
        with pytest.raises(BadRequest, match="a shared request"):
            Lending(arena).requested(request)

    @pytest.mark.parametrize("parts", [(1,), (b"unknown",), (None,)])
    def test_drops_that_are_none(self, borrower: Borrower, parts: tuple[object, ...]) -> None:
        assert borrower.dropped(*parts) == b"w\2ok"


class TestAnswers:
    def test_only_to_those_who_have_asked(self, arena: Arena, borrower: Borrower) -> None:
        stranger = Lending(arena)
        assert stranger.to(borrower.peer) is borrower.peer
        assert arena.counts == (0, 1)
        borrower.lending.node_down("other@host")
        assert arena.counts == (0, 1)
        borrower.lending.node_down(NODE)
        assert borrower.got(LARGE) == LARGE
        assert arena.counts == (0, 0)

    def test_all_else_is_the_node_s(self, arena: Arena, borrower: Borrower) -> None:
        borrower.peer.connection = Line()
        found = borrower.lending.to(borrower.peer)
        assert found.name == NODE
        assert found.connection is borrower.peer.connection
        assert found.alias_send is borrower.peer.alias_send
        assert found.encoder.encode(1, b"before") == b"beforea\1"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (LARGE, LARGE),
            (bytearray(LARGE), LARGE),
            (memoryview(LARGE), LARGE),
            (memoryview(LARGE).cast("I"), LARGE),
            (memoryview(LARGE + LARGE)[::2], (LARGE + LARGE)[::2]),
            (TEXT, TEXT.encode()),
            ("\u00e9" * THRESHOLD, ("\u00e9" * THRESHOLD).encode()),
        ],
    )
    def test_what_is_large(self, borrower: Borrower, value: object, expected: bytes) -> None:
        assert content(borrower.got(value)) == expected

    @pytest.mark.parametrize(
        "value", [LARGE[1:], bytearray(LARGE[1:]), memoryview(LARGE)[1:], TEXT[1:]]
    )
    def test_what_is_not(self, borrower: Borrower, value: Any) -> None:
        expected = value.encode() if isinstance(value, str) else bytes(value)
        assert borrower.got(value) == expected

    def test_whatever_it_is_in(self, borrower: Borrower) -> None:
        value = {"a": [1, (LARGE, "small"), {"b": {"c": TEXT}}], "d": [1.5, None]}
        got = borrower.got(value)
        one, (large, small), inner = got[b"a"]
        assert (one, small, got[b"d"]) == (1, b"small", [1.5, None])
        assert content(large) == LARGE
        assert content(inner[b"b"][b"c"]) == TEXT.encode()
        assert value["a"][1] == (LARGE, "small")  # type: ignore[index]

    def test_what_is_derived_from_containers(self, borrower: Borrower) -> None:
        class Pairs(dict[str, object]):
            pass

        class Items(list[object]):
            pass

        point = os.terminal_size((1, 2))  # a tuple with names
        got = borrower.got([Pairs(a=LARGE), Items([TEXT]), point, Pairs(b=1)])
        assert content(got[0][b"a"]) == LARGE
        assert content(got[1][0]) == TEXT.encode()
        assert got[2:] == [(1, 2), {b"b": 1}]

    def test_keys_and_sets_stay(self, borrower: Borrower) -> None:
        got = borrower.got({TEXT: {LARGE}})
        assert got[TEXT.encode()][A("map")] == {LARGE: []}

    def test_arrays(self, borrower: Borrower) -> None:
        numpy = pytest.importorskip("numpy", reason="there is no NumPy for this Python")
        array = numpy.arange(THRESHOLD // 4, dtype="float32").reshape(2, -1)
        got = borrower.got({"a": [array, numpy.float64(1.5), array[:, :2]]})[b"a"]
        assert got[0][A("type")] == (A("f"), 32)
        assert got[0][A("shape")] == array.shape
        assert content(got[0][A("data")]) == array.tobytes()
        assert got[1] == 1.5
        assert got[2][A("data")] == array[:, :2].tobytes()
        shaped = memoryview(LARGE).cast("B", (2, len(LARGE) // 2))
        assert content(borrower.got(shaped)[A("data")]) == LARGE

    @pytest.mark.parametrize("custom", [False, True])
    def test_tables(
        self, borrower: Borrower, custom: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="there is no pyarrow for this Python")
        table = pyarrow.table({"a": list(range(THRESHOLD // 8)), "b": ["x"] * (THRESHOLD // 8)})

        def refuse(value: object) -> object:
            raise TypeError("not known here")

        if custom:  # it has the first word, so a table is not written into memory at once
            monkeypatch.setattr(serde, "_custom", refuse)
        for sent in (table, table.to_batches()[0]):
            got = borrower.got([sent])[0]
            assert got["__struct__"] == "Elixir.Snex.Arrow"
            data = pyarrow.py_buffer(content(got[A("data")]))
            assert pyarrow.ipc.open_stream(data).read_all().equals(table)
        small = borrower.got(table.slice(0, 1))
        assert len(small[A("data")]) < 1000

    def test_tables_beyond_the_bounds(
        self, borrower: Borrower, arena: Arena, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="there is no pyarrow for this Python")
        table = pyarrow.table({"a": list(range(THRESHOLD // 8))})
        monkeypatch.setattr(lending, "MAX_BYTES", THRESHOLD)
        data = borrower.got(table)[A("data")]
        assert pyarrow.ipc.open_stream(pyarrow.py_buffer(data)).read_all().equals(table)
        monkeypatch.setattr(lending, "MAX_BYTES", MAX_BYTES)
        monkeypatch.setattr(Region, "write_by", lambda *_: 1 / 0)
        assert borrower.got(table)[A("data")] == data
        assert arena.counts[0] == 0

    def test_what_a_custom_encoder_gives(
        self, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serde, "_custom", lambda value: {"raw": LARGE})
        assert content(borrower.got([object()])[0][b"raw"]) == LARGE

    def test_nothing_is_lent_of_what_cannot_be_sent(self, arena: Arena, borrower: Borrower) -> None:
        with pytest.raises(EncodeError, match=r"object.*at \[1\]"):
            borrower.got([LARGE, object()])
        with pytest.raises(EncodeError, match="not UTF-8"):
            borrower.got([LARGE, "\ud800" * THRESHOLD])
        assert arena.counts[0] == 0

    def test_what_contains_itself(self, arena: Arena, borrower: Borrower) -> None:
        circle: list[object] = [LARGE]
        circle.append(circle)
        with pytest.raises(EncodeError, match="contains itself"):
            borrower.got(circle)
        assert arena.counts[0] == 0

    def test_beyond_the_bounds_it_is_sent(
        self, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lending, "MAX_REGIONS", 1)
        large, text = borrower.got([LARGE, TEXT])
        assert content(large) == LARGE
        assert text == TEXT.encode()


@pytest.fixture
async def caller() -> Any:
    async with calling() as made:
        yield made


SHARED = {A("shared"): True}


async def asked(caller: Caller) -> None:
    ok, (_read, probe) = await caller.call((A("shared"), None))
    assert ok == OK
    assert probe is not None


class TestRequests:
    """As a BEAM makes them, to a runtime."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"executor": A("thread")},
            {"timeout": 5000},
            {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"},
        ],
    )
    @pytest.mark.parametrize(
        "code", ["return [x * n]", "import asyncio\nawait asyncio.sleep(0)\nreturn [x * n]"]
    )
    async def test_answers(self, caller: Caller, code: str, options: dict[str, object]) -> None:
        await asked(caller)
        given = {**{A(name): value for name, value in options.items()}, **SHARED}
        ok, (handle,) = await caller.eval(code, {"x": "x", "n": THRESHOLD}, given)
        assert ok == OK
        assert content(handle) == TEXT.encode()

    async def test_without_the_option(self, caller: Caller) -> None:
        await asked(caller)
        assert await caller.value("return 'x' * n", {"n": THRESHOLD}) == TEXT.encode()
        off = {A("shared"): False}
        assert await caller.eval("return 'x' * n", {"n": THRESHOLD}, off) == (OK, TEXT.encode())

    async def test_without_having_asked(self, caller: Caller) -> None:
        assert await caller.eval("return 'x' * n", {"n": THRESHOLD}, SHARED) == (OK, TEXT.encode())

    async def test_an_option_that_is_none(self, caller: Caller) -> None:
        request: object = (A("eval"), "return 1", {}, {A("shared"): 1})
        assert await caller.error(request) == ("bad_request", "shared takes true or false, not 1")

    async def test_to_an_environment(self, caller: Caller) -> None:
        env = await caller.env()
        ok, (_, probe) = await caller.call((A("shared"), None), env)
        assert ok == OK
        assert content(probe) == b""
        _, handle = await caller.eval("return 'x' * n", {"n": THRESHOLD}, SHARED, to=env)
        assert content(handle) == TEXT.encode()

    async def test_what_is_lent_to_python(self, caller: Caller) -> None:
        # The caller's node is in this process, and has lent what Python gave it.
        await asked(caller)
        _, handle = await caller.eval("return 'x' * n", {"n": THRESHOLD}, SHARED)
        env = await caller.env({"x": handle})
        assert await caller.value("return len(x)", to=env) == THRESHOLD
        wrong = {**handle, A("id"): b"0" * 16}
        code, reason = await caller.error((A("eval"), "return 1", {"x": wrong}), env)
        assert code == "python_runtime_error"
        assert reason == (
            f"shared data of {THRESHOLD} bytes cannot be read: it holds something else by now"
        )
        assert await caller.value("return len(x)", to=env) == THRESHOLD

    async def test_what_is_dropped_is_used_again(self, caller: Caller) -> None:
        await asked(caller)
        code = "return 'x' * n"
        _, first = await caller.eval(code, {"n": THRESHOLD}, SHARED)
        caller.node.send(caller.to, (A("shared"), (A("dropped"), first["id"])))
        _, second = await caller.eval(code, {"n": THRESHOLD}, SHARED)
        assert second["fd"] == first["fd"]

    async def test_nothing_stays_open(self, caller: Caller) -> None:
        before = descriptors()
        await asked(caller)
        _, handle = await caller.eval("return 'x' * n", {"n": THRESHOLD}, SHARED)
        assert descriptors() > before
        caller.node.disconnect(caller.server.node.name)
        await until(lambda: descriptors() < before)  # and the connection's
        with pytest.raises(regions.RegionError):
            shared.load(handle)

    async def test_a_runtime_that_ends_closes_all(self, caller: Caller) -> None:
        await asked(caller)
        _, handle = await caller.eval("return 'x' * n", {"n": THRESHOLD}, SHARED)
        caller.server.exit(A("shutdown"))
        with pytest.raises(regions.RegionError):
            shared.load(handle)
