"""A node: its name, its processes, and the other nodes it talks to.

Source: "Distributed Erlang" in the Erlang reference manual. The node is hidden: others see it in
``Node.list(:hidden)``, and it takes no part in ``global``.
"""

from __future__ import annotations

from collections.abc import Sequence

from snex_node.client import Client
from snex_node.cluster import connection as connections
from snex_node.cluster.cluster import Cluster, Limits
from snex_node.cluster.presence import EpmdMode, Presence
from snex_node.cluster.remote import RemoteNode
from snex_node.errors import (
    CallTimeoutError,
    ConnectError,
    NodeStartError,
    ProcessExitError,
)
from snex_node.processes.mailbox import Mailbox
from snex_node.processes.registry import Registry
from snex_node.processes.router import Destination, Router
from snex_node.processes.signals import Signals
from snex_node.services import NetKernel, Resolver, Rex, Spawner, import_function
from snex_node.system import forks
from snex_node.system.guardian import Guardian
from snex_node.system.memory import MAX_UNFINISHED
from snex_node.system.turns import Turns
from snex_node.ties import Target
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.framing import MAX_FRAME, MAX_MESSAGE
from snex_node.wire.gen import GEN_CAST, From
from snex_node.wire.handshake import HandshakeError, check_name
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom, Pid, Reference


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
        self.decoder = decoder or Decoder()
        self.encoder = encoder or Encoder()
        self.forked = False
        """Whether this process is a forked child of the one that the node runs in."""
        forks.tell_children(self._on_fork)
        self._resolver = resolver
        # The rooms, each over those before it.
        self.turns = Turns(name)
        self.guardian = Guardian()
        """The thread that keeps connections alive; it takes further checks."""
        self._presence = Presence(name, listen, epmd, epmd_port)
        limits = Limits(net_ticktime, net_setuptime, max_frame, max_message, max_unfinished)
        self.cluster = Cluster(
            self.name, cookie, self.turns, self.guardian, self.encoder, epmd_port, limits
        )
        self.registry = Registry(name)
        codec = self.decoder, self.encoder
        self.router = Router(self.name, self.registry, self.cluster, self.turns, *codec)
        self.signals = Signals(
            self.name, self.registry, self.router, self.cluster, self.turns, *codec
        )
        self.cluster.receiver = self.signals
        self._own: Client | None = None

    def _on_fork(self) -> None:
        self.forked = True

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    @property
    def creation(self) -> int:
        """Which incarnation of its name it is: a number that epmd gives, or a random one."""
        return self.cluster.creation

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the node listens, address and port; None when it does not."""
        return self._presence.address

    @property
    def port(self) -> int | None:
        """The port of `address`."""
        return None if self.address is None else self.address[1]

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
        if self.turns.running:
            raise NodeStartError(f"{self.name} has been started already")
        self.turns.begin()
        try:
            self.cluster.creation = await self._presence.take()
        except BaseException:
            self.turns.end()
            raise
        self.registry.begin(self.creation)
        self.guardian.start()
        self._own = self.router.speaker = Client(self)
        self.signals.spawner = Spawner(self, self._resolver)
        NetKernel(self).register("net_kernel")
        Rex(self, self._resolver).register("rex")
        self.cluster.let_in(self._presence.listener)

    async def stop(self) -> None:
        """End every process with ``shutdown``, close every connection, leave epmd."""
        if not self.turns.running:
            return
        self.cluster.stop_letting_in()
        self._presence.stop_listening()
        await self.turns.next()  # what was to be done soon is done while the node is there
        self.registry.end(Atom("shutdown"))
        await self.cluster.say_farewell()
        await self.turns.end_tasks()
        self.cluster.close()
        await self._presence.leave()
        self.guardian.stop()
        self._own = None
        self.turns.end()

    @property
    def _client(self) -> Client:
        """The process in whose name the node itself calls."""
        self.turns.require()
        assert self._own is not None
        return self._own

    # --- processes ------------------------------------------------------------------------------

    def admit(self, process: Mailbox) -> Pid:
        """Give ``process``, which begins here, its pid. Raises `NodeStartError`."""
        self.turns.require()
        return self.registry.add(process)

    def register(self, name: str, process: Mailbox) -> None:
        """Give ``process`` the name ``name``; ``ValueError`` when it is taken, or no atom."""
        self.registry.register(name, process)

    def unregister(self, name: str) -> None:
        """Free a name; ``ValueError`` when nothing has it."""
        self.registry.unregister(name)

    def whereis(self, name: str) -> Pid | None:
        """The pid of the process registered as ``name`` here."""
        process = self.registry.find(name)
        return None if process is None else process.pid

    def find(self, target: Pid | str) -> Mailbox | None:
        """The process of this node with this pid or registered name, if there is one."""
        return self.registry.find(target)

    def make_ref(self) -> Reference:
        """A new reference, unique in the cluster."""
        return self.registry.make_ref()

    def exit_signal(self, pid: Pid, reason: object, *, sender: Pid | None = None) -> None:
        """Send ``pid`` an exit signal, as ``Process.exit/2`` does."""
        self.signals.exit(pid, reason, sender)

    # --- messages -------------------------------------------------------------------------------

    def send(self, to: Destination, message: object, *, sender: Pid | None = None) -> None:
        """Send ``message`` to a process, from any thread.

        Messages with the same ``sender`` (a pid of this node) to one process arrive in the order
        in which they were sent; without a sender, those of one task or thread do. Where there is no
        connection one is made; a message to what does not exist is dropped, as in Erlang.

        Raises `EncodeError` for what is no term, `NodeError` when too much waits for a connection
        already, and ``TypeError`` for what is no destination.
        """
        self.router.send(to, message, sender)

    def reply(self, to: From, reply: object, *, sender: Pid | None = None) -> None:
        """Answer a call, from any thread. Raises `EncodeError`."""
        self.router.reply(to, reply, sender)

    def reply_encoded(self, to: From, reply: Payload, *, sender: Pid | None = None) -> None:
        """Answer a call with a term that is encoded already (a bare term)."""
        self.router.reply_encoded(to, reply, sender)

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
        link: Mailbox | None = None,
        monitor: Mailbox | None = None,
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
        return self.cluster.nodes

    @property
    def remotes(self) -> list[RemoteNode]:
        """What we hold about the nodes we know, connected or not."""
        return self.cluster.remotes

    def remote(self, name: str) -> RemoteNode:
        """What we hold about the node ``name``; made when it is first named. Any thread."""
        return self.cluster.remote(name)

    async def connect(self, name: str, *, address: tuple[str, int] | None = None) -> None:
        """Connect to the node ``name``, unless we are connected.

        ``address`` (host and port) spares the question to its epmd. Raises `ConnectError`.
        """
        await self.cluster.connect(name, address)

    def disconnect(self, name: str) -> None:
        """Close the connection to ``name``, as ``Node.disconnect/1`` does; none is fine."""
        self.cluster.disconnect(name)

    def keep_connected(self, name: str) -> None:
        """Connect to ``name`` and again whenever the connection is lost, until the node stops.

        Attempts are 0.5 s apart at first, 5 s later on.
        """
        self.cluster.keep_connected(name)

    async def ping(self, name: str, *, timeout: float | None = 5.0) -> bool:
        """Whether the node ``name`` answers, as ``Node.ping/1`` tells."""
        try:
            request = (Atom("is_auth"), self.name)
            answer = await self.call(("net_kernel", name), request, timeout=timeout)
        except (ConnectError, ProcessExitError, CallTimeoutError):
            return False
        return answer == "yes"

    def monitor_nodes(self, process: Mailbox, on: bool = True) -> None:
        """Send ``process`` ``(nodeup, name)`` and ``(nodedown, name)`` from now on, or no more.

        The former comes before every message of that node, the latter after the last one.
        """
        self.signals.monitor_nodes(process, on)
