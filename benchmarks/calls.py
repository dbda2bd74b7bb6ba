"""What calls cost: ``python -m benchmarks calls``, from the root of the repository.

One BEAM calls a Python node and, as the yardstick, another BEAM: the same requests, in turn, round
by round, so that both sides see the same machine. Where the system can pin processes, the caller
has one core and the two that answer share another. Compare the ratios: the figures themselves
change with the machine and with what else it does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.beam import Beam
from tests.support.ports import free_port

SECONDS = 600.0
SOURCE = Path(__file__).with_name("calls.ex")
ROOT = Path(__file__).parent.parent

# What users have; the tests' BEAMs do not spin, which would make the yardstick slower.
USUAL_SPINNING = ("+sbwt", "medium", "+sbwtdcpu", "short", "+sbwtdio", "short")

LATENCY_ROUNDS, LATENCY_CALLS = 10, 500
CALLERS, THROUGHPUT_ROUNDS, THROUGHPUT_CALLS = 50, 10, 100
TRANSFER_ROUNDS = 15


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Have processes started here inherit one core, where there are two and a way to say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def python_node(name: str, cookie: str, epmd_port: int) -> Iterator[int]:
    """A ``snex-node start`` that brings the epmd of all three; gives its process id."""
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [sys.executable, "-m", "snex_runtime", "start", "--name", name, "--epmd", "embedded"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("ERL_")},
                "HOME": home,
                "SNEX_COOKIE": cookie,
                "ERL_EPMD_PORT": str(epmd_port),
            },
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(b"ready "):
                raise RuntimeError(f"the node did not start: {line!r}")
            yield process.pid
        finally:
            process.terminate()
            process.communicate()


def resident_mib(pid: int) -> float | None:
    """Memory of a process, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return None


class Table:
    """Rows of both sides and their ratio, printed as they come."""

    def __init__(self) -> None:
        print(f"{'':44}{'BEAM':>14}{'Python node':>16}{'ratio':>9}")

    def times(self, name: str, beam: float, python: float) -> None:
        unit, factor = ("ms", 1e-6) if beam >= 1e6 else ("us", 1e-3)
        row = f"{beam * factor:11.1f} {unit}{python * factor:13.1f} {unit}"
        print(f"{name:44}{row}{python / beam:8.2f}x", flush=True)

    def rates(self, name: str, beam: float, python: float) -> None:
        print(f"{name:44}{beam:12,.0f}/s{python:14,.0f}/s{python / beam:8.2f}x", flush=True)


def measure(caller: Beam, beam: str, python: str, table: Table) -> None:
    """Ask the caller for every row about the two nodes of these names."""
    servers = f'[{{:snex, :"{beam}"}}, {{:snex, :"{python}"}}]'

    def ask(source: str) -> Any:
        return caller.eval_sync(source, timeout=SECONDS)

    evaluation = '{:eval, "return 6 * x", %{"x" => 7}}'
    for name, request in (("smallest call, :ping", ":ping"), ("eval of return 6 * x", evaluation)):
        arguments = f"{servers}, {request}, {LATENCY_ROUNDS}, {LATENCY_CALLS}"
        found = ask(f"Benchmark.latency({arguments})")
        table.times(name, found[0], found[1])
    for name, request in (
        (f"{CALLERS} callers, :ping", ":ping"),
        (f"{CALLERS} callers, eval", evaluation),
    ):
        arguments = f"{servers}, {request}, {CALLERS}, {THROUGHPUT_ROUNDS}, {THROUGHPUT_CALLS}"
        found = ask(f"Benchmark.throughput({arguments})")
        table.rates(name, found[0], found[1])
    for name, kind in (
        ("100,000 integers", ":integers"),
        ("100,000 floats", ":floats"),
        ("10,000 maps of 5 keys", ":maps"),
        ("a binary of 10 MB", ":binary"),
    ):
        found = ask(f"Benchmark.transfer({servers}, {kind}, {TRANSFER_ROUNDS})")
        table.times(f"{name}, there", found[0][0], found[1][0])
        table.times(f"{name}, back", found[0][1], found[1][1])
    found = ask(f"Benchmark.transfer({servers}, :optioned, {TRANSFER_ROUNDS})")
    table.times("100,000 integers with options, there", found[0][0], found[1][0])


def main() -> None:
    """Print the table."""
    port, python, cookie = free_port(), "py@127.0.0.1", secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        with pinned(1):
            pid = stack.enter_context(python_node(python, cookie, port))
            other = Beam.start(epmd_port=port, cookie=cookie, flags=USUAL_SPINNING)
            stack.enter_context(other)
        with pinned(0):
            caller = Beam.start(epmd_port=port, cookie=cookie, flags=USUAL_SPINNING)
            stack.enter_context(caller)
        for beam in (caller, other):
            beam.eval_sync(SOURCE.read_text())
        other.eval_sync("{:ok, _} = Benchmark.Server.start()")
        idle = resident_mib(pid)
        print(
            f"\nOTP {caller.otp_release}, Python {sys.version.split()[0]}, {os.cpu_count()} cores;"
            f" medians\n"
        )
        measure(caller, other.name, python, Table())
        if idle is not None:
            print(f"{'resident memory, idle':44}{'':14}{idle:13.1f} MiB")


if __name__ == "__main__":
    main()
