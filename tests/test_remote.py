"""One other node, played by a script: what our side sends, in what order, and what it makes of
signals that no BEAM would send, or not at that moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import (
    Atom,
    ConnectError,
    Node,
    NodeError,
    Pid,
    Process,
    ProcessExitError,
    Reference,
    RemoteError,
    Term,
)
from snex_node.cluster import remote
from snex_node.processes.reasons import Undecodable, encode_reason
from snex_node.wire import control, etf
from snex_node.wire.control import (
    AliasSend,
    AltactSigSend,
    ControlMessage,
    DemonitorP,
    Exit,
    Exit2,
    Link,
    MonitorP,
    MonitorPExit,
    PayloadExit,
    PayloadExit2,
    PayloadMonitorPExit,
    RegSend,
    Send,
    SendSender,
    SpawnReply,
    SpawnRequest,
    Unlink,
    UnlinkId,
    UnlinkIdAck,
)
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.gen import From
from snex_node.wire.handshake import Identity
from tests.support.peer import ScriptedPeer
from tests.support.tied import links_of
from tests.support.waiting import until

encode = etf.Encoder().encode
PEER = "peer@127.0.0.1"
BOOM = Atom("boom")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("py@127.0.0.1", cookie="secret", epmd="none") as node:
        yield node


async def connect(node: Node, flags: Flag = CLAIMED, name: str = PEER) -> ScriptedPeer:
    assert node.port is not None
    peer = await ScriptedPeer.connect(Identity(name, 77, flags), "secret", node.name, node.port)
    # Our side of the handshake ends a moment after theirs.
    await until(lambda: name in node.nodes, pause=0)
    return peer


@pytest.fixture
async def peer(node: Node) -> AsyncIterator[ScriptedPeer]:
    async with await connect(node) as peer:
        yield peer


@pytest.fixture
async def ours(node: Node) -> Process:
    process = Process(node, name="ours")
    process.trap_exit = True
    return process


async def read(peer: ScriptedPeer) -> tuple[ControlMessage, Any]:
    message = await peer.read()
    if message.offset == len(message.data):
        return message.control, None
    return message.control, etf.Decoder().decode(message.data, message.offset)[0]


async def settled(peer: ScriptedPeer) -> list[tuple[ControlMessage, Any]]:
    """Return what has come when all that was sent before has been handled."""
    ref = peer.make_ref()
    ping = (Atom("$gen_call"), (peer.pid(99), ref), (Atom("is_auth"), Atom(peer.name)))
    await peer.send(RegSend(peer.pid(99), Atom("net_kernel")), encode(ping))
    seen: list[tuple[ControlMessage, Any]] = []
    while True:
        message = await read(peer)
        if message[1] == (ref, "yes"):
            return seen
        seen.append(message)


class TestLinks:
    async def test_a_link_that_crosses_our_unlink(self, peer: ScriptedPeer, ours: Process) -> None:
        """They link before they have seen our unlink: it must not bring the link back."""
        theirs = peer.pid()
        ours.link(theirs)
        ours.unlink(theirs)
        assert (await read(peer))[0] == Link(ours.pid, theirs)
        unlink, _ = await read(peer)
        assert isinstance(unlink, UnlinkId)
        await peer.send(Link(theirs, ours.pid))
        await peer.send(PayloadExit(theirs, ours.pid), encode(BOOM))
        assert await settled(peer) == []
        assert len(ours) == 0
        # The exit has ended the pair: what is acknowledged later is nobody's.
        await peer.send(UnlinkIdAck(unlink.id, theirs, ours.pid))
        await settled(peer)
        assert not links_of(ours)
        assert ours.node.signals.ties.count(PEER) == 0

    async def test_linking_again_clears_our_unlink(self, peer: ScriptedPeer, ours: Process) -> None:
        theirs = peer.pid()
        ours.link(theirs)
        ours.unlink(theirs)
        ours.link(theirs)
        seen = [(await read(peer))[0] for _ in range(3)]
        assert isinstance(seen[1], UnlinkId)
        assert seen[0] == seen[2] == Link(ours.pid, theirs)
        # The acknowledgement of the old unlink does not touch the new link.
        await peer.send(UnlinkIdAck(seen[1].id, theirs, ours.pid))
        await peer.send(PayloadExit(theirs, ours.pid), encode(BOOM))
        assert await ours.next(timeout=5) == ("EXIT", theirs, "boom")

    async def test_only_the_last_acknowledgement_counts(
        self, peer: ScriptedPeer, ours: Process
    ) -> None:
        theirs = peer.pid()
        ids = []
        for _ in range(2):
            ours.link(theirs)
            ours.unlink(theirs)
            await read(peer)
            unlink, _ = await read(peer)
            assert isinstance(unlink, UnlinkId)
            ids.append(unlink.id)
        assert ids[0] != ids[1]
        assert 0 not in ids
        await peer.send(UnlinkIdAck(ids[0], theirs, ours.pid))
        await settled(peer)
        assert links_of(ours) == {theirs: ids[1]}
        await peer.send(UnlinkIdAck(ids[1], theirs, ours.pid))
        await settled(peer)
        assert links_of(ours) == {}

    async def test_an_unlink_is_acknowledged_whatever_there_is(
        self, peer: ScriptedPeer, ours: Process
    ) -> None:
        theirs, dead = peer.pid(), Process(ours.node)
        dead.exit()
        await peer.send(Link(theirs, ours.pid))
        for number, to in ((1, ours.pid), (2, ours.pid), (3, dead.pid)):
            await peer.send(UnlinkId(number, theirs, to))
            assert await read(peer) == (UnlinkIdAck(number, to, theirs), None)
        assert not links_of(ours)
        ours.exit(BOOM)
        assert await settled(peer) == []

    async def test_their_unlink_does_not_end_ours(self, peer: ScriptedPeer, ours: Process) -> None:
        """Both unlink at once: each waits for its own acknowledgement."""
        theirs = peer.pid()
        ours.link(theirs)
        ours.unlink(theirs)
        await read(peer)
        await read(peer)
        await peer.send(UnlinkId(9, theirs, ours.pid))
        assert await read(peer) == (UnlinkIdAck(9, ours.pid, theirs), None)
        assert list((links_of(ours)).values()) == [1]

    async def test_the_old_unlink(self, peer: ScriptedPeer, ours: Process) -> None:
        theirs = peer.pid()
        await peer.send(Link(theirs, ours.pid))
        await peer.send(Unlink(theirs, ours.pid))
        assert await settled(peer) == []
        assert not links_of(ours)

    async def test_an_exit_without_a_link_does_nothing(
        self, peer: ScriptedPeer, ours: Process
    ) -> None:
        await peer.send(PayloadExit(peer.pid(), ours.pid), encode(BOOM))
        await peer.send(Exit(peer.pid(), ours.pid, BOOM))
        await settled(peer)
        assert len(ours) == 0

    async def test_the_old_exits(self, peer: ScriptedPeer, ours: Process) -> None:
        await peer.send(Link(peer.pid(), ours.pid))
        await peer.send(Exit(peer.pid(), ours.pid, BOOM))
        await peer.send(Exit2(peer.pid(), ours.pid, BOOM))
        for _ in range(2):
            assert await ours.next(timeout=5) == ("EXIT", peer.pid(), "boom")

    async def test_linking_twice_ends_once(self, peer: ScriptedPeer, ours: Process) -> None:
        for _ in range(2):
            await peer.send(Link(peer.pid(), ours.pid))
        await settled(peer)
        ours.exit(BOOM)
        assert await settled(peer) == [(PayloadExit(ours.pid, peer.pid()), "boom")]

    async def test_an_unlink_on_its_way_sends_no_exit(
        self, peer: ScriptedPeer, ours: Process
    ) -> None:
        ours.link(peer.pid())
        ours.unlink(peer.pid())
        ours.exit(BOOM)
        seen = [type(message) for message, _ in await settled(peer)]
        assert seen == [Link, UnlinkId]


class TestMonitors:
    async def test_the_old_down(self, peer: ScriptedPeer, ours: Process) -> None:
        ref = ours.monitor(peer.pid())
        assert (await read(peer))[0] == MonitorP(ours.pid, peer.pid(), ref)
        await peer.send(MonitorPExit(peer.pid(), ours.pid, ref, BOOM))
        assert await ours.next(timeout=5) == ("DOWN", ref, "process", peer.pid(), "boom")

    async def test_down_comes_once(self, peer: ScriptedPeer, ours: Process) -> None:
        ref = ours.monitor(("theirs", PEER))
        for _ in range(2):
            down = PayloadMonitorPExit(Atom("theirs"), ours.pid, ref)
            await peer.send(down, encode(BOOM))
        await settled(peer)
        assert len(ours) == 1

    async def test_a_reason_that_cannot_be_decoded(self, peer: ScriptedPeer, ours: Process) -> None:
        ref = ours.monitor(peer.pid())
        down = PayloadMonitorPExit(peer.pid(), ours.pid, ref)
        await peer.send(down, b"\xff")
        message: Any = await ours.next(timeout=5)
        assert message[:2] == ("DOWN", ref)
        assert isinstance(message[4], Undecodable)
        assert "255" in repr(message[4])

    async def test_noproc_names_what_was_asked_for(self, peer: ScriptedPeer, node: Node) -> None:
        for target in (Atom("nobody"), Pid(node.name, 9999, 0, node.creation)):
            ref = peer.make_ref()
            await peer.send(MonitorP(peer.pid(), target, ref))
            down, reason = await read(peer)
            assert down == PayloadMonitorPExit(target, peer.pid(), ref)
            assert reason == "noproc"
        assert node.signals.ties.count(PEER) == 0

    async def test_demonitor_what_is_not_monitored(self, peer: ScriptedPeer, ours: Process) -> None:
        await peer.send(DemonitorP(peer.pid(), ours.pid, peer.make_ref()))
        assert await settled(peer) == []


class TestMessages:
    async def test_every_way_to_send(self, node: Node, peer: ScriptedPeer, ours: Process) -> None:
        me, you = peer.pid(), ours.pid
        messages: list[ControlMessage] = [
            Send(you),
            Send(you, (1, 2)),
            SendSender(me, you),
            SendSender(me, you, (1, 2)),
            RegSend(me, Atom("ours")),
            RegSend(me, Atom("ours"), (1, 2)),
            AltactSigSend(0, me, you),
            AltactSigSend(AltactSigSend.PRIORITY, me, you),
            AltactSigSend(AltactSigSend.NAME, me, Atom("ours")),
            AltactSigSend(AltactSigSend.TOKEN, me, you, (1, 2)),
        ]
        for number, message in enumerate(messages):
            await peer.send(message, encode(number))
        await settled(peer)
        assert [await ours.next(timeout=1) for _ in messages] == list(range(len(messages)))

    async def test_an_exit_in_the_new_form(self, peer: ScriptedPeer, ours: Process) -> None:
        exit_ = AltactSigSend(AltactSigSend.EXIT, peer.pid(), ours.pid)
        await peer.send(exit_, encode(BOOM))
        assert await ours.next(timeout=5) == ("EXIT", peer.pid(), "boom")
        other = Pid("other@127.0.0.1", 1, 0, 1)
        for wrong in (
            AltactSigSend(AltactSigSend.EXIT, other, ours.pid),
            AltactSigSend(AltactSigSend.EXIT | AltactSigSend.ALIAS, peer.pid(), peer.make_ref()),
            AltactSigSend(AltactSigSend.EXIT | AltactSigSend.NAME, peer.pid(), Atom("nobody")),
            AltactSigSend(AltactSigSend.NAME, peer.pid(), Atom("nobody")),
        ):
            await peer.send(wrong, encode(BOOM))
        await settled(peer)
        assert len(ours) == 0

    async def test_to_our_aliases(self, node: Node, peer: ScriptedPeer) -> None:
        """The answer of a call comes to its alias, in either form, or by hand to the pid."""
        for form in ("old", "new", "pid", "pid, long"):
            calling = asyncio.ensure_future(node.call(("server", PEER), 1))
            _, _ = await read(peer)  # the monitor
            request, payload = await read(peer)
            assert request == RegSend(node.router.speaker.pid, Atom("server"))
            _, (pid, tag), _ = payload
            answer = encode((tag, Atom(form)))
            if form == "old":
                await peer.send(AliasSend(peer.pid(), tag.tail), answer)
            elif form == "new":
                await peer.send(AltactSigSend(AltactSigSend.ALIAS, peer.pid(), tag.tail), answer)
            else:
                await peer.send(Send(pid), answer)
            assert await calling == form
            demonitor, _ = await read(peer)
            assert isinstance(demonitor, DemonitorP)
            assert demonitor.ref == tag.tail
            # Too late: nobody's.
            await peer.send(AliasSend(peer.pid(), tag.tail), answer)
            await peer.send(Send(pid), answer)
            assert await settled(peer) == []

    async def test_what_is_no_answer(self, node: Node, peer: ScriptedPeer) -> None:
        calling = asyncio.ensure_future(node.call(("server", PEER), 1))
        await read(peer)
        _, (_, (pid, tag), _) = await read(peer)
        for junk in (1, (1, 2, 3), [tag]):
            await peer.send(AliasSend(peer.pid(), tag.tail), encode(junk))
            await peer.send(Send(pid), encode(junk))
        await settled(peer)
        assert not calling.done()
        await peer.send(AliasSend(peer.pid(), tag.tail), encode((tag, 1)))
        assert await calling == 1

    async def test_our_answers(self, node: Node) -> None:
        """To the alias, in the form that the peer knows; to the pid where there is none."""
        alias = Reference(PEER, 77, (1, 2, 3))
        tag = b"l\x00\x00\x00\x01w\x05alias" + alias.external
        for flags, expected in (
            (CLAIMED, AltactSigSend),
            (CLAIMED & ~Flag.ALTACT_SIG, AliasSend),
        ):
            async with await connect(node, flags) as peer:
                node.reply(From(peer.pid(), tag, alias.external), 1)
                message, payload = await read(peer)
                assert type(message) is expected
                assert payload[1] == 1
                node.reply(From(peer.pid(), encode(Atom("tag")), None), 2)
                assert await read(peer) == (
                    SendSender(node.router.speaker.pid, peer.pid()),
                    ("tag", 2),
                )
            node.disconnect(PEER)


class TestOldPeers:
    async def test_forms_without_payloads(self, node: Node, ours: Process) -> None:
        flags = CLAIMED & ~(Flag.EXIT_PAYLOAD | Flag.SEND_SENDER)
        async with await connect(node, flags) as peer:
            watcher = peer.make_ref()
            await peer.send(MonitorP(peer.pid(), ours.pid, watcher))
            await peer.send(Link(peer.pid(), ours.pid))
            await settled(peer)
            ours.send(peer.pid(), 1)
            assert await read(peer) == (Send(peer.pid()), 1)
            ours.exit_signal(peer.pid(), (BOOM, 1))
            assert await read(peer) == (Exit2(ours.pid, peer.pid(), ("boom", 1)), None)
            ours.exit((BOOM, 2))
            seen = [(await read(peer))[0], (await read(peer))[0]]
            assert Exit(ours.pid, peer.pid(), ("boom", 2)) in seen
            assert MonitorPExit(ours.pid, peer.pid(), watcher, ("boom", 2)) in seen

    async def test_without_sender_only(self, node: Node, ours: Process) -> None:
        async with await connect(node, CLAIMED & ~Flag.SEND_SENDER) as peer:
            ours.send(peer.pid(), 1)
            assert await read(peer) == (Send(peer.pid()), 1)
            ours.exit_signal(peer.pid(), BOOM)
            assert await read(peer) == (PayloadExit2(ours.pid, peer.pid()), "boom")

    async def test_without_spawn(self, node: Node) -> None:
        async with await connect(node, CLAIMED & ~Flag.SPAWN):
            with pytest.raises(RemoteError) as caught:
                await node.rpc(PEER, "m", "f")
            assert (caught.value.kind, caught.value.reason) == ("erpc", "notsup")


async def no_user(peer: ScriptedPeer) -> None:
    """Answer the question where what is started there is to print."""
    request, _ = await read(peer)
    assert isinstance(request, SpawnRequest)
    assert request.mfa == ("erpc", "execute_call", 4)
    await peer.send(SpawnReply(request.id, request.from_, 0, Atom("notsup")))


class TestSpawning:
    async def test_its_end_comes_with_the_reply(
        self, node: Node, peer: ScriptedPeer, ours: Process
    ) -> None:
        """Reply, exit and DOWN in one read: the ties are there before any is handled."""
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", [1], link=ours, monitor=ours))
        await no_user(peer)
        request, args = await read(peer)
        assert isinstance(request, SpawnRequest)
        assert (request.mfa, args, request.options) == (("m", "f", 1), [1], ["link", "monitor"])
        assert request.group_leader == node.router.speaker.pid
        frame = peer.frame_writer.frame
        pid = peer.pid(5)
        await peer.send_raw(
            frame(control.encode(SpawnReply(request.id, ours.pid, 3, pid)))
            + frame(control.encode(PayloadExit(pid, ours.pid)), encode(BOOM))
            + frame(control.encode(PayloadMonitorPExit(pid, ours.pid, request.id)), encode(BOOM))
        )
        assert await spawning == pid
        assert await ours.next(timeout=5) == ("EXIT", pid, "boom")
        assert await ours.next(timeout=5) == ("DOWN", request.id, "process", pid, "boom")

    @pytest.mark.parametrize("ends", ["cancelled", "owner"])
    async def test_given_up(self, node: Node, peer: ScriptedPeer, ours: Process, ends: str) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", link=ours, monitor=ours))
        await no_user(peer)
        request, _ = await read(peer)
        assert isinstance(request, SpawnRequest)
        if ends == "cancelled":
            spawning.cancel()
            await asyncio.wait([spawning])
        else:
            ours.exit((BOOM, 1))
        pid = peer.pid(5)
        await peer.send(SpawnReply(request.id, ours.pid, 3, pid))
        reason = "abandoned" if ends == "cancelled" else ("boom", 1)
        assert await read(peer) == (PayloadExit(ours.pid, pid), reason)
        assert await read(peer) == (DemonitorP(ours.pid, pid, request.id), None)
        if ends == "owner":
            assert await spawning == pid
        assert not links_of(ours)
        assert node.signals.ties.count(PEER) == 0

    async def test_the_connection_goes_before_the_reply(
        self, node: Node, peer: ScriptedPeer, ours: Process
    ) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f", link=ours))
        await no_user(peer)
        await read(peer)
        peer.close()
        with pytest.raises(ProcessExitError) as caught:
            await spawning
        assert caught.value.reason == "noconnection"
        assert not links_of(ours)

    async def test_refused(self, node: Node, peer: ScriptedPeer) -> None:
        spawning = asyncio.ensure_future(node.spawn(PEER, "m", "f"))
        await no_user(peer)
        request, _ = await read(peer)
        assert isinstance(request, SpawnRequest)
        assert request.options == []
        await peer.send(SpawnReply(request.id, request.from_, 0, Atom("system_limit")))
        with pytest.raises(RemoteError) as caught:
            await spawning
        assert (caught.value.kind, caught.value.reason) == ("erpc", "system_limit")

    async def test_a_reply_that_nobody_asked_for(self, node: Node, peer: ScriptedPeer) -> None:
        await peer.send(SpawnReply(peer.make_ref(), node.router.speaker.pid, 0, peer.pid()))
        assert await settled(peer) == []


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


class TestWaitingForAConnection:
    async def test_too_much_waits(
        self, node: Node, ours: Process, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "MAX_QUEUED", 10_000)
        other = ("name", "other@127.0.0.1")
        for _ in range(7):  # 1,000 bytes of payload and 512 for the rest
            ours.send(other, bytes(1000))
        with pytest.raises(NodeError, match=r"wait for a connection to other@127\.0\.0\.1"):
            ours.send(other, bytes(1000))
        # The attempt fails: nothing waits any more.
        with pytest.raises(ConnectError):
            await node.connect("other@127.0.0.1")
        ours.send(other, bytes(1000))

    async def test_a_bug_in_an_attempt_is_told(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(of: object) -> None:
            raise LookupError("a bug")

        monkeypatch.setattr(node.cluster, "dial", broken)
        with pytest.raises(ConnectError, match="a bug") as caught:
            await node.connect("other@127.0.0.1")
        assert caught.value.reason == "internal"
        assert len(caplog.records) == 1

    async def test_what_was_sent_before_the_connection_is_undone_in_it(
        self, node: Node, ours: Process
    ) -> None:
        """Links and monitors made and ended while there is no connection yet reach the peer."""
        name = "zz@127.0.0.1"  # the greater name: our own attempt gives way to theirs
        theirs = Pid(name, 1, 0, 77)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            node.remote(name).address = silent.getsockname()
            ours.link(theirs)
            ref = ours.monitor(theirs)
            ours.demonitor(ref)
            ours.exit(BOOM)
            async with await connect(node, name=name) as peer:
                seen = [await read(peer) for _ in range(4)]
        assert seen == [
            (Link(ours.pid, theirs), None),
            (MonitorP(ours.pid, theirs, ref), None),
            (DemonitorP(ours.pid, theirs, ref), None),
            (PayloadExit(ours.pid, theirs), "boom"),
        ]

    async def test_what_hears_of_a_loss_may_fail(
        self, node: Node, peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that fails does not keep it from the others."""

        class Failing(Process):
            def receive(self, message: object) -> None:
                raise LookupError("a bug of the user's")

        failing, other = Failing(node), Process(node)
        for process in (failing, other):
            process.trap_exit = True
            process.link(peer.pid())
            process.monitor(peer.pid())
        node.monitor_nodes(failing)
        node.monitor_nodes(other)
        peer.close()
        seen: list[Any] = [await other.next(timeout=5) for _ in range(3)]
        assert {message[0] for message in seen} == {"EXIT", "DOWN", "nodedown"}
        assert len([r for r in caplog.records if r.exc_info]) == 3

    async def test_repr(self, node: Node, peer: ScriptedPeer) -> None:
        assert repr(node.remote(PEER)) == f"<RemoteNode {PEER} connected>"
        assert repr(node.remote("a@b")) == "<RemoteNode a@b>"
        assert node.remote("a@b").idle
        assert not node.remote(PEER).idle


class TestReasons:
    def test_what_has_no_external_form_goes_as_text(self) -> None:
        assert etf.Decoder().decode(encode_reason(etf.Encoder(), (1, {2})))[0] == b"(1, {2})"

    def test_its_repr_may_fail_or_be_long(self) -> None:
        class Bad:
            def __repr__(self) -> str:
                raise RuntimeError

        text = etf.Decoder().decode(encode_reason(etf.Encoder(), Bad()))[0]
        assert text.startswith(b"<tests.test_remote.TestReasons.test_its_repr_may_fail_or_be_long")
        text = etf.Decoder().decode(encode_reason(etf.Encoder(), {"x" * 10**6}))[0]
        assert len(text) < 1100
