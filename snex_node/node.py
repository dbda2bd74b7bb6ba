"""A node: its name, its processes, and the other nodes it talks to.

Source: "Distributed Erlang" in the Erlang reference manual. The node is hidden: others see it in
``Node.list(:hidden)``, and it takes no part in ``global``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Literal

from snex_node import connection as connections
from snex_node import epmd
from snex_node.connection import Connection, describe_error
from snex_node.control import (
    AliasSend,
    AltactSigSend,
    PayloadExit2,
    RegSend,
    SendSender,
    SpawnRequest,
)
from snex_node.epmd import Registrar
from snex_node.errors import (
    CallTimeoutError,
    ConnectError,
    NodeStartError,
    ProcessExitError,
    RemoteError,
)
from snex_node.etf import Decoder, EncodeError, Encoder
from snex_node.flags import Flag
from snex_node.framing import MAX_FRAME, MAX_MESSAGE
from snex_node.gen import ALIAS, GEN_CALL, GEN_CAST, From
from snex_node.guardian import Guardian
from snex_node.handshake import (
    MAX_NAME,
    Completed,
    HandshakeError,
    Identity,
    NameReceived,
    Status,
    check_name,
)
from snex_node.process import (
    NOCONNECTION,
    NOPROC,
    BaseProcess,
    Destination,
    Target,
)
from snex_node.remote import RemoteNode
from snex_node.services import NetKernel, Resolver, Rex, Spawner, import_function
from snex_node.terms import Atom, ImproperList, Pid, Reference, Term

MAX_HANDSHAKES = 64
"""Incoming connections that may be in their handshake at one time, 7 s each at the most.

