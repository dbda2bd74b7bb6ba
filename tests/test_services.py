"""Functions that other nodes call here: what a scripted peer sends and gets, in order."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from snex_node import (
    Atom,
    Node,
    Pid,
    Process,
    UndefinedFunctionError,
    errors,
    import_function,
    services,
)
from snex_node.errors import MAX_STACK, MAX_TEXT, error_reason, error_stack
from snex_node.services import TUNING
from snex_node.wire import control, etf
from snex_node.wire.control import (
    ControlMessage,
    DemonitorP,
    Exit2,
    Link,
    MonitorP,
    PayloadExit,
    PayloadMonitorPExit,
    RegSend,
    SendSender,
    SpawnReply,
    SpawnRequest,
)
from snex_node.wire.handshake import Identity
from tests.support.peer import ScriptedPeer

encode = etf.Encoder().encode
IDENTITY = Identity("peer@127.0.0.1", 77)

events: list[object] = []
gates: list[asyncio.Event] = []


async def wait(key: object) -> object:
    gates.append(asyncio.Event())
    events.append(("running", key))
    try:
        await gates[-1].wait()
    except asyncio.CancelledError:
        events.append(("cancelled", key))
        raise
    return key


def functions(module: str, function: str) -> Callable[..., object]:
    """A resolver that knows what the tests call."""
    known: dict[str, Callable[..., object]] = {
        "echo": lambda *args: list(args),
        "fail": lambda: 1 / 0,
        "wait": wait,
        "object": object,
        "undefined_inside": lambda: functions("", "nothing"),
    }
    if function == "stop":
        raise KeyboardInterrupt
    if function not in known:
        raise UndefinedFunctionError(function)
    return known[function]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    events.clear()
    gates.clear()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node(
        "py@127.0.0.1",
        cookie="secret",
        epmd="none",
        resolver=functions,
        decoder=etf.Decoder(binary_as="str"),
    )
    async with node:
        yield node


@pytest.fixture
async def peer(node: Node) -> AsyncIterator[ScriptedPeer]:
    assert node.port is not None
    async with await ScriptedPeer.connect(IDENTITY, "secret", node.name, node.port) as peer:
        yield peer


def payload_of(data: bytes, offset: int) -> Any:
    return etf.Decoder(binary_as="str").decode(data, offset)[0] if offset < len(data) else None


async def read(peer: ScriptedPeer) -> tuple[ControlMessage, Any]:
    message = await peer.read()
    return message.control, payload_of(message.data, message.offset)


async def spawn(
    peer: ScriptedPeer, mfa: tuple[str, str], args: object, *options: object
) -> SpawnRequest:
    arity = len(args) if isinstance(args, list) else 0
    request = SpawnRequest(
        peer.make_ref(),
        peer.pid(),
        peer.pid(2),
        (Atom(mfa[0]), Atom(mfa[1]), arity),
        [Atom(option) if isinstance(option, str) else option for option in options],
    )
    await peer.send(request, encode(args))
    return request


async def started(peer: ScriptedPeer, request: SpawnRequest, flags: int) -> Pid:
    reply, _ = await read(peer)
    assert isinstance(reply, SpawnReply)
    assert (reply.id, reply.to, reply.flags) == (request.id, peer.pid(), flags)
    assert isinstance(reply.result, Pid)
    return reply.result


async def erpc(peer: ScriptedPeer, function: str, *args: object) -> Any:
    """What `erpc:call` does on the wire; the reason with which its process ends."""
    result = peer.make_ref()
    call = [result, Atom("m"), Atom(function), list(args)]
    request = await spawn(peer, ("erpc", "execute_call"), call, "monitor")
    pid = await started(peer, request, SpawnReply.MONITOR)
    down, reason = await read(peer)
    assert down == PayloadMonitorPExit(pid, peer.pid(), request.id)
    if isinstance(reason, tuple) and reason[0] == result:
        return reason[1:]
    return reason


async def settled(peer: ScriptedPeer) -> None:
    """Return when what was sent before has been handled."""
    ref = peer.make_ref()
    ping = (Atom("$gen_call"), (peer.pid(3), ref), (Atom("is_auth"), Atom(peer.name)))
    await peer.send(RegSend(peer.pid(3), Atom("net_kernel")), encode(ping))
    message, payload = await read(peer)
    assert isinstance(message, SendSender)
    assert payload == (ref, "yes")


class TestErpc:
    async def test_results(self, peer: ScriptedPeer) -> None:
        assert await erpc(peer, "echo", 1, "two") == ("return", [1, "two"])

    async def test_results_are_encoded_as_the_caller_wants_them(
        self, node: Node, peer: ScriptedPeer
    ) -> None:
        node.remote(peer.name).encoder = etf.Encoder(default=lambda value: "substitute")
        assert await erpc(peer, "object") == ("return", "substitute")
        ref = peer.make_ref()
        call: object = (Atom("call"), Atom("m"), Atom("object"), [], peer.pid())
        message = (Atom("$gen_call"), (peer.pid(), ref), call)
        await peer.send(RegSend(peer.pid(), Atom("rex")), encode(message))
        assert (await read(peer))[1] == (ref, "substitute")

    async def test_failures(self, peer: ScriptedPeer) -> None:
        kind, reason, stack = await erpc(peer, "fail")
        assert kind == "error"
        assert reason == ("python_error", "ZeroDivisionError", "division by zero")
        assert stack[0][:3] == ("python", "<lambda>", 0)
        kind, reason, stack = await erpc(peer, "nothing", 1)
        assert (kind, reason, stack) == ("error", "undef", [("m", "nothing", [1], [])])
        # Undefined is what cannot be found, not what is raised by what was found.
        kind, reason, _ = await erpc(peer, "undefined_inside")
        assert reason[1].endswith("UndefinedFunctionError")
        kind, reason, _ = await erpc(peer, "object")
        assert reason[1].endswith("EncodeTypeError")

    async def test_a_call_that_is_taken_back(self, node: Node, peer: ScriptedPeer) -> None:
        call = [peer.make_ref(), Atom("m"), Atom("wait"), [1]]
        request = await spawn(peer, ("erpc", "execute_call"), call, "monitor")
        pid = await started(peer, request, SpawnReply.MONITOR)
        assert events == [("running", 1)]
        await peer.send(DemonitorP(peer.pid(), pid, request.id))
        await settled(peer)
        assert events == [("running", 1), ("cancelled", 1)]
        assert node.find(pid) is None

    async def test_another_s_monitor_is_not_the_caller_s(
        self, node: Node, peer: ScriptedPeer
    ) -> None:
        """A cast has no caller that could give up, and goes on when a monitor is withdrawn."""
        request = await spawn(peer, ("erpc", "execute_cast"), [Atom("m"), Atom("wait"), [1]])
        pid = await started(peer, request, 0)
        monitor = peer.make_ref()
        await peer.send(MonitorP(peer.pid(), pid, monitor))
        await peer.send(DemonitorP(peer.pid(), pid, monitor))
        await settled(peer)
        assert events == [("running", 1)]
        assert node.find(pid) is not None


class TestSpawn:
    async def test_the_reply_comes_first(self, peer: ScriptedPeer) -> None:
        request = await spawn(peer, ("m", "echo"), [1], "link", "monitor")
        pid = await started(peer, request, SpawnReply.LINK | SpawnReply.MONITOR)
        assert await read(peer) == (PayloadExit(pid, peer.pid()), "normal")
        assert await read(peer) == (PayloadMonitorPExit(pid, peer.pid(), request.id), "normal")

    async def test_failures_are_exits(
        self, peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        request = await spawn(peer, ("m", "fail"), [], "link")
        await started(peer, request, SpawnReply.LINK)
        _, reason = await read(peer)
        assert reason[0] == ("python_error", "ZeroDivisionError", "division by zero")
        request = await spawn(peer, ("m", "nothing"), [1], "link")
        await started(peer, request, SpawnReply.LINK)
        _, reason = await read(peer)
        assert reason == ("undef", [("m", "nothing", [1], [])])
        assert len(caplog.records) == 2

    async def test_a_process_that_waits_can_be_killed(self, node: Node, peer: ScriptedPeer) -> None:
        request = await spawn(peer, ("m", "wait"), [1], "monitor")
        pid = await started(peer, request, SpawnReply.MONITOR)
        await peer.send(Link(peer.pid(2), pid))
        await peer.send(Exit2(peer.pid(), pid, Atom("kill")))
        seen = [await read(peer), await read(peer)]
        assert (PayloadExit(pid, peer.pid(2)), "killed") in seen
        assert (PayloadMonitorPExit(pid, peer.pid(), request.id), "killed") in seen
        await settled(peer)
        assert events == [("running", 1), ("cancelled", 1)]

    async def test_killed_before_it_begins(self, node: Node, peer: ScriptedPeer) -> None:
        """The request and the kill come in one read: the coroutine has had no turn yet."""
        request = SpawnRequest(
            peer.make_ref(), peer.pid(), peer.pid(), (Atom("m"), Atom("wait"), 1), []
        )
        frame = peer.frame_writer.frame
        data = frame(control.encode(request), encode([1]))
        number = node._client.pid.id + 3  # after the client, net_kernel and rex
        pid = Pid(node.name, number, 0, node.creation)
        data += frame(control.encode(Exit2(peer.pid(), pid, Atom("kill"))))
        await peer.send_raw(data)
        assert await started(peer, request, 0) == pid
        await settled(peer)
        assert events == []
        assert node.find(pid) is None

    async def test_its_end_comes_when_it_does(self, peer: ScriptedPeer) -> None:
        request = await spawn(peer, ("m", "wait"), [1], "monitor")
        pid = await started(peer, request, SpawnReply.MONITOR)
        await settled(peer)
        gates[0].set()
        assert await read(peer) == (PayloadMonitorPExit(pid, peer.pid(), request.id), "normal")

    async def test_the_end_of_the_program_goes_through(
        self, node: Node, peer: ScriptedPeer
    ) -> None:
        job = services._Job(node)
        with pytest.raises(KeyboardInterrupt):
            job.run(functions, "m", "stop", [])
        interrupted = services._Job(node)

        async def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await interrupted.finish(interrupt())
        job.exit()
        interrupted.exit()

    async def test_options(self, peer: ScriptedPeer) -> None:
        tuning = [(Atom(name), Atom("high")) for name in sorted(TUNING)]
        request = await spawn(peer, ("m", "echo"), [], *tuning)
        await started(peer, request, 0)
        for bad in ("bogus", (Atom("bogus"), 1), (Atom("priority"),), ("priority", 1), 1):
            request = await spawn(peer, ("m", "echo"), [], bad)
            reply, _ = await read(peer)
            assert reply == SpawnReply(request.id, peer.pid(), 0, Atom("badopt"))

    @pytest.mark.parametrize(
        ("mfa", "args", "why"),
        [
            (("erlang", "apply"), [1, []], "notsup"),
            (("m", "echo"), Atom("no_list"), "badarg"),
            (("erpc", "execute_call"), [1, Atom("m"), Atom("f")], "badarg"),
            (("erpc", "execute_call"), [1, Atom("m"), Atom("f"), 1], "badarg"),
            (("erpc", "execute_cast"), [1, Atom("m"), Atom("f"), []], "badarg"),
        ],
    )
    async def test_what_is_refused(
        self, peer: ScriptedPeer, mfa: tuple[str, str], args: object, why: str
    ) -> None:
        request = await spawn(peer, mfa, args, "link", "monitor")
        reply, _ = await read(peer)
        assert reply == SpawnReply(request.id, peer.pid(), 0, Atom(why))

    async def test_functions_of_erlang_are_not_here(self, peer: ScriptedPeer) -> None:
        request = await spawn(peer, ("erlang", "node"), [], "link")
        await started(peer, request, SpawnReply.LINK)
        _, reason = await read(peer)
        assert reason == ("undef", [("erlang", "node", [], [])])


class TestRex:
    async def call(self, peer: ScriptedPeer, request: object) -> object:
        ref = peer.make_ref()
        message = (Atom("$gen_call"), (peer.pid(), ref), request)
        await peer.send(RegSend(peer.pid(), Atom("rex")), encode(message))
        _, answer = await read(peer)
        assert isinstance(answer, tuple)
        assert answer[0] == ref
        return answer[1]

    async def test_calls(self, peer: ScriptedPeer) -> None:
        mfa = (Atom("m"), Atom("echo"), [1], peer.pid())
        for kind in ("call", "block_call"):
            assert await self.call(peer, (Atom(kind), *mfa)) == [1]
        for bad in (1, (), (Atom("call"),), (Atom("other"), *mfa), (Atom("call"), 1, 2, 3, 4)):
            assert await self.call(peer, bad) == ("badrpc", "badarg")
        bad_value = await self.call(peer, (Atom("call"), Atom("m"), Atom("object"), []))
        assert isinstance(bad_value, tuple)
        assert bad_value[1][1][0][1].endswith("EncodeTypeError")

    async def test_a_caller_that_gives_up(self, node: Node, peer: ScriptedPeer) -> None:
        ref = peer.make_ref()
        await peer.send(MonitorP(peer.pid(), Atom("rex"), ref))
        for key, tag in (1, ref), (2, Atom("no_ref")):
            request = (Atom("block_call"), Atom("m"), Atom("wait"), [key], peer.pid())
            call = (Atom("$gen_call"), (peer.pid(), tag), request)
            await peer.send(RegSend(peer.pid(), Atom("rex")), encode(call))
        await settled(peer)  # in one read with the end of its monitor, the first would not begin
        assert events == [("running", 1), ("running", 2)]
        await peer.send(DemonitorP(peer.pid(), Atom("rex"), ref))
        await settled(peer)
        assert events == [("running", 1), ("running", 2), ("cancelled", 1)]
        gates[1].set()
        assert (await read(peer))[1] == ("no_ref", 2)
        rex = node.find("rex")
        assert isinstance(rex, services.Rex)
        assert rex._calls == {}

    async def test_casts(self, peer: ScriptedPeer) -> None:
        for request in ((Atom("cast"), Atom("m"), Atom("wait"), [1], peer.pid()), 1, ()):
            message = (Atom("$gen_cast"), request)
            await peer.send(RegSend(peer.pid(), Atom("rex")), encode(message))
        await settled(peer)
        assert events == [("running", 1)]


class TestRexByPlainMessages:
    """What C nodes and `:rpc.sbcast` send: ``{From, Request}``, answered by ``{rex, ..}``."""

    async def ask(self, peer: ScriptedPeer, request: object) -> object:
        message = encode((peer.pid(), request))
        await peer.send(RegSend(peer.pid(), Atom("rex")), message)
        return (await read(peer))[1]

    async def test_calls(self, peer: ScriptedPeer) -> None:
        mfa = (Atom("m"), Atom("echo"), [1], Atom("user"))
        assert await self.ask(peer, (Atom("call"), *mfa)) == ("rex", [1])
        missing: object = (Atom("call"), Atom("m"), Atom("nothing"), [], Atom("user"))
        answer: object = ("badrpc", ("EXIT", ("undef", [("m", "nothing", [], [])])))
        assert await self.ask(peer, missing) == ("rex", answer)

    async def test_sbcast(self, node: Node, peer: ScriptedPeer) -> None:
        inbox = Process(node, name="inbox")
        request = (Atom("sbcast"), Atom("inbox"), 1)
        assert await self.ask(peer, request) == ("rex", node.name, node.name)
        assert await inbox.receive(timeout=5) == 1
        request = (Atom("sbcast"), Atom("nobody"), 1)
        nobody = ("nonexisting_name", "nobody")
        assert await self.ask(peer, request) == ("rex", node.name, nobody)

    async def test_send(self, node: Node, peer: ScriptedPeer) -> None:
        inbox = Process(node, name="inbox")
        message = encode((peer.pid(), (Atom("send"), Atom("inbox"), 1)))
        await peer.send(RegSend(peer.pid(), Atom("rex")), message)
        assert await inbox.receive(timeout=5) == (peer.pid(), 1)
        request = (Atom("send"), Atom("nobody"), 1)
        nobody = ("nonexisting_name", "nobody")
        assert await self.ask(peer, request) == ("rex", node.name, nobody)

    async def test_features(self, node: Node, peer: ScriptedPeer) -> None:
        answer = ("features_reply", node.name, ["erpc"])
        assert await self.ask(peer, Atom("features_request")) == answer

    async def test_the_rest_is_dropped(self, peer: ScriptedPeer) -> None:
        for request in (1, (), (Atom("other"), Atom("rex"), 1), (Atom("sbcast"), 1, 1), [1]):
            for message in ((peer.pid(), request), (1, request), request):
                await peer.send(RegSend(peer.pid(), Atom("rex")), encode(message))
        mfa = (Atom("m"), Atom("echo"), [1], Atom("user"))
        assert await self.ask(peer, (Atom("call"), *mfa)) == ("rex", [1])


@pytest.mark.parametrize(
    "option",
    [(Atom("x"), b"a" * 100_000), Atom("x" * 255), [b"y" * 1000] * 1000, 10**5000],
    ids=["tuple", "atom", "list", "integer"],
)
async def test_a_bad_option_is_logged_in_short(
    peer: ScriptedPeer, caplog: pytest.LogCaptureFixture, option: object
) -> None:
    request = await spawn(peer, ("m", "echo"), [1], option)
    control, _ = await read(peer)
    assert control == SpawnReply(request.id, peer.pid(), 0, Atom("badopt"))
    [record] = caplog.records
    assert "refused to spawn m:echo/1: there is no option" in record.getMessage()
    assert len(record.getMessage()) < 500


class TestNetKernel:
    async def test_says_yes(self, peer: ScriptedPeer) -> None:
        await settled(peer)

    async def test_says_no_to_all_else(self, peer: ScriptedPeer) -> None:
        ref = peer.make_ref()
        message = (Atom("$gen_call"), (peer.pid(), ref), (Atom("spawn"), 1))
        await peer.send(RegSend(peer.pid(), Atom("net_kernel")), encode(message))
        assert (await read(peer))[1] == (ref, "no")


class TestImportFunction:
    def test_found(self) -> None:
        assert import_function("math", "sqrt")(16) == 4
        assert import_function("os.path", "join") is importlib.import_module("os.path").join
        assert import_function("datetime", "datetime.now")() is not None

    @pytest.mark.parametrize(
        ("module", "function"),
        [
            ("no_such_module", "f"),
            ("math.no_such_module", "f"),
            ("Elixir.Enum", "map"),
            ("math", "no_such_function"),
            ("math", "sqrt.nothing"),
            ("math", "pi"),
        ],
    )
    def test_undefined(self, module: str, function: str) -> None:
        with pytest.raises(UndefinedFunctionError):
            import_function(module, function)

    def test_a_module_that_lacks_another_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The module is there: what is wrong is in it, and is told."""
        (tmp_path / "lacks_a_module.py").write_text("import no_such_module_at_all\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
            import_function("lacks_a_module", "f")
        sys.modules.pop("lacks_a_module", None)


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class TestErrorsAsTerms:
    def test_reasons(self) -> None:
        assert error_reason(ValueError("x")) == ("python_error", "ValueError", "x")
        name = f"{__name__}.Unreadable"
        text = "<exception str() failed>"
        assert error_reason(Unreadable()) == ("python_error", name, text)

    def test_text_is_utf8_and_bounded(self) -> None:
        reason: Any = error_reason(ValueError("\ud800x" + "y" * 10 * MAX_TEXT))
        _, _, text = reason
        assert text.startswith("?xyy")
        assert len(text) == MAX_TEXT

    def test_stacks(self) -> None:
        def inner() -> None:
            raise ValueError

        try:
            inner()
        except ValueError as error:
            stack: list[Any] = error_stack(error)
        assert [frame[1] for frame in stack] == ["inner", "test_stacks"]
        module, _, arity, where = stack[0]
        assert (module, arity) == ("python", 0)
        assert dict(where)["file"] == [ord(c) for c in __file__]
        assert dict(where)["line"] > 0
        assert etf.decode(etf.encode(stack)) == stack

    def test_deep_ones_are_cut(self) -> None:
        def down() -> None:
            down()

        try:
            down()
        except RecursionError as error:
            stack: list[Any] = error_stack(error)
        assert len(stack) == MAX_STACK
        assert stack[0][1] == "down"

    def test_frames_of_this_package_are_left_out(self) -> None:
        try:
            import_function("no_such_module", "f")
        except UndefinedFunctionError as error:
            stack: list[Any] = error_stack(error)
        assert [frame[1] for frame in stack] == ["test_frames_of_this_package_are_left_out"]

    def test_names_that_are_no_text(self) -> None:
        source = compile("def f(): raise ValueError\nf()", "fil\udcffe.py", "exec")
        try:
            exec(source, {})
        except ValueError as error:
            stack: list[Any] = error_stack(error)
        assert dict(stack[0][3])["file"] == [ord(c) for c in "fil?e.py"]

    def test_errors_have_a_base(self) -> None:
        for error in (
            errors.NodeStartError("x"),
            errors.ConnectError("a@b", "unknown", "x"),
            errors.ProcessExitError(Atom("boom")),
            errors.CallTimeoutError("x"),
            errors.RemoteError("error", Atom("boom")),
        ):
            assert isinstance(error, errors.NodeError)
        assert isinstance(errors.CallTimeoutError("x"), TimeoutError)
        assert str(errors.ProcessExitError(Atom("boom"))) == "the process has ended: :boom"
        assert str(errors.RemoteError("error", Atom("boom"))) == "error: :boom"
