"""One other node: the connection to it, what waits for one, and what ties our processes to its.

Source: "Protocol between Connected Nodes" in the ERTS user's guide, and the signal rules under
"Processes" in the Erlang reference manual.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from snex_node.cluster.connection import Connection
from snex_node.errors import ConnectError, NodeError, NodeStartError, RemoteError
from snex_node.processes.process import NOCONNECTION, NOPROC, BaseProcess
from snex_node.wire import control
from snex_node.wire.control import (
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
from snex_node.wire.describe import short
from snex_node.wire.etf import DecodeError, Decoder, EncodeError, Encoder
from snex_node.wire.flags import Flag
from snex_node.wire.framing import Message
from snex_node.wire.terms import Atom, Pid, Reference, Term

if TYPE_CHECKING:
    from snex_node.node import Node

MAX_QUEUED = 64 * 1024 * 1024
"""Bytes of messages that may wait for a connection that is being made.

One attempt ends within seconds; this bounds what fast senders pile up meanwhile."""

MAX_REASON = 1000
"""Characters of the text that takes the place of an exit reason without an external form."""

TRIES_AGAIN = 2
"""Attempts after one that gave way to a connection which then did not come: whoever used that name
may have been somebody else."""

ENTRY_SIZE = 512
"""What a message that waits takes beside its payload, in bytes."""

_PLAIN = Encoder()
_NOPROC = _PLAIN.encode(NOPROC)
_ABANDONED = Atom("abandoned")
_OLD_FORMS = int(Flag.EXIT_PAYLOAD | Flag.SEND_SENDER)
_ALTACT = int(Flag.ALTACT_SIG)

_log = logging.getLogger(__name__)


class SpawnRequested:
    """A request of ours to spawn a process there, until it is answered.

    ``answer`` gets the pid, or the atom that says why there is none.
    """

    __slots__ = ("_abandoned", "answer", "link", "monitor", "owner", "ref")

    def __init__(self, owner: BaseProcess, ref: Reference, *, link: bool, monitor: bool) -> None:
        self.answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.owner = owner
        self.ref = ref
        self.link = link
        self.monitor = monitor
        self._abandoned = False

    def abandon(self) -> None:
        """Nobody waits for the answer any more; what it brings is undone."""
        self._abandoned = True

    def answered(self, remote: RemoteNode, result: object) -> None:
        """Tie the process to its owner, before any signal of it can be handled."""
        if isinstance(result, Pid):
            if self._abandoned or not self.owner.alive:
                self._undo(remote, result)
            else:
                if self.link:
                    remote.add_link(self.owner, result)
                if self.monitor:
                    remote.add_monitor(self.owner, result, self.ref)
        if not self.answer.done():
            self.answer.set_result(result)

    def _undo(self, remote: RemoteNode, pid: Pid) -> None:
        """As ``erlang:spawn_request_abandon/1``: a linked process ends, another goes on unseen."""
        owner = self.owner
        if self.link:
            reason = _ABANDONED if owner.alive else owner.exit_reason
            exit_ = PayloadExit(owner.pid, pid)
            remote.send(exit_, encode_reason(remote.node.encoder, reason), owner.pid)
        if self.monitor:
            remote.send(DemonitorP(owner.pid, pid, self.ref), sender=owner.pid)


class RemoteNode:
    """A node we talk to, or want to. It stays when the connection goes and serves the next one."""

    def __init__(self, node: Node, name: Atom) -> None:
        self.node = node
        self.name = name
        self.connection: Connection | None = None
        # Where it listens, when that is known without asking its epmd.
        self.address: tuple[str, int] | None = None
        self.encoder = node.encoder
        """What encodes messages and results for it: the node's, unless somebody knows better."""
        # A process there to which what we spawn there prints; asked for once per connection.
        self.group_leader: asyncio.Task[Pid] | None = None
        # ALIAS_SEND in the form that the connection asks for: sender, alias (external) -> bytes.
        self.alias_send: Callable[[Pid, bytes], bytes] = control.alias_send
        self._pid_head = b"X" + _PLAIN.encode(name)
        self._old_forms = False
        self._lock = threading.Lock()
        self._queue: list[tuple[ControlMessage, bytes, object]] = []
        self._queued = 0
        self._dialling: asyncio.Task[None] | None = None
        self._introduced = False
        # Handshakes that others began with that name: it may be somebody else who uses it.
        self._accepting = 0
        # While theirs is expected: until when, since what became of ours, how often before.
        self._expecting: asyncio.TimerHandle | None = None
        self._expected_after: ConnectError
        self._again = 0
        self._waiters: list[asyncio.Future[Connection]] = []
        self._links: dict[tuple[BaseProcess, Pid], None] = {}
        self._monitors: dict[bytes, tuple[BaseProcess, Reference]] = {}
        self._watchers: dict[bytes, BaseProcess] = {}
        self._spawns: dict[bytes, SpawnRequested] = {}
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
            self._queued += len(payload) + ENTRY_SIZE
        self.node._call_soon(self._dial_for_what_waits)

    def _send_on(
        self, connection: Connection, message: ControlMessage, payload: bytes, sender: object
    ) -> None:
        if self._old_forms:
            message, payload = _old_form(message, payload, connection.peer.flags)
        connection.send(control.encode(message), payload, sender)

    @property
    def _reachable(self) -> bool:
        """Whether what we sent earlier has arrived, or may yet."""
        return self.connection is not None or bool(self._queue)

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

    def connect(self) -> asyncio.Future[Connection]:
        """The connection, made now where there is none; or the `ConnectError` that says why not."""
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        if self.connection is not None:
            waiter.set_result(self.connection)
        else:
            self._dial()
            self._waiters.append(waiter)
        return waiter

    def _dial(self) -> None:
        if self.connection is None and self._dialling is None and self._expecting is None:
            self._introduced = False
            self._dialling = self.node._run(self._try())

    def _dial_for_what_waits(self) -> None:
        try:
            self._dial()
        except NodeStartError as error:  # it has stopped meanwhile
            self._attempt_failed(ConnectError(self.name, "stopped", str(error)))

    async def _try(self) -> None:
        task = asyncio.current_task()
        error: ConnectError
        try:
            await self.node._connector.dial(self)
            return
        except ConnectError as failed:
            error = failed
        except Exception as unexpected:
            _log.exception("connecting to %s failed", self.name)
            error = ConnectError(self.name, "internal", str(unexpected))
        finally:
            # `give_way` may have made room for another attempt already.
            mine = self._dialling is task
            if mine:
                self._dialling = None
        if not mine or self.connection is not None:
            return
        if error.reason == "nok" or (self._introduced and self._accepting):
            # Both dialled at once, and it may be theirs that goes on: it comes in now.
            self._expect(error)
        else:
            self._attempt_failed(error)

    def is_dialled_by(self, task: asyncio.Task[None] | None) -> bool:
        """Whether ``task`` makes the attempt that is under way: nobody has given it up."""
        return task is not None and self._dialling is task

    def introduced(self, task: asyncio.Task[None] | None) -> None:
        """The attempt that ``task`` makes is about to tell our name: the other side knows of it."""
        if self.is_dialled_by(task):
            self._introduced = True

    def _expect(self, error: ConnectError) -> None:
        """Wait for their connection a while; ``error`` is what became of ours."""
        if self._expecting is None:
            self._expected_after = error
            loop = asyncio.get_running_loop()
            self._expecting = loop.call_later(self.node.net_setuptime, self._not_come)

    def _not_come(self) -> None:
        self._expecting = None
        error = self._expected_after
        if error.reason == "nok":
            message = f"{self.name} said it was connecting to us, and did not"
            error = ConnectError(self.name, "nok", message)
        self._attempt_failed(error)

    def _forget_expected(self) -> None:
        if self._expecting is not None:
            self._expecting.cancel()
            self._expecting = None

    def accept_began(self) -> None:
        """A handshake that the other side began has passed its first step: it has told a name."""
        self._accepting += 1

    def may_be_accepted(self, knew_of_another: bool) -> bool:
        """Whether that handshake may be completed: whoever began it has shown the cookie.

        ``knew_of_another``: when it told its name, it was told that there is a connection, and
        asked to replace that. Crossing attempts are settled here, on both sides alike: an attempt
        of the greater name that the other side knows of wins, and so does a connection that has
        come up meanwhile; else ours gives way. Not earlier, because anybody can use a name.
        """
        if self.connection is not None:
            return knew_of_another
        if self.connecting and self._introduced and self.node.name > self.name:
            return False
        self.give_way()
        return True

    def accept_failed(self, why: str) -> None:
        """That handshake has failed. Who waits for a connection gets one by an attempt of ours.

        Whoever connects has shown no cookie yet: a stranger who uses that node's name must not
        end what was on its way to it.
        """
        self._accepting -= 1
        if self._accepting or self.connection is not None:
            return
        if self._expecting is not None:
            self._forget_expected()
            self._did_not_come(why)
        elif self._waiters or self._queue:
            self._dial()

    def _did_not_come(self, why: str) -> None:
        error = self._expected_after
        if error.reason != "nok":
            self._attempt_failed(error)
        elif self._again < TRIES_AGAIN:
            self._again += 1
            self._dial()
        else:
            self._attempt_failed(ConnectError(self.name, "accept", why))

    def accepted(self, connection: Connection) -> None:
        """That handshake is done."""
        self._accepting -= 1
        self.give_way()
        self.connected(connection)

    def give_way(self) -> None:
        """Drop our attempt: theirs, crossing it, wins."""
        task, self._dialling = self._dialling, None
        if task is not None:
            task.cancel()

    def connected(self, connection: Connection) -> None:
        """A handshake is done: what waited goes out, and ``connection`` is the one from now on."""
        if self.connection is not None:
            self.connection.close("replaced by a new connection")
        self._forget_expected()
        self._again = 0
        flags = int(connection.peer.flags)
        with self._lock:
            self._old_forms = flags & _OLD_FORMS != _OLD_FORMS
            self.alias_send = control.altact_alias_send if flags & _ALTACT else control.alias_send
            queue, self._queue = self._queue, []
            self._queued = 0
            for message, payload, sender in queue:
                self._send_on(connection, message, payload, sender)
            self.connection = connection
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(connection)
        self.node._node_up(self)

    def _attempt_failed(self, error: ConnectError) -> None:
        """An attempt came to nothing. When it was the last one, what waited for it is told."""
        if self.connection is not None or self._dialling is not None:
            return
        self._again = 0
        with self._lock:
            self._queue.clear()
            self._queued = 0
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._break_ties()

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """Called by the connection when it has ended."""
        if connection is not self.connection:
            return
        self.connection = None
        self.group_leader = None
        self._break_ties()
        self.node._node_down(self, connection, reason)

    def close(self, why: str) -> None:
        """End the attempt that is under way and the connection, if any."""
        self.give_way()
        self._forget_expected()
        if self.connection is not None:
            self.connection.close("disconnect")
        else:
            message = f"the connection to {self.name} was given up: {why}"
            self._attempt_failed(ConnectError(self.name, "stopped", message))

    def _break_ties(self) -> None:
        """Everything that tied processes here to processes there breaks with ``noconnection``."""
        watchers, self._watchers = self._watchers, {}
        for ref, process in watchers.items():
            if process._watchers and process._watchers.pop(ref, None):
                _tell(process.demonitored, ref)
        monitors, self._monitors = self._monitors, {}
        for process, reference in monitors.values():
            _tell(process._down_received, reference, NOCONNECTION)
        links, self._links = self._links, {}
        for process, pid in links:
            if process._links is not None and process._links.pop(pid, 0) is None:
                _tell(partial(process._exit_received, linked=True), pid, NOCONNECTION)
        spawns, self._spawns = self._spawns, {}
        for spawn in spawns.values():
            spawn.answered(self, NOCONNECTION)

    # --- what our processes ask for -------------------------------------------------------------

    def monitor(self, process: BaseProcess, target: Pid | Atom, ref: Reference) -> None:
        """``process`` monitors a process there."""
        self._monitors[ref.external] = (process, ref)
        self.send(MonitorP(process.pid, target, ref), sender=process._line)

    def demonitor(self, process: BaseProcess, target: Pid | Atom, ref: Reference) -> None:
        """``process`` takes a monitor back."""
        if self._monitors.pop(ref.external, None) and self._reachable:
            self.send(DemonitorP(process.pid, target, ref), sender=process._line)

    def add_monitor(self, process: BaseProcess, pid: Pid, ref: Reference) -> None:
        """A monitor that the protocol has set up there already."""
        if process._monitors is None:
            process._monitors = {}
        process._monitors[ref] = pid
        self._monitors[ref.external] = (process, ref)

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
        if not self._reachable:
            process._links.pop(pid, None)
            self._links.pop((process, pid), None)
            return
        self._unlink_id += 1
        process._links[pid] = self._unlink_id
        self.send(UnlinkId(self._unlink_id, process.pid, pid), sender=process.pid)

    def request_spawn(
        self,
        owner: BaseProcess,
        ref: Reference,
        function: tuple[str, str, int],
        args: bytes,
        leader: Pid,
        *,
        link: bool = False,
        monitor: bool = False,
    ) -> SpawnRequested:
        """Ask for a process that calls ``function`` with ``args``, an encoded list.

        ``ref`` becomes the reference of the monitor. Raises `RemoteError` when that node knows no
        such requests.
        """
        if self.connection is not None and not self.connection.peer.flags & Flag.SPAWN:
            raise RemoteError("erpc", Atom("notsup"))
        options: list[object] = [Atom("link")] if link else []
        if monitor:
            options.append(Atom("monitor"))
        module, name, arity = function
        requested = SpawnRequested(owner, ref, link=link, monitor=monitor)
        self._spawns[ref.external] = requested
        mfa = (Atom(module), Atom(name), arity)
        self.send(SpawnRequest(ref, owner.pid, leader, mfa, options), args, owner._line)
        return requested

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
            if active and self._reachable:
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
            _log.warning(
                "%s: dropped the payload of %s: %s", self.name, short(message.control), error
            )

    def _is_own(self, pid: Pid) -> bool:
        """Whether ``pid`` is one of that node's, which the sender of a signal must be."""
        if pid.external.startswith(self._pid_head):
            return True
        _log.warning("%s: ignored a signal in the name of %s", self.name, pid)
        return False

    def _decode_reason(self, data: bytes, offset: int, decoder: Decoder | None = None) -> object:
        """An exit reason. The signal counts even when its reason cannot be decoded."""
        try:
            return (decoder or self.node.decoder).decode(data, offset)[0]
        except DecodeError as error:
            _log.warning("%s: an exit reason cannot be decoded: %s", self.name, error)
            return Undecodable(error)

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
            process = self.node.find(to) if not isinstance(to, Reference) else None
            if process is not None and self._is_own(m.from_):
                reason = self._decode_reason(data, offset)
                process._exit_received(m.from_, reason, linked=False)
        elif isinstance(to, Reference):
            self.node._alias_received(to.external, data, offset)
        else:
            process = self.node.find(to)
            if process is not None:
                process.receive_external(data, offset, self)

    def _on_monitor(self, m: MonitorP, data: bytes, offset: int) -> None:
        if not self._is_own(m.from_):
            return
        process = self.node.find(m.target)
        if process is None:
            self.send(PayloadMonitorPExit(m.target, m.from_, m.ref), _NOPROC)
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
        entry = self._monitors.get(m.ref.external)
        if entry is not None:
            decoder = entry[0].reason_decoder(m.ref)
            self._down(m.ref, self._decode_reason(data, offset, decoder))

    def _down(self, ref: Reference, reason: object) -> None:
        entry = self._monitors.pop(ref.external, None)
        if entry is not None:
            entry[0]._down_received(entry[1], reason)

    def _on_link(self, m: Link, data: bytes, offset: int) -> None:
        if not self._is_own(m.from_):
            return
        process = self.node._processes.get(m.to.external)
        if process is None:
            self.send(PayloadExit(m.to, m.from_), _NOPROC, sender=m.to)
        elif not (process._links and process._links.get(m.from_) is not None):
            # While an unlink of ours is unacknowledged, this link was sent before it was seen.
            self.add_link(process, m.from_)

    def _on_exit(self, m: Exit, data: bytes, offset: int) -> None:
        self._exit(m.from_, m.to, m.reason)

    def _on_payload_exit(self, m: PayloadExit, data: bytes, offset: int) -> None:
        self._exit(m.from_, m.to, self._decode_reason(data, offset))

    def _exit(self, from_: Pid, to: Pid, reason: object) -> None:
        process = self._linked(from_, to)
        if process is None or process._links is None:
            return
        del self._links[process, from_]
        if process._links.pop(from_, 0) is None:
            process._exit_received(from_, reason, linked=True)

    def _linked(self, from_: Pid, to: Pid) -> BaseProcess | None:
        """Our process ``to``, if it is linked to that node's ``from_``, or was until just now."""
        process = self.node._processes.get(to.external)
        return process if process is not None and (process, from_) in self._links else None

    def _on_exit2(self, m: Exit2, data: bytes, offset: int) -> None:
        self._exit2(m.from_, m.to, m.reason)

    def _on_payload_exit2(self, m: PayloadExit2, data: bytes, offset: int) -> None:
        self._exit2(m.from_, m.to, self._decode_reason(data, offset))

    def _exit2(self, from_: Pid, to: Pid, reason: object) -> None:
        process = self.node._processes.get(to.external)
        if process is not None and self._is_own(from_):
            process._exit_received(from_, reason, linked=False)

    def _on_unlink(self, m: Unlink, data: bytes, offset: int) -> None:
        self._drop_link(m.from_, m.to)

    def _on_unlink_id(self, m: UnlinkId, data: bytes, offset: int) -> None:
        self._drop_link(m.from_, m.to)
        self.send(UnlinkIdAck(m.id, m.to, m.from_), sender=m.to)

    def _drop_link(self, from_: Pid, to: Pid) -> None:
        process = self._linked(from_, to)
        if process is not None and process._links and process._links.get(from_, 0) is None:
            del process._links[from_]
            del self._links[process, from_]

    def _on_unlink_ack(self, m: UnlinkIdAck, data: bytes, offset: int) -> None:
        process = self._linked(m.from_, m.to)
        if process is not None and process._links and process._links.get(m.from_) == m.id:
            del process._links[m.from_]
            del self._links[process, m.from_]

    def _on_spawn_request(self, m: SpawnRequest, data: bytes, offset: int) -> None:
        if self._is_own(m.from_):
            self.node._spawner.spawn(self, m, data, offset)

    def _on_spawn_reply(self, m: SpawnReply, data: bytes, offset: int) -> None:
        requested = self._spawns.pop(m.id.external, None)
        if requested is not None:
            requested.answered(self, m.result)

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


