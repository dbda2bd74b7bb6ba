"""Child processes of a runtime that send to, call and log on a real BEAM through it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime
from tests.support.waiting import until

CHILD = '''
"""What runs in the child processes; imported by the parent too."""
import asyncio
import logging
import os
import sys
import threading
import snex

def start(path, ready=None):
    """Serve on a thread of its own, as an initializer of a pool must; returns when it works."""
    is_ready = threading.Event()

    async def serve():
        reader, writer = await asyncio.open_unix_connection(path)
        await snex.serve_forever(reader, writer, on_ready=is_ready.set)

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    assert is_ready.wait(10)

def run(name, *args):
    return asyncio.run(globals()[name](*args))

async def everything(me):
    for n in range(100):
        await snex.send(me, ("sent", n, os.getpid()))
    await snex.send(me, b"\\xff")
    await snex.cast("erlang", "send", [me, snex.Atom("cast")])
    total = await snex.call("Elixir.Enum", "sum", [[1, 2, 3]])
    several = await asyncio.gather(*(snex.Elixir.Kernel.abs(-n) for n in range(200)))
    raw = await snex.call("erlang", "list_to_binary", [[255]],
                          result_encoding_opts={"binary_as": "bytes"})
    assert (total, several, raw) == (6, list(range(200)), b"\\xff"), (total, several, raw)
    kept = await snex.call("erlang", "hd", [[me]])
    assert kept == me
    return os.getpid()

async def errors():
    out = []
    for work in (snex.Elixir.String.to_integer("x"), snex.send(7, 1), snex.Elixir.Kernel.throw(5),
                 snex.call("m", "f", [object()]), snex.call("m" * 256, "f", []),
                 snex.call("erlang", "node", [], result_encoding_opts={"a": 1})):
        try:
            await work
        except Exception as error:
            out.append((type(error).__name__, str(error).splitlines()[0],
                        getattr(error, "kind", None), getattr(error, "reason", 0) == 5))
    return out

async def log(text):
    logger = logging.getLogger("child")
    logger.propagate = False
    logger.setLevel(1)
    logger.handlers = [snex.LoggingHandler()]
    logger.info(text, extra={"odd": object()})
    return await snex.Elixir.Kernel.abs(-1)

async def wait(me):
    await snex.send(me, ("waits", os.getpid()))
    await snex.call("timer", "sleep", [60_000])

async def oversized():
    from snex_runtime import serve
    try:
        await snex.send("nobody", b"x" * (serve.MAX_FRAME + 1))
    except ValueError as error:
        return str(error), await snex.Elixir.Kernel.abs(-1)

def main():
    """A child of its own: connects, tells who it is, and stays until its parent goes."""
    path, told = sys.argv[1:]

    async def serve():
        streams = await asyncio.open_unix_connection(path)
        async with snex.serve(*streams):
            waiting = asyncio.ensure_future(snex.call("timer", "sleep", [60_000]))
            await snex.send((told, await snex.Elixir.Kernel.node()), ("child", os.getpid()))
            print("told", flush=True)
            try:
                await waiting
            except ConnectionError as error:
                first = str(error)
            try:
                await snex.send(told, 1)
            except ConnectionError as error:
                print(first, "|", error, flush=True)

    asyncio.run(serve())

if __name__ == "__main__":
    main()
'''

SET_UP = """
import asyncio, concurrent.futures, multiprocessing, os, tempfile
import child_of_tests as child

folder = tempfile.mkdtemp()
path = os.path.join(folder, "socket")
server = await asyncio.start_unix_server(snex.io_loop_for_connection, path)
pool = concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn"), initializer=child.start, initargs=(path,))
loop = asyncio.get_running_loop()
def in_child(*args):
    return loop.run_in_executor(pool, child.run, *args)
"""

TEAR_DOWN = """
pool.shutdown(wait=False, cancel_futures=True)
for process in list((pool._processes or {}).values()):
    process.kill()
