"""Objects that stay in Python: requests about them, what keeps them, and what they cost."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Process
from snex_node.wire.terms import Atom, Pid
from snex_runtime import kept, objects
from tests.support.consumer import typed
from tests.support.pair import Pair, pair
from tests.support.waiting import until

A = Atom
KEEP = (A("keep"), True)
THREAD = (A("executor"), A("thread"))
COUNTER = """
import asyncio
class Counter:
    def __init__(self): self.n = 0
    def add(self, k=1, *, times=1): self.n += k * times; return self.n
    async def later(self): await asyncio.sleep(0); return self.n
    async def never(self): await asyncio.Event().wait()
    def me(self): return self
    def fail(self): raise KeyError("no")
    def trace(self): return snex.traceparent()
    async def sleep(self):
        import time
        while True: time.sleep(0.01)
    @property
    def late(self): return self.later()
    def __len__(self): return self.n
return Counter()
"""


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made
    assert not kept.held


def count(both: Pair) -> Any:
    return both.server.info()[A("objects")]


async def keep(both: Pair, code: str, *options: tuple[Atom, object], to: Any = None) -> Pid:
    status, pid = await both.call("eval", code, {}, [KEEP, *options], to=to)
    assert status == "ok", pid
    found = typed(pid)
    assert isinstance(found, Pid)
    return found


async def failed(both: Pair, to: Any, *request: object) -> str:
    status, error = await both.call(*request, to=to)
    assert status == "error", error
    assert await both.call("ping", to=to) == "pong"
    return f"{error['code']}: {error['type']}: {error['reason']}"


class TestRequests:
    async def test_calls(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        assert await both.call("call", A("add"), [], to=it) == ("ok", 1)
        assert await both.call("call", "add", [2], {"times": 3}, to=it) == ("ok", 7)
        assert await both.call("call", "add", [2], [(A("times"), 0)], to=it) == ("ok", 7)
        assert await both.call("call", "later", [], {}, [], to=it) == ("ok", 7)
        assert await both.call("call", "add", [], {}, [THREAD], to=it) == ("ok", 8)
        assert await both.call("call", "later", [], {}, [THREAD], to=it) == ("ok", 8)
        assert await both.call("call", "__len__", [], to=it) == ("ok", 8)

    async def test_attributes(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        assert await both.call("get", "n", to=it) == ("ok", 0)
        assert await both.call("get", A("n"), [THREAD], to=it) == ("ok", 0)
        assert await both.call("get", "late", to=it) == ("ok", 0)

    async def test_the_value(self, both: Pair) -> None:
        it = await keep(both, "return {'a': [1]}")
        assert await both.call("value", to=it) == ("ok", {"a": [1]})
        assert "Cannot serialize" in await failed(both, await keep(both, COUNTER), "value")

    async def test_code_about_it(self, both: Pair) -> None:
        await both.call("init", "base = 10", {})
        it = await keep(both, COUNTER)
        assert await both.call("eval", "self.n += by; x = 1; return self.n", {"by": 5}, to=it) == (
            "ok",
            5,
        )
        assert await both.call("eval", "return self.n + base", {}, to=it) == ("ok", 15)
        assert "NameError" in await failed(both, it, "eval", "return x", {})
        code = "import asyncio; await asyncio.sleep(0); return len(self)"
        assert await both.call("eval", code, {}, [THREAD], to=it) == ("ok", 5)
        assert await both.run("return 'self' in globals()") is False

    async def test_it_is_the_object_where_its_pid_is_given(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        struct = {A("__struct__"): A(kept.NAME), A("id"): it}
        await both.call("call", "add", [5], to=it)
        assert await both.run("return x.n", x=it) == 5
        assert await both.run("return x['y'][0].n", x={"y": [struct]}) == 5
        other = await keep(both, "return []")
        assert await both.call("call", "append", [it], to=other) == ("ok", None)
        assert await both.call("call", "append", [struct], to=other) == ("ok", None)
        assert await both.call("eval", "return self[0] is self[1]", {}, to=other) == ("ok", True)
        assert await both.call("call", A("builtins"), A("len"), [it]) == ("ok", 5)

    @pytest.mark.parametrize(
        ("request_", "told"),
        [
            (("call", "add"), "bad_request: None: a call to an object has 3 to 5 elements, not 2"),
            (("call", "a", [], {}, [], 1), "3 to 5 elements, not 6"),
            (("call", 5, []), "name of a method or attribute is a text, not 5"),
            (("call", b"\xff", []), "bad_request"),
            (("call", "add", 5), "the arguments of a call are a list, not 5"),
            (("call", "add", [], 5), "bad_request"),
            (("call", "add", [], {}, 5), "options are a keyword list or a map, not 5"),
            (("call", "add", [], {}, [(A("x"), 1)]), "unknown option x"),
            (("call", "nope", []), "AttributeError"),
            (("call", "fail", []), "python_runtime_error: KeyError: 'no'"),
            (("call", "n", []), "TypeError"),
            (("call", "add", [], {"no": 1}), "TypeError"),
            (("get",), "unknown request"),
            (("get", "n", [], 1), "a get request has 2 or 3 elements, not 4"),
            (("get", "nope"), "AttributeError"),
            (("get", [1]), "name of a method or attribute is a text"),
            (("eval", "1"), "an eval request has 3 or 4 elements, not 2"),
            (("handle", 5), "handle takes a pid or :none, not 5"),
            (("handle", A("none"), 1), "a handle request has 2 elements, not 3"),
            (("info",), "unknown request"),
            (("init", "1", {}), "unknown request"),
            (("make_env", {}), "unknown request"),
            (("stream", "1", {}), "unknown request"),
        ],
        ids=range(23),
    )
    async def test_wrong_ones(self, both: Pair, request_: tuple[Any, ...], told: str) -> None:
        it = await keep(both, COUNTER)
        assert told in await failed(both, it, *request_)

    async def test_from_this_node_and_as_casts(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        assert await both.node.call(it, (A("call"), "add", [1]), timeout=5) == (A("ok"), 1)
        both.peer.cast(it, (A("call"), "add", [1]))
        Process(both.peer).send(it, (A("call"), "add", [1]))
        both.node.cast(it, (A("call"), "add", [1]))
        await until(lambda: kept.held[it.external].n == 4)  # type: ignore[attr-defined]

    async def test_time(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        limit = [(A("timeout"), 50)]
        assert "cancelled: None: timeout" in await failed(both, it, "call", "never", [], {}, limit)
        assert "cancelled" in await failed(both, it, "call", "sleep", [], {}, limit)
        assert "cancelled" in await failed(both, it, "eval", "while True: pass", {}, limit)
        with pytest.raises(Exception, match="did not answer"):
            await both.call("call", "never", [], to=it, timeout=0.05)
        await until(lambda: both.server.info()[A("requests_running")] == 0)

    async def test_options_of_calls_of_modules(self, both: Pair) -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        code = "import sys, types\nmodule = sys.modules['of_a_test'] = types.ModuleType('x')\n"
        code += "module.trace = snex.traceparent\nimport asyncio\n"
        code += "async def late(): await asyncio.sleep(0); return snex.traceparent()\n"
        code += "module.late = late\nmodule.never = asyncio.Event().wait"
        await both.run(code)
        options: list[Any] = [(A("traceparent"), trace)]
        for more in ((), (THREAD,)):
            for name in ("trace", "late"):
                call: tuple[Any, ...] = ("call", "of_a_test", name, [], {}, [*options, *more])
                assert await both.call(*call) == ("ok", trace)
        assert await both.call("call", "of_a_test", "trace", []) == ("ok", None)
        call = ("call", "of_a_test", "never", [], {}, [(A("timeout"), 30)])
        assert (await both.call(*call))[1]["reason"] == "timeout"
        it = await keep(both, COUNTER)
        assert await both.call("call", "trace", [], {}, options, to=it) == ("ok", trace)
        status, text = await both.call("call", "math", "sqrt", [4], {}, [(A("x"), 1)])
        assert (status, text["code"]) == ("error", "bad_request")
        await both.run("import sys; del sys.modules['of_a_test']")

    async def test_a_call_to_the_end_though_nobody_waits(self, both: Pair) -> None:
        code = COUNTER.replace("asyncio.Event().wait()", "asyncio.sleep(0.05); self.n = 9")
        it = await keep(both, code)
        limit = [(A("on_timeout"), A("continue"))]
        with pytest.raises(Exception, match="did not answer"):
            await both.call("call", "never", [], {}, limit, to=it, timeout=0.01)
        await until(lambda: kept.held[it.external].n == 9)  # type: ignore[attr-defined]


class TestKeeping:
    @pytest.mark.parametrize("options", [(), (THREAD,)], ids=["loop", "thread"])
    @pytest.mark.parametrize("form", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
    async def test_what_code_gives(self, both: Pair, options: Any, form: str) -> None:
        it = await keep(both, f"{form}return [1]", *options)
        assert await both.call("value", to=it) == ("ok", [1])
        assert count(both) == 1

    async def test_in_code_that_calls_the_beam(self, both: Pair) -> None:
        code = "await snex.send(to, 'here')\nreturn [1]"
        owner = Process(both.peer)
        options = [KEEP]
        status, pid = await both.call("eval", code, {"to": owner.pid}, options)
        assert status == "ok"
        assert await owner.receive(timeout=5) == "here"
        assert await both.call("value", to=typed(pid)) == ("ok", [1])

    async def test_what_calls_and_attributes_give(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        requests: list[Any] = [
            ("call", "me", [], {}, [KEEP]),
            ("call", "me", [], {}, [KEEP, THREAD]),
            ("get", "add", [KEEP]),
            ("eval", "return self.add", {}, [KEEP]),
        ]
        for request in requests:
            status, pid = await both.call(*request, to=it)
            assert (status, type(typed(pid))) == ("ok", Pid)
        status, method = await both.call("get", "add", [KEEP], to=it)
        assert await both.call("call", "__call__", [5], to=typed(method)) == ("ok", 5)
        _, made = await both.call("call", "builtins", "dict", [], {"a": 1}, [KEEP])
        assert await both.call("value", to=typed(made)) == ("ok", {"a": 1})

    async def test_none_is_an_object_too(self, both: Pair) -> None:
        for code in ("return None", "x = 1", None):
            status, pid = await both.call("eval", code, {}, [KEEP])
            assert status == "ok"
            assert await both.call("value", to=typed(pid)) == ("ok", None)

    async def test_an_error_makes_none(self, both: Pair) -> None:
        status, _ = await both.call("eval", "raise KeyError('x')", {}, [KEEP])
        assert status == "error"
        assert count(both) == 0

    async def test_a_cast_makes_none(self, both: Pair, caplog: pytest.LogCaptureFixture) -> None:
        both.peer.cast(("snex", both.node.name), (A("eval"), "return 1", {}, [KEEP]))
        await until(lambda: "keep: is for calls" in caplog.text)
        assert count(both) == 0

    async def test_wrong_options(self, both: Pair) -> None:
        for options, told in (
            ([(A("keep"), 5)], "keep takes true or false, not 5"),
            ([KEEP, (A("handle"), 5)], "handle takes a pid or :none, not 5"),
        ):
            status, error = await both.call("eval", "return 1", {}, options)
            assert (status, error["code"]) == ("error", "bad_request")
            assert told in error["reason"]
        assert await both.call("eval", "return 1", {}, [(A("keep"), False)]) == ("ok", 1)

    @pytest.mark.parametrize(
        ("code", "shown"),
        [
            ("return [1, 2]", "list [1, 2]"),
            ("return {'a': 1}", "dict {'a': 1}"),
            ("return 5", "int 5"),
            ("class Odd: pass\nreturn Odd", "type <class '__snex__.Odd'>"),
            ("class Odd:\n  shape = (3, 4)\nreturn Odd()", "Odd 3x4"),
            ("class Odd:\n  shape = ()\nreturn Odd()", "<__snex__.Odd object>"),
            (
                "class Odd:\n  shape = (3, True)\n  def __repr__(self): return 'it'\nreturn Odd()",
                "<__snex__.Odd object>",
            ),
            ("class Odd:\n  shape = (10 ** 5000,)\nreturn Odd()", "Odd"),
            ("class Odd:\n  shape = property(lambda self: 1 / 0)\nreturn Odd()", "Odd"),
            ("class Odd:\n  def __getattr__(self, name): raise ValueError\nreturn Odd()", "Odd"),
        ],
        ids=range(10),
    )
    async def test_descriptions(self, both: Pair, code: str, shown: str) -> None:
        status, found = await both.call("eval", code, {}, [(A("keep"), A("shown"))])
        assert (status, found[1]) == ("ok", shown)
        assert await both.call("ping", to=typed(found[0])) == "pong"

    @pytest.mark.parametrize(
        "code",
        [
            "return 'x' * 1_000_000",
            "return 'ß' * 1_000_000",
            "return [[[[]]]] * 1000",
            "return type('X' * 100_000, (), {})()",
            "return type('X' * 100_000, (), {'shape': (2, 2)})()",
            "return type('X' * 100_000, (), {'shape': property(lambda self: 1 / 0)})()",
            "class Odd:\n  def __repr__(self): return 'x' * 10**6\nreturn Odd()",
            "class Odd:\n  def __repr__(self): raise ValueError\nreturn Odd()",
            "class Odd:\n  def __repr__(self): return '\\ud800'\nreturn Odd()",
            "class Odd:\n  def __repr__(self): return 5\nreturn Odd()",
            "class Odd:\n  def __repr__(self): raise SystemExit\nreturn Odd()",
            "x = []\nx.append(x)\nreturn x",
        ],
        ids=range(12),
    )
    async def test_hostile_ones_are_described_in_a_few_words(self, both: Pair, code: str) -> None:
        status, found = await both.call("eval", code, {}, [(A("keep"), A("shown"))])
        assert status == "ok"
        assert 0 < len(found[1]) <= objects.MAX_SHOWN
        assert count(both) == 1

    async def test_what_ends_its_description_makes_none(self, both: Pair) -> None:
        code = "class Odd:\n  @property\n  def shape(self): raise SystemExit(3)\nreturn Odd()"
        status, error = await both.call("eval", code, {}, [(A("keep"), A("shown"))])
        assert (status, error["type"]) == ("error", "SystemExit")
        assert count(both) == 0


class TestHandles:
    async def test_the_caller_is_one(self, both: Pair) -> None:
        caller = Process(both.peer)
        message: Any = (A("eval"), "return [1]", {}, [KEEP])
        ref = both.peer.make_ref()
        caller.send(("snex", both.node.name), (A("$gen_call"), (caller.pid, ref), message))
        answer: Any = await caller.receive(timeout=5)
        status, pid = answer[1]
        assert status == "ok"
        assert await both.call("value", to=typed(pid)) == ("ok", [1])
        caller.exit()
        await until(lambda: count(both) == 0)

    async def test_a_pid_is_one(self, both: Pair) -> None:
        handle, other = Process(both.peer), Process(both.peer)
        it = await keep(both, "return [1]", (A("handle"), handle.pid))
        assert await both.call("handle", other.pid, to=it) == "ok"
        handle.exit()
        assert await both.call("value", to=it) == ("ok", [1])
        other.exit()
        await until(lambda: count(both) == 0)

    async def test_none_is_one(self, both: Pair) -> None:
        it = await keep(both, "return [1]", (A("handle"), A("none")))
        handle = Process(both.peer)
        assert await both.call("handle", handle.pid, to=it) == "ok"
        assert await both.call("handle", A("none"), to=it) == "ok"
        handle.exit()
        assert await both.call("value", to=it) == ("ok", [1])
        assert await both.call("destroy_env", it, to=it) == "ok"
        assert count(both) == 0

    async def test_its_node_is_lost(self, both: Pair) -> None:
        handle = Process(both.peer)
        await keep(both, "return [1]", (A("handle"), handle.pid))
        both.peer.disconnect(both.node.name)
        await until(lambda: count(both) == 0)


class TestTheEnd:
    @pytest.mark.parametrize("how", ["kill", "exit", "stop", "link", "runtime"])
    async def test_it_is_let_go(self, both: Pair, how: str) -> None:
        await both.call("init", "import weakref\nclass C: pass\nmade = []", {})
        it = await keep(both, "c = C(); made.append(weakref.ref(c)); return c")
        refs: Any = both.server.root["made"]
        made = refs[0]
        gc.collect()
        assert made() is not None
        watcher = Process(both.peer)
        watcher.monitor(it)
        assert await both.call("ping", to=it) == "pong"
        if how == "kill":
            watcher.exit_signal(it, A("kill"))
        elif how == "exit":
            watcher.exit_signal(it, A("boom"))
        elif how == "stop":
            stop = (A("system"), (watcher.pid, A("t")), (A("terminate"), A("done")))
            watcher.send(it, stop)
            assert await watcher.receive(timeout=5) == (A("t"), A("ok"))
        elif how == "link":
            linked = Process(both.peer)
            linked.link(it)
            linked.exit(A("boom"))
        else:
            both.server.exit(A("shutdown"))
        reasons = {"kill": "killed", "exit": "boom", "stop": "done", "link": "boom"}
        down: Any = await watcher.receive(timeout=5)
        assert down[4] == reasons.get(how, "shutdown")
        gc.collect()
        assert made() is None
        assert it.external not in kept.held

    async def test_links_tell(self, both: Pair) -> None:
        it = await keep(both, "return [1]")
        linked = Process(both.peer)
        linked.trap_exit = True
        linked.link(it)
        assert await both.call("ping", to=it) == "pong"
        Process(both.peer).exit_signal(it, A("boom"))
        message: Any = await linked.receive(timeout=5)
        assert (message[0], message[2]) == ("EXIT", "boom")

    async def test_a_request_under_way_has_it_to_its_end(self, both: Pair) -> None:
        it = await keep(both, COUNTER)
        code = (
            "box = snex.mailbox()\nawait snex.send(to, box.pid)\nawait box.receive()\n"
            "await snex.send(to, self.n)"
        )
        owner = Process(both.peer)
        task = asyncio.create_task(both.call("eval", code, {"to": owner.pid}, to=it))
        box = typed(await owner.receive(timeout=5))
        owner.exit_signal(it, A("kill"))
        with pytest.raises(Exception, match="killed"):
            await task
        owner.send(box, "go on")
        assert await owner.receive(timeout=5) == 0

    async def test_other_system_messages(self, both: Pair) -> None:
        it = await keep(both, "return 1")
        for asking in (Process(both.peer), Process(both.node)):
            asking.send(it, (A("system"), (asking.pid, A("t")), A("get_state")))
            answer = await asking.receive(timeout=5)
            assert answer == (A("t"), (A("error"), A("unknown_system_msg")))

    async def test_of_one_that_is_gone(self, both: Pair) -> None:
        it = await keep(both, "return 1")
        await both.call("destroy_env", it, to=it)
        with pytest.raises(Exception, match="noproc"):
            await both.call("value", to=it)
        struct = {A("__struct__"): A(kept.NAME), A("id"): it}
        status, error = await both.call("eval", "return x", {"x": struct})
        assert status == "error"
        assert "is no object of this node" in error["reason"]


async def test_what_they_cost(both: Pair) -> None:
    count, most = 10_000, 0.7 * 1024
    values = [object() for _ in range(count)]
    handle = Process(both.peer).pid
    home = both.server._objects
    gc.collect()
    tracemalloc.start()
    made = [home.keep(value, handle) for value in values]
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / count <= most
    for each in made:
        each.exit()
    assert len(home) == 0
