"""Makes connections: dials other nodes, and lets them in.

Source: "Distribution Handshake" in the ERTS user's guide, and what OTP's ``net_kernel`` and
``inet_tcp_dist`` do: one connection between two nodes, whichever side began, or both at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from snex_node import connection as connections
from snex_node import epmd
from snex_node.connection import Connection, describe_error
from snex_node.errors import ConnectError
from snex_node.handshake import (
    Completed,
    HandshakeError,
    Identity,
    NameReceived,
    Status,
    check_name,
)

if TYPE_CHECKING:
    from snex_node.node import Node
    from snex_node.remote import RemoteNode

MAX_HANDSHAKES = 64
"""Incoming connections that may be in their handshake at one time, 7 s each at the most.

A stranger who opens sockets and says nothing can hold this many, about 10 KiB each."""

ACCEPT_PAUSE = 0.5
"""Seconds of pause after the system refused to accept a connection: it may have room then."""

_log = logging.getLogger(__name__)

MakeConnection = Callable[["RemoteNode", socket.socket, Completed], Connection]
"""Makes the `Connection` of a socket whose handshake is done."""


class Connector:
    """Makes the connections of one node; each begins when its `RemoteNode` has taken it.

    Nothing is retried here, and no connection is kept: that is `RemoteNode`'s.
    """

    def __init__(
        self, node: Node, cookie: str, epmd_port: int | None, make: MakeConnection
    ) -> None:
        self._node = node
        self._cookie = cookie
        self._epmd_port = epmd_port
        self._make = make
        # Sockets of those who came and whose handshake is not done.
        self._incoming: set[socket.socket] = set()

    # --- dialling -------------------------------------------------------------------------------

    async def dial(self, remote: RemoteNode) -> None:
        """Make a connection to ``remote``. Raises `ConnectError`."""
        name = remote.name
        self._check_kind(name)
        host, port = remote.address or await self._look_up(name)
        sock = await self._open(name, host, port)
        try:
            done = await connections.initiate(
                sock, self._identity(), self._cookie, name, timeout=self._node.net_setuptime
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
        return Identity(self._node.name, self._node.creation)

    def _check_kind(self, name: str) -> None:
        """Short and long names do not mix: the other side could not connect to us by our name."""
        try:
            check_name(name)
        except HandshakeError as error:
            raise ConnectError(name, "name", str(error)) from None
        ours, theirs = _kind(self._node.name), _kind(name)
        if ours != theirs:
            raise ConnectError(
                name,
                "names",
                f"{name} is a {theirs} name and {self._node.name} a {ours} one, and such nodes "
                "cannot connect: give both hosts with a dot (--name), or both without (--sname)",
            )

    async def _look_up(self, name: str) -> tuple[str, int]:
        alive, _, host = name.partition("@")
        try:
            info = await epmd.lookup(
                alive, host, port=self._epmd_port, timeout=self._node.net_setuptime
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
            sock.setblocking(False)
            try:
                await asyncio.wait_for(loop.sock_connect(sock, address), self._node.net_setuptime)
            except asyncio.TimeoutError:
                sock.close()
                why = f"no answer within {self._node.net_setuptime:g} s"
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

    async def accept(self, listener: socket.socket) -> None:
        """Let others in, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue  # whoever came has gone
                # Out of descriptors, most likely: the listening socket itself is fine.
                _log.warning("cannot accept connections: %s", describe_error(error))
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            where = f"{address[0]}:{address[1]}"
            if len(self._incoming) >= MAX_HANDSHAKES:
                _log.warning(
                    "%s: refused the connection: %d others are in their handshake",
                    where,
                    MAX_HANDSHAKES,
                )
                sock.close()
                continue
            self._incoming.add(sock)
            self._node._run(self._welcome(sock, where))

    def close(self) -> None:
        """Close the sockets of handshakes whose task has ended before it began."""
        for sock in self._incoming:
            sock.close()
        self._incoming.clear()

    async def _welcome(self, sock: socket.socket, address: str) -> None:
        """Do one handshake; when it fails, one line tells who it was and why."""
        remote: RemoteNode | None = None

        def decide(event: NameReceived) -> tuple[Status, str | None, int | None]:
            nonlocal remote
            status, name, creation = self._decide(event)
            remote = self._node.remote(name or event.name)
            remote.accept_began()
            if status is Status.OK_SIMULTANEOUS:
                remote.give_way()
            return status, name, creation

        done: Completed | None = None
        why = "this node stops"
        try:
            sock.setblocking(False)
            done = await connections.accept(
                sock, self._identity(), self._cookie, decide, timeout=self._node.net_setuptime
            )
        except HandshakeError as error:
            why = str(error)
            if error.reason not in ("nok", "alive"):  # two nodes settle which connection stays
                _log.warning("%s: refused the connection: %s", _who(remote, address), why)
        except OSError as error:
            why = describe_error(error)
            _log.warning("%s: lost the connection in its handshake: %s", _who(remote, address), why)
        finally:
            self._incoming.discard(sock)
            if done is None:
                sock.close()
                if remote is not None:
                    remote.accept_failed(why)
        if done is not None:
            assert remote is not None
            connection = self._make(remote, sock, done)
            remote.accepted(connection)
            connection.start(done.trailing)

    def _decide(self, event: NameReceived) -> tuple[Status, str | None, int | None]:
        """What to say to a name: see "Distribution Handshake", step 3, for crossing connections."""
        if event.wants_name:
            name = f"{secrets.token_hex(6)}@{event.name}"
            check_name(name)  # a host may be too long to have names
            return Status.NAMED, name, random_creation()
        remote = self._node.remote(event.name)
        if remote.connection is not None:
            return Status.ALIVE, None, None
        if remote.connecting:
            wins = self._node.name > event.name
            return (Status.NOK if wins else Status.OK_SIMULTANEOUS), None, None
        return Status.OK, None, None


def random_creation() -> int:
    """A creation for who gets none from an epmd.

    0 is reserved, and the first few are what the 16-bit creations of old nodes turn into.
    """
    return secrets.randbelow(2**32 - 16) + 16


def _kind(name: str) -> str:
    host = name.partition("@")[2]
    # An IPv6 address has no dot, and is no short name.
    return "long" if "." in host or ":" in host else "short"


def _who(remote: RemoteNode | None, address: str) -> str:
    return address if remote is None else f"{remote.name} ({address})"


def _connect_error(name: str, error: HandshakeError | OSError) -> ConnectError:
    if isinstance(error, HandshakeError):
        return ConnectError(name, error.reason, str(error))
    return ConnectError(name, "closed", f"{name} broke off the handshake: {describe_error(error)}")
