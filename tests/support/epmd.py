"""A real `epmd` that a test owns, and those that nodes start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType

from snex_node.epmd import NodeInfo, Registration, lookup, register
from tests.support.ports import free_port

START_SECONDS = 10.0
ATTEMPTS = 5


def executable(name: str) -> str:
    """Return the path of a program; skip the test where it is missing (in CI a failure)."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/bin")
    if path is None:
        import pytest  # the benchmarks use this file where there is none

        pytest.skip(f"{name} is not installed; `make test` installs it where it can")
    return path


def process_at(port: int) -> int | None:
    """Return the number of the process that listens at a port of this machine, as /proc has it."""
    listening = {
        fields[9]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path("/proc/net", table).read_text().splitlines()[1:])
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    for file in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # gone in the meantime, or not ours to read
            link = os.readlink(file)
            if link.startswith("socket:[") and link[8:-1] in listening:
                return int(file.parts[2])
    return None


def command_of(process: int) -> str:
    """Return the command line of a process; an empty one if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def kill_epmd(port: int) -> int | None:
    """Kill the epmd that a node has started at a port; return its process number."""
    process = process_at(port)
    if process is not None:
        assert "epmd" in command_of(process)
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + START_SECONDS
        while process_at(port) == process:
            assert time.monotonic() < deadline, f"the epmd {process} does not end"
    return process


BUSY = "7 ** 10**8"
"""One call into C that keeps the interpreter for a minute."""


def another_node(
    name: str, port: int, then: str = "sys.stdin.read()", mode: str = "auto"
) -> subprocess.Popen[str]:
    """A Python that registers a node, says so, and does something without its event loop."""
    source = f"""
import asyncio, sys
from snex_node.epmd import NodeInfo, Registrar
async def main():
    keeper = Registrar(NodeInfo({name!r}, 1), port={port}, mode={mode!r})
    await keeper.start()
    print("started" if keeper.started else "joined", flush=True)
    {then}
    await keeper.close()
asyncio.run(main())
"""
    return subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


class RealEpmd:
    """The `epmd` of Erlang/OTP on a port of its own, on loopback; ended by its process number.

    Example::

        with RealEpmd() as epmd:
            subprocess.run(["epmd", "-port", str(epmd.port), "-names"])
    """

    def __init__(self, *, port: int = 0) -> None:
        """`port` 0 looks for a free one. The server is started by `start` or by `with`."""
        self._wanted = port
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def os_pid(self) -> int:
        assert self._process is not None, "epmd was not started"
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers. A port that another one took first is replaced."""
        for _ in range(ATTEMPTS):
            self.port = self._wanted or free_port()
            self._process = subprocess.Popen(
                [executable("epmd"), "-port", str(self.port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={k: v for k, v in os.environ.items() if not k.startswith("ERL_")},
            )
            if self._answers():
                return
            self.stop()
        raise RuntimeError(f"epmd did not start on port {self.port}")

    def _answers(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.005)  # it has not opened its port yet
            else:
                return self._process.poll() is None
        return False

    def stop(self) -> None:
        """Kill it, as a crash would; registrations are lost. Stopping twice is allowed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start a new one on the same port."""
        self._wanted = self.port
        self.stop()
        self.start()

    def __enter__(self) -> RealEpmd:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


# Asking one


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text)


# Messages


@contextlib.asynccontextmanager
async def registered(port: int, node: NodeInfo) -> AsyncIterator[Registration]:
    registration = await register(node, port=port)
    try:
        yield registration
    finally:
        registration.close()
        await registration.wait_lost()


async def epmd_tool(port: int, *arguments: str) -> str:
    """Run the epmd of OTP as a client; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        executable("epmd"),
        *("-port", str(port), *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode()


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, and return what comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def until_gone(name: str, port: int) -> None:
    """Return when epmd has noticed the end of a registration."""
    deadline = time.monotonic() + 10
    while await lookup(name, port=port) is not None:
        assert time.monotonic() < deadline, f"{name} is still registered"
