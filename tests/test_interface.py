"""``snex.send``, ``call``, ``cast``, ``Elixir``: arguments, destinations, the queue of records."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from snex_node import Process
from snex_node.errors import ConnectError, NodeError
from snex_node.wire import etf
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.gen import From
from snex_node.wire.terms import Pid, Reference
from snex_runtime import interface, serde
from snex_runtime.interface import (
    MAX_LOG_RECORDS,
    BeamModuleProxy,
    Elixir,
    ElixirError,
    LogQueue,
    NodeBackend,
)
from snex_runtime.origin import origin
from snex_runtime.serde import Atom, Term
from tests.support.pair import Pair, pair
from tests.support.waiting import until


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


class Recorder:
    """A backend that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def send(self, *asked: object) -> None:
        self.asked.append(("send", *asked))

    async def cast(self, *asked: object) -> None:
        self.asked.append(("cast", *asked))

    async def call(self, *asked: object) -> object:
        self.asked.append(("call", *asked))
        return "answer"

    def log(self, *asked: object) -> None:
        self.asked.append(("log", *asked))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    before = interface.current_backend()
    interface.set_backend(made)
    yield made
    interface.set_backend(before)


class TestFunctions:
    async def test_without_a_beam(self) -> None:
        for work in (interface.send("x", 1), interface.cast("m", "f", []), Elixir.M.f()):
            with pytest.raises(RuntimeError, match="run it under snex-node, or let"):
                await work

    async def test_call(self, recorder: Recorder) -> None:
        atom = Term(etf.Encoder().encode(Atom("m")))
        assert await interface.call(atom, Atom("f"), (1, 2), node=atom) == "answer"
        await interface.call("m", "f", iter([1]), result_encoding_opts={"binary_as": "bytes"})
        bytes_decoder = serde.decoder(serde.Options("bytes"))
        assert recorder.asked == [
            ("call", "m", "f", [1, 2], "m", None),
            ("call", "m", "f", [1], None, bytes_decoder),
        ]

    async def test_cast_and_send(self, recorder: Recorder) -> None:
        await interface.cast("m", "f", [])
        await interface.send("to", {"a": 1})
        assert recorder.asked == [("cast", "m", "f", [], None), ("send", "to", {"a": 1})]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((1, "f", []), TypeError, "module takes a name"),
            (("m", [], []), TypeError, "function takes a name"),
            (("m", "f", "text"), TypeError, r"are a list, not 'text': \['text'\]"),
            (("m", "f", 7), TypeError, "not iterable"),
            (("m" * 256, "f", []), ValueError, "atom too long"),
            (("m", "f" * 256, []), ValueError, "atom too long"),
        ],
    )
    async def test_refused(
        self, recorder: Recorder, arguments: Any, error: type[Exception], message: str
    ) -> None:
        for function in (interface.call, interface.cast):
            with pytest.raises(error, match=message):
                await function(*arguments)
        with pytest.raises(ValueError, match="unknown encoding option"):
            await interface.call("m", "f", [], result_encoding_opts={"x": 1})  # type: ignore[arg-type]
        assert recorder.asked == []


class TestProxy:
    async def test_names(self, recorder: Recorder) -> None:
        await Elixir.String.Chars.to_string(1)
        await Elixir.Enum.map([1], "f", node="n@h", result_encoding_opts={"set_as": "set"})
        await BeamModuleProxy("lists").sum([1], cast=True, node="n@h")
        await BeamModuleProxy("lists", "sum")([1])
        assert recorder.asked == [
            ("call", "Elixir.String.Chars", "to_string", [1], None, None),
            ("call", "Elixir.Enum", "map", [[1], "f"], "n@h", serde.decoder()),
            ("cast", "lists", "sum", [[1]], "n@h"),
            ("call", "lists", "sum", [[1]], None, None),
        ]

    def test_what_it_refuses(self) -> None:
        with pytest.raises(TypeError, match="is a module; call one of its functions"):
            Elixir.Enum()
        for attribute in ("__len__", "__wrapped__", "__x__"):
            with pytest.raises(AttributeError):
                getattr(Elixir, attribute)
        with pytest.raises(AttributeError, match="is a function and has no reduce"):
            Elixir.Enum.map.reduce  # noqa: B018

    def test_text(self) -> None:
        assert repr(Elixir) == "<snex.BeamModuleProxy Elixir>"
        assert repr(Elixir.Enum.map) == "<snex.BeamModuleProxy Elixir.Enum.map>"

    def test_copies(self) -> None:
        for made in (copy.copy(Elixir.Enum.map), pickle.loads(pickle.dumps(Elixir.Enum.map, 5))):
            assert repr(made) == repr(Elixir.Enum.map)


