"""Forked children of user code: they never serve, and hold nothing that the node lives by."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime, until

FUNCTIONS = """
import os

def fork_and_return(path):
    if os.fork() == 0:
        open(path, "w").write(str(os.getpid()))
        return "child"
    return "parent"

def fork_and_raise(path):
    if os.fork() == 0:
        open(path, "w").write(str(os.getpid()))
        raise ValueError("of the child")
    return "parent"

def square(x):
    return x * x

def pid(_):
    return os.getpid()
"""


@pytest.fixture(scope="module", params=["--loop=auto", "--loop=asyncio", "--executor=thread"])
def forking(request: pytest.FixtureRequest, epmd: RealEpmd, beam: Beam) -> Iterator[Runtime]:
    with Runtime.start(
        epmd_port=epmd.port,
        cookie=beam.cookie,
        flags=[request.param],
        modules={"forked": FUNCTIONS},
    ) as runtime:
        yield runtime


def connections(pid: int) -> set[str]:
    """The inodes of the TCP sockets that a process holds."""
    tables = [Path(f"/proc/{pid}/net/{kind}").read_text() for kind in ("tcp", "tcp6")]
    network = {line.split()[9] for table in tables for line in table.splitlines()[1:]}
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return network & {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}


async def ended(pid: int, of: Runtime, beam: Beam) -> int:
    """The exit status of a child of the runtime, which reaps it."""
    code = f"import os; p, s = os.waitpid({pid}, os.WNOHANG); return p and [s]"

    async def status() -> Any:
        return await of.run(beam, code)

    (raw,) = await until(status)
    return os.waitstatus_to_exitcode(raw)


async def unharmed(beam: Beam, runtime: Runtime, calls: int = 200) -> None:
    """Every call is answered once, and nothing else comes."""
    source = """
    values = for n <- 1..calls, do: GenServer.call({:snex, py}, {:eval, "return n", %{"n" => n}})
    {values == (for n <- 1..calls, do: {:ok, n}), Process.info(self(), :messages)}
    """
    outcome = await beam.eval(source, py=runtime.name, calls=calls)
    assert outcome == (True, ("messages", []))


RETURNING = {
    "sync": "import os\npid = os.fork()\nreturn pid",
    "after a moment": "import os, time\npid = os.fork()\npid or time.sleep(0.2)\nreturn pid",
    "async": "import asyncio, os\nawait asyncio.sleep(0)\npid = os.fork()\nreturn pid",
    "async, at once": "import asyncio, os\npid = os.fork()\nif 0: await 1\nreturn pid",
    "in a function": "import os\ndef f():\n    return os.fork()\nreturn f()",
    "twice": "import os\npid = os.fork()\nif pid == 0: os.fork()\nreturn pid",
    "sys.exit(0)": "import os, sys\npid = os.fork()\npid or sys.exit(0)\nreturn pid",
}

RAISING = {
    "sync": "import os\npid = os.fork()\npid or 1 / 0\nreturn pid",
    "async": (
        "import asyncio, os\nawait asyncio.sleep(0)\npid = os.fork()\npid or 1 / 0\nreturn pid"
    ),
    "sys.exit": "import os, sys\npid = os.fork()\npid or sys.exit(1)\nreturn pid",
    "sys.exit with text": "import os, sys\npid = os.fork()\npid or sys.exit('x')\nreturn pid",
    "awaits": "import asyncio, os\npid = os.fork()\nawait asyncio.sleep(0)\nreturn pid",
    "sleeps": "import asyncio, os\npid = os.fork()\nawait asyncio.sleep(0.01)\nreturn pid",
}


class TestAChildEnds:
    @pytest.mark.parametrize("code", RETURNING.values(), ids=RETURNING)
    async def test_where_user_code_returns(self, beam: Beam, forking: Runtime, code: str) -> None:
        pid = await forking.run(beam, code)
        await unharmed(beam, forking)
        assert await ended(pid, forking, beam) == 0

    @pytest.mark.parametrize("code", RAISING.values(), ids=RAISING)
    async def test_non_zero(self, beam: Beam, forking: Runtime, code: str) -> None:
        pid = await forking.run(beam, code)
        await unharmed(beam, forking)
        assert await ended(pid, forking, beam) == 1

    async def test_with_a_traceback(self, beam: Beam, forking: Runtime) -> None:
        code = "import os\npid = os.fork()\npid or int('of the child')\nreturn pid"
        await ended(await forking.run(beam, code), forking, beam)
        assert "ValueError: invalid literal for int() with base 10: 'of the child'" in forking.log

    async def test_in_a_background_task(self, beam: Beam, forking: Runtime) -> None:
        code = """
import asyncio, os
forked = asyncio.get_running_loop().create_future()
async def work():
    pid = os.fork()
    if pid:
        forked.set_result(pid)
    await asyncio.sleep(0)
    pid or os._exit(7)
task = asyncio.create_task(work())
return await forked
"""
        pid = await forking.run(beam, code)
        await unharmed(beam, forking)
        assert await ended(pid, forking, beam) == 1
        assert "a loop of its own: asyncio.run" in forking.log

    async def test_in_a_callback(self, beam: Beam, forking: Runtime) -> None:
        code = """
import asyncio, os
forked = asyncio.get_running_loop().create_future()
def work():
    pid = os.fork()
    if pid:
        forked.set_result(pid)
