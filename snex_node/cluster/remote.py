"""One other node: the connection to it, what waits for one, and what ties our processes to its.

Source: "Protocol between Connected Nodes" in the ERTS user's guide, and the signal rules under
"Processes" in the Erlang reference manual.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from snex_node.cluster.connection import Connection
from snex_node.errors import ConnectError, NodeError, NodeStartError
from snex_node.system.guardian import Guardian
from snex_node.system.turns import Turns
from snex_node.wire import control
from snex_node.wire.control import (
    ControlMessage,
    Exit,
    Exit2,
    MonitorPExit,
    PayloadExit,
    PayloadExit2,
    PayloadMonitorPExit,
    Send,
    SendSender,
)
from snex_node.wire.etf import Encoder
from snex_node.wire.flags import Flag
from snex_node.wire.framing import Message
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom, Pid, Term

MAX_QUEUED = 64 * 1024 * 1024
"""Bytes of messages that may wait for a connection that is being made.

One attempt ends within seconds; this bounds what fast senders pile up meanwhile."""

TRIES_AGAIN = 2
"""Attempts after one that gave way to a connection which then did not come: whoever used that name
may have been somebody else."""

EXPECTED = frozenset(("connection_closed", "disconnect"))
"""How a connection ends when nothing is wrong."""

ENTRY_SIZE = 512
"""What a message that waits takes beside its payload, in bytes."""

_OLD_FORMS = int(Flag.EXIT_PAYLOAD | Flag.SEND_SENDER)
_ALTACT = int(Flag.ALTACT_SIG)

_encode = Encoder().encode
_log = logging.getLogger(__name__)


class Receiver(Protocol):
    """Who takes what comes from other nodes, on the event loop."""

    def message_received(self, remote: RemoteNode, message: Message) -> None:
        """A control message, with its payload still encoded."""

    def node_up(self, remote: RemoteNode) -> None:
        """There is a connection. Comes before every message that arrives over it."""

    def node_down(self, remote: RemoteNode) -> None:
        """The connection has ended. Comes after the last message."""

    def unreachable(self, remote: RemoteNode) -> None:
        """No connection could be made: what was sent to that node has not arrived."""


class Home(Protocol):
    """The node that others are remote from."""

    @property
    def name(self) -> Atom:
        """Its name."""

    @property
    def turns(self) -> Turns:
        """Its event loop."""

    @property
    def encoder(self) -> Encoder:
        """What encodes messages, for nodes of which nothing better is known."""

    @property
    def net_setuptime(self) -> float:
        """Seconds that each step towards a connection may take."""

    @property
    def guardian(self) -> Guardian:
        """What keeps connections alive."""

    @property
    def receiver(self) -> Receiver:
        """Who takes what comes."""

    async def dial(self, remote: RemoteNode) -> None:
        """Make a connection to ``remote``. Raises `ConnectError`."""


class RemoteNode:
    """A node we talk to, or want to. It stays when the connection goes and serves the next one."""

    def __init__(self, home: Home, name: Atom) -> None:
        self.name = name
        self.connection: Connection | None = None
        # Where it listens, when that is known without asking its epmd.
        self.address: tuple[str, int] | None = None
        self.encoder = home.encoder
        """What encodes messages and results for it: the node's, unless somebody knows better."""
        # A process there to which what we spawn there prints; asked for once per connection.
        self.group_leader: asyncio.Task[Pid] | None = None
        # ALIAS_SEND in the form that the connection asks for: sender, alias (external) -> bytes.
        self.alias_send: Callable[[Pid, bytes], bytes] = control.alias_send
        self._home = home
        self._received = home.receiver.message_received
        self._pid_head = b"X" + _encode(name)
        self._old_forms = False
        self._lock = threading.Lock()
        self._queue: list[tuple[ControlMessage, Payload, object]] = []
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

    def __repr__(self) -> str:
        return f"<RemoteNode {self.name}{' connected' if self.connection else ''}>"

    def owns(self, pid: Pid) -> bool:
        """Whether ``pid`` is one of that node's, as the sender of a signal must be."""
        if pid.external.startswith(self._pid_head):
            return True
        _log.warning("%s: ignored a signal in the name of %s", self.name, pid)
        return False

    # --- sending, from any thread ---------------------------------------------------------------

    def send(self, message: ControlMessage, payload: Payload = b"", sender: object = None) -> None:
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
        self._home.turns.call_soon(self._dial_for_what_waits)

    def _send_on(
        self, connection: Connection, message: ControlMessage, payload: Payload, sender: object
    ) -> None:
        if self._old_forms:
            message, payload = _old_form(message, payload, connection.peer.flags)
        connection.send(control.encode(message), payload, sender)

    @property
    def reachable(self) -> bool:
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
            self._dialling = self._home.turns.run(self._try())

    def _dial_for_what_waits(self) -> None:
        try:
            self._dial()
        except NodeStartError as error:  # it has stopped meanwhile
            self._attempt_failed(ConnectError(self.name, "stopped", str(error)))

    async def _try(self) -> None:
        task = asyncio.current_task()
        error: ConnectError
        try:
            await self._home.dial(self)
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
            self._expecting = loop.call_later(self._home.net_setuptime, self._not_come)

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
        if self.connecting and self._introduced and self._home.name > self.name:
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
        _log.info("connected to %s", self.name)
        self._home.receiver.node_up(self)

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
        self._home.receiver.unreachable(self)

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """Called by the connection when it has ended."""
        if connection is not self.connection:
            return
        self.connection = None
        self.group_leader = None
        self._home.guardian.unwatch(connection)
        level = logging.INFO if reason in EXPECTED else logging.WARNING
        _log.log(level, "lost the connection to %s: %s", self.name, reason)
        self._home.receiver.node_down(self)

    def close(self, why: str) -> None:
        """End the attempt that is under way and the connection, if any."""
        self.give_way()
        self._forget_expected()
        if self.connection is not None:
            self.connection.close("disconnect")
        else:
            message = f"the connection to {self.name} was given up: {why}"
            self._attempt_failed(ConnectError(self.name, "stopped", message))

    # --- what comes in --------------------------------------------------------------------------

    def message_received(self, connection: Connection, message: Message) -> None:
        """Called by the connection for each control message."""
        if connection is self.connection:
            self._received(self, message)


def _old_form(
    message: ControlMessage, payload: Payload, flags: int
) -> tuple[ControlMessage, Payload]:
    """The older forms, for peers that do not claim EXIT_PAYLOAD or SEND_SENDER."""
    if not flags & Flag.SEND_SENDER and isinstance(message, SendSender):
        return Send(message.to, message.token), payload
    if flags & Flag.EXIT_PAYLOAD:
        return message, payload
    if isinstance(message, PayloadExit):
        return Exit(message.from_, message.to, Term(bytes(payload)), message.token), b""
    if isinstance(message, PayloadExit2):
        return Exit2(message.from_, message.to, Term(bytes(payload)), message.token), b""
    if isinstance(message, PayloadMonitorPExit):
        return MonitorPExit(message.from_, message.to, message.ref, Term(bytes(payload))), b""
    return message, payload
