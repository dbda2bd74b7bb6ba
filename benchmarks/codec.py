"""What the codec costs: ``python -m benchmarks.codec``, from the root of the repository.

Each figure is the fastest of several runs, in the unit its row names. Where erlang-py is installed its figures
stand beside ours, with the ratio (how many times longer it takes). Pin the process to one core
(``taskset -c 1``) and compare ratios: the absolute figures change with the machine and with what else it does.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from typing import Any

from snex_node.etf import Decoder, Encoder
from snex_node.terms import Atom, ImproperList, Pid, Reference

try:
    import erlang
except ImportError:
    erlang = None

REPEATS = 7
SECONDS_PER_REPEAT = 0.02


def cases() -> list[tuple[str, Any]]:
    """Names and terms to measure, as Python objects."""
    random.seed(1)
    pid = Pid("elixir@127.0.0.1", 112, 0, 1700000000)
    alias = ImproperList([Atom("alias")], Reference("elixir@127.0.0.1", 1700000000, (1, 2, 3)))
    evaluation = (Atom("eval"), b"return 6 * x", {b"x": 7})
    names = [Atom(name) for name in ("id", "name", "email", "score", "active")]
    rows = [(i, b"user %d" % i, b"user%d@example.com" % i, i / 7, i % 3 == 0) for i in range(10_000)]
    return [
        ("{:ok, 42}", (Atom("ok"), 42)),
        ("GenServer.call of an eval", (Atom("$gen_call"), (pid, alias), evaluation)),
        ("100,000 integers, ascending", list(range(100_000))),
        ("100,000 integers, 32 bits", [random.randrange(-(2**31), 2**31) for _ in range(100_000)]),
        ("100,000 integers below 1,000", [random.randrange(1000) for _ in range(100_000)]),
        ("100,000 floats", [random.random() for _ in range(100_000)]),
        ("100,000 mixed scalars", [(i, i / 3, b"x%d" % i, True)[i % 4] for i in range(100_000)]),
        ("100,000 binaries", [b"value %d" % i for i in range(100_000)]),
        ("10,000 maps of 5, atom keys", [dict(zip(names, row)) for row in rows]),
        ("10,000 maps of 5, binary keys", [dict(zip(map(_key, names), row)) for row in rows]),
        ("10,000 tuples of 5", rows),
        ("1,000 x 100 floats", [[random.random() for _ in range(100)] for _ in range(1000)]),
        ("10 MB binary", b"x" * 10_000_000),
        ("lists nested 500 deep", _nested(500)),
    ]


def _key(name: Atom) -> bytes:
    return str.__str__(name).encode()


def _nested(depth: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


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


def _other(name: str, data: bytes) -> tuple[float | None, float | None]:
    if erlang is None or "deep" in name:
        return None, None
    theirs = erlang.binary_to_term(b"\x83" + data)
    return (
        fastest(lambda: erlang.binary_to_term(b"\x83" + data)),
        fastest(lambda: erlang.term_to_binary(theirs)),
    )


def _shown(ours: float, theirs: float | None) -> str:
    unit, factor = ("ms", 1e3) if ours >= 1e-4 else ("us", 1e6)
    text = f"{ours * factor:9.2f} {unit}"
    return text + (f" {theirs / ours:6.1f} x" if theirs is not None else " " * 9)


def main() -> None:
    """Print the table."""
    print(f"{'':32}{'decode':>12}{'erlang-py' if erlang else '':>9}{'decode, str':>13}"
          f"{'encode':>12}{'erlang-py' if erlang else '':>9}")
    decoder, texts, encoder = Decoder(), Decoder(binary_as="str"), Encoder()
    for name, term in cases():
        data = encoder.encode(term)
        decode, encode = _other(name, data)
        text = fastest(lambda: texts.decode(data))
        print(
            f"{name:32}{_shown(fastest(lambda: decoder.decode(data)), decode)} {_shown(text, None)[:12]} "
            f"{_shown(fastest(lambda: encoder.encode(term)), encode)}"
        )


if __name__ == "__main__":
    main()
