"""The support for tests is held to what it promises, since every interop test rests on it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snex_node.wire.terms import Atom, Pid
from tests.support import leaks
from tests.support.beam import Beam, BeamDownError, BeamError
from tests.support.epmd import RealEpmd
from tests.support.ports import free_port
from tests.support.proxy import Proxy

Starter = Callable[..., Beam]


@pytest.mark.interop
class TestBeam:
    async def test_evaluates_with_bindings(self, beam: Beam) -> None:
        value = await beam.eval("{x + 1, text, list}", x=41, text="hé", list=[1.5, None, Atom("a")])
        assert value == (42, "hé".encode(), [1.5, None, Atom("a")])

    async def test_is_distributed_under_its_own_name(self, beam: Beam) -> None:
        assert await beam.eval("node()") == beam.name
        assert await beam.eval("Atom.to_string(Node.get_cookie())") == beam.cookie.encode()
        assert await beam.eval("String.to_integer(System.pid())") == beam.os_pid
        assert isinstance(await beam.eval("self()"), Pid)

    def test_its_cookie_is_on_no_command_line(self, beam: Beam) -> None:
        assert beam.cookie.encode() not in Path(f"/proc/{beam.os_pid}/cmdline").read_bytes()

    async def test_requests_run_beside_each_other(self, beam: Beam) -> None:
        waiting = beam.submit("Process.register(self(), :waiting); receive do x -> x end")
        tell = """
        Enum.find_value(Stream.repeatedly(fn -> Process.whereis(:waiting) end), & &1)
        |> send(:told)
        """
        await beam.eval(tell)
        assert await asyncio.wrap_future(waiting) == Atom("told")

    async def test_what_is_linked_to_an_evaluation_survives_it(self, beam: Beam) -> None:
        pid = await beam.eval("{:ok, pid} = Agent.start_link(fn -> 7 end); pid")
        assert await beam.eval("Agent.get(pid, & &1)", pid=pid) == 7
        await beam.eval("Agent.stop(pid)", pid=pid)

    @pytest.mark.parametrize(
        ("source", "kind", "text"),
        [
            ('raise "oops"', "error", "(RuntimeError) oops"),
            ("throw :up", "throw", "(throw) :up"),
            ("exit(:stop)", "exit", "(exit) :stop"),
            ("Process.exit(self(), :kill)", "exit", "(exit) :killed"),
            ("1 +", "error", "TokenMissingError"),
        ],
    )
    async def test_failures_are_errors(self, beam: Beam, source: str, kind: str, text: str) -> None:
        with pytest.raises(BeamError) as caught:
            await beam.eval(source)
        assert caught.value.kind == kind
        assert text in str(caught.value)
        assert await beam.eval("1") == 1

    async def test_a_time_limit(self, beam: Beam) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await beam.eval("Process.sleep(:infinity)", timeout=0.05)
        assert await beam.eval("1") == 1

    def test_without_an_event_loop(self, beam: Beam) -> None:
        assert beam.eval_sync("40 + x", x=2) == 42

    async def test_options(self, start_beam: Starter) -> None:
        beam = start_beam(
            name="short",
            host="localhost",
            short=True,
            hidden=True,
            net_ticktime=4,
            cookie="biscuit",
            flags=["-kernel dist_auto_connect never"],
            env={"GREETING": "hello"},
        )
        assert beam.name == "short@localhost"
        facts = """
        {:ok, connect} = Application.fetch_env(:kernel, :dist_auto_connect)
        {:net_kernel.get_net_ticktime(), Node.get_cookie(), connect,
         System.get_env("GREETING"), :init.get_argument(:hidden)}
        """
        assert await beam.eval(facts) == (4, "biscuit", "never", b"hello", ("ok", [[]]))

    async def test_two_beams_connect(self, beam: Beam, start_beam: Starter) -> None:
        other = start_beam(cookie=beam.cookie)
        assert await beam.eval("Node.connect(n)", n=Atom(other.name)) is True
        assert await other.eval("Node.list()") == [beam.name]

    async def test_an_ordinary_run_logs_nothing(self, epmd: RealEpmd) -> None:
        async with Beam.start(epmd_port=epmd.port) as beam:
            await beam.eval("1")
        assert beam.log == ""
        assert not beam.alive

    async def test_the_log_has_what_it_writes(self, start_beam: Starter) -> None:
        beam = start_beam()
        await beam.eval('require Logger; Logger.error("broken"); IO.puts("printed")')
        await beam.wait_log("broken")
        await beam.wait_log("printed")
        with pytest.raises(TimeoutError, match="printed"):
            await beam.wait_log("never written", timeout=0)

    async def test_killed(self, start_beam: Starter) -> None:
        beam = start_beam()
        waiting = beam.submit("Process.sleep(:infinity)")
        await beam.kill()
        assert not beam.alive
        with pytest.raises(BeamDownError):
            await asyncio.wrap_future(waiting)
        with pytest.raises(BeamDownError):
            beam.submit("1")

    async def test_suspended_and_resumed(self, start_beam: Starter) -> None:
        beam = start_beam()
        beam.suspend()
        waiting = beam.submit("1")
        assert _state(beam.os_pid) == "T"
        assert not waiting.done()
        beam.resume()
        assert await asyncio.wrap_future(waiting) == 1

    async def test_a_suspended_one_can_be_stopped(self, start_beam: Starter) -> None:
        beam = start_beam()
        beam.suspend()
        await beam.stop()
        assert not beam.alive

    async def test_a_start_that_fails_shows_why(self, beam: Beam, epmd: RealEpmd) -> None:
        taken = beam.name.partition("@")[0]
        second = Beam.start(epmd_port=epmd.port, name=taken)
        with pytest.raises(BeamDownError, match=f"name {beam.name} seems to be in use"):
            await asyncio.to_thread(second.wait_ready)

    def test_it_ends_with_the_test_run(self, epmd: RealEpmd) -> None:
        source = f"""
