"""A live BEAM that a test owns: start it, evaluate Elixir on it, stop, suspend or kill it.

The connection for evaluation is apart from the distribution, so that a test can ask a BEAM what it
thinks of us while it is not connected to us. It is served by a thread: one `Beam` may be shared by
tests that have an event loop each.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from snex_node.wire import etf
from snex_node.wire.terms import Atom
from tests.support.epmd import executable

SOURCE = Path(__file__).with_name("beam.ex")
# A start takes about 0.5 s on an idle machine.
START_SECONDS = 60.0
EVAL_SECONDS = 20.0
# A BEAM that does not busy-wait leaves the processors to the test.
QUIET_SCHEDULERS = "+sbwt none +sbwtdcpu none +sbwtdio none"


class BeamError(Exception):
    """The evaluated code raised, threw or exited; the text is what Elixir prints for it."""

    def __init__(self, kind: str, reason: object, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        """error, exit or throw."""
        self.reason = reason


class BeamDownError(Exception):
    """The BEAM is gone, or did not start; the text has its output."""


class Beam:
    """A real Elixir node with a name, a cookie and a home directory of its own.

    Example::

        async with Beam.start(epmd_port=epmd.port) as beam:
            assert await beam.eval("1 + x", x=41) == 42
            await beam.kill()

    `with` works as well, where there is no event loop. `beam.eval` raises `BeamError` for what the
    code raised, `BeamDownError` when the BEAM ends before it answers, and `TimeoutError`.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], listener: _Listener, home: Path, name: str
    ) -> None:
        """Use `Beam.start`."""
        self.name = name
        """Full node name."""
        self.cookie = (home / ".erlang.cookie").read_text()
        self.otp_release = ""
        self.elixir_version = ""
        self.os_pid = process.pid
        self._process = process
        self._listener = listener
        self._home = home
        self._final_log: str | None = None
        self._channel: _Channel | None = None

    @classmethod
    def start(
        cls,
        *,
        epmd_port: int,
        name: str | None = None,
        host: str = "127.0.0.1",
        short: bool = False,
        hidden: bool = False,
        cookie: str | None = None,
        net_ticktime: int | None = None,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Beam:
        """Start a BEAM, without waiting until it is up (`with` and `async with` do that).

        `epmd_port`: where it registers and looks up others; it starts no epmd of its own.
        `name`: the part before the `@`; unique if it is not given. "undefined" is for a BEAM that
        gets its name from the first node it connects to. With `short` the host must have no dot.
        `flags`: arguments of `erl`, each without blanks. The cookie is in its home directory, not
        among the arguments.
        """
        home = Path(tempfile.mkdtemp(prefix="beam-"))
        full_name = f"{name or 'b' + secrets.token_hex(4)}@{host}"
        _write_cookie(home, cookie or secrets.token_hex(16))
        listener = _Listener()
        arguments = [
            "-noinput -start_epmd false +fnu",
            QUIET_SCHEDULERS,
            "-sname" if short else "-name",
            full_name,
            *(["-hidden"] if hidden else []),
            *([f"-kernel net_ticktime {net_ticktime}"] if net_ticktime is not None else []),
            *flags,
        ]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ERL_", "ELIXIR_"))},
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_FLAGS": " ".join(arguments),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "SNEX_TEST_PORT": str(listener.port),
            "SNEX_TEST_TOKEN": listener.token,
            **(env or {}),
        }
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [executable("elixir"), "-pa", compiled(), "-e", "BeamOfTests.main()"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home,
                env=environment,
                start_new_session=True,
            )
        return cls(process, listener, home, full_name)

    # Life

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Return when it answers. `BeamDownError` if it ended instead, or took longer."""
        deadline = time.monotonic() + timeout
        while self._process.poll() is None and time.monotonic() < deadline:
            connection = self._listener.accept()
            if connection is None:
                continue
            self._listener.close()
            self._channel = _Channel(connection)
            token, node, os_pid, otp_release, elixir_version = self._channel.hello
            assert token == self._listener.token
            assert node == ("nonode@nohost" if self.name.startswith("undefined@") else self.name)
            self.os_pid = os_pid
            self.otp_release = otp_release
            self.elixir_version = elixir_version
            self._channel.start(self.name)
            return
        log = self.log
        self.close()
        raise BeamDownError(f"{self.name} did not start within {timeout} s. Its output:\n{log}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def stop(self) -> None:
        """End it: its connections close at once. Stopping twice is allowed."""
        await asyncio.to_thread(self.close)

    async def kill(self) -> None:
        """End it by SIGKILL, and return when it is gone."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def suspend(self) -> None:
        """Stop it by SIGSTOP: its connections stay open, and nothing is answered or ticked."""
        os.kill(self.os_pid, signal.SIGSTOP)
        # The signal is for all of its threads, and they stop one after the other.
        tasks = Path(f"/proc/{self.os_pid}/task")
        while any(_thread_state(task) != "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        os.kill(self.os_pid, signal.SIGCONT)

    def close(self) -> None:
        """`stop` for where there is no event loop."""
        self._listener.close()
        if self._channel is not None:
            self._channel.close()  # the script halts when its connection ends
        if self.alive:
            self.resume()
            try:
                self._process.wait(10 if self._channel is not None else 0.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._final_log is None:
            self._final_log = self.log
            shutil.rmtree(self._home)

    # Use

    async def eval(
        self, source: str, *, timeout: float = EVAL_SECONDS, **bindings: object
    ) -> object:
        """Evaluate Elixir in a fresh process; `bindings` are its variables. Returns the value."""
        future = asyncio.wrap_future(self.submit(source, **bindings))
        return await asyncio.wait_for(future, timeout)

    def eval_sync(
        self, source: str, *, timeout: float = EVAL_SECONDS, **bindings: object
    ) -> object:
        """`eval` for where there is no event loop."""
        return self.submit(source, **bindings).result(timeout)

    def submit(self, source: str, **bindings: object) -> concurrent.futures.Future[object]:
        """Start an evaluation; the future has its value. Evaluations run beside each other."""
        assert self._channel is not None, "enter the context of the Beam, or call wait_ready, first"
        variables = [(Atom(name), value) for name, value in bindings.items()]
        return self._channel.request((source, variables))

    @property
    def log(self) -> str:
        """What it has written on standard output and standard error so far."""
        if self._final_log is not None:
            return self._final_log
        return (self._home / "log").read_text(encoding="utf-8", errors="replace")

    async def wait_log(self, text: str, timeout: float = EVAL_SECONDS) -> None:
        """Return when the log has `text`; `TimeoutError` shows the log."""
        deadline = time.monotonic() + timeout
        while text not in self.log:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} is not in the log of {self.name}:\n{self.log}")
            await asyncio.sleep(0.02)

    def __enter__(self) -> Beam:
        self.wait_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Beam:
        await asyncio.to_thread(self.wait_ready)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


@functools.cache
def compiled() -> str:
    """The directory with the code of `SOURCE`, which each process compiles once."""
    directory = tempfile.mkdtemp(prefix="beam-code-")
    subprocess.run([executable("elixirc"), "-o", directory, str(SOURCE)], check=True)
    return directory


def remove_compiled() -> None:
    """Remove that directory, if there is one."""
    if compiled.cache_info().currsize:
        shutil.rmtree(compiled())
        compiled.cache_clear()


def _write_cookie(home: Path, cookie: str) -> None:
    path = home / ".erlang.cookie"
    path.write_text(cookie)
    path.chmod(0o400)  # the BEAM refuses a cookie that others may read


class _Listener:
    """Where the script on the BEAM connects to."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)  # how often a start that failed is noticed

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def accept(self) -> socket.socket | None:
        try:
            connection, _ = self._socket.accept()
        except TimeoutError:
            return None
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        self._socket.close()


class _Channel:
    """Requests to the script and their replies, which a thread hands to their futures."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")
        self._lock = threading.Lock()
        self._waiting: dict[int, concurrent.futures.Future[object]] = {}
        self._last_id = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        token, node, os_pid, otp_release, elixir_version = _decode(self._read_packet())
        assert isinstance(os_pid, int)
        self.hello = (_text(token), str(node), os_pid, _text(otp_release), _text(elixir_version))

    def start(self, name: str) -> None:
        self._thread = threading.Thread(target=self._read, name=f"beam {name}", daemon=True)
        self._thread.start()

    def request(self, term: object) -> concurrent.futures.Future[object]:
        data = etf.encode(term)
        future: concurrent.futures.Future[object] = concurrent.futures.Future()
        with self._lock:
            if self._closed:
                raise BeamDownError("the BEAM is gone")
            self._last_id += 1
            self._waiting[self._last_id] = future
            head = (8 + len(data)).to_bytes(4, "big") + self._last_id.to_bytes(8, "big")
            # A BEAM that just died fails this write, or the reading thread fails the future.
            with contextlib.suppress(OSError):
                self._socket.sendall(head + data)
        return future

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._reader.close()
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                packet = self._read_packet()
                future = self._waiting.pop(int.from_bytes(packet[:8], "big"))
                if future.set_running_or_notify_cancel():
                    _resolve(future, packet[8:])
        with self._lock:
            self._closed = True
        for future in self._waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(BeamDownError("the BEAM ended before it answered"))

    def _read_packet(self) -> bytes:
        length = int.from_bytes(self._read_exactly(4), "big")
        return self._read_exactly(length)

    def _read_exactly(self, count: int) -> bytes:
        data = self._reader.read(count)
        if len(data) < count:
            raise EOFError
        return data


def _resolve(future: concurrent.futures.Future[object], packet: bytes) -> None:
    try:
        status, *rest = _decode(packet)
    except Exception as error:  # whoever waits is told, whatever it is
        future.set_exception(error)
        return
    if status == "ok":
        future.set_result(rest[0])
    else:
        kind, reason, text = rest
        future.set_exception(BeamError(str(kind), reason, _text(text)))


def _decode(packet: bytes) -> tuple[object, ...]:
    term = etf.decode(packet)
    assert isinstance(term, tuple)
    return term


def _text(binary: object) -> str:
    assert isinstance(binary, bytes)
    return binary.decode()


def _thread_state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"  # it has ended
