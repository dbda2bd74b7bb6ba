"""``make soak``: what befalls workers, and members of a pool of the client, for ten minutes each.

Nothing may be lost, answered wrongly or twice; at the end nothing runs or waits, all workers are
there, and when the node, or the pool, has ended no process is left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import client
from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("workers.exs")
POOL = Path(__file__).with_name("pool.exs")

MEMORY = 400 * 1024 * 1024

# Code, options, and the outcomes that it may have.
FATES: dict[str, tuple[str, dict[str, int], tuple[str, ...]]] = {
    "segfault": ("import ctypes; ctypes.string_at(0)", {}, ("worker_exited",)),
    "exit": ("import os; os._exit(3)", {}, ("worker_exited",)),
    "sigkill": ("import os; os.kill(os.getpid(), 9)", {}, ("worker_exited",)),
    "sigstop": (
        "import os; os.kill(os.getpid(), 19)",
        {"timeout": 300, "kill_after": 300},
        ("killed",),
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(b'1') * 8_000_000)", {}, ("memory_limit",)),
    "regex": (
        "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
        {"timeout": 300, "kill_after": 300},
        ("killed",),
    ),
    "loop": ("while True: pass", {"timeout": 300}, ("cancelled",)),
    "sleep": ("import time; time.sleep(30)", {"timeout": 300}, ("cancelled",)),
    "raise": ("1 / 0", {}, ("python_runtime_error",)),
}

# Any request may be in a worker while another one that awaits there ends it, or be one that awaits.
SHARED = ("worker_exited",)


# As the client tells it: the end of a member, and code that was stopped in time.
OF_CLIENT = {"worker_exited": "call_failed", "cancelled": "response_timeout"}


def fates(*, of_client: bool = False) -> list[tuple[Any, ...]]:
    """As the script on the BEAM has them."""
    renamed = OF_CLIENT if of_client else {}
    return [
        (
            Atom(name),
            code.encode(),
            [(Atom(option), value) for option, value in options.items()],
            [Atom(renamed.get(code, code)) for code in (*allowed, *SHARED)],
        )
        for name, (code, options, allowed) in FATES.items()
    ]


async def soak(seconds: float, callers: int, seed: int, workers: int) -> list[str]:
    """Run it; what was not as it should be, as lines."""
    flags = ("--workers", str(workers), "--max-memory", str(MEMORY), "--max-restarts", "100000/1")
    with RealEpmd() as epmd, Beam.start(epmd_port=epmd.port) as beam:
        with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, flags=flags) as runtime:
            seen: set[int] = set()
            watching = asyncio.ensure_future(_processes(runtime.process.pid, seen))
            counts: Any = await beam.eval(
                SOURCE.read_text(),
                timeout=seconds + 120,
                py=runtime.name,
                milliseconds=round(seconds * 1000),
                callers=callers,
                seed=seed,
                fates=fates(),
            )
            info = await _rested(beam, runtime, workers)
            watching.cancel()
            await asyncio.wait([watching])
            runtime.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(runtime.process.wait, 20)
        left = await _left(seen)
    found = {_named(name): number for name, number in counts}
    for name, number in sorted(found.items()):
        print(f"{number:9d} {name}")
    print(f"{len(seen):9d} processes of workers")
    return [*wrong_outcomes(found), *wrong_counts(info, workers), *left]


async def soak_pool(seconds: float, callers: int, seed: int, size: int) -> list[str]:
    """The same with a pool of the client."""
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        compiled = await asyncio.to_thread(client.compiled, ROOT, Path(scratch))
        with RealEpmd() as epmd, Beam.start(epmd_port=epmd.port) as beam:
            for folder in compiled.folders:
                await beam.eval("Code.prepend_path(folder)", folder=str(folder).encode())
            answer: Any = await beam.eval(
                POOL.read_text(),
                timeout=seconds + 180,
                python=sys.executable.encode(),
                size=size,
                memory=MEMORY,
                milliseconds=round(seconds * 1000),
                callers=callers,
                seed=seed,
                fates=fates(of_client=True),
            )
    counts, busy, queue, restarts, processes = answer
    found = {_named(name): number for name, number in counts}
    for name, number in sorted(found.items()):
        print(f"{number:9d} {name}")
    print(f"{restarts:9d} members started again")
    wrong = [f"{busy} members busy or away at the end"] if busy else []
    wrong += [f"{queue} calls in the queue at the end"] if queue else []
    return [*wrong_outcomes(found), *wrong, *await _left(processes)]


def _named(name: object) -> str:
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def wrong_outcomes(found: dict[str, int]) -> list[str]:
    """What of the outcomes, and how often they came, is not as it should be."""
    right = ("right", "as_it_should", "went_with_its_worker", "worker_exited")
    wrong = [
        f"{number} times: {name}"
        for name, number in found.items()
        if number and not name.endswith(right)
    ]
    return wrong + ([] if found.get("right", 0) else ["no call at all was answered"])


def wrong_counts(info: dict[str, Any], workers: int) -> list[str]:
    """What ``:info`` tells at the end that it should not."""
    counts = {name: info[name] for name in ("requests_running", "requests_queued", "environments")}
    wrong = [f"{value} {name} at the end" for name, value in counts.items() if value]
    if len(info["workers"]) != workers:
        wrong.append(f"{len(info['workers'])} workers at the end")
    return wrong


async def _rested(beam: Beam, runtime: Runtime, workers: int) -> dict[str, Any]:
    """What ``:info`` tells when it has come to rest, or after 20 s."""
    deadline = time.monotonic() + 20
    while True:
        info = await runtime.info(beam)
        if not wrong_counts(info, workers) or time.monotonic() >= deadline:
            return info
        await asyncio.sleep(0.1)


async def _processes(parent: int, seen: set[int]) -> None:
    """Note every child of ``parent``, until cancelled."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while True:
        seen.update(map(int, (await asyncio.to_thread(children.read_text)).split()))
        await asyncio.sleep(0.05)


async def _left(processes: Iterable[int]) -> list[str]:
    deadline = time.monotonic() + 10
    left = set(processes)
    while left and time.monotonic() < deadline:
        left = {process for process in left if _lives(process)}
        await asyncio.sleep(0.1)
    return [f"process {process} is left" for process in sorted(left)]


def _lives(process: int) -> bool:
    try:
        return b"snex_runtime" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def main() -> int:
    """Run it, and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=main.__doc__)
    parser.add_argument("what", choices=("both", "workers", "pool"), nargs="?", default="both")
    parser.add_argument("--minutes", type=float, default=10.0, help="%(default)s")
    parser.add_argument("--callers", type=int, default=20, help="%(default)s")
    parser.add_argument("--workers", type=int, default=2, help="%(default)s")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="random")
    options = parser.parse_args()
    print(f"seed {options.seed}, process {os.getpid()}", flush=True)
    numbers = options.minutes * 60, options.callers, options.seed, options.workers
    wrong = []
    if options.what != "pool":
        wrong += asyncio.run(soak(*numbers))
    if options.what != "workers":
        wrong += asyncio.run(soak_pool(*numbers))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
