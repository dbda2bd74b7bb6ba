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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import client, nodes
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
        info = ask(self.caller, "GenServer.call({:snex, node}, :info)", node=_atom(self.sides[0]))
        return {
            "otp": self.caller.otp_release,
            "elixir": self.caller.elixir_version,
            "python": sys.version.split()[0],
            "loop": info[1][Atom("loop")].decode(),
        }


def ask(beam: Beam, source: str, **bindings: Any) -> Any:
    """What an Elixir expression gives on a BEAM."""
    return beam.eval_sync(source, timeout=SECONDS, **bindings)


def _start(cluster: Cluster, role: int) -> Beam:
    """A BEAM on the core of a role, which is not up yet."""
    with pinned(role):
        return Beam.start(epmd_port=cluster.epmd_port, cookie=cluster.cookie, flags=USUAL_SPINNING)


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
    beam = _start(cluster, CALLED)
    try:
        _serve(beam)
        yield beam
    finally:
        beam.close()


@contextlib.contextmanager
def opened(trees: Mapping[str, Path], scale: Scale, note: Callable[[str], None]) -> Iterator[Stage]:
    """Start all that the trees (by the name of their side) need; ``note`` is told what is missing.

    One tree has a BEAM for a yardstick, two have each other.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        epmd = stack.enter_context(RealEpmd())
        cluster = Cluster(epmd.port, secrets.token_hex(16))
        callers, yardstick = _beams(stack, cluster, list(trees))
        sides = []
        for name, tree in trees.items():
            node = stack.enter_context(nodes.started(tree, cluster))
            with_client = _load_client(callers[name], tree, scratch / name, note)
            sides.append(Side(name, tree, node, callers[name] if with_client else None))
        caller = next(iter(callers.values()))
        for side in sides:
            _check_node(caller, side)
        yield Stage(scale, cluster, caller, sides, yardstick, scratch, stack, {})


def _beams(
    stack: contextlib.ExitStack, cluster: Cluster, names: list[str]
) -> tuple[dict[str, Beam], Beam | None]:
    """A caller for each name, and the yardstick of a single one; they start at the same time."""
    callers: dict[str, Beam] = {}
    for name in names:
        callers[name] = _start(cluster, CALLER)
        stack.callback(callers[name].close)
    yardstick = None
    if len(names) == 1:
        yardstick = _start(cluster, CALLED)
        stack.callback(yardstick.close)
        _serve(yardstick)
    for caller in callers.values():
        _load(caller, "requests.ex", "data.ex", "caller.ex")
    return callers, yardstick


def _load_client(caller: Beam, tree: Path, scratch: Path, note: Callable[[str], None]) -> bool:
    try:
        found = client.compiled(tree, scratch)
    except client.NoClientError as error:
        note(f"rows of the client are left out: {error}")
        return False
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
    return True


def _check_node(caller: Beam, side: Side) -> None:
    code = "import snex_node, snex_runtime; return [snex_node.__file__, snex_runtime.__file__]"
    source = "{:ok, files} = GenServer.call({:snex, node}, {:eval, code, %{}}, 60_000); files"
    files = ask(caller, source, node=_atom(side), code=code.encode())
    nodes.check_runs(side.tree, [file.decode() for file in files])


def _atom(side: Side) -> Atom:
    return Atom(side.node.name)


def whole_tree() -> dict[str, Path]:
    """The tree of a plain run."""
    return {"node": ROOT}
