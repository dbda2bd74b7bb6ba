"""One other node: the connection to it, what waits for one, and what ties our processes to its.

Source: "Protocol between Connected Nodes" in the ERTS user's guide, and the signal rules under
"Processes" in the Erlang reference manual.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from snex_node import control
from snex_node.connection import Connection
from snex_node.control import (
    AliasSend,
    AltactSigSend,
    ControlMessage,
    DemonitorP,
    Exit,
    Exit2,
    GroupLeader,
    Link,
    MonitorP,
    MonitorPExit,
    NodeLink,
    PayloadExit,
    PayloadExit2,
    PayloadMonitorPExit,
    RegSend,
    Send,
    SendSender,
    SpawnReply,
    SpawnRequest,
    Unlink,
    UnlinkId,
    UnlinkIdAck,
)
from snex_node.errors import ConnectError, NodeError
from snex_node.etf import DecodeError
from snex_node.flags import Flag
from snex_node.framing import Message
from snex_node.process import NOCONNECTION, NOPROC, BaseProcess
from snex_node.terms import Atom, Pid, Reference, Term

if TYPE_CHECKING:
    from snex_node.node import Node

MAX_QUEUED = 64 * 1024 * 1024
"""Bytes of messages that may wait for a connection that is being made.

One attempt ends within seconds; this bounds what fast senders pile up meanwhile."""

_log = logging.getLogger(__name__)


class RemoteNode:
    """A node we talk to, or want to. It stays when the connection goes and serves the next one."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.connection: Connection | None = None
        # Where it listens, when that is known without asking its epmd.
        self.address: tuple[str, int] | None = None
        # Spawn requests that are not answered yet, by the external form of their reference.
        self.spawns: dict[bytes, asyncio.Future[object]] = {}
        # A process there to which what we spawn there prints; asked for once per connection.
        self.group_leader: Pid | None = None
        self._lock = threading.Lock()
        self._queue: list[tuple[ControlMessage, bytes, object]] = []
        self._queued = 0
        self._dialling: asyncio.Task[None] | None = None
        self._accepting = 0
        self._expecting: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[Connection]] = []
        self._links: dict[tuple[BaseProcess, Pid], None] = {}
        self._monitors: dict[bytes, tuple[BaseProcess, Reference]] = {}
        self._watchers: dict[bytes, BaseProcess] = {}
        self._unlink_id = 0

    def __repr__(self) -> str:
        return f"<RemoteNode {self.name}{' connected' if self.connection else ''}>"

    # --- sending, from any thread ---------------------------------------------------------------

    def send(self, message: ControlMessage, payload: bytes = b"", sender: object = None) -> None:
        """Send a signal, over a connection that is made for it where there is none.

        Raises `NodeError` when too much waits for a connection already.
        """
        connection = self.connection
        if connection is not None:
            self._send_on(connection, message, payload, sender)
            return
        with self._lock:
            if self.connection is not None:
                self._send_on(self.connection, message, payload, sender)
                return
            if self._queued > MAX_QUEUED:
                raise NodeError(
                    f"{self._queued} bytes wait for a connection to {self.name} already"
                )
            self._queue.append((message, payload, sender))
            self._queued += len(payload) + 64
        self.node._call_soon(self._dial)

    def _send_on(
        self, connection: Connection, message: ControlMessage, payload: bytes, sender: object
    ) -> None:
        if not connection.peer.flags & Flag.EXIT_PAYLOAD:
            message, payload = _without_exit_payload(message, payload)
        connection.send(control.encode(message), payload, sender)

    # --- connecting -----------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if this were forgotten."""
        return not (
            self.connection is not None
            or self._dialling is not None
            or self._accepting
            or self._expecting is not None
            or self._waiters
            or self._queue
        )

    @property
    def connecting(self) -> bool:
        """Whether an attempt of ours is under way."""
        return self._dialling is not None

    async def connect(self) -> Connection:
        """The connection, made now where there is none. Raises `ConnectError`."""
        if self.connection is not None:
            return self.connection
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._dial()
        return await waiter

    def _dial(self) -> None:
        if self.connection is None and self._dialling is None and self._expecting is None:
            self._dialling = asyncio.get_running_loop().create_task(self._try())

    async def _try(self) -> None:
        try:
            await self.node._dial(self)
        except ConnectError as error:
            self._dialling = None
            if error.reason == "nok" and self.connection is None:
                # Both dialled at once and its name is the greater: its connection comes in now.
                self._expect()
            else:
                self.attempt_failed(error)
        except Exception as error:
            self._dialling = None
            _log.exception("connecting to %s failed", self.name)
            self.attempt_failed(ConnectError(self.name, "internal", str(error)))
        finally:
            self._dialling = None

    def _expect(self) -> None:
        loop = asyncio.get_running_loop()
        self._expecting = loop.call_later(self.node.setup_time, self._not_come)

    def _not_come(self) -> None:
        self._expecting = None
        message = f"{self.name} said it was connecting to us, and did not"
        self.attempt_failed(ConnectError(self.name, "nok", message))

    def accept_began(self) -> None:
        """A handshake that this node began has passed its first step."""
        self._accepting += 1

    def accept_ended(self, error: BaseException | None) -> None:
        """That handshake is done (None), or has failed."""
        self._accepting -= 1
        if error is not None and self._expecting is None:
            self.attempt_failed(ConnectError(self.name, "accept", str(error)))

    def give_way(self) -> None:
        """Drop our attempt: theirs, crossing it, wins."""
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None

    def connected(self, connection: Connection) -> None:
        """A handshake is done: what waited goes out, and ``connection`` is the one from now on."""
        if self.connection is not None:
            self.connection.close("replaced by a new connection")
        if self._expecting is not None:
            self._expecting.cancel()
            self._expecting = None
        with self._lock:
            for message, payload, sender in self._queue:
                self._send_on(connection, message, payload, sender)
            self._queue.clear()
            self._queued = 0
            self.connection = connection
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(connection)
        self.node._node_up(self)

    def attempt_failed(self, error: ConnectError) -> None:
        """An attempt came to nothing. When it was the last one, what waited for it is told."""
        if self.connection is not None or self._dialling is not None or self._accepting:
            return
        with self._lock:
            self._queue.clear()
            self._queued = 0
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._lost()

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """Called by the connection when it has ended."""
        if connection is not self.connection:
            return
        self.connection = None
        self.group_leader = None
        self._lost()
        self.node._node_down(self, connection, reason)

    def close(self) -> None:
        """End the attempt that is under way and the connection, if any."""
        self.give_way()
        if self._expecting is not None:
            self._expecting.cancel()
            self._expecting = None
        if self.connection is not None:
            self.connection.close("disconnect")
        else:
            self.attempt_failed(ConnectError(self.name, "stopped", "this node is stopping"))

    def _lost(self) -> None:
        """Everything that tied processes here to processes there breaks with ``noconnection``."""
        watchers, self._watchers = self._watchers, {}
        for ref, process in watchers.items():
            if process._watchers and process._watchers.pop(ref, None):
                process.demonitored(ref)
        monitors, self._monitors = self._monitors, {}
        for process, reference in monitors.values():
            process._down_received(reference, NOCONNECTION)
        links, self._links = self._links, {}
        for process, pid in links:
            if process._links is not None and process._links.pop(pid, 0) is None:
                process._exit_received(pid, NOCONNECTION, linked=True)
        spawns, self.spawns = self.spawns, {}
        for future in spawns.values():
            if not future.done():
                future.set_result(NOCONNECTION)

    # --- what our processes ask for -------------------------------------------------------------

    def monitor(self, process: BaseProcess, target: Pid | Atom, ref: Reference) -> None:
        """``process`` monitors a process there."""
        self._monitors[ref.external] = (process, ref)
        self.send(MonitorP(process.pid, target, ref), sender=process.pid)

    def demonitor(self, process: BaseProcess, target: Pid | Atom, ref: Reference) -> None:
        """``process`` takes a monitor back."""
        if self._monitors.pop(ref.external, None) and self.connection is not None:
            self.send(DemonitorP(process.pid, target, ref), sender=process.pid)

    def expect_down(self, process: BaseProcess, ref: Reference) -> None:
        """A DOWN for ``ref`` may come: a spawn request asked for a monitor."""
        self._monitors[ref.external] = (process, ref)

    def forget_down(self, ref: Reference) -> None:
        """No DOWN for ``ref`` is wanted any more."""
        self._monitors.pop(ref.external, None)

    def link(self, process: BaseProcess, pid: Pid) -> None:
        """``process`` links itself to a process there."""
        self._links[process, pid] = None
        self.send(Link(process.pid, pid), sender=process.pid)

    def add_link(self, process: BaseProcess, pid: Pid) -> None:
        """A link that the protocol has set up on both sides already."""
        if process._links is None:
            process._links = {}
        process._links[pid] = None
        self._links[process, pid] = None

    def add_watcher(
        self, process: BaseProcess, watcher: Pid, ref: Reference, target: Pid | Atom | None = None
    ) -> None:
        """A process there watches ``process``, which it named ``target`` (default: by its pid)."""
        if process._watchers is None:
            process._watchers = {}
        process._watchers[ref.external] = (watcher, target or process.pid)
        self._watchers[ref.external] = process

    def unlink(self, process: BaseProcess, pid: Pid) -> None:
        """``process`` drops its link; it counts as dropped at once, the id until acknowledged."""
        assert process._links is not None
        if self.connection is None:
            process._links.pop(pid, None)
            self._links.pop((process, pid), None)
            return
        self._unlink_id += 1
        process._links[pid] = self._unlink_id
        self.send(UnlinkId(self._unlink_id, process.pid, pid), sender=process.pid)

    def process_exited(
        self,
        process: BaseProcess,
        reason: bytes,
        watchers: list[tuple[bytes, Pid, Pid | Atom]],
        links: list[tuple[Pid, bool]],
        monitors: list[tuple[Reference, Pid | Atom]],
    ) -> None:
        """``process`` has ended: tell those there who watch it or are linked to it.

        Links come with whether they are active (False: an unlink is on its way).
        """
        for pid, active in links:
            self._links.pop((process, pid), None)
            if active and self.connection is not None:
                self.send(PayloadExit(process.pid, pid), reason, sender=process.pid)
        for ref, watcher, target in watchers:
            self._watchers.pop(ref, None)
            if self.connection is not None:
                down = PayloadMonitorPExit(target, watcher, Reference.from_external(ref))
                self.send(down, reason, sender=process.pid)
        for reference, watched in monitors:
            self.demonitor(process, watched, reference)

    # --- what comes in --------------------------------------------------------------------------

    def message_received(self, connection: Connection, message: Message) -> None:
        """Called by the connection for each control message."""
        if connection is not self.connection:
            return
        try:
            _HANDLERS[type(message.control)](self, message.control, message.data, message.offset)
        except DecodeError as error:
            _log.warning("%s: dropped the payload of %r: %s", self.name, message.control, error)

    def is_own(self, pid: Pid | Atom) -> bool:
        """Whether ``pid`` is one of that node's, which the sender of a signal must be."""
        if isinstance(pid, Pid) and pid.node == self.name:
            return True
        _log.warning("%s: ignored a signal in the name of %r", self.name, pid)
        return False

    def _decode(self, data: bytes, offset: int) -> object:
        return self.node.decoder.decode(data, offset)[0]

    def _on_reg_send(self, m: RegSend, data: bytes, offset: int) -> None:
        process = self.node._names.get(m.name)
        if process is not None:
            process.receive_external(data, offset, self)

    def _on_send(self, m: Send | SendSender, data: bytes, offset: int) -> None:
        process = self.node._processes.get(m.to.external)
        if process is not None:
            process.receive_external(data, offset, self)

    def _on_alias_send(self, m: AliasSend, data: bytes, offset: int) -> None:
        self.node._alias_received(m.alias.external, data, offset)

    def _on_altact(self, m: AltactSigSend, data: bytes, offset: int) -> None:
        to = m.to
        if m.flags & AltactSigSend.EXIT:
            process = self.node._find(to) if not isinstance(to, Reference) else None
            if process is not None:
                process._exit_received(m.from_, self._decode(data, offset), linked=False)
        elif isinstance(to, Reference):
            self.node._alias_received(to.external, data, offset)
        else:
            process = self.node._find(to)
            if process is not None:
                process.receive_external(data, offset, self)

    def _on_monitor(self, m: MonitorP, data: bytes, offset: int) -> None:
        process = self.node._find(m.target)
        if process is None:
            noproc = self.node.encoder.encode(NOPROC)
            self.send(PayloadMonitorPExit(m.target, m.from_, m.ref), noproc)
            return
        self.add_watcher(process, m.from_, m.ref, m.target)

    def _on_demonitor(self, m: DemonitorP, data: bytes, offset: int) -> None:
        ref = m.ref.external
        process = self._watchers.pop(ref, None)
        if process is not None and process._watchers and process._watchers.pop(ref, None):
            process.demonitored(ref)

    def _on_down(self, m: MonitorPExit, data: bytes, offset: int) -> None:
        self._down(m.ref, m.reason)

    def _on_payload_down(self, m: PayloadMonitorPExit, data: bytes, offset: int) -> None:
        self._down(m.ref, self._decode(data, offset))

    def _down(self, ref: Reference, reason: object) -> None:
        entry = self._monitors.pop(ref.external, None)
        if entry is not None:
            entry[0]._down_received(entry[1], reason)

    def _on_link(self, m: Link, data: bytes, offset: int) -> None:
        if not self.is_own(m.from_):
            return
        process = self.node._processes.get(m.to.external)
        if process is None:
            self.send(PayloadExit(m.to, m.from_), self.node.encoder.encode(NOPROC))
        elif not (process._links and process._links.get(m.from_) is not None):
            # While an unlink of ours is unacknowledged, this link was sent before it was seen.
            self.add_link(process, m.from_)

    def _on_exit(self, m: Exit, data: bytes, offset: int) -> None:
        self._exit(m.from_, m.to, m.reason)

    def _on_payload_exit(self, m: PayloadExit, data: bytes, offset: int) -> None:
        self._exit(m.from_, m.to, self._decode(data, offset))

    def _exit(self, from_: Pid, to: Pid, reason: object) -> None:
        process = self.node._processes.get(to.external)
        if process is None or process._links is None or from_ not in process._links:
            return
        self._links.pop((process, from_), None)
        if process._links.pop(from_) is None:
            process._exit_received(from_, reason, linked=True)

    def _on_exit2(self, m: Exit2, data: bytes, offset: int) -> None:
        self._exit2(m.from_, m.to, m.reason)

    def _on_payload_exit2(self, m: PayloadExit2, data: bytes, offset: int) -> None:
        self._exit2(m.from_, m.to, self._decode(data, offset))

    def _exit2(self, from_: Pid, to: Pid, reason: object) -> None:
        process = self.node._processes.get(to.external)
        if process is not None:
            process._exit_received(from_, reason, linked=False)

    def _on_unlink(self, m: Unlink, data: bytes, offset: int) -> None:
        self._drop_link(m.from_, m.to)

    def _on_unlink_id(self, m: UnlinkId, data: bytes, offset: int) -> None:
        self._drop_link(m.from_, m.to)
        self.send(UnlinkIdAck(m.id, m.to, m.from_), sender=m.to)

    def _drop_link(self, from_: Pid, to: Pid) -> None:
        process = self.node._processes.get(to.external)
        if process is not None and process._links and process._links.get(from_, 0) is None:
            del process._links[from_]
            self._links.pop((process, from_), None)

    def _on_unlink_ack(self, m: UnlinkIdAck, data: bytes, offset: int) -> None:
        process = self.node._processes.get(m.to.external)
        if process is not None and process._links and process._links.get(m.from_) == m.id:
            del process._links[m.from_]
            self._links.pop((process, m.from_), None)

    def _on_spawn_request(self, m: SpawnRequest, data: bytes, offset: int) -> None:
        if self.is_own(m.from_):
            self.node._spawn_requested(self, m, data, offset)

    def _on_spawn_reply(self, m: SpawnReply, data: bytes, offset: int) -> None:
        future = self.spawns.pop(m.id.external, None)
        if future is not None and not future.done():
            future.set_result(m.result)

    def _ignore(self, m: GroupLeader | NodeLink, data: bytes, offset: int) -> None:
        """Nothing here prints through a group leader, and nothing sends NODE_LINK."""


