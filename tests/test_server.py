"""The process registered as ``snex``, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Node, Process
from snex_node.errors import CallTimeoutError, ConnectError, ProcessExitError, RemoteError
from snex_node.wire.etf import Encoder
from snex_runtime import interface, serde
from snex_runtime.namespace import NAME
from snex_runtime.server import Server
from tests.support.calling import (
    OK,
    A,
    Caller,
    calling,
)
from tests.support.waiting import until


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


@pytest.fixture
async def started(caller: Caller) -> Caller:
    """A caller that knows when code has begun to wait: ``began.set()`` in that code."""
    caller.server.provide(began=asyncio.Event(), ended=asyncio.Event(), asyncio=asyncio)
    return caller


FINALLY = """
began.set()
try:
    await asyncio.sleep(60)
finally:
    ended.set()
"""


async def test_a_runtime_that_stops_cancels_what_runs(started: Caller) -> None:
    root: dict[str, Any] = started.server.root
    call = asyncio.ensure_future(started.eval(FINALLY))
    await root["began"].wait()
    node = started.server.node
    assert isinstance(node, Node)
    await node.stop()
    await asyncio.wait_for(root["ended"].wait(), 5)
    with contextlib.suppress(ProcessExitError):
        tag, error = await call
        assert (tag, error[A("code")]) == (A("error"), A("cancelled"))


class TestOnItsOwnNode:
    """Processes of the node that it is on call it as others do."""

    async def test_calls(self, caller: Caller) -> None:
        node, server = caller.server.node, caller.to
        assert await node.call(server, A("ping")) == A("pong")
        assert await node.call(server, (A("eval"), "return x + 1", {"x": 1})) == (OK, 2)
        awaits = "import asyncio\nawait asyncio.sleep(0)\nreturn 'slept'"
        assert await node.call(server, (A("eval"), awaits, {})) == (OK, "slept")
        error: Any = await node.call(server, (A("eval"), "1 / 0", {}))
        assert error[1][A("code")] == A("python_runtime_error")

    async def test_environments(self, caller: Caller) -> None:
        node, env = caller.server.node, await caller.env({"x": 1})
        assert await node.call(env, (A("eval"), "x += 1", {})) == (OK, None)
        assert await node.call(env, (A("eval"), "return x", {})) == (OK, 2)
        node.cast(env, (A("eval"), "x = 5", {}))
        assert await node.call(env, (A("eval"), "return x", {})) == (OK, 5)

    async def test_a_caller_that_gives_up(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        with pytest.raises(CallTimeoutError):
            await started.server.node.call(started.to, (A("eval"), FINALLY, {}), timeout=0.1)
        await asyncio.wait_for(root["ended"].wait(), 5)

    async def test_what_is_no_call_is_dropped(self, caller: Caller) -> None:
        caller.server.provide(seen=[])
        messages: list[object] = ["hello", (), (A("eval"), "seen.append(1)", {})]
        for message in messages:
            caller.server.message_received(message)
        caller.server.message_received((A("$gen_cast"), (A("eval"), "seen.append(2)", {})))
        assert caller.server.root["seen"] == [2]


class TestEnd:
    async def test_it_tells_why(self, caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
        ended = asyncio.ensure_future(caller.server.wait_ended())
        await asyncio.sleep(0)
        assert not ended.done()
        caller.server.exit(A("killed"))
        assert await ended == "killed"
        assert f"the runtime of {caller.server.node.name} has ended: killed" in caplog.text
        assert NAME not in sys.modules
        assert interface.current_backend() is None
        assert interface.has_stopped()

    async def test_exit_signals_do_not_end_it(
        self, caller: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        process = Process(caller.node)
        process.exit_signal(caller.server.pid, A("shutdown"))
        assert await caller.call(A("ping")) == A("pong")
        assert caller.server.alive
        assert "does not end the runtime" in caplog.text

    @pytest.mark.parametrize(
        ("request_", "why"),
        [((A("terminate"), A("normal")), "not_allowed"), (A("get_state"), "unknown_system_msg")],
    )
    async def test_nor_do_system_messages(self, caller: Caller, request_: object, why: str) -> None:
        process, tag = Process(caller.node), caller.node.make_ref()
        process.send(caller.to, (A("system"), (process.pid, tag), request_))
        assert await process.receive(timeout=5) == (tag, (A("error"), A(why)))
        assert caller.server.alive


class TestNodes:
    async def test_one_that_goes_is_forgotten(self, caller: Caller) -> None:
        name = str(caller.node.name)
        await until(lambda: caller.server.backend.log_node(name) == name)
        caller.server.node.disconnect(name)
        await until(lambda: caller.server.backend.log_node(name) is None)

    @pytest.mark.parametrize(
        ("structs", "expected", "asked_for"),
        [
            ({"MapSet": {"map": {}, "version": 2}}, serde.encoder_v2, ["MapSet"]),
            ({"MapSet": {"map": {}}}, serde.encoder_without_duration, ["MapSet", "Duration"]),
            ({"MapSet": {"map": {}}, "Duration": {}}, serde.encoder, ["MapSet", "Duration"]),
            ({}, serde.encoder_without_duration, ["MapSet"]),
        ],
        ids=["Elixir 1.14", "Elixir 1.16", "Elixir 1.17", "no Elixir"],
    )
    async def test_which_structs_it_takes(
        self,
        caller: Caller,
        monkeypatch: pytest.MonkeyPatch,
        structs: dict[str, object],
        expected: Encoder,
        asked_for: list[str],
    ) -> None:
        remote = caller.server.node.remote(caller.node.name)
        # It has been asked, and is a node without Elixir.
        await until(lambda: remote.encoder is serde.encoder_without_duration)
        asked: list[object] = []

        async def rpc(node: str, module: str, function: str, **_: object) -> object:
            asked.append((node, module, function))
            try:
                return structs[module.removeprefix("Elixir.")]
            except KeyError:
                raise RemoteError("error", A("undef")) from None

        monkeypatch.setattr(caller.server.node, "rpc", rpc)
        name = caller.node.name
        remote.encoder = Encoder()
        caller.server.message_received((A("nodeup"), name))
        await until(lambda: remote.encoder is expected)
        assert asked == [(name, f"Elixir.{module}", "__struct__") for module in asked_for]

    async def test_one_that_goes_while_it_is_asked(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = asyncio.Event()

        async def rpc(*_: object, **__: object) -> object:
            asked.set()
            raise ConnectError("py@host", "lost", "it has gone")

        remote = caller.server.node.remote(caller.node.name)
        before = serde.encoder_without_duration
        await until(lambda: remote.encoder is before)
        monkeypatch.setattr(caller.server.node, "rpc", rpc)
        caller.server.message_received((A("nodeup"), caller.node.name))
        await asyncio.wait_for(asked.wait(), 10)
        assert remote.encoder is before

    async def test_a_handle_that_ends(self, caller: Caller) -> None:
        handle = Process(caller.node)
        await caller.env(handle=handle.pid)
        handle.exit()
        await until(lambda: len(caller.server.environments) == 0)


async def test_the_init_script_prepares_all_environments(caller: Caller) -> None:
    assert await caller.server.init("base = 40", "init.py", timeout=10) is None
    assert await caller.value("return base", to=await caller.env()) == 40
    failure = await caller.server.init("raise ValueError('no')", "init.py")
    assert failure is not None
    assert failure.reason == "no"


async def test_info_is_the_server_s(caller: Caller) -> None:
    ok, told = await caller.call(A("info"))
    assert ok == OK
    assert told[A("environments")] == 0
    code, _ = await caller.error(A("info"), to=await caller.env())
    assert code == "bad_request"


async def test_what_there_is_is_told_in_parts(caller: Caller) -> None:
    env = await caller.env({"x": 1})
    ok, (told,) = await caller.call((A("info"), A("environments")))
    assert (ok, told[A("env")]) == (A("ok"), env)
    for request in ((A("info"), A("nope")), (A("info"), A("environments"), 1)):
        assert (await caller.error(request))[0] == "bad_request"
    assert (await caller.error((A("info"), A("environments")), to=env))[0] == "bad_request"


async def test_a_name_that_is_taken(caller: Caller) -> None:
    node = caller.server.node
    assert isinstance(node, Node)
    with pytest.raises(ValueError, match="snex"):
        Server(node)
    assert await caller.value("return 1") == 1
