"""The server by itself and with real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from snex_node.epmd import (
    EpmdServer,
    EpmdUnreachableError,
    NameTakenError,
    NodeInfo,
    NodeType,
    PortInUseError,
    lookup,
    names,
    register,
    server,
)
from snex_node.epmd.messages import (
    encode_alive_request,
    encode_names_request,
    encode_port_request,
)
from snex_node.system import log_limit
from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import epmd_tool, exchange, executable, from_hex, registered, until_gone
from tests.support.ports import free_port
from tests.support.waiting import until


async def test_an_epmd_at_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERL_EPMD_ADDRESS", "0.0.0.0")
    with EpmdServer(port=0) as running:
        assert running.addresses == [running.address] == [("0.0.0.0", running.address[1])]
        for host in ("127.0.0.1", "127.0.0.2"):
            assert await names(host, port=running.address[1]) == []


class Crowded:
    """A listening socket of a process that has no room for another file for a while."""

    def __init__(self, listener: socket.socket, refusals: int) -> None:
        self._listener = listener
        self._refusals = refusals

    def accept(self) -> tuple[socket.socket, object]:
        if self._refusals:
            self._refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


class TestServer:
    def test_life(self) -> None:
        running = EpmdServer("127.0.0.1", 0)
        for use in (lambda: running.address, running.statistics):
            with pytest.raises(RuntimeError, match="not running"):
                use()
        running.start()
        host, port = running.address
        assert host == "127.0.0.1"
        with pytest.raises(RuntimeError, match="running already"):
            running.start()
        assert f"epmd {port}" in [thread.name for thread in threading.enumerate()]
        running.stop()
        running.stop()
        assert f"epmd {port}" not in [thread.name for thread in threading.enumerate()]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=5)
        running.start()  # it may be used again
        running.stop()

    def test_it_answers_while_the_main_thread_is_busy(self, embedded: EpmdServer) -> None:
        program = executable("epmd")
        command = [program, "-port", str(embedded.address[1]), "-names"]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 20
        while asking.poll() is None:  # pure Python without a pause: the event loop would be blocked
            assert time.monotonic() < deadline, "no answer while the main thread was busy"
        with asking:
            assert asking.stdout is not None
            assert "up and running" in asking.stdout.read()

    def test_a_port_in_use(self, embedded: EpmdServer) -> None:
        port = embedded.address[1]
        with pytest.raises(PortInUseError, match=f"port {port} at 127.0.0.1 is in use") as caught:
            EpmdServer("127.0.0.1", port).start()
        assert "ERL_EPMD_PORT" in str(caught.value)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
    def test_an_address_of_another_machine(self, host: str) -> None:
        with pytest.raises(PortInUseError, match=f"cannot listen at {host}"):
            EpmdServer(("127.0.0.1", host), 0).start()

    async def test_several_addresses_have_one_port(self) -> None:
        with EpmdServer(("127.0.0.1", "127.0.0.2"), 0) as running:
            port = running.address[1]
            async with registered(port, NodeInfo("py", 1)):
                assert await names("127.0.0.2", port=port) == [("py", 1)]

    async def test_its_address_and_port_come_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = free_port()
        monkeypatch.setenv("ERL_EPMD_PORT", str(port))
        monkeypatch.setenv("ERL_EPMD_ADDRESS", "127.0.0.2")
        with EpmdServer() as running:
            assert running.address == ("127.0.0.1", port)
            assert await names("127.0.0.2") == []

    async def test_ipv6(self) -> None:
        running = EpmdServer("::1", 0)
        try:
            running.start()
        except PortInUseError as error:
            pytest.skip(str(error))
        try:
            port = running.address[1]
            registration = await register(NodeInfo("py", 1), host="::1", port=port)
            assert await names("::1", port=port) == [("py", 1)]
            registration.close()
        finally:
            running.stop()
        with pytest.raises(EpmdUnreachableError, match=rf"no epmd at \[::1\]:{port}"):
            await names("::1", port=port)

    async def test_it_closes_after_an_answer(self, embedded: EpmdServer) -> None:
        # `exchange` returns at the end of the connection, which it does not close itself.
        port = embedded.address[1]
        assert await exchange(port, encode_port_request("py")) == from_hex("77 01")
        assert await exchange(port, encode_names_request()) == port.to_bytes(4, "big")

    async def test_a_refused_registration_is_closed(
        self, embedded: EpmdServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "snex_node.epmd")
        port = embedded.address[1]
        async with registered(port, NodeInfo("py", 1)):
            answer = await exchange(port, encode_alive_request(NodeInfo("py", 2)))
        assert answer == from_hex("76 01 00000063")
        assert [record.levelname for record in caplog.records] == ["INFO"]

    @pytest.mark.parametrize(
        "request_bytes",
        ["0001 6b", "0003 73 7079", "0001 64"],
        ids=["kill", "stop", "dump"],
    )
    async def test_debug_requests_are_refused(
        self, embedded: EpmdServer, request_bytes: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await exchange(embedded.address[1], from_hex(request_bytes)) == b""
        assert "is not served by an embedded epmd" in caplog.text
        assert await names(port=embedded.address[1]) == []

    @pytest.mark.parametrize(
        ("request_bytes", "why"),
        [
            ("0000", "empty request"),
            ("0401", "a request of 1025 bytes, more than 1024"),
            ("ffff 78", "a request of 65535 bytes"),
            ("0003 7a 7040", "must not contain '@'"),
            (b"GET / HTTP/1.1\r\n\r\n".hex(), "a request of 18245 bytes"),
        ],
    )
    async def test_bad_requests_are_closed_and_logged_once(
        self,
        embedded: EpmdServer,
        request_bytes: str,
        why: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        assert await exchange(embedded.address[1], from_hex(request_bytes)) == b""
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert why in caplog.text
        assert "connection of 127.0.0.1:" in caplog.text
        assert embedded.statistics().refused == 1

    async def test_any_bytes(self, embedded: EpmdServer) -> None:
        port = embedded.address[1]
        async with registered(port, NodeInfo("py", 1)):
            for seed in range(300):
                garbage = os.urandom(seed % 40)
                kind = bytes((0, len(garbage) + 1, b"xznkds\0"[seed % 7]))
                await exchange_and_shut(port, kind + garbage)
            assert await names(port=port) == [("py", 1)]

    async def test_what_follows_a_registration_is_ignored(self, embedded: EpmdServer) -> None:
        port = embedded.address[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(encode_alive_request(NodeInfo("py", 1)) + encode_names_request())
        assert (await reader.readexactly(6))[:2] == b"\x76\x00"
        writer.write(encode_names_request())
        await writer.drain()
        assert await names(port=port) == [("py", 1)]
        writer.write_eof()  # half a close is one
        assert await reader.read() == b""
        await until_gone("py", port)
        writer.close()

    @pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x05\x7ap"])
    async def test_half_a_request_has_a_time_limit(
        self, sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "REQUEST_SECONDS", 0.05)
        with EpmdServer("127.0.0.1", 0) as running:
            assert await exchange(running.address[1], sent) == b""
            assert "not done within 0.05 s" in caplog.text

    async def test_a_registration_has_no_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "REQUEST_SECONDS", 0.05)
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            async with registered(port, NodeInfo("py", 1)) as registration:
                # The limit of this connection begins later, and is seen to pass.
                assert await exchange(port, b"\0") == b""
                assert not registration.lost
                assert await names(port=port) == [("py", 1)]

    async def test_a_client_that_does_not_read_its_answer_has_a_time_limit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
        monkeypatch.setattr(
            server, "encode_names_answer", lambda port, nodes: bytes(64 * 1024 * 1024)
        )
        with (
            EpmdServer("127.0.0.1", 0) as running,
            socket.create_connection(running.address) as client,
        ):
            client.sendall(encode_names_request())
            await until(lambda: running.statistics().connections == 1)
            await until(lambda: running.statistics().connections == 0)

    async def test_the_number_of_names_is_bounded(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "MAX_NAMES", 1)
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            async with registered(port, NodeInfo("one", 1)):
                with pytest.raises(NameTakenError):
                    await register(NodeInfo("two", 1), port=port)
                assert "1 nodes are registered already" in caplog.text
            async with registered(port, NodeInfo("two", 1)):
                assert await names(port=port) == [("two", 1)]

    async def test_the_number_of_connections_is_bounded(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "MAX_UNFINISHED", 2)
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            async with registered(port, NodeInfo("one", 1)):
                silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
                assert await asyncio.wait_for(silent[0][0].read(), 10) == b""  # the oldest goes
                assert "2 others have not finished their request" in caplog.text
                assert running.statistics().connections == 3
                assert await names(port=port) == [("one", 1)]
                assert await asyncio.wait_for(silent[1][0].read(), 10) == b""
                silent[2][1].write(encode_names_request())
                assert await silent[2][0].read() != b""
                for _, writer in silent:
                    writer.close()

    async def test_a_stranger_pushes_out_his_own_connections(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "MAX_UNFINISHED", 4)
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            reader, slow = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: running.statistics().connections == 1)
            with contextlib.ExitStack() as stack:
                for gone in [0, 0, 0, *range(1, 10)]:
                    stranger = socket.create_connection(
                        ("127.0.0.1", port), source_address=("127.0.0.2", 0)
                    )
                    stack.enter_context(stranger)
                    await until(lambda: running.statistics().refused == gone)  # noqa: B023
                slow.write(encode_port_request("py"))
                assert await reader.read() == from_hex("77 01")
            slow.close()

    def test_the_addresses_of_one_ipv6_network_are_one_stranger(self) -> None:
        sources = ["2001:db8::1", "2001:db8::ff:1", "2001:db8:0:1::1", "fe80::1%eth0", "10.0.0.1"]
        assert len({server._source(host) for host in sources}) == 4

    async def test_lines_about_strangers_are_few_and_hide_nothing_else(
        self, embedded: EpmdServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "snex_node.epmd")
        port = embedded.address[1]
        for _ in range(100):
            assert await exchange(port, b"GET / HTTP/1.1\r\n\r\n") == b""
        assert embedded.statistics().refused == 100
        assert len(caplog.records) == log_limit.LINES
        async with registered(port, NodeInfo("py", 1)):
            await exchange(port, encode_alive_request(NodeInfo("py", 2)))
        assert "epmd did not register 'py'" in caplog.messages[-1]

    def test_no_file_is_left_for_another_connection(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.05)
        hosts = ["127.0.0.1", "127.0.0.2"]
        crowded = [Crowded(sock, refusals=3) for sock in server.listen(hosts, 0)]
        core = server.Core(crowded)  # type: ignore[arg-type]
        thread = threading.Thread(target=core.run)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection((host, core.port))) for host in hosts
            ]
            thread.start()  # both wait to be accepted in its first turn
            for client in clients:
                client.sendall(encode_port_request("py"))
            for client in clients:
                assert client.recv(10) == from_hex("77 01")
        core.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert "epmd cannot accept a connection: [Errno 24]" in caplog.text

    async def test_only_this_machine_can_register(
        self,
        embedded: EpmdServer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(server, "is_local", lambda peer, own: False)
        with pytest.raises(NameTakenError):
            await register(NodeInfo("py", 1), port=embedded.address[1])
        assert "only nodes of this machine can register" in caplog.text
        assert await names(port=embedded.address[1]) == []

    @pytest.mark.parametrize(
        ("peer", "own", "local"),
        [
            ("127.0.0.1", "127.0.0.1", True),
            ("127.0.0.5", "127.0.0.1", True),
            ("::1", "::1", True),
            ("192.0.2.1", "192.0.2.1", True),
            ("192.0.2.1", "192.0.2.2", False),
            ("fe80::1%eth0", "fe80::2%eth0", False),
            ("?", "127.0.0.1", False),
        ],
    )
    def test_who_is_on_this_machine(self, peer: str, own: str, local: bool) -> None:
        assert server.is_local(peer, own) is local

    async def test_statistics(self, embedded: EpmdServer) -> None:
        port = embedded.address[1]
        async with registered(port, NodeInfo("py", 1)):
            await names(port=port)
            await exchange(port, b"\0\0")
            counts = embedded.statistics()
            assert (counts.names, counts.requests, counts.refused) == (1, 2, 1)
        await until(lambda: embedded.statistics().connections == 0)

    def test_creations_are_above_three_and_go_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.urandom", lambda count: (2**32 - 4 - 2).to_bytes(count, "big"))
        given_out = server._creations()
        assert [next(given_out) for _ in range(4)] == [2**32 - 2, 2**32 - 1, 4, 5]


async def exchange_and_shut(port: int, data: bytes) -> None:
    """Send bytes and the end of sending; wait for the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
    writer.close()


