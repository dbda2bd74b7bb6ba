"""The examples, run as their first lines say, and the README's session: what they print."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.beam import QUIET_SCHEDULERS, Beam
from tests.support.epmd import RealEpmd, executable

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SECONDS = 50.0

pytestmark = pytest.mark.interop


class Terminals:
    """What the terminals of a user have in common: a home with a cookie, and one epmd.

    The examples have fixed names, so each test has an epmd of its own.
    """

    def __init__(self, home: Path, epmd_port: int) -> None:
        self.epmd_port = epmd_port
        self.cookie = "cookie-of-the-examples"
        path = home / ".erlang.cookie"
        path.write_text(self.cookie)
        path.chmod(0o400)
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ERL_", "SNEX_"))},
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_FLAGS": f"-start_epmd false {QUIET_SCHEDULERS}",
            "PYTHONPATH": str(ROOT),
        }

    @contextlib.contextmanager
    def python(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program that runs beside others; it has said that it is ready."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=SECONDS)

    def run(self, *command: str) -> str:
        """What a program printed that ends by itself, with 0 and without complaints."""
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    def elixir(self, script: str) -> str:
        """What a script printed that ran under the name the examples use."""
        path = str(EXAMPLES / script)
        return self.run(executable("elixir"), "--name", "me@127.0.0.1", path)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    with RealEpmd() as epmd:
        yield Terminals(tmp_path, epmd.port)


def readme_session() -> list[tuple[str, str]]:
    """The expressions of the README's session, each with the value that stands below it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```elixir\n(.*?)```", readme, re.S) if "iex> " in b)
    session = []
    for part in block.split("iex> ")[1:]:
        expression, _, value = part.partition("\n")
        lines = [line for line in value.splitlines() if line and not line.startswith("# ")]
        session.append((expression, "\n".join(lines)))
    return session


def readme_python(part: str) -> str:
    """The block of Python code of the README that has ``part`` in it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if part in b)
    return str(block)


def comparable(text: str) -> list[str]:
    """What is printed, without pids, and with the fields of a map in order: OTP 26 has its own."""
    lines: list[str] = []
    fields: list[str] = []
    for line in re.sub(r"#PID<\d+\.\d+\.\d+>", "#PID<>", text).splitlines():
        if re.match(r" {3}\w", line):
            fields.append(line.rstrip(","))
        elif fields and line.startswith("    "):
            fields[-1] += line.rstrip(",")
        else:
            lines += [*sorted(fields), line]
            fields = []
    return lines + sorted(fields)


def test_the_readme_shows_what_the_session_really_gives(terminals: Terminals) -> None:
    session = readme_session()
    script = (EXAMPLES / "iex_session.exs").read_text(encoding="utf-8")
    statements = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert statements == [f"{expression} |> IO.inspect()" for expression, _ in session]

    with terminals.python("-m", "snex_runtime", "start"):
        printed = terminals.elixir("iex_session.exs")
    shown = "".join(f"{value}\n" for _, value in session)
    assert comparable(printed) == comparable(shown)


async def test_the_readme_calls_the_beam_as_it_says(terminals: Terminals) -> None:
    code = readme_python("snex.send(pid")
    with terminals.python("-m", "snex_runtime", "start"):
        async with Beam.start(epmd_port=terminals.epmd_port, cookie=terminals.cookie) as beam:
            received = await beam.eval(
                """
                snex = {:snex, :"py@127.0.0.1"}
                variables = %{"pid" => self(), "mapper" => &(&1 * 2)}
                {:ok, nil} = GenServer.call(snex, {:eval, code, variables})
                log = "logging.warning('logged')"
                {:ok, nil} = GenServer.call(snex, {:eval, "import logging\\n" <> log, %{}})
                receive do
                  message -> message
                end
                """,
                code=code,
            )
            assert received == {b"progress": 0.5}
            await beam.wait_log("hello")
            await beam.wait_log("logged")


async def test_the_readme_reads_streams_and_messages_as_it_says(terminals: Terminals) -> None:
    code = readme_python("snex.subscribe(source)")
    with terminals.python("-m", "snex_runtime", "start"):
        async with Beam.start(epmd_port=terminals.epmd_port, cookie=terminals.cookie) as beam:
            answered = await beam.eval(
                """
                me = self()
                source = spawn(fn ->
                  receive do
                    {:"$gen_producer", {pid, tag}, {:ask, _}} ->
                      from = {self(), tag}
                      send(pid, {:"$gen_consumer", from, [1, 2]})
                      send(pid, {:"$gen_consumer", from, {:cancel, :normal}})
                      Process.sleep(:infinity)
                  end
                end)
                worker = spawn(fn ->
                  for n <- 1..2 do
                    receive do
                      %{"row" => ^n, "to" => box} -> send(box, n * 10)
                    end
                  end
                end)
                variables = %{"source" => source, "worker" => worker}
                GenServer.call({:snex, :"py@127.0.0.1"}, {:eval, code, variables})
                """,
                code=f"{code}\nreturn answer",
            )
            assert answered == ("ok", 20)


async def test_the_node_of_the_readme_calls_and_is_called(terminals: Terminals) -> None:
    code = readme_python("class Counter").replace("        print(", "        print('ready', ")
    options = {"name": "app", "cookie": "secret", "epmd_port": terminals.epmd_port}
    async with Beam.start(**options) as beam:  # type: ignore[arg-type]
        await beam.eval(
            """
            {:module, _, _, _} =
              defmodule Status do
                use GenServer
                def init(nil), do: {:ok, nil}
                def handle_call(:status, _from, nil), do: {:reply, :fine, nil}
              end

            {:ok, _} = GenServer.start(Status, nil, name: :server)
            """
        )
        with terminals.python("-u", "-c", code) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready fine\n"
            call = 'GenServer.call({:counter, :"py@127.0.0.1"}, :next)'
            assert [await beam.eval(call), await beam.eval(call)] == [1, 2]


def test_a_genserver_in_python_called_from_elixir(terminals: Terminals) -> None:
    with terminals.python(str(EXAMPLES / "counter_server.py")) as server:
        printed = terminals.elixir("counter_client.exs")
        output, _ = server.communicate(timeout=SECONDS)
    assert printed.splitlines() == [
        "add 5: 5",
        "three callers: [6, 7, 8]",
        "after a reset: 2",
        "a mistake: {:error, :unknown_request}",
        "stop: :bye",
        "it ended: :normal",
    ]
    assert output == "it counted to 2\n"
    assert server.returncode == 0


def test_a_python_program_that_calls_elixir(terminals: Terminals) -> None:
    with Beam.start(epmd_port=terminals.epmd_port, cookie=terminals.cookie) as beam:
        printed = terminals.run(sys.executable, str(EXAMPLES / "call_elixir.py"), beam.name)
        log = beam.log
    assert printed.splitlines() == [
        "sum: 6",
        "title: Élan",
        "error: error badarith",
        "update: ok",
        "get: 42",
        "it ended: normal",
        "printed: ok",
        "message: (:hello, ['from', 'Erlang'])",
    ]
    assert "Hello from Python!" in log


def test_the_last_one_says_how_it_is_used(terminals: Terminals) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "call_elixir.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "python examples/call_elixir.py iex@127.0.0.1" in done.stderr
