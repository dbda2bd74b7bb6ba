"""What the codec costs: ``python -m benchmarks.codec`` in the root of the repository.

Each figure is the fastest of several runs. Where erlang-py is installed its figures stand beside
ours, as how many times longer it takes; it has no pids, so some rows go without. Pin the process to
one core (``taskset -c 1``) and compare ratios: times change with the machine and with its load.
"""

from __future__ import annotations

import gc
import random
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.terms import Atom, ImproperList, Pid, Reference

try:
    import erlang
except ImportError:
    erlang = None

REPEATS = 7
SECONDS_PER_REPEAT = 0.02
FIELDS = ("id", "name", "email", "score", "active")


def cases() -> list[tuple[str, Any]]:
    """Names and terms to measure, as Python objects."""
    random.seed(1)
    pid = Pid("elixir@127.0.0.1", 112, 0, 1700000000)
    alias = ImproperList([Atom("alias")], Reference("elixir@127.0.0.1", 1700000000, (1, 2, 3)))
    request = (Atom("eval"), b"return 6 * x", {b"x": 7})
    rows = [(i, b"user %d" % i, b"u%d@example.com" % i, i / 7, i % 3 == 0) for i in range(10_000)]
    atoms, binaries = [Atom(name) for name in FIELDS], [name.encode() for name in FIELDS]
    many = range(100_000)
    return [
        ("{:ok, 42}", (Atom("ok"), 42)),
        ("GenServer.call of an eval", (Atom("$gen_call"), (pid, alias), request)),
        ("100,000 integers, ascending", list(many)),
        ("100,000 integers of 32 bits", [random.randrange(-(2**31), 2**31) for _ in many]),
        ("100,000 integers below 1,000", [random.randrange(1000) for _ in many]),
        ("100,000 floats", [random.random() for _ in many]),
        ("1,000 x 100 floats", [[random.random() for _ in range(100)] for _ in range(1000)]),
        ("100,000 mixed scalars", [(i, i / 3, b"x%d" % i, True)[i % 4] for i in many]),
        ("100,000 binaries", [b"value %d" % i for i in many]),
        ("10,000 maps of 5, atom keys", [dict(zip(atoms, row, strict=True)) for row in rows]),
        ("10,000 maps of 5, binary keys", [dict(zip(binaries, row, strict=True)) for row in rows]),
        ("10,000 tuples of 5", rows),
        ("10 MB binary", b"x" * 10_000_000),
        ("lists nested 200 deep", _nested(200)),
    ]


def _nested(depth: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


def as_beam_writes(term: Any) -> bytes:
    """The external form with the smallest tag for every integer, which ours has in short lists."""
    if isinstance(term, list) and term:
        return b"l" + struct.pack(">I", len(term)) + b"".join(map(as_beam_writes, term)) + b"j"
    return Encoder().encode(term)


def fastest(call: Callable[[], object]) -> float:
    """Seconds per call, the fastest of several runs."""
    count = 1
    while _timed(call, count) < SECONDS_PER_REPEAT and count < 1 << 20:
        count *= 2
    return min(_timed(call, count) for _ in range(REPEATS)) / count


def _timed(call: Callable[[], object], count: int) -> float:
    gc.collect()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def _time(seconds: float) -> str:
    unit, factor = ("ms", 1e3) if seconds >= 1e-4 else ("us", 1e6)
    return f"{seconds * factor:9.2f} {unit}"


def _times_longer(ours: float, call: Callable[[], object]) -> str:
    return f"{fastest(call) / ours:8.1f} x"


def _row(name: str, term: Any) -> str:
    data = as_beam_writes(term)
    decode = fastest(partial(Decoder().decode, data))
    decode_str = fastest(partial(Decoder(binary_as="str").decode, data))
    encode = fastest(partial(Encoder().encode, term))
    reads = writes = " " * 10
    if erlang is not None and "nested" not in name:
        theirs = erlang.binary_to_term(b"\x83" + data)
        reads = _times_longer(decode, partial(erlang.binary_to_term, b"\x83" + data))
        writes = _times_longer(encode, partial(erlang.term_to_binary, theirs))
    return f"{name:30}{_time(decode)}{reads}{_time(decode_str)}{_time(encode)}{writes}"


def main() -> None:
    """Print the table."""
    theirs = "erlang-py" if erlang is not None else ""
    print(f"{'':30}{'decode':>12}{theirs:>10}{'as str':>12}{'encode':>12}{theirs:>10}")
    for name, term in cases():
        print(_row(name, term))


if __name__ == "__main__":
    main()
