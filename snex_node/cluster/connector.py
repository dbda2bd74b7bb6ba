"""Makes connections: dials other nodes, and lets them in.

Source: "Distribution Handshake" in the ERTS user's guide, and what OTP's ``net_kernel`` and
``inet_tcp_dist`` do: one connection between two nodes, whichever side began, or both at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Protocol

from snex_node import epmd
from snex_node.cluster import connection as connections
from snex_node.cluster.connection import Connection, describe_error
from snex_node.cluster.door import Door
from snex_node.cluster.presence import random_creation
from snex_node.cluster.remote import RemoteNode
from snex_node.errors import ConnectError
from snex_node.system import forks, tasks
from snex_node.wire.handshake import (
    Acceptor,
    Completed,
    HandshakeError,
    Identity,
    NameReceived,
    Status,
    check_name,
)
from snex_node.wire.terms import Atom

MakeConnection = Callable[[RemoteNode, socket.socket, Completed], Connection]
"""Makes the `Connection` of a socket whose handshake is done."""


class Directory(Protocol):
    """Who this node is, and whom it knows."""

    @property
    def name(self) -> Atom:
        """The name of this node."""

    @property
    def creation(self) -> int:
        """Which incarnation of that name it is."""

    @property
    def net_setuptime(self) -> float:
        """Seconds that each step towards a connection may take."""

    def remote(self, name: str) -> RemoteNode:
        """What is held about the node ``name``, known or not."""


class Connector:
    """Makes the connections of one node; each begins when its `RemoteNode` has taken it.

    Nothing is retried here, and no connection is kept: that is `RemoteNode`'s.
    """

    def __init__(
        self, directory: Directory, cookie: str, epmd_port: int | None, make: MakeConnection
    ) -> None:
        self._directory = directory
        self._cookie = cookie
        self._epmd_port = epmd_port
        self._make = make
        # What we have asked those who are in a handshake with us, whichever side began.
        self.challenges: set[int] = set()
        self._door = Door(
            lambda: _Visit(directory, cookie, self.challenges, make),
            lambda: directory.net_setuptime,
        )

    # --- dialling -------------------------------------------------------------------------------

    async def dial(self, remote: RemoteNode) -> None:
        """Make a connection to ``remote``. Raises `ConnectError`."""
        name = remote.name
        self._check_kind(name)
        host, port = remote.address or await self._look_up(name)
        sock = await self._open(name, host, port)
        task = asyncio.current_task()
        remote.introduced(task)
        try:
            done = await connections.initiate(
                sock,
                self._identity(),
                self._cookie,
                name,
                timeout=self._directory.net_setuptime,
                outstanding=self.challenges,
                wanted=lambda: remote.is_dialled_by(task),
            )
        except (HandshakeError, OSError) as error:
            sock.close()
            raise _connect_error(name, error) from error
        except BaseException:
            sock.close()
            raise
        if not remote.is_dialled_by(asyncio.current_task()):
            # `asyncio.wait_for` may miss a cancellation that comes with the last byte (until 3.12).
            sock.close()
            raise asyncio.CancelledError
        connection = self._make(remote, sock, done)
        remote.connected(connection)
        connection.start(done.trailing)

    def _identity(self) -> Identity:
        return Identity(self._directory.name, self._directory.creation)

    def _check_kind(self, name: str) -> None:
        """Short and long names do not mix: the other side could not connect to us by our name."""
        try:
            check_name(name)
        except HandshakeError as error:
            raise ConnectError(name, "name", str(error)) from None
        ours, theirs = _kind(self._directory.name), _kind(name)
        if ours != theirs:
            raise ConnectError(
                name,
                "names",
                f"{name} is a {theirs} name and {self._directory.name} a {ours} one, and such "
                "nodes cannot connect: give both hosts with a dot (--name), or both without "
                "(--sname)",
            )

    async def _look_up(self, name: str) -> tuple[str, int]:
        alive, _, host = name.partition("@")
        try:
            info = await epmd.lookup(
                alive, host, port=self._epmd_port, timeout=self._directory.net_setuptime
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
        why = "it has no address"
        for family, _, _, _, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            forks.keep_from_children(sock)
            sock.setblocking(False)
            try:
                connecting = tasks.start(loop.sock_connect(sock, address))
                await asyncio.wait_for(connecting, self._directory.net_setuptime)
            except asyncio.TimeoutError:
                sock.close()
                why = f"no answer within {self._directory.net_setuptime:g} s"
            except OSError as error:
                sock.close()
                why = describe_error(error)
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise ConnectError(
            name, "unreachable", f"{name} does not accept connections on {host}:{port}: {why}"
        )

    # --- accepting ------------------------------------------------------------------------------

    def listen(self, listener: socket.socket) -> None:
        """Let others in from now on."""
        self._door.open(listener)

    def stop_listening(self) -> None:
        """Let nobody in any more, and end the handshakes of those who came."""
        self._door.close()

    @property
    def handshakes(self) -> int:
        """How many have come whose handshake is not done."""
        return len(self._door)


class _Visit:
    """The handshake of one who came; see `snex_node.cluster.door.Visit`."""

    def __init__(
        self, directory: Directory, cookie: str, challenges: set[int], make: MakeConnection
    ) -> None:
        self._directory = directory
        self._make = make
        self._challenges = challenges
        self._challenge = connections.new_challenge(challenges)
        self._remote: RemoteNode | None = None
        self._knew_of_another = False
        identity = Identity(directory.name, directory.creation)
        self.acceptor = Acceptor(identity, cookie, self._challenge, outstanding=challenges)

    def decide(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
        """What to say to a name: see "Distribution Handshake", step 3, for crossing connections.

        ``ok_simultaneous`` says that our attempt gives way; it does when the other side has shown
        the cookie (`RemoteNode.accept_confirmed`), because anybody can use a name.
        """
        status, name, creation = self._answer(event)
        self._remote = self._directory.remote(name or event.name)
        self._remote.accept_began()
        self._knew_of_another = status is Status.ALIVE
        return status, name, creation

    def _answer(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
        if event.wants_name:
            name = f"{os.urandom(6).hex()}@{event.name}"
            check_name(name)  # a host may be too long to have names
            return Status.NAMED, name, random_creation()
        remote = self._directory.remote(event.name)
        if remote.connection is not None:
            return Status.ALIVE, None, None
        if remote.connecting:
            wins = self._directory.name > event.name
            return (Status.NOK if wins else Status.OK_SIMULTANEOUS), None, None
        return Status.OK, None, None

    def confirm(self) -> None:
        """Crossing connections are settled before the other side learns that it is accepted."""
        assert self._remote is not None
        if not self._remote.may_be_accepted(self._knew_of_another):
            raise HandshakeError("crossed", "another connection stays")

    def succeeded(self, sock: socket.socket, done: Completed) -> None:
        """From now on it is a connection."""
        self._challenges.discard(self._challenge)
        assert self._remote is not None
        connection = self._make(self._remote, sock, done)
        self._remote.accepted(connection)
        connection.start(done.trailing)

    def failed(self, error: HandshakeError) -> None:
        """What waits for a connection to that node is told, where it waits for this one."""
        self._challenges.discard(self._challenge)
        if self._remote is not None:
            self._remote.accept_failed(str(error))


def _kind(name: str) -> str:
    host = name.partition("@")[2]
    # An IPv6 address has no dot, and is no short name.
    return "long" if "." in host or ":" in host else "short"


def _connect_error(name: str, error: HandshakeError | OSError) -> ConnectError:
    if isinstance(error, HandshakeError):
        return ConnectError(name, error.reason, str(error))
    return ConnectError(name, "closed", f"{name} broke off the handshake: {describe_error(error)}")
