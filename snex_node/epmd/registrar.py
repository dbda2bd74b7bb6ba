"""Keeps a node registered: on the epmd that runs, or on one that it starts."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from snex_node.epmd.client import Registration, register
from snex_node.epmd.errors import (
    EpmdError,
    EpmdTimeoutError,
    EpmdUnreachableError,
    PortInUseError,
)
from snex_node.epmd.messages import NodeInfo
from snex_node.epmd.server import EpmdServer
from snex_node.epmd.settings import epmd_port

RENEW_SECONDS = 2.0
"""Pause before a lost registration is asked for again, as in OTP."""

TAKE_OVER_AFTER = 5
"""Attempts after which an `auto` registrar starts an epmd in the place of the one that went: 10 s.
Earlier it would take the port from an epmd that is just being restarted."""

RACE_ATTEMPTS = 5
RACE_PAUSE = 0.05

Mode = Literal["auto", "external", "embedded"]

_log = logging.getLogger(__name__)


class Registrar:
    """Registers a node with this machine's epmd, and again whenever that registration is lost.

    `mode` says which epmd: "external" is one that runs already, "embedded" one in this process, and
    "auto" the former if there is one, else the latter; if several processes start at once, one of
    them serves and the others use it. `port` is epmd's, `ERL_EPMD_PORT` or 4369 by default.

    The node keeps the creation it got first, whatever number it gets later, as OTP does: its
    process identifiers contain it.

    Example::

        registrar = Registrar(NodeInfo("py", port=40123))
        creation = await registrar.start()
        ...
        await registrar.close()
    """

    def __init__(self, node: NodeInfo, *, mode: Mode = "auto", port: int | None = None) -> None:
        self._node = node
        self._mode = mode
        self._port = epmd_port() if port is None else port
        self._server: EpmdServer | None = None
        self._registration: Registration | None = None
        self._creation = 0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def creation(self) -> int:
        """The creation of the node; 0 before it was registered."""
        return self._creation

    @property
    def registered(self) -> bool:
        """Whether the node is registered now."""
        return self._registration is not None and not self._registration.lost

    @property
    def server(self) -> EpmdServer | None:
        """The embedded server, if this registrar has started one."""
        return self._server

    async def start(self) -> int:
        """Register the node; return its creation. Afterwards the registration is kept.

        Raises `NameTakenError`; `EpmdUnreachableError` if no epmd runs ("external") or what listens
        there is silent; `BadAnswerError` if it is no epmd; `PortInUseError` if an embedded one
        cannot listen; `ValueError` for a name that no node can have.
        """
        if self._mode == "embedded":
            self._start_server()
        try:
            self._registration = await self._register(may_serve=self._mode == "auto")
        except BaseException:
            self._stop_server()
            raise
        self._creation = self._registration.creation
        self._keeper = asyncio.create_task(self._keep(), name=f"epmd {self._node.name}")
        return self._creation

    async def close(self) -> None:
        """Take the node out of epmd, and end an embedded epmd. May be called twice."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if self._registration is not None:
            self._registration.close()
            await self._registration.wait_lost()
        self._stop_server()

    async def _register(self, *, may_serve: bool) -> Registration:
        """Register; if no epmd is there, and that is allowed, start one first."""
        if not may_serve:
            return await register(self._node, port=self._port)
        for _ in range(RACE_ATTEMPTS):
            try:
                return await register(self._node, port=self._port)
            except EpmdTimeoutError:
                raise  # something listens there: its place is not free
            except EpmdUnreachableError:
                try:
                    self._start_server()
                except PortInUseError as error:
                    # Somebody was faster, or is about to listen, or only binds without listening.
                    taken = error
                    await asyncio.sleep(RACE_PAUSE)
        raise taken

    async def _keep(self) -> None:
        while True:
            assert self._registration is not None
            await self._registration.wait_lost()
            _log.warning("epmd has gone: %s is not registered now", self._node.name)
            self._registration = await self._register_again()
            _log.info("%s is registered with epmd again", self._node.name)

    async def _register_again(self) -> Registration:
        complaint = ""
        attempts = 0
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            attempts += 1
            try:
                take_over = self._mode == "auto" and attempts > TAKE_OVER_AFTER
                return await self._register(may_serve=take_over)
            except EpmdError as error:
                if str(error) != complaint:  # once, not every two seconds
                    complaint = str(error)
                    _log.warning("%s could not be registered: %s", self._node.name, complaint)

    def _start_server(self) -> None:
        server = EpmdServer(port=self._port)
        server.start()
        self._server = server
        _log.info("started an embedded epmd on %s:%d", *server.address)

    def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()
