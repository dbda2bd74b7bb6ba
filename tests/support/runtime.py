"""A runtime that a test owns: ``snex-node start`` in a process of its own, and requests to it.

Interop tests have the fixtures `runtime`, which the tests of a module share and leave as they found
it, and `start_runtime`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0


class Runtime:
    """A running ``snex-node``; `Runtime.start` makes one."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path, name: str) -> None:
        self.process = process
        self.home = home
        """A folder of its own, on its ``PYTHONPATH``."""
        self.name = Atom(name)

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        *,
        epmd_port: int,
        cookie: str,
        init_script: str | None = None,
        modules: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> Iterator[Runtime]:
        """Start one; ``modules`` (name to source) are put where it can import them."""
        name = f"py{secrets.token_hex(4)}@127.0.0.1"
        with tempfile.TemporaryDirectory(prefix="runtime-") as folder:
            home = Path(folder)
            (home / "cookie").write_text(cookie)
            (home / "cookie").chmod(0o400)
            for module, source in (modules or {}).items():
                (home / f"{module}.py").write_text(source)
            command = [sys.executable, "-m", "snex_runtime", "start", "--name", name]
            command += ["--cookie-file", str(home / "cookie"), "--epmd", "external", *flags]
            if init_script is not None:
                (home / "init.py").write_text(init_script)
                command += ["--init-script", str(home / "init.py")]
            path = os.pathsep.join((str(home), str(ROOT)))
            with (home / "log").open("wb") as log:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, "ERL_EPMD_PORT": str(epmd_port), "PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            runtime = cls(process, home, name)
            try:
                runtime._wait_ready()
                yield runtime
            finally:
                runtime.stop()

    def _wait_ready(self) -> None:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if readable else b""
        assert line.startswith(b"ready "), f"the runtime did not start: {line!r}\n{self.log}"

    def stop(self) -> None:
        """End it by SIGTERM, which must suffice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def log(self) -> str:
        """What it has written on standard error so far."""
        return (self.home / "log").read_text(errors="replace")

    @property
    def resident(self) -> int:
        """Its resident memory, in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def call(self, beam: Beam, request: str, timeout: int = 5000, **bindings: Any) -> Any:
        """What ``GenServer.call({:snex, py}, request, timeout)`` gives; `request` is Elixir."""
        source = f"GenServer.call({{:snex, py}}, {request}, {timeout})"
        return await beam.eval(source, py=self.name, timeout=timeout / 1000 + 10, **bindings)

    async def run(self, beam: Beam, code: str, variables: str = "%{}", **bindings: Any) -> Any:
        """The value of Python code, run with ``variables`` (Elixir); it must succeed."""
        request = f"{{:eval, code, {variables}}}"
        answer = await self.call(beam, request, code=code.encode(), **bindings)
        assert answer[0] == "ok", answer
        return answer[1]

    async def info(self, beam: Beam) -> dict[str, Any]:
        """What ``:info`` answers."""
        _, info = await self.call(beam, ":info")
        assert isinstance(info, dict)
        return info


async def until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Return what ``await condition()`` gives when that is true; it is asked again and again."""
    deadline = time.monotonic() + timeout
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"not so within {timeout} s: {condition}"
    return value


@pytest.fixture(scope="module")
def runtime(epmd: RealEpmd, beam: Beam) -> Iterator[Runtime]:
    """A runtime that the tests of a module share, in the cluster of their `beam`."""
    with Runtime.start(epmd_port=epmd.port, cookie=beam.cookie) as started:
        yield started


@pytest.fixture
def start_runtime(epmd: RealEpmd) -> Iterator[Callable[..., Runtime]]:
    """A function that starts a runtime of the test's own, with the options of `Runtime.start`."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Runtime:
            return stack.enter_context(Runtime.start(epmd_port=epmd.port, **options))

        yield start
