"""Keeps a node registered: on the epmd that runs, or on one that it starts."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, TypeVar

from snex_node.epmd import starter
from snex_node.epmd.client import Registration, is_ours, register
from snex_node.epmd.errors import (
    EpmdError,
    EpmdTimeoutError,
    EpmdUnreachableError,
    NoAnswerError,
    NotFoundThereError,
    PortInUseError,
)
from snex_node.epmd.messages import NodeInfo
from snex_node.epmd.settings import (
    EVERY_IPV4,
    EVERY_IPV6,
    LOOPBACK,
    epmd_port,
    listen_addresses,
    shown,
)
from snex_node.system import tasks
from snex_node.system.addresses import resolve

RENEW_SECONDS = 2.0
"""Pause between attempts to register again, as in OTP."""

SOON_SECONDS = 2.0
SOON_PAUSE = 0.1
"""For the first two seconds after a registration was lost the pauses are shorter: whoever looks for
a node does not wait longer than needed for an epmd that was restarted."""

TAKE_OVER_SECONDS = 0.3
TAKE_OVER_SPREAD = 0.2
"""Seconds after which an epmd is started in the place of the one that went; the spread, so that not
all nodes do so at once. Earlier it would take the port from one that is just being restarted (after
0.1 s, by systemd's default); later, nodes would be lost for longer than the two seconds that users
were promised."""

RACE_ATTEMPTS = 6
RACE_PAUSE = 0.05
"""Attempts at the start, and seconds between them, while an epmd is ending, or another process is
about to listen in its place."""

REACH_SECONDS = 2.0
"""What looking whether epmd listens at an address of this machine may take."""

Mode = Literal["auto", "external", "embedded"]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Registrar:
    """Registers a node with this machine's epmd, and again whenever that registration is lost.

    `mode` says which epmd: "external" is one that runs already, "embedded" one of ours, which runs
    or is started, and "auto" the one that runs, or else one that is started: that of OTP if it is
    found on `PATH`, else one of ours. What is started is a process of its own, which outlives
    this one if others use it; one of ours ends when its last node has gone. If several processes
    start one at once, the first does and the others use it. When the epmd of a node dies, the node
    registers with any that takes its place. `port` is epmd's, `ERL_EPMD_PORT` or 4369 by default.

    `listen` is the address where the node listens and `host` the host in its name: an epmd that is
    started listens there too, unless that is loopback, and if the one that runs does not, starting
    fails, because nobody would find the node.

    The node keeps the creation it got first, whatever number it gets later, as OTP does: its
    process identifiers contain it.

    Example::

        registrar = Registrar(NodeInfo("py", port=40123))
        creation = await registrar.start()
        ...
        await registrar.close()
    """

    def __init__(
        self,
        node: NodeInfo,
        *,
        mode: Mode = "auto",
        port: int | None = None,
        listen: str = LOOPBACK,
        host: str = LOOPBACK,
    ) -> None:
        self._node = node
        self._mode = mode
        self._port = epmd_port() if port is None else port
        self._listen = listen
        self._host = host
        self._registration: Registration | None = None
        self._creation = 0
        self._keeper: asyncio.Task[None] | None = None
        self._started = False

    @property
    def creation(self) -> int:
        """The creation of the node; 0 before it was registered."""
        return self._creation

    @property
    def registered(self) -> bool:
        """Whether the node is registered now."""
        return self._registration is not None and not self._registration.lost

    @property
    def started(self) -> bool:
        """Whether this registrar has started an epmd."""
        return self._started

    async def start(self) -> int:
        """Register the node; return its creation. Afterwards the registration is kept.

        Raises `NameTakenError`; `EpmdUnreachableError` if no epmd runs ("external") or what listens
        there is silent; `BadAnswerError` if it is no epmd; `PortInUseError` if one that is started
        cannot listen, or one of ours is wanted and another runs; `EpmdStartError` if no process can
        be started; `NotFoundThereError` if the one that runs does not listen where others look for
        this node; `ValueError` for a name that no node can have.
        """
        registration = await self._register(may_start=self._mode != "external")
        try:
            unseen = await self._unseen()
            if unseen is not None:
                raise NotFoundThereError(unseen)
        except BaseException:
            registration.close()
            raise
        self._registration = registration
        self._creation = registration.creation
        self._keeper = tasks.start(self._keep())
        return self._creation

    async def close(self) -> None:
        """Take the node out of epmd. May be called twice."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if self._registration is not None:
            self._registration.close()
            await self._registration.wait_lost()

    async def _register(self, *, may_start: bool) -> Registration:
        """Register; if no epmd is there, and that is allowed, start one first."""
        failure: EpmdError
        for _ in range(RACE_ATTEMPTS):
            try:
                return await self._ask()
            except EpmdTimeoutError:
                raise  # something listens there: its place is not free
            except NoAnswerError as error:
                failure = error  # it may be ending
            except EpmdUnreachableError as error:
                failure = error
                if not may_start:
                    raise
                try:
                    await self._start_epmd()
                    continue
                except PortInUseError as taken:
                    # Somebody was faster, or is about to listen, or only binds without listening.
                    failure = taken
            await asyncio.sleep(RACE_PAUSE)
        raise failure

    async def _ask(self) -> Registration:
        # Once it was registered, what counts is that it can be found.
        ours = self._mode == "embedded" and self._registration is None
        if ours and not await is_ours(port=self._port):
            raise PortInUseError(
                f"port {self._port} is in use by an epmd that is not one of ours, which "
                f"`--epmd auto` would share: use that, or choose another port with ERL_EPMD_PORT"
            )
        return await register(self._node, port=self._port)

    async def _start_epmd(self) -> None:
        also = None if self._listen == LOOPBACK else self._listen
        hosts = listen_addresses(also=also)
        ours = self._mode == "embedded"
        await _in_thread(partial(starter.start, hosts, self._port, ours=ours))
        self._started = True

    # Where others look

    async def _unseen(self) -> str | None:
        """Return why others would not find this node; None if they will."""
        address = await _in_thread(partial(looked_for_at, self._listen, self._host))
        if address is None:
            return None
        where = shown(address, self._port)
        connecting = asyncio.open_connection(address, self._port)
        try:
            _, writer = await asyncio.wait_for(connecting, REACH_SECONDS)
        except asyncio.TimeoutError:
            return None  # whatever keeps packets from us need not keep them from others
        except OSError:
            return (
                f"others look for {self._node.name}@{self._host} at the epmd at {where}, "
                f"where the one that runs does not listen: stop that one, so that this node "
                f"starts one that does, or start it with "
                f"ERL_EPMD_ADDRESS={address}; or let this node listen on loopback alone"
            )
        writer.transport.abort()
        return None

    # Registered again

    async def _keep(self) -> None:
        while True:
            assert self._registration is not None
            await self._registration.wait_lost()
            _log.warning("epmd has gone: %s is not registered now", self._node.name)
            self._registration = await self._register_again()
            _log.info("%s is registered with epmd again", self._node.name)
            unseen = await self._unseen()
            if unseen is not None:
                _log.warning("%s", unseen)

    async def _register_again(self) -> Registration:
        clock = asyncio.get_running_loop().time
        began = clock()
        patience = TAKE_OVER_SECONDS + TAKE_OVER_SPREAD * os.urandom(1)[0] / 255
        complaint = ""
        while True:
            waited = clock() - began
            late = waited >= patience
            try:
                return await self._register(may_start=late and self._mode != "external")
            except EpmdError as error:
                if late and str(error) != complaint:  # once, not every two seconds
                    complaint = str(error)
                    _log.warning("%s could not be registered: %s", self._node.name, complaint)
            await asyncio.sleep(SOON_PAUSE if waited < SOON_SECONDS else RENEW_SECONDS)


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Do what blocks on a thread of its own: those of the loop may all be busy, for long."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="epmd")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
    finally:
        executor.shutdown(wait=False)


def looked_for_at(listen: str, host: str) -> str | None:
    """Return the address of this machine, besides 127.0.0.1, where others look for a node.

    `listen` is the address it listens on and `host` that in its name. None: nowhere else, or not
    told by what this machine knows. Blocks while the host is looked up.
    """
    if listen not in (EVERY_IPV4, EVERY_IPV6):
        return None if listen == LOOPBACK else listen
    try:
        family, address = resolve(host)[0]
    except OSError:
        return None
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return None  # that of a machine in front of this one
    own = str(address[0])
    return None if own == LOOPBACK else own
