"""A GenServer in Python, called from Elixir: see ``counter_client.exs`` beside this file.

In one terminal (the cookie is the one in ``~/.erlang.cookie``)::

    python examples/counter_server.py
"""

from __future__ import annotations

import asyncio
import sys

from snex_node import Atom, From, GenServer, Node, Stop, find_cookie


class Counter(GenServer):
    """Messages are handled one after the other, as in any GenServer, so nothing needs a lock."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, name="counter")
        self.count = 0
        self.ended = asyncio.Event()

    async def handle_call(self, request: object, caller: From) -> object:
        match request:
            case ("add", int(amount)):
                self.count += amount
                return self.count
            case ("add_later", int(amount), int(milliseconds)):
                await asyncio.sleep(milliseconds / 1000)  # the node does other things meanwhile
                self.count += amount
                return self.count
            case "stop":
                raise Stop(reply=Atom("bye"))
            case _:
                return Atom("error"), Atom("unknown_request")

    def handle_cast(self, request: object) -> None:
        if request == "reset":
            self.count = 0

    def terminate(self, reason: object) -> None:
        self.ended.set()


async def main(name: str) -> None:
    async with Node(name, cookie=find_cookie()) as node:
        counter = Counter(node)
        print(f"ready {name}", flush=True)
        await counter.ended.wait()
        print(f"it counted to {counter.count}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "counter@127.0.0.1"))
