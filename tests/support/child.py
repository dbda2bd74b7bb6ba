"""A Python as the client starts it: a child of whoever holds its standard input."""

from __future__ import annotations

import base64
import os
import secrets
import struct
import subprocess
import sys
from pathlib import Path

from snex_node.node import Node
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.terms import Atom
from snex_runtime import child, serde
from tests.support.epmd import RealEpmd

ROOT = Path(__file__).parents[2]
SECONDS = 30.0


class ChildRuntime:
    """``snex_runtime child`` in a process of its own, ready to take requests.

    ``cwd`` is where it is started, after the shell ran ``before`` there. ``environ`` is added to
    the environment. Its standard error is a pipe that nobody reads when ``stderr`` is
    `subprocess.PIPE`. Who starts it calls `end`.
    """

    def __init__(
        self,
        epmd: RealEpmd,
        *,
        cwd: Path | None = None,
        stderr: int | None = None,
        before: str = ":",
        **environ: str,
    ) -> None:
        self.name = f"child_{secrets.token_hex(5)}@127.0.0.1"
        self.cookie = secrets.token_hex(10)
        self.epmd = epmd
        self.process = subprocess.Popen(
            ["sh", "-c", f'{before}; exec "$0" -m snex_runtime child', sys.executable],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=cwd,
            env={
                **os.environ,
                "ERL_EPMD_PORT": str(epmd.port),
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                **environ,
            },
        )
        term = {Atom("name"): self.name, Atom("cookie"): self.cookie}
        data = b"\x83" + Encoder().encode(term)
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack(">I", len(data)) + data)
        self.process.stdin.flush()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(child.MARK):
                told = Decoder().decode(base64.b64decode(line[len(child.MARK) :]), 1)[0]
                assert isinstance(told, tuple)
                assert told[0] == "ready", told
                return
        self.end()
        raise AssertionError("it did not start")

    async def eval(self, code: str) -> object:
        """What the evaluation of ``code`` answers; 3 s are its limit."""
        async with Node(
            f"caller_{secrets.token_hex(5)}@127.0.0.1",
            cookie=self.cookie,
            listen=None,
            epmd="none",
            epmd_port=self.epmd.port,
            decoder=serde.decoder(),
        ) as node:
            request: tuple[object, ...] = (Atom("eval"), code, {}, [(Atom("timeout"), 3000)])
            return await node.call(("snex", self.name), request, timeout=10.0)

    def end(self) -> None:
        """Let it go, and wait until it has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            if self.process.stderr is not None:
                self.process.stderr.close()
