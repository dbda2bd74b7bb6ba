"""``snex-node demo``: a node, evaluated on by a real Elixir where there is one, else by Python.

Everything it starts is its own and ends with it (an epmd of ours, on a free port, some seconds
later): the node, the other node, their cookie and their files. The code that is shown is the code
that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from snex_node.errors import NodeError
from snex_node.node import Node
from snex_node.wire.terms import Atom
from snex_runtime import serde
from snex_runtime.code import compile_code

START_SECONDS = 30.0
"""What a node, Python's or Elixir's, may take to start: about 0.5 s where little else runs."""

STEP_SECONDS = 15.0
"""What one step may take; the longest sleeps for a tenth of a second."""

STOP_SECONDS = 5.0
"""What a process may take to end after it was told to, before it is killed."""


class DemoError(Exception):
    """The demo cannot go on; the message says where it stopped and why."""


class Step(NamedTuple):
    """One thing the demo shows. ``expected`` must be part of the value as it is printed."""

    text: str
    code: str
    expected: str


ELIXIR_STEPS = (
    Step(
        "Connect. The Python process is a hidden Erlang node, so nothing is installed here.",
        'Node.connect(:"NODE")',
        "true",
    ),
    Step(
        "Requests go to the process that is registered as snex there.",
        'snex = {:snex, :"NODE"}',
        ":snex",
    ),
    Step(
        "Evaluate Python. The variables travel along, and the value comes back.",
        'GenServer.call(snex, {:eval, "return 6 * x", %{"x" => 7}})',
        "{:ok, 42}",
    ),
    Step(
        "Code may await; other requests are served meanwhile.",
        'code = "import asyncio\\nreturn await asyncio.sleep(0.1, [1, 2.5, None])"\n'
        "GenServer.call(snex, {:eval, code, %{}})",
        "{:ok, [1, 2.5, nil]}",
    ),
    Step(
        "Make an environment: a process over there that keeps variables between calls.",
        '{:ok, env} = GenServer.call(snex, {:make_env, %{"words" => ["to"]}})',
        "{:ok, #PID<",
    ),
    Step(
        "Change it.",
        'GenServer.call(env, {:eval, "words += more", %{"more" => ["be", "or"]}})',
        "{:ok, nil}",
    ),
    Step(
        "Read it again.",
        'GenServer.call(env, {:eval, "return {len(w): w for w in words}, words", %{}})',
        '["to", "be", "or"]',
    ),
    Step(
        "An error is an answer like any other, with Python's traceback.",
        'GenServer.call(snex, {:eval, "return 1 / n", %{"n" => 0}})',
        "ZeroDivisionError: division by zero",
    ),
    Step(
        "Call a Python function as if it were Erlang's.",
        ':erpc.call(:"NODE", :math, :sqrt, [16])',
        "4.0",
    ),
)

PYTHON_STEPS = (
    Step(
        "Connect, as any Erlang node would.",
        'snex = ("snex", "NODE")\nawait node.connect("NODE")\nreturn node.nodes',
        "NODE",
    ),
    Step(
        "Evaluate Python on it. The variables travel along, and the value comes back.",
        'return await node.call(snex, (Atom("eval"), "return 6 * x", {"x": 7}))',
        "42",
    ),
    Step(
        "Make an environment: a process over there that keeps variables between calls.",
        'ok, env = await node.call(snex, (Atom("make_env"), {"words": ["to"]}))\nreturn ok',
        "ok",
    ),
    Step(
        "Change it.",
        'return await node.call(to_pid(env), (Atom("eval"), "words += more", {"more": ["be"]}))',
        "None",
    ),
    Step(
        "Read it again.",
        'return await node.call(to_pid(env), (Atom("eval"), "return words", {}))',
        "['to', 'be']",
    ),
    Step(
        "An error is an answer like any other, with Python's traceback.",
        'ok, error = await node.call(snex, (Atom("eval"), "return 1 / n", {"n": 0}))\n'
        'return error["traceback"]',
        "ZeroDivisionError: division by zero",
    ),
)

# Evaluates its arguments in turn, in one process and with the bindings of those before, and ends
# each value with a line of its own.
_ELIXIR_SCRIPT = """\
Enum.reduce(System.argv(), [], fn code, binding ->
  {value, binding} = Code.eval_string(code, binding)
  IO.puts([inspect(value, pretty: true, width: 90), "\\n", "END"])
  binding
end)
"""
_END = "END\n"


async def run() -> int:
    """Run the demo and print it. Returns 0, or 1 when something did not work, with the reason.

    It takes about two seconds.
    """
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="snex-demo-") as home:
            await _show(Path(home))
    except (DemoError, NodeError, OSError) as error:
        print(f"snex-node: the demo failed: {error}", file=sys.stderr)
        return 1
    print(f"All of it worked, in {time.monotonic() - started:.1f} s; the nodes have been stopped.")
    return 0


async def _show(home: Path) -> None:
    cookie, port = secrets.token_hex(16), _free_port()
    name = f"py-{secrets.token_hex(3)}@127.0.0.1"
    print(
        f"Starting a Python node, with an epmd of its own:\n\n    $ snex-node start --name {name}"
    )
    async with _python_node(name, _environment(home, SNEX_COOKIE=cookie, ERL_EPMD_PORT=str(port))):
        print(f"    ready {name}\n")
        elixir = shutil.which("elixir")
        if elixir is not None and shutil.which("erl") is not None:
            print("Calling it from Elixir, which knows nothing of snex:\n")
            await _call_from_elixir(elixir, name, home, cookie, port)
        else:
            print("Calling it from a second Python node (no elixir is on PATH):\n")
            await _call_from_python(name, cookie, port)


def _environment(home: Path, **variables: str) -> dict[str, str]:
    """Our environment, without what the user has set for Erlang nodes of their own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ERL_", "ELIXIR_"))}
    return {**kept, "HOME": str(home), **variables}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


