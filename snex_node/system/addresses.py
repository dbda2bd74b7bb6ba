"""The addresses of a host, in the order in which a BEAM looks for a node there.

A BEAM distributes over IPv4 unless it was started with ``-proto_dist inet6_tcp``. What listens at a
name that stands for addresses of both kinds, as ``localhost`` often does, is found only at the
IPv4 one, which the system may name last.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple


class Address(NamedTuple):
    """Where a socket of ``family`` binds or connects."""

    family: socket.AddressFamily
    address: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The address itself, without the port."""
        return str(self.address[0])


def resolve(host: str | None, port: int = 0) -> list[Address]:
    """The addresses of ``host``, IPv4 first; an empty one stands for all of this machine.

    Blocks. Raises ``OSError`` when there are none.
    """
    flags = 0 if host else socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # no name that a host could have
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return [Address(entry[0], entry[4]) for entry in found]
