"""What a node tells of itself, for people."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from snex_node.wire.terms import Atom, Pid
from snex_runtime import overview, serde
from snex_runtime.latency import Counts
from snex_runtime.overview import Look, as_json, colored, plain, readable
from snex_runtime.serde import to_typed
from tests.support.pair import pair

PID = Pid("app@host", 100, 0, 5)

OLD = {
    "node": "py@127.0.0.1",
    "version": "0.0.9",
    "requests_running": 0,
    "bytes_in": 12345,
    "environments": 2,
}
"""What a node told before there was more to tell."""


def latency(*buckets: int) -> dict[str, Any]:
    counts = Counts()
    for bucket in buckets:
        counts.buckets[bucket] += 1
        counts.longest = max(counts.longest, 1_500_000)
    return counts.summary()


NEW: dict[str, Any] = {
    **OLD,
    "python_implementation": "CPython",
    "python_version": "3.13.1",
    "loop": "uvloop",
    "os_pid": 4711,
    "uptime_ms": 3_725_000,
    "requests_queued": 4,
    "threads": 8,
    "threads_busy": 3,
    "threads_lost": 0,
    "loop_lag_ms": 12,
    "loop_blocked_ms": 0,
    "loop_blocked_max_ms": 1500,
    "loop_blocked_at": "app.py:12, in f",
    "memory_bytes": 50 * 2**20,
    "bytes_out": 999,
    "latency": latency(10, 10, 10, 40),
    "running": [
        {
            "age_ms": 65_000,
            "kind": "eval",
            "where": "app.py:7, in \x1b[2Jg",
            "caller": "#PID<app@host.100.0>",
            "environment": None,
            "worker": "py-1@127.0.0.1",
        }
    ],
    "peers": [
        {
            "node": "app@host",
            "bytes_in": 5 * 2**30,
            "bytes_out": 2**41,
            "pending": 0,
            "connected_ms": 90_000_000,
            "last_heard_ms": 300,
        }
    ],
    "worker_restarts": 1,
    "workers": [
        {
            "node": "py-1@127.0.0.1",
            "os_pid": 4712,
            "state": "busy",
            "busy_ms": 20_000,
            "requests": 12_345,
            "requests_running": 1,
            "environments": 2,
        }
    ],
}
ENVIRONMENTS: list[dict[str, Any]] = [
    {"env": "#PID<a.1.0>", "handle": None, "age_ms": 1, "variables": 1, "bytes": 10},
    {
        "env": "#PID<a.2.0>",
        "handle": "#PID<b.1.0>",
        "age_ms": 10_000,
        "variables": 20,
        "bytes": 2048,
        "bytes_complete": False,
    },
]

EXPECTED = """\
py@127.0.0.1: snex-node 0.0.9, CPython 3.13.1 (uvloop), process 4711, up for 1 h 2 min
  requests  0 running, 4 queued, 4 in all
  held      2 environments, 0 objects, 0 streams
  latency   p50 14 us, p90 1.5 ms, p99 1.5 ms, longest ever 1.5 ms
  loop      12 ms late, blocked for 0 ms (longest 1500 ms at app.py:12, in f)
  threads   3 of 8 busy, 0 lost
  memory    50.0 MiB
  traffic   12.1 KiB in, 999 B out

