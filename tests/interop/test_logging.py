"""Python's log records in the ``Logger`` of a real Elixir."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import Runtime

# A backend of Elixir's Logger that sends every event to the process registered as `watcher`.
WATCH = """
defmodule Watch do
  @behaviour :gen_event
  def init(_), do: {:ok, nil}
  def handle_call(_, state), do: {:ok, :ok, state}
  def handle_event({level, _gl, {Logger, message, _time, metadata}}, state) do
    with pid when is_pid(pid) <- Process.whereis(:watcher),
         do: send(pid, {level, IO.iodata_to_binary(message), Map.new(metadata)})
    {:ok, state}
  end
  def handle_event(_, state), do: {:ok, state}
end
Logger.configure(level: :debug, discard_threshold: 100_000, sync_threshold: 100_000)
Logger.remove_backend(:console)
{:ok, _} = Logger.add_backend(Watch)
:ok
"""

RUN = """
Process.register(self(), :watcher)
{:ok, value} = GenServer.call({:snex, py}, {:eval, code, %{}}, 10_000)
events = for _ <- 1..count//1 do
  receive do event -> event after 5000 -> raise "no event after #{inspect(value)}" end
end
Process.unregister(:watcher)
{value, events}
"""

LOGGER = """
import logging
logger = logging.getLogger(name)
logger.propagate = False
logger.setLevel(1)
for old in list(logger.handlers):
    logger.removeHandler(old)
logger.addHandler(snex.LoggingHandler(**options))
"""


class Events:
    """Logs by Python code, and what Logger got of it."""

    def __init__(self, beam: Beam, runtime: Runtime) -> None:
        self.beam = beam
        self.runtime = runtime

    async def __call__(
        self, code: str, count: int, options: str = "{}", name: str = "test.log"
    ) -> list[tuple[str, str, dict[str, Any]]]:
        source = f"name = {name!r}\noptions = {options}\n{LOGGER}\n{code}"
        answer = await self.beam.eval(RUN, py=self.runtime.name, code=source.encode(), count=count)
        assert isinstance(answer, tuple)
        return [(str(level), text.decode(), metadata) for level, text, metadata in answer[1]]


@pytest.fixture
async def logs(start_beam: Callable[..., Beam], start_runtime: Callable[..., Runtime]) -> Events:
    beam = start_beam()
    await beam.eval(WATCH)
    return Events(beam, start_runtime(cookie=beam.cookie))


async def test_levels_and_order(logs: Events) -> None:
    events = await logs(
        "for n in (5, 10, 15, 20, 21, 25, 29, 30, 35, 40, 50, 51, 60, 61):\n"
        "    logger.log(n, 'at %d', n)",
        14,
    )
    names = ["debug", "debug", "info", "info", "notice", "notice", "notice", "warning"]
    names += ["error", "error", "critical", "alert", "alert", "emergency"]
    assert [text for _, text, _ in events] == [
        f"at {n}" for n in (5, 10, 15, 20, 21, 25, 29, 30, 35, 40, 50, 51, 60, 61)
    ]
    levels = [str(metadata.get("erl_level", level)) for level, _, metadata in events]
    assert levels == names


async def test_metadata(logs: Events) -> None:
    code = """
import inspect
class Odd:
    def __repr__(self): return "odd \\ud800"
def speak():
    try:
        1 / 0
    except ZeroDivisionError:
        extra = {"foo": "from extra", "bar": 1, "odd": Odd()}
        extra["expected_line"] = inspect.currentframe().f_lineno + 1
        logger.exception("it broke", extra=extra)
speak()
"""
    options = """{
    "default_metadata": {"application": snex.Atom("my_app"), "foo": "default", "baz": 2,
                         "bar": "default"},
    "extra_metadata_keys": ["foo", "odd", "expected_line", "absent", "processName"],
}"""
    [(level, text, metadata)] = await logs(code, 1, options)
    assert level == "error"
    assert text.startswith("it broke\nTraceback")
    assert metadata["file"] == b"<Snex.Code>"
    assert metadata["line"] == metadata["expected_line"]
    assert metadata["application"] == "my_app"
    assert metadata["domain"] == ["elixir", "snex", "python"]  # Logger puts the first one there
    assert metadata["foo"] == b"from extra"
    assert metadata["bar"] == 1  # a record's attribute wins over the default
    assert metadata["baz"] == 2
    assert metadata["odd"] == b"odd \\ud800"
    assert metadata["processName"] == b"MainProcess"
    assert "absent" not in metadata
    assert metadata["python_logger_name"] == b"test.log"
    assert metadata["python_log_level"] == b"ERROR"
    assert metadata["python_function"] == b"speak"
    assert metadata["python_process_id"] == logs.runtime.process.pid
    assert metadata["python_thread_name"] == b"MainThread"
    assert isinstance(metadata["python_thread_id"], int)
    assert metadata["python_exception"] == b"ZeroDivisionError"
    assert "python_module" in metadata
    assert metadata["python_task_name"] == b"snex"


async def test_time_task_and_defaults(logs: Events) -> None:
    code = """
