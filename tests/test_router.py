"""Where messages and answers go: processes here, aliases, another node."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from snex_node import (
    Atom,
    DecodeError,
    Decoder,
    EncodeError,
    Encoder,
    From,
    GenServer,
    Node,
    Pid,
    Process,
    Reference,
)
from snex_node.processes.router import Destination
from snex_node.wire.control import (
    AliasSend,
    AltactSigSend,
    ControlMessage,
    DemonitorP,
    RegSend,
    Send,
    SendSender,
)
from snex_node.wire.flags import CLAIMED, Flag
from tests.support.peer import ScriptedPeer
from tests.support.scripted import PEER, connect, encode, read, settled

BOOM = Atom("boom")


class Echo(GenServer):
    """Answers with what it was asked."""

    def handle_call(self, request: object, caller: From) -> object:
        return request


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
        assert await process.receive() is sent

    async def test_from_threads(self, node: Node) -> None:
        process = Process(node, name="here")
        threads = [
            threading.Thread(target=node.send, args=("here", number)) for number in range(20)
        ]
        for thread in threads:
            thread.start()
        numbers = {await process.receive(timeout=5) for _ in threads}
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


class TestAliases:
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


class TestAnswers:
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

    async def test_codecs_of_a_node(self) -> None:
        """What the node's own decoder and encoder do holds for messages and calls."""
        encoder = Encoder(default=str)
        decoder = Decoder(binary_as="str")
        async with Node(
            "py@127.0.0.1", cookie="x", epmd="none", encoder=encoder, decoder=decoder
        ) as node:
            Echo(node, name="echo")
            assert await node.call("echo", {1: b"x"}) == {1: "x"}


class TestDestinations:
    async def test_each_way_to_a_process_here(self, node: Node, ours: Process) -> None:
        ways: list[Destination] = [ours.pid, "ours", ("ours", node.name)]
        for number, to in enumerate(ways):
            node.send(to, number)
            assert await ours.receive(timeout=5) == number

    async def test_each_way_to_another_node(self, node: Node, peer: ScriptedPeer) -> None:
        alias, us = peer.make_ref(), node.router.speaker.pid
        ways: list[tuple[Destination, ControlMessage]] = [
            (peer.pid(), SendSender(us, peer.pid())),
            (("name", PEER), RegSend(us, Atom("name"))),
            (alias, AliasSend(us, alias)),
        ]
        for to, control in ways:
            node.send(to, 1)
            assert await read(peer) == (control, 1)

    async def test_to_an_alias_here(self, node: Node) -> None:
        alias = node.make_ref()
        answer = node.router.expect(alias)
        assert node.router.expected == 1
        node.send(alias, (alias, "reply"))
        assert await asyncio.wait_for(answer, 5) == "reply"
        node.send(alias, (alias, "again"))
        node.router.forget(alias)
        assert node.router.expected == 0
        await asyncio.sleep(0)

    @pytest.mark.parametrize(
        "to",
        [
            None,
            1,
            b"name",
            ("name",),
            ("name", PEER, 1),
            ("name", None),
            (1, PEER),
            ["name", PEER],
            object(),
        ],
        ids=lambda to: type(to).__name__ if type(to) is object else repr(to),
    )
    async def test_what_is_none(self, node: Node, to: Any) -> None:
        """It says so; else a typing error would be an attribute error somewhere in here."""
        with pytest.raises(TypeError, match="expected a pid, an alias, a name registered here, or"):
            node.send(to, 1)

    async def test_what_comes_to_our_aliases_and_cannot_be_decoded(
        self, node: Node, peer: ScriptedPeer
    ) -> None:
        alias = node.make_ref()
        answer = node.router.expect(alias)
        await peer.send(AliasSend(peer.pid(), alias), b"\xff")
        with pytest.raises(DecodeError):
            await asyncio.wait_for(answer, 5)
        node.router.forget(alias)


class TestAnswersHere:
    async def test_to_an_alias_or_a_pid(self, node: Node, ours: Process) -> None:
        alias = node.make_ref()
        answer = node.router.expect(alias)
        node.reply(From(ours.pid, encode(alias), alias.external), "to the alias")
        assert await asyncio.wait_for(answer, 5) == b"to the alias"
        node.reply(From(ours.pid, encode(7), None), "to the pid")
        assert await ours.receive(timeout=5) == (7, b"to the pid")
        node.router.forget(alias)

    async def test_to_a_node_that_has_gone(self, node: Node) -> None:
        node.reply(From(Pid(PEER, 1, 0, 1), encode(7), None), 1)
        assert node.nodes == []
