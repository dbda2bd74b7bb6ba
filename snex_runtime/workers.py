"""The processes of workers, as their front sees them: started, told, awaited, ended.

Each is a Python of its own with the same program, packages and environment, started as the Elixir
client starts its interpreters: standard input is the leash, so that a worker never outlives its
front, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Final

from snex_node.wire.describe import short
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.terms import Atom, Pid
from snex_runtime import watcher
from snex_runtime.ending import LAST
from snex_runtime.forwarding import Ledger

__all__ = ["START_TIMEOUT", "ScriptFailedError", "WorkerProcess", "WorkerStartError", "exit_term"]

START_TIMEOUT: Final = 30.0
"""Seconds in which a Python has to start, beside what its init script may take."""

_MAX_TOLD: Final = 1024 * 1024
_LENGTH: Final = struct.Struct(">I")
_decoder: Final = Decoder(binary_as="str")


class WorkerStartError(Exception):
    """A worker could not be started; the message says why."""


class ScriptFailedError(WorkerStartError):
    """The init script failed in it; the message is what the script raised."""


class WorkerProcess:
    """The process of the worker ``name``, a full node name.

    ``process`` and ``pid`` are the number of the process and the pid of its runtime, from `start`
    on; ``ledger`` tells of it when it is dead.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = 0
        self.pid: Pid | None = None
        self._file = tempfile.TemporaryFile(prefix="snex-ledger-")  # noqa: SIM115 - closed by `_reap`
        self._file.truncate(Ledger.SIZE)
        self.ledger: Final = Ledger(self._file.fileno())
        self.socket, self._other_end = socket.socketpair()
        """The front's end of the line to it."""
        self._child: asyncio.subprocess.Process | None = None
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its status as `subprocess` has it: negative is the number of a signal."""
        self._reaping: asyncio.Task[None] | None = None

    async def start(self, configuration: Mapping[str, Any], arguments: tuple[str, ...]) -> None:
        """Start it, and wait until it is ready. Raises `WorkerStartError`.

        ``arguments`` are further ones of the command ``child``. When this is cancelled or fails,
        nothing is left of it.
        """
        told, tells = os.pipe()
        files = {
            "line": self._other_end.fileno(),
            "ledger": self._file.fileno(),
            "report": tells,
        }
        try:
            try:
                self._child = child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "snex_runtime", "child", *arguments),
                    stdin=subprocess.PIPE,
                    pass_fds=tuple(files.values()),
                )
            except OSError as error:
                raise WorkerStartError(f"cannot start {sys.executable}: {error}") from None
            finally:
                os.close(tells)
                self._other_end.close()
            self.process = child.pid
            self._reaping = asyncio.ensure_future(self._reap(child))
            self._write(self._encoded(configuration, files))
            wait = START_TIMEOUT + configuration["script_timeout"] / 1000
            await self._take(await _report(told, wait, self.exited))
        except BaseException:
            self.kill()
            await self._gone()
            raise
        finally:
            os.close(told)

    def _encoded(self, configuration: Mapping[str, Any], files: Mapping[str, int]) -> bytes:
        whole = {**configuration, **files, "name": self.name}
        term = {Atom(name): value for name, value in whole.items()}
        data = b"\x83" + Encoder().encode(term)
        return _LENGTH.pack(len(data)) + data

    async def _take(self, told: object) -> None:
        match told:
            case ("ready", str(), Pid() as pid):
                self.pid = pid
            case ("script", str() as text):
                raise ScriptFailedError(text)
            case (_, str() as text):
                raise WorkerStartError(text)
            case None:
                await asyncio.wait([self.exited], timeout=LAST)
                if not self.exited.done():
                    raise WorkerStartError("it tells nothing that can be read, and does not end")
                how = describe_exit(self.exited.result())
                raise WorkerStartError(f"it ended before it was ready ({how})")
            case _:
                raise WorkerStartError(f"it told what nobody understands: {short(told)}")

    async def _gone(self) -> None:
        """Wait for the end of what has been killed, which takes a moment; also when cancelled."""
        cancelled = False
        while self._reaping is not None and not self._reaping.done():
            try:
                await asyncio.wait([self._reaping])
            except asyncio.CancelledError:
                cancelled = True
        self.close()
        if cancelled:
            raise asyncio.CancelledError

    async def _reap(self, child: asyncio.subprocess.Process) -> None:
        status = await child.wait()
        self._file.close()
        if not self.exited.done():
            self.exited.set_result(status)

    # --- what it is told ------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        stdin = None if self._child is None else self._child.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(data)

    def stop_request(self, sequence: int) -> None:
        """Have it stop what works for a caller that waits no more."""
        self._write(b"stop %d\n" % sequence)

    def stop(self) -> None:
        """Have it end as programs end, within `LAST` seconds: its watcher sees to that."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()

    def kill(self) -> None:
        """End it at once, and the processes that it has started."""
        self.stop()
        if self._child is not None and self._child.returncode is None:
            # Not by `Process.kill`: that looks whether it has ended, and so takes its status away
            # from whoever waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until it has ended, which `stop` has begun; kill it when it does not."""
        if self._child is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(self.exited), LAST)
        except asyncio.TimeoutError:
            self.kill()
            await self.exited

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it (SIGSTOP), where the system tells."""
        try:
            with open(f"/proc/{self.process}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] == b"T"
        except (OSError, IndexError):
            return False

    def close(self) -> None:
        """Forget what it has left."""
        self.ledger.close()
        self.socket.close()
        self._other_end.close()
        self._file.close()


async def _report(file: int, seconds: float, exited: asyncio.Future[int]) -> object:
    """What comes from ``file``; None when that ends first, or the process with it."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    done: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        part = os.read(file, 65536)
        data.extend(part)
        whole = len(data) >= 4 and len(data) >= 4 + min(_LENGTH.unpack_from(data)[0], _MAX_TOLD)
        if (whole or not part) and not done.done():
            loop.remove_reader(file)
            done.set_result(None)

    loop.add_reader(file, read)
    try:
        waiting: set[asyncio.Future[Any]] = {done, exited}
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done.done() and exited.done():
            await asyncio.sleep(0)  # what it wrote before it ended is read
    finally:
        loop.remove_reader(file)
    if not done.done() and not exited.done():
        raise WorkerStartError(f"it was not ready within {seconds:g} s")
    if len(data) < 4:
        return None
    try:
        return _decoder.decode(bytes(data[4:]))[0]
    except DecodeError:
        return None


# --- how it ended -------------------------------------------------------------------------------


def exit_term(status: int) -> tuple[Atom, object]:
    """A status of `subprocess` as a term: ``{:signal, :sigsegv}`` or ``{:status, 3}``."""
    if status >= 0:
        return Atom("status"), status
    try:
        return Atom("signal"), Atom(signal.Signals(-status).name.lower())
    except ValueError:
        return Atom("signal"), -status


def describe_exit(status: int) -> str:
    """A status of `subprocess` in words."""
    if status >= 0:
        return f"with status {status}"
    if -status == watcher.OVERTIME != signal.SIGKILL:
        return "by its watcher: a request went on beyond timeout: and kill_after:"
    if -status == watcher.MEMORY != signal.SIGKILL:
        return "by its watcher: it had more memory than --max-memory allows"
    return f"by {exit_term(status)[1]}"