class TestDestinations:
    async def test_forms(self, both: Pair) -> None:
        backend = both.server.backend
        for raw in (Pid("a@b", 1, 0, 1), Reference("a@b", 1, (1, 2, 3))):
            assert backend.destination(raw) == raw
            assert backend.destination(Term(raw.external)) == raw
        assert backend.destination("name") == ("name", both.peer.name)
        node = Term(etf.Encoder().encode(Atom("n@h")))
        assert backend.destination((Atom("name"), node)) == ("name", "n@h")

    @pytest.mark.parametrize(
        "to", [7, None, [], ("a",), ("a", 7), (7, "n@h"), ("a", "b", "c"), b"x"]
    )
    async def test_refused(self, both: Pair, to: object) -> None:
        with pytest.raises(TypeError, match="it takes a pid, an alias, a name or"):
            await interface.send(to, 1)


class TestDefaultNode:
    async def test_order_of_preference(self, both: Pair) -> None:
        backend = both.server.backend
        assert backend.default_node() == both.peer.name  # the only one
        backend.last_origin = "gone@nowhere"
        assert backend.default_node() == both.peer.name
        token = origin.set((both.node.remote("asked@127.0.0.1"), None))
        assert backend.default_node() == "asked@127.0.0.1"
        origin.reset(token)

    async def test_errors(self, both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = both.server.backend
        monkeypatch.setattr(type(both.node), "nodes", property(lambda _: ["a@h", "b@h"]))
        with pytest.raises(LookupError, match="2 are connected and no request is running"):
            backend.default_node()
        assert backend.log_node("b@h") == "b@h"
        assert backend.log_node("c@h") == "a@h"
        monkeypatch.setattr(type(both.node), "nodes", property(lambda _: []))
        with pytest.raises(LookupError, match="no BEAM is connected"):
            backend.default_node()
        assert backend.log_node("b@h") is None


async def test_a_second_runtime_is_left_alone() -> None:
    # The first runtime of the process ends; the backend of the second one stays.
    async with pair() as first, pair(name="other") as second:
        assert interface.get_backend() is second.server.backend
        first.server.exit()
        assert interface.get_backend() is second.server.backend
        second.server.exit()
        assert interface.current_backend() is None


class TestOutcome:
    """What decodes the end of an erpc call: results by the caller's options, all else as it is."""

    REF = Reference("n@h", 1, (1, 2, 3))

    def decode(self, term: object, options: serde.Options = serde.DEFAULTS) -> Any:
        data = b"..." + etf.Encoder().encode(term) + b"rest"
        decoded, end = interface.Outcome(serde.decoder(options)).decode(data, 3)
        assert data[end:] == b"rest"
        return decoded

    def test_a_result(self) -> None:
        told = self.decode((self.REF, Atom("return"), [b"text", self.REF]))
        assert told[:2] == (self.REF, "return")
        assert told[2][0] == "text"
        assert isinstance(told[2][1], Term)
        raw = self.decode((self.REF, Atom("return"), [b"\xff"]), serde.Options("bytes"))
        assert raw[2] == [b"\xff"]

    def test_an_exception_is_told_of_whatever_it_holds(self) -> None:
        told = self.decode((self.REF, Atom("error"), b"\xff", [(Atom("m"), self.REF)]))
        assert told == (self.REF, "error", b"\xff", [("m", self.REF)])
        assert self.decode(Atom("killed")) == "killed"

    def test_a_result_that_cannot_be_converted(self) -> None:
        with pytest.raises(DecodeError, match="UTF-8"):
            self.decode((self.REF, Atom("return"), b"\xff"))
        struct = {
            Atom("__struct__"): Atom("Elixir.Snex.Serde.Object"),
            Atom("module"): b"builtins",
            Atom("name"): b"int",
            Atom("args"): [b"x"],
        }
        with pytest.raises(DecodeError, match="invalid literal for int"):
            self.decode((self.REF, Atom("return"), struct))

    @pytest.mark.parametrize("cut", range(40))
    def test_truncated(self, cut: int) -> None:
        data = etf.Encoder().encode((self.REF, Atom("return"), [b"text"]))
        with pytest.raises(DecodeError):
            interface.Outcome(Decoder()).decode(data[:cut])


class Named:
    """A node by its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Carrier:
    """Takes the records of a `LogQueue`, as told."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.node: str | None = "app@h"
        self.taken: list[tuple[str, list[object]]] = []
        self.errors: list[Exception] = []
        self.delivering: list[bool] = []
        self.hold: asyncio.Event | None = None

    def log_node(self, wanted: str | None) -> str | None:
        return wanted or self.node if self.node else None

    async def write_log(self, node: str, args: list[object]) -> None:
        self.delivering.append(interface.delivering_logs.get())
        if self.hold is not None:
            await self.hold.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append((node, args))

    def call_soon(self, function: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(function)

    @property
    def texts(self) -> list[object]:
        return [args[1] for _, args in self.taken]


class TestLogQueue:
    async def test_in_order_and_marked(self) -> None:
        carrier = Carrier()
        queue = LogQueue(carrier)
        for n in range(20):
            queue.put("info", f"{n}", {})
        await until(lambda: len(carrier.taken) == 20)
        assert carrier.texts == [str(n) for n in range(20)]
        assert carrier.taken[0] == ("app@h", [Atom("info"), "0", {}])
        assert all(carrier.delivering)
        assert not interface.delivering_logs.get()

    async def test_kept_while_nobody_is_there(self) -> None:
        carrier = Carrier()
        carrier.node = None
        queue = LogQueue(carrier)
        queue.put("info", "early", {})
        await asyncio.sleep(0)
        queue.wake()
        assert carrier.taken == []
        carrier.node = "app@h"
        queue.wake()
        await until(lambda: carrier.texts == ["early"])

    async def test_those_beyond_the_limit_are_counted_and_told(self) -> None:
        carrier = Carrier()
        carrier.hold = asyncio.Event()
        queue = LogQueue(carrier, limit=3)
        for n in range(5):
            queue.put("info", f"{n}", {})
        assert queue.dropped == 2
        carrier.hold.set()
        await until(lambda: len(carrier.taken) == 4)
        assert carrier.texts == ["0", "1", "2", "2 log records of Python were dropped"]
        assert carrier.taken[3][1][0] == "warning"
        assert carrier.taken[3][1][2] == {"application": "snex"}
        # Told once.
        queue.put("info", "next", {})
        await until(lambda: carrier.texts[-1:] == ["next"])
        assert len(carrier.taken) == 5

    async def test_a_record_that_fails_does_not_hold_up_the_next(self) -> None:
        carrier = Carrier()
        carrier.errors = [NodeError("no Logger"), ValueError("no term")]
        queue = LogQueue(carrier)
        for n in range(3):
            queue.put("info", f"{n}", {})
        await until(lambda: len(carrier.taken) == 2)
        assert carrier.texts == ["2", "2 log records of Python were dropped"]
        assert queue.dropped == 2

    async def test_a_connection_that_does_not_come_about_keeps_them(self) -> None:
        carrier = Carrier()
        carrier.errors = [ConnectError("app@h", "unreachable", "no")]
        queue = LogQueue(carrier)
        queue.put("info", "kept", {})
        await until(lambda: not carrier.errors and not queue.writing)
        assert (carrier.taken, queue.dropped) == ([], 0)
        queue.wake()
        await until(lambda: carrier.texts == ["kept"])

    async def test_what_waits_for_records_is_released_when_they_have_arrived(self) -> None:
        carrier = Carrier()
        carrier.hold = asyncio.Event()
        queue = LogQueue(carrier)
        released: list[str] = []
        here, there = (From(Pid("app@h", n, 0, 1), bytes((97, n)), None) for n in (1, 2))
        assert not queue.hold(here, lambda: released.append("never"))
        for request in (here, there, here):
            token = origin.set((Named("app@h"), request))
            queue.put("info", "text", {})
            origin.reset(token)
        other = From(Pid("app@h", 3, 0, 1), b"a\x03", None)
        assert not queue.hold(other, lambda: released.append("never"))
        assert queue.hold(here, lambda: released.append(f"here {len(carrier.taken)}"))
        assert queue.hold(there, lambda: released.append(f"there {len(carrier.taken)}"))
        assert queue.hold(here, lambda: released.append("here again"))
        # What no request logged, a thread of an executor say, may have been any's.
        queue.put("info", "text", {})
        assert queue.hold(other, lambda: released.append(f"other {len(carrier.taken)}"))
        carrier.hold.set()
        await until(lambda: not queue.records)
        assert released == ["there 2", "here 3", "here again", "other 4"]
        for request in (here, there, other):
            assert not queue.hold(request, lambda: released.append("never"))

    async def test_nothing_waits_longer_than_it_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(interface, "LOG_PATIENCE", 0.01)
        carrier = Carrier()
        carrier.hold = asyncio.Event()
        queue = LogQueue(carrier)
        queue.put("info", "text", {})
        released = asyncio.Event()
        assert queue.hold(From(Pid("app@h", 1, 0, 1), b"a\x01", None), released.set)
        await asyncio.wait_for(released.wait(), 5)
        assert carrier.taken == []
        carrier.hold.set()
        await until(lambda: carrier.texts == ["text"])

    async def test_closing_releases_what_waits(self) -> None:
        carrier = Carrier()
        carrier.hold = asyncio.Event()
        queue = LogQueue(carrier)
        queue.put("info", "text", {})
        released: list[int] = []
        request = From(Pid("app@h", 1, 0, 1), b"a\x01", None)
        assert queue.hold(request, lambda: released.append(1))
        queue.close()
        assert released == [1]
        assert not queue.hold(request, lambda: released.append(2))

    async def test_a_loop_that_is_closed_costs_the_record_only(self) -> None:
        carrier = Carrier()
        carrier.loop = asyncio.new_event_loop()
        carrier.loop.close()
        queue = LogQueue(carrier)
        queue.put("info", "text", {})
        assert queue.dropped == 1

    async def test_closed(self) -> None:
        carrier = Carrier()
        carrier.hold = asyncio.Event()
        queue = LogQueue(carrier)
        queue.put("info", "never", {})
        await until(lambda: carrier.delivering)
        queue.close()
        await until(lambda: not queue.writing)
        assert carrier.taken == []

    async def test_the_limit_of_a_node(self, both: Pair) -> None:
        backend = both.server.backend
        both.server.node.disconnect(both.peer.name)
        await until(lambda: not both.node.nodes)
        for _ in range(MAX_LOG_RECORDS + 7):
            backend.log("info", "text", {})
        assert backend.logs_dropped == 7
        assert isinstance(backend, NodeBackend)


def test_elixir_error() -> None:
    error = ElixirError("text", "throw", 5)
    assert (str(error), error.kind, error.reason) == ("text", "throw", 5)
    assert (ElixirError("x").kind, ElixirError.__module__) == ("error", "snex")
    assert repr(error).startswith("ElixirError(")


NOTED: list[object] = []


def note(*args: object) -> int:
    """Called from the other node."""
    NOTED.append(args)
    return len(args)


def fail(text: object) -> None:
    """Called from the other node."""
    raise LookupError(text)


@pytest.fixture
def noted() -> Iterator[list[object]]:
    NOTED.clear()
    yield NOTED
    NOTED.clear()


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Provide a module of Elixir's on the other node: its functions by their names."""

    def provide(name: str, **functions: object) -> None:
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)

    return provide


HERE = "tests.test_interface"


class TestNodeBackend:
    """The other node is one of ours, which calls functions of Python modules."""

    async def test_send(self, both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        process = Process(both.peer, name="taker")
        await interface.send("taker", 1)
        monkeypatch.setattr(interface, "HIGH_WATER", -1)  # so that it waits until all is written
        await interface.send(process.pid, 2)
        own = Process(both.node, name="own")
        await interface.send(("own", both.node.name), 3)
        assert [await process.receive(timeout=5) for _ in range(2)] == [1, 2]
        assert await own.receive(timeout=5) == 3

    async def test_call(self, both: Pair, noted: list[object]) -> None:
        assert await interface.call(HERE, "note", [1, "two"]) == 2
        assert noted == [(1, "two")]
        found = await interface.call("os.path", "basename", ["a/b"], node=both.peer.name)
        assert found == "b"

    async def test_from_another_loop(self, both: Pair) -> None:
        async def call() -> object:
            return await interface.call("math", "sqrt", [16])

        assert await asyncio.to_thread(asyncio.run, call()) == 4.0

    async def test_options_of_the_result(self, both: Pair) -> None:
        options: Any = {"binary_as": "bytes"}
        call = interface.call("os.path", "basename", ["a/b"], result_encoding_opts=options)
        assert await call == b"b"

    async def test_cast(self, both: Pair, noted: list[object]) -> None:
        await interface.cast(HERE, "note", [1])
        await interface.cast(HERE, "note", [2], node=both.peer.name)
        await until(lambda: noted == [(1,), (2,)])

    async def test_what_fails_there(self, both: Pair) -> None:
        with pytest.raises(ElixirError, match="fail/1 failed on Elixir side") as raised:
            await interface.call(HERE, "fail", ["why"])
        assert raised.value.kind == "error"
        assert "why" in str(raised.value.reason)

    async def test_as_elixir_writes_it(self, both: Pair, provide: Callable[..., None]) -> None:
        provide("Elixir.Exception", format=lambda kind, *_: f"** ({kind}) formatted")
        with pytest.raises(ElixirError, match=r"\*\* \(error\) formatted"):
            await interface.call(HERE, "fail", ["why"])

    async def test_a_node_that_is_not_there(self, both: Pair) -> None:
        with pytest.raises(ElixirError, match="sqrt/1 failed: ") as raised:
            await interface.call("math", "sqrt", [1], node="nobody@127.0.0.1")
        assert raised.value.kind == "exit"

    async def test_a_reason_that_cannot_be_converted(self, both: Pair) -> None:
        with pytest.raises(ElixirError) as raised:
            await interface.call(HERE, "fail", [b"\xff"])
        assert raised.value.kind == "error"

    async def test_through_the_client(self, both: Pair, provide: Callable[..., None]) -> None:
        applied: list[tuple[object, ...]] = []

        def apply(*args: object) -> str:
            applied.append(args)
            return "applied"

        provide("Elixir.Snex.Remote", version=lambda: 1, apply=apply)
        assert await interface.call("math", "sqrt", [16]) == "applied"
        await interface.cast("math", "sqrt", [25])
        await until(lambda: len(applied) == 2)
        assert [call[:3] for call in applied] == [
            ("math", "sqrt", [16]),
            ("math", "sqrt", [25]),
        ]
        # Nobody asked for it: it is the runtime's own.
        assert serde.to_typed(applied[0][3]) == both.server.pid
        caller = From(Process(both.peer).pid, b"w\3tag", None)
        token = origin.set((both.node.remote(both.peer.name), caller))
        try:
            await interface.call("math", "sqrt", [36])
        finally:
            origin.reset(token)
        assert serde.to_typed(applied[2][3]) == caller.pid

    @pytest.mark.parametrize(("version", "length"), [(1, 4), (2, 5), (3, 5)])
    async def test_the_trace_goes_along(
        self, version: int, length: int, both: Pair, provide: Callable[..., None]
    ) -> None:
        applied: list[tuple[object, ...]] = []
        provide(
            "Elixir.Snex.Remote", version=lambda: version, apply=lambda *args: applied.append(args)
        )
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        token = origin.set((both.node.remote(both.peer.name), None, trace))
        try:
            await interface.call("math", "sqrt", [36])
            await interface.cast("math", "sqrt", [49])
        finally:
            origin.reset(token)
        await interface.call("math", "sqrt", [64])
        await until(lambda: len(applied) == 3)
        by_argument = {str(call[2]): call for call in applied}
        for traced in (by_argument["[36]"], by_argument["[49]"]):
            assert len(traced) == length
            assert length == 4 or traced[4] == trace
        assert len(by_argument["[64]"]) == 4

    async def test_whether_there_is_a_client_is_asked_once_per_connection(
        self, both: Pair, provide: Callable[..., None]
    ) -> None:
        asked: list[None] = []

        def version() -> int:
            asked.append(None)
            return 0

        provide("Elixir.Snex.Remote", version=version)
        for _ in range(3):
            assert await interface.call("math", "sqrt", [16]) == 4.0
        assert len(asked) == 1
        both.server.backend.disconnected(both.peer.name)
        await interface.call("math", "sqrt", [16])
        assert len(asked) == 2

    async def test_the_loop_of_the_node(self, both: Pair) -> None:
        loop = asyncio.get_running_loop()
        assert both.server.backend.loop is loop
        assert interface.node_loop() is loop
        interface.set_backend(None)
        assert interface.node_loop() is None

    async def test_log(self, both: Pair, provide: Callable[..., None]) -> None:
        written: list[tuple[object, ...]] = []

        def bare_log(*args: object) -> None:
            written.append(args)

        provide("Elixir.Logger", bare_log=bare_log)
        both.server.backend.log("info", "text", {"key": 1})
        await until(lambda: written == [("info", "text", {"key": 1})])
        assert both.server.backend.logs_dropped == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="of forked children")
def test_a_forked_child_has_no_way_to_a_beam(recorder: Recorder) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if interface.current_backend() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert interface.current_backend() is not None