server.close()
import shutil
shutil.rmtree(folder)
"""


class Parent(NamedTuple):
    """A runtime, and an environment in which a pool of children is."""

    runtime: Runtime
    pool: object


@pytest.fixture(scope="module")
def parent(epmd: RealEpmd, beam: Beam) -> Iterator[Parent]:
    """A runtime with a pool of one child, spawned when it is first used."""
    modules = {"child_of_tests": CHILD}
    with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, modules=modules) as runtime:
        source = """
        {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}, handle: :none})
        {:ok, nil} = GenServer.call(env, {:eval, code, %{}}, 30_000)
        env
        """
        pool = beam.eval_sync(source, py=runtime.name, code=SET_UP.encode())
        yield Parent(runtime, pool)
        source = "GenServer.call(env, {:eval, code, %{}}, 30_000)"
        assert beam.eval_sync(source, env=pool, code=TEAR_DOWN.encode()) == ("ok", None)


async def in_pool(beam: Beam, parent: Parent, code: str, then: str = "nil") -> Any:
    source = f"""
    answer = GenServer.call(env, {{:eval, code, %{{me: self()}}}}, 20_000)
    {{answer, {then}}}
    """
    return await beam.eval(source, timeout=30, env=parent.pool, code=code.encode())


async def test_a_pool_of_spawned_children(beam: Beam, parent: Parent) -> None:
    then = """
    for n <- 0..101 do
      receive do
        {"sent", ^n, pid} when is_integer(pid) -> n
        <<255>> when n == 100 -> n
        :cast when n == 101 -> n
      after 5000 -> :none end
    end == Enum.to_list(0..101)
    """
    answer = await in_pool(beam, parent, "return await in_child('everything', me)", then)
    (ok, pid), in_order = answer
    assert ok == "ok"
    assert isinstance(pid, int)
    assert pid != parent.runtime.process.pid
    assert in_order is True


async def test_errors_are_those_of_the_parent(beam: Beam, parent: Parent) -> None:
    answer = await in_pool(beam, parent, "return await in_child('errors')")
    (ok, errors), _ = answer
    assert ok == "ok", errors
    names = [b"ElixirError", b"TypeError", b"ElixirError", b"EncodeTypeError", b"ValueError"]
    assert [name for name, _, _, _ in errors] == [*names, b"ValueError"]
    assert b"failed on Elixir side" in errors[0][1]
    assert errors[0][2:] == (b"error", False)
    assert b"it takes a pid, an alias" in errors[1][1]
    assert errors[2][2:] == (b"throw", True)
    assert b"atom too long" in errors[4][1]


async def test_too_large_a_message(beam: Beam, parent: Parent) -> None:
    answer = await in_pool(beam, parent, "return await in_child('oversized')")
    (_, (text, one)), _ = answer
    assert b"fit a frame" in text
    assert one == 1


async def test_logging(beam: Beam, parent: Parent) -> None:
    answer = await in_pool(
        beam,
        parent,
        """
sent = []
import snex_runtime.interface as interface
backend = interface.get_backend()
write = backend.write_log
done = asyncio.Event()
async def spy(node, args):
    sent.append((node, args[0], args[1]))
    done.set()
backend.write_log = spy
try:
    one = await in_child("log", "from a child \\udcff")
    await done.wait()
finally:
    backend.write_log = write
return one, sent[0][1:]
""",
    )
    assert answer == (("ok", (1, ("info", b"from a child \\udcff"))), None)


async def test_the_child_goes(beam: Beam, parent: Parent) -> None:
    source = """
    pid = spawn_link(fn -> GenServer.call(env, {:eval, code, %{me: me}}, 60_000) end)
    _ = pid
    child = receive do {"waits", os_pid} -> os_pid end
    """
    source = (
        "me = self()\nProcess.flag(:trap_exit, true)\n"
        + source
        + """
    kill = "import os, signal; os.kill(os_pid, signal.SIGKILL)"
    {:ok, nil} = GenServer.call(env, {:eval, kill, %{os_pid: child}})
    receive do {:EXIT, ^pid, reason} -> reason after 10_000 -> :waits_yet end
    """
    )
    code = """
try:
    await in_child('wait', me)
except concurrent.futures.process.BrokenProcessPool:
    pass
# All that belonged to the connection has gone.
while [t for t in asyncio.all_tasks() if "_serve_one" in repr(t) or "io_loop_for" in repr(t)]:
    await asyncio.sleep(0.01)
pool = concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn"), initializer=child.start, initargs=(path,))
assert isinstance(await in_child('everything', me), int)
"""
    reason = await beam.eval(source, timeout=40, env=parent.pool, code=code.encode())
    assert reason == "normal"


async def test_the_parent_goes(beam: Beam, epmd: RealEpmd) -> None:
    modules = {"child_of_tests": CHILD}
    with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, modules=modules) as runtime:
        source = """
        Process.register(self(), :told)
        {:ok, nil} = GenServer.call({:snex, py}, {:eval, code, %{}}, 20_000)
        receive do {"child", os_pid} -> os_pid after 10_000 -> :none end
        """
        code = """
import asyncio, subprocess, sys
path = home + "/socket"
snex._server = await asyncio.start_unix_server(snex.io_loop_for_connection, path)
out = open(home + "/out", "wb")
snex._child = subprocess.Popen(
    [sys.executable, "-m", "child_of_tests", path, "told"], stdout=out, start_new_session=True)
"""
        code = f"home = {str(runtime.home)!r}\n{code}"
        child = await beam.eval(source, py=runtime.name, code=code.encode())
        assert isinstance(child, int)
        out = runtime.home / "out"
        # The BEAM may have the message before the child knows that it was sent.
        await until(lambda: out.read_text() == "told\n")
        runtime.process.kill()
        await asyncio.to_thread(runtime.process.wait)
        await until(lambda: out.read_text().count("\n") == 2)
        gone = "the process that connects this one to a BEAM has gone"
        assert out.read_text() == f"told\n{gone} | {gone}\n"


async def test_a_forked_child_is_not_connected(beam: Beam, parent: Parent) -> None:
    code = """
import os
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        snex.send(me, 1).send(None)
    except RuntimeError as error:
        os.write(write, str(error).encode())
    os._exit(0)
os.close(write)
with open(read) as pipe:
    text = pipe.read()
os.waitpid(pid, 0)
return text
"""
    (ok, text), _ = await in_pool(beam, parent, code)
    assert ok == "ok"
    assert b"this process is not connected to a BEAM" in text
