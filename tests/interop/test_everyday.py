"""Everyday values of Python are what functions of Elixir take, and those of Elixir become Python's.

Which Elixir it is decides what a ``timedelta`` becomes: `Duration` came with 1.17.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.support.beam import Beam
from tests.support.runtime import Runtime

# `ask` evaluates on the runtime.
HELPERS = """
ask = fn code, x, opts ->
  request = {:eval, code, %{"x" => x}, [encoding_opts: opts]}
  {:ok, v} = GenServer.call({:snex, py}, request)
  v
end
_ = ask
"""

PYTHON = """
import array, collections, dataclasses, datetime, decimal, enum, pathlib, uuid, zoneinfo
try:
    import numpy as np
except ImportError:
    pass
from datetime import date, time, timedelta, timezone

@dataclasses.dataclass
class User:
    __struct__ = "URI"
    host: str
    port: int

moment = datetime.datetime(2026, 2, 28, 13, 4, 5, 6)
berlin = zoneinfo.ZoneInfo("Europe/Berlin")
"""


async def elixir(beam: Beam, runtime: Runtime, source: str, **bindings: Any) -> Any:
    return await beam.eval(HELPERS + source, py=runtime.name, **bindings)


ROWS = [
    # Python, and what is true of it in Elixir.
    ("date(2026, 2, 28)", "v === ~D[2026-02-28] and Date.add(v, 1) == ~D[2026-03-01]"),
    ("time(13, 4, 5, 6)", "v === ~T[13:04:05.000006] and Time.to_iso8601(v) == inspect_time"),
    ("moment", "v === ~N[2026-02-28 13:04:05.000006] and NaiveDateTime.add(v, 1).second == 6"),
    ("moment.replace(tzinfo=timezone.utc)", "v === ~U[2026-02-28 13:04:05.000006Z]"),
    (
        "moment.replace(tzinfo=timezone(timedelta(hours=2)))",
        "v === ~U[2026-02-28 11:04:05.000006Z] and match?(%DateTime{}, v)",
    ),
    (
        "moment.replace(tzinfo=berlin)",
        'DateTime.to_iso8601(v) == "2026-02-28T13:04:05.000006+01:00" and '
        "DateTime.compare(v, ~U[2026-02-28 12:04:05.000006Z]) == :eq and "
        'inspect(v) == "#DateTime<2026-02-28 13:04:05.000006+01:00 CET Europe/Berlin>"',
    ),
    (
        "moment.replace(month=7, tzinfo=berlin)",
        'DateTime.to_iso8601(v) == "2026-07-28T13:04:05.000006+02:00" and '
        'v.utc_offset == 3600 and v.std_offset == 3600 and v.zone_abbr == "CEST"',
    ),
    ("decimal.Decimal('-1.50')", "v == %{__struct__: Decimal, coef: 150, exp: -2, sign: -1}"),
    ("decimal.Decimal('NaN')", "v == %{__struct__: Decimal, coef: :NaN, exp: 0, sign: 1}"),
    ("uuid.UUID(int=1)", 'v === "00000000-0000-0000-0000-000000000001"'),
    ("pathlib.Path('/tmp/é')", 'v === "/tmp/é"'),
    ("enum.Enum('E', ['A']).A", "v === 1"),
    ("User('a', 1)", 'match?(%{__struct__: URI, host: "a", port: 1}, v)'),
    ("collections.UserDict(a=range(2))", 'v === %{"a" => [0, 1]}'),
    ("array.array('d', [1.5])", "v === [1.5]"),
    ("(n * n for n in range(3))", "v === [0, 1, 4]"),
    ("zip('ab', (1, 2))", 'v === [{"a", 1}, {"b", 2}]'),
    ("{1: 2}.items()", "v === [{1, 2}]"),
    (
        "{date(2026, 2, 28): {date(2026, 3, 1)}}",
        "v === %{~D[2026-02-28] => MapSet.new([~D[2026-03-01]])}",
    ),
]
if find_spec("numpy") is not None:  # there is none for some Pythons
    ROWS += [
        (
            "[np.bool_(1), np.int8(-1), np.float32(1.5), np.float32('nan')]",
            "v === [true, -1, 1.5, :nan]",
        ),
        ("[np.datetime64('2026-02-28'), np.datetime64('NaT')]", "v === [~D[2026-02-28], nil]"),
        ("np.datetime64('2026-02-28T13:04:05.000006')", "v === ~N[2026-02-28 13:04:05.000006]"),
    ]


@pytest.mark.parametrize(("value", "true"), ROWS, ids=[row[0][:40] for row in ROWS])
async def test_python_to_elixir(beam: Beam, runtime: Runtime, value: str, true: str) -> None:
    source = f"""
    v = ask.(code, nil, [])
    inspect_time = "13:04:05.000006"
    _ = inspect_time
    {{{true}, inspect(v)}}
    """
    code = f"{PYTHON}\nreturn {value}".encode()
    same, shown = await elixir(beam, runtime, source, code=code)
    assert same is True, shown.decode()


async def test_a_timedelta_is_what_that_elixir_has(beam: Beam, runtime: Runtime) -> None:
    source = """
    v = ask.(code, nil, [])
    if Code.ensure_loaded?(Duration) do
      duration = Module.concat([Duration])
      expected = duration.new!(day: 1, second: 5, microsecond: {6, 6})
      {v == expected, duration.to_iso8601(v), inspect(v)}
    else
      {v == 86_405_000_006, "P1DT5.000006S", inspect(v)}
    end
    """
    code = f"{PYTHON}\nreturn timedelta(days=1, seconds=5, microseconds=6)".encode()
    # What is known of a node is known soon after it has connected.
    await elixir(
        beam,
        runtime,
        "until = fn until -> (ask.(code, nil, []) |> is_integer()) == "
        "not Code.ensure_loaded?(Duration) || until.(until) end\nuntil.(until)",
        code=code,
    )
    same, text, shown = await elixir(beam, runtime, source, code=code)
    assert (same, text) == (True, b"P1DT5.000006S"), shown.decode()


STRUCTS = [
    # Elixir, what Python shows of it, and what comes back (None: the same).
    ("~D[2026-02-28]", "datetime.date(2026, 2, 28)", None),
    ("~T[13:04:05.000006]", "datetime.time(13, 4, 5, 6)", None),
    ("~N[2026-02-28 13:04:05.000006]", "datetime.datetime(2026, 2, 28, 13, 4, 5, 6)", None),
    (
        "~U[2026-02-28 13:04:05.000006Z]",
        "datetime.datetime(2026, 2, 28, 13, 4, 5, 6, tzinfo=datetime.timezone.utc)",
        None,
    ),
    (
        '%{~U[2026-02-28 13:04:05.000006Z] | time_zone: "Europe/Berlin", zone_abbr: "CET",'
        " utc_offset: 3600}",
        "datetime.datetime(2026, 2, 28, 13, 4, 5, 6, "
        "tzinfo=zoneinfo.ZoneInfo(key='Europe/Berlin'))",
        None,
    ),
    ("%{__struct__: Decimal, coef: 150, exp: -2, sign: 1}", "Decimal('1.50')", None),
    ("1..3", "range(1, 4)", "[1, 2, 3]"),
    ("9..1//-4", "range(9, 0, -4)", "[9, 5, 1]"),
    ("~D[0000-01-01]", None, None),
    ("~D[-0001-01-01]", None, None),
    ("~T[13:04:05]", "datetime.time(13, 4, 5)", "~T[13:04:05.000000]"),
    ("[%{d: ~D[2026-02-28]}, {~T[00:00:00.000000]}]", None, None),
]


@pytest.mark.parametrize(("term", "shown", "back"), STRUCTS, ids=[row[0][:40] for row in STRUCTS])
async def test_elixir_to_python(
    beam: Beam, runtime: Runtime, term: str, shown: str | None, back: str | None
) -> None:
    source = f"""
    term = {term}
    {{ask.("return repr(x)", term, [structs_as: :native]),
      ask.("return x", term, [structs_as: :native]) === {back or "term"},
      ask.("return x", term, []) === term}}
    """
    found, same, as_dict = await elixir(beam, runtime, source)
    assert (same, as_dict) == (True, True)
    if shown is not None:
        assert found.decode() == shown


async def test_what_is_registered(beam: Beam, runtime: Runtime) -> None:
    source = """
    setup = ~S'''
    @snex.decoder("URI")
    def decode(fields):
        return fields["host"]

    @snex.encoder(complex)
    def encode(value):
        return [value.real, value.imag]
    '''
    {:ok, _} = GenServer.call({:snex, py}, {:init, setup, %{}})
    found = ask.("return x, [1 + 2j]", %{"uri" => [%URI{host: "a"}]}, [])
    {:error, e} = GenServer.call({:snex, py}, {:init, ~S'''
    snex.decoder("Range", lambda fields: fields["nope"])
    ''', %{}}) |> then(fn {:ok, _} -> GenServer.call({:snex, py}, {:eval, "x", %{"x" => 1..2}}) end)
    {found === {%{"uri" => ["a"]}, [[1.0, 2.0]]}, e.code, e.type, e.reason}
    """
    same, code, kind, reason = await elixir(beam, runtime, source)
    assert (same, code, kind) == (True, "python_runtime_error", b"ValueError")
    assert reason == b"the decoder of %Range{} raised KeyError: 'nope'"


async def test_what_a_generator_raises(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:error, e} = GenServer.call({:snex, py}, {:eval, code, %{}})
    {e.code, e.type, e.reason, Enum.join(e.traceback)}
    """
    code = b"import json\ndef numbers():\n    yield 1\n    json.loads('{')\nreturn [numbers()]"
    found, kind, reason, told = await elixir(beam, runtime, source, code=code)
    assert (found, kind) == ("python_runtime_error", b"json.decoder.JSONDecodeError")
    assert reason.endswith(b"(at [0])")
    assert b"in numbers" in told
    assert b"snex_runtime" not in told


async def test_an_iterator_without_end(beam: Beam, runtime: Runtime) -> None:
    source = """
    code = "import itertools; return itertools.count()"
    {:error, e} = GenServer.call({:snex, py}, {:eval, code, %{}})
    {e.code, e.reason}
    """
    found, reason = await elixir(beam, runtime, source)
    assert found == "python_runtime_error"
    assert b"it has more than 1000000 elements" in reason


async def test_a_generator_that_takes_too_long_is_ended(beam: Beam, runtime: Runtime) -> None:
    source = """
    code = "def endless():\\n    while True: pass\\n    yield\\nreturn endless()"
    {:error, e} = GenServer.call({:snex, py}, {:eval, code, %{}, [timeout: 200]})
    {e.code, ask.("return 1", nil, [])}
    """
    assert await elixir(beam, runtime, source) == ("cancelled", 1)
