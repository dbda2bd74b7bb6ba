"""A node by itself, and calls within it; what it needs others for is in tests/interop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from snex_node import (
    Atom,
    CallTimeoutError,
    ConnectError,
    DecodeError,
    Decoder,
    EncodeError,
    Encoder,
    From,
    GenServer,
    Node,
    NodeStartError,
    Process,
    ProcessExitError,
)
from snex_node.cluster import cluster as clusters
from snex_node.processes.process import BaseProcess
from snex_node.wire import etf
from snex_node.wire.control import AliasSend, PayloadMonitorPExit, SpawnReply, SpawnRequest
from snex_node.wire.handshake import Identity
from tests.support.peer import ScriptedPeer
from tests.support.ports import free_port
from tests.support.tied import watchers_of
from tests.support.waiting import until

encode = etf.Encoder().encode
PEER = "peer@127.0.0.1"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("py@127.0.0.1", cookie="secret", epmd="none") as node:
        yield node


@pytest.fixture
async def peer(node: Node) -> AsyncIterator[ScriptedPeer]:
    assert node.port is not None
    identity = Identity(PEER, 77)
    async with await ScriptedPeer.connect(identity, "secret", node.name, node.port) as peer:
        await until(lambda: node.nodes == [PEER], pause=0)
        yield peer


class Server(GenServer):
    """Answers calls with what it was asked; `wait` never."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, name="server")
        self.withdrawn: list[bytes] = []
        self.callers: list[From] = []

    async def handle_call(self, request: object, caller: From) -> object:
        self.callers.append(caller)
        if request == "wait":
            await asyncio.Event().wait()
        return (Atom("ok"), request)

    def demonitored(self, ref: bytes) -> None:
        self.withdrawn.append(ref)


class TestLife:
    def test_names(self) -> None:
        assert Node("py@host", cookie="x").name == Atom("py@host")
        assert repr(Node("py@host", cookie="x")) == "<Node py@host>"
        for bad in ("py", "@host", "py@", "a@b@c", "ü@host", "x" * 251 + "@host"):
            with pytest.raises(NodeStartError, match="is no node name"):
                Node(bad, cookie="x")

    async def test_a_creation_without_epmd(self, node: Node) -> None:
        assert 15 < node.creation < 2**32

    async def test_nothing_before_its_start(self) -> None:
        node = Node("py@127.0.0.1", cookie="x")
        with pytest.raises(NodeStartError, match="is not running: start it first"):
            Process(node)
        with pytest.raises(NodeStartError):
            node.keep_connected("a@b")
        with pytest.raises(NodeStartError):
            node.send(("name", PEER), 1)
        with pytest.raises(NodeStartError):
            await node.call(("name", PEER), 1)
        with pytest.raises(NodeStartError):
            await node.rpc(PEER, "m", "f")
        await node.stop()

    async def test_nothing_after_its_end(self, node: Node) -> None:
        await node.stop()
        with pytest.raises(NodeStartError):
            node.send(("name", PEER), 1)
        assert not node.remote(PEER)._queue  # nor when it is started again

    async def test_a_failed_start_leaves_nothing(self) -> None:
        node = Node("py@127.0.0.1", cookie="x", epmd="external", epmd_port=free_port())
        for _ in range(2):
            with pytest.raises(NodeStartError, match="no epmd at"):
                await node.start()
            assert node.port is None

    async def test_a_host_that_cannot_be_listened_on(self) -> None:
        node = Node("py@127.0.0.1", cookie="x", epmd="none", listen=("no-such-host.invalid", 0))
        with pytest.raises(NodeStartError, match=r"cannot listen on no-such-host\.invalid:0: "):
            await node.start()

    async def test_stopped_twice_at_once(self, node: Node) -> None:
        await asyncio.gather(node.stop(), node.stop())
        assert node.port is None


