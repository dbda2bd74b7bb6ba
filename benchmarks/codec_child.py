"""A process in which one codec works alone; `meters` starts it, and asks it for rounds.

It is run as a script, with the packages of the source tree that is measured on its path, so it
imports nothing of `benchmarks`. Each line on standard input is a request in JSON; the answer is a
line with the nanoseconds of one conversion. Garbage is collected as a user has it, and once before
each round.

``{"codec": "ours", "work": "decode", "file": "data.etf", "text": true, "seconds": 0.02}``
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Convert = Callable[[], object]


def ours() -> Any:
    """The codec of the tree; older ones have it in another place."""
    try:
        return importlib.import_module("snex_node.wire.etf")
    except ImportError:
        return importlib.import_module("snex_node.etf")


def prepared(codec: str, work: str, data: bytes, text: bool) -> Convert:
    """What is done again and again. Strings become ``str``, as they do for evaluated code."""
    if codec == "erlang-py":
        erlang = importlib.import_module("erlang")
        theirs = erlang.binary_to_term(data)
        if work == "decode":
            return functools.partial(erlang.binary_to_term, data)
        return functools.partial(erlang.term_to_binary, theirs)
    etf = ours()
    decoder = etf.Decoder(binary_as="str" if text else "bytes")
    term, _ = decoder.decode(data, 1)
    if codec == "pickle":
        pickled = pickle.dumps(term, pickle.HIGHEST_PROTOCOL)
        if work == "decode":
            return functools.partial(pickle.loads, pickled)
        return functools.partial(pickle.dumps, term, pickle.HIGHEST_PROTOCOL)
    if work == "decode":
        return functools.partial(decoder.decode, data, 1)
    return functools.partial(etf.Encoder().encode, term)


def repeats(convert: Convert, seconds: float) -> int:
    """How often it is done in about so much time."""
    count = 1
    while (taken := timed(convert, count)) < seconds and count < 1 << 20:
        count = max(count + 1, min(count * 10, round(count * seconds / max(taken, 1e-7))))
    return count


def timed(convert: Convert, count: int) -> float:
    """Seconds."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(count):
        convert()
    return time.perf_counter() - start


def main() -> None:
    """Answer requests until standard input ends."""
    sys.stdout.write(json.dumps([ours().__file__]) + "\n")
    sys.stdout.flush()
    known, convert, count = "", None, 0
    for line in sys.stdin:
        if line != known:
            convert = None  # the data of the last row goes first
            request = json.loads(line)
            data = Path(request["file"]).read_bytes()
            convert = prepared(request["codec"], request["work"], data, request["text"])
            known, count = line, repeats(convert, request["seconds"])
        assert convert is not None
        sys.stdout.write(json.dumps(round(timed(convert, count) / count * 1e9)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
