"""A node that is started as a BEAM starts it: configured and let go through standard input."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from snex_node.etf import Decoder, Encoder
from snex_node.node import Node
from snex_node.terms import Atom
from snex_runtime import child, serde
from tests.support.epmd import RealEpmd

PROMISE = 5.0
"""Seconds within which a child is gone when its BEAM is."""


class Child:
    """A child process, at the other end of its standard input and output."""

    def __init__(self, epmd: RealEpmd, stderr: int | None = None, **configuration: object) -> None:
        self.name = f"child_{secrets.token_hex(5)}@127.0.0.1"
        self.cookie = secrets.token_hex(10)
        environ = {**os.environ, "ERL_EPMD_PORT": str(epmd.port)}
        self.epmd = epmd
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snex_runtime", "child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
        )
        term: dict[Atom, object] = {Atom("name"): self.name, Atom("cookie"): self.cookie}
        term |= {Atom(name): value for name, value in configuration.items()}
        self.write(framed(term))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        try:
            self.process.wait(2 * PROMISE)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            if self.process.stderr is not None:
                self.process.stderr.close()

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def told(self) -> Any:
        """What the child says about its start."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(child.MARK):
                return Decoder().decode(base64.b64decode(line[len(child.MARK) :]), 1)[0]
        raise AssertionError("the child ended without a word")

    async def eval(self, code: str, timeout: float | None = 5.0) -> Any:
        async with self.caller() as node:
            request: Any = (Atom("eval"), code, {})
            return await node.call(("snex", self.name), request, timeout=timeout)

    async def begin(self, code: str) -> None:
        """Have code run that does not answer."""
        async with self.caller() as node:
            began = await node.call(("snex", self.name), (Atom("eval"), "return 1", {}))
            assert began == ("ok", 1)
            node.send(("snex", self.name), (Atom("eval"), code, {}))

    def caller(self) -> Node:
        return Node(
            f"caller_{secrets.token_hex(5)}@127.0.0.1",
            cookie=self.cookie,
            listen=None,
            epmd="none",
            epmd_port=self.epmd.port,
            decoder=serde.decoder(),
        )

    def gone_within(self, seconds: float) -> bool:
        """Whether the process, and all of its group, end within that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None and not group(self.process.pid):
                return True
            time.sleep(0.02)
        return False


def framed(term: object) -> bytes:
    data = b"\x83" + Encoder().encode(term)
    return struct.pack(">I", len(data)) + data


def group(leader: int) -> list[int]:
    """The living processes of a process group."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == leader:
            members.append(int(entry.name))
    return members


