"""A node that is started as a BEAM starts it: configured and let go through standard input."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from snex_node.node import Node
from snex_node.processes.process import Process
from snex_node.system import forks
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.terms import Atom
from snex_runtime import child, serde, watcher
from snex_runtime.workers import ScriptFailedError, WorkerProcess, WorkerStartError
from tests.support import endless
from tests.support.epmd import RealEpmd
from tests.support.leaks import group
from tests.support.waiting import until
from tests.support.worker import configuration

PROMISE = 5.0
"""Seconds within which a child is gone when its BEAM is."""


class Child:
    """A child process, at the other end of its standard input and output."""

    def __init__(
        self,
        epmd: RealEpmd,
        loop: str = "auto",
        stderr: int | None = None,
        **configuration: object,
    ) -> None:
        self.name = f"child_{secrets.token_hex(5)}@127.0.0.1"
        self.cookie = secrets.token_hex(10)
        environ = {**os.environ, "ERL_EPMD_PORT": str(epmd.port)}
        self.epmd = epmd
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snex_runtime", "child", "--loop", loop],
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

    async def begin(self, *codes: str, request: str = "eval") -> None:
        """Have code run that does not answer."""
        async with self.caller() as node:
            began = await node.call(("snex", self.name), (Atom("eval"), "return 1", {}))
            assert began == ("ok", 1)
            for code in codes:
                node.send(("snex", self.name), (Atom(request), code, {}))

    async def begin_and_tell(self, file: Path, *codes: str, request: str = "eval") -> None:
        """The same; return when the first of it runs."""
        tell = f"__import__('pathlib').Path({str(file)!r}).touch()\n"
        await self.begin(tell + codes[0], *codes[1:], request=request)
        await until(file.exists)

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


@pytest.mark.traced_processes
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


@pytest.mark.traced_processes
def test_it_tells_why_it_does_not_start(start: Start) -> None:
    process = start(name="no node name")
    told = process.told()
    assert told[0] == "error"
    assert "no node name" in str(told[1])
    assert process.process.wait(PROMISE) == 1


@pytest.mark.traced_processes
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


@pytest.mark.traced_processes
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


@pytest.mark.traced_processes
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


# --- how soon it is gone --------------------------------------------------------------------------

SOON = 1.5
"""Seconds within which a child is gone that has nothing to clean up."""

STATES = {
    "idle": "",
    "sleep": "import time; time.sleep(600)",
    "busy loop": "while True: pass",
    "busy loop that catches errors": (
        "import time\nwhile True:\n    try: time.sleep(0.01)\n    except Exception: pass"
    ),
    "lock": "import threading; l = threading.Lock(); l.acquire(); l.acquire()",
    "queue": "import queue; queue.Queue().get()",
    "select": "import select; select.select([], [], [], 600)",
    "async sleep": "import asyncio; await asyncio.sleep(600)",
    "async, blocks": "import asyncio, time; await asyncio.sleep(0); time.sleep(600)",
    "background task": (
        "import asyncio, time\nasync def f():\n    await asyncio.sleep(0)\n    time.sleep(600)\n"
        "snex.t = asyncio.create_task(f())"
    ),
    "callback": "import asyncio, time\nasyncio.get_running_loop().call_soon(time.sleep, 600)",
    "loop's threads": (
        "import asyncio, time\n"
        "await asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)"
    ),
    "thread pool": (
        "import time, concurrent.futures\n"
        "pool = concurrent.futures.ThreadPoolExecutor(4)\n"
        "for _ in range(9): pool.submit(time.sleep, 600)"
    ),
    "result of a thread": (
        "import time, concurrent.futures\n"
        "concurrent.futures.ThreadPoolExecutor(4).submit(time.sleep, 600).result()"
    ),
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
    "program": "import subprocess; subprocess.run(['sleep', '600'])",
    "programs": "import subprocess; subprocess.Popen(['sleep', '600'])",
    "child process": (
        "import multiprocessing, time\n"
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)).start()"
    ),
    "process pool": (
        "import asyncio, concurrent.futures, multiprocessing, time\n"
        "fork = multiprocessing.get_context('fork')\n"
        "pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=fork)\n"
        "await asyncio.get_running_loop().run_in_executor(pool, time.sleep, 600)"
    ),
    "C code that lets threads run": endless.RELEASES_THE_LOCK,
}


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
@pytest.mark.parametrize("code", STATES.values(), ids=STATES)
@pytest.mark.alone
async def test_what_has_nothing_to_do_is_gone_at_once(
    start: Start, tmp_path: Path, code: str, loop: str
) -> None:
    process = start(loop=loop)
    process.told()
    await process.eval(registering(tmp_path / "cleaned"))
    await process.begin_and_tell(tmp_path / "runs", code)
    process.close()
    began = time.monotonic()
    assert process.gone_within(PROMISE)
    assert time.monotonic() - began < SOON
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", "while True: pass"])
@pytest.mark.alone
async def test_so_is_an_init_script(start: Start, tmp_path: Path, code: str) -> None:
    process = start()
    process.told()
    await process.begin_and_tell(tmp_path / "runs", code, request="init")
    process.close()
    assert process.gone_within(SOON)


@pytest.mark.alone
async def test_so_are_many_blocking_calls_in_a_row(start: Start, tmp_path: Path) -> None:
    process = start()
    process.told()
    await process.begin_and_tell(tmp_path / "runs", *["import time; time.sleep(600)"] * 3)
    process.close()
    assert process.gone_within(SOON + 0.7)  # each has a moment of its own


CLEANING = {
    "finally": (
        "import time\ntry: time.sleep(600)\nfinally:\n    time.sleep({seconds})\n    done()"
    ),
    "except": (
        "import time\ntry: time.sleep(600)\n"
        "except KeyboardInterrupt:\n    time.sleep({seconds})\n    done()"
    ),
    "with": (
        "import contextlib, time\n@contextlib.contextmanager\ndef managed():\n"
        "    try: yield\n    finally:\n        time.sleep({seconds})\n        done()\n"
        "with managed(): time.sleep(600)"
    ),
    "busy": (
        "import time\ndef f():\n    while True: pass\n"
        "try: f()\nfinally:\n    time.sleep({seconds})\n    done()"
    ),
    "async finally": (
        "import asyncio\ntry: await asyncio.sleep(600)\n"
        "finally:\n    await asyncio.sleep({seconds})\n    done()"
    ),
    "async finally that blocks": (
        "import asyncio, time\ntry: await asyncio.sleep(600)\n"
        "finally:\n    time.sleep({seconds})\n    done()"
    ),
    "atexit": "import atexit, time\natexit.register(done)\natexit.register(time.sleep, {seconds})",
}


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
@pytest.mark.parametrize("seconds", [0.3, 2.0])
@pytest.mark.parametrize("code", CLEANING.values(), ids=CLEANING)
@pytest.mark.alone
async def test_clean_up_has_its_time(
    start: Start, tmp_path: Path, code: str, seconds: float, loop: str
) -> None:
    process = start(loop=loop)
    process.told()
    done = f"done = __import__('pathlib').Path({str(tmp_path / 'done')!r}).touch\n"
    await process.begin_and_tell(tmp_path / "runs", done + code.format(seconds=seconds))
    process.close()
    assert process.gone_within(SOON + seconds)
    assert (tmp_path / "done").exists()


async def test_what_goes_on_after_an_interruption_can_finish(start: Start, tmp_path: Path) -> None:
    process = start()
    process.told()
    code = f"""
