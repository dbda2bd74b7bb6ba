"""Signals that come from another node, in what order ours go, and what no BEAM would send."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from snex_node import (
    Atom,
    Node,
    Pid,
    Process,
    Reference,
)
from snex_node.processes.process import BaseProcess
from snex_node.processes.reasons import Undecodable
from snex_node.wire.control import (
    AliasSend,
    AltactSigSend,
    ControlMessage,
    DemonitorP,
    Exit,
    Exit2,
    GroupLeader,
    Link,
    MonitorP,
    MonitorPExit,
    NodeLink,
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
from snex_node.wire.handshake import Identity
from tests.support.peer import ScriptedPeer
from tests.support.scripted import PEER, connect, encode, read, settled
from tests.support.tied import links_of
from tests.support.waiting import until

BOOM = Atom("boom")


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
        assert await ours.receive(timeout=5) == ("EXIT", theirs, "boom")

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
            assert await ours.receive(timeout=5) == ("EXIT", peer.pid(), "boom")

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
        assert await ours.receive(timeout=5) == ("DOWN", ref, "process", peer.pid(), "boom")

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
        message: Any = await ours.receive(timeout=5)
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
        assert [await ours.receive(timeout=1) for _ in messages] == list(range(len(messages)))

    async def test_an_exit_in_the_new_form(self, peer: ScriptedPeer, ours: Process) -> None:
        exit_ = AltactSigSend(AltactSigSend.EXIT, peer.pid(), ours.pid)
        await peer.send(exit_, encode(BOOM))
        assert await ours.receive(timeout=5) == ("EXIT", peer.pid(), "boom")
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


class TestLoss:
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
            def message_received(self, message: object) -> None:
                raise LookupError("a bug of the user's")

        failing, other = Failing(node), Process(node)
        for process in (failing, other):
            process.trap_exit = True
            process.link(peer.pid())
            process.monitor(peer.pid())
        node.monitor_nodes(failing)
        node.monitor_nodes(other)
        peer.close()
        seen: list[Any] = [await other.receive(timeout=5) for _ in range(3)]
        assert {message[0] for message in seen} == {"EXIT", "DOWN", "nodedown"}
        assert len([r for r in caplog.records if r.exc_info]) == 3


class TestExitSignals:
    async def test_exit_signals_of_the_node_itself(self, node: Node, peer: ScriptedPeer) -> None:
        node.exit_signal(peer.pid(), Atom("boom"))
        message = await peer.read()
        assert type(message.control).__name__ == "PayloadExit2"


class TestNodeEvents:
    async def test_one_that_fails_keeps_nobody_from_them(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(Process):
            def message_received(self, message: object) -> None:
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
            assert await other.receive(timeout=5) == ("nodeup", PEER)
        assert await other.receive(timeout=5) == ("nodedown", PEER)
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


class TestWithinTheNode:
    """Signals from one process of a node to another take the same way, and a turn of their own."""

    async def test_a_link(self, node: Node, ours: Process) -> None:
        other = Process(node)
        ours.link(other.pid)
        other.exit(BOOM)
        assert len(ours) == 0
        assert await ours.receive(timeout=5) == ("EXIT", other.pid, "boom")

    async def test_a_monitor(self, node: Node, ours: Process) -> None:
        other = Process(node, name="other")
        ref = ours.monitor("other")
        other.exit(BOOM)
        assert await ours.receive(timeout=5) == ("DOWN", ref, "process", "other", "boom")

    async def test_who_watched_ends(self, node: Node, ours: Process) -> None:
        withdrawn: asyncio.Queue[bytes] = asyncio.Queue()

        class Watched(Process):
            def demonitored(self, ref: bytes) -> None:
                withdrawn.put_nowait(ref)

        ref = ours.monitor(Watched(node).pid)
        ours.exit()
        assert await asyncio.wait_for(withdrawn.get(), 5) == ref.external
        assert len(node.signals.ties) == 0

    async def test_an_exit_signal(self, node: Node, ours: Process) -> None:
        other = Process(node)
        other.exit_signal(ours.pid, BOOM)
        assert await ours.receive(timeout=5) == ("EXIT", other.pid, "boom")
        node.exit_signal(ours.pid, BOOM)
        assert await ours.receive(timeout=5) == ("EXIT", node.router.speaker.pid, "boom")
        other.exit()
        ours.exit_signal(other.pid, BOOM)  # to nobody

    async def test_one_that_fails_keeps_nobody_from_theirs(
        self, node: Node, peer: ScriptedPeer, ours: Process, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(Process):
            def down_received(self, ref: Reference, target: object, reason: object) -> None:
                raise LookupError("a bug")

        Failing(node).monitor(peer.pid())
        ref = ours.monitor(peer.pid())
        peer.close()
        assert await ours.receive(timeout=5) == ("DOWN", ref, "process", peer.pid(), "noconnection")
        assert "failed to take Down" in caplog.text


class TestFromOthers:
    async def test_in_somebody_else_s_name(
        self, peer: ScriptedPeer, ours: Process, caplog: pytest.LogCaptureFixture
    ) -> None:
        stranger = Pid("other@127.0.0.1", 1, 0, 1)
        for signal in (
            Link(stranger, ours.pid),
            MonitorP(stranger, ours.pid, peer.make_ref()),
            Exit2(stranger, ours.pid, BOOM),
        ):
            await peer.send(signal)
        await peer.send(PayloadExit2(stranger, ours.pid), encode(BOOM))
        assert await settled(peer) == []
        assert len(ours) == 0
        assert len(ours.node.signals.ties) == 0
        assert caplog.text.count("ignored a signal in the name of") == 4

    async def test_a_message_that_cannot_be_decoded(
        self, peer: ScriptedPeer, ours: Process, caplog: pytest.LogCaptureFixture
    ) -> None:
        await peer.send(RegSend(peer.pid(), Atom("ours")), b"\xff")
        assert await settled(peer) == []
        assert "dropped the payload of RegSend" in caplog.text

    async def test_to_nobody(self, node: Node, peer: ScriptedPeer) -> None:
        gone = Pid(node.name, 99, 0, node.creation)
        for control in (RegSend(peer.pid(), Atom("nobody")), SendSender(peer.pid(), gone)):
            await peer.send(control, encode(1))
        await peer.send(PayloadExit2(peer.pid(), gone), encode(BOOM))
        await peer.send(AltactSigSend(0, peer.pid(), gone), encode(1))
        assert await settled(peer) == []

    async def test_to_aliases(self, node: Node, peer: ScriptedPeer) -> None:
        alias = node.make_ref()
        for control in (
            AliasSend(peer.pid(), alias),
            AltactSigSend(AltactSigSend.ALIAS, peer.pid(), alias),
        ):
            answer = node.router.expect(alias)
            await peer.send(control, encode((alias, 1)))
            assert await asyncio.wait_for(answer, 5) == 1
            node.router.forget(alias)

    async def test_what_means_nothing_here(self, peer: ScriptedPeer, ours: Process) -> None:
        await peer.send(GroupLeader(peer.pid(), ours.pid))
        await peer.send(NodeLink())
        assert await settled(peer) == []

    async def test_spawning(self, node: Node, peer: ScriptedPeer, ours: Process) -> None:
        ref = peer.make_ref()
        mfa = (Atom("math"), Atom("sqrt"), 1)
        options: list[object] = [Atom("monitor"), Atom("link")]
        await peer.send(SpawnRequest(ref, peer.pid(), peer.pid(), mfa, options), encode([16.0]))
        reply, _ = await read(peer)
        assert isinstance(reply, SpawnReply)
        assert reply.id == ref
        stranger = Pid("other@127.0.0.1", 1, 0, 1)
        await peer.send(SpawnRequest(ref, stranger, peer.pid(), mfa, []), encode([16.0]))
        ends = [type(control) for control, _ in await settled(peer)]
        assert ends == [PayloadExit, PayloadMonitorPExit]
