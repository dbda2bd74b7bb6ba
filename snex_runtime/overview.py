"""What a node tells of itself, for people: text, tables where ``rich`` is there, or JSON.

Nodes of other versions tell more or less than this one: what is missing is shown as ``-``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from snex_runtime import serde
from snex_runtime.latency import Counts

__all__ = ["ROWS", "Look", "as_json", "colored", "plain", "readable"]

ROWS: Final = 20
"""Lines of each table; of the rest it says how many there are."""

_NONE: Final = "-"


class Look(NamedTuple):
    """What was seen of a node at one time."""

    info: Mapping[str, Any]
    """Its answer to ``:info``, made `readable`."""

    environments: Sequence[Mapping[str, Any]] | None = None
    """Its answer to ``{:info, :environments}``; None where it gives none."""

    seconds: float = 0.0
    """Since the look before; 0.0 when there was none."""

    before: Mapping[str, Any] | None = None
    """What the ``info`` was then."""


class Table(NamedTuple):
    """Rows under a title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def readable(value: object) -> Any:
    """A term as texts, numbers, lists and maps: what JSON has. Pids are as Erlang writes them."""
    if isinstance(value, Mapping):
        return {_key(key): readable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [readable(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return str(serde.to_typed(value))


def _key(key: object) -> object:
    return key if type(key) is int else str.__str__(key) if isinstance(key, str) else str(key)


def as_json(look: Look) -> dict[str, object]:
    """What ``--json`` gives: ``info`` and ``environments`` as the node tells them, and what came
    since the look before, if there was one.
    """
    counts = _since(look)
    return {
        "info": look.info,
        "environments": look.environments,
        "calls_per_second": _rate(look, "count"),
        "latency": None if counts is None else counts.summary(),
    }


# --- what is shown --------------------------------------------------------------------------------


def _facts(look: Look) -> list[tuple[str, str]]:
    """Names, and what there is to be said."""
    info = look.info
    of = info.get
    latency = _since(look) or _counts(info)
    rate = _rate(look, "count")
    return [
        (
            _text(of("node")),
            f"snex-node {_text(of('version'))}, {_text(of('python_implementation'))} "
            f"{_text(of('python_version'))} ({_text(of('loop'))}), process {_id(of('os_pid'))}, "
            f"up for {_duration(of('uptime_ms'))}",
        ),
        (
            "requests",
            f"{_text(of('requests_running'))} running, {_text(of('requests_queued'))} queued, "
            f"{_text(_counted(info))} in all"
            + ("" if rate is None else f", {rate:,.1f} per second"),
        ),
        (
            "held",
            f"{_text(of('environments'))} environments, {_text(of('objects', 0))} objects, "
            f"{_text(of('streams', 0))} streams",
        ),
        ("latency", _percentiles(latency)),
        (
            "loop",
            f"{_duration(of('loop_lag_ms'))} late, blocked for {_duration(of('loop_blocked_ms'))} "
            f"(longest {_duration(of('loop_blocked_max_ms'))}"
            + (f" at {_text(of('loop_blocked_at'))})" if of("loop_blocked_at") else ")"),
        ),
        (
            "threads",
            f"{_text(of('threads_busy'))} of {_text(of('threads'))} busy, "
            f"{_text(of('threads_lost'))} lost",
        ),
        ("memory", _size(of("memory_bytes"))),
        ("traffic", f"{_traffic(look, 'bytes_in')} in, {_traffic(look, 'bytes_out')} out"),
    ]


def _tables(look: Look) -> list[Table]:
    info = look.info
    tables = [
        _table(
            "Running",
            info.get("running"),
            {
                "age": lambda each: _duration(each.get("age_ms")),
                "kind": lambda each: _text(each.get("kind")),
                "where": lambda each: _text(each.get("where")),
                "caller": lambda each: _text(each.get("caller")),
                "environment": lambda each: _text(each.get("environment")),
                "worker": lambda each: _text(each.get("worker")),
            },
        ),
        _environments(look),
        _table(
            "Peers",
            info.get("peers"),
            {
                "node": lambda each: _text(each.get("node")),
                "in": lambda each: _size(each.get("bytes_in")),
                "out": lambda each: _size(each.get("bytes_out")),
                "pending": lambda each: _size(each.get("pending")),
                "connected": lambda each: _duration(each.get("connected_ms")),
                "heard": lambda each: _duration(each.get("last_heard_ms")),
            },
        ),
    ]
    if info.get("workers") is not None:
        tables.insert(2, _workers(info))
    return tables


def _environments(look: Look) -> Table:
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "bytes": lambda each: (
            _size(each.get("bytes")) + ("" if each.get("bytes_complete", True) else "+")
        ),
        "variables": lambda each: _text(each.get("variables")),
        "age": lambda each: _duration(each.get("age_ms")),
        "environment": lambda each: _text(each.get("env")),
        "kept by": lambda each: _text(each.get("handle")),
    }
    found = look.environments
    if found is not None:
        found = sorted(found, key=lambda each: -(each.get("bytes") or 0))
    return _table("Environments", found, columns, look.info.get("environments"))


def _workers(info: Mapping[str, Any]) -> Table:
    return _table(
        f"Workers, {_text(info.get('worker_restarts'))} restarts",
        info.get("workers"),
        {
            "node": lambda each: _text(each.get("node")),
            "process": lambda each: _id(each.get("os_pid")),
            "state": lambda each: _text(each.get("state")),
            "busy": lambda each: _duration(each.get("busy_ms")),
            "requests": lambda each: _text(each.get("requests")),
            "running": lambda each: _text(each.get("requests_running")),
            "environments": lambda each: _text(each.get("environments")),
        },
    )


def _table(
    title: str,
    found: object,
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]],
    number: object = None,
) -> Table:
    rows: list[tuple[str, ...]] = []
    listed = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else None
    for each in (listed or ())[:ROWS]:
        rows.append(tuple(show(each) for show in columns.values()))
    if number is None and listed is not None:
        number = len(listed)
    more = "" if listed is None or len(listed) <= ROWS else f", {ROWS} shown"
    return Table(f"{title} ({_text(number)}{more})", tuple(columns), rows)


