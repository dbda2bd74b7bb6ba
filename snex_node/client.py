"""Calls of this node to others: ``GenServer.call``, ``:erpc.call`` and ``Node.spawn``, from Python.

Source: OTP's ``gen`` and ``erpc`` modules. A call monitors what it calls and asks for an answer to
an alias; an alias is forgotten when its call is over, so that a late answer is dropped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from snex_node.cluster.remote import RemoteNode
from snex_node.errors import CallTimeoutError, ProcessExitError, RemoteError
from snex_node.processes.host import Host
from snex_node.processes.mailbox import Mailbox
from snex_node.processes.process import BaseProcess
from snex_node.processes.reasons import Undecodable
from snex_node.ties import NOCONNECTION, Target
from snex_node.wire.control import SpawnRequest
from snex_node.wire.describe import inspect
from snex_node.wire.etf import Decoder
from snex_node.wire.gen import ALIAS, GEN_CALL, alias_in, call_head
from snex_node.wire.terms import Atom, ImproperList, Pid, Reference, Term

GROUP_LEADER_TIMEOUT: Final = 5.0
"""Seconds another node may take to say where what we start there is to print."""

_T = TypeVar("_T")
# Tags, pids and references are read as such, whatever the node's decoder makes of them.
_typed: Final = Decoder()


class _Limit:
    """The time a call may take, all its waits together."""

    def __init__(self, timeout: float | None, what: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = None if timeout is None else self._loop.time() + timeout
        self._message = f"{what} within {timeout} s"

    async def wait(self, future: asyncio.Future[_T]) -> _T:
        """What ``future`` brings; `CallTimeoutError` when the time is over first.

        Not `asyncio.wait_for`: until Python 3.12 it may swallow a cancellation.
        """
        if self._end is None:
            return await future
        timer = self._loop.call_at(self._end, self._expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _expire(self, future: asyncio.Future[_T]) -> None:
        if not future.done():
            future.set_exception(CallTimeoutError(self._message))


class Client(BaseProcess):
    """The process in whose name the node itself calls, spawns, and sends.

    It lives as long as the node: exit signals do nothing to it.
    """

    __slots__ = ("_decoders", "_on_down")

    def __init__(self, node: Host) -> None:
        super().__init__(node)
        # What to do when a monitor fires.
        self._on_down: dict[Reference, Callable[[object], None]] = {}
        # What decodes the reason then, which is the result of an erpc call.
        self._decoders: dict[Reference, Decoder] = {}

    @property
    def waiting(self) -> int:
        """How many calls are under way."""
        return len(self._on_down)

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, to: Target, request: object, timeout: float | None) -> object:
        """See `Node.call`."""
        node = self.node
        limit = _Limit(timeout, f"{inspect(to)} did not answer")
        there, name = node.signals.ties.place(to)
        local = there == node.name
        payload = b""
        if not local:
            remote = node.cluster.remote(there)
            payload = remote.encoder.encode(request)
            await limit.wait(remote.connect())
        ref = node.make_ref()
        answer = node.router.expect(ref)
        self._on_down[ref] = lambda reason: _fail(answer, _exit_error(reason, to))
        node.signals.monitor(self, to, ref)
        try:
            if local:
                node.send(to, (GEN_CALL, (self.pid, ImproperList([ALIAS], ref)), request))
            else:
                target = name if isinstance(name, Pid) else (name, there)
                node.router.send_encoded(target, call_head(self.pid, ref) + payload, None)
            return await limit.wait(answer)
        finally:
            node.router.forget(ref)
            self._on_down.pop(ref, None)
            self.demonitor(ref)

    async def rpc(
        self,
        name: str,
        module: str,
        function: str,
        args: Sequence[object],
        timeout: float | None,
        decoder: Decoder | None = None,
    ) -> object:
        """See `Node.rpc`."""
        limit = _Limit(timeout, f"{module}.{function} on {name} did not return")
        remote = self._other(name)
        result = self.node.make_ref()
        erpc_args = [result, Atom(module), Atom(function), list(args)]
        payload = remote.encoder.encode(erpc_args)
        await limit.wait(remote.connect())
        leader = await limit.wait(self._group_leader(remote))
        return await self._erpc(remote, result, payload, leader, limit, decoder)

    def rpc_cast(self, name: str, module: str, function: str, args: Sequence[object]) -> None:
        """See `Node.rpc_cast`."""
        remote = self._other(name)
        payload = remote.encoder.encode([Atom(module), Atom(function), list(args)])
        leader = self.pid
        known = remote.group_leader
        if known is not None and known.done() and not known.cancelled():
            leader = known.result()
        mfa = (Atom("erpc"), Atom("execute_cast"), 3)
        request = SpawnRequest(self.node.make_ref(), self.pid, leader, mfa, [])
        remote.send(request, payload, self.pid)

    async def _erpc(
        self,
        remote: RemoteNode,
        result: Reference,
        args: bytes,
        leader: Pid,
        limit: _Limit,
        decoder: Decoder | None = None,
    ) -> object:
        """Have ``erpc:execute_call/4`` called: the exit reason of its process is the result."""
        if not self.alive:  # the node stops: nobody would be told how it ends
            raise ProcessExitError(NOCONNECTION, f"the connection to {remote.name}")
        ref = self.node.make_ref()
        ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._on_down[ref] = lambda reason: _give(ended, reason)
        if decoder is not None:
            self._decoders[ref] = decoder
        mfa = ("erpc", "execute_call", 4)
        spawns = self.node.signals.spawns
        requested = spawns.request(remote, self, ref, mfa, args, leader, monitor=True)
        try:
            pid = await limit.wait(requested.answer)
            if not isinstance(pid, Pid):
                raise _spawn_error(remote.name, pid)
            return _erpc_result(await limit.wait(ended), result, remote.name)
        finally:
            requested.abandon()
            self._on_down.pop(ref, None)
            self._decoders.pop(ref, None)
            self.demonitor(ref)

    async def spawn(
        self,
        name: str,
        module: str,
        function: str,
        args: Sequence[object],
        link: Mailbox | None,
        monitor: Mailbox | None,
    ) -> Pid:
        """See `Node.spawn`."""
        if link is not None and monitor is not None and link is not monitor:
            raise ValueError("one process can link to and monitor what it spawns, not two")
        remote = self._other(name)
        payload = remote.encoder.encode(list(args))
        await remote.connect()
        leader = await self._group_leader(remote)
        owner = link if link is not None else monitor
        requested = self.node.signals.spawns.request(
            remote,
            self if owner is None else owner,
            self.node.make_ref(),
            (module, function, len(args)),
            payload,
            leader,
            link=link is not None,
            monitor=monitor is not None,
        )
        try:
            pid = await requested.answer
        except asyncio.CancelledError:
            requested.abandon()
            raise
        if not isinstance(pid, Pid):
            raise _spawn_error(name, pid)
        return pid

    def _other(self, name: str) -> RemoteNode:
        if name == self.node.name:
            raise ValueError(f"{name} is this node: call the function itself")
        return self.node.cluster.remote(name)

    def _group_leader(self, remote: RemoteNode) -> asyncio.Future[Pid]:
        """A process there for what we start there to print to, asked for once per connection.

        OTP would print here. This node has no terminal of its own, and a BEAM leaves crash reports
        to the node of the group leader: they would be lost.
        """
        if remote.group_leader is None:
            remote.group_leader = self.node.turns.run(self._find_group_leader(remote))
        waiter: asyncio.Future[Pid] = asyncio.get_running_loop().create_future()

        def found(task: asyncio.Task[Pid]) -> None:
            if not waiter.done():
                waiter.set_result(self.pid if task.cancelled() else task.result())

        remote.group_leader.add_done_callback(found)
        return waiter

    async def _find_group_leader(self, remote: RemoteNode) -> Pid:
        """The process registered as ``user`` there; ourselves if there is none."""
        result = self.node.make_ref()
        mfa = [result, Atom("erlang"), Atom("whereis"), [Atom("user")]]
        limit = _Limit(GROUP_LEADER_TIMEOUT, f"{remote.name} did not say where its user is")
        try:
            args = self.node.encoder.encode(mfa)
            found = await self._erpc(remote, result, args, self.pid, limit)
        except (RemoteError, ProcessExitError, CallTimeoutError):
            return self.pid
        if isinstance(found, Term):  # the node's decoder leaves pids as they are
            found = _typed.decode(found)[0]
        return found if isinstance(found, Pid) else self.pid

    @property
    def line(self) -> object:
        """The task or thread that calls or sends: a large message of one holds up no other."""
        if not self.node.turns.here:
            return threading.get_ident()
        return asyncio.current_task() or self.pid

    # --- what comes in --------------------------------------------------------------------------

    def message_received(self, message: object) -> None:
        """Take an answer of a process here that comes to the pid instead of the alias."""
        if isinstance(message, tuple) and len(message) == 2:
            alias = alias_in(message[0])
            if alias is not None:
                self.node.router.alias_delivered(alias.external, message)

    def external_received(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take an answer that comes to the pid instead of the alias, or a request to print."""
        if data.startswith(b"h\x02l", offset):
            tag, _ = _typed.decode(data, offset + 2)
            alias = alias_in(tag)
            if alias is not None:
                self.node.router.alias_received(alias.external, data, offset)
        elif data.startswith(b"h\x04w\x0aio_request", offset):
            self._io_request(_typed.decode(data, offset)[0])

    def _io_request(self, message: object) -> None:
        """What prints to us, because its node has no ``user``, must not wait for ever."""
        if isinstance(message, tuple) and len(message) == 4 and isinstance(message[1], Pid):
            _, sender, tag, request = message
            puts = isinstance(request, tuple) and request[:1] == ("put_chars",)
            answer = Atom("ok") if puts else (Atom("error"), Atom("enotsup"))
            self.node.send(sender, (Atom("io_reply"), tag, answer), sender=self.pid)

    def reason_decoder(self, ref: Reference) -> Decoder:
        """The decoder that a call asked for, else the node's."""
        return self._decoders.get(ref) or self.node.decoder

    def exited(self, reason: object) -> None:
        """The node stops, and its connections with it."""
        waiting, self._on_down = self._on_down, {}
        for on_down in waiting.values():
            on_down(NOCONNECTION)

    def exit_received(self, sender: Pid, reason: object, *, linked: bool) -> None:
        """Nothing: it lives as long as the node."""

    def down_received(self, ref: Reference, target: Target, reason: object) -> None:
        """What a call of ours waits for has ended."""
        on_down = self._on_down.pop(ref, None)
        if on_down is not None:
            on_down(reason)


