"""A stranger: opens sockets to a port as fast as it can, and never does what is expected there.

Run as a process of its own, with a port and a kind; it says ``ready`` after the first 2,000 sockets
and goes on until its standard input ends.

* ``silent``: says nothing, and keeps the socket open.
* ``half``: says half a name, and keeps the socket open.
* ``names``: says a whole name, each time another one, and never answers the challenge.
* ``hasty``: connects and closes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import resource
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

KINDS = ("silent", "half", "names", "hasty")
COUNT = 2000


@contextlib.asynccontextmanager
async def flooding(port: int, kind: str) -> AsyncIterator[None]:
    """Flood a port of loopback; the first 2,000 sockets have been opened when this begins."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(port), kind, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        yield
        assert process.returncode is None, "the flood has ended"
    finally:
        process.stdin.close()
        await process.wait()


def _greeting(kind: str, number: int) -> bytes:
    name = f"stranger{number}@127.0.0.1".encode()
    flags = (0xD07DF7FBC).to_bytes(8, "big")
    message = b"N" + flags + b"\0\0\0\7" + len(name).to_bytes(2, "big") + name
    framed = len(message).to_bytes(2, "big") + message
    return {"silent": b"", "hasty": b"", "half": framed[:12], "names": framed}[kind]


def _flood(port: int, kind: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 4096), limit))
    most = min(COUNT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 50)
    opened: collections.deque[socket.socket] = collections.deque()
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), timeout=1)
            opened.append(sock)
            sock.send(_greeting(kind, number))
        while len(opened) > (0 if kind == "hasty" else most):
            opened.popleft().close()
        number += 1
        if number == COUNT:
            print("ready", flush=True)


if __name__ == "__main__":
    _flood(int(sys.argv[1]), sys.argv[2])
