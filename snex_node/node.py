"""A node: its name, its processes, and the other nodes it talks to.

Source: "Distributed Erlang" in the Erlang reference manual. The node is hidden: others see it in
``Node.list(:hidden)``, and it takes no part in ``global``.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import os
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from snex_node import epmd
from snex_node.client import Client
from snex_node.cluster import connection as connections
from snex_node.cluster.connection import Connection, describe_error
from snex_node.cluster.connector import Connector, random_creation
from snex_node.cluster.door import BACKLOG
from snex_node.cluster.remote import RemoteNode, encode_reason
from snex_node.epmd import Registrar
from snex_node.errors import (
    CallTimeoutError,
    ConnectError,
    NodeStartError,
    ProcessExitError,
)
from snex_node.processes.gen import GEN_CAST, From
from snex_node.processes.process import NOPROC, BaseProcess, Destination, Target
from snex_node.services import NetKernel, Resolver, Rex, Spawner, import_function
from snex_node.system import forks, tasks
from snex_node.system.addresses import resolve
from snex_node.system.guardian import Guardian
from snex_node.system.memory import MAX_UNFINISHED, Holdings, Trimmer
from snex_node.wire.control import AliasSend, PayloadExit2, RegSend, SendSender
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.framing import MAX_FRAME, MAX_MESSAGE
from snex_node.wire.handshake import Completed, HandshakeError, check_name
from snex_node.wire.terms import Atom, Pid, Reference

MAX_REMOTES = 4096
"""Nodes remembered; beyond it those are forgotten that nothing ties us to."""

FAREWELL = 1.0
"""Seconds a stopping node waits for its peers to read what was sent last."""

RETRY_PAUSE = 0.5
RETRY_PAUSE_MOST = 5.0
"""Seconds between attempts to keep a connection: the first, and what they grow to."""

EpmdMode = Literal["auto", "external", "embedded", "none"]

_PLAIN = Encoder()
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Node:
    """A hidden Erlang node on the running event loop.

    ``name`` is the full name (``py@127.0.0.1``, or ``py@host`` for short names). ``cookie`` is the
    secret that all nodes of a cluster share. ``listen`` is where others may connect, None for
    nowhere (then the node can only connect itself, and epmd is not told). ``epmd`` says which epmd
    to register with: a running one or else one that is started (``auto``), only a running one
    (``external``), only one of our own (``embedded``), or none. ``net_ticktime`` is the silence,
    in seconds, after which a peer is lost; ``net_setuptime`` what each step towards a connection
    may take. ``max_frame`` and ``max_message`` bound what a peer can make us hold, in bytes, and
    ``max_unfinished`` what all of them can.
    ``decoder`` and ``encoder`` convert the terms of messages. ``resolver`` finds the functions that
    other nodes may call here by ``:erpc``, ``:rpc`` and ``Node.spawn``: by default any function of
    any module that can be imported (whoever knows the cookie may run code, as everywhere in a
    cluster); None forbids them all.

    `send` and `reply` may be called from any thread, everything else on the event loop only.

    >>> async def main() -> None:
    ...     async with Node("py@127.0.0.1", cookie="secret") as node:
    ...         print(await node.call(("counter", "app@127.0.0.1"), Atom("increment")))
    """

    def __init__(
        self,
        name: str,
        *,
        cookie: str,
        listen: tuple[str, int] | None = ("127.0.0.1", 0),
        epmd: EpmdMode = "auto",
        epmd_port: int | None = None,
        net_ticktime: float = connections.NET_TICKTIME,
        net_setuptime: float = connections.HANDSHAKE_TIMEOUT,
        max_frame: int = MAX_FRAME,
        max_message: int = MAX_MESSAGE,
        max_unfinished: int = MAX_UNFINISHED,
        decoder: Decoder | None = None,
        encoder: Encoder | None = None,
        resolver: Resolver | None = import_function,
    ) -> None:
        try:
            check_name(name)
        except HandshakeError as error:
            raise NodeStartError(str(error)) from None
        self.name = Atom(name)
        self.creation = 0
        self.port: int | None = None
        """Where the node listens; None when it does not."""
        self.address: tuple[str, int] | None = None
        """The same with the address in front, as the system gives it."""
        self.decoder = decoder or Decoder()
        self.encoder = encoder or Encoder()
        self.net_setuptime = net_setuptime
        self._listen = listen
        self._epmd: EpmdMode = epmd
        self._epmd_port = epmd_port
        self._net_ticktime = net_ticktime
        self._max_frame = max_frame
        self._max_message = max_message
        self._unfinished: Holdings[Connection] = Holdings(max_unfinished, self._too_much_unfinished)
        self._trimmer = Trimmer()
        self._resolver = resolver
        self._connector = Connector(self, cookie, epmd_port, self._make_connection)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        # What our tasks run in: whoever made us dial would be in the context of all that arrives.
        self._context = contextvars.Context()
        self._listener: socket.socket | None = None
        self._registrar: Registrar | None = None
        self.guardian = Guardian()
        """The thread that keeps connections alive; it takes further checks."""
        self.guardian.add_check(self._trimmer.check)
        self._tasks: set[asyncio.Task[Any]] = set()
        # Its tasks have been cancelled: one that began now would not be.
        self._ending = False
        self._own: Client | None = None
        self._spawner: Spawner
        self._processes: dict[bytes, BaseProcess] = {}
        self._names: dict[str, BaseProcess] = {}
        self._remotes: dict[str, RemoteNode] = {}
        # What waits for an answer, by the external form of the alias it goes to.
        self._aliases: dict[bytes, asyncio.Future[object]] = {}
        self._watchers_of_nodes: dict[BaseProcess, None] = {}
        self._pid_numbers = itertools.count(1)
        self._ref_numbers = itertools.count(1)
        self._pid_head = b""
        self._ref_head = b""
        self.forked = False
        """Whether this process is a forked child of the one that the node runs in."""
        forks.tell_children(self._on_fork)

    def _on_fork(self) -> None:
        self.forked = True

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    # --- start and stop -------------------------------------------------------------------------

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, register with epmd, and start the services.

        Raises `NodeStartError` with what to do about it: the name is taken, epmd does not answer,
        the address cannot be listened on.
        """
        if self._loop is not None:
            raise NodeStartError(f"{self.name} has been started already")
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._context = contextvars.copy_context()
        listener: socket.socket | None = None
        try:
            if self._listen is not None:
                listener = _listen(*self._listen)
                self.address = listener.getsockname()[:2]
                self.port = self.address[1]
            self.creation = await self._register_with_epmd()
        except BaseException:
            if listener is not None:
                listener.close()
            self.address = self.port = None
            self._loop = None
            raise
        name = _PLAIN.encode(self.name)
        self._pid_head = b"X" + name
        self._ref_head = b"Z\x00\x03" + name + self.creation.to_bytes(4, "big")
        self.guardian.start()
        self._own = Client(self)
        self._spawner = Spawner(self, self._resolver)
        NetKernel(self).register("net_kernel")
        Rex(self, self._resolver).register("rex")
        if listener is not None:
            self._listener = listener
            self._connector.listen(listener)

    async def stop(self) -> None:
        """End every process with ``shutdown``, close every connection, leave epmd."""
        if self._loop is None:
            return
        listener, self._listener = self._listener, None
        if listener is not None:
            self._connector.stop_listening()
            listener.close()
        await asyncio.sleep(0)  # what was to be done soon is done while the node is there
        for process in list(self._processes.values()):
            process.exit(Atom("shutdown"))
        await self._finish_connections()
        self._ending = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for remote in self.remotes:
            remote.close(f"{self.name} stops")
        registrar, self._registrar = self._registrar, None
        if registrar is not None:
            await registrar.close()
        self.guardian.stop()
        self._own = None
        self._loop = None
        self._ending = False
        self.address = self.port = None

    async def _finish_connections(self) -> None:
        """What was written last is lost when we close before the peers have read it."""
        live = [r.connection for r in self._remotes.values() if r.connection is not None]
        for connection in live:
            connection.finish()
        if live:
            closed = [tasks.start(connection.wait_closed()) for connection in live]
            await asyncio.wait(closed, timeout=FAREWELL)
            for waiting in closed:
                waiting.cancel()

    async def _register_with_epmd(self) -> int:
        """The creation that epmd gives; a random one where there is none."""
        if self._epmd == "none" or self.address is None:
            return random_creation()
        address, port = self.address
        name, _, host = self.name.partition("@")
        registrar = Registrar(
            epmd.NodeInfo(name, port),
            mode=self._epmd,
            port=self._epmd_port,
            listen=address,
            host=host,
        )
        try:
            creation = await registrar.start()
        except (epmd.EpmdError, ValueError) as error:
            raise NodeStartError(str(error)) from error
        self._registrar = registrar
        return creation or random_creation()

    @property
    def _client(self) -> Client:
        """The process in whose name the node itself calls and sends."""
        if self._own is None:
            raise self._not_running()
        return self._own

    def _run(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        """Start a task that ends with the node at the latest."""
        if self._loop is None or self._ending:
            work.close()
            raise self._not_running()
        task = self._context.copy().run(tasks.start, work, self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        loop = self._loop
        if loop is None:
            raise self._not_running()
        if threading.get_ident() == self._thread:
            loop.call_soon(function, *args)
        else:
            loop.call_soon_threadsafe(function, *args)

    def _not_running(self) -> NodeStartError:
        return NodeStartError(f"{self.name} is not running: start it first")

    # --- processes ------------------------------------------------------------------------------

    def register(self, name: str, process: BaseProcess) -> None:
        """Give ``process`` the name ``name``; ``ValueError`` when it is taken, or no atom."""
        if not process.alive:
            raise ValueError(f"{process!r} has ended and cannot be registered")
        if name in self._names:
            raise ValueError(f"the name {name} is taken by {self._names[name]!r}")
        self._names[Atom(name)] = process
        if process._names is None:
            process._names = []
        process._names.append(name)

    def unregister(self, name: str) -> None:
        """Free a name; ``ValueError`` when nothing has it."""
        process = self._names.pop(name, None)
        if process is None:
            raise ValueError(f"no process is registered as {name}")
        if process._names is not None:
            process._names.remove(name)

    def whereis(self, name: str) -> Pid | None:
        """The pid of the process registered as ``name`` here."""
        process = self._names.get(name)
        return None if process is None else process.pid

    def find(self, target: Pid | str) -> BaseProcess | None:
        """The process of this node with this pid or registered name, if there is one."""
        if isinstance(target, Pid):
            return self._processes.get(target.external)
        return self._names.get(target)

    def make_ref(self) -> Reference:
        """A new reference, unique in the cluster."""
        number = next(self._ref_numbers)
        # 18, 32 and 32 bits: the first word changes fastest and stays below 2^18, which is what
        # tools that know only the old references read.
        words = (number & 0x3FFFF, (number >> 18) & 0xFFFFFFFF, (number >> 50) & 0xFFFFFFFF)
        return Reference.from_external(self._ref_head + struct.pack(">III", *words))

    def _add_process(self, process: BaseProcess) -> Pid:
        if self._loop is None:
            raise self._not_running()
        number = next(self._pid_numbers)
        # 28 bits of id, then 13 of serial, as nodes before OTP 24 print them; then wider.
        pid = Pid.from_external(
            self._pid_head + struct.pack(">III", number & 0xFFFFFFF, number >> 28, self.creation)
        )
        self._processes[pid.external] = process
        return pid

    def _remove_process(self, process: BaseProcess, reason: object) -> None:
        del self._processes[process.pid.external]
        self._watchers_of_nodes.pop(process, None)
        for name in process._names or ():
            self._names.pop(name, None)
        process._names = None
        self._break_ties(process, reason)

    def _break_ties(self, process: BaseProcess, reason: object) -> None:
        watchers, process._watchers = process._watchers, None
        links, process._links = process._links, None
        monitors, process._monitors = process._monitors, None
        if not (watchers or links or monitors):
            return
        by_node: defaultdict[str, _Ties] = defaultdict(_Ties)
        for ref, (watcher, target) in (watchers or {}).items():
            by_node[watcher.node].watchers.append((ref, watcher, target))
        for pid, pending in (links or {}).items():
            by_node[pid.node].links.append((pid, pending is None))
        for reference, watched in (monitors or {}).items():
            node, there = self._place(watched)
            by_node[node].monitors.append((reference, there))
        local = by_node.pop(self.name, None)
        if local is not None:
            self._break_local_ties(process, local, reason)
        if by_node:
            encoded = encode_reason(self.encoder, reason)
            for node, ties in by_node.items():
                self.remote(node).process_exited(
                    process, encoded, ties.watchers, ties.links, ties.monitors
                )

    def _break_local_ties(self, process: BaseProcess, ties: _Ties, reason: object) -> None:
        """Signals to processes here come after the messages that were sent to them before."""
        for pid, _ in ties.links:
            self._call_soon(self._local_exit, process.pid, pid, reason)
        for ref, watcher, _ in ties.watchers:
            other = self._processes.get(watcher.external)
            if other is not None:
                self._call_soon(other._down_received, Reference.from_external(ref), reason)
        for reference, target in ties.monitors:
            watched = self.find(target)
            if watched is None or not watched._watchers:
                continue
            if watched._watchers.pop(reference.external, None):
                self._call_soon(watched.demonitored, reference.external)

    def _local_exit(self, sender: Pid, to: Pid, reason: object) -> None:
        """The end of a link between two processes here: ``sender`` has ended."""
        process = self._processes.get(to.external)
        if process is not None and process._links and process._links.pop(sender, 0) is None:
            process._exit_received(sender, reason, linked=True)

    # --- signals of our processes ---------------------------------------------------------------

    def _place(self, target: Target) -> tuple[str, Pid | Atom]:
        """The node of a target, and the target as that node knows it."""
        if isinstance(target, Pid):
            return target.node, target
        if isinstance(target, str):
            return self.name, Atom(target)
        name, node = target
        return node, Atom(name)

    def _monitor(self, process: BaseProcess, target: Target, ref: Reference) -> None:
        node, there = self._place(target)
        assert process._monitors is not None
        process._monitors[ref] = target
        if node != self.name:
            self.remote(node).monitor(process, there, ref)
            return
        watched = self.find(there)
        if watched is None:
            self._call_soon(process._down_received, ref, NOPROC)
            return
        if watched._watchers is None:
            watched._watchers = {}
        watched._watchers[ref.external] = (process.pid, there)

    def _demonitor(self, process: BaseProcess, target: Target, ref: Reference) -> None:
        node, there = self._place(target)
        if node != self.name:
            self.remote(node).demonitor(process, there, ref)
            return
        watched = self.find(there)
        if watched is None or not watched._watchers:
            return
        if watched._watchers.pop(ref.external, None):
            watched.demonitored(ref.external)

    def _link(self, process: BaseProcess, pid: Pid) -> None:
        node = pid.node
        if node != self.name:
            self.remote(node).link(process, pid)
            return
        other = self._processes.get(pid.external)
        if other is None:
            self._call_soon(self._local_exit, pid, process.pid, NOPROC)
            return
        if other._links is None:
            other._links = {}
        other._links[process.pid] = None

    def _unlink(self, process: BaseProcess, pid: Pid) -> None:
        node = pid.node
        if node != self.name:
            self.remote(node).unlink(process, pid)
            return
        assert process._links is not None
        del process._links[pid]
        other = self._processes.get(pid.external)
        if other is not None and other._links:
            other._links.pop(process.pid, None)

    def exit_signal(self, pid: Pid, reason: object, *, sender: Pid | None = None) -> None:
        """Send ``pid`` an exit signal, as ``Process.exit/2`` does."""
        sender = sender or self._client.pid
        node = pid.node
        if node != self.name:
            payload = self.encoder.encode(reason)
            self.remote(node).send(PayloadExit2(sender, pid), payload, sender)
            return
        process = self._processes.get(pid.external)
        if process is not None:
            self._call_soon(partial(process._exit_received, linked=False), sender, reason)

    # --- messages -------------------------------------------------------------------------------

    def send(self, to: Destination, message: object, *, sender: Pid | None = None) -> None:
        """Send ``message`` to a process, from any thread.

        Messages with the same ``sender`` (a pid of this node) to one process arrive in the order
        in which they were sent; without a sender, those of one task or thread do. Where there is no
        connection one is made; a message to what does not exist is dropped, as in Erlang.

        Raises `EncodeError` for what is no term, and `NodeError` when too much waits for a
        connection already.
        """
        if isinstance(to, str):
            self._deliver(self._names.get(to), message)
            return
        node = to[1] if isinstance(to, tuple) else to.node
        if node == self.name:
            if isinstance(to, Reference):
                self._call_soon(self._alias_delivered, to.external, message)
            else:
                self._deliver(self.find(to[0] if isinstance(to, tuple) else to), message)
            return
        payload = self.remote(node).encoder.encode(message)
        self._send_encoded(to, payload, sender)

    def _send_encoded(
        self, to: Pid | Reference | tuple[str, str], payload: bytes, sender: Pid | None
    ) -> None:
        """Send a message in external form to a process of another node."""
        line = sender or self._client._line
        sender = sender or self._client.pid
        if isinstance(to, Pid):
            self.remote(to.node).send(SendSender(sender, to), payload, line)
        elif isinstance(to, Reference):
            self.remote(to.node).send(AliasSend(sender, to), payload, line)
        else:
            name, node = to
            self.remote(node).send(RegSend(sender, Atom(name)), payload, line)

    def reply(self, to: From, reply: object, *, sender: Pid | None = None) -> None:
        """Answer a call, from any thread. Raises `EncodeError`."""
        node = to.pid.node
        encoder = self.encoder if node == self.name else self.remote(node).encoder
        self.reply_encoded(to, encoder.encode(reply), sender=sender)

    def reply_encoded(self, to: From, reply: bytes, *, sender: Pid | None = None) -> None:
        """Answer a call with a term that is encoded already (a bare term)."""
        sender = sender or self._client.pid
        payload = b"h\x02" + to.tag + reply
        node = to.pid.node
        if node == self.name:
            self._reply_here(to, payload)
            return
        remote = self.remote(node)
        connection = remote.connection
        if connection is None:
            return  # who called saw the connection go, and waits no more
        if to.alias is None:
            remote.send(SendSender(sender, to.pid), payload, sender)
        else:
            connection.send(remote.alias_send(sender, to.alias), payload, sender)

    def _reply_here(self, to: From, payload: bytes) -> None:
        message = self.decoder.decode(payload)[0]
        if to.alias is not None:
            self._call_soon(self._alias_delivered, to.alias, message)
        else:
            self._deliver(self._processes.get(to.pid.external), message)

    def _deliver(self, process: BaseProcess | None, message: object) -> None:
        """To a process of this node: in a turn of the loop of its own, never inside of a send."""
        if process is not None:
            self._call_soon(self._receive, process, message)

    def _receive(self, process: BaseProcess, message: object) -> None:
        if process.alive:
            process.receive(message)

    def _alias_received(self, alias: bytes, data: bytes, offset: int) -> None:
        """A message to an alias, in external form. One that nobody waits for is dropped."""
        waiting = self._aliases.get(alias)
        if waiting is None or waiting.done():
            return
        try:
            message, _ = self.decoder.decode(data, offset)
        except DecodeError as error:
            waiting.set_exception(error)
        else:
            self._alias_delivered(alias, message)

    def _alias_delivered(self, alias: bytes, message: object) -> None:
        """``{Tag, Reply}`` to an alias: the reply to whoever waits for it."""
        waiting = self._aliases.get(alias)
        if waiting is None or waiting.done():
            return
        if isinstance(message, tuple) and len(message) == 2:
            waiting.set_result(message[1])

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, to: Target, request: object, *, timeout: float | None = 5.0) -> object:
        """Call a generic server, as ``GenServer.call/3`` does, and return its answer.

        ``timeout`` is in seconds, None for no limit. Raises `ConnectError`, `CallTimeoutError`,
        `ProcessExitError` (no such process, it ended, or its node was lost), `EncodeError` for the
        request and `DecodeError` for the answer. When the time is over or the call is cancelled,
        the server is told that nobody waits any more, and an answer that comes yet is dropped.
        """
        return await self._client.call(to, request, timeout)

    def cast(self, to: Target, request: object) -> None:
        """Send a generic server a request without an answer, as ``GenServer.cast/2`` does."""
        self.send(to, (GEN_CAST, request))

    async def rpc(
        self,
        node: str,
        module: str,
        function: str,
        args: Sequence[object] = (),
        *,
        timeout: float | None = 5.0,
        decoder: Decoder | None = None,
    ) -> object:
        """Call ``module:function(args...)`` on another node, as ``:erpc.call/5`` does.

        It runs in a process of its own there. Elixir modules have their full name
        (``Elixir.Enum``). ``decoder`` decodes the result, by default the node's. Raises
        `RemoteError` when the function does not return, `ConnectError`, `CallTimeoutError`,
        `EncodeError`, `DecodeError`, `ProcessExitError` when the connection is lost, and
        ``ValueError`` for this node itself.
        """
        return await self._client.rpc(node, module, function, args, timeout, decoder)

    def rpc_cast(self, node: str, module: str, function: str, args: Sequence[object] = ()) -> None:
        """Have ``module:function(args...)`` called on another node, as ``:erpc.cast/4`` does.

        From any thread; what becomes of it is not told. Raises `EncodeError`, `NodeError`, and
        ``ValueError`` for this node itself.
        """
        self._client.rpc_cast(node, module, function, args)

    async def spawn(
        self,
        node: str,
        module: str,
        function: str,
        args: Sequence[object] = (),
        *,
        link: BaseProcess | None = None,
        monitor: BaseProcess | None = None,
    ) -> Pid:
        """Start a process on another node and return its pid, as ``Node.spawn/4`` does.

        ``link`` and ``monitor`` name processes of this node (the same, if both are given); the
        monitor's DOWN names the pid. Raises `RemoteError` (kind ``erpc``) when it cannot be
        started, `ConnectError`, `EncodeError`, `ProcessExitError` when the connection is lost, and
        ``ValueError`` for this node itself.
        """
        return await self._client.spawn(node, module, function, args, link, monitor)

    # --- other nodes ----------------------------------------------------------------------------

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes we are connected to."""
        return [remote.name for remote in self.remotes if remote.connection is not None]

    @property
    def remotes(self) -> list[RemoteNode]:
        """What we hold about the nodes we know, connected or not."""
        return list(self._remotes.values())

    def remote(self, name: str) -> RemoteNode:
        """What we hold about the node ``name``; made when it is first named. Any thread."""
        remote = self._remotes.get(name)
        if remote is None:
            if len(self._remotes) >= MAX_REMOTES:
                for other in self.remotes:
                    if other.idle:
                        self._remotes.pop(other.name, None)
            remote = self._remotes.setdefault(Atom(name), RemoteNode(self, Atom(name)))
        return remote

    async def connect(self, name: str, *, address: tuple[str, int] | None = None) -> None:
        """Connect to the node ``name``, unless we are connected.

        ``address`` (host and port) spares the question to its epmd. Raises `ConnectError`.
        """
        if name == self.name:
            return
        remote = self.remote(name)
        remote.address = address or remote.address
        await remote.connect()

    def disconnect(self, name: str) -> None:
        """Close the connection to ``name``, as ``Node.disconnect/1`` does; none is fine."""
        remote = self._remotes.get(name)
        if remote is not None:
            remote.close("disconnect was called")

    def keep_connected(self, name: str) -> None:
        """Connect to ``name`` and again whenever the connection is lost, until the node stops.

        Attempts are 0.5 s apart at first, 5 s later on.
        """
        self._run(self._keep_connected(name))

    async def _keep_connected(self, name: str) -> None:
        pause, complaint = RETRY_PAUSE, ""
        while True:
            try:
                connection = await self.remote(name).connect()
            except ConnectError as error:
                if str(error) != complaint:  # once, not at every attempt
                    complaint = str(error)
                    _log.warning("%s (trying again)", complaint)
                pause = min(pause * 1.5, RETRY_PAUSE_MOST)
            else:
                await connection.wait_closed()
                pause, complaint = RETRY_PAUSE, ""
            await asyncio.sleep(pause)

    async def ping(self, name: str, *, timeout: float | None = 5.0) -> bool:
        """Whether the node ``name`` answers, as ``Node.ping/1`` tells."""
        try:
            request = (Atom("is_auth"), self.name)
            answer = await self.call(("net_kernel", name), request, timeout=timeout)
        except (ConnectError, ProcessExitError, CallTimeoutError):
            return False
        return answer == "yes"

    def monitor_nodes(self, process: BaseProcess, on: bool = True) -> None:
        """Send ``process`` ``(nodeup, name)`` and ``(nodedown, name)`` from now on, or no more.

        The former comes before every message of that node, the latter after the last one.
        """
        if on:
            self._watchers_of_nodes[process] = None
        else:
            self._watchers_of_nodes.pop(process, None)

    def _node_up(self, remote: RemoteNode) -> None:
        _log.info("connected to %s", remote.name)
        self._tell_watchers((Atom("nodeup"), remote.name))

    def _node_down(self, remote: RemoteNode, connection: Connection, reason: str) -> None:
        self.guardian.unwatch(connection)
        expected = reason in ("connection_closed", "disconnect")
        level = logging.INFO if expected else logging.WARNING
        _log.log(level, "lost the connection to %s: %s", remote.name, reason)
        self._tell_watchers((Atom("nodedown"), remote.name))

    def _tell_watchers(self, message: tuple[Atom, Atom]) -> None:
        for process in list(self._watchers_of_nodes):
            try:
                process.receive(message)
            except Exception:
                _log.exception("%s failed to take %r", process, message)

    def _make_connection(
        self, remote: RemoteNode, sock: socket.socket, done: Completed
    ) -> Connection:
        # Without it every small frame waits for the acknowledgement of the one before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(
            sock,
            done.peer,
            remote,
            loop=asyncio.get_running_loop(),
            net_ticktime=self._net_ticktime,
            max_frame=self._max_frame,
            max_message=self._max_message,
            unfinished=self._unfinished,
            trimmer=self._trimmer,
        )
        self.guardian.watch(connection)
        return connection

    def _too_much_unfinished(self, connection: Connection) -> None:
        connection.close(
            f"all peers together have sent more than {self._unfinished.limit} bytes of messages "
            "that are not complete, and it has sent the most"
        )


class _Ties:
    """What ties a process that has ended to the processes of one node."""

    __slots__ = ("links", "monitors", "watchers")

    def __init__(self) -> None:
        self.watchers: list[tuple[bytes, Pid, Pid | Atom]] = []
        self.links: list[tuple[Pid, bool]] = []
        self.monitors: list[tuple[Reference, Pid | Atom]] = []


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `NodeStartError`."""
    try:
        family, address = resolve(host, port)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        forks.keep_from_children(listener)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise NodeStartError(
            f"cannot listen on {host}:{port}: {describe_error(error)}. "
            "Choose another address or port (port 0 takes a free one)"
        ) from error
    listener.setblocking(False)
    return listener
