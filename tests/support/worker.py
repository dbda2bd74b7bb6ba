"""What a front tells a worker that it starts."""

from __future__ import annotations

from typing import Any

from snex_node.wire.terms import Atom

COOKIE = "the-cookie-of-workers"


def configuration(script: str | None = None, **more: object) -> dict[str, Any]:
    """The configuration of one that no epmd knows, with ``more`` or something else in it."""
    return {
        "cookie": COOKIE,
        "epmd": Atom("none"),
        "encoding_opts": None,
        "register_as": "snex",
        "script": None if script is None else (script, "init.py"),
        "script_timeout": 20_000,
        "listen": None,
        "net_ticktime": 60.0,
        "max_frame": 2**27,
        "log_level": "warning",
        "log_format": "text",
        **more,
    }
