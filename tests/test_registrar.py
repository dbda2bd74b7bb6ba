"""A node is registered as long as it lives, whatever becomes of an epmd and of other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snex_node import Node, NodeStartError
from snex_node.epmd import (
    BadAnswerError,
    EpmdServer,
    EpmdStartError,
    EpmdTimeoutError,
    EpmdUnreachableError,
    NameTakenError,
    NoAnswerError,
    NodeInfo,
    NotFoundThereError,
    PortInUseError,
    Registrar,
    daemon,
    lookup,
    names,
    register,
    registrar,
    starter,
)
from tests.support.epmd import (
    BUSY,
    RealEpmd,
    another_node,
    command_of,
    executable,
    kill_epmd,
    process_at,
    said,
)
from tests.support.ports import free_port
from tests.support.waiting import until

OURS = "snex_node.epmd.daemon"
OTPS = "epmd -port"


@pytest.fixture(params=["ours", "otp"])
def which(request: pytest.FixtureRequest) -> str:
    """What a started epmd has in its command line, without OTP on the machine and with it."""
    if request.param == "ours":
        request.getfixturevalue("no_otp")
        return OURS
    executable("epmd")
    return OTPS


@contextlib.asynccontextmanager
async def kept(name: str, port: int, **options: str) -> AsyncIterator[Registrar]:
    keeper = Registrar(NodeInfo(name, 1), port=port, **options)  # type: ignore[arg-type]
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.close()


@pytest.mark.both_loops
class TestStarting:
    @pytest.mark.interop
    async def test_auto_uses_the_epmd_that_runs(self) -> None:
        with RealEpmd() as real:
            keeper = Registrar(NodeInfo("py", 1), port=real.port)
            assert keeper.creation == 0
            creation = await keeper.start()
            assert not keeper.started
            assert creation == keeper.creation > 3
            assert keeper.registered
            assert await names(port=real.port) == [("py", 1)]
            await keeper.close()
            await keeper.close()
            assert not keeper.registered
            assert await gone("py", real.port)

    @pytest.mark.interop
    async def test_auto_starts_one_where_none_runs(
        self, epmd_port: int, which: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "snex_node.epmd")
        async with kept("py", epmd_port) as keeper:
            assert keeper.started
            assert await names(port=epmd_port) == [("py", 1)]
            process = process_at(epmd_port)
            assert process is not None
            assert which in command_of(process)
            assert f"on 127.0.0.1:{epmd_port}" in caplog.text
            with pytest.raises(EpmdUnreachableError):  # on loopback alone
                await names("127.0.0.2", port=epmd_port)
            async with kept("py2", epmd_port) as other:
                assert not other.started
                assert len(await names(port=epmd_port)) == 2
        assert process_at(epmd_port) == process

    async def test_several_that_start_at_once_share_one(self, epmd_port: int, which: str) -> None:
        keepers = [Registrar(NodeInfo(f"n{i}", 1), port=epmd_port) for i in range(10)]
        await asyncio.gather(*(keeper.start() for keeper in keepers))
        assert len(await names(port=epmd_port)) == 10
        for keeper in keepers:
            await keeper.close()

    async def test_processes_that_start_at_once_share_one(
        self, epmd_port: int, no_otp: None
    ) -> None:
        processes = [another_node(f"n{i}", epmd_port) for i in range(4)]
        words = [await asyncio.to_thread(said, process) for process in processes]
        assert sorted(words) == ["joined", "joined", "joined", "started"]
        assert len(await names(port=epmd_port)) == 4
        for process in processes:
            process.communicate("")

    @pytest.mark.parametrize("status", [0, 1])
    async def test_a_program_named_epmd_that_starts_none(
        self,
        epmd_port: int,
        tmp_path: Path,
        no_otp: None,
        status: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(starter, "OTP_SECONDS", 0.2)
        (tmp_path / "epmd").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "epmd").chmod(0o755)
        async with kept("py", epmd_port):
            process = process_at(epmd_port)
            assert process is not None
            assert OURS in command_of(process)

    async def test_embedded_is_one_of_ours(
        self, epmd_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "snex_node.epmd")
        async with kept("py", epmd_port, mode="embedded") as keeper:
            assert keeper.started
            process = process_at(epmd_port)
            assert process is not None
            assert OURS in command_of(process)
            assert f"started an epmd (process {process}) on 127.0.0.1:{epmd_port}" in caplog.text
            async with kept("py2", epmd_port, mode="embedded") as other:
                assert not other.started

    @pytest.mark.interop
    async def test_embedded_does_not_use_that_of_otp(self, epmd: RealEpmd) -> None:
        with pytest.raises(PortInUseError, match=f"port {epmd.port} .* not one of ours") as caught:
            await Registrar(NodeInfo("py", 1), mode="embedded", port=epmd.port).start()
        assert "`--epmd auto`" in str(caught.value)

    async def test_external_starts_none(self) -> None:
        with pytest.raises(EpmdUnreachableError, match="no epmd at"):
            await Registrar(NodeInfo("py", 1), mode="external", port=free_port()).start()

    async def test_a_taken_name_is_an_error_at_the_start(self, epmd_port: int) -> None:
        async with kept("py", epmd_port):
            with pytest.raises(NameTakenError):
                await Registrar(NodeInfo("py", 1), port=epmd_port).start()

    async def test_no_node_has_the_name_of_an_epmd_of_ours(self) -> None:
        with EpmdServer("127.0.0.1", 0) as running, pytest.raises(NameTakenError):
            await register(NodeInfo("snex_node.epmd", 1), port=running.address[1])

    async def test_a_bad_name_is_an_error(self, epmd_port: int) -> None:
        with pytest.raises(ValueError, match="must not contain '@'"):
            await Registrar(NodeInfo("a@b", 1), mode="embedded", port=epmd_port).start()

    async def test_auto_does_not_take_a_port_that_somebody_else_has(self) -> None:
        async with answering([b"220 mail ready\r\n"]) as port:
            with pytest.raises(BadAnswerError):
                await Registrar(NodeInfo("py", 1), port=port).start()

    async def test_auto_does_not_replace_what_is_silent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registrar, "register", functools.partial(register, timeout=0.1))
        async with answering([None]) as port:
            keeper = Registrar(NodeInfo("py", 1), port=port)
            with pytest.raises(EpmdTimeoutError):
                await keeper.start()
            assert not keeper.started

    async def test_a_port_that_is_bound_but_silent(self) -> None:
        with socket.socket() as holder:  # bound, but it does not listen
            holder.bind(("127.0.0.1", 0))
            with pytest.raises(PortInUseError):
                await Registrar(NodeInfo("py", 1), port=holder.getsockname()[1]).start()

    async def test_what_never_answers_is_no_epmd(self) -> None:
        async with answering([b""] * registrar.RACE_ATTEMPTS) as port:
            with pytest.raises(NoAnswerError, match=f"127.0.0.1:{port} is not an epmd"):
                await Registrar(NodeInfo("py", 1), port=port).start()

    async def test_one_that_is_ending_is_replaced(self, which: str) -> None:
        async with answering([b"", b""]) as port:
            try:
                async with kept("py", port) as keeper:
                    assert keeper.started
                    assert await names(port=port) == [("py", 1)]
            finally:
                kill_epmd(port)

    async def test_one_that_is_ending_and_has_a_successor(self) -> None:
        with contextlib.ExitStack() as stack:

            def succeed(port: int) -> None:
                stack.enter_context(EpmdServer("127.0.0.1", port))

            async with (
                answering([b""], succeed) as port,
                kept("py", port, mode="external") as keeper,
            ):
                assert keeper.registered

    @pytest.mark.parametrize(
        ("program", "frozen", "why"),
        [
            ("", False, "this program is no Python"),
            (None, True, "this program is no Python"),
            ("/no/such/python", False, "No such file or directory"),
            ("/bin/false", False, "/bin/false: status 1"),
        ],
    )
    async def test_no_process_can_be_started(
        self,
        no_otp: None,
        monkeypatch: pytest.MonkeyPatch,
        program: str | None,
        frozen: bool,
        why: str,
    ) -> None:
        if program is not None:
            monkeypatch.setattr(sys, "executable", program)
        monkeypatch.setattr(sys, "frozen", frozen, raising=False)
        port = free_port()
        with pytest.raises(EpmdStartError, match=why) as caught:
            await Registrar(NodeInfo("py", 1), port=port).start()
        assert "`epmd -daemon` or `snex-node epmd`" in str(caught.value)
        socket.create_server(("127.0.0.1", port)).close()  # nothing is left at the port

    async def test_a_start_that_takes_too_long(
        self, no_otp: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = tmp_path / "python"
        slow.write_text("#!/bin/sh\nexec /bin/sleep 100\n")
        slow.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(slow))
        monkeypatch.setattr(starter, "START_SECONDS", 0.1)
        with pytest.raises(EpmdStartError, match="is still starting"):
            await Registrar(NodeInfo("py", 1), port=free_port()).start()


async def gone(name: str, port: int) -> bool:
    """Return when epmd has noticed the end of a registration."""
    deadline = time.monotonic() + 10
    while await lookup(name, port=port) is not None:
        assert time.monotonic() < deadline
    return True


@contextlib.asynccontextmanager
async def answering(
    answers: Sequence[bytes | None], then: Callable[[int], None] = lambda port: None
) -> AsyncIterator[int]:
    """A server that gives each connection one answer, and ends before the last; None is silence."""
    finish = asyncio.Event()
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = left.pop(0)
        await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if not left:
            listening.close()
            then(port)
        if answer is None:
            await finish.wait()
        else:
            writer.write(answer)
        writer.close()

    tasks: list[asyncio.Task[None]] = []
    listening = await asyncio.start_server(
        lambda r, w: tasks.append(asyncio.create_task(serve(r, w))), "127.0.0.1", 0
    )
    port: int = listening.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        finish.set()
        listening.close()
        await asyncio.gather(*tasks)


# Where others look for a node


def own_addresses() -> list[str]:
    """Addresses of this machine besides 127.0.0.1."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
        contextlib.suppress(OSError),
    ):
        probe.connect(("192.0.2.254", 9))  # sends nothing, but chooses our address
        return ["127.0.0.2", str(probe.getsockname()[0])]
    return ["127.0.0.2"]


