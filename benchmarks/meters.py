"""How each row is measured: an instrument for the side that matters, and for its yardsticks."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine, nodes, stage
from benchmarks.figures import Round, Unit
from benchmarks.machine import CALLED
from benchmarks.rows import Row
from benchmarks.stage import Side, Stage
from snex_node.wire.terms import Atom
from tests.support.beam import Beam

CODEC_SECONDS = 0.02
"""For one round of a codec, of as many conversions as that takes."""

Meter = Callable[[], Round]
Meters = dict[str, Meter]


class MissingError(Exception):
    """What this row needs is not there; the text says what."""


@dataclass(frozen=True)
class Instrument:
    """Opens meters. One that cannot be opened raises `MissingError`."""

    subject: Callable[[Stage, Row, Side], AbstractContextManager[Meter]]
    yardsticks: Mapping[str, Callable[[Stage, Row], AbstractContextManager[Meter]]] = field(
        default_factory=dict
    )


@contextlib.contextmanager
def opened(on: Stage, row: Row, note: Callable[[str], None]) -> Iterator[Meters]:
    """Meters of a row, by the name of their side; none when the subject's cannot be had."""
    instrument = INSTRUMENTS[row.instrument]
    with contextlib.ExitStack() as stack:
        meters: Meters = {}
        try:
            for side in on.sides:
                meters[side.name] = stack.enter_context(instrument.subject(on, row, side))
        except MissingError as error:
            note(str(error))
            yield {}
            return
        for name, open_yardstick in instrument.yardsticks.items() if on.yardstick else ():
            try:
                meters[name] = stack.enter_context(open_yardstick(on, row))
            except MissingError as error:
                note(f"no ratio to {name}: {error}")
        yield meters


# Requests over the wire, measured by the BEAM that makes them


@contextlib.contextmanager
def _of_caller(
    on: Stage, row: Row, caller: Beam, kind: str, node: str, instrument: str = ""
) -> Iterator[Meter]:
    source = "Benchmark.Meter.open(instrument, kind, node, options)"
    names = {"instrument": instrument or row.instrument.split()[-1], "kind": kind, "node": node}
    bindings = {name: value.encode() for name, value in names.items()}
    meter = stage.ask(caller, source, options=_options(on, row), **bindings)

    def measure() -> Round:
        wall, count, times = stage.ask(caller, "Benchmark.Meter.round(meter)", meter=meter)
        return Round.of(row.unit, wall, count, times)

    try:
        yield measure
    finally:
        stage.ask(caller, "Benchmark.Meter.close(meter)", meter=meter)


def _options(on: Stage, row: Row) -> dict[bytes, Any]:
    options = {
        **row.options,
        "calls": on.scale.calls_of(row) // int(row.options.get("callers", 1)),
        "count": on.scale.count(row.options.get("count", 1)),
        "settle": on.scale.settle,
        "python": sys.executable,
        "exec": [word.encode() for word in machine.pinning(CALLED) or ("env",)],
        "flags": " ".join(stage.USUAL_SPINNING),
    }
    return {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in options.items()
    }


def _python(on: Stage, row: Row, side: Side) -> AbstractContextManager[Meter]:
    caller = on.caller
    if row.client:
        if side.client is None:
            raise MissingError(f"no rows of the client: {side.no_client}")
        caller = side.client
    return _of_caller(on, row, caller, "python", side.node.name)


def _beam(on: Stage, row: Row) -> AbstractContextManager[Meter]:
    assert on.yardstick is not None
    return _of_caller(on, row, on.caller, "beam", on.yardstick.name)


# Codecs


def _codec_of(name: str) -> Callable[[Stage, Row], AbstractContextManager[Meter]]:
    return lambda on, row: _codec(on, row, on.sides[0], name)


@contextlib.contextmanager
def _codec(on: Stage, row: Row, side: Side, name: str = "ours") -> Iterator[Meter]:
    if name == "erlang-py" and importlib.util.find_spec("erlang") is None:
        raise MissingError("erlang-py is not installed")
    options = row.options
    file = on.data_file(options["kind"], on.scale.count(options["count"]))
    child = on.codec(name, side.tree)

    def measure() -> Round:
        time = child.ask(
            codec=name,
            work=options["work"],
            file=str(file),
            text=options["text"],
            seconds=CODEC_SECONDS * on.scale.calls,
        )
        return Round.of(Unit.TIME, time, 1, [time])

    yield measure


# Starts, and memory of what was just started


@contextlib.contextmanager
def _start(on: Stage, _row: Row, side: Side) -> Iterator[Meter]:
    def measure() -> Round:
        time = nodes.time_to_ready(side.tree, on.cluster)
        return Round(time, [time])

    yield measure