class Undecodable:
    """The reason of an exit signal whose own reason cannot be decoded; ``error`` says why."""

    __slots__ = ("error",)

    def __init__(self, error: DecodeError) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"<Undecodable: {self.error}>"


def encode_reason(encoder: Encoder, reason: object) -> bytes:
    """An exit reason in external form; one that has none goes as its description."""
    try:
        return encoder.encode(reason)
    except EncodeError:
        return _PLAIN.encode(short(reason, MAX_REASON).encode())


def _tell(receiver: Callable[..., None], *args: object) -> None:
    """One of many that must be told: what it raises must not keep the others from it."""
    try:
        receiver(*args)
    except Exception:
        _log.exception("%r failed", receiver)


def _old_form(message: ControlMessage, payload: bytes, flags: int) -> tuple[ControlMessage, bytes]:
    """The older forms, for peers that do not claim EXIT_PAYLOAD or SEND_SENDER."""
    if not flags & Flag.SEND_SENDER and isinstance(message, SendSender):
        return Send(message.to, message.token), payload
    if flags & Flag.EXIT_PAYLOAD:
        return message, payload
    if isinstance(message, PayloadExit):
        return Exit(message.from_, message.to, Term(payload), message.token), b""
    if isinstance(message, PayloadExit2):
        return Exit2(message.from_, message.to, Term(payload), message.token), b""
    if isinstance(message, PayloadMonitorPExit):
        return MonitorPExit(message.from_, message.to, message.ref, Term(payload)), b""
    return message, payload
