"""epmd: the messages as bytes, the client against a real epmd, the server with real nodes."""

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
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node import epmd as epmd_package
from snex_node.epmd import (
    BadAnswerError,
    EpmdError,
    EpmdServer,
    EpmdTimeoutError,
    EpmdUnreachableError,
    HostNotFoundError,
    NameTakenError,
    NodeInfo,
    NodeType,
    PortInUseError,
    check_name,
    epmd_port,
    listen_addresses,
    lookup,
    messages,
    names,
    register,
    server,
)
from snex_node.epmd.messages import (
    AliveAnswer,
    AliveRequest,
    DebugRequest,
    MalformedError,
    NamesRequest,
    Opcode,
    PortRequest,
    encode_alive_answer,
    encode_alive_request,
    encode_names_answer,
    encode_names_request,
    encode_port_answer,
    encode_port_request,
    parse_alive_answer,
    parse_names_answer,
    parse_port_answer,
    parse_request,
)
from snex_node.system import log_limit
from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd, executable
from tests.support.ports import free_port
from tests.support.proxy import Proxy

PY25 = NodeInfo("py25", 0x8A29)


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text)


# Messages


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        # As a hidden node of ours and as nodes of OTP 25 and 29 put it on the wire.
        (encode_alive_request(PY25), "0011 78 8a29 48 00 0006 0005 0004 70793235 0000"),
        (
            encode_alive_request(NodeInfo("b", 4660, NodeType.NORMAL, extra=b"xy")),
            "0010 78 1234 4d 00 0006 0005 0001 62 0002 7879",
        ),
        (encode_port_request("dupx"), "0005 7a 64757078"),
        (encode_names_request(), "0001 6e"),
        (encode_alive_answer(AliveAnswer(0, 0x6B02C74A), 6), "76 00 6b02c74a"),
        (encode_alive_answer(AliveAnswer(1, 99), 6), "76 01 00000063"),
        (encode_alive_answer(AliveAnswer(0, 1), 5), "79 00 0001"),
        (
            encode_port_answer(NodeInfo("dupx", 0x15B3)),
            "77 00 15b3 48 00 0006 0005 0004 64757078 0000",
        ),
        (encode_port_answer(None), "77 01"),
        (
            encode_names_answer(4369, [PY25, NodeInfo("b", 1)]),
            "00001111" + b"name py25 at port 35369\nname b at port 1\n".hex(),
        ),
    ],
)
def test_messages_as_bytes(encoded: bytes, expected: str) -> None:
    assert encoded == from_hex(expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("78 8a29 48 00 0006 0005 0004 70793235 0000", AliveRequest(PY25)),
        ("7a 64757078", PortRequest("dupx")),
        ("6e", NamesRequest()),
        ("6b", DebugRequest(Opcode.KILL_REQ)),
        ("73 62", DebugRequest(Opcode.STOP_REQ)),
        ("64", DebugRequest(Opcode.DUMP_REQ)),
    ],
)
def test_requests_are_parsed(body: str, expected: messages.Request) -> None:
    assert parse_request(from_hex(body)) == expected


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "empty request"),
        ("05", "unknown request 5"),
        ("78 8a29 48", "end after 4 of 11 bytes"),
        ("78 8a29 48 00 0006 0005 0004 7079", "a name of 4 bytes in a message of 13"),
        ("78 8a29 48 00 0006 0005 0001 62 0009 00", "an extra field of 9 bytes"),
        ("78 8a29 48 00 0006 0005 0000 0000", "must not be empty"),
        ("78 8a29 48 00 0006 0005 0001 ff 0000", "not UTF-8"),
        ("7a", "must not be empty"),
        ("7a" + "61" * 256, "at most 255 bytes, not 256"),
        ("7a" + b"py\nname evil at port 1".hex(), r"must not contain '\\n'"),
        ("7a" + b"py@host".hex(), "must not contain '@'"),
        ("7a c328", "not UTF-8"),
    ],
)
def test_malformed_requests(body: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        parse_request(from_hex(body))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "of 0 bytes"),
        ("77 00", "begins with 118 or 121, not with 119"),
        ("76 00 0000", "of 4 bytes instead of 6"),
        ("79 00 000000", "of 5 bytes instead of 4"),
    ],
)
def test_malformed_alive_answers(data: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        parse_alive_answer(from_hex(data))


@pytest.mark.parametrize("data", ["", "77", "78 00", "77 00", "77 00 15b3 48 00 0006 0005 0004 64"])
def test_malformed_port_answers(data: str) -> None:
    with pytest.raises(MalformedError):
        parse_port_answer(from_hex(data))


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\x11\x11nonsense\n"])
def test_malformed_names_answers(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_names_answer(data)


def test_names_with_blanks_and_bytes_that_are_no_text() -> None:
    # The epmd of OTP registers them.
    data = b"\0\0\x11\x11name a at port b at port 7\nname \xff at port 8\n"
    assert parse_names_answer(data) == [("a at port b", 7), ("\\xff", 8)]


@pytest.mark.parametrize("name", ["", "a@b", "a b", "a\0", "ä" * 128, "\ud800"])
def test_names_no_node_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="name of a node"):
        check_name(name)
    with pytest.raises(ValueError, match="name of a node"):
        encode_port_request(name)


@pytest.mark.parametrize(
    "node", [NodeInfo("py", 65536), NodeInfo("py", -1), NodeInfo("py", 1, extra=bytes(65536))]
)
def test_fields_out_of_range(node: NodeInfo) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_alive_request(node)


def numbers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


names_of_nodes = st.text(min_size=1, max_size=255).filter(_is_name)
nodes = st.builds(
    NodeInfo,
    names_of_nodes,
    numbers(16),
    numbers(8),
    numbers(8),
    numbers(16),
    numbers(16),
    st.binary(max_size=300),
)


class TestEveryMessageComesBack:
    @given(nodes)
    def test_nodes(self, node: NodeInfo) -> None:
        request = encode_alive_request(node)
        assert int.from_bytes(request[:2], "big") == len(request) - 2
        assert parse_request(request[2:]) == AliveRequest(node)
        assert parse_port_answer(encode_port_answer(node)) == node

    @given(names_of_nodes)
    def test_names(self, name: str) -> None:
        assert parse_request(encode_port_request(name)[2:]) == PortRequest(name)

    @given(st.lists(nodes))
    def test_lists(self, listed: list[NodeInfo]) -> None:
        answer = encode_names_answer(4369, listed)
        assert parse_names_answer(answer) == [(node.name, node.port) for node in listed]

    @given(numbers(8), numbers(32))
    def test_creations(self, result: int, creation: int) -> None:
        answer = AliveAnswer(result, creation)
        assert parse_alive_answer(encode_alive_answer(answer, 6)) == answer


class TestAnyBytes:
    """A message, or the documented error; never anything else."""

    likely = st.builds(
        lambda head, tail: head + tail,
        st.sampled_from([b"", b"x", b"z", b"n", b"v", b"y", b"w\0", b"w\1", b"\0\0\x11\x11name "]),
        st.binary(max_size=40),
    )

    @given(likely)
    def test_parsing(self, data: bytes) -> None:
        for parse in (parse_request, parse_alive_answer, parse_port_answer, parse_names_answer):
            with contextlib.suppress(MalformedError):
                parse(data)

    @given(nodes, st.data())
    def test_cut_short(self, node: NodeInfo, data: st.DataObject) -> None:
        body = encode_alive_request(node)[2:]
        cut = data.draw(st.integers(0, len(body) - 1))
        with pytest.raises(MalformedError):
            parse_request(body[:cut])


# Settings


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, 4369), ({"ERL_EPMD_PORT": ""}, 4369), ({"ERL_EPMD_PORT": "5000"}, 5000)],
)
def test_port_from_the_environment(environ: dict[str, str], expected: int) -> None:
    assert epmd_port(environ) == expected


