"""Keeps workers: they are processes, and what ends them is real."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from snex_node import Node
from snex_runtime import crew as crew_room
from snex_runtime import front as front_room
from snex_runtime import serde
from snex_runtime.crew import Crew
from snex_runtime.front import Front
from snex_runtime.workers import ScriptFailedError, WorkerStartError
from tests.support.asking import A, coded, term_of
from tests.support.leaks import group
from tests.support.waiting import until
from tests.support.worker import COOKIE, configuration

Start = Callable[..., Any]


class Running:
    """A crew, its front, and a node that calls."""

    def __init__(self, crew: Crew, front: Front, caller: Node) -> None:
        self.crew = crew
        self.front = front
        self.caller = caller
        self.name = str(front.owner.name)
        self.seen: set[int] = set()

    async def call(self, head: str, *rest: object) -> Any:
        """What a request is answered, with codes in the place of errors."""
        to = ("snex", self.name)
        return coded(await self.caller.call(to, term_of(head, *rest), timeout=20.0))

    async def eval(self, code: str) -> Any:
        """The value of code, which must succeed."""
        ok, value = await self.call("eval", code, {})
        assert ok == "ok", value
        return value

    async def info(self) -> dict[str, Any]:
        ok, told = await self.call("info")
        assert ok == "ok"
        assert isinstance(told, dict)
        return {str(name): value for name, value in told.items()}

    @property
    def processes(self) -> dict[str, int]:
        """Their numbers by what is behind the front's own name, of those that take requests."""
        host = self.name.partition("@")[2]
        alive = self.name.partition("@")[0]
        found = {lane.process.name: lane.process.process for lane in self.front.lanes}
        self.seen |= set(found.values())
        for name in found:
            assert name.startswith(f"{alive}-")
            assert name.endswith(f"@{host}")
        return {name[len(alive) : name.index("@")]: number for name, number in found.items()}

    async def has(self, *names: str) -> dict[str, int]:
        """Wait until it has workers of these names, and no others."""
        await until(lambda: sorted(self.processes) == sorted(names))
        return self.processes


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a crew with a script; at the end none of its processes is left."""
    async with AsyncExitStack() as stack:

        async def start(
            size: int = 2,
            script: str | None = None,
            *,
            told: dict[str, object] | None = None,
            max_requests: int | None = None,
            begin: bool = True,
            **options: Any,
        ) -> Running:
            conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
            name, other = (f"{kind}{secrets.token_hex(5)}@127.0.0.1" for kind in ("py", "peer"))
            node = Node(name, cookie=COOKIE, epmd="none", **conversion)
            caller = Node(other, cookie=COOKIE, epmd="none", listen=None, **conversion)
            await stack.enter_async_context(node)
            await stack.enter_async_context(caller)
            front = Front(node, max_requests=max_requests)
            crew = Crew(front, size, configuration(script, **(told or {})), **options)
            running = Running(crew, front, caller)
            stack.push_async_callback(end, running)
            await caller.connect(name, address=node.address)
            if begin:
                await crew.start()
            return running

        yield start


async def end(running: Running) -> None:
    seen = set(running.processes.values()) | running.seen
    await running.crew.stop()
    assert len(running.crew) == 0
    assert running.front.lanes == []
    await until(lambda: not any(group(process) for process in seen))


class TestStart:
    async def test_as_many_as_there_are_to_be(self, start: Start) -> None:
        running = await start(3)
        assert len(running.crew) == 3
        processes = await running.has("-1", "-2", "-3")
        assert len(set(processes.values())) == 3
        assert await running.eval("import os\nreturn os.getpid()") in processes.values()
        assert running.crew.restarts == 0

    async def test_they_are_told_what_they_need(self, start: Start) -> None:
        running = await start(1, "base = 40", arguments=("--loop", "asyncio"))
        code = "import sys\nreturn base, sys.argv[1:]"
        assert await running.eval(code) == (40, ["child", "--loop", "asyncio"])

    async def test_the_script_fails(self, start: Start) -> None:
        running = await start(2, "raise ValueError('no')", begin=False)
        with pytest.raises(ScriptFailedError, match="ValueError: no"):
            await running.crew.start()
        assert len(running.crew) == 0
        assert running.front.lanes == []

    async def test_one_of_them_fails(self, start: Start, tmp_path: Path) -> None:
        """Then none is left."""
        file = tmp_path / "first"
        script = (
            "import os, time\n"
            f"try: os.close(os.open({str(file)!r}, os.O_CREAT | os.O_EXCL))\n"
            "except FileExistsError:\n"
            f"  while not os.path.exists({str(file)!r} + '.ready'): time.sleep(0.01)\n"
            "  raise"
        )
        running = await start(2, script, begin=False)
        starting = asyncio.ensure_future(running.crew.start())
        await until(lambda: running.front.lanes)
        (process,) = running.processes.values()
        (tmp_path / "first.ready").touch()
        with pytest.raises(ScriptFailedError, match="FileExistsError"):
            await starting
        assert len(running.crew) == 0
        await until(lambda: not group(process))

    async def test_it_cannot_be_started(self, start: Start) -> None:
        running = await start(1, told={"cgroup": "/nowhere"}, begin=False)
        with pytest.raises(WorkerStartError, match="cannot join the control group /nowhere"):
            await running.crew.start()

    async def test_it_is_cancelled(self, start: Start) -> None:
        running = await start(2, "import time\ntime.sleep(60)", begin=False)
        starting = asyncio.ensure_future(running.crew.start())
        await until(lambda: len(running.crew) == 2)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert len(running.crew) == 0


class TestRestart:
    async def test_another_one_takes_its_place_and_name(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        running = await start(2, "base = 40")
        before = await running.has("-1", "-2")
        os.kill(before["-1"], signal.SIGKILL)
        await until(lambda: running.crew.restarts == 1 and len(running.front.lanes) == 2)
        after = await running.has("-1", "-2")
        assert after["-2"] == before["-2"]
        assert after["-1"] != before["-1"]
        alive, _, host = running.name.partition("@")
        assert f"the worker {alive}-1@{host} has ended by sigkill" in caplog.text
        assert await running.eval("return base") == 40

    async def test_a_request_may_end_it(self, start: Start) -> None:
        running = await start(1)
        assert await running.call("eval", "import os\nos._exit(3)", {}) == (
            "error",
            "worker_exited",
        )
        assert await running.eval("return 1") == 1
        assert running.crew.restarts == 1

    async def test_one_that_ends_as_programs_do_too(self, start: Start) -> None:
        running = await start(1)
        before = running.processes["-1"]
        os.kill(before, signal.SIGTERM)
        await until(lambda: running.crew.restarts == 1)
        assert await running.eval("import os\nreturn os.getpid()") != before

    async def test_init_requests_are_repeated_there(self, start: Start) -> None:
        running = await start(2)
        assert await running.call("init", "base = 40", {}) == ("ok", None)
        before = await running.has("-1", "-2")
        for process in before.values():
            os.kill(process, signal.SIGKILL)
        await until(lambda: running.crew.restarts == 2 and len(running.front.lanes) == 2)
        assert await running.eval("return base") == 40

    async def test_too_many_have_ended(self, start: Start) -> None:
        running = await start(2, restarts=(1, 60.0))
        for _ in range(2):
            assert not running.crew.failed.done()
            await until(lambda: len(running.front.lanes) == 2)
            os.kill(running.processes["-1"], signal.SIGKILL)
            await until(lambda: "-1" not in running.processes)
        assert await asyncio.wait_for(running.crew.failed, 10) == (
            "more than 1 workers have ended within 60 s: see what the log says of each "
            "(--max-restarts N/SECONDS allows more)"
        )
        assert running.crew.restarts == 1
        assert list(running.processes) == ["-2"]
        # The other one is there until the crew is stopped, and more cannot be said.
        os.kill(running.processes["-2"], signal.SIGKILL)
        await until(lambda: not running.processes)

    async def test_as_many_again_when_time_has_passed(self, start: Start) -> None:
        running = await start(1, restarts=(1, 0.01))
        for number in (1, 2, 3):
            await until(lambda: running.front.lanes)
            os.kill(running.processes["-1"], signal.SIGKILL)
            await until(lambda: running.crew.restarts == number)  # noqa: B023
        assert await running.eval("return 1") == 1
        assert not running.crew.failed.done()

    async def test_its_script_fails_then(
        self,
        start: Start,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is tried again, as often as may be."""
        monkeypatch.setattr(crew_room, "_AGAIN", 0.01)
        file = tmp_path / "broken"
        script = f"import os\nif os.path.exists({str(file)!r}): raise ValueError('broken')"
        running = await start(1, script, restarts=(3, 60.0))
        file.touch()
        os.kill(running.processes["-1"], signal.SIGKILL)
        await until(lambda: "ValueError: broken" in caplog.text, timeout=20)
        file.unlink()
        assert await running.eval("return 1") == 1
        file.touch()
        os.kill(running.processes["-1"], signal.SIGKILL)
        assert "more than 3 workers" in await asyncio.wait_for(running.crew.failed, 30)
        assert "the init script failed in a worker: Traceback" in caplog.text
        assert running.crew.restarts == 3
        assert len(running.crew) == 0

    async def test_it_does_not_start_then(
        self, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cgroup.procs").touch()
        running = await start(1, told={"cgroup": str(tmp_path)}, restarts=(1, 60.0))
        (tmp_path / "cgroup.procs").unlink()
        (tmp_path / "cgroup.procs").mkdir()
        os.kill(running.processes["-1"], signal.SIGKILL)
        await asyncio.wait_for(running.crew.failed, 30)
        assert "a worker did not start: cannot join the control group" in caplog.text

    async def test_nobody_is_started_while_it_stops(self, start: Start) -> None:
        running = await start(2)
        processes = await running.has("-1", "-2")
        os.kill(processes["-1"], signal.SIGKILL)
        await running.crew.stop()
        assert len(running.crew) == 0
        assert running.front.lanes == []

    async def test_nor_is_anybody_left_that_was_being_started(
        self, start: Start, tmp_path: Path
    ) -> None:
        file = tmp_path / "slow"
        script = (
            f"import os, time\nif os.path.exists({str(file)!r}):\n"
            f"  open({str(file)!r} + '.pid', 'w').write(str(os.getpid()))\n  time.sleep(60)"
        )
        running = await start(1, script)
        file.touch()
        os.kill(running.processes["-1"], signal.SIGKILL)
        told = tmp_path / "slow.pid"
        await until(lambda: told.exists() and told.read_text())
        await running.crew.stop()
        assert len(running.crew) == 0
        await until(lambda: not group(int(told.read_text())))


class TestReplacing:
    """After so many requests another one takes its place."""

    async def test_one_that_has_had_its_requests(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(
            front_room, "REVOKE_AFTER", 60.0
        )  # none is taken back on a busy machine
        caplog.set_level(logging.INFO, "snex_runtime.crew")
        running = await start(1, max_requests=3)
        first = running.processes["-1"]
        numbers = [await running.eval("import os\nreturn os.getpid()") for _ in range(6)]
        assert numbers[:3] == [first] * 3
        assert first not in numbers[3:]
        await until(lambda: first not in running.processes.values())
        assert not group(first)
        assert "has had its 3 requests" in caplog.text
        assert running.crew.restarts == 0
        assert not any(record.levelno >= logging.WARNING for record in caplog.records)

    async def test_it_goes_when_its_environments_have_gone(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crew_room, "INFO_TIMEOUT", 0.1)
        monkeypatch.setattr(front_room, "REVOKE_AFTER", 60.0)  # it is to be made in this one
        running = await start(1, max_requests=1)
        old = running.processes["-1"]
        ok, env = await running.call("make_env", {}, {A("handle"): A("none")})
        assert ok == "ok"
        processes = await running.has("-1", "-2")
        # It would have gone in this time.
        await until(lambda: running.front.lanes[0].requests >= 3)
        assert running.processes == processes
        states = {worker[A("state")] for worker in (await running.info())["workers"]}
        assert "retiring" in states
        assert await running.call("destroy_env", serde.to_typed(env)) == "ok"
        await until(lambda: old not in running.processes.values())

    async def test_its_name_is_free_for_the_next_one(self, start: Start) -> None:
        running = await start(1, max_requests=1)
        for name in ("-2", "-1", "-2"):
            await running.eval("return 1")
            await running.has(name)

    async def test_the_other_one_does_not_start(
        self, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "broken"
        script = f"import os\nif os.path.exists({str(file)!r}): raise ValueError('broken')"
        running = await start(1, script, max_requests=1, restarts=(1, 60.0))
        file.touch()
        await running.eval("return 1")
        assert "more than 1" in await asyncio.wait_for(running.crew.failed, 30)
        assert caplog.text.count("the init script failed in a worker") == 2

    async def test_it_ends_by_itself_meanwhile(self, start: Start) -> None:
        """There is another one already."""
        running = await start(1, max_requests=1)
        old = running.processes["-1"]
        await running.call("make_env", {}, {A("handle"): A("none")})
        await running.has("-1", "-2")
        os.kill(old, signal.SIGKILL)
        await running.has("-2")
        assert running.crew.restarts == 0
        assert len(running.crew) == 1


class TestInfo:
    async def test_of_all_together(self, start: Start) -> None:
        running = await start(2)
        await running.eval("return 1")
        ok, _ = await running.call("make_env", {}, {A("handle"): A("none")})
        assert ok == "ok"
        told = await running.info()
        assert (told["node"], told["os_pid"]) == (running.name, os.getpid())
        assert (told["environments"], told["requests_running"]) == (1, 0)
        assert (told["requests_queued"], told["worker_restarts"]) == (0, 0)
        workers = [{str(n): v for n, v in worker.items()} for worker in told["workers"]]
        processes = running.processes
        alive, _, host = running.name.partition("@")
        assert [worker["node"] for worker in workers] == [f"{alive}-1@{host}", f"{alive}-2@{host}"]
        assert [worker["os_pid"] for worker in workers] == [processes["-1"], processes["-2"]]
        assert {worker["state"] for worker in workers} == {"free"}
        assert sorted(worker["environments"] for worker in workers) == [0, 1]
        assert sum(worker["requests"] for worker in workers) >= 2
        assert {worker["requests_running"] for worker in workers} == {0}
        assert {worker["busy_ms"] for worker in workers} == {0}

    async def test_of_one_that_is_busy_the_last_is_told(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crew_room, "INFO_TIMEOUT", 0.2)
        running = await start(1)
        ok, _ = await running.call("make_env", {}, {A("handle"): A("none")})
        assert ok == "ok"
        assert (await running.info())["environments"] == 1
        call = asyncio.ensure_future(running.call("eval", "import time\ntime.sleep(60)", {}))
        await until(lambda: running.front.running == 1)
        (last,) = running.crew._told.values()
        last["bytes_in"] += 10**12
        for _ in range(2):
            told = await running.info()
            assert 10**12 < told["bytes_in"] < 2 * 10**12
            assert (told["environments"], told["requests_running"]) == (1, 1)
            (worker,) = told["workers"]
            assert worker[A("state")] == "busy"
        assert worker[A("busy_ms")] > 0
        os.kill(running.processes["-1"], signal.SIGKILL)
        assert await call == ("error", "worker_exited")

    async def test_what_runs_and_how_long_requests_took(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running = await start(2)
        await asyncio.gather(*(running.eval("return 1") for _ in range(10)))
        call = asyncio.ensure_future(
            running.call("eval", "import asyncio\nawait asyncio.sleep(60)", {})
        )
        await until(lambda: any(lane.waiting for lane in running.front.lanes))
        told = await running.info()
        (work,) = told["running"]
        alive, _, host = running.name.partition("@")
        assert work[A("worker")] in (f"{alive}-1@{host}", f"{alive}-2@{host}")
        assert work[A("where")] == "<Snex.Code>:2, in <module>"
        assert work[A("caller")] is not None
        assert told["latency"][A("count")] >= 10
        assert told["memory_bytes"] > 3 * 2**20
        assert [peer[A("node")] for peer in told["peers"]].count(running.caller.name) == 1
        worker = work[A("worker")]
        os.kill(running.processes[worker[len(alive) : worker.index("@")]], signal.SIGKILL)
        assert await call == ("error", "worker_exited")
        count = told["latency"][A("count")]
        assert (await running.info())["latency"][A("count")] >= count

    async def test_what_one_runs_that_is_busy(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crew_room, "INFO_TIMEOUT", 0.2)
        running = await start(1)
        call = asyncio.ensure_future(running.call("eval", "import time\ntime.sleep(60)", {}))
        await until(lambda: running.front.running == 1)
        (work,) = (await running.info())["running"]
        assert (work[A("kind")], work[A("where")]) == ("eval", None)
        assert await running.call("info", A("environments")) == ("ok", [])
        os.kill(running.processes["-1"], signal.SIGKILL)
        assert await call == ("error", "worker_exited")

    async def test_environments(self, start: Start) -> None:
        running = await start(2)
        for _ in range(2):
            ok, _ = await running.call("make_env", {"x": "y" * 10_000}, {A("handle"): A("none")})
            assert ok == "ok"
        ok, told = await running.call("info", A("environments"))
        assert ok == "ok"
        assert [each[A("variables")] for each in told] == [1, 1]
        assert all(each[A("bytes")] > 10_000 for each in told)
        assert await running.call("info", A("nope")) == ("error", "bad_request")

    async def test_one_that_ends_meanwhile_is_not_asked(self, start: Start) -> None:
        running = await start(1, restarts=(0, 60.0))
        (lane,) = running.front.lanes
        os.kill(running.processes["-1"], signal.SIGKILL)
        await until(lambda: not running.front.lanes)
        await running.crew._ask(lane)
        assert lane.requests == 0

    async def test_there_is_none(self, start: Start) -> None:
        running = await start(1, begin=False)
        assert (await running.info())["workers"] == []


class TestStop:
    async def test_they_end_as_programs_do(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / "ended"
        script = f"import atexit, pathlib\natexit.register(pathlib.Path({str(file)!r}).touch)"
        running = await start(2, script)
        await running.crew.stop()
        assert file.exists()
        assert len(running.crew) == 0
        await running.crew.stop()

    async def test_though_something_runs(self, start: Start) -> None:
        running = await start(1)
        calls = [
            asyncio.ensure_future(running.call("eval", code, {}))
            for code in ("import asyncio\nawait asyncio.sleep(60)", "while True: pass")
        ]
        await until(lambda: running.front.running == 2)
        await running.crew.stop()
        assert [answer[0] for answer in await asyncio.gather(*calls)] == ["error"] * 2
