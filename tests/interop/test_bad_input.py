"""An evil peer sends our node what no honest one would, while a BEAM keeps calling it.

Each time at most the evil one's connection is closed, with one line in the log that names it and
says why; the BEAM notices nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator

import pytest

from snex_node import Atom, ConnectError, From, GenServer, Node, Pid, Process, Reference
from snex_node.wire import etf
from snex_node.wire.control import (
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
    RegSend,
    SendSender,
    SpawnReply,
    SpawnRequest,
    Unlink,
    UnlinkId,
    UnlinkIdAck,
)
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.handshake import HandshakeError, Identity
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.peer import ScriptedPeer
from tests.support.tied import links_of, monitors_of, watchers_of
from tests.support.waiting import until

encode = etf.Encoder().encode

# Calls the echo server without a pause until it is told to stop; then tells how often it did, and
# what went wrong.
KEEP_CALLING = """
Process.register(self(), name)
Node.monitor(py, true)
call = fn call, count ->
  receive do
    :stop -> {:fine, count}
    {:nodedown, ^py} -> {:nodedown, count}
  after
    0 ->
      try do
        ^count = GenServer.call({:echo, py}, count, 10_000)
        call.(call, count + 1)
      catch
        kind, reason -> {kind, reason, count}
      end
  end