class TestCallsWithin:
    async def test_values(self, node: Node) -> None:
        server = Server(node)
        for to in ("server", server.pid, ("server", node.name)):
            # Within a node a request is handed on as it is, an answer is encoded.
            assert await node.call(to, [1, "two"]) == ("ok", [1, b"two"])
        assert node.router.expected == 0
        assert not watchers_of(server)

    async def test_by_hand(self, node: Node) -> None:
        """Who answers to the pid instead of the alias is heard as well."""
        process = Process(node, name="plain")
        calling = asyncio.ensure_future(node.call("plain", 1))
        message = await process.next(timeout=1)
        assert isinstance(message, tuple)
        _, (pid, tag), _ = message
        for junk in (1, (1, 2), (1, 2, 3)):
            node.send(pid, junk)
        node.reply(From(pid, encode(tag), None), 2)
        assert await calling == 2

    async def test_who_is_not_there(self, node: Node) -> None:
        with pytest.raises(ProcessExitError, match='"nobody" has ended: :noproc'):
            await node.call("nobody", 1)

    async def test_who_ends(self, node: Node) -> None:
        server = Server(node)
        calling = asyncio.ensure_future(node.call("server", Atom("wait")))
        await until(lambda: server.callers)
        server.exit(Atom("over"))
        with pytest.raises(ProcessExitError) as caught:
            await calling
        assert caught.value.reason == "over"

    async def test_timeout(self, node: Node) -> None:
        server = Server(node)
        with pytest.raises(CallTimeoutError, match=r'"server" did not answer within 0\.01 s'):
            await node.call("server", Atom("wait"), timeout=0.01)
        assert server.withdrawn == [server.callers[0].ref]
        node.reply(server.callers[0], 1)  # nobody's
        await asyncio.sleep(0)

    async def test_cancelled(self, node: Node) -> None:
        server = Server(node)
        calling = asyncio.ensure_future(node.call("server", Atom("wait"), timeout=None))
        await until(lambda: server.callers)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert server.withdrawn == [server.callers[0].ref]

    async def test_an_answer_that_is_no_answer(self, node: Node) -> None:
        process = Process(node, name="plain")
        calling = asyncio.ensure_future(node.call("plain", 1))
        message = await process.next(timeout=1)
        assert isinstance(message, tuple)
        alias = message[1][1].tail
        for junk in (1, (1, 2, 3)):
            node.send(alias, junk)
        await asyncio.sleep(0)
        assert not calling.done()
        node.send(alias, (alias, 42))
        assert await calling == 42
        node.send(alias, (alias, 43))
        await asyncio.sleep(0)

    async def test_pings(self, node: Node) -> None:
        assert await node.ping(node.name) is True
        await node.connect(node.name)
        assert node.nodes == []


class TestSending:
    async def test_what_cannot_be_sent(self, node: Node) -> None:
        with pytest.raises(EncodeError):
            node.send(("name", PEER), object())
        with pytest.raises(EncodeError):
            node.cast(("name", PEER), object())

    async def test_to_nobody_here(self, node: Node) -> None:
        for to in ("nobody", ("nobody", node.name), node.router.speaker.pid, node.make_ref()):
            node.send(to, 1)
        await asyncio.sleep(0)

    async def test_within_a_node_objects_stay_as_they_are(self, node: Node) -> None:
        process = Process(node)
        sent = object()
        node.send(process.pid, sent)
        assert await process.next() is sent

    async def test_from_threads(self, node: Node) -> None:
        process = Process(node, name="here")
        threads = [
            threading.Thread(target=node.send, args=("here", number)) for number in range(20)
        ]
        for thread in threads:
            thread.start()
        numbers = {await process.next(timeout=5) for _ in threads}
        for thread in threads:
            thread.join()
        assert numbers == set(range(20))

    async def test_the_order_of_what_the_node_sends(self, node: Node) -> None:
        """Its own messages keep their order for each task, and for each thread."""
        client = node.router.speaker
        task = asyncio.current_task()
        assert client.line is task
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(client.line))
        thread.start()
        thread.join()
        assert seen == [thread.ident]
        asyncio.get_running_loop().call_soon(lambda: seen.append(client.line))
        await asyncio.sleep(0)
        assert seen[1] == client.pid  # a callback is of no task

    async def test_references_of_our_own_processes(self, node: Node) -> None:
        process = Process(node)
        assert process.line == process.pid