@contextlib.contextmanager
def _import_asyncio(on: Stage, _row: Row) -> Iterator[Meter]:
    def measure() -> Round:
        time = nodes.time_to_import_asyncio(on.sides[0].tree)
        return Round(time, [time])

    yield measure


@contextlib.contextmanager
def _idle(on: Stage, _row: Row, side: Side) -> Iterator[Meter]:
    def measure() -> Round:
        with nodes.started(side.tree, on.cluster) as node:
            return Round(_resident(node.pid))

    _resident(side.node.pid)
    yield measure


@contextlib.contextmanager
def _idle_beam(on: Stage, _row: Row) -> Iterator[Meter]:
    def measure() -> Round:
        with stage.called_beam(on.cluster) as beam:
            return Round(_resident(beam.os_pid))

    yield measure


@contextlib.contextmanager
def _hold(on: Stage, row: Row, side: Side) -> Iterator[Meter]:
    def measure() -> Round:
        with nodes.started(side.tree, on.cluster) as node:
            return _per_environment(on, row, "python", node.name, node.pid)

    _resident(side.node.pid)
    yield measure


@contextlib.contextmanager
def _hold_beam(on: Stage, row: Row) -> Iterator[Meter]:
    def measure() -> Round:
        with stage.called_beam(on.cluster) as beam:
            return _per_environment(on, row, "beam", beam.name, beam.os_pid)

    yield measure


def _per_environment(on: Stage, row: Row, kind: str, node: str, pid: int) -> Round:
    # What the connection costs is not an environment's.
    stage.ask(on.caller, "GenServer.call({:snex, node}, :ping, 60_000)", node=Atom(node))
    with _of_caller(on, row, on.caller, kind, node) as make:
        before = _resident(pid)
        make()
        return Round((_resident(pid) - before) / on.scale.calls_of(row))


def _resident(pid: int) -> int:
    found = machine.resident(pid)
    if found is None:
        raise MissingError("no rows of memory: this system does not tell it")
    return found


# Nodes with workers, which have all cores


@contextlib.contextmanager
def _of_node(on: Stage, row: Row, tree: Path, *flags: str) -> Iterator[Meter]:
    """A meter of a node that is started for it, with these options, and runs on all cores."""
    with (
        nodes.started(tree, on.cluster, *flags, role=None) as node,
        _of_caller(on, row, on.caller, "python", node.name, "requests") as meter,
    ):
        yield meter


def _two_workers(on: Stage, row: Row, side: Side) -> AbstractContextManager[Meter]:
    if not (side.tree / "snex_runtime" / "front.py").is_file():
        raise MissingError(f"{side.name} has no workers")
    return _of_node(on, row, side.tree, "--workers", "2")


def _one_worker(on: Stage, row: Row) -> AbstractContextManager[Meter]:
    return _of_node(on, row, on.sides[0].tree, "--workers", "1")


def _one_process(on: Stage, row: Row) -> AbstractContextManager[Meter]:
    return _of_node(on, row, on.sides[0].tree)


# What older trees do not know


def _array(on: Stage, row: Row, side: Side) -> AbstractContextManager[Meter]:
    room = "shared" if "shared" in row.name else "tables"
    if not (side.tree / "snex_runtime" / f"{room}.py").is_file():
        raise MissingError(f"{side.name} has no {room}")
    if "Arrow" in row.name and importlib.util.find_spec("pyarrow") is None:
        raise MissingError("no row of tables: pyarrow is not installed")
    return _python(on, row, side)


def _stream(on: Stage, row: Row, side: Side) -> AbstractContextManager[Meter]:
    if not (side.tree / "snex_runtime" / "streams.py").is_file():
        raise MissingError(f"{side.name} has no streams")
    return _python(on, row, side)


_ON_WIRE = Instrument(_python, {"beam": _beam})

INSTRUMENTS = {
    "requests": _ON_WIRE,
    "there": _ON_WIRE,
    "back": _ON_WIRE,
    "array there": Instrument(_array, {"beam": _beam}),
    "array back": Instrument(_array, {"beam": _beam}),
    "stream": Instrument(_stream),
    "pipeline": Instrument(_stream),
    "snex.call": _ON_WIRE,
    "snex.send": _ON_WIRE,
    "interpreter": _ON_WIRE,
    "workers": Instrument(_two_workers, {"one process": _one_process}),
    "one worker": Instrument(_two_workers, {"one worker": _one_worker}),
    "codec": Instrument(_codec, {name: _codec_of(name) for name in ("erlang-py", "pickle")}),
    "start": Instrument(_start, {"import asyncio": _import_asyncio}),
    "idle": Instrument(_idle, {"beam": _idle_beam}),
    "hold": Instrument(_hold, {"beam": _hold_beam}),
}
"""An instrument for each name that `rows` has. Two trees have no yardstick but each other."""
