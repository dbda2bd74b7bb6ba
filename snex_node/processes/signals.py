"""Carries signals out: what comes from other nodes, and what ties our processes to each other's.

Source: "Protocol between Connected Nodes" in the ERTS user's guide, and the signal rules under
"Processes" in the Erlang reference manual. Which signals follow from which is `snex_node.ties`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from snex_node.cluster.cluster import Cluster
from snex_node.cluster.remote import RemoteNode
from snex_node.processes.mailbox import Mailbox
from snex_node.processes.reasons import decode_reason, encode_reason
from snex_node.processes.registry import Registry
from snex_node.processes.router import Router
from snex_node.processes.spawns import Spawns
from snex_node.system.turns import Turns
from snex_node.ties import Sent, Target, Ties, check_pid
from snex_node.ties import Signals as Following
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
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.framing import Message
from snex_node.wire.terms import Atom, Pid, Reference

_log = logging.getLogger(__name__)

# What is worth a connection where there is none.
_CONNECTING: Final = frozenset((MonitorP, Link))
_WITH_REASON: Final = frozenset((PayloadExit, PayloadMonitorPExit))


class Spawner(Protocol):
    """Who starts processes that other nodes ask for."""

    def spawn(self, remote: RemoteNode, request: SpawnRequest, data: bytes, offset: int) -> None:
        """Start what ``request`` asks for; its arguments are at ``data[offset]``."""


class Signals:
    """The signals of the node ``name``: what its processes ask for, and what comes to them.

    `spawner` starts what other nodes ask for; whoever starts the node sets it.
    """

    spawner: Spawner

    def __init__(
        self,
        name: str,
        registry: Registry,
        router: Router,
        cluster: Cluster,
        turns: Turns,
        decoder: Decoder,
        encoder: Encoder,
    ) -> None:
        self._name = name
        self._by_pid = registry.by_pid
        self._by_name = registry.by_name
        self._registry = registry
        self._router = router
        self._cluster = cluster
        self._turns = turns
        self._decoder = decoder
        self._encoder = encoder
        self.ties: Ties[Mailbox] = Ties(name, registry.find)
        self.spawns = Spawns(self.ties, encoder)
        self._watchers_of_nodes: dict[Mailbox, None] = {}
        self._handlers = self._handlers_by_type()

    # --- what our processes ask for -------------------------------------------------------------

    def monitor(self, process: Mailbox, target: Target, ref: Reference) -> None:
        """``process`` begins to monitor ``target``."""
        self._follow(self.ties.monitor(process, target, ref))

    def demonitor(self, process: Mailbox, ref: Reference) -> None:
        """``process`` takes a monitor back."""
        self._follow(self.ties.demonitor(process, ref))

    def link(self, process: Mailbox, pid: Pid) -> None:
        """``process`` links itself to ``pid``."""
        self._follow(self.ties.link(process, pid))

    def unlink(self, process: Mailbox, pid: Pid) -> None:
        """``process`` drops its link."""
        self._follow(self.ties.unlink(process, pid))

    def exit(self, pid: Pid, reason: object, sender: Pid | None) -> None:
        """See `Node.exit_signal`."""
        if sender is None:
            self._turns.require()
            sender = self._router.speaker.pid
        node = check_pid(pid).node
        if node != self._name:
            payload = self._encoder.encode(reason)
            self._cluster.remote(node).send(PayloadExit2(sender, pid), payload, sender)
        elif pid.external in self._by_pid:
            self._turns.call_soon(self._exit2, sender, pid, reason)

    def ended(self, process: Mailbox, reason: object) -> None:
        """``process`` has ended: its names are free, monitors fire, links break."""
        self._registry.remove(process)
        self._watchers_of_nodes.pop(process, None)
        self._follow(self.ties.exited(process, reason))

    # --- what follows ---------------------------------------------------------------------------

    def _follow(self, signals: Following) -> None:
        """Send and deliver ``signals``: each of them, whatever a process makes of another."""
        for signal in signals:
            if isinstance(signal, Sent):
                self._send(signal, signals)
                continue
            try:
                signal.deliver()
            except Exception:
                _log.exception("%s failed to take %s", signal.process, type(signal).__name__)

    def _send(self, signal: Sent, batch: Following) -> None:
        node, message, line, reason = signal
        if node == self._name:
            self._turns.call_soon(self._arrived, message, reason)
            return
        remote = self._cluster.remote(node)
        if type(message) in _CONNECTING:
            remote.send(message, sender=line)
        elif remote.reachable:
            payload = b""
            if type(message) in _WITH_REASON:
                payload = encode_reason(self._encoder, reason)
            remote.send(message, payload, line)

    def _arrived(self, message: ControlMessage, reason: object) -> None:
        """A signal from one process of this node to another."""
        if isinstance(message, PayloadExit):
            self._follow(self.ties.exit_received(self._name, message.from_, message.to, reason))
        elif isinstance(message, PayloadMonitorPExit):
            self._follow(self.ties.down_received(self._name, message.ref, reason))
        elif isinstance(message, DemonitorP):
            process = self.ties.demonitor_received(self._name, message.ref)
            if process is not None:
                process.demonitored(message.ref.external)

    # --- nodes ----------------------------------------------------------------------------------

    def monitor_nodes(self, process: Mailbox, on: bool) -> None:
        """See `Node.monitor_nodes`."""
        if on:
            self._watchers_of_nodes[process] = None
        else:
            self._watchers_of_nodes.pop(process, None)

    def node_up(self, remote: RemoteNode) -> None:
        """There is a connection to ``remote``."""
        self._tell_watchers((Atom("nodeup"), remote.name))

    def node_down(self, remote: RemoteNode) -> None:
        """There is none any more."""
        self.unreachable(remote)
        self._tell_watchers((Atom("nodedown"), remote.name))

    def unreachable(self, remote: RemoteNode) -> None:
        """Everything that tied processes here to processes there breaks."""
        self._follow(self.ties.node_lost(remote.name))
        self.spawns.node_lost(remote.name)

    def _tell_watchers(self, message: tuple[Atom, Atom]) -> None:
        for process in list(self._watchers_of_nodes):
            try:
                process.message_received(message)
            except Exception:
                _log.exception("%s failed to take %r", process, message)

    # --- what comes in --------------------------------------------------------------------------

    def _handlers_by_type(self) -> dict[type, Callable[..., None]]:
        return {
            AliasSend: self._on_alias_send,
            AltactSigSend: self._on_altact,
            DemonitorP: self._on_demonitor,
            Exit: self._on_exit,
            Exit2: self._on_exit2,
            GroupLeader: self._ignore,
            Link: self._on_link,
            MonitorP: self._on_monitor,
            MonitorPExit: self._on_down,
            NodeLink: self._ignore,
            PayloadExit: self._on_payload_exit,
            PayloadExit2: self._on_payload_exit2,
            PayloadMonitorPExit: self._on_payload_down,
            RegSend: self._on_reg_send,
            Send: self._on_send,
            SendSender: self._on_send,
            SpawnReply: self._on_spawn_reply,
            SpawnRequest: self._on_spawn_request,
            Unlink: self._on_unlink,
            UnlinkId: self._on_unlink_id,
            UnlinkIdAck: self._on_unlink_ack,
        }

    def message_received(self, remote: RemoteNode, message: Message) -> None:
        """A control message of ``remote``."""
        signal = message.control
        try:
            self._handlers[type(signal)](remote, signal, message.data, message.offset)
        except DecodeError as error:
            _log.warning("%s: dropped the payload of %s: %s", remote.name, short(signal), error)

    def _on_reg_send(self, remote: RemoteNode, m: RegSend, data: bytes, offset: int) -> None:
        process = self._by_name.get(m.name)
        if process is not None:
            process.external_received(data, offset, remote)

    def _on_send(self, remote: RemoteNode, m: Send | SendSender, data: bytes, offset: int) -> None:
        process = self._by_pid.get(m.to.external)
        if process is not None:
            process.external_received(data, offset, remote)

    def _on_alias_send(self, remote: RemoteNode, m: AliasSend, data: bytes, offset: int) -> None:
        self._router.alias_received(m.alias.external, data, offset)

    def _on_altact(self, remote: RemoteNode, m: AltactSigSend, data: bytes, offset: int) -> None:
        to = m.to
        if m.flags & AltactSigSend.EXIT:
            process = self._registry.find(to) if not isinstance(to, Reference) else None
            if process is not None and remote.owns(m.from_):
                reason = decode_reason(self._decoder, data, offset, remote.name)
                process.exit_received(m.from_, reason, linked=False)
        elif isinstance(to, Reference):
            self._router.alias_received(to.external, data, offset)
        else:
            process = self._registry.find(to)
            if process is not None:
                process.external_received(data, offset, remote)

    def _on_monitor(self, remote: RemoteNode, m: MonitorP, data: bytes, offset: int) -> None:
        if remote.owns(m.from_):
            signals = self.ties.monitor_received(remote.name, m.from_, m.target, m.ref)
            if signals:
                self._follow(signals)

    def _on_demonitor(self, remote: RemoteNode, m: DemonitorP, data: bytes, offset: int) -> None:
        process = self.ties.demonitor_received(remote.name, m.ref)
        if process is not None:
            process.demonitored(m.ref.external)

    def _on_down(self, remote: RemoteNode, m: MonitorPExit, data: bytes, offset: int) -> None:
        self._follow(self.ties.down_received(remote.name, m.ref, m.reason))

    def _on_payload_down(
        self, remote: RemoteNode, m: PayloadMonitorPExit, data: bytes, offset: int
    ) -> None:
        process = self.ties.who_monitors(remote.name, m.ref)
        if process is not None:
            decoder = process.reason_decoder(m.ref)
            reason = decode_reason(decoder, data, offset, remote.name)
            self._follow(self.ties.down_received(remote.name, m.ref, reason))

    def _on_link(self, remote: RemoteNode, m: Link, data: bytes, offset: int) -> None:
        if remote.owns(m.from_):
            self._follow(self.ties.link_received(remote.name, m.from_, m.to))

    def _on_exit(self, remote: RemoteNode, m: Exit, data: bytes, offset: int) -> None:
        self._follow(self.ties.exit_received(remote.name, m.from_, m.to, m.reason))

    def _on_payload_exit(
        self, remote: RemoteNode, m: PayloadExit, data: bytes, offset: int
    ) -> None:
        reason = decode_reason(self._decoder, data, offset, remote.name)
        self._follow(self.ties.exit_received(remote.name, m.from_, m.to, reason))

    def _on_exit2(self, remote: RemoteNode, m: Exit2, data: bytes, offset: int) -> None:
        if remote.owns(m.from_):
            self._exit2(m.from_, m.to, m.reason)

    def _on_payload_exit2(
        self, remote: RemoteNode, m: PayloadExit2, data: bytes, offset: int
    ) -> None:
        if remote.owns(m.from_):
            self._exit2(m.from_, m.to, decode_reason(self._decoder, data, offset, remote.name))

    def _exit2(self, from_: Pid, to: Pid, reason: object) -> None:
        process = self._by_pid.get(to.external)
        if process is not None:
            process.exit_received(from_, reason, linked=False)

    def _on_unlink(self, remote: RemoteNode, m: Unlink, data: bytes, offset: int) -> None:
        self._follow(self.ties.unlink_received(remote.name, m.from_, m.to, None))

    def _on_unlink_id(self, remote: RemoteNode, m: UnlinkId, data: bytes, offset: int) -> None:
        self._follow(self.ties.unlink_received(remote.name, m.from_, m.to, m.id))

    def _on_unlink_ack(self, remote: RemoteNode, m: UnlinkIdAck, data: bytes, offset: int) -> None:
        self._follow(self.ties.unlink_ack_received(remote.name, m.from_, m.to, m.id))

    def _on_spawn_request(
        self, remote: RemoteNode, m: SpawnRequest, data: bytes, offset: int
    ) -> None:
        if remote.owns(m.from_):
            self.spawner.spawn(remote, m, data, offset)

    def _on_spawn_reply(self, remote: RemoteNode, m: SpawnReply, data: bytes, offset: int) -> None:
        self.spawns.answered(remote, m.id, m.result)

    def _ignore(
        self, remote: RemoteNode, m: GroupLeader | NodeLink, data: bytes, offset: int
    ) -> None:
        """Nothing here prints through a group leader, and nothing sends NODE_LINK."""