A stranger who opens sockets and says nothing can hold this many, about 10 KiB each."""

MAX_REMOTES = 4096
"""Nodes remembered; beyond it those are forgotten that nothing ties us to."""

FAREWELL = 1.0
"""Seconds a stopping node waits for its peers to read what was sent last."""

EpmdMode = Literal["auto", "external", "embedded", "none"]

_log = logging.getLogger(__name__)


class Node:
    """A hidden Erlang node on the running event loop.

    ``name`` is the full name (``py@127.0.0.1``, or ``py@host`` for short names). ``cookie`` is the
    secret that all nodes of a cluster share. ``listen`` is where others may connect, None for
    nowhere (then the node can only connect itself, and epmd is not told). ``epmd`` says which epmd
    to register with: a running one or else one of our own (``auto``), only a running one
    (``external``), only one of our own (``embedded``), or none. ``net_ticktime`` is the silence,
    in seconds, after which a peer is lost. ``max_frame`` and ``max_message`` bound what a peer can
    make us hold, in bytes. ``decoder`` and ``encoder`` convert the terms of messages. ``resolver``
    finds the functions that other nodes may call here by ``:erpc``, ``:rpc`` and ``Node.spawn``:
    by default any function of any module that can be imported (whoever knows the cookie may run
    code, as everywhere in a cluster); None forbids them all.

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
        max_frame: int = MAX_FRAME,
        max_message: int = MAX_MESSAGE,
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
        self.decoder = decoder or Decoder()
        self.encoder = encoder or Encoder()
        self.setup_time = connections.HANDSHAKE_TIMEOUT
        self._cookie = cookie
        self._listen = listen
        self._epmd: EpmdMode = epmd
        self._epmd_port = epmd_port
        self._net_ticktime = net_ticktime
        self._max_frame = max_frame
        self._max_message = max_message
        self._resolver = resolver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._listener: socket.socket | None = None
        self._registrar: Registrar | None = None
        self._guardian = Guardian()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = 0
        self._processes: dict[bytes, BaseProcess] = {}
        self._names: dict[str, BaseProcess] = {}
        self._remotes: dict[str, RemoteNode] = {}
        self._aliases: dict[bytes, Callable[[object], None]] = {}
        self._watchers_of_nodes: dict[BaseProcess, None] = {}
        self._pid_numbers = itertools.count(1)
        self._ref_numbers = itertools.count(1)
        self._pid_head = b""
        self._ref_head = b""

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
        try:
            if self._listen is not None:
                self._open_listener(self._listen)
            await self._register_with_epmd()
        except BaseException:
            self._close_listener()
            self._loop = None
            raise
        self._pid_head = b"X" + _external_atom(self.name)
        self._ref_head = b"Z\x00\x03" + _external_atom(self.name) + self.creation.to_bytes(4, "big")
        self._guardian.start()
        self._client = _Client(self)
        self._spawner = Spawner(self, self._resolver)
        NetKernel(self).register("net_kernel")
        Rex(self, self._spawner).register("rex")
        if self._listener is not None:
            self._run(self._accept(self._listener))

    async def stop(self) -> None:
        """End every process with ``shutdown``, close every connection, leave epmd."""
        if self._loop is None:
            return
        self._close_listener()
        for process in list(self._processes.values()):
            process.exit(Atom("shutdown"))
        await self._finish_connections()
        for remote in list(self._remotes.values()):
            remote.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._registrar is not None:
            await self._registrar.close()
            self._registrar = None
        self._guardian.stop()
        self._loop = None

    async def _finish_connections(self) -> None:
        """What was written last is lost when we close before the peers have read it."""
        live = [r.connection for r in self._remotes.values() if r.connection is not None]
        for connection in live:
            connection.finish()
        if live:
            closed = [asyncio.ensure_future(connection.wait_closed()) for connection in live]
            await asyncio.wait(closed, timeout=FAREWELL)
            for waiting in closed:
                waiting.cancel()

    def _open_listener(self, address: tuple[str, int]) -> None:
        host, port = address
        try:
            family, _, _, _, where = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                if os.name == "posix":
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(where)
                listener.listen(128)
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            raise NodeStartError(
                f"cannot listen on {host}:{port}: {describe_error(error)}. "
                "Choose another address or port (port 0 takes a free one)"
            ) from error
        listener.setblocking(False)
        self._listener = listener
        self.port = listener.getsockname()[1]

    def _close_listener(self) -> None:
        if self._listener is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    async def _register_with_epmd(self) -> None:
        if self._epmd == "none" or self.port is None:
            self.creation = _random_creation()
            return
        info = epmd.NodeInfo(self.name.partition("@")[0], self.port)
        registrar = Registrar(info, mode=self._epmd, port=self._epmd_port)
        try:
            self.creation = await registrar.start()
        except (epmd.EpmdError, ValueError) as error:
            raise NodeStartError(str(error)) from error
        self._registrar = registrar
        if self.creation == 0:
            self.creation = _random_creation()

    # --- processes ------------------------------------------------------------------------------

    def register(self, name: str, process: BaseProcess) -> None:
        """Give ``process`` the name ``name``; ``ValueError`` when it is taken."""
        if not process.alive:
            raise ValueError(f"{process!r} has ended and cannot be registered")
        if self._names.setdefault(Atom(name), process) is not process:
            raise ValueError(f"the name {name} is taken by {self._names[name]!r}")
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

    def make_ref(self) -> Reference:
        """A new reference, unique in the cluster."""
        number = next(self._ref_numbers)
        # 18, 32 and 32 bits: the first word changes fastest and stays below 2^18, which is what
        # tools that know only the old references read.
        words = (number & 0x3FFFF, (number >> 18) & 0xFFFFFFFF, (number >> 50) & 0xFFFFFFFF)
        return Reference.from_external(self._ref_head + struct.pack(">III", *words))

    def _add_process(self, process: BaseProcess) -> Pid:
        if self._loop is None:
            raise NodeStartError(f"{self.name} is not running: start it before its processes")
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
        encoded = _encode_reason(self.encoder, reason)
        for node, ties in by_node.items():
            if node == self.name:
                self._break_local_ties(process, ties, reason)
            else:
                self.remote(node).process_exited(
                    process, encoded, ties.watchers, ties.links, ties.monitors
                )

    def _break_local_ties(self, process: BaseProcess, ties: _Ties, reason: object) -> None:
        for pid, _ in ties.links:
            other = self._processes.get(pid.external)
            if other is not None and other._links and other._links.pop(process.pid, 0) is None:
                other._exit_received(process.pid, reason, linked=True)
        for ref, watcher, _ in ties.watchers:
            other = self._processes.get(watcher.external)
            if other is not None:
                other._down_received(Reference.from_external(ref), reason)
        for reference, target in ties.monitors:
            watched = self._find(target)
            if watched is not None and watched._watchers:
                watched._watchers.pop(reference.external, None)

    def _find(self, target: Pid | str) -> BaseProcess | None:
        if isinstance(target, Pid):
            return self._processes.get(target.external)
        return self._names.get(target)

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
        watched = self._find(there)
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
        watched = self._find(there)
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
            assert process._links is not None
            del process._links[pid]
            self._call_soon(lambda: process._exit_received(pid, NOPROC, linked=True))
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
            self._call_soon(lambda: process._exit_received(sender, reason, linked=False))

    # --- messages -------------------------------------------------------------------------------

    def send(self, to: Destination, message: object, *, sender: Pid | None = None) -> None:
        """Send ``message`` to a process, from any thread.

        Messages with the same ``sender`` (a pid of this node; by default one that stands for the
        node) to one process arrive in the order in which they were sent. Where there is no
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
                self._deliver(self._find(to[0] if isinstance(to, tuple) else to), message)
            return
        sender = sender or self._client.pid
        payload = self.encoder.encode(message)
        remote = self.remote(node)
        if isinstance(to, Pid):
            remote.send(SendSender(sender, to), payload, sender)
        elif isinstance(to, Reference):
            remote.send(self._alias_message(remote, sender, to), payload, sender)
        else:
            remote.send(RegSend(sender, Atom(to[0])), payload, sender)

    def reply(self, to: From, reply: object, *, sender: Pid | None = None) -> None:
        """Answer a call, from any thread. Raises `EncodeError`."""
        self.reply_encoded(to, self.encoder.encode(reply), sender=sender)

    def reply_encoded(self, to: From, reply: bytes, *, sender: Pid | None = None) -> None:
        """Answer a call with a term that is encoded already (a bare term)."""
        sender = sender or self._client.pid
        payload = b"h\x02" + to.tag + reply
        node = to.pid.node
        if node == self.name:
            message = self.decoder.decode(payload)[0]
            if to.alias is not None:
                self._call_soon(self._alias_delivered, to.alias, message)
            else:
                self._deliver(self._processes.get(to.pid.external), message)
            return
        remote = self.remote(node)
        if remote.connection is None:
            return  # who called saw the connection go, and waits no more
        if to.alias is None:
            remote.send(SendSender(sender, to.pid), payload, sender)
        else:
            alias = Reference.from_external(to.alias)
            remote.send(self._alias_message(remote, sender, alias), payload, sender)

    def _alias_message(
        self, remote: RemoteNode, sender: Pid, alias: Reference
    ) -> AliasSend | AltactSigSend:
        connection = remote.connection
        if connection is not None and connection.peer.flags & Flag.ALTACT_SIG:
            return AltactSigSend(AltactSigSend.ALIAS, sender, alias)
        return AliasSend(sender, alias)

    def _deliver(self, process: BaseProcess | None, message: object) -> None:
        """To a process of this node: in a turn of the loop of its own, never inside of a send."""
        if process is not None:
            self._call_soon(self._receive, process, message)

    def _receive(self, process: BaseProcess, message: object) -> None:
        if process.alive:
            process.receive(message)

    def _alias_received(self, alias: bytes, data: bytes, offset: int) -> None:
        waiting = self._aliases.get(alias)
        if waiting is not None:
            waiting(self.decoder.decode(data, offset)[0])

    def _alias_delivered(self, alias: bytes, message: object) -> None:
        waiting = self._aliases.get(alias)
        if waiting is not None:
            waiting(message)

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        if threading.get_ident() == self._thread:
            self._loop.call_soon(function, *args)
        else:
            self._loop.call_soon_threadsafe(function, *args)

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, to: Target, request: object, *, timeout: float | None = 5.0) -> object:
        """Call a generic server, as ``GenServer.call/3`` does, and return its answer.

        ``timeout`` is in seconds, None for no limit. Raises `ConnectError`, `CallTimeoutError`,
        `ProcessExitError` (no such process, it ended, or its node was lost) and `EncodeError`. When the
        time is over or the call is cancelled, the server is told that nobody waits any more.
        """
        return await self._within(timeout, self._call(to, request), f"{to!r} did not answer")

    async def _call(self, to: Target, request: object) -> object:
        node, _ = self._place(to)
        if node != self.name:
            await self.remote(node).connect()
        ref = self.make_ref()
        tag = ImproperList([ALIAS], ref)
        message = (GEN_CALL, (self._client.pid, tag), request)
        answer = asyncio.get_running_loop().create_future()
        self._aliases[ref.external] = lambda reply: _answer(answer, reply)
        self._client.expect_down(ref, answer, f"{to!r}")
        try:
            if self._client._monitors is None:
                self._client._monitors = {}
            self._monitor(self._client, to, ref)
            self.send(to, message, sender=self._client.pid)
            return await answer
        finally:
            del self._aliases[ref.external]
            self._client.forget_down(ref)
            self._client.demonitor(ref)

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
    ) -> object:
        """Call ``module:function(args...)`` on another node, as ``:erpc.call/5`` does.

        It runs in a process of its own there. Elixir modules have their full name
        (``Elixir.Enum``). Raises `RemoteError` when the function does not return, `ConnectError`,
        `CallTimeoutError`, `EncodeError`, and `ProcessExitError` when the connection is lost.
        """
        what = f"{module}.{function} on {node} did not return"
        return await self._within(timeout, self._rpc(node, module, function, args), what)

    async def _rpc(self, node: str, module: str, function: str, args: Sequence[object]) -> object:
        remote = self.remote(node)
        await remote.connect()
        result = self.make_ref()
        erpc_args = [result, Atom(module), Atom(function), list(args)]
        request = self.make_ref()
        ended = asyncio.get_running_loop().create_future()
        self._client.expect_down(request, ended, f"{module}.{function} on {node}", exits=False)
        pid: object = None
        try:
            leader = await self._group_leader(remote)
            pid = await self._request_spawn(
                remote, ("erpc", "execute_call"), erpc_args, [Atom("monitor")], request, leader
            )
            if not isinstance(pid, Pid):
                raise _spawn_error(node, pid)
            return _erpc_result(await ended, result, node)
        finally:
            self._client.forget_down(request)
            if isinstance(pid, Pid) and not ended.done():
                remote.demonitor(self._client, pid, request)
            remote.forget_down(request)

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
        started, `ConnectError`, `EncodeError`.
        """
        owner = link or monitor or self._client
        if link is not None and monitor is not None and link is not monitor:
            raise ValueError("one process can link to and monitor what it spawns, not two")
        remote = self.remote(node)
        await remote.connect()
        request = self.make_ref()
        options: list[object] = []
        if link is not None:
            options.append(Atom("link"))
        if monitor is not None:
            options.append(Atom("monitor"))
            remote.expect_down(owner, request)
        leader = await self._group_leader(remote)
        pid = await self._request_spawn(
            remote, (module, function), list(args), options, request, leader, owner
        )
        if not isinstance(pid, Pid):
            remote.forget_down(request)
            raise _spawn_error(node, pid)
        if link is not None:
            remote.add_link(link, pid)
        if monitor is not None:
            if monitor._monitors is None:
                monitor._monitors = {}
            monitor._monitors[request] = pid
        return pid

    async def _request_spawn(  # noqa: PLR0917 - the fields of the message
        self,
        remote: RemoteNode,
        function: tuple[str, str],
        args: list[object],
        options: list[object],
        request: Reference,
        leader: Pid,
        owner: BaseProcess | None = None,
    ) -> object:
        owner = owner or self._client
        payload = self.encoder.encode(args)
        mfa = (Atom(function[0]), Atom(function[1]), len(args))
        answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        remote.spawns[request.external] = answered
        if Atom("monitor") in options:
            remote.expect_down(owner, request)
        message = SpawnRequest(request, owner.pid, leader, mfa, options)
        try:
            remote.send(message, payload, owner.pid)
            return await answered
        finally:
            remote.spawns.pop(request.external, None)

    async def _group_leader(self, remote: RemoteNode) -> Pid:
        """A process there for what we start there to print to; else ours, which drops it."""
        if remote.group_leader is None:
            remote.group_leader = self._client.pid
            with_user = [Atom("user")]
            try:
                found = await asyncio.wait_for(
                    self._rpc(remote.name, "erlang", "whereis", with_user), self.setup_time
                )
            except (RemoteError, ProcessExitError, asyncio.TimeoutError):
                found = None
            if isinstance(found, Pid):
                remote.group_leader = found
        return remote.group_leader

    async def _within(
        self, timeout: float | None, work: Coroutine[object, object, object], what: str
    ) -> object:
        try:
            return await asyncio.wait_for(work, timeout)
        except asyncio.TimeoutError as error:
            if isinstance(error, CallTimeoutError):
                raise
            raise CallTimeoutError(f"{what} within {timeout} s") from None

    # --- other nodes ----------------------------------------------------------------------------

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes we are connected to."""
        return [name for name, remote in self._remotes.items() if remote.connection is not None]

    def remote(self, name: str) -> RemoteNode:
        """What we hold about the node ``name``; made when it is first named. Any thread."""
        remote = self._remotes.get(name)
        if remote is None:
            if len(self._remotes) >= MAX_REMOTES:
                for known, other in list(self._remotes.items()):
                    if other.idle:
                        self._remotes.pop(known, None)
            remote = self._remotes.setdefault(Atom(name), RemoteNode(self, Atom(name)))
        return remote

    async def connect(self, name: str, *, address: tuple[str, int] | None = None) -> None:
        """Connect to the node ``name``, unless we are connected.

        ``address`` (host and port) spares the question to its epmd. Raises `ConnectError`.
        """
        remote = self.remote(name)
        remote.address = address or remote.address
        await remote.connect()

    def disconnect(self, name: str) -> None:
        """Close the connection to ``name``, as ``Node.disconnect/1`` does; none is fine."""
        remote = self._remotes.get(name)
        if remote is not None:
            remote.close()

    def keep_connected(self, name: str) -> None:
        """Connect to ``name`` and again whenever the connection is lost, until the node stops.

        Attempts are 0.5 s apart at first, 5 s later on.
        """
        self._run(self._keep_connected(self.remote(name)))

    async def _keep_connected(self, remote: RemoteNode) -> None:
        pause, complaint = 0.5, ""
        while True:
            try:
                connection = await remote.connect()
            except ConnectError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    _log.warning("%s (trying again)", complaint)
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 5.0)
            else:
                pause, complaint = 0.5, ""
                await connection.wait_closed()

    async def ping(self, name: str, *, timeout: float | None = 5.0) -> bool:
        """Whether the node ``name`` answers, as ``Node.ping/1`` tells."""
        try:
            request = (Atom("is_auth"), self.name)
            answer = await self.call(("net_kernel", name), request, timeout=timeout)
        except (ConnectError, ProcessExitError, CallTimeoutError):
            return False
        return answer == "yes"

    def monitor_nodes(self, process: BaseProcess, on: bool = True) -> None:
        """Send ``process`` ``(nodeup, name)`` and ``(nodedown, name)`` from now on, or no more."""
        if on:
            self._watchers_of_nodes[process] = None
        else:
            self._watchers_of_nodes.pop(process, None)

    def _node_up(self, remote: RemoteNode) -> None:
        _log.info("connected to %s", remote.name)
        for process in list(self._watchers_of_nodes):
            process.receive((Atom("nodeup"), remote.name))

    def _node_down(self, remote: RemoteNode, connection: Connection, reason: str) -> None:
        self._guardian.unwatch(connection)
        expected = reason in ("connection_closed", "disconnect")
        level = logging.INFO if expected else logging.WARNING
        _log.log(level, "lost the connection to %s: %s", remote.name, reason)
        for process in list(self._watchers_of_nodes):
            process.receive((Atom("nodedown"), remote.name))

    # --- making connections ---------------------------------------------------------------------

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _identity(self) -> Identity:
        return Identity(self.name, self.creation)

    async def _dial(self, remote: RemoteNode) -> None:
        """Make a connection to ``remote``. Raises `ConnectError`."""
        name = remote.name
        self._check_kind(name)
        host, port = remote.address or await self._look_up(name)
        sock = await self._open(name, host, port)
        try:
            done = await connections.initiate(sock, self._identity(), self._cookie, name)
        except (HandshakeError, OSError) as error:
            sock.close()
            raise _connect_error(name, error) from error
        except BaseException:
            sock.close()
            raise
        self._begin(remote, sock, done)

    def _check_kind(self, name: str) -> None:
        """Short and long names do not mix: the other side could not connect to us by our name."""
        alive, _, host = name.partition("@")
        if not alive or not host:
            raise ConnectError(name, "name", f"{name!r} is no node name: it looks like name@host")
        long_here = "." in self.name.partition("@")[2]
        if long_here != ("." in host):
            here, there = ("long", "short") if long_here else ("short", "long")
            raise ConnectError(
                name,
                "names",
                f"{name} has a {there} name and {self.name} a {here} one; nodes with short and "
                f"long names cannot connect. Start one of them with a {here} or {there} name as "
                "the other (--sname, --name)",
            )

    async def _look_up(self, name: str) -> tuple[str, int]:
        alive, _, host = name.partition("@")
        try:
            info = await epmd.lookup(
                alive, host, port=self._epmd_port, timeout=connections.HANDSHAKE_TIMEOUT
            )
        except epmd.HostNotFoundError as error:
            raise ConnectError(name, "resolve", str(error)) from error
        except (epmd.EpmdError, ValueError) as error:
            raise ConnectError(name, "unreachable", str(error)) from error
        if info is None:
            raise ConnectError(
                name,
                "unknown",
                f"the epmd on {host} knows no node {alive}: it is not running, or it is "
                "registered with another epmd (ERL_EPMD_PORT)",
            )
        return host, info.port

    async def _open(self, name: str, host: str, port: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectError(
                name, "resolve", f"the host {host} does not resolve: {describe_error(error)}"
            ) from error
        failure: Exception | None = None
        for family, _, _, _, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await asyncio.wait_for(
                    loop.sock_connect(sock, address), connections.HANDSHAKE_TIMEOUT
                )
            except (OSError, asyncio.TimeoutError) as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        why = describe_error(failure) if isinstance(failure, OSError) else "no answer"
        raise ConnectError(
            name, "unreachable", f"{name} does not accept connections on {host}:{port}: {why}"
        )

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: the listening socket itself is fine.
                _log.warning("cannot accept connections: %s", describe_error(error))
                await asyncio.sleep(0.5)
                continue
            if self._handshakes >= MAX_HANDSHAKES:
                _log.warning(
                    "%s: refused, %d connections are in their handshake", address, MAX_HANDSHAKES
                )
                sock.close()
                continue
            self._handshakes += 1
            self._run(self._welcome(sock, f"{address[0]}:{address[1]}"))

    async def _welcome(self, sock: socket.socket, address: str) -> None:
        remote: RemoteNode | None = None

        def decide(event: NameReceived) -> tuple[Status, str | None, int | None]:
            nonlocal remote
            status, name, creation = self._decide(event)
            remote = self.remote(name or event.name)
            remote.accept_began()
            if status is Status.OK_SIMULTANEOUS:
                remote.give_way()
            return status, name, creation

        try:
            sock.setblocking(False)
            done = await connections.accept(sock, self._identity(), self._cookie, decide)
        except BaseException as error:
            sock.close()
            if remote is not None:
                remote.accept_ended(error)
            if not isinstance(error, (HandshakeError, OSError)):
                raise
            if not (isinstance(error, HandshakeError) and error.reason in ("nok", "alive")):
                who = f"{remote.name} ({address})" if remote else address
                _log.warning("%s: refused the connection: %s", who, error)
        else:
            assert remote is not None
            remote.accept_ended(None)
            self._begin(remote, sock, done)
        finally:
            self._handshakes -= 1

    def _decide(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
        """What the protocol asks us to say to a name: see "crossing connections" there."""
        if event.wants_name:
            name = f"{secrets.token_hex(6)}@{event.name}"[:MAX_NAME]
            return Status.NAMED, name, _random_creation()
        remote = self.remote(event.name)
        if remote.connection is not None:
            return Status.ALIVE, None, None
        if remote.connecting:
            wins = self.name > event.name
            return (Status.NOK if wins else Status.OK_SIMULTANEOUS), None, None
        return Status.OK, None, None

    def _begin(self, remote: RemoteNode, sock: socket.socket, done: Completed) -> None:
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
        )
        remote.connected(connection)
        self._guardian.watch(connection)
        connection.start(done.trailing)

    def _spawn_requested(
        self, remote: RemoteNode, request: SpawnRequest, data: bytes, offset: int
    ) -> None:
        self._spawner.spawn(remote, request, data, offset)


class _Client(BaseProcess):
    """The process in whose name the node itself calls, spawns, and sends."""

    __slots__ = ("_waiting",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.trap_exit = True
        self._waiting: dict[Reference, tuple[asyncio.Future[object], str, bool]] = {}

    def expect_down(
        self, ref: Reference, future: asyncio.Future[object], what: str, *, exits: bool = True
    ) -> None:
        """A DOWN for ``ref`` fails ``future`` with `ProcessExitError`, or gives it the reason."""
        self._waiting[ref] = (future, what, exits)

    def forget_down(self, ref: Reference) -> None:
        """Nobody waits for ``ref`` any more."""
        self._waiting.pop(ref, None)

    def receive(self, message: object) -> None:
        """Answers of servers that do not know aliases come here; all else is nobody's."""
        if isinstance(message, tuple) and len(message) == 2:
            tag = message[0]
            if isinstance(tag, ImproperList) and isinstance(tag.tail, Reference):
                self.node._alias_delivered(tag.tail.external, message)

    def _down_received(self, ref: Reference, reason: object) -> None:
        if self._monitors:
            self._monitors.pop(ref, None)
        future, what, exits = self._waiting.pop(ref, (None, "", False))
        if future is None or future.done():
            return
        if exits:
            future.set_exception(ProcessExitError(reason, what))
        else:
            future.set_result(reason)


