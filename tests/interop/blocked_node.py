"""A node of ours in a process of its own, with a server that blocks the event loop when told to.

Usage: blocked_node NAME EPMD_PORT, with the cookie on standard input. Prints `ready`; ends when
standard input does.
"""

from __future__ import annotations

import asyncio
import sys
import time

from snex_node import Atom, From, GenServer, Node


class Blocker(GenServer):
    def handle_call(self, request: object, caller: From) -> object:
        assert isinstance(request, tuple)
        kind, seconds = request
        end = time.monotonic() + seconds
        if kind == "sleep":
            time.sleep(seconds)
        else:
            while time.monotonic() < end:
                pass
        return Atom("awake")


async def main(name: str, epmd_port: int) -> None:
    cookie = sys.stdin.readline().strip()
    async with Node(name, cookie=cookie, epmd="external", epmd_port=epmd_port) as node:
        Blocker(node, name="blocker")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