asyncio.get_running_loop().call_later(0.01, work)
return await forked
"""
        pid = await forking.run(beam, code)
        await unharmed(beam, forking)
        assert await ended(pid, forking, beam) == 0

    async def test_in_a_thread(self, beam: Beam, forking: Runtime) -> None:
        code = "import asyncio, os\nreturn await asyncio.to_thread(os.fork)"
        pid = await forking.run(beam, code)
        await unharmed(beam, forking)
        assert await ended(pid, forking, beam) == 0

    @pytest.mark.parametrize("how", ["call", "erpc", "rpc"])
    @pytest.mark.parametrize(("function", "status"), [("return", 0), ("raise", 1)])
    async def test_in_a_called_function(
        self, beam: Beam, forking: Runtime, tmp_path: Path, how: str, function: str, status: int
    ) -> None:
        source = {
            "call": "{:ok, v} = GenServer.call({:snex, py}, {:call, :forked, f, [path]}); v",
            "erpc": ":erpc.call(py, :forked, f, [path])",
            "rpc": ":rpc.block_call(py, :forked, f, [path])",
        }[how]
        file = tmp_path / "pid"
        answer = await beam.eval(
            source, py=forking.name, f=Atom(f"fork_and_{function}"), path=str(file).encode()
        )
        assert answer in ("parent", b"parent")
        await unharmed(beam, forking)

        async def written() -> Any:
            return file.exists() and file.read_text()

        assert await ended(int(await until(written)), forking, beam) == status

    async def test_what_it_prints_comes_once(self, beam: Beam, forking: Runtime) -> None:
        mark = secrets.token_hex(6)
        code = f"""
import os, sys
sys.stderr.write("{mark} ")
pid = os.fork()
pid or sys.stderr.write("{mark} ")
return pid
"""
        await ended(await forking.run(beam, code), forking, beam)
        assert forking.log.count(mark) == 2


class TestAChildMay:
    async def test_run_a_loop_of_its_own(self, beam: Beam, forking: Runtime) -> None:
        code = """
import asyncio, os
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    async def work():
        await asyncio.sleep(0.01)
        os.write(w, b"slept")
    asyncio.run(work())
    return
os.close(w)
return [pid, os.read(r, 10).decode()]
"""
        pid, said = await forking.run(beam, code)
        assert said == b"slept", forking.log
        await unharmed(beam, forking)
        assert await ended(pid, forking, beam) == 0

    async def test_be_a_worker_of_a_pool(self, beam: Beam, forking: Runtime) -> None:
        code = """
import multiprocessing, forked
context = multiprocessing.get_context("fork")
with context.Pool(2) as pool:
    return pool.map(forked.square, range(10))
"""
        assert await forking.run(beam, code) == [n * n for n in range(10)]
        await unharmed(beam, forking)

    async def test_be_a_worker_of_an_executor(self, beam: Beam, forking: Runtime) -> None:
        code = """
import asyncio, concurrent.futures, multiprocessing, forked
context = multiprocessing.get_context("fork")
loop = asyncio.get_running_loop()
with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
    return await asyncio.gather(*[loop.run_in_executor(pool, forked.square, n) for n in range(10)])
"""
        assert await forking.run(beam, code) == [n * n for n in range(10)]
        await unharmed(beam, forking)

    async def test_be_terminated_without_the_node(self, beam: Beam, forking: Runtime) -> None:
        code = """
import multiprocessing, time
process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
process.start()
process.terminate()
process.join(5)
return process.exitcode
"""
        assert await forking.run(beam, code) == -signal.SIGTERM
        await unharmed(beam, forking)

    async def test_not_reach_the_beam(self, beam: Beam, forking: Runtime) -> None:
        code = """
import asyncio, os
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        asyncio.run(snex.send(("nobody", "nowhere@127.0.0.1"), 1))
    except RuntimeError as error:
        os.write(w, str(error).encode())
    return
os.close(w)
return [pid, os.read(r, 1000).decode()]
"""
        pid, said = await forking.run(beam, code)
        assert said.startswith(b"this process is not connected to a BEAM")
        assert await ended(pid, forking, beam) == 0


async def test_a_child_holds_no_socket(beam: Beam, forking: Runtime) -> None:
    code = """
import os, time
pid = os.fork()
pid or time.sleep(600)
return pid
"""
    pid = await forking.run(beam, code)
    try:
        assert connections(pid) == set()
        assert len(connections(forking.process.pid)) >= 3  # listener, epmd, the BEAM
    finally:
        os.kill(pid, signal.SIGKILL)
        await ended(pid, forking, beam)


async def test_children_do_not_keep_a_killed_node_alive(
    beam: Beam, start_runtime: Callable[..., Runtime], epmd: RealEpmd
) -> None:
    runtime = start_runtime(cookie=beam.cookie)
    code = """
import multiprocessing, os
pool = multiprocessing.get_context("fork").Pool(3)
snex.pool = pool
return [os.getpid(), *pool.map(abs, range(3)), *[p.pid for p in pool._pool]]
"""
    me, _, _, _, *workers = await runtime.run(beam, code)
    try:
        down = beam.submit(
            "Node.monitor(py, true); receive do {:nodedown, ^py} -> :down after 9000 -> :up end",
            py=runtime.name,
        )
        await until(lambda: beam.eval("py in Node.list(:hidden)", py=runtime.name))
        before = asyncio.get_running_loop().time()
        os.kill(me, signal.SIGKILL)
        assert await asyncio.wrap_future(down) == "down"
        assert asyncio.get_running_loop().time() - before < 2

        async def free() -> bool:
            source = "{:ok, names} = :erl_epmd.names({127, 0, 0, 1}); names"
            names = await beam.eval(source)
            assert isinstance(names, list)
            return runtime.name.partition("@")[0] not in [str(name) for name, _ in names]

        await until(free, 2)
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