import asyncio, time
await asyncio.sleep(0)
asyncio.current_task().set_name("my task")
before = time.time_ns() // 1000
logger.warning("now")
await snex.send((snex.Atom("watcher"), await Elixir.Kernel.node()), (snex.Atom("info"), b"sent",
    {snex.Atom("before"): before, snex.Atom("after"): time.time_ns() // 1000}))
"""
    events = await logs(code, 2)
    [(_, _, window)] = [event for event in events if event[1] == "sent"]
    [(_, _, metadata)] = [event for event in events if event[1] == "now"]
    assert window["before"] - 1 <= metadata["time"] <= window["after"] + 1
    assert metadata["application"] == "snex"
    assert metadata["python_task_name"] == b"my task"


async def test_from_threads_in_order(logs: Events) -> None:
    code = """
import asyncio
def work(k):
    for n in range(100):
        logger.info("%d %d", k, n)
await asyncio.gather(*(asyncio.to_thread(work, k) for k in range(4)))
"""
    events = await logs(code, 400)
    for k in range(4):
        mine = [text.split()[1] for _, text, _ in events if text.startswith(f"{k} ")]
        assert mine == [str(n) for n in range(100)]
    assert {m["python_thread_name"] for _, _, m in events} != {b"MainThread"}


async def test_on_the_root_logger_at_debug(logs: Events) -> None:
    # The library's own records go to Logger as well, but carrying them makes no more of them.
    code = """
logging.getLogger("asyncio").setLevel(logging.WARNING)
root = logging.getLogger()
root.setLevel(1)
root.addHandler(snex.LoggingHandler())
logging.getLogger("snex_node.anything").debug("a library's record")
root.info("of the root")
"""
    events = await logs(code, 2)
    assert [text for _, text, _ in events] == ["a library's record", "of the root"]
    # What comes next is the next thing that is logged, and nothing besides.
    events = await logs("logging.getLogger().info('last')", 1)
    assert [text for _, text, _ in events] == ["last"]


async def test_code_that_cancels_every_task_keeps_no_record_from_its_way(logs: Events) -> None:
    code = """
import asyncio
for n in range(20):
    logger.info("at %d", n)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
"""
    events = await logs(code, 20)
    assert [text for _, text, _ in events] == [f"at {n}" for n in range(20)]


async def test_never_raises_into_user_code(logs: Events) -> None:
    code = """
class Bad:
    def __repr__(self): raise ValueError("no repr")
    def __str__(self): raise ValueError("no str")
logger.info("%d", "not a number")
logger.info(Bad())
logger.info("bad extra", extra={"foo": Bad()})
logger.info("lone \\ud800 surrogate")
logger.info("fine")
return "went on"
"""
    events = await logs(code, 3, '{"extra_metadata_keys": ["foo"]}')
    texts = [text for _, text, _ in events]
    assert events[0][2]["foo"] == b"<__snex__.Bad, whose __repr__ failed>"
    assert texts == ["bad extra", "lone \\ud800 surrogate", "fine"]


# A handler of Erlang's logger, which runs in the process that logs: what it was told is in Logger.
ORDER = """
defmodule Order do
  def log(%{msg: {:string, text}}, _config) do
    with pid when is_pid(pid) <- Process.whereis(:order),
         do: send(pid, {:logged, IO.iodata_to_binary(text)})
  end
  def log(_event, _config), do: :ok

  def texts, do: receive(do: ({:logged, text} -> [text | texts()]), after: (0 -> []))
end
Logger.configure(level: :debug)
Logger.remove_backend(:console)
:ok = :logger.add_handler(:order, Order, %{})
:ok
"""

ORDER_OF = """
Process.register(self(), :order)
answers = for _ <- 1..5 do
  {tag, _} = GenServer.call(to || {:snex, py}, request, 10_000)
  {tag, apply(Order, :texts, [])}
end
Process.unregister(:order)
answers
"""


@pytest.mark.parametrize(
    ("code", "tag", "texts"),
    [
        ("log.info('one')", "ok", [b"one"]),
        ("for n in range(100): log.info('%d', n)", "ok", [b"%d" % n for n in range(100)]),
        ("log.info('one'); 1 / 0", "error", [b"one"]),
        ("log.info('one'); return object()", "error", [b"one"]),
        ("import asyncio\nlog.info('one')\nawait asyncio.sleep(0)\nlog.info('two')", "ok",
         [b"one", b"two"]),
        ("import asyncio\nawait asyncio.sleep(0)\nlog.info('one')\n1 / 0", "error", [b"one"]),
        ("import asyncio\nawait asyncio.to_thread(log.info, 'one')", "ok", [b"one"]),
        ("import asyncio\nloop = asyncio.get_running_loop()\n"
         "await loop.run_in_executor(None, log.info, 'one')", "ok", [b"one"]),
        ("import threading\nthread = threading.Thread(target=log.info, args=('one',))\n"
         "thread.start()\nthread.join()", "ok", [b"one"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["server", "environment"])
async def test_records_are_there_before_the_answer(
    order: tuple[Beam, Runtime], code: str, tag: str, texts: list[bytes], where: str
) -> None:
    beam, runtime = order
    target = "to = nil" if where == "server" else MAKE_ENV
    source = f"{target}\n{ORDER_OF}"
    request: Any = (Atom("eval"), code.encode(), {})
    answers = await beam.eval(source, py=runtime.name, request=request)
    assert answers == [(tag, texts)] * 5


async def test_records_of_a_called_function_too(order: tuple[Beam, Runtime]) -> None:
    beam, runtime = order
    request: object = (Atom("call"), b"snex", b"log.info", [b"one"])
    source = f"to = nil\n{ORDER_OF}"
    answers = await beam.eval(source, py=runtime.name, request=request)
    assert answers == [("ok", [b"one"])] * 5


MAKE_ENV = "{:ok, to} = GenServer.call({:snex, py}, {:make_env, %{}})"


@pytest.fixture(scope="module")
def order(epmd: RealEpmd) -> Iterator[tuple[Beam, Runtime]]:
    script = "import logging\nlog = snex.log = logging.getLogger('order')\nlog.setLevel(1)\n"
    script += "log.propagate = False\nlog.addHandler(snex.LoggingHandler())\n"
    with (
        Beam.start(epmd_port=epmd.port) as beam,
        Runtime.start(epmd_port=epmd.port, cookie=beam.cookie, init_script=script) as runtime,
    ):
        beam.eval_sync(ORDER)
        yield beam, runtime


def texts_of(told: Any) -> list[bytes]:
    return [text for _, text, _ in told[1]]


async def test_kept_until_a_beam_is_there(
    start_beam: Callable[..., Beam], start_runtime: Callable[..., Runtime]
) -> None:
    first = start_beam()
    script = "import logging\nlog = logging.getLogger('early')\nlog.setLevel(1)\n"
    script += "log.propagate = False\nlog.addHandler(snex.LoggingHandler())\n"
    script += "for n in range(3): log.info('early %d', n)\n"
    script += "snex._log = log\n"
    runtime = start_runtime(cookie=first.cookie, init_script=script)
    await first.eval(WATCH)
    told = await first.eval(RUN, py=runtime.name, code=b"snex._log.info('then')", count=4)
    assert texts_of(told) == [b"early 0", b"early 1", b"early 2", b"then"]

    # And again, when it has gone and another one has come.
    code = """
import asyncio
async def later(closed):
    await closed.wait()
    for n in range(3): snex._log.info('between %d', n)
snex._closed = asyncio.Event()
snex._task = asyncio.ensure_future(later(snex._closed))
"""
    await runtime.run(first, code)
    second = start_beam(cookie=first.cookie)
    await first.kill()
    await second.eval(WATCH)
    told = await second.eval(RUN, py=runtime.name, code=b"snex._closed.set()", count=3)
    assert texts_of(told) == [b"between 0", b"between 1", b"between 2"]
