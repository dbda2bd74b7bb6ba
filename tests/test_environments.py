"""Environments: variable contexts, their handles, and what is copied between them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from snex_node import Process
from snex_node.processes.process import DOWN, NORMAL
from snex_node.wire.terms import Atom
from snex_runtime.environments import Environment, copy_into, names_in
from snex_runtime.errors import BadRequest
from tests.support.pair import Pair, pair
from tests.support.tied import monitors_of


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


class Holder:
    """Stands for an environment where only its variables matter."""

    def __init__(self, **variables: object) -> None:
        self.variables = variables


class TestCopyInto:
    @pytest.mark.parametrize(
        ("sources", "expected"),
        [
            ([], {"b": 0}),
            ([({"x": 1, "y": 2}, None, None)], {"x": 1, "y": 2}),
            ([({"x": 1, "y": 2}, ["x"], None)], {"x": 1}),
            ([({"x": 1}, ["x", "lacks"], None)], {"x": 1, "lacks": None}),
            ([({"x": 1, "y": 2}, None, ["x", "other"])], {"y": 2}),
            ([({"x": 1}, None, None), ({"x": 2}, None, None)], {"x": 2}),
            ([({"x": 1}, [], None)], {}),
            ([({"b": 9, "x": 1}, None, None)], {"x": 1}),
            ([({"x": 1}, ["b"], None)], {}),
        ],
    )
    def test_sources(self, sources: list[tuple[object, ...]], expected: dict[str, object]) -> None:
        variables: dict[str, object] = {"b": 0}
        made = [(Holder(**given), only, out) for given, only, out in sources]  # type: ignore[arg-type]
        copy_into(variables, made, {"b": 0})  # type: ignore[arg-type]
        assert variables == {"b": 0, **expected}

    def test_the_source_is_left_alone(self) -> None:
        holder = Holder(x=[1])
        variables: dict[str, object] = {}
        copy_into(variables, [(holder, None, None)], {"b": 0})  # type: ignore[list-item]
        variables["y"] = 1
        assert holder.variables == {"x": [1]}
        assert variables["x"] is holder.variables["x"]  # as Python copies: names, not values


@pytest.mark.parametrize("value", ["a", None, 7, [1], ["a", None], ("a",)])
def test_names_in_refuses(value: object) -> None:
    with pytest.raises(BadRequest, match="only takes a list of variable names"):
        names_in(value, "only")


def test_names_in() -> None:
    names = names_in(["a", Atom("b")], "only")
    assert names == ["a", "b"]
    assert [type(name) for name in names] == [str, str]


class TestHandles:
    async def test_one_monitor_for_all_it_holds(self, both: Pair) -> None:
        environments = both.server.environments
        handle = Process(both.node)
        made = [environments.make({}, handle.pid) for _ in range(3)]
        assert len(environments) == 3
        assert len(monitors_of(both.server)) == 1
        made[0].exit()
        made[1].exit()
        assert len(monitors_of(both.server)) == 1
        made[2].exit()
        assert not monitors_of(both.server)
        assert len(environments) == 0

    async def test_its_end_frees_them(self, both: Pair) -> None:
        environments = both.server.environments
        handle, watcher = Process(both.node), Process(both.node)
        held = environments.make({}, handle.pid)
        kept = environments.make({}, None)
        watcher.monitor(held.pid)
        handle.exit(Atom("boom"))
        down = await watcher.next(timeout=5)
        assert isinstance(down, tuple)
        assert (down[0], down[3], down[4]) == (DOWN, held.pid, NORMAL)
        assert environments.all() == [kept]

    async def test_changed(self, both: Pair) -> None:
        environments = both.server.environments
        one, two = Process(both.node), Process(both.node)
        environment = environments.make({}, one.pid)
        environments.set_handle(environment, two.pid)
        environments.set_handle(environment, two.pid)
        assert len(monitors_of(both.server)) == 1
        environments.set_handle(environment, None)
        assert not monitors_of(both.server)
        assert environment.handle is None

    async def test_other_messages_are_about_no_handle(self, both: Pair) -> None:
        ref = both.node.make_ref()
        environments = both.server.environments
        pid = Process(both.node).pid
        for what in (pid, ("name", "node")):
            assert not environments.handle_down((DOWN, ref, Atom("process"), what, NORMAL))
        assert not environments.handle_down((Atom("other"), 1, 2, pid, 3))


class TestRequests:
    async def test_get(self, both: Pair) -> None:
        environments = both.server.environments
        environment = environments.make({"x": 1}, None)
        assert environments.get(environment.pid) is environment
        for other in (both.server.pid, both.peer.make_ref(), None, "snex"):
            assert environments.get(other) is None
        environment.exit()
        assert environments.get(environment.pid) is None

    async def test_life(self, both: Pair) -> None:
        ok, env = await both.call("make_env", {"x": 1}, {Atom("handle"): Atom("none")})
        assert ok == "ok"
        [made] = both.server.environments.all()
        assert isinstance(made, Environment)
        assert await both.call("eval", "x += 1; return x", {}, to=made.pid) == ("ok", 2)
        assert await both.call("ping", to=made.pid) == "pong"
        info = (await both.call("info"))[1]
        assert info["environments"] == 1
        assert await both.call("destroy_env", env) == "ok"
        assert await both.call("destroy_env", env) == "ok"
        assert not made.alive

    async def test_all_end_with_the_runtime(self, both: Pair) -> None:
        made = [both.server.environments.make({}, None) for _ in range(3)]
        both.server.exit(Atom("shutdown"))
        assert [each.exit_reason for each in made] == ["shutdown"] * 3

    async def test_provided_names_reach_later_ones(self, both: Pair) -> None:
        both.server.provide(tool=42)
        assert await both.run("return tool") == 42


async def test_a_reply_has_a_bound() -> None:
    async with pair(max_reply=1000) as both:
        assert await both.run("return 'x' * 900") == "x" * 900
        late = "import asyncio; await asyncio.sleep(0); return 'x' * 1000"
        for code in ("return 'x' * 1000", late):
            status, error = await both.call("eval", code, {})
            assert status == "error"
            assert error["code"] == "python_runtime_error"
            # {ok, Binary}: 2 + 4 bytes and 5 + 1000.
            assert "the result takes 1011 bytes, and a reply has at most 1000" in error["reason"]
        assert await both.run("return 1") == 1
