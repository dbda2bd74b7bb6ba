"""Where epmd is: the environment variables that Erlang/OTP reads as well."""

from __future__ import annotations

import os
from collections.abc import Mapping

from snex_node.epmd.errors import EpmdError

DEFAULT_PORT = 4369
LOOPBACK = "127.0.0.1"
EVERY_IPV4 = "0.0.0.0"  # noqa: S104 - recognised here, not listened on unasked
EVERY_IPV6 = "::"


def epmd_port(environ: Mapping[str, str] = os.environ) -> int:
    """Return the port of epmd: `ERL_EPMD_PORT`, or 4369.

    Raises `EpmdError` if the variable is no port number. Source: epmd(1), "Environment variables".

    >>> epmd_port({"ERL_EPMD_PORT": "4370"})
    4370
    """
    text = environ.get("ERL_EPMD_PORT", "").strip()
    if not text:
        return DEFAULT_PORT
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise EpmdError(f"ERL_EPMD_PORT is not a port number between 1 and 65535: {text!r}")


def shown(host: str, port: int) -> str:
    """Return an address as texts have it.

    >>> shown("::1", 4369)
    '[::1]:4369'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen_addresses(
    environ: Mapping[str, str] = os.environ, *, also: str | None = None
) -> tuple[str, ...]:
    """Return the addresses an epmd that we start listens on.

    Those of `ERL_EPMD_ADDRESS`, separated by commas, with loopback added to them as OTP does, and
    `also`, where a node listens that others are to find; without any loopback alone, where the epmd
    of OTP listens on every interface. An address that stands for all takes the place of the others.

    >>> listen_addresses({"ERL_EPMD_ADDRESS": "192.0.2.1"})
    ('127.0.0.1', '192.0.2.1')
    >>> listen_addresses({}, also="0.0.0.0")
    ('0.0.0.0',)
    """
    given = environ.get("ERL_EPMD_ADDRESS", "").split(",")
    addresses = [LOOPBACK, *(address.strip() for address in given), also or ""]
    wanted = dict.fromkeys(filter(None, addresses))
    for every, separator in ((EVERY_IPV4, "."), (EVERY_IPV6, ":")):
        if every in wanted:  # its port is taken for the others of its kind
            wanted = dict.fromkeys(a for a in wanted if a == every or separator not in a)
    return tuple(wanted)
