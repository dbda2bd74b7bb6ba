"""Calls of ours: within the node, and to another one played by a script."""

from __future__ import annotations

import asyncio

import pytest

from snex_node import (
    Atom,
    CallTimeoutError,
    DecodeError,
    Decoder,
    From,
    GenServer,
    Node,
    NodeStartError,
    Process,
    ProcessExitError,
    RemoteError,
    Term,
)
from snex_node.client import Client
from snex_node.wire import etf
from snex_node.wire.control import (
    AliasSend,
    Exit2,
    PayloadMonitorPExit,
    SendSender,
    SpawnReply,
    SpawnRequest,
)
from tests.support.peer import ScriptedPeer
from tests.support.scripted import PEER, encode, read, settled
from tests.support.tied import watchers_of
from tests.support.waiting import until

BOOM = Atom("boom")


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
        message = await process.receive(timeout=1)
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
        message = await process.receive(timeout=1)
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


class TestRpcResults:
    async def result(self, node: Node, peer: ScriptedPeer, reason: bytes | None) -> object:
        """What `node.rpc` makes of an exit reason; None: of a result in the agreed form."""
        calling = asyncio.ensure_future(node.rpc(PEER, "m", "f", [1]))
        if node.remote(PEER).group_leader is None:
            await asyncio.sleep(0)
        request, args = await read(peer)
        assert isinstance(request, SpawnRequest)
        if args[1:] == ["erlang", "whereis", ["user"]]:
            await peer.send(SpawnReply(request.id, request.from_, 0, Atom("notsup")))
            request, args = await read(peer)
            assert isinstance(request, SpawnRequest)
        result, module, function, arguments = args
        assert (module, function, arguments) == ("m", "f", [1])
        pid = peer.pid(7)
        await peer.send(SpawnReply(request.id, request.from_, 2, pid))
        if reason is None:
            reason = encode((result, Atom("return"), 42))
        else:
            reason = reason.replace(b"RESULT", result.external)
        await peer.send(PayloadMonitorPExit(pid, request.from_, request.id), reason)
        return await calling

    async def test_returned(self, node: Node, peer: ScriptedPeer) -> None:
        assert await self.result(node, peer, None) == 42

    @pytest.mark.parametrize(
        ("reason", "kind", "value"),
        [
            (Atom("boom"), "exit", "boom"),
            ((1, 2, 3), "exit", (1, 2, 3)),
            ((Term(b"RESULT"), Atom("throw"), 1), "throw", 1),
            ((Term(b"RESULT"), Atom("exit"), 1), "exit", 1),
            ((Term(b"RESULT"), Atom("error"), Atom("bad"), [1]), "error", "bad"),
            ((Term(b"RESULT"), Atom("error"), (Atom("erpc"), Atom("badarg"))), "erpc", "badarg"),
        ],
    )
    async def test_not_returned(
        self, node: Node, peer: ScriptedPeer, reason: object, kind: str, value: object
    ) -> None:
        with pytest.raises(RemoteError) as caught:
            await self.result(node, peer, encode(reason))
        assert (caught.value.kind, caught.value.reason) == (kind, value)

    async def test_undecodable(self, node: Node, peer: ScriptedPeer) -> None:
        with pytest.raises(etf.DecodeError):
            await self.result(node, peer, b"\xff")


class TestOtherNodes:
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

    async def test_an_answer_that_cannot_be_decoded(self, node: Node, peer: ScriptedPeer) -> None:
        calling = asyncio.ensure_future(node.call(("server", PEER), 1))
        await peer.read()
        message = await peer.read()
        (_, (_, tag), _), _ = etf.Decoder().decode(message.data, message.offset)
        await peer.send(AliasSend(peer.pid(), tag.tail), encode((tag, 1))[:-1])
        with pytest.raises(DecodeError):
            await calling


async def group_leader_asked(peer: ScriptedPeer, answer: object = None) -> None:
    """Answer the question for the process that is to print what is started there."""
    request, args = await read(peer)
    assert isinstance(request, SpawnRequest)
    assert (request.mfa, args[1:]) == (
        ("erpc", "execute_call", 4),
        ["erlang", "whereis", ["user"]],
    )
    await peer.send(SpawnReply(request.id, request.from_, SpawnReply.MONITOR, peer.pid(50)))
    reason = (args[0], Atom("return"), answer or Atom("undefined"))
    await peer.send(PayloadMonitorPExit(peer.pid(50), request.from_, request.id), encode(reason))


