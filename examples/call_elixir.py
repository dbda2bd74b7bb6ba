"""A Python program that calls Elixir and Erlang: functions, servers, messages, monitors.

With a BEAM to talk to in another terminal (``iex --name iex@127.0.0.1``)::

    python examples/call_elixir.py iex@127.0.0.1
"""

from __future__ import annotations

import asyncio
import sys

from snex_node import Atom, Decoder, Node, Pid, Process, RemoteError, find_cookie


async def main(peer: str) -> None:
    # It calls and is not called, so it neither listens nor needs to be known to epmd.
    node = Node(
        "caller@127.0.0.1",
        cookie=find_cookie(),
        listen=None,
        epmd="none",
        decoder=Decoder(binary_as="str"),
    )
    async with node:
        await node.connect(peer)
        await call_functions(node, peer)
        await use_an_agent(node, peer)
        await talk(node, peer)


async def call_functions(node: Node, peer: str) -> None:
    print("sum:", await node.rpc(peer, "lists", "sum", [[1, 2, 3]]))
    print("title:", await node.rpc(peer, "Elixir.String", "capitalize", ["élan"]))
    try:
        await node.rpc(peer, "erlang", "div", [1, 0])
    except RemoteError as error:
        print("error:", error.kind, error.reason)


async def use_an_agent(node: Node, peer: str) -> None:
    """Start a process there, call it as `GenServer.call` does, and see it end."""
    start = [Atom("Elixir.Map"), Atom("new"), []]
    match await node.rpc(peer, "Elixir.Agent", "start", start):
        case ("ok", Pid() as agent):
            pass
        case other:
            raise SystemExit(f"no agent: {other!r}")
    watcher = Process(node)
    watcher.monitor(agent)

    put = (Atom("Elixir.Map"), Atom("put"), ["answer", 42])
    print("update:", await node.call(agent, (Atom("update"), put)))
    get = (Atom("Elixir.Map"), Atom("get"), ["answer"])
    print("get:", await node.call(agent, (Atom("get"), get)))

    await node.rpc(peer, "Elixir.Agent", "stop", [agent])
    match await watcher.receive(timeout=5):
        case ("DOWN", _, "process", _, reason):
            print("it ended:", reason)


async def talk(node: Node, peer: str) -> None:
    """Send messages and receive them: what this prints appears in the other terminal."""
    process = Process(node, name="talker")
    tag = node.make_ref()
    puts = (Atom("put_chars"), Atom("unicode"), "Hello from Python!\n")
    process.send(("user", peer), (Atom("io_request"), process.pid, tag, puts))
    match await process.receive(timeout=5):
        case ("io_reply", reference, answer) if reference == tag:
            print("printed:", answer)

    to_us = (process.pid, (Atom("hello"), ["from", "Erlang"]))
    await node.rpc(peer, "erlang", "send", to_us)
    print("message:", await process.receive(timeout=5))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1]))
