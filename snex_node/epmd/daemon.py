"""What runs in the process of an epmd of ours: `starter` starts it.

It imports little, so that it has 12 MB: a node has twice as much.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import sys

from snex_node.epmd import server

LINGER_SECONDS = 5.0
"""Seconds after the end of the last registration, or without a first one, in which it waits for
another: a node that is started again finds it."""


def main() -> None:
    """Serve as a daemon on the listening sockets whose numbers `sys.argv` has from 2 on."""
    sockets = [socket.socket(fileno=int(file)) for file in sys.argv[2:]]
    process = os.fork()
    if process:
        # Who started this waits for its end, and has no child afterwards that he might wait for.
        os.write(1, b"%d" % process)
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)
    logging.disable()
    _allow_files(server.MAX_NAMES + 2 * server.MAX_UNFINISHED)
    server.Core(sockets, linger=LINGER_SECONDS).run()


def _allow_files(count: int) -> None:
    """Allow so many files where the system would allow more, but for the asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
