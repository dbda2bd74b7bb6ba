"""The processes of workers: started, told, awaited, ended. They are real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from snex_node.node import Node
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import serde, watcher, workers
from snex_runtime.forwarding import Frame, Line, Note, NoteKind, Request, Status, Verdict
from snex_runtime.workers import (
    ScriptFailedError,
    WorkerProcess,
    WorkerStartError,
    describe_exit,
    exit_term,
)
from tests.support.leaks import group
from tests.support.waiting import until
from tests.support.worker import COOKIE, configuration

NAME = "py-1@127.0.0.1"
ME = Pid("py@127.0.0.1", 100, 0, 5)

Start = Callable[..., Any]


class Started:
    """A worker that is ready, and the front's end of its line."""

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        self.notes: list[Note] = []
        self.closed = asyncio.Event()
        self.line = Line(process.socket, self._noted, self.closed.set)
        self.sequence = 0

    def _noted(self, frames: list[Frame]) -> None:
        self.notes += map(Note.read, frames)

    def ask(self, code: str) -> int:
        """Send an eval for the front itself: its number."""
        self.sequence += 1
        tag = Reference("py@127.0.0.1", 5, (self.sequence, 0, 0))
        call: object = (Atom("$gen_call"), (ME, tag), (Atom("eval"), code, {}))
        data = serde.encoder.encode(call)
        self.line.send(Request.head(self.sequence, True, b"py@127.0.0.1", len(data)) + data)
        return self.sequence

    async def answer(self, sequence: int) -> Any:
        """The answer to it."""
        answered = (NoteKind.ANSWERED, sequence)
        await until(lambda: any(note[:2] == answered for note in self.notes))
        (note,) = (note for note in self.notes if note[:2] == answered)
        return Decoder(binary_as="str").decode(note.answer)[0]

    async def eval(self, code: str) -> Any:
        """The value of code, which must succeed."""
        ok, value = await self.answer(self.ask(code))
        assert ok == "ok", value
        return value


@pytest.fixture
async def make() -> AsyncIterator[Callable[[], WorkerProcess]]:
    """Make processes that are not started yet; what is left of them at the end is ended."""
    made: list[WorkerProcess] = []

    def make() -> WorkerProcess:
        made.append(WorkerProcess(NAME))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        await process.ended()
        process.close()


@pytest.fixture
async def start(make: Callable[[], WorkerProcess]) -> AsyncIterator[Start]:
    """Start a worker, with a script and whatever else is in its configuration."""
    lines: list[Line] = []

    async def start(script: str | None = None, *arguments: str, **more: object) -> Started:
        process = make()
        await process.start(configuration(script, **more), arguments)
        started = Started(process)
        lines.append(started.line)
        return started

    yield start
    for line in lines:
        line.close()


class TestStart:
    async def test_it_is_ready(self, start: Start) -> None:
        worker: Started = await start()
        process = worker.process
        assert isinstance(process.pid, Pid)
        assert process.pid.node == NAME
        assert await worker.eval("import os\nreturn os.getpid()") == process.process
        assert process.ledger.started == 1
        assert process.ledger.status(1) == Status.WAITS
        assert not process.exited.done()

    async def test_it_has_run_the_script(self, start: Start) -> None:
        worker = await start("import asyncio\nawait asyncio.sleep(0)\nbase = 40")
        assert await worker.eval("return base + 2") == 42

    async def test_what_it_is_told(self, start: Start) -> None:
        worker = await start(
            None,
            *("--loop", "asyncio"),
            encoding_opts=[(Atom("binary_as"), Atom("bytes"))],
            log_level="error",
            rlimit_nofile=99,
        )
        code = (
            "import logging, resource, snex_node\n"
            "return [logging.getLogger().level, resource.getrlimit(resource.RLIMIT_NOFILE)]"
        )
        assert await worker.eval(code) == [40, (99, 99)]

    async def test_nobody_can_read_its_cookie(self, start: Start) -> None:
        worker = await start()
        folder = Path(f"/proc/{worker.process.process}")
        seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        assert COOKIE.encode() not in seen

    async def test_it_takes_nodes_that_know_the_cookie(self, start: Start) -> None:
        script = "import snex_runtime.interface as room\nnode = room.current_backend()"
        worker = await start(script)
        port = await worker.eval("import snex_runtime\nreturn node._node.port")
        caller = Node("caller@127.0.0.1", cookie=COOKIE, epmd="none", listen=None)
        async with caller:
            await caller.connect(NAME, address=("127.0.0.1", port))
            assert await caller.call(("snex", NAME), Atom("ping")) == "pong"

    async def test_it_has_nothing_else_of_this_process(self, start: Start) -> None:
        """Programs that it runs have nothing of the front either."""
        reader, writer = os.pipe()
        os.set_inheritable(reader, True)
        worker = await start()
        own = os.readlink(f"/proc/self/fd/{reader}")
        files = await worker.eval(
            "import os\nnames = []\nfor n in os.listdir('/proc/self/fd'):\n"
            "  try: names.append(os.readlink(f'/proc/self/fd/{n}'))\n"
            "  except OSError: pass\nreturn names"
        )
        assert own not in files
        line = next(each for each in files if each.startswith("socket:"))
        shown = await worker.eval(
            "import subprocess\nreturn subprocess.run(['ls', '-l', '/proc/self/fd'], "
            "capture_output=True, text=True, close_fds=False).stdout"
        )
        assert line not in shown
        assert "snex-ledger-" not in shown
        os.close(reader)
        os.close(writer)


