"""Who takes part in a run: BEAMs and Python nodes, started, checked and ended.

One BEAM calls; all Python nodes, and the BEAM that is their yardstick, are called by it, and share
a core. The client of each source tree is loaded into a BEAM that calls.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import client, nodes
from benchmarks.client import Client
from benchmarks.machine import CALLED, CALLER, pinned
from benchmarks.nodes import ROOT, Cluster, PythonNode
from benchmarks.rows import Scale
from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd

SECONDS = 300.0
SOURCES = Path(__file__).with_name("beam")
CHILD = Path(__file__).with_name("codec_child.py")

# What users have; the tests' BEAMs do not spin, which would make the yardstick slower.
USUAL_SPINNING = ("+sbwt", "medium", "+sbwtdcpu", "short", "+sbwtdio", "short")


@dataclass(frozen=True)
class Side:
    """A source tree whose Python is measured."""

    name: str
    tree: Path
    node: PythonNode
    client: Beam | None
    """The BEAM that calls by the client of this tree; None where there is none."""
    no_client: str = ""
    """Why not."""


class CodecChild:
    """A process that runs codecs alone; see `codec_child`."""

    def __init__(self, tree: Path) -> None:
        with pinned(CALLED):
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tree,
                env=nodes.environment(tree),
            )
        self._files = self._answer()

    def check(self, tree: Path) -> None:
        """Raise `TreeError` unless it runs the code of the tree."""
        nodes.check_runs(tree, self._files)

    def ask(self, **request: Any) -> Any:
        """Send a request, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of a codec has ended; its error is above")
        return json.loads(line)


@dataclass
class Stage:
    """All of them; `opened` makes one."""

    scale: Scale
    cluster: Cluster
    caller: Beam
    sides: list[Side]
    yardstick: Beam | None
    """The BEAM that is called; None where two trees are compared with each other."""
    scratch: Path
    _stack: contextlib.ExitStack
    _children: dict[tuple[str, Path], CodecChild]

    def codec(self, name: str, tree: Path) -> CodecChild:
        """A process for the codec of that name and a tree, kept to the end."""
        key = name, tree
        if key not in self._children:
            child = CodecChild(tree)
            self._stack.callback(child.close)
            child.check(tree)
            self._children[key] = child
        return self._children[key]

    def data_file(self, kind: str, count: int) -> Path:
        """A file with data as the BEAM that calls encodes it."""
        path = self.scratch / f"{kind} {count}.etf"
        if not path.exists():
            source = "Benchmark.Data.encoded(kind, count)"
            data = ask(self.caller, source, kind=kind.encode(), count=count)
            assert isinstance(data, bytes)
            path.write_bytes(data)
        return path

    def described(self) -> dict[str, str]:
        """The versions of what takes part."""
        info = ask(
            self.caller, "GenServer.call({:snex, node}, :info)", node=Atom(self.sides[0].node.name)
        )
        return {
            "otp": self.caller.otp_release,
            "elixir": self.caller.elixir_version,
            "python": sys.version.split()[0],
            "loop": info[1][Atom("loop")].decode(),
        }


def ask(beam: Beam, source: str, **bindings: Any) -> Any:
    """What an Elixir expression gives on a BEAM."""
    return beam.eval_sync(source, timeout=SECONDS, **bindings)


def _start(stack: contextlib.ExitStack, cluster: Cluster, role: int) -> Beam:
    """A BEAM on the core of a role, which is not up yet; ended with the stack."""
    with pinned(role):
        beam = Beam.start(
            epmd_port=cluster.epmd_port,
            cookie=cluster.cookie,
            flags=USUAL_SPINNING,
            # For the Pythons that it starts: they keep compiled modules.
            env={"PYTHONDONTWRITEBYTECODE": ""},
        )
    stack.callback(beam.close)
    return beam


def _load(beam: Beam, *files: str) -> None:
    """Wait until it is up, and load files of ``benchmarks/beam``."""
    beam.wait_ready()
    for file in files:
        ask(beam, (SOURCES / file).read_text())


def _serve(beam: Beam) -> None:
    _load(beam, "requests.ex", "server.ex")
    ask(beam, "{:ok, _} = Benchmark.Server.start()")


@contextlib.contextmanager
def called_beam(cluster: Cluster) -> Iterator[Beam]:
    """A BEAM that answers as a Python node does."""
    with contextlib.ExitStack() as stack:
        beam = _start(stack, cluster, CALLED)
        _serve(beam)
        yield beam


@contextlib.contextmanager
def opened(trees: Mapping[str, Path], scale: Scale) -> Iterator[Stage]:
    """Start all that the trees, by the name of their side, need.

    One tree has a BEAM for a yardstick, two have each other.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        epmd = stack.enter_context(RealEpmd())
        cluster = Cluster(epmd.port, secrets.token_hex(16))
        clients = {name: _compiled(tree, scratch / name) for name, tree in trees.items()}
        # They start at the same time. A further client needs a BEAM of its own.
        yardstick = _start(stack, cluster, CALLED) if len(trees) == 1 else None
        callers = [_start(stack, cluster, CALLER)]
        sides: list[Side] = []
        for name, tree in trees.items():
            found = clients[name]
            if sides and isinstance(found, Client):
                callers.append(_start(stack, cluster, CALLER))
            beam, why_not = (None, found) if isinstance(found, str) else (callers[-1], "")
            node = stack.enter_context(nodes.started(tree, cluster))
            sides.append(Side(name, tree, node, beam, why_not))
        if yardstick is not None:
            _serve(yardstick)
        for caller in callers:
            _load(caller, "requests.ex", "data.ex", "caller.ex")
        for side in sides:
            _check(callers[0], side, clients[side.name])
        yield Stage(scale, cluster, callers[0], sides, yardstick, scratch, stack, {})


def _compiled(tree: Path, scratch: Path) -> Client | str:
    """The client of a tree, or why there is none."""
    try:
        return client.compiled(tree, scratch)
    except client.NoClientError as error:
        return str(error)


def _check(caller: Beam, side: Side, found: Client | str) -> None:
    """Have the client loaded, and make sure that all runs the code of its tree."""
    if isinstance(found, Client):
        assert side.client is not None
        _load_client(side.client, found)
    code = "import snex_node, snex_runtime; return [snex_node.__file__, snex_runtime.__file__]"
    source = "{:ok, files} = GenServer.call({:snex, node}, {:eval, code, %{}}, 60_000); files"
    files = ask(caller, source, node=Atom(side.node.name), code=code.encode())
    nodes.check_runs(side.tree, [file.decode() for file in files])


def _load_client(caller: Beam, found: Client) -> None:
    folders = [str(folder).encode() for folder in found.folders]
    # The first start of a Python also compiles what the client brings.
    source = """
    Enum.each(folders, &Code.prepend_path/1)
    {:ok, _} = Application.ensure_all_started(:snex)
    {:ok, interpreter} = Snex.Interpreter.start_link(python: python)
    {:ok, file} = Snex.pyeval(interpreter, "import snex_runtime; return snex_runtime.__file__")
    :ok = Snex.Interpreter.stop(interpreter)
    file
    """
    file = ask(caller, source, folders=folders, python=sys.executable.encode())
    nodes.check_runs(found.source.resolve(), [file.decode()])


def whole_tree() -> dict[str, Path]:
    """The tree of a plain run."""
    return {"node": ROOT}