Running (1)
  age      kind  where                 caller                environment  worker
  1 min 5 s  eval  app.py:7, in ?[2Jg  #PID<app@host.100.0>  -            py-1@127.0.0.1

Environments (2)
  bytes     variables  age   environment  kept by
  2.0 KiB+  20         10 s  #PID<a.2.0>  #PID<b.1.0>
  10 B      1          1 ms  #PID<a.1.0>  -

Workers, 1 restarts (1)
  node            process  state  busy  requests  running  environments
  py-1@127.0.0.1  4712     busy   20 s  12,345    1        2

Peers (1)
  node      in       out      pending  connected  heard
  app@host  5.0 GiB  2.0 TiB  0 B      1 d 1 h    300 ms
"""


def words(lines: object) -> list[str]:
    """Lines, whatever stands between their words."""
    given = lines if isinstance(lines, list) else str(lines).splitlines()
    return [" ".join(line.split()) for line in given]


class TestText:
    def test_all_of_it(self) -> None:
        assert words(plain(Look(NEW, ENVIRONMENTS))) == words(EXPECTED)

    def test_columns_are_aligned(self) -> None:
        lines = plain(Look(NEW, ENVIRONMENTS))
        head = lines.index("Environments (2)") + 1
        places = [lines[head + n].index(word) for n, word in enumerate(("age", "10 s", "1 ms"))]
        assert len(set(places)) == 1

    def test_what_an_older_node_does_not_tell(self) -> None:
        lines = plain(Look(OLD))
        assert lines[0] == "py@127.0.0.1: snex-node 0.0.9, - - (-), process -, up for -"
        assert "  requests  0 running, - queued, - in all" in lines
        assert "  latency   -" in lines
        assert "  memory    -" in lines
        assert lines[-5:] == ["Running (-)", "", "Environments (2)", "", "Peers (-)"]

    def test_what_came_since_the_look_before(self) -> None:
        later = {**NEW, "latency": latency(10, 10, 10, 40, 41, 41), "bytes_in": 12345 + 4096}
        lines = plain(Look(later, None, 2.0, NEW))
        assert "  requests  0 running, 4 queued, 6 in all, 1.0 per second" in lines
        assert lines[3].startswith("  latency   p50 1.5 ms")
        assert "  traffic   16.1 KiB (2.0 KiB/s) in, 999 B (0 B/s) out" in lines

    def test_a_node_that_was_older_before(self) -> None:
        lines = plain(Look(NEW, None, 2.0, OLD))
        assert "  requests  0 running, 4 queued, 4 in all" in lines

    def test_it_is_cut_off(self) -> None:
        assert max(map(len, plain(Look(NEW, ENVIRONMENTS), 40))) == 40

    def test_long_tables(self) -> None:
        many = [{"age_ms": number} for number in range(overview.ROWS + 5)]
        lines = plain(Look({**NEW, "running": many}))
        assert f"Running (25, {overview.ROWS} shown)" in lines

    @pytest.mark.parametrize(
        ("milliseconds", "text"),
        [
            (9_999, "9999 ms"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (7_260_000, "2 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ],
    )
    def test_durations(self, milliseconds: int, text: str) -> None:
        line = plain(Look({**NEW, "uptime_ms": milliseconds}))[0]
        assert line.endswith(f"up for {text}")

    def test_times(self) -> None:
        counts = Counts()
        counts.buckets[-1] = 1
        counts.longest = 10**13
        lines = plain(Look({**NEW, "latency": counts.summary()}))
        assert (
            "  latency   p50 > 1000 s, p90 > 1000 s, p99 > 1000 s, longest ever > 1000 s" in lines
        )


class TestRich:
    def test_the_same_in_colors(self) -> None:
        lines = colored(Look(NEW, ENVIRONMENTS), 200)
        assert lines is not None
        text = "\n".join(lines)
        assert "\x1b[" in text
        assert "\x1b[2J" not in text
        for word in ("py@127.0.0.1", "app.py:7, in ?[2Jg", "2.0 KiB+", "4712", "5.0 GiB"):
            assert word in text

    def test_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "rich.console", None)
        assert colored(Look(NEW), 80) is None


def test_json() -> None:
    later = {**NEW, "latency": latency(10, 10, 10, 40, 41)}
    told = json.loads(json.dumps(as_json(Look(later, ENVIRONMENTS, 2.0, NEW))))
    assert told["info"]["os_pid"] == 4711
    assert told["environments"] == ENVIRONMENTS
    assert told["calls_per_second"] == 0.5
    assert told["latency"]["count"] == 1
    first = as_json(Look(OLD))
    assert first["calls_per_second"] is first["latency"] is first["environments"] is None


def test_terms_become_readable() -> None:
    encoded, _ = serde.decoder().decode(serde.encoder.encode([PID]))
    assert to_typed(encoded[0]) == PID
    term = {Atom("a"): [Atom("b"), "c", None, True, 1.5], 7: encoded, (1,): ()}
    assert readable(term) == {
        "a": ["b", "c", None, True, 1.5],
        7: [str(PID)],
        "(1,)": [],
    }


async def test_of_a_node() -> None:
    async with pair() as both:
        await both.call("make_env", {"x": 1})
        ok, info = await both.call("info")
        _, environments = await both.call("info", Atom("environments"))
        assert ok == "ok"
        lines = plain(Look(readable(info), readable(environments)))
        assert lines[0].startswith(f"{both.node.name}: snex-node ")
        assert "Environments (1)" in lines
        assert "-" not in words(lines)[1:8]
