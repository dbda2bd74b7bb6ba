"""Connections come about from either side, end, come again, or are refused with a reason."""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
from collections.abc import Callable

import pytest

from snex_node import Atom, ConnectError, Node, NodeStartError, Process, ProcessExitError
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.ports import free_port
from tests.support.waiting import until

BeamStarter = Callable[..., Beam]

PING = "Node.ping(py)"
CONNECT = "Node.connect(py)"
HIDDEN = "Enum.member?(Node.list(:hidden), py)"


class TestFromEitherSide:
    async def test_the_beam_connects(self, beam: Beam, node: Node) -> None:
        assert await beam.eval(CONNECT, py=node.name) is True
        assert node.nodes == [beam.name]
        assert await beam.eval("{Node.list(), py in Node.list(:hidden)}", py=node.name) == (
            [],
            True,
        )

    async def test_we_connect(self, beam: Beam, node: Node) -> None:
        await node.connect(beam.name)
        assert node.nodes == [beam.name]
        assert await beam.eval(HIDDEN, py=node.name) is True
        await node.connect(beam.name)  # again: nothing
        assert await beam.eval(HIDDEN, py=node.name) is True

    async def test_pings_both_ways(self, beam: Beam, node: Node) -> None:
        assert await beam.eval(PING, py=node.name) == "pong"
        assert await beam.eval(":net_adm.ping(py)", py=node.name) == "pong"
        assert await node.ping(beam.name) is True
        assert await node.ping(node.name) is True

    async def test_the_beam_s_dynamic_name(
        self, beam: Beam, node: Node, start_beam: BeamStarter
    ) -> None:
        nameless = start_beam_without_name(start_beam, beam.cookie)
        assert await nameless.eval(CONNECT, py=node.name) is True
        name = await nameless.eval("node()")
        assert isinstance(name, str)
        assert name.endswith("@127.0.0.1")
        assert node.nodes == [name]
        assert await nameless.eval(PING, py=node.name) == "pong"
        assert await node.rpc(name, "erlang", "node") == name
        assert nameless.log == ""

    async def test_ipv6_is_no_short_name(self, node: Node) -> None:
        with pytest.raises(ConnectError) as caught:
            await node.connect("b@::1")
        assert caught.value.reason != "names"


def start_beam_without_name(start_beam: BeamStarter, cookie: str) -> Beam:
    """A BEAM with `-name undefined@127.0.0.1`: it gets its name from the first it connects to."""
    return start_beam(cookie=cookie, name="undefined")


class TestShortNames:
    async def test_both_ways(self, start_beam: BeamStarter, start_node: NodeStarter) -> None:
        short = start_beam(short=True, host="localhost")
        node = await start_node(f"py{secrets.token_hex(4)}@localhost", cookie=short.cookie)
        assert await short.eval(PING, py=node.name) == "pong"
        node.disconnect(short.name)
        assert await node.ping(short.name) is True
        assert short.log == ""

    async def test_names_are_not_mixed(
        self, start_beam: BeamStarter, start_node: NodeStarter, beam: Beam
    ) -> None:
        node = await start_node(f"py{secrets.token_hex(4)}@localhost")
        with pytest.raises(ConnectError, match=r"--name.*--sname") as caught:
            await node.connect(beam.name)
        assert caught.value.reason == "names"
        assert f"{beam.name} is a long name and {node.name} a short one" in str(caught.value)
        # A BEAM refuses as well, before it asks epmd, and says so in its log.
        other = start_beam(cookie=beam.cookie)
        assert await other.eval(CONNECT, py=node.name) is False
        await other.wait_log("localhost is illegal")


