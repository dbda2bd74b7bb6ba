"""Environments: variable contexts, their handles, and what is copied between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest

from snex_node import Process
from snex_node.errors import ProcessExitError
from snex_node.processes.process import DOWN, NORMAL
from snex_node.wire.terms import Atom, Pid
from snex_runtime import serde
from snex_runtime.environments import Environment, copy_into, names_in
from snex_runtime.errors import BadRequest
from tests.support.calling import OK, A, Caller, calling
from tests.support.pair import Pair, pair
from tests.support.requests import request_of
from tests.support.tied import monitors_of
from tests.support.waiting import until


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


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
        down = await watcher.receive(timeout=5)
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


async def test_its_context_is_lent_to_threads(both: Pair) -> None:
    environment = both.server.environments.make({}, None)
    other = ContextVar("other", default=0)
    one = environment.lend()
    one(other.set, 1)
    copy = environment.enter(environment.lend)  # of code here that runs the event loop itself
    environment.give_back(copy)
    two = environment.lend()
    environment.give_back(two)
    assert environment.enter(other.get) in (0, 1)
    environment.give_back(one)
    assert environment.enter(other.get) == 1


async def test_variables_of_its_own(both: Pair) -> None:
    await both.call("init", "model = ['large']\nother = 1", {})
    _, pid = await both.call("make_env", {"x": 1})
    environments = both.server.environments
    environment = environments.get(serde.to_typed(pid))
    assert environment is not None
    assert environments.own(environment) == {"x": 1}
    environment.variables["other"] = 2
    assert environments.own(environment) == {"x": 1, "other": 2}
    assert environment.since > 0


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


class TestContract:
    async def test_they_keep_their_variables_apart(self, caller: Caller) -> None:
        one, two = await caller.env({"x": 1}), await caller.env({"x": 2})
        await caller.eval("y = x * 10", to=one)
        assert await caller.value("return x, y", to=one) == (1, 10)
        assert await caller.value("return x, 'y' in globals()", to=two) == (2, False)

    async def test_copies(self, caller: Caller) -> None:
        old = await caller.env({"a": 1, "b": 2, "c": 3})
        new = await caller.env({"c": 30}, from_=old)
        assert await caller.value("a = 10\nreturn a, b, c", to=new) == (10, 2, 30)
        assert await caller.value("return a, b, c", to=old) == (1, 2, 3)

    async def test_copies_of_parts(self, caller: Caller) -> None:
        old = await caller.env({"a": 1, "b": 2})
        code = "return {k: v for k, v in globals().items() if len(k) == 1}"
        only = await caller.env(from_=(old, [(A("only"), [b"a", b"z"])]))
        assert await caller.value(code, to=only) == {b"a": 1, b"z": None}
        without = await caller.env(from_=(old, {A("except"): [A("a")]}))
        assert await caller.value(code, to=without) == {b"b": 2}
        for env in (only, without):
            assert await caller.value("return snex.__name__, Elixir is snex.Elixir", to=env) == (
                b"snex",
                True,
            )

    async def test_of_many_later_ones_win(self, caller: Caller) -> None:
        one, two = await caller.env({"a": 1, "b": 1}), await caller.env({"b": 2, "c": 2})
        env = await caller.env(from_=[one, (two, [(A("except"), [b"c"])])])
        assert await caller.value("return a, b, 'c' in globals()", to=env) == (1, 2, False)

    async def test_destroy(self, caller: Caller) -> None:
        env = await caller.env()
        for _ in range(3):
            assert await caller.call((A("destroy_env"), env)) == OK
        with pytest.raises(ProcessExitError) as raised:
            await caller.eval("return 1", to=env)
        assert raised.value.reason == A("noproc")

    async def test_what_is_not_an_environment(self, caller: Caller) -> None:
        foreign = Pid("other@host", 1, 2, 3)
        assert await caller.call((A("destroy_env"), foreign)) == OK
        code, reason = await caller.error((A("make_env"), {}, [(A("from"), foreign)]))
        assert code == "env_not_found"
        assert "#PID<other@host.1.2> is no environment of this node" in reason
        code, _ = await caller.error((A("make_env"), {}, [(A("from"), caller.server.pid)]))
        assert code == "env_not_found"

    async def test_the_handle(self, caller: Caller) -> None:
        handle, heir = Process(caller.node), Process(caller.node)
        env = await caller.env(handle=handle.pid)
        watcher = Process(caller.node)
        watcher.monitor(env)
        assert await caller.call((A("handle"), heir.pid), to=env) == OK
        handle.exit(A("done"))
        # The node has seen the first handle end when it answers what was sent after that.
        assert await caller.value("return 1", to=env) == 1
        heir.exit(A("done"))
        down = await watcher.receive(timeout=5)
        assert isinstance(down, tuple)
        assert down[0] == A("DOWN")
        assert down[3:] == (env, A("normal"))
        assert len(caller.server.environments) == 0

    async def test_without_a_handle_it_stays(self, caller: Caller) -> None:
        handle = Process(caller.node)
        env = await caller.env(handle=A("none"))
        kept = await caller.env(handle=handle.pid)
        assert await caller.call((A("handle"), A("none")), to=kept) == OK
        handle.exit(A("done"))
        assert await caller.call(A("ping"), to=env) == A("pong")
        assert await caller.call(A("ping"), to=kept) == A("pong")

    async def test_of_a_node_that_goes(self, caller: Caller) -> None:
        await caller.env()
        assert len(caller.server.environments) == 1
        caller.server.node.disconnect(str(caller.node.name))
        await until(lambda: len(caller.server.environments) == 0)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ((A("make_env"),), "make_env request has 2 or 3 elements, not 1"),
            ((A("make_env"), 5), "variables are a map, not 5"),
            ((A("make_env"), {}, 5), "options are a keyword list or a map, not 5"),
            ((A("make_env"), {}, [(A("nope"), 1)]), "unknown option nope: there are from, handle"),
            ((A("make_env"), {}, [(A("handle"), 7)]), "handle takes a pid or :none, not 7"),
            ((A("make_env"), {}, {A("from"): 7}), "7 is no environment"),
            ((A("make_env"), {1: 2}), "a variable's name is a binary or an atom, not 1"),
            ((A("destroy_env"), 7), "destroy_env takes an environment's pid, not 7"),
            ((A("destroy_env"),), "destroy_env"),
            ((A("handle"), A("none")), "a handle request goes to an environment"),
            (
                (A("make_env"), {}, [(A("encoding_opts"), [(A("set_as"), A("list"))])]),
                "set_as is one of set, frozenset",
            ),
        ],
    )
    async def test_wrong_requests(self, caller: Caller, request_: object, message: str) -> None:
        code, reason = await caller.error(request_)
        assert code in ("bad_request", "env_not_found")
        assert message in reason
        assert len(caller.server.environments) == 0

    @pytest.mark.parametrize(
        ("which", "names"),
        [
            ([(A("only"), [b"a"]), (A("except"), [])], [b"a"]),
            ([(A("only"), []), (A("except"), [b"a"])], [b"b"]),
            ([(A("only"), []), (A("except"), [])], [b"a", b"b"]),
            ([(A("only"), [])], [b"a", b"b"]),
            ([(A("except"), [])], [b"a", b"b"]),
            ([], [b"a", b"b"]),
        ],
    )
    async def test_empty_names_restrict_nothing(
        self, caller: Caller, which: object, names: list[bytes]
    ) -> None:
        env = await caller.env({b"a": 1, b"b": 2})
        made = await caller.env(from_=(env, which))
        assert await caller.value("return sorted(set(globals()) & {'a', 'b'})", to=made) == names

    async def test_only_and_except_exclude_each_other(self, caller: Caller) -> None:
        both = [(A("only"), [b"a"]), (A("except"), [b"a"])]
        env = await caller.env()
        request: object = (A("make_env"), {}, [(A("from"), (env, both))])
        code, reason = await caller.error(request)
        assert (code, "exclude each other" in reason) == ("bad_request", True)


class TestMessages:
    """What is sent to an environment besides requests."""

    async def test_it_is_stopped(self, caller: Caller) -> None:
        env, process = await caller.env(), Process(caller.node)
        tag = caller.node.make_ref()
        process.send(env, (A("system"), (process.pid, tag), (A("terminate"), A("why"))))
        assert await process.receive(timeout=5) == (tag, OK)
        assert len(caller.server.environments) == 0

    async def test_so_it_is_by_a_process_of_its_node(self, both: Pair) -> None:
        environment = both.server.environments.make({}, None)
        process, tag = Process(both.node), both.node.make_ref()
        process.send(environment.pid, (A("system"), (process.pid, tag), A("get_state")))
        answer = await process.receive(timeout=5)
        assert isinstance(answer, tuple)
        assert serde.to_typed(answer[0]) == tag
        assert answer[1] == ("error", "unknown_system_msg")
        process.send(environment.pid, "anything else")
        process.send(environment.pid, (A("system"), (process.pid, tag), (A("terminate"), A("why"))))
        await process.receive(timeout=5)
        assert environment.exit_reason == "why"

    async def test_the_handle_of_one(self, caller: Caller) -> None:
        env = await caller.env()
        assert await caller.error((A("handle"), A("none"), 1), to=env) == (
            "bad_request",
            "a handle request has 2 elements, not 3",
        )

    async def test_make_env_needs_a_caller(self, both: Pair) -> None:
        with pytest.raises(BadRequest, match="make_env is a call"):
            both.server.environments.make_requested(request_of((A("make_env"), {})))

    async def test_entered_twice(self, both: Pair) -> None:
        """As by nest_asyncio: a context cannot be, so that the inner one is a copy."""
        environment = both.server.environments.make({}, None)
        variable: ContextVar[str] = ContextVar("variable", default="unset")

        def outer() -> str:
            variable.set("outer")
            return environment.enter(inner)

        def inner() -> str:
            seen = variable.get()
            variable.set("inner")
            return seen

        assert environment.enter(outer) == "outer"
        assert environment.context[variable] == "outer"

    async def test_whoever_has_given_up(self, caller: Caller) -> None:
        began = asyncio.Event()
        caller.server.provide(began=began)
        env = await caller.env()
        code = "import asyncio\nbegan.set()\nawait asyncio.sleep(60)"
        call = asyncio.ensure_future(caller.eval(code, to=env))
        await began.wait()
        assert caller.server.info()[A("requests_running")] == 1
        call.cancel()
        await until(lambda: caller.server.info()[A("requests_running")] == 0)
