"""A node that a BEAM started through a port, and that never outlives it.

The BEAM holds the other end of standard input, the leash. Its first bytes are the configuration (so
the cookie is in no argument and in no environment), further lines are commands. When it ends, the
BEAM has gone or wants this process to go:

* the runtime stops and the program ends as programs do, ``atexit`` functions included, within the
  times of `snex_runtime.ending`;
* after `LAST` a second process, the watcher, kills the process group. It is there for C code that
  lets no thread run, and for child processes, which it also kills when this process has ended.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import IO, Any, Final

from snex_node.epmd import EpmdError
from snex_node.errors import ConnectError, NodeStartError
from snex_node.node import Node
from snex_node.system import forks, tasks
from snex_node.system.addresses import resolve
from snex_node.wire.etf import Encoder
from snex_node.wire.terms import Atom
from snex_runtime import ending, formats, limits, loops, search_path, serde, standard_files, watcher
from snex_runtime.configuration import Configuration, ForWorker
from snex_runtime.forwarding import Line
from snex_runtime.logging import is_untold
from snex_runtime.server import Server
from snex_runtime.stderr import StderrHandler, log_to_stderr
from snex_runtime.worker import Worker

MARK: Final = b"\0snex "
"""What the line begins with that tells the BEAM how the start went; no output of users does."""

_CHUNK: Final = 256 * 1024


def main() -> int:
    """The ``child`` command as the client gives it, without options: returns the exit status."""
    standard_files.open_missing()
    log_to_stderr("warning")
    try:
        status = loops.run(_run())
    except KeyboardInterrupt:
        status = 130
    standard_files.flush_output()
    return status


async def _run() -> int:
    search_path.restore()
    return await run()


async def run(*_: object) -> int:
    """Be a node of the BEAM that started this process, to the end: returns the exit status."""
    try:
        configuration = Configuration.read(sys.stdin.fileno())
    except (EOFError, ValueError, KeyError) as error:
        sys.stderr.write(f"snex: no configuration on standard input: {error}\n")
        return 1
    with contextlib.suppress(Exception):  # standard error may be none
        faulthandler.enable()
    given = _take_standard_input()
    try:
        limits.apply(configuration.limits)
        _check_memory(configuration)
    except limits.LimitError as error:
        _tell_failure(configuration, error)
        return 1
    _lead_group()
    worker = configuration.worker
    ledger = -1 if worker is None else worker.ledger_file
    killing = watcher.Limits(configuration.max_memory, ledger)
    signals = watcher.start(leash=given, group=True, limits=killing)
    relay = None if configuration.beam is None else Relay(given, _take_standard_output())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if worker is None:
        _leave_logging_to_users()
    else:
        logging.getLogger().setLevel(worker.log_level.upper())
        for handler in logging.getLogger().handlers:
            handler.setFormatter(formats.formatter(worker.log_format, configuration.name))
    leash = Leash((given if relay is None else relay.leash).fileno(), signals)
    leash.start()
    try:
        if worker is not None:
            return await _serve_front(configuration, worker, leash)
        if relay is not None:
            return await _serve_relayed(configuration, relay, leash)
        return await _serve(configuration, leash)
    except (NodeStartError, ConnectError, EpmdError, OSError, limits.LimitError) as error:
        _tell_failure(configuration, error)
        return 1
    finally:
        await loops.end_tasks()
        leash.ending.over()


def _check_memory(configuration: Configuration) -> None:
    if configuration.max_memory:
        limits.check_memory(configuration.max_memory, watcher.resident_memory(os.getpid()))


def _tell_failure(configuration: Configuration, error: Exception) -> None:
    """Tell whoever started this process why it ends."""
    # An epmd that ends while it is asked may have a successor: that is worth another try.
    epmd = isinstance(error, EpmdError) or isinstance(error.__cause__, EpmdError)
    term = Atom("unregistered" if epmd else "error"), str(error)
    if configuration.worker is not None:
        configuration.worker.fail(term)
    elif configuration.beam is None:
        _tell_beam(term)
    else:
        sys.stderr.write(f"snex: {error}\n")


async def _serve_front(configuration: Configuration, worker: ForWorker, leash: Leash) -> int:
    node = Node(
        configuration.name,
        cookie=configuration.cookie,
        listen=(worker.listen or listen_host(configuration.name), 0),
        epmd=configuration.epmd,
        net_ticktime=worker.net_ticktime,
        max_frame=worker.max_frame,
        decoder=serde.decoder(configuration.encoding),
        encoder=configuration.encoder,
    )
    async with node:
        server = Worker(
            node,
            worker.ledger,
            name=worker.register_as,
            options=configuration.encoding,
            killer=leash.signals.killer,
            **configuration.execution,
        )
        leash.take_commands(server.command)
        if worker.script is not None:
            failure = await server.init(*worker.script, timeout=worker.script_timeout)
            if failure is not None:
                worker.fail((Atom("script"), failure.describe()))
                return 1
            _check_memory(configuration)
        gone = asyncio.get_running_loop().create_future()
        server.open(partial(Line, worker.line), lambda: gone.set_result(None))
        worker.tell((Atom("ready"), node.name, server.pid))
        ended = tasks.start(server.wait_ended())
        await _first_of(leash.let_go, gone, ended)
        return leash.let_go.result() if leash.let_go.done() else 1


async def _serve(configuration: Configuration, leash: Leash) -> int:
    node = Node(
        configuration.name,
        cookie=configuration.cookie,
        listen=(listen_host(configuration.name), 0),
        epmd=configuration.epmd,
        decoder=serde.decoder(configuration.encoding),
        encoder=configuration.encoder,
    )
    async with node:
        server = _server(node, configuration, leash)
        _tell_beam((Atom("ready"), node.name, node.port, server.pid))
        ended = tasks.start(server.wait_ended())
        await _first_of(leash.let_go, ended)
        return leash.let_go.result() if leash.let_go.done() else 1


def _server(node: Node, configuration: Configuration, leash: Leash) -> Server:
    return Server(
        node,
        options=configuration.encoding,
        killer=leash.signals.killer,
        **configuration.execution,
    )


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    """Wait until the first is done, and cancel those that are tasks."""
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            if isinstance(future, asyncio.Task):
                future.cancel()


async def _serve_relayed(configuration: Configuration, relay: Relay, leash: Leash) -> int:
    assert configuration.beam is not None
    assert configuration.interpreter is not None
    node = Node(
        configuration.name,
        cookie=configuration.cookie,
        listen=None,
        epmd="none",
        decoder=serde.decoder(configuration.encoding),
        encoder=configuration.encoder,
    )
    async with node:
        server = _server(node, configuration, leash)
        relay.start()
        await node.connect(configuration.beam, address=relay.address)
        node.send(configuration.interpreter, (Atom("snex_ready"), server.pid))
        connection = node.remote(configuration.beam).connection
        assert connection is not None
        lost = tasks.start(connection.wait_closed())
        ended = tasks.start(server.wait_ended())
        await _first_of(leash.let_go, lost, ended)
        # Where the connection has ended, so has the leash, or will at once.
        refused = connection.closed is not None and connection.closed.startswith("protocol error")
        return leash.let_go.result() if leash.let_go.done() and not refused else 1


def listen_host(name: str) -> str:
    """The address that other nodes look for the node ``name`` at. Raises `NodeStartError`."""
    host = name.partition("@")[2]
    try:
        return resolve(host)[0].host
    except OSError as error:
        raise NodeStartError(
            f"the host {host or 'that is missing'} of {name} does not resolve ({error.strerror}): "
            "give the BEAM a name with a host that does, such as app@127.0.0.1"
        ) from None


def _tell_beam(term: object) -> None:
    line = MARK + base64.b64encode(b"\x83" + Encoder().encode(term)) + b"\n"
    sys.stdout.flush()
    _output().write(line)
    _output().flush()


def _output() -> IO[bytes]:
    return sys.stdout.buffer


def _take_standard_input() -> forks.OwnedDescriptor:
    """Keep standard input for the leash: user code and child processes find an empty one."""
    taken = forks.OwnedDescriptor(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return taken


def _take_standard_output() -> forks.OwnedDescriptor:
    """Keep standard output for the distribution: what child processes print goes to the errors."""
    sys.stdout.flush()
    taken = forks.OwnedDescriptor(os.dup(1))
    os.dup2(2, 1)
    sys.stdin = sys.stdout = None
    return taken


def _leave_logging_to_users() -> None:
    """Log what concerns the node, and leave the root logger as Python has it."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.addFilter(is_untold)
        for name in ("snex_node", "snex_runtime"):
            logging.getLogger(name).addHandler(handler)
    last = logging.lastResort = StderrHandler(logging.WARNING)  # Python's own would wait
    last.take_reports()
    # Interpreters come and go, and with one of them epmd may; the others take its place.
    logging.getLogger("snex_node.epmd").setLevel(logging.ERROR)