class TestFailedStart:
    """Nothing is left of it."""

    async def fail(
        self,
        process: WorkerProcess,
        told: dict[str, Any],
        kind: type[WorkerStartError] = WorkerStartError,
    ) -> str:
        with pytest.raises(kind) as raised:
            await process.start(told, ())
        assert type(raised.value) is kind
        if process.process:
            assert process.exited.done()
            await until(lambda: not group(process.process))
        assert process.socket.fileno() == -1
        return str(raised.value)

    async def test_its_script_fails(self, make: Callable[[], WorkerProcess]) -> None:
        told = configuration("x = 1\n1 / 0")
        assert await self.fail(make(), told, ScriptFailedError) == (
            "Traceback (most recent call last):\n"
            '  File "init.py", line 2, in <module>\n'
            "ZeroDivisionError: division by zero"
        )

    async def test_with_much_to_say(self, make: Callable[[], WorkerProcess]) -> None:
        told = configuration("raise ValueError('x' * 60_000 + 'y' * 60_000 + 'end')")
        text = await self.fail(make(), told, ScriptFailedError)
        assert len(text) > 60_000

    async def test_its_script_takes_too_long(self, make: Callable[[], WorkerProcess]) -> None:
        told = configuration("while True: pass", script_timeout=300)
        assert await self.fail(make(), told, ScriptFailedError) == (
            "init_script_timeout: not done within 0.3 s"
        )

    async def test_it_cannot_be_a_node(self, make: Callable[[], WorkerProcess]) -> None:
        told = configuration(listen="192.0.2.1")
        text = await self.fail(make(), told)
        assert "192.0.2.1" in text

    async def test_its_limits_cannot_be_set(self, make: Callable[[], WorkerProcess]) -> None:
        text = await self.fail(make(), configuration(cgroup="/nowhere"))
        assert text.startswith("cannot join the control group /nowhere: No such file")

    async def test_it_may_have_less_memory_than_python_takes(
        self, make: Callable[[], WorkerProcess]
    ) -> None:
        text = await self.fail(make(), configuration(max_memory=1024 * 1024))
        assert text.startswith("max_memory is 1048576 bytes, and Python with its init script takes")

    @pytest.mark.parametrize(
        ("script", "how"),
        [
            ("import os; os._exit(7)", "with status 7"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "by sigsegv"),
            (
                "kept = []\nimport time\n"
                "while True: kept.append(bytes(range(256)) * 65536); time.sleep(0.01)",
                "by its watcher: it had more memory than --max-memory allows",
            ),
        ],
        ids=["status", "signal", "memory"],
    )
    async def test_it_ends_before_it_is_ready(
        self, make: Callable[[], WorkerProcess], script: str, how: str
    ) -> None:
        told = configuration(script, max_memory=150 * 1024 * 1024)
        assert await self.fail(make(), told) == f"it ended before it was ready ({how})"

    async def test_it_is_not_ready_in_time(
        self, make: Callable[[], WorkerProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers, "START_TIMEOUT", 1.0 - 20.0)
        told = configuration("import time\ntime.sleep(60)")
        assert await self.fail(make(), told) == "it was not ready within 1 s"

    async def test_it_hangs_up_and_lives_on(
        self, make: Callable[[], WorkerProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers, "LAST", 0.3)
        told = configuration("import os, time\nos.closerange(3, 100)\nwhile True: time.sleep(60)")
        assert "tells nothing" in await self.fail(make(), told)

    @pytest.mark.parametrize("term", [Atom("ready"), (Atom("ready"), "name", "no pid"), [1, 2]])
    async def test_what_it_tells_makes_no_sense(
        self, make: Callable[[], WorkerProcess], term: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = Encoder().encode(term)
        said = len(data).to_bytes(4, "big") + data
        script = (
            "import gc, os, time\nfrom snex_runtime.configuration import ForWorker\n"
            "worker = next(o for o in gc.get_objects() if isinstance(o, ForWorker))\n"
            f"os.write(worker._report.fileno(), {said!r})\ntime.sleep(60)"
        )
        text = await self.fail(make(), configuration(script))
        assert text.startswith("it told what nobody understands: ")

    async def test_what_it_tells_is_no_term(
        self, make: Callable[[], WorkerProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers, "LAST", 0.3)
        script = (
            "import gc, os, time\nfrom snex_runtime.configuration import ForWorker\n"
            "worker = next(o for o in gc.get_objects() if isinstance(o, ForWorker))\n"
            "os.write(worker._report.fileno(), b'\\0\\0\\0\\2??')\ntime.sleep(60)"
        )
        assert "tells nothing" in await self.fail(make(), configuration(script))

    async def test_there_is_no_python(
        self, make: Callable[[], WorkerProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        process = make()
        text = await self.fail(process, configuration())
        assert text.startswith("cannot start /nowhere/python: ")
        await process.ended()

    async def test_it_is_cancelled(self, make: Callable[[], WorkerProcess]) -> None:
        process = make()
        told = configuration("import time\ntime.sleep(60)")
        starting = asyncio.ensure_future(process.start(told, ()))
        await until(lambda: process.process)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert process.exited.result() == -signal.SIGKILL
        await until(lambda: not group(process.process))

    async def test_it_is_cancelled_when_it_has_failed(
        self, make: Callable[[], WorkerProcess]
    ) -> None:
        """Its end is waited for all the same."""
        process = make()
        starting = asyncio.ensure_future(process.start(configuration("1 / 0"), ()))
        kill = process.kill

        def cancel() -> None:
            asyncio.get_running_loop().call_soon(starting.cancel)
            kill()

        process.kill = cancel  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await starting
        process.kill = kill  # type: ignore[method-assign]
        assert process.exited.done()
        assert process.socket.fileno() == -1

    async def test_it_leaves_no_file(self, make: Callable[[], WorkerProcess]) -> None:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(2):
            await self.fail(make(), configuration(cgroup="/nowhere"))
        assert set(os.listdir("/proc/self/fd")) <= before


class TestEnd:
    async def test_it_is_told_to_end(self, start: Start) -> None:
        worker = await start("import atexit, os\natexit.register(os.write, 2, b'')")
        process = worker.process
        process.stop()
        process.stop()
        await process.ended()
        assert process.exited.result() == 0
        await until(lambda: not group(process.process))
        await asyncio.wait_for(worker.closed.wait(), 10)

    async def test_it_is_killed_with_what_it_started(self, start: Start) -> None:
        worker = await start()
        process = worker.process
        code = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nreturn child.pid"
        child = await worker.eval(code)
        assert child in group(process.process)
        process.kill()
        process.kill()
        assert await asyncio.wait_for(process.exited, 10) == -signal.SIGKILL
        process.kill()
        await until(lambda: not group(process.process))

    async def test_who_kills_it_does_not_look_whether_it_has_ended(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That would take its status away from whoever waits for it."""
        process = (await start()).process

        def poll(popen: object) -> None:
            raise AssertionError("this waits for a process that may have ended")

        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "poll", poll)
            process.kill()
            process.kill()
        assert await asyncio.wait_for(process.exited, 10) == -signal.SIGKILL

    async def test_it_does_not_end_when_it_is_told_to(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers, "LAST", 0.3)
        worker = await start()
        worker.ask("import time\nwhile True:\n  try: time.sleep(60)\n  except BaseException: pass")
        await until(lambda: worker.process.ledger.started)
        worker.process.stop()
        await worker.process.ended()
        assert worker.process.exited.result() == -signal.SIGKILL

    async def test_it_ends_by_itself(self, start: Start) -> None:
        """What it had done, and why it ended, can be read then."""
        worker = await start()
        await worker.eval("return 1")
        worker.ask("import os\nos._exit(3)")
        assert await asyncio.wait_for(worker.process.exited, 10) == 3
        assert worker.process.ledger.started == 2
        assert worker.process.ledger.status(2) == Status.UNKNOWN
        assert worker.process.ledger.verdict == (Verdict.NONE, 0)

    async def test_its_watcher_says_why(self, start: Start) -> None:
        worker = await start(max_memory=150 * 1024 * 1024)
        worker.ask("big = [bytes(range(256)) * 65536 for _ in range(32)]\nwhile True: pass")
        assert await asyncio.wait_for(worker.process.exited, 20) == -watcher.MEMORY
        assert worker.process.ledger.verdict == (Verdict.MEMORY, 0)

    async def test_a_request_is_stopped(self, start: Start) -> None:
        worker = await start()
        sequence = worker.ask("import asyncio\nawait asyncio.sleep(60)")
        await until(lambda: worker.process.ledger.status(sequence) == Status.WAITS)
        worker.process.stop_request(sequence)
        tag, error = await worker.answer(sequence)
        assert (tag, error["code"]) == ("error", "cancelled")
        worker.process.kill()
        await worker.process.exited
        worker.process.stop_request(sequence)

    async def test_one_that_was_never_started_has_ended(
        self, make: Callable[[], WorkerProcess]
    ) -> None:
        process = make()
        process.stop()
        process.kill()
        process.stop_request(1)
        await process.ended()


class TestStopped:
    async def test_by_a_signal(self, start: Start) -> None:
        process = (await start()).process
        assert not process.is_stopped()
        os.kill(process.process, signal.SIGSTOP)
        await until(process.is_stopped)
        os.kill(process.process, signal.SIGCONT)
        await until(lambda: not process.is_stopped())
        process.kill()
        await process.exited
        assert not process.is_stopped()

    async def test_it_can_be_killed_all_the_same(self, start: Start) -> None:
        process = (await start()).process
        os.kill(process.process, signal.SIGSTOP)
        await until(process.is_stopped)
        process.kill()
        assert await asyncio.wait_for(process.exited, 10) == -signal.SIGKILL


class TestStatus:
    @pytest.mark.parametrize(
        ("status", "term", "words"),
        [
            (0, ("status", 0), "with status 0"),
            (3, ("status", 3), "with status 3"),
            (-signal.SIGSEGV, ("signal", "sigsegv"), "by sigsegv"),
            (-signal.SIGKILL, ("signal", "sigkill"), "by sigkill"),
            (-100, ("signal", 100), "by 100"),
        ],
    )
    def test_as_a_term_and_in_words(self, status: int, term: object, words: str) -> None:
        assert exit_term(status) == term
        assert describe_exit(status) == words

    def test_of_what_a_watcher_ended(self) -> None:
        assert describe_exit(-watcher.OVERTIME) == (
            "by its watcher: a request went on beyond timeout: and kill_after:"
        )
        assert describe_exit(-watcher.MEMORY) == (
            "by its watcher: it had more memory than --max-memory allows"
        )

    def test_on_a_system_without_signals_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watcher, "OVERTIME", signal.SIGKILL)
        monkeypatch.setattr(watcher, "MEMORY", signal.SIGKILL)
        assert describe_exit(-signal.SIGKILL) == "by sigkill"