class TestDisconnecting:
    async def test_the_beam_disconnects_and_comes_back(self, beam: Beam, node: Node) -> None:
        events = Process(node)
        node.monitor_nodes(events)
        await beam.eval(CONNECT, py=node.name)
        assert await events.receive(timeout=5) == ("nodeup", beam.name)
        assert await beam.eval("Node.disconnect(py)", py=node.name) is True
        assert await events.receive(timeout=5) == ("nodedown", beam.name)
        assert node.nodes == []
        inbox = Process(node, name="inbox")
        await beam.eval("send({:inbox, py}, :again)", py=node.name)
        assert await inbox.receive(timeout=5) == "again"
        assert await events.receive(timeout=5) == ("nodeup", beam.name)
        node.monitor_nodes(events, False)
        node.disconnect(beam.name)
        await beam.eval("send({:inbox, py}, :once_more)", py=node.name)
        assert await inbox.receive(timeout=5) == "once_more"
        assert len(events) == 0

    async def test_we_disconnect_and_come_back(self, beam: Beam, node: Node) -> None:
        watching = beam.submit(
            """
            :net_kernel.monitor_nodes(true, node_type: :all)
            send({:inbox, py}, :watching)
            for _ <- 1..3, do: (receive do {kind, ^py, _} -> kind end)
            """,
            py=node.name,
        )
        inbox = Process(node, name="inbox")
        assert await inbox.receive(timeout=5) == "watching"
        node.disconnect(beam.name)
        node.disconnect(beam.name)  # again: nothing
        node.disconnect("nobody@127.0.0.1")
        assert node.nodes == []
        # The next message connects again.
        inbox.send(("nobody", beam.name), 1)
        kinds = await asyncio.wait_for(asyncio.wrap_future(watching), 5)
        assert kinds == ["nodeup", "nodedown", "nodeup"]

    async def test_keep_connected(self, beam: Beam, node: Node) -> None:
        events = Process(node)
        node.monitor_nodes(events)
        node.keep_connected(beam.name)
        assert await events.receive(timeout=5) == ("nodeup", beam.name)
        assert await beam.eval("Node.disconnect(py)", py=node.name) is True
        assert await events.receive(timeout=5) == ("nodedown", beam.name)
        assert await events.receive(timeout=5) == ("nodeup", beam.name)

    async def test_a_node_that_stops_is_seen_to_go(
        self, beam: Beam, start_node: NodeStarter
    ) -> None:
        node = await start_node()
        inbox = Process(node, name="inbox")
        watching = beam.submit(
            """
            Node.monitor(py, true)
            send({:inbox, py}, :watching)
            receive do message -> message end
            """,
            py=node.name,
        )
        await inbox.receive(timeout=5)
        await node.stop()
        await node.stop()  # again: nothing
        assert await asyncio.wait_for(asyncio.wrap_future(watching), 5) == ("nodedown", node.name)
        assert await beam.eval(PING, py=node.name) == "pang"

    async def test_a_node_can_be_started_again(self, beam: Beam, start_node: NodeStarter) -> None:
        node = await start_node()
        creations = [node.creation]
        assert await beam.eval(PING, py=node.name) == "pong"
        await node.stop()
        with pytest.raises(NodeStartError, match="is not running"):
            node.send(("nobody", beam.name), 1)
        with pytest.raises(NodeStartError, match="is not running"):
            Process(node)
        await node.start()
        creations.append(node.creation)
        assert await beam.eval(PING, py=node.name) == "pong"
        assert creations[0] != creations[1]

    async def test_stopping_fails_what_waits(self, beam: Beam, start_node: NodeStarter) -> None:
        node = await start_node()
        sleeping = asyncio.ensure_future(
            node.rpc(beam.name, "timer", "sleep", [60_000], timeout=None)
        )
        await until(lambda: node.nodes)
        await node.stop()
        with pytest.raises(ProcessExitError) as caught:
            await asyncio.wait_for(sleeping, 5)
        assert caught.value.reason == "noconnection"

    @pytest.mark.parametrize("turns", range(1, 12))
    async def test_what_begins_while_the_node_stops_fails_too(
        self, beam: Beam, start_node: NodeStarter, turns: int
    ) -> None:
        node = await start_node()
        await node.connect(beam.name)
        stopping = asyncio.ensure_future(node.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        late = node.rpc(beam.name, "timer", "sleep", [60_000], timeout=None)
        with pytest.raises((ProcessExitError, NodeStartError, ConnectError)):
            await asyncio.wait_for(late, 5)
        await stopping
        await asyncio.sleep(0)
        gc.collect()  # a socket that nobody closed would warn now


class TestReplacing:
    async def test_the_beam_still_has_a_dead_connection(
        self, beam: Beam, start_node: NodeStarter
    ) -> None:
        """After a crash of ours the BEAM may not know yet: the new connection takes its place."""
        name = f"py{secrets.token_hex(4)}@127.0.0.1"
        options = {"epmd": "none", "listen": None}
        first = await start_node(name, **options)
        await first.connect(beam.name)
        second = await start_node(name, **options)
        await second.connect(beam.name)
        assert await second.ping(beam.name) is True
        await until(lambda: not first.nodes)
        assert await beam.eval(HIDDEN, py=Atom(name)) is True

    async def test_we_still_have_a_dead_connection(
        self, start_beam: BeamStarter, node: Node, beam: Beam
    ) -> None:
        """The same from the other side: the BEAM came back before its end was noticed."""
        events = Process(node)
        node.monitor_nodes(events)
        name = f"b{secrets.token_hex(4)}"
        first = start_beam(name=name, cookie=beam.cookie)
        await first.eval(CONNECT, py=node.name)
        first.suspend()  # it cannot close its connection
        # epmd has the name for as long as the first lives: the second registers with another one.
        with RealEpmd() as other:
            env = {"ERL_EPMD_PORT": str(other.port)}
            second = start_beam(name=name, cookie=beam.cookie, env=env)
            announce = f"""
            {{:ok, socket}} = :gen_tcp.connect({{127, 0, 0, 1}}, {other.port}, [:binary])
            name = hd(String.split(Atom.to_string(py), "@"))
            :ok = :gen_tcp.send(socket, <<byte_size(name) + 13::16, 120, {node.port}::16, 77, 0,
              6::16, 5::16, byte_size(name)::16, name::binary, 0::16>>)
            receive do {{:tcp, _, <<118, 0, _::binary>>}} -> :ok end
            result = Node.connect(py)
            :gen_tcp.close(socket)
            result
            """
            assert await second.eval(announce, py=node.name) is True
            seen = [await events.receive(timeout=5) for _ in range(3)]
            assert seen == [
                ("nodeup", first.name),
                ("nodedown", first.name),
                ("nodeup", first.name),
            ]
            assert await second.eval(PING, py=node.name) == "pong"
            node.disconnect(second.name)


class TestRefusals:
    async def test_our_cookie_is_wrong(
        self, start_beam: BeamStarter, start_node: NodeStarter
    ) -> None:
        beam = start_beam()
        node = await start_node(cookie="wrong")
        with pytest.raises(ConnectError, match="cookie") as caught:
            await node.connect(beam.name)
        assert caught.value.reason == "cookie"
        assert beam.name in str(caught.value)
        assert await node.ping(beam.name) is False
        await beam.wait_log("Invalid challenge reply")

    async def test_the_beam_s_cookie_is_wrong(
        self, start_beam: BeamStarter, start_node: NodeStarter, caplog: pytest.LogCaptureFixture
    ) -> None:
        beam = start_beam()
        node = await start_node(cookie="wrong")
        assert await beam.eval(CONNECT, py=node.name) is False
        assert node.nodes == []
        refusals = [r for r in caplog.records if "refused the connection" in r.message]
        assert len(refusals) == 1
        assert beam.name in refusals[0].message
        assert "cookie" in refusals[0].message

    async def test_a_node_that_epmd_does_not_know(self, node: Node) -> None:
        with pytest.raises(ConnectError, match="knows no node nobody") as caught:
            await node.connect("nobody@127.0.0.1")
        assert (caught.value.reason, caught.value.node) == ("unknown", "nobody@127.0.0.1")
        assert await node.ping("nobody@127.0.0.1") is False

    async def test_a_node_whose_port_is_closed(self, node: Node) -> None:
        with pytest.raises(ConnectError, match="does not accept connections on") as caught:
            await node.connect("gone@127.0.0.1", address=("127.0.0.1", free_port()))
        assert caught.value.reason == "unreachable"

    async def test_no_epmd(self, start_node: NodeStarter) -> None:
        node = await start_node(epmd="none", epmd_port=free_port())
        with pytest.raises(ConnectError, match=r"no epmd at 127\.0\.0\.1") as caught:
            await node.connect("gone@127.0.0.1")
        assert caught.value.reason == "unreachable"

    async def test_a_host_that_does_not_resolve(self, node: Node) -> None:
        with pytest.raises(ConnectError, match="does not resolve") as caught:
            await node.connect("a@no-such-host.invalid")
        assert caught.value.reason == "resolve"
        with pytest.raises(ConnectError, match="does not resolve") as caught:
            await node.connect("b@no-such-host.invalid", address=("no-such-host.invalid", 1))
        assert caught.value.reason == "resolve"

    @pytest.mark.parametrize("name", ["nohost", "@host.a", "a@", "a@b.c@d.e", "é@127.0.0.1"])
    async def test_what_is_no_node_name(self, node: Node, name: str) -> None:
        with pytest.raises(ConnectError, match="is no node name") as caught:
            await node.connect(name)
        assert caught.value.reason == "name"

    async def test_another_node_answers(self, beam: Beam, node: Node) -> None:
        port = await beam.eval(
            """
            {:port, port, _} = :erl_epmd.port_please(
              String.to_charlist(hd(String.split(Atom.to_string(node()), "@"))), {127, 0, 0, 1})
            port
            """
        )
        assert isinstance(port, int)
        with pytest.raises(ConnectError, match=f"calls itself '{beam.name}'") as caught:
            await node.connect("somebody@127.0.0.1", address=("127.0.0.1", port))
        assert caught.value.reason == "name"

    async def test_what_answers_is_no_node(self, node: Node, epmd: RealEpmd) -> None:
        with pytest.raises(ConnectError) as caught:
            await node.connect("epmd@127.0.0.1", address=("127.0.0.1", epmd.port))
        assert caught.value.reason in ("closed", "garbage")

    async def test_who_says_nothing(self, start_node: NodeStarter) -> None:
        node = await start_node(net_setuptime=0.2)
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            pytest.raises(ConnectError, match=r"not done within 0\.2 s") as caught,
        ):
            await node.connect("silent@127.0.0.1", address=silent.getsockname())
        assert caught.value.reason == "timeout"

    async def test_one_refusal_for_all_who_wait(self, node: Node) -> None:
        waiting = [node.connect("nobody@127.0.0.1") for _ in range(10)]
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, ConnectError)

    async def test_a_cancelled_wait_leaves_the_others(self, beam: Beam, node: Node) -> None:
        first = asyncio.ensure_future(node.connect(beam.name))
        second = asyncio.ensure_future(node.connect(beam.name))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert node.nodes == [beam.name]

    async def test_disconnect_gives_up_an_attempt(self, node: Node) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            attempt = asyncio.ensure_future(
                node.connect("silent@127.0.0.1", address=silent.getsockname())
            )
            accepted, _ = await asyncio.to_thread(silent.accept)
            node.disconnect("silent@127.0.0.1")
            with accepted, pytest.raises(ConnectError, match="disconnect was called") as caught:
                await attempt
        assert caught.value.reason == "stopped"