import pathlib, time
try:
    time.sleep(600)
except KeyboardInterrupt:
    pass
time.sleep(0.5)
pathlib.Path({str(tmp_path / "done")!r}).touch()
"""
    await process.begin_and_tell(tmp_path / "runs", code)
    process.close()
    assert process.gone_within(PROMISE)
    assert (tmp_path / "done").exists()


class TestSigterm:
    @pytest.mark.parametrize("loop", ["auto", "asyncio"])
    @pytest.mark.parametrize(
        "code",
        [
            endless.KEEPS_THE_LOCK,
            endless.RELEASES_THE_LOCK,
            "import time; time.sleep(600)",
        ],
        ids=["c that keeps the lock", "c that releases it", "sleep"],
    )
    async def test_ends_it_whatever_runs(
        self, start: Start, tmp_path: Path, code: str, loop: str
    ) -> None:
        process = start(loop=loop)
        process.told()
        await process.begin_and_tell(tmp_path / "runs", code)
        process.process.send_signal(signal.SIGTERM)
        assert process.gone_within(PROMISE)

    async def test_is_user_codes_if_it_has_a_handler(self, start: Start) -> None:
        process = start()
        process.told()
        code = "import signal; snex.n = []; signal.signal(15, lambda *_: snex.n.append(1))"
        assert (await process.eval(code))[0] == "ok"
        process.process.send_signal(signal.SIGTERM)

        async def seen() -> bool:
            return bool((await process.eval("return snex.n"))[1])

        while not await seen():
            pass
        assert not process.gone_within(PROMISE)  # the watcher would have killed it by now

    async def test_of_a_worker_is_the_workers(self, start: Start) -> None:
        process = start()
        process.told()
        code = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    values = pool.map(abs, [-1, -2])
pool.join()
return values
"""
        assert await process.eval(code) == ("ok", [1, 2])
        assert await process.eval("return 1") == ("ok", 1)

    @pytest.mark.parametrize("loop", ["auto", "asyncio"])
    async def test_other_signals_reach_user_code(self, start: Start, loop: str) -> None:
        process = start(loop=loop)
        process.told()
        code = """
import asyncio, os, signal
loop = asyncio.get_running_loop()
seen = loop.create_future()
signal.signal(signal.SIGUSR1, lambda *_: seen.set_result("python"))
asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGUSR1)
one = await asyncio.wait_for(seen, 5)
seen = loop.create_future()
loop.add_signal_handler(signal.SIGUSR2, seen.set_result, "loop")
loop.call_later(0.01, os.kill, os.getpid(), signal.SIGUSR2)
return one, await asyncio.wait_for(seen, 5)
"""
        assert await process.eval(code, timeout=20) == ("ok", ("python", "loop"))


