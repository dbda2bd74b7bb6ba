"""The addresses of a host, in the order in which a BEAM looks for a node there.

A BEAM distributes over IPv4 unless it was started with ``-proto_dist inet6_tcp``. What listens at a
name that stands for addresses of both kinds, as ``localhost`` often does, is found only at the
IPv4 one, which the system may name last.
"""

from __future__ import annotations

import socket
from typing import Any, Final, NamedTuple

_LOOPBACK_NETWORK: Final = 127
_IPV4_IN_IPV6: Final = bytes(10) + b"\xff\xff"
_IPV6_LOOPBACK: Final = bytes(15) + b"\1"


class Address(NamedTuple):
    """Where a socket of ``family`` binds or connects."""

    family: socket.AddressFamily
    address: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The address itself, without the port."""
        return str(self.address[0])


def is_loopback(address: str) -> bool:
    """Whether only this machine gets there; False for what is no address."""
    address = address.partition("%")[0]
    try:
        return socket.inet_pton(socket.AF_INET, address)[0] == _LOOPBACK_NETWORK
    except OSError:
        pass
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    if packed.startswith(_IPV4_IN_IPV6):
        return packed[len(_IPV4_IN_IPV6)] == _LOOPBACK_NETWORK
    return packed == _IPV6_LOOPBACK


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