class TestSpawning:
    async def test_with_a_user_there(self, node: Node, peer: ScriptedPeer) -> None:
        """What it prints goes to that node, and to be asked for once is enough."""
        user = peer.pid(60)
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", [1, 2]))
        await group_leader_asked(peer, user)
        for _ in range(2):
            request, args = await read(peer)
            assert isinstance(request, SpawnRequest)
            assert (request.mfa, request.options) == (("m", "f", 2), [])
            assert (request.group_leader, args) == (user, [1, 2])
            await peer.send(SpawnReply(request.id, request.from_, 0, peer.pid(7)))
            assert await spawning == peer.pid(7)
            spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", [1, 2]))
        node.rpc_cast(PEER, "m", "g")
        seen = [(await read(peer))[0], (await read(peer))[0]]
        leaders = [r.group_leader for r in seen if isinstance(r, SpawnRequest)]
        assert leaders == [user, user]
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning

    async def test_refused(self, node: Node, peer: ScriptedPeer) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f"))
        await group_leader_asked(peer)
        request, _ = await read(peer)
        assert isinstance(request, SpawnRequest)
        assert request.group_leader == node.router.speaker.pid
        await peer.send(SpawnReply(request.id, request.from_, 0, Atom("system_limit")))
        with pytest.raises(RemoteError) as caught:
            await spawning
        assert (caught.value.kind, caught.value.reason) == ("erpc", "system_limit")

    async def test_the_connection_goes(self, node: Node, peer: ScriptedPeer) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f"))
        await group_leader_asked(peer)
        await read(peer)
        peer.close()
        with pytest.raises(ProcessExitError, match="the connection to") as caught:
            await spawning
        assert caught.value.reason == "noconnection"

    async def test_who_may_be_tied(self, node: Node, ours: Process) -> None:
        with pytest.raises(ValueError, match="one process can link to and monitor"):
            await node.spawn(PEER, "m", "f", link=ours, monitor=Process(node))
        with pytest.raises(ValueError, match="is this node: call the function itself"):
            await node.spawn(node.name, "m", "f")


class TestCallsOut:
    async def test_the_connection_goes(self, node: Node, peer: ScriptedPeer) -> None:
        calls = [
            asyncio.ensure_future(node.call(("server", PEER), 1)),
            asyncio.ensure_future(node.rpc(PEER, "m", "f")),
        ]
        await read(peer)
        await read(peer)
        await group_leader_asked(peer)
        request, _ = await read(peer)
        assert isinstance(request, SpawnRequest)
        await peer.send(SpawnReply(request.id, request.from_, SpawnReply.MONITOR, peer.pid(7)))
        await settled(peer)
        peer.close()
        for call in calls:
            with pytest.raises(ProcessExitError) as caught:
                await call
            assert caught.value.reason == "noconnection"
        client = node.router.speaker
        assert isinstance(client, Client)
        assert client.waiting == 0

    async def test_the_node_stops(self, node: Node, peer: ScriptedPeer) -> None:
        call = asyncio.ensure_future(node.call(("server", PEER), 1))
        await read(peer)
        client = node.router.speaker
        assert isinstance(client, Client)
        assert client.waiting == 1
        peer.close()
        await node.stop()
        with pytest.raises(ProcessExitError):
            await call
        with pytest.raises(NodeStartError):
            await node.call(("server", PEER), 1)

    async def test_an_answer_to_the_pid(self, node: Node, peer: ScriptedPeer) -> None:
        """Servers older than aliases answer there."""
        call = asyncio.ensure_future(node.call(("server", PEER), 1))
        await read(peer)
        _, (_, (pid, tag), request) = await read(peer)
        assert request == 1
        await peer.send(SendSender(peer.pid(), pid), encode((tag, "answer")))
        assert await call == b"answer"
        await peer.send(SendSender(peer.pid(), pid), encode(([], "no tag")))
        assert await settled(peer) != []

    async def test_exit_signals_do_not_end_it(self, node: Node, peer: ScriptedPeer) -> None:
        us = node.router.speaker.pid
        await peer.send(Exit2(peer.pid(), us, Atom("kill")))
        assert await settled(peer) == []
        assert node.router.speaker.alive

    @pytest.mark.parametrize(
        ("request_", "answer"),
        [
            ((Atom("put_chars"), Atom("unicode"), b"text"), Atom("ok")),
            ((Atom("get_line"), Atom("unicode"), b"> "), (Atom("error"), Atom("enotsup"))),
            (Atom("getopts"), (Atom("error"), Atom("enotsup"))),
        ],
    )
    async def test_what_prints_to_us_does_not_wait(
        self, node: Node, peer: ScriptedPeer, request_: object, answer: object
    ) -> None:
        us, ref = node.router.speaker.pid, peer.make_ref()
        message = (Atom("io_request"), peer.pid(), ref, request_)
        await peer.send(SendSender(peer.pid(), us), encode(message))
        assert (await read(peer))[1] == (Atom("io_reply"), ref, answer)
        await peer.send(SendSender(peer.pid(), us), encode((Atom("io_request"), 1, 2, 3)))
        assert await settled(peer) == []

    async def test_the_line_of_what_it_sends(self, node: Node) -> None:
        """One task or thread each: a large message of one holds up no other."""
        client = node.router.speaker
        assert client.line is asyncio.current_task()
        assert await asyncio.to_thread(lambda: client.line) not in (client.pid, client.line)
        seen: list[object] = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(client.line))
        await asyncio.sleep(0)
        assert seen == [client.pid]
