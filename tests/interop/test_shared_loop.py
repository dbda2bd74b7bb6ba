"""The event loop is not the snippet's to end: the node, and the requests of others, go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.support import waiting
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime, until


@pytest.fixture(scope="module", params=["auto", "asyncio"])
def shared(request: pytest.FixtureRequest, epmd: RealEpmd, beam: Beam) -> Iterator[Runtime]:
    with Runtime.start(
        epmd_port=epmd.port, cookie=beam.cookie, flags=["--loop", request.param]
    ) as runtime:
        yield runtime


CANCEL_ALL = "import asyncio\nfor task in asyncio.all_tasks(): task.cancel()\nreturn 1"

ENDINGS = {
    "cancel all tasks": CANCEL_ALL,
    "cancel all tasks, awaiting": (
        "import asyncio\n"
        "others = asyncio.all_tasks() - {asyncio.current_task()}\n"
        "for task in others: task.cancel()\n"
        "await asyncio.gather(*others, return_exceptions=True)\n"
        "return 1"
    ),
    "stop": "import asyncio\nasyncio.get_running_loop().stop()\nreturn 1",
    "stop, awaiting": (
        "import asyncio\nasyncio.get_running_loop().stop()\nawait asyncio.sleep(0)\nreturn 1"
    ),
    "stop, later": (
        "import asyncio\nloop = asyncio.get_running_loop()\nloop.call_soon(loop.stop)\n"
        "await asyncio.sleep(0.01)\nreturn 1"
    ),
    "KeyboardInterrupt in a task": (
        "import asyncio\nasync def f(): raise KeyboardInterrupt\ntask = asyncio.create_task(f())\n"
        "await asyncio.wait([task])\nreturn type(task.exception()) is KeyboardInterrupt and 1"
    ),
    "KeyboardInterrupt in a callback": (
        "import asyncio\ndef f(): raise KeyboardInterrupt\n"
        "asyncio.get_running_loop().call_soon(f)\nawait asyncio.sleep(0.01)\nreturn 1"
    ),
    "KeyboardInterrupt in a timer": (
        "import asyncio\ndef f(): raise KeyboardInterrupt\n"
        "asyncio.get_running_loop().call_later(0.01, f)\nawait asyncio.sleep(0.05)\nreturn 1"
    ),
    "SystemExit in a task": (
        "import asyncio, sys\nasync def f(): sys.exit(3)\ntask = asyncio.create_task(f())\n"
        "await asyncio.wait([task])\nreturn task.exception() and 1"
    ),
    "SystemExit in a reader": (
        "import asyncio, os, sys\nr, w = os.pipe()\nloop = asyncio.get_running_loop()\n"
        "def f():\n    loop.remove_reader(r)\n    os.close(r); os.close(w)\n    sys.exit(3)\n"
        "loop.add_reader(r, f)\nos.write(w, b'x')\nawait asyncio.sleep(0.05)\nreturn 1"
    ),
    "GeneratorExit in a callback": (
        "import asyncio\ndef f(): raise GeneratorExit\n"
        "asyncio.get_running_loop().call_soon(f)\nawait asyncio.sleep(0.01)\nreturn 1"
    ),
}


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
async def test_the_node_goes_on(beam: Beam, shared: Runtime, code: str) -> None:
    other = beam.submit(
        """
        code = "import asyncio\\nawait asyncio.sleep(0.3)\\nreturn 2"
        GenServer.call({:snex, py}, {:eval, code, %{}})
        """,
        py=shared.name,
    )

    async def runs() -> bool:
        return bool((await shared.info(beam))["requests_running"] == 1)

    await until(runs)
    assert await shared.run(beam, code) == 1
    assert await asyncio.wrap_future(other) == ("ok", 2)  # of another caller
    assert shared.process.poll() is None


def _is_in(text: str, runtime: Runtime) -> bool:
    return text in runtime.log


async def test_each_is_warned_of(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(cookie=beam.cookie)
    for name in ("stop", "KeyboardInterrupt in a task", "SystemExit in a task"):
        await runtime.run(beam, ENDINGS[name])
    for text in ("stopped the loop", "raised KeyboardInterrupt", "called sys.exit()"):
        await waiting.until(partial(_is_in, text, runtime))  # a thread writes it
        assert runtime.log.count(text) == 1, runtime.log


async def test_no_task_of_the_library_is_in_reach(beam: Beam, shared: Runtime) -> None:
    code = "import asyncio\nawait asyncio.sleep(0)\nreturn [repr(t) for t in asyncio.all_tasks()]"
    assert await shared.run(beam, code) == []


async def test_tasks_of_snippets_are(beam: Beam, shared: Runtime) -> None:
    code = """
import asyncio
task = asyncio.create_task(asyncio.sleep(60))
for each in asyncio.all_tasks() - {asyncio.current_task()}:
    each.cancel()
await asyncio.wait([task])
return task.cancelled()
"""
    assert await shared.run(beam, code) is True


async def test_closing_the_loop_is_refused(beam: Beam, shared: Runtime) -> None:
    code = "import asyncio\nasyncio.get_running_loop().close()"
    answer = await shared.call(beam, "{:eval, code, %{}}", code=code.encode())
    assert answer[0] == "error"
    assert await shared.run(beam, "return 1") == 1


class TestWhatTheNodeStillDoes:
    """After all tasks that are in reach were cancelled."""

    async def test_it_lets_nodes_in(
        self, beam: Beam, shared: Runtime, start_beam: Callable[..., Beam]
    ) -> None:
        await shared.run(beam, CANCEL_ALL)
        other = start_beam(cookie=beam.cookie)
        assert await other.eval("Node.ping(py)", py=shared.name) == "pong"

    async def test_it_keeps_its_connections(
        self, beam: Beam, epmd: RealEpmd, start_beam: Callable[..., Beam]
    ) -> None:
        kept = start_beam(cookie=beam.cookie)
        flags = ["--connect", str(kept.name)]
        with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, flags=flags) as runtime:
            connected = "py in Node.list(:hidden)"
            await until(lambda: kept.eval(connected, py=runtime.name))
            await runtime.run(beam, CANCEL_ALL)
            await kept.eval("Node.disconnect(py)", py=runtime.name)
            await until(lambda: kept.eval(connected, py=runtime.name))


async def test_a_call_that_is_cancelled_by_others_is_answered(beam: Beam, shared: Runtime) -> None:
    waiting: Any = beam.submit(
        """
        code = "import asyncio\\nsnex.t = asyncio.create_task(asyncio.sleep(60))\\nawait snex.t"
        GenServer.call({:snex, py}, {:eval, code, %{}})
        """,
        py=shared.name,
    )

    async def runs() -> bool:
        return bool((await shared.info(beam))["requests_running"] == 1)

    await until(runs)
    await shared.run(beam, CANCEL_ALL)
    error = (await asyncio.wrap_future(waiting))[1]
    assert "CancelledError" in str(error)