@pytest.mark.traced_processes
class TestThroughStandardInputAndOutput:
    """With ``beam`` in its configuration a child needs no socket of its own to reach its BEAM."""

    @pytest.fixture
    async def beam(self) -> AsyncIterator[Node]:
        """Stands for the BEAM."""
        name = f"beam_{secrets.token_hex(5)}@127.0.0.1"
        listen = ("127.0.0.1", 0)
        options: Any = {"epmd": "none", "listen": listen}
        async with Node(name, cookie="biscuit", **options) as node:
            yield node

    def join(self, process: Child, node: Node) -> socket.socket:
        """Join the child's standard input and output to a node, as the client does in its BEAM."""
        assert node.port is not None
        sock = socket.create_connection(("127.0.0.1", node.port))
        stdin, stdout = process.process.stdin, process.process.stdout
        assert stdin is not None
        assert stdout is not None

        def out() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(stdout.fileno(), 65536):
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_RDWR)

        def back() -> None:
            with contextlib.suppress(OSError, ValueError):
                while data := sock.recv(65536):
                    process.write(data)

        for function in out, back:
            threading.Thread(target=function, daemon=True).start()
        return sock

    async def test_it_serves_its_beam(self, start: Start, beam: Node) -> None:
        interpreter = Process(beam)
        process = start(cookie="biscuit", beam=beam.name, interpreter=interpreter.pid)
        sock = self.join(process, beam)
        told = await interpreter.receive(timeout=20)
        assert isinstance(told, tuple)
        ready, server = told
        assert ready == "snex_ready"
        assert (server.node, beam.nodes) == (process.name, [process.name])
        data = b"x" * 1_000_000
        request: Any = (Atom("eval"), "return data + data", {"data": data})
        assert await beam.call(server, request) == ("ok", 2 * data)
        # What it prints would be in the way.
        request = (Atom("eval"), "import sys; return (sys.stdin, sys.stdout)", {})
        assert await beam.call(server, request) == ("ok", (None, None))
        process.close()
        assert process.gone_within(PROMISE)
        assert process.process.returncode == 0
        sock.close()

    async def test_it_ends_with_its_connection(self, start: Start, beam: Node) -> None:
        interpreter = Process(beam)
        process = start(cookie="biscuit", beam=beam.name, interpreter=interpreter.pid)
        sock = self.join(process, beam)
        await interpreter.receive(timeout=20)
        process.write(b"\0\0\0\5\x83rubb")
        assert await asyncio.to_thread(process.process.wait, PROMISE) == 1
        sock.close()

    async def test_it_says_why_it_does_not_connect(self, start: Start, beam: Node) -> None:
        process = start(
            cookie="biscuit", beam=beam.name, interpreter=Process(beam).pid, stderr=subprocess.PIPE
        )
        process.write(b"\0\x0csnot_allowed")
        assert await asyncio.to_thread(process.process.wait, PROMISE) == 1
        assert process.process.stderr is not None
        assert b"snex: " in process.process.stderr.read()


class Pipes(NamedTuple):
    """A relay, and the other ends of what it is given and of its output."""

    relay: child.Relay
    given: forks.OwnedDescriptor
    output: forks.OwnedDescriptor

    def connect(self) -> socket.socket:
        return socket.create_connection(self.relay.address, timeout=20)

    def read(self) -> bytes:
        return os.read(self.output.fileno(), 65536)