class TestStarting:
    async def test_a_name_that_is_taken(self, beam: Beam, start_node: NodeStarter) -> None:
        with pytest.raises(NodeStartError, match="is taken by another node"):
            await start_node(beam.name)

    async def test_a_port_that_is_taken(self, start_node: NodeStarter) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(NodeStartError, match=r"cannot listen on 127\.0\.0\.1:.*in use"),
        ):
            await start_node(listen=taken.getsockname())

    async def test_no_epmd(self, start_node: NodeStarter) -> None:
        with pytest.raises(NodeStartError, match="no epmd at"):
            await start_node(epmd_port=free_port())

    async def test_a_bad_name(self) -> None:
        with pytest.raises(NodeStartError, match="is no node name"):
            Node("nohost", cookie="x")

    async def test_twice(self, node: Node) -> None:
        with pytest.raises(NodeStartError, match="has been started already"):
            await node.start()

    async def test_without_listening_it_can_still_call(
        self, beam: Beam, start_node: NodeStarter
    ) -> None:
        node = await start_node(listen=None)
        assert node.port is None
        assert await node.ping(beam.name) is True
        assert await beam.eval(PING, py=node.name) == "pong"

    async def test_everywhere(self, beam: Beam, start_node: NodeStarter) -> None:
        node = await start_node(listen=("", 0))
        assert await beam.eval(PING, py=node.name) == "pong"
