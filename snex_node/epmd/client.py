"""Asks an epmd: register a node, look one up, list all. For asyncio.

Every request has a connection of its own. The one that registers a node stays open: it *is* the
registration. Source: Erlang distribution protocol, "Protocol between epmd and Nodes".
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from snex_node.epmd.errors import (
    BadAnswerError,
    EpmdTimeoutError,
    EpmdUnreachableError,
    HostNotFoundError,
    NameTakenError,
    NoAnswerError,
)
from snex_node.epmd.messages import (
    MAX_NAMES_ANSWER_BYTES,
    MAX_PORT_ANSWER_BYTES,
    OUR_NAME,
    MalformedError,
    NodeInfo,
    alive_answer_size,
    encode_alive_request,
    encode_names_request,
    encode_port_request,
    parse_alive_answer,
    parse_names_answer,
    parse_port_answer,
)
from snex_node.epmd.settings import LOOPBACK, epmd_port, shown
from snex_node.system import forks, tasks

TIMEOUT = 10.0
"""Seconds an epmd may take for an answer, the connection included, as in OTP."""

SECOND_LOOK = 0.05
"""Seconds after which a name that is taken is asked for once more. The epmd of OTP may read a new
request before it sees the end of an older connection: a node that stops and starts at once is then
refused because of itself, in about 1 of 100 tries."""

_T = TypeVar("_T")


class Registration:
    """A node's entry in an epmd. It lasts as long as its connection.

    Made by `register`.
    """

    def __init__(self, node: NodeInfo, creation: int, connection: _AliveConnection) -> None:
        self.node = node
        self.creation = creation
        """Number that tells this incarnation of the name from earlier ones."""
        self._connection = connection

    @property
    def lost(self) -> bool:
        """Whether the connection has ended, by `close` or because epmd has gone."""
        return self._connection.ended.done()

    async def wait_lost(self) -> None:
        """Return when the connection has ended. May be cancelled, and called again."""
        await asyncio.shield(self._connection.ended)

    def close(self) -> None:
        """Take the node out of epmd. Closing twice is allowed."""
        self._connection.close()


async def register(
    node: NodeInfo, *, host: str = LOOPBACK, port: int | None = None, timeout: float = TIMEOUT
) -> Registration:
    """Register `node` at the epmd on `host`, this machine's unless told otherwise.

    `port` is epmd's; without it `ERL_EPMD_PORT` counts. The entry lasts until the registration is
    closed or its connection is lost; a `Registrar` keeps one that is renewed.

    Raises `NameTakenError` if the name is registered already, `EpmdUnreachableError`,
    `BadAnswerError`, `HostNotFoundError`, and `ValueError` for a name that no node can have.

    Example::

        registration = await register(NodeInfo("py", port=40123))
        print(registration.creation)
    """
    request = encode_alive_request(node)
    at = _Address(host, port)

    for pause in (SECOND_LOOK, None):
        connection, data = await at.within(timeout, _announce(at, request))
        try:
            answer = at.parsed(parse_alive_answer, data)
        except BadAnswerError:
            connection.close()
            raise
        if answer.result == 0:
            return Registration(node, answer.creation, connection)
        connection.close()
        if pause is not None:
            await asyncio.sleep(pause)
    raise NameTakenError(
        f"the name {node.name!r} is taken by another node on this host (the epmd at {at} "
        f"refused it): stop that node, or choose another name"
    )


async def lookup(
    name: str, host: str = LOOPBACK, *, port: int | None = None, timeout: float = TIMEOUT
) -> NodeInfo | None:
    """Ask the epmd on `host` where the node `name` (the part before the `@`) listens.

    Returns None if it is not registered there. Raises `EpmdUnreachableError`, `HostNotFoundError`,
    `BadAnswerError`, and `ValueError` for a name that no node can have.

    Example::

        node = await lookup("py", "127.0.0.1")
        if node is not None:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    """
    at = _Address(host, port)
    request = encode_port_request(name)
    data = await at.within(timeout, _ask(at, request, MAX_PORT_ANSWER_BYTES))
    return at.parsed(parse_port_answer, data)


async def names(
    host: str = LOOPBACK, *, port: int | None = None, timeout: float = TIMEOUT
) -> list[tuple[str, int]]:
    """Return name and port of every node that is registered at the epmd on `host`.

    Raises `EpmdUnreachableError`, `HostNotFoundError` and `BadAnswerError`.

    Example::

        for name, port in await names():
            print(name, port)
    """
    at = _Address(host, port)
    data = await at.within(timeout, _ask(at, encode_names_request(), MAX_NAMES_ANSWER_BYTES))
    return at.parsed(parse_names_answer, data)


async def is_ours(
    *, host: str = LOOPBACK, port: int | None = None, timeout: float = TIMEOUT
) -> bool:
    """Ask the epmd on `host` whether it is one of this package. Raises as `lookup` does."""
    return await lookup(OUR_NAME, host, port=port, timeout=timeout) is not None


class _Address:
    """Where an epmd is, and what its failures are called."""

    def __init__(self, host: str, port: int | None) -> None:
        self.host = host
        self.port = epmd_port() if port is None else port

    def __str__(self) -> str:
        return shown(self.host, self.port)

    async def within(self, timeout: float, asking: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await asyncio.wait_for(tasks.start(asking), timeout)
        except asyncio.TimeoutError:
            raise EpmdTimeoutError(
                f"the epmd at {self} did not answer within {timeout:g} s: "
                f"see whether that host is up and its port {self.port} is open to this one"
            ) from None
        except (socket.gaierror, UnicodeError) as error:  # the latter: no host name at all
            raise HostNotFoundError(
                f"the host {self.host!r} does not resolve ({error}): see that its name is right "
                f"and known to this machine (DNS or /etc/hosts)"
            ) from error
        except OSError as error:
            raise EpmdUnreachableError(
                f"no epmd at {self} ({_why(error)}): start one there with "
                f"`epmd -daemon`, or by starting a node with `--epmd embedded`"
            ) from error

    def parsed(self, parse: Callable[[bytes], _T], data: bytes) -> _T:
        if not data:  # epmd says nothing to what it does not understand or does not allow
            raise NoAnswerError(self._no_epmd("it closed the connection instead of answering"))
        try:
            return parse(data)
        except MalformedError as error:
            raise BadAnswerError(self._no_epmd(str(error))) from error

    def _no_epmd(self, why: str) -> str:
        return (
            f"what answers at {self} is not an epmd ({why}): see what listens on that port, "
            f"or choose another one with ERL_EPMD_PORT"
        )


def _why(error: OSError) -> str:
    """Return what the system says; asyncio puts the address into the error instead."""
    return os.strerror(error.errno) if error.errno else str(error)


async def _announce(at: _Address, request: bytes) -> tuple[_AliveConnection, bytes]:
    """Open the connection of a registration; return it with the answer."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: _AliveConnection(request, loop.create_future(), loop.create_future()),
        at.host,
        at.port,
    )
    try:
        return connection, await connection.answer
    except BaseException:  # cancelled, by the time limit too
        connection.close()
        raise