# --- the node -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _python_node(name: str, environment: Mapping[str, str]) -> AsyncIterator[None]:
    """A ``snex-node start`` of our own. Raises `DemoError` with its output if it does not start."""
    arguments = ("-m", "snex_runtime", "start", "--name", name, "--epmd", "embedded")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        env={**environment, "PYTHONPATH": _search_path()},
        cwd=environment["HOME"],
    )
    try:
        await _wait_ready(process, name)
        yield
    finally:
        await _stop(process)


def _search_path() -> str:
    """Where the node finds this package: where we found it, be it installed or a clone."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


async def _wait_ready(process: Process, name: str) -> None:
    assert process.stdout is not None
    output = b""
    while True:
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except asyncio.TimeoutError:
            raise DemoError(f"{name} was not ready within {START_SECONDS:g} s") from None
        if line.startswith(b"ready "):
            return
        if not line:
            raise DemoError(f"{name} did not start:\n{output.decode(errors='replace')}")
        output += line


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()


# --- the callers --------------------------------------------------------------------------------


async def _call_from_elixir(elixir: str, name: str, home: Path, cookie: str, port: int) -> None:
    cookie_file = home / ".erlang.cookie"
    cookie_file.write_text(cookie)
    cookie_file.chmod(0o400)  # a BEAM refuses a cookie that others may read
    script = home / "demo.exs"
    script.write_text(_ELIXIR_SCRIPT)
    steps = _steps_for(ELIXIR_STEPS, name)
    process = await asyncio.create_subprocess_exec(
        elixir,
        *("--name", f"elixir-{secrets.token_hex(3)}@127.0.0.1", "--erl", "-start_epmd false"),
        str(script),
        *(step.code for step in steps),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        env=_environment(home, ERL_EPMD_PORT=str(port), LC_ALL="C.UTF-8"),
    )
    try:
        for number, step in enumerate(steps, 1):
            limit = STEP_SECONDS if number > 1 else START_SECONDS  # the first starts a BEAM
            _print_step(number, step, ("iex> ", "...> "), await _read_value(process, step, limit))
    finally:
        await _stop(process)


async def _read_value(process: Process, step: Step, limit: float) -> str:
    """The value of ``step`` as Elixir prints it. Raises `DemoError` for anything else it prints."""
    assert process.stdout is not None
    lines: list[str] = []
    while True:
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), limit)).decode()
        except asyncio.TimeoutError:
            raise DemoError(f"no answer within {limit:g} s to {step.code}") from None
        if line == _END:
            return "".join(lines).rstrip()
        if not line:
            raise DemoError(f"Elixir ended at {step.code}\n{''.join(lines)}")
        lines.append(line)


async def _call_from_python(name: str, cookie: str, port: int) -> None:
    async with Node(
        f"python-{secrets.token_hex(3)}@127.0.0.1",
        cookie=cookie,
        listen=None,
        epmd="none",
        epmd_port=port,
        decoder=serde.decoder(),
        encoder=serde.encoder,
    ) as node:
        names: dict[str, object] = {"node": node, "Atom": Atom, "to_pid": serde.to_typed}
        for number, step in enumerate(_steps_for(PYTHON_STEPS, name), 1):
            code = compile_code(step.code, f"step {number}")
            try:
                value = await asyncio.wait_for(_value(code.run(names)), STEP_SECONDS)
            except asyncio.TimeoutError:
                raise DemoError(f"no answer within {STEP_SECONDS:g} s to {step.code}") from None
            text = _traceback(value) or repr(value)
            _print_step(number, step, (">>> ", "... "), text.rstrip())


async def _value(result: object) -> object:
    return await result if asyncio.iscoroutine(result) else result


def _traceback(value: object) -> str:
    if isinstance(value, list) and value and str(value[0]).startswith("Traceback"):
        return "".join(map(str, value))
    return ""


def _steps_for(steps: Sequence[Step], name: str) -> list[Step]:
    return [Step(*(part.replace("NODE", name) for part in step)) for step in steps]


def _print_step(number: int, step: Step, prompts: tuple[str, str], value: str) -> None:
    """Print a step with its value. Raises `DemoError` when the value is not what it should be."""
    code = step.code.replace("\n", f"\n    {prompts[1]}")
    print(f"{number}. {step.text}\n\n    {prompts[0]}{code}")
    print("    " + value.replace("\n", "\n    ") + "\n", flush=True)
    if step.expected not in value:
        raise DemoError(f"step {number} should have given {step.expected}")