import os, signal
from tests.support.beam import Beam
beam = Beam.start(epmd_port={epmd.port})
beam.wait_ready()
print(beam.os_pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        run = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, check=False
        )
        assert run.returncode == -signal.SIGKILL, run.stderr
        _wait_until_gone(int(run.stdout))


def _state(pid: int) -> str:
    """The letter of `ps` for what a process does, once it is stopped, or after two seconds."""
    deadline = time.monotonic() + 2
    while True:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T" or time.monotonic() > deadline:
            return state


def _wait_until_it_is(pid: int, command: str) -> None:
    """Return when a process that was forked runs its program."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").read_bytes() != command.replace(" ", "\0").encode() + b"\0":
        assert time.monotonic() < deadline, f"process {pid} is not {command}"
        time.sleep(0.001)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


@pytest.mark.interop
class TestRealEpmd:
    def test_each_has_its_own_port_and_ends(self) -> None:
        with RealEpmd() as one, RealEpmd() as two:
            assert one.port != two.port
            pids = [one.os_pid, two.os_pid]
            socket.create_connection(("127.0.0.1", one.port), timeout=5).close()
        for pid in pids:
            assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", one.port), timeout=5)

    def test_restarts_on_its_port(self) -> None:
        with RealEpmd() as epmd:
            port, pid = epmd.port, epmd.os_pid
            epmd.restart()
            assert epmd.port == port
            assert epmd.os_pid != pid
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


class Echo:
    """A server that sends back what it gets, and remembers the pieces it got."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Echo:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.pieces.append(data)
                writer.write(data)
            self.ended.put_nowait("closed")
        except ConnectionResetError:
            self.ended.put_nowait("reset")
        finally:
            writer.close()