def _lead_group() -> None:
    if os.getpgrp() != os.getpid():
        os.setsid()


_LONGEST_COMMAND: Final = 64


def _ignore(command: str) -> None:
    """A command that means nothing here."""


# --- the leash ----------------------------------------------------------------------------------


class Leash(threading.Thread):
    """Waits, on a thread of its own, for the end of ``file`` or the line ``stop``; or for SIGTERM.

    Then `let_go` gets the exit status, and `ending` sees to it that the process ends in time.
    ``signals`` is where the watcher tells of SIGTERM. Other lines are commands for whoever takes
    them.
    """

    def __init__(self, file: int, signals: watcher.Signals) -> None:
        super().__init__(name="snex-leash", daemon=True)
        self._file = file
        self.signals: Final = signals
        self._command: Callable[[str], None] = _ignore
        self._loop = asyncio.get_running_loop()
        self.let_go: asyncio.Future[int] = self._loop.create_future()
        self.ending = ending.Ending(self._let_go)
        self._status = 0
        forks.set_handler(signal.SIGTERM, self._terminated)

    def take_commands(self, function: Callable[[str], None]) -> None:
        """Call ``function`` with each further line, on this thread."""
        self._command = function

    def run(self) -> None:
        """Wait, and end this process."""
        self._wait()
        self.ending.finish(self._status)

    def _wait(self) -> None:
        commands = b""
        while True:
            told = self.signals.fileno()
            if told in select.select([self._file, told], [], [])[0]:
                if self.signals.terminated():
                    self._status = 128 + signal.SIGTERM
                    return
                continue
            try:
                data = os.read(self._file, 4096)
            except OSError:
                return
            *lines, commands = (commands + data).split(b"\n")
            if not data or b"stop" in lines:
                return
            commands = commands[-_LONGEST_COMMAND:]
            for line in lines:
                self._command(line.decode("ascii", "replace"))

    def _let_go(self) -> None:
        if not self.let_go.done():
            self.let_go.set_result(self._status)

    def _terminated(self, number: int, frame: object) -> None:
        self.signals.terminate()