def seen_by_others(process: Child) -> bytes:
    """What other users, and other processes of this one, can read of it."""
    folder = Path(f"/proc/{process.process.pid}")
    return (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()


def registering(file: Path) -> str:
    """Code that has `file` made in the clean-up."""
    return f"import atexit, pathlib; atexit.register(pathlib.Path({str(file)!r}).touch)"


@pytest.fixture
def start(epmd: RealEpmd) -> Iterator[Callable[..., Child]]:
    with ExitStack() as stack:
        yield lambda **configuration: stack.enter_context(Child(epmd, **configuration))


Start = Callable[..., Child]


async def test_it_takes_requests_and_keeps_its_cookie(start: Start) -> None:
    process = start()
    ready, name, port, server = process.told()
    assert (ready, name) == ("ready", process.name)
    assert port > 0
    assert server.node == process.name
    code = "import os, sys; return os.getpid(), sys.stdin.read()"
    assert await process.eval(code) == ("ok", (process.process.pid, ""))
    assert process.cookie.encode() not in seen_by_others(process)


async def test_it_takes_encoding_options(start: Start) -> None:
    process = start(encoding_opts=[(Atom("binary_as"), Atom("bytes"))])
    process.told()
    async with process.caller() as node:
        request = (Atom("eval"), "return type(x).__name__", {"x": "text"})
        assert await node.call(("snex", process.name), request) == ("ok", "bytes")


async def test_it_leaves_logging_to_users(start: Start) -> None:
    process = start()
    process.told()
    code = "import logging; return len(logging.getLogger().handlers)"
    assert await process.eval(code) == ("ok", 0)


async def test_its_own_records_come_once(start: Start) -> None:
    process = start(stderr=subprocess.PIPE)
    process.told()
    code = """
import logging
own = logging.getLogger("snex_runtime.test")
own.warning("told by the node")
root = logging.getLogger()
handler = snex.LoggingHandler()
root.addHandler(handler)
own.warning("told by Elixir")
handler.setLevel(logging.ERROR)
own.warning("too little for the handler")
root.removeHandler(handler)
own.warning("told by the node again")
"""
    assert await process.eval(code) == ("ok", None)
    assert process.process.stderr is not None
    told: list[bytes] = []
    while told[-1:] != [b"told by the node again\n"]:  # they are written in order, by a thread
        line = process.process.stderr.readline()
        assert line, "the child ended"
        told += [line.rpartition(b"WARNING ")[2]] if b"WARNING" in line else []
    assert told == [
        b"told by the node\n",
        b"too little for the handler\n",
        b"told by the node again\n",
    ]


@pytest.mark.parametrize("end", ["close", "stop", "terminate"])
async def test_who_still_logs_when_it_ends_is_told_nothing(start: Start, end: str) -> None:
    process = start(stderr=subprocess.PIPE)
    process.told()
    code = """
import asyncio, atexit, logging, threading
log = logging.getLogger("busy")
log.setLevel(1)
log.addHandler(snex.LoggingHandler())
def busy():
    while True: log.info("busy")
threading.Thread(target=busy, daemon=True).start()
atexit.register(log.info, "at exit")
async def task():
    try:
        await asyncio.sleep(600)
    finally:
        log.info("cancelled")
task = asyncio.ensure_future(task())
"""
    assert (await process.eval(code, None))[0] == "ok"
    if end == "stop":
        process.write(b"stop\n")
    elif end == "terminate":
        process.process.terminate()
    else:
        process.close()
    assert process.process.stderr is not None
    assert b"Traceback" not in process.process.stderr.read()


def test_it_tells_why_it_does_not_start(start: Start) -> None:
    process = start(name="no node name")
    told = process.told()
    assert told[0] == "error"
    assert "no node name" in str(told[1])
    assert process.process.wait(PROMISE) == 1


@pytest.mark.parametrize("data", [b"", b"\0\0", b"GET / HTTP/1.1\r\n\r\n", framed([1])])
def test_it_refuses_what_is_no_configuration(data: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snex_runtime", "child"],
        input=data,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert b"configuration" in done.stderr


@pytest.mark.parametrize("end", ["close", "stop"])
async def test_it_cleans_up_when_it_is_let_go(start: Start, end: str, tmp_path: Path) -> None:
    process = start()
    process.told()
    file = tmp_path / "cleaned"
    await process.eval(registering(file))
    if end == "stop":
        process.write(b"stop\n")
    else:
        process.close()
    assert process.gone_within(PROMISE)
    assert process.process.returncode == 0
    assert file.exists()


async def test_sigterm_ends_it_with_the_status_of_a_shell(start: Start) -> None:
    process = start()
    process.told()
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(PROMISE) == 128 + signal.SIGTERM


async def test_code_that_blocks_is_interrupted_and_clean_up_runs(
    start: Start, tmp_path: Path
) -> None:
    process = start()
    process.told()
    file = tmp_path / "cleaned"
    await process.eval(registering(file))
    await process.begin("import time; time.sleep(600)")
    process.close()
    assert process.gone_within(PROMISE)
    assert file.exists()


@pytest.mark.parametrize(
    "code",
    [
        "sum(range(10 ** 12))",
        "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
        "import atexit, time; atexit.register(time.sleep, 600)",
        "import subprocess; subprocess.Popen(['sh', '-c', 'trap \"\" TERM HUP; sleep 600 & wait'])",
        "import os\nfor s in range(1, 32):\n  try: __import__('signal').signal(s, lambda *_: 0)\n"
        "  except (OSError, ValueError): pass\nos.fork() or __import__('time').sleep(600)",
    ],
    ids=["c", "thread", "atexit", "children", "signals"],
)
@pytest.mark.slow
async def test_nothing_outlives_the_leash(start: Start, code: str) -> None:
    process = start()
    process.told()
    await process.begin(code)
    process.close()
    assert process.gone_within(PROMISE)


async def test_children_go_when_the_process_is_killed(start: Start) -> None:
    process = start()
    process.told()
    await process.eval("import subprocess; subprocess.Popen(['sleep', '600'])")
    assert len(group(process.process.pid)) == 3  # with the watcher
    process.process.kill()
    assert process.gone_within(PROMISE)
