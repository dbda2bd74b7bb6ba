"""Where epmd is: the environment variables that Erlang/OTP reads as well."""

from __future__ import annotations

import os
from collections.abc import Mapping

from snex_node.epmd.errors import EpmdError

DEFAULT_PORT = 4369
LOOPBACK = "127.0.0.1"


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


def listen_addresses(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the addresses an embedded server listens on.

    Those of `ERL_EPMD_ADDRESS`, separated by commas, with loopback added to them as OTP does;
    without the variable loopback alone, where the epmd of OTP listens on every interface.

    >>> listen_addresses({"ERL_EPMD_ADDRESS": "192.0.2.1"})
    ('127.0.0.1', '192.0.2.1')
    """
    given = environ.get("ERL_EPMD_ADDRESS", "").split(",")
    addresses = [LOOPBACK, *(address.strip() for address in given)]
    return tuple(dict.fromkeys(filter(None, addresses)))