class TestProxy:
    async def test_hands_on_both_ways_and_the_ends(self) -> None:
        async with Echo() as echo, Proxy(echo.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.to_target.record = bytearray()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert proxy.to_target.record == b"hello"
            await proxy.to_client.wait_transferred(5)
            assert (proxy.accepted, proxy.open_lines) == (1, 1)
            writer.write_eof()
            assert await reader.read() == b""
            assert await echo.ended.get() == "closed"
            writer.close()

    @pytest.mark.parametrize(("reset", "seen"), [(False, "closed"), (True, "reset")])
    async def test_cut(self, reset: bool, seen: str) -> None:
        async with Echo() as echo, Proxy(echo.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            await proxy.wait_opened()
            proxy.cut(reset=reset)
            assert await echo.ended.get() == seen
            if reset:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == b""
            writer.close()

    async def test_stalls_one_direction_without_loss(self) -> None:
        async with Echo() as echo, Proxy(echo.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.to_client.stall()
            writer.write(b"hello")
            await proxy.to_target.wait_transferred(5)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
            proxy.to_client.resume()
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    async def test_a_stalled_line_can_be_cut(self) -> None:
        async with Echo() as echo, Proxy(echo.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            await proxy.wait_opened()
            proxy.to_client.stall()
            proxy.cut()
            assert await reader.read() == b""
            writer.close()

    async def test_chops(self) -> None:
        async with Echo() as echo, Proxy(echo.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.to_target.chop = 1
            writer.write(b"abcdefghij")
            assert await reader.readexactly(10) == b"abcdefghij"
            # The receiver may find two pieces at once, but not all of them together.
            assert len(echo.pieces) >= 3
            writer.close()

    async def test_slows_down(self) -> None:
        async with Echo() as echo, Proxy(echo.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.to_target.bytes_per_second = 10_000
            started = time.monotonic()
            writer.write(bytes(2_000))
            assert len(await reader.readexactly(2_000)) == 2_000
            assert time.monotonic() - started >= 0.15  # 0.2 s but for the last piece
            writer.close()

    async def test_refuses_when_told_and_when_the_target_does(self) -> None:
        async with Proxy(free_port()) as proxy:
            for refusing in (True, False):
                proxy.refusing = refusing
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass  # the other way to say so
                writer.close()
            assert proxy.accepted == 0


class TestLeaks:
    def test_finds_processes_that_were_orphaned(self) -> None:
        mark = os.environ[leaks.MARK]
        # The shell leaves its background process behind, as a daemon does.
        source = "sleep 600 >/dev/null 2>&1 & echo $!"
        run = subprocess.run(["sh", "-c", source], capture_output=True, text=True, check=True)
        pid = int(run.stdout)
        try:
            _wait_until_it_is(pid, "sleep 600")
            left = [process for process in leaks.processes_marked(mark) if process.pid == pid]
            assert [process.command for process in left] == ["sleep 600"]
        finally:
            leaks.kill([leaks.Leftover(pid, "sleep")])
        _wait_until_gone(pid)

    def test_the_run_itself_is_none(self) -> None:
        found = leaks.processes_marked(os.environ[leaks.MARK])
        assert os.getpid() not in [process.pid for process in found]


class TestRules:
    """The rules of conftest.py, each broken by a test of a run of its own."""

    def run(self, directory: Path, source: str, **environ: str) -> str:
        (directory / "conftest.py").write_text(
            "import tests.conftest\n"
            "from tests.conftest import *\n"
            "tests.conftest.SECONDS_TO_END = 0.0\n"
        )
        (directory / "test_it.py").write_text(source)
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *("-c", str(Path(__file__).parent.parent / "pyproject.toml")),
                *("--rootdir", str(directory), str(directory)),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**{k: v for k, v in os.environ.items() if k != "CI"}, **environ},
        )
        return run.stdout + run.stderr

    def test_an_exception_in_a_callback_fails_the_test(self, tmp_path: Path) -> None:
        source = """
import asyncio
async def test_it():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
"""
        output = self.run(tmp_path, source)
        assert "the event loop reported" in output
        assert "ZeroDivisionError" in output
        assert "1 passed, 1 error" in output

    def test_a_task_that_failed_unseen_fails_the_test(self, tmp_path: Path) -> None:
        source = """
import asyncio
async def fail():
    raise LookupError("unseen")
async def test_it():
    task = asyncio.ensure_future(fail())
    await asyncio.sleep(0.01)
"""
        output = self.run(tmp_path, source)
        assert "LookupError: unseen" in output
        assert "1 passed, 1 error" in output

    def test_a_process_left_running_fails_the_run(self, tmp_path: Path) -> None:
        source = """
import subprocess
def test_it():
    subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"], check=True)
"""
        output = self.run(tmp_path, source)
        assert "processes left running by the tests" in output
        assert "sleep 600" in output

    @pytest.mark.parametrize(("ci", "result"), [("true", "1 failed"), ("", "1 skipped")])
    def test_a_skipped_interop_test_fails_in_ci(self, tmp_path: Path, ci: str, result: str) -> None:
        source = """
import pytest
@pytest.mark.interop
def test_it():
    pytest.skip("no erl here")
"""
        output = self.run(tmp_path, source, CI=ci)
        assert result in output
        assert "no erl here" in output