# --- numbers --------------------------------------------------------------------------------------


def _counts(info: Mapping[str, Any] | None) -> Counts | None:
    latency = None if info is None else info.get("latency")
    if not isinstance(latency, Mapping):
        return None
    counts = Counts()
    counts.include(latency)
    return counts


def _counted(info: Mapping[str, Any]) -> object:
    latency = info.get("latency")
    return latency.get("count") if isinstance(latency, Mapping) else None


def _since(look: Look) -> Counts | None:
    """How long requests took since the look before; None where that is not known."""
    now, before = _counts(look.info), _counts(look.before)
    return None if now is None or before is None else now.since(before)


def _rate(look: Look, name: str) -> float | None:
    """How many more of something there are for each second since the look before."""
    if look.before is None or not look.seconds:
        return None
    both = look.info, look.before
    now, before = map(_counted, both) if name == "count" else (each.get(name) for each in both)
    if not isinstance(now, int) or not isinstance(before, int):
        return None
    return max(0, now - before) / look.seconds


def _traffic(look: Look, name: str) -> str:
    rate = _rate(look, name)
    return _size(look.info.get(name)) + ("" if rate is None else f" ({_size(int(rate))}/s)")


def _percentiles(counts: Counts | None) -> str:
    if counts is None or not counts.count:
        return _NONE
    shown = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    parts = [f"{name} {_time(counts.percentile(share))}" for name, share in shown.items()]
    return ", ".join([*parts, f"longest ever {_time(counts.longest)}"])


def _time(nanoseconds: int) -> str:
    """Nanoseconds with three digits that count."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}" if nanoseconds < 1000 * size else "> 1000 s"
    return f"{nanoseconds / 1000:.0f} us"


def _duration(milliseconds: object) -> str:
    if not isinstance(milliseconds, int):
        return _NONE
    if milliseconds < 10_000:
        return f"{milliseconds} ms"
    seconds = milliseconds // 1000
    for unit, smaller, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if seconds >= size:
            rest = seconds % size // {"h": 3600, "min": 60, "s": 1}[smaller]
            return f"{seconds // size} {unit} {rest} {smaller}"
    return f"{seconds} s"


def _size(count: object) -> str:
    if not isinstance(count, int):
        return _NONE
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"


_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


def _id(value: object) -> str:
    return _text(None if value is None else str(value))


def _text(value: object) -> str:
    """A value on one line, without anything that a terminal would obey."""
    if value is None:
        return _NONE
    text = f"{value:,}" if type(value) is int else str(value)
    return "".join(each if each.isprintable() else "?" for each in text)


# --- as text --------------------------------------------------------------------------------------


def plain(look: Look, width: int | None = None) -> list[str]:
    """Lines, cut off at ``width``."""
    facts = _facts(look)
    names = max(len(name) for name, _ in facts[1:])
    lines = [f"{facts[0][0]}: {facts[0][1]}"]
    lines += [f"  {name:<{names}}  {text}" for name, text in facts[1:]]
    for table in _tables(look):
        lines += ["", table.title]
        if table.rows:
            lines += _aligned([table.columns, *table.rows])
    return [line if width is None else line[:width] for line in lines]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def colored(look: Look, width: int) -> list[str] | None:
    """The same as tables of ``rich``, with the codes of a terminal; None where there is no rich."""
    try:
        console_room, table_room, text_room = map(
            import_module, ("rich.console", "rich.table", "rich.text")
        )
    except ImportError:
        return None
    text: Any = text_room.Text
    console = console_room.Console(file=io.StringIO(), force_terminal=True, width=width)
    facts = _facts(look)
    console.print(text.assemble((facts[0][0], "bold"), f": {facts[0][1]}"), no_wrap=True)
    for name, said in facts[1:]:
        console.print(text.assemble("  ", (f"{name:<8}", "cyan"), f"  {said}"), no_wrap=True)
    for table in _tables(look):
        console.print()
        shown = table_room.Table(
            title=text(table.title, style="bold"),
            title_justify="left",
            box=None,
            header_style="cyan",
            pad_edge=False,
        )
        for column in table.columns:
            shown.add_column(column, no_wrap=True)
        for row in table.rows:
            shown.add_row(*map(text, row))
        console.print(shown if table.rows else text(table.title, style="bold"))
    written: str = console.file.getvalue()
    return written.splitlines()
