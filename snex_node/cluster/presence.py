"""Where others find this node: the address it listens at, and its name with epmd."""

from __future__ import annotations

import os
import socket
from typing import Literal

from snex_node import epmd
from snex_node.cluster.connection import describe_error
from snex_node.cluster.door import BACKLOG
from snex_node.epmd import Registrar
from snex_node.errors import NodeStartError
from snex_node.system import forks
from snex_node.system.addresses import resolve

EpmdMode = Literal["auto", "external", "embedded", "none"]


class Presence:
    """The place of the node ``name``: ``listen`` is where, None for nowhere; see `Node`."""

    def __init__(
        self, name: str, listen: tuple[str, int] | None, mode: EpmdMode, epmd_port: int | None
    ) -> None:
        self._name = name
        self._listen = listen
        self._mode: EpmdMode = mode
        self._epmd_port = epmd_port
        self._registrar: Registrar | None = None
        self.listener: socket.socket | None = None
        self.address: tuple[str, int] | None = None

    async def take(self) -> int:
        """Listen, and register with epmd. Returns the creation. Raises `NodeStartError`."""
        try:
            if self._listen is not None:
                self.listener = listen(*self._listen)
                self.address = self.listener.getsockname()[:2]
            return await self._register()
        except BaseException:
            self.stop_listening()
            self.address = None
            raise

    def stop_listening(self) -> None:
        """Nobody can come any more; who asks epmd finds the name yet."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()

    async def leave(self) -> None:
        """Leave epmd."""
        self.stop_listening()
        registrar, self._registrar = self._registrar, None
        if registrar is not None:
            await registrar.close()
        self.address = None

    async def _register(self) -> int:
        """The creation that epmd gives; a random one where there is none."""
        if self._mode == "none" or self.address is None:
            return random_creation()
        address, port = self.address
        name, _, host = self._name.partition("@")
        registrar = Registrar(
            epmd.NodeInfo(name, port),
            mode=self._mode,
            port=self._epmd_port,
            listen=address,
            host=host,
        )
        try:
            creation = await registrar.start()
        except (epmd.EpmdError, ValueError) as error:
            raise NodeStartError(str(error)) from error
        self._registrar = registrar
        return creation or random_creation()


def random_creation() -> int:
    """A creation for who gets none from an epmd.

    0 is reserved, and the first few are what the 16-bit creations of old nodes turn into.
    """
    return int.from_bytes(os.urandom(16), "big") % (2**32 - 16) + 16


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `NodeStartError`."""
    try:
        family, address = resolve(host, port)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        forks.keep_from_children(listener)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise NodeStartError(
            f"cannot listen on {host}:{port}: {describe_error(error)}. "
            "Choose another address or port (port 0 takes a free one)"
        ) from error
    listener.setblocking(False)
    return listener
