"""Brings messages and answers to where they go: processes here, aliases, and other nodes.

Source: "Protocol between Connected Nodes" in the ERTS user's guide.
"""

from __future__ import annotations

import asyncio

from snex_node.cluster.cluster import Cluster
from snex_node.processes.mailbox import Mailbox
from snex_node.processes.registry import Registry
from snex_node.system.turns import Turns
from snex_node.ties import check_pair
from snex_node.wire.control import AliasSend, RegSend, SendSender
from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.gen import From
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom, Pid, Reference

Destination = Pid | Reference | str | tuple[str, str]
"""Where a message goes: a pid, an alias, a name registered here, or ``(name, node)``."""


class Router:
    """Routes what the processes of the node ``name`` send, and what is sent to aliases of it.

    `speaker` is the process in whose name messages go that nobody in particular sends; whoever
    starts the node sets it.
    """

    speaker: Mailbox

    def __init__(
        self,
        name: str,
        registry: Registry,
        cluster: Cluster,
        turns: Turns,
        decoder: Decoder,
        encoder: Encoder,
    ) -> None:
        self._name = name
        self._registry = registry
        self._cluster = cluster
        self._turns = turns
        self._decoder = decoder
        self._encoder = encoder
        # What waits for an answer, by the external form of the alias it goes to.
        self._aliases: dict[bytes, asyncio.Future[object]] = {}

    # --- messages -------------------------------------------------------------------------------

    def send(self, to: Destination, message: object, sender: Pid | None) -> None:
        """See `Node.send`."""
        node: str
        if isinstance(to, Pid):
            node = to.node
        elif isinstance(to, str):
            self._deliver(self._registry.by_name.get(to), message)
            return
        elif isinstance(to, Reference):
            node = to.node
        else:
            node = check_pair(to, "a pid, an alias, a name registered here, or (name, node)")[1]
        if node != self._name:
            payload = self._cluster.remote(node).encoder.encode(message)
            self.send_encoded(to, payload, sender)
        elif isinstance(to, Reference):
            self._turns.call_soon(self.alias_delivered, to.external, message)
        else:
            self._deliver(self._registry.find(to[0] if isinstance(to, tuple) else to), message)

    def send_encoded(
        self, to: Pid | Reference | tuple[str, str], payload: Payload, sender: Pid | None
    ) -> None:
        """Send a message in external form to a process of another node."""
        self._turns.require()
        line = sender or self.speaker.line
        sender = sender or self.speaker.pid
        remote = self._cluster.remote
        if isinstance(to, Pid):
            remote(to.node).send(SendSender(sender, to), payload, line)
        elif isinstance(to, Reference):
            remote(to.node).send(AliasSend(sender, to), payload, line)
        else:
            name, node = to
            remote(node).send(RegSend(sender, Atom(name)), payload, line)

    def _deliver(self, process: Mailbox | None, message: object) -> None:
        """To a process of this node: in a turn of the loop of its own, never inside of a send."""
        if process is not None:
            self._turns.call_soon(_receive, process, message)

    # --- answers --------------------------------------------------------------------------------

    def reply(self, to: From, reply: object, sender: Pid | None) -> None:
        """See `Node.reply`."""
        node = to.pid.node
        encoder = self._encoder if node == self._name else self._cluster.remote(node).encoder
        self.reply_encoded(to, encoder.encode(reply), sender)

    def reply_encoded(self, to: From, reply: Payload, sender: Pid | None) -> None:
        """See `Node.reply_encoded`."""
        if sender is None:
            self._turns.require()
            sender = self.speaker.pid
        payload = b"h\x02" + to.tag + reply
        node = to.pid.node
        if node == self._name:
            self._reply_here(to, payload)
            return
        remote = self._cluster.remote(node)
        connection = remote.connection
        if connection is None:
            return  # who called saw the connection go, and waits no more
        if to.alias is None:
            remote.send(SendSender(sender, to.pid), payload, sender)
        else:
            connection.send(remote.alias_send(sender, to.alias), payload, sender)

    def _reply_here(self, to: From, payload: bytes) -> None:
        message = self._decoder.decode(payload)[0]
        if to.alias is not None:
            self._turns.call_soon(self.alias_delivered, to.alias, message)
        else:
            self._deliver(self._registry.by_pid.get(to.pid.external), message)

    # --- aliases --------------------------------------------------------------------------------

    def expect(self, alias: Reference) -> asyncio.Future[object]:
        """What comes to ``alias`` first, until it is forgotten."""
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._aliases[alias.external] = answer
        return answer

    def forget(self, alias: Reference) -> None:
        """Drop what still comes to ``alias``."""
        del self._aliases[alias.external]

    @property
    def expected(self) -> int:
        """How many aliases something is expected at."""
        return len(self._aliases)

    def alias_received(self, alias: bytes, data: bytes, offset: int) -> None:
        """A message to an alias, in external form. One that nobody waits for is dropped."""
        waiting = self._aliases.get(alias)
        if waiting is None or waiting.done():
            return
        try:
            message, _ = self._decoder.decode(data, offset)
        except DecodeError as error:
            waiting.set_exception(error)
        else:
            self.alias_delivered(alias, message)

    def alias_delivered(self, alias: bytes, message: object) -> None:
        """``{Tag, Reply}`` to an alias: the reply to whoever waits for it."""
        waiting = self._aliases.get(alias)
        if waiting is None or waiting.done():
            return
        if isinstance(message, tuple) and len(message) == 2:
            waiting.set_result(message[1])


def _receive(process: Mailbox, message: object) -> None:
    if process.alive:
        process.message_received(message)