class TestRelay:
    @pytest.fixture
    def pipes(self) -> Iterator[Pipes]:
        (given, given_end), (output_end, output) = os.pipe(), os.pipe()
        files = [forks.OwnedDescriptor(number) for number in (given, output, given_end, output_end)]
        relay = child.Relay(*files[:2])
        relay.start()
        yield Pipes(relay, *files[2:])
        for file in (*files, relay.leash):
            file.close()

    def test_bytes_pass_both_ways(self, pipes: Pipes) -> None:
        with pipes.connect() as sock:
            os.write(pipes.given.fileno(), b"to the node")
            assert sock.recv(100) == b"to the node"
            sock.sendall(b"from the node")
            assert pipes.read() == b"from the node"
            # More than a pipe takes at once.
            threading.Thread(target=sock.sendall, args=(bytes(1_000_000),)).start()
            received = 0
            while received < 1_000_000:
                received += len(pipes.read())
            with pytest.raises(ConnectionError):
                pipes.connect()

    def test_the_leash_ends_with_what_is_given(self, pipes: Pipes) -> None:
        leash = pipes.relay.leash
        with pipes.connect() as sock:
            assert select.select([leash], [], [], 0)[0] == []
            pipes.given.close()
            assert select.select([leash], [], [], 20)[0]
            assert os.read(leash.fileno(), 1) == b""
            sock.sendall(b"last words")
            assert pipes.read() == b"last words"

    def test_the_output_ends_with_the_connection(self, pipes: Pipes) -> None:
        pipes.connect().close()
        assert pipes.read() == b""
        os.write(pipes.given.fileno(), b"for nobody")
        assert select.select([pipes.relay.leash], [], [], 20)[0]

    def test_a_beam_that_has_gone_ends_the_connection(self, pipes: Pipes) -> None:
        with pipes.connect() as sock:
            pipes.output.close()
            sock.sendall(b"for nobody")
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""


