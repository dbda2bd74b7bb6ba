"""Tells a service manager such as systemd how the node is, where it asked for that.

Source: ``sd_notify(3)`` and ``systemd.service(5)``, ``Type=notify``: lines such as ``READY=1`` in
one datagram to the socket named by ``NOTIFY_SOCKET``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Final

__all__ = ["Service"]

_log: Final = logging.getLogger(__name__)


class Service:
    """The service manager that started this process; where none did, nothing is told.

    Variables of the environment that it has set are taken out, so that they are not handed on.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watched, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        self._interval = int(watched) / 1_000_000 / 2 if mine and watched.isdecimal() else 0.0
        self._beat: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """The node can be called. From now on the watchdog is told, as often as it wants, that the
        event loop takes its turns.
        """
        self._tell("READY=1", f"STATUS={status}")
        if self._interval and self._address:
            self._alive()

    def stopping(self) -> None:
        """It stops."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        self._tell("STOPPING=1")

    def _alive(self) -> None:
        self._tell("WATCHDOG=1")
        self._beat = asyncio.get_running_loop().call_later(self._interval, self._alive)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is one of Linux's abstract ones.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # a manager that does not read holds up nobody
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            _log.warning("the service manager at %s cannot be told: %s", self._address, error)
            self._address = ""