class _Ties:
    """What ties a process that has ended to the processes of one node."""

    __slots__ = ("links", "monitors", "watchers")

    def __init__(self) -> None:
        self.watchers: list[tuple[bytes, Pid, Pid | Atom]] = []
        self.links: list[tuple[Pid, bool]] = []
        self.monitors: list[tuple[Reference, Pid | Atom]] = []


def _external_atom(name: str) -> bytes:
    return b"w" + len(name).to_bytes(1, "big") + name.encode("ascii")


def _random_creation() -> int:
    # 0 is reserved, and the first few are what 16-bit creations of old nodes turn into.
    return secrets.randbelow(2**32 - 16) + 16


def _encode_reason(encoder: Encoder, reason: object) -> bytes:
    try:
        return encoder.encode(reason)
    except EncodeError:
        return encoder.encode(repr(reason)[:1000])


def _answer(future: asyncio.Future[object], message: object) -> None:
    if not future.done() and isinstance(message, tuple) and len(message) == 2:
        future.set_result(message[1])


def _connect_error(name: str, error: HandshakeError | OSError) -> ConnectError:
    if isinstance(error, HandshakeError):
        return ConnectError(name, error.reason, str(error))
    return ConnectError(name, "closed", f"{name} broke off the handshake: {describe_error(error)}")


def _spawn_error(node: str, reason: object) -> RemoteError | ProcessExitError:
    if reason == NOCONNECTION:
        return ProcessExitError(NOCONNECTION, f"the connection to {node}")
    return RemoteError("erpc", reason)


def _erpc_result(reason: object, result: Reference, node: str) -> object:
    """What ``erpc:execute_call`` ended with, as a value or an exception."""
    if not (isinstance(reason, tuple) and len(reason) >= 3 and _is_ref(reason[0], result)):
        if reason == NOCONNECTION:
            raise ProcessExitError(NOCONNECTION, f"the connection to {node}")
        raise RemoteError("exit", reason)
    kind = str(reason[1])
    if kind == "return":
        return reason[2]
    raise RemoteError(kind, reason[2], reason[3] if len(reason) > 3 else ())


def _is_ref(term: object, ref: Reference) -> bool:
    """Whether ``term``, decoded as a reference or kept as an opaque `Term`, is ``ref``."""
    return term == ref or (isinstance(term, Term) and bytes(term) == ref.external)