class TestLingering:
    """One that runs in a process of its own ends some time after its last node has gone."""

    def run(self, linger: float) -> tuple[server.Core, threading.Thread]:
        core = server.Core(server.listen(["127.0.0.1"], 0), linger=linger)
        thread = threading.Thread(target=core.run)
        thread.start()
        return core, thread

    def test_without_a_first_node(self) -> None:
        core, thread = self.run(0.05)
        thread.join(10)
        assert not thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", core.port))

    async def test_never_while_a_node_is_registered(self) -> None:
        core, thread = self.run(0.1)
        registration = await register(NodeInfo("py", 1), port=core.port)
        for _ in range(50):
            await asyncio.sleep(0.01)
            assert await names(port=core.port) == [("py", 1)]
        registration.close()
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()

    def test_who_only_asks_does_not_keep_it(self) -> None:
        core, thread = self.run(0.2)
        asked = 0
        with contextlib.suppress(OSError):
            while True:
                with socket.create_connection(("127.0.0.1", core.port)):
                    asked += 1
        thread.join(10)
        assert not thread.is_alive()
        assert asked


@pytest.mark.interop
class TestServerWithRealNodes:
    async def test_a_beam_registers_and_is_found(
        self, embedded: EpmdServer, start_beam: Callable[..., Beam]
    ) -> None:
        port = embedded.address[1]
        beam = start_beam(epmd_port=port)
        name = beam.name.partition("@")[0]
        found = await lookup(name, port=port)
        assert found is not None
        assert (found.node_type, found.highest_version) == (NodeType.NORMAL, 6)
        assert await names(port=port) == [(name, found.port)]
        # The creation it uses is the one it was given.
        creation = await beam.eval(":erlang.system_info(:creation)")
        assert isinstance(creation, int)
        assert creation > 3
        await beam.kill()
        await until(lambda: embedded.statistics().names == 0)

    async def test_beams_find_each_other_and_connect(
        self, embedded: EpmdServer, start_beam: Callable[..., Beam]
    ) -> None:
        one = start_beam(epmd_port=embedded.address[1], cookie="biscuit")
        two = start_beam(epmd_port=embedded.address[1], cookie="biscuit", hidden=True)
        assert await one.eval("Node.connect(n)", n=Atom(two.name)) is True
        listed = await one.eval(":net_adm.names({127, 0, 0, 1})")
        assert isinstance(listed, tuple)
        assert sorted(bytes(name).decode() for name, _ in listed[1]) == sorted(
            beam.name.partition("@")[0] for beam in (one, two)
        )
        assert one.log == two.log == ""

    async def test_a_second_beam_of_a_name_does_not_start(
        self, embedded: EpmdServer, start_beam: Callable[..., Beam]
    ) -> None:
        port = embedded.address[1]
        async with registered(port, NodeInfo("taken", 1)):
            beam = Beam.start(epmd_port=port, name="taken")
            with pytest.raises(Exception, match=r"name taken@127\.0\.0\.1 seems to be in use"):
                await asyncio.to_thread(beam.wait_ready)

    async def test_a_beam_registers_again_after_a_restart(
        self, start_beam: Callable[..., Beam]
    ) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            port = running.address[1]
            beam = start_beam(epmd_port=port)
            name = beam.name.partition("@")[0]
        with EpmdServer("127.0.0.1", port) as running:
            await until(lambda: running.statistics().names == 1)
            assert await lookup(name, port=port) is not None

    async def test_an_erl_node_registers(self, embedded: EpmdServer) -> None:
        port = embedded.address[1]
        process = await asyncio.create_subprocess_exec(
            executable("erl"),
            *("-noinput", "-start_epmd", "false", "-sname", "plain@localhost"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ERL_EPMD_PORT": str(port)},
        )
        try:
            await until(lambda: embedded.statistics().names == 1)
            assert (await names(port=port))[0][0] == "plain"
        finally:
            process.kill()
            await process.wait()

    async def test_the_daemon_of_a_beam_leaves_the_place_to_us(self, embedded: EpmdServer) -> None:
        port = embedded.address[1]
        await epmd_tool(port, "-daemon")
        async with registered(port, NodeInfo("py", 1)):
            assert embedded.statistics().names == 1
            assert await names(port=port) == [("py", 1)]