def _give(future: asyncio.Future[object], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _exit_error(reason: object, to: Target) -> Exception:
    return ProcessExitError(reason, inspect(to))


def _spawn_error(node: str, reason: object) -> RemoteError | ProcessExitError:
    if reason == NOCONNECTION:
        return ProcessExitError(NOCONNECTION, f"the connection to {node}")
    return RemoteError("erpc", reason)


def _erpc_result(reason: object, result: Reference, node: str) -> object:
    """What ``erpc:execute_call`` ended with, as a value or an exception."""
    if isinstance(reason, Undecodable):
        raise reason.error
    if not isinstance(reason, tuple) or len(reason) < 3 or not _is_ref(reason[0], result):
        if reason == NOCONNECTION:
            raise ProcessExitError(NOCONNECTION, f"the connection to {node}")
        raise RemoteError("exit", reason)
    _, kind, value, *stack = reason
    if kind == "return":
        return value
    if not stack and isinstance(value, tuple) and value[:1] == ("erpc",) and len(value) == 2:
        raise RemoteError("erpc", value[1])
    raise RemoteError(str(kind), value, stack[0] if stack else ())


def _is_ref(term: object, ref: Reference) -> bool:
    """Whether ``term``, decoded as a reference or kept as an opaque `Term`, is ``ref``."""
    return term == ref or (isinstance(term, Term) and bytes(term) == ref.external)