each_address = pytest.mark.parametrize("address", own_addresses())
ALL = "0.0.0.0"


class TestWhereOthersLook:
    @each_address
    async def test_an_epmd_is_started_there(
        self, epmd_port: int, which: str, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "snex_node.epmd")
        node = Node(f"py@{address}", cookie="x", listen=(address, 0), epmd_port=epmd_port)
        async with node:
            for host in (address, "127.0.0.1"):
                found = await lookup("py", host, port=epmd_port)
                assert found is not None
                assert found.port == node.port
        assert f"on 127.0.0.1:{epmd_port}, {address}:{epmd_port}" in caplog.text

    @each_address
    async def test_an_epmd_at_every_address(self, epmd_port: int, which: str, address: str) -> None:
        async with Node(f"py@{address}", cookie="x", listen=(ALL, 0), epmd_port=epmd_port):
            for host in (*own_addresses(), "127.0.0.1"):
                assert await lookup("py", host, port=epmd_port) is not None

    @each_address
    @pytest.mark.parametrize("everywhere", [False, True])
    async def test_one_that_does_not_listen_there_is_told_of(
        self, address: str, everywhere: bool
    ) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            listen = (ALL if everywhere else address, 0)
            node = Node(f"py@{address}", cookie="x", listen=listen, epmd_port=port)
            with pytest.raises(NodeStartError, match=f"epmd at {address}:{port}, where") as caught:
                await node.start()
            assert isinstance(caught.value.__cause__, NotFoundThereError)
            assert f"ERL_EPMD_ADDRESS={address}" in str(caught.value)
            await until(lambda: running.statistics().names == 0)

    async def test_a_host_that_is_another_machine_here(self) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            for host in ("192.0.2.77", "no-such-host.invalid"):
                async with Node(f"py@{host}", cookie="x", listen=(ALL, 0), epmd_port=port) as node:
                    assert running.statistics().names == 1
                    assert node.creation
                await until(lambda: running.statistics().names == 0)

    async def test_the_successor_of_one_that_listened_there(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        address = "127.0.0.2"
        with EpmdServer(("127.0.0.1", address), 0) as running:
            port = running.address[1]
            keeper = Registrar(
                NodeInfo("py", 1), mode="external", port=port, listen=address, host=address
            )
            await keeper.start()
        with EpmdServer("127.0.0.1", port):
            await until(lambda: f"epmd at {address}:{port}, where" in caplog.text)
            assert keeper.registered
            await keeper.close()


# Registered again


@pytest.mark.both_loops
class TestRegisteredAgain:
    def test_as_often_as_otp(self) -> None:
        assert registrar.RENEW_SECONDS == 2.0

    async def test_within_two_seconds_of_its_end(
        self, epmd_port: int, which: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        async with contextlib.AsyncExitStack() as stack:
            keepers = [await stack.enter_async_context(kept(f"n{i}", epmd_port)) for i in range(5)]
            creations = [keeper.creation for keeper in keepers]
            first = kill_epmd(epmd_port)
            began = time.monotonic()
            while not await all_found([f"n{i}" for i in range(5)], epmd_port):
                assert time.monotonic() < began + 2
                await asyncio.sleep(0.01)
            second = process_at(epmd_port)
            assert second not in (first, None)
            assert [keeper.creation for keeper in keepers] == creations
            await until(lambda: all(keeper.registered for keeper in keepers))
        assert "epmd has gone: n0 is not registered now" in caplog.text
        assert "n0 is registered with epmd again" in caplog.text
        assert "could not be registered" not in caplog.text

    async def test_embedded_is_replaced_by_one_of_ours(self, epmd_port: int) -> None:
        async with kept("py", epmd_port, mode="embedded") as keeper:
            kill_epmd(epmd_port)
            await until(lambda: not keeper.registered)
            await until(lambda: keeper.registered)
            process = process_at(epmd_port)
            assert process is not None
            assert OURS in command_of(process)

    @pytest.mark.interop
    async def test_embedded_uses_whatever_takes_its_place(
        self, epmd_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registrar, "TAKE_OVER_SECONDS", 1e9)
        async with kept("py", epmd_port, mode="embedded") as keeper:
            kill_epmd(epmd_port)
            with RealEpmd(port=epmd_port):
                while await names(port=epmd_port) != [("py", 1)]:  # noqa: ASYNC110 - of another
                    await asyncio.sleep(0.01)
                await until(lambda: keeper.registered)

    async def test_one_that_is_restarted_at_once_keeps_its_place(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            keeper = Registrar(NodeInfo("py", 1), port=port)
            await keeper.start()
        with EpmdServer("127.0.0.1", port) as running:
            await until(lambda: running.statistics().names == 1)
            await until(lambda: keeper.registered)
            assert not keeper.started
            await keeper.close()

    @pytest.mark.interop
    async def test_external_waits_for_one_and_starts_none(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(registrar, "TAKE_OVER_SECONDS", 0.1)
        monkeypatch.setattr(registrar, "TAKE_OVER_SPREAD", 0.0)
        monkeypatch.setattr(registrar, "SOON_SECONDS", 0.3)
        monkeypatch.setattr(registrar, "RENEW_SECONDS", 0.02)
        caplog.set_level(logging.INFO)
        with RealEpmd() as real:
            keeper = Registrar(NodeInfo("py", 1), mode="external", port=real.port)
            creation = await keeper.start()
            real.stop()
            await until(lambda: "could not be registered" in caplog.text)
            assert not keeper.registered
            real.restart()
            await until(lambda: keeper.registered)
            assert await names(port=real.port) == [("py", 1)]
            assert keeper.creation == creation
            assert not keeper.started
            await keeper.close()
        assert caplog.text.count("py could not be registered") == 1
        assert "epmd has gone: py is not registered now" in caplog.text
        assert "py is registered with epmd again" in caplog.text

    async def test_a_name_lost_to_another_node_is_asked_for_until_it_is_free(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            keeper = Registrar(NodeInfo("py", 1), mode="external", port=port)
            await keeper.start()
            # Both ends of the registration are in this process: the keeper has no turn before us.
        with EpmdServer("127.0.0.1", port):
            other = await register(NodeInfo("py", 2), port=port)
            await until(lambda: "is taken by another node" in caplog.text)
            other.close()
            await until(lambda: keeper.registered)
            found = await lookup("py", port=port)
            assert found is not None
            assert found.port == 1
            await keeper.close()

    async def test_closing_ends_the_attempts(self) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            keeper = Registrar(NodeInfo("py", 1), mode="external", port=running.address[1])
            await keeper.start()
        await until(lambda: not keeper.registered)
        await keeper.close()
        assert len(asyncio.all_tasks()) == 1


async def all_found(wanted: Sequence[str], port: int) -> bool:
    try:
        return {name for name, _ in await names(port=port)} >= set(wanted)
    except (EpmdUnreachableError, NoAnswerError):
        return False


# The process


@contextlib.contextmanager
def opening(server: EpmdServer) -> Iterator[None]:
    """Start it as soon as its port is free."""
    deadline = time.monotonic() + 10
    while True:
        try:
            server.start()
            break
        except PortInUseError:
            if time.monotonic() > deadline:
                raise
    yield
    server.stop()


class TestProcess:
    def test_forked_children_of_nodes_do_not_hold_its_port(
        self, epmd_port: int, no_otp: None
    ) -> None:
        fork = "import os; os.fork(); os.write(1, b'%d\\n' % os.getpid()); sys.stdin.read()"
        first = another_node("first", epmd_port, fork)
        try:
            assert said(first) == "started"
            process = process_at(epmd_port)
            [child] = {int(said(first)), int(said(first))} - {first.pid}
            first.kill()
            first.wait()
            assert process is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            with opening(EpmdServer("127.0.0.1", epmd_port)):
                os.kill(child, 0)  # it lives
        finally:
            first.kill()
            first.communicate()

    def test_it_answers_while_c_code_keeps_its_starter(self, epmd_port: int, no_otp: None) -> None:
        first = another_node("first", epmd_port, BUSY)
        assert said(first) == "started"
        try:
            for _ in range(20):
                began = time.monotonic()
                assert ("first", 1) in asyncio.run(names(port=epmd_port))
                assert time.monotonic() - began < 1
            first.send_signal(signal.SIGINT)  # what would end it, if it could take notice
            assert ("first", 1) in asyncio.run(names(port=epmd_port))
            assert first.poll() is None
        finally:
            first.kill()
            first.communicate()

    async def test_it_stays_when_its_starter_is_killed(self, epmd_port: int, no_otp: None) -> None:
        first = another_node("first", epmd_port)
        assert said(first) == "started"
        process = process_at(epmd_port)
        async with kept("second", epmd_port) as second:
            first.kill()
            first.communicate()
            assert await gone("first", epmd_port)
            assert second.registered
            assert await names(port=epmd_port) == [("second", 1)]
            assert process_at(epmd_port) == process

    async def test_it_stays_when_the_group_of_its_starter_is_killed(
        self, epmd_port: int, no_otp: None
    ) -> None:
        first = another_node(
            "first", epmd_port, "import os; os.setpgid(0, 0); " + "sys.stdin.read()"
        )
        assert said(first) == "started"
        await until(lambda: os.getpgid(first.pid) == first.pid)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        assert await gone("first", epmd_port)
        assert process_at(epmd_port) is not None

    async def test_it_ends_when_its_last_node_has_gone(self, epmd_port: int, no_otp: None) -> None:
        async with kept("py", epmd_port):
            process = process_at(epmd_port)
            assert process is not None
        assert process_at(epmd_port) == process
        async with kept("py", epmd_port) as again:  # a node that is started again finds it
            assert not again.started
        began = time.monotonic()
        await until(lambda: not command_of(process), daemon.LINGER_SECONDS + 5)
        assert time.monotonic() - began > daemon.LINGER_SECONDS - 1
        async with kept("py", epmd_port) as again:
            assert again.started


# A flood


FLOOD = """
import resource, socket, sys, collections
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
address, data, count = ("127.0.0.1", int(sys.argv[1])), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
held = collections.deque()
while True:
    try:
        held.append(socket.create_connection(address, timeout=1))
        held[-1].send(data)
    except OSError:
        pass
    if len(held) == count:
        print("flooded", flush=True)
    if len(held) > count:
        held.popleft().close()
"""


def flooding(port: int, data: bytes, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(port), data.hex(), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("count", [700, 2000])
@pytest.mark.parametrize("data", [b"", b"\0", b"\0\5zp", b"\0\1n"], ids=["silent", "1", "4", "all"])
async def test_a_flood_keeps_nobody_out(
    epmd_port: int, no_otp: None, data: bytes, count: int
) -> None:
    async with kept("py", epmd_port, mode="embedded"):
        flood = flooding(epmd_port, data, count)
        try:
            assert await asyncio.to_thread(said, flood) == "flooded"
            for number in range(10):
                assert await lookup("py", port=epmd_port, timeout=1) == NodeInfo("py", 1)
                registered = await register(NodeInfo(f"n{number}", 2), port=epmd_port, timeout=1)
                registered.close()
            assert flood.poll() is None
        finally:
            flood.kill()
            flood.communicate()
