"""Processes that we ask other nodes to start: spawn requests, until they are answered.

Source: "Protocol between Connected Nodes" in the ERTS user's guide, SPAWN_REQUEST.
"""

from __future__ import annotations

import asyncio
from typing import Final

from snex_node.cluster.remote import RemoteNode
from snex_node.errors import RemoteError
from snex_node.processes.mailbox import Mailbox
from snex_node.processes.reasons import encode_reason
from snex_node.ties import NOCONNECTION, Ties
from snex_node.wire.control import DemonitorP, PayloadExit, SpawnRequest
from snex_node.wire.etf import Encoder
from snex_node.wire.flags import Flag
from snex_node.wire.terms import Atom, Pid, Reference

_ABANDONED: Final = Atom("abandoned")


class SpawnRequested:
    """A request of ours to spawn a process, until it is answered.

    ``answer`` gets the pid, or the atom that says why there is none.
    """

    __slots__ = ("abandoned", "answer", "link", "monitor", "owner", "ref")

    def __init__(self, owner: Mailbox, ref: Reference, *, link: bool, monitor: bool) -> None:
        self.answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.owner = owner
        self.ref = ref
        self.link = link
        self.monitor = monitor
        self.abandoned = False

    def abandon(self) -> None:
        """Nobody waits for the answer any more; what it brings is undone."""
        self.abandoned = True


class Spawns:
    """The spawn requests of a node that are not answered. What they bring is tied in ``ties``."""

    def __init__(self, ties: Ties[Mailbox], encoder: Encoder) -> None:
        self._ties = ties
        self._encoder = encoder
        self._requested: dict[str, dict[bytes, SpawnRequested]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self._requested.values()))

    def request(
        self,
        remote: RemoteNode,
        owner: Mailbox,
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
        connection = remote.connection
        if connection is not None and not connection.peer.flags & Flag.SPAWN:
            raise RemoteError("erpc", Atom("notsup"))
        options: list[object] = [Atom("link")] if link else []
        if monitor:
            options.append(Atom("monitor"))
        module, name, arity = function
        requested = SpawnRequested(owner, ref, link=link, monitor=monitor)
        self._requested.setdefault(remote.name, {})[ref.external] = requested
        mfa = (Atom(module), Atom(name), arity)
        remote.send(SpawnRequest(ref, owner.pid, leader, mfa, options), args, owner.line)
        return requested

    def answered(self, remote: RemoteNode, ref: Reference, result: object) -> None:
        """Tie the process to its owner, before any signal of it can be handled."""
        requested = self._requested.get(remote.name, {}).pop(ref.external, None)
        if requested is None:
            return
        owner = requested.owner
        if isinstance(result, Pid):
            if requested.abandoned or not owner.alive:
                self._undo(remote, requested, result)
            else:
                if requested.link:
                    self._ties.add_link(owner, result)
                if requested.monitor:
                    self._ties.add_monitor(owner, result, ref)
        _answer(requested, result)

    def node_lost(self, node: str) -> None:
        """Nothing of ``node`` is answered any more."""
        for requested in self._requested.pop(node, {}).values():
            _answer(requested, NOCONNECTION)

    def _undo(self, remote: RemoteNode, requested: SpawnRequested, pid: Pid) -> None:
        """As ``erlang:spawn_request_abandon/1``: a linked process ends, another goes on unseen."""
        owner = requested.owner
        if requested.link:
            reason = _ABANDONED if owner.alive else owner.exit_reason
            remote.send(
                PayloadExit(owner.pid, pid), encode_reason(self._encoder, reason), owner.pid
            )
        if requested.monitor:
            remote.send(DemonitorP(owner.pid, pid, requested.ref), sender=owner.pid)


def _answer(requested: SpawnRequested, result: object) -> None:
    if not requested.answer.done():
        requested.answer.set_result(result)