end
call.(call, 0)
"""


class Echo(GenServer):
    def __init__(self, node: Node) -> None:
        super().__init__(node, name="echo")
        self.calls = 0

    def handle_call(self, request: object, caller: From) -> object:
        self.calls += 1
        return request


class Scene:
    """Our node, the BEAM that keeps calling it, and the evil one."""

    def __init__(self, node: Node, beam: Beam, caplog: pytest.LogCaptureFixture) -> None:
        self.node = node
        self.beam = beam
        self.echo = Echo(node)
        self.target = Process(node, name="target")
        self.identity = Identity(f"evil{secrets.token_hex(4)}@127.0.0.1", 666)
        self._caplog = caplog

    async def connect(self, flags: Flag | None = None) -> ScriptedPeer:
        identity = self.identity
        if flags is not None:
            identity = Identity(identity.name, identity.creation, flags)
        assert self.node.port is not None
        evil = await ScriptedPeer.connect(
            identity, self.beam.cookie, self.node.name, self.node.port
        )
        await until(lambda: self.identity.name in self.node.nodes)
        return evil

    def complaints(self) -> list[str]:
        return [r.getMessage() for r in self._caplog.records if r.levelno >= logging.WARNING]

    async def still_fine(self) -> None:
        """Other peers and running work go on."""
        calls = self.echo.calls
        await until(lambda: self.echo.calls >= calls + 3)
        assert self.beam.name in self.node.nodes

    def check_one_line(self, *words: str) -> None:
        lines = self.complaints()
        assert len(lines) == 1, lines
        for word in words:
            assert word in lines[0]

    async def check_closed(self, evil: ScriptedPeer, *words: str) -> None:
        await evil.wait_closed()
        evil.close()
        await until(lambda: self.identity.name not in self.node.nodes)
        self.check_one_line(self.identity.name, *words)

    async def check_open(self, evil: ScriptedPeer) -> None:
        """The connection is as good as ever: a call gets its answer."""
        ref = evil.make_ref()
        call = (Atom("$gen_call"), (evil.pid(), ref), Atom("are you there?"))
        await evil.send(RegSend(evil.pid(), Atom("echo")), encode(call))
        while True:
            message = await evil.read()
            if message.offset == len(message.data):
                continue  # a signal without a payload
            answer, _ = etf.Decoder().decode(message.data, message.offset)
            if answer == (ref, "are you there?"):
                return


@pytest.fixture
async def scene(
    beam: Beam, start_node: NodeStarter, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Scene]:
    node = await start_node(net_setuptime=1.0, max_frame=1_000_000, max_message=4_000_000)
    scene = Scene(node, beam, caplog)
    name = Atom(f"caller_{secrets.token_hex(4)}")
    calling = beam.submit(KEEP_CALLING, py=node.name, name=name)
    await until(lambda: scene.echo.calls)
    yield scene
    await scene.still_fine()
    await beam.eval("send(name, :stop)", name=name)
    result = await asyncio.wait_for(asyncio.wrap_future(calling), 10)
    assert isinstance(result, tuple)
    assert result[0] == "fine"


class TestHandshakes:
    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\x00\x00",
            b"\xff" * 100,
            b"\x00\x07N\x00\x00\x00\x00\x00\x00",
            b"\x00\x14n\x00\x05\x00\x00\x00\x00old@127.0.0.1",
            bytes(2000),
        ],
    )
    async def test_garbage(self, scene: Scene, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.node.port)
        writer.write(data)
        try:
            await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            pass
        own: tuple[str, int] = writer.get_extra_info("sockname")
        writer.close()
        await until(scene.complaints)
        scene.check_one_line(f"127.0.0.1:{own[1]}", "refused the connection")

    async def test_half_a_handshake(self, scene: Scene) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.node.port)
        writer.write(b"\x00\x20N")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        scene.check_one_line("127.0.0.1", "not done within 1 s")

    async def test_a_handshake_that_stops_after_the_name(self, scene: Scene) -> None:
        name = scene.identity.name.encode()
        body = b"N" + int(CLAIMED).to_bytes(8, "big") + bytes(4) + len(name).to_bytes(2, "big")
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.node.port)
        writer.write((len(body) + len(name)).to_bytes(2, "big") + body + name)
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"\x00\x03sok")
        writer.close()
        await until(scene.complaints)
        scene.check_one_line(scene.identity.name, "127.0.0.1", "not done within 1 s")
        assert scene.node.remote(scene.identity.name).idle

    async def test_nothing_said_and_closed(self, scene: Scene) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", scene.node.port)
        writer.close()
        await until(scene.complaints)
        scene.check_one_line("127.0.0.1", "closed the connection")

    async def test_a_wrong_cookie(self, scene: Scene) -> None:
        assert scene.node.port is not None
        with pytest.raises(HandshakeError):
            await ScriptedPeer.connect(scene.identity, "wrong", scene.node.name, scene.node.port)
        await until(scene.complaints)
        scene.check_one_line(scene.identity.name, "cookie")

    async def test_the_name_of_the_beam_without_its_cookie(self, scene: Scene) -> None:
        """A stranger cannot take the place of a connection that is there."""
        assert scene.node.port is not None
        before = scene.node.remote(scene.beam.name).connection
        stranger = Identity(scene.beam.name, 4)
        with pytest.raises(HandshakeError):
            await ScriptedPeer.connect(stranger, "wrong", scene.node.name, scene.node.port)
        await until(scene.complaints)
        scene.check_one_line(scene.beam.name, "cookie")
        assert scene.node.remote(scene.beam.name).connection is before

    async def test_flags_are_missing(self, scene: Scene) -> None:
        with pytest.raises(HandshakeError):
            await scene.connect(CLAIMED & ~(Flag.BIG_CREATION | Flag.MANDATORY_25_DIGEST))
        await until(scene.complaints)
        scene.check_one_line(scene.identity.name, "BIG_CREATION")

    async def test_our_own_name(self, scene: Scene) -> None:
        assert scene.node.port is not None
        us = Identity(scene.node.name, 4)
        with pytest.raises(HandshakeError):
            await ScriptedPeer.connect(us, scene.beam.cookie, scene.node.name, scene.node.port)
        await until(scene.complaints)
        scene.check_one_line("our own name")


class TestFrames:
    async def test_longer_than_the_limit(self, scene: Scene) -> None:
        evil = await scene.connect()
        await evil.send_raw((1_000_001).to_bytes(4, "big"))
        await scene.check_closed(evil, "1000001 bytes", "1000000")

    async def test_no_distribution_header(self, scene: Scene) -> None:
        evil = await scene.connect()
        await evil.send_raw(b"\x00\x00\x00\x05hello")
        await scene.check_closed(evil, "no distribution header")

    async def test_fragments_out_of_turn(self, scene: Scene) -> None:
        evil = await scene.connect()
        head = b"\x83F" + (1).to_bytes(8, "big") + (5).to_bytes(8, "big")
        await evil.send_raw(len(head).to_bytes(4, "big") + head)
        await scene.check_closed(evil, "out of turn")

    async def test_a_message_longer_than_the_limit(self, scene: Scene) -> None:
        evil = await scene.connect()
        control = b"h\x04a\x06" + evil.pid().external + b"w\x00w\x06target"
        try:
            for number in range(100, 0, -1):
                kind, head = (b"E", b"\x00" + control) if number == 100 else (b"F", b"")
                frame = b"\x83" + kind + (7).to_bytes(8, "big") + number.to_bytes(8, "big") + head
                frame += bytes(64 * 1024)
                await evil.send_raw(len(frame).to_bytes(4, "big") + frame)
        except ConnectionError:
            pass  # it was closed before all was written
        await scene.check_closed(evil, "4000000 bytes")

    async def test_cut_off_in_the_middle(self, scene: Scene) -> None:
        evil = await scene.connect()
        await evil.send_raw(b"\x00\x00\x10\x00\x83D\x00h\x04")
        evil.close()
        await until(lambda: scene.identity.name not in scene.node.nodes)
        assert scene.complaints() == []  # an ordinary end

    async def test_an_unknown_control_message(self, scene: Scene) -> None:
        evil = await scene.connect()
        await evil.send_raw(frame_of(encode((99, Atom("what"), 1))))
        await scene.check_open(evil)
        scene.check_one_line(scene.identity.name, "unknown control message", ":what")
        evil.close()

    @pytest.mark.parametrize(
        "term",
        [
            Atom("no_tuple"),
            (),
            (Atom("x"),),
            (6, 1, 2, 3),
            (2, Atom(""), Atom("no_pid")),
            (35, 0, 1, 2),
            (29, 1, 2, 3, 4, 5),
            (19,) * 4,
        ],
    )
    async def test_a_control_message_of_a_wrong_shape(self, scene: Scene, term: object) -> None:
        evil = await scene.connect()
        await evil.send_raw(frame_of(encode(term)))
        await scene.check_open(evil)
        scene.check_one_line(scene.identity.name)
        evil.close()

    async def test_a_control_message_that_is_no_term(self, scene: Scene) -> None:
        evil = await scene.connect()
        await evil.send_raw(frame_of(b"h\x04a\x06\xff"))
        await scene.check_closed(evil, "cannot be decoded")


def frame_of(control: bytes, payload: bytes = b"") -> bytes:
    frame = b"\x83D\x00" + control + payload
    return len(frame).to_bytes(4, "big") + frame


GOOD = encode((Atom("hello"), [1, 2.5, b"binary"], {Atom("k"): 1}))


class TestPayloads:
    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            GOOD[:-1],
            GOOD[:5],
            b"\xff",
            b"l\xff\xff\xff\xff",
            b"m\xff\xff\xff\xffabc",
            b"h\xff",
            b"t\x00\x00\x00\x02a\x01a\x01a\x01a\x02j",
            b"w\x02\xff\xfe",
            b"F\x7f\xf8\x00\x00\x00\x00\x00\x00",
            b"M\x00\x00\x00\x01\x00a",
            b"l\x00\x00\x00\x01" * 150_000 + b"j" * 150_001,
        ],
        ids=lambda data: data[:8].hex(),
    )
    async def test_that_are_no_terms(self, scene: Scene, payload: bytes) -> None:
        """They cost a message, not the connection."""
        evil = await scene.connect()
        await evil.send(RegSend(evil.pid(), Atom("target")), payload)
        await scene.check_open(evil)
        scene.check_one_line(scene.identity.name, "dropped the payload")
        await evil.send(SendSender(evil.pid(), scene.target.pid), GOOD)
        assert await scene.target.receive(timeout=5) == etf.decode(b"\x83" + GOOD)
        evil.close()

    async def test_to_who_is_gone(self, scene: Scene) -> None:
        evil = await scene.connect()
        gone = Process(scene.node)
        gone.exit()
        await evil.send(SendSender(evil.pid(), gone.pid), GOOD)
        await evil.send(RegSend(evil.pid(), Atom("nobody")), GOOD)
        await evil.send(Exit2(evil.pid(), gone.pid, Atom("kill")))
        await evil.send(GroupLeader(evil.pid(), gone.pid))
        await evil.send(DemonitorP(evil.pid(), gone.pid, evil.make_ref()))
        await evil.send(MonitorPExit(evil.pid(), gone.pid, evil.make_ref(), 1))
        await evil.send(Unlink(evil.pid(), gone.pid))
        await evil.send(UnlinkIdAck(7, evil.pid(), gone.pid))
        await evil.send(PayloadExit(evil.pid(), gone.pid), GOOD)
        await evil.send(SpawnReply(evil.make_ref(), gone.pid, 0, evil.pid()))
        await evil.send(NodeLink())
        await scene.check_open(evil)
        assert scene.complaints() == []
        evil.close()

    async def test_a_call_with_a_broken_request(self, scene: Scene) -> None:
        evil = await scene.connect()
        alias = Reference(evil.name, evil.creation, (9, 9, 9))
        head = b"h\x03w\x09$gen_callh\x02" + evil.pid().external
        tag = b"l\x00\x00\x00\x01w\x05alias" + alias.external
        await evil.send(RegSend(evil.pid(), Atom("echo")), head + tag + b"\xff")
        message = await evil.read()
        answer, _ = etf.Decoder().decode(message.data, message.offset)
        assert answer[1][0] == "error"
        assert answer[1][1][1].endswith(b"DecodeError")
        # References of more words than there are, in a call to be answered.
        bad = b"Z\x00\x09" + alias.external[3:] + bytes(24)
        await evil.send(RegSend(evil.pid(), Atom("echo")), head + tag[:12] + bad + b"a\x01")
        for cut in range(1, len(head + tag)):
            await evil.send(RegSend(evil.pid(), Atom("echo")), (head + tag)[:cut])
        await scene.check_open(evil)
        evil.close()

    async def test_a_broken_exit_reason(self, scene: Scene) -> None:
        """The signal counts, whatever its reason is."""
        evil = await scene.connect()
        scene.target.trap_exit = True
        await evil.send(PayloadExit2(evil.pid(), scene.target.pid), b"\xff")
        message = await scene.target.receive(timeout=5)
        assert isinstance(message, tuple)
        assert message[:2] == ("EXIT", evil.pid())
        scene.check_one_line(scene.identity.name, "exit reason")
        await scene.check_open(evil)
        evil.close()

    @pytest.mark.parametrize(
        ("args", "options", "why"),
        [
            (b"\xff", [], "badarg"),
            (encode(Atom("no_list")), [], "badarg"),
            (encode([1, 2]), [], "badarg"),
            (encode([1, 2, 3, 4]), [Atom("link"), 7], "badopt"),
            (encode([1, 2, 3, 4]), [Atom("bogus")], "badopt"),
        ],
    )
    async def test_a_broken_spawn_request(
        self, scene: Scene, args: bytes, options: list[object], why: str
    ) -> None:
        evil = await scene.connect()
        mfa = (Atom("erpc"), Atom("execute_call"), 4)
        if args == encode(Atom("no_list")):
            mfa = (Atom("math"), Atom("sqrt"), 1)
        request = SpawnRequest(evil.make_ref(), evil.pid(), evil.pid(), mfa, options)
        await evil.send(request, args)
        reply = (await evil.read()).control
        assert reply == SpawnReply(request.id, evil.pid(), 0, Atom(why))
        scene.check_one_line(scene.identity.name, "refused to spawn")
        await scene.check_open(evil)
        evil.close()


class TestSpoofing:
    async def test_in_the_name_of_another(self, scene: Scene) -> None:
        """A signal comes from the node that it says it is from, or does nothing."""
        evil = await scene.connect()
        other = Pid(scene.beam.name, 1, 0, 4)
        target = scene.target
        signals: list[ControlMessage] = [
            Link(other, target.pid),
            MonitorP(other, target.pid, evil.make_ref()),
            Exit2(other, target.pid, Atom("kill")),
            SpawnRequest(evil.make_ref(), other, other, (Atom("math"), Atom("sqrt"), 1), []),
        ]
        for signal in signals:
            await evil.send(signal, encode([1]) if isinstance(signal, SpawnRequest) else b"")
        await scene.check_open(evil)
        assert target.alive
        assert not links_of(target)
        assert not watchers_of(target)
        lines = scene.complaints()
        assert len(lines) == len(signals)
        assert all(line.startswith(f"{scene.identity.name}: ignored a signal") for line in lines)
        evil.close()

    async def test_ties_of_others_are_safe(self, scene: Scene) -> None:
        evil = await scene.connect()
        target = scene.target
        target.trap_exit = True
        source = """
        Process.register(self(), name)
        Process.link(pid)
        Process.monitor(pid)
        send(pid, self())
        receive do message -> message end
        """
        name = Atom(f"tied_{secrets.token_hex(4)}")
        tied = scene.beam.submit(source, pid=target.pid, name=name)
        other = await target.receive(timeout=5)
        assert isinstance(other, Pid)
        watched = next(iter(watchers_of(target)))
        ours = target.monitor(other)
        signals: tuple[ControlMessage, ...] = (
            Exit(other, target.pid, Atom("boom")),
            PayloadExit(other, target.pid),
            UnlinkId(1, other, target.pid),
            DemonitorP(other, target.pid, Reference.from_external(watched)),
            MonitorPExit(other, target.pid, ours, Atom("gone")),
        )
        for signal in signals:
            await evil.send(
                signal, encode(Atom("boom")) if isinstance(signal, PayloadExit) else b""
            )
        await scene.check_open(evil)
        assert links_of(target) == {other: None}
        assert watched in watchers_of(target)
        assert ours.external in monitors_of(target)
        assert len(target) == 0
        await scene.beam.eval("send(name, :done)", name=name)
        assert await asyncio.wrap_future(tied) == "done"
        evil.close()


class TestFloods:
    async def test_a_mailbox_that_nobody_reads(self, scene: Scene) -> None:
        evil = await scene.connect()
        small = Process(scene.node, name="small", max_mailbox=100)
        for _ in range(101):
            await evil.send(RegSend(evil.pid(), Atom("small")), GOOD)
        await until(lambda: not small.alive)
        assert small.exit_reason == "system_limit"
        assert len(small) == 100
        await scene.check_open(evil)
        evil.close()

    async def test_names_that_it_makes_up(self, scene: Scene) -> None:
        evil = await scene.connect()
        for number in range(1000):
            name = Atom(f"name_{number}")
            ref = evil.make_ref()
            await evil.send(MonitorP(evil.pid(), name, ref))
            await evil.send(RegSend(evil.pid(), name), GOOD)
        await scene.check_open(evil)
        assert scene.node.signals.ties.count(evil.name) == 0
        evil.close()


async def test_what_dials_us_is_our_peer_s_business_only(scene: Scene) -> None:
    """When we dial an evil one, only that call fails."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x04sfoo")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        address: tuple[str, int] = server.sockets[0].getsockname()
        with pytest.raises(ConnectError) as caught:
            await scene.node.connect("evil@127.0.0.1", address=address)
    assert caught.value.reason == "garbage"
    assert scene.complaints() == []
