"""Ports for servers of a test."""

from __future__ import annotations

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on now.

    Between this call and its use somebody else may take it: whoever starts a server on it tries
    again with another one. A server of ours is given port 0 instead, and asked what it got.
    """
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port