_HANDLERS: dict[type, Callable[..., None]] = {
    AliasSend: RemoteNode._on_alias_send,
    AltactSigSend: RemoteNode._on_altact,
    DemonitorP: RemoteNode._on_demonitor,
    Exit: RemoteNode._on_exit,
    Exit2: RemoteNode._on_exit2,
    GroupLeader: RemoteNode._ignore,
    Link: RemoteNode._on_link,
    MonitorP: RemoteNode._on_monitor,
    MonitorPExit: RemoteNode._on_down,
    NodeLink: RemoteNode._ignore,
    PayloadExit: RemoteNode._on_payload_exit,
    PayloadExit2: RemoteNode._on_payload_exit2,
    PayloadMonitorPExit: RemoteNode._on_payload_down,
    RegSend: RemoteNode._on_reg_send,
    Send: RemoteNode._on_send,
    SendSender: RemoteNode._on_send,
    SpawnReply: RemoteNode._on_spawn_reply,
    SpawnRequest: RemoteNode._on_spawn_request,
    Unlink: RemoteNode._on_unlink,
    UnlinkId: RemoteNode._on_unlink_id,
    UnlinkIdAck: RemoteNode._on_unlink_ack,
}


def _without_exit_payload(message: ControlMessage, payload: bytes) -> tuple[ControlMessage, bytes]:
    """The older forms, for peers that do not claim EXIT_PAYLOAD."""
    if isinstance(message, PayloadExit):
        return Exit(message.from_, message.to, Term(payload), message.token), b""
    if isinstance(message, PayloadExit2):
        return Exit2(message.from_, message.to, Term(payload), message.token), b""
    if isinstance(message, PayloadMonitorPExit):
        return MonitorPExit(message.from_, message.to, message.ref, Term(payload)), b""
    return message, payload
