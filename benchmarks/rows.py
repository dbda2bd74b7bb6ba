"""What is measured, as data: each row has a name, says what it is, and how often it is done.

`meters` has an instrument for each name of one. A topic is a paragraph of
docs/benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from benchmarks.figures import Unit

CALLERS = (1, 10, 50, 500)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    group: str
    topic: str
    instrument: str
    unit: Unit
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What the instrument needs: ``request``, ``callers``, ``kind``."""
    calls: int = 1
    """How often it is done in a round, by all callers together."""
    client: bool = False
    """Whether it needs the client of ``elixir/``."""
    costly: bool = False
    """Whether a round starts processes: then all calls are made however quick the run is."""

    @property
    def warms_up(self) -> bool:
        """Whether a first round is thrown away: new processes, and codecs, need none."""
        return not self.costly and self.instrument != "codec"


@dataclass(frozen=True)
class Kind:
    """A kind of data; `Benchmark.Data` makes it under the same name."""

    name: str
    count: int
    """Elements of the list that goes back and forth; bytes of a binary."""
    codec: int
    """Elements for the codec alone, which is measured beside slower ones."""
    text: bool = True
    """Whether its binaries are strings."""

    @property
    def what(self) -> str:
        """Count and name, as a text: some names have the count already."""
        return self.name if self.name[0].isdigit() else f"{self.count:,} {self.name}"


# A list of up to 65,535 bytes is a string on the wire: the small integers are more, everywhere.
KINDS = (
    Kind("small integers", 100_000, 70_000),
    Kind("large integers", 100_000, 10_000),
    Kind("mixed integers", 100_000, 10_000),
    Kind("floats", 100_000, 10_000),
    Kind("short strings", 100_000, 10_000),
    Kind("unicode strings", 20_000, 2_000),
    Kind("maps of 5", 10_000, 1_000),
    Kind("maps of 40", 1_000, 100),
    Kind("nested maps", 5_000, 500),
    Kind("structs", 10_000, 1_000),
    Kind("tuples", 10_000, 1_000),
    Kind("atoms", 100_000, 10_000),
    Kind("10 MB", 10_000_000, 10_000_000, text=False),
    Kind("1,000 x 10 kB", 1_000, 1_000, text=False),
)
REQUEST = Kind("a request", 1, 1)
# Bytes, and rows of five columns: as many bytes as the yardstick's binary has.
ARRAYS = (
    Kind("64 MB tensor", 64_000_000, 0),
    Kind("64 MB shared", 64_000_000, 0),
    Kind("Arrow table", 1_000_000, 0),
)

REQUESTS = {
    "call": ":ping, the smallest request",
    "eval": "return 6 * x, in a throw-away environment",
    "async eval": "the same after an await that suspends once",
    "Snex.pyeval": "return 6 * x by the client, in an environment",
}


@dataclass(frozen=True)
class Scale:
    """How thoroughly all rows are measured: the rows, and what is sent, are the same."""

    name: str
    rounds: int
    """Of each side, in turn."""
    least: int
    """Rounds that are made however long they take."""
    seconds: float
    """For the rounds of a row; when they are over no further one begins."""
    calls: float
    """Times the calls of each row."""
    data: float = 1.0
    """Times the elements of each kind of data; 1 but in tests."""
    settle: int = 20
    """Milliseconds in which schedulers of a BEAM stop spinning, before a round; fewer in tests."""

    def calls_of(self, row: Row) -> int:
        """Calls of a round, of all callers together: at least one of each.

        What starts processes for each round has so many calls that these do not show, or one.
        """
        if row.costly:
            return row.calls
        return max(int(row.options.get("callers", 1)), round(row.calls * self.calls))

    def count(self, count: int) -> int:
        """Elements of data."""
        return max(1, round(count * self.data))


FULL = Scale("full", rounds=12, least=3, seconds=2.0, calls=1.0)
QUICK = Scale("quick", rounds=4, least=1, seconds=0.1, calls=0.3)


def all_rows() -> list[Row]:
    """Every row, in the order of the table."""
    return [
        *(*_calls(), *_callers(), *_data(), *_arrays(), *_codec()),
        *(*_from_python(), *_streams(), *_workers(), *_life()),
    ]


def _calls() -> Iterator[Row]:
    for name, what in REQUESTS.items():
        options = {"request": name, "callers": 1}
        client = name == "Snex.pyeval"
        yield Row(
            name, what, "One caller", name, "requests", Unit.TIME, options, 500, client=client
        )


