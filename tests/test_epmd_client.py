"""The client against a real epmd, against ours, and against what is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from snex_node.epmd import (
    BadAnswerError,
    EpmdServer,
    EpmdTimeoutError,
    EpmdUnreachableError,
    HostNotFoundError,
    NameTakenError,
    NodeInfo,
    NodeType,
    lookup,
    messages,
    names,
    register,
)
from tests.support.epmd import RealEpmd, epmd_tool, exchange, from_hex, registered, until_gone
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.waiting import until


@pytest.fixture(params=["real", "embedded"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of an epmd of the test's own."""
    if request.param == "real":
        with RealEpmd() as real:
            yield real.port
    else:
        with EpmdServer("127.0.0.1", 0) as embedded:
            yield embedded.address[1]


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
