"""The ``snex-node`` command as its users meet it: what it prints, how it fails, how it stops."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snex_node import __version__
from snex_node.epmd import EpmdServer
from snex_runtime import cli
from snex_runtime.cli import main
from tests.support.epmd import RealEpmd
from tests.support.leaks import group
from tests.support.ports import free_port

ROOT = Path(__file__).parents[1]
COOKIE = "the-cookie-of-these-tests"
SECONDS = 20.0


class Output:
    """What a command wrote, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


Command = Callable[..., Output]


class Running:
    """A command that runs on, in a process of its own."""

    def __init__(
        self,
        arguments: Sequence[str],
        environ: dict[str, str],
        grace: float,
        stdin: int = subprocess.DEVNULL,
        before: str = "",
    ) -> None:
        # Whoever runs the tests may ignore it, under nohup say, and children inherit that.
        hangup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
        program = (
            f"import sys; from snex_runtime import cli; {hangup}; {before}; "
            f"cli.GRACE = {grace}; sys.exit(cli.main(sys.argv[1:]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=environ,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.line = ""

    def read_line(self) -> str:
        """The next line of its standard output; empty when it has ended."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert readable, "it wrote nothing"
        self.line = self.process.stdout.readline().decode()
        return self.line

    @property
    def name(self) -> str:
        return self.line.split()[1]

    @property
    def port(self) -> int:
        return int(self.line.split()[2])

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> Output:
        out, err = self.process.communicate(timeout=SECONDS)
        return Output(self.process.returncode, out.decode(), err.decode())

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def environ(epmd: RealEpmd, tmp_path: Path) -> dict[str, str]:
    mine = ("ERL_", "SNEX_COOKIE", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
    return {
        **kept,
        "HOME": str(tmp_path),
        "ERL_EPMD_PORT": str(epmd.port),
        "SNEX_COOKIE": COOKIE,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture
def command(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Run a command that ends by itself, in this process."""

    def run(*arguments: str, **changes: str | None) -> Output:
        for name in (*(n for n in os.environ if n.startswith("ERL_")), "SNEX_COOKIE"):
            monkeypatch.delenv(name, raising=False)
        # As in a process of its own; and it is for the process's sake that it ends in time.
        monkeypatch.setattr("snex_node.cookie._taken", None)
        monkeypatch.setattr(cli, "LEAVE", 600.0)
        for name, value in {**environ, **changes}.items():
            if name.startswith(("ERL_", "HOME", "SNEX_")):
                if value is None:
                    monkeypatch.delenv(name, raising=False)
                else:
                    monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = main(arguments)
        captured = capfd.readouterr()
        return Output(code, captured.out, captured.err)

    return run


Starter = Callable[..., Running]


@contextlib.contextmanager
def starter(environ: dict[str, str]) -> Iterator[Starter]:
    with contextlib.ExitStack() as stack:

        def start(
            *arguments: str,
            ready: bool = True,
            grace: float = 5.0,
            stdin: int = subprocess.DEVNULL,
            before: str = "pass",
            **changes: str,
        ) -> Running:
            running = Running(arguments, {**environ, **changes}, grace, stdin, before)
            stack.callback(running.end)
            if ready and not running.read_line():
                raise AssertionError(running.wait().err)
            return running

        yield start


@pytest.fixture
def start(environ: dict[str, str]) -> Iterator[Starter]:
    """Start a command that runs on, and wait for its first line."""
    with starter(environ) as function:
        yield function


@pytest.fixture(scope="module")
def node(epmd: RealEpmd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node that the tests of this module share."""
    environ = {
        **os.environ,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "ERL_EPMD_PORT": str(epmd.port),
        "SNEX_COOKIE": COOKIE,
        "PYTHONPATH": str(ROOT),
    }
    with starter(environ) as function:
        yield function("start", "--name", f"shared{os.getpid()}@127.0.0.1")


def unique() -> str:
    unique.number += 1  # type: ignore[attr-defined]
    return f"n{os.getpid()}x{unique.number}@127.0.0.1"  # type: ignore[attr-defined]


unique.number = 0  # type: ignore[attr-defined]


class TestHelp:
    def test_of_the_whole(self, command: Command) -> None:
        output = command("--help")
        assert output.code == 0
        for name in ("start", "eval", "ping", "info", "top", "doctor", "names", "epmd", "demo"):
            assert re.search(rf"^    {name}\s+\S", output.out, re.M)
        assert "never from an argument" in output.out

    @pytest.mark.parametrize(
        "name", ["start", "eval", "ping", "info", "top", "doctor", "names", "epmd", "demo"]
    )
    def test_of_each_command(self, command: Command, name: str) -> None:
        output = command(name, "--help")
        assert output.code == 0
        assert output.out.startswith(f"usage: snex-node {name} ")
        assert max(map(len, output.out.splitlines())) <= 120

    def test_no_option_takes_a_cookie(self, command: Command) -> None:
        options = set(re.findall(r"--[a-z-]*cookie[a-z-]*", command("start", "--help").out))
        assert options == {"--cookie-file"}

    def test_without_a_command(self, command: Command) -> None:
        output = command()
        assert output.code == 2
        assert output.out.startswith("usage: snex-node")

    def test_version(self, command: Command) -> None:
        output = command("--version")
        assert (output.code, output.out) == (0, f"snex-node {__version__}\n")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nope"], "invalid choice: 'nope'"),
            (["start", "--nope"], "unrecognized arguments: --nope"),
            (["start", "--cookie", "x"], "unrecognized arguments: --cookie x"),
            (["start", "--name", "a@127.0.0.1", "--sname", "b"], "not allowed with argument"),
            (["start", "--listen", "nohost"], "'nohost' is not HOST:PORT"),
            (["start", "--listen", "127.0.0.1:99999"], "is not HOST:PORT"),
            (["start", "--epmd", "maybe"], "invalid choice: 'maybe'"),
            (["start", "--net-ticktime", "soon"], "invalid float value: 'soon'"),
            (["eval", "py@127.0.0.1"], "give either CODE (- reads standard input) or --file FILE"),
            (
                ["eval", "py@127.0.0.1", "1", "--file", "f"],
                "give either CODE (- reads standard input) or --file FILE",
            ),
            (["eval", "py@127.0.0.1", "1", "--timeout", "0"], "0 is no number of seconds from"),
            (["eval", "py@127.0.0.1", "1", "--timeout", "-1"], "-1 is no number of seconds from"),
            (["eval", "py@127.0.0.1", "1", "--timeout", "nan"], "nan is no number of seconds from"),
            (["ping", "py@127.0.0.1", "--timeout", "inf"], "inf is no number of seconds from"),
            (["ping", "py@127.0.0.1", "--timeout", "1e400"], "1e400 is no number of seconds from"),
            (["ping", "py@127.0.0.1", "--timeout", "soon"], "soon is no number of seconds from"),
            (["start", "--init-script-timeout", "nan"], "nan is no number of seconds from"),
            (["start", "--executor", "process"], "invalid choice: 'process'"),
            (["start", "--threads", "0"], "at least 1 is needed"),
            (["start", "--max-queue", "-1"], "-1 is no whole number, 0 or more"),
            (["start", "--queue-timeout", "1.5"], "1.5 is no whole number, 0 or more"),
            (["start", "--max-time", "9999999999"], "9999999999 is no number of milliseconds up"),
            (["start", "--metrics", "here"], "':here' is not HOST:PORT"),
            (["start", "--slow", "0"], "at least 1 is needed"),
            (["start", "--log-format", "xml"], "invalid choice: 'xml'"),
            (["start", "--workers", "0"], "0 is no whole number of 1 and more"),
            (["start", "--workers", "-1"], "-1 is no whole number of 1 and more"),
            (["start", "--workers", "two"], "two is no whole number of 1 and more"),
            (["start", "--workers", "2", "--max-requests", "0"], "0 is no whole number of 1 and"),
            (["start", "--workers", "2", "--rlimit-as", str(2**62 + 1)], "is no whole number of 1"),
            (["start", "--workers", "2", "--max-restarts", "5"], "'5' is not N/SECONDS, such as"),
            (["start", "--workers", "2", "--max-restarts", "x/5"], "'x/5' is not N/SECONDS, such"),
            (
                ["start", "--workers", "2", "--max-restarts", "5/0"],
                "0 is no number of seconds from",
            ),
            (
                ["start", "--workers", "2", "--max-restarts", "5/x"],
                "x is no number of seconds from",
            ),
            (["ping"], "required: NODE"),
            (["info"], "required: NODE"),
            (["top", "py@127.0.0.1", "--interval", "0"], "0 is no number of seconds from"),
            (["top", "py@127.0.0.1", "--count", "0"], "at least 1 is needed"),
        ],
    )
    def test_wrong_usage(self, command: Command, arguments: list[str], message: str) -> None:
        output = command(*arguments)
        assert output.code == 2
        assert message in output.err


def test_where_requests_run_and_how_long(start: Starter, command: Command) -> None:
    execution = "--executor", "thread", "--threads", "1", "--max-time", "150", "--max-queue", "0"
    running = start("start", "--name", unique(), *execution, "--queue-timeout", "1000")
    named = command(
        "eval", running.name, "import threading\nreturn threading.current_thread().name"
    )
    assert named.out == "'snex-thread-1'\n"


class TestEval:
    @pytest.mark.parametrize(
        ("code", "printed"),
        [
            ("return 6 * 7", "42"),
            ("return", "None"),
            ("if False: return 1", "None"),
            ("return 'text', [1.5, None], {'k': b'v'}", "('text', [1.5, None], {'k': 'v'})"),
            ("return {1}", "{1}"),
            ("import asyncio\nreturn await asyncio.sleep(0, 'a')", "'a'"),
            ("return 'x' * 300, 10**5000", f"('{'x' * 300}', <an int of 16610 bits>)"),
        ],
    )
    def test_it_prints_the_value(
        self, command: Command, node: Running, code: str, printed: str
    ) -> None:
        output = command("eval", node.name, code)
        assert (output.code, output.out, output.err) == (0, f"{printed}\n", "")

    def test_it_prints_what_is_nested_deeply(self, command: Command, node: Running) -> None:
        output = command("eval", node.name, "x = 1\nfor _ in range(30_000): x = [x]\nreturn x")
        # Python 3.14 can write it, and then it is written.
        whole = f"{'[' * 30_000}1{']' * 30_000}\n"
        assert (output.code, output.err) == (0, "")
        assert output.out in (f"{'[' * 20}...{']' * 20}\n", whole)

    @pytest.mark.parametrize("place", range(3))
    def test_options_may_stand_anywhere(self, command: Command, node: Running, place: int) -> None:
        words = [node.name, "return x"]
        words[place:place] = ["--timeout", "5"]
        output = command("eval", "--var", "x=7", *words)
        assert (output.code, output.out, output.err) == (0, "7\n", "")

    def test_variables(self, command: Command, node: Running) -> None:
        code = "return x, y, z"
        output = command(
            "eval", node.name, code, "--var", "x=7", "--var", 'y="a=b"', "--var", 'z={"k": [null]}'
        )
        assert (output.code, output.out) == (0, "(7, 'a=b', {'k': [None]})\n")

    @pytest.mark.parametrize(
        ("variable", "message"),
        [
            ("x", "--var takes name=JSON, not 'x'"),
            ("=1", "--var takes name=JSON, not '=1'"),
            ("x=text", "--var x: 'text' is not JSON"),
            ("x=", "--var x: '' is not JSON"),
        ],
    )
    def test_variables_that_are_none(
        self, command: Command, node: Running, variable: str, message: str
    ) -> None:
        output = command("eval", node.name, "return 1", "--var", variable)
        assert (output.code, output.out) == (1, "")
        assert message in output.err

    def test_an_exception(self, command: Command, node: Running) -> None:
        output = command("eval", node.name, "x = 1\n1 / 0")
        assert (output.code, output.out) == (1, "")
        assert output.err == (
            "Traceback (most recent call last):\n"
            '  File "<Snex.Code>", line 2, in <module>\n'
            "ZeroDivisionError: division by zero\n"
        )

    @pytest.mark.parametrize(
        "code",
        [
            "while True: pass",
            "import time\ntime.sleep(60)",
            "import asyncio\nawait asyncio.sleep(60)",
            "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass",
            "try:\n  while True: pass\nfinally:\n  import time; time.sleep(0.3)",
        ],
    )
    def test_no_answer_in_time(self, command: Command, node: Running, code: str) -> None:
        """What nobody waits for any more does not run on, and the others get on."""
        output = command("eval", node.name, code, "--timeout", "0.2")
        assert (output.code, output.out) == (1, "")
        assert output.err == (
            f"snex-node: {node.name} did not answer within 0.2 s: the code was stopped there "
            "(--timeout gives it more time)\n"
        )
        assert command("eval", node.name, "return 1", "--timeout", "2").out == "1\n"

    def test_what_cannot_be_stopped(self, command: Command, start: Starter) -> None:
        running = start("start", "--name", unique())
        began = time.monotonic()
        output = command("eval", running.name, "sum(range(10 ** 13))", "--timeout", "0.2")
        assert time.monotonic() - began < 0.2 + cli.MARGIN + 2.0
        assert (output.code, output.out) == (1, "")
        assert f"{running.name} did not answer within 0.2 s, nor did it say" in output.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_caller_that_is_stopped(
        self, start: Starter, node: Running, tmp_path: Path, number: int
    ) -> None:
        mark = tmp_path / "mark"
        code = (
            "import asyncio, pathlib\npath = pathlib.Path(mark)\npath.write_text('begun')\n"
            "try:\n  await asyncio.sleep(60)\nfinally:\n  path.write_text('ended')"
        )
        arguments = ["--var", f'mark="{mark}"', "--timeout", "60"]
        client = start("eval", node.name, code, *arguments, ready=False)
        wait_for(lambda: mark.exists() and mark.read_text() == "begun")
        client.signal(number)
        output = client.wait()
        assert (output.code, output.out, output.err) == (
            130 if number == signal.SIGINT else -number,
            "",
            "",
        )
        wait_for(lambda: mark.read_text() == "ended")

    @pytest.mark.parametrize("code", ["6 * 7", "x = 1", "def f():\n  return 1\nf()", "", "pass"])
    def test_nothing_is_returned(self, command: Command, node: Running, code: str) -> None:
        output = command("eval", node.name, code)
        assert (output.code, output.out) == (0, "")
        assert output.err == (
            "snex-node: nothing was returned: say what you want to see, as in 'return 6 * 7'\n"
        )

    def test_a_file(self, command: Command, node: Running, tmp_path: Path) -> None:
        file = tmp_path / "code.py"
        file.write_text("x += 1\nreturn x * '\u00e9'", encoding="utf-8")
        arguments = ["--file", str(file), "--var", "x=1"]
        assert command("eval", node.name, *arguments).out == "'\u00e9\u00e9'\n"

    @pytest.mark.parametrize(
        "source",
        [
            b"\xef\xbb\xbfreturn '\xc3\xa9'",
            b"# -*- coding: latin-1 -*-\r\nreturn '\xe9'\r\n",
            b"#!/usr/bin/python\n# vim: set fileencoding=iso-8859-15 :\nreturn '\xe9'",
        ],
    )
    def test_a_file_in_another_encoding(
        self, command: Command, node: Running, tmp_path: Path, source: bytes
    ) -> None:
        (tmp_path / "code.py").write_bytes(source)
        output = command("eval", node.name, "--file", str(tmp_path / "code.py"))
        assert (output.code, output.out, output.err) == (0, "'\u00e9'\n", "")

    def test_a_traceback_names_the_file(
        self, command: Command, node: Running, tmp_path: Path
    ) -> None:
        file = tmp_path / "code.py"
        file.write_text("x = 1\n1 / 0")
        output = command("eval", node.name, "--file", str(file))
        assert output.code == 1
        assert f'File "{file}", line 2, in <module>\n' in output.err
        assert "ZeroDivisionError" in output.err

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read {}: No such file"),
            (b"\xff\xfe", "{} is no Python code: invalid or missing encoding declaration"),
            (b"# coding: nope\n", "{} is no Python code: unknown encoding"),
            (b"x = 1\n\n'\xff'", "{} is no Python code: 'utf-8' codec can't decode"),
        ],
    )
    def test_a_file_that_cannot_be_read(
        self, command: Command, node: Running, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        file = tmp_path / "code.py"
        if content is not None:
            file.write_bytes(content)
        output = command("eval", node.name, "--file", str(file))
        assert (output.code, output.out) == (1, "")
        assert output.err.startswith("snex-node: " + message.format(file))

    @pytest.mark.parametrize(
        "arguments", [["-"], ["--timeout", "5", "-"], ["--file", "-"], ["--file", "/dev/stdin"]]
    )
    def test_standard_input(
        self, environ: dict[str, str], node: Running, arguments: list[str]
    ) -> None:
        done = run("eval", node.name, *arguments, environ=environ, input=b"x = 42\nreturn x\n")
        assert (done.code, done.out, done.err) == (0, "42\n", "")

    def test_a_traceback_names_standard_input(self, environ: dict[str, str], node: Running) -> None:
        done = run("eval", node.name, "-", environ=environ, input=b"\n1 / 0")
        assert done.code == 1
        assert 'File "<stdin>", line 2, in <module>' in done.err

    def test_no_standard_input(self, environ: dict[str, str], node: Running) -> None:
        done = run("eval", node.name, "-", environ=environ, shell="exec {} <&-")
        assert done.code in (0, 1)
        assert done.out == ""
        assert re.search("there is no standard input to read|nothing was returned", done.err)

    def test_nothing_registered_under_that_name(self, command: Command, node: Running) -> None:
        output = command("eval", node.name, "return 1", "--register-as", "other")
        assert output.code == 1
        assert f"nothing is registered as other on {node.name}: is it a snex-node?" in output.err

    def test_registered_as_something_else(self, command: Command, start: Starter) -> None:
        running = start("start", "--name", unique(), "--register-as", "other")
        output = command("eval", running.name, "return 1", "--register-as", "other")
        assert (output.code, output.out) == (0, "1\n")
        assert "nothing is registered as snex" in command("eval", running.name, "return 1").err

    def test_from_the_environment_s_point_of_view_there_is_no_trace(
        self, command: Command, node: Running, environ: dict[str, str]
    ) -> None:
        """A client registers nowhere and makes no cookie file when it has a cookie."""
        assert command("eval", node.name, "return 1").code == 0
        assert "snex-cli" not in command("names").out
        assert not (Path(environ["HOME"]) / ".erlang.cookie").exists()


class TestInfo:
    def test_for_people(self, command: Command, node: Running) -> None:
        output = command("info", node.name)
        assert (output.code, output.err) == (0, "")
        lines = output.out.splitlines()
        assert lines[0].startswith(f"{node.name}: snex-node {__version__}, ")
        assert "Running (0)" in lines
        assert any(line.startswith("Environments (") for line in lines)

    def test_as_json(self, command: Command, node: Running) -> None:
        output = command("info", node.name, "--json")
        told = json.loads(output.out)
        assert told["info"]["node"] == node.name
        assert told["environments"] == []
        assert told["calls_per_second"] is None

    def test_what_is_no_node_of_ours(self, command: Command, node: Running) -> None:
        output = command("info", node.name, "--register-as", "nope")
        assert (output.code, output.out) == (1, "")
        assert f"nothing is registered as nope on {node.name}" in output.err

    @pytest.mark.parametrize(
        ("answer", "message"),
        [(7, "unexpected answer of"), (("error", {"reason": "why not"}), "does not tell: why not")],
    )
    def test_one_that_does_not_tell(
        self,
        command: Command,
        node: Running,
        monkeypatch: pytest.MonkeyPatch,
        answer: object,
        message: str,
    ) -> None:
        async def ask(*_: object) -> object:
            return answer

        monkeypatch.setattr(cli, "_ask", ask)
        output = command("info", node.name)
        assert (output.code, output.out) == (1, "")
        assert message in output.err

    def test_an_older_one(
        self, command: Command, node: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def ask(node: object, to: object, request: object, timeout: float) -> object:
            if request == "info":
                return "ok", {"node": "old@host", "environments": 3}
            return "error", {"reason": "unknown request"}

        monkeypatch.setattr(cli, "_ask", ask)
        output = command("info", node.name)
        assert (output.code, output.err) == (0, "")
        assert output.out.startswith("old@host: snex-node -, ")
        assert "\nEnvironments (3)\n" in output.out

    @pytest.mark.traced_processes
    def test_on_a_terminal(self, environ: dict[str, str], node: Running) -> None:
        text = on_terminal(environ, "info", node.name)
        assert "\x1b[1m" in text
        assert node.name in text


class TestTop:
    def test_blocks_one_after_another(self, command: Command, node: Running) -> None:
        output = command("top", node.name, "--count", "3", "--interval", "0.05")
        assert (output.code, output.err) == (0, "")
        blocks = output.out.split(f"\n{node.name}: ")
        assert len(blocks) == 3
        assert "per second" not in blocks[0]
        assert "per second" in blocks[1]

    def test_a_line_of_json_each(self, command: Command, node: Running) -> None:
        output = command("top", node.name, "--count", "2", "--interval", "0.05", "--json")
        first, second = map(json.loads, output.out.splitlines())
        assert first["calls_per_second"] is None
        assert second["calls_per_second"] > 0
        assert second["environments"] == first["environments"] == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_until_it_is_stopped(self, start: Starter, node: Running, number: int) -> None:
        running = start("top", node.name, "--interval", "0.05")
        assert running.line.startswith(node.name)
        running.signal(number)
        output = running.wait()
        assert (output.code, output.err) == (0, "")

    def test_there_is_no_such_node(self, command: Command) -> None:
        output = command("top", "nobody@127.0.0.1")
        assert (output.code, output.out) == (1, "")
        assert "knows no node nobody" in output.err

    @pytest.mark.traced_processes
    def test_a_node_that_goes_and_comes(self, command: Command, start: Starter) -> None:
        name = unique()
        first = start("start", "--name", name)
        top = start("top", name, "--interval", "0.1", "--json")
        first.signal(signal.SIGTERM)
        first.wait()
        start("start", "--name", name)
        before = json.loads(top.line)["info"]["os_pid"]
        wait_for(lambda: json.loads(top.read_line())["info"]["os_pid"] != before)
        top.signal(signal.SIGTERM)
        output = top.wait()
        assert output.code == 0
        assert f"knows no node {name.partition('@')[0]}" in output.err

    @pytest.mark.traced_processes
    def test_in_place_on_a_terminal(self, environ: dict[str, str], node: Running) -> None:
        arguments = "top", node.name, "--count", "2", "--interval", "0.05"
        text = on_terminal(environ, *arguments)
        assert text.count("\x1b[H") == text.count("\x1b[J") == 2
        assert node.name in text


class TestDoctor:
    def test_the_way_to_a_node(self, command: Command, node: Running) -> None:
        output = command("doctor", node.name)
        assert (output.code, output.err) == (0, "")
        lines = output.out.splitlines()
        assert lines[0].startswith(f"ok       versions: snex-node {__version__} on ")
        assert "ok       handshake: done: the cookie is that of the node" in lines
        assert COOKIE not in output.out

    def test_what_failed(self, command: Command) -> None:
        output = command("doctor", "nobody@127.0.0.1", "--json")
        told = json.loads(output.out)
        assert (output.code, told["ok"]) == (1, False)
        last = told["checks"][-1]
        assert (last["name"], last["state"]) == ("registered", "failed")
        assert last["remedy"]

    def test_what_to_do_next(self, command: Command, node: Running) -> None:
        output = command("doctor", node.name, SNEX_COOKIE="another")
        assert output.code == 1
        *_, failed, remedy = output.out.splitlines()
        assert failed.startswith("failed   handshake: cookie: ")
        assert remedy.startswith("         -> give both the same cookie")


def on_terminal(environ: dict[str, str], *arguments: str) -> str:
    """What a command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "snex_runtime", *arguments],
            env={**environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while part := terminal.read(65536):
                written += part
        assert process.wait(SECONDS) == 0, written
    return written.decode()


class TestPing:
    def test_pong(self, command: Command, node: Running) -> None:
        output = command("ping", node.name)
        assert (output.code, output.out, output.err) == (0, "pong\n", "")

    def test_a_name_that_epmd_does_not_know(self, command: Command, node: Running) -> None:
        output = command("ping", "nobody@127.0.0.1")
        assert (output.code, output.out) == (1, "pang\n")
        assert output.err.startswith("snex-node: ")
        assert "nobody" in output.err

    @pytest.mark.parametrize("subcommand", [["ping", "{}"], ["eval", "{}", "return 1"]])
    def test_another_cookie(self, command: Command, node: Running, subcommand: list[str]) -> None:
        arguments = [text.format(node.name) for text in subcommand]
        output = command(*arguments, SNEX_COOKIE="not-that-cookie")
        assert (output.code, output.out) == (1, "pang\n" if subcommand[0] == "ping" else "")
        assert "cookie" in output.err
        assert "not-that-cookie" not in output.err
        assert COOKIE not in output.err
        assert "Traceback" not in output.err

    def test_no_epmd(self, command: Command, node: Running) -> None:
        port = str(free_port())
        output = command("ping", node.name, ERL_EPMD_PORT=port)
        assert (output.code, output.out) == (1, "pang\n")
        assert port in output.err
        assert "epmd" in output.err

    @pytest.mark.parametrize(
        "host", ["no-such-host.invalid", "a..b", "x" * 70 + ".invalid", "256.0.0.1"]
    )
    def test_a_host_that_does_not_resolve(self, command: Command, host: str) -> None:
        output = command("ping", f"py@{host}")
        assert (output.code, output.out) == (1, "pang\n")
        assert output.err.startswith("snex-node: ")
        assert "Traceback" not in output.err

    @pytest.mark.parametrize("subcommand", [["ping", "{}"], ["eval", "{}", "return 1"]])
    def test_a_node_that_is_silent(
        self, command: Command, start: Starter, subcommand: list[str]
    ) -> None:
        running = start("start", "--name", unique())
        running.signal(signal.SIGSTOP)
        began = time.monotonic()
        arguments = [text.format(running.name) for text in subcommand]
        output = command(*arguments, "--timeout", "0.5")
        assert 0.5 <= time.monotonic() - began < 2.5
        assert (output.code, output.out) == (1, "pang\n" if subcommand[0] == "ping" else "")
        assert output.err == f"snex-node: {running.name} did not answer within 0.5 s\n"

    def test_an_epmd_that_is_silent(self, command: Command) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = str(silent.getsockname()[1])
            began = time.monotonic()
            output = command("ping", "py@127.0.0.1", "--timeout", "0.5", ERL_EPMD_PORT=port)
        assert 0.5 <= time.monotonic() - began < 2.5
        assert (output.code, output.out) == (1, "pang\n")

    @pytest.mark.parametrize("subcommand", [["ping", "{}"], ["eval", "{}", "return 1"]])
    def test_a_name_server_that_is_silent(self, start: Starter, subcommand: list[str]) -> None:
        """It is asked by a thread, and a thread cannot be stopped."""
        slow = "import socket, time; socket.getaddrinfo = lambda *a, **k: time.sleep(60)"
        arguments = [text.format("py@host.example") for text in subcommand]
        began = time.monotonic()
        client = start(*arguments, "--timeout", "0.5", ready=False, before=slow)
        output = client.wait()
        assert time.monotonic() - began < 0.5 + cli.LEAVE + 5.0  # Python starts in that too
        assert (output.code, output.out) == (1, "pang\n" if subcommand[0] == "ping" else "")
        assert output.err == "snex-node: py@host.example did not answer within 0.5 s\n"

    def test_no_cookie_is_no_answer(self, command: Command, node: Running) -> None:
        output = command("ping", node.name, "--cookie-file", "/no/such/file")
        assert (output.code, output.out) == (1, "")

    @pytest.mark.parametrize("name", ["py", "py@", "@host", "a@b@c", ""])
    def test_what_is_no_node_name(self, command: Command, name: str) -> None:
        output = command("ping", name)
        assert (output.code, output.out) == (1, "pang\n")
        assert output.err.startswith("snex-node: ")


def run(
    *arguments: str,
    environ: dict[str, str],
    input: bytes = b"",  # noqa: A002 - as subprocess calls it
    shell: str = "exec {}",
) -> Output:
    """Run a command in a process of its own, by the shell."""
    quoted = " ".join(map(shlex.quote, [sys.executable, "-m", "snex_runtime", *arguments]))
    done = subprocess.run(
        ["sh", "-c", shell.format(quoted)],
        input=input,
        env=environ,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    return Output(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.traced_processes
class TestOutput:
    """Whatever becomes of what a command writes, there is no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (["eval", "{}", "return 'x' * 100000"], 0),
            (["eval", "{}", "1 / 0"], 1),
            (["ping", "{}"], 0),
            (["ping", "nobody@127.0.0.1"], 1),
            (["names"], 0),
            (["--help"], 0),
            (["start", "--help"], 0),
            (["--version"], 0),
            ([], 2),
        ],
    )
    @pytest.mark.parametrize("how", ["gone", "closed"])
    def test_nobody_reads_it(
        self, environ: dict[str, str], node: Running, arguments: list[str], code: int, how: str
    ) -> None:
        command = [text.format(node.name) for text in arguments]
        done = self.run_without_output(command, environ, how)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr.replace(
            b"Traceback (most recent call last):", b"", 1
        )
        assert b"BrokenPipe" not in done.stderr
        assert b"Exception ignored" not in done.stderr

    def run_without_output(
        self, command: list[str], environ: dict[str, str], how: str
    ) -> subprocess.CompletedProcess[bytes]:
        arguments = [sys.executable, "-m", "snex_runtime", *command]
        if how == "closed":
            return subprocess.run(
                ["sh", "-c", 'exec "$@" >&-', "sh", *arguments],
                env=environ,
                stderr=subprocess.PIPE,
                timeout=SECONDS,
                check=False,
            )
        reader, writer = os.pipe()
        os.close(reader)
        try:
            return subprocess.run(
                arguments,
                env=environ,
                stdout=writer,
                stderr=subprocess.PIPE,
                timeout=SECONDS,
                check=False,
            )
        finally:
            os.close(writer)

    @pytest.mark.parametrize("arguments", [["eval", "{}", "return 1"], ["names"]])
    def test_a_full_disk(
        self, environ: dict[str, str], node: Running, arguments: list[str]
    ) -> None:
        command = [text.format(node.name) for text in arguments]
        done = run(*command, environ=environ, shell="exec {} >/dev/full")
        assert (done.code, done.out) == (1, "")
        assert done.err == ("snex-node: cannot write to standard output: No space left on device\n")

    @pytest.mark.parametrize("how", ["2>&-", "2>/dev/full"])
    def test_no_standard_error(self, environ: dict[str, str], node: Running, how: str) -> None:
        done = run("ping", "nobody@127.0.0.1", environ=environ, shell=f"exec {{}} {how}")
        assert (done.code, done.out) == (1, "pang\n")

    def test_an_encoding_that_lacks_a_character(
        self, environ: dict[str, str], node: Running
    ) -> None:
        ascii_only = {**environ, "PYTHONIOENCODING": "ascii"}
        done = run("eval", node.name, "return '\u00e9'", environ=ascii_only)
        assert (done.code, done.out, done.err) == (0, "'\\xe9'\n", "")

    def test_a_node_serves_all_the_same(
        self, environ: dict[str, str], command: Command, start: Starter
    ) -> None:
        name = unique()
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen(
            [sys.executable, "-m", "snex_runtime", "start", "--name", name],
            env=environ,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        try:
            wait_for(lambda: command("ping", name).out == "pong\n")
            assert command("eval", name, "print('x', flush=True)\nreturn 1").out == "1\n"
            process.terminate()
            assert process.communicate(timeout=SECONDS)[1] == b""
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()

    def test_a_log_that_nobody_reads(self, start: Starter, command: Command) -> None:
        running = start("start", "--name", unique())
        flood = "import logging\nfor n in range(6000): logging.warning('%d %s', n, 'x' * 200)"
        assert command("eval", running.name, flood + "\nreturn 1", "--timeout", "10").out == "1\n"
        assert command("eval", running.name, "return 2").out == "2\n"
        running.signal(signal.SIGTERM)
        output = running.wait()
        assert output.code == 0
        dropped = re.findall(r"(\d+) log records were dropped", output.err)
        lines = output.err.count(" WARNING ")
        assert lines + sum(map(int, dropped)) in (lines, 6000)

    def test_a_log_is_written_to_its_end(self, start: Starter, command: Command) -> None:
        running = start("start", "--name", unique())
        flood = "import logging\nfor n in range(900): logging.warning('%d %s', n, 'x' * 200)"
        assert command("eval", running.name, flood + "\nreturn 1").out == "1\n"
        running.signal(signal.SIGTERM)
        output = running.wait()
        assert output.code == 0
        numbers = re.findall(r"WARNING (\d+) x{200}\n", output.err)
        assert [int(number) for number in numbers] == list(range(900))


class TestNames:
    def test_it_lists_what_epmd_knows(self, command: Command, node: Running) -> None:
        output = command("names")
        assert output.code == 0
        assert f"{node.name.partition('@')[0]} at port {node.port}\n" in output.out

    def test_no_epmd(self, command: Command) -> None:
        port = str(free_port())
        output = command("names", ERL_EPMD_PORT=port)
        assert (output.code, output.out) == (1, "")
        assert port in output.err


@pytest.mark.traced_processes
class TestEpmd:
    def test_it_serves_until_it_is_stopped(self, command: Command, start: Starter) -> None:
        running = start("epmd", "--listen", "127.0.0.1:0")
        port = running.line.strip().rpartition(":")[2]
        assert running.line == f"epmd 127.0.0.1:{port}\n"
        other = start("start", "--name", unique(), "--epmd", "external", ERL_EPMD_PORT=port)
        assert other.name.partition("@")[0] in command("names", ERL_EPMD_PORT=port).out
        running.signal(signal.SIGTERM)
        assert running.wait().code == 0

    def test_its_port_is_that_of_the_environment(self, start: Starter) -> None:
        port = free_port()
        running = start("epmd", ERL_EPMD_PORT=str(port))
        assert running.line == f"epmd 127.0.0.1:{port}\n"

    def test_port_in_use(self, command: Command, epmd: RealEpmd) -> None:
        output = command("epmd")
        assert output.code == 1
        assert str(epmd.port) in output.err
        assert "in use" in output.err


class TestStart:
    def test_it_says_when_it_is_ready(self, node: Running) -> None:
        assert re.fullmatch(r"ready shared\d+@127\.0\.0\.1 \d+\n", node.line)
        socket.create_connection(("127.0.0.1", node.port), timeout=5).close()

    def test_it_listens_where_it_is_told(self, start: Starter) -> None:
        port = free_port()
        assert start("start", "--name", unique(), "--listen", f"127.0.0.1:{port}").port == port

    def test_port_in_use(self, command: Command, node: Running) -> None:
        output = command("start", "--name", unique(), "--listen", f"127.0.0.1:{node.port}")
        assert (output.code, output.out) == (1, "")
        assert f"127.0.0.1:{node.port}" in output.err
        assert "in use" in output.err

    def test_name_taken(self, command: Command, node: Running) -> None:
        output = command("start", "--name", node.name)
        assert (output.code, output.out) == (1, "")
        assert node.name.partition("@")[0] in output.err
        assert "Traceback" not in output.err

    def test_epmd_not_reachable(self, command: Command) -> None:
        port = str(free_port())
        output = command("start", "--name", unique(), "--epmd", "external", ERL_EPMD_PORT=port)
        assert (output.code, output.out) == (1, "")
        assert port in output.err
        assert "epmd" in output.err

    @pytest.mark.parametrize("mode", ["embedded", "auto"])
    def test_epmd_of_its_own(
        self, command: Command, start: Starter, epmd_port: int, mode: str
    ) -> None:
        port = str(epmd_port)
        running = start("start", "--name", unique(), "--epmd", mode, ERL_EPMD_PORT=port)
        assert command("ping", running.name, ERL_EPMD_PORT=port).out == "pong\n"

    def test_epmd_of_its_own_at_the_address_of_the_name(
        self, command: Command, start: Starter, epmd_port: int
    ) -> None:
        port = str(epmd_port)
        name = unique().replace("127.0.0.1", "127.0.0.2")
        listen = ("--listen", "127.0.0.2:0")
        running = start("start", "--name", name, *listen, ERL_EPMD_PORT=port)
        assert command("ping", running.name, ERL_EPMD_PORT=port).out == "pong\n"

    def test_epmd_that_others_do_not_find(self, command: Command, epmd: RealEpmd) -> None:
        name = unique().replace("127.0.0.1", "127.0.0.2")
        output = command("start", "--name", name, "--listen", "127.0.0.2:0")
        assert (output.code, output.out) == (1, "")
        assert f"epmd at 127.0.0.2:{epmd.port}, where the one that runs does not" in output.err
        assert "ERL_EPMD_ADDRESS=127.0.0.2" in output.err

    def test_embedded_where_one_runs_already(self, command: Command, epmd: RealEpmd) -> None:
        output = command("start", "--name", unique(), "--epmd", "embedded")
        assert output.code == 1
        assert str(epmd.port) in output.err

    def test_no_epmd_at_all(self, start: Starter, command: Command) -> None:
        name = unique()
        start("start", "--name", name, "--epmd", "none")
        assert name.partition("@")[0] not in command("names").out

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("return input()", "EOFError"),
            ("breakpoint()", "SystemExit" if sys.version_info >= (3, 14) else "BdbQuit"),
            ("import sys\nreturn sys.stdin.read() + 'end'", None),
            ("import subprocess\nreturn subprocess.check_output('cat').decode() + 'end'", None),
        ],
    )
    def test_standard_input_is_empty(
        self, start: Starter, command: Command, code: str, error: str | None
    ) -> None:
        """It may be a terminal, where code that reads would wait for ever, and all with it."""
        running = start("start", "--name", unique(), stdin=subprocess.PIPE)
        output = command("eval", running.name, code)
        if error is None:
            assert (output.code, output.out) == (0, "'end'\n")
        else:
            assert output.code == 1
            assert error in output.err

    def test_an_init_script_from_standard_input(self, start: Starter, command: Command) -> None:
        running = start(
            *("start", "--name", unique(), "--init-script", "/dev/stdin"),
            stdin=subprocess.PIPE,
            ready=False,
        )
        assert running.process.stdin is not None
        running.process.stdin.write(b"base = 40")
        running.process.stdin.close()
        running.process.stdin = None
        assert running.read_line().startswith("ready ")
        assert command("eval", running.name, "return base + 2").out == "42\n"

    @pytest.mark.parametrize("listen", ["0.0.0.0:0", ":0", "[::]:0"])
    def test_it_warns_where_more_than_this_machine_reaches_it(
        self, start: Starter, listen: str
    ) -> None:
        running = start("start", "--name", unique(), "--listen", listen)
        running.signal(signal.SIGTERM)
        output = running.wait()
        assert output.code == 0
        host = "0.0.0.0" if "[" not in listen else "[::]"
        (line,) = output.err.splitlines()
        assert (
            f" WARNING {running.name} listens on {host}:{running.port}: whoever can reach" in line
        )
        assert "not encrypted" in line

    @pytest.mark.parametrize("listen", [[], ["--listen", "localhost:0"]])
    def test_it_does_not_warn_on_loopback(self, start: Starter, listen: list[str]) -> None:
        running = start("start", "--name", unique(), "--log-level", "info", *listen)
        running.signal(signal.SIGTERM)
        output = running.wait()
        assert "WARNING" not in output.err
        where = rf"(127\.0\.0\.1|\[::1\]):{running.port}"
        assert re.search(rf" INFO {running.name} listens on {where}\n", output.err)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--name", "py@short"], "--name takes a host with a dot, not short"),
            (["--name", "py@"], "--name takes a host with a dot, not none"),
            (["--sname", "py@127.0.0.1"], "--sname takes a host without dots, not 127.0.0.1"),
            (["--name", "py@no-such-host.invalid"], "no-such-host.invalid of py@no-such-host.in"),
            (["--name", "py@192.0.2.7"], "add --listen 192.0.2.7:0"),
            (["--name", "p y@127.0.0.1"], "p y@127.0.0.1"),
            (["--encoding", "set_as"], "--encoding takes option=value"),
            (["--encoding", "set_as=list"], 'set_as is one of set, frozenset, not "list"'),
            (["--encoding", "nope=1"], 'unknown encoding option "nope"'),
            (["--cookie-file", "/no/such/file"], "cannot read the cookie file /no/such/file: No"),
            (["--register-as", "net_kernel"], "the name net_kernel is taken"),
            (["--listen", "192.0.2.7:0"], "192.0.2.7"),
        ],
    )
    def test_failures(self, command: Command, arguments: list[str], message: str) -> None:
        name = [] if arguments[0] in ("--name", "--sname") else ["--name", unique()]
        output = command("start", *name, *arguments)
        assert (output.code, output.out) == (1, "")
        assert message in output.err
        assert output.err.startswith("snex-node: ")
        assert "Traceback" not in output.err

    def test_short_names(self, start: Starter, command: Command) -> None:
        name = unique().partition("@")[0]
        host = socket.gethostname().partition(".")[0]
        try:
            running = start("start", "--sname", name, "--listen", "127.0.0.1:0")
            assert running.name == f"{name}@{host}"
        except AssertionError:
            pytest.skip(f"{host} does not resolve here")

    def test_short_and_long_names_do_not_meet(self, start: Starter, node: Running) -> None:
        arguments = ["--sname", unique().partition("@")[0] + "@localhost", "--connect", node.name]
        running = start("start", *arguments)
        assert running.process.stderr is not None
        readable, _, _ = select.select([running.process.stderr], [], [], SECONDS)
        assert readable, "it logged nothing"
        line = running.process.stderr.readline().decode()
        assert node.name in line
        assert "short" in line

    def test_it_connects_where_it_is_told(
        self, start: Starter, command: Command, node: Running
    ) -> None:
        running = start("start", "--name", unique(), "--connect", node.name)
        code = (
            "import asyncio, snex_runtime.interface\n"
            "from snex_runtime.origin import origin\n"
            "node = origin.get()\n"
            "return node is not None"
        )
        assert command("eval", running.name, code).out == "True\n"

    def test_encoding(self, start: Starter, command: Command) -> None:
        running = start("start", "--name", unique(), "--encoding", "binary_as=bytes")
        assert command("eval", running.name, "return str(type(x))", "--var", 'x="a"').out == (
            "\"<class 'bytes'>\"\n"
        )

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_loops(self, start: Starter, command: Command, loop: str) -> None:
        if loop == "uvloop":
            pytest.importorskip("uvloop")
        running = start("start", "--name", unique(), "--loop", loop)
        code = "import asyncio\nreturn type(asyncio.get_running_loop()).__module__"
        assert loop in command("eval", running.name, code).out
        running.signal(signal.SIGTERM)
        assert running.wait().code == 0

    def test_a_loop_that_is_not_installed(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        output = command("start", "--name", unique(), "--loop", "uvloop")
        assert output.code == 1
        assert output.err == (
            "snex-node: uvloop is not installed: pip install uvloop, or use --loop asyncio\n"
        )


class TestInitScript:
    def test_it_prepares_every_environment(
        self, start: Starter, command: Command, tmp_path: Path
    ) -> None:
        script = tmp_path / "init.py"
        script.write_text("import asyncio\nawait asyncio.sleep(0)\nbase = 40")
        running = start("start", "--name", unique(), "--init-script", str(script))
        assert command("eval", running.name, "return base + 2").out == "42\n"

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("x = 1\n1 / 0", 'init.py", line 2, in <module>'),
            ("import asyncio\nawait asyncio.sleep(0)\n1 / 0", "ZeroDivisionError: division by"),
            ("x = = 1", "invalid syntax"),
            ("raise SystemExit('bye')", "bye"),
            ("import asyncio\nawait asyncio.sleep(0)\nraise SystemExit('bye')", "bye"),
        ],
    )
    def test_it_fails(self, command: Command, tmp_path: Path, source: str, message: str) -> None:
        script = tmp_path / "init.py"
        script.write_text(source)
        output = command("start", "--name", unique(), "--init-script", str(script))
        assert (output.code, output.out) == (1, "")
        assert f"the init script {script} failed: " in output.err
        assert message in output.err

    @pytest.mark.parametrize(
        "source", ["import asyncio\nawait asyncio.sleep(60)", "import time\ntime.sleep(60)"]
    )
    def test_it_takes_too_long(self, command: Command, tmp_path: Path, source: str) -> None:
        script = tmp_path / "init.py"
        script.write_text(source)
        output = command(
            *("start", "--name", unique(), "--init-script", str(script)),
            *("--init-script-timeout", "0.2"),
        )
        assert (output.code, output.out) == (1, "")
        assert "not done within 0.2 s" in output.err

    def test_it_is_missing(self, command: Command) -> None:
        output = command("start", "--name", unique(), "--init-script", "/no/such/init.py")
        assert output.code == 1
        assert "cannot read the init script /no/such/init.py" in output.err

    @pytest.mark.parametrize(
        "data",
        ["\ufeffword = 'é'".encode(), "# coding: latin-1\nword = 'é'".encode("latin-1")],
        ids=["byte order mark", "coding cookie"],
    )
    def test_it_is_read_as_python_reads_files(
        self, start: Starter, command: Command, tmp_path: Path, data: bytes
    ) -> None:
        script = tmp_path / "init.py"
        script.write_bytes(data)
        running = start("start", "--name", unique(), "--init-script", str(script))
        assert command("eval", running.name, "return ord(word)").out == "233\n"

    def test_it_is_no_text(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "init.py").write_bytes(b"\xff\xfe")
        output = command("start", "--name", unique(), "--init-script", str(tmp_path / "init.py"))
        assert output.code == 1
        assert "cannot read the init script" in output.err


PIDS = "import os\nreturn os.getpid(), os.getppid()"


@pytest.mark.traced_processes
class TestWorkers:
    """Processes that evaluate in the place of the node's own."""

    def test_they_evaluate_and_none_is_left(self, start: Starter, command: Command) -> None:
        running = start("start", "--name", unique(), "--workers", "2")
        assert re.fullmatch(r"ready n\S+@127\.0\.0\.1 \d+\n", running.line)
        output = command("eval", running.name, PIDS)
        process, parent = map(int, re.findall(r"\d+", output.out))
        assert parent == running.process.pid
        alive = running.name.partition("@")[0]
        assert sorted(re.findall(rf"{alive}(-\d)? ", command("names").out)) == ["", "-1", "-2"]
        running.signal(signal.SIGTERM)
        ended = running.wait()
        assert (ended.code, ended.out) == (0, "")
        assert "Traceback" not in ended.err
        wait_for(lambda: not group(process))
        assert alive not in command("names").out

    def test_what_they_are_told(self, start: Starter, command: Command, tmp_path: Path) -> None:
        script = tmp_path / "init.py"
        script.write_text("base = 40")
        running = start(
            *("start", "--name", unique(), "--workers", "1", "--init-script", str(script)),
            *("--register-as", "other", "--encoding", "binary_as=bytes", "--loop", "auto"),
            *("--rlimit-nofile", "200", "--kill-after", "500", "--max-memory", str(2**30)),
        )
        code = (
            "import resource, sys\n"
            "return base, resource.getrlimit(resource.RLIMIT_NOFILE), sys.argv[1:], x"
        )
        output = command("eval", running.name, code, "--var", 'x="a"', "--register-as", "other")
        assert output.out == "(40, (200, 200), ['child', '--loop', 'auto'], 'a')\n"

    def test_one_is_replaced_when_it_has_ended(self, start: Starter, command: Command) -> None:
        running = start("start", "--name", unique(), "--workers", "1", "--max-requests", "1000")
        output = command("eval", running.name, "import os; os._exit(3)")
        assert output.code == 1
        assert "{:status, 3}" in output.err
        assert command("eval", running.name, "return 1").out == "1\n"
        running.signal(signal.SIGTERM)
        ended = running.wait()
        assert ended.code == 0
        assert "-1@127.0.0.1 has ended with status 3" in ended.err

    def test_too_many_have_ended(self, start: Starter, command: Command) -> None:
        arguments = ("--workers", "2", "--max-restarts", "1/60")
        running = start("start", "--name", unique(), *arguments)
        processes = []
        for _ in range(2):
            output = command("eval", running.name, PIDS)
            processes.append(int(re.findall(r"\d+", output.out)[0]))
            command("eval", running.name, "import os; os._exit(3)")
        ended = running.wait()
        assert (ended.code, ended.out) == (1, "")
        assert (
            f"{running.name} ends: more than 1 workers have ended within 60 s: see what the log "
            "says of each (--max-restarts N/SECONDS allows more)"
        ) in ended.err
        assert "Traceback" not in ended.err
        wait_for(lambda: not any(map(group, processes)))

    def test_the_init_script_fails(self, environ: dict[str, str], tmp_path: Path) -> None:
        """It is told once, and nobody tries again."""
        script = tmp_path / "init.py"
        tries = tmp_path / "tries"
        script.write_text(f"open({str(tries)!r}, 'a').write('x')\nraise ValueError('no model')")
        arguments = ("--workers", "1", "--init-script", str(script))
        output = run("start", "--name", unique(), *arguments, environ=environ)
        assert (output.code, output.out) == (1, "")
        assert f"the init script {script} failed: Traceback" in output.err
        assert f'File "{script}", line 2, in <module>' in output.err
        assert output.err.count("ValueError: no model") == 1
        assert tries.read_text() == "x"

    def test_a_worker_cannot_be_started(self, environ: dict[str, str]) -> None:
        arguments = ("--workers", "2", "--cgroup", "/nowhere")
        output = run("start", "--name", unique(), *arguments, environ=environ)
        assert (output.code, output.out) == (1, "")
        assert "a worker did not start: cannot join the control group /nowhere" in output.err
        assert "Traceback" not in output.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--max-memory", "1000000000"],
            ["--rlimit-cpu", "5"],
            ["--cgroup", "/sys/fs/cgroup/x"],
            ["--kill-after", "500"],
            ["--max-requests", "5"],
        ],
    )
    def test_what_is_for_workers_only(self, command: Command, arguments: list[str]) -> None:
        output = command("start", "--name", unique(), *arguments)
        assert (output.code, output.out) == (1, "")
        message = f"{arguments[0]} is for the processes of workers: add --workers N"
        assert message in output.err


@pytest.mark.traced_processes
class TestLogs:
    @pytest.mark.parametrize("workers", [(), ("--workers", "1")])
    def test_requests_that_fail_or_are_slow_as_json(
        self, command: Command, start: Starter, workers: tuple[str, ...]
    ) -> None:
        options = "--log-format", "json", "--log-level", "info", "--slow", "50"
        running = start("start", "--name", unique(), *options, *workers)
        command("eval", running.name, "raise KeyError('secret')")
        command("eval", running.name, "import time\ntime.sleep(0.1)")
        running.signal(signal.SIGTERM)
        output = running.wait()
        told = [json.loads(line) for line in output.err.splitlines()]
        failed, slow = [each for each in told if each["logger"] == "snex_runtime.requests"]
        alive, _, host = running.name.partition("@")
        assert failed["node"] == (f"{alive}-1@{host}" if workers else running.name)
        assert (failed["level"], slow["level"]) == ("info", "warning")
        assert "failed: python_runtime_error (KeyError), <Snex.Code>:1 in" in failed["message"]
        assert re.search(r"took \d+ ms: <Snex.Code>:1$", slow["message"])
        assert "secret" not in output.err

    def test_as_text(self, command: Command, start: Starter) -> None:
        running = start("start", "--name", unique(), "--log-level", "info")
        command("eval", running.name, "1 / 0")
        running.signal(signal.SIGTERM)
        pattern = r" INFO eval of \S+ failed: python_runtime_error \(ZeroDivisionError\), "
        assert re.search(pattern, running.wait().err)


@pytest.mark.traced_processes
class TestMetrics:
    @pytest.mark.parametrize("workers", [(), ("--workers", "1")])
    def test_they_are_served(
        self, command: Command, start: Starter, workers: tuple[str, ...]
    ) -> None:
        port = free_port()
        running = start("start", "--name", unique(), "--metrics", str(port), *workers)
        assert command("eval", running.name, "return 1").code == 0
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        assert "snex_fresh 1.0" in lines
        assert "snex_environments 0.0" in lines
        assert ("snex_workers 1.0" in lines) is bool(workers)
        running.signal(signal.SIGTERM)
        output = running.wait()
        assert (output.code, output.err) == (0, "")

    def test_the_port_is_taken(self, start: Starter, node: Running) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = f"127.0.0.1:{taken.getsockname()[1]}"
            output = start("start", "--name", unique(), "--metrics", place, ready=False).wait()
        assert (output.code, output.out) == (1, "")
        assert "snex-node: cannot serve metrics at 127.0.0.1, port" in output.err

    def test_without_the_library(self, start: Starter) -> None:
        absent = "sys.modules['prometheus_client'] = None"
        arguments = "start", "--name", unique(), "--metrics", "9464"
        output = start(*arguments, ready=False, before=absent).wait()
        assert (output.code, output.out) == (1, "")
        assert "pip install 'snex-node[metrics]'" in output.err


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal(self, start: Starter, command: Command, number: int) -> None:
        running = start("start", "--name", unique())
        running.signal(number)
        output = running.wait()
        assert (output.code, output.out, output.err) == (0, "", "")
        assert running.name.partition("@")[0] not in command("names").out

    def test_nohup(self, start: Starter, command: Command) -> None:
        ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
        running = start("start", "--name", unique(), before=ignored)
        running.signal(signal.SIGHUP)
        assert command("ping", running.name).out == "pong\n"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_an_epmd(self, start: Starter, number: int) -> None:
        running = start("epmd", "--listen", "127.0.0.1:0")
        running.signal(number)
        output = running.wait()
        assert (output.code, output.out, output.err) == (0, "", "")

    def test_what_runs_is_cancelled(
        self, start: Starter, environ: dict[str, str], tmp_path: Path
    ) -> None:
        running = start("start", "--name", unique())
        mark = tmp_path / "mark"
        code = (
            "import asyncio, pathlib\npath = pathlib.Path(mark)\npath.write_text('begun')\n"
            "try:\n  await asyncio.sleep(60)\nfinally:\n  path.write_text('ended')"
        )
        client = start(
            "eval", running.name, code, "--var", f'mark="{mark}"', "--timeout", "30", ready=False
        )
        wait_for(mark.exists)
        running.signal(signal.SIGTERM)
        assert running.wait().code == 0
        assert mark.read_text() == "ended"
        assert client.wait().code == 1

    def test_threads_are_interrupted(self, start: Starter, tmp_path: Path) -> None:
        running = start("start", "--name", unique(), "--executor", "thread", "--threads", "3")
        marks = [tmp_path / name for name in ("computes", "awaits", "sleeps")]
        codes = ["while True: pass", "await asyncio.sleep(60)", "time.sleep(60)"]
        for mark, line in zip(marks, codes, strict=True):
            code = (
                "import asyncio, pathlib, time\npath = pathlib.Path(mark)\n"
                f"try:\n  path.write_text('begun')\n  {line}\n"
                "finally:\n  path.write_text('ended')"
            )
            variables = "--var", f'mark="{mark}"', "--timeout", "60"
            start("eval", running.name, code, *variables, ready=False)
            wait_for(mark.exists)
        running.signal(signal.SIGTERM)
        assert running.wait().code == 0
        assert [mark.read_text() for mark in marks] == ["ended", "ended", "begun"]

    def test_code_that_blocks_the_loop_has_a_time_of_grace(
        self, start: Starter, tmp_path: Path
    ) -> None:
        running = start("start", "--name", unique(), grace=0.3)
        mark = tmp_path / "mark"
        code = "open(mark, 'w').close()\nwhile True: pass"
        start("eval", running.name, code, "--var", f'mark="{mark}"', ready=False)
        wait_for(mark.exists)
        running.signal(signal.SIGTERM)
        assert running.wait().code == 128 + signal.SIGTERM

    def test_a_second_signal_ends_it_at_once(self, start: Starter, tmp_path: Path) -> None:
        running = start("start", "--name", unique(), grace=60)
        mark = tmp_path / "mark"
        code = "import signal\nopen(mark, 'w').close()\nwhile True: pass"
        start("eval", running.name, code, "--var", f'mark="{mark}"', ready=False)
        wait_for(mark.exists)
        running.signal(signal.SIGINT)
        # Two signals at once would be one: the other waits until this one was handled.
        wait_for(lambda: threads_of(running.process.pid) > before(running))
        running.signal(signal.SIGINT)
        assert running.wait().code == 128 + signal.SIGINT

    def test_during_the_init_script(self, start: Starter, tmp_path: Path) -> None:
        script, mark = tmp_path / "init.py", tmp_path / "mark"
        script.write_text(
            f"import asyncio\nopen({str(mark)!r}, 'w').close()\nawait asyncio.sleep(60)"
        )
        running = start("start", "--name", unique(), "--init-script", str(script), ready=False)
        wait_for(mark.exists)
        running.signal(signal.SIGTERM)
        output = running.wait()
        assert (output.code, output.out) == (0, "")
        assert "Traceback" not in output.err

    def test_a_client(self, start: Starter, node: Running) -> None:
        code = "import asyncio\nawait asyncio.sleep(60)"
        client = start(
            "eval", node.name, code, "--timeout", "30", "--log-level", "debug", ready=False
        )
        wait_for(lambda: is_connected(client.process.pid, node.port))
        client.signal(signal.SIGINT)
        output = client.wait()
        assert output.code == 130
        assert "Traceback" not in output.err


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def before(running: Running) -> int:
    """Threads before the signal: the main one, the guardian, and who listens to the watcher."""
    assert running.process.poll() is None
    return 3


def is_connected(pid: int, port: int) -> bool:
    wanted = f":{port:04X} "
    sockets = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if wanted in f"{line.split()[2]} " and line.split()[3] == "01"
    }
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(os.readlink(entry).removeprefix("socket:[").rstrip("]"))
    return bool(sockets & held)


class TestCookie:
    def test_it_is_nowhere_to_be_seen(
        self, start: Starter, command: Command, environ: dict[str, str], tmp_path: Path
    ) -> None:
        secret = "ThisMustNotBeSeen"
        file = tmp_path / "secret"
        file.write_text(secret)
        file.chmod(0o400)
        arguments = ["--cookie-file", str(file), "--log-level", "debug"]
        running = start("start", "--name", unique(), *arguments)
        pid = running.process.pid
        assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        outputs = [
            command("ping", running.name, *arguments),
            command("eval", running.name, "return str(globals())", *arguments),
            command("ping", running.name),  # with another cookie
            command("start", "--name", running.name, *arguments),  # name taken
        ]
        assert [output.code for output in outputs] == [0, 0, 1, 1]
        running.signal(signal.SIGTERM)
        outputs.append(running.wait())
        assert outputs[-1].code == 0
        assert outputs[-1].err, "the log is empty: nothing would be proved"
        for output in outputs:
            assert secret not in output.out + output.err
            assert COOKIE not in output.out + output.err

    @pytest.mark.parametrize("file", [False, True])
    def test_it_is_not_in_the_environment_of_what_is_evaluated(
        self, start: Starter, command: Command, tmp_path: Path, file: bool
    ) -> None:
        arguments = []
        if file:
            (tmp_path / "cookie").write_text(COOKIE)
            (tmp_path / "cookie").chmod(0o400)
            arguments = ["--cookie-file", str(tmp_path / "cookie")]
        running = start("start", "--name", unique(), *arguments)
        code = (
            "import os, subprocess\n"
            "return 'SNEX_COOKIE' in os.environ, b'SNEX_COOKIE' in subprocess.check_output('env')"
        )
        assert command("eval", running.name, code).out == "(False, False)\n"

    @pytest.mark.parametrize("subcommand", [["start"], ["ping", "py@127.0.0.1"]])
    @pytest.mark.parametrize("home", ["/nonexistent", "/proc", "/dev/null", "/" + "x" * 300])
    def test_no_place_for_one(self, command: Command, subcommand: list[str], home: str) -> None:
        output = command(*subcommand, SNEX_COOKIE=None, HOME=home)
        assert (output.code, output.out) == (1, "")
        assert output.err.startswith(
            f"snex-node: cannot make the cookie file {home}/.erlang.cookie: "
        )
        for remedy in ("HOME", "--cookie-file", "SNEX_COOKIE"):
            assert remedy in output.err

    def test_a_file_is_made_in_the_home_directory(
        self, start: Starter, command: Command, environ: dict[str, str]
    ) -> None:
        environ.pop("SNEX_COOKIE")
        running = start("start", "--name", unique())
        path = Path(environ["HOME"]) / ".erlang.cookie"
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert re.fullmatch("[A-Z]{20}", path.read_text())
        assert command("ping", running.name, SNEX_COOKIE=None).out == "pong\n"

    def test_a_file_open_to_others(self, command: Command, tmp_path: Path) -> None:
        file = tmp_path / "open"
        file.write_text("abc-secret")
        file.chmod(0o644)
        output = command("start", "--name", unique(), "--cookie-file", str(file))
        assert (output.code, output.out) == (1, "")
        assert "run chmod 400 on it" in output.err
        assert "abc-secret" not in output.err

    def test_from_standard_input(self, environ: dict[str, str], node: Running) -> None:
        done = subprocess.run(
            f"{sys.executable} -m snex_runtime ping {node.name} --cookie-file /dev/stdin".split(),
            input=COOKIE.encode() + b"\n",
            env={**environ, "SNEX_COOKIE": "another"},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"pong\n", b"")


class TestNamesAndAddresses:
    @pytest.mark.parametrize(
        ("long", "short", "expected"),
        [
            (None, None, "py@127.0.0.1"),
            ("a@127.0.0.1", None, "a@127.0.0.1"),
            ("a@host.example", None, "a@host.example"),
            (None, "a@host", "a@host"),
            ("py2", None, "py2@127.0.0.1"),
        ],
    )
    def test_full_names(self, long: str | None, short: str | None, expected: str) -> None:
        assert cli.full_name(long, short) == expected

    def test_the_host_is_this_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "here.example.org")
        assert cli.full_name(None, "a") == "a@here"

    def test_a_loopback_address_is_listened_on(self) -> None:
        assert cli.default_listen("a@127.0.0.2") == ("127.0.0.2", 0)

    def test_an_epmd_of_ours_is_enough(self, command: Command) -> None:
        with EpmdServer("127.0.0.1", 0) as server:
            assert command("names", ERL_EPMD_PORT=str(server.address[1])).code == 0