def _callers() -> Iterator[Row]:
    for name, what in REQUESTS.items():
        if name == "async eval":
            continue
        for callers in CALLERS:
            who = f"{callers} caller" + ("s" if callers > 1 else "")
            yield Row(
                f"{name}, {who}",
                f"{what}; {who} at the same time",
                "Many callers",
                "1, 10, 50, 500 callers",
                "requests",
                Unit.RATE,
                {"request": name, "callers": callers},
                500 if callers == 1 else 3_000,
                client=name == "Snex.pyeval",
            )


def _data() -> Iterator[Row]:
    for client in (False, True):
        suffix = ", pyeval" if client else ""
        for kind in KINDS:
            for way, where in (("there", "to Python"), ("back", "and back")):
                yield Row(
                    f"{kind.name} {way}{suffix}",
                    f"{kind.what} {where}" + (", by Snex.pyeval" if client else ""),
                    "Data, by Snex.pyeval" if client else "Data",
                    kind.name,
                    way,
                    Unit.TIME,
                    {"kind": kind.name, "count": kind.count, "client": client},
                    client=client,
                )


def _arrays() -> Iterator[Row]:
    for kind in ARRAYS:
        for way, where in (("there", "to Python"), ("back", "and back")):
            yield Row(
                f"{kind.name} {way}",
                f"{kind.what} {where}, by Snex.pyeval",
                "Tensors and tables, by Snex.pyeval",
                kind.name,
                f"array {way}",
                Unit.TIME,
                {"kind": kind.name, "count": kind.count, "client": True},
                client=True,
            )


def _codec() -> Iterator[Row]:
    for kind in (REQUEST, *KINDS):
        for work, what in (("decode", "bytes to objects"), ("encode", "objects to bytes")):
            yield Row(
                f"{work} {kind.name}",
                f"{kind.codec:,} x {kind.name}, {what}",
                "The codec alone",
                "The codec alone",
                "codec",
                Unit.TIME,
                {"kind": kind.name, "count": kind.codec, "work": work, "text": kind.text},
            )


def _from_python() -> Iterator[Row]:
    group = "From Python to the BEAM"
    for callers, unit, calls in ((1, Unit.TIME, 200), (100, Unit.RATE, 1_000)):
        yield Row(
            f"snex.call, {callers} at a time",
            f"a function of the BEAM called from Python, {callers} at a time",
            group,
            "snex.call",
            "snex.call",
            unit,
            {"callers": callers},
            calls,
        )
    what = "messages from Python to a process of the BEAM"
    yield Row("snex.send", what, group, "snex.send", "snex.send", Unit.RATE, calls=5_000)


def _streams() -> Iterator[Row]:
    for name, what in (
        ("stream", "items that a generator yields, to Elixir"),
        ("pipeline", "items from Elixir to a generator, and back"),
    ):
        yield Row(
            name,
            f"{what}; 500 under way",
            "Streams, by Snex.stream",
            "Streams",
            name,
            Unit.RATE,
            calls=100_000,
            client=True,
        )


def _workers() -> Iterator[Row]:
    for name, what, request, callers, calls in (
        ("eval by a front", "the request goes by way of a front", "eval", 1, 500),
        ("eval by a front, 50 callers", "the same, 50 at a time", "eval", 50, 3_000),
        ("eval in a worker", "in an environment, which is a worker's", "env eval", 1, 500),
        ("20 ms of Python, 8 callers", "code that computes, 8 at a time", "compute", 8, 40),
    ):
        computes = request == "compute"
        yield Row(
            name,
            what,
            "Two workers",
            "Workers",
            "one worker" if computes else "workers",
            Unit.TIME if callers == 1 else Unit.RATE,
            {"request": request, "callers": callers},
            calls,
            costly=computes,
        )


def _life() -> Iterator[Row]:
    group = "Environments, memory, start"
    for callers in (1, 50):
        yield Row(
            f"make_env, {callers} caller" + ("s" if callers > 1 else ""),
            "an environment made and destroyed",
            group,
            "make_env",
            "requests",
            Unit.RATE,
            {"request": "make_env", "callers": callers},
            300 if callers == 1 else 1_500,
        )
    for name, what, instrument, unit in (
        ("memory per environment", "resident memory for each environment", "hold", Unit.MEMORY),
        ("idle memory", "resident memory of a node that was just started", "idle", Unit.MEMORY),
        ("start to ready", "snex-node start until it can be called", "start", Unit.TIME),
    ):
        calls = 10_000 if instrument == "hold" else 1
        yield Row(name, what, group, name, instrument, unit, calls=calls, costly=True)
    yield Row(
        "Snex.Interpreter",
        "an interpreter started and stopped",
        group,
        "Snex.Interpreter",
        "interpreter",
        Unit.TIME,
        client=True,
        costly=True,
    )