@pytest.mark.parametrize("text", ["abc", "0", "65536", "-1", "1e3", "²"])
def test_bad_port_in_the_environment(text: str) -> None:
    with pytest.raises(EpmdError, match="ERL_EPMD_PORT is not a port number"):
        epmd_port({"ERL_EPMD_PORT": text})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("127.0.0.1",)),
        ({"ERL_EPMD_ADDRESS": ""}, ("127.0.0.1",)),
        ({"ERL_EPMD_ADDRESS": "192.0.2.1, ::1"}, ("127.0.0.1", "192.0.2.1", "::1")),
        ({"ERL_EPMD_ADDRESS": "192.0.2.1,127.0.0.1"}, ("127.0.0.1", "192.0.2.1")),
        ({"ERL_EPMD_ADDRESS": "0.0.0.0"}, ("0.0.0.0",)),
        ({"ERL_EPMD_ADDRESS": "::1,192.0.2.1,::"}, ("127.0.0.1", "192.0.2.1", "::")),
    ],
)
def test_addresses_from_the_environment(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert listen_addresses(environ) == expected


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        (None, ("127.0.0.1", "192.0.2.1")),
        ("192.0.2.1", ("127.0.0.1", "192.0.2.1")),
        ("192.0.2.2", ("127.0.0.1", "192.0.2.1", "192.0.2.2")),
        ("0.0.0.0", ("0.0.0.0",)),
    ],
)
def test_addresses_with_that_of_a_node(also: str | None, expected: tuple[str, ...]) -> None:
    assert listen_addresses({"ERL_EPMD_ADDRESS": "192.0.2.1"}, also=also) == expected