async def test_a_crash_shows_where_it_was(epmd: RealEpmd) -> None:
    with subprocess.Popen(  # noqa: ASYNC220 - it starts and is left to itself
        [sys.executable, "-m", "snex_runtime", "child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "ERL_EPMD_PORT": str(epmd.port)},
    ) as process:
        name = f"child_{secrets.token_hex(5)}@127.0.0.1"
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(framed({Atom("name"): name, Atom("cookie"): "c"}))
        process.stdin.flush()
        assert process.stdout.readline().startswith(child.MARK)
        options: Any = {"cookie": "c", "listen": None, "epmd": "none", "epmd_port": epmd.port}
        async with Node(f"caller_{secrets.token_hex(5)}@127.0.0.1", **options) as node:
            code = "def crash():\n    import ctypes; ctypes.string_at(0)\ncrash()"
            await node.connect(name)
            node.send(("snex", name), (Atom("eval"), code, {}))
            assert process.wait(PROMISE) == -signal.SIGSEGV
        text = process.stderr.read().decode()
        assert "Segmentation fault" in text
        assert "in crash" in text


async def test_killing_its_runtime_ends_it(start: Start) -> None:
    process = start()
    server = process.told()[3]
    async with process.caller() as node:
        await node.connect(process.name)
        node.exit_signal(server, Atom("boom"))
        assert await node.call(server, Atom("ping")) == "pong"
        node.exit_signal(server, Atom("kill"))
        assert process.gone_within(PROMISE)
    assert process.process.returncode == 1


async def test_info_needs_no_descriptor(start: Start) -> None:
    process = start()
    process.told()
    async with process.caller() as node:
        await node.connect(process.name)
        code = """
import os, resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
snex.files = []
try:
    while True:
        snex.files.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    return str(error)
"""
        taken = await node.call(("snex", process.name), (Atom("eval"), code, {}))
        assert taken == ("ok", "[Errno 24] Too many open files: '/dev/null'")
        answer: Any = await node.call(("snex", process.name), Atom("info"))
        assert answer[0] == "ok"
        assert answer[1]["os_pid"] == process.process.pid


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_a_node_starts_without_standard_files(
    epmd: RealEpmd, tmp_path: Path, closed: str, loop: str
) -> None:
    (tmp_path / "cookie").write_text("c")
    (tmp_path / "cookie").chmod(0o400)
    script = """
import os
links = [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]
with open("links.new", "w") as file:
    file.write("\\n".join(links))
os.rename("links.new", "links")
os.kill(os.getpid(), 15)
"""
    (tmp_path / "init.py").write_text(script)
    name = f"py{secrets.token_hex(5)}@127.0.0.1"
    command = f"{sys.executable} -m snex_runtime start --name {name} --cookie-file cookie"
    done = subprocess.run(
        ["sh", "-c", f"exec {command} --init-script init.py --loop {loop} {closed}"],
        cwd=tmp_path,
        env={**os.environ, "ERL_EPMD_PORT": str(epmd.port)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    links = (tmp_path / "links").read_text().split("\n")
    for number, mark in enumerate(["<&-", " >&-", "2>&-"]):
        if mark in f" {closed}":
            assert links[number] == "/dev/null"


def test_a_child_without_standard_input_says_so(epmd: RealEpmd) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m snex_runtime child <&-"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert b"no configuration on standard input" in done.stderr


class TestExecution:
    """Where requests run, and how long."""

    @pytest.mark.traced_processes
    async def test_it_counts(self, start: Start) -> None:
        process = start(executor=Atom("thread"), threads=1)
        process.told()
        code = "import threading\nreturn threading.current_thread().name"
        assert await process.eval(code) == ("ok", "snex-thread-1")

    async def test_threads_do_not_hold_up_the_end(self, start: Start, tmp_path: Path) -> None:
        process = start(executor=Atom("thread"), threads=2)
        process.told()
        cleaned, began = tmp_path / "cleaned", tmp_path / "began"
        code = (
            f"import pathlib\ntry:\n    pathlib.Path({str(began)!r}).touch()\n"
            "    while True: pass\n"
            f"finally: pathlib.Path({str(cleaned)!r}).touch()"
        )
        await process.begin("import time\ntime.sleep(60)", code)
        await until(began.exists)
        process.close()
        assert process.gone_within(PROMISE)
        assert cleaned.exists()


@pytest.mark.traced_processes
class TestWorker:
    """A child of a front instead: it says on a pipe how its start went, and serves a line."""

    @pytest.fixture
    async def process(self) -> AsyncIterator[WorkerProcess]:
        process = WorkerProcess(f"worker_{secrets.token_hex(5)}@127.0.0.1")
        yield process
        process.kill()
        await process.ended()
        process.close()

    async def test_until_it_is_let_go(self, process: WorkerProcess) -> None:
        await process.start(configuration("x = 1", max_memory=2**31, kill_after=500), ())
        assert process.pid is not None
        assert process.pid.node == process.name
        process.stop()
        assert await asyncio.wait_for(process.exited, 2 * PROMISE) == 0

    async def test_until_its_line_ends(self, process: WorkerProcess) -> None:
        await process.start(configuration(), ())
        process.socket.close()
        assert await asyncio.wait_for(process.exited, 2 * PROMISE) == 1

    async def test_a_script_that_fails(self, process: WorkerProcess) -> None:
        with pytest.raises(ScriptFailedError, match="ZeroDivisionError"):
            await process.start(configuration("1 / 0"), ())

    async def test_limits_that_cannot_be_set(self, process: WorkerProcess) -> None:
        with pytest.raises(WorkerStartError, match="cannot join the control group"):
            await process.start(configuration(cgroup="/nowhere"), ())

    async def test_a_script_that_takes_all_its_memory(self, process: WorkerProcess) -> None:
        """Whether it is seen when that has run, or by the watcher before."""
        with pytest.raises(WorkerStartError, match=r"max_memory is|more memory than"):
            await process.start(configuration("kept = b'x' * 2**27", max_memory=2**27), ())

    async def test_a_name_that_is_none(self, process: WorkerProcess) -> None:
        process.name = "no node name"
        with pytest.raises(WorkerStartError, match="no node name"):
            await process.start(configuration(), ())


@pytest.mark.traced_processes
def test_limits_of_a_beam_s_child(start: Start) -> None:
    process = start(max_memory=1000)
    told = process.told()
    assert told[0] == "error"
    assert "max_memory is 1000 bytes, and Python with its init script takes" in str(told[1])
    assert process.process.wait(PROMISE) == 1


async def test_a_request_beyond_its_last_limit_ends_it(start: Start) -> None:
    process = start(kill_after=100)
    process.told()
    await process.begin()
    async with process.caller() as node:
        options = [(Atom("timeout"), 100)]
        node.send(("snex", process.name), (Atom("eval"), "sum(range(10**12))", {}, options))
        await until(lambda: process.process.poll() is not None)
    assert process.process.returncode == -watcher.OVERTIME
    assert process.gone_within(PROMISE)