class TestOtherNodes:
    async def test_remotes(self, node: Node, peer: ScriptedPeer) -> None:
        assert [remote.name for remote in node.remotes] == [PEER]
        assert node.remote(PEER) is node.remotes[0]
        assert node.nodes == [PEER]

    async def test_unused_ones_are_forgotten(
        self, node: Node, peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clusters, "MAX_REMOTES", 10)
        for number in range(100):
            node.remote(f"a{number}@127.0.0.1")
        assert len(node.remotes) <= 10
        assert node.nodes == [PEER]

    async def test_keep_connected_complains_once(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        attempts = 0

        async def dial(remote: object) -> None:
            nonlocal attempts
            attempts += 1
            raise ConnectError(PEER, "unknown", "no such node yet")

        monkeypatch.setattr(node.cluster, "dial", dial)
        monkeypatch.setattr(clusters, "RETRY_PAUSE", 0.001)
        node.keep_connected(PEER)
        await until(lambda: attempts >= 3)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == ["no such node yet (trying again)"]

    async def test_rpc_cast(self, node: Node, peer: ScriptedPeer) -> None:
        node.rpc_cast(PEER, "m", "f", [1])
        await asyncio.to_thread(node.rpc_cast, PEER, "m", "g")
        for function, args in (("f", [1]), ("g", [])):
            message = await peer.read()
            request = message.control
            assert isinstance(request, SpawnRequest)
            assert (request.mfa, request.options) == (("erpc", "execute_cast", 3), [])
            assert request.group_leader == node.router.speaker.pid
            sent, _ = etf.Decoder().decode(message.data, message.offset)
            assert sent == ["m", function, args]
            await peer.send(SpawnReply(request.id, request.from_, 0, peer.pid()))
        with pytest.raises(ValueError, match="is this node"):
            node.rpc_cast(node.name, "m", "f")

    async def test_a_decoder_for_one_call(self, node: Node, peer: ScriptedPeer) -> None:
        decoder = Decoder(binary_as="str")
        calling = asyncio.ensure_future(node.rpc(PEER, "m", "f", decoder=decoder))
        for answer in ("where to print", "text"):
            message = await peer.read()
            request = message.control
            assert isinstance(request, SpawnRequest)
            args, _ = etf.Decoder().decode(message.data, message.offset)
            await peer.send(SpawnReply(request.id, request.from_, 2, peer.pid()))
            reason = encode((args[0], Atom("return"), answer))
            await peer.send(PayloadMonitorPExit(peer.pid(), request.from_, request.id), reason)
        assert await calling == "text"

    async def test_codecs_of_a_node(self) -> None:
        """What the node's own decoder and encoder do holds for messages and calls."""
        encoder = Encoder(default=str)
        decoder = Decoder(binary_as="str")
        async with Node(
            "py@127.0.0.1", cookie="x", epmd="none", encoder=encoder, decoder=decoder
        ) as node:
            Server(node)
            assert await node.call("server", {1: b"x"}) == ("ok", {1: "x"})

    async def test_an_answer_that_cannot_be_decoded(self, node: Node, peer: ScriptedPeer) -> None:
        calling = asyncio.ensure_future(node.call(("server", PEER), 1))
        await peer.read()
        message = await peer.read()
        (_, (_, tag), _), _ = etf.Decoder().decode(message.data, message.offset)
        await peer.send(AliasSend(peer.pid(), tag.tail), encode((tag, 1))[:-1])
        with pytest.raises(DecodeError):
            await calling

    async def test_exit_signals_of_the_node_itself(self, node: Node, peer: ScriptedPeer) -> None:
        node.exit_signal(peer.pid(), Atom("boom"))
        message = await peer.read()
        assert type(message.control).__name__ == "PayloadExit2"


class TestNodeEvents:
    async def test_one_that_fails_keeps_nobody_from_them(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(Process):
            def receive(self, message: object) -> None:
                raise LookupError("a bug of the user's")

        node.monitor_nodes(Failing(node))
        ended = Process(node)
        node.monitor_nodes(ended)
        ended.exit()
        other = Process(node)
        node.monitor_nodes(other)
        node.monitor_nodes(other)  # once is enough
        assert node.port is not None
        identity = Identity(PEER, 77)
        async with await ScriptedPeer.connect(identity, "secret", node.name, node.port):
            assert await other.next(timeout=5) == ("nodeup", PEER)
        assert await other.next(timeout=5) == ("nodedown", PEER)
        assert len(other) == len(ended) == 0
        assert len([r for r in caplog.records if r.exc_info]) == 2
        node.monitor_nodes(other, False)
        node.monitor_nodes(other, False)


async def test_what_a_process_sends_at_the_end_of_its_node_is_dropped(node: Node) -> None:
    class Last(BaseProcess):
        def exited(self, reason: object) -> None:
            self.node.send(("anybody", "nobody@127.0.0.1"), "farewell")

    Last(node)
    remote = node.remote("nobody@127.0.0.1")
    await node.stop()
    await until(lambda: remote.idle)  # and the event loop has nothing to report