async def test_an_epmd_at_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERL_EPMD_ADDRESS", "0.0.0.0")
    with EpmdServer(port=0) as running:
        assert running.addresses == [running.address] == [("0.0.0.0", running.address[1])]
        for host in ("127.0.0.1", "127.0.0.2"):
            assert await names(host, port=running.address[1]) == []


# The client and a server: what holds for both the real epmd and ours


@pytest.fixture(params=["real", "embedded"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of an epmd of the test's own."""
    if request.param == "real":
        with RealEpmd() as real:
            yield real.port
    else:
        with EpmdServer("127.0.0.1", 0) as embedded:
            yield embedded.address[1]


@pytest.fixture
def embedded() -> Iterator[EpmdServer]:
    with EpmdServer("127.0.0.1", 0) as running:
        yield running


@contextlib.asynccontextmanager
async def registered(port: int, node: NodeInfo) -> AsyncIterator[epmd_package.Registration]:
    registration = await register(node, port=port)
    try:
        yield registration
    finally:
        registration.close()
        await registration.wait_lost()


@pytest.mark.both_loops
@pytest.mark.interop
class TestClientAndServer:
    async def test_registered_until_closed(self, port: int) -> None:
        node = NodeInfo("py", 40123, NodeType.NORMAL, extra=b"more")
        assert await lookup("py", port=port) is None
        async with registered(port, node) as registration:
            assert registration.node == node
            assert registration.creation > 3
            assert not registration.lost
            assert await lookup("py", port=port) == node
            assert await names(port=port) == [("py", 40123)]
        assert registration.lost
        registration.close()
        await until_gone("py", port)
        assert await names(port=port) == []

    async def test_a_name_that_is_taken(self, port: int) -> None:
        async with registered(port, NodeInfo("py", 1)):
            with pytest.raises(NameTakenError, match="'py' is taken by another node") as caught:
                await register(NodeInfo("py", 2), port=port)
            assert f"127.0.0.1:{port}" in str(caught.value)
            found = await lookup("py", port=port)
        assert found is not None
        assert found.port == 1

    async def test_each_registration_of_a_name_has_a_creation_of_its_own(self, port: int) -> None:
        creations = []
        for _ in range(5):
            async with registered(port, NodeInfo("py", 1)) as registration:
                creations.append(registration.creation)
        assert len(set(creations)) == 5

    async def test_a_node_of_before_otp_23_gets_a_small_creation(self, port: int) -> None:
        creations = []
        for _ in range(2):
            async with registered(port, NodeInfo("old", 1, highest_version=5)) as registration:
                creations.append(registration.creation)
        assert set(creations) <= {1, 2, 3}
        assert len(set(creations)) == 2

    async def test_long_names_and_names_beyond_ascii(self, port: int) -> None:
        # Longer ones are for nobody: a full name has 255 characters, its host included. The epmd
        # of OTP registers a name of 255 and then does not answer who looks it up.
        for name in ("n" * 254, "ü" * 127):
            async with registered(port, NodeInfo(name, 1)):
                assert await names(port=port) == [(name, 1)]
                assert await lookup(name, port=port) == NodeInfo(name, 1)
            await until_gone(name, port)

    async def test_many_nodes(self, port: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            expected = [(f"n{i}", 1000 + i) for i in range(100)]
            for name, at in expected:
                await stack.enter_async_context(registered(port, NodeInfo(name, at)))
            assert sorted(await names(port=port)) == sorted(expected)

    async def test_the_epmd_tool_lists_the_nodes(self, port: int) -> None:
        async with registered(port, NodeInfo("py", 40123)):
            listed = await epmd_tool(port, "-names")
        assert f"epmd: up and running on port {port}" in listed
        assert "name py at port 40123" in listed

    async def test_requests_in_single_bytes(self, port: int) -> None:
        async with Proxy(port) as proxy:
            proxy.to_target.chop = proxy.to_client.chop = 1
            async with registered(proxy.port, NodeInfo("py", 40123)):
                assert await lookup("py", port=proxy.port) == NodeInfo("py", 40123)
                assert await names(port=proxy.port) == [("py", 40123)]

    async def test_an_unknown_request_is_closed_without_a_word(self, port: int) -> None:
        assert await exchange(port, from_hex("0001 05")) == b""

    async def test_kill_and_stop_do_not_end_it_while_nodes_are_registered(self, port: int) -> None:
        async with registered(port, NodeInfo("py", 1)):
            for request in ("0001 6b", "0003 73 7079"):
                await exchange(port, from_hex(request))
                assert await lookup("py", port=port) is not None


async def until_gone(name: str, port: int) -> None:
    """Return when epmd has noticed the end of a registration."""
    deadline = time.monotonic() + 10
    while await lookup(name, port=port) is not None:
        assert time.monotonic() < deadline, f"{name} is still registered"


async def epmd_tool(port: int, *arguments: str) -> str:
    """Run the epmd of OTP as a client; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        executable("epmd"),
        *("-port", str(port), *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode()


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, and return what comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


# The client alone


@contextlib.asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """A server that reads a request, sends these bytes, and closes; None: is silent."""
    finish = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        await reader.readexactly(size)
        if answer is None:
            await finish.wait()
        else:
            writer.write(answer)
        writer.close()

    tasks: list[asyncio.Task[None]] = []
    listening = await asyncio.start_server(
        lambda r, w: tasks.append(asyncio.create_task(serve(r, w))), "127.0.0.1", 0
    )
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        finish.set()
        listening.close()
        await asyncio.gather(*tasks)
        await listening.wait_closed()


Question = Callable[..., Any]
ASKS: list[Question] = [
    lambda **options: register(NodeInfo("py", 1), **options),
    lambda **options: lookup("py", **options),
    names,
]
each_question = pytest.mark.parametrize("ask", ASKS, ids=["register", "lookup", "names"])


@pytest.mark.both_loops
class TestClient:
    @each_question
    async def test_nobody_there(self, ask: Question) -> None:
        port = free_port()
        with pytest.raises(EpmdUnreachableError) as caught:
            await ask(port=port)
        text = str(caught.value)
        assert f"no epmd at 127.0.0.1:{port}" in text
        assert "(Connection refused)" in text
        assert "`epmd -daemon`" in text
        assert "`--epmd embedded`" in text

    @each_question
    async def test_silence(self, ask: Question) -> None:
        async with answering(None) as port:
            with pytest.raises(EpmdTimeoutError, match=r"did not answer within 0\.1 s"):
                await ask(port=port, timeout=0.1)

    @each_question
    async def test_an_answer_that_never_ends_in_time(self, ask: Question) -> None:
        async with answering(b"\x76\x00") as port, Proxy(port) as proxy:
            proxy.to_client.stall()
            with pytest.raises(EpmdTimeoutError):
                await ask(port=proxy.port, timeout=0.1)

    @each_question
    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x76\x00\x01"])
    async def test_not_an_epmd(self, ask: Question, answer: bytes) -> None:
        async with answering(answer) as port:
            with pytest.raises(BadAnswerError, match=f"127.0.0.1:{port} is not an epmd") as caught:
                await ask(port=port)
        assert "ERL_EPMD_PORT" in str(caught.value)

    @pytest.mark.parametrize("ask", ASKS[1:], ids=["lookup", "names"])
    async def test_an_endless_answer(self, ask: Question) -> None:
        async with answering(b"w" * (messages.MAX_NAMES_ANSWER_BYTES + 1)) as port:
            with pytest.raises(BadAnswerError, match="sent more than"):
                await ask(port=port)

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "h" * 64])
    async def test_a_host_that_does_not_resolve(self, host: str) -> None:
        with pytest.raises(HostNotFoundError, match=f"the host '{host}' does not resolve"):
            await lookup("py", host, port=1)

    async def test_names_are_checked_before_anything_is_sent(self) -> None:
        with pytest.raises(ValueError, match="must not contain '@'"):
            await lookup("py@host", port=free_port())
        with pytest.raises(ValueError, match="at most 255 bytes"):
            await register(NodeInfo("n" * 256, 1), port=free_port())

    async def test_the_port_of_the_environment_counts(
        self, embedded: EpmdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ERL_EPMD_PORT", str(embedded.address[1]))
        assert await names() == []

    async def test_a_lost_registration_is_noticed(self) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            registration = await register(NodeInfo("py", 1), port=running.address[1])
            waiting = asyncio.ensure_future(registration.wait_lost())
            abandoned = asyncio.ensure_future(registration.wait_lost())
            await asyncio.sleep(0)
            abandoned.cancel()
            running.stop()
            await asyncio.wait_for(waiting, 10)
        assert registration.lost
        await registration.wait_lost()

    async def test_what_follows_the_answer_to_a_registration_is_ignored(self) -> None:
        async with answering(from_hex("76 00 00000009") + b"more") as port, Proxy(port) as proxy:
            proxy.to_client.chop = 6
            registration = await register(NodeInfo("py", 1), port=proxy.port)
            assert registration.creation == 9
            await proxy.to_client.wait_transferred(10)
            await registration.wait_lost()

    async def test_a_cancelled_registration_leaves_no_connection(self) -> None:
        with EpmdServer("127.0.0.1", 0) as running:
            async with Proxy(running.address[1]) as proxy:
                proxy.to_client.stall()
                task = asyncio.ensure_future(register(NodeInfo("py", 1), port=proxy.port))
                await until(lambda: running.statistics().names == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await until(lambda: running.statistics().names == 0)


# The server alone


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


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return when it holds; what is watched is in another thread or process, so look often."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        await asyncio.sleep(0.005)


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
