"""Two nodes of ours, without a BEAM: the same basics."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from snex_node import (
    Atom,
    CallTimeoutError,
    ConnectError,
    From,
    GenServer,
    Node,
    Process,
    ProcessExitError,
    RemoteError,
)
from tests.interop import functions
from tests.support.tied import links_of
from tests.support.waiting import until

pytestmark = pytest.mark.both_loops


@pytest.fixture(autouse=True)
def _fresh_functions() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


class Server(GenServer):
    def __init__(self, node: Node) -> None:
        super().__init__(node, name="server")
        self.withdrawn: list[bytes] = []
        self.waiting: list[From] = []

    async def handle_call(self, request: object, caller: From) -> object:
        if request == "wait":
            self.waiting.append(caller)
            await asyncio.Event().wait()
        if request == "crash":
            raise ValueError("on purpose")
        return (Atom("ok"), request)

    def demonitored(self, ref: bytes) -> None:
        self.withdrawn.append(ref)


def new_name(host: str = "127.0.0.1") -> str:
    return f"py{secrets.token_hex(4)}@{host}"


@pytest.fixture(params=["long", "short"])
async def nodes(request: pytest.FixtureRequest, epmd_port: int) -> AsyncIterator[tuple[Node, Node]]:
    """The first starts an epmd of ours, the other uses it."""
    host = "127.0.0.1" if request.param == "long" else "localhost"
    port, cookie = epmd_port, secrets.token_hex(8)
    async with (
        Node(new_name(host), cookie=cookie, epmd="embedded", epmd_port=port) as one,
        Node(new_name(host), cookie=cookie, epmd="embedded", epmd_port=port) as two,
    ):
        yield one, two


Nodes = tuple[Node, Node]


async def test_connecting(nodes: Nodes) -> None:
    one, two = nodes
    events = Process(two)
    two.monitor_nodes(events)
    await one.connect(two.name)
    assert await events.receive(timeout=5) == ("nodeup", one.name)
    assert (one.nodes, two.nodes) == ([two.name], [one.name])
    assert await one.ping(two.name) is True
    assert await two.ping(one.name) is True
    two.disconnect(one.name)
    assert await events.receive(timeout=5) == ("nodedown", one.name)
    await until(lambda: not one.nodes)
    assert await one.ping(two.name) is True
    with pytest.raises(ConnectError):
        await one.connect(f"nobody@{one.name.partition('@')[2]}")


async def test_calls(nodes: Nodes) -> None:
    one, two = nodes
    server = Server(two)
    assert await one.call(("server", two.name), 1) == ("ok", 1)
    assert await one.call(server.pid, b"x" * 1_000_000) == ("ok", b"x" * 1_000_000)
    assert await two.call("server", {b"k": [1.5]}) == ("ok", {b"k": [1.5]})
    with pytest.raises(CallTimeoutError):
        await one.call(server.pid, Atom("wait"), timeout=0.01)
    # Given up, but the server does not look: it is busy still.
    await until(lambda: server.waiting[0].ref in server.withdrawn)
    server.exit(Atom("kill"))
    with pytest.raises(ProcessExitError) as caught:
        await one.call(server.pid, 1)
    assert caught.value.reason == "noproc"


async def test_a_crash(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    one, two = nodes
    server = Server(two)
    with pytest.raises(ProcessExitError) as caught:
        await one.call(server.pid, Atom("crash"))
    assert isinstance(caught.value.reason, tuple)
    reason, stack = caught.value.reason
    assert reason == ("python_error", b"ValueError", b"on purpose")
    assert stack[0][1] == "handle_call"


async def test_rpc(nodes: Nodes) -> None:
    one, two = nodes
    assert await one.rpc(two.name, "math", "sqrt", [16]) == 4.0
    waiting = asyncio.ensure_future(one.rpc(two.name, functions.MODULE, "wait", [1]))
    await until(lambda: functions.running)
    functions.go_on[0].set()
    assert await waiting == ("waited", 1)
    with pytest.raises(RemoteError) as caught:
        await one.rpc(two.name, functions.MODULE, "fail", ["bad"])
    assert caught.value.kind == "error"
    assert caught.value.reason == ("python_error", b"ValueError", b"bad")
    with pytest.raises(RemoteError) as caught:
        await one.rpc(two.name, "nothing", "at_all")
    assert caught.value.reason == "undef"
    with pytest.raises(CallTimeoutError):
        await one.rpc(two.name, functions.MODULE, "wait", [2], timeout=0.05)
    await until(lambda: functions.cancelled == [2])
    assert await one.rpc(two.name, "math", "sqrt", [16]) == 4.0


async def test_spawn(nodes: Nodes) -> None:
    one, two = nodes
    owner = Process(one)
    owner.trap_exit = True
    pid = await one.spawn(two.name, functions.MODULE, "fail", ["bad"], link=owner, monitor=owner)
    first, second = await owner.receive(timeout=5), await owner.receive(timeout=5)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert first[:2] == ("EXIT", pid)
    assert first[2][0] == ("python_error", b"ValueError", b"bad")
    assert (second[0], second[3]) == ("DOWN", pid)
    pid = await one.spawn(two.name, functions.MODULE, "wait", [1], link=owner)
    await until(lambda: functions.running)
    owner.exit(Atom("over"))
    await until(lambda: functions.cancelled == [1])
    assert two.find(pid) is None


async def test_messages_in_order(nodes: Nodes) -> None:
    one, two = nodes
    inbox, sender = Process(two, name="inbox"), Process(one)
    for n in range(1000):
        ballast = bytes(200_000 if n % 50 == 7 else n)
        sender.send(inbox.pid if n % 2 else ("inbox", two.name), (n, ballast))
    numbers = []
    for _ in range(1000):
        message = await inbox.receive(timeout=5)
        assert isinstance(message, tuple)
        numbers.append(message[0])
    assert numbers == list(range(1000))


async def test_links_and_monitors(nodes: Nodes) -> None:
    one, two = nodes
    here, there = Process(one), Process(two, name="there")
    here.trap_exit = True
    here.link(there.pid)
    refs = [here.monitor(there.pid), here.monitor(("there", two.name))]
    missing = here.monitor(("missing", two.name))
    down = await here.receive(timeout=5)
    assert down == ("DOWN", missing, "process", ("missing", two.name), "noproc")
    there.exit((Atom("because"), 1))
    seen = [await here.receive(timeout=5) for _ in range(3)]
    assert ("EXIT", there.pid, ("because", 1)) in seen
    assert ("DOWN", refs[0], "process", there.pid, ("because", 1)) in seen
    assert ("DOWN", refs[1], "process", ("there", two.name), ("because", 1)) in seen
    other = Process(two)
    here.link(other.pid)
    here.unlink(other.pid)
    here.exit_signal(other.pid, Atom("boom"))
    await until(lambda: not other.alive)
    assert other.exit_reason == "boom"
    await until(lambda: not links_of(here))


async def test_losing_the_connection(nodes: Nodes) -> None:
    one, two = nodes
    here, there = Process(one), Process(two)
    server = Server(two)
    for process in (here, there):
        process.trap_exit = True
    here.link(there.pid)
    ref = here.monitor(there.pid)
    calling = asyncio.ensure_future(one.call(server.pid, Atom("wait"), timeout=None))
    await until(lambda: server.waiting)
    await two.stop()
    with pytest.raises(ProcessExitError) as caught:
        await calling
    # It ended before its node did, and told so.
    assert caught.value.reason == "shutdown"
    seen = [await here.receive(timeout=5) for _ in range(2)]
    assert ("EXIT", there.pid, "shutdown") in seen
    assert ("DOWN", ref, "process", there.pid, "shutdown") in seen
    assert await one.ping(two.name) is False