# --- distribution through standard input and output ---------------------------------------------


class Relay:
    """Joins a connection of the node to ``given`` and ``output``, by two threads.

    They need no event loop, so that ticks pass while user code blocks it. The node connects to
    `address`; the first to do so is served and nobody after it. `leash` is a file that ends with
    ``given``.
    """

    def __init__(self, given: forks.OwnedDescriptor, output: forks.OwnedDescriptor) -> None:
        self._given = given
        self._output = output
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        forks.keep_from_children(self._listener)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.leash, self._leash_end = map(forks.OwnedDescriptor, os.pipe())

    def start(self) -> None:
        """Serve the next connection."""
        threading.Thread(target=self._run, name="snex-relay", daemon=True).start()

    def _run(self) -> None:
        with self._listener:
            connection, _ = self._listener.accept()
        forks.keep_from_children(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inward = threading.Thread(target=self._inward, args=(connection,), daemon=True)
        inward.start()
        try:
            while data := connection.recv(_CHUNK):
                _write_all(self._output.fileno(), data)
        except OSError:
            pass  # one end has gone: the node is told, and the leash tells of the BEAM
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            self._output.close()

    def _inward(self, connection: socket.socket) -> None:
        try:
            while data := os.read(self._given.fileno(), _CHUNK):
                connection.sendall(data)
        except OSError:
            pass  # the node has closed: it is ending
        finally:
            self._leash_end.close()


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