async def _ask(at: _Address, request: bytes, limit: int) -> bytes:
    """Send a request, and return what comes until the answering side closes."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    try:
        writer.write(request)
        data = b""
        while chunk := await reader.read(limit + 1 - len(data)):
            data += chunk
            if len(data) > limit:
                raise BadAnswerError(
                    f"what answers at {at} is not an epmd: it sent more than {limit} bytes"
                )
        return data
    finally:
        writer.transport.abort()  # nothing is left to be sent, so there is nothing to wait for


class _AliveConnection(asyncio.Protocol):
    """The connection of a registration: one request, one answer, then only its end counts."""

    def __init__(
        self, request: bytes, answer: asyncio.Future[bytes], ended: asyncio.Future[None]
    ) -> None:
        self.answer = answer
        """The bytes of the answer; cut short if the connection ended or they are none."""
        self.ended = ended
        self._request = request
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        forks.keep_from_children(self)
        self._transport.write(self._request)

    def fileno(self) -> int:
        """The descriptor, -1 without one: forked children must not have it, or it never ends."""
        if self._transport is None or self.ended.done():
            return -1
        number: int = self._transport.get_extra_info("socket").fileno()
        return number

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return  # epmd has nothing more to say, and would not be asked
        self._data += data
        try:
            size = alive_answer_size(self._data[0])
        except MalformedError:
            size = 1
        if len(self._data) >= size:
            self.answer.set_result(self._data[:size])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(self._data)
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
